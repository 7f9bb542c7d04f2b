"""``constrain``: the identity to JAX, an output constraint to a solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import sets

X = jnp.array([[3.0, -4.0], [0.1, 0.2]])
KINDS = [
    sets.Equal(0.5),
    sets.Box(-1.0, 2.0),
    sets.Box(jnp.full((2, 2), -1.0), jnp.inf),
    sets.NonNegative(),
    sets.Ball(1.0, axis=-1),
    sets.Ball(1.0, jnp.ones((2, 2))),
]


@pytest.mark.parametrize("region", KINDS, ids=lambda s: type(s).__name__)
def test_the_identity_to_jax(region):
    def function(x):
        return jnp.sum(jnp.sin(pjax.constrain(x, region)) ** 2)

    def plain(x):
        return jnp.sum(jnp.sin(x) ** 2)

    np.testing.assert_array_equal(pjax.constrain(X, region), X)
    value, slope = jax.jit(jax.value_and_grad(function))(X)
    np.testing.assert_allclose(value, plain(X), rtol=1e-6)
    np.testing.assert_allclose(slope, jax.grad(plain)(X), rtol=1e-6)
    stack = jnp.stack([X, 2 * X])
    np.testing.assert_allclose(jax.vmap(function)(stack), jax.vmap(plain)(stack), rtol=1e-6)
    hessian = jax.jvp(jax.grad(function), (X,), (X,))[1]
    np.testing.assert_allclose(hessian, jax.jvp(jax.grad(plain), (X,), (X,))[1], rtol=1e-5)


@pytest.mark.parametrize("used", [True, False])
def test_used_or_not(used):
    def function(x):
        y = pjax.constrain(x, sets.NonNegative())
        pjax.constrain(y.sum() if used else x.sum(), sets.Equal(1.0))
        return None

    solver = pjax.AlternatingProjections()
    x, info = pjax.project(function, solver=solver, steps=100)(jnp.array([2.0, -1.0, 0.0]))
    np.testing.assert_allclose(x, [1.0, 0.0, 0.0], atol=1e-3)
    assert list(info.gaps) == ["NonNegative", "Equal"]  # of the sum, as a set of x


def test_one_step_is_the_projection():
    """A parameter that only one set reads is moved to it."""
    solver = pjax.AlternatingProjections()
    for region in KINDS[1:]:
        train = pjax.project(lambda x, s: pjax.constrain(x, s), solver=solver, steps=1)
        x, info = train(X, region)
        np.testing.assert_allclose(x, region.project(X), rtol=1e-5)
        assert float(info.gap) < 1e-6
        # What is returned is the set's own point; its arrays are data, not parameters.
        assert [p.name for p in train.trace(X, region).parameters] == ["x"]


def test_the_arrays_of_a_set_may_be_traced():
    traces = []

    def function(x, bound):
        traces.append(None)
        pjax.constrain(x, sets.Box(-bound, 2 * bound))

    train = pjax.project(function, solver=pjax.AlternatingProjections(), steps=1)
    for bound in (1.0, 0.5):
        x, _ = train(X, jnp.array(bound))
        np.testing.assert_allclose(x, np.clip(X, -bound, 2 * bound), rtol=1e-6)
    assert len(traces) == 1
    jitted = jax.jit(lambda x, b: train(x, b)[0])
    np.testing.assert_allclose(jitted(X, jnp.array(0.25)), np.clip(X, -0.25, 0.5), rtol=1e-6)


def test_vmapped():
    """One set for each row; the batch may be the set's or the point's, or both."""
    centers = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    solver = pjax.AlternatingProjections()

    def both(x, c):
        jax.vmap(lambda row, center: pjax.constrain(row, sets.Ball(0.5, center)))(x, c)

    def point(x, c):
        jax.vmap(lambda row: pjax.constrain(row, sets.Ball(0.5, c[0])))(x)

    def by_hand(center):
        away = np.asarray(X - center, float)
        norm = np.linalg.norm(away, axis=1, keepdims=True)
        return np.asarray(center) + away * np.minimum(1, 0.5 / norm)

    for function, center in ((both, centers), (point, centers[:1])):
        x, _ = pjax.project(function, solver=solver, steps=1)(X, centers)
        np.testing.assert_allclose(x, by_hand(center), rtol=1e-5, atol=1e-6)

    def shared(x):  # one point in two sets at once
        jax.vmap(lambda low: pjax.constrain(x, sets.Box(low, 3.0)))(jnp.array([-1.0, 1.0]))

    x, info = pjax.project(shared, solver=solver, steps=60)(jnp.array([-2.0, 0.0]))
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-3)


def test_views_are_seen_through():
    def function(x):
        pjax.constrain(2.0 * x[0, ::-1] + 1.0, sets.Equal(jnp.array([5.0, -1.0])))

    x, _ = pjax.project(function, solver=pjax.AlternatingProjections(), steps=1)(X)
    np.testing.assert_allclose(x, [[-1.0, 2.0], X[1]], rtol=1e-6)


def test_own_sets():
    class Integers(sets.Set):
        def project(self, x):
            return jnp.round(x)

    function = pjax.project(
        lambda x: pjax.constrain(x, Integers()), solver=pjax.AlternatingProjections(), steps=1
    )
    x, _ = function(jnp.array([0.4, 2.7]))
    np.testing.assert_array_equal(x, [0.0, 3.0])


def rule_of(function, x):
    """The rule of the only constraint."""
    (eqn,) = (e for e in jax.make_jaxpr(function)(x).eqns if e.primitive.name == "constrain")
    return eqn.params["rule"]


def test_the_rule_tells_whether_its_set_is_convex():
    class Integers(sets.Set):
        def project(self, x):
            return jnp.round(x)

    class Plane(sets.Set):
        convex = True

        def project(self, x):
            return x - jnp.mean(x)

    for region, convex in [*((kind, True) for kind in KINDS), (Integers(), False), (Plane(), True)]:
        rule = rule_of(lambda x, region=region: pjax.constrain(x, region), X)
        assert rule.convex is convex and rule.movable == 1
    bounds = jnp.array([1.0, 2.0])
    rule = rule_of(lambda b: pjax.constrain(X, sets.Box(-b[0], b[1])), bounds)
    assert rule.convex


def test_the_set_itself_is_data():
    def function(x, bound):
        pjax.constrain(x, sets.Box(-bound, 2 * bound))

    train = pjax.project(function, argnums=(0, 1), solver=pjax.AlternatingProjections())
    with pytest.raises(pjax.TraceError, match="only the first argument may depend on var"):
        train(X, jnp.array(1.0))


@pytest.mark.parametrize(
    "region", [sets.Equal(jnp.ones(3)), sets.Box(jnp.ones((3, 1)), 2.0), sets.Ball(1.0, axis=2)]
)
def test_sets_that_do_not_fit(region):
    with pytest.raises(pjax.InputError, match=f"{type(region).__name__} does not fit"):
        pjax.constrain(X, region)
    with pytest.raises(pjax.InputError, match="must be a pjax_trace.sets.Set"):
        pjax.constrain(X, 3.0)
