"""Sets of arrays with few elements, or groups of elements, that are not zero."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.errors import InputError
from pjax_trace.sets.base import Axis, Set, along, check_count, largest, squares, whole

__all__ = ["GroupSparse", "KWinners", "NOfM", "TopK"]


class _Few(Set):
    """A set in which k things of each slice may differ from zero."""

    k: int = eqx.field(converter=whole, static=True)
    axis: Axis = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_count(self, "k", self.k)


class TopK(_Few):
    """The L0 ball: at most k elements differ from zero, of all or of every slice of x.

    Among elements of the same size, the first are kept.

    Args:
        k: from 0 to the number of elements of a slice.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if k is negative, or larger than a slice.

    References:
        T. Blumensath, M. Davies, Iterative hard thresholding for compressed sensing (2009).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import TopK
        >>> TopK(2).project(jnp.array([1.0, -5.0, 0.5, 2.0]))
        Array([ 0., -5.,  0.,  2.], dtype=float32)
    """

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: the k elements of the largest magnitudes, and zeros."""
        return along(self.axis, self._project, x)

    def _project(self, x: Array) -> Array:
        check_count(self, "k", self.k, x.shape[-1])
        return jnp.where(largest(jnp.abs(x), self.k), x, 0)


class KWinners(_Few):
    """Nonnegative arrays of which at most k elements, of all or of every slice, are positive.

    This is `TopK` within the nonnegative orthant: the states of a layer in which k units win.

    Args:
        k: from 0 to the number of elements of a slice.
        axis: what a slice extends along; ``None`` for all of x.

    Raises:
        InputError: if k is negative, or larger than a slice.

    References:
        A. Makhzani, B. Frey, k-sparse autoencoders (2014).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import KWinners
        >>> KWinners(2).project(jnp.array([1.0, -5.0, 0.5, 2.0]))
        Array([1., 0., 0., 2.], dtype=float32)
    """

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: the k largest elements as far as they are positive, and zeros."""
        return along(self.axis, self._project, x)

    def _project(self, x: Array) -> Array:
        check_count(self, "k", self.k, x.shape[-1])
        return jnp.where(largest(x, self.k), jnp.maximum(x, 0), 0)


class GroupSparse(_Few):
    """At most k of the groups of x differ from zero. A group is a slice of x, such as a row.

    Among groups of the same norm, the first are kept.

    Args:
        k: from 0 to the number of groups.
        axis: what a group extends along. ``axis=-1`` says that at most k rows of a matrix are not
            zero, and ``axis=0`` says so of columns.

    Raises:
        InputError: if k is negative, or larger than the number of groups.

    References:
        R. Baraniuk, V. Cevher, M. Duarte, C. Hegde, Model-based compressive sensing (2010).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import GroupSparse
        >>> GroupSparse(1, axis=-1).project(jnp.array([[3.0, 4.0], [1.0, 4.5]]))
        Array([[3., 4.],
               [0., 0.]], dtype=float32)
    """

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: the k groups of the largest Euclidean norms, and zeros."""
        return along(self.axis, self._project, x)

    def _project(self, x: Array) -> Array:
        sizes = squares(x)
        check_count(self, "k", self.k, sizes.size)
        kept = largest(sizes.ravel(), self.k).reshape(*sizes.shape, 1)
        return jnp.where(kept, x, 0)


class NOfM(Set):
    """Structured sparsity: of every m elements in a row, at most n differ from zero.

    Among elements of the same size, the first are kept.

    Args:
        n: from 0 to m, as 2 in "2:4 sparsity".
        m: positive; the size of x along ``axis`` must be a multiple of it.
        axis: the axis along which elements are counted off; ``None`` for all of x in row-major
            order.

    Raises:
        InputError: if n is negative or exceeds m, or m does not divide the size.

    References:
        A. Mishra et al., Accelerating sparse deep neural networks (2021).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import NOfM
        >>> NOfM(1, 2).project(jnp.array([1.0, -5.0, 0.5, 0.2]))
        Array([ 0. , -5. ,  0.5,  0. ], dtype=float32)
    """

    n: int = eqx.field(converter=whole, static=True)
    m: int = eqx.field(converter=whole, static=True)
    axis: Axis = eqx.field(default=-1, static=True)

    def __check_init__(self):
        check_count(self, "n", self.n, self.m)
        if self.m == 0:
            raise InputError("NOfM: m is zero")

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest point: of each m elements the n of the largest magnitudes, and zeros."""
        return along(self.axis, self._project, x)

    def _project(self, x: Array) -> Array:
        if x.shape[-1] % self.m:
            raise InputError(f"m = {self.m} does not divide the size of a slice, {x.shape[-1]}")
        runs = x.reshape(*x.shape[:-1], -1, self.m)
        return TopK(self.n, axis=-1).project(runs).reshape(x.shape)
