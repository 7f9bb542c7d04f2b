"""Loss nodes as they are written: a part of the program, with its proximal operator.

What is recognised has a closed form: what is quadratic by element here, logarithms of sums of
exponentials and norms in the rule packs. All else is minimised by `pjax_trace.minimise`, whose only
derivatives are those of the node itself.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.minimise import minimise, minimise_elements
from pjax_trace.orders import is_quadratic
from pjax_trace.program import Equation, Value
from pjax_trace.rule import (
    Arrays,
    Moment,
    Params,
    Projection,
    Rule,
    Shapes,
    Weights,
    squared_distance,
)

__all__ = ["Elementwise", "Joint", "Linear", "ObjectiveRule", "Quadratic", "Region"]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A part of a program.

    Attributes:
        roots: what it reads of variables.
        data: and of data.
        equations: from them to the terms.
        terms: nonlinear functions of the roots.
        linear: the roots that the objective also reads as they are.
    """

    roots: tuple[Value, ...]
    data: tuple[Value, ...]
    equations: tuple[Equation, ...]
    terms: tuple[Value, ...]
    linear: tuple[Value, ...]

    def __call__(self, roots: Arrays, data: Arrays) -> list[Array]:
        """The terms."""
        env: dict[Value, Any] = dict(zip(self.roots, roots, strict=True))
        env.update(zip(self.data, data, strict=True))
        for e in self.equations:
            results = e.evaluate(*(env[v] for v in e.inputs))
            env.update(zip(e.outputs, results, strict=True))
        return [env[v] for v in self.terms]


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectiveRule(Rule):
    """A loss node; its value is all of its terms and linear roots in a row.

    Its operands are the roots, the data, and, for the projection, the weight λ of every element of
    its value. A subclass minimises ``Σ λ_j T_j(x) + ½ ω |x − goal|²``; what the objective reads of
    a root as it is has been added to the goal.

    Args:
        region: the equations.
    """

    region: Region

    family = "loss"
    granularity = "block"
    name: ClassVar[str] = "loss"
    # Whether its operator after that of other terms of the same root is the one of their sum.
    follows: ClassVar[bool] = False

    @staticmethod
    def of(
        region: Region, kinds: Sequence[Any], pointwise: Callable[[Equation], bool]
    ) -> "ObjectiveRule":
        """The rule for a region, the terms of which have been recognised, or not (None)."""
        (root, *others), terms = region.roots, region.terms
        if not terms:
            return Linear(region)
        if len(terms) == 1 and kinds[0] is not None:
            return kinds[0](region)
        alike = not others and all(
            v.shape == root.shape for e in region.equations for v in e.outputs
        )
        if not alike or not all(map(pointwise, region.equations)):
            return Joint(region)
        return Quadratic(region) if _is_quadratic(region) else Elementwise(region)

    @property
    def movable(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The roots."""
        return len(self.region.roots)

    def rows(self, shapes: Shapes) -> int:
        """How many samples it is of, most likely: the elements of a root apart from features."""
        return max(
            math.prod(shape[:-1] if len(shape) > 1 else shape) for shape in shapes[: self.movable]
        )

    def apply(self, params: Params, *operands: Array) -> Array:
        """All terms and linear roots, one after the other."""
        count = self.movable
        terms = self.region(operands[:count], operands[count:])
        env = dict(zip(self.region.roots, operands, strict=False))
        parts = [*terms, *(env[v] for v in self.region.linear)]
        dtype = jnp.result_type(*parts)
        return jnp.concatenate([x.astype(dtype).reshape(-1) for x in parts])

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The proximal step, with its squared length as the distance."""
        count = self.movable
        roots, data, scale = operands[:count], operands[count:-1], operands[-1]
        omegas = weights.operands[:count]
        values = (*self.region.terms, *self.region.linear)
        ends = itertools.accumulate(math.prod(v.shape) for v in values)
        parts = jnp.split(scale, list(ends)[:-1])
        lams = [p.reshape(v.shape) for p, v in zip(parts, values, strict=True)]
        pulls = dict(zip(self.region.linear, lams[len(self.region.terms) :], strict=True))
        goals = [
            x - (pulls[v] / omega).astype(x.dtype) if v in pulls else x
            for v, x, omega in zip(self.region.roots, roots, omegas, strict=True)
        ]
        moved = self.minimum(lams[: len(self.region.terms)], goals, omegas, data)
        moments = [Moment(w * x, w) for x, w in zip(moved, omegas, strict=True)]
        distance = sum(map(squared_distance, omegas, moved, roots))
        return Projection((*moments, *(None,) * (len(operands) - 1 - count)), None, distance)  # pyright: ignore

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """``argmin_x Σ λ_j T_j(x) + ½ Σ ω_i |x_i − goal_i|²``."""
        raise NotImplementedError

    def total(self, lams: Arrays, data: Arrays) -> Callable[[Arrays], Array]:
        """``Σ λ_j T_j``, in which a term of weight 0 counts for nothing, finite or not."""

        def function(roots: Arrays) -> Array:
            terms = self.region(roots, data)
            return functools.reduce(
                jnp.add,
                (
                    jnp.sum(jnp.where(lam != 0, lam * term, 0))
                    for lam, term in zip(lams, terms, strict=True)
                ),
            )

        return function

    def convex_part(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> tuple[list[Array], list[Array]]:
        """Weights that are not negative, and goals that those that are have been added to.

        A convex term with a negative weight is replaced by its tangent, which is above it.
        """
        negative = [jnp.minimum(lam, 0) for lam in lams]

        def tangents() -> list[Array]:
            slopes = jax.grad(self.total(negative, data))(list(goals))
            return [
                g - (s / omega).astype(g.dtype)
                for g, s, omega in zip(goals, slopes, omegas, strict=True)
            ]

        some = functools.reduce(jnp.logical_or, (jnp.any(lam < 0) for lam in negative))
        goals = jax.lax.cond(some, tangents, lambda: list(goals))
        return [jnp.maximum(lam, 0) for lam in lams], goals


class Linear(ObjectiveRule):
    """What the objective reads of a layer as it is: a step along the gradient."""

    name = "linear"

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """The goals."""
        return goals


class Quadratic(ObjectiveRule):
    """A polynomial of the second order in every element, as a squared error is: one Newton step."""

    name = "squared_error"
    granularity = "element"

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """``goal − f'(goal) / (ω + f'')``; of what bends down, a step along the gradient."""
        (goal,), (omega,) = goals, omegas
        slope = jax.grad(lambda x: self.total(lams, data)([x]))
        first, second = jax.jvp(slope, (goal,), (jnp.ones_like(goal),))
        return [goal - first / (omega + jnp.maximum(second, 0))]


class Elementwise(ObjectiveRule):
    """A function of every element alone: a bracketed Newton iteration for each."""

    granularity = "element"
    exactness = "to rounding; a local minimum if not convex"

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """By `pjax_trace.minimise.minimise_elements`."""

        def function(x: Array) -> Array:
            terms = zip(lams, self.region([x], data), strict=True)
            return functools.reduce(
                jnp.add, (jnp.where(lam != 0, lam * term, 0) for lam, term in terms)
            )

        (goal,), (omega,) = goals, omegas
        counts = functools.reduce(jnp.logical_or, (lam != 0 for lam in lams))
        return [jnp.where(counts, minimise_elements(function, goal, omega), goal)]


class Joint(ObjectiveRule):
    """Any other function of the roots: Newton's method in a trust region, for all of it."""

    exactness = "to 1e-4 of the objective; a local minimum if not convex"
    coupled = True

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """By `pjax_trace.minimise.minimise`."""
        return minimise(self.total(lams, data), goals, omegas)


def _is_quadratic(region: Region) -> bool:
    """Whether all terms, of one root by element, are of the second order in it."""

    def function(data: Arrays, x: Array) -> list[Array]:
        return region([x], data)

    return is_quadratic(function, [v.dtype for v in region.data], region.roots[0].dtype)
