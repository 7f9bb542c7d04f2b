"""Under ``jax.vmap`` every case of the registry becomes what it is without, or is refused, too.

All arguments have a batch axis, so that there are independent problems: what projections move in
all of them at once is what they move in each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace.registry import entries, function_entries

from .problems import copies_of, problem_of

SIZE = 2
# Steps take long to compile: a primitive or function of most families.
QUICK = {
    "mul",
    "dot_general",
    "tanh",
    "max",
    "select_n",
    "sign",
    "sort",
    "div",
    "softmax",
    "gather",
}


def of_registry(*, steps):
    """All cases, by the names of primitives and functions."""
    kinds = [(p.name, "", e) for p, e in entries().items() if not (steps and e.translation.reason)]
    kinds += [(e.function.__name__, f"-{n}", e) for n, e in enumerate(function_entries())]
    for name, number, entry in kinds:
        for i, case in enumerate(entry.cases):
            marks = [pytest.mark.slow] * (steps and (i > 0 or name not in QUICK))
            yield pytest.param(case, id=f"{name}{number}-{i}", marks=marks)


def arguments(case):
    random = np.random.default_rng(0)
    return tuple(
        jnp.asarray(case.centre + case.scale * random.normal(size=(SIZE, *shape)), jnp.float32)
        for shape in case.shapes
    )


def outputs(function, xs):
    """What a case computes that is not an index, as real numbers."""
    found = jax.tree.leaves(function(*xs))
    real = [z for z in found if z.dtype == bool or jnp.issubdtype(z.dtype, jnp.floating)]
    return [z.astype(jnp.float32) for z in real]


def targets(case, xs):
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda *xs: outputs(jax.vmap(case.function), xs), *xs)
    return [jnp.asarray(random.normal(size=z.shape), jnp.float32) for z in shapes]


def posed(function):
    """The problem to find operands of given outputs."""

    def fit(xs, goals):
        for z, goal in zip(outputs(function, xs), goals, strict=True):
            pjax.constrain(z, pjax.sets.Equal(goal))

    return fit


def outcome(function, xs, goals):
    """The families of a graph's constraints, as often as there is each; or how it is refused."""
    try:
        graph = pjax.project(posed(function), schedule="parallel", copies=False).trace(xs, goals)
    except pjax.TraceError as error:
        return type(error)
    return sorted((c.rule.family, c.rule.granularity) for c in graph.constraints)


@pytest.mark.parametrize("case", [*of_registry(steps=False)])
def test_what_it_becomes(case):
    xs = arguments(case)
    try:
        goals = targets(case, xs)
    except NotImplementedError as error:  # of JAX
        pytest.skip(str(error))
    alone = outcome(case.function, *one_of((xs, goals), 0))
    assert outcome(jax.vmap(case.function), xs, goals) == alone


def one_of(batch, number):
    return jax.tree.map(lambda x: x[number], batch)


def step(function):
    """A step of alternating projections: operands, and how far constraints are from holding."""

    def run(xs, goals):
        problem = problem_of(posed(function), xs, goals)
        space = copies_of(problem)
        point, lapses = space.expand(problem.values), []
        for group in space.groups:
            point, _ = space.project(point, group)
            values = dict(zip(problem.graph.variables, space.collapse(point), strict=True))
            copies = dict(zip(space.edges, point, strict=True))
            lapses += [
                lapse(c, copies, values, space.problem)
                for c in space.problem.graph.constraints
                if c in group
            ]
        return list(values.values())[: len(xs)], lapses

    return jax.jit(run)


def lapse(c, copies, values, problem):
    """How far a constraint is from holding, in relation to the size of what it is about."""
    operands = [
        copies[c, i] if moves else problem.data[o]
        for i, (o, moves) in enumerate(zip(c.operands, c.variable, strict=True))
    ]
    value = c.rule.apply(c.params, *operands)
    if c.out is None:
        (out,) = operands[1:]  # the point of the set
        value = operands[0]
    else:
        out, unread = values[c.out], problem.totals[c.out][1]
        out = out if unread is None else jnp.where(unread, value, out)
    largest = [jnp.max(jnp.abs(x), initial=1.0).astype(jnp.float32) for x in (*operands, out)]
    return jnp.max(jnp.abs(value - out), initial=0.0) / jnp.max(jnp.stack(largest))


@pytest.mark.parametrize("case", [*of_registry(steps=True)])
def test_what_it_moves(case):
    xs = arguments(case)
    goals = targets(case, xs)
    batched, alone = jax.vmap(case.function), step(case.function)
    moved, lapses = step(batched)(xs, goals)
    assert all(np.isfinite(x).all() for x in moved)
    assert max(lapses) < 1e-3, lapses
    whole = outcome(batched, xs, goals) == outcome(case.function, *one_of((xs, goals), 0))
    for i in range(SIZE):
        own, lapses = alone(*one_of((xs, goals), i))
        assert max(lapses) < 1e-3, lapses
        for x, y in zip(moved, own, strict=True):
            assert np.isfinite(y).all()
            if whole:
                np.testing.assert_allclose(x[i], y, rtol=1e-3, atol=1e-3 * case.scale)
