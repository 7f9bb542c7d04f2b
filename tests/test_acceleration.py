"""Momentum, averages and trust regions, by hand; Anderson's mixing against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import _compat
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


@pytest.mark.parametrize("solver", [pjax.Sweep(), pjax.AlternatingProjections()], ids=str)
def test_trust_region(solver):
    """What would move farther ends on the way, at the limit; the rest is left alone."""
    params, batches = problem()
    free, _ = pjax.project(fit, solver=solver, steps=1, acceleration=())(params, *batches[0])
    region = pjax.TrustRegion(0.1, floor=0.5)
    new, _ = pjax.project(fit, solver=solver, steps=1, acceleration=region)(params, *batches[0])
    limits = {"w": 0.1 * np.sqrt(np.mean(np.square(params["w"]))), "b": 0.05}
    for name, limit in limits.items():
        way = np.asarray(free[name] - params[name])
        share = min(1, limit / np.sqrt(np.mean(np.square(way))))
        np.testing.assert_allclose(new[name], params[name] + share * way, atol=1e-6)
    far, _ = pjax.project(fit, solver=solver, steps=1, acceleration=pjax.TrustRegion(1e3))(
        params, *batches[0]
    )
    jax.tree.map(np.testing.assert_array_equal, far, free)


def test_trust_region_within_an_update():
    solver = pjax.Accelerated(pjax.AlternatingProjections(), pjax.TrustRegion(0.1, floor=1.0))

    def point(x):
        pjax.constrain(x, pjax.sets.Equal(5.0))

    moved = [float(pjax.project(point, solver=solver, steps=n)(jnp.zeros(()))[0]) for n in (1, 12)]
    np.testing.assert_allclose(moved, [0.1, 1.1**2], rtol=1e-5)


def test_momentum_remembers_what_the_trust_region_left():
    """It is in front, and a start that momentum has moved is what counts as the start."""
    region, momentum = pjax.TrustRegion(0.01), pjax.Momentum(0.5)
    record = []
    run([region, momentum], record=record)
    params, batches = problem()
    update, velocity = pjax.project(fit, acceleration=region), jax.tree.map(jnp.zeros_like, params)
    for batch, found in zip(batches, record, strict=True):
        ahead = jax.tree.map(lambda p, v: p + 0.5 * v, params, velocity)
        new, _ = update(ahead, *batch)
        velocity, params = jax.tree.map(jnp.subtract, new, params), new
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, new)


def anderson(update, start, steps, **options):
    """Where updates end by Anderson's mixing, and how long the residuals of those that count are.

    In float64, saved and restored between updates.
    """
    with _compat.enable_x64(True):
        mixing = pjax.Anderson(**options)

        @jax.jit
        def step(u, memory):
            ahead = mixing.start(memory, [u])
            (u,), memory = mixing.finish(memory, [u], ahead, [update(ahead[0])])
            return u, memory

        u = jnp.asarray(start, float)
        memory, found = mixing.init([u]), []
        for _ in range(steps):
            u, memory = jax.tree.map(np.asarray, step(u, memory))
            found.append((u, float(np.sqrt(memory.squared))))
        ends, residuals = zip(*found, strict=True)
        return np.array(ends), np.array(residuals)


def mixed_by_numpy(update, u, steps, memory):
    """The textbook: γ by least squares on all changes remembered."""
    ends, residuals, found = [], [], []
    for _ in range(steps):
        ends, residuals = (
            [*ends, update(u)][-memory - 1 :],
            [*residuals, update(u) - u][-memory - 1 :],
        )
        found.append(ends[-1])
        u = ends[-1]
        if len(ends) > 1:
            dg, df = np.diff(ends, axis=0).T, np.diff(residuals, axis=0).T
            u = u - dg @ np.linalg.lstsq(df, residuals[-1], rcond=None)[0]
    return np.array(found)


@pytest.mark.parametrize("memory, steps, atol", [(2, 12, 1e-7), (6, 8, 1e-6)])
def test_anderson_on_an_affine_map(memory, steps, atol):
    """As least squares has it; with a memory as large as the space, n + 1 updates find the end."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    matrix = basis @ np.diag([0.99, 0.9, -0.5, 0.7, 0.2, -0.95]) @ basis.T
    shift, start = rng.normal(size=6), rng.normal(size=6)
    ends, residuals = anderson(
        lambda u: jnp.asarray(matrix) @ u + shift, start, steps, memory=memory, ridge=1e-14
    )
    expected = mixed_by_numpy(lambda u: matrix @ u + shift, start, steps, memory)
    np.testing.assert_allclose(ends, expected, atol=atol)
    assert np.all(np.diff(residuals) <= 0)  # The map is a contraction: nothing is dropped.
    if memory == 6:
        solution = np.linalg.solve(np.eye(6) - matrix, shift)
        np.testing.assert_allclose(ends[-1], solution, atol=1e-6)  # Where update n + 2 began.


def test_andersons_safeguard():
    """Where slopes change, residuals never grow, as those of plain updates do not."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]

    def update(u):  # nonexpansive, with kinks
        return u + 0.5 * (turn @ (jnp.clip(u, -1.0, 0.1) - 0.05 * jnp.abs(u - 2.0)) - u)

    dropped = 0
    for _ in range(4):
        start = 10 * rng.normal(size=5)
        ends, residuals = anderson(update, start, 60)
        assert np.all(np.diff(residuals) <= 1e-12)
        dropped += np.sum(np.all(np.diff(ends, axis=0) == 0, axis=1))
        plain = start
        for _ in range(60):
            plain = np.asarray(update(plain), float)
        assert residuals[-1] <= np.linalg.norm(update(plain) - plain) + 1e-6
    assert dropped > 0


def test_anderson_at_degenerate_points():
    for update, expected in [
        (lambda u: u, np.zeros(8)),  # There from the start.
        (lambda u: u + 1, np.arange(1.0, 9)),  # All residuals are alike: plain updates.
        (lambda u: 0.5 * u - 1, None),  # One dimension, and a longer memory.
    ]:
        ends, residuals = anderson(update, np.zeros(1), 8)
        assert np.all(np.isfinite(ends)) and np.all(np.isfinite(residuals))
        if expected is None:
            np.testing.assert_allclose(ends[3:], -2.0, atol=1e-5)
        else:
            np.testing.assert_array_equal(ends[:, 0], expected)


def test_bad_values():
    for bad in ({"memory": 0}, {"memory": 2.0}, {"ridge": 0.0}):
        with pytest.raises(InputError, match="Anderson: "):
            pjax.Anderson(**bad)
    for bad in ({"radius": 0.0}, {"floor": -1.0}, {"radius": float("nan")}):
        with pytest.raises(InputError, match="TrustRegion: "):
            pjax.TrustRegion(**bad)
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
