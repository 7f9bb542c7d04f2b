"""A traced function as a flat list of equations: what the tracer makes, and all else reads."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.translation import Affine, Outcome

__all__ = ["Equation", "Objective", "Program", "Size", "Value", "needed_equations"]


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """One array of a program, numbered in program order.

    ``frozen`` are data that follow from variables: integers, and what is made of them.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any
    variable: bool
    name: str = ""
    frozen: bool = False

    def __repr__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return f"{self.name or f'v{self.index}'}:{np.dtype(self.dtype).name}[{dims}]"


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to values.

    ``source`` and ``scope`` say where the user wrote it; ``outcome`` says what it becomes, None if
    no variable reaches it. With ``effects`` it does something beside computing its outputs, such as
    printing, and is never dead.
    """

    index: int
    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    source: str
    scope: str
    outcome: Outcome | None = None
    effects: bool = False

    @property
    def is_view(self) -> bool:
        """Whether it is a view of variables."""
        return isinstance(self.outcome, Affine)

    @property
    def affine(self) -> Affine:
        """What is known of it as a view."""
        assert isinstance(self.outcome, Affine)
        return self.outcome

    def reading(self, inputs: Callable[[Value], Value]) -> "Equation":
        """The same equation of other values."""
        return dataclasses.replace(self, inputs=tuple(map(inputs, self.inputs)))

    def evaluate(self, *operands: Any) -> list[Any]:
        """The equation's outputs."""
        own = _compat.own_function(self) if self.effects else None
        if own is not None:
            return own(*operands)  # whose effects JAX must see
        return _compat.bind(self.primitive, self.params, *operands)


class Size(NamedTuple):
    """Of how many samples a loss is, most likely, and how many terms its value begins with."""

    rows: int
    terms: int


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the function makes of its losses: linear in the values of all nodes.

    Attributes:
        scales: the values of all loss nodes, and what holds the scale of each.
        sizes: of the loss of each scale.
        tail: the linear equations, in program order.
        unpack: what the tail reads, as the elements from ``start`` on of the value of a node.
        outputs: what the tail makes, which adds up to the objective.
    """

    scales: Mapping[Value, Value] = dataclasses.field(default_factory=dict)
    sizes: Mapping[Value, Size] = dataclasses.field(default_factory=dict)
    tail: tuple[Equation, ...] = ()
    unpack: Mapping[Value, tuple[Value, int]] = dataclasses.field(default_factory=dict)
    outputs: tuple[Value, ...] = ()

    @property
    def reads(self) -> set[Value]:
        """The data of the tail."""
        made = {v for e in self.tail for v in e.outputs} | set(self.unpack)
        return {v for e in self.tail for v in e.inputs if v not in made}

    def evaluate(
        self, env: Mapping[Value, Any]
    ) -> tuple[dict[Value, Array], dict[Value, Array], Float[Array, ""]]:
        """What the objective is made of, from all values of a forward pass.

        Returns:
            For every scale the derivative of the objective by the value of the node; the node's
            part in the objective, in which elements of weight 0 do not count, finite or not; and
            what is left of the objective.
        """

        def function(nodes: list[Array]) -> Array:
            own = dict(zip(self.scales, nodes, strict=True))
            inner = {
                v: own[node].reshape(-1)[start : start + math.prod(v.shape)].reshape(v.shape)
                for v, (node, start) in self.unpack.items()
            }
            for equation in self.tail:
                operands = [inner[v] if v in inner else env[v] for v in equation.inputs]
                inner.update(zip(equation.outputs, equation.evaluate(*operands), strict=True))
            wide = jnp.result_type(float)
            ends = (jnp.sum(inner[v]).astype(wide) for v in self.outputs)
            return sum(ends, jnp.zeros((), wide))

        zeros = [jnp.zeros(v.shape, v.dtype) for v in self.scales]
        rest, pull = jax.vjp(function, zeros)
        (slopes,) = pull(jnp.ones_like(rest))
        returned = {node for node, _ in self.unpack.values()}
        scales, parts = {}, {}
        for (v, scale), slope in zip(self.scales.items(), slopes, strict=True):
            if v not in returned:  # a loss that nobody returns counts as its mean
                slope = jnp.full(v.shape, 1 / max(1, math.prod(v.shape)), v.dtype)
            scales[scale] = slope
            parts[scale] = jnp.sum(jnp.where(slope != 0, slope * env[v], 0))
        return scales, parts, rest


@dataclasses.dataclass(frozen=True)
class Program:
    """A function as a flat list of equations."""

    parameters: tuple[Value, ...]
    data: tuple[Value, ...]
    constants: dict[Value, Any]
    equations: tuple[Equation, ...]
    outputs: tuple[Value, ...]
    # What a scan's step reads as its carry → the same as a view of what the step before wrote.
    feedback: dict[Value, Value] = dataclasses.field(default_factory=dict)
    objective: Objective = Objective()

    @property
    def frozen(self) -> tuple[Equation, ...]:
        """The equations whose outputs are data although they read variables."""
        return tuple(
            e
            for e in self.equations
            if any(v.variable for v in e.inputs)
            and e.outputs  # which a print has not
            and not any(v.variable for v in e.outputs)
        )

    @functools.cached_property
    def known(self) -> dict[Value, Any]:
        """What is known while tracing: constants, and integers (such as indices) made of them."""
        return self._from_constants(lambda v: v.dtype == bool or _is_integer(v.dtype))

    @functools.cached_property
    def constant(self) -> dict[Value, Any]:
        """Constants and all that is made of them, evaluated: for programs that are small."""
        return self._from_constants(lambda v: True)

    def known_of(self, values: Collection[Value]) -> dict[Value, Any] | None:
        """These values, if they are made of constants alone."""
        return evaluated(self.equations, self.known, values)

    def _from_constants(self, wanted: Callable[[Value], bool]) -> dict[Value, Any]:
        known = {v: a for v, a in self.constants.items() if _compat.is_known(a)}
        with jax.ensure_compile_time_eval():
            for e in self.equations:
                if all(map(wanted, e.outputs)) and all(v in known for v in e.inputs):
                    results = e.evaluate(*(known[v] for v in e.inputs))
                    known.update(zip(e.outputs, results, strict=True))
        return known

    def evaluate(self, parameters: Sequence[Any], data: Sequence[Any]) -> dict[Value, Any]:
        """All values, by a forward pass."""
        env: dict[Value, Any] = dict(self.constants)
        env.update(zip(self.parameters, parameters, strict=True))
        env.update(zip(self.data, data, strict=True))
        for equation in self.equations:
            results = equation.evaluate(*(env[v] for v in equation.inputs))
            env.update(zip(equation.outputs, results, strict=True))
        return env


def _is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer))  # which knows the types of random keys


def needed_equations(
    equations: Sequence[Equation],
    feedback: dict[Value, Value],
    values: Collection[Value],
    roots: Collection[Equation] = (),
    through: Callable[[Equation], bool] = lambda equation: True,
) -> list[Equation]:
    """The equations that ``values`` and ``roots`` need, in program order; carries lead back."""
    needed, kept, size = set(values), set(roots), -1
    while len(kept) > size:  # a step needs what the step before wrote, further down the program
        size = len(kept)
        for equation in reversed(equations):
            if (equation in kept or not needed.isdisjoint(equation.outputs)) and through(equation):
                kept.add(equation)
                needed.update(equation.inputs)
                needed.update(feedback[v] for v in equation.outputs if v in feedback)
    return [e for e in equations if e in kept]


def evaluated(
    equations: Sequence[Equation], known: Mapping[Value, Any], values: Collection[Value]
) -> dict[Value, Any] | None:
    """What is known, with values that equations make of it; None if they need anything else."""
    env = dict(known)
    missing = [v for v in values if v not in env]
    with jax.ensure_compile_time_eval():
        for e in needed_equations(equations, {}, missing) if missing else ():
            if any(v not in env for v in e.inputs):
                return None
            env.update(zip(e.outputs, e.evaluate(*(env[v] for v in e.inputs)), strict=True))
    return env if all(v in env for v in values) else None
