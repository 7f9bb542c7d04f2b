"""The steps of an update, and the gaps where they end."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.problem import Values
from pjax_trace.solver import Solver
from pjax_trace.spaces import CopyFree, Space

__all__ = ["Run", "run_steps"]

Run = tuple[Any, Array, Array, Array | None]


class _Measuring(CopyFree):
    """A space in which all projections start from the same values while something is measured.

    The step of a solver that projects once onto every constraint then returns the gaps at these
    values. What measures is the code that steps, so that it is traced and compiled once.
    """

    def __init__(self, space: Space, values: Values, measuring: Array):
        super().__init__(space.problem)
        self._values, self._measuring = values, measuring

    def project(self, point: Values, group: Sequence[Any]) -> tuple[Values, Array]:
        """The projection of the point, or of the values."""
        return super().project(_chosen(self._measuring, self._values, point), group)


def run_steps(solver: Solver, space: Space, steps: int, tol: float | None) -> Run:
    """All steps, up to where the gap is within a tolerance, if there is one.

    Returns:
        The carry at the end, squared distances by step, the number of steps, and the squared gaps
        at the end (None where the steps do not tell them).
    """
    once = solver.once and isinstance(space, CopyFree)
    carry = solver.init(space, space.original.values)
    if tol is not None:
        return _until(solver, space, carry, steps, tol, once)
    taken = jnp.asarray(steps, jnp.int32)
    if once:
        body = _measurable(solver, space)
        carry, history = jax.lax.scan(body, carry, jnp.arange(steps + 1) == steps)
        return carry, history[:-1], taken, history[-1]
    if steps == 1:
        carry, distances = solver.step(space, carry)
        return carry, distances[None], taken, None
    carry, history = jax.lax.scan(
        lambda carry, _: solver.step(space, carry), carry, None, length=steps
    )
    return carry, history, taken, None


def _until(solver: Solver, space: Space, carry: Any, steps: int, tol: float, once: bool) -> Run:
    """Steps until the gap is small. After every step, a turn of the loop finds the gaps."""
    hard = space.problem.graph.hard
    body = _measurable(solver, space)

    def gaps_at(carry: Any) -> Array:
        return space.original.gaps(solver.values(space, carry))

    def unfinished(loop: Any) -> Array:
        carry, history, k, gaps, measure = loop
        last = history[jnp.maximum(k - 1, 0)]
        gap = jnp.sqrt(jnp.sum(gaps if once else gaps_at(carry), where=hard))
        more = (k < steps) & ((gap > tol) | (k == 0)) & jnp.all(jnp.isfinite(last))
        return measure | more

    def turn(loop: Any) -> Any:
        carry, history, k, gaps, measure = loop
        if not once:
            carry, distances = solver.step(space, carry)
            return carry, history.at[k].set(distances), k + 1, gaps, measure
        carry, distances = body(carry, measure)
        history = history.at[jnp.where(measure, steps, k)].set(distances, mode="drop")
        gaps = jnp.where(measure, distances, gaps)
        return carry, history, jnp.where(measure, k, k + 1), gaps, ~measure

    history = jnp.zeros((steps, len(hard)), jnp.result_type(float))
    start = jnp.zeros((), jnp.int32), jnp.zeros_like(history[0]), jnp.zeros((), bool)
    carry, history, taken, gaps, _ = jax.lax.while_loop(unfinished, turn, (carry, history, *start))
    return carry, history, taken, gaps if once else None


def _measurable(solver: Solver, space: Space) -> Any:
    """A step; or, as its second argument says, no step but the gaps in the place of distances."""

    def body(carry: Any, measuring: Array) -> tuple[Any, Array]:
        here = _Measuring(space, solver.values(space, carry), measuring)
        moved, distances = solver.step(here, carry)
        return _chosen(measuring, carry, moved), distances

    return body


def _chosen(first: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(first, x, y), one, other)
