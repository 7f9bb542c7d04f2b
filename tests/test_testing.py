"""``check_rule`` passes what is a projection, and says what is wrong with what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.testing import Report, brute_force, check_rule

POINT = jnp.zeros(1)


def custom(function, projection):
    """A function with a projection."""
    wrapped = pjax.custom_projection(function)
    wrapped.defprojection(projection)
    return wrapped


def line(slope):
    """The exact projection onto ``z = slope · x``."""

    def project(operands, out, weights):
        (x,), (wx,), wz = operands, weights.operands, weights.out
        x = (wx * x + slope * wz * out) / (wx + slope**2 * wz)
        return (x,), slope * x

    return project


@pytest.mark.parametrize(
    "fn, operands",
    [
        pytest.param(jnp.abs, (POINT,), marks=pytest.mark.slow),
        (jnp.tanh, (POINT,)),
        (jnp.multiply, (POINT, POINT)),
        (lambda x, w: x @ w, (jnp.zeros(2), jnp.ones(2))),
        pytest.param(lambda x: jnp.ones(2) @ x + 1.0, (jnp.zeros(2),), marks=pytest.mark.slow),
        pytest.param(lambda x: 2.0 * x, (POINT,), marks=pytest.mark.slow),
        (custom(lambda x: 3.0 * x, line(3.0)), (POINT,)),
    ],
    ids=["abs", "tanh", "mul", "dot", "data", "view", "custom"],
)
def test_right_rules_pass(fn, operands):
    report = check_rule(fn, *operands, samples=12)
    assert isinstance(report, Report)
    assert report.samples == 12
    assert report.infeasibility <= 1e-3 and report.excess <= 1e-3 and report.drift <= 1e-2
    assert min(report.infeasibility, report.drift) >= 0


def infeasible(operands, out, weights):
    (x,), _ = line(2.0)(operands, out, weights)
    return (x,), 2.0 * x + 0.1 * (out - 2.0 * operands[0])


def not_nearest(operands, out, weights):
    return operands, 2.0 * operands[0]


def weights_ignored(operands, out, weights):
    ones = type(weights)((1.0,), jnp.ones_like(weights.out))
    return line(2.0)(operands, out, ones)


def not_finite(operands, out, weights):
    (x,), z = line(2.0)(operands, out, weights)
    return (jnp.where(out > 2.0 * operands[0], jnp.nan, x),), z


def restless(operands, out, weights):
    """On the graph, and ever farther out."""
    x = 1.2 * operands[0] + 0.1
    return (x,), 2.0 * x


@pytest.mark.parametrize(
    "projection, said",
    [
        (infeasible, "not feasible"),
        (not_nearest, "not the nearest point"),
        (weights_ignored, "not the nearest point"),
        (not_finite, "not finite"),
        (restless, "not idempotent"),
    ],
)
def test_wrong_rules_are_caught(projection, said):
    function = custom(lambda x: 2.0 * x, projection)
    function.__name__ = "double"
    with pytest.raises(AssertionError, match="the rule of double is no projection") as caught:
        check_rule(function, POINT, samples=12)
    message = str(caught.value)
    assert f"  {said} in " in message and "of 12 samples, such as operands and out" in message
    for part in ("with weights", "projected to", "squared distance", "the nearest point found is"):
        assert part in message
    if said != "not feasible":
        assert "not feasible" not in message


def test_a_point_that_is_only_locally_nearest():
    """|x| from the wrong side: every point goes to the nearest one of its own half-line."""

    def local(operands, out, weights):
        (x,), (wx,), wz = operands, weights.operands, weights.out
        side = jnp.where(x < 0, -1.0, 1.0)
        moved = side * jnp.maximum((wx * side * x + wz * out) / (wx + wz), 0)
        return (moved,), jnp.abs(moved)

    def mirrored(operands, out, weights):
        (x,), z = local((-operands[0],), out, weights)
        # Stationary, but on the far half-line.
        return (x,), z

    assert check_rule(custom(jnp.abs, local), POINT, samples=12).excess <= 1e-3
    with pytest.raises(AssertionError, match="not the nearest point"):
        check_rule(custom(jnp.abs, mirrored), POINT, samples=12)


def test_a_square_that_keeps_to_its_own_branch():
    """Newton from the point itself: a stationary point, not always the nearest one."""

    def newton(operands, out, weights):
        (x,), (wx,), wz = operands, weights.operands, weights.out
        y = x
        for _ in range(60):
            slope = wx * (y - x) + 2 * wz * (y * y - out) * y
            curve = wx + 2 * wz * (3 * y * y - out)
            y = y - slope / jnp.where(curve == 0, 1.0, curve)
        return (y,), y * y

    with pytest.raises(AssertionError, match="not the nearest point"):
        check_rule(custom(jnp.square, newton), POINT, samples=30)


def test_the_centre_and_scale_of_the_points():
    assert check_rule(jnp.log, jnp.array([5.0]), samples=8, scale=0.05).samples == 8


def test_deterministic():
    triple = custom(lambda x: 3.0 * x, line(3.0))
    one, same = (check_rule(triple, POINT, samples=6, seed=3) for _ in range(2))
    assert one == same


def test_closed_over_data_may_be_of_any_precision():
    a = jnp.array([1.5, -2.0])
    assert check_rule(lambda x: a @ x, jnp.zeros(2), samples=5).excess <= 1e-3


def test_bad_arguments():
    with pytest.raises(pjax.InputError, match="give the function's operands"):
        check_rule(jnp.abs)
    with pytest.raises(pjax.TraceError, match="share operands"):
        check_rule(lambda x, w: x @ w, jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    with pytest.raises(pjax.MissingRuleError, match="bessel_i0e"):
        check_rule(jax.lax.bessel_i0e, POINT)


def test_brute_force_finds_what_is_known():
    """The nearest points of a parabola and a line, in float64."""
    x, z = np.array([[0.0], [3.0], [-1.0]]), np.array([[2.0], [0.0], [1.0]])
    weights = [np.ones(3)], np.ones((3, 1))
    least, (found,) = brute_force(jnp.square, (x,), z, weights)
    for a, b, d, at in zip(x[:, 0], z[:, 0], least, found[:, 0], strict=True):
        roots = np.roots([2.0, 0.0, 1 - 2 * b, -a])
        roots = roots[np.abs(roots.imag) < 1e-9].real
        distances = (roots - a) ** 2 + (roots**2 - b) ** 2
        np.testing.assert_allclose(d, distances.min(), rtol=1e-6, atol=1e-12)
        assert np.min(np.abs(roots[distances <= distances.min() + 1e-9] - at)) < 1e-4
    least, _ = brute_force(lambda x: 2 * x, (x,), z, ([np.full(3, 4.0)], np.full((3, 1), 0.5)))
    expected = (2 * x - z)[:, 0] ** 2 / (4 / 4.0 + 1 / 0.5)
    np.testing.assert_allclose(least, expected, rtol=1e-6)
    assert least.dtype == np.float64 and jax.numpy.zeros(1).dtype == jnp.float32
