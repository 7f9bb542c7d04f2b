"""A function turned into a solver for its variables: calls, states, and what to print of both."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from pjax_trace import _compat
from pjax_trace.acceleration import Averaging
from pjax_trace.build import build_graph
from pjax_trace.errors import (
    InputError,
    Interrupted,
    NonFiniteError,
    TraceError,
    interrupts_wait,
)
from pjax_trace.explain import explanation
from pjax_trace.granularity import coarsen
from pjax_trace.graph import ConsensusGraph
from pjax_trace.info import Auxiliary, Info, State, check_state, parted
from pjax_trace.pairs import as_complex, as_pair, is_complex
from pjax_trace.problem import Problem
from pjax_trace.signature import (
    Numbers,
    Signature,
    check_alive,
    needs_more,
    parameters_in,
    remember,
    shapes_of,
    strong,
)
from pjax_trace.spaces import space_of
from pjax_trace.trace import trace_program
from pjax_trace.trainable import Leaf, closed, is_shape, opened
from pjax_trace.update import Plan, find_culprit, resumable, run_update

__all__ = ["Projected"]


class Projected:
    """A function turned into a solver for its variables. Made by `project`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        argnums: int | tuple[int, ...],
        plan: Plan,
        granularity: Any,
        schedule: str,
        donate: bool,
        has_aux: bool = False,
        trainable: Any = None,
    ):
        functools.update_wrapper(self, fn, updated=())
        self._fn = fn
        self._name = getattr(fn, "__name__", "the function")
        self._argnums = argnums
        self._plan = plan
        self._granularity = granularity
        self._schedule = schedule
        self._several = isinstance(argnums, tuple)
        self._trainable = trainable
        self._numbers_seen = Numbers()
        self._signatures: dict[Any, Signature] = {}
        self._structures: dict[Any, Any] = {}
        self._donate = donate
        self._has_aux = has_aux
        self._jitted = jax.jit(self._run, static_argnums=0, donate_argnums=(1, 2) if donate else ())
        self._jitted_once = jax.jit(self._run, static_argnums=0)
        self._culprit = jax.jit(functools.partial(self._run, run=find_culprit), static_argnums=0)
        self._placed = jax.jit(functools.partial(self._run, run=resumable), static_argnums=0)

    def __repr__(self) -> str:
        return f"project({self._name}, solver={self._plan.solver}, steps={self._plan.steps})"

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Info]:
        """One update from scratch: the arguments of the function → new parameters and info."""
        parameters = self._parameters_of(args)
        state = self.init(parameters)
        new, _, info = self._update(self._jitted_once, state, args, kwargs)
        return new, info

    def init(self, params: PyTree, /, *args: Any, **kwargs: Any) -> State:
        """The state to start from.

        Args:
            params: the parameters.
            *args: the other arguments of the first update, which need not be given. With them the
                state has a place for all that is in a `State`, which `jax.lax.scan` demands.
            **kwargs: its keyword arguments.

        Raises:
            InputError: if ``params`` has no floating-point array that may move.
        """
        found = self._leaves(params)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        leaves = [
            as_pair(jnp.zeros(x.shape, x.dtype) if is_shape(x) else strong(x))
            for those in found.values()
            for _, x, why in those
            if not why
        ]
        memory = tuple(a.init(leaves) for a in self._plan.acceleration)
        state = State(zero(), zero(), memory, (), (), self._structure(shapes_of(found)))
        if not args and not kwargs and needs_more(self._fn, self._argnums):
            return state
        signature, parameters, data = self._split(self._insert(params, args), kwargs)
        placed = self._placed.eval_shape(signature, parameters, state, data)  # traced once
        state = dataclasses.replace(state, latent=tuple(leaves) if placed.latent else ())
        return self._resumable(signature, parameters, data, state)

    def averaged(self, params: PyTree, state: State) -> PyTree:
        """The parameters with their averages in the places of the floating-point arrays.

        Args:
            params: the parameters, for what they hold beside arrays.
            state: from the last update.

        Raises:
            InputError: if there is no `Averaging` among the accelerations, or the shapes differ.
        """
        self._check_state("averaged", shapes_of(self._leaves(params)), state)
        kept = [
            acceleration.average(memory)
            for acceleration, memory in zip(self._plan.acceleration, state.memory, strict=True)
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
        args = self._insert(params, args)
        return self._update(self._jitted, state, args, kwargs, goes_on=True)

    def trace(self, *args: Any, **kwargs: Any) -> ConsensusGraph:
        """The consensus graph of a call, without running it."""
        signature, parameters, data = self._split(args, kwargs)
        return self._graph(signature, parameters, data)

    def arrays(self, *args: Any, **kwargs: Any) -> tuple[list[Any], list[Any]]:
        """The arrays of a call as flat lists: those to solve for, as in the graph, and data."""
        _, parameters, data = self._split(args, kwargs)
        return parameters, data

    def explain(self, *args: Any, **kwargs: Any) -> None:
        """Print what a call compiles to, what it costs, and what is missing; nothing is run.

        The first thing to look at when something is wrong: it shows missing rules, too, instead of
        failing on them. It is the graph of the solver that runs: of a classical one the steps, in
        which scans are lifted over time, of a sweep the way back.
        """
        signature, parameters, data = self._split(args, kwargs)
        names = (*signature.parameter_names, *signature.data_names)
        plan = self._plan

        def step(graph: ConsensusGraph, parameters: list[Any], data: list[Any]) -> Any:
            problem = Problem.forward(graph, plan.metric, parameters, data)
            space = space_of(problem, copies=plan.copies)
            return plan.solver.step(space, plan.solver.init(space, problem.values))

        print(
            explanation(
                self._flat(signature),
                parameters,
                data,
                names=names,
                name=self._name,
                copies=plan.copies,
                granularity=self._granularity,
                schedule=self._schedule,
                step=None if plan.solver.gaps else step,
                has_aux=self._has_aux,
                spread=plan.spread,
            )
        )

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The update of a call, lowered by XLA but not run; ``.compile()`` goes on, as for jit."""
        signature, leaves = self._sign(args, kwargs)
        parameters, data = signature.arrays(leaves)
        return self._jitted.lower(signature, parameters, self.init(self._parameters_of(args)), data)

    def _structure(self, shapes: Any) -> Any:
        """What a state must have in common with parameters and accelerations."""
        found = self._structures.get(shapes)
        if found is None:
            accelerations = self._plan.acceleration
            arrays = [as_pair(jax.ShapeDtypeStruct(shape, dtype)) for _, shape, dtype in shapes]
            memory = jax.eval_shape(lambda xs: [a.init(xs) for a in accelerations], arrays)
            leaves, tree = jax.tree.flatten(memory)
            names = tuple(type(a).__name__ for a in accelerations)
            found = shapes, names, (str(tree), *(x.shape for x in leaves))
            remember(self._structures, shapes, found)
        return found

    def _check_state(self, method: str, shapes: Any, state: Any) -> None:
        check_state(method, state, self._structure(shapes))

    def _places(self, params: Any) -> dict[int, Any]:
        """The parameters by position among the function's arguments, in their order."""
        params = params if self._several else (params,)
        return dict(sorted(zip(self._numbers(), params, strict=True), key=lambda place: place[0]))

    def _leaves(self, params: Any) -> dict[int, list[Leaf]]:
        """What the arguments with parameters hold, by their numbers."""
        said = self._trainable
        by_place = self._several and isinstance(said, tuple)
        trainable = self._places(said) if by_place else dict.fromkeys(self._numbers(), said)
        return parameters_in(self._places(params), self._fn, trainable)

    def _combine(self, params: Any, arrays: Sequence[Array]) -> Any:
        """Parameters with other arrays."""
        leaves = [leaf for those in self._leaves(params).values() for leaf in those]
        own = iter(arrays)

        def moved(old: Any) -> Any:
            new = next(own)
            return as_complex(new) if is_complex(old) else new

        structure = jax.tree.structure(opened(self._places(params)))
        new = closed(structure.unflatten(x if why else moved(x) for _, x, why in leaves))
        # The parameters in the order of argnums; the arrays were in that of the arguments.
        return tuple(new[n] for n in self._numbers()) if self._several else new[self._numbers()[0]]

    def _numbers(self) -> tuple[int, ...]:
        return self._argnums if isinstance(self._argnums, tuple) else (self._argnums,)

    def _parameters_of(self, args: tuple) -> Any:
        if len(args) <= max(self._numbers()):
            raise InputError(
                f"{self._name} takes its parameters as "
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
        """A call's arrays: those to solve for, real ones, and data; and what is left."""
        signature, leaves = self._sign(args, kwargs)
        parameters, data = signature.arrays(leaves)
        return signature, list(map(as_pair, parameters)), data

    def _sign(self, args: tuple, kwargs: dict) -> tuple[Signature, list[Any]]:
        """What is known of a call but its arrays; and its leaves."""
        leaves, structure = jax.tree.flatten(opened((args, kwargs)))

        def signed(kinds: Any) -> Signature:
            parameters = self._leaves(self._parameters_of(args))
            return Signature.of(structure, kinds, parameters, self._fn)

        def compiles(kinds: Any) -> bool:
            try:
                signature = signed(kinds)
                parameters, data = signature.arrays(leaves)
                self._graph(signature, list(map(as_pair, parameters)), data)
            except Exception:  # whatever it is, it comes up again if it is not the number's fault
                return False
            return True

        try:
            kinds = self._numbers_seen.kinds(structure, leaves, compiles)
            signature = self._signatures.get((structure, kinds))
        except TypeError as error:
            raise InputError(f"an argument that is no array must be hashable: {error}") from error
        if signature is None:
            signature = signed(kinds)
            remember(self._signatures, (structure, kinds), signature)
        return signature, leaves

    def _flat(self, signature: Signature, rest: list[Any] | None = None) -> Callable[..., Any]:
        """The function, from flat lists of arrays to one.

        What it returns is put into ``rest``: shapes of arrays, and everything else.
        """

        def function(parameters: list[Any], data: list[Any]) -> list[Any]:
            args, kwargs = signature.rebuild(parameters, data)
            out = self._fn(*args, **kwargs)
            arrays, others = parted(out, self._name, self._has_aux)
            if rest is not None:
                rest[:] = [arrays, others]
            return jax.tree.leaves(arrays)

        return function

    def _graph(
        self,
        signature: Signature,
        parameters: Sequence[Any],
        data: Sequence[Any],
        rest: list[Any] | None = None,
    ) -> ConsensusGraph:
        program = trace_program(
            self._flat(signature, rest),
            parameters,
            data,
            names=(*signature.parameter_names, *signature.data_names),
            source=self._name,
            kept="objective",
            has_aux=self._has_aux,
            lift=self._plan.solver.lifts,
        )
        graph = build_graph(program, schedule=self._schedule, copies=self._plan.spread)
        graph = coarsen(graph, self._granularity)
        if not any(c.out is None for c in graph.constraints):
            raise TraceError(
                f"{self._name} has no output constraint, so there is nothing to solve for: return "
                "a scalar that depends on the parameters, or call pjax_trace.constrain on a value"
            )
        return graph

    def _resumable(self, signature: Signature, parameters: Any, data: Any, state: State) -> State:
        """The state with a place for what the solver iterates on, if updates go on from it."""
        place = self._placed.eval_shape(signature, parameters, state, data).point
        return dataclasses.replace(state, point=tuple(point.nowhere() for point in place))

    def _update(
        self, jitted: Any, state: Any, args: tuple, kwargs: dict, goes_on: bool = False
    ) -> tuple[Any, State, Info]:
        signature, leaves = self._sign(args, kwargs)
        self._check_state("update", signature.shapes, state)
        parameters, data = signature.arrays(leaves)
        if goes_on and not state.point:
            state = self._resumable(signature, parameters, data, state)
        try:
            if not self._donate:
                done = jitted(signature, parameters, state, data)
                return self._checked(signature, leaves, data, *done)
            with interrupts_wait() as pending:
                done = jitted(signature, parameters, state, data)
                new = self._checked(signature, leaves, data, *done)
            if pending:
                raise Interrupted(new[0], new[1])
            return new
        except (RuntimeError, ValueError):
            names = (*signature.parameter_names, *signature.data_names)
            check_alive((*names, "the state"), (*parameters, *data, jax.tree.leaves(state)))
            raise

    def _checked(
        self, signature: Signature, leaves: Any, data: Any, moved: Any, state: State, info: Info
    ) -> tuple[Any, State, Info]:
        """The result of an update, if it is finite; what was not is looked for only then."""
        new = self._parameters_of(signature.replace(leaves, moved)[0])
        if _compat.is_known(info.finite) and not bool(info.finite):
            culprit = info.suspects[int(self._culprit(signature, moved, state, data))]
            raise NonFiniteError(
                f"NaN or infinity in {culprit}. The update was dropped; the last good parameters "
                "are in this error's .params, the state in its .state. Check the data's scale, "
                "that labels and sets are valid and λ positive, or give the parameters more weight "
                "(metric)" + signature.said_by(self._fn, leaves, moved),
                params=new,
                state=state,
                culprit=culprit,
            )
        return new, state, info

    def _run(
        self, signature: Signature, parameters: Any, state: State, data: Any, run: Any = run_update
    ) -> Any:
        """One update, traced once and compiled into one computation; or something else of it."""
        rest: list[Any] = []
        pairs = list(map(as_pair, parameters))
        graph = self._graph(signature, pairs, data, rest)
        if run is not run_update:
            return run(self._plan, graph, signature, pairs, state, data)
        aux = Auxiliary(*rest) if self._has_aux else None
        new, state, info = run_update(self._plan, graph, signature, aux, pairs, state, data)
        return signature.joined(new), state, info
