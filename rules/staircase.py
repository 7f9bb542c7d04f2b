"""Staircases: functions that are constant on intervals, such as rounding, signs and comparisons.

Few pieces of such a graph can be the nearest to a point, and each has a nearest point that is easy
to write down; the nearest of these is the projection, exactly and globally. A `Staircase` has
pieces of any kind; those of `Steps` are equal, without end or of so many levels.

Booleans that depend on variables are relaxed to reals: comparisons are rewritten to staircases with
values 0 and 1, and what reads a boolean reads a real number instead, which consensus may hold
anywhere between.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.custom import call, function_p
from pjax_trace.quantize import quantize, quantize_p
from pjax_trace.registry import Case, evaluate, register_rule
from pjax_trace.rule import (
    Arrays,
    Flags,
    Params,
    Projection,
    Request,
    Rule,
    Weights,
    projection_of,
)
from pjax_trace.rules.roots import cheapest
from pjax_trace.translation import Outcome, Project, Refuse, Rewrite, Translation

__all__ = ["COMPARISONS", "QUANTIZE", "Piece", "Staircase", "Steps", "as_reals"]


class Piece(NamedTuple):
    """A tread of a staircase: its value, on an interval whose ends may belong to it or not."""

    value: Any
    lower: Any
    upper: Any


class Staircase(Rule):
    """An elementwise function of one variable that is constant on intervals; the rest is data.

    On a piece the nearest point is x0, or the end that is nearer. Whether that end belongs to the
    piece the function itself must say; wherever x has to move, it goes in by a few units in the
    last place: a copy comes back as ``ω x / ω``, which rounds twice, and must still be where it was
    put.

    Args:
        function: ``f(x, *data, **params)``.
        keys: ``keys(x0, z0, share, *data, **params)``, numbers of the candidates among which the
            nearest piece is; ``share = ω_z / (ω_x + ω_z)``.
        piece: ``piece(key, *data, **params)``, the piece of a number.
        rise: how much more the last piece is than the first, or a step than the one before.
    """

    family = "discrete"
    exactness = "exact, the nearest of few pieces"
    movable = 1
    elementwise = True

    def __init__(
        self,
        function: Callable[..., Array],
        keys: Callable[..., Sequence[Any]],
        piece: Callable[..., Piece],
        rise: float = 1.0,
    ):
        self._function = function
        self._keys = keys
        self._piece = piece
        self._rise = rise

    def apply(self, params: Params, *operands: Array) -> Array:
        return self._function(*operands, **params)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        x0, *data = operands
        value, lower, upper = self._nearest_piece(
            params, x0, data, out, weights.operands[0], weights.out
        )
        inside = jnp.clip(x0, _moved(lower, 1), _moved(upper, -1))
        # A piece that is too narrow for its ends to be left is one point: an end, or its value
        # (an integer, where no other numbers are representable).
        x = value
        for better in (jnp.clip(x0, lower, upper), inside, x0):
            x = jnp.where(self.apply(params, better, *data) == value, better, x)
        return projection_of(operands, out, weights, (x, *data), self.apply(params, x, *data))

    def _nearest_piece(
        self,
        params: Params,
        x0: Array,
        data: Sequence[Any],
        z0: Array,
        wx: Any,
        wz: Any,
        *,
        points: bool = True,
    ) -> Piece:
        """The piece of the nearest point; one that is a single point only if ``points``."""

        def cost(key: Any) -> Array:
            value, lower, upper = self._piece(jnp.asarray(key, x0.dtype), *data, **params)
            moved = jnp.clip(x0, lower, upper)
            costs = wx * jnp.square(moved - x0) + wz * jnp.square(value - z0)
            return costs if points else jnp.where(lower < upper, costs, jnp.nan)

        keys = self._keys(x0, z0, wz / (wx + wz), *data, **params)
        return self._piece(cheapest([*map(cost, keys)], keys), *data, **params)

    def target(self, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...]:
        """A clipped straight-through step, which crosses to another piece only where that pays.

        With q what a sample asks of its elements in the mean, and m the size of the operand, an
        element that is d from the next piece goes there if
        ``d² ≤ (reach · m)² (|residual| / q − 1)``: that is the nearest point to an output of
        ``out + residual · height / (2 q)``. It goes on until it is m inside; so does one that is in
        an outermost piece and asked to go farther out, by more than the mean. Others stay. All
        moves are scaled by ``q / m``.

        An element that is far on the wrong side is left alone, however much is asked of it.
        """
        x, *data = operands
        axes = tuple(range(1, x.ndim)) if x.ndim > 1 else None
        asked = jnp.mean(jnp.abs(request.residual), axes, keepdims=x.ndim > 1)
        size = jnp.sqrt(jnp.mean(jnp.square(x)))
        asked, size = (jnp.where(a > 0, a, 1.0) for a in (asked, size))
        height = abs(self._rise) or 1.0
        goal = request.out + request.residual * (height / (2 * asked))
        weight = jnp.square(height / (request.reach * size))
        # A piece between two steps that is one point, as 0 is of a sign, can hold nothing for long.
        points = self._rise == 0
        value, lower, upper = self._nearest_piece(params, x, data, goal, weight, 1.0, points=points)
        margin = jnp.minimum(size, 0.5 * (upper - lower))
        outward = self._rise * request.residual
        outermost = jnp.where(outward > 0, upper == jnp.inf, (outward < 0) & (lower == -jnp.inf))
        told = (value != request.out) | (outermost & (jnp.abs(request.residual) >= asked))
        moved = jnp.where(told, jnp.clip(x, lower + margin, upper - margin), x)
        return (asked / size * (moved - x), *(None for _ in data))


def _moved(end: Array, side: int) -> Array:
    """A little above (1) or below (-1) a number. Infinity stays."""
    eps, tiny = (float(x) for x in (jnp.finfo(end.dtype).eps, jnp.finfo(end.dtype).tiny))
    # Next to 0, by what no weight makes a denormal number, which would be flushed to 0.
    return end * (1 + side * 4 * eps * jnp.sign(end)) + side * tiny / eps


class Steps(Staircase):
    """A flight of steps of height and width ``unit``: rounding, with levels at ``k · unit``.

    The distance is convex in the level, so its minimiser among real levels is rounded both ways.

    With ``levels`` in the params there are so many only, symmetric about 0, of which the outermost
    reach to infinity; the unit is then the one data operand. Else it is 1.

    Args:
        function: ``f(x, *data, **params)``.
        lower: the interval of level k is from ``k + lower``, in units,
        upper: to ``k + upper``.
    """

    exactness = "exact, the nearest of few steps"

    def __init__(self, function: Callable[..., Array], lower: float, upper: float):
        super().__init__(function, self._levels_near, self._step)
        self._lower, self._upper = lower, upper

    def _levels_near(
        self,
        x0: Array,
        z0: Array,
        share: Array,
        unit: Any = 1.0,
        *,
        levels: int | None = None,
        **_: Any,
    ) -> list[Any]:
        u, v = x0 / unit, z0 / unit
        level = jnp.clip(v, u - self._upper, u - self._lower)  # at no cost of x
        level = level + share * (v - level)
        if levels is None:
            return [jnp.floor(level), jnp.floor(level) + 1]
        # The outermost levels are wider than steps are, so they are candidates of their own.
        top = _top(levels)
        level = jnp.floor(level - top % 1) + top % 1
        return [*(jnp.clip(k, -top, top) for k in (level, level + 1)), -top, top]

    def _step(self, k: Array, unit: Any = 1.0, *, levels: int | None = None, **_: Any) -> Piece:
        lower, upper = unit * (k + self._lower), unit * (k + self._upper)
        if levels is not None:
            lower = jnp.where(k <= -_top(levels), -jnp.inf, lower)
            upper = jnp.where(k >= _top(levels), jnp.inf, upper)
        return Piece(unit * k, lower, upper)

    def target(self, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...]:
        """A clipped straight-through step: what is asked of the output, within the levels.

        Over many equal steps the function rises as the identity does. An element beyond the
        outermost levels, which are taken to be as wide as others here, is asked for nothing.
        """
        x, *data = operands
        levels = params.get("levels")
        residual = request.residual
        if levels is not None:
            residual = jnp.where(jnp.abs(x) <= data[0] * (levels / 2), residual, 0)
        return (residual, *(None for _ in data))


def _top(levels: int) -> float:
    """The highest of so many levels that are 1 apart and symmetric about 0."""
    return (levels - 1) / 2


def _threshold(function: Callable[..., Array], below: float, at: float, above: float) -> Staircase:
    """The staircase of three values: below, at and above a threshold, which is data, or 0."""
    # At the threshold alone, where that is no end of another piece.
    keys = (-1.0, 1.0) if at in (below, above) and below != above else (-1.0, 0.0, 1.0)

    def piece(key: Array, threshold: Any = 0.0) -> Piece:
        return Piece(
            jnp.where(key < 0, below, jnp.where(key > 0, above, at)),
            jnp.where(key < 0, -jnp.inf, threshold),
            jnp.where(key > 0, jnp.inf, threshold),
        )

    return Staircase(function, lambda *_: keys, piece, above - below)


def _indicator(primitive: Any, below: float, at: float, above: float) -> Staircase:
    """A comparison with a threshold, as a function with values 0 and 1."""

    def compare(x: Array, threshold: Array) -> Array:
        return evaluate(primitive)(x, jnp.broadcast_to(threshold, x.shape)).astype(x.dtype)

    rule = _threshold(compare, below, at, above)
    rule.relaxed = True
    return rule


SIGN = _threshold(evaluate(lax.sign_p), -1.0, 0.0, 1.0)
FLOOR = Steps(evaluate(lax.floor_p), 0.0, 1.0)
CEIL = Steps(evaluate(lax.ceil_p), -1.0, 0.0)
ROUND = Steps(evaluate(lax.round_p), -0.5, 0.5)
QUANTIZE = Steps(evaluate(quantize_p), -0.5, 0.5)

COMPARISONS: dict[Any, Staircase] = {}


def as_reals(operands: Sequence[Any], variable: Flags) -> Callable[..., tuple[Array, ...]]:
    """What brings operands to one shape, and to the dtype of those that are variables.

    Variables are reals already, data may be boolean yet.
    """
    flags = zip(operands, variable, strict=True)
    dtype = _compat.promoted(*(x.dtype for x, flag in flags if flag))
    shape = jnp.broadcast_shapes(*(x.shape for x in operands))

    def convert(x: Array) -> Array:
        x = x if x.dtype == dtype else x.astype(dtype)
        return x if x.shape == shape else jnp.broadcast_to(x, shape)

    return lambda *values: tuple(map(convert, values))


def _comparison(primitive: Any, mirrored: Any) -> Translation:
    """A comparison becomes a staircase with values 0 and 1 of one variable.

    A threshold that is data stays an operand of the staircase, and may be infinite. Two variables
    are compared by the sign of their difference.

    Args:
        primitive: the comparison.
        mirrored: the same one with its operands exchanged.
    """

    def translate(_: dict[str, Any], operands: Sequence[Any], variable: Flags) -> Outcome:
        if operands[0] is operands[1]:  # isnan, or a constant
            zero = np.zeros(operands[0].shape)
            return Rewrite(lambda *_: evaluate(primitive)(zero, zero))
        reals = as_reals(operands, variable)

        def compare(*values: Array) -> Array:
            x, y = reals(*values)
            rule = COMPARISONS[primitive]
            if all(variable):
                x, y = x - y, jnp.zeros((), x.dtype)
            elif variable[1]:
                x, y, rule = y, x, COMPARISONS[mirrored]
            return call(function_p, rule, x, y, name=primitive.name)

        return Rewrite(compare)

    return Translation(translate, of=COMPARISONS[primitive])


def _quantize(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """Of the array; where the levels are must be data."""
    if variable[1]:
        return Refuse(
            "the scale of quantize must be data, and here it depends on a variable; keep it apart "
            "from the variables, or freeze it by jax.lax.stop_gradient"
        )
    return Project(QUANTIZE, params)


register_rule(lax.sign_p, SIGN, cases=[Case(jnp.sign, ((3,),))])
register_rule(lax.floor_p, FLOOR, cases=[Case(jnp.floor, ((3,),), scale=3.0)])
register_rule(lax.ceil_p, CEIL, cases=[Case(jnp.ceil, ((3,),), scale=3.0)])
register_rule(
    lax.round_p,
    ROUND,
    cases=[
        Case(jnp.round, ((3,),), scale=3.0),
        Case(lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), ((3,),), scale=3.0),
    ],
)
register_rule(
    quantize_p,
    Translation(_quantize, of=QUANTIZE),
    cases=[
        Case(lambda x: quantize(x, 4), ((3,),)),
        Case(lambda x: quantize(x, 3, np.asarray([0.5, 1.0, 2.0], x.dtype)), ((3,),)),
    ],
    note="`pjax.quantize`; its scale is data",
)
# A comparison, the one with its operands exchanged, and its values below, at and above a threshold.
for primitive, mirrored, *values in (
    (lax.gt_p, lax.lt_p, 0.0, 0.0, 1.0),
    (lax.ge_p, lax.le_p, 0.0, 1.0, 1.0),
    (lax.lt_p, lax.gt_p, 1.0, 0.0, 0.0),
    (lax.le_p, lax.ge_p, 1.0, 1.0, 0.0),
    (lax.eq_p, lax.eq_p, 0.0, 1.0, 0.0),
    (lax.ne_p, lax.ne_p, 1.0, 0.0, 1.0),
):
    COMPARISONS[primitive] = _indicator(primitive, *values)
    # As the function of reals that it is relaxed to.
    compare = getattr(operator, primitive.name)
    case = Case(lambda x, compare=compare: compare(x, 0.5).astype(x.dtype), ((3,),))
    register_rule(primitive, _comparison(primitive, mirrored), cases=[case])
