"""Sets of arrays whose elements have few values: binary vectors, clauses, one-hot vectors."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pjax_trace.errors import InputError
from pjax_trace.sets.base import (
    Axis,
    Set,
    along,
    as_array,
    broadcast,
    check_count,
    check_finite,
    concrete,
    largest,
    whole,
)

__all__ = ["AtLeast", "AtMost", "Binary", "Clause", "Discrete", "Exactly", "OneHot"]


class Discrete(Set):
    """Arrays with elements of a finite set of numbers, ``{y : every y_i in values}``.

    Between two values that are equally near, the smaller one is chosen.

    Args:
        values: ``[k]`` with k > 0, in any order.

    Raises:
        InputError: if there are no values, or they are not finite or not in one axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Discrete
        >>> Discrete([-1, 0, 1]).project(jnp.array([-7.0, 0.4, 0.5, 0.6]))
        Array([-1.,  0.,  0.,  1.], dtype=float32)
    """

    separable: ClassVar[bool] = True
    values: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_finite(self, values=self.values)
        if concrete(self.values) and (np.ndim(self.values) != 1 or np.size(self.values) == 0):
            raise InputError(f"Discrete: values of shape {np.shape(self.values)} are no list")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: the nearest value, element by element."""
        values = jnp.sort(jnp.asarray(self.values).astype(x.dtype))
        middles = values[1:] / 2 + values[:-1] / 2
        return values[jnp.searchsorted(middles, x)]


class Binary(Set):
    """Arrays with elements of two values, ``{y : every y_i in {low, high}}``.

    What is in the middle becomes ``low``.

    Args:
        low: broadcasts to the shape of x.
        high: broadcasts to the shape of x; not smaller than ``low``.

    Raises:
        InputError: if a value is not finite, or low exceeds high.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Binary
        >>> Binary(-1.0, 1.0).project(jnp.array([-7.0, 0.0, 0.1]))
        Array([-1., -1.,  1.], dtype=float32)
    """

    separable: ClassVar[bool] = True
    low: ArrayLike = eqx.field(default=0.0, converter=as_array)
    high: ArrayLike = eqx.field(default=1.0, converter=as_array)

    def __check_init__(self):
        _check_levels(self, self.low, self.high)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: the nearer one of the two values, element by element."""
        low, high = _levels(x, self.low, self.high)
        return jnp.where(_gain(x, low, high) > 0, high, low)


class _Counted(Set):
    """Binary vectors of which k elements are high, or at least, or at most k."""

    k: int = eqx.field(converter=whole, static=True)
    low: ArrayLike = eqx.field(default=0.0, converter=as_array)
    high: ArrayLike = eqx.field(default=1.0, converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_count(self, "k", self.k)
        _check_levels(self, self.low, self.high)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: those elements are high that gain most by it, or lose least."""
        return along(self.axis, self._project, x, *_levels(x, self.low, self.high))

    def _project(self, x: Array, low: Array, high: Array) -> Array:
        check_count(self, "k", self.k, x.shape[-1])
        gain = _gain(x, low, high)
        return jnp.where(self._chosen(gain > 0, largest(gain, self.k)), high, low)

    @abc.abstractmethod
    def _chosen(self, wanted: Array, first: Array) -> Array:
        """Which elements are high, from those that want to be, and the k that want it most."""


class Exactly(_Counted):
    """Binary vectors with exactly k elements that are high: all of x, or every slice.

    Among equal elements, the first are high.

    Args:
        k: from 0 to the number of elements of a slice.
        low: broadcasts to the shape of x.
        high: broadcasts to the shape of x; not smaller than ``low``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if k is negative or larger than a slice, a value is not finite, or low exceeds
            high.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Exactly
        >>> Exactly(2).project(jnp.array([0.1, 0.3, -2.0, 0.2]))
        Array([0., 1., 0., 1.], dtype=float32)
    """

    def _chosen(self, wanted: Array, first: Array) -> Array:
        return first


class AtLeast(_Counted):
    """Binary vectors with at least k elements that are high: all of x, or every slice.

    What is in the middle becomes low if it may. Among equal elements, the first are high.

    Args:
        k: from 0 to the number of elements of a slice.
        low: broadcasts to the shape of x.
        high: broadcasts to the shape of x; not smaller than ``low``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if k is negative or larger than a slice, a value is not finite, or low exceeds
            high.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import AtLeast
        >>> AtLeast(2).project(jnp.array([0.1, 0.9, -2.0, 0.2]))
        Array([0., 1., 0., 1.], dtype=float32)
    """

    def _chosen(self, wanted: Array, first: Array) -> Array:
        return wanted | first


class AtMost(_Counted):
    """Binary vectors with at most k elements that are high: all of x, or every slice.

    What is in the middle becomes low. Among equal elements, the first are high.

    Args:
        k: from 0 to the number of elements of a slice.
        low: broadcasts to the shape of x.
        high: broadcasts to the shape of x; not smaller than ``low``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if k is negative or larger than a slice, a value is not finite, or low exceeds
            high.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import AtMost
        >>> AtMost(2).project(jnp.array([0.6, 0.9, -2.0, 0.7]))
        Array([0., 1., 0., 1.], dtype=float32)
    """

    def _chosen(self, wanted: Array, first: Array) -> Array:
        return wanted & first


class OneHot(Set):
    """Vectors with one element that is high, and all others low: all of x, or every slice.

    Among equal elements, the first is high.

    Args:
        axis: what a slice extends along; ``None`` for all of x.
        low: broadcasts to the shape of x.
        high: broadcasts to the shape of x; not smaller than ``low``.

    Raises:
        InputError: if a value is not finite, or low exceeds high.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import OneHot
        >>> OneHot(axis=-1).project(jnp.array([[0.1, 0.3], [-1.0, -2.0]]))
        Array([[0., 1.],
               [1., 0.]], dtype=float32)
    """

    axis: Axis = eqx.field(default=None, static=True)
    low: ArrayLike = eqx.field(default=0.0, converter=as_array)
    high: ArrayLike = eqx.field(default=1.0, converter=as_array)

    def __check_init__(self):
        _check_levels(self, self.low, self.high)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: the largest element is high, if all have the same two values."""
        return Exactly(1, self.low, self.high, self.axis).project(x)


class Clause(Set):
    """Binary vectors that make at least one literal of a clause true: all of x, or every slice.

    An element is true where it is high. A literal is an element, or its negation.

    Args:
        signs: broadcasts to the shape of x: positive for an element, negative for its negation, and
            0 for an element that is not in the clause. The set says nothing about the latter, so
            with ``axis=-1`` the rows of a matrix can be clauses with literals of their own.
        low: broadcasts to the shape of x.
        high: broadcasts to the shape of x; not smaller than ``low``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if no element is in the clause, a value is not finite, or low exceeds high. A
            slice without literals, where that turns out later, becomes NaN.

    References:
        V. Elser, I. Rankenburg, P. Thibault, Searching with iterated maps (2007).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Clause
        >>> Clause([1, -1, 0]).project(jnp.array([0.2, 0.9, 0.3]))
        Array([1. , 1. , 0.3], dtype=float32)
    """

    signs: ArrayLike = eqx.field(converter=as_array)
    low: ArrayLike = eqx.field(default=0.0, converter=as_array)
    high: ArrayLike = eqx.field(default=1.0, converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_finite(self, signs=self.signs)
        _check_levels(self, self.low, self.high)
        if concrete(self.signs) and not np.any(self.signs):
            raise InputError("Clause is empty: it has no literals")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: every element takes the nearer value, or one literal is made true."""
        signs = broadcast("signs", self.signs, x, x.shape)
        return along(self.axis, _clause, x, signs, *_levels(x, self.low, self.high))


def _clause(x: Array, signs: Array, low: Array, high: Array) -> Array:
    literal = signs != 0
    gain = jnp.where(literal, _gain(x, low, high) * jnp.sign(signs), -jnp.inf)
    true = (gain > 0) | largest(gain, 1)
    y = jnp.where(literal, jnp.where(true == (signs > 0), high, low), x)
    return jnp.where(jnp.any(literal, axis=-1, keepdims=True), y, jnp.nan)


def _check_levels(owner: Set, low: ArrayLike, high: ArrayLike) -> None:
    check_finite(owner, low=low, high=high)
    if concrete(low, high) and np.any(np.greater(low, high)):
        raise InputError(f"{type(owner).__name__}: low {low} exceeds high {high}")


def _levels(x: Array, low: ArrayLike, high: ArrayLike) -> tuple[Array, Array]:
    return broadcast("low", low, x, x.shape), broadcast("high", high, x, x.shape)


def _gain(x: Array, low: Array, high: Array) -> Array:
    """By how much nearer the high value is: half the difference of squared distances."""
    return (x - (low / 2 + high / 2)) * (high - low)
