"""Logic and choices: functions of booleans, which are relaxed to reals if they depend on variables.

A *truth table* has finitely many points, the nearest of which is the projection. A *choice* between
two operands is one of two equalities, the nearer of which is.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.custom import call, function_p
from pjax_trace.registry import Case, register_rule
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
from pjax_trace.rules.staircase import as_reals
from pjax_trace.translation import Affine, Outcome, Refusal, Rewrite, Translation, rewriting

__all__ = ["Choice", "TruthTable"]


class TruthTable(Rule):
    """A function of booleans, relaxed to reals: the nearest row of its table.

    Args:
        function: from numbers 0 and 1 to a number.
    """

    family = "discrete"
    exactness = "exact, the nearest of few points"
    elementwise = True
    relaxed = True

    def __init__(self, function: Callable[..., float]):
        self._function = function

    def apply(self, params: Params, *operands: Array) -> Array:
        """The table's value; numbers other than 0 and 1 count as what they are nearer to."""
        out = jnp.zeros_like(operands[0])
        for row in itertools.product((0.0, 1.0), repeat=len(operands)):
            hits = ((x > 0.5) == (entry > 0.5) for x, entry in zip(operands, row, strict=True))
            out = jnp.where(functools.reduce(jnp.logical_and, hits), self._function(*row), out)
        return out

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        rows = itertools.product((0.0, 1.0), repeat=len(operands))
        points = [(*row, self._function(*row)) for row in rows]
        return _nearest_case(points, operands, out, weights)

    def target(self, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...]:
        """A straight-through step: what is asked, times what each boolean would change.

        That is what the output would change by if the boolean became true, the others being what
        they are; a boolean that decides nothing there is asked for nothing.
        """

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
    elementwise = True
    relaxed = True
    chooses = True

    def apply(self, params: Params, *operands: Array) -> Array:
        """The choice; numbers other than 0 and 1 count as what they are nearer to."""
        which, *cases = operands
        return lax.select_n(which > 0.5, *cases)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
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

    def target(self, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...]:
        """What is asked goes to the case that is chosen; between data, a straight-through step.

        The boolean is asked for what the other case would change only if both cases are data:
        beside a case that can answer itself, it would ask for the same once more, and at depth that
        is what breaks learning.
        """
        which, *cases = operands
        if not any(request.variable[1:]):
            return (request.residual * (cases[1] - cases[0]), None, None)
        shares = [
            jnp.where((which > 0.5) == bool(i), request.residual, 0) if variable else None
            for i, variable in enumerate(request.variable[1:])
        ]
        return (None, *shares)


def _nearest_case(
    points: Sequence[Sequence[Any]], operands: Arrays, out: Array, weights: Weights
) -> Projection:
    """The nearest of few points (operands, then the output), for every element by itself."""

    def cost(point: Sequence[Any]) -> Array:
        terms = zip((*weights.operands, weights.out), point, (*operands, out), strict=True)
        squares = (w * jnp.square(x - x0) for w, x, x0 in terms if w is not None)
        return functools.reduce(jnp.add, squares)

    chosen = cheapest([*map(cost, points)], range(len(points)))

    def pick(arrays: Sequence[Any]) -> Array:
        cases = [jnp.broadcast_to(jnp.asarray(x, out.dtype), out.shape) for x in arrays]
        return lax.select_n(chosen.astype(jnp.int32), *cases)

    *moved, z = map(pick, zip(*points, strict=True))
    return projection_of(operands, out, weights, moved, z)


def _table(
    name: str, function: Callable[[float, float], float], by_data: Callable[[Array, Array], Array]
) -> Translation:
    """A function of two booleans becomes a truth table, or a view if one is data or both are one.

    Args:
        name: of the primitive.
        function: of two numbers 0 and 1.
        by_data: what is left of it if the second boolean is data: a view of the first one.
    """
    table = TruthTable(function)
    keeps = function(1.0, 1.0) == 1.0  # what it makes of one boolean twice: itself, or false

    def translate(_: dict[str, Any], operands: Sequence[Any], variable: Flags) -> Outcome:
        if operands[0] is operands[1]:
            return Rewrite(lambda x, _: x if keeps else jnp.zeros(x.shape, bool))
        if not all(variable):
            return Rewrite(by_data if variable[0] else lambda x, y: by_data(y, x))
        reals = as_reals(operands, variable)
        return Rewrite(lambda *values: call(function_p, table, *reals(*values), name=name))

    return Translation(translate, of=table)


_CHOICE = Choice()


def _select(_: dict[str, Any], operands: Sequence[Any], variable: Flags) -> Outcome:
    """By data ``select_n`` is a view of its cases, by a relaxed boolean a `Choice`.

    Boolean cases become reals, if one of them or the choice is relaxed.
    """
    which, *cases = operands
    if all(case is cases[0] for case in cases):
        return Rewrite(lambda which, *cases: cases[0])
    if not variable[0] and len({case.dtype for case in cases}) == 1:
        return Affine(total=False, offset=True)
    if any(variable[1:]):
        reals = as_reals(cases, variable[1:])
    else:  # data: booleans, in which case reals of the precision of the choice, or reals
        known = cases[0] if jnp.issubdtype(cases[0].dtype, jnp.inexact) else which
        reals = as_reals([known, *cases], (True,) + (False,) * len(cases))

    def select(which: Array, *cases: Array) -> Array:
        cases = reals(*cases)
        if not variable[0]:
            return lax.select_n(which, *cases)
        which = jnp.broadcast_to(which.astype(cases[0].dtype), cases[0].shape)
        return call(function_p, _CHOICE, which, *cases, name="select_n")

    return Rewrite(select)


def _real(compare: Callable[[Array], Array]) -> Case:
    """A function to booleans as the function to reals that it is relaxed to."""
    return Case(lambda x: compare(x).astype(x.dtype), ((3,),))


for name, function, by_data, logical in (
    ("and", lambda a, b: a * b, lambda a, data: jnp.where(data, a, 0), jnp.logical_and),
    ("or", max, lambda a, data: jnp.where(data, 1, a), jnp.logical_or),
    ("xor", lambda a, b: abs(a - b), lambda a, data: jnp.where(data, 1 - a, a), jnp.logical_xor),
):
    case = Case(lambda x, y, f=logical: f(x > 0, y > x).astype(x.dtype), ((3,), (3,)))
    register_rule(getattr(lax, f"{name}_p"), _table(name, function, by_data), cases=[case])
register_rule(
    lax.not_p,
    rewriting(lambda params, _: lambda x: 1 - x, "discrete"),
    cases=[_real(lambda x: ~(x > 0.5))],
    note="a view",
)
register_rule(
    lax.reduce_and_p,
    rewriting(lambda params, _: lambda x: jnp.min(x, params["axes"]), "discrete"),
    cases=[_real(lambda x: jnp.all(x > 0.5))],
    note="the least of relaxed booleans",
)
register_rule(
    lax.reduce_or_p,
    rewriting(lambda params, _: lambda x: jnp.max(x, params["axes"]), "discrete"),
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
    rewriting(lambda params, _: lambda x: jnp.ones(x.shape, bool), "discrete"),
    cases=[Case(lambda x: jnp.where(jnp.isfinite(x), x, 0), ((3,),))],
    note="true: a solver's points are finite",
)
register_rule(
    lax.select_n_p,
    Translation(_select, family="view"),
    cases=[
        Case(lambda u, x, y: jnp.where(u > 0, x, y), ((3,), (3,), (3,))),
        Case(lambda x: jnp.where(x > 0, x, 0.1 * x), ((3,),)),
    ],
)
