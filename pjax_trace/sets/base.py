"""The base class of sets, and what sets have in common: checks, shapes, slices, lengths."""

import abc
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float
from numpy.lib.array_utils import normalize_axis_tuple

from pjax_trace import _compat
from pjax_trace.errors import InputError

__all__ = [
    "Axis",
    "Set",
    "along",
    "as_array",
    "broadcast",
    "check_count",
    "check_finite",
    "check_not_nan",
    "check_not_negative",
    "concrete",
    "largest",
    "matmul",
    "per_slice",
    "polar",
    "sides",
    "squares",
    "threshold",
    "whole",
]

Axis = int | tuple[int, ...] | None


class Set(eqx.Module):
    """A closed set of arrays: a subclass defines `project`, and says so if it is `convex`.

    Attributes:
        convex: whether the set is known to be convex; a sweep moves a parameter within a convex
            set, and keeps a latent point beside it for others (discrete values, sparsity patterns),
            of which the user gets the projection.
        interval: whether it is an interval of its own for every element, so that elements are
            projected one by one, and what is between two points of it is in it.
        separable: whether it is a set of its own for every element, an interval or not.
        of_complex: whether it is a set of complex arrays, too.

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
    separable: ClassVar[bool] = False
    of_complex: ClassVar[bool] = False

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


def as_array(leaf: Any) -> ArrayLike:
    """A field as it is if it is an array or a number; lists and tuples become arrays."""
    return np.asarray(leaf) if isinstance(leaf, (list, tuple)) else leaf


def whole(number: Any) -> int:
    """A field that counts something, and decides shapes."""
    try:
        return operator.index(number)
    except TypeError as error:
        raise InputError(f"a count must be a whole number known to Python, not {number}") from error


def broadcast(name: str, leaf: ArrayLike, x: Array, shape: tuple[int, ...]) -> Array:
    """A field in the dtype of x and in some shape; ``name`` is what an error calls it."""
    leaf = jnp.asarray(leaf).astype(x.dtype)
    try:
        return jnp.broadcast_to(leaf, shape)
    except ValueError as error:
        raise InputError(f"{name} of shape {leaf.shape} does not broadcast to {shape}") from error


def per_slice(name: str, leaf: ArrayLike, x: Array, axis: Axis) -> Array:
    """A field with one number for every slice: in the shape of x, with size 1 along ``axis``."""
    axes = _axes(axis, x.ndim)
    return broadcast(name, leaf, x, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    return tuple(range(ndim)) if axis is None else normalize_axis_tuple(axis, ndim)


def along(axis: Axis, function: Callable[..., Array], x: Array, *others: Array) -> Array:
    """``function(x, *others)`` with slices as rows: ``[..., n]``, and back to the shape of x.

    Args:
        axis: what a slice extends along; ``None`` makes one slice of all of x.
        function: works on the last axis, and returns the shape of its first argument.
        x: an array. If it is empty there is nothing to do, and it is returned.
        *others: in the shape of x, or with size 1 along ``axis``.
    """
    axes = _axes(axis, x.ndim)
    if x.size == 0:
        return x
    last = tuple(range(x.ndim - len(axes), x.ndim))

    def rows(array: Array) -> Array:
        array = jnp.moveaxis(array, axes, last)
        return array.reshape(*array.shape[: last[0]] if last else array.shape, -1)

    shape = jnp.moveaxis(x, axes, last).shape
    return jnp.moveaxis(function(*map(rows, (x, *others))).reshape(shape), last, axes)


def sides(x: Array, square: bool = False) -> tuple[int, int]:
    """The numbers of rows and columns of the matrices that the last two axes hold."""
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        kind = "square matrices" if square else "matrices"
        raise InputError(f"the last two axes must be those of {kind}")
    return x.shape[-2], x.shape[-1]


# Products of float32 in float32, which is not what accelerators do by default.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def polar(x: Array) -> tuple[Array, Array]:
    """Euclidean lengths ``[..., 1]`` and directions ``[..., n]`` of rows; no square overflows.

    The direction of a row of zeros is the first unit vector.
    """
    tiny = float(jnp.finfo(x.dtype).tiny)
    # The results do not depend on it, but for rounding; nor do their derivatives.
    unit = jax.lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True, initial=tiny))
    scaled = x / unit
    square = jnp.sum(jnp.square(scaled), -1, keepdims=True)
    zero = square == 0
    length = jnp.sqrt(jnp.where(zero, 1, square))  # whose derivative is finite, too
    first = jnp.zeros_like(x).at[..., :1].set(1)
    return jnp.where(zero, 0, unit * length), jnp.where(zero, first, scaled / length)


def squares(x: Array) -> Array:
    """Sums of squares of rows, in units that all rows share: for comparisons, without overflow."""
    largest = jnp.max(jnp.abs(x), initial=float(jnp.finfo(x.dtype).tiny))
    return jnp.sum(jnp.square(x / largest), -1)


def largest(x: Array, k: int) -> Array:
    """Where the k largest elements of each row are, as a mask; the first of equal ones count."""
    if k == 0:
        return jnp.zeros(x.shape, bool)
    if k == 1:
        places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        return places == jax.lax.argmax(x, x.ndim - 1, jnp.int32)[..., None]
    index = jax.lax.top_k(x, k)[1]
    return jnp.put_along_axis(jnp.zeros(x.shape, bool), index, True, axis=-1, inplace=False)


def threshold(x: Array, total: Array, extra: int = 0) -> Array:
    """The root t of ``sum(max(x - t, 0)) = total + extra * t`` for every row, as ``[..., 1]``.

    It is the largest of ``(x_1 + ... + x_k - total) / (k + extra)``, where x is in descending
    order: for any k elements the equation holds with ``<=``, and for those above t with ``=``.

    References:
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball
        for learning in high dimensions (2008), figure 1.
    """
    descending = -jnp.sort(-x, axis=-1)
    sums = jnp.cumsum(descending, axis=-1) - total
    numbers = jnp.arange(1 + extra, x.shape[-1] + 1 + extra, dtype=x.dtype)
    return jnp.max(sums / jnp.broadcast_to(numbers, sums.shape), axis=-1, keepdims=True)


def concrete(*leaves: ArrayLike) -> bool:
    """Whether values can be looked at: tracers, and the stand-ins of tree_map, have none."""
    return all(eqx.is_array_like(leaf) and _compat.is_known(leaf) for leaf in leaves)


def check_not_nan(owner: Set, **leaves: ArrayLike) -> None:
    """Raise if a field is known to have NaN in it."""
    for name, leaf in leaves.items():
        if concrete(leaf) and np.any(np.isnan(leaf)):
            raise InputError(f"{type(owner).__name__} has NaN in its {name}")


def check_finite(owner: Set, **leaves: ArrayLike) -> None:
    """Raise if a field is known to have NaN or infinity in it."""
    check_not_nan(owner, **leaves)
    for name, leaf in leaves.items():
        if concrete(leaf) and not np.all(np.isfinite(leaf)):
            raise InputError(f"{type(owner).__name__} has infinity in its {name}")


def check_not_negative(owner: Set, **leaves: ArrayLike) -> None:
    """Raise if a field is known to have NaN or a negative number in it."""
    check_not_nan(owner, **leaves)
    for name, leaf in leaves.items():
        if concrete(leaf) and np.any(np.less(leaf, 0)):
            raise InputError(f"{type(owner).__name__} has a negative {name}: {leaf}")


def check_count(owner: Set, name: str, number: int, limit: float = math.inf) -> None:
    """Raise unless a count is from 0 to ``limit``, the number of things that there are."""
    if not 0 <= number <= limit:
        known = "" if limit == math.inf else f" or exceeds {limit}"
        raise InputError(f"{type(owner).__name__}: {name} = {number} is negative{known}")
