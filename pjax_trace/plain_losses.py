"""Losses that are plain JAX code; `pjax_trace.project` finds their proximal operators itself.

Each is a mean over all elements, or over rows where classes are on the last axis, and carries its
name as a ``jax.named_scope``, by which ``info.losses`` and ``explain`` call it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer, PyTree

from pjax_trace import _compat
from pjax_trace.custom import call, loss_p
from pjax_trace.errors import InputError
from pjax_trace.rule import Arrays, Moment, Params, Projection, Rule, Weights, squared_distance

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "custom",
    "hinge",
    "huber",
    "kl",
    "nll",
    "penalty",
    "scaled",
]


def scaled(value: Array, lam: ArrayLike) -> Array:
    """A loss that has λ times its slope, and its own value."""
    lam = jnp.asarray(lam, value.dtype)
    return value + (lam - 1) * (value - jax.lax.stop_gradient(value))


def huber(
    predictions: Float[Array, "..."],
    targets: Float[ArrayLike, "..."],
    *,
    delta: float = 1.0,
    lam: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """The mean over elements of Huber's loss, ``½ d²`` for ``|d| ≤ δ`` and ``δ (|d| − ½ δ)`` else.

    Args:
        predictions: any array.
        targets: of the same shape, or of one that broadcasts to it; they may depend on variables.
        delta: δ > 0.
        lam: λ > 0.

    Raises:
        InputError: if shapes do not fit, predictions are empty or no floats, or δ or λ is not
            positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.huber(jnp.array([0.5, 3.0]), 0.0))
        1.3125
    """
    x, goal, strength = _pair("huber", predictions, targets, lam)
    if not delta > 0:
        raise InputError(f"losses.huber: delta must be positive, not {delta}")
    with jax.named_scope("huber"):
        d = x - goal
        size = jnp.abs(d)
        rows = jnp.where(size <= delta, 0.5 * d * d, delta * (size - 0.5 * delta))
        return jnp.mean(scaled(rows, strength))


def absolute_error(
    predictions: Float[Array, "..."], targets: Float[ArrayLike, "..."], *, lam: ArrayLike = 1.0
) -> Float[Array, ""]:
    """The mean over elements of ``|x − t|``; arguments and errors as those of `huber`.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.absolute_error(jnp.array([1.0, -3.0]), 0.0))
        2.0
    """
    x, goal, strength = _pair("absolute_error", predictions, targets, lam)
    with jax.named_scope("absolute_error"):
        return jnp.mean(scaled(jnp.abs(x - goal), strength))


def hinge(
    scores: Float[Array, "..."],
    labels: Float[ArrayLike, "..."] | Integer[ArrayLike, "..."],
    *,
    lam: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """The mean over elements of ``max(0, 1 − y x)``, for labels y of −1 and 1.

    Args:
        scores: any array.
        labels: −1 or 1 for every score.
        lam: λ > 0.

    Raises:
        InputError: as `huber`, and if a label is neither −1 nor 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.hinge(jnp.array([2.0, 0.5]), jnp.array([1, 1])))
        0.25
    """
    x, y, strength = _pair("hinge", scores, labels, lam)
    if _compat.is_known(y) and not np.all(np.abs(np.asarray(y)) == 1):
        raise InputError("losses.hinge: labels must be -1 or 1; of 0 and 1 make 2 * labels - 1")
    with jax.named_scope("hinge"):
        return jnp.mean(scaled(jnp.maximum(0, 1 - y * x), strength))


def binary_cross_entropy(
    logits: Float[Array, "..."], labels: ArrayLike, *, lam: ArrayLike = 1.0
) -> Float[Array, ""]:
    """The mean over elements of ``log(1 + exp(x)) − y x``: the cross entropy of sigmoid(x).

    Args:
        logits: any array.
        labels: between 0 and 1, booleans included, for every logit.
        lam: λ > 0.

    Raises:
        InputError: as `huber`, and if a label is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> round(float(pjax.losses.binary_cross_entropy(jnp.zeros(3), jnp.ones(3))), 4)
        0.6931
    """
    x, y, strength = _pair("binary_cross_entropy", logits, labels, lam)
    if _compat.is_known(y) and not np.all((np.asarray(y) >= 0) & (np.asarray(y) <= 1)):
        raise InputError("losses.binary_cross_entropy: labels must be between 0 and 1")
    with jax.named_scope("binary_cross_entropy"):
        return jnp.mean(scaled(jnp.logaddexp(x, 0) - y * x, strength))


def kl(
    logits: Float[Array, "*rows classes"],
    targets: Float[ArrayLike, "*rows classes"],
    *,
    lam: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """The mean over rows of ``Σ t (log t − log softmax(x))``, the Kullback–Leibler divergence.

    Args:
        logits: classes on the last axis.
        targets: probabilities, of the same shape; they may depend on variables.
        lam: λ > 0.

    Raises:
        InputError: as `huber`.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> round(float(pjax.losses.kl(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))), 4)
        0.6931
    """
    x, t, strength = _pair("kl", logits, targets, lam)
    if not x.ndim:
        raise InputError("losses.kl: logits need an axis of classes, but are a scalar")
    with jax.named_scope("kl"):
        inner = jnp.where(t > 0, t * jnp.log(jnp.where(t > 0, t, 1)), 0)
        rows = jnp.sum(inner - t * jax.nn.log_softmax(x), axis=-1)
        return jnp.mean(scaled(rows, strength))


def nll(
    log_probabilities: Float[Array, "*rows classes"],
    labels: Integer[ArrayLike, "*rows"],
    *,
    lam: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """The mean over rows of minus the logarithm of the probability of the label.

    Args:
        log_probabilities: classes on the last axis, of `jax.nn.log_softmax`, say.
        labels: integers, one for every row.
        lam: λ > 0.

    Raises:
        InputError: if shapes do not fit, there are no rows, or λ is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.nll(jnp.array([[-2.0, -0.5]]), jnp.array([0])))
        2.0
    """
    x, labels = jnp.asarray(log_probabilities), jnp.asarray(labels)
    fits = jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == x.shape[:-1]
    if not x.ndim or not fits or not labels.size:
        raise InputError(
            f"losses.nll: log probabilities of shape {x.shape} need integer labels of shape "
            f"{x.shape[:-1]}, one per row, not {labels.dtype}{list(labels.shape)}"
        )
    strength = _strength("nll", lam, x)
    with jax.named_scope("nll"):
        rows = -jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]
        return jnp.mean(scaled(rows, strength))


def penalty(
    parameters: PyTree[Array],
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    group: float = 0.0,
    axis: int | tuple[int, ...] = 0,
) -> Float[Array, ""]:
    """``l1 Σ |w| + ½ l2 Σ w² + group Σ √(Σ_axis w²)`` of all floating-point arrays of a pytree.

    The lasso, ridge, the elastic net and the group lasso. Their proximal operators are exact, so
    that what l1 or group puts to zero is zero.

    Args:
        parameters: arrays, or modules; what is no floating-point array is left out.
        l1: of the sum of absolute values.
        l2: of half the sum of squares.
        group: of the sum of the norms along ``axis``; arrays with fewer axes are left out of it.
        axis: which elements are one group.

    Raises:
        InputError: if a weight is negative, or there is no array.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> float(pjax.losses.penalty({"w": jnp.array([3.0, -4.0])}, l1=0.5, l2=0.1))
        4.75
    """
    if min(l1, l2, group) < 0:
        raise InputError("losses.penalty: l1, l2 and group must not be negative")
    leaves = [x for x in jax.tree.leaves(parameters) if hasattr(x, "dtype")]
    leaves = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    if not leaves:
        raise InputError("losses.penalty: there is no floating-point array to penalise")
    deepest = max(axis) if isinstance(axis, tuple) else axis
    with jax.named_scope("penalty"):
        parts = []
        for x in leaves:
            if l1:
                parts.append(l1 * jnp.sum(jnp.abs(x)))
            if l2:
                parts.append(0.5 * l2 * jnp.sum(jnp.square(x)))
            if group and x.ndim > max(deepest, 0):
                parts.append(group * jnp.sum(jnp.sqrt(jnp.sum(jnp.square(x), axis))))
        return sum(parts, jnp.zeros((), leaves[0].dtype))


@dataclasses.dataclass(frozen=True)
class _Custom(Rule):
    """A loss of the user's, with the proximal operator that comes with it."""

    function: Callable[..., Array]
    prox: Callable[..., Array]

    family = "loss"
    exactness = "the user's"
    movable = 1

    def apply(self, params: Params, *operands: Array) -> Array:
        """The loss."""
        x, _, *data = operands
        return jnp.asarray(self.function(x, *data), x.dtype)

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The proximal step."""
        x, lam, *data, scale = operands
        weight = weights.operands[0]
        step = lam * scale / weight
        moved = self.prox(x, step, *data)
        if jnp.shape(moved) != x.shape:
            raise InputError(
                f"losses.custom: the proximal operator returned {jnp.shape(moved)} for {x.shape}"
            )
        moved = jnp.where(step > 0, moved, jnp.where(step == 0, x, jnp.nan))
        none = (None,) * (len(operands) - 1)
        moment = Moment(weight * moved, weight)
        return Projection((moment, *none), None, squared_distance(weight, moved, x))


def custom(
    function: Callable[..., Array],
    prox: Callable[..., Array] | None = None,
    *,
    name: str | None = None,
) -> Callable[..., Array]:
    """A loss of one's own, optionally with its proximal operator.

    Without one, the function is a loss as any that `pjax_trace.project` finds, projected by what
    its equations tell; then this only gives it a name and a λ.

    Args:
        function: ``function(x, *data)``, a scalar. For a batch, give what comes back to `jax.vmap`
            and return the mean.
        prox: ``prox(x, lam, *data)``, ``argmin_z lam function(z, *data) + ½ |z − x|²``, of x's
            shape, for a scalar ``lam`` > 0.
        name: what ``info.losses`` and ``explain`` call it; by default the function's.

    Returns:
        ``loss(x, *data, lam=1.0)``. With a proximal operator only x may depend on variables.

    Raises:
        InputError: if ``function`` or ``prox`` is no function, or, in a call, the loss no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def length(x):
        ...     return jnp.sum(jnp.abs(x))
        >>> def shrunk(x, lam):
        ...     return jnp.sign(x) * jnp.maximum(jnp.abs(x) - lam, 0)
        >>> loss = pjax.losses.custom(length, shrunk)
        >>> float(loss(jnp.array([1.0, -2.0])))
        3.0
    """
    if not callable(function) or not (prox is None or callable(prox)):
        raise InputError("losses.custom takes a function, and a proximal operator or None")
    called = name or getattr(function, "__name__", "custom")
    called = called if called.isidentifier() else "custom"

    def loss(x: Array, *data: Any, lam: ArrayLike = 1.0) -> Array:
        x = jnp.asarray(x)
        value = jax.eval_shape(function, x, *data)
        if value.shape:
            raise InputError(
                f"losses.custom: {called} returned shape {value.shape}, and must return a scalar; "
                "for a batch, give the loss to jax.vmap and return the mean"
            )
        strength = _strength(called, lam, x)
        if prox is None:
            with jax.named_scope(called):
                return scaled(jnp.asarray(function(x, *data)), strength)
        arrays = map(jnp.asarray, data)
        return call(loss_p, _Custom(function, prox), x, strength, *arrays, name=called)

    return loss


def _pair(name: str, x: Any, targets: Any, lam: Any) -> tuple[Array, Array, Array]:
    """Predictions, targets of their shape, and λ."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"losses.{name}: the first argument must be floats, not {x.dtype}")
    if not x.size:
        raise InputError(f"losses.{name}: an array of shape {x.shape} has no elements to average")
    goal = jnp.asarray(targets)
    try:
        goal = jnp.broadcast_to(goal.astype(x.dtype), x.shape)
    except ValueError as error:
        raise InputError(
            f"losses.{name}: shape {x.shape} needs a second argument of the same shape, or of one "
            f"that broadcasts to it, not {goal.shape}"
        ) from error
    return x, goal, _strength(name, lam, x)


def _strength(name: str, lam: Any, x: Array) -> Array:
    strength = jnp.asarray(lam, x.dtype)
    if strength.shape:
        raise InputError(f"losses.{name}: λ must be one number, not {strength.shape}")
    if _compat.is_known(strength) and not np.asarray(strength) > 0:
        raise InputError(f"losses.{name}: λ must be positive, not {lam}")
    return strength
