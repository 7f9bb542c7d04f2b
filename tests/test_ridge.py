"""Regularised least squares against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pjax_trace.ridge import LeastSquares, solve_ridges


def solve_ridge(matrices, target, damping, rank=None, count=None):
    return solve_ridges([LeastSquares(matrices, target, count)], damping, rank)[0]


def problem(rows, columns, spectrum, seed=0):
    """A matrix of these singular values, up to a factor, and a right side."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, len(spectrum))))
    right, _ = np.linalg.qr(rng.normal(size=(columns, len(spectrum))))
    matrix = left * np.asarray(spectrum) @ right.T
    return matrix.astype(np.float32), rng.normal(size=(rows, 5)).astype(np.float32)


def expected(matrix, target, damping):
    x, t = matrix.astype(np.float64), target.astype(np.float64)
    ridge = damping * np.sum(x**2) / len(x)
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ t)


def solved(matrices, target, damping, rank):
    arrays = [jnp.asarray(m) for m in matrices]
    return np.concatenate(solve_ridge(arrays, jnp.asarray(target), damping, rank).steps)


@pytest.mark.parametrize("rank", [None, 64])
@pytest.mark.parametrize(("rows", "columns"), [(50, 7), (7, 50), (1, 1), (3, 64)])
def test_exactly(rows, columns, rank):
    matrix, target = problem(rows, columns, np.linspace(1, 2, min(rows, columns)))
    for damping in (0.01, 1.0, 30.0):
        got = solved([matrix], target, damping, rank)
        np.testing.assert_allclose(got, expected(matrix, target, damping), rtol=2e-4, atol=1e-5)


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("split", [(60,), (1, 59), (20, 20, 20)])
def test_what_has_a_low_rank_is_solved_exactly(split):
    matrix, target = problem(40, 60, np.geomspace(1, 0.01, 8))
    parts = np.split(matrix, np.cumsum(split)[:-1], axis=1)
    for damping in (1.0, 10.0):
        assert error(solved(parts, target, damping, 16), expected(matrix, target, damping)) < 1e-3


def test_what_the_rank_leaves_out_is_below_the_ridge():
    """A few large directions over a floor, as layers have them."""
    spectrum = np.concatenate([np.geomspace(30, 3, 10), np.full(90, 1.0)])
    matrix, target = problem(100, 200, spectrum)
    ridge = 10 * np.sum(spectrum**2) / 100
    want, plain = expected(matrix, target, 10.0), matrix.T @ target / ridge
    errors = [error(solved([matrix], target, 10.0, rank), want) for rank in (8, 16, 32)]
    assert errors[0] < 0.1 * error(plain, want)
    assert errors[1] < 0.05 and errors[2] < 0.02


def test_many_rows_are_sampled():
    """What is left of the target is nearly what the exact solution leaves."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(8000, 20)) * np.geomspace(1, 0.1, 20)
    target = matrix @ rng.normal(size=(20, 3)) + rng.normal(size=(8000, 3))
    matrix, target = matrix.astype(np.float32), target.astype(np.float32)
    want = expected(matrix, target, 1.0)
    sampled, exact = (solved([matrix], target, 1.0, rank) for rank in (16, None))
    assert error(exact, want) < 1e-4 < error(sampled, want)
    before, best, left = (np.sum((target - matrix @ x) ** 2) for x in (0 * want, want, sampled))
    assert left - best < 0.15 * (before - best)


@pytest.mark.parametrize("kind", ["feature", "row"])
def test_what_the_sample_does_not_see_is_not_moved_far(kind):
    rng = np.random.default_rng(0)
    matrix, target = rng.normal(size=(4096, 20)), rng.normal(size=(4096, 3))
    unseen = np.setdiff1d(np.arange(4096), np.random.default_rng(0).choice(4096, 1024, False))
    if kind == "feature":
        matrix[:, 0] = 0
        matrix[unseen[:40], 0] = 10
    else:
        matrix[unseen[0], 0] = 300
    target += 3 * matrix[:, :1]
    matrix, target = matrix.astype(np.float32), target.astype(np.float32)
    want, got = expected(matrix, target, 3.0), solved([matrix], target, 3.0, 16)
    before, best, left = (np.sum((target - matrix @ x) ** 2) for x in (0 * want, want, got))
    assert left - best < 0.2 * (before - best)


def test_where_the_ridge_is_low_all_of_it_is_solved():
    matrix, target = problem(300, 20, np.geomspace(1, 0.1, 20))
    np.testing.assert_array_equal(*(solved([matrix], target, 10.0, r) for r in (16, None)))


def test_inputs_that_are_nothing_or_huge():
    zeros, target = np.zeros((30, 40), np.float32), np.ones((30, 2), np.float32)
    assert not np.any(solved([zeros], target, 10.0, 16))
    assert not np.any(solved([zeros], target, 10.0, None))
    for scale in (1e-12, 1e12):
        matrix, target = problem(30, 40, np.geomspace(1, 0.1, 30))
        one = solved([matrix], target, 10.0, 16)
        np.testing.assert_allclose(scale * solved([scale * matrix], target, 10.0, 16), one, 1e-3)


def test_narrow_types_come_back():
    matrix, target = problem(30, 40, np.geomspace(1, 0.1, 30))
    (got,), _ = solve_ridge(
        [jnp.asarray(matrix, jnp.bfloat16)], jnp.asarray(target, jnp.bfloat16), 10.0, 16
    )
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got, solved([matrix], target, 10.0, 16), atol=2e-3)
