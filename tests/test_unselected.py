"""What a choice passes over may have no value: no update is NaN because of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import losses
from pjax_trace.problem import Problem
from tests.learning import CLASSICAL, fractions, normal

pytestmark = pytest.mark.thinned(7)

# The first rows are zero, so that hidden variables are exactly zero there.
X = normal(0, 12, 3).at[:3].set(0.0)
GAPS = X.at[5].set(jnp.nan).at[6, 1].set(jnp.inf)
COUNTS = jnp.array([0.0, 1, 2, 0, 3, 1, 0, 2, 1, 1, 0, 4])[:, None]
SEGMENTS = jnp.array([0, 0, 1, 1, 1, 3, 3, 4, 4, 4, 4, 6])
VALID = jnp.all(jnp.isfinite(GAPS), -1, keepdims=True)
START = {"w": normal(2, 3, 2), "b": jnp.zeros(2)}


def layer(p, x):
    return x @ p["w"] + p["b"][None]


def of_layer(function):
    return lambda p: function(layer(p, X))


def normalised(h):
    size = jnp.sqrt(jnp.sum(h * h, -1, keepdims=True))
    return jnp.where(size > 0, h / size, 0.0)


def mean_of_segments(h):
    total = jax.ops.segment_sum(jnp.tanh(h), SEGMENTS, 7)
    count = jax.ops.segment_sum(jnp.ones((12, 1)), SEGMENTS, 7)
    return jnp.where(count > 0, total / count, 0.0)


def of_nothing(h):
    """The mean of no elements."""
    mask = (COUNTS > 100).astype(h.dtype)
    mean = jnp.sum(mask * jnp.tanh(h), 0) / jnp.sum(mask)
    return h + jnp.where(jnp.sum(mask) > 0, mean, 0.0)[None]


def attention(p):
    q = layer(p, X)
    scores = jnp.where(COUNTS > 0, q @ q.T, -jnp.inf)
    return jnp.where(COUNTS > 0, jax.nn.softmax(scores, -1) @ q, 0.0)


def masked_logsumexp(h):
    masked = jnp.where(X[:, :2] > 0, h, -jnp.inf)
    return jnp.where(jnp.any(X[:, :2] > 0, -1), jax.nn.logsumexp(masked, -1), 0.0)


def in_a_scan(choose):
    """A choice in every step, with one by data beside it."""

    def function(p):
        def step(h, at):
            x, count = at
            moved = jnp.tanh(x @ p["w"] @ p["w"].T + jnp.where(count > 0, h / count, h))
            h = choose(h) + moved
            return h, h

        return lax.scan(step, jnp.zeros(3), (X, COUNTS))[1]

    return function


BY_VARIABLE = {
    "reciprocal": of_layer(lambda h: jnp.where(jnp.abs(h) > 1e-1, 1 / h, 0.0)),
    "log": of_layer(lambda h: jnp.where(h > 0, jnp.log(h), h)),
    "log in a product": of_layer(lambda h: jnp.where(h > 0, h * jnp.log(h), 0.0)),
    "xlogy": of_layer(lambda h: jax.scipy.special.xlogy(jax.nn.relu(h), jax.nn.relu(h))),
    "root": of_layer(lambda h: jnp.where(h > 0, jnp.sqrt(h), 0.0)),
    "power": of_layer(lambda h: jnp.where(h > 0, h**0.3, h)),
    "arcsine": of_layer(lambda h: jnp.where(jnp.abs(h) < 1, jnp.arcsin(h), h)),
    "atanh": of_layer(lambda h: jnp.where(jnp.abs(h) < 1, jnp.arctanh(h), h)),
    "acosh": of_layer(lambda h: jnp.where(h > 1, jnp.arccosh(h), h)),
    "log1p": of_layer(lambda h: jnp.where(h > -1, jnp.log1p(h), h)),
    "erf_inv": of_layer(lambda h: jnp.where(jnp.abs(h) < 0.9, lax.erf_inv(h), h)),
    "overflow": of_layer(lambda h: jnp.where(h > 0, h, jnp.exp(100 * h))),
    "sinc": of_layer(lambda h: jnp.where(h == 0, 1.0, jnp.sin(h) / h)),
    "logaddexp": of_layer(lambda h: jnp.logaddexp(h[:, 0], h[:, 1])),
    "piecewise": of_layer(
        lambda h: jnp.piecewise(h, [h < 0, h >= 0], [lambda h: -jnp.exp(h), jnp.sqrt])
    ),
    "normalised": of_layer(normalised),
    "by number": of_layer(lambda h: lax.select_n((h > 0).astype(jnp.int32), h, jnp.log(h))),
    "summed": of_layer(lambda h: jnp.sum(jnp.where(h > 0, jnp.log(h), 0.0), -1)),
    "scan": in_a_scan(lambda h: jnp.where(h > 0, 0.1 * jnp.log(h), 0.3 * h)),
}
BY_DATA = {
    "reciprocal": of_layer(lambda h: jnp.where(X[:, :1] == 0, 0.0, 1 / h)),
    "log": of_layer(lambda h: jnp.where(X[:, :1] == 0, 0.0, jnp.log(jnp.abs(h)))),
    "root": of_layer(lambda h: jnp.where(X[:, :1] == 0, 0.0, jnp.sqrt(jnp.abs(h)))),
    "data quotient": of_layer(lambda h: jnp.where(COUNTS > 0, h / COUNTS, 0.0)),
    "quotient, tanh": of_layer(lambda h: jnp.where(COUNTS > 0, jnp.tanh(h / COUNTS), 0.0)),
    "tanh, quotient": of_layer(lambda h: jnp.where(COUNTS > 0, jnp.tanh(h) / COUNTS, 0.0)),
    "infinite factor": of_layer(lambda h: jnp.where(COUNTS > 0, h * jnp.log(COUNTS), 0.0)),
    "infinite addend": of_layer(
        lambda h: jnp.where(COUNTS > 0, jnp.tanh(h + jnp.log(COUNTS)), 0.0)
    ),
    "quotient, product": lambda p: jnp.where(COUNTS > 0, layer(p, X) / COUNTS @ p["w"].T, 0.0),
    "missing": lambda p: jnp.where(VALID, layer(p, GAPS), 0.0),
    "missing, deep": lambda p: jnp.where(VALID, jnp.tanh(jnp.tanh(layer(p, GAPS)) @ p["w"].T), 0.0),
    "means of segments": of_layer(mean_of_segments),
    "mean of nothing": of_layer(of_nothing),
    "masked attention": attention,
    "masked logsumexp": of_layer(masked_logsumexp),
    "branches": lambda p: jax.vmap(
        lambda x, n: lax.cond(
            n > 0, lambda x: jnp.tanh(x @ p["w"]) / n, lambda x: 0.1 * (x @ p["w"]), x
        )
    )(X, COUNTS[:, 0]),
    "scan": in_a_scan(lambda h: 0.3 * h),
}
PROGRAMS = {
    **{f"{name}, by a variable": f for name, f in BY_VARIABLE.items()},
    **{f"{name}, by data": f for name, f in BY_DATA.items()},
}

# Steep or jumping where the first rows are: that no update is NaN is all that there is to ask.
WILD = {"summed, by a variable", "normalised, by a variable"}


@pytest.fixture(autouse=True)
def promotion():
    """What JAX's own functions do to ranks and dtypes is theirs."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def problem(name):
    function = PROGRAMS[name]
    y = function({"w": START["w"] + 0.3 * normal(9, 3, 2), "b": 0.1 * normal(8, 2)})
    assert np.all(np.isfinite(y))

    def fit(p, y):
        return losses.squared_error(function(p), y)

    return fit, START, y


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sweep_learns_beside_what_has_no_value(name):
    assert min(fractions(*problem(name), count=30)) < 0.9 or name in WILD


@pytest.mark.parametrize("name", PROGRAMS)
def test_classical_solvers_learn_beside_what_has_no_value(name):
    assert min(fractions(*problem(name), count=4, **CLASSICAL)) < 0.95 or name in WILD


@pytest.mark.parametrize("name", ["log, by a variable", "quotient, tanh, by data"])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": pjax.DouglasRachford(), "steps": 10},
        {"solver": pjax.AlternatingProjections(), "steps": 10, "schedule": "product"},
        {"solver": pjax.CyclicProjections(), "steps": 10},
        {"solver": pjax.AlternatingProjections(), "steps": 10, "granularity": "block"},
    ],
)
def test_other_solvers_stay_finite(name, options):
    fractions(*problem(name), count=2, **options)


def test_what_counts_and_has_no_value_is_still_an_error():
    def fit(p):
        return losses.squared_error(jnp.where(X[:, :1] >= 0, jnp.log(layer(p, X)), 0.0), 1.0)

    for options in ({}, CLASSICAL):
        with pytest.raises(pjax.NonFiniteError, match="the forward pass of log"):
            pjax.project(fit, **options)(START)


def test_labels_that_are_no_numbers_are_still_an_error():
    def fit(p, y):
        return losses.squared_error(jnp.where(X[:, :1] > 0, layer(p, X), 0.0), y)

    y = jnp.ones((12, 2)).at[1].set(jnp.nan)
    for options in ({}, CLASSICAL):
        with pytest.raises(pjax.NonFiniteError):
            pjax.project(fit, **options)(START, y)


def test_elements_that_are_passed_over_do_not_move_anything():
    """All but one row is hidden: the solution is that of this row alone."""

    def fit(h, shown):
        return losses.squared_error(jnp.where(shown, jnp.log(h), 0.0), 0.0)

    h = jnp.array([-2.0, 0.0, 3.0])
    for options in ({}, CLASSICAL):
        moved, _ = pjax.project(fit, **options)(h, jnp.array([False, False, True]))
        np.testing.assert_array_equal(moved[:2], h[:2])
        assert 0 < moved[2] < 3


@pytest.mark.parametrize(
    "bounded",
    [
        lambda x: jnp.clip(x, -2.0, 2.0),
        lambda x: jnp.minimum(jnp.maximum(x, -1.0), jnp.array([1.0, 2.0, 3.0])),
        lambda x: jnp.tanh(jnp.maximum(x, -1.0)),
        lambda x: jax.nn.sigmoid(-jnp.maximum(x, -1.0)),
    ],
)
def test_what_is_infinite_holds_at_the_start(bounded):
    """A minimum passes over an infinity as what it is, and not as any number."""

    def fit(w):
        filled = jnp.where(jnp.array([True, False, True]), w, jnp.inf)
        return losses.squared_error(bounded(filled), jnp.zeros(3))

    w = jnp.array([0.5, 1.0, -0.25])
    solve = pjax.project(fit, solver=pjax.AlternatingProjections())
    problem = Problem.forward(solve.trace(w), pjax.Metric(), *solve.arrays(w))
    problem.prepare()
    hard = problem.graph.hard
    np.testing.assert_allclose(problem.gaps(problem.values)[hard], 0.0, atol=1e-6)
