"""Governing points: what solvers iterate on, kept between updates.

What an update returns is a shadow of the point that the solver moves, and does not tell it. So that
updates go on as one long one would, the state keeps the point; it holds as long as the parameters
come back as they were given out, and the data are the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

__all__ = ["Governing", "alike"]


class Governing(eqx.Module):
    """A point, with what it belongs to.

    Attributes:
        carry: of the solver.
        given: the parameters that were given out.
        data: a fingerprint of every array of data.
    """

    carry: Any
    given: tuple[Array, ...]
    data: tuple[UInt32[Array, ""], ...]

    @staticmethod
    def of(carry: Any, given: Sequence[Array], data: Sequence[Any]) -> "Governing":
        """The point of these parameters and data."""
        return Governing(carry, tuple(given), tuple(map(_fingerprint, data)))

    def resumed(self, fresh: Any, parameters: Sequence[Array], data: Sequence[Any]) -> Any:
        """This point, if these are the parameters and data that it belongs to; else a fresh one."""
        pairs = [*zip(self.given, parameters, strict=True)]
        pairs += zip(self.data, map(_fingerprint, data), strict=True)
        same = jnp.all(jnp.stack([jnp.all(x == y) for x, y in pairs]))
        return jax.tree.map(lambda x, y: jnp.where(same, x, y), self.carry, fresh)

    def nowhere(self) -> "Governing":
        """A point of these shapes that belongs to nothing."""
        # NumPy's: an array of JAX takes as long to make as many a problem takes to solve.
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self)
        nowhere = tuple(np.full(x.shape, np.nan, x.dtype) for x in zeros.given)
        return dataclasses.replace(zeros, given=nowhere)


def alike(one: Any, other: Any) -> bool:
    """Whether two pytrees have the same structure, shapes and dtypes."""
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (one, other)]
    return shapes[0] == shapes[1]


def _fingerprint(x: Any) -> UInt32[Array, ""]:
    """A number that tells arrays apart, the same for equal bits in whatever order it is summed."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([jnp.real(x), jnp.imag(x)])
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize > 4:
        x = jax.lax.bitcast_convert_type(x, jnp.uint32)
    elif not jnp.issubdtype(x.dtype, jnp.integer):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    places = jnp.arange(x.size, dtype=jnp.uint32)
    return jnp.sum(x.reshape(-1).astype(jnp.uint32) * (2 * places + 1), dtype=jnp.uint32)
