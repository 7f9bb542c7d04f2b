"""A consensus graph and its data → the two projections that solvers iterate.

Both lowerings offer the same `Space`. *Copy-free*, a point is one array per variable: after a
consensus step all copies are equal, so the moments that rules return are all that is needed.
With *copies*, a point is one array per edge, spread so that each scalar equation has its own.
"""

import abc
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace.graph import ConsensusGraph, Constraint, Variable, View
from pjax_trace.registry import Projection, Weights
from pjax_trace.trace import Value

__all__ = ["CopyFree", "Copies", "ProductCopies", "Space", "expand_copies"]

Values = tuple[Array, ...]


class Problem:
    """A graph with its data and metric: weights, total masses and offsets, made once an update.

    Of the *product* schedule, constraints have copies of their outputs, too, which weigh what a
    copy of the variable does; else an output weighs as much as all that read it. ``factors`` say
    what the copies of a constraint weigh more than others, by its name.
    """

    def __init__(
        self,
        graph: ConsensusGraph,
        data: Mapping[Value, Any],
        start: Mapping[Variable, Array],
        metric: Mapping[Variable, float | Array],
        product: bool = False,
        factors: Mapping[str, float] | None = None,
    ):
        self.graph = graph
        self.data = _walled(graph, data)
        self.start = start
        self.product = product
        own = {c: (factors or {}).get(c.name, 1.0) for c in graph.constraints}
        self.outs = {c.out: own[c] * metric[c.out] for c in own if c.out is not None}
        # A copy of several variables at once (a concatenation) has the largest of their weights.
        self.weights = {
            c: tuple(
                factor * _largest([metric[base] for base in o.bases])
                if isinstance(o, View)
                else None
                for o in c.operands
            )
            for c, factor in own.items()
        }
        # What the copies of all rows of a constraint weigh together.
        self.copies = {c: c.rule.masses(c.params, self.weights[c]) for c in graph.constraints}
        self.offsets: dict[tuple[Constraint, int], Array] = {}
        for c in graph.constraints:
            for position, view in c.reads:
                if view.offset:
                    zeros = [jnp.zeros(base.shape, base.dtype) for base in view.bases]
                    self.offsets[c, position] = view(self.data, *zeros)
        self.masses: dict[Variable, Array] = {}
        self._unread: dict[Variable, Array | None] = {}
        self._weigh()

    def _weigh(self) -> None:
        """Total weight of all readers of every variable."""
        totals: dict[Variable, Array] = {}
        graph = self.graph
        if self.product:
            totals = {v: jnp.full(v.shape, weight, v.dtype) for v, weight in self.outs.items()}
        for c in graph.constraints:
            for position, view in c.reads:
                mass = jnp.broadcast_to(self.copies[c][position], view.shape)
                mass = mass.astype(view.out.dtype)
                if not view.identity:
                    ones = [jnp.ones(base.shape, base.dtype) for base in view.bases]
                    # 0 where data hide what is read, as a mask of -1e9 does.
                    slope = view(self.data, *ones) - self.offsets.get((c, position), 0.0)
                    mass = mass * slope
                for base, total in zip(view.bases, self.pull(view, mass), strict=True):
                    totals[base] = totals[base] + total if base in totals else total
        for variable in graph.variables:
            self._settle(variable, totals)

    def _settle(self, variable: Variable, totals: Mapping[Variable, Array]) -> None:
        readers = self.graph.readers[variable]
        views = [c.operands[i] for c, i in readers]
        known = self.graph.program.known
        surely_read = any(
            isinstance(v, View) and v.total and not _may_hide(v, known) for v in views
        )
        surely_read |= self.product and variable in self.outs
        mass = totals.get(variable)
        if mass is None:
            mass = jnp.zeros(variable.shape, variable.dtype)
        self._unread[variable] = None if surely_read else mass == 0
        # Where nobody reads an element, any weight does: it keeps its value.
        self.masses[variable] = mass if surely_read else jnp.where(mass == 0, 1.0, mass)

    def metric(self, c: Constraint) -> Weights:
        """The metric as a constraint sees it."""
        out = None if c.out is None else self.masses[c.out]
        if self.product and c.out is not None:
            out = jnp.full(c.out.shape, self.outs[c.out], c.out.dtype)
        return Weights(self.weights[c], out)

    def pull(self, view: View, moment: Array) -> tuple[Array, ...]:
        """Back through a view to its bases."""
        return (moment,) if view.identity else view.pull(self.data, moment.astype(view.dtype))

    def look(self, view: View, values: Mapping[Variable, Array]) -> Array:
        """Forward through a view."""
        return view(self.data, *(values[base] for base in view.bases))

    def operands(self, c: Constraint, values: Mapping[Variable, Array]) -> list[Array]:
        """What a constraint reads."""
        return [self.look(o, values) if isinstance(o, View) else self.data[o] for o in c.operands]

    def target(self, c: Constraint, values: Mapping[Variable, Array]) -> Array | None:
        """What the readers of a constraint's output ask of it."""
        return None if c.out is None else values[c.out]

    def project(self, c: Constraint, operands: Sequence[Array], target: Any) -> Projection:
        """Project onto one constraint."""
        unread = None if c.out is None else self._unread[c.out]
        if unread is not None:
            # An output element that nobody reads is free: its equation asks nothing of anyone.
            target = jnp.where(unread, c.rule.apply(c.params, *operands), target)
        return c.rule.project(c.params, operands, target, self.metric(c))

    def gather(
        self,
        moments: Mapping[tuple[Constraint, int], Array],
        fallback: Mapping[Variable, Array],
        outs: Mapping[Variable, Array],
    ) -> dict[Variable, Array]:
        """Consensus: every variable as the weighted mean of the copies in ``moments``.

        ``moments`` holds ``Σ ω x'`` per edge, already less ``Σ ω · offset``; ``outs`` the copies
        that constraints have of their outputs, in the product schedule.
        """
        totals: dict[Variable, Array] = {v: self.outs[v] * x for v, x in outs.items()}
        for (c, position), moment in moments.items():
            view = c.operands[position]
            assert isinstance(view, View)
            for base, total in zip(view.bases, self.pull(view, moment), strict=True):
                totals[base] = totals[base] + total if base in totals else total
        means = {}
        for variable, total in totals.items():
            mean = (total / self.masses[variable]).astype(variable.dtype)
            unread = self._unread[variable]
            means[variable] = (
                mean if unread is None else jnp.where(unread, fallback[variable], mean)
            )
        return means

    def inner(self, x: Values, y: Values) -> Array:
        """The inner product of consensus values in the metric."""
        variables = self.graph.variables
        return _added(self.masses[v] * a * b for v, a, b in zip(variables, x, y, strict=True))

    def centred(self, c: Constraint, position: int, moment: Any) -> Array:
        """``Σ ω x'`` less ``Σ ω · offset``."""
        offset = self.offsets.get((c, position))
        return moment.first if offset is None else moment.first - moment.mass * offset


def _largest(weights: Sequence[float | Array]) -> float | Array:
    """Of several weights; a float if they are, which rules make use of while tracing."""
    return functools.reduce(
        lambda x, y: (
            max(x, y) if isinstance(x, float) and isinstance(y, float) else jnp.maximum(x, y)
        ),
        weights,
    )


def _added_data(view: View) -> list[Value]:
    """The floating-point data that a view reads."""
    made = {v for e in view.equations for v in e.outputs}
    made.update(base.value for base in view.bases)
    inputs = dict.fromkeys(v for e in view.equations for v in e.inputs)
    return [v for v in inputs if v not in made and jnp.issubdtype(v.dtype, jnp.floating)]


def _walled(graph: ConsensusGraph, data: Mapping[Value, Any]) -> dict[Value, Any]:
    """The data, those that views read without infinities: a mask of −∞ is a very low number.

    A reflection is a difference, and that of two infinities is none.
    """
    walled = dict(data)
    for value in dict.fromkeys(
        v for c in graph.constraints for _, o in c.reads for v in _added_data(o)
    ):
        x = jnp.asarray(walled[value])
        wall = float(jnp.finfo(x.dtype).max) / 16  # several of them add up to a number
        walled[value] = jnp.where(jnp.isinf(x), jnp.sign(x) * wall, x)
    return walled


def _may_hide(view: View, known: Mapping[Value, Any]) -> bool:
    """Whether a view may add something so large that nothing is left of what it reads."""
    most = 1e3  # the slope of a view is a difference, which rounds by this times an ulp
    return view.offset and any(
        v not in known or np.any(np.abs(known[v]) > most) for v in _added_data(view)
    )


class Space(abc.ABC):
    """What a solver iterates in: points, and projections onto groups of constraints.

    A group is a set of nodes (constraints and parameters). ``groups`` are the two colours, the
    outputs' first; in the product schedule all constraints, and none for consensus. ``cycle`` is
    every constraint by itself, from the outputs back.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        graph = problem.graph
        nodes = [*graph.parameters, *graph.constraints]
        self.groups: tuple[tuple[Any, ...], ...] = (graph.constraints, ())
        if not problem.product:
            self.groups = tuple(
                tuple(node for node in nodes if graph.colours[node] == side) for side in (0, 1)
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

    def _distances(self, distances: Mapping[Constraint, Array]) -> Array:
        constraints = self.problem.graph.constraints
        zero = jnp.zeros((), jnp.result_type(float))
        return jnp.stack([distances.get(c, zero).astype(zero.dtype) for c in constraints])


class CopyFree(Space):
    """One array per variable. Groups must be whole colours, so that consensus sees all readers."""

    def expand(self, values: Values) -> Values:
        """A point is its values."""
        return values

    def collapse(self, point: Values) -> Values:
        """A point is its values."""
        return point

    def inner(self, x: Values, y: Values) -> Array:
        """That of consensus values."""
        return self.problem.inner(x, y)

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """Constraints of the group move their outputs and, by their moments, their operands."""
        problem, variables = self.problem, self.problem.graph.variables
        values = dict(zip(variables, point, strict=True))
        moved = dict(values)
        moments: dict[tuple[Constraint, int], Array] = {}
        distances, outs = {}, {}
        for c in group:
            if isinstance(c, Variable):
                continue  # a parameter is at the mean of its copies already
            result = problem.project(c, problem.operands(c, values), problem.target(c, values))
            distances[c] = result.distance
            if c.out is not None:
                into = outs if problem.product else moved
                into[c.out] = result.out.astype(c.out.dtype)
            for position, _ in c.reads:
                moment = result.moments[position]
                moments[c, position] = problem.centred(c, position, moment)
        moved.update(problem.gather(moments, values, outs))
        return tuple(moved[v] for v in variables), self._distances(distances)

    def gaps(self, values: Values) -> Array:
        """The squared distance of every constraint from its graph at a consensus state."""
        problem = self.problem
        env = dict(zip(problem.graph.variables, values, strict=True))
        return self._distances(
            {
                c: problem.project(c, problem.operands(c, env), problem.target(c, env)).distance
                for c in problem.graph.constraints
            }
        )


class Copies(Space):
    """One array per edge, spread over its scalar equations. Any group of nodes will do."""

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.edges = [(c, position) for c in problem.graph.constraints for position, _ in c.reads]

    def expand(self, values: Values) -> Values:
        """Every edge sees the value of its variables."""
        env = dict(zip(self.problem.graph.variables, values, strict=True))
        return tuple(self.problem.look(c.operands[i], env) for c, i in self.edges)  # pyright: ignore

    def collapse(self, point: Values) -> Values:
        """The weighted mean of all copies of every variable."""
        means = self._means(dict(zip(self.edges, point, strict=True)), self.edges, {})
        start = self.problem.start
        return tuple(means.get(v, start[v]) for v in self.problem.graph.variables)

    def inner(self, x: Values, y: Values) -> Array:
        """The sum over all copies."""
        copies = self.problem.copies
        return _added(copies[c][i] * a * b for (c, i), a, b in zip(self.edges, x, y, strict=True))

    def _means(
        self,
        copies: Mapping[tuple[Constraint, int], Array],
        edges: Sequence[Any],
        outs: Mapping[Variable, Array],
    ) -> dict[Variable, Array]:
        problem = self.problem
        moments = {}
        for c, i in edges:
            copy, offset = copies[c, i], problem.offsets.get((c, i))
            mass = problem.copies[c][i]
            moments[c, i] = mass * (copy if offset is None else copy - offset)
        return problem.gather(moments, problem.start, outs)

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """Each node of the group projects the copies on the edges that it reads and produces."""
        copies = dict(zip(self.edges, point, strict=True))
        moved = dict(copies)
        produced = {node if isinstance(node, Variable) else node.out for node in group} - {None}
        outgoing = [
            (c, i)
            for c, i in self.edges
            if not produced.isdisjoint(c.operands[i].bases)  # pyright: ignore
        ]
        values = self._means(copies, outgoing, {})
        distances = {}
        for c in group:
            if isinstance(c, Variable):
                continue
            result = self._onto(c, copies, None if c.out is None else values[c.out], moved)
            distances[c] = result.distance
            if c.out is not None:
                values[c.out] = result.out.astype(c.out.dtype)
        for c, i in outgoing:
            view = c.operands[i]
            assert isinstance(view, View)
            moved[c, i] = self._write(view, moved[c, i], values, produced)
        point = tuple(moved[edge] for edge in self.edges)
        return point, self._distances(distances)

    def _onto(
        self,
        c: Constraint,
        copies: Mapping[tuple[Constraint, int], Array],
        target: Any,
        moved: dict[tuple[Constraint, int], Array],
    ) -> Projection:
        """Project onto one constraint; its operands' copies go into ``moved``."""
        problem = self.problem
        operands = [
            copies[c, i] if isinstance(o, View) else problem.data[o]
            for i, o in enumerate(c.operands)
        ]
        result = problem.project(c, operands, target)
        for i, view in c.reads:
            moment = result.moments[i]
            assert moment is not None
            moved[c, i] = (moment.first / moment.mass).astype(view.dtype)
        return result

    def _write(
        self, view: View, copy: Array, values: Mapping[Variable, Array], produced: set[Any]
    ) -> Array:
        """The copy, with what the produced variables say in their places."""
        arrays = [values[b] if b in produced else jnp.zeros(b.shape, b.dtype) for b in view.bases]
        written = view(self.problem.data, *arrays)
        if produced.issuperset(view.bases):
            return written
        flags = [jnp.full(b.shape, float(b in produced), b.dtype) for b in view.bases]
        zeros = [jnp.zeros(b.shape, b.dtype) for b in view.bases]
        data = self.problem.data
        return jnp.where(view(data, *flags) != view(data, *zeros), written, copy)


class ProductCopies(Copies):
    """The product space: constraints have copies of their own of all that they touch."""

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.produced = tuple(problem.outs)

    def expand(self, values: Values) -> Values:
        """Every edge sees the value of its variables, and so does what produces them."""
        env = dict(zip(self.problem.graph.variables, values, strict=True))
        return (*super().expand(values), *(env[v] for v in self.produced))

    def _split(self, point: Values) -> tuple[dict[tuple[Constraint, int], Array], dict]:
        count = len(self.edges)
        copies = dict(zip(self.edges, point[:count], strict=True))
        return copies, dict(zip(self.produced, point[count:], strict=True))

    def collapse(self, point: Values) -> Values:
        """The weighted mean of all copies of every variable."""
        copies, outs = self._split(point)
        means = self._means(copies, self.edges, outs)
        start = self.problem.start
        return tuple(means.get(v, start[v]) for v in self.problem.graph.variables)

    def inner(self, x: Values, y: Values) -> Array:
        """The sum over all copies, outputs' included."""
        count = len(self.edges)
        outs = zip(self.produced, x[count:], y[count:], strict=True)
        own = _added(self.problem.outs[v] * a * b for v, a, b in outs)
        return super().inner(x[:count], y[:count]) + own

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """Onto all constraints, or onto consensus."""
        if not group:
            return self.expand(self.collapse(point)), self._distances({})
        copies, outs = self._split(point)
        moved, distances = dict(copies), {}
        for c in group:
            result = self._onto(c, copies, None if c.out is None else outs[c.out], moved)
            distances[c] = result.distance
            if c.out is not None:
                outs[c.out] = result.out.astype(c.out.dtype)
        edges = (moved[edge] for edge in self.edges)
        return (*edges, *(outs[v] for v in self.produced)), self._distances(distances)


def _added(arrays: Iterable[Array]) -> Array:
    """The sum of all elements."""
    zero = jnp.zeros((), jnp.result_type(float))
    return functools.reduce(jnp.add, (jnp.sum(x).astype(zero.dtype) for x in arrays), zero)


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
