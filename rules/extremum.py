"""Extrema: max, min and clamp, their reductions over axes and over windows, and sorting.

A maximum has a closed form up to one unknown, the value that comes out: what exceeds it is lowered
to it, and if nothing reaches it, the largest operand is raised. Minima are maxima of what is
negated. Sorting fixes an order, in which the nearest point is an isotonic regression; the largest
k are the head of that order.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.calls import call, function_p
from pjax_trace.registry import (
    Case,
    Expansion,
    Moment,
    Projection,
    Refusal,
    Rule,
    Weights,
    projection_of,
    register_rule,
)
from pjax_trace.rules import curves

__all__ = ["Ranking", "ReduceMax", "Window", "WindowMax", "isotonic", "nearest_maximum"]

_UNROLLED = 16  # windows of more elements are walked by a loop


class Extremum(Rule):
    """What the rules of this file have in common."""

    family = "extremum"
    exactness = "exact, closed form"


def nearest_maximum(
    x0: Array, y0: Array, z0: Array, wx: Any, wy: Any, wz: Any
) -> tuple[Array, Array]:
    """The argmin over ``(x, y)`` of the distance to ``z = max(x, y)``, elementwise and global.

    The distance is ``wx (x − x0)² + wy (y − y0)² + wz (max(x, y) − z0)²``. With x on top, z = x is
    the mean of x0 and z0, or of all three if that is below y0, and y = min(y0, z). The nearer of
    this and its mirror image is the nearest point; x is on top if they are equally near.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.extremum import nearest_maximum
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


class _Pointwise(Extremum):
    """Extrema of operands element by element."""

    function: Callable[..., Array]

    def elementwise(self, params: dict[str, Any], variable: Sequence[bool], position: int) -> bool:
        """Elements do not know of each other."""
        return True

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The function."""
        return self.function(*operands)

    def nearest(self, operands: Sequence[Array], out: Array, weights: Weights) -> Sequence[Array]:
        """The projected operands; data as they came."""
        raise NotImplementedError

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every element by itself."""
        moved = self.nearest(operands, out, weights)
        moved_out = self.apply(params, *moved)
        return projection_of(operands, out, weights, moved, moved_out)


class Maximum(_Pointwise):
    """max of two variables, or of a variable and data, which is relu with a threshold."""

    function = staticmethod(lax.max)

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """The variable first, all of one shape, and no operand twice."""
        x, y = operands
        if x is y:
            return lambda x, _: x
        if x.shape != y.shape:
            shape = jnp.broadcast_shapes(x.shape, y.shape)
            return lambda *xs: lax.max(*(jnp.broadcast_to(x, shape) for x in xs))
        if not variable[0]:
            return lambda x, y: lax.max(y, x)
        return None

    def nearest(self, operands: Sequence[Array], out: Array, weights: Weights) -> Sequence[Array]:
        """Of a threshold, or of two variables."""
        (x, y), (wx, wy) = operands, weights.operands
        if wy is not None:
            return nearest_maximum(x, y, out, wx, wy, weights.out)
        moved = curves.nearest_relu(x, out, wx, weights.out, y)
        return jnp.where(y == jnp.inf, x, moved), y  # whatever x is, the maximum is infinite


class Clamp(_Pointwise):
    """clamp between data; with a variable bound it is a min of a max."""

    function = staticmethod(lax.clamp)

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """Bounds of the shape of what is clamped."""
        shape = operands[1].shape
        if tuple(variable) != (False, True, False):
            return lambda lower, x, upper: lax.min(
                lax.max(x, jnp.broadcast_to(lower, shape)), jnp.broadcast_to(upper, shape)
            )
        if any(operand.shape != shape for operand in operands):
            return lambda lower, x, upper: lax.clamp(
                jnp.broadcast_to(lower, shape), x, jnp.broadcast_to(upper, shape)
            )
        return None

    def nearest(self, operands: Sequence[Array], out: Array, weights: Weights) -> Sequence[Array]:
        """Of the three pieces."""
        lower, x, upper = operands
        moved = nearest_clamped(x, out, weights.operands[1], weights.out, lower, upper)
        return lower, moved, upper


class Rewritten(Extremum):
    """A primitive that is another one of something: there is nothing to project."""

    def __init__(self, function: Callable[..., Callable[..., Any]]):
        self._function = function

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """What it is, given the params and operands."""
        return self._function(params, operands)

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Nothing that is not rewritten."""
        return False


def _negated(primitive: Any) -> Rewritten:
    """The minimum that corresponds to a maximum: min(x) = −max(−x)."""

    def function(params: dict[str, Any], _: Any) -> Callable[..., Array]:
        return lambda *xs: lax.neg(_compat.bind(primitive, params, *map(lax.neg, xs))[0])

    return Rewritten(function)


def _distance(weight: Any, moved: Array, start: Array) -> Array:
    """`squared_distance`, where what is infinite has not moved."""
    step = jnp.where(jnp.isfinite(moved), moved - start, 0)
    return jnp.sum(weight * jnp.square(step))


def _thresholds(
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


class ReduceMax(Extremum):
    """reduce_max over axes: every row lowers what exceeds a threshold, or raises its largest.

    Of equal largest elements the first is raised. Elements that are −inf, being masked, stay.
    """

    exactness = "exact"

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """The maximum of one element is that element."""
        shape, axes = operands[0].shape, _axes(params)
        if math.prod(shape[axis] for axis in axes) == 1:
            return lambda x: lax.squeeze(x, axes)
        return None

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The maximum."""
        return jnp.max(operands[0], _axes(params))

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every row by itself."""
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
        t = _thresholds(above, top, target, weight, out_weight, size)
        moved = jnp.where(number == first, t, jnp.minimum(x, t))
        distance = _distance(weight, moved, x) + _distance(out_weight, t, target)
        return Projection((Moment(weight * moved, weight),), jnp.squeeze(t, axes), distance)


def _axes(params: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in params["axes"])


def _positional_axes(params: dict[str, Any], _: Any) -> Callable[..., Any]:
    """The maximum over the axes of a vmap, which are numbers (pmax)."""
    return lambda *xs: [jnp.max(x, _axes(params)) for x in xs]


@dataclasses.dataclass(frozen=True)
class Window:
    """Which elements of an array every window of a reduction reads.

    Attributes:
        shape: of the array.
        sizes: of the window, in elements.
        strides: from window to window.
        padding: how much is added before and after, of what never counts; cut off if negative.
        spacing: from one element of the array to the next (the base dilation).
        dilation: from one element of the window to the next.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    spacing: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(params: dict[str, Any], shape: Sequence[int]) -> "Window":
        """From a primitive's params."""

        def integers(name: str) -> tuple[int, ...]:
            return tuple(map(int, params[name]))

        return Window(
            tuple(shape),
            integers("window_dimensions"),
            integers("window_strides"),
            tuple((int(low), int(high)) for low, high in params["padding"]),
            integers("base_dilation"),
            integers("window_dilation"),
        )

    @property
    def size(self) -> int:
        """How many elements a window reads."""
        return math.prod(self.sizes)

    @property
    def padded(self) -> tuple[int, ...]:
        """The shape with the padding."""
        terms = zip(self.shape, self.padding, self.spacing, strict=True)
        return tuple(low + high + (n - 1) * step + 1 for n, (low, high), step in terms)

    @property
    def out(self) -> tuple[int, ...]:
        """The shape of the windows."""
        terms = zip(self.padded, self.sizes, self.dilation, self.strides, strict=True)
        return tuple((n - (k - 1) * step - 1) // stride + 1 for n, k, step, stride in terms)

    @property
    def span(self) -> tuple[int, ...]:
        """The shape from the first to the last window, in elements of the padded array."""
        return tuple((n - 1) * stride + 1 for n, stride in zip(self.out, self.strides, strict=True))

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where a window's elements are, relative to its first: ``[size, rank]``."""
        places = np.stack(np.unravel_index(np.arange(self.size), self.sizes), -1)
        return (places * np.asarray(self.dilation)).astype(np.int32)

    def readers(self) -> list[np.ndarray]:
        """How many windows read each element: the product of a vector for every axis."""
        counts = []
        for axis, n in enumerate(self.shape):
            starts = np.arange(self.out[axis]) * self.strides[axis] - self.padding[axis][0]
            places = starts[:, None] + np.arange(self.sizes[axis]) * self.dilation[axis]
            element, rest = np.divmod(places.ravel(), self.spacing[axis])
            inside = (rest == 0) & (element >= 0) & (element < n)
            counts.append(np.bincount(element[inside], minlength=n))
        return counts

    def mass(self, weight: Any) -> Any:
        """The weight times the number of windows that read each element."""
        mass = jnp.asarray(weight, jnp.result_type(float, weight))
        for axis, count in enumerate(self.readers()):
            sides = [-1 if a == axis else 1 for a in range(len(self.shape))]
            mass = mass * jnp.asarray(count.reshape(sides), mass.dtype)
        return mass

    def pad(self, x: Array, fill: float) -> Array:
        """The array that windows read."""
        pads = [(*p, step - 1) for p, step in zip(self.padding, self.spacing, strict=True)]
        return lax.pad(x, jnp.asarray(fill, x.dtype), pads)

    def unpad(self, x: Array) -> Array:
        """The transpose of `pad`."""
        crop = [(-low, -high, 0) for low, high in self.padding]
        return lax.pad(x, jnp.zeros((), x.dtype), crop)[
            tuple(slice(None, None, s) for s in self.spacing)
        ]

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
        corners = np.meshgrid(
            *(np.arange(n) * stride for n, stride in zip(self.out, self.strides, strict=True)),
            indexing="ij",
        )
        strides = np.cumprod([1, *self.padded[:0:-1]])[::-1]
        corner = sum(c * s for c, s in zip(corners, strides, strict=True))
        index = np.asarray(corner)[..., None] + self.offsets @ strides
        return self.pad(x, 0).reshape(-1).at[index].get(mode="promise_in_bounds")


class WindowMax(Extremum):
    """reduce_window_max: rows share elements, and their copies are summed, but never made.

    Windows are walked element by element, so that memory does not grow with them.
    """

    exactness = "exact"

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The maximum of every window."""
        w = params["window"]
        return lax.reduce_window(
            operands[0],
            -jnp.inf,
            lax.max,
            w.sizes,
            w.strides,
            w.padding,
            base_dilation=w.spacing,
            window_dilation=w.dilation,
        )

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every window by itself, from equal copies of what they share."""
        window: Window = params["window"]
        (x,), (weight,) = operands, weights.operands
        padded = window.pad(x, -jnp.inf)
        zeros = jnp.zeros(window.out, x.dtype)

        def largest(state: Any, k: Any, offset: Any) -> Any:
            top, first = state
            tap = window.read(padded, offset)
            return jnp.maximum(top, tap), jnp.where(tap > top, jnp.int32(k), first)

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

        start = zeros - jnp.inf, jnp.full(window.out, -1, jnp.int32)
        top, first = window.walk(largest, start)
        t = _thresholds(above, top, out, weight, weights.out, window.size)
        total, square = window.walk(move, (jnp.zeros(window.padded, x.dtype), zeros))
        mass = window.mass(weight).astype(x.dtype)
        moment = Moment(mass * x + weight * window.unpad(total), mass)
        return Projection((moment,), t, weight * jnp.sum(square) + _distance(weights.out, t, out))

    def masses(self, params: dict[str, Any], weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Weight times the number of windows that read each element."""
        return (params["window"].mass(weights[0]),)

    def expand(
        self,
        params: dict[str, Any],
        shapes: Sequence[tuple[int, ...]],
        variable: Sequence[bool],
    ) -> Expansion:
        """Every window with elements of its own."""
        window: Window = params["window"]
        if all(np.all(count == 1) for count in window.readers()):
            return Expansion(self, params, (None,))
        return Expansion(PATCH_MAX, params, (window.patches,))


class PatchMax(ReduceMax):
    """The maximum of every window of private copies, of which those of the padding do not count."""

    def _valid(self, params: dict[str, Any]) -> Array:
        window: Window = params["window"]
        return window.patches(jnp.ones(window.shape)) > 0

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The maximum of what counts."""
        return jnp.max(jnp.where(self._valid(params), operands[0], -jnp.inf), -1)

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every window by itself; the padding stays."""
        (x,), valid = operands, self._valid(params)
        masked = jnp.where(valid, x, -jnp.inf)
        answer = super().project({"axes": (x.ndim - 1,)}, (masked,), out, weights)
        first, mass = answer.moments[0]  # pyright: ignore
        return answer._replace(moments=(Moment(jnp.where(valid, first, mass * x), mass),))


REDUCE_MAX, WINDOW_MAX, PATCH_MAX = ReduceMax(), WindowMax(), PatchMax()


def _window_max(params: dict[str, Any], operands: Sequence[Any]) -> Callable[..., Array]:
    """reduce_window_max: blocks of their own if they are large, or else the rule of windows."""
    window = Window.of(params, operands[0].shape)
    # What the last windows do not reach is cut off. The slice is there even if it cuts nothing:
    # a dilated window leaves gaps, and a slice is a view that may not read all.
    reach = [int(np.flatnonzero(c)[-1]) + 1 if c.any() else 1 for c in window.readers()]
    ones, zeros = (1,) * len(reach), (0,) * len(reach)
    plain = all(p == (0, 0) for p in window.padding) and window.spacing == window.dilation == ones
    terms = zip(window.strides, window.sizes, window.out, strict=True)
    if plain and window.size > _UNROLLED and all(s == k or n == 1 for s, k, n in terms):
        blocks = [side for pair in zip(window.out, window.sizes, strict=True) for side in pair]
        axes = tuple(range(1, len(blocks), 2))
        return lambda x: jnp.max(lax.slice(x, zeros, reach, ones).reshape(blocks), axes)
    cut = dataclasses.replace(
        window,
        shape=tuple(reach),
        padding=tuple(
            (low, high + (n - r) * step)
            for (low, high), n, r, step in zip(
                window.padding, window.shape, reach, window.spacing, strict=True
            )
        ),
    )
    items = (("window", cut),)

    def function(x: Array) -> Array:
        if not all(count.all() for count in window.readers()):
            x = lax.slice(x, zeros, reach, ones)
        return call(function_p, WINDOW_MAX, x, name="reduce_window_max", params=items)

    return function


def _cumulative_max(params: dict[str, Any], operands: Sequence[Any]) -> Callable[..., Array]:
    """cummax: the maximum over windows that reach from the start to each element."""
    shape, axis = operands[0].shape, int(params["axis"])
    n = shape[axis]
    reach = (0, n - 1) if params["reverse"] else (n - 1, 0)
    sizes = [n if a == axis else 1 for a in range(len(shape))]
    padding = [reach if a == axis else (0, 0) for a in range(len(shape))]
    strides = [1] * len(shape)
    return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, padding)


def isotonic(values: Array, weights: Array) -> Array:
    """The argmin over ascending z of ``Σ w (z − values)²``, along the last axis.

    Pool adjacent violators: elements are pushed onto a stack of blocks, each the weighted mean of
    its elements, and the last two blocks are merged while they descend. O(n) time and memory.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.extremum import isotonic
        >>> isotonic(jnp.array([1.0, 4.0, 2.0, 0.0, 5.0]), jnp.ones(5)).tolist()
        [1.0, 2.0, 2.0, 2.0, 5.0]
    """
    n = values.shape[-1]

    def row(y: Array, w: Array) -> Array:
        def step(_: Any, state: Any) -> Any:
            means, masses, ends, last, read = state
            before = jnp.maximum(last - 1, 0)
            mean, mass = means[last], masses[last]
            pool, push = means[before] > mean, read < n
            total = masses[before] + mass
            pooled = mean + masses[before] / total * (means[before] - mean)
            following = jnp.minimum(read, n - 1)
            place = jnp.where(pool, before, jnp.where(push, last + 1, last))
            mean = jnp.where(pool, pooled, jnp.where(push, y[following], mean))
            mass = jnp.where(pool, total, jnp.where(push, w[following], mass))
            read = jnp.where(pool | ~push, read, read + 1)
            return (
                means.at[place].set(mean, mode="promise_in_bounds"),
                masses.at[place].set(mass, mode="promise_in_bounds"),
                ends.at[place].set(read, mode="promise_in_bounds"),
                place,
                read,
            )

        ends = jnp.ones(n, jnp.int32)
        state = (y, w, ends, jnp.int32(0), jnp.int32(1))
        means, _, ends, last, _ = lax.fori_loop(0, 2 * n - 2, step, state)
        numbers = jnp.arange(n, dtype=jnp.int32)
        ends = jnp.where(numbers < last, ends, n)
        return means[jnp.searchsorted(ends, numbers, side="right").astype(jnp.int32)]

    rows = jnp.reshape(values, (-1, n)), jnp.reshape(weights, (-1, n))
    return jax.vmap(row)(*rows).reshape(values.shape)


class Ranking(Extremum):
    """The k smallest elements along an axis, ascending, or the k largest, descending.

    The nearest point keeps the order of the operand's elements, whatever the weights of the output
    (the rearrangement inequality); in that order it is an isotonic regression of the weighted means
    of operand and output, in which elements that are not returned have a weight of the operand's
    only.
    """

    exactness = "exact"

    def specialise(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], variable: Sequence[bool]
    ) -> tuple[Rule, dict[str, Any]]:
        """A sort returns all elements."""
        axis = int(params["dimension"])
        return self, {"axis": axis, "k": shapes[0][axis], "descending": False}

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Any] | None:
        """With other operands that are sorted along: those are moved by the permutation, as data.

        The first key is sorted by itself; the permutation is that of the forward pass.
        """
        if len(operands) == 1:
            return None
        axis, keys = int(params["dimension"]), int(params["num_keys"])
        shape = operands[0].shape

        def function(*xs: Array) -> list[Array]:
            number = lax.broadcasted_iota(jnp.int32, shape, axis)
            frozen = [lax.stop_gradient(x) for x in xs[:keys]]
            *_, order = lax.sort((*frozen, number), dimension=axis, is_stable=True, num_keys=keys)
            moved = [jnp.take_along_axis(x, order, axis, mode="promise_in_bounds") for x in xs[1:]]
            return [lax.sort(xs[0], dimension=axis), *moved]

        return function

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The elements in order."""
        axis, k = params["axis"], params["k"]
        ordered = lax.sort(operands[0], dimension=axis)
        if params["descending"]:
            ordered = lax.rev(ordered, (axis,))
        return lax.slice_in_dim(ordered, 0, k, axis=axis)

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every row by itself, ascending."""
        (x,), (weight,) = operands, weights.operands
        axis, k, sign = params["axis"], params["k"], -1 if params["descending"] else 1
        rows = sign * jnp.moveaxis(x, axis, -1)
        target = sign * jnp.moveaxis(out, axis, -1)
        asked = jnp.moveaxis(jnp.broadcast_to(weights.out, out.shape), axis, -1)
        number = lax.broadcasted_iota(jnp.int32, rows.shape, rows.ndim - 1)
        start, order = lax.sort((rows, number), dimension=-1, is_stable=True, num_keys=1)
        head, rest = start[..., :k], start[..., k:]
        mean = jnp.where(jnp.isinf(head), head, head + asked / (weight + asked) * (target - head))
        chain = isotonic(
            jnp.concatenate([mean, rest], -1),
            jnp.concatenate([weight + asked, jnp.broadcast_to(weight, rest.shape)], -1),
        )
        _, back = lax.sort((order, chain), dimension=-1, is_stable=True, num_keys=1)
        moved = sign * jnp.moveaxis(back, -1, axis)
        moved_out = sign * jnp.moveaxis(chain[..., :k], -1, axis)
        distance = _distance(weight, moved, x) + _distance(weights.out, moved_out, out)
        return Projection((Moment(weight * moved, weight),), moved_out, distance)


RANKING = Ranking()


def _top_k(params: dict[str, Any], operands: Sequence[Any]) -> Callable[..., Any]:
    """top_k: the values by their rule, and the indices of the forward pass."""
    axis = int(params.get("axis", len(operands[0].shape) - 1))
    items = (("axis", axis), ("descending", True), ("k", int(params["k"])))

    def function(x: Array) -> list[Array]:
        _, index = _compat.bind(lax.top_k_p, params, lax.stop_gradient(x))
        return [call(function_p, RANKING, x, name="top_k", params=items), index]

    return function


def _window(x: Array, *args: Any, **dilations: Any) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, *args, **dilations)


register_rule(
    lax.max_p,
    Maximum(),
    cases=[
        Case(lax.max, ((3,), (3,))),
        Case(lambda x: lax.max(x, jnp.array([-0.5, 0.0, -jnp.inf], x.dtype)), ((3,),)),
        Case(lambda x: lax.max(jnp.asarray(0.5, x.dtype), x), ((3,),)),
    ],
)
register_rule(lax.min_p, _negated(lax.max_p), cases=[Case(lax.min, ((3,), (3,)))])
register_rule(
    lax.clamp_p,
    Clamp(),
    cases=[Case(lambda x: lax.clamp(-0.5, x, 1.0), ((3,),))],
    note="with a variable bound, a min of a max",
)
register_rule(
    lax.reduce_max_p,
    REDUCE_MAX,
    cases=[
        Case(lambda x: jnp.max(x, 1), ((2, 4),)),
        Case(lambda x: jnp.max(x, (0, 2)), ((2, 2, 2),), centre=1.0),
    ],
)
register_rule(
    lax.reduce_min_p, _negated(lax.reduce_max_p), cases=[Case(lambda x: jnp.min(x, 0), ((4, 2),))]
)
register_rule(
    lax.pmax_p,
    Rewritten(_positional_axes),
    cases=[Case(lambda x: jax.vmap(lambda r: lax.pmax(r, "i"), axis_name="i")(x), ((4, 2),))],
    note="over the axis of a vmap",
)
register_rule(
    lax.pmin_p,
    _negated(lax.pmax_p),
    cases=[Case(lambda x: jax.vmap(lambda r: lax.pmin(r, "i"), axis_name="i")(x), ((4, 2),))],
    note="over the axis of a vmap",
)
register_rule(
    lax.reduce_window_max_p,
    Rewritten(_window_max),
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
    _negated(lax.reduce_window_max_p),
    cases=[
        Case(lambda x: lax.reduce_window(x, jnp.inf, lax.min, (2,), (1,), "SAME"), ((5,),)),
    ],
)
register_rule(
    lax.cummax_p,
    Rewritten(_cumulative_max),
    cases=[
        Case(lambda x: lax.cummax(x, 0), ((4, 2),)),
        Case(lambda x: lax.cummax(x, 1, True), ((2, 4),)),
    ],
    note="O(n²) time, O(n) memory",
)
register_rule(
    lax.cummin_p,
    _negated(lax.cummax_p),
    cases=[Case(lambda x: lax.cummin(x, 0), ((4, 2),))],
    note="O(n²) time, O(n) memory",
)
register_rule(
    lax.cumlogsumexp_p,
    Refusal(
        "every output reads all elements before it, through a curve; write "
        "jnp.log(jnp.cumsum(jnp.exp(x - m))) + m, with m = jax.lax.stop_gradient(jnp.max(x))"
    ),
    cases=[Case(lambda x: lax.cumlogsumexp(x, 0), ((4,),))],
)
register_rule(
    lax.sort_p,
    RANKING,
    cases=[
        Case(lambda x: jnp.sort(x, 0), ((5, 2),)),
        Case(lambda x: jnp.sort(x, descending=True), ((4,),)),
    ],
    note="what is sorted along is moved by the permutation of the forward pass",
)
register_rule(
    lax.top_k_p,
    Rewritten(_top_k),
    cases=[Case(lambda x: lax.top_k(x, 2)[0], ((2, 5),))],
    note="indices are those of the forward pass",
)
register_rule(
    lax.approx_top_k_p,
    Refusal("what it returns is only approximately the top k; write jax.lax.top_k"),
    cases=[Case(lambda x: lax.approx_max_k(x, 2)[0], ((8,),))],
)
