"""A Python function and its arguments → a flat program of primitives, variables and data apart.

The interpreter inlines every call (jit, custom derivatives, remat, closed calls), numbers values
and equations in program order, and classes each value: a *variable* may be moved by the solver, or
is computed from one; everything else is *data* and is only ever evaluated. Dead code is dropped.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from pjax_trace import _compat
from pjax_trace.errors import TraceError
from pjax_trace.registry import rule_for

__all__ = ["Equation", "Program", "Value", "trace_program"]


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """One array of a program, numbered in program order."""

    index: int
    shape: tuple[int, ...]
    dtype: Any
    variable: bool
    name: str = ""

    def __repr__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return f"{self.name or f'v{self.index}'}:{np.dtype(self.dtype).name}[{dims}]"


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to values; ``source`` and ``scope`` say where the user wrote it."""

    index: int
    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    source: str
    scope: str

    @property
    def variable_inputs(self) -> tuple[bool, ...]:
        """Which inputs are variables."""
        return tuple(value.variable for value in self.inputs)

    def evaluate(self, *operands: Any) -> list[Any]:
        """The equation's outputs."""
        return _compat.bind(self.primitive, self.params, *operands)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function as a flat list of equations."""

    parameters: tuple[Value, ...]
    data: tuple[Value, ...]
    constants: dict[Value, Any]
    equations: tuple[Equation, ...]
    outputs: tuple[Value, ...]

    @functools.cached_property
    def known(self) -> dict[Value, Any]:
        """What is known while tracing: constants, and integers (such as indices) made of them."""
        known = {v: a for v, a in self.constants.items() if _compat.is_known(a)}
        with jax.ensure_compile_time_eval():
            for e in self.equations:
                integers = not any(np.issubdtype(v.dtype, np.inexact) for v in e.outputs)
                if integers and all(v in known for v in e.inputs):
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


class _Tracer:
    """Walks a jaxpr once, inlining calls and numbering what it meets."""

    def __init__(self) -> None:
        self.count = 0
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}
        self.views: dict[Any, list[Value]] = {}

    def value(self, aval: Any, variable: bool, name: str = "") -> Value:
        self.count += 1
        return Value(self.count - 1, tuple(aval.shape), aval.dtype, variable, name)

    def constant(self, array: Any) -> Value:
        value = self.value(array, False)
        self.constants[value] = array
        return value

    def walk(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Value],
        *,
        scope: str = "",
        source: str = "",
        rewritten: bool = False,
    ) -> list[Value]:
        """The values of a jaxpr's outputs; ``scope`` and ``source`` are those of the call to it.

        What a rule rewrote an equation to has that equation's source, and none of its own.
        """
        env: dict[Any, Value] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.constant(const)
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, _compat.Literal):
                aval: Any = atom.aval
                return self.constant(np.asarray(atom.val, aval.dtype))
            return env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            variable = any(v.variable for v in operands)
            inner = "/".join(filter(None, (scope, _compat.source_scope(eqn))))
            line = source if rewritten else _compat.source_line(eqn) or source
            body = self.body(eqn, operands) if variable else None
            if body is not None:
                called, constants, new = body
                results = self.walk(
                    called,
                    constants,
                    operands,
                    scope=inner,
                    source=line,
                    rewritten=new or rewritten,
                )
            elif (key := self.view_key(eqn, operands)) in self.views:
                results = self.views[key]
            else:
                results = [self.output(eqn, var, variable) for var in eqn.outvars]
                if key is not None:
                    self.views[key] = results
                self.equations.append(
                    Equation(
                        len(self.equations),
                        eqn.primitive,
                        eqn.params,
                        tuple(operands),
                        tuple(results),
                        line,
                        inner,
                    )
                )
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def view_key(self, eqn: Any, operands: Sequence[Value]) -> Any:
        """What a view equation is equal by: ``x[0] * x[0]`` is a square too. None for others."""
        rule = rule_for(eqn.primitive)
        variable = tuple(v.variable for v in operands)
        if rule is None or not any(variable) or not rule.is_view(eqn.params, variable):
            return None
        key = (eqn.primitive, tuple(operands), tuple(sorted(eqn.params.items(), key=str)))
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def body(self, eqn: Any, operands: Sequence[Value]) -> tuple[Any, Sequence[Any], bool] | None:
        """The jaxpr to walk in place of an equation: a call's own, or a rule's rewriting of it."""
        call = _compat.call_body(eqn)
        if call is not None:
            return *call, False
        rule = rule_for(eqn.primitive)
        variable = tuple(v.variable for v in operands)
        function = rule.rewrite(eqn.params, operands, variable) if rule else None
        if function is None:
            return None
        avals = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in operands]
        closed = jax.make_jaxpr(function)(*avals)
        return closed.jaxpr, closed.consts, True

    def output(self, eqn: Any, var: Any, variable: bool) -> Value:
        # stop_gradient means stop here too: its output is data, frozen at the forward value.
        frozen = eqn.primitive is jax.lax.stop_gradient_p
        return self.value(var.aval, variable and not frozen)


def trace_program(
    function: Callable[..., Any],
    parameters: Sequence[Any],
    data: Sequence[Any],
    *,
    names: Sequence[str],
    source: str = "",
    roots: Collection[Any] = (),
    objectives: Collection[Any] = (),
) -> Program:
    """Trace ``function(parameters, data)``, both flat lists of arrays, into a program.

    Args:
        function: takes two lists of arrays; whatever it returns is flattened.
        parameters: arrays, tracers or shapes of the variables.
        data: the same for the data.
        names: what to call the inputs, parameters first.
        source: what to say of equations that are not on a line of the user's.
        roots: the primitives of output constraints. What none of them needs is dead code. Without
            roots, everything that the function returns is kept.
        objectives: those of the roots whose outputs are losses; what the function makes of a loss
            on the way to its own outputs is kept too.

    Raises:
        TraceError: if a loop or branch of Python depends on a variable.
    """
    try:
        closed = jax.make_jaxpr(function)(list(parameters), list(data))
    except (
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.ConcretizationTypeError,
    ) as error:
        raise TraceError(
            "a Python loop or branch depends on the value of a traced array, or a NumPy function "
            "does; use jnp.where and jax.numpy, or pass what decides it as a static (non-array) "
            "argument. JAX says: " + str(error).split("\n", maxsplit=1)[0]
        ) from error
    jaxpr = closed.jaxpr
    tracer = _Tracer()
    inputs = [
        tracer.value(var.aval, position < len(parameters), name)
        for position, (var, name) in enumerate(zip(jaxpr.invars, names, strict=True))
    ]
    outputs = tracer.walk(jaxpr, closed.consts, inputs, source=source)
    return Program(
        tuple(inputs[: len(parameters)]),
        tuple(inputs[len(parameters) :]),
        tracer.constants,
        _live(tracer.equations, outputs, roots, objectives),
        tuple(outputs),
    )


def _live(
    equations: list[Equation],
    outputs: Sequence[Value],
    roots: Collection[Any],
    objectives: Collection[Any],
) -> tuple[Equation, ...]:
    """Dead-code elimination.

    A returned value that comes from no loss (an accuracy, say) asks for no projection rule, so
    the function's own outputs keep alive only what they make of a loss.
    """
    losses: set[Value] = set()
    for equation in equations:
        if equation.primitive in objectives or not losses.isdisjoint(equation.inputs):
            losses.update(equation.outputs)
    needed = {value for value in outputs if value in losses or not roots}
    kept = []
    for equation in reversed(equations):
        if equation.primitive in roots or not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    return tuple(reversed(kept))
