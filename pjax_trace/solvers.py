"""The classical iterations, as values: what one step does to a point of a `Space`.

``A`` is the colour of the outputs, ``B`` the other one; ``P`` projects, ``R = 2P − I`` reflects.
Solvers know nothing of graphs or rules; ``copies`` chooses the lowering that they run on.
"""

import functools
import numbers
from typing import Any, ClassVar

import jax
from equinox.internal import ω
from jaxtyping import Array

from pjax_trace.acceleration import Acceleration, Momentum
from pjax_trace.errors import InputError, check_range
from pjax_trace.solver import Solver
from pjax_trace.space import Space

__all__ = [
    "Accelerated",
    "AlternatingProjections",
    "AlternatingReflections",
    "CyclicDouglasRachford",
    "CyclicProjections",
    "DifferenceMap",
    "DouglasRachford",
]


def _blend(start: Any, end: Any, amount: float) -> Any:
    """``(1 − amount) start + amount end``."""
    if amount == 1.0:
        return end
    return jax.tree.map(lambda s, e: s + amount * (e - s), start, end)


def _apart(solver: Solver, space: Space, before: Any, after: Any, factor: float) -> Array:
    """The squared distance of the two points whose difference, times a factor, was a step."""
    step = (after**ω - before**ω).ω
    return solver.inner(space, step, step) / factor**2


def _reflect(space: Space, point: Any, group: Any) -> tuple[Any, Array]:
    projected, distances = space.project(point, group)
    return _blend(point, projected, 2.0), distances


class AlternatingProjections(Solver):
    """Alternating projections, ``u ← u + relaxation (P_B P_A u − u)`` (von Neumann; POCS).

    After every step, all copies of a variable agree. The iteration therefore runs on one array per
    variable, without copies, unless ``copies=True`` is asked for. With ``momentum`` it is short for
    ``Accelerated(AlternatingProjections(relaxation), Momentum(momentum, restart=True))``.

    Args:
        relaxation: in (0, 2].
        momentum: in [0, 1).
    """

    relaxation: float = 1.0
    momentum: float = 0.0
    needs_copies: ClassVar[bool] = False
    once: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_range("AlternatingProjections: relaxation", self.relaxation, 0, 2)
        check_range("AlternatingProjections: momentum", self.momentum, 0, 1, closed=False)

    @property
    def _moving(self) -> "Accelerated":
        plain = AlternatingProjections(self.relaxation)
        return Accelerated(plain, Momentum(self.momentum, restart=True))

    def init(self, space: Space, values: Any) -> Any:
        """The first carry: the values themselves, one array per variable."""
        return self._moving.init(space, values) if self.momentum else values

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """A projection onto each colour, one after the other."""
        if self.momentum:
            return self._moving.step(space, carry)
        point, first = space.project(space.expand(carry), space.groups[0])
        point, second = space.project(point, space.groups[1])
        return _blend(carry, space.collapse(point), self.relaxation), first + second

    def values(self, space: Space, carry: Any) -> Any:
        return self._moving.values(space, carry) if self.momentum else carry

    def inner(self, space: Space, x: Any, y: Any) -> Array:
        """The inner product of two sets of values, in the metric."""
        return space.problem.inner(x, y)


class AlternatingReflections(Solver):
    """Alternating reflections, ``u ← u + relaxation (R_B R_A u − u)`` (Peaceman–Rachford).

    Args:
        relaxation: in (0, 1]; 1/2 is Douglas–Rachford.
    """

    relaxation: float = 1.0

    def __check_init__(self) -> None:
        check_range(f"{type(self).__name__}: relaxation", self.relaxation, 0, 1)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """A reflection in each colour, one after the other."""
        point, first = _reflect(space, carry, space.groups[0])
        point, second = _reflect(space, point, space.groups[1])
        return _blend(carry, point, self.relaxation), first + second

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """The distance of ``P_A u`` from ``P_B R_A u``."""
        return _apart(self, space, before, after, 2 * self.relaxation)

    def values(self, space: Space, carry: Any) -> Any:
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
        beta: nonzero; its absolute value is usually between 0.5 and 1.

    References:
        V. Elser, I. Rankenburg, P. Thibault, Searching with iterated maps, PNAS 104, 2007, eq. 1–3.
    """

    beta: float = 0.8

    def __check_init__(self) -> None:
        if not isinstance(self.beta, numbers.Real) or not 0 < abs(self.beta) < float("inf"):
            raise InputError(f"DifferenceMap: beta must be finite and not 0, but is {self.beta!r}")

    def _estimate(self, space: Space, point: Any) -> tuple[Any, Array]:
        """``P_A f_B u``."""
        onto_b, second = space.project(point, space.groups[1])
        onto_a, first = space.project(_blend(onto_b, point, 1 / self.beta), space.groups[0])
        return onto_a, first + second

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        onto_a, first = space.project(carry, space.groups[0])
        ahead = _blend(onto_a, carry, -1 / self.beta)
        onto_b, second = space.project(ahead, space.groups[1])
        estimate, _ = self._estimate(space, carry)
        return (carry**ω + self.beta * (onto_b**ω - estimate**ω)).ω, first + second

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """The distance of ``P_B f_A u`` from ``P_A f_B u``."""
        return _apart(self, space, before, after, self.beta)

    def values(self, space: Space, carry: Any) -> Any:
        """``P_A f_B u``, which is the solution at a fixed point."""
        return space.collapse(self._estimate(space, carry)[0])


class CyclicProjections(Solver):
    """Cyclic projections: onto one constraint after the other, from the outputs to the inputs."""

    schedules: ClassVar[tuple[str, ...]] = ("cyclic",)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        total = 0.0
        for group in space.cycle:
            carry, distances = space.project(carry, group)
            total = total + distances
        return carry, total  # pyright: ignore[reportReturnType]

    def values(self, space: Space, carry: Any) -> Any:
        """The weighted mean of the copies of each variable."""
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
        check_range("CyclicDouglasRachford: relaxation", self.relaxation, 0, 1)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        total = 0.0
        following = (*space.cycle[1:], space.cycle[0])
        for group, after in zip(space.cycle, following, strict=True):
            point, distances = _reflect(space, carry, group)
            point, _ = _reflect(space, point, after)
            carry = _blend(carry, point, self.relaxation)
            total = total + distances
        return carry, total  # pyright: ignore[reportReturnType]

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """How far the point moved in the cycle."""
        return _apart(self, space, before, after, 1.0)

    def values(self, space: Space, carry: Any) -> Any:
        """The weighted mean of the copies of each variable, after a projection onto ``A``."""
        shadow, _ = space.project(carry, space.groups[0])
        return space.collapse(shadow)


class Accelerated(Solver):
    """A solver whose steps are accelerated, as updates are by the ``acceleration`` of `project`.

    The acceleration starts with an empty memory in every update. It helps alternating projections
    most. The iterates of Douglas–Rachford tend to circle around a fixed point, and extrapolating
    them is of no use: on MNIST, with blocks, it reached 93.4 % after 30 batches of 20 steps without
    acceleration and 92.2 % with ``Anderson()``, and did not learn with
    ``Momentum(0.9, restart=True)``.

    Args:
        solver: the solver to accelerate.
        acceleration: such as ``Momentum(0.9, restart=True)`` or ``Anderson()``.

    Raises:
        InputError: if an argument is of the wrong type, or the solver is accelerated already.

    Example:
        >>> import pjax_trace as pjax
        >>> solver = pjax.Accelerated(pjax.DouglasRachford(), pjax.Anderson(memory=5))
    """

    solver: Solver
    acceleration: Acceleration

    def __check_init__(self) -> None:
        if not isinstance(self.solver, Solver) or not isinstance(self.acceleration, Acceleration):
            raise InputError(
                "Accelerated takes a solver such as pjax.DouglasRachford() and an acceleration "
                f"such as pjax.Anderson(), not {self.solver!r} and {self.acceleration!r}"
            )
        if not self.solver.gaps:
            raise InputError(
                f"Accelerated: a {type(self.solver).__name__} is accelerated between updates; give "
                "pjax_trace.project the acceleration"
            )
        if isinstance(self.solver, Accelerated) or getattr(self.solver, "momentum", 0.0):
            raise InputError(f"Accelerated: {self.solver!r} is accelerated already")

    @property
    def needs_copies(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the solver needs copies."""
        return self.solver.needs_copies

    @property
    def once(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the solver projects onto each constraint once a step."""
        return self.solver.once

    @property
    def schedules(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The schedules of the solver."""
        return self.solver.schedules

    @property
    def default_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The default number of steps of the solver."""
        return self.solver.default_steps

    def init(self, space: Space, values: Any) -> Any:
        """The first carry of the solver, with the empty memory of the acceleration."""
        carry = self.solver.init(space, values)
        return carry, self.acceleration.init(carry)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One step of the solver, from the point that the acceleration chooses."""
        point, memory = carry
        start = tuple(self.acceleration.start(memory, point))
        end, distances = self.solver.step(space, start)
        inner = functools.partial(self.solver.inner, space)
        point, memory = self.acceleration.finish(memory, point, start, end, inner)
        return (tuple(point), memory), distances

    def values(self, space: Space, carry: Any) -> Any:
        """The values of the solver, at the point where its last step ended."""
        return self.solver.values(space, carry[0])
