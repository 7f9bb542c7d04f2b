"""Complex values, as pairs of reals: an array with one more axis in front, real and imaginary part.

The tracer keeps complex values that depend on variables so. What a primitive does to pairs is said
here; views, sums and negation do it to both parts alike.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.custom import call, function_p
from pjax_trace.pairs import as_pair
from pjax_trace.registry import Case, register_paired, register_rule
from pjax_trace.rule import Arrays, Params, Projection, Rule, Weights, projection_of
from pjax_trace.translation import Refuse, Translation

__all__ = ["MAGNITUDE", "Magnitude", "on_pairs"]


class Magnitude(Rule):
    """``z = |x|`` of pairs ``x`` of reals, the first axis: a cone over every pair.

    By symmetry the nearest point has the phase of ``x``, and its size is the nearest point of the
    ray: ``r = max(0, (ω_x |x| + ω_z z) / (ω_x + ω_z))``. Of x = 0 the phase is free, and is 1.
    """

    family = "elementwise"
    exactness = "exact, closed form"

    def apply(self, params: Params, *operands: Array) -> Array:
        return jnp.hypot(*operands[0])

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (x,), (weight,) = operands, weights.operands
        size = jnp.hypot(*x)
        nearest = jnp.maximum((weight * size + weights.out * out) / (weight + weights.out), 0)
        known = size > 0
        unit = jnp.stack([jnp.ones_like(size), jnp.zeros_like(size)])
        phase = jnp.where(known[None], x / jnp.where(known, size, 1)[None], unit)
        moved = phase * nearest[None]
        return projection_of(operands, out, weights, (moved,), jnp.hypot(*moved))


MAGNITUDE = Magnitude()


def alike(primitive: Any) -> Callable[..., Any]:
    """What a primitive that is linear in its complex operands does: the same to both parts."""

    def function(params: Params, pairs: Sequence[bool], *operands: Array) -> list[Array]:
        split = [p or jnp.iscomplexobj(x) for p, x in zip(pairs, operands, strict=True)]
        axes = [0 if part else None for part in split]
        mapped = jax.vmap(functools.partial(_compat.bind, primitive, params), axes)
        return mapped(*map(as_pair, operands))

    return function


def _select(params: Params, pairs: Sequence[bool], which: Array, *cases: Array) -> Array:
    """By a boolean that depends on variables, which here is a real number, too."""
    if jnp.issubdtype(which.dtype, jnp.floating):
        which = which > 0.5
    return jax.vmap(functools.partial(lax.select_n, which))(*map(as_pair, cases))


def _scattered(function: Callable[..., Array]) -> Callable[..., Array]:
    """A scatter, of which JAX's own function is bound: its params are of complex values."""

    def paired(params: Params, pairs: Sequence[bool], *operands: Array) -> Array:
        x, indices, updates = operands
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        options = {name: params[name] for name in names}
        scatter = functools.partial(function, **options)
        return jax.vmap(scatter, (0, None, 0))(as_pair(x), indices, as_pair(updates))

    return paired


def _product(
    params: Params, pairs: Sequence[bool], u: Array, v: Array, times: Any = jnp.multiply
) -> Array:
    """Four products of parts; two, if one of the factors is real."""
    complex_u, complex_v = (
        pair or jnp.iscomplexobj(x) for pair, x in zip(pairs, (u, v), strict=True)
    )
    u, v = as_pair(u), as_pair(v)
    if not complex_v:
        return jnp.stack([times(u[0], v), times(u[1], v)])
    if not complex_u:
        return jnp.stack([times(u, v[0]), times(u, v[1])])
    real = times(u[0], v[0]) - times(u[1], v[1])
    return jnp.stack([real, times(u[0], v[1]) + times(u[1], v[0])])


def _quotient(params: Params, pairs: Sequence[bool], u: Array, v: Array) -> Array:
    if not pairs[1]:
        return _product(params, pairs, u, 1 / v)
    product = _product(params, pairs, u, jnp.stack([v[0], -v[1]]))
    return product / (jnp.square(v[0]) + jnp.square(v[1]))[None]


def _bilinear(primitive: Any) -> Callable[..., Array]:
    """What a primitive that is bilinear does: four of it, on parts."""

    def function(params: Params, pairs: Sequence[bool], u: Array, v: Array) -> Array:
        real = {**params, "preferred_element_type": None}
        return _product(params, pairs, u, v, lambda *xs: _compat.bind(primitive, real, *xs)[0])

    return function


def _convert(params: Params, pairs: Sequence[bool], x: Array) -> Array:
    dtype = params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return x[0].astype(dtype)
    dtype = jnp.finfo(dtype).dtype  # of the parts
    return x.astype(dtype) if pairs[0] else jnp.stack([x, jnp.zeros_like(x)]).astype(dtype)


for primitive in (
    *(lax.add_p, lax.sub_p, lax.neg_p, lax.reduce_sum_p, lax.cumsum_p, lax.stop_gradient_p),
    _compat.add_any_p,
    *(lax.reshape_p, lax.transpose_p, lax.squeeze_p, lax.rev_p, lax.copy_p, lax.slice_p),
    *(lax.broadcast_in_dim_p, lax.concatenate_p, lax.pad_p, lax.gather_p, lax.split_p),
    *(lax.dynamic_slice_p, lax.dynamic_update_slice_p, lax.optimization_barrier_p),
    *(lax.reduce_window_sum_p, lax.psum_p),
    *(getattr(lax, name) for name in ("tile_p", "stack_p", "unstack_p") if hasattr(lax, name)),
):
    register_paired(primitive, alike(primitive))
register_paired(lax.select_n_p, _select)
register_paired(lax.scatter_p, _scattered(lax.scatter))
register_paired(lax.scatter_add_p, _scattered(lax.scatter_add))
register_paired(lax.scatter_sub_p, _scattered(lax.scatter_sub))
register_paired(lax.mul_p, _product, factors=True)
register_paired(lax.div_p, _quotient, factors=True)
for primitive in (lax.dot_general_p, lax.conv_general_dilated_p):
    register_paired(primitive, _bilinear(primitive), factors=True)
register_paired(lax.convert_element_type_p, _convert)
register_paired(lax.abs_p, lambda params, pairs, u: call(function_p, MAGNITUDE, u, name="abs"))
register_paired(lax.complex_p, lambda params, pairs, x, y: jnp.stack(jnp.broadcast_arrays(x, y)))
register_paired(lax.real_p, lambda params, pairs, u: u[0])
register_paired(lax.imag_p, lambda params, pairs, u: u[1])
register_paired(
    lax.conj_p, lambda params, pairs, u: jnp.stack([u[0], -u[1]] if pairs[0] else [u, 0 * u])
)


def on_pairs(**said: Any) -> Translation:
    """What is said of complex values is said of pairs, before; of others there is nothing to say.

    The arguments are for the coverage table, see `Translation`.
    """
    refuse = Refuse("it is of use on complex values only, which are pairs of reals")
    return Translation(lambda *_: refuse, **said)


for primitive, function, note in (
    (lax.complex_p, lambda u: jnp.real(u) + jnp.imag(u), "complex values are pairs of reals"),
    (lax.real_p, jnp.real, ""),
    (lax.imag_p, jnp.imag, ""),
    (lax.conj_p, lambda u: jnp.imag(jnp.conj(u)), ""),
):
    case = Case(lambda x, y, f=function: f(lax.complex(x, y)), ((3,), (3,)))
    register_rule(primitive, on_pairs(family="view"), cases=[case], note=note)
