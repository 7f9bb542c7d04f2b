"""The scalar solvers of the rule library: bracketed roots, and the best of several candidates.

Every exact projection here comes down to one unknown scalar per equation (the multiplier of a
product row, the point of a curve, the normaliser of a softmax). They are found by a safeguarded
Newton iteration, or by bisection where nothing is known, elementwise over arrays of equations.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

__all__ = ["bisect", "bracketed_newton", "cheapest"]


def bracketed_newton(
    fun: Callable[[Array], tuple[Array, Array]],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    start: Float[Array, "..."],
    *,
    steps: int,
) -> Float[Array, "..."]:
    """The root of an increasing function in ``[lower, upper]``, elementwise.

    Newton steps that leave the bracket, or that are not finite, are replaced by its midpoint. The
    bracket shrinks by the sign of the function, so the answer is never outside it, whatever the
    start. It is a loop because XLA, given the steps unrolled, may repeat cheap ones many times.

    Args:
        fun: maps ``x`` to ``(value, slope)``; increasing in ``x`` where it matters.
        lower: ends of the brackets, finite.
        upper: ends of the brackets, finite.
        start: first guesses; clipped into the bracket.
        steps: how many evaluations of ``fun``.

    Returns:
        The last iterates, of the common shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.roots import bracketed_newton
        >>> cube = lambda x: (x**3 - 8.0, 3.0 * x**2)
        >>> root = bracketed_newton(cube, jnp.zeros(()), jnp.full((), 10.0), jnp.ones(()), steps=9)
        >>> round(float(root), 4)
        2.0
    """

    def advance(x, value, slope, lower, upper):
        lower = jnp.where(value < 0, x, lower)
        upper = jnp.where(value > 0, x, upper)
        newton = x - value / slope
        # False for NaN as well; an infinite slope would stop the iteration where it is.
        inside = (newton >= lower) & (newton <= upper) & (jnp.abs(slope) < jnp.inf)
        moved = jnp.where(value == 0, x, jnp.where(inside, newton, 0.5 * (lower + upper)))
        return moved, lower, upper

    # The value is part of the state, so that all that depends on its sign sees the same one: XLA
    # would compute it afresh, and round it differently, for each of x, lower and upper.
    def step(_, state):
        x, lower, upper = advance(*state)
        return x, *fun(x), lower, upper

    x, lower, upper = jnp.broadcast_arrays(jnp.clip(start, lower, upper), lower, upper)
    state = (x, jnp.zeros_like(x), jnp.ones_like(x), lower, upper)
    return advance(*jax.lax.fori_loop(0, steps, step, state))[0]


def bisect(
    below: Callable[[Array], Bool[Array, "..."]],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    *,
    steps: int,
) -> Float[Array, "..."]:
    """The point of ``[lower, upper]`` below which a predicate holds, elementwise.

    It bisects the floating-point numbers, not the interval: 32 steps find any float32 exactly, and
    half as many find it to within a percent or so, be it 1e-30 or 1e30.

    Args:
        below: whether a point lies below the answer.
        lower: ends of the brackets, finite.
        upper: ends of the brackets, finite.
        steps: how many evaluations of ``below``.

    Returns:
        The upper ends of the last brackets.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.roots import bisect
        >>> root = bisect(lambda x: x**3 < 8.0, -jnp.ones(()), jnp.full((), 1e12), steps=32)
        >>> float(root)
        2.0
    """
    integer = jnp.dtype(f"int{8 * lower.dtype.itemsize}")
    largest = jnp.iinfo(integer).max

    def flip(i):  # the order of numbers with a sign bit, to that of integers; its own inverse
        return jnp.where(i < 0, i ^ largest, i)

    def number(i):
        return jax.lax.bitcast_convert_type(flip(i), lower.dtype)

    def step(_, bracket):
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        up = below(number(middle))
        return jnp.where(up, middle, low), jnp.where(up, high, middle)

    bracket = (flip(jax.lax.bitcast_convert_type(x, integer)) for x in (lower, upper))
    return number(jax.lax.fori_loop(0, steps, step, tuple(bracket))[1])


def cheapest(costs: Sequence[Float[Array, "..."]], keys: Sequence[Any]) -> Float[Array, "..."]:
    """The key of least cost, elementwise; NaN where every cost is. All else must follow from it.

    It is one reduction because XLA computes cheap things afresh wherever they are used, and may
    round them differently: a cost compared with the least one could be found to be none of them,
    and in a tie, a point would be put together from two candidates.
    """

    def better(one: Any, other: Any) -> Any:
        keep = one[0] <= other[0]
        return tuple(jnp.where(keep, x, y) for x, y in zip(one, other, strict=True))

    shape, dtype = costs[0].shape, costs[0].dtype
    cost, key = (
        jnp.stack([jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in xs])
        for xs in (costs, keys)
    )
    # What overflows is still better than nothing.
    cost = jnp.where(jnp.isnan(cost), jnp.inf, jnp.minimum(cost, float(jnp.finfo(dtype).max)))
    start = (jnp.asarray(jnp.inf, dtype), jnp.asarray(jnp.nan, dtype))
    return lax.reduce((cost, key), start, better, (0,))[1]
