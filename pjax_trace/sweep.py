"""One block sweep: targets go back from the outputs, and the parameters of every layer meet them.

A forward pass is a point of all constraints but the losses. These say where their operands should
be instead. From there back, every constraint hands what its output was asked for to its operands,
and all that is asked of a parameter is one least-squares problem; see `pjax_trace.systems`. That is
reverse mode with targets in the place of cotangents. Its metric belongs to each layer; there is no
product space in which all of it is one projection.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.acceleration import Acceleration, Averaging, Momentum
from pjax_trace.backward import ask, elements, go_back
from pjax_trace.errors import InputError, check_positive
from pjax_trace.feasible import onto_sets, parameter_sets
from pjax_trace.graph import ConsensusGraph, Constraint, Loss, Membership
from pjax_trace.index import Index
from pjax_trace.linear import Implicit
from pjax_trace.outputs import Answer, answer, penalise, relative_scales, steepness, wide
from pjax_trace.problem import Edge, Problem
from pjax_trace.ridge import LeastSquares, Ridge, solve_ridges
from pjax_trace.rule import Moment
from pjax_trace.solver import Ending, Solver
from pjax_trace.space import Space
from pjax_trace.sums import column_sums, inner, squared
from pjax_trace.systems import Element, Named, System, systems
from pjax_trace.trust import Move, Step, trusted
from pjax_trace.view import Variable

__all__ = ["Sweep"]

_ENOUGH_ROWS = 256  # of losses; with fewer, share and decay are smaller


class Sweep(Solver):
    """Block projections from the outputs back to the inputs, once for every forward pass.

    The parameters of a layer, bias included, are moved by the regularised least-squares solution
    ``dW = (XᵀX + ω I)⁻¹ Xᵀ (s R) P`` for what its output was asked to move by, R. ω is ``damping``
    times the mean square of a row of X. P is about ``(RᵀR + ω I)^(-1/2)``, with the ω of R: the
    outputs are measured in a metric in which what is asked of them counts alike, however many
    features it is asked of. All constraints that read a parameter are rows of one such problem. A
    parameter that more rows read than there are of the losses has most of them ask for nothing; the
    factor s is by how many times there are more.

    What is handed to the layers below is the adjoint of R for everything that has a derivative.
    What is discrete says itself which of its elements are worth a step to the next piece of their
    graph: a clipped straight-through step, which crosses only where that pays.

    Sets on parameters hold when an update returns: one set exactly, several to rounding. Where a
    set is not known to be convex, moves act on a latent point beside the parameter, which is in the
    state, and the parameter is its projection.

    The weight of a parameter in the metric divides how far it is trusted to go, by path: twice the
    weight, half the step.

    Args:
        strength: multiplies the λ of every loss.
        damping: of the least-squares solution, and of the metric of the outputs; larger moves less.
        rank: of the approximation of XᵀX that is solved with where the damping is above its mean
            eigenvalue and neither side of X is small, see `pjax_trace.ridge`; elsewhere it is
            estimated from a sample if there are many rows. None to solve exactly everywhere, from
            all rows: an update of a GRU or a transformer took an eighth longer and learned no
            better, one of a CNN had twice the operations and gained up to a point.
        trust: how far the parameters of every feature of a layer move, in relation to the size of
            the layer's (root mean square, or √(2 / fan-in) if that is larger); twice as far in
            convolutions.
        share: all layers together may promise this share of what the outputs are asked to move by,
            and not more: all moves are shortened such that ``⟨R, J dθ⟩ ≤ share ‖R‖²``, to first
            order. The more layers there are, and the less is left to learn, the shorter they get.
            Below 256 rows of the losses it goes with the root of their number, as what few rows
            ask for is less what others do. None for no such limit.
        decay: of weights, where losses ask for less than layers would promise: with f of their
            moves left by ``share``, what is multiplied with in sums also shrinks, by
            ``decay (1 - f)`` of what its layer moves by in relation to its size. Biases, scales,
            looked-up embeddings, and all else that is solved for element by element, such as
            layers that a scan runs over, do not. Below 256 rows of the losses it goes with their
            number. Deep networks that answer all of their data go on to smaller weights that do
            so too, and answer others better. None for none.
        reach: how far from the next piece of its graph an element of a discrete operation may be
            to be moved there, in relation to the size of the operand, if twice as much is asked of
            it as of others.
        per_unit: whether every feature of a layer, with its weights, is moved by what ``trust``
            allows, no more and no less: what is asked of it then has a direction, but no size. If
            not, a layer is shortened as a whole where it would move farther.
        whitening: the rounds of the iteration for P. Each block of 128 features has a P of its
            own. None for the unit matrix.

    Raises:
        InputError: if an argument is not positive.

    Example:
        A layer below signs, which have no derivative:

        >>> import jax, jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> x, w = jax.random.normal(keys[0], (64, 4)), jax.random.normal(keys[1], (4, 16))
        >>> v, y = jax.random.normal(keys[2], (16, 1)), x[:, :1] * x[:, 1:2]
        >>> def fit(w, x, y):
        ...     return pjax.losses.squared_error(jnp.sign(x @ w) @ v, y)
        >>> train = pjax.project(fit, solver=pjax.Sweep(trust=0.01))
        >>> before, state = fit(w, x, y), train.init(w)
        >>> for _ in range(100):
        ...     w, state, info = train.update(w, state, x, y)
        >>> bool(fit(train.averaged(w, state), x, y) < 0.5 * before)
        True
    """

    strength: float = 5.0
    damping: float = 3.0
    rank: int | None = 16
    trust: float = 5e-3
    share: float | None = 0.4
    decay: float | None = 0.1
    reach: float = 0.5
    per_unit: bool = True
    whitening: int | None = 3
    needs_copies: ClassVar[bool] = False
    schedules: ClassVar[tuple[str, ...]] = ("sweep",)
    default_steps: ClassVar[int] = 1
    lifts: ClassVar[bool] = False
    lacks: ClassVar[Mapping[str, str]] = {
        "granularity": "has its own blocks, so no granularity",
        "copies": "has no copies and no gap, so no copies and no tol",
        "tol": "has no copies and no gap, so no copies and no tol",
        "metric": "goes by rows and by sizes itself and has no copies, so no relative weights, and "
        "none per parameter or of constraints, in its metric",
    }
    gaps: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Arguments are positive."""
        for name in ("strength", "damping", "trust", "reach"):
            check_positive(f"Sweep: {name}", getattr(self, name))
        for name in ("share", "decay", "whitening"):
            if getattr(self, name) is not None:
                check_positive(f"Sweep: {name}", getattr(self, name))
        if not isinstance(self.whitening, int | None):
            raise InputError(
                f"Sweep: whitening is a number of rounds, a positive integer or None, "
                f"not {self.whitening!r}"
            )

    @property
    def default_acceleration(self) -> tuple[Acceleration, ...]:
        """Momentum from batch to batch, and an average."""
        return Momentum(), Averaging()

    def init(self, space: Space, values: Any) -> Any:
        """The parameters, and how far sets are from what is computed, which is not known yet."""
        graph = space.problem.graph
        asked = jnp.zeros(len(graph.constraints), jnp.result_type(float))
        return tuple(values[: len(graph.parameters)]), asked

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """A forward pass, and the way back."""
        latent, _ = carry
        graph = space.problem.graph
        problem = space.problem.restarted(onto_sets(space.problem, latent, convex=False))
        moves, distances = self._moves(problem)
        end = tuple(
            x + moves[p].astype(x.dtype) if p in moves else x
            for p, x in zip(graph.parameters, latent, strict=True)
        )
        end = tuple(onto_sets(problem, end, convex=True))
        asked = problem.stacked({c: d for c, d in distances.items() if isinstance(c, Membership)})
        return (end, asked), problem.stacked(distances)

    def values(self, space: Space, carry: Any) -> Any:
        """The parameters, and what a forward pass makes of them."""
        return space.problem.restarted(self.settled(space, carry[0])).values

    def ending(self, space: Space, carry: Any) -> Ending:
        """The parameters, and how far the sets' operands are from them.

        Sets of what is computed are those of the forward pass of the last step.
        """
        end, asked = carry
        problem = space.problem
        own = parameter_sets(problem.graph)
        env = dict(zip(problem.graph.parameters, self.settled(space, end), strict=True))
        left = {c: problem.project_alone(c, env).distance for c in own}
        inside = np.array([c in left for c in problem.graph.constraints], bool)
        gaps = jnp.where(inside, problem.stacked(left), asked)
        return Ending(end, gaps)

    def settled(self, space: Space, parameters: Sequence[Array]) -> Sequence[Array]:
        """The projections of parameters onto their sets."""
        return onto_sets(space.problem, parameters)

    def keeps_latent(self, graph: ConsensusGraph) -> bool:
        """Whether a set of parameters is not known to be convex."""
        return not all(c.rule.convex for c in parameter_sets(graph))

    def _moves(self, problem: Problem) -> tuple[dict[Variable, Array], dict[Constraint, Array]]:
        """What every parameter moves by, and the squared distances moved, per constraint.

        Of a loss or a set it is that of its operands, of other constraints that of the parameters
        that they ask. What nothing asks to move is left out.
        """
        graph, weight_of = problem.graph, problem.weight_of
        own = set(parameter_sets(graph))
        outputs = [c for c in graph.constraints if c.out is None and c not in own]
        # All that is not along the last axis of what an output constraint reads.
        rows = graph.rows or sum(math.prod(c.shapes[0][:-1]) for c in outputs) or 1
        scales = relative_scales(problem)
        penalties = [c for c in graph.losses if c in graph.penalties]
        moves: dict[Variable, Array] = {}
        distances: dict[Constraint, Array] = {}
        residuals: dict[Variable, Array] = {}
        direct: dict[Edge, Moment] = {}
        read_by_losses: list[Element] = []
        answers: dict[Constraint, Answer] = {}
        asked_in_all = wide(0.0)
        for c in [c for c in outputs if c not in penalties]:
            said = answer(problem, c, scales, problem.start, weight_of, self.strength)
            answers[c] = said
            distances[c] = wide(0.0)
            for i, view in c.reads:
                length = wide(squared(said.asked[i]))
                distances[c] = distances[c] + length
                own = all(base.parameter for base in view.bases)
                if own and not isinstance(c, Loss):
                    # What sets say of parameters themselves is no matter of rows: it is done.
                    direct[c, i] = said.moments[i]
                    continue
                asked_in_all = asked_in_all + length
                if own:
                    ones = jnp.ones_like(said.asked[i])
                    read_by_losses += elements(problem, view, (said.asked[i], ones, ones), 1, c)
                else:
                    ask(problem, residuals, view, said.asked[i])
        for variable, value in problem.agreed(direct, problem.start).items():
            moves[variable] = value - problem.start[variable]
        names = {v: Named(v, Index.of(v.shape)) for v in graph.parameters}
        asked = go_back(problem, residuals, names, self.reach)
        joined, single = systems(asked.readers, [*asked.elements, *read_by_losses])
        wanted = self._solve_systems(joined, rows, weight_of)
        wanted += [self._solve_element(e, problem.start, rows, weight_of) for e in single]
        solved = trusted(wanted, self.trust)
        factor, enough = wide(1.0), min(1, rows / _ENOUGH_ROWS)
        if self.share is not None:
            promised = sum((solution.gain for solution in solved), wide(0.0))
            allowed = self.share * math.sqrt(enough) * asked_in_all
            factor = jnp.where(promised > allowed, allowed / promised, 1.0)
        for solution in solved:
            moved = jnp.square(factor) * solution.squares
            distances[solution.label] = distances.get(solution.label, 0.0) + moved
            for variable, step in solution.moves:
                step = factor.astype(step.dtype) * step
                moves[variable] = moves[variable] + step if variable in moves else step
        if graph.losses and self.decay is not None:
            lengths: dict[Variable, Array] = {}
            for solution in solved:
                for v in solution.weights:
                    lengths[v] = jnp.maximum(lengths.get(v, 0.0), solution.length)
            for v, length in lengths.items():
                by = self.decay * enough * (1 - factor) * factor * length
                decayed = by.astype(v.dtype) * problem.start[v]
                moves[v] -= decayed.astype(moves[v].dtype)
        if penalties:
            losses = {c: said for c, said in answers.items() if isinstance(c, Loss)}
            steep = steepness(problem, losses, scales)
            gains: dict[Variable, Array] = {}
            squares: dict[Variable, Array] = {}
            for solution in solved:
                for v, _ in solution.moves:
                    gains[v] = gains.get(v, 0.0) + steep * factor * solution.gain
                    squares[v] = squares.get(v, 0.0) + jnp.square(factor) * solution.squares
            pulls = {v: gain / jnp.where(gain > 0, squares[v], 1) for v, gain in gains.items()}
            distances.update(penalise(problem, penalties, scales, moves, pulls, self.strength))
        return moves, distances

    def _solve_systems(
        self, joined: Sequence[System], rows: int, weight_of: Mapping[Variable, Any]
    ) -> list[Move]:
        """What the parameters of least-squares problems would move by.

        A weight is a unit of length of the problem; where it gives a direction alone, a weight
        divides how far its parameters go along that.
        """
        problems, weights = [], []
        for system in joined:
            own = [float(weight_of[c.variable]) for c in system.columns]
            pairs = zip(system.columns, self._roots(own), strict=True)
            matrices = [_divided(c.matrix, root) for c, root in pairs]
            target = len(system.target) / rows * system.target
            problems.append(LeastSquares(matrices, target, system.rows))
            weights.append(own)
        ridges = solve_ridges(problems, self.damping, self.rank, self.whitening)
        each = zip(joined, problems, ridges, weights, strict=True)
        return [self._move(*of_one, rows) for of_one in each]

    def _roots(self, weights: Sequence[float]) -> list[float]:
        return [1.0 if self.per_unit else math.sqrt(weight) for weight in weights]

    def _move(
        self,
        system: System,
        problem: LeastSquares,
        ridge: Ridge,
        weights: Sequence[float],
        rows: int,
    ) -> Move:
        """What one problem would move its parameters by."""
        columns, more = system.columns, len(system.target) / rows
        divisors = weights if self.per_unit else [1.0] * len(weights)
        steps = [
            Step(c.variable, step / root if root != 1 else step, c.place, divisor)
            for c, step, root, divisor in zip(
                columns, ridge.steps, self._roots(weights), divisors, strict=True
            )
        ]
        own = [column_sums(jnp.square(s.step)) for s in steps]
        lengths = functools.reduce(jnp.add, own)
        if len(set(divisors)) == 1:
            squares, gains = lengths / divisors[0] ** 2, ridge.gains / divisors[0]
        else:
            pairs = list(zip(own, divisors, strict=True))
            squares = functools.reduce(jnp.add, [x / divisor**2 for x, divisor in pairs])
            gains = functools.reduce(
                jnp.add,
                [
                    column_sums(s.step * c.matrix.transposed_times(problem.target)) / s.divisor
                    for s, c in zip(steps, columns, strict=True)
                ],
            )
        numbers = fan = sum(len(s.step) for s in steps)
        if not self.per_unit:
            numbers *= len(lengths)
            lengths, squares, gains = (jnp.sum(x, keepdims=True) for x in (lengths, squares, gains))
        return Move(
            steps,
            lengths,
            squares,
            gains / more,
            functools.reduce(jnp.add, (wide(c.squares) for c in columns)),
            sum(c.count for c in columns),
            fan,
            numbers,
            system.trust_factor if self.per_unit else system.trust_factor / min(weights),
            self.per_unit,
            # What is only added has columns of constants, and does not decay.
            [c.variable for c in columns if not c.constant],
            system.label,
        )

    def _solve_element(
        self,
        e: Element,
        values: Mapping[Variable, Array],
        rows: int,
        weight_of: Mapping[Variable, Any],
    ) -> Move:
        """What a parameter would move by that is solved for element by element."""
        readers, weight = jnp.maximum(jnp.mean(e.readers), 1), float(weight_of[e.variable])
        total = e.square + weight * self.damping * jnp.mean(e.square) / readers
        # What few rows read is like a column of one-hot rows: its step is not shortened for it.
        step = jnp.maximum(1, readers / rows) * e.gradient / jnp.where(total > 0, total, 1)
        value = values[e.variable]
        length, gain = squared(step)[None], inner(step, e.gradient)[None]

        def place(moved: Array) -> Array:
            return moved.reshape(value.shape)

        return Move(
            [Step(e.variable, step.reshape((-1, 1)), place, 1.0)],
            length,
            length,
            gain,
            squared(value.astype(_compat.promoted(value.dtype, jnp.float32))),
            value.size,
            e.fan,
            value.size,
            1 / weight,
            False,
            [],
            e.label,
        )


def _divided(matrix: Implicit, root: float) -> Implicit:
    return matrix if root == 1 else jax.tree.map(lambda x: x / root, matrix)
