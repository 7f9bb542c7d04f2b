"""``custom_projection``: a function with a projection of its own, in JAX and to solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import sets
from pjax_trace.custom import BatchedRule
from pjax_trace.rule import Request


@pjax.custom_projection
def plane(x, w, a):
    """``a·x + w``, elementwise with data ``a``, summed: one scalar."""
    return jnp.sum(a * x) + w


@plane.defprojection
def _(operands, out, weights):
    x, w, a = operands
    wx, ww, _ = weights.operands
    compliance = 1 / weights.out
    if wx is not None:
        compliance = compliance + jnp.sum(a * a) / wx
    if ww is not None:
        compliance = compliance + 1 / ww
    lam = (out - plane(*operands)) / compliance
    x = x if wx is None else x + a * lam / wx
    w = w if ww is None else w + lam / ww
    return (x, w, a), out - lam / weights.out


def same_plane(x, w, a):
    """The same function without a projection of its own: JAX's primitives have theirs."""
    return a @ x + w


KEYS = jax.random.split(jax.random.key(0), 4)
XS, WS = jax.random.normal(KEYS[0], (5, 3)), jax.random.normal(KEYS[1], (5,))
AS, GOALS = jax.random.normal(KEYS[2], (5, 3)), jax.random.normal(KEYS[3], (5,))
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_an_ordinary_function_to_jax():
    args = XS[0], WS[0], AS[0]
    np.testing.assert_allclose(plane(*args), same_plane(*args), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(plane)(*args), same_plane(*args), rtol=1e-6)
    for ours, theirs in zip(
        jax.grad(plane, (0, 1, 2))(*args), jax.grad(same_plane, (0, 1, 2))(*args), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for axes in ((0, 0, 0), (0, None, None), (None, 0, None), (1, None, 0)):
        xs = XS if axes[0] == 0 else XS.T if axes[0] == 1 else XS[0]
        batch = xs, WS if axes[1] == 0 else WS[0], AS if axes[2] == 0 else AS[0]
        np.testing.assert_allclose(
            jax.vmap(plane, axes)(*batch), jax.vmap(same_plane, axes)(*batch), **CLOSE
        )
    twice = jax.vmap(jax.vmap(plane, (None, 0, None)), (0, None, 0))(XS, WS, AS)
    np.testing.assert_allclose(twice, (XS * AS).sum(1)[:, None] + WS[None], **CLOSE)
    assert plane.__name__ == "plane" and "elementwise with data" in plane.__doc__


def test_numbers_are_operands():
    assert float(plane(jnp.ones(3), 1.0, jnp.ones(3))) == 4.0


PROGRAMS = {
    "a loop": lambda f, p, a, goals: [
        pjax.constrain(f(p["x"][i], p["w"][i], a[i]), sets.Equal(goals[i])) for i in range(5)
    ],
    "batched": lambda f, p, a, goals: pjax.constrain(
        jax.vmap(f)(p["x"], p["w"], a), sets.Equal(goals)
    ),
    "shared": lambda f, p, a, goals: pjax.constrain(
        jax.vmap(f, (None, 0, 0))(p["x"][0], p["w"], a), sets.Equal(goals)
    ),
    "shared, in a loop": lambda f, p, a, goals: [
        pjax.constrain(f(p["x"][0], p["w"][i], a[i]), sets.Equal(goals[i])) for i in range(5)
    ],
}


def solve(program, function, copies, solver=None):
    solver = solver or pjax.AlternatingProjections()
    train = pjax.project(
        lambda p, a, goals: (None, PROGRAMS[program](function, p, a, goals))[0],
        solver=solver,
        steps=4,
        copies=copies,
        metric={"p['x']": 2.0, "p['w']": 0.5},
    )
    return train({"x": XS, "w": WS}, AS, GOALS)


@pytest.fixture(scope="module")
def loops():
    return {program: solve(program, plane, False)[0] for program in ("a loop", "shared, in a loop")}


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("program", ["batched", "shared"])
def test_batched_is_a_loop(program, copies, loops):
    new, info = solve(program, plane, copies)
    expected = loops["a loop" if program == "batched" else "shared, in a loop"]
    for name in ("x", "w"):
        np.testing.assert_allclose(new[name], expected[name], **CLOSE)
    assert list(info.gaps) == ["plane", "Equal"]


def test_copies_in_a_loop(loops):
    new, _ = solve("shared, in a loop", plane, True)
    for name in ("x", "w"):
        np.testing.assert_allclose(new[name], loops["shared, in a loop"][name], **CLOSE)


def test_agrees_with_the_rules_of_the_primitives():
    """The same scalar equation, of dot_general and add."""
    ours, _ = solve("batched", plane, False)
    theirs, _ = solve("batched", same_plane, False)
    for name in ("x", "w"):
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE)


def test_shared_operands_in_douglas_rachford():
    ours, _ = solve("shared", plane, None, pjax.DouglasRachford())
    theirs, _ = solve("shared, in a loop", plane, None, pjax.DouglasRachford())
    for name in ("x", "w"):
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE)


def test_batched_twice():
    """Every x with every w, from two vmaps."""

    def grid(p, a):
        rows = jax.vmap(jax.vmap(plane, (None, 0, None)), (0, None, 0))(p["x"], p["w"], a)
        pjax.constrain(rows, sets.Equal(GOALS[:2, None] + GOALS[None, :2]))

    def loop(p, a):
        for i in range(2):
            for j in range(2):
                pjax.constrain(plane(p["x"][i], p["w"][j], a[i]), sets.Equal(GOALS[i] + GOALS[j]))

    p = {"x": XS[:2], "w": WS[:2]}
    solver = pjax.AlternatingProjections()
    results = [
        pjax.project(f, solver=solver, steps=3, copies=copies)(p, AS[:2])[0]
        for f, copies in ((loop, False), (grid, False), (grid, True))
    ]
    for other in results[1:]:
        for name in p:
            np.testing.assert_allclose(other[name], results[0][name], **CLOSE)


def test_an_axis_that_is_not_the_first():
    def function(x, a):
        z = jax.vmap(plane, (1, None, 1))(x, 0.0, a)
        pjax.constrain(z, sets.Equal(GOALS))

    def transposed(x, a):
        z = jax.vmap(plane, (0, None, 0))(x.T, 0.0, a.T)
        pjax.constrain(z, sets.Equal(GOALS))

    new = [
        pjax.project(f, steps=3, solver=pjax.AlternatingProjections(), copies=c)(XS.T, AS.T)[0]
        for f, c in ((function, False), (transposed, False), (function, True))
    ]
    np.testing.assert_allclose(new[0], new[1], **CLOSE)
    np.testing.assert_allclose(new[0], new[2], **CLOSE)


AXES = {
    "all": ((0, 0, 0), (XS, WS, AS)),
    "shared": ((None, 0, 0), (XS[0], WS, AS)),
    "other axes": ((1, None, 0), (XS.T, WS[0], AS)),
}


@pytest.mark.parametrize("name", AXES)
def test_derivatives_of_a_batch(name):
    """What is asked of a shared operand adds up."""
    axes, operands = AXES[name]
    rule = BatchedRule(
        pjax.CustomRule(plane, lambda operands, out, weights: (operands, out)), axes, 5
    )
    residual = jnp.arange(5.0) - 1.0
    _, pull = jax.vjp(jax.vmap(plane, axes), *operands)
    for i, (asked, x) in enumerate(zip(pull(residual), operands, strict=True)):
        jacobian = rule.linear({}, operands, i)
        np.testing.assert_allclose(jacobian.transpose(residual), asked, **CLOSE)
        readers = 5.0 if axes[i] is None else 1.0
        np.testing.assert_array_equal(jnp.broadcast_to(jacobian.readers, x.shape), readers)
        np.testing.assert_array_equal(jacobian.squares(), jnp.full(x.shape, readers))
    assert rule.target({}, operands, Request(residual, residual, (True,) * 3, 0.5)) is None


class Step(pjax.Rule):
    """It asks its first operand for twice what is asked of it, on the side where it is."""

    def apply(self, params, *operands):
        return jnp.sign(operands[0] + operands[1])

    def target(self, params, operands, request):
        assert request.variable == (True, False) and request.reach == 0.25
        return jnp.where(operands[0] * request.out > 0, 2 * request.residual, 0), None


def test_targets_of_a_batch():
    xs = jnp.array([[1.0, -2.0, 3.0], [-1.0, -0.5, 2.0]])
    residual = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for axes, x, ys in (((0, None), xs, jnp.zeros(3)), ((None, 0), xs[0], xs)):
        rule = BatchedRule(Step(), axes, 2)
        out = rule.apply({}, x, ys)
        asked, none = rule.target({}, (x, ys), Request(out, residual, (True, False), 0.25))
        alone = jnp.where(jnp.atleast_2d(x) * out > 0, 2 * residual, 0)
        assert none is None
        np.testing.assert_array_equal(asked, alone if axes[0] == 0 else alone.sum(0))


def test_a_sweep_through_a_batch_is_one_through_a_loop():
    new = [
        pjax.project(lambda p, f=f: (None, PROGRAMS[f](plane, p, AS, GOALS))[0])({"x": XS, "w": WS})
        for f in ("batched", "a loop")
    ]
    for name in ("x", "w"):
        np.testing.assert_allclose(new[0][0][name], new[1][0][name], **CLOSE)
        assert not np.allclose(new[0][0][name], {"x": XS, "w": WS}[name], atol=1e-5)


def test_project_point():
    weights = ((2.0, 0.5), 3.0)
    a = AS[0]
    (x, w), out = pjax.project_point(
        lambda x, w: plane(x, w, a), (XS[0], WS[0]), GOALS[0], weights=weights
    )
    (x2, w2), out2 = pjax.project_point(
        lambda x, w: same_plane(x, w, a), (XS[0], WS[0]), GOALS[0], weights=weights
    )
    np.testing.assert_allclose(x, x2, **CLOSE)
    np.testing.assert_allclose([w, out], [w2, out2], **CLOSE)


def test_without_a_projection():
    @pjax.custom_projection
    def unfinished(x):
        return x

    with pytest.raises(pjax.InputError, match=r"unfinished has no projection yet.*defprojection"):
        unfinished(jnp.ones(2))
    with pytest.raises(pjax.InputError, match="unfinished"):
        pjax.project(lambda x: pjax.constrain(unfinished(x), sets.Equal(0.0)), schedule="parallel")(
            jnp.ones(2)
        )


def test_a_projection_that_answers_wrongly_is_told():
    @pjax.custom_projection
    def double(x):
        return 2 * x

    @double.defprojection
    def _(operands, out, weights):
        return (*operands, out), out  # one operand too many

    with pytest.raises((pjax.InputError, ValueError)):
        pjax.project(
            lambda x: pjax.constrain(double(x), sets.Equal(0.0)), steps=1, schedule="parallel"
        )(jnp.ones(2))
