"""Pictures of a consensus graph: text for Graphviz, and a drawing with matplotlib.

The drawing is layered: every constraint stands to the right of what it reads, and every parameter
just to the left of its first reader. Layers are ordered so that few edges cross, and then every
node is moved towards its neighbours' height as far as the spacing allows, which is a projection
onto ordered heights.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pjax_trace.errors import InputError
from pjax_trace.explain import rule_name
from pjax_trace.graph import ConsensusGraph, Constraint, Variable

__all__ = ["plot", "to_dot"]

Node = Constraint | Variable

# Light fills and dark borders, of the colour that is projected first and of the other.
_FILLS = ("#cfe3f5", "#fbe0c3")
_BORDERS = ("#1f5f99", "#b3610c")
_INK, _GREY = "#222222", "#8a8a8a"

# Sizes in points.
_FONT = 8.0
_FAMILY = "DejaVu Sans Mono"  # comes with matplotlib; every letter is as wide as any other
_LETTER = 0.602 * _FONT
_SMALL_LETTER = 0.7 * _LETTER
_LINE = 1.3 * _FONT
_PADDING = 5.0
_ROW_GAP, _COLUMN_GAP, _MARGIN = 12.0, 40.0, 16.0
_ARROW = 10.0
_HINT = 70.0  # for the names of what comes from the row above
_JOINT = 2.0


@dataclasses.dataclass(frozen=True)
class Edge:
    """What joins a variable with a constraint that reads it, and the shape that a view gives it."""

    tail: Node
    head: Constraint
    label: str


def edges(graph: ConsensusGraph) -> list[Edge]:
    """All edges, in program order."""
    return [
        Edge(graph.node(base), c, "" if view.identity else _dims(view.shape))
        for c in graph.constraints
        for _, view in c.reads
        for base in view.bases
    ]


def to_dot(graph: ConsensusGraph) -> str:
    r"""The graph in the language of Graphviz; the same graph gives the same text.

    Parameters are ellipses and constraints are boxes, in the two colours of the graph. Output
    constraints have a double border, inserted identities a dashed one. An edge is labelled with
    the shape that views in front of the constraint give to what it reads.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> from pjax_trace.picture import to_dot
        >>> def problem(x):
        ...     pjax.constrain(jnp.sum(x), pjax.sets.Equal(1.0))
        >>> graph = pjax.project(problem).trace(jnp.ones(3))
        >>> print("\n".join(to_dot(graph).splitlines()[-3:]))
          n0 -> n1;
          n1 -> n2;
        }
    """
    nodes = [*graph.parameters, *graph.constraints]
    numbers = {node: f"n{i}" for i, node in enumerate(nodes)}
    lines = [
        "digraph consensus {",
        "  rankdir=LR;",
        '  node [fontname="monospace", fontsize=10, style=filled];',
        '  edge [fontname="monospace", fontsize=8, color="#8a8a8a"];',
    ]
    for node in nodes:
        side = graph.colours.get(node, 0)
        attributes = {
            "label": _quoted("\n".join(_label(node))),
            "shape": "ellipse" if isinstance(node, Variable) else "box",
            "fillcolor": _quoted(_FILLS[side]),
            "color": _quoted(_BORDERS[side]),
        }
        if _is_output(node):
            attributes["peripheries"] = "2"
        if _is_identity(node):
            attributes["style"] = _quoted("filled,dashed")
        text = ", ".join(f"{key}={value}" for key, value in attributes.items())
        lines.append(f"  {numbers[node]} [{text}];")
    for edge in edges(graph):
        label = f" [label={_quoted(edge.label)}]" if edge.label else ""
        lines.append(f"  {numbers[edge.tail]} -> {numbers[edge.head]}{label};")
    return "\n".join([*lines, "}"]) + "\n"


def plot(
    graph: ConsensusGraph, path: str | os.PathLike[str], *, width: float = 16, dpi: float = 150
) -> None:
    """Draw the graph into a file; needs matplotlib, but not Graphviz.

    From left to right, each constraint stands behind what it reads. Blue nodes are projected first,
    orange ones second. Rounded boxes are parameters; output constraints have a double border,
    inserted identities a dashed one. A graph that is too wide goes on in a row below, where the
    edges that come from above say which node they come from.

    Args:
        graph: the graph.
        path: where to write; the suffix says the format (png, pdf, svg).
        width: of the picture in inches, at most (unless a single column is wider).
        dpi: pixels per inch, of png.

    Raises:
        InputError: if matplotlib is not installed, or does not know the suffix.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plot needs matplotlib: install it (pip install matplotlib), or use to_dot(), whose "
            "text Graphviz draws"
        ) from error
    path = Path(path)
    layout = _Layout(graph, 72 * width)
    figure = Figure(figsize=(layout.width / 72, layout.height / 72), dpi=dpi)
    suffix = path.suffix[1:].lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise InputError(
            f"plot: {path.name!r} must end in a format that matplotlib writes, such as .png, "
            ".pdf or .svg"
        )
    _draw(figure, graph, layout)
    # No date and no random names: the same graph gives the same file.
    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
    with matplotlib.rc_context({"svg.hashsalt": "pjax-trace"}):
        figure.savefig(path, dpi=dpi, metadata=date)


class _Joint(NamedTuple):
    """Where a long edge passes a column."""

    edge: int
    column: int


class _Layout:
    """Where nodes and edges go, in points, from the lower left corner.

    Attributes:
        edges: of the graph.
        centres: of the nodes.
        sizes: width and height of the nodes.
        curves: for every edge, the curves that it consists of; more than one in a picture of
            several rows. Each is a list of points, the control points of Bézier curves.
        arrivals: for every edge, where its arrow ends.
        hints: where an edge goes on from another row: what it comes from, and on which side.
        legend: what the picture has kinds of, and must explain.
        width: of the whole picture.
        height: of the whole picture.
    """

    def __init__(self, graph: ConsensusGraph, limit: float):
        nodes: list[Node] = [*graph.parameters, *graph.constraints]
        self.edges = edges(graph)
        self.sizes = {node: _box(_label(node)) for node in nodes}
        styles = [_style(graph, node) for node in nodes]
        kinds = {(s.rounded, s.double, s.dashed) for s in styles}
        self.legend = [
            (text, s)
            for text, s in _LEGEND
            if s.fill != "white" or (s.rounded, s.double, s.dashed) in kinds
        ]
        columns = _columns(nodes, self.edges)
        layers: list[list[Any]] = [[] for _ in range(1 + max(columns.values(), default=0))]
        for node in nodes:
            layers[columns[node]].append(node)
        # A long edge has a joint in every column that it passes, which takes part in the layout;
        # an edge back passes the columns of its own ends, too.
        self._chains: list[list[Any]] = []
        for i, edge in enumerate(self.edges):
            start, stop = columns[edge.tail], columns[edge.head]
            passed = range(start + 1, stop) if start < stop else range(start, stop - 1, -1)
            joints = [_Joint(i, column) for column in passed]
            for joint in joints:
                layers[joint.column].append(joint)
            self._chains.append([edge.tail, *joints, edge.head])
        _order(layers, _Neighbours(self._chains, columns, {}))
        self._ports = self._spread(layers)
        heights = {v: self.sizes[v][1] if v in self.sizes else _JOINT for x in layers for v in x}
        y = _heights(layers, _Neighbours(self._chains, columns, self._ports), heights)
        self._place(layers, y, heights, limit)
        self.centres = {node: self._at[node] for node in nodes}
        self.curves: list[list[list[Point]]] = []
        self.arrivals: list[Point] = []
        self.hints: dict[Point, tuple[str, str]] = {}
        for i, chain in enumerate(self._chains):
            self._route(i, chain, columns[chain[0]] < columns[chain[-1]])

    def _spread(self, layers: Sequence[Sequence[Any]]) -> dict[int, float]:
        """How far from the middle of its reader an edge arrives: apart, in the order of origin."""
        order = {v: k for layer in layers for k, v in enumerate(layer)}
        column = {v: i for i, layer in enumerate(layers) for v in layer}
        arriving: dict[Node, list[int]] = {}
        for i, chain in enumerate(self._chains):
            arriving.setdefault(chain[-1], []).append(i)

        def rank(i: int) -> float:
            before, node = self._chains[i][-2:]
            if column[before] < column[node]:
                return order[before]
            # An edge back comes round from above or from below.
            return math.copysign(math.inf, order[before] - order[node])

        ports = {}
        for node, ends in arriving.items():
            ends.sort(key=rank)
            for k, i in enumerate(ends):
                ports[i] = ((k + 1) / (len(ends) + 1) - 0.5) * self.sizes[node][1]
        return ports

    def _place(
        self,
        layers: Sequence[Sequence[Any]],
        y: Mapping[Any, float],
        heights: Mapping[Any, float],
        limit: float,
    ) -> None:
        """Columns side by side, in as many rows as the width asks for, above the legend."""
        self._column = {v: i for i, layer in enumerate(layers) for v in layer}
        labels = [0.0] * len(layers)
        for edge, chain in zip(self.edges, self._chains, strict=True):
            column = self._column[chain[-1]]
            labels[column] = max(labels[column], len(edge.label) * _SMALL_LETTER)
        self._labels = labels
        self._widths = [
            max((self.sizes[v][0] for v in layer if v in self.sizes), default=0) for layer in layers
        ]
        # Rows of about the same length, and no more of them than it takes.
        rows = len(self._breaks(limit))
        tries = (self._breaks(limit * percent / 100) for percent in range(50, 101, 5))
        first = next(breaks for breaks in tries if len(breaks) <= rows)
        self._row = [sum(i >= f for f in first) for i in range(len(layers))]
        left, right = [], 0.0
        for i, width in enumerate(self._widths):
            if i in first:
                left.append(_MARGIN + _HINT + labels[i])
            else:
                left.append(right + _COLUMN_GAP + labels[i] if i else _MARGIN)
            right = left[-1] + width
        ends = [x + width for x, width in zip(left, self._widths, strict=True)]
        self._middles = [x + width / 2 for x, width in zip(left, self._widths, strict=True)]
        # A row ends where its edges turn to the next.
        self._right = max(ends, default=0.0) + (_COLUMN_GAP / 2 if first else 0)
        self.width = max(self._right, _MARGIN + _legend_width(self.legend)) + _MARGIN
        self._at: dict[Any, Point] = {}
        bottom = 2 * _MARGIN + 2 * _LINE
        for r in range(len(first), -1, -1):
            own = [i for i in range(len(layers)) if self._row[i] == r]
            points = [v for i in own for v in layers[i]]
            low = min((y[v] - heights[v] / 2 for v in points), default=0.0)
            for i in own:
                self._at.update({v: (self._middles[i], y[v] - low + bottom) for v in layers[i]})
            tops = [self._at[v][1] + heights[v] / 2 for v in points]
            bottom = max(tops, default=bottom) + 2.5 * _ROW_GAP
        self.height = bottom - 2.5 * _ROW_GAP + _MARGIN

    def _breaks(self, limit: float) -> list[int]:
        """The columns that start a new row: where the last would get too long, or a bit before.

        Of the places in the last third of a row, the one that the fewest edges pass.
        """
        passing = [0] * (len(self._widths) + 1)
        for chain in self._chains:
            ends = sorted((self._column[chain[0]], self._column[chain[-1]]))
            for i in range(ends[0] + 1, ends[1] + 1):
                passing[i] += 1
        first: list[int] = []
        start, x = 0, _MARGIN - _COLUMN_GAP - self._labels[0]
        lengths: dict[int, float] = {}
        i = 0
        while i < len(self._widths):
            lengths[i] = x
            x += _COLUMN_GAP + self._labels[i] + self._widths[i]
            if i > start and x + _MARGIN + _COLUMN_GAP / 2 > limit:
                places = [j for j in range(start + 1, i + 1) if lengths[j] > limit * 2 / 3] or [i]
                start = min(places, key=lambda j: (passing[j], -j))
                first.append(start)
                i, x = start, _MARGIN + _HINT - _COLUMN_GAP
            else:
                i += 1
        return first

    def _route(self, number: int, chain: Sequence[Any], forward: bool) -> None:
        """The curves of an edge."""
        tail, head = chain[0], chain[-1]
        (x, y), (hx, hy) = self._at[tail], self._at[head]
        x, hx = x + self.sizes[tail][0] / 2, hx - self.sizes[head][0] / 2
        hy += self._ports[number]
        self.arrivals.append((hx, hy))
        curves: list[list[Point]] = [[(x, y)]]
        row = self._row[self._column[tail]]
        for k, v in enumerate(chain[1:], 1):
            column = self._column[v]
            half = self._widths[column] / 2
            if v is head and k == len(chain) - 1:
                # The last bit is straight, for the label; it starts at the column's edge.
                entry = self._middles[column] - half - self._labels[column] - _ARROW
                target, leave = (entry, hy), (hx, hy)
            else:
                near, far = (-half, half) if forward else (half, -half)
                target = (self._middles[column] + near, self._at[v][1])
                leave = (self._middles[column] + far, self._at[v][1])
            last = curves[-1][-1]
            if self._row[column] != row:
                row = self._row[column]
                side = (self._right, _MARGIN) if forward else (_MARGIN, self._right)
                curves[-1] += _line(last, (side[0], last[1]))
                start = (side[1], target[1])
                curves.append([start, *_line(start, target)])
                self.hints[start] = _label(tail)[0], "left" if forward else "right"
            elif forward:
                middle = (last[0] + target[0]) / 2
                curves[-1] += [(middle, last[1]), (middle, target[1]), target]
            elif k == 1 or k == len(chain) - 1:
                out = _COLUMN_GAP / 2 if k == 1 else -_COLUMN_GAP / 2
                curves[-1] += [(last[0] + out, last[1]), (target[0] + out, target[1]), target]
            else:
                curves[-1] += _line(last, target)
            curves[-1] += _line(target, leave)
        self.curves.append(curves)


Point = tuple[float, float]


def _line(a: Point, b: Point) -> list[Point]:
    """A straight line as a Bézier curve, without its start."""
    thirds = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for t in (1 / 3, 2 / 3)]
    return [*thirds, b]


def _columns(nodes: Sequence[Node], links: Sequence[Edge]) -> dict[Node, int]:
    """The longest path to every constraint; a parameter goes just before its first reader.

    Edges against the program order, as in a recurrence, do not count.
    """
    order = {node: i for i, node in enumerate(nodes)}
    columns: dict[Node, int] = {}
    reads: dict[Node, list[Node]] = {}
    readers: dict[Node, list[Node]] = {}
    for edge in links:
        reads.setdefault(edge.head, []).append(edge.tail)
        readers.setdefault(edge.tail, []).append(edge.head)
    for node in nodes:
        before = [columns[v] for v in reads.get(node, ()) if order[v] < order[node]]
        columns[node] = 1 + max(before, default=-1)
    for node in nodes:
        if isinstance(node, Variable) and node in readers:
            columns[node] = min(columns[reader] for reader in readers[node]) - 1
    return columns


class _Neighbours:
    """What every point is joined to in the columns to its left and right.

    Args:
        chains: the points of every edge.
        columns: of the nodes.
        ports: how far from the middle of its reader every edge arrives.
    """

    def __init__(
        self,
        chains: Sequence[Sequence[Any]],
        columns: Mapping[Node, int],
        ports: Mapping[int, float],
    ):
        self.left: dict[Any, list[Any]] = {}
        self.pulls: dict[Any, list[tuple[Any, float, float]]] = {}
        for i, chain in enumerate(chains):
            for k, (a, b) in enumerate(zip(chain, chain[1:], strict=False)):
                shift = ports.get(i, 0.0) if k == len(chain) - 2 else 0.0
                self.pulls.setdefault(a, []).append((b, self._weight(a, b), shift))
                self.pulls.setdefault(b, []).append((a, self._weight(b, a), -shift))
                ends = [v.column if isinstance(v, _Joint) else columns[v] for v in (a, b)]
                if ends[0] != ends[1]:
                    first, second = (a, b) if ends[0] < ends[1] else (b, a)
                    self.left.setdefault(second, []).append(first)
        self.right: dict[Any, list[Any]] = {}
        for second, firsts in self.left.items():
            for first in firsts:
                self.right.setdefault(first, []).append(second)

    def _weight(self, point: Any, by: Any) -> float:
        """How hard one point is pulled by another: long edges and chains should run straight."""
        if isinstance(point, Variable) or isinstance(by, Variable):
            return 0.02  # parameters follow their readers, and make room for others
        return (4.0, 2.0, 8.0)[isinstance(point, _Joint) + isinstance(by, _Joint)]


def _order(layers: list[list[Any]], neighbours: _Neighbours) -> None:
    """Order every layer by the mean position of its neighbours, to and fro; keep the best."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers, neighbours)
    for sweep in range(12):
        forward = sweep % 2 == 0
        side = neighbours.left if forward else neighbours.right
        numbers = range(1, len(layers)) if forward else range(len(layers) - 2, -1, -1)
        for i in numbers:
            other = _positions(layers[i - 1] if forward else layers[i + 1])
            means = _positions(layers[i])
            for v in layers[i]:
                places = [other[u] for u in side.get(v, ())]
                means[v] = sum(places) / len(places) if places else means[v]
            layers[i].sort(key=means.__getitem__)
        crossings = _crossings(layers, neighbours)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best


def _positions(layer: Sequence[Any]) -> dict[Any, float]:
    return {v: k / max(len(layer) - 1, 1) for k, v in enumerate(layer)}


def _crossings(layers: Sequence[Sequence[Any]], neighbours: _Neighbours) -> int:
    """How many pairs of edges between neighbouring layers cross."""
    total = 0
    for before, layer in zip(layers, layers[1:], strict=False):
        position = {v: k for k, v in enumerate(before)}
        ends = [(position[u], k) for k, v in enumerate(layer) for u in neighbours.left.get(v, ())]
        a, b = np.array(ends, int).reshape(-1, 2).T
        total += int(np.sum((a[:, None] < a) & (b[:, None] > b)))
    return total


def _heights(
    layers: Sequence[Sequence[Any]], neighbours: _Neighbours, heights: Mapping[Any, float]
) -> dict[Any, float]:
    """The heights of all points: near their neighbours', in order, and far enough apart."""
    y: dict[Any, float] = {}
    for layer in layers:
        gaps = np.cumsum([heights[v] + _ROW_GAP for v in layer])
        y.update({v: float(g - gaps[-1] / 2) for v, g in zip(layer, gaps, strict=True)})
    for sweep in range(60):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            pulls = [neighbours.pulls.get(v, [(v, 1.0, 0.0)]) for v in layer]
            weights = np.array([sum(w for _, w, _ in pull) for pull in pulls])
            sums = np.array([sum(w * (y[u] + shift) for u, w, shift in pull) for pull in pulls])
            half = np.array([heights[v] / 2 for v in layer])
            steps = half[1:] + half[:-1] + _ROW_GAP
            placed = _spaced(sums / weights, weights, steps)
            y.update(zip(layer, map(float, placed), strict=True))
    return y


def _spaced(wanted: np.ndarray, weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The nearest heights that are at least ``steps`` apart, by pooling adjacent violators."""
    if not len(wanted):
        return wanted
    base = np.concatenate([[0.0], np.cumsum(steps)])
    pools: list[list[float]] = []  # mean, weight, length
    for target, weight in zip(wanted - base, weights, strict=True):
        pools.append([float(target), float(weight), 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, mass, length = pools.pop()
            first = pools[-1]
            total = first[1] + mass
            pools[-1] = [(first[0] * first[1] + mean * mass) / total, total, first[2] + length]
    return np.repeat([p[0] for p in pools], [int(p[2]) for p in pools]) + base


def _draw(figure: Any, graph: ConsensusGraph, layout: _Layout) -> None:
    """Edges below, nodes above, and a legend in the lower left corner."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, layout.width), ylim=(0, layout.height))
    axes.axis("off")
    small = {"fontsize": 0.7 * _FONT, "family": _FAMILY, "va": "center", "zorder": 2}
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for edge, curves, (x, y) in zip(layout.edges, layout.curves, layout.arrivals, strict=True):
        for i, points in enumerate(curves):
            codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(points) - 1)
            arrow = "-|>,head_length=3,head_width=1.6" if i == len(curves) - 1 else "-"
            axes.add_patch(
                FancyArrowPatch(
                    path=Curve(points, codes),
                    arrowstyle=arrow,
                    color=_GREY,
                    linewidth=0.9,
                    shrinkA=0,
                    shrinkB=0,
                    zorder=1,
                )
            )
        if edge.label:
            axes.text(x - 0.6 * _ARROW, y, edge.label, ha="right", color=_INK, bbox=white, **small)
    for (x, y), (name, side) in layout.hints.items():
        name = _shortened(name, int(_HINT / _SMALL_LETTER))
        axes.text(x, y, name, ha=side, color=_GREY, bbox=white, **small)
    for node, centre in layout.centres.items():
        _draw_node(axes, _label(node), centre, layout.sizes[node], _style(graph, node))
    x, y = _MARGIN, _MARGIN + _LINE
    for text, style in layout.legend:
        size = _box([text])
        _draw_node(axes, [text], (x + size[0] / 2, y), size, style)
        x += size[0] + _ROW_GAP


@dataclasses.dataclass(frozen=True)
class _Style:
    fill: str
    border: str
    rounded: bool = False
    double: bool = False
    dashed: bool = False


_LEGEND = (
    ("projected first", _Style(_FILLS[0], _BORDERS[0])),
    ("projected second", _Style(_FILLS[1], _BORDERS[1])),
    ("parameter", _Style("white", _GREY, rounded=True)),
    ("constraint", _Style("white", _GREY)),
    ("output constraint", _Style("white", _GREY, double=True)),
    ("inserted identity", _Style("white", _GREY, dashed=True)),
)


def _legend_width(legend: Iterable[tuple[str, _Style]]) -> float:
    return sum(_box([text])[0] + _ROW_GAP for text, _ in legend) - _ROW_GAP


def _style(graph: ConsensusGraph, node: Node) -> _Style:
    side = graph.colours.get(node, 0)
    return _Style(
        _FILLS[side],
        _BORDERS[side],
        rounded=isinstance(node, Variable),
        double=_is_output(node),
        dashed=_is_identity(node),
    )


def _draw_node(axes: Any, lines: Sequence[str], centre: Any, size: Any, style: _Style) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = centre, size
    radius = min(height / 2, 10.0) if style.rounded else 1.5

    def box(inset: float, fill: str) -> FancyBboxPatch:
        return FancyBboxPatch(
            (x - width / 2 + inset, y - height / 2 + inset),
            width - 2 * inset,
            height - 2 * inset,
            boxstyle=f"round,pad=0,rounding_size={max(radius - inset, 0.5)}",
            facecolor=fill,
            edgecolor=style.border,
            linewidth=1.0,
            linestyle=(0, (3, 2)) if style.dashed else "-",
            zorder=3,
        )

    axes.add_patch(box(0.0, style.fill))
    if style.double:
        axes.add_patch(box(2.2, "none"))
    for i, line in enumerate(lines):
        axes.text(
            x,
            y + ((len(lines) - 1) / 2 - i) * _LINE,
            line,
            fontsize=_FONT,
            family=_FAMILY,
            weight="bold" if i == 0 and len(lines) > 1 else "normal",
            color=_INK,
            ha="center",
            va="center_baseline",
            zorder=4,
            parse_math=False,
        )


def _box(lines: Sequence[str]) -> tuple[float, float]:
    """Width and height of a box around lines of text."""
    letters = max(map(len, lines))
    return letters * _LETTER + 2 * _PADDING + 4, len(lines) * _LINE + 2 * _PADDING


def _label(node: Node) -> list[str]:
    """Name, rule and shape of a node."""
    if isinstance(node, Variable):
        return [_shortened(node.name), _dims(node.shape)]
    shape = [] if node.out is None else [_dims(node.out.shape)]
    return [_shortened(node.name), rule_name(node.rule), *shape]


def _shortened(name: str, longest: int = 30) -> str:
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[: longest - 1 - half]}…{name[-half:]}"


def _is_output(node: Node) -> bool:
    return isinstance(node, Constraint) and node.out is None


def _is_identity(node: Node) -> bool:
    return isinstance(node, Constraint) and node.out is not None and node.out.repeats is not None


def _dims(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _quoted(text: str) -> str:
    r"""A string of Graphviz, in which ``\`` and ``"`` need escaping, and a line ends in ``\n``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
