"""Tables and paragraphs of fixed width, and numbers that are read at a glance."""

import os
import textwrap
from collections.abc import Sequence

__all__ = [
    "BLANK",
    "WIDTH",
    "aligned",
    "count",
    "cut",
    "dims",
    "number",
    "short",
    "size_in_bytes",
    "wrapped",
]

WIDTH = 100
# Where a line must not end.
BLANK = "\N{NO-BREAK SPACE}"


def aligned(table: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """Rows in columns, of which the last ones are flush right.

    Where that is too wide, the widest words lose their middle.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    first = len(widths) - numbers
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths[:first]) > 8:
        widths[widths.index(max(widths[:first]))] -= 1
    return [
        "  ".join(
            word.rjust(width) if i >= first else cut(word, width).ljust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def cut(word: str, width: int) -> str:
    """A word without its middle, if it is too wide."""
    half = (width - 1) // 2
    return word if len(word) <= width else f"{word[: width - 1 - half]}…{word[-half:]}"


def wrapped(text: str, indent: int = 2) -> list[str]:
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
    return [line.replace(BLANK, " ") for line in lines]


def short(source: str) -> str:
    """``file.py:12``: no folders and no function."""
    return os.path.basename(source.split(" (")[0])


def dims(shape: Sequence[int]) -> str:
    """A shape, without blanks."""
    return f"[{','.join(map(str, shape))}]"


def count(n: int, noun: str) -> str:
    """So many of something."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def number(n: float | None) -> str:
    """Three digits and a prefix."""
    if n is None:
        return "–"
    units = ["", "k", "M", "G", "T", "P"]
    while n >= 999.5 and len(units) > 1:
        n, units = n / 1000, units[1:]
    if not units[0]:
        return f"{n:.0f}"
    return (f"{n:.0f} " if n >= 99.95 else f"{n:.1f} ") + units[0]


def size_in_bytes(n: int) -> str:
    """A number of bytes, as `number`."""
    text = number(n)
    return text + ("B" if " " in text else " B")
