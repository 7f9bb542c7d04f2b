"""Consensus through views, against dense weighted least squares in float64.

The matrix of a view is read off by applying the function to unit vectors, so the oracle knows
nothing of transposes, masses or offsets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.index import Index
from pjax_trace.problem import Problem
from pjax_trace.registry import translate
from pjax_trace.spaces import space_of
from pjax_trace.translation import Range

WEIGHTS = (2.0, 0.5, 3.0)


def case(name, function, *shapes, data=(), half=False):
    return pytest.param(function, shapes, data, 2e-3 if half else 2e-5, id=name)


def array(*shape, seed=0, zeros=()):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for index in zeros:
        values[index] = 0
    return jnp.asarray(values)


def integers(*values):
    return jnp.asarray(values, jnp.int32)


MASK = jnp.asarray([[True, False, True], [False, False, True]])

CASES = [
    case("identity", lambda x: x, (2, 3)),
    case("reshape", lambda x: x.reshape(3, 2), (2, 3)),
    case("reshape to ()", lambda x: x.reshape(()), (1, 1)),
    case("transpose", lambda x: jnp.transpose(x, (2, 0, 1)), (2, 3, 2)),
    case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 2), (1, 2)), (3, 1)),
    case("squeeze", lambda x: jnp.squeeze(x, (0, 2)), (1, 3, 1)),
    case("expand_dims", lambda x: jnp.expand_dims(x, (0, 2)), (3,)),
    case("slice", lambda x: x[1:, 2:4], (3, 5)),
    case("strided slice", lambda x: lax.slice(x, (0, 1), (3, 6), (2, 2)), (3, 7)),
    case("negative stride", lambda x: x[::-2], (5,)),
    case("static index", lambda x: x[1], (3, 2)),
    case(
        "dynamic_slice",
        lambda x, i: lax.dynamic_slice(x, (i, i + 1), (2, 2)),
        (4, 4),
        data=(jnp.int32(1),),
    ),
    case("dynamic index, clamped", lambda x, i: x[i], (4, 2), data=(jnp.int32(7),)),
    case("gather", lambda x, i: x[i], (4, 2), data=(integers(2, 0, 2, 2),)),
    case(
        "gather pairs", lambda x, i, j: x[i, j], (3, 3), data=(integers(0, 2, 2), integers(1, 1, 1))
    ),
    case("gather of negatives", lambda x, i: x[i], (4,), data=(integers(-1, 3, 0),)),
    case("take", lambda x, i: jnp.take(x, i, axis=1), (2, 4), data=(integers(3, 3, 0),)),
    case(
        "take, fill",
        lambda x, i: jnp.take(x, i, axis=0, mode="fill", fill_value=0.0),
        (3,),
        data=(integers(2, 7, 0, 2),),
    ),
    case(
        "take, clip", lambda x, i: jnp.take(x, i, axis=0, mode="clip"), (3,), data=(integers(2, 7),)
    ),
    case(
        "take_along_axis",
        lambda x, i: jnp.take_along_axis(x, i, axis=1),
        (2, 3),
        data=(jnp.asarray([[2, 2], [0, 1]]),),
    ),
    case("concatenate", lambda x, y: jnp.concatenate([x, y, x], 1), (2, 1), (2, 2)),
    case("concatenate data", lambda x, c: jnp.concatenate([c, x]), (2, 3), data=(array(1, 3),)),
    case("stack", lambda x, y: jnp.stack([y, x, y], 1), (3,), (3,)),
    case("split", lambda x: jnp.split(x, 3, axis=1)[1], (2, 6)),
    case("split, all parts", lambda x: sum_free(jnp.split(x, (1, 3))), (5,)),
    case("pad", lambda x: jnp.pad(x, ((1, 0), (0, 2)), constant_values=1.5), (2, 2)),
    case("pad interior", lambda x: lax.pad(x, 0.5, ((1, 2, 2),)), (4,)),
    case("pad negative", lambda x: lax.pad(x, 0.5, ((-1, 2, 0), (1, -2, 1))), (3, 4)),
    case("pad wrap", lambda x: jnp.pad(x, 2, mode="wrap"), (3,)),
    case("pad edge", lambda x: jnp.pad(x, 1, mode="edge"), (3,)),
    case("pad by a variable", lambda x, y: lax.pad(x, y, ((1, 1, 1),)), (3,), ()),
    case("rev", lambda x: lax.rev(x, (1,)), (2, 3)),
    case("roll", lambda x: jnp.roll(x, 2, axis=0), (5,)),
    case("flip and tile", lambda x: jnp.tile(jnp.flip(x), (2, 2)), (2, 2)),
    case("neg", lambda x: -x, (3,)),
    case("convert", lambda x: x.astype(jnp.float16).astype(jnp.float32), (3,), half=True),
    case("select", lambda x, y, m: jnp.where(m, x, y), (2, 3), (2, 3), data=(MASK,)),
    case("select data", lambda x, m, c: jnp.where(m, x, c), (2, 3), data=(MASK, array(2, 3))),
    case("select scalar", lambda x, m: jnp.where(m, 0.0, x), (2, 3), data=(MASK,)),
    case(
        "select_n of three",
        lambda x, y, c, i: lax.select_n(i, x, c, y),
        (4,),
        (4,),
        data=(array(4), integers(0, 2, 1, 2)),
    ),
    case("scale", lambda x, c: c * x, (2, 3), data=(array(2, 3),)),
    case("scale with zeros", lambda x, c: x * c, (2, 3), data=(array(2, 3, zeros=[(0, 1)]),)),
    case("scale, broadcast", lambda x, c: x[:, None] * c, (2,), data=(array(2, 3),)),
    case("scale, all zero", lambda x, c: x * c, (3,), data=(jnp.zeros(3),)),
    case("divide", lambda x, c: x / c, (3,), data=(array(3),)),
    case("offset", lambda x, c: x + c, (2, 3), data=(array(2, 3),)),
    case("offset, broadcast", lambda x, c: c - x[None], (3,), data=(array(2, 3),)),
    case("offset by minus", lambda x, c: x - c, (3,), data=(array(3),)),
    case("copy", lambda x: lax.optimization_barrier(jnp.array(x, copy=True)), (3,)),
    case(
        "long chain",
        lambda x, y, c: 2 - c * jnp.concatenate([x.T[::-1], -y])[1:].reshape(-1),
        (3, 2),
        (1, 3),
        data=(array(6, zeros=[(2,)]),),
    ),
    case("triangle", lambda x: jnp.tril(x), (3, 3)),
]


def sum_free(parts):
    """All parts, the last first."""
    return jnp.concatenate(parts[::-1])


def problem_of(fn, params, *data, metric=None):
    """A traced problem, ready to be projected."""
    graph = pjax.project(fn, schedule="parallel", copies=False).trace(params, *data)
    arrays = map(jax.tree.leaves, (params, data))
    problem = Problem.forward(graph, metric or pjax.Metric(), *arrays)
    problem.prepare()
    return problem


def affine(function, shapes, data):
    """The matrix and offset of a view of all its variables, flat, in float64."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    total = sum(sizes)

    def flat(vector):
        parts = jnp.split(vector, np.cumsum(sizes)[:-1])
        arrays = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return function(*arrays, *data).reshape(-1)

    values = np.asarray(jax.vmap(flat)(jnp.concatenate([jnp.zeros((1, total)), jnp.eye(total)])))
    offset = values[0].astype(float)
    return (values[1:] - offset).T, offset


def least_squares(matrices, offsets, targets, weights, start):
    """``argmin Σ_k ω_k |L_k x + o_k − t_k|²``; what nothing reads stays at the start."""
    rows = np.concatenate([np.sqrt(w) * m for m, w in zip(matrices, weights, strict=True)])
    right = np.concatenate(
        [np.sqrt(w) * (t - o) for t, o, w in zip(targets, offsets, weights, strict=True)]
    )
    # The least-norm correction leaves the null space, the elements that nobody reads, alone.
    return start + np.linalg.lstsq(rows, right - rows @ start, rcond=1e-9)[0]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("function", "shapes", "data", "tolerance"), CASES)
def test_consensus_is_weighted_least_squares(function, shapes, data, tolerance):
    rng = np.random.default_rng(1)
    params = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    names = [f"params[{i}]" for i in range(len(shapes))]
    metric = pjax.Metric(paths=dict(zip(names, WEIGHTS, strict=False)))
    out = jax.eval_shape(function, *params, *data)
    # Two readers: the view itself, and the first variable directly.
    seen, direct = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (out.shape, shapes[0]))

    def problem(params, data, seen, direct):
        pjax.constrain(function(*params, *data), pjax.sets.Equal(seen))
        pjax.constrain(params[0], pjax.sets.Equal(direct))

    traced = problem_of(problem, params, data, seen, direct, metric=metric)
    graph = traced.graph
    assert [c.rule.family for c in graph.constraints] == ["set", "set"]  # views are no constraints
    free = space_of(traced, copies=False)
    moved, _ = jax.jit(lambda values: free.project(values, free.groups[0]))(traced.values)

    size = sum(p.size for p in params)
    matrix, offset = affine(function, shapes, data)
    view = graph.constraints[0].operands[0]
    joint = max(metric.paths[base.name] for base in view.bases)
    expected = least_squares(
        [matrix, np.eye(size)[: params[0].size]],
        [offset, np.zeros(params[0].size)],
        [np.asarray(seen, float).ravel(), np.asarray(direct, float).ravel()],
        [joint, WEIGHTS[0]],
        np.concatenate([np.asarray(p, float).ravel() for p in params]),
    )
    got = np.concatenate([np.asarray(x).ravel() for x in moved])
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)

    # Total weights of all readers are the diagonal of the normal matrix.
    masses = np.concatenate([np.asarray(traced.mass(v)).ravel() for v in graph.variables])
    normal = joint * np.square(matrix).sum(0)
    # A mass counts ω · coefficient² of every reader.
    normal[: params[0].size] += WEIGHTS[0]
    np.testing.assert_allclose(masses, np.where(normal > 0, normal, 1), rtol=1e-5)

    # Explicit copies have the same consensus.
    space = space_of(traced, copies=True)

    @jax.jit
    def agreed(values):
        point, _ = space.project(space.expand(values), space.groups[0])
        return space.collapse(point)

    copied = np.concatenate([np.asarray(x).ravel() for x in agreed(traced.values)])
    np.testing.assert_allclose(copied, expected, rtol=tolerance, atol=tolerance)


INDEXED = {
    "reshape": (lambda x: lax.reshape(x, (4, 6)), (2, 3, 4)),
    "reshape of a part": (lambda x: lax.reshape(x, (3, 1, 2, 2)), (3, 4)),
    "transpose": (lambda x: lax.transpose(x, (2, 0, 1)), (2, 3, 4)),
    "squeeze": (lambda x: lax.squeeze(x, (0, 2)), (1, 3, 1)),
    "rev": (lambda x: lax.rev(x, (0, 2)), (2, 3, 4)),
    "broadcast_in_dim": (lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)), (2, 1)),
    "slice": (lambda x: lax.slice(x, (1, 0), (3, 4)), (3, 5)),
    "strided slice": (lambda x: lax.slice(x, (0, 1), (3, 6), (2, 2)), (3, 7)),
    "split": (lambda x: lax.split(x, (1, 2), 1), (2, 3)),
    "copy": (lambda x: jnp.array(x, copy=True), (2, 3)),
    "neg": (lambda x: -x, (2, 3)),
    "convert": (lambda x: x.astype(jnp.float16), (2, 3)),
    "sharding_constraint": (
        lambda x: lax.with_sharding_constraint(
            x, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        (2, 3),
    ),
}


@pytest.mark.parametrize("name", INDEXED)
def test_the_index_of_a_view_says_what_it_reads(name):
    function, shape = INDEXED[name]
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    (eqn,) = jax.make_jaxpr(function)(x).eqns
    affine = translate(eqn.primitive, eqn.params, [x], (True,))
    elements = Index.of(shape)
    if affine.pointwise:
        found = [elements]
    elif affine.ranges:
        limits = [[(0, n) for n in shape] for _ in affine.ranges]
        for part, sides in zip(affine.ranges, limits, strict=True):
            sides[part.axis] = part.start, part.stop
        found = [elements.slice(*zip(*sides, strict=True), None) for sides in limits]
        if affine.index is not None:
            assert [affine.index(elements)] == found
    else:
        found = [affine.index(elements)]
    for index, out in zip(found, jax.tree.leaves(function(x)), strict=True):
        grids = np.indices(index.shape)
        flat = index.offset + sum(s * g for s, g in zip(index.strides, grids, strict=True))
        np.testing.assert_array_equal(flat, np.abs(np.asarray(out, np.float32)))
    assert affine.scales == (name in ("neg", "convert"))


PARTS = {
    "transpose": (lambda x: lax.transpose(x, (2, 0, 1)), (2, 3, 4)),
    "neg": (lambda x: -x, (2, 3)),
    "convert": (lambda x: x.astype(jnp.float16), (2, 3)),
    "broadcast_in_dim": (lambda x: lax.broadcast_in_dim(x, (2, 5, 3, 4), (0, 2, 3)), (2, 3, 1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_view_is_computed_alone(name):
    function, shape = PARTS[name]
    x = array(*shape)
    (eqn,) = jax.make_jaxpr(function)(x).eqns
    whole = function(x)
    for axis, size in enumerate(whole.shape):
        part = Range(axis, 1, size)
        params, (own,) = translate(eqn.primitive, eqn.params, [x], (True,)).part(part)
        operand = x if own is None else lax.slice_in_dim(x, own.start, own.stop, axis=own.axis)
        (out,) = _compat.bind(eqn.primitive, params, operand)
        np.testing.assert_array_equal(out, lax.slice_in_dim(whole, 1, size, axis=axis))


UNREAD = {
    "mul": lambda x, w: x * w,
    "add": lambda x, w: x + w,
    "relu": lambda x, w: jax.nn.relu(x) + 0 * w[0, 0],
    "matmul": lambda x, w: x @ w,
    "matmul by data": lambda x, w: x @ jnp.asarray(array(3, 3, seed=2)),
    "reduce": lambda x, w: jnp.sum(x, 1),
}


@pytest.mark.parametrize("name", UNREAD)
def test_unread_outputs_ask_nothing(name):
    """Only the first row of an output is read: the other rows' operands stay where they are."""
    function = UNREAD[name]
    rng = np.random.default_rng(2)
    x, w = (jnp.asarray(rng.normal(size=(3, 3)), jnp.float32) for _ in range(2))
    params = (x, w) if name in ("mul", "add", "matmul") else (x,)

    def problem(params):
        pjax.constrain(function(*params, *(w,) * (2 - len(params)))[:1], pjax.sets.Box(5.0, 6.0))

    traced = problem_of(problem, params)
    (hidden,) = [v for v in traced.graph.variables if not v.parameter]
    assert np.asarray(traced.totals[hidden][1])[1:].all()
    space = space_of(traced, copies=False)
    variables = traced.graph.variables
    values = [jnp.asarray(rng.normal(size=v.shape), jnp.float32) for v in variables]
    group = next(g for g in space.groups if traced.graph.producers[hidden] in g)
    moved, distances = space.project(tuple(values), group)
    after = dict(zip(variables, moved, strict=True))
    before = dict(zip(variables, values, strict=True))
    for v in variables[: 2 if name in ("mul", "add") else 1]:
        np.testing.assert_allclose(after[v][1:], before[v][1:], atol=1e-6)
        assert not np.allclose(after[v][:1], before[v][:1], atol=1e-3)
    # And the distance is that of the first row alone.
    values[-1] = values[-1].at[1:].add(100.0)
    np.testing.assert_allclose(space.project(tuple(values), group)[1], distances, rtol=1e-6)


def test_elements_that_nobody_reads_keep_their_value():
    x = jnp.arange(6.0)
    solve = pjax.project(
        lambda x: pjax.constrain(x[1:3], pjax.sets.Equal(9.0)), steps=5, schedule="parallel"
    )
    np.testing.assert_array_equal(solve(x)[0], [0, 9, 9, 3, 4, 5])
    for solver in (pjax.AlternatingProjections(), pjax.DouglasRachford()):
        solve = pjax.project(
            lambda x: pjax.constrain(x[1:3], pjax.sets.Equal(9.0)), solver=solver, copies=True
        )
        np.testing.assert_array_equal(solve(x)[0], [0, 9, 9, 3, 4, 5])


def test_integers_of_variables_are_data():
    """What a conversion makes is frozen, and what is chosen by variables is no view."""

    def problem(x):
        pjax.constrain(x + x.astype(jnp.int32).astype(x.dtype), pjax.sets.Equal(1.0))
        pjax.constrain(jnp.where(x > 0, x, 2 * x), pjax.sets.Box(0.0, 1.0))

    graph = pjax.project(problem, schedule="parallel", copies=False).trace(jnp.ones(3))
    (frozen,) = graph.program.frozen
    assert frozen.primitive is lax.convert_element_type_p
    assert [c.rule.family for c in graph.constraints].count("discrete") == 2


def test_stop_gradient_is_data():
    """What it returns is frozen at the forward value and gets no share of the consensus."""

    def problem(x):
        pjax.constrain(x + jax.lax.stop_gradient(3 * x), pjax.sets.Equal(1.0))

    graph = pjax.project(problem, schedule="parallel", copies=False).trace(jnp.ones(2))
    (constraint,) = graph.constraints
    assert [v.name for _, view in constraint.reads for v in view.bases] == ["x"]
    x, _ = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=1)(jnp.ones(2))
    np.testing.assert_allclose(x, [-2.0, -2.0])
