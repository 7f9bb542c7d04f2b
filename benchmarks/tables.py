"""Plain tables to print and JSON files to keep."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["format_table", "spread", "write_json"]


def format_table(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> str:
    """Rows as aligned text: ``formats`` gives the columns, in order, and each one's format.

    A value of None is printed as a dash. Text is aligned to the left, numbers to the right.

    >>> print(format_table([{"name": "a", "ms": 1.25}, {"name": "bc", "ms": None}],
    ...                    {"name": "", "ms": ".1f"}))
    name   ms
    ---------
    a     1.2
    bc      -
    """
    cells = [
        ["-" if row[name] is None else format(row[name], spec) for name, spec in formats.items()]
        for row in rows
    ]
    columns = list(zip(formats, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    left = [all(isinstance(row[name], str | None) for row in rows) for name in formats]
    lines = [
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def spread(shares: Sequence[float]) -> str | None:
    """Mean and standard deviation in percent, the latter of more than one; None of none.

    >>> spread([0.5]), spread([0.49, 0.5, 0.51])
    ('50.00', '50.00 ± 1.00')
    """
    if not shares:
        return None
    mean = f"{100 * statistics.mean(shares):.2f}"
    return mean if len(shares) < 2 else f"{mean} ± {100 * statistics.stdev(shares):.2f}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write what a command printed to ``path``, indented."""
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
