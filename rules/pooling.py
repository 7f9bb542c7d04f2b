"""Maxima over windows: reduce_window_max and cumulative maxima, whose rows share elements.

Every window is a row with a maximum of its own, as in `pjax_trace.rules.maximum`. The copies of an
element that several windows read are summed, but never made.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.custom import call, function_p
from pjax_trace.linear import Jacobian
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import (
    Arrays,
    Expansion,
    Flags,
    Moment,
    Params,
    Projection,
    Rule,
    Shapes,
    Weights,
)
from pjax_trace.rules.maximum import ReduceMax, finite_distance, nearest_heights, negated
from pjax_trace.rules.windows import Window, arguments_of, reduced_windows
from pjax_trace.translation import rewriting

__all__ = ["PATCH_MAX", "WINDOW_MAX", "PatchMax", "Pooling", "WindowMax"]

_UNROLLED = 16  # windows of more elements are walked by a loop


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Which elements of an array every window of a reduction reads.

    What is padded never counts.
    """

    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(window.size for window in self.windows)

    @property
    def out(self) -> tuple[int, ...]:
        """The shape of the windows."""
        return tuple(window.positions for window in self.windows)

    @property
    def size(self) -> int:
        """How many elements a window reads."""
        return math.prod(window.taps for window in self.windows)

    @property
    def padded(self) -> tuple[int, ...]:
        """The shape with the padding."""
        return tuple(window.length for window in self.windows)

    @property
    def strides(self) -> tuple[int, ...]:
        """From window to window."""
        return tuple(window.stride for window in self.windows)

    @property
    def span(self) -> tuple[int, ...]:
        """The shape from the first to the last window, in elements of the padded array."""
        return tuple((n - 1) * stride + 1 for n, stride in zip(self.out, self.strides, strict=True))

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where a window's elements are, relative to its first: ``[size, rank]``."""
        taps, _, _, _, dilation = arguments_of(self.windows)
        places = np.stack(np.unravel_index(np.arange(self.size), taps), -1)
        return (places * np.asarray(dilation)).astype(np.int32)

    def readers(self) -> list[np.ndarray]:
        """How many windows read each element: the product of a vector for every axis."""
        return [window.readers for window in self.windows]

    def mass(self, weight: Any) -> Any:
        """The weight times the number of windows that read each element."""
        mass = jnp.asarray(weight, jnp.result_type(float, weight))
        for count in np.ix_(*self.readers()):
            mass = mass * jnp.asarray(count, mass.dtype)
        return mass

    def pad(self, x: Array, fill: float) -> Array:
        """The array that windows read."""
        pads = [(window.low, window.high, window.base - 1) for window in self.windows]
        return lax.pad(x, jnp.asarray(fill, x.dtype), pads)

    def unpad(self, x: Array) -> Array:
        """The transpose of `pad`."""
        crop = [(-window.low, -window.high, 0) for window in self.windows]
        elements = tuple(slice(None, None, window.base) for window in self.windows)
        return lax.pad(x, jnp.zeros((), x.dtype), crop)[elements]

    def walk(self, step: Callable[[Any, Any, Any], Any], state: Any) -> Any:
        """``state = step(state, k, offset)`` for every element of a window."""
        if self.size <= _UNROLLED:
            for k, offset in enumerate(self.offsets.tolist()):
                state = step(state, k, offset)
            return state
        offsets = jnp.asarray(self.offsets)
        return lax.fori_loop(0, self.size, lambda k, state: step(state, k, offsets[k]), state)

    def read(self, padded: Array, offset: Any) -> Array:
        """One element of every window."""
        if isinstance(offset, list):
            limits = [a + n for a, n in zip(offset, self.span, strict=True)]
            return lax.slice(padded, offset, limits, self.strides)
        part = lax.dynamic_slice(padded, tuple(offset), self.span)
        return lax.slice(part, [0] * part.ndim, part.shape, self.strides)

    def add(self, total: Array, values: Array, offset: Any) -> Array:
        """The transpose of `read`, added to a padded array."""
        zero, inner = jnp.zeros((), values.dtype), [stride - 1 for stride in self.strides]
        if isinstance(offset, list):
            terms = zip(offset, self.span, self.padded, inner, strict=True)
            return total + lax.pad(values, zero, [(a, n - a - m, i) for a, m, n, i in terms])
        spread = lax.pad(values, zero, [(0, 0, i) for i in inner])
        start = tuple(offset)
        part = lax.dynamic_slice(total, start, self.span)
        return lax.dynamic_update_slice(total, part + spread, start)

    def patches(self, x: Array) -> Array:
        """Every window's own elements, along a new last axis; 0 for the padding."""
        # By one gather, because XLA computes masses while it compiles, at length if by several.
        corners = np.moveaxis(np.indices(self.out), 0, -1) * np.asarray(self.strides)
        places = np.moveaxis(corners[..., None, :] + self.offsets, -1, 0)
        index = np.ravel_multi_index(tuple(places), self.padded)
        return self.pad(x, 0).reshape(-1).at[index].get(mode="promise_in_bounds")


class WindowMax(Rule):
    """reduce_window_max: rows share elements, and their copies are summed, but never made.

    Windows are walked element by element, so that memory does not grow with them.
    """

    family = "extremum"

    def apply(self, params: Params, *operands: Array) -> Array:
        arguments = arguments_of(params["window"].windows)
        return lax.reduce_window(operands[0], -jnp.inf, lax.max, *arguments)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        """Every window by itself, from equal copies of what they share."""
        window: Pooling = params["window"]
        (x,), (weight,) = operands, weights.operands
        padded = window.pad(x, -jnp.inf)
        zeros = jnp.zeros(window.out, x.dtype)
        top, first = self._largest(window, padded)

        def above(t: Array) -> tuple[Array, Array]:
            def count(sums: Any, _: Any, offset: Any) -> Any:
                tap = window.read(padded, offset)
                return sums[0] + jnp.maximum(tap - t, 0), sums[1] + (tap > t).astype(t.dtype)

            return window.walk(count, (zeros, zeros))

        def move(state: Any, k: Any, offset: Any) -> Any:
            total, square = state
            tap = window.read(padded, offset)
            step = jnp.where(first == k, t - tap, jnp.minimum(t - tap, 0))
            # Rows without an element have an infinite t; what is padded does not move.
            step = jnp.where(tap == -jnp.inf, 0, step)
            return window.add(total, step, offset), square + jnp.square(step)

        t = nearest_heights(above, top, out, weight, weights.out, window.size)
        total, square = window.walk(move, (jnp.zeros(window.padded, x.dtype), zeros))
        mass = window.mass(weight).astype(x.dtype)
        moment = Moment(mass * x + weight * window.unpad(total), mass)
        return Projection(
            (moment,), t, weight * jnp.sum(square) + finite_distance(weights.out, t, out)
        )

    def _largest(self, window: Pooling, padded: Array) -> tuple[Array, Array]:
        """The maximum of every window, and which of its elements that is; the first of equal ones.

        Of a window of padding alone it is −∞, and none (-1).
        """

        def larger(state: Any, k: Any, offset: Any) -> Any:
            top, first = state
            tap = window.read(padded, offset)
            return jnp.maximum(top, tap), jnp.where(tap > top, jnp.int32(k), first)

        start = jnp.full(window.out, -jnp.inf, padded.dtype), jnp.full(window.out, -1, jnp.int32)
        return window.walk(larger, start)

    def linear(self, params: Params, operands: Arrays, position: int) -> Jacobian:
        """What is asked of a window goes to its largest element, to the first of equal ones.

        That is JAX's derivative, too, but it has none of dilated and of cropped windows.
        """
        window: Pooling = params["window"]
        (x,) = operands
        readers = window.mass(1.0).astype(x.dtype)
        _, first = self._largest(window, window.pad(x, -jnp.inf))

        def transpose(residual: Array) -> Array:
            def give(total: Any, k: Any, offset: Any) -> Any:
                return window.add(total, jnp.where(first == k, residual, 0), offset)

            total = window.walk(give, jnp.zeros(window.padded, residual.dtype))
            return window.unpad(total)

        return Jacobian(transpose, lambda: jnp.broadcast_to(readers, x.shape), readers)

    def masses(self, params: Params, weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Weight times the number of windows that read each element."""
        return (params["window"].mass(weights[0]),)

    def expand(self, params: Params, shapes: Shapes, variable: Flags) -> Expansion:
        window: Pooling = params["window"]
        if all(np.all(count == 1) for count in window.readers()):
            return Expansion(self, params, (None,))
        return Expansion(PATCH_MAX, params, (window.patches,))


class PatchMax(ReduceMax):
    """The maximum of every window of private copies, of which those of the padding do not count."""

    def _valid(self, params: Params) -> Array:
        window: Pooling = params["window"]
        return window.patches(jnp.ones(window.shape)) > 0

    def apply(self, params: Params, *operands: Array) -> Array:
        return jnp.max(jnp.where(self._valid(params), operands[0], -jnp.inf), -1)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (x,), valid = operands, self._valid(params)
        masked = jnp.where(valid, x, -jnp.inf)
        answer = super().project({"axes": (x.ndim - 1,)}, (masked,), out, weights)
        first, mass = answer.moments[0]  # pyright: ignore
        return answer._replace(moments=(Moment(jnp.where(valid, first, mass * x), mass),))


WINDOW_MAX, PATCH_MAX = WindowMax(), PatchMax()


def _window_max(params: Params, operands: Sequence[Any]) -> Callable[..., Array]:
    """reduce_window_max: blocks of their own if they are large, or else the rule of windows."""
    window = Pooling(reduced_windows(params, operands[0].shape))
    # What the last windows do not reach is cut off. The slice is there even if it cuts nothing:
    # a dilated window leaves gaps, and a slice is a view that may not read all.
    reach = [int(np.flatnonzero(c)[-1]) + 1 if c.any() else 1 for c in window.readers()]
    ones, zeros = (1,) * len(reach), (0,) * len(reach)
    apart = all(
        w == Window(w.size, w.taps, w.stride) and (w.stride == w.taps or w.positions == 1)
        for w in window.windows
    )
    if apart and window.size > _UNROLLED:
        blocks = [side for w in window.windows for side in (w.positions, w.taps)]
        axes = tuple(range(1, len(blocks), 2))
        return lambda x: jnp.max(lax.slice(x, zeros, reach, ones).reshape(blocks), axes)
    cut = tuple(
        dataclasses.replace(w, size=n, high=w.high + (w.size - n) * w.base)
        for w, n in zip(window.windows, reach, strict=True)
    )
    items = (("window", Pooling(cut)),)

    def function(x: Array) -> Array:
        if not all(count.all() for count in window.readers()):
            x = lax.slice(x, zeros, reach, ones)
        return call(function_p, WINDOW_MAX, x, name="reduce_window_max", params=items)

    return function


def _cumulative_max(params: Params, operands: Sequence[Any]) -> Callable[..., Array]:
    """cummax: the maximum over windows that reach from the start to each element."""
    shape, axis = operands[0].shape, int(params["axis"])
    n = shape[axis]
    reach = (0, n - 1) if params["reverse"] else (n - 1, 0)
    sizes = [n if a == axis else 1 for a in range(len(shape))]
    padding = [reach if a == axis else (0, 0) for a in range(len(shape))]
    strides = [1] * len(shape)
    return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, padding)


def _window(x: Array, *args: Any, **dilations: Any) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, *args, **dilations)


register_rule(
    lax.reduce_window_max_p,
    rewriting(_window_max, "extremum", "exact, closed form"),
    cases=[
        Case(lambda x: _window(x, (2, 2), (2, 2), "VALID"), ((2, 5),)),
        Case(lambda x: _window(x, (3, 2), (1, 2), "SAME"), ((4, 5),)),
        Case(lambda x: _window(x, (2,), (3,), ((1, 2),), window_dilation=(2,)), ((7,),)),
        Case(lambda x: _window(x, (20,), (1,), ((12, 12),)), ((8,),)),
        Case(lambda x: _window(x, (2,), (1,), ((0, 1),), base_dilation=(2,)), ((4,),)),
    ],
)
register_rule(
    lax.reduce_window_min_p,
    negated(lax.reduce_window_max_p),
    cases=[
        Case(lambda x: lax.reduce_window(x, jnp.inf, lax.min, (2,), (1,), "SAME"), ((5,),)),
    ],
)
register_rule(
    lax.cummax_p,
    rewriting(_cumulative_max, "extremum", "exact, closed form"),
    cases=[
        Case(lambda x: lax.cummax(x, 0), ((4, 2),)),
        Case(lambda x: lax.cummax(x, 1, True), ((2, 4),)),
    ],
    note="O(n²) time, O(n) memory",
)
register_rule(
    lax.cummin_p,
    negated(lax.cummax_p),
    cases=[Case(lambda x: lax.cummin(x, 0), ((4, 2),))],
    note="O(n²) time, O(n) memory",
)
