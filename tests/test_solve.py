"""`solve` and `nearest`, and the solvers for feasibility, against iterations written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import pjax_trace as pjax
from pjax_trace import sets

RNG = np.random.default_rng(0)
A = RNG.normal(size=(6, 12))
INSIDE = RNG.uniform(0, 1, 12)
B = A @ INSIDE
START = RNG.normal(size=12)
PINV = np.linalg.pinv(A)


def two_sets(x, a, b):
    pjax.constrain(a @ x, sets.Equal(b))
    pjax.constrain(x, sets.Box(0.0, 1.0))


def slabs(x, a, b):
    pjax.constrain(a @ x, sets.Box(-jnp.inf, b))
    pjax.constrain(x, sets.Ball(1.0))


def equations(x):
    return x + PINV @ (B - A @ x)


def box(x):
    return np.clip(x, 0, 1)


def ball(x):
    return x / max(1, np.linalg.norm(x))


def floats(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def rrr(x, k):
    return x + 0.4 * (box(2 * equations(x) - x) - equations(x))


def raar(x, k):
    on_a = equations(x)
    reflected = 2 * box(2 * on_a - x) - (2 * on_a - x)
    return 0.35 * (reflected + x) + 0.3 * on_a


def hybrid(x, k):
    on_a = equations(x)
    return x + box(1.7 * on_a - x) - 0.7 * on_a


RELAXED = [
    (pjax.ReflectReflectRelax(beta=0.4), rrr),
    (pjax.RelaxedAveragedReflections(beta=0.7), raar),
    (pjax.HybridInputOutput(beta=0.7), hybrid),
]


@pytest.mark.parametrize("solver, by_hand", RELAXED, ids=lambda x: type(x).__name__)
def test_relaxations_iterate_as_by_hand(solver, by_hand):
    x = START
    for k in range(9):
        x = by_hand(x, k)
    found, _ = pjax.project(two_sets, solver=solver, steps=9)(*floats(START, A, B))
    np.testing.assert_allclose(found, equations(x), atol=1e-5)


def test_admm_iterates_as_by_hand():
    z, y = START, np.zeros(12)
    for _ in range(9):
        x = equations(z - y)
        ahead = 1.3 * x - 0.3 * z
        z = box(ahead + y)
        y = y + ahead - z
    solver = pjax.ADMM(relaxation=1.3)
    found, _ = pjax.project(two_sets, solver=solver, steps=9)(*floats(START, A, B))
    np.testing.assert_allclose(found, z, atol=1e-5)


def test_admm_fits_with_a_set():
    """Least squares with nonnegative coefficients, by SciPy's active sets."""
    a, y = RNG.normal(size=(20, 5)), RNG.normal(size=20)

    def fit(w, a, y):
        pjax.constrain(w, sets.NonNegative())
        return pjax.losses.squared_error(a @ w, y)

    solve = pjax.project(fit, solver=pjax.ADMM(), steps=4000)
    found, _ = solve(*floats(np.zeros(5), a, y))
    expected, _ = scipy.optimize.nnls(a, y)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def halfspaces(seed, rows=60, n=30):
    """Half-spaces and a ball that have a point in common, and a start that is far away."""
    rng = np.random.default_rng(seed)
    a, point = rng.normal(size=(rows, n)), rng.normal(size=n)
    point /= 1.3 * np.linalg.norm(point)
    return a, a @ point + rng.uniform(0.1, 1, rows), 5 * rng.normal(size=n)


def test_cyclic_projections_go_row_by_row():
    """In the order of the rows, and then onto the ball: by hand, in float64."""
    a, b, start = halfspaces(0)
    x = start
    for _ in range(5):
        for row, bound in zip(a, b, strict=True):
            x = x - row * max(0, row @ x - bound) / (row @ row)
        x = ball(x)
    solve = pjax.project(slabs, solver=pjax.CyclicProjections(), steps=5)
    found, _ = solve(*floats(start, a, b))
    np.testing.assert_allclose(found, x, atol=1e-4)
    for seed in range(5):
        a, b, start = halfspaces(seed)
        options = {"solver": pjax.CyclicProjections(), "max_steps": 25, "tol": 1e-3}
        solution = pjax.solve(slabs, *floats(start, a, b), **options)
        assert solution.solved and np.max(a @ np.asarray(solution.x) - b) < 1e-2


@pytest.mark.parametrize("solver", [pjax.Dykstra(), pjax.Halpern()], ids=repr)
def test_the_nearest_point_of_halfspaces_and_a_ball(solver):
    """By least distance programming (Lawson and Hanson), the ball's multiplier by bisection."""
    a, b, start = halfspaces(1, 12, 6)

    def nearest(y):
        """The nearest point of the half-spaces alone."""
        system = np.concatenate([-a.T, (a @ y - b)[None]])
        gap = system @ scipy.optimize.nnls(system, np.eye(7)[-1])[0] - np.eye(7)[-1]
        return y - gap[:-1] / gap[-1]

    multiplier = scipy.optimize.brentq(lambda m: np.sum(nearest(start / (1 + m)) ** 2) - 1, 0, 1e3)
    expected = nearest(start / (1 + multiplier))
    solution = pjax.nearest(slabs, *floats(start, a, b), solver=solver, tol=1e-7)
    atol = 1e-4 if isinstance(solver, pjax.Dykstra) else 2e-2  # of order 1/k after k cycles
    np.testing.assert_allclose(solution.x, expected, atol=atol)


def test_the_nearest_doubly_stochastic_matrix():
    """A long run of Dykstra's algorithm by hand; affine sets need no correction."""
    start = RNG.uniform(size=(30, 30))

    def stochastic(x):
        pjax.constrain(jnp.sum(x, 0), sets.Equal(1.0))
        pjax.constrain(jnp.sum(x, 1), sets.Equal(1.0))
        pjax.constrain(x, sets.NonNegative())

    x, correction = start, 0.0
    for _ in range(5000):
        y = x - (x.sum(0) - 1) / 30
        y = y - (y.sum(1, keepdims=True) - 1) / 30 + correction
        x = np.maximum(y, 0)
        correction = y - x
    solution = pjax.nearest(stochastic, *floats(start))
    assert solution.solved
    np.testing.assert_allclose(solution.x, x, atol=1e-5)


SOLVERS = [
    pjax.DouglasRachford(),
    pjax.DifferenceMap(beta=0.8),
    pjax.ReflectReflectRelax(),
    pjax.AlternatingProjections(momentum=0.9),
    pjax.Dykstra(),
    pjax.ADMM(),
]


@pytest.mark.parametrize("copies", [None, True])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_updates_go_on_from_the_governing_point(solver, copies):
    """Four updates of ten steps are one of forty, and compile once."""
    x0, *data = floats(START, A, B)
    long = pjax.project(two_sets, solver=solver, steps=40, copies=copies)
    short = pjax.project(two_sets, solver=solver, steps=10, copies=copies)
    expected, _ = long(x0, *data)
    x, state = x0, short.init(x0)
    for _ in range(4):
        x, state, _ = short.update(x, state, *data)
    np.testing.assert_allclose(x, expected, atol=1e-5)
    assert int(state.steps) == 40
    # Not from a point that belongs to other variables, or to other data.
    moved, _, _ = short.update(x0, state, *data)
    np.testing.assert_allclose(moved, short(x0, *data)[0], atol=1e-5)
    other = (data[0], data[1] + 1)
    moved, _, _ = short.update(x, state, *other)
    np.testing.assert_allclose(moved, short(x, *other)[0], atol=1e-5)
    scanned = short.init(x0, *data)

    def update(carry, _):
        x, state, _ = short.update(*carry, *data)
        return (x, state), None

    (x, _), _ = jax.lax.scan(update, (x0, scanned), None, length=4)
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_a_solution_says_what_it_is():
    solution = pjax.solve(two_sets, *floats(START, A, B), tol=1e-4)
    assert solution.solved and not solution.stalled
    steps = int(solution.steps)
    residuals = np.asarray(solution.residuals)
    assert residuals[steps - 1] <= 1e-4 < residuals[steps - 2] and np.isnan(residuals[steps])
    assert all(float(gap) <= 1e-4 for gap in solution.gaps.values())
    assert "test_solve.py:" in list(solution.gaps)[0] and "solved after" in str(solution)
    # The equations hold in one point, the bounds in the other one.
    on_sets = pjax.solve(two_sets, *floats(START, A, B), max_steps=3, point="sets")
    consensus = pjax.solve(two_sets, *floats(START, A, B), max_steps=3)
    mean = pjax.solve(two_sets, *floats(START, A, B), max_steps=3, point="mean")
    np.testing.assert_allclose(A @ np.asarray(consensus.x), B, atol=1e-4)
    np.testing.assert_allclose(on_sets.x, box(np.asarray(consensus.x)), atol=1e-6)
    np.testing.assert_allclose(mean.x, (on_sets.x + consensus.x) / 2, atol=1e-6)


def test_what_is_not_recorded_changes_nothing():
    arguments = floats(START, A, B)
    for solver in SOLVERS:
        found = [
            pjax.project(two_sets, solver=solver, steps=50, tol=1e-4, history=history)(*arguments)
            for history in (True, False)
        ]
        (x, info), (y, bare) = found
        np.testing.assert_allclose(x, y, atol=1e-5)
        np.testing.assert_allclose(info.residuals, bare.residuals, rtol=1e-2, atol=1e-5)
        assert np.isfinite(np.asarray(info.history)[: int(info.steps)]).all()
        assert np.isnan(np.asarray(bare.history)).all()
    with pytest.raises(pjax.NonFiniteError, match="data argument b"):
        solve = pjax.project(two_sets, solver=SOLVERS[0], tol=1e-4, history=False)
        solve(arguments[0], arguments[1], arguments[2] * jnp.nan)


def test_sets_that_do_not_meet_stall():
    def apart(x):
        pjax.constrain(x[0], sets.Equal(2.0))
        pjax.constrain(x, sets.Ball(1.0))

    for solver in (pjax.DouglasRachford(), pjax.RelaxedAveragedReflections()):
        solution = pjax.solve(apart, jnp.array([0.5, 0.5]), solver=solver, max_steps=400)
        assert not solution.solved and solution.stalled
        assert "stalled" in str(solution)


def test_a_solution_goes_on():
    x0, *data = floats(START, A, B)
    options = {"solver": pjax.ReflectReflectRelax(0.1), "tol": 1e-9}
    whole = pjax.solve(two_sets, x0, *data, max_steps=60, **options)
    half = pjax.solve(two_sets, x0, *data, max_steps=30, **options)
    both = pjax.solve(two_sets, half, *data, max_steps=30, **options)
    np.testing.assert_allclose(both.x, whole.x, atol=1e-5)
    assert int(both.steps) == 60


def test_restarts_try_until_one_is_solved():
    """Numbers of 1 or 3 that are 7 together: from most starts alternating projections get stuck."""

    class Levels(sets.Set):
        def project(self, x):
            return jnp.where(x > 2.0, 3.0, 1.0)

    def problem(x):
        pjax.constrain(x, Levels())
        pjax.constrain(jnp.sum(x), sets.Equal(7.0))

    options = {"solver": pjax.AlternatingProjections(), "max_steps": 50, "key": jax.random.key(0)}
    alone = pjax.solve(problem, jnp.array([0.0, 0.5, 1.0]), **options)
    assert not alone.solved

    def start(key):
        return jax.random.uniform(key, (3,), maxval=2.4)

    solution = pjax.solve(problem, start, restarts=300, slots=16, **options)
    assert solution.solved and int(solution.start) > 0
    np.testing.assert_allclose(jnp.sort(solution.x), [1.0, 3.0, 3.0], atol=1e-5)
    again = pjax.solve(problem, start, restarts=300, slots=16, **options)
    np.testing.assert_array_equal(solution.x, again.x)
    one = pjax.solve(problem, solution.x * 0.9, restarts=5, slots=2, **options)
    assert one.solved and int(one.start) == 0  # the first start is the one that was given

    def never(x):
        pjax.constrain(x, Levels())
        pjax.constrain(jnp.sum(x), sets.Equal(2.0))

    for slots, steps in ((1, 50), (2, 50), (2, 301)):
        how = {**options, "restarts": 5, "slots": slots, "max_steps": steps}
        none = pjax.solve(never, jnp.zeros(3), **how)
        assert not none.solved and np.isfinite(np.asarray(none.x)).all()
        assert int(none.steps) <= steps


def test_clear_errors():
    x0, *data = floats(START, A, B)
    with pytest.raises(pjax.InputError, match="need a key"):
        pjax.solve(two_sets, x0, *data, restarts=3)
    with pytest.raises(pjax.InputError, match="must be a classical one"):
        pjax.solve(two_sets, x0, *data, solver=pjax.Sweep())
    with pytest.raises(pjax.InputError, match="point must be"):
        pjax.solve(two_sets, x0, *data, point="best")
    with pytest.raises(pjax.InputError, match="tanh at .* is no set of the variables"):
        pjax.nearest(lambda x: pjax.constrain(jnp.tanh(x) * x, sets.Equal(1.0)), x0)

    class Signs(sets.Set):
        def project(self, x):
            return jnp.where(x > 0, 1.0, -1.0)

    with pytest.raises(pjax.InputError, match="Signs at .* is not known to be convex"):
        pjax.nearest(lambda x: pjax.constrain(x, Signs()), x0)
    with pytest.raises(pjax.InputError, match="tol"):
        pjax.solve(two_sets, x0, *data, tol=0.0)
