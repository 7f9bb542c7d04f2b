"""Losses: their values against optax, their proximal steps against minimisation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pjax_trace as pjax
from pjax_trace import losses

RNG = np.random.default_rng(0)
S = jnp.asarray(3 * RNG.normal(size=(6, 5)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, 6))
HOT = jax.nn.one_hot(LABELS, 5)
TARGETS = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)


def hinge(scores, labels, width=1.0):
    own = jnp.take_along_axis(scores, labels[:, None], 1)
    others = jnp.where(jax.nn.one_hot(labels, scores.shape[1]) > 0, -jnp.inf, scores)
    return jnp.mean(jnp.maximum(0, width + jnp.max(others, 1) - own[:, 0]))


PAIRS = {
    "integer labels": (
        lambda s: losses.cross_entropy(s, LABELS),
        lambda s: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(s, LABELS)),
    ),
    "one-hot labels": (
        lambda s: losses.cross_entropy(s, HOT, lam=2.0),
        lambda s: jnp.mean(optax.softmax_cross_entropy(s, HOT)),
    ),
    "margin": (lambda s: losses.margin(s, LABELS), lambda s: hinge(s, LABELS)),
    "wide margin": (
        lambda s: losses.margin(s, HOT, margin=2.5, lam=1.0),
        lambda s: hinge(s, LABELS, 2.5),
    ),
    "squared error": (
        lambda s: losses.squared_error(s, TARGETS),
        lambda s: jnp.mean(jnp.sum(optax.l2_loss(s, TARGETS), -1)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_derivatives_are_the_ordinary_ones(name):
    ours, theirs = PAIRS[name]
    np.testing.assert_allclose(ours(S), theirs(S), rtol=1e-5)
    assert ours(S).shape == () and ours(S).dtype == jnp.float32
    value, slope = jax.jit(jax.value_and_grad(ours))(S)
    np.testing.assert_allclose(value, theirs(S), rtol=1e-5)
    np.testing.assert_allclose(slope, jax.grad(theirs)(S), rtol=1e-4, atol=1e-6)
    stack = jnp.stack([S, -S, 2 * S])
    batched = jax.vmap(ours)(stack)
    np.testing.assert_allclose(batched, [theirs(s) for s in stack], rtol=1e-5)
    slopes = jax.vmap(jax.grad(ours))(stack)
    expected = np.stack([jax.grad(theirs)(s) for s in stack])
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-6)
    hessian = jax.jvp(jax.grad(ours), (S,), (jnp.ones_like(S),))[1]
    assert bool(jnp.all(jnp.isfinite(hessian)))


def test_vmap_over_labels_and_rows():
    rows = jax.vmap(losses.cross_entropy)(S, LABELS)
    expected = optax.softmax_cross_entropy_with_integer_labels(S, LABELS)
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(losses.margin)(S, HOT), jax.vmap(losses.margin)(S, LABELS))


# One projection of AP onto the loss alone is its proximal step: w is pulled by its only reader.


def step(loss, s):
    """The proximal step of a loss, with weight 1."""
    solver = pjax.AlternatingProjections()
    new, _ = pjax.project(loss, solver=solver, steps=1)(jnp.asarray(s, jnp.float32))
    return np.asarray(new, float)


def descend(gradient, s, lam, steps=4000):
    """argmin λ f(x) + ½|x − s|² by gradient steps in float64; f's slope is 1-Lipschitz."""
    x = np.array(s, float)
    for _ in range(steps):
        x -= (lam * gradient(x) + x - s) / (1 + lam)
    return x


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_step_of_cross_entropy():
    s, hot = np.asarray(S, float), np.asarray(HOT, float)
    lam = np.array([0.01, 0.5, 2.0, 5.0, 20.0, 100.0])
    expected = descend(lambda x: softmax(x) - hot, s, lam[:, None])
    found = step(lambda s: losses.cross_entropy(s, LABELS, lam=jnp.asarray(lam, jnp.float32)), S)
    residual = found - s + lam[:, None] * (softmax(found) - hot)
    assert np.all(np.abs(residual) <= 1e-5 * np.maximum(1, np.abs(s) + lam[:, None]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    five = step(lambda s: losses.cross_entropy(s, HOT, lam=5.0), S)
    np.testing.assert_allclose(five, descend(lambda x: softmax(x) - hot, s, 5.0), atol=1e-4)
    soft = jnp.full((6, 5), 0.2)
    np.testing.assert_allclose(
        step(lambda s: losses.cross_entropy(s, soft, lam=2.0), S),
        descend(lambda x: softmax(x) - 0.2, s, 2.0),
        atol=1e-4,
    )


def nearest_with_margin(s, label, width, lam):
    """By bisection on the threshold at which the other scores are cut."""
    others = np.delete(s, label)

    def cut(level):
        return np.sum(np.maximum(others - level, 0))

    def short(level):  # rises with the level
        return -np.inf if cut(level) > lam else level + width - s[label] - cut(level)

    if others.max() + width - s[label] <= 0:
        return s.copy()
    low, high = others.min() - abs(s).max() - 10 * width - 1, others.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) < 0 else (low, middle)
    x = np.minimum(s, high)
    x[label] = s[label] + cut(high)
    return x


@pytest.mark.parametrize("lam", [np.inf, 0.5])
def test_the_step_of_the_margin(lam):
    found = step(lambda s: losses.margin(s, LABELS, margin=1.5, lam=lam), S)
    s = np.asarray(S, float)
    for row, x, label in zip(s, found, np.asarray(LABELS), strict=True):
        np.testing.assert_allclose(x, nearest_with_margin(row, label, 1.5, lam), atol=1e-5)
    if lam == np.inf:  # a set: afterwards every row has its margin
        assert float(losses.margin(jnp.asarray(found, jnp.float32), LABELS, margin=1.5)) < 1e-5


def test_the_step_of_the_squared_error():
    lam = np.array([0.1, 1.0, 3.0, 10.0, 0.5, 2.0])
    strengths = jnp.asarray(lam, jnp.float32)
    found = step(lambda s: losses.squared_error(s, TARGETS, lam=strengths), S)
    weight = lam[:, None]
    expected = (np.asarray(S, float) + weight * np.asarray(TARGETS, float)) / (1 + weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_integer_and_one_hot_labels_are_the_same():
    for loss in (losses.cross_entropy, losses.margin):
        one = step(lambda s, loss=loss: loss(s, LABELS, lam=2.0), S)
        np.testing.assert_array_equal(one, step(lambda s, loss=loss: loss(s, HOT, lam=2.0), S))
        for kind in (bool, int):
            hot = HOT.astype(kind)
            np.testing.assert_array_equal(
                one, step(lambda s, loss=loss, hot=hot: loss(s, hot, lam=2.0), S)
            )
    small = losses.cross_entropy(S, LABELS.astype(jnp.uint8))
    np.testing.assert_array_equal(small, losses.cross_entropy(S, np.asarray(LABELS)))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
def test_bad_labels(loss):
    for bad in (5, -1):
        with pytest.raises(pjax.InputError, match=f"label {bad} is not one of the 5 classes"):
            loss(S, LABELS.at[2].set(bad))
    with pytest.raises(pjax.InputError, match=r"integer labels of shape \(6,\), not \(5,\)"):
        loss(S, LABELS[:5])
    with pytest.raises(pjax.InputError, match=r"one-hot labels of the same shape, not \(6, 4\)"):
        loss(S, HOT[:, :4])
    with pytest.raises(pjax.InputError, match="labels.astype"):
        loss(S, LABELS > 0)
    with pytest.raises(pjax.InputError, match="scores must be floating point, not int32"):
        loss(S.astype(jnp.int32), LABELS)
    with pytest.raises(pjax.InputError, match="axis of classes"):
        loss(jnp.array(1.0), jnp.array(0))


def test_labels_out_of_range_that_only_turn_up_when_it_runs():
    train = pjax.project(lambda s, y: losses.cross_entropy(s, y), steps=1, schedule="parallel")
    with pytest.raises(pjax.NonFiniteError, match="in cross_entropy at"):
        train(S, LABELS.at[0].set(7))
    assert bool(jnp.isnan(jax.jit(losses.cross_entropy)(S, LABELS.at[0].set(7))))


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan"), np.array([1.0, 1, 1, 1, 1, -2])])
def test_strengths_are_positive(lam):
    for loss, y in [
        (losses.cross_entropy, LABELS),
        (losses.margin, LABELS),
        (losses.squared_error, TARGETS),
    ]:
        with pytest.raises(pjax.InputError, match="λ must be positive"):
            loss(S, y, lam=lam)


def test_other_bad_arguments():
    with pytest.raises(pjax.InputError, match=r"λ must be one number or have shape \(6,\)"):
        losses.cross_entropy(S, LABELS, lam=jnp.ones(5))
    for width in (-1.0, float("inf"), float("nan")):
        with pytest.raises(pjax.InputError, match="margin must be finite and at least 0"):
            losses.margin(S, LABELS, margin=width)
    for targets in (TARGETS[:, :4], TARGETS[:, 0], TARGETS[None]):
        with pytest.raises(pjax.InputError, match=r"targets of the same shape.*not \("):
            losses.squared_error(S, targets)
    with pytest.raises(pjax.InputError, match="predictions must be floating point, not int32"):
        losses.squared_error(S.astype(jnp.int32), TARGETS)


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (6, 1), (6, 5)])
def test_targets_broadcast_to_the_predictions(shape):
    goal = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    full = jnp.broadcast_to(goal, S.shape)
    np.testing.assert_array_equal(losses.squared_error(S, goal), losses.squared_error(S, full))
    found = step(lambda s: losses.squared_error(s, np.asarray(goal), lam=3.0), S)
    np.testing.assert_allclose(found, (S + 3 * full) / 4, rtol=1e-5, atol=1e-6)


def test_a_scalar_is_one_row_of_one_output():
    def loss(p):
        return losses.squared_error(3.0 * p, 1.0)

    p = jnp.array(2.0)
    np.testing.assert_allclose(loss(p), 12.5)
    np.testing.assert_allclose(jax.grad(loss)(p), 15.0)
    np.testing.assert_allclose(jax.vmap(loss)(jnp.array([2.0, 0.0])), [12.5, 0.5])
    np.testing.assert_allclose(step(lambda p: losses.squared_error(p, 1.0, lam=4.0), p), 1.2)
    for solver in (pjax.Sweep(), pjax.AlternatingProjections()):
        found, _ = pjax.project(loss, solver=solver, steps=400)(p)
        np.testing.assert_allclose(found, 1 / 3, rtol=1e-2)
    with pytest.raises(pjax.InputError, match=r"need targets.*not \(1,\)"):
        losses.squared_error(p, jnp.ones(1))
    with pytest.raises(pjax.InputError, match=r"λ must be one number or have shape \(\)"):
        losses.squared_error(p, 1.0, lam=jnp.ones(1))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.squared_error])
@pytest.mark.parametrize(
    ("shape", "missing"), [((0, 5), "rows"), ((2, 0, 5), "rows"), ((6, 0), "classes|outputs")]
)
def test_empty_batches(loss, shape, missing):
    shown = rf"of shape \({str(shape)[1:-1]}\) are empty: they have no ({missing})"
    with pytest.raises(pjax.InputError, match=shown):
        loss(jnp.zeros(shape), jnp.zeros(shape))
    if loss is not losses.squared_error:
        with pytest.raises(pjax.InputError, match=shown):
            loss(jnp.zeros(shape), jnp.zeros(shape[:-1], int))
    for solver in (pjax.Sweep(), pjax.AlternatingProjections()):
        train = pjax.project(lambda w, x: loss(x * w, x), solver=solver)
        with pytest.raises(pjax.InputError, match=shown):
            train(jnp.array(1.0), jnp.zeros(shape))


def test_more_axes_of_rows():
    cube, labels = S.reshape(2, 3, 5), LABELS.reshape(2, 3)
    np.testing.assert_allclose(losses.cross_entropy(cube, labels), losses.cross_entropy(S, LABELS))
    lam = jnp.linspace(1.0, 3.0, 6)
    whole = step(lambda s: losses.cross_entropy(s, labels, lam=lam.reshape(2, 3)), cube)
    flat = step(lambda s: losses.cross_entropy(s, LABELS, lam=lam), S)
    np.testing.assert_allclose(whole.reshape(6, 5), flat, rtol=1e-6, atol=1e-6)
