"""Momentum and averages between updates, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.errors import InputError


def fit(params, x, y):
    return pjax.losses.squared_error(x @ params["w"] + params["b"][None], y)


def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"w": jax.random.normal(keys[0], (3, 2)), "b": jnp.zeros(2)}
    batches = [
        (jax.random.normal(keys[i], (5, 3)), jax.random.normal(keys[i], (5, 2))) for i in (1, 2, 3)
    ]
    return params, batches


def run(acceleration, solver=None, record=None):
    params, batches = problem()
    train = pjax.project(fit, solver=solver or pjax.Sweep(), steps=1, acceleration=acceleration)
    state = train.init(params)
    for batch in batches:
        params, state, _ = train.update(params, state, *batch)
        if record is not None:
            record.append(params)
    return train, params, state


def by_hand(decay, nesterov, solver):
    params, batches = problem()
    update = pjax.project(fit, solver=solver, steps=1, acceleration=())
    velocity = jax.tree.map(jnp.zeros_like, params)
    for batch in batches:
        ahead = jax.tree.map(lambda p, v: p + decay * v, params, velocity)
        new, _ = update(ahead if nesterov else params, *batch)
        if not nesterov:
            new = jax.tree.map(lambda n, v: n + decay * v, new, velocity)
        velocity = jax.tree.map(jnp.subtract, new, params)
        params = new
    return params


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("solver", [pjax.Sweep(), pjax.AlternatingProjections()], ids=str)
def test_momentum(nesterov, solver):
    _, params, _ = run(pjax.Momentum(0.7, nesterov=nesterov), solver)
    expected = by_hand(0.7, nesterov, solver)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, expected)


def test_averages():
    record = []
    train, params, state = run([pjax.Momentum(0.5), pjax.Averaging(0.75)], record=record)
    average, _ = problem()
    for count, new in enumerate(record):
        share = max(0.25, 1 - (1 + count) / (10 + count))
        average = jax.tree.map(lambda a, n, s=share: (1 - s) * a + s * n, average, new)
    found = train.averaged(params, state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, average)
    # The state is a pytree: what is saved and restored goes on alike.
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(x)) for x in leaves])
    batch = problem()[1][0]
    ends = [train.update(params, s, *batch)[0] for s in (restored, state)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    jax.tree.map(np.asarray, found)  # its buffers are not those that the update was given


def test_averages_of_several_arguments_keep_their_order():
    def both(b, w, x, y):
        return fit({"w": w, "b": b}, x, y)

    train = pjax.project(both, (1, 0), solver=pjax.Sweep())
    params, batches = problem()
    pair = (params["w"], params["b"])
    state = train.init(pair)
    pair, state, _ = train.update(pair, state, *batches[0])
    average = train.averaged(pair, state)
    for new, old, found in zip(pair, (params["w"], params["b"]), average, strict=True):
        np.testing.assert_allclose(found, 0.1 * old + 0.9 * new, atol=1e-6)


def test_bad_values():
    for make in (pjax.Momentum, pjax.Averaging):
        with pytest.raises(InputError, match=r"decay must be in \[0, 1\), not 1.0"):
            make(1.0)
    for bad in ([0.9], 0.9, pjax.Momentum):
        with pytest.raises(InputError, match=r"must be values such as pjax.Momentum\(\)"):
            pjax.project(fit, acceleration=bad, schedule="parallel")  # pyright: ignore
    train, params, state = run(())
    with pytest.raises(InputError, match="averaged: there is no average"):
        train.averaged(params, state)
    train, params, _ = run(pjax.Averaging())
    with pytest.raises(InputError, match="averaged: the state is that of other accelerations"):
        train.averaged(params, state)
    train, params, state = run(pjax.Averaging())
    with pytest.raises(InputError, match="averaged: parameter"):
        train.averaged({**params, "w": jnp.ones(3)}, state)
