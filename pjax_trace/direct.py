"""Graphs that need no copies: two groups of constraints that have no elements in common.

Then each group is one set of points of the variables themselves, and solvers iterate on these, as
one would by hand.
"""

import collections
import dataclasses

import numpy as np
from jaxtyping import Bool

from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.known_view import known_view
from pjax_trace.preimage import alone
from pjax_trace.set_rule import SetRule
from pjax_trace.view import Variable

__all__ = ["without_copies"]

Footprint = dict[Variable, Bool[np.ndarray, "..."]]


def without_copies(graph: ConsensusGraph, *, cyclic: bool) -> ConsensusGraph | None:
    """The graph, to be solved without copies; None if it needs some.

    It needs none if it has no losses, every scalar equation has operands of its own, and views only
    choose and rename elements, all multiplied by numbers of one size. Two groups must be enough,
    but where constraints are projected onto one after the other.
    """
    if graph.losses or graph.problems or not graph.constraints:
        return None
    footprints = {}
    for c in graph.constraints:
        footprint = _footprint(graph, c)
        if footprint is None:
            return None
        footprints[c] = footprint
    colours = {c: 0 for c in graph.constraints} if cyclic else _two_groups(footprints)
    if not colours:
        return None
    return dataclasses.replace(graph, colours=colours, direct=True)


def _footprint(graph: ConsensusGraph, c: Constraint) -> Footprint | None:
    """The elements of variables that a constraint moves; None if some are read twice."""
    if not alone(c):
        return None
    rule = c.rule if isinstance(c.rule, SetRule) else None
    found: Footprint = {} if c.out is None else {c.out: np.ones(c.out.shape, bool)}
    for _, view in c.reads:
        known = known_view(graph.program, view)
        if known is None or max(n.max(initial=0) for n in known.counts) > 1:
            return None
        if not known.uniform and not (rule and rule.single):
            return None
        if not known.total and not (rule and rule.separable and rule.isometries):
            return None
        for base, own in zip(view.bases, known.counts, strict=True):
            if base in found and np.any(found[base] & (own > 0)):
                return None
            found[base] = found.get(base, False) | (own > 0)
    return found


def _two_groups(footprints: dict[Constraint, Footprint]) -> dict[Constraint, int]:
    """Colours such that constraints of one have no elements in common; empty if two do not do."""
    users: dict[Variable, list[Constraint]] = collections.defaultdict(list)
    for c, footprint in footprints.items():
        for variable in footprint:
            users[variable].append(c)

    def meets(c: Constraint) -> list[Constraint]:
        own = footprints[c]
        near = dict.fromkeys(other for v in own for other in users[v] if other is not c)
        return [
            other
            for other in near
            if any(np.any(own[v] & there) for v, there in footprints[other].items() if v in own)
        ]

    colours: dict[Constraint, int] = {}
    for start in footprints:
        if start in colours:
            continue
        colours[start], queue = 0, [start]
        for c in queue:
            for other in meets(c):
                if other not in colours:
                    colours[other] = 1 - colours[c]
                    queue.append(other)
                elif colours[other] == colours[c]:
                    return {}
    return colours
