"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a loop once, however often it runs, and calls of LAPACK for
nothing; what trains loops and factorizes. Here a scan counts as often as it is long. A loop whose
length only the values tell counts as often as conjugate gradients may iterate, of the branches of a
condition the dearest. A product of matrices and a convolution are two operations for every pair
that meets, a reduction one for every element read, what only moves data none, and all else one for
every element made.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import numpy as np

import pjax_trace as pjax

__all__ = ["count"]

# What moves, makes or renames elements without computing.
_FREE = frozenset(
    "broadcast_in_dim concatenate conj convert_element_type copy copy_p device_put "
    "dynamic_slice dynamic_update_slice expand_dims gather imag iota optimization_barrier pad real "
    "reshape rev scatter slice split squeeze stack stop_gradient tile transpose unstack".split()
)


def count(function: Callable[..., Any], *args: Any) -> int:
    """The operations of a call, which is traced and not run; shapes will do for arrays.

    >>> import jax.numpy as jnp
    >>> count(lambda x, w: jnp.tanh(x @ w), jnp.zeros((2, 3)), jnp.zeros((3, 5)))
    70
    """
    closed, *_ = eqx.filter_make_jaxpr(function)(*args)
    return _operations(closed.jaxpr)


def _operations(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    shapes: list[Any] = [atom.aval.shape for atom in eqn.invars]
    made = sum(math.prod(out.aval.shape) for out in eqn.outvars)
    if name in _FREE:
        return 0
    # First what may have a jaxpr that says how to combine two elements.
    if name.startswith("scatter"):
        return math.prod(shapes[2])
    if name.startswith("reduce_window"):
        return made * math.prod(params["window_dimensions"])
    if name.startswith(("reduce", "cum", "arg")):
        return math.prod(shapes[0])
    if name == "sort":
        return made * math.ceil(math.log2(max(2, shapes[0][params["dimension"]])))
    if name == "cond":
        return max(map(_operations, _bodies(params)))
    if name == "custom_linear_solve":  # Its other jaxprs are for derivatives.
        return _operations(params["jaxprs"].solve.jaxpr)
    if inner := [_operations(body) for body in _bodies(params)]:
        unknown = pjax.Block().iterations if name == "while" else 1
        return sum(inner) * params.get("length", unknown)
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        return 2 * made * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _of_convolution(params, shapes[0], shapes[1], eqn.outvars[0].aval.shape)
    if name == "cholesky":
        return math.prod(shapes[0]) * shapes[0][-1] // 3
    if name == "lu":
        return 2 * math.prod(shapes[0]) * shapes[0][-1] // 3
    if name == "triangular_solve":
        return made * shapes[0][-1]
    return made


def _of_convolution(params: dict[str, Any], image: Any, kernel: Any, out: Any) -> int:
    """Two for every pair that meets; padding, and zeros that dilate an image, meet nothing."""
    read, window, made = params["dimension_numbers"]
    pairs = out[made[0]] * out[made[1]] * kernel[window[1]]
    for axis, (before, _) in enumerate(params["padding"]):
        length, size = image[read[2 + axis]], kernel[window[2 + axis]]
        starts = np.arange(out[made[2 + axis]]) * params["window_strides"][axis] - before
        places = starts[:, None] + np.arange(size) * params["rhs_dilation"][axis]
        apart = params["lhs_dilation"][axis]
        inside = (places >= 0) & (places <= (length - 1) * apart) & (places % apart == 0)
        pairs *= int(inside.sum())
    return 2 * pairs


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs inside an equation."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") and hasattr(part, "outvars"):
                yield part
            elif hasattr(part, "jaxpr"):
                yield part.jaxpr
