"""Quotients ``z = x / y``: the product ``x = z y`` with the roles changed."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.rule import Arrays, Params, Projection, Rule, Weights, projection_of
from pjax_trace.rules.products import project_products

__all__ = ["QUOTIENT", "QuotientRule"]


class QuotientRule(Rule):
    """``z = x / y`` by a variable, element by element; x may be data.

    The closure of the graph is ``x = z y``, except that ``0 / y`` is 0 where x is the constant 0.
    A nearest point with ``y = 0`` is approached, not taken: y is then the smallest number that
    leaves ``x / y`` exact.
    """

    family = "sum"
    elementwise = True

    def apply(self, params: Params, *operands: Array) -> Array:
        return lax.div(*operands)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        """The nearest point of ``x = z y``, in which x has the part of an output."""
        (x, y), (weight_x, weight_y) = operands, weights.operands
        # Data do not yield.
        compliance = 0.0 if weight_x is None else 1 / jnp.asarray(weight_x, y.dtype)
        (ys,), (zs,), _, _ = project_products(
            [y[..., None]], [out[..., None]], x, compliance, [(weight_y, weights.out)]
        )
        moved_x, moved_y, moved_z = x, ys[..., 0], zs[..., 0]
        if weight_x is None:
            # The larger factor, in the metric, has the digits to tell the other one.
            steep = weight_y * jnp.square(moved_y) < weights.out * jnp.square(moved_z)
            moved_y = jnp.where(steep, x / jnp.where(steep, moved_z, 1), moved_y)
            moved_y = jnp.where(x == 0, y, moved_y)
        least = float(jnp.finfo(y.dtype).tiny) ** 0.5
        moved_y = jnp.where(jnp.abs(moved_y) < least, jnp.copysign(least, moved_y), moved_y)
        if weight_x is not None:
            moved_x = moved_z * moved_y
        moved_z = lax.div(moved_x, moved_y)
        return projection_of(operands, out, weights, (moved_x, moved_y), moved_z)


QUOTIENT = QuotientRule()
