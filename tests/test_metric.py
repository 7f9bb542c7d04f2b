"""The metric: which variable gets which weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import losses, sets


def network(model, x, y):
    h = jnp.abs(x @ model["layers"][0]["weight"] + model["layers"][0]["bias"][None])
    z = h @ model["layers"][10]["weight"]
    pjax.constrain(h, sets.Box(-3.0, 3.0))
    return losses.squared_error(z, y)


LAYERS = {
    0: {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    1: {"scale": jnp.ones(2)},
    10: {"weight": jnp.ones((3, 2))},
}
MODEL = {"layers": LAYERS}
GRAPH = pjax.project(network, schedule="parallel", copies=False).trace(
    MODEL, jnp.ones((4, 2)), jnp.ones((4, 2))
)
NAMES = [v.name for v in GRAPH.variables]
ROOT = "model['layers']"


def weights(**options):
    return {v.name: w for v, w in pjax.Metric(**options).resolve(GRAPH).items()}


def test_kinds():
    found = weights(parameters=2.0, hidden=3.0, outputs=4)
    assert [n for n in NAMES if n.startswith("model")] == [
        f"{ROOT}[0]['bias']",
        f"{ROOT}[0]['weight']",
        f"{ROOT}[1]['scale']",
        f"{ROOT}[10]['weight']",
    ]
    assert all(found[n] == 2.0 for n in NAMES if n.startswith("model"))
    hidden = [n for n in NAMES if not n.startswith("model")]
    # The set reads abs and the loss what the last product gives: both are outputs.
    assert len(hidden) == 3 and [found[n] for n in hidden] == [3.0, 4.0, 4.0]
    assert set(weights().values()) == {1.0}


@pytest.mark.parametrize(
    "path, matched",
    [
        (f"{ROOT}[0]['weight']", [f"{ROOT}[0]['weight']"]),
        (f"{ROOT}[0]", [f"{ROOT}[0]['bias']", f"{ROOT}[0]['weight']"]),
        (f"{ROOT}[1]", [f"{ROOT}[1]['scale']"]),  # and not [10]
        ("*['weight']", [f"{ROOT}[0]['weight']", f"{ROOT}[10]['weight']"]),
        (f"{ROOT}[*]['weight']", [f"{ROOT}[0]['weight']", f"{ROOT}[10]['weight']"]),
        ("model", [n for n in NAMES if n.startswith("model")]),
        ("abs", ["abs"]),
        ("*", NAMES),
    ],
)
def test_paths(path, matched):
    found = weights(paths={path: 9.0})
    assert [n for n in NAMES if found[n] == 9.0] == matched


def test_a_prefix_of_a_name_is_no_path():
    for path in ("mod", "ab", "weight", f"{ROOT}[", "model.layers"):
        with pytest.raises(pjax.InputError, match="matches no variable; there are: model"):
            weights(paths={path: 2.0})


def test_the_last_match_counts_and_paths_override_kinds():
    found = weights(parameters=5.0, paths={"*": 2.0, f"{ROOT}[0]": 3.0, "*['bias']": 4.0})
    assert found[f"{ROOT}[0]['bias']"] == 4.0 and found[f"{ROOT}[0]['weight']"] == 3.0
    assert found[f"{ROOT}[10]['weight']"] == 2.0 == found["abs"]


def test_weights_per_parameter_are_shared_by_their_copies():
    found = weights(parameters=8.0, paths={f"{ROOT}[10]": 2.0}, per="parameter")
    # Four rows read the first layer and the last one; nobody reads the scale.
    assert found[f"{ROOT}[0]['weight']"] == found[f"{ROOT}[0]['bias']"] == 2.0
    assert found[f"{ROOT}[10]['weight']"] == 0.5 and found[f"{ROOT}[1]['scale']"] == 8.0
    assert found["abs"] == 1.0

    def repeated(w, x):
        pjax.constrain(x @ w + w[:1], sets.Equal(1.0))
        pjax.constrain(jnp.abs(w) + w, sets.Equal(1.0))

    graph = pjax.project(repeated, schedule="parallel", copies=False).trace(
        jnp.ones((3, 3)), jnp.ones((5, 3))
    )
    assert any(v.repeats in graph.parameters for v in graph.variables)  # An identity of w.
    resolved = pjax.Metric(parameters=26.0, per="parameter").resolve(graph)
    # Five rows read it and its first row again, abs and the sum read it once: 26 / 3 in the mean.
    found = [resolved[v] for v in graph.variables if v.parameter or v.repeats]
    np.testing.assert_allclose(found, 3.0)


@pytest.mark.parametrize("schedule", ["parallel", "product"])
def test_copies_of_a_constraint_weigh_more(schedule):
    """The point between two others, as they weigh."""

    def between(x):
        pjax.constrain(x, sets.Equal(1.0))
        pjax.constrain(x, sets.Box(4.0, 5.0))

    for copies in (False, True):
        solver = pjax.AlternatingProjections()
        metric = pjax.Metric(parameters=3.0, constraints={"Box": 2.0})
        options = {"schedule": schedule, "copies": copies, "metric": metric, "steps": 1}
        x, info = pjax.project(between, solver=solver, **options)(jnp.zeros(2))
        np.testing.assert_allclose(x, (1 + 2 * 4) / 3, rtol=1e-6)
        np.testing.assert_allclose(info.gaps["Box"] ** 2, 2 * 3.0 * 2 * (4 - x[0]) ** 2, rtol=1e-5)


def test_what_a_metric_refuses():
    with pytest.raises(pjax.InputError, match="per must be 'copy' or 'parameter', not 'row'"):
        pjax.Metric(per="row")  # pyright: ignore
    with pytest.raises(pjax.InputError, match="the weight of max must be a positive number"):
        pjax.Metric(constraints={"max": 0.0})
    with pytest.raises(pjax.InputError, match="matches no constraint; there are: dot_general"):
        pjax.Metric(constraints={"relu": 2.0}).factors(GRAPH)
    for metric in (pjax.Metric(per="parameter"), pjax.Metric(constraints={"max": 2.0})):
        with pytest.raises(pjax.InputError, match="a Sweep goes by rows and by sizes itself"):
            pjax.project(network, metric=metric)


def test_metrics_are_values():
    one, same = (pjax.Metric(parameters=2.0, paths={"a": 1.0, "b": 2.0}) for _ in range(2))
    assert one == same and hash(one) == hash(same)
    assert one != pjax.Metric(parameters=2.0, paths={"b": 2.0, "a": 1.0})  # the order counts
    assert one != pjax.Metric(parameters=2.0)
    assert pjax.Metric(per="parameter") != pjax.Metric() != pjax.Metric(constraints={"a": 2.0})
    assert one != 2.0


def two_layers(p, x, y):
    z = jax.nn.relu(x @ p["a"]) @ p["b"] + p["c"][None]
    return losses.squared_error(z, y)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 6), "b": (6, 2), "c": (2,)}
    start = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return start, jnp.asarray(rng.normal(size=(8, 4))), jnp.asarray(rng.normal(size=(8, 2)))


@pytest.mark.parametrize("granularity", ["row", "block"])
@pytest.mark.parametrize(
    "solver", [pjax.AlternatingProjections(), pjax.DouglasRachford(), pjax.DifferenceMap()]
)
def test_a_relative_metric_knows_no_units(problem, solver, granularity):
    start, x, y = problem
    train = pjax.project(
        two_layers,
        solver=solver,
        steps=5,
        granularity=granularity,
        metric=pjax.Metric(parameters=3.0, relative=True),
    )
    want, info = train(start, x, y)
    units = {"a": 64.0, "b": 1 / 64, "c": 1.0}  # powers of two: rounding is the same
    scaled = {name: unit * start[name] for name, unit in units.items()}
    got, again = train(scaled, x, y)
    for name, unit in units.items():
        np.testing.assert_allclose(got[name] / unit, want[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*(i.losses["squared_error"] for i in (again, info)), rtol=1e-5)


def test_a_relative_metric_is_that_of_mean_squares(problem):
    start, x, y = problem
    start["c"] = jnp.zeros(2)  # counts as large as the sum that it is in
    h = x @ start["a"]
    z = jax.nn.relu(h) @ start["b"]
    train = functools.partial(pjax.project, two_layers, steps=3, schedule="parallel")
    graph = train().trace(start, x, y)
    values = {"p['a']": start["a"], "p['b']": start["b"], "p['c']": z}
    sizes = {(8, 6): [h, jax.nn.relu(h)], (8, 2): [z, z]}  # in the order of the operations
    for v in graph.variables:
        if v.name not in values:
            values[v.name] = sizes[v.shape].pop(0)
    paths = {name: 1 / float(jnp.mean(jnp.square(v))) for name, v in values.items()}
    want, _ = train(metric=pjax.Metric(paths=paths))(start, x, y)
    got, _ = train(metric=pjax.Metric(relative=True))(start, x, y)
    for name in start:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_what_is_nothing_has_a_weight():
    def fit(w):
        pjax.constrain(w[0] * w[1], sets.Equal(1.0))

    relative = pjax.Metric(relative=True)
    for start in (jnp.zeros(2), jnp.array([1e-20, 1.0])):
        w, info = pjax.project(fit, schedule="parallel", metric=relative, steps=50)(start)
        assert np.all(np.isfinite(w)) and info.gap < 0.1


def test_sweeps_have_no_relative_metric():
    with pytest.raises(pjax.InputError, match="no relative"):
        pjax.project(network, solver=pjax.Sweep(), metric=pjax.Metric(relative=True))


@pytest.mark.parametrize("zero", ["a", "b", "ab"])
def test_layers_of_zeros_move_by_a_relative_metric(problem, zero):
    start, x, y = problem

    def fit(p, x, y):
        return losses.squared_error(jnp.tanh(x @ p["a"]) @ p["b"], y)

    start = {n: jnp.zeros_like(start[n]) if n in zero else start[n] for n in "ab"}
    train = pjax.project(
        fit, steps=20, metric=pjax.Metric(relative=True), solver=pjax.AlternatingProjections()
    )
    new, info = train(start, x, y)
    before = 0.5 * jnp.sum(jnp.square(jnp.tanh(x @ start["a"]) @ start["b"] - y)) / len(x)
    if zero != "ab":  # that is a saddle, in any metric
        assert fit(new, x, y) < 0.9 * before
        assert all(jnp.max(jnp.abs(new[n] - start[n])) > 1e-3 for n in "ab")
    weights = pjax.Metric(relative=True).at(
        graph := train.trace(start, x, y), {v: jnp.zeros(v.shape) for v in graph.variables}
    )
    assert all(w == 1 for w in weights.values())


def test_an_inserted_identity_weighs_what_its_variable_does():
    def fit(w):
        pjax.constrain(w + jnp.tanh(w), sets.Equal(1.0))

    graph = pjax.project(fit, schedule="parallel", copies=True).trace(jnp.zeros(3))
    values = {v: jnp.full(v.shape, 0.0 if v.parameter else 2.0) for v in graph.variables}
    weights = pjax.Metric(relative=True).at(graph, values)
    again = [v for v in graph.variables if v.repeats]
    assert again and all(weights[v] == weights[v.repeats] for v in again)
