"""Sets of what is computed, as sets of what it is computed from.

``constrain(f(x), C)`` says of x that it lies in ``{x : f(x) ∈ C}``. Where the nearest point of that
set is known, the two constraints ``z = f(x)`` and ``z ∈ C`` become one, and z is no variable:

* f is a multiple of an *isometry*, ``Lᵀ L = c I``: ``x + L⁻¹ (P_C(L x) − L x)``;
* C is an *interval* for every element, and each scalar equation of f has operands of its own: the
  nearest point of the graph of f whose output is the nearest point of C to ``f(x)``. (f is
  continuous, so that on the way from a point to any in the set, its output passes there.)
* f is affine with ``L Lᵀ = c I`` by equations with operands of their own, such as differences:
  ``x + Lᵀ (P_C(f(x)) − f(x)) / c``;
* f is *affine*, and C one point, ``x + A⁺ (c − f(x))``; or any set, if ``L Lᵀ = c I`` is known;
* f is affine, C an interval for every element, and sets are projected onto one after the other:
  those of the single equations, in turn.

Any other affine f whose equations share operands is one block, exactly, with z a variable.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace.affine import LIMIT, AffineGraph, Rows
from pjax_trace.custom import BatchedRule, CustomRule
from pjax_trace.graph import ConsensusGraph, Constraint, Membership
from pjax_trace.known_view import known_view
from pjax_trace.program import Program, Value
from pjax_trace.registry import is_affine, isometry_of
from pjax_trace.rule import Weights
from pjax_trace.set_rule import SetRule, Through
from pjax_trace.sets import Equal
from pjax_trace.view import View

__all__ = ["absorb_sets", "alone"]


def absorb_sets(graph: ConsensusGraph, *, cyclic: bool = False) -> ConsensusGraph:
    """The graph in which sets are sets of what their operand is computed from, where they can be.

    The value must have no other reader, and be read through a view that only renames elements, and
    scales and shifts them by what is known while tracing. With ``cyclic``, intervals of equations
    that share operands are sets of these, too, one after the other.
    """
    producers = {c.out: c for c in graph.constraints if c.out is not None}
    readers = {v: len(edges) for v, edges in graph.readers.items()}
    gone: set[Constraint] = set()
    kept: list[Constraint] = []
    for c in graph.constraints:
        while isinstance(c, Membership) and (
            found := _absorbed(c, producers, readers, graph.program, cyclic)
        ):
            c, producer = found  # noqa: PLW2901
            gone.add(producer)
        kept.append(c)
    constraints = tuple(_as_block(c) for c in kept if c not in gone)
    return dataclasses.replace(graph, constraints=constraints)


def _absorbed(
    c: Membership, producers: Any, readers: Any, program: Program, cyclic: bool
) -> tuple[Constraint, Constraint] | None:
    """The constraint with the producer of what it reads in it, and that producer."""
    rule = c.rule
    if not isinstance(rule, SetRule) or len(c.views) > 1:
        return None
    ((position, view),) = c.views.items()
    producer = producers.get(view.bases[0])
    if producer is None or readers[view.bases[0]] > 1:
        return None
    known = known_view(program, view)
    if known is None or not known.one_to_one:
        return None
    inner = producer.rule
    through = Through(inner, producer.params, known, len(producer.operands))
    isometry, bare = isometry_of(inner), rule.through is None and not rule.isometries
    if isometry is not None and known.uniform and (isometry.onto or rule.separable):
        rule = dataclasses.replace(rule, isometries=(*rule.isometries, through))
    elif bare and alone(producer) and _is_pinned(producer) and _fits(rule, producer, program):
        affine = is_affine(inner, producer.params, producer.variable)
        kind = "affine" if affine else "single"
        rule = dataclasses.replace(rule, through=through._replace(kind=kind))
    elif (
        bare
        and _has_matrix(producer)
        and (isinstance(rule.bare, Equal) or _has_even_rows(producer, program))
    ):
        rule = dataclasses.replace(rule, through=through._replace(kind="whole"))
    elif bare and cyclic and rule.bare.interval and _has_matrix(producer):
        rule = dataclasses.replace(rule, through=through._replace(kind="rows"))
    else:
        return None
    operands = c.operands[:position] + producer.operands + c.operands[position + 1 :]
    folded = (*producer.folded, producer.label, *c.folded)
    return dataclasses.replace(c, rule=rule, operands=operands, folded=folded), producer


def alone(c: Constraint) -> bool:
    """Whether its scalar equations share no operand elements, or it has one copy of all of them."""
    masses = c.rule.masses(c.params, tuple(1.0 if v else None for v in c.variable))
    return all(isinstance(masses[i], float) and masses[i] == 1.0 for i, _ in c.reads)


def _is_pinned(c: Constraint) -> bool:
    """Whether its rule finds the nearest point of any output; a user's own need not, for one."""
    jumps = c.rule.relaxed or c.rule.joint or c.rule.family == "discrete"
    return not jumps and not isinstance(c.rule, (CustomRule, BatchedRule))


def _fits(rule: SetRule, producer: Constraint, program: Program) -> bool:
    """Whether outputs may go to the nearest point of the set, and operands follow, one by one."""
    return rule.bare.interval or _has_even_rows(producer, program)


def _has_even_rows(c: Constraint, program: Program) -> bool:
    """Whether it is affine with ``L Lᵀ = c I``, and that is known while tracing."""
    if not is_affine(c.rule, c.params, c.variable) or not _small(c):
        return False
    known = program.known_of([o for o in c.operands if isinstance(o, Value)])
    if known is None:
        return False
    weights = Weights(tuple(1.0 if v else None for v in c.variable), None)
    with jax.ensure_compile_time_eval():
        operands = [
            jnp.zeros(o.shape, o.dtype) if isinstance(o, View) else jnp.asarray(known[o])
            for o in c.operands
        ]
        function = functools.partial(c.rule.apply, c.params)
        rows = np.asarray(Rows.of(function, operands, weights).rows, float)
    products = rows @ rows.T
    even = products.max(initial=0) * np.eye(len(rows))
    return bool(np.allclose(products, even, rtol=0, atol=1e-4 * products.max(initial=0)))


def _has_matrix(c: Constraint) -> bool:
    """Whether it is affine in all its variables together, with a matrix that is not too large."""
    return is_affine(c.rule, c.params, c.variable) and not alone(c) and _small(c)


def _small(c: Constraint) -> bool:
    inputs = sum(math.prod(view.shape) for _, view in c.reads)
    return c.out is not None and inputs * math.prod(c.out.shape) <= LIMIT


def _as_block(c: Constraint) -> Constraint:
    """The constraint, all equations of which are one where they share operands and are affine."""
    if c.out is None or not _has_matrix(c):
        return c
    return dataclasses.replace(c, rule=AffineGraph(c.rule))
