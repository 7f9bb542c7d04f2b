"""Branches that variables decide, and loops that data end, beside other ways to say the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import losses

from .learning import LIMIT

pytestmark = pytest.mark.thinned(4)

X = jax.random.normal(jax.random.key(0), (6, 4))
Y = jax.random.normal(jax.random.key(1), (6, 2))
W = jax.random.normal(jax.random.key(2), (4, 2))
SOLVERS = {
    "sweep": (None, 1),
    "AP": (pjax.AlternatingProjections(momentum=0.9), 10),
    "DR": (pjax.DouglasRachford(), 10),
}
EACH = pytest.mark.parametrize("solver", SOLVERS)


@functools.cache
def trained(fit, solver):
    """The projection of a program, which compiles once."""
    solver, steps = SOLVERS[solver]
    return pjax.project(fit, solver=solver, steps=steps)


def updated(fit, solver, *args, count=10, lowest=False):
    train = trained(fit, solver)
    w, state, best = W, train.init(W), W
    for _ in range(count):
        w, state, info = train.update(w, state, X, Y, *args)
        assert bool(info.finite)
        best = w if fit(w, X, Y, *args) < fit(best, X, Y, *args) else best
    return best if lowest else w


def half(h):
    return 0.5 * h


def whole(w, x, y):
    h = x @ w
    return losses.squared_error(lax.cond(jnp.sum(h) > 0, jnp.tanh, half, h), y)


def whole_where(w, x, y):
    h = x @ w
    return losses.squared_error(jnp.where(jnp.sum(h) > 0, jnp.tanh(h), half(h)), y)


def parameter(w, x, y):
    return losses.squared_error(lax.cond(w[0, 0] < w[0, 1], lambda: x @ w, lambda: -x @ w), y)


def parameter_where(w, x, y):
    return losses.squared_error(jnp.where(w[0, 0] < w[0, 1], x @ w, -x @ w), y)


def captured(w, x, y):
    h = x @ w
    scale = lax.cond(jnp.sum(h) > 0, lambda: 0.5, lambda: 2.0)
    return losses.squared_error(scale * h, y)


def captured_where(w, x, y):
    h = x @ w
    return losses.squared_error(jnp.where(jnp.sum(h) > 0, 0.5, 2.0) * h, y)


def combined(w, x, y):
    h = x @ w
    decision = ~(jnp.sum(h) > 0) & (h[0, 0] > -9)
    return losses.squared_error(lax.cond(decision, half, jnp.tanh, h), y)


def combined_where(w, x, y):
    h = x @ w
    decision = ~(jnp.sum(h) > 0) & (h[0, 0] > -9)
    return losses.squared_error(jnp.where(decision, half(h), jnp.tanh(h)), y)


def masks(w, x, y):
    h = x @ w
    kept = lax.cond(jnp.sum(h) > 0, lambda m: m, lambda m: ~m, h > 0)
    return losses.squared_error(jnp.where(kept, h, 0.0), y)


def masks_where(w, x, y):
    h = x @ w
    mask = h > 0
    kept = jnp.where(jnp.sum(h) > 0, mask, ~mask)
    return losses.squared_error(jnp.where(kept, h, 0.0), y)


PAIRS = [
    (whole, whole_where),
    (parameter, parameter_where),
    (captured, captured_where),
    (combined, combined_where),
    (masks, masks_where),
]


@EACH
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_a_cond_is_a_choice(pair, solver):
    cond, where = pair
    assert float(cond(W, X, Y)) == pytest.approx(float(where(W, X, Y)))
    one, other = updated(cond, solver), updated(where, solver)
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert float(cond(one, X, Y)) < float(cond(W, X, Y))


def switched(w, x, y):
    h = x @ w
    return losses.squared_error(lax.switch(jnp.argmax(h[0]), [jnp.tanh, half, jnp.sin], h), y)


def counted(w, x, y):
    h = x @ w
    index = (h[0, 0] > 0).astype(int) + (h[0, 1] > 0).astype(int)
    return losses.squared_error(lax.switch(index, [jnp.tanh, half, jnp.sin], h), y)


def nested(w, x, y):
    def first(h):
        return lax.cond(h[0, 0] > 0, jnp.tanh, half, h)

    def second(h):
        return lax.cond(jnp.sum(x) > 0, jnp.sin, half, h)  # by data

    h = x @ w
    return losses.squared_error(lax.cond(jnp.sum(h) > 0, first, second, h), y)


def several(w, x, y):
    def one(h):
        return {"h": h, "n": jnp.int32(1), "b": h > 0}

    def other(h):
        return {"h": 2 * h, "n": jnp.int32(2), "b": h < 0}

    h = x @ w
    out = lax.cond(jnp.sum(h) > 0, one, other, h)
    return losses.squared_error(jnp.where(out["b"], out["h"], 0.0) * out["n"].astype(float), y)


def stepwise(w, x, y):
    def step(h, row):
        h = lax.cond(jnp.sum(h) > 0, lambda h: jnp.tanh(h + row @ w), lambda h: h - row @ w, h)
        return h, h

    return losses.squared_error(lax.scan(step, jnp.zeros(2), x)[1], y)


def repeated(w, x, y):
    def step(i, h):
        return lax.cond(jnp.sum(h) > 0, jnp.tanh, half, h + x @ w)

    return losses.squared_error(lax.fori_loop(0, 3, step, x @ w), y)


def by_row(w, x, y):
    def one(row):
        return lax.cond(jnp.sum(row @ w) > 0, jnp.tanh, half, row @ w)

    return losses.squared_error(jax.vmap(one)(x), y)


def called(w, x, y):
    return jax.jit(whole)(w, jax.checkpoint(lambda x: x)(x), y)


PROGRAMS = [switched, counted, nested, several, stepwise, repeated, by_row, called]


@EACH
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_branches_that_variables_decide(program, solver):
    new = updated(program, solver, count=20, lowest=True)
    assert float(program(new, X, Y)) < 0.99 * float(program(W, X, Y))


@pytest.mark.parametrize(
    "program", [whole, parameter, combined, switched, counted, nested, stepwise, repeated, by_row]
)
def test_a_sweep_hands_over_the_adjoint_of_the_case_that_is_taken(program):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        w, x, y = (jnp.asarray(np.asarray(a), jnp.float64) for a in (W, X, Y))
        new, _ = pjax.project(program, solver=LIMIT, acceleration=())(w, x, y)
        step, slope = np.ravel(w - new), np.ravel(jax.grad(program)(w, x, y))
    assert step @ slope > 0.999 * np.linalg.norm(step) * np.linalg.norm(slope)


def test_cases_that_are_not_taken_need_not_be_finite():
    def fit(w, x, y):
        h = x @ w
        return losses.squared_error(lax.cond(jnp.all(h > 0), jnp.log, jnp.tanh, h), y)

    for solver in ("sweep", "AP"):
        assert fit(updated(fit, solver), X, Y) < fit(W, X, Y)


def body(w):
    return lambda i, h: jnp.tanh(h @ w[:2] + 0.1 * jnp.asarray(i, h.dtype))


@functools.cache
def unrolled(steps):
    def fit(w, x, y, n=None):
        h = x @ w
        for i in range(steps):
            h = body(w)(i, h)
        return losses.squared_error(h, y)

    return fit


def known(w, x, y, n):
    def step(carry):
        return body(w)(carry[1], carry[0]), carry[1] + 1

    return losses.squared_error(lax.while_loop(lambda c: c[1] < 3, step, (x @ w, 0))[0], y)


def halved(w, x, y, n):
    def step(carry):
        h, i, size = carry
        return body(w)(i, h), i + 1, size / 2

    h, _, _ = lax.while_loop(lambda c: c[2] > 1, step, (x @ w, 0, jnp.float32(8.0)))
    return losses.squared_error(h, y)


def least(w, x, y, n):
    return losses.squared_error(lax.fori_loop(0, jnp.minimum(n, 5), body(w), x @ w), y)


def length(w, x, y, n):
    return losses.squared_error(lax.fori_loop(0, jnp.sum(jnp.arange(5) < n), body(w), x @ w), y)


def rest(w, x, y, n):
    return losses.squared_error(lax.fori_loop(0, 6 - jnp.clip(n, 0, 6), body(w), x @ w), y)


def size(w, x, y, n):
    def step(carry):
        return body(w)(carry[1], carry[0]), carry[1] + 1

    def unfinished(carry):
        return (carry[1] < 4) & (jnp.cumsum(jnp.abs(x[:, 0]))[carry[1]] < 1e9) & (carry[1] < n)

    return losses.squared_error(lax.while_loop(unfinished, step, (x @ w, 0))[0], y)


@EACH
@pytest.mark.parametrize("program", [known, halved, least, length, rest, size])
def test_a_loop_that_data_end(program, solver):
    one = updated(program, solver, jnp.int32(3), count=2)
    start = unrolled(3)(W, X, Y)
    assert float(program(W, X, Y, jnp.int32(3))) == pytest.approx(float(start), rel=1e-5)
    if program in (known, halved):
        # A scan of the same length makes the same update; the unrolled loop does, too, in a sweep.
        other = updated(unrolled(3), solver, jnp.int32(3), count=2)
        np.testing.assert_allclose(one, other, atol=2e-5 if solver == "sweep" else 0.3)
    assert float(
        unrolled(3)(updated(program, solver, jnp.int32(3), count=20, lowest=True), X, Y)
    ) < float(start)


@pytest.mark.parametrize("program", [known, halved, least, length, rest, size])
def test_a_sweep_hands_over_the_adjoint_of_the_steps_that_are_made(program):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        w, x, y = (jnp.asarray(np.asarray(a), jnp.float64) for a in (W, X, Y))
        new, _ = pjax.project(program, solver=LIMIT, acceleration=())(w, x, y, jnp.int32(3))
        step, slope = np.ravel(w - new), np.ravel(jax.grad(unrolled(3))(w, x, y))
    assert step @ slope > 0.999 * np.linalg.norm(step) * np.linalg.norm(slope)


def test_the_length_is_that_of_the_call():
    train = pjax.project(least, acceleration=())
    for n in (0, 1, 2, 4, 5, 9, -3):
        _, info = train(W, X, Y, jnp.int32(n))
        wanted = unrolled(max(min(n, 5), 0))(W, X, Y)
        np.testing.assert_allclose(info.loss_values[0], wanted, rtol=1e-5)


@EACH
def test_each_loop_of_a_batch_has_its_end(solver):
    def fit(w, x, y, lengths):
        def one(row, n):
            step = lambda i, h: jnp.tanh(h @ w[:2] + row[:2])  # noqa: E731
            return lax.fori_loop(0, jnp.minimum(n, 4), step, row @ w)

        return losses.squared_error(jax.vmap(one)(x, lengths), y)

    def wanted(w, x, y, lengths):
        rows = []
        for row, n in zip(x, lengths, strict=True):
            h = row @ w
            for _ in range(int(n)):
                h = jnp.tanh(h @ w[:2] + row[:2])
            rows.append(h)
        return losses.squared_error(jnp.stack(rows), y)

    lengths = jnp.array([0, 1, 2, 3, 4, 2])
    start = float(wanted(W, X, Y, lengths))
    assert float(fit(W, X, Y, lengths)) == pytest.approx(start, rel=1e-5)
    assert (
        float(wanted(updated(fit, solver, lengths, count=20, lowest=True), X, Y, lengths)) < start
    )


@EACH
def test_a_loop_in_a_scan(solver):
    def fit(w, x, y, n):
        def step(h, row):
            count = jnp.clip((row[0] > 0).astype(int) + n, 0, 4)
            return lax.fori_loop(0, count, lambda i, c: jnp.tanh(c @ w[:2] + row @ w), h), h

        return losses.squared_error(lax.scan(step, jnp.zeros(2), x)[1], y)

    n = jnp.int32(1)
    assert float(fit(updated(fit, solver, n, count=20, lowest=True), X, Y, n)) < float(
        fit(W, X, Y, n)
    )


def test_a_loop_that_goes_on_beyond_its_bound_is_reported():
    def fit(w, x, y, n):
        most = jnp.where((n > 3) & (n < 7), 9, 2)  # which no extreme value shows
        return losses.squared_error(lax.fori_loop(0, most, body(w), x @ w), y)

    train = pjax.project(fit)
    assert np.all(np.isfinite(train(W, X, Y, jnp.int32(2))[0]))
    with pytest.raises(pjax.NonFiniteError):
        train(W, X, Y, jnp.int32(5))


def endless(w, x, y, n):
    return losses.squared_error(lax.fori_loop(0, n, body(w), x @ w), y)


def decided(w, x, y, n):
    h = lax.while_loop(lambda h: jnp.sum(h) < 3.0, lambda h: h + 1.0, x @ w)
    return losses.squared_error(h, y)


def printing(w, x, y, n):
    def step(carry):
        jax.debug.print("{}", carry[1])
        return body(w)(carry[1], carry[0]), carry[1] + 1

    return losses.squared_error(lax.while_loop(lambda c: c[1] < 3, step, (x @ w, 0))[0], y)


@EACH
def test_loops_that_are_refused(solver):
    for fit, match in (
        (endless, r"test_branches.py.*not known while tracing.*jnp.minimum\(n, 8\).*lax.scan"),
        (decided, "test_branches.py.*depends on the value of.*jnp.where"),
        (printing, "test_branches.py.*a call to Python"),
    ):
        with pytest.raises(pjax.TraceError, match=match):
            updated(fit, solver, jnp.int32(3))


def test_a_python_integer_is_a_length_that_is_known():
    train = pjax.project(endless, acceleration=())
    state = train.init(W)
    for n in (3, 2, 4, 3):
        _, _, info = train.update(W, state, X, Y, n)
        np.testing.assert_allclose(info.loss_values[0], unrolled(n)(W, X, Y), rtol=1e-5)
