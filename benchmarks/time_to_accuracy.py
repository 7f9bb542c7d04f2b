"""Batches and seconds to an accuracy, and Adam's: ``python -m benchmarks.time_to_accuracy``.

An MLP starts from the same parameters and sees the same batches with every method. Its held-out
accuracy is measured every few batches; a level counts as reached the first time it is. Compilation
and measuring are no part of the training time.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.data import DataError, Dataset
from benchmarks.methods import Method
from benchmarks.models import MODELS
from benchmarks.running import (
    Curve,
    Point,
    attempt,
    follow,
    learners,
    load_images,
    mlp_parser,
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
    try:
        data = load_images(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ours, adams = learners(options)
    if options.averaged and ours.averaged is None:
        print(f"error: {ours.name} keeps no averages", file=sys.stderr)
        return 2
    # Seed by seed, so that what else the machine does is spread over all methods.
    runs = [(method, seed) for seed in options.seeds for method in (ours, *adams)]
    curves = [Curve(method.name, seed) for method, seed in runs]

    def work():
        progress = tqdm(list(zip(runs, curves, strict=True)), unit="run")
        for (method, seed), curve in progress:
            progress.set_description(f"{method.name}, seed {seed}")
            train(method, curve, data, options)

    return attempt(work, lambda: report(curves, options))


def train(method: Method, curve: Curve, data: Dataset, options: argparse.Namespace) -> None:
    """Train until all levels are reached, or the batches are used up."""
    sizes = MODELS["mlp"].sizes_for(data, options.hidden)

    def start():
        return MODELS["mlp"].make(jax.random.key(curve.seed), sizes)

    def enough():
        return reached(curve, max(options.levels), options.averaged) is not None

    points = {*range(options.every, options.batches, options.every), options.batches}
    follow(curve, method, start, data, options.batch_size, points, enough)


def reached(curve: Curve, level: float, averaged: bool) -> Point | None:
    """The first measurement at which the accuracy is at a level, in percent, or above."""
    for point in curve.points:
        accuracy = point.averaged if averaged else point.accuracy
        if accuracy is not None and accuracy >= level / 100 - 1e-6:  # It is a float32.
            return point
    return None


def report(curves: Sequence[Curve], options: argparse.Namespace) -> None:
    """Print the table and, if asked for, write the JSON file."""
    table = [row for level in options.levels for row in rows(curves, level, options.averaged)]
    print(format_table(table, COLUMNS))
    seeds = ", ".join(map(str, options.seeds))
    print(f"means of seeds {seeds}, where all reach it; x adam: over Adam's best rate")
    if options.json:
        runs = [asdict(curve) for curve in curves]
        write_json(options.json, {"options": vars(options), "table": table, "runs": runs})


def rows(curves: Sequence[Curve], level: float, averaged: bool) -> list[dict[str, Any]]:
    """A level's lines of the table, ours first."""
    compiled: dict[str, float | None] = {}
    means: dict[str, tuple[float, float]] = {}
    for curve in curves:
        compiled.setdefault(curve.method, curve.compile_seconds)  # The first seed's: later none is.
    for method in compiled:
        points = [reached(curve, level, averaged) for curve in curves if curve.method == method]
        there = [point for point in points if point is not None]
        if len(there) == len(points):
            batches, seconds = ([p.batches for p in there], [p.seconds for p in there])
            means[method] = statistics.mean(batches), statistics.mean(seconds)
    # By batches; rates that need equally many are told apart by seconds.
    _, *adams = compiled
    best = min((method for method in adams if method in means), key=means.__getitem__, default="")
    table = []
    for method, compilation in compiled.items():
        values: list[float | None] = []
        for i in range(2):
            mean = means[method][i] if method in means else None
            ratio = mean / means[best][i] if mean is not None and best else None
            values += [mean, ratio]
        name = f"{method} (best)" if method == best else method
        table.append(dict(zip(COLUMNS, (level, name, *values, compilation), strict=True)))
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
