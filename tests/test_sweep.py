"""Block sweeps against least squares in float64 NumPy, and their limit against gradients."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.errors import InputError, TraceError
from pjax_trace.registry import translate
from pjax_trace.rule import Request

from .models import LABELS, MODELS

FAR = 1e9  # a trust region that nothing reaches
# The regularised least-squares solution as it is.
FREE: dict = {
    "trust": FAR,
    "share": None,
    "per_unit": False,
    "decay": None,
    "whitening": None,
}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sweep(fit, *args, **options):
    """What one sweep moves the parameters by, without acceleration."""
    step = pjax.project(fit, solver=pjax.Sweep(**options), acceleration=())
    new, info = step(*args)
    return jax.tree.map(lambda n, o: np.asarray(n - o), new, args[0]), info


def move_of(function, parameters, residual, damping, rows):
    """``(JᵀJ + ω I)⁻¹ Jᵀ s R`` by brute force, with J the derivative by all parameters at once."""
    leaves, structure = jax.tree.flatten(parameters)
    derivatives = jax.jacobian(lambda p: function(*p))(leaves)
    jacobian = np.concatenate(
        [np.asarray(d, np.float64).reshape(residual.size, -1) for d in derivatives], 1
    )
    ridge = damping * np.sum(jacobian**2) / residual.size
    scale = np.prod(residual.shape) / residual.shape[-1] / rows
    extended = np.concatenate([jacobian, np.sqrt(ridge) * np.eye(jacobian.shape[1])])
    right = np.concatenate([scale * residual.ravel(), np.zeros(jacobian.shape[1])])
    (solution, *_) = np.linalg.lstsq(extended, right)
    parts = np.split(solution, np.cumsum([x.size for x in leaves])[:-1])
    shaped = [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


@pytest.mark.parametrize("samples", [3, 40])
def test_a_dense_layer_and_its_bias_are_least_squares(samples):
    x, w, b = normal(0, samples, 6), normal(1, 6, 4), normal(2, 4)
    target = normal(3, samples, 4)

    def fit(params, x):
        w, b = params
        return pjax.losses.squared_error(x @ w + b[None], target)

    moved, info = sweep(fit, (w, b), x, strength=2.0, damping=0.3, rank=None, **FREE)
    residual = (target - (x @ w + b)) * 2 / 3  # the proximal step with λ = 2
    expected = move_of(lambda w, b: x @ w + b[None], [w, b], residual, 0.3, samples)
    for got, want in zip(moved, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
    loss = float(np.mean(0.5 * np.sum((target - (x @ w + b)) ** 2, -1)))
    assert float(info.loss_values[0]) == pytest.approx(loss, rel=0.5)


def test_several_products_of_a_sum_are_solved_together():
    x, y, v, w, b = normal(0, 9, 3), normal(1, 9, 2), normal(2, 3, 4), normal(3, 4, 2), normal(4, 4)

    def apply(v, w, b):
        return x @ v + jnp.einsum("nk,mk->nm", y, w) - b[None]

    def fit(params, x, y, target):
        v, w, b = params
        return pjax.losses.squared_error(x @ v + jnp.einsum("nk,mk->nm", y, w) - b[None], target)

    target = normal(5, 9, 4)
    moved, _ = sweep(fit, (v, w, b), x, y, target, strength=1.0, damping=0.1, **FREE)
    residual = (target - np.asarray(apply(v, w, b))) / 2
    for got, want in zip(moved, move_of(apply, [v, w, b], residual, 0.1, 9), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_bias_are_least_squares(stride):
    images, kernel, bias = normal(0, 2, 3, 6, 5), normal(1, 4, 3, 3, 2), normal(2, 4)
    target = normal(3, *jax.eval_shape(lambda: _convolve(images, kernel, stride)).shape)

    def apply(kernel, bias):
        return _convolve(images, kernel, stride) + bias[None, :, None, None]

    def fit(params, images):
        out = _convolve(images, params[0], stride) + params[1][None, :, None, None]
        return pjax.losses.squared_error(jnp.moveaxis(out, 1, -1), np.moveaxis(target, 1, -1))

    free = {"rank": None, **FREE}
    moved, _ = sweep(fit, (kernel, bias), images, strength=1.0, damping=0.2, **free)
    residual = np.moveaxis((target - np.asarray(apply(kernel, bias))) / 2, 1, -1)

    def rows(kernel, bias):
        return jnp.moveaxis(apply(kernel, bias), 1, -1)

    expected = move_of(rows, [kernel, bias], residual, 0.2, residual.size // 4)
    for got, want in zip(moved, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_patches_of_many_images_are_not_made():
    images, kernel = normal(0, 16, 3, 12, 12), normal(1, 4, 3, 3, 3)

    def fit(kernel, images):
        out = _convolve(images, kernel, 1)
        return pjax.losses.squared_error(jnp.moveaxis(out, 1, -1), np.ones((16, 12, 12, 4)))

    for rank, made in ((16, False), (None, True)):
        train = pjax.project(fit, solver=pjax.Sweep(rank=rank))
        text = train.lower(kernel, images).as_text()
        sizes = [
            math.prod(map(int, s.split("x"))) for s in re.findall(r"tensor<([\dx]+)xf32>", text)
        ]
        assert (max(sizes) >= 16 * 12 * 12 * 27) == made


def _convolve(images, kernel, stride):
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "SAME")


def test_weights_of_the_metric_damp_and_harden():
    x, w, v, target = normal(0, 8, 3), normal(1, 3, 2), normal(2, 3, 2), normal(3, 8, 2)

    def fit(params, x):
        return pjax.losses.squared_error(x @ params["w"] + x @ params["v"], target)

    solver = pjax.Sweep(strength=1.0, damping=0.5, **FREE)
    metric = pjax.Metric(outputs=3.0, paths={"params['w']": 4.0})
    step = pjax.project(fit, solver=solver, metric=metric, acceleration=())
    new, _ = step({"w": w, "v": v}, x)
    residual = (target - x @ w - x @ v) / 4
    # A weight of 4 is a unit of length of 2.
    expected = move_of(lambda v, w: x @ v + x @ (w / 2), [v, 2 * w], residual, 0.5, 8)
    np.testing.assert_allclose(new["v"] - v, expected[0], atol=2e-5)
    np.testing.assert_allclose(new["w"] - w, expected[1] / 2, atol=2e-5)


def test_the_trust_region_shortens_a_layer_as_a_whole():
    x, w, b, target = normal(0, 8, 3), normal(1, 3, 2), normal(2, 2), 100 * normal(3, 8, 2)

    def fit(params, x):
        return pjax.losses.squared_error(x @ params[0] + params[1][None], target)

    free, _ = sweep(fit, (w, b), x, **FREE)
    short, _ = sweep(fit, (w, b), x, **FREE | {"trust": 1e-2})
    both = np.concatenate([short[0].ravel(), short[1]])
    size = max(np.sqrt(np.mean(w**2)), np.sqrt(2 / 4))  # three inputs, and the bias
    assert np.sqrt(np.mean(both**2)) == pytest.approx(1e-2 * size, rel=1e-3)
    np.testing.assert_allclose(short[0] * np.max(free[1] / short[1]), free[0], rtol=1e-3)


def test_zero_weights_and_zero_inputs_move_and_stay():
    target = normal(0, 5, 2)

    def fit(params, x):
        return pjax.losses.squared_error(jax.nn.relu(x @ params[0]) @ params[1], target)

    moved, info = sweep(fit, (jnp.zeros((3, 4)), jnp.ones((4, 2))), jnp.zeros((5, 3)))
    assert bool(info.finite) and not np.any(moved[0]) and not np.any(moved[1])
    moved, info = sweep(fit, (normal(1, 3, 4), jnp.zeros((4, 2))), normal(2, 5, 3))
    assert bool(info.finite) and not np.any(moved[0]) and np.any(moved[1])


# With heavy damping a layer's move is along its cotangent, and near targets make those gradients.
LIMIT = {"strength": 0.1, "damping": 300.0, "reach": 1e-3, **FREE}
# A choice by a variable asks its boolean, too, which has no gradient.
DISCRETE = {"sign", "round", "ternary weights"}
QUICK = {"relu"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in MODELS
        if name not in DISCRETE
    ],
)
def test_the_limit_is_the_gradient(name):
    model = MODELS[name]()

    def fit(parameters, x, y):
        return pjax.losses.cross_entropy(model.apply(parameters, x), y)

    check_limit(fit, model.parameters, model.x, LABELS)


def check_limit(fit, parameters, *args):
    step = pjax.project(fit, solver=pjax.Sweep(**LIMIT), acceleration=())
    new, info = step(parameters, *args)
    slope = eqx.filter_grad(fit)(parameters, *args)
    assert bool(info.finite) and float(info.gap) == 0
    arrays = (eqx.filter(tree, eqx.is_inexact_array) for tree in (parameters, new, slope))
    for old, moved, gradient in zip(*map(jax.tree.leaves, arrays), strict=True):
        if np.linalg.norm(gradient) > 1e-3:
            step = np.asarray(old - moved, np.float64).ravel()
            gradient = np.asarray(gradient, np.float64).ravel()
            cosine = step @ gradient / np.linalg.norm(step) / np.linalg.norm(gradient)
            assert cosine > 0.93, cosine


def recurrent(w, h, x):
    return jnp.tanh(h @ w + x)


def scan_in_reverse(params, x):
    def step(h, x):
        h = recurrent(params["w"], h, x)
        return h, h

    return jax.lax.scan(step, jnp.zeros((2, 3)), x, reverse=True)[1]


def scan_from_a_learned_start(params, x):
    start = jnp.broadcast_to(params["h"], (2, 3))
    return jax.lax.scan(lambda h, x: (recurrent(params["w"], h, x), None), start, x)[0]


def scan_in_a_scan(params, x):
    def outer(h, x):
        def inner(h, _):
            return recurrent(params["w"], h, x), h @ params["v"]

        h, seen = jax.lax.scan(inner, h, None, length=2)
        return h, seen

    return jax.lax.scan(outer, jnp.zeros((2, 3)), x)[1]


def scan_over_parameters(params, x):
    """Layers in a stack, one a step, and a hidden array that all steps read."""
    context = jnp.tanh(x[0] @ params["v"])
    return jax.lax.scan(
        lambda h, w: (jnp.tanh(h @ w) + context, None), jnp.zeros((2, 3)), params["stack"]
    )[0]


def scan_with_a_counter(params, x):
    def step(carry, x):
        h, count, scale = carry
        h = recurrent(params["w"], h, x * jnp.where(count % 2 == 0, 1.0, scale))
        return (h, count + 1, 0.5 * scale), h[:, ::-1]

    return jax.lax.scan(step, (jnp.zeros((2, 3)), 0, 1.0), x)[1]


@pytest.mark.parametrize(
    "apply",
    [
        scan_in_reverse,
        scan_from_a_learned_start,
        scan_in_a_scan,
        scan_over_parameters,
        scan_with_a_counter,
    ],
    ids=lambda f: f.__name__,
)
def test_scans_go_back_step_by_step(apply):
    params = {
        "h": normal(0, 1, 3),
        "w": normal(1, 3, 3),
        "v": normal(2, 3, 3),
        "stack": normal(3, 2, 3, 3),
    }
    target = normal(4, 3)

    def fit(params, x):
        out = apply(params, x)
        return pjax.losses.squared_error(out, jnp.broadcast_to(target, out.shape))

    check_limit(fit, params, normal(5, 4, 2, 3))


@pytest.mark.parametrize("options", [{"damping": 0.3, **FREE}, {"share": 1e-3, "decay": 30}])
def test_a_scan_is_one_block_of_all_its_steps(options):
    """As the same steps written out, whose rows are put together by hand."""
    w, x, target = 0.5 * normal(0, 3, 3), normal(1, 5, 2, 3), normal(2, 5, 2, 3)

    def fit(w, x, noise):
        def step(_, now):
            return now[1], (now[1], now[0] @ w + now[1])

        _, (_, out) = jax.lax.scan(step, jnp.zeros((2, 3)), (x, noise))
        return pjax.losses.squared_error(out, target)

    def flat(w, x, noise):
        return pjax.losses.squared_error(x @ w + noise, target)

    noise = normal(3, 5, 2, 3)
    found, _ = sweep(fit, w, x, noise, **options)
    expected, _ = sweep(flat, w, x, noise, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_sign_goes_where_it_pays():
    """In NumPy: benefit beside the mean of the sample, cost beside the size of the layer."""
    u, asked = normal(0, 40, 30), normal(1, 40, 30) ** 3
    rule = translate(jax.lax.sign_p, {}, (u,), (True,)).rule
    (found,) = rule.target({}, (u,), Request(jnp.sign(u), asked, (True,), 0.5))
    mean, size = np.mean(np.abs(asked), 1, keepdims=True), np.sqrt(np.mean(u**2))
    sign, target, worth = np.sign(u), np.sign(asked), np.abs(asked) / mean
    flips = (sign != target) & (u**2 <= 0.25 * size**2 * (worth - 1))
    stays_right = (sign == target) & (worth >= 1) & (np.abs(u) < size)
    moved = np.where(flips | stays_right, target * size, u)
    assert flips.any() and stays_right.any()
    np.testing.assert_allclose(found, mean / size * (moved - u), atol=1e-5 * np.max(worth * mean))


@pytest.mark.parametrize(
    "activation",
    [
        jnp.sign,
        lambda h: jnp.where(h > 0, 1.0, 0.0),
        lambda h: 1.0 - (h <= 0.1).astype(h.dtype),
        lambda h: pjax.quantize(h, 4, 0.5),
        jnp.round,
    ],
    ids=["sign", "where", "comparison", "quantize", "round"],
)
def test_learns_below_what_has_no_derivative(activation):
    """The first layer alone, so that only what goes through the activation can help."""
    x, frozen = normal(0, 200, 8), normal(1, 32, 2)
    labels = (x[:, 0] * x[:, 1] > 0).astype(np.int32)

    def fit(w, x, labels):
        return pjax.losses.cross_entropy(activation(x @ w) @ frozen, labels)

    # What a choice between constants is said to gain is no derivative, so there is no share of it.
    train = pjax.project(fit, solver=pjax.Sweep(trust=1e-2, damping=10.0, share=None))
    w = 0.5 * normal(2, 8, 32)
    before, state = float(fit(w, x, labels)), train.init(w)
    for _ in range(60):
        w, state, _ = train.update(w, state, x, labels)
    assert float(fit(w, x, labels)) < 0.75 * before


def test_per_unit_steps_are_of_one_length():
    def fit(w, x, y):
        return pjax.losses.squared_error(jnp.sign(x @ w) @ jnp.ones((4, 2)), y)

    x, w, y = normal(0, 30, 3), normal(1, 3, 4), normal(2, 30, 2)
    moved, _ = sweep(fit, w, x, y, trust=0.1, share=None, decay=None)
    length = 0.1 * max(np.sqrt(np.mean(w**2)), np.sqrt(2 / 3))
    np.testing.assert_allclose(np.sqrt(np.mean(moved**2, 0)), length, rtol=1e-3)
    free, _ = sweep(fit, w, x, y, **(FREE | {"whitening": 3}))
    np.testing.assert_allclose(
        moved / np.linalg.norm(moved, axis=0), free / np.linalg.norm(free, axis=0), atol=1e-3
    )


@pytest.mark.parametrize("rows", [20, 300])
def test_all_layers_together_promise_no_more_than_their_share(rows):
    """With fewer rows than 256 it goes with the root of their number."""
    x, y = normal(0, rows, 3), normal(1, rows, 2)
    w, v = normal(2, 3, 8), normal(3, 8, 2)

    def scores(params):
        return jnp.tanh(x @ params[0]) @ params[1]

    def fit(params, x, y):
        return pjax.losses.squared_error(scores(params), y)

    free, _ = sweep(fit, (w, v), x, y, trust=0.5, share=None, decay=None)
    asked = np.asarray(y - scores((w, v))) * 5 / 6  # the proximal step with λ = 5
    promised = np.sum(asked * np.asarray(jax.jvp(scores, ((w, v),), (tuple(free),))[1]))
    share = 0.5 * promised / np.sum(asked**2) / np.sqrt(min(1, rows / 256))
    short, _ = sweep(fit, (w, v), x, y, trust=0.5, share=float(share), decay=None)
    for one, other in zip(short, free, strict=True):
        np.testing.assert_allclose(one, 0.5 * other, rtol=0.05)
    enough, _ = sweep(fit, (w, v), x, y, trust=0.5, share=float(3 * share), decay=None)
    for one, other in zip(enough, free, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("rows", [64, 300])
def test_weights_decay_where_moves_are_shortened(rows, per_unit):
    """What is only added, or looked up, does not; with fewer rows than 256 it is less."""
    x, y, words = normal(0, rows, 3), normal(1, rows, 2), np.arange(rows) % 5
    start = {"w": normal(2, 3, 2), "b": normal(3, 2), "scale": normal(4, 2), "table": normal(5, 5)}

    def fit(params, x, y):
        out = x @ params["w"] * params["scale"][None] + params["b"][None]
        out = out + params["table"][words][:, None]
        return pjax.losses.squared_error(out, y)

    def moved(**options):
        return sweep(fit, start, x, y, per_unit=per_unit, **options)[0]

    free, kept, less = moved(share=None), moved(share=1e-3, decay=None), moved(share=1e-3, decay=30)
    left = np.linalg.norm(kept["w"]) / np.linalg.norm(free["w"])
    size = max(np.sqrt(np.mean(start["w"] ** 2)), np.sqrt(2 / 3))
    by = 30 * min(1, rows / 256) * (1 - left) * np.sqrt(np.mean(kept["w"] ** 2)) / size
    assert 0 < left < 0.9
    np.testing.assert_allclose(less["w"] - kept["w"], -by * start["w"], rtol=1e-2, atol=1e-6)
    for name in ("b", "scale", "table"):
        np.testing.assert_allclose(less[name], kept[name], rtol=1e-3, atol=1e-7)


def test_weights_that_no_loss_reads_do_not_decay():
    def fit(w, x):
        pjax.constrain(x @ w, pjax.sets.NonNegative())

    w, x = normal(0, 3, 2), normal(1, 300, 3)
    one, other = (sweep(fit, w, x, share=1e-6, decay=decay)[0] for decay in (9.0, None))
    np.testing.assert_array_equal(one, other)


def test_the_mean_over_samples_asks_for_what_a_batch_asks():
    x, y, w = normal(0, 6, 3), normal(1, 6, 2), normal(2, 3, 2)

    def batch(w, x, y):
        return pjax.losses.squared_error(x @ w, y)

    def samples(w, x, y):
        return jnp.mean(jax.vmap(lambda x, y: pjax.losses.squared_error(x @ w, y))(x, y))

    one, other = sweep(batch, w, x, y)[0], sweep(samples, w, x, y)[0]
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_what_it_does_not_do():
    def loop(w, x):
        def step(h, x):
            h = jnp.tanh(h @ w + x)
            return h, pjax.losses.squared_error(h, jnp.ones(3))

        return jnp.mean(jax.lax.scan(step, jnp.zeros(3), x)[1])

    with pytest.raises(TraceError, match="a loss or a set in the body of a scan, at"):
        sweep(loop, jnp.eye(3), normal(0, 4, 3))
    for option in ({"copies": True}, {"tol": 0.1}):
        with pytest.raises(InputError, match="a Sweep has no copies and no gap"):
            pjax.project(loop, solver=pjax.Sweep(), **option)

    def truth(w, x):
        seen = jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h > 0), jnp.zeros(3), x)[1]
        return pjax.losses.squared_error(jnp.where(seen[-1], 1.0, -1.0)[None], jnp.ones((1, 3)))

    with pytest.raises(TraceError, match="returns a boolean that depends on"):
        sweep(truth, jnp.eye(3), normal(0, 4, 3))
    for name in ("strength", "damping", "trust", "share", "decay", "reach", "whitening"):
        with pytest.raises(InputError, match=f"Sweep: {name} must be a positive number, not 0"):
            pjax.Sweep(**{name: 0})
    with pytest.raises(InputError, match="a positive integer or None, not 2.5"):
        pjax.Sweep(whitening=2.5)


def overflows_in_a_scan(w, x):
    """The norm of zero has no derivative."""
    return jax.lax.map(lambda row: jnp.linalg.norm(row @ w, axis=-1, keepdims=True), 0 * x)


def large_and_satisfied(w, x):
    return 1e4 * jnp.abs(x @ w)


def zero_below_a_sign(w, x):
    return jnp.sign(0.0 * x @ w) * 100


def one_of_several(w, x, which=0):
    return x @ (w[None][which] + x[0, 0])


def moved_about_in_a_scan(w, x):
    return x @ jax.lax.map(lambda w: w.T, w[None])[0].T


def through_no_steps(w, x):
    return jax.lax.scan(lambda h, x: (jnp.tanh(h + x), None), x @ w, jnp.zeros((0, 5, 3)))[0]


def scattered(w, x):
    return jnp.zeros((5, 3)).at[jnp.array([0, 1, 1])].add(w) + x


@pytest.mark.parametrize(
    "apply",
    [
        overflows_in_a_scan,
        large_and_satisfied,
        zero_below_a_sign,
        one_of_several,
        moved_about_in_a_scan,
        through_no_steps,
        scattered,
    ],
    ids=lambda f: f.__name__,
)
def test_odd_ways_to_parameters(apply):
    """Seen to fail once."""
    w, x = normal(0, 3, 3), normal(1, 5, 3)

    def fit(w, x, labels):
        scores = apply(w, x)
        return pjax.losses.margin(jnp.broadcast_to(scores, (5, 3)), labels)

    moved, info = sweep(fit, w, x, np.argmax(x, 1).astype(np.int32))
    assert bool(info.finite) and np.all(np.isfinite(moved))


def test_data_that_are_not_known_while_tracing_may_be_added_to_parameters():
    def fit(w, x, noise, which):
        return pjax.losses.squared_error(x @ (w[which] + noise), jnp.ones((5, 2)))

    moved, _ = sweep(fit, normal(0, 4, 3, 2), normal(1, 5, 3), normal(2, 3, 2), jnp.int32(1))
    assert np.array_equal(np.any(moved, (1, 2)), [False, True, False, False])


def test_sets_on_parameters_hold_and_do_not_count_as_rows():
    def fit(w, x, y):
        return pjax.losses.squared_error(x @ w, y)

    def bounded(w, x, y):
        pjax.constrain(w, pjax.sets.Box(-bound, bound))
        return fit(w, x, y)

    w, x, y = normal(0, 40, 2), normal(1, 4, 40), normal(2, 4, 2)
    bound = 100.0
    free, _ = sweep(fit, w, x, y)
    np.testing.assert_allclose(sweep(bounded, w, x, y)[0], free, atol=1e-6)
    bound = 0.1
    new, info = pjax.project(bounded, acceleration=())(w, x, y)
    assert float(info.gap) == 0
    np.testing.assert_array_equal(new, np.clip(np.asarray(new), -bound, np.float32(bound)))
    np.testing.assert_allclose(new, np.clip(w + free, -bound, bound), atol=1e-6)


def test_what_few_rows_read_is_moved_as_far_as_they_ask():
    """A table of which every row reads an element, and one of which several rows do, or none."""
    table, own, target = normal(0, 6, 3), normal(1, 8, 3), normal(2, 8, 3)
    which = np.array([0, 1, 1, 3, 3, 3, 3, 5])

    def fit(params):
        return pjax.losses.squared_error(params[0][which] + params[1], target)

    moved, _ = sweep(fit, (table, own), strength=1.0, damping=0.2, **FREE)
    residual = (target - table[which] - own) / 2
    (first,) = move_of(lambda p: p[which] + own, [table], residual, 0.2, 8)
    (second,) = move_of(lambda p: table[which] + p, [own], residual, 0.2, 8)
    np.testing.assert_allclose(moved[0], first, atol=1e-5)
    np.testing.assert_allclose(moved[1], second, atol=1e-5)


def test_a_sample_alone_is_a_row():
    def fit(w, x):
        return pjax.losses.squared_error(x @ w, jnp.ones((*x.shape[:-1], 4)))

    w, x = normal(0, 3, 4), normal(1, 3)
    np.testing.assert_allclose(sweep(fit, w, x)[0], sweep(fit, w, x[None])[0], atol=1e-6)


def test_steps_over_data_are_steps_of_a_dense_layer():
    x = normal(0, 4, 2, 5, 3)

    def far(apply):
        def fit(w):
            return pjax.losses.squared_error(apply(w), jnp.full((4, 2, 5, 2), 9.0))

        return sweep(fit, normal(1, 3, 2), trust=1e-3)[0]

    once = far(lambda w: jax.lax.map(lambda row: row @ w, x))
    twice = far(lambda w: jax.lax.map(lambda part: jax.lax.map(lambda row: row @ w, part), x))
    for found in (once, twice):
        np.testing.assert_allclose(found, far(lambda w: x @ w), atol=1e-6)


@pytest.mark.slow
def test_windows_that_overlap_add_up():
    images = normal(0, 2, 1, 6, 6)

    def fit(kernel):
        out = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME")
        tops = jax.lax.reduce_window(out, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 1, 1), "SAME")
        return pjax.losses.squared_error(tops.reshape(2, -1), jnp.ones((2, 72)))

    check_limit(fit, normal(1, 2, 1, 3, 3))


def test_half_precision():
    def fit(w, x):
        return pjax.losses.squared_error(x @ w, jnp.ones((5, 2), jnp.bfloat16))

    w, x = (jnp.asarray(normal(i, *s), jnp.bfloat16) for i, s in enumerate([(3, 2), (5, 3)]))
    new, info = pjax.project(fit, solver=pjax.Sweep(trust=0.1))(w, x)
    assert new.dtype == jnp.bfloat16 and bool(info.finite) and np.any(new != w)


def test_the_cause_is_found_in_the_first_of_several_sweeps():
    def fit(w, x, y):
        return pjax.losses.squared_error(x @ w, y)

    train = pjax.project(fit, solver=pjax.Sweep(), steps=2)
    with pytest.raises(pjax.NonFiniteError, match="data argument y"):
        train(normal(0, 3, 2), normal(1, 5, 3), jnp.full((5, 2), jnp.nan))


def test_a_failed_sweep_loses_nothing():
    def fit(w, x, y):
        return pjax.losses.squared_error(jnp.tanh(x @ w), y)

    train = pjax.project(fit, solver=pjax.Sweep())
    w, x = jnp.asarray(normal(0, 3, 2)), normal(1, 4, 3)
    state = train.init(w)
    w, state, _ = train.update(w, state, x, normal(2, 4, 2))
    kept = jax.tree.map(np.array, state.memory)
    with pytest.raises(pjax.NonFiniteError, match="data argument y") as caught:
        train.update(w, state, x, jnp.full((4, 2), jnp.nan))
    np.testing.assert_array_equal(caught.value.params, w)
    jax.tree.map(np.testing.assert_array_equal, caught.value.state.memory, kept)
    assert int(caught.value.state.updates) == 1


def test_more_sweeps_than_one():
    def fit(w, x, y):
        return pjax.losses.squared_error(jnp.tanh(x @ w), y)

    w, x, y = jnp.asarray(normal(0, 3, 2)), normal(1, 6, 3), normal(2, 6, 2)
    once = pjax.project(fit, solver=pjax.Sweep(), acceleration=())
    thrice = pjax.project(fit, solver=pjax.Sweep(), acceleration=(), steps=3)
    found, info = thrice(w, x, y)
    for _ in range(3):
        w, _ = once(w, x, y)
    np.testing.assert_allclose(found, w, atol=1e-6)
    assert info.history.shape == (3,) and int(info.steps) == 3


def test_calls_under_vmap_hand_over_what_they_do_outside():
    """A call that is batched keeps its rule's own hand-over."""
    arrays = normal(0, 30, 3), normal(1, 3, 8), normal(2, 8, 2), normal(3, 30, 2)
    x, w, v, target = (a.astype(np.float64) for a in arrays)

    def moves(function):
        def fit(w, x):
            return pjax.losses.squared_error(function(x @ w) @ v, target)

        with jax.enable_x64(True):
            return sweep(fit, w, x)[0]

    def rows(h):
        return pjax.quantize(h, 4, 0.7)

    one, other, through = moves(rows), moves(jax.vmap(rows)), moves(jax.vmap(rows, 1, 1))
    assert np.any(one)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one, through, rtol=0, atol=1e-12)
