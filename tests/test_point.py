"""``project_point`` against float64: closed forms, bisection, and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.rule import Weights
from pjax_trace.rules.angle import ANGLE

RNG = np.random.default_rng(0)


def close(found, expected, tolerance=1e-4):
    expected = jax.tree.leaves(expected, is_leaf=lambda node: isinstance(node, list))
    for a, b in zip(jax.tree.leaves(found), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def excess(fn, operands, out, weights, found):
    """How much nearer the best of 4000 points of the graph around the one found is, in shares."""
    moved, moved_out = found
    np.testing.assert_array_equal(moved_out, fn(*moved))  # exactly
    rng = np.random.default_rng(1)

    def around(x, start):
        """Near the point found and near the start, over five decades."""
        size = 10 ** rng.uniform(-4, 1, (4000,) + (1,) * x.ndim)
        some = rng.random((4000, *x.shape)) < 0.6
        from_start = rng.random((4000,) + (1,) * x.ndim) < 0.2
        centre = np.where(from_start, np.asarray(start), np.asarray(x))
        return np.asarray(centre + size * some * rng.normal(size=some.shape), np.float32)

    def distances(xs, z):
        total = 0.0
        for x, start, w in zip((*xs, z), (*operands, out), (*weights[0], weights[1]), strict=True):
            square = np.asarray(w, float) * (np.asarray(x, float) - np.asarray(start, float)) ** 2
            total = total + square.reshape(len(square), -1).sum(1)
        return total

    tried = tuple(around(*pair) for pair in zip(moved, operands, strict=True))
    values = jax.vmap(fn)(*map(jnp.asarray, tried))
    own = distances([x[None] for x in moved], moved_out[None])[0]
    return (own - np.nanmin(distances(tried, values))) / max(own, 1e-6)


DATA = jnp.asarray(RNG.normal(size=(3,)), jnp.float32)
TABLE = jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32)

# Every function of the list, by the shapes of its operands; arrays that it closes over are data.
FUNCTIONS = {
    # views
    "reshape": (lambda x: x.reshape(3, 2), (6,)),
    "transpose": (lambda x: x.T, (2, 3)),
    "squeeze": (lambda x: jnp.squeeze(x, 0), (1, 3)),
    "expand_dims": (lambda x: x[:, None], (3,)),
    "slice": (lambda x: x[1:3], (4,)),
    "dynamic_slice": (lambda x: jax.lax.dynamic_slice(x, (jnp.array(1),), (2,)), (4,)),
    "take": (lambda x: jnp.take(x, jnp.array([2, 0])), (3,)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y]), (2,), (1,)),
    "pad": (lambda x: jnp.pad(x, (1, 2)), (2,)),
    "rev": (lambda x: x[::-1], (3,)),
    "neg": (lambda x: -x, (3,)),
    "where": (lambda x, y: jnp.where(DATA > 0, x, y), (3,), (3,)),
    "scale": (lambda x: DATA * x, (3,)),
    "affine": (lambda x: 2.0 * x + 1.0, (3,)),
    "offset": (lambda x: DATA - x, (3,)),
    "split": (lambda x: jnp.split(x, 2)[1], (4,)),
    # sums of terms
    "add": (jnp.add, (3,), (3,)),
    "sub": (jnp.subtract, (3,), (3,)),
    "sum": (jnp.sum, (4,)),
    "sum over an axis": (lambda x: jnp.sum(x, 0), (2, 3)),
    "mean": (jnp.mean, (4,)),
    "mean over an axis": (lambda x: jnp.mean(x, 1), (2, 3)),
    "product with data": (lambda x: DATA @ x, (3,)),
    "vdot": (jnp.vdot, (3,), (3,)),
    "row": (lambda x, w, b: x @ w + b, (3,), (3,), ()),
    "batched": (lambda x, w: jnp.einsum("bi,bi->b", x, w), (2, 3), (2, 3)),
    "row with data bias": (lambda x, w: x @ w + 0.5, (3,), (3,)),
    "two products": (lambda x, w, u, v: x * w - u * v, (2,), (2,), (2,), (2,)),
    "mul": (jnp.multiply, (3,), (3,)),
    "div": (lambda x: x / 4.0, (3,)),
    "shifted factor": (lambda x, w: (x + 1.0) * w, (2,), (2,)),
    "scaled factor": (lambda x, w: (2.0 * x) * w, (2,), (2,)),
    "flattened factor": (lambda x, w: x.ravel() @ w, (2, 2), (4,)),
    "factor of which data scale the elements": (lambda x, w: (x * DATA) * w, (3,), (3,)),
    "the same, across": (
        lambda x, w: jnp.einsum("ij,ij->ji", x * TABLE[:2, :2], w * TABLE[:2, :2].T),
        (2, 2),
        (2, 2),
    ),
    # elementwise
    "relu": (jax.nn.relu, (3,)),
    "maximum": (lambda x: jnp.maximum(DATA, x), (3,)),
    "abs": (jnp.abs, (3,)),
    "square": (jnp.square, (3,)),
    "x * x": (lambda x: x * x, (3,)),
    "x ** 2": (lambda x: x**2, (3,)),
    "tanh": (jnp.tanh, (3,)),
    "sigmoid": (jax.nn.sigmoid, (3,)),
    "exp": (jnp.exp, (3,)),
    "log": (jnp.log, (3,)),
    "scaled curve": (lambda x: jnp.tanh(2.0 * x + DATA), (3,)),
    "curve, then a view": (lambda x: 3.0 - jnp.abs(x)[::-1], (3,)),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nearest(name):
    fn, *shapes = FUNCTIONS[name]
    rng = np.random.default_rng(len(name))
    operands = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    if name == "log":
        operands = (jnp.abs(operands[0]) + 0.1,)
    value = fn(*operands)
    out = value + jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    scalars = tuple(float(w) for w in 10 ** rng.uniform(-1, 1, len(shapes)))
    weights = scalars, jnp.asarray(10 ** rng.uniform(-1, 1, value.shape), jnp.float32)
    found = pjax.project_point(fn, operands, out, weights=weights)
    assert excess(fn, operands, out, weights, found) <= 2e-4
    # The weights count by their ratios only; and what is on the graph stays.
    tenfold = tuple(10 * w for w in scalars), 10 * weights[1]
    close(pjax.project_point(fn, operands, out, weights=tenfold), found, 1e-3)
    close(pjax.project_point(fn, *found, weights=weights), found, 1e-3)


SUBSETS = [
    ("row", (lambda x, w, b: x @ w + b), (DATA, TABLE[0], jnp.array(0.3))),
    ("mul", jnp.multiply, (DATA, TABLE[0])),
    ("sub", jnp.subtract, (DATA, TABLE[0])),
    ("two products", (lambda x, w, u, v: x * w - u * v), (DATA, TABLE[0], TABLE[1], TABLE[2])),
]


@pytest.mark.parametrize("name, fn, operands", SUBSETS, ids=[s[0] for s in SUBSETS])
def test_any_subset_of_variables(name, fn, operands):
    """What is data is closed over; it is as if its weight were enormous."""
    out = jnp.asarray(fn(*operands) + 1.0)
    count = len(operands)
    for chosen in range(1, 2**count):
        moving = [i for i in range(count) if chosen >> i & 1]

        def partial(*xs, moving=moving):
            full = list(operands)
            for i, x in zip(moving, xs, strict=True):
                full[i] = x
            return fn(*full)

        point = tuple(operands[i] for i in moving)
        found, z = pjax.project_point(partial, point, out)
        np.testing.assert_array_equal(z, partial(*found))
        heavy = tuple(1.0 if i in moving else 1e9 for i in range(count))
        full, z2 = pjax.project_point(fn, operands, out, weights=(heavy, 1.0))
        close((found, z), (tuple(full[i] for i in moving), z2), 1e-3)


# 10⁵ points at once, random and degenerate, against float64.

N = 100_000
TINY = 1.1754944e-38  # the least normal number of float32; less counts as zero


def cloud(seed, count):
    """Coordinates over many decades, with zeros, ties and huge ones; and weights."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-3, 3, N)
    points = [rng.normal(size=N) * scale * 10 ** rng.uniform(-1, 1, N) for _ in range(count + 1)]
    for k in range(0, N, 17):  # degenerate ones
        points[k // 17 % (count + 1)][k] = 0.0
    for p in points:
        p[: N // 50] = 0.0
        p[N // 50 : N // 40] = rng.choice([-1.0, 1.0, 1e-6, 1e4, -1e4], N // 40 - N // 50)
    weights = 10 ** rng.uniform(-3, 3, (count, 1)), 10 ** rng.uniform(-3, 3, N)
    points = [p.astype(np.float32) for p in points]
    return points, ([float(w) for w in weights[0][:, 0]], weights[1].astype(np.float32))


def wide_exp(x):
    with np.errstate(over="ignore"):
        return np.exp(x)


def wide_log(x):
    return np.where(x > 0, np.log(np.maximum(x, 1e-300)), np.nan)


FLOAT64 = {
    "relu": (jax.nn.relu, lambda x: np.maximum(x, 0)),
    "abs": (jnp.abs, np.abs),
    "square": (jnp.square, np.square),
    "tanh": (jnp.tanh, np.tanh),
    "logistic": (jax.nn.sigmoid, lambda x: 1 / (1 + wide_exp(-x))),
    "exp": (jnp.exp, wide_exp),
    "log": (jnp.log, wide_log),
    "add": (jnp.add, np.add),
    "mul": (jnp.multiply, np.multiply),
}


def settle(name, points, weights, best):
    """Compare with an oracle's squared distances, in shares of them, beyond rounding error."""
    fn, wide = FLOAT64[name]
    *operands, out = points

    @jax.jit
    def run(operands, out, weight):
        return pjax.project_point(fn, operands, out, weights=(weights[0], weight))

    found, z = run(tuple(map(jnp.asarray, operands)), jnp.asarray(out), jnp.asarray(weights[1]))
    assert all(np.all(np.isfinite(x)) for x in (*found, z))
    xs = [np.asarray(x, float) for x in found]
    exact = wide(*xs)
    # What moving every number by a millionth of it costs is rounding error.
    rounding = 1e-6 * (np.abs(out) + np.abs(exact)) + TINY
    for i, (x, start) in enumerate(zip(xs, operands, strict=True)):
        nudged = x + 1e-6 * (np.abs(x) + (np.abs(start) if len(xs) > 1 else 0))
        rounding = rounding + np.abs(wide(*xs[:i], nudged, *xs[i + 1 :]) - exact)
    assert np.all(np.abs(np.asarray(z, float) - exact) <= 1e-4 * np.abs(exact) + rounding)
    own = weights[1] * (exact - out) ** 2
    floor = weights[1] * rounding**2
    for x, start, w in zip(xs, operands, weights[0], strict=True):
        own = own + w * (x - start) ** 2
        floor = floor + w * (1e-6 * (np.abs(x) + np.abs(start))) ** 2
    over = own - best - floor
    k = int(np.argmax(over / (best + 1e-30)))
    report = [float(p[k]) for p in points], weights[0], float(weights[1][k]), [x[k] for x in xs]
    assert np.all(over <= 1e-4 * best), (report, own[k], best[k], np.mean(over > 1e-4 * best))


FRACTIONS = np.concatenate([[0], 10 ** np.linspace(-9, -0.31, 28)])
FRACTIONS = np.sort(np.concatenate([FRACTIONS, 1 - FRACTIONS]))


def least_between(distance, a, b):
    """The least distance on intervals: a grid dense at both ends, then ever finer ones."""
    xs = a + (b - a) * FRACTIONS[:, None]
    best = np.full(len(a), np.inf)
    for _ in range(5):
        ds = distance(xs)
        k = np.argmin(np.where(np.isnan(ds), np.inf, ds), 0)
        best = np.fmin(best, np.take_along_axis(ds, k[None], 0)[0])
        left, right = (
            np.take_along_axis(xs, np.clip(k + i, 0, len(xs) - 1)[None], 0)[0] for i in (-1, 1)
        )
        xs = left + (right - left) * np.linspace(0, 1, 13)[:, None]
    return best


def monotone(inverse):
    """Between the point's own x and the x of its z, a monotone curve has its nearest point."""
    return lambda x0, z0: [(x0, inverse(z0))]


def clipped_inverse(f, low, high):
    """Of values out of range: as far as float64 tells the curve from its limit."""
    return monotone(lambda z: f(np.clip(z, low, high)))


INTERVALS = {
    "square": lambda x0, z0: (
        [(x0, side * np.sqrt(np.maximum(z0, 0))) for side in (-1.0, 1.0)]
        + [(x0, np.zeros_like(x0))]
    ),
    "tanh": clipped_inverse(np.arctanh, -1 + 1e-15, 1 - 1e-15),
    "logistic": clipped_inverse(lambda z: np.log(z) - np.log1p(-z), 1e-17, 1 - 1e-15),
    "exp": clipped_inverse(np.log, 1e-40, np.inf),
    "log": lambda x0, z0: [(np.maximum(x0, TINY), np.exp(np.clip(z0, np.log(TINY), 80)))],
}


@pytest.mark.parametrize("name", INTERVALS)
def test_many_points_of_a_curve(name):
    points, weights = cloud(1, 1)
    x0, z0 = (p.astype(float) for p in points)
    wx, wz = weights[0][0], weights[1].astype(float)
    f = FLOAT64[name][1]

    def distance(x):
        with np.errstate(over="ignore"):
            return wx * (x - x0) ** 2 + wz * (f(x) - z0) ** 2

    best = np.min([least_between(distance, a, b) for a, b in INTERVALS[name](x0, z0)], 0)
    settle(name, points, weights, best)


@pytest.mark.parametrize("name, slope", [("relu", 0.0), ("abs", -1.0)])
def test_many_points_of_two_half_lines(name, slope):
    points, weights = cloud(2, 1)
    x0, z0 = (p.astype(float) for p in points)
    wx, wz = weights[0][0], weights[1].astype(float)
    best = np.inf
    for side, a in ((1, 1.0), (-1, slope)):  # the half-line {(x, a x) : side x ≥ 0}
        x = side * np.maximum(0, side * (wx * x0 + wz * a * z0) / (wx + wz * a * a))
        best = np.minimum(best, wx * (x - x0) ** 2 + wz * (a * x - z0) ** 2)
    settle(name, points, weights, best)


def test_many_sums():
    points, weights = cloud(3, 2)
    x, y, z = (p.astype(float) for p in points)
    compliance = 1 / weights[0][0] + 1 / weights[0][1] + 1 / weights[1].astype(float)
    settle("add", points, weights, (x + y - z) ** 2 / compliance)


def test_many_products():
    """For a given x the best w is known, so this is a search over x alone."""
    points, weights = cloud(4, 2)
    x0, w0, z0 = (p.astype(float) for p in points)
    (wx, ww), wz = weights[0], weights[1].astype(float)

    def distance(x):
        return wx * (x - x0) ** 2 + (x * w0 - z0) ** 2 / (1 / wz + x * x / ww)

    reach = np.sqrt(distance(x0) / wx)
    zero = np.zeros_like(x0)
    ratio = np.where(w0 == 0, 0, z0 / np.where(w0 == 0, 1, w0))
    turn = np.sqrt(ww / wz)  # where the size of w stops to matter
    root = np.sqrt(np.abs(z0)) * (ww / wx) ** 0.25
    ends = [x0 - reach, -root, zero, root, x0 + reach]
    spans = [*zip(ends, ends[1:], strict=False), (x0, ratio), (x0, zero), (x0, x0 - reach)]
    spans += [(x0, x0 + reach), (-turn, turn), (x0, root), (x0, -root)]
    settle("mul", points, weights, np.min([least_between(distance, *s) for s in spans], 0))


def test_ties_and_points_on_the_graph():
    """Where two points are equally near, either is right; what is on the graph stays."""
    (x,), z = pjax.project_point(jnp.abs, (jnp.zeros(3),), jnp.array([2.0, 0.0, -1.0]))
    close((np.abs(x), z), ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    (x, w), z = pjax.project_point(jnp.multiply, (0.0, 0.0), 2.0)
    assert float(x) != 0.0 and float(z) > 0  # (0, 0) is the farthest of the stationary points
    (x,), z = pjax.project_point(jnp.square, (0.0,), 2.0)
    close((abs(x), z), (np.sqrt(1.5), 1.5))
    for fn in (jnp.tanh, jnp.square, jax.nn.relu):
        at = jnp.array([-0.5, 0.3, 2.0])
        (x,), z = pjax.project_point(fn, (at,), fn(at))
        close((x, z), (at, fn(at)), 1e-6)


def test_examples_by_hand():
    (x, w), z = pjax.project_point(jnp.add, (1.0, 2.0), 6.0)
    close((x, w, z), (2.0, 3.0, 5.0))
    (x,), z = pjax.project_point(lambda x: 2 * x + 1, (0.0,), 6.0)
    close((x, z), (2.0, 5.0))
    (x,), z = pjax.project_point(jnp.mean, (jnp.zeros(4),), 5.0)
    close((x, z), (np.ones(4), 1.0))
    (x,), z = pjax.project_point(lambda x: x[1:], (jnp.zeros(3),), jnp.ones(2))
    close((x, z), ([0.0, 0.5, 0.5], [0.5, 0.5]))
    (x,), z = pjax.project_point(jnp.abs, (1.0,), 4.0, weights=((3.0,), 1.0))
    close((x, z), (1.75, 1.75))
    (x,), z = pjax.project_point(lambda x: jnp.pad(x, 1), (jnp.zeros(1),), jnp.array([9.0, 2, 9]))
    close((x, z), ([1.0], [0.0, 1.0, 0.0]))


def test_under_jit_and_vmap():
    x, w, z = (jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32) for _ in range(3))

    def point(x, w, z):
        return pjax.project_point(jnp.dot, (x, w), z, weights=((2.0, 3.0), 0.5))

    alone = [point(*args) for args in zip(x[:2], w[:2], z[:2, 0], strict=True)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    close(jax.vmap(point)(x[:2], w[:2], z[:2, 0]), expected, 1e-5)
    close(jax.jit(jax.vmap(point))(x[:2], w[:2], z[:2, 0]), expected, 1e-5)
    close(jax.jit(point)(x[0], w[0], z[0, 0]), alone[0], 1e-5)
    # Some of it constant: closed over, and checked as far as it is known.
    close(jax.jit(lambda z: point(x[0], w[0], z))(z[0, 0]), alone[0], 1e-5)
    close(jax.jit(lambda x: point(x, w[0], z[0, 0]))(x[0]), alone[0], 1e-5)
    traced = jax.jit(lambda x, a: pjax.project_point(lambda x: a * x, (x,), z[0]))(x[0], w[0])
    close(traced, pjax.project_point(lambda x: w[0] * x, (x[0],), z[0]), 1e-5)


def test_float64():
    with jax.enable_x64(True):
        (x,), z = pjax.project_point(jnp.tanh, (np.float64(0.3),), np.float64(0.9))
        assert x.dtype == z.dtype == jnp.float64
        slope = 1 - np.tanh(float(x)) ** 2
        assert abs(float(x) - 0.3 + (float(z) - 0.9) * slope) < 1e-9


MATRIX = jnp.ones((2, 3))


@pytest.mark.parametrize(
    "fn, operands, out, match",
    [
        (lambda x, w: x @ w, (MATRIX, MATRIX.T), jnp.ones((2, 2)), "share operands"),
        (lambda x, w: x @ w, (MATRIX, jnp.ones(3)), jnp.ones(2), "share operands"),
        (lambda x: TABLE @ x, (jnp.ones(3),), jnp.ones(3), "share operands"),
        (lambda x: x + x[::-1], (jnp.ones(2),), jnp.ones(2), "share operands"),
        (lambda x, y: x[:, None] + y[None], (jnp.ones(2), jnp.ones(2)), jnp.ones((2, 2)), "share"),
        (lambda x: jnp.broadcast_to(x, (4, 3)), (jnp.ones(3),), jnp.ones((4, 3)), "share operands"),
        (lambda x: jnp.tanh(jnp.square(x)), (jnp.ones(2),), jnp.ones(2), "one constraint.* has 2"),
        (
            lambda x: (jnp.tanh(x), x)[1] * jnp.tanh(x),
            (jnp.ones(2),),
            jnp.ones(2),
            "one constraint",
        ),
        (lambda x: jnp.ones(2), (jnp.ones(2),), jnp.ones(2), "does not depend on its operands"),
        (lambda x, w: (x * DATA) @ w, (jnp.ones(3),) * 2, jnp.ones(()), "weigh differently"),
    ],
)
def test_refused_with_a_reason(fn, operands, out, match):
    with pytest.raises(pjax.TraceError, match="project_point.*" + match):
        pjax.project_point(fn, operands, out)


def test_several_constraints_are_listed():
    with pytest.raises(pjax.TraceError) as caught:
        pjax.project_point(lambda x: jnp.tanh(jnp.square(x)), (jnp.ones(2),), jnp.ones(2))
    message = str(caught.value)
    assert "square at" in message and "tanh at" in message and __file__ in message
    with pytest.raises(pjax.MissingRuleError, match="bessel_i0e"):
        pjax.project_point(jax.lax.bessel_i0e, (1.0,), 1.0)


@pytest.mark.parametrize(
    "operands, out, weights, match",
    [
        ([1.0], 1.0, None, "operands must be a tuple of arrays, not list"),
        (1.0, 1.0, None, "operands must be a tuple of arrays, not float"),
        ((), 1.0, None, "at least one operand"),
        ((jnp.arange(3),), jnp.ones(3), None, "operand 0 must be floating point, not int32"),
        ((jnp.ones(3),), jnp.arange(3), None, "out must be floating point, not int32"),
        ((jnp.array([1.0, jnp.nan]),), jnp.ones(2), None, "operand 0 is not finite"),
        ((jnp.ones(2),), jnp.array([1.0, jnp.inf]), None, "out is not finite"),
        ((jnp.ones(2),), jnp.ones(3), None, r"returns shape \(2,\), but out has \(3,\)"),
        ((1.0,), 1.0, ((1.0, 2.0), 1.0), "there are 1 operands, but 2 weights"),
        ((1.0,), 1.0, ((0.0,), 1.0), "positive"),
        ((1.0,), 1.0, ((1.0,), -1.0), "positive"),
        ((1.0,), 1.0, ((float("inf"),), 1.0), "positive"),
        ((1.0,), 1.0, ((float("nan"),), 1.0), "positive"),
        ((1.0,), 1.0, ((jnp.ones(2),), 1.0), "one positive scalar per operand"),
        ((jnp.ones(2),), jnp.ones(2), ((1.0,), jnp.ones(3)), "positive scalar or array for out"),
        ((1.0,), 1.0, 2.0, "one positive scalar per operand"),
    ],
)
def test_bad_arguments(operands, out, weights, match):
    with pytest.raises(pjax.InputError, match="project_point: .*" + match):
        pjax.project_point(jnp.abs, operands, out, weights=weights)


def test_a_function_of_several_results():
    with pytest.raises(pjax.InputError, match="must return one array"):
        pjax.project_point(lambda x: (x, x), (1.0,), 1.0)


def test_angles_of_negative_numbers_stay_on_their_side_of_the_cut():
    """The float next to π is past it: what turns to there is on the other side, 2π away."""
    y, x, weight = jnp.array([[0.0, -0.0, 1e-30, -1e-30], [-0.3, -1.0, -5.0, -2.0], [1, 1, 16, 16]])
    u = jnp.stack([jnp.repeat(x, 4), jnp.tile(y, 4)])
    z = ANGLE.apply({}, u)
    found = ANGLE.project({}, (u,), z, Weights((1.0,), jnp.tile(weight, 4)))
    np.testing.assert_allclose(found.out, z, atol=2e-6)
    np.testing.assert_allclose(found.moments[0].first, u, atol=1e-5)


@pytest.mark.parametrize("f", [jax.lax.lgamma, pytest.param(jnp.cosh, marks=pytest.mark.slow)])
def test_points_of_a_curve_stay(f):
    """Rounding says on which side of the graph they are, and two readers of it may differ."""
    x = jnp.linspace(0.5, 6.0, 4096, dtype=jnp.float32)
    weight = jnp.tile(jnp.array([0.5, 8.0]), 2048)

    def nearest(x, z):
        return pjax.project_point(f, (x,), z, weights=((1.0,), weight))[0][0]

    np.testing.assert_allclose(jax.jit(nearest)(x, f(x)), x, rtol=1e-4)
