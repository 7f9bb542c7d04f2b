"""Nearest points of the graphs of scalar functions, elementwise.

Everything here answers one question: which ``x`` minimises

    wx·(x − x0)² + wz·(f(x) − z0)² .

The answer is the global one. ``relu``, ``abs`` and ``square`` have closed forms; any other
function is a :class:`Curve`, and :func:`nearest_on_curve` solves it.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.rules.roots import bracketed_newton

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
_FRACTIONS = (1 / 64, 1 / 16, 1 / 4, 1 / 2)  # of a bracket; finer ones gain less than 1e-4
_STEPS = 8


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
    ratio = jnp.maximum(2 * wz / wx, 1e-30)
    linear, constant = 1 / ratio - z0, jnp.abs(x0) / ratio
    # In units of `scale` the cubic is y³ + p y − q with max(|p|, q) = 1, and 0 ≤ y ≤ 1.3248.
    scale = jnp.maximum(jnp.sqrt(jnp.abs(linear)), jnp.cbrt(constant))
    scale = jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)
    p, q = linear / scale / scale, constant / scale / scale / scale
    y = jnp.minimum(1.3248, jnp.where(p > 0, q / p, inf))
    for _ in range(5):  # convex and rising beyond the root: Newton descends to it
        y = (2 * y**3 + q) / (3 * y**2 + p)
    return jnp.where(x0 < 0, -scale * y, scale * y)


@dataclass(frozen=True)
class Curve:
    """The graph of a scalar function, with what is known about it.

    Attributes:
        value: the function, elementwise, smooth between the knots. Where ``domain`` is infinite
            it must have a limit: ``value(±1e18)`` is a number or infinite.
        slope: its derivative; by default forward-mode autodiff.
        inverse: its inverse, if it is monotone on all of ``domain``; by default bisection, at
            several times the cost. It must be accurate relative to ``x`` *and* to ``z``.
        domain: open interval on which the function is defined.
        knots: points that split the domain into pieces on which the function is monotone, in
            ascending order. Kinks, and points where its curvature jumps, belong here too.
        antiperiod: a number ``T`` with ``value(x + T) = −value(x)``. The domain is then one half
            wave between two extrema, about which the graph must be symmetric.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pjax_trace.rules.curves import Curve
        >>> erf = Curve(jax.lax.erf, inverse=jax.lax.erf_inv)
        >>> sin = Curve(jnp.sin, inverse=jnp.arcsin, domain=(-1.5707963, 1.5707963), antiperiod=jnp.pi)
        >>> silu = Curve(jax.nn.silu, knots=(-1.2784645,))
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None
    inverse: Callable[[Array], Array] | None = None
    domain: tuple[float, float] = (-inf, inf)
    knots: tuple[float, ...] = ()
    antiperiod: float | None = None

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
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
    them both terms grow. On the way from one to the other the first grows and the second falls, so
    that any known distance R cuts off all points with either term above R². What remains is
    sampled at points geometrically dense in ``x`` towards the first end and in ``z`` towards the
    second, where the local minima are; the first and the last of them are refined by Newton on
    the stationarity condition, and the best over all pieces is kept.

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
        >>> print(nearest_on_curve(TANH, x0, z0, 1.0, 1.0).round(4))
        [ 0.2587 -3.    ]
    """
    if curve.antiperiod is not None:
        # Reduced in two parts, of which the first is exact: sin at 1e4 still has seven digits.
        coarse = round(128 * curve.antiperiod) / 128
        turns = jnp.floor((x0 - curve.domain[0]) / curve.antiperiod)
        reduced = (x0 - turns * coarse) - turns * (curve.antiperiod - coarse)
        sign = 1 - 2 * (turns % 2)
        wave = replace(curve, antiperiod=None)
        return x0 + (nearest_on_curve(wave, reduced, sign * z0, wx, wz) - reduced)

    ratio = jnp.clip(wz / wx, 1e-20, 1e20)
    best, least = x0, inf
    ends = _pieces(curve, x0.dtype)
    for lower, upper in itertools.pairwise(ends):
        for x in _local_minima(curve, lower, upper, x0, z0, ratio):
            distance = (x - x0) ** 2 + ratio * (curve.value(x) - z0) ** 2
            best = jnp.where(distance < least, x, best)
            least = jnp.minimum(distance, least)
    return best


def _pieces(curve: Curve, dtype: jnp.dtype) -> list[float]:
    """The ends of the monotone pieces, those of the open domain moved to the next number."""
    finfo = np.finfo(dtype)

    def inside(end: float, other: float) -> float:
        if not isfinite(end):
            return float(np.copysign(_HUGE, end))
        if end == 0:
            return float(np.copysign(finfo.tiny, other))
        return float(np.nextafter(dtype.type(end), dtype.type(other)))

    lower, upper = curve.domain
    return [inside(lower, upper), *curve.knots, inside(upper, lower)]


def _merge(a: list[Array], b: list[Array]) -> list[Array]:
    """Two ascending lists in one, elementwise (Batcher's bitonic merge; lengths powers of two)."""

    def ascending(values):
        if len(values) == 1:
            return values
        half = len(values) // 2
        pairs = list(zip(values[:half], values[half:], strict=True))
        return ascending([jnp.minimum(*p) for p in pairs]) + ascending(
            [jnp.maximum(*p) for p in pairs]
        )

    return ascending(a + b[::-1])


def _local_minima(
    curve: Curve, lower: float, upper: float, x0: Array, z0: Array, ratio: Array
) -> tuple[Array, Array]:
    """The first and the last local minimum met on the way from x0 to the preimage of z0."""
    dtype, finfo = x0.dtype, jnp.finfo(x0.dtype)
    f = curve.value

    def cost(x, z):
        return (x - x0) ** 2 + ratio * (z - z0) ** 2

    # The range of the piece, without its ends, where the inverse may be infinite.
    bounds = [jnp.clip(f(jnp.asarray(end, dtype)), -_HUGE, _HUGE) for end in (lower, upper)]
    rising = bounds[0] < bounds[1]
    bottom, top = jnp.minimum(*bounds), jnp.maximum(*bounds)
    least = finfo.tiny / finfo.eps
    bottom = bottom + jnp.maximum(least, finfo.eps * jnp.abs(bottom))
    top = top - jnp.maximum(least, finfo.eps * jnp.abs(top))

    near = jnp.clip(x0, lower, upper)
    z_near = f(near)
    toward = jnp.where((z_near < z0) == rising, 1.0, -1.0).astype(dtype)
    anywhere = jnp.asarray(
        min(max(0.0, lower + 1), upper - 1) if upper - lower > 2 else (lower + upper) / 2, dtype
    )
    reach = jnp.sqrt(jnp.minimum(cost(near, z_near), cost(anywhere, f(anywhere))))
    reach = jnp.minimum(reach, _HUGE)
    far = jnp.clip(x0 + toward * reach, lower, upper)

    def preimage(z):
        z = jnp.clip(z, bottom, top)
        if curve.inverse is not None:
            x = curve.inverse(z)
        else:
            x = _bisect(curve, z, near, far, rising)
        return jnp.clip(x, jnp.minimum(near, far), jnp.maximum(near, far))

    stop = preimage(z0)
    z_stop = f(stop)
    reach = 1.25 * jnp.sqrt(jnp.minimum(reach**2, cost(stop, z_stop)) / ratio)
    start = jnp.where(
        jnp.abs(z_near - z0) > reach, preimage(z0 + jnp.clip(z_near - z0, -reach, reach)), near
    )
    rise = jnp.clip(f(start), -_HUGE, _HUGE) - z_stop

    # From here on in u = ± x, which ascends from the start to the stop.
    first, last = toward * start, toward * stop
    points = _merge(
        [first + (last - first) * t for t in _FRACTIONS],
        [jnp.clip(toward * preimage(z_stop + rise * t), first, last) for t in reversed(_FRACTIONS)],
    )
    # The inverse has errors; the last minimum may lie a little beyond the stop.
    end = toward * jnp.clip(stop + toward * (last - first) / 16, lower, upper)

    def slopes(u):
        x = toward * u
        d, dd = jax.jvp(curve.derivative, (x,), (jnp.ones_like(x),))
        gap = f(x) - z0
        return toward * (x - x0 + ratio * d * gap), 1 + ratio * (d * d + gap * dd)

    def sample(u):
        x = toward * u
        z = f(x)
        slope = toward * (x - x0 + ratio * curve.derivative(x) * (z - z0))
        noise = 1e-5 * (jnp.abs(x0 * (x - x0)) + ratio * jnp.abs(z0 * (z - z0)))
        return u, slope, cost(x, z), noise

    u_before, slope_before, cost_before, _ = sample(first)
    found = [~(slope_before < 0)]
    for u, slope, here, noise in map(sample, [*points, last]):
        # Simpson's rule for the cost turned round: the slope at the middle of the cell, which
        # betrays a minimum and a maximum between two slopes of one sign.
        width = u - u_before
        middle = 0.75 * (here - cost_before) - 0.25 * (slope + slope_before) * width
        descends = (slope_before < 0) | (middle < -noise)
        ascends = ~(slope < 0) | (middle > noise)
        found.append(descends & ascends)
        u_before, slope_before, cost_before = u, slope, here
    found.append(slope_before < 0)
    ends = [first, first, *points, last, end]

    def minimum(weights):
        # The cell of the largest weight. XLA would repeat all of the above for either end of it,
        # were there not the logarithm, which is too dear to repeat.
        which = jnp.log2(sum(jnp.where(f, w, 0.0) for f, w in zip(found, weights, strict=True)) + 0.5)
        low = high = first
        for i in range(len(found)):
            low, high = jnp.where(which > i, ends[i], low), jnp.where(which > i, ends[i + 1], high)
        return low, high

    weights = [2.0**i for i in range(len(found))]
    low,high=minimum(weights)
    u = bracketed_newton(slopes, low, high, 0.5 * (low + high), steps=_STEPS)
    ends=ends[::-1]
    found=found[::-1]
    high,low=minimum(weights)
    u2 = bracketed_newton(slopes, low, high, 0.5 * (low + high), steps=_STEPS)

    return toward*u,toward*u2


def _bisect(curve: Curve, z: Array, near: Array, far: Array, rising: Array) -> Array:
    sign = jnp.where(rising, 1.0, -1.0).astype(z.dtype)

    def residual(x):
        return sign * (curve.value(x) - z), sign * curve.derivative(x)

    low, high = jnp.minimum(near, far), jnp.maximum(near, far)
    return bracketed_newton(residual, low, high, 0.5 * (low + high), steps=24)


TANH = Curve(jnp.tanh, slope=lambda x: 1 - jnp.tanh(x) ** 2, inverse=lambda z: jnp.sign(z) * 0.5 * jnp.log1p(2 * jnp.abs(z) / (1 - jnp.abs(z))))
LOGISTIC = Curve(
    jax.nn.sigmoid,
    inverse=lambda z: jnp.log(z / (1 - z)),
)
EXP = Curve(jnp.exp, slope=jnp.exp, inverse=jnp.log)
LOG = Curve(jnp.log, inverse=jnp.exp, domain=(0.0, inf))
