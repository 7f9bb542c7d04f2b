"""Losses: output constraints that move scores towards the labels by a proximal step.

A function may return any scalar, and `project` finds the losses in it; those here check their
arguments, have a strength λ of their own, and are projected by the operators of `pjax_trace.prox`.
To JAX each is an ordinary function: ``jit``, ``grad`` and ``vmap`` see its value. A solver uses its
proximal step, ``argmin_x λ · loss(x) + ½ ω |x − scores|²``, for every row of scores. What the
function makes of a loss before it returns it scales λ: ``0.5 * loss`` halves it. The mean of the
losses of n rows, each computed alone, asks for what the loss of all rows asks for.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer

from pjax_trace import _compat, prox
from pjax_trace.custom import call, loss_p
from pjax_trace.errors import InputError
from pjax_trace.labels import targets_of
from pjax_trace.plain_losses import (
    absolute_error,
    binary_cross_entropy,
    custom,
    hinge,
    huber,
    kl,
    nll,
    penalty,
    scaled,
)
from pjax_trace.rule import (
    Arrays,
    Flags,
    Moment,
    Params,
    Projection,
    Rule,
    Weights,
    squared_distance,
)

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "cross_entropy",
    "custom",
    "hinge",
    "huber",
    "kl",
    "margin",
    "nll",
    "penalty",
    "squared_error",
]


@dataclasses.dataclass(frozen=True)
class LossRule(Rule):
    """The proximal step of a loss that is a mean over rows.

    The operands are scores, targets, λ and further arguments; a solver appends the scales of rows.

    Args:
        value: ``value(scores, targets, *further) -> one loss per row``.
        prox: ``prox(scores, targets, *further, λ per row) -> scores``.
        reads_targets: whether the value is a function of the targets, too, so that they may move.
    """

    value: Callable[..., Array]
    prox: Callable[..., Array]
    reads_targets: bool = True

    family = "loss"
    movable = 1

    def written(self, params: Params, variable: Flags) -> Callable[..., Array] | None:
        """The loss as plain JAX code, for targets that are variables, too; λ must be data."""
        if not self.reads_targets or any(variable[2:]):
            return None
        return lambda *operands: scaled(self.apply(params, *operands), operands[2])

    def apply(self, params: Params, *operands: Array) -> Array:
        """The loss of every row."""
        scores, targets, _, *further = operands
        return self.value(scores, targets, *further)

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The proximal step, with its squared length as the distance."""
        scores, targets, lam, *further, scale = operands
        weight = weights.operands[0]
        # Infinity times the scale 0 of a row that is masked would be no number.
        step = jnp.where(scale == 0, 0, jnp.broadcast_to(lam, scale.shape) * scale / weight)

        def away() -> Array:
            # A loss that counts negatively is replaced by its tangent, which is above it.
            slope = jax.grad(
                lambda x: jnp.sum(jnp.minimum(step, 0) * self.value(x, targets, *further))
            )
            return scores - slope(scores)

        start = jax.lax.cond(jnp.any(step < 0), away, lambda: scores)
        moved = self.prox(scores, targets, *further, jnp.where(step > 0, step, 1))
        moved = jnp.where(step[..., None] > 0, moved, start)
        moment = Moment(weight * moved, weight)
        none = (None,) * (len(operands) - 1)
        return Projection((moment, *none), None, squared_distance(weight, moved, scores))


_CROSS_ENTROPY = LossRule(prox.cross_entropy, prox.prox_cross_entropy)
_SQUARED_ERROR = LossRule(prox.squared_error, prox.prox_squared_error)

_MARGIN = LossRule(prox.margin, prox.prox_margin, reads_targets=False)


def cross_entropy(
    logits: Float[Array, "*rows classes"],
    labels: Integer[ArrayLike, "*rows"] | Float[ArrayLike, "*rows classes"],
    *,
    lam: ArrayLike = 1.0,
    ignore: int | None = None,
) -> Float[Array, ""]:
    """The mean cross entropy of softmax(logits), projected by its exact proximal operator.

    For every row, the operator is ``argmin_x λ CE(x, y) + ½ ω |x − logits|²``. It is computed from
    one scalar unknown per row and the Wright omega function.

    Args:
        logits: scores, with classes on the last axis.
        labels: integers, one per row; or one-hot or soft rows that sum to 1.
        lam: λ > 0, the weight of the loss beside the squared distance; one number or one per row.
        ignore: the label of rows that have no loss and are not counted in the mean, such as -100.

    Returns:
        The mean of the loss over rows; 0 if none counts.

    Raises:
        InputError: if shapes do not fit, there are no rows or no classes, labels are out of range
            or no distributions, or λ is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> round(float(pjax.losses.cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
        1.3863
    """
    scores, targets, strength = _arguments("cross_entropy", logits, labels, lam, ignore)
    return _mean(_CROSS_ENTROPY, scores, targets, strength, name="cross_entropy", ignore=ignore)


def margin(
    scores: Float[Array, "*rows classes"],
    labels: Integer[ArrayLike, "*rows"] | Float[ArrayLike, "*rows classes"],
    *,
    margin: ArrayLike = 1.0,
    lam: ArrayLike = jnp.inf,
    ignore: int | None = None,
) -> Float[Array, ""]:
    """The mean multiclass hinge ``max(0, margin + max_{j≠y} x_j − x_y)`` of Crammer and Singer.

    For every row, the proximal operator is ``argmin_x λ hinge(x) + ½ ω |x − scores|²``. With the
    default, λ = ∞, it is the projection onto a set: the scores whose true class exceeds every other
    class by at least the margin.

    Args:
        scores: with classes on the last axis.
        labels: integers, one per row; or one-hot rows.
        margin: the margin, at least 0; one number or one per row.
        lam: λ > 0, ∞ included; one number or one per row.
        ignore: the label of rows that have no loss and are not counted in the mean, such as -100.

    Returns:
        The mean of the loss over rows; 0 if none counts.

    Raises:
        InputError: if shapes do not fit, there are no rows or no classes, labels are out of range,
            λ is not positive, or the margin is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.margin(jnp.array([[0.0, 3.0], [0.0, 3.0]]), jnp.array([1, 0])))
        2.0
    """
    values, targets, strength = _arguments("margin", scores, labels, lam, ignore)
    width = jnp.asarray(margin, values.dtype)
    if width.shape not in ((), values.shape[:-1]):
        raise InputError(f"losses.margin: margin must be one number or one per row: {width.shape}")
    if _compat.is_known(width) and not np.all((np.asarray(width) >= 0) & np.isfinite(width)):
        raise InputError(f"losses.margin: margin must be finite and at least 0, not {margin!r}")
    return _mean(_MARGIN, values, targets, strength, width, name="margin", ignore=ignore)


def squared_error(
    predictions: Float[Array, "*rows outputs"] | Float[Array, ""],
    targets: Float[ArrayLike, "..."],
    *,
    lam: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """The mean over rows of ``½ |x − t|²``; ``argmin_x λ ½ |x − t|² + ½ ω |x − predictions|²``.

    Args:
        predictions: outputs last; a scalar is one row of one output.
        targets: of the same shape, or of one that broadcasts to it.
        lam: λ > 0; one number or one per row.

    Returns:
        The mean over rows.

    Raises:
        InputError: if shapes do not fit, there are no rows or no outputs, or λ is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.squared_error(jnp.zeros((3, 2)), jnp.ones((3, 2))))
        1.0
    """
    predictions = _floating("squared_error", predictions, "predictions")
    goal, shape = jnp.asarray(targets, predictions.dtype), predictions.shape
    try:
        goal = jnp.broadcast_to(goal, shape)
    except ValueError as error:
        raise InputError(
            f"losses.squared_error: predictions of shape {shape} need targets of the same shape, "
            f"or of one that broadcasts to it, not {goal.shape}"
        ) from error
    if not shape:
        predictions, goal = predictions.reshape(1), goal.reshape(1)
    _not_empty("squared_error", predictions, "predictions", "outputs")
    strength = _strength("squared_error", lam, predictions)
    return _mean(_SQUARED_ERROR, predictions, goal, strength, name="squared_error")


def _mean(rule: LossRule, *operands: Array, name: str, ignore: int | None = None) -> Array:
    """The mean of a loss over rows, those apart that are ignored, whose λ is 0."""
    rows = call(loss_p, rule, *operands, name=name)
    if ignore is None:
        return jnp.mean(rows)
    counted = jnp.broadcast_to(operands[2] > 0, rows.shape)
    count = jnp.maximum(jnp.sum(counted, dtype=rows.dtype), 1)
    return jnp.sum(jnp.where(counted, rows, 0)) / count


def _floating(name: str, scores: Any, role: str = "scores") -> Array:
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise InputError(f"losses.{name}: {role} must be floating point, not {scores.dtype}")
    return scores


def _not_empty(name: str, scores: Array, role: str, columns: str) -> None:
    """A mean over no rows is no number, and a row of nothing has no loss."""
    if scores.size:
        return
    if not scores.shape[-1]:
        raise InputError(
            f"losses.{name}: {role} of shape {scores.shape} are empty: they have no {columns}, of "
            "which every row needs at least one; check what makes their last axis"
        )
    raise InputError(
        f"losses.{name}: {role} of shape {scores.shape} are empty: they have no rows, and the loss "
        "is a mean over rows; leave empty batches out"
    )


def _arguments(
    name: str, scores: Any, labels: Any, lam: Any, ignore: int | None
) -> tuple[Array, Array, Array]:
    """Scores, targets and λ, which is 0 for rows that do not count; checked if they are known."""
    scores = _floating(name, scores)
    if not scores.ndim:
        raise InputError(f"losses.{name}: scores need an axis of classes, but are a scalar")
    _not_empty(name, scores, "scores", "classes")
    targets, counted = targets_of(name, scores, labels, ignore)
    strength = _strength(name, lam, scores)
    return scores, targets, strength if counted is None else jnp.where(counted, strength, 0)


def _strength(name: str, lam: Any, scores: Array) -> Array:
    strength = jnp.asarray(lam, scores.dtype)
    if strength.shape not in ((), scores.shape[:-1]):
        raise InputError(
            f"losses.{name}: λ must be one number or have shape {scores.shape[:-1]}, one per row, "
            f"not {strength.shape}"
        )
    if _compat.is_known(strength) and not np.all(np.asarray(strength) > 0):
        raise InputError(f"losses.{name}: λ must be positive, not {lam}")
    return strength
