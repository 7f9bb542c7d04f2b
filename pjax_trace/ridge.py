"""Regularised least squares, exactly or from a low rank: what a sweep solves for every layer."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.linear import Implicit, Made, Matrix

__all__ = ["Ridge", "solve_ridge"]

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
    count: Any = None,
) -> Ridge:
    """``(XᵀX + ω I)⁻¹ Xᵀ T`` with ``ω = damping · tr(XᵀX) / count``, X the matrices side by side.

    Exact on the smaller side of X by Cholesky, or with approximations of XᵀX (of no other part):

    * Where ω is above its mean eigenvalue, which is where ``rows < damping · columns``, only its
      few large eigenvalues matter. It is replaced by its Nyström approximation of a rank, from
      products with as many fixed random columns, which costs ``2 rank / features`` of what Xᵀ T
      does.
    * Elsewhere, of more than 1024 rows (or ``4 columns`` if that is more) it is estimated from a
      fixed random sample of so many, with its exact diagonal. That rows are like each other is
      what makes it near. Implicit matrices are not made then.

    Args:
        matrices: with equal rows.
        target: the right side.
        damping: not negative.
        rank: of the approximation; None to be exact everywhere, from all rows.
        count: how many rows are meant, if not all of them; some may stand for others.

    Returns:
        The solution.

    References:
        Z. Frangella, J. Tropp, M. Udell, Randomized Nyström preconditioning, SIAM J. Matrix Anal.
        Appl. 44 (2023), algorithm 2.1 and eq. 1.4; without eigenvectors, which only its analysis
        needs.
    """
    dtype = target.dtype
    wide = _compat.promoted(dtype, jnp.float32)  # for LAPACK, and for sums
    matrices, target = jax.tree.map(lambda x: x.astype(wide), (list(matrices), target))
    parts = [m if isinstance(m, Implicit) else Made(m) for m in matrices]
    sizes = [m.shape[1] for m in parts]
    rows, columns = len(target), sum(sizes)
    squares = jnp.concatenate([m.squares() for m in parts])
    trace = jnp.sum(squares)
    trace = jnp.where(trace > 0, trace, 1)
    ridge = damping * trace / (rows if count is None else jnp.asarray(count, trace.dtype))
    enough = rows if rank is None else max(_ROWS, _ROWS_PER_COLUMN * columns)
    if rank is not None and rank < columns and rows <= damping * columns:
        solution, gains = _of_low_rank([m.made() for m in parts], target, ridge, trace, rank)
    elif enough < rows:
        solution, gains = _of_a_sample(parts, target, ridge, squares, enough)
    else:
        matrix = jnp.concatenate([m.made() for m in parts], 1)
        solution, gains = _on_the_smaller_side(matrix, target, ridge)
    steps = [part.astype(dtype) for part in jnp.split(solution, np.cumsum(sizes)[:-1])]
    return Ridge(steps, gains.astype(dtype))


def _on_the_smaller_side(matrix: Array, target: Array, ridge: Array) -> tuple[Array, Array]:
    """The solution, and its gains, which come out of what is solved with: no product is made."""
    rows, columns = matrix.shape
    if columns <= rows:
        return _of_gram(matrix.T @ matrix, matrix.T @ target, ridge)
    gram = matrix @ matrix.T + ridge * jnp.eye(rows, dtype=ridge.dtype)
    multiplier = _cholesky_solve(gram, target)
    met = target - ridge * multiplier
    return matrix.T @ multiplier, jnp.sum(target * met, 0)


def _of_a_sample(
    parts: Sequence[Implicit], target: Array, ridge: Array, squares: Array, enough: int
) -> tuple[Array, Array]:
    """What ``enough`` rows say of XᵀX, with its diagonal ``squares``; all else of all rows."""
    # Not one row in so many: it would meet the same pixels of all images.
    chosen = np.sort(np.random.default_rng(0).choice(len(target), enough, replace=False))
    sample = jnp.concatenate([m.take(chosen) for m in parts], 1)
    seen = jnp.sum(jnp.square(sample), 0)
    # What the sample has too little of, or nothing, would else be thought to be easily moved.
    scale = jnp.sqrt(jnp.where(seen > 0, squares / jnp.where(seen > 0, seen, 1), 0))
    unseen = jnp.diag(jnp.where(seen > 0, 0, squares))
    gram = scale[:, None] * (sample.T @ sample) * scale[None] + unseen
    return _of_gram(gram, jnp.concatenate([m.transposed_times(target) for m in parts]), ridge)


def _of_gram(gram: Array, right: Array, ridge: Array) -> tuple[Array, Array]:
    solution = _cholesky_solve(gram + ridge * jnp.eye(len(gram), dtype=ridge.dtype), right)
    return solution, jnp.sum(right * solution, 0)


def _of_low_rank(
    matrices: Sequence[Array], target: Array, ridge: Array, trace: Array, rank: int
) -> tuple[Array, Array]:
    """``Xᵀ (T − S Z) / ω``: what the large eigenvalues change is taken off the right side."""
    columns = sum(m.shape[1] for m in matrices)
    eps = float(jnp.finfo(target.dtype).eps)
    # Orthonormal, else the core is as badly conditioned as a random matrix that is nearly square.
    test, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(columns, rank)))
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


def _times(matrices: Sequence[Array], x: Any) -> Array:
    parts = jnp.split(x, np.cumsum([m.shape[1] for m in matrices])[:-1])
    return functools.reduce(jnp.add, (m @ part for m, part in zip(matrices, parts, strict=True)))


def _transposed_times(matrices: Sequence[Array], x: Array) -> Array:
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
