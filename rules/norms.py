"""Normalisation: each slice that is standardised, or scaled, together is one constraint.

See `pjax_trace.rules.slices` for why. A layer norm is found in the programs in which libraries, or
users, commonly write it; all of these are standardisations, or scalings, of one formula.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.registry import Case, register_function
from pjax_trace.rules.roots import bracketed_newton
from pjax_trace.rules.slices import Composite

__all__ = ["NORMALISE", "STANDARDISE", "nearest_normalised"]

_GRID = 64  # points at which a distance of one unknown is sampled
_NEWTON = 10  # steps from the best of them
_MAJORISATIONS = 8  # for weights that vary within a slice
_ROUNDING = 4  # of a distance, in units of its last place


def standardise(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """``(x − mean) / √(variance + eps)`` along some axes."""
    return normalise(x - jnp.mean(x, axes, keepdims=True), axes, eps)


def normalise(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """``x / √(mean square + eps)`` along some axes."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + eps)


def nearest_normalised(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, ""] | float,
    wz: Float[Array, "..."],
    *,
    axes: tuple[int, ...],
    eps: float,
    centred: bool = False,
) -> Float[Array, "..."]:
    """The argmin over ``x`` of ``wx |x − x0|² + Σ wz (normalise(x) − z0)²``, slice by slice.

    ``x = s u`` with mean square 1 of u makes ``z = h u``, ``h = s / √(s² + eps)``. The best u is
    along ``wx s x0 + wz h z0``; only s is left, one scalar unknown in the plane of x0 and z0. The
    distance is sampled, and Newton's method goes on from the best s.

    Weights that vary within a slice are majorised by the greatest, ``wz (z − z0)² ≤ max(wz)
    (z − z₁)² + constant`` with z₁ between the last z and z0 (de Leeuw); a few such steps never go
    up, but need not end at the nearest point.

    Args:
        x0: slices before.
        z0: slices after, of the same shape.
        wx: positive weight.
        wz: positive weights, of the same shape.
        axes: of a slice.
        eps: positive.
        centred: the same of ``standardise(x)``. The best mean is that of x0, and the rest of x is
            the nearest one among slices of mean 0.

    Returns:
        x. The point of the graph is at most as far as ``(x0, normalise(x0))``, and the nearest
        one if all wz of a slice are equal.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.norms import nearest_normalised
        >>> x0, z0 = jnp.array([3.0, 0.0]), jnp.array([0.0, 0.0])
        >>> nearest_normalised(x0, z0, 1.0, jnp.ones(2), axes=(0,), eps=1e-6).round(2).tolist()
        [3.0, 0.0]
        >>> x0, z0 = jnp.array([1.0, 3.0]), jnp.array([2.0, -2.0])
        >>> options = {"axes": (0,), "eps": 1e-6, "centred": True}
        >>> print(nearest_normalised(x0, z0, 1.0, jnp.ones(2), **options).round(2))
        [2.01 1.99]
    """

    def mean(a: Array) -> Array:
        return jnp.mean(a, axes, keepdims=True)

    def onto_subspace(a: Array) -> Array:
        return a - mean(a) if centred else a

    a, most = onto_subspace(x0), jnp.max(wz, axes, keepdims=True)
    share = wz / most
    size = jnp.sqrt(mean(jnp.square(a)))

    def project(target: Array) -> Array:
        b = onto_subspace(target)
        size_b = jnp.sqrt(mean(jnp.square(b)))
        first = jnp.where(size > 0, a / _positive(size), b / _positive(size_b))
        along = mean(b * first)
        rest = b - along * first
        across = jnp.sqrt(mean(jnp.square(rest)))
        c, d = _nearest_scale(size, along, across, most / wx, eps)
        return c * first + d * (rest / _positive(across))

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        count, x = state
        z = normalise(x, axes, eps)
        return count + 1, project(z + share * (z0 - z))

    def unfinished(state: tuple[Array, Array]) -> Array:
        return (state[0] == 0) | ((state[0] < _MAJORISATIONS) & jnp.any(share < 1))

    count = jnp.zeros((), jnp.int32)
    return x0 - a + jax.lax.while_loop(unfinished, step, (count, a))[1]


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
    rounding = _ROUNDING * float(jnp.finfo(least.dtype).eps)
    found = jnp.where(distance(found) <= least * (1 + rounding), found, start)
    s, _, _, u, v = at(found)
    return s * u, s * v


_NORMS = "global for equal weights in a slice, else local"
STANDARDISE = Composite(standardise, partial(nearest_normalised, centred=True), _NORMS)
NORMALISE = Composite(normalise, nearest_normalised, _NORMS)


def _trailing(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """What a norm takes together under any number of ``jax.vmap``."""
    return [
        {"axes": tuple(range(i, len(shape))), "eps": eps}
        for i in range(len(shape))
        for eps in (1e-5, 1e-6)
    ]


def _last(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    return _trailing(shape)[-2:]


def _batched(norm: Callable[[Array], Array], x: Array, axes: tuple[int, ...]) -> Array:
    for _ in range(axes[0]):
        norm = jax.vmap(norm)
    return norm(x)


def layer_norm(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """As ``equinox.nn.LayerNorm`` and ``equinox.nn.GroupNorm`` have it, without their scale."""

    def norm(x: Array) -> Array:
        mean = jnp.mean(x, keepdims=True)
        variance = jnp.maximum(0.0, jnp.var(x, keepdims=True))
        return (x - mean) * jax.lax.rsqrt(variance + eps)

    return _batched(norm, x, axes)


def rms_norm(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """As ``equinox.nn.RMSNorm`` has it, without its scale."""
    return _batched(lambda x: jax.lax.rsqrt(jnp.mean(x**2) + eps) * x, x, axes)


def layer_norm_by_hand(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """As one writes it."""
    mean, variance = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps)


def layer_norm_fast(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """As ``flax.linen.LayerNorm`` has it, without its scale."""
    mean, mean_square = jnp.mean(x, axes), jnp.mean(jax.lax.square(x), axes)
    variance = jnp.maximum(0.0, mean_square - jax.lax.square(mean))
    mean, variance = jnp.expand_dims(mean, axes), jnp.expand_dims(variance, axes)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def rms_norm_fast(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """As ``flax.linen.RMSNorm`` has it, without its scale."""
    mean_square = jnp.mean(jax.lax.square(x), axes)
    mean = jnp.expand_dims(jnp.zeros_like(mean_square), axes)
    return (x - mean) * jax.lax.rsqrt(jnp.expand_dims(mean_square, axes) + eps)


# With a scale behind, as trained norms have; alone, a norm is exact for equal weights only.
for function, rule, variants, found in (
    (layer_norm, STANDARDISE, _trailing, "standardisation in equinox.nn.LayerNorm and GroupNorm"),
    (layer_norm_by_hand, STANDARDISE, _last, "(x - mean) / sqrt(var + eps)"),
    (rms_norm, NORMALISE, _trailing, "equinox.nn.RMSNorm without its scale"),
    (layer_norm_fast, STANDARDISE, _last, "standardisation in flax.linen.LayerNorm"),
    (rms_norm_fast, NORMALISE, _last, "flax.linen.RMSNorm without its scale"),
):
    where = " along the last axis" if variants is _last else ""
    case = Case(lambda x, scale, f=function: scale * f(x, (1,), 1e-6), ((2, 4), (2, 4)))
    note = f"{found}{where}; eps 1e-5 or 1e-6"
    register_function(function, rule, variants=variants, cases=[case], note=note)
