"""Views whose data are known while tracing: what they read, how often, and how it is scaled."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pjax_trace.program import Program, Value
from pjax_trace.view import View

__all__ = ["KnownView", "known_view"]


@dataclasses.dataclass(frozen=True, eq=False)
class KnownView:
    """A view with its data.

    Attributes:
        view: the view.
        data: the data.
        slope: the coefficient of every element that is read.
        counts: how often every element of the bases is read.
    """

    view: View
    data: Mapping[Value, Any]
    slope: np.ndarray
    counts: tuple[Int[np.ndarray, "..."], ...]

    @property
    def uniform(self) -> bool:
        """Whether all coefficients have one size, but those of what it does not read."""
        size = np.abs(self.slope)
        return bool(np.all((size == 0) | (size == size.max(initial=0))))

    @property
    def total(self) -> bool:
        """Whether every element of what it makes reads something."""
        return sum(int(n.sum()) for n in self.counts) == self.slope.size

    @property
    def one_to_one(self) -> bool:
        """Whether its elements are all those of one variable, each read once."""
        return len(self.counts) == 1 and self.total and bool(np.all(self.counts[0] == 1))

    def forward(self, *arrays: Array) -> Array:
        """What is read of the bases."""
        return self.view(self.data, *arrays)

    def back(self, change: Array) -> tuple[Array, ...]:
        """By how much the bases change, if what is read changes by so much."""
        return self.view.pull(self.data, change * jnp.asarray(_squared(self.slope), change.dtype))


def _squared(slope: np.ndarray) -> np.ndarray:
    """By what the transpose is divided to be an inverse, inverted; any number where it is 0."""
    return 1 / np.square(np.where(slope == 0, 1, slope).astype(float))


def known_view(program: Program, view: View) -> KnownView | None:
    """The view with its data, if these are constants, and its coefficients finite."""
    made = {v for e in view.equations for v in e.outputs} | {b.value for b in view.bases}
    data = program.known_of({v for e in view.equations for v in e.inputs if v not in made})
    if data is None:
        return None
    with jax.ensure_compile_time_eval():
        slope = np.asarray(view.slope(data))
        if not np.all(np.isfinite(slope)):
            return None
        pulled = view.pull(data, jnp.asarray(slope * _squared(slope), slope.dtype))
        counts = tuple(np.rint(np.asarray(x)).astype(int) for x in pulled)
    return KnownView(view, data, slope, counts)
