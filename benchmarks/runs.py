"""One run of a comparison: training that is measured as it goes on, and can be left and resumed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

import pjax_trace as pjax
from benchmarks.data import Parts, batches
from benchmarks.methods import Method
from benchmarks.running import Point, accuracy, compile_seconds, copied, updates

__all__ = ["Run", "Task", "best", "begin", "train"]


class Task(NamedTuple):
    """What a run is to do.

    It ends after ``max_steps`` updates, ``max_seconds`` of training, or ``patience`` measurements
    in a row of which none was the best, of parameters or of averages; None is no limit.
    """

    parts: Parts
    start: Callable[[], Any]
    method: Method
    seed: int
    batch_size: int
    eval_every: int
    max_steps: int | None
    max_seconds: float | None = None
    patience: int | None = None


@dataclass
class Run:
    """How far a run is: what goes on from update to update, and what was best on validation.

    ``history`` holds the measurements, the first one at the start; ``ended`` says why it is over.
    """

    model: Any
    state: Any
    best: Any
    best_averaged: Any
    updates: int = 0
    seconds: float = 0.0
    compile_seconds: float | None = None
    history: list[Point] = field(default_factory=list)
    ended: str | None = None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """All that is not a figure."""
        return self.model, self.state, self.best, self.best_averaged

    @property
    def figures(self) -> dict[str, Any]:
        """All that is, for JSON."""
        return {
            "updates": self.updates,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "history": self.history,
            "ended": self.ended,
        }

    def restore(self, figures: dict[str, Any], arrays: tuple[Any, ...]) -> None:
        """Be where another run was left, of which these are the figures and the arrays."""
        self.model, self.state, self.best, self.best_averaged = arrays
        for name in self.figures:
            setattr(self, name, figures[name])
        self.history = [Point(*point) for point in self.history]


def begin(task: Task) -> Run:
    """A run at its start."""
    model = task.start()
    averaged = None if task.method.averaged is None else copied(model)
    return Run(model, task.method.init(model), copied(model), averaged)


def train(task: Task, run: Run, kept: Callable[[], None] = lambda: None) -> None:
    """Go on to the end of a run.

    Args:
        task: what to do.
        run: to go on with; ``run.ended`` says at last why it is over.
        kept: called after every measurement, when all of ``run`` is as an unbroken run has it.
    """
    data, method = task.parts.data, task.method

    def draw(skip: int):
        return batches(data.train_x, data.train_y, task.batch_size, task.seed, skip)

    if run.ended:
        return
    if not run.history:
        _measure(task, run)
    try:
        seconds = compile_seconds(method, run.model, next(draw(0)))
        run.compile_seconds = run.compile_seconds or seconds
        for update in updates(method, run.model, run.state, draw(run.updates)):
            run.model, run.state = update.model, update.state
            run.updates, run.seconds = run.updates + 1, run.seconds + update.seconds
            if run.updates % task.eval_every and not _limit(task, run):
                continue
            if not _finite(run.model):
                run.ended = "not finite"
            else:
                _measure(task, run)
                run.ended = _reason_to_end(task, run)
            kept()
            if run.ended:
                return
    except pjax.NonFiniteError:
        # What a method cannot train is a result: that of its best parameters before.
        run.ended = "not finite"
        kept()


def best(history: Sequence[Point], averaged: bool = False) -> Point | None:
    """The first of the best measurements, of parameters or of averages; None if there are none."""
    name = "averaged" if averaged else "accuracy"
    known = [point for point in history if getattr(point, name) is not None]
    return max(known, key=lambda point: getattr(point, name), default=None)


def _limit(task: Task, run: Run) -> str | None:
    """Which limit a run has come to."""
    if task.max_steps is not None and run.updates >= task.max_steps:
        return "steps"
    late = task.max_seconds is not None and run.seconds >= task.max_seconds
    return "seconds" if late else None


def _reason_to_end(task: Task, run: Run) -> str | None:
    impatient = task.patience is not None and _stale(run.history) >= task.patience
    return _limit(task, run) or ("patience" if impatient else None)


def _stale(history: Sequence[Point]) -> int:
    """How many measurements there were since the last best one."""
    found = [best(history), best(history, averaged=True)]
    return len(history) - 1 - max(history.index(point) for point in found if point)


def _measure(task: Task, run: Run) -> None:
    """Measure on the validation part, and keep copies of what is best there."""
    held = task.parts.validation_x, task.parts.validation_y
    averages = task.method.averaged
    averaged = None if averages is None else averages(run.model, run.state)
    found = None if averaged is None else accuracy(averaged, *held)
    point = Point(run.updates, run.seconds, accuracy(run.model, *held), found)
    run.history.append(point)
    if best(run.history) is point:
        run.best = copied(run.model)
    if best(run.history, averaged=True) is point:
        run.best_averaged = copied(averaged)


def _finite(model: Any) -> bool:
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return all(np.isfinite(array).all() for array in arrays)
