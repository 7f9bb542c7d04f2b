"""Sets of matrices, against certificates, NumPy's decompositions and SciPy's assignments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from pjax_trace import sets

from .set_points import check_convex, check_nearest, inner, points


def part(x):
    """The symmetric one."""
    return (x + x.swapaxes(-1, -2)) / 2


def eigenvalues(x):
    return np.linalg.eigvalsh(part(x))


def singular(x):
    return np.linalg.svd(x, compute_uv=False)


def norm(x):
    return np.sqrt(inner(x, x))


def skew(y):
    return norm(y - y.swapaxes(-1, -2))


def box_gap(lower, upper):
    """The largest inner product of eigenvalues between bounds."""

    def gap(g, y):
        values = eigenvalues(g)
        most = np.maximum(values, 0) * upper + np.minimum(values, 0) * lower
        return most.sum(-1) - inner(g, y)

    return gap


def means_gap(index):
    """The normals of matrices that are constant within groups: sums of groups are zero."""

    def gap(g, y):
        sums = [np.abs(g[:, index == i].sum(-1)) for i in np.unique(index)]
        return np.max(sums, axis=0) * (1 + norm(y))

    def outside(y):
        return np.max([np.ptp(y[:, index == i], axis=-1) for i in np.unique(index)], axis=0)

    return outside, gap


PERMUTATIONS = np.array([np.eye(4)[list(p)] for p in itertools.permutations(range(4))])


def best_assignment(x):
    """The largest inner product with a permutation matrix: all of them are tried."""
    return np.einsum("bij,pij->bp", x, PERMUTATIONS).max(-1)


ROWS, COLUMNS = np.indices((3, 4))
SQUARE = np.indices((4, 4))
CONVEX = {
    "Symmetric": (
        sets.Symmetric(),
        (4, 4),
        skew,
        lambda g, y: norm(part(g)) * (1 + norm(y)),
    ),
    "Toeplitz": (sets.Toeplitz(), (3, 4), *means_gap(COLUMNS - ROWS)),
    "Hankel": (sets.Hankel(), (3, 4), *means_gap(ROWS + COLUMNS)),
    "Circulant": (sets.Circulant(), (4, 4), *means_gap((SQUARE[1] - SQUARE[0]) % 4)),
    "SpectralBox": (
        sets.SpectralBox(-0.5, 1.5),
        (4, 4),
        lambda y: np.maximum(skew(y), np.abs(eigenvalues(y) - 0.5).max(-1) - 1),
        box_gap(-0.5, 1.5),
    ),
    "PSD": (
        sets.PSD(),
        (4, 4),
        lambda y: np.maximum(skew(y), -eigenvalues(y).min(-1)),
        lambda g, y: (
            np.maximum(eigenvalues(g).max(-1), 0) * (1 + norm(y)) + np.abs(inner(part(g), y))
        ),
    ),
    "Spectraplex": (
        sets.Spectraplex(1.5),
        (3, 3),
        lambda y: np.maximum(
            np.abs(np.trace(y, axis1=1, axis2=2) - 1.5), skew(y) - eigenvalues(y).min(-1)
        ),
        lambda g, y: 1.5 * eigenvalues(g).max(-1) - inner(g, y),
    ),
    "SpectralBall": (
        sets.SpectralBall(0.7),
        (3, 4),
        lambda y: singular(y).max(-1) - 0.7,
        lambda g, y: 0.7 * singular(g).sum(-1) - inner(g, y),
    ),
    "NuclearBall": (
        sets.NuclearBall(0.7),
        (4, 3),
        lambda y: singular(y).sum(-1) - 0.7,
        lambda g, y: 0.7 * singular(g).max(-1) - inner(g, y),
    ),
    "DoublyStochastic": (
        sets.DoublyStochastic(),
        (4, 4),
        lambda y: np.maximum(
            np.maximum(np.abs(y.sum(-1) - 1), np.abs(y.sum(-2) - 1)).max(-1), -y.min((-1, -2))
        ),
        lambda g, y: best_assignment(g) - inner(g, y),
    ),
}


@pytest.mark.parametrize("name", CONVEX)
def test_convex(name):
    one, shape, outside, gap = CONVEX[name]
    check_convex(one, points(*shape), outside, gap)


def gram(y):
    """Of columns, or of rows if there are fewer."""
    return y @ y.swapaxes(-1, -2) if y.shape[-2] < y.shape[-1] else y.swapaxes(-1, -2) @ y


def not_orthonormal(y):
    return np.abs(gram(y) - np.eye(min(y.shape[1:]))).max((-1, -2))


def no_permutation(y):
    binary = np.abs(y * (1 - y)).max((-1, -2))
    return np.max([binary, *(np.abs(y.sum(axis) - 1).max(-1) for axis in (-1, -2))], axis=0)


NEAREST = {
    "Rank": (
        sets.Rank(2),
        (4, 3),
        lambda y: singular(y)[:, 2:].max(-1),
        lambda x: np.linalg.norm(singular(x)[:, 2:], axis=-1),
    ),
    "Rank 0": (sets.Rank(0), (3, 2), norm, norm),
    **{
        f"Orthogonal {m} x {n}": (
            sets.Orthogonal(),
            (m, n),
            not_orthonormal,
            lambda x: np.linalg.norm(singular(x) - 1, axis=-1),
        )
        for m, n in [(3, 3), (4, 2), (2, 4)]
    },
    "Permutation": (
        sets.Permutation(),
        (4, 4),
        no_permutation,
        lambda x: np.sqrt(np.maximum(inner(x, x) - 2 * best_assignment(x) + 4, 0)),
    ),
}


@pytest.mark.parametrize("name", NEAREST)
def test_nearest(name):
    one, shape, outside, distance = NEAREST[name]
    check_nearest(one, points(*shape), outside, distance)


def test_agrees_with_scipy_on_structure():
    x = points(3, 3, count=50)
    for a in x.astype(float):
        toeplitz = sets.Toeplitz().project(jnp.asarray(a, jnp.float32))
        lows = [np.diagonal(a, -i).mean() for i in range(3)]
        highs = [np.diagonal(a, i).mean() for i in range(3)]
        exact = scipy.linalg.toeplitz(lows, highs)
        np.testing.assert_allclose(toeplitz, exact, atol=1e-5 * (1 + np.abs(a).max()))
        u = scipy.linalg.polar(a)[0] if np.linalg.matrix_rank(a) == 3 else None
        if u is not None and np.linalg.cond(a) < 1e3:
            y = sets.Orthogonal().project(jnp.asarray(a, jnp.float32))
            np.testing.assert_allclose(y, u, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_agrees_with_scipy_on_assignments(size):
    """Also of many ties, large offsets and wide ranges."""
    rng = np.random.default_rng(size)
    project = jax.jit(jax.vmap(sets.Permutation().project))
    for scale in (1.0, 1e-30, 1e30):
        x = points(size, size, count=60, seed=size) * scale
        x[::3] += scale * 100 * rng.normal(size=(20, 1, size))
        y = np.asarray(project(jnp.asarray(x, jnp.float32)), float)
        assert no_permutation(y).max() == 0
        for a, chosen in zip(x.astype(float), y, strict=True):
            most = a[scipy.optimize.linear_sum_assignment(a, maximize=True)].sum()
            assert (a * chosen).sum() >= most - 1e-6 * size * np.abs(a).max()


@pytest.mark.parametrize("size", [1, 2, 20])
def test_doubly_stochastic_matrices_of_all_sizes(size):
    """A linear program, solved by SciPy, proves that no other one is nearer."""
    x = points(size, size, count=30, seed=size)
    x[::5] *= 1000
    with jax.enable_x64(True):
        wide = np.asarray(jax.jit(sets.DoublyStochastic().project)(x.astype(float)))
    assert np.abs(wide.sum(-1) - 1).max() <= 1e-12 and np.abs(wide.sum(-2) - 1).max() <= 1e-12
    assert wide.min() >= 0
    for a, y in zip(x.astype(float), wide, strict=True):
        g = a - y
        most = g[scipy.optimize.linear_sum_assignment(g, maximize=True)].sum()
        assert most - (g * y).sum() <= 1e-11 * (1 + np.abs(a).max()) * size
    y = np.asarray(jax.jit(sets.DoublyStochastic().project)(jnp.asarray(x)), float)
    np.testing.assert_allclose(y.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(y.sum(-2), 1, atol=1e-5)
    away = np.abs(y - wide).max((-1, -2)) / (1 + np.abs(x).max((-1, -2)))
    assert away.max() <= 3e-6


def test_doubly_stochastic_by_dykstra():
    """Its own algorithm for intersections: rows on simplices, and columns on simplices."""
    x = np.random.default_rng(0).normal(size=(6, 6))
    rows, columns = sets.Simplex(axis=-1), sets.Simplex(axis=-2)
    with jax.enable_x64(True):

        def turn(_, state):
            y, p, q = state
            z = rows.project(y + p)
            p = y + p - z
            y = columns.project(z + q)
            return y, p, z + q - y

        zero = jnp.zeros((6, 6))
        exact, *_ = jax.lax.fori_loop(0, 5000, turn, (jnp.asarray(x), zero, zero))
        np.testing.assert_allclose(sets.DoublyStochastic().project(x), exact, atol=1e-10)


@pytest.mark.parametrize("one", [sets.PSD(), sets.Spectraplex(), sets.SpectralBox(-0.1, 0.1)])
def test_symmetric_to_the_last_bit(one):
    y = jax.jit(one.project)(jnp.asarray(points(4, 4, count=50)))
    np.testing.assert_array_equal(y, y.swapaxes(-1, -2))


def test_numbers_for_every_matrix():
    x = jnp.asarray(points(3, 3, count=4, seed=3))
    numbers = jnp.array([0.0, 0.5, 1.0, 2.0])
    for make in (
        sets.SpectralBall,
        sets.NuclearBall,
        sets.Spectraplex,
        lambda a: sets.SpectralBox(-a, a),
    ):
        one = jax.vmap(lambda x, a: make(a).project(x))  # noqa: B023
        y = jax.jit(lambda x: make(numbers).project(x))(x)  # noqa: B023
        np.testing.assert_allclose(y, jax.jit(one)(x, numbers), atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
def test_extreme_sizes(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)) * scale, jnp.float32)
    assert np.abs(gram(np.asarray(sets.Orthogonal().project(x))) - np.eye(3)).max() < 1e-5
    y = np.asarray(sets.DoublyStochastic().project(x))
    np.testing.assert_allclose(y.sum(-1), 1, atol=1e-5)
    if scale == 1e30:
        np.testing.assert_allclose(y, sets.Permutation().project(x), atol=1e-5)
        assert abs(jnp.trace(sets.Spectraplex().project(x)) - 1) < 1e-5
        assert singular(np.asarray(sets.SpectralBall(1.0).project(x))).max() < 1 + 1e-5
    elif scale < 1e-20:
        np.testing.assert_allclose(y, np.full((3, 3), 1 / 3), rtol=1e-5)
