"""Composites: softmax, and the standardisation in a layer norm, as one constraint per slice.

Traced into, either is a handful of constraints that must agree on means, squares and quotients of
the whole slice, and projecting them one by one converges badly. Here a slice ``z = f(x)`` is one
constraint, with the nearest point of its own graph.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.registry import (
    Case,
    Moment,
    Projection,
    Rule,
    Weights,
    register_function,
    squared_distance,
)
from pjax_trace.rules.roots import bracketed_newton

__all__ = ["Composite", "nearest_softmax", "nearest_standardised"]

_GRID = 64
_NEWTON = 10


def _norm(v: tuple[Array, ...]) -> Array:
    return jnp.sqrt(sum(jnp.square(x) for x in v))


def standardise(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """``(x − mean) / √(variance + eps)`` along some axes."""
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + eps)


def nearest_standardised(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, ""] | float,
    wz: Float[Array, "..."],
    *,
    axes: tuple[int, ...],
    eps: float,
) -> Float[Array, "..."]:
    """The argmin over ``x`` of ``wx |x − x0|² + Σ wz (standardise(x) − z0)²``, slice by slice.

    ``x = m + s u`` with mean 0 and mean square 1 of u makes ``z = h u``, ``h = s / √(s² + eps)``.
    The best m is the mean of x0, the best u is along ``wx s x0 + wz h z0``, centred; only s is left.
    That is one scalar unknown in the plane of x0 and z0, whose distance is sampled, and Newton's
    method goes on from the best. Weights that vary within a slice are majorised by the greatest,
    ``wz (z − z0)² ≤ max wz · (z − z₁)² + const`` with ``z₁`` between the last z and z0; a few such
    steps never go up, but end near a local minimum.

    Args:
        x0: slices before.
        z0: slices after, of the same shape.
        wx: positive weight.
        wz: positive weights, of the same shape.
        axes: of a slice.
        eps: positive.

    Returns:
        x. The point of the graph is at most as far as ``(x0, standardise(x0))``.
    """

    def mean(a: Array) -> Array:
        return jnp.mean(a, axes, keepdims=True)

    middle, most = mean(x0), jnp.max(wz, axes, keepdims=True)
    share = wz / most
    a = x0 - middle
    size = jnp.sqrt(mean(jnp.square(a)))

    def project(target: Array) -> Array:
        b = target - mean(target)
        size_b = jnp.sqrt(mean(jnp.square(b)))
        first = jnp.where(size > 0, a / _positive(size), b / _positive(size_b))
        along = mean(b * first)
        rest = b - along * first
        across = jnp.sqrt(mean(jnp.square(rest)))
        c, d = _nearest_scale(size, along, across, most / wx, eps)
        return c * first + d * (rest / _positive(across))

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        count, x = state
        z = standardise(x, axes, eps)
        return count + 1, project(z + share * (z0 - z))

    def unfinished(state: tuple[Array, Array]) -> Array:
        return (state[0] == 0) | ((state[0] < 8) & jnp.any(share < 1))

    return middle + jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), a))[1]


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _nearest_scale(a: Array, b: Array, c: Array, ratio: Array, eps: float) -> tuple[Array, Array]:
    """``s u``: argmin of ``|s u − (a, 0)|² + ratio |h(s) u − (b, c)|²`` over unit u and s ≥ 0."""
    root = math.sqrt(eps)

    def at(log_s: Array) -> tuple[Array, Array, Array, Array, Array]:
        s = jnp.exp(log_s)
        deviation = jnp.sqrt(jnp.square(s) + eps)
        h = s / deviation
        v, w = s * a + ratio * h * b, ratio * h * c
        norm = jnp.sqrt(jnp.square(v) + jnp.square(w))
        flat = norm == 0
        norm = jnp.where(flat, 1, norm)
        return s, h, deviation, jnp.where(flat, 1, v / norm), w / norm

    def distance(log_s: Array) -> Array:
        s, h, _, u, v = at(log_s)
        far_x = jnp.square(s * u - a) + jnp.square(s * v)
        return far_x + ratio * (jnp.square(h * u - b) + jnp.square(h * v - c))

    def slope(log_s: Array) -> Array:  # as u is the best one, it may as well be constant
        s, h, deviation, u, v = at(log_s)
        bend = h * eps / jnp.square(deviation)  # s h'
        return s * (s - u * a) + ratio * bend * (h - (u * b + v * c))

    # A stationary point has s ≤ a + ratio |(b, c)| eps / s³; below the lower end s gains nothing.
    size = jnp.sqrt(jnp.square(b) + jnp.square(c))
    upper = jnp.log(2 * jnp.maximum(a, (2 * ratio * size * eps) ** 0.25) + 1e-18)
    total = jnp.sqrt((jnp.square(a) + ratio * jnp.square(size)) / (eps + ratio))
    lower = jnp.minimum(jnp.log(1e-3 * root * total + 1e-18), upper)
    spacing = (upper - lower) / _GRID

    def better(i: Any, best: tuple[Array, Array]) -> tuple[Array, Array]:
        log_s = lower + spacing * jnp.asarray(i, a.dtype)
        far = distance(log_s)
        closer = far < best[1]
        return jnp.where(closer, log_s, best[0]), jnp.where(closer, far, best[1])

    start = jnp.log(a + 1e-18)
    start, least = jax.lax.fori_loop(0, _GRID + 1, better, (start, distance(start)))

    def fun(log_s: Array) -> tuple[Array, Array]:
        return jax.jvp(slope, (log_s,), (jnp.ones_like(log_s),))

    found = bracketed_newton(fun, start - spacing, start + spacing, start, steps=_NEWTON)
    found = jnp.where(distance(found) <= least, found, start)
    s, _, _, u, v = at(found)
    return s * u, s * v


def nearest_softmax(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, ""] | float,
    wz: Float[Array, "..."],
    *,
    axis: int,
    steps: int = 8,
    ts: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
) -> Float[Array, "..."]:
    """TODO."""
    x0 = jnp.maximum(x0, -1e30)

    def total(a: Array) -> Array:
        return jnp.sum(a, axis, keepdims=True)

    def value(d: Array) -> tuple[Array, Array]:
        z = jax.nn.softmax(x0 + d, axis)
        return z, total(wx * jnp.square(d) + wz * jnp.square(z - z0))

    def keep(better: Array, new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(better, n, o), new, old)

    d = jnp.zeros_like(x0)
    z, far = value(d)
    least = 1e-4
    way = jnp.log(jnp.maximum(z0, least)) - jnp.log(jnp.maximum(z, least))
    way = way - total(way) / x0.shape[axis]
    best = (d, z, far)
    for t in ts:
        tried = (t * way, *value(t * way))
        best = keep(tried[2] < best[2], tried, best)

    def step(_: Any, state: Any) -> Any:
        *point, damping = state
        d, z, far = point
        pull = wz * (z - z0)
        push = z * (pull - total(z * pull))
        gradient = wx * d + push
        e = jnp.maximum(wz * jnp.square(z) + push, 0)
        nu = wx + damping
        diagonal = nu + e
        g = gradient / diagonal
        p, q = z / diagonal, e / diagonal
        aa, bb, cc = total(z * p), nu * total(p), nu * total(q)
        # (D + U M Uᵀ)⁻¹ by Woodbury
        y, w = total(p * gradient), total(q * gradient)
        det = aa * cc + jnp.square(bb)
        # S = [[aa, -bb], [-bb, -cc]]; S⁻¹ (y, w)
        k1 = (cc * y - bb * w) / det
        k2 = (-bb * y - aa * w) / det
        new = d - (g - p * k1 - q * k2)
        new = new - total(new) / x0.shape[axis]
        tried = (new, *value(new))
        better = tried[2] <= far
        harder = jnp.maximum(8 * damping, 0.1 * jnp.max(e, axis, keepdims=True))
        return (*keep(better, tried, tuple(point)), jnp.where(better, damping / 8, harder))

    state = (*best, jnp.zeros_like(best[2]))
    d, z, far, _ = jax.lax.fori_loop(0, steps, step, state)
    return x0 + d
