"""One block sweep: targets go back from the outputs, and the parameters of every layer meet them.

A forward pass is a point of all constraints but the losses. These say where their operands should
be instead. From there back, every constraint tells its operands what its output was asked for
(`Rule.hand_over`), and its parameters are projected onto the block of all its rows, all else held
(`Rule.block`). That is reverse mode with targets in the place of cotangents. Its metric belongs to
each layer; there is no product space in which all of it is one projection.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.errors import TraceError, check_positive
from pjax_trace.graph import ConsensusGraph, Constraint, Variable, View
from pjax_trace.registry import Block, Weights
from pjax_trace.trace import Value

__all__ = ["Sweep"]


class Sweep(eqx.Module):
    """Block projections from the outputs back to the inputs, once for every forward pass.

    The parameters of a layer, bias included, are moved by the regularised least-squares solution
    ``dW = (XᵀX + ω I)⁻¹ Xᵀ (s R)`` for what its output was asked to move by, R. ω is ``damping``
    times the mean square of a row of X. A parameter that more rows read than there are of the loss
    has most of them ask for nothing; the factor s is by how many times there are more.

    What is handed to the layers below is the adjoint of R for sums of terms. For every other rule
    it is the scaled move of an exact projection, which is near the adjoint where the rule is
    smooth, and needs no derivative where it is not.

    Args:
        strength: multiplies the λ of every loss.
        damping: of the least-squares solution; larger moves less.
        trust: how far a layer's parameters move at most, in relation to their size (root mean
            square, or √(2 / fan-in) if that is larger).
        reach: how far targets are from the forward pass, in relation to its size, when they are
            handed through constraints that are no sums.

    Raises:
        InputError: if an argument is not positive.
    """

    strength: float = 5.0
    damping: float = 10.0
    trust: float = 3e-3
    reach: float = 5e-3
    default_steps: ClassVar[int] = 1
    needs_copies: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Arguments are positive."""
        for name in ("strength", "damping", "trust", "reach"):
            check_positive(f"Sweep: {name}", getattr(self, name))

    def moves(
        self,
        graph: ConsensusGraph,
        data: Mapping[Value, Any],
        values: Mapping[Variable, Array],
        metric: Mapping[Variable, float],
    ) -> tuple[dict[Variable, Array], dict[Constraint, Array]]:
        """What every parameter moves by, and the squared distances moved, per constraint.

        Of a loss or a set it is that of its operands, of other constraints that of their
        parameters. What nothing asks to move is left out.

        Args:
            graph: of the function.
            data: all values of the forward pass, and the scales of losses.
            values: of all variables, from the same pass.
            metric: the weights of variables. Those of parameters multiply ω, those of what losses
                read divide their λ; in between, a sweep has a metric of its own.
        """
        if graph.program.feedback:
            raise TraceError(
                "Sweep does not go through a scan whose carry depends on parameters; use another "
                "solver, such as pjax_trace.AlternatingProjections"
            )
        point = _Point(graph, data, values)
        residuals: dict[Variable, Array] = {}
        moves: dict[Variable, Array] = {}
        distances: dict[Constraint, Array] = {}

        def ask(view: View, residual: Array) -> None:
            for base, part in zip(view.bases, point.pull(view, residual), strict=True):
                residuals[base] = residuals[base] + part if base in residuals else part

        rows = max(_rows(c) for c in graph.constraints if c.out is None)
        for c in reversed(graph.constraints):
            operands = point.operands(c)
            if c.out is None:
                answers = self._output(c, operands, metric)
                distances[c] = _squares(answer for answer in answers if answer is not None)
            elif c.out in residuals:
                answers = c.rule.hand_over(
                    c.params, operands, values[c.out], residuals[c.out], c.variable, self.reach
                )
            else:
                continue  # nothing was asked of it
            own = {i: view for i, view in c.reads if all(base.parameter for base in view.bases)}
            for i, view in c.reads:
                if i not in own:
                    ask(view, answers[i])
            if own:
                names = {i: point.names(view) for i, view in own.items()}
                asked = answers[0] if c.out is None else residuals[c.out]
                block = c.rule.block(c.params, operands, asked, answers, names)
                steps = self._solve(block, own, operands, point, metric, rows)
                distances.setdefault(c, _squares(move for _, move in steps))
                for variable, move in steps:
                    moves[variable] = moves[variable] + move if variable in moves else move
        return moves, distances

    def _output(
        self, c: Constraint, operands: Sequence[Array], metric: Mapping[Variable, float]
    ) -> list[Any]:
        """What a loss or a set moves its operands by."""
        weights = [
            max(metric[base] for base in o.bases) / self.strength if isinstance(o, View) else None
            for o in c.operands
        ]
        moments = c.rule.project(c.params, operands, None, Weights(tuple(weights), None)).moments
        return [
            None if m is None else m.first / m.mass - x
            for m, x in zip(moments, operands, strict=True)
        ]

    def _solve(
        self,
        block: Block,
        own: Mapping[int, View],
        operands: Sequence[Array],
        point: "_Point",
        metric: Mapping[Variable, float],
        rows: int,
    ) -> list[tuple[Variable, Array]]:
        """The parameters of one constraint, projected."""
        moves: list[tuple[Variable, Array]] = []
        weights = {i: max(metric[base] for base in view.bases) for i, view in own.items()}
        if block.target is not None:
            roots = [math.sqrt(weights[k.position]) for k in block.columns]
            scaled = [k.matrix / root for k, root in zip(block.columns, roots, strict=True)]
            matrix = jnp.concatenate(scaled, 1)
            unknown = _least_squares(matrix, matrix.shape[0] / rows * block.target, self.damping)
            parts = jnp.split(unknown, np.cumsum([x.shape[1] for x in scaled])[:-1])
            parts = [part / root for part, root in zip(parts, roots, strict=True)]
            sized = [operands[k.position] for k in block.columns if not k.constant]
            factor = self._trusted(sized, matrix.shape[1], parts, block.pace)
            for k, part in zip(block.columns, parts, strict=True):
                moves += point.moves(own[k.position], k.restore(factor * part))
        for single in block.singles:
            view, weight = own[single.position], weights[single.position]
            gradient, square, readers = (
                dict(zip(view.bases, point.pull(view, x), strict=True))
                for x in (single.gradient, single.square, single.readers)
            )
            for base in view.bases:
                count = jnp.maximum(jnp.mean(readers[base]), 1)
                ridge = weight * self.damping * jnp.mean(square[base]) / count
                total = square[base] + ridge
                step = count / rows * gradient[base] / jnp.where(total > 0, total, 1)
                factor = self._trusted([point.values[base]], single.fan, [step], block.pace)
                moves.append((base, factor * step))
        return moves

    def _trusted(
        self, sized: Sequence[Array], fan: int, steps: Sequence[Array], pace: float
    ) -> Array:
        """By what to shorten steps."""
        floor = math.sqrt(2 / max(1, fan))
        limit = self.trust * pace * jnp.maximum(_rms(sized), floor)
        return jnp.minimum(1.0, limit / jnp.maximum(_rms(steps), jnp.finfo(limit.dtype).tiny))


class _Point(NamedTuple):
    """A forward pass, as constraints see it."""

    graph: ConsensusGraph
    data: Mapping[Value, Any]
    values: Mapping[Variable, Array]

    def operands(self, c: Constraint) -> list[Array]:
        """What a constraint reads."""
        return [
            o(self.data, *(self.values[base] for base in o.bases))
            if isinstance(o, View)
            else self.data[o]
            for o in c.operands
        ]

    def pull(self, view: View, residual: Array) -> tuple[Array, ...]:
        """Back through a view to its bases."""
        return (residual,) if view.identity else view.pull(self.data, residual.astype(view.dtype))

    def moves(self, view: View, step: Array) -> list[tuple[Variable, Array]]:
        """An operand's step as one of its bases."""
        return list(zip(view.bases, self.pull(view, step), strict=True))

    def names(self, view: View) -> Any:
        """The names of the parameter's elements that a view reads, if it only moves them."""
        base = view.bases[0]
        if len(view.bases) > 1 or any(rule.scales for rule in view.rules):
            return None
        numbers = np.arange(1, 1 + math.prod(base.shape), dtype=np.int32).reshape(base.shape)
        return view.elements(self.graph.program.known, {base: numbers})


def _rows(c: Constraint) -> int:
    """How many rows an output constraint has: all that is not along its last axis."""
    shape = c.reads[0][1].shape
    return math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)


def _squares(arrays: Iterable[Array]) -> Array:
    """The sum of the squares of all elements."""
    return jnp.asarray(sum(jnp.sum(jnp.square(x)) for x in arrays))


def _rms(arrays: Sequence[Array]) -> Float[Array, ""]:
    """The root of the mean square of all elements."""
    return jnp.sqrt(_squares(arrays) / max(1, sum(x.size for x in arrays)))


def _least_squares(
    matrix: Float[Array, "rows columns"], target: Float[Array, "rows features"], damping: float
) -> Float[Array, "columns features"]:
    """``(XᵀX + ω I)⁻¹ Xᵀ T`` with ``ω = damping · tr(XᵀX) / rows``, from its smaller side."""
    rows, columns = matrix.shape
    ridge = damping * jnp.sum(jnp.square(matrix)) / rows
    ridge = jnp.where(ridge > 0, ridge, 1)
    wide = columns > rows
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    right = target if wide else matrix.T @ target
    gram = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    solution = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram), right)
    return matrix.T @ solution if wide else solution
