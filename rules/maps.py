"""Linear and bilinear maps whose coefficients are 0 or 1: what a sum of terms is made of.

A *row* is one output element with the operand elements that it reads. All that the projection onto
a sum needs of a map is its value, its transposes, and sums over what a row reads; none of it makes
copies. What a map does not say of itself follows from ``apply`` by linear transposition.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.linear import Design
from pjax_trace.rule import Flags

__all__ = [
    "Contraction",
    "Map",
    "Private",
    "identity_map",
]

Labels = tuple[int, ...]
Shape = tuple[int, ...]


class Map:
    """``out = Σ x`` or ``out = Σ x w``: every row sums some elements, or products of pairs.

    A linear map has one operand, a bilinear one two. No row reads an element twice, every row
    reads something, and every element is read.
    """

    @property
    def shape(self) -> Shape:
        """Of the output."""
        raise NotImplementedError

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the operands."""
        raise NotImplementedError

    @property
    def plain(self) -> bool:
        """Whether it is the identity."""
        return False

    @property
    def fan(self) -> int:
        """The slots of a row in `private_copies`."""
        raise NotImplementedError

    @property
    def terms(self) -> np.ndarray | None:
        """Which slots a row has terms in, to be broadcast to its copies; None for all of them."""
        return None

    @property
    def count(self) -> Any:
        """How many terms every row has; broadcasts to the output."""
        return self.fan if self.terms is None else np.sum(self.terms, -1)

    @property
    def private(self) -> bool:
        """Whether no operand element is read by two rows."""
        return all(map(self.owns, range(len(self.shapes))))

    def owns(self, side: int) -> bool:
        """Whether every row has its own elements of an operand."""
        return bool(np.max(self.readers(side), initial=1) <= 1)

    def readers(self, side: int) -> Any:
        """How many rows read each element of an operand, at least 1; a number or NumPy array."""
        raise NotImplementedError

    def apply(self, *operands: Array) -> Array:
        """The output."""
        raise NotImplementedError

    def rows(self, x: Array, side: int) -> Array:
        """The sum over all terms of a row of one operand; broadcasts to the output."""
        if len(self.shapes) == 1:
            return self.apply(x)
        return self.apply(*_sides(side, x, jnp.ones(self.shapes[1 - side], x.dtype)))

    def spread(self, out: Array, side: int) -> Array:
        """The transpose of `rows`; broadcasts to the operand."""
        return self._transpose(lambda x: self.rows(x, side), out, side)

    def pull(self, out: Array, other: Array | None, side: int) -> Array:
        """The transpose in one operand, the other one given (None: ones)."""
        if other is None:
            return jnp.broadcast_to(self.spread(out, side), self.shapes[side])
        return self._transpose(lambda x: self.apply(*_sides(side, x, other)), out, side)

    def norms(self, inverse: Any, coefficient: Array | None, side: int) -> Any:
        """``Σ a² / ω`` of every row, for operand ``side`` with coefficients ``a`` and ``1 / ω``."""
        if coefficient is None:
            if jnp.ndim(inverse):
                return self.rows(inverse, side)
            return jnp.asarray(self.count, jnp.result_type(inverse)) * inverse
        square = jnp.square(coefficient)
        if jnp.ndim(inverse):
            return self.apply(*_sides(side, inverse, square))
        return self.rows(square, 1 - side) * inverse

    def private_copies(self, x: Array, side: int) -> Array:
        """An operand as private copies, ``[*shape, fan]``; 0 where a row has no term."""
        raise NotImplementedError

    def gathered(self, copies: Array, side: int) -> Array:
        """The transpose of `private_copies`."""
        return self._transpose(lambda x: self.private_copies(x, side), copies, side)

    def design(self, side: int, other: Array) -> Design | None:
        """The map as a matrix product in one operand, if all its rows and features make one."""
        return None

    def expand(self, variable: Flags) -> tuple["Map", tuple[Any, ...]]:
        """The map of private copies of its variables, and the views that make them, or None."""
        spread = tuple(v and not self.owns(side) for side, v in enumerate(variable))
        views: list[Callable[[Array], Array] | None] = [
            functools.partial(self.private_copies, side=side) if s else None
            for side, s in enumerate(spread)
        ]
        return (Private(self, spread) if any(spread) else self), tuple(views)

    def _transpose(self, function: Callable[[Array], Array], out: Array, side: int) -> Array:
        operand = jax.ShapeDtypeStruct(self.shapes[side], out.dtype)
        shape = jax.eval_shape(function, operand).shape
        full = self.shape if len(shape) == len(self.shape) else shape
        transposed = jax.linear_transpose(lambda x: jnp.broadcast_to(function(x), full), operand)
        (x,) = transposed(jnp.broadcast_to(out, full))
        return x


def _sides(side: int, x: Array, other: Array) -> tuple[Array, Array]:
    return (x, other) if side == 0 else (other, x)


@dataclasses.dataclass(frozen=True)
class Private(Map):
    """A map of which the operands in ``spread`` come as private copies, ``[*shape, fan]``."""

    inner: Map
    spread_: tuple[bool, ...]

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    @property
    def shapes(self) -> tuple[Shape, ...]:
        full = (*self.shape, self.fan)
        return tuple(full if s else x for s, x in zip(self.spread_, self.inner.shapes, strict=True))

    @property
    def fan(self) -> int:
        return self.inner.fan

    @property
    def terms(self) -> np.ndarray | None:
        return self.inner.terms

    def owns(self, side: int) -> bool:
        return self.spread_[side] or self.inner.owns(side)

    def readers(self, side: int) -> Any:
        return 1 if self.spread_[side] else self.inner.readers(side)

    def private_copies(self, x: Array, side: int) -> Array:
        return x if self.spread_[side] else self.inner.private_copies(x, side)

    def apply(self, *operands: Array) -> Array:
        copies = [self.private_copies(x, side) for side, x in enumerate(operands)]
        return jnp.sum(functools.reduce(jnp.multiply, copies), -1)

    def rows(self, x: Array, side: int) -> Array:
        copies = self.private_copies(x, side)
        return jnp.sum(copies if self.terms is None else jnp.where(self.terms, copies, 0), -1)

    def gathered(self, copies: Array, side: int) -> Array:
        return copies if self.spread_[side] else self.inner.gathered(copies, side)


@dataclasses.dataclass(frozen=True)
class Contraction(Map):
    """``out[…] = Σ lhs[…] rhs[…]`` over the labels that ``out`` lacks, as in an einsum.

    Without ``rhs`` it is a sum over axes. ``sizes`` gives the size of every label.
    """

    lhs: Labels
    rhs: Labels | None
    out: Labels
    sizes: tuple[int, ...]
    precision: Any = None

    @property
    def contracted(self) -> Labels:
        """The labels that are summed over."""
        return tuple(label for label in self.lhs if label not in self.out)

    @property
    def common(self) -> Labels:
        """The labels of a private copy: every equation's own operands."""
        return self.out + self.contracted

    @property
    def shape(self) -> Shape:
        return self.size_of(self.out)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(self.size_of(side) for side in (self.lhs, self.rhs) if side is not None)

    @property
    def plain(self) -> bool:
        return self.rhs is None and self.lhs == self.out

    @property
    def fan(self) -> int:
        return math.prod(self.size_of(self.contracted))

    def size_of(self, labels: Labels) -> Shape:
        """The shape of an array with these labels."""
        return tuple(self.sizes[label] for label in labels)

    def labels(self, side: int) -> Labels:
        """Of the left (0) or right (1) operand."""
        labels = self.rhs if side else self.lhs
        assert labels is not None
        return labels

    def owns(self, side: int) -> bool:
        labels = self.labels(side)
        return all(self.sizes[label] == 1 for label in self.common if label not in labels)

    def apply(self, *operands: Array) -> Array:
        if self.rhs is None:
            return _align(operands[0], self.lhs, self.out)
        x, w = operands
        if self.private or not self.contracted:
            product = _align(x, self.lhs, self.common) * _align(w, self.rhs, self.common)
            return _align(product, self.common, self.out)
        batch = [label for label in self.lhs if label in self.rhs and label in self.out]
        free = [
            *(label for label in self.lhs if label not in self.rhs),
            *(label for label in self.rhs if label not in self.lhs),
        ]
        dimensions = tuple(
            (tuple(map(self.lhs.index, labels)), tuple(map(self.rhs.index, labels)))
            for labels in (self.contracted, batch)
        )
        out = lax.dot_general(x, w, dimensions, precision=self.precision)  # pyright: ignore
        return _align(out, (*batch, *free), self.out)

    def rows(self, x: Array, side: int) -> Array:
        return _align(x, self.labels(side), self.out)

    def spread(self, out: Array, side: int) -> Array:
        """Of size 1 along what is contracted."""
        return _align(out, self.out, self.labels(side))

    def readers(self, side: int) -> int:
        labels = self.labels(side)
        return math.prod(self.sizes[label] for label in self.out if label not in labels)

    def pull(self, out: Array, other: Array | None, side: int) -> Array:
        if other is None:
            return super().pull(out, other, side)
        transposed = Contraction(
            self.out, self.labels(1 - side), self.labels(side), self.sizes, self.precision
        )
        return transposed.apply(out, other)

    def private_copies(self, x: Array, side: int) -> Array:
        aligned = _align(x, self.labels(side), self.common)
        full = jnp.broadcast_to(aligned, self.size_of(self.common))
        return full.reshape((*self.shape, self.fan))

    def gathered(self, copies: Array, side: int) -> Array:
        full = copies.reshape(self.size_of(self.common))
        return _align(full, self.common, self.labels(side))

    def design(self, side: int, other: Array) -> Design | None:
        """The other factor is the matrix, unless there is a batch, or nothing is contracted."""
        if self.rhs is None or not self.contracted:
            return None
        own, fixed = self.labels(side), self.labels(1 - side)
        if any(label in own and label in fixed for label in self.out):
            return None
        rows = tuple(i for i, label in enumerate(self.out) if label in fixed)
        features = tuple(i for i, label in enumerate(self.out) if label in own)

        def matrix() -> Array:
            labels = tuple(self.out[i] for i in rows) + self.contracted
            count = math.prod(self.shape[i] for i in rows)
            return other.transpose([fixed.index(label) for label in labels]).reshape((count, -1))

        return Design(
            self.shape,
            rows,
            features,
            tuple(own.index(label) for label in self.contracted),
            tuple(own.index(self.out[i]) for i in features),
            self.shapes[side],
            matrix,
        )


def _align(x: Array, labels: Labels, target: Labels) -> Array:
    """Axes in the order of ``target``: of size 1 where ``labels`` lacks them, else summed over."""
    lost = [label for label in labels if label not in target]
    if lost:
        x = jnp.sum(x, tuple(map(labels.index, lost)))
        labels = tuple(label for label in labels if label in target)
    order = sorted(range(len(labels)), key=lambda i: target.index(labels[i]))
    missing = tuple(i for i, label in enumerate(target) if label not in labels)
    return jnp.expand_dims(jnp.transpose(x, order), missing)


def identity_map(shape: Shape, sides: int = 1) -> Contraction:
    """``out = x``, or ``out = x w`` element by element with two sides."""
    labels = tuple(range(len(shape)))
    return Contraction(labels, labels if sides == 2 else None, labels, tuple(shape))
