"""The way back of a sweep: from what is asked of outputs to what is asked of parameters.

Constraints are visited from the outputs to the inputs, as reverse mode does. Each hands what its
output is asked for to its operands; where operands are parameters, it says what is known of the
least-squares problem that they are to solve. A scan goes back step by step, and its parameters are
asked by all steps at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace.block import hand_over
from pjax_trace.graph import Constraint, LoopRule
from pjax_trace.linear import Jacobian
from pjax_trace.problem import Problem
from pjax_trace.rule import Request
from pjax_trace.systems import Columns, Element, Named, Reader, bias_columns, weight_columns
from pjax_trace.view import Variable, View

__all__ = ["Asked", "ask", "elements", "go_back"]

Names = Mapping[Variable, Named | None]


class Asked(NamedTuple):
    """What is asked of parameters: by columns of linear equations, and element by element."""

    readers: list[Reader]
    elements: list[Element]

    def add(self, other: "Asked") -> None:
        """What is asked somewhere else, too."""
        self.readers.extend(other.readers)
        self.elements.extend(other.elements)


def ask(problem: Problem, residuals: dict[Variable, Array], view: View, residual: Array) -> None:
    """Ask what a view reads to move; what several readers ask for is added up."""
    parts = view.pull(problem.data, residual)
    for base, part in zip(view.bases, parts, strict=True):
        residuals[base] = residuals[base] + part if base in residuals else part


def go_back(
    problem: Problem,
    residuals: dict[Variable, Array],
    names: Names,
    reach: float,
    loop: Constraint | None = None,
) -> Asked:
    """Go back through a graph; what is asked of its parameters.

    Args:
        problem: the graph and its forward pass.
        residuals: what is asked of variables; more is added on the way.
        names: the parameters, each with what to call its elements (None if that is not said).
        reach: see `pjax_trace.rule.Request`.
        loop: the constraint that the graph is the body of.
    """
    asked = Asked([], [])
    constraints = problem.graph.constraints
    for c in reversed(constraints):
        if isinstance(c.rule, LoopRule):
            together = [other for other in constraints if other.rule is c.rule]
            if c is together[0] and any(other.out in residuals for other in together):
                asked.add(_loop(problem, together, c.rule, residuals, names, reach))
        elif c.out is not None and c.out in residuals:
            asked.add(_layer(problem, c, residuals, names, reach, loop or c))
    # What is asked of parameters beside others, in one view, or by the body of a scan itself.
    for v in [v for v in names if v in residuals]:
        ones = jnp.ones_like(residuals[v])
        asked.elements.append(Element(residuals[v], ones, ones, v, 1, loop or constraints[0]))
    return asked


def _layer(
    problem: Problem,
    c: Constraint,
    residuals: dict[Variable, Array],
    names: Names,
    reach: float,
    label: Constraint,
) -> Asked:
    """Go back through one constraint, which ``label`` stands for."""
    assert c.out is not None
    operands, residual = problem.operands(c, problem.start), residuals[c.out]
    request = Request(problem.start[c.out], residual, c.variable, reach)
    answers = hand_over(c.rule, c.params, operands, request)
    own = {i: view for i, view in c.reads if names.keys() >= set(view.bases)}
    for i, view in c.reads:
        if i not in own and answers[i] is not None:
            ask(problem, residuals, view, answers[i])
    jacobians = {i: c.rule.linear(c.params, operands, i) for i in own}
    columns = _columns(problem, own, operands, jacobians, names, residual)
    asked = Asked([], [])
    if columns:
        design = jacobians[next(iter(columns))].design
        assert design is not None
        found = tuple(columns.values())
        target = design.target(residual)
        asked.readers.append(Reader(target, found, design.trust_factor, label))
    for i, view in own.items():
        if i not in columns and answers[i] is not None:
            j = jacobians[i]
            readers = jnp.broadcast_to(jnp.asarray(j.readers, answers[i].dtype), answers[i].shape)
            said = answers[i], j.squares(), readers
            asked.elements.extend(elements(problem, view, said, j.fan, label))
    return asked


def _columns(
    problem: Problem,
    own: Mapping[int, View],
    operands: Sequence[Array],
    jacobians: Mapping[int, Jacobian],
    names: Names,
    residual: Array,
) -> dict[int, Columns]:
    """The operands that are columns of the same rows and features, by position.

    Factors of products share a matrix with all others of the same rows; addends join them as
    columns of ones.
    """
    columns: dict[int, Columns] = {}
    design = None
    for i in sorted(own, key=lambda i: jacobians[i].design is None):
        j, named, found = jacobians[i], _named(problem, own[i], names), None
        if named is not None and j.design is not None:
            if design is None or design.rows_as(j.design):
                found = weight_columns(named, operands[i], j)
        elif named is not None and design is not None and j.sign is not None:
            found = bias_columns(named, j, design, residual.dtype)
        if found is not None:
            columns[i], design = found, design or j.design
    return columns


def _named(problem: Problem, view: View, names: Names) -> Named | None:
    """The elements of one parameter that a view reads, all scaled alike; None if it is another."""
    known = names.get(view.bases[0]) if len(view.bases) == 1 else None
    if known is None or not view.uniform:
        return None
    index, scale = view.index({view.bases[0]: known.places}), known.scale
    if index is None or 0 in index.shape:
        return None
    if view.scales:
        own = jnp.ravel(view.slope(problem.data))[0]
        scale = own if scale is None else own * scale.astype(own.dtype)
    return Named(known.variable, index, scale)


def elements(
    problem: Problem, view: View, said: Sequence[Array], fan: int, label: Constraint
) -> list[Element]:
    """What is said of an operand, of the parameters that it is made of."""
    gradient, square, readers = said
    if view.scales:
        slope = view.slope(problem.data)
        square = square * slope
        readers = jnp.where(slope == 0, 0, readers / jnp.where(slope == 0, 1, slope))
    pulled = (view.pull(problem.data, x) for x in (gradient, square, readers))
    return [
        Element(g, s, r, base, fan, label)
        for base, g, s, r in zip(view.bases, *pulled, strict=True)
    ]


def _loop(
    problem: Problem,
    constraints: Sequence[Constraint],
    rule: LoopRule,
    residuals: dict[Variable, Array],
    names: Names,
    reach: float,
) -> Asked:
    """Go back through a scan step by step; its parameters are asked by all steps at once."""
    scan, body, variable = rule.loop.scan, rule.body, rule.loop.variable
    label = constraints[0]
    operands, views = problem.operands(label, problem.start), label.operands
    first, last = scan.consts, scan.consts + scan.carries
    inputs = dict(zip(np.flatnonzero(variable).tolist(), body.parameters, strict=True))
    own = {i for i, view in label.reads if names.keys() >= set(view.bases)}
    inner: dict[Variable, Named | None] = {}
    for i, v in inputs.items():
        view = views[i]
        if i in own and not first <= i < last and isinstance(view, View):
            inner[v] = _named(problem, view, names) if i < first else None
    asked = {c.params["output"]: residuals[c.out] for c in constraints if c.out in residuals}
    carries = [i for i in range(first, last) if variable[i]]
    others = [i for i in inputs if i not in carries and inputs[i] not in inner]
    slots = [problem.data[v] for v in rule.slots]

    def step(carried: Any, now: Any) -> Any:
        slots, xs, later = now
        known = [*operands[:first], *slots, *xs]
        moving = [x for x, v in zip(known, variable, strict=True) if v]
        fixed = [x for x, v in zip(known, variable, strict=True) if not v]
        here = Problem.forward(body, problem.metric, moving, fixed)
        within: dict[Variable, Array] = {}
        for i, view in enumerate(body.outputs):
            residual = carried.get(i + first) if i < scan.carries else later.get(i)
            if view is not None and residual is not None:
                ask(here, within, view, residual)
        found = go_back(here, within, inner, reach, label)
        zeros = {i: jnp.zeros_like(known[i]) for i in (*carries, *others)}
        handed = {i: within.get(inputs[i], zero) for i, zero in zeros.items()}
        return {i: handed[i] for i in carries}, (found, {i: handed[i] for i in others})

    start = {i: asked.get(i - first, jnp.zeros_like(operands[i])) for i in carries}
    later = {i: residual for i, residual in asked.items() if i >= scan.carries}
    carried, (found, handed) = jax.lax.scan(
        step, start, (slots, operands[last:], later), reverse=not scan.reverse
    )
    outside = Asked([], [])
    for i, residual in {**carried, **handed}.items():
        view = views[i]
        if not isinstance(view, View):
            continue
        total = jnp.sum(residual, 0) if i < first else residual
        if i in own:
            ones = jnp.ones_like(total)
            outside.elements.extend(elements(problem, view, (total, ones, ones), 1, label))
        else:
            ask(problem, residuals, view, total)
    places = {v: i for i, v in inputs.items()}
    outside.readers.extend(map(_over_time, found.readers))
    for e in found.elements:
        i = places[e.variable]
        view = views[i]
        assert isinstance(view, View)
        said = [jnp.sum(x, 0) if i < first else x for x in (e.gradient, e.square, e.readers)]
        outside.elements.extend(elements(problem, view, said, e.fan, label))
    return outside


def _over_time(reader: Reader) -> Reader:
    """A reader in the body of a scan, whose arrays have the time first, as one of all steps."""
    columns = tuple(
        dataclasses.replace(c, matrix=jax.tree.map(_rows_of_all, c.matrix), squares=c.squares[0])
        for c in reader.columns
    )
    return dataclasses.replace(reader, target=_rows_of_all(reader.target), columns=columns)


def _rows_of_all(x: Array) -> Array:
    """Time and rows as rows."""
    return x.reshape((-1, *x.shape[2:]))
