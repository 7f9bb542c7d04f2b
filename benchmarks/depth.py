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
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.data import DataError, Dataset
from benchmarks.models import ACTIVATIONS, MODELS, mlp
from benchmarks.running import (
    Curve,
    attempt,
    follow,
    learners,
    load_images,
    mlp_parser,
)
from benchmarks.tables import format_table, write_json


@dataclass
class Network:
    """What is trained, and all that is known of its runs, by method; ours comes first."""

    activation: str
    layers: int
    runs: dict[str, list[Curve]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    try:
        data = load_images(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    networks = [Network(*pair) for pair in itertools.product(options.activation, options.layers)]

    def work():
        methods = 1 + len(options.learning_rate)
        with tqdm(total=len(networks) * len(options.seeds) * methods, unit="run") as bar:
            for network in networks:
                bar.set_description(f"{network.activation}, {network.layers} layers")
                train(network, data, options, bar)

    return attempt(work, lambda: report(networks, options))


def train(network: Network, data: Dataset, options: argparse.Namespace, bar: tqdm) -> None:
    """Train a network by all methods, writing progress into it."""
    sizes = MODELS["mlp"].sizes_for(data, [options.width] * network.layers)
    activation = ACTIVATIONS[network.activation]
    ours, adams = learners(options)
    # Seed by seed, so that what else the machine does is spread over all methods.
    for seed in options.seeds:
        for method in (ours, *adams):
            function = activation.function if method is ours else activation.for_gradients

            def start(seed=seed, function=function):
                return mlp(jax.random.key(seed), sizes, function, options.skip)

            curve = Curve(method.name, seed)
            network.runs.setdefault(method.name, []).append(curve)
            follow(curve, method, start, data, options.batch_size, options.points)
            bar.update()


def report(networks: Sequence[Network], options: argparse.Namespace) -> None:
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
    for network in networks:
        rows = [row(network, method, points) for method in network.runs]
        table += rows[:1]
        if adams := rows[1:]:
            table.append(max(adams, key=lambda row: row[last] or 0.0))
    print(format_table(table, columns))
    skips = "with skips" if options.skip else "no skips"
    seeds = ", ".join(map(str, options.seeds))
    print(f"width {options.width}, {skips}; means of seeds {seeds}; Adam at its best rate")
    if options.json:
        runs = [
            {"activation": network.activation, "layers": network.layers} | asdict(curve)
            for network in networks
            for curves in network.runs.values()
            for curve in curves
        ]
        write_json(options.json, {"options": vars(options), "table": table, "runs": runs})


def row(network: Network, method: str, points: dict[str, int]) -> dict[str, Any]:
    """A method's line of the table: means over seeds, if all of them got there, and its cost."""
    curves = network.runs[method]
    found: dict[str, Any] = {"activation": network.activation, "layers": network.layers}
    found["method"] = method
    for i, column in enumerate(points):
        there = [curve.points[i].accuracy for curve in curves if i < len(curve.points)]
        found[column] = statistics.mean(there) if len(there) == len(curves) else None
    ends = [curve.points[-1].averaged for curve in curves if len(curve.points) == len(points)]
    averaged = [end for end in ends if end is not None]
    found["averaged"] = statistics.mean(averaged) if len(averaged) == len(curves) else None
    seconds = [second for curve in curves for second in curve.seconds]
    found["ms a batch"] = 1e3 * statistics.median(seconds) if seconds else None
    found["compilation [s]"] = curves[0].compile_seconds
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
