"""Models of many fields train as they are, with losses of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pjax_trace as pjax

from .more_models import FIELDS

# Those of others are written for JAX's own promotion.
pytestmark = [
    pytest.mark.usefixtures("loose_promotion", "loose_ranks"),
    pytest.mark.thinned(4),
]
CLASSICAL = {"solver": pjax.AlternatingProjections(momentum=0.9), "steps": 20}


@pytest.fixture
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def trained(field, batches, **options):
    """The parameters at first and at last, and what the updates said."""
    start = p = field.parameters(0)
    train = pjax.project(
        field.objective, has_aux=field.has_aux, trainable=field.trainable, **options
    )
    state, said = train.init(p), []
    for batch in batches:
        p, state, info = train.update(p, state, *batch)
        said.append(info)
        if field.after:
            p = field.after(p, info.aux)
    return start, p, said


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


def check(field, start, end):
    """The same tree of the same types, in which parameters alone have moved."""
    assert jax.tree.structure(start) == jax.tree.structure(end)
    for (where, a), (there, b) in zip(leaves(start), leaves(end), strict=True):
        assert where == there and type(a) is type(b)
        if isinstance(a, jax.Array):
            assert a.dtype == b.dtype and a.shape == b.shape, where
        assert same(a, b) != moves(field, where, a), where


@pytest.mark.parametrize("name", FIELDS)
def test_models_of_many_fields(name):
    field = FIELDS[name]()
    _, _, said = trained(field, [field.batch(0)] * 12)
    assert float(said[-1].value) < 0.9 * float(said[0].value)
    unchanged = field._replace(after=None)
    start, end, _ = trained(unchanged, [field.batch(0)] * 2)  # adapters start at zero
    check(unchanged, start, end)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in FIELDS])
def test_by_classical_projections(name):
    field = FIELDS[name]()._replace(after=None)
    start, end, said = trained(field, [field.batch(0)] * 5, **CLASSICAL)
    assert all(np.isfinite(float(info.value)) for info in said)
    assert float(said[-1].value) < float(said[0].value)
    check(field, start, end)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in FIELDS])
def test_what_is_held_out(name):
    """A hundred batches, each seen once."""
    field = FIELDS[name]()
    start, end, _ = trained(field, map(field.batch, range(100)))
    before, after = (field.objective(p, *field.held_out) for p in (start, end))
    before, after = (out[0] if field.has_aux else out for out in (before, after))
    assert float(after) < 0.75 * float(before)


def test_statistics_come_back_beside_the_objective():
    """What an update says of them is what the function says; of the parameters it began with."""
    field = FIELDS["batch norm"]()
    batch = field.batch(0)
    start, _, (info,) = trained(field._replace(after=None), [batch])
    _, expected = field.objective(start, *batch)
    for a, b in zip(*map(jax.tree.leaves, (info.aux, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    _, (_, state), _ = trained(field, [batch, field.batch(1)])
    assert not all(map(same, *map(jax.tree.leaves, (state, start[1]))))


def test_random_streams_of_an_nnx_module_go_on():
    field = FIELDS["flax nnx"]()
    start, end, _ = trained(field, [field.batch(0)] * 3)
    counts = [next(v for (path, _), v in leaves(m) if path[-1] == "count") for m in (start, end)]
    assert int(counts[1]) - int(counts[0]) == 3
