"""``constrain``: require a value to lie in a set."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.custom import call, constrain_p
from pjax_trace.errors import InputError
from pjax_trace.set_rule import SetRule
from pjax_trace.sets import Set

__all__ = ["constrain"]


def constrain(x: Float[Array, "..."], set: Set) -> Float[Array, "..."]:  # noqa: A002
    """Require ``x`` to lie in a set. To JAX it is the identity.

    In a function that `pjax_trace.project` solves, this is an output constraint: a solver projects
    a copy of ``x`` onto the set. The returned value is ``x`` itself, and need not be used.

    Args:
        x: a floating-point array.
        set: a `pjax_trace.sets.Set`; the arrays in it may be traced data.

    Returns:
        ``x``.

    Raises:
        InputError: if ``set`` is not a `Set`, or does not fit the shape of ``x``.

    Example:
        A point of the simplex:

        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def problem(x):
        ...     pjax.constrain(jnp.sum(x), pjax.sets.Equal(1.0))
        ...     pjax.constrain(x, pjax.sets.NonNegative())
        >>> solve = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=100)
        >>> x, info = solve(jnp.array([2.0, -1.0, 0.0]))
        >>> bool(jnp.allclose(x, jnp.array([1.0, 0.0, 0.0]), atol=1e-3))
        True
    """
    if not isinstance(set, Set):
        raise InputError(f"constrain: the set must be a pjax_trace.sets.Set, not {set!r}")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"constrain: the array must be floating point, not {x.dtype}")
    try:
        set.fits(x.shape, x.dtype)
    except ValueError as error:
        raise InputError(f"constrain: {type(set).__name__} does not fit: {error}") from error
    leaves, structure = jax.tree.flatten(set)
    arrays = [_operand(leaf, x.dtype) for leaf in leaves if _is_operand(leaf)]
    static = tuple(None if _is_operand(leaf) else leaf for leaf in leaves)
    return call(constrain_p, SetRule(structure, static), x, *arrays, name=type(set).__name__)


def _is_operand(leaf: Any) -> bool:
    """Whether a leaf of a set is an array to it. Integers, which may decide shapes, are none."""
    return eqx.is_array_like(leaf) and not isinstance(leaf, int)


def _operand(leaf: Any, dtype: Any) -> Array:
    """Real numbers in the dtype of what is projected; indices, masks and keys in their own."""
    real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype if real else None)
