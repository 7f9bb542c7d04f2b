"""Derivatives inside the user's function: all that they leave in a trace is solved for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import losses
from tests.learning import CLASSICAL, cosines, fractions, normal

pytestmark = pytest.mark.thinned(6)

X = normal(0, 12, 3)
IMAGES = normal(1, 4, 1, 6, 6)


def layers(*sizes):
    pairs = enumerate(zip(sizes, sizes[1:], strict=False))
    return [(normal(10 + i, a, b) / a**0.5, 0.1 * normal(60 + i, b)) for i, (a, b) in pairs]


def net(p, x, act=jnp.tanh):
    for w, b in p[:-1]:
        x = act(x @ w + b)
    w, b = p[-1]
    return x @ w + b


SCALAR, VECTOR = layers(3, 8, 1), layers(3, 6, 3)
HEAD = {"w": normal(2, 3, 3), "b": 0.3 * normal(4, 3)}
FILTER = {"w": normal(5, 3, 1, 3, 3) / 3, "v": normal(6, 3)}


def by_row(function):
    return lambda p, x: jax.vmap(lambda row: function(p, row))(x)


def force(energy):
    return by_row(lambda p, x: -jax.grad(lambda x: energy(p, x))(x))


def of_net(act):
    return force(lambda p, x: net(p, x, act)[0])


def laplacian(act):
    def function(p, x):
        def u(x):
            return net(p, x, act)[0]

        return jnp.trace(jax.hessian(u)(x)) + u(x)

    return by_row(function)


def burgers(p, x):
    """u u_x - u_xx, by a gradient of a gradient."""

    def u(x):
        return net(p, x)[0]

    def along(x):
        return jax.grad(u)(x)[0]

    return u(x) * along(x) - jax.grad(along)(x)[0]


def adapted(p, x):
    """One step of gradient descent, then a prediction."""

    def inner(p):
        return jnp.mean(jnp.square(net(p, x[:6])[:, 0] - jnp.sin(x[:6, 0])))

    stepped = jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(inner)(p))
    return net(stepped, x[6:])


def symplectic(p, x):
    def step(q, _):
        g = jax.grad(lambda q: net(p, q)[0])(q)
        return q + 0.2 * jnp.stack([g[1], -g[0], g[2]]), None

    return lax.scan(step, x, None, length=3)[0]


def convolved(pool):
    def energy(p, x):
        h = jnp.tanh(lax.conv_general_dilated(x[None], p["w"], (1, 1), "SAME"))
        return jnp.sum(pool(h).mean((0, 2, 3)) * p["v"])

    return force(energy)


def max_pool(h):
    return lax.reduce_window(h, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def mean_pool(h):
    return jnp.square(lax.reduce_window(h, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"))


def pooled_tangent(p, x):
    def function(x):
        return max_pool(jnp.tanh(lax.conv_general_dilated(x, p["w"], (1, 1), "SAME")))

    return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


@jax.custom_jvp
def sine(x):
    return jnp.sin(x)


sine.defjvp(lambda primals, tangents: (sine(*primals), jnp.cos(primals[0]) * tangents[0]))


@jax.custom_vjp
def wave(x):
    return jnp.sin(x)


wave.defvjp(lambda x: (wave(x), x), lambda x, g: (jnp.cos(x) * g,))


def summed(function):
    """The force of an energy that is a sum of functions of a layer."""
    return force(lambda p, x: jnp.sum(function(x @ p["w"] + p["b"])))


PROGRAMS = {
    **{f"force, {f.__name__}": (SCALAR, of_net(f)) for f in (jnp.tanh, jax.nn.silu, jnp.sin)},
    **{f"laplacian, {f.__name__}": (SCALAR, laplacian(f)) for f in (jnp.tanh, jax.nn.gelu)},
    "force, softplus": (SCALAR, of_net(jax.nn.softplus)),
    "force, elu": (SCALAR, of_net(jax.nn.elu)),
    "force, cosh": (SCALAR, of_net(lambda x: jnp.log(jnp.cosh(x)))),
    "burgers": (SCALAR, by_row(burgers)),
    "gradient penalty": (
        SCALAR,
        lambda p, x: jnp.sqrt(1e-3 + jnp.sum(jnp.square(of_net(jnp.tanh)(p, x)), -1)),
    ),
    "value and gradient": (
        SCALAR,
        lambda p, x: jnp.concatenate([net(p, x), of_net(jnp.tanh)(p, x)], 1),
    ),
    "jacrev": (VECTOR, by_row(lambda p, x: jax.jacrev(lambda x: net(p, x))(x))),
    "jacfwd": (VECTOR, by_row(lambda p, x: jax.jacfwd(lambda x: net(p, x))(x))),
    "hessian": (SCALAR, by_row(lambda p, x: jax.hessian(lambda x: net(p, x)[0])(x))),
    "jvp": (VECTOR, lambda p, x: jax.jvp(lambda x: net(p, x), (x,), (jnp.ones_like(x),))[1]),
    "linearize": (VECTOR, lambda p, x: jax.linearize(lambda x: net(p, x), x)[1](x)),
    "remat": (SCALAR, by_row(lambda p, x: jax.grad(jax.checkpoint(lambda x: net(p, x)[0]))(x))),
    "lax.map": (SCALAR, lambda p, x: lax.map(jax.grad(lambda x: net(p, x)[0]), x)),
    "score": (
        VECTOR,
        by_row(lambda p, x: jnp.trace(jax.jacfwd(lambda x: net(p, x))(x)) + jnp.sum(net(p, x))),
    ),
    "adapted": (SCALAR, adapted),
    "symplectic": (SCALAR, by_row(symplectic)),
    "convolution": (FILTER, convolved(lambda h: h)),
    "mean pooling": (FILTER, convolved(mean_pool)),
    "max pooling": (FILTER, convolved(max_pool)),
    "max pooling, forward": ({"w": FILTER["w"]}, pooled_tangent),
    "embedding": (
        {"t": normal(0, 6, 4), "o": normal(1, 4)},
        lambda p, x: jax.grad(
            lambda t: jnp.sum(jnp.square(jnp.tanh(t[jnp.array([0, 1, 1, 3])] @ p["o"])))
        )(p["t"]),
    ),
    "logsumexp": (HEAD, force(lambda p, x: jax.nn.logsumexp(x @ p["w"] + p["b"]))),
    "log softmax": (HEAD, force(lambda p, x: jax.nn.log_softmax(x @ p["w"] + p["b"])[0])),
    "norm": (HEAD, force(lambda p, x: jnp.linalg.norm(x @ p["w"] + p["b"]))),
    "power": (HEAD, summed(lambda h: (1 + h * h) ** 0.7)),
    "variable power": (HEAD, force(lambda p, x: jnp.sum((1 + (x @ p["w"]) ** 2) ** p["b"]))),
    "quotient": (HEAD, summed(lambda h: 1 / (2 + h * h))),
    "where": (HEAD, summed(lambda h: jnp.where(X[0] > 0, jnp.tanh(h), h * h))),
    "cumulative sum": (HEAD, summed(lambda h: jnp.tanh(jnp.cumsum(h)))),
    "cumulative product": (HEAD, summed(lambda h: jnp.cumprod(jax.nn.sigmoid(h)))),
    "maximum": (HEAD, summed(lambda h: jnp.square(jnp.maximum(h, 0.1)))),
    "relu": (HEAD, summed(lambda h: jnp.square(jax.nn.relu(h)))),
    "sort": (HEAD, summed(lambda h: jnp.tanh(jnp.sort(h) * jnp.arange(3.0)))),
    "custom jvp": (HEAD, summed(sine)),
    "custom vjp": (HEAD, summed(wave)),
    "arctan2": (HEAD, force(lambda p, x: jnp.sum(jnp.arctan2(x @ p["w"], 1 + p["b"] ** 2)))),
    "fourier": (
        HEAD,
        force(lambda p, x: jnp.sum(jnp.square(jnp.abs(jnp.fft.rfft(x @ p["w"]))))),
    ),
}
INPUTS = {name: IMAGES for name in PROGRAMS if "pool" in name or name == "convolution"}
# Jumps of the derivative: what is found need not be along the gradient, or near the start.
JUMPING = {"sort"}


def problem(name):
    """A loss of the parameters, which a teacher's answers make zero, and where to start."""
    params, function = PROGRAMS[name]
    x = INPUTS.get(name, X)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        y = function(jax.tree.map(lambda a: a + 0.3 * normal(a.size, *a.shape), params), x)

    def fit(p, x, y):
        return losses.squared_error(function(p, x), y)

    return fit, params, x, y


@pytest.fixture(autouse=True)
def promotion():
    """What derivatives do to ranks and dtypes is JAX's own."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sweep_hands_over_the_adjoint_of_derivatives(name):
    assert min(cosines(*problem(name))) >= 0.999


SOME = ("burgers", "jacrev", "symplectic", "adapted", "max pooling", "logsumexp", "relu")


def marked(names):
    """The others take long, and are much like these."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in SOME), id=name) for name in names
    ]


@pytest.mark.parametrize("name", marked(PROGRAMS))
def test_a_sweep_learns_through_derivatives(name):
    assert fractions(*problem(name), count=25)[-1] < 0.7


@pytest.mark.parametrize("name", marked(name for name in PROGRAMS if name not in JUMPING))
def test_classical_solvers_learn_through_derivatives(name):
    # Where a projection is far from the function, the way there need not be downhill.
    assert min(fractions(*problem(name), count=4, **CLASSICAL)) < 0.95


def test_what_pooling_chooses_is_what_its_derivative_chooses():
    """Also of equal elements, and of padding."""
    x, weights = jnp.round(2 * normal(7, 2, 9)), normal(8, 2, 5)
    for reducer, start in ((lax.max, -jnp.inf), (lax.min, jnp.inf)):

        def pooled(x, reducer=reducer, start=start):
            return lax.reduce_window(x, start, reducer, (1, 3), (1, 2), "SAME")

        def slopes(w, x, pooled=pooled):
            return jax.grad(lambda x: jnp.sum(w * pooled(x)))(x)

        def tangents(t, x, pooled=pooled):
            return jax.jvp(pooled, (x,), (t,))[1]

        for function, start in ((slopes, weights), (tangents, normal(9, 2, 9))):

            def fit(v, x, function=function):
                return losses.squared_error(function(v, x), 2.0)

            graph = pjax.project(fit).trace(start, x)
            env = graph.program.evaluate([start], [x])
            (view,) = (v for c in graph.losses for _, v in c.reads)
            np.testing.assert_array_equal(env[view.out], function(start, x))
