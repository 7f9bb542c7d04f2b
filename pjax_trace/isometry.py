"""Isometries: linear functions whose sets are sets of what they are applied to, exactly."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.block import project_jointly
from pjax_trace.custom import call, function_p
from pjax_trace.errors import InputError
from pjax_trace.registry import Isometry, register_affine, register_isometry
from pjax_trace.rule import Arrays, Params, Projection, Rule, Weights, projection_of

__all__ = ["Isometric", "isometry"]

_ITERATIONS = 100  # at most; as many as there are different weights are needed, and one or two more


class Isometric(Rule):
    """``z = L x``, where L has few different singular values, as isometries have."""

    family = "sum"
    granularity = "block"
    joint = True

    def back(self, z: Array) -> Array:
        """``Lᵀ z / c``."""
        raise NotImplementedError

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        """The nearest point, by conjugate gradients, which end at once if all weights are equal."""
        (moved,), moved_out = project_jointly(
            lambda x: self.apply(params, x),
            operands,
            out,
            weights.operands,
            weights.out,
            iterations=_ITERATIONS,
            rounds=1,
            tol=float(jnp.finfo(out.dtype).eps),
        )
        return projection_of(operands, out, weights, (moved,), moved_out)


@dataclasses.dataclass(frozen=True)
class _Declared(Isometric):
    """A function that a user says is one.

    Args:
        function: the function.
        shape: of what it is applied to.
        dtype: of that.
        factor: c.
        onto: whether ``L Lᵀ = c I``; else ``Lᵀ L = c I`` alone.
    """

    function: Callable[[Array], Array]
    shape: tuple[int, ...]
    dtype: Any
    factor: float
    onto: bool

    def apply(self, params: Params, *operands: Array) -> Array:
        """The function."""
        return self.function(*operands)

    def back(self, z: Array) -> Array:
        """Its transpose, by JAX, over c."""
        x = jax.ShapeDtypeStruct(self.shape, self.dtype)
        (moved,) = jax.linear_transpose(self.function, x)(z)
        return moved / self.factor


def isometry(
    function: Callable[[Float[Array, "..."]], Float[Array, "..."]],
) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Say that a linear function is a multiple of an isometry: ``Lᵀ L = c I`` or ``L Lᵀ = c I``.

    Orthogonal wavelets, cosine transforms, permutations and rotations are. A set of ``L x`` is then
    a set of ``x`` to a solver, with the projection ``x + Lᵀ (P(L x) − L x) / c``, which is exact if
    every output is that of some ``x``. Of `jax.numpy.fft`, of differences, and of matrices that are
    known while tracing, this need not be said.

    Args:
        function: takes one real array and returns one. What it uses beside must not be traced.

    Returns:
        The same function. It is checked once for every shape, with random numbers.

    Raises:
        InputError: when called, if the function is not linear, or no isometry.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> @pjax.isometry
        ... def haar(x):
        ...     return jnp.concatenate([x[::2] + x[1::2], x[::2] - x[1::2]])
        >>> def problem(x):
        ...     pjax.constrain(haar(x), pjax.sets.TopK(1))
        ...     pjax.constrain(x[0], pjax.sets.Equal(1.0))
        >>> pjax.solve(problem, jnp.array([0.5, 0.6, 0.0, 0.1])).x.round(3)
        Array([1., 1., 0., 0.], dtype=float32)
    """

    @functools.wraps(function)
    def wrapped(x: Array) -> Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"isometry: {_name(function)} is for real arrays, not {x.dtype}")
        rule = _declared(function, x.shape, x.dtype)
        return call(function_p, rule, x, name=_name(function))

    return wrapped


def _name(function: Any) -> str:
    return getattr(function, "__name__", "the function")


@functools.lru_cache(maxsize=256)
def _declared(function: Any, shape: tuple[int, ...], dtype: Any) -> _Declared:
    """The rule, checked on random arrays."""
    rng = np.random.default_rng(0)
    name, size = _name(function), math.prod(shape)
    with jax.ensure_compile_time_eval():
        u, v = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
        images = [function(x) for x in (u, v, u + 2 * v)]
        if not all(map(_compat.is_known, images)):
            raise InputError(f"isometry: {name} uses traced values; it must use known arrays alone")
        one, two, both = map(np.asarray, images)
        onto = one.size <= size
        x, y, seen_x, seen_y = u, v, one, two
        if one.size < size:
            transpose = jax.linear_transpose(function, u)
            x, y = (jnp.asarray(rng.normal(size=one.shape), dtype) for _ in range(2))
            seen_x, seen_y = (np.asarray(transpose(z)[0]) for z in (x, y))
    near = 1e3 * float(jnp.finfo(dtype).eps)
    length = np.abs(one).max(initial=0) + 2 * np.abs(two).max(initial=0)
    if np.abs(both - one - 2 * two).max(initial=0) > near * max(length, 1e-30):
        raise InputError(f"isometry: {name} is not linear")
    pairs = [(x, x, seen_x, seen_x), (y, y, seen_y, seen_y), (x, y, seen_x, seen_y)]
    before, after = (
        np.array([np.vdot(np.asarray(p[i], float), np.asarray(p[i + 1], float)) for p in pairs])
        for i in (0, 2)
    )
    factor = float(after[0] / before[0]) if before[0] else 1.0
    if not factor > 0 or np.abs(after - factor * before).max() > near * after[:2].max():
        raise InputError(
            f"isometry: {name} keeps no lengths: neither Lᵀ L nor L Lᵀ is a multiple of the "
            "identity"
        )
    return _Declared(function, shape, dtype, factor, onto)


register_isometry(_Declared, lambda rule: Isometry(rule.back, rule.onto))
register_affine(_Declared, lambda params, variable: True)
