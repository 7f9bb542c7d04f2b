"""Angles of points of the plane: `jax.lax.atan2`, and what complex logarithms are made of."""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.custom import call, function_p
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Arrays, Identity, Params, Projection, Rule, Weights, projection_of
from pjax_trace.translation import rewriting

__all__ = ["ANGLE", "Angle", "angle_of"]

_STEPS = 32
_PI = 3.141592  # less than π, so that a point at the cut has the angle that it should


class Angle(Rule):
    """``z = atan2(y, x)`` of pairs ``u = (x, y)``, the first axis.

    At an angle δ from the start, the nearest point has the size ``r cos δ``, and is as far as
    ``ω_x r² sin² δ + ω_z (φ + δ − z)²``. Its derivative rises and then falls for δ from 0 to π/2,
    so the nearest point is its first root, or at an end. It may be on the other side of the cut,
    where the angle jumps by 2π, or at the origin, which has all angles; that is approached only.
    """

    family = "elementwise"
    exactness = "global, to rounding"

    def apply(self, params: Params, *operands: Array) -> Array:
        x, y = operands[0]
        return jnp.arctan2(y, x)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (u,), (weight,) = operands, weights.operands
        size, start = jnp.hypot(*u), jnp.arctan2(u[1], u[0])
        ratio = weight * jnp.square(size) / weights.out
        side = jnp.where(out < start, -1, 1).astype(out.dtype)
        cut = jnp.where(start < 0, -1, 1).astype(out.dtype)
        # On this side of the cut, and on the other one.
        end = jnp.clip(_PI - side * start, 0, math.pi / 2)
        here, cost = _turned(ratio, side * (out - start), jnp.zeros_like(end), end)
        edge = 2 * math.pi - _PI - jnp.abs(start)
        target = cut * (out - start) + 2 * math.pi
        there, beyond = _turned(ratio, target, jnp.minimum(edge, math.pi / 2), math.pi / 2)
        beyond = jnp.where(edge > math.pi / 2, jnp.inf, beyond)
        # A float next to π may be past it: who does not cross the cut stays on this side of it.
        angle = jnp.clip(start + side * here, -_PI, _PI)
        angle = jnp.where(beyond < cost, start + cut * there, angle)
        turn = jnp.where(beyond < cost, there, here)
        free = jnp.clip(out, -_PI, _PI)
        origin = ratio + jnp.square(free - out) < jnp.minimum(cost, beyond)
        least = float(jnp.finfo(out.dtype).tiny) ** 0.5
        radius = jnp.where(origin, least, jnp.maximum(size * jnp.cos(turn), least))
        angle = jnp.where(origin, free, angle)
        moved = radius[None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return projection_of(operands, out, weights, (moved,), self.apply(params, moved))


def _turned(ratio: Array, target: Array, low: Any, high: Any) -> tuple[Array, Array]:
    """The argmin over δ of ``ratio sin² δ + (δ − target)²`` between two bounds, and its value."""
    low, high = jnp.broadcast_to(low, ratio.shape), jnp.broadcast_to(high, ratio.shape)

    def slope(x: Array) -> Array:
        return ratio * jnp.sin(2 * x) + 2 * (x - target)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        below = slope(middle) < 0
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    # Up to there the slope rises.
    peak = jnp.arccos(jnp.clip(-1 / jnp.maximum(ratio, 1), -1, 1)) / 2
    peak = jnp.clip(jnp.where(ratio > 1, peak, math.pi / 2), low, high)
    root = lax.fori_loop(0, _STEPS, halve, (low, peak))[0]
    bend = 2 * ratio * jnp.cos(2 * root) + 2
    newton = jnp.clip(root - slope(root) / jnp.where(bend > 0, bend, 1), low, peak)
    best, least = low, jnp.full_like(ratio, jnp.inf)
    for x in (jnp.where(bend > 0, newton, root), low, high):
        cost = ratio * jnp.square(jnp.sin(x)) + jnp.square(x - target)
        best, least = jnp.where(cost < least, x, best), jnp.minimum(cost, least)
    return best, least


ANGLE = Angle()


def angle_of(u: Array) -> Array:
    """The angles of pairs, as a constraint."""
    return call(function_p, ANGLE, u, name="atan2")


def _atan2(params: Params, _: Any) -> Any:
    def function(y: Array, x: Array) -> Array:
        # Both with one weight, as the rule has it, whatever they are views of.
        own = (call(function_p, Identity(), a, name="atan2") for a in jnp.broadcast_arrays(x, y))
        return angle_of(jnp.stack(list(own)))

    return function


register_rule(
    lax.atan2_p,
    rewriting(_atan2, "elementwise", "global, to rounding"),
    cases=[
        Case(lax.atan2, ((3,), (3,))),
        Case(lambda x: jnp.arctan2(jnp.ones(3, x.dtype), x), ((3,),)),
    ],
)
