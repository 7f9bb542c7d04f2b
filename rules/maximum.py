"""Maxima and minima: max, min and clamp of two operands, and over axes.

A maximum has a closed form up to one unknown, the value that comes out: what exceeds it is lowered
to it, and if nothing reaches it, the largest operand is raised. Minima are maxima of what is
negated.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import (
    Arrays,
    Flags,
    Moment,
    Params,
    Projection,
    Rule,
    Weights,
    projection_of,
)
from pjax_trace.rules.closed_forms import nearest_relu
from pjax_trace.rules.linear import over_mapped_axes
from pjax_trace.translation import Outcome, Project, Rewrite, Translation, rewriting

__all__ = [
    "REDUCE_MAX",
    "Clamp",
    "Maximum",
    "ReduceMax",
    "finite_distance",
    "nearest_clamped",
    "nearest_heights",
    "nearest_maximum",
    "negated",
]


def nearest_maximum(
    x0: Array, y0: Array, z0: Array, wx: Any, wy: Any, wz: Any
) -> tuple[Array, Array]:
    """The argmin over ``(x, y)`` of the distance to ``z = max(x, y)``, elementwise and global.

    The distance is ``wx (x − x0)² + wy (y − y0)² + wz (max(x, y) − z0)²``. With x on top, z = x is
    the mean of x0 and z0, or of all three if that is below y0, and y = min(y0, z). The nearer of
    this and its mirror image is the nearest point; x is on top if they are equally near.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.maximum import nearest_maximum
        >>> x0, y0, z0 = jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.array([3.0, -5.0])
        >>> x, y = nearest_maximum(x0, y0, z0, 1, 1, 1)
        >>> x.tolist(), y.tolist()
        ([2.0, -1.0], [0.0, -1.0])
    """

    def with_top(top: Array, other: Array, w: Any, w_other: Any) -> tuple[Array, Array, Array]:
        z = top + wz / (w + wz) * (z0 - top)
        z = jnp.where(z < other, z + w_other / (w + w_other + wz) * (other - z), z)
        low = jnp.minimum(other, z)
        cost = w * (z - top) ** 2 + w_other * (low - other) ** 2 + wz * (z - z0) ** 2
        return z, low, cost

    x_top, y_low, x_cost = with_top(x0, y0, wx, wy)
    y_top, x_low, y_cost = with_top(y0, x0, wy, wx)
    other = y_cost < x_cost
    return jnp.where(other, x_low, x_top), jnp.where(other, y_top, y_low)


def nearest_clamped(x0: Array, z0: Array, wx: Any, wz: Any, lower: Array, upper: Array) -> Array:
    """The argmin over x of ``wx (x − x0)² + wz (clamp(x) − z0)²``, elementwise and global.

    The nearest of three: of the points between the bounds, of those above and of those below.
    """
    between = jnp.clip(x0 + wz / (wx + wz) * (z0 - x0), lower, upper)
    best, least = between, jnp.full_like(x0, jnp.inf)
    for x in (between, jnp.minimum(x0, lower), jnp.maximum(x0, upper)):
        cost = wx * (x - x0) ** 2 + wz * (lax.clamp(lower, x, upper) - z0) ** 2
        best, least = jnp.where(cost < least, x, best), jnp.minimum(cost, least)
    return best


class Maximum(Rule):
    """max of two variables, or of a variable and data, which is relu with a threshold."""

    family = "extremum"
    kinked = True
    exactness = "exact, closed form"
    elementwise = True

    def apply(self, params: Params, *operands: Array) -> Array:
        return lax.max(*operands)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (x, y), (wx, wy) = operands, weights.operands
        if wy is None:
            nearest = nearest_relu(x, out, wx, weights.out, y)
            moved = jnp.where(y == jnp.inf, x, nearest), y  # the maximum is infinite, whatever x is
        else:
            moved = nearest_maximum(x, y, out, wx, wy, weights.out)
        return projection_of(operands, out, weights, moved, lax.max(*moved))


class Clamp(Rule):
    """clamp between data: the operands are a lower bound, the variable and an upper bound."""

    family = "extremum"
    kinked = True
    exactness = "exact, closed form"
    elementwise = True

    def apply(self, params: Params, *operands: Array) -> Array:
        return lax.clamp(*operands)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        lower, x, upper = operands
        x = nearest_clamped(x, out, weights.operands[1], weights.out, lower, upper)
        moved_out = lax.clamp(lower, x, upper)
        return projection_of(operands, out, weights, (lower, x, upper), moved_out)


def finite_distance(weight: Any, moved: Array, start: Array) -> Array:
    """`squared_distance`, where what is infinite has not moved."""
    step = jnp.where(jnp.isfinite(moved), moved - start, 0)
    return jnp.sum(weight * jnp.square(step))


def nearest_heights(
    above: Callable[[Array], tuple[Array, Array]],
    top: Array,
    out: Array,
    weight: Any,
    out_weight: Array,
    size: int,
) -> Array:
    """The argmin over t of ``Σ ω (x' − x)² + ω_z (t − z0)²``, ``t = max x'``, for every row.

    With z0 above all x, the largest alone is raised: t is the weighted mean of both. Otherwise t is
    the root of ``ω_z (t − z0) − ω Σ (x − t)₊``, which is concave and rises: Newton's iteration
    climbs to it from below, and has it once no more elements fall below t. It starts at the root
    for the largest element alone. Each step divides the product of value and slope by four or more
    (Dinkelbach's argument), so the number of digits bounds the number of steps.

    Args:
        above: maps t to ``Σ (x − t)₊`` and the number of x above t.
        top: the largest x; −inf in rows without elements, where t is −inf.
        out: z0.
        weight: ω, a positive scalar.
        out_weight: ω_z.
        size: the most elements that a row has.
    """
    empty = top == -jnp.inf
    top = jnp.where(empty, out, top)
    lowered = out < top
    bits = jnp.finfo(top.dtype).nmant
    bound = 1 + min(size, 2 + math.ceil(math.log2(size)) + bits // 2)

    def step(state: Any) -> Any:
        count, t, number, _ = state
        excess, now = above(t)
        newton = t + (weight * excess - out_weight * (t - out)) / (weight * now + out_weight)
        t = jnp.where(lowered, jnp.clip(newton, t, top), t)
        return count + 1, t, now, jnp.any(lowered & (now != number))

    def unfinished(state: Any) -> Any:
        return state[3] & (state[0] < bound)

    start = top + out_weight / (weight + out_weight) * (out - top)
    state = (0, jnp.where(lowered, jnp.minimum(start, top), start), jnp.ones_like(top), True)
    return jnp.where(empty, -jnp.inf, lax.while_loop(unfinished, step, state)[1])


class ReduceMax(Rule):
    """reduce_max over axes: every row lowers what exceeds a threshold, or raises its largest.

    Of equal largest elements the first is raised. Elements that are −inf, being masked, stay.
    """

    family = "extremum"
    kinked = True

    def apply(self, params: Params, *operands: Array) -> Array:
        return jnp.max(operands[0], _axes(params))

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (x,), (weight,) = operands, weights.operands
        axes = _axes(params)
        sizes = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
        size = math.prod(sizes)
        number = np.arange(size, dtype=np.int32).reshape(sizes)
        zero = jnp.zeros((), x.dtype)
        target = jnp.expand_dims(out, axes)
        out_weight = jnp.expand_dims(jnp.broadcast_to(weights.out, out.shape), axes)

        def above(t: Array) -> tuple[Array, Array]:
            # Both sums in one pass, which on a CPU is twice as fast as two.
            terms = jnp.maximum(x - t, 0), (x > t).astype(x.dtype)
            sums = lax.reduce(terms, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
            return jnp.expand_dims(sums[0], axes), jnp.expand_dims(sums[1], axes)

        # Else x may be computed twice, and its largest elements not be rounded as the maximum is.
        x = lax.optimization_barrier(x)
        top = lax.optimization_barrier(jnp.max(x, axes, keepdims=True))
        first = jnp.min(jnp.where(x == top, number, size), axes, keepdims=True)
        t = nearest_heights(above, top, target, weight, out_weight, size)
        moved = jnp.where(number == first, t, jnp.minimum(x, t))
        distance = finite_distance(weight, moved, x) + finite_distance(out_weight, t, target)
        return Projection((Moment(weight * moved, weight),), jnp.squeeze(t, axes), distance)


MAXIMUM, CLAMP, REDUCE_MAX = Maximum(), Clamp(), ReduceMax()


def negated(primitive: Any) -> Translation:
    """The minimum that corresponds to a maximum: min(x) = −max(−x)."""

    def function(params: Params, _: Any) -> Callable[..., Array]:
        return lambda *xs: lax.neg(_compat.bind(primitive, params, *map(lax.neg, xs))[0])

    return rewriting(function, "extremum", "exact, closed form")


def _max(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """The variable first, all of one shape, and no operand twice."""
    x, y = operands
    if x is y:
        return Rewrite(lambda x, _: x)
    if x.shape != y.shape:
        return Rewrite(lambda *xs: lax.max(*jnp.broadcast_arrays(*xs)))
    if not variable[0]:
        return Rewrite(lambda x, y: lax.max(y, x))
    return Project(MAXIMUM)


def _clamp(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """Bounds of the shape of what is clamped; with a variable bound it is a min of a max."""

    def between(*xs: Array) -> Array:
        lower, x, upper = jnp.broadcast_arrays(*xs)
        return lax.min(lax.max(x, lower), upper)

    if tuple(variable) != (False, True, False):
        return Rewrite(between)
    if len({operand.shape for operand in operands}) > 1:
        return Rewrite(lambda *xs: lax.clamp(*jnp.broadcast_arrays(*xs)))
    return Project(CLAMP)


def _axes(params: Params) -> tuple[int, ...]:
    return tuple(int(axis) for axis in params["axes"])


def _reduce_max(params: Params, operands: Sequence[Any], _: Sequence[bool]) -> Outcome:
    """The maximum of one element is that element."""
    shape, axes = operands[0].shape, _axes(params)
    if math.prod(shape[axis] for axis in axes) == 1:
        return Rewrite(lambda x: lax.squeeze(x, axes))
    return Project(REDUCE_MAX, params)


register_rule(
    lax.max_p,
    Translation(_max, of=MAXIMUM),
    cases=[
        Case(lax.max, ((3,), (3,))),
        Case(lambda x: lax.max(x, jnp.array([-0.5, 0.0, -jnp.inf], x.dtype)), ((3,),)),
        Case(lambda x: lax.max(jnp.asarray(0.5, x.dtype), x), ((3,),)),
    ],
)
register_rule(lax.min_p, negated(lax.max_p), cases=[Case(lax.min, ((3,), (3,)))])
register_rule(
    lax.clamp_p,
    Translation(_clamp, of=CLAMP),
    cases=[Case(lambda x: lax.clamp(-0.5, x, 1.0), ((3,),))],
    note="with a variable bound, a min of a max",
)
register_rule(
    lax.reduce_max_p,
    Translation(_reduce_max, of=REDUCE_MAX),
    cases=[
        Case(lambda x: jnp.max(x, 1), ((2, 4),)),
        Case(lambda x: jnp.max(x, (0, 2)), ((2, 2, 2),), centre=1.0),
    ],
)
register_rule(
    lax.reduce_min_p, negated(lax.reduce_max_p), cases=[Case(lambda x: jnp.min(x, 0), ((4, 2),))]
)
register_rule(
    lax.pmax_p,
    over_mapped_axes(jnp.max, "maximum", REDUCE_MAX),
    cases=[Case(lambda x: jax.vmap(lambda r: lax.pmax(r, "i"), axis_name="i")(x), ((4, 2),))],
    note="over the axis of a vmap",
)
register_rule(
    lax.pmin_p,
    over_mapped_axes(jnp.min, "minimum", REDUCE_MAX),
    cases=[Case(lambda x: jax.vmap(lambda r: lax.pmin(r, "i"), axis_name="i")(x), ((4, 2),))],
    note="over the axis of a vmap",
)
