"""The rule of `pjax_trace.constrain`: sets of values, and of what values are computed from."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.affine import Inverse, Rows, damped_inverse, parted
from pjax_trace.known_view import KnownView
from pjax_trace.registry import isometry_of
from pjax_trace.rule import (
    Arrays,
    Moment,
    Params,
    Prepared,
    Projection,
    Rule,
    Weights,
    squared_distance,
)
from pjax_trace.sets import Set

__all__ = ["SetRule", "Through"]


class Through(NamedTuple):
    """An operation between what a set is said of and the variables: ``view(rule(operands))``.

    Attributes:
        rule: of the operation,
        params: its params,
        view: how the set sees its output,
        operands: how many it has.
        kind: of which its equations are: ``"single"`` if they share no operands, ``"affine"`` if
            they are that, besides, ``"whole"`` if they are affine and one set together, by their
            pseudo-inverse, ``"rows"`` if they are affine and projected onto one after the other.
    """

    rule: Rule
    params: Params
    view: KnownView
    operands: int
    kind: str = "single"


@dataclasses.dataclass(frozen=True)
class SetRule(Prepared):
    """The projection onto a set, or onto what a set makes of what it is computed from.

    The operands are those of the operation, and then the arrays of the set.

    Args:
        structure: of the set, as a pytree.
        static: its leaves that are no arrays; None for those that are.
        paired: whether it is a set of complex arrays, which are pairs of reals here.
        through: an operation, if there is one. Either its scalar equations have operands of their
            own, and the set is an interval for each of its outputs; or it is affine, and the set is
            one point.
        isometries: operations from the variable to what that operation, or the set, sees; the last
            one comes first.
    """

    structure: Any
    static: tuple[Any, ...]
    paired: bool = False
    through: Through | None = None
    isometries: tuple[Through, ...] = ()

    family = "set"

    @property
    def movable(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The set itself is data."""
        return 1 if self.through is None else self.through.operands

    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the set is known to be convex."""
        return (self.through is None or self.through.kind != "single") and self.bare.convex

    @property
    def separable(self) -> bool:
        """Whether it says of each element, or each pair of reals, by itself where it may be."""
        alone = self.through is None or self.through.rule.family == "elementwise"
        return (self.bare.interval or (self.through is None and self.bare.separable)) and alone

    @property
    def single(self) -> bool:
        """Whether it says of each element by itself where it may be."""
        one = not self.paired if self.through is None else self.through.rule.elementwise
        return self.separable and one and not self.isometries

    @property
    def bare(self) -> Set:
        """The set without its arrays."""
        return jax.tree.unflatten(self.structure, self.static)

    def _onto(self, operands: Arrays) -> Callable[[Array], Array]:
        """The projection onto the set, with its arrays."""
        arrays = iter(operands[self.movable :])
        leaves = [next(arrays) if leaf is None else leaf for leaf in self.static]
        onto = jax.tree.unflatten(self.structure, leaves).project
        if not self.paired:
            return onto

        def onto_pairs(x: Array) -> Array:
            z = onto(jax.lax.complex(x[0], x[1]))
            return jnp.stack([jnp.real(z), jnp.imag(z)])

        return onto_pairs

    def apply(self, params: Params, *operands: Array) -> Array:
        """The identity."""
        return operands[0]

    def prepare(self, params: Params, operands: Arrays, weights: Weights) -> Params:
        """With what is known of an affine operation."""
        if self.through is None or self.through.kind in ("single", "affine"):
            return params
        rule, inner, view, count, kind = self.through
        own, weights = operands[:count], Weights(weights.operands[:count], None)
        if kind == "whole":
            return {**params, "inverse": damped_inverse(rule, inner, own, weights)}
        function = functools.partial(rule.apply, inner)
        return {**params, "rows": Rows.of(lambda *xs: view.forward(function(*xs)), own, weights)}

    @property
    def by_rows(self) -> bool:
        """Whether it is many sets, one for each equation of what it is said of."""
        return self.through is not None and self.through.kind == "rows"

    def corrected(
        self, params: Params, operands: Arrays, weights: Weights, corrections: Array
    ) -> tuple[list[Array], Array]:
        """How operands move to the set of one equation after the other; see `Rows.onto`."""
        assert self.through is not None
        places = [i for i, weight in enumerate(weights.operands) if weight is not None]
        starts = [operands[i] for i in places]
        through, inner = self.through, self.through.params
        own = operands[: through.operands]
        seen = jax.eval_shape(
            lambda *xs: through.view.forward(through.rule.apply(inner, *xs)), *own
        )
        # An interval of every element: what is nearest to any number beyond it are its ends.
        onto = self._onto(operands)
        ends = [onto(jnp.full(seen.shape, end, seen.dtype)) for end in (-jnp.inf, jnp.inf)]
        x = jnp.concatenate([x.reshape(-1) for x in starts])
        moved, corrections = params["rows"].onto(x, *ends, corrections)
        return parted(moved - x, starts), corrections

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The nearest point of the set; one weight does not change which that is."""
        if not params:
            params = self.prepare(params, operands, weights)
        own, onto = list(operands[: self.movable]), self._onto(operands)
        places = [i for i, weight in enumerate(weights.operands) if weight is not None]
        starts, missed = [own[i] for i in places], None
        if self.isometries:
            for step in reversed(self.isometries):
                own[places[0]] = step.view.forward(step.rule.apply(step.params, own[places[0]]))
        if self.through is None:
            changes = [onto(own[0]) - own[0]]
        elif self.by_rows:
            none = jnp.zeros_like(params["rows"].offset)
            changes, _ = self.corrected(params, operands, weights, none)
        elif self.through.kind == "whole":
            changes, missed = _solved(self.through, params["inverse"], onto, own, places)
        else:
            changes = _to_interval(self.through, onto, own, places, weights)
        for step in self.isometries:
            isometry = isometry_of(step.rule)
            assert isometry is not None
            changes = [isometry.inverse(*step.view.back(changes[0]))]
        moments: list[Moment | None] = [None] * len(operands)
        distance = jnp.zeros((), changes[0].dtype) if missed is None else missed
        for i, x, change in zip(places, starts, changes, strict=True):
            weight = weights.operands[i]
            moments[i] = Moment(weight * (x + change), weight)
            distance = distance + squared_distance(weight, change, jnp.zeros_like(change))
        return Projection(tuple(moments), None, distance)


def _solved(
    through: Through, inverse: Inverse, onto: Callable[[Array], Array], own: Arrays, places: Any
) -> tuple[list[Array], Array]:
    """The changes that bring the output of an affine operation into the set, or nearest to it.

    Also by how much, squared, they miss it: equations without a solution are met by nothing, not
    even where nothing moves.
    """
    value = through.rule.apply(through.params, *own)
    seen = through.view.forward(value)
    (residual,) = through.view.back(onto(seen) - seen)
    changes = inverse.changes(residual, [own[i] for i in places])

    def missed() -> Array:
        moved = list(own)
        for i, change in zip(places, changes, strict=True):
            moved[i] = own[i] + change
        reached = through.rule.apply(through.params, *moved) - value
        return squared_distance(1.0, reached, residual)

    return changes, jax.lax.cond(inverse.onto, lambda: jnp.zeros((), value.dtype), missed)


def _to_interval(
    through: Through, onto: Callable[[Array], Array], own: Arrays, places: Any, weights: Weights
) -> list[Array]:
    """The way to the nearest point whose output is that of an interval nearest to its value.

    The output is pinned there by a weight beside which those of operands do not count.
    """
    value = through.rule.apply(through.params, *own)
    seen = through.view.forward(value)
    target = value + through.view.back(onto(seen) - seen)[0]
    light = weights.operands[: through.operands]
    largest = [jnp.max(jnp.asarray(w, value.dtype)) for w in light if w is not None]
    heavy = functools.reduce(jnp.maximum, largest) / float(jnp.finfo(value.dtype).eps)
    pinned = Weights(light, jnp.full(value.shape, heavy))
    moments = through.rule.project(through.params, own, target, pinned).moments
    return [moments[i].first / moments[i].mass - own[i] for i in places]
