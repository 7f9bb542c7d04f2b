"""Constraint sets, against float64 formulas, optax and the definition of a projection."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pjax_trace.sets import Ball, Box, Equal, NonNegative, Set


def points(rng, *shape: int) -> np.ndarray:
    """Of many sizes; some of them zero."""
    x = rng.normal(size=shape) * 10 ** rng.uniform(-4, 4, (shape[0],) + (1,) * (len(shape) - 1))
    x[:: max(1, shape[0] // 7)] = 0
    return x.astype(np.float32)


def test_nearest_points_of_many():
    rng = np.random.default_rng(0)
    x, center = points(rng, 100_000, 3), points(rng, 100_000, 3)
    wide = x.astype(float)

    np.testing.assert_array_equal(Equal(center).project(x), center)
    np.testing.assert_array_equal(NonNegative().project(x), np.maximum(x, 0))
    lower, upper = np.minimum(center, 1), np.maximum(center, 1)
    np.testing.assert_array_equal(Box(lower, upper).project(x), np.clip(x, lower, upper))

    radius = (10 ** rng.uniform(-4, 4, (100_000, 1))).astype(np.float32)
    radius[::11] = 0
    y = np.asarray(Ball(radius, center, axis=-1).project(jnp.asarray(x)), float)
    away = wide - center
    norm = np.linalg.norm(away, axis=-1, keepdims=True)
    exact = center + away * np.minimum(1, radius / np.maximum(norm, 1e-300))
    scale = np.abs(x).max(-1) + np.abs(center).max(-1) + 1e-6
    assert np.max(np.abs(y - exact).max(-1) / scale) <= 3e-7
    outside = np.linalg.norm(y - center, axis=-1) - radius[:, 0]
    assert np.max(outside / scale) <= 3e-7


@pytest.mark.parametrize("x", [np.zeros((4, 3)), np.full((4, 3), 7.0), np.eye(4, 3) - 0.2])
def test_agrees_with_optax(x):
    x = jnp.asarray(x, jnp.float32)
    project = optax.projections
    for ours, theirs in [
        (NonNegative(), project.projection_non_negative(x)),
        (Box(-0.1, 0.5), project.projection_box(x, -0.1, 0.5)),
        (Box(x - 1, x + 1), project.projection_box(x, x - 1, x + 1)),
        (Ball(0.3), project.projection_l2_ball(x, 0.3)),
        (Ball(100.0), project.projection_l2_ball(x, 100.0)),
        (Ball(0.3, axis=1), jax.vmap(lambda row: project.projection_l2_ball(row, 0.3))(x)),
        (Ball(0.3, axis=(0, 1)), project.projection_l2_ball(x, 0.3)),
    ]:
        np.testing.assert_allclose(ours.project(x), theirs, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-3, 3))
def test_no_point_of_the_set_is_nearer(seed, log_scale):
    """<x - Px, y - Px> <= 0 for every y of a convex set, and P(Px) = Px."""
    rng = np.random.default_rng(seed)
    a, b, x = (10 ** rng.uniform(-1, 1) * rng.normal(size=(5, 4)) for _ in range(3))
    x = jnp.asarray(x * 10**log_scale, jnp.float32)
    a, b = jnp.asarray(np.minimum(a, b), jnp.float32), jnp.asarray(np.maximum(a, b), jnp.float32)
    radius = jnp.asarray(rng.random((5, 1)), jnp.float32)
    y = np.asarray(rng.normal(size=(200, 5, 4)) * 10 ** rng.uniform(-1, 1))
    sphere = y / np.linalg.norm(y, axis=-1, keepdims=True) * rng.random((200, 5, 1))
    for one, members in [
        (Box(a, b), np.clip(y, a, b)),
        (NonNegative(), np.abs(y)),
        (Ball(radius, a, axis=-1), np.asarray(a) + sphere * np.asarray(radius)),
    ]:
        nearest = np.asarray(one.project(x), float)
        inner = ((np.asarray(x, float) - nearest) * (members - nearest)).sum((-1, -2))
        size = np.abs(x).max() + np.abs(nearest).max() + np.abs(members).max()
        assert inner.max() <= 1e-5 * size**2
        again = one.project(jnp.asarray(nearest, jnp.float32))
        np.testing.assert_allclose(again, nearest, rtol=1e-6, atol=1e-6 * size)


def test_points_inside_do_not_move():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    for one in (Box(-10.0, jnp.inf), Ball(100.0, 0.3), Ball(50.0, axis=0), Ball(jnp.inf)):
        np.testing.assert_array_equal(one.project(x), x)


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e30])
def test_extreme_sizes_stay_finite(size):
    x = jnp.full((2, 3), size, jnp.float32)
    for radius in (0.0, 1.0):
        for axis in (None, 0, (0, 1)):
            y = Ball(radius, axis=axis).project(x)
            assert jnp.isfinite(y).all()
            assert jnp.linalg.norm(y) <= np.sqrt(3) * radius + 1e-6
    assert Ball(1.0).project(jnp.zeros((0, 3))).shape == (0, 3)
    assert Ball(1.0).project(jnp.asarray(size, jnp.float32)).shape == ()


def test_leaves_of_any_kind_under_any_transform():
    x = jnp.linspace(-3, 3, 12).reshape(4, 3)
    for make in (
        lambda a: Equal(a),
        lambda a: Box(-a, a),
        lambda a: Ball(a),
        lambda a: Ball(a, a, axis=-1),
    ):
        expected = make(0.5).project(x)
        for leaf in (np.float64(0.5), np.array(0.5), jnp.array(0.5), np.float32(0.5)):
            assert make(leaf).project(x).dtype == x.dtype
            np.testing.assert_array_equal(make(leaf).project(x), expected)
        # Built inside, handed in, batched, and turned into other trees.
        close = lambda a: np.testing.assert_allclose(a, expected, rtol=1e-6)  # noqa: E731, B023
        close(jax.jit(lambda a, x: make(a).project(x))(0.5, x))  # noqa: B023
        close(eqx.filter_jit(lambda one, x: one.project(x))(make(jnp.array(0.5)), x))
        close(jax.vmap(lambda a: make(a).project(x))(jnp.full(2, 0.5))[1])  # noqa: B023
        one = make(jnp.array(0.5))
        for odd in (None, "text", object(), jax.ShapeDtypeStruct((), jnp.float32)):
            odd_tree = jax.tree.map(lambda leaf: odd, one)  # noqa: B023
            assert type(odd_tree) is type(one)
        arrays, rest = eqx.partition(one, eqx.is_array)
        close(eqx.combine(arrays, rest).project(x))
    assert Ball(1.0, axis=(0, 1)) != Ball(1.0)


def test_these_are_convex():
    """Said by the class, which is no part of the pytree."""
    for one in (Equal(0.5), Box(0.0, 1.0), NonNegative(), Ball(1.0)):
        assert one.convex is type(one).convex is True
        assert all(leaf is not True for leaf in jax.tree.leaves(one))


def test_float64():
    with jax.enable_x64(True):
        x = jnp.linspace(-3, 3, 6)
        for one in (Equal(jnp.float32(1)), Box(np.float32(0), 1.0), NonNegative(), Ball(0.5)):
            assert one.project(x).dtype == jnp.float64
        assert abs(jnp.linalg.norm(Ball(0.5).project(x)) - 0.5) < 1e-15


@pytest.mark.parametrize(
    "build",
    [
        lambda: Equal(np.nan),
        lambda: Equal(jnp.array([1.0, np.nan])),
        lambda: Box(np.nan, 1.0),
        lambda: Box(0.0, np.array([1.0, np.nan])),
        lambda: Box(1.0, 0.0),
        lambda: Box(np.array([0.0, 2.0]), jnp.ones(2)),
        lambda: Ball(-1.0),
        lambda: Ball(jnp.array([[1.0], [-1.0]]), axis=-1),
        lambda: Ball(np.nan),
        lambda: Ball(1.0, np.nan),
    ],
)
def test_bad_values_are_refused(build):
    with pytest.raises(ValueError, match="Equal|Box|Ball"):
        build()


def test_traced_values_are_not_looked_at():
    jax.eval_shape(lambda a: Box(a, -a).project(jnp.ones(3)), 1.0)
    jax.eval_shape(lambda a: Ball(a, a).project(jnp.ones(3)), 1.0)


@pytest.mark.parametrize(
    ("one", "good", "bad"),
    [
        (Equal(np.zeros(3)), [(3,), (2, 3)], [(), (2,), (3, 1), (1, 2)]),
        (Equal(np.zeros((2, 3))), [(2, 3), (5, 2, 3)], [(3,), (1, 3)]),
        (Box(np.zeros(3), 1.0), [(3,), (2, 3)], [(2,), (3, 2)]),
        (Box(0.0, np.ones((4, 1))), [(4, 1), (4, 7)], [(4,), (1, 1)]),
        (NonNegative(), [(), (2, 3)], []),
        (Ball(1.0), [(), (3,), (2, 3)], []),
        (Ball(np.ones((4, 1)), axis=1), [(4, 3)], [(3, 4), (4,)]),
        (Ball(np.ones(4), axis=1), [], [(4, 3)]),
        (Ball(np.ones(4)), [], [(4,)]),
        (Ball(1.0, np.zeros(3), axis=(0, 1)), [(2, 3)], [(3,), (3, 2)]),
    ],
)
def test_fits(one, good, bad):
    for shape in good:
        one.fits(shape)
        assert one.project(jnp.ones(shape)).shape == shape
    for shape in bad:
        with pytest.raises(ValueError, match=type(one).__name__):
            one.fits(shape)


def test_messages_say_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Box.*\(2,\).*upper of shape \(3,\)"):
        Box(0.0, np.ones(3)).fits((2,))


def test_sets_of_users():
    class Integers(Set):
        def project(self, x):
            return jnp.round(x)

    class Plane(Set):
        normal: jax.Array

        def project(self, x):
            return x - jnp.vdot(self.normal, x) * self.normal

    class Broken(Set):
        def project(self, x):
            return x[:1]

    assert not Set.convex and not Integers.convex and not Plane(jnp.ones(2)).convex
    Integers().fits((3,))
    np.testing.assert_array_equal(Integers().project(jnp.array([0.4, 2.7])), [0, 3])
    Plane(jnp.array([0.6, 0.8])).fits((2,))
    jax.jit(lambda normal: Plane(normal).fits((2,)))(jnp.array([0.6, 0.8]))
    with pytest.raises(ValueError, match=r"Plane.*\(3,\)"):
        Plane(jnp.array([0.6, 0.8])).fits((3,))
    with pytest.raises(ValueError, match=r"Broken\.project.*\(3,\).*\(1,\)"):
        Broken().fits((3,))
    with pytest.raises(TypeError, match="abstract"):
        Set()  # pyright: ignore[reportAbstractUsage]
