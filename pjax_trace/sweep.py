"""One block sweep: targets go back from the outputs, and the parameters of every layer meet them.

A forward pass is a point of all constraints but the losses. These say where their operands should
be instead. From there back, every constraint tells its operands what its output was asked for
(`Rule.hand_over`), and its parameters are projected onto the block of all its rows, all else held
(`Rule.block`). That is reverse mode with targets in the place of cotangents. Its metric belongs to
each layer; there is no product space in which all of it is one projection.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.acceleration import rms
from pjax_trace.build import LoopRule
from pjax_trace.errors import check_positive
from pjax_trace.graph import ConsensusGraph, Constraint, Variable, View
from pjax_trace.registry import Equations, Request, Weights
from pjax_trace.ridge import Matrix, solve_ridge
from pjax_trace.trace import Value

__all__ = ["Sweep"]

_ENOUGH_ROWS = 256  # of a loss; with fewer, share and decay are smaller


class Sweep(eqx.Module):
    """Block projections from the outputs back to the inputs, once for every forward pass.

    The parameters of a layer, bias included, are moved by the regularised least-squares solution
    ``dW = (XᵀX + ω I)⁻¹ Xᵀ (s R)`` for what its output was asked to move by, R. ω is ``damping``
    times the mean square of a row of X. A parameter that more rows read than there are of the loss
    has most of them ask for nothing; the factor s is by how many times there are more.

    What is handed to the layers below is the adjoint of R for sums of terms and for functions that
    mix a slice, and what its tangent makes of R for a smooth curve. Every other rule projects
    exactly onto a target nearby and scales its move; what is discrete says itself which targets
    are worth a step. Nothing without a derivative is given one.

    Args:
        strength: multiplies the λ of every loss.
        damping: of the least-squares solution; larger moves less.
        rank: of the approximation of XᵀX that is solved with where the damping is above its mean
            eigenvalue, see `pjax_trace.ridge`; elsewhere it is estimated from a sample if there are
            many rows. None to solve exactly everywhere, from all rows: an update of a GRU or a
            transformer took an eighth longer and learned no better, one of a CNN had twice the
            operations and gained up to a point.
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
        reach: how far targets are from the forward pass, in relation to its size, when they are
            handed through constraints that are no sums.
        per_unit: whether every feature of a layer, with its weights, is moved by what ``trust``
            allows, no more and no less: what is asked of it then has a direction, but no size. If
            not, a layer is shortened as a whole where it would move farther.

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
    reach: float = 5e-3
    per_unit: bool = True
    default_steps: ClassVar[int] = 1
    needs_copies: ClassVar[bool] = False
    schedules: ClassVar[tuple[str, ...]] = ("sweep",)

    def __check_init__(self) -> None:
        """Arguments are positive."""
        for name in ("strength", "damping", "trust", "reach"):
            check_positive(f"Sweep: {name}", getattr(self, name))
        for name in ("share", "decay"):
            if getattr(self, name) is not None:
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
            graph: of the function, its scans kept.
            data: all values of the forward pass, and the scales of losses.
            values: of all variables, from the same pass.
            metric: the weights of variables. Those of parameters multiply ω, those of what losses
                read divide their λ; in between, a sweep has a metric of its own.
        """
        point = _Point(graph, data, values)
        numbers = {v: _numbers(v.shape) for v in graph.parameters}
        outputs = [c for c in graph.constraints if c.out is None]
        losses = [c for c in outputs if c.rule.family == "loss"]
        rows = max(map(_rows, losses or outputs))
        # Which of the losses' scales are larger counts, not how large they all are: the mean of the
        # losses of n samples asks for what the loss of a batch of them asks for.
        scale = functools.reduce(
            jnp.maximum, (_wide(jnp.max(point.operands(c)[-1])) for c in losses), _wide(0.0)
        )
        scale = jnp.where(scale > 0, scale, 1)
        moves: dict[Variable, Array] = {}
        distances: dict[Constraint, Array] = {}
        residuals: dict[Variable, Array] = {}
        asked_in_all = _wide(0.0)
        for c in outputs:
            operands = point.operands(c)
            if c in losses:
                operands[-1] = operands[-1] / scale.astype(operands[-1].dtype)
            answers = self._output(c, operands, metric)
            asked = [answer for answer in answers if answer is not None]
            distances[c] = _squares(asked)
            for (i, view), answer in zip(c.reads, asked, strict=True):
                if i not in point.own(c, numbers):
                    point.ask(residuals, view, answer)
                    asked_in_all = asked_in_all + _wide(_squares([answer]))
                    continue
                # What is said of parameters themselves is no matter of rows: it is done.
                readers = dict(point.pull(view, jnp.ones_like(answer)))
                for variable, step in point.pull(view, answer):
                    step = step / jnp.maximum(readers[variable], 1)
                    moves[variable] = moves[variable] + step if variable in moves else step
        layers = self._layers(point, residuals, numbers)
        solved = [self._solve(layer, values, metric, rows) for layer in layers]
        factor, enough = _wide(1.0), min(1, rows / _ENOUGH_ROWS)
        if self.share is not None:
            promised = sum((solution.gain for solution in solved), _wide(0.0))
            share = self.share * math.sqrt(enough)
            allowed = share * asked_in_all
            factor = jnp.where(promised > allowed, allowed / promised, 1.0)
        lengths: dict[Variable, Array] = {}
        for layer, solution in zip(layers, solved, strict=True):
            moved = jnp.square(factor) * solution.squares
            distances[layer.constraint] = distances.get(layer.constraint, 0.0) + moved
            for variable, step in solution.moves:
                step = factor.astype(step.dtype) * step
                moves[variable] = moves[variable] + step if variable in moves else step
            for variable in layer.weights:
                lengths[variable] = jnp.maximum(lengths.get(variable, 0.0), solution.length)
        if losses and self.decay is not None:
            for variable, length in lengths.items():
                by = self.decay * enough * (1 - factor) * factor * length
                moves[variable] -= by.astype(values[variable].dtype) * values[variable]
        return moves, distances

    def _layers(
        self,
        point: "_Point",
        residuals: dict[Variable, Array],
        numbers: Mapping[Variable, Any],
        loop: Constraint | None = None,
    ) -> list["_Layer"]:
        """Go back through a graph; what is asked of its parameters.

        Args:
            point: the graph and its forward pass.
            residuals: what is asked of variables; more is added on the way.
            numbers: the parameters, each with what to call its elements, or None.
            loop: the constraint that the graph is the body of.
        """
        layers: list[_Layer] = []
        constraints = point.graph.constraints
        for c in reversed(constraints):
            if isinstance(c.rule, LoopRule):
                together = [other for other in constraints if other.rule is c.rule]
                if c is together[0] and any(other.out in residuals for other in together):
                    layers += self._loop(together, c.rule, point, residuals, numbers)
                continue
            if c.out is None or c.out not in residuals:
                continue
            operands, residual = point.operands(c), residuals[c.out]
            request = Request(point.values[c.out], residual, c.variable, self.reach)
            answers = c.rule.hand_over(c.params, operands, request)
            own = point.own(c, numbers)
            for i, view in c.reads:
                if i not in own and answers[i] is not None:
                    point.ask(residuals, view, answers[i])
            if own:
                names = {i: point.names(view, numbers) for i, view in own.items()}
                block = c.rule.block(c.params, operands, residual, answers, names)
                layers.append(_layer(point, c, block, operands, own))
        # What is asked of parameters beside others, in one view, or by the body of a scan itself.
        asked = [v for v in numbers if v in residuals]
        if asked:
            ones = {v: jnp.ones_like(residuals[v]) for v in asked}
            elements = tuple(_Element(residuals[v], ones[v], ones[v], v, 1) for v in asked)
            layers.append(_Layer(None, (), elements, 1.0, loop or constraints[0]))
        return layers

    def _loop(
        self,
        constraints: Sequence[Constraint],
        rule: LoopRule,
        point: "_Point",
        residuals: dict[Variable, Array],
        numbers: Mapping[Variable, Any],
    ) -> list["_Layer"]:
        """Go back through a scan step by step; its parameters are asked by all steps at once."""
        scan, body, variable = rule.loop.scan, rule.body, rule.loop.variable
        operands, views = point.operands(constraints[0]), constraints[0].operands
        first, last = scan.consts, scan.consts + scan.carries
        inputs = dict(zip(np.flatnonzero(variable).tolist(), body.parameters, strict=True))
        own = point.own(constraints[0], numbers)
        inner = {
            v: point.names(views[i], numbers) if i < first else None
            for i, v in inputs.items()
            if i in own and not first <= i < last
        }
        asked = {c.params["output"]: residuals[c.out] for c in constraints if c.out in residuals}
        carries = [i for i in range(first, last) if variable[i]]
        others = [i for i in inputs if i not in carries and inputs[i] not in inner]
        slots = [point.data[v] for v in rule.slots]

        def step(carried: Any, now: Any) -> Any:
            slots, xs, later = now
            known = [*operands[:first], *slots, *xs]
            env = body.program.evaluate(
                [x for x, v in zip(known, variable, strict=True) if v],
                [x for x, v in zip(known, variable, strict=True) if not v],
            )
            values = {v: env[(v.repeats or v).value] for v in body.variables}
            here = _Point(body, env, values)
            within: dict[Variable, Array] = {}
            for i, view in enumerate(body.outputs):
                residual = carried.get(i + first) if i < scan.carries else later.get(i)
                if view is not None and residual is not None:
                    here.ask(within, view, residual)
            layers = self._layers(here, within, inner, constraints[0])
            zeros = {i: jnp.zeros_like(known[i]) for i in (*carries, *others)}
            found = {i: within.get(inputs[i], zero) for i, zero in zeros.items()}
            return {i: found[i] for i in carries}, (layers, {i: found[i] for i in others})

        start = {i: asked.get(i - first, jnp.zeros_like(operands[i])) for i in carries}
        later = {i: residual for i, residual in asked.items() if i >= scan.carries}
        carried, (layers, found) = jax.lax.scan(
            step, start, (slots, operands[last:], later), reverse=not scan.reverse
        )
        outside = []
        for i, residual in {**carried, **found}.items():
            view = views[i]
            if not isinstance(view, View):
                continue
            total = jnp.sum(residual, 0) if i < first else residual
            if i in own:
                ones = jnp.ones_like(total)
                outside += _elements(point, view, (total, ones, ones), 1)
            else:
                point.ask(residuals, view, total)
        places = {v: i for i, v in inputs.items()}
        merged = [_over_time(point, layer, constraints[0], places, first) for layer in layers]
        if outside:
            merged.append(_Layer(None, (), tuple(outside), 1.0, constraints[0]))
        return merged

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
        layer: "_Layer",
        values: Mapping[Variable, Array],
        metric: Mapping[Variable, float],
        rows: int,
    ) -> "_Solution":
        """What the parameters of one constraint move by."""
        moves: list[tuple[Variable, Array]] = []
        squares, gain, length = _wide(0.0), _wide(0.0), _wide(0.0)
        if layer.target is not None:
            roots = [math.sqrt(max(metric[base] for base in part.bases)) for part in layer.parts]
            scaled = [
                jax.tree.map(lambda x, root=root: x / root, part.matrix)
                for part, root in zip(layer.parts, roots, strict=True)
            ]
            more = len(layer.target) / rows
            ridge = solve_ridge(scaled, more * layer.target, self.damping, self.rank)
            steps = [step / root for step, root in zip(ridge.steps, roots, strict=True)]
            count = max(1, sum(part.count for part in layer.parts))
            size = jnp.sqrt(jnp.asarray(sum(part.squares for part in layer.parts)) / count)
            fan = sum(map(len, steps))
            size = jnp.maximum(size, math.sqrt(2 / max(1, fan)))
            factor = self._trusted(size, fan, steps, layer.pace, self.per_unit)
            gain = gain + _wide(jnp.sum(factor * ridge.gains[None]) / more)
            for part, step in zip(layer.parts, steps, strict=True):
                moves += part.place(factor * step)
                lengths = jnp.sum(jnp.square(step), 0, keepdims=True)
                squares = squares + _wide(jnp.sum(jnp.square(factor) * lengths))
            length = jnp.sqrt(squares / max(1, sum(x.size for x in steps))) / _wide(size)
        for e in layer.elements:
            readers = jnp.maximum(jnp.mean(e.readers), 1)
            ridge = metric[e.variable] * self.damping * jnp.mean(e.square) / readers
            total = e.square + ridge
            # What few rows read is like a column of one-hot rows: its step is not shortened for it.
            step = jnp.maximum(1, readers / rows) * e.gradient / jnp.where(total > 0, total, 1)
            size = jnp.maximum(rms([values[e.variable]]), math.sqrt(2 / max(1, e.fan)))
            factor = self._trusted(size, e.fan, [step], layer.pace, False)
            moves.append((e.variable, factor * step))
            squares = squares + _wide(jnp.square(factor) * _squares([step]))
            gain = gain + _wide(factor * jnp.sum(step * e.gradient))
        return _Solution(moves, squares, gain, length)

    def _trusted(
        self, size: Array, fan: int, steps: Sequence[Array], pace: float, per_unit: bool
    ) -> Array:
        """By what to shorten steps; per unit, a factor for each of the last axis."""
        limit = self.trust * pace * size
        tiny = jnp.finfo(limit.dtype).tiny
        if per_unit:
            squares = (jnp.sum(jnp.square(x), 0, keepdims=True) for x in steps)
            length = jnp.sqrt(sum(squares) / fan)
            return jnp.where(length > 0, limit / jnp.maximum(length, tiny), 0.0)
        return jnp.minimum(1.0, limit / jnp.maximum(rms(steps), tiny))


class _Solution(NamedTuple):
    """What parameters move by.

    ``squares`` is the sum of its squares, ``gain`` what is promised, ``⟨R, J dθ⟩``, and ``length``
    how far what is multiplied with moves, in relation to its size.
    """

    moves: list[tuple[Variable, Array]]
    squares: Float[Array, ""]
    gain: Float[Array, ""]
    length: Float[Array, ""]


class _Part(eqx.Module):
    """Columns that a layer's equations have for a parameter.

    ``squares`` and ``count`` say how large it is; ``place`` takes a step of the columns to those
    of the variables that it is made of, ``bases``.
    """

    matrix: Matrix
    squares: Float[Array, ""]
    count: int = eqx.field(static=True)
    place: Callable[[Array], list[tuple[Variable, Array]]] = eqx.field(static=True)
    bases: tuple[Variable, ...] = eqx.field(static=True)


class _Element(eqx.Module):
    """A parameter that is solved for element by element; see `pjax_trace.registry.Single`."""

    gradient: Array
    square: Array
    readers: Array
    variable: Variable = eqx.field(static=True)
    fan: int = eqx.field(static=True)


class _Layer(eqx.Module):
    """What a constraint asks of parameters; see `pjax_trace.registry.Equations`."""

    target: Float[Array, "rows features"] | None
    parts: tuple[_Part, ...]
    elements: tuple[_Element, ...]
    pace: float = eqx.field(static=True)
    constraint: Constraint = eqx.field(static=True)

    @property
    def weights(self) -> list[Variable]:
        """The parameters that are multiplied with; what is only added has columns of constants."""
        return [base for part in self.parts if part.count for base in part.bases]


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

    def own(self, c: Constraint, numbers: Mapping[Variable, Any]) -> dict[int, View]:
        """The operands that are made of parameters alone."""
        return {i: view for i, view in c.reads if numbers.keys() >= set(view.bases)}

    def pull(self, view: View, residual: Array) -> list[tuple[Variable, Array]]:
        """Back through a view to its bases."""
        if view.identity:
            return [(view.bases[0], residual)]
        parts = view.pull(self.data, residual.astype(view.dtype))
        return list(zip(view.bases, parts, strict=True))

    def ask(self, residuals: dict[Variable, Array], view: View, residual: Array) -> None:
        """Ask what a view reads to move; what several readers ask for is added up."""
        for base, part in self.pull(view, residual):
            residuals[base] = residuals[base] + part if base in residuals else part

    def names(self, view: Any, numbers: Mapping[Variable, Any]) -> Any:
        """The numbers of the elements that a view reads of a parameter, if it only moves them."""
        base = view.bases[0]
        if len(view.bases) > 1 or any(rule.scales for rule in view.rules):
            return None
        known = self.graph.program.known
        made = {base.value, *(v for e in view.equations for v in e.outputs)}
        inputs = {v for e in view.equations for v in e.inputs}
        if numbers[base] is None or not inputs <= made | known.keys():
            return None
        return view.elements(known, {base: numbers[base]})


def _layer(
    point: _Point, c: Constraint, block: Equations, operands: Sequence[Array], own: dict[int, View]
) -> _Layer:
    """What a rule says of operands, as of variables."""
    # A view that only moves elements needs no more than what is known while tracing.
    known = _Point(point.graph, point.graph.program.known, {})
    parts = []
    for k in block.columns:
        operand, view = operands[k.position], own[k.position]

        def place(step: Array, view: View = view, restore: Any = k.restore) -> Any:
            return known.pull(view, restore(step))

        zero = jnp.zeros((), operand.dtype)
        squares = zero if k.constant else _squares([operand])
        size = 0 if k.constant else operand.size
        parts.append(_Part(k.matrix, squares, size, place, view.bases))
    elements: list[_Element] = []
    for single in block.singles:
        said = single.gradient, single.square, single.readers
        elements += _elements(point, own[single.position], said, single.fan)
    return _Layer(block.target, tuple(parts), tuple(elements), block.pace, c)


def _elements(point: _Point, view: View, said: Sequence[Array], fan: int) -> list[_Element]:
    """What is said of an operand, of the parameters that it is made of."""
    pulled = (point.pull(view, x) for x in said)
    return [
        _Element(gradient, square, readers, base, fan)
        for (base, gradient), (_, square), (_, readers) in zip(*pulled, strict=True)
    ]


def _over_time(
    point: _Point,
    layer: _Layer,
    loop: Constraint,
    places: Mapping[Variable, int],
    fixed: int,
) -> _Layer:
    """A layer of the body of a scan as one of all its steps, and of the parameters outside.

    Args:
        point: outside.
        layer: its arrays have the time as their first axis.
        loop: the scan.
        places: which of its operands a variable of the body is.
        fixed: as many of them are the same in every step.
    """
    views: Any = loop.operands
    known = _Point(point.graph, point.graph.program.known, {})
    parts = []
    for part in layer.parts:

        def place(step: Array, inner: Any = part.place) -> Any:
            moves = inner(step)
            return [move for v, x in moves for move in known.pull(views[places[v]], x)]

        bases = tuple(base for v in part.bases for base in views[places[v]].bases)
        matrix = jax.tree.map(_rows_of_all, part.matrix)
        parts.append(_Part(matrix, part.squares[0], part.count, place, bases))
    elements: list[_Element] = []
    for e in layer.elements:
        i = places[e.variable]
        said = [jnp.sum(x, 0) if i < fixed else x for x in (e.gradient, e.square, e.readers)]
        elements += _elements(point, views[i], said, e.fan)
    target = None if layer.target is None else _rows_of_all(layer.target)
    return _Layer(target, tuple(parts), tuple(elements), layer.pace, loop)


def _rows_of_all(x: Float[Array, "time rows *more"]) -> Float[Array, "time*rows *more"]:
    return x.reshape((-1, *x.shape[2:]))


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
    """1, 2, 3, … in a shape."""
    return np.arange(1, 1 + math.prod(shape), dtype=np.int32).reshape(shape)


def _rows(c: Constraint) -> int:
    """How many rows an output constraint has: all that is not along its last axis."""
    return math.prod(c.reads[0][1].shape[:-1])


def _wide(x: Any) -> Array:
    """In the type that sums over layers are kept in, which may be of several."""
    return jnp.asarray(x, jnp.result_type(float))


def _squares(arrays: Iterable[Array]) -> Array:
    """The sum of the squares of all elements."""
    return jnp.asarray(sum(jnp.sum(jnp.square(x)) for x in arrays))
