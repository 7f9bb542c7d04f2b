"""Groups that data decide: attention on graphs, mixtures of experts; and solves by data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import losses
from pjax_trace.custom import call, function_p
from pjax_trace.rules.scattered import SEGMENT_MAX
from pjax_trace.trace import trace_program

from .learning import LIMIT

pytestmark = pytest.mark.thinned(4)

RANDOM = np.random.default_rng(0)
NODES, EDGES, WIDTH = 6, 14, 3


def real(*shape, scale=1.0):
    return jnp.asarray(scale * RANDOM.normal(size=shape), jnp.float32)


SOURCES, TARGETS = (RANDOM.integers(0, NODES, EDGES, np.int32) for _ in range(2))
GROUPS = jnp.array([2, 0, 4], jnp.int32)


def graph_attention(p, x):
    """Softmax over the edges that end at a node."""
    h = x @ p["w"]
    score = jax.nn.leaky_relu((h @ p["from"])[SOURCES] + (h @ p["to"])[TARGETS])
    score = score - lax.stop_gradient(jax.ops.segment_max(score, TARGETS, NODES))[TARGETS]
    weight = jnp.exp(score)
    weight = weight / jax.ops.segment_sum(weight, TARGETS, NODES)[TARGETS]
    return jax.ops.segment_sum(weight * h[SOURCES], TARGETS, NODES)


def attention_without_a_stop(p, x):
    """The maximum moves, too: it cancels."""
    h = jnp.tanh(x @ p["w"])
    score = (h @ p["from"])[SOURCES]
    weight = jnp.exp(score - jax.ops.segment_max(score, TARGETS, NODES)[TARGETS])
    return jax.ops.segment_sum(weight * h[SOURCES], TARGETS, NODES)


def pooling(p, x):
    """Largest and smallest of what comes in, and of the node itself."""
    h = x @ p["w"]
    largest = h.at[TARGETS].max(jnp.tanh(h)[SOURCES])
    return largest - h.at[TARGETS].min(jnp.sin(h)[SOURCES] @ p["v"])


def experts(p, x):
    """Every group of rows has matrices of its own, and a gate."""
    h = jax.nn.gelu(lax.ragged_dot(x, p["one"], GROUPS))
    gate = jax.nn.softmax(x @ p["gate"])[:, :1]
    return lax.ragged_dot(h, p["other"], GROUPS) * gate


def solved(p, x):
    """A layer, through solves by data of several kinds."""
    a = jnp.asarray(SPD)
    h = jnp.tanh(jnp.linalg.solve(a + jnp.eye(NODES), x @ p["w"]))
    h = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(a), h, lower=True)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), h) @ p["v"]


def special(p, x):
    h = jax.nn.softplus(x @ p["w"]) + 0.5
    total = lax.cumlogsumexp(h, 0) + lax.lgamma(h) + jax.scipy.special.digamma(h)
    return total + jnp.arctan2(h, x @ p["v"])


HALF = RANDOM.normal(size=(NODES, NODES)).astype(np.float32)
SPD = HALF @ HALF.T + 2 * np.eye(NODES, dtype=np.float32)
SQUARE = {"w": real(WIDTH, WIDTH), "v": real(WIDTH, WIDTH)}
PROGRAMS = {
    "graph attention": (
        graph_attention,
        {"w": real(WIDTH, WIDTH), "from": real(WIDTH, 1), "to": real(WIDTH, 1)},
    ),
    "maximum": (attention_without_a_stop, {"w": real(WIDTH, WIDTH), "from": real(WIDTH, 1)}),
    "pooling": (pooling, SQUARE),
    "experts": (
        experts,
        {"one": real(3, WIDTH, 4), "other": real(3, 4, WIDTH), "gate": real(WIDTH, 2)},
    ),
    "solves": (solved, SQUARE),
    "special": (special, SQUARE),
}
X, Y = real(NODES, WIDTH), real(NODES, WIDTH)


def fitting(program):
    return lambda p, x, y: losses.squared_error(program(p, x), y)


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "pooling"])
def test_sweeps_hand_over_the_adjoint(name, loose_promotion):
    program, params = PROGRAMS[name]
    fit = fitting(program)
    with jax.enable_x64(True):
        params, x, y = jax.tree.map(lambda a: a.astype(jnp.float64), (params, X, Y))
        new, _ = pjax.project(fit, solver=LIMIT, acceleration=())(params, x, y)
        slopes = jax.grad(fit)(params, x, y)
        for old, moved, slope in zip(*map(jax.tree.leaves, (params, new, slopes)), strict=True):
            step, slope = np.ravel(old - moved), np.ravel(slope)
            cosine = slope @ step / np.linalg.norm(step) / np.linalg.norm(slope)
            assert cosine >= 0.999


@pytest.mark.parametrize("name", PROGRAMS)
def test_sweeps_fit(name, loose_promotion):
    program, params = PROGRAMS[name]
    fit = fitting(program)
    train = pjax.project(fit)
    new, state = params, train.init(params)
    for _ in range(20):
        new, state, _ = train.update(new, state, X, Y)
    assert float(fit(new, X, Y)) < 0.95 * float(fit(params, X, Y))


FITTING = {
    **dict.fromkeys(PROGRAMS, {"steps": 30}),
    "graph attention": {"steps": 100, "metric": pjax.Metric(outputs=0.1)},
    "solves": {"steps": 400},  # badly conditioned, and so they are as products, too
}


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *((n, pjax.AlternatingProjections(momentum=0.9)) for n in PROGRAMS),
        ("graph attention", pjax.DouglasRachford()),
        ("pooling", pjax.DouglasRachford()),
        ("experts", pjax.DouglasRachford()),
        ("solves", pjax.DouglasRachford()),
    ],
)
def test_classical_solvers_fit(name, solver, loose_promotion):
    program, params = PROGRAMS[name]
    fit = fitting(program)
    train = pjax.project(fit, solver=solver, **FITTING[name])
    new, state = params, train.init(params)
    for _ in range(4):
        new, state, info = train.update(new, state, X, Y)
        assert bool(info.finite)
    assert float(fit(new, X, Y)) < float(fit(params, X, Y))


@pytest.mark.parametrize("samples", [10, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bound", [-jnp.inf, -1.0, 0.5])
def test_maxima_of_segments_are_the_nearest(bound, samples):
    """With an empty segment, elements that are in none, and a lower bound."""
    segments = np.array([2, 0, 2, 7, 2, 3], np.int32)

    def maxima(x):
        bounds = jnp.full(4, bound, x.dtype).at[1].set(0.0)
        return call(function_p, SEGMENT_MAX, x, segments, bounds, name="maxima")

    for scale in (0.3, 2.0):
        pjax.testing.check_rule(maxima, jnp.zeros(6), scale=scale, samples=samples)


def test_ragged_products_of_all_kinds():
    """Batches, columns, and contracted groups; sizes that leave rows out."""
    x, w = real(2, 5, 3), real(2, 3, 4)
    sizes = jnp.array([[2, 3], [1, 2]], jnp.int32)
    rows = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
    across = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    batched = lax.RaggedDotDimensionNumbers((((2,), (2,)), ((0,), (0,))), [1], [1])
    several = real(2, 2, 3, 4)
    for left, right, counts, numbers in (
        (x[0], w, sizes[0], rows),
        (x[0], w, sizes[1], rows),
        (x[0], real(5, 2), sizes[0], across),
        (x, several, sizes, batched),
    ):

        def product(x, w, counts=counts, numbers=numbers):
            return lax.ragged_dot_general(x, w, counts, numbers)

        program = trace_program(lambda p, _, f=product: f(*p), [left, right], [], names=["x", "w"])
        out = program.evaluate([left, right], [])[program.outputs[0]]
        np.testing.assert_allclose(out, product(left, right), atol=1e-5)


def test_solves_by_variables_are_refused():
    def fit(a):
        return losses.squared_error(jnp.linalg.inv(a), jnp.eye(3))

    with pytest.raises(pjax.MissingRuleError, match="test_groups"):
        pjax.project(fit).trace(jnp.eye(3))
