"""Composites against searches in float64 NumPy, and where programs have them."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import pjax_trace as pjax
from pjax_trace.registry import Weights
from pjax_trace.rules.composites import NORMALISE, SOFTMAX, STANDARDISE

MEAN = {"standardise": True, "normalise": False}


def centre(x, name):
    return x - x.mean(-1, keepdims=True) if MEAN[name] else x


def norm(x, name, eps):
    x = centre(x, name)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cost(f, x, x0, z0, wx, wz):
    return np.sum(wx * (x - x0) ** 2 + wz * (f(x) - z0) ** 2, -1)


def project(rule, x0, z0, wx, wz, **params):
    """The moved slices in float64, their outputs and the distance that the rule tells."""

    @jax.jit
    def run(x0, z0, wx, wz):
        moments, out, distance = rule.project(params, (x0,), z0, Weights((wx,), wz))
        return moments[0].first / moments[0].mass, out, distance

    x, z, distance = (np.asarray(a, np.float64) for a in run(x0, z0, wx, wz))
    assert np.isfinite(x).all() and np.isfinite(z).all() and np.isfinite(distance)
    return x, z, distance


def slices(f, rows, n, seed):
    """Points and metrics of all sizes; on the graph, near it, opposite, constant, zero, tied."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(4, rows, n))
    x0 = normal[0] * 10 ** rng.uniform(-4, 2, (rows, 1)) + rng.choice([0, 0, 10], (rows, 1))
    x0 = np.where(rng.random((rows, 1)) < 0.05, 1.5, x0)
    x0 = np.where(rng.random((rows, 1)) < 0.05, np.round(x0), x0)
    on = f(x0)
    size = rng.uniform(0, 2, (rows, 1))
    near = on + 10 ** rng.uniform(-4, -1, (rows, 1)) * normal[1]
    wild = 10 ** rng.uniform(-2, 1, (rows, 1)) * normal[2]
    kind = rng.integers(0, 7, (1, rows, 1))
    z0 = np.take_along_axis(
        np.stack([on, near, -on * size, on * size, wild, wild, 0 * on]), kind, 0
    )
    weights = 10 ** rng.uniform(-3, 3, (rows, 1))
    wx = 2.0 ** rng.integers(-9, 9)  # so that dividing by it is exact
    return [np.float32(a) for a in (x0, z0[0], wx, np.broadcast_to(weights, (rows, n)))]


def nearest_norm(name, eps, x0, z0, wx, wz):
    """The least distance, by a search for the size of the slice; uniform weights."""
    a, b, ratio = centre(x0, name), centre(z0, name), (wz[:, :1] / wx)
    aa, ab, bb = ((u * v).mean(-1, keepdims=True) for u, v in ((a, a), (a, b), (b, b)))
    s = np.broadcast_to(np.concatenate([[0], np.logspace(-12, 4, 1000)]), (len(x0), 1001))
    for _ in range(5):
        h = s / np.sqrt(s * s + eps)
        square = s * s * aa + 2 * ratio * s * h * ab + (ratio * h) ** 2 * bb
        value = s * s + ratio * h * h - 2 * np.sqrt(np.maximum(square, 0))
        k = value.argmin(-1)[:, None]
        low = np.take_along_axis(s, np.maximum(k - 1, 0), -1)
        high = np.take_along_axis(s, np.minimum(k + 1, s.shape[-1] - 1), -1)
        s = low + (high - low) * np.linspace(0, 1, 100)
    # The difference of large numbers that this is rounds, in float64 too: evaluate at the best s.
    s = 0.5 * (low + high)
    h = s / np.sqrt(s * s + eps)
    u = s * a + ratio * h * b
    size = np.sqrt(np.square(u).mean(-1, keepdims=True))
    x = x0 - a + s * np.where(size > 0, u / np.where(size > 0, size, 1), 0)
    return x, cost(partial(norm, name=name, eps=eps), x, x0, z0, wx, wz)


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
@pytest.mark.parametrize("n", [1, 2, 16])
@pytest.mark.parametrize(("name", "rule"), [("standardise", STANDARDISE), ("normalise", NORMALISE)])
def test_norms_are_nearest(name, rule, n, eps):
    f = partial(norm, name=name, eps=eps)
    point = slices(f, 150, n, n)
    x, z, distance = project(rule, *point, axes=(1,), eps=eps)
    x0, z0, wx, wz = exact = [a.astype(np.float64) for a in point]
    best, least = nearest_norm(name, eps, *exact)
    own = cost(f, x, *exact)
    # What rounding x by four units in the last place does to x and to z, and rounding z.
    ulp = 2.0**-21
    dx = ulp * np.maximum(np.abs(x0), np.abs(best)).max(-1, keepdims=True)
    sigma = np.sqrt(np.square(centre(best, name)).mean(-1, keepdims=True) + eps)
    dz = ulp * np.maximum(np.abs(z0), 1).max(-1, keepdims=True) + dx / sigma
    floor = np.sum(wx * dx**2 + wz * dz**2, -1)
    assert np.max((own - least) / (least + 1e4 * floor)) <= 1e-4
    assert (np.abs(z - f(x)) <= 4 * dz + 1e-6).all()
    np.testing.assert_allclose(distance, own.sum(), rtol=1e-2)


@pytest.mark.parametrize(("name", "rule"), [("standardise", STANDARDISE), ("normalise", NORMALISE)])
def test_norms_with_uneven_weights_get_nearer(name, rule):
    f = partial(norm, name=name, eps=1e-5)
    x0, z0, wx, wz = slices(f, 300, 5, 0)
    wz = np.float32(wz * 10 ** np.random.default_rng(1).uniform(-1, 1, wz.shape))
    x, _, _ = project(rule, x0, z0, wx, wz, axes=(1,), eps=1e-5)
    exact = [a.astype(np.float64) for a in (x0, z0, wx, wz)]
    start, own = cost(f, exact[0], *exact), cost(f, x, *exact)
    scale = np.sum(exact[3] * (1 + exact[1] ** 2), -1)
    stored = exact[2] * np.sum((2.0**-21 * exact[0]) ** 2, -1)  # what float32 rounds x to
    assert (own <= start * (1 + 1e-4) + 1e-6 * scale + stored).all()
    far = start > 1e-2 * scale
    assert np.mean(own[far] < 0.9 * start[far]) > 0.25


def test_norms_take_several_axes_together():
    x0, z0 = (jax.random.normal(jax.random.key(i), (3, 2, 4)) for i in range(2))
    many, z, _ = project(STANDARDISE, x0, z0, 1.0, jnp.ones_like(z0), axes=(1, 2), eps=1e-5)
    flat = [a.reshape(3, 8) for a in (x0, z0)]
    one, _, _ = project(STANDARDISE, *flat, 1.0, jnp.ones((3, 8)), axes=(1,), eps=1e-5)
    np.testing.assert_allclose(many.reshape(3, 8), one, atol=1e-6)
    np.testing.assert_allclose(z.reshape(3, 8).mean(-1), 0, atol=1e-6)


def softmax_points(rows, n, seed):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(5, rows, n))
    x0 = normal[0] * 10 ** rng.uniform(-1, 1, (rows, 1))
    near = softmax(x0 + normal[1] * 10 ** rng.uniform(-2, 1, (rows, 1)))
    kinds = np.stack([near, near + 0.3 * normal[2], 2 * normal[3], softmax(5 * normal[4])])
    z0 = np.take_along_axis(kinds, rng.integers(0, 4, (1, rows, 1)), 0)[0]
    wz = 10 ** rng.uniform(-1, 1.5, (rows, 1)) * 10 ** rng.uniform(-0.3, 0.3, (rows, n))
    return [np.float32(a) for a in (x0, z0, 1.0, wz)]


def newton(x, x0, z0, wx, wz, steps):
    """Damped Newton in float64, by dense solves, many starts at once."""
    damping, far = np.zeros((*x.shape[:-1], 1)), cost(softmax, x, x0, z0, wx, wz)
    unit = np.eye(x.shape[-1])
    for _ in range(steps):
        z = softmax(x)
        pull = wz * (z - z0)
        push = z * (pull - (z * pull).sum(-1, keepdims=True))
        e = np.maximum(wz * z * z + push, 0)
        cross = e[..., :, None] * z[..., None, :]
        outer = e.sum(-1)[..., None, None] * z[..., :, None] * z[..., None, :]
        matrix = (e + wx + damping)[..., None] * unit - cross - np.swapaxes(cross, -1, -2) + outer
        new = x - np.linalg.solve(matrix, (wx * (x - x0) + push)[..., None])[..., 0]
        tried = cost(softmax, new, x0, z0, wx, wz)
        better = (tried <= far)[..., None]
        x, far = np.where(better, new, x), np.minimum(far, tried)
        damping = np.where(better, damping / 8, np.maximum(8 * damping, 0.1 * e.max(-1)[..., None]))
    return far


@pytest.mark.parametrize("n", [2, 3, 6])
def test_softmax_is_stationary_and_nearly_always_nearest(n):
    point = softmax_points(150, n, n)
    x, z, distance = project(SOFTMAX, *point, axis=1)
    x0, z0, wx, wz = exact = [a.astype(np.float64) for a in point]
    own = cost(softmax, x, *exact)
    np.testing.assert_allclose(z, softmax(x), atol=1e-6)
    np.testing.assert_allclose(distance, own.sum(), rtol=1e-3)
    assert (own <= cost(softmax, x0, *exact) * (1 + 1e-4) + 1e-9).all()
    np.testing.assert_allclose(x.mean(-1), x0.mean(-1), atol=1e-4)
    pull = wz * (softmax(x) - z0)
    gradient = wx * (x - x0) + softmax(x) * (pull - np.sum(softmax(x) * pull, -1, keepdims=True))
    size = np.sqrt(own * (wx + wz.max(-1)))
    assert np.mean(np.linalg.norm(gradient, axis=-1) <= 1e-2 * size + 1e-5) >= 0.97
    rng = np.random.default_rng(0)
    shifts = rng.normal(size=(20, *x0.shape)) * 10 ** rng.uniform(-1, 1, (20, 1, 1))
    starts = np.concatenate([x[None], x0 + shifts])
    least = newton(starts, x0, z0, wx, wz, 40).min(0)
    assert np.mean(own <= least * (1 + 1e-3) + 1e-9) >= 0.97


def test_softmax_is_as_precise_as_its_dtype():
    """Not as its root, as what only compares distances is."""
    point = softmax_points(150, 5, 0)
    x = project(SOFTMAX, *point, axis=1)[0]
    with jax.enable_x64(True):
        exact = project(SOFTMAX, *(np.float64(a) for a in point), axis=1)[0]
    error = np.abs(x - exact).max(1) / np.maximum(np.abs(exact).max(1), 1)
    assert np.quantile(error, 0.9) <= 1e-6


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min, -1e9])
def test_softmax_leaves_masked_scores_alone(low):
    x0, z0, _, wz = softmax_points(50, 4, 0)
    masked = np.random.default_rng(0).random(x0.shape) < 0.4
    masked[:, 0] = False
    x0, z0 = np.where(masked, np.float32(low), x0), np.where(masked, 0, z0)
    moments, z, distance = SOFTMAX.project({"axis": 1}, (x0,), z0, Weights((1.0,), wz))
    x = np.asarray(moments[0].first)
    np.testing.assert_array_equal(x[masked], np.float32(low))
    assert np.isfinite(x[~masked]).all() and np.isfinite(distance)
    assert (np.asarray(z)[masked] == 0).all()
    # As if they were not there.
    row = int(np.argmax(masked.sum(1) == 1))
    own, some = ~masked[row], [a[row : row + 1] for a in (x0, z0, wz)]
    bare, _, _ = project(SOFTMAX, *(a[:, own] for a in some[:2]), 1.0, some[2][:, own], axis=1)
    at = [
        cost(softmax, y, *(a[row, own] for a in (x0, z0)), 1.0, wz[row, own])
        for y in (x[row, own].astype(float), bare[0])
    ]
    np.testing.assert_allclose(*at, rtol=1e-3)


def test_in_float64():
    with jax.enable_x64(True):
        for rule, params in ((SOFTMAX, {"axis": 0}), (STANDARDISE, {"axes": (0,), "eps": 1e-5})):
            x0, z0 = jnp.array([0.3, -0.2, 0.5]), jnp.array([0.2, 0.7, 0.1])
            wz = jnp.ones(3)
            moments, z, _ = rule.project(params, (x0,), z0, Weights((1.0,), wz))
            assert moments[0].first.dtype == z.dtype == jnp.float64
            again, _, distance = rule.project(params, (moments[0].first,), z, Weights((1.0,), wz))
            np.testing.assert_allclose(again[0].first, moments[0].first, atol=1e-6)
            assert distance < 1e-12


def names(function, x):
    def fit(x):
        out = function(x)
        return pjax.losses.squared_error(out.reshape(1, -1), jnp.zeros((1, out.size)))

    return [c.name for c in pjax.project(fit, schedule="parallel").trace(x).constraints][:-1]


def test_softmax_is_found_along_any_axis():
    x = jnp.ones((2, 4, 3))
    for axis in (0, 1, 2, -1):
        assert names(partial(jax.nn.softmax, axis=axis), x) == ["softmax"]
    assert names(jax.vmap(jax.nn.softmax), x) == ["softmax"]


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_is_found_in_attention(masked):
    attention = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0), inference=True)
    mask = jnp.tril(jnp.ones((4, 4), bool)) if masked else None
    found = names(jax.vmap(lambda x: attention(x, x, x, mask=mask)), jnp.ones((3, 4, 6)))
    assert found.count("softmax") == 1
    assert {name.split("_")[0] for name in found} == {"dot", "softmax"}
    keys = jnp.ones((3, 4, 2, 3))
    found = names(lambda x: jax.nn.dot_product_attention(x, keys, keys, is_causal=True), keys)
    assert [name.split("_")[0] for name in found] == ["dot", "softmax", "dot"]


def by_hand(x):
    mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.vmap(jax.vmap(eqx.nn.LayerNorm(6, use_weight=False, use_bias=False))), "layer_norm"),
        (jax.vmap(eqx.nn.LayerNorm((4, 6), use_weight=False, use_bias=False)), "layer_norm"),
        (jax.vmap(eqx.nn.LayerNorm((4, 6), 1e-6)), "layer_norm"),
        (jax.vmap(eqx.nn.GroupNorm(2, 4)), "layer_norm"),
        (jax.vmap(jax.vmap(eqx.nn.RMSNorm(6))), "rms_norm"),
        (by_hand, "layer_norm_by_hand"),
    ],
)
def test_norms_are_found(function, name):
    assert names(function, jnp.ones((2, 4, 6))) == [name]


@pytest.mark.parametrize(
    ("module", "name"),
    [(linen.LayerNorm(), "layer_norm_fast"), (linen.RMSNorm(1e-5), "rms_norm_fast")],
)
def test_norms_of_flax_are_found(module, name):
    """With their scale, whose product they take with the quotient and not with the norm."""
    x = 1 + jax.random.normal(jax.random.key(0), (2, 4, 6))
    variables = jax.tree.map(lambda a: a + 0.5, module.init(jax.random.key(0), x))

    def fit(variables, x):
        z = module.apply(variables, x)
        return pjax.losses.squared_error(z.reshape(1, -1), jnp.zeros((1, z.size)))

    graph = pjax.project(fit, (0, 1), schedule="parallel").trace(variables, x)
    assert [c.name for c in graph.constraints] == [name, "mul", "squared_error"]
    values = graph.program.evaluate(jax.tree.leaves((variables, x)), []).values()
    expected = module.apply(variables, x)
    assert any(v.shape == x.shape and np.allclose(v, expected, atol=1e-4) for v in values)


def test_the_loss_falls_by_training_through_them(trained):
    before, after, _ = trained
    assert after < 0.8 * before


def test_the_gap_closes_by_training_through_them(trained):
    _, _, info = trained
    assert info.gap < 0.5 * jnp.max(info.history)


@pytest.mark.slow
@pytest.mark.xfail(raises=AssertionError, reason="the loss falls to 0.86 only, and then rises")
def test_the_loss_falls_towards_targets_out_of_reach():
    """Rows of a norm have one mean and size: the loss is met at the cost of a gap that stays."""
    before, after, _ = train_towards(lambda model, x: x[:, 0])
    assert after < 0.8 * before


@pytest.fixture(scope="module")
def trained():
    """As `train_towards`, to the outputs of other parameters."""
    teacher = eqx.nn.MultiheadAttention(1, 4, key=jax.random.key(5), inference=True)
    norm = eqx.nn.LayerNorm(4)
    return train_towards(lambda model, x: jax.vmap(partial(model, (teacher, norm)))(x))


def train_towards(targets):
    """Losses before and after training attention and a norm in one call, and the info."""
    key = jax.random.key(0)
    attention = eqx.nn.MultiheadAttention(1, 4, key=key, inference=True)
    norm = eqx.nn.LayerNorm(4)
    mask = jnp.tril(jnp.ones((3, 3), bool))

    def model(parameters, x):
        attention, norm = parameters
        return jax.vmap(norm)(attention(x, x, x, mask=mask))[-1]

    def fit(parameters, x, y):
        return pjax.losses.squared_error(jax.vmap(partial(model, parameters))(x), y)

    x = jax.random.normal(key, (16, 3, 4))
    y = targets(model, x)
    parameters, info = pjax.project(fit, steps=100, schedule="parallel")((attention, norm), x, y)
    return fit((attention, norm), x, y), fit(parameters, x, y), info
