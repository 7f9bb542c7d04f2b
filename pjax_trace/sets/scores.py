"""Sets of the scores that a classifier gives to samples."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pjax_trace.errors import InputError
from pjax_trace.sets.base import (
    Set,
    as_array,
    check_count,
    check_finite,
    check_not_negative,
    concrete,
    largest,
    squares,
    threshold,
    whole,
)

__all__ = ["AtMostWrong"]


class AtMostWrong(Set):
    """Scores by which all samples but a few are classified as their labels say.

    A sample is right if the score of its label is at least that of any other class plus a margin:
    ``{y : y[i, labels[i]] >= y[i, j] + margin for all j != labels[i]}`` for all samples i but at
    most ``wrong`` of them. With ``wrong=0``, and only then, the set is convex.

    Args:
        wrong: how many samples may be wrong; not negative.
        labels: integers, of the shape of the scores without the last axis. Samples whose label is
            no class become NaN.
        margin: a number; negative ones tolerate scores of other classes that are larger.

    Raises:
        InputError: if ``wrong`` is negative, labels are no integers, the margin is not finite, or
            the labels do not fit the scores.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import AtMostWrong
        >>> scores = jnp.array([[1.0, 3.0], [1.0, 9.0], [5.0, 0.0]])
        >>> AtMostWrong(1, [0, 0, 0]).project(scores)
        Array([[2., 2.],
               [1., 9.],
               [5., 0.]], dtype=float32)
    """

    wrong: int = eqx.field(converter=whole, static=True)
    labels: ArrayLike = eqx.field(converter=as_array)
    margin: ArrayLike = 0.0

    def __check_init__(self):
        check_count(self, "wrong", self.wrong)
        check_finite(self, margin=self.margin)
        check_not_negative(self, labels=self.labels)
        if eqx.is_array_like(self.labels) and not jnp.issubdtype(
            jnp.result_type(self.labels), jnp.integer
        ):
            raise InputError("AtMostWrong: labels must be integers")

    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all samples must be right."""
        return self.wrong == 0

    def project(self, x: Float[Array, "... classes"]) -> Float[Array, "... classes"]:
        """The nearest point: all samples become right but those that cost most."""
        labels = jnp.asarray(self.labels).astype(jnp.int32)
        if x.ndim == 0 or labels.shape != x.shape[:-1]:
            raise InputError(f"labels of shape {labels.shape} do not fit scores of {x.shape}")
        classes = x.shape[-1]
        if concrete(self.labels) and np.any((known := np.asarray(self.labels)) >= classes):
            raise InputError(f"labels must be less than {classes}, not {known.max()}")
        if x.size == 0:
            return x
        names = jnp.arange(classes, dtype=jnp.int32)
        own = labels[..., None] == jnp.broadcast_to(names, x.shape)
        right = _right(x, own, jnp.asarray(self.margin).astype(x.dtype))
        cost = squares(right - x)
        left = largest(cost.ravel(), min(self.wrong, cost.size)).reshape(*cost.shape, 1)
        y = jnp.where(left, x, right)
        return jnp.where(jnp.any(own, axis=-1, keepdims=True), y, jnp.nan)


def _right(x: Array, own: Array, margin: Array) -> Array:
    """Rows in which the class that is marked leads by the margin.

    With u the score of that class less the margin, scores above a level t become t, and u is raised
    to it: ``t - u = sum(max(x_j - t, 0))``.
    """
    lead = jnp.sum(jnp.where(own, x, 0), axis=-1, keepdims=True) - margin
    above = jnp.where(own, 0, jnp.maximum(x - lead, 0))
    level = threshold(above, jnp.zeros_like(lead), extra=1)
    lowered = x - jnp.maximum(above - level, 0)
    return jnp.where(own, x + level, lowered)
