"""What has no slope: rounding, signs, comparisons, logic and choices.

Such a graph consists of few pieces, each of which has a nearest point that is easy to write down;
the nearest of these is the projection, exactly and globally. There are three kinds:

* a *staircase* is constant on intervals of one variable: `Staircase`, and `Steps` for endless or
  saturating flights of equal steps;
* a *truth table* has finitely many points: `TruthTable`;
* a *choice* between two operands is one of two equalities: `Choice`.

Booleans that depend on variables are relaxed to reals: comparisons are rewritten to staircases with
values 0 and 1, and what reads a boolean reads a real number instead, which consensus may hold
anywhere between.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.calls import call, function_p
from pjax_trace.registry import (
    Case,
    Moment,
    Projection,
    Refusal,
    Request,
    Rule,
    ViewRule,
    Weights,
    evaluate,
    projection_of,
    register_rule,
)
from pjax_trace.rules.elementwise import Elementwise
from pjax_trace.rules.roots import cheapest

__all__ = ["QUANTIZE", "Choice", "Piece", "Staircase", "Steps", "TruthTable"]


# How far from the next piece an element may be at most to go there, beside the size of the operand,
# if twice as much as of others is asked of it.
_FLIP = 0.5


class Piece(NamedTuple):
    """A tread of a staircase: its value, on an interval whose ends may belong to it or not."""

    value: Any
    lower: Any
    upper: Any


class Staircase(Elementwise):
    """An elementwise function that is constant on intervals.

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

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every element by itself."""
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
        params: dict[str, Any],
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

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """A target a step away, worth what is asked beside what is asked of others.

        With q what a sample asks of its elements in the mean, and m the size of the operand, an
        element that is d from the next piece goes there if ``d² ≤ (m/2)² (|residual| / q − 1)``:
        that is the nearest point to an output of ``out + residual · height / (2 q)``. It goes on
        until it is m inside; so does one that is in an outermost piece and asked to go farther out,
        by more than the mean. Others stay. All moves are scaled by ``q / m``.

        One that is far on the wrong side is left alone, however much is asked of it.
        """
        x, *data = operands
        axes = tuple(range(1, x.ndim)) if x.ndim > 1 else None
        asked = jnp.mean(jnp.abs(request.residual), axes, keepdims=x.ndim > 1)
        size = jnp.sqrt(jnp.mean(jnp.square(x)))
        asked, size = (jnp.where(a > 0, a, 1.0) for a in (asked, size))
        height = abs(self._rise) or 1.0
        goal = request.out + request.residual * (height / (2 * asked))
        weight = jnp.square(height / (_FLIP * size))
        # Between two steps, as 0 is of a sign, nothing can stay for long.
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
    finfo = jnp.finfo(end.dtype)
    # Next to 0, by what no weight makes a denormal number, which would be flushed to 0.
    return end * (1 + side * 4 * finfo.eps * jnp.sign(end)) + side * finfo.tiny / finfo.eps


def _levels(levels: int) -> tuple[float, float]:
    """The highest of so many levels, symmetric about 0, and its distance from an integer."""
    return (levels - 1) / 2, (levels - 1) % 2 / 2


def _quantized(x: Array, unit: Array, *, levels: int) -> Array:
    """The nearest of ``levels`` levels, ``unit`` apart and symmetric about 0; up at ties."""
    top, shift = _levels(levels)
    level = jnp.floor(x / unit + (0.5 - shift)) + shift
    return unit * jnp.clip(level, -top, top)


class Steps(Staircase):
    """A flight of steps of height and width ``unit``: rounding, with levels at ``k · unit``.

    The distance is convex in the level, so its minimiser among real levels is rounded both ways.

    Args:
        function: ``f(x, *data, **params)``.
        lower: the interval of level k is from ``k + lower``, in units,
        upper: to ``k + upper``.
        levels: with a ``levels`` in the params, there are so many only, symmetric about 0, and the
            outermost reach to infinity. The data are then the unit.
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
        top, shift = _levels(levels)
        level = jnp.floor(level - shift) + shift
        return [*(jnp.clip(k, -top, top) for k in (level, level + 1)), -top, top]

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """From afar a flight of equal steps is a ramp, and hands over what that does.

        It is what targets get that are many steps away. Outside the ramp, which has as much room
        for the outermost levels as for others, nothing is asked.
        """
        x, *data = operands
        levels = params.get("levels")
        residual = request.residual
        if levels is not None:
            residual = jnp.where(jnp.abs(x) <= data[0] * (levels / 2), residual, 0)
        return (residual, *(None for _ in data))

    def _step(self, k: Array, unit: Any = 1.0, *, levels: int | None = None, **_: Any) -> Piece:
        lower, upper = unit * (k + self._lower), unit * (k + self._upper)
        if levels is not None:
            top, _shift = _levels(levels)
            lower = jnp.where(k <= -top, -jnp.inf, lower)
            upper = jnp.where(k >= top, jnp.inf, upper)
        return Piece(unit * k, lower, upper)


class Comparison(Rule):
    """A comparison, by rewriting it to a staircase with values 0 and 1 of one variable.

    A threshold that is data stays an operand of the staircase, and may be infinite. Two variables
    are compared by the sign of their difference.

    Args:
        compare: the comparison.
        mirrored: the same one with its operands exchanged.
    """

    family = "discrete"
    exactness = Staircase.exactness

    def __init__(self, compare: Any, mirrored: Any):
        self._compare = compare
        self._mirrored = mirrored

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array]:
        """To the staircase of the operand that is a variable, or of the difference."""
        name = self._compare.name
        if operands[0] is operands[1]:  # isnan, or a constant
            zero = np.zeros(operands[0].shape)
            return lambda *_: evaluate(self._compare)(zero, zero)
        reals = _as_reals(operands, variable)
        if all(variable):

            def difference(*values: Array) -> Array:
                x, y = reals(*values)
                return _step(self._compare, name, x - y, jnp.zeros((), x.dtype))

            return difference
        if variable[0]:
            return lambda *values: _step(self._compare, name, *reals(*values))
        return lambda *values: _step(self._mirrored, name, *reals(*values)[::-1])

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Nothing that is not rewritten."""
        return False


def _as_reals(
    operands: Sequence[Any], variable: Sequence[bool]
) -> Callable[..., tuple[Array, ...]]:
    """Operands of one shape, in the dtype of those that are variables; data may be boolean yet."""
    flags = zip(operands, variable, strict=True)
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x, flag in flags if flag))
    shape = jnp.broadcast_shapes(*(x.shape for x in operands))

    def convert(x: Array) -> Array:
        x = x if x.dtype == dtype else x.astype(dtype)
        return x if x.shape == shape else jnp.broadcast_to(x, shape)

    return lambda *values: tuple(map(convert, values))


def _step(primitive: Any, name: str, x: Array, threshold: Array) -> Array:
    return call(function_p, _STEPS[primitive], x, threshold, name=name)


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

    return _threshold(compare, below, at, above)


_STEPS = {
    lax.gt_p: _indicator(lax.gt_p, 0.0, 0.0, 1.0),
    lax.ge_p: _indicator(lax.ge_p, 0.0, 1.0, 1.0),
    lax.lt_p: _indicator(lax.lt_p, 1.0, 0.0, 0.0),
    lax.le_p: _indicator(lax.le_p, 1.0, 1.0, 0.0),
    lax.eq_p: _indicator(lax.eq_p, 0.0, 1.0, 0.0),
    lax.ne_p: _indicator(lax.ne_p, 1.0, 0.0, 1.0),
}


class TruthTable(Rule):
    """A function of booleans, relaxed to reals: the nearest row of its table.

    Args:
        function: from numbers 0 and 1 to a number.
    """

    family = "discrete"
    exactness = "exact, the nearest of few points"

    def __init__(self, function: Callable[..., float]):
        self._function = function

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Variables only."""
        return all(variable)

    def elementwise(self, params: dict[str, Any], variable: Sequence[bool], position: int) -> bool:
        """Elements do not know of each other."""
        return True

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The table's value; numbers other than 0 and 1 count as what they are nearer to."""
        out = jnp.zeros_like(operands[0])
        for row in itertools.product((0.0, 1.0), repeat=len(operands)):
            hits = ((x > 0.5) == (entry > 0.5) for x, entry in zip(operands, row, strict=True))
            out = jnp.where(functools.reduce(jnp.logical_and, hits), self._function(*row), out)
        return out

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every element by itself."""
        rows = [
            (*row, self._function(*row))
            for row in itertools.product((0.0, 1.0), repeat=len(operands))
        ]
        return _nearest_case(rows, operands, out, weights)

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """What each boolean would change by becoming true, the others being what they are."""

        def at(i: int, end: float) -> Array:
            fixed = jnp.full_like(operands[i], end)
            return self.apply(params, *operands[:i], fixed, *operands[i + 1 :])

        return tuple(request.residual * (at(i, 1.0) - at(i, 0.0)) for i in range(len(operands)))


class Choice(Rule):
    """``z = cases[which]`` of two cases, by a relaxed boolean: the nearer of two equalities.

    In the case that is chosen, z and the operand agree on their weighted mean, or on the operand if
    that is data; the other operand stays where it is.
    """

    family = "discrete"
    exactness = "exact, the nearest of few cases"

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """By a variable; the cases may be anything."""
        return variable[0]

    def elementwise(self, params: dict[str, Any], variable: Sequence[bool], position: int) -> bool:
        """Elements do not know of each other."""
        return True

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The choice; numbers other than 0 and 1 count as what they are nearer to."""
        which, *cases = operands
        return lax.select_n(which > 0.5, *cases)

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """Every element by itself."""
        which, *cases = operands
        points = []
        for number, (case, weight) in enumerate(zip(cases, weights.operands[1:], strict=True)):
            agreed = case
            if weight is not None:
                agreed = case + weights.out / (weight + weights.out) * (out - case)
            point = [float(number), *cases, agreed]
            point[1 + number] = agreed
            points.append(point)
        return _nearest_case(points, operands, out, weights)

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """All to the case that is chosen; else to the boolean, what the other one would change.

        The boolean is asked only between data: beside a case that can answer itself, it would ask
        for the same once more, and at depth that is what breaks learning.
        """
        which, *cases = operands
        if not any(request.variable[1:]):
            return (request.residual * (cases[1] - cases[0]), None, None)
        shares = [
            jnp.where((which > 0.5) == bool(i), request.residual, 0) if variable else None
            for i, variable in enumerate(request.variable[1:])
        ]
        return (None, *shares)


def _cost(metric: Sequence[Any], point: Sequence[Array], start: Sequence[Array]) -> Array:
    """The squared distance of every element."""
    terms = zip(metric, point, start, strict=True)
    return functools.reduce(
        jnp.add, (w * jnp.square(x - x0) for w, x, x0 in terms if w is not None)
    )


def _nearest_case(
    points: Sequence[Sequence[Any]], operands: Sequence[Array], out: Array, weights: Weights
) -> Projection:
    """The nearest of few points (operands, then the output), for every element by itself."""
    start, metric = (*operands, out), (*weights.operands, weights.out)
    numbers = [float(i) for i in range(len(points))]
    chosen = cheapest([_cost(metric, point, start) for point in points], numbers)

    def pick(arrays: Sequence[Any]) -> Array:
        cases = [jnp.broadcast_to(jnp.asarray(x, out.dtype), out.shape) for x in arrays]
        return lax.select_n(chosen.astype(jnp.int32), *cases)

    *moved, z = map(pick, zip(*points, strict=True))
    moments = [
        None if w is None else Moment(w * x, w)
        for w, x in zip(weights.operands, moved, strict=True)
    ]
    return Projection(tuple(moments), z, jnp.sum(_cost(metric, (*moved, z), start)))


class Logic(Rule):
    """A function of two booleans, by rewriting it to a truth table, or to a view.

    Args:
        name: of the primitive, for printing.
        function: of two numbers 0 and 1.
        by_data: what is left of it if one boolean is data: a view of the other one.
    """

    family = "discrete"
    exactness = TruthTable.exactness

    def __init__(
        self,
        name: str,
        function: Callable[[float, float], float],
        by_data: Callable[[Array, Array], Array],
    ):
        self._name = name
        self._table = TruthTable(function)
        self._keeps = function(1.0, 1.0) == 1.0  # what it makes of one boolean twice
        self._by_data = by_data

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array]:
        """To the table, or to a view if one boolean is data or both are one."""
        if operands[0] is operands[1]:
            return lambda x, _: x if self._keeps else jnp.zeros(x.shape, bool)
        if not all(variable):
            return self._by_data if variable[0] else lambda x, y: self._by_data(y, x)
        reals = _as_reals(operands, variable)
        return lambda *values: call(function_p, self._table, *reals(*values), name=self._name)

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Nothing that is not rewritten."""
        return False


class Rewritten(Rule):
    """A primitive that is another function of what is relaxed.

    Args:
        function: of the operand, the params as keywords.
    """

    family = "discrete"

    def __init__(self, function: Callable[..., Array]):
        self._function = function

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array]:
        """To that function."""
        return lambda x: self._function(x, **params)

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Nothing that is not rewritten."""
        return False


class Select(ViewRule):
    """``select_n``: by data a view of its cases, by a relaxed boolean a `Choice`."""

    def __init__(self) -> None:
        super().__init__(operands=None, total=False, offset=True)

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """To the choice; and boolean cases to reals, if one of them or the choice is relaxed."""
        which, *cases = operands
        if all(case is cases[0] for case in cases):
            return lambda which, *cases: cases[0]
        uniform = len({case.dtype for case in cases}) == 1
        if not variable[0] and uniform:
            return None
        if any(variable[1:]):
            reals = _as_reals(cases, variable[1:])
        else:  # data: booleans, in which case reals of the precision of the choice, or reals
            known = cases[0] if jnp.issubdtype(cases[0].dtype, jnp.inexact) else which
            reals = _as_reals([known, *cases], (True,) + (False,) * len(cases))

        def select(which: Array, *cases: Array) -> Array:
            cases = reals(*cases)
            if not variable[0]:
                return lax.select_n(which, *cases)
            which = jnp.broadcast_to(which.astype(cases[0].dtype), cases[0].shape)
            return call(function_p, _CHOICE, which, *cases, name="select_n")

        return select

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Whether the choice is data's."""
        return not variable[0]


_CHOICE = Choice()

QUANTIZE = Steps(_quantized, -0.5, 0.5)


def _real(compare: Callable[[Array], Array]) -> Case:
    """A comparison as the function of reals that it is relaxed to."""
    return Case(lambda x: compare(x).astype(x.dtype), ((3,),))


def _logic(function: Callable[[Array, Array], Array]) -> Case:
    return Case(lambda x, y: function(x > 0, y > x).astype(x.dtype), ((3,), (3,)))


register_rule(
    lax.sign_p, _threshold(evaluate(lax.sign_p), -1.0, 0.0, 1.0), cases=[Case(jnp.sign, ((3,),))]
)
register_rule(
    lax.floor_p,
    Steps(evaluate(lax.floor_p), 0.0, 1.0),
    cases=[Case(jnp.floor, ((3,),), scale=3.0)],
)
register_rule(
    lax.ceil_p, Steps(evaluate(lax.ceil_p), -1.0, 0.0), cases=[Case(jnp.ceil, ((3,),), scale=3.0)]
)
register_rule(
    lax.round_p,
    Steps(evaluate(lax.round_p), -0.5, 0.5),
    cases=[
        Case(jnp.round, ((3,),), scale=3.0),
        Case(lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), ((3,),), scale=3.0),
    ],
)
register_rule(lax.gt_p, Comparison(lax.gt_p, lax.lt_p), cases=[_real(lambda x: x > 0.5)])
register_rule(lax.ge_p, Comparison(lax.ge_p, lax.le_p), cases=[_real(lambda x: x >= 0.5)])
register_rule(lax.lt_p, Comparison(lax.lt_p, lax.gt_p), cases=[_real(lambda x: x < 0.5)])
register_rule(lax.le_p, Comparison(lax.le_p, lax.ge_p), cases=[_real(lambda x: x <= 0.5)])
register_rule(lax.eq_p, Comparison(lax.eq_p, lax.eq_p), cases=[_real(lambda x: x == 0.5)])
register_rule(lax.ne_p, Comparison(lax.ne_p, lax.ne_p), cases=[_real(lambda x: x != 0.5)])
register_rule(
    lax.and_p,
    Logic("and", lambda a, b: a * b, lambda a, data: jnp.where(data, a, 0)),
    cases=[_logic(jnp.logical_and)],
)
register_rule(
    lax.or_p,
    Logic("or", max, lambda a, data: jnp.where(data, 1, a)),
    cases=[_logic(jnp.logical_or)],
)
register_rule(
    lax.xor_p,
    Logic("xor", lambda a, b: abs(a - b), lambda a, data: jnp.where(data, 1 - a, a)),
    cases=[_logic(jnp.logical_xor)],
)
register_rule(
    lax.not_p,
    Rewritten(lambda x: 1 - x),
    cases=[_real(lambda x: ~(x > 0.5))],
    note="a view",
)
register_rule(
    lax.reduce_and_p,
    Rewritten(lambda x, axes, **_: jnp.min(x, axes)),
    cases=[_real(lambda x: jnp.all(x > 0.5))],
    note="the least of relaxed booleans",
)
register_rule(
    lax.reduce_or_p,
    Rewritten(lambda x, axes, **_: jnp.max(x, axes)),
    cases=[_real(lambda x: jnp.any(x > 0.5))],
    note="the greatest of relaxed booleans",
)
register_rule(
    lax.reduce_xor_p,
    Refusal(
        "the parity of many booleans has no projection; combine them two at a time with "
        "jnp.logical_xor"
    ),
    cases=[_real(lambda x: lax.reduce_xor(x > 0.5, (0,)))],
)
register_rule(
    lax.is_finite_p,
    Rewritten(lambda x: jnp.ones(x.shape, bool)),
    cases=[Case(lambda x: jnp.where(jnp.isfinite(x), x, 0), ((3,),))],
    note="true: a solver's points are finite",
)
register_rule(
    lax.select_n_p,
    Select(),
    cases=[
        Case(lambda u, x, y: jnp.where(u > 0, x, y), ((3,), (3,), (3,))),
        Case(lambda x: jnp.where(x > 0, x, 0.1 * x), ((3,),)),
    ],
)
