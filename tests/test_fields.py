"""Models of other fields with their own losses: each trains as it was written for `jax.grad`."""

import jax
import numpy as np
import pytest

import pjax_trace as pjax

from .models import FIELDS

pytestmark = pytest.mark.thinned(4)

# Those that take longest to compile.
SLOW = {"S4D", "GPT", "FNO", "physics-informed"}


@pytest.fixture(autouse=True)
def as_outside():
    """What people write promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def value(field, parameters, batch):
    out = field.objective(parameters, *batch)
    return float(out[0] if field.has_aux else out)


def marked(slow):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in FIELDS]


@pytest.mark.parametrize("name", FIELDS)
def test_traces(name):
    field = FIELDS[name]()
    train = pjax.project(field.objective, has_aux=field.has_aux, trainable=field.trainable)
    graph = train.trace(field.parameters(0), *field.batch(0))
    assert graph.losses and not graph.problems


@pytest.mark.parametrize("name", marked(SLOW))
def test_trains(name):
    field = FIELDS[name]()
    train = pjax.project(field.objective, has_aux=field.has_aux, trainable=field.trainable)
    start, batch = field.parameters(0), field.batch(0)
    parameters, state = start, train.init(start)
    for _ in range(20):
        parameters, state, info = train.update(parameters, state, *batch)
        assert bool(info.finite)
        if field.after:
            parameters = field.after(parameters, info.aux)
    assert value(field, parameters, batch) < 0.9 * value(field, start, batch)
    assert jax.tree.structure(parameters) == jax.tree.structure(start)
    for old, new in zip(*map(jax.tree.leaves, (start, parameters)), strict=True):
        if hasattr(old, "dtype"):
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
            assert np.all(np.isfinite(new))
