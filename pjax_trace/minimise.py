"""Proximal operators of functions that nobody wrote one for: ``argmin_x f(x) + ½ ω |x − goal|²``.

A function of single elements is minimised by a bracketed Newton iteration, element by element; any
other one by Newton's method in a trust region, whose steps are found by conjugate gradients. Both
start at the goal, and where f is convex, both know how far the minimum can be from there: not
farther than ``|∇f(goal)| / ω``. Where it is not, they find a local minimum that is no worse than
the goal, and stay finite even if there is none.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["minimise", "minimise_elements", "slopes"]

_ELEMENT_STEPS = 60
_OUTER, _INNER = 60, 60


def minimise_elements(f: Callable[[Array], Array], goal: Array, omega: Any) -> Array:
    """``argmin_x f(x) + ½ ω (x − goal)²`` for every element of an array at once.

    The minimum of a convex f is between the goal and a gradient step from it. Newton steps that
    leave the bracket, or are not half as long as the last step, give way to its middle, so that
    kinks are found, too. An element that is as well off at 0 is put there exactly.

    Args:
        f: a function of every element alone; it has as many elements as the goal.
        goal: the points.
        omega: the weight, a positive number or an array of the goal's shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.minimise import minimise_elements
        >>> minimise_elements(jnp.abs, jnp.array([3.0, -0.5]), 1.0).tolist()
        [2.0, 0.0]
    """

    def pull(x: Array) -> tuple[Array, Array]:
        first, second = slopes(f, x)
        return first + omega * (x - goal), second + omega

    eps = float(jnp.finfo(goal.dtype).eps)
    start, curvature = pull(goal)
    far = goal - start / omega
    for _ in range(3):  # only functions that are not convex have their minimum farther away
        beyond, _ = pull(far)
        far = jnp.where(beyond * start > 0, goal + 2 * (far - goal), far)
    open_end = pull(far)[0] * start > 0

    class Loop(NamedTuple):
        x: Array
        low: Array
        high: Array
        last: Array
        open: Array
        k: Array

    def unfinished(loop: Loop) -> Array:
        return (loop.k < _ELEMENT_STEPS) & jnp.any(loop.open)

    def body(loop: Loop) -> Loop:
        x, low, high, last, _, k = loop
        force, curvature = pull(x)
        high = jnp.where(force > 0, x, high)
        low = jnp.where(force > 0, low, x)
        step = -force / jnp.where(curvature > 0, curvature, 1)
        inside = (curvature > 0) & (x + step >= low) & (x + step <= high)
        inside &= jnp.abs(step) <= last / 2
        middle = low + (high - low) / 2
        new = jnp.where(inside, x + step, middle)
        size = jnp.abs(x) + jnp.abs(x - goal)
        open = (high - low > 2 * eps * size) & ~(inside & (jnp.abs(step) <= eps * size))
        # NaN ends the search: it is never wide.
        return Loop(new, low, high, jnp.abs(new - x), open, k + 1)

    first = goal - start / jnp.maximum(curvature, omega)
    low, high = jnp.minimum(goal, far), jnp.maximum(goal, far)
    loop = Loop(first, low, high, high - low, low < high, jnp.asarray(0))
    loop = jax.lax.while_loop(unfinished, body, loop)
    x = jnp.where(open_end, far, loop.x)

    def cost(x: Array) -> Array:
        return f(x) + omega * jnp.square(x - goal) / 2

    # At a kink the minimum is an end of the last bracket.
    for other in (loop.low, loop.high, goal, jnp.zeros_like(goal)):
        x = jnp.where(cost(other) <= cost(x), other, x)
    return x


def slopes(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """The first and the second derivative of a function of every element alone.

    They are found forwards: what ``jnp.where`` hides has no part in them, finite or not.
    """
    one = jnp.ones_like(x)
    return jax.jvp(lambda x: jax.jvp(f, (x,), (one,))[1], (x,), (one,))


def minimise(
    f: Callable[[Sequence[Array]], Array], goals: Sequence[Array], omegas: Sequence[Any]
) -> list[Array]:
    """``argmin_x f(x) + Σ ½ ω_i |x_i − goal_i|²`` of several arrays together, row by row.

    Newton's method in a trust region: every step minimises the quadratic model in a ball by
    Steihaug's conjugate gradients, and the ball grows and shrinks with how well the model foretells
    f (Nocedal and Wright, Numerical Optimization, algorithms 4.1 and 7.2). Rows have balls of their
    own.

    Args:
        f: of a list of arrays, a number for every row; it depends on nothing but that row.
        goals: the points, rows along the first axis.
        omegas: a positive weight for each.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.minimise import minimise
        >>> (x,) = minimise(lambda xs: jnp.sum(xs[0], 1) ** 2, [jnp.array([[3.0, 1.0]])], [1.0])
        >>> [round(float(v), 3) for v in x[0]]
        [1.4, -0.6]
    """
    rows = goals[0].shape[0]
    flat = jnp.concatenate([g.reshape(rows, -1) for g in goals], 1)
    ends = list(itertools.accumulate(math.prod(g.shape[1:]) for g in goals))
    roots = [jnp.sqrt(jnp.asarray(omega, g.dtype)) for omega, g in zip(omegas, goals, strict=True)]

    def placed(u: Array) -> list[Array]:
        # In units of the metric.
        parts = zip(goals, jnp.split(u, ends[:-1], 1), roots, strict=True)
        return [g + m.reshape(g.shape) / r for g, m, r in parts]

    def cost(u: Array) -> Array:
        return f(placed(u)) + jnp.sum(jnp.square(u), 1) / 2

    def gradient(u: Array) -> Array:
        return jax.grad(lambda u: jnp.sum(cost(u)))(u)

    zero = jnp.zeros_like(flat)
    value, slope = cost(zero), gradient(zero)
    eps, longest = float(jnp.finfo(flat.dtype).eps), _norm(slope)

    class Loop(NamedTuple):
        u: Array
        value: Array
        slope: Array
        radius: Array
        open: Array
        k: Array

    def unfinished(loop: Loop) -> Array:
        return (loop.k < _OUTER) & jnp.any(loop.open)

    def body(loop: Loop) -> Loop:
        u, value, slope, radius, open, k = loop
        step, foretold = _model_step(gradient, u, slope, radius, open)
        new_value, new_slope = cost(u + step), gradient(u + step)
        rounding = 8 * eps * (jnp.abs(value) + jnp.abs(new_value))
        ratio = (value - new_value + rounding) / (foretold + rounding)
        better = open & (new_value <= value + rounding) & jnp.all(jnp.isfinite(new_slope), 1)
        length = _norm(step)
        radius = jnp.where((ratio < 0.25) | ~better, length / 4, radius)
        radius = jnp.where(better & (ratio > 0.75), jnp.maximum(radius, 2 * length), radius)
        radius = jnp.minimum(radius, 8 * longest)
        far = better[:, None]
        u, slope = jnp.where(far, u + step, u), jnp.where(far, new_slope, slope)
        value = jnp.where(better, new_value, value)
        size = eps * (_norm(u) + _norm(flat))
        going = open & (_norm(slope) > 4 * size) & (radius > size)
        going &= ~(better & (foretold <= eps * jnp.abs(value)) & (length < radius / 2))
        return Loop(u, value, slope, radius, going, k + 1)

    loop = Loop(zero, value, slope, longest, longest > 0, jnp.asarray(0))
    loop = jax.lax.while_loop(unfinished, body, loop)
    # A function that is not finite at the goal has no minimum that could be found; that is told.
    broken = jnp.where(jnp.isfinite(value) & jnp.isfinite(longest), 0.0, jnp.nan)
    return placed(loop.u + broken.astype(flat.dtype)[:, None])


def _norm(x: Array) -> Array:
    """The length of every row, without overflow."""
    most = jnp.max(jnp.abs(x), 1, initial=0.0)
    safe = jnp.where(most > 0, most, 1)
    return jnp.where(most > 0, safe * jnp.sqrt(jnp.sum(jnp.square(x / safe[:, None]), 1)), 0)


def _dot(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, 1, keepdims=True)


def _model_step(
    gradient: Callable[[Array], Array], u: Array, slope: Array, radius: Array, wanted: Array
) -> tuple[Array, Array]:
    """Steihaug's step in a ball, and by how much the model says that the cost falls."""
    tiny = float(jnp.finfo(u.dtype).tiny)
    # In units of the slope: squares of large numbers would overflow.
    unit = jnp.where(_norm(slope) > 0, _norm(slope), 1)[:, None]
    reach = radius[:, None] / unit
    enough = jnp.minimum(0.1, jnp.sqrt(unit / jnp.maximum(1.0, unit)))

    def curved(d: Array) -> Array:
        return jax.jvp(gradient, (u,), (d,))[1]

    def to_edge(p: Array, d: Array) -> Array:
        unit_d = d / jnp.maximum(jnp.sqrt(_dot(d, d)), tiny)
        pd = _dot(p, unit_d)
        room = jnp.maximum(jnp.square(reach) - _dot(p, p), 0)
        return p + (jnp.sqrt(pd * pd + room) - pd) * unit_d

    class Loop(NamedTuple):
        p: Array
        hp: Array
        r: Array
        d: Array
        open: Array
        k: Array

    def unfinished(loop: Loop) -> Array:
        return jnp.any(loop.open) & (loop.k < _INNER)

    def body(loop: Loop) -> Loop:
        p, hp, r, d, open, k = loop
        hd = curved(d)
        bend, square = _dot(d, hd), _dot(r, r)
        alpha = square / jnp.where(bend > 0, bend, 1)
        inside = (bend > 0) & (jnp.sqrt(_dot(p + alpha * d, p + alpha * d)) < reach)
        new = jnp.where(inside, p + alpha * d, to_edge(p, d))
        along = _dot(new - p, d) / jnp.maximum(_dot(d, d), tiny)
        left = r - alpha * hd
        going = open & inside & (jnp.sqrt(_dot(left, left)) > enough)
        beta = _dot(left, left) / jnp.maximum(square, tiny)
        moved = (new, hp + along * hd, left, left + beta * d)
        p, hp, r, d = (jnp.where(open, x, old) for x, old in zip(moved, loop[:4], strict=True))
        return Loop(p, hp, r, d, going, k + 1)

    zero, first = jnp.zeros_like(u), -slope / unit
    loop = Loop(zero, zero, first, first, wanted[:, None], jnp.asarray(0))
    loop = jax.lax.while_loop(unfinished, body, loop)
    model = _dot(slope / unit, loop.p) + _dot(loop.p, loop.hp) / 2
    return unit * loop.p, -(jnp.square(unit) * model)[:, 0]
