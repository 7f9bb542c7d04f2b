"""Projections and gradients on the same networks and data: ``python -m benchmarks.comparison``.

Whatever the optimizer, a run of a seed has the same start, the same batches and the same
measurements: every few updates on a validation part that is never trained on, and at the end, once,
on the test part, with the parameters that were best in validation. Averages of parameters are kept
and reported beside them where a method has them. Compiling and measuring are no part of the
training time. Operations are counted in the traced update, see benchmarks/flops.py.

A finished run is a row of the log file. In the folder beside it (``results.runs`` for
``results.csv``) every run has a file, a checkpoint while it goes on: --resume leaves out what is
finished and goes on with what is not, bit for bit as if nothing had happened. Options may be
written with underscores, too.
"""

import argparse
import contextlib
import functools
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks import arguments, flops
from benchmarks.data import DATASETS, DataError, Parts, batches, hold_out, load
from benchmarks.methods import SOLVERS, Method, adam, default, projections, sgd
from benchmarks.models import MODELS
from benchmarks.records import RecordError, Records, run_id
from benchmarks.running import accuracy, add_setting, chosen_setting, complete_setting
from benchmarks.runs import Run, Task, best, begin, train
from benchmarks.tables import format_table

__all__ = ["COLUMNS", "CONFIGURATION", "main"]

GRADIENTS = {"sgd": sgd, "adam": adam}
CLASSICAL = tuple(name for name in SOLVERS if name != "sweep")
OPTIMIZERS = (*GRADIENTS, *CLASSICAL, "default")
MODEL_TYPES = {"mlp": [128], "cnn": [16, 32], "rnn": [128]}  # With their hidden features.
RATES = {"sgd": [0.01, 0.03, 0.1, 0.3], "adam": [3e-4, 1e-3, 3e-3, 1e-2]}
FIXED_RATES = {"sgd": 0.03, "adam": 1e-3}
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR10", "higgs": "HIGGS"}

# What decides what comes of a run: the options of these names, and the data.
CONFIGURATION = (
    *("dataset", "data", "model_type", "hidden_features", "skip", "margin_loss", "seq_len"),
    *("optimizer", "batch_size", "learning_rate", "tune", "tune_steps"),
    *("steps_per_update", "granularity", "schedule", "dm_beta"),
    *("lam", "weight_parameters", "weight_hidden", "weight_outputs"),
    *("patience", "eval_every", "max_steps", "max_seconds", "seed"),
)
RESULTS = (
    *("validation", "test", "validation_averaged", "test_averaged"),
    *("best_update", "best_update_averaged", "updates", "samples", "flops", "ended"),
    *("train_seconds", "compile_seconds", "tune_seconds", "parameters", "jax"),
)
COLUMNS = ("run", *CONFIGURATION, *RESULTS)

SUMMARY = {
    "": "",
    "runs": "d",
    "test [%]": ".2f",
    "± ": ".2f",
    "averaged [%]": ".2f",
    "±": ".2f",
    "validation [%]": ".2f",
    "updates": ".0f",
    "training [s]": ".1f",
    "compilation [s]": ".1f",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    try:
        parts = read(options)
        options.data = parts.data.fingerprint
        records = Records(options.log_file, COLUMNS)
        with terminations_as_interrupts():
            runs = [compare(options, seed, parts, records) for seed in seeds(options)]
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
    print(f"means and standard deviations of seeds {', '.join(map(str, seeds(options)))}")
    return 0


def read(options: argparse.Namespace) -> Parts:
    """The data of the options, in parts.

    Raises:
        DataError: if they cannot be read, or a batch cannot be drawn from them.
    """
    length = options.seq_len or 0
    data = load(options.dataset, options.data_dir, length, download=options.download)
    parts = hold_out(options.dataset, data)
    batches(parts.data.train_x, parts.data.train_y, options.batch_size, seed=0)
    return parts


def seeds(options: argparse.Namespace) -> range:
    """Those of the runs."""
    return range(options.seed, options.seed + options.num_runs)


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


def compare(options: argparse.Namespace, seed: int, parts: Parts, records: Records) -> str:
    """Do the run of a seed, or what is left of it; returns its name."""
    config = configuration(options, seed)
    name = run_id(config)
    if options.resume and any(row["run"] == name for row in records.rows()):
        print(f"run {name}, seed {seed}: finished already", file=sys.stderr)
        return name
    found = records.figures(name) if options.resume and records.file(name).exists() else None
    if found is not None and found["configuration"] != config:
        raise RecordError(f"{records.file(name)} is of another configuration; remove it")
    rate, tuning = options.learning_rate, 0.0
    if found is not None:
        rate, tuning = found["learning_rate"], found["tune_seconds"]
    elif options.tune:
        rate, tuning = tuned(options, parts, records)
    task = task_of(options, seed, parts, rate)
    run = begin(task)
    fixed = {"configuration": config, "learning_rate": rate, "tune_seconds": tuning}
    if found is None:
        batch = next(batches(parts.data.train_x, parts.data.train_y, options.batch_size, seed))
        assert task.method.step is not None
        # Traced with the true arrays: their shapes count.
        fixed["flops"] = flops.count(task.method.step, run.model, run.state, *batch)
    else:
        run.restore(*records.load(name, run.arrays))
        fixed["flops"] = found["flops"]
        print(f"run {name}, seed {seed}: goes on after update {run.updates}", file=sys.stderr)

    title = f"{config['dataset']} {options.model_type} {task.method.name}, seed {seed}"
    with tqdm(total=options.max_steps, initial=run.updates, desc=title, unit="update") as bar:

        def kept():
            records.save(name, run.figures | fixed, run.arrays)
            now = run.history[-1]
            averaged = "" if now.averaged is None else f", averaged {now.averaged:.2%}"
            bar.set_postfix_str(f"validation {now.accuracy:.2%}{averaged}", refresh=False)
            bar.update(run.updates - bar.n)

        train(task, run, kept)
    records.append({"run": name} | config | results(task, run, fixed))
    return name


def results(task: Task, run: Run, fixed: dict[str, Any]) -> dict[str, Any]:
    """The results of a finished run; the test part is touched here and nowhere else."""
    raw, averaged = best(run.history), best(run.history, averaged=True)
    assert raw is not None
    test = task.parts.data.test_x, task.parts.data.test_y
    return {
        "learning_rate": fixed["learning_rate"],
        "validation": raw.accuracy,
        "test": accuracy(run.best, *test),
        "validation_averaged": averaged and averaged.averaged,
        "test_averaged": averaged and accuracy(run.best_averaged, *test),
        "best_update": raw.batches,
        "best_update_averaged": averaged and averaged.batches,
        "updates": run.updates,
        "samples": run.updates * task.batch_size,
        "flops": run.updates * fixed["flops"],
        "ended": run.ended,
        "train_seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        "tune_seconds": fixed["tune_seconds"],
        "parameters": sum(x.size for x in jax.tree.leaves(run.best) if hasattr(x, "size")),
        "jax": jax.__version__,
    }


def task_of(
    options: argparse.Namespace, seed: int, parts: Parts, rate: float | None, **other: Any
) -> Task:
    """The task of the options; ``other`` replaces some of its parts."""
    made = MODELS[options.model_type]
    sizes = made.sizes_for(parts.data, options.hidden_features)
    task = Task(
        parts,
        functools.partial(made.make, jax.random.key(seed), sizes, skip=options.skip),
        method(options, rate),
        seed,
        options.batch_size,
        options.eval_every,
        options.max_steps,
        options.max_seconds,
        options.patience,
    )
    return task._replace(**other)


def method(options: argparse.Namespace, rate: float | None) -> Method:
    """The optimizer of the options."""
    name = options.optimizer
    loss = "margin" if options.margin_loss else "cross_entropy"
    if name == "default":
        return default(loss)
    if name in GRADIENTS:
        return GRADIENTS[name](rate, loss)
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
    options: argparse.Namespace, parts: Parts, records: Records
) -> tuple[float, float]:
    """The learning rate that is best in validation after a short run, and the seconds of all runs.

    The runs have the seed 0, so that every run of a configuration has the same rate; what was found
    is kept in a file of the folder of the runs.
    """
    config = configuration(options, seed=0)
    name = "tuned-" + run_id(config)
    if options.resume and records.file(name).exists():
        found = records.figures(name)
        return found["learning_rate"], found["tune_seconds"]
    steps = options.tune_steps
    reached: dict[float, float] = {}
    seconds = 0.0
    for rate in tqdm(options.tune, desc=f"learning rates, {steps} updates each", unit="rate"):
        task = task_of(options, 0, parts, rate, max_steps=steps, patience=None, max_seconds=None)
        run = begin(task)
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

    def mean(name: str, scale: float = 1.0) -> float | None:
        return scale * statistics.mean(numbers(name)) if numbers(name) else None

    def deviation(name: str) -> float | None:
        return 100 * statistics.stdev(numbers(name)) if len(numbers(name)) > 1 else None

    first = rows[0]
    values = (
        f"{first['dataset']}, {first['model_type']}, {first['optimizer']}",
        len(rows),
        mean("test", 100),
        deviation("test"),
        mean("test_averaged", 100),
        deviation("test_averaged"),
        mean("validation", 100),
        mean("updates"),
        mean("train_seconds"),
        mean("compile_seconds"),
    )
    return dict(zip(SUMMARY, values, strict=True))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    counts = {"type": arguments.count}
    named = {name.lower(): name for name in TITLES.values()}
    add(
        "--dataset",
        type=str.lower,
        choices=DATASETS,
        metavar="{" + ",".join(named.get(name, name) for name in DATASETS) + "}",
        default="digits",
        help="what to learn (digits)",
    )
    add("--data-dir", type=Path, help="folder of the data files; digits needs none")
    add("--download", action="store_true", help="fetch from OpenML what --data-dir has not")
    add("--model-type", choices=MODEL_TYPES, help="what learns it (rnn for shakespeare, else mlp)")
    sizes = "(mlp: 128, cnn: 16 32, rnn: 128)"
    add("--hidden-features", nargs="+", **counts, help=f"sizes of the hidden layers {sizes}")
    add("--skip", action="store_true", help="layers with as many inputs as outputs add to these")
    add("--margin-loss", action="store_true", help="a margin of 1 instead of the cross-entropy")
    add("--seq-len", **counts, help="characters of a sample of text (64)")
    add("--optimizer", choices=OPTIMIZERS, default="default", help="what trains it (default)")
    add("--batch-size", **counts, default=256, help="samples a batch (256)")
    rates = ", ".join(f"{name} {rate:g}" for name, rate in FIXED_RATES.items())
    add("--learning-rate", type=arguments.positive, help=f"of sgd and adam ({rates})")
    grid = "; ".join(" ".join(f"{r:g}" for r in rates) for rates in RATES.values())
    add(
        "--tune",
        nargs="*",
        type=arguments.positive,
        metavar="RATE",
        help=f"choose the rate of sgd or adam by short runs, of these if some are given ({grid})",
    )
    add("--tune-steps", **counts, help="updates of each of these runs (200)")
    add("--steps-per-update", **counts, help="of classical solvers (50)")
    add("--granularity", choices=["row", "block"], help="of classical solvers (row)")
    schedules = ["parallel", "product", "sweep", "cyclic"]
    add("--schedule", choices=schedules, help="what is projected together (what the solver has)")
    add("--dm-beta", type=float, help="of the difference map (0.8)")
    add_setting(parser)
    add("--num-runs", **counts, default=1, help="with seeds one after the other (1)")
    add("--seed", type=int, default=0, help="of the start and the batches of the first run (0)")
    add("--eval-every", **counts, default=20, help="updates between measurements (20)")
    add("--patience", **counts, help="end after so many measurements of which none is the best")
    add("--max-steps", **counts, default=1000, help="updates at most (1000)")
    add("--max-seconds", type=arguments.positive, help="of training at most; not repeatable then")
    log = {"type": arguments.output_file, "default": "results.csv"}
    add("--log-file", **log, help="table that finished runs are added to (results.csv)")
    add("--resume", action="store_true", help="leave out finished runs, go on with started ones")
    given = list(map(hyphenated, sys.argv[1:] if argv is None else argv))
    options = parser.parse_args(given)
    complete(options, parser)
    return options


def hyphenated(argument: str) -> str:
    """An option written with underscores as it is with hyphens."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def complete(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Give options that were left out their values; refuse those that do not go together."""
    text, optimizer = options.dataset == "shakespeare", options.optimizer
    options.model_type = options.model_type or ("rnn" if text else "mlp")
    if not MODELS[options.model_type].can_read(options.dataset):
        parser.error(f"--model-type {options.model_type} cannot read --dataset {options.dataset}")
    if options.seq_len and not text:
        parser.error(f"--seq-len is for texts, not for --dataset {options.dataset}")
    options.seq_len = (options.seq_len or 64) if text else None
    options.hidden_features = options.hidden_features or MODEL_TYPES[options.model_type]

    def refuse(name: str, reason: str) -> None:
        value = getattr(options, name)
        if value is not None and value is not False:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is not for --optimizer {optimizer}: {reason}")

    if optimizer not in GRADIENTS:
        for name in ("learning_rate", "tune"):
            refuse(name, "it has no learning rate")
    if optimizer not in CLASSICAL:
        swept = "a sweep is one step with blocks and a metric of its own"
        reason = swept if optimizer == "default" else "it makes no projections"
        for name in ("steps_per_update", "granularity", "lam", "weight_parameters"):
            refuse(name, reason)
        for name in ("weight_hidden", "weight_outputs"):
            refuse(name, reason)
    if optimizer != "dm":
        refuse("dm_beta", "it is the difference map's")
    schedules = solver_schedules(optimizer)
    if options.schedule not in (None, *schedules):
        refuse("schedule", f"it has {' and '.join(schedules) or 'none'}")
    if options.tune is None:
        if options.tune_steps:
            parser.error("--tune-steps is for --tune")
    elif options.learning_rate:
        parser.error("--learning-rate gives one rate and --tune chooses one: leave one out")
    else:
        options.tune = options.tune or RATES[optimizer]
        options.tune_steps = min(options.tune_steps or 200, options.max_steps)
    if optimizer in GRADIENTS and options.tune is None:
        options.learning_rate = options.learning_rate or FIXED_RATES[optimizer]
    if optimizer in CLASSICAL:
        options.steps_per_update = options.steps_per_update or SOLVERS[optimizer]().default_steps
        options.granularity = options.granularity or "row"
        complete_setting(options, optimizer, options.model_type)
        if options.margin_loss:
            options.lam = None
    options.schedule = options.schedule or next(iter(schedules), None)
    if options.dm_beta is not None and not options.dm_beta:
        parser.error("--dm-beta must not be 0")
    if optimizer == "dm":
        options.dm_beta = options.dm_beta or SOLVERS["dm"]().beta


def solver_schedules(optimizer: str) -> tuple[str, ...]:
    """The schedules that an optimizer has, its own first; gradients have none."""
    if optimizer in GRADIENTS:
        return ()
    return SOLVERS["sweep" if optimizer == "default" else optimizer]().schedules


if __name__ == "__main__":
    sys.exit(main())
