"""Feasibility problems from a start to a verdict: `solve`, and the nearest point: `nearest`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from pjax_trace.errors import InputError, check_positive
from pjax_trace.graph import ConsensusGraph
from pjax_trace.info import Info, State
from pjax_trace.metric import Metric
from pjax_trace.nearest_solvers import Dykstra
from pjax_trace.project import project
from pjax_trace.projected import Projected
from pjax_trace.solver import Solver
from pjax_trace.solvers import DouglasRachford

__all__ = ["Solution", "nearest", "solve"]

_STRIDE = 200  # steps between two looks at several slots, at most


class Solution(eqx.Module):
    """What `solve` found. ``print(solution)`` shows it constraint by constraint.

    Attributes:
        x: the variables, as they were given.
        solved: whether the last residual is within the tolerance.
        stalled: whether it is not, and the second half of the steps came no nearer than the first.
        distances: the gap of every constraint at ``x``, in the order of ``gaps``.
        residuals: how far from a solution every step found itself; NaN for steps not taken.
        steps: how many steps there were, of this call and of those that it goes on from.
        state: the point to go on from, and the number of steps.
        start: of several, the number of the one that this came from.
    """

    x: PyTree
    solved: Bool[Array, ""]
    stalled: Bool[Array, ""]
    distances: Float[Array, "constraints"]
    residuals: Float[Array, "steps"]
    steps: Int[Array, ""]
    state: State
    start: Int[Array, ""]
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def gaps(self) -> dict[str, Array]:
        """The gap of every constraint, by name and source line."""
        return dict(zip(self.names, self.distances, strict=True))

    def __str__(self) -> str:
        verdict = "solved" if self.solved else "stalled" if self.stalled else "not solved"
        lines = [f"{verdict} after {int(self.steps)} steps"]
        width = max(map(len, self.names), default=0)
        lines += [f"  gap  {name:<{width}}  {float(gap):.4g}" for name, gap in self.gaps.items()]
        return "\n".join(lines)


def solve(
    problem: Callable[..., Any],
    x0: Any,
    *data: Any,
    solver: Solver | None = None,
    max_steps: int = 1000,
    tol: float = 1e-5,
    point: str = "consensus",
    restarts: int = 0,
    slots: int = 8,
    key: Any = None,
    metric: Metric | Mapping[str, float] | None = None,
) -> Solution:
    """Look for a point in all sets of a problem, and say whether it was found.

    Args:
        problem: calls `constrain`, as for `project`; solved for its first argument.
        x0: where to start: an array or a pytree; a function of a key that makes one; or a
            `Solution`, from whose governing point the solver goes on.
        *data: the other arguments.
        solver: the iteration. Default: `DouglasRachford`.
        max_steps: so many steps at most, from every start.
        tol: a problem counts as solved when the residual of a step is at most this. It is what the
            solver's step has anyway, such as the distance of a point of one group of sets from one
            of the other, in the metric.
        point: which point is returned. ``"consensus"``: the shadow of the iterate, which is what
            `project` returns; ``"sets"``: its projection onto the second group of sets; ``"mean"``:
            the mean of both.
        restarts: so many more starts are tried until one of them leads to a solution. They are
            what ``x0`` makes of other keys, or ``x0`` with normal noise of its own size.
        slots: so many starts are tried at the same time; a slot whose start has failed gets the
            next one.
        key: for the starts.
        metric: as for `project`.

    Returns:
        A `Solution`; of several starts the first that is solved, or else that with the smallest
        residual.

    Raises:
        InputError: for arguments out of range, and restarts without a key.

    Example:
        Two circles meet:

        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def problem(x):
        ...     pjax.constrain(jnp.linalg.norm(x), pjax.sets.Equal(1.0))
        ...     pjax.constrain(jnp.linalg.norm(x - 1.0), pjax.sets.Equal(1.0))
        >>> solution = pjax.solve(problem, jnp.array([0.3, -0.2]))
        >>> bool(solution.solved)
        True
    """
    solver = DouglasRachford() if solver is None else solver
    check_positive("solve: tol", tol)
    if point not in ("consensus", "sets", "mean"):
        raise InputError(f"solve: point must be 'consensus', 'sets' or 'mean', not {point!r}")
    if not isinstance(solver, Solver) or not solver.gaps:
        raise InputError(f"solve: the solver must be a classical one, not {solver!r}")
    if restarts < 0 or slots < 1:
        raise InputError("solve: restarts must be 0 or more, and slots 1 or more")
    if key is None and (restarts or callable(x0)) and not isinstance(x0, Solution):
        raise InputError("solve: several starts, or a function that makes them, need a key")
    weights = _hashable(metric)
    if restarts:
        start, slots = _starts(x0, key), min(slots, restarts + 1)
        turns = 1 if slots == 1 else -(-max_steps // _STRIDE)
        stride = max_steps // turns
        return _first(
            _projected(problem, solver, stride, tol, point, weights),
            *(start, data, restarts + 1, slots, stride * turns, tol),
        )
    projected = _projected(problem, solver, max_steps, tol, point, weights)
    if isinstance(x0, Solution):
        x, state = x0.x, x0.state
    else:
        x = x0(key) if callable(x0) else x0
        state = projected.init(x)
    x, state, info = projected.update(x, state, *data)
    return _solution(x, state, info, tol, jnp.zeros((), jnp.int32))


def nearest(
    problem: Callable[..., Any],
    x0: Any,
    *data: Any,
    solver: Solver | None = None,
    max_steps: int = 10_000,
    tol: float = 1e-6,
    metric: Metric | Mapping[str, float] | None = None,
) -> Solution:
    """The point of convex sets that is nearest to ``x0``: ``argmin |x − x0|²`` over all sets.

    Args:
        problem: calls `constrain` on the variables, or on affine functions of them.
        x0: the point, an array or a pytree; or a `Solution` of `nearest` to go on from.
        *data: the other arguments.
        solver: `Dykstra`, the default, or `Halpern`.
        max_steps: so many cycles at most.
        tol: stop when a cycle moves no more than this.
        metric: in which "nearest" is meant, as for `project`.

    Returns:
        A `Solution`.

    Raises:
        InputError: if sets are of anything but the variables themselves, so that no algorithm here
            finds the nearest point, or not known to be convex.

    Example:
        The nearest point of the simplex:

        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def simplex(x):
        ...     pjax.constrain(jnp.sum(x), pjax.sets.Equal(1.0))
        ...     pjax.constrain(x, pjax.sets.NonNegative())
        >>> solution = pjax.nearest(simplex, jnp.array([1.0, 0.5, -1.0]))
        >>> [round(float(v), 3) for v in solution.x]
        [0.75, 0.25, 0.0]
    """
    solver = Dykstra() if solver is None else solver
    projected = _projected(problem, solver, max_steps, tol, "consensus", _hashable(metric))
    x, state = (x0.x, x0.state) if isinstance(x0, Solution) else (x0, projected.init(x0))
    _check_convex(projected.trace(x, *data))
    x, state, info = projected.update(x, state, *data)
    return _solution(x, state, info, tol, jnp.zeros((), jnp.int32))


def _check_convex(graph: ConsensusGraph) -> None:
    if not graph.direct or len(graph.variables) > len(graph.parameters):
        first = next((c for c in graph.constraints if c.out is not None), graph.constraints[0])
        raise InputError(
            f"nearest: {first.label} is no set of the variables themselves, so projections onto "
            "single sets do not lead to the nearest point; constrain the variables, or affine "
            "functions of them by data, to convex sets"
        )
    for c in graph.constraints:
        if not c.rule.convex:
            raise InputError(f"nearest: {c.label} is not known to be convex; `solve` finds a point")


def _hashable(metric: Any) -> Any:
    return tuple(metric.items()) if isinstance(metric, Mapping) else metric


@functools.lru_cache(maxsize=64)
def _projected(
    problem: Any, solver: Solver, steps: int, tol: float, point: str, metric: Any
) -> Projected:
    """The problem as a solver, made once, so that it is compiled once."""
    metric = dict(metric) if isinstance(metric, tuple) else metric
    options: Any = {"metric": metric, "point": point, "history": False}
    return project(problem, solver=solver, steps=steps, tol=tol, **options)


def _solution(x: Any, state: State, info: Info, tol: float, start: Array) -> Solution:
    residuals = info.residuals
    assert residuals is not None
    solved, stalled = _verdict(residuals, info.steps, info.finite, tol)
    names = tuple(f"{n} at {s}" for n, s in zip(info.names, info.sources, strict=True))
    return Solution(x, solved, stalled, info.distances, residuals, state.steps, state, start, names)


@jax.jit  # one call instead of a dozen small ones, which take longer than many a problem
def _verdict(residuals: Array, steps: Array, finite: Array, tol: float) -> tuple[Array, Array]:
    """Whether a problem is solved, and whether it is stalled."""
    solved = (residuals[steps - 1] <= tol) & finite
    early = jnp.arange(residuals.size) < steps // 2
    best = [jnp.min(jnp.where(part, residuals, jnp.inf)) for part in (early, ~early)]
    nearer = ~jnp.isfinite(best[0]) | (best[1] < 0.99 * best[0])
    return solved, ~solved & ~nearer


def _starts(x0: Any, key: Any) -> Callable[[int], Any]:
    """The start of every number."""
    if isinstance(x0, Solution):
        x0 = x0.x

    def start(number: int) -> Any:
        own = jax.random.fold_in(key, number)
        if callable(x0):
            return x0(own)
        if not number:
            return x0
        leaves, structure = jax.tree.flatten(x0)
        keys = jax.random.split(own, len(leaves))
        return structure.unflatten(map(_noisy, keys, leaves))

    return start


def _noisy(key: Any, x: Any) -> Any:
    """An array with normal noise of its own root mean square; of 1, if it is zero."""
    if not eqx.is_inexact_array_like(x):
        return x
    x = jnp.asarray(x)
    size = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x))))
    return x + jnp.where(size > 0, size, 1) * jax.random.normal(key, x.shape, x.dtype)


@functools.lru_cache(maxsize=64)
def _turns(projected: Projected, tol: float, count: int) -> Callable[..., Any]:
    """Some steps from many points at once, with the same data; slots that are new start first.

    Returns the solutions, and of each its steps, whether it is solved, and its last residual.
    """

    def turn(old: Any, fresh: Any, new: Array, number: Array, *data: Any) -> Any:
        x, state = jax.tree.map(functools.partial(jnp.where, new), fresh, old)
        x, state, info = projected.update(x, state, *data)
        solution = _solution(x, state, info, tol, number)
        return solution, (solution.steps, solution.solved, solution.residuals[info.steps - 1])

    return jax.jit(jax.vmap(turn, (0, 0, 0, 0, *(None,) * count)))


# Each is one call, where one for every array would take longer than many a problem.
_stacked = jax.jit(lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))
_taken = jax.jit(lambda trees, i: jax.tree.map(lambda x: x[i], trees))


def _first(
    projected: Projected,
    start: Callable[[int], Any],
    data: tuple[Any, ...],
    starts: int,
    slots: int,
    max_steps: int,
    tol: float,
) -> Solution:
    """The first start that leads to a solution, some of them at the same time."""
    turns, numbers = _turns(projected, tol, len(data)), np.arange(slots, dtype=np.int32)
    begun = [start(int(i)) for i in numbers]
    state = projected.init(begun[0], *data)
    points = fresh = _stacked([(x, state) for x in begun])
    following, active, new, best = slots, np.ones(slots, bool), np.zeros(slots, bool), None
    while True:
        found, summary = turns(points, fresh, new, numbers, *data)
        points = found.x, found.state
        steps, solved, last = jax.device_get(summary)
        ranks = np.where(active, np.nan_to_num(last, nan=np.inf), np.inf)
        ranks = np.where(solved & active, -1.0, ranks)
        slot = int(np.argmin(ranks))
        if best is None or ranks[slot] < best[0]:
            best = ranks[slot], _taken(found, slot)
        ended = active & ((steps >= max_steps) | ~np.isfinite(ranks))
        count = min(int(ended.sum()), starts - following)
        new = ended & (np.cumsum(ended) <= count)
        active &= ~ended | new
        if best[0] < 0 or not active.any():
            return best[1]
        if count:
            numbers[new] = following + np.arange(count, dtype=np.int32)
            following += count
            for i in np.flatnonzero(new):
                begun[i] = start(int(numbers[i]))
            fresh = _stacked([(x, state) for x in begun])
