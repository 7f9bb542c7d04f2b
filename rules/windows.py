"""Sums over sliding windows: convolutions and window sums, as maps.

What a window reads is separable: dimension by dimension, tap ``t`` of position ``p`` reads element
``(p · stride + t · dilation − low) / base`` if that is a whole number in range. Taps that fall into
padding, or between the elements of a dilated operand, are not in the equation.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pjax_trace.linear import Design, Implicit
from pjax_trace.rule import Params
from pjax_trace.rules.maps import Map, Shape

__all__ = ["Convolution", "Window", "WindowSum", "arguments_of", "reduced_windows", "windows_of"]


@dataclasses.dataclass(frozen=True)
class Window:
    """One dimension of a sliding window.

    Attributes:
        size: how many elements there are.
        taps: how many a window has.
        stride: from position to position.
        low: padding before the first element; negative padding cuts off.
        high: padding after the last.
        base: the dilation of the elements, 1 for none.
        dilation: of the taps.
    """

    size: int
    taps: int = 1
    stride: int = 1
    low: int = 0
    high: int = 0
    base: int = 1
    dilation: int = 1

    @property
    def length(self) -> int:
        """How many elements there are with padding, and with what is between them."""
        return max(0, (self.size - 1) * self.base + 1) + self.low + self.high

    @property
    def positions(self) -> int:
        """How many positions there are."""
        reach = max(0, (self.taps - 1) * self.dilation + 1)
        return max(0, (self.length - reach) // self.stride + 1)

    @functools.cached_property
    def index(self) -> np.ndarray:
        """The element of every position and tap, ``size`` where there is none."""
        position, tap = np.arange(self.positions)[:, None], np.arange(self.taps)
        element, rest = np.divmod(
            position * self.stride + tap * self.dilation - self.low, self.base
        )
        there = (rest == 0) & (element >= 0) & (element < self.size)
        return np.where(there, element, self.size)

    @property
    def valid(self) -> np.ndarray:
        """Where positions have taps, ``[positions, taps]``."""
        return self.index < self.size

    @property
    def readers(self) -> np.ndarray:
        """How many windows read each element."""
        return np.bincount(self.index.ravel(), minlength=self.size + 1)[:-1]

    def reading(self, positions: int) -> "Window":
        """With as much padding after the last element as this many positions need."""
        reach = (positions - 1) * self.stride + (self.taps - 1) * self.dilation + 1
        return dataclasses.replace(self, high=self.high + reach - self.length)

    @property
    def transposed(self) -> "Window":
        """The window of elements over positions, its taps in reverse."""
        low = (self.taps - 1) * self.dilation - self.low
        window = Window(self.positions, self.taps, self.base, low, 0, self.stride, self.dilation)
        return window.reading(self.size)

    @property
    def swapped(self) -> "Window":
        """The window in which positions are taps, and taps are positions."""
        window = Window(
            self.size, self.positions, self.dilation, self.low, 0, self.base, self.stride
        )
        return window.reading(self.taps)

    def sum(self, x: Array, axis: int) -> Array:
        """The sum over the window, along an axis."""
        if self == Window(self.size):  # every position reads its own element
            return x
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (self.low, self.high, self.base - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), padding)
        along = [(1, 1, 1)] * x.ndim
        along[axis] = (self.taps, self.stride, self.dilation)
        window, strides, dilation = zip(*along, strict=True)
        zero = np.zeros((), x.dtype)
        return lax.reduce_window(
            x, zero, lax.add, window, strides, "VALID", window_dilation=dilation
        )

    def take(self, x: Array, axis: int) -> Array:
        """The elements of every window, ``axis`` becoming two; 0 where a window has none."""
        return jnp.take(x, self.index, axis, mode="fill", fill_value=0)


def windows_of(shape: Sequence[int], *arguments: Sequence[Any]) -> tuple[Window, ...]:
    """One `Window` for every dimension, from what `arguments_of` gives."""
    return tuple(
        Window(*map(int, (size, taps, stride, *padding, *dilations)))
        for size, taps, stride, padding, *dilations in zip(shape, *arguments, strict=True)
    )


def reduced_windows(params: Params, shape: Sequence[int]) -> tuple[Window, ...]:
    """Those of a reduction over windows, from the primitive's params."""
    names = ("dimensions", "strides", "dilation")
    taps, strides, dilation = (params[f"window_{name}"] for name in names)
    return windows_of(shape, taps, strides, params["padding"], params["base_dilation"], dilation)


def arguments_of(windows: Sequence[Window]) -> list[list[Any]]:
    """JAX's arguments: taps, strides, padding, and the dilations of elements and of taps."""
    return [
        [window.taps for window in windows],
        [window.stride for window in windows],
        [(window.low, window.high) for window in windows],
        [window.base for window in windows],
        [window.dilation for window in windows],
    ]


def _outer(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The product of one array per dimension, each along its own axes."""
    return functools.reduce(np.multiply.outer, parts, np.ones((), int))


def _patches(windows: Sequence[Window], x: Array, axis: int) -> Array:
    """Windows of ``x`` from an axis on: positions in place of elements, taps at the end."""
    for i, window in enumerate(windows):
        x = jnp.moveaxis(window.take(x, axis + i), axis + i + 1, -1)
    return x


def _contracted(x: Array, matrices: Sequence[np.ndarray]) -> Array:
    """The product of a matrix with every axis, from the first on."""
    for axis, matrix in enumerate(matrices):
        matrix = jnp.asarray(matrix, x.dtype)
        x = jnp.tensordot(matrix, x, ((1,), (axis,)), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(x, 0, axis)
    return x


def _at_least_one(readers: np.ndarray) -> Any:
    readers = np.maximum(readers, 1)
    return int(readers.flat[0]) if readers.size and np.ptp(readers) == 0 else readers


@dataclasses.dataclass(frozen=True)
class WindowSum(Map):
    """The sum over a sliding window, one `Window` for every dimension."""

    windows: tuple[Window, ...]

    @property
    def shape(self) -> Shape:
        return tuple(window.positions for window in self.windows)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (tuple(window.size for window in self.windows),)

    @property
    def fan(self) -> int:
        return math.prod(window.taps for window in self.windows)

    @functools.cached_property
    def terms(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        valid = _outer([window.valid for window in self.windows])
        if np.all(valid):
            return None
        axes = [*range(0, valid.ndim, 2), *range(1, valid.ndim, 2)]
        return np.transpose(valid, axes).astype(bool).reshape((*self.shape, self.fan))

    @property
    def count(self) -> Any:
        return _outer([np.sum(window.valid, 1) for window in self.windows])

    @property
    def reads(self) -> np.ndarray:
        """How many windows read each element."""
        return _outer([window.readers for window in self.windows])

    @property
    def uses(self) -> np.ndarray:
        """At how many positions each tap reads something."""
        return _outer([np.sum(window.valid, 0) for window in self.windows])

    def readers(self, side: int) -> Any:
        return _at_least_one(self.reads)

    def apply(self, *operands: Array) -> Array:
        (x,) = operands
        for axis, window in enumerate(self.windows):
            x = window.sum(x, axis)
        return x

    def private_copies(self, x: Array, side: int) -> Array:
        return _patches(self.windows, x, 0).reshape((*self.shape, self.fan))


class _Patches(Implicit):
    """What the rows of a convolution read of images, channel by channel."""

    images: Float[Array, "batch ... channels"]
    windows: tuple[Window, ...] = eqx.field(static=True)
    precision: Any = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """A row for every position, a column for every tap of every channel."""
        positions = math.prod(window.positions for window in self.windows)
        taps = math.prod(window.taps for window in self.windows)
        return len(self.images) * positions, taps * self.images.shape[-1]

    def squares(self) -> Float[Array, "columns"]:
        squares = jnp.sum(jnp.square(self.images), 0, keepdims=True)
        return jnp.sum(_Patches(squares, self.windows, None).made(), 0)

    def transposed_times(
        self, target: Float[Array, "rows features"]
    ) -> Float[Array, "columns features"]:
        """The transpose of the convolution in its kernel."""
        batch, *_, channels = self.images.shape
        features = target.shape[1]
        map_ = Convolution(batch, 1, channels, features, self.windows, self.precision)
        kernel = map_.pull(target.reshape(map_.shape), self.images, 1)
        return jnp.moveaxis(kernel, -2, 0).reshape((-1, features))

    def take(self, rows: Int[np.ndarray, "some"]) -> Float[Array, "some columns"]:
        positions = (window.positions for window in self.windows)
        image, *places = np.unravel_index(rows, (len(self.images), *positions))
        elements = [window.index[at] for window, at in zip(self.windows, places, strict=True)]
        taps = np.ix_(*(np.arange(window.taps) for window in self.windows))
        index = [e[:, t] for e, t in zip(elements, taps, strict=True)]
        image = image.reshape((-1, *[1] * len(index)))
        patches = self.images.at[image, *index].get(mode="fill", fill_value=0)
        return jnp.moveaxis(patches, -1, 1).reshape((len(rows), -1))

    def made(self) -> Float[Array, "rows columns"]:
        return _patches(self.windows, self.images, 1).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Convolution(Map):
    """``jax.lax.conv_general_dilated`` of ``[batch, …, groups · left]`` by ``[…, left, features]``.

    Batch first, channels last, one `Window` for every dimension between. Norms and counts are
    those of one channel and of one image: reductions and window sums, not convolutions by ones.
    """

    batch: int
    groups: int
    left: int
    features: int
    windows: tuple[Window, ...]
    precision: Any = None

    @property
    def shape(self) -> Shape:
        return (self.batch, *(window.positions for window in self.windows), self.features)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        sizes = (window.size for window in self.windows)
        taps = (window.taps for window in self.windows)
        images = (self.batch, *sizes, self.groups * self.left)
        return images, (*taps, self.left, self.features)

    @property
    def fan(self) -> int:
        return math.prod(window.taps for window in self.windows) * self.left

    @property
    def _window(self) -> WindowSum:
        return WindowSum(self.windows)

    @functools.cached_property
    def terms(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        taps = self._window.terms
        return None if taps is None else np.repeat(taps, self.left, -1)[None, ..., None, :]

    @property
    def count(self) -> Any:
        """How many terms the rows of every position have."""
        return self._window.count[None, ..., None] * self.left

    def readers(self, side: int) -> Any:
        if side == 0:
            features = self.features // self.groups
            return _at_least_one(self._window.reads[None, ..., None] * features)
        return _at_least_one(self._window.uses[..., None, None] * self.batch)

    def apply(self, *operands: Array) -> Array:
        """The output.

        Layouts stay as they are: XLA would fold transposes into the convolution, and is slow on
        CPU, by orders of magnitude inside of loops, in any layout but this one.
        """
        x, w = lax.optimization_barrier(operands)
        letters = "".join(chr(ord("a") + i) for i in range(len(self.windows)))
        _, strides, padding, base, dilation = arguments_of(self.windows)
        dimensions = f"N{letters}C", f"{letters}IO", f"N{letters}C"
        return lax.conv_general_dilated(
            x, w, strides, padding, base, dilation, dimensions, self.groups, 1, self.precision
        )

    def pull(self, out: Array, other: Array | None, side: int) -> Array:
        """Convolutions again: of the output by the kernel, or of the images by the output."""
        if other is None:
            return super().pull(out, other, side)
        rank, features = len(self.windows), self.features // self.groups
        if side == 0:
            kernel, windows = jnp.flip(other, range(rank)), [w.transposed for w in self.windows]
            kernel = kernel.reshape((*kernel.shape[:-1], self.groups, features))
            kernel = jnp.swapaxes(kernel, -3, -1)
            kernel = kernel.reshape((*kernel.shape[:-2], self.groups * self.left))
            sizes = self.batch, self.groups, features, kernel.shape[-1]
            return Convolution(*sizes, tuple(windows), self.precision).apply(out, kernel)
        windows = tuple(window.swapped for window in self.windows)
        images = other.reshape((*other.shape[:-1], self.groups, self.left))
        images = jnp.moveaxis(jnp.moveaxis(images, -1, 0), 1, -1)  # left, …, groups, batch
        images = images.reshape((*images.shape[:-2], self.groups * self.batch))
        map_ = Convolution(
            self.left, self.groups, self.batch, self.features, windows, self.precision
        )
        return jnp.moveaxis(map_.apply(images, jnp.moveaxis(out, 0, -2)), 0, -2)

    def rows(self, x: Array, side: int) -> Array:
        if side == 0:
            x = jnp.sum(x.reshape((*x.shape[:-1], self.groups, self.left)), -1)
            for axis, window in enumerate(self.windows):
                x = window.sum(x, axis + 1)
            if self.groups == 1:
                return x
            x = x[..., None]
            full = (*x.shape[:-1], self.features // self.groups)
            return jnp.broadcast_to(x, full).reshape(self.shape)
        return _contracted(jnp.sum(x, -2), [window.valid for window in self.windows])[None]

    def spread(self, out: Array, side: int) -> Array:
        """The transpose of `rows`.

        Over images by a product, because XLA is slow to reduce leading axes on CPU.
        """
        if side == 0:
            return super().spread(out, side)
        ones, out = jnp.ones(self.batch, out.dtype), jnp.broadcast_to(out, self.shape)
        x = jnp.tensordot(ones, out, 1, precision=lax.Precision.HIGHEST)
        return _contracted(x, [window.valid.T for window in self.windows])[..., None, :]

    def design(self, side: int, other: Array) -> Design | None:
        if side == 0 or self.groups > 1:
            return None
        rank = len(self.windows)
        return Design(
            self.shape,
            tuple(range(rank + 1)),
            (rank + 1,),
            (rank, *range(rank)),
            (rank + 1,),
            self.shapes[1],
            lambda: _Patches(other, self.windows, self.precision),
            trust_factor=2.0,
        )

    def private_copies(self, x: Array, side: int) -> Array:
        """Patches of the images; kernels with 0 where a tap reads nothing."""
        rank, full = len(self.windows), (*self.shape, self.fan)
        if side == 0:
            x = x.reshape((*x.shape[:-1], self.groups, 1, self.left))
            x = _patches(self.windows, x, 1)  # …, groups, 1, left, taps
            x = jnp.moveaxis(x, rank + 3, -1)
            shared = (*x.shape[: rank + 2], self.features // self.groups, *x.shape[rank + 3 :])
            return jnp.broadcast_to(x, shared).reshape(full)
        w = jnp.moveaxis(x, -1, 0).reshape((1,) * (rank + 1) + (self.features, self.fan))
        return jnp.broadcast_to(w if self.terms is None else jnp.where(self.terms, w, 0), full)
