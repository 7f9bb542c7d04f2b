"""What happens to parameters between updates: momentum, averages. Values that any solver goes with.

An acceleration says where an update starts, and what becomes of where it ended; its memory is part
of the state, a pytree.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.errors import check_range

__all__ = ["Acceleration", "Averaging", "Momentum"]

Arrays = Sequence[Array]


class Acceleration(eqx.Module):
    """The interface; every method may be left as it is."""

    def init(self, parameters: Arrays) -> Any:
        """The memory to start with."""
        return None

    def start(self, memory: Any, parameters: Arrays) -> Arrays:
        """Where to start the update of these parameters."""
        return parameters

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays
    ) -> tuple[Arrays, Any]:
        """The new parameters and memory, after an update has gone from ``start`` to ``end``."""
        return end, memory


class Momentum(Acceleration):
    """Momentum from update to update, with the velocity ``v = θ⁺ − θ``.

    Nesterov's goes ahead first and updates from there: ``θ⁺ = update(θ + decay v)``. The heavy ball
    of Polyak updates where it is: ``θ⁺ = update(θ) + decay v``.

    Args:
        decay: in [0, 1).
        nesterov: which of the two.

    References:
        Y. Nesterov, A method of solving a convex programming problem with convergence rate O(1/k²),
        Soviet Math. Dokl. 27 (1983). B. Polyak, Some methods of speeding up the convergence of
        iteration methods, USSR Comput. Math. Math. Phys. 4 (1964).
    """

    decay: float = 0.9
    nesterov: bool = True

    def __check_init__(self) -> None:
        """The decay is in range."""
        check_range("Momentum: decay", self.decay, 0, 1, closed=False)

    def init(self, parameters: Arrays) -> Any:
        """No velocity."""
        return [jnp.zeros_like(x) for x in parameters]

    def start(self, memory: Any, parameters: Arrays) -> Arrays:
        """Ahead, if it is Nesterov's."""
        return self._ahead(memory, parameters) if self.nesterov else parameters

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays
    ) -> tuple[Arrays, Any]:
        """Where the update ended, or beyond; and the way there."""
        new = end if self.nesterov else self._ahead(memory, end)
        return new, [x - old for x, old in zip(new, parameters, strict=True)]

    def _ahead(self, velocity: Any, parameters: Arrays) -> Arrays:
        return [x + self.decay * v for x, v in zip(parameters, velocity, strict=True)]


class Averaging(Acceleration):
    """An exponential average of the parameters, which `Projected.averaged` gives out.

    ``average ← d average + (1 − d) θ⁺`` with ``d = min(decay, (1 + t) / (10 + t))`` in update t,
    so that it has soon forgotten the start. The parameters themselves are left alone.

    Args:
        decay: in [0, 1).

    References:
        B. Polyak, A. Juditsky, Acceleration of stochastic approximation by averaging, SIAM J.
        Control Optim. 30 (1992), for averages of iterates.
    """

    decay: float = 0.98

    def __check_init__(self) -> None:
        """The decay is in range."""
        check_range("Averaging: decay", self.decay, 0, 1, closed=False)

    def init(self, parameters: Arrays) -> Any:
        """The average of one."""
        return [jnp.array(x) for x in parameters], jnp.zeros((), jnp.float32)

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays
    ) -> tuple[Arrays, Any]:
        """One more in the average."""
        averages, count = memory
        share = jnp.maximum(1 - self.decay, 9 / (10 + count))
        averages = [a + share.astype(a.dtype) * (x - a) for a, x in zip(averages, end, strict=True)]
        return end, (averages, count + 1)

    def average(self, memory: Any) -> Arrays:
        """The average."""
        return memory[0]
