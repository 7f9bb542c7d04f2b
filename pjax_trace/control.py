"""Control flow, inlined while tracing: scans are lifted over time, branches are selected by data.

A scan's body is mapped over the time axis, so that one equation stands for all steps and all are
projected at once. Its carry is fed back: what step t reads is what step t − 1 wrote, a view of the
carry's initial value and of the values that the body writes. A sweep goes back step by step
instead, and has a scan kept as one operation, with a program of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pjax_trace import _compat
from pjax_trace.custom import call, function_p
from pjax_trace.errors import TraceError
from pjax_trace.pairs import as_pair, is_complex
from pjax_trace.program import Program, Value
from pjax_trace.recorder import Recorder
from pjax_trace.rule import Identity

__all__ = ["Loop", "carries_p", "inline_branches", "keep_scan", "lift_scan", "loop_p"]

Walk = Callable[..., list[Value]]


def _carries(
    *operands: Any, body: Any, consts: int, carries: int, length: int, reverse: bool
) -> list[Any]:
    """What every step of a scan reads as its carry, by really running it."""
    fixed, start, inputs = _parts(operands, consts, carries)

    def step(carry: Any, x: Any) -> Any:
        return _compat.run_jaxpr(body, *fixed, *carry, *x)[:carries], carry

    return lax.scan(step, list(start), list(inputs), length=length, reverse=reverse)[1]


def _unmapped(*_: Any) -> Any:
    raise NotImplementedError("programs are traced after jax.vmap, never before")


carries_p = _compat.new_primitive("scan_carries", implementation=_carries, batch=_unmapped)


def _parts(operands: Sequence[Any], consts: int, carries: int) -> tuple[Sequence[Any], ...]:
    return operands[:consts], operands[consts : consts + carries], operands[consts + carries :]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A scan as one operation, its body a program of its own.

    Attributes:
        scan: what the equation says.
        program: of one step; its variables and data are those of the body's inputs.
        variable: which inputs of the body are variables; a carry is one if any step makes it one.
    """

    scan: _compat.Scan
    program: Program
    variable: tuple[bool, ...]


def _looped(*operands: Any, loop: Loop) -> list[Any]:
    """The outputs of a scan, then what every step reads as its carry."""
    scan = loop.scan
    fixed, start, inputs = _parts(operands, scan.consts, scan.carries)

    def step(carry: Any, x: Any) -> Any:
        results = _compat.run_jaxpr(scan.body, *fixed, *carry, *x)
        return results[: scan.carries], (results[scan.carries :], carry)

    carry, (outputs, slots) = lax.scan(
        step, list(start), list(inputs), length=scan.length, reverse=scan.reverse
    )
    return [*carry, *outputs, *slots]


loop_p = _compat.new_primitive("loop", implementation=_looped, batch=_unmapped)


def keep_scan(
    recorder: Recorder,
    eqn: Any,
    operands: Sequence[Value],
    trace: Callable[..., Program],
    scope: str,
    source: str,
) -> list[Value]:
    """The outputs of a scan over variables as one `Loop`.

    Args:
        recorder: to which the equation is added.
        eqn: the scan.
        operands: of the scan.
        trace: ``trace(function, parameters, data)``, the program of a function of two lists.
        scope: of the equation.
        source: of the equation.
    """
    scan = _compat.scan_parts(eqn)
    avals = [var.aval for var in scan.body.jaxpr.invars]
    variable = [v.variable for v in operands]
    while True:
        moving = list(variable)

        def body(parameters: Sequence[Any], data: Sequence[Any], moving: Any = moving) -> Any:
            own, other = iter(parameters), iter(data)
            return _compat.run_jaxpr(scan.body, *(next(own if m else other) for m in moving))

        program = trace(
            body,
            [a for a, m in zip(avals, moving, strict=True) if m],
            [a for a, m in zip(avals, moving, strict=True) if not m],
        )
        _check_real(scan, program, source)
        written = [v.variable for v in program.outputs]
        for i in range(scan.carries):
            variable[scan.consts + i] = variable[scan.consts + i] or written[i]
        if variable == moving:
            break
    slots = variable[scan.consts : scan.consts + scan.carries]
    flags = [*slots, *written[scan.carries :], *slots]
    loop = Loop(scan, program, tuple(variable))
    results = recorder.emit(
        loop_p, {"loop": loop}, operands, flags, scope, source, effects=bool(eqn.effects)
    )
    return results[: len(written)]


def _check_real(scan: _compat.Scan, program: Program, source: str) -> None:
    """Booleans that depend on variables have become reals in a program."""
    for var, value in zip(scan.body.jaxpr.outvars, program.outputs, strict=True):
        if value.dtype != var.aval.dtype:
            raise TraceError(
                f"the body of the scan at {source} returns a boolean that depends on variables, "
                "which a sweep cannot take out of it; make it real first "
                "(jnp.where(condition, 1.0, 0.0))"
            )


def lift_scan(recorder: Recorder, eqn: Any, operands: Sequence[Value], walk: Walk) -> list[Value]:
    """The outputs of a scan over variables, its body lifted over time.

    Args:
        recorder: to which equations are added.
        eqn: the scan.
        operands: of the scan.
        walk: ``walk(function, *values)`` adds the equations of a JAX function.
    """
    scan = _compat.scan_parts(eqn)
    if not scan.length:
        empty = [np.zeros(var.aval.shape, var.aval.dtype) for var in eqn.outvars[scan.carries :]]
        return [*_parts(operands, scan.consts, scan.carries)[1], *map(recorder.constant, empty)]
    _, start, _ = _parts(operands, scan.consts, scan.carries)
    _, slots, _ = _parts(scan.body.jaxpr.invars, scan.consts, scan.carries)
    written = scan.body.jaxpr.outvars[: scan.carries]
    # A carry that is handed on as it is, is a constant of the loop.
    fixed = [slot is out for slot, out in zip(slots, written, strict=True)]
    variable = [v.variable and not still for v, still in zip(start, fixed, strict=True)]
    while True:
        attempt = recorder.snapshot()
        outputs, grown = _lift(recorder, eqn, operands, fixed, variable, walk)
        if grown == variable:
            return outputs
        # A carry that starts as data and is written by variables: once more, knowing that.
        recorder.restore(attempt)
        variable = grown


def _lift(
    recorder: Recorder,
    eqn: Any,
    operands: Sequence[Value],
    fixed: Sequence[bool],
    variable: Sequence[bool],
    walk: Walk,
) -> tuple[list[Value], list[bool]]:
    scan = _compat.scan_parts(eqn)
    consts, start, inputs = _parts(operands, scan.consts, scan.carries)
    slots = list(start)
    effects = bool(eqn.effects)
    if effects or not all(fixed):
        # It runs the loop in order, and has its effects.
        slots = recorder.emit(carries_p, scan._asdict(), operands, variable, effects=effects)
        slots = [s if f else slot for s, slot, f in zip(start, slots, fixed, strict=True)]

    def body(*arrays: Any) -> list[Any]:
        axes = (None,) * scan.consts + tuple(None if f else 0 for f in fixed)
        axes += (0,) * len(inputs)
        mapped = jax.vmap(
            lambda *row: _compat.run_jaxpr(scan.body, *row), axes, axis_size=scan.length
        )
        return mapped(*arrays)

    with recorder.silence(effects):
        results = walk(body, *consts, *slots, *inputs)
    written, outputs = results[: scan.carries], results[scan.carries :]
    grown = [v or (w.variable and not f) for v, w, f in zip(variable, written, fixed, strict=True)]
    if grown != variable:
        return [], grown
    finals = []
    for i, (first, slot, out) in enumerate(zip(start, slots, written, strict=True)):
        if fixed[i]:
            finals.append(first)
            continue
        if variable[i]:
            out = _fed_back(recorder, scan, first, slot, out, walk)
        end = 0 if scan.reverse else scan.length - 1
        finals += walk(lambda x, i=end: lax.index_in_dim(x, i, keepdims=False), out)
    return [*finals, *outputs], grown


def _fed_back(
    recorder: Recorder, scan: _compat.Scan, first: Value, slot: Value, out: Value, walk: Walk
) -> Value:
    """Say where a carry is read from; returns what the body writes."""
    if out.dtype != slot.dtype:
        raise TraceError(
            "a carry of a scan is a boolean that depends on variables; carry a float instead "
            "(jnp.where(condition, 1.0, 0.0))"
        )
    if recorder.rests_on(out, recorder.feedback.keys() | {slot}):
        # A carry that only moves other carries about has no constraint to be written by.
        (out,) = walk(lambda x: call(function_p, Identity(), x, name="carry"), out)

    def read(first: Any, out: Any) -> Any:
        first = first[None].astype(out.dtype)
        if scan.reverse:
            return jnp.concatenate([out[1:], first])
        return jnp.concatenate([first, out[:-1]])

    (source,) = walk(read, first, out)
    recorder.feedback[slot] = source
    return out


def inline_branches(
    eqn: Any,
    operands: Sequence[Value],
    walk_jaxpr: Walk,
    walk: Walk,
    decision: Value | None,
    guard: Callable[[Value], Any],
) -> list[Any]:
    """The outputs of a cond or switch: those of all branches, selected.

    Args:
        eqn: the cond.
        operands: of the cond.
        walk_jaxpr: adds the equations of a jaxpr.
        walk: adds those of a function.
        decision: the boolean that decides, if it is a variable; else data do, or what is frozen.
        guard: ``with guard(taken):`` what calls out is called only if a branch is taken.
    """
    index, *inputs = operands
    branches = list[list[Value]]()
    out = _compat.calls_out(eqn)
    for i, b in enumerate(eqn.params["branches"]):
        if not out:
            branches.append(walk_jaxpr(b.jaxpr, b.consts, inputs))
            continue
        last = len(eqn.params["branches"]) - 1
        (taken,) = walk(lambda k, i=i, last=last: jnp.clip(k, 0, last) == i, index)
        with guard(taken):
            branches.append(walk_jaxpr(b.jaxpr, b.consts, inputs))

    def select(index: Any, *cases: Any) -> Any:
        if not all(map(is_complex, cases)):  # some are pairs
            cases = tuple(map(as_pair, cases))
        dtype = _compat.promoted(*cases)
        cases = tuple(x.astype(dtype) for x in cases)
        if index.dtype == bool:
            return jnp.where(index, cases[1], cases[0])
        return lax.select_n(jnp.clip(index.astype(jnp.int32), 0, len(cases) - 1), *cases)

    outputs = []
    for var, *cases in zip(eqn.outvars, *branches, strict=True):
        if len({v.shape for v in cases}) > 1:
            raise TraceError(
                "a cond or switch returns a complex value that depends on variables in one case "
                "only; return its real and imaginary parts"
            )
        if decision is None or out:
            outputs += walk(select, index, *cases)
            continue
        # As the user could have written it: booleans, which may be relaxed, are what they were.
        real = [v.dtype if var.aval.dtype != bool else bool for v in cases]
        shapes = [jax.ShapeDtypeStruct(v.shape, d) for v, d in zip(cases, real, strict=True)]
        chosen = jax.make_jaxpr(select)(jax.ShapeDtypeStruct((), bool), *shapes)
        outputs += walk_jaxpr(chosen.jaxpr, chosen.consts, [decision, *cases])
    return outputs
