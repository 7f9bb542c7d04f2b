"""The default is right on programs that are not plain networks: each of these was wrong once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pjax_trace as pjax
from pjax_trace import losses, sets

from .learning import LIMIT


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def updates(fit, params, *args, count=1, **options):
    """The parameters after some updates."""
    train = pjax.project(fit, **options)
    state = train.init(params)
    for _ in range(count):
        params, state, _ = train.update(params, state, *args)
    return params


@pytest.mark.parametrize("start", [0.0, 5.0, -100.0])
def test_a_scale_in_front_of_a_loss(start):
    """For every scale and sign; the scale is data here, so that one program is compiled."""

    def fit(p, scale):
        return losses.squared_error(scale * p, 1.0)

    train = pjax.project(fit)
    for scale in (1e-3, -1e-3, 0.1, 3.0, -3.0, 10.0, 1e3, -1e3):
        p = jnp.full(3, start)
        state = train.init(p)
        for _ in range(150):
            p, state, _ = train.update(p, state, jnp.float32(scale))
        np.testing.assert_allclose(scale * p, 1.0, rtol=1e-3)


@pytest.mark.parametrize("scale", [3.0, -3.0, 10.0])
def test_a_scale_that_is_known(scale):
    p = updates(lambda p: losses.squared_error(scale * p, 1.0), jnp.zeros(()), count=60)
    np.testing.assert_allclose(scale * p, 1.0, rtol=1e-3)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_scale_that_is_solved_for(shape, scale):
    x = jnp.array([[1.0, -2.0, 3.0], [0.5, 1e-2, 4.0]])
    with jax.numpy_rank_promotion("allow"):
        a = updates(
            lambda a, x: losses.squared_error(a * x, 2 * scale * x), jnp.zeros(shape), x, count=80
        )
    np.testing.assert_allclose(a, jnp.full(shape, 2 * scale), rtol=1e-2)


@pytest.mark.parametrize("scale", [3.0, -3.0, 1e-3, 1e3])
def test_a_set_behind_a_scale_holds_at_once(scale):
    p = updates(lambda p: pjax.constrain(scale * p, sets.Equal(1.0)), jnp.array([5.0, -4.0]))
    np.testing.assert_allclose(scale * p, 1.0, rtol=1e-5)


def thrice(p):
    for _ in range(3):
        pjax.constrain(p, sets.Equal(1.0))


def nested(p):
    for lower, upper in ((-1.0, 2.0), (0.0, 1.0), (0.5, 3.0)):
        pjax.constrain(p, sets.Box(lower, upper))


class Cone(sets.Set):
    """``{y : |y[:-1]| <= y[-1]}``."""

    convex = True

    def project(self, x):
        size, top = jnp.linalg.norm(x[:-1]), x[-1]
        mean = jnp.maximum((size + top) / 2, 0)
        edge = jnp.concatenate([mean * x[:-1] / jnp.maximum(size, 1e-30), mean[None]])
        return jnp.where(size <= top, x, edge)


def three_kinds(p):
    pjax.constrain(p, sets.Ball(1.0))
    pjax.constrain(p, sets.Box(-0.5, 0.6))
    pjax.constrain(p, Cone())


@pytest.mark.parametrize("problem", [thrice, nested, three_kinds])
def test_several_sets_hold_together(problem):
    """To 1e-4 of the size, whatever momentum makes of the way there."""
    p = jnp.array([5.0, -4.0, 1.0])
    train = pjax.project(problem)
    state = train.init(p)
    for _ in range(4):
        p, state, info = train.update(p, state)
        assert float(info.gap) <= 1e-4 * max(1.0, float(jnp.linalg.norm(p)))


class Plane(sets.Set):
    """``{y : sum(y) = 1}``."""

    convex = True

    def project(self, x):
        return x + (1 - jnp.sum(x)) / x.size


def test_several_convex_sets_are_projected_onto():
    """The nearest point of the simplex, and not only some point of it."""

    def simplex(p):
        pjax.constrain(p, sets.NonNegative())
        pjax.constrain(p, Plane())

    p = normal(0, 7)
    with jax.numpy_dtype_promotion("standard"):
        nearest = optax.projections.projection_simplex(p)
    np.testing.assert_allclose(updates(simplex, p), nearest, atol=1e-4)


class Signs(sets.Set):
    """``{-s, s}``, which is not convex."""

    size: float = eqx.field(static=True, default=0.5)

    def project(self, x):
        return jnp.where(x < 0, -self.size, self.size)


def test_a_set_that_is_not_convex_keeps_a_latent_point():
    """Two hundred short moves each end at the old sign; together they lead to the other one."""
    x, w = normal(0, 128, 6), 0.5 * jnp.sign(normal(1, 6, 2))

    def fit(w, x, y):
        pjax.constrain(w, Signs())
        return losses.squared_error(x @ w, y)

    y, start = x @ w, 0.5 * jnp.sign(normal(2, 6, 2))
    assert np.any(start != w)
    train = pjax.project(fit)
    state = train.init(start)
    found = start
    for _ in range(150):
        found, state, info = train.update(found, state, x, y)
        assert float(info.gap) == 0
    np.testing.assert_array_equal(np.abs(found), 0.5)
    np.testing.assert_array_equal(found, w)
    scanned = jax.lax.scan(
        lambda carry, _: (train.update(*carry, x, y)[:2], None),
        (start, train.init(start, x, y)),
        length=150,
    )
    np.testing.assert_array_equal(scanned[0][0], w)
    # Other parameters than the state's own are taken as they are.
    moved, _, _ = train.update(-found, state, x, y)
    np.testing.assert_array_equal(moved, -found)


def test_paths_that_cancel():
    """``log(exp(h + 6)) - h / 2 - 3`` is h / 2."""

    def half(h):
        return jnp.log(jnp.exp(h + 6)) - h / 2 - 3

    x, goal, w = normal(0, 256, 8), normal(1, 8, 4), normal(2, 8, 4)

    def fit(w, x):
        return losses.squared_error(half(x @ w), half(x @ goal))

    assert fit(updates(fit, w, x, count=600), x) < 1e-3 * fit(w, x)


ACTIVATIONS = {
    "softplus": lambda x: jnp.log(1 + jnp.exp(x)),
    "sigmoid": lambda x: 1 / (1 + jnp.exp(-x)),
    "swish": lambda x: x / (1 + jnp.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + jnp.tanh(0.79788 * (x + 0.044715 * x**3))),
    "log softmax": lambda x: x - jnp.log(jnp.sum(jnp.exp(x), -1, keepdims=True)),
    "softmax": jax.nn.softmax,
    "half": lambda x: jnp.log(jnp.exp(x + 6)) - x / 2 - 3,
    "norm": lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "gate": lambda x: x * jax.nn.sigmoid(x[:, ::-1]),
    "root": lambda x: jnp.sqrt(1 + x * x),
    "difference": lambda x: jnp.exp(x) / (1 + jnp.exp(x)) - jnp.exp(-x) / (1 + jnp.exp(-x)),
    "sine": jnp.sin,
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(s, marks=pytest.mark.slow) for s in range(12, 500))]
)
def test_smooth_programs_hand_over_the_adjoint(seed):
    random = np.random.default_rng(seed)
    depth, names = random.integers(1, 4), list(ACTIVATIONS)
    chosen = [ACTIVATIONS[names[random.integers(len(names))]] for _ in range(depth)]
    steep, skips, scaled = 10 ** random.uniform(-1, 0.7), *(random.random(2) < 0.4)

    def draw(*shape):
        return random.normal(size=shape)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        layers = [(0.6 * draw(4, 4), 0.3 * draw(4), 1 + 0.3 * draw(4)) for _ in range(depth)]
        params, x = jax.tree.map(jnp.asarray, ((layers, draw(4, 3)), draw(6, 4)))

        def fit(params, x):
            h = x
            for f, (w, b, g) in zip(chosen, params[0], strict=True):
                z = f(steep * (h @ w + b[None])) * (g[None] if scaled else 1.0)
                h = h + z if skips else z
            return losses.cross_entropy(h @ params[1], jnp.arange(6) % 3)

        new, _ = pjax.project(fit, solver=LIMIT, acceleration=())(params, x)
        slopes = jax.grad(fit)(params, x)
        for old, moved, slope in zip(*map(jax.tree.leaves, (params, new, slopes)), strict=True):
            step, slope = np.ravel(old - moved), np.ravel(slope)
            if np.linalg.norm(slope) > 1e-3:
                cosine = step @ slope / np.linalg.norm(step) / np.linalg.norm(slope)
                assert cosine >= 0.999


X, Y, W = normal(0, 16, 8), normal(1, 16, 4), normal(2, 8, 4)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("form", ["rows", "losses", "sums"])
def test_a_parameter_that_is_read_often(form, count):
    """It moves as if it were read once."""
    xs, ys = jnp.split(X, count), jnp.split(Y, count)

    def once(w):
        return losses.squared_error(jnp.tanh(X @ w), Y)

    def often(w):
        if form == "rows":
            return losses.squared_error(jnp.concatenate([jnp.tanh(x @ w) for x in xs]), Y)
        if form == "losses":
            each = (losses.squared_error(jnp.tanh(x @ w), y) for x, y in zip(xs, ys, strict=True))
            return sum(each) / count
        return losses.squared_error(jnp.tanh(sum(X @ w for _ in range(count)) / count), Y)

    np.testing.assert_allclose(updates(often, W), updates(once, W), atol=2e-6)


def test_an_unrolled_network_moves_as_its_scan():
    def cell(p, h, x):
        return jnp.tanh(x @ p["u"] + h @ p["w"] + p["b"][None])

    def scanned(p, x, y):
        def step(h, x):
            h = cell(p, h, x)
            return h, h

        return losses.squared_error(jax.lax.scan(step, jnp.zeros((4, 6)), x)[1] @ p["o"], y)

    def unrolled(p, x, y):
        h, hs = jnp.zeros((4, 6)), []
        for t in range(6):
            h = cell(p, h, x[t])
            hs.append(h)
        return losses.squared_error(jnp.stack(hs) @ p["o"], y)

    p = {"u": normal(1, 3, 6), "w": normal(2, 6, 6), "b": normal(3, 6), "o": normal(4, 6, 2)}
    x, y = normal(5, 6, 4, 3), normal(6, 6, 4, 2)
    one, other = updates(scanned, p, x, y), updates(unrolled, p, x, y)
    for name in p:
        np.testing.assert_allclose(one[name], other[name], atol=2e-6)


@pytest.mark.parametrize(
    "read",
    [
        lambda p: p + 1.5,
        lambda p: 2.0 * p,
        lambda p: 1.0 - p[::-1],
        lambda p: p.astype(jnp.bfloat16).astype(jnp.float32),
    ],
    ids=["shifted", "scaled", "reversed", "rounded"],
)
def test_a_scan_reads_a_parameter_as_its_view(read):
    """What does not change in a scan may be any view of a parameter, as in an unrolled loop."""
    x, y, w = normal(0, 5, 4, 3), normal(1, 4, 3), 0.5 * normal(2, 3, 3)

    def scanned(w):
        h, _ = jax.lax.scan(lambda h, x: (jnp.tanh(h @ read(w) + x), None), jnp.zeros((4, 3)), x)
        return losses.squared_error(h, y)

    def unrolled(w):
        h = jnp.zeros((4, 3))
        for t in range(5):
            h = jnp.tanh(h @ read(w) + x[t])
        return losses.squared_error(h, y)

    one, other = updates(scanned, w), updates(unrolled, w)
    assert np.max(np.abs(one - w)) > 1e-4
    np.testing.assert_allclose(one, other, atol=2e-6)


def test_what_is_subtracted_moves_the_other_way():
    """Data less a parameter, in the middle of a program and at its end."""
    x, b = normal(0, 64, 3), normal(1, 2)
    wanted = x @ normal(2, 3, 2) + (1.0 - b)[None]

    def fit(p):
        return losses.squared_error(x @ p["w"] + (1.0 - p["b"])[None], wanted)

    start = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    fitted = updates(fit, start, count=150)
    assert float(fit(fitted)) < 1e-3 * float(fit(start))
    np.testing.assert_allclose(fitted["b"], b, atol=0.1)
    point = updates(lambda p: losses.squared_error(2.0 - p, jnp.ones(3)), normal(3, 3), count=150)
    np.testing.assert_allclose(point, 1.0, atol=1e-2)


def test_sets_on_shifted_parameters():
    """A ball around 1 and one around -1/2, of which the nearest common point is found."""

    def fit(p):
        pjax.constrain(p - 1.0, sets.Ball(1.5))
        pjax.constrain(p + 0.5, sets.Ball(1.5))

    start = np.asarray([4.0, 0.25])
    found = updates(fit, jnp.asarray(start, jnp.float32))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 2, 1001)]), -1).reshape(-1, 2)
    inside = np.all([np.linalg.norm(grid - c, axis=1) <= 1.5 for c in (1.0, -0.5)], axis=0)
    nearest = min(grid[inside], key=lambda point: np.linalg.norm(point - start))
    np.testing.assert_allclose(found, nearest, atol=1e-2)


@pytest.mark.parametrize(
    "transform",
    [
        optax.sgd(1.0),
        optax.trace(0.9),
        optax.chain(optax.trace(0.5), optax.clip_by_global_norm(1.0)),
        optax.MultiSteps(optax.sgd(1.0), every_k_schedule=4),
    ],
)
def test_transformations_of_steps_and_of_gradients_lead_down(transform):
    """Whether a transformation descends is found out, also if it answers with delay."""

    def fit(w):
        return losses.squared_error(jnp.tanh(X @ w), Y)

    with jax.numpy_dtype_promotion("standard"):
        moved = updates(fit, W, count=24, acceleration=transform)
    assert float(fit(moved)) < 0.97 * float(fit(W))


def test_averages_are_of_points_of_the_sets():
    """A heavy ball leaves the box and is projected back onto it before it counts."""

    def fit(w):
        pjax.constrain(w, sets.Box(-0.1, 0.1))
        return losses.squared_error(X @ w, 5 * Y)

    train = pjax.project(fit, acceleration=(pjax.Momentum(0.95), pjax.Averaging()))
    params = 0.1 * jnp.tanh(W)
    state = train.init(params)
    for _ in range(30):
        params, state, _ = train.update(params, state)
    for point in (params, train.averaged(params, state)):
        assert float(jnp.max(jnp.abs(point))) <= 0.1 + 1e-6


def test_a_layer_that_is_applied_again_is_a_scan_over_nothing():
    w, v, x, y = normal(0, 5, 5), normal(1, 5, 2), normal(2, 12, 5), normal(3, 12, 2)

    def tied(p):
        h = jnp.tanh(jnp.tanh(x @ p[0]) @ p[0])
        return losses.squared_error(h @ p[1], y)

    def scanned(p):
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ p[0]), None), x, length=2)
        return losses.squared_error(h @ p[1], y)

    for one, other in zip(updates(tied, (w, v)), updates(scanned, (w, v)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_tied_embeddings_are_trusted_once():
    table, tokens = normal(0, 10, 4), jnp.arange(10)

    def fit(table):
        return losses.cross_entropy(table[tokens] @ table.T, (tokens + 1) % 10)

    def in_parts(table):
        h = jnp.concatenate([table[tokens[:5]], table[tokens[5:]]])
        return losses.cross_entropy(h @ table.T, (tokens + 1) % 10)

    moved = updates(fit, table)
    size = max(float(jnp.sqrt(jnp.mean(table**2))), (2 / 4) ** 0.5)
    assert 0 < float(jnp.sqrt(jnp.mean((moved - table) ** 2))) < 1.01 * 5e-3 * size
    np.testing.assert_allclose(updates(in_parts, table), moved, atol=2e-6)


@pytest.mark.parametrize("path", ["w", "w['a']"])
def test_a_weight_of_the_metric_divides_the_step(path):
    w = {"a": normal(0, 8, 4), "b": normal(1, 4)}

    def fit(w):
        return losses.squared_error(jnp.tanh(X @ w["a"] + w["b"][None]), Y)

    def moved(weight):
        metric = (
            pjax.Metric(parameters=weight) if path == "w" else pjax.Metric(paths={path: weight})
        )
        new = updates(fit, w, metric=metric, solver=pjax.Sweep(share=None), acceleration=())
        return np.asarray(new["a"] - w["a"])

    plain = moved(1.0)
    for weight in (1e-3, 0.5, 2.0, 1e3):
        np.testing.assert_allclose(weight * moved(weight), plain, rtol=2e-2, atol=2e-4)


def mapped_loss(p):
    return jnp.mean(jax.vmap(losses.margin)(p, jnp.abs(p)))


def mapped_set(p):
    jax.vmap(lambda x, goal: pjax.constrain(x, sets.Equal(goal)))(p, 2 * p)


def mapped_scale(p):
    rounded = jax.vmap(lambda x, scale: pjax.quantize(x, 4, scale))(p, jnp.abs(p))
    return losses.squared_error(rounded, 1.0)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (mapped_loss, "margin at .*test_any_program.*only the first argument may depend"),
        (mapped_set, "Equal at .*test_any_program.*only the first argument may depend"),
        (mapped_scale, "quantize at .*test_any_program.*scale.*data"),
    ],
)
def test_what_must_be_data_is_refused_under_vmap(fit, message):
    with pytest.raises(pjax.TraceError, match=message):
        pjax.project(fit)(normal(0, 3, 2))


def test_a_state_of_other_accelerations_is_refused():
    def fit(w):
        return losses.squared_error(X @ w, Y)

    kinds = (pjax.Momentum(), pjax.Averaging())
    state = pjax.project(fit, acceleration=kinds).init(W)
    for others in (kinds[::-1], (pjax.Anderson(), pjax.Averaging()), kinds[:1]):
        with pytest.raises(pjax.InputError, match="the state is that of other accelerations"):
            pjax.project(fit, acceleration=others).update(W, state)
    pjax.project(fit, acceleration=(pjax.Momentum(0.5), kinds[1])).update(W, state)


def test_an_empty_batch_is_refused():
    def fit(w, x, y):
        return losses.squared_error(x @ w, y)

    with pytest.raises(pjax.InputError, match="empty|no rows"):
        pjax.project(fit)(W, jnp.zeros((0, 8)), jnp.zeros((0, 4)))


def test_saturated_hidden_units_do_not_break_the_solve():
    """With few directions left in X, its low-rank approximation is of lower rank than asked for."""
    ends = jnp.sign(normal(0, 2, 16))
    x = ends[jnp.arange(32) % 2]

    def fit(p):
        return losses.squared_error(x @ p[0] + p[1][None], jnp.ones((32, 1)))

    w, b = updates(fit, (normal(1, 16, 1), jnp.zeros(1)), count=3)
    assert np.all(np.isfinite(w)) and np.all(np.isfinite(b))


def test_a_forward_pass_that_is_not_finite_is_named():
    def fit(w, x):
        return losses.squared_error(jnp.log(jax.nn.sigmoid(x @ w)), jnp.zeros((16, 4)))

    with pytest.raises(pjax.NonFiniteError, match="the forward pass of log at .*test_any_program"):
        pjax.project(fit)(W, 1e4 * X)


def in_two_dtypes(w, x):
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def normalized(h):
    return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True))


HALF = {
    "dot": lambda w, x: x @ w,
    "mixed": in_two_dtypes,
    "round": lambda w, x: jnp.round(3 * jnp.tanh(in_two_dtypes(w, x))),
    "norm": lambda w, x: normalized(x @ w),
    "tied": lambda w, x: jnp.tanh(in_two_dtypes(w, x).astype(w.dtype)) @ w.T,
    "square": lambda w, x: jnp.einsum("ij,ij->i", w, w, preferred_element_type=jnp.float32),
    "ratio": lambda w, x: jnp.round(x @ w) / (1 + jnp.exp(x @ w)),
}
CLASSICAL = {"solver": pjax.AlternatingProjections(), "steps": 2}
RELATIVE = {**CLASSICAL, "metric": pjax.Metric(relative=True)}


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        *((name, jnp.bfloat16, {}) for name in HALF),
        *((name, jnp.float16, {}) for name in ("mixed", "tied")),
        *((name, jnp.bfloat16, CLASSICAL) for name in ("mixed", "round")),
        *((name, jnp.bfloat16, RELATIVE) for name in ("mixed", "norm")),
    ],
)
def test_half_precision_where_no_promotion_is_allowed(name, dtype, options):
    """Tests run under strict promotion, which concerns what users write, not what is made of it."""

    def fit(w, x):
        out = HALF[name](w, x)
        return losses.squared_error(out, jnp.ones(out.shape, out.dtype))

    w, x = (jnp.asarray(normal(i, *s), dtype) for i, s in enumerate([(3, 2), (5, 3)]))
    new, info = pjax.project(fit, **options)(w, x)
    assert new.dtype == dtype and bool(info.finite) and np.any(new != w)
