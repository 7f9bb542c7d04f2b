"""``constrain``: require a value to lie in a set."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from pjax_trace.custom import call, constrain_p
from pjax_trace.errors import InputError
from pjax_trace.set_rule import SetRule
from pjax_trace.sets import Set

__all__ = ["constrain"]


def constrain(x: PyTree[Inexact[Array, "..."]], set: Set) -> PyTree:  # noqa: A002
    """Require ``x`` to lie in a set. To JAX it is the identity.

    In a function that `pjax_trace.project` solves, this is an output constraint: a solver projects
    a copy of ``x`` onto the set. The returned value is ``x`` itself, and need not be used.

    Args:
        x: an array of real or, where the set is one of those, complex numbers. Or a pytree of real
            arrays, which are constrained together: the set is one of the vector of all elements.
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
    name = type(set).__name__
    if not isinstance(set, Set):
        raise InputError(f"constrain: the set must be a pjax_trace.sets.Set, not {set!r}")
    if not eqx.is_array_like(x):
        arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(x) if eqx.is_array_like(leaf)]
        if len(arrays) < len(jax.tree.leaves(x)) or not arrays:
            raise InputError(f"constrain: only arrays can lie in {name}, and not all of {x!r} are")
        if any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in arrays):
            raise InputError("constrain: arrays that are constrained together must be real")
        constrain(jnp.concatenate([leaf.reshape(-1) for leaf in arrays]), set)
        return x
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise InputError(f"constrain: the array must be floating point, not {x.dtype}")
    leaves, structure = jax.tree.flatten(set)
    paired = jnp.iscomplexobj(x)
    if paired and not set.of_complex:
        raise InputError(
            f"constrain: {name} is a set of real arrays; constrain jnp.abs, jnp.real or jnp.imag, "
            "or give pairs of reals"
        )
    if not paired and any(eqx.is_array_like(v) and jnp.iscomplexobj(v) for v in leaves):
        raise InputError(f"constrain: {name} holds complex numbers, but the array is {x.dtype}")
    try:
        set.fits(x.shape, x.dtype)
    except ValueError as error:
        raise InputError(f"constrain: {name} does not fit: {error}") from error
    arrays = [_operand(leaf, x.dtype) for leaf in leaves if _is_operand(leaf)]
    static = tuple(None if _is_operand(leaf) else leaf for leaf in leaves)
    parts = jnp.stack([jnp.real(x), jnp.imag(x)]) if paired else x
    found = call(constrain_p, SetRule(structure, static, paired), parts, *arrays, name=name)
    return jax.lax.complex(found[0], found[1]) if paired else found


def _is_operand(leaf: Any) -> bool:
    """Whether a leaf of a set is an array to it. Integers, which may decide shapes, are none."""
    return eqx.is_array_like(leaf) and not isinstance(leaf, int)


def _operand(leaf: Any, dtype: Any) -> Array:
    """Numbers in the dtype of what is projected; indices, masks and keys in their own."""
    kind = jnp.result_type(leaf)
    if jnp.issubdtype(kind, jnp.floating):
        return jnp.asarray(leaf, jnp.finfo(dtype).dtype)
    return jnp.asarray(leaf, dtype if jnp.issubdtype(kind, jnp.complexfloating) else None)
