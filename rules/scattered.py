"""Maxima and minima of what data put in the same place: ``x.at[i].max(u)``, segments of graphs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.custom import call, function_p
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Arrays, Moment, Params, Projection, Rule, Weights
from pjax_trace.rules.closed_forms import nearest_relu
from pjax_trace.rules.maximum import finite_distance, nearest_heights
from pjax_trace.translation import Rewrite, Translation

__all__ = ["SEGMENT_MAX", "SegmentMax"]


class SegmentMax(Rule):
    """The maxima of the elements of each segment, and of a lower bound.

    Operands are the elements, the number of the segment of each (elements of other numbers belong
    to none), and a bound for each segment; the last two are data. A segment without elements is its
    bound. Otherwise as `pjax_trace.rules.maximum.ReduceMax`.
    """

    family = "extremum"
    movable = 1
    kinked = True

    def apply(self, params: Params, *operands: Array) -> Array:
        x, segments, bound = operands
        return bound.at[segments].max(x, mode="drop")

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (x, segments, bound), weight = operands, weights.operands[0]
        count, size = len(bound), max(len(x), 1)

        def sums(y: Array) -> Array:
            return jnp.zeros(count, y.dtype).at[segments].add(y, mode="drop")

        def of_each(y: Array) -> Array:
            return y.at[segments].get(mode="fill", fill_value=jnp.inf)

        def above(t: Array) -> tuple[Array, Array]:
            limit = of_each(t)
            over = x > limit
            return sums(jnp.where(over, x - limit, 0)), sums(over.astype(x.dtype))

        top = jnp.full(count, -jnp.inf, x.dtype).at[segments].max(x, mode="drop")
        number = jnp.arange(len(x), dtype=jnp.int32)
        tops = jnp.where(x == of_each(top), number, size)
        first = jnp.full(count, size, jnp.int32).at[segments].min(tops, mode="drop")
        is_first = number == first.at[segments].get(mode="fill", fill_value=-1)
        height = nearest_heights(above, top, out, weight, weights.out, size)
        # Only where the output is above all elements may the largest rise, if not for the bound.
        filled = top > -jnp.inf
        rises = filled & (out >= top)
        start = jnp.where(rises, top, 0)
        raised = nearest_relu(start, out, weight, weights.out, jnp.where(rises, bound, -jnp.inf))
        limit = jnp.where(rises, raised, jnp.maximum(height, bound))
        limit, rises = of_each(limit), of_each(rises)
        moved = jnp.where(rises, jnp.where(is_first, limit, x), jnp.minimum(x, limit))
        moved_out = self.apply(params, moved, segments, bound)
        distance = finite_distance(weight, moved, x) + finite_distance(weights.out, moved_out, out)
        moments = (Moment(weight * moved, weight), None, None)
        return Projection(moments, moved_out, distance)


SEGMENT_MAX = SegmentMax()


def _places(params: Params, shape: tuple[int, ...], updates: Any, indices: Array) -> Array:
    """Where each update goes, in the array as a flat one; beyond its end if nowhere."""
    dims = params["dimension_numbers"]
    absent = {*dims.inserted_window_dims, *getattr(dims, "operand_batching_dims", ())}
    window = iter(updates.shape[axis] for axis in dims.update_window_dims)
    sizes = tuple(1 if axis in absent else next(window) for axis in range(len(shape)))
    numbers = lax.GatherDimensionNumbers(
        dims.update_window_dims,
        dims.inserted_window_dims,
        dims.scatter_dims_to_operand_dims,
        getattr(dims, "operand_batching_dims", ()),
        getattr(dims, "scatter_indices_batching_dims", ()),
    )
    count, mode = math.prod(shape), params["mode"]
    fill = count if mode == lax.GatherScatterMode.FILL_OR_DROP else None
    places = jnp.arange(count, dtype=jnp.int32).reshape(shape)
    return lax.gather(places, indices, numbers, sizes, mode=mode, fill_value=fill)


def _scatter_max(sign: int) -> Callable[..., Rewrite]:
    """The array is a bound, or the other operand of a maximum if it is a variable."""

    def translate(params: Params, operands: Sequence[Any], variable: Sequence[bool]) -> Rewrite:
        def function(x: Array, indices: Array, updates: Array) -> Array:
            places = _places(params, x.shape, updates, indices).reshape(-1)
            elements, own = sign * updates.reshape(-1), sign * x.reshape(-1)

            def maxima(bound: Array) -> Array:
                return call(function_p, SEGMENT_MAX, elements, places, bound, name="segment_max")

            if variable[0]:
                filled = jnp.zeros(x.size, bool).at[places].set(True, mode="drop")
                largest = maxima(jnp.where(filled, -jnp.inf, 0).astype(x.dtype))
                out = jnp.where(filled, jnp.maximum(own, largest), own)
            else:
                out = maxima(own)
            return (sign * out).reshape(x.shape)

        return Rewrite(function)

    return translate


_SEGMENTS = np.array([0, 2, 0, 2, 2])

for primitive, sign, name in ((lax.scatter_max_p, 1, "max"), (lax.scatter_min_p, -1, "min")):
    register_rule(
        primitive,
        Translation(_scatter_max(sign), of=SEGMENT_MAX),
        cases=[
            Case(lambda x, u, f=name: getattr(x.at[jnp.array([0, 2, 0])], f)(u), ((4,), (3,))),
            Case(
                lambda u, f=name: getattr(jnp.zeros((2, 2), u.dtype).at[:, jnp.array([1, 7])], f)(
                    u
                ),
                ((2, 2),),
            ),
            Case(
                lambda u, f=name: getattr(jax.ops, f"segment_{f}")(u, _SEGMENTS, 3)[_SEGMENTS],
                ((5, 2),),
            ),
        ],
    )
