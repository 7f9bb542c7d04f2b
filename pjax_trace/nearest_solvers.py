"""Solvers that find the point of convex sets that is nearest to where they start."""

from typing import Any, ClassVar

import jax.numpy as jnp
from equinox.internal import ω
from jaxtyping import Array

from pjax_trace.solver import Solver
from pjax_trace.space import Space

__all__ = ["Dykstra", "Halpern"]


class Dykstra(Solver):
    """Dykstra's algorithm: cyclic projections, each of which undoes what it did one cycle before.

    It converges to the nearest point of convex sets. On sets that are single equations of an affine
    operation it is Hildreth's algorithm, which remembers a number for each.

    References:
        J. P. Boyle, R. L. Dykstra, *A method for finding projections onto the intersection of
        convex sets in Hilbert spaces* (1986); Bauschke and Combettes, *Convex analysis and monotone
        operator theory in Hilbert spaces*, theorem 30.7.
    """

    schedules: ClassVar[tuple[str, ...]] = ("cyclic",)

    def init(self, space: Space, values: Any) -> Any:
        """The point, and no corrections."""
        point = space.expand(values)
        return point, tuple(space.correction(point, group) for group in space.cycle)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration."""
        point, corrections = carry
        kept, total = [], 0.0
        for group, correction in zip(space.cycle, corrections, strict=True):
            point, correction, distances = space.corrected(point, group, correction)
            kept.append(correction)
            total = total + distances
        return (point, tuple(kept)), total  # pyright: ignore[reportReturnType]

    def values(self, space: Space, carry: Any) -> Any:
        """The point."""
        return space.collapse(carry[0])


class Halpern(Solver):
    """Halpern's iteration on cyclic projections T, ``u ← u₀/(k + 2) + (1 − 1/(k + 2)) T u``.

    It converges to the nearest point of convex sets, and needs no memory but the start.

    References:
        B. Halpern, *Fixed points of nonexpanding maps* (1967); Bauschke and Combettes,
        theorem 30.1.
    """

    schedules: ClassVar[tuple[str, ...]] = ("cyclic",)

    def init(self, space: Space, values: Any) -> Any:
        """The point, where it started, and the number of steps."""
        point = space.expand(values)
        return point, point, jnp.zeros((), jnp.float32)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration."""
        point, start, k = carry
        total = 0.0
        for group in space.cycle:
            point, distances = space.project(point, group)
            total = total + distances
        back = 1 / (k + 2)
        point = (point**ω + back * (start**ω - point**ω)).ω
        return (point, start, k + 1), total  # pyright: ignore[reportReturnType]

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """How far the point moved."""
        step = (after[0] ** ω - before[0] ** ω).ω
        return space.inner(step, step)

    def values(self, space: Space, carry: Any) -> Any:
        """The point, after one more cycle."""
        point = carry[0]
        for group in space.cycle:
            point, _ = space.project(point, group)
        return space.collapse(point)
