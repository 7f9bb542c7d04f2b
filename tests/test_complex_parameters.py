"""Complex parameters and values in ordinary programs: state spaces, spectral layers, loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import losses

from .learning import LIMIT

pytestmark = pytest.mark.thinned(3)

BATCH, LENGTH, WIDTH, STATES = 6, 8, 2, 3
RANDOM = np.random.default_rng(0)


def real(*shape, scale=1.0):
    return jnp.asarray(scale * RANDOM.normal(size=shape), jnp.float32)


def complex_(*shape, scale=1.0):
    return jax.lax.complex(real(*shape, scale=scale), real(*shape, scale=scale))


def s4d(p, u):
    """A diagonal state space, as a long convolution by its kernel."""
    rates = -jnp.exp(p["decay"]) + 1j * p["frequency"]
    steps = rates * jnp.exp(p["step"])[:, None]
    powers = jnp.exp(steps[..., None] * jnp.arange(LENGTH))
    kernel = 2 * jnp.einsum("hn,hnl->hl", p["c"] * (jnp.exp(steps) - 1) / rates, powers).real
    spectrum = jnp.fft.rfft(u, n=2 * LENGTH) * jnp.fft.rfft(kernel, n=2 * LENGTH)
    return jax.nn.silu(jnp.fft.irfft(spectrum, n=2 * LENGTH)[..., :LENGTH])


def lru(p, u):
    """A linear recurrence by an associative scan."""
    factor = jnp.exp(-jnp.exp(p["decay"]) + 1j * jnp.exp(p["phase"]))
    scale = jnp.sqrt(1 - jnp.abs(factor) ** 2)

    def join(one, other):
        return one[0] * other[0], other[0] * one[1] + other[1]

    def row(u):
        read = (u.T.astype(complex) @ p["b"]) * scale
        _, states = jax.lax.associative_scan(join, (jnp.broadcast_to(factor, read.shape), read))
        return jnp.tanh((states @ p["c"]).real).T

    return jax.vmap(row)(u)


def recurrence(p, u):
    """The same step by step, the carry being complex."""

    def step(state, x):
        state = jnp.exp(p["a"]) * state + x.astype(complex) @ p["b"]
        return state, (state @ p["c"]).real

    start = jnp.zeros((BATCH, STATES), jnp.result_type(complex))
    return jnp.tanh(jnp.moveaxis(jax.lax.scan(step, start, jnp.moveaxis(u, 2, 0))[1], 0, 2))


def fno(p, u):
    """Spectral layers: a few frequencies, each with its own matrix."""
    for weights, skip in p["layers"]:
        spectrum = jnp.fft.rfft(u)
        few = jnp.einsum("bim,iom->bom", spectrum[..., :3], weights)
        mixed = jnp.zeros_like(spectrum).at[..., :3].set(few)
        u = jax.nn.gelu(jnp.fft.irfft(mixed, n=LENGTH) + jnp.einsum("bil,io->bol", u, skip))
    return u


def vandermonde(p, u):
    """The kernel by powers, and the convolution as one."""
    kernel = (p["c"] @ jnp.vander(jnp.exp(p["a"]), LENGTH, increasing=True)).real
    return jax.vmap(jax.vmap(lambda row: jnp.convolve(row, kernel)[:LENGTH]))(u)


def phases(p, u):
    """Magnitudes and angles."""
    z = jnp.swapaxes(u, 1, 2).astype(complex) @ p["w"]
    z = jnp.log(2 + z / (1 + jnp.abs(z)))
    return jnp.swapaxes(jnp.abs(z) + jnp.angle(z) + (z * jnp.conj(z)).real, 1, 2)


MODES = {"c": complex_(WIDTH, STATES), "decay": real(WIDTH, STATES)}
PROGRAMS = {
    "S4D": (s4d, {**MODES, "frequency": real(WIDTH, STATES), "step": real(WIDTH) - 1}),
    "LRU": (
        lru,
        {
            "decay": real(STATES) - 1,
            "phase": real(STATES),
            "b": complex_(WIDTH, STATES),
            "c": complex_(STATES, WIDTH),
        },
    ),
    "recurrence": (
        recurrence,
        {
            "a": complex_(STATES, scale=0.3) - 0.5,
            "b": complex_(WIDTH, STATES),
            "c": complex_(STATES, WIDTH),
        },
    ),
    "FNO": (
        fno,
        {
            "layers": [
                (complex_(WIDTH, WIDTH, 3, scale=0.5), real(WIDTH, WIDTH)),
                (complex_(WIDTH, WIDTH, 3, scale=0.5), real(WIDTH, WIDTH)),
            ]
        },
    ),
    "powers": (vandermonde, {"c": complex_(STATES), "a": complex_(STATES, scale=0.3) - 0.3}),
    "phases": (phases, {"w": complex_(WIDTH, WIDTH)}),
}
INPUTS, WANTED = real(BATCH, WIDTH, LENGTH), jnp.tanh(real(BATCH, WIDTH, LENGTH))


def fitting(program):
    def fit(p, u, wanted):
        return losses.squared_error(program(p, u).reshape(BATCH, -1), wanted.reshape(BATCH, -1))

    return fit


@pytest.fixture
def as_people_write(loose_promotion):
    """They promote real numbers to complex ones, and add axes, without a word."""
    with jax.numpy_rank_promotion("allow"):
        yield


def wide(x):
    """In double precision."""
    return x.astype(jnp.complex128 if jnp.iscomplexobj(x) else jnp.float64)


@pytest.mark.parametrize("name", PROGRAMS)
def test_sweeps_hand_over_the_adjoint(name, as_people_write):
    """Of a complex parameter the gradient is that of its parts, which JAX has conjugated."""
    program, params = PROGRAMS[name]
    fit = fitting(program)
    with jax.enable_x64(True):
        params, u, wanted = jax.tree.map(wide, (params, INPUTS, WANTED))
        new, _ = pjax.project(fit, solver=LIMIT, acceleration=())(params, u, wanted)
        slopes = jax.grad(fit)(params, u, wanted)
        for old, moved, slope in zip(*map(jax.tree.leaves, (params, new, slopes)), strict=True):
            assert moved.dtype == old.dtype
            step, slope = np.ravel(old - moved), np.ravel(np.conj(slope))
            cosine = np.vdot(slope, step).real / np.linalg.norm(step) / np.linalg.norm(slope)
            assert cosine >= 0.999


@pytest.mark.parametrize("name", PROGRAMS)
def test_sweeps_fit(name, as_people_write):
    program, params = PROGRAMS[name]
    fit = fitting(program)
    train = pjax.project(fit)
    new, state = params, train.init(params)
    for _ in range(20):
        new, state, info = train.update(new, state, INPUTS, WANTED)
        assert bool(info.finite)
    assert float(fit(new, INPUTS, WANTED)) < 0.9 * float(fit(params, INPUTS, WANTED))
    averaged = train.averaged(new, state)
    assert jax.tree.map(jnp.result_type, averaged) == jax.tree.map(jnp.result_type, params)


SOLVERS = {
    "AP": pjax.AlternatingProjections(momentum=0.9),
    "DR": pjax.DouglasRachford(),
}


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(("recurrence", s) for s in SOLVERS),
        ("FNO", "AP"),
        *(pytest.param(n, s, marks=pytest.mark.slow) for n in PROGRAMS for s in SOLVERS),
    ],
)
def test_classical_solvers_fit(name, solver, as_people_write):
    program, params = PROGRAMS[name]
    fit = fitting(program)
    train = pjax.project(fit, solver=SOLVERS[solver], steps=30)
    new, state = params, train.init(params)
    for _ in range(4):
        new, state, info = train.update(new, state, INPUTS, WANTED)
        assert bool(info.finite)
    assert float(fit(new, INPUTS, WANTED)) < float(fit(params, INPUTS, WANTED))


def linear(w, x, y):
    return losses.squared_error(jnp.real(x @ w), y)


X, W = complex_(12, 4), complex_(4, 3)
Y = jnp.real(X @ W)


@pytest.mark.parametrize("options", [{}, {"solver": SOLVERS["AP"]}, {"solver": SOLVERS["DR"]}])
def test_a_linear_map(options):
    """Exactly determined by its real outputs, and found."""
    train = pjax.project(linear, **options)
    w = jnp.zeros_like(W)
    state = train.init(w)
    for _ in range(200):
        w, state, _ = train.update(w, state, X, Y)
    np.testing.assert_allclose(w, W, atol=0.1)


def test_a_complex_parameter_moves_as_its_parts():
    def parts(p, x, y):
        return linear(jax.lax.complex(p[0], p[1]), x, y)

    start = complex_(4, 3)
    for options in ({"solver": LIMIT, "acceleration": ()}, {"solver": SOLVERS["AP"]}):
        new, _ = pjax.project(linear, **options)(start, X, Y)
        stack, _ = pjax.project(parts, **options)(jnp.stack([start.real, start.imag]), X, Y)
        assert float(linear(new, X, Y)) < float(linear(start, X, Y))
        np.testing.assert_allclose(new, jax.lax.complex(*stack), atol=1e-5)


def test_calls_around_an_update():
    """Graphs, states, donation, scans over updates, NumPy arrays, argnums."""
    train = pjax.project(linear)
    w = np.asarray(complex_(4, 3))
    (variable,) = (v for v in train.trace(w, X, Y).variables if v.parameter)
    assert variable.shape == (2, 4, 3)
    train.lower(w, X, Y).compile()
    train.explain(w, X, Y)
    first, state, _ = train.update(w, train.init(w), X, Y)
    second, _, _ = train.update(first, state, X, Y)

    def step(carry, _):
        return train.update(*carry, X, Y)[:2], None

    (scanned, _), _ = jax.lax.scan(step, (jnp.asarray(w), train.init(w)), length=2)
    np.testing.assert_allclose(scanned, second, atol=1e-5)
    donating = pjax.project(linear, donate=True)
    moved, _, _ = donating.update(jnp.asarray(w), donating.init(w), X, Y)
    np.testing.assert_allclose(moved, first, atol=1e-5)
    both = pjax.project(lambda w, x, b: losses.squared_error(jnp.real(x @ w) + b, Y), (2, 0))
    (b, new), _ = both(w, X, jnp.zeros((12, 3)))
    assert new.dtype == w.dtype and b.dtype == jnp.float32


def test_carries_of_any_kind():
    """Complex and real, data at first, backwards, mapped, and with branches by data."""
    xs = complex_(5, 3)

    def program(p, lift):
        def step(carry, x):
            z, size, count = carry
            z = jnp.where(count % 2 == 0, z * p, jax.lax.cond(count > 2, jnp.conj, jnp.square, z))
            return (z + x, size + jnp.abs(z), count + 1), (z, size, x)

        start = jnp.zeros(3, jnp.complex64), jnp.zeros(3), jnp.int32(0)
        (z, size, _), (zs, sizes, data) = jax.lax.scan(step, start, xs, reverse=True)
        rows = jax.vmap(lambda a: jax.lax.scan(lambda h, x: (h * a + x, h), a, xs[:, 0])[1])(p)
        total = jnp.abs(zs).sum(0) + jnp.real(data).sum(0) + jnp.abs(rows).sum(1)
        return jnp.imag(z) + size + sizes.sum(0) + total

    for solver in (pjax.Sweep(), pjax.AlternatingProjections()):

        def fit(p):
            return losses.squared_error(program(p, None), jnp.ones(3))

        start = 0.4 * complex_(3)
        new, info = pjax.project(fit, solver=solver)(start)
        assert bool(info.finite) and float(fit(new)) < float(fit(start))


def test_accelerations_and_half_of_the_parameters():
    def fit(p, x, y):
        return losses.squared_error(jnp.real(x @ p["w"]) + p["b"][None], y)

    p = {"w": complex_(4, 3), "b": real(3)}
    for acceleration in (
        pjax.Momentum(0.9),
        (pjax.TrustRegion(0.02), pjax.Momentum(0.5)),
        pjax.Anderson(3),
    ):
        train = pjax.project(fit, solver=SOLVERS["AP"], acceleration=acceleration)
        new, state = p, train.init(p)
        for _ in range(3):
            new, state, _ = train.update(new, state, X, Y)
        assert float(fit(new, X, Y)) < float(fit(p, X, Y))


def test_errors():
    with pytest.raises(pjax.InputError, match="complex64"):
        train = pjax.project(linear)
        state = train.init(jnp.zeros((4, 3)))
        train.update(jnp.zeros((4, 3), jnp.complex64), state, X, Y)
    with pytest.raises(pjax.NonFiniteError, match="data argument x") as error:
        pjax.project(linear)(W, X.at[0, 0].set(jnp.nan), Y)
    np.testing.assert_array_equal(error.value.params, W)
