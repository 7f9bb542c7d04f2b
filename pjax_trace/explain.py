"""What a function compiles to and what that costs, as text: ``projected.explain(...)``.

Nothing is run and nothing is compiled. Sizes follow from shapes; operations are those that XLA
counts in the lowered code, whose loops are multiplied out here: those that may stop early, as
conjugate gradients do, as if they ran to their limit.
"""

import collections
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace.block import hand_over
from pjax_trace.build import OUTPUTS, build_graph
from pjax_trace.copies import copies_along, expand_copies
from pjax_trace.custom import BatchedRule
from pjax_trace.errors import TraceError
from pjax_trace.explanation import Explanation, Row, total
from pjax_trace.granularity import BlockRule, Granularity, coarsen
from pjax_trace.graph import ConsensusGraph, Constraint, LoopRule, Operand
from pjax_trace.operations import operations
from pjax_trace.program import Program
from pjax_trace.rule import Request, Weights, title
from pjax_trace.text import dims, short
from pjax_trace.trace import trace_program
from pjax_trace.view import Variable, View

__all__ = ["explanation"]


def explanation(
    function: Callable[[list[Any], list[Any]], Any],
    parameters: Sequence[Any],
    data: Sequence[Any],
    *,
    names: Sequence[str],
    name: str = "the function",
    copies: bool = False,
    explicit: bool = True,
    granularity: Granularity | Mapping[str, Granularity] = "row",
    schedule: str = "parallel",
    step: Callable[[ConsensusGraph, list[Any], list[Any]], Any] | None = None,
    has_aux: bool = False,
    spread: bool = True,
) -> Explanation:
    """Explain what ``function(parameters, data)`` compiles to, or why it cannot be compiled.

    Args:
        function: takes two lists of arrays.
        parameters: arrays or shapes of the variables.
        data: the same for the data.
        names: what to call the arrays, parameters first.
        name: what to call the function.
        copies: whether the projections are those onto copies.
        explicit: whether all of these are kept, or only what data do not tell apart.
        granularity: of the constraints, see `pjax_trace.project`.
        schedule: which constraints are projected together. In a sweep scans stay one operation, and
            there are no colours and no copies.
        step: what makes a step, of the graph, parameters and data, if its operations are to be
            counted as a whole; else they are those of one projection onto every constraint.
        has_aux: whether the first output alone is the objective.
        spread: whether there are copies even where there is no use for them.

    Returns:
        An `Explanation`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pjax_trace.explain import explanation
        >>> from pjax_trace.losses import squared_error
        >>> def fit(parameters, data):
        ...     (w, b), (x, y) = parameters, data
        ...     return squared_error(jax.nn.relu(x @ w) + b[None], y)
        >>> w, b, x, y = (jnp.ones(shape) for shape in ((3, 2), (2,), (8, 3), (8, 2)))
        >>> e = explanation(fit, [w, b], [x, y], names=["w", "b", "x", "y"], name="fit")
        >>> print(str(e).splitlines()[0])
        fit: 2 parameters, 3 hidden variables, 4 constraints
        >>> [(row.name, row.copies) for row in e.rows]
        [('dot_general', 48), ('max', 16), ('add', 32), ('squared_error', 16)]
        >>> e.rows[0].operands, e.rows[2].operands
        (('data x[8,3]', 'w[3,2]'), ('max[8,2]', 'b[2] → [8,2]'))
    """

    def traced(kept: Literal["objective", "outputs"]) -> Program:
        return trace_program(
            function,
            parameters,
            data,
            names=names,
            source=name,
            kept=kept,
            has_aux=has_aux,
            lift=not sweep,
        )

    sweep = schedule == "sweep"

    problems: list[str] = []
    try:
        try:
            program = traced("objective")
            if not any(e.primitive in OUTPUTS for e in program.equations):
                raise TraceError(
                    "There is no output constraint, so there is nothing to solve for: return a "
                    "scalar that depends on the parameters, or call pjax_trace.constrain on what "
                    "is computed."
                )
        except TraceError as error:
            program = traced("outputs")  # which raises again what is no matter of the objective
            problems.append(f"{error} What the outputs alone compile to:")
        graph = build_graph(program, strict=False, schedule=schedule, copies=spread)
        graph = coarsen(graph, granularity)
        copies = copies and not graph.direct
    except TraceError as error:
        return Explanation(name, copies, schedule=schedule, problems=(*problems, str(error)))
    problems += graph.problems
    expanded = graph if sweep else expand_copies(graph)
    along = {} if explicit or sweep else copies_along(graph)
    kept = expand_copies(graph, along) if along else expanded
    numbers = [c.out for c, positions in along.items() for _ in positions if c.out is not None]
    counter = _Counter(sweep)
    rows = []
    lowered = (kept if copies else graph).constraints
    triples = zip(graph.constraints, expanded.constraints, lowered, strict=True)
    for c, private, lower in triples:
        try:
            flops = counter.step(lower, program)
        except Exception as error:  # a projection of the user's own may raise anything
            flops = None
            problems.append(f"The projection onto {c.label} fails: {type(error).__name__}: {error}")
        rows.append(_row(graph, c, None if sweep else private, flops))
    own = [v for v in graph.parameters if v.value in program.parameters]
    equations = {e for c in graph.constraints for _, view in c.reads for e in view.equations}
    views = collections.Counter(e.primitive.name for e in sorted(equations, key=lambda e: e.index))

    def forward(parameters: list[Any], data: list[Any]) -> list[Any]:
        # All values: what constrain takes comes from no output of the function.
        return list(program.evaluate(parameters, data).values())

    return Explanation(
        name=name,
        with_copies=copies,
        kept_bytes=sum(map(_size, [*(v for c in kept.constraints for _, v in c.reads), *numbers])),
        schedule=schedule,
        rows=tuple(rows),
        parameters=tuple(v.name for v in own),
        parameter_bytes=sum(map(_size, own)),
        # What has no projection may read anything.
        unread=() if graph.problems else tuple(v.name for v in own if not graph.readers[v]),
        views=tuple(views.items()),
        frozen=tuple(f"{e.primitive.name} at {short(e.source)}" for e in program.frozen),
        problems=tuple(problems),
        forward_flops=operations(forward, list(parameters), list(data)),
        step_flops=None
        if step is None or problems or not rows
        else operations(lambda p, d: step(graph, p, d), list(parameters), list(data)),
    )


def _row(
    graph: ConsensusGraph, c: Constraint, private: Constraint | None, flops: float | None
) -> Row:
    rule = c.rule.inner if isinstance(c.rule, BatchedRule) else c.rule
    copies = [] if private is None else [view for _, view in private.reads]
    repeats = c.out.repeats if c.out is not None else None
    return Row(
        name=c.name,
        rule=title(c.rule),
        family=rule.family,
        granularity=rule.granularity,
        exactness=rule.exactness,
        colour="AB"[graph.colours[c]] if c in graph.colours else "",
        source=c.source,
        scope=c.scope,
        out="" if c.out is None else f"{np.dtype(c.out.dtype).name}{dims(c.out.shape)}",
        operands=tuple(_operand(o, graph.program) for o in c.operands),
        repeats="" if repeats is None else repeats.name,
        folded=c.folded,
        bytes=0 if c.out is None else _size(c.out),
        copies=sum(math.prod(view.shape) for view in copies),
        copy_bytes=sum(map(_size, copies)),
        flops=flops,
    )


def _operand(operand: Operand, program: Program) -> str:
    if isinstance(operand, View):
        bases = [f"{base.name}{dims(base.shape)}" for base in operand.bases]
        text = bases[0] if len(bases) == 1 else f"({', '.join(bases)})"
        return text if operand.identity else f"{text} → {dims(operand.shape)}"
    known = program.known.get(operand)
    if known is not None and not operand.shape:
        return f"{np.asarray(known)}"
    return f"data {operand.name}".rstrip() + dims(operand.shape)


class _Counter:
    """Counts the operations of what a step does with a constraint, each kind once."""

    def __init__(self, sweep: bool) -> None:
        self._sweep = sweep
        self._seen: dict[Hashable, float | None] = {}

    def step(self, c: Constraint, program: Program) -> float | None:
        """Operations of a projection onto a constraint, or of the way back through it."""
        if isinstance(c.rule, LoopRule):
            body = c.rule.body
            inner = [self.step(own, body.program) for own in body.constraints]
            # Its outputs go back together, and are counted with the first.
            return (
                c.rule.loop.scan.length * (total(inner) or 0.0) if c.params["output"] == 0 else 0.0
            )
        known = [None if isinstance(o, View) else program.known.get(o) for o in c.operands]
        shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in c.operands]
        out = None if c.out is None else jax.ShapeDtypeStruct(c.out.shape, c.out.dtype)

        def arrays(operands: list[Any]) -> list[Any]:
            return [
                x if k is None else jnp.asarray(k) for x, k in zip(operands, known, strict=True)
            ]

        def project(operands: list[Any], target: Any, mass: Any) -> Any:
            weights = Weights(tuple(1.0 if v else None for v in c.variable), mass)
            answer = c.rule.project(c.params, arrays(operands), target, weights)
            # The masses are known before the first step.
            firsts = [None if m is None else m.first for m in answer.moments]
            return firsts, answer.out, answer.distance

        def back(operands: list[Any], target: Any, residual: Any) -> Any:
            request = Request(target, residual, c.variable, 0.5)
            return hand_over(c.rule, c.params, arrays(operands), request)

        values = tuple(o for o, k in zip(c.operands, known, strict=True) if k is not None)
        structs = tuple((s.shape, s.dtype) for s in (*shapes, *(() if out is None else (out,))))
        key: Hashable = (c.rule, tuple(c.params.items()), c.variable, values, structs)
        try:
            hash(key)
        except TypeError:  # params need not be hashable
            key = c
        if key not in self._seen:
            limit = c.rule.options.iterations if isinstance(c.rule, BlockRule) else 1
            done = back if self._sweep and out is not None else project
            self._seen[key] = operations(done, shapes, out, out, limit=limit)
        return self._seen[key]


def _size(array: Variable | View) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize
