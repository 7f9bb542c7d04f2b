"""What automatic differentiation inside the user's function leaves in a trace, said otherwise.

Most of it are primitives that others write, too. Sums of cotangents and the derivatives of pooling
have primitives of their own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Params
from pjax_trace.translation import rewriting


def _chosen(params: Params, x: Array) -> Array:
    """The place, in all of ``x``, of the element that each window chooses, as of data.

    The first of equal ones, and a place beyond the last where all is padding.
    """
    x = lax.stop_gradient(x)
    prefers = params["select_prim"]
    worst = jnp.asarray(-jnp.inf if prefers is lax.ge_p else jnp.inf, x.dtype)
    places = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)

    def better(one: Any, other: Any) -> Any:
        (x, i), (y, j) = one, other
        first = jnp.where(x == y, i < j, prefers.bind(x, y))
        return jnp.where(first, x, y), jnp.where(first, i, j)

    start = worst, jnp.asarray(x.size, jnp.int32)
    windows = params["window_dimensions"], params["window_strides"], params["padding"]
    dilations = params.get("base_dilation"), params.get("window_dilation")
    return lax.reduce_window((x, places), start, better, *windows, *dilations)[1]


def _gathered(params: Params, tangents: Array, x: Array) -> Array:
    """Of every window, the tangent of what it chooses."""
    return tangents.reshape(-1).at[_chosen(params, x)].get(mode="fill", fill_value=0)


def _scattered(params: Params, source: Array, x: Array) -> Array:
    """What is said of every window, added to what it chooses."""
    zeros = jnp.zeros(x.size, source.dtype)
    return zeros.at[_chosen(params, x)].add(source, mode="drop").reshape(x.shape)


_DATA = np.sin(np.arange(12.0)).reshape(3, 4)


def _pooled(x: Array) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 2), "SAME")


register_rule(
    _compat.add_any_p,
    rewriting(lambda params, _: lax.add, "sum"),
    cases=(
        Case(jax.grad(lambda x: jnp.sum(x * jnp.sin(x))), ((3,),)),
        Case(lambda x, y: sum(jax.grad(lambda x: jnp.sum(x * x * y))(x)), ((2,), (2,))),
    ),
    note="an addition of cotangents",
)
register_rule(
    _compat.select_and_scatter_add_p,
    rewriting(lambda params, _: lambda *xs: _scattered(params, *xs), "sum"),
    cases=(
        Case(lambda y: jax.vjp(_pooled, jnp.asarray(_DATA, y.dtype))[1](y)[0], ((3, 2),)),
        Case(lambda x: jax.grad(lambda x: jnp.sum(jnp.square(_pooled(x))))(x), ((3, 4),)),
    ),
    note="the derivative of pooling; what a window chooses is data",
)
register_rule(
    _compat.select_and_gather_add_p,
    rewriting(lambda params, _: lambda *xs: _gathered(params, *xs), "view"),
    cases=(Case(lambda t: jax.jvp(_pooled, (jnp.asarray(_DATA, t.dtype),), (t,))[1], ((3, 4),)),),
    note="the derivative of pooling; what a window chooses is data",
)
