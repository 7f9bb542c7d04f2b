"""Sums of terms, row by row, against a float64 oracle that knows nothing of their layout.

A row ``z = ½ uᵀHu + bᵀu`` is given by its Hessian and gradient, taken from the plain JAX function.
With the multiplier λ of the nearest-point problem, ``(Ω − λH) u = Ω u₀ + λ b`` and
``z = z₀ − λ/ω_z``; the equation's error rises in λ where ``Ω − λH`` is positive definite, and there
is the global nearest point (Moré 1993). The oracle bisects it in the eigenbasis of ``Ω⁻½HΩ⁻½``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import pjax_trace as pjax
from pjax_trace.copies import expand_copies
from pjax_trace.rule import Weights
from pjax_trace.view import View
from tests.problems import problem_of


def quadratic_rows(function, shapes):
    """Value at 0, gradient at 0 and Hessian of every scalar equation, in the flat operands.

    The function is quadratic, so its values at sums of two unit vectors tell.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]

    @jax.jit
    @jax.vmap
    def flat(u):
        parts = jnp.split(u, np.cumsum(sizes)[:-1])
        return function(*(p.reshape(s) for p, s in zip(parts, shapes, strict=True))).reshape(-1)

    units = np.concatenate([np.zeros((1, sum(sizes))), np.eye(sum(sizes))]).astype(np.float32)
    pairs = (units[:, None] + units).reshape(-1, sum(sizes))
    values = np.moveaxis(np.asarray(flat(pairs), float).reshape(len(units), len(units), -1), 2, 0)
    value, once = values[:, 0, 0], values[:, 0, 1:]
    hessian = values[:, 1:, 1:] - once[:, :, None] - once[:, None, :] + value[:, None, None]
    hessian = np.where(np.abs(hessian) < 1e-5, 0, hessian)  # rounding errors
    diagonal = 0.5 * np.einsum("nii->ni", hessian)
    slope = once - value[:, None] - diagonal
    return value, np.where(np.abs(slope) < 1e-5, 0, slope), hessian


def nearest_row(h, b, c, u, z, weights, weight_z):
    """The nearest points of rows ``z = c + bᵀu + ½uᵀHu`` to ``(u, z)``, rows first."""
    root = np.sqrt(weights)
    eigen, basis = np.linalg.eigh(h / root[:, :, None] / root[:, None, :])
    start = np.einsum("nij,ni->nj", basis, root * u)
    slope = np.einsum("nij,ni->nj", basis, b / root)
    norm = np.abs(eigen).max(1)

    def point(lam):
        return (start + lam[:, None] * slope) / (1 - lam[:, None] * eigen)

    def error(lam):
        v = point(lam)
        return c + (slope * v).sum(1) + 0.5 * (eigen * v * v).sum(1) - z + lam / weight_z

    # λ = s / (1 + |s| · norm) with s on the whole line.
    low, high = np.full(len(z), -1e12), np.full(len(z), 1e12)
    for _ in range(200):
        middle = 0.5 * (low + high)
        rising = error(middle / (1 + np.abs(middle) * norm)) < 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    lam = middle / (1 + np.abs(middle) * norm)
    moved = np.einsum("nij,nj->ni", basis, point(lam)) / root
    return moved, z - lam / weight_z


def normal(seed, *shape, zeros=0.0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * (rng.random(shape) >= zeros)
    return values.astype(np.float32)


DATA = {"d": normal(7, 3, 4, zeros=0.4), "e": normal(8, 2, 3, 3, zeros=0.3)}


def dims(contract, batch=((), ())):
    return lambda x, w: jax.lax.dot_general(x, w, (contract, batch))


# name → function of variables, their shapes. Each traces to one constraint.
SUMS = {
    "add": (jnp.add, (2, 3), (2, 3)),
    "add, size 1": (jnp.add, (2, 1), (1, 3)),
    "add, lax size 1": (lambda x, y: x + y[None], (2, 3), (3,)),
    "sub": (jnp.subtract, (4,), (4,)),
    "mul": (jnp.multiply, (2, 3), (2, 3)),
    "mul, size 1": (jnp.multiply, (2, 1), (1, 3)),
    "mul, scalar": (jnp.multiply, (), (3,)),
    "reduce_sum": (lambda x: jnp.sum(x, (0, 2)), (2, 3, 2)),
    "reduce_sum of all": (lambda x: jnp.sum(x), (2, 3)),
    "mean": (lambda x: jnp.mean(x, 1), (2, 3)),
    "matmul": (jnp.matmul, (2, 3), (3, 2)),
    "matvec": (jnp.matmul, (2, 3), (3,)),
    "inner": (jnp.dot, (4,), (4,)),
    "outer": (jnp.outer, (3,), (2,)),
    "kron": (dims(((), ())), (2,), (3,)),
    "batched": (dims((((1,), (2,))), ((0,), (1,))), (2, 3, 2), (3, 2, 3)),
    "two contracted": (dims(((0, 2), (1, 0))), (2, 2, 3), (3, 2, 2)),
    "two batch": (dims(((2,), (0,)), ((1, 0), (1, 2))), (2, 2, 3), (3, 2, 2)),
    "private": (dims(((1,), (0,)), ((0,), (1,))), (3, 4), (4, 3)),
    "einsum": (lambda x, w: jnp.einsum("bij,jkb->kib", x, w), (2, 2, 3), (3, 2, 2)),
    "einsum, size 1": (lambda x, w: jnp.einsum("ij,jk->ik", x, w), (1, 3), (3, 1)),
    "data right": (lambda x: x @ DATA["d"], (2, 3)),
    "data left": (lambda w: DATA["d"] @ w, (4, 2)),
    "data batched": (lambda x: jnp.einsum("bi,bij->bj", x, DATA["e"]), (2, 3)),
    "dense": (lambda x, w, b: x @ w + b[None], (2, 3), (3, 2), (2,)),
    "dense by data": (lambda w, b: DATA["d"] @ w + b[None], (4, 2), (2,)),
    "vmap dense": (lambda w, x, b: jax.vmap(lambda r: w @ r + b)(x), (2, 3), (2, 3), (2,)),
    "rnn cell": (
        lambda w, x, u, h, b: (w @ x).T + (h.T @ u) + b[None],
        (2, 3),
        (3, 2),
        (2, 2),
        (2, 2),
        (2,),
    ),
    "sub of products": (lambda x, w, y, v: x @ w - y * v, (2, 3), (3, 2), (2, 2), (2, 2)),
    "products, transposed": (
        lambda x, w, v, b: jnp.transpose(w @ x - b[:, None]) + DATA["d"][:2, :3] @ v,
        (3, 2),
        (2, 3),
        (3, 2),
        (2,),
    ),
    "sum of sums": (lambda x, y, s: jnp.sum(x, 1) - (jnp.sum(y, 0) - s), (2, 3), (3, 2), (2,)),
    "sub of sub": (lambda x, y, z: x - (y - z), (3,), (3,), (3,)),
}


# Which operands are variables, besides all of them: the others are data, with zeros among them.
MIXED = {
    "matmul": ["xd", "dx"],
    "batched": ["dx"],
    "dense": ["xdx"],
    "products, transposed": ["xdxx"],
    "rnn cell": ["xdxdx"],
}
CASES = [
    pytest.param(name, tuple(v == "x" for v in variable), id=f"{name} {variable}")
    for name, (_, *shapes) in SUMS.items()
    for variable in ["x" * len(shapes), *MIXED.get(name, [])]
]


@functools.cache
def compiled(name, variable):
    """The constraint of a sum, some operands data, in a problem with weights of all kinds."""
    function, *shapes = SUMS[name]
    rng = np.random.default_rng(len(name))
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    params = [a for a, v in zip(arrays, variable, strict=True) if v]
    data = [a * (a > -0.5) for a, v in zip(arrays, variable, strict=True) if not v]

    def mixed(params, data):
        moving, fixed = iter(params), iter(data)
        return function(*(next(moving) if v else next(fixed) for v in variable))

    def problem(params, data):
        pjax.constrain(mixed(params, data), pjax.sets.Box(-1.0, 1.0))

    weights = {f"params[{i}]": float(10 ** rng.uniform(-1, 1)) for i in range(len(params))}
    made = problem_of(problem, params, data, metric=pjax.Metric(paths=weights))
    rows = quadratic_rows(lambda *xs: mixed(xs, data), [p.shape for p in params])
    return made, mixed, params, data, list(weights.values()), rows


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("name", "variable"), CASES)
def test_rows_are_projected_exactly(name, variable):
    problem, mixed, params, data, weights, (value, slope, hessian) = compiled(name, variable)
    graph, rule = problem.graph, problem.graph.constraints[0].rule
    constraint, _ = graph.constraints  # one sum, and the set
    assert rule.family == "sum"
    operands = problem.operands(constraint, problem.start)
    out = mixed(params, data)
    view = graph.constraints[1].operands[0]
    assert (view.layout is None) == (name == "mean")  # a view only moves elements, or scales them

    # The constraint has the function's value.
    copied = expand_copies(graph).constraints[0]
    applied = problem.look(view, {constraint.out: rule.apply(constraint.params, *operands)})
    np.testing.assert_allclose(applied, out, rtol=1e-5, atol=1e-5)

    # Which element of the parameters every private copy is of, and which row reads it.
    numbers, count = {}, 0
    for p in graph.parameters:
        numbers[p] = np.arange(count, count + np.prod(p.shape)).reshape(p.shape).astype(np.float32)
        count += int(np.prod(p.shape))
    element, private = [], []
    rng = np.random.default_rng(len(name) + sum(variable))
    for operand in copied.operands:
        if isinstance(operand, View):
            names = operand(problem.data, *(jnp.asarray(numbers[b]) for b in operand.bases))
            element.append(np.asarray(names).astype(int).ravel())
            private.append(jnp.asarray(rng.normal(size=operand.shape), jnp.float32))
        else:
            element.append(None)
            private.append(problem.data[operand])
    moving = [i for i, e in enumerate(element) if e is not None]

    def outputs(*copies):
        full = list(private)
        for i, x in zip(moving, copies, strict=True):
            full[i] = x
        return copied.rule.apply(copied.params, *full).reshape(-1)

    # The order of the constraint's rows among the function's outputs.
    shape = constraint.out.shape
    order = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    scale = out.size / max(1, order.size)
    assert scale == 1
    slots = problem.look(view, {constraint.out: jnp.asarray(order)})
    factor = 1 / 3 if name == "mean" else 1.0  # the mean scales its sum in a view
    slots = np.rint(np.asarray(slots).ravel() / factor).astype(int)
    c, b, h = value[np.argsort(slots)], slope[np.argsort(slots)], hessian[np.argsort(slots)]
    c, b, h = c / factor, b / factor, h / factor

    copies = [private[i] for i in moving]
    lengths = [copy.size for copy in copies]

    @jax.jit
    @jax.vmap
    def perturbed(direction):
        parts = jnp.split(direction, np.cumsum(lengths)[:-1])
        return outputs(*(c + p.reshape(c.shape) for c, p in zip(copies, parts, strict=True)))

    steps = np.concatenate([np.zeros((1, sum(lengths))), np.eye(sum(lengths))])
    seen = np.asarray(perturbed(jnp.asarray(steps, jnp.float32)))
    reads = np.split(np.abs(seen[1:] - seen[:1]).T > 1e-5, np.cumsum(lengths)[:-1], 1)
    for i, mask in zip(moving, reads, strict=True):
        # A zero in the data hides a reader; all other copies have exactly one row.
        assert mask.sum(0).max(initial=0) <= 1
        if not any(e is None for e in element):
            assert (mask.sum(0) == 1).all(), f"operand {i}"

    u, masks = np.zeros((order.size, count)), np.zeros((order.size, count), bool)
    for i, mask in zip(moving, reads, strict=True):
        row, column = np.nonzero(mask)
        u[row, element[i][column]] = np.asarray(private[i], float).ravel()[column]
        masks[row, element[i][column]] = True
    # What the function's rows depend on, the constraint's rows read.
    needed = (np.abs(h).sum(2) + np.abs(b)) > 0
    np.testing.assert_array_equal(masks, needed)

    # The projection of random private copies in a random metric.
    sizes = [int(np.prod(p.shape)) for p in graph.parameters]
    own = np.repeat(weights, sizes)
    weight_z = 10 ** rng.uniform(-1, 1, shape)
    z = rng.normal(size=shape) * 3
    metric = Weights(problem.weights[constraint], jnp.asarray(weight_z, jnp.float32))
    project = jax.jit(lambda xs, z: copied.rule.project(copied.params, xs, z, metric))
    result = project(private, jnp.asarray(z, jnp.float32))
    moved, moved_z = nearest_row(
        h, b, c, u, z.ravel(), np.broadcast_to(own, (order.size, count)), weight_z.ravel()
    )
    np.testing.assert_allclose(result.out.ravel(), moved_z, rtol=2e-4, atol=2e-4)
    total = np.sum(weight_z.ravel() * (moved_z - z.ravel()) ** 2)
    new = []
    for i, mask in zip(moving, reads, strict=True):
        first, mass = result.moments[i]
        got = np.asarray(first / mass, float).ravel()
        row, column = np.nonzero(mask)
        np.testing.assert_allclose(
            got[column], moved[row, element[i][column]], rtol=2e-4, atol=2e-4
        )
        # Copies that a zero of the data hides stay where they are.
        hidden = ~mask.any(0)
        start = np.asarray(private[i]).ravel()
        np.testing.assert_allclose(got[hidden], start[hidden], rtol=1e-5, atol=1e-6)
        new.append(jnp.asarray(first / mass))
    total += np.sum(own * np.where(masks, moved - u, 0) ** 2)
    np.testing.assert_allclose(result.distance, total, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(outputs(*new), result.out.ravel(), rtol=2e-4, atol=2e-4)
    for got, want in zip(
        copied.rule.masses(copied.params, metric.operands), metric.operands, strict=True
    ):
        assert (got is None) == (want is None)
        assert got is None or np.allclose(got, want)

    # From equal starts, the copy-free moments are the sums over the explicit copies.
    expansion = rule.expand(constraint.params, constraint.shapes, constraint.variable)
    spread = [v(x) if v else x for v, x in zip(expansion.views, operands, strict=True)]
    explicit = project(spread, jnp.asarray(z, jnp.float32))
    free = jax.jit(lambda xs, z: rule.project(constraint.params, xs, z, metric))(
        operands, jnp.asarray(z, jnp.float32)
    )
    np.testing.assert_allclose(free.out, explicit.out, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(free.distance, explicit.distance, rtol=1e-3, atol=1e-5)
    masses = rule.masses(constraint.params, metric.operands)
    for i in moving:
        ids = np.arange(np.prod(np.shape(operands[i]))).reshape(np.shape(operands[i]))
        view = expansion.views[i]
        ids = np.asarray(view(jnp.asarray(ids)) if view else ids).ravel()
        for got, copies in zip(free.moments[i], explicit.moments[i], strict=True):
            full = np.broadcast_to(np.asarray(copies), np.shape(spread[i])).ravel()
            sums = np.bincount(ids, full.astype(float), minlength=np.size(operands[i]))
            got = np.broadcast_to(np.asarray(got), np.shape(operands[i])).ravel()
            np.testing.assert_allclose(got, sums, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(
            np.broadcast_to(masses[i], np.shape(operands[i])),
            np.broadcast_to(free.moments[i].mass, np.shape(operands[i])),
            rtol=1e-6,
        )


def test_the_oracle_against_local_searches():
    """No search from many starts finds a nearer point than the oracle's."""
    rng = np.random.default_rng(3)
    for fan in (1, 2, 3):
        h = np.zeros((6, 2 * fan, 2 * fan))
        h[:, :fan, fan:] = h[:, fan:, :fan] = np.eye(fan)
        b, c = rng.normal(size=(6, 2 * fan)) * (np.arange(6) % 2)[:, None], rng.normal(size=6)
        u, z = rng.normal(size=(6, 2 * fan)), 3 * rng.normal(size=6)
        weights, weight_z = 10 ** rng.uniform(-1, 1, (6, 2 * fan)), 10 ** rng.uniform(-1, 1, 6)
        moved, moved_z = nearest_row(h, b, c, u, z, weights, weight_z)
        for k in range(6):

            def distance(x, k=k, h=h, b=b, c=c, u=u, z=z, weights=weights, weight_z=weight_z):
                value = c[k] + b[k] @ x + 0.5 * x @ h[k] @ x
                return weights[k] @ (x - u[k]) ** 2 + weight_z[k] * (value - z[k]) ** 2

            found = min(
                minimize(distance, u[k] + 2 * rng.normal(size=2 * fan)).fun for _ in range(6)
            )
            own = distance(moved[k])
            assert own <= found * (1 + 1e-6) + 1e-10
            value = c[k] + b[k] @ moved[k] + 0.5 * moved[k] @ h[k] @ moved[k]
            np.testing.assert_allclose(value, moved_z[k], rtol=1e-7, atol=1e-9)


ROWS, FAN = 12_500, 3  # times eight kinds: 1e5 points
KINDS = ("general", "zero x", "all zero", "opposite", "equal", "nearly opposite", "on graph", "far")


def dual_distance(plus, minus, rho, kappa, z):
    """The squared distance to ``z = (|P|² − |M|²)/2κ + …``, as the maximum of its concave dual.

    ``plus`` and ``minus`` are |P₀|² and |M₀|²; a bisection of the log of ``v = 1 − |τ|``.
    """
    value = (plus - minus) / (2 * kappa)
    up = z >= value
    a, m, s = np.where(up, plus, minus), np.where(up, minus, plus), np.where(up, z, -z)
    low, high = np.full(len(z), -100.0), np.zeros(len(z))  # log₁₀ v
    for _ in range(120):
        middle = 0.5 * (low + high)
        v = 10**middle
        t = 1 - v
        # The dual's slope in τ, over 2κ.
        slope = s - (a / v / v - m / (1 + t) ** 2) / (2 * kappa) - kappa * t * rho
        low, high = np.where(slope > 0, low, middle), np.where(slope > 0, middle, high)
    v = 10 ** (0.5 * (low + high))
    t = 1 - v
    return -a * t / v + m * t / (1 + t) + 2 * kappa * t * s - (kappa * t) ** 2 * rho


def points(kind, linear, seed):
    """Operands and outputs of scales over many decades."""
    rng = np.random.default_rng(seed)

    def decades(*shape):
        return 10 ** rng.uniform(-3, 3, shape)

    x = rng.normal(size=(ROWS, FAN)) * decades(ROWS, 1)
    w = rng.normal(size=(ROWS, FAN)) * decades(ROWS, 1)
    if kind == "zero x":
        x = 0 * x
    if kind == "all zero":
        x, w = 0 * x, 0 * w
    if kind in ("opposite", "equal", "nearly opposite"):
        w = (1 if kind == "equal" else -1) * x.astype(np.float32)
    if kind == "nearly opposite":
        w = w * (1 + 10 ** rng.uniform(-7, -1, (ROWS, 1)) * rng.normal(size=w.shape))
    b = rng.normal(size=ROWS) * decades(ROWS) * linear
    x, w, b = (v.astype(np.float32) for v in (x, w, b))
    value = (x.astype(float) * w).sum(1) + b
    if kind == "on graph":
        z = value
    else:
        z = rng.normal(size=ROWS) * np.where(rng.random(ROWS) < 0.5, decades(ROWS), np.abs(value))
        z = z * (rng.random(ROWS) < 0.9) * (1e3 if kind == "far" else 1)
    return x, w, b, z.astype(np.float32)


@pytest.mark.parametrize("linear", (False, True))
@pytest.mark.parametrize("weights", ((1.0, 1.0, 1.0, 1.0), (0.01, 25.0, 7.0, 0.3)))
def test_many_points(linear, weights):
    """1e5 points for each kind of row through the public function, in float32."""
    wx, ww, wb, wz = weights
    kappa = np.sqrt(wx * ww)

    def product(x, w, *b):
        return sum(b, jnp.einsum("nk,nk->n", x, w))

    @jax.jit
    def project(x, w, b, z):
        operands = (x, w, b)[: 2 + linear]
        moved, out = pjax.project_point(
            product, operands, z, weights=((wx, ww, wb)[: 2 + linear], wz)
        )
        return moved, out

    for seed, kind in enumerate(KINDS):
        x, w, b, z = points(kind, linear, seed)
        if kind in ("opposite", "equal", "nearly opposite"):
            w = (w * np.sqrt(wx / ww)).astype(np.float32)  # in the metric, that is
        moved, out = project(x, w, b, z)
        assert all(np.isfinite(v).all() for v in (*moved, out)), kind
        x, w, b, z = (v.astype(float) for v in (x, w, b, z))
        xs, ws, *bs = (np.asarray(v, float) for v in moved)
        out = np.asarray(out, float)
        value = (xs * ws).sum(1) + (bs[0] if linear else 0)
        size = np.abs(xs * ws).sum(1) + np.abs(out) + (np.abs(bs[0]) if linear else 0)
        infeasible = np.abs(value - out) / np.maximum(size, 1e-30)
        assert infeasible.max() <= 1e-4, (kind, infeasible.max())

        distance = wx * ((xs - x) ** 2).sum(1) + ww * ((ws - w) ** 2).sum(1)
        distance += wz * (value - z) ** 2
        rho = 1 / wz
        if linear:
            distance += wb * (bs[0] - b) ** 2
            rho += 1 / wb
        big_x, big_w = np.sqrt(wx) * x, np.sqrt(ww) * w
        plus = 0.5 * ((big_x + big_w) ** 2).sum(1)
        minus = 0.5 * ((big_x - big_w) ** 2).sum(1)
        least = dual_distance(plus, minus, rho, kappa, z - b if linear else z)
        # Rounding the coordinates of the point themselves to float32 moves them by as much.
        length = wx * (x**2).sum(1) + ww * (w**2).sum(1) + wz * z**2 + (wb * b**2 if linear else 0)
        length += wx * (xs**2).sum(1) + ww * (ws**2).sum(1)
        floor = (1e-6) ** 2 * length + wz * (1e-6 * size) ** 2
        excess = (distance - least) / (least + floor / 1e-4 + 1e-30)
        assert (distance - least >= -1e-6 * least - floor).all(), kind  # a lower bound
        assert excess.max() <= 1e-4, (kind, excess.max())


def test_squares_are_no_products():
    """One value on both sides of a product in one equation is a square."""
    for square in (lambda x: x * x, lambda x: jnp.einsum("nk,nk->n", x, x)):

        def problem(x, square=square):
            pjax.constrain(square(x), pjax.sets.Box(0.0, 1.0))

        graph = pjax.project(problem, schedule="parallel", copies=False).trace(jnp.ones((2, 3)))
        assert graph.constraints[0].rule.family == "elementwise"
        assert not any(
            len(term.operands) == 2 for c in graph.constraints for term in c.params.get("terms", ())
        )


TWICE = {
    "gram": (lambda x: x @ x.T, (2, 3)),
    "gram of features": (lambda x: x.T @ x, (2, 3)),
    "squared matrix": (lambda x: x @ x, (3, 3)),
    "outer": (lambda x: jnp.outer(x, x), (3,)),
    "shifted": (lambda x: x * (x + 1.0), (2, 3)),
    "moved": (lambda x: x * jnp.roll(x, 1, 1), (2, 3)),
    "with a bias": (lambda x: x @ x.T + x[:, :1], (2, 3)),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", TWICE)
def test_products_of_a_variable_with_itself(name):
    """Both factors are copies of it, in every scalar equation; without copies it is the same."""
    function, shape = TWICE[name]
    wanted = jnp.asarray(normal(5, *shape))
    start, goal = wanted + 0.3 * jnp.asarray(normal(4, *shape)), function(wanted)

    def problem(x):
        pjax.constrain(function(x), pjax.sets.Equal(goal))

    graph = pjax.project(problem, schedule="parallel", copies=False).trace(start)
    product = next(c for c in graph.constraints if len(c.reads) >= 2)
    bases = [base.repeats or base for _, view in product.reads[:2] for base in view.bases]
    assert bases == [*graph.parameters] * 2
    for schedule in ("parallel", "product"):
        (free, info), (explicit, other) = (
            pjax.project(
                problem,
                solver=pjax.AlternatingProjections(),
                steps=4,
                schedule=schedule,
                copies=copies,
                metric={"x": 2.0},
            )(start)
            for copies in (False, True)
        )
        np.testing.assert_allclose(free, explicit, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(info.history, other.history, rtol=1e-4, atol=1e-5)
        assert not np.allclose(free, start, atol=1e-3)
    x, info = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=1000)(start)
    np.testing.assert_allclose(function(x), goal, atol=0.05)
    assert info.gap < 0.02


def test_the_sum_of_a_value_with_itself_is_a_view():
    graph = pjax.project(
        lambda x: pjax.constrain(x + x, pjax.sets.Equal(1.0)), schedule="parallel", copies=False
    ).trace(jnp.ones(2))
    assert [c.name for c in graph.constraints] == ["Equal"]
    x, _ = pjax.project(lambda x: pjax.constrain(x + x, pjax.sets.Equal(1.0)), schedule="parallel")(
        jnp.ones(2)
    )
    np.testing.assert_allclose(x, 0.5)
    x, _ = pjax.project(lambda x: pjax.constrain(x - x, pjax.sets.Equal(1.0)), schedule="parallel")(
        jnp.ones(2)
    )
    np.testing.assert_allclose(x, 1.0)  # nobody can tell what x should be


@pytest.mark.parametrize("same", [False, True])
def test_products_in_a_wider_type_are_those_of_wider_operands(same):
    x, y = jnp.asarray([1.0, -2.0, 3.0], jnp.bfloat16), jnp.asarray([0.5, 2.0, 1.0], jnp.bfloat16)

    def solved(multiply):
        def fit(x, y):
            z = multiply(x, x if same else y)
            assert z.dtype == jnp.float32
            return pjax.losses.squared_error(z[None], jnp.ones((1, 3)))

        solver = pjax.AlternatingProjections()
        return pjax.project(fit, (0, 1)[: 2 - same], solver=solver, steps=3)(x, y)

    got, _ = solved(lambda x, y: jax.lax.mul(x, y, out_dtype=jnp.float32))
    want, _ = solved(lambda x, y: x.astype(jnp.float32) * y.astype(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, got, want)
