"""Any scalar objective: what is found in it, its proximal operators, and what it does to moves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.optimize import minimize

import pjax_trace as pjax
from pjax_trace import losses
from pjax_trace.metric import Metric
from pjax_trace.minimise import minimise, minimise_elements
from pjax_trace.problem import Problem
from pjax_trace.rule import Weights

KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[0], (32, 5))
W = {
    "a": 0.4 * jax.random.normal(KEYS[1], (5, 16)),
    "b": 0.3 * jax.random.normal(KEYS[2], (16, 3)),
}
LABELS = jax.random.randint(KEYS[3], (32,), 0, 3)
T = jax.random.normal(KEYS[4], (32, 3))
P = jax.nn.softmax(T)
POSITIVE = (T > 0).astype(jnp.float32)
MASK = jnp.arange(32) % 3 > 0
CLASS_WEIGHTS = jnp.array([1.0, 2.0, 3.0])


def net(w, x=X):
    return jnp.tanh(x @ w["a"]) @ w["b"]


def integer_ce(w):
    return optax.softmax_cross_entropy_with_integer_labels(net(w), LABELS)


def sparse_group(w):
    rows = jnp.sqrt(jnp.sum(w["a"] ** 2, 1))
    return jnp.mean((net(w) - T) ** 2) + 0.01 * jnp.sum(rows) + 0.001 * jnp.sum(jnp.abs(w["a"]))


def gaussian(w):
    out = net(w)
    mean, spread = out[:, :1], out[:, 1:2]
    return jnp.mean(0.5 * (T[:, :1] - mean) ** 2 * jnp.exp(-spread) + 0.5 * spread)


def triplet(w):
    a, p, n = net(w), net(w, X + 0.1), net(w, X[::-1])
    gap = jnp.sum((a - p) ** 2, -1) - jnp.sum((a - n) ** 2, -1)
    return jnp.mean(jnp.maximum(0, gap + 1))


def contrastive(w):
    scores = net(w) @ net(w, X + 0.1).T
    own = jnp.arange(32)
    one = optax.softmax_cross_entropy_with_integer_labels(scores, own).mean()
    return (one + optax.softmax_cross_entropy_with_integer_labels(scores.T, own).mean()) / 2


def with_entropy(w):
    p = jax.nn.softmax(net(w))
    return integer_ce(w).mean() - 0.01 * jnp.mean(-jnp.sum(p * jnp.log(p), -1))


def z_loss(w):
    return (integer_ce(w) + 1e-3 * jax.nn.logsumexp(net(w), -1) ** 2).mean()


def focal(w):
    return optax.sigmoid_focal_loss(net(w), POSITIVE).mean()


def weighted(w):
    weight = CLASS_WEIGHTS[LABELS]
    return jnp.sum(weight * integer_ce(w)) / jnp.sum(weight)


# What a user writes, and the loss nodes that it must become.
OBJECTIVES = {
    "integer labels": (lambda w: integer_ce(w).mean(), ["LogSumExp"]),
    "one-hot": (
        lambda w: optax.softmax_cross_entropy(net(w), jax.nn.one_hot(LABELS, 3)).mean(),
        ["LogSumExp"],
    ),
    "smoothed": (
        lambda w: optax.softmax_cross_entropy(
            net(w), optax.smooth_labels(jax.nn.one_hot(LABELS, 3), 0.1)
        ).mean(),
        ["LogSumExp"],
    ),
    "gathered": (
        lambda w: -jnp.take_along_axis(jax.nn.log_softmax(net(w)), LABELS[:, None], 1).mean(),
        ["LogSumExp"],
    ),
    "logsumexp": (
        lambda w: (jax.nn.logsumexp(net(w), -1) - net(w)[jnp.arange(32), LABELS]).mean(),
        ["LogSumExp"],
    ),
    "class weights": (weighted, ["LogSumExp"]),
    "masked": (
        lambda w: jnp.where(MASK, integer_ce(w), 0).sum() / jnp.sum(MASK, dtype=jnp.float32),
        ["LogSumExp"],
    ),
    "kl": (lambda w: optax.kl_divergence(jax.nn.log_softmax(net(w)), P).mean(), ["LogSumExp"]),
    "sigmoid": (
        lambda w: optax.sigmoid_binary_cross_entropy(net(w), POSITIVE).mean(),
        ["Elementwise"],
    ),
    "mean square": (lambda w: jnp.mean((net(w) - T) ** 2), ["Quadratic"]),
    "sum of squares": (lambda w: optax.l2_loss(net(w), T).sum(-1).mean(), ["Quadratic"]),
    "l2_loss": (lambda w: optax.l2_loss(net(w), T).mean(), ["Quadratic"]),
    "square of tanh": (lambda w: jnp.mean((jnp.tanh(net(w)) - T) ** 2), ["Quadratic"]),
    "huber": (lambda w: optax.huber_loss(net(w), T).mean(), ["Elementwise"]),
    "hinge": (lambda w: optax.hinge_loss(net(w), jnp.sign(T)).mean(), ["Elementwise"]),
    "log cosh": (lambda w: optax.log_cosh(net(w), T).mean(), ["Elementwise"]),
    "absolute": (lambda w: jnp.abs(net(w) - T).mean(), ["Elementwise"]),
    "poisson": (lambda w: (jnp.exp(net(w)) - jnp.abs(T) * net(w)).mean(), ["Elementwise"]),
    "by hand": (
        lambda w: -(P * jnp.log(jax.nn.softmax(net(w)))).sum(-1).mean(),
        ["Joint"],
    ),
    "focal": (focal, ["Joint"]),
    "cosine": (lambda w: optax.cosine_distance(net(w), T, epsilon=1e-6).mean(), ["Joint"]),
    "gaussian": (gaussian, ["Joint"]),
    "triplet": (triplet, ["Joint"]),
    "contrastive": (contrastive, ["LogSumExp", "Joint"]),
    "entropy": (with_entropy, ["Joint"]),
    "z-loss": (z_loss, ["LogSumExp", "Quadratic"]),
    "two sides": (lambda w: jnp.mean((net(w) - net(w, X[::-1]) - T) ** 2), ["Quadratic"]),
    "stopped": (
        lambda w: jnp.mean((net(w) - 0.5 * jax.lax.stop_gradient(net(w, X + 0.1)) - 1) ** 2),
        ["Quadratic"],
    ),
    "l2": (
        lambda w: integer_ce(w).mean() + 1e-3 * sum(jnp.sum(v * v) for v in w.values()),
        ["LogSumExp", "Quadratic", "Quadratic"],
    ),
    "elastic": (
        lambda w: (
            integer_ce(w).mean() + 1e-3 * (jnp.abs(w["a"]).sum() + 0.5 * jnp.sum(w["a"] ** 2))
        ),
        ["LogSumExp", "Elementwise"],
    ),
    "sparse group": (sparse_group, ["Quadratic", "Elementwise", "Norm"]),
    "activations": (
        lambda w: integer_ce(w).mean() + 0.01 * jnp.abs(jnp.tanh(X @ w["a"])).mean(),
        ["LogSumExp", "Elementwise"],
    ),
    "square of a loss": (lambda w: losses.squared_error(net(w), T) ** 2, ["Joint"]),
    "critic": (lambda w: jnp.mean(net(w)[:16]) - jnp.mean(net(w)[16:]), ["Linear"]),
    "our own beside": (
        lambda w: losses.cross_entropy(net(w), LABELS) + 0.1 * jnp.abs(net(w) - T).mean(),
        ["LossRule", "Elementwise"],
    ),
    "our own of two": (lambda w: losses.squared_error(net(w), 2 * net(w, X + 1)), ["Quadratic"]),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name):
    """The nodes that are found; the value; moves downhill; and that it is learned."""
    function, kinds = OBJECTIVES[name]
    train = pjax.project(function)
    assert [type(c.rule).__name__ for c in train.trace(W).losses] == kinds
    state, start = train.init(W), function(W)
    w, state, info = train.update(W, state)
    np.testing.assert_allclose(info.value, start, rtol=1e-5, atol=1e-6)
    slope = jax.grad(function)(W)
    ahead = jax.tree.map(lambda new, old, g: jnp.vdot(new - old, g), w, W, slope)
    assert sum(ahead.values()) < 0
    for _ in range(15):
        w, state, info = train.update(w, state)
    assert function(w) < start


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ["gathered", "sigmoid", "by hand", "elastic", "contrastive"])
def test_objectives_by_a_classical_solver(name):
    function, _ = OBJECTIVES[name]
    solver = pjax.AlternatingProjections(momentum=0.9)
    train = pjax.project(function, solver=solver, steps=20)
    w, info = train(W)
    np.testing.assert_allclose(info.value, function(W), rtol=1e-5)
    assert function(w) < function(W)


def moved(function, w=W, **options):
    train = pjax.project(function, **options)
    state = train.init(w)
    for _ in range(3):
        w, state, _ = train.update(w, state)
    return w


BY_AP = {"schedule": "parallel", "steps": 5}


@pytest.mark.parametrize(
    ("options", "every"),
    [
        pytest.param({}, 5, id="sweep"),
        pytest.param(BY_AP, 9, id="AP"),
        pytest.param({}, 1, id="sweep, all", marks=pytest.mark.slow),
        pytest.param(BY_AP, 1, id="AP, all", marks=pytest.mark.slow),
    ],
)
def test_recognised_losses_move_as_our_own(options, every):
    pairs = [
        (lambda w: integer_ce(w).mean(), lambda w: losses.cross_entropy(net(w), LABELS)),
        (OBJECTIVES["one-hot"][0], lambda w: losses.cross_entropy(net(w), LABELS)),
        (OBJECTIVES["gathered"][0], lambda w: losses.cross_entropy(net(w), LABELS)),
        (OBJECTIVES["sum of squares"][0], lambda w: losses.squared_error(net(w), T)),
        (OBJECTIVES["huber"][0], lambda w: losses.huber(net(w), T)),
        (OBJECTIVES["absolute"][0], lambda w: losses.absolute_error(net(w), T)),
        (OBJECTIVES["hinge"][0], lambda w: losses.hinge(net(w), jnp.sign(T))),
        (OBJECTIVES["sigmoid"][0], lambda w: losses.binary_cross_entropy(net(w), T > 0)),
        (OBJECTIVES["kl"][0], lambda w: losses.kl(net(w), P)),
        (OBJECTIVES["gathered"][0], lambda w: losses.nll(jax.nn.log_softmax(net(w)), LABELS)),
    ]  # fmt: skip
    # In float64, where rounding cannot hide a difference or be taken for one.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = {name: w.astype(jnp.float64) for name, w in W.items()}
        for theirs, ours in pairs[::every]:
            one, other = moved(theirs, wide, **options), moved(ours, wide, **options)
            for a, b in zip(one.values(), other.values(), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.max(np.abs(a)))


def test_the_scale_of_the_objective_does_not_matter_to_a_sweep():
    one = moved(lambda w: jnp.mean((net(w) - T) ** 2))
    for other in (lambda w: 7.0 * jnp.sum((net(w) - T) ** 2), OBJECTIVES["l2_loss"][0]):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, moved(other)
        )


ELEMENTS = {
    "absolute": lambda x, t: jnp.abs(x - t),
    "huber": lambda x, t: jnp.where(jnp.abs(x - t) < 1, 0.5 * (x - t) ** 2, jnp.abs(x - t) - 0.5),
    "hinge": lambda x, t: jnp.maximum(0, 1 - jnp.sign(t) * x),
    "sigmoid": lambda x, t: jnp.logaddexp(x, 0) - x * (t > 0).astype(x.dtype),
    "log cosh": lambda x, t: jnp.logaddexp(x - t, t - x),
    "pinball": lambda x, t: jnp.maximum(0.9 * (t - x), -0.1 * (t - x)),
    "poisson": lambda x, t: jnp.exp(x) - jnp.abs(t) * x,
    "fourth power": lambda x, t: (x - t) ** 4,
}
ROWS = {
    "cross entropy": lambda x, t: -jnp.sum(jnp.log(jax.nn.softmax(x)) * jax.nn.softmax(t), -1),
    "focal": lambda x, t: (
        -jnp.sum((1 - jax.nn.softmax(x)) ** 2 * jnp.log(jax.nn.softmax(x)) * jax.nn.softmax(t), -1)
    ),
    "of a sum": lambda x, t: jnp.sum(x - t, -1) ** 4 + 0.1 * jnp.sum(x**2, -1),
    "log of squares": lambda x, t: jnp.log(1 + jnp.sum((x - t) ** 2, -1)),
}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*ELEMENTS, *ROWS])
def test_proximal_operators_against_float64(name, count):
    """``λ f(x) + ½ |x − s|²`` within 1e-4 of what other code finds, λ from 0.01 to 100."""
    columns, f = (1, ELEMENTS[name]) if name in ELEMENTS else (3, ROWS[name])
    rng = np.random.default_rng(len(name))
    s, t = rng.normal(size=(2, count, columns)).astype(np.float32)
    s, lam = 3 * s, (10 ** rng.uniform(-2, 2, (count, 1))).astype(np.float32)

    def function(s, t, lam):
        value = f(s @ jnp.eye(columns), t)
        return jnp.sum(lam.reshape(count, *[1] * (value.ndim - 1)) * value)

    graph = pjax.project(function).trace(s, t, lam)
    (c,) = graph.losses

    @jax.jit
    def prox(s, t, lam):
        problem = Problem.forward(graph, Metric(), [s], [t, lam])
        operands = problem.operands(c, problem.start)
        weights = Weights(tuple(1.0 if v else None for v in c.variable), None)
        operands[-1] = operands[-1] / graph.rows
        return c.rule.project(c.params, operands, None, weights).moments[0].first

    x = np.asarray(prox(s, t, lam), np.float64)
    with jax.enable_x64(True):
        s, t, lam = (jnp.asarray(a, jnp.float64) for a in (s, t, lam))

        def cost(x, s, t, lam):
            return jnp.sum(lam * f(x, t)) + 0.5 * jnp.sum((x - s) ** 2)

        value = jax.vmap(cost)(jnp.asarray(x), s, t, lam)
        if columns == 1:  # a grid that zooms in
            low, high = s - 400, s + 400
            for _ in range(14):
                grid = low + (high - low) * jnp.linspace(0, 1, 301)[None]
                costs = lam * f(grid, t) + 0.5 * (grid - s) ** 2
                best = jnp.take_along_axis(grid, jnp.nanargmin(costs, 1)[:, None], 1)
                by = (high - low) / 150
                low, high = best - by, best + by
            reference = jnp.nanmin(costs, 1)
        else:

            @jax.jit
            @jax.vmap
            def search(s, t, lam):
                return minimize(cost, s, (s, t, lam), method="BFGS", tol=1e-9).fun

            reference = search(s, t, lam)
            if name == "log of squares":  # it has several minima, and the search may find either
                reference = jnp.minimum(jnp.maximum(reference, value), jax.vmap(cost)(s, s, t, lam))
        assert np.all(value - reference <= 1e-4 * jnp.abs(reference) + 1e-6)


def test_minimise_is_no_worse_than_the_goal_and_stays_finite():
    goal = jnp.linspace(-3, 3, 13)
    for f in (lambda x: -3 * x**2, lambda x: jnp.sin(5 * x), lambda x: -jnp.exp(x), jnp.zeros_like):
        x = minimise_elements(f, goal, 1.0)
        (y,) = minimise(lambda xs, f=f: jnp.sum(f(xs[0]), 1), [goal[:, None]], [1.0])
        for z in (x, y[:, 0]):
            assert np.all(np.isfinite(z))
            assert np.all(f(z) + 0.5 * (z - goal) ** 2 <= f(goal) + 1e-5)


def test_zeros_of_the_lasso_are_zeros():
    def lasso(w):
        return jnp.mean((X @ w - X @ jnp.arange(5.0)) ** 2) + 2.0 * jnp.sum(jnp.abs(w))

    train = pjax.project(lasso)
    w = jnp.ones(5)
    state = train.init(w)
    for _ in range(400):
        w, state, _ = train.update(w, state)
    assert w[0] == 0 and np.all(w[3:] > 1)

    def groups(w):
        true = jnp.zeros((5, 2)).at[2].set(3.0)
        return jnp.mean((X @ w - X @ true) ** 2) + losses.penalty(w, group=0.3, axis=1)

    train = pjax.project(groups)
    w = jnp.ones((5, 2))
    state = train.init(w)
    for _ in range(400):
        w, state, _ = train.update(w, state)
    norms = jnp.linalg.norm(w, axis=1)
    assert np.all(norms[jnp.array([0, 1, 3, 4])] == 0) and norms[2] > 1


def test_penalties_weigh_what_the_gradient_weighs():
    """A fixed point of the sweep is one of gradient descent: ridge regression, solved exactly."""
    penalty, y = 0.2, X @ jnp.arange(5.0)

    def ridge(w):
        return jnp.mean((X @ w - y) ** 2) + penalty * jnp.sum(w**2)

    solver = pjax.Sweep(decay=None, damping=1e4)
    train = pjax.project(ridge, solver=solver, acceleration=pjax.Averaging(0.98))
    w = jnp.ones(5)
    state = train.init(w)
    for _ in range(1500):
        w, state, _ = train.update(w, state)
    exact = jnp.linalg.solve(X.T @ X / 32 + penalty * jnp.eye(5), X.T @ y / 32)
    np.testing.assert_allclose(train.averaged(w, state), exact, atol=2e-3)


def test_masked_rows_do_not_count_whatever_they_are():
    mask = jnp.arange(32) > 0
    t = T.at[0].set(jnp.nan)
    losses_of_rows = [
        lambda z, t: jnp.mean((z - t) ** 2, -1),
        lambda z, t: jnp.mean(jnp.abs(z - t), -1),
        lambda z, t: jnp.log(1 + jnp.sum((z - t) ** 2, -1)),
    ]
    for of_rows in losses_of_rows:

        def function(w, t, mask, of_rows=of_rows):
            rows = jnp.where(mask, of_rows(net(w), t), 0)
            return jnp.sum(rows) / jnp.sum(mask, dtype=jnp.float32)

        for options in ({}, {"schedule": "parallel", "steps": 3}):
            train = pjax.project(function, **options)
            w, _, info = train.update(W, train.init(W), t, mask)
            expected = jnp.mean(of_rows(net(W)[1:], T[1:]))
            np.testing.assert_allclose(info.value, expected, rtol=1e-5)
            assert function(w, t, mask) < expected


class Norm(eqx.Module):
    mean: jax.Array


def test_auxiliary_outputs():
    def function(w, x, y):
        h = x @ w["a"]
        statistics = Norm(0.9 + 0.1 * jnp.mean(h, 0))
        z = jnp.tanh(h) @ w["b"]
        aux = {"stats": statistics, "hit": jnp.argmax(z, -1) == y, "name": "net", "up": z > 0}
        return losses.cross_entropy(z, y), aux

    for options in ({}, {"schedule": "parallel", "steps": 2}):
        train = pjax.project(function, has_aux=True, **options)
        _, _, info = train.update(W, train.init(W), X, LABELS)
        value, expected = function(W, X, LABELS)
        jax.tree.map(
            np.testing.assert_allclose,
            eqx.filter(info.aux, eqx.is_array),
            eqx.filter(expected, eqx.is_array),
        )
        same = jax.tree.map(
            lambda a, b: getattr(a, "dtype", a) == getattr(b, "dtype", b), info.aux, expected
        )
        assert all(jax.tree.leaves(same)) and isinstance(info.aux["stats"], Norm)
        np.testing.assert_allclose(info.value, value, rtol=1e-6)
    assert pjax.project(lambda w: jnp.sum(w["a"] ** 2))(W)[1].aux is None

    def scanned(carry, _):
        w, state = carry
        w, state, info = train.update(w, state, X, LABELS)
        return (w, state), info.aux["hit"]

    _, hits = jax.lax.scan(scanned, (W, train.init(W)), length=2)
    assert hits.shape == (2, 32) and hits.dtype == bool


def test_auxiliary_outputs_may_be_made_of_the_objective():
    def function(w):
        loss = integer_ce(w).mean()
        return loss, (jnp.exp(loss), loss)

    _, info = pjax.project(function, has_aux=True)(W)
    np.testing.assert_allclose(info.aux, function(W)[1], rtol=1e-5)


def test_losses_are_named_and_add_up():
    def function(w):
        with jax.named_scope("auxiliary"):
            extra = 0.1 * jnp.mean(jnp.abs(X @ w["a"]))
        return 3.0 * integer_ce(w).mean() + extra - 0.5 * losses.squared_error(net(w), T) + 2.0

    _, info = pjax.project(function)(W)
    assert set(info.losses) == {"cross_entropy", "auxiliary", "squared_error"}
    np.testing.assert_allclose(info.value, function(W), rtol=1e-5)
    np.testing.assert_allclose(
        info.losses["auxiliary"], 0.1 * jnp.mean(jnp.abs(X @ W["a"])), rtol=1e-5
    )
    assert info.losses["squared_error"] < 0
    text = str(pjax.project(function).trace(W))
    assert "auxiliary" in text


def test_custom_losses():
    def far(x, t):
        return jnp.sum(jnp.abs(x - t))

    def shrunk(x, lam, t):
        return t + jnp.sign(x - t) * jnp.maximum(jnp.abs(x - t) - lam, 0)

    known, found = losses.custom(far, shrunk, name="far"), losses.custom(far)
    a = moved(lambda w: jnp.mean(jax.vmap(known)(net(w), T)), schedule="parallel", steps=5)
    b = moved(lambda w: jnp.mean(jax.vmap(found)(net(w), T)), schedule="parallel", steps=5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)
    train = pjax.project(lambda w: jnp.mean(jax.vmap(known)(net(w), T)))
    assert [c.name for c in train.trace(W).losses] == ["far"]
    with pytest.raises(pjax.InputError, match="must return a scalar"):
        losses.custom(lambda x: x)(T)
    with pytest.raises(pjax.InputError, match="λ must be positive"):
        known(T, T, lam=-1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.huber(T, T[:3]), "same shape"),
        (lambda: losses.huber(T, T, delta=0.0), "delta must be positive"),
        (lambda: losses.hinge(T, jnp.zeros_like(T)), "-1 or 1"),
        (lambda: losses.binary_cross_entropy(T, 2.0), "between 0 and 1"),
        (lambda: losses.nll(T, T), "integer labels"),
        (lambda: losses.kl(jnp.zeros(()), 1.0), "axis of classes"),
        (lambda: losses.absolute_error(LABELS, 1.0), "must be floats"),
        (lambda: losses.huber(jnp.zeros((0, 3)), 1.0), "no elements"),
        (lambda: losses.huber(T, T, lam=jnp.ones(3)), "one number"),
        (lambda: losses.penalty({"n": 3}, l2=1.0), "no floating-point array"),
        (lambda: losses.penalty(W, l1=-1.0), "must not be negative"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(pjax.InputError, match=message):
        call()


def test_what_is_no_objective():
    for function, message in (
        (lambda w: net(w), "scalar of a floating-point type.*float32\\[32,3\\]"),
        (lambda w: jnp.argmax(net(w)), "scalar of a floating-point type"),
        (lambda w: (jnp.mean(net(w)), net(w)), "has_aux=True"),
        (lambda w: jnp.mean(X), "no output constraint"),
    ):
        with pytest.raises(pjax.TraceError, match=message):
            pjax.project(function).trace(W)
    for function, message in (
        (lambda w: jnp.mean(net(w)), "must return a pair"),
        (lambda w: ((jnp.mean(net(w)), net(w)), 1.0), "one scalar"),
        (lambda w: (net(w), 1.0), "the first of what it returns"),
    ):
        with pytest.raises(pjax.TraceError, match=message):
            pjax.project(function, has_aux=True).trace(W)


def test_explain_says_what_was_taken(capsys):
    pjax.project(with_entropy).explain(W)
    text = capsys.readouterr().out
    assert "Joint" in text and "to 1e-4, local" in text
    pjax.project(OBJECTIVES["huber"][0]).explain(W)
    assert "Elementwise" in capsys.readouterr().out


def test_an_objective_beside_sets():
    def function(w):
        w = pjax.constrain(w, pjax.sets.Ball(1.0))
        return jnp.mean((X @ w - X @ jnp.ones(5)) ** 2)

    train = pjax.project(function)
    w, state = jnp.zeros(5), train.init(jnp.zeros(5))
    for _ in range(100):
        w, state, info = train.update(w, state)
    np.testing.assert_allclose(jnp.linalg.norm(w), 1.0, atol=1e-5)
    assert info.value < function(jnp.zeros(5))


def test_a_loss_of_parameters_that_data_look_up_is_asked_by_samples():
    """Codes are trusted to move as far as an embedding is, not all the way to few samples."""
    codes, index = jnp.eye(8, 3), jnp.array([0, 2, 2, 5])

    def looked_up(codes, index, z):
        return jnp.mean((codes[index] - z) ** 2)

    def fixed(codes, z):
        return jnp.mean((codes[jnp.array([0, 2, 2, 5])] - z) ** 2)

    z = 3.0 + jnp.arange(12.0).reshape(4, 3)
    graph = pjax.project(looked_up).trace(codes, index, z)
    assert not graph.penalties and graph.rows == 4
    assert pjax.project(fixed).trace(codes, z).penalties
    train = pjax.project(looked_up, solver=pjax.Sweep(trust=0.01))
    new, _, _ = train.update(codes, train.init(codes), index, z)
    moved = jnp.linalg.norm(new - codes, axis=1)
    assert jnp.all((moved > 0) == jnp.array([True, False, True, False, False, True, False, False]))
    assert jnp.sqrt(jnp.mean((new - codes) ** 2)) <= 0.01 * jnp.sqrt(2) * 1.001
    assert jnp.all((new - codes)[index] * (z - codes[index]) > 0)


@pytest.mark.parametrize("axis", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_what_sorts_is_not_of_single_elements(axis):
    """A proximal step lowers the loss, whichever way the elements are in order."""

    def fit(w):
        scores = jnp.sort(w, axis)
        return jnp.mean(jax.nn.logsumexp(scores, -1) - scores[:, 0])

    w = jnp.array([[1.5, -0.25, 2.0], [-0.5, 0.75, -1.0]])
    solve = pjax.project(fit, solver=pjax.AlternatingProjections())
    problem = Problem.forward(solve.trace(w), pjax.Metric(), *solve.arrays(w))
    for c in problem.graph.losses:
        start = problem.operands(c, problem.start)
        result = c.rule.project(c.params, start, None, problem.weights_at(c))
        moved = [result.moments[i].first / result.moments[i].mass for i in c.views]
        before, after = (c.rule.apply(c.params, *x) for x in (start[:-1], [*moved, *start[1:-1]]))
        assert jnp.sum(start[-1] * (after - before)) < 0


def test_a_loss_of_a_view_that_no_equation_makes():
    """Of a real Fourier transform and back, the classical solvers see a sum through other views."""

    def fit(w, u, v):
        h = jnp.fft.irfft(jnp.fft.rfft(w) * (0.5 + 0.5j), 3)
        chosen = jnp.where(v > 0, jnp.sqrt(jnp.abs(v)), jnp.tanh(v))
        cosine = jnp.sum(h * u) / jnp.sqrt(jnp.sum(h * h) * jnp.sum(u * u) + 0.1)
        return jnp.sum(jnp.square(chosen)) - cosine

    w, v = jnp.array([[1.5, -0.25, 2.0], [-0.5, 0.75, -1.0]]), jnp.array([0.5, -1.0])
    solve = pjax.project(fit, (0, 1, 2), solver=pjax.AlternatingProjections())
    problem = Problem.forward(solve.trace(w, w, v), pjax.Metric(), *solve.arrays(w, w, v))
    assert all(jnp.all(jnp.isfinite(x)) for x in problem.values)
