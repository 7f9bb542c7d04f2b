"""What the tests of staircases and of logic share: points, projections, and what is traced."""

import jax
import jax.numpy as jnp
import numpy as np

import pjax_trace as pjax

COUNT = 2000


def points(dtype, seed=0, count=COUNT, spread=4.0):
    """Random and degenerate points, and weights over six decades: x0, z0, wx, wz."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(-8, 9, (2, count)) / 2  # on a step, or halfway between two levels
    nudges = rng.choice([0, 1e-7, -1e-7, 1e-3, -1e-3], (2, count))
    x0, z0 = np.where(
        rng.random((2, count)) < 0.5,
        rng.normal(0, spread, (2, count)) * 10 ** rng.uniform(-1, 0.5, (2, count)),
        halves + nudges,
    )
    wx, wz = np.where(rng.random(count) < 0.3, 1.0, 10 ** rng.uniform(-3, 3, (2, count)))
    return [np.asarray(a, dtype) for a in (x0, z0, wx, wz)]


def project(rule, params, operands, out, weights, jit=False):
    """Projected operands, as the consensus gets them back from their moments; out and distance."""

    def run(operands, out, weights):
        result = rule.project(params, operands, out, weights)
        copies = [
            x if m is None else m.first / m.mass
            for m, x in zip(result.moments, operands, strict=True)
        ]
        return copies, result.out, result.distance, rule.apply(params, *copies)

    run = jax.jit(run) if jit else run
    results = run(tuple(jnp.asarray(x) for x in operands), jnp.asarray(out), weights)
    assert all(x.dtype == out.dtype for x in (*results[0], results[1]))
    return jax.tree.map(np.asarray, results)


def check_one_variable(function, meaning):
    """The nearest point is found among the points that the staircase has next to these."""
    x0, z0 = np.asarray([0.7, -0.3]), np.asarray([0.45, 0.9])
    (x,), z = pjax.project_point(function, (jnp.asarray(x0),), jnp.asarray(z0))
    grid = np.unique([*x0, 0, 0.5, -1, *(e + t for e in (0, 0.5, -1) for t in (1e-9, -1e-9))])
    tried = np.stack([grid, grid], 1)
    costs = (tried - x0) ** 2 + (np.asarray(meaning(tried), float) - z0) ** 2
    np.testing.assert_array_equal(np.asarray(z, float), np.asarray(meaning(np.asarray(x)), float))
    found = (np.asarray(x) - x0) ** 2 + (np.asarray(z, float) - z0) ** 2
    np.testing.assert_allclose(found, costs.min(0), atol=1e-5)


def names_of(function, *shapes):
    """What a function of several arrays compiles to, and whether its forward pass is right."""
    operands = [
        jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32)
        for i, s in enumerate(shapes)
    ]

    def fit(xs):
        out = function(*xs).astype(jnp.float32)
        return pjax.losses.squared_error(out[None], jnp.zeros((1, *out.shape)))

    graph = pjax.project(fit, schedule="parallel", copies=False).trace(operands)
    values = graph.program.evaluate(operands, [])
    _, parts, rest = graph.program.objective.evaluate(values)
    np.testing.assert_allclose(sum(parts.values()) + rest, fit(operands), rtol=1e-6)
    names = [c.name for c in graph.constraints if c.out is not None]
    return [n for n in names if not n.endswith("'")]
