"""What a function compiles to and what that costs, as text: ``projected.explain(...)``.

Nothing is run and nothing is compiled. Sizes follow from shapes; operations are those that XLA
counts in the lowered code, whose loops are multiplied out here: those that may stop early, as
conjugate gradients do, as if they ran to their limit.
"""

import collections
import dataclasses
import math
import os
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace import _compat
from pjax_trace.build import OUTPUTS, build_graph
from pjax_trace.calls import BatchedRule, loss_p
from pjax_trace.errors import TraceError
from pjax_trace.granularity import BlockRule, Granularity, coarsen
from pjax_trace.graph import ConsensusGraph, Constraint, Operand, Variable, View
from pjax_trace.lower import expand_copies
from pjax_trace.registry import Rule, Weights
from pjax_trace.trace import Program, trace_program

__all__ = ["Explanation", "Row", "explanation", "operations", "rule_name"]

WIDTH = 100
# With more constraints than this, those that are alike are shown once.
MANY = 40
# Where a line must not end.
_BLANK = "\N{NO-BREAK SPACE}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One constraint: what it is, what it reads, what it costs.

    Attributes:
        name: of the constraint.
        rule: the class of its rule.
        family: of the rule.
        granularity: of the rule.
        exactness: of the rule.
        colour: ``"A"`` is projected first, ``"B"`` second.
        source: file, line and function.
        scope: the ``jax.named_scope`` stack.
        out: dtype and shape of its output; empty for an output constraint.
        operands: variables with their shapes, views in front of them, and data.
        repeats: for an identity that was inserted for the colouring, the variable.
        folded: what else it does the work of.
        bytes: of its output, a variable.
        copies: how many scalars an explicit copy for each scalar equation would hold.
        copy_bytes: of these copies.
        flops: operations of one projection; None if XLA does not count them.
    """

    name: str
    rule: str
    family: str
    granularity: str
    exactness: str
    colour: str
    source: str
    scope: str
    out: str
    operands: tuple[str, ...]
    repeats: str
    folded: tuple[str, ...]
    bytes: int
    copies: int
    copy_bytes: int
    flops: float | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a function compiles to; ``str`` makes it a table.

    Attributes:
        name: of the function.
        with_copies: whether the solver keeps explicit copies; ``flops`` are counted accordingly.
        rows: the constraints, in program order.
        parameters: names of the parameters.
        parameter_bytes: of all of them.
        unread: names of the parameters that no constraint reads; they never move.
        views: primitives that are views, with how many equations each has.
        frozen: what is computed from variables, but stays at its value of the forward pass.
        problems: everything that has no projection, with source lines and reasons.
        forward_flops: operations of the function's own forward pass, or None.
    """

    name: str
    with_copies: bool
    rows: tuple[Row, ...] = ()
    parameters: tuple[str, ...] = ()
    parameter_bytes: int = 0
    unread: tuple[str, ...] = ()
    views: tuple[tuple[str, int], ...] = ()
    frozen: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    forward_flops: float | None = None

    @property
    def bytes(self) -> int:
        """Of all variables."""
        return self.parameter_bytes + sum(row.bytes for row in self.rows)

    @property
    def copies(self) -> int:
        """How many scalars all explicit copies would hold."""
        return sum(row.copies for row in self.rows)

    @property
    def copy_bytes(self) -> int:
        """Of all explicit copies."""
        return sum(row.copy_bytes for row in self.rows)

    @property
    def flops(self) -> float | None:
        """Operations of a step, which projects onto every constraint once."""
        return _total(row.flops for row in self.rows)

    def __str__(self) -> str:
        hidden = sum(bool(row.out) for row in self.rows)
        lines = [
            f"{self.name}: {_count(len(self.parameters), 'parameter')}, "
            f"{_count(hidden, 'hidden variable')}, {_count(len(self.rows), 'constraint')}"
        ]
        for problem in self.problems:
            lines += ["", *_wrapped(problem)]
        if not self.rows:
            lines += ["", "There are no constraints."]
        else:
            lines += ["", *self._constraints(), "", *self._rules(), "", *self._totals()]
        return "\n".join(lines)

    __repr__ = __str__

    def _constraints(self) -> list[str]:
        """The table of constraints."""
        groups = [[row] for row in self.rows]
        if len(groups) > MANY:
            alike: dict[Hashable, list[Row]] = {}
            for row in self.rows:
                alike.setdefault(_likeness(row), []).append(row)
            groups = list(alike.values())
        head = ["", "constraint", "rule", "source", "output", "copies", "in bytes", "flops"]
        table = [head]
        for group in groups:
            row = group[0]
            table.append(
                [
                    "".join(sorted({r.colour for r in group})),
                    row.name + (f" ×{len(group)}" if len(group) > 1 else ""),
                    row.rule,
                    _short(row.source),
                    _bytes(sum(r.bytes for r in group)) if row.out else "–",
                    _number(sum(r.copies for r in group)),
                    _bytes(sum(r.copy_bytes for r in group)),
                    _number(_total(r.flops for r in group)),
                ]
            )
        lines = _aligned(table, numbers=4)
        result = [lines[0]]
        for group, line in zip(groups, lines[1:], strict=True):
            result += [line, *_details(group[0])]
        return result

    def _rules(self) -> list[str]:
        """The table of rules."""
        table = [["", "rule", "family", "granularity", "exactness", "constraints", "flops"]]
        rules: dict[Hashable, list[Row]] = {}
        for row in self.rows:
            key = (row.rule, row.family, row.granularity, row.exactness)
            rules.setdefault(key, []).append(row)
        for key, rows in rules.items():
            table.append(["", *key, str(len(rows)), _number(_total(row.flops for row in rows))])  # pyright: ignore
        return _aligned(table, numbers=2)

    def _totals(self) -> list[str]:
        """What all constraints make together, and what became no constraint."""
        without, total = _bytes(self.bytes), _bytes(self.bytes + self.copy_bytes)
        here = ("", ", as here") if self.with_copies else (", as here", "")
        entries = [
            ("variables", f"{without}, of them parameters {_bytes(self.parameter_bytes)}"),
            ("copies", f"{_number(self.copies)} scalars, {_bytes(self.copy_bytes)}"),
            ("memory", f"{without} without copies{here[0]}; {total} with copies{here[1]}"),
            ("flops", self._operations()),
        ]
        if self.views:
            parts = [f"{name} ×{n}" if n > 1 else name for name, n in self.views]
            entries.append(("views", f"{sum(n for _, n in self.views)}: " + ", ".join(parts)))
        identities = [f"{row.name} of {row.repeats}" for row in self.rows if row.repeats]
        if identities:
            entries.append(("identities", "inserted for two colours: " + ", ".join(identities)))
        if self.frozen:
            entries.append(("frozen", ", ".join(self.frozen)))
        if self.unread:
            entries.append(("unread", "parameters that never move: " + ", ".join(self.unread)))
        return [line for name, text in entries for line in _wrapped(f"{name:<12}{text}", 12)]

    def _operations(self) -> str:
        step, forward = _number(self.flops), _number(self.forward_flops)
        if self.flops is None or not self.forward_flops:
            return f"{step} per step, {forward} per forward pass"
        ratio = self.flops / self.forward_flops
        return f"{step} per step, {ratio:.1f} times the {forward} of a forward pass"


def explanation(
    function: Callable[[list[Any], list[Any]], Any],
    parameters: Sequence[Any],
    data: Sequence[Any],
    *,
    names: Sequence[str],
    name: str = "the function",
    copies: bool = False,
    granularity: Granularity | Mapping[str, Granularity] = "row",
) -> Explanation:
    """Explain what ``function(parameters, data)`` compiles to, or why it cannot be compiled.

    Args:
        function: takes two lists of arrays.
        parameters: arrays or shapes of the variables.
        data: the same for the data.
        names: what to call the arrays, parameters first.
        name: what to call the function.
        copies: whether the projections are those onto explicit copies.
        granularity: of the constraints, see `pjax_trace.project`.

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

    def traced(roots: tuple[Any, ...]) -> Program:
        return trace_program(
            function, parameters, data, names=names, source=name, roots=roots, objectives=(loss_p,)
        )

    problems: list[str] = []
    try:
        program = traced(OUTPUTS)
        if not any(e.primitive in OUTPUTS for e in program.equations):
            problems.append(
                "There is no output constraint, so there is nothing to solve for: use a loss of "
                "pjax_trace.losses on what the function computes, or pjax_trace.constrain. What "
                "its outputs alone compile to:"
            )
            program = traced(())
        graph = coarsen(build_graph(program, strict=False), granularity)
    except TraceError as error:
        return Explanation(name, copies, problems=(*problems, str(error)))
    problems += graph.problems
    expanded = expand_copies(graph)
    count = _Counter()
    rows = []
    for c, private in zip(graph.constraints, expanded.constraints, strict=True):
        try:
            flops = count.projection(private if copies else c, program)
        except Exception as error:  # a projection of the user's own may raise anything
            flops = None
            problems.append(f"The projection onto {c.label} fails: {type(error).__name__}: {error}")
        rows.append(_row(graph, c, private, flops))
    own = [v for v in graph.parameters if v.value in program.parameters]
    equations = {e for c in graph.constraints for _, view in c.reads for e in view.equations}
    views = collections.Counter(e.primitive.name for e in sorted(equations, key=lambda e: e.index))

    def forward(parameters: list[Any], data: list[Any]) -> list[Any]:
        # All values: what constrain takes comes from no output of the function.
        return list(program.evaluate(parameters, data).values())

    return Explanation(
        name=name,
        with_copies=copies,
        rows=tuple(rows),
        parameters=tuple(v.name for v in own),
        parameter_bytes=sum(map(_size, own)),
        # What has no projection may read anything.
        unread=() if graph.problems else tuple(v.name for v in own if not graph.readers[v]),
        views=tuple(views.items()),
        frozen=tuple(f"{e.primitive.name} at {_short(e.source)}" for e in program.frozen),
        problems=tuple(problems),
        forward_flops=operations(forward, list(parameters), list(data)),
    )


def _row(graph: ConsensusGraph, c: Constraint, private: Constraint, flops: float | None) -> Row:
    rule = c.rule.inner if isinstance(c.rule, BatchedRule) else c.rule
    copies = [view for _, view in private.reads]
    repeats = c.out.repeats if c.out is not None else None
    return Row(
        name=c.name,
        rule=rule_name(c.rule),
        family=rule.family,
        granularity=rule.granularity,
        exactness=rule.exactness,
        colour="AB"[graph.colours[c]],
        source=c.source,
        scope=c.scope,
        out="" if c.out is None else f"{np.dtype(c.out.dtype).name}{_dims(c.out.shape)}",
        operands=tuple(_operand(o, graph.program) for o in c.operands),
        repeats="" if repeats is None else repeats.name,
        folded=c.folded,
        bytes=0 if c.out is None else _size(c.out),
        copies=sum(math.prod(view.shape) for view in copies),
        copy_bytes=sum(map(_size, copies)),
        flops=flops,
    )


def rule_name(rule: Rule) -> str:
    """The class of a rule, and whether it is mapped over a batch."""
    if isinstance(rule, BatchedRule):
        return f"vmap({rule_name(rule.inner)})"
    if isinstance(rule, BlockRule):
        return f"block({rule_name(rule.inner)})"
    return type(rule).__name__


def _operand(operand: Operand, program: Program) -> str:
    if isinstance(operand, View):
        bases = [f"{base.name}{_dims(base.shape)}" for base in operand.bases]
        text = bases[0] if len(bases) == 1 else f"({', '.join(bases)})"
        return text if operand.identity else f"{text} → {_dims(operand.shape)}"
    known = program.known.get(operand)
    if known is not None and not operand.shape:
        return f"{np.asarray(known)}"
    return f"data {operand.name}".rstrip() + _dims(operand.shape)


class _Counter:
    """Counts the operations of projections, each kind once."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, float | None] = {}

    def projection(self, c: Constraint, program: Program) -> float | None:
        """Operations of one projection onto a constraint."""
        known = [None if isinstance(o, View) else program.known.get(o) for o in c.operands]
        shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in c.operands]
        out = None if c.out is None else jax.ShapeDtypeStruct(c.out.shape, c.out.dtype)

        def project(operands: list[Any], target: Any, mass: Any) -> Any:
            arrays = [
                x if k is None else jnp.asarray(k) for x, k in zip(operands, known, strict=True)
            ]
            weights = Weights(tuple(1.0 if v else None for v in c.variable), mass)
            answer = c.rule.project(c.params, arrays, target, weights)
            # The masses are known before the first step.
            firsts = [None if m is None else m.first for m in answer.moments]
            return firsts, answer.out, answer.distance

        values = tuple(o for o, k in zip(c.operands, known, strict=True) if k is not None)
        structs = tuple((s.shape, s.dtype) for s in (*shapes, *(() if out is None else (out,))))
        key: Hashable = (c.rule, tuple(c.params.items()), c.variable, values, structs)
        try:
            hash(key)
        except TypeError:  # params need not be hashable
            key = c
        if key not in self._seen:
            limit = c.rule.options.iterations if isinstance(c.rule, BlockRule) else 1
            self._seen[key] = operations(project, shapes, out, out, limit=limit)
        return self._seen[key]


def operations(function: Callable[..., Any], *args: Any, limit: int = 1) -> float | None:
    """The operations of a function by XLA's count, with loops multiplied out; None without one.

    Lowering sees into losses and functions with rules of their own, which are opaque in a jaxpr;
    whole updates have none of these, but calls of LAPACK, which only benchmarks/flops.py counts.

    Args:
        function: of arrays; it is traced and lowered, and not run.
        args: arrays or shapes.
        limit: how often loops run whose length is not known.
    """
    once = _counted(function, *args)
    if once is None:
        return None
    return once + _repeated(jax.make_jaxpr(function)(*args).jaxpr, limit)


def _counted(function: Callable[..., Any], *args: Any) -> float | None:
    """XLA's count, tanh and the like as one operation each, the body of every loop once."""
    lowered = jax.jit(function).lower(*args)
    try:
        analysis: Any = lowered.cost_analysis()
    except NotImplementedError:  # not every backend counts
        return None
    if isinstance(analysis, Sequence):
        analysis = analysis[0] if analysis else None
    if not analysis:
        return None
    counts = [analysis.get(key, 0.0) for key in ("flops", "transcendentals")]
    return sum(max(float(count), 0.0) for count in counts)


def _repeated(jaxpr: Any, limit: int) -> float:
    """What the loops in a jaxpr add to it by running more than once."""
    total = 0.0
    for eqn in jaxpr.eqns:
        call, loop = _compat.call_body(eqn), _compat.loop_body(eqn)
        if call is not None:
            total += _repeated(call[0], limit)
        elif loop is not None:
            body, length = loop
            length = limit if length is None else length
            args = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
            once = _counted(lambda *xs, body=body: _compat.run_jaxpr(body, *xs), *args)
            total += (length - 1) * (once or 0.0) + length * _repeated(body.jaxpr, limit)
    return total


def _size(array: Variable | View) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _total(counts: Iterable[float | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _likeness(row: Row) -> Hashable:
    """What rows must share to be shown as one: everything but colours and names."""
    shapes = tuple(text.rpartition("[")[2] for text in row.operands)
    rule = (row.rule, row.family, row.granularity, row.exactness)
    return rule, row.source, row.scope, row.out, shapes, bool(row.repeats), row.copies


def _details(row: Row) -> list[str]:
    """The lines below a row of the table."""
    operands = ", ".join(text.replace(" ", _BLANK) for text in row.operands)
    lines = _wrapped(f"     {row.out} = {operands}" if row.out else f"     on {operands}", 7)
    notes = [f"in {row.scope}"] if row.scope else []
    if row.folded:
        notes.append("folded in: " + ", ".join(map(_short_label, row.folded)))
    lines += _wrapped("     " + "; ".join(notes), 7)
    return lines


def _aligned(table: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """Rows in columns, of which the last ones are flush right.

    Where that is too wide, the widest words lose their middle.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    first = len(widths) - numbers
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths[:first]) > 8:
        widths[widths.index(max(widths[:first]))] -= 1
    return [
        "  ".join(
            word.rjust(width) if i >= first else _cut(word, width).ljust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _cut(word: str, width: int) -> str:
    half = (width - 1) // 2
    return word if len(word) <= width else f"{word[: width - 1 - half]}…{word[-half:]}"


def _wrapped(text: str, indent: int = 2) -> list[str]:
    """Lines of at most `WIDTH` characters where there are blanks; continuations are indented."""
    lines = []
    for line in text.split("\n"):
        margin = " " * (len(line) - len(line.lstrip()))
        rest = " " * indent if indent > 2 else margin + "    " if margin else ""
        lines += textwrap.wrap(
            line,
            WIDTH,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return [line.replace(_BLANK, " ") for line in lines]


def _short(source: str) -> str:
    """``file.py:12``: no folders and no function."""
    return os.path.basename(source.split(" (")[0])


def _short_label(label: str) -> str:
    name, _, source = label.partition(" at ")
    return f"{name} at {_short(source)}" if source else label


def _dims(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _number(n: float | None) -> str:
    """Three digits and a prefix."""
    if n is None:
        return "–"
    units = ["", "k", "M", "G", "T", "P"]
    while n >= 999.5 and len(units) > 1:
        n, units = n / 1000, units[1:]
    if not units[0]:
        return f"{n:.0f}"
    return (f"{n:.0f} " if n >= 99.95 else f"{n:.1f} ") + units[0]


def _bytes(n: int) -> str:
    number = _number(n)
    return number + ("B" if " " in number else " B")
