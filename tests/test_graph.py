"""The consensus graph: colours, identities, total weights, and what it prints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from tests.problems import problem_of


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def end(x):
    pjax.constrain(x, pjax.sets.Equal(1.0))


def mlp(model, x):
    return pjax.losses.cross_entropy(jax.vmap(model)(x), jnp.zeros(x.shape[0], jnp.int32))


MODEL = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
SQUARE = normal(0, 3, 3)


def residual(params, x):
    for w, v in params:
        x = x + jax.nn.relu(x @ w) @ v
    end(x)


def tied(w, x):
    end(jax.nn.relu(x @ w) @ w.T)


def recurrent(w, x):
    h = x
    for _ in range(3):
        h = jax.nn.relu(h @ w + x)
    end(h)


def skip_relu(x):
    h = jax.nn.relu(x)
    end(h + x)


def triangle(params):
    x, y = params
    h = x * y
    k = jax.nn.relu(h)
    end(h * k)
    end(h - k)


def fan(w, x):
    h = x @ w
    k = jax.nn.relu(h)
    for scale in (1.0, 2.0):
        end(scale * h + jax.nn.relu(k))
        end(h + scale * k)


GRAPHS = {
    "mlp": (mlp, (MODEL, normal(1, 5, 3))),
    "residual": (residual, ([(SQUARE, SQUARE + 1)] * 2, normal(1, 4, 3))),
    "tied": (tied, (SQUARE, normal(1, 4, 3))),
    "recurrent": (recurrent, (SQUARE, normal(1, 4, 3))),
    "skip relu": (skip_relu, (normal(0, 3),)),
    "triangle": (triangle, ((normal(0, 3), normal(1, 3)),)),
    "fan": (fan, (SQUARE, normal(1, 4, 3))),
}


def identities(graph):
    return [c for c in graph.constraints if c.name.endswith("'")]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_edge_joins_two_colours(name):
    fn, args = GRAPHS[name]
    traced = problem_of(fn, *args)
    graph = traced.graph
    assert set(graph.colours) == {*graph.parameters, *graph.constraints}
    for c in graph.constraints:
        for _, view in c.reads:
            for base in view.bases:
                assert graph.colours[graph.node(base)] == 1 - graph.colours[c]
                assert c in [reader for reader, _ in graph.readers[base]]
    # The outputs' colour is the first.
    first = next(c for c in graph.constraints if c.out is None)
    assert graph.colours[first] == 0
    # What a constraint reads is a parameter or was produced before.
    known = set(graph.parameters)
    for c in graph.constraints:
        assert all(known.issuperset(view.bases) for _, view in c.reads)
        known.add(c.out)
    # An identity repeats its variable, at most once each, and carries its value.
    repeated = [c.operands[0].bases[0] for c in identities(graph)]
    assert len(set(repeated)) == len(repeated)
    env = dict(zip(graph.variables, traced.values, strict=True))
    for c, variable in zip(identities(graph), repeated, strict=True):
        assert c.operands[0].identity
        np.testing.assert_array_equal(env[c.out], env[variable])
    for c in graph.constraints:
        if c.out is not None:
            value = c.rule.apply(c.params, *traced.operands(c, env))
            np.testing.assert_allclose(value, env[c.out], rtol=1e-5, atol=1e-5)


def test_usual_networks_need_no_identity():
    for name in ("mlp", "residual", "tied"):
        fn, args = GRAPHS[name]
        assert not identities(problem_of(fn, *args).graph), name


def test_identities_only_where_needed():
    """``relu(x) + x`` is an odd cycle: one identity, on one reader's side."""
    (identity,) = identities(problem_of(skip_relu, normal(0, 3)).graph)
    assert identity.name == "x'"
    assert identity.source == "parameter x"
    assert identities(problem_of(triangle, (normal(0, 3), normal(1, 3))).graph)


def test_readers_weigh_together():
    """A parameter weighs once for every row that reads it, a hidden unit for every column."""

    def fit(params, x):
        h = jax.nn.relu(x @ params["w"] + params["b"][None])
        end(h @ params["v"])

    params = {"w": normal(0, 3, 4), "b": normal(1, 4), "v": normal(2, 4, 7)}
    metric = pjax.Metric(hidden=0.5, outputs=3.0, paths={"params['w']": 2.0, "params['v']": 10.0})
    traced = problem_of(fit, params, normal(3, 128, 3), metric=metric)
    masses = {v.name: traced.mass(v) for v in traced.graph.variables}
    expected = {
        "params['w']": 2.0 * 128,
        "params['b']": 128.0,
        "params['v']": 10.0 * 128,
        "dot_general": 0.5,  # read by the relu alone
        "max": 0.5 * 7,
        "dot_general_1": 3.0,
    }
    for name, mass in expected.items():
        np.testing.assert_allclose(np.unique(masses[name]), [mass], err_msg=name)


def test_a_unit_read_by_128_rows_weighs_128():
    def fit(params):
        end(jax.nn.relu(params["h"]) @ params["w"])

    traced = problem_of(fit, {"h": normal(0, 1, 2), "w": normal(1, 2, 128)})
    (relu,) = [c for c in traced.graph.constraints if c.name == "max"]
    np.testing.assert_allclose(traced.mass(relu.out), 128.0)
    # Two readers add up, and a view's readers count where they read.
    traced = problem_of(
        lambda h: (end(h + h[::-1][None][0] * 0 + 1), end(h[1:]), end(2 * h)), normal(0, 2)
    )
    np.testing.assert_allclose(traced.mass(traced.graph.parameters[0]), [5.0, 6.0])


def test_print():
    text = str(problem_of(mlp, MODEL, normal(1, 5, 3)).graph)
    lines = text.splitlines()
    assert lines[0] == "ConsensusGraph: 6 parameters, 5 hidden variables, 6 constraints"
    for part in (
        "parameter  model.layers[0].weight:float32[4,3]",
        "model.layers[2].bias:float32[2]",
        "sum        dot_general:float32[4,5] = dot_general(" if "float32[4,5]" in text else "sum ",
        "extremum   max:float32[",
        "loss       cross_entropy(",
        "data[5,3]",
        "test_graph.py:",
    ):
        assert part in text, part
    letters = {line[2] for line in lines if line.startswith("  ") and line[3] == " "}
    assert {"A", "B"} <= letters
    assert all(ord(character) < 128 or character == "→" for character in text)


def test_the_same_function_prints_the_same_graph():
    first, second = (str(problem_of(recurrent, SQUARE, normal(1, 4, 3)).graph) for _ in range(2))
    assert first == second
    assert first == str(
        pjax.project(recurrent, schedule="parallel", copies=False).trace(SQUARE, normal(1, 4, 3))
    )


def test_critical_paths():
    def loop(w, x):
        def step(h, x):
            h = jnp.tanh(h @ w)
            return h, jnp.abs(h)

        h, xs = jax.lax.scan(step, x, None, length=5)
        end(jnp.sqrt(h) + jnp.sum(xs, 0))

    def mapped(w, x):
        end(jax.lax.map(lambda row: jnp.tanh(row @ w), x))

    # A product and a curve for each of five steps; then the last abs, the sum of all, +, a set.
    for fn, args, parallel, sweep in [
        (loop, (SQUARE, normal(1, 3, 3)), 2, 14),
        (mapped, (SQUARE, normal(1, 4, 3)), 2, 3),  # all rows at once
        (mlp, GRAPHS["mlp"][1], 2, 6),  # three layers, two activations, a loss
        (tied, GRAPHS["tied"][1], 2, 4),
    ]:
        found = {}
        for schedule in ("parallel", "product", "cyclic", "sweep"):
            solver = pjax.CyclicProjections() if schedule == "cyclic" else None
            graph = pjax.project(fn, schedule=schedule, solver=solver).trace(*args)
            found[schedule] = graph.critical_path(schedule)
            assert schedule != "cyclic" or found[schedule] == len(graph.constraints)
        assert (found["parallel"], found["product"], found["sweep"]) == (parallel, 1, sweep)
    with pytest.raises(pjax.InputError, match="the graph was not traced for 'parallel'"):
        graph.critical_path("parallel")
