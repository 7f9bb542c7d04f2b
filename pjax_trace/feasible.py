"""Sets on parameters in a sweep: after every move they hold."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.graph import ConsensusGraph, Membership
from pjax_trace.index import Index
from pjax_trace.problem import Problem
from pjax_trace.view import Variable

__all__ = ["onto_sets", "parameter_sets"]

_ROUNDS = 200
_NEAR = 1e-6  # of the size of what moves: a round that moves less is the last


def parameter_sets(graph: ConsensusGraph) -> tuple[Membership, ...]:
    """The sets that parameters alone are required to lie in."""
    return tuple(
        c
        for c in graph.constraints
        if isinstance(c, Membership) and all(v.parameter for v in c.reads[0][1].bases)
    )


def onto_sets(
    problem: Problem, parameters: Sequence[Array], *, convex: bool | None = None
) -> list[Array]:
    """Parameters projected onto their sets: the nearest point of one, or of several convex ones.

    Where several sets have parameters in common, they are projected onto in turns, by the algorithm
    of Boyle and Dykstra if they are convex, until a round moves nothing to speak of. Where a set
    reads parameters times coefficients that differ by element, each projection is the nearest point
    in the set's own coordinates, so that the point found for several sets need not be the nearest.

    Args:
        problem: whose sets they are.
        parameters: in the graph's order.
        convex: whether to project onto sets that are known to be convex, or onto the others alone.

    References:
        J. Boyle, R. Dykstra, A method for finding projections onto the intersection of convex sets
        in Hilbert spaces, Lecture Notes in Statistics 37 (1986).
    """
    values = dict(zip(problem.graph.parameters, parameters, strict=True))
    chosen = [c for c in parameter_sets(problem.graph) if convex is None or c.rule.convex == convex]
    for group in _groups(chosen):
        if len(group) == 1 and _once(group[0]):
            values.update(_onto(problem, group[0], values))
        else:
            values.update(_alternate(problem, group, values))
    return [values[p] for p in problem.graph.parameters]


def _groups(sets: Sequence[Membership]) -> list[list[Membership]]:
    """The sets by what parameters they have in common."""
    groups: list[list[Membership]] = []
    for c in sets:
        own = set(c.reads[0][1].bases)
        sharing = [g for g in groups if any(own & set(o.reads[0][1].bases) for o in g)]
        groups = [g for g in groups if g not in sharing]
        groups.append([o for g in sharing for o in g] + [c])
    return groups


def _once(c: Membership) -> bool:
    """Whether a set surely reads no element twice, so that one projection is all it takes."""
    view = c.reads[0][1]
    if view.identity:
        return True
    names = {base: Index.of(base.shape) for base in view.bases}
    index = view.index(names) if len(names) == 1 else None
    return index is not None and index.once


def _onto(
    problem: Problem, c: Membership, values: Mapping[Variable, Array]
) -> dict[Variable, Array]:
    """The projection onto one set, through its view."""
    projected = problem.project_alone(c, values)
    moment = projected.moments[0]
    assert moment is not None
    return problem.agreed({(c, 0): moment}, values)


def _alternate(
    problem: Problem, sets: Sequence[Membership], values: Mapping[Variable, Array]
) -> dict[Variable, Array]:
    """Rounds of projections onto several sets."""
    own = list(dict.fromkeys(base for c in sets for base in c.reads[0][1].bases))
    others = {v: x for v, x in values.items() if v not in own}
    corrected = all(c.rule.convex and _once(c) for c in sets)

    def one(state, c, correction):
        before = {v: state[v] + correction[v] for v in correction}
        after = {**state, **_onto(problem, c, {**others, **state, **before})}
        rest = {v: before[v] - after[v] for v in correction}
        return after, rest if corrected else correction

    def turn(carry):
        count, state, corrections, _ = carry
        start, kept = state, []
        for c, correction in zip(sets, corrections, strict=True):
            state, correction = one(state, c, correction)
            kept.append(correction)
        moved = [jnp.max(jnp.abs(state[v] - start[v]), initial=0) for v in own]
        size = [jnp.max(jnp.abs(state[v]), initial=0) for v in own]
        wide = jnp.result_type(float)
        far = functools.reduce(
            jnp.logical_or,
            (m.astype(wide) > _NEAR * s.astype(wide) for m, s in zip(moved, size, strict=True)),
        )
        return count + 1, state, kept, far

    start = {v: values[v] for v in own}
    corrections = [
        {base: jnp.zeros_like(values[base]) for base in dict.fromkeys(c.reads[0][1].bases)}
        for c in sets
    ]
    carry = jnp.zeros((), jnp.int32), start, corrections, jnp.ones((), bool)
    _, state, _, _ = jax.lax.while_loop(lambda c: (c[0] < _ROUNDS) & c[3], turn, carry)
    return state
