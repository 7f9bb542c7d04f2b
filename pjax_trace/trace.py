"""A Python function and its arguments → a flat program of primitives, variables and data apart.

The interpreter inlines every call (jit, custom derivatives, remat, closed calls), scan and cond
(for sweeps, scans stay as they are),
numbers values and equations in program order, and classes each value: a *variable* may be moved by
the solver, or is computed from one; everything else is *data* and is only ever evaluated. Integers
computed from variables (an argmax, indices) are data, as what `jax.lax.stop_gradient` returns:
frozen at their forward values. Booleans of variables are relaxed to reals by their rules. Dead code
is dropped.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace import _compat
from pjax_trace.calls import constrain_p, loss_p
from pjax_trace.control import inline_branches, keep_scan, lift_scan
from pjax_trace.errors import MissingRuleError, TraceError
from pjax_trace.match import claim_functions
from pjax_trace.narrow import narrow_sums
from pjax_trace.registry import Refusal, paired, rule_for

__all__ = ["Equation", "Program", "Value", "needed_equations", "trace_program"]


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
    # What a scan's step reads as its carry → the same as a view of what the step before wrote.
    feedback: dict[Value, Value] = dataclasses.field(default_factory=dict)

    @property
    def frozen(self) -> tuple[Equation, ...]:
        """The equations whose outputs are data although they read variables."""
        return tuple(
            e
            for e in self.equations
            if any(v.variable for v in e.inputs) and not any(v.variable for v in e.outputs)
        )

    @functools.cached_property
    def known(self) -> dict[Value, Any]:
        """What is known while tracing: constants, and integers (such as indices) made of them."""
        known = {v: a for v, a in self.constants.items() if _compat.is_known(a)}
        with jax.ensure_compile_time_eval():
            for e in self.equations:
                integers = all(v.dtype == bool or _is_integer(v.dtype) for v in e.outputs)
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


def _is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer))  # which knows the types of random keys


class _Tracer:
    """Walks a jaxpr once, inlining calls and numbering what it meets."""

    def __init__(self, lift: bool = True) -> None:
        self.lift = lift
        self.count = 0
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}
        self.views: dict[Any, list[Value]] = {}
        self.feedback: dict[Value, Value] = {}

    def snapshot(self) -> tuple[Any, ...]:
        """What to give to `restore` to forget all that was traced since."""
        containers = (self.equations, self.constants, self.views, self.feedback)
        return self.count, *(c.copy() for c in containers)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a `snapshot`."""
        self.count, self.equations, self.constants, self.views, self.feedback = snapshot

    def value(self, aval: Any, variable: bool, name: str = "", *, frozen: bool = False) -> Value:
        self.count += 1
        return Value(self.count - 1, tuple(aval.shape), aval.dtype, variable, name, frozen)

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
            inner = "/".join(filter(None, (scope, _compat.source_scope(eqn))))
            line = source if rewritten else _compat.source_line(eqn, source)
            results = None
            if any(v.variable for v in operands):
                results = self.inline(eqn, operands, inner, line, rewritten)
            if results is None:
                results = self.add(eqn, operands, inner, line)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def inline(
        self, eqn: Any, operands: Sequence[Value], scope: str, source: str, rewritten: bool
    ) -> list[Value] | None:
        """The outputs of an equation that stands for others; None if it is one of its own."""
        walk_jaxpr = functools.partial(self.walk, scope=scope, source=source, rewritten=rewritten)

        def walk(function: Callable[..., Any], *values: Value, own: bool = True) -> list[Value]:
            closed = jax.make_jaxpr(function)(
                *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values)
            )
            return self.walk(
                closed.jaxpr,
                closed.consts,
                values,
                scope=scope,
                source=source,
                rewritten=rewritten or not own,
            )

        kind = _compat.loop_kind(eqn.primitive)
        relaxed = [v.dtype != a.aval.dtype for v, a in zip(operands, eqn.invars, strict=True)]
        if kind and any(relaxed):
            raise TraceError(
                f"a boolean or complex value that depends on variables enters a {kind} at "
                f"{source}; make it real first (jnp.where(condition, 1.0, 0.0), or real and "
                "imaginary part), or compute it inside"
            )
        if kind == "scan" and (self.lift or not _compat.scan_parts(eqn).length):
            return lift_scan(self, eqn, operands, walk)
        if kind == "scan":
            return keep_scan(self, eqn, operands, _trace_body, scope, source)
        if kind == "cond" and not (operands[0].variable or operands[0].frozen):
            return inline_branches(eqn, operands, walk_jaxpr, walk)
        call = _compat.call_body(eqn)
        if call is not None:
            return walk_jaxpr(*call, operands)
        # In this jaxpr complex, but variable: a pair of reals, one more axis in front.
        pairs = [
            r and bool(jnp.issubdtype(a.aval.dtype, jnp.complexfloating))
            for r, a in zip(relaxed, eqn.invars, strict=True)
        ]
        complex_out = [jnp.issubdtype(a.aval.dtype, jnp.complexfloating) for a in eqn.outvars]
        if any(pairs) or any(complex_out):
            return self.paired(eqn, operands, pairs, complex_out, source, walk)
        rule = rule_for(eqn.primitive)
        variable = tuple(v.variable for v in operands)
        function = rule.rewrite(eqn.params, operands, variable) if rule else None
        if function is None and any(relaxed) and not isinstance(rule, Refusal):
            function = self.relaxed(eqn, operands, source)
        return None if function is None else walk(function, *operands, own=False)

    def paired(
        self,
        eqn: Any,
        operands: Sequence[Value],
        pairs: Sequence[bool],
        complex_out: Sequence[bool],
        source: str,
        walk: Callable[..., list[Value]],
    ) -> list[Value]:
        """The outputs of an equation on complex values, pairs of reals where they move."""
        function = paired(eqn.primitive)
        if function is None:
            raise MissingRuleError(
                f"{eqn.primitive.name} at {source} has no rule for complex values that depend on "
                "variables; compute with their real and imaginary parts"
            )
        results = walk(functools.partial(function, eqn.params, pairs), *operands, own=False)
        for i, flag in enumerate(complex_out):
            if flag and not results[i].variable:  # frozen: data are complex numbers
                (results[i],) = walk(lambda u: jax.lax.complex(u[0], u[1]), results[i], own=False)
        return results

    def relaxed(
        self, eqn: Any, operands: Sequence[Value], source: str
    ) -> Callable[..., Any] | None:
        """An equation on booleans, some of which are relaxed to reals, as one on reals."""
        dtype = next(v.dtype for v in operands if v.variable)
        flags = [v.dtype == bool for v in operands]
        avals = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in operands]
        # Booleans beside relaxed ones are reals, too, but a predicate stays what it is.
        for cast in (flags, [False, *flags[1:]], [False] * len(flags)):

            def function(*xs: Any, cast: Sequence[bool] = tuple(cast)) -> list[Any]:
                xs = tuple(x.astype(dtype) if c else x for x, c in zip(xs, cast, strict=True))
                return _compat.bind(eqn.primitive, eqn.params, *xs)

            try:
                jax.eval_shape(function, *avals)
            except TypeError:
                continue
            return function
        raise TraceError(
            f"{eqn.primitive.name} at {source} reads a boolean that depends on variables, and has "
            "no relaxation to reals; use jnp.where, &, | and ~"
        )

    def add(self, eqn: Any, operands: Sequence[Value], scope: str, source: str) -> list[Value]:
        """The outputs of an equation of its own; those of an equal view, if there is one."""
        key = self.view_key(eqn, operands)
        if key in self.views:
            return self.views[key]
        # stop_gradient means stop here too: its output is data, frozen at the forward value. So
        # are integers, which could not move.
        moving = eqn.primitive is not jax.lax.stop_gradient_p and any(v.variable for v in operands)
        avals = [var.aval for var in eqn.outvars]
        refused = isinstance(rule_for(eqn.primitive), Refusal)  # and is not data, but reported
        flags = [moving and (refused or bool(jnp.issubdtype(a.dtype, jnp.inexact))) for a in avals]
        results = self.emit(eqn.primitive, eqn.params, operands, flags, avals, scope, source)
        if key is not None:
            self.views[key] = results
        return results

    def emit(
        self,
        primitive: Any,
        params: dict[str, Any],
        operands: Sequence[Value],
        variable: Sequence[bool],
        avals: Sequence[Any] | None = None,
        scope: str = "",
        source: str = "",
    ) -> list[Value]:
        """Add an equation, with outputs that are variables or not."""
        if avals is None:
            shapes = (jax.ShapeDtypeStruct(v.shape, v.dtype) for v in operands)
            avals = jax.eval_shape(functools.partial(_compat.bind, primitive, params), *shapes)
        moves = any(v.variable or v.frozen for v in operands)
        frozen = moves and primitive is not jax.lax.stop_gradient_p
        results = [
            self.value(a, flag, frozen=frozen and not flag)
            for a, flag in zip(avals or (), variable, strict=True)
        ]
        index, inputs, outputs = len(self.equations), tuple(operands), tuple(results)
        self.equations.append(Equation(index, primitive, params, inputs, outputs, source, scope))
        return results

    def is_view(self, primitive: Any, params: dict[str, Any], operands: Sequence[Value]) -> bool:
        """Whether an equation is a view of variables."""
        rule = rule_for(primitive)
        variable = tuple(v.variable for v in operands)
        return rule is not None and any(variable) and rule.is_view(params, variable)

    def view_key(self, eqn: Any, operands: Sequence[Value]) -> Any:
        """What a view equation is equal by: ``x[0] * x[0]`` is a square too. None for others."""
        if not self.is_view(eqn.primitive, eqn.params, operands):
            return None
        key = (eqn.primitive, tuple(operands), tuple(sorted(eqn.params.items(), key=str)))
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def rests_on(self, value: Value, carries: Collection[Value]) -> bool:
        """Whether a value is a view of what some step of a scan reads as its carry."""
        producers = {v: e for e in self.equations for v in e.outputs}
        queue, seen = [value], set()
        while queue:
            value = queue.pop()
            if value in carries:
                return True
            e = producers.get(value)
            if value not in seen and e and self.is_view(e.primitive, e.params, e.inputs):
                queue += [v for v in e.inputs if v.variable]
            seen.add(value)
        return False


def trace_program(
    function: Callable[..., Any],
    parameters: Sequence[Any],
    data: Sequence[Any],
    *,
    names: Sequence[str],
    source: str = "",
    roots: Collection[Any] | None = (),
    objectives: Collection[Any] = (),
    claim: bool = True,
    lift: bool = True,
) -> Program:
    """Trace ``function(parameters, data)``, both flat lists of arrays, into a program.

    Args:
        function: takes two lists of arrays; whatever it returns is flattened.
        parameters: arrays, tracers or shapes of the variables.
        data: the same for the data.
        names: what to call the inputs, parameters first.
        source: what to say of equations that are not on a line of the user's.
        roots: the primitives of output constraints. What none of them needs is dead code. Without
            roots, everything that the function returns is kept; None keeps all there is.
        objectives: those of the roots whose outputs are losses; what the function makes of a loss
            on the way to its own outputs is kept too.
        claim: whether rules may claim whole functions.
        lift: whether scans are lifted over time, or each is kept as one operation.

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
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        raise TraceError(
            "a Python loop or branch depends on the value of a traced array, or a NumPy function "
            "does; use jnp.where and jax.numpy, or pass what decides it as a static (non-array) "
            "argument. JAX says: " + str(error).split("\n", maxsplit=1)[0]
        ) from error
    jaxpr = closed.jaxpr
    tracer = _Tracer(lift)
    inputs = [
        tracer.value(var.aval, position < len(parameters), name)
        for position, (var, name) in enumerate(zip(jaxpr.invars, names, strict=True))
    ]
    outputs = tracer.walk(jaxpr, closed.consts, inputs, source=source)
    if claim:
        tracer.equations = claim_functions(tracer)
        tracer.equations = narrow_sums(tracer, outputs)
    return Program(
        tuple(inputs[: len(parameters)]),
        tuple(inputs[len(parameters) :]),
        tracer.constants,
        tuple(tracer.equations) if roots is None else _live(tracer, outputs, roots, objectives),
        tuple(outputs),
        tracer.feedback,
    )


def _trace_body(
    function: Callable[..., Any], parameters: Sequence[Any], data: Sequence[Any]
) -> Program:
    """The program of a step of a scan."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*parameters, *data)]
    names = [f"input {i}" for i in range(len(shapes))]
    count = len(parameters)
    program = trace_program(
        function, shapes[:count], shapes[count:], names=names, roots=None, lift=False
    )
    for e in program.equations:
        if e.primitive in (loss_p, constrain_p):
            raise TraceError(
                f"a loss or a set in the body of a scan, at {e.source}: a sweep goes back from "
                "outputs of the whole function; return from the scan what it is about"
            )
    return program


def _live(
    tracer: _Tracer,
    outputs: Sequence[Value],
    roots: Collection[Any],
    objectives: Collection[Any],
) -> tuple[Equation, ...]:
    """Dead-code elimination.

    A returned value that comes from no loss (an accuracy, say) asks for no projection rule, so
    the function's own outputs keep alive only what they make of a loss.
    """
    losses: set[Value] = set()
    for equation in tracer.equations:
        if equation.primitive in objectives or not losses.isdisjoint(equation.inputs):
            losses.update(equation.outputs)
    roots_of = {e for e in tracer.equations if e.primitive in roots}
    needed = {value for value in outputs if value in losses or not roots}
    return tuple(needed_equations(tracer.equations, tracer.feedback, needed, roots_of))


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
