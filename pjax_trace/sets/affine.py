"""Sets that linear equations and inequalities describe: half-spaces, planes, affine subspaces."""

from typing import Any, ClassVar

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
    check_finite,
    check_not_nan,
    concrete,
    matmul,
    per_slice,
)

__all__ = ["Affine", "HalfSpace", "HyperPlane", "HyperSlab", "SumTo"]


class _Normal(Set):
    """A set that the inner product with a normal describes."""

    convex: ClassVar[bool] = True
    normal: ArrayLike = eqx.field(converter=as_array)

    def __check_init__(self):
        check_finite(self, normal=self.normal)
        if concrete(self.normal) and not np.any(self.normal):
            raise InputError(f"{type(self).__name__}: the normal is zero")

    def _between(self, x: Array, lower: ArrayLike, upper: ArrayLike, axis: Axis) -> Array:
        """The nearest points with inner products from lower to upper."""
        normal = broadcast("normal", self.normal, x, x.shape)
        lower, upper = (per_slice("the offset", bound, x, axis) for bound in (lower, upper))
        return along(axis, _slab, x, normal, lower, upper)


def _slab(x: Array, normal: Array, lower: Array, upper: Array) -> Array:
    largest = jnp.max(jnp.abs(normal), -1, keepdims=True)  # of which squares do not overflow
    zero = largest == 0
    size = jnp.where(zero, 1, largest)
    normal = normal / size
    height = jnp.sum(normal * x, -1, keepdims=True)
    missing = jnp.clip(height, lower / size, upper / size) - height
    step = jnp.where(zero, 0, missing / jnp.sum(jnp.square(normal), -1, keepdims=True))
    # Where a normal is zero, everything is in the set or nothing is. NaN is what is in no set.
    empty = (lower > upper) | (zero & ((lower > 0) | (upper < 0)))
    return jnp.where(empty, jnp.nan, x + step * normal)


class HalfSpace(_Normal):
    """The half-space ``{y : <normal, y> <= offset}``, or one for every slice of x.

    Args:
        normal: not zero; broadcasts to the shape of x.
        offset: with ``axis=None`` a scalar; otherwise it broadcasts to the shape of x with size 1
            along ``axis``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if the normal is zero, or anything is NaN. Where a normal of a slice turns out
            to be zero, and the offset to be negative, the set is empty and the answer is NaN.

    References:
        N. Parikh, S. Boyd, Proximal algorithms (2014), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import HalfSpace
        >>> HalfSpace([1.0, 1.0], 1.0).project(jnp.array([2.0, 1.0]))
        Array([1., 0.], dtype=float32)
    """

    offset: ArrayLike = eqx.field(default=0.0, converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_not_nan(self, offset=self.offset)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``x - normal * max(<normal, x> - offset, 0) / |normal|^2``."""
        return self._between(x, -jnp.inf, self.offset, self.axis)


class HyperPlane(_Normal):
    """The hyperplane ``{y : <normal, y> = offset}``, or one for every slice of x.

    Args:
        normal: not zero; broadcasts to the shape of x.
        offset: with ``axis=None`` a scalar; otherwise it broadcasts to the shape of x with size 1
            along ``axis``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if the normal is zero, or anything is NaN. Where a normal of a slice turns out
            to be zero, and the offset not to be, the set is empty and the answer is NaN.

    References:
        N. Parikh, S. Boyd, Proximal algorithms (2014), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import HyperPlane
        >>> HyperPlane([1.0, 1.0], 1.0).project(jnp.array([2.0, 1.0]))
        Array([1., 0.], dtype=float32)
    """

    offset: ArrayLike = eqx.field(default=0.0, converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_finite(self, offset=self.offset)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``x - normal * (<normal, x> - offset) / |normal|^2``."""
        return self._between(x, self.offset, self.offset, self.axis)


class HyperSlab(_Normal):
    """The points between two parallel planes, ``{y : lower <= <normal, y> <= upper}``.

    Args:
        normal: not zero; broadcasts to the shape of x.
        lower: with ``axis=None`` a scalar; otherwise it broadcasts to the shape of x with size 1
            along ``axis``.
        upper: likewise.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if the normal is zero, lower exceeds upper, or anything is NaN. Where the set
            turns out to be empty later, the answer is NaN.

    References:
        H. Bauschke, P. Combettes, Convex analysis and monotone operator theory in Hilbert spaces
        (2017), chapter 29.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import HyperSlab
        >>> HyperSlab([1.0, 1.0], -1.0, 1.0, axis=-1).project(jnp.array([[2.0, 1.0], [-2.0, 2.0]]))
        Array([[ 1.,  0.],
               [-2.,  2.]], dtype=float32)
    """

    lower: ArrayLike = eqx.field(converter=as_array)
    upper: ArrayLike = eqx.field(converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_not_nan(self, lower=self.lower, upper=self.upper)
        if concrete(self.lower, self.upper) and np.any(np.greater(self.lower, self.upper)):
            raise InputError(f"HyperSlab is empty: lower {self.lower} exceeds upper {self.upper}")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: along the normal, to the plane that is exceeded."""
        return self._between(x, self.lower, self.upper, self.axis)


class SumTo(Set):
    """Arrays of a given sum, ``{y : sum(y) = total}``, or one sum for every slice of x.

    Args:
        total: with ``axis=None`` a scalar; otherwise it broadcasts to the shape of x with size 1
            along ``axis``.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if a total is infinite or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import SumTo
        >>> SumTo(1.0).project(jnp.array([2.0, 1.0]))
        Array([1., 0.], dtype=float32)
    """

    convex: ClassVar[bool] = True
    total: ArrayLike = eqx.field(converter=as_array)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_finite(self, total=self.total)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: what is missing is shared by all elements."""
        total = per_slice("total", self.total, x, self.axis)
        return along(self.axis, _sum_to, x, total)


def _sum_to(x: Array, total: Array) -> Array:
    return x + (total - jnp.sum(x, -1, keepdims=True)) / x.shape[-1]


class Affine(Set):
    """The affine subspace ``{y : matrix @ y = value}``, or one copy of it for every slice of x.

    The equations are factorised once, when the set is made: in float64 by NumPy if they are known
    then, and otherwise by JAX. Rows may depend on each other.

    Args:
        matrix: ``[m, n]``, where n is the number of elements of a slice.
        value: ``[m]``, or a scalar.
        axis: what a slice extends along; ``None`` for all of x, in row-major order.

    Attributes:
        rows: an orthonormal basis of the matrix's rows, ``[min(m, n), n]``, with zeros for those
            that depend on others.
        offset: ``rows @ y`` of all points y of the set.

    Raises:
        InputError: if the shapes do not match, something is not finite, or the equations have no
            solution. Where that turns out later, the answer is NaN.

    References:
        N. Parikh, S. Boyd, Proximal algorithms (2014), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Affine
        >>> Affine([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [1.0, 5.0]).project(jnp.zeros(3)).round(3)
        Array([0.5, 0.5, 5. ], dtype=float32)
    """

    convex: ClassVar[bool] = True
    rows: ArrayLike
    offset: ArrayLike
    axis: Axis = eqx.field(static=True)

    def __init__(self, matrix: Any, value: Any, axis: Axis = None):
        matrix, value = as_array(matrix), as_array(value)
        check_finite(self, matrix=matrix, value=value)
        if jnp.ndim(matrix) != 2 or jnp.shape(value) not in ((), jnp.shape(matrix)[:1]):
            shapes = f"a matrix of {jnp.shape(matrix)} and a value of {jnp.shape(value)}"
            raise InputError(f"Affine: {shapes} are no equations")
        known = concrete(matrix, value)
        self.rows, self.offset, missing = _factors(matrix, value, np if known else jnp)
        if known and np.isnan(self.offset).any():
            raise InputError(f"Affine: the equations have no solution; {missing} is missing")
        self.axis = axis

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: ``x - rows^T (rows x - offset)``."""
        return along(self.axis, self._project, x)

    def _project(self, x: Array) -> Array:
        rows = jnp.asarray(self.rows).astype(x.dtype)
        if rows.shape[1] != x.shape[-1]:
            raise InputError(f"{rows.shape[1]} unknowns for slices of {x.shape[-1]} elements")
        offset = jnp.asarray(self.offset).astype(x.dtype)
        missing = matmul(x, rows.T)
        return x - matmul(missing - jnp.broadcast_to(offset, missing.shape), rows)


def _factors(matrix: Any, value: Any, lib: Any) -> tuple[Any, Any, Any]:
    """The rows and the offset of `Affine`, which is NaN if there is no solution."""
    matrix, value = lib.asarray(matrix), lib.asarray(value)
    floats = [leaf.dtype for leaf in (matrix, value) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # Equations that are redundant agree no better than the numbers that they were given in.
    eps = max((float(jnp.finfo(dtype).eps) for dtype in floats), default=2.3e-16)
    dtype = np.float64 if lib is np else jnp.result_type(*floats or [float])
    matrix, value = matrix.astype(dtype), lib.broadcast_to(value.astype(dtype), matrix.shape[:1])
    left, scales, right = lib.linalg.svd(matrix, full_matrices=False)
    free = scales <= max(matrix.shape) * eps * lib.max(scales, initial=0)
    inner = lib.where(free, 0, left.T @ value)
    missing = lib.max(lib.abs(value - left @ inner), initial=0)
    solved = missing <= eps**0.5 * lib.max(lib.abs(value), initial=0)
    offset = lib.where(solved, inner / lib.where(free, 1, scales), lib.nan)
    return lib.where(free[:, None], 0, right), offset, missing
