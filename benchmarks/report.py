"""Tables and plots of what ``benchmarks.comparison`` wrote: ``python -m benchmarks.report FILE``.

A row for each network and data set, a column for each optimizer. A cell shows the test accuracy in
percent with its standard deviation over runs, the same of averaged parameters where there are some,
and the seconds of training. Of an optimizer that was run in several configurations that counts
which is best in validation. Curves are of validation, with the standard deviation as a band.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import arguments
from benchmarks.comparison import COLUMNS
from benchmarks.formats import is_finite
from benchmarks.options import CONFIGURATION, NETWORK, OPTIMIZERS
from benchmarks.records import RecordError, Records
from benchmarks.running import Point
from benchmarks.tables import spread

__all__ = ["Group", "Network", "main", "markdown", "networks", "plot"]

HOW = tuple(name for name in CONFIGURATION if name not in (*NETWORK, "seed"))
NUMBERS = ("batch_size", "validation", "test", "train_seconds")
OPTIONAL_NUMBERS = ("validation_averaged", "test_averaged")
AXES = {"samples": "samples", "seconds": "seconds of training", "flops": "operations"}


class Finished(NamedTuple):
    """A run: its row, and the records that its history is in."""

    row: dict[str, str]
    records: Records


class Group(NamedTuple):
    """Runs of one configuration, which differ in their seeds; ``others`` were not as good."""

    runs: list[Finished]
    others: int

    def values(self, name: str) -> list[float]:
        """A column's numbers."""
        return [float(run.row[name]) for run in self.runs if run.row[name]]

    def cell(self) -> str:
        """What a table shows of it."""
        accuracies = spread(self.values("test")), spread(self.values("test_averaged"))
        shown = ", ".join(filter(None, accuracies))
        seconds = statistics.mean(self.values("train_seconds"))
        return f"{shown}; {seconds:.{1 if seconds < 100 else 0}f} s"


class Network(NamedTuple):
    """A network on a data set, and how it was trained, by optimizer."""

    title: str
    groups: dict[str, Group]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    try:
        found = networks([run for path in options.files for run in finished(path)])
        print(markdown(found))
        if options.plot:
            plot(found, options.plot)
            print(f"curves: {options.plot}", file=sys.stderr)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def finished(path: Path) -> list[Finished]:
    """The runs of a table; of rows of the same run the last one counts.

    Raises:
        RecordError: if it is missing, damaged or another table.
    """
    if not path.exists():
        raise RecordError(f"{path} is missing: expected what benchmarks.comparison wrote")
    records = Records(path, COLUMNS)
    if not records.rows():
        raise RecordError(f"{path} holds no runs")
    rows = {row["run"]: row for row in records.rows()}
    for run, row in rows.items():
        for name in (*NUMBERS, *(name for name in OPTIONAL_NUMBERS if row[name])):
            if not is_finite(row[name]):
                raise RecordError(
                    f"{path} is damaged: {name} of the run {run} is {row[name]!r}, and no number"
                )
    return [Finished(row, records) for row in rows.values()]


def networks(runs: Sequence[Finished]) -> list[Network]:
    """The runs by network, in the order of their first ones, and by optimizer."""
    made: dict[tuple[str, ...], dict[tuple[str, ...], list[Finished]]] = {}
    for run in runs:
        network, how = (tuple(run.row[name] for name in part) for part in (NETWORK, HOW))
        made.setdefault(network, {}).setdefault(how, []).append(run)
    found = []
    for network, configurations in made.items():
        groups = {}
        for optimizer in OPTIMIZERS:
            several = [r for r in configurations.values() if r[0].row["optimizer"] == optimizer]
            if several:
                groups[optimizer] = Group(max(several, key=validation), len(several) - 1)
        dataset, data, *_ = network
        other = any(key[0] == dataset and key[1] != data for key in made)
        found.append(Network(title(network) + (f", data {data}" if other else ""), groups))
    return found


def title(network: Sequence[str]) -> str:
    """A network as a table names it."""
    dataset, _, kind, hidden, skip, margin, length = network
    extras = [name for name, said in (("skips", skip), ("margin", margin)) if said == "True"]
    extras += [f"{length} characters"] if length else []
    return ", ".join([dataset, f"{kind} {hidden.replace(' ', '-')}", *extras])


def validation(runs: Sequence[Finished]) -> float:
    """The mean of what was best in validation, of averages where there are some."""
    return statistics.mean(
        float(run.row["validation_averaged"] or run.row["validation"]) for run in runs
    )


def markdown(found: Sequence[Network]) -> str:
    """A table of them, with a line below that explains it, and one for each choice made."""
    columns = [name for name in OPTIMIZERS if any(name in network.groups for network in found)]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    notes = []
    for network in found:
        cells = [network.groups[name].cell() if name in network.groups else "–" for name in columns]
        lines.append(f"| {network.title} | {' | '.join(cells)} |")
        for optimizer, group in network.groups.items():
            if group.others:
                row = group.runs[0].row
                how = ", ".join(f"{name} {row[name]}" for name in HOW[1:] if row[name])
                notes.append(
                    f"{network.title}, {optimizer}: the best in validation of "
                    f"{1 + group.others} configurations, {how}."
                )
    counts = sorted({len(g.runs) for network in found for g in network.groups.values()})
    runs = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    caption = (
        f"Test accuracy in %, mean and standard deviation of {runs} runs, after the comma that of "
        "averaged parameters; seconds of training."
    )
    return "\n".join([*lines, "", caption, *notes])


def plot(found: Sequence[Network], path: Path) -> None:
    """Save curves of accuracy in validation; those of averaged parameters are dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(AXES), squeeze=False)
    for network, line in zip(found, grid, strict=True):
        for axes, (name, label) in zip(line, AXES.items(), strict=True):
            for i, (optimizer, group) in enumerate(network.groups.items()):
                for averaged in (False, True):
                    x, y = curves(group, name, averaged)
                    if not y.size:
                        continue
                    mean, deviation = 100 * y.mean(0), 100 * y.std(0, ddof=min(1, len(y) - 1))
                    style = {"label": None, "ls": "--"} if averaged else {"label": optimizer}
                    axes.plot(x, mean, color=f"C{i}", **style)
                    axes.fill_between(
                        x, mean - deviation, mean + deviation, color=f"C{i}", alpha=0.2
                    )
            axes.set(title=network.title, xlabel=label, ylabel="validation accuracy [%]")
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path)


def curves(group: Group, name: str, averaged: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where a group was measured, as a mean over its runs, and the accuracies there, by run.

    Runs that end early end the curve: what is left of the others would be another mean.
    """
    x, y = [], []
    for row, records in group.runs:
        figures = records.figures(row["run"])
        points = [Point(*point) for point in figures["history"]]
        batch_size = int(row["batch_size"])
        # Where XLA counts no operations, there is nothing to draw.
        of_update = {"samples": batch_size, "flops": figures["flops"] or np.nan}
        x.append([p.seconds if name == "seconds" else p.batches * of_update[name] for p in points])
        y.append([p.averaged if averaged else p.accuracy for p in points])
    if any(value is None for value in itertools.chain.from_iterable(y)):
        return np.zeros(0), np.zeros((0, 0))
    both: list[Any] = [np.array(list(zip(*values, strict=False))).T for values in (x, y)]
    return both[0].mean(0), both[1]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="as in results.csv")
    add("--plot", type=arguments.output_file, help="file for the curves")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
