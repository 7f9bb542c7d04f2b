"""The scalar that a function returns → loss nodes, and the linear map from them to the scalar.

What a program does to its losses on their way out is read backwards from the objective: as long as
it is linear (means, sums, masks, weights, signs) it is the *tail*, whose derivative by a loss is
the weight of that. Where it is not, a loss node begins. It reaches back to what layers put out,
its *roots*, and keeps the equations between as they are. Terms of the same roots are one node. How
a node is projected onto is decided by its equations, see `pjax_trace.proximal`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pjax_trace.custom import constrain_p, loss_p
from pjax_trace.errors import TraceError
from pjax_trace.program import Equation, Objective, Size, Value
from pjax_trace.proximal import ObjectiveRule, Region
from pjax_trace.recorder import Recorder
from pjax_trace.regions import Regions, Term

__all__ = ["find_objective"]


@dataclasses.dataclass
class _Node:
    """Terms of the same roots, in the making."""

    terms: list[Term]
    roots: list[Value]
    linear: list[Value] = dataclasses.field(default_factory=list)


def find_objective(
    recorder: Recorder,
    parameters: Sequence[Value],
    outputs: Sequence[Value],
    name: str,
    has_aux: bool,
) -> Objective:
    """The objective of a program; its nodes are recorded as new equations.

    It is the one scalar that the function returns; with ``has_aux`` the first array; else, in a
    function with losses of `pjax.losses` or sets, what outputs are linear in losses, if any.

    Raises:
        TraceError: if the objective is no scalar of a floating-point type, or there may be several.
    """
    losses = [e for e in recorder.equations if e.primitive is loss_p]
    regions = Regions(recorder, parameters)
    ends = _objective_of(recorder, outputs, name, has_aux)
    if ends is None:
        ends = _made_of(recorder.equations, losses, outputs)
    first = regions.tail(ends)
    terms = [regions.term(v, first.visited) for v in first.ends if not regions.is_node(v)]
    roots = {root for term in terms for root in term.roots}
    tail = regions.tail(ends, roots)
    terms = [term for term in terms if term.value in tail.ends and term.value not in roots]
    nodes = _grouped(terms)
    values = {term.value for term in terms}
    for value in tail.ends:
        if regions.is_node(value) or value in values:
            continue
        node = next((n for n in nodes if value in n.roots), None)
        if node is None:
            node = _Node([], [value])
            nodes.append(node)
        node.linear.append(value)
    unpack: dict[Value, tuple[Value, int]] = {v: (v, 0) for v in tail.ends if regions.is_node(v)}
    inner = {e for node in nodes for term in node.terms for e in term.equations}
    sizes = {
        e.outputs[0]: Size(*[max(1, math.prod(e.outputs[0].shape))] * 2)
        for e in losses
        if e.outputs[0] in unpack or not _is_read(recorder.equations, inner, e.outputs[0])
    }
    for node in nodes:
        out, size, places = _record(recorder, regions, node)
        sizes[out] = size
        unpack.update({v: (out, start) for v, start in places.items()})
    scales = {v: Value(-1 - i, v.shape, v.dtype, False) for i, v in enumerate(sizes)}
    sizes = {scales[v]: size for v, size in sizes.items()}
    return Objective(scales, sizes, tuple(tail.equations), unpack, tuple(ends))


def _objective_of(
    recorder: Recorder, outputs: Sequence[Value], name: str, has_aux: bool
) -> list[Value] | None:
    """The one output that is the objective; None if it is what is made of losses."""
    calls = [e for e in recorder.equations if e.primitive in (loss_p, constrain_p)]
    constrained = {v for e in calls if e.primitive is constrain_p for v in e.outputs}
    if not has_aux and (len(outputs) != 1 or outputs[0] in constrained):
        if calls or not any(v.variable for v in outputs):
            return None
        raise TraceError(
            f"{name} returns {len(outputs)} arrays, of which the objective must be the only one; "
            "return a scalar, or a pair of the objective and other things with has_aux=True"
        )
    if not outputs:
        raise TraceError(f"{name} must return a pair, the objective and other things, for has_aux")
    value = outputs[0]
    scalar = value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    if not scalar and calls and not has_aux:
        return None
    if not scalar:
        what = "the first of what it returns" if has_aux else "what it returns"
        raise TraceError(
            f"{name} must have a scalar of a floating-point type as its objective, as for jax.grad,"
            f" but {what} is {value!r}; return a mean or a sum, or a pair of the objective and "
            "other things with has_aux=True"
        )
    return [value] if value.variable else None


def _made_of(
    equations: Sequence[Equation], losses: Sequence[Equation], outputs: Sequence[Value]
) -> list[Value]:
    """The outputs that are made of losses."""
    after = {e.outputs[0] for e in losses}
    for e in equations:
        if not after.isdisjoint(e.inputs):
            after.update(v for v in e.outputs if v.variable)
    return [v for v in dict.fromkeys(outputs) if v in after]


def _is_read(equations: Sequence[Equation], inner: set[Equation], loss: Value) -> bool:
    """Whether a loss is computed on the way to a term, as any other function."""
    after = {loss}
    for e in equations:
        if not after.isdisjoint(e.inputs):
            if e in inner:
                return True
            after.update(e.outputs)
    return False


def _grouped(terms: Sequence[Term]) -> list[_Node]:
    """Terms of the same roots together, but for kinds that follow others as well."""
    nodes: dict[Any, _Node] = {}
    for term in sorted(terms, key=lambda term: bool(term.kind and term.kind.follows)):
        alone = term.kind if term.kind and term.kind.follows else None
        node = nodes.setdefault((frozenset(term.roots), alone), _Node([], list(term.roots)))
        node.terms.append(term)
    return list(nodes.values())


def _record(
    recorder: Recorder, regions: Regions, node: _Node
) -> tuple[Value, Size, dict[Value, int]]:
    """The value of a node, its size, and where in it everything is."""
    equations = {e.index: e for term in node.terms for e in term.equations}
    ordered = tuple(equations[i] for i in sorted(equations))
    made = {v for e in ordered for v in e.outputs} | set(node.roots)
    data = tuple(dict.fromkeys(v for e in ordered for v in e.inputs if v not in made))
    values, linear = tuple(term.value for term in node.terms), tuple(node.linear)
    region = Region(tuple(node.roots), data, ordered, values, linear)
    rule = ObjectiveRule.of(region, [term.kind for term in node.terms], regions.is_pointwise)
    places, start = {}, 0
    for v in (*values, *linear):
        places[v] = start
        start += math.prod(v.shape)
    last = ordered[-1] if ordered else regions.producers.get(node.roots[0])
    # The innermost jax.named_scope names it, if there is one.
    named = re.findall(r"\w+", last.scope) if last else []
    (out,) = recorder.emit(
        loss_p,
        {"rule": rule, "name": named[-1] if named else rule.name, "params": ()},
        (*node.roots, *data),
        (True,),
        scope=last.scope if last else "",
        source=last.source if last else "the function",
    )
    rows = rule.rows([v.shape for v in node.roots])
    return out, Size(rows, sum(math.prod(v.shape) for v in values) or start), places
