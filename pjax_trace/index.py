"""Which elements of an array a view reads, as an affine function of the place: no array is made."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pjax_trace.linear import Layout

__all__ = ["Index", "chain"]


class Index(NamedTuple):
    """Flat numbers of elements, in a shape: ``offset + Σ strides · place``, as in NumPy.

    What it cannot say is None: a gather, or a reshape that joins axes which do not follow on.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def of(shape: Sequence[int], start: int = 0) -> "Index":
        """All elements of an array in their places."""
        strides, stride = [], 1
        for size in reversed(shape):
            strides.append(stride)
            stride *= size
        return Index(tuple(shape), tuple(reversed(strides)), start)

    @property
    def axes(self) -> list[tuple[int, int, int]]:
        """Stride, size and number of the axes that are longer than 1."""
        axes = zip(self.strides, self.shape, range(len(self.shape)), strict=True)
        return [axis for axis in axes if axis[1] != 1]

    @property
    def once(self) -> bool:
        """Whether it surely reads no element twice."""
        reach = 0
        for stride, size in sorted((abs(stride), size) for stride, size, _ in self.axes):
            if stride <= reach:
                return False
            reach += stride * (size - 1)
        return True

    @property
    def merged(self) -> tuple[tuple[int, int], ...]:
        """Strides and sizes, of as few axes as say the same."""
        axes: list[tuple[int, int]] = []
        for stride, size, _ in self.axes:
            if axes and axes[-1][0] == stride * size:
                axes[-1] = stride, axes[-1][1] * size
            else:
                axes.append((stride, size))
        return tuple(axes)

    @property
    def numbers(self) -> np.ndarray:
        """All numbers, in order."""
        steps = (s * np.arange(n) for s, n in zip(self.strides, self.shape, strict=True))
        total = functools.reduce(np.add.outer, steps, np.full((), self.offset))
        return np.asarray(total).ravel()

    def transpose(self, order: Sequence[int]) -> "Index":
        """The axes in another order."""
        shape = tuple(self.shape[axis] for axis in order)
        return Index(shape, tuple(self.strides[axis] for axis in order), self.offset)

    def broadcast(self, shape: Sequence[int], axes: Sequence[int]) -> "Index":
        """As ``jax.lax.broadcast_in_dim``: ``axes`` of the new shape are the old ones."""
        strides = [0] * len(shape)
        for axis, size, stride in zip(axes, self.shape, self.strides, strict=True):
            strides[axis] = 0 if size == 1 else stride
        return Index(tuple(shape), tuple(strides), self.offset)

    def spread(self, shape: Sequence[int]) -> "Index":
        """Repeated along the axes in which it has one element."""
        return self.broadcast(shape, range(len(shape) - len(self.shape), len(shape)))

    def slice(
        self, starts: Sequence[int], limits: Sequence[int], steps: Sequence[int] | None
    ) -> "Index":
        """As ``jax.lax.slice``."""
        steps = [1] * len(self.shape) if steps is None else steps
        bounds = zip(starts, limits, steps, strict=True)
        shape = tuple(max(0, -(-(stop - start) // step)) for start, stop, step in bounds)
        offset = sum(start * stride for start, stride in zip(starts, self.strides, strict=True))
        strides = tuple(a * b for a, b in zip(self.strides, steps, strict=True))
        return Index(shape, strides, self.offset + offset)

    def flip(self, axes: Sequence[int]) -> "Index":
        """As ``jax.lax.rev``."""
        strides = [-s if i in axes else s for i, s in enumerate(self.strides)]
        offset = sum(self.strides[axis] * (self.shape[axis] - 1) for axis in axes)
        return Index(self.shape, tuple(strides), self.offset + offset)

    def reshape(self, shape: Sequence[int]) -> "Index | None":
        """The same elements in another shape, if it joins only axes that follow each other."""
        if not math.prod(shape):
            return Index(tuple(shape), (0,) * len(shape), self.offset)
        old = [(size, stride) for stride, size, _ in self.axes]
        strides = [0] * len(shape)
        wanted = [axis for axis, size in enumerate(shape) if size != 1]
        while wanted:
            # The fewest old axes and the fewest new ones that hold equally many elements.
            own, new = [old.pop(0)], [wanted.pop(0)]
            while (have := math.prod(n for n, _ in own)) != (
                want := math.prod(shape[a] for a in new)
            ):
                own.append(old.pop(0)) if have < want else new.append(wanted.pop(0))
            if any(s != t * n for (_, s), (n, t) in zip(own, own[1:], strict=False)):
                return None
            stride = own[-1][1]
            for axis in reversed(new):
                strides[axis] = stride
                stride *= shape[axis]
        return Index(tuple(shape), tuple(strides), self.offset)

    def disjoint(self, other: "Index") -> bool:
        """Whether the two surely read no element in common.

        If all longer strides are multiples of a number, the rest of the division by it tells.
        """
        longest = 1 + max(self._last, other._last)
        return any(
            _apart(self._rest(modulus), other._rest(modulus))
            for modulus in {*map(abs, self.strides + other.strides), longest} - {0}
        )

    def layout(self, before: Sequence[int]) -> Layout | None:
        """The permutation of all elements of an array that this is; None if it is none."""
        axes = sorted(self.axes, reverse=True)
        stride = 1
        for own, size, _ in reversed(axes):
            if own != stride:
                return None
            stride *= size
        if self.offset or stride != math.prod(before):
            return None
        numbers = [number for _, _, number in axes]
        order = tuple(numbers.index(number) for _, _, number in self.axes)
        return Layout(tuple(before), tuple(size for _, size, _ in axes), order, self.shape)

    def permuted(self, layout: Layout, *, back: bool = False) -> "Index | None":
        """The elements that a layout puts in their places, or puts back."""
        moved = tuple(layout.atoms[i] for i in layout.order)
        if back:
            x = self.reshape(moved)
            inverse = [layout.order.index(i) for i in range(len(layout.order))]
            return None if x is None else x.transpose(inverse).reshape(layout.before)
        x = self.reshape(layout.atoms)
        return None if x is None else x.transpose(layout.order).reshape(layout.after)

    @property
    def _last(self) -> int:
        return self.offset + sum(max(stride, 0) * (size - 1) for stride, size, _ in self.axes)

    def _rest(self, modulus: int) -> tuple[int, int] | None:
        """The range of the numbers after division by a modulus, if it does not wrap around."""
        short = [(stride, size) for stride, size, _ in self.axes if stride % modulus]
        first = self.offset + sum(min(stride, 0) * (size - 1) for stride, size in short)
        width = sum(abs(stride) * (size - 1) for stride, size in short)
        first %= modulus
        return (first, first + width) if first + width < modulus else None


def _apart(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])


def chain(layouts: Sequence[Layout | None]) -> Layout | None:
    """One permutation after the other as one; None if it cannot be written so."""
    steps = [layout for layout in layouts if layout is not None]
    index: Index | None = Index.of(steps[0].before)
    for step in steps:
        index = None if index is None else index.permuted(step)
    return None if index is None else index.layout(steps[0].before)
