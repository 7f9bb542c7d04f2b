"""Explicit copies against none, over random graphs; projections onto a colour; a dense oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pjax_trace as pjax
from pjax_trace import _compat
from tests.problems import copies_of, free_of, problem_of, short_of

SETTINGS = settings(
    max_examples=5,
    phases=(Phase.generate,),  # shrinking would compile hundreds of programs
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


# A random program: instructions that append arrays [rows, d] to a list, all by their numbers.
ROWS, WIDTH = 2, 3


@st.composite
def programs(draw):
    """Instructions, and what is read at the end."""
    index = st.integers(0, 100)
    kinds = (
        "dense",
        "tied dense",
        "transposed dense",
        "relu",
        "add",
        "sub",
        "product",
        "inner",
        "slice",
        "concatenate",
        "broadcast",
        "scale",
        "mix",
        "constrain",
    )
    body = draw(st.lists(st.tuples(st.sampled_from(kinds), index, index), min_size=2, max_size=6))
    ends = draw(
        st.lists(
            st.tuples(st.sampled_from(("cross_entropy", "squared_error", "box", "equal")), index),
            min_size=1,
            max_size=2,
        )
    )
    return tuple(body), tuple(ends)


def execute(program, params, x):
    """The program as an ordinary JAX function."""
    body, ends = program
    values = [x.astype(params["v"].dtype), params["v"]]

    def pick(number):
        # Late values are likelier, so that programs are deep.
        return values[-1 - number % min(len(values), 3)]

    def weight(number):
        return params["w"][number % 2]

    for step, (kind, a, b) in enumerate(body):
        h = pick(a)
        with jax.named_scope(f"step_{step}"):
            if kind == "dense":
                h = h @ weight(b) + params["b"][None]
            elif kind == "tied dense":
                h = jax.vmap(lambda row, b=b: weight(b) @ row)(h)
            elif kind == "transposed dense":
                h = (weight(b).T @ h.T).T
            elif kind == "relu":
                h = jax.nn.relu(h)
            elif kind == "add":
                h = h + pick(b)
            elif kind == "sub":
                h = h - pick(b)
            elif kind == "product":
                h = h * pick(b)
            elif kind == "inner":
                h = jnp.sum(h * weight(b)[:1], 1, keepdims=True) + 0.1 * pick(b)
            elif kind == "slice":
                h = jnp.concatenate([h[:, 1:], pick(b)[:, 1:2]], 1)
            elif kind == "concatenate":
                h = jnp.concatenate([h, pick(b)], 0)[1 : ROWS + 1]
            elif kind == "broadcast":
                h = jnp.broadcast_to(jnp.sum(h, 0, keepdims=True), h.shape)
            elif kind == "scale":
                h = h * x.astype(h.dtype)
            elif kind == "mix":
                h = x[:, :ROWS].astype(h.dtype) @ h
            elif kind == "constrain":
                pjax.constrain(h, pjax.sets.Box(-2.0, 2.0))
        values.append(h)
    pjax.constrain(params["v"], pjax.sets.Box(-3.0, 3.0))  # if all the rest reads data only
    losses = []
    for kind, number in ends:
        h = values[-1 - number % 2]
        if kind == "cross_entropy":
            losses.append(0.5 * pjax.losses.cross_entropy(h, jnp.asarray([0, 2]), lam=2.0))
        elif kind == "squared_error":
            losses.append(pjax.losses.squared_error(h, jnp.ones_like(h)))
        elif kind == "box":
            pjax.constrain(h, pjax.sets.Box(0.5, 1.0))
        else:
            pjax.constrain(jnp.sum(h, 1), pjax.sets.Equal(1.0))
    return losses


def start(dtype):
    rng = np.random.default_rng(0)
    params = {
        "b": rng.normal(size=WIDTH),
        "v": rng.normal(size=(ROWS, WIDTH)),
        "w": list(0.7 * rng.normal(size=(2, WIDTH, WIDTH))),
    }
    x = rng.normal(size=(ROWS, WIDTH)) * np.asarray([[1.0, 0.0, 1.0]])  # data with zeros
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x))


METRIC = pjax.Metric(parameters=3.0, hidden=0.5, outputs=2.0)
SOLVERS = (
    pjax.AlternatingProjections(),
    pjax.AlternatingProjections(momentum=0.8),
    pjax.AlternatingProjections(relaxation=1.4),
    pjax.AlternatingProjections(relaxation=0.6, momentum=0.5),
)


def disagreement(program, solver, dtype, steps, spaces=(free_of, copies_of)):
    """By how much the parameters of the two lowerings differ, relative to their size."""
    params, x = start(dtype)
    traced = problem_of(functools.partial(execute, program), params, x)
    known = {f"params['{k}']": w for k, w in (("v", 1.5), ("b", 4.0), ("w", 2.5))}
    names = [v.name for v in traced.graph.parameters]
    paths = {k: w for k, w in known.items() if any(n.startswith(k) for n in names)}
    metric = pjax.Metric(parameters=3.0, hidden=0.5, outputs=2.0, paths=paths)

    @jax.jit
    def both(params, x):
        traced = problem_of(functools.partial(execute, program), params, x, metric=metric)
        ends = []
        for space in (make(traced) for make in spaces):
            carry = solver.init(space, traced.values)
            carry, _ = jax.lax.scan(
                lambda carry, _, space=space: solver.step(space, carry), carry, None, length=steps
            )
            values = dict(zip(traced.graph.variables, solver.values(space, carry), strict=True))
            ends.append([values[p] for p in traced.graph.parameters])
        return ends

    free, copied = both(params, x)
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in free)
    assert all(np.isfinite(leaf).all() for leaf in free)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(free, copied, strict=True)) / scale


FIXED = {
    "two layers": (
        (("dense", 1, 0), ("relu", 0, 0), ("dense", 0, 1)),
        (("cross_entropy", 0),),
    ),
    "residual, tied": (
        (("dense", 0, 0), ("relu", 0, 0), ("tied dense", 0, 0), ("add", 0, 1), ("relu", 0, 0)),
        (("squared_error", 0), ("box", 1)),
    ),
    "identity needed": (
        (("relu", 0, 0), ("add", 0, 1), ("product", 0, 1), ("constrain", 0, 0)),
        (("equal", 0),),
    ),
    "two hidden": (
        (("dense", 0, 0), ("tied dense", 1, 1), ("product", 0, 1), ("mix", 0, 0)),
        (("cross_entropy", 0), ("box", 1)),
    ),
    "scaled by zeros": (
        (("dense", 0, 0), ("scale", 0, 0), ("inner", 0, 1), ("slice", 0, 1)),
        (("squared_error", 0),),
    ),
    "a product of two views": (
        (("slice", 0, 0), ("product", 0, 1), ("dense", 0, 0), ("product", 0, 1)),
        (("squared_error", 0), ("box", 1)),
    ),
    "views": (
        (("transposed dense", 0, 0), ("concatenate", 0, 1), ("broadcast", 0, 0), ("sub", 0, 1)),
        (("equal", 0), ("box", 1)),
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", FIXED)
def test_copies_and_none_agree_on_known_graphs(name):
    solver = SOLVERS[list(FIXED).index(name) % len(SOLVERS)]
    with _compat.enable_x64(True):
        assert disagreement(FIXED[name], solver, jnp.float64, 8) < 1e-10


@given(programs(), st.sampled_from(SOLVERS))
@SETTINGS
def test_copies_and_none_agree_in_float64(program, solver):
    with _compat.enable_x64(True):
        error = disagreement(program, solver, jnp.float64, 6)
    assert error < 1e-9


@given(programs(), st.sampled_from(SOLVERS))
@settings(SETTINGS, max_examples=2)
def test_copies_and_none_agree_in_float32(program, solver):
    error = disagreement(program, solver, jnp.float32, 4)
    assert error < 1e-4


LEAVING = [  # whose iterates leave the set in which copies agree
    pjax.DouglasRachford(relaxation=0.8),
    pjax.DifferenceMap(beta=0.8),
    pjax.AlternatingProjections(momentum=0.5),
]
SHORT = (short_of, copies_of)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", FIXED)
def test_copies_that_data_tell_apart_need_not_be_kept(name):
    solver = LEAVING[list(FIXED).index(name) % len(LEAVING)]
    with _compat.enable_x64(True):
        assert disagreement(FIXED[name], solver, jnp.float64, 8, SHORT) < 1e-10


@given(programs(), st.sampled_from(LEAVING))
@settings(SETTINGS, max_examples=3)
def test_copies_that_data_tell_apart_need_not_be_kept_in_any_program(program, solver):
    with _compat.enable_x64(True):
        assert disagreement(program, solver, jnp.float64, 6, SHORT) < 1e-9


def network(w, x, y):
    h = jnp.tanh(x @ w["a"] + w["b"][None])
    pjax.constrain(w["a"], pjax.sets.Ball(2.0))
    return pjax.losses.squared_error(h @ w["c"], y)


def images(w, x, y):
    """A convolution of data, with strides and padding."""
    h = jax.lax.conv_general_dilated(x.reshape(5, 1, 2, 4), w["a"], (1, 2), "SAME")
    return pjax.losses.squared_error(jnp.abs(h).reshape(5, -1)[:, :3] + w["b"][None], y)


SHAPES = {network: {"a": (8, 6), "b": (6,), "c": (6, 3)}, images: {"a": (2, 1, 2, 3), "b": (3,)}}


@pytest.mark.parametrize("function", SHAPES)
@pytest.mark.parametrize(
    "metric", [None, pjax.Metric(parameters=3.0, hidden=0.5)], ids=["default", "other"]
)
@pytest.mark.parametrize("schedule", ["parallel", "product"])
@pytest.mark.thinned(3)
def test_a_layer_of_data_by_a_solver_that_needs_copies(function, metric, schedule):
    """The same updates as with all copies; the points are those of the copies, spread."""
    rng = np.random.default_rng(5)
    with _compat.enable_x64(True):
        w = {k: jnp.asarray(rng.normal(size=shape)) for k, shape in SHAPES[function].items()}
        x, y = jnp.asarray(rng.normal(size=(5, 8))), jnp.asarray(rng.normal(size=(5, 3)))
        ends = []
        for copies in (None, True):
            solver = pjax.DouglasRachford()
            options = {"metric": metric, "schedule": schedule, "copies": copies}
            train = pjax.project(function, solver=solver, steps=5, **options)
            moved, state = w, train.init(w)
            for _ in range(2):
                moved, state, info = train.update(moved, state, x, y)
            ends.append((moved, info.gap, info.history))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), *ends)


def test_what_is_kept_is_small():
    w = {k: jnp.ones(shape) for k, shape in SHAPES[network].items()}
    traced = problem_of(network, w, jnp.ones((50, 8)), jnp.ones((50, 3)))
    short, full = (make(traced).expand(traced.values) for make in SHORT)
    sizes = [sum(x.size for x in jax.tree.leaves(point)) for point in (short, full)]
    # Of the first layer; those of the second one have two factors that move.
    assert sizes[1] - sizes[0] == 50 * 6 * 8 - (6 * 8 + 50 * 6)


def test_inner_products_of_points_anywhere():
    """They are sums over all copies, each with its weight, however these are kept."""
    rng = np.random.default_rng(7)

    @functools.partial(jax.jit, static_argnums=0)
    def products(make, *arguments):
        metric = pjax.Metric(parameters=3.0, hidden=0.5)
        traced = problem_of(network, *arguments, metric=metric)
        space = make(traced)
        start = space.expand(traced.values)
        on_first, on_second = (space.project(start, group)[0] for group in space.groups)
        return jnp.stack([space.inner(on_first, x) for x in (start, on_first, on_second)])

    with _compat.enable_x64(True):
        w = {k: jnp.asarray(rng.normal(size=shape)) for k, shape in SHAPES[network].items()}
        x, y = jnp.asarray(rng.normal(size=(5, 8))), jnp.asarray(rng.normal(size=(5, 3)))
        found = [products(make, w, x, y) for make in SHORT]
    np.testing.assert_allclose(*found, rtol=1e-10)


def flat_weights(space):
    """The metric of a point of copies: one weight per copy."""
    return [
        jnp.broadcast_to(space.problem.weights[c][i], c.operands[i].shape) for c, i in space.edges
    ]


def inner(weights, p, q):
    return sum(float(jnp.sum(w * a * b)) for w, a, b in zip(weights, p, q, strict=True))


def distance(weights, p, q):
    apart = [a - b for a, b in zip(p, q, strict=True)]
    return inner(weights, apart, apart)


def random_point(space, seed):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=c.operands[i].shape)) for c, i in space.edges)


@pytest.mark.parametrize("name", FIXED)
def test_projections_onto_a_colour_are_projections(name):
    """Idempotent; no point of the set is nearer; and the distances are those of the metric."""
    with _compat.enable_x64(True):
        params, x = start(jnp.float64)
        traced = problem_of(functools.partial(execute, FIXED[name]), params, x, metric=METRIC)
        space = copies_of(traced)
        weights = flat_weights(space)
        checked = 0
        for side, group in enumerate(space.groups):
            if any(getattr(c, "rule", None) and c.rule.family == "loss" for c in group):
                continue  # a loss is a step, not a set
            project = jax.jit(functools.partial(space.project, group=group))
            outside = random_point(space, side)
            point, distances = project(outside)
            again, none = project(point)
            for a, b in zip(point, again, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-8)
            assert float(jnp.sum(none)) < 1e-12
            length = distance(weights, point, outside)
            # The constraints' own distances leave out how far copies were from each other.
            assert float(jnp.sum(distances)) <= length + 1e-9
            for seed in range(5, 10):
                other, _ = project(random_point(space, seed))
                assert length <= distance(weights, other, outside) + 1e-9
            checked += 1
        assert checked


def test_linear_colours_project_orthogonally():
    """For affine sets ``u − Pu`` is orthogonal to the set in the metric, and P never expands."""
    a = jnp.asarray(np.random.default_rng(4).normal(size=(3, 2)))

    def linear(params):
        h = params["x"] @ a.astype(params["x"].dtype) + params["c"][None]
        k = h[:, ::-1] - 2 * params["y"]
        pjax.constrain(jnp.sum(k, 0), pjax.sets.Equal(1.0))
        pjax.constrain(h[:1], pjax.sets.Equal(0.5))
        pjax.constrain(params["x"] + 0.0, pjax.sets.Equal(0.25))

    with _compat.enable_x64(True):
        rng = np.random.default_rng(5)
        params = {
            "x": jnp.asarray(rng.normal(size=(2, 3))),
            "y": jnp.asarray(rng.normal(size=(2, 2))),
            "c": jnp.asarray(rng.normal(size=2)),
        }
        metric = pjax.Metric(parameters=2.0, hidden=0.5, outputs=3.0, paths={"params['c']": 7.0})
        traced = problem_of(linear, params, metric=metric)
        space = copies_of(traced)
        weights = flat_weights(space)
        u, v = random_point(space, 0), random_point(space, 1)
        for group in space.groups:
            project = jax.jit(functools.partial(space.project, group=group))
            (pu, _), (pv, _) = project(u), project(v)
            normal = [a - b for a, b in zip(u, pu, strict=True)]
            along = [a - b for a, b in zip(pu, pv, strict=True)]
            between = [a - b for a, b in zip(u, v, strict=True)]
            assert abs(inner(weights, normal, along)) < 1e-8
            assert inner(weights, along, along) <= inner(weights, between, between) + 1e-9
            middle = tuple(0.5 * (a + b) for a, b in zip(u, v, strict=True))
            for a, b, c in zip(project(middle)[0], pu, pv, strict=True):
                np.testing.assert_allclose(a, 0.5 * (b + c), atol=1e-9)


def nearest_rows(x, w, b, z, wx, ww, wb, wz):
    """Explicit loops: each row ``z = x·w + b`` by bisection; means of the copies."""
    rows, columns = z.shape
    xs, ws, bs, out = np.zeros_like(x), np.zeros_like(w), np.zeros_like(b), np.zeros_like(z)
    kappa = np.sqrt(wx * ww)
    for n in range(rows):
        for m in range(columns):

            def point(t, n=n, m=m):
                r = np.sqrt(ww / wx)
                copy_x = (x[n] + t * r * w[:, m]) / (1 - t * t)
                copy_w = (w[:, m] + t / r * x[n]) / (1 - t * t)
                return copy_x, copy_w, b[m] + kappa * t / wb, z[n, m] - kappa * t / wz[n, m]

            low, high = -1.0, 1.0
            for _ in range(100):
                t = 0.5 * (low + high)
                copy_x, copy_w, copy_b, copy_z = point(t)
                low, high = (t, high) if copy_x @ copy_w + copy_b < copy_z else (low, t)
            copy_x, copy_w, copy_b, out[n, m] = point(t)
            xs[n] += copy_x / columns
            ws[:, m] += copy_w / rows
            bs[m] += copy_b / rows
    return xs, ws, bs, out


def test_one_step_of_a_dense_layer_against_loops():
    """Parameters weigh once per row that reads them, hidden units once per column."""
    with _compat.enable_x64(True):
        rng = np.random.default_rng(6)
        h, w, b = rng.normal(size=(3, 2)), rng.normal(size=(2, 4)), rng.normal(size=4)
        z = rng.normal(size=(3, 4))
        params = {"b": jnp.asarray(b), "h": jnp.asarray(h), "w": jnp.asarray(w)}

        def dense(params):
            y = params["h"] @ params["w"] + params["b"][None]
            pjax.constrain(y, pjax.sets.Equal(0.5))
            pjax.constrain(y[:1], pjax.sets.Equal(-0.5))

        metric = pjax.Metric(
            outputs=2.0, paths={"params['h']": 0.7, "params['w']": 3.0, "params['b']": 1.3}
        )
        traced = problem_of(dense, params, metric=metric)
        space = free_of(traced)
        layer = traced.graph.constraints[0]
        (group,) = [g for g in space.groups if layer in g]
        assert [v.name for v in traced.graph.parameters] == [
            "params['b']",
            "params['h']",
            "params['w']",
        ]
        moved, _ = space.project((*traced.values[:3], jnp.asarray(z)), group)
        # The first row of y has two readers, the rest one.
        wz = 2.0 * np.asarray([[2.0], [1.0], [1.0]]) * np.ones((3, 4))
        np.testing.assert_allclose(traced.mass(layer.out), wz)
        xs, ws, bs, out = nearest_rows(h, w, b, z, 0.7, 3.0, 1.3, wz)
        for got, want in zip(moved, (bs, xs, ws, out), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-9)
        # The other colour: the mean of what the two sets ask of the first row.
        (others,) = [g for g in space.groups if layer not in g]
        moved, _ = space.project((*traced.values[:3], jnp.asarray(z)), others)
        np.testing.assert_allclose(moved[3], [[0.0] * 4, [0.5] * 4, [0.5] * 4], atol=1e-12)


def test_cyclic_projections_over_two_constraints_are_alternating():
    """One set and one producer: the cycle is the two colours, in that order."""
    with _compat.enable_x64(True):
        rng = np.random.default_rng(7)
        params = {
            "w": jnp.asarray(rng.normal(size=(2, 3))),
            "v": jnp.asarray(rng.normal(size=(3, 2))),
        }

        def product(params):
            pjax.constrain(params["w"] @ params["v"], pjax.sets.Equal(1.0))

        ap = pjax.project(product, solver=pjax.AlternatingProjections(), steps=7)
        cp = pjax.project(product, solver=pjax.CyclicProjections(), steps=7)
        (first, info), (second, other) = ap(params), cp(params)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        np.testing.assert_allclose(info.gap, other.gap, atol=1e-12)
        assert float(info.gap) > 1e-3  # they are still on their way


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(pjax.AlternatingProjections(), id="AP", marks=pytest.mark.slow),
        pytest.param(pjax.DouglasRachford(), id="DR"),
    ],
)
def test_what_is_masked_by_infinity_is_free(solver):
    """However the mask is written; what it hides asks nothing of anyone."""

    def problem():
        keys = jax.random.split(jax.random.key(0), 3)
        p = {"q": jax.random.normal(keys[0], (4, 3)), "r": jax.random.normal(keys[1], (3, 2))}
        x, y = jax.random.normal(keys[2], (5, 4)), jnp.eye(2)[jnp.arange(5) % 2]

        def loss(p, scores):
            return pjax.losses.squared_error(jax.nn.softmax(scores) @ p["r"], y)

        def added(p, low):
            return loss(p, x @ p["q"] + low)

        def chosen(p, keep):
            return loss(p, jnp.where(keep, x @ p["q"], -jnp.inf))

        return p, *(pjax.project(f, solver=solver, steps=5) for f in (added, chosen))

    def alike(p, one, other, unmoved):
        for new in (one, other):
            np.testing.assert_allclose(new["q"][:, 1], p["q"][:, 1], rtol=unmoved)
            assert jnp.all(new["q"][:, 0] != p["q"][:, 0])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one, other)

    keep = jnp.array([True, False, True])[None]
    p, added, _ = problem()
    alike(p, *(added(p, jnp.where(keep, 0.0, low))[0] for low in (-jnp.inf, -1e9)), unmoved=0)
    with _compat.enable_x64(True):  # two programs, each with its own rounding
        p, added, chosen = problem()
        answers = added(p, jnp.where(keep, 0.0, -jnp.inf))[0], chosen(p, keep)[0]
        alike(p, *answers, unmoved=1e-15)
