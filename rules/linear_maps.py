"""Linear maps whose rows vary: sums of prefixes, and of what data put in the same place."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.rules.maps import Map, Shape

__all__ = ["CumulativeSum", "ScatterSum"]


@dataclasses.dataclass(frozen=True)
class CumulativeSum(Map):
    """``out[i] = Σ_{j ≤ i} x[j]`` along an axis, or over ``j ≥ i`` in reverse."""

    size: Shape
    axis: int
    reverse: bool

    @property
    def shape(self) -> Shape:
        return self.size

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (self.size,)

    @property
    def fan(self) -> int:
        return self.size[self.axis]

    @property
    def terms(self) -> np.ndarray:
        triangle = np.tri(self.fan, dtype=bool)
        return self._along(triangle.T if self.reverse else triangle)

    @property
    def count(self) -> Any:
        ramp = np.arange(1, self.fan + 1)
        return self._along(ramp[::-1] if self.reverse else ramp)

    def readers(self, side: int) -> Any:
        return np.flip(self.count, self.axis)

    def apply(self, *operands: Array) -> Array:
        (x,) = operands
        return lax.cumsum(x, self.axis, self.reverse)

    def private_copies(self, x: Array, side: int) -> Array:
        """The whole axis for every row, 0 beyond its terms."""
        column = jnp.expand_dims(jnp.moveaxis(x, self.axis, -1), self.axis)
        return jnp.where(self.terms, column, 0)

    def _along(self, x: np.ndarray) -> np.ndarray:
        """The first axis of ``x`` as the axis of the sum, others after the output's."""
        ones = len(self.size) - 1 - self.axis
        return x.reshape((1,) * self.axis + x.shape[:1] + (1,) * ones + x.shape[1:])


@dataclasses.dataclass(frozen=True)
class ScatterSum(Map):
    """``out[index[j]] += x[j]`` into zeros, as ``jax.lax.scatter_add``; the indices are data.

    They stand in the place of a second factor. Every element has one row at most (none where its
    index is out of bounds, which counts as a reader all the same), so that nothing is shared.
    """

    shape_: Shape
    updates: Shape
    indices: Shape
    options: tuple[tuple[str, Any], ...]

    @property
    def shape(self) -> Shape:
        return self.shape_

    @property
    def fan(self) -> int:
        """Of one summand; how many a row has, the indices say."""
        return 1

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.updates, self.indices

    def owns(self, side: int) -> bool:
        return True

    def readers(self, side: int) -> int:
        return 1

    def apply(self, *operands: Array) -> Array:
        x, indices = operands
        zeros = jnp.zeros(self.shape, x.dtype)
        return lax.scatter_add(zeros, indices, x, **dict(self.options))

    def norms(self, inverse: Any, coefficient: Array | None, side: int) -> Any:
        """The sum of ``1 / ω`` over what falls into every row."""
        assert coefficient is not None
        inverse = jnp.asarray(inverse)
        return self.apply(jnp.broadcast_to(inverse, self.updates), coefficient)
