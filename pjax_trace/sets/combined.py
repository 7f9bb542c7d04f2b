"""Sets that are made of others: unions, products, and functions as sets."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.errors import InputError
from pjax_trace.sets.base import Set, squares, whole

__all__ = ["Each", "From", "Product", "Stacked", "Union"]


class _Parts(Set):
    """A set of arrays whose parts are in sets of their own."""

    sets: tuple[Set, ...]

    def __check_init__(self):
        _check_sets(self, self.sets)

    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are known to be convex."""
        return all(one.convex for one in self.sets)

    @property
    def interval(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are intervals."""
        return all(one.interval for one in self.sets)


class Union(Set):
    """Arrays that are in at least one of some sets.

    Where several sets are equally near, the first of them is chosen. The whole array is in one set;
    see `Each` for a choice in every slice.

    Args:
        *sets: at least one set.

    Raises:
        InputError: if there is no set.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Equal, NonNegative, Union
        >>> Union(NonNegative(), Equal(-1.0)).project(jnp.array([-0.8, -0.9]))
        Array([-1., -1.], dtype=float32)
    """

    sets: tuple[Set, ...]

    def __init__(self, *sets: Set):
        self.sets = sets

    def __check_init__(self):
        _check_sets(self, self.sets)
        if not self.sets:
            raise InputError("Union of no sets is empty")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest one of the nearest points."""
        points = jnp.stack([one.project(x) for one in self.sets])
        if x.size == 0:
            return x
        away = (points - x[None]).reshape(len(self.sets), -1)
        # A set that turned out to be empty, and said NaN, is the last choice.
        empty = jnp.isnan(away)
        distances = squares(jnp.where(empty, 0, away))
        return points[jnp.argmin(jnp.where(jnp.any(empty, axis=-1), jnp.inf, distances))]


class Product(_Parts):
    """Arrays whose consecutive parts along an axis are in sets of their own.

    Args:
        sets: a set for each part.
        sizes: the sizes of the parts along the axis; they add up to that of x.
        axis: along which x is cut.

    Raises:
        InputError: if there are not as many sizes as sets, or they do not add up.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import NonNegative, Product, SumTo
        >>> both = Product([NonNegative(), SumTo(1.0)], sizes=[1, 2])
        >>> both.project(jnp.array([-3.0, 1.0, 1.0]))
        Array([0. , 0.5, 0.5], dtype=float32)
    """

    sizes: tuple[int, ...] = eqx.field(static=True)
    axis: int = eqx.field(converter=whole, static=True)

    def __init__(self, sets: Sequence[Set], sizes: Sequence[int], axis: int = 0):
        self.sets, self.sizes, self.axis = tuple(sets), tuple(map(whole, sizes)), axis
        if len(self.sets) != len(self.sizes) or min(self.sizes, default=0) < 0:
            raise InputError(f"Product: sizes {self.sizes} for {len(self.sets)} sets")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point, part by part."""
        axis = _one_axis(self.axis, x)
        if sum(self.sizes) != x.shape[axis]:
            raise InputError(f"sizes {self.sizes} do not add up to {x.shape[axis]}")
        parts = jnp.split(x, np.cumsum(self.sizes)[:-1], axis)
        moved = [one.project(part) for one, part in zip(self.sets, parts, strict=True)]
        return jnp.concatenate(moved, axis)


class Stacked(_Parts):
    """Arrays whose slices along an axis are in sets of their own, which do not see this axis.

    Args:
        sets: as many as x has slices, at least one.
        axis: along which slices are counted.

    Raises:
        InputError: if there is no set, or x has another number of slices.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import NonNegative, Stacked, SumTo
        >>> Stacked([NonNegative(), SumTo(1.0)]).project(jnp.array([[-1.0, 1.0], [1.0, 1.0]]))
        Array([[0. , 1. ],
               [0.5, 0.5]], dtype=float32)
    """

    axis: int = eqx.field(converter=whole, static=True)

    def __init__(self, sets: Sequence[Set], axis: int = 0):
        self.sets, self.axis = tuple(sets), axis
        if not self.sets:
            raise InputError("Stacked needs at least one set")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point, slice by slice."""
        axis = _one_axis(self.axis, x)
        if len(self.sets) != x.shape[axis]:
            raise InputError(f"{len(self.sets)} sets for {x.shape[axis]} slices")
        slices = jnp.moveaxis(x, axis, 0)
        moved = [one.project(part) for one, part in zip(self.sets, slices, strict=True)]
        return jnp.stack(moved, axis)


class Each(_Parts):
    """Arrays of which every slice along an axis is in one and the same set, as `jax.vmap` has it.

    Args:
        set: of arrays without this axis.
        axis: along which slices are counted.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Each, Equal, Union
        >>> Each(Union(Equal(0.0), Equal(1.0))).project(jnp.array([[0.2, 0.3], [0.9, 0.3]]))
        Array([[0., 0.],
               [1., 1.]], dtype=float32)
    """

    axis: int = eqx.field(converter=whole, static=True)

    def __init__(self, set: Set, axis: int = 0):  # noqa: A002
        self.sets, self.axis = (set,), axis

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point, slice by slice."""
        axis = _one_axis(self.axis, x)
        return x if x.size == 0 else jax.vmap(self.sets[0].project, axis, axis)(x)


class From(Set):
    """The set that a function projects onto.

    Args:
        function: ``function(x, *arguments)`` is the nearest point to x, in its shape and dtype.
        *arguments: arrays, which are data of the set, or anything else.
        convex: whether the set is convex.
        interval: whether it is an interval of its own for every element.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import From
        >>> multiples = From(lambda x, unit: unit * jnp.round(x / unit), 0.5)
        >>> multiples.project(jnp.array([0.4, 2.7]))
        Array([0.5, 2.5], dtype=float32)
    """

    function: Callable[..., Array]
    arguments: tuple[Any, ...]
    convex: bool = eqx.field(static=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    interval: bool = eqx.field(static=True)  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        function: Callable[..., Array],
        *arguments: Any,
        convex: bool = False,
        interval: bool = False,
    ):
        self.function, self.arguments = function, arguments
        self.convex, self.interval = convex, interval  # pyright: ignore[reportIncompatibleVariableOverride]

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: what the function returns."""
        return self.function(x, *self.arguments)


def _check_sets(owner: Set, sets: tuple[Any, ...]) -> None:
    for one in sets:
        if not isinstance(one, Set):
            raise InputError(f"{type(owner).__name__}: {one!r} is no pjax_trace.sets.Set")


def _one_axis(axis: int, x: Array) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise InputError(f"axis {axis} of an array of shape {x.shape}")
    return axis % x.ndim
