"""Standardised and normalised slices against searches in float64, and where they are found."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import pjax_trace as pjax
from pjax_trace.rule import Weights
from pjax_trace.rules.norms import NORMALISE, STANDARDISE
from tests.rules.slices import cost, names, project

MEAN = {"standardise": True, "normalise": False}


def centre(x, name):
    return x - x.mean(-1, keepdims=True) if MEAN[name] else x


def norm(x, name, eps):
    x = centre(x, name)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


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


def test_in_float64():
    with jax.enable_x64(True):
        x0, z0, wz = jnp.array([0.3, -0.2, 0.5]), jnp.array([0.2, 0.7, 0.1]), jnp.ones(3)
        moments, z, _ = STANDARDISE.project(
            {"axes": (0,), "eps": 1e-5}, (x0,), z0, Weights((1.0,), wz)
        )
        assert moments[0].first.dtype == z.dtype == jnp.float64
        again, _, distance = STANDARDISE.project(
            {"axes": (0,), "eps": 1e-5}, (moments[0].first,), z, Weights((1.0,), wz)
        )
        np.testing.assert_allclose(again[0].first, moments[0].first, atol=1e-6)
        assert distance < 1e-12


@pytest.mark.parametrize(("name", "rule"), [("standardise", STANDARDISE), ("normalise", NORMALISE)])
def test_what_a_sweep_hands_over_is_the_adjoint(name, rule):
    x, residual = (jax.random.normal(jax.random.key(i), (3, 4)) for i in range(2))
    jacobian = rule.linear({"axes": (1,), "eps": 1e-3}, (x,), 0)
    slopes = jax.jacobian(partial(rule.apply, {"axes": (1,), "eps": 1e-3}))(x)
    expected = np.einsum("ab,abcd->cd", residual, slopes)
    np.testing.assert_allclose(jacobian.transpose(residual), expected, atol=1e-5)


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

    graph = pjax.project(fit, (0, 1), schedule="parallel", copies=False).trace(variables, x)
    assert [c.name for c in graph.constraints] == [name, "mul", "squared_error"]
    values = graph.program.evaluate(jax.tree.leaves((variables, x)), []).values()
    expected = module.apply(variables, x)
    assert any(v.shape == x.shape and np.allclose(v, expected, atol=1e-4) for v in values)
