"""Whether a function is linear, or of the second order, as JAX finds it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from pjax_trace import _compat

__all__ = ["is_linear", "is_quadratic"]


def is_linear(
    function: Callable[..., Any],
    data: Sequence[ShapeDtypeStruct],
    moving: Sequence[ShapeDtypeStruct],
) -> bool:
    """Whether the derivative of ``function(data, *moving)`` is the same everywhere.

    A function without slopes, as a rounding, passes for linear, too.
    """

    def tangent(data: list[Any], primals: list[Any], tangents: list[Any]) -> Any:
        return jax.jvp(lambda *xs: function(data, *xs), tuple(primals), tuple(tangents))[1]

    try:
        closed = jax.make_jaxpr(tangent)(list(data), list(moving), list(moving))
    except Exception:  # it has no derivative
        return False
    used = _compat.used_inputs(closed, [True] * len(closed.out_avals))
    return not any(used[len(data) : len(data) + len(moving)])


def is_quadratic(
    function: Callable[..., Sequence[Any]], data: Sequence[Any], moving: Any, points: int = 12
) -> bool:
    """Whether all outputs of ``function(data, x)``, of scalars, are of the second order in x.

    Each must be its own Taylor polynomial, from points of several sizes to others, whatever the
    data; ``data`` and ``moving`` are their types.
    """
    rng = np.random.default_rng(0)

    def draw(dtype: Any) -> Any:
        if jnp.issubdtype(dtype, jnp.bool_) or jnp.issubdtype(dtype, jnp.integer):
            return jnp.asarray(rng.integers(0, 2), dtype)
        return jnp.asarray(rng.uniform(0.5, 2), dtype)

    # One computation: op by op, each kind of operation would be compiled by itself.
    @jax.jit
    def expand(known: Sequence[Any], one: Any, other: Any) -> Any:
        def own(x: Any) -> list[Any]:
            return list(function(known, x))

        def slope(x: Any) -> Any:
            return jax.jvp(own, (x,), (jnp.ones_like(x),))[1]

        first, second = jax.jvp(slope, (one,), (jnp.ones_like(one),))
        return own(one), first, second, own(other)

    try:
        with jax.ensure_compile_time_eval():
            for _ in range(points):
                known = [draw(dtype) for dtype in data]
                one, other = (
                    jnp.asarray(rng.normal() * 10.0 ** rng.integers(-2, 3), moving)
                    for _ in range(2)
                )
                by = float(other - one)
                for v, a, b, t in zip(*expand(known, one, other), strict=True):
                    steps = np.array([v, a * by, b * by * by / 2], float)
                    size = np.abs(steps).sum() + abs(float(t))
                    if not abs(steps.sum() - float(t)) <= 1e-4 * size:
                        return False
    except Exception:  # it has no second derivative
        return False
    return True
