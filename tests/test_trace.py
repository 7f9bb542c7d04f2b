"""From Python functions to flat programs: inlining, data, dead code, names; and JAX's contracts."""

import functools
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.trace import trace_program
from tests.models import LABELS, MODELS
from tests.problems import problem_of

HERE = Path(__file__).name
CONSTANT = np.asarray([1.0, 2.0, 3.0], np.float32)


def trace(function, parameters, data=(), *, kept="outputs"):
    """A program of lists of parameters and data, and the names of its primitives."""
    names = [f"p{i}" for i in range(len(parameters))] + [f"d{i}" for i in range(len(data))]
    program = trace_program(
        lambda ps, ds: function(*ps, *ds),
        list(parameters),
        list(data),
        names=names,
        kept=kept,
    )
    return program, [e.primitive.name for e in program.equations]


def variables(equation):
    """Which of its operands are variables."""
    return tuple(v.variable for v in equation.inputs)


def variable_names(program):
    return [e.primitive.name for e in program.equations if any(variables(e))]


def check(function, parameters, data=()):
    """The flat program computes what the function computes; what calls it inlined is gone."""
    program, names = trace(function, parameters, data)
    env = program.evaluate(parameters, data)
    expected = jax.tree.leaves(function(*parameters, *data))
    for value, want in zip(program.outputs, expected, strict=True):
        np.testing.assert_allclose(env[value], want, rtol=1e-6)
    calls = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
    assert calls.isdisjoint(variable_names(program))
    return program, names


@jax.custom_jvp
def with_jvp(x):
    return jnp.tanh(x) * CONSTANT


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_vjp(x):
    return x + jnp.exp(x)


with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, g: (g,))


@jax.jit
def nested(x, y):
    """A jit in a jit, with constants of their own and a literal among the outputs."""

    @jax.jit
    def inner(x):
        return x * jnp.asarray(CONSTANT) + jnp.asarray(np.arange(3, dtype=np.float32)), 1.0

    first, one = inner(x)
    return first + inner(y)[0], one


X, Y = jnp.asarray([0.5, -1.0, 2.0]), jnp.asarray([1.0, 0.0, -3.0])
CALLS = {
    "jit": nested,
    "custom_jvp": lambda x, y: with_jvp(x) - y,
    "custom_vjp": lambda x, y: with_vjp(x - y),
    "remat": lambda x, y: jax.checkpoint(lambda x: jnp.sin(x) * jnp.asarray(CONSTANT))(x) + y,
    "relu": lambda x, y: jax.nn.relu(x) * y,
    "all of them": lambda x, y: jax.jit(
        jax.checkpoint(lambda x, y: with_jvp(with_vjp(nested(x, y)[0])))
    )(x, y),
    "vmap of jit": lambda x, y: jax.vmap(lambda a: nested(a * x, y)[0])(jnp.ones((2, 3))),
    "closure": lambda x, y: functools.reduce(lambda a, _: jax.jit(lambda b: b * y)(a), range(3), x),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("data", (False, True))
def test_calls_are_inlined(name, data):
    check(CALLS[name], (X,) if data else (X, Y), (Y,) if data else ())


def test_constants_of_nested_calls():
    program, names = check(lambda x: nested(x, x), (X,))
    assert names.count("mul") == 2 and names.count("add") == 3
    assert any(np.array_equal(c, CONSTANT) for c in program.constants.values())


def test_loops_of_data_are_not_unrolled():
    def function(x, d):
        total = jax.lax.fori_loop(0, 4, lambda _, c: c * d, d)
        branch = jax.lax.cond(d[0] > 0, jnp.sin, jnp.cos, d)
        return x * total * branch

    program, names = check(function, (X,), (Y,))
    assert variable_names(program) == ["mul", "mul"]
    assert "scan" in names or "while" in names


def test_data_stay_data():
    """What depends on no variable is never given to a rule, whatever it is."""

    def function(x, d):
        scale = jnp.sort(jnp.fft.fft(d).real)[::-1]  # primitives without rules
        pjax.constrain(x * scale, pjax.sets.Equal(1.0))

    graph = pjax.project(function, schedule="parallel", copies=False).trace(X, Y)
    assert [c.name for c in graph.constraints] == ["Equal"]
    program = graph.program
    assert [v.name for v in program.parameters] == ["x"]
    assert [v.name for v in program.data] == ["d"]
    assert all(any(variables(e)) for e in program.equations if any(v.variable for v in e.outputs))


def test_dead_code_is_gone():
    """Auxiliary results have no part in the problem, and may be anything."""

    def function(x, d):
        unused = jnp.fft.fft(jnp.sort(x))
        loss = pjax.losses.squared_error(x[None], d[None])
        return 2.0 * loss, {"sorted": jnp.sort(x), "count": jnp.argmax(x), "aux": unused.real}

    projected = pjax.project(function, steps=1, schedule="parallel")
    graph = projected.trace(X, Y)
    primitives = {e.primitive.name for e in graph.program.equations}
    assert primitives.isdisjoint({"sort", "fft", "argmax"})
    assert "mul" not in primitives  # the scale of the loss is in the tail of the objective
    assert "mul" in {e.primitive.name for e in graph.program.objective.tail}
    assert [c.name for c in graph.constraints] == ["squared_error"]
    projected(X, Y)
    # Without an objective everything that is returned is kept, and only that.
    _, names = trace(lambda x: (x * 2.0, jnp.sort(x))[0], (X,))
    assert names == ["mul"]


def test_numbering_is_deterministic():
    arguments = ({"b": X, "a": Y}, X)

    def numbers():
        traced_anew = jax.jit(nested.__wrapped__)

        def function(params, x):
            h = traced_anew(params["a"], with_jvp(params["b"]))[0] * x
            return pjax.losses.squared_error(jax.nn.relu(h)[None], x[None])

        program = (
            pjax.project(function, schedule="parallel", copies=False).trace(*arguments).program
        )
        return [
            (e.primitive.name, [v.index for v in e.inputs], [v.index for v in e.outputs], e.source)
            for e in program.equations
        ]

    first = numbers()
    assert first == numbers()
    indices = [i for _, _, outputs, _ in first for i in outputs]
    assert indices == sorted(indices)


def test_argument_paths():
    model = eqx.nn.MLP(3, 1, 2, 1, key=jax.random.key(0))

    def fit(model, batch, *, scale):
        return pjax.losses.squared_error(scale * jax.vmap(model)(batch["x"]), batch["y"])

    batch = {"x": jnp.ones((4, 3)), "y": jnp.zeros((4, 1))}
    graph = pjax.project(fit, schedule="parallel", copies=False).trace(
        model, batch, scale=jnp.float32(2.0)
    )
    assert [p.name for p in graph.parameters] == [
        "model.layers[0].weight",
        "model.layers[0].bias",
        "model.layers[1].weight",
        "model.layers[1].bias",
    ]
    assert [v.name for v in graph.program.data] == ["batch['x']", "batch['y']", "scale"]


def test_source_lines_are_the_users():
    """Also inside library functions that JAX compiled before, elsewhere."""
    jax.nn.relu(X), jnp.matmul(jnp.ones((2, 2)), jnp.ones((2, 2)))  # fills JAX's caches

    def first(x, w):
        return jax.nn.relu(jnp.matmul(x, w))  # here

    def second(x, w):
        return jax.nn.relu(jnp.matmul(x, w)) + jnp.clip(x, max=1.0)  # and here

    lines = Path(__file__).read_text().splitlines()
    for function, mark in ((first, "# here"), (second, "# and here")):
        line = 1 + next(i for i, text in enumerate(lines) if text.endswith(mark))
        program, _ = trace(function, (jnp.ones((2, 2)), jnp.ones((2, 2))))
        for equation in program.equations:
            assert f"{HERE}:{line} (" in equation.source, equation.primitive
            assert equation.source.endswith(f"{function.__name__})")


@pytest.mark.parametrize("name", ["Flax norms", "Flax CNN", "LSTMCell"])
def test_source_lines_are_not_those_of_a_library(name):
    parameters, apply, x = MODELS[name]()
    graph = pjax.project(lambda p: pjax.losses.cross_entropy(apply(p, x), LABELS)).trace(parameters)
    for constraint in graph.constraints:
        assert "models.py:" in constraint.source or HERE in constraint.source, constraint.label


def test_a_source_line_of_a_library_is_better_than_none():
    program = trace_program(optax.apply_updates, [X], [X], names=["x", "step"], kept="all")
    assert all("optax" in equation.source for equation in program.equations)


def test_source_lines_reach_the_messages():
    with pytest.raises(pjax.MissingRuleError) as error:
        pjax.project(
            lambda x: pjax.constrain(jax.lax.bessel_i0e(x), pjax.sets.Equal(1.0)),  # a factorial
            schedule="parallel",
            copies=False,
        ).trace(X)
    line = 1 + next(
        i
        for i, t in enumerate(Path(__file__).read_text().splitlines())
        if t.endswith("# a factorial")
    )
    assert str(error.value).count(f"{HERE}:{line}") >= 1
    assert "reached from x" in str(error.value)


def test_named_scopes():
    @jax.jit
    def inner(x):
        with jax.named_scope("inner"):
            return jnp.sin(x)

    def function(x):
        with jax.named_scope("outer"):
            y = inner(x)
        return jnp.cos(y)

    program, _ = trace(function, (X,))
    scopes = {e.primitive.name: e.scope for e in program.equations}
    assert scopes["cos"] == ""
    assert scopes["sin"].startswith("outer") and scopes["sin"].endswith("inner")

    graph = pjax.project(
        lambda x, y: pjax.constrain(_product(x, y), pjax.sets.Equal(1.0)),
        (0, 1),
        schedule="parallel",
        copies=False,
    )
    assert graph.trace(X, Y).constraints[0].scope == "product"


def _product(x, y):
    with jax.named_scope("product"):
        return x * y


def test_stop_gradient_is_data():
    def function(x):
        return jnp.sin(x) * jax.lax.stop_gradient(jnp.cos(x))

    program, _ = trace(function, (X,))
    (product,) = [e for e in program.equations if e.primitive.name == "mul"]
    assert variables(product) == (True, False)
    env = program.evaluate([X], [])
    np.testing.assert_allclose(env[program.outputs[0]], function(X), rtol=1e-6)
    # What only it needs asks for no rule.
    graph = pjax.project(
        lambda x: pjax.constrain(x * jax.lax.stop_gradient(jnp.sort(x)), pjax.sets.Equal(1.0)),
        schedule="parallel",
        copies=False,
    ).trace(X)
    assert [c.name for c in graph.constraints] == ["Equal"]


def test_outputs_may_be_literals_and_inputs():
    program, names = trace(lambda x, d: (1.0, x, d, jax.jit(lambda x: (2, x))(x)), (X,), (Y,))
    assert names == []
    assert [v.variable for v in program.outputs] == [False, True, False, False, True]
    env = program.evaluate([X], [Y])
    assert [np.asarray(env[v]).shape for v in program.outputs] == [(), (3,), (3,), (), (3,)]


class Scaled(eqx.Module):
    """A module with everything in it: arrays of both kinds, static fields, functions."""

    weight: jax.Array
    index: jax.Array
    factor: float
    name: str = eqx.field(static=True)
    activation: object = jax.nn.relu

    def __call__(self, x):
        return self.factor * self.activation(self.weight[self.index] * x)


def test_modules_as_they_are():
    module = Scaled(X, jnp.asarray([2, 0]), 2.0, "scaled")

    def fit(module, x):
        return pjax.losses.squared_error(module(x)[None], jnp.ones((1, 2)))

    moved, info = pjax.project(fit, steps=3, schedule="parallel")(module, jnp.ones(2))
    assert jax.tree.structure(moved) == jax.tree.structure(module)
    assert moved.factor == 2.0 and moved.name == "scaled"
    np.testing.assert_array_equal(moved.index, module.index)
    assert moved.weight[1] == module.weight[1]  # nobody reads it
    assert not np.array_equal(moved.weight, module.weight)
    assert list(info.gaps) == ["max"]


def test_disable_jit():
    """The same graph, whether calls are compiled or not."""
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))

    def fit(model, x):
        return pjax.losses.cross_entropy(jax.vmap(model)(x), jnp.asarray([0, 1]))

    x = jnp.ones((2, 3))

    def kinds(graph):
        return [(c.rule.family, c.shapes, c.variable) for c in graph.constraints]

    expected = kinds(pjax.project(fit, schedule="parallel", copies=False).trace(model, x))
    with jax.disable_jit():
        assert (
            kinds(pjax.project(fit, schedule="parallel", copies=False).trace(model, x)) == expected
        )


def test_python_branches_are_refused():
    with pytest.raises(pjax.TraceError, match="depends on the value of a traced array"):
        pjax.project(
            lambda x: pjax.constrain(x if x[0] > 0 else -x, pjax.sets.Equal(1.0)),
            schedule="parallel",
            copies=False,
        ).trace(X)


def test_the_objective_is_kept():
    def function(x, d):
        loss = pjax.losses.squared_error(x[None], d[None])
        return jnp.sin(x), 3.0 * loss

    program, names = trace(function, (X,), (Y,), kept="objective")
    assert names == ["broadcast_in_dim", "broadcast_in_dim", "loss"]
    assert "mul" in {e.primitive.name for e in program.objective.tail}


# What the rules and the tracer read of JAX's jaxprs. When one of these fails, JAX has changed.


def equations(function, *args):
    return jax.make_jaxpr(function)(*args).jaxpr.eqns


def only(function, *args):
    (eqn,) = equations(function, *args)
    return eqn


def test_contract_dot_general():
    x, w = jnp.ones((5, 2, 3)), jnp.ones((3, 5, 4))
    eqn = only(lambda x, w: jax.lax.dot_general(x, w, (((2,), (0,)), ((0,), (1,)))), x, w)
    assert eqn.primitive is jax.lax.dot_general_p
    contract, batch = eqn.params["dimension_numbers"]
    assert [tuple(map(int, side)) for side in (*contract, *batch)] == [(2,), (0,), (0,), (1,)]
    assert eqn.outvars[0].aval.shape == (5, 2, 4)  # batch, left, right
    assert "precision" in eqn.params


def test_contract_sums_and_views():
    x = jnp.ones((2, 3))
    eqn = only(lambda x: jnp.sum(x, (-1,)), x)
    assert eqn.primitive is jax.lax.reduce_sum_p
    assert tuple(map(int, eqn.params["axes"])) == (1,)
    eqn = only(lambda x: jax.lax.broadcast_in_dim(x, (4, 2, 3), (1, 2)), x)
    assert eqn.primitive is jax.lax.broadcast_in_dim_p
    assert eqn.params["shape"] == (4, 2, 3) and eqn.params["broadcast_dimensions"] == (1, 2)
    eqn = only(lambda x: x.astype(jnp.float16), x)
    assert eqn.params["new_dtype"] == jnp.float16
    eqn = only(lambda x: jax.lax.integer_pow(x, 2), x)
    assert eqn.primitive in (jax.lax.integer_pow_p, jax.lax.square_p)


def test_contract_select_n():
    """The predicate first, then the case for False."""
    x = jnp.ones(2)
    eqn = only(lambda p, x, y: jax.lax.select(p, x, y), jnp.asarray([True, False]), x, 2 * x)
    assert eqn.primitive is jax.lax.select_n_p
    inner = jax.make_jaxpr(lambda p, x, y: jax.lax.select(p, x, y))(
        jnp.asarray([True, False]), x, 2 * x
    ).jaxpr
    assert [inner.invars.index(v) for v in inner.eqns[0].invars] == [0, 2, 1]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.jit(jnp.sin), ("jit", "pjit")),
        (jax.checkpoint(jnp.sin), ("remat2", "checkpoint")),
        (with_jvp, ("custom_jvp_call",)),
        (with_vjp, ("custom_vjp_call",)),
        (jax.nn.relu, ("custom_jvp_call",)),
    ],
    ids=("jit", "remat", "custom_jvp", "custom_vjp", "relu"),
)
def test_contract_calls(function, name):
    eqn = only(function, X)
    assert eqn.primitive.name in name
    body = _compat.call_body(eqn)
    assert body is not None
    jaxpr, constants = body
    assert len(jaxpr.invars) == len(eqn.invars)
    assert len(jaxpr.constvars) == len(constants)
    assert len(jaxpr.outvars) == len(eqn.outvars)
    assert all(hasattr(inner, "primitive") for inner in jaxpr.eqns)


def test_contract_relu():
    """relu is custom_jvp_call → jit → max with a literal."""
    program, _ = trace(jax.nn.relu, (X,))
    assert variable_names(program) == ["max"]
    equation = program.equations[-1]
    assert equation.primitive is jax.lax.max_p
    assert variables(equation) == (True, False)
    threshold = program.evaluate([X], [])[equation.inputs[1]]
    np.testing.assert_array_equal(threshold, 0.0)


def test_contract_control_flow():
    eqn = only(lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, length=3)[0], X)
    assert _compat.loop_kind(eqn.primitive) == "scan"
    eqn = only(lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: c + 1, x), X)
    assert _compat.loop_kind(eqn.primitive) == "while"
    assert _compat.loop_predicates(eqn) == (0,)
    eqn = equations(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), X)[-1]
    assert _compat.loop_kind(eqn.primitive) == "cond"
    assert _compat.loop_predicates(eqn) == (0,)
    assert _compat.call_body(eqn) is None
    assert _compat.loop_kind(jax.lax.sin_p) is None


def test_contract_bind():
    """One equation evaluates as JAX evaluates it, one output or several."""
    for function in (jnp.sin, lambda x: jax.lax.split(x, (1, 2))):
        eqn = only(function, X)
        results = _compat.bind(eqn.primitive, eqn.params, X)
        for got, want in zip(results, jax.tree.leaves(function(X)), strict=True):
            np.testing.assert_array_equal(got, want)


def test_forward_values_are_the_functions():
    """The start of every update is a forward pass."""
    model = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (5, 3))

    def fit(model, x):
        pjax.constrain(jax.vmap(model)(x), pjax.sets.Equal(0.0))

    problem = problem_of(fit, model, x)
    view = problem.graph.constraints[-1].operands[0]
    found = problem.look(view, problem.start)
    np.testing.assert_allclose(found, jax.vmap(model)(x), rtol=1e-5, atol=1e-6)
