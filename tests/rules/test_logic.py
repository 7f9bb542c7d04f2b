"""Truth tables and choices against enumeration in float64."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.quantize import quantize
from pjax_trace.registry import entries
from pjax_trace.rule import Request, Weights
from pjax_trace.rules.logic import Choice, TruthTable
from tests.rules.pieces import check_one_variable, names_of, points, project


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with _compat.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


TABLES = {"and": lambda a, b: a * b, "or": max, "xor": lambda a, b: abs(a - b)}


@pytest.mark.parametrize("name", TABLES)
def test_the_nearest_row_of_a_truth_table(name, dtype):
    function = TABLES[name]
    a, z0, wa, wz = points(dtype, spread=1.0)
    b, _, wb, _ = points(dtype, seed=1, spread=1.0)
    weights = Weights((jnp.asarray(wa), jnp.asarray(wb)), jnp.asarray(wz))
    rule = TruthTable(function)
    copies, z, distance, value = project(rule, {}, (a, b), z0, weights)
    rows = [(x, y, function(x, y)) for x, y in itertools.product((0.0, 1.0), repeat=2)]
    start = np.stack([a, b, z0]).astype(float)
    metric = np.stack([wa, wb, wz]).astype(float)

    def cost(point):
        return (metric * (np.asarray(point, float) - start) ** 2).sum(0)

    least = np.min([cost(np.asarray(row)[:, None]) for row in rows], 0)
    np.testing.assert_array_equal(np.round(copies[0]), copies[0].round(6))
    x, y = np.round(copies)
    np.testing.assert_array_equal(z, [function(*row) for row in zip(x, y, strict=True)])
    np.testing.assert_array_equal(z, value)
    np.testing.assert_allclose(cost((x, y, z)), least, rtol=1e-5)
    np.testing.assert_allclose(distance, least.sum(), rtol=1e-4)


@pytest.mark.parametrize("data", [(), (0,), (1,), (0, 1)], ids=str)
def test_the_nearest_choice(data, dtype):
    which, z0, ww, wz = points(dtype, spread=1.0)
    a, b, wa, wb = points(dtype, seed=1)
    operands, metric = (which, a, b), [ww, wa, wb]
    weights = Weights(
        tuple(None if i - 1 in data else jnp.asarray(w) for i, w in enumerate(metric)),
        jnp.asarray(wz),
    )
    copies, z, distance, value = project(Choice(), {}, operands, z0, weights)
    chosen = np.round(copies[0])
    np.testing.assert_allclose(copies[0], chosen, atol=1e-6)
    np.testing.assert_allclose(np.where(chosen == 1, copies[2], copies[1]), z, rtol=1e-6)
    np.testing.assert_allclose(value, z, rtol=1e-6)
    which, a, b, z0, ww, wa, wb, wz = (
        np.asarray(x, float) for x in (which, a, b, z0, ww, wa, wb, wz)
    )
    costs = []
    for number, (case, weight) in enumerate(((a, wa), (b, wb))):
        inverse = 0 if number in data else 1 / weight
        costs.append(ww * (number - which) ** 2 + (case - z0) ** 2 / (inverse + 1 / wz))
    least = np.minimum(*costs)
    points_, starts, weight = (*copies, z), (which, a, b, z0), (ww, wa, wb, wz)
    found = sum(w * (x - x0) ** 2 for w, x, x0 in zip(weight, points_, starts, strict=True))
    size = np.max(np.abs(starts), 0)
    rounding = (4 * np.finfo(dtype).eps * size) ** 2 * np.max(weight, 0)
    assert np.all(found - least <= 1e-4 * least + rounding)
    np.testing.assert_allclose(distance, least.sum(), rtol=1e-3)


def test_a_truth_table_asks_what_a_boolean_decides():
    a, b = jnp.asarray([0.0, 1.0, 0.0, 1.0]), jnp.asarray([0.0, 0.0, 1.0, 1.0])
    residual = jnp.asarray([1.0, 2.0, 3.0, -4.0])
    expected = {
        "and": ([0, 0, 3, -4], [0, 2, 0, -4]),
        "or": ([1, 2, 0, 0], [1, 0, 3, 0]),
        "xor": ([1, 2, -3, 4], [1, -2, 3, 4]),
    }
    for name, function in TABLES.items():
        rule = TruthTable(function)
        request = Request(rule.apply({}, a, b), residual, (True, True), 0.5)
        for answer, right in zip(rule.target({}, (a, b), request), expected[name], strict=True):
            np.testing.assert_array_equal(answer, right)


def test_a_choice_asks_the_case_or_else_the_boolean():
    which, a, b = jnp.asarray([0.2, 0.9]), jnp.asarray([1.0, 2.0]), jnp.asarray([5.0, 7.0])
    rule, residual = Choice(), jnp.asarray([1.0, -1.0])
    out = rule.apply({}, which, a, b)
    for variable, expected in (
        ((True, True, True), (None, [1, 0], [0, -1])),
        ((True, False, True), (None, None, [0, -1])),
        ((True, False, False), ([4, -5], None, None)),
    ):
        answers = rule.target({}, (which, a, b), Request(out, residual, variable, 0.5))
        for answer, right in zip(answers, expected, strict=True):
            assert (answer is None) == (right is None)
            if right is not None:
                np.testing.assert_array_equal(answer, right)


def test_every_primitive_has_cases():
    names = "and or xor not reduce_and reduce_or reduce_xor is_finite select_n"
    registered = {str(p): entry for p, entry in entries().items()}
    assert all(registered[name].cases for name in names.split())


# Plain JAX, and what a real function of its argument it comes to.
MASK = np.asarray([True, False])
TRACED = {
    "not": (lambda x: (~(x <= 0.5)).astype(x.dtype), lambda x: x > 0.5),
    "and data": (lambda x: ((x > 0) & MASK).astype(x.dtype), lambda x: (x > 0) * MASK),
    "data or": (lambda x: (MASK | (x > 0)).astype(x.dtype), lambda x: (x > 0) | MASK),
    "xor data": (
        lambda x: jnp.logical_xor(x > 0, MASK).astype(x.dtype),
        lambda x: (x > 0) ^ MASK,
    ),
    "twice": (lambda x: ((b := x > 0) & b).astype(x.dtype), lambda x: x > 0),
    "xor itself": (
        lambda x: jnp.sign(x) + ((b := x > 0) ^ b).astype(x.dtype),
        lambda x: np.sign(x),
    ),
    "isfinite": (lambda x: jnp.where(jnp.isfinite(x), jnp.sign(x), 0.0), np.sign),
    "by data": (
        lambda x: jnp.where(MASK, x > 0, True).astype(x.dtype),
        lambda x: np.where(MASK, x > 0, 1),
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_traces_to_one_staircase(name):
    check_one_variable(*TRACED[name])


FUNCTIONS = {
    "where": (lambda x, y: jnp.where(x > 0, x, y), 2, ["gt", "select_n"]),
    "where, data": (lambda x: jnp.where(x > 0, 2.0, -1.0), 1, ["gt", "select_n"]),
    "where, one datum": (lambda x: jnp.where(x > 0, x, 0.0), 1, ["gt", "select_n"]),
    "where, boolean data": (lambda x: jnp.where(x > 0, MASK, True), 1, ["gt", "select_n"]),
    "where, alike": (lambda x, y: jnp.where(x > 0, y, y) + jnp.sign(x), 2, ["sign", "add"]),
    "scalar": (lambda x, y: jnp.where(x[0] > 0, x, y), 2, ["gt", "select_n"]),
    "mask": (lambda x, y: jnp.where(MASK & (x > 0), x, y), 2, ["gt", "select_n"]),
    "band": (lambda x: (x > 0) & (x < 0.2), 1, ["gt", "lt", "and"]),
    "either": (lambda x, y: (x > 0) | ~(y < 0.2), 2, ["gt", "lt", "or"]),
    "parity": (lambda x, y: (x > 0) ^ (y < 0.2), 2, ["gt", "lt", "xor"]),
    "booleans equal": (lambda x, y: (x > 0) == (y > 0), 2, ["gt", "gt_1", "sub", "eq"]),
    "boolean is data": (lambda x: (x > 0) == MASK, 1, ["gt", "eq"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_compile_to(name):
    function, count, expected = FUNCTIONS[name]
    assert names_of(function, *[(2,)] * count) == expected


def test_parity_of_many_is_refused():
    with pytest.raises((pjax.MissingRuleError, pjax.TraceError), match="reduce_xor"):
        names_of(lambda x: lax.reduce_xor(x > 0, (0,)), (3,))


@pytest.mark.parametrize(
    "solver",
    [pjax.AlternatingProjections(momentum=0.9), pjax.DouglasRachford()],
    ids=["AP", "DR"],
)
def test_a_net_of_signs_choices_and_few_levels(solver):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 6)), jnp.float32)
    y = (x.sum(1) > 0).astype(jnp.int32)
    shapes = {"first": (6, 16), "second": (16, 8), "third": (8, 2)}
    params = {
        k: jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for k, s in shapes.items()
    }

    def fit(params, x, y):
        bits = jnp.sign(x @ params["first"])
        hidden = bits @ params["second"]
        hidden = jnp.where(hidden > 0, hidden, 0.1 * hidden)
        return pjax.losses.cross_entropy(hidden @ quantize(params["third"], 5), y)

    train = pjax.project(fit, solver=solver, steps=20)
    before, gaps = fit(params, x, y), []
    for _ in range(4):
        params, info = train(params, x, y)
        assert info.finite
        gaps.append(float(info.gap))
    assert all(bool(jnp.isfinite(w).all()) for w in params.values())
    assert fit(params, x, y) < 0.8 * before
    assert gaps[-1] < gaps[0]
