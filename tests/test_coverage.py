"""Every registered rule: the cases beside it, the coverage table, and the primitives of PRIMITIVES.

Of a case whose scalar equations own their operands, projected points must be feasible and nearer
than many points of the graph around them; the tests of the families compare with brute force. Of
any other case the lowering without copies is compared with explicit copies.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import coverage
from pjax_trace.point import Point
from pjax_trace.registry import FunctionEntry, entries, function_entries

ROOT = Path(__file__).resolve().parents[1]


def name_of(entry):
    return entry.function.__name__ if isinstance(entry, FunctionEntry) else entry


def cases(primitive, entry, name):
    """All of an entry; what follows the first are variants, and slow as a whole."""
    becomes = entry.rule if isinstance(entry, FunctionEntry) else entry.translation
    for i, case in enumerate(entry.cases):
        marks = [pytest.mark.slow] * (i > 0 and not reason_of(becomes))
        yield pytest.param(primitive, becomes, case, id=f"{name}-{i}", marks=marks)


def reason_of(becomes):
    """Why a primitive is refused."""
    return getattr(becomes, "reason", "")


def of_functions():
    """Forms of one function have a rule in common, which the first of them tries."""
    tried = set()
    for entry in function_entries():
        for case in cases(None, entry, name_of(entry)):
            marks = [pytest.mark.slow] if entry.rule in tried else case.marks
            yield pytest.param(*case.values, id=case.id, marks=marks)
        tried.add(entry.rule)


CASES = [
    *(case for p, entry in entries().items() for case in cases(p, entry, p.name)),
    *of_functions(),
]


def arguments(case):
    random = np.random.default_rng(0)
    return tuple(
        jnp.asarray(case.centre + case.scale * random.normal(size=shape), jnp.float32)
        for shape in case.shapes
    )


def equations(jaxpr):
    """All equations of a jaxpr, those inside calls and loops included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def problem(case):
    """All outputs of a case, pulled towards something."""

    def fit(*xs):
        total = 0.0
        for out in jax.tree.leaves(case.function(*xs)):
            if jnp.issubdtype(out.dtype, jnp.floating) or out.dtype == bool:
                scores = out.astype(jnp.float32).reshape(1, -1)
                total += pjax.losses.squared_error(
                    scores, 0.5 * jnp.cos(jnp.arange(scores.size, dtype=jnp.float32))[None]
                )
        return total

    return fit


def test_every_rule_has_cases():
    bare = [
        p.name for p, e in entries().items() if not e.cases and p is not jax.lax.reduce_precision_p
    ]
    bare += [name_of(e) for e in function_entries() if not e.cases and "cautious" != name_of(e)]
    assert not bare, f"rules without cases: {bare}"


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("primitive", "becomes", "case"), CASES)
def test_case(primitive, becomes, case):
    xs = arguments(case)
    jaxpr = jax.make_jaxpr(case.function)(*xs)
    if primitive is not None:
        assert primitive in {eqn.primitive for eqn in equations(jaxpr.jaxpr)}
    argnums = tuple(range(len(xs)))
    if reason_of(becomes):
        with pytest.raises(pjax.PjaxError) as error:
            pjax.project(problem(case), argnums, schedule="parallel", copies=False).trace(*xs)
        assert reason_of(becomes) in str(error.value)
        return
    shapes = [np.shape(out) for out in jax.tree.leaves(jax.eval_shape(case.function, *xs))]
    try:
        Point(case.function, xs, shapes[0])
    except pjax.PjaxError:
        compare_lowerings(case, argnums, xs)
    else:
        check_points(case, shapes[0], local="local" in becomes.exactness)


def check_points(case, shape, *, local, samples=16, rivals=400):
    """Feasible, and no rival on the graph is nearer; rivals are at all distances.

    Of a rule that promises no more, the only rival is what the start's operands make.
    """
    random = np.random.default_rng(1)

    def draw(shape):
        return (case.centre + case.scale * random.normal(size=(samples, *shape))).astype(np.float32)

    operands = tuple(map(draw, case.shapes))
    with jax.numpy_dtype_promotion("standard"):
        near = np.asarray(jax.vmap(case.function)(*operands), np.float32)
    out = near + random.normal(size=near.shape).astype(np.float32) * case.scale
    weights = tuple(10 ** random.uniform(-1, 1, samples).astype(np.float32) for _ in operands)
    heavy = 10 ** random.uniform(-1, 1, near.shape).astype(np.float32)
    point = Point(case.function, [x[0] for x in operands], shape)
    moved, moved_out = jax.jit(jax.vmap(point.project))(operands, out, (weights, heavy))
    moved = [np.asarray(x) for x in moved]
    assert all(map(np.all, map(np.isfinite, (*moved, moved_out))))

    def cost(xs, axes):  # over samples; a pole is infinitely far
        zs = np.asarray(axes(case.function)(*xs), np.float64)
        lead = (1,) * (zs.ndim - near.ndim)
        total = heavy.reshape(*lead, *heavy.shape) * (zs - out) ** 2
        total = total.reshape(*zs.shape[: zs.ndim - near.ndim + 1], -1).sum(-1)
        for x, start, weight in zip(xs, operands, weights, strict=True):
            away = (np.asarray(x, np.float64) - start) ** 2
            total = total + weight * away.reshape(*total.shape, -1).sum(-1)
        return np.nan_to_num(total, nan=np.inf)

    unit = max(np.max(np.abs(x)) for x in (*operands, out, *moved, moved_out))
    values = np.asarray(jax.vmap(case.function)(*moved))
    np.testing.assert_allclose(moved_out, values, atol=1e-3 * unit)
    own = cost(moved, jax.vmap)
    sizes = 10 ** random.uniform(-3, 1, (rivals, 1)) * case.scale
    others = [
        (x + sizes.reshape(-1, *(1,) * x.ndim) * random.normal(size=(rivals, *x.shape))).astype(
            x.dtype
        )
        for x in moved
    ]
    if local:
        others = [x[None] for x in operands]
    best = cost(others, lambda f: jax.vmap(jax.vmap(f))).min(0)
    floor = max(np.max(w) for w in (*weights, heavy)) * (1e-4 * unit) ** 2
    assert np.all(own <= best * (1 + 1e-3) + floor), (own, best)


def compare_lowerings(case, argnums, xs):
    results = []
    for copies in (False, True):
        solver = pjax.AlternatingProjections()
        solve = pjax.project(problem(case), argnums, solver=solver, steps=3, copies=copies)
        results.append(solve(*xs))
    (free, info), (explicit, other) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), free, explicit
    )
    np.testing.assert_allclose(info.history, other.history, rtol=2e-3, atol=1e-4)


def version(text):
    numbers = [int(part) for part in text.split(".")[:3]]
    return (*numbers, 0, 0)[:3]


def test_the_readme_has_the_table():
    # What the examples in the documentation register is not what there is.
    shown = "`reduce_precision`", "`cautious`"
    written = coverage.read((ROOT / "rules/README.md").read_text())
    written = [row for row in written if row.name not in shown]
    made = [row for row in coverage.rows() if row.name not in shown]
    assert not set(made) - set(written), "run python -m pjax_trace.coverage rules/README.md"
    newer = [row for row in written if version(row.since) > version(jax.__version__)]
    assert set(written) == set(made) | set(newer)


# PRIMITIVES: what ordinary models are made of. Higher-order ones are the tracer's own.
ORDINARY = """
dot_general add max transpose broadcast_in_dim conv_general_dilated squeeze reshape slice
concatenate reduce_window_max reduce_window_sum div reduce_max reduce_sum split logistic tanh mul
sub exp select_n ge rsqrt square integer_pow gt psum sqrt eq pow lt dynamic_slice gather neg erfc
ne abs log1p expm1 log sign pad rev tile min clamp cumsum sort top_k scatter reduce_or reduce_prod
erf_inv fft copy optimization_barrier stack unstack and or not xor le round floor ceil erf sin cos
cumprod cummax cumlogsumexp stop_gradient convert_element_type reduce_min reduce_and
dynamic_update_slice scatter_add imag real complex conj atan2 rem
""".split()
CALLED_OTHERWISE = {"scatter_add": "scatter-add", "convert_element_type": "convert_element_type"}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_primitives_are_covered(name):
    primitive = getattr(jax.lax, f"{name}_p", None)
    if primitive is None:  # the tests of older JAX
        pytest.skip(f"JAX {jax.__version__} has no {name}")
    assert primitive in entries()


def test_integers_and_indices_of_variables_are_data():
    def fit(w, x):
        scores = x @ w
        first = jnp.argmax(scores, 1)
        return pjax.losses.squared_error(
            scores * (1 + first[:, None]).astype(x.dtype), jnp.ones((4, 3))
        )

    graph = pjax.project(fit, schedule="parallel", copies=False).trace(
        jnp.ones((2, 3)), jnp.ones((4, 2))
    )
    assert [e.primitive.name for e in graph.program.frozen][:1] == ["argmax"]
    assert len(graph.constraints) == 2
