import jax
import jax.numpy as jnp
import pytest

import pjax_trace as pjax
from benchmarks import running
from benchmarks.data import load
from benchmarks.methods import Method, Progress
from benchmarks.models import cnn, mlp
from benchmarks.running import Point, Run, Task, attempt, best, by_method, follow, train


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def start(seed):
    return mlp(jax.random.key(seed), [64, 4, 10])


def counting(fails_at=None, spoils_at=None) -> Method:
    """A method that leaves models alone and counts in its state, until it fails or spoils them."""

    def update(model, state, x, y):
        if state == fails_at:
            raise pjax.NonFiniteError("NaN", params=model, state=state, culprit="w")
        if state == spoils_at:
            model = jax.tree.map(lambda x: x * jnp.nan if hasattr(x, "size") else x, model)
        return model, state + 1, Progress(steps=1, gap=None)

    return Method("counting", lambda model: 0, update, lambda model, state: model)


def task_of(digits, method, **other):
    return Task(method, start, digits, 16, range(0, 99, 2), 7)._replace(**other)


def run_of(digits, method, **other):
    """A run and after how many updates it was measured."""
    run, measured = Run("counting", 0), []
    train(task_of(digits, method, **other), run, lambda: measured.append(run.figures["updates"]))
    return run, measured


def stale(run):
    return "stale" if len(run.history) == 3 else None


@pytest.mark.parametrize(
    ("limits", "ended", "measured"),
    [
        ({}, "steps", [0, 2, 4, 6, 7]),
        ({"points": [2, 5], "max_steps": 5}, "steps", [2, 5]),
        ({"enough": stale}, "stale", [0, 2, 4]),
        ({"points": range(1, 9), "enough": stale}, "stale", [1, 2, 3]),
        ({"max_seconds": 1e-9}, "seconds", [0, 1]),
    ],
)
@pytest.mark.parametrize("keeps_best", [False, True])
def test_runs_are_measured_where_asked_and_end_for_a_reason(
    digits, limits, ended, measured, keeps_best
):
    run, kept = run_of(digits, counting(), keeps_best=keeps_best, **limits)
    assert run.ended == ended and kept == [updates for updates in measured if updates]
    assert [point.batches for point in run.history] == measured
    assert run.updates == len(run.log) == run.state == measured[-1]
    assert run.compile_seconds is not None
    seconds = run.curve["seconds"]
    assert run.history[-1].seconds == run.seconds == pytest.approx(sum(seconds))
    accuracy = running.accuracy(start(0), digits.test_x, digits.test_y)
    assert all(point.accuracy == point.averaged == accuracy for point in run.history)
    assert best(run.history) is best(run.history, averaged=True) is run.history[0]
    assert (run.best is not None) == (run.best_averaged is not None) == keeps_best
    again = list(run.log)
    train(task_of(digits, counting(fails_at=0)), run)  # It is over.
    assert run.log == again


@pytest.mark.parametrize("method", [counting(fails_at=3), counting(spoils_at=3)])
def test_what_is_not_finite_ends_a_run_and_is_never_best(digits, method):
    run, kept = run_of(digits, method, keeps_best=True)
    assert run.ended == "not finite" and len(kept) == 2
    assert [point.batches for point in run.history] == [0, 2]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(run.best) if hasattr(x, "size"))


def test_a_run_that_is_not_finite_ends_alone(digits, capsys):
    run = Run("counting", seed=7)
    follow(task_of(digits, counting(fails_at=3), points=[1, 4]), run)
    assert [point.batches for point in run.history] == [1] and len(run.log) == 3
    assert capsys.readouterr().err == "counting, seed 7: NaN\n"
    with pytest.raises(pjax.NonFiniteError):
        run_of(digits, counting(fails_at=3))
    run, _ = run_of(digits, counting(spoils_at=3))  # What is not chosen from is measured as it is.
    assert run.ended == "steps" and len(run.history) == 5


def test_what_compiles_is_what_is_timed(digits):
    seen = []

    def update(model, state, x, y):
        seen.append(jax.tree.structure(model))
        seen.append([leaf for leaf in jax.tree.leaves(model) if callable(leaf)])
        return model, state, Progress(steps=1, gap=None)

    def start(seed):  # Its pooling is a function of its own.
        return cnn(jax.random.key(seed), [1, 2, 10])

    run_of(digits, Method("seeing", lambda model: 0, update), start=start, max_steps=2)
    assert len(seen) == 6 and seen[:2] == seen[2:4] == seen[4:]


def test_what_was_best_first_is_best():
    found = [(0, 0.1, None), (2, 0.3, 0.2), (4, 0.3, 0.4), (6, 0.2, 0.4)]
    history = [Point(updates, 0.0, raw, averaged) for updates, raw, averaged in found]
    assert best(history) is history[1] and best(history, averaged=True) is history[2]
    assert best(history[:1], averaged=True) is best([]) is None


def test_runs_are_told_apart_by_method():
    a, b, c = (Run(name, seed) for name, seed in (("sweep", 0), ("adam", 0), ("sweep", 1)))
    assert list(by_method([a, b, c]).items()) == [("sweep", [a, c]), ("adam", [b])]


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
