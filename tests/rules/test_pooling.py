"""Maxima over windows: copies against none, and what a loop over the windows finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.registry import entries
from pjax_trace.rule import Rule, Weights
from pjax_trace.rules.pooling import PATCH_MAX, WINDOW_MAX, Pooling
from pjax_trace.rules.windows import arguments_of, windows_of
from tests.rules.rows import decades, double, least_of_rows, single


def window(shape, sizes, strides, padding, spacing=None, dilation=None):
    ones = (1,) * len(shape)
    return Pooling(windows_of(shape, sizes, strides, padding, spacing or ones, dilation or ones))


WINDOWS = {
    "overlap": window((7,), (3,), (1,), ((0, 0),)),
    "same": window((5, 6), (3, 2), (1, 2), ((1, 1), (0, 1))),
    "batch": window((2, 5, 6, 2), (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))),
    "blocks": window((4, 6), (2, 3), (2, 3), ((0, 0), (0, 0))),
    "tail": window((9,), (2,), (3,), ((0, 0),)),
    "gaps": window((9,), (2,), (4,), ((0, 0),), None, (2,)),
    "dilated": window((8,), (3,), (1,), ((2, 1),), None, (2,)),
    "spaced": window((4, 3), (2, 3), (1, 1), ((1, 0), (0, 1)), (2, 3)),
    "cropped": window((9,), (2,), (2,), ((-1, -2),)),
    "wide": window((6, 8), (3, 8), (1, 1), ((1, 1), (4, 4))),
    "wide, dilated": window((40,), (20,), (2,), ((3, 4),), (2,), (3,)),
    "one": window((5,), (1,), (1,), ((0, 0),)),
}


def reads(w):
    """The elements that each window reads, by a loop; flat indices."""
    lists = []
    for corner in np.ndindex(*w.out):
        mine = []
        for tap in np.ndindex(*(one.taps for one in w.windows)):
            place = [
                c * one.stride + k * one.dilation - one.low
                for c, k, one in zip(corner, tap, w.windows, strict=True)
            ]
            inside = all(
                p % one.base == 0 and 0 <= p // one.base < one.size
                for p, one in zip(place, w.windows, strict=True)
            )
            index = [p // one.base for p, one in zip(place, w.windows, strict=True)]
            mine.append(np.ravel_multi_index(index, w.shape) if inside else -1)
        lists.append(mine)
    return np.asarray(lists)


def forward(w, x):
    return lax.reduce_window(x, -jnp.inf, lax.max, *arguments_of(w.windows))


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_read_what_they_should(name):
    w = WINDOWS[name]
    (x,) = single(np.random.default_rng(0).normal(size=w.shape))
    elements = reads(w)
    assert forward(w, x).shape == w.out
    np.testing.assert_array_equal(WINDOW_MAX.apply({"window": w}, x), forward(w, x))
    np.testing.assert_array_equal(PATCH_MAX.apply({"window": w}, w.patches(x)), forward(w, x))
    names = 1 + jnp.arange(x.size).reshape(w.shape)
    np.testing.assert_array_equal(w.patches(names).reshape(elements.shape), elements + 1)
    count = np.bincount(elements[elements >= 0], minlength=x.size).reshape(w.shape)
    np.testing.assert_allclose(np.broadcast_to(w.mass(0.5), w.shape), 0.5 * count)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_without_copies_and_with(name):
    """Moments are the sums over every window's own copies, which the row oracle checks."""
    w, rng = WINDOWS[name], np.random.default_rng(1)
    elements = reads(w)
    valid = elements >= 0
    weight, params = 0.7, {"window": w}

    @jax.jit
    def both(x, z, wz):
        metric = Weights((weight,), wz)
        free = WINDOW_MAX.project(params, (x,), z, metric)
        return free, PATCH_MAX.project(params, (w.patches(x),), z, metric)

    for scale in (0.3, 3.0):
        x, z, wz = single(
            np.round(3 * rng.normal(size=w.shape)) / 2,  # with ties
            scale * rng.normal(size=w.out) + 1,
            decades(rng, w.out, -1, 1),
        )
        free, own = both(x, z, wz)
        np.testing.assert_allclose(free.out, own.out, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(free.distance, own.distance, rtol=1e-4)
        moved = np.asarray(own.moments[0].first, float).reshape(elements.shape)
        sums = np.bincount(elements[valid], moved[valid], minlength=x.size).reshape(w.shape)
        np.testing.assert_allclose(free.moments[0].first, sums, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(*np.broadcast_arrays(free.moments[0].mass, w.mass(weight)))
        # The padding stays, and every row is at its nearest point.
        assert (moved[~valid] == 0).all()
        flat = np.append(x.ravel().astype(float), -1e6)[elements]
        near = np.where(valid, moved / weight, -1e6)
        cost = weight * ((near - flat) ** 2).sum(1) + wz.ravel() * (near.max(1) - z.ravel()) ** 2
        least = least_of_rows(flat, *double(z.ravel()), weight, *double(wz.ravel()))
        np.testing.assert_allclose(cost, least, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ("same", "gaps", "wide, dilated"))
def test_windows_in_a_problem(name):
    """Both lowerings agree, and elements that no window reads keep their values."""
    w, rng = WINDOWS[name], np.random.default_rng(2)
    x, goal = rng.normal(size=w.shape), rng.normal(size=w.out)

    def problem(x, goal):
        pjax.constrain(forward(w, x), pjax.sets.Equal(goal))

    with _compat.enable_x64(True):
        ends = []
        for copies in (False, True):
            solver = pjax.AlternatingProjections()
            train = pjax.project(problem, solver=solver, steps=5, copies=copies)
            moved, info = train(jnp.asarray(x), jnp.asarray(goal))
            assert np.isfinite(info.gap)
            ends.append(np.asarray(moved))
    np.testing.assert_allclose(*ends, rtol=1e-9, atol=1e-9)
    unread = np.setdiff1d(np.arange(x.size), reads(w))
    np.testing.assert_array_equal(ends[0].ravel()[unread], x.ravel()[unread])
    assert name != "gaps" or len(unread)


def test_large_blocks_are_a_plain_maximum():
    (x,) = single(np.random.default_rng(0).normal(size=(2, 7, 12)))

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 6), (1, 3, 6), "VALID")

    graph = pjax.project(
        lambda x: pjax.constrain(pool(x), pjax.sets.Equal(0.0)), schedule="parallel", copies=False
    ).trace(x)
    assert [c.name for c in graph.constraints] == ["reduce_max", "Equal"]
    project = jax.jit(lambda x: pjax.project_point(pool, (x,), jnp.zeros((2, 2, 2))))
    (moved,), out = project(x)
    np.testing.assert_allclose(pool(moved), out)
    np.testing.assert_array_equal(moved[:, 6], x[:, 6])  # what no window reaches
    blocks = double(x)[0][:, :6].reshape(2, 2, 3, 2, 6).transpose(0, 1, 3, 2, 4).reshape(8, 18)
    cost = float(jnp.sum((moved - x) ** 2) + jnp.sum(out**2))
    np.testing.assert_allclose(
        cost, least_of_rows(blocks, np.zeros(8), 1.0, np.ones(8)).sum(), 1e-5
    )


def test_global_pooling():
    graph = pjax.project(
        lambda x: pjax.constrain(
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 5, 5), (1, 1, 1), "VALID"),
            pjax.sets.Equal(0.0),
        ),
        schedule="parallel",
        copies=False,
    ).trace(jnp.ones((3, 5, 5)))
    assert [c.name for c in graph.constraints] == ["reduce_max", "Equal"]


def test_a_wide_window_takes_little_memory():
    w = window((4096,), (1024,), (1,), ((0, 0),))
    x, z = jnp.zeros(w.shape), jnp.ones(w.out)
    metric = Weights((1.0,), z)
    project = jax.jit(lambda x, z: WINDOW_MAX.project({"window": w}, (x,), z, metric))
    memory = project.lower(x, z).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 32 * 4 * 4096
    (moment,), out, _ = project(jnp.arange(4096.0), z)
    assert np.isfinite(moment.first).all() and np.isfinite(out).all()


def test_windows_of_padding_alone():
    """Their maximum is −∞ whatever is done, so that they ask for nothing."""
    w = window((2,), (2,), (1,), ((0, 3),))
    x, z = jnp.array([1.0, 2.0]), jnp.zeros(w.out)
    answer = WINDOW_MAX.project({"window": w}, (x,), z, Weights((1.0,), jnp.ones(w.out)))
    np.testing.assert_array_equal(answer.out, [1.0, 1.0, -np.inf, -np.inf])
    assert np.isfinite(answer.moments[0].first).all() and np.isfinite(answer.distance)


def test_cumulative():
    """A cumulative maximum or minimum is one over windows that reach as far as the array."""
    (x, goal) = single(*np.random.default_rng(6).normal(size=(2, 3, 2)))

    def problem(x):
        pjax.constrain(lax.cummin(x, 0, reverse=True), pjax.sets.Equal(jnp.asarray(goal)))
        pjax.constrain(lax.cummax(x, 1), pjax.sets.Equal(jnp.asarray(goal) + 1))

    ends = []
    for copies in (False, True):
        solver = pjax.AlternatingProjections()
        ends.append(pjax.project(problem, solver=solver, steps=4, copies=copies)(x)[0])
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-6)
    assert not np.allclose(ends[0], x)


@pytest.mark.parametrize("name", WINDOWS)
def test_what_is_asked_of_a_window_goes_to_its_largest(name):
    w, rng = WINDOWS[name], np.random.default_rng(3)
    params, elements = {"window": w}, reads(w)
    x, residual = single(rng.normal(size=w.shape), rng.normal(size=w.out))
    jacobian = WINDOW_MAX.linear(params, (jnp.asarray(x),), 0)
    answer = jax.jit(jacobian.transpose)(jnp.asarray(residual))
    flat = np.append(x.ravel(), -np.inf)[elements]
    largest = elements[np.arange(len(elements)), flat.argmax(1)]
    valid = largest >= 0
    expected = np.bincount(largest[valid], residual.ravel()[valid], minlength=x.size)
    np.testing.assert_allclose(answer, expected.reshape(w.shape), rtol=1e-6, atol=1e-6)
    count = np.bincount(elements[elements >= 0], minlength=x.size).reshape(w.shape)
    np.testing.assert_array_equal(jacobian.squares(), count)
    # JAX's derivative is the same, where it has one.
    try:
        found = Rule.linear(WINDOW_MAX, params, (jnp.asarray(x),), 0).transpose(residual)
    except (NotImplementedError, TypeError):
        assert any(one.dilation > 1 or min(one.low, one.high) < 0 for one in w.windows)
    else:
        np.testing.assert_allclose(answer, found, rtol=1e-6, atol=1e-6)
    # So is that of private copies, of which those of the padding are asked for nothing.
    copies = PATCH_MAX.linear(params, (w.patches(jnp.asarray(x)),), 0).transpose(residual)
    sums = np.zeros(x.size + 1)
    np.add.at(sums, elements, np.asarray(copies).reshape(elements.shape))
    np.testing.assert_allclose(sums[:-1].reshape(w.shape), answer, rtol=1e-5, atol=1e-6)
    assert sums[-1] == 0


def test_every_primitive_has_cases():
    registered = entries()
    for name in "reduce_window_max reduce_window_min cummax cummin".split():
        entry = registered[getattr(lax, f"{name}_p")]
        assert entry.cases and entry.translation.family == "extremum"
