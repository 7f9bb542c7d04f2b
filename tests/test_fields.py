"""Models of other fields with their own losses: each trains as it was written for `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pjax_trace as pjax

from .fields import projection, trained, value
from .models import FIELDS as FIRST
from .more_models import FIELDS

pytestmark = pytest.mark.thinned(4)
CLASSICAL = {"solver": pjax.AlternatingProjections(momentum=0.9), "steps": 20}
# Those that take longest to compile.
SLOW = {"S4D", "GPT", "FNO", "physics-informed"}


@pytest.fixture(autouse=True)
def as_outside():
    """What people write promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def leaves(tree):
    """Paths and leaves, those of NNX modules with their kinds."""
    if isinstance(tree, nnx.Module):
        return [((path, type(v)), v.get_value()) for path, v in nnx.to_flat_state(nnx.state(tree))]
    return [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def same(a, b):
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return bool(np.all(a == b))


def moves(field, where, leaf):
    """Whether a leaf is a parameter of the model; told here without the library."""
    if isinstance(where, tuple):
        return where[1] is nnx.Param
    if not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)):
        return False
    if field.trainable is not None:
        return where in {p for p, on in leaves(field.trainable) if on}
    return not (field.has_aux and where.startswith("[1]"))  # an equinox.nn.State


def check(field, end):
    """The same tree of the same types as at first, in which parameters alone have moved."""
    start = field.parameters(0)
    assert jax.tree.structure(start) == jax.tree.structure(end)
    for (where, a), (there, b) in zip(leaves(start), leaves(end), strict=True):
        assert where == there and type(a) is type(b)
        if isinstance(a, jax.Array):
            assert a.dtype == b.dtype and a.shape == b.shape, where
        assert same(a, b) != moves(field, where, a), where


def slow(names):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in names)) for n in FIELDS]


@pytest.mark.parametrize("name", FIELDS)
def test_traces(name):
    field = FIELDS[name]()
    graph = projection(field).trace(field.parameters(0), *field.batch(0))
    assert graph.losses and not graph.problems


@pytest.mark.parametrize("name", slow(SLOW))
def test_trains(name):
    field = FIELDS[name]()._replace(after=None)
    batch = field.batch(0)
    end, reports = trained(field, projection(field), [batch] * 20)
    assert all(bool(info.finite) for info in reports)
    last = reports[-1 if name in FIRST else 11]
    assert float(last.value) < 0.9 * float(reports[0].value)
    check(field, end)


@pytest.mark.parametrize("name", slow(FIELDS))
def test_by_classical_projections(name):
    field = FIELDS[name]()._replace(after=None)
    end, reports = trained(field, projection(field, **CLASSICAL), [field.batch(0)] * 5)
    assert all(bool(info.finite) for info in reports)
    assert float(reports[-1].value) < float(reports[0].value)
    check(field, end)


@pytest.mark.parametrize("name", slow(FIELDS))
def test_what_is_held_out(name):
    """A hundred batches, each seen once."""
    field = FIELDS[name]()
    end, _ = trained(field, projection(field), map(field.batch, range(100)))
    before, after = (value(field, p, *field.held_out) for p in (field.parameters(0), end))
    assert float(after) < 0.75 * float(before)


def test_statistics_come_back_beside_the_objective():
    """What an update says of them is what the function says; of the parameters it began with."""
    field = FIELDS["batch norm"]()
    train, batch, start = projection(field), field.batch(0), field.parameters(0)
    _, (info,) = trained(field, train, [batch])
    _, expected = field.objective(start, *batch)
    for a, b in zip(*map(jax.tree.leaves, (info.aux, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    (_, state), _ = trained(field, train, [batch, field.batch(1)])
    assert not all(map(same, *map(jax.tree.leaves, (state, start[1]))))


def test_random_streams_of_an_nnx_module_go_on():
    field = FIELDS["flax nnx"]()
    end, _ = trained(field, projection(field), [field.batch(0)] * 3)
    counts = [
        next(v for (path, _), v in leaves(m) if path[-1] == "count")
        for m in (field.parameters(0), end)
    ]
    assert int(counts[1]) - int(counts[0]) == 3
