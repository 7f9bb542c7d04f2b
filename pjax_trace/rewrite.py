"""Passes from graph to graph."""

import dataclasses
from typing import Any

from pjax_trace.graph import ConsensusGraph, Constraint, View
from pjax_trace.registry import Layout

__all__ = ["absorb_producers"]


def absorb_producers(graph: ConsensusGraph) -> ConsensusGraph:
    """Let constraints do the work of producers that only they read, where their rules can.

    So ``x @ w + b`` becomes one constraint with a product and an addend. The value must have one
    reader, through a view that only renames its elements; and no variable may be read twice by the
    merged constraint, which would no longer have independent copies.
    """
    constraints = list(graph.constraints)
    changed = True
    while changed:
        changed = False
        graph = dataclasses.replace(graph, constraints=tuple(constraints))
        for c in graph.constraints:
            merged = _merge(graph, c)
            if merged is not None:
                new, producer = merged
                constraints[constraints.index(c)] = new
                constraints.remove(producer)
                changed = True
                break
    return _named_alike(graph)


def _named_alike(graph: ConsensusGraph) -> ConsensusGraph:
    """Outputs called after their constraints again, where merging has made them differ."""
    outputs = [(c.name, c.out) for c in graph.constraints if c.out is not None]
    renamed = {v: dataclasses.replace(v, name=n) for n, v in outputs if v.name != n}

    def follow(operand: Any) -> Any:
        for base in operand.bases if isinstance(operand, View) else ():
            if base in renamed:
                operand = operand.with_base(base, renamed[base])
        return operand

    constraints = tuple(
        dataclasses.replace(
            c, operands=tuple(map(follow, c.operands)), out=c.out and renamed.get(c.out, c.out)
        )
        for c in graph.constraints
    )
    views = tuple(map(follow, graph.outputs))
    return dataclasses.replace(graph, constraints=constraints, outputs=views)


def _merge(graph: ConsensusGraph, c: Constraint) -> tuple[Constraint, Constraint] | None:
    # Without output constraints, what the function returns is what it is for.
    results = () if any(c.out is None for c in graph.constraints) else graph.outputs
    returned = {base for view in results if view is not None for base in view.bases}
    for position, view in c.reads:
        producer = graph.producers.get(view.bases[0])
        if producer is None or not view.permutation or len(graph.readers[view.bases[0]]) > 1:
            continue
        if view.bases[0] in returned:
            continue
        others = {b for i, v in c.reads if i != position for b in v.bases}
        inner = {b for _, v in producer.reads for b in v.bases}
        if not others.isdisjoint(inner):
            continue
        # The permutation's equations need no data, so the view is a function of the base alone.
        layout = Layout(lambda x, v=view: v({}, x), view.bases[0].shape, view.shape)
        params = c.rule.absorb(c.params, position, (producer.rule, producer.params), layout)
        if params is not None:
            operands = c.operands[:position] + producer.operands + c.operands[position + 1 :]
            folded = (*producer.folded, *c.folded, c.label)
            merged = dataclasses.replace(
                c, name=producer.name, params=params, operands=operands, folded=folded
            )
            return merged, producer
    return None
