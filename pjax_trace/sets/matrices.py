"""Sets of matrices, which the last two axes hold: by structure, eigenvalues, singular values."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pjax_trace.errors import InputError
from pjax_trace.sets.base import (
    Set,
    as_array,
    broadcast,
    check_count,
    check_finite,
    check_not_nan,
    check_not_negative,
    concrete,
    matmul,
    sides,
    whole,
)
from pjax_trace.sets.norms import L1Ball, Simplex

__all__ = [
    "PSD",
    "Circulant",
    "Hankel",
    "NuclearBall",
    "Orthogonal",
    "Rank",
    "SpectralBall",
    "SpectralBox",
    "Spectraplex",
    "Symmetric",
    "Toeplitz",
]


def _each(name: str, leaf: ArrayLike, x: Array) -> Array:
    """A field with one number for each matrix, as ``[..., 1]``."""
    return broadcast(name, leaf, x, x.shape[:-2])[..., None]


def _symmetric_part(x: Array) -> Array:
    return x / 2 + jnp.swapaxes(x, -1, -2) / 2


def _by_eigenvalues(x: Array, function: Callable[[Array], Array]) -> Array:
    """The symmetric matrix with the eigenvectors of x, and a function of its eigenvalues."""
    sides(x, square=True)
    if x.size == 0:
        return x
    part = _symmetric_part(x)
    values, vectors = jnp.linalg.eigh(part, symmetrize_input=False)
    moved = function(values)
    y = matmul(vectors * moved[..., None, :], jnp.swapaxes(vectors, -1, -2))
    inside = jnp.all(moved == values, axis=-1)[..., None, None]
    return jnp.where(inside, part, _symmetric_part(y))


def _by_singular_values(x: Array, function: Callable[[Array], Array]) -> Array:
    """The matrix with the singular vectors of x, and a function of its singular values."""
    sides(x)
    if x.size == 0:
        return x
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    moved = function(values)
    y = matmul(left * moved[..., None, :], right)
    return jnp.where(jnp.all(moved == values, axis=-1)[..., None, None], x, y)


def _equal_within(x: Array, group: np.ndarray) -> Array:
    """Every element of a matrix becomes the mean of its group; groups are numbered from 0."""
    if x.size == 0:
        return x
    sizes = np.bincount(group.ravel())
    sums = jnp.zeros((*x.shape[:-2], len(sizes)), x.dtype).at[..., group].add(x)
    return (sums / jnp.broadcast_to(jnp.asarray(sizes, x.dtype), sums.shape))[..., group]


class Symmetric(Set):
    """Symmetric matrices, ``{y : y = y^T}``. The last two axes are those of a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Symmetric
        >>> Symmetric().project(jnp.array([[1.0, 2.0], [4.0, 3.0]]))
        Array([[1., 3.],
               [3., 3.]], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point: ``(x + x^T) / 2``."""
        sides(x, square=True)
        return _symmetric_part(x)


class Toeplitz(Set):
    """Matrices that are constant along every diagonal, ``y[i, j] = c[j - i]``.

    The last two axes are those of a matrix, which need not be square.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Toeplitz
        >>> Toeplitz().project(jnp.array([[1.0, 2.0], [4.0, 3.0]]))
        Array([[2., 2.],
               [4., 2.]], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def project(self, x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
        """The nearest point: the mean of each diagonal."""
        rows, columns = np.indices(sides(x))
        return _equal_within(x, columns - rows + x.shape[-2] - 1)


class Hankel(Set):
    """Matrices that are constant along every antidiagonal, ``y[i, j] = c[i + j]``.

    The last two axes are those of a matrix, which need not be square.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Hankel
        >>> Hankel().project(jnp.array([[1.0, 2.0], [4.0, 3.0]]))
        Array([[1., 3.],
               [3., 3.]], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def project(self, x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
        """The nearest point: the mean of each antidiagonal."""
        rows, columns = np.indices(sides(x))
        return _equal_within(x, rows + columns)


class Circulant(Set):
    """Matrices in which every row is the one above, rotated: ``y[i, j] = c[(j - i) mod n]``.

    The last two axes are those of a square matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Circulant
        >>> Circulant().project(jnp.array([[1.0, 2.0], [4.0, 3.0]]))
        Array([[2., 3.],
               [3., 2.]], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point: the mean of each wrapped diagonal."""
        rows, columns = np.indices(sides(x, square=True))
        return _equal_within(x, (columns - rows) % max(x.shape[-1], 1))


class SpectralBox(Set):
    """Symmetric matrices with eigenvalues between bounds, ``{y = y^T : lower I <= y <= upper I}``.

    Args:
        lower: a scalar, or one for each matrix. ``-inf`` means no bound.
        upper: a scalar, or one for each matrix. ``inf`` means no bound.

    Raises:
        InputError: if a bound is NaN or a lower bound exceeds its upper bound. Where that turns out
            later, the answer is NaN.

    References:
        N. Higham, Computing a nearest symmetric positive semidefinite matrix (1988).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import SpectralBox
        >>> SpectralBox(1.0, 2.0).project(jnp.diag(jnp.array([0.5, 3.0])))
        Array([[1., 0.],
               [0., 2.]], dtype=float32)
    """

    convex: ClassVar[bool] = True
    lower: ArrayLike = eqx.field(converter=as_array)
    upper: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_not_nan(self, lower=self.lower, upper=self.upper)
        if concrete(self.lower, self.upper) and np.any(np.greater(self.lower, self.upper)):
            raise InputError(f"SpectralBox is empty: lower {self.lower} exceeds {self.upper}")

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point: the symmetric part of x, with its eigenvalues clipped."""
        sides(x, square=True)
        lower, upper = _each("lower", self.lower, x), _each("upper", self.upper, x)

        def clipped(values: Array) -> Array:
            moved = jnp.clip(values, lower, upper)
            return jnp.where(lower <= upper, moved, jnp.nan)

        return _by_eigenvalues(x, clipped)


class PSD(Set):
    """The cone of symmetric positive semidefinite matrices, ``{y = y^T : y >= 0}``.

    The last two axes are those of a square matrix, which need not be symmetric.

    References:
        N. Higham, Computing a nearest symmetric positive semidefinite matrix (1988), theorem 2.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import PSD
        >>> PSD().project(jnp.diag(jnp.array([-1.0, 2.0])))
        Array([[0., 0.],
               [0., 2.]], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point: the symmetric part of x, without its negative eigenvalues."""
        return _by_eigenvalues(x, lambda values: jnp.maximum(values, 0))


class Spectraplex(Set):
    """Positive semidefinite matrices of a given trace, such as density matrices.

    ``{y = y^T : y >= 0, trace(y) = trace}``; the last two axes are those of a square matrix.

    Args:
        trace: not negative and finite; a scalar, or one for each matrix.

    Raises:
        InputError: if a trace is negative, infinite or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Spectraplex
        >>> Spectraplex().project(jnp.diag(jnp.array([-1.0, 2.0])))
        Array([[0., 0.],
               [0., 1.]], dtype=float32)
    """

    convex: ClassVar[bool] = True
    trace: ArrayLike = eqx.field(default=1.0, converter=as_array)

    def __check_init__(self):
        check_finite(self, trace=self.trace)
        check_not_negative(self, trace=self.trace)

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point: the eigenvalues are projected onto a simplex."""
        sides(x, square=True)
        return _by_eigenvalues(x, Simplex(_each("trace", self.trace, x), axis=-1).project)


class SpectralBall(Set):
    """Matrices whose singular values are at most a radius: the ball of the spectral norm.

    Args:
        radius: not negative; a scalar, or one for each matrix.

    Raises:
        InputError: if a radius is negative or NaN.

    References:
        N. Parikh, S. Boyd, Proximal algorithms (2014), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import SpectralBall
        >>> SpectralBall(1.0).project(jnp.diag(jnp.array([-3.0, 0.5])))
        Array([[-1. ,  0. ],
               [ 0. ,  0.5]], dtype=float32)
    """

    convex: ClassVar[bool] = True
    radius: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_not_negative(self, radius=self.radius)

    def project(self, x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
        """The nearest point: no singular value is larger than the radius."""
        sides(x)
        radius = _each("radius", self.radius, x)
        radius = jnp.where(radius >= 0, radius, jnp.nan)
        return _by_singular_values(x, lambda values: jnp.minimum(values, radius))


class NuclearBall(Set):
    """Matrices whose singular values have at most a given sum: the ball of the nuclear norm.

    Args:
        radius: not negative; a scalar, or one for each matrix.

    Raises:
        InputError: if a radius is negative or NaN.

    References:
        N. Parikh, S. Boyd, Proximal algorithms (2014), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import NuclearBall
        >>> NuclearBall(1.0).project(jnp.diag(jnp.array([-3.0, 0.5])))
        Array([[-1.,  0.],
               [ 0.,  0.]], dtype=float32)
    """

    convex: ClassVar[bool] = True
    radius: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_not_negative(self, radius=self.radius)

    def project(self, x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
        """The nearest point: the singular values are projected onto a ball of the 1-norm."""
        sides(x)
        return _by_singular_values(x, L1Ball(_each("radius", self.radius, x), axis=-1).project)


class Rank(Set):
    """Matrices of rank k at most. The last two axes are those of a matrix.

    Where singular values are equal, the answer is the one that the decomposition has first.

    Args:
        k: from 0 to the smaller side of the matrix.

    Raises:
        InputError: if k is negative, or larger than the smaller side.

    References:
        C. Eckart, G. Young, The approximation of one matrix by another of lower rank (1936).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Rank
        >>> Rank(1).project(jnp.diag(jnp.array([-3.0, 0.5])))
        Array([[-3.,  0.],
               [ 0.,  0.]], dtype=float32)
    """

    k: int = eqx.field(converter=whole, static=True)

    def __check_init__(self):
        check_count(self, "k", self.k)

    def project(self, x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
        """The nearest point: the k largest singular values, and their vectors."""
        check_count(self, "k", self.k, min(sides(x)))
        return _by_singular_values(x, lambda values: values.at[..., self.k :].set(0))


class Orthogonal(Set):
    """Matrices with orthonormal columns, ``y^T y = I``, or rows if there are fewer: Stiefel's set.

    Where x has no full rank, the answer is the one that its singular value decomposition gives.

    References:
        N. Higham, Computing the polar decomposition, with applications (1986); P. Schönemann, A
        generalized solution of the orthogonal Procrustes problem (1966).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Orthogonal
        >>> Orthogonal().project(jnp.diag(jnp.array([-3.0, 0.5])))
        Array([[-1.,  0.],
               [ 0.,  1.]], dtype=float32)
    """

    def project(self, x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
        """The nearest point: the orthogonal factor of the polar decomposition."""
        return _by_singular_values(x, jnp.ones_like)
