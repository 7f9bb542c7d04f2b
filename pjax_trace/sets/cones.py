"""Cones that are no boxes: the second-order cone, and monotone sequences."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.sets.base import Axis, Set, along, polar

__all__ = ["Monotone", "SecondOrderCone"]


class SecondOrderCone(Set):
    """The cone ``{(t, y) : |y|_2 <= t}``, or one for every slice of x.

    Args:
        axis: what a slice extends along, the bound t first; ``None`` for all of x.

    References:
        N. Parikh, S. Boyd, Proximal algorithms (2014), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import SecondOrderCone
        >>> SecondOrderCone().project(jnp.array([1.0, 0.0, 3.0]))
        Array([2., 0., 2.], dtype=float32)
    """

    convex: ClassVar[bool] = True
    axis: Axis = eqx.field(default=None, static=True)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: both sides become ``max(|y| + t, 0) / 2`` where t is too small."""
        return along(self.axis, _second_order, x)


def _second_order(x: Array) -> Array:
    bound, inner = x[..., :1], x[..., 1:]
    length, direction = polar(inner)
    common = jnp.maximum(length / 2 + bound / 2, 0)
    moved = jnp.concatenate([common, common * direction], axis=-1)
    return jnp.where(length <= bound, x, moved)


class Monotone(Set):
    """The monotone cone ``{y : y_1 <= y_2 <= ... <= y_n}``, or one for every slice of x.

    The nearest point is the isotonic regression of x. It is found by pooling adjacent violators: at
    most 2 n steps of a loop, one after the other.

    Args:
        axis: what a slice extends along; ``None`` for all of x, in row-major order.
        increasing: whether elements must not decrease; with False, they must not increase.

    References:
        M. Best, N. Chakravarti, Active set algorithms for isotonic regression; a unifying framework
        (1990).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Monotone
        >>> Monotone().project(jnp.array([1.0, 4.0, 2.0, 5.0]))
        Array([1., 3., 3., 5.], dtype=float32)
    """

    convex: ClassVar[bool] = True
    axis: Axis = eqx.field(default=None, static=True)
    increasing: bool = eqx.field(default=True, static=True)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: means of blocks of adjacent elements."""
        pooled = jnp.vectorize(_pooled, signature="(n)->(n)")
        return along(self.axis, pooled, x) if self.increasing else -along(self.axis, pooled, -x)


def _pooled(x: Array) -> Array:
    """Isotonic regression of one sequence: a stack of blocks, each with its mean and its length."""
    size = x.shape[0]

    def violates(top: Array, means: Array) -> Array:
        return (top > 0) & (means[top - 1] > means[top])

    def proceeds(state: tuple[Array, ...]) -> Array:
        taken, top, means, _ = state
        return (taken < size) | violates(top, means)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        """The topmost blocks become one if they violate the order; else an element is put on."""
        taken, top, means, lengths = state
        joins = violates(top, means)
        below = jnp.maximum(top - 1, 0)
        length = lengths[below] + lengths[top]
        share = lengths[top].astype(x.dtype) / jnp.maximum(length, 1).astype(x.dtype)
        mean = means[below] + (means[top] - means[below]) * share
        top = jnp.where(joins, top - 1, top + 1)
        means = means.at[top].set(jnp.where(joins, mean, x[jnp.minimum(taken, size - 1)]))
        lengths = lengths.at[top].set(jnp.where(joins, length, 1))
        return taken + jnp.where(joins, 0, 1), top, means, lengths

    start = jnp.asarray(1), jnp.asarray(0), x, jnp.ones(size, int)
    _, top, means, lengths = jax.lax.while_loop(proceeds, step, start)
    ends = jnp.cumsum(jnp.where(jnp.arange(size) <= top, lengths, 0))
    return means[jnp.searchsorted(ends, jnp.arange(size), side="right")]
