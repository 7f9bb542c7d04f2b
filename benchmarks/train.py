"""Train an Equinox MLP by projections, and by Adam beside it: ``python -m benchmarks.train``."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.data import DATASETS, DataError, Dataset, batches, load
from benchmarks.methods import SOLVERS, Method, adam, projections, setting
from benchmarks.models import mlp
from benchmarks.tables import format_table, write_json

CURVE_POINTS = 40  # Held-out accuracy is measured this often; it is not part of the training time.

COLUMNS = {
    "method": "",
    "test accuracy": ".2%",
    "training [s]": ".2f",
    "compilation [s]": ".2f",
    "steps": "d",
    "samples": "d",
}


@dataclass
class Record:
    """All that is known of a run so far: an interrupted one is reported like any other."""

    method: str
    batch_size: int
    seconds: float = 0.0
    compile_seconds: float | None = None
    steps: int = 0
    gap: list[float] = field(default_factory=list)
    batches: int = 0
    accuracy: list[tuple[int, float]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The record's line of the closing table."""
        values = (
            self.method,
            self.accuracy[-1][1] if self.accuracy else None,
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
        data = load(options.dataset, options.data_dir)
        batches(data.train_x, data.train_y, options.batch_size, options.seed)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    metric = pjax.Metric(
        parameters=options.weight_parameters,
        hidden=options.weight_hidden,
        outputs=options.weight_outputs,
    )
    methods = [projections(options.solver, steps=options.steps, lam=options.lam, metric=metric)]
    if options.baseline == "adam":
        methods.append(adam(options.learning_rate))
    records = [Record(method.name, options.batch_size) for method in methods]
    status = 0
    try:
        for method, record in zip(methods, records, strict=True):
            train(method, record, data, options)
    except KeyboardInterrupt:
        print("interrupted: this is what was reached", file=sys.stderr)
        status = 130
    except pjax.PjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    finally:
        report(records, options)
    return status


def train(method: Method, record: Record, data: Dataset, options: argparse.Namespace) -> None:
    """Train a fresh model on a fresh sequence of batches, writing progress into ``record``."""

    def start():
        sizes = [data.train_x.shape[1], *options.hidden, int(data.train_y.max()) + 1]
        return mlp(jax.random.key(options.seed), sizes)

    def draw():
        return batches(data.train_x, data.train_y, options.batch_size, options.seed)

    model = start()
    record.accuracy.append((0, test_accuracy(model, data)))
    before = time.perf_counter()
    method.update(start(), method.init(model), *next(draw()))
    record.compile_seconds = time.perf_counter() - before  # One discarded update included.

    state = method.init(model)
    every = max(1, options.batches // CURVE_POINTS)
    with tqdm(total=options.batches, desc=method.name, unit="batch") as bar:
        for _, (x, y) in zip(range(options.batches), draw(), strict=False):
            before = time.perf_counter()
            model, state, progress = method.update(model, state, x, y)
            record.seconds += time.perf_counter() - before
            record.batches += 1
            record.steps += progress.steps
            if progress.gap is not None:
                record.gap.append(progress.gap)
            if record.batches % every == 0 or record.batches == options.batches:
                record.accuracy.append((record.batches, test_accuracy(model, data)))
            gap = "" if progress.gap is None else f", gap {progress.gap:.3g}"
            bar.set_postfix_str(f"accuracy {record.accuracy[-1][1]:.2%}{gap}", refresh=False)
            bar.update()


def test_accuracy(model: eqx.Module, data: Dataset) -> float:
    """The share of held-out samples that a model classifies rightly."""
    return float(_accuracy(model, data.test_x, data.test_y))


@eqx.filter_jit
def _accuracy(model, x, y):
    return jnp.mean(jnp.argmax(jax.vmap(model)(x), axis=-1) == y, dtype=jnp.float32)


def report(records: Sequence[Record], options: argparse.Namespace) -> None:
    """Print the closing table; write the plot and, if asked for, the JSON file."""
    rows = [record.row() for record in records]
    print(format_table(rows, COLUMNS))
    if options.json:
        runs = [row | asdict(record) for row, record in zip(rows, records, strict=True)]
        write_json(options.json, {"options": vars(options), "runs": runs})
    plot(records, options.plot)
    print(f"curves: {options.plot}")


def plot(records: Sequence[Record], path: Path) -> None:
    """Save the curves of accuracy and gap over batches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for record in records:
        if record.accuracy:
            seen, accuracy = zip(*record.accuracy, strict=True)
            left.plot(seen, np.multiply(accuracy, 100), label=record.method)
        if record.gap:
            right.semilogy(np.arange(1, len(record.gap) + 1), record.gap, label=record.method)
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
    add("--dataset", choices=DATASETS, default="digits", help="what to learn")
    add("--data-dir", type=Path, help="folder of the data files; digits needs none")
    add("--solver", choices=SOLVERS, default="ap-momentum", help="the projection method")
    add("--hidden", type=arguments.sizes, default=[128], help="hidden layers, as in 128 or 64,32")
    add("--batch-size", type=arguments.count, default=128, help="samples a batch")
    add("--batches", type=arguments.count, default=200, help="batches to train on")
    add("--steps", type=arguments.count, default=50, help="projection steps a batch")
    add("--seed", type=int, default=0, help="of the start and of the order of the samples")
    add("--baseline", choices=["adam"], help="train the same model on the same batches by it too")
    add("--learning-rate", type=arguments.positive, default=3e-3, help="of the baseline")
    tuned = "(default: what suits the solver)"
    add("--lam", type=arguments.positive, help=f"weight of the loss in its prox {tuned}")
    for part in ("parameters", "hidden", "outputs"):
        help = f"weight of {part} in the metric {tuned}"
        add(f"--weight-{part}", type=arguments.positive, help=help)
    add("--json", type=arguments.output_file, help="file to write the results to")
    add("--plot", type=arguments.output_file, default="train.png", help="file for the curves")
    options = parser.parse_args(argv)
    lam, *weights = setting(options.solver)
    options.lam = options.lam or lam
    for part, weight in zip(("parameters", "hidden", "outputs"), weights, strict=True):
        name = f"weight_{part}"
        setattr(options, name, getattr(options, name) or weight)
    return options


if __name__ == "__main__":
    sys.exit(main())
