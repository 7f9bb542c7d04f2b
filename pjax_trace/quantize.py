"""Weights and activations of few levels.

To JAX `quantize` is an ordinary function. In a traced program it is one equation of a primitive of
its own, whose rule is in the library, where those of all primitives are.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pjax_trace import _compat
from pjax_trace.errors import InputError

__all__ = ["quantize", "quantize_p"]


def _quantized(x: Array, unit: Array, *, levels: int) -> list[Array]:
    """The nearest of ``levels`` levels, ``unit`` apart and symmetric about 0; up at ties."""
    top = (levels - 1) / 2
    shift = top % 1  # of the levels from integers
    level = jnp.floor(x / unit + (0.5 - shift)) + shift
    return [unit * jnp.clip(level, -top, top)]


def _batch(
    operands: Sequence[Any], axes: Sequence[int | None], params: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Elementwise in the batch, too: operands keep one rank, and the output has the shape of x."""
    x, unit = (
        jnp.expand_dims(a, 0) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(operands, axes, strict=True)
    )
    size = np.broadcast_shapes(x.shape[:1], unit.shape[:1])
    return [jnp.broadcast_to(x, (*size, *x.shape[1:])), unit], params


quantize_p = _compat.new_primitive("quantize", implementation=_quantized, batch=_batch)


def quantize(x: Float[Array, "..."], levels: int, scale: ArrayLike = 1.0) -> Float[Array, "..."]:
    """Round to the nearest of equally spaced levels in ``[−scale, scale]``, elementwise.

    Two levels give binary values, three ternary ones, and 256 an 8-bit number. Elements beyond the
    outermost level are rounded to it, and elements halfway between two levels to the upper one.

    To JAX it is an ordinary function, whose derivative by ``x`` is zero. In a function that
    `pjax_trace.project` solves it is a constraint, projected onto exactly, so that weights and
    activations of few levels can be trained: ``pjax.quantize(w, 3) @ x``.

    Args:
        x: a floating-point array.
        levels: how many, at least 2; static.
        scale: the outermost level, positive; an array broadcasts to ``x``. In a function that
            `pjax_trace.project` solves it must be data, not what a solver moves.

    Returns:
        An array like ``x``.

    Raises:
        InputError: if ``x`` is not floating point, ``levels`` is no integer above 1 or too many for
            the precision of ``x``, or ``scale`` is not positive, not finite or of a shape that does
            not broadcast to that of ``x``.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> pjax.quantize(jnp.array([-3.0, -0.4, 0.2, 0.6]), 3).tolist()
        [-1.0, 0.0, 0.0, 1.0]
        >>> pjax.quantize(jnp.array([-0.3, 0.0, 0.3]), 2, 0.5).tolist()
        [-0.5, 0.5, 0.5]
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"quantize: the array must be floating point, not {x.dtype}")
    try:
        count = operator.index(levels)
    except TypeError as error:
        raise InputError(f"quantize: levels must be an integer, not {levels!r}") from error
    most = int(1 / (4 * jnp.finfo(x.dtype).eps))
    if isinstance(levels, bool) or not 2 <= count <= most:
        raise InputError(
            f"quantize: levels must be an integer from 2 to {most} for {x.dtype}, not {levels!r}"
        )
    try:
        # What is known stays NumPy's, so that the levels are the same numbers under jit.
        known = _compat.is_known(scale)
        outermost = np.asarray(scale, x.dtype) if known else jnp.asarray(scale).astype(x.dtype)
        fits = np.broadcast_shapes(outermost.shape, x.shape) == x.shape
    except (TypeError, ValueError) as error:
        raise InputError(f"quantize: scale {scale!r} does not fit shape {x.shape}") from error
    if not fits:
        raise InputError(
            f"quantize: scale has shape {outermost.shape}, which does not broadcast to {x.shape}"
        )
    if isinstance(outermost, np.ndarray):
        if not np.all((outermost > 0) & np.isfinite(outermost)):
            raise InputError("quantize: scale must be positive and finite")
    unit = outermost / np.asarray((count - 1) / 2, x.dtype)
    unit = jnp.asarray(unit).reshape((1,) * (x.ndim - outermost.ndim) + outermost.shape)
    return quantize_p.bind(x, unit, levels=count)[0]
