"""Granularity: what is one constraint, a row of an operation or the whole block of its rows."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.errors import InputError
from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.metric import matching
from pjax_trace.registry import Projection, Rule, Weights, of_variables, projection_of

__all__ = ["Block", "BlockRule", "Granularity", "coarsen"]


class Block(eqx.Module):
    """Whole applications of sums and products as one constraint each.

    All rows are projected jointly, with one copy of every operand between them, which weighs as
    much as the rows' copies together. With J the derivative at the point ``(X₀, S₀)``, it moves to

    ``dX = Ω⁻¹ Jᵀ Y``, ``dS = −Ω_s⁻¹ Y``, where ``(Ω_s⁻¹ + J Ω⁻¹ Jᵀ) Y = S₀ − f(X₀)``

    which is the nearest point of the linearised graph; further rounds linearise where the last one
    ended, with the start kept, and tend to a nearest point of the graph itself. The equations are
    solved by conjugate gradients, so nothing larger than operands and outputs is made.

    Args:
        iterations: of conjugate gradients, at most.
        rounds: of linearisation. Graphs that are linear in the variables need one.
        tol: conjugate gradients stop once the residual is smaller than the start's by this factor.

    Raises:
        InputError: if the numbers are not positive.
    """

    iterations: int = 8
    rounds: int = 1
    tol: float = 1e-6

    def __check_init__(self) -> None:
        """There is something to do."""
        for name in ("iterations", "rounds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"Block: {name} must be a positive integer, not {value!r}")


Granularity = Literal["row", "block"] | Block


class BlockRule(Rule):
    """A smooth rule whose rows share operands, all rows at once; see `Block`."""

    granularity = "block"

    def __init__(self, inner: Rule, block: Block):
        self.inner, self.options = inner, block
        self.family = inner.family  # pyright: ignore[reportAttributeAccessIssue]
        rounds = f"{block.rounds} round" + "s" * (block.rounds > 1)
        self.exactness = f"linearised, {rounds}"  # pyright: ignore[reportAttributeAccessIssue]

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """That of the rows."""
        return self.inner.apply(params, *operands)

    def masses(self, params: dict[str, Any], weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Those of the rows: a block has one copy, which weighs what theirs do."""
        return self.inner.masses(params, weights)

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """The nearest point of the linearised graph, once or repeatedly."""
        masses = self.masses(params, weights.operands)
        variable = [mass is not None for mass in masses]
        function = of_variables(functools.partial(self.apply, params), operands, variable)
        start = [x for x, v in zip(operands, variable, strict=True) if v]
        heavy = [mass for mass in masses if mass is not None]
        moved, multiplier = start, jnp.zeros_like(out)
        for _ in range(self.options.rounds):
            value, push = jax.linearize(function, *moved)
            transpose = jax.linear_transpose(push, *moved)

            def steps(y: Array, transpose: Any = transpose) -> list[Array]:
                return [x / w for x, w in zip(transpose(y), heavy, strict=True)]

            def operator(y: Array, push: Any = push, steps: Any = steps) -> Array:
                return y / weights.out + push(*steps(y))

            back = push(*(s - x for s, x in zip(start, moved, strict=True)))
            multiplier, _ = jax.scipy.sparse.linalg.cg(
                operator,
                out - value - back,
                multiplier,
                tol=self.options.tol,
                maxiter=self.options.iterations,
            )
            moved = [s + d for s, d in zip(start, steps(multiplier), strict=True)]
        found = iter(moved)
        ends = [next(found) if v else x for x, v in zip(operands, variable, strict=True)]
        moved_out = out - multiplier / weights.out
        return projection_of(operands, out, Weights(masses, weights.out), ends, moved_out)


def _block_of(choice: Any) -> Block | None:
    """What a granularity makes of rows that can be a block."""
    if isinstance(choice, Block):
        return choice
    if choice not in ("row", "block"):
        raise InputError(
            f"granularity must be 'row', 'block', a pjax_trace.Block, or a mapping of names of "
            f"constraints to those, not {choice!r}"
        )
    return Block() if choice == "block" else None


def coarsen(
    graph: ConsensusGraph, choice: Granularity | Mapping[str, Granularity]
) -> ConsensusGraph:
    """The graph in which constraints have a granularity: one for all, or by their names.

    Raises:
        InputError: for what is no granularity, and for names that no constraint has.
    """
    chosen: dict[Constraint, Any] = {}
    if isinstance(choice, Mapping):
        for path, one in choice.items():
            found = matching("granularity", path, graph.constraints, "constraint")
            chosen.update(dict.fromkeys(found, one))
    else:
        chosen = dict.fromkeys(graph.constraints, choice)
    replaced: dict[Any, Constraint] = {
        c: dataclasses.replace(c, rule=BlockRule(c.rule, block))
        for c, one in chosen.items()
        if (block := _block_of(one)) is not None and c.rule.blocks
    }
    return graph.replaced(replaced)
