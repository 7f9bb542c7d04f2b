"""Relaxations of Douglas–Rachford, as phase retrieval and combinatorial feasibility use them.

``A`` is the first group of constraints, ``B`` the second one; ``R = 2P − I`` reflects.
"""

from typing import Any

from equinox.internal import ω
from jaxtyping import Array

from pjax_trace.errors import check_range
from pjax_trace.solver import Solver
from pjax_trace.space import Space

__all__ = ["ADMM", "HybridInputOutput", "RelaxedAveragedReflections", "ReflectReflectRelax"]


class _Shadowed(Solver):
    """Iterations of which ``P_A u`` is the solution."""

    def values(self, space: Space, carry: Any) -> Any:
        """``P_A u``."""
        shadow, _ = space.project(carry, space.groups[0])
        return space.collapse(shadow)


class ReflectReflectRelax(_Shadowed):
    """RRR, ``u ← u + β (P_B R_A u − P_A u)``; 1 is Douglas–Rachford.

    Small ``beta`` follow a flow, and solve hard combinatorial problems more surely.

    Args:
        beta: in (0, 2).

    References:
        V. Elser, *The complexity of bit retrieval*, IEEE Trans. Inf. Theory 64 (2018).
    """

    beta: float = 0.5

    def __check_init__(self) -> None:
        check_range("ReflectReflectRelax: beta", self.beta, 0, 2)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration."""
        on_a, first = space.project(carry, space.groups[0])
        on_b, second = space.project((2 * on_a**ω - carry**ω).ω, space.groups[1])
        return (carry**ω + self.beta * (on_b**ω - on_a**ω)).ω, first + second

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """The distance of ``P_A u`` from ``P_B R_A u``."""
        apart = (after**ω - before**ω).ω
        return space.inner(apart, apart) / self.beta**2


class RelaxedAveragedReflections(_Shadowed):
    """RAAR, ``u ← β/2 (R_B R_A + I) u + (1 − β) P_A u``; 1 is Douglas–Rachford.

    It has fixed points where the sets do not meet, too: near both of them.

    Args:
        beta: in (0, 1].

    References:
        D. R. Luke, *Relaxed averaged alternating reflections*, Inverse Problems 21 (2005).
    """

    beta: float = 0.9

    def __check_init__(self) -> None:
        check_range("RelaxedAveragedReflections: beta", self.beta, 0, 1)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration."""
        on_a, first = space.project(carry, space.groups[0])
        on_b, second = space.project((2 * on_a**ω - carry**ω).ω, space.groups[1])
        reflected = carry**ω + on_b**ω - on_a**ω
        return (self.beta * reflected + (1 - self.beta) * on_a**ω).ω, first + second


class HybridInputOutput(_Shadowed):
    """Hybrid input–output, ``u ← u + P_B((1 + β) P_A u − u) − β P_A u``; 1 is Douglas–Rachford.

    With magnitudes as the first set and a support as the second it is Fienup's algorithm.

    Args:
        beta: in (0, 1].

    References:
        J. R. Fienup, *Phase retrieval algorithms: a comparison*, Applied Optics 21 (1982); for
        other sets H. Bauschke, P. Combettes, D. R. Luke, J. Opt. Soc. Am. A 20 (2003).
    """

    beta: float = 0.9

    def __check_init__(self) -> None:
        check_range("HybridInputOutput: beta", self.beta, 0, 1)

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration."""
        on_a, first = space.project(carry, space.groups[0])
        ahead = ((1 + self.beta) * on_a**ω - carry**ω).ω
        on_b, second = space.project(ahead, space.groups[1])
        return (carry**ω + on_b**ω - self.beta * on_a**ω).ω, first + second


class ADMM(Solver):
    """The alternating direction method of multipliers, for losses and sets.

    ``x ← P_A(z − y)``, ``z ← P_B(h + y)`` and ``y ← y + h − z`` with ``h = α x + (1 − α) z``, where
    P of a loss is its proximal operator. A loss weighs more beside sets the larger its λ.

    Args:
        relaxation: α, in (0, 2).

    References:
        S. Boyd et al., *Distributed optimization and statistical learning via the alternating
        direction method of multipliers* (2011), section 3.
    """

    relaxation: float = 1.0

    def __check_init__(self) -> None:
        check_range("ADMM: relaxation", self.relaxation, 0, 2)

    def init(self, space: Space, values: Any) -> Any:
        """The point, and multipliers of 0."""
        point = space.expand(values)
        return point, (0.0 * point**ω).ω

    def step(self, space: Space, carry: Any) -> tuple[Any, Array]:
        """One iteration."""
        z, y = carry
        x, first = space.project((z**ω - y**ω).ω, space.groups[0])
        ahead = self.relaxation * x**ω + (1 - self.relaxation) * z**ω + y**ω
        z, second = space.project(ahead.ω, space.groups[1])
        return (z, (ahead - z**ω).ω), first + second

    def inner(self, space: Space, x: Any, y: Any) -> Array:
        """That of points and that of multipliers."""
        return space.inner(x[0], y[0]) + space.inner(x[1], y[1])

    def residual(self, space: Space, before: Any, after: Any, moved: Array) -> Array:
        """The primal residual and the dual one, of x and z and of z and z before."""
        step = (after**ω - before**ω).ω
        return self.inner(space, step, step)

    def values(self, space: Space, carry: Any) -> Any:
        """``z``."""
        return space.collapse(carry[0])
