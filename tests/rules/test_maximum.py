"""Maxima of two operands and of rows, against float64 oracles that enumerate what may be on top."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.registry import entries, translate
from pjax_trace.rule import Weights
from pjax_trace.rules.maximum import REDUCE_MAX, nearest_clamped, nearest_maximum
from pjax_trace.translation import Project, Refuse, Rewrite
from tests.rules.rows import EPS, ROWS, check, decades, double, least_of_rows, rows_of, single


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

    graph = pjax.project(problem, schedule="parallel", copies=True).trace(x, y)
    assert [c.name for c in graph.constraints] == ["max", "Equal"]
    (moved_x, moved_y), info = pjax.project(problem, argnums=(0, 1), steps=60, schedule="parallel")(
        x, y
    )
    assert float(info.gap) < 1e-2
    np.testing.assert_allclose(jnp.maximum(moved_x, moved_y), 2.0, atol=1e-2)
    graph = pjax.project(
        lambda x: pjax.constrain(lax.max(x, x), pjax.sets.Equal(2.0)),
        schedule="parallel",
        copies=False,
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

    graph = pjax.project(bounded, schedule="parallel", copies=True).trace(x, x)
    assert [c.name for c in graph.constraints] == ["max", "max_1", "Equal"]
    graph = pjax.project(
        lambda x: pjax.constrain(jnp.clip(x, -1.0, 1.0), pjax.sets.Equal(5.0)),
        schedule="parallel",
        copies=False,
    )
    assert [c.name for c in graph.trace(x).constraints] == ["max", "max_1", "Equal"]


# Rows.


@jax.jit
def project_rows(x, z, w, wz):
    return REDUCE_MAX.project({"axes": (1,)}, (x,), z, Weights((w,), wz))


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


# What is asked of operands.


ELEMENTWISE = {
    "max": (lax.max_p, (True, True)),
    "max with data": (lax.max_p, (True, False)),
    "clamp": (lax.clamp_p, (False, True, False)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_derivatives_of_elementwise_maxima(name):
    primitive, variable = ELEMENTWISE[name]
    rng = np.random.default_rng(7)
    operands = [jnp.asarray(a, jnp.float32) for a in rng.normal(size=(len(variable), 4, 5))]
    if name == "clamp":
        operands = [-jnp.abs(operands[0]), operands[1], jnp.abs(operands[2])]
    outcome = translate(primitive, {}, operands, variable)
    residual = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    out = primitive.bind(*operands)
    for i in np.flatnonzero(variable):
        jacobian = outcome.rule.linear(outcome.params, operands, int(i))
        passes = out == operands[i]
        np.testing.assert_array_equal(jacobian.transpose(residual), jnp.where(passes, residual, 0))
        np.testing.assert_array_equal(jacobian.squares(), passes)
        np.testing.assert_array_equal(jacobian.readers, 1)


def test_what_is_asked_of_a_row_goes_to_its_largest():
    (x,) = single(np.random.default_rng(8).normal(size=(4, 5)))
    residual = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    answer = REDUCE_MAX.linear({"axes": (1,)}, (jnp.asarray(x),), 0).transpose(residual)
    largest = x == x.max(1, keepdims=True)
    np.testing.assert_array_equal(answer, np.where(largest, residual[:, None], 0))
    masked = jnp.full((4, 5), -jnp.inf)
    answer = REDUCE_MAX.linear({"axes": (1,)}, (masked,), 0).transpose(residual)
    assert np.isfinite(answer).all()


def test_what_primitives_become():
    x, y = (jax.ShapeDtypeStruct((3,), jnp.float32) for _ in range(2))
    for operands, variable, expected in (
        ([x, y], (True, True), Project),
        ([x, y], (True, False), Project),
        ([x, y], (False, True), Rewrite),
        ([x, x], (True, True), Rewrite),
    ):
        assert isinstance(translate(lax.max_p, {}, operands, variable), expected)
    outcome = translate(lax.reduce_max_p, {"axes": (0,)}, [x], (True,))
    assert outcome == Project(REDUCE_MAX, {"axes": (0,)})


def test_every_primitive_has_cases():
    registered = entries()
    for name in "max min clamp reduce_max reduce_min pmax pmin".split():
        entry = registered[getattr(lax, f"{name}_p")]
        assert entry.cases and entry.translation.family == "extremum"


@pytest.mark.parametrize("primitive", [lax.psum_p, lax.pmax_p, lax.pmin_p])
def test_reductions_over_a_mesh_are_refused(primitive):
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    outcome = translate(primitive, {"axes": ("i",), "axis_index_groups": None}, (x,), (True,))
    assert isinstance(outcome, Refuse) and "named axis of a mesh" in outcome.reason


@pytest.mark.parametrize("reduce", [lax.psum, lax.pmax, lax.pmin])
def test_several_arrays_are_reduced_over_a_mapped_axis_at_once(reduce):
    x = jax.random.normal(jax.random.key(0), (4, 3))

    def fit(w):
        def row(r):
            one, other = reduce((r * w, r + w), "i")
            return one - other

        return pjax.losses.squared_error(jax.vmap(row, axis_name="i")(x), jnp.zeros((4, 3)))

    w, info = pjax.project(fit)(jnp.full(3, 2.0))
    assert bool(info.finite) and not np.allclose(w, 2.0)
