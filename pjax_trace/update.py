"""One update: the steps of a solver, accelerations around them, and all of it or nothing."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from pjax_trace.acceleration import Acceleration
from pjax_trace.governing import Governing, alike
from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.info import Auxiliary, Info, State
from pjax_trace.metric import Metric
from pjax_trace.problem import Problem, Values
from pjax_trace.signature import Signature
from pjax_trace.solver import Ending, Solver
from pjax_trace.space import Space
from pjax_trace.spaces import space_of
from pjax_trace.steps import Run, run_steps
from pjax_trace.sums import inner

__all__ = ["Plan", "find_culprit", "one_step", "run_update"]


class Plan(NamedTuple):
    """How an update is made, whatever the function.

    Attributes:
        solver: the iteration.
        steps: how many it makes.
        metric: that it projects in.
        acceleration: what happens to parameters between updates, in turn.
        product: whether the schedule is that of the product space.
        copies: whether copies are explicit, where there is any use for copies.
        spread: whether there are copies in any case.
        explicit: whether every scalar equation keeps all of its copies.
        tol: the residual at which to stop; None to make all steps.
        point: which point is returned: "consensus", "sets" or "mean".
        history: whether the report has what every step moved, where there is a tolerance.
    """

    solver: Solver
    steps: int
    metric: Metric
    acceleration: tuple[Acceleration, ...]
    product: bool
    copies: bool
    spread: bool
    explicit: bool
    tol: float | None
    point: str
    history: bool

    def space(self, problem: Problem) -> Space:
        """What the solver iterates in."""
        return space_of(problem, copies=self.copies, explicit=self.explicit)

    @property
    def may_go_on(self) -> bool:
        """Whether updates may go on from the last point of the solver, if there are no losses."""
        return self.solver.gaps and not self.acceleration


def run_update(
    plan: Plan,
    graph: ConsensusGraph,
    signature: Signature,
    aux: Auxiliary | None,
    parameters: Sequence[Array],
    state: State,
    data: Sequence[Any],
) -> tuple[list[Array], State, Info]:
    """New parameters and state, and what was done; the old ones if anything is not finite."""
    solver = plan.solver
    base, start, space, run, ending = _solved(plan, graph, parameters, state, data)
    history, steps = run.history, run.steps
    ends, problem = list(ending.parameters), space.original
    recorded = history if plan.history or run.residuals is None else run.residuals
    finite = _all_finite((*ends, recorded, ending.gaps, problem.losses))
    suspects = _suspects(space, signature)
    info = _info(problem, aux, solver, ending, run, finite, suspects)
    new: Sequence[Array] = ends
    kept = []
    for acceleration, memory in zip(plan.acceleration, state.memory, strict=True):
        if acceleration.observes:
            _, memory = acceleration.finish(memory, base, start, solver.settled(space, new))
        else:
            new, memory = acceleration.finish(memory, base, start, new)
        kept.append(memory)
    given = solver.settled(space, new)
    latent = tuple(new) if solver.keeps_latent(graph) else ()
    # An update is a transaction: all of it, or nothing.
    goes_on = plan.may_go_on and not graph.losses  # with them, every batch is another problem
    point = (Governing.of(run.carry, given, data),) if goes_on else ()
    before = dataclasses.replace(
        state,
        latent=tuple(base) if latent else (),
        point=state.point if alike(state.point, point) else tuple(p.nowhere() for p in point),
    )
    after = dataclasses.replace(
        state,
        steps=state.steps + steps,
        updates=state.updates + 1,
        memory=tuple(kept),
        latent=latent,
        point=point,
    )
    given, after = jax.tree.map(
        lambda old, x: jnp.where(finite, x.astype(old.dtype), old),
        (list(parameters), before),
        (list(given), after),
    )
    return list(given), after, info


def one_step(
    plan: Plan, graph: ConsensusGraph, parameters: Sequence[Array], data: Sequence[Any]
) -> tuple[Any, Array]:
    """A step of the solver from these parameters."""
    problem = Problem.forward(graph, plan.metric, parameters, data)
    space = plan.space(problem)
    return plan.solver.step(space, plan.solver.init(space, problem.values))


def find_culprit(
    plan: Plan,
    graph: ConsensusGraph,
    signature: Signature,
    parameters: Sequence[Array],
    state: State,
    data: Sequence[Any],
) -> Array:
    """The number of the suspect that was not finite in an update that was dropped."""
    plan = plan._replace(history=True)
    _, start, space, run, ending = _solved(plan, graph, parameters, state, data)
    problem = space.original
    before = [*start, *(x for _, x in _floating(signature, problem.inputs))]
    before += [problem.start[c.out] for c in graph.constraints if c.out is not None]
    before += [*problem.losses]
    # The first step that went wrong, and in it the constraint that was projected first.
    bad = ~jnp.isfinite(jnp.concatenate([run.history, ending.gaps[None]]))
    early = bad[jnp.argmax(jnp.any(bad, 1))][np.array(_order(space), int)]
    flags = [
        jnp.array([~_all_finite((x,)) for x in arrays]) for arrays in (before, ending.parameters)
    ]
    return jnp.argmax(jnp.concatenate([flags[0], early, flags[1]])).astype(jnp.int32)


def _solved(
    plan: Plan,
    graph: ConsensusGraph,
    parameters: Sequence[Array],
    state: State,
    data: Sequence[Any],
) -> tuple[Sequence[Array], Sequence[Array], Space, Run, Ending]:
    """The last end and the start of an update, what was solved, and how it went."""
    base = _latent(plan, graph, parameters, state, data)
    start: Sequence[Array] = base
    for acceleration, memory in zip(plan.acceleration, state.memory, strict=True):
        start = acceleration.start(memory, start)
    problem = Problem.forward(graph, plan.metric, start, data, plan.product)
    space = plan.space(problem)
    if plan.solver.gaps:
        space.problem.prepare()
        problem.prepare()
    solver = plan.solver
    carry = solver.init(space, space.original.values)
    for point in state.point:
        if alike(point.carry, carry):
            carry = point.resumed(carry, parameters, data)
    run = run_steps(solver, space, carry, plan.steps, plan.tol, plan.history)
    if plan.point != "consensus":
        values = _read(plan.point, space, solver.values(space, run.carry))
        ending = Ending(values[: len(graph.parameters)], problem.gaps(values))
    elif run.gaps is None:
        ending = solver.ending(space, run.carry)
    else:
        ending = Ending(solver.values(space, run.carry)[: len(graph.parameters)], run.gaps)
    return base, start, space, run, ending


def _read(point: str, space: Space, shadow: Values) -> Values:
    """The point of the second group of constraints that is nearest to a shadow, or their mean."""
    on_sets = space.collapse(space.project(space.expand(shadow), space.groups[1])[0])
    if point == "sets":
        return on_sets
    return jax.tree.map(lambda x, y: (x + y) / 2, shadow, on_sets)


def _latent(
    plan: Plan,
    graph: ConsensusGraph,
    parameters: Sequence[Array],
    state: State,
    data: Sequence[Any],
) -> Sequence[Array]:
    """Where the last update ended, if what was given out of it is what comes in again."""
    if not state.latent:
        return parameters
    problem = Problem.forward(graph, plan.metric, state.latent, data, plan.product)
    settled = plan.solver.settled(plan.space(problem), state.latent)
    return [
        jnp.where(jnp.all(x == s), z, x)
        for x, s, z in zip(parameters, settled, state.latent, strict=True)
    ]


def _info(
    problem: Problem,
    aux: Auxiliary | None,
    solver: Solver,
    ending: Any,
    run: Run,
    finite: Array,
    suspects: tuple[str, ...],
) -> Info:
    """What there is to say of an update."""
    history, steps = run.history, run.steps
    graph = problem.graph
    constraints, hard = graph.constraints, np.flatnonzero(graph.hard)
    # A forward pass has gaps of sets only.
    having = [i for i in hard if solver.gaps or constraints[i].out is None]
    moving = [
        i
        for i in hard
        if solver.gaps or any(b.parameter for _, v in constraints[i].reads for b in v.bases)
    ]
    moved = jnp.sqrt(jnp.sum(history[:, hard], 1))
    last = history[jnp.maximum(steps - 1, 0)]
    gaps = ending.gaps[np.array(having, int)]
    return Info(
        gap=jnp.sqrt(jnp.sum(gaps)),
        distances=jnp.sqrt(gaps),
        loss_values=problem.losses,
        moved=jnp.sqrt(last[np.array(moving, int)]),
        history=_taken(moved, steps),
        residuals=None if run.residuals is None else _taken(run.residuals**0.5, steps),
        steps=steps,
        finite=finite,
        aux_arrays=tuple(_as_returned(problem.auxiliary, aux)),
        auxiliary=aux,
        names=tuple(constraints[i].name for i in having),
        loss_names=tuple(c.name for c in graph.losses),
        moved_names=tuple(constraints[i].name for i in moving),
        sources=tuple(constraints[i].source for i in having),
        suspects=suspects,
    )


def _taken(by_step: Array, steps: Array) -> Array:
    """What the steps that were taken say; NaN for others."""
    return jnp.where(jnp.arange(by_step.shape[0], dtype=steps.dtype) < steps, by_step, jnp.nan)


def _as_returned(arrays: Sequence[Array], aux: Auxiliary | None) -> list[Array]:
    """Auxiliary outputs in the types that the function gave them.

    Booleans of variables are relaxed to reals in a traced program, complex numbers are pairs.
    """
    shapes = [] if aux is None else aux.shapes[1:]

    def back(x: Array, dtype: Any) -> Array:
        if x.dtype == dtype:
            return jnp.asarray(x)
        if jnp.issubdtype(dtype, jnp.bool_):
            return x > 0.5
        return jax.lax.complex(x[0], x[1]) if jnp.issubdtype(dtype, jnp.complexfloating) else x

    return [back(x, s.dtype) for x, s in zip(arrays, shapes, strict=True)]


def _suspects(space: Space, signature: Signature) -> tuple[str, ...]:
    """What may turn out not to be finite, the likeliest cause first."""
    problem, graph = space.original, space.original.graph
    names = [f"parameter {n}" for n in signature.parameter_names]
    names += [f"data argument {n}" for n, _ in _floating(signature, problem.inputs)]
    names += [f"the forward pass of {c.label}" for c in graph.constraints if c.out is not None]
    names += [c.label for c in graph.losses]
    names += [f"the projection onto {graph.constraints[i].label}" for i in _order(space)]
    return (*names, *(f"the update of {n}" for n in signature.parameter_names))


def _floating(signature: Signature, inputs: Sequence[Any]) -> list[tuple[str, Array]]:
    """The data that may not be finite."""
    named = zip(signature.data_names, inputs, strict=True)
    return [(n, x) for n, x in named if jnp.issubdtype(x.dtype, jnp.inexact)]


def _order(space: Space) -> list[int]:
    """The numbers of the constraints, in the order in which they are projected."""
    number = {c.name: i for i, c in enumerate(space.original.graph.constraints)}
    return [number[c.name] for group in space.groups for c in group if isinstance(c, Constraint)]


def _all_finite(arrays: Sequence[Array]) -> Bool[Array, ""]:
    """Whether all elements are; 0 times one that is not is NaN, which no sum forgets."""
    totals = [inner(jnp.real(x * 0), jnp.real(x)).astype(jnp.float32) for x in arrays]
    return jnp.all(jnp.stack(totals) == 0)
