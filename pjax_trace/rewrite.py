"""Folding: constraints that do the work of what only they read."""

import dataclasses
from typing import Any

from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.registry import fold_of
from pjax_trace.view import Variable, View

__all__ = ["absorb_producers"]


def absorb_producers(graph: ConsensusGraph) -> ConsensusGraph:
    """Let constraints do the work of producers that only they read, where their rules can.

    So ``x @ w + b`` becomes one constraint with a product and an addend. The value must have one
    reader, through a view that only renames its elements; and no variable may be read twice by the
    merged constraint, which would no longer have independent copies. Each constraint is looked at
    once, in program order, so that its producers have been folded already.
    """
    folding = _Folding(graph)
    for place in range(len(graph.constraints)):
        folding.fold(place)
    kept = tuple(c for c in folding.places if c is not None)
    return _named_alike(dataclasses.replace(graph, constraints=kept))


class _Folding:
    """The constraints by place, with what produces and how many read each variable."""

    def __init__(self, graph: ConsensusGraph):
        self.places: list[Constraint | None] = list(graph.constraints)
        self.place_of = {c.out: i for i, c in enumerate(graph.constraints) if c.out is not None}
        self.readers = {v: len(edges) for v, edges in graph.readers.items()}
        # Without output constraints, what the function returns is what it is for.
        results = () if any(c.out is None for c in graph.constraints) else graph.outputs
        self.returned = {base for view in results if view is not None for base in view.bases}

    def fold(self, place: int) -> None:
        """Fold all that can be folded into the constraint in a place."""
        while (c := self.places[place]) is not None and (merged := self._merge(c)) is not None:
            self.places[place], out = merged
            self.places[self.place_of.pop(out)] = None

    def _merge(self, c: Constraint) -> tuple[Constraint, Variable] | None:
        """The constraint with one producer folded in, and that producer's output."""
        fold = fold_of(c.rule)
        for position, view in c.reads if fold is not None else ():
            base = view.bases[0]
            if base not in self.place_of or self.readers[base] > 1 or base in self.returned:
                continue
            producer, layout = self.places[self.place_of[base]], view.layout
            if producer is None or layout is None or fold is None:
                continue
            others = {b for i, v in c.reads if i != position for b in v.bases}
            inner = {b for _, v in producer.reads for b in v.bases}
            if not others.isdisjoint(inner):
                continue
            params = fold(c.params, position, (producer.rule, producer.params), layout)
            if params is not None:
                operands = c.operands[:position] + producer.operands + c.operands[position + 1 :]
                folded = (*producer.folded, *c.folded, c.label)
                merged = dataclasses.replace(
                    c, name=producer.name, params=params, operands=operands, folded=folded
                )
                return merged, base
        return None


def _named_alike(graph: ConsensusGraph) -> ConsensusGraph:
    """Outputs called after their constraints again, where merging has made them differ."""
    outputs = [(c.name, c.out) for c in graph.constraints if c.out is not None]
    renamed = {v: dataclasses.replace(v, name=n) for n, v in outputs if v.name != n}

    def follow(operand: Any) -> Any:
        for base in operand.bases if isinstance(operand, View) else ():
            if base in renamed:
                operand = operand.through(base, View.of(renamed[base]))
        return operand

    constraints = tuple(
        dataclasses.replace(
            c, operands=tuple(map(follow, c.operands)), out=c.out and renamed.get(c.out, c.out)
        )
        for c in graph.constraints
    )
    views = tuple(map(follow, graph.outputs))
    return dataclasses.replace(graph, constraints=constraints, outputs=views)
