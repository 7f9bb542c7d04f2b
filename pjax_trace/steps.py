"""The steps of an update, and the gaps where they end."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.problem import Values
from pjax_trace.solver import Solver
from pjax_trace.space import Space
from pjax_trace.spaces import CopyFree

__all__ = ["Run", "run_steps"]


class Run(NamedTuple):
    """The steps that were made.

    Attributes:
        carry: where they ended.
        history: squared distances that constraints moved, by step; NaN if nobody asks.
        residuals: squared, by step; None where nobody asks.
        steps: how many there were.
        gaps: the squared gaps at the end; None where the steps do not tell them.
    """

    carry: Any
    history: Array
    residuals: Array | None
    steps: Array
    gaps: Array | None


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


def run_steps(
    solver: Solver, space: Space, carry: Any, steps: int, tol: float | None, recorded: bool = True
) -> Run:
    """All steps from a carry; with a tolerance, up to where the residual is within it.

    With a tolerance, distances need not be recorded. Whatever is computed for them alone, which is
    much of a step of a small problem, is then left out.
    """
    once = solver.once and isinstance(space, CopyFree)
    if tol is not None:
        return _until(solver, space, carry, steps, tol, once, recorded)
    taken = jnp.asarray(steps, jnp.int32)
    if once:
        body = _measurable(solver, space)
        carry, history = jax.lax.scan(body, carry, jnp.arange(steps + 1) == steps)
        return Run(carry, history[:-1], None, taken, history[-1])
    if steps == 1:
        carry, distances = solver.step(space, carry)
        return Run(carry, distances[None], None, taken, None)
    carry, history = jax.lax.scan(
        lambda carry, _: solver.step(space, carry), carry, None, length=steps
    )
    return Run(carry, history, None, taken, None)


def _until(
    solver: Solver, space: Space, carry: Any, steps: int, tol: float, once: bool, recorded: bool
) -> Run:
    """Steps until the residual is small; where a step can tell the gaps, one more that does."""
    body = _measurable(solver, space)

    def more(k: Array, last: Array) -> Array:
        return (k < steps) & ((last > tol**2) | (k == 0)) & jnp.isfinite(last)

    def unfinished(loop: Any) -> Array:
        _, _, _, k, last, measured = loop
        return ~measured if once else more(k, last)

    def turn(loop: Any) -> Any:
        start, history, residuals, k, last, measured = loop
        measure = ~more(k, last) if once else jnp.zeros((), bool)
        end, distances = body(start, measure) if once else solver.step(space, start)
        residual = solver.residual(space, start, end, distances).astype(last.dtype)
        # In bounds, and said to be: of a small problem, checks would be half of a step.
        if recorded or once:
            history = jax.lax.dynamic_update_index_in_dim(history, distances.astype(wide), k, 0)
        residuals = jax.lax.dynamic_update_index_in_dim(residuals, residual, k, 0)
        last = jnp.where(measure, last, residual)
        return end, history, residuals, jnp.where(measure, k, k + 1), last, measure

    wide = jnp.result_type(float)
    size = steps + 1 if once else steps
    shape = size if recorded or once else 1, len(space.problem.graph.hard)
    history = jnp.full(shape, 0 if recorded or once else jnp.nan, wide)
    start = jnp.zeros(size, wide), jnp.zeros((), jnp.int32), jnp.zeros((), wide)
    loop = jax.lax.while_loop(unfinished, turn, (carry, history, *start, jnp.zeros((), bool)))
    carry, history, residuals, taken, _, _ = loop
    return Run(carry, history[:steps], residuals[:steps], taken, history[taken] if once else None)


def _measurable(solver: Solver, space: Space) -> Any:
    """A step; or, as its second argument says, no step but the gaps in the place of distances."""

    def body(carry: Any, measuring: Array) -> tuple[Any, Array]:
        here = _Measuring(space, solver.values(space, carry), measuring)
        moved, distances = solver.step(here, carry)
        return _chosen(measuring, carry, moved), distances

    return body


def _chosen(first: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(first, x, y), one, other)
