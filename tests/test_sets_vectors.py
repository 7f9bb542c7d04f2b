"""Sets of vectors: norms, sums, linear equations and cones, against certificates and formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from pjax_trace import sets

from .set_points import check_convex, check_nearest, inner, points

RNG = np.random.default_rng(1)
CENTER = RNG.normal(size=5).astype(np.float32)
NORMAL = np.array([1.0, -2.0, 0.0, 0.5, 3.0])
MATRIX = np.vstack([RNG.normal(size=(2, 5)), np.zeros((1, 5))])
MATRIX[2] = MATRIX[0] - 2 * MATRIX[1]  # a row that says nothing new
VALUE = MATRIX @ RNG.normal(size=5)
MASK = np.array([True, False, True, True, False])


def norm(y, order=2):
    return np.linalg.norm(y, order, axis=-1)


def along_normal(lower, upper):
    """How far points are out of a slab, and the gap of its normals."""

    def outside(y):
        return np.maximum(np.maximum(lower - y @ NORMAL, y @ NORMAL - upper), 0)

    def gap(g, y):
        part = g @ NORMAL / inner(NORMAL[None], NORMAL[None])
        size = 1 + np.abs(y).max(-1)
        rest = norm(g - part[:, None] * NORMAL) * size
        height = y @ NORMAL
        wrong = np.maximum(part, 0) * (upper - height if upper < np.inf else size * (part > 0))
        wrong += np.maximum(-part, 0) * (height - lower if lower > -np.inf else size * (part < 0))
        return rest + np.abs(np.where(part == 0, 0, wrong))

    return outside, gap


def within_affine(y):
    return np.abs(y @ MATRIX.T - VALUE).max(-1)


def off_rows(g, y):
    return norm(g - g @ np.linalg.pinv(MATRIX) @ MATRIX) * (1 + norm(y))


def order_gap(g, y):
    """Sums from each element to the end are not positive, and that of all is zero."""
    tails = np.cumsum(g[:, ::-1], -1)
    polar = np.maximum(tails.max(-1), 0) + np.abs(tails[:, -1])
    return polar * (1 + norm(y)) + np.abs(inner(g, y))


CONVEX = {
    "Equal": (sets.Equal(CENTER), lambda y: norm(y - CENTER), lambda g, y: 0 * norm(g)),
    "Box": (
        sets.Box(CENTER - 0.3, np.inf),
        lambda y: np.maximum(CENTER - 0.3 - y, 0).max(-1),
        lambda g, y: norm(np.maximum(g, 0)) + inner(np.minimum(g, 0), CENTER - 0.3 - y),
    ),
    "LInfBall": (
        sets.LInfBall(0.7, CENTER),
        lambda y: norm(y - CENTER, np.inf) - 0.7,
        lambda g, y: 0.7 * norm(g, 1) + inner(g, CENTER - y),
    ),
    "Support": (
        sets.Support(MASK),
        lambda y: norm(y[:, ~MASK]),
        lambda g, y: norm(g[:, MASK]),
    ),
    "Ball": (
        sets.Ball(0.7, CENTER),
        lambda y: norm(y - CENTER) - 0.7,
        lambda g, y: 0.7 * norm(g) + inner(g, CENTER - y),
    ),
    "L1Ball": (
        sets.L1Ball(0.7, CENTER),
        lambda y: norm(y - CENTER, 1) - 0.7,
        lambda g, y: 0.7 * norm(g, np.inf) + inner(g, CENTER - y),
    ),
    "L1Ball, a point": (sets.L1Ball(0.0), norm, lambda g, y: -inner(g, y)),
    "Simplex": (
        sets.Simplex(1.5),
        lambda y: np.maximum(np.abs(y.sum(-1) - 1.5), -y.min(-1)),
        lambda g, y: 1.5 * g.max(-1) - inner(g, y),
    ),
    "Simplex, a point": (sets.Simplex(0.0), norm, lambda g, y: -inner(g, y)),
    "HalfSpace": (sets.HalfSpace(NORMAL, 0.3), *along_normal(-np.inf, 0.3)),
    "HyperPlane": (sets.HyperPlane(NORMAL, 0.3), *along_normal(0.3, 0.3)),
    "HyperSlab": (sets.HyperSlab(NORMAL, -0.2, 0.3), *along_normal(-0.2, 0.3)),
    "SumTo": (
        sets.SumTo(0.3),
        lambda y: np.abs(y.sum(-1) - 0.3),
        lambda g, y: norm(g - g.mean(-1, keepdims=True)) * (1 + norm(y)),
    ),
    "Affine": (sets.Affine(MATRIX, VALUE), within_affine, off_rows),
    "SecondOrderCone": (
        sets.SecondOrderCone(),
        lambda y: norm(y[:, 1:]) - y[:, 0],
        lambda g, y: np.maximum(norm(g[:, 1:]) + g[:, 0], 0) * (1 + norm(y)) + np.abs(inner(g, y)),
    ),
    "Monotone": (sets.Monotone(), lambda y: -np.diff(y, axis=-1).min(-1), order_gap),
    "Monotone, falling": (
        sets.Monotone(increasing=False),
        lambda y: np.diff(y, axis=-1).max(-1),
        lambda g, y: order_gap(-g, -y),
    ),
}


@pytest.mark.parametrize("name", CONVEX)
def test_convex(name):
    one, outside, gap = CONVEX[name]
    check_convex(one, points(5), outside, gap)


def simplex(x, total):
    """By bisection: where ``sum(max(x - t, 0))`` is the total."""
    low, high = x.max(-1) - total, x.max(-1)
    for _ in range(60):
        middle = (low + high) / 2
        large = np.maximum(x - middle[..., None], 0).sum(-1) > total
        low, high = np.where(large, middle, low), np.where(large, high, middle)
    return np.maximum(x - low[..., None], 0)


def l1_sphere(x):
    """The nearest of the faces, one for each choice of signs."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    z = (x - CENTER[:4])[:, None, :] * signs
    return norm(z - simplex(z, 0.7)).min(-1)


NEAREST = {
    "Sphere": (
        sets.Sphere(0.7, CENTER),
        5,
        lambda y: np.abs(norm(y - CENTER) - 0.7),
        lambda x: np.abs(norm(x - CENTER) - 0.7),
    ),
    "L1Sphere": (
        sets.L1Sphere(0.7, CENTER[:4]),
        4,
        lambda y: np.abs(norm(y - CENTER[:4], 1) - 0.7),
        l1_sphere,
    ),
    "Magnitude": (
        sets.Magnitude(np.abs(CENTER)),
        5,
        lambda y: norm(np.abs(y) - np.abs(CENTER)),
        lambda x: norm(np.abs(x) - np.abs(CENTER)),
    ),
}


@pytest.mark.parametrize("name", NEAREST)
def test_nearest(name):
    one, size, outside, distance = NEAREST[name]
    check_nearest(one, points(size), outside, distance)


def test_at_their_centers():
    """Every point of a sphere is nearest; it is the same one each time."""
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(sets.Sphere(2.0).project(zero), [2, 0, 0])
    np.testing.assert_allclose(sets.L1Sphere(1.5).project(zero), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(sets.Magnitude(2.0).project(zero), [2, 2, 2])


@pytest.mark.parametrize("one", [sets.Ball(1.0), sets.L1Ball(1.0), sets.SecondOrderCone()])
def test_derivatives_at_zero(one):
    assert jnp.isfinite(jax.jit(jax.jacobian(one.project))(jnp.zeros(3))).all()


def test_magnitudes_of_complex_numbers():
    parts = points(5, count=10_000) * 10.0 ** RNG.integers(-30, 30, (10_000, 1))
    x = (parts + 1j * np.roll(parts, 1, axis=0)).astype(np.complex64)
    magnitude = (np.abs(CENTER) + 0.1).astype(np.float32)
    y = np.asarray(jax.vmap(sets.Magnitude(magnitude).project)(jnp.asarray(x)))
    assert y.dtype == np.complex64
    np.testing.assert_allclose(np.abs(y), np.broadcast_to(magnitude, y.shape), rtol=1e-6)
    wide = x.astype(complex)
    exact = np.where(x == 0, 1, wide / np.where(x == 0, 1, np.abs(wide))) * magnitude
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-6)
    for row, phase in zip(x[:3], y[:3], strict=True):
        pairs = sets.Sphere(magnitude[None], axis=0).project(jnp.stack([row.real, row.imag]))
        np.testing.assert_allclose(pairs, [phase.real, phase.imag], rtol=1e-6, atol=1e-9)
    with jax.enable_x64(True):
        assert sets.Magnitude(1.0).project(jnp.ones(2, complex)).dtype == complex
    sets.Magnitude(magnitude).fits((5,), jnp.complex64)


OPTAX = optax.projections
PAIRS = {
    "simplex": (sets.Simplex(1.5), lambda x: OPTAX.projection_simplex(x, 1.5)),
    "l1 ball": (sets.L1Ball(1.5), lambda x: OPTAX.projection_l1_ball(x, 1.5)),
    "l1 sphere": (sets.L1Sphere(1.5), lambda x: OPTAX.projection_l1_sphere(x, 1.5)),
    "l2 ball": (sets.Ball(1.5), lambda x: OPTAX.projection_l2_ball(x, 1.5)),
    "l2 sphere": (sets.Sphere(1.5), lambda x: OPTAX.projection_l2_sphere(x, 1.5)),
    "linf ball": (sets.LInfBall(1.5), lambda x: OPTAX.projection_linf_ball(x, 1.5)),
    "hypercube": (sets.Box(0.0, 1.5), lambda x: OPTAX.projection_hypercube(x, 1.5)),
    "halfspace": (
        sets.HalfSpace(NORMAL, 0.3),
        lambda x: OPTAX.projection_halfspace(x, jnp.asarray(NORMAL, jnp.float32), 0.3),
    ),
    "hyperplane": (
        sets.HyperPlane(NORMAL, 0.3),
        lambda x: OPTAX.projection_hyperplane(x, jnp.asarray(NORMAL, jnp.float32), 0.3),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_optax(name, loose_promotion):
    ours, theirs = PAIRS[name]
    x = jnp.asarray(points(5, count=4000))
    x = x[jnp.abs(x).sum(-1) > 0]  # where optax divides by zero
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(jax.vmap(theirs))(x)
    size = 1 + np.abs(x).max(-1, keepdims=True)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(ours.project))(x) / size, expected / size, atol=2e-6
    )


def test_agrees_with_scipy_on_isotonic_regression():
    for size in (1, 2, 40):
        x = points(size, count=100)
        y = jax.jit(jax.vmap(sets.Monotone().project))(jnp.asarray(x))
        for one, row in zip(y, x.astype(float), strict=True):
            exact = scipy.optimize.isotonic_regression(row).x
            np.testing.assert_allclose(one, exact, atol=1e-5 * (1 + np.abs(row).max()))


def test_agrees_with_a_solver_for_quadratic_programs():
    """Of SciPy, which knows nothing of these formulas."""
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=4) * 2
        start = np.full(4, 0.25)
        for one, kind, function in [
            (sets.L1Ball(1.0), "ineq", lambda y: 1 - np.sqrt(y**2 + 1e-20).sum()),
            (sets.HyperSlab(np.ones(4), -0.5, 0.5), "ineq", lambda y: 0.5 - np.abs(y.sum())),
            (sets.SumTo(1.0), "eq", lambda y: y.sum() - 1),
        ]:
            found = scipy.optimize.minimize(
                lambda y: ((y - x) ** 2).sum(),  # noqa: B023
                start / 4,
                constraints={"type": kind, "fun": function},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            )
            y = np.asarray(one.project(jnp.asarray(x, jnp.float32)), float)
            assert ((y - x) ** 2).sum() <= found.fun + 1e-4


def test_slices():
    """One set for every slice along an axis, or along several."""
    x = jnp.asarray(points(4, 3, 2, count=8))
    radius = jnp.asarray(RNG.uniform(0.1, 2, (4, 1, 2)), jnp.float32)
    for make in (sets.Ball, sets.Sphere, sets.L1Ball, sets.L1Sphere, sets.Simplex):
        y = jax.jit(jax.vmap(make(radius, axis=1).project))(x)
        alone = jax.jit(jax.vmap(lambda x, r: make(r).project(x), (0, None)))  # noqa: B023
        for i, j in itertools.product(range(4), range(2)):
            expected = alone(x[:, i, :, j], radius[i, 0, j])
            np.testing.assert_allclose(y[:, i, :, j], expected, rtol=1e-6, atol=1e-6)
    for one, whole in [
        (sets.Simplex(1.0, axis=(1, -1)), sets.Simplex()),
        (sets.SumTo(1.0, axis=(2, 1)), sets.SumTo(1.0)),
        (sets.SecondOrderCone(axis=(1, 2)), sets.SecondOrderCone()),
        (sets.Affine(np.ones((1, 6)), 1.0, axis=(1, 2)), sets.Affine(np.ones((1, 6)), 1.0)),
    ]:
        parts = jax.jit(jax.vmap(jax.vmap(whole.project)))(x)
        np.testing.assert_allclose(jax.jit(jax.vmap(one.project))(x), parts, rtol=1e-6, atol=1e-6)
    columns = sets.Monotone(axis=0).project(x[0])
    np.testing.assert_allclose(columns[:, 1, 1], sets.Monotone().project(x[0, :, 1, 1]))


def test_a_normal_for_every_slice():
    """One of them is zero: everything fits the offset, or nothing does."""
    normal = jnp.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    offset = jnp.array([[5.0], [0.0], [-1.0]])
    y = sets.HalfSpace(normal, offset, axis=-1).project(jnp.full((3, 2), 5.0))
    np.testing.assert_allclose(y[:2], [[5 - 3 * 1.2, 5 - 4 * 1.2], [5, 5]], rtol=1e-5)
    assert jnp.isnan(y[2]).all()


def test_long_vectors():
    """Sums of many elements, and elements that are far from each other."""
    x = RNG.normal(size=100_000).astype(np.float32) * 1e-3
    x[:3] = 1e6
    y = np.asarray(jax.jit(sets.Simplex().project)(jnp.asarray(x)), float)
    np.testing.assert_allclose(y[:3], 1 / 3, rtol=1e-6)
    assert np.all(y[3:] == 0)
    y = np.asarray(jax.jit(sets.L1Ball(50.0).project)(jnp.asarray(x[3:])), float)
    exact = simplex(np.abs(x[3:].astype(float))[None], 50.0)[0] * np.sign(x[3:])
    np.testing.assert_allclose(y, exact, atol=1e-6)


def test_affine_sets_of_traced_equations():
    x = jnp.asarray(RNG.normal(size=5), jnp.float32)
    exact = np.asarray(x) - np.linalg.pinv(MATRIX) @ (MATRIX @ np.asarray(x, float) - VALUE)
    make = jax.jit(lambda a, b: sets.Affine(a, b).project(x))
    y = make(jnp.asarray(MATRIX, jnp.float32), jnp.asarray(VALUE, jnp.float32))
    np.testing.assert_allclose(y, exact, atol=1e-5)
    stack = jnp.asarray(np.stack([MATRIX, 2 * MATRIX]), jnp.float32)
    both = jax.vmap(make)(stack, jnp.asarray(np.stack([VALUE, 2 * VALUE]), jnp.float32))
    np.testing.assert_allclose(both, np.stack([exact, exact]), atol=1e-5)
    wrong = jnp.asarray(VALUE + np.array([0, 0, 1.0]), jnp.float32)
    assert jnp.isnan(make(jnp.asarray(MATRIX, jnp.float32), wrong)).all()
