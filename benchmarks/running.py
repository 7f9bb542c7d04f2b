"""What the commands that train have in common: the loop over batches, and an end in order."""

import argparse
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32, Shaped
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.data import IMAGES, Dataset, batches, load
from benchmarks.methods import (
    SOLVERS,
    Method,
    Progress,
    Setting,
    adam,
    projections,
    setting,
)

__all__ = [
    "SETTING",
    "Curve",
    "Point",
    "Update",
    "accuracy",
    "add_setting",
    "attempt",
    "chosen_setting",
    "compile_seconds",
    "copied",
    "complete_setting",
    "follow",
    "learners",
    "load_images",
    "mlp_parser",
    "test_accuracy",
    "updates",
]

# The options that name the fields of a Setting, in their order.
SETTING = ("lam", "weight_parameters", "weight_hidden", "weight_outputs")


class Update(NamedTuple):
    """What an update made, and how long it took."""

    model: Any
    state: Any
    progress: Progress
    seconds: float


class Point(NamedTuple):
    """Held-out accuracy after some batches, of the parameters and of their averages."""

    batches: int
    seconds: float
    accuracy: float
    averaged: float | None


@dataclass
class Curve:
    """All that is known of a run so far: an interrupted one is reported like any other."""

    method: str
    seed: int
    compile_seconds: float | None = None
    seconds: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


def attempt(work: Callable[[], None], report: Callable[[], None]) -> int:
    """Do the work and report what there is, however it ended; returns the exit status."""
    status = 0
    try:
        work()
    except KeyboardInterrupt:
        print("interrupted: this is what was reached", file=sys.stderr)
        status = 130
    except pjax.PjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    finally:
        report()
    return status


def compile_seconds(method: Method, model: Any, batch: tuple[np.ndarray, np.ndarray]) -> float:
    """How long a first update takes, which compiles; the model is left as it is."""
    # A copy of its arrays, not a model made anew, whose functions would not be known as the same.
    model = copied(model)
    before = time.perf_counter()
    method.update(model, method.init(model), *batch)
    return time.perf_counter() - before


def copied(model: Any) -> Any:
    """A model whose buffers no update gives away."""
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, model)


def updates(
    method: Method, model: Any, state: Any, drawn: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[Update]:
    """Update on one batch after the other; to draw a batch takes no time of the update's."""
    for x, y in drawn:
        before = time.perf_counter()
        model, state, progress = method.update(model, state, x, y)
        yield Update(model, state, progress, time.perf_counter() - before)


def follow(
    curve: Curve,
    method: Method,
    start: Callable[[], Any],
    data: Dataset,
    batch_size: int,
    points: Collection[int],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Train a fresh model on a fresh sequence of batches, writing progress into ``curve``.

    Args:
        curve: to write to; batches are drawn by its seed.
        method: to train by.
        start: makes the model.
        data: to train on, and to measure the accuracy.
        batch_size: samples a batch.
        points: after how many batches to measure; the last one ends the run.
        enough: asked after every measurement, ends the run early.

    NaN or infinity ends the run, too, with a line on stderr.
    """

    def draw():
        return batches(data.train_x, data.train_y, batch_size, curve.seed)

    try:
        model = start()
        curve.compile_seconds = compile_seconds(method, model, next(draw()))
        drawn = itertools.islice(draw(), max(points))
        for done in updates(method, model, method.init(model), drawn):
            curve.seconds.append(done.seconds)
            if len(curve.seconds) in points:
                curve.points.append(_measure(curve, method, done, data))
                if enough():
                    break
    except pjax.NonFiniteError as error:
        # What a method cannot train is a result, and no reason to end the other runs.
        tqdm.write(f"{curve.method}, seed {curve.seed}: {error}", file=sys.stderr)


def _measure(curve: Curve, method: Method, done: Update, data: Dataset) -> Point:
    averaged = None
    if method.averaged is not None:
        averaged = test_accuracy(method.averaged(done.model, done.state), data)
    seconds = math.fsum(curve.seconds)
    return Point(len(curve.seconds), seconds, test_accuracy(done.model, data), averaged)


def test_accuracy(model: eqx.Module, data: Dataset) -> float:
    """The share of all held-out labels (of characters, in a text) that a model predicts."""
    return accuracy(model, data.test_x, data.test_y)


def accuracy(
    model: eqx.Module, x: Shaped[np.ndarray, "samples ..."], y: Int32[np.ndarray, "samples ..."]
) -> float:
    """The share of labels that a model predicts."""
    # All at once are too large; in a loop of XLA's own, convolutions are many times slower.
    starts = range(0, len(x), 500)
    right = sum(int(_right(model, x[i : i + 500], y[i : i + 500])) for i in starts)
    return right / y.size


@eqx.filter_jit
def _right(model, x, y):
    return jnp.sum(jnp.argmax(jax.vmap(model)(x), axis=-1) == y)


def mlp_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command that trains an MLP on images, by projections and by Adam."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    seeds, rates = arguments.several(int), arguments.several(arguments.positive)
    add("--dataset", choices=IMAGES, default="digits", help="what to learn")
    add("--data-dir", type=Path, help="folder of the data files; digits needs none")
    add("--solver", choices=SOLVERS, default="sweep", help="the projection method")
    add("--batch-size", type=arguments.count, default=256, help="samples a batch")
    add("--seeds", type=seeds, default=[0, 1, 2], help="of the starts and orders of samples")
    tuned = "of Adam; the best of them counts"
    add("--learning-rate", type=rates, default=[1e-3, 3e-3, 1e-2], help=tuned)
    add("--json", type=arguments.output_file, help="file to write the results to")
    return parser


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a solver's `Setting`."""
    tuned = "(default: what suits the solver and the model)"
    add = functools.partial(parser.add_argument, type=arguments.positive)
    add("--lam", help=f"weight of the loss in its prox {tuned}")
    for part in ("parameters", "hidden", "outputs"):
        add(f"--weight-{part}", help=f"weight of {part} in the metric {tuned}")


def complete_setting(options: argparse.Namespace, solver: str, model: str) -> None:
    """Give the options of `add_setting` that were left out what suits a solver and a model."""
    for option, value in zip(SETTING, setting(solver, model), strict=True):
        setattr(options, option, getattr(options, option) or value)


def chosen_setting(options: argparse.Namespace) -> Setting:
    """What the options of `add_setting` say."""
    return Setting(*(getattr(options, option) for option in SETTING))


def load_images(options: argparse.Namespace) -> Dataset:
    """The data set of the options.

    Raises:
        DataError: if it cannot be read, or a batch cannot be drawn from it.
    """
    data = load(options.dataset, options.data_dir)
    batches(data.train_x, data.train_y, options.batch_size, seed=0)
    return data


def learners(options: argparse.Namespace) -> tuple[Method, list[Method]]:
    """The solver of the options, and Adam at each of their learning rates."""
    steps = SOLVERS[options.solver]().default_steps
    ours = projections(options.solver, setting(options.solver, "mlp"), steps=steps)
    return ours, [adam(rate) for rate in options.learning_rate]
