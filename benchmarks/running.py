"""What the commands that train have in common: the loop over batches, and an end in order."""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
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
from benchmarks.data import IMAGES, DataError, Dataset, batches, load
from benchmarks.methods import SOLVERS, Method, Setting, adam, projections, setting

__all__ = [
    "SETTING",
    "Point",
    "Run",
    "Task",
    "Update",
    "accuracy",
    "add_setting",
    "attempt",
    "begin",
    "best",
    "by_method",
    "chosen_setting",
    "complete_setting",
    "follow",
    "learners",
    "mlp_parser",
    "read",
    "train",
]

# The options that name the fields of a Setting, in their order.
SETTING = ("lam", "weight_parameters", "weight_hidden", "weight_outputs")


class Update(NamedTuple):
    """What an update took, and what it reported."""

    seconds: float
    steps: int
    gap: float | None


class Point(NamedTuple):
    """Held-out accuracy after some batches, of the parameters and of their averages."""

    batches: int
    seconds: float
    accuracy: float
    averaged: float | None


@dataclass
class Run:
    """All that is known of a run so far: an interrupted one is reported like any other.

    ``history`` holds the measurements, ``log`` the updates since it began or went on; ``ended``
    says why it is over. ``model`` is None until it begins, the best ones if its task keeps none.
    """

    method: str
    seed: int
    updates: int = 0
    seconds: float = 0.0
    compile_seconds: float | None = None
    history: list[Point] = field(default_factory=list)
    ended: str | None = None
    log: list[Update] = field(default_factory=list)
    model: Any = None
    state: Any = None
    best: Any = None
    best_averaged: Any = None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What goes on from update to update, and what was best."""
        return self.model, self.state, self.best, self.best_averaged

    @property
    def figures(self) -> dict[str, Any]:
        """All else that it takes to go on, for JSON."""
        names = ("updates", "seconds", "compile_seconds", "history", "ended")
        return {name: getattr(self, name) for name in names}

    @property
    def curve(self) -> dict[str, Any]:
        """What is known once it is over, for JSON."""
        return {
            "method": self.method,
            "seed": self.seed,
            "compile_seconds": self.compile_seconds,
            "seconds": [update.seconds for update in self.log],
            "points": self.history,
        }

    def restore(self, figures: dict[str, Any], arrays: tuple[Any, ...]) -> None:
        """Be where another run was left, of which these are the figures and the arrays."""
        self.model, self.state, self.best, self.best_averaged = arrays
        for name in self.figures:
            setattr(self, name, figures[name])
        self.history = [Point(*point) for point in self.history]


class Task(NamedTuple):
    """How to train, and on what; the test part of ``data`` is held out to measure accuracy on.

    ``start`` makes the model of a seed. ``points`` contains after how many updates to measure; at
    the end it is measured, too. A run ends after ``max_steps`` updates, after ``max_seconds`` of
    training, or once ``enough``, which is asked after every measurement, says why; None is no
    limit. With ``keeps_best`` the parameters and averages that were best are kept; then what is not
    finite ends a run, too, whose result is that of the best ones before.
    """

    method: Method
    start: Callable[[int], Any]
    data: Dataset
    batch_size: int
    points: Container[int]
    max_steps: int | None
    max_seconds: float | None = None
    enough: Callable[[Run], str | None] = lambda run: None
    keeps_best: bool = False

    def draw(self, seed: int, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of a seed; see `batches`."""
        return batches(self.data.train_x, self.data.train_y, self.batch_size, seed, skip)


def begin(task: Task, run: Run) -> None:
    """Put a run at its start."""
    run.model = task.start(run.seed)
    run.state = task.method.init(run.model)
    if task.keeps_best:
        run.best = _copied(run.model)
        run.best_averaged = None if task.method.averaged is None else _copied(run.model)


def train(task: Task, run: Run, kept: Callable[[], None] = lambda: None) -> None:
    """Go on to the end of a run, from its start if it did not begin.

    To compile, to draw batches and to measure take no time of the training's.

    Args:
        task: what to do.
        run: to go on with; ``run.ended`` says at last why it is over.
        kept: called after every measurement but that of the start, when all of ``run`` is as an
            unbroken run has it.

    Raises:
        pjax_trace.NonFiniteError: if a method cannot go on and ``task`` does not keep what is best.
    """
    method = task.method
    if run.ended:
        return
    if run.model is None:
        begin(task, run)
    if not run.history and 0 in task.points:
        _measure(task, run)
    try:
        seconds = _compile_seconds(method, run.model, next(task.draw(run.seed)))
        run.compile_seconds = run.compile_seconds or seconds
        for x, y in task.draw(run.seed, run.updates):
            before = time.perf_counter()
            run.model, run.state, progress = method.update(run.model, run.state, x, y)
            seconds = time.perf_counter() - before
            run.updates, run.seconds = run.updates + 1, run.seconds + seconds
            run.log.append(Update(seconds, *progress))
            limit = _limit(task, run)
            if not limit and run.updates not in task.points:
                continue
            if task.keeps_best and not _finite(run.model):
                run.ended = "not finite"
            else:
                _measure(task, run)
                run.ended = limit or task.enough(run)
            kept()
            if run.ended:
                return
    except pjax.NonFiniteError:
        run.ended = "not finite"
        kept()
        if not task.keeps_best:
            raise


def follow(task: Task, run: Run) -> None:
    """Train; what a method cannot train is a line on stderr, and no reason to end other runs."""
    try:
        train(task, run)
    except pjax.NonFiniteError as error:
        tqdm.write(f"{run.method}, seed {run.seed}: {error}", file=sys.stderr)


def best(history: Sequence[Point], averaged: bool = False) -> Point | None:
    """The first of the best measurements, of parameters or of averages; None if there are none."""
    name = "averaged" if averaged else "accuracy"
    known = [point for point in history if getattr(point, name) is not None]
    return max(known, key=lambda point: getattr(point, name), default=None)


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each method, in their order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


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


def accuracy(
    model: eqx.Module, x: Shaped[np.ndarray, "samples ..."], y: Int32[np.ndarray, "samples ..."]
) -> float:
    """The share of labels (of characters, in a text) that a model predicts."""
    # All at once are too large; in a loop of XLA's own, convolutions are many times slower.
    starts = range(0, len(x), 500)
    right = sum(int(_right(model, x[i : i + 500], y[i : i + 500])) for i in starts)
    return right / y.size


@eqx.filter_jit
def _right(model, x, y):
    return jnp.sum(jnp.argmax(jax.vmap(model)(x), axis=-1) == y)


def _compile_seconds(method: Method, model: Any, batch: tuple[np.ndarray, np.ndarray]) -> float:
    """How long a first update takes, which compiles; the model is left as it is."""
    # A copy of its arrays, not a model made anew, whose functions would not be known as the same.
    model = _copied(model)
    before = time.perf_counter()
    method.update(model, method.init(model), *batch)
    return time.perf_counter() - before


def _copied(model: Any) -> Any:
    """A model whose buffers no update gives away."""
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, model)


def _limit(task: Task, run: Run) -> str | None:
    """Which limit a run has come to."""
    if task.max_steps is not None and run.updates >= task.max_steps:
        return "steps"
    late = task.max_seconds is not None and run.seconds >= task.max_seconds
    return "seconds" if late else None


def _measure(task: Task, run: Run) -> None:
    """Measure held-out accuracy, and keep copies of what is best there if the task says so."""
    held, averages = (task.data.test_x, task.data.test_y), task.method.averaged
    averaged = None if averages is None else averages(run.model, run.state)
    found = None if averaged is None else accuracy(averaged, *held)
    point = Point(run.updates, run.seconds, accuracy(run.model, *held), found)
    run.history.append(point)
    if task.keeps_best and best(run.history) is point:
        run.best = _copied(run.model)
    if task.keeps_best and best(run.history, averaged=True) is point:
        run.best_averaged = _copied(averaged)


def _finite(model: Any) -> bool:
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return all(np.isfinite(array).all() for array in arrays)


def read(options: argparse.Namespace, length: int = 64) -> Dataset | None:
    """The data set of the options, a batch of which can be drawn; else None, and a line on stderr.

    Args:
        options: of a command.
        length: of a text's sequences.
    """
    try:
        data = load(options.dataset, options.data_dir, length)
        batches(data.train_x, data.train_y, options.batch_size, seed=0)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    return data


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


def learners(options: argparse.Namespace) -> tuple[Method, list[Method]]:
    """The solver of the options, and Adam at each of their learning rates."""
    steps = SOLVERS[options.solver]().default_steps
    ours = projections(options.solver, setting(options.solver, "mlp"), steps=steps)
    return ours, [adam(rate) for rate in options.learning_rate]
