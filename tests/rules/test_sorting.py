"""Sorting against an oracle that tries every permutation, and what is refused.

In every order the oracle's nearest point is an isotonic regression, by its minimax formula.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace.registry import entries, translate
from pjax_trace.rule import Weights
from pjax_trace.rules.maximum import REDUCE_MAX
from pjax_trace.rules.sorting import RANKING, isotonic
from pjax_trace.translation import Project, Rewrite
from tests.rules.rows import decades, double, rows_of, single


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
    graph = pjax.project(problem, argnums=(0, 1), schedule="parallel", copies=False).trace(x, y)
    assert [c.rule.family for c in graph.constraints].count("extremum") == 1


def test_argsort_reads_no_variable():
    def problem(x):
        order = jnp.argsort(x)
        pjax.constrain(x[order], pjax.sets.Equal(jnp.array([0.0, 1.0, 2.0])))

    moved, _ = pjax.project(problem, schedule="parallel")(jnp.array([2.5, -1.0, 0.0]))
    np.testing.assert_allclose(moved, [2.0, 0.0, 1.0])


def test_what_is_asked_of_a_ranking_goes_to_the_elements():
    x = jnp.asarray([[2.0, -1.0, 0.5], [0.0, 4.0, 1.0]])
    for k, residual, expected in (
        (3, [[1.0, 2.0, 3.0]] * 2, [[3, 1, 2], [1, 3, 2]]),
        (2, [[1.0, 2.0]] * 2, [[0, 1, 2], [1, 0, 2]]),
    ):
        params = {"axis": 1, "k": k, "descending": False}
        answer = RANKING.linear(params, (x,), 0).transpose(jnp.asarray(residual))
        np.testing.assert_array_equal(answer, expected)
    params = {"axis": 1, "k": 1, "descending": True}
    answer = RANKING.linear(params, (x,), 0).transpose(jnp.asarray([[1.0], [2.0]]))
    np.testing.assert_array_equal(answer, [[1, 0, 0], [0, 2, 0]])


def test_a_sort_is_a_ranking_of_all_elements():
    x, y = (jax.ShapeDtypeStruct((3, 4), jnp.float32) for _ in range(2))
    params = {"dimension": 1, "is_stable": True, "num_keys": 1}
    expected = Project(RANKING, {"axis": 1, "k": 4, "descending": False})
    assert translate(lax.sort_p, params, [x], (True,)) == expected
    assert isinstance(translate(lax.sort_p, params, [x, y], (True, False)), Rewrite)


# What is refused.


def test_refusals():
    with pytest.raises(pjax.MissingRuleError, match="jax.lax.top_k"):
        pjax.project(
            lambda x: pjax.constrain(lax.approx_max_k(x, 2)[0], pjax.sets.Equal(0.0)),
            schedule="parallel",
            copies=False,
        ).trace(jnp.ones(4))


def test_every_primitive_has_cases():
    registered = entries()
    for name in "sort top_k".split():
        entry = registered[getattr(lax, f"{name}_p")]
        assert entry.cases and entry.translation.family == "extremum"
