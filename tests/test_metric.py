"""The metric: which variable gets which weight."""

import jax.numpy as jnp
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
GRAPH = pjax.project(network, schedule="parallel").trace(MODEL, jnp.ones((4, 2)), jnp.ones((4, 2)))
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


def test_metrics_are_values():
    one, same = (pjax.Metric(parameters=2.0, paths={"a": 1.0, "b": 2.0}) for _ in range(2))
    assert one == same and hash(one) == hash(same)
    assert one != pjax.Metric(parameters=2.0, paths={"b": 2.0, "a": 1.0})  # the order counts
    assert one != pjax.Metric(parameters=2.0)
    assert one != 2.0
