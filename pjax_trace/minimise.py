"""Proximal operators of functions that nobody wrote one for: ``argmin_x f(x) + ½ ω |x − goal|²``.

A function of single elements is minimised by a bracketed Newton iteration, element by element; any
other one by Newton's method in a trust region, whose steps are found by conjugate gradients. Both
start at the goal, and where f is convex, both know how far the minimum can be from there: not
farther than ``|∇f(goal)| / ω``. Where it is not, they find a local minimum that is no worse than
the goal, and stay finite even if there is none.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

__all__ = ["minimise", "minimise_elements"]

_ELEMENT_STEPS = 60
_OUTER, _INNER = 60, 60


def minimise_elements(f: Callable[[Array], Array], goal: Array, omega: Any) -> Array:
    """``argmin_x f(x) + ½ ω (x − goal)²`` for every element of an array at once.

    The minimum of a convex f is between the goal and a gradient step from it. Newton steps that
    leave the bracket, and every third one, give way to its middle, so that kinks are found, too. An
    element that is as well off at 0 is put there exactly.

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
    slope = jax.grad(lambda x: jnp.sum(f(x)))

    def pull(x: Array) -> tuple[Array, Array]:
        first, second = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        return first + omega * (x - goal), second + omega

    eps = float(jnp.finfo(goal.dtype).eps)
    start, curvature = pull(goal)
    far = goal - start / omega
    for _ in range(3):  # only functions that are not convex have their minimum farther away
        beyond, _ = pull(far)
        far = jnp.where(beyond * start > 0, goal + 2 * (far - goal), far)
    open_end = pull(far)[0] * start > 0
    size = jnp.abs(far - goal)

    class Loop(NamedTuple):
        x: Array
        low: Array
        high: Array
        open: Array
        k: Array

    def unfinished(loop: Loop) -> Array:
        return (loop.k < _ELEMENT_STEPS) & jnp.any(loop.open)

    def body(loop: Loop) -> Loop:
        x, low, high, _, k = loop
        force, curvature = pull(x)
        high = jnp.where(force > 0, x, high)
        low = jnp.where(force > 0, low, x)
        newton = x - force / jnp.where(curvature > 0, curvature, 1)
        inside = (curvature > 0) & (newton > low) & (newton < high) & (k % 3 < 2)
        settled = jnp.abs(force) <= 4 * eps * jnp.abs(start)
        wide = high - low > 2 * eps * (jnp.abs(x) + eps * size)
        # NaN ends the search: it is never wide.
        return Loop(
            jnp.where(settled, x, jnp.where(inside, newton, low + (high - low) / 2)),
            low,
            high,
            wide & ~settled,
            k + 1,
        )

    first = goal - start / jnp.maximum(curvature, omega)
    loop = Loop(first, jnp.minimum(goal, far), jnp.maximum(goal, far), size > 0, jnp.asarray(0))
    loop = jax.lax.while_loop(unfinished, body, loop)
    x = jnp.where(open_end, far, loop.x)

    def cost(x: Array) -> Array:
        return f(x) + omega * jnp.square(x - goal) / 2

    for other in (goal, jnp.zeros_like(goal)):
        x = jnp.where(cost(other) <= cost(x), other, x)
    return x


def minimise(
    f: Callable[[Sequence[Array]], Array], goals: Sequence[Array], omegas: Sequence[Any]
) -> list[Array]:
    """``argmin_x f(x) + Σ ½ ω_i |x_i − goal_i|²`` of several arrays together.

    Newton's method in a trust region: every step minimises the quadratic model in a ball by
    Steihaug's conjugate gradients, and the ball grows and shrinks with how well the model foretells
    f (Nocedal and Wright, Numerical Optimization, algorithms 4.1 and 7.2).

    Args:
        f: of a list of arrays, a scalar.
        goals: the points.
        omegas: a positive weight for each.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.minimise import minimise
        >>> (x,) = minimise(lambda xs: jnp.sum(xs[0]) ** 2, [jnp.array([3.0, 1.0])], [1.0])
        >>> [round(float(v), 3) for v in x]
        [1.4, -0.6]
    """
    flat, unravel = ravel_pytree(list(goals))
    roots = [jnp.sqrt(jnp.asarray(omega, g.dtype)) for omega, g in zip(omegas, goals, strict=True)]

    def placed(u: Array) -> list[Array]:
        # In units of the metric.
        moves = unravel(u)
        return [g + m / r for g, m, r in zip(goals, moves, roots, strict=True)]

    def cost(u: Array) -> Array:
        return f(placed(u)) + jnp.sum(jnp.square(u)) / 2

    both = jax.value_and_grad(cost)
    zero = jnp.zeros_like(flat)
    value, slope = both(zero)
    eps = float(jnp.finfo(flat.dtype).eps)
    longest = jnp.linalg.norm(slope)

    class Loop(NamedTuple):
        u: Array
        value: Array
        slope: Array
        radius: Array
        open: Array
        k: Array

    def unfinished(loop: Loop) -> Array:
        return (loop.k < _OUTER) & loop.open

    def body(loop: Loop) -> Loop:
        u, value, slope, radius, _, k = loop
        step, foretold = _model_step(jax.grad(cost), u, slope, radius)
        new_value, new_slope = both(u + step)
        rounding = 8 * eps * (jnp.abs(value) + jnp.abs(new_value))
        ratio = (value - new_value + rounding) / (foretold + rounding)
        better = (new_value <= value + rounding) & jnp.isfinite(new_value)
        better &= jnp.all(jnp.isfinite(new_slope))
        length = jnp.linalg.norm(step)
        radius = jnp.where((ratio < 0.25) | ~better, length / 4, radius)
        radius = jnp.where(better & (ratio > 0.75), jnp.maximum(radius, 2 * length), radius)
        radius = jnp.minimum(radius, 8 * longest)
        u = jnp.where(better, u + step, u)
        value, slope = jnp.where(better, new_value, value), jnp.where(better, new_slope, slope)
        going = (jnp.linalg.norm(slope) > 30 * eps * longest) & (radius > 4 * eps * longest)
        going &= ~(better & (foretold <= eps * jnp.abs(value)) & (length < radius / 2))
        return Loop(u, value, slope, radius, going, k + 1)

    loop = Loop(zero, value, slope, longest, longest > 0, jnp.asarray(0))
    loop = jax.lax.while_loop(unfinished, body, loop)
    # A function that is not finite at the goal has no minimum that could be found; that is told.
    broken = jnp.where(jnp.isfinite(value) & jnp.isfinite(longest), 0.0, jnp.nan)
    return [x + broken.astype(x.dtype) for x in placed(loop.u)]


def _model_step(
    gradient: Callable[[Array], Array], u: Array, slope: Array, radius: Array
) -> tuple[Array, Array]:
    """Steihaug's step in a ball, and by how much the model says that the cost falls."""

    def curved(d: Array) -> Array:
        return jax.jvp(gradient, (u,), (d,))[1]

    length = jnp.linalg.norm(slope)
    enough = jnp.minimum(0.1, jnp.sqrt(length / jnp.maximum(1.0, length))) * length

    def to_edge(p: Array, d: Array) -> Array:
        pp, pd, dd = jnp.vdot(p, p), jnp.vdot(p, d), jnp.vdot(d, d)
        dd = jnp.maximum(dd, jnp.finfo(d.dtype).tiny)
        room = jnp.maximum(radius**2 - pp, 0)
        return p + (-pd + jnp.sqrt(jnp.maximum(pd**2 + dd * room, 0))) / dd * d

    class Loop(NamedTuple):
        p: Array
        hp: Array
        r: Array
        d: Array
        open: Array
        k: Array

    def unfinished(loop: Loop) -> Array:
        return loop.open & (loop.k < _INNER)

    def body(loop: Loop) -> Loop:
        p, hp, r, d, _, k = loop
        hd = curved(d)
        bend, square = jnp.vdot(d, hd), jnp.vdot(r, r)
        alpha = square / jnp.where(bend > 0, bend, 1)
        inside = (bend > 0) & (jnp.linalg.norm(p + alpha * d) < radius)
        new = jnp.where(inside, p + alpha * d, to_edge(p, d))
        dd = jnp.maximum(jnp.vdot(d, d), jnp.finfo(d.dtype).tiny)
        hp = hp + jnp.vdot(new - p, d) / dd * hd
        left = r - alpha * hd
        going = inside & (jnp.linalg.norm(left) > enough)
        beta = jnp.vdot(left, left) / jnp.maximum(square, jnp.finfo(d.dtype).tiny)
        return Loop(new, hp, left, left + beta * d, going, k + 1)

    zero = jnp.zeros_like(u)
    loop = Loop(zero, zero, -slope, -slope, length > 0, jnp.asarray(0))
    loop = jax.lax.while_loop(unfinished, body, loop)
    model = jnp.vdot(slope, loop.p) + jnp.vdot(loop.p, loop.hp) / 2
    return loop.p, -model
