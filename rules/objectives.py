"""Loss nodes that are recognised by their equations, and have proximal operators of their own."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace import prox
from pjax_trace.program import Equation, Value
from pjax_trace.proximal import ObjectiveRule
from pjax_trace.registry import register_loss_node
from pjax_trace.rule import Arrays

__all__ = ["LogSumExp", "Norm"]

Producers = Mapping[Value, Equation]
Found = tuple[Value, list[Equation]] | None


def _back(value: Value, producers: Producers) -> Equation | None:
    """What makes a variable, if it is one."""
    return producers.get(value) if value.variable else None


def _sum_of_last(e: Equation | None) -> bool:
    """Whether an equation sums over the last axis."""
    if e is None or e.primitive is not lax.reduce_sum_p:
        return False
    return tuple(e.params["axes"]) == (len(e.inputs[0].shape) - 1,)


@register_loss_node
class LogSumExp(ObjectiveRule):
    """``log Σ exp(x)`` over the last axis, from which the score of the true class is subtracted.

    So is every cross entropy with integer, one-hot or soft labels, whichever way it is written.
    """

    name = "cross_entropy"
    granularity = "row"

    @staticmethod
    def recognise(e: Equation, producers: Producers) -> Found:
        """``log(sum(exp(x)))``, whatever has been done to its shape, and with or without abs."""
        if e.primitive is not lax.log_p:
            return None
        equations, inner = [e], _back(e.inputs[0], producers)
        while inner is not None and not _sum_of_last(inner):
            same = inner.outputs[0].shape == inner.inputs[0].shape
            if not (inner.primitive is lax.abs_p if same else _keeps_size(inner)):
                return None
            equations.insert(0, inner)
            inner = _back(inner.inputs[0], producers)
        exponential = None if inner is None else _back(inner.inputs[0], producers)
        if inner is None or exponential is None or exponential.primitive is not lax.exp_p:
            return None
        return exponential.inputs[0], [exponential, inner, *equations]

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """By the Wright omega function, see `pjax_trace.prox.prox_logsumexp`."""
        (lam,), goals = self.convex_part(lams, goals, omegas, data)
        (goal,), (omega,) = goals, omegas
        weight = jnp.broadcast_to(lam.reshape(goal.shape[:-1]) / omega, goal.shape[:-1])
        moved = prox.prox_logsumexp(goal, jnp.where(weight > 0, weight, 1).astype(goal.dtype))
        return [jnp.where(weight[..., None] > 0, moved, goal)]


@register_loss_node
class Norm(ObjectiveRule):
    """``sqrt(Σ x²)`` over some axes: a group lasso where it is of parameters."""

    name = "norm"
    granularity = "group"
    follows = True

    @staticmethod
    def recognise(e: Equation, producers: Producers) -> Found:
        """``sqrt(sum(x²))``."""
        if e.primitive is not lax.sqrt_p:
            return None
        total = _back(e.inputs[0], producers)
        if total is None or total.primitive is not lax.reduce_sum_p:
            return None
        square = _back(total.inputs[0], producers)
        if square is None or not _squares(square):
            return None
        return square.inputs[0], [square, total, e]

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """Block soft thresholding of x, or of x and a constant: ``x max(0, 1 − λ / (ω |x|))``."""
        (goal,), (omega,) = goals, omegas
        total = next(e for e in self.region.equations if e.primitive is lax.reduce_sum_p)
        axes = tuple(total.params["axes"])
        shape = tuple(1 if i in axes else n for i, n in enumerate(goal.shape))
        (lam,) = lams
        lam = lam.reshape(shape) / omega
        square = next(e for e in self.region.equations if _squares(e))
        (by,) = dataclasses.replace(self.region, terms=square.inputs[:1])([goal], data)
        length = jnp.sqrt(jnp.sum(jnp.square(by), axes, keepdims=True))
        safe = jnp.where(length > 0, length, 1)
        # Of a norm with a negative weight the tangent: away from the centre.
        factor = jnp.where(length > 0, jnp.maximum(0, 1 - lam / safe), 1)
        return [jnp.where(lam != 0, goal + (factor - 1) * by, goal)]


def _keeps_size(e: Equation) -> bool:
    """Whether an equation only gives its one operand another shape."""
    if e.primitive not in (lax.reshape_p, lax.broadcast_in_dim_p, lax.squeeze_p):
        return False
    return math.prod(e.inputs[0].shape) == math.prod(e.outputs[0].shape)


def _squares(e: Equation) -> bool:
    """Whether an equation squares every element."""
    if e.primitive is lax.integer_pow_p:
        return e.params["y"] == 2
    if e.primitive is lax.mul_p:
        return e.inputs[0] is e.inputs[1]
    return e.primitive is lax.square_p
