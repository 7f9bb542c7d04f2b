"""Which leaves of the parameters move: by their kind, and by what the user says."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import pjax_trace as pjax
from pjax_trace import losses

X = jax.random.normal(jax.random.key(0), (16, 4))
Y = jax.random.normal(jax.random.key(1), (16, 2))
W = jax.random.normal(jax.random.key(2), (4, 2))
AP = pjax.AlternatingProjections(momentum=0.9)
BOTH = pytest.mark.parametrize("options", [{}, {"solver": AP, "steps": 5}], ids=["sweep", "AP"])


def same(a, b):
    """Whether two leaves are the same, bit for bit."""
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if not isinstance(a, (jax.Array, np.ndarray)):
        return type(a) is type(b) and a == b
    return a.dtype == b.dtype and np.array_equal(a, b)


def moved(fit, params, *args, count=8, **options):
    """The parameters after some updates, which must have lowered the loss."""
    train = pjax.project(fit, **options)
    state, new = train.init(params), params
    for _ in range(count):
        new, state, info = train.update(new, state, *args)
        assert bool(info.finite)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert jax.tree.structure(train.averaged(new, state) if not options else new) == (
        jax.tree.structure(params)
    )
    before, after = (fit(p, *args) for p in (params, new))
    before, after = (x[0] if isinstance(x, tuple) else x for x in (before, after))
    assert float(after) < float(before)
    return new


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)
        self.count = nnx.Variable(jnp.array(3))
        self.scale = nnx.Variable(jnp.array(1.5))  # a float, and no Param

    def __call__(self, x):
        return self.last(self.drop(jax.nn.relu(self.norm(self.first(x))))) * self.scale[...]


def nnx_fit(model, x, y):
    return losses.squared_error(model(x), y)


def check_nnx(old, new):
    """Parameters have moved, and nothing else."""
    pairs = zip(nnx.to_flat_state(old), nnx.to_flat_state(new), strict=True)
    kinds = set()
    for (path, a), (other, b) in pairs:
        assert path == other and type(a) is type(b)
        assert same(a.get_value(), b.get_value()) == (not isinstance(a, nnx.Param)), path
        kinds.add(type(a).__name__)
    assert {"Param", "BatchStat", "RngKey", "RngCount", "Variable"} <= kinds


@BOTH
def test_of_an_nnx_module_only_params_move(options):
    model = Net(nnx.Rngs(0))
    new = moved(nnx_fit, model, X, Y, **options)
    assert isinstance(new, Net) and new is not model
    check_nnx(nnx.state(model), nnx.state(new))


def test_nnx_states_that_are_split_by_hand():
    model = Net(nnx.Rngs(0))
    definition, params, rest = nnx.split(model, nnx.Param, ...)

    def split(params, rest, x, y):
        return nnx_fit(nnx.merge(definition, params, rest), x, y)

    apart = moved(split, params, rest, X, Y)
    definition, whole = nnx.split(model)
    new = moved(lambda s, x, y: nnx_fit(nnx.merge(definition, s), x, y), whole, X, Y)
    check_nnx(whole, new)
    together = nnx.state(moved(nnx_fit, model, X, Y), nnx.Param)
    for a, b, c in zip(
        *map(jax.tree.leaves, (apart, together, nnx.state(new, nnx.Param))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_a_running_average_stays_where_the_function_leaves_it():
    model = Net(nnx.Rngs(0))
    model.norm.use_running_average = False
    train = pjax.project(nnx_fit)  # which changes a model of its own
    new, _, _ = train.update(model, train.init(model), X, Y)
    assert same(new.norm.mean.get_value(), model.norm.mean.get_value())


def test_what_an_nnx_module_shares_moves_as_one():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.read = nnx.Embed(5, 4, rngs=rngs)
            self.write = nnx.Linear(4, 5, use_bias=False, rngs=rngs)
            self.other = self.read

        def __call__(self, i):
            return self.other.attend(jnp.tanh(self.write(self.read(i)) @ self.read.embedding[...]))

    i = jnp.arange(15) % 5
    model = Tied(nnx.Rngs(0))
    train = pjax.project(lambda m, i: losses.cross_entropy(m(i), (i + 1) % 5))
    new, _, _ = train.update(model, train.init(model), i)
    assert new.read is new.other
    assert not same(new.read.embedding.get_value(), model.read.embedding.get_value())


def test_nnx_modules_that_are_no_pytrees():
    class Plain(nnx.Module, pytree=False):
        def __init__(self, rngs):
            self.inner = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.inner(x)

    model, teacher = Plain(nnx.Rngs(0)), Plain(nnx.Rngs(1))
    train = pjax.project(lambda m, teacher, x: losses.squared_error(m(x), teacher(x)))
    new, state = model, train.init(model)
    for _ in range(40):
        new, state, info = train.update(new, state, teacher, X)
    np.testing.assert_allclose(new(X), teacher(X), atol=0.2)
    assert "model" not in str(train.trace(model, teacher, X))
    assert "m.inner.kernel" in str(train.trace(model, teacher, X))


def test_modules_under_jit():
    model = Net(nnx.Rngs(0))
    train = pjax.project(nnx_fit)
    state = train.init(model)
    inside, _, _ = jax.jit(train.update)(model, state, X, Y)
    outside, _, _ = train.update(model, state, X, Y)
    for a, b in zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (inside, outside)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(8)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(2)(linen.relu(x))


@BOTH
def test_linen_with_batch_statistics(options):
    model = Linen()
    variables = model.init(jax.random.key(0), X, False)

    def fit(params, stats, x, y):
        out, new = model.apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return losses.squared_error(out, y), new

    moved(fit, variables["params"], variables["batch_stats"], X, Y, **options)

    def whole(variables, x, y):
        return losses.squared_error(model.apply(variables, x, False), y)

    new = moved(
        whole, variables, X, Y, trainable=lambda path, _: "['batch_stats']" not in path, **options
    )
    for a, b in zip(*(jax.tree.leaves(v["batch_stats"]) for v in (new, variables)), strict=True):
        assert same(a, b)


@BOTH
def test_an_equinox_state_stays(options):
    class Model(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        last: eqx.nn.Linear

        def __init__(self, key):
            self.first = eqx.nn.Linear(4, 8, key=key)
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
            self.last = eqx.nn.Linear(8, 2, key=key)

        def __call__(self, x, state):
            x, state = self.norm(self.first(x), state)
            return self.last(jax.nn.relu(x)), state

    def fit(both, x, y):
        model, state = both
        out, state = jax.vmap(model, (0, None), (0, None), axis_name="batch")(x, state)
        return losses.squared_error(out, y), state

    start = eqx.nn.make_with_state(Model)(jax.random.key(0))
    (_, state), (_, before) = moved(fit, start, X, Y, **options), start
    assert all(map(same, jax.tree.leaves(state), jax.tree.leaves(before)))


def test_equinox_shared_moves_as_one():
    class Language(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self, key):
            embedding = eqx.nn.Embedding(5, 4, key=key)
            linear = eqx.nn.Linear(4, 5, use_bias=False, key=key)
            self.shared = eqx.nn.Shared(
                (embedding, linear), lambda p: p[1].weight, lambda p: p[0].weight
            )

        def __call__(self, i):
            embedding, linear = self.shared()
            return linear(jnp.tanh(embedding(i)))

    def fit(model, i):
        return losses.cross_entropy(jax.vmap(model)(i), (i + 1) % 5)

    new = moved(fit, Language(jax.random.key(0)), jnp.arange(15) % 5, count=30)
    embedding, linear = new.shared()
    assert same(embedding.weight, linear.weight)


@BOTH
def test_integers_and_keys_anywhere(options):
    params = {
        "linear": {"w": W, "b": jnp.zeros(2)},  # as Haiku has them
        "typed": jax.random.key(3),
        "raw": jax.random.PRNGKey(4),
        "index": jnp.array([1, 0]),
        "flag": jnp.array(True),
        "numpy": np.arange(3),
        "half": jnp.ones(2, jnp.bfloat16),
        "python": (3, 2.5, "name", None, True),
    }

    def fit(p, key, x, y):
        noise = 0.01 * jax.random.normal(p["typed"], (1, 2))
        noise += 0.01 * jax.random.normal(p["raw"], (1, 2))
        kept = jax.random.bernoulli(key, 0.9, x.shape)
        out = jnp.where(kept, x, 0.0) @ p["linear"]["w"] + p["linear"]["b"][None] + noise
        return losses.squared_error(out[:, p["index"]] * p["half"].astype(jnp.float32)[None], y)

    new = moved(fit, params, jax.random.key(5), X, Y, **options)
    for name in ("typed", "raw", "index", "flag", "numpy"):
        assert same(new[name], params[name]), name
    assert new["half"].dtype == jnp.bfloat16 and new["python"] == params["python"]
    assert not same(new["linear"]["w"], W)


def test_what_cannot_move_is_named():
    frozen = {"stat": nnx.BatchStat(jnp.ones(2)), "key": jax.random.key(0), "n": 3}
    with pytest.raises(pjax.InputError) as caught:
        pjax.project(lambda p, x: losses.squared_error(x, x)).init(frozen)
    for part in ("p['stat'].value is an nnx.BatchStat", "p['key'] is key<fry>", "p['n']"):
        assert part in str(caught.value)


class Lora(eqx.Module):
    base: eqx.nn.Linear
    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.base(x) + self.b @ (self.a @ x)


LORA = Lora(
    eqx.nn.Linear(4, 2, key=jax.random.key(0)),
    jax.random.normal(jax.random.key(3), (3, 4)),
    jnp.zeros((2, 3)),
)


def lora_fit(model, x, y):
    return losses.squared_error(jax.vmap(model)(x), y)


SPECS = {
    "path": lambda path, _: not path.startswith("model.base"),
    "shape": lambda _, leaf: 3 in leaf.shape,
    "tree": eqx.tree_at(
        lambda m: (m.a, m.b), jax.tree.map(lambda _: False, LORA), replace=(True, True)
    ),
    "prefix": Lora(False, True, True),  # pyright: ignore
}


@pytest.mark.parametrize("spec", SPECS)
@BOTH
def test_frozen_models(spec, options):
    new = moved(lora_fit, LORA, X, Y, trainable=SPECS[spec], **options)
    assert same(new.base.weight, LORA.base.weight) and same(new.base.bias, LORA.base.bias)
    assert not same(new.b, LORA.b) and not same(new.a, LORA.a)
    train = pjax.project(lora_fit, trainable=SPECS[spec])
    shapes = [a.shape for a in train.arrays(LORA, X, Y)[0]]
    assert shapes == [LORA.a.shape, LORA.b.shape]


def test_frozen_arguments():
    def fit(w, b, x, y):
        return losses.squared_error(x @ w + b[None], y)

    b = jnp.zeros(2)
    for argnums, said in (((0, 1), (True, False)), ((1, 0), (False, True))):
        train = pjax.project(fit, argnums, trainable=said)
        given = (W, b) if argnums == (0, 1) else (b, W)
        new, _, _ = train.update(given, train.init(given), X, Y)
        new = new if argnums == (0, 1) else new[::-1]
        assert not same(new[0], W) and same(new[1], b)


def test_trainable_is_checked():
    def fit(p, x, y):
        return losses.squared_error(x @ p["w"], y)

    for wrong, match in (
        ({"w": 1.0}, "True or False"),
        (lambda path, leaf: None, "True or False"),
        ({"v": True}, "no prefix of the parameters in p"),
        (False, r"p\['w'\] is not trainable"),
        ("w", "True or False"),
    ):
        with pytest.raises(pjax.InputError, match=match):
            pjax.project(fit, trainable=wrong)({"w": W}, X, Y)


def test_nnx_generators_and_empty_modules_as_data():
    class Scale(nnx.Module):
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.factor * x

    def fit(model, scale, rngs, x, y):
        noise = 0.01 * jax.random.normal(rngs.params(), x.shape)
        return losses.squared_error(scale(model(x + noise)), y)

    model, rngs = Net(nnx.Rngs(0)), nnx.Rngs(1)
    train = pjax.project(fit)
    new, _, info = train.update(model, train.init(model), Scale(2.0), rngs, X, Y)
    assert bool(info.finite) and int(rngs.params.count[...]) == 0
    check_nnx(nnx.state(model), nnx.state(new))


def test_an_adapter_of_an_nnx_module():
    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(4, 2, rngs=rngs)
            self.lora = nnx.LoRA(4, 3, 2, rngs=rngs)

        def __call__(self, x):
            return self.base(x) + self.lora(x)

    model = Adapted(nnx.Rngs(0))
    new = moved(nnx_fit, model, X, Y, trainable=lambda path, _: "lora" in path, count=20)
    assert same(new.base.kernel[...], model.base.kernel[...])
    assert same(new.base.bias[...], model.base.bias[...])
    assert not same(new.lora.lora_b[...], model.lora.lora_b[...])
