"""Batches and seconds to an accuracy, and Adam's: ``python -m benchmarks.time_to_accuracy``.

An MLP starts from the same parameters and sees the same batches with every method. Its held-out
accuracy is measured every few batches; a level counts as reached the first time it is. Compilation
and measuring are no part of the training time.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.models import MODELS
from benchmarks.running import (
    Point,
    Run,
    Task,
    attempt,
    by_method,
    follow,
    learners,
    mlp_parser,
    read,
)
from benchmarks.tables import format_table, write_json

COLUMNS = {
    "level [%]": "g",
    "method": "",
    "batches": ".0f",
    "x adam": ".2f",
    "training [s]": ".2f",
    "x adam's seconds": ".2f",
    "compilation [s]": ".2f",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    data = read(options)
    if data is None:
        return 2
    ours, adams = learners(options)
    if options.averaged and ours.averaged is None:
        print(f"error: {ours.name} keeps no averages", file=sys.stderr)
        return 2
    sizes = MODELS["mlp"].sizes_for(data, options.hidden)

    def start(seed: int):
        return MODELS["mlp"].make(jax.random.key(seed), sizes)

    def enough(run: Run):
        known = reached(run, max(options.levels), options.averaged)
        return None if known is None else "accuracy"

    points = range(options.every, options.batches, options.every)
    tasks = [
        Task(method, start, data, options.batch_size, points, options.batches, enough=enough)
        for method in (ours, *adams)
    ]
    # Seed by seed, so that what else the machine does is spread over all methods.
    todo = [(task, Run(task.method.name, seed)) for seed in options.seeds for task in tasks]

    def work():
        progress = tqdm(todo, unit="run")
        for task, run in progress:
            progress.set_description(f"{run.method}, seed {run.seed}")
            follow(task, run)

    return attempt(work, lambda: report([run for _, run in todo], options))


def reached(run: Run, level: float, averaged: bool) -> Point | None:
    """The first measurement at which the accuracy is at a level, in percent, or above."""
    for point in run.history:
        accuracy = point.averaged if averaged else point.accuracy
        if accuracy is not None and accuracy >= level / 100 - 1e-6:  # It is a float32.
            return point
    return None


def report(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Print the table and, if asked for, write the JSON file."""
    table = [row for level in options.levels for row in rows(runs, level, options.averaged)]
    print(format_table(table, COLUMNS))
    seeds = ", ".join(map(str, options.seeds))
    print(f"means of seeds {seeds}, where all reach it; x adam: over Adam's best rate")
    if options.json:
        known = [run.curve for run in runs]
        write_json(options.json, {"options": vars(options), "table": table, "runs": known})


def rows(runs: Sequence[Run], level: float, averaged: bool) -> list[dict[str, Any]]:
    """A level's lines of the table, ours first."""
    methods = by_method(runs)
    means: dict[str, tuple[float, float]] = {}
    for method, several in methods.items():
        points = [reached(run, level, averaged) for run in several]
        there = [point for point in points if point is not None]
        if len(there) == len(points):
            batches, seconds = ([p.batches for p in there], [p.seconds for p in there])
            means[method] = statistics.mean(batches), statistics.mean(seconds)
    # By batches; rates that need equally many are told apart by seconds.
    _, *adams = methods
    best = min((method for method in adams if method in means), key=means.__getitem__, default="")
    table = []
    for method, (first, *_) in methods.items():
        values: list[float | None] = []
        for i in range(2):
            mean = means[method][i] if method in means else None
            ratio = mean / means[best][i] if mean is not None and best else None
            values += [mean, ratio]
        name = f"{method} (best)" if method == best else method
        # The first seed's compilation: later ones find it done.
        cells = (level, name, *values, first.compile_seconds)
        table.append(dict(zip(COLUMNS, cells, strict=True)))
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = mlp_parser("time_to_accuracy", __doc__)
    add = parser.add_argument
    counts, levels = arguments.several(arguments.count), arguments.several(arguments.percentage)
    add("--hidden", type=counts, default=[128], help="hidden sizes, as in 64,32")
    add("--levels", type=levels, default=[95.0, 97.0, 97.5], help="accuracies to reach, in percent")
    add("--every", type=arguments.count, default=10, help="batches between two measurements")
    add("--batches", type=arguments.count, default=1000, help="batches to train on at most")
    add("--averaged", action="store_true", help="measure averaged parameters, of all methods")
    options = parser.parse_args(argv)
    options.levels = sorted(set(options.levels))
    return options


if __name__ == "__main__":
    sys.exit(main())
