"""The options of ``benchmarks.comparison``: what they are, and which of them go together."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.data import DATASETS
from benchmarks.formats import note
from benchmarks.methods import SOLVERS
from benchmarks.models import MODELS
from benchmarks.running import SETTING, add_setting, complete_setting

__all__ = ["CONFIGURATION", "GRADIENTS", "NETWORK", "OPTIMIZERS", "TITLES", "parse"]

CLASSICAL = tuple(name for name in SOLVERS if name != "sweep")
GRADIENTS = ("sgd", "adam")
OPTIMIZERS = (*GRADIENTS, *CLASSICAL, "default")
MODEL_TYPES = {"mlp": [128], "cnn": [16, 32], "rnn": [128]}  # With their hidden features.
RATES = {"sgd": [0.01, 0.03, 0.1, 0.3], "adam": [3e-4, 1e-3, 3e-3, 1e-2]}
FIXED_RATES = {"sgd": 0.03, "adam": 1e-3}
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR10", "higgs": "HIGGS"}

# What decides what comes of a run: the options of these names, and a fingerprint of the data.
NETWORK = ("dataset", "data", "model_type", "hidden_features", "skip", "margin_loss", "seq_len")
CONFIGURATION = (
    *NETWORK,
    *("optimizer", "batch_size", "learning_rate", "tune", "tune_steps"),
    *("steps_per_update", "granularity", "schedule", "dm_beta", *SETTING),
    *("patience", "eval_every", "max_steps", "max_seconds", "seed"),
)


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command's options, all of them set: None is what does not apply."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    count = arguments.count
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
    add("--hidden-features", nargs="+", type=count, help=f"sizes of the hidden layers {sizes}")
    add("--skip", action="store_true", help="the last layer reads all hidden layers")
    add("--margin-loss", action="store_true", help="a margin of 1 instead of the cross-entropy")
    add("--seq-len", type=count, help="characters of a sample of text (64)")
    add("--optimizer", choices=OPTIMIZERS, default="default", help="what trains it (default)")
    add("--batch-size", type=count, default=256, help="samples a batch (256)")
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
    add("--tune-steps", type=count, help="updates of each of these runs (200)")
    add("--steps-per-update", type=count, help="of classical solvers (50)")
    add("--granularity", choices=["row", "block"], help="of classical solvers (row)")
    schedules = ["parallel", "product", "sweep", "cyclic"]
    add("--schedule", choices=schedules, help="what is projected together (what the solver has)")
    add("--dm-beta", type=float, help="of the difference map (0.8)")
    add_setting(parser)
    add("--num-runs", type=count, default=1, help="with seeds one after the other (1)")
    add(
        "--seed",
        type=arguments.whole,
        default=0,
        help="of the start and the batches of the first run (0)",
    )
    add("--eval-every", type=count, default=20, help="updates between measurements (20)")
    add("--patience", type=count, help="end after so many measurements of which none is the best")
    limit = "updates at most (1000); 0: no limit"
    add("--max-steps", type=arguments.whole, default=1000, help=limit)
    add("--max-seconds", type=arguments.positive, help="of training at most; not repeatable then")
    log, help = Path("results.csv"), "table that finished runs are added to (results.csv)"
    add("--log-file", type=arguments.output_file, default=log, help=help)
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
    options.max_steps = options.max_steps or None
    if not (options.max_steps or options.patience or options.max_seconds):
        parser.error("--max-steps 0 is no limit, which takes --patience or --max-seconds to end")
    options.hidden_features = options.hidden_features or MODEL_TYPES[options.model_type]

    def refuse(name: str, reason: str) -> None:
        value = getattr(options, name)
        if value is not None and value is not False:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is not for --optimizer {optimizer}: {reason}")

    def leave_out(name: str, reason: str) -> None:
        # As the original script does, whose commands give the same options to all optimizers.
        if getattr(options, name) is not None:
            note(f"--{name.replace('_', '-')} is left out: {reason}")
            setattr(options, name, None)

    if not text:
        leave_out("seq_len", f"{options.dataset} is no text")
    if optimizer not in GRADIENTS:
        leave_out("learning_rate", f"{optimizer} has none")
        refuse("tune", "it has no learning rate")
    if optimizer not in CLASSICAL:
        leave_out("steps_per_update", f"{optimizer} makes one")
        swept = "a sweep is one step with blocks and a metric of its own"
        reason = swept if optimizer == "default" else "it makes no projections"
        for name in ("granularity", *SETTING):
            refuse(name, reason)
    if optimizer != "dm":
        leave_out("dm_beta", "it is the difference map's")
    options.seq_len = (options.seq_len or 64) if text else None
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
        few = options.tune_steps or 200
        options.tune_steps = min(few, options.max_steps or few)
    if optimizer in GRADIENTS and options.tune is None:
        options.learning_rate = options.learning_rate or FIXED_RATES[optimizer]
    if optimizer in CLASSICAL:
        options.steps_per_update = options.steps_per_update or SOLVERS[optimizer]().default_steps
        options.granularity = options.granularity or "row"
        if options.margin_loss and options.lam:
            parser.error("--lam is not for --margin-loss: the margin is a set")
        complete_setting(options, optimizer, options.model_type)
        options.lam = None if options.margin_loss else options.lam
    options.schedule = options.schedule or next(iter(schedules), None)
    if optimizer == "dm" and options.dm_beta is None:
        options.dm_beta = pjax.DifferenceMap().beta
    elif options.dm_beta is not None and not 0 < abs(options.dm_beta) < math.inf:
        parser.error("--dm-beta must be finite and not 0")


def solver_schedules(optimizer: str) -> tuple[str, ...]:
    """The schedules that an optimizer has, its own first; gradients have none."""
    if optimizer in GRADIENTS:
        return ()
    return SOLVERS["sweep" if optimizer == "default" else optimizer]().schedules
