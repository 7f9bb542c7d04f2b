"""Sparse and discrete sets, scores, combinations: all points, or all supports, are tried."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import sets

from .set_points import check_nearest, inner, points


def once(one, x):
    return jax.jit(lambda x: one.project(x))(x)


LOW, HIGH = np.array([-1.0, 0, 0.5, -2, 0]), np.array([1.0, 1, 0.75, 2, 3])
SWITCHES = np.array(list(itertools.product([0, 1], repeat=5)))
SIGNS = np.array([1, -1, 1, -1, 1])


def members(switches, low=0.0, high=1.0):
    return np.where(switches == 1, high, low)


def of_list(points):
    """How far from the nearest one of finitely many points, in the largest element and in norm."""

    def outside(y):
        return np.abs(y[:, None] - points).max(-1).min(-1)

    def distance(x):
        return np.sqrt(((x[:, None] - points) ** 2).sum(-1).min(-1))

    return outside, distance


ones = SWITCHES.sum(-1)
LISTS = {
    "Discrete": (
        sets.Discrete([2, -1, 0.5]),
        np.array(list(itertools.product([-1, 0.5, 2], repeat=5))),
    ),
    "Discrete, one value": (sets.Discrete([2]), np.full((1, 5), 2.0)),
    "Binary": (sets.Binary(-1.0, 1.0), members(SWITCHES, -1)),
    "Binary, of each element": (sets.Binary(LOW, HIGH), members(SWITCHES, LOW, HIGH)),
    "OneHot": (sets.OneHot(), np.eye(5)),
    "OneHot, of each element": (
        sets.OneHot(low=LOW, high=HIGH),
        members(SWITCHES[ones == 1], LOW, HIGH),
    ),
    "Exactly 0": (sets.Exactly(0), np.zeros((1, 5))),
    "Exactly 2": (sets.Exactly(2, -1.0, 1.0), members(SWITCHES[ones == 2], -1)),
    "Exactly 2, of each element": (
        sets.Exactly(2, LOW, HIGH),
        members(SWITCHES[ones == 2], LOW, HIGH),
    ),
    "Exactly 5": (sets.Exactly(5), np.ones((1, 5))),
    "AtLeast 0": (sets.AtLeast(0), members(SWITCHES)),
    "AtLeast 2": (sets.AtLeast(2), members(SWITCHES[ones >= 2])),
    "AtLeast 2, of each element": (
        sets.AtLeast(2, LOW, HIGH),
        members(SWITCHES[ones >= 2], LOW, HIGH),
    ),
    "AtMost 2": (sets.AtMost(2, -1.0, 1.0), members(SWITCHES[ones <= 2], -1)),
    "AtMost 5": (sets.AtMost(5), members(SWITCHES)),
    "Clause": (sets.Clause(SIGNS), members(SWITCHES[(SWITCHES != (SIGNS < 0)).any(-1)])),
    "Clause, of each element": (
        sets.Clause(-SIGNS, LOW, HIGH),
        members(SWITCHES[(SWITCHES != (SIGNS > 0)).any(-1)], LOW, HIGH),
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_all_points_are_tried(name):
    one, candidates = LISTS[name]
    check_nearest(one, points(5), *of_list(candidates))


def few(k):
    """All choices of at most k of five elements, as masks."""
    return SWITCHES[ones <= k] == 1


def sparse(masks, values=lambda x: x):
    """Sets of arrays that are zero outside a mask, and have allowed ``values(x)`` in it."""

    def distance(x):
        x = x.reshape(len(x), -1)
        best = np.where(masks, values(x)[:, None], 0)
        return np.sqrt(((x[:, None] - best) ** 2).sum(-1).min(-1))

    def outside(y):
        y = y.reshape(len(y), -1)
        return np.maximum(
            np.abs(np.where(masks, 0, y[:, None])).max(-1).min(-1), np.abs(y - values(y)).max(-1)
        )

    return outside, distance


PAIRWISE = np.array([[a, b, c, d] for a, b, c, d in SWITCHES[:, :4] if a + b <= 1 and c + d <= 1])
SUPPORTS = {
    "TopK 0": (sets.TopK(0), (5,), *sparse(few(0))),
    "TopK 1": (sets.TopK(1), (5,), *sparse(few(1))),
    "TopK 3": (sets.TopK(3), (5,), *sparse(few(3))),
    "TopK 5": (sets.TopK(5), (5,), *sparse(few(5))),
    "KWinners 2": (sets.KWinners(2), (5,), *sparse(few(2), lambda x: np.maximum(x, 0))),
    "NOfM": (sets.NOfM(1, 2), (4,), *sparse(PAIRWISE == 1)),
    "GroupSparse, rows": (
        sets.GroupSparse(2, axis=-1),
        (5, 3),
        *sparse(np.repeat(few(2), 3, axis=-1)),
    ),
    "GroupSparse, columns": (
        sets.GroupSparse(2, axis=0),
        (3, 5),
        *sparse(np.tile(few(2), 3)),
    ),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_all_supports_are_tried(name):
    one, shape, outside, distance = SUPPORTS[name]
    check_nearest(one, points(*shape), outside, distance)


LABELS = np.array([2, 0, 1, 2])


def errors(y, margin):
    """By how much each sample misses its margin."""
    own = np.take_along_axis(y, LABELS[None, :, None], -1)
    other = np.where(np.arange(3) == LABELS[:, None], -np.inf, y).max(-1)
    return np.maximum(other + margin - own[..., 0], 0)


def costs(x, margin):
    """The squared distance of each sample from being right: all sets of tied classes are tried."""
    best = np.full(x.shape[:2], np.inf)
    for tied in itertools.product([False, True], repeat=3):
        tied = np.array(tied) & (np.arange(3) != LABELS[:, None])
        own = np.arange(3) == LABELS[:, None]
        goal = x - margin * own
        level = (goal * (tied | own)).sum(-1, keepdims=True) / (tied | own).sum(-1, keepdims=True)
        y = np.where(tied | own, level, goal) + margin * own
        right = errors(y, margin) <= 1e-9 * (1 + np.abs(x).max(-1))
        best = np.where(right, np.minimum(best, ((x - y) ** 2).sum(-1)), best)
    return best


@pytest.mark.parametrize(
    ("wrong", "margin"), [(0, 0.0), (1, 0.0), (1, 0.5), (2, -0.5), (4, 1.0), (9, 1.0)]
)
def test_all_choices_of_wrong_samples_are_tried(wrong, margin):
    check_nearest(
        sets.AtMostWrong(wrong, LABELS, margin),
        points(4, 3),
        lambda y: np.sort(np.pad(errors(y, margin), [(0, 0), (9, 0)]), -1)[:, 12 - wrong],
        lambda x: np.sqrt(np.sort(costs(x, margin), -1)[:, : max(4 - wrong, 0)].sum(-1)),
    )


def test_free_elements_of_clauses():
    """What is in no literal stays; a row without any is in no set."""
    x = jnp.asarray(points(2, 5, count=500, seed=2))
    signs = np.stack([SIGNS * [1, 1, 1, 0, 0], SIGNS])
    y = jax.jit(jax.vmap(sets.Clause(signs, axis=-1).project))(x)
    np.testing.assert_array_equal(y[:, 0, 3:], x[:, 0, 3:])
    three = once(sets.Each(sets.Clause(SIGNS[:3])), x[:, 0, :3])
    np.testing.assert_array_equal(y[:, 0, :3], three)
    np.testing.assert_array_equal(y[:, 1], once(sets.Each(sets.Clause(SIGNS)), x[:, 1]))
    signs[0] = 0
    rows = once(sets.Clause(signs, axis=1), x[0])
    assert jnp.isnan(rows[0]).all() and jnp.isfinite(rows[1]).all()


def test_slices_of_discrete_sets():
    x = jnp.asarray(points(4, 6, count=50, seed=3))
    for one, row in [
        (sets.TopK(2, axis=-1), sets.TopK(2)),
        (sets.KWinners(2, axis=-1), sets.KWinners(2)),
        (sets.OneHot(-1), sets.OneHot()),
        (sets.AtLeast(2, axis=-1), sets.AtLeast(2)),
        (sets.NOfM(1, 3), sets.NOfM(1, 3)),
        (sets.Each(sets.TopK(2)), sets.TopK(2)),
    ]:
        rows = jax.jit(jax.vmap(jax.vmap(row.project)))(x)
        np.testing.assert_array_equal(jax.jit(jax.vmap(one.project))(x), rows)
    columns = jax.jit(jax.vmap(jax.vmap(sets.NOfM(1, 2).project, 1, 1)))(x)
    for one in (sets.NOfM(1, 2, axis=0), sets.Each(sets.NOfM(1, 2), 1)):
        np.testing.assert_array_equal(once(sets.Each(one), x), columns)


def test_the_first_of_equal_ones():
    same = jnp.ones(4)
    np.testing.assert_array_equal(once(sets.TopK(2), same), [1, 1, 0, 0])
    np.testing.assert_array_equal(once(sets.Exactly(2), same * 0.2), [1, 1, 0, 0])
    np.testing.assert_array_equal(once(sets.OneHot(), same), [1, 0, 0, 0])
    np.testing.assert_array_equal(once(sets.NOfM(1, 2), same), [1, 0, 1, 0])
    np.testing.assert_array_equal(once(sets.Binary(), same / 2), [0, 0, 0, 0])
    np.testing.assert_array_equal(once(sets.Discrete([1, 0]), same / 2), [0, 0, 0, 0])
    rows = once(sets.AtMostWrong(1, [0, 0]), jnp.array([[0.0, 2.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(rows, [[0, 2], [1, 1]])


def test_unions():
    center = np.array([1.0, 0, 2, 0, -1])
    members = [sets.Ball(0.5), sets.Equal(center), sets.Box(2.0, 3.0)]

    def distances(y):
        ball = np.maximum(np.sqrt(inner(y, y)) - 0.5, 0)
        box = y - np.clip(y, 2, 3)
        return np.array([ball, np.sqrt(inner(y - center, y - center)), np.sqrt(inner(box, box))])

    def nearest(y):
        return distances(y).min(0)

    check_nearest(sets.Union(*members), points(5), nearest, nearest)
    empty = jax.jit(lambda r, x: once(sets.Union(sets.Ball(r), sets.Equal(5.0)), x))(
        -1.0, jnp.zeros(2)
    )
    np.testing.assert_array_equal(empty, [5.0, 5.0])
    x = jnp.zeros(3)
    np.testing.assert_array_equal(once(sets.Union(sets.Equal(1.0), sets.Equal(-1.0)), x), x + 1)


def test_products():
    x = jnp.asarray(points(5, 4, count=16, seed=4)[4])
    ball, simplex = sets.Ball(0.5), sets.Simplex()
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    y = once(sets.Product([ball, simplex], sizes=[2, 3]), x)
    same(y, np.concatenate([once(ball, x[:2]), once(simplex, x[2:])]))
    same(once(sets.Product([ball, simplex], sizes=[4, 0], axis=-1), x), once(ball, x))
    stacked = once(sets.Stacked([ball, simplex, sets.Equal(1.0), ball], axis=1), x)
    columns = [once(one, x[:, i]) for i, one in enumerate([ball, simplex])]
    same(stacked[:, :2], np.stack(columns, axis=1))
    same(stacked[:, 2], np.ones(5))
    assert sets.Product([ball, simplex], [1, 1]).convex
    assert sets.Stacked([sets.Equal(1.0), sets.NonNegative()]).interval
    assert not sets.Product([ball, sets.TopK(1)], [1, 1]).convex
    assert sets.Each(ball).convex and not sets.Each(ball).interval
    assert not sets.Union(ball, ball).convex


def test_functions_as_sets():
    lattice = sets.From(lambda x, unit: unit * jnp.round(x / unit), jnp.array(0.5))
    assert not lattice.convex and not lattice.interval
    line = sets.From(lambda x: jnp.full_like(x, jnp.mean(x)), convex=True)
    assert line.convex and not line.interval
    assert sets.From(jnp.abs, convex=True, interval=True).interval
    np.testing.assert_array_equal(lattice.project(jnp.array([0.4, 2.7])), [0.5, 2.5])

    def problem(x, unit):
        pjax.constrain(x, sets.From(lambda x, u: u * jnp.round(x / u), unit))

    solve = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=1)
    np.testing.assert_allclose(solve(jnp.array([0.4, 2.7]), 0.5)[0], [0.5, 2.5])
    with pytest.raises(pjax.InputError, match="From"):
        sets.From(lambda x: x[:1]).fits((3,))


def test_a_puzzle():
    """Bits of which two are one in every row and every column; two of them are known."""

    def problem(x):
        pjax.constrain(x, sets.Exactly(2, axis=-1))
        pjax.constrain(x, sets.Exactly(2, axis=0))
        pjax.constrain(x[0, :2], sets.Equal(1.0))

    solve = pjax.project(problem, solver=pjax.DifferenceMap(), steps=500, tol=1e-4)
    x, info = solve(jax.random.uniform(jax.random.key(0), (4, 4)))
    assert info.gap < 1e-3
    board = np.round(x)
    np.testing.assert_array_equal(board.sum(0), 2)
    np.testing.assert_array_equal(board.sum(1), 2)
    np.testing.assert_array_equal(board[0], [1, 1, 0, 0])
