"""What ``explain`` says: every number against the lowering, and never an error about rules."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.copies import Copies
from pjax_trace.explain import explanation
from pjax_trace.explanation import MANY
from pjax_trace.text import WIDTH, number, size_in_bytes
from tests.problems import problem_of

mystery_p = _compat.new_primitive(
    "mystery",
    implementation=lambda x: [jnp.sin(x)],
    batch=lambda operands, axes, params: (operands, params),
)


def mystery(x):
    return mystery_p.bind(x)[0]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def explained(fn, params, *data, copies=False):
    """The explanation of ``fn(params, *data)``."""
    moving, fixed = eqx.partition(params, eqx.is_inexact_array)
    leaves, tree = jax.tree_util.tree_flatten_with_path(moving)
    names = ["params" + jax.tree_util.keystr(path) for path, _ in leaves]

    def function(parameters, arrays):
        return fn(eqx.combine(jax.tree.unflatten(tree, parameters), fixed), *arrays)

    names += [f"data{i}" for i in range(len(data))]
    values = [leaf for _, leaf in leaves]
    return explanation(function, values, data, names=names, name=fn.__name__, copies=copies)


def mlp(model, x):
    return pjax.losses.cross_entropy(jax.vmap(model)(x), jnp.zeros(x.shape[0], jnp.int32))


def residual(params, x):
    for w, v in params:
        x = x + jax.nn.relu(x @ w) @ v
    pjax.constrain(x, pjax.sets.Equal(1.0))


def tied(w, x):
    pjax.constrain(jax.nn.relu(x @ w) @ w.T, pjax.sets.Equal(1.0))


def feasibility(x):
    pjax.constrain(x, pjax.sets.NonNegative())
    pjax.constrain(jnp.sum(x), pjax.sets.Equal(1.0))
    pjax.constrain(x[:2], pjax.sets.Ball(1.0))


def skip(x):
    pjax.constrain(jax.nn.relu(x) + x, pjax.sets.Equal(1.0))


@pjax.custom_projection
def same(x):
    return x


@same.defprojection
def nearest(operands, out, weights):
    (x,), (wx,), wz = operands, weights.operands, weights.out
    mean = (wx * x + wz * out) / (wx + wz)
    return (mean,), mean


def custom(x):
    pjax.constrain(same(x), pjax.sets.Equal(1.0))


PROGRAMS = {
    "mlp": (mlp, (eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0)), normal(1, 5, 3))),
    "residual": (residual, ([(normal(0, 3, 3), normal(1, 3, 3))] * 2, normal(1, 4, 3))),
    "tied": (tied, (normal(0, 3, 3), normal(1, 4, 3))),
    "feasibility": (feasibility, (normal(0, 5),)),
    "skip": (skip, (normal(0, 3),)),
    "custom": (custom, (normal(0, 3),)),
}


@functools.cache
def example(name, copies=False):
    fn, args = PROGRAMS[name]
    return explained(fn, *args, copies=copies)


@pytest.mark.parametrize("name", PROGRAMS)
def test_sizes_are_those_of_the_lowering(name):
    fn, args = PROGRAMS[name]
    problem = problem_of(fn, *args)
    graph, values = problem.graph, problem.values
    copies = Copies(problem).expand(values)
    e = example(name)
    assert e.copies == sum(x.size for x in copies)
    assert e.copy_bytes == sum(x.size * x.dtype.itemsize for x in copies)
    assert e.bytes == sum(x.size * x.dtype.itemsize for x in values)
    assert len(e.parameters) == len(graph.parameters)
    # The only argument is called x there.
    names = [c.name.replace("x'", "params'") for c in graph.constraints]
    assert [row.name for row in e.rows] == names
    for row, c in zip(e.rows, graph.constraints, strict=True):
        assert row.colour == "AB"[graph.colours[c]]
        assert (row.family, row.scope) == (c.rule.family, c.scope)
        assert row.source == c.source or row.repeats
        assert (row.granularity, row.exactness) == (c.rule.granularity, c.rule.exactness)
        assert row.flops is not None
    assert e.flops == sum(row.flops for row in e.rows)
    assert not e.problems


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_text_fits_and_names_everything(name):
    e = example(name)
    text = str(e)
    assert repr(e) == text
    lines = text.splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert lines[0].startswith(f"{PROGRAMS[name][0].__name__}: {len(e.parameters)} parameter")
    for row in e.rows:
        (line,) = [s for s in lines if s.split()[:3] == [row.colour, row.name, row.rule]]
        assert "test_explain.py:" in line or row.repeats
    for part in ("variables ", "copies ", "memory ", "flops ", "exactness", "granularity"):
        assert part in text


def test_a_dense_layer():
    def fit(params, x, y):
        h = jnp.tanh(x) @ params["w"] + params["b"]
        return pjax.losses.squared_error(h, y)

    params = {"w": normal(0, 3, 2), "b": normal(1, 1, 2)}
    e = explained(fit, params, normal(2, 8, 3), normal(3, 8, 2))
    dense, loss = e.rows
    assert (dense.name, dense.family, dense.out) == ("dot_general", "sum", "float32[8,2]")
    assert set(dense.operands) == {"data[8,3]", "params['w'][3,2]", "params['b'][1,2] → [8,2]"}
    assert dense.copies == 8 * 2 * 3 + 8 * 2
    assert dense.bytes == 8 * 2 * 4
    (folded,) = dense.folded
    assert folded.startswith("add at ")
    assert (loss.family, loss.out, loss.bytes) == ("loss", "", 0)
    assert "dot_general[8,2]" in loss.operands and "data data1[8,2]" in loss.operands
    assert {dense.colour, loss.colour} == {"A", "B"} and loss.colour == "A"
    assert "folded in: add at test_explain.py:" in str(e)
    # The forward pass multiplies and adds; a step does so several times.
    assert 2 * 8 * 2 * 3 <= e.forward_flops < e.flops


def test_shared_parameters_and_identities():
    e = example("tied")
    reading = [row.name for row in e.rows if any("params[3,3]" in text for text in row.operands)]
    assert len(reading) == 2
    e = example("skip")
    (identity,) = [row for row in e.rows if row.repeats]
    assert (identity.name, identity.repeats) == ("params'", "params")
    assert "identities  inserted for two colours: params' of params" in str(e)


def test_views_are_counted():
    e = example("feasibility")
    assert dict(e.views) == {"slice": 1}
    (ball,) = [row for row in e.rows if row.name == "Ball"]
    assert ball.operands[0] == "params[5] → [2]"
    assert "views       1: slice" in str(e)


def test_frozen_and_unread():
    def fit(params, x):
        stopped = jax.lax.stop_gradient(x @ params["w"])
        pjax.constrain(x @ params["v"] + stopped, pjax.sets.Equal(1.0))

    params = {"w": normal(0, 3, 2), "v": normal(1, 3, 2), "unused": normal(2, 4)}
    e = explained(fit, params, normal(2, 8, 3))
    assert len(e.frozen) == 1 and e.frozen[0].startswith("stop_gradient at test_explain.py:")
    assert set(e.unread) == {"params['w']", "params['unused']"}
    assert "parameters that never move: " in str(e)


def test_custom_projections():
    row = example("custom").rows[0]
    assert (row.name, row.rule, row.family) == ("same", "CustomRule", "custom")

    @pjax.custom_projection
    def wrong(x):
        return x

    wrong.defprojection(lambda operands, out, weights: (operands, out[:1]))
    e = explained(lambda x: pjax.constrain(wrong(x), pjax.sets.Equal(1.0)), normal(0, 3))
    assert len(e.rows) == 2 and e.rows[0].flops is None
    (problem,) = e.problems
    assert problem.startswith("The projection onto wrong at ") and "InputError" in problem
    mapped = explained(
        lambda x: pjax.constrain(jax.vmap(same)(x), pjax.sets.Equal(1.0)), normal(0, 3, 2)
    )
    assert mapped.rows[0].rule == "vmap(CustomRule)"


def test_what_is_missing_is_shown():
    def fit(params, x):
        h = mystery(x @ params["w"])
        pjax.constrain(jnp.sqrt(jnp.exp(h @ params["v"])), pjax.sets.Equal(1.0))
        return pjax.losses.squared_error(mystery(h), x) + jnp.mean(mystery(h) ** 2)

    params = {"w": normal(0, 3, 3), "v": normal(1, 3, 3)}
    e = explained(fit, params, normal(2, 8, 3))
    text = " ".join(str(e).split())
    assert text.count("mystery at ") == 2
    assert "no rule, reached from dot_general (" in text
    assert "test_explain.py:" in text and "pjax_trace.register_rule" in text
    # The rest is there, without what has no rule.
    assert e.parameters == ("params['v']", "params['w']")
    assert {"dot_general", "dot_general_1", "Equal", "squared_error"} <= {r.name for r in e.rows}
    assert "mystery" not in {row.name for row in e.rows}
    with pytest.raises(pjax.MissingRuleError):
        pjax.project(fit, schedule="parallel", copies=False).trace(params, normal(2, 8, 3))


def test_no_output_constraint():
    e = explained(lambda w, x: (jax.nn.relu(x @ w), x), normal(0, 3, 2), normal(1, 4, 3))
    assert "has_aux=True What the outputs alone compile to" in " ".join(str(e).split())
    assert str(explained(lambda x: 0.0, normal(0, 3))).endswith("There are no constraints.")
    assert [row.name for row in e.rows] == ["dot_general", "max"]


def test_what_cannot_be_traced_is_text_but_a_mistake_is_raised():
    def branch(x):
        return pjax.losses.squared_error(x if x[0] > 0 else -x, x)

    e = explained(branch, normal(0, 3))
    assert not e.rows and "a Python loop or branch depends on" in str(e)
    assert all(len(line) <= WIDTH for line in str(e).splitlines())

    def mistake(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        explained(mistake, normal(0, 3))


def test_loops_of_known_length_are_multiplied_out():
    def forward(length):
        def fit(params, x):
            def step(h, _):
                return jnp.cos(h @ x), None

            fixed, _ = jax.lax.scan(step, x, None, length=length)
            pjax.constrain(params @ fixed, pjax.sets.Equal(1.0))

        return explained(fit, normal(0, 4, 4), normal(1, 4, 4)).forward_flops

    assert np.isclose(forward(21) - forward(11), 10 * (2 * 4**3 + 4**2), rtol=0.2)


def test_conjugate_gradients_are_multiplied_out():
    def fit(parameters, data):
        return pjax.losses.squared_error(data[0] @ parameters[0], data[1])

    arrays = [normal(0, 5, 4)], [normal(1, 8, 5), normal(2, 8, 4)]
    flops = {
        n: explanation(fit, *arrays, names="wxy", granularity=pjax.Block(n)).rows[0].flops
        for n in (2, 12)
    }
    products = 2 * 2 * 8 * 5 * 4  # with the data and with its transpose; vectors are small
    assert np.isclose((flops[12] - flops[2]) / 10, products + 15 * 8 * 4, rtol=0.2)


@pytest.mark.parametrize(
    "answer", [None, [], [{"flops": 7.0}], {"flops": -1.0}, NotImplementedError("no")]
)
def test_backends_that_do_not_count(monkeypatch, answer):
    def cost_analysis(self):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", cost_analysis)
    e = explained(custom, normal(0, 3))
    counted = {None: None, 7.0: 14.0, -1.0: 0.0}
    value = answer[0] if isinstance(answer, list) and answer else answer
    expected = counted[value["flops"] if isinstance(value, dict) else None]
    assert e.flops == expected
    assert ("– per step" in str(e)) == (expected is None)


def test_copies_cost_more():
    without, private = example("mlp"), example("mlp", copies=True)
    assert without.copies == private.copies
    assert private.flops > without.flops
    assert "without copies, as here" in str(without) and "with copies, as here" in str(private)


def test_big_networks_show_alike_constraints_once():
    def deep(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
        pjax.constrain(x, pjax.sets.Equal(1.0))

    e = explained(deep, [normal(i, 3, 3) for i in range(MANY)], normal(0, 4, 3))
    assert len(e.rows) == 2 * MANY + 1
    text = str(e)
    assert len(text.splitlines()) < 40 and f"max ×{MANY}" in text
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_long_names_lose_their_middle():
    name = "a_name_that_is_much_too_long_for_one_column_of_the_table_" * 2

    def fit(params, x):
        with jax.named_scope(name):
            pjax.constrain(renamed(x @ params[name]), pjax.sets.Equal(1.0))

    @pjax.custom_projection
    def renamed(x):
        return x

    renamed.defprojection(nearest)
    renamed.__name__ = name
    e = explained(fit, {name: normal(0, 3, 3)}, normal(1, 4, 3))
    (row,) = [row for row in e.rows if row.name == name]
    table = [line for line in str(e).splitlines() if " CustomRule " in line]
    assert len(table) == 2 and all(len(line) <= WIDTH for line in table)
    assert name[:9] in table[0] and "…" in table[0] and row.scope == name


def test_shapes_are_enough(monkeypatch):
    fn, (model, x) = PROGRAMS["mlp"]
    shapes = jax.eval_shape(lambda: x)
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)  # nothing is compiled
    assert str(explained(fn, model, shapes)) == str(example("mlp"))


def test_the_method_prints(capsys):
    fn, args = PROGRAMS["mlp"]
    answer = pjax.project(fn, schedule="parallel").explain(*args)
    text = capsys.readouterr().out
    assert answer is None
    assert text.startswith("mlp: 6 parameters, 5 hidden variables, 6 constraints\n")
    assert "model.layers[0].bias[4] → [5,4]" in text and "without copies, as here" in text
    pjax.project(fn, solver=pjax.DouglasRachford()).explain(*args)
    assert "with what is kept here" in capsys.readouterr().out
    pjax.project(fn, solver=pjax.DouglasRachford(), copies=True).explain(*args)
    assert "with copies, as here" in capsys.readouterr().out


def test_numbers_have_three_digits():
    numbers = {0: "0", 999: "999", 1000: "1.0 k", 99_940: "99.9 k", 99_960: "100 k", 2e18: "2000 P"}
    for n, text in numbers.items():
        assert number(n) == text
    assert number(None) == "–"
    assert size_in_bytes(12) == "12 B" and size_in_bytes(1200) == "1.2 kB"


def recurrent(params, x):
    def step(h, x):
        h = jnp.tanh(h @ params["w"] + x[None] @ params["u"])
        return h, h

    _, hs = jax.lax.scan(step, jnp.zeros((1, 4)), x)
    return pjax.losses.squared_error(hs[:, 0] @ params["v"], jnp.zeros((len(x), 2)))


RECURRENT = {"u": normal(0, 3, 4), "v": normal(1, 4, 2), "w": normal(2, 4, 4)}


def test_a_sweep_has_neither_copies_nor_colours(capsys):
    fn, args = PROGRAMS["mlp"]
    pjax.project(fn).explain(*args)
    swept = capsys.readouterr().out
    pjax.project(fn, schedule="parallel").explain(*args)
    projected = capsys.readouterr().out
    assert swept.splitlines()[0] == projected.splitlines()[0]
    assert "copies" in projected and "in bytes" in projected and "per step" in projected
    assert "copies" not in swept and "in bytes" not in swept and "memory" not in swept
    assert re.search(r"\nflops +[\d.]+ k per sweep, [\d.]+ times the [\d.]+ of a forward", swept)
    assert all(len(line) <= WIDTH for line in swept.splitlines())
    graph = pjax.project(fn).trace(*args)
    table = swept.split("\n\n")[1].splitlines()
    named = [line.split()[0] for line in table[1:] if not line.startswith("    ")]
    assert named == [c.name for c in graph.constraints]


def test_a_scan_of_a_sweep_is_one_operation(capsys):
    flops = {}
    for length in (11, 21):
        parameters, data = jax.tree.leaves(RECURRENT), [normal(3, length, 3)]
        e = explanation(
            lambda p, d: recurrent(dict(zip("uvw", p, strict=True)), *d),
            parameters,
            data,
            names="uvwx",
            schedule="sweep",
        )
        assert [row.name for row in e.rows] == ["scan", "scan_1", "dot_general", "squared_error"]
        assert {row.rule for row in e.rows[:2]} == {"LoopRule"}
        assert all(row.colour == "" and row.copies == row.copy_bytes == 0 for row in e.rows)
        flops[length] = np.array([e.forward_flops, e.rows[0].flops])
        assert e.rows[1].flops == 0  # the scan is counted once
    forward, back = (flops[21] - flops[11]) / 10
    products = 2 * 4 * 4 + 2 * 3 * 4
    assert products + 2 * 4 * 2 <= forward <= 2 * products
    assert products <= back <= 3 * products
    # As a whole, a sweep is a forward pass at least, and all the ways back.
    pjax.project(recurrent).explain(RECURRENT, normal(3, 21, 3))
    text = capsys.readouterr().out
    (whole, unit), (times,) = (
        re.search(pattern, text).groups()
        for pattern in (r"\nflops +([\d.]+) (k?)", r"per sweep, ([\d.]+) times")
    )
    assert unit == "k" and 1000 * float(whole) > flops[21].sum()
    np.testing.assert_allclose(1000 * float(whole) / float(times), flops[21][0], rtol=0.05)
