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
from pjax_trace.arguments import Arguments
from pjax_trace.build import build_graph
from pjax_trace.errors import (
    InputError,
    Interrupted,
    NonFiniteError,
    TraceError,
    interrupts_wait,
)
from pjax_trace.explain import explanation
from pjax_trace.feasible import onto_sets
from pjax_trace.granularity import coarsen
from pjax_trace.graph import ConsensusGraph
from pjax_trace.info import Auxiliary, Info, State, check_state, parted, structure_of
from pjax_trace.pairs import as_pair
from pjax_trace.problem import Problem
from pjax_trace.signature import (
    Numbers,
    Signature,
    check_alive,
    needs_more,
    remember,
    shapes_of,
    strong,
)
from pjax_trace.trace import trace_program
from pjax_trace.trainable import is_shape, opened
from pjax_trace.update import Plan, find_culprit, one_step, run_update

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
        self._arguments = Arguments(fn, argnums, trainable)
        self._name = self._arguments.name
        self._plan = plan
        self._granularity = granularity
        self._schedule = schedule
        self._numbers_seen = Numbers()
        self._signatures: dict[Any, Signature] = {}
        self._structures: dict[Any, Any] = {}
        self._afters: dict[Any, State] = {}
        self._donate = donate
        self._has_aux = has_aux
        self._jitted = jax.jit(self._run, static_argnums=0, donate_argnums=(1, 2) if donate else ())
        self._jitted_once = jax.jit(self._run, static_argnums=0)
        self._culprit = jax.jit(functools.partial(self._run, find=True), static_argnums=0)
        self._settled = jax.jit(self._in_sets, static_argnums=0)

    def __repr__(self) -> str:
        return f"project({self._name}, solver={self._plan.solver}, steps={self._plan.steps})"

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Info]:
        """One update from scratch: the arguments of the function → new parameters and info."""
        parameters = self._arguments.parameters_of(args)
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
        found = self._arguments.leaves(params)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        leaves = [
            as_pair(jnp.zeros(x.shape, x.dtype) if is_shape(x) else strong(x))
            for those in found.values()
            for _, x, why in those
            if not why
        ]
        memory = tuple(a.init(leaves) for a in self._plan.acceleration)
        state = State(zero(), zero(), memory, (), (), self._structure(shapes_of(found)))
        if not args and not kwargs and needs_more(self._fn, self._arguments.numbers):
            return state
        signature, arrays = self._sign(self._arguments.insert(params, args), kwargs)
        after = self._after(signature, *signature.arrays(arrays), state)
        return dataclasses.replace(
            state,
            latent=tuple(leaves) if after.latent else (),
            point=tuple(point.nowhere() for point in after.point),
        )

    def averaged(self, params: PyTree, state: State) -> PyTree:
        """The parameters with their averages in the places of the floating-point arrays.

        Args:
            params: the parameters, for what they hold beside arrays.
            state: from the last update.

        Raises:
            InputError: if there is no `Averaging` among the accelerations, or the shapes differ.
        """
        self._check_state("averaged", shapes_of(self._arguments.leaves(params)), state)
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
        return self._arguments.combine(
            params, [jnp.array(x) if self._donate else x for x in kept[-1]]
        )

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
        args = self._arguments.insert(params, args)
        return self._update(self._jitted, state, args, kwargs, goes_on=True)

    def feasible(self, params: PyTree, /, *args: Any, **kwargs: Any) -> PyTree:
        """The parameters in the sets that they are constrained to: each set's own nearest point.

        Of several convex sets with parameters in common, it is the nearest point of all of them.
        Sets of what is computed from parameters have no part in it.

        Args:
            params: the parameters, such as those that `averaged` returns.
            *args: the other arguments of the function, in order.
            **kwargs: its keyword arguments.
        """
        signature, leaves = self._sign(self._arguments.insert(params, args), kwargs)
        moved = self._settled(signature, *signature.arrays(leaves))
        return self._arguments.parameters_of(signature.replace(leaves, moved)[0])

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
        print(
            explanation(
                self._flat(signature),
                parameters,
                data,
                names=names,
                name=self._name,
                copies=plan.copies,
                explicit=plan.explicit,
                granularity=self._granularity,
                schedule=self._schedule,
                step=None if plan.solver.gaps else functools.partial(one_step, plan),
                has_aux=self._has_aux,
                spread=plan.spread,
            )
        )

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The update of a call, lowered by XLA but not run; ``.compile()`` goes on, as for jit."""
        signature, leaves = self._sign(args, kwargs)
        parameters, data = signature.arrays(leaves)
        return self._jitted.lower(
            signature, parameters, self.init(self._arguments.parameters_of(args)), data
        )

    def _structure(self, shapes: Any) -> Any:
        """What a state must have in common with parameters and accelerations."""
        found = self._structures.get(shapes)
        if found is None:
            found = structure_of(shapes, self._plan.acceleration)
            remember(self._structures, shapes, found)
        return found

    def _check_state(self, method: str, shapes: Any, state: Any) -> None:
        check_state(method, state, self._structure(shapes))

    def _split(self, args: tuple, kwargs: dict) -> tuple[Signature, list[Any], list[Any]]:
        """A call's arrays: those to solve for, real ones, and data; and what is left."""
        signature, leaves = self._sign(args, kwargs)
        parameters, data = signature.arrays(leaves)
        return signature, list(map(as_pair, parameters)), data

    def _sign(self, args: tuple, kwargs: dict) -> tuple[Signature, list[Any]]:
        """What is known of a call but its arrays; and its leaves."""
        leaves, structure = jax.tree.flatten(opened((args, kwargs)))

        def signed(kinds: Any) -> Signature:
            parameters = self._arguments.leaves(self._arguments.parameters_of(args))
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
        schedule: str | None = None,
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
        graph = build_graph(program, schedule=schedule or self._schedule, copies=self._plan.spread)
        graph = coarsen(graph, self._granularity)
        if not any(c.out is None for c in graph.constraints):
            raise TraceError(
                f"{self._name} has no output constraint, so there is nothing to solve for: return "
                "a scalar that depends on the parameters, or call pjax_trace.constrain on a value"
            )
        return graph

    def _after(self, signature: Signature, parameters: Any, data: Any, state: State) -> State:
        """The shapes of the state after an update, which is traced no second time when it runs."""
        arrays = (*parameters, *data)
        key = signature, tuple((x.shape, x.dtype) for x in arrays)
        found = self._afters.get(key)
        if found is None:
            found = self._jitted.eval_shape(signature, parameters, state, data)[1]
            remember(self._afters, key, found)
        return found

    def _update(
        self, jitted: Any, state: Any, args: tuple, kwargs: dict, goes_on: bool = False
    ) -> tuple[Any, State, Info]:
        signature, leaves = self._sign(args, kwargs)
        self._check_state("update", signature.shapes, state)
        parameters, data = signature.arrays(leaves)
        if goes_on and not state.point and self._plan.may_go_on:
            point = self._after(signature, parameters, data, state).point
            state = dataclasses.replace(state, point=tuple(p.nowhere() for p in point))
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
        new = self._arguments.parameters_of(signature.replace(leaves, moved)[0])
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
        self, signature: Signature, parameters: Any, state: State, data: Any, find: bool = False
    ) -> Any:
        """One update, traced once and compiled into one computation; or what was not finite."""
        rest: list[Any] = []
        pairs = list(map(as_pair, parameters))
        graph = self._graph(signature, pairs, data, rest)
        if find:
            return find_culprit(self._plan, graph, signature, pairs, state, data)
        aux = Auxiliary(*rest) if self._has_aux else None
        new, state, info = run_update(self._plan, graph, signature, aux, pairs, state, data)
        return signature.joined(new), state, info

    def _in_sets(self, signature: Signature, parameters: Any, data: Any) -> list[Array]:
        """Parameters projected onto their sets."""
        pairs = list(map(as_pair, parameters))
        graph = self._graph(signature, pairs, data, schedule="sweep")
        return signature.joined(
            onto_sets(Problem.forward(graph, self._plan.metric, pairs, data), pairs)
        )
