"""What has a rule: the table in rules/README.md, made from the registry.

``python -m pjax_trace.coverage rules/README.md`` brings the table in a file up to date.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pjax_trace.registry import FunctionEntry, entries, function_entries
from pjax_trace.rule import Rule
from pjax_trace.translation import Translation

__all__ = ["Line", "read", "rows", "table", "update"]

START = "<!-- coverage: made by python -m pjax_trace.coverage rules/README.md -->"
END = "<!-- end of coverage -->"
HEAD = ("primitive or function", "family", "granularity", "exactness", "since JAX", "note")


class Line(NamedTuple):
    """A line of the table."""

    name: str
    family: str
    granularity: str
    exactness: str
    since: str
    note: str


def rows() -> list[Line]:
    """All primitives that this JAX has and the registry knows, then functions, each by name."""
    primitives = [_line(p.name, e.translation, e.since, e.note) for p, e in entries().items()]
    functions = dict.fromkeys(_function(entry) for entry in function_entries())
    return [*sorted(primitives), *sorted(functions)]


def _line(name: str, of: Translation | Rule, since: str, note: str) -> Line:
    note = "; ".join(filter(None, (getattr(of, "reason", ""), note)))
    return Line(f"`{name}`", of.family, of.granularity, of.exactness, since, note)


def _function(entry: FunctionEntry) -> Line:
    name = getattr(entry.function, "__name__", "function")
    module = getattr(entry.function, "__module__", "")
    if module.startswith("jax"):
        name = f"jax.nn.{name}"
    return _line(name, entry.rule, "0.10", entry.note)


def table() -> str:
    """The table, in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *rows()]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def read(text: str) -> list[Line]:
    """The rows of the table in a text."""
    body = text.split(START)[1].split(END)[0].strip().splitlines()[2:]
    return [Line(*(cell.strip() for cell in line[1:-1].split(" | "))) for line in body]


def update(text: str) -> str:
    """The text, with the table in it made anew."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


def main(argv: Sequence[str]) -> int:
    """Bring the table in a file up to date."""
    path = Path(argv[0])
    path.write_text(update(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
