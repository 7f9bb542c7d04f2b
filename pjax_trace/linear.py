"""Derivatives of constraints as operators, with what is known of them.

A sweep asks two things of a derivative J: its transpose, which hands to an operand what is asked
of the output, and, where the operand is a parameter, the least-squares problem ``J dx ≈ r``. For
the second it helps to know more than how J acts: that it is one matrix for all features (`Design`),
or at least the diagonal of ``JᵀJ``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pjax_trace.sums import column_sums, squared

__all__ = ["Design", "Implicit", "Jacobian", "Layout", "Made", "Matrix", "common_size"]


class Implicit(eqx.Module):
    """A matrix that need not be made: linear in its arrays, whose first axis goes with its rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        raise NotImplementedError

    def squares(self) -> Float[Array, "columns"]:
        """The squared length of every column."""
        raise NotImplementedError

    def total(self) -> Float[Array, ""]:
        """The sum of the squares of all elements."""
        return jnp.sum(self.squares())

    def transposed_times(
        self, target: Float[Array, "rows features"]
    ) -> Float[Array, "columns features"]:
        """The transpose times an array."""
        raise NotImplementedError

    def take(self, rows: Int[np.ndarray, "some"]) -> Float[Array, "some columns"]:
        """Some rows."""
        raise NotImplementedError

    def made(self) -> Float[Array, "rows columns"]:
        """The whole matrix."""
        raise NotImplementedError


class Made(Implicit):
    """An array."""

    array: Float[Array, "rows columns"]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.array.shape
        return rows, columns

    def squares(self) -> Float[Array, "columns"]:
        return column_sums(jnp.square(self.array))

    def total(self) -> Array:
        return squared(self.array)

    def transposed_times(self, target: Array) -> Array:
        return self.array.T @ target

    def take(self, rows: np.ndarray) -> Array:
        return self.array[rows]

    def made(self) -> Array:
        return self.array


Matrix = Float[Array, "rows columns"] | Implicit


def common_size(size: int) -> int:
    """The size that square matrices of a size are filled up to, to be in one stack with others.

    XLA compiles an operation on a stack once. Large matrices keep their size.
    """
    return size if size > 64 else max(16, 1 << (size - 1).bit_length())


class Layout(NamedTuple):
    """A permutation of elements: a reshape to ``atoms``, a transpose by ``order``, a reshape.

    Two layouts are equal if they put all elements in the same places.
    """

    before: tuple[int, ...]
    atoms: tuple[int, ...]
    order: tuple[int, ...]
    after: tuple[int, ...]

    def forward(self, x: Any) -> Any:
        """Elements in their new places; ``x`` broadcasts to the shape before."""
        full = jnp.broadcast_to(x, self.before)
        return full.reshape(self.atoms).transpose(self.order).reshape(self.after)

    def backward(self, x: Any) -> Any:
        """Elements in their old places; ``x`` broadcasts to the shape after."""
        moved = tuple(self.atoms[i] for i in self.order)
        full = jnp.broadcast_to(x, self.after).reshape(moved)
        return full.transpose([self.order.index(i) for i in range(len(self.order))]).reshape(
            self.before
        )


class Design(NamedTuple):
    """A derivative that is one matrix for all features.

    Output elements are rows and features, operand elements columns and features, and
    ``rows(J dx) = matrix @ columns(dx)``.

    Attributes:
        shape: of the output, in the layout that ``rows`` and ``features`` speak of.
        rows: the axes of the output that count rows, in their order.
        features: the axes of the output that count features.
        columns: the axes of the operand that count columns.
        own: the axes of the operand that count features, in the order of ``features``.
        operand: the shape of the operand.
        matrix: makes the matrix.
        layout: from ``shape`` to the output's own layout; None if they are the same.
        trust_factor: how much farther the operand may move in a step than a dense layer's weights.
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    features: tuple[int, ...]
    columns: tuple[int, ...]
    own: tuple[int, ...]
    operand: tuple[int, ...]
    matrix: Callable[[], Matrix]
    layout: Layout | None = None
    trust_factor: float = 1.0

    def rows_as(self, other: "Design") -> bool:
        """Whether another one has the same rows and features, so that both matrices go together."""
        return (self.shape, self.rows, self.features, self.layout) == (
            (other.shape, other.rows, other.features, other.layout)
        )

    def target(self, residual: Array) -> Float[Array, "rows features"]:
        """An array of the output's shape as rows and features."""
        x = residual if self.layout is None else self.layout.backward(residual)
        count = math.prod(self.shape[axis] for axis in self.rows)
        return x.transpose(self.rows + self.features).reshape((count, -1))

    def restore(self, unknown: Float[Array, "columns features"]) -> Array:
        """From columns and features to the operand."""
        order = self.columns + self.own
        sizes = tuple(self.operand[axis] for axis in order)
        return unknown.reshape(sizes).transpose([order.index(i) for i in range(len(order))])

    def arrange(self, operand: Array) -> Float[Array, "columns features"]:
        """The inverse of `restore`."""
        count = math.prod(self.operand[axis] for axis in self.columns)
        return operand.transpose(self.columns + self.own).reshape((count, -1))


class Jacobian(NamedTuple):
    """The derivative J of a constraint by one operand.

    Attributes:
        transpose: ``r → Jᵀ r``, from the output's shape to the operand's.
        squares: makes the diagonal of ``JᵀJ``, in the operand's shape.
        readers: how many scalar equations read each element of the operand; broadcasts to it.
        fan: the terms of an equation.
        design: J as a matrix product, if it is one.
        sign: the number that J multiplies with, if it only moves elements; else None.
        layout: how it moves them; None if it leaves them in their places.
    """

    transpose: Callable[[Array], Array]
    squares: Callable[[], Array]
    readers: Any
    fan: int = 1
    design: Design | None = None
    sign: float | None = None
    layout: Layout | None = None

    @staticmethod
    def of(
        function: Callable[[Array], Array], x: Array, readers: Any, *, diagonal: bool = False
    ) -> "Jacobian":
        """That of a function, by JAX's transposed derivative.

        Without more knowledge each derivative counts as ±1 in the squares; they are exact of what
        is ``diagonal``.
        """

        def transpose(residual: Array) -> Array:
            (answer,) = jax.vjp(function, x)[1](residual)
            return jnp.where(jnp.isfinite(answer), answer, 0)

        def squares() -> Array:
            if not diagonal:
                return jnp.broadcast_to(jnp.asarray(readers, x.dtype), x.shape)
            out = jax.eval_shape(function, x)
            return jnp.square(transpose(jnp.ones(out.shape, out.dtype)))

        return Jacobian(transpose, squares, readers)
