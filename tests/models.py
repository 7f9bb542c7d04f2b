"""Networks of Equinox, Flax and plain arrays as people write them: what the tests of models train.

Each is given four samples of three classes, and has more hidden units than that.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn
from flax import linen
from jax import lax

import pjax_trace as pjax

__all__ = ["ACTIVATIONS", "LABELS", "MODELS", "Model"]

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
