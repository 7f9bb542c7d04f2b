"""Extrema against float64 oracles that enumerate what may be on top, and copies against none.

A row's nearest point has the k largest operands at one height, for some k: the oracle tries every
k and keeps the least distance. Sorting has an oracle that tries every permutation, with isotonic
regression by its minimax formula.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.registry import Weights, rule_for
from pjax_trace.rules import extremum
from pjax_trace.rules.extremum import (
    PATCH_MAX,
    RANKING,
    REDUCE_MAX,
    WINDOW_MAX,
    Window,
    isotonic,
    nearest_clamped,
    nearest_maximum,
)

EPS = 2.0**-22  # two units in the last place of a float32


def decades(rng, shape, low=-3, high=3):
    return 10 ** rng.uniform(low, high, shape)


def single(*arrays):
    return [np.asarray(a, np.float32) for a in arrays]


def double(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def check(distance, least, floor):
    """A ten-thousandth more than the least distance, or rounding error."""
    distance, least = np.asarray(distance), np.asarray(least)
    assert np.isfinite(distance).all()
    excess = (distance - least) / (least + 1e4 * floor + 1e-36)
    assert excess.max() <= 1e-4, (int(excess.argmax()), excess.max())


# Elementwise.


def two_operands(count, seed):
    rng = np.random.default_rng(seed)
    x, y, z = rng.normal(size=(3, count)) * decades(rng, (3, count), -2, 2)
    kind = rng.integers(0, 12, count)
    x, y, z = np.where(kind == 0, 0, x), np.where(kind == 1, x, y), np.where(kind == 2, y, z)
    z = np.where(kind == 3, np.maximum(x, y), z)
    y, z = np.where(kind == 4, x, y), np.where(kind == 4, x, z)
    weights = decades(rng, (3, count))
    weights = np.where(rng.random(count) < 0.3, 1.0, weights)
    return single(x, y, z, *weights)


def distance_of_two(x, y, x0, y0, z0, wx, wy, wz):
    return wx * (x - x0) ** 2 + wy * (y - y0) ** 2 + wz * (np.maximum(x, y) - z0) ** 2


def test_max_of_two_variables():
    sample = two_operands(100_000, 0)
    x, y = double(*jax.jit(nearest_maximum)(*sample))
    x0, y0, z0, wx, wy, wz = double(*sample)
    all_three = (wx * x0 + wy * y0 + wz * z0) / (wx + wy + wz)
    x_and_z, y_and_z = (wx * x0 + wz * z0) / (wx + wz), (wy * y0 + wz * z0) / (wy + wz)
    candidates = [
        pair
        for t in (all_three, x_and_z, y_and_z)
        for pair in ((t, np.minimum(y0, t)), (np.minimum(x0, t), t), (t, t))
    ]
    least = np.min([distance_of_two(*p, x0, y0, z0, wx, wy, wz) for p in candidates], axis=0)
    floor = EPS**2 * (wx * x0**2 + wy * y0**2 + wz * z0**2 + (wx + wy + wz) * np.maximum(x, y) ** 2)
    check(distance_of_two(x, y, x0, y0, z0, wx, wy, wz), least, floor)


@pytest.mark.parametrize("function", (jnp.maximum, jnp.minimum, lax.max, lax.min))
def test_max_and_min_of_two_through_the_public_function(function):
    sign = 1 if function in (jnp.maximum, lax.max) else -1
    (x0, y0, z0), weights = ([2.0, 0.0, 1.0], [1.0, 3.0, 1.0], [4.0, 0.0, 1.0]), ([1.0, 2.0], 3.0)
    operands = [sign * jnp.asarray(a) for a in (x0, y0)]
    (x, y), z = pjax.project_point(
        function, tuple(operands), sign * jnp.asarray(z0), weights=weights
    )
    np.testing.assert_allclose(sign * x, [3.5, 0.0, 1.0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sign * y, [1.0, 1.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(sign * z, [3.5, 1.2, 1.0], rtol=1e-6)


def test_max_of_different_shapes_and_of_one_value_twice():
    x, y = jnp.array([[1.0, -1.0]]), jnp.array(0.0)
    with pytest.raises(pjax.TraceError, match="share operands"):
        pjax.project_point(lambda x, y: lax.max(x, jnp.broadcast_to(y, (1, 2))), (x, y), x)

    def problem(x, y):
        pjax.constrain(lax.max(y, x), pjax.sets.Equal(2.0))

    graph = pjax.project(problem, schedule="parallel").trace(x, y)
    assert [c.name for c in graph.constraints] == ["max", "Equal"]
    (moved_x, moved_y), info = pjax.project(problem, argnums=(0, 1), steps=60, schedule="parallel")(
        x, y
    )
    assert float(info.gap) < 1e-2
    np.testing.assert_allclose(jnp.maximum(moved_x, moved_y), 2.0, atol=1e-2)
    graph = pjax.project(
        lambda x: pjax.constrain(lax.max(x, x), pjax.sets.Equal(2.0)), schedule="parallel"
    ).trace(x)
    assert [c.name for c in graph.constraints] == ["Equal"]


def test_max_with_data():
    x, z = single([0.0, 1.0, -1.0, 3.0], [2.0, 0.0, -5.0, 1.0])
    for threshold in (np.float32(0.5), np.asarray([0.5, 4.0, -np.inf, np.inf], np.float32)):

        def clipped(x, threshold=threshold):
            return lax.max(jnp.broadcast_to(threshold, x.shape), x)

        (moved,), out = pjax.project_point(clipped, (x,), z)
        moved = np.asarray(moved)
        np.testing.assert_array_equal(out, np.maximum(moved, threshold))
        assert np.isfinite(moved).all()
        candidates = np.stack([x, (x + z) / 2, np.broadcast_to(threshold, x.shape)])
        with np.errstate(invalid="ignore"):
            costs = (candidates - x) ** 2 + (np.maximum(candidates, threshold) - z) ** 2
        own, least = (moved - x) ** 2 + (out - z) ** 2, np.nanmin(costs, axis=0)
        np.testing.assert_allclose(own, least, rtol=1e-5)
        np.testing.assert_array_equal(moved[np.isinf(least)], x[np.isinf(least)])


def test_clamp():
    rng = np.random.default_rng(1)
    x0, z0, lower, width, wx, wz = (a.copy() for a in two_operands(100_000, 2))
    width = np.abs(width) * (rng.random(len(x0)) < 0.8)
    lower, upper = lower, lower + width
    lower = np.where(rng.random(len(x0)) < 0.1, -np.inf, lower).astype(np.float32)
    upper = np.where(rng.random(len(x0)) < 0.1, np.inf, upper).astype(np.float32)
    (x,) = double(jax.jit(nearest_clamped)(x0, z0, wx, wz, lower, upper))
    x0, z0, lower, upper, wx, wz = double(x0, z0, lower, upper, wx, wz)
    mean = (wx * x0 + wz * z0) / (wx + wz)
    candidates = np.stack([x0, np.clip(mean, lower, upper), lower, upper])

    def distance(x):
        return wx * (x - x0) ** 2 + wz * (np.clip(x, lower, upper) - z0) ** 2

    floor = EPS**2 * (wx * x0**2 + wz * z0**2 + (wx + wz) * x**2)
    check(distance(x), np.nanmin(distance(candidates), axis=0), floor)


def test_clamp_between_data_and_variables():
    x, z = jnp.array([[0.0, 3.0]]), jnp.array([[-2.0, 0.0]])
    (moved,), out = pjax.project_point(lambda x: lax.clamp(-1.0, x, 1.0), (x,), z)
    np.testing.assert_allclose(moved, [[-1.0, 3.0]])
    np.testing.assert_allclose(out, [[-1.0, 1.0]])

    def bounded(lower, x):
        pjax.constrain(lax.clamp(lower, x, jnp.full((1, 2), 9.0)), pjax.sets.Equal(5.0))

    graph = pjax.project(bounded, schedule="parallel").trace(x, x)
    assert [c.name for c in graph.constraints] == ["max", "max_1", "Equal"]
    graph = pjax.project(
        lambda x: pjax.constrain(jnp.clip(x, -1.0, 1.0), pjax.sets.Equal(5.0)), schedule="parallel"
    )
    assert [c.name for c in graph.trace(x).constraints] == ["max", "max_1", "Equal"]


# Rows.


def rows_of(kind, n, count, rng):
    """Operands, outputs and weights of rows, in float32."""
    x = rng.normal(size=(count, n)) * decades(rng, (count, 1), -2, 2)
    if kind == "ties":
        x = np.round(rng.normal(size=(count, n)) * 2)
    if kind == "equal":
        x = np.broadcast_to(x[:, :1], x.shape)
    if kind == "spread":
        x = rng.choice([-1, 1], (count, n)) * decades(rng, (count, n), -15, 15)
    if kind == "geometric":
        x = np.broadcast_to(2.0 ** (40 - 80 * np.arange(n) / n), (count, n))
    if kind == "offset":
        x = 1000 + x
    top, size = x.max(1), np.abs(x).max(1)
    z = np.where(rng.random(count) < 0.5, top, 0) + size * rng.normal(size=count) * decades(
        rng, count, -2, 1
    )
    z = np.where(rng.random(count) < 0.1, top, z)
    return (
        *single(x, z),
        *(float(w) for w in single(*decades(rng, 1))),
        *single(decades(rng, count)),
    )


def least_of_rows(x, z, w, wz):
    """The least squared distance to ``z = max(x)``, over the number of operands at the top."""
    order = -np.sort(-x, axis=1)
    n = x.shape[1]
    k = np.arange(1, n + 1)
    heights = (w * np.cumsum(order, 1) + wz[:, None] * z[:, None]) / (w * k + wz[:, None])
    numbers = np.unique(np.concatenate([k[: min(n, 40)], np.linspace(1, n, 60).astype(int)]))
    least = np.full(len(x), np.inf)
    # Feasible, whatever k; the right one is among all k, but a hull of them is enough to rank.
    best = np.argmax(heights, axis=1) + 1
    for number in (*numbers, best):
        t = heights[np.arange(len(x)), np.broadcast_to(number, len(x)) - 1][:, None]
        moved = np.minimum(order, t)
        moved[:, :1] = t
        cost = w * ((moved - order) ** 2).sum(1) + wz * (t[:, 0] - z) ** 2
        least = np.minimum(least, cost)
    return least


@jax.jit
def project_rows(x, z, w, wz):
    return REDUCE_MAX.project({"axes": (1,)}, (x,), z, Weights((w,), wz))


ROWS = ("general", "ties", "equal", "spread", "geometric", "offset")


@pytest.mark.parametrize("kind", ROWS)
def test_rows(kind):
    rng = np.random.default_rng(ROWS.index(kind))

    for n, count in ((1, 50), (3, 300), (17, 300), (1300, 30)):
        x, z, w, wz = rows_of(kind, n, count, rng)
        (moment,), out, distance = project_rows(x, z, np.float32(w), wz)
        moved, out = double(moment.first / moment.mass, out)
        x, z, wz = double(x, z, wz)
        np.testing.assert_allclose(moved.max(1), out, rtol=1e-6)
        cost = w * ((moved - x) ** 2).sum(1) + wz * (moved.max(1) - z) ** 2
        sizes = np.maximum(np.abs(x).max(1), np.abs(out))
        floor = EPS**2 * (w * (moved**2).sum(1) + (n * w + wz) * sizes**2 + wz * z**2)
        check(cost, least_of_rows(x, z, w, wz), floor)
        np.testing.assert_allclose(distance, cost.sum(), rtol=1e-3, atol=1e4 * floor.sum())
        # At most one element is raised.
        assert ((moved > x + 1e-5 * np.abs(x)).sum(1) <= 1).all()


def test_rows_in_float64():
    rng = np.random.default_rng(9)
    with _compat.enable_x64(True):
        for kind in ("general", "spread"):
            x, z, w, wz = rows_of(kind, 200, 50, rng)
            x, z, wz = double(x, z, wz)
            project = jax.jit(
                lambda x, z, wz, w=w: REDUCE_MAX.project({"axes": (1,)}, (x,), z, Weights((w,), wz))
            )
            (moment,), out, _ = project(x, z, wz)
            moved = np.asarray(moment.first / moment.mass)
            cost = w * ((moved - x) ** 2).sum(1) + wz * (np.asarray(out) - z) ** 2
            np.testing.assert_allclose(cost, least_of_rows(x, z, w, wz), rtol=1e-9)


AXES = {
    "two": (lambda x: jnp.max(x, (0, 2)), 1),
    "all": (lambda x: jnp.max(x), 1),
    "min": (lambda x: jnp.min(x, (1, 2)), -1),
    "kept": (lambda x: jnp.max(x, 1, keepdims=True), 1),
    "pmax": (lambda x: jax.vmap(lambda r: lax.pmax(r, "i"), out_axes=None, axis_name="i")(x), 1),
    "pmin": (lambda x: jax.vmap(lambda r: lax.pmin(r, "i"), out_axes=None, axis_name="i")(x), -1),
}


@pytest.mark.parametrize("name", AXES)
def test_axes(name):
    function, sign = AXES[name]
    rng = np.random.default_rng(3)
    (x,) = single(rng.normal(size=(3, 4, 5)))
    element = np.arange(60.0).reshape(x.shape)
    out = np.asarray(function(x))
    target, wz = single(out + rng.normal(size=out.shape), decades(rng, out.shape, -1, 1))
    project = jax.jit(lambda x, z: pjax.project_point(function, (x,), z, weights=([2.0], wz)))
    (moved,), moved_out = project(x, target)
    np.testing.assert_allclose(function(moved), moved_out, rtol=1e-6)
    axes = {"two": (0, 2), "all": (0, 1, 2), "min": (1, 2), "kept": (1,)}
    axes = axes.get(name, (0,))
    order = [a for a in range(3) if a not in axes] + list(axes)
    rows = element.transpose(order).reshape(out.size, -1).astype(int)
    x, moved, target, wz = (a.ravel() for a in double(sign * x, sign * moved, sign * target, wz))
    cost = 2 * ((moved[rows] - x[rows]) ** 2).sum(1) + wz * (moved[rows].max(1) - target) ** 2
    np.testing.assert_allclose(cost, least_of_rows(x[rows], target, 2.0, wz), rtol=1e-4, atol=1e-9)


def test_a_reduction_of_one_element_is_a_view():
    graph = pjax.project(
        lambda x: pjax.constrain(jnp.max(x, 1), pjax.sets.Equal(2.0)), schedule="parallel"
    )
    assert [c.name for c in graph.trace(jnp.ones((3, 1))).constraints] == ["Equal"]


def test_masked_elements_do_not_count():
    mask = jnp.array([[True, False, True], [False, True, False]])
    x = jnp.array([[1.0, 9.0, 2.0], [9.0, 3.0, 9.0]])

    def problem(x):
        top = jnp.max(jnp.where(mask, x, -jnp.inf), 1)
        pjax.constrain(top, pjax.sets.Equal(jnp.array([4.0, 1.0])))

    for copies in (False, True):
        solver = pjax.AlternatingProjections()
        moved, info = pjax.project(problem, solver=solver, steps=60, copies=copies)(x)
        np.testing.assert_allclose(moved, [[1.0, 9.0, 4.0], [9.0, 1.0, 9.0]], atol=1e-3)
        assert np.isfinite(info.gap)


def test_the_gap_of_a_maximum_closes():
    def problem(x):
        pjax.constrain(jnp.max(x, 1), pjax.sets.Equal(0.5))

    x = jnp.array([[1.0, 2.0, -1.0], [0.0, -3.0, 0.0]])
    moved, info = pjax.project(problem, steps=60, schedule="parallel")(x)
    np.testing.assert_allclose(jnp.max(moved, 1), 0.5, atol=1e-3)
    # What need not move does not, and of equal elements one rises.
    np.testing.assert_array_equal(moved[:, 2], x[:, 2])
    np.testing.assert_array_equal(moved[1, 1], x[1, 1])
    assert float(info.gap) < 1e-3


# Windows.


def window(shape, sizes, strides, padding, spacing=None, dilation=None):
    ones = (1,) * len(shape)
    return Window(shape, sizes, strides, padding, spacing or ones, dilation or ones)


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
        for tap in np.ndindex(*w.sizes):
            place = [
                c * s + k * d - low
                for c, s, k, d, (low, _) in zip(
                    corner, w.strides, tap, w.dilation, w.padding, strict=True
                )
            ]
            inside = all(
                p % b == 0 and 0 <= p // b < n
                for p, b, n in zip(place, w.spacing, w.shape, strict=True)
            )
            index = [p // b for p, b in zip(place, w.spacing, strict=True)]
            mine.append(np.ravel_multi_index(index, w.shape) if inside else -1)
        lists.append(mine)
    return np.asarray(lists)


def forward(w, x):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, w.sizes, w.strides, w.padding, w.spacing, w.dilation
    )


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
        lambda x: pjax.constrain(pool(x), pjax.sets.Equal(0.0)), schedule="parallel"
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


# Sorting.


def minimax(y, w):
    """Isotonic regression by its minimax formula: the largest of the smallest means."""
    n = len(y)
    mean = np.full((n, n), np.inf)
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        mean[i, j] = np.average(y[i : j + 1], weights=w[i : j + 1])
    return np.asarray([max(mean[i, j:].min() for i in range(j + 1)) for j in range(n)])


def test_isotonic_regression():
    rng = np.random.default_rng(0)
    for n in (1, 2, 30):
        y = rng.normal(size=(6, n)) + np.linspace(0, 1, n) * rng.normal(size=(6, 1)) * 3
        y[:2], y[2] = np.round(y[:2]), 1.0
        y, w = single(y, decades(rng, (6, n), -1.5, 1.5))
        z = np.asarray(jax.jit(isotonic)(y, w))
        assert (np.diff(z) >= 0).all()
        expected = [minimax(*row) for row in zip(*double(y, w), strict=True)]
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    long = jnp.linspace(1.0, -1.0, 5000)
    np.testing.assert_allclose(isotonic(long, jnp.ones(5000)), 0.0, atol=1e-4)


def least_of_rankings(x, z, w, wz):
    """The least squared distance to the k smallest, over all permutations."""
    weights = w + np.append(wz, np.zeros(len(x) - len(z)))
    best = np.inf
    for order in itertools.permutations(range(len(x))):
        y = x[list(order)]
        mean = y.copy()
        mean[: len(z)] = (w * mean[: len(z)] + wz * z) / (w + wz)
        chain = minimax(mean, weights)
        cost = w * ((chain - y) ** 2).sum() + (wz * (chain[: len(z)] - z) ** 2).sum()
        best = min(best, cost)
    return best


@pytest.mark.parametrize(("n", "k"), ((1, 1), (4, 4), (4, 2)))
def test_rankings_against_all_permutations(n, k):
    rng = np.random.default_rng(10 * n + k)
    count = 6
    x, z, wz = single(
        rng.normal(size=(count, n)),
        2 * rng.normal(size=(count, k)),
        decades(rng, (count, k), -2, 2),
    )
    x[:3] = np.round(x[:3])
    for descending in (False, True):
        params = {"axis": 1, "k": k, "descending": descending}
        project = jax.jit(
            lambda x, z, w, wz, p=params: RANKING.project(p, (x,), z, Weights((w,), wz))
        )
        for w in (0.01, 1.0, 30.0):
            (moment,), out, distance = project(x, z, np.float32(w), wz)
            moved, out = double(moment.first / moment.mass, out)
            sign = -1 if descending else 1
            np.testing.assert_allclose(sign * np.sort(sign * moved)[:, :k], out, rtol=1e-5)
            cost = w * ((moved - x) ** 2).sum(1) + (wz * (out - z) ** 2).sum(1)
            rows = zip(*double(sign * x, sign * z, wz), strict=True)
            least = [least_of_rankings(a, b, w, c) for a, b, c in rows]
            np.testing.assert_allclose(cost, least, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(distance, cost.sum(), rtol=1e-4)


def test_the_largest_is_the_maximum():
    @jax.jit
    def both(x, z, w, wz):
        params = {"axis": 1, "k": 1, "descending": True}
        metric, column = Weights((w,), wz), Weights((w,), wz[:, None])
        one = REDUCE_MAX.project({"axes": (1,)}, (x,), z, metric)
        return one, RANKING.project(params, (x,), z[:, None], column)

    rng = np.random.default_rng(4)
    for kind in ("general", "ties", "equal"):
        x, z, w, wz = rows_of(kind, 33, 60, rng)
        one, same = both(x, z, np.float32(w), wz)
        np.testing.assert_allclose(same.out[:, 0], one.out, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            same.moments[0].first, one.moments[0].first, rtol=1e-4, atol=1e-4 * w
        )
        np.testing.assert_allclose(same.distance, one.distance, rtol=1e-4)


def test_sorting_along_any_axis():
    (x, z) = single(*np.random.default_rng(5).normal(size=(2, 3, 4, 2)))
    for axis, descending in ((0, False), (1, True), (-1, False)):
        f = partial(jnp.sort, axis=axis, descending=descending)
        (moved,), out = jax.jit(lambda x, z, f=f: pjax.project_point(f, (x,), z))(x, z)
        np.testing.assert_allclose(f(moved), out, atol=1e-6)
        sign = -1 if descending else 1
        rows = (np.moveaxis(sign * a, axis, -1).reshape(-1, x.shape[axis]) for a in (x, z))
        pairs = zip(*rows, strict=True)
        least = sum(least_of_rankings(a, b, 1.0, 1.0 + 0 * b) for a, b in pairs)
        cost = float(jnp.sum((moved - x) ** 2) + jnp.sum((out - z) ** 2))
        np.testing.assert_allclose(cost, least, rtol=1e-4)


def test_top_k_of_a_problem():
    x = jnp.array([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    seen = []

    def problem(x):
        values, index = lax.top_k(x, 2)
        seen.append(index)
        pjax.constrain(values, pjax.sets.Equal(jnp.array([5.0, 1.5])))

    moved, info = pjax.project(problem, steps=80, schedule="parallel")(x)
    np.testing.assert_allclose(lax.top_k(moved, 2)[0], [[5.0, 1.5]] * 2, atol=1e-2)
    np.testing.assert_array_equal(jnp.argsort(moved, stable=True), jnp.argsort(x, stable=True))
    assert float(info.gap) < 1e-2


def test_median():
    moved, info = pjax.project(
        lambda x: pjax.constrain(jnp.sort(x, 1)[:, 2], pjax.sets.Equal(4.0)),
        steps=60,
        schedule="parallel",
    )(jnp.array([[1.0, 2.0, 9.0, 3.0, 0.0]]))
    np.testing.assert_allclose(jnp.sort(moved, 1)[:, 2], 4.0, atol=1e-2)
    np.testing.assert_allclose(moved[0, jnp.array([0, 2, 4])], [1.0, 9.0, 0.0], atol=1e-2)


def test_what_is_sorted_along_moves_as_data():
    x, y = jnp.array([2.0, 0.0, 1.0]), jnp.array([1.0, 2.0, 3.0])

    def problem(x, y):
        key, follower, index = lax.sort((x, y, jnp.arange(3)), num_keys=1)
        pjax.constrain(key, pjax.sets.Equal(jnp.array([0.0, 1.0, 2.0])))
        weight = index.astype(jnp.float32)
        pjax.constrain(follower * (1 + weight), pjax.sets.Equal(6.0))

    (moved, followed), info = pjax.project(problem, argnums=(0, 1), steps=40, schedule="parallel")(
        x, y
    )
    np.testing.assert_allclose(moved, x, atol=1e-5)
    np.testing.assert_allclose(followed, [6.0, 3.0, 2.0], atol=1e-4)
    assert float(info.gap) < 1e-4
    graph = pjax.project(problem, argnums=(0, 1), schedule="parallel").trace(x, y)
    assert [c.rule.family for c in graph.constraints].count("extremum") == 1


def test_argsort_reads_no_variable():
    def problem(x):
        order = jnp.argsort(x)
        pjax.constrain(x[order], pjax.sets.Equal(jnp.array([0.0, 1.0, 2.0])))

    moved, _ = pjax.project(problem, schedule="parallel")(jnp.array([2.5, -1.0, 0.0]))
    np.testing.assert_allclose(moved, [2.0, 0.0, 1.0])


# What is refused.


def test_refusals():
    for function, reason in (
        (lambda x: lax.cumlogsumexp(x, 0), "jnp.cumsum"),
        (lambda x: lax.approx_max_k(x, 2)[0], "jax.lax.top_k"),
    ):
        with pytest.raises(pjax.MissingRuleError, match=reason):
            pjax.project(
                lambda x, f=function: pjax.constrain(f(x), pjax.sets.Equal(0.0)),
                schedule="parallel",
            ).trace(jnp.ones(4))


def test_every_primitive_has_cases():
    for name in (*"max min clamp reduce_max reduce_min reduce_window_max sort top_k".split(),):
        rule = rule_for(getattr(lax, f"{name}_p"))
        assert isinstance(rule, extremum.Extremum)
