"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a loop once, however often it runs; solvers and scans over time
loop. Here a scan counts as often as it is long. A loop whose length only the values tell (the root
finders of curves stop when they are done) counts once, of the branches of a condition the dearest.
A product of matrices and a convolution are two operations for every pair that meets, a reduction
one for every element read, what only moves data none, and all else one for every element made.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx

__all__ = ["count"]

# What moves, makes or renames elements without computing.
_FREE = frozenset(
    "broadcast_in_dim concatenate conj convert_element_type copy copy_p device_put "
    "dynamic_slice dynamic_update_slice expand_dims gather imag iota optimization_barrier pad real "
    "reshape rev slice split squeeze stack stop_gradient tile transpose unstack".split()
)


def count(function: Callable[..., Any], *args: Any) -> int:
    """The operations of a call, which is traced and not run.

    >>> import jax.numpy as jnp
    >>> count(lambda x, w: jnp.tanh(x @ w), jnp.zeros((2, 3)), jnp.zeros((3, 5)))
    70
    """
    closed, *_ = eqx.filter_make_jaxpr(function)(*args)
    return _operations(closed.jaxpr)


def _operations(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: Any) -> int:
    name, inner = eqn.primitive.name, [_operations(body) for body in _bodies(eqn.params)]
    if name == "cond":
        return max(inner)
    if inner:
        return sum(inner) * eqn.params.get("length", 1)
    first: Any = eqn.invars[0].aval.shape if eqn.invars else ()
    made = sum(math.prod(out.aval.shape) for out in eqn.outvars)
    if name == "dot_general":
        ((contracted, _), _) = eqn.params["dimension_numbers"]
        return 2 * made * math.prod(first[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * made * math.prod(kernel) // outputs
    if name == "cholesky":
        return math.prod(first) * first[-1] // 3
    if name == "triangular_solve":
        return made * first[-1]
    if name.startswith(("reduce_", "cum", "arg", "scatter")):
        return math.prod(first)
    return 0 if name in _FREE else made


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs inside an equation."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") and hasattr(part, "outvars"):
                yield part
            elif hasattr(part, "jaxpr"):
                yield part.jaxpr
