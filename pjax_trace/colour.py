"""Two colours for a consensus graph, so that every edge joins both."""

import collections
import dataclasses
import itertools
from typing import Any

from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.program import Value
from pjax_trace.rule import Identity
from pjax_trace.view import Variable, View

__all__ = ["colour"]

_IDENTITY = Identity()


def colour(graph: ConsensusGraph) -> ConsensusGraph:
    """Give every node one of two colours so that every edge joins two, inserting identities.

    Colours spread from the output constraints (colour 0, projected first), breadth-first in program
    order; then nodes change sides as long as fewer variables clash. Where an edge would join equal
    colours, the variable gets one identity constraint, before its views, and the readers of that
    colour read its output instead.
    """
    nodes = [*graph.parameters, *graph.constraints]
    order = {node: i for i, node in enumerate(nodes)}
    colours = _spread(graph, order)
    _improve(graph, colours)
    numbers = itertools.count(1 + max((v.value.index for v in graph.variables), default=0))
    before: dict[Any, list[Constraint]] = {}
    replaced: dict[Constraint, Constraint] = {}
    for variable in graph.variables:
        own = colours[graph.node(variable)]
        clashing = [edge for edge in graph.readers[variable] if colours[edge[0]] == own]
        if not clashing:
            continue
        copy = _identity_of(graph, variable, next(numbers))
        assert copy.out is not None
        colours[copy] = 1 - own
        for reader, position in clashing:
            current = replaced.get(reader, reader)
            operands = list(current.operands)
            view = operands[position]
            assert isinstance(view, View)
            operands[position] = view.through(variable, View.of(copy.out))
            replaced[reader] = dataclasses.replace(current, operands=tuple(operands))
        first = min((reader for reader, _ in clashing), key=order.__getitem__)
        before.setdefault(first, []).append(copy)
    constraints = (x for c in graph.constraints for x in (*before.get(c, ()), replaced.get(c, c)))
    swapped = {replaced.get(node, node): side for node, side in colours.items()}
    return dataclasses.replace(graph, constraints=tuple(constraints), colours=swapped)


def _spread(graph: ConsensusGraph, order: dict[Any, int]) -> dict[Any, int]:
    """Colours by distance from the outputs."""
    neighbours: dict[Any, list[Any]] = {node: [] for node in order}
    for variable, edges in graph.readers.items():
        for reader, _ in edges:
            neighbours[graph.node(variable)].append(reader)
            neighbours[reader].append(graph.node(variable))
    colours: dict[Any, int] = {}
    for start in [c for c in graph.constraints if c.out is None] + list(order):
        if start in colours:
            continue
        colours[start] = 0
        queue = collections.deque([start])
        while queue:
            node = queue.popleft()
            for other in sorted(neighbours[node], key=order.__getitem__):
                if other not in colours:
                    colours[other] = 1 - colours[node]
                    queue.append(other)
    return colours


def _identity_of(graph: ConsensusGraph, variable: Variable, number: int) -> Constraint:
    name = f"{variable.name}'"
    value = Value(number, variable.shape, variable.dtype, True)
    producer = graph.producers.get(variable)
    source = f"parameter {variable.name}" if producer is None else producer.source
    out = Variable(name, value, False, variable)
    return Constraint(name, _IDENTITY, {}, (View.of(variable),), out, source)


def _improve(graph: ConsensusGraph, colours: dict[Any, int]) -> None:
    """Flip nodes, all but output constraints, while that leaves fewer variables to be repeated."""

    def clashes(variable: Variable) -> bool:
        own = colours[graph.node(variable)]
        return any(colours[reader] == own for reader, _ in graph.readers[variable])

    touched: dict[Any, list[Variable]] = {p: [p] for p in graph.parameters}
    for c in graph.constraints:
        read = (base for _, view in c.reads for base in view.bases)
        touched[c] = list(dict.fromkeys((*read, *([c.out] if c.out is not None else []))))
    flipped = True
    while flipped:
        flipped = False
        for node, variables in touched.items():
            if isinstance(node, Constraint) and node.out is None:
                continue
            before = sum(map(clashes, variables))
            colours[node] = 1 - colours[node]
            if sum(map(clashes, variables)) < before:
                flipped = True
            else:
                colours[node] = 1 - colours[node]
