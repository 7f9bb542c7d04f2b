"""Networks of Equinox, Flax and plain arrays as people write them: what the tests of models train.

Each is given four samples of three classes, and has more hidden units than that.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from equinox import nn
from flax import linen
from jax import lax

import pjax_trace as pjax

__all__ = ["ACTIVATIONS", "FIELDS", "LABELS", "MODELS", "Field", "Model"]

SAMPLES = 4
LABELS = jnp.arange(SAMPLES) % 3
KEYS = jax.random.split(jax.random.key(0), 4)


class Model(NamedTuple):
    """Parameters, ``apply(parameters, x)`` → scores of shape (samples, 3 or more), and x."""

    parameters: Any
    apply: Callable[[Any, Any], jax.Array]
    x: jax.Array


def inputs(*shape):
    return 2 * jax.random.normal(jax.random.key(1), (SAMPLES, *shape))


def each(net, x):
    """A module for one sample, mapped over all."""
    return jax.vmap(net)(x)


def he(number, *shape):
    return jax.nn.initializers.he_normal()(KEYS[number], shape)


class Head(eqx.Module):
    """Any module, and a linear layer on what it makes of a sample."""

    body: eqx.Module
    last: nn.Linear

    def __call__(self, x):
        return self.last(jnp.ravel(self.body(x)))


def headed(body, size, *shape):
    return Model(Head(body, nn.Linear(size, 3, key=KEYS[3])), each, inputs(*shape))


def words(module, *further):
    x = jnp.array([[0, 1], [1, 2], [3, 4], [4, 0]])
    return Model(module(nn.Embedding(5, 6, key=KEYS[0]), *further), each, x)


# Activations, each in a network of one hidden layer.

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "sign": jnp.sign,
    "round": jnp.round,
    "where": lambda h: jnp.where(h > 0.1, h, -0.5 * h),
    "clip": lambda h: jnp.clip(h, -1.0, 1.0),
    "glu": jax.nn.glu,
}


def activated(activation):
    first = nn.Linear(4, 64 if activation is jax.nn.glu else 32, key=KEYS[0])
    last = nn.Linear(32, 3, key=KEYS[1])
    return Model(nn.Sequential([first, nn.Lambda(activation), last]), each, inputs(4))


class Learned(eqx.Module):
    first: nn.Linear
    prelu: nn.PReLU
    last: nn.Linear

    def __call__(self, x):
        return self.last(self.prelu(self.first(x)))


def prelu():
    first, last = nn.Linear(4, 32, key=KEYS[0]), nn.Linear(32, 3, key=KEYS[1])
    return Model(Learned(first, nn.PReLU(), last), each, inputs(4))


# Multilayer perceptrons.


def mlp():
    return Model(nn.MLP(4, 3, 32, 2, key=KEYS[0]), each, inputs(4))


def looped():
    return mlp()._replace(apply=lambda net, x: lax.map(net, x))


def arrays():
    def apply(parameters, x):
        (w, b), (v, c) = parameters
        return jnp.tanh(x @ w + b[None]) @ v + c[None]

    parameters = [(he(0, 4, 32), jnp.zeros(32)), (he(1, 32, 3), jnp.zeros(3))]
    return Model(parameters, apply, inputs(4))


def shared():
    def apply(p, x):
        h = jax.nn.relu(x @ p["first"])
        for _ in range(2):
            h = jax.nn.relu(h @ p["again"])
        return h @ p["last"]

    parameters = {"first": he(0, 4, 16), "again": he(1, 16, 16), "last": he(2, 16, 3)}
    return Model(parameters, apply, inputs(4))


def stacked():
    """Layers of equal shape, stacked and scanned."""

    def apply(p, x):
        def layer(h, w):
            return jax.nn.relu(h @ w), None

        return lax.scan(layer, x @ p["first"], p["stack"])[0] @ p["last"]

    stack = jnp.stack([he(1, 16, 16), he(2, 16, 16)])
    return Model({"first": he(0, 4, 16), "stack": stack, "last": he(3, 16, 3)}, apply, inputs(4))


def ternary():
    def apply(p, x):
        return jax.nn.relu(x @ pjax.quantize(p["first"], 3)) @ p["last"]

    return Model({"first": he(0, 4, 128), "last": he(1, 128, 3)}, apply, inputs(4))


class Residual(eqx.Module):
    first: nn.Linear
    blocks: list[nn.MLP]
    last: nn.Linear

    def __call__(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def residual():
    blocks = [nn.MLP(16, 16, 16, 1, key=key) for key in KEYS[1:3]]
    net = Residual(nn.Linear(4, 16, key=KEYS[0]), blocks, nn.Linear(16, 3, key=KEYS[3]))
    return Model(net, each, inputs(4))


# Convolutions and pools.


def convolutional():
    layers = [
        nn.Conv2d(1, 4, 3, padding=1, key=KEYS[0]),
        nn.Lambda(jax.nn.relu),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(4, 4, 2, key=KEYS[1]),
        nn.AvgPool2d(2, 1),
    ]
    return headed(nn.Sequential(layers), 16, 1, 8, 8)


def adaptive():
    layers = [
        nn.Conv2d(1, 8, 3, key=KEYS[0]),
        nn.Lambda(jax.nn.relu),
        nn.AdaptiveMaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
    ]
    return headed(nn.Sequential(layers), 8, 1, 6, 6)


def convolutional_1d():
    layers = [nn.Conv1d(2, 4, 3, padding=1, key=KEYS[0]), nn.Lambda(jax.nn.relu)]
    return headed(nn.Sequential(layers), 24, 2, 6)


def convolutional_3d():
    layers = [nn.Conv3d(1, 4, 2, key=KEYS[0]), nn.Lambda(jax.nn.relu)]
    return headed(nn.Sequential(layers), 32, 1, 3, 3, 3)


def transposed():
    layers = [
        nn.ConvTranspose2d(1, 4, 3, stride=2, key=KEYS[0]),
        nn.Lambda(jax.nn.relu),
        nn.Conv2d(4, 2, 3, stride=2, groups=2, key=KEYS[1]),
    ]
    return headed(nn.Sequential(layers), 18, 1, 3, 3)


class ResidualConvolution(eqx.Module):
    first: nn.Conv2d
    second: nn.Conv2d

    def __call__(self, x):
        h = self.first(x)
        return jnp.mean(h + jax.nn.relu(self.second(h)), axis=(1, 2))


def residual_convolutional():
    first = nn.Conv2d(1, 16, 3, padding=1, key=KEYS[0])
    second = nn.Conv2d(16, 16, 3, padding=1, key=KEYS[1])
    return headed(ResidualConvolution(first, second), 16, 1, 4, 4)


# Normalisation, dropout, embeddings.


def normalised(layer):
    layers = [nn.Linear(4, 32, key=KEYS[0]), layer, nn.Lambda(jax.nn.relu)]
    return headed(nn.Sequential(layers), 32, 4)


class Batched(eqx.Module):
    first: nn.Linear
    norm: nn.BatchNorm
    last: nn.Linear

    def __call__(self, x, state):
        h, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(h)), state


def batch_norm():
    net = Batched(
        nn.Linear(4, 32, key=KEYS[0]),
        nn.BatchNorm(32, "batch", mode="ema"),
        nn.Linear(32, 3, key=KEYS[1]),
    )
    x = inputs(4)
    mapped = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
    _, state = jax.vmap(net, **mapped)(x, nn.State(net))

    def apply(net, x):
        return jax.vmap(net, **mapped)(x, state)[0]

    return Model(nn.inference_mode(net), apply, x)


class Words(eqx.Module):
    embedding: nn.Embedding
    mlp: nn.MLP

    def __call__(self, ids):
        return self.mlp(jnp.ravel(jax.vmap(self.embedding)(ids)))


class Tied(eqx.Module):
    """The scores of words, by the embedding itself."""

    embedding: nn.Embedding
    mlp: nn.MLP

    def __call__(self, ids):
        return self.embedding.weight @ self.mlp(jnp.sum(jax.vmap(self.embedding)(ids), axis=0))


# Sequences.


class Recurrent(eqx.Module):
    cell: nn.GRUCell | nn.LSTMCell

    def __call__(self, xs):
        h = jnp.zeros(self.cell.hidden_size)
        start = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        last, _ = lax.scan(lambda carry, x: (self.cell(x, carry), None), start, xs)
        return last[0] if isinstance(self.cell, nn.LSTMCell) else last


class Attention(eqx.Module):
    attention: nn.MultiheadAttention
    causal: bool = eqx.field(static=True)

    def __call__(self, xs):
        mask = jnp.tril(jnp.ones((len(xs), len(xs)), bool)) if self.causal else None
        return self.attention(xs, xs, xs, mask=mask)


def attention(causal):
    return headed(Attention(nn.MultiheadAttention(2, 4, key=KEYS[0]), causal), 12, 3, 4)


class Transformer(eqx.Module):
    """One block with the norms first."""

    norms: list[nn.LayerNorm]
    attention: nn.MultiheadAttention
    mlp: nn.MLP

    def __call__(self, xs):
        h = jax.vmap(self.norms[0])(xs)
        xs = xs + self.attention(h, h, h)
        return xs + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(xs))


def transformer():
    block = Transformer(
        [nn.LayerNorm(4), nn.LayerNorm(4)],
        nn.MultiheadAttention(2, 4, key=KEYS[0]),
        nn.MLP(4, 4, 16, 1, activation=jax.nn.gelu, key=KEYS[1]),
    )
    return headed(block, 12, 3, 4)


# Flax.


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.relu(linen.Dense(32)(x)))


class LinenCNN(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.max_pool(linen.relu(linen.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
        return linen.Dense(3)(h.reshape(len(h), -1))


class LinenNorms(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.BatchNorm(use_running_average=True)(linen.Dense(32)(x))
        return linen.Dense(3)(linen.relu(linen.LayerNorm()(h)))


def flax(module, *shape):
    x = inputs(*shape)
    variables = module.init(KEYS[0], x)
    fixed = {name: value for name, value in variables.items() if name != "params"}
    return Model(variables["params"], lambda p, x: module.apply({"params": p, **fixed}, x), x)


MODELS: dict[str, Callable[[], Model]] = {
    **{name: functools.partial(activated, f) for name, f in ACTIVATIONS.items()},
    "prelu": prelu,
    "mlp": mlp,
    "lax.map": looped,
    "arrays": arrays,
    "shared weights": shared,
    "stacked layers": stacked,
    "ternary weights": ternary,
    "residual MLP": residual,
    "CNN": convolutional,
    "adaptive pools": adaptive,
    "Conv1d": convolutional_1d,
    "Conv3d": convolutional_3d,
    "ConvTranspose2d": transposed,
    "residual CNN": residual_convolutional,
    "LayerNorm": lambda: normalised(nn.LayerNorm(32)),
    "RMSNorm": lambda: normalised(nn.RMSNorm(32)),
    "GroupNorm": lambda: normalised(nn.GroupNorm(4, 32)),
    "BatchNorm": batch_norm,
    "Dropout": lambda: normalised(nn.Dropout(0.5, inference=True)),
    "Embedding": lambda: words(Words, nn.MLP(12, 3, 32, 1, key=KEYS[1])),
    "tied Embedding": lambda: words(Tied, nn.MLP(6, 6, 32, 1, key=KEYS[1])),
    "GRUCell": lambda: headed(Recurrent(nn.GRUCell(2, 16, key=KEYS[0])), 16, 3, 2),
    "LSTMCell": lambda: headed(Recurrent(nn.LSTMCell(2, 16, key=KEYS[0])), 16, 3, 2),
    "attention": lambda: attention(causal=False),
    "causal attention": lambda: attention(causal=True),
    "transformer": transformer,
    "Flax MLP": lambda: flax(LinenMLP(), 4),
    "Flax CNN": lambda: flax(LinenCNN(), 6, 6, 1),
    "Flax norms": lambda: flax(LinenNorms(), 4),
}


# Models of other fields, with the losses of their fields, as they are written for `jax.grad`.


class Field(NamedTuple):
    """A model of some field with its own loss, and data made from numbers.

    Attributes:
        parameters: a seed → the parameters.
        objective: the parameters and the arrays of a batch → a scalar, or that and something else.
        batch: a number → the arrays of a batch.
        held_out: those of data that no batch has.
        has_aux: whether the objective returns a pair.
        trainable: as of `pjax.project`.
        after: the parameters and what else the objective returned → parameters, such as new
            statistics.
    """

    parameters: Callable[[int], Any]
    objective: Callable[..., Any]
    batch: Callable[[int], tuple]
    held_out: tuple
    has_aux: bool = False
    trainable: Any = None
    after: Callable[[Any, Any], Any] | None = None


def field(parameters, objective, sample, held_out=512, size=64, **more):
    """A field whose batches are samples of a random key and a size; batch -1 is never trained."""

    def batch(number):
        return sample(jax.random.fold_in(jax.random.key(7), number), size)

    away = sample(jax.random.key(8), held_out)
    return Field(lambda seed: parameters(jax.random.key(seed)), objective, batch, away, **more)


def kan():
    """A Kolmogorov–Arnold network: a B-spline and a SiLU on every edge (Liu et al., 2024)."""
    sizes, grid, order = (2, 8, 1), 5, 3
    knots = jnp.linspace(-1 - 2 * order / grid, 1 + 2 * order / grid, grid + 2 * order + 1)

    def splines(x):
        x = x[..., None]
        bases = jnp.where((x >= knots[:-1]) & (x < knots[1:]), 1.0, 0.0)
        for k in range(1, order + 1):
            left = (x - knots[: -k - 1]) / (knots[k:-1] - knots[: -k - 1])
            right = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
            bases = left * bases[..., :-1] + right * bases[..., 1:]
        return bases

    def parameters(key):
        layers = []
        for n, m in itertools.pairwise(sizes):
            key, base, spline = jax.random.split(key, 3)
            layers.append(
                {
                    "base": jax.random.normal(base, (n, m)) / jnp.sqrt(n),
                    "spline": 0.1 * jax.random.normal(spline, (n, grid + order, m)),
                }
            )
        return layers

    def objective(layers, x, y):
        for layer in layers:
            smooth = jax.nn.silu(x) @ layer["base"]
            x = smooth + jnp.einsum("bnk,nkm->bm", splines(x), layer["spline"])
        return jnp.mean((x[:, 0] - y) ** 2)

    def sample(key, size):
        x = jax.random.uniform(key, (size, 2), minval=-1, maxval=1)
        return x, jnp.exp(jnp.sin(jnp.pi * x[:, 0]) + x[:, 1] ** 2) / 2

    return field(parameters, objective, sample)


def moons(key, size):
    """Points of two half circles."""
    angle, noise = jax.random.split(key)
    t = jax.random.uniform(angle, (size,), maxval=jnp.pi)
    upper = jnp.arange(size) % 2 == 0
    x = jnp.where(upper, jnp.cos(t), 1 - jnp.cos(t)) - 0.5
    y = jnp.where(upper, jnp.sin(t), 0.5 - jnp.sin(t)) - 0.25
    return jnp.stack([x, y], axis=-1) + 0.1 * jax.random.normal(noise, (size, 2))


def coupling_flow():
    """RealNVP with four couplings, by the likelihood (Dinh et al., 2017)."""

    def parameters(key):
        return [nn.MLP(1, 2, 32, 2, activation=jnp.tanh, key=k) for k in jax.random.split(key, 4)]

    def log_likelihood(nets, x):
        log_det = 0.0
        for i, net in enumerate(nets):
            kept, moved = (x[0], x[1]) if i % 2 == 0 else (x[1], x[0])
            scale, shift = net(kept[None])
            scale = jnp.tanh(scale)
            moved = moved * jnp.exp(scale) + shift
            log_det = log_det + scale
            x = jnp.stack([kept, moved] if i % 2 == 0 else [moved, kept])
        return jnp.sum(jax.scipy.stats.norm.logpdf(x)) + log_det

    def objective(nets, x):
        return -jnp.mean(jax.vmap(functools.partial(log_likelihood, nets))(x))

    return field(parameters, objective, lambda key, size: (moons(key, size),), size=128)


def physics():
    """A physics-informed network of Burgers' equation (Raissi et al., 2019)."""
    viscosity = 0.1

    def parameters(key):
        return nn.MLP(2, "scalar", 20, 3, activation=jnp.tanh, key=key)

    def objective(net, inside, start, border):
        def u(t, x):
            return net(jnp.stack([t, x]))

        def residual(t, x):
            u_t, u_x = jax.grad(u, (0, 1))(t, x)
            u_xx = jax.grad(jax.grad(u, 1), 1)(t, x)
            return u_t + u(t, x) * u_x - viscosity * u_xx

        pde = jnp.mean(jax.vmap(residual)(*inside.T) ** 2)
        at_start = jax.vmap(lambda x: u(jnp.zeros(()), x))(start) + jnp.sin(jnp.pi * start)
        at_border = jax.vmap(u)(*border.T)
        return pde + jnp.mean(at_start**2) + jnp.mean(at_border**2)

    def sample(key, size):
        keys = jax.random.split(key, 4)
        inside = jax.random.uniform(keys[0], (size, 2)) * jnp.array([1.0, 2.0]) - jnp.array([0, 1])
        start = jax.random.uniform(keys[1], (size // 2,), minval=-1, maxval=1)
        sides = jnp.sign(jax.random.uniform(keys[2], (size // 2,)) - 0.5)
        border = jnp.stack([jax.random.uniform(keys[3], (size // 2,)), sides], axis=-1)
        return inside, start, border

    return field(parameters, objective, sample)


class S4D(eqx.Module):
    """A diagonal state space, by convolution with its kernel (Gu et al., 2022)."""

    log_step: jax.Array
    log_real: jax.Array
    imaginary: jax.Array
    c: jax.Array
    d: jax.Array

    def __init__(self, width, states, key):
        keys = jax.random.split(key, 3)
        self.log_step = jax.random.uniform(keys[0], (width,), minval=-4.0, maxval=-1.5)
        self.log_real = jnp.log(0.5 * jnp.ones((width, states)))
        self.imaginary = jnp.pi * jnp.tile(jnp.arange(states, dtype=float), (width, 1))
        self.c = jax.random.normal(keys[1], (width, states), dtype=jnp.complex64)
        self.d = jax.random.normal(keys[2], (width,))

    def __call__(self, u):
        width, length = u.shape
        step = jnp.exp(self.log_step)[:, None]
        a = -jnp.exp(self.log_real) + 1j * self.imaginary
        powers = jnp.exp((a * step)[:, :, None] * jnp.arange(length))
        c = self.c * (jnp.exp(a * step) - 1) / a
        kernel = 2 * jnp.einsum("hn,hnl->hl", c, powers).real
        spectrum = jnp.fft.rfft(kernel, n=2 * length) * jnp.fft.rfft(u, n=2 * length)
        return jnp.fft.irfft(spectrum, n=2 * length)[:, :length] + self.d[:, None] * u


class StateSpace(eqx.Module):
    """Blocks of state spaces, and the mean over time."""

    encoder: nn.Linear
    layers: list[S4D]
    mixers: list[nn.Linear]
    norms: list[nn.LayerNorm]
    decoder: nn.Linear

    def __init__(self, width, states, classes, key):
        keys = jax.random.split(key, 6)
        self.encoder = nn.Linear(1, width, key=keys[0])
        self.layers = [S4D(width, states, k) for k in keys[1:3]]
        self.mixers = [nn.Linear(width, 2 * width, key=k) for k in keys[3:5]]
        self.norms = [nn.LayerNorm(width) for _ in range(2)]
        self.decoder = nn.Linear(width, classes, key=keys[5])

    def __call__(self, x):
        h = jax.vmap(self.encoder)(x[:, None])
        for layer, mixer, norm in zip(self.layers, self.mixers, self.norms, strict=True):
            y = jax.nn.gelu(layer(h.T).T)
            h = jax.vmap(norm)(h + jax.nn.glu(jax.vmap(mixer)(y)))
        return self.decoder(jnp.mean(h, axis=0))


def state_space():
    """Classes of waves by their frequency and shape."""

    def objective(net, x, labels):
        logits = jax.vmap(net)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def sample(key, size):
        keys = jax.random.split(key, 4)
        labels = jax.random.randint(keys[0], (size,), 0, 4)
        phase = jax.random.uniform(keys[1], (size, 1), maxval=2 * jnp.pi)
        speed = 0.3 * jnp.array([1.0, 1.2, 1.0, 1.2])[labels][:, None]
        wave = jnp.sin(speed * jnp.arange(64) + phase)
        wave = jnp.where(labels[:, None] < 2, wave, jnp.sign(wave))
        return wave + 0.5 * jax.random.normal(keys[2], wave.shape), labels

    return field(lambda key: StateSpace(16, 8, 4, key), objective, sample, held_out=256, size=32)


class Spectral(eqx.Module):
    """A convolution by few frequencies, and what is added to it point by point."""

    weight: jax.Array
    skip: nn.Conv1d

    def __init__(self, width, modes, key):
        first, second, third = jax.random.split(key, 3)
        real = jax.random.normal(first, (width, width, modes))
        self.weight = (real + 1j * jax.random.normal(second, real.shape)) / width
        self.skip = nn.Conv1d(width, width, 1, key=third)

    def __call__(self, x):
        modes = self.weight.shape[-1]
        spectrum = jnp.fft.rfft(x)
        kept = jnp.einsum("im,iom->om", spectrum[:, :modes], self.weight)
        out = jnp.zeros((x.shape[0], spectrum.shape[-1]), spectrum.dtype).at[:, :modes].set(kept)
        return jnp.fft.irfft(out, n=x.shape[-1]) + self.skip(x)


class FourierOperator(eqx.Module):
    """From a function and its grid to another (Li et al., 2021)."""

    lift: nn.Conv1d
    blocks: list[Spectral]
    project: nn.Conv1d

    def __init__(self, width, modes, key):
        keys = jax.random.split(key, 5)
        self.lift = nn.Conv1d(2, width, 1, key=keys[0])
        self.blocks = [Spectral(width, modes, k) for k in keys[1:4]]
        self.project = nn.Conv1d(width, 1, 1, key=keys[4])

    def __call__(self, a):
        h = self.lift(jnp.stack([a, jnp.linspace(0, 1, len(a), endpoint=False)]))
        for block in self.blocks:
            h = jax.nn.gelu(block(h))
        return self.project(h)[0]


def fourier_operator():
    """The solution of a nonlinear smoothing by the relative error in the norm of L²."""

    def objective(net, a, u):
        error = jnp.linalg.norm(jax.vmap(net)(a) - u, axis=-1)
        return jnp.mean(error / jnp.linalg.norm(u, axis=-1))

    def sample(key, size):
        waves = jnp.arange(1, 6)
        grid = jnp.arange(64) / 64
        parts = jax.random.normal(key, (2, size, 5)) / waves
        angles = 2 * jnp.pi * waves[:, None] * grid
        a = parts[0] @ jnp.cos(angles) + parts[1] @ jnp.sin(angles)
        heat = jnp.exp(-0.02 * (2 * jnp.pi * jnp.arange(33)) ** 2)
        return a, jnp.fft.irfft(heat * jnp.fft.rfft(a + 0.5 * a**2), n=64)

    return field(lambda key: FourierOperator(16, 8, key), objective, sample, 256, 32)


def graph_attention():
    """Graph attention on random graphs of three communities (Veličković et al., 2018)."""
    nodes, edges, features, hidden, heads, classes = 96, 480, 8, 8, 4, 3

    def layer(p, h, senders, receivers):
        h = jnp.einsum("nf,fkc->nkc", h, p["w"])
        scores = jnp.sum(h * p["to"], -1)[receivers] + jnp.sum(h * p["from"], -1)[senders]
        scores = jax.nn.leaky_relu(scores, 0.2)
        top = jax.ops.segment_max(scores, receivers, len(h))
        weights = jnp.exp(scores - top[receivers])
        total = jax.ops.segment_sum(weights, receivers, len(h))
        alpha = weights / total[receivers]
        return jax.ops.segment_sum(alpha[..., None] * h[senders], receivers, len(h)) + p["bias"]

    def parameters(key):
        layers = []
        for n, k, m in ((features, heads, hidden), (heads * hidden, 1, classes)):
            key, *keys = jax.random.split(key, 4)
            glorot = jax.nn.initializers.glorot_normal()
            w = glorot(keys[0], (n, k * m)).reshape(n, k, m)
            to, away = (glorot(a, (k, m)) for a in keys[1:])
            layers.append({"w": w, "to": to, "from": away, "bias": jnp.zeros((k, m))})
        return layers

    def objective(layers, x, senders, receivers, labels, seen):
        h = jax.nn.elu(layer(layers[0], x, senders, receivers).reshape(len(x), -1))
        logits = layer(layers[1], h, senders, receivers)[:, 0]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(losses * seen) / jnp.sum(seen)

    def sample(key, count):
        count *= nodes
        keys = jax.random.split(key, 6)
        labels = jax.random.randint(keys[0], (count,), 0, classes)
        means = jax.random.normal(jax.random.key(9), (classes, features))
        x = means[labels] + 2 * jax.random.normal(keys[1], (count, features))
        # Four of five edges are within a community.
        senders = jnp.tile(jnp.arange(count), edges // nodes)
        alike = jax.random.uniform(keys[2], (len(senders), count))
        alike += labels[senders][:, None] == labels
        anyone = jax.random.randint(keys[3], senders.shape, 0, count)
        within = jax.random.uniform(keys[4], senders.shape) < 0.8
        receivers = jnp.where(within, jnp.argmax(alike, axis=1), anyone)
        itself = jnp.arange(count)
        senders, receivers = (jnp.concatenate([v, itself]) for v in (senders, receivers))
        seen = (jax.random.uniform(keys[5], (count,)) < 0.7).astype(float)
        return x, senders, receivers, labels, seen

    return field(parameters, objective, sample, held_out=8, size=1)


class Block(eqx.Module):
    """Causal attention and a perceptron, each after a norm and beside what came in."""

    norms: list[nn.LayerNorm]
    attention: nn.Linear
    out: nn.Linear
    mlp: nn.MLP
    heads: int = eqx.field(static=True)

    def __init__(self, width, heads, key):
        keys = jax.random.split(key, 3)
        self.norms = [nn.LayerNorm(width) for _ in range(2)]
        self.attention = nn.Linear(width, 3 * width, use_bias=False, key=keys[0])
        self.out = nn.Linear(width, width, use_bias=False, key=keys[1])
        self.mlp = nn.MLP(width, width, 4 * width, 1, activation=jax.nn.gelu, key=keys[2])
        self.heads = heads

    def __call__(self, x):
        length, width = x.shape
        h = jax.vmap(self.attention)(jax.vmap(self.norms[0])(x))
        q, k, v = jnp.split(h.reshape(length, self.heads, -1), 3, axis=-1)
        scores = jnp.einsum("qhd,khd->hqk", q, k) / jnp.sqrt(width // self.heads)
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
        h = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(length, width)
        x = x + jax.vmap(self.out)(h)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class GPT(eqx.Module):
    """A language model of characters whose last layer is its embedding."""

    tokens: jax.Array
    places: jax.Array
    blocks: list[Block]
    norm: nn.LayerNorm

    def __init__(self, characters, length, width, key):
        keys = jax.random.split(key, 4)
        self.tokens = 0.1 * jax.random.normal(keys[0], (characters, width))
        self.places = 0.1 * jax.random.normal(keys[1], (length, width))
        self.blocks = [Block(width, 4, k) for k in keys[2:]]
        self.norm = nn.LayerNorm(width)

    def __call__(self, ids):
        x = self.tokens[ids] + self.places[: len(ids)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.tokens.T


def gpt():
    """Numbers counted up by steps of one to three, digit by digit."""
    length = 24

    def objective(net, ids):
        logits = jax.vmap(net)(ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    def sample(key, size):
        first, second = jax.random.split(key)
        start = jax.random.randint(first, (size, 1), 0, 60)
        step = jax.random.randint(second, (size, 1), 1, 4)
        numbers = start + step * jnp.arange((length + 3) // 3)
        digits = jnp.stack([numbers // 10, numbers % 10, jnp.full_like(numbers, 10)], -1)
        return (digits.reshape(size, -1)[:, : length + 1],)

    return field(lambda key: GPT(11, length, 32, key), objective, sample, 128, 32)


def mixture():
    """Experts, of which a gate chooses two (Shazeer et al., 2017; Fedus et al., 2022)."""
    experts, chosen, features, hidden, classes = 4, 2, 8, 16, 4

    def parameters(key):
        keys = jax.random.split(key, 3)
        return {
            "gate": jax.random.normal(keys[0], (features, experts)) / jnp.sqrt(features),
            "w": jax.random.normal(keys[1], (experts, features, hidden)) * jnp.sqrt(2 / features),
            "b": jnp.zeros((experts, hidden)),
            "v": jax.random.normal(keys[2], (experts, hidden, classes)) / jnp.sqrt(hidden),
            "c": jnp.zeros((experts, classes)),
        }

    def objective(p, x, labels):
        probabilities = jax.nn.softmax(x @ p["gate"])
        top, which = jax.lax.top_k(probabilities, chosen)
        top = top / jnp.sum(top, axis=-1, keepdims=True)
        routed = jax.nn.one_hot(which, experts)
        weights = jnp.sum(routed * top[..., None], axis=1)
        h = jax.nn.relu(jnp.einsum("bf,efh->beh", x, p["w"]) + p["b"])
        each = jnp.einsum("beh,ehc->bec", h, p["v"]) + p["c"]
        logits = jnp.einsum("be,bec->bc", weights, each)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        share = jnp.mean(jnp.sum(routed, axis=1), axis=0) / chosen
        balance = experts * jnp.sum(share * jnp.mean(probabilities, axis=0))
        return loss + 0.01 * balance, {"load": share}

    def sample(key, size):
        first, second = jax.random.split(key)
        # In each of four clusters another part of the features decides.
        cluster = jax.random.randint(first, (size,), 0, 4)
        means = 2 * jax.random.normal(jax.random.key(9), (4, features))
        x = jax.random.normal(second, (size, features))
        scores = jnp.einsum("bf,bfc->bc", x, jax.random.normal(KEYS[0], (4, features, 4))[cluster])
        return x + means[cluster], jnp.argmax(scores, axis=-1)

    return field(parameters, objective, sample, has_aux=True)


FIELDS: dict[str, Callable[[], Field]] = {
    "KAN": kan,
    "coupling flow": coupling_flow,
    "physics-informed": physics,
    "S4D": state_space,
    "FNO": fourier_operator,
    "graph attention": graph_attention,
    "GPT": gpt,
    "mixture of experts": mixture,
}
