"""The consensus graph: variables, and the constraints that read and produce them.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pjax_trace import dot
from pjax_trace.control import Loop
from pjax_trace.errors import InputError
from pjax_trace.program import Program, Value
from pjax_trace.rule import Rule, title
from pjax_trace.view import Variable, View

__all__ = ["ConsensusGraph", "Constraint", "Loss", "LoopRule", "Membership", "Operand"]

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

    @functools.cached_property
    def views(self) -> dict[int, View]:
        """Its variable operands, by position."""
        return {i: view for i, view in enumerate(self.operands) if isinstance(view, View)}

    @property
    def reads(self) -> tuple[tuple[int, View], ...]:
        """Its edges: positions and views of the variable operands."""
        return tuple(self.views.items())

    @property
    def variable(self) -> tuple[bool, ...]:
        """Which operands are variables."""
        return tuple(isinstance(operand, View) for operand in self.operands)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the operands."""
        return tuple(operand.shape for operand in self.operands)

    @property
    def label(self) -> str:
        """Name and source line, for messages."""
        return f"{self.name} at {self.source}"


class Loss(Constraint):
    """An output constraint that pulls by a proximal step; its last operand scales its λ."""

    @property
    def scale(self) -> Value:
        """What holds the scale."""
        scale = self.operands[-1]
        assert isinstance(scale, Value)
        return scale


class Membership(Constraint):
    """An output constraint that requires its first operand to lie in a set."""


class LoopRule(Rule):
    """A scan that is kept as one operation, with one constraint for each of its outputs.

    A sweep goes back through it step by step; solvers that project all steps at once have scans
    lifted instead.

    Args:
        loop: the scan.
        body: the graph of one step.
        slots: the values that hold what every step reads as its carry.
    """

    family = "loop"

    def __init__(self, loop: Loop, body: "ConsensusGraph", slots: Sequence[Value]):
        self.loop, self.body, self.slots = loop, body, slots


@dataclasses.dataclass(frozen=True)
class ConsensusGraph:
    """What a function compiles to. ``print(graph)`` shows it.

    It is *direct* if constraints of one colour have no elements in common, and each reads every
    element once: there is nothing that copies would have to agree on.
    """

    program: Program
    parameters: tuple[Variable, ...]
    constraints: tuple[Constraint, ...]
    outputs: tuple[View | None, ...] = ()
    problems: tuple[str, ...] = ()
    colours: Mapping[Constraint | Variable, int] = dataclasses.field(default_factory=dict)
    direct: bool = False

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Parameters, then the outputs of the constraints, in program order."""
        return self.parameters + tuple(c.out for c in self.constraints if c.out is not None)

    @functools.cached_property
    def losses(self) -> tuple[Loss, ...]:
        """The losses among the constraints."""
        return tuple(c for c in self.constraints if isinstance(c, Loss))

    @functools.cached_property
    def penalties(self) -> frozenset[Loss]:
        """The losses of parameters alone, unless data say which of their elements.

        Those that data look up, such as the codes nearest to samples, are asked by samples.
        """
        known = self.program.known
        return frozenset(
            c
            for c in self.losses
            if all(b.parameter for _, view in c.reads for b in view.bases)
            and not any(view.looks_up(known) for _, view in c.reads)
        )

    @functools.cached_property
    def rows(self) -> int:
        """Of how many samples the losses are, penalties on parameters apart; 0 without losses."""
        sizes, penalties = self.program.objective.sizes, self.penalties
        some = [c for c in self.losses if c not in penalties]
        return max((sizes[c.scale].rows for c in some or self.losses), default=0)

    @functools.cached_property
    def hard(self) -> np.ndarray:
        """Which constraints are sets of points, so all but the losses, as a mask."""
        return np.array([not isinstance(c, Loss) for c in self.constraints], bool)

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
    def read_by_outputs(self) -> frozenset[Variable]:
        """The outputs of constraints that losses and sets read."""
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
        r"""The graph in the language of Graphviz; the same graph gives the same text.

        Parameters are ellipses and constraints are boxes, in the two colours of the graph. Output
        constraints have a double border, inserted identities a dashed one. An edge is labelled with
        the shape that views in front of the constraint give to what it reads.

        Example:
            >>> import jax.numpy as jnp
            >>> import pjax_trace as pjax
            >>> def problem(x):
            ...     pjax.constrain(jnp.sum(x), pjax.sets.Equal(1.0))
            >>> graph = pjax.project(problem).trace(jnp.ones(3))
            >>> print("\n".join(graph.to_dot().splitlines()[-3:]))
              n0 -> n1;
              n1 -> n2;
            }
        """
        return dot.to_dot(*self._drawing())

    def plot(
        self, path: str | os.PathLike[str], *, width: float = math.inf, dpi: float = 150
    ) -> None:
        """Save a picture of what `to_dot` says, from left to right; blue is projected first.

        Graphviz draws it where its program ``dot`` is on the PATH; otherwise matplotlib does, with
        the nodes where networkx places them. The same graph gives the same PNG or SVG.

        Args:
            path: of the file, ending in ``.png``, ``.svg`` or ``.pdf``.
            width: of the picture in inches, at most; what would be wider is drawn smaller. Without
                it the letters of every graph have the same size.
            dpi: dots per inch, of a PNG.

        Raises:
            InputError: if there is neither Graphviz nor networkx with matplotlib, Graphviz fails,
                or an argument cannot be used.
        """
        dot.plot(*self._drawing(), Path(path), width=width, dpi=dpi)

    def _drawing(self) -> tuple[list[dot.Node], list[dot.Edge]]:
        """Boxes and arrows, in program order."""

        def dims(shape: tuple[int, ...]) -> str:
            return f"[{','.join(map(str, shape))}]"

        def short(name: str) -> str:
            return name if len(name) <= 30 else f"{name[:15]}…{name[-14:]}"

        numbers = {node: i for i, node in enumerate((*self.parameters, *self.constraints))}
        nodes = []
        for node in numbers:
            if isinstance(node, Variable):
                out, lines = node, [short(node.name)]
            else:
                out, lines = node.out, [short(node.name), title(node.rule)]
            lines += [] if out is None else [dims(out.shape)]
            nodes.append(
                dot.Node(
                    "\n".join(lines),
                    self.colours.get(node, 0),
                    rounded=isinstance(node, Variable),
                    double=out is None,
                    dashed=out is not None and out.repeats is not None,
                )
            )
        edges = [
            (numbers[self.node(base)], numbers[c], "" if v.identity else dims(v.shape))
            for c in self.constraints
            for _, v in c.reads
            for base in v.bases
        ]
        return nodes, edges

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
