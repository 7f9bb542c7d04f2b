"""Arguments as users give them: numbers, weak types, labels, sets, buffers that are gone."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import losses, sets

X = jax.random.normal(jax.random.key(0), (16, 4))
Y = jax.random.normal(jax.random.key(1), (16, 2))
W = jax.random.normal(jax.random.key(2), (4, 2))
L = jnp.arange(16) % 2
SOLVERS = {"sweep": None, "AP": pjax.AlternatingProjections(), "DR": pjax.DouglasRachford()}


class Counted:
    """A function that knows how often it was traced."""

    def __init__(self, function):
        self.function = function
        self.traced = 0

    def __call__(self, *args, **kwargs):
        self.traced += 1
        return self.function(*args, **kwargs)


def test_weakly_typed_parameters_compile_once():
    params = {"w": W, "s": jnp.asarray(1.0), "n": np.ones(2, np.float32)}
    assert params["s"].weak_type
    fit = Counted(lambda p, x, y: losses.squared_error((x @ p["w"]) * p["s"] * p["n"][None], y))
    train = pjax.project(fit)
    state = train.init(params)
    with jax.numpy_rank_promotion("allow"):
        for _ in range(4):
            params, state, _ = train.update(params, state, X, Y)
    assert fit.traced == 1
    assert params["s"].dtype == jnp.float32 and not params["s"].weak_type


def test_a_counter_that_comes_back_compiles_once():
    """It goes in with a weak type, as some libraries make it, and comes back without one."""
    counter = jnp.asarray(0)
    assert counter.weak_type

    def stepped(w, counter, x, y):
        return jnp.mean((x @ w - y) ** 2), counter + 1

    fit = Counted(stepped)
    train = pjax.project(fit, has_aux=True)
    w, state = W, train.init(W)
    for _ in range(3):
        w, state, info = train.update(w, state, counter, X, Y)
        counter = info.aux
    assert fit.traced == 1 and counter == 3 and counter.dtype == jnp.asarray(0).dtype


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("place", ["argument", "keyword", "container"])
def test_numbers_that_change_are_data(kind, place):
    def scaled(w, x, y, given=None, *, named=None):
        number = named if place == "keyword" else given["rate"] if place == "container" else given
        return losses.squared_error((x @ w) * (1.0 / (1 + number)), y)

    def call(function, *args, value):
        if place == "keyword":
            return function(*args, named=value)
        return function(*args, {"rate": value} if place == "container" else value)

    fit = Counted(scaled)
    train = pjax.project(fit, acceleration=())
    state, w = train.init(W), W
    for i in range(3):
        w, state, info = call(train.update, w, state, X, Y, value=kind(i))
    traced = fit.traced
    for i in range(3, 8):
        before = call(scaled, w, X, Y, value=kind(i))
        w, state, info = call(train.update, w, state, X, Y, value=kind(i))
        np.testing.assert_allclose(info.loss_values[0], before, rtol=1e-5)
    assert fit.traced == traced <= 3


def test_numbers_that_must_be_known_stay_known():
    def fit(w, x, y, depth, step):
        for _ in range(depth):
            x = jnp.tanh(x @ w) + step * 0.01
        return losses.squared_error(x, y)

    counted = Counted(fit)
    train = pjax.project(counted, acceleration=())
    w = 0.5 * jax.random.normal(jax.random.key(0), (4, 4))
    y = jnp.ones((16, 4))
    state = train.init(w)
    for step, depth in enumerate((1, 2, 3, 2, 1, 3)):
        before = fit(w, X, y, depth, step)
        w, state, info = train.update(w, state, X, y, depth, step)
        np.testing.assert_allclose(info.loss_values[0], before, rtol=1e-4)
    traced = counted.traced
    for step in range(6, 12):
        w, state, _ = train.update(w, state, X, y, 1 + step % 3, step)
    assert counted.traced == traced


def test_flags_are_part_of_the_program():
    def fit(w, x, y, training, name):
        out = x @ w if training else x @ (2 * w)
        return losses.squared_error(out if name == "a" else -out, y)

    train = pjax.project(fit, acceleration=())
    state = train.init(W)
    for flags in ((True, "a"), (False, "a"), (True, "b")):
        _, _, info = train.update(W, state, X, Y, *flags)
        np.testing.assert_allclose(info.loss_values[0], fit(W, X, Y, *flags), rtol=1e-5)


class Coded(sets.Set):
    """Some elements are fixed, the others on a grid; with a field of every kind."""

    index: jax.Array
    mask: jax.Array
    levels: int
    strict: bool
    key: jax.Array
    value: float

    def project(self, x):
        assert type(self.levels) is int and type(self.strict) is bool
        assert jnp.issubdtype(self.index.dtype, jnp.integer) and self.mask.dtype == bool
        noise = 0 * jax.random.normal(self.key, x.shape, x.dtype)
        grid = jnp.round(x * self.levels) / self.levels + noise
        return jnp.where(self.mask, x.at[self.index].set(self.value), grid)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("raw", [False, True])
def test_the_fields_of_a_set_keep_their_kinds(solver, raw):
    key = jax.random.PRNGKey(3) if raw else jax.random.key(3)
    coded = Coded(jnp.array([0]), jnp.array([True, False, False]), 4, True, key, 0.25)
    start, wanted = jnp.array([1.0, 0.3, 0.6]), jnp.array([0.25, 0.25, 0.5])
    options = {"solver": SOLVERS[solver]}
    for fit, args in (
        (lambda p: pjax.constrain(p, coded), ()),
        (lambda p, s: pjax.constrain(p, s), (coded,)),  # as an argument
        (lambda p: jax.vmap(lambda q: pjax.constrain(q, coded))(p[None])[0], ()),
    ):
        p, info = pjax.project(fit, **options)(start, *args)
        np.testing.assert_allclose(p, wanted, atol=1e-6)
    half, _ = pjax.project(lambda p: pjax.constrain(p, coded), **options)(
        start.astype(jnp.bfloat16)
    )
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
def test_rows_that_do_not_count(loss):
    scores = X @ W
    labels = L.at[jnp.array([1, 4, 5])].set(-100)
    kept = np.flatnonzero(labels != -100)
    assert float(loss(scores, labels, ignore=-100)) == pytest.approx(
        float(loss(scores[kept], labels[kept])), rel=1e-5
    )
    slope = jax.grad(lambda s: loss(s, labels, ignore=-100))(scores)
    np.testing.assert_array_equal(slope[labels == -100], 0.0)
    np.testing.assert_allclose(
        slope[kept], jax.grad(lambda s: loss(s, labels[kept]))(scores[kept]), atol=1e-6
    )
    assert float(loss(scores, jnp.full(16, -100), ignore=-100)) == 0
    assert float(loss(scores, jnp.full(16, 1), ignore=1)) == 0
    for strength in (2.0, jnp.linspace(1.0, 2.0, 16)):
        loss(scores, labels, ignore=-100, lam=strength)


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_that_do_not_count_teach_nothing(solver):
    labels = (X @ jnp.ones(4) > 0).astype(int)
    wrong = jnp.where(jnp.arange(16) < 6, -100, labels)

    def fit(w, x, labels):
        return losses.cross_entropy(x @ w, labels, ignore=-100)

    train = pjax.project(fit, solver=SOLVERS[solver])
    w, state = W, train.init(W)
    for _ in range(20):
        w, state, info = train.update(w, state, X, wrong)
    assert bool(info.finite) and fit(w, X, wrong) < 0.6 * fit(W, X, wrong)
    alone = pjax.project(fit, solver=pjax.Sweep(damping=1e3), acceleration=())
    padded, _ = alone(W, X, wrong)
    other, _ = alone(W, X.at[0].set(-X[0]), wrong)  # a row that does not count
    assert float(jnp.linalg.norm(padded - other)) < 1e-2 * float(jnp.linalg.norm(padded - W))


BAD = {
    "floats": (L.astype(float), r"float32.*labels.astype\(int\)"),
    "booleans": (L > 0, r"bool.*labels.astype\(int\)"),
    "column": (L[:, None], r"\(16, 1\).*labels\[..., 0\]"),
    "transposed": (L[:4], r"\(16,\), not \(4,\)"),
    "too large": (L.at[3].set(2), r"label 2 is not one of the 2 classes.*0 to 1"),
    "ignored": (L.at[3].set(-100), r"label -100.*1 of 16.*ignore=-100"),
    "sums": (jnp.ones((16, 2)), r"row 0 of labels, \[1. 1.\], is no distribution.*lam="),
    "negative": (jnp.tile(jnp.array([2.0, -1.0]), (16, 1)), "is no distribution"),
    "not a number": (jnp.full((16, 2), jnp.nan), "is no distribution"),
    "words": (np.array(["a"] * 16), "labels must be numbers"),
}


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_label(bad, loss):
    labels, match = BAD[bad]
    with pytest.raises(pjax.InputError, match=match):
        loss(X @ W, labels)


@pytest.mark.parametrize("bad", ["too large", "ignored", "sums", "negative", "not a number"])
def test_labels_that_are_known_only_in_an_update(bad):
    labels, match = BAD[bad]
    train = pjax.project(lambda w, x, labels: losses.cross_entropy(x @ w, labels))
    with pytest.raises(pjax.NonFiniteError, match="cross_entropy.*" + match) as caught:
        train(W, X, labels)
    np.testing.assert_array_equal(caught.value.params, W)


def test_labels_that_are_right():
    scores = X @ W
    soft = jax.nn.softmax(2 * scores)
    for labels in (soft, soft.astype(jnp.bfloat16), jax.nn.one_hot(L, 2, dtype=int)):
        assert np.isfinite(losses.cross_entropy(scores, labels))
    assert np.isfinite(losses.cross_entropy(scores, soft.at[0].set(0.0)))
    for ignore in (True, 1.0, "a"):
        with pytest.raises(pjax.InputError, match="ignore must be an integer"):
            losses.cross_entropy(scores, L, ignore=ignore)
    with pytest.raises(pjax.InputError, match="ignore=-1 is a label, but the labels are rows"):
        losses.cross_entropy(scores, soft, ignore=-1)


def fit(w, x, y):
    return losses.squared_error(x @ w, y)


TRAIN = pjax.project(fit)


def gone(x):
    """A copy whose buffer was given away."""
    x = jnp.array(x)
    jax.jit(lambda x: x & x if x.dtype == bool else x + 1, donate_argnums=0)(x)
    return x


def test_buffers_that_are_gone_are_named():
    state = TRAIN.init(W)
    for args, name in (
        ((gone(W), state, X, Y), "w is gone"),
        ((W, state, gone(X), Y), "x is gone"),
        ((W, jax.tree.map(gone, state), X, Y), "the state is gone"),
    ):
        with pytest.raises(pjax.InputError, match=name + ".*donate"):
            TRAIN.update(*args)
    with pytest.raises(pjax.InputError, match="w is gone"):
        TRAIN.init(gone(W))
    giving = pjax.project(fit, donate=True)
    w = jnp.array(W)
    state = giving.init(w)
    new, _, _ = giving.update(w, state, X, Y)
    with pytest.raises(pjax.InputError, match="w is gone"):
        giving.update(w, giving.init(new), X, Y)
    with pytest.raises(pjax.InputError, match="the state is gone"):
        giving.update(new, state, X, Y)


class Long(sets.Set):
    """Any point, after a while."""

    def project(self, x):
        return x + 0 * jax.lax.fori_loop(0, 100_000, lambda i, y: jnp.sin(y + i), x)


@pytest.mark.parametrize("donate", [False, True])
def test_an_interrupted_update_loses_nothing(donate):
    def long(w, x, y):
        pjax.constrain(w, Long())
        return fit(w, x, y)

    train = pjax.project(long, donate=donate)
    w, state, _ = train.update(jnp.array(W), train.init(W, X, Y), X, Y)  # compiled now
    for wait in (0.05, 0.06, 0.07):
        timer = threading.Timer(wait, signal.raise_signal, (signal.SIGINT,))
        timer.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            for _ in range(10_000):
                w, state, _ = train.update(w, state, X, Y)
        timer.join()
        if w.is_deleted():
            assert donate and isinstance(caught.value, pjax.Interrupted)
            w, state = caught.value.params, caught.value.state
        assert np.isfinite(w).all() and not state.steps.is_deleted()
    w, state, info = train.update(w, state, X, Y)
    assert bool(info.finite)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
