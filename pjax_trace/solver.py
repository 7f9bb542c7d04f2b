"""What a solver is: the interface of all iterations, classical ones and sweeps."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.acceleration import Acceleration
from pjax_trace.graph import ConsensusGraph
from pjax_trace.space import Space

__all__ = ["Ending", "Solver"]


class Ending(NamedTuple):
    """Where the steps of an update ended.

    Attributes:
        parameters: their values.
        gaps: the squared distance of every constraint that has one, 0 for others.
    """

    parameters: Sequence[Array]
    gaps: Float[Array, "constraints"]


class Solver(eqx.Module):
    """The interface of a solver. All state is in the carry, a pytree.

    Attributes:
        needs_copies: whether the iterates leave the set in which copies agree.
        default_steps: how many steps an update makes if nobody says.
        schedules: those that it can run on; the first one unless somebody says.
        lifts: whether scans are lifted over time, so that all of their steps are projected at
            once; else each scan is one constraint.
        lacks: what it cannot be asked for, and why: a ``"granularity"``, ``"copies"``, a ``"tol"``,
            a ``"metric"`` with weights per parameter, of constraints, or relative to sizes.
        gaps: whether every constraint has a gap; else only sets have.
        once: whether a step projects onto each constraint once, and the distances that it returns
            are those of these projections. Where all of them start from the same values, these are
            the gaps, so that no other code is needed to find them.
    """

    needs_copies: ClassVar[bool] = True
    schedules: ClassVar[tuple[str, ...]] = ("parallel", "product")
    default_steps: ClassVar[int] = 50
    lifts: ClassVar[bool] = True
    lacks: ClassVar[Mapping[str, str]] = {}
    gaps: ClassVar[bool] = True
    once: ClassVar[bool] = False

    @property
    def default_acceleration(self) -> tuple[Acceleration, ...]:
        """What happens to parameters between updates if nobody says."""
        return ()

    def init(self, space: Space, values: Any) -> Any:
        """The carry that starts from consensus values."""
        return space.expand(values)

    @abc.abstractmethod
    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration: the next carry, and the squared distances moved, per constraint."""

    @abc.abstractmethod
    def values(self, space: Space, carry: Any) -> Any:
        """The shadow of the iterate, as consensus values."""

    def inner(self, space: Space, x: Any, y: Any) -> Array:
        """The inner product of two carries in the metric."""
        return space.inner(x, y)

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """How far from a solution a step found itself, squared, from what it has computed anyway.

        By default how far it moved for constraints that are no losses, all together.
        """
        return jnp.sum(moved, where=space.problem.graph.hard)

    def ending(self, space: Space, carry: Any) -> Ending:
        """What an update reports of the last carry."""
        values, problem = self.values(space, carry), space.original
        return Ending(values[: len(problem.graph.parameters)], problem.gaps(values))

    def settled(self, space: Space, parameters: Sequence[Array]) -> Sequence[Array]:
        """What users are given, from what accelerations make of where an update ended."""
        return parameters

    def keeps_latent(self, graph: ConsensusGraph) -> bool:
        """Whether `settled` loses something, so that the next update must start from before it."""
        return False
