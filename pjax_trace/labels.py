"""Labels of classes: checked as far as they are known, and made into one row of targets each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.errors import InputError

__all__ = ["targets_of"]


def targets_of(
    name: str, scores: Array, labels: Any, ignore: int | None
) -> tuple[Array, Array | None]:
    """One row of targets for each row of scores, and which rows count; None if all do.

    Args:
        name: of the loss, for messages.
        scores: with classes on the last axis.
        labels: integers, one for each row; or one-hot or soft rows.
        ignore: the label of rows that do not count; None if all count.

    Raises:
        InputError: if labels do not fit, or what is known of them is no label.
    """
    if ignore is not None and (isinstance(ignore, bool) or not isinstance(ignore, int)):
        raise InputError(f"losses.{name}: ignore must be an integer label, not {ignore!r}")
    try:
        labels = jnp.asarray(labels)
    except TypeError as error:
        raise InputError(
            f"losses.{name}: labels must be numbers, from 0 to the number of classes less one: "
            f"{error}"
        ) from error
    if labels.shape == scores.shape:
        return _rows(name, scores, labels, ignore), None
    if labels.shape == (*scores.shape[:-1], 1):
        raise _misfit(name, scores, labels, "drop its last axis: labels[..., 0]")
    if labels.shape != scores.shape[:-1]:
        raise _misfit(name, scores, labels, "check what makes the batch, and its order of axes")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise _misfit(name, scores, labels, "write labels.astype(int) if these are classes")
    return _classes(name, scores, labels, ignore)


def _misfit(name: str, scores: Array, labels: Array, way: str) -> InputError:
    kinds = [f"integer labels of shape {scores.shape[:-1]}", "one-hot labels of the same shape"]
    if labels.ndim == scores.ndim and labels.shape[-1] != 1:
        kinds.reverse()
    return InputError(
        f"losses.{name}: scores of shape {scores.shape} need {kinds[0]}, not {labels.shape} of "
        f"{labels.dtype}, or else {kinds[1]}; {way}"
    )


def _classes(
    name: str, scores: Array, labels: Array, ignore: int | None
) -> tuple[Array, Array | None]:
    classes = scores.shape[-1]
    valid = (labels >= 0) & (labels < classes)
    counted = None if ignore is None else labels != ignore
    if _compat.is_known(labels):  # with numpy: under jit, jax.numpy would trace constants
        values = np.asarray(labels)
        wrong = (values < 0) | (values >= classes)
        if ignore is not None:
            wrong &= values != ignore
        if np.any(wrong):
            bad = values[wrong][0]
            raise InputError(
                f"losses.{name}: label {bad} is not one of the {classes} classes, which are 0 to "
                f"{classes - 1} (so it is in {np.sum(wrong)} of {values.size} labels); if it marks "
                f"rows that should not count, say ignore={bad}"
            )
    targets = jax.nn.one_hot(labels, classes, dtype=scores.dtype)
    # Not a silent zero row: the step's check for NaN names this loss.
    targets = jnp.where(valid[..., None], targets, jnp.nan)
    if counted is not None:
        targets = jnp.where(counted[..., None], targets, 0)
    return targets, counted


def _rows(name: str, scores: Array, labels: Array, ignore: int | None) -> Array:
    if ignore is not None:
        raise InputError(
            f"losses.{name}: ignore={ignore} is a label, but the labels are rows; a row of zeros "
            "counts for nothing, or give integer labels"
        )
    if jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise InputError(f"losses.{name}: labels must be integers or floats, not {labels.dtype}")
    real = jnp.issubdtype(labels.dtype, jnp.floating)
    eps = max(float(jnp.finfo(dtype).eps) for dtype in (scores.dtype, *[labels.dtype] * real))
    near = max(1e-3, 8 * eps)  # what rounding may make of a sum of probabilities
    if _compat.is_known(labels):
        values = np.asarray(labels).astype(np.float64)
        total = values.sum(-1)
        wrong = (values < 0).any(-1) | ~((np.abs(total - 1) <= near) | (total == 0))
        if np.any(wrong):
            row = tuple(int(i[0]) for i in np.nonzero(wrong))
            raise InputError(
                f"losses.{name}: the row {', '.join(map(str, row))} of labels, "
                f"{np.array2string(values[wrong][0], threshold=8)}, is no distribution: its "
                f"elements must not be negative and must sum to 1 (in {np.sum(wrong)} of "
                f"{wrong.size} rows they do not); a row counts for more or less by lam=, and not "
                "at all if it is zero"
            )
    targets = labels.astype(scores.dtype)
    total = jnp.sum(targets, -1, keepdims=True)
    valid = jnp.all(targets >= 0, -1, keepdims=True)
    valid &= (jnp.abs(total - 1) <= near) | (total == 0)
    return jnp.where(valid, targets, jnp.nan)
