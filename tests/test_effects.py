"""What a function does beside computing, once for a forward pass: it prints, calls, checks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, io_callback

import pjax_trace as pjax
from pjax_trace import losses

pytestmark = pytest.mark.thinned(4)

X = jax.random.normal(jax.random.key(0), (6, 4))
Y = jax.random.normal(jax.random.key(1), (6, 2))
W = jax.random.normal(jax.random.key(2), (4, 2))
SOLVERS = {"sweep": None, "AP": pjax.AlternatingProjections()}
STEPS = {"sweep": 1, "AP": 3}
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def fit(w, x, y):
    return losses.squared_error(jnp.tanh(x @ w), y)


class Calls(list):
    """What was called with what."""

    __hash__ = object.__hash__  # pyright: ignore

    def __call__(self, *args):
        self.append(tuple(np.array(a) for a in args))
        return np.float32(1.0)


def updated(function, solver, count=1):
    train = pjax.project(function, solver=SOLVERS[solver], steps=STEPS[solver], acceleration=())
    w, state = W, train.init(W)
    for _ in range(count):
        w, state, info = train.update(w, state, X, Y)
        jax.effects_barrier()
        assert bool(info.finite)
    return w


def on_data(calls):
    def function(w, x, y):
        jax.debug.callback(calls, jnp.sum(x))
        return fit(w, x, y)

    return function, [jnp.sum(X)]


def on_a_parameter(calls):
    def function(w, x, y):
        jax.debug.callback(calls, w)
        return fit(w, x, y)

    return function, [W]


def on_a_hidden_variable(calls):
    def function(w, x, y):
        h = x @ w
        jax.debug.callback(calls, h)
        return losses.squared_error(jnp.tanh(h), y)

    return function, [X @ W]


def on_a_loss(calls):
    def function(w, x, y):
        loss = fit(w, x, y)
        jax.debug.callback(calls, loss)
        return loss

    return function, [fit(W, X, Y)]


def on_a_choice(calls):
    def function(w, x, y):
        h = x @ w
        jax.debug.callback(calls, jnp.any(h > 0))
        return losses.squared_error(jnp.tanh(h), y)

    return function, [True]


def on_what_has_no_rule(calls):
    def function(w, x, y):
        jax.debug.callback(calls, jnp.linalg.svd(w, compute_uv=False))
        return fit(w, x, y)

    return function, [jnp.linalg.svd(W, compute_uv=False)]


def in_a_call(calls):
    @jax.jit
    def inner(w):
        jax.debug.callback(calls, jnp.sum(w))
        return jnp.tanh(w)

    return lambda w, x, y: losses.squared_error(x @ inner(w), y), [jnp.sum(W)]


def in_order(calls):
    def function(w, x, y):
        io_callback(calls, SCALAR, jnp.sum(x), ordered=True)
        io_callback(calls, SCALAR, jnp.sum(w), ordered=True)
        return fit(w, x, y)

    return function, [jnp.sum(X), jnp.sum(W)]


def used(calls):
    def function(w, x, y):
        return fit(w, x * io_callback(calls, SCALAR, jnp.sum(x)), y)

    return function, [jnp.sum(X)]


def pure(calls):
    def function(w, x, y):
        return fit(w, x * jax.pure_callback(calls, SCALAR, jnp.sum(x)), y)

    return function, [jnp.sum(X)]


def in_a_branch(calls):
    def function(w, x, y):
        def said(w):
            jax.debug.callback(calls, jnp.sum(x), jnp.sum(w))
            return jnp.tanh(w)

        def other(w):
            jax.debug.callback(calls, jnp.sum(y), jnp.sum(w))
            return 2 * w

        return losses.squared_error(x @ jax.lax.cond(jnp.sum(x) < 1e9, said, other, w), y)

    return function, [jnp.sum(X)]


def in_a_branch_of_variables(calls):
    def function(w, x, y):
        def said(w):
            jax.debug.callback(calls, jnp.sum(x))
            return jnp.tanh(w)

        return losses.squared_error(x @ jax.lax.cond(jnp.sum(w) < 1e9, said, jnp.sin, w), y)

    return function, [jnp.sum(X)]


def in_nested_branches(calls):
    def function(w, x, y):
        def said(w):
            jax.debug.callback(calls, jnp.sum(x))
            return jnp.tanh(w)

        def inner(w):
            return jax.lax.cond(jnp.sum(x) < 1e9, said, jnp.sin, w)

        a = jax.lax.cond(jnp.sum(y) < 1e9, inner, jnp.sin, w)
        b = jax.lax.cond(jnp.sum(y) > 1e9, inner, jnp.sin, w)  # not taken
        return losses.squared_error(x @ (a + b), y)

    return function, [jnp.sum(X)]


PROGRAMS = [
    on_data,
    on_a_parameter,
    on_a_hidden_variable,
    on_a_loss,
    on_a_choice,
    on_what_has_no_rule,
    in_a_call,
    in_order,
    used,
    pure,
    in_a_branch,
    in_a_branch_of_variables,
    in_nested_branches,
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_once_for_a_forward_pass(program, solver):
    calls = Calls()
    function, wanted = program(calls)
    w = updated(function, solver)
    assert len(calls) == len(wanted)
    for call, value in zip(calls, wanted, strict=True):
        np.testing.assert_allclose(call[0], value, rtol=1e-5)
    updated(function, solver, count=2)
    assert len(calls) == 3 * len(wanted)
    silent, _ = program(lambda *_: np.float32(1.0))
    np.testing.assert_array_equal(w, updated(silent, solver))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["carry", "input", "map"])
def test_in_a_loop(kind, solver):
    calls = Calls()

    def function(w, x, y):
        def step(h, x):
            jax.debug.callback(calls, h if kind == "carry" else x)
            h = jnp.tanh(h + x @ w)
            return h, h

        if kind == "map":
            return losses.squared_error(jax.lax.map(lambda x: step(0.0, x)[0], x), y)
        return losses.squared_error(jax.lax.scan(step, jnp.zeros(2), x)[1], y)

    updated(function, solver)
    assert len(calls) == len(X)
    if kind == "carry":
        h, wanted = jnp.zeros(2), []
        for x in X:
            wanted.append(h)
            h = jnp.tanh(h + x @ W)
    else:
        wanted = list(X)
    found = sorted(tuple(call[0].tolist()) for call in calls)
    np.testing.assert_allclose(found, sorted(tuple(x.tolist()) for x in wanted), atol=1e-5)


def test_under_vmap():
    calls = Calls()

    def function(w, x, y):
        def one(x):
            jax.debug.callback(calls, x)
            return jnp.tanh(x @ w)

        return losses.squared_error(jax.vmap(one)(x), y)

    for solver in SOLVERS:
        calls.clear()
        updated(function, solver)
        assert len(calls) == len(X)


def test_a_print(capfd):
    def function(w, x, y):
        jax.debug.print("sums {} and {}", jnp.sum(x), jnp.sum(w))
        return fit(w, x, y)

    for solver in SOLVERS:
        updated(function, solver)
        assert capfd.readouterr().out.count("sums") == 1


def outside(w, x, y):
    return fit(w, jax.pure_callback(lambda w: np.sum(w), SCALAR, w) * x, y)


def ordered(w, x, y):
    return fit(w, io_callback(lambda w: np.sum(w), SCALAR, w) * x, y)


def in_a_scan(w, x, y):
    def step(h, x):
        s = io_callback(lambda x: np.sum(x), SCALAR, x)
        return jnp.tanh(h + s * (x @ w)), None

    return losses.squared_error(jax.lax.scan(step, jnp.zeros(2), x)[0], y[0])


def unchecked(w, x, y):
    checkify.check(jnp.sum(x) < 1e9, "too large")
    return fit(w, x, y)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_refused(solver):
    for function, error, match in (
        (outside, pjax.MissingRuleError, "a call to Python.*stop_gradient"),
        (ordered, pjax.MissingRuleError, "a call to Python.*stop_gradient"),
        (in_a_scan, pjax.TraceError, " at .*test_effects.py.*body of a loop"),
        (unchecked, ValueError, "functionaliz"),
    ):
        with pytest.raises(error, match=match):
            updated(function, solver)


def stopped(w, x, y):
    s = io_callback(lambda w: np.float32(1.0), SCALAR, jax.lax.stop_gradient(w))
    return fit(w, x * s, y)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_went_through_stop_gradient_is_data(solver):
    np.testing.assert_allclose(updated(stopped, solver), updated(fit, solver), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("what", ["data", "parameter", "parameter by data", "data by parameter"])
def test_error_if(what, solver):
    def function(w, x, y, bound):
        pred = (jnp.sum(w) if what in ("parameter", "data by parameter") else jnp.sum(x)) > bound
        if what.startswith("data"):
            x = eqx.error_if(x, pred, "too large")
        else:
            w = eqx.error_if(w, pred, "too large")
        return fit(w, x, y)

    train = pjax.project(function, solver=SOLVERS[solver], steps=STEPS[solver], acceleration=())
    new, _ = train(W, X, Y, jnp.float32(1e9))
    np.testing.assert_allclose(new, updated(fit, solver), atol=1e-2)
    with pytest.raises((RuntimeError, ValueError), match="too large"):
        train(W, X, Y, jnp.float32(-1e9))


@pytest.mark.parametrize("solver", SOLVERS)
def test_checkify_inside(solver):
    def checked(a):
        checkify.check(jnp.sum(a) < 1e9, "too large")
        return a

    def function(w, x, y):
        _, x = checkify.checkify(checked)(x)
        _, w = checkify.checkify(checked)(w)
        return fit(w, x, y)

    np.testing.assert_allclose(updated(function, solver), updated(fit, solver), atol=1e-6)
