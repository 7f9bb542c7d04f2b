"""The nearest points of particular graphs of scalar functions, elementwise.

As in `pjax_trace.rules.curves`, the question is which ``x`` minimises

    wx·(x − x0)² + wz·(f(x) − z0)² ,

and the answer is the global one. Points, weights and answers are those of `nearest_on_curve`.
``relu``, ``abs``, ``square`` and piecewise linear functions have closed forms; powers and ``tan``
are solved as curves, on the branches that come into question.
"""

from collections.abc import Sequence
from functools import partial
from math import inf, pi

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.rules.curves import Curve, Numbers, Weight, nearest_on_curve

__all__ = [
    "nearest_abs",
    "nearest_on_lines",
    "nearest_on_power",
    "nearest_on_tan",
    "nearest_relu",
    "nearest_square",
]


def nearest_relu(
    x0: Numbers, z0: Numbers, wx: Weight, wz: Weight, threshold: Numbers | float = 0.0
) -> Numbers:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (max(x, threshold) − z0)²``, elementwise.

    The nearer of the two rays' nearest points; of two equally near ones, that on ``z = x``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.closed_forms import nearest_relu
        >>> x0, z0 = jnp.array([1.0, -3.0, -1.0]), jnp.array([2.0, 1.0, 5.0])
        >>> print(nearest_relu(x0, z0, 1.0, 1.0))
        [ 1.5 -3.   2. ]
    """
    rising = jnp.maximum(x0 + wz / (wx + wz) * (z0 - x0), threshold)
    flat = jnp.minimum(x0, threshold)
    rising_cost = wx * (rising - x0) ** 2 + wz * (rising - z0) ** 2
    flat_cost = wx * (flat - x0) ** 2 + wz * (threshold - z0) ** 2
    return jnp.where(flat_cost < rising_cost, flat, rising)


def nearest_abs(x0: Numbers, z0: Numbers, wx: Weight, wz: Weight) -> Numbers:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (|x| − z0)²``, elementwise.

    The graph is symmetric, so ``x`` is on the side of ``x0``; on the right one at ``x0 = 0``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.closed_forms import nearest_abs
        >>> print(nearest_abs(jnp.array([-1.0, 1.0]), jnp.array([2.0, -2.0]), 1.0, 1.0))
        [-1.5  0. ]
    """
    size = jnp.abs(x0)
    nearest = jnp.maximum(size + wz / (wx + wz) * (z0 - size), 0.0)
    return jnp.where(x0 < 0, -nearest, nearest)


def nearest_square(x0: Numbers, z0: Numbers, wx: Weight, wz: Weight) -> Numbers:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (x² − z0)²``, elementwise.

    The graph is symmetric, so ``x`` is on the side of ``x0``; on the right one at ``x0 = 0``.
    There it is the only positive root of ``x³ + (a − z0) x − a |x0|``, a = wx / (2 wz).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.closed_forms import nearest_square
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


def nearest_on_lines(
    knots: tuple[float, ...],
    slopes: tuple[float, ...],
    through: tuple[float, float],
    x0: Numbers,
    z0: Numbers,
    wx: Weight,
    wz: Weight,
) -> Numbers:
    """The nearest point of a continuous, piecewise linear graph, elementwise.

    The argmin over ``x`` of ``wx (x − x0)² + wz (f(x) − z0)²``: the nearest of the nearest points
    of all segments; of equally near ones, the last. The slope changes at the ``knots``, which
    ascend; ``slopes`` are those between them, one more; and ``through`` is a point of the first
    line, if it were extended.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.closed_forms import nearest_on_lines
        >>> x0, z0 = jnp.array([1.0, 8.0, 5.0]), jnp.array([3.0, 5.0, -9.0])
        >>> print(nearest_on_lines((0.0, 6.0), (0.0, 1.0, 0.0), (0.0, 0.0), x0, z0, 1.0, 1.0))
        [2. 8. 0.]
    """
    ratio = wz / wx
    offset = through[1] - slopes[0] * through[0]
    best, least = x0, jnp.full_like(x0, inf)
    ends = (-inf, *knots, inf)
    for i, slope in enumerate(slopes):
        if i:
            offset += (slopes[i - 1] - slope) * knots[i - 1]
        share = ratio * slope / (1 + ratio * slope * slope)
        x = jnp.clip(x0 + share * (z0 - (slope * x0 + offset)), ends[i], ends[i + 1])
        distance = jnp.square(x - x0) + ratio * jnp.square(slope * x + offset - z0)
        best = jnp.where(distance <= least, x, best)
        least = jnp.minimum(distance, least)
    return best


def nearest_on_power(
    exponent: float | Numbers,
    x0: Numbers,
    z0: Numbers,
    wx: Weight,
    wz: Weight,
    *,
    odd: bool = False,
) -> Numbers:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (x^c − z0)²``, elementwise and global.

    The exponent c is a number, or an array of the points' shape. The power is taken where it is
    real: for all ``x ≠ 0`` if c is an integer, for positive ones otherwise; with ``odd``, which is
    for numbers c, it is continued to negative ones as an odd function.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.closed_forms import nearest_on_power
        >>> x0, z0 = jnp.array([-2.0, 0.5]), jnp.array([-8.0, 0.125])
        >>> print(nearest_on_power(3, x0, z0, 1.0, 1.0).round(3))
        [-2.   0.5]
    """
    known = not isinstance(exponent, jax.Array)
    c = exponent if known else jnp.where(exponent == 0, 1, exponent).astype(x0.dtype)

    def split(z, _):
        # ((x^c − z0)²)‴ has the sign of c (c − 1) (2 (2c − 1) x^c − z0 (c − 2)).
        level = z * (c - 2) / jnp.where(jnp.asarray(c) == 0.5, 1, 2 * (2 * c - 1))
        inner = (level > 0) & ((c < 0.5) | (c >= 1))
        outer = jnp.where(jnp.asarray(c) < 0, inf, 0.0)
        return jnp.where(inner, jnp.power(jnp.where(inner, level, 1.0), 1 / c), outer)

    curve = Curve(
        lambda x: x**c,
        slope=lambda x: c * x ** (c - 1),
        inverse=lambda z: jnp.maximum(z, float(jnp.finfo(z.dtype).tiny)) ** (1 / c),
        domain=(0.0, inf),
        split=split,
    )
    solve = partial(nearest_on_curve, curve, wx=wx, wz=wz)
    if known:
        integer = c == int(c)
        if c == 0:
            return x0
        if not odd and not integer:
            return solve(x0, z0)
        if not odd and c % 2 == 0:
            return jnp.where(x0 < 0, -1.0, 1.0) * solve(jnp.abs(x0), z0)
        flip, mirrored = -1.0, True
    else:
        flip = jnp.where(c % 2 == 1, -1.0, 1.0)
        mirrored = c == jnp.round(c)
    right, left, closer = _either(curve, (x0, -x0), (z0, flip * z0), wx, wz)
    x = jnp.where(mirrored & closer, -left, right)
    return x if known else jnp.where(exponent == 0, x0, x)


def nearest_on_tan(x0: Numbers, z0: Numbers, wx: Weight, wz: Weight) -> Numbers:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (tan(x) − z0)²``, elementwise and global.

    It is on the branch of ``x0`` or on the one that is next to it.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.closed_forms import nearest_on_tan
        >>> print(nearest_on_tan(jnp.array([1.5, 3.0]), jnp.array([-9.0, 0.0]), 1.0, 1.0).round(2))
        [1.68 3.07]
    """
    turns = jnp.round(x0 / pi)
    reduced = (x0 - turns * 3.140625) - turns * (pi - 3.140625)  # the first part is exact
    other = reduced - jnp.where(reduced < 0, -pi, pi)
    own, next_, closer = _either(_TAN, (reduced, other), (z0, z0), wx, wz)
    return x0 + jnp.where(closer, next_ - other, own - reduced)


def _either(
    curve: Curve, starts: Sequence[Array], targets: Sequence[Array], wx: Weight, wz: Weight
) -> tuple[Array, Array, Array]:
    """The nearest points to two points each, and whether the second one is closer to its own."""

    def nearest(start: Array, target: Array) -> tuple[Array, Array]:
        x = nearest_on_curve(curve, start, target, wx, wz)
        return x, jnp.square(x - start) + wz / wx * jnp.square(curve.value(x) - target)

    (one, other), (cost, cost_of_other) = jax.vmap(nearest)(jnp.stack(starts), jnp.stack(targets))
    return one, other, cost_of_other < cost


def _split_tan(z0: Array, _: Array) -> Array:
    """The root t = tan x of 12t³ − 6 z0 t² + 8t − 2 z0."""
    z = jnp.clip(jnp.abs(z0), 0, 1e6)
    t = 0.5 * z
    for _step in range(5):
        t = t - (((12 * t - 6 * z) * t + 8) * t - 2 * z) / ((36 * t - 12 * z) * t + 8)
    return jnp.sign(z0) * jnp.arctan(t)


_TAN = Curve(
    jnp.tan,
    slope=lambda x: 1 + jnp.square(jnp.tan(x)),
    inverse=jnp.arctan,
    domain=(-pi / 2, pi / 2),
    split=_split_tan,
)
