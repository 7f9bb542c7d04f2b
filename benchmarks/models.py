"""The models that the benchmarks train, each made from a key and the sizes of its layers."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

import pjax_trace as pjax
from benchmarks.data import IMAGES, Dataset

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "Activation",
    "Block",
    "Model",
    "Recurrent",
    "Residual",
    "Skips",
    "TanhLayer",
    "TanhNetwork",
    "Transformer",
    "cnn",
    "gru",
    "mlp",
    "residual",
    "rnn",
    "straight_through",
    "transformer",
]

Function = Callable[[Array], Array]


class Residual(eqx.Module):
    """``x + layer(x)``."""

    layer: eqx.nn.Sequential

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        """The sum."""
        return x + self.layer(x)


class Skips(eqx.Module):
    """Layers in a row whose outputs are all read: concatenated, each after ``read``."""

    layers: list[eqx.nn.Sequential]
    read: Function = eqx.field(static=True, default=lambda x: x)

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        """What is read of all outputs."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(self.read(x))
        return jnp.concatenate(found)


def mlp(
    key: PRNGKeyArray,
    sizes: Sequence[int],
    activation: Function = jax.nn.relu,
    skip: bool = False,
) -> eqx.nn.Sequential:
    """A network on flattened inputs, with He-normal weights and zero biases.

    Args:
        key: of the random start.
        sizes: features, hidden layers, classes.
        activation: of the hidden layers.
        skip: whether the last layer reads all hidden ones.
    """
    *keys, last = jax.random.split(key, len(sizes) - 1)
    *features, classes = sizes
    hidden = []
    for k, inputs, outputs in zip(keys, features[:-1], features[1:], strict=True):
        linear = _he_normal(k, eqx.nn.Linear(inputs, outputs, key=k))
        hidden.append(eqx.nn.Sequential([linear, eqx.nn.Lambda(activation)]))
    read = sum(features[1:]) if skip else features[-1]
    linear = _he_normal(last, eqx.nn.Linear(read, classes, key=last))
    middle = [Skips(hidden)] if skip else itertools.chain.from_iterable(hidden)
    return eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), *middle, linear])


def residual(key: PRNGKeyArray, sizes: Sequence[int]) -> eqx.nn.Sequential:
    """A linear layer, blocks ``x + W₂ relu(W₁ x)``, a linear layer; as `mlp`, but W₂ starts at 0.

    Args:
        key: of the random start.
        sizes: features, the width of every block (the same of all), classes.
    """
    first, last, *keys = jax.random.split(key, 2 * len(sizes) - 2)
    features, *widths, classes = sizes

    def linear(key: PRNGKeyArray, inputs: int, outputs: int) -> eqx.nn.Linear:
        return _he_normal(key, eqx.nn.Linear(inputs, outputs, key=key))

    blocks = []
    for width, one, other in zip(widths, keys[::2], keys[1::2], strict=True):
        end = linear(other, width, width)
        end = eqx.tree_at(lambda layer: layer.weight, end, jnp.zeros((width, width)))
        inner = [linear(one, width, width), eqx.nn.Lambda(jax.nn.relu), end]
        blocks.append(Residual(eqx.nn.Sequential(inner)))
    start = [eqx.nn.Lambda(jnp.ravel), linear(first, features, widths[0])]
    return eqx.nn.Sequential([*start, *blocks, linear(last, widths[-1], classes)])


def cnn(
    key: PRNGKeyArray,
    sizes: Sequence[int],
    pool: Callable[..., Array] = jnp.max,
    skip: bool = False,
) -> eqx.nn.Sequential:
    """Padded 3x3 convolutions and relus, global pooling, a linear layer; starts as `mlp`.

    All convolutions but the first halve the image.

    Args:
        key: of the random start.
        sizes: channels of the image, of the convolutions, classes.
        pool: takes the image and its axes.
        skip: whether the linear layer reads all convolutions, each pooled.
    """
    *keys, last = jax.random.split(key, len(sizes) - 1)
    *channels, classes = sizes
    hidden = []
    for k, inputs, outputs in zip(keys, channels[:-1], channels[1:], strict=True):
        stride = 2 if hidden else 1
        convolution = eqx.nn.Conv2d(inputs, outputs, 3, stride, padding=1, key=k)
        layer = [_he_normal(k, convolution), eqx.nn.Lambda(jax.nn.relu)]
        hidden.append(eqx.nn.Sequential(layer))
    read = sum(channels[1:]) if skip else channels[-1]
    linear = _he_normal(last, eqx.nn.Linear(read, classes, key=last))
    pooled = functools.partial(pool, axis=(1, 2))
    if skip:
        return eqx.nn.Sequential([Skips(hidden, pooled), linear])
    layers = itertools.chain.from_iterable(hidden)
    return eqx.nn.Sequential([*layers, eqx.nn.Lambda(pooled), linear])


class Recurrent(eqx.Module):
    """Symbols in a row → logits of the symbol that follows each: embedding, GRU, linear layer."""

    embedding: eqx.nn.Embedding
    cell: eqx.nn.GRUCell
    linear: eqx.nn.Linear

    def __call__(self, text: Int[Array, "length"]) -> Float[Array, "length symbols"]:
        """The logits, from a hidden state of zeros on."""

        def step(hidden, letter):
            hidden = self.cell(letter, hidden)
            return hidden, hidden

        start = jnp.zeros(self.cell.hidden_size)
        _, hidden = jax.lax.scan(step, start, jax.vmap(self.embedding)(text))
        return jax.vmap(self.linear)(hidden)


def gru(key: PRNGKeyArray, sizes: Sequence[int]) -> Recurrent:
    """A character model, started as Equinox starts its layers.

    Args:
        key: of the random start.
        sizes: symbols read, embedding, hidden state, symbols told apart.
    """
    symbols, embedding, hidden, classes = sizes
    first, second, third = jax.random.split(key, 3)
    return Recurrent(
        eqx.nn.Embedding(symbols, embedding, key=first),
        eqx.nn.GRUCell(embedding, hidden, key=second),
        eqx.nn.Linear(hidden, classes, key=third),
    )


class TanhLayer(eqx.Module):
    """``h_t = tanh(W x_t + U h_{t-1} + b)`` from zeros on."""

    inputs: eqx.nn.Linear
    recurrence: eqx.nn.Linear

    def __call__(self, x: Float[Array, "length inputs"]) -> Float[Array, "length hidden"]:
        """What comes out at every step."""

        def step(hidden, x):
            hidden = jnp.tanh(self.inputs(x) + self.recurrence(hidden))
            return hidden, hidden

        _, hidden = jax.lax.scan(step, jnp.zeros(self.recurrence.out_features), x)
        return hidden


class TanhNetwork(eqx.Module):
    """Symbols in a row → logits of the symbol that follows each: embedding, layers, linear.

    The linear layer reads the last of the layers, with skips all of them.
    """

    embedding: eqx.nn.Embedding
    layers: list[TanhLayer]
    linear: eqx.nn.Linear
    skip: bool = eqx.field(static=True)

    def __call__(self, text: Int[Array, "length"]) -> Float[Array, "length symbols"]:
        """The logits."""
        found = [jax.vmap(self.embedding)(text)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        read = jnp.concatenate(found[1:], axis=1) if self.skip else found[-1]
        return jax.vmap(self.linear)(read)


def rnn(key: PRNGKeyArray, sizes: Sequence[int], skip: bool = False) -> TanhNetwork:
    """A character model of stacked tanh layers, started as Equinox starts its layers.

    Args:
        key: of the random start.
        sizes: symbols read, hidden states (the embedding is as large as the first), symbols told
            apart.
        skip: whether the linear layer reads all hidden states.
    """
    symbols, *hidden, classes = sizes
    first, last, *keys = jax.random.split(key, 2 + 2 * len(hidden))
    layers = [
        TanhLayer(
            eqx.nn.Linear(inputs, outputs, key=one),
            eqx.nn.Linear(outputs, outputs, use_bias=False, key=other),
        )
        for inputs, outputs, one, other in zip(
            [hidden[0], *hidden], hidden, keys[::2], keys[1::2], strict=False
        )
    ]
    return TanhNetwork(
        eqx.nn.Embedding(symbols, hidden[0], key=first),
        layers,
        eqx.nn.Linear(sum(hidden) if skip else hidden[-1], classes, key=last),
        skip,
    )


class Block(eqx.Module):
    """Attention to what came before, then a small network, each on norms and beside a skip."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    network: eqx.nn.MLP

    def __call__(self, x: Float[Array, "length features"]) -> Float[Array, "length features"]:
        """The features of the next block."""
        seen = jnp.tril(jnp.ones((len(x), len(x)), bool))
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h, mask=seen)
        return x + jax.vmap(self.network)(jax.vmap(self.norms[1])(x))


class Transformer(eqx.Module):
    """Symbols in a row → logits of the symbol that follows each."""

    embedding: eqx.nn.Embedding
    positions: Float[Array, "longest features"]
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __call__(self, text: Int[Array, "length"]) -> Float[Array, "length symbols"]:
        """The logits."""
        x = jax.vmap(self.embedding)(text) + self.positions[: len(text)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.linear)(jax.vmap(self.norm)(x))


def transformer(key: PRNGKeyArray, sizes: Sequence[int]) -> Transformer:
    """A pre-norm character model with four heads, started as Equinox starts its layers.

    Args:
        key: of the random start.
        sizes: symbols read, the features of every block (the same of all), symbols told apart.
    """
    symbols, *widths, classes = sizes
    features = widths[0]
    first, second, third, *keys = jax.random.split(key, 3 + 2 * len(widths))
    blocks = [
        Block(
            [eqx.nn.LayerNorm(features), eqx.nn.LayerNorm(features)],
            eqx.nn.MultiheadAttention(4, features, key=one),
            eqx.nn.MLP(features, features, 4 * features, 1, jax.nn.gelu, key=other),
        )
        for one, other in zip(keys[::2], keys[1::2], strict=True)
    ]
    return Transformer(
        eqx.nn.Embedding(symbols, features, key=first),
        0.1 * jax.random.normal(second, (512, features)),
        blocks,
        eqx.nn.LayerNorm(features),
        eqx.nn.Linear(features, classes, key=third),
    )


class Model(NamedTuple):
    """``make(key, sizes)``, the sizes that suit MNIST or Shakespeare, and what it reads.

    Features are anything but text, flattened. Some can be made with ``skip=True``.
    """

    make: Callable[..., Any]
    sizes: list[int]
    reads: Literal["features", "images", "text"]

    def can_read(self, dataset: str) -> bool:
        """Whether the data set of that name is of a kind that it reads."""
        if self.reads == "images":
            return dataset in IMAGES
        return (self.reads == "text") == (dataset == "shakespeare")

    def sizes_for(self, data: Dataset, hidden: Sequence[int]) -> list[int]:
        """The sizes for a data set, with those of the hidden layers."""
        shape = data.train_x.shape[1:]
        inputs = {"features": math.prod(shape), "images": shape[0], "text": data.classes}
        return [inputs[self.reads], *hidden, data.classes]


MODELS = {
    "mlp": Model(mlp, [784, 128, 10], "features"),
    "residual": Model(residual, [784, *[128] * 8, 10], "features"),
    "cnn": Model(cnn, [1, 16, 32, 10], "images"),
    "cnn-mean": Model(functools.partial(cnn, pool=jnp.mean), [1, 16, 32, 10], "images"),
    "rnn": Model(rnn, [65, 128, 65], "text"),
    "gru": Model(gru, [65, 32, 128, 65], "text"),
    "transformer": Model(transformer, [65, 64, 64, 65], "text"),
}


def straight_through(function: Function) -> Function:
    """The function, with the derivative of ``clip(x, -1, 1)`` in the place of its own."""

    @jax.custom_jvp
    def estimated(x):
        return function(x)

    @estimated.defjvp
    def derivative(primals, tangents):
        (x,), (tangent,) = primals, tangents
        return function(x), jnp.where(jnp.abs(x) <= 1, tangent, 0)

    return estimated


def _leaping(x: Array) -> Array:
    """A choice whose two cases do not meet."""
    return jnp.where(x > 0.1, x, -0.5 * x)


def _few_levels(x: Array) -> Array:
    return pjax.quantize(x, 4, 0.7)


class Activation(NamedTuple):
    """A function, and what gradients train in its place: the same values, a derivative of use."""

    function: Function
    for_gradients: Function


ACTIVATIONS = {
    "relu": Activation(jax.nn.relu, jax.nn.relu),
    "tanh": Activation(jnp.tanh, jnp.tanh),
    "sign": Activation(jnp.sign, straight_through(jnp.sign)),
    "where": Activation(_leaping, _leaping),
    "quantize": Activation(_few_levels, straight_through(_few_levels)),
}


def _he_normal(key: PRNGKeyArray, layer: Any) -> Any:
    """A layer with weights of variance 2 / fan-in and zero biases."""
    start = jax.nn.initializers.he_normal(in_axis=range(1, layer.weight.ndim), out_axis=0)
    new = start(key, layer.weight.shape), jnp.zeros_like(layer.bias)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)
