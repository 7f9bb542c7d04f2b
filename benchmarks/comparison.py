"""Projections and gradients on the same networks and data: ``python -m benchmarks.comparison``.

Whatever the optimizer, a run of a seed has the same start, the same batches and the same
measurements: every few updates on a validation part that is never trained on, and at the end, once,
on the test part, with the parameters that were best in validation. Averages of parameters are kept
and reported beside them where a method has them. Compiling and measuring are no part of the
training time. Operations are counted in the traced update, see pjax_trace/operations.py.

A finished run is a row of the log file. In the folder beside it (``results.runs`` for
``results.csv``) every run has a file, a checkpoint while it goes on: --resume leaves out what is
finished and goes on with what is not, bit for bit as if nothing had happened. Options may be
written with underscores, too.

A subset of HIGGS, which has no test part of its publisher's, is divided by the seed of the run.
"""

import argparse
import contextlib
import functools
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks.data import DataError, Dataset, Parts, batches, hold_out, load, redrawn
from benchmarks.methods import Method, adam, default, projections, sgd
from benchmarks.models import MODELS
from benchmarks.options import CONFIGURATION, TITLES, parse
from benchmarks.records import RecordError, Records, run_id
from benchmarks.running import Run, Task, accuracy, begin, best, chosen_setting, train
from benchmarks.tables import format_table, spread
from pjax_trace.operations import operations

__all__ = ["COLUMNS", "main"]

RESULTS = (
    *("validation", "test", "validation_averaged", "test_averaged"),
    *("best_update", "best_update_averaged", "updates", "samples", "flops", "ended"),
    *("train_seconds", "compile_seconds", "tune_seconds", "parameters", "jax"),
)
COLUMNS = ("run", *CONFIGURATION, *RESULTS)

SUMMARY = {
    "": "",
    "runs": "d",
    "test [%]": "",
    "averaged [%]": "",
    "validation [%]": "",
    "updates": ".0f",
    "training [s]": ".1f",
    "compilation [s]": ".1f",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv, __doc__)
    seeds, length = range(options.seed, options.seed + options.num_runs), options.seq_len or 0
    try:
        data = load(options.dataset, options.data_dir, length, download=options.download)
        parts = hold_out(options.dataset, data)
        batches(parts.data.train_x, parts.data.train_y, options.batch_size, seed=0)  # can be drawn
        options.data = parts.data.fingerprint
        records = Records(options.log_file, COLUMNS)

        def choice(seed: int):
            # One rate for all runs of the same parts, chosen when the first of them wants it.
            return functools.cache(functools.partial(tuned, options, seed, parts, records))

        chosen = choice(0)
        runs = []
        with terminations_as_interrupts():
            for seed in seeds:
                own = redrawn(options.dataset, data, seed)
                if own is not data:
                    parts = hold_out(options.dataset, own)
                    chosen = choice(seed)
                runs.append(compare(options, seed, parts, records, chosen))
    except (DataError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (pjax.PjaxError, jax.errors.JaxRuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from there", file=sys.stderr)
        return 130
    rows = {row["run"]: row for row in records.rows()}  # Of a run done twice the last one counts.
    print(format_table([summary([rows[run] for run in runs])], SUMMARY))
    print(f"means and standard deviations of seeds {', '.join(map(str, seeds))}")
    return 0


@contextlib.contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def configuration(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What decides what comes of the run of a seed."""
    values = {name: getattr(options, name) for name in CONFIGURATION}
    return values | {"dataset": TITLES.get(options.dataset, options.dataset), "seed": seed}


def compare(
    options: argparse.Namespace,
    seed: int,
    parts: Parts,
    records: Records,
    chosen: Callable[[], tuple[float, float]],
) -> str:
    """Do the run of a seed, or what is left of it; returns its name.

    ``chosen`` tells the learning rate that --tune chooses, and the seconds that this took.
    """
    config = configuration(options, seed)
    name = run_id(config)
    if options.resume and any(row["run"] == name for row in records.rows()):
        print(f"run {name}, seed {seed}: finished already", file=sys.stderr)
        return name
    found = records.figures(name) if options.resume and records.file(name).exists() else None
    if found is not None and found.get("configuration") != config:
        raise RecordError(f"{records.file(name)} is of another configuration; remove it")
    if not options.resume and records.file(name).exists():
        print(f"run {name}, seed {seed}: starts over, without --resume", file=sys.stderr)
    rate, tuning = options.learning_rate, 0.0
    if found is not None:
        rate, tuning = found["learning_rate"], found["tune_seconds"]
    elif options.tune:
        rate, tuning = chosen()
    task = task_of(options, parts, rate)
    run = Run(task.method.name, seed)
    fixed = {"configuration": config, "learning_rate": rate, "tune_seconds": tuning}
    if found is not None:
        begin(task, run)  # As what the arrays are read.
        run.restore(*records.load(name, run.arrays))
        fixed["flops"] = found["flops"]
        print(f"run {name}, seed {seed}: goes on after update {run.updates}", file=sys.stderr)

    title = f"{config['dataset']} {options.model_type} {task.method.name}, seed {seed}"
    with tqdm(total=options.max_steps, initial=run.updates, desc=title, unit="update") as bar:

        def kept():
            if "flops" not in fixed:  # Not earlier: what is traced already compiles in less time.
                fixed["flops"] = flops(task, run)
            records.save(name, run.figures | fixed, run.arrays)
            now = run.history[-1]
            averaged = "" if now.averaged is None else f", averaged {now.averaged:.2%}"
            bar.set_postfix_str(f"validation {now.accuracy:.2%}{averaged}", refresh=False)
            bar.update(run.updates - bar.n)

        train(task, run, kept)
    records.append({"run": name} | config | results(parts.data, run, fixed, options.batch_size))
    return name


def flops(task: Task, run: Run) -> int | None:
    """The operations of an update."""
    assert task.method.step is not None
    args, limit = (run.model, run.state, *next(task.draw(run.seed))), pjax.Block().iterations
    counted = operations(task.method.step, *args, limit=limit)
    return None if counted is None else round(counted)


def results(data: Dataset, run: Run, fixed: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """The results of a finished run; the test part is touched here and nowhere else."""
    raw, averaged = best(run.history), best(run.history, averaged=True)
    assert raw is not None
    test = data.test_x, data.test_y
    return {
        "learning_rate": fixed["learning_rate"],
        "validation": raw.accuracy,
        "test": accuracy(run.best, *test),
        "validation_averaged": averaged and averaged.averaged,
        "test_averaged": averaged and accuracy(run.best_averaged, *test),
        "best_update": raw.batches,
        "best_update_averaged": averaged and averaged.batches,
        "updates": run.updates,
        "samples": run.updates * batch_size,
        "flops": fixed["flops"] and run.updates * fixed["flops"],
        "ended": run.ended,
        "train_seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        "tune_seconds": fixed["tune_seconds"],
        "parameters": sum(x.size for x in jax.tree.leaves(run.best) if hasattr(x, "size")),
        "jax": jax.__version__,
    }


def task_of(options: argparse.Namespace, parts: Parts, rate: float | None) -> Task:
    """The task of the options."""
    made = MODELS[options.model_type]
    sizes = made.sizes_for(parts.data, options.hidden_features)

    def impatient(run: Run) -> str | None:
        return "patience" if options.patience and stale(run) >= options.patience else None

    return Task(
        method(options, rate),
        lambda seed: made.make(jax.random.key(seed), sizes, skip=options.skip),
        Dataset(*parts.data[:2], parts.validation_x, parts.validation_y),
        options.batch_size,
        range(0, sys.maxsize, options.eval_every),
        options.max_steps,
        options.max_seconds,
        impatient,
        keeps_best=True,
    )


def stale(run: Run) -> int:
    """How many measurements there were since the last best one."""
    found = [best(run.history), best(run.history, averaged=True)]
    return len(run.history) - 1 - max(run.history.index(point) for point in found if point)


def method(options: argparse.Namespace, rate: float | None) -> Method:
    """The optimizer of the options."""
    name = options.optimizer
    loss = "margin" if options.margin_loss else "cross_entropy"
    if name == "default":
        return default(loss)
    if rate is not None:
        return {"sgd": sgd, "adam": adam}[name](rate, loss)
    return projections(
        name,
        chosen_setting(options),
        steps=options.steps_per_update,
        granularity=options.granularity,
        schedule=options.schedule,
        beta=options.dm_beta,
        loss=loss,
    )


def tuned(
    options: argparse.Namespace, seed: int, parts: Parts, records: Records
) -> tuple[float, float]:
    """The learning rate that is best in validation after a short run, and the seconds of all runs.

    The short runs have the seed of the first run of these parts, so that all of them have the same
    rate; what was found is kept in a file of the folder of the runs.
    """
    config = configuration(options, seed)
    name = "tuned-" + run_id(config)
    if options.resume and records.file(name).exists():
        found = records.figures(name)
        return found["learning_rate"], found["tune_seconds"]
    steps = options.tune_steps
    limits = {"max_steps": steps, "max_seconds": None, "patience": None}
    short = argparse.Namespace(**vars(options) | limits)
    reached: dict[float, float] = {}
    seconds = 0.0
    for rate in tqdm(options.tune, desc=f"learning rates, {steps} updates each", unit="rate"):
        task = task_of(short, parts, rate)
        run = Run(task.method.name, seed)
        train(task, run)
        found = best(run.history)
        reached[rate], seconds = found.accuracy if found else 0.0, seconds + run.seconds
    rate = max(reached, key=reached.__getitem__)
    shown = ", ".join(f"{rate:g}: {found:.2%}" for rate, found in reached.items())
    print(f"validation after {steps} updates by learning rate: {shown}", file=sys.stderr)
    figures = {"configuration": config, "learning_rate": rate, "tune_seconds": seconds}
    records.save(name, figures | {"reached": list(reached.items())}, ())
    return rate, seconds


def summary(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The line of a table that sums up runs of a configuration."""

    def numbers(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row[name]]

    def mean(name: str) -> float | None:
        return statistics.mean(numbers(name)) if numbers(name) else None

    first = rows[0]
    values = (
        f"{first['dataset']}, {first['model_type']}, {first['optimizer']}",
        len(rows),
        spread(numbers("test")),
        spread(numbers("test_averaged")),
        spread(numbers("validation")),
        mean("updates"),
        mean("train_seconds"),
        mean("compile_seconds"),
    )
    return dict(zip(SUMMARY, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
