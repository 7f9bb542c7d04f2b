"""Loss nodes as they are written: a part of the program, with its proximal operator.

What is recognised has a closed form: what is quadratic by element here, logarithms of sums of
exponentials and norms in the rule packs. All else is minimised by `pjax_trace.minimise`, whose only
derivatives are those of the node itself.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace.minimise import minimise, minimise_elements, slopes
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


_TRIED = 1_000_000  # elements of a region that are drawn to see whether its rows are apart


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
    its value. A subclass minimises ``Σ λ_j T_j(x) + ½ ω |x − goal|²``. Where it ``shifts``, what
    the objective reads of a root as it is has been added to the goal, and is none of its terms.

    Args:
        region: the equations.
    """

    region: Region

    family = "loss"
    granularity = "block"
    name: ClassVar[str] = "loss"
    shifts: ClassVar[bool] = True
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
        goals = list(roots)
        if self.shifts:
            nonlinear = len(self.region.terms)
            pulls = dict(zip(self.region.linear, lams[nonlinear:], strict=True))
            lams = lams[:nonlinear]
            goals = [
                x - (pulls[v] / omega).astype(x.dtype) if v in pulls else x
                for v, x, omega in zip(self.region.roots, roots, omegas, strict=True)
            ]
        moved = self.minimum(lams, goals, omegas, data)
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
        return lambda roots: _added(map(jnp.sum, self.weighed(lams, roots, data)))

    def weighed(self, lams: Arrays, roots: Arrays, data: Arrays) -> list[Array]:
        """``λ_j T_j``, and what is read of roots as they are unless that was added to the goal."""
        terms = self.region(roots, data)
        if not self.shifts:
            env = dict(zip(self.region.roots, roots, strict=True))
            terms += [env[v] for v in self.region.linear]
        return [jnp.where(w != 0, w * t, 0) for w, t in zip(lams, terms, strict=True)]

    def convex_part(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> tuple[list[Array], Sequence[Array]]:
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
        first, second = slopes(lambda x: _added(self.weighed(lams, [x], data)), goal)
        return [goal - first / (omega + jnp.maximum(second, 0))]


class Elementwise(ObjectiveRule):
    """A function of every element alone: a bracketed Newton iteration for each.

    Of what is not convex it finds a local minimum.
    """

    granularity = "element"
    exactness = "to rounding, local"
    shifts = False

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """By `pjax_trace.minimise.minimise_elements`."""

        def function(x: Array) -> Array:
            return _added(self.weighed(lams, [x], data))

        (goal,), (omega,) = goals, omegas
        counts = functools.reduce(jnp.logical_or, (lam != 0 for lam in lams))
        return [jnp.where(counts, minimise_elements(function, goal, omega), goal)]


class Joint(ObjectiveRule):
    """Any other function of the roots: Newton's method in a trust region, to a local minimum."""

    exactness = "to 1e-4, local"
    coupled = True
    shifts = False

    @functools.cached_property
    def parts(self) -> int:
        """How many parts there are along the first axis that have nothing to do with each other."""
        return _parts(self.region)

    def minimum(
        self, lams: Arrays, goals: Arrays, omegas: Sequence[Any], data: Arrays
    ) -> Sequence[Array]:
        """By `pjax_trace.minimise.minimise`."""

        def cost(rows: Arrays) -> Array:
            roots = [x.reshape(g.shape) for x, g in zip(rows, goals, strict=True)]
            counted = self.weighed(lams, roots, data)
            return _added(jnp.sum(x.reshape(self.parts, -1), 1) for x in counted)

        rows = [g.reshape(self.parts, -1) for g in goals]
        moved = minimise(cost, rows, omegas)
        counts = [jnp.any(lam.reshape(self.parts, -1) != 0, 1) for lam in lams]
        counted = functools.reduce(jnp.logical_or, counts)[:, None]
        return [
            jnp.where(counted, x, row).reshape(g.shape)
            for x, row, g in zip(moved, rows, goals, strict=True)
        ]


def _parts(region: Region) -> int:
    """The length of the first axis if no term depends on roots in another row, else 1.

    That is seen from the gradient of the terms of one row at a random point.
    """
    values = (*region.roots, *region.terms)
    count = values[0].shape[0] if values[0].shape else 1
    size = sum(math.prod(v.shape) for v in (*values, *region.data))
    if count == 1 or size > _TRIED or any(v.shape[:1] != (count,) for v in values):
        return 1
    rng = np.random.default_rng(0)

    def draw(v: Value) -> np.ndarray:
        if jnp.issubdtype(v.dtype, jnp.inexact):
            return rng.normal(size=v.shape).astype(v.dtype)
        return rng.integers(0, 2, v.shape).astype(v.dtype)

    @jax.jit
    def leaks(roots: Arrays, data: Arrays, weights: Arrays) -> Array:
        def part(roots: Arrays) -> Array:
            terms = zip(weights, region(roots, data), strict=True)
            return _added(jnp.sum(w[0] * t[0]) for w, t in terms)

        slopes = jax.grad(part)(list(roots))
        return jnp.any(jnp.stack([jnp.any(~(x[1:] == 0)) for x in slopes]))

    try:
        with jax.ensure_compile_time_eval():
            for _ in range(2):
                drawn = ([draw(v) for v in vs] for vs in (region.roots, region.data, region.terms))
                if leaks(*drawn):
                    return 1
    except Exception:  # data that cannot be drawn, as random keys
        return 1
    return count


def _is_quadratic(region: Region) -> bool:
    """Whether all terms, of one root by element, are of the second order in it."""

    def function(data: Arrays, x: Array) -> list[Array]:
        return region([x], data)

    return is_quadratic(function, [v.dtype for v in region.data], region.roots[0].dtype)


def _added(arrays: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, arrays)
