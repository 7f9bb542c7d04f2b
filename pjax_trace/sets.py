"""Constraint sets for `pjax_trace.constrain`, and the base class for sets of your own.

A set is a pytree. Its arrays are data of the traced function, and may be traced values.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.errors import InputError

__all__ = ["Ball", "Box", "Equal", "NonNegative", "Set"]


class Set(eqx.Module):
    """A closed set of arrays: a subclass defines `project`, and says so if it is `convex`.

    Attributes:
        convex: whether the set is known to be convex; a sweep moves a parameter within a convex
            set, and keeps a latent point beside it for others (discrete values, sparsity patterns),
            of which the user gets the projection.
        interval: whether it is an interval of its own for every element, so that elements are
            projected one by one, and what is between two points of it is in it.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Set
        >>> class Integers(Set):
        ...     def project(self, x):
        ...         return jnp.round(x)
        >>> Integers().project(jnp.array([0.4, 2.7]))
        Array([0., 3.], dtype=float32)
    """

    convex: ClassVar[bool] = False
    interval: ClassVar[bool] = False

    @abc.abstractmethod
    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point, ``argmin_{y in self} |y - x|^2``, in the shape and dtype of x."""

    def fits(self, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> None:
        """Check, from shapes alone, that arrays of this shape can be projected.

        Raises:
            InputError: if `project` fails on such an array or answers with another shape.
        """
        name = type(self).__name__
        try:
            out = jax.eval_shape(self.project, jax.ShapeDtypeStruct(shape, dtype))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} cannot apply to shape {shape}: {error}") from error
        if getattr(out, "shape", None) != tuple(shape):
            raise InputError(f"{name}.project maps an array of shape {shape} to {out}")


class Equal(Set):
    """The set ``{value}``: x is fixed to a value.

    Args:
        value: broadcasts to the shape of x.

    Raises:
        InputError: if a value is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Equal
        >>> Equal(0.5).project(jnp.zeros(2))
        Array([0.5, 0.5], dtype=float32)
    """

    convex: ClassVar[bool] = True
    interval: ClassVar[bool] = True
    value: ArrayLike

    def __check_init__(self):
        _no_nan(self, value=self.value)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``value``."""
        return _broadcast("value", self.value, x, x.shape)


class Box(Set):
    """The box ``{y : lower <= y <= upper}``, elementwise.

    Args:
        lower: the lower bound; broadcasts to the shape of x. ``-inf`` means no bound.
        upper: the upper bound; broadcasts to the shape of x. ``inf`` means no bound.

    Raises:
        InputError: if a bound is NaN or a lower bound exceeds its upper bound.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Box
        >>> Box(-1.0, jnp.inf).project(jnp.array([-2.0, 0.5, 7.0]))
        Array([-1. ,  0.5,  7. ], dtype=float32)
    """

    convex: ClassVar[bool] = True
    interval: ClassVar[bool] = True
    lower: ArrayLike
    upper: ArrayLike

    def __check_init__(self):
        _no_nan(self, lower=self.lower, upper=self.upper)
        if _concrete(self.lower, self.upper) and np.any(np.greater(self.lower, self.upper)):
            raise InputError(f"Box is empty: lower {self.lower} exceeds upper {self.upper}")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``min(max(x, lower), upper)``."""
        lower = _broadcast("lower", self.lower, x, x.shape)
        upper = _broadcast("upper", self.upper, x, x.shape)
        # An empty box, where its bounds were not known before, must not pass for satisfied.
        return jnp.where(lower <= upper, jnp.minimum(jnp.maximum(x, lower), upper), jnp.nan)


class NonNegative(Set):
    """The nonnegative orthant, ``{y : y >= 0}``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import NonNegative
        >>> NonNegative().project(jnp.array([-2.0, 0.5]))
        Array([0. , 0.5], dtype=float32)
    """

    convex: ClassVar[bool] = True
    interval: ClassVar[bool] = True

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``max(x, 0)``."""
        return jnp.maximum(x, 0)


class Ball(Set):
    """The Euclidean ball ``{y : |y - center|_2 <= radius}``, or one ball for every slice of x.

    Args:
        radius: not negative. With ``axis=None`` a scalar; otherwise it broadcasts to the shape of
            x with size 1 along ``axis``.
        center: broadcasts to the shape of x.
        axis: with ``None``, the whole array is one vector. Otherwise every slice along these axes
            is a vector with a ball of its own.

    Raises:
        InputError: if the radius is negative, or the radius or the center is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Ball
        >>> Ball(1.0, axis=-1).project(jnp.array([[3.0, 4.0], [0.5, 0.0]]))
        Array([[0.6, 0.8],
               [0.5, 0. ]], dtype=float32)
    """

    convex: ClassVar[bool] = True
    radius: ArrayLike
    center: ArrayLike = 0.0
    axis: int | tuple[int, ...] | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        _no_nan(self, radius=self.radius, center=self.center)
        if _concrete(self.radius) and np.any(np.less(self.radius, 0)):
            raise InputError(f"Ball has a negative radius: {self.radius}")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``center + (x - center) * min(1, radius / |x - center|)``."""
        center = _broadcast("center", self.center, x, x.shape)
        d = x - center
        # |d|, scaled so that no square overflows or vanishes.
        tiny = float(jnp.finfo(x.dtype).tiny)
        largest = jnp.max(jnp.abs(d), axis=self.axis, keepdims=True, initial=tiny)
        square = jnp.sum(jnp.square(d / largest), axis=self.axis, keepdims=True)
        norm = largest * jnp.sqrt(square)
        radius = _broadcast("radius", self.radius, x, norm.shape)
        radius = jnp.where(radius >= 0, radius, jnp.nan)  # known only now; must not pass for a ball
        outside = ~(norm <= radius)
        return jnp.where(outside, center + d * (radius / jnp.where(outside, norm, 1)), x)


def _broadcast(name: str, leaf: ArrayLike, x: Array, shape: tuple[int, ...]) -> Array:
    leaf = jnp.asarray(leaf).astype(x.dtype)
    try:
        return jnp.broadcast_to(leaf, shape)
    except ValueError as error:
        raise InputError(f"{name} of shape {leaf.shape} does not broadcast to {shape}") from error


def _concrete(*leaves: ArrayLike) -> bool:
    """Whether values can be looked at: tracers, and the stand-ins of tree_map, have none."""
    return all(eqx.is_array_like(leaf) and _compat.is_known(leaf) for leaf in leaves)


def _no_nan(owner: Set, **leaves: ArrayLike) -> None:
    for name, leaf in leaves.items():
        if _concrete(leaf) and np.any(np.isnan(leaf)):
            raise InputError(f"{type(owner).__name__} has NaN in its {name}")
