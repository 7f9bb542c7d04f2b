"""What a function compiles to, as a table."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

from pjax_trace.text import (
    BLANK,
    aligned,
    count,
    number,
    short,
    size_in_bytes,
    wrapped,
)

__all__ = ["MANY", "Explanation", "Row", "total"]

# With more constraints than this, those that are alike are shown once.
MANY = 40


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
        with_copies: whether the solver keeps copies; ``flops`` are counted accordingly.
        kept_bytes: what is kept of them, if there are any: of copies that only data tell apart,
            one array and a number for each scalar equation.
        schedule: which constraints are projected together.
        rows: the constraints, in program order.
        parameters: names of the parameters.
        parameter_bytes: of all of them.
        unread: names of the parameters that no constraint reads; they never move.
        views: primitives that are views, with how many equations each has.
        frozen: what is computed from variables, but stays at its value of the forward pass.
        problems: everything that has no projection, with source lines and reasons.
        forward_flops: operations of the function's own forward pass, or None.
        step_flops: operations of a whole step, if they were counted.
    """

    name: str
    with_copies: bool
    kept_bytes: int = 0
    schedule: str = "parallel"
    rows: tuple[Row, ...] = ()
    parameters: tuple[str, ...] = ()
    parameter_bytes: int = 0
    unread: tuple[str, ...] = ()
    views: tuple[tuple[str, int], ...] = ()
    frozen: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    forward_flops: float | None = None
    step_flops: float | None = None

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
        """Operations of a step; if it was not counted as a whole, of all projections."""
        return self.step_flops or total(row.flops for row in self.rows)

    def __str__(self) -> str:
        hidden = sum(bool(row.out) for row in self.rows)
        lines = [
            f"{self.name}: {count(len(self.parameters), 'parameter')}, "
            f"{count(hidden, 'hidden variable')}, {count(len(self.rows), 'constraint')}"
        ]
        for problem in self.problems:
            lines += ["", *wrapped(problem)]
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
        swept = self.schedule == "sweep"
        head = ["", "constraint", "rule", "source", "output", "copies", "in bytes", "flops"]
        table = [head[:5] + head[7:] if swept else head]
        for group in groups:
            row = group[0]
            table.append(
                [
                    "".join(sorted({r.colour for r in group})),
                    row.name + (f" ×{len(group)}" if len(group) > 1 else ""),
                    row.rule,
                    short(row.source),
                    size_in_bytes(sum(r.bytes for r in group)) if row.out else "–",
                    *(() if swept else _copies(group)),
                    number(total(r.flops for r in group)),
                ]
            )
        lines = aligned(table, numbers=2 if swept else 4)
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
            table.append(["", *key, str(len(rows)), number(total(row.flops for row in rows))])  # pyright: ignore
        return aligned(table, numbers=2)

    def _totals(self) -> list[str]:
        """What all constraints make together, and what became no constraint."""
        without, total = size_in_bytes(self.bytes), size_in_bytes(self.bytes + self.copy_bytes)
        here = ("", ", as here") if self.with_copies else (", as here", "")
        if self.with_copies and self.kept_bytes != self.copy_bytes:
            here = ("", f"; {size_in_bytes(self.bytes + self.kept_bytes)} with what is kept here")
        entries = [
            ("variables", f"{without}, of them parameters {size_in_bytes(self.parameter_bytes)}"),
            ("copies", f"{number(self.copies)} scalars, {size_in_bytes(self.copy_bytes)}"),
            ("memory", f"{without} without copies{here[0]}; {total} with copies{here[1]}"),
            ("flops", self._operations()),
        ]
        if self.schedule == "sweep":
            del entries[1:3]
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
        return [line for name, text in entries for line in wrapped(f"{name:<12}{text}", 12)]

    def _operations(self) -> str:
        what = "sweep" if self.schedule == "sweep" else "step"
        step, forward = number(self.flops), number(self.forward_flops)
        if self.flops is None or not self.forward_flops:
            return f"{step} per {what}, {forward} per forward pass"
        ratio = self.flops / self.forward_flops
        return f"{step} per {what}, {ratio:.1f} times the {forward} of a forward pass"


def total(counts: Iterable[float | None]) -> float | None:
    """The sum of what is known; None if nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _copies(group: Sequence[Row]) -> tuple[str, str]:
    """How many scalars copies of a group of rows would hold, and in bytes."""
    copies, total = sum(r.copies for r in group), sum(r.copy_bytes for r in group)
    return number(copies), size_in_bytes(total)


def _likeness(row: Row) -> Hashable:
    """What rows must share to be shown as one: everything but colours and names."""
    shapes = tuple(text.rpartition("[")[2] for text in row.operands)
    rule = (row.rule, row.family, row.granularity, row.exactness)
    return rule, row.source, row.scope, row.out, shapes, bool(row.repeats), row.copies


def _details(row: Row) -> list[str]:
    """The lines below a row of the table."""
    operands = ", ".join(text.replace(" ", BLANK) for text in row.operands)
    lines = wrapped(f"     {row.out} = {operands}" if row.out else f"     on {operands}", 7)
    notes = [f"in {row.scope}"] if row.scope else []
    if row.folded:
        notes.append("folded in: " + ", ".join(map(_short_label, row.folded)))
    lines += wrapped("     " + "; ".join(notes), 7)
    return lines


def _short_label(label: str) -> str:
    name, _, source = label.partition(" at ")
    return f"{name} at {short(source)}" if source else label
