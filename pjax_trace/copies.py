"""Points in which every scalar equation has copies of its own of what it reads.

A point is one array per edge, spread so that no two equations share an element; or, where only data
tell the copies apart, one array and a number per equation (`pjax_trace.rule.Along`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.problem import Edge, Problem, Values, added
from pjax_trace.rule import Along, Slanted, Slants
from pjax_trace.space import Space
from pjax_trace.view import Variable, View

__all__ = ["Copies", "copies_along", "expand_copies"]


class Copies(Space):
    """One array per edge, spread over its scalar equations. Any group of nodes will do.

    In the product space, constraints have copies of what they produce, too. None of them is shared,
    and where there is no group, all copies of a variable come to agree. Unless all copies are to be
    ``explicit``, those that only data tell apart are `Along`.
    """

    def __init__(self, problem: Problem, *, explicit: bool = True):
        along = (
            {}
            if explicit
            else copies_along(problem.graph, functools.partial(_has_free_equations, problem))
        )
        super().__init__(problem.of(expand_copies(problem.graph, along)))
        self.original = problem
        constraints = self.problem.graph.constraints
        self.edges = [(c, position) for c in constraints for position, _ in c.reads]
        pairs = zip(problem.graph.constraints, constraints, strict=True)
        self.slants = {(c, i): self._slants(c, i) for own, c in pairs for i in along.get(own, ())}
        self.produced = tuple(self.problem.outs) if problem.product else ()

    def expand(self, values: Values) -> Values:
        """Every edge sees the value of its variables, and so does what produces them."""
        env = dict(zip(self.problem.graph.variables, values, strict=True))
        copies = {
            (c, i): self._agreeing((c, i), self.problem.look(c.views[i], env))
            for c, i in self.edges
        }
        return self._joined(copies, env)

    def _agreeing(self, edge: Edge, value: Array) -> Any:
        """The copies that all have one value."""
        if edge not in self.slants:
            return value
        squares = self.slants[edge].squares
        return Along(value, jnp.zeros(squares.shape, squares.dtype))

    def _slants(self, c: Constraint, position: int) -> Slants:
        problem = self.problem
        operands = [
            jnp.zeros(o.shape, o.dtype) if isinstance(o, View) else problem.data[o]
            for o in c.operands
        ]
        weights = problem.weights_at(c)
        assert isinstance(c.rule, Slanted) and c.out is not None
        slants = c.rule.slants(c.params, operands, position, weights)
        return slants._replace(squares=jnp.broadcast_to(slants.squares, c.out.shape))

    def collapse(self, point: Values) -> Values:
        """The weighted mean of all copies of every variable."""
        copies, outs = self._split(point)
        means, start = self._means(copies, self.edges, outs), self.problem.start
        return tuple(means.get(v, start[v]) for v in self.problem.graph.variables)

    def inner(self, x: Values, y: Values) -> Array:
        """The sum over all copies, each with its weight."""
        count, masses = len(self.edges), [self.problem.outs[v] for v in self.produced]
        outs = zip(masses, x[count:], y[count:], strict=True)
        products = [mass * a * b for mass, a, b in outs]
        for edge, a, b in zip(self.edges, x[:count], y[:count], strict=True):
            products += self._products(edge, a, b)
        return added(products)

    def _products(self, edge: Edge, a: Any, b: Any) -> list[Array]:
        """What adds up to the inner product of two copies of an edge."""
        c, i = edge
        mass = self.problem.copy_masses[c][i]
        if edge not in self.slants:
            return [mass * a * b]
        total, squares = self.slants[edge]
        return [
            mass * a.base * b.base + a.base * total(b.multiplier) + b.base * total(a.multiplier),
            squares * a.multiplier * b.multiplier,
        ]

    def _split(self, point: Values) -> tuple[dict[Edge, Any], dict[Variable, Array]]:
        """The copies of edges, and those of outputs."""
        count = len(self.edges)
        copies = dict(zip(self.edges, point[:count], strict=True))
        return copies, dict(zip(self.produced, point[count:], strict=True))

    def _joined(self, copies: Mapping[Edge, Any], outs: Mapping[Variable, Array]) -> Values:
        return (*(copies[edge] for edge in self.edges), *(outs[v] for v in self.produced))

    def _means(
        self,
        copies: Mapping[Edge, Any],
        edges: Sequence[Edge],
        outs: Mapping[Variable, Array],
    ) -> dict[Variable, Array]:
        return self.problem.gather(
            {edge: self._total(edge, copies[edge]) for edge in edges}, self.problem.start, outs
        )

    def _total(self, edge: Edge, copy: Any) -> Array:
        """The weighted sum of all copies of an edge, less what its view adds."""
        c, i = edge
        mass, offset = self.problem.copy_masses[c][i], self.problem.offsets.get(edge, 0.0)
        if edge not in self.slants:
            return mass * (copy - offset)
        return mass * (copy.base - offset) + self.slants[edge].total(copy.multiplier)

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """Each node of the group projects the copies on the edges that it reads and produces."""
        problem, produced = self.problem, set[Any]()
        if not problem.product:
            produced = {n if isinstance(n, Variable) else n.out for n in group} - {None}
        elif not group:
            return self.expand(self.collapse(point)), problem.stacked({})
        copies, outs = self._split(point)
        outgoing = [(c, i) for c, i in self.edges if not produced.isdisjoint(c.views[i].bases)]
        values = outs | self._means(copies, outgoing, {})
        moved, distances = dict(copies), {}
        for c in group:
            if isinstance(c, Variable):
                continue
            operands = [
                copies[c, i] if isinstance(o, View) else problem.data[o]
                for i, o in enumerate(c.operands)
            ]
            result = problem.project(c, operands, None if c.out is None else values[c.out])
            distances[c] = result.distance
            for i, view in c.reads:
                moment = result.moments[i]
                own = isinstance(moment, Along)
                moved[c, i] = moment if own else (moment.first / moment.mass).astype(view.dtype)
            if c.out is not None:
                values[c.out] = result.out.astype(c.out.dtype)
        for c, i in outgoing:
            moved[c, i] = self._write((c, i), moved[c, i], values, produced)
        return self._joined(moved, values), problem.stacked(distances)

    def _write(
        self, edge: Edge, copy: Any, values: Mapping[Variable, Array], produced: set[Any]
    ) -> Any:
        """The copy, with what the produced variables say in their places."""
        view = edge[0].views[edge[1]]
        arrays = [values[b] if b in produced else jnp.zeros(b.shape, b.dtype) for b in view.bases]
        data, seen = self.problem.data, bool(self.problem.idle)
        written = view(data, *arrays, seen=seen)
        if produced.issuperset(view.bases):
            return self._agreeing(edge, written)
        flags = [jnp.full(b.shape, float(b in produced), b.dtype) for b in view.bases]
        return jnp.where(view(data, *flags, seen=seen) != view.at_zero(data), written, copy)


def copies_along(
    graph: ConsensusGraph, free: Callable[[Constraint], bool] = lambda c: False
) -> dict[Constraint, set[int]]:
    """The operands of every constraint whose copies can be `Along`.

    Of one variable, so that all of them move to the consensus at once, and of constraints none of
    whose equations is ``free``, which asks for nothing.
    """
    found = {}
    for c in graph.constraints:
        if isinstance(c.rule, Slanted) and not free(c):
            views = c.rule.expand(c.params, c.shapes, c.variable).views
            able = c.rule.along(c.params, c.variable)
            found[c] = {i for i in able if views[i] and len(c.views[i].bases) == 1}
    return found


def _has_free_equations(problem: Problem, c: Constraint) -> bool:
    """Whether there may be elements of an output that nobody reads."""
    return c.out is not None and (c.out in problem.idle or problem.totals[c.out][1] is not None)


def expand_copies(
    graph: ConsensusGraph, along: Mapping[Constraint, set[int]] | None = None
) -> ConsensusGraph:
    """The graph in which every scalar equation reads its own copies, but for some operands."""

    def expanded(c: Constraint) -> Constraint:
        left = along.get(c, ()) if along else ()
        spread = [v and i not in left for i, v in enumerate(c.variable)]
        expansion = c.rule.expand(c.params, c.shapes, spread)
        operands = tuple(
            operand.followed_by(view) if isinstance(operand, View) else operand
            for operand, view in zip(c.operands, expansion.views, strict=True)
        )
        return dataclasses.replace(
            c, rule=expansion.rule, params=expansion.params, operands=operands
        )

    return graph.replaced({c: expanded(c) for c in graph.constraints})
