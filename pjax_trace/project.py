"""The transform: ``pjax.project(fn)`` trains the variables of a function by projections."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from pjax_trace.acceleration import acceleration_of
from pjax_trace.errors import InputError
from pjax_trace.granularity import Granularity
from pjax_trace.metric import Metric
from pjax_trace.projected import Projected
from pjax_trace.solver import Solver
from pjax_trace.solvers import AlternatingProjections
from pjax_trace.sweep import Sweep
from pjax_trace.update import Plan

__all__ = ["project"]


def project(
    fn: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    metric: Metric | Mapping[str, float] | None = None,
    acceleration: Any = None,
    granularity: Granularity | Mapping[str, Granularity] | None = None,
    schedule: str | None = None,
    copies: bool | None = None,
    tol: float | None = None,
    point: str = "consensus",
    history: bool = True,
    donate: bool = False,
    has_aux: bool = False,
    trainable: Any = None,
) -> Projected:
    """Solve for the variables of a function by projections, as ``jax.grad`` differentiates by them.

    The function is ordinary JAX code. Every operation in it becomes a constraint set, its output
    constraints (losses, `constrain`) too, and the solver looks for one point in all of them.

    By default an update is one `Sweep` with momentum between updates and an average of the
    parameters, which `Projected.averaged` gives out: what learns best from batches. The classical
    iterations are subclasses of `Solver`.

    Args:
        fn: computes losses of `pjax_trace.losses` or calls `constrain`. What it makes of losses
            and returns is the objective: positive multiples, means and sums of them. It may
            return anything else beside.
        argnums: which arguments to solve for; their floating-point arrays are the parameters.
        solver: the iteration, or a `Sweep`. Default: a sweep; where something is asked for that it
            has not (a granularity, another schedule, copies, a tolerance), it is
            ``AlternatingProjections(momentum=0.9)``.
        steps: how many iterations an update makes; default 50, and 1 for a sweep.
        metric: a `Metric`, or a mapping of paths to weights; default: every weight 1.
        acceleration: what happens to parameters between updates, in this order: values such as
            `Momentum`, and transformations of Optax; their memory is in the state. Default: none,
            and for a sweep ``Momentum(0.9)`` and ``Averaging(0.98)``.
        granularity: what is one constraint of a sum or product: ``"row"``, every scalar equation
            (the default), ``"block"``, the whole operation, or a `Block`; or a mapping of the names
            of constraints to those, the last that matches counting. A sweep has its own blocks.
        schedule: which constraints are projected together. ``"parallel"``: all of one colour, then
            all of the other. ``"product"``: all, then all copies agree (divide and concur).
            ``"cyclic"``: one after the other, as cyclic solvers do. ``"sweep"``: targets go back
            from the outputs, as in a `Sweep`. Default: what the solver is for.
        copies: whether to keep an explicit copy of every operand for each scalar equation. Default:
            what the solver needs; alternating projections need none, and no solver needs any where
            two sets of the variables themselves say all. Of what only data multiply, such as the
            weights of a first layer, the copies are kept as one array and a number per equation.
            With True or False every equation is a constraint of its own.
        tol: stop early once the residual of a step is at most this: how far from a solution the
            step found itself, such as the distance of a point of one group of sets from one of the
            other. The gap at the end is about as large, or smaller.
        point: which point is returned: the shadow of the iterate, ``"consensus"``; its projection
            onto the second group of constraints, ``"sets"``; or their ``"mean"``.
        history: with a ``tol``, whether ``info`` has the distances that every step moved. They are
            much of the work of a step if a problem is small. Without a ``tol`` it always has.
        donate: whether ``update`` gives the buffers of parameters and state to their successors,
            which saves memory. The old ones are then gone, but those that a failed update leaves
            are in its error.
        has_aux: whether the function returns a pair, the objective and anything else, which is then
            in ``info.aux``.
        trainable: which of the parameters' floating-point arrays move; the others stay as they
            are. A function of a path (such as ``"model.layers[0].weight"``) and a
            `jax.ShapeDtypeStruct`, or a tree of booleans of which the parameters are a refinement.
            Default: all. Of a Flax NNX module only what is an ``nnx.Param`` can move, and nothing
            of an ``equinox.nn.State``.

    Returns:
        A `Projected`: call it as ``params, info = projected(params, *args)``, or keep state with
        ``init`` and ``update``.

    Raises:
        InputError: for arguments out of range.
        MissingRuleError, TraceError: when called, for functions that cannot be compiled.

    Example:
        Training, batch by batch:

        >>> import jax, jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def fit(w, x, y):
        ...     return pjax.losses.squared_error(jnp.tanh(x @ w), y)
        >>> x = jax.random.normal(jax.random.key(0), (64, 3))
        >>> y, w = jnp.tanh(x @ jnp.ones((3, 1))), jnp.zeros((3, 1))
        >>> train = pjax.project(fit)
        >>> state = train.init(w)
        >>> for _ in range(300):
        ...     w, state, info = train.update(w, state, x, y)
        >>> bool(fit(w, x, y) < 0.01 * fit(jnp.zeros((3, 1)), x, y))
        True

        A feasibility problem, by a classical iteration:

        >>> def both(p):
        ...     pjax.constrain(p, pjax.sets.Ball(1.0))
        ...     pjax.constrain(p[0] + p[1], pjax.sets.Equal(1.2))
        >>> solve = pjax.project(both, solver=pjax.DouglasRachford(), steps=200)
        >>> p, info = solve(jnp.array([3.0, -2.0]))
        >>> bool(info.gap < 1e-3), bool(jnp.abs(jnp.sum(p) - 1.2) < 1e-3)
        (True, True)
    """
    if not callable(fn):
        raise InputError(f"project takes a function, not {fn!r}")
    if schedule not in (None, "parallel", "product", "cyclic", "sweep"):
        raise InputError(
            "project: schedule must be 'parallel', 'product', 'cyclic' or 'sweep', not "
            f"{schedule!r}"
        )
    if solver is None:
        classical = granularity is not None or copies or tol is not None
        swept = schedule == "sweep" or (schedule is None and not classical)
        solver = Sweep() if swept else AlternatingProjections(momentum=0.9)
    if not isinstance(solver, Solver):
        raise InputError(
            f"project: solver must be a value such as pjax.DouglasRachford(), not {solver!r}"
        )
    if schedule not in (None, *solver.schedules):
        raise InputError(
            f"project: {type(solver).__name__} has no schedule {schedule!r}, but "
            + " and ".join(map(repr, solver.schedules))
        )
    schedule = solver.schedules[0] if schedule is None else schedule
    steps = solver.default_steps if steps is None else steps
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not numbers or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
        raise InputError(f"project: argnums must be non-negative integers, not {argnums!r}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"project: argnums must be different from each other, not {argnums!r}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"project: steps must be a positive integer, not {steps!r}")
    if tol is not None and not (isinstance(tol, Real) and tol >= 0):
        raise InputError(f"project: tol must be a number that is not negative, not {tol!r}")
    if metric is None:
        metric = Metric()
    elif isinstance(metric, Mapping):
        metric = Metric(paths=metric)
    elif not isinstance(metric, Metric):
        raise InputError(f"project: metric must be a pjax.Metric, not {metric!r}")
    asked = {
        "granularity": granularity is not None,
        "copies": bool(copies),
        "tol": tol is not None,
        "metric": metric.per != "copy" or bool(metric.constraints) or metric.relative,
    }
    for option, why in solver.lacks.items():
        if asked[option]:
            raise InputError(f"project: a {type(solver).__name__} {why}")
    if point not in ("consensus", "sets", "mean"):
        raise InputError(f"project: point must be 'consensus', 'sets' or 'mean', not {point!r}")
    if copies not in (None, True, False):
        raise InputError(f"project: copies must be True, False or None, not {copies!r}")
    spread = copies is not None or bool(metric.constraints)  # which weigh a constraint's copies
    explicit, copies = copies is True, solver.needs_copies if copies is None else bool(copies)
    if solver.needs_copies and not copies:
        raise InputError(
            f"project: {type(solver).__name__} needs copies; its iterates leave the set in which "
            "copies agree. Only AlternatingProjections runs without"
        )
    if acceleration is None:
        acceleration = solver.default_acceleration
    single = hasattr(acceleration, "update") or not isinstance(acceleration, Sequence)
    accelerations = tuple(map(acceleration_of, (acceleration,) if single else acceleration))
    product = schedule == "product"
    lowering = (product, copies, spread, explicit)
    plan = Plan(solver, steps, metric, accelerations, *lowering, tol, point, history)
    return Projected(fn, argnums, plan, granularity or "row", schedule, donate, has_aux, trainable)
