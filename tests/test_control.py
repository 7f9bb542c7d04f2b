"""Scans lifted over time and branches by data, against the same programs unrolled in Python.

The unrolled program has a constraint for every step, and no views of carries; in the product space
both are the same problem, so that all solvers must make the same steps on them. (Not where a carry
starts as data: lifted, its first copy is a copy like all others; unrolled, it is data.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax

KEYS = jax.random.split(jax.random.key(0), 8)
W = 0.5 * jax.random.normal(KEYS[0], (3, 3))
U = jax.random.normal(KEYS[1], (3, 2))
B = 0.1 * jax.random.normal(KEYS[2], (3,))
XS = jax.random.normal(KEYS[3], (4, 2))
H = jax.random.normal(KEYS[4], (3,))
GOAL = jax.random.normal(KEYS[5], (4, 3))


def cell(p, h, x):
    return jnp.abs(p["W"] @ h + p["U"] @ x + p["b"])


def unrolled(step, carry, xs, *, reverse=False, length=None):
    length = len(jax.tree.leaves(xs)[0]) if length is None else length
    outputs = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        carry, outputs[t] = step(carry, jax.tree.map(lambda a, t=t: a[t], xs))
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *outputs)


def outputs(scan, p, **options):
    _, ys = scan(lambda h, x: (cell(p, h, x),) * 2, p["h"], XS, **options)
    return pjax.losses.squared_error(ys, GOAL)


def final(scan, p):
    h, _ = scan(lambda h, x: (cell(p, h, x), None), p["h"], XS)
    return pjax.losses.squared_error(h, GOAL[0])


def backwards(scan, p):
    return outputs(scan, p, reverse=True)


def both(scan, p):
    h, ys = scan(lambda h, x: (cell(p, h, x), 2 * h), p["h"], XS)
    return pjax.losses.squared_error(ys, GOAL) + pjax.losses.squared_error(h, GOAL[0])


def counted(scan, p):
    def step(carry, x):
        h, k = carry
        return (cell(p, h, x * (k % 2).astype(x.dtype)), k + 1), h

    (h, _), ys = scan(step, (p["h"], jnp.int32(0)), XS)
    return pjax.losses.squared_error(ys, GOAL) + pjax.losses.squared_error(h, GOAL[0])


def constant_carry(scan, p):
    def step(carry, x):
        h, k = carry
        return (jnp.abs(h * k + x[0]), k), h

    (h, k), ys = scan(step, (p["h"], p["b"]), XS)
    return pjax.losses.squared_error(ys, GOAL) + pjax.losses.squared_error(h + k, GOAL[0])


def nested(scan, p):
    def outer(h, x):
        def inner(g, _):
            g = jnp.abs(p["W"] @ g + x[0])
            return g, g

        g, gs = scan(inner, h, None, length=2)
        return cell(p, g, x), gs

    h, ys = scan(outer, p["h"], XS)  # every step is read: an equation that is not still has copies
    return pjax.losses.squared_error(ys[:, 1], GOAL) + pjax.losses.squared_error(h, GOAL[0])


def variable_inputs(scan, p):
    xs = jnp.abs(XS @ p["U"].T)
    _, ys = scan(lambda h, x: (jnp.abs(h * x + p["b"]),) * 2, p["h"], xs)
    return pjax.losses.squared_error(ys, GOAL)


def single(scan, p):
    _, ys = scan(lambda h, x: (cell(p, h, x),) * 2, p["h"], XS[:1])
    return pjax.losses.squared_error(ys, GOAL[:1])


PROGRAMS = [
    outputs,
    final,
    backwards,
    both,
    counted,
    constant_carry,
    nested,
    variable_inputs,
    single,
]
QUICK = {backwards, both, nested, variable_inputs, single}  # the others add least to them
SOLVERS = {
    "momentum": pjax.AlternatingProjections(momentum=0.9),
    "dr": pjax.DouglasRachford(),
}


def parameters():
    return {"W": W, "U": U, "b": B, "h": H}


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("program", "name"),
    [
        *(
            pytest.param(program, "momentum", marks=[pytest.mark.slow] * (program not in QUICK))
            for program in PROGRAMS
        ),
        (both, "dr"),
        *(pytest.param(program, "dr", marks=pytest.mark.slow) for program in (outputs, nested)),
    ],
)
def test_a_lifted_scan_is_the_unrolled_one(program, name):
    moved = []
    for scan in (lax.scan, unrolled):

        def fit(p, scan=scan):
            return program(scan, p)

        np.testing.assert_allclose(fit(parameters()), program(unrolled, parameters()), rtol=1e-5)
        solve = pjax.project(fit, solver=SOLVERS[name], steps=4)
        new, info = solve(parameters())
        moved.append((new, info.gap, info.history))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *moved)


def test_copies_agree_with_the_copy_free_lowering():
    results = []
    for copies in (False, True):
        solver = pjax.AlternatingProjections()
        solve = pjax.project(lambda p: both(lax.scan, p), solver=solver, steps=8, copies=copies)
        results.append(solve(parameters())[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


def test_the_graph_does_not_grow_with_length():
    def fit(p, xs):
        _, ys = lax.scan(lambda h, x: (cell(p, h, x),) * 2, jnp.zeros(3), xs)
        return pjax.losses.squared_error(ys, jnp.zeros_like(ys))

    graphs = [
        pjax.project(fit, schedule="parallel", copies=False).trace(parameters(), jnp.ones((n, 2)))
        for n in (64, 512)
    ]
    constraints, equations = (
        [f(g) for g in graphs]
        for f in (lambda g: len(g.constraints), lambda g: len(g.program.equations))
    )
    assert constraints[0] == constraints[1] == 3
    assert equations[0] == equations[1]


def test_a_shift_register():
    def program(scan, p):
        def step(carry, x):
            a, b = carry
            return (jnp.abs(p["U"] @ x + b), a), b

        _, ys = scan(step, (p["h"], p["b"]), XS)
        return pjax.losses.squared_error(ys, jnp.abs(GOAL))

    new, info = pjax.project(lambda p: program(lax.scan, p), steps=150, schedule="parallel")(
        parameters()
    )
    assert info.gap < 0.2 * jnp.max(info.history)
    assert program(unrolled, new) < program(unrolled, parameters())


def test_a_carry_may_be_data_on_one_side():
    def overwritten(p):
        def step(h, x):
            return jnp.abs(x[:1]) * jnp.ones(3), jnp.abs(p["W"] @ h)

        _, ys = lax.scan(step, p["h"], XS)
        return pjax.losses.squared_error(ys, jnp.abs(GOAL))

    def begun(p):
        _, ys = lax.scan(lambda h, x: (cell(p, h, x),) * 2, jnp.zeros(3), XS)
        return pjax.losses.squared_error(ys, jnp.abs(GOAL))

    for fit in (overwritten, begun):
        new, info = pjax.project(fit, steps=100, schedule="parallel")(parameters())
        assert info.gap < 0.5 * jnp.max(info.history)
        assert fit(new) < fit(parameters())


@pytest.mark.parametrize("maker", [lax.map, lambda f, xs: jnp.stack([f(x) for x in xs])])
def test_map(maker):
    def fit(p):
        ys = maker(lambda x: jnp.abs(p["U"] @ x + p["b"]), XS)
        return pjax.losses.squared_error(ys, GOAL)

    new, _ = pjax.project(fit, steps=5, schedule="parallel")(parameters())
    wanted, _ = pjax.project(
        lambda p: pjax.losses.squared_error(jnp.abs(XS @ p["U"].T + p["b"][None]), GOAL),
        steps=5,
        schedule="parallel",
    )(parameters())
    np.testing.assert_allclose(new["U"], wanted["U"], atol=1e-5)


def test_fori_loop():
    def fit(p):
        h = lax.fori_loop(0, 4, lambda i, h: jnp.abs(p["W"] @ h + XS[i, 0]), p["h"])
        return pjax.losses.squared_error(h, GOAL[0])

    def oracle(p):
        h = p["h"]
        for i in range(4):
            h = jnp.abs(p["W"] @ h + XS[i, 0])
        return pjax.losses.squared_error(h, GOAL[0])

    new, wanted = (
        pjax.project(f, steps=6, schedule="parallel")(parameters())[0] for f in (fit, oracle)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), new, wanted)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_switch_by_data(index):
    branches = [
        lambda p: jnp.abs(p["W"] @ H),
        lambda p: p["h"] * p["b"],
        lambda p: jnp.ones(3),
    ]

    def switched(p, i):
        return pjax.losses.squared_error(lax.switch(i, branches, p) + p["b"], GOAL[0])

    def oracle(p):
        return pjax.losses.squared_error(branches[index](p) + p["b"], GOAL[0])

    new, _ = pjax.project(switched, steps=200, schedule="parallel")(parameters(), jnp.int32(index))
    wanted, _ = pjax.project(oracle, steps=200, schedule="parallel")(parameters())
    assert abs(oracle(new) - oracle(wanted)) < 1e-3
    unread = {0: "h", 1: "W", 2: "W"}[index]
    np.testing.assert_array_equal(new[unread], parameters()[unread])


def test_what_loops_cannot_be():
    def endless(p, n):
        h = lax.while_loop(lambda c: c[1] < n, lambda c: (c[0] * p["b"], c[1] + 1), (H, 0))
        return pjax.losses.squared_error(h[0], GOAL[0])

    def until(p):
        h = lax.while_loop(lambda h: h[0] < 3.0, lambda h: h * p["b"], p["h"])
        return pjax.losses.squared_error(h * p["h"], GOAL[0])

    with pytest.raises(pjax.MissingRuleError, match="length is not known.*fori_loop"):
        pjax.project(endless, schedule="parallel")(parameters(), jnp.int32(3))
    with pytest.raises(pjax.TraceError, match="test_control.py.*jnp.where"):
        pjax.project(until, schedule="parallel")(parameters())


def test_no_steps_at_all():
    def fit(p):
        h, ys = lax.scan(lambda h, x: (cell(p, h, x),) * 2, p["h"], XS[:0])
        assert ys.shape == (0, 3)
        return pjax.losses.squared_error(h * p["b"], GOAL[0])

    new, _ = pjax.project(fit, steps=5, schedule="parallel")(parameters())
    wanted, _ = pjax.project(
        lambda p: pjax.losses.squared_error(p["h"] * p["b"], GOAL[0]), steps=5, schedule="parallel"
    )(parameters())
    np.testing.assert_allclose(new["h"], wanted["h"], atol=1e-6)
