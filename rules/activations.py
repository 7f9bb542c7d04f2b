"""Activation functions of ``jax.nn`` as one constraint each.

Traced into, they would be several constraints: a silu is a product of two copies of its input. Here
each is the graph of one scalar function, with its globally nearest point. Parameters that are not
listed are traced into.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array

from pjax_trace.registry import Case, register_function
from pjax_trace.rules.closed_forms import nearest_on_lines
from pjax_trace.rules.curves import Curve
from pjax_trace.rules.elementwise import Elementwise, curve_rule

__all__ = ["CURVES", "LINES", "RULES"]

Function = Callable[..., Array]

_GELU = math.sqrt(8 / math.pi)
_gelu_exact = partial(jax.nn.gelu, approximate=False)


def _softplus_inverse(z: Array) -> Array:
    return z + jnp.log(-jnp.expm1(-z))


def _gelu(x: Array) -> Array:
    """The approximate gelu without cancellation, ``x σ(2u)`` for ``x (1 + tanh u) / 2``."""
    return x * jax.nn.sigmoid(x * (_GELU * (1 + 0.044715 * x * x)))


def _gelu_slope(x: Array) -> Array:
    square = x * x
    share = jax.nn.sigmoid(x * (_GELU * (1 + 0.044715 * square)))
    # Far out the share is 0 or 1, and the square too large.
    growth = _GELU * (1 + 0.134145 * jnp.minimum(square, 1e6))
    return share * (1 + jnp.clip(x, -1e3, 1e3) * growth * (1 - share))


def _squareplus(x: Array) -> Array:
    """``(x + √(x² + 4)) / 2`` without cancellation."""
    size = jnp.abs(x)
    larger = 0.5 * (size + jnp.sqrt(x * x + 4))
    return jnp.where(x < 0, 1 / larger, larger)


def _elu_inverse(z: Array, alpha: float = 1.0) -> Array:
    return jnp.where(z > 0, z, jnp.log1p(z / alpha))


# Knots are minima, and kinks or jumps of the curvature.
CURVES: dict[Function, Curve] = {
    jax.nn.silu: Curve(jax.nn.silu, knots=(-1.2784645427610738,), curvature=0.5),
    _gelu_exact: Curve(
        _gelu_exact,
        lambda x: norm.cdf(x) + x * norm.pdf(x),
        knots=(-0.7517915246935645,),
        curvature=0.798,
    ),
    jax.nn.gelu: Curve(_gelu, _gelu_slope, knots=(-0.7524614152318254,), curvature=0.81),
    jax.nn.mish: Curve(jax.nn.mish, knots=(-1.1924311990782175,), curvature=0.65),
    jax.nn.softplus: Curve(jax.nn.softplus, jax.nn.sigmoid, _softplus_inverse, curvature=0.25),
    jax.nn.log_sigmoid: Curve(
        jax.nn.log_sigmoid,
        lambda x: jax.nn.sigmoid(-x),
        lambda z: -_softplus_inverse(-z),
        curvature=0.25,
    ),
    jax.nn.elu: Curve(jax.nn.elu, inverse=_elu_inverse, knots=(0.0,), curvature=1.0),
    jax.nn.celu: Curve(jax.nn.elu, inverse=_elu_inverse, knots=(0.0,), curvature=1.0),
    jax.nn.selu: Curve(
        jax.nn.selu,
        inverse=lambda z: _elu_inverse(z / 1.0507009873554805, 1.6732632423543772),
        knots=(0.0,),
    ),
    jax.nn.soft_sign: Curve(
        jax.nn.soft_sign,
        lambda x: 1 / jnp.square(1 + jnp.abs(x)),
        lambda z: z / (1 - jnp.abs(z)),
        knots=(0.0,),
        curvature=2.0,
    ),
    jax.nn.squareplus: Curve(
        _squareplus,
        lambda x: _squareplus(x) / jnp.sqrt(x * x + 4),
        lambda z: z - 1 / z,
        curvature=0.25,
    ),
    jax.nn.hard_silu: Curve(jax.nn.hard_silu, knots=(-3.0, -1.5, 3.0)),
    jax.nn.sparse_plus: Curve(jax.nn.sparse_plus, knots=(-1.0, 1.0), curvature=0.5),
}

# Knots, slopes between them, and a point of the first line.
LINES: dict[Function, tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]] = {
    jax.nn.relu6: ((0.0, 6.0), (0.0, 1.0, 0.0), (0.0, 0.0)),
    jax.nn.leaky_relu: ((0.0,), (0.01, 1.0), (0.0, 0.0)),
    jax.nn.hard_tanh: ((-1.0, 1.0), (0.0, 1.0, 0.0), (-1.0, -1.0)),
    jax.nn.hard_sigmoid: ((-3.0, 3.0), (0.0, 1 / 6, 0.0), (-3.0, 0.0)),
    jax.nn.sparse_sigmoid: ((-1.0, 1.0), (0.0, 0.5, 0.0), (-1.0, 0.0)),
}

RULES: dict[Function, Elementwise] = {
    **{f: curve_rule(f, curve) for f, curve in CURVES.items()},
    **{
        f: Elementwise(f, partial(nearest_on_lines, *line), kinked={0.0, 1.0}.issuperset(line[1]))
        for f, line in LINES.items()
    },
}
_LEAKY = {
    partial(jax.nn.leaky_relu, negative_slope=slope): Elementwise(
        jax.nn.leaky_relu, partial(nearest_on_lines, (0.0,), (slope, 1.0), (0.0, 0.0))
    )
    for slope in (0.1, 0.2)
}
for function, rule in (*RULES.items(), *_LEAKY.items()):
    case = Case(function, ((3,),), 2.0)
    if isinstance(function, partial):
        register_function(function.func, rule, variants=(function.keywords,), cases=[case])
    else:
        register_function(function, rule, cases=[case])
