"""Maps agree with their explicit copies; quotients where they degenerate."""

import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.rules.linear_maps import CumulativeSum
from pjax_trace.rules.maps import Contraction
from pjax_trace.rules.windows import Convolution, Window, WindowSum

MAPS = {
    "matmul": Contraction((0, 1), (1, 2), (0, 2), (2, 3, 2)),
    "sum": Contraction((0, 1), None, (1,), (2, 3)),
    "cumsum": CumulativeSum((2, 3), 1, False),
    "cumsum, reversed": CumulativeSum((3, 2), 0, True),
    "windows": WindowSum((Window(2), Window(5, 3, 2, 1, 1))),
    "dilated windows": WindowSum((Window(4, 2, 1, 1, 2, 2, 3),)),
    "convolution": Convolution(2, 1, 2, 3, (Window(3, 2, 1, 1, 0), Window(2, 2, 1, 1, 1))),
    "groups": Convolution(1, 2, 2, 4, (Window(5, 2, 2, 0, 1, 1, 2),)),
}


@pytest.mark.parametrize("name", MAPS)
def test_sums_over_copies(name):
    """Value, transposes, norms and counts are those of the copies."""
    map_ = MAPS[name]
    rng = np.random.default_rng(len(name))
    operands = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in map_.shapes]
    out = jnp.asarray(rng.normal(size=map_.shape), jnp.float32)
    copies = [map_.private_copies(x, side) for side, x in enumerate(operands)]
    terms = [map_.private_copies(jnp.ones_like(x), side) for side, x in enumerate(operands)]
    assert all(c.shape == (*map_.shape, map_.fan) for c in copies)
    full = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(
        map_.apply(*operands), jnp.sum(jnp.asarray(np.prod(copies, 0)), -1), **full
    )
    np.testing.assert_allclose(
        jnp.broadcast_to(map_.count, map_.shape), jnp.sum(jnp.asarray(np.prod(terms, 0)), -1)
    )
    for side, x in enumerate(operands):
        other = None if len(operands) == 1 else operands[1 - side]
        factor = terms[side] if other is None else copies[1 - side]
        pulled = map_.gathered(out[..., None] * factor, side)
        np.testing.assert_allclose(map_.pull(out, other, side), pulled, **full)
        spread = jnp.broadcast_to(map_.spread(out, side), x.shape)
        np.testing.assert_allclose(
            spread, map_.gathered(out[..., None] * terms[side], side), **full
        )
        rows = jnp.broadcast_to(map_.rows(x, side), map_.shape)
        np.testing.assert_allclose(rows, jnp.sum(copies[side], -1), **full)
        readers = map_.gathered(terms[side], side)
        np.testing.assert_allclose(
            np.broadcast_to(map_.readers(side), x.shape), np.maximum(readers, 1)
        )
        private, views = map_.expand([i == side for i in range(len(operands))])
        spread = [v(a) if v else a for v, a in zip(views, operands, strict=True)]
        np.testing.assert_allclose(private.apply(*spread), map_.apply(*operands), **full)
        wanted = out[..., None] * factor if views[side] else pulled
        np.testing.assert_allclose(private.pull(out, other, side), wanted, **full)


@pytest.mark.parametrize("x", [0.0, 1.0, -2.0, 1e-6])
def test_quotients_where_they_degenerate(x):
    """Finite and feasible, for data and for a variable, from zeros too."""
    y = np.asarray([0.0, 0.0, 1.0, -1.0, 1e-8, 3.0], np.float32)
    z = np.asarray([0.0, 2.0, 0.0, 5.0, 1e3, 0.0], np.float32)
    (moved,), out = pjax.project_point(lambda y: x / y, (y,), z)
    assert np.isfinite(moved).all() and np.isfinite(out).all() and (moved != 0).all()
    moved, out = np.asarray(moved), np.asarray(out)
    distance = np.square(moved - y) + np.square(out - z)
    # Along the hyperbola, on both branches.
    grid = np.geomspace(1e-7, 1e4, 20001)
    grid = np.concatenate([grid, -grid])[:, None]
    least = np.min(np.square(grid - y) + np.square(x / grid - z), 0)
    assert (distance <= least * (1 + 1e-4) + 1e-6).all()
    xs = np.full_like(y, x)
    (top, bottom), out = pjax.project_point(jnp.divide, (xs, y), z)
    assert all(np.isfinite(v).all() for v in (top, bottom, out)) and (bottom != 0).all()
    np.testing.assert_allclose(top / bottom, out)
    distance = np.square(top - xs) + np.square(bottom - y) + np.square(out - z)
    assert (distance <= least * (1 + 1e-4) + 1e-6).all()
