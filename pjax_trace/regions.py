"""Parts of a program behind its layers: the linear tail of an objective, and its terms.

Equations are told apart by what JAX finds in them, not by their names: whether they are linear in
what moves, whether they act on every element alone, whether they mix two arrays.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pjax_trace.control import carries_p, loop_p
from pjax_trace.custom import constrain_p, function_p, loss_p
from pjax_trace.orders import is_linear, is_quadratic
from pjax_trace.program import Equation, Value
from pjax_trace.recorder import Recorder
from pjax_trace.registry import loss_nodes
from pjax_trace.rule import Rule
from pjax_trace.translation import Project, Refuse

__all__ = ["Regions", "Tail", "Term"]


@dataclasses.dataclass(frozen=True)
class Term:
    """A value that the objective is linear in, and how it comes about.

    Attributes:
        value: the value.
        roots: what layers put out, or parameters.
        equations: from the roots to the value; none if it is a root itself.
        kind: the class of the rule that has been recognised, if one has.
    """

    value: Value
    roots: tuple[Value, ...]
    equations: tuple[Equation, ...] = ()
    kind: Any = None


@dataclasses.dataclass(frozen=True)
class Tail:
    """The linear equations in front of some outputs, in program order.

    Attributes:
        equations: them.
        ends: the values that they start from.
        visited: all values that are linear in the ends.
    """

    equations: list[Equation]
    ends: list[Value]
    visited: set[Value]


class Regions:
    """A recorded program, to find regions in.

    Args:
        recorder: the program.
        parameters: its variables.
    """

    def __init__(self, recorder: Recorder, parameters: Sequence[Value]):
        self.equations = recorder.equations
        self.producers = {v: e for e in self.equations for v in e.outputs}
        self._parameters = set(parameters)
        self._layers: dict[Value, bool] = {}
        self._pointwise: dict[Equation, bool] = {}
        # What is made of parameters alone, element by element: a temperature, say.
        self._pure = set(parameters)
        for e in self.equations:
            read = [v for v in e.inputs if v.shape or v.variable]
            if read and all(v in self._pure for v in read) and (e.is_view or self.is_pointwise(e)):
                self._pure.update(e.outputs)

    def is_node(self, value: Value) -> bool:
        """Whether a value is that of a loss of `pjax.losses`."""
        e = self.producers.get(value)
        return e is not None and e.primitive is loss_p

    def tail(self, outputs: Sequence[Value], stop: Collection[Value] = ()) -> Tail:
        """Go back from outputs as long as that is linear, and not beyond what to stop at."""
        visited = {v for v in outputs if v.variable}
        found, inner = [], set()
        for e in reversed(self.equations):
            made = [v for v in e.outputs if v in visited and v not in stop]
            if made and self.is_linear(e):
                found.append(e)
                inner.update(made)
                visited.update(v for v in e.inputs if v.variable)
        ends = [v for v in visited if v not in inner]
        return Tail(found[::-1], sorted(ends, key=lambda v: v.index), visited)

    def is_linear(self, e: Equation) -> bool:
        """Whether an equation is linear, up to what it adds, in all variables together."""
        if e.primitive in (loop_p, carries_p, constrain_p, function_p, loss_p):
            return False
        if isinstance(e.outcome, Project) and type(e.outcome.rule).target is not Rule.target:
            return False  # a step has no slope, too, but it is not linear
        if not all(jnp.issubdtype(v.dtype, jnp.inexact) for v in e.outputs):
            return False
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in e.inputs]
        data = [s for s, v in zip(shapes, e.inputs, strict=True) if not v.variable]
        moving = {v: s for s, v in zip(shapes, e.inputs, strict=True) if v.variable}
        return is_linear(_split(e), data, list(moving.values()))

    def is_pointwise(self, e: Equation) -> bool:
        """Whether every element of the output is made of one element of every input.

        Inputs may be repeated along axes of size 1.
        """
        if e not in self._pointwise:
            self._pointwise[e] = self._acts_on_elements(e)
        return self._pointwise[e]

    def _acts_on_elements(self, e: Equation) -> bool:
        if len(e.outputs) != 1:
            return False
        if e.primitive in (loop_p, carries_p, constrain_p, loss_p):
            return False
        if not {"axis", "axes", "dimension", "dimensions"}.isdisjoint(e.params):
            return False  # along an axis; a sort takes scalars all the same
        scalars = [jax.ShapeDtypeStruct((), v.dtype) for v in e.inputs]
        try:
            (out,) = jax.eval_shape(e.evaluate, *scalars)
        except Exception:  # whatever a primitive has against scalars
            return False
        return out.shape == ()

    def is_layer(self, value: Value) -> bool:
        """Whether a region ends at a value: it is a parameter, or what a layer puts out."""
        if value not in self._layers:
            self._layers[value] = False
            self._layers[value] = value in self._parameters or self._ends(self.producers[value])
        return self._layers[value]

    def _ends(self, e: Equation) -> bool:
        if e.primitive in (loop_p, carries_p, constrain_p):
            return True
        if e.primitive is loss_p:
            return False
        rule = e.outcome.rule if isinstance(e.outcome, Project) else Rule()
        if e.primitive is function_p:
            return not rule.relaxed
        if not _projects(e):
            return False  # a layer cannot be it, but a loss can
        moving = [v for v in e.inputs if v.variable]
        if type(rule).target is not Rule.target and not rule.relaxed:
            return all(map(self._activates, moving))  # else a sign that a formula reckons with
        arrays = [v for v in e.inputs if v.shape and jnp.issubdtype(v.dtype, jnp.inexact)]
        if not self.is_pointwise(e):
            return not e.is_view and len(arrays) > 1
        pure = [v for v in moving if v in self._pure]
        if pure and any(v not in pure for v in (*moving, *arrays)):
            return True
        layers = [self._layers_of(v) for v in moving]
        several = all(layers) and len(set().union(*layers)) > 1
        return several and self.is_linear(e)

    def _activates(self, value: Value) -> bool:
        """Whether a value is made of one layer, element by element."""
        if self.is_layer(value):
            return True
        e = self.producers[value]
        moving = {v for v in e.inputs if v.variable}
        single = len(moving) == 1 and (e.is_view or self.is_pointwise(e))
        return single and self._activates(*moving)

    def _layers_of(self, value: Value) -> set[Value]:
        """The layers that a value is a part of; none if it is anything else."""
        e = self.producers.get(value)
        if self.is_layer(value):
            return {value}
        if e is None or not e.is_view:
            return set()
        parts = [self._layers_of(v) for v in e.inputs if v.variable]
        return set().union(*parts) if all(parts) else set()

    def term(self, value: Value, visited: set[Value]) -> Term:
        """How a value comes about; ``visited`` are other values that the objective is linear in."""
        if self.is_layer(value):
            return Term(value, (value,))
        e, deep = self.producers[value], self._deep(value)
        if any(inner.primitive is loss_p or not _projects(inner) for inner in deep.equations):
            return deep  # what is in front of it cannot be a layer
        for kind, root, equations in self._recognised(e):
            between = {v for own in equations for v in own.inputs if v.variable} - {root}
            apart = root not in visited and visited.isdisjoint(between)
            if self.is_layer(root) or apart:
                return Term(value, (root,), tuple(equations), kind)
        return deep

    def _recognised(self, e: Equation) -> list[tuple[Any, Value, list[Equation]]]:
        found = []
        moving = {v for v in e.inputs if v.variable}
        if len(moving) == 1 and self.is_pointwise(e):
            (x,) = moving
            data = [v.dtype for v in e.inputs if not v.variable]
            same = x.shape == e.outputs[0].shape
            if same and is_quadratic(_split(e), data, x.dtype):
                root, equations = self._in_front(x, e.outputs[0].shape)
                found.append((None, root, [*equations, e]))
        for kind in loss_nodes():
            own = kind.recognise(e, self.producers)
            if own is not None:
                x, inner = own
                root, equations = self._in_front(x, x.shape)
                found.append((kind, root, [*equations, *inner]))
        return found

    def _in_front(self, x: Value, shape: tuple[int, ...]) -> tuple[Value, list[Equation]]:
        """What a value is that constants may be added to, and the equations that add them."""
        equations: list[Equation] = []
        while not self.is_layer(x):
            e = self.producers[x]
            moving = [v for v in e.inputs if v.variable]
            plain = e.is_view and not e.affine.scales and self.is_pointwise(e)
            if not plain or len(moving) != 1 or moving[0].shape != shape:
                break
            equations.insert(0, e)
            (x,) = moving
        return x, equations

    def _deep(self, value: Value) -> Term:
        """The whole way back to what layers put out."""
        wanted, roots, equations = {value}, set(), []
        for e in reversed(self.equations):
            if wanted.isdisjoint(e.outputs):
                continue
            equations.append(e)
            for v in e.inputs:
                if v.variable and self.is_layer(v):
                    roots.add(v)
                elif v.variable:
                    wanted.add(v)
        return self._after_views(value, roots, equations[::-1])

    def _after_views(self, value: Value, roots: set[Value], equations: list[Equation]) -> Term:
        """The same, beginning behind views that only pick and move elements."""
        queue = sorted(roots, key=lambda v: v.index)
        ends = []
        while queue:
            root = queue.pop(0)
            readers = [e for e in equations if root in e.inputs]
            if root is value or len(readers) != 1 or not self._moves_elements(readers[0]):
                ends.append(root)
                continue
            equations = [e for e in equations if e is not readers[0]]
            made = {v for e in equations for v in e.inputs} | {value}
            queue += [v for v in readers[0].outputs if v in made]
        return Term(value, tuple(ends), tuple(equations))

    def _moves_elements(self, e: Equation) -> bool:
        moving = [v for v in e.inputs if v.variable]
        if not e.is_view or len(moving) != 1 or e.affine.offset or e.affine.scales:
            return False
        few = sum(math.prod(v.shape) for v in e.outputs) <= math.prod(moving[0].shape)
        return few and not self.is_pointwise(e)


def _projects(e: Equation) -> bool:
    """Whether an equation can be one of a layer."""
    return e.outcome is not None and not isinstance(e.outcome, Refuse)


def _split(e: Equation) -> Callable[..., list[Any]]:
    """An equation as a function of its data, a list, and its variables, each once."""

    def function(data: Sequence[Any], *xs: Any) -> list[Any]:
        known = iter(data)
        moving = dict(zip(dict.fromkeys(v for v in e.inputs if v.variable), xs, strict=True))
        return e.evaluate(*(moving[v] if v.variable else next(known) for v in e.inputs))

    return function
