import jax
import numpy as np
import pytest

import pjax_trace as pjax
from benchmarks import running
from benchmarks.data import load
from benchmarks.methods import Method, Progress
from benchmarks.models import mlp
from benchmarks.running import Curve, attempt, follow, updates


def counting(fails_at: int | None = None) -> Method:
    """A method that leaves models alone, and counts in its state."""

    def update(model, state, x, y):
        if state == fails_at:
            raise pjax.NonFiniteError("NaN", params=model, state=state, culprit="w")
        return model, state + 1, Progress(steps=1, gap=None)

    return Method("counting", lambda model: 0, update, lambda model, state: model)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def start():
    return mlp(jax.random.key(0), [64, 4, 10])


def test_updates_are_one_for_each_batch():
    batch = np.zeros((2, 3)), np.zeros(2)
    done = list(updates(counting(), "model", 0, [batch] * 3))
    assert [update.state for update in done] == [1, 2, 3]
    assert all(update.model == "model" and update.seconds >= 0 for update in done)


def test_accuracy_is_measured_where_asked(digits):
    curve = Curve("counting", seed=0)
    follow(curve, counting(), start, digits, 16, [2, 5])
    assert [point.batches for point in curve.points] == [2, 5]
    assert len(curve.seconds) == 5 and curve.compile_seconds is not None
    assert curve.points[-1].seconds == pytest.approx(sum(curve.seconds))
    accuracy = running.test_accuracy(start(), digits)
    assert all(point.accuracy == point.averaged == accuracy for point in curve.points)


def test_enough_ends_a_run(digits):
    curve = Curve("counting", seed=0)
    follow(curve, counting(), start, digits, 16, range(1, 9), lambda: len(curve.points) == 3)
    assert len(curve.seconds) == 3


def test_a_run_that_is_not_finite_ends_alone(digits, capsys):
    curve = Curve("counting", seed=7)
    follow(curve, counting(fails_at=3), start, digits, 16, [1, 4])
    assert [point.batches for point in curve.points] == [1] and len(curve.seconds) == 3
    assert capsys.readouterr().err == "counting, seed 7: NaN\n"


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, "interrupted: this is what was reached\n"),
        (pjax.TraceError("no rule"), 1, "error: no rule\n"),
    ],
)
def test_what_there_is_is_always_reported(error, status, says, capsys):
    reports = []

    def work():
        if error:
            raise error

    assert attempt(work, lambda: reports.append("table")) == status
    assert reports == ["table"] and capsys.readouterr().err == says
