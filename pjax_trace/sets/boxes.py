"""Sets that are an interval for every element: values, boxes, supports."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pjax_trace.errors import InputError
from pjax_trace.sets.base import (
    Set,
    as_array,
    broadcast,
    check_not_nan,
    check_not_negative,
    concrete,
)

__all__ = ["Box", "Equal", "LInfBall", "NonNegative", "Support"]


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
    of_complex: ClassVar[bool] = True
    value: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_not_nan(self, value=self.value)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``value``."""
        return broadcast("value", self.value, x, x.shape)


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
    lower: ArrayLike = eqx.field(converter=as_array)
    upper: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_not_nan(self, lower=self.lower, upper=self.upper)
        if concrete(self.lower, self.upper) and np.any(np.greater(self.lower, self.upper)):
            raise InputError(f"Box is empty: lower {self.lower} exceeds upper {self.upper}")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``min(max(x, lower), upper)``."""
        lower = broadcast("lower", self.lower, x, x.shape)
        upper = broadcast("upper", self.upper, x, x.shape)
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


class LInfBall(Set):
    """The ball of the maximum norm, ``{y : |y - center|_inf <= radius}``.

    Args:
        radius: not negative; broadcasts to the shape of x.
        center: broadcasts to the shape of x.

    Raises:
        InputError: if a radius is negative, or a radius or a center is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import LInfBall
        >>> LInfBall(1.0).project(jnp.array([-2.0, 0.5, 7.0]))
        Array([-1. ,  0.5,  1. ], dtype=float32)
    """

    convex: ClassVar[bool] = True
    interval: ClassVar[bool] = True
    radius: ArrayLike = eqx.field(converter=as_array)
    center: ArrayLike = eqx.field(default=0.0, converter=as_array)

    def __check_init__(self):
        check_not_negative(self, radius=self.radius)
        check_not_nan(self, center=self.center)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: x, clipped to the interval around the center."""
        radius = broadcast("radius", self.radius, x, x.shape)
        center = broadcast("center", self.center, x, x.shape)
        return Box(center - radius, center + radius).project(x)


class Support(Set):
    """Arrays that are zero outside a mask, ``{y : y = 0 where not mask}``.

    Args:
        mask: booleans, true where elements are free; broadcasts to the shape of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Support
        >>> Support([True, False, True]).project(jnp.array([1.0, 2.0, 3.0]))
        Array([1., 0., 3.], dtype=float32)
    """

    convex: ClassVar[bool] = True
    interval: ClassVar[bool] = True
    of_complex: ClassVar[bool] = True
    mask: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_not_nan(self, mask=self.mask)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: x where the mask is true, and 0 elsewhere."""
        return jnp.where(broadcast("mask", self.mask, x, x.shape) != 0, x, 0)
