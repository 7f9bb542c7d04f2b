"""Bad input: each kind stops with a message that says what is wrong, where, and what to do."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import losses, sets

W = jnp.full((3, 2), 0.1)
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
Y = jnp.array([0, 1, 0, 1])


def fit(w, x, y):
    return losses.cross_entropy(x @ w, y)


TRAIN = pjax.project(fit, steps=2, schedule="parallel")


def refused(error, match, function, *args, **options):
    """The message of the error that a call ends in."""
    with pytest.raises(error, match=match) as caught:
        pjax.project(function, steps=2, **options)(*args)
    assert isinstance(caught.value, pjax.PjaxError)
    return str(caught.value)


def line(function, text):
    """``file:line`` of the line of a function's source that contains a text."""
    import inspect

    source, start = inspect.getsourcelines(function)
    (offset,) = [i for i, code in enumerate(source) if text in code]
    return f"{__file__}:{start + offset}"


def test_unknown_primitives_are_reported_all_at_once():
    def function(model, x, y):
        z = lax.bessel_i0e(x @ model["w"])
        with jax.named_scope("head"):
            z = lax.igamma(jnp.ones_like(z), z)
        z = z + lax.bessel_i1e(model["b"])[None]
        return losses.cross_entropy(z, y)

    model = {"w": W, "b": jnp.zeros(2)}
    message = refused(pjax.MissingRuleError, "bessel_i0e", function, model, X, Y)
    by_name = {text.split()[0]: text for text in message.splitlines() if text.startswith("  ")}
    assert list(by_name) == ["bessel_i0e", "igamma", "bessel_i1e"]
    assert line(function, "lax.bessel_i0e") in by_name["bessel_i0e"]
    assert line(function, "lax.igamma") in by_name["igamma"]
    assert "head" in by_name["igamma"]
    assert line(function, "lax.bessel_i1e") in by_name["bessel_i1e"]
    # What leads there: a parameter by its path, or a constraint and its source line.
    assert (
        "dot_general" in by_name["bessel_i0e"]
        and line(function, "x @ model") in by_name["bessel_i0e"]
    )
    assert "reached from model['b']" in by_name["bessel_i1e"]
    assert "register_rule" in message and "custom_projection" in message
    assert "stop_gradient" in message


def test_a_rule_that_cannot_take_these_operands():
    def scattered(w, x, y):
        return losses.cross_entropy((x @ w).at[0].multiply(w[0]), y)

    message = refused(pjax.MissingRuleError, "scatter", scattered, W, X, Y)
    assert "x.at[i].set(x[i] * u)" in message and "reached from" in message
    assert line(scattered, "multiply") in message


@pytest.mark.parametrize(
    ("method", "names"), [("multiply", []), ("max", ["max"]), ("min", ["max"])]
)
def test_a_scatter_of_data_is_a_scaling_or_a_bound(method, names):
    def scattered(w, i, u):
        z = getattr(w.at[i], method)(u)
        return losses.squared_error(z, jnp.zeros((3, 2)))

    i, u = jnp.array([0, 0, 2]), jnp.array([[0.5, -0.1], [0.3, 2.0], [-3.0, 3.0]])
    graph = pjax.project(scattered, schedule="product").trace(W, i, u)
    assert [c.name for c in graph.constraints] == [*names, "squared_error"]
    values = graph.program.evaluate([W], [i, u]).values()
    expected = getattr(W.at[i], method)(u)
    assert any(v.shape == W.shape and np.array_equal(v, expected) for v in values)


def test_primitives_on_data_need_no_rule():
    def function(w, x, y):
        return losses.cross_entropy(jnp.sort(jnp.sin(x)) @ w, y)

    pjax.project(function, schedule="parallel", copies=False).trace(W, X, Y)


def test_integer_parameters():
    message = refused(pjax.InputError, "w is", fit, jnp.ones((3, 2), int), X, Y)
    assert "int32" in message and "float32" in message and "data" in message
    message = refused(pjax.InputError, r"\['n'\]", fit, {"n": jnp.arange(3)}, X, Y)
    assert "int32" in message
    refused(pjax.InputError, "bool", fit, [jnp.array(True)], X, Y)
    refused(pjax.InputError, "int", fit, (3,), X, Y)
    with pytest.raises(pjax.InputError, match="int32"):
        TRAIN.init(jnp.ones(3, int))
    with pytest.raises(pjax.InputError, match="no floating-point array"):
        TRAIN.init({})


def test_non_finite_parameters_are_named():
    def function(model, x, y):
        return losses.cross_entropy(x @ model["w"] + model["b"][None], y)

    for bad in (jnp.nan, jnp.inf):
        model = {"w": W, "b": jnp.array([0.0, bad])}
        message = refused(pjax.NonFiniteError, r"parameter model\['b'\]", function, model, X, Y)
        assert message.startswith("NaN or infinity in parameter model['b']")


def test_non_finite_data_are_named():
    with pytest.raises(pjax.NonFiniteError, match="data argument x") as caught:
        TRAIN(W, X.at[1, 2].set(jnp.nan), Y)
    assert caught.value.culprit == "data argument x"
    np.testing.assert_array_equal(caught.value.params, W)


def test_no_output_constraint():
    message = refused(pjax.TraceError, "no output constraint", lambda w, x: jnp.sum(x), W, X)
    assert "scalar" in message and "constrain" in message
    refused(
        pjax.TraceError, "scalar of a floating-point type.*as for jax.grad", lambda w, x: w, W, X
    )
    refused(pjax.TraceError, "2 arrays.*has_aux=True", lambda w, x: (jnp.sum(w), x), W, X)

    def only_data(w, x, y):
        return losses.cross_entropy(x, y)

    message = refused(pjax.TraceError, "only_data has no output constraint", only_data, W, X, Y)


def test_a_python_branch_or_loop_on_a_variable():
    def branch(w, x, y):
        if jnp.sum(w) > 0:
            w = -w
        return losses.cross_entropy(x @ w, y)

    def loop(w, x, y):
        while jnp.max(w) < 3.0:
            w = 2 * w
        return losses.cross_entropy(x @ w, y)

    def count(w, x, y):
        for _ in range(jnp.argmax(w)):
            x = 2 * x
        return losses.cross_entropy(x @ w, y)

    def mask(w, x, y):
        return losses.cross_entropy(x @ w.at[w > 0].set(0.0), y)

    for function in (branch, loop, count, mask):
        message = refused(pjax.TraceError, "loop or branch depends on the value", function, W, X, Y)
        assert "jnp.where" in message


def test_a_traced_loop_on_a_variable():
    def function(w, x, y):
        z = jax.lax.while_loop(lambda w: jnp.all(w < 3.0), lambda w: 2 * w, w)
        return losses.cross_entropy(x @ z, y)

    message = refused(pjax.TraceError, "while_loop", function, W, X, Y)
    assert line(function, "lax.while_loop") in message and " w;" in message
    assert "jnp.where" in message


def test_shapes_that_disagree_between_calls():
    state = TRAIN.init({"w": W})
    with pytest.raises(pjax.InputError, match=r"w\['w'\]") as caught:
        TRAIN.update({"w": W[:, :1]}, state, X, Y)
    assert "(3, 1)" in str(caught.value) and "(3, 2)" in str(caught.value)
    with pytest.raises(pjax.InputError, match="float16"):
        TRAIN.update({"w": W.astype(jnp.float16)}, TRAIN.init({"w": W}), X, Y)
    with pytest.raises(pjax.InputError, match=r"w\['b'\].*missing"):
        TRAIN.update({"w": W, "b": W}, TRAIN.init({"w": W}), X, Y)
    with pytest.raises(pjax.InputError, match=r"w\['w'\].*missing"):
        TRAIN.update({"b": W}, TRAIN.init({"w": W}), X, Y)
    with pytest.raises(pjax.InputError, match="state must come from init, but is Array"):
        TRAIN.update(W, W, X, Y)


def test_parameters_that_are_not_passed():
    with pytest.raises(pjax.InputError, match="argument 2, but was called with 2 arguments"):
        pjax.project(fit, 2, schedule="parallel")(W, X)
    with pytest.raises(pjax.InputError, match="argument"):
        TRAIN(w=W, x=X, y=Y)


@pytest.mark.parametrize(
    "constraint",
    [
        lambda: sets.Equal(jnp.zeros(5)),
        lambda: sets.Box(jnp.zeros((2, 3, 2)), 1.0),
        lambda: sets.Ball(jnp.ones(4)),
        lambda: sets.Ball(1.0, axis=3),
    ],
)
def test_a_set_that_does_not_fit(constraint):
    def function(w):
        pjax.constrain(w, constraint())

    message = refused(pjax.InputError, "does not fit", function, W)
    assert type(constraint()).__name__ in message and "(3, 2)" in message


def test_what_is_no_set():
    refused(pjax.InputError, r"constrain: .* must be a", lambda w: pjax.constrain(w, 1.0), W)
    with pytest.raises(pjax.InputError, match="floating point, not int32"):
        pjax.constrain(jnp.arange(3), sets.NonNegative())


@pjax.custom_projection
def fragile(x):
    """Its projection fails once a value gets above 1."""
    return x


@fragile.defprojection
def at_most_one(operands, out, weights):
    (x,), (wx,), wz = operands, weights.operands, weights.out
    mean = (wx * x + wz * out) / (wx + wz)
    mean = jnp.where(mean > 1, jnp.nan, mean)
    return (mean,), mean


def test_nan_in_a_step_keeps_the_last_good_parameters():
    def function(w, goal):
        z = fragile(w[0])
        pjax.constrain(z, sets.Equal(goal))
        pjax.constrain(w[1], sets.Box(-1.0, 1.0))

    train = pjax.project(function, steps=4, solver=pjax.AlternatingProjections())
    w = jnp.zeros((2, 3))
    w, state, info = train.update(w, train.init(w), jnp.full(3, 0.5))
    assert bool(info.finite)
    kept = np.array(w)
    with pytest.raises(pjax.NonFiniteError, match="the projection onto fragile at") as caught:
        train.update(w, state, jnp.array([0.5, 3.0, 0.5]))
    error = caught.value
    assert line(function, "fragile(w[0])") in str(error)
    assert "last good parameters" in str(error) and ".params" in str(error)
    np.testing.assert_array_equal(error.params, kept)
    np.testing.assert_array_equal(w, kept)  # not donated, not touched
    assert int(error.state.steps) == 4 and int(error.state.updates) == 1
    # And on it goes, with other data.
    w, state, info = train.update(error.params, error.state, jnp.full(3, 0.7))
    assert bool(info.finite) and int(state.updates) == 2
    assert bool(jnp.all(jnp.isfinite(w)))


def test_the_constraint_that_failed_first_is_named():
    """Two that fail, in different steps: 2 is above 1 at once, 1.5 only after some steps."""

    @pjax.custom_projection
    def slow(x):
        return x

    slow.defprojection(at_most_one)

    def function(w):
        pjax.constrain(slow(w[0]), sets.Equal(1.5))
        pjax.constrain(fragile(w[1]), sets.Equal(3.0))

    solver = pjax.AlternatingProjections()
    w = jnp.zeros((2, 1))
    # By hand: x moves half of the way to the goal in every step.
    with pytest.raises(pjax.NonFiniteError, match="onto fragile") as caught:
        pjax.project(function, steps=5, solver=solver)(w)
    assert caught.value.culprit.startswith("the projection onto fragile at")
    with pytest.raises(pjax.NonFiniteError, match="onto slow"):
        pjax.project(
            lambda w: function(w[::-1] * jnp.array([[1.0], [0.0]]) + jnp.array([[0.0], [-90.0]])),
            steps=5,
            solver=solver,
        )(w)


def test_overflow_and_invalid_values_in_the_forward_pass():
    def grows(w):
        return losses.squared_error(jnp.exp(w), jnp.ones(3))

    message = refused(pjax.NonFiniteError, "forward pass of exp", grows, jnp.array([0.0, 200, 1]))
    assert line(grows, "jnp.exp") in message

    def invalid(w):
        return losses.squared_error(jnp.log(w), jnp.ones(3))

    w = jnp.array([1.0, -1.0, 2.0])
    message = refused(pjax.NonFiniteError, "forward pass of log", invalid, w)
    assert line(invalid, "jnp.log") in message


def test_a_loss_scaled_by_what_is_not_positive():
    """A negative one is the tangent of the loss, another step than NaN; that names the loss."""
    train = pjax.project(
        lambda w, x, y, s: s * losses.cross_entropy(x @ w, y), steps=2, schedule="parallel"
    )
    with pytest.raises(pjax.NonFiniteError, match="cross_entropy|data argument s"):
        train(W, X, Y, jnp.array(jnp.nan))
    worse, _ = train(W, X, Y, jnp.array(-1.0))
    assert losses.cross_entropy(X @ worse, Y) > losses.cross_entropy(X @ W, Y)


def test_labels_that_are_variables():
    def function(w, x):
        return losses.margin(x @ w, jnp.abs(x @ w))

    message = refused(pjax.TraceError, "only the first argument may depend", function, W, X)
    assert "margin at" in message and line(function, "losses.margin") in message

    def strength(w, x, y):
        return losses.cross_entropy(x @ w, y, lam=jnp.sum(w))

    refused(pjax.TraceError, "only the first argument", strength, W, X, Y)

    def region(w):
        pjax.constrain(w[0], sets.Ball(jnp.sum(w[1])))

    refused(pjax.TraceError, "Ball at .*only the first argument", region, W)


def test_a_variable_times_itself():
    """It is no error: both factors are copies of one variable, and agree in the end."""

    def gram(w):
        pjax.constrain(w @ w.T, sets.Equal(jnp.diag(jnp.array([2.0, 1.0]))))

    def shifted(w):
        pjax.constrain(w * (w + 1.0), sets.Equal(6.0))

    for function, start in ((gram, jnp.array([[1.0, 0.2], [0.3, 1.5]])), (shifted, W + 1.0)):
        graph = pjax.project(function, schedule="parallel", copies=True).trace(start)
        product, _ = graph.constraints
        assert [view.bases for _, view in product.reads] == [graph.parameters] * 2
        free, explicit = solved_both_ways(function, start, steps=5)
        np.testing.assert_allclose(free, explicit, rtol=1e-5, atol=1e-6)
        w, info = pjax.project(function, solver=pjax.AlternatingProjections(), steps=500)(start)
        assert info.gap < 1e-3
    np.testing.assert_allclose(w * (w + 1.0), 6.0, atol=1e-3)
    # Two parts of one array are two variables, and x * x is a square.
    for function, family in (
        (lambda w: losses.squared_error(w[0] * w[1], jnp.ones(2)), "sum"),
        (lambda w: losses.squared_error(w * w, jnp.ones((3, 2))), "elementwise"),
    ):
        graph = pjax.project(function, schedule="parallel", copies=False).trace(W)
        assert [c.rule.family for c in graph.constraints] == [family, "loss"]


def solved_both_ways(function, start, steps):
    """Where alternating projections end without copies, and with them."""
    solver = pjax.AlternatingProjections()
    return [
        pjax.project(function, solver=solver, steps=steps, copies=copies)(start)[0]
        for copies in (False, True)
    ]


@pytest.mark.parametrize(
    "options, match",
    [
        ({"solver": "DouglasRachford"}, "solver must be a value such as"),
        ({"solver": pjax.DouglasRachford}, "solver must be a value such as"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": -3}, "steps must be a positive integer"),
        ({"steps": 2.5}, "steps must be a positive integer"),
        ({"steps": True}, "steps must be a positive integer"),
        ({"argnums": -1}, "argnums must be"),
        ({"argnums": ()}, "argnums must be"),
        ({"argnums": "w"}, "argnums must be"),
        ({"argnums": (0, 1.0)}, "argnums must be"),
        ({"argnums": (0, 0)}, "argnums must be"),
        ({"argnums": True}, "argnums must be"),
        ({"metric": 3.0}, "metric must be"),
        ({"metric": {"w": -1.0}}, "the weight of w must be a positive number"),
        ({"metric": {"w": "heavy"}}, "the weight of w must be a positive number"),
        ({"tol": -1e-3}, "tol must be"),
        ({"tol": float("nan")}, "tol must be"),
        ({"tol": "small"}, "tol must be"),
        ({"copies": "yes"}, "copies must be"),
        ({"solver": pjax.DouglasRachford(), "copies": False}, "DouglasRachford needs copies"),
    ],
    ids=str,
)
def test_arguments_of_project(options, match):
    with pytest.raises(pjax.InputError, match=match):
        pjax.project(fit, **options)


def test_what_is_no_function():
    with pytest.raises(pjax.InputError, match="project takes a function"):
        pjax.project(3, schedule="parallel")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), True, None, "1"])
def test_weights_are_positive_numbers(weight):
    for kind in ("parameters", "hidden", "outputs"):
        with pytest.raises(pjax.InputError, match=f"weight of {kind} must be a positive number"):
            pjax.Metric(**{kind: weight})


def test_a_path_that_matches_nothing():
    train = pjax.project(fit, steps=2, metric={"model.weight": 2.0}, schedule="parallel")
    with pytest.raises(pjax.InputError, match="'model.weight' matches no variable") as caught:
        train(W, X, Y)
    assert "there are: w," in str(caught.value)


def test_arguments_that_cannot_be_hashed():
    class Mutable:
        __hash__ = None  # pyright: ignore

    with pytest.raises(pjax.InputError, match="must be hashable"):
        pjax.project(lambda w, x, y, extra: fit(w, x, y), steps=2, schedule="parallel")(
            W, X, Y, Mutable()
        )


def test_errors_are_also_pythons_own():
    assert issubclass(pjax.InputError, (ValueError, TypeError))
    assert issubclass(pjax.MissingRuleError, (pjax.TraceError, NotImplementedError))
    assert issubclass(pjax.NonFiniteError, FloatingPointError)


def test_modules_may_hold_integers():
    class Counting(eqx.Module):
        w: jax.Array
        n: jax.Array

    new, _ = pjax.project(lambda m, x, y: fit(m.w, x, y), steps=2, schedule="parallel")(
        Counting(W, jnp.arange(2)), X, Y
    )
    np.testing.assert_array_equal(new.n, [0, 1])


def test_parts_of_an_array_may_overlap():
    """Of parts that overlap, what is in both is read twice by one equation, or by two."""

    def parts(w, second):
        first = jnp.array([0, 1])
        pjax.constrain(jnp.take(w, first) * w[jnp.array(second)], sets.Equal(1.0))

    w = jnp.array([0.5, 1.0, 1.5])
    for second in ([2, 1], [1, 0]):
        function = functools.partial(parts, second=second)
        free, explicit = solved_both_ways(function, w, steps=5)
        np.testing.assert_allclose(free, explicit, rtol=1e-5, atol=1e-6)
        found, info = pjax.project(function, solver=pjax.AlternatingProjections(), steps=500)(w)
        assert info.gap < 1e-3
        np.testing.assert_allclose(found[jnp.array(second)] * found[:2], 1.0, atol=1e-3)
        np.testing.assert_array_equal(found[2] == w[2], 2 not in second)
