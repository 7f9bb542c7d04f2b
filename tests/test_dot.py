"""Pictures: text that Graphviz reads, and drawings in which nothing overlaps."""

import dataclasses
import itertools
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import pjax_trace as pjax
from pjax_trace import dot
from pjax_trace.graph import Constraint
from pjax_trace.view import Variable, View


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
    name: pjax.project(fn, schedule="parallel", copies=False).trace(*args)
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
    text = graph.to_dot()
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
    assert (
        pjax.project(fn, schedule="parallel", copies=False).trace(*args).to_dot()
        == GRAPHS["fan"].to_dot()
    )


def test_dot_escapes():
    text = GRAPHS["custom"].to_dot()
    # A quote and a backslash of the name are escaped for Python once, and for Graphviz again.
    assert r"params['a \"quoted\" \\\\ name']\n[3]" in text


def test_dot_names_rules_and_shortens_names():
    name = "a name of many, many letters"
    mapped = pjax.project(
        lambda params: pjax.constrain(jax.vmap(same)(params[name]), pjax.sets.Equal(1.0)),
        schedule="parallel",
    )
    text = mapped.trace({name: normal(0, 2, 3)}).to_dot()
    assert "\"params['a name …many letters']\\n[2,3]\"" in text
    assert "\\nvmap(CustomRule)\\n[2,3]" in text
    block = pjax.project(deep, schedule="parallel", granularity="block")
    text = block.trace([(SQUARE, normal(2, 1, 3))], normal(1, 4, 3)).to_dot()
    assert "\\nblock(SumRule)\\n[4,3]" in text


@pytest.fixture
def bin_dir(tmp_path, monkeypatch):
    """All that is on the PATH: nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def without_dot(bin_dir):
    assert shutil.which("dot") is None


FAKE = """#!{python}
import json, sys
record = {{"args": sys.argv[1:], "text": sys.stdin.buffer.read().decode()}}
with open({record!r}, "w") as file:
    json.dump(record, file)
sys.stdout.write("a picture")
sys.stderr.write("some words\\n")
sys.exit({code})
"""


def install_dot(folder, record, code=0):
    """A program that keeps what it is given."""
    program = folder / "dot"
    program.write_text(FAKE.format(python=sys.executable, record=str(record), code=code))
    program.chmod(0o755)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_graphviz_draws_where_it_is(tmp_path, bin_dir, monkeypatch, suffix):
    install_dot(bin_dir, tmp_path / "record")
    # Neither of the others is needed.
    monkeypatch.setitem(sys.modules, "networkx", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = tmp_path / f"graph.{suffix}"
    GRAPHS["custom"].plot(file, width=5, dpi=40)
    assert file.read_text() == "a picture"
    record = json.loads((tmp_path / "record").read_text())
    assert record["text"] == GRAPHS["custom"].to_dot()
    kind = suffix.lower()
    dpi = ["-Gdpi=40"] if kind == "png" else []
    assert record["args"] == [f"-T{kind}", "-Gsize=5,9999", *dpi]


def test_graphviz_may_fail(tmp_path, bin_dir):
    install_dot(bin_dir, tmp_path / "record", code=3)
    with pytest.raises(pjax.InputError, match="dot failed: some words"):
        GRAPHS["mlp"].plot(tmp_path / "graph.png")
    assert not (tmp_path / "graph.png").exists()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("name", GRAPHS)
def test_graphviz_reads_the_text(tmp_path, name):
    graph, files = GRAPHS[name], [tmp_path / f"{i}.svg" for i in range(2)]
    for file in files:
        graph.plot(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    elements = list(ElementTree.parse(files[0]).iter())
    found = {element.text for element in elements if element.tag.endswith("text")}
    assert {c.name for c in graph.constraints} <= found


@pytest.mark.parametrize(("name", "suffix"), [("fan", "png"), ("mlp", "svg"), ("recurrent", "pdf")])
def test_plot_writes_the_same_file_twice(tmp_path, without_dot, name, suffix):
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    files = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for file in files:
        assert GRAPHS[name].plot(file, dpi=40) is None
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(starts[suffix]) and first == second


@pytest.fixture
def figure_of(tmp_path, without_dot, monkeypatch):
    """Draws a graph, and returns matplotlib's figure."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))

    def draw(graph, **options):
        graph.plot(tmp_path / "graph.png", **options)
        figures[-1].set_dpi(600)  # where letters are about as wide as they should be
        figures[-1].draw_without_rendering()
        return figures[-1]

    return draw


def boxes(figure):
    """The texts of the nodes, in program order, with the outer borders of their boxes."""
    (axes,) = figure.axes
    found = {}
    for text in axes.texts:
        if "\n" in text.get_text():
            extent = text.get_bbox_patch().get_window_extent()
            found.setdefault((text.get_text(), text.get_position()), extent)
    return [(text, extent) for (text, _), extent in found.items()]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_overlaps(figure_of, name, scale):
    graph = GRAPHS[name]
    figure = figure_of(graph)
    width, height = figure.get_size_inches()
    figure = figure_of(graph, width=scale * width)
    assert np.allclose(figure.get_size_inches(), (scale * width, scale * height))
    found = boxes(figure)
    labels = [json.loads(f'"{m[1]}"') for m in re.finditer(r'label="(.*?)", shape', graph.to_dot())]
    assert [text for text, _ in found] == labels
    for _, box in found:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    for (_, a), (_, b) in itertools.combinations(found, 2):
        assert a.x1 < b.x0 or b.x1 < a.x0 or a.y1 < b.y0 or b.y1 < a.y0
    # Lines lie on no box but that in whose middle they start, and arrows end at one.
    (axes,) = figure.axes
    arrows = 0
    for line in axes.lines:
        points = line.get_transform().transform(line.get_xydata())
        pieces = [np.linspace(a, b, 50) for a, b in itertools.pairwise(points)]
        x, y = np.concatenate(pieces).T
        for _, box in found:
            middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            inside = (box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)
            # An edge back passes behind the boxes between.
            if not np.allclose(points[0], middle, atol=2) and name != "recurrent":
                assert not inside.any()
        if line.get_marker() == ">":
            arrows += 1
            gaps = [box.x0 - points[-1][0] for _, box in found if box.y0 < points[-1][1] < box.y1]
            assert any(0 <= gap < 40 for gap in gaps)
    reads = {(graph.node(b), c) for c in graph.constraints for _, v in c.reads for b in v.bases}
    assert arrows == len(reads)


@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "recurrent"])
def test_readers_stand_to_the_right(figure_of, name):
    graph = GRAPHS[name]
    places = dict(
        zip([*graph.parameters, *graph.constraints], boxes(figure_of(graph)), strict=True)
    )
    for c in graph.constraints:
        for _, view in c.reads:
            for base in view.bases:
                assert places[graph.node(base)][1].x1 < places[c][1].x0


def test_views_label_edges(figure_of):
    (axes,) = figure_of(GRAPHS["mlp"]).axes
    shown = [text.get_text() for text in axes.texts if text.get_text().startswith("[")]
    assert sorted(shown) == sorted(re.findall(r'-> n\d+ \[label="(.*)"\]', GRAPHS["mlp"].to_dot()))


def test_long_graphs(tmp_path, without_dot):
    """At some resolution they are wider than matplotlib can draw, and then it is less."""
    nodes = [dot.Node(f"node {i}\n[3]", i % 2) for i in range(100)]
    edges = [(i, i + 1, "") for i in range(99)] + [(0, 99, "[1,3]")]

    def drawn(width, dpi):
        dot.plot(nodes, edges, tmp_path / "graph.png", width=width, dpi=dpi)
        return int.from_bytes((tmp_path / "graph.png").read_bytes()[16:20], "big")

    assert 60_000 < drawn(float("inf"), 1000) < 2**16
    assert drawn(10, 100) == 1000


def test_a_single_node(tmp_path, without_dot):
    dot.plot([dot.Node("alone", double=True)], [], tmp_path / "graph.svg", width=10, dpi=100)
    ElementTree.parse(tmp_path / "graph.svg")


def test_plot_leaves_pyplot_alone(tmp_path, without_dot):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    GRAPHS["feasibility"].plot(str(tmp_path / "graph.png"), dpi=30)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("installed", [False, True])
def test_plot_says_what_is_wrong(tmp_path, bin_dir, installed):
    if installed:
        install_dot(bin_dir, tmp_path / "bin" / "record")
    graph = GRAPHS["feasibility"]
    for name in ("graph", "graph.docx"):
        with pytest.raises(pjax.InputError, match=r"must end in \.pdf, \.png or \.svg"):
            graph.plot(tmp_path / name)
    for options in ({"width": 0}, {"dpi": -1.0}, {"dpi": float("inf")}, {"width": float("nan")}):
        with pytest.raises(pjax.InputError, match="must be positive"):
            graph.plot(tmp_path / "graph.png", **options)
    assert list(tmp_path.iterdir()) == [bin_dir]


@pytest.mark.parametrize("missing", ["networkx", "matplotlib"])
def test_plot_says_what_to_install(tmp_path, without_dot, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    graph = GRAPHS["feasibility"]
    with pytest.raises(pjax.InputError, match="pip install networkx matplotlib") as error:
        graph.plot(tmp_path / "graph.png")
    assert "Graphviz" in str(error.value) and "to_dot()" in str(error.value)
    assert graph.to_dot()
