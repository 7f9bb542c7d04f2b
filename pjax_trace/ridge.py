"""Regularised least squares, exactly or from a low rank: what a sweep solves for every layer."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = ["Ridge", "solve_ridge"]

Matrix = Float[Array, "rows columns"]

_ROWS, _ROWS_PER_COLUMN = 1024, 4  # to estimate XᵀX from, whichever is more


class Ridge(NamedTuple):
    """A solution: the rows of it that belong to each matrix, and ``Tᵀ X dW`` for every feature."""

    steps: list[Float[Array, "columns features"]]
    gains: Float[Array, "features"]


def solve_ridge(
    matrices: Sequence[Matrix],
    target: Float[Array, "rows features"],
    damping: float,
    rank: int | None = None,
) -> Ridge:
    """``(XᵀX + ω I)⁻¹ Xᵀ T`` with ``ω = damping · tr(XᵀX) / rows``, X the matrices side by side.

    Exact on the smaller side of X by Cholesky, or with approximations of XᵀX (of no other part):

    * Where ω is above its mean eigenvalue, which is where ``rows < damping · columns``, only its
      few large eigenvalues matter. It is replaced by its Nyström approximation of a rank, from
      products with as many fixed random columns, which costs ``2 rank / features`` of what Xᵀ T
      does.
    * Elsewhere, of more than 1024 rows (or ``4 columns`` if that is more) it is estimated from a
      fixed random sample of so many, with its exact diagonal. That rows are like each other is
      what makes it near.

    Args:
        matrices: with equal rows.
        target: the right side.
        damping: not negative.
        rank: of the approximation; None to be exact everywhere, from all rows.

    Returns:
        The solution.

    References:
        Z. Frangella, J. Tropp, M. Udell, Randomized Nyström preconditioning, SIAM J. Matrix Anal.
        Appl. 44 (2023), algorithm 2.1 and eq. 1.4; without eigenvectors, which only its analysis
        needs.
    """
    dtype = target.dtype
    wide = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32  # for LAPACK, and for sums
    matrices, target = [m.astype(wide) for m in matrices], target.astype(wide)
    sizes = [m.shape[1] for m in matrices]
    rows, columns = len(target), sum(sizes)
    trace = sum(jnp.sum(jnp.square(m)) for m in matrices)
    trace = jnp.where(trace > 0, trace, 1)
    ridge = damping * trace / rows
    if rank is None or rank >= columns or rows > damping * columns:
        several = max(_ROWS, _ROWS_PER_COLUMN * columns)
        enough = rows if rank is None else min(rows, several)
        solution, gains = _on_the_smaller_side(matrices, target, ridge, enough)
    else:
        solution, gains = _of_low_rank(matrices, target, ridge, trace, rank)
    parts = [part.astype(dtype) for part in jnp.split(solution, np.cumsum(sizes)[:-1])]
    return Ridge(parts, gains.astype(dtype))


def _on_the_smaller_side(
    matrices: Sequence[Matrix], target: Array, ridge: Array, enough: int
) -> tuple[Array, Array]:
    """The solution, and its gains, which come out of what is solved with: no product is made.

    ``enough`` rows are those that the matrix which is solved with is made from.
    """
    matrix = jnp.concatenate(matrices, 1)
    rows, columns = matrix.shape
    if columns > rows:
        gram = matrix @ matrix.T + ridge * jnp.eye(rows, dtype=ridge.dtype)
        multiplier = _cholesky_solve(gram, target)
        met = target - ridge * multiplier
        return matrix.T @ multiplier, jnp.sum(target * met, 0)
    gram = _gram(matrix, enough) + ridge * jnp.eye(columns, dtype=ridge.dtype)
    right = matrix.T @ target
    solution = _cholesky_solve(gram, right)
    return solution, jnp.sum(right * solution, 0)


def _gram(matrix: Matrix, enough: int) -> Array:
    """``XᵀX``, or what a sample of rows says of it."""
    rows = len(matrix)
    if enough == rows:
        return matrix.T @ matrix
    # Not one row in so many: it would meet the same pixels of all images.
    chosen = np.sort(np.random.default_rng(0).choice(rows, enough, replace=False))
    sample = matrix[chosen]
    exact, seen = (jnp.sum(jnp.square(m), 0) for m in (matrix, sample))
    # What the sample has too little of, or nothing, would else be thought to be easily moved.
    scale = jnp.sqrt(jnp.where(seen > 0, exact / jnp.where(seen > 0, seen, 1), 0))
    unseen = jnp.diag(jnp.where(seen > 0, 0, exact))
    return scale[:, None] * (sample.T @ sample) * scale[None] + unseen


def _of_low_rank(
    matrices: Sequence[Matrix], target: Array, ridge: Array, trace: Array, rank: int
) -> tuple[Array, Array]:
    """``Xᵀ (T − S Z) / ω``: what the large eigenvalues change is taken off the right side."""
    columns = sum(m.shape[1] for m in matrices)
    eps = float(jnp.finfo(target.dtype).eps)
    test = np.random.default_rng(0).normal(size=(columns, rank))
    test = jnp.asarray(test.astype(target.dtype))
    seen = _times(matrices, test)
    # Without a shift the core would be singular to rounding; it is nothing beside the ridge.
    sketch = _transposed_times(matrices, seen) + 10 * rank * eps / columns * trace * test
    factor = _inverse_of_triangle(lax.linalg.cholesky(test.T @ sketch)).T
    root = sketch @ factor  # root rootᵀ ≈ XᵀX, and root ≈ Xᵀ seen factor
    inner = root.T @ root + ridge * jnp.eye(rank, dtype=root.dtype)
    large = _inverse(inner) @ (_times(matrices, root).T @ target)
    solution = _transposed_times(matrices, (target - (seen @ factor) @ large) / ridge)
    # Tᵀ X dW = dWᵀ (XᵀX + ω I) dW
    gains = ridge * jnp.sum(jnp.square(solution), 0) + jnp.sum(jnp.square(root.T @ solution), 0)
    return solution, gains


def _times(matrices: Sequence[Matrix], x: Any) -> Array:
    parts = jnp.split(x, np.cumsum([m.shape[1] for m in matrices])[:-1])
    return functools.reduce(jnp.add, (m @ part for m, part in zip(matrices, parts, strict=True)))


def _transposed_times(matrices: Sequence[Matrix], x: Array) -> Array:
    return jnp.concatenate([m.T @ x for m in matrices])


def _cholesky_solve(matrix: Array, right: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


def _inverse_of_triangle(factor: Array) -> Array:
    # Of the unit matrix, because LAPACK's threads get in the way of XLA's with many right sides.
    unit = jnp.eye(len(factor), dtype=factor.dtype)
    return lax.linalg.triangular_solve(factor, unit, left_side=True, lower=True)


def _inverse(matrix: Array) -> Array:
    """Of a symmetric positive definite matrix."""
    inverse = _inverse_of_triangle(lax.linalg.cholesky(matrix))
    return inverse.T @ inverse
