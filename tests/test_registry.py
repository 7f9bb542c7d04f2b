"""The table of rules: registering, overriding, refusing, and rule packs."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import registry, sets
from pjax_trace.registry import translate


def rule_for(primitive):
    """The rule that an equation of a primitive is given, or None."""
    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    outcome = translate(primitive, {}, [x], (True,))
    return None if outcome is None else outcome.rule


@pytest.fixture
def table(monkeypatch):
    """The table of rules without floor and real, put back after the test."""
    without = (jax.lax.floor_p, jax.lax.real_p)
    rules = {p: entry for p, entry in registry.entries().items() if p not in without}
    monkeypatch.setattr(registry, "_RULES", rules)


def mean_of(operands, out, weights):
    """Onto ``z = −x``, say: expm1's stand-in in these tests is its own inverse."""
    (x,), (wx,), wz = operands, weights.operands, weights.out
    moved = (wx * x - wz * out) / (wx + wz)
    return (moved,), -moved


def solve():
    train = pjax.project(
        lambda x: pjax.constrain(jnp.floor(x), sets.Equal(-3.0)),
        solver=pjax.AlternatingProjections(),
        steps=1,
        copies=False,
    )
    return train(jnp.zeros(2))


def test_a_rule_for_a_primitive(table):
    with pytest.raises(pjax.MissingRuleError, match="floor"):
        solve()
    rule = pjax.CustomRule(lambda x: -x, mean_of)
    assert pjax.register_rule(jax.lax.floor_p, rule) is rule
    assert rule_for(jax.lax.floor_p) is rule
    x, info = solve()
    np.testing.assert_allclose(x, [1.5, 1.5])  # half of the way
    assert "floor" in info.gaps


def test_overriding(table):
    first, second = (pjax.CustomRule(lambda x: -x, mean_of) for _ in range(2))
    pjax.register_rule(jax.lax.floor_p, first)
    with pytest.raises(
        pjax.InputError, match=r"floor has a rule already \(custom\).*override=True"
    ):
        pjax.register_rule(jax.lax.floor_p, second)
    assert rule_for(jax.lax.floor_p) is first
    assert pjax.register_rule(jax.lax.floor_p, second, override=True) is second
    assert rule_for(jax.lax.floor_p) is second
    with pytest.raises(pjax.InputError, match="tanh has a rule already"):
        pjax.register_rule(jax.lax.tanh_p, first)


def test_wrong_types(table):
    rule = pjax.CustomRule(lambda x: x, mean_of)
    for what in ("floor", jnp.floor, jax.lax.floor, None):
        with pytest.raises(
            pjax.InputError, match=r"the primitive itself \(such as jax.lax.sin_p\)"
        ):
            pjax.register_rule(what, rule)
    for what in (mean_of, pjax.CustomRule, None):
        with pytest.raises(pjax.InputError, match="must be a pjax_trace.Rule"):
            pjax.register_rule(jax.lax.floor_p, what)
    assert rule_for(jax.lax.floor_p) is None


def test_an_unregistered_primitive_has_no_rule():
    assert rule_for(jax.lax.linalg.hessenberg_p) is None


def test_parameters_of_a_primitive_reach_the_rule(table):
    def nearest(operands, out, weights, *, y):
        return operands, operands[0] ** y

    rule = pjax.CustomRule(lambda x, *, y: x**y, nearest)
    pjax.register_rule(jax.lax.integer_pow_p, rule, override=True)
    (x,), out = pjax.project_point(lambda x: x**3, (jnp.array(2.0),), 1.0)
    assert float(x) == 2.0 and float(out) == 8.0


def test_own_views(table):
    """A primitive that is affine needs no constraint: it is registered as a view."""
    view = pjax.ViewRule(scales=True)
    assert pjax.register_rule(jax.lax.real_p, view) is view
    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    outcome = translate(jax.lax.real_p, {}, [x], (True,))
    assert isinstance(outcome, pjax.Affine) and outcome.scales and not outcome.offset
    # Where what must be data is a variable, it is none.
    assert isinstance(translate(jax.lax.real_p, {}, [x, x], (True, True)), pjax.Refuse)


def test_own_refusals(table):
    pjax.register_rule(jax.lax.floor_p, pjax.Refusal("write jnp.ceil"))
    with pytest.raises(pjax.MissingRuleError, match="floor at .*: write jnp.ceil, reached from x"):
        solve()


def test_a_translation_decides_for_every_equation(table):
    """By what is known of it: rewritten where it is small, a constraint else."""
    rule = pjax.CustomRule(lambda x: -x, mean_of)

    def translation(params, operands, variable):
        (x,) = operands
        assert params == {} and variable == (True,)
        return pjax.Rewrite(lambda x: 2.0 * x) if x.shape[0] < 3 else pjax.Project(rule)

    pjax.register_rule(jax.lax.floor_p, pjax.Translation(translation, of=rule))
    assert registry.entries()[jax.lax.floor_p].translation.family == "custom"

    def fit(x):
        pjax.constrain(jnp.floor(x[:2]), sets.Equal(1.0))
        pjax.constrain(jnp.floor(x), sets.Equal(1.0))

    graph = pjax.project(fit, schedule="parallel", copies=False).trace(jnp.zeros(3))
    assert [c.name for c in graph.constraints] == ["Equal", "floor", "Equal_1"]
    (view,) = [o for _, o in graph.constraints[0].reads]
    assert [e.primitive.name for e in view.equations] == ["slice", "mul"]
    assert graph.constraints[1].rule is rule


def test_a_rule_that_takes_data_only_beside_the_first(table):
    class First(pjax.CustomRule):
        movable = 1

    pjax.register_rule(jax.lax.nextafter_p, First(lambda x, y: -x, mean_of), override=True)
    with pytest.raises(pjax.MissingRuleError, match="no rule for these operands"):
        pjax.project(
            lambda x: pjax.constrain(jnp.nextafter(x, x), sets.Equal(1.0)),
            schedule="parallel",
            copies=False,
        ).trace(jnp.zeros(2))
    graph = pjax.project(
        lambda x, y: pjax.constrain(jnp.nextafter(x, y), sets.Equal(1.0)),
        schedule="parallel",
        copies=False,
    ).trace(jnp.zeros(2), jnp.ones(2))
    assert [c.name for c in graph.constraints] == ["nextafter", "Equal"]


def test_the_library_is_a_rule_pack():
    entries = importlib.metadata.entry_points(group="pjax_trace.rules")
    assert "builtin" in entries.names
    module = entries["builtin"].load()
    assert module.__name__ == "pjax_trace.rules"


def test_other_packs_are_loaded(monkeypatch):
    """Of whoever joins the group, once, when the first rule is asked for."""
    loaded = []

    class Entry:
        def load(self):
            loaded.append(self)
            registry.register_rule(jax.lax.floor_p, pjax.CustomRule(jnp.floor, mean_of))

    asked = []

    def entry_points(*, group):
        asked.append(group)
        return [Entry()]

    monkeypatch.setattr(registry, "_RULES", {})
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert rule_for(jax.lax.floor_p) is not None
    assert rule_for(jax.lax.sin_p) is None
    assert asked == ["pjax_trace.rules"] and len(loaded) == 1
