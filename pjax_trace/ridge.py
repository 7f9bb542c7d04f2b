"""Regularised least squares, exactly or from a low rank: what a sweep solves for every layer."""

import functools
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.linear import Implicit, Made, Matrix, common_size
from pjax_trace.sums import column_sums
from pjax_trace.whitening import whiteners

__all__ = ["LeastSquares", "Ridge", "solve_ridges"]

_ROWS, _ROWS_PER_COLUMN = 1024, 4  # to estimate XᵀX from, whichever is more
_SMALL = 64  # the size of matrices that are factored together


class _Solution(NamedTuple):
    """A solution, and pairs of factors; ``Tᵀ X dW`` is the sum of their products ``leftᵀ right``.

    The right ones are linear in the solution.
    """

    solution: Array
    factors: list[tuple[Array, Array]]


# It yields positive definite matrices, and is sent the inverses of their Cholesky factors.
_Solver = Generator[Array, Array, _Solution]


class LeastSquares(NamedTuple):
    """A problem: matrices side by side, the right side, and how many rows are meant (None: all)."""

    matrices: Sequence[Matrix]
    target: Float[Array, "rows features"]
    count: Any = None


class Ridge(NamedTuple):
    """A solution: the rows of it that belong to each matrix, and ``Tᵀ X dW`` for every feature."""

    steps: list[Float[Array, "columns features"]]
    gains: Float[Array, "features"]


def solve_ridges(
    problems: Sequence[LeastSquares],
    damping: float,
    rank: int | None = None,
    whitening: int | None = None,
) -> list[Ridge]:
    """``(XᵀX + ω I)⁻¹ Xᵀ T P`` with ``ω = damping · tr(XᵀX) / count``, X the matrices side by side.

    Exact on the smaller side of X by Cholesky, or, if no side is small, with approximations of XᵀX
    (of no other part):

    * Where ω is above its mean eigenvalue, which is where ``rows < damping · columns``, only its
      few large eigenvalues matter. It is replaced by its Nyström approximation of a rank, from
      products with as many fixed random columns, which costs ``2 rank / features`` of what Xᵀ T
      does.
    * Elsewhere, of more than 1024 rows (or ``4 columns`` if that is more) it is estimated from a
      fixed random sample of so many, with its exact diagonal. That rows are like each other is
      what makes it near. Implicit matrices are not made then.

    Args:
        problems: each with matrices of equal rows.
        damping: not negative.
        rank: of the approximation; None to be exact everywhere, from all rows.
        whitening: the rounds in which P is found, about ``(TᵀT + ω I)^(-1/2)`` up to a factor, with
            ``ω = damping · tr(TᵀT) / count``; see `whiteners`. None for the unit matrix.

    Returns:
        The solutions.

    References:
        Z. Frangella, J. Tropp, M. Udell, Randomized Nyström preconditioning, SIAM J. Matrix Anal.
        Appl. 44 (2023), algorithm 2.1 and eq. 1.4; without eigenvectors, which only its analysis
        needs.
    """
    found = _side_by_side([_solver(problem, damping, rank) for problem in problems])
    if whitening:
        counts = [len(p.target) if p.count is None else p.count for p in problems]
        dampings = [damping / count for count in counts]
        maps = whiteners([p.target for p in problems], dampings, whitening)
    else:
        maps = [lambda x: x] * len(problems)
    ridges = []
    for problem, (solution, factors), whiten in zip(problems, found, maps, strict=True):
        dtype, sizes = problem.target.dtype, [m.shape[1] for m in problem.matrices]
        parts = jnp.split(whiten(solution).astype(dtype), np.cumsum(sizes)[:-1])
        gains = (column_sums(left * whiten(right)) for left, right in factors)
        ridges.append(Ridge(parts, functools.reduce(jnp.add, gains).astype(dtype)))
    return ridges


def _side_by_side(solvers: Sequence[_Solver]) -> list[_Solution]:
    """What solvers return; the matrices that they yield at a time are factored together.

    One factorisation of a stack of matrices takes XLA as long to compile as that of one.
    """
    found: dict[int, _Solution] = {}
    sent: dict[int, Array | None] = dict.fromkeys(range(len(solvers)))
    while sent:
        asked: dict[tuple[int, Any], dict[int, Array]] = {}
        for i, answer in sent.items():
            try:
                matrix = next(solvers[i]) if answer is None else solvers[i].send(answer)
            except StopIteration as end:
                found[i] = end.value
                continue
            size = common_size(len(matrix))
            asked.setdefault((size, matrix.dtype), {})[i] = matrix
        sent = {}
        for (size, _), own in asked.items():
            stack = jnp.stack([_filled_up(matrix, size) for matrix in own.values()])
            inverses = _inverse_of_triangle(lax.linalg.cholesky(stack))
            for (i, matrix), inverse in zip(own.items(), inverses, strict=True):
                sent[i] = inverse[: len(matrix), : len(matrix)]
    return [found[i] for i in range(len(solvers))]


def _filled_up(matrix: Array, size: int) -> Array:
    """A matrix in the corner of a larger one, which is a unit matrix elsewhere."""
    more = size - len(matrix)
    if not more:
        return matrix
    ones = jnp.diag(jnp.asarray(np.arange(size) >= len(matrix), matrix.dtype))
    return jnp.pad(matrix, (0, more)) + ones


def _solver(problem: LeastSquares, damping: float, rank: int | None) -> _Solver:
    """The solver of one problem."""
    wide = _compat.promoted(problem.target.dtype, jnp.float32)  # for LAPACK, and for sums
    matrices, target = jax.tree.map(
        lambda x: x.astype(wide), (list(problem.matrices), problem.target)
    )
    parts = [m if isinstance(m, Implicit) else Made(m) for m in matrices]
    rows, columns, count = len(target), sum(m.shape[1] for m in parts), problem.count
    trace = functools.reduce(jnp.add, [m.total() for m in parts])
    trace = jnp.where(trace > 0, trace, 1)
    ridge = damping * trace / (rows if count is None else jnp.asarray(count, trace.dtype))
    enough = rows if rank is None else max(_ROWS, _ROWS_PER_COLUMN * columns)
    large = rank is not None and min(rows, columns) > max(rank, _SMALL)
    if large and rank is not None and rows <= damping * columns:
        return _of_low_rank([m.made() for m in parts], target, ridge, trace, rank)
    if enough < rows:
        return _of_a_sample(parts, target, ridge, enough)
    return _on_the_smaller_side(jnp.concatenate([m.made() for m in parts], 1), target, ridge)


def _on_the_smaller_side(matrix: Array, target: Array, ridge: Array) -> _Solver:
    """The solution, and its gains, which come out of what is solved with: no product is made."""
    rows, columns = matrix.shape
    if columns <= rows:
        return (yield from _of_gram(matrix.T @ matrix, matrix.T @ target, ridge))
    multiplier = yield from _damped_solve(matrix @ matrix.T, target, ridge)
    return _Solution(matrix.T @ multiplier, [(target, target - ridge * multiplier)])


def _of_a_sample(parts: Sequence[Implicit], target: Array, ridge: Array, enough: int) -> _Solver:
    """What ``enough`` rows say of XᵀX, with its exact diagonal; all else of all rows."""
    # Not one row in so many: it would meet the same pixels of all images.
    chosen = np.sort(np.random.default_rng(0).choice(len(target), enough, replace=False))
    sample = jnp.concatenate([m.take(chosen) for m in parts], 1)
    seen, squares = Made(sample).squares(), jnp.concatenate([m.squares() for m in parts])
    # What the sample has too little of, or nothing, would else be thought to be easily moved.
    scale = jnp.sqrt(jnp.where(seen > 0, squares / jnp.where(seen > 0, seen, 1), 0))
    unseen = jnp.diag(jnp.where(seen > 0, 0, squares))
    gram = scale[:, None] * (sample.T @ sample) * scale[None] + unseen
    right = jnp.concatenate([m.transposed_times(target) for m in parts])
    return (yield from _of_gram(gram, right, ridge))


def _of_gram(gram: Array, right: Array, ridge: Array) -> _Solver:
    solution = yield from _damped_solve(gram, right, ridge)
    return _Solution(solution, [(right, solution)])


def _damped_solve(matrix: Array, right: Array, ridge: Array) -> Generator[Array, Array, Array]:
    """``(M + ω I)⁻¹ right`` of a positive semidefinite M."""
    damped = matrix + ridge * jnp.eye(len(matrix), dtype=ridge.dtype)
    if len(matrix) > _SMALL:
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), right)
    inverse = yield damped
    return inverse.T @ (inverse @ right)


def _of_low_rank(
    matrices: Sequence[Array], target: Array, ridge: Array, trace: Array, rank: int
) -> _Solver:
    """``Xᵀ (T − S Z) / ω``: what the large eigenvalues change is taken off the right side."""
    columns = sum(m.shape[1] for m in matrices)
    eps = float(jnp.finfo(target.dtype).eps)
    # Orthonormal, else the core is as badly conditioned as a random matrix that is nearly square.
    test, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(columns, rank)))
    test = jnp.asarray(test.astype(target.dtype))
    seen = _times(matrices, test)
    # Without a shift the core would be singular to rounding; it is nothing beside the ridge.
    sketch = _transposed_times(matrices, seen) + 10 * rank * eps / columns * trace * test
    factor = (yield test.T @ sketch).T
    root = sketch @ factor  # root rootᵀ ≈ XᵀX, and root ≈ Xᵀ seen factor
    inner = root.T @ root + ridge * jnp.eye(rank, dtype=root.dtype)
    inverse = yield inner
    large = inverse.T @ (inverse @ (_times(matrices, root).T @ target))
    solution = _transposed_times(matrices, (target - (seen @ factor) @ large) / ridge)
    # Tᵀ X dW = dWᵀ (XᵀX + ω I) dW
    seen = root.T @ solution
    return _Solution(solution, [(ridge * solution, solution), (seen, seen)])


def _times(matrices: Sequence[Array], x: Any) -> Array:
    parts = jnp.split(x, np.cumsum([m.shape[1] for m in matrices])[:-1])
    return functools.reduce(jnp.add, (m @ part for m, part in zip(matrices, parts, strict=True)))


def _transposed_times(matrices: Sequence[Array], x: Array) -> Array:
    return jnp.concatenate([m.T @ x for m in matrices])


def _inverse_of_triangle(factors: Array) -> Array:
    """Of each of several lower triangles."""
    # Of the unit matrix, because LAPACK's threads get in the way of XLA's with many right sides.
    unit = jnp.broadcast_to(jnp.eye(factors.shape[-1], dtype=factors.dtype), factors.shape)
    return lax.linalg.triangular_solve(factors, unit, left_side=True, lower=True)
