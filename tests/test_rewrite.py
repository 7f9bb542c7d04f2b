"""Folding sums into the constraints that read them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from tests.problems import problem_of


def terms(constraint):
    """How many operands each term of a sum has."""
    return sorted(len(term.operands) for term in constraint.params["terms"])


def sums(graph):
    """The sums of the program, without the identities that colouring inserts."""
    return [c for c in graph.constraints if c.rule.family == "sum" and c.name[-1] != "'"]


def check_values(traced):
    """Every constraint has the forward pass's value."""
    env = dict(zip(traced.graph.variables, traced.values, strict=True))
    for c in traced.graph.constraints:
        if c.out is not None:
            value = c.rule.apply(c.params, *traced.operands(c, env))
            np.testing.assert_allclose(value, env[c.out], rtol=1e-5, atol=1e-5)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_dense_layer():
    def dense(params, x):
        w, b = params
        pjax.constrain(x @ w + b[None], pjax.sets.Equal(0.0))

    traced = problem_of(dense, (normal(0, 3, 4), normal(1, 4)), normal(2, 5, 3))
    (layer,) = sums(traced.graph)
    assert terms(layer) == [1, 2]
    assert layer.name == "dot_general"
    assert "test_rewrite.py" in layer.source
    check_values(traced)


def test_linear_under_vmap():
    """Equinox's Linear under vmap transposes its product before it adds the bias."""
    model = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))

    def fit(model, x):
        pjax.constrain(jax.vmap(model)(x), pjax.sets.Equal(0.0))

    traced = problem_of(fit, model, normal(1, 5, 3))
    assert [terms(c) for c in sums(traced.graph)] == [[1, 2]] * 3
    families = [c.rule.family for c in traced.graph.constraints]
    assert families == ["sum", "extremum", "sum", "extremum", "sum", "set"]
    check_values(traced)


def test_recurrent_cell():
    def cell(params, x, h):
        w, u, b = params
        pre = jax.vmap(lambda x, h: w @ x + u @ h + b)(x, h)
        pjax.constrain(pre, pjax.sets.Equal(0.0))

    params = (normal(0, 4, 3), normal(1, 4, 4), normal(2, 4))
    traced = problem_of(cell, params, normal(3, 5, 3), normal(4, 5, 4))
    (merged,) = sums(traced.graph)
    assert terms(merged) == [1, 2, 2]
    assert len(traced.graph.variables) == 4
    check_values(traced)


def test_signs_and_layouts_survive():
    def function(params):
        x, w, y, s = params
        z = s - (jnp.transpose(x @ w) - (y.reshape(3, 2) - jnp.sum(y))).T[::-1]
        pjax.constrain(z, pjax.sets.Equal(0.0))

    params = (normal(0, 2, 4), normal(1, 4, 3), normal(2, 6), normal(3, 2, 3))
    traced = problem_of(function, params)
    check_values(traced)
    assert max(len(terms(c)) for c in sums(traced.graph)) >= 3


def test_a_value_with_several_readers_stays():
    def function(params):
        x, w, b = params
        h = x @ w
        pjax.constrain(h + b[None], pjax.sets.Equal(0.0))
        pjax.constrain(h, pjax.sets.Box(-1.0, 1.0))

    traced = problem_of(function, (normal(0, 2, 3), normal(1, 3, 2), normal(2, 2)))
    assert [terms(c) for c in sums(traced.graph)] == [[2], [1, 1]]
    check_values(traced)


@pytest.mark.parametrize(
    "between",
    [lambda h: h[:, :2], lambda h: 2.0 * h, lambda h: jnp.repeat(h, 2, 1), jax.nn.relu],
    ids=["slice", "scale", "repeat", "relu"],
)
def test_only_renaming_views_are_seen_through(between):
    def function(params):
        x, w, s = params
        h = between(x @ w)
        pjax.constrain(h + s[:, : h.shape[1]], pjax.sets.Equal(0.0))

    traced = problem_of(function, (normal(0, 2, 3), normal(1, 3, 4), normal(2, 2, 8)))
    assert [terms(c) for c in sums(traced.graph)] == [[2], [1, 1]]
    check_values(traced)


def test_no_variable_is_read_twice_by_a_merged_constraint():
    """A residual connection: the skip's variable is an operand of the product, too."""

    def residual(params):
        x, w = params
        pjax.constrain(x + x @ w, pjax.sets.Equal(0.0))

    traced = problem_of(residual, (normal(0, 2, 3), normal(1, 3, 3)))
    for c in sums(traced.graph):
        bases = [base for _, view in c.reads for base in view.bases]
        assert len(set(bases)) == len(bases)
    assert [terms(c) for c in sums(traced.graph)] == [[2], [1, 1]]
    check_values(traced)


def test_a_factor_is_no_addend():
    """``(x + y) * z`` and ``(x @ w) @ v`` stay two constraints."""

    def function(params):
        x, y, z, w = params
        pjax.constrain((x + y) * z, pjax.sets.Equal(0.0))
        pjax.constrain((z @ w) @ w.T[:, :1], pjax.sets.Equal(0.0))

    traced = problem_of(function, (*(normal(i, 3, 3) for i in range(3)), normal(3, 3, 3)))
    assert [terms(c) for c in sums(traced.graph)] == [[1, 1], [2], [2], [2]]
    check_values(traced)
