"""Pictures: text that Graphviz reads, and drawings in which nothing overlaps."""

import builtins
import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.graph import Constraint, Variable, View
from pjax_trace.picture import _Joint, _Layout, _spaced, plot, to_dot


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def mlp(model, x):
    return pjax.losses.cross_entropy(jax.vmap(model)(x), jnp.zeros(x.shape[0], jnp.int32))


def residual(params, x):
    for w, v in params:
        x = x + jax.nn.relu(x @ w) @ v
    pjax.constrain(x, pjax.sets.Equal(1.0))


def shared(w, x):
    h = x
    for _ in range(4):
        h = jax.nn.relu(h @ w + x)
    pjax.constrain(h, pjax.sets.Equal(1.0))


def feasibility(x):
    pjax.constrain(x, pjax.sets.NonNegative())
    pjax.constrain(jnp.sum(x), pjax.sets.Equal(1.0))
    pjax.constrain(x[:2], pjax.sets.Ball(1.0))


def fan(w, x):
    h = x @ w
    k = jax.nn.relu(h)
    for scale in (1.0, 2.0):
        pjax.constrain(scale * h + jax.nn.relu(k), pjax.sets.Equal(1.0))
        pjax.constrain(h + scale * k, pjax.sets.NonNegative())


def deep(params, x):
    for w, b in params:
        x = jax.nn.relu(x @ w + b)
    return pjax.losses.squared_error(x, jnp.zeros_like(x))


@pjax.custom_projection
def same(x):
    return x


@same.defprojection
def nearest(operands, out, weights):
    (x,), (wx,), wz = operands, weights.operands, weights.out
    mean = (wx * x + wz * out) / (wx + wz)
    return (mean,), mean


def custom(params):
    pjax.constrain(same(params['a "quoted" \\ name']), pjax.sets.Equal(1.0))


SQUARE = normal(0, 3, 3)
PROGRAMS = {
    "mlp": (mlp, (eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0)), normal(1, 5, 3))),
    "residual": (residual, ([(SQUARE, SQUARE)] * 4, normal(1, 4, 3))),
    "shared": (shared, (SQUARE, normal(1, 4, 3))),
    "feasibility": (feasibility, (normal(0, 5),)),
    "fan": (fan, (SQUARE, normal(1, 4, 3))),
    "deep": (deep, ([(SQUARE, normal(2, 1, 3))] * 16, normal(1, 4, 3))),
    "custom": (custom, ({'a "quoted" \\ name': normal(0, 3)},)),
}
GRAPHS = {
    name: pjax.project(fn, schedule="parallel").trace(*args)
    for name, (fn, args) in PROGRAMS.items()
}


def recurrent():
    """A graph with an edge back and a loop, as the carries of a scan make them."""
    graph = GRAPHS["mlp"]
    last = graph.constraints[4].out
    view = View((last,), (), last.value)
    new = {
        c: dataclasses.replace(c, operands=(*c.operands, view)) if i in (1, 4) else c
        for i, c in enumerate(graph.constraints)
    }
    colours = {new.get(node, node): side for node, side in graph.colours.items()}
    return dataclasses.replace(graph, constraints=tuple(new.values()), colours=colours)


GRAPHS["recurrent"] = recurrent()

NODE = re.compile(r'  (n\d+) \[label="((?:[^"\\]|\\.)*)", (.*)\];')
EDGE = re.compile(r'  (n\d+) -> (n\d+)(?: \[label="([^"]*)"\])?;')


@pytest.mark.parametrize("name", GRAPHS)
def test_dot(name):
    graph = GRAPHS[name]
    text = to_dot(graph)
    assert graph.to_dot() == text
    lines = text.splitlines()
    assert lines[0] == "digraph consensus {" and lines[-1] == "}" and text.endswith("}\n")
    found = [NODE.fullmatch(line) for line in lines if "label=" in line and "->" not in line]
    nodes = [*graph.parameters, *graph.constraints]
    labels = dict(zip(nodes, found, strict=True))
    fills = {}
    for node, match in labels.items():
        shape = node.shape if isinstance(node, Variable) else getattr(node.out, "shape", None)
        parts = match[2].split("\\n")
        if shape is not None:
            assert parts[-1] == f"[{','.join(map(str, shape))}]"
        if isinstance(node, Constraint):
            assert parts[:2] == [node.name, type(node.rule).__name__]
        assert ("shape=ellipse" in match[3]) == isinstance(node, Variable)
        output = isinstance(node, Constraint) and node.out is None
        assert ("peripheries=2" in match[3]) == output
        repeats = isinstance(node, Constraint) and node.out is not None and node.out.repeats
        assert ("dashed" in match[3]) == bool(repeats)
        fills.setdefault(graph.colours[node], set()).add(
            re.search('fillcolor="(.*?)"', match[3])[1]
        )
    assert len(fills[0] | fills[1]) == 2 and all(len(fill) == 1 for fill in fills.values())
    read = [EDGE.fullmatch(line).groups() for line in lines if "->" in line]
    expected = [
        (
            labels[graph.node(base)][1],
            labels[c][1],
            None if view.identity else f"[{','.join(map(str, view.shape))}]",
        )
        for c in graph.constraints
        for _, view in c.reads
        for base in view.bases
    ]
    assert read == expected


def test_dot_is_the_same_every_time():
    fn, args = PROGRAMS["fan"]
    assert to_dot(pjax.project(fn, schedule="parallel").trace(*args)) == to_dot(GRAPHS["fan"])


def test_dot_escapes():
    text = to_dot(GRAPHS["custom"])
    # A quote and a backslash of the name are escaped for Python once, and for Graphviz again.
    assert r"params['a \"quoted\" \\\\ name']\n[3]" in text


def boxes(layout):
    """Left, right, bottom and top of every node."""
    return {
        node: (x - w / 2, x + w / 2, y - h / 2, y + h / 2)
        for node, (x, y) in layout.centres.items()
        for w, h in [layout.sizes[node]]
    }


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("limit", [1e9, 700.0])
def test_nothing_overlaps(name, limit):
    graph = GRAPHS[name]
    layout = _Layout(graph, limit)
    places = boxes(layout)
    assert set(places) == {*graph.parameters, *graph.constraints}
    for a, (left, right, bottom, top) in places.items():
        assert left >= 0 and bottom >= 0 and right <= layout.width and top <= layout.height
        for b, (left2, right2, bottom2, top2) in places.items():
            if a is not b:
                assert right < left2 or right2 < left or top < bottom2 or top2 < bottom
    # Edges go from node to node, and those that pass a column pass beside its nodes.
    for edge, curves, arrival in zip(layout.edges, layout.curves, layout.arrivals, strict=True):
        left, right, bottom, top = places[edge.tail]
        assert np.isclose(curves[0][0][0], right) and bottom < curves[0][0][1] < top
        left, right, bottom, top = places[edge.head]
        assert np.allclose(curves[-1][-1], arrival)
        assert np.isclose(arrival[0], left) and bottom < arrival[1] < top
        assert all(len(points) % 3 == 1 for points in curves)
    for joint, (x, y) in layout._at.items():
        if isinstance(joint, _Joint):
            for left, right, bottom, top in places.values():
                assert not (left <= x <= right and bottom <= y <= top)


@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "recurrent"])
def test_readers_stand_to_the_right(name):
    layout = _Layout(GRAPHS[name], 1e9)
    places = boxes(layout)
    for edge in layout.edges:
        assert places[edge.tail][1] < places[edge.head][0]
    assert not layout.hints


def test_a_chain_runs_straight():
    """Constraints stand on one line, and their parameters below or above it."""
    layout = _Layout(GRAPHS["deep"], 1e9)
    heights = [y for node, (_, y) in layout.centres.items() if isinstance(node, Constraint)]
    assert max(heights) - min(heights) < layout.height / 2
    steps = np.abs(np.diff(heights))
    assert np.all(steps < 20)


def test_wide_pictures_go_on_below():
    layout = _Layout(GRAPHS["deep"], 700.0)
    assert layout.width <= 700
    rows = {round(y) for node, (_, y) in layout.centres.items() if isinstance(node, Constraint)}
    assert len(rows) > 4
    # What goes on in a row below is named there.
    assert layout.hints
    producers = {edge.tail.name for edge in layout.edges}
    assert {name for name, _ in layout.hints.values()} <= producers
    cut = [curves for curves in layout.curves if len(curves) > 1]
    assert len(cut) == len(layout.hints)


def test_spacing_is_a_projection():
    """The nearest ordered heights, against a solver of the same quadratic program."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        wanted, weights = rng.normal(size=size) * 3, rng.uniform(0.1, 4, size)
        steps = rng.uniform(0.1, 2, max(size - 1, 0))
        found = _spaced(wanted, weights, steps)
        assert np.all(np.diff(found) >= steps - 1e-9)
        # Optimal: no feasible point nearby is better.
        cost = np.sum(weights * (found - wanted) ** 2)
        for _ in range(200):
            other = found + rng.normal(size=size) * rng.choice([1e-3, 0.1, 1.0])
            if np.all(np.diff(other) >= steps):
                assert np.sum(weights * (other - wanted) ** 2) >= cost - 1e-9


@pytest.mark.parametrize(("name", "suffix"), [("fan", "png"), ("mlp", "svg"), ("recurrent", "pdf")])
def test_plot_writes_the_same_file_twice(tmp_path, name, suffix):
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    files = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for file in files:
        assert GRAPHS[name].plot(file, dpi=40) is None
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(starts[suffix]) and first == second


def test_plot_leaves_pyplot_alone(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    plot(GRAPHS["feasibility"], str(tmp_path / "graph.png"), dpi=30)
    assert not pyplot.get_fignums()


def test_plot_says_what_is_wrong(tmp_path, monkeypatch):
    for name in ("graph", "graph.docx"):
        with pytest.raises(pjax.InputError, match="must end in a format"):
            plot(GRAPHS["feasibility"], tmp_path / name)
    assert not list(tmp_path.iterdir())
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(pjax.InputError, match="needs matplotlib: install it"):
        plot(GRAPHS["feasibility"], tmp_path / "graph.png")
    to_dot(GRAPHS["feasibility"])
