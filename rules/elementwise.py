"""Elementwise functions: the nearest point of a curve, for each element by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import (
    Moment,
    Projection,
    Rule,
    Weights,
    evaluate,
    register_rule,
    squared_distance,
)
from pjax_trace.rules import curves

__all__ = ["CurveRule", "Elementwise"]

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
        x, *data = operands
        weight = weights.operands[0]
        moved = self._nearest(x, out, weight, weights.out, *data)
        moved_out = self.apply(params, moved, *data)
        distance = squared_distance(weight, moved, x)
        distance = distance + squared_distance(weights.out, moved_out, out)
        none = (None,) * len(data)
        return Projection((Moment(weight * moved, weight), *none), moved_out, distance)


class CurveRule(Elementwise):
    """An elementwise primitive given by its `pjax_trace.rules.curves.Curve`."""

    def __init__(self, primitive: Any, curve: curves.Curve):
        super().__init__(
            evaluate(primitive),
            lambda x, z, wx, wz: curves.nearest_on_curve(curve, x, z, wx, wz),
        )


class Maximum(Elementwise):
    """max of a variable and data, which is relu with a threshold."""

    def __init__(self) -> None:
        super().__init__(
            lax.max, lambda x, z, wx, wz, threshold: curves.nearest_relu(x, z, wx, wz, threshold)
        )

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """The variable first, both of one shape."""
        x, y = operands
        if variable == (False, True):
            return lambda x, y: lax.max(y, x)
        if variable == (True, False) and x.shape != y.shape:
            return lambda x, y: lax.max(x, jnp.broadcast_to(y, x.shape))
        return None


class IntegerPower(Rule):
    """integer_pow, by rewriting it; the square, so far."""

    family = "elementwise"

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """``x ** 2`` is a square and ``x ** 1`` is x."""
        return {1: lambda x: x, 2: lax.square}.get(int(params["y"]))

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Nothing that is not rewritten."""
        return False


register_rule(lax.max_p, Maximum())
register_rule(lax.abs_p, Elementwise(evaluate(lax.abs_p), curves.nearest_abs))
register_rule(lax.square_p, Elementwise(evaluate(lax.square_p), curves.nearest_square))
register_rule(lax.integer_pow_p, IntegerPower())
register_rule(lax.tanh_p, CurveRule(lax.tanh_p, curves.TANH))
register_rule(lax.logistic_p, CurveRule(lax.logistic_p, curves.LOGISTIC))
register_rule(lax.exp_p, CurveRule(lax.exp_p, curves.EXP))
register_rule(lax.log_p, CurveRule(lax.log_p, curves.LOG))
