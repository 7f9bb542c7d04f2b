"""The transform: ``pjax.project(fn)`` trains the variables of a function by projections."""

import functools
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from pjax_trace import _compat
from pjax_trace.acceleration import Acceleration, Averaging, Momentum
from pjax_trace.build import OUTPUTS, build_graph
from pjax_trace.calls import loss_p
from pjax_trace.errors import InputError, NonFiniteError, TraceError
from pjax_trace.explain import explanation
from pjax_trace.granularity import Granularity, coarsen
from pjax_trace.graph import ConsensusGraph, Constraint, Variable
from pjax_trace.lower import Copies, CopyFree, Problem, ProductCopies, Space, expand_copies
from pjax_trace.metric import Metric
from pjax_trace.signature import (
    Signature,
    check_parameters,
    is_moving,
    is_shape,
    kind_of,
    mismatch,
    shapes_of,
)
from pjax_trace.solvers import AlternatingProjections, Solver
from pjax_trace.sweep import Sweep
from pjax_trace.trace import Value, trace_program

__all__ = ["Info", "Projected", "State", "project"]


# As many kinds of calls are remembered, to know the next one of a kind at once.
_SIGNATURES = 64


class Info(eqx.Module):
    """What an update did. A pytree; ``print(info)`` shows it constraint by constraint.

    Attributes:
        gap: how far the returned consensus state is from all constraints but the losses, in the
            metric: the root of the sum of squares of ``gaps``. Of a sweep, whose only state is the
            parameters: how far the forward pass that it started from was from the sets.
        distances: the gap of every constraint, in the order of ``names``.
        loss_values: the value of every loss at the same state (of a sweep, in the same forward
            pass), in the order of ``loss_names``.
        history: the distance moved in every step, losses apart; NaN for steps not taken.
        steps: how many steps were taken.
        finite: False if something was not finite; then the parameters are those that came in.
    """

    gap: Float[Array, ""]
    distances: Float[Array, "constraints"]
    loss_values: Float[Array, "losses"]
    history: Float[Array, "steps"]
    steps: Int[Array, ""]
    finite: Bool[Array, ""]
    culprit: Int[Array, ""]
    names: tuple[str, ...] = eqx.field(static=True)
    loss_names: tuple[str, ...] = eqx.field(static=True)
    sources: tuple[str, ...] = eqx.field(static=True)
    suspects: tuple[str, ...] = eqx.field(static=True)

    @property
    def gaps(self) -> dict[str, Array]:
        """The gap of every constraint, by name."""
        return dict(zip(self.names, self.distances, strict=True))

    @property
    def losses(self) -> dict[str, Array]:
        """The value of every loss, by name."""
        return dict(zip(self.loss_names, self.loss_values, strict=True))

    def __str__(self) -> str:
        lines = [f"gap {float(self.gap):.4g} after {int(self.steps)} steps"]
        width = max(map(len, (*self.names, *self.loss_names)), default=0)
        for name, value in self.losses.items():
            lines.append(f"  loss {name:<{width}}  {float(value):.4g}")
        for (name, value), source in zip(self.gaps.items(), self.sources, strict=True):
            lines.append(f"  gap  {name:<{width}}  {float(value):.4g}  {source}")
        return "\n".join(lines)


class State(eqx.Module):
    """What lives on between updates, a pytree of arrays.

    Attributes:
        steps: how many steps were taken so far.
        updates: how many updates.
        memory: those of the accelerations.
    """

    steps: Int[Array, ""]
    updates: Int[Array, ""]
    memory: tuple[Any, ...]
    structure: Any = eqx.field(static=True)


class Projected:
    """A function turned into a solver for its variables. Made by `project`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        argnums: int | tuple[int, ...],
        solver: Solver | Sweep,
        steps: int,
        metric: Metric,
        acceleration: tuple[Acceleration, ...],
        granularity: Any,
        schedule: str,
        copies: bool,
        tol: float | None,
        donate: bool,
    ):
        functools.update_wrapper(self, fn, updated=())
        self._fn = fn
        self._argnums = argnums
        self._solver = solver
        self._steps = steps
        self._metric = metric
        self._acceleration = acceleration
        self._granularity = granularity
        self._schedule = schedule
        self._copies = copies
        self._tol = tol
        self._several = isinstance(argnums, tuple)
        self._signatures: dict[Any, Signature] = {}
        self._donate = donate
        buffers = (1, 2) if donate else ()
        self._jitted = jax.jit(self._run, static_argnums=0, donate_argnums=buffers)
        self._jitted_once = jax.jit(self._run, static_argnums=0)

    def __repr__(self) -> str:
        name = getattr(self._fn, "__name__", repr(self._fn))
        return f"project({name}, solver={self._solver}, steps={self._steps})"

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Info]:
        """One update from scratch: the arguments of the function → new parameters and info."""
        parameters = self._parameters_of(args)
        state = self.init(parameters)
        new, _, info = self._update(self._jitted_once, state, args, kwargs)
        return new, info

    def init(self, params: PyTree) -> State:
        """The state to start from.

        Raises:
            InputError: if ``params`` has no floating-point array, or integer ones outside modules.
        """
        check_parameters(params)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        leaves = [
            jnp.zeros(x.shape, x.dtype) if is_shape(x) else jnp.asarray(x)
            for x in jax.tree.leaves(self._moving(params))
        ]
        memory = tuple(a.init(leaves) for a in self._acceleration)
        return State(zero(), zero(), memory, shapes_of(params))

    def averaged(self, params: PyTree, state: State) -> PyTree:
        """The parameters with their averages in the places of the floating-point arrays.

        Args:
            params: the parameters, for what they hold beside arrays.
            state: from the last update.

        Raises:
            InputError: if there is no `Averaging` among the accelerations, or the shapes differ.
        """
        self._check_state("averaged", shapes_of(params), state)
        kept = [
            acceleration.average(memory)
            for acceleration, memory in zip(self._acceleration, state.memory, strict=True)
            if isinstance(acceleration, Averaging)
        ]
        if not kept:
            raise InputError(
                "averaged: there is no average; give pjax_trace.project the acceleration "
                "pjax_trace.Averaging()"
            )
        # Copies, where the next update gives the buffers of the state away.
        return self._combine(params, [jnp.array(x) if self._donate else x for x in kept[-1]])

    def update(self, params: PyTree, state: State, /, *args: Any, **kwargs: Any) -> tuple:
        """One update: ``params, state, info``.

        Args:
            params: the arguments that ``argnums`` names (a tuple of them if that is a tuple).
            state: from `init` or the last update.
            *args: the other arguments of the function, in order.
            **kwargs: keyword arguments of the function; always data.

        Raises:
            InputError: if the shapes of ``params`` are not those of ``state``.
            NonFiniteError: if NaN or infinity turns up (not under ``jax.jit``: there
                ``info.finite`` tells, and the parameters come back as they were).
        """
        return self._update(self._jitted, state, self._insert(params, args), kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> ConsensusGraph:
        """The consensus graph of a call, without running it."""
        signature, parameters, data = self._split(args, kwargs)
        return self._graph(signature, parameters, data)

    def explain(self, *args: Any, **kwargs: Any) -> None:
        """Print what a call compiles to, what it costs, and what is missing; nothing is run.

        The first thing to look at when something is wrong: it shows missing rules, too, instead of
        failing on them. It speaks of the steps of solvers, in which scans are lifted over time;
        what a sweep goes back through, `trace` shows.
        """
        signature, parameters, data = self._split(args, kwargs)
        names = (*signature.parameter_names, *signature.data_names)
        name = getattr(self._fn, "__name__", "the function")
        how = {"copies": self._copies, "granularity": self._granularity}
        print(explanation(self._flat(signature), parameters, data, names=names, name=name, **how))

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The update of a call, lowered by XLA but not run; ``.compile()`` goes on, as for jit."""
        signature, parameters, data = self._split(args, kwargs)
        return self._jitted.lower(signature, parameters, self.init(self._parameters_of(args)), data)

    def _check_state(self, method: str, shapes: Any, state: Any) -> None:
        if not isinstance(state, State):
            raise InputError(f"{method}: state must come from init, but is {type(state).__name__}")
        if shapes != state.structure:
            raise InputError(mismatch(method, shapes, state.structure))
        if len(state.memory) != len(self._acceleration):
            raise InputError(f"{method}: the state is that of other accelerations; start from init")

    def _places(self, params: Any) -> dict[int, Any]:
        """The parameters by position among the function's arguments, in their order."""
        if not self._several:
            return {0: params}
        return dict(sorted(zip(self._numbers(), params, strict=True), key=lambda place: place[0]))

    def _moving(self, params: Any) -> dict[int, Any]:
        """The arrays among the parameters, in the order of the function's arguments."""
        return eqx.filter(self._places(params), is_moving)

    def _combine(self, params: Any, arrays: Sequence[Array]) -> Any:
        """Parameters with other arrays."""
        moving, fixed = eqx.partition(self._places(params), is_moving)
        new = eqx.combine(jax.tree.unflatten(jax.tree.structure(moving), arrays), fixed)
        # The parameters in the order of argnums; the arrays were in that of the arguments.
        return tuple(new[n] for n in self._numbers()) if self._several else new[0]

    def _numbers(self) -> tuple[int, ...]:
        return self._argnums if isinstance(self._argnums, tuple) else (self._argnums,)

    def _parameters_of(self, args: tuple) -> Any:
        if len(args) <= max(self._numbers()):
            raise InputError(
                f"{getattr(self._fn, '__name__', 'the function')} takes its parameters as "
                f"argument {max(self._numbers())}, but was called with {len(args)} arguments"
            )
        chosen = tuple(args[i] for i in self._numbers())
        return chosen if self._several else chosen[0]

    def _insert(self, params: Any, rest: tuple) -> tuple:
        own = params if self._several else (params,)
        places = dict(zip(self._numbers(), own, strict=True))
        others = iter(rest)
        count = len(places) + len(rest)
        return tuple(places[i] if i in places else next(others) for i in range(count))

    def _split(self, args: tuple, kwargs: dict) -> tuple[Signature, list[Any], list[Any]]:
        """A call's arrays: those to solve for, and data; and what is left."""
        signature, leaves = self._sign(args, kwargs)
        return signature, *signature.arrays(leaves)

    def _sign(self, args: tuple, kwargs: dict) -> tuple[Signature, list[Any]]:
        """What is known of a call but its arrays; and its leaves."""
        leaves, structure = jax.tree.flatten((args, kwargs))
        try:
            key = structure, tuple(map(kind_of, leaves))
            signature = self._signatures.get(key)
        except TypeError as error:
            raise InputError(f"an argument that is no array must be hashable: {error}") from error
        if signature is None:
            params = self._parameters_of(args)
            signature = Signature.of(structure, key[1], self._numbers(), params, self._fn)
            if len(self._signatures) == _SIGNATURES:
                self._signatures.clear()
            self._signatures[key] = signature
        return signature, leaves

    def _flat(self, signature: Signature) -> Callable[..., list[Any]]:
        """The function, from flat lists of arrays to one."""

        def function(parameters: list[Any], data: list[Any]) -> list[Any]:
            args, kwargs = signature.rebuild(parameters, data)
            return jax.tree.leaves(eqx.filter(self._fn(*args, **kwargs), eqx.is_array))

        return function

    def _graph(
        self, signature: Signature, parameters: Sequence[Any], data: Sequence[Any]
    ) -> ConsensusGraph:
        program = trace_program(
            self._flat(signature),
            parameters,
            data,
            names=(*signature.parameter_names, *signature.data_names),
            source=getattr(self._fn, "__name__", "the function"),
            roots=OUTPUTS,
            objectives=(loss_p,),
            lift=self._schedule != "sweep",
        )
        graph = build_graph(program, coloured=self._schedule not in ("product", "sweep"))
        graph = coarsen(graph, self._granularity)
        if not any(c.out is None for c in graph.constraints):
            raise TraceError(
                f"{getattr(self._fn, '__name__', 'the function')} has no output constraint, so "
                "there is nothing to solve for: use a loss of pjax_trace.losses on what it "
                "computes, or pjax_trace.constrain"
            )
        return graph

    def _update(
        self, jitted: Any, state: Any, args: tuple, kwargs: dict
    ) -> tuple[Any, State, Info]:
        signature, leaves = self._sign(args, kwargs)
        self._check_state("update", signature.shapes, state)
        parameters, data = signature.arrays(leaves)
        moved, new_state, info = jitted(signature, parameters, state, data)
        new = self._parameters_of(signature.replace(leaves, moved)[0])
        if _compat.is_known(info.finite) and not bool(info.finite):
            culprit = info.suspects[int(info.culprit)]
            raise NonFiniteError(
                f"NaN or infinity in {culprit}. The update was dropped; the last good parameters "
                "are in this error's .params, the state in its .state. Check the data's scale, "
                "that labels and sets are valid and λ positive, or give the parameters more weight "
                "(metric)",
                params=new,
                state=new_state,
                culprit=culprit,
            )
        return new, new_state, info

    def _run(
        self, signature: Signature, parameters: list[Array], state: State, data: list[Any]
    ) -> tuple[list[Array], State, Info]:
        """One update, traced once per signature and compiled into one computation."""
        graph = self._graph(signature, parameters, data)
        start: Sequence[Array] = parameters
        for acceleration, memory in zip(self._acceleration, state.memory, strict=True):
            start = acceleration.start(memory, start)
        solve = self._sweep if isinstance(self._solver, Sweep) else self._project
        first, run, values, squared, history, steps, order = solve(graph, start, data)
        outputs = {c: i for i, c in enumerate(graph.constraints) if c.rule.family == "loss"}
        hard = [i for i, c in enumerate(graph.constraints) if c not in outputs]
        ends = values[: len(parameters)]  # Parameters come first.
        finite = _all_finite((*ends, history, squared))
        suspects, find = first.suspects(history, squared, signature, order, ends)
        env = dict(zip(graph.variables, values, strict=True))
        # The last operand of a loss is its scale.
        losses = [c.rule.apply(c.params, *run.problem.operands(c, env)[:-1]) for c in outputs]
        taken = jnp.arange(history.shape[0], dtype=steps.dtype) < steps
        moved = jnp.sqrt(jnp.sum(history[:, np.array(hard, int)], 1))
        info = Info(
            gap=jnp.sqrt(jnp.sum(squared[np.array(hard, int)])),
            distances=jnp.sqrt(squared[np.array(hard, int)]),
            loss_values=jnp.stack([jnp.mean(v) for v in losses]) if losses else jnp.zeros(0),
            history=jnp.where(taken, moved, jnp.nan),
            steps=steps,
            finite=finite,
            culprit=jax.lax.cond(finite, lambda: jnp.zeros((), jnp.int32), find),
            names=tuple(graph.constraints[i].name for i in hard),
            loss_names=tuple(c.name for c in outputs),
            sources=tuple(graph.constraints[i].source for i in hard),
            suspects=suspects,
        )
        new: Sequence[Array] = [env[p] for p in graph.parameters]
        kept = []
        for acceleration, memory in zip(self._acceleration, state.memory, strict=True):
            new, memory = acceleration.finish(memory, parameters, start, new)
            kept.append(memory)
        # An update is a transaction: all of it, or nothing.
        after = State(state.steps + steps, state.updates + 1, tuple(kept), state.structure)
        new, after = jax.tree.map(
            lambda old, x: jnp.where(finite, x.astype(old.dtype), old),
            (list(parameters), state),
            (list(new), after),
        )
        return list(new), after, info

    def _project(
        self, graph: ConsensusGraph, start: Sequence[Array], data: Sequence[Any]
    ) -> "_Outcome":
        """The steps of a solver."""
        run = _Run(graph, self._metric, start, data, self._schedule == "product")
        copy_free = run.copy_free  # made here, and not in a loop that asks for gaps first
        values, history, steps = self._iterate(run, run.copies if self._copies else copy_free)
        order = [c for group in copy_free.groups for c in group if isinstance(c, Constraint)]
        return _Outcome(run, run, values, copy_free.gaps(values), history, steps, order)

    def _sweep(
        self, graph: ConsensusGraph, start: Sequence[Array], data: Sequence[Any]
    ) -> "_Outcome":
        """Sweeps, each from a forward pass of its own, in which there is no gap but of sets."""
        assert isinstance(self._solver, Sweep)
        sweep, zero = self._solver, jnp.zeros((), jnp.result_type(float))

        def once(parameters: Sequence[Array]) -> tuple["_Run", list[Array], Array]:
            run = _Run(graph, self._metric, parameters, data)
            moves, distances = sweep.moves(graph, run.known, run.start, run.weights)
            ends = [
                x + moves[p].astype(x.dtype) if p in moves else x
                for p, x in zip(graph.parameters, parameters, strict=True)
            ]
            moved = [distances.get(c, zero).astype(zero.dtype) for c in graph.constraints]
            return run, ends, jnp.stack(moved)

        def another(parameters: list[Array], _: None) -> tuple[list[Array], Array]:
            return once(parameters)[1:]

        before, history = list(start), []
        if self._steps > 1:
            before, earlier = jax.lax.scan(another, before, length=self._steps - 1)
            history.append(earlier)
        run, ends, moved = once(before)
        history.append(moved[None])
        first = _Run(graph, self._metric, start, data) if self._steps > 1 else run
        values = (*ends, *run.values[len(ends) :])
        sets = np.array([c.out is None for c in graph.constraints])
        squared = jnp.where(sets, moved, 0)
        steps, order = jnp.asarray(self._steps, jnp.int32), graph.constraints[::-1]
        return _Outcome(first, run, values, squared, jnp.concatenate(history), steps, order)

    def _iterate(self, run: "_Run", space: Space) -> tuple[Any, Array, Array]:
        """All steps: the values at the end, squared distances by step, and the number of steps."""
        solver = self._solver
        assert isinstance(solver, Solver)
        carry = solver.init(space, run.values)
        tol = self._tol
        if tol is None:
            carry, history = jax.lax.scan(
                lambda carry, _: solver.step(space, carry), carry, None, length=self._steps
            )
            return solver.values(space, carry), history, jnp.asarray(self._steps, jnp.int32)
        hard = np.array([c.rule.family != "loss" for c in run.graph.constraints])
        history = jnp.zeros((self._steps, len(hard)), jnp.result_type(float))

        def unfinished(loop: Any) -> Array:
            _, carry, history, k = loop
            values = solver.values(space, carry)
            gap = jnp.sqrt(jnp.sum(run.copy_free.gaps(values), where=hard))
            last = history[jnp.maximum(k - 1, 0)]
            return (k < self._steps) & ((gap > tol) | (k == 0)) & jnp.all(jnp.isfinite(last))

        def body(loop: Any) -> Any:
            go, carry, history, k = loop
            carry, distances = solver.step(space, carry)
            return go, carry, history.at[k].set(distances), k + 1

        loop = (None, carry, history, jnp.zeros((), jnp.int32))
        _, carry, history, steps = jax.lax.while_loop(unfinished, body, loop)
        return solver.values(space, carry), history, steps


class _Outcome(NamedTuple):
    """What an update came to: values at the end, squared gaps there, and distances by step.

    ``first`` is the forward pass that it started from, ``run`` the last one that it made.
    """

    first: "_Run"
    run: "_Run"
    values: Any
    squared: Array
    history: Array
    steps: Array
    order: Sequence[Constraint]


class _Run:
    """One traced update: the forward pass, and the problem it starts from."""

    def __init__(
        self,
        graph: ConsensusGraph,
        metric: Metric,
        parameters: Sequence[Array],
        data: Sequence[Any],
        product: bool = False,
    ):
        self.product = product
        env = graph.program.evaluate(parameters, data)
        known: dict[Value, Any] = {**env, **graph.objective.evaluate_scales(env)}
        self.graph, self.data, self.parameters = graph, data, parameters
        # An identity that was inserted has the value of what it repeats.
        self.start: dict[Variable, Array] = {
            v: known[(v.repeats or v).value] for v in graph.variables
        }
        self.known = known
        self.weights: Mapping[Variable, Any] = metric.at(graph, self.start)
        self.factors = {c.name: factor for c, factor in metric.factors(graph).items()}
        self.values = tuple(self.start[v] for v in graph.variables)

    @functools.cached_property
    def problem(self) -> Problem:
        """The graph with its data and metric."""
        return self._problem(self.graph)

    @functools.cached_property
    def copy_free(self) -> CopyFree:
        """The lowering without copies."""
        return CopyFree(self.problem)

    @functools.cached_property
    def copies(self) -> Copies:
        """The lowering with explicit copies."""
        problem = self._problem(expand_copies(self.graph))
        return ProductCopies(problem) if self.product else Copies(problem)

    def _problem(self, graph: ConsensusGraph) -> Problem:
        weights = self.weights, self.product, self.factors
        return Problem(graph, self.known, self.start, *weights)

    def suspects(
        self,
        history: Array,
        squared: Array,
        signature: Signature,
        order: Sequence[Constraint],
        ends: Sequence[Array],
    ) -> tuple[tuple[str, ...], Callable[[], Array]]:
        """What may turn out not to be finite, the likeliest cause first, and which one it was."""
        graph = self.graph
        arrays = [
            (f"parameter {n}", x)
            for n, x in zip(signature.parameter_names, self.parameters, strict=True)
        ]
        arrays += [
            (f"data argument {n}", x)
            for n, x in zip(signature.data_names, self.data, strict=True)
            if jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        arrays += [
            (f"the forward pass of {c.label}", self.start[c.out])
            for c in graph.constraints
            if c.out is not None
        ]
        updates = [
            (f"the update of {n}", x) for n, x in zip(signature.parameter_names, ends, strict=True)
        ]
        names = [name for name, _ in (*arrays, *updates)]
        names[len(arrays) : len(arrays)] = [f"the projection onto {c.label}" for c in order]
        number = {c: i for i, c in enumerate(graph.constraints)}
        places = np.array([number[c] for c in order], int)

        def find() -> Array:
            # The first step that went wrong, and in it the constraint that was projected first.
            bad = ~jnp.isfinite(jnp.concatenate([history, squared[None]]))
            early = bad[jnp.argmax(jnp.any(bad, 1))][places]
            before, after = (
                [jnp.logical_not(_all_finite((x,))) for _, x in group]
                for group in (arrays, updates)
            )
            flags = jnp.concatenate([jnp.stack(before), early, jnp.stack(after)])
            return jnp.argmax(flags).astype(jnp.int32)

        return tuple(names), find


def project(
    fn: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    solver: Solver | Sweep | None = None,
    steps: int | None = None,
    metric: Metric | Mapping[str, float] | None = None,
    acceleration: Acceleration | Sequence[Acceleration] | None = None,
    granularity: Granularity | Mapping[str, Granularity] | None = None,
    schedule: str | None = None,
    copies: bool | None = None,
    tol: float | None = None,
    donate: bool = False,
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
        acceleration: what happens to parameters between updates, in this order; its memory is in
            the state. Default: none, and for a sweep ``Momentum(0.9)`` and ``Averaging(0.98)``.
        granularity: what is one constraint of a sum or product: ``"row"``, every scalar equation
            (the default), ``"block"``, the whole operation, or a `Block`; or a mapping of the names
            of constraints to those, the last that matches counting. A sweep has its own blocks.
        schedule: which constraints are projected together. ``"parallel"``: all of one colour, then
            all of the other. ``"product"``: all, then all copies agree (divide and concur).
            ``"cyclic"``: one after the other, as cyclic solvers do. ``"sweep"``: targets go back
            from the outputs, as in a `Sweep`. Default: what the solver is for.
        copies: whether to keep an explicit copy of every operand for each scalar equation. Default:
            what the solver needs; alternating projections need none.
        tol: stop early once the gap is at most this. Costs a projection per step.
        donate: whether ``update`` gives the buffers of parameters and state to their successors,
            which saves memory. The old ones are then gone, but those that a failed update leaves
            are in its error.

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
    if not isinstance(solver, (Solver, Sweep)):
        raise InputError(
            f"project: solver must be a value such as pjax.DouglasRachford(), not {solver!r}"
        )
    if schedule not in (None, *solver.schedules):
        raise InputError(
            f"project: {type(solver).__name__} has no schedule {schedule!r}, but "
            + " and ".join(map(repr, solver.schedules))
        )
    schedule = solver.schedules[0] if schedule is None else schedule
    if isinstance(solver, Sweep) and granularity is not None:
        raise InputError("project: a Sweep has its own blocks, so no granularity")
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
    if isinstance(solver, Sweep) and (
        metric.per != "copy" or metric.constraints or metric.relative
    ):
        raise InputError(
            "project: a Sweep goes by rows and by sizes itself and has no copies, so no relative "
            "weights, and none per parameter or of constraints, in its metric"
        )
    if copies not in (None, True, False):
        raise InputError(f"project: copies must be True, False or None, not {copies!r}")
    copies = solver.needs_copies if copies is None else bool(copies)
    if solver.needs_copies and not copies:
        raise InputError(
            f"project: {type(solver).__name__} needs copies; its iterates leave the set in which "
            "copies agree. Only AlternatingProjections runs without"
        )
    if isinstance(solver, Sweep) and (copies or tol is not None):
        raise InputError("project: a Sweep has no copies and no gap, so no copies and no tol")
    if acceleration is None:
        acceleration = (Momentum(), Averaging()) if isinstance(solver, Sweep) else ()
    single = not isinstance(acceleration, Sequence)
    accelerations = (acceleration,) if single else acceleration
    for value in accelerations:
        if not isinstance(value, Acceleration):
            raise InputError(
                f"project: acceleration must be values such as pjax.Momentum(), not {value!r}"
            )
    return Projected(
        fn,
        argnums,
        solver,
        steps,
        metric,
        tuple(accelerations),
        granularity or "row",
        schedule,
        copies,
        tol,
        donate,
    )


def _all_finite(arrays: Sequence[Array]) -> Bool[Array, ""]:
    """Whether all elements are; 0 times one that is not is NaN, which no sum forgets."""
    totals = [jnp.sum(x * 0).astype(jnp.float32) for x in arrays]
    return functools.reduce(jnp.add, totals) == 0
