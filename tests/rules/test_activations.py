"""Activation functions against brute force in float64 NumPy, and as constraints of programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.custom import call, function_p
from pjax_trace.rule import Weights
from pjax_trace.rules.activations import CURVES, LINES, RULES
from tests.rules.oracle import brute_force, points, worst_excess


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def lines(knots, slopes, through):
    def f(x):
        y = through[1] + slopes[0] * (x - through[0])
        for knot, before, after in zip(knots, slopes[:-1], slopes[1:], strict=True):
            y = y + (after - before) * np.maximum(x - knot, 0)
        return y

    return f


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
    with jax.enable_x64(True):
        return np.asarray(x * jax.scipy.special.ndtr(np.asarray(x, np.float64)))


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def selu(x):
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * elu(x))


def squareplus(x):
    size = np.abs(x)
    larger = (size + np.sqrt(x * x + 4)) / 2
    return np.where(x < 0, 1 / larger, larger)


ORACLES = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "exact gelu": exact_gelu,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "log_sigmoid": lambda x: -np.logaddexp(0, -x),
    "elu": elu,
    "celu": elu,
    "selu": selu,
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "squareplus": squareplus,
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sparse_plus": lambda x: np.where(x > 1, x, (np.clip(x, -1, 1) + 1) ** 2 / 4),
    **{f.__name__: lines(*line) for f, line in LINES.items()},
}


def name_of(function):
    return getattr(function, "__name__", "exact gelu")


@pytest.mark.thinned(2)
@pytest.mark.parametrize("function", RULES, ids=name_of)
def test_nearest_points(function):
    rule, f = RULES[function], ORACLES[name_of(function)]
    sample = points(f, 400, 0, (-3, 3))
    # The moved point is Σ ω x' / Σ ω, without rounding for powers of two.
    sample[2] = np.exp2(np.round(np.log2(sample[2])))

    def project(x, z, wx, wz):
        return rule.project({}, (x,), z, Weights((wx,), wz))

    moments, out, _ = jax.jit(project)(*sample)
    x = moments[0].first / moments[0].mass
    exact = [a.astype(np.float64) for a in sample]
    np.testing.assert_allclose(out, f(np.asarray(x, np.float64)), rtol=1e-4, atol=1e-4)
    assert worst_excess(f, x, brute_force(f, *exact), *exact) <= 1e-4


@pytest.mark.parametrize("function", CURVES, ids=name_of)
def test_pieces_are_monotone_and_the_curvature_is_a_bound(function):
    curve, f = CURVES[function], ORACLES[name_of(function)]
    x = np.linspace(-8, 8, 16_001)
    ends = [-np.inf, *curve.knots, np.inf]
    here = f(x)
    steps = np.diff(here)
    for low, high in zip(ends[:-1], ends[1:], strict=True):
        inside = steps[(x[:-1] > low) & (x[1:] < high)]
        assert (inside >= -1e-12).all() or (inside <= 1e-12).all()
    h = 1e-3
    before, after = f(x - h), f(x + h)
    if curve.curvature is not None:
        assert np.abs(after - 2 * here + before).max() / h**2 <= 1.001 * curve.curvature + 1e-6
    # Where no knot is near, the slope is the derivative, in float32 to rounding.
    slope = np.asarray(curve.tangent(jnp.asarray(x, jnp.float32)))
    away = np.min(np.abs(x[:, None] - np.asarray([*curve.knots, 1e9])), axis=1) > 2 * h
    difference = (after - before) / (2 * h)
    np.testing.assert_allclose(slope[away], difference[away], atol=1e-5)


@pytest.mark.slow
def test_as_constraints_of_a_program():
    rule = RULES[jax.nn.silu]

    def silu(x):
        return call(function_p, rule, x, name="silu")

    pjax.testing.check_rule(silu, jnp.zeros(3), samples=10, scale=2.0)

    def fit(w, x, y):
        return pjax.losses.squared_error(silu(x @ w), y)

    x = jax.random.normal(jax.random.key(0), (16, 3))
    w = jnp.asarray([[0.5], [-0.3], [0.8]])
    y = jax.nn.silu(x @ w)
    found, _ = pjax.project(fit, steps=60, schedule="parallel")(w + 0.3, x, y)
    before = jnp.mean(jnp.square(jax.nn.silu(x @ (w + 0.3)) - y))
    assert jnp.mean(jnp.square(jax.nn.silu(x @ found) - y)) < 0.1 * before
