"""A variable multiplied with itself, or with what is made of it: users write it as it is."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import losses
from tests.learning import CLASSICAL, cosines, fractions, normal

pytestmark = pytest.mark.thinned(7)

E, SQUARE, X = 0.7 * normal(3, 6, 4), 0.5 * normal(5, 3, 3), normal(0, 8, 3)
SOURCE, TARGET = jnp.array([0, 1, 2, 3, 4, 0]), jnp.array([1, 2, 3, 4, 5, 3])


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME")


def attention(x):
    return jax.nn.softmax(x @ x.T) @ x


def orthogonalised(x):
    """A step of Newton and Schulz."""
    return 1.5 * x - 0.5 * (x @ x.T @ x)


def cosine(e):
    n = e / jnp.linalg.norm(e, axis=-1, keepdims=True)
    return n @ n.T


def covariance(e):
    centred = e - e.mean(0, keepdims=True)
    return centred.T @ centred / len(e)


def exponential(a):
    k = a - a.T
    return jnp.eye(3) + k + k @ k / 2


PROGRAMS = {
    "edges": (E, lambda e: jnp.sum(e[SOURCE] * e[TARGET], -1)),
    "edges, added up": (E, lambda e: jnp.zeros((6, 4)).at[TARGET].add(e[SOURCE] * e[TARGET])),
    "three at once": (E, lambda e: e[SOURCE] * e[TARGET] * e[TARGET[::-1]]),
    "gram": (E, lambda e: e @ e.T),
    "gram of a layer": (SQUARE, lambda w: jnp.tanh(X @ w) @ jnp.tanh(X @ w).T),
    "orthogonality": (E, lambda w: w.T @ w),
    "einsum": (E, lambda e: jnp.einsum("ij,ik->jk", e, e)),
    "einsum of three": (E, lambda e: jnp.einsum("ij,ik,il->jkl", e, e, e)),
    "einsum by row": (E, lambda e: jnp.einsum("ij,ij->i", e, e)),
    "outer": (E, jax.vmap(lambda r: jnp.outer(r, r))),
    "kron": (SQUARE, lambda x: jnp.kron(x, x)),
    "attention": (E, attention),
    "linear attention": (E, lambda x: x @ x.T @ x),
    "orthogonalised": (E / 3, orthogonalised),
    "twice orthogonalised": (E / 3, lambda x: orthogonalised(orthogonalised(x))),
    "covariance": (E, covariance),
    "jnp.cov": (E, lambda e: jnp.cov(e.T)),
    "correlation": (E, lambda e: jnp.corrcoef(e.T)),
    "cosine": (E, cosine),
    "logistic map": (E, lambda z: z * (1 - z)),
    "its own slope": (E, lambda z: jax.nn.sigmoid(z) * (1 - jax.nn.sigmoid(z))),
    "polynomial": (E, lambda e: e + e * e + e * e * e),
    "horner": (E, lambda e: e * (1 + e * (2 + e))),
    "rolled": (E, lambda x: x * jnp.roll(x, 1, 0)),
    "reversed": (E, lambda x: x * x[::-1]),
    "transposed": (SQUARE, lambda x: x * x.T),
    "square": (SQUARE, lambda x: x @ x),
    "cube": (SQUARE, lambda x: x @ x @ x),
    "in a scan": (SQUARE, lambda w: lax.scan(lambda h, _: (h @ w, None), w, None, length=2)[0]),
    "exponential": (SQUARE, exponential),
    "tied autoencoder": (SQUARE[:, :2], lambda w: jnp.tanh(X @ w) @ w.T),
    "quadratic form": (SQUARE, lambda w: jnp.einsum("ni,ij,kj,nk->n", X, w, w, X)),
    "gate": (SQUARE, lambda w: (X @ w) * jax.nn.silu(X @ w)),
    "squeeze": (SQUARE, lambda w: X @ w * jax.nn.sigmoid((X @ w).mean(-1, keepdims=True))),
    "sum": (E, lambda e: jnp.sum(e) * e),
    "maximum": (E, lambda e: jnp.max(e, -1, keepdims=True) * e),
    "quotient by itself": (E, lambda e: e / (1 + e * e)),
    "quotient by its sum": (E, lambda e: jnp.exp(e) / jnp.sum(jnp.exp(e), -1, keepdims=True)),
    "quotient by a neighbour": (E, lambda e: e / (5 + jnp.roll(e, 1, 0))),
    "inverse": (SQUARE, lambda m: m[::-1, ::-1] / (2 + m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])),
    "distances": (E, lambda e: jnp.sum(jnp.square(e[:, None] - e[None]), -1)),
    "factorisation machine": (E, lambda e: jnp.square(jnp.sum(e, 0)) - jnp.sum(e * e, 0)),
    "convolution": (normal(4, 1, 1, 5, 5), lambda x: conv(x, x[:, :, :3, :3])),
    "convolution of a layer": (
        normal(4, 1, 1, 5, 5),
        lambda x: conv(jnp.tanh(x), jnp.tanh(x.mean((2, 3), keepdims=True) + x[:, :, 1:4, 1:4])),
    ),
    "jnp.convolve": (normal(4, 6), lambda x: jnp.convolve(x, x)),
    "cross": (normal(4, 4, 3), lambda x: jnp.cross(x, jnp.roll(x, 1, 0))),
    "product of all": (E / 2 + 1, lambda e: jnp.prod(e, -1)),
    "autocorrelation": (normal(5, 6), lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2),
    "squares by choice": (E, lambda e: jnp.where(e > 0, e * e, -e)),
}
SOME = ("edges", "gram", "attention", "orthogonalised", "quotient by itself", "convolution")


@pytest.fixture(autouse=True)
def promotion():
    """What JAX's own functions do to ranks and dtypes is theirs."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def problem(name):
    """A loss that the answers of another array make zero, and where to start."""
    start, function = PROGRAMS[name]
    y = function(start + 0.4 * normal(start.size + 3, *start.shape))

    def fit(p, y):
        return losses.squared_error(function(p), y)

    return fit, start, y


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_copies_are_asked(name):
    """A sweep's move is along the gradient, in which every factor counts."""
    assert min(cosines(*problem(name))) >= 0.999


def marked(names):
    """The others take long, and are much like these."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in SOME), id=name) for name in names
    ]


@pytest.mark.parametrize("name", marked(PROGRAMS))
def test_both_kinds_of_solvers_find_it(name):
    assert fractions(*problem(name), count=40)[-1] < 0.3
    assert min(fractions(*problem(name), count=5, **CLASSICAL)) < 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"solver": pjax.DouglasRachford(), "steps": 20},
        {"solver": pjax.DouglasRachford(), "steps": 20, "granularity": "block"},
        {"solver": pjax.AlternatingProjections(), "steps": 20, "schedule": "product"},
        {"solver": pjax.CyclicProjections(), "steps": 20},
    ],
)
@pytest.mark.parametrize("name", marked(["edges", "gram", "orthogonalised", "horner"]))
def test_other_solvers_and_schedules_find_it(name, options):
    assert min(fractions(*problem(name), count=4, **options)) < 0.5


def test_orthogonality_as_a_set():
    def fit(w):
        pjax.constrain(w.T @ w, pjax.sets.Equal(jnp.eye(3)))

    solve = pjax.project(fit, solver=pjax.DouglasRachford(), steps=200, tol=1e-4)
    w, info = solve(normal(7, 5, 3))
    assert float(info.gap) <= 1e-4
    assert float(jnp.max(jnp.abs(w.T @ w - jnp.eye(3)))) < 1e-3
