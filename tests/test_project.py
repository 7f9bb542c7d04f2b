"""The transform: calls, state, stages, what it compiles to, and what it reports."""

import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pjax_trace as pjax
from pjax_trace import sets

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 4))
Y = jnp.arange(16) % 3
LABELS = jax.nn.one_hot(Y, 3)


class Net(eqx.Module):
    """Arrays, an integer array, a static field and a Python number, as modules have them."""

    weight: jax.Array
    bias: jax.Array
    calls: jax.Array
    slope: float
    activation: str = eqx.field(static=True)

    def __init__(self, key, features=4, classes=3):
        self.weight = 0.3 * jax.random.normal(key, (features, classes))
        self.bias = jnp.zeros(classes)
        self.calls = jnp.array(7)
        self.slope = 2.0
        self.activation = "relu"

    def __call__(self, x):
        z = x @ self.weight + self.bias
        return self.slope * (jax.nn.relu(z) if self.activation == "relu" else z)


def fit(net, x, y):
    return pjax.losses.squared_error(jax.vmap(net)(x), y)


NET = Net(KEY)
TRAIN = pjax.project(fit, steps=10, schedule="parallel")


def linear(w, x, y, *, shift=None):
    z = x @ w
    return pjax.losses.squared_error(z if shift is None else z + shift, y)


W = 0.1 * jax.random.normal(jax.random.key(2), (4, 3))
LINEAR = pjax.project(linear, steps=10, schedule="parallel")


def same(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_module_comes_back_as_it_went_in():
    new, info = TRAIN(NET, X, LABELS)
    assert jax.tree.structure(new) == jax.tree.structure(NET)
    assert new.activation == "relu" and new.slope == 2.0 and int(new.calls) == 7
    assert new.weight.shape == NET.weight.shape and new.weight.dtype == NET.weight.dtype
    assert bool(jnp.any(new.weight != NET.weight)) and bool(jnp.any(new.bias != NET.bias))
    before, after = fit(NET, X, LABELS), fit(new, X, LABELS)
    assert after < before
    assert int(info.steps) == 10


def test_update_is_the_call_with_state():
    new, info = TRAIN(NET, X, LABELS)
    state = TRAIN.init(NET)
    one, state, first = TRAIN.update(NET, state, X, LABELS)
    same(new, one)
    same(info, first)
    two, state, second = TRAIN.update(one, state, X, LABELS)
    same(two, TRAIN(one, X, LABELS)[0])
    assert int(state.steps) == 20 and int(state.updates) == 2
    assert second.gap <= first.gap


def test_nothing_is_donated_unasked():
    state = TRAIN.init(NET)
    _, new, _ = TRAIN.update(NET, state, X, LABELS)
    leaves = jax.tree.leaves((NET, state, new, X))
    assert not any(x.is_deleted() for x in leaves if isinstance(x, jax.Array))


def test_works_under_jit_with_state():
    @jax.jit
    def train(w, state, x, y):
        w, state, info = LINEAR.update(w, state, x, y)
        w, state, info = LINEAR.update(w, state, x, y)
        return w, state, info.gap, info.finite

    w, state, gap, finite = train(W, LINEAR.init(W), X, LABELS)
    one, other, _ = LINEAR.update(W, LINEAR.init(W), X, LABELS)
    two, other, info = LINEAR.update(one, other, X, LABELS)
    np.testing.assert_allclose(w, two, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gap, info.gap, rtol=1e-3, atol=1e-6)
    assert int(state.updates) == int(other.updates) == 2 and bool(finite)

    kept, state, gap, finite = train(W, LINEAR.init(W), X.at[3, 1].set(jnp.nan), LABELS)
    assert not bool(finite)
    np.testing.assert_array_equal(kept, W)
    assert int(state.updates) == 0


def test_a_module_under_filter_jit():
    new = eqx.filter_jit(lambda net: TRAIN(net, X, LABELS)[0])(NET)
    np.testing.assert_allclose(new.weight, TRAIN(NET, X, LABELS)[0].weight, rtol=1e-5, atol=1e-6)


def test_argnums_and_keywords():
    expected, _ = LINEAR(W, X, LABELS)

    second = pjax.project(lambda x, w, y: linear(w, x, y), 1, steps=10, schedule="parallel")
    same(second(X, W, LABELS)[0], expected)
    state = second.init(W)
    same(second.update(W, state, X, LABELS)[0], expected)

    bias = 0.1 * jnp.ones(3)
    both = pjax.project(
        lambda w, x, b, y: linear(w, x, y, shift=b[None]), (0, 2), steps=10, schedule="parallel"
    )
    (w, b), _ = both(W, X, bias, LABELS)
    assert w.shape == W.shape and b.shape == bias.shape and bool(jnp.any(b != bias))

    swapped = pjax.project(
        lambda w, x, b, y: linear(w, x, y, shift=b[None]), (2, 0), steps=10, schedule="parallel"
    )
    (b2, w2), _ = swapped(W, X, bias, LABELS)
    np.testing.assert_allclose(b2, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(w2, w, rtol=1e-5, atol=1e-6)
    (b3, w3), _, _ = swapped.update((bias, W), swapped.init((bias, W)), X, LABELS)
    same((b3, w3), (b2, w2))

    shift = X[:, :1] @ W[:1]
    keyword, _ = LINEAR(W, X, LABELS, shift=shift)
    np.testing.assert_allclose(keyword, LINEAR(W, X, LABELS - shift)[0], rtol=1e-4, atol=1e-5)
    names = [v.name for v in LINEAR.trace(W, X, LABELS, shift=shift).program.data]
    assert names == ["x", "y", "shift"]


def test_pytrees():
    tree = {"layers": [(W, jnp.zeros(3))], "scale": (jnp.ones(()),)}

    def function(p, x, y):
        ((w, b),) = p["layers"]
        return pjax.losses.squared_error(p["scale"][0] * (x @ w + b[None]), y)

    new, info = pjax.project(function, steps=5, schedule="parallel")(tree, X, LABELS)
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    assert all(
        bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (new, tree)), strict=True)
    )
    names = [
        p.name
        for p in pjax.project(function, schedule="parallel", copies=False)
        .trace(tree, X, LABELS)
        .parameters
    ]
    assert names == ["p['layers'][0][0]", "p['layers'][0][1]", "p['scale'][0]"]


def test_part_of_a_model():
    moving = eqx.filter(NET, lambda leaf: leaf is NET.bias)
    fixed = eqx.filter(NET, lambda leaf: leaf is not NET.bias)
    train = pjax.project(
        lambda m, f, x, y: fit(eqx.combine(m, f), x, y), steps=5, schedule="parallel"
    )
    new, _ = train(moving, fixed, X, LABELS)
    assert new.weight is None and bool(jnp.any(new.bias != NET.bias))
    assert [p.name for p in train.trace(moving, fixed, X, LABELS).parameters] == ["m.bias"]


def test_numpy_arguments():
    new, _ = LINEAR(np.asarray(W), np.asarray(X), np.asarray(LABELS))
    same(new, LINEAR(W, X, LABELS)[0])


def test_state_can_be_saved_and_loaded(tmp_path):
    state = TRAIN.init(NET)
    net, state, _ = TRAIN.update(NET, state, X, LABELS)
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", (net, state))
    pickled = pickle.dumps(state)
    like = (Net(jax.random.key(9)), TRAIN.init(NET))
    net2, state2 = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", like)
    state3 = pickle.loads(pickled)
    same(state, state2)
    same(state, state3)
    expected = TRAIN.update(net, state, X, LABELS)
    for loaded in (state2, state3):
        same(expected, TRAIN.update(net2, loaded, X, LABELS))


PROGRAM = """
import hashlib, jax, jax.numpy as jnp, pjax_trace as pjax
w = jax.random.normal(jax.random.key(0), (4, 3))
x, y = jax.random.normal(jax.random.key(1), (16, 4)), jnp.arange(16) % 3
def fit(w, x, y):
    return pjax.losses.cross_entropy(jax.nn.relu(x @ w), y)
result = pjax.project(fit, steps=10)(w, x, y)
digest = hashlib.sha256()
for leaf in jax.tree.leaves(result):
    digest.update(jnp.asarray(leaf).tobytes())
print(digest.hexdigest())
"""


def test_same_seed_same_bits(capsys):
    same(TRAIN(NET, X, LABELS), TRAIN(NET, X, LABELS))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(PROGRAM, {})
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert capsys.readouterr().out == run.stdout


def test_one_compilation_per_shape():
    traces = []

    def counted(w, x, y):
        traces.append(x.shape)
        return pjax.losses.squared_error(x @ w, y)

    train = pjax.project(counted, steps=3, schedule="parallel")
    state = train.init(W)
    w = W
    for _ in range(3):
        w, state, _ = train.update(w, state, X, LABELS)
    train(w, X + 1.0, LABELS)
    assert traces == [(16, 4)]
    w, state, _ = train.update(w, state, X[:5], LABELS[:5])
    train(w, X[:5], LABELS[:5])
    assert traces == [(16, 4), (5, 4)]


def test_stages():
    graph = LINEAR.trace(W, X, LABELS)
    assert isinstance(graph, pjax.ConsensusGraph)
    assert [p.name for p in graph.parameters] == ["w"]
    assert __file__ in str(graph) and "squared_error" in str(graph)
    lowered = LINEAR.lower(W, X, LABELS)
    assert lowered.as_text().count("stablehlo.while") == 1
    compiled = lowered.compile()
    # One loop, the scan over steps, whatever the number of steps.
    assert compiled.as_text().count(" while(") == 1
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes > 0
    longer = pjax.project(linear, steps=500, schedule="parallel").lower(W, X, LABELS).as_text()
    assert longer.count("stablehlo.while") == 1
    assert abs(len(longer.splitlines()) - len(lowered.as_text().splitlines())) <= 2


def test_no_python_in_a_step(capfd):
    calls = []

    @pjax.custom_projection
    def same_as(x):
        return x

    @same_as.defprojection
    def nearest(operands, out, weights):
        calls.append(None)
        (x,), (wx,) = operands, weights.operands
        mean = (wx * x + weights.out * out) / (wx + weights.out)
        return (mean,), mean

    train = pjax.project(
        lambda w: pjax.constrain(same_as(w), sets.Equal(1.0)), steps=50, schedule="parallel"
    )
    train(jnp.zeros(2))
    traced = len(calls)
    assert traced < 50
    train(jnp.ones(2))
    assert len(calls) == traced


def test_info():
    new, info = TRAIN(NET, X, LABELS)
    graph = TRAIN.trace(NET, X, LABELS)
    hard = [c.name for c in graph.constraints if c.out is not None]
    assert list(info.names) == hard and list(info.gaps) == hard
    assert list(info.losses) == ["squared_error"]
    assert all(source.startswith(__file__) for source in info.sources)
    gaps = np.array([float(g) for g in info.gaps.values()])
    np.testing.assert_allclose(float(info.gap), np.sqrt(np.sum(gaps**2)), rtol=1e-6)
    assert info.history.shape == (10,) and bool(jnp.all(info.history >= 0))
    assert int(info.steps) == 10 and bool(info.finite)
    text = str(info)
    assert text.splitlines()[0] == f"gap {float(info.gap):.4g} after 10 steps"
    assert all(name in text for name in (*hard, "squared_error", __file__))


def test_the_gap_is_the_distance_from_the_graph():
    """Against the iteration by hand: rows |a·x − z|² / (|a|²/ω_x + 1/ω_z), and z at b."""
    a = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, 1.0]])
    b = np.array([1.0, -2.0, 0.5])

    def problem(x):
        z = jnp.asarray(a, jnp.float32) @ x
        pjax.constrain(z, sets.Equal(jnp.asarray(b, jnp.float32)))

    metric = pjax.Metric(parameters=2.0, outputs=0.5)
    solver = pjax.AlternatingProjections()
    solve = pjax.project(problem, solver=solver, steps=3, metric=metric, copies=False)
    found, info = solve(jnp.ones(2))
    x, history = np.ones(2), []
    z = a @ x
    compliance = (a**2).sum(1) / 2 + 1 / 0.5
    for _ in range(3):
        lam = (b - a @ x) / compliance
        history.append(np.sqrt(np.sum(0.5 * (z - b) ** 2) + np.sum(lam**2 * compliance)))
        z = b - lam / 0.5
        x = x + (a * lam[:, None] / 2).mean(0)
    np.testing.assert_allclose(found, x, rtol=1e-5)
    gaps = {
        "dot_general": np.sqrt(np.sum((z - a @ x) ** 2 / compliance)),
        "Equal": np.sqrt(np.sum(0.5 * (z - b) ** 2)),
    }
    assert info.gaps.keys() == gaps.keys() and not info.losses
    for name, gap in gaps.items():
        np.testing.assert_allclose(float(info.gaps[name]), gap, rtol=1e-4)
    np.testing.assert_allclose(info.history, history, rtol=1e-4)


def test_the_gap_falls():
    state, w, gaps = LINEAR.init(W), W, []
    x, y = X[:3], LABELS[:3]  # three rows, four unknowns: feasible
    for _ in range(10):
        w, state, info = LINEAR.update(w, state, x, y)
        gaps.append(float(info.gap))
    assert gaps[-1] < 0.5 * gaps[0] and all(b <= a for a, b in zip(gaps, gaps[1:], strict=False))


def test_tol_stops_early():
    x, y = X[:3], LABELS[:3]
    full = pjax.project(linear, steps=200, schedule="parallel")
    _, info = full(W, x, y)
    tol = 1e-2
    early = pjax.project(linear, steps=200, tol=tol, schedule="parallel")
    w, stopped = early(W, x, y)
    steps = int(stopped.steps)
    assert 1 <= steps < 200 and stopped.gap <= tol
    assert stopped.history.shape == (200,)
    np.testing.assert_allclose(stopped.history[:steps], info.history[:steps], rtol=1e-4, atol=1e-6)
    assert bool(jnp.all(jnp.isnan(stopped.history[steps:])))
    same_steps, at = pjax.project(linear, steps=steps, schedule="parallel")(W, x, y)
    np.testing.assert_allclose(w, same_steps, rtol=1e-5, atol=1e-6)
    assert stopped.residuals[steps - 1] <= tol < stopped.residuals[steps - 2]
    assert f"after {steps} steps" in str(stopped)
    never, info = pjax.project(linear, steps=7, tol=0.0, schedule="parallel")(W, X, LABELS)
    assert int(info.steps) == 7


def test_the_shadow_is_returned():
    """Douglas–Rachford's governing point leaves the sets; its shadow satisfies the first colour."""

    def problem(x):
        pjax.constrain(jnp.sum(x), sets.Equal(1.0))
        pjax.constrain(x, sets.NonNegative())

    solver = pjax.DouglasRachford()
    x, info = pjax.project(problem, solver=solver, steps=200)(jnp.array([3.0, -2.0, 0.5]))
    np.testing.assert_allclose(jnp.sum(x), 1.0, atol=1e-3)
    assert bool(jnp.all(x >= -1e-3)) and info.gap < 1e-3


def test_defaults():
    train = pjax.project(linear, schedule="parallel")
    assert "AlternatingProjections" in repr(train) and "steps=50" in repr(train)
    assert "momentum=0.9" in repr(train) and "linear" in repr(train)
    explicit = pjax.project(
        linear,
        0,
        solver=pjax.AlternatingProjections(momentum=0.9),
        steps=50,
        metric=pjax.Metric(),
        copies=False,
        tol=None,
    )
    same(train(W, X, LABELS), explicit(W, X, LABELS))
    assert train.__name__ == "linear" and train.__wrapped__ is linear


def test_what_the_function_makes_of_a_loss_scales_it():
    loss = pjax.losses.squared_error

    def same_as(factor, function, *, lam=4.0):
        """Whether the function trains as the loss with λ = 2 does, ``factor · lam`` being 2."""
        assert factor * lam == 2.0
        new, _ = pjax.project(function, steps=3, schedule="parallel")(W, X, LABELS)
        np.testing.assert_allclose(new, half, rtol=1e-5, atol=1e-6)

    train = pjax.project(lambda w, x, y, lam: loss(x @ w, y, lam=lam), steps=3, schedule="parallel")
    half, _ = train(W, X, LABELS, jnp.array(2.0))
    assert not np.allclose(half, train(W, X, LABELS, jnp.array(4.0))[0], atol=1e-4)
    same_as(0.5, lambda w, x, y: 0.5 * loss(x @ w, y, lam=4.0) / 1.0)

    def averaged(w, x, y):
        return jnp.mean(jax.vmap(lambda a, b: loss(a @ w, b, lam=2.0))(x, y))

    same_as(1, averaged, lam=2.0)  # as the loss of all rows

    def summed(w, x, y):
        return jnp.sum(jax.vmap(lambda a, b: loss(a @ w, b, lam=0.125))(x, y))

    same_as(16, summed, lam=0.125)

    def auxiliary(w, x, y):
        z = x @ w
        hits = jnp.argmax(z, -1) == jnp.argmax(y, -1)  # argmax has no rule and needs none
        return loss(z, y, lam=2.0), {"accuracy": jnp.mean(hits, dtype=jnp.float32)}

    same_as(1, auxiliary, lam=2.0)

    def dropped(w, x, y):  # a loss that is not returned counts in full
        loss(x @ w, y, lam=2.0)

    same_as(1, dropped, lam=2.0)


def test_two_losses_are_added():
    def two(w, x, y):
        first = pjax.losses.squared_error(x @ w, y, lam=2.0)
        return first + 0.5 * pjax.losses.margin(x @ w, y, lam=2.0)

    def apart(w, x, y):
        return pjax.losses.squared_error(x @ w, y, lam=2.0), pjax.losses.margin(x @ w, y, lam=1.0)

    one, info = pjax.project(two, steps=5, schedule="parallel")(W, X, LABELS)
    other, _ = pjax.project(apart, steps=5, schedule="parallel")(W, X, LABELS)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert list(info.losses) == ["squared_error", "margin"]
    value = pjax.losses.squared_error(X @ one, LABELS)
    assert np.isfinite(float(value))


def two_layers(p, x, y):
    h = x @ p["first"]
    return pjax.losses.squared_error(h @ p["second"], y)


def test_the_metric_by_kind_and_path():
    p = {"first": W, "second": jnp.eye(3) + 0.1}

    def moved(metric):
        new, _ = pjax.project(two_layers, steps=3, metric=metric, schedule="parallel")(p, X, LABELS)
        return {k: float(jnp.max(jnp.abs(new[k] - p[k]))) for k in p}

    plain = moved(None)
    frozen = moved({"p['first']": 1e8})
    assert frozen["first"] < 1e-5 < plain["first"] and frozen["second"] > 1e-3
    # What the loss reads, held fast: the pull towards the labels is a ten-thousandth.
    assert max(moved(pjax.Metric(outputs=1e4)).values()) < 0.1 * max(plain.values())

    graph = pjax.project(two_layers, schedule="parallel", copies=False).trace(p, X, LABELS)

    def weights(**kinds):
        return {v.name: weight for v, weight in pjax.Metric(**kinds).resolve(graph).items()}

    one, two = "p['first']", "p['second']"
    inner, outer = (v.name for v in graph.variables if not v.parameter)
    assert weights(parameters=2.0, hidden=3.0, outputs=4.0) == {
        one: 2.0, two: 2.0, inner: 3.0, outer: 4.0
    }  # fmt: skip
    assert weights(paths={"p": 5.0, one: 6.0}) == {one: 6.0, two: 5.0, inner: 1.0, outer: 1.0}
    assert weights(paths={one: 6.0, "*": 5.0})[one] == 5.0  # the last pattern that matches
    assert weights(paths={"*'second']": 7.0}) == {one: 1.0, two: 7.0, inner: 1.0, outer: 1.0}
    assert weights(paths={outer: 8.0})[outer] == 8.0


def test_infinite_data_is_allowed_where_the_function_can_use_it():
    """A box without upper bound, and λ = ∞, come as arguments."""

    def problem(w, upper, x, y, lam):
        pjax.constrain(w, sets.Box(-1.0, upper))
        return pjax.losses.margin(x @ w, y, lam=lam)

    w, info = pjax.project(problem, steps=3, schedule="parallel")(
        W, jnp.inf * jnp.ones(3), X, Y, jnp.array(jnp.inf)
    )
    assert bool(info.finite) and bool(jnp.all(jnp.isfinite(w)))
