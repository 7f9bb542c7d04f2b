"""What losses and sets ask for in a sweep: of what layers put out, and of parameters themselves."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.graph import Constraint, Loss
from pjax_trace.minimise import minimise_elements
from pjax_trace.problem import Problem
from pjax_trace.rule import Moment, Weights
from pjax_trace.view import Variable

__all__ = ["Answer", "answer", "penalise", "relative_scales", "steepness", "wide"]

_STILL = 1e20  # the weight of what is not to move


class Answer(NamedTuple):
    """What an output constraint says of its operands, by position: moments, and differences."""

    moments: dict[int, Moment]
    asked: dict[int, Array]


def answer(
    problem: Problem,
    c: Constraint,
    scales: Mapping[Constraint, Array],
    values: Mapping[Variable, Array],
    weight_of: Mapping[Variable, Any],
    strength: float,
) -> Answer:
    """Project onto an output constraint, every λ being ``strength`` times what its scale says."""
    operands = problem.operands(c, values)
    if c in scales:
        operands[-1] = scales[c]
    weights: list[Any] = [None] * len(operands)
    for i, view in c.reads:
        weights[i] = functools.reduce(_larger, (weight_of[b] for b in view.bases)) / strength
    if isinstance(c, Loss) and c.rule.coupled and c not in problem.graph.penalties:
        return _against_gradient(c, operands, weights)
    projection = c.rule.project(c.params, operands, None, Weights(tuple(weights), None))
    moments = {i: m for i, _ in c.reads if (m := projection.moments[i]) is not None}
    return Answer(moments, {i: m.first / m.mass - operands[i] for i, m in moments.items()})


def _larger(one: Any, other: Any) -> Any:
    return max(one, other) if isinstance(one + other, float) else jnp.maximum(one, other)


def _against_gradient(c: Constraint, operands: Sequence[Array], weights: Sequence[Any]) -> Answer:
    """The proximal step of a loss along its gradient: the best step against that.

    A proximal step of several operands together counts on all of them arriving. What layers cannot
    do for one sample as for another, they do in the mean where the gradient is zero.
    """
    value, slopes = _slopes(c, operands)
    ways = {i: -s / weights[i] for i, s in slopes.items()}

    def along(step: Array) -> Array:
        return value({i: operands[i] + step.astype(d.dtype) * d for i, d in ways.items()})

    squares = [jnp.sum(weights[i] * jnp.square(d)) for i, d in ways.items()]
    weight = functools.reduce(jnp.add, squares)
    step = minimise_elements(along, jnp.zeros((), weight.dtype), jnp.where(weight > 0, weight, 1))
    asked = {i: step.astype(d.dtype) * d for i, d in ways.items()}
    moments = {i: Moment(weights[i] * (operands[i] + asked[i]), weights[i]) for i in asked}
    return Answer(moments, asked)


def _slopes(
    c: Constraint, operands: Sequence[Array]
) -> tuple[Callable[[Mapping[int, Array]], Array], dict[int, Array]]:
    """A scaled loss as a function of what it reads of variables, and its derivatives here."""
    scale = operands[-1]

    def value(own: Mapping[int, Array]) -> Array:
        terms = c.rule.apply(c.params, *(own.get(i, x) for i, x in enumerate(operands[:-1])))
        return jnp.sum(jnp.where(scale != 0, scale * terms, 0))

    slopes = jax.grad(value)({i: operands[i] for i in c.views})
    # As in layers, a slope that is not finite counts as nothing; of rows that are masked, say.
    return value, {i: jnp.where(jnp.isfinite(s), s, 0) for i, s in slopes.items()}


def steepness(
    problem: Problem, answers: Mapping[Loss, Answer], scales: Mapping[Constraint, Array]
) -> Array:
    """How much steeper losses are than what they ask for is long, ``−⟨∇, R⟩ / ‖R‖²``."""
    along, squares = wide(0.0), wide(0.0)
    for c, said in answers.items():
        operands = [*problem.operands(c, problem.start)[:-1], scales[c]]
        for i, slope in _slopes(c, operands)[1].items():
            along = along - wide(jnp.sum(slope * said.asked[i]))
            squares = squares + wide(jnp.sum(jnp.square(said.asked[i])))
    return jnp.where(squares > 0, along / jnp.where(squares > 0, squares, 1), 0.0)


def penalise(
    problem: Problem,
    penalties: Sequence[Loss],
    scales: Mapping[Constraint, Array],
    moves: dict[Variable, Array],
    pulls: Mapping[Variable, Array],
    strength: float,
) -> dict[Constraint, Array]:
    """Move parameters by the penalties on them, from where losses have moved them.

    A step that gains so much to first order, and has such a squared length, is one along the
    gradient with the weight ``gain / squares``; so much a parameter weighs against a penalty. Where
    no loss moves a parameter, it weighs what it does in the metric.

    Args:
        problem: the graph and its forward pass.
        penalties: losses that read nothing but parameters.
        scales: of all losses.
        moves: what parameters move by; changed by what penalties move them.
        pulls: the weight of every parameter that a loss has moved, 0 where nothing is gained.
        strength: multiplies λ.

    Returns:
        The squared distance moved for each penalty.
    """
    weight_of = dict(problem.weight_of)
    for v, pull in pulls.items():
        weight_of[v] = strength * jnp.where(pull > 0, pull, _STILL).astype(v.dtype)
    values = {v: x + moves[v] if v in moves else x for v, x in problem.start.items()}
    distances: dict[Constraint, Array] = {}
    moved = {b for c in penalties for _, view in c.reads for b in view.bases if b in pulls}
    free = [c for c in penalties if all(moved.isdisjoint(view.bases) for _, view in c.reads)]
    # Penalties that meet nothing else agree; others follow one another, so that zeros stay zeros.
    for group in ([free] if free else []) + [[c] for c in penalties if c not in free]:
        moments = {}
        for c in group:
            said = answer(problem, c, scales, values, weight_of, strength)
            moments.update({(c, i): moment for i, moment in said.moments.items()})
            distances[c] = wide(0.0)
            for asked in said.asked.values():
                distances[c] = distances[c] + wide(jnp.sum(jnp.square(asked)))
        for v, value in problem.agreed(moments, values).items():
            moves[v], values[v] = value - problem.start[v], value
    return distances


def relative_scales(problem: Problem) -> dict[Constraint, Array]:
    """The scales of the losses, by which the terms of the heaviest have the mean weight 1.

    How heavy they are in relation to each other counts, not how heavy they all are: the mean of the
    losses of n samples asks for what the loss of a batch of them asks for.
    """
    graph = problem.graph
    sizes, own = graph.program.objective.sizes, {c: problem.data[c.scale] for c in graph.losses}
    weights, means = [], []
    for c in [c for c in graph.losses if c not in graph.penalties] or graph.losses:
        terms = jnp.abs(own[c].reshape(-1)[: sizes[c.scale].terms])
        weights.append(wide(jnp.sum(terms)))
        means.append(weights[-1] / jnp.maximum(1, wide(jnp.sum(terms > 0))))
    if not means:
        return {}
    mean = jnp.stack(means)[jnp.argmax(jnp.stack(weights))]
    mean = jnp.where(mean > 0, mean, 1)
    return {c: scale / mean.astype(scale.dtype) for c, scale in own.items()}


def wide(x: Any) -> Float[Array, "..."]:
    """In the type that sums over layers are kept in, which may be of several."""
    return jnp.asarray(x, jnp.result_type(float))
