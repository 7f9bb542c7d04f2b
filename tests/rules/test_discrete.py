"""Staircases, truth tables and choices against enumeration in float64.

An excess of a squared distance counts where it is more than 1e-4 of the least, beyond what it makes
for x to be off by δ, eight units in the last place: at distance d that is ω (2 d δ + δ²).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.quantize import quantize
from pjax_trace.registry import Weights, entries, rule_for
from pjax_trace.rules import discrete
from pjax_trace.rules.discrete import Choice, TruthTable

INF = np.inf
COUNT = 2000
FAR = np.arange(-60, 61)  # all levels that a nearest point can be on


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with _compat.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def points(dtype, seed=0, count=COUNT, spread=4.0):
    """Random and degenerate points, and weights over six decades: x0, z0, wx, wz."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(-8, 9, (2, count)) / 2  # on a step, or halfway between two levels
    nudges = rng.choice([0, 1e-7, -1e-7, 1e-3, -1e-3], (2, count))
    x0, z0 = np.where(
        rng.random((2, count)) < 0.5,
        rng.normal(0, spread, (2, count)) * 10 ** rng.uniform(-1, 0.5, (2, count)),
        halves + nudges,
    )
    wx, wz = np.where(rng.random(count) < 0.3, 1.0, 10 ** rng.uniform(-3, 3, (2, count)))
    return [np.asarray(a, dtype) for a in (x0, z0, wx, wz)]


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
    return rule_for(primitive), params, ()


def compared(primitive, threshold=0.5):
    return discrete._STEPS[primitive], {}, (threshold,)


def levelled(levels, scale):
    return discrete.QUANTIZE, {"levels": levels}, (2 * scale / (levels - 1),)


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


def project(rule, params, operands, out, weights, jit=False):
    """Projected operands, as the consensus gets them back from their moments; out and distance."""

    def run(operands, out, weights):
        result = rule.project(params, operands, out, weights)
        copies = [
            x if m is None else m.first / m.mass
            for m, x in zip(result.moments, operands, strict=True)
        ]
        return copies, result.out, result.distance, rule.apply(params, *copies)

    run = jax.jit(run) if jit else run
    results = run(tuple(jnp.asarray(x) for x in operands), jnp.asarray(out), weights)
    assert all(x.dtype == out.dtype for x in (*results[0], results[1]))
    return jax.tree.map(np.asarray, results)


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
@pytest.mark.parametrize("primitive", list(discrete._STEPS), ids=str)
def test_infinite_thresholds_leave_things_as_they_are(primitive, threshold):
    rule = discrete._STEPS[primitive]
    x0, z0, wx, wz = points(np.float32, count=50)
    weights = Weights((jnp.asarray(wx), None), jnp.asarray(wz))
    (x, _), z, distance, value = project(rule, {}, (x0, np.float32(threshold)), z0, weights)
    np.testing.assert_allclose(x, x0, rtol=3e-7)
    np.testing.assert_array_equal(z, value)
    assert np.isfinite(distance)


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


def test_every_primitive_has_cases():
    names = """sign floor ceil round gt ge lt le eq ne and or xor not reduce_and reduce_or
    reduce_xor is_finite select_n"""
    registered = {str(p): entry for p, entry in entries().items()}
    assert all(registered[name].cases for name in names.split())


THRESHOLD = np.asarray([0.5, -1.0], np.float32)
MASK = np.asarray([True, False])

# Plain JAX, and what a real function of its argument it comes to.
TRACED = {
    "data greater": (
        lambda x: (THRESHOLD > x).astype(x.dtype),
        lambda x: x < THRESHOLD,
    ),
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
    "isnan": (lambda x: jnp.where(jnp.isnan(x), 1.0, jnp.sign(x)), np.sign),
    "isfinite": (lambda x: jnp.where(jnp.isfinite(x), jnp.sign(x), 0.0), np.sign),
    "by data": (
        lambda x: jnp.where(MASK, x > 0, True).astype(x.dtype),
        lambda x: np.where(MASK, x > 0, 1),
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_traces_to_one_staircase(name):
    """The nearest point is found among the points that the staircase has next to these."""
    function, meaning = TRACED[name]
    x0, z0 = np.asarray([0.7, -0.3]), np.asarray([0.45, 0.9])
    (x,), z = pjax.project_point(function, (jnp.asarray(x0),), jnp.asarray(z0))
    grid = np.unique([*x0, 0, 0.5, -1, *(e + t for e in (0, 0.5, -1) for t in (1e-9, -1e-9))])
    tried = np.stack([grid, grid], 1)
    costs = (tried - x0) ** 2 + (np.asarray(meaning(tried), float) - z0) ** 2
    np.testing.assert_array_equal(np.asarray(z, float), np.asarray(meaning(np.asarray(x)), float))
    found = (np.asarray(x) - x0) ** 2 + (np.asarray(z, float) - z0) ** 2
    np.testing.assert_allclose(found, costs.min(0), atol=1e-5)


def graph_of(function, *shapes):
    """What a function of several arrays compiles to, and whether its forward pass is right."""
    operands = [
        jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32)
        for i, s in enumerate(shapes)
    ]

    def fit(xs):
        out = function(*xs).astype(jnp.float32)
        return pjax.losses.squared_error(out[None], jnp.zeros((1, *out.shape)))

    graph = pjax.project(fit, schedule="parallel").trace(operands)
    values = graph.program.evaluate(operands, [])
    (loss,) = graph.program.outputs
    np.testing.assert_allclose(values[loss], fit(operands), rtol=1e-6)
    return [c.name for c in graph.constraints if c.out is not None]


FUNCTIONS = {
    "two variables": (lambda x, y: x > y, 2, ["sub", "gt"]),
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
    "trunc": (jnp.trunc, 1, ["lt", "ceil", "floor", "select_n"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_compile_to(name):
    function, count, expected = FUNCTIONS[name]
    names = graph_of(function, *[(2,)] * count)
    assert [n for n in names if not n.endswith("'")] == expected


def test_parity_of_many_is_refused():
    with pytest.raises((pjax.MissingRuleError, pjax.TraceError), match="reduce_xor"):
        graph_of(lambda x: lax.reduce_xor(x > 0, (0,)), (3,))


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
