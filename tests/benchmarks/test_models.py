import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import mlp


def test_mlp_starts_he_normal_with_zero_biases():
    model = mlp(jax.random.key(0), [300, 200, 10])
    first, last = (layer for layer in model.layers if isinstance(layer, eqx.nn.Linear))
    assert first.weight.shape == (200, 300) and last.weight.shape == (10, 200)
    np.testing.assert_allclose(jnp.std(first.weight), np.sqrt(2 / 300), rtol=0.02)
    np.testing.assert_allclose(jnp.std(last.weight), np.sqrt(2 / 200), rtol=0.1)
    assert not first.bias.any() and not last.bias.any()


def test_mlp_is_linear_relu_linear():
    model = mlp(jax.random.key(1), [5, 4, 3])
    x = np.float32(np.random.default_rng(0).normal(size=5))
    first, _, last = model.layers
    hidden = np.maximum(np.asarray(first.weight) @ x, 0)
    np.testing.assert_allclose(model(x), np.asarray(last.weight) @ hidden, rtol=1e-5, atol=1e-6)
