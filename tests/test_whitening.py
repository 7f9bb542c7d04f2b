"""What measures outputs by what is asked of them, against eigenvalues in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pjax_trace.ridge import LeastSquares, solve_ridges
from pjax_trace.whitening import whiteners


def asked(rows, features, spectrum, seed=0):
    """A target whose covariance has these roots of eigenvalues, up to a factor."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, len(spectrum))))
    right, _ = np.linalg.qr(rng.normal(size=(features, len(spectrum))))
    return (left * np.asarray(spectrum) @ right.T).astype(np.float32)


def expected(target, rounds, damping=0.0):
    """The polynomial, of every eigenvalue by itself."""
    t = target.astype(np.float64)
    covariance = t.T @ t
    values, vectors = np.linalg.eigh(covariance / np.trace(covariance))
    values = values.clip(0) + damping
    left, root = values / np.sum(values), np.ones_like(values)
    for _ in range(rounds):
        factor = 3.4445 - 4.7750 * left + 2.0315 * left**2
        left, root = left * factor**2, root * factor
    root *= np.sqrt(1 / np.sum(left))
    return vectors * root @ vectors.T


def matrix_of(whiten, features):
    return np.asarray(whiten(jnp.eye(features)))


@pytest.mark.parametrize(("rounds", "damping"), [(1, 0.0), (2, 0.0), (5, 0.0), (3, 0.01), (3, 1.0)])
@pytest.mark.parametrize(("rows", "features"), [(50, 7), (5, 40), (90, 100), (300, 128), (40, 2)])
def test_it_is_the_polynomial_of_the_covariance(rows, features, rounds, damping):
    target = asked(rows, features, np.geomspace(1, 0.03, min(rows, features)))
    (whiten,) = whiteners([jnp.asarray(target)], [damping], rounds)
    found, want = matrix_of(whiten, features), expected(target, rounds, damping)
    # What is nothing is raised with its rounding.
    np.testing.assert_allclose(found, want, atol=2e-4 * 2**rounds * np.max(np.abs(want)))
    if not damping:
        length = np.linalg.norm(target)
        np.testing.assert_allclose(np.linalg.norm(target @ found), length, rtol=1e-3)


def test_many_rounds_are_the_inverse_root():
    """As near as the iteration goes: eigenvalues of P C P end between 0.7 and 1.2 squared."""
    target = asked(200, 20, np.geomspace(1, 0.1, 20))
    (whiten,) = whiteners([jnp.asarray(target)], [0.0], 8)
    even = np.linalg.svd(whiten(jnp.asarray(target)), compute_uv=False)
    assert np.max(even) < 1.8 * np.min(even)


def test_blocks_have_matrices_of_their_own():
    target = np.concatenate([asked(60, 100, [1.0, 0.3], 1), asked(60, 100, [0.2, 0.1], 2)], 1)
    (whiten,) = whiteners([jnp.asarray(target)], [0.0], 2)
    found = matrix_of(whiten, 200)
    for part in (slice(0, 100), slice(100, 200)):
        want = expected(target[:, part], 2)
        np.testing.assert_allclose(found[part, part], want, atol=2e-4 * np.max(np.abs(want)))
    assert not np.any(found[:100, 100:]) and not np.any(found[100:, :100])


def test_one_target_does_not_matter_to_another():
    targets = [
        jnp.asarray(asked(30, n, [1.0, 0.5][:n], n)) for n in (3, 12, 16, 70, 70, 1, 200, 131)
    ]
    dampings = [0.01 * i for i in range(len(targets))]
    together = whiteners(targets, dampings, 2)
    for target, damping, whiten in zip(targets, dampings, together, strict=True):
        features = target.shape[1]
        (alone,) = whiteners([target], [damping], 2)
        found, want = (matrix_of(w, features) for w in (whiten, alone))
        np.testing.assert_allclose(found, want, atol=1e-5 * np.max(np.abs(want)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-35, 1e-15, 1e15, 1e35])
def test_no_scale_is_too_small_or_too_large(scale, dtype):
    """Where nothing is known of the squares, all features are alike."""
    target = asked(20, 6, [1.0, 0.1])
    (whiten,), (usual,) = (
        whiteners([jnp.asarray(t, dtype)], [0.0], 2) for t in (scale * target, target)
    )
    found = matrix_of(whiten, 6)
    want = matrix_of(usual, 6) if 1e-30 < scale < 1e30 else found[0, 0] * np.eye(6)
    assert found[0, 0] > 0
    np.testing.assert_allclose(found, want, atol=0.02 * np.max(np.abs(found)))


def test_much_damping_is_no_metric():
    target = jnp.asarray(asked(30, 9, np.geomspace(1, 0.1, 9)))
    (whiten,) = whiteners([target], [1e4], 3)
    np.testing.assert_allclose(whiten(target), target, atol=1e-3)


@pytest.mark.parametrize("rank", [None, 8])
@pytest.mark.parametrize(
    ("rows", "columns"), [(50, 7), (7, 50), (300, 200), (100, 200), (4000, 90)]
)
def test_solutions_and_gains(rows, columns, rank):
    """What is whitened is the solution; what it gains is by the target as it was."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, columns)).astype(np.float32)
    target = asked(rows, 5, np.geomspace(1, 0.1, 5))
    problem = LeastSquares([jnp.asarray(matrix)], jnp.asarray(target))
    (plain,), (white,) = (solve_ridges([problem], 3.0, rank, rounds) for rounds in (None, 2))
    want = np.asarray(plain.steps[0], np.float64) @ expected(target, 2, 3.0 / rows)
    size = np.max(np.abs(want))
    np.testing.assert_allclose(white.steps[0], want, atol=1e-3 * size)
    if rank is None or rows > columns:
        gains = np.sum((matrix.T.astype(np.float64) @ target) * want, 0)
        np.testing.assert_allclose(white.gains, gains, rtol=1e-2, atol=1e-3 * np.max(gains))
