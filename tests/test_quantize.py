"""pjax.quantize: an ordinary function to JAX, a constraint to a solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.quantize import quantize


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 256])
def test_the_nearest_level(levels):
    x = np.random.default_rng(0).normal(size=200).astype(np.float32)
    scale = 1.5
    grid = np.linspace(-scale, scale, levels)
    expected = grid[np.abs(x[:, None] - grid).argmin(1)]
    out = quantize(jnp.asarray(x), levels, scale)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(lambda x: quantize(x, levels, scale))(x), out)
    np.testing.assert_array_equal(quantize(out, levels, scale), out)


def test_zero_is_a_level_of_an_odd_number_and_a_tie_of_an_even_one():
    assert quantize(jnp.zeros(()), 3) == 0
    assert quantize(jnp.zeros(()), 2) == 1
    assert quantize(jnp.asarray(-1e-30), 2) == -1


def test_scales_broadcast_and_may_be_traced():
    x = jnp.asarray([[0.6, -0.6], [3.0, 0.1]])
    rows = jnp.asarray([[1.0], [2.0]])
    expected = jnp.stack([quantize(x[0], 3, 1.0), quantize(x[1], 3, 2.0)])
    np.testing.assert_array_equal(quantize(x, 3, rows), expected)
    np.testing.assert_array_equal(jax.jit(lambda s: quantize(x, 3, s))(rows), expected)
    np.testing.assert_array_equal(quantize(x.T, 3, rows[:, 0]), expected.T)
    batched = jax.vmap(lambda row, s: quantize(row, 3, s))(x, rows[:, 0])
    np.testing.assert_array_equal(batched, expected)


AXES = [(0, 0), (0, None), (None, 0), (1, 0), (1, 1), (None, 1)]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_batches_are_what_a_loop_makes(axes):
    rng = np.random.default_rng(1)
    batch, shapes = 3, [(4, 2), (4, 1)]
    x, scale = (
        jnp.asarray(rng.normal(size=s if a is None else (*s[:a], batch, *s[a:])), jnp.float32)
        for s, a in zip(shapes, axes, strict=True)
    )
    scale = 0.5 + jnp.abs(scale)

    def one(x, scale):
        return quantize(x, 4, scale)

    def row(a, axis, i):
        return a if axis is None else jnp.take(a, i, axis)

    pairs = [(row(x, axes[0], i), row(scale, axes[1], i)) for i in range(batch)]
    expected = jnp.stack([one(*pair) for pair in pairs])
    np.testing.assert_allclose(jax.vmap(one, axes)(x, scale), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(one, axes))(x, scale), expected, rtol=1e-6)
    rows = jax.vmap(jax.vmap(one), axes)(x, scale)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_the_derivative_is_zero():
    x = jnp.asarray([-0.3, 0.2, 7.0])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(quantize(x, 4)))(x), jnp.zeros(3))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((jnp.arange(3), 3), "floating point"),
        ((jnp.ones(3), 1), "from 2"),
        ((jnp.ones(3), 2.5), "an integer"),
        ((jnp.ones(3), True), "from 2"),
        ((jnp.ones(3), 10**9), "from 2"),
        ((jnp.ones(3), 3, 0.0), "positive"),
        ((jnp.ones(3), 3, jnp.asarray([1.0, -1.0, 1.0])), "positive"),
        ((jnp.ones(3), 3, np.inf), "finite"),
        ((jnp.ones(3), 3, jnp.ones(2)), "does not fit"),
        ((jnp.ones(3), 3, jnp.ones((2, 3))), "broadcast"),
        ((jnp.ones(3), 3, "wide"), "does not fit"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(pjax.InputError, match=message):
        quantize(*arguments)


@pytest.mark.parametrize("levels, scale", [(2, 1.0), (5, np.asarray([0.5, 2.0], np.float32))])
def test_it_is_a_projection(levels, scale):
    report = pjax.testing.check_rule(lambda x: quantize(x, levels, scale), jnp.zeros(2), samples=10)
    assert report.excess < 1e-4


def test_weights_and_batched_activations_of_few_levels_train():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    y = (x[:, 0] > 0).astype(jnp.int32)
    first, second = (jnp.asarray(rng.normal(size=s) / 2, jnp.float32) for s in [(4, 6), (6, 2)])

    def fit(params, x, y):
        def scores(row):
            return quantize(row @ params[0], 4) @ quantize(params[1], 3)

        return pjax.losses.cross_entropy(jax.vmap(scores)(x), y)

    train = pjax.project(fit, solver=pjax.DouglasRachford(), steps=20)
    params, info = train((first, second), x, y)
    later, info_later = train(params, x, y)
    assert info.finite and info_later.finite
    assert info_later.gap < info.gap
    assert jax.tree.all(jax.tree.map(lambda a: bool(jnp.isfinite(a).all()), later))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=str)
def test_a_batch_is_projected_as_if_it_were_written_out(axes):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(3, 2) if axes[0] == 0 else 2), jnp.float32)
    scales = jnp.asarray([0.5, 1.0, 2.0]) if axes[1] == 0 else jnp.float32(0.7)
    goal = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)

    def batched(x):
        pjax.constrain(jax.vmap(lambda x, s: quantize(x, 4, s), axes)(x, scales), near)

    def written_out(x):
        wide = jnp.broadcast_to(x, (3, 2)) if axes[0] is None else x
        scale = scales[:, None] if axes[1] == 0 else scales
        pjax.constrain(quantize(wide, 4, scale), near)

    near = pjax.sets.Box(goal - 0.1, goal + 0.1)
    ends = []
    for problem in (batched, written_out):
        solve = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=5)
        ends.append(np.asarray(solve(x)[0]))
        graph = pjax.project(problem, schedule="parallel", copies=False).trace(x)
        assert [c.name for c in graph.constraints] == ["quantize", "Box"]
    np.testing.assert_allclose(*ends, rtol=1e-6)
    assert not np.array_equal(ends[0], x)


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "vmap"])
def test_a_scale_that_moves_is_refused(mapped):
    def few(x, scale):
        return quantize(x, 4, jnp.exp(scale))

    def problem(params):
        function = jax.vmap(few) if mapped else few
        pjax.constrain(function(params["x"], params["scale"]), pjax.sets.Equal(1.0))

    params = {"x": jnp.ones(3), "scale": jnp.zeros(3)}
    with pytest.raises(pjax.MissingRuleError, match="quantize at .*the scale of quantize must be"):
        pjax.project(problem, schedule="parallel", copies=False).trace(params)


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "vmap"])
def test_a_frozen_scale_is_data(mapped):
    def few(x, scale):
        return quantize(x, 4, jnp.exp(jax.lax.stop_gradient(scale)))

    def problem(params):
        function = jax.vmap(few) if mapped else few
        pjax.constrain(function(params["x"], params["scale"]), pjax.sets.Equal(1.0))

    params = {"x": 0.1 * jnp.ones(3), "scale": jnp.zeros(3)}
    moved, _ = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=5)(params)
    np.testing.assert_array_equal(moved["scale"], params["scale"])
    assert (moved["x"] > 0.3).all()
