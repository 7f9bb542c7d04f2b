"""A Python function and its arguments → a flat program of primitives, variables and data apart.

The interpreter inlines every call (jit, custom derivatives, remat, closed calls), scan and cond
(for sweeps, scans stay as they are),
numbers values and equations in program order, and classes each value: a *variable* may be moved by
the solver, or is computed from one; everything else is *data* and is only ever evaluated. Integers
computed from variables (an argmax, indices) are data, as what `jax.lax.stop_gradient` returns:
frozen at their forward values. Booleans of variables are relaxed to reals by their rules. Dead code
is dropped.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace import _compat
from pjax_trace.bounded import bounded
from pjax_trace.control import inline_branches, keep_scan, lift_scan
from pjax_trace.custom import constrain_p, loss_p
from pjax_trace.errors import MissingRuleError, TraceError
from pjax_trace.match import claim_functions
from pjax_trace.narrow import narrow_sums
from pjax_trace.objective import find_objective
from pjax_trace.pairs import as_complex, is_complex, scan_of_pairs
from pjax_trace.program import Equation, Objective, Program, Value, needed_equations
from pjax_trace.recorder import Recorder
from pjax_trace.registry import paired, translate
from pjax_trace.translation import Outcome, Refuse, Rewrite

__all__ = ["trace_program"]


class _Interpreter:
    """Walks a jaxpr once, inlining calls and recording what it meets."""

    def __init__(self, recorder: Recorder, lift: bool = True) -> None:
        self.recorder = recorder
        self.lift = lift
        self.taken: Value | None = None  # whether the branch that is walked is taken
        self.decisions: dict[Value, Value] = {}  # an integer → the variable boolean that it is

    def walk(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Value],
        *,
        scope: str = "",
        source: str = "",
        rewritten: bool = False,
        inlined: bool = True,
    ) -> list[Value]:
        """The values of a jaxpr's outputs; ``scope`` and ``source`` are those of the call to it.

        What a rule rewrote an equation to has that equation's source, and none of its own. With
        ``inlined=False``, its equations are recorded as they are.
        """
        env: dict[Any, Value] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.recorder.constant(const)
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, _compat.Literal):
                aval: Any = atom.aval
                return self.recorder.constant(np.asarray(atom.val, aval.dtype))
            return env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            inner = "/".join(filter(None, (scope, _compat.source_scope(eqn))))
            line = source if rewritten else _compat.source_line(eqn, source)
            outcome = None
            silent = self.recorder.quiet and eqn.effects and _compat.call_body(eqn)
            chosen = _compat.loop_kind(eqn.primitive) == "cond" and operands[0] in self.decisions
            if inlined and (silent or chosen or any(v.variable for v in operands)):
                outcome = self.inline(eqn, operands, inner, line, rewritten)
            if isinstance(outcome, list):
                results = outcome
            elif inlined and self.taken is not None and _guarded(eqn, operands):
                results = self.guarded(self.taken, eqn, operands, inner, line)
            else:
                results = self.recorder.add(eqn, operands, outcome, inner, line)
            if len(operands) == len(results) == 1 and _decides(eqn, operands[0], results[0]):
                self.decisions[results[0]] = operands[0]
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def inline(
        self, eqn: Any, operands: Sequence[Value], scope: str, source: str, rewritten: bool
    ) -> list[Value] | Outcome | None:
        """The outputs of an equation that stands for others; else what it becomes by itself."""
        walk_jaxpr = functools.partial(self.walk, scope=scope, source=source, rewritten=rewritten)

        def walk(function: Callable[..., Any], *values: Value, own: bool = True) -> list[Value]:
            closed = jax.make_jaxpr(function)(
                *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values)
            )
            return walk_jaxpr(closed.jaxpr, closed.consts, values, rewritten=rewritten or not own)

        kind = _compat.loop_kind(eqn.primitive)
        relaxed = [v.dtype != a.aval.dtype for v, a in zip(operands, eqn.invars, strict=True)]
        # In this jaxpr complex, but variable: a pair of reals, one more axis in front.
        pairs = [r and is_complex(a.aval) for r, a in zip(relaxed, eqn.invars, strict=True)]
        complex_out = [is_complex(a.aval) for a in eqn.outvars]
        if kind == "cond":
            decision = self.decisions.get(operands[0])
            return inline_branches(eqn, operands, walk_jaxpr, walk, decision, self.guard)
        if kind == "while":
            function = bounded(self.recorder, eqn, operands)
            if function is not None:
                return walk(function, *operands)
        if kind and relaxed != pairs:
            raise TraceError(
                f"a boolean that depends on variables enters a {kind} at {source}; make it real "
                "first (jnp.where(condition, 1.0, 0.0)), or compute it inside"
            )
        if kind == "scan" and (any(pairs) or any(complex_out)):
            function = scan_of_pairs(eqn, pairs)
            return self.paired(function, operands, complex_out, walk)
        if kind == "scan" and (self.lift or not _compat.scan_parts(eqn).length):
            return lift_scan(self.recorder, eqn, operands, walk)
        if kind == "scan":
            return keep_scan(self.recorder, eqn, operands, _trace_body, scope, source)
        call = _compat.call_body(eqn)
        if call is not None:
            return walk_jaxpr(*call, operands)
        if any(pairs) or any(complex_out):
            function, factors = paired(eqn.primitive)
            if function is None:
                raise MissingRuleError(
                    f"{eqn.primitive.name} at {source} has no rule for complex values that depend "
                    "on variables; compute with their real and imaginary parts"
                )
            function = functools.partial(function, eqn.params, pairs)
            operands = [self.recorder.real(v) if factors else v for v in operands]
            return self.paired(function, operands, complex_out, walk)
        variable = tuple(v.variable for v in operands)
        outcome = translate(eqn.primitive, eqn.params, operands, variable)
        if isinstance(outcome, Rewrite):
            return walk(outcome.function, *operands, own=False)
        if any(relaxed) and not isinstance(outcome, Refuse):
            return walk(self.relaxed(eqn, operands, source), *operands, own=False)
        return outcome

    @contextlib.contextmanager
    def guard(self, taken: Value) -> Iterator[None]:
        """What calls out is called only if ``taken``, in the block."""
        before = self.taken
        if before is not None:
            args = (jax.ShapeDtypeStruct((), bool),) * 2
            both = jax.make_jaxpr(jnp.logical_and)(*args)
            (taken,) = self.walk(both.jaxpr, both.consts, [before, taken])
        self.taken = taken
        try:
            yield
        finally:
            self.taken = before

    def guarded(
        self, taken: Value, eqn: Any, operands: Sequence[Value], scope: str, source: str
    ) -> list[Value]:
        """The outputs of an equation if ``taken``, and else zeros: a cond, which stays one."""
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (taken, *operands)]

        def function(taken: Any, *xs: Any) -> list[Any]:
            run = functools.partial(_compat.bind, eqn.primitive, eqn.params, *xs)
            zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
            return jax.lax.cond(taken, run, lambda: zeros)

        closed = jax.make_jaxpr(function)(*shapes)
        values = (taken, *operands)
        return self.walk(
            closed.jaxpr, closed.consts, values, scope=scope, source=source, inlined=False
        )

    def paired(
        self,
        function: Callable[..., Any],
        operands: Sequence[Value],
        complex_out: Sequence[bool],
        walk: Callable[..., list[Value]],
    ) -> list[Value]:
        """The outputs of an equation on complex values, pairs of reals where they move."""
        results = walk(function, *operands, own=False)
        for i, flag in enumerate(complex_out):
            if flag and not results[i].variable:  # frozen: data are complex numbers
                (results[i],) = walk(as_complex, results[i], own=False)
        return results

    def relaxed(self, eqn: Any, operands: Sequence[Value], source: str) -> Callable[..., Any]:
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


def _guarded(eqn: Any, operands: Sequence[Value]) -> bool:
    """Whether an equation calls out, with data, or without an answer that would be a variable."""
    return _compat.calls_out(eqn) and not (eqn.outvars and any(v.variable for v in operands))


def _decides(eqn: Any, operand: Value, result: Value) -> bool:
    """Whether an equation makes a variable boolean an integer, as in front of a cond."""
    boolean = operand.variable and not operand.shape and eqn.invars[0].aval.dtype == bool
    return boolean and not result.shape and bool(jnp.issubdtype(result.dtype, jnp.integer))


def trace_program(
    function: Callable[..., Any],
    parameters: Sequence[Any],
    data: Sequence[Any],
    *,
    names: Sequence[str],
    source: str = "",
    kept: Literal["outputs", "all", "objective"] = "outputs",
    has_aux: bool = False,
    claim: bool = True,
    lift: bool = True,
    quiet: bool = False,
) -> Program:
    """Trace ``function(parameters, data)``, both flat lists of arrays, into a program.

    Args:
        function: takes two lists of arrays; whatever it returns is flattened.
        parameters: arrays, recorders or shapes of the variables.
        data: the same for the data.
        names: what to call the inputs, parameters first.
        source: what to say of equations that are not on a line of the user's.
        kept: what is not dead code: what the outputs need; all there is; or what the objective
            and sets need.
        has_aux: whether only the first output is the objective; the others are the program's.
        claim: whether rules may claim whole functions.
        lift: whether scans are lifted over time, or each is kept as one operation.
        quiet: whether effects such as printing are left out.

    Raises:
        TraceError: if a loop or branch of Python depends on a variable, or there is no scalar that
            can be the objective.
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
    recorder = Recorder(quiet)
    interpreter = _Interpreter(recorder, lift)
    inputs = [
        recorder.value(var.aval, position < len(parameters), name)
        for position, (var, name) in enumerate(zip(jaxpr.invars, names, strict=True))
    ]
    outputs = interpreter.walk(jaxpr, closed.consts, inputs, source=source)
    objective = None
    if kept == "objective":
        objective = find_objective(
            recorder, inputs[: len(parameters)], outputs, source or "the function", has_aux
        )
        outputs = outputs[1:] if has_aux else []
        recorder.equations = _live(recorder, outputs, objective)
    if claim:
        recorder.equations = claim_functions(recorder, trace_program)
        recorder.equations = narrow_sums(recorder, outputs, interpreter.walk)
    return Program(
        tuple(inputs[: len(parameters)]),
        tuple(inputs[len(parameters) :]),
        recorder.constants,
        tuple(recorder.equations if kept == "all" else _live(recorder, outputs, objective)),
        tuple(outputs),
        recorder.feedback,
        objective or Objective(),
    )


def _trace_body(
    function: Callable[..., Any], parameters: Sequence[Any], data: Sequence[Any]
) -> Program:
    """The program of a step of a scan."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*parameters, *data)]
    names = [f"input {i}" for i in range(len(shapes))]
    count = len(parameters)
    program = trace_program(
        function,
        shapes[:count],
        shapes[count:],
        names=names,
        kept="all",
        lift=False,
        quiet=True,  # the scan itself has them, which runs in the forward pass
    )
    for e in program.equations:
        if e.primitive in (loss_p, constrain_p):
            raise TraceError(
                f"a loss or a set in the body of a scan, at {e.source}: a sweep goes back from "
                "outputs of the whole function; return from the scan what it is about"
            )
    return program


def _live(
    recorder: Recorder, outputs: Sequence[Value], objective: Objective | None
) -> list[Equation]:
    """Dead-code elimination: of the objective, its losses, sets and data count as outputs do."""
    values, roots = set(outputs), {e for e in recorder.equations if e.effects}
    if objective is not None:
        values |= objective.reads
        roots |= {
            e
            for e in recorder.equations
            if e.primitive is constrain_p or not objective.scales.keys().isdisjoint(e.outputs)
        }
    return needed_equations(recorder.equations, recorder.feedback, values, roots)
