"""While loops that data end, as scans of a length that is known while tracing."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.program import Value, needed_equations
from pjax_trace.recorder import Recorder

__all__ = ["bounded"]

# A loop that may run longer than this has no bound that is of use.
_LONGEST = 10_000


def bounded(recorder: Recorder, eqn: Any, operands: Sequence[Value]) -> Callable[..., Any] | None:
    """A while loop as a function that scans, if data end it and a bound of its length is known.

    Where all that decides is known while tracing, the loop is run without the rest, and its length
    is known. Else it is run for data of extreme values. If it ends for all of them, the scan has
    the greatest of these lengths, and keeps its carry when the loop would have ended. If the loop
    would have gone on for other data, the results are not numbers, which an update reports.
    """
    loop = _compat.while_parts(eqn)
    first = loop.condition_consts + loop.body_consts
    places = _deciding(loop)
    if any(operands[i].variable or operands[i].frozen for i in places) or _compat.calls_out(eqn):
        return None
    lengths = _lengths(recorder, loop, operands, places)
    if lengths is None or max(lengths) > _LONGEST:
        return None
    length, exact = max(lengths), len(lengths) == 1
    # Under jax.vmap, each loop of a batch has its own end.
    exact = exact and not loop.condition.jaxpr.outvars[0].aval.shape

    def function(*xs: Any) -> list[Any]:
        own, fixed, start = (
            xs[: loop.condition_consts],
            xs[loop.condition_consts : first],
            list(xs[first:]),
        )

        def step(carry: Any, _: Any) -> Any:
            new = _compat.run_jaxpr(loop.body, *fixed, *carry)
            if not exact:
                (on,) = _compat.run_jaxpr(loop.condition, *own, *carry)
                new = [jnp.where(_like(on, c), n, c) for n, c in zip(new, carry, strict=True)]
            return new, None

        ends = lax.scan(step, start, None, length=length)[0]
        if exact:
            return ends
        (on,) = _compat.run_jaxpr(loop.condition, *own, *ends)
        return [
            jnp.where(_like(on, x), jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x
            for x in ends
        ]

    return function


def _like(on: Any, x: Any) -> Any:
    """Which loops of a batch go on, as a condition on the elements of a carry."""
    return jnp.broadcast_to(on.reshape(on.shape + (1,) * (x.ndim - on.ndim)), x.shape)


def _deciding(loop: _compat.While) -> set[int]:
    """Which operands have a say in how long a loop runs."""
    carries = _compat.used_inputs(loop.condition, [True])[loop.condition_consts :]
    while True:
        read = _compat.used_inputs(loop.body, carries)
        grown = [a or b for a, b in zip(carries, read[loop.body_consts :], strict=True)]
        if grown == carries:
            break
        carries = grown
    flags = [*[True] * loop.condition_consts, *read[: loop.body_consts], *carries]
    return {i for i, flag in enumerate(flags) if flag}


def _lengths(
    recorder: Recorder, loop: _compat.While, operands: Sequence[Value], places: set[int]
) -> list[int] | None:
    """How long a loop runs, for data of extreme values; None if Python must be asked."""
    needed = needed_equations(recorder.equations, {}, [operands[i] for i in places])
    if any(map(_compat.calls_out, needed)):
        return None
    made = {v for e in needed for v in e.outputs}
    read = [v for e in needed for v in e.inputs] + [operands[i] for i in places]
    known = {v: a for v, a in recorder.constants.items() if _compat.is_known(a)}
    unknown = [v for v in dict.fromkeys(read) if v not in made and v not in known]
    first = loop.condition_consts + loop.body_consts

    def length(choice: Any) -> Any:
        env = {**known, **{v: _extreme(v, k) for v, k in zip(unknown, choice, strict=True)}}
        for e in needed:
            env.update(zip(e.outputs, e.evaluate(*(env[v] for v in e.inputs)), strict=True))
        xs = [
            env[v] if i in places else jnp.zeros(v.shape, v.dtype) for i, v in enumerate(operands)
        ]
        decides = [i in places for i in range(first, len(xs))]

        def goes_on(state: Any) -> Any:
            count, carry = state
            (on,) = _compat.run_jaxpr(loop.condition, *xs[: loop.condition_consts], *carry)
            return jnp.any(on) & (count <= _LONGEST)

        def step(state: Any) -> Any:
            count, carry = state
            new = _compat.run_jaxpr(loop.body, *xs[loop.condition_consts : first], *carry)
            # What does not decide stays what it is, and is not computed.
            kept = [n if d else c for d, n, c in zip(decides, new, carry, strict=True)]
            return count + 1, kept

        return lax.while_loop(goes_on, step, (0, xs[first:]))[0]

    with jax.ensure_compile_time_eval():
        return np.asarray(lax.map(length, _choices(len(unknown)))).tolist()


def _choices(count: int) -> Array:
    """Which extreme each of so many arrays has: all ways to choose, or some if there are many."""
    if count <= 3:
        return jnp.asarray([*itertools.product(range(4), repeat=count)], int)
    some = np.random.default_rng(0).integers(0, 4, (60, count))
    return jnp.asarray(np.concatenate([np.tile(np.arange(4)[:, None], (1, count)), some]))


def _extreme(value: Value, choice: Any) -> Array:
    """An array of zeros, ones, or numbers that are very small or very large."""
    if value.dtype == bool:
        numbers: Any = (False, True, False, True)
    elif jnp.issubdtype(value.dtype, jnp.inexact):
        numbers = (0, 1, -1e4, 1e4)
    else:
        info = jnp.iinfo(value.dtype)
        numbers = (0, 1, int(info.min) // 2, int(info.max) // 2)
    return jnp.full(value.shape, jnp.asarray(numbers, value.dtype)[choice])
