"""Tables and plots of what ``benchmarks.comparison`` wrote: ``python -m benchmarks.report FILE``.

A row for each network and data set, a column for each optimizer. A cell shows the test accuracy in
percent with its standard deviation over seeds, the same of averaged parameters if the optimizer
keeps them, and the seconds of training. Where an optimizer was run in several configurations, that
which is best in validation is shown.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arguments
from benchmarks.records import RecordError, Records, read_rows
from benchmarks.running import Point

__all__ = ["Group", "group", "main", "markdown"]

Row = dict[str, str]

NETWORK = ("dataset", "data", "model_type", "hidden_features", "skip", "margin_loss", "seq_len")


class Group:
    """Runs of one configuration, which differ in their seeds."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows
        self.optimizer = rows[0]["optimizer"]

    def values(self, name: str) -> list[float]:
        """A column's numbers."""
        return [float(row[name]) for row in self.rows if row[name]]

    @property
    def validation(self) -> float:
        """The mean of the best accuracies in validation, of averages where there are some."""
        return statistics.mean(self.values("validation_averaged") or self.values("validation"))

    def cell(self) -> str:
        """The cell of a table."""
        parts = [spread(self.values("test"))]
        if averaged := self.values("test_averaged"):
            parts.append(spread(averaged))
        return f"{', '.join(parts)}; {statistics.mean(self.values('train_seconds')):.3g} s"

    def settings(self) -> str:
        """The options that belong to the optimizer, as far as they are set."""
        names = ("batch_size", "learning_rate", "steps_per_update", "granularity", "schedule")
        first = self.rows[0]
        return ", ".join(f"{name.replace('_', ' ')} {first[name]}" for name in names if first[name])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    try:
        rows = [row for path in options.files for row in read_rows(path)]
        networks = group(rows)
        print(markdown(networks))
        if options.plot:
            curves = {row["run"]: path for path in options.files for row in read_rows(path)}
            plot(networks, curves, options.plot)
            print(f"curves: {options.plot}", file=sys.stderr)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
