"""Staircases against enumeration in float64.

An excess of a squared distance counts where it is more than 1e-4 of the least, beyond what it makes
for x to be off by δ, eight units in the last place: at distance d that is ω (2 d δ + δ²).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pjax_trace import _compat
from pjax_trace.quantize import quantize, quantize_p
from pjax_trace.registry import entries, translate
from pjax_trace.rule import Request, Weights
from pjax_trace.rules.staircase import COMPARISONS, QUANTIZE
from pjax_trace.translation import Project, Rewrite
from tests.rules.pieces import COUNT, check_one_variable, names_of, points, project

INF = np.inf
FAR = np.arange(-60, 61)  # all levels that a nearest point can be on


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with _compat.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def flight(lower, upper):
    """Endless steps: level k on [k + lower, k + upper]."""
    return [(k, k + lower, k + upper) for k in FAR]


def saturating(levels, scale):
    """Equal steps in [−scale, scale], the outermost without an end."""
    values = np.linspace(-scale, scale, levels)
    half = scale / (levels - 1)
    lower, upper = values - half, values + half
    lower[0], upper[-1] = -INF, INF
    return list(zip(values, lower, upper, strict=True))


def step(below, at, above, threshold=0.5):
    return [
        (below, -INF, threshold),
        (at, threshold, threshold),
        (above, threshold, INF),
    ]


def of(primitive, **params):
    """The rule of a primitive as a function of one variable, of (params, data)."""
    outcome = translate(primitive, params, [jax.ShapeDtypeStruct((3,), jnp.float32)], (True,))
    assert outcome == Project(outcome.rule, params)
    return outcome.rule, params, ()


def compared(primitive, threshold=0.5):
    return COMPARISONS[primitive], {}, (threshold,)


def levelled(levels, scale):
    return QUANTIZE, {"levels": levels}, (2 * scale / (levels - 1),)


STAIRCASES = {
    "sign": (of(lax.sign_p), step(-1, 0, 1, 0.0)),
    "floor": (of(lax.floor_p), flight(0, 1)),
    "ceil": (of(lax.ceil_p), flight(-1, 0)),
    "round to even": (
        of(lax.round_p, rounding_method=lax.RoundingMethod.TO_NEAREST_EVEN),
        flight(-0.5, 0.5),
    ),
    "round away": (
        of(lax.round_p, rounding_method=lax.RoundingMethod.AWAY_FROM_ZERO),
        flight(-0.5, 0.5),
    ),
    "gt": (compared(lax.gt_p), step(0, 0, 1)),
    "ge": (compared(lax.ge_p), step(0, 1, 1)),
    "lt": (compared(lax.lt_p), step(1, 0, 0)),
    "le": (compared(lax.le_p), step(1, 1, 0)),
    "eq": (compared(lax.eq_p), step(0, 1, 0)),
    "ne": (compared(lax.ne_p), step(1, 0, 1)),
    "gt 0": (compared(lax.gt_p, 0.0), step(0, 0, 1, 0.0)),
    "eq 0": (compared(lax.eq_p, 0.0), step(0, 1, 0, 0.0)),
    "2 levels": (levelled(2, 1.0), saturating(2, 1.0)),
    "3 levels": (levelled(3, 2.0), saturating(3, 2.0)),
    "4 levels": (levelled(4, 0.5), saturating(4, 0.5)),
    "15 levels": (levelled(15, 3.0), saturating(15, 3.0)),
    "256 levels": (levelled(256, 4.0), saturating(256, 4.0)),
}


def nearest_piece(pieces, x0, z0, wx, wz):
    """The least squared distance, by enumeration."""
    x0, z0, wx, wz = (np.asarray(a, np.float64)[:, None] for a in (x0, z0, wx, wz))
    values, lower, upper = (np.asarray(a, np.float64) for a in zip(*pieces, strict=True))
    x = np.clip(x0, lower, upper)
    return (wx * (x - x0) ** 2 + wz * (values - z0) ** 2).min(1)


@pytest.mark.parametrize("name", STAIRCASES)
def test_the_nearest_point_of_a_staircase(name, dtype):
    (rule, params, data), pieces = STAIRCASES[name]
    x0, z0, wx, wz = points(dtype)
    operands = (x0, *(np.asarray(d, dtype) for d in data))
    weights = Weights((jnp.asarray(wx), *(None,) * len(data)), jnp.asarray(wz))
    jit = name in ("sign", "floor", "15 levels")
    (x, *_), z, distance, value = project(rule, params, operands, z0, weights, jit)
    assert np.isfinite(x).all()
    # Feasible, exactly: even after the copy went through its moment and back, if it had to move.
    stayed = rule.apply(params, *map(jnp.asarray, operands)) == z
    assert np.all((value == z) | stayed)
    exact = [np.asarray(a, np.float64) for a in (x, z, x0, z0, wx, wz)]
    x, z, x0, z0, wx, wz = exact
    found = wx * (x - x0) ** 2 + wz * (z - z0) ** 2
    least = nearest_piece(pieces, x0, z0, wx, wz)
    delta = 8 * np.finfo(dtype).eps * np.maximum(np.abs(x), np.abs(x0))
    rounding = wx * delta * (2 * np.abs(x - x0) + delta)
    delta = 4 * np.finfo(dtype).eps * np.abs(z)
    rounding += wz * delta * (2 * np.abs(z - z0) + delta)
    assert np.all(found - least <= 1e-4 * least + rounding + 1e-30)
    np.testing.assert_allclose(distance, found.sum(), rtol=1e-4)


@pytest.mark.parametrize("name", STAIRCASES)
def test_points_of_a_staircase_stay(name):
    dtype = np.dtype(np.float32)
    (rule, params, data), _ = STAIRCASES[name]
    x0, _, wx, wz = points(dtype, seed=1)
    operands = (x0, *(np.asarray(d, dtype) for d in data))
    z0 = np.asarray(rule.apply(params, *map(jnp.asarray, operands)))
    weights = Weights((jnp.ones((), dtype), *(None,) * len(data)), jnp.asarray(wz))
    (x, *_), z, distance, _ = project(rule, params, operands, z0, weights)
    np.testing.assert_array_equal(x, x0)
    np.testing.assert_array_equal(z, z0)
    assert distance <= COUNT * (np.finfo(dtype).eps * 8) ** 2


@pytest.mark.parametrize("name", ["floor", "round away", "gt"])
def test_large_and_small_numbers(name, dtype):
    (rule, params, data), _ = STAIRCASES[name]
    sizes = 10.0 ** np.arange(-30, 18)
    grid = np.asarray([0, *sizes, *-sizes, 2**22 + 0.5, 2**23 - 0.5, 2**24 + 1], dtype)
    x0, z0 = (a.ravel() for a in np.meshgrid(grid, grid))
    ones = jnp.ones((), dtype)
    operands = (x0, *(np.asarray(d, dtype) for d in data))
    weights = Weights((ones, *(None,) * len(data)), jnp.ones_like(z0))
    (x, *_), z, _, value = project(rule, params, operands, z0, weights)
    assert np.isfinite(x).all() and np.isfinite(z).all()
    np.testing.assert_array_equal(value, z)
    found = (x.astype(float) - x0) ** 2 + (z.astype(float) - z0) ** 2
    # What stays in place is feasible too, and so is x = z = an integer between the two.
    stay = (np.asarray(rule.apply(params, *map(jnp.asarray, operands)), float) - z0) ** 2
    size = np.finfo(dtype).eps * np.maximum(np.abs(x0), np.abs(z0)).astype(float)
    assert np.all(found <= stay * (1 + 1e-4) + 16 * size**2 + 1e-30)


@pytest.mark.parametrize("threshold", [INF, -INF])
@pytest.mark.parametrize("primitive", list(COMPARISONS), ids=str)
def test_infinite_thresholds_leave_things_as_they_are(primitive, threshold):
    rule = COMPARISONS[primitive]
    x0, z0, wx, wz = points(np.float32, count=50)
    weights = Weights((jnp.asarray(wx), None), jnp.asarray(wz))
    (x, _), z, distance, value = project(rule, {}, (x0, np.float32(threshold)), z0, weights)
    np.testing.assert_allclose(x, x0, rtol=3e-7)
    np.testing.assert_array_equal(z, value)
    assert np.isfinite(distance)


def test_every_primitive_has_cases():
    registered = entries()
    primitives = [lax.sign_p, lax.floor_p, lax.ceil_p, lax.round_p, quantize_p, *COMPARISONS]
    assert all(registered[p].cases for p in primitives)


# Plain JAX, and what a real function of its argument it comes to.
THRESHOLD = np.asarray([0.5, -1.0], np.float32)
TRACED = {
    "data greater": (lambda x: (THRESHOLD > x).astype(x.dtype), lambda x: x < THRESHOLD),
    "isnan": (lambda x: jnp.where(jnp.isnan(x), 1.0, jnp.sign(x)), np.sign),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_traces_to_one_staircase(name):
    check_one_variable(*TRACED[name])


FUNCTIONS = {
    "two variables": (lambda x, y: x > y, 2, ["sub", "gt"]),
    "trunc": (jnp.trunc, 1, ["lt", "ceil", "floor", "select_n"]),
    "few levels": (lambda x: quantize(jnp.sign(x), 4, THRESHOLD**2), 1, ["sign", "quantize"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_compile_to(name):
    function, count, expected = FUNCTIONS[name]
    assert names_of(function, *[(2,)] * count) == expected


def test_comparisons_are_of_one_variable():
    x, y = (jax.ShapeDtypeStruct((3,), jnp.float32) for _ in range(2))
    for variable in ((True, True), (True, False), (False, True)):
        assert isinstance(translate(lax.gt_p, {}, (x, y), variable), Rewrite)
    values = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([3.0, 2.0, 1.0])
    for variable in ((True, True), (True, False), (False, True)):
        for primitive in COMPARISONS:
            function = translate(primitive, {}, (x, y), variable).function
            expected = primitive.bind(*values)
            np.testing.assert_array_equal(function(*values) > 0.5, expected)


def asked(rule, params, operands, residual, reach=0.5):
    """What the first operand is asked for; the others must not be."""
    operands = tuple(jnp.asarray(a, jnp.float32) for a in operands)
    variable = (True,) + (False,) * (len(operands) - 1)
    request = Request(
        rule.apply(params, *operands), jnp.asarray(residual, jnp.float32), variable, reach
    )
    answer, *others = rule.target(params, operands, request)
    assert all(other is None for other in others)
    assert answer.shape == operands[0].shape
    return np.asarray(answer)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_is_taken_where_it_pays(sign):
    """An element d from the next piece goes there if d² ≤ (reach m)² (|residual| / q − 1)."""
    rule, params = COMPARISONS[lax.gt_p], {}
    x = sign * np.asarray([-0.02, -0.2, -1.5, 0.3, 0.2, -0.3], np.float32)
    residual = sign * np.asarray([3.0, 3.0, 3.0, 1.0, -0.1, 0.5], np.float32)
    size, mean = np.sqrt(np.mean(x**2)), np.abs(residual).mean()
    for reach in (0.5, 0.1):
        answer = asked(rule, params, (x, 0.0), residual, reach)
        pays = np.square(x) <= (reach * size) ** 2 * (np.abs(residual) / mean - 1)
        crosses = pays & (np.sign(residual) != np.sign(x))
        assert crosses.tolist() == [True, reach == 0.5, False, False, False, False]
        # It goes on until it is as far inside as the operand is large, scaled by what is asked.
        expected = np.where(crosses, (sign * size - x) * mean / size, 0)
        np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_what_is_asked_to_go_farther_out():
    """In an outermost piece, by more than the mean; others stay."""
    x = np.asarray([0.1, 0.1, -2.0, 3.0], np.float32)
    answer = asked(COMPARISONS[lax.gt_p], {}, (x, 0.0), np.asarray([4.0, 0.1, -4.0, 4.0]))
    size = np.sqrt(np.mean(x**2))
    np.testing.assert_allclose(answer[0], (size - 0.1) * np.float32(3.025) / size, rtol=1e-4)
    np.testing.assert_array_equal(answer[1:], 0)


def test_equal_steps_hand_over_what_is_asked_of_them():
    x = np.asarray([0.3, -7.2, 100.0], np.float32)
    residual = np.asarray([1.0, -2.0, 0.5], np.float32)
    for primitive in (lax.floor_p, lax.ceil_p):
        rule, params, _ = of(primitive)
        np.testing.assert_array_equal(asked(rule, params, (x,), residual), residual)
    # Two levels in [−1, 1]: beyond as wide a step as others there is nothing to ask.
    rule, params, (unit,) = levelled(2, 1.0)
    answer = asked(rule, params, ([1.9, -1.9, 2.1], unit), residual)
    np.testing.assert_array_equal(answer, [1.0, -2.0, 0.0])


def test_no_sign_is_asked_to_be_zero_but_equality_is_asked_for():
    x = np.asarray([0.1, -0.1, 0.0, 1.0], np.float32)
    residual = np.asarray([-4.0, 4.0, 4.0, 0.1], np.float32)
    size, mean = np.sqrt(np.mean(x**2)), np.abs(residual).mean()
    answer = asked(of(lax.sign_p)[0], {}, (x,), residual)
    goal = np.asarray([-size, size, size, 1.0])
    np.testing.assert_allclose(answer, (goal - x) * mean / size, rtol=1e-5)
    answer = asked(COMPARISONS[lax.eq_p], {}, (x, 0.0), np.asarray([4.0, 4.0, 4.0, -0.1]))
    np.testing.assert_allclose(answer, [-x[0] * mean / size, -x[1] * mean / size, 0, 0], rtol=1e-5)
