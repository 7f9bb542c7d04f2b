"""What solvers iterate in: points of a problem, and projections onto groups of its constraints.

All lowerings offer the same `Space`. *Copy-free*, a point is one array per variable: after a
consensus step all copies are equal, so the moments that rules return are all that is needed.
With *copies*, a point is one array per edge, spread so that each scalar equation has its own.
A *direct* graph needs neither: its constraints move the variables themselves.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from equinox.internal import ω
from jaxtyping import Array

from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.known_view import known_view
from pjax_trace.problem import Edge, Problem, Values, added
from pjax_trace.set_rule import SetRule
from pjax_trace.view import Variable, View

__all__ = ["Copies", "CopyFree", "Space", "expand_copies", "space_of"]


class Space(abc.ABC):
    """What a solver iterates in: points, and projections onto groups of constraints.

    A group is a set of nodes (constraints and parameters). ``groups`` are the two colours, the
    outputs' first; of a graph without colours all constraints, and none for consensus. ``cycle`` is
    every constraint by itself, from the outputs back. ``original`` is the problem as it was before
    copies were made.
    """

    def __init__(self, problem: Problem):
        self.problem = self.original = problem
        graph = problem.graph
        nodes = [*graph.parameters, *graph.constraints]
        # Without colours, all are projected at once; a sweep goes back.
        order = graph.constraints if problem.product else graph.constraints[::-1]
        self.groups: tuple[tuple[Any, ...], ...] = (order, ())
        if graph.colours:
            self.groups = tuple(
                tuple(node for node in nodes if graph.colours.get(node) == side) for side in (0, 1)
            )
        self.cycle = (*((c,) for c in reversed(graph.constraints)), graph.parameters)

    @abc.abstractmethod
    def expand(self, values: Values) -> Any:
        """The point in which all copies agree with these values."""

    @abc.abstractmethod
    def collapse(self, point: Any) -> Values:
        """The consensus values of a point."""

    @abc.abstractmethod
    def project(self, point: Any, group: Sequence[Any]) -> tuple[Any, Array]:
        """The nearest point that satisfies a group, and the squared distance per constraint."""

    @abc.abstractmethod
    def inner(self, x: Any, y: Any) -> Array:
        """The inner product of two points in the metric."""

    def correction(self, point: Any, group: Sequence[Any]) -> Any:
        """What Dykstra's algorithm remembers of a group, at first."""
        return jax.tree.map(jnp.zeros_like, point)

    def corrected(
        self, point: Any, group: Sequence[Any], correction: Any
    ) -> tuple[Any, Any, Array]:
        """A step of Dykstra's algorithm: the point, the correction, and how far, squared, it went.

        That is how much the correction changes (Birgin and Raydan 2005), which tells when to stop.
        """
        ahead = (point**ω + correction**ω).ω
        moved, _ = self.project(ahead, group)
        return moved, (ahead**ω - moved**ω).ω, self._went(group, (moved**ω - point**ω).ω)

    def _went(self, group: Sequence[Any], step: Any) -> Array:
        """The squared length of a step, as that of the first constraint of a group."""
        square, first = self.inner(step, step), [c for c in group if isinstance(c, Constraint)][:1]
        return self.problem.stacked(dict.fromkeys(first, square))


class CopyFree(Space):
    """One array per variable. Groups must be whole colours, so that consensus sees all readers."""

    def expand(self, values: Values) -> Values:
        return values

    def collapse(self, point: Values) -> Values:
        return point

    def inner(self, x: Values, y: Values) -> Array:
        return self.problem.inner(x, y)

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """Constraints of the group move their outputs and, by their moments, their operands."""
        problem, variables = self.problem, self.problem.graph.variables
        values = dict(zip(variables, point, strict=True))
        moved = dict(values)
        moments: dict[Edge, Array] = {}
        distances, outs = {}, {}
        for c in group:
            if isinstance(c, Variable):
                continue  # a parameter is at the mean of its copies already
            result = problem.project(
                c, problem.operands(c, values), None if c.out is None else values[c.out]
            )
            distances[c] = result.distance
            if c.out is not None:
                into = outs if problem.product else moved
                into[c.out] = result.out.astype(c.out.dtype)
            for position, _ in c.reads:
                moment = result.moments[position]
                moments[c, position] = problem.centred((c, position), moment)
        moved.update(problem.gather(moments, values, outs))
        return tuple(moved[v] for v in variables), self.problem.stacked(distances)


class Copies(Space):
    """One array per edge, spread over its scalar equations. Any group of nodes will do.

    In the product space, constraints have copies of what they produce, too. None of them is shared,
    and where there is no group, all copies of a variable come to agree.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem.of(expand_copies(problem.graph)))
        self.original = problem
        constraints = self.problem.graph.constraints
        self.edges = [(c, position) for c in constraints for position, _ in c.reads]
        self.produced = tuple(self.problem.outs) if problem.product else ()

    def expand(self, values: Values) -> Values:
        """Every edge sees the value of its variables, and so does what produces them."""
        env = dict(zip(self.problem.graph.variables, values, strict=True))
        copies = {(c, i): self.problem.look(c.views[i], env) for c, i in self.edges}
        return self._joined(copies, env)

    def collapse(self, point: Values) -> Values:
        """The weighted mean of all copies of every variable."""
        copies, outs = self._split(point)
        means, start = self._means(copies, self.edges, outs), self.problem.start
        return tuple(means.get(v, start[v]) for v in self.problem.graph.variables)

    def inner(self, x: Values, y: Values) -> Array:
        masses = [self.problem.copy_masses[c][i] for c, i in self.edges]
        masses += [self.problem.outs[v] for v in self.produced]
        return added(mass * a * b for mass, a, b in zip(masses, x, y, strict=True))

    def _split(self, point: Values) -> tuple[dict[Edge, Array], dict[Variable, Array]]:
        """The copies of edges, and those of outputs."""
        count = len(self.edges)
        copies = dict(zip(self.edges, point[:count], strict=True))
        return copies, dict(zip(self.produced, point[count:], strict=True))

    def _joined(self, copies: Mapping[Edge, Array], outs: Mapping[Variable, Array]) -> Values:
        return (*(copies[edge] for edge in self.edges), *(outs[v] for v in self.produced))

    def _means(
        self,
        copies: Mapping[Edge, Array],
        edges: Sequence[Edge],
        outs: Mapping[Variable, Array],
    ) -> dict[Variable, Array]:
        problem = self.problem
        moments = {
            (c, i): problem.copy_masses[c][i] * (copies[c, i] - problem.offsets.get((c, i), 0.0))
            for c, i in edges
        }
        return problem.gather(moments, problem.start, outs)

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
                moved[c, i] = (moment.first / moment.mass).astype(view.dtype)
            if c.out is not None:
                values[c.out] = result.out.astype(c.out.dtype)
        for c, i in outgoing:
            moved[c, i] = self._write(c.views[i], moved[c, i], values, produced)
        return self._joined(moved, values), problem.stacked(distances)

    def _write(
        self, view: View, copy: Array, values: Mapping[Variable, Array], produced: set[Any]
    ) -> Array:
        """The copy, with what the produced variables say in their places."""
        arrays = [values[b] if b in produced else jnp.zeros(b.shape, b.dtype) for b in view.bases]
        data, seen = self.problem.data, bool(self.problem.idle)
        written = view(data, *arrays, seen=seen)
        if produced.issuperset(view.bases):
            return written
        flags = [jnp.full(b.shape, float(b in produced), b.dtype) for b in view.bases]
        return jnp.where(view(data, *flags, seen=seen) != view.at_zero(data), written, copy)


class Direct(Space):
    """One array per variable, for graphs that need no copies: constraints move what they read.

    Constraints of a group have no elements in common, so that they are one set.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        graph = problem.graph
        self.cycle = tuple((c,) for c in graph.constraints)
        self._views: dict[Any, Any] = {
            (c, i): known_view(graph.program, view)
            for c in graph.constraints
            for i, view in c.reads
        }

    def expand(self, values: Values) -> Values:
        return values

    def collapse(self, point: Values) -> Values:
        return point

    def inner(self, x: Values, y: Values) -> Array:
        weights, variables = self.problem.weight_of, self.problem.graph.variables
        return added(weights[v] * a * b for v, a, b in zip(variables, x, y, strict=True))

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """Every constraint moves its output and what its views read of variables."""
        problem, variables = self.problem, self.problem.graph.variables
        moved, distances = dict(zip(variables, point, strict=True)), {}
        for c in group:
            if isinstance(c, Variable):
                continue
            operands = problem.operands(c, moved)
            result = problem.project(c, operands, None if c.out is None else moved[c.out])
            distances[c] = result.distance
            for i, view in c.reads:
                moment = result.moments[i]
                assert moment is not None
                copy = (moment.first / moment.mass).astype(view.dtype)
                if view.identity:
                    moved[view.bases[0]] = copy
                    continue
                changes = self._views[c, i].back(copy - operands[i])
                for base, change in zip(view.bases, changes, strict=True):
                    moved[base] = moved[base] + change
            if c.out is not None:
                moved[c.out] = result.out.astype(c.out.dtype)
        return tuple(moved[v] for v in variables), problem.stacked(distances)

    def correction(self, point: Values, group: Sequence[Any]) -> Any:
        """Of a set that is many, one number for each of them."""
        rows = _by_rows(group)
        if rows is None:
            return super().correction(point, group)
        return jnp.zeros_like(self.problem.params[rows]["rows"].offset)

    def corrected(
        self, point: Values, group: Sequence[Any], correction: Any
    ) -> tuple[Any, Any, Array]:
        rows = _by_rows(group)
        if rows is None:
            return super().corrected(point, group, correction)
        problem, variables = self.problem, self.problem.graph.variables
        values = dict(zip(variables, point, strict=True))
        operands, weights = problem.operands(rows, values), problem.weights_at(rows)
        rule: Any = rows.rule
        changes, after = rule.corrected(problem.params[rows], operands, weights, correction)
        for (i, view), change in zip(rows.reads, changes, strict=True):
            for base, moved in zip(view.bases, self._views[rows, i].back(change), strict=True):
                values[base] = values[base] + moved
        square = jnp.sum(problem.params[rows]["rows"].squares * jnp.square(after - correction))
        return tuple(values[v] for v in variables), after, problem.stacked({rows: square})


def _by_rows(group: Sequence[Any]) -> Constraint | None:
    """The constraint of a group if it is many sets, one for each equation; else None."""
    rules = [c.rule for c in group if isinstance(c, Constraint)]
    many = len(group) == 1 and any(isinstance(r, SetRule) and r.by_rows for r in rules)
    return group[0] if many else None


def expand_copies(graph: ConsensusGraph) -> ConsensusGraph:
    """The graph in which every scalar equation reads its own copies."""

    def expanded(c: Constraint) -> Constraint:
        expansion = c.rule.expand(c.params, c.shapes, c.variable)
        operands = tuple(
            operand.followed_by(view) if isinstance(operand, View) else operand
            for operand, view in zip(c.operands, expansion.views, strict=True)
        )
        return dataclasses.replace(
            c, rule=expansion.rule, params=expansion.params, operands=operands
        )

    return graph.replaced({c: expanded(c) for c in graph.constraints})


def space_of(problem: Problem, *, copies: bool) -> Space:
    """The space for a problem."""
    if problem.graph.direct:
        return Direct(problem)
    return Copies(problem) if copies else CopyFree(problem)
