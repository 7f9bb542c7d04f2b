"""Train Equinox models by projections, and by Adam beside it: ``python -m benchmarks.train``."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.data import DATASETS
from benchmarks.methods import SOLVERS, adam, projections
from benchmarks.models import MODELS
from benchmarks.running import (
    Run,
    Task,
    add_setting,
    attempt,
    by_method,
    chosen_setting,
    complete_setting,
    read,
    train,
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    data = read(options, options.seq_len)
    if data is None:
        return 2
    chosen = chosen_setting(options)
    how = {"steps": options.steps, "granularity": options.granularity}
    methods = [projections(options.solver, chosen, **how)]
    if options.baseline == "adam":
        methods += map(adam, options.learning_rate)
    made, every = MODELS[options.model], max(1, options.batches // CURVE_POINTS)
    sizes = made.sizes_for(data, options.hidden)

    def start(seed: int):
        return made.make(jax.random.key(seed), sizes)

    points = range(0, options.batches, every)
    tasks = [Task(m, start, data, options.batch_size, points, options.batches) for m in methods]
    todo = [(task, Run(task.method.name, seed)) for task in tasks for seed in options.seeds]

    def work():
        for task, run in todo:
            train_showing(task, run)

    return attempt(work, lambda: report([run for _, run in todo], options))


def train_showing(task: Task, run: Run) -> None:
    """Train behind a progress bar."""
    name = f"{run.method}, seed {run.seed}"
    with tqdm(total=task.max_steps, desc=name, unit="batch") as bar:

        def kept():
            gap = run.log[-1].gap if run.log else None
            shown = "" if gap is None else f", gap {gap:.3g}"
            bar.set_postfix_str(f"accuracy {run.history[-1].accuracy:.2%}{shown}", refresh=False)
            bar.update(run.updates - bar.n)

        train(task, run, kept)


def report(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Print the closing table; write the plot and, if asked for, the JSON file."""
    size = options.batch_size
    rows = [mean([row(run, size) for run in runs]) for runs in by_method(runs).values()]
    rates = [row for row in rows[1:] if row["test accuracy"] is not None]
    if len(rates) > 1:
        max(rates, key=lambda row: row["test accuracy"])["method"] += " (best)"
    print(format_table(rows, COLUMNS))
    if len(options.seeds) > 1:
        print(f"means of seeds {', '.join(map(str, options.seeds))}")
    if options.json:
        known = [row(run, size) | details(run, size) for run in runs]
        write_json(options.json, {"options": vars(options), "table": rows, "runs": known})
    plot(runs, options.plot)
    print(f"curves: {options.plot}")


def row(run: Run, batch_size: int) -> dict[str, Any]:
    """A run's line of a table."""
    last = run.history[-1] if run.history else None
    values = (
        run.method,
        last and last.accuracy,
        last.averaged if last and run.ended == "steps" else None,
        run.seconds,
        run.compile_seconds,
        sum(update.steps for update in run.log),
        run.updates * batch_size,
    )
    return dict(zip(COLUMNS, values, strict=True))


def details(run: Run, batch_size: int) -> dict[str, Any]:
    """What the JSON file says of a run beside its line of a table."""
    return {
        "seed": run.seed,
        "batch_size": batch_size,
        "seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        "gap": gaps(run),
        "batches": run.updates,
        "accuracy": [(point.batches, point.accuracy) for point in run.history],
    }


def gaps(run: Run) -> list[float]:
    """Those that its updates reported."""
    return [update.gap for update in run.log if update.gap is not None]


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, of what is known; compilation is that of the first seed."""
    row = dict(rows[0])
    for name in ("test accuracy", "averaged", "training [s]", "steps", "samples"):
        known = [other[name] for other in rows if other[name] is not None]
        row[name] = type(known[0])(statistics.mean(known)) if known else None
    return row


def plot(runs: Sequence[Run], path: Path) -> None:
    """Save the curves of accuracy and gap over batches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        label = f"{run.method}, seed {run.seed}"
        if run.history:
            seen, accuracy = zip(*((p.batches, p.accuracy) for p in run.history), strict=True)
            left.plot(seen, np.multiply(accuracy, 100), label=label)
        if gap := gaps(run):
            right.semilogy(np.arange(1, len(gap) + 1), gap, label=label)
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
