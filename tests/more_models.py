"""More models of other fields, and all of them together.

Their data are drawn from seeds.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from . import models
from .models import Field

__all__ = ["FIELDS"]


def drawn(sample, size=64, held_out=512):
    """Batches of a distribution, and what is held out: ``sample`` makes so many of a generator."""

    def arrays(number, size):
        made = sample(np.random.default_rng(number), size)
        return tuple(jnp.asarray(a.astype("f4" if a.dtype.kind == "f" else "i4")) for a in made)

    return (lambda number: arrays(number, size)), arrays(10**6, held_out)


def clusters(features, classes, spread=1.0, seed=0):
    """Classes that are mixtures of two directions each, bent by a sine."""
    centres = np.random.default_rng(seed).normal(size=(2, classes, features))

    def sample(rng, size):
        y = rng.integers(classes, size=size)
        x = centres[rng.integers(2, size=size), y] + spread * rng.normal(size=(size, features))
        return x + np.sin(2 * x), y

    return sample


def labelled(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# Spikes: leaky integrators that fire, with the derivative that the field puts in their place.


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (t,) = primals, tangents
    return spike(v), t / (1 + 10 * jnp.abs(v)) ** 2


def spiking():
    rates = np.random.default_rng(0).uniform(0, 0.25, (4, 20, 20)) ** 1.5  # class, time, channel

    def sample(rng, size):
        y = rng.integers(4, size=size)
        shift = rng.integers(-2, 3, size)
        moved = np.stack([np.roll(rates[c], s, 0) for c, s in zip(y, shift, strict=True)])
        return (rng.random(moved.shape) < 2 * moved).astype("f4"), y

    def parameters(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        return {
            "in": jax.random.normal(keys[0], (20, 48)) / jnp.sqrt(6),
            "recurrent": 0.3 * jax.random.normal(keys[1], (48, 48)) / jnp.sqrt(48),
            "out": jax.random.normal(keys[2], (48, 4)) / jnp.sqrt(48),
        }

    def objective(p, x, y):
        def step(carry, current):
            v, s, u = carry
            v = 0.9 * v * (1 - s) + current @ p["in"] + s @ p["recurrent"]
            s = spike(v - 1)
            u = 0.9 * u + s @ p["out"]
            return (v, s, u), u

        zeros = jnp.zeros((len(x), 48))
        start = (zeros, zeros, jnp.zeros((len(x), 4)))
        _, us = lax.scan(step, start, jnp.swapaxes(x, 0, 1))
        return labelled(us.mean(0), y)

    return Field(parameters, objective, *drawn(sample))


# Vector quantisation: the nearest code, passed straight through.


class Coded(eqx.Module):
    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    codes: jax.Array

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(16, 6, 48, 1, key=a)
        self.decoder = eqx.nn.MLP(6, 16, 48, 1, key=b)
        self.codes = 0.5 * jax.random.normal(c, (32, 6))


def quantised_autoencoder():
    mixing = np.random.default_rng(1).normal(size=(3, 16))

    def sample(rng, size):
        angle = 2 * np.pi * rng.random(size)
        ring = rng.integers(1, 3, size)
        z = np.stack([ring * np.cos(angle), ring * np.sin(angle), np.cos(2 * angle)], 1)
        return (z @ mixing / 2 + 0.05 * rng.normal(size=(size, 16)),)

    def objective(model, x):
        z = jax.vmap(model.encoder)(x)
        distances = jnp.sum((z[:, None] - model.codes[None]) ** 2, -1)
        q = model.codes[jnp.argmin(distances, -1)]
        through = z + lax.stop_gradient(q - z)
        out = jax.vmap(model.decoder)(through)
        codebook = jnp.mean((lax.stop_gradient(z) - q) ** 2)
        commitment = jnp.mean((z - lax.stop_gradient(q)) ** 2)
        return jnp.mean((out - x) ** 2) + codebook + 0.25 * commitment

    return Field(lambda seed: Coded(jax.random.key(seed)), objective, *drawn(sample))


# Two towers, contrasted with each other.


class Towers(eqx.Module):
    image: eqx.nn.MLP
    text: eqx.nn.MLP
    temperature: jax.Array

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.image = eqx.nn.MLP(20, 16, 64, 1, key=a)
        self.text = eqx.nn.MLP(12, 16, 64, 1, key=b)
        self.temperature = jnp.log(1 / 0.07)


def contrastive():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(8, 20)), rng.normal(size=(8, 12))

    def sample(rng, size):
        z = rng.normal(size=(size, 8))
        x, y = np.tanh(z @ first / 2), np.tanh(z @ second / 2)
        return x + 0.1 * rng.normal(size=x.shape), y + 0.1 * rng.normal(size=y.shape)

    def objective(model, x, y):
        a, b = jax.vmap(model.image)(x), jax.vmap(model.text)(y)
        a = a / jnp.linalg.norm(a, axis=-1, keepdims=True)
        b = b / jnp.linalg.norm(b, axis=-1, keepdims=True)
        logits = jnp.exp(model.temperature) * a @ b.T
        labels = jnp.arange(len(x))
        return (labelled(logits, labels) + labelled(logits.T, labels)) / 2

    return Field(lambda seed: Towers(jax.random.key(seed)), objective, *drawn(sample, held_out=64))


# Low-rank adapters of a network that does not move.


class Adapted(eqx.Module):
    base: eqx.nn.Linear
    a: jax.Array
    b: jax.Array
    scale: float = eqx.field(static=True)

    def __init__(self, base, rank, key):
        self.base, self.scale = base, 2.0
        self.a = jax.random.normal(key, (rank, base.in_features)) / jnp.sqrt(base.in_features)
        self.b = jnp.zeros((base.out_features, rank))

    def __call__(self, x):
        return self.base(x) + self.scale * (self.b @ (self.a @ x))


class AdaptedNet(eqx.Module):
    layers: list

    def __init__(self, base, key):
        keys = jax.random.split(key, len(base.layers))
        self.layers = [Adapted(w, 4, k) for w, k in zip(base.layers, keys, strict=True)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.gelu(layer(x))
        return self.layers[-1](x)


def adapters():
    base = eqx.nn.MLP(16, 5, 64, 2, activation=jax.nn.gelu, key=jax.random.key(0))

    def parameters(seed):
        return AdaptedNet(base, jax.random.key(seed))

    def objective(model, x, y):
        return labelled(jax.vmap(model)(x), y)

    spec = jax.tree.map(lambda _: False, parameters(0))
    spec = eqx.tree_at(
        lambda m: [w for layer in m.layers for w in (layer.a, layer.b)],
        spec,
        replace_fn=lambda _: True,
    )
    return Field(parameters, objective, *drawn(clusters(16, 5)), trainable=spec)


# A language model that writes with the embeddings that it reads with.


def tied():
    rng = np.random.default_rng(3)
    table = rng.dirichlet(np.full(32, 0.1), size=(32, 2))

    def sample(rng, size):
        tokens = np.empty((size, 9), int)
        tokens[:, 0] = rng.integers(32, size=size)
        for t in range(1, 9):
            odds = table[tokens[:, t - 1], t % 2].cumsum(1)
            tokens[:, t] = (rng.random((size, 1)) > odds).sum(1).clip(0, 31)
        return (tokens,)

    def parameters(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        return {
            "embedding": 0.5 * jax.random.normal(keys[0], (32, 24)),
            "position": 0.1 * jax.random.normal(keys[1], (8, 24)),
            "up": jax.random.normal(keys[2], (24, 64)) * jnp.sqrt(2 / 24),
            "down": jax.random.normal(keys[3], (64, 24)) / jnp.sqrt(64),
            "scale": jnp.ones(24),
        }

    def objective(p, tokens):
        h = p["embedding"][tokens[:, :-1]] + p["position"]
        h = h + jax.nn.gelu(h @ p["up"]) @ p["down"]
        h = h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6) * p["scale"]
        logits = h @ p["embedding"].T
        return labelled(logits, tokens[:, 1:])

    return Field(parameters, objective, *drawn(sample, size=32, held_out=256))


# A neural differential equation, by Runge and Kutta.


def neural_ode():
    matrix = np.array([[-0.1, 2.0], [-2.0, -0.1]])

    def sample(rng, size):
        y = rng.uniform(-1.5, 1.5, (size, 2))
        path = [y]
        for _ in range(8):
            for _ in range(10):
                y = y + 0.02 * (y**3 @ matrix.T)
            path.append(y)
        return path[0], np.stack(path[1:], 1)

    def parameters(seed):
        return eqx.nn.MLP(2, 2, 48, 2, activation=jnp.tanh, key=jax.random.key(seed))

    def objective(field, start, path):
        f, dt = jax.vmap(field), 0.1

        def step(y, _):
            for _ in range(2):
                k1 = f(y)
                k2 = f(y + dt / 2 * k1)
                k3 = f(y + dt / 2 * k2)
                k4 = f(y + dt * k3)
                y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return y, y

        _, ys = lax.scan(step, start, None, length=path.shape[1])
        return jnp.mean((jnp.swapaxes(ys, 0, 1) - path) ** 2)

    return Field(parameters, objective, *drawn(sample, size=32, held_out=256))


# Batch statistics, which come back beside the objective.


class Normalised(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    second: eqx.nn.Linear
    norm2: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(16, 48, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(48, "batch", momentum=0.9, mode="batch")
        self.second = eqx.nn.Linear(48, 48, use_bias=False, key=keys[1])
        self.norm2 = eqx.nn.BatchNorm(48, "batch", momentum=0.9, mode="batch")
        self.last = eqx.nn.Linear(48, 5, key=keys[2])

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        x, state = self.norm2(self.second(jax.nn.relu(x)), state)
        return self.last(jax.nn.relu(x)), state


def batch_norm():
    def objective(both, x, y):
        model, state = both
        run = jax.vmap(model, (0, None), (0, None), axis_name="batch")
        logits, state = run(x, state)
        return labelled(logits, y), state

    return Field(
        lambda seed: eqx.nn.make_with_state(Normalised)(jax.random.key(seed)),
        objective,
        *drawn(clusters(16, 5)),
        has_aux=True,
        after=lambda both, state: (both[0], state),
    )


# A whole module of Flax, with statistics and random numbers in it.


class Flax(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(16, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def flax_module():
    def objective(model, x, y):
        loss = labelled(model(x), y)
        return loss, nnx.state(model, (nnx.BatchStat, nnx.RngState))

    def after(model, state):
        nnx.update(model, state)
        return model

    return Field(
        lambda seed: Flax(nnx.Rngs(seed)),
        objective,
        *drawn(clusters(16, 5)),
        has_aux=True,
        after=after,
    )


FIELDS: dict[str, Callable[[], Field]] = {
    **models.FIELDS,
    "spiking net": spiking,
    "vq autoencoder": quantised_autoencoder,
    "contrastive": contrastive,
    "lora": adapters,
    "tied embeddings": tied,
    "neural ode": neural_ode,
    "batch norm": batch_norm,
    "flax nnx": flax_module,
}
