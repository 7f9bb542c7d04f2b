"""Sums of products, whose compilation does not take long where they are small.

A reduction becomes several kernels of XLA, and most of the first call of an update is compilation.
One product of arrays takes it a fifth of the time, but does not run as fast where they are large.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["column_sums", "inner", "squared"]

_SMALL = 4096  # elements


def inner(x: Array, y: Array) -> Float[Array, ""]:
    """The inner product of two arrays of one shape."""
    return jnp.sum(x * y) if x.size > _SMALL else _dot(x.ravel(), y.ravel())


def squared(x: Array) -> Float[Array, ""]:
    """The squared length of an array."""
    return inner(x, x)


def column_sums(x: Float[Array, "rows columns"]) -> Float[Array, "columns"]:
    """The sums over the first axis."""
    return jnp.sum(x, 0) if x.size > _SMALL else _dot(jnp.ones(len(x), x.dtype), x)


def _dot(x: Array, y: Array) -> Any:
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)
