"""Losses and their proximal operators, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from pjax_trace import prox

LAMS = (1e-4, 1e-2, 0.3, 1.0, 5.0, 30.0, 300.0, 1e3)
prox_cross_entropy = jax.jit(prox.prox_cross_entropy)
prox_margin = jax.jit(prox.prox_margin)


def scores(rng, rows: int, classes: int, kind: str) -> np.ndarray:
    spread = 10 ** rng.uniform(-3, 3, (rows, 1))
    normal = rng.normal(size=(rows, classes))
    s = (
        spread
        * {
            "normal": normal,
            "ties": np.round(normal),
            "zero": 0 * normal,
            "geometric": -(rng.uniform(1.01, 6, (rows, 1)) ** -np.arange(classes)),
            "offset": normal + rng.choice([-100, 0, 100], (rows, 1)) * rng.random((rows, 1)),
        }[kind]
    )
    return np.clip(s, -1e3, 1e3).astype(np.float32)


def targets(rng, rows: int, classes: int, kind: str) -> np.ndarray:
    if kind == "one-hot":
        return np.eye(classes, dtype=np.float32)[rng.integers(0, classes, rows)]
    return rng.dirichlet(np.full(classes, 0.3), rows).astype(np.float32)


def residual(x, s, target, lam) -> tuple[np.ndarray, np.ndarray]:
    """Of the optimality condition, and what rounding x alone does to it; both for every row.

    The objective is 1-strongly convex: the residual bounds the distance to the minimiser.
    """
    spacing = np.spacing(np.abs(x).max(-1)).astype(float)
    x, s, target = (np.asarray(a, float) for a in (x, s, target))
    lam = np.broadcast_to(np.asarray(lam, float), x.shape[:-1])
    total = target.sum(-1, keepdims=True)
    gap = x - s + lam[..., None] * (total * softmax(x, -1) - target)
    return np.abs(gap).max(-1), spacing / 2 * (1 + lam / 2)


@pytest.mark.parametrize(
    ("classes", "rows"), [(1, 10), (2, 900), (3, 900), (10, 900), (31, 100), (100, 60), (1000, 6)]
)
def test_cross_entropy_is_optimal(classes, rows):
    rng = np.random.default_rng(classes)
    for kind in ("normal", "ties", "zero", "geometric", "offset"):
        for kind_of_target in ("one-hot", "soft"):
            for lam in (*LAMS, 10 ** rng.uniform(-4, 3, rows)):
                lam = np.broadcast_to(np.asarray(lam, np.float32), rows)
                s = scores(rng, rows, classes, kind)
                target = targets(rng, rows, classes, kind_of_target)
                x = np.asarray(prox_cross_entropy(s, target, lam))
                gap, rounding = residual(x, s, target, lam)
                allowed = 1e-5 * np.maximum(1, np.abs(s).max(-1) + lam)
                assert np.all(gap <= np.maximum(allowed, 1.8 * rounding)), (kind, lam)


@settings(deadline=None, max_examples=200)
@given(
    s=st.lists(st.floats(-1e3, 1e3, width=32), min_size=7, max_size=7),
    label=st.integers(0, 6),
    log_lam=st.floats(-4, 3),
)
def test_cross_entropy_is_optimal_anywhere(s, label, log_lam):
    s, target, lam = np.float32(s), np.eye(7, dtype=np.float32)[label], np.float32(10**log_lam)
    gap, rounding = residual(np.asarray(prox_cross_entropy(s, target, lam)), s, target, lam)
    assert gap <= max(1e-5 * max(1, np.abs(s).max() + lam), 1.8 * rounding)


def test_cross_entropy_of_rows_of_any_weight():
    rng = np.random.default_rng(0)
    s, target = scores(rng, 200, 10, "normal"), targets(rng, 200, 10, "soft")
    target *= 10 ** rng.uniform(-3, 1, (200, 1)).astype(np.float32)
    target[:20] = 0
    x = np.asarray(prox_cross_entropy(s, target, np.float32(5)))
    np.testing.assert_array_equal(x[:20], s[:20])
    gap, _ = residual(x, s, target, 5.0)
    assert np.all(gap <= 1e-5 * np.maximum(1, np.abs(s).max(-1) + 5 * target.sum(-1)))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_cross_entropy_stays_finite(classes):
    rng = np.random.default_rng(1)
    target = targets(rng, 50, classes, "one-hot")
    target[:10] = 0
    for lam in (0, 1e-30, 1e4, 1e10, 1e30):
        for scale in (0, 1e-30, 1, 1e10, 1e30):
            s = np.float32(rng.normal(size=target.shape) * scale)
            assert np.isfinite(prox_cross_entropy(s, target, np.float32(lam))).all()


def test_cross_entropy_beyond_float32s_reach_is_near():
    """At lam = 1e4 the residual is rounding; the point is still right to a few of its ulps."""
    rng = np.random.default_rng(2)
    s, target = scores(rng, 1000, 10, "normal"), targets(rng, 1000, 10, "one-hot")
    x = np.asarray(prox_cross_entropy(s, target, np.float32(1e4)))
    with jax.enable_x64(True):
        exact = np.asarray(prox_cross_entropy(s.astype(float), target.astype(float), 1e4))
    assert residual(exact, s, target, 1e4)[0].max() < 1e-8
    assert np.abs(x - exact).max() <= 4e-7 * (1e4 + np.abs(s).max())


def test_cross_entropy_in_float64():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        for lam in LAMS:
            s = scores(rng, 200, 10, "normal").astype(float)
            target = targets(rng, 200, 10, "one-hot").astype(float)
            x = prox_cross_entropy(s, target, lam)
            assert x.dtype == jnp.float64
            gap, _ = residual(np.asarray(x), s, target, lam)
            assert np.all(gap <= 2e-13 * (1 + np.abs(s).max(-1) + lam))


def margin_oracle(s, target, margin, lam):
    """By bisection on the threshold, in float64: what is cut grows as the threshold falls."""
    s, one = np.asarray(s, float), np.asarray(target) > 0
    margin, lam = (
        np.broadcast_to(np.asarray(a, float), s.shape[:-1])[..., None] for a in (margin, lam)
    )
    own = s[one][:, None]
    others = np.where(one, -np.inf, s)
    low = np.minimum(others.max(-1, keepdims=True), own - margin) - s.shape[-1] * np.ptp(s) - margin
    high = np.maximum(others.max(-1, keepdims=True), own - margin)
    for _ in range(200):
        mid = (low + high) / 2
        cut = np.maximum(others - mid, 0).sum(-1, keepdims=True)
        enough = cut >= np.minimum(lam, np.maximum(mid + margin - own, 0))
        low, high = np.where(enough, mid, low), np.where(enough, high, mid)
    cut = np.maximum(others - low, 0).sum(-1, keepdims=True)
    return np.where(one, s + cut, np.minimum(s, low))


@pytest.mark.parametrize(
    ("classes", "rows"), [(2, 1500), (3, 1500), (10, 1500), (40, 200), (1000, 10)]
)
def test_margin_is_the_nearest_point(classes, rows):
    rng = np.random.default_rng(classes)
    for kind in ("normal", "ties", "zero", "geometric", "offset"):
        for lam in (1e-4, 0.1, 1.0, 30.0, 1e3, np.inf):
            s, target = scores(rng, rows, classes, kind), targets(rng, rows, classes, "one-hot")
            margin = np.float32(rng.choice([0, 1e-2, 1, 100], rows))
            x = np.asarray(prox_margin(s, target, margin, np.float32(lam)), float)
            exact = margin_oracle(s, target, margin, np.float32(lam))
            scale = np.abs(s).max(-1, keepdims=True) + margin[:, None] + 1e-6
            assert np.max(np.abs(x - exact) / scale) <= 1e-6, (kind, lam)
            if np.isinf(lam):
                one = target > 0
                short = margin + np.where(one, -np.inf, x).max(-1) - x[one]
                assert np.max(short / scale[:, 0]) <= 1e-6


@settings(deadline=None, max_examples=100)
@given(
    s=st.lists(st.floats(-1e3, 1e3, width=32), min_size=5, max_size=5),
    label=st.integers(0, 4),
    margin=st.floats(0, 10, width=32),
    lam=st.one_of(st.just(np.inf), st.floats(2**-10, 2**10, width=32)),
)
def test_margin_is_the_nearest_point_anywhere(s, label, margin, lam):
    s, target = np.float32(s), np.eye(5, dtype=np.float32)[label]
    x = prox_margin(s, target, np.float32(margin), np.float32(lam))
    exact = margin_oracle(s[None], target[None], margin, lam)[0]
    tiny = 4 * np.finfo(np.float32).tiny  # XLA flushes what is smaller to zero
    assert np.abs(x - exact).max() <= 1e-6 * (np.abs(s).max() + margin) + tiny


def test_margin_leaves_what_holds_already():
    s, target = np.float32([[3.0, 1, 2], [5, 5, 5]]), np.float32([[1, 0, 0], [0, 0, 0]])
    for lam in (1.0, np.inf):
        np.testing.assert_array_equal(prox_margin(s, target, np.float32(1), np.float32(lam)), s)
    np.testing.assert_array_equal(prox.margin(s, target, 1.0), np.zeros(2))
    one = np.ones((4, 1), np.float32)
    np.testing.assert_array_equal(prox.prox_margin(5 * one, one, 1.0, jnp.inf), 5 * one)


def test_squared_error_is_the_nearest_point():
    rng = np.random.default_rng(0)
    s, target = (10 ** rng.uniform(-3, 3, (1000, 4)) * rng.normal(size=(1000, 4)) for _ in "st")
    lam = 10 ** rng.uniform(-4, 4, 1000)
    x = prox.prox_squared_error(jnp.float32(s), jnp.float32(target), jnp.float32(lam))
    exact = (s + lam[:, None] * target) / (1 + lam[:, None])
    assert np.abs(x - exact).max() <= 1e-6 * np.abs([s, target]).max()
    np.testing.assert_array_equal(
        prox.prox_squared_error(jnp.float32(s), jnp.float32(target), jnp.inf), np.float32(target)
    )


OPERATORS = {
    "cross_entropy": prox_cross_entropy,
    "margin": lambda s, target, lam: prox_margin(s, target, 1.0, lam),
    "squared_error": prox.prox_squared_error,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_any_batch_any_lam_any_transform(name):
    operator, rng = OPERATORS[name], np.random.default_rng(0)
    s = jnp.asarray(scores(rng, 12, 5, "normal"))
    target = jnp.asarray(targets(rng, 12, 5, "one-hot"))
    lam = jnp.linspace(0.1, 9, 12)
    x = np.asarray(operator(s, target, lam))

    np.testing.assert_allclose(jax.vmap(operator)(s, target, lam), x, 1e-5, 1e-4)
    blocks = operator(s.reshape(3, 4, 5), target.reshape(3, 4, 5), lam.reshape(3, 4))
    np.testing.assert_allclose(blocks.reshape(12, 5), x, 1e-5, 1e-4)
    np.testing.assert_allclose(operator(s, target, lam[3])[3], x[3], 1e-5, 1e-4)
    np.testing.assert_allclose(operator(s[3], target[3], lam[3]), x[3], 1e-5, 1e-4)
    assert operator(jnp.zeros((0, 5)), jnp.zeros((0, 5)), 1.0).shape == (0, 5)


@pytest.mark.parametrize("name", OPERATORS)
def test_mistakes_stay_visible(name):
    """Callers look for NaN."""
    s, target, lam = jnp.zeros((12, 5)), jnp.eye(5)[jnp.arange(12) % 5], jnp.ones(12)
    for bad in ((s, target, lam.at[3].set(jnp.nan)), (s, target.at[3].set(jnp.nan), lam)):
        missing = jnp.isnan(OPERATORS[name](*bad)).any(-1)
        np.testing.assert_array_equal(missing, jnp.arange(12) == 3)


def test_values_and_their_gradients():
    rng = np.random.default_rng(0)
    s, target = scores(rng, 500, 10, "offset"), targets(rng, 500, 10, "soft")
    wide = s.astype(float)
    loss = (target * (logsumexp(wide, -1, keepdims=True) - wide)).sum(-1)
    np.testing.assert_allclose(prox.cross_entropy(s, target), loss, 1e-5, 1e-5)
    gradient = jax.grad(lambda s: prox.cross_entropy(s, target).sum())(jnp.asarray(s))
    np.testing.assert_allclose(gradient, softmax(wide, -1) - target, atol=1e-5)

    one = targets(rng, 500, 10, "one-hot")
    own, others = wide[one > 0], np.where(one > 0, -np.inf, wide).max(-1)
    loss = np.maximum(0.5 + others - own, 0)
    np.testing.assert_allclose(prox.margin(s, one, 0.5), loss, 1e-5, 2e-4)
    gradient = jax.grad(lambda s: prox.margin(s, one, 0.5).sum())(jnp.asarray(s))
    np.testing.assert_array_equal((gradient * one).sum(-1), -(loss > 0).astype(np.float32))

    np.testing.assert_allclose(
        prox.squared_error(s, target), ((wide - target) ** 2).sum(-1) / 2, 1e-5
    )
