"""Elementary functions of complex values, and products of many: made of real ones.

Powers are those of the principal branch, as everywhere in JAX.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.custom import call, function_p
from pjax_trace.pairs import as_complex, as_pair, is_complex
from pjax_trace.registry import register_paired
from pjax_trace.rule import Params
from pjax_trace.rules.angle import angle_of
from pjax_trace.rules.complex import MAGNITUDE
from pjax_trace.rules.linear import cumulative_product, product_over_axes

__all__ = ["in_complex"]


def _of_parts(function: Callable[[Array, Array], tuple[Array, Array]]) -> Callable[..., Array]:
    """From real and imaginary part to those of the result."""
    return lambda params, pairs, u: jnp.stack(function(u[0], u[1]))


def in_complex(function: Callable[..., Array]) -> Callable[..., Array]:
    """What is equivalent to ``function(params, *operands)``, which is written for complex ones."""

    def paired(params: Params, pairs: Sequence[bool], *operands: Array) -> Array:
        whole = (as_complex(x) if p else x for x, p in zip(operands, pairs, strict=True))
        return as_pair(function(params, *whole))

    return paired


def _exp(x: Array, y: Array) -> tuple[Array, Array]:
    size = jnp.exp(x)
    return size * jnp.cos(y), size * jnp.sin(y)


def _log(params: Params, pairs: Sequence[bool], u: Array) -> Array:
    """Of 0 it is that of a tiny number."""
    size = call(function_p, MAGNITUDE, u, name="abs")
    none = lax.stop_gradient(size) == 0
    size = size + jnp.where(none, float(jnp.finfo(u.dtype).tiny), 0).astype(u.dtype)
    return jnp.stack([jnp.log(size), angle_of(u)])


def _tanh(x: Array, y: Array) -> tuple[Array, Array]:
    """``(sinh 2x + i sin 2y) / (cosh 2x + cos 2y)``, with what grows divided out."""
    steep = 1 / jnp.cosh(2 * x)
    below = 1 + jnp.cos(2 * y) * steep
    return jnp.tanh(2 * x) / below, jnp.sin(2 * y) * steep / below


def _power(params: Params, z: Array, exponent: Array) -> Array:
    if not is_complex(exponent):
        exponent = exponent.astype(z.dtype)
    if not is_complex(z):
        z = z.astype(exponent.dtype)
    return jnp.exp(exponent * jnp.log(z))


def _integer_power(params: Params, z: Array) -> Array:
    exponent = int(params["y"])
    if exponent < 0:
        return 1 / _integer_power({"y": -exponent}, z)
    result, square = None, z
    while exponent:
        if exponent % 2:
            result = square if result is None else result * square
        exponent //= 2
        square = square * square if exponent else square
    return jnp.ones_like(z) if result is None else result


def _asin(z: Array) -> Array:
    return -1j * jnp.log(1j * z + jnp.sqrt(1 - z * z))


def _sign(params: Params, z: Array) -> Array:
    size = jnp.abs(z)
    none = (lax.stop_gradient(size) == 0).astype(size.dtype)
    return z / (size + none).astype(z.dtype)


register_paired(lax.log_p, _log)
register_paired(lax.eq_p, lambda params, pairs, u, v: jnp.all(as_pair(u) == as_pair(v), 0))
register_paired(lax.ne_p, lambda params, pairs, u, v: jnp.any(as_pair(u) != as_pair(v), 0))
for primitive, parts in {
    lax.exp_p: _exp,
    lax.tanh_p: _tanh,
    lax.sin_p: lambda x, y: (jnp.sin(x) * jnp.cosh(y), jnp.cos(x) * jnp.sinh(y)),
    lax.cos_p: lambda x, y: (jnp.cos(x) * jnp.cosh(y), -jnp.sin(x) * jnp.sinh(y)),
    lax.sinh_p: lambda x, y: (jnp.sinh(x) * jnp.cos(y), jnp.cosh(x) * jnp.sin(y)),
    lax.cosh_p: lambda x, y: (jnp.cosh(x) * jnp.cos(y), jnp.sinh(x) * jnp.sin(y)),
}.items():
    register_paired(primitive, _of_parts(parts))
for primitive, whole in {
    lax.expm1_p: lambda params, z: jnp.exp(z) - 1,
    lax.exp2_p: lambda params, z: jnp.exp(z * math.log(2)),
    lax.log1p_p: lambda params, z: jnp.log(1 + z),
    lax.tan_p: lambda params, z: -1j * jnp.tanh(1j * z),
    lax.logistic_p: lambda params, z: (1 + jnp.tanh(z / 2)) / 2,
    lax.sqrt_p: lambda params, z: jnp.exp(jnp.log(z) / 2),
    lax.rsqrt_p: lambda params, z: jnp.exp(jnp.log(z) / -2),
    lax.asin_p: lambda params, z: _asin(z),
    lax.acos_p: lambda params, z: math.pi / 2 - _asin(z),
    lax.atan_p: lambda params, z: 0.5j * (jnp.log(1 - 1j * z) - jnp.log(1 + 1j * z)),
    lax.asinh_p: lambda params, z: jnp.log(z + jnp.sqrt(z * z + 1)),
    lax.acosh_p: lambda params, z: jnp.log(z + jnp.sqrt(z + 1) * jnp.sqrt(z - 1)),
    lax.atanh_p: lambda params, z: (jnp.log(1 + z) - jnp.log(1 - z)) / 2,
    lax.square_p: lambda params, z: z * z,
    lax.sign_p: _sign,
    lax.pow_p: _power,
    lax.integer_pow_p: _integer_power,
    lax.cumprod_p: cumulative_product,
    lax.reduce_prod_p: product_over_axes,
}.items():
    register_paired(primitive, in_complex(whole))
