"""Accuracy of networks of growing depth, beside tuned Adam's: ``python -m benchmarks.depth``.

Every method starts from the same He-normal weights and zero biases and sees the same batches.
Projections train activations as they are. Adam is given straight-through estimators of those that
are flat (sign, quantize), and derivatives of the others; its best rate, by the accuracy at the end,
is chosen for each row.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.data import Dataset
from benchmarks.models import ACTIVATIONS, MODELS, mlp
from benchmarks.running import Run, Task, attempt, by_method, follow, learners, mlp_parser, read
from benchmarks.tables import format_table, write_json

Networks = dict[tuple[str, int], list[Run]]  # By activation and hidden layers; ours come first.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    data = read(options)
    if data is None:
        return 2
    networks: Networks = {
        pair: [] for pair in itertools.product(options.activation, options.layers)
    }

    def work():
        methods = 1 + len(options.learning_rate)
        with tqdm(total=len(networks) * len(options.seeds) * methods, unit="run") as bar:
            for (activation, layers), runs in networks.items():
                bar.set_description(f"{activation}, {layers} layers")
                train(activation, layers, runs, data, options, bar)

    return attempt(work, lambda: report(networks, options))


def train(
    name: str, layers: int, runs: list[Run], data: Dataset, options: argparse.Namespace, bar: tqdm
) -> None:
    """Train a network by all methods, adding to its runs."""
    sizes, activation = MODELS["mlp"].sizes_for(data, [options.width] * layers), ACTIVATIONS[name]
    ours, adams = learners(options)
    # Seed by seed, so that what else the machine does is spread over all methods.
    for seed in options.seeds:
        for method in (ours, *adams):
            function = activation.function if method is ours else activation.for_gradients

            def start(seed: int, function=function):
                return mlp(jax.random.key(seed), sizes, function, options.skip)

            last, run = options.points[-1], Run(method.name, seed)
            runs.append(run)
            follow(Task(method, start, data, options.batch_size, options.points, last), run)
            bar.update()


def report(networks: Networks, options: argparse.Namespace) -> None:
    """Print the table and, if asked for, write the JSON file."""
    points = {f"{point} batches": point for point in options.points}
    columns = {
        "activation": "",
        "layers": "d",
        "method": "",
        **dict.fromkeys(points, ".2%"),
        "averaged": ".2%",
        "ms a batch": ".2f",
        "compilation [s]": ".2f",
    }
    *_, last = points
    table = []
    for network, runs in networks.items():
        named = dict(zip(columns, network, strict=False))
        rows = [named | row(several, points) for several in by_method(runs).values()]
        table += rows[:1]
        if adams := rows[1:]:
            table.append(max(adams, key=lambda row: row[last] or 0.0))
    print(format_table(table, columns))
    skips = "with skips" if options.skip else "no skips"
    seeds = ", ".join(map(str, options.seeds))
    print(f"width {options.width}, {skips}; means of seeds {seeds}; Adam at its best rate")
    if options.json:
        known = [
            dict(zip(columns, network, strict=False)) | run.curve
            for network, runs in networks.items()
            for several in by_method(runs).values()
            for run in several
        ]
        write_json(options.json, {"options": vars(options), "table": table, "runs": known})


def row(runs: Sequence[Run], points: dict[str, int]) -> dict[str, Any]:
    """A method's part of its line: means over seeds, if all of them got there, and its cost."""
    found: dict[str, Any] = {"method": runs[0].method}
    for i, column in enumerate(points):
        there = [run.history[i].accuracy for run in runs if i < len(run.history)]
        found[column] = statistics.mean(there) if len(there) == len(runs) else None
    ends = [run.history[-1].averaged for run in runs if len(run.history) == len(points)]
    averaged = [end for end in ends if end is not None]
    found["averaged"] = statistics.mean(averaged) if len(averaged) == len(runs) else None
    seconds = [update.seconds for run in runs for update in run.log]
    found["ms a batch"] = 1e3 * statistics.median(seconds) if seconds else None
    found["compilation [s]"] = runs[0].compile_seconds
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = mlp_parser("depth", __doc__)
    add = parser.add_argument
    counts, several = arguments.several(arguments.count), arguments.names(ACTIVATIONS)
    add("--layers", type=counts, default=[1, 2, 4, 8, 16], help="hidden layers")
    add("--width", type=arguments.count, default=128, help="of each of them; 256 suits sign")
    add("--activation", type=several, default=["relu"], help=f"of {', '.join(ACTIVATIONS)}")
    add("--skip", action="store_true", help="the last layer reads all hidden layers")
    add("--points", type=counts, default=[100, 200, 300, 400], help="batches to measure after")
    options = parser.parse_args(argv)
    options.points = sorted(set(options.points))
    return options


if __name__ == "__main__":
    sys.exit(main())
