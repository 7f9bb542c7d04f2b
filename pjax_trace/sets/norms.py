"""Balls, spheres and the simplex: sets that a norm or a sum of each slice describes."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact

from pjax_trace.sets.base import (
    Axis,
    Set,
    along,
    as_array,
    broadcast,
    check_finite,
    check_not_nan,
    check_not_negative,
    per_slice,
    polar,
    threshold,
)

__all__ = ["Ball", "L1Ball", "L1Sphere", "Magnitude", "Simplex", "Sphere", "simplex"]


class _Around(Set):
    """A set of points at some distance from a center."""

    radius: ArrayLike = eqx.field(converter=as_array)
    center: ArrayLike = eqx.field(default=0.0, converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_not_nan(self, radius=self.radius, center=self.center)
        check_not_negative(self, radius=self.radius)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point, slice by slice."""
        center = broadcast("center", self.center, x, x.shape)
        radius = per_slice("radius", self.radius, x, self.axis)
        radius = jnp.where(radius >= 0, radius, jnp.nan)  # known only now; must not pass for a ball
        return along(self.axis, self._project, x, center, radius)

    @abc.abstractmethod
    def _project(self, x: Array, center: Array, radius: Array) -> Array:
        """The nearest points of rows."""


class Ball(_Around):
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

    def _project(self, x: Array, center: Array, radius: Array) -> Array:
        length, direction = polar(x - center)
        return jnp.where(length <= radius, x, center + radius * direction)


class Sphere(_Around):
    """The Euclidean sphere ``{y : |y - center|_2 = radius}``, or one for every slice of x.

    All its points are nearest to the center; the answer there is the first unit vector times the
    radius. With ``axis=0``, pairs of reals ``[2, ...]`` get the given magnitudes.

    Args:
        radius: not negative and finite. With ``axis=None`` a scalar; otherwise it broadcasts to the
            shape of x with size 1 along ``axis``.
        center: broadcasts to the shape of x.
        axis: with ``None``, the whole array is one vector. Otherwise every slice along these axes
            is a vector with a sphere of its own.

    Raises:
        InputError: if the radius is negative or infinite, or the radius or the center is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Sphere
        >>> Sphere(1.0, axis=-1).project(jnp.array([[3.0, 4.0], [0.0, -0.1]]))
        Array([[ 0.6,  0.8],
               [ 0. , -1. ]], dtype=float32)
    """

    def __check_init__(self):
        check_finite(self, radius=self.radius)

    def _project(self, x: Array, center: Array, radius: Array) -> Array:
        return center + radius * polar(x - center)[1]


class L1Ball(_Around):
    """The ball ``{y : sum |y - center| <= radius}``, or one ball for every slice of x.

    Args:
        radius: not negative. With ``axis=None`` a scalar; otherwise it broadcasts to the shape of
            x with size 1 along ``axis``.
        center: broadcasts to the shape of x.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if the radius is negative, or the radius or the center is NaN.

    References:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball
        for learning in high dimensions (2008).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import L1Ball
        >>> L1Ball(1.0).project(jnp.array([2.0, -1.5, 0.1]))
        Array([ 0.75, -0.25,  0.  ], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def _project(self, x: Array, center: Array, radius: Array) -> Array:
        away = jnp.abs(x - center)
        inside = jnp.sum(away, -1, keepdims=True) <= radius
        moved = simplex(away, jnp.where(inside, 1, radius))
        return jnp.where(inside, x, jnp.where(x < center, center - moved, center + moved))


class L1Sphere(_Around):
    """The sphere ``{y : sum |y - center| = radius}``, or one for every slice of x.

    A point inside moves away from the center by the same amount in every element. An element that
    equals the center's moves up.

    Args:
        radius: not negative and finite. With ``axis=None`` a scalar; otherwise it broadcasts to the
            shape of x with size 1 along ``axis``.
        center: broadcasts to the shape of x.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if the radius is negative or infinite, or the radius or the center is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import L1Sphere
        >>> L1Sphere(1.0).project(jnp.array([0.25, -0.25]))
        Array([ 0.5, -0.5], dtype=float32)
    """

    def __check_init__(self):
        check_finite(self, radius=self.radius)

    def _project(self, x: Array, center: Array, radius: Array) -> Array:
        moved = simplex(jnp.abs(x - center), radius)
        return jnp.where(x < center, center - moved, center + moved)


class Simplex(Set):
    """The simplex ``{y : y >= 0, sum(y) = total}``, or one for every slice of x.

    Args:
        total: not negative and finite. With ``axis=None`` a scalar; otherwise it broadcasts to the
            shape of x with size 1 along ``axis``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if the total is negative, infinite or NaN.

    References:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball
        for learning in high dimensions (2008), figure 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Simplex
        >>> Simplex().project(jnp.array([1.0, 0.5, -1.0]))
        Array([0.75, 0.25, 0.  ], dtype=float32)
    """

    convex: ClassVar[bool] = True
    total: ArrayLike = eqx.field(default=1.0, converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_finite(self, total=self.total)
        check_not_negative(self, total=self.total)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``max(x - t, 0)``, with the t at which its sum is the total."""
        total = per_slice("total", self.total, x, self.axis)
        return along(self.axis, simplex, x, jnp.where(total >= 0, total, jnp.nan))


class Magnitude(Set):
    """Numbers of given magnitudes, ``{y : |y| = magnitude}``, elementwise.

    Real numbers keep their sign, and complex numbers keep their phase. Zero becomes the magnitude
    itself. For complex numbers as pairs of reals, see `Sphere`.

    Args:
        magnitude: not negative and finite; broadcasts to the shape of x.

    Raises:
        InputError: if a magnitude is negative, infinite or NaN.

    References:
        J. R. Fienup, Phase retrieval algorithms: a comparison (1982); V. Elser, Phase retrieval by
        iterated projections (2003).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Magnitude
        >>> Magnitude(5.0).project(jnp.array([-2.0, 0.0, 7.0]))
        Array([-5.,  5.,  5.], dtype=float32)
        >>> Magnitude(5.0).project(jnp.array([6.0 + 8.0j, 0.0j]))
        Array([3.+4.j, 5.+0.j], dtype=complex64)
    """

    separable: ClassVar[bool] = True
    of_complex: ClassVar[bool] = True
    magnitude: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_finite(self, magnitude=self.magnitude)
        check_not_negative(self, magnitude=self.magnitude)

    def project(self, x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        """The nearest point: ``magnitude * x / |x|``."""
        magnitude = broadcast("magnitude", self.magnitude, x.real, x.shape)
        magnitude = jnp.where(magnitude >= 0, magnitude, jnp.nan)
        if not jnp.iscomplexobj(x):
            return jnp.where(x < 0, -magnitude, magnitude)
        if x.size == 0:
            return x
        phase = polar(jnp.stack([x.real, x.imag], axis=-1))[1]
        return jax.lax.complex(magnitude * phase[..., 0], magnitude * phase[..., 1])


def simplex(x: Array, total: Array) -> Array:
    """The projection of rows ``[..., n]`` onto the simplices of totals ``[..., 1]``."""
    # What is more than the total below the largest element becomes zero, however far it is below.
    below = jnp.maximum(x - jnp.max(x, axis=-1, keepdims=True), -total)
    return jnp.maximum(below - threshold(below, total), 0)
