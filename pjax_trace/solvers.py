"""The iterations, as values: what one step does to a point of a `Space`.

``A`` is the colour of the outputs, ``B`` the other one; ``P`` projects, ``R = 2P − I`` reflects.
Solvers know nothing of graphs or rules; ``copies`` chooses the lowering that they run on.
"""

import abc
import functools
import numbers
from typing import Any, ClassVar

import equinox as eqx
import jax
from equinox.internal import ω
from jaxtyping import Array

from pjax_trace.acceleration import Acceleration, Momentum
from pjax_trace.errors import InputError, check_range
from pjax_trace.lower import Space

__all__ = [
    "Accelerated",
    "AlternatingProjections",
    "AlternatingReflections",
    "CyclicDouglasRachford",
    "CyclicProjections",
    "DifferenceMap",
    "DouglasRachford",
    "Solver",
]


class Solver(eqx.Module):
    """The interface of a solver. All state is in the carry, a pytree.

    Attributes:
        needs_copies: whether the iterates leave the set in which copies agree.
        default_steps: how many steps an update makes if nobody says.
        schedules: those that it can run on; the first one unless somebody says.
    """

    needs_copies: ClassVar[bool] = True
    schedules: ClassVar[tuple[str, ...]] = ("parallel", "product")
    default_steps: ClassVar[int] = 50

    def init(self, space: Space, values: Any) -> Any:
        """The carry that starts from consensus values."""
        return space.expand(values)

    @abc.abstractmethod
    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration: the next carry, and the squared distances moved, per constraint."""

    @abc.abstractmethod
    def values(self, space: Space, carry: Any) -> Any:
        """The shadow of the iterate, as consensus values."""

    def inner(self, space: Space, x: Any, y: Any) -> Array:
        """The inner product of two carries in the metric."""
        return space.inner(x, y)


def _blend(start: Any, end: Any, amount: float) -> Any:
    """``(1 − amount) start + amount end``."""
    if amount == 1.0:
        return end
    return jax.tree.map(lambda s, e: s + amount * (e - s), start, end)


def _reflect(space: Space, point: Any, group: Any) -> tuple[Any, Array]:
    projected, distances = space.project(point, group)
    return _blend(point, projected, 2.0), distances


class AlternatingProjections(Solver):
    """Alternating projections, ``u ← u + relaxation (P_B P_A u − u)`` (von Neumann; POCS).

    The iteration is closed on one array per variable, its consensus state, and runs on that
    without copies unless told otherwise. With ``momentum`` it is short for
    ``Accelerated(AlternatingProjections(relaxation), Momentum(momentum, restart=True))``.

    Args:
        relaxation: in (0, 2].
        momentum: in [0, 1).
    """

    relaxation: float = 1.0
    momentum: float = 0.0
    needs_copies: ClassVar[bool] = False

    def __check_init__(self) -> None:
        """Parameters are in range."""
        check_range("AlternatingProjections: relaxation", self.relaxation, 0, 2)
        check_range("AlternatingProjections: momentum", self.momentum, 0, 1, closed=False)

    @property
    def _moving(self) -> "Accelerated":
        plain = AlternatingProjections(self.relaxation)
        return Accelerated(plain, Momentum(self.momentum, restart=True))

    def init(self, space: Space, values: Any) -> Any:
        """The consensus state."""
        return self._moving.init(space, values) if self.momentum else values

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One projection onto either colour."""
        if self.momentum:
            return self._moving.step(space, carry)
        point, first = space.project(space.expand(carry), space.groups[0])
        point, second = space.project(point, space.groups[1])
        return _blend(carry, space.collapse(point), self.relaxation), first + second

    def values(self, space: Space, carry: Any) -> Any:
        """The consensus state."""
        return self._moving.values(space, carry) if self.momentum else carry

    def inner(self, space: Space, x: Any, y: Any) -> Array:
        """That of consensus values."""
        return space.problem.inner(x, y)


class AlternatingReflections(Solver):
    """Alternating reflections, ``u ← u + relaxation (R_B R_A u − u)`` (Peaceman–Rachford).

    Args:
        relaxation: in (0, 1]; 1/2 is Douglas–Rachford.
    """

    relaxation: float = 1.0

    def __check_init__(self) -> None:
        """Parameters are in range."""
        check_range(f"{type(self).__name__}: relaxation", self.relaxation, 0, 1)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One reflection in either colour."""
        point, first = _reflect(space, carry, space.groups[0])
        point, second = _reflect(space, point, space.groups[1])
        return _blend(carry, point, self.relaxation), first + second

    def values(self, space: Space, carry: Any) -> Any:
        """The projection of the governing point onto ``A``."""
        shadow, _ = space.project(carry, space.groups[0])
        return space.collapse(shadow)


class DouglasRachford(AlternatingReflections):
    """Douglas–Rachford, ``u ← u + relaxation (R_B R_A u − u)``, classically with 1/2.

    Args:
        relaxation: in (0, 1].
    """

    relaxation: float = 0.5


class DifferenceMap(Solver):
    """The difference map of Elser, ``u ← u + β (P_B f_A u − P_A f_B u)``.

    With ``f_A = P_A + (P_A − I)/β`` and ``f_B = P_B − (P_B − I)/β``; β = 1 is Douglas–Rachford.

    Args:
        beta: nonzero; classically between 0.5 and 1 in size.

    References:
        V. Elser, I. Rankenburg, P. Thibault, Searching with iterated maps, PNAS 104, 2007, eq. 1–3.
    """

    beta: float = 0.8

    def __check_init__(self) -> None:
        """Parameters are in range."""
        if not isinstance(self.beta, numbers.Real) or not 0 < abs(self.beta) < float("inf"):
            raise InputError(f"DifferenceMap: beta must be finite and not 0, but is {self.beta!r}")

    def _estimate(self, space: Space, point: Any) -> tuple[Any, Array]:
        """``P_A f_B u``."""
        onto_b, second = space.project(point, space.groups[1])
        onto_a, first = space.project(_blend(onto_b, point, 1 / self.beta), space.groups[0])
        return onto_a, first + second

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """Two projections onto either colour."""
        onto_a, first = space.project(carry, space.groups[0])
        ahead = _blend(onto_a, carry, -1 / self.beta)
        onto_b, second = space.project(ahead, space.groups[1])
        estimate, _ = self._estimate(space, carry)
        return (carry**ω + self.beta * (onto_b**ω - estimate**ω)).ω, first + second

    def values(self, space: Space, carry: Any) -> Any:
        """``P_A f_B u``, which is the solution at a fixed point."""
        return space.collapse(self._estimate(space, carry)[0])


class CyclicProjections(Solver):
    """Cyclic projections: onto one constraint after the other, from the outputs back."""

    schedules: ClassVar[tuple[str, ...]] = ("cyclic",)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One cycle."""
        total = 0.0
        for group in space.cycle:
            carry, distances = space.project(carry, group)
            total = total + distances
        return carry, total  # pyright: ignore[reportReturnType]

    def values(self, space: Space, carry: Any) -> Any:
        """The mean of the copies."""
        return space.collapse(carry)


class CyclicDouglasRachford(Solver):
    """Cyclic Douglas–Rachford: a Douglas–Rachford step for each neighbouring pair of constraints.

    The pairs of the cycle ``C₁, …, C_m`` are ``(C₁, C₂), …, (C_m, C₁)``.

    Args:
        relaxation: of each step, in (0, 1].

    References:
        J. Borwein, M. Tam, A cyclic Douglas–Rachford iteration scheme, JOTA 160 (2014), eq. 3.
    """

    relaxation: float = 0.5
    schedules: ClassVar[tuple[str, ...]] = ("cyclic",)

    def __check_init__(self) -> None:
        """Parameters are in range."""
        check_range("CyclicDouglasRachford: relaxation", self.relaxation, 0, 1)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One cycle."""
        total = 0.0
        following = (*space.cycle[1:], space.cycle[0])
        for group, after in zip(space.cycle, following, strict=True):
            point, distances = _reflect(space, carry, group)
            point, _ = _reflect(space, point, after)
            carry = _blend(carry, point, self.relaxation)
            total = total + distances
        return carry, total  # pyright: ignore[reportReturnType]

    def values(self, space: Space, carry: Any) -> Any:
        """The mean of the copies, projected onto ``A`` first."""
        shadow, _ = space.project(carry, space.groups[0])
        return space.collapse(shadow)


class Accelerated(Solver):
    """A solver whose steps are accelerated, as updates are by the ``acceleration`` of `project`.

    The acceleration begins anew with every update, and its memory is part of the carry. It is at
    its best with alternating projections, whose steps go one way. Governing points circle around
    what they look for: on MNIST, by blocks, Douglas–Rachford reached 93.4 % after 30 batches of 20
    steps by itself, 92.2 % with ``Anderson()``, and nothing with ``Momentum(0.9, restart=True)``.

    Args:
        solver: what makes the steps.
        acceleration: for one, ``Momentum(0.9, restart=True)`` or ``Anderson()``.

    Raises:
        InputError: if these are no such values, or the solver is accelerated already.

    Example:
        >>> import pjax_trace as pjax
        >>> solver = pjax.Accelerated(pjax.DouglasRachford(), pjax.Anderson(memory=5))
    """

    solver: Solver
    acceleration: Acceleration

    def __check_init__(self) -> None:
        """The parts are what they should be."""
        if not isinstance(self.solver, Solver) or not isinstance(self.acceleration, Acceleration):
            raise InputError(
                "Accelerated takes a solver such as pjax.DouglasRachford() and an acceleration "
                f"such as pjax.Anderson(), not {self.solver!r} and {self.acceleration!r}"
            )
        if isinstance(self.solver, Accelerated) or getattr(self.solver, "momentum", 0.0):
            raise InputError(f"Accelerated: {self.solver!r} is accelerated already")

    @property
    def needs_copies(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the solver."""
        return self.solver.needs_copies

    @property
    def schedules(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the solver's."""
        return self.solver.schedules

    @property
    def default_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the solver's."""
        return self.solver.default_steps

    def init(self, space: Space, values: Any) -> Any:
        """The solver's carry, and the acceleration's memory."""
        carry = self.solver.init(space, values)
        return carry, self.acceleration.init(carry)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One step of the solver, from where the acceleration says."""
        point, memory = carry
        start = tuple(self.acceleration.start(memory, point))
        end, distances = self.solver.step(space, start)
        inner = functools.partial(self.solver.inner, space)
        point, memory = self.acceleration.finish(memory, point, start, end, inner)
        return (tuple(point), memory), distances

    def values(self, space: Space, carry: Any) -> Any:
        """Those of the solver where its last step ended."""
        return self.solver.values(space, carry[0])
