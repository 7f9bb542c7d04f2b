"""How far moves are trusted: those of all layers are shortened together, each to its own length."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace.graph import Constraint
from pjax_trace.outputs import wide
from pjax_trace.sums import inner
from pjax_trace.view import Variable

__all__ = ["Move", "Solution", "Step", "trusted"]


class Step(NamedTuple):
    """What one parameter would move by, and how that is put into its shape."""

    variable: Variable
    step: Float[Array, "columns units"]
    place: Callable[[Array], Array]
    divisor: float


class Move(NamedTuple):
    """What the parameters of one problem would move by, before they are shortened.

    Attributes:
        steps: of its parameters, by units.
        lengths: the squared length of every unit, by which it is shortened.
        squares: the squared length of what every unit moves by.
        gains: what every unit promises, ``⟨R, J dθ⟩``.
        total: the sum of the squares of the parameters.
        entries: how many numbers that is.
        fan: the terms of an equation.
        numbers: how many numbers of a step a unit has.
        factor: how much farther it may go than a dense layer.
        exact: whether every unit goes as far as it may, and not only no farther.
        weights: what is multiplied with.
        label: the constraint that asks.
    """

    steps: Sequence[Step]
    lengths: Float[Array, "units"]
    squares: Float[Array, "units"]
    gains: Float[Array, "units"]
    total: Float[Array, ""]
    entries: int
    fan: int
    numbers: int
    factor: float
    exact: bool
    weights: Sequence[Variable]
    label: Constraint


class Solution(NamedTuple):
    """What parameters move by.

    Attributes:
        moves: the parameters and their steps.
        squares: the sum of the squares of all steps.
        gain: what is promised, ``⟨R, J dθ⟩``.
        length: how far what is multiplied with moves, in relation to its size.
        weights: what is multiplied with.
        label: the constraint that asks.
    """

    moves: list[tuple[Variable, Array]]
    squares: Float[Array, ""]
    gain: Float[Array, ""]
    length: Float[Array, ""]
    weights: Sequence[Variable]
    label: Constraint


def trusted(moves: Sequence[Move], trust: float) -> list[Solution]:
    """Moves, shortened to ``trust`` times the size of their parameters, root mean squares both.

    The size is ``√(2 / fan)`` at least. What is said of units is in one array for all problems,
    which XLA compiles in a fraction of the time that an array for each takes.
    """
    if not moves:
        return []
    # One vector of the units of all problems, and to which problem each belongs.
    owner = np.repeat(np.arange(len(moves)), [len(m.lengths) for m in moves])
    lengths = jnp.concatenate([wide(m.lengths) for m in moves])

    def known(of: Callable[[Move], Any]) -> np.ndarray:
        return np.array([of(m) for m in moves])

    least = known(lambda m: math.sqrt(2 / max(1, m.fan))).astype(lengths.dtype)
    entries = known(lambda m: max(1, m.entries)).astype(lengths.dtype)
    totals = jnp.concatenate([wide(m.total)[None] for m in moves])
    sizes = jnp.maximum(jnp.sqrt(totals / entries), least)
    limits = (trust * known(lambda m: m.factor).astype(lengths.dtype) * sizes)[owner]
    each = jnp.sqrt(lengths / known(lambda m: max(1, m.numbers)).astype(lengths.dtype)[owner])
    ratios = limits / jnp.maximum(each, float(jnp.finfo(each.dtype).tiny))
    exact = known(lambda m: m.exact)[owner]
    factors = jnp.where(exact, jnp.where(each > 0, ratios, 0), jnp.minimum(1, ratios))
    stops = np.cumsum([len(m.lengths) for m in moves])
    found = []
    for m, own, size in zip(moves, jnp.split(factors, stops[:-1]), sizes, strict=True):
        gain, square = inner(own, wide(m.gains)), inner(jnp.square(own), wide(m.squares))
        length = jnp.sqrt(square / max(1, sum(s.step.size for s in m.steps))) / size
        steps = [
            (s.variable, s.place(own.astype(s.step.dtype)[None] * s.step / s.divisor))
            for s in m.steps
        ]
        found.append(Solution(steps, square, gain, length, m.weights, m.label))
    return found
