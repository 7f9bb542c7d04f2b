"""The lowerings: what a solver iterates in, by the graph and by what the solver needs.

*Copy-free*, a point is one array per variable: after a consensus step all copies are equal, so the
moments that rules return are all that is needed. A *direct* graph needs no copies at all: its
constraints move the variables themselves. With copies, see `pjax_trace.copies`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.copies import Copies
from pjax_trace.graph import Constraint
from pjax_trace.known_view import known_view
from pjax_trace.problem import Edge, Problem, Values, added
from pjax_trace.set_rule import SetRule
from pjax_trace.space import Space
from pjax_trace.view import Variable

__all__ = ["CopyFree", "space_of"]


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


def space_of(problem: Problem, *, copies: bool, explicit: bool = True) -> Space:
    """The space for a problem; copies are those of one variable each, if they are explicit."""
    if problem.graph.direct:
        return Direct(problem)
    return Copies(problem, explicit=explicit) if copies else CopyFree(problem)
