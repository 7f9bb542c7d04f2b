import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from benchmarks.models import ACTIVATIONS, MODELS, cnn, gru, mlp, rnn


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
    first, last = (layer for layer in model.layers if isinstance(layer, eqx.nn.Linear))
    hidden = np.maximum(np.asarray(first.weight) @ x, 0)
    np.testing.assert_allclose(model(x), np.asarray(last.weight) @ hidden, rtol=1e-5, atol=1e-6)
    assert np.array_equal(model(x), model(x.reshape(1, 5, 1)))  # An image is flattened.


def test_with_skips_the_last_layer_reads_all_hidden_ones():
    plain, skipped = (mlp(jax.random.key(1), [5, 4, 3, 2], jnp.tanh, skip) for skip in (0, 1))
    first, second, _ = (layer for layer in plain.layers if isinstance(layer, eqx.nn.Linear))
    x = jnp.linspace(-1.0, 1.0, 5)
    hidden = jnp.tanh(first(x))  # The same start.
    expected = skipped.layers[-1](jnp.concatenate([hidden, jnp.tanh(second(hidden))]))
    np.testing.assert_allclose(skipped(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_train_the_same_values(name):
    function, for_gradients = ACTIVATIONS[name]
    x = jnp.linspace(-3.0, 3.0, 61)
    assert np.array_equal(function(x), jax.jit(jax.vmap(for_gradients))(x))
    slopes = jax.vmap(jax.grad(for_gradients))(x)
    if name in ("sign", "quantize"):
        assert np.array_equal(slopes, jnp.abs(x) <= 1)
    else:
        assert np.array_equal(slopes, jax.vmap(jax.grad(function))(x))


def test_activations_are_those_of_their_names():
    x = jnp.array([-2.0, -0.3, 0.05, 0.2])
    np.testing.assert_allclose(ACTIVATIONS["where"].function(x), [1.0, 0.15, -0.025, 0.2])
    assert np.array_equal(ACTIVATIONS["quantize"].function(x), pjax.quantize(x, 4, 0.7))


def test_cnn_starts_he_normal_with_zero_biases():
    model = cnn(jax.random.key(0), [3, 64, 128, 10])
    first, second = (layer for layer in model.layers if isinstance(layer, eqx.nn.Conv2d))
    assert first.weight.shape == (64, 3, 3, 3) and second.weight.shape == (128, 64, 3, 3)
    np.testing.assert_allclose(jnp.std(first.weight), np.sqrt(2 / 27), rtol=0.05)
    np.testing.assert_allclose(jnp.std(second.weight), np.sqrt(2 / 576), rtol=0.02)
    np.testing.assert_allclose(jnp.std(model.layers[-1].weight), np.sqrt(2 / 128), rtol=0.1)
    assert not any(layer.bias.any() for layer in (first, second, model.layers[-1]))


def test_cnn_sees_a_pattern_wherever_it_is():
    model = cnn(jax.random.key(0), [1, 4, 8, 10])
    patch = jax.random.uniform(jax.random.key(1), (1, 4, 4))
    there, elsewhere = (jnp.zeros((1, 28, 28)).at[:, i : i + 4, 8:12].set(patch) for i in (8, 14))
    np.testing.assert_allclose(model(there), model(elsewhere), rtol=1e-5, atol=1e-6)
    assert model(there).shape == (10,)


def test_gru_predicts_from_the_past_only():
    model = gru(jax.random.key(0), [7, 4, 8, 7])
    text = jnp.array([0, 3, 6, 2, 5])
    logits, changed = model(text), model(text.at[3].set(1))
    assert logits.shape == (5, 7)
    np.testing.assert_allclose(logits[:3], changed[:3], rtol=1e-5)
    assert not jnp.allclose(logits[3:], changed[3:])


def test_gru_steps_its_cell():
    model = gru(jax.random.key(0), [7, 4, 8, 7])
    hidden = jnp.zeros(8)
    for symbol in (2, 5):
        hidden = model.cell(model.embedding.weight[symbol], hidden)
    expected = model.linear(hidden)
    np.testing.assert_allclose(model(jnp.array([2, 5]))[-1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_tanh_layers_step_and_skip(skip):
    model = rnn(jax.random.key(0), [7, 4, 3, 7], skip)
    found = [model.embedding.weight[jnp.array([2, 5])]]
    for layer in model.layers:
        hidden, out = jnp.zeros(layer.recurrence.out_features), []
        for letter in found[-1]:
            hidden = jnp.tanh(layer.inputs(letter) + layer.recurrence.weight @ hidden)
            out.append(hidden)
        found.append(jnp.stack(out))
    read = jnp.concatenate([states[-1] for states in found[1:]]) if skip else found[-1][-1]
    logits = model(jnp.array([2, 5]))[-1]
    np.testing.assert_allclose(logits, model.linear(read), rtol=1e-5, atol=1e-6)


def test_cnn_skips_are_pooled():
    plain, skipped = (cnn(jax.random.key(0), [1, 3, 2, 10], skip=skip) for skip in (False, True))
    x = jax.random.uniform(jax.random.key(1), (1, 7, 7))
    first, second = (layer for layer in plain.layers if isinstance(layer, eqx.nn.Conv2d))
    hidden = jax.nn.relu(first(x))
    pooled = [jnp.max(h, (1, 2)) for h in (hidden, jax.nn.relu(second(hidden)))]
    expected = skipped.layers[-1](jnp.concatenate(pooled))
    np.testing.assert_allclose(skipped(x), expected, rtol=1e-5, atol=1e-6)


def test_models_know_what_they_read():
    assert MODELS["mlp"].can_read("higgs") and not MODELS["mlp"].can_read("shakespeare")
    assert MODELS["rnn"].can_read("shakespeare") and not MODELS["rnn"].can_read("digits")
    assert MODELS["cnn"].can_read("cifar10") and not MODELS["cnn"].can_read("higgs")


def test_every_model_is_made_of_its_sizes():
    for make, sizes, _ in MODELS.values():
        leaves = jax.tree.leaves(eqx.filter(make(jax.random.key(0), sizes), eqx.is_array))
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
