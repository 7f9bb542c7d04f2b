"""The models that the benchmarks train."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

__all__ = ["mlp"]


def mlp(key: PRNGKeyArray, sizes: Sequence[int]) -> eqx.nn.Sequential:
    """A relu network of the given layer sizes, with He-normal weights and zero biases."""
    he_normal = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
    layers = []
    keys = jax.random.split(key, len(sizes) - 1)
    for layer_key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True):
        layer = eqx.nn.Linear(inputs, outputs, key=layer_key)
        start = he_normal(layer_key, (outputs, inputs)), jnp.zeros(outputs)
        layers += [
            eqx.tree_at(lambda linear: (linear.weight, linear.bias), layer, start),
            eqx.nn.Lambda(jax.nn.relu),
        ]
    return eqx.nn.Sequential(layers[:-1])
