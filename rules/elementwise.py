"""Elementwise functions: the nearest point of a curve, for each element by itself."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import Case, evaluate, register_rule
from pjax_trace.rule import Arrays, Flags, Params, Projection, Rule, Weights, projection_of
from pjax_trace.rules.closed_forms import (
    nearest_abs,
    nearest_on_power,
    nearest_on_tan,
    nearest_square,
)
from pjax_trace.rules.curves import EXP, LOG, LOGISTIC, TANH, Curve, nearest_on_curve
from pjax_trace.translation import Outcome, Project, Refusal, Rewrite, Translation, rewriting

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


def curve_rule(function: Callable[..., Array], curve: Curve) -> Elementwise:
    """The rule of an elementwise ``function(x, **params)`` whose graph is a curve."""
    return Elementwise(function, functools.partial(nearest_on_curve, curve), _GLOBAL)


@functools.cache  # so that equal constraints have equal rules
def _integer_power_rule(exponent: int) -> Elementwise:
    nearest = functools.partial(nearest_on_power, exponent)
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
    return nearest_on_power(exponent, x, z, wx, wz)


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


_HALF = math.pi / 2
_SLOPE_OF_ERF = 2 / math.sqrt(math.pi)
_BEND_OF_ERF = math.sqrt(8 / (math.pi * math.e))

CURVES: dict[Any, Curve] = {
    lax.tanh_p: TANH,
    lax.logistic_p: LOGISTIC,
    lax.exp_p: EXP,
    lax.log_p: LOG,
    lax.exp2_p: Curve(
        jnp.exp2,
        lambda x: math.log(2) * jnp.exp2(x),
        lambda z: _log(z) / math.log(2),
        split=lambda z, _: _log(z / 4) / math.log(2),
    ),
    lax.expm1_p: Curve(jnp.expm1, jnp.exp, jnp.log1p, split=lambda z, _: _log((z + 1) / 4)),
    lax.log1p_p: Curve(
        jnp.log1p,
        lambda x: 1 / (1 + x),
        jnp.expm1,
        (-1.0, math.inf),
        split=lambda z, _: jnp.expm1(z + 1.5),
    ),
    lax.sin_p: Curve(
        jnp.sin, jnp.cos, jnp.arcsin, (-_HALF, _HALF), split=_unique, antiperiod=math.pi
    ),
    lax.cos_p: Curve(
        jnp.cos,
        lambda x: -jnp.sin(x),
        jnp.arccos,
        (0.0, math.pi),
        split=_unique,
        antiperiod=math.pi,
    ),
    lax.sinh_p: Curve(jnp.sinh, jnp.cosh, jnp.arcsinh, split=lambda z, _: jnp.arcsinh(z / 4)),
    lax.cosh_p: Curve(jnp.cosh, jnp.sinh, knots=(0.0,)),
    lax.asin_p: Curve(jnp.arcsin, inverse=jnp.sin, domain=(-1.0, 1.0)),
    lax.acos_p: Curve(jnp.arccos, inverse=jnp.cos, domain=(-1.0, 1.0)),
    lax.atan_p: Curve(
        jnp.arctan, lambda x: 1 / (1 + x * x), jnp.tan, curvature=9 / (8 * math.sqrt(3))
    ),
    lax.asinh_p: Curve(jnp.arcsinh, inverse=jnp.sinh, curvature=2 / math.sqrt(27)),
    lax.acosh_p: Curve(jnp.arccosh, inverse=jnp.cosh, domain=(1.0, math.inf)),
    lax.atanh_p: Curve(jnp.arctanh, inverse=jnp.tanh, domain=(-1.0, 1.0)),
    lax.erf_p: Curve(
        lax.erf, lambda x: _SLOPE_OF_ERF * jnp.exp(-x * x), lax.erf_inv, curvature=_BEND_OF_ERF
    ),
    lax.erfc_p: Curve(
        lax.erfc,
        lambda x: -_SLOPE_OF_ERF * jnp.exp(-x * x),
        lambda z: lax.erf_inv(1 - z),
        curvature=_BEND_OF_ERF,
    ),
    # Of positive numbers; the first falls up to its minimum.
    lax.lgamma_p: Curve(lax.lgamma, lax.digamma, domain=(0.0, math.inf), knots=(1.4616321,)),
    lax.digamma_p: Curve(
        lax.digamma, lambda x: lax.polygamma(jnp.ones_like(x), x), domain=(0.0, math.inf)
    ),
    lax.erf_inv_p: Curve(lax.erf_inv, inverse=lax.erf, domain=(-1.0, 1.0)),
}
_CLOSED_FORMS: dict[Any, Callable[..., Array]] = {
    lax.abs_p: nearest_abs,
    lax.square_p: nearest_square,
    lax.sqrt_p: functools.partial(nearest_on_power, 0.5),
    lax.rsqrt_p: functools.partial(nearest_on_power, -0.5),
    lax.cbrt_p: functools.partial(nearest_on_power, 1 / 3, odd=True),
    lax.tan_p: nearest_on_tan,
}
# Scale and centre of the points to test at, if not 1 and 0.
_POINTS: dict[Any, tuple[float, float]] = {
    **dict.fromkeys((lax.log_p, lax.sqrt_p, lax.rsqrt_p), (0.4, 5.0)),
    lax.log1p_p: (0.4, 4.0),
    lax.acosh_p: (0.4, 6.0),
    lax.lgamma_p: (0.4, 4.0),
    lax.digamma_p: (0.4, 4.0),
    **dict.fromkeys((lax.sin_p, lax.cos_p), (2.0, 0.0)),
    **dict.fromkeys((lax.asin_p, lax.acos_p, lax.atanh_p), (0.1, 0.0)),
    **dict.fromkeys((lax.erf_inv_p, lax.tan_p), (0.1, 0.0)),
}
for primitive, rule in {
    **{p: curve_rule(evaluate(p), curve) for p, curve in CURVES.items()},
    **{p: Elementwise(evaluate(p), nearest) for p, nearest in _CLOSED_FORMS.items()},
}.items():
    case = Case(getattr(lax, str(primitive)), ((3,),), *_POINTS.get(primitive, ()))
    register_rule(primitive, rule, cases=[case])


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
    "rem_p": ("it jumps; write x - y * jnp.floor(x / y) with data for y, or sin and cos", 2),
    "nextafter_p": ("it moves by rounding error only; leave it out", 2),
    **{f"{name}_p": (_SPECIAL, 1) for name in ("bessel_i0e", "bessel_i1e")},
    **{f"{name}_p": (_SPECIAL, 2) for name in ("polygamma", "zeta", "igamma", "igammac")},
    "igamma_grad_a_p": (_SPECIAL, 2),
    "regularized_incomplete_beta_p": (_SPECIAL, 3),
}
for name, (reason, arity) in REFUSED.items():
    if hasattr(lax, name):
        function = getattr(lax, {"regularized_incomplete_beta_p": "betainc"}.get(name, name[:-2]))
        case = Case(function, ((2,),) * arity, 0.1, 1.0)
        register_rule(getattr(lax, name), Refusal(reason), cases=[case])


def _horner(x: Array, *coefficients: Array) -> Array:
    """``a_0 + x (a_1 + x (a_2 + …))``."""
    *others, total = coefficients
    for coefficient in reversed(others):
        total = total * x + coefficient
    return jnp.broadcast_to(total, x.shape)


# Newer JAX has primitives for what older JAX writes out.
for _name, _function, _case in (
    ("log2_p", lambda x: lax.log(x) * (1 / math.log(2)), Case(jnp.log2, ((3,),), 0.5, 2.0)),
    (
        "one_minus_square_p",
        lambda x: 1 - lax.square(x),
        Case(jax.grad(lambda x: jnp.sum(jnp.tanh(x))), ((3,),)),
    ),
    (
        "polynomial_p",
        _horner,
        Case(lambda x: jnp.polyval(jnp.asarray([0.5, -1, 2], x.dtype), x), ((3,),)),
    ),
):
    if hasattr(lax, _name):
        register_rule(
            getattr(lax, _name),
            rewriting(lambda params, _, function=_function: function, "elementwise"),
            cases=[_case],
            since="0.12",
        )
