"""Elementwise functions: the nearest point of a curve, for each element by itself."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import Case, evaluate, register_rule
from pjax_trace.rule import Arrays, Flags, Params, Projection, Rule, Weights, projection_of
from pjax_trace.rules import closed_forms, curves
from pjax_trace.translation import Outcome, Project, Refusal, Rewrite, Translation

__all__ = ["CURVES", "REFUSED", "Elementwise", "curve_rule"]

_GLOBAL = "global, to rounding"


class Elementwise(Rule):
    """``z = f(x, *data)`` element by element.

    Args:
        function: ``f(x, *data, **params)``; anything elementwise.
        nearest: ``nearest(x0, z0, ω_x, ω_z, *data) -> x'``, the argmin over x of
            ``ω_x (x − x0)² + ω_z (f(x) − z0)²``, elementwise.
        exactness: for the coverage table.
        kinked: see `pjax_trace.Rule`.
    """

    family = "elementwise"
    movable = 1
    elementwise = True

    def __init__(
        self,
        function: Callable[..., Array],
        nearest: Callable[..., Array],
        exactness: str = "exact",
        kinked: bool = False,
    ):
        self._function = function
        self._nearest = nearest
        self.exactness = exactness  # pyright: ignore[reportAttributeAccessIssue]
        self.kinked = kinked  # pyright: ignore[reportAttributeAccessIssue]

    def apply(self, params: Params, *operands: Array) -> Array:
        return self._function(*operands, **params)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        x, *data = operands
        moved = self._nearest(x, out, weights.operands[0], weights.out, *data)
        moved_out = self.apply(params, moved, *data)
        return projection_of(operands, out, weights, (moved, *data), moved_out)


def curve_rule(function: Callable[..., Array], curve: curves.Curve) -> Elementwise:
    """The rule of an elementwise function of one array that is given by its curve.

    Args:
        function: ``function(x, **params)``.
        curve: its graph.
    """
    nearest = functools.partial(curves.nearest_on_curve, curve)
    return Elementwise(function, nearest, _GLOBAL)


@functools.cache  # so that equal constraints have equal rules
def _integer_power_rule(exponent: int) -> Elementwise:
    nearest = functools.partial(closed_forms.nearest_on_power, exponent)
    return Elementwise(evaluate(lax.integer_pow_p), nearest, _GLOBAL)


def _integer_power(params: Params, _: Sequence[Any], variable: Flags) -> Outcome:
    """``x ** 2`` is a square, ``x ** 1`` is x and ``x ** 0`` is one; the others are curves."""
    exponent = int(params["y"])
    simpler = {0: jnp.ones_like, 1: lambda x: x, 2: lax.square}.get(exponent)
    if simpler is not None:
        return Rewrite(simpler)
    return Project(_integer_power_rule(exponent), params)


def _nearest_on_power(x: Array, z: Array, wx: Any, wz: Any, exponent: Array) -> Array:
    exponent = jnp.broadcast_to(exponent, x.shape).astype(x.dtype)
    return closed_forms.nearest_on_power(exponent, x, z, wx, wz)


_POWER = Elementwise(lambda x, y, **_: lax.pow(x, y), _nearest_on_power, _GLOBAL)


def _power(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """A power that is data is a curve; any other, ``aˣ = exp(x log a)``, is for positive a."""
    x, y = operands
    shape = jnp.broadcast_shapes(x.shape, y.shape)

    def exponential(x: Array, y: Array) -> Array:
        x, y = (jnp.broadcast_to(a, shape) for a in (x, y))
        return jnp.exp(y * jnp.log(x))

    if variable[1]:
        return Rewrite(exponential)
    if x.shape != shape:
        return Rewrite(lambda x, y: lax.pow(jnp.broadcast_to(x, shape), y))
    return Project(_POWER, params)


def _log(z: Array) -> Array:
    return jnp.log(jnp.maximum(z, float(jnp.finfo(z.dtype).tiny)))


def _unique(z: Array, side: Array) -> Array:
    """Of a half wave, the distance has one local minimum."""
    return jnp.full_like(z, math.nan)


HALF = math.pi / 2
SIN = curves.Curve(jnp.sin, jnp.cos, jnp.arcsin, (-HALF, HALF), split=_unique, antiperiod=math.pi)
COS = curves.Curve(
    jnp.cos, lambda x: -jnp.sin(x), jnp.arccos, (0.0, math.pi), split=_unique, antiperiod=math.pi
)

# Primitive, curve, and centre and scale of the points that it is tested at.
CURVES: dict[Any, tuple[curves.Curve, float, float]] = {
    lax.tanh_p: (curves.TANH, 0, 1),
    lax.logistic_p: (curves.LOGISTIC, 0, 1),
    lax.exp_p: (curves.EXP, 0, 1),
    lax.log_p: (curves.LOG, 5, 0.4),
    lax.exp2_p: (
        curves.Curve(
            jnp.exp2,
            lambda x: math.log(2) * jnp.exp2(x),
            lambda z: _log(z) / math.log(2),
            split=lambda z, _: _log(z / 4) / math.log(2),
        ),
        0,
        1,
    ),
    lax.expm1_p: (
        curves.Curve(jnp.expm1, jnp.exp, jnp.log1p, split=lambda z, _: _log((z + 1) / 4)),
        0,
        1,
    ),
    lax.log1p_p: (
        curves.Curve(
            jnp.log1p,
            lambda x: 1 / (1 + x),
            jnp.expm1,
            (-1.0, math.inf),
            split=lambda z, _: jnp.expm1(z + 1.5),
        ),
        4,
        0.4,
    ),
    lax.sin_p: (SIN, 0, 2),
    lax.cos_p: (COS, 0, 2),
    lax.sinh_p: (
        curves.Curve(jnp.sinh, jnp.cosh, jnp.arcsinh, split=lambda z, _: jnp.arcsinh(z / 4)),
        0,
        1,
    ),
    lax.cosh_p: (curves.Curve(jnp.cosh, jnp.sinh, knots=(0.0,)), 0, 1),
    lax.asin_p: (curves.Curve(jnp.arcsin, inverse=jnp.sin, domain=(-1.0, 1.0)), 0, 0.1),
    lax.acos_p: (curves.Curve(jnp.arccos, inverse=jnp.cos, domain=(-1.0, 1.0)), 0, 0.1),
    lax.atan_p: (
        curves.Curve(
            jnp.arctan, lambda x: 1 / (1 + x * x), jnp.tan, curvature=9 / (8 * math.sqrt(3))
        ),
        0,
        1,
    ),
    lax.asinh_p: (
        curves.Curve(jnp.arcsinh, inverse=jnp.sinh, curvature=2 / math.sqrt(27)),
        0,
        1,
    ),
    lax.acosh_p: (curves.Curve(jnp.arccosh, inverse=jnp.cosh, domain=(1.0, math.inf)), 6, 0.4),
    lax.atanh_p: (curves.Curve(jnp.arctanh, inverse=jnp.tanh, domain=(-1.0, 1.0)), 0, 0.1),
    lax.erf_p: (
        curves.Curve(
            lax.erf,
            lambda x: 2 / math.sqrt(math.pi) * jnp.exp(-x * x),
            lax.erf_inv,
            curvature=math.sqrt(8 / (math.pi * math.e)),
        ),
        0,
        1,
    ),
    lax.erfc_p: (
        curves.Curve(
            lax.erfc,
            lambda x: -2 / math.sqrt(math.pi) * jnp.exp(-x * x),
            lambda z: lax.erf_inv(1 - z),
            curvature=math.sqrt(8 / (math.pi * math.e)),
        ),
        0,
        1,
    ),
    lax.erf_inv_p: (curves.Curve(lax.erf_inv, inverse=lax.erf, domain=(-1.0, 1.0)), 0, 0.1),
}
for primitive, (curve, centre, scale) in CURVES.items():
    case = Case(getattr(lax, str(primitive)), ((3,),), scale, centre)
    register_rule(primitive, curve_rule(evaluate(primitive), curve), cases=[case])


def _nearest_cube_root(x: Array, z: Array, wx: Any, wz: Any) -> Array:
    return closed_forms.nearest_on_power(1 / 3, x, z, wx, wz, odd=True)


register_rule(
    lax.abs_p,
    Elementwise(evaluate(lax.abs_p), closed_forms.nearest_abs),
    cases=[Case(lax.abs, ((3,),))],
)
register_rule(
    lax.square_p,
    Elementwise(evaluate(lax.square_p), closed_forms.nearest_square),
    cases=[Case(lax.square, ((3,),))],
)
register_rule(
    lax.sqrt_p,
    Elementwise(evaluate(lax.sqrt_p), functools.partial(closed_forms.nearest_on_power, 0.5)),
    cases=[Case(lax.sqrt, ((3,),), 0.4, 5.0)],
)
register_rule(
    lax.rsqrt_p,
    Elementwise(evaluate(lax.rsqrt_p), functools.partial(closed_forms.nearest_on_power, -0.5)),
    cases=[Case(lax.rsqrt, ((3,),), 0.4, 5.0)],
)
register_rule(
    lax.cbrt_p,
    Elementwise(evaluate(lax.cbrt_p), _nearest_cube_root),
    cases=[Case(lax.cbrt, ((3,),))],
)
register_rule(
    lax.tan_p,
    Elementwise(evaluate(lax.tan_p), closed_forms.nearest_on_tan),
    cases=[Case(lax.tan, ((3,),), 0.1)],
)
register_rule(
    lax.integer_pow_p,
    Translation(_integer_power, of=_integer_power_rule(3)),
    cases=[
        *(Case(lambda x, y=y: lax.integer_pow(x, y), ((3,),)) for y in (2, 3, 4)),
        *(Case(lambda x, y=y: lax.integer_pow(x, y), ((3,),), 0.4, 5.0) for y in (-1, -2, -3)),
    ],
)
register_rule(
    lax.pow_p,
    Translation(_power, of=_POWER),
    cases=[
        Case(lambda x: x**1.5, ((3,),), 0.4, 5.0),
        Case(lambda x: x ** jnp.asarray([3.0, -1.0, 0.5], x.dtype), ((3,),), 0.4, 5.0),
        Case(lambda x: lax.pow(x, 2), ((3,),)),
    ],
    note="negative operands only where the exponent is an integer; aˣ as exp(x log a)",
)

_SPECIAL = (
    "has no rule: its nearest points have no solver here; compute it from data, or write what is "
    "needed of it in elementary functions"
)
REFUSED: dict[str, tuple[str, int]] = {
    "atan2_p": ("write jnp.arctan(y / x), or compute the angle from data", 2),
    "rem_p": ("it jumps; write x - y * jnp.floor(x / y) with data for y, or sin and cos", 2),
    "nextafter_p": ("it moves by rounding error only; leave it out", 2),
    "lgamma_p": (_SPECIAL, 1),
    "digamma_p": (_SPECIAL, 1),
    "bessel_i0e_p": (_SPECIAL, 1),
    "bessel_i1e_p": (_SPECIAL, 1),
    "polygamma_p": (_SPECIAL, 2),
    "zeta_p": (_SPECIAL, 2),
    "igamma_p": (_SPECIAL, 2),
    "igammac_p": (_SPECIAL, 2),
    "igamma_grad_a_p": (_SPECIAL, 2),
    "regularized_incomplete_beta_p": (_SPECIAL, 3),
}
for name, (reason, arity) in REFUSED.items():
    if hasattr(lax, name):
        function = getattr(lax, {"regularized_incomplete_beta_p": "betainc"}.get(name, name[:-2]))
        case = Case(function, ((2,),) * arity, 0.1, 1.0)
        register_rule(getattr(lax, name), Refusal(reason), cases=[case])
