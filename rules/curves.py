"""The nearest points of the graphs of scalar functions, elementwise.

Everything here answers one question: which ``x`` minimises

    wx·(x − x0)² + wz·(f(x) − z0)² .

The answer is the global one. A function is given as a :class:`Curve`, and :func:`nearest_on_curve`
solves it. `pjax_trace.rules.closed_forms` answers for functions of which more is known.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import copysign, inf, isfinite
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.rules.roots import bisect, cheapest

__all__ = ["EXP", "LOG", "LOGISTIC", "TANH", "Curve", "Numbers", "Weight", "nearest_on_curve"]

Numbers = Float[Array, "..."]
Weight = Numbers | float

_HUGE = 1e18  # stands for infinity: its square is finite in float32
# Of the way in x, and of the way in z, at which a curve without a split is sampled.
_ALONG = (0.0, 1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)
_ACROSS = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 15 / 16)
_REFINEMENTS = 8
_STEPS = 20
_EASY_STEPS = 4
_BLOCK = 128


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
        curvature: a bound of ``|f''|``, or a function that maps x0 and z0 to one on the way from x0
            to the preimage of z0. Easy points then take a shortcut, ten times faster.
        split: maps ``z0`` to the point at which the second derivative of ``(f(x) − z0)²`` is least,
            if it falls before that point and rises after it, but perhaps for a first rise next to
            the preimage of ``z0``; NaN where it only falls, or rises first, on the way from that
            preimage. On either side there is then at most one local minimum of the distance, and
            no need to search for them.
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
    curvature: float | Callable[[Array, Array], Array] | None = None
    split: Callable[[Array, Array], Array] | None = None
    antiperiod: float | None = None

    def tangent(self, x: Numbers) -> Numbers:
        """The slope of the graph at ``x``."""
        if self.slope is not None:
            return self.slope(x)
        return jax.jvp(self.value, (x,), (jnp.ones_like(x),))[1]


def nearest_on_curve(curve: Curve, x0: Numbers, z0: Numbers, wx: Weight, wz: Weight) -> Numbers:
    """The argmin over ``x`` of ``wx (x − x0)² + wz (f(x) − z0)²``, elementwise and global.

    On a monotone piece the nearest point lies between ``x0`` and the preimage of ``z0``: beyond
    either both terms grow. On the way from the one to the other the first term grows and the
    second falls, so that a known distance R excludes all points where either exceeds R². What
    remains is cut where the curve's ``split`` says; or else it is sampled, at points geometrically
    dense in ``x`` towards the near end and in ``z`` towards the far end, and the first and the
    last local minimum are bracketed. Both are polished by Newton's method, and the best of all
    pieces is kept.

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
        >>> print(nearest_on_curve(TANH, x0, z0, 1.0, 1.0).round(2))
        [ 0.26 -2.97]
    """
    if curve.antiperiod is not None:
        # Reduced in two parts, the first of them exact: sin keeps its digits at 1e4.
        coarse = round(128 * curve.antiperiod) / 128
        turns = jnp.floor((x0 - curve.domain[0]) / curve.antiperiod)
        reduced = (x0 - turns * coarse) - turns * (curve.antiperiod - coarse)
        sign = 1 - 2 * (turns % 2)
        wave = replace(curve, antiperiod=None)
        return x0 + (nearest_on_curve(wave, reduced, sign * z0, wx, wz) - reduced)

    ratio = jnp.broadcast_to(jnp.clip(jnp.asarray(wz / wx, x0.dtype), 1e-20, 1e20), x0.shape)
    ends = _ends(curve, x0.dtype)
    if curve.curvature is None:
        return _anywhere(curve, ends, x0, z0, ratio)

    # Where the residual at x0 is small against the radius of curvature, the distance is convex
    # wherever it is no greater than at x0, and Newton from there is all there is to do.
    near = jnp.clip(x0, ends[0], ends[-1])
    residual = curve.value(near) - z0
    bound = curve.curvature(near, z0) if callable(curve.curvature) else curve.curvature

    def newton(x):
        half, bend = _stationarity(curve, x0, z0, ratio, x)
        return jnp.clip(x - half / bend, ends[0], ends[-1])

    before = jax.lax.fori_loop(0, _EASY_STEPS - 1, lambda _, x: newton(x), near)
    x = newton(before)
    rounding = 4 * float(jnp.finfo(x.dtype).eps) * jnp.abs(x)
    still = jnp.abs(x - before) <= 1e-3 * jnp.abs(x - x0) + rounding
    easy = still & (2 * ratio * bound * jnp.abs(residual) < 1)  # False for NaN
    return _redo(partial(_anywhere, curve, ends), ~easy, x, x0, z0, ratio)


def _redo(solve: Callable[..., Array], where: Array, x: Array, *arguments: Array) -> Array:
    """``x`` with ``solve(*arguments)`` in the places given, a few of them at a time."""
    size = x.size
    batch = min(size, max(64, -(-size // 16)))

    def redone():
        columns = jnp.stack([jnp.ravel(a) for a in arguments])
        chosen = where.ravel()
        count = jnp.sum(chosen, dtype=jnp.int32)
        rank = jnp.where(chosen, _count_before(chosen.astype(jnp.int32)), size + batch)
        places = jnp.full(size + batch, size, jnp.int32)
        places = places.at[rank].set(jnp.arange(size, dtype=jnp.int32), mode="drop")

        def some(state):
            start, x = state
            index = jax.lax.dynamic_slice_in_dim(places, start, batch)
            found = solve(*columns.at[:, index].get(mode="clip"))
            return start + batch, x.at[index].set(found, mode="drop")

        state = (jnp.zeros_like(count), x.ravel())
        return jax.lax.while_loop(lambda s: s[0] < count, some, state)[1].reshape(x.shape)

    return jax.lax.cond(jnp.any(where), redone, lambda: x)


def _count_before(counts: Array) -> Array:
    """The sum of all counts before each.

    In blocks, by a product of matrices: XLA takes a fraction of the time that it takes to compile
    a cumulative sum, and to run it on a CPU.
    """
    size = counts.size
    if size <= _BLOCK or size >= 2**24:  # up to where float32 counts exactly
        return jnp.cumsum(counts) - counts
    blocks = jnp.pad(counts, (0, -size % _BLOCK)).reshape(-1, _BLOCK)
    before = jnp.triu(jnp.ones((_BLOCK, _BLOCK), jnp.float32), 1)
    inside = jnp.matmul(blocks.astype(jnp.float32), before, precision="highest")
    starts = _count_before(jnp.sum(blocks, axis=1, dtype=counts.dtype))
    return (starts[:, None] + inside.astype(counts.dtype)).ravel()[:size]


def _anywhere(curve: Curve, ends: list[float], x0: Array, z0: Array, ratio: Array) -> Array:
    """The best of the local minima on all pieces, and of the ends of the domain.

    At an end the distance may still fall, so that no root of its derivative leads there exactly.
    """
    minima = partial(_local_minima, curve, x0, z0, ratio)
    if len(ends) == 2:
        found = minima(*ends)
    else:
        sides = (jnp.asarray(side, x0.dtype) for side in (ends[:-1], ends[1:]))
        found = jax.vmap(minima)(*sides).reshape(-1, *x0.shape)
    bounds = [jnp.full_like(x0, end) for end in (ends[0], ends[-1]) if abs(end) < _HUGE]
    found = jnp.concatenate([found, *(bound[None] for bound in bounds)])
    distance = jax.vmap(lambda x: (x - x0) ** 2 + ratio * (curve.value(x) - z0) ** 2)(found)
    return cheapest(list(distance), list(found))


def _stationarity(curve, x0, z0, ratio, x):
    """Half the derivative of the squared distance in ``x``, divided by wx; and its derivative.

    Rounding error counts as zero, lest it look like progress.
    """
    z = curve.value(x)
    residual = z - z0
    slope, bend = jax.jvp(curve.tangent, (x,), (jnp.ones_like(x),))
    pull = ratio * slope
    half = x - x0 + pull * residual
    size = jnp.abs(x) + jnp.abs(pull) * (jnp.abs(z) + jnp.abs(z0))
    half = jnp.where(jnp.abs(half) <= 0.5 * float(jnp.finfo(x.dtype).eps) * size, 0, half)
    return half, 1 + ratio * (slope * slope + residual * bend)


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


def _local_minima(
    curve: Curve, x0: Array, z0: Array, ratio: Array, lower: Any, upper: Any
) -> Array:
    """The first and the last minimum of the distance on the way from x0 to the preimage of z0."""
    dtype = x0.dtype
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    lower, upper = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)

    def cost(x, z):
        return (x - x0) ** 2 + ratio * (z - z0) ** 2

    # The range of the piece, without its ends, where an inverse may be infinite.
    sides = [jnp.clip(curve.value(x), -_HUGE, _HUGE) for x in (lower, upper)]
    rising = sides[0] < sides[1]
    bottom, top = jnp.minimum(*sides), jnp.maximum(*sides)
    margin = tiny / eps
    bottom = bottom + jnp.maximum(margin, eps * jnp.abs(bottom))
    top = top - jnp.maximum(margin, eps * jnp.abs(top))

    # The two ends of the way; neither term need exceed the distance of a point known.
    near = jnp.clip(x0, lower, upper)
    z_near = curve.value(near)
    inset = jnp.minimum(1.0, 0.5 * (upper - lower))
    middle = jnp.clip(0.0, lower + inset, upper - inset)
    known = jnp.minimum(cost(near, z_near), cost(middle, curve.value(middle)))
    within = jnp.minimum(1.001 * jnp.sqrt(known), _HUGE)

    def preimage(z, one, other):
        z, low, high = jnp.clip(z, bottom, top), jnp.minimum(one, other), jnp.maximum(one, other)
        if curve.inverse is not None:
            return jnp.clip(curve.inverse(z), low, high)
        return bisect(lambda x: (curve.value(x) < z) == rising, low, high, steps=32)

    if curve.inverse is None:
        # XLA computes z_near afresh where it is read, and may round it differently: of a point of
        # the graph, two readers would go two ways. What comes out of a loop is the same for all.
        stop = preimage(z0, *(jnp.clip(x0 + s * within, lower, upper) for s in (-1, 1)))
        toward = jnp.where(stop < near, -1.0, 1.0).astype(dtype)
    else:
        toward = jnp.where((z_near < z0) == rising, 1.0, -1.0).astype(dtype)
        stop = preimage(z0, near, jnp.clip(x0 + toward * within, lower, upper))
    z_stop = curve.value(stop)
    known = jnp.minimum(jnp.minimum(known, cost(stop, z_stop)), _HUGE**2)
    reach = 1.25 * jnp.sqrt(known / ratio)
    cut = preimage(z0 + jnp.clip(z_near - z0, -reach, reach), near, stop)
    start = jnp.where(jnp.abs(z_near - z0) > reach, cut, near)

    # From here on in u = ±x, which ascends on the way.
    first, last = toward * start, toward * stop
    end = toward * jnp.clip(stop + toward * (last - first) / 16, lower, upper)  # inverses err
    ascending = Curve(
        lambda u: curve.value(toward * u), lambda u: toward * curve.tangent(toward * u)
    )
    stationarity = partial(_stationarity, ascending, toward * x0, z0, ratio)

    if curve.split is not None:
        split = toward * curve.split(z0, -toward)
        split = jnp.where(jnp.isnan(split), first, jnp.clip(split, first, last))
    else:
        points = jax.vmap(lambda t: first + (last - first) * t)(jnp.asarray(_ALONG, dtype))
        if curve.inverse is not None:
            rise = jnp.clip(curve.value(start), -_HUGE, _HUGE) - z_stop
            across = jax.vmap(lambda t: toward * preimage(z_stop + rise * t, start, stop))
            points = jnp.concatenate([points, across(jnp.asarray(_ACROSS, dtype))])

        def explore(k, best):
            u, least = best
            t = 0.5 ** (0.5 * (k - len(points)).astype(dtype) + 1)
            finer = u + (jnp.where(k % 2, first, last) - u) * t
            u_new = jnp.where(k < len(points), points[jnp.minimum(k, len(points) - 1)], finer)
            # The second derivative of (f − z0)² / 2.
            slope, bend = jax.jvp(ascending.tangent, (u_new,), (jnp.ones_like(u),))
            new = slope * slope + (ascending.value(u_new) - z0) * bend
            return jnp.where(new < least, u_new, u), jnp.fmin(new, least)

        best = (first, jnp.full_like(first, inf))
        split, _ = jax.lax.fori_loop(0, len(points) + 2 * _REFINEMENTS, explore, best)

    # If the distance is convex even there, it is so on the whole way.
    convex = stationarity(split)[1] > 0
    lows = jnp.stack([first, jnp.where(convex, first, split)])
    highs = jnp.stack([jnp.where(convex, end, split), end])

    inward = jnp.asarray([1.0, -1.0], dtype).reshape(2, *(1,) * x0.ndim)
    starts = jnp.clip(jnp.stack([first, last]), lows, highs)
    return toward[None] * _descend(jax.vmap(stationarity), lows, highs, starts, inward)


def _descend(stationarity, lower, upper, u, inward):
    """The minima of the distance in brackets, if there are any; otherwise where it is flattest.

    Newton's method for the root of its derivative, nearest to the outer end of the bracket: that is
    the lower end where ``inward`` is 1, the upper one where it is −1.
    """

    def step(state):
        k, u, lower, upper, before = state
        value, bend = stationarity(u)
        # Where the distance is concave, the minimum is farther out; but there is none if the
        # tangent says so, towards which the derivative curves.
        concave = bend <= 0
        width = jnp.where(inward > 0, u - lower, upper - u)
        settled = (value == 0) | ~(bend < inf) | (concave & (inward * value < bend * width))
        high = jnp.where(concave, inward, value) > 0
        lower, upper = jnp.where(high, lower, u), jnp.where(high, u, upper)
        newton = u - value / bend
        # A step that is hardly shorter than the one before crawls, or cycles: halve the bracket.
        good = ~concave & (newton >= lower) & (newton <= upper)
        good &= 2 * jnp.abs(newton - u) <= before
        moved = jnp.where(good, newton, 0.5 * (lower + upper))
        moved = jnp.where(settled, u, moved)
        return k + 1, moved, lower, upper, jnp.abs(moved - u)

    def unfinished(state):
        return (state[0] < _STEPS) & jnp.any(state[-1] > 0)

    state = (jnp.zeros((), jnp.int32), u, lower, upper, 4 * (upper - lower))
    return jax.lax.while_loop(unfinished, step, state)[1]


def _artanh(z: Array) -> Array:
    return jnp.sign(z) * 0.5 * jnp.log1p(2 * jnp.abs(z) / (1 - jnp.abs(z)))


def _split_tanh(z0: Array, side: Array) -> Array:
    """The largest root t = tanh x of 6t³ − 3 z0 t² − 4t + z0, where x0 is on the right."""
    z = jnp.clip(side * z0, -1e6, 1.0)
    t = 0.57735 + 0.42265 / (1 + (1 - z) * (0.5915 + 0.16 * (1 - z)))  # to a hundredth
    for _ in range(2):
        t = t - (((6 * t - 3 * z) * t - 4) * t + z) / ((18 * t - 6 * z) * t - 4)
    return side * _artanh(jnp.minimum(t, 1.0))


TANH = Curve(
    jnp.tanh,
    slope=lambda x: 1 - jnp.tanh(x) ** 2,
    inverse=_artanh,
    split=_split_tanh,
    curvature=4 / 27**0.5,
)
LOGISTIC = Curve(
    jax.lax.logistic,
    inverse=lambda z: jnp.log(z / (1 - z)),
    split=lambda z, side: 2 * _split_tanh(2 * z - 1, side),
    curvature=1 / 108**0.5,
)
EXP = Curve(
    jnp.exp,
    slope=jnp.exp,
    inverse=jnp.log,
    split=lambda z, _: jnp.log(0.25 * jnp.maximum(z, 1e-37)),
    curvature=lambda x, z: jnp.maximum(jnp.exp(x), z),
)
LOG = Curve(
    jnp.log,
    inverse=jnp.exp,
    domain=(0.0, inf),
    split=lambda z, _: jnp.exp(z + 1.5),
    curvature=lambda x, z: jnp.maximum(1 / (x * x), jnp.exp(-2 * z)),
)
