"""Granularity: what is one constraint, a row of an operation or the whole block of its rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array

from pjax_trace.block import project_jointly
from pjax_trace.errors import InputError
from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.metric import matching
from pjax_trace.rule import Arrays, Params, Projection, Rule, Weights, projection_of

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
        for name in ("iterations", "rounds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"Block: {name} must be a positive integer, not {value!r}")


Granularity = Literal["row", "block"] | Block


class BlockRule(Rule):
    """A smooth rule whose rows share operands, all rows at once; see `Block`."""

    granularity = "block"
    wrapper = "block"

    def __init__(self, inner: Rule, block: Block):
        self.inner, self.options = inner, block
        self.family = inner.family  # pyright: ignore[reportAttributeAccessIssue]
        rounds = f"{block.rounds} round" + "s" * (block.rounds > 1)
        self.exactness = f"linearised, {rounds}"  # pyright: ignore[reportAttributeAccessIssue]

    def apply(self, params: Params, *operands: Array) -> Array:
        return self.inner.apply(params, *operands)

    def masses(self, params: Params, weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Those of the rows: a block has one copy, which weighs what theirs do."""
        return self.inner.masses(params, weights)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        """The nearest point of the linearised graph, once or repeatedly."""
        masses = self.masses(params, weights.operands)
        variable = [mass is not None for mass in masses]

        def function(*own: Array) -> Array:
            moving = iter(own)
            xs = (next(moving) if v else x for x, v in zip(operands, variable, strict=True))
            return self.apply(params, *xs)

        moved, moved_out = project_jointly(
            function,
            [x for x, v in zip(operands, variable, strict=True) if v],
            out,
            [mass for mass in masses if mass is not None],
            weights.out,
            iterations=self.options.iterations,
            rounds=self.options.rounds,
            tol=self.options.tol,
        )
        found = iter(moved)
        ends = [next(found) if v else x for x, v in zip(operands, variable, strict=True)]
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
        if (block := _block_of(one)) is not None and c.rule.smooth
    }
    return graph.replaced(replaced)
