"""The nearest points of curves against brute force in float64 NumPy; see `oracle`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pjax_trace as pjax
from pjax_trace.rules import curves
from pjax_trace.rules.closed_forms import nearest_abs, nearest_relu, nearest_square
from pjax_trace.rules.curves import EXP, LOG, LOGISTIC, TANH, Curve, nearest_on_curve
from tests.rules.oracle import brute_force, points, worst_excess

TINY = float(np.finfo(np.float32).tiny)
HALF = np.pi / 2


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def check(f, solve, oracle, count):
    for seed, decades in enumerate(((-3, 3), (-6, 4))):
        sample = points(f, count // 2, seed, decades)
        got = jax.jit(solve)(*sample)
        assert got.dtype == jnp.float32
        sample = [a.astype(np.float64) for a in sample]
        chunks = zip(*(np.array_split(a, 1 + count // 2000) for a in sample), strict=True)
        nearest = np.concatenate([oracle(*chunk) for chunk in chunks])
        assert worst_excess(f, got, nearest, *sample) <= 1e-4


def best_of(f, candidates):
    """An oracle that tries candidates, which are the nearest points of parts of the graph."""

    def oracle(x0, z0, wx, wz):
        x = np.stack(candidates(x0, z0, wx, wz))
        d = wx * (x - x0) ** 2 + wz * (f(x) - z0) ** 2
        return np.take_along_axis(x, d.argmin(axis=0)[None], 0)[0]

    return oracle


@pytest.mark.parametrize("threshold", [0.0, -2.0, 0.3])
def test_relu(threshold):
    def f(x):
        return np.maximum(x, threshold)

    def candidates(x0, z0, wx, wz):
        mean = (wx * x0 + wz * z0) / (wx + wz)
        return np.maximum(mean, threshold), np.minimum(x0, threshold)

    # In float32 the threshold is another number.
    threshold = float(np.float32(threshold))
    check(f, partial(nearest_relu, threshold=threshold), best_of(f, candidates), 100_000)


def test_relu_with_an_array_of_thresholds():
    sample = [jnp.asarray(a) for a in points(np.abs, 500, 0, (-3, 3))]
    thresholds = jnp.linspace(-2.0, 2.0, 500)
    rows = [nearest_relu(*(a[i] for a in sample), thresholds[i]) for i in (0, 250, 499)]
    together = nearest_relu(*sample, thresholds)
    np.testing.assert_allclose(together[jnp.array([0, 250, 499])], jnp.stack(rows), rtol=1e-6)


def test_abs():
    def candidates(x0, z0, wx, wz):
        right, left = (wx * x0 + wz * z0) / (wx + wz), (wx * x0 - wz * z0) / (wx + wz)
        return np.maximum(right, 0), np.minimum(left, 0)

    check(np.abs, nearest_abs, best_of(np.abs, candidates), 100_000)


def test_square():
    def candidates(x0, z0, wx, wz):
        # All three roots of the cubic, by the eigenvalues of its companion matrix.
        p, q = wx / (2 * wz) - z0, -wx / (2 * wz) * x0
        scale = np.sqrt(np.abs(p)) + np.cbrt(np.abs(q)) + 1e-60
        companion = np.zeros((len(x0), 3, 3))
        companion[:, 1, 0] = companion[:, 2, 1] = 1
        companion[:, 0, 2], companion[:, 1, 2] = -q / scale**3, -p / scale**2
        roots = np.linalg.eigvals(companion).real.T * scale
        polished = roots
        for _ in range(3):
            slope = 3 * polished**2 + p
            step = (polished**3 + p * polished + q) / np.where(slope == 0, 1, slope)
            polished = polished - np.where(np.abs(step) < 0.1 * np.abs(polished), step, 0)
        return *roots, *polished

    check(np.square, nearest_square, best_of(np.square, candidates), 100_000)


def test_the_side_at_zero_is_the_right_one():
    zero, two = jnp.zeros(3), jnp.array([2.0, 0.5, -1.0])
    np.testing.assert_allclose(nearest_abs(zero, two, 1.0, 1.0), [1.0, 0.25, 0.0])
    np.testing.assert_allclose(nearest_square(zero, two, 1.0, 1.0), [1.5**0.5, 0, 0], atol=1e-6)


NAMED = {
    "tanh": (TANH, np.tanh),
    "logistic": (LOGISTIC, sigmoid),
    "exp": (EXP, np.exp),
    "log": (LOG, np.log, TINY),
}
SILU = -1.2784645427610738
GENERAL = {  # one-liners: convex, not convex, not monotone, with a pole, with and without inverse
    "softplus": (
        Curve(jax.nn.softplus, inverse=lambda z: z + jnp.log(-jnp.expm1(-z)), curvature=0.25),
        partial(np.logaddexp, 0),
    ),
    "silu": (Curve(jax.nn.silu, knots=(SILU,)), lambda x: x * sigmoid(x)),
    "cube": (Curve(lambda x: x * x * x), lambda x: x**3),
    "cosh": (Curve(jnp.cosh, knots=(0.0,)), np.cosh),
    "log1p": (
        Curve(jnp.log1p, inverse=jnp.expm1, domain=(-1, np.inf)),
        np.log1p,
        float(np.nextafter(np.float32(-1), np.float32(0))),
    ),
}


@pytest.mark.parametrize("name", [*NAMED, *GENERAL])
def test_curve(name):
    curve, f, *lower = {**NAMED, **GENERAL}[name]
    count = 10_000 if name in NAMED else 4_000
    check(f, partial(nearest_on_curve, curve), lambda *a: brute_force(f, *a, *lower), count)


def test_sine():
    curve = Curve(jnp.sin, inverse=jnp.arcsin, domain=(-HALF, HALF), antiperiod=np.pi)

    def oracle(x0, z0, wx, wz):
        return x0 + brute_force(lambda x: np.sin(x + x0[:, None]), 0 * x0, z0, wx, wz, -4, 4)

    check(np.sin, partial(nearest_on_curve, curve), oracle, 4_000)


@pytest.mark.parametrize("name", ["tanh", "logistic", "softplus"])
def test_easy_points_take_the_shortcut(name, monkeypatch):
    curve, f = {**NAMED, **GENERAL}[name]
    rng = np.random.default_rng(0)
    count = 4_000
    x0 = rng.choice([-1, 1], count) * 10 ** rng.uniform(-6, 2, count)
    wx, wz = 10 ** rng.uniform(-4, 4, (2, count))
    radius = np.minimum(wx / (2 * wz * curve.curvature), 1e3)
    z0 = f(x0) + 0.99 * radius * rng.uniform(-1, 1, count) * 10.0 ** rng.integers(-4, 1, count)
    sample = [a.astype(np.float32) for a in (x0, z0, wx, wz)]
    residual = np.abs(np.asarray(curve.value(sample[0])) - sample[1])
    easy = 2 * sample[3] * curve.curvature * residual < 0.999 * sample[2]
    assert easy.mean() > 0.9
    sample = [a[easy] for a in sample]
    missed = lambda *a: jnp.full((2, *a[3].shape), jnp.nan)  # noqa: E731
    monkeypatch.setattr(curves, "_local_minima", missed)
    got = np.asarray(jax.jit(partial(nearest_on_curve, curve))(*sample))
    taken = np.isfinite(got)  # not by the few for which its steps do not suffice
    assert taken.mean() > 0.98
    sample = [a[taken].astype(np.float64) for a in sample]
    assert worst_excess(f, got[taken], brute_force(f, *sample), *sample) <= 1e-4


def test_two_local_minima_and_points_of_the_graph():
    # Above the left tail of exp: stay on the tail, or climb; by weight. Then points that stay.
    x = jnp.linspace(-5.0, 5.0, 1001)
    x0, z0 = (jnp.concatenate(v) for v in ((jnp.full(2, -10.0), x), (jnp.full(2, 5.0), jnp.exp(x))))
    wx = jnp.ones(1003).at[0].set(6.0)
    wz = jnp.ones(1003).at[1].set(6.0)
    stay, climb, *rest = jax.jit(partial(nearest_on_curve, EXP))(x0, z0, wx, wz)
    assert stay < -9.9
    assert 1.4 < climb < 1.7
    np.testing.assert_allclose(rest, x, rtol=3e-7, atol=1e-7)


def test_points_of_the_graph_stay():
    x = jnp.linspace(-5.0, 5.0, 1001)
    np.testing.assert_array_equal(nearest_relu(x, jax.nn.relu(x), 1.0, 1e4), x)
    np.testing.assert_array_equal(nearest_abs(x, jnp.abs(x), 1.0, 1e4), x)
    np.testing.assert_allclose(nearest_square(x, x * x, 1.0, 1e4), x, rtol=3e-7, atol=1e-12)


def test_float64():
    with jax.enable_x64(True):
        sample = [a.astype(np.float64) for a in points(np.tanh, 500, 0, (-3, 2))]
        got = jax.jit(partial(nearest_on_curve, TANH))(*map(jnp.asarray, sample))
        assert got.dtype == jnp.float64
        assert worst_excess(np.tanh, got, brute_force(np.tanh, *sample), *sample) <= 1e-4
        for solve in (nearest_relu, nearest_abs, nearest_square):
            assert solve(*map(jnp.asarray, sample)).dtype == jnp.float64


def test_vmap_scalar_weights_and_no_weight_on_the_output():
    x0, z0, *_ = points(np.tanh, 60, 0, (-2, 2))
    wz = np.repeat(np.float32([0, 3]), 30)
    for solve in (partial(nearest_on_curve, TANH), nearest_relu, nearest_abs, nearest_square):
        rows = jax.jit(jax.vmap(partial(solve, wx=2.0)))
        moved = rows(*(a.reshape(6, 10) for a in (x0, z0)), wz=wz.reshape(6, 10)).ravel()
        np.testing.assert_allclose(moved[:30], x0[:30], rtol=1e-6, atol=1e-15)
        if solve in (nearest_relu, nearest_abs, nearest_square):
            np.testing.assert_allclose(moved, solve(x0, z0, 2.0, jnp.asarray(wz)), rtol=1e-6)
        else:
            sample = [a.astype(np.float64) for a in (x0, z0, 2 * np.ones(60), wz)]
            assert worst_excess(np.tanh, moved, brute_force(np.tanh, *sample), *sample) <= 1e-4


CLOSED = {"relu": nearest_relu, "abs": nearest_abs, "square": nearest_square}
SEARCHED = {name: partial(nearest_on_curve, NAMED[name][0]) for name in ("tanh", "log")}


@pytest.mark.parametrize("solve", [*CLOSED.values(), *SEARCHED.values()], ids=[*CLOSED, *SEARCHED])
def test_finite_points_give_finite_points(solve):
    values = [0, 1e-45, 1e-38, 1e-20, 1, 88, 104, 1e3, 1e4, 1e10, 1e19, 1e30]
    values = np.float32([*values, *np.negative(values)])
    weights = np.float32([1e-30, 1e-8, 1, 1e8, 1e30])
    grid = np.meshgrid(values, values, weights, [0, *weights], indexing="ij")
    assert np.isfinite(jax.jit(solve)(*(a.ravel().astype(np.float32) for a in grid))).all()


finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
weight = st.floats(2.0**-60, 2.0**60, width=32)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(CLOSED)), finite, finite, weight, weight)
def test_closed_forms_are_finite(name, x0, z0, wx, wz):
    assert np.isfinite(CLOSED[name](*map(jnp.float32, (x0, z0, wx, wz))))


def test_candidates_are_compared_by_one_rounding_of_their_distances():
    """XLA may compute a distance anew, and differently, for each of its uses."""

    def fit(w):
        return pjax.losses.squared_error(jnp.std(w, axis=0, keepdims=True), jnp.ones((1, 3)))

    for solver in (pjax.AlternatingProjections(momentum=0.9), pjax.DouglasRachford()):
        new, info = pjax.project(fit, solver=solver, steps=3)(jnp.ones((3, 3)))
        assert bool(info.finite) and np.all(np.isfinite(new))
