"""Complex values as pairs of reals: forward values, magnitudes, and a phase retrieval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.custom import call, function_p
from pjax_trace.rules.angle import angle_of
from pjax_trace.rules.complex import MAGNITUDE
from pjax_trace.trace import trace_program

TRANSFORMS = {
    "rfft": (jnp.fft.rfft, (5,)),
    "rfft, even": (jnp.fft.rfft, (2, 6)),
    "fft": (jnp.fft.fft, (5,)),
    "ifft": (jnp.fft.ifft, (4,)),
    "fft2": (jnp.fft.fft2, (3, 4)),
    "rfft2": (jnp.fft.rfft2, (4, 5)),
    "irfft": (lambda x: jnp.fft.irfft(jax.lax.complex(x, 2 * x)), (2, 4)),
    "irfft, odd": (lambda x: jnp.fft.irfft(jax.lax.complex(x, 2 * x), n=7), (2, 4)),
    "irfft2": (lambda x: jnp.fft.irfft2(jax.lax.complex(x, 2 * x), s=(4, 5)), (4, 3)),
    "filter": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.complex64(1 + 2j)), (6,)),
    "fft along another axis": (lambda x: jnp.fft.fft(x, axis=0), (3, 2)),
}
PARTS = {"real": jnp.real, "imag": jnp.imag, "abs": jnp.abs}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_forward_values(name):
    function, shape = TRANSFORMS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    parts = PARTS if jnp.iscomplexobj(function(x)) else {"itself": lambda z: z}
    for part in parts.values():

        def whole(x, part=part):
            return part(function(x))

        program = trace_program(lambda p, _, f=whole: f(p[0]), [x], [], names=["x"])
        env = program.evaluate([x], [])
        np.testing.assert_allclose(env[program.outputs[0]], whole(x), atol=2e-6)


def test_arithmetic():
    def function(x, y):
        u = jax.lax.complex(x, y)
        v = jnp.concatenate([u * jnp.conj(u[::-1]), u - jnp.complex64(1j)])
        frozen = jax.lax.stop_gradient(u)
        ratio = jnp.imag(jax.lax.complex(y, x) / (u + jnp.complex64(5 + 1j)))
        return (
            jnp.abs(v / jnp.complex64(2 - 1j)).sum() + jnp.real(jnp.vdot(u, frozen)) + ratio.sum()
        )

    x, y = jnp.array([0.5, 2.0, -1.0]), jnp.array([1.0, -3.0, 0.25])
    program = trace_program(lambda p, _: function(*p), [x, y], [], names=["x", "y"])
    env = program.evaluate([x, y], [])
    np.testing.assert_allclose(env[program.outputs[0]], function(x, y), rtol=1e-5)


def test_magnitudes_are_the_nearest():
    def magnitude(u):
        return call(function_p, MAGNITUDE, u, name="abs")

    for scale in (0.1, 10.0):
        pjax.testing.check_rule(magnitude, jnp.zeros((2, 1)), scale=scale, samples=40)
    (u,), z = pjax.project_point(magnitude, (jnp.zeros((2, 1)),), jnp.array([2.0]))
    np.testing.assert_allclose(u, [[1.0], [0.0]])
    np.testing.assert_allclose(z, [1.0])


def test_the_derivative_of_a_magnitude():
    u, residual = jnp.array([[3.0, -1.0, 0.0], [4.0, 0.0, 0.0]]), jnp.array([1.0, 3.0, 2.0])
    answer = MAGNITUDE.linear({}, (u,), 0).transpose(residual)
    np.testing.assert_allclose(answer[:, :2], [[0.6, -3.0], [0.8, 0.0]], rtol=1e-6)
    assert jnp.linalg.norm(answer[:, 2]) <= 2  # the phase of 0 is free


@pytest.mark.parametrize("samples", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_angles_are_the_nearest(samples):
    """On either side of the cut, and near the origin."""
    for seed, centre in enumerate([(0.0, 0.0), (-1.0, 0.05), (1.0, 1.0), (-0.3, -0.02)]):
        start = jnp.asarray(centre)[:, None]
        for scale in (0.3, 2.0):
            pjax.testing.check_rule(angle_of, start, scale=scale, samples=samples, seed=seed)


def test_what_has_no_rule_is_refused():
    def fit(x):
        return pjax.losses.squared_error(jnp.abs(jnp.sort(jax.lax.complex(x, x))), jnp.ones(3))

    with pytest.raises(pjax.MissingRuleError, match="sort at .*test_complex.*imaginary parts"):
        pjax.project(fit, schedule="parallel", copies=False).trace(jnp.ones(3))


def test_phase_retrieval():
    """A signal on a known support, from the magnitudes of its spectrum."""
    support = jnp.arange(16) < 5
    truth = jnp.where(support, jnp.asarray(np.random.default_rng(3).normal(size=16)), 0.0)
    truth = truth.astype(jnp.float32)
    sizes = jnp.abs(jnp.fft.rfft(truth))

    def problem(x):
        inside = jnp.where(support, x, 0.0)
        pjax.constrain(jnp.abs(jnp.fft.rfft(inside)), pjax.sets.Equal(sizes))

    solve = pjax.project(problem, solver=pjax.DifferenceMap(), steps=2000, tol=1e-3)
    found = []
    for seed in range(4):
        x, info = solve(jnp.asarray(np.random.default_rng(seed).normal(size=16), jnp.float32))
        inside = jnp.where(support, x, 0.0)
        error = jnp.max(jnp.abs(jnp.abs(jnp.fft.rfft(inside)) - sizes))
        found.append(float(error))
    assert min(found) < 0.05, found
