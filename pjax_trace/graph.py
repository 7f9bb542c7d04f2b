"""The consensus graph: variables, the constraints that read and produce them, views in between.

Every read of a variable is an *edge* that carries a copy of it. An edge joins the node that
produces the variable (a constraint, or the parameter itself) with the constraint that reads it.
On a graph with two colours every edge joins the two, so projecting all constraints of one colour
at once projects onto one set of a two-set feasibility problem: outgoing copies of a node agree,
incoming ones satisfy its equation.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace.errors import InputError
from pjax_trace.registry import Rule, rule_for
from pjax_trace.trace import Equation, Program, Value

__all__ = ["ConsensusGraph", "Constraint", "Objective", "Variable", "View", "colour"]


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """An array that the solver may move: a parameter, or the output of a constraint.

    ``repeats`` is what the output of an inserted identity is the same as.
    """

    name: str
    value: Value
    parameter: bool
    repeats: "Variable | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """Of the array."""
        return self.value.dtype

    def __repr__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return f"{self.name}:{np.dtype(self.dtype).name}[{dims}]"


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """An affine map from variables to what a constraint reads.

    Args:
        bases: the variables that are read.
        equations: the view equations between them and ``out``, in program order.
        out: the value that they end in.
        then: further functions, applied in turn; each is linear and only repeats or moves elements.
    """

    bases: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    out: Value
    then: tuple[Callable[[Array], Array], ...] = ()

    def __call__(self, data: Mapping[Value, Any], *arrays: Array) -> Array:
        """The operand, from one array per base."""
        env = {base.value: x for base, x in zip(self.bases, arrays, strict=True)}
        for equation in self.equations:
            operands = [env[v] if v in env else data[v] for v in equation.inputs]
            env.update(zip(equation.outputs, equation.evaluate(*operands), strict=True))
        x = env[self.out]
        for function in self.then:
            x = function(x)
        return x

    def pull(self, data: Mapping[Value, Any], moment: Array) -> tuple[Array, ...]:
        """The transpose of the linear part, applied to an array of the operand's shape."""
        zeros = [jnp.zeros(base.shape, base.dtype) for base in self.bases]
        # The derivative of an affine map drops its offset, which a plain transpose would not.
        _, transpose = jax.vjp(functools.partial(self, data), *zeros)
        return transpose(moment)

    @property
    def dtype(self) -> Any:
        """Of the operand."""
        return self.out.dtype

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the operand."""
        shape = jax.ShapeDtypeStruct(self.out.shape, self.out.dtype)
        for function in self.then:
            shape = jax.eval_shape(function, shape)
        return shape.shape

    @property
    def rules(self) -> list[Rule]:
        """The rules of its equations."""
        return [rule_for(e.primitive) for e in self.equations]  # pyright: ignore

    @property
    def identity(self) -> bool:
        """Whether the operand is the variable itself."""
        return not self.equations and not self.then

    @property
    def total(self) -> bool:
        """Whether it surely reads every element of its bases."""
        return all(rule.total for rule in self.rules)

    @property
    def offset(self) -> bool:
        """Whether it may add data to what it reads."""
        return any(rule.offset for rule in self.rules)

    @property
    def permutation(self) -> bool:
        """Whether it only renames the elements of one variable."""
        return (
            len(self.bases) == 1
            and not self.then
            and all(rule.permutation for rule in self.rules)
            and math.prod(self.shape) == math.prod(self.bases[0].shape)
        )

    def followed_by(self, function: Callable[[Array], Array] | None) -> "View":
        """This view and then a function that repeats or moves elements."""
        if function is None:
            return self
        return dataclasses.replace(self, then=(*self.then, function))

    def with_base(self, old: Variable, new: Variable) -> "View":
        """The same view of another variable."""
        bases = tuple(new if base is old else base for base in self.bases)
        if not self.equations:
            return dataclasses.replace(self, bases=bases, out=new.value)
        inputs = {old.value: new.value}
        equations = tuple(
            dataclasses.replace(e, inputs=tuple(inputs.get(v, v) for v in e.inputs))
            for e in self.equations
        )
        return dataclasses.replace(self, bases=bases, equations=equations)

    def through(self, old: Variable, source: "View") -> "View":
        """The same view with another one in the place of a base."""
        if old not in self.bases:
            return self
        others = (base for base in self.bases if base is not old)
        bases = tuple(dict.fromkeys((*source.bases, *others)))
        inputs = {old.value: source.out}
        equations = tuple(
            dataclasses.replace(e, inputs=tuple(inputs.get(v, v) for v in e.inputs))
            for e in self.equations
        )
        out = inputs.get(self.out, self.out)
        return dataclasses.replace(
            self, bases=bases, equations=source.equations + equations, out=out
        )

    def elements(self, data: Mapping[Value, Any], names: Mapping[Variable, Any]) -> Any:
        """The name of the element that each operand element reads; None if data decide it.

        ``names`` gives every base an integer array; ``data`` holds what is known while tracing.
        """
        env = {base.value: names[base] for base in self.bases}
        try:
            with jax.ensure_compile_time_eval():
                for equation in self.equations:
                    rule = rule_for(equation.primitive)
                    assert rule is not None
                    numbers = [
                        env[v] if v in env else jnp.zeros(v.shape, jnp.int32)
                        for v in equation.inputs
                    ]
                    known = [None if v in env else data.get(v) for v in equation.inputs]
                    results = rule.route(equation.primitive, equation.params, numbers, known)
                    env.update(zip(equation.outputs, results, strict=True))
                x = env[self.out]
                for function in self.then:
                    x = function(jnp.asarray(x))
                return np.asarray(x)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
            return None


Operand = View | Value


@dataclasses.dataclass(frozen=True, eq=False)
class Constraint:
    """One instance of a rule: its operands (views of variables, or data) and its output.

    ``out`` is None for an output constraint (a loss, a set); ``folded`` are the labels of the
    constraints whose work it does, too.
    """

    name: str
    rule: Rule
    params: dict[str, Any]
    operands: tuple[Operand, ...]
    out: Variable | None
    source: str
    scope: str = ""
    folded: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[tuple[int, View], ...]:
        """Its edges: positions and views of the variable operands."""
        return tuple((i, view) for i, view in enumerate(self.operands) if isinstance(view, View))

    @property
    def variable(self) -> tuple[bool, ...]:
        """Which operands are variables."""
        return tuple(isinstance(operand, View) for operand in self.operands)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the operands."""
        return tuple(operand.shape for operand in self.operands)

    @property
    def label(self) -> str:
        """Name and source line, for messages."""
        return f"{self.name} at {self.source}"


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the function makes of its losses; it must be linear, and scales their λ."""

    losses: tuple[Value, ...]
    scales: tuple[Value, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Value, ...]

    def evaluate_scales(self, data: Mapping[Value, Any]) -> dict[Value, Array]:
        """The derivative of the function's outputs by every loss; 1 for a loss nobody returns."""
        if not self.losses:
            return {}

        def function(losses: list[Array]) -> list[Array]:
            env = dict(zip(self.losses, losses, strict=True))
            for equation in self.equations:
                operands = [env[v] if v in env else data[v] for v in equation.inputs]
                env.update(zip(equation.outputs, equation.evaluate(*operands), strict=True))
            return [env[v] for v in self.outputs]

        ones = [jnp.ones(v.shape, v.dtype) for v in self.losses]
        used = {v for equation in self.equations for v in equation.inputs} | set(self.outputs)
        outputs, pull = jax.vjp(function, ones)
        (slopes,) = pull([jnp.ones_like(x) for x in outputs])
        return {
            scale: slope if loss in used else one
            for loss, scale, slope, one in zip(self.losses, self.scales, slopes, ones, strict=True)
        }


@dataclasses.dataclass(frozen=True)
class ConsensusGraph:
    """What a function compiles to. ``print(graph)`` shows it."""

    program: Program
    parameters: tuple[Variable, ...]
    constraints: tuple[Constraint, ...]
    objective: Objective
    outputs: tuple[View | None, ...] = ()
    problems: tuple[str, ...] = ()
    colours: Mapping[Constraint | Variable, int] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Parameters, then the outputs of the constraints, in program order."""
        return self.parameters + tuple(c.out for c in self.constraints if c.out is not None)

    @functools.cached_property
    def producers(self) -> dict[Variable, Constraint]:
        """The constraint that produces each variable that is no parameter."""
        return {c.out: c for c in self.constraints if c.out is not None}

    @functools.cached_property
    def readers(self) -> dict[Variable, list[tuple[Constraint, int]]]:
        """The edges that read each variable."""
        readers: dict[Variable, list[tuple[Constraint, int]]] = {v: [] for v in self.variables}
        for constraint in self.constraints:
            for position, view in constraint.reads:
                for base in view.bases:
                    readers[base].append((constraint, position))
        return readers

    @functools.cached_property
    def scores(self) -> frozenset[Variable]:
        """The variables that losses and sets read, outputs of constraints themselves."""
        return frozenset(
            base
            for c in self.constraints
            if c.out is None
            for _, view in c.reads
            for base in view.bases
            if not base.parameter
        )

    def replaced(self, new: Mapping[Any, Constraint]) -> "ConsensusGraph":
        """The graph with other constraints in the places of some, of the same colours."""
        constraints = tuple(new.get(c, c) for c in self.constraints)
        colours = {new.get(node, node): side for node, side in self.colours.items()}
        return dataclasses.replace(self, constraints=constraints, colours=colours)

    def node(self, variable: Variable) -> "Constraint | Variable":
        """What produces a variable."""
        return self.producers.get(variable, variable)

    def critical_path(self, schedule: str) -> int:
        """How many projections must follow one another in one step of a schedule.

        All others can be made at the same time. Of the parallel schedule it is a projection for
        each colour, of the product schedule one, of the cyclic one all of them, whatever they read
        of each other. Targets of a sweep go back along the longest chain of constraints that read
        one another, in which what a scan carries from step to step counts in every one. (A sweep
        begins with a forward pass along the same chain, and so does a gradient.)

        Args:
            schedule: one that the graph was traced for: ``"parallel"``, ``"product"``,
                ``"cyclic"`` or ``"sweep"``.

        Raises:
            InputError: if it is none of these, or the graph has no colours, as that of a sweep.

        Example:
            >>> import jax.numpy as jnp
            >>> import pjax_trace as pjax
            >>> def fit(w, x):
            ...     for v in w:
            ...         x = jnp.tanh(x @ v)
            ...     pjax.constrain(x, pjax.sets.Equal(0.5))
            >>> w, x = [jnp.ones((2, 2))] * 8, jnp.ones((3, 2))
            >>> for schedule in "parallel", "sweep":
            ...     graph = pjax.project(fit, schedule=schedule).trace(w, x)
            ...     print(schedule, graph.critical_path(schedule))
            parallel 2
            sweep 17
        """
        if schedule == "product":
            return 1
        if schedule == "cyclic":
            return len(self.constraints)
        if schedule == "sweep":
            return self._chains()[0]
        if schedule != "parallel" or not self.colours:
            raise InputError(f"critical_path: the graph was not traced for {schedule!r}")
        return len({self.colours[c] for c in self.constraints})

    def _chains(self) -> tuple[int, dict[Variable, int]]:
        """How many constraints are in the longest chain, and in that up to each variable."""
        from pjax_trace.build import LoopRule  # which makes graphs

        lengths: dict[Variable, int] = {}
        longest = 0
        for c in self.constraints:
            own = 1
            if isinstance(c.rule, LoopRule):
                scan, body = c.rule.loop.scan, c.rule.body
                own, inner = body._chains()
                views = [view for view in body.outputs[: scan.carries] if view is not None]
                carried = [inner.get(base, 0) for view in views for base in view.bases]
                own += (scan.length - 1) * max(carried, default=0)
            read = [lengths.get(base, 0) for _, view in c.reads for base in view.bases]
            length = own + max(read, default=0)
            longest = max(longest, length)
            if c.out is not None:
                lengths[c.out] = length
        return longest, lengths

    def to_dot(self) -> str:
        """The graph in the language of Graphviz."""
        from pjax_trace import picture  # which draws graphs

        return picture.to_dot(self)

    def plot(self, path: str | os.PathLike[str], *, width: float = 16, dpi: float = 150) -> None:
        """Save a picture of the coloured graph; needs matplotlib.

        Args:
            path: of the file, ending in ``.png``, ``.svg`` or ``.pdf``.
            width: of the picture, in inches.
            dpi: dots per inch, of a PNG.
        """
        from pjax_trace import picture

        picture.plot(self, path, width=width, dpi=dpi)

    def __str__(self) -> str:
        lines = [
            f"ConsensusGraph: {len(self.parameters)} parameters, "
            f"{len(self.variables) - len(self.parameters)} hidden variables, "
            f"{len(self.constraints)} constraints"
        ]
        for node in (*self.parameters, *self.constraints):
            letter = "AB"[self.colours[node]] if node in self.colours else "-"
            if isinstance(node, Variable):
                lines.append(f"  {letter} parameter  {node}")
                continue
            reads = ", ".join(
                " ".join(map(str, operand.bases))
                + ("" if operand.identity else f" → [{','.join(map(str, operand.shape))}]")
                if isinstance(operand, View)
                else f"data[{','.join(map(str, operand.shape))}]"
                for operand in node.operands
            )
            target = f"{node.out} = " if node.out is not None else ""
            lines.append(f"  {letter} {node.rule.family:<10} {target}{node.name}({reads})")
            scope = f"  in {node.scope}" if node.scope else ""
            lines.append(f"      {node.source}{scope}")
        return "\n".join(lines)


def colour(
    graph: ConsensusGraph, identity: Callable[[Variable, str], Constraint]
) -> ConsensusGraph:
    """Give every node one of two colours so that every edge joins two, inserting identities.

    Colours spread from the output constraints (colour 0, projected first), breadth-first in program
    order; then nodes change sides as long as fewer variables clash. Where an edge would join equal
    colours, the variable gets one identity constraint, before its views, and the readers of that
    colour read its output instead.

    Args:
        graph: the graph.
        identity: makes the identity constraint of a variable, with a name for its output.
    """
    nodes = [*graph.parameters, *graph.constraints]
    order = {node: i for i, node in enumerate(nodes)}
    neighbours: dict[Any, list[Any]] = {node: [] for node in nodes}
    for variable, edges in graph.readers.items():
        for reader, _ in edges:
            neighbours[graph.node(variable)].append(reader)
            neighbours[reader].append(graph.node(variable))
    colours: dict[Any, int] = {}
    starts = [c for c in graph.constraints if c.out is None] + nodes
    queue: list[Any] = []
    for start in starts:
        if start in colours:
            continue
        colours[start] = 0
        queue.append(start)
        while queue:
            node = queue.pop(0)
            for other in sorted(neighbours[node], key=order.__getitem__):
                if other not in colours:
                    colours[other] = 1 - colours[node]
                    queue.append(other)
    _improve(graph, colours)
    constraints = list(graph.constraints)
    replaced: dict[Constraint, Constraint] = {}
    for variable in graph.variables:
        own = colours[graph.node(variable)]
        clashing = [edge for edge in graph.readers[variable] if colours[edge[0]] == own]
        if not clashing:
            continue
        copy = identity(variable, f"{variable.name}'")
        assert copy.out is not None
        colours[copy] = 1 - own
        for reader, position in clashing:
            current = replaced.get(reader, reader)
            operands = list(current.operands)
            operands[position] = operands[position].with_base(variable, copy.out)  # pyright: ignore
            replaced[reader] = dataclasses.replace(current, operands=tuple(operands))
        first = min(order[reader] for reader, _ in clashing)
        position = next(i for i, c in enumerate(constraints) if order.get(c, -1) == first)
        constraints.insert(position, copy)
    final = tuple(replaced.get(c, c) for c in constraints)
    swapped = {replaced.get(node, node): colours[node] for node in colours}
    return dataclasses.replace(graph, constraints=final, colours=swapped)


def _improve(graph: ConsensusGraph, colours: dict[Any, int]) -> None:
    """Flip nodes, all but output constraints, while that leaves fewer variables to be repeated."""

    def clashes(variable: Variable) -> bool:
        own = colours[graph.node(variable)]
        return any(colours[reader] == own for reader, _ in graph.readers[variable])

    touched: dict[Any, list[Variable]] = {p: [p] for p in graph.parameters}
    for c in graph.constraints:
        read = (base for _, view in c.reads for base in view.bases)
        touched[c] = list(dict.fromkeys((*read, *([c.out] if c.out is not None else []))))
    flipped = True
    while flipped:
        flipped = False
        for node, variables in touched.items():
            if isinstance(node, Constraint) and node.out is None:
                continue
            before = sum(map(clashes, variables))
            colours[node] = 1 - colours[node]
            if sum(map(clashes, variables)) < before:
                flipped = True
            else:
                colours[node] = 1 - colours[node]
