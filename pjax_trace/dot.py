"""Draws a graph of boxes: as text for Graphviz, and as a picture in a file."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from pjax_trace.errors import InputError

__all__ = ["Edge", "Node", "plot", "to_dot"]

Edge = tuple[int, int, str]  # from a node to another, by their numbers, and a label or nothing
# Light fills and dark borders of the two sides, and the colour of edges.
_FILLS, _BORDERS, _GREY = ("#cfe3f5", "#fbe0c3"), ("#1f5f99", "#b3610c"), "#8a8a8a"


class Node(NamedTuple):
    """A box of text; ``side`` is which of two colours it has, the rest how its border looks."""

    text: str
    side: int = 0
    rounded: bool = False
    double: bool = False
    dashed: bool = False


def to_dot(nodes: list[Node], edges: list[Edge]) -> str:
    """The graph in the language of Graphviz, whose strings are quoted as those of JSON."""
    font = 'fontname="monospace", fontsize='
    lines = ["digraph consensus {", "  rankdir=LR;", f"  node [{font}10, style=filled];"]
    lines.append(f'  edge [{font}8, color="{_GREY}"];')
    for i, (text, side, rounded, double, dashed) in enumerate(nodes):
        text, shape = json.dumps(text, ensure_ascii=False), "ellipse" if rounded else "box"
        style = f'label={text}, shape={shape}, fillcolor="{_FILLS[side]}", color="{_BORDERS[side]}"'
        style += ", peripheries=2" * double + ', style="filled,dashed"' * dashed
        lines.append(f"  n{i} [{style}];")
    for tail, head, label in edges:
        lines.append(f"  n{tail} -> n{head}" + f" [label={json.dumps(label)}]" * bool(label) + ";")
    return "\n".join([*lines, "}", ""])


def plot(nodes: list[Node], edges: list[Edge], path: Path, width: float, dpi: float) -> None:
    """Draw with Graphviz where it is installed, and otherwise with networkx and matplotlib."""
    kind = path.suffix[1:].lower()
    if kind not in ("pdf", "png", "svg"):
        raise InputError(f"plot: {path.name!r} must end in .pdf, .png or .svg")
    if not (width > 0 and 0 < dpi < math.inf):
        raise InputError(f"plot: width and dpi must be positive, not {width!r} and {dpi!r}")
    program = shutil.which("dot")
    if program is None:
        return _draw(nodes, edges, path, width, dpi)
    command = [program, f"-T{kind}", f"-Gsize={min(width, 9999)},9999"]
    command += [f"-Gdpi={dpi}"] * (kind == "png")  # it would make an SVG larger
    run = subprocess.run(command, input=to_dot(nodes, edges).encode(), capture_output=True)
    if run.returncode:
        raise InputError(f"plot: {program} failed: {run.stderr.decode(errors='replace').strip()}")
    path.write_bytes(run.stdout)


def _draw(nodes: list[Node], edges: list[Edge], path: Path, width: float, dpi: float) -> None:
    """Draw with matplotlib; lengths are in heights of letters."""
    try:
        import matplotlib
        import networkx
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plot needs Graphviz, with its program dot on the PATH, or networkx and matplotlib "
            "(pip install networkx matplotlib); to_dot() needs neither"
        ) from error
    layers, graph = _layers(networkx, len(nodes), edges)
    # The layout keeps proportions and not lengths: stretch it to a pitch for every layer and row.
    placed = networkx.multipartite_layout(graph, subset_key=dict(enumerate(layers)))
    at = np.array(list(placed.values()))
    steps = np.array([len(layers), max(map(len, layers))])
    at = (at - at.min(axis=0)) * (max(steps) - 1) / (np.ptp(at, axis=0).max() or 1) + 0.5
    texts = [node.text.split("\n") for node in nodes]
    # Letters are 0.602 wide in the font that comes with matplotlib.
    half = [0.301 * max(map(len, text)) + 0.7 for text in texts]
    gap = 6 + 0.5 * max((len(label) for _, _, label in edges), default=0)
    pitch = np.array([2 * max(half) + gap, 1.2 * max(map(len, texts)) + 2.6])
    place = dict(zip(placed, at * pitch, strict=True))
    size = steps * pitch
    em = min(8.0, 72 * width / size[0])
    figure = Figure(figsize=tuple(size * em / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")
    font: Any = {"family": "DejaVu Sans Mono", "ha": "center", "va": "center", "parse_math": False}
    for tail, head, label in graph.edges(data="label", default=""):
        (x, y), (z, w) = place[tail], place[head]
        a, b = x + max(half) + 0.6, z - max(half) - 1.8  # between the columns
        end, marker = (z - half[head] - 0.4, ">") if isinstance(head, int) else (z, "")
        style: Any = {"color": _GREY, "lw": em / 8, "marker": marker, "markersize": em / 2}
        axes.plot([x, a, b, end], [y, y, w, w], markevery=[3], **style)
        box: Any = {"fc": "white", "ec": "white", "pad": 0.1 * em}
        axes.text((a + b) / 2, (y + w) / 2, label, size=0.8 * em, bbox=box, **font)
    for i, (text, side, rounded, double, dashed) in enumerate(nodes):
        box = {"fc": _FILLS[side], "ec": _BORDERS[side], "lw": em / 8}
        box["ls"] = "--" if dashed else "-"
        for pad in (0.8, 0.5) if double else (0.6,):
            box["boxstyle"] = f"round,pad={pad},rounding_size={1.2 if rounded else 0.1}"
            axes.text(*place[i], s=text, size=em, bbox=box, zorder=4, **font)
    # No date and no random names: the same graph gives the same file.
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    dpi = min(dpi, 65000 / max(figure.get_size_inches()))  # matplotlib has a limit of 2^16 pixels
    with matplotlib.rc_context({"svg.hashsalt": "pjax-trace"}):
        figure.savefig(path, dpi=dpi, metadata=date)


def _layers(networkx: Any, count: int, edges: list[Edge]) -> tuple[list[list[Any]], Any]:
    """What stands in each layer, from left to right, and the graph of it.

    A node stands just before its first reader. An edge from further away passes a point in every
    layer between, which is a pair of its tail and the layer.
    """
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((head, tail) for tail, head, _ in edges if tail < head)
    layers = [list(nodes) for nodes in networkx.topological_generations(graph)][::-1]
    layer = {node: i for i, nodes in enumerate(layers) for node in nodes}
    graph.clear_edges()
    for tail, head, label in edges:
        path = [tail, *((tail, i) for i in range(layer[tail] + 1, layer[head])), head]
        networkx.add_path(graph, path)
        if label:
            graph.edges[path[-2], head]["label"] = label
    for point in [*graph][count:]:
        layers[point[1]].append(point)
    # Each goes to the mean height of what it is joined to, so that few edges cross.
    height = dict.fromkeys(graph, 0.0)
    beside = {p: [*networkx.all_neighbors(graph, p)] or [p] for p in graph}
    for sweep in range(24):
        for points in layers[:: (-1) ** sweep]:
            points.sort(key=lambda p: fmean(height[q] for q in beside[p]))
            height.update((p, k - len(points) / 2) for k, p in enumerate(points))
    return layers, graph
