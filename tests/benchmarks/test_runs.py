import jax
import jax.numpy as jnp
import pytest

import pjax_trace as pjax
from benchmarks.data import hold_out, load
from benchmarks.methods import Method, Progress
from benchmarks.models import cnn, mlp
from benchmarks.running import Point
from benchmarks.runs import Task, begin, best, train


@pytest.fixture(scope="module")
def parts():
    return hold_out("digits", load("digits"))


def counting(fails_at=None, spoils_at=None) -> Method:
    """A method that leaves models alone and counts in its state, until it fails or spoils them."""

    def update(model, state, x, y):
        if state == fails_at:
            raise pjax.NonFiniteError("NaN", params=model, state=state, culprit="w")
        if state == spoils_at:
            model = jax.tree.map(lambda x: x * jnp.nan if hasattr(x, "size") else x, model)
        return model, state + 1, Progress(steps=1, gap=None)

    return Method("counting", lambda model: 0, update, lambda model, state: model)


def run_of(parts, method, **limits):
    def start():
        return mlp(jax.random.key(0), [64, 4, 10])

    task = Task(parts, start, method, 0, 16, eval_every=2, max_steps=7)._replace(**limits)
    run = begin(task)
    saved = []
    train(task, run, lambda: saved.append(run.figures["updates"]))
    return run, saved


@pytest.mark.parametrize(
    ("limits", "ended", "measured"),
    [
        ({}, "steps", [0, 2, 4, 6, 7]),
        ({"patience": 2}, "patience", [0, 2, 4]),
        ({"max_seconds": 1e-9}, "seconds", [0, 1]),
    ],
)
def test_runs_end_for_a_reason(parts, limits, ended, measured):
    run, saved = run_of(parts, counting(), **limits)
    assert run.ended == ended and saved == measured[1:]
    assert [point.batches for point in run.history] == measured
    assert best(run.history) is best(run.history, averaged=True) is run.history[0]


@pytest.mark.parametrize("method", [counting(fails_at=3), counting(spoils_at=3)])
def test_what_is_not_finite_ends_a_run_and_is_never_best(parts, method):
    run, saved = run_of(parts, method)
    assert run.ended == "not finite" and len(saved) == 2
    assert [point.batches for point in run.history] == [0, 2]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(run.best) if hasattr(x, "size"))


def test_what_compiles_is_what_is_timed(parts):
    seen = []

    def update(model, state, x, y):
        seen.append(jax.tree.structure(model))
        seen.append([leaf for leaf in jax.tree.leaves(model) if callable(leaf)])
        return model, state, Progress(steps=1, gap=None)

    def start():  # Its pooling is a function of its own.
        return cnn(jax.random.key(0), [1, 2, 10])

    run_of(parts, Method("seeing", lambda model: 0, update), start=start, max_steps=2)
    assert len(seen) == 6 and seen[:2] == seen[2:4] == seen[4:]


def test_what_was_best_first_is_best():
    found = [(0, 0.1, None), (2, 0.3, 0.2), (4, 0.3, 0.4), (6, 0.2, 0.4)]
    history = [Point(updates, 0.0, raw, averaged) for updates, raw, averaged in found]
    assert best(history) is history[1] and best(history, averaged=True) is history[2]
    assert best(history[:1], averaged=True) is best([]) is None
