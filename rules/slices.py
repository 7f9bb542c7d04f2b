"""Functions of slices, each slice one constraint.

Traced into, such a function is a handful of constraints that must agree on means, squares and
quotients of the whole slice, and projecting them one by one converges badly. As one constraint, a
slice ``z = f(x)`` is projected onto the nearest point of its own graph. See
`pjax_trace.rules.softmax` and `pjax_trace.rules.norms`. (log_softmax and logsumexp stay in parts:
as wholes, under alternating projections, their gaps fell no faster.)
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.rule import Arrays, Moment, Params, Projection, Rule, Weights, squared_distance

__all__ = ["Composite"]

_MASKED = 1e30  # scores below minus this are not there


class Composite(Rule):
    """A function of slices ``z = f(x)``, projected slice by slice.

    Args:
        function: ``function(x, **params)``.
        nearest: ``nearest(x0, z0, wx, wz, **params) -> x``.
        exactness: for the coverage table.
    """

    family = "composite"
    granularity = "slice"

    def __init__(
        self, function: Callable[..., Array], nearest: Callable[..., Array], exactness: str
    ):
        self._function, self._nearest = function, nearest
        self.exactness = exactness  # pyright: ignore[reportAttributeAccessIssue]

    def apply(self, params: Params, *operands: Array) -> Array:
        return self._function(*operands, **params)

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        (x0,), (weight,) = operands, weights.operands
        x = self._nearest(x0, out, weight, weights.out, **params)
        z = self.apply(params, x)
        # Twice masked is -inf minus itself.
        moved = jnp.where(x0 < -_MASKED, 0, x - x0)
        distance = jnp.sum(weight * jnp.square(moved)) + squared_distance(weights.out, z, out)
        return Projection((Moment(weight * x, weight),), z, distance)
