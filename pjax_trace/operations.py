"""How many operations a function takes, by XLA's count of its lowered code.

XLA counts the body of a loop once, however often it runs, and most calls of LAPACK for nothing.
Here loops are multiplied out: those that may stop early, as conjugate gradients do, as if they ran
to their limit. Of the branches of a condition the dearest counts, of a call of LAPACK what it takes
on dense matrices. What nothing reads is not lowered and does not count.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax

from pjax_trace import _compat

__all__ = ["operations"]

# By the size of the first output and the last axis of the first operand.
_LAPACK: dict[str, Callable[[int, int], int]] = {
    "cholesky": lambda size, n: size * n // 3,
    "lu": lambda size, n: 2 * size * n // 3,
    "triangular_solve": lambda size, n: size * n,
}


def operations(function: Callable[..., Any], *args: Any, limit: int = 1) -> float | None:
    """The operations of a call, which is traced and lowered, and not run; None without a count.

    Args:
        function: of pytrees.
        args: for its arrays, shapes will do.
        limit: how often loops run whose length only the values tell.

    Example:
        >>> import jax.numpy as jnp
        >>> operations(lambda x, w: jnp.tanh(x @ w), jnp.zeros((2, 3)), jnp.zeros((3, 5)))
        70.0
    """
    shapes = jax.tree.map(_shape_of, args)
    closed, *_ = eqx.filter_make_jaxpr(function)(*shapes)
    once = _counted(closed)
    return None if once is None else once + _uncounted(closed.jaxpr, limit)


def _counted(closed: Any) -> float | None:
    """XLA's count, tanh and the like as one operation each."""
    lowered = jax.jit(lambda *xs: _compat.run_jaxpr(closed, *xs)).lower(
        *map(_shape_of, closed.in_avals)
    )
    try:
        analysis: Any = lowered.cost_analysis()
    except NotImplementedError:  # not every backend counts
        return None
    if isinstance(analysis, Sequence):
        analysis = analysis[0] if analysis else None
    if not analysis:
        return None
    counts = [analysis.get(key, 0.0) for key in ("flops", "transcendentals")]
    return sum(max(float(count), 0.0) for count in counts)


def _uncounted(jaxpr: Any, limit: int) -> float:
    """What XLA's count of a jaxpr leaves out."""
    total = 0.0
    for eqn in jaxpr.eqns:
        call, loop = _compat.call_body(eqn), _compat.loop_body(eqn)
        own = _compat.own_function(eqn)
        if eqn.primitive.name in _LAPACK:
            total += _of_lapack(eqn)
        elif call is not None:
            total += _uncounted(call[0], limit)
        elif own is not None:
            shapes = [_shape_of(atom.aval) for atom in eqn.invars]
            total += _uncounted(jax.make_jaxpr(own)(*shapes).jaxpr, limit)
        elif loop is not None:
            body, length = loop
            length = limit if length is None else length
            total += (length - 1) * (_counted(body) or 0.0)
            total += length * _uncounted(body.jaxpr, limit)
        elif _compat.loop_kind(eqn.primitive) == "cond":
            once = [_counted(branch) or 0.0 for branch in eqn.params["branches"]]
            more = [_uncounted(branch.jaxpr, limit) for branch in eqn.params["branches"]]
            total += max(map(sum, zip(once, more, strict=True))) - max(once)
    return total


def _of_lapack(eqn: Any) -> float:
    """What a call takes, less what XLA counts: a little around it, on some backends all of it."""

    def alone(*operands: Any) -> list[Any]:
        return _compat.bind(eqn.primitive, eqn.params, *operands)

    shapes = [_shape_of(atom.aval) for atom in eqn.invars]
    taken = _LAPACK[eqn.primitive.name](math.prod(eqn.outvars[0].aval.shape), shapes[0].shape[-1])
    return taken - (_counted(jax.make_jaxpr(alone)(*shapes)) or 0.0)


def _shape_of(leaf: Any) -> Any:
    is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf
