"""Nearest points of the graphs of scalar functions, elementwise.

Everything here answers one question: which ``x`` minimises

    wx·(x − x0)² + wz·(f(x) − z0)² .

The answer is the global one. ``relu``, ``abs`` and ``square`` have closed forms; any other
function is a :class:`Curve`, and :func:`nearest_on_curve` solves it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise, starmap
from math import copysign, inf, isfinite

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.rules.roots import bisect, bracketed_newton

__all__ = [
    "EXP",
    "LOG",
    "LOGISTIC",
    "TANH",
    "Curve",
    "nearest_abs",
    "nearest_on_curve",
    "nearest_relu",
    "nearest_square",
]

_HUGE = 1e18  # stands for infinity: its square is finite in float32
_FRACTIONS = (1 / 64, 1 / 16, 1 / 4, 1 / 2)  # of the way; what a finer one found gains too little
_STEPS = 10


def nearest_relu(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, "..."] | float,
    wz: Float[Array, "..."] | float,
    threshold: Float[Array, "..."] | float = 0.0,
) -> Float[Array, "..."]:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (max(x, threshold) − z0)²``, elementwise.

    The nearer of the two rays' nearest points; of two equally near ones, that on ``z = x``.

    Args:
        x0: abscissae of the points.
        z0: ordinates of the points, of the same shape.
        wx: positive weights, a scalar or of the same shape.
        wz: non-negative weights, likewise.
        threshold: where the graph turns from flat to rising.

    Returns:
        The abscissae of the nearest points; their ordinates are ``max(x, threshold)``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.curves import nearest_relu
        >>> x0, z0 = jnp.array([1.0, -3.0, -1.0]), jnp.array([2.0, 1.0, 5.0])
        >>> print(nearest_relu(x0, z0, 1.0, 1.0))
        [ 1.5 -3.   2. ]
    """
    rising = jnp.maximum(x0 + wz / (wx + wz) * (z0 - x0), threshold)
    flat = jnp.minimum(x0, threshold)
    rising_cost = wx * (rising - x0) ** 2 + wz * (rising - z0) ** 2
    flat_cost = wx * (flat - x0) ** 2 + wz * (threshold - z0) ** 2
    return jnp.where(flat_cost < rising_cost, flat, rising)


def nearest_abs(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, "..."] | float,
    wz: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (|x| − z0)²``, elementwise.

    The graph is symmetric, so ``x`` is on the side of ``x0``; on the right one at ``x0 = 0``.

    Args:
        x0: abscissae of the points.
        z0: ordinates of the points, of the same shape.
        wx: positive weights, a scalar or of the same shape.
        wz: non-negative weights, likewise.

    Returns:
        The abscissae of the nearest points.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.curves import nearest_abs
        >>> print(nearest_abs(jnp.array([-1.0, 1.0]), jnp.array([2.0, -2.0]), 1.0, 1.0))
        [-1.5  0. ]
    """
    size = jnp.abs(x0)
    nearest = jnp.maximum(size + wz / (wx + wz) * (z0 - size), 0.0)
    return jnp.where(x0 < 0, -nearest, nearest)


def nearest_square(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, "..."] | float,
    wz: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (x² − z0)²``, elementwise.

    The graph is symmetric, so ``x`` is on the side of ``x0``; on the right one at ``x0 = 0``.
    There it is the only positive root of ``x³ + (a − z0) x − a |x0|``, a = wx / (2 wz).

    Args:
        x0: abscissae of the points.
        z0: ordinates of the points, of the same shape.
        wx: positive weights, a scalar or of the same shape.
        wz: non-negative weights, likewise.

    Returns:
        The abscissae of the nearest points.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.curves import nearest_square
        >>> print(nearest_square(jnp.array([-2.0, 0.0]), jnp.array([4.0, 1.5]), 1.0, 1.0))
        [-2.  1.]
    """
    ratio, size = jnp.clip(2 * wz / wx, 1e-18, 1e18), jnp.abs(x0)
    linear = 1 / ratio - z0
    # In units of `scale` the cubic is y³ + p y − q with max(|p|, q) = 1, and 0 ≤ y ≤ 1.325.
    square_root = jnp.sqrt(jnp.abs(linear))
    cube_root = jnp.exp((jnp.log(size) - jnp.log(ratio)) / 3)
    scale = jnp.maximum(jnp.maximum(square_root, cube_root), 1e-18)
    p, q = jnp.sign(linear) * (square_root / scale) ** 2, (cube_root / scale) ** 3
    y = jnp.minimum(1.33, jnp.where(p > 0, q / jnp.maximum(p, 1e-18), inf))
    for _ in range(4):  # convex and rising beyond the root: Newton descends to it
        y = (2 * y**3 + q) / (3 * y**2 + p)
    x = scale * y
    # The last step on the stationarity condition itself, which near the graph does not cancel.
    last = x - (x - size + ratio * (x * x - z0) * x) / (1 + ratio * (3 * x * x - z0))
    x = jnp.where(jnp.abs(last - x) <= 0.1 * x, last, x)
    return jnp.where(x0 < 0, -x, x)


@dataclass(frozen=True)
class Curve:
    """The graph of a scalar function, with what is known about it.

    Attributes:
        value: the function ``f``, elementwise, smooth between the knots. Where the domain is
            infinite it must have a limit: ``value(±1e18)`` is a number or infinite.
        slope: its derivative; by default forward-mode autodiff.
        inverse: its inverse, if ``f`` is monotone on the whole domain; by default bisection, at
            several times the cost. It must be accurate relative to ``x`` where ``f`` is steep.
        domain: the open interval on which ``f`` is defined.
        knots: ascending points that split the domain into pieces on which ``f`` is monotone.
            Kinks, and points where the curvature jumps, belong here too.
        curvature: a bound of ``|f''|``. Batches of easy points then take a shortcut, ten times
            faster.
        antiperiod: a number T with ``f(x + T) = −f(x)``. The domain is then one half wave, between
            two extrema about which the graph is symmetric.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pjax_trace.rules.curves import Curve
        >>> erf = Curve(jax.lax.erf, inverse=jax.lax.erf_inv)
        >>> silu = Curve(jax.nn.silu, knots=(-1.2784645,))
        >>> half = jnp.pi / 2
        >>> sin = Curve(jnp.sin, inverse=jnp.arcsin, domain=(-half, half), antiperiod=jnp.pi)
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None
    inverse: Callable[[Array], Array] | None = None
    domain: tuple[float, float] = (-inf, inf)
    knots: tuple[float, ...] = ()
    curvature: float = inf
    antiperiod: float | None = None

    def tangent(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The slope of the graph at ``x``."""
        if self.slope is not None:
            return self.slope(x)
        return jax.jvp(self.value, (x,), (jnp.ones_like(x),))[1]


def nearest_on_curve(
    curve: Curve,
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, "..."] | float,
    wz: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (f(x) − z0)²``, elementwise and global.

    On a monotone piece the nearest point lies between ``x0`` and the preimage of ``z0``: beyond
    either both terms grow. On the way from the one to the other the first term grows and the
    second falls, so that a known distance R excludes all points where either exceeds R². What
    remains is sampled at points geometrically dense in ``x`` towards the near end and in ``z``
    towards the far end; the first and the last local minimum are bracketed and polished by
    Newton's method, and the best of all pieces is kept.

    Args:
        curve: the graph.
        x0: abscissae of the points.
        z0: ordinates of the points, of the same shape.
        wx: positive weights, a scalar or of the same shape.
        wz: non-negative weights, likewise.

    Returns:
        The abscissae of the nearest points, within the domain; their ordinates are ``f(x)``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.curves import TANH, nearest_on_curve
        >>> x0, z0 = jnp.array([0.5, -3.0]), jnp.array([0.0, 2.0])
        >>> print(nearest_on_curve(TANH, x0, z0, 1.0, 1.0).round(3))
        [ 0.261 -2.969]
    """
    if curve.antiperiod is not None:
        # Reduced in two parts, the first of them exact: sin keeps its digits at 1e4.
        coarse = round(128 * curve.antiperiod) / 128
        turns = jnp.floor((x0 - curve.domain[0]) / curve.antiperiod)
        reduced = (x0 - turns * coarse) - turns * (curve.antiperiod - coarse)
        sign = 1 - 2 * (turns % 2)
        wave = replace(curve, antiperiod=None)
        return x0 + (nearest_on_curve(wave, reduced, sign * z0, wx, wz) - reduced)

    ratio = jnp.clip(wz / wx, 1e-20, 1e20)
    ends = _ends(curve, x0.dtype)

    def anywhere():
        best, least = x0, inf
        for lower, upper in pairwise(ends):
            for x in _local_minima(curve, lower, upper, x0, z0, ratio):
                distance = (x - x0) ** 2 + ratio * (curve.value(x) - z0) ** 2
                best = jnp.where(distance < least, x, best)
                least = jnp.minimum(distance, least)
        return best

    if not isfinite(curve.curvature):
        return anywhere()

    # Where the residual at x0 is small against the radius of curvature, the distance is convex
    # wherever it is no greater than at x0, and Newton from there is all there is to do.
    near = jnp.clip(x0, ends[0], ends[-1])
    residual = jnp.abs(curve.value(near) - z0)

    def nearby():
        reach = jnp.sqrt(ratio) * residual
        low = jnp.clip(near - reach, ends[0], ends[-1])
        high = jnp.clip(near + reach, ends[0], ends[-1])
        slopes = partial(_stationarity, curve.value, curve.tangent, x0, z0, ratio)
        return bracketed_newton(slopes, low, high, near, steps=5)

    return jax.lax.cond(jnp.all(2 * ratio * curve.curvature * residual < 1), nearby, anywhere)


def _stationarity(value, tangent, x0, z0, ratio, x):
    """Half the derivative of the squared distance in ``x``, divided by wx; and its derivative."""
    residual = value(x) - z0
    slope, bend = jax.jvp(tangent, (x,), (jnp.ones_like(x),))
    return x - x0 + ratio * slope * residual, 1 + ratio * (slope * slope + residual * bend)


def _ends(curve: Curve, dtype: jnp.dtype) -> list[float]:
    """The ends of the monotone pieces; those of the open domain are moved to the next number."""

    def inside(end: float, other: float) -> float:
        if not isfinite(end):
            return copysign(_HUGE, end)
        if end == 0:
            return copysign(float(jnp.finfo(dtype).tiny), other)
        return float(np.nextafter(np.asarray(end, dtype), np.asarray(other, dtype)))

    lower, upper = curve.domain
    return [inside(lower, upper), *curve.knots, inside(upper, lower)]


def _merge(a: list[Array], b: list[Array]) -> list[Array]:
    """One ascending list of two, elementwise: Batcher's bitonic merge, for powers of two."""

    def ascending(values):
        half = len(values) // 2
        if not half:
            return values
        pairs = list(zip(values[:half], values[half:], strict=True))
        lower, upper = [jnp.minimum(*p) for p in pairs], [jnp.maximum(*p) for p in pairs]
        return ascending(lower) + ascending(upper)

    return ascending(a + b[::-1])


def _local_minima(
    curve: Curve, lower: float, upper: float, x0: Array, z0: Array, ratio: Array
) -> tuple[Array, Array]:
    """The first and the last minimum of the distance on the way from x0 to the preimage of z0."""
    dtype, finfo = x0.dtype, jnp.finfo(x0.dtype)

    def cost(x, z):
        return (x - x0) ** 2 + ratio * (z - z0) ** 2

    # The range of the piece, without its ends, where an inverse may be infinite.
    sides = [jnp.clip(curve.value(jnp.asarray(x, dtype)), -_HUGE, _HUGE) for x in (lower, upper)]
    rising = sides[0] < sides[1]
    bottom, top = jnp.minimum(*sides), jnp.maximum(*sides)
    margin = finfo.tiny / finfo.eps
    bottom = bottom + jnp.maximum(margin, finfo.eps * jnp.abs(bottom))
    top = top - jnp.maximum(margin, finfo.eps * jnp.abs(top))

    # The two ends of the way; neither term need exceed the distance of a point known.
    near = jnp.clip(x0, lower, upper)
    z_near = curve.value(near)
    toward = jnp.where((z_near < z0) == rising, 1.0, -1.0).astype(dtype)
    middle = min(max(0.0, lower + 1), upper - 1) if upper - lower > 2 else (lower + upper) / 2
    middle = jnp.asarray(middle, dtype)
    known = jnp.minimum(cost(near, z_near), cost(middle, curve.value(middle)))
    reach = jnp.minimum(jnp.sqrt(known), _HUGE)
    far = jnp.clip(x0 + toward * reach, lower, upper)

    def preimage(z, one, other, steps=32):
        """Of z, between two points; the steps are for curves without an inverse."""
        z, low, high = jnp.clip(z, bottom, top), jnp.minimum(one, other), jnp.maximum(one, other)
        if curve.inverse is not None:
            return jnp.clip(curve.inverse(z), low, high)
        return bisect(lambda x: (curve.value(x) < z) == rising, low, high, steps=steps)

    stop = preimage(z0, near, far)
    z_stop = curve.value(stop)
    reach = 1.25 * jnp.sqrt(jnp.minimum(reach**2, cost(stop, z_stop)) / ratio)
    cut = preimage(z0 + jnp.clip(z_near - z0, -reach, reach), near, stop)
    start = jnp.where(jnp.abs(z_near - z0) > reach, cut, near)
    rise = jnp.clip(curve.value(start), -_HUGE, _HUGE) - z_stop

    # From here on in u = ±x, which ascends on the way.
    first, last = toward * start, toward * stop
    points = _merge(
        [first + (last - first) * t for t in _FRACTIONS],
        [toward * preimage(z_stop + rise * t, start, stop, steps=16) for t in _FRACTIONS[::-1]],
    )
    end = toward * jnp.clip(stop + toward * (last - first) / 16, lower, upper)  # inverses err
    stationarity = partial(
        _stationarity,
        lambda u: curve.value(toward * u),
        lambda u: toward * curve.tangent(toward * u),
        toward * x0,
        z0,
        ratio,
    )

    def sample(u):
        x = toward * u
        z = curve.value(x)
        noise = 1e-5 * (jnp.abs(x0 * (x - x0)) + ratio * jnp.abs(z0 * (z - z0)))
        return u, stationarity(u)[0], cost(x, z), noise

    def cell(before, after):
        """Whether there is a minimum between two samples."""
        (u0, slope0, cost0, _), (u1, slope1, cost1, noise) = before, after
        # The slope in the middle by Simpson's rule turned round: it betrays a minimum and a
        # maximum between slopes of the same sign.
        middle = 0.75 * (cost1 - cost0) - 0.25 * (slope0 + slope1) * (u1 - u0)
        descends = (slope0 < 0) | (middle < -noise)
        return descends & (~(slope1 < 0) | (middle > noise))

    samples = [sample(u) for u in (first, *points, last)]
    found = [~(samples[0][1] < 0), *starmap(cell, pairwise(samples)), samples[-1][1] < 0]
    lows, highs = [first, first, *points, last], [first, *points, last, end]

    def pick(best, u, otherwise):
        return reduce(best, [jnp.where(f, v, otherwise) for f, v in zip(found, u, strict=True)])

    def polish(low, high):
        middle = 0.5 * (low + high)
        return toward * bracketed_newton(stationarity, low, high, middle, steps=_STEPS)

    return (
        polish(pick(jnp.minimum, lows, inf), pick(jnp.minimum, highs, inf)),
        polish(pick(jnp.maximum, lows, -inf), pick(jnp.maximum, highs, -inf)),
    )


def _artanh(z: Array) -> Array:
    return jnp.sign(z) * 0.5 * jnp.log1p(2 * jnp.abs(z) / (1 - jnp.abs(z)))


TANH = Curve(jnp.tanh, slope=lambda x: 1 - jnp.tanh(x) ** 2, inverse=_artanh, curvature=4 / 27**0.5)
LOGISTIC = Curve(jax.nn.sigmoid, inverse=lambda z: jnp.log(z / (1 - z)), curvature=1 / 108**0.5)
EXP = Curve(jnp.exp, slope=jnp.exp, inverse=jnp.log)
LOG = Curve(jnp.log, inverse=jnp.exp, domain=(0.0, inf))
