"""Train Equinox models by projections, and by Adam beside it: ``python -m benchmarks.train``."""

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.data import DATASETS, DataError, Dataset, batches, load
from benchmarks.methods import SOLVERS, Method, adam, projections
from benchmarks.models import MODELS
from benchmarks.running import (
    add_setting,
    attempt,
    chosen_setting,
    compile_seconds,
    complete_setting,
    test_accuracy,
    updates,
)
from benchmarks.tables import format_table, write_json

CURVE_POINTS = 40  # Held-out accuracy is measured this often; it is not part of the training time.

COLUMNS = {
    "method": "",
    "test accuracy": ".2%",
    "averaged": ".2%",
    "training [s]": ".2f",
    "compilation [s]": ".2f",
    "steps": "d",
    "samples": "d",
}


@dataclass
class Record:
    """All that is known of a run so far: an interrupted one is reported like any other."""

    method: str
    seed: int
    batch_size: int
    seconds: float = 0.0
    compile_seconds: float | None = None
    steps: int = 0
    gap: list[float] = field(default_factory=list)
    batches: int = 0
    accuracy: list[tuple[int, float]] = field(default_factory=list)
    averaged: float | None = None

    def row(self) -> dict[str, Any]:
        """The record's line of a table."""
        values = (
            self.method,
            self.accuracy[-1][1] if self.accuracy else None,
            self.averaged,
            self.seconds,
            self.compile_seconds,
            self.steps,
            self.batches * self.batch_size,
        )
        return dict(zip(COLUMNS, values, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    try:
        data = load(options.dataset, options.data_dir, options.seq_len)
        batches(data.train_x, data.train_y, options.batch_size, seed=0)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chosen = chosen_setting(options)
    how = {"steps": options.steps, "granularity": options.granularity}
    methods = [projections(options.solver, chosen, **how)]
    if options.baseline == "adam":
        methods += map(adam, options.learning_rate)
    runs: list[tuple[Method, int]] = [(m, s) for m in methods for s in options.seeds]
    records = [Record(method.name, seed, options.batch_size) for method, seed in runs]

    def work():
        for (method, _), record in zip(runs, records, strict=True):
            train(method, record, data, options)

    return attempt(work, lambda: report(records, options))


def train(method: Method, record: Record, data: Dataset, options: argparse.Namespace) -> None:
    """Train a fresh model on a fresh sequence of batches, writing progress into ``record``."""
    made = MODELS[options.model]
    sizes = made.sizes_for(data, options.hidden)

    def draw():
        return batches(data.train_x, data.train_y, options.batch_size, record.seed)

    model = made.make(jax.random.key(record.seed), sizes)
    record.accuracy.append((0, test_accuracy(model, data)))
    # One discarded update included.
    record.compile_seconds = compile_seconds(method, model, next(draw()))

    state = method.init(model)
    every = max(1, options.batches // CURVE_POINTS)
    name = f"{method.name}, seed {record.seed}"
    with tqdm(total=options.batches, desc=name, unit="batch") as bar:
        drawn = itertools.islice(draw(), options.batches)
        for update in updates(method, model, state, drawn):
            model, state, progress, seconds = update
            record.seconds += seconds
            record.batches += 1
            record.steps += progress.steps
            if progress.gap is not None:
                record.gap.append(progress.gap)
            if record.batches % every == 0 or record.batches == options.batches:
                record.accuracy.append((record.batches, test_accuracy(model, data)))
            gap = "" if progress.gap is None else f", gap {progress.gap:.3g}"
            bar.set_postfix_str(f"accuracy {record.accuracy[-1][1]:.2%}{gap}", refresh=False)
            bar.update()
    if method.averaged is not None:
        record.averaged = test_accuracy(method.averaged(model, state), data)


def report(records: Sequence[Record], options: argparse.Namespace) -> None:
    """Print the closing table; write the plot and, if asked for, the JSON file."""
    groups = itertools.groupby(records, key=lambda record: record.method)
    rows = [mean([record.row() for record in group]) for _, group in groups]
    rates = [row for row in rows[1:] if row["test accuracy"] is not None]
    if len(rates) > 1:
        max(rates, key=lambda row: row["test accuracy"])["method"] += " (best)"
    print(format_table(rows, COLUMNS))
    if len(options.seeds) > 1:
        print(f"means of seeds {', '.join(map(str, options.seeds))}")
    if options.json:
        runs = [record.row() | asdict(record) for record in records]
        write_json(options.json, {"options": vars(options), "table": rows, "runs": runs})
    plot(records, options.plot)
    print(f"curves: {options.plot}")


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, of what is known; compilation is that of the first seed."""
    row = dict(rows[0])
    for name in ("test accuracy", "averaged", "training [s]", "steps", "samples"):
        known = [other[name] for other in rows if other[name] is not None]
        row[name] = type(known[0])(statistics.mean(known)) if known else None
    return row


def plot(records: Sequence[Record], path: Path) -> None:
    """Save the curves of accuracy and gap over batches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for record in records:
        label = f"{record.method}, seed {record.seed}"
        if record.accuracy:
            seen, accuracy = zip(*record.accuracy, strict=True)
            left.plot(seen, np.multiply(accuracy, 100), label=label)
        if record.gap:
            right.semilogy(np.arange(1, len(record.gap) + 1), record.gap, label=label)
    for axes, title in ((left, "held-out accuracy [%]"), (right, "gap at the end of a batch")):
        axes.set(title=title, xlabel="batches")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    counts = arguments.several(arguments.count)
    add("--dataset", choices=DATASETS, default="digits", help="what to learn")
    add("--data-dir", type=Path, help="folder of the data files; digits needs none")
    add("--model", choices=MODELS, help="what learns it (default: gru for text, else mlp)")
    add("--solver", choices=SOLVERS, default="sweep", help="the projection method")
    add("--granularity", choices=["row", "block"], help="of sums, for all solvers but sweep")
    sizes = "(default: 128 for mlp, 16,32 for cnn, 32,128 for gru, …)"
    add("--hidden", type=counts, help=f"hidden sizes, as in 64,32 {sizes}")
    add("--seq-len", type=arguments.count, default=64, help="characters of a sample of text")
    add("--batch-size", type=arguments.count, default=128, help="samples a batch")
    add("--batches", type=arguments.count, default=200, help="batches to train on")
    add("--steps", type=arguments.count, help="projection steps a batch (default: 50, sweep: 1)")
    seeds, rates = arguments.several(int), arguments.several(arguments.positive)
    add("--seeds", "--seed", type=seeds, default=[0], help="of the starts and orders of samples")
    add("--baseline", choices=["adam"], help="train the same model on the same batches by it too")
    add("--learning-rate", type=rates, default=[3e-3], help="of the baseline; each is trained")
    add_setting(parser)
    add("--json", type=arguments.output_file, help="file to write the results to")
    add("--plot", type=arguments.output_file, default="train.png", help="file for the curves")
    options = parser.parse_args(argv)
    text = options.dataset == "shakespeare"
    options.steps = options.steps or SOLVERS[options.solver]().default_steps
    if options.granularity and options.solver == "sweep":
        parser.error("--granularity is for other solvers than sweep")
    options.model = options.model or ("gru" if text else "mlp")
    if not MODELS[options.model].can_read(options.dataset):
        parser.error(f"--model {options.model} cannot read --dataset {options.dataset}")
    options.hidden = options.hidden or MODELS[options.model].sizes[1:-1]
    complete_setting(options, options.solver, options.model)
    return options


if __name__ == "__main__":
    sys.exit(main())
