"""What solvers iterate in: points of a problem, and projections onto groups of its constraints.

The lowerings are in `pjax_trace.spaces` and `pjax_trace.copies`.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from equinox.internal import ω
from jaxtyping import Array

from pjax_trace.graph import Constraint
from pjax_trace.problem import Problem, Values

__all__ = ["Space"]


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
