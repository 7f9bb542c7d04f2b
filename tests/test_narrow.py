"""Slices in front of sums: where it is done, where not, and that values stay the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.trace import trace_program
from tests.problems import problem_of

X = jax.random.normal(jax.random.key(0), (4, 3))
W = jax.random.normal(jax.random.key(1), (3, 6))
B = jax.random.normal(jax.random.key(2), (6,))


def ended(*values):
    for value in values:
        pjax.constrain(value, pjax.sets.Equal(0.0))


def graph_of(function, *args):
    return pjax.project(
        function, argnums=tuple(range(len(args))), schedule="parallel", copies=False
    ).trace(*args)


def sums(graph):
    return [c.name.split("_")[0] for c in graph.constraints if c.rule.family == "sum"]


def gates(w, b, x):
    left, right = jnp.split(x @ w + b[None], 2, axis=1)
    ended(jnp.abs(left), jnp.tanh(right))


def slices(w, b, x):
    z = (x @ w + b[None]).T
    ended(jnp.abs(z[:2]), jnp.tanh(z[2:]))


def batched(w, b, x):
    z = jnp.einsum("nji,njk->nik", w[None] * jnp.ones((2, 1, 1)), jnp.stack([x.T, -x.T]))
    ended(jnp.abs(z[0]), jnp.tanh(z[1]) + b[:, None])


@pytest.mark.parametrize("function", [gates, slices])
def test_every_part_is_a_sum_of_its_own(function):
    graph = graph_of(function, W, B, X)
    products = [c for c in graph.constraints if c.rule.family == "sum" and len(c.reads) == 3]
    assert len(products) == 2
    total = sum(int(np.prod(c.out.shape)) for c in products)
    assert total == X.shape[0] * W.shape[1]


def read_whole(w, b, x):
    z = x @ w + b[None]
    ended(jnp.abs(z), jnp.tanh(z[:, :2]), jnp.exp(z[:, 2:]))


def overlapping(w, b, x):
    z = x @ w + b[None]
    ended(jnp.abs(z[:, :4]), jnp.tanh(z[:, 2:]))


def one_part(w, b, x):
    ended(jnp.abs((x @ w + b[None])[:, :2]))


def two_axes(w, b, x):
    z = x @ w + b[None]
    ended(jnp.abs(z[:2]), jnp.tanh(z[2:, :3]))


@pytest.mark.parametrize("function", [read_whole, overlapping, one_part, two_axes])
def test_sums_that_stay_whole(function):
    products = [c for c in graph_of(function, W, B, X).constraints if c.rule.family == "sum"]
    assert products[0].out.shape == (4, 6)


@pytest.mark.parametrize("function", [gates, slices, batched, read_whole, overlapping])
def test_values_stay_the_same(function):
    def outputs(w, b, x):
        found = []
        original = pjax.constrain
        try:
            pjax.constrain = lambda value, _: found.append(value)
            function(w, b, x)
        finally:
            pjax.constrain = original
        return found

    program = trace_program(lambda p, _: outputs(*p), [W, B, X], [], names="wbx")
    env = program.evaluate([W, B, X], [])
    for value, wanted in zip(program.outputs, outputs(W, B, X), strict=True):
        np.testing.assert_allclose(env[value], wanted, rtol=1e-5, atol=1e-5)
    assert [e.index for e in program.equations] == sorted({e.index for e in program.equations})


def loop_of(cell):
    """A loop over time that ends at ones."""
    lstm = isinstance(cell, eqx.nn.LSTMCell)

    def fit(cell, xs):
        start = (jnp.zeros(4), jnp.zeros(4)) if lstm else jnp.zeros(4)
        state, _ = jax.lax.scan(lambda h, x: (cell(x, h), None), start, xs)
        return pjax.losses.squared_error(state[0] if lstm else state, jnp.ones(4))

    return problem_of(fit, cell, X)


@pytest.mark.parametrize(("cell", "gates"), [(eqx.nn.GRUCell, 2), (eqx.nn.LSTMCell, 4)])
def test_cells(cell, gates, loose_promotion):
    graph = loop_of(cell(3, 4, key=jax.random.key(0))).graph
    gate = [c for c in graph.constraints if c.out is not None and len(c.reads) >= 4]
    assert len(gate) >= gates  # both products and the bias, in one constraint


@pytest.mark.slow
@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_cells_have_no_gap_at_a_forward_start(cell, loose_promotion):
    problem = loop_of(cell(3, 4, key=jax.random.key(0)))
    gaps = jax.jit(problem.gaps)(problem.values)
    np.testing.assert_allclose(gaps[problem.graph.hard], 0.0, atol=1e-5)
