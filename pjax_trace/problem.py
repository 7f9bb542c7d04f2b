"""A consensus graph with its data and metric: what all solvers project by.

Weights, total masses and the offsets of views are made once an update, and only if a solver asks
for them.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.finite import may_hide, passed_over, settle, walled
from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.metric import Metric
from pjax_trace.program import Value
from pjax_trace.rule import Moment, Prepared, Projection, Weights
from pjax_trace.view import Variable, View

__all__ = ["Edge", "Problem", "Values", "added"]

Values = tuple[Array, ...]
Edge = tuple[Constraint, int]


class Problem:
    """A graph at the values of a forward pass, in a metric.

    In the *product* schedule, constraints have copies of their outputs, too, which weigh what a
    copy of the variable does; else an output weighs as much as all that read it.

    Args:
        graph: the graph.
        metric: the weights.
        env: all values of the forward pass.
        inputs: the data that it was made of.
        product: whether it is for the product schedule.
    """

    def __init__(
        self,
        graph: ConsensusGraph,
        metric: Metric,
        env: Mapping[Value, Any],
        inputs: Sequence[Any],
        product: bool = False,
    ):
        self.graph, self.metric, self.env, self.inputs = graph, metric, env, inputs
        self.product = product or graph.direct
        scales, self.parts, self.rest = graph.program.objective.evaluate(env)
        # The mean of the losses of so many rows asks of each for what its loss alone does.
        rows = max(1, graph.rows)
        known: dict[Value, Any] = {**env, **{v: rows * x for v, x in scales.items()}}
        # An identity that was inserted has the value of what it repeats.
        self.start: dict[Variable, Array] = {
            v: known[(v.repeats or v).value] for v in graph.variables
        }
        self.idle: dict[Variable, Array] = {}
        if hidden := passed_over(graph):
            known, self.start, self.idle = settle(graph, hidden, known, self.start)
        self.data = walled(graph, known)

    @staticmethod
    def forward(
        graph: ConsensusGraph,
        metric: Metric,
        parameters: Sequence[Array],
        inputs: Sequence[Any],
        product: bool = False,
    ) -> "Problem":
        """The problem that starts from a forward pass of these parameters."""
        env = graph.program.evaluate(parameters, inputs)
        return Problem(graph, metric, env, inputs, product)

    def restarted(self, parameters: Sequence[Array]) -> "Problem":
        """The same problem from a forward pass of other parameters."""
        if all(x is y for x, y in zip(parameters, self.values, strict=False)):
            return self
        return Problem.forward(self.graph, self.metric, parameters, self.inputs, self.product)

    def of(self, graph: ConsensusGraph) -> "Problem":
        """The same problem of another form of the graph."""
        other = Problem(graph, self.metric, self.env, self.inputs, self.product)
        other.weight_of = self.weight_of
        other.factors = dict(zip(graph.constraints, self.factors.values(), strict=True))
        return other

    @property
    def values(self) -> Values:
        """What all variables are at the start, parameters first."""
        return tuple(self.start[v] for v in self.graph.variables)

    @functools.cached_property
    def weight_of(self) -> Mapping[Variable, Any]:
        """What a copy of every variable weighs."""
        return self.metric.at(self.graph, self.start)

    @functools.cached_property
    def factors(self) -> dict[Constraint, float]:
        """By what the copies of each constraint weigh more than others."""
        return self.metric.factors(self.graph)

    @functools.cached_property
    def outs(self) -> dict[Variable, Any]:
        """What a constraint's own copy of its output weighs."""
        return {
            c.out: factor * _weight([self.weight_of[c.out]], c.out.dtype)
            for c, factor in self.factors.items()
            if c.out is not None
        }

    @functools.cached_property
    def weights(self) -> dict[Constraint, tuple[Any, ...]]:
        """What one copy of every operand weighs; None for data.

        A copy of several variables at once (a concatenation) has the largest of their weights.
        """
        return {
            c: tuple(
                factor * _weight([self.weight_of[base] for base in o.bases], o.dtype)
                if isinstance(o, View)
                else None
                for o in c.operands
            )
            for c, factor in self.factors.items()
        }

    @functools.cached_property
    def copy_masses(self) -> dict[Constraint, tuple[Any, ...]]:
        """What the copies in all rows of a constraint weigh together."""
        return {c: c.rule.masses(c.params, weights) for c, weights in self.weights.items()}

    @functools.cached_property
    def offsets(self) -> dict[Edge, Array]:
        """What views add to what they read, where they may add something."""
        return {
            (c, i): view.at_zero(self.data)
            for c in self.graph.constraints
            for i, view in c.reads
            if view.offset
        }

    @functools.cached_property
    def totals(self) -> dict[Variable, tuple[Array, Array | None]]:
        """The weight of all readers of each variable; and which elements nobody reads, if any may.

        Where nobody reads an element, any weight does: it keeps its value.
        """
        graph, known = self.graph, self.graph.program.known
        seen = {
            (c, i): self._seen((c, i), self.copy_masses[c][i], self.offsets.get((c, i), 0.0))
            for c in graph.constraints
            for i in c.views
        }
        start = {}
        if self.product:
            start = {v: jnp.full(v.shape, weight, v.dtype) for v, weight in self.outs.items()}
        totals = self._pulled(seen, start)
        settled: dict[Variable, tuple[Array, Array | None]] = {}
        for variable in graph.variables:
            views = (c.views[i] for c, i in graph.readers[variable])
            surely_read = any(v.total and not may_hide(v, known) for v in views)
            surely_read |= self.product and variable in self.outs
            mass = totals.get(variable)
            if mass is None:
                mass = jnp.zeros(variable.shape, variable.dtype)
            unread = None if surely_read else mass == 0
            settled[variable] = mass if unread is None else jnp.where(unread, 1.0, mass), unread
        return settled

    def _seen(self, edge: Edge, mass: Any, offset: Any) -> Array:
        """The mass of a copy times the coefficients of its view; `_pulled` multiplies again."""
        c, i = edge
        view = c.views[i]
        mass = jnp.broadcast_to(mass, view.shape).astype(view.dtype)
        # 0 where data hide what is read, as a mask of -1e9 does.
        return mass if view.identity else mass * view.slope(self.data, offset)

    def _pulled(
        self, arrays: Mapping[Edge, Array], start: Mapping[Variable, Array] | None = None
    ) -> dict[Variable, Array]:
        """Sums over edges, brought back through their views to the variables."""
        totals = dict(start or {})
        for (c, i), array in arrays.items():
            view = c.views[i]
            for base, total in zip(view.bases, view.pull(self.data, array), strict=True):
                totals[base] = totals[base] + total if base in totals else total
        return totals

    def prepare(self) -> None:
        """Make now what is made once: in a loop's body it would be made in every step."""
        _ = self.totals, self.params

    @functools.cached_property
    def params(self) -> dict[Constraint, Any]:
        """What every constraint's rule is given, with what is made once an update."""
        made = {c: c.params for c in self.graph.constraints}
        for c in self.graph.constraints:
            if isinstance(c.rule, Prepared):
                operands = self.operands(c, self.start)
                made[c] = c.rule.prepare(c.params, operands, self.weights_at(c))
        return made

    def mass(self, variable: Variable) -> Array:
        """The total weight of a variable."""
        return self.totals[variable][0]

    def weights_at(self, c: Constraint) -> Weights:
        """The metric as a constraint sees it."""
        out = None if c.out is None else self.mass(c.out)
        if self.product and c.out is not None:
            out = jnp.full(c.out.shape, self.outs[c.out], c.out.dtype)
        return Weights(self.weights[c], out)

    def look(self, view: View, values: Mapping[Variable, Array]) -> Array:
        """What a constraint sees of variables through a view."""
        return view(self.data, *(values[base] for base in view.bases), seen=bool(self.idle))

    def operands(self, c: Constraint, values: Mapping[Variable, Array]) -> list[Array]:
        """What a constraint reads."""
        return [self.look(o, values) if isinstance(o, View) else self.data[o] for o in c.operands]

    def project(self, c: Constraint, operands: Sequence[Array], target: Any) -> Projection:
        """Project onto one constraint."""
        weights = self.weights_at(c)
        unread = None if c.out is None else self.totals[c.out][1]
        idle = None if c.out is None else self.idle.get(c.out)
        if unread is None and idle is None:
            return c.rule.project(self.params[c], operands, target, weights)
        # An output element that nobody reads is free: its equation asks nothing of anyone.
        free = functools.reduce(jnp.logical_or, [x for x in (unread, idle) if x is not None])
        value = c.rule.apply(c.params, *operands)
        free_target = jnp.where(free, value, target)
        if c.rule.joint:
            weights = weights._replace(out=jnp.where(free, 0, weights.out))
        answer = c.rule.project(self.params[c], operands, free_target, weights)
        if idle is None or not self._elementwise(c):
            return answer
        # Where there is no value, nothing moves, whatever comes out of the projection there.
        lost = free & ~jnp.isfinite(value)
        out = jnp.where(lost, target, answer.out)
        square = weights.out * jnp.square(out - jnp.where(lost, target, free_target))
        moments: list[Moment | None] = []
        for x, weight, m in zip(operands, weights.operands, answer.moments, strict=True):
            if m is not None:
                m = Moment(jnp.where(lost, m.mass * x, m.first), m.mass)
                square = square + jnp.where(lost, 0, weight * jnp.square(m.first / m.mass - x))
            moments.append(m)
        return Projection(tuple(moments), out, jnp.sum(square))

    def _elementwise(self, c: Constraint) -> bool:
        """Whether every element of what it reads has one copy, for one element of the output."""
        assert c.out is not None
        copies = c.rule.masses(c.params, tuple(1.0 if v else None for v in c.variable))
        one = {i: isinstance(copies[i], float) and copies[i] == 1.0 for i, _ in c.reads}
        return all(v.shape == c.out.shape and one[i] for i, v in c.reads)

    def project_alone(self, c: Constraint, values: Mapping[Variable, Array]) -> Projection:
        """The projection onto a set, where all that it reads weighs 1."""
        weights = tuple(1.0 if v else None for v in c.variable)
        return c.rule.project(c.params, self.operands(c, values), None, Weights(weights, None))

    def gather(
        self,
        moments: Mapping[Edge, Array],
        fallback: Mapping[Variable, Array],
        outs: Mapping[Variable, Array],
    ) -> dict[Variable, Array]:
        """Consensus: every variable as the weighted mean of the copies in ``moments``.

        ``moments`` holds ``Σ ω x'`` per edge, already less ``Σ ω · offset``; ``outs`` the copies
        that constraints have of their outputs, in the product schedule.
        """
        totals = self._pulled(moments, {v: self.outs[v] * x for v, x in outs.items()})
        means = {}
        for variable, total in totals.items():
            mass, unread = self.totals[variable]
            mean = (total / mass).astype(variable.dtype)
            means[variable] = (
                mean if unread is None else jnp.where(unread, fallback[variable], mean)
            )
        return means

    def agreed(
        self, moments: Mapping[Edge, Moment], values: Mapping[Variable, Array]
    ) -> dict[Variable, Array]:
        """The weighted means of what these edges say; what they do not read keeps its value."""
        firsts, masses = {}, {}
        for (c, i), moment in moments.items():
            view = c.views[i]
            offset = view.at_zero(self.data) if view.offset else 0.0
            firsts[c, i] = moment.first - moment.mass * offset
            masses[c, i] = self._seen((c, i), moment.mass, offset)
        totals = self._pulled(masses)
        return {
            v: jnp.where(totals[v] > 0, first / jnp.where(totals[v] > 0, totals[v], 1), values[v])
            for v, first in self._pulled(firsts).items()
        }

    def centred(self, edge: Edge, moment: Moment) -> Array:
        """``Σ ω x'`` less ``Σ ω · offset``."""
        offset = self.offsets.get(edge)
        return moment.first if offset is None else moment.first - moment.mass * offset

    def inner(self, x: Values, y: Values) -> Array:
        """The inner product of consensus values in the metric."""
        variables = self.graph.variables
        return added(self.mass(v) * a * b for v, a, b in zip(variables, x, y, strict=True))

    def gaps(self, values: Values) -> Array:
        """The squared distance of every constraint from its graph at a consensus state."""
        env = dict(zip(self.graph.variables, values, strict=True))

        def gap(c: Constraint) -> Array:
            target = None if c.out is None else env[c.out]
            return self.project(c, self.operands(c, env), target).distance

        return self.stacked({c: gap(c) for c in self.graph.constraints})

    @functools.cached_property
    def losses(self) -> Array:
        """What every loss adds to the objective at the start; they add up to it.

        What is no loss's own, such as a constant, counts to the one with the largest weights.
        """
        graph, wide = self.graph, jnp.result_type(float)
        if not graph.losses:
            return jnp.zeros(0, wide)
        own = jnp.stack([self.parts[c.scale].astype(wide) for c in graph.losses])
        weights = [jnp.sum(jnp.abs(self.data[c.scale])).astype(wide) for c in graph.losses]
        return own.at[jnp.argmax(jnp.stack(weights))].add(self.rest.astype(wide))

    @property
    def auxiliary(self) -> list[Array]:
        """What the function returns beside the objective."""
        return [self.env[v] for v in self.graph.program.outputs]

    def stacked(self, distances: Mapping[Any, Array]) -> Array:
        """One number for every constraint, 0 for those that are left out."""
        zero = jnp.zeros((), jnp.result_type(float))
        return jnp.stack(
            [distances.get(c, zero).astype(zero.dtype) for c in self.graph.constraints]
        )


def _weight(weights: Sequence[float | Array], dtype: Any) -> float | Array:
    """The largest of several weights; a float if all are, which rules make use of while tracing.

    Others get the dtype of what they weigh, and stay below what it holds.
    """
    if all(isinstance(weight, float) for weight in weights):
        return max(weights)
    largest = functools.reduce(jnp.maximum, weights)
    return jnp.minimum(largest, float(jnp.finfo(dtype).max) / 16).astype(dtype)


def added(arrays: Iterable[Array]) -> Array:
    """The sum of all elements."""
    zero = jnp.zeros((), jnp.result_type(float))
    return functools.reduce(jnp.add, (jnp.sum(x).astype(zero.dtype) for x in arrays), zero)
