"""Blocks against dense algebra and a minimiser; that nothing large is made; errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import pjax_trace as pjax
from pjax_trace import _compat, losses
from pjax_trace.errors import InputError
from pjax_trace.granularity import BlockRule
from pjax_trace.rule import Weights
from tests.problems import copies_of, problem_of

N, D, M = 5, 4, 3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def the_sum(fn, *shapes):
    """The one constraint of a function that is a sum of terms."""

    def constrained(params):
        pjax.constrain(fn(*params), pjax.sets.Equal(0.0))

    arrays = tuple(jnp.zeros(shape) for shape in shapes)
    graph = pjax.project(constrained, granularity="block", schedule="parallel", copies=False).trace(
        arrays
    )
    (found,) = (c for c in graph.constraints if isinstance(c.rule, BlockRule))
    return found


def few(names, quick):
    """All of them, the others marked slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


def dense(x, w, b):
    return x @ w + b


def convolution(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")


DATA = normal(9, N, D)
CASES = {
    "dense": (dense, ((N, D), (D, M), (N, M))),
    "shared bias": (lambda x, w, b: x @ w + b[None], ((N, D), (D, M), (M,))),
    "of data": (lambda w: jnp.asarray(DATA) @ w, ((D, M),)),
    "two products": (lambda x, w, y, v: x @ w - y @ v, ((N, D), (D, M), (N, 2), (2, M))),
    "convolution": (convolution, ((1, 2, 4, 3), (2, 2, 3, 3))),
    "batched": (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), ((2, 3, 2), (2, 2, 3))),
}


def operands_of(c):
    """Random variables, and the data."""
    return [
        jnp.asarray(normal(i, *s)) if v else jnp.asarray(DATA)
        for i, (s, v) in enumerate(zip(c.shapes, c.variable, strict=True))
    ]


def projected(c, block, operands, out, weights):
    rule = BlockRule(c.rule.inner, block)
    masses = rule.masses(c.params, weights.operands)
    answer = rule.project(c.params, operands, out, weights)
    moved = [None if m is None else m.first / m.mass for m in answer.moments]
    return moved, answer.out, float(answer.distance), masses


@pytest.mark.parametrize("name", ["dense", "of data", "convolution", "batched"])
def test_one_round_is_the_nearest_point_of_the_linearised_graph(name):
    fn, shapes = CASES[name]
    with _compat.enable_x64(True):
        c = the_sum(fn, *shapes)
        operands = operands_of(c)
        out = jnp.asarray(normal(7, *c.out.shape))
        free = [0.5 + i for i in range(len(operands))]
        weights = Weights(
            tuple(w if v else None for w, v in zip(free, c.variable, strict=True)),
            jnp.asarray(np.random.default_rng(8).uniform(0.5, 2, c.out.shape)),
        )
        moved, moved_out, distance, masses = projected(
            c, pjax.Block(iterations=500, tol=1e-14), operands, out, weights
        )
        own = [i for i, v in enumerate(c.variable) if v]
        jacobian = np.concatenate(
            [
                np.asarray(j).reshape(out.size, -1)
                for j in jax.jacobian(
                    lambda xs: c.rule.apply(
                        c.params,
                        *(xs[own.index(i)] if i in own else x for i, x in enumerate(operands)),
                    )
                )([operands[i] for i in own])
            ],
            1,
        )
        mass = np.concatenate([np.broadcast_to(masses[i], operands[i].shape).ravel() for i in own])
        right = (out - c.rule.apply(c.params, *operands)).ravel()
        system = np.diag(1 / np.asarray(weights.out).ravel()) + jacobian / mass @ jacobian.T
        y = np.linalg.solve(system, right)
        steps = np.split(jacobian.T @ y / mass, np.cumsum([operands[i].size for i in own])[:-1])
        for i, step in zip(own, steps, strict=True):
            np.testing.assert_allclose(
                moved[i], operands[i] + step.reshape(operands[i].shape), atol=1e-9
            )
        np.testing.assert_allclose(
            moved_out.ravel(), out.ravel() - y / weights.out.ravel(), atol=1e-9
        )
        assert distance == pytest.approx(float(right @ y), rel=1e-9)


@pytest.mark.parametrize("name", few(CASES, {"shared bias", "convolution"}))
def test_many_rounds_find_the_nearest_point_of_the_graph(name):
    """Against a minimiser from many starts; the targets are near enough for it to be global."""
    fn, shapes = CASES[name]
    with _compat.enable_x64(True):
        c = the_sum(fn, *shapes)
        operands = operands_of(c)
        out = c.rule.apply(c.params, *operands) + 0.3 * normal(7, *c.out.shape)
        weights = Weights(tuple(1.0 if v else None for v in c.variable), jnp.full(c.out.shape, 2.0))
        moved, moved_out, distance, masses = projected(
            c, pjax.Block(iterations=300, rounds=12, tol=1e-14), operands, out, weights
        )
        own = [i for i, v in enumerate(c.variable) if v]
        filled = [moved[i] if i in own else x for i, x in enumerate(operands)]
        np.testing.assert_allclose(c.rule.apply(c.params, *filled), moved_out, atol=1e-7)
        sizes = np.cumsum([operands[i].size for i in own])[:-1]

        def cost(flat):
            parts = jnp.split(flat, sizes)
            xs = list(operands)
            for i, part in zip(own, parts, strict=True):
                xs[i] = part.reshape(operands[i].shape)
            far = sum(jnp.sum(masses[i] * (xs[i] - operands[i]) ** 2) for i in own)
            return far + jnp.sum(weights.out * (c.rule.apply(c.params, *xs) - out) ** 2)

        graded = jax.jit(jax.value_and_grad(cost))
        start = np.concatenate([np.ravel(operands[i]) for i in own])
        best = min(
            scipy.optimize.minimize(
                lambda flat: tuple(map(np.asarray, graded(flat))),
                start + spread * normal(seed, start.size),
                jac=True,
                options={"gtol": 1e-9},
            ).fun
            for seed, spread in enumerate((0.0, 0.3, 1.0, 1.0, 2.0, 2.0))
        )
        assert distance == pytest.approx(float(best), rel=1e-6)


def network(params, x, y):
    w, b, v = params
    return losses.cross_entropy(jnp.maximum(x @ w + b[None], 0) @ v, y)


ROWS, IN, HIDDEN, OUT = 23, 19, 17, 13
X = jnp.asarray(normal(0, ROWS, IN), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).integers(OUT, size=ROWS))
PARAMS = tuple(
    jnp.asarray(0.4 * normal(i + 2, *shape), jnp.float32)
    for i, shape in enumerate([(IN, HIDDEN), (HIDDEN,), (HIDDEN, OUT)])
)
LOWERINGS = {
    "ap, rows": {"solver": pjax.AlternatingProjections()},
    "ap, blocks": {"solver": pjax.AlternatingProjections(), "granularity": "block"},
    "dr, blocks": {"solver": pjax.DouglasRachford(), "granularity": "block"},
    "dm, blocks": {"solver": pjax.DifferenceMap(), "granularity": "block"},
    "ar, blocks": {"solver": pjax.AlternatingReflections(), "granularity": "block"},
    "ap, product": {"solver": pjax.AlternatingProjections(), "schedule": "product"},
    "sweep": {"solver": pjax.Sweep()},
}


def sizes(text):
    """How many elements the arrays of a compiled program have."""
    shapes = set(re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", text))
    return {int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes}


@pytest.mark.parametrize("name", LOWERINGS)
def test_no_array_is_as_large_as_all_copies(name):
    train = pjax.project(network, steps=1, **LOWERINGS[name])
    compiled = train.lower(PARAMS, X, Y).compile().as_text()
    assert ROWS * IN in sizes(compiled)
    assert max(sizes(compiled)) < ROWS * HIDDEN * min(IN, OUT)


@pytest.mark.parametrize("copies", [None, True])
def test_copies_of_rows_would_be_seen(copies):
    """Those of the first layer, too, only if all are asked for: data alone tell them apart."""
    train = pjax.project(network, steps=1, solver=pjax.DouglasRachford(), copies=copies)
    largest = max(sizes(train.lower(PARAMS, X, Y).compile().as_text()))
    assert largest >= ROWS * HIDDEN * OUT
    assert (largest >= ROWS * IN * HIDDEN) == bool(copies)


@pytest.mark.parametrize("name", few([n for n in LOWERINGS if "blocks" in n], {"dr, blocks"}))
def test_blocks_learn_without_copies(name):
    train = pjax.project(network, steps=100, **LOWERINGS[name])
    before = network(PARAMS, X, Y)
    new, info = train(PARAMS, X, Y)
    assert float(network(new, X, Y)) < 0.5 * float(before)
    assert bool(info.finite)


@pytest.mark.parametrize("schedule", ["parallel", "product"])
def test_copies_and_none_agree_on_blocks(schedule):
    with _compat.enable_x64(True):
        args = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), PARAMS), X.astype(jnp.float64), Y
        found = [
            pjax.project(
                network,
                solver=pjax.AlternatingProjections(),
                steps=5,
                granularity=pjax.Block(iterations=100, tol=1e-13),
                schedule=schedule,
                copies=copies,
                metric=pjax.Metric(parameters=3.0, hidden=0.5),
            )(*args)[0]
            for copies in (True, False)
        ]
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)


def test_constraints_of_a_colour_are_independent():
    """Each one, projected alone from the same state, moves its copies to where all together do."""
    problem = problem_of(network, PARAMS, X, Y, granularity="block")
    space = copies_of(problem)
    start = tuple(
        x + 0.1 * jnp.asarray(normal(i, *x.shape), x.dtype)
        for i, x in enumerate(space.expand(problem.values))
    )
    for group in space.groups:
        together, distances = space.project(start, group)
        assert len(group) > 1
        apart, total = list(start), jnp.zeros_like(distances)
        for node in group[::-1]:
            alone, distance = space.project(start, (node,))
            total = total + distance
            for i, (now, then) in enumerate(zip(alone, start, strict=True)):
                # No copy is moved by two of them.
                assert apart[i] is start[i] or not np.any(now != then)
                apart[i] = now if np.any(now != then) else apart[i]
        for one, other in zip(together, apart, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(distances, total, rtol=1e-5)


def test_granularity_by_names():
    graph = pjax.project(
        network, granularity={"dot_general_1": "block"}, schedule="parallel", copies=False
    ).trace(PARAMS, X, Y)
    blocks = [c.name for c in graph.constraints if c.rule.granularity == "block"]
    assert blocks == ["dot_general_1"]
    graph = pjax.project(
        network, granularity={"*": pjax.Block(rounds=2), "dot_general": "row"}, schedule="parallel"
    )
    kinds = {c.name: c.rule.exactness for c in graph.trace(PARAMS, X, Y).constraints}
    assert kinds["dot_general_1"] == "linearised, 2 rounds" and kinds["dot_general"] == "exact"


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"granularity": "blocks"}, "granularity must be"),
        ({"granularity": {"*": 3}}, "granularity must be"),
        ({"granularity": {"dense": "block"}}, "matches no constraint; there are: dot_general"),
        ({"granularity": "block", "solver": pjax.Sweep()}, "its own blocks"),
        ({"schedule": "fast"}, "schedule must be"),
        ({"schedule": "sweep", "solver": pjax.DouglasRachford()}, "no schedule 'sweep'"),
        ({"schedule": "product", "solver": pjax.CyclicProjections()}, "no schedule 'product'"),
    ],
)
def test_what_is_no_granularity_or_schedule(option, match):
    with pytest.raises(InputError, match=match):
        pjax.project(network, **option).trace(PARAMS, X, Y)
    for number in (0, 1.5, True):
        with pytest.raises(InputError, match="positive integer"):
            pjax.Block(rounds=number)


def test_a_product_step_is_the_mean_of_projections():
    """Cimmino's, by hand: a variable in two sets, each of which reads it once."""

    def function(w):
        pjax.constrain(w, pjax.sets.Equal(1.0))
        pjax.constrain(w, pjax.sets.Equal(4.0))

    solver = pjax.AlternatingProjections()
    w, info = pjax.project(function, solver=solver, steps=1, schedule="product")(jnp.zeros(2))
    np.testing.assert_allclose(w, 2.5)
    assert float(info.gap) == pytest.approx(np.sqrt(2 * 2 * 1.5**2))


@pytest.mark.parametrize("solver", [pjax.AlternatingProjections(), pjax.DouglasRachford()], ids=str)
def test_the_product_schedule_finds_feasible_points(solver):
    def function(w, x):
        pjax.constrain(jnp.maximum(x @ w, 0) + w[:1], pjax.sets.Box(0.5, 1.0))
        pjax.constrain(w, pjax.sets.Ball(3.0))

    train = pjax.project(function, solver=solver, steps=2000, schedule="product")
    w, info = train(jnp.asarray(normal(0, 3, 2), jnp.float32), X[:2, :3])
    out = jnp.maximum(X[:2, :3] @ w, 0) + w[:1]
    assert float(info.gap) < 1e-2
    assert bool(jnp.all((out > 0.48) & (out < 1.02)))


def test_explain_shows_blocks(capsys):
    pjax.project(network, granularity="block").explain(PARAMS, X, Y)
    output = capsys.readouterr().out
    assert "block(SumRule)" in output and "linearised, 1 round" in output
