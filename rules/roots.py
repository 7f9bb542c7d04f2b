"""The one scalar solver of the rule library: a bracketed root of an increasing function.

Every exact projection here comes down to one unknown scalar per equation (the multiplier of a
product row, the point of a curve, the normaliser of a softmax). All of them are found by the
same safeguarded Newton iteration, elementwise over arrays of equations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["bracketed_newton"]


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
        x = jnp.where(value == 0, x, jnp.where(inside, newton, 0.5 * (lower + upper)))
        return x, lower, upper

    # The value is part of the state, so that all that depends on its sign sees the same one: XLA
    # would compute it afresh, and round it differently, for each of x, lower and upper.
    def step(_, state):
        x, lower, upper = advance(*state)
        return x, *fun(x), lower, upper

    x, lower, upper = jnp.broadcast_arrays(jnp.clip(start, lower, upper), lower, upper)
    state = (x, jnp.zeros_like(x), jnp.ones_like(x), lower, upper)
    return advance(*jax.lax.fori_loop(0, steps, step, state))[0]
