"""Variables, and views of them: affine maps in which every element reads one element."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace.index import Index
from pjax_trace.linear import Layout
from pjax_trace.program import Equation, Value

__all__ = ["Variable", "View"]


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """An array that the solver may move: a parameter, or the output of a constraint.

    ``repeats`` is what the output of an inserted identity is the same as.
    """

    name: str
    value: Value
    parameter: bool
    repeats: "Variable | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        return self.value.dtype

    def __repr__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return f"{self.name}:{np.dtype(self.dtype).name}[{dims}]"


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """An affine map from variables to what a constraint reads.

    With ``y = L x + offset``, every element of y reads one element of x. What a constraint says of
    y is said of x by ``Lᵀ``; the mean over all readers divides by ``Lᵀ ω L``, in which coefficients
    are squared.

    Args:
        bases: the variables that are read.
        equations: the view equations between them and ``out``, in program order.
        out: the value that they end in.
        then: further functions, applied in turn; each is linear and only repeats or moves elements.
    """

    bases: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    out: Value
    then: tuple[Callable[[Array], Array], ...] = ()

    @staticmethod
    def of(variable: Variable) -> "View":
        """The variable itself."""
        return View((variable,), (), variable.value)

    def __call__(self, data: Mapping[Value, Any], *arrays: Array, seen: bool = False) -> Array:
        """The operand, from one array per base.

        With ``seen``, what data scale by no finite number, as by the inverse of a zero, is 0:
        whatever is finite that follows from it does not see it.
        """
        env = {base.value: x for base, x in zip(self.bases, arrays, strict=True)}
        for equation in self.equations:
            operands = [env[v] if v in env else data[v] for v in equation.inputs]
            variable = [v in env for v in equation.inputs]
            if seen and equation.affine.scales and equation.affine.pointwise and not all(variable):
                results = _finitely_scaled(equation, operands, variable)
            else:
                results = equation.evaluate(*operands)
            env.update(zip(equation.outputs, results, strict=True))
        x = env[self.out]
        for function in self.then:
            x = function(x)
        return x

    def pull(self, data: Mapping[Value, Any], x: Array) -> tuple[Array, ...]:
        """``Lᵀ x``: what is said of the operand, as said of the bases."""
        if self.identity:
            return (x,)
        # The derivative of an affine map drops its offset, which a plain transpose would not.
        _, transpose = jax.vjp(functools.partial(self, data, seen=True), *self._filled(0))
        return transpose(x.astype(self.dtype))

    def slope(self, data: Mapping[Value, Any], offset: Array | float | None = None) -> Array:
        """``L 1``: the coefficient of every element of the operand."""
        if offset is None:
            offset = self.at_zero(data)
        return self(data, *self._filled(1), seen=True) - offset

    def at_zero(self, data: Mapping[Value, Any]) -> Array:
        """The offset: what the operand is where all bases are zero."""
        return self(data, *self._filled(0), seen=True)

    def _filled(self, value: float) -> list[Array]:
        return [jnp.full(base.shape, value, base.dtype) for base in self.bases]

    @property
    def dtype(self) -> Any:
        """The dtype of the operand."""
        return self.out.dtype

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the operand."""
        shape = jax.ShapeDtypeStruct(self.out.shape, self.out.dtype)
        for function in self.then:
            shape = jax.eval_shape(function, shape)
        return shape.shape

    @property
    def identity(self) -> bool:
        """Whether the operand is the variable itself."""
        return not self.equations and not self.then

    @property
    def total(self) -> bool:
        """Whether it surely reads every element of its bases."""
        return all(e.affine.total for e in self.equations)

    @property
    def offset(self) -> bool:
        """Whether it may add data to what it reads."""
        return any(e.affine.offset for e in self.equations)

    @property
    def scales(self) -> bool:
        """Whether it may multiply what it reads."""
        return any(e.affine.scales for e in self.equations)

    @property
    def uniform(self) -> bool:
        """Whether it multiplies all elements by one number, if by any."""
        return all(e.affine.uniform for e in self.equations)

    def looks_up(self, known: Collection[Value]) -> bool:
        """Whether data that are not ``known`` while tracing say which elements it reads."""
        made = {base.value for base in self.bases}
        for e in self.equations:
            indices = (v for v in e.inputs if v not in made and v not in known)
            if not e.affine.total and any(jnp.issubdtype(v.dtype, jnp.integer) for v in indices):
                return True
            made.update(e.outputs)
        return False

    @functools.cached_property
    def layout(self) -> Layout | None:
        """The permutation of the elements of one variable that it is; None if it is none."""
        base, *others = self.bases
        if others or self.offset or self.scales:
            return None
        index = self.index({base: Index.of(base.shape)})
        return None if index is None else index.layout(base.shape)

    def index(self, names: Mapping[Variable, Index | None]) -> Index | None:
        """The element that each operand element reads, if it is an affine function of the place.

        ``names`` gives the elements of every base.
        """
        env: dict[Value, Index | None] = {base.value: names.get(base) for base in self.bases}
        for e in self.equations:
            reads = {v: env[v] for v in e.inputs if v in env}
            x = next(iter(reads.values())) if len(reads) == 1 else None
            env.update(dict.fromkeys(e.outputs))
            if x is None:
                continue
            if e.affine.pointwise:
                env[e.outputs[0]] = x.spread(e.outputs[0].shape)
            elif e.affine.index is not None:
                env[e.outputs[0]] = e.affine.index(x)
            elif len(e.affine.ranges) == len(e.outputs):
                for part, out in zip(e.affine.ranges, e.outputs, strict=True):
                    limits = [(0, n) for n in x.shape]
                    limits[part.axis] = part.start, part.stop
                    starts, stops = zip(*limits, strict=True)
                    env[out] = x.slice(starts, stops, None)
        return None if self.then else env[self.out]

    def followed_by(self, function: Callable[[Array], Array] | None) -> "View":
        """This view and then a function that repeats or moves elements."""
        if function is None:
            return self
        return dataclasses.replace(self, then=(*self.then, function))

    def through(self, old: Variable, source: "View") -> "View":
        """The same view with another one in the place of a base."""
        if old not in self.bases:
            return self
        others = (base for base in self.bases if base is not old)
        bases = tuple(dict.fromkeys((*source.bases, *others)))

        def instead(value: Value) -> Value:
            return source.out if value is old.value else value

        equations = source.equations + tuple(e.reading(instead) for e in self.equations)
        return dataclasses.replace(self, bases=bases, equations=equations, out=instead(self.out))


def _finitely_scaled(equation: Equation, operands: list[Any], variable: list[bool]) -> list[Array]:
    """The one output of an equation of data and one variable that keeps elements in their places.

    Its coefficients, and what it adds, are 0 where they are not finite.
    """

    def at(value: float) -> Array:
        filled = [
            jnp.full_like(x, value) if v else x for x, v in zip(operands, variable, strict=True)
        ]
        return equation.evaluate(*filled)[0]

    def settled(x: Array) -> Array:
        return jnp.where(jnp.isfinite(x), x, 0)

    factor, offset = at(1), None
    if equation.affine.offset:
        offset = at(0)
        factor = factor - offset
    x = settled(factor) * operands[variable.index(True)].astype(factor.dtype)
    return [x if offset is None else x + settled(offset)]
