"""Elementwise functions: the nearest point of a curve, for each element by itself."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import (
    HEAVY,
    Case,
    Projection,
    Refusal,
    Request,
    Rule,
    Weights,
    evaluate,
    projection_of,
    register_rule,
)
from pjax_trace.rules import curves

__all__ = ["CurveRule", "Elementwise", "IntegerPower", "Power", "Smooth"]

Nearest = Callable[..., Array]


class Elementwise(Rule):
    """``z = f(x, *data)`` element by element.

    Args:
        function: ``f(x, *data, **params)``; anything elementwise.
        nearest: ``nearest(x0, z0, ω_x, ω_z, *data) -> x'``, the argmin over x of
            ``ω_x (x − x0)² + ω_z (f(x) − z0)²``, elementwise.
    """

    family = "elementwise"

    def __init__(self, function: Callable[..., Array], nearest: Nearest):
        self._function = function
        self._nearest = nearest

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """One variable, the rest data."""
        return variable[0] and not any(variable[1:])

    def elementwise(self, params: dict[str, Any], variable: Sequence[bool], position: int) -> bool:
        """Elements do not know of each other."""
        return True

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The function."""
        return self._function(*operands, **params)

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every element by itself."""
        return self.project_by(self._nearest, params, operands, out, weights)

    def project_by(
        self,
        nearest: Nearest,
        params: dict[str, Any],
        operands: Sequence[Array],
        out: Array,
        weights: Weights,
    ) -> Projection:
        """With this function for the nearest points."""
        x, *data = operands
        weight = weights.operands[0]
        moved = nearest(x, out, weight, weights.out, *data)
        moved_out = self.apply(params, moved, *data)
        return projection_of(operands, out, weights, (moved, *data), moved_out)


class Smooth(Elementwise):
    """An elementwise function with a derivative."""

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """That of the tangent, from which so near a target cannot tell the curve."""
        x, *data = operands
        _, slope = jax.jvp(lambda x: self.apply(params, x, *data), (x,), (jnp.ones_like(x),))
        share = (HEAVY + 1) * slope / (HEAVY + jnp.square(slope))
        return (jnp.where(jnp.isfinite(share), share, 0) * request.residual, *(None for _ in data))


class CurveRule(Smooth):
    """An elementwise function given by its `pjax_trace.rules.curves.Curve`.

    Args:
        function: a primitive, or any JAX function of one array.
        curve: its graph.
    """

    exactness = "global, to rounding"

    def __init__(self, function: Any, curve: curves.Curve):
        super().__init__(
            function if callable(function) else evaluate(function),  # pyright: ignore
            lambda x, z, wx, wz: curves.nearest_on_curve(curve, x, z, wx, wz),
        )


class IntegerPower(Smooth):
    """integer_pow: the square and the identity by rewriting, any other exponent as a curve."""

    exactness = "global, to rounding"

    def __init__(self) -> None:
        super().__init__(evaluate(lax.integer_pow_p), curves.nearest_square)

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """``x ** 2`` is a square, ``x ** 1`` is x and ``x ** 0`` is one."""
        return {0: jnp.ones_like, 1: lambda x: x, 2: lax.square}.get(int(params["y"]))

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every element by itself."""
        nearest = functools.partial(curves.nearest_on_power, int(params["y"]))
        return self.project_by(nearest, params, operands, out, weights)


class Power(Smooth):
    """pow: of a variable to a power that is data; other powers are exponentials of products."""

    exactness = "global, to rounding"

    def __init__(self) -> None:
        super().__init__(
            lambda x, y, **_: lax.pow(x, y),
            lambda x, z, wx, wz, y: curves.nearest_on_power(
                jnp.broadcast_to(y, x.shape).astype(x.dtype), x, z, wx, wz
            ),
        )

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """``aˣ = exp(x log a)``, for positive a; both of one shape."""
        x, y = operands
        shape = jnp.broadcast_shapes(x.shape, y.shape)

        def exponential(x: Array, y: Array) -> Array:
            x, y = (jnp.broadcast_to(a, shape) for a in (x, y))
            return jnp.exp(y * jnp.log(x))

        if variable[1]:
            return exponential
        if x.shape != shape:
            return lambda x, y: lax.pow(jnp.broadcast_to(x, shape), y)
        return None


def _log(z: Array) -> Array:
    return jnp.log(jnp.maximum(z, jnp.finfo(z.dtype).tiny))


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
    register_rule(primitive, CurveRule(evaluate(primitive), curve), cases=[case])


def _nearest_cube_root(x: Array, z: Array, wx: Any, wz: Any) -> Array:
    return curves.nearest_on_power(1 / 3, x, z, wx, wz, odd=True)


register_rule(
    lax.abs_p,
    Elementwise(evaluate(lax.abs_p), curves.nearest_abs),
    cases=[Case(lax.abs, ((3,),))],
)
register_rule(
    lax.square_p,
    Smooth(evaluate(lax.square_p), curves.nearest_square),
    cases=[Case(lax.square, ((3,),))],
)
register_rule(
    lax.sqrt_p,
    Smooth(evaluate(lax.sqrt_p), functools.partial(curves.nearest_on_power, 0.5)),
    cases=[Case(lax.sqrt, ((3,),), 0.4, 5.0)],
)
register_rule(
    lax.rsqrt_p,
    Smooth(evaluate(lax.rsqrt_p), functools.partial(curves.nearest_on_power, -0.5)),
    cases=[Case(lax.rsqrt, ((3,),), 0.4, 5.0)],
)
register_rule(
    lax.cbrt_p,
    Smooth(evaluate(lax.cbrt_p), _nearest_cube_root),
    cases=[Case(lax.cbrt, ((3,),))],
)
register_rule(
    lax.tan_p,
    Smooth(evaluate(lax.tan_p), curves.nearest_on_tan),
    cases=[Case(lax.tan, ((3,),), 0.1)],
)
register_rule(
    lax.integer_pow_p,
    IntegerPower(),
    cases=[
        *(Case(lambda x, y=y: lax.integer_pow(x, y), ((3,),)) for y in (2, 3, 4)),
        *(Case(lambda x, y=y: lax.integer_pow(x, y), ((3,),), 0.4, 5.0) for y in (-1, -2, -3)),
    ],
)
register_rule(
    lax.pow_p,
    Power(),
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
