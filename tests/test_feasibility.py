"""Problems of sets: what becomes a set of the variables themselves, against iterations by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import sets
from pjax_trace.affine import AffineGraph
from pjax_trace.rule import Weights
from pjax_trace.rules.fourier import Fourier
from tests.problems import problem_of

SOLVERS = [
    pjax.AlternatingProjections(),
    pjax.DouglasRachford(),
    pjax.DifferenceMap(beta=0.8),
    pjax.CyclicProjections(),
]


@functools.cache
def projection(fn):
    """One step onto the only set of a problem, which compiles once."""
    return pjax.project(fn, solver=pjax.AlternatingProjections(), steps=1)


def nearest(fn, x, *data):
    """The projection of x onto the only set of a problem."""
    solve = projection(fn)
    arguments = [jnp.asarray(v, jnp.float32) for v in (x, *data)]
    graph = solve.trace(*arguments)
    assert graph.direct and len(graph.constraints) == 1
    found, info = solve(*arguments)
    assert float(info.gap) < 1e-4 * np.linalg.norm(x)
    return found


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_affine_equations_are_one_set(rank):
    """By the pseudo-inverse in float64, of matrices that lack rank, too."""
    rng = np.random.default_rng(rank)

    def problem(x, a, b):
        pjax.constrain((a @ x).reshape(5, 1).T, sets.Equal(b[None]))

    for _ in range(20):
        a = rng.normal(size=(5, rank)) @ rng.normal(size=(rank, 8)) * 10 ** rng.uniform(-2, 2)
        x, b = rng.normal(size=8), a @ rng.normal(size=8)
        found = nearest(problem, x, a, b)
        expected = x + np.linalg.pinv(a, 1e-6) @ (b - a @ x)
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(x).max())


def test_equations_without_a_solution_have_a_gap():
    def problem(x):
        pjax.constrain(jnp.array([[1.0, 1.0], [2.0, 2.0]]) @ x, sets.Equal(jnp.array([1.0, 3.0])))

    solve = pjax.project(problem, solver=pjax.AlternatingProjections(), steps=10)
    x, info = solve(jnp.zeros(2))
    np.testing.assert_allclose(x, [0.7, 0.7], atol=1e-5)
    np.testing.assert_allclose(info.gap, np.sqrt(0.4**2 + 0.2**2), rtol=1e-4)


def test_affine_operations_with_other_sets_are_blocks():
    """``argmin Σ ω_x |x' − x|² + Σ ω_z |z' − z|²`` with ``z' = A x' + b``, by its normal equations.

    With weights by element, and with output elements that weigh nothing.
    """
    rng = np.random.default_rng(0)
    traced = problem_of(
        lambda x, a, b: pjax.constrain(a @ x + b, sets.NonNegative()),
        jnp.zeros(6),
        jnp.zeros((4, 6)),
        jnp.zeros(4),
    )
    c = traced.graph.constraints[0]
    for trial in range(20):
        a, x, z = rng.normal(size=(4, 6)), rng.normal(size=6), rng.normal(size=4)
        wx, wz = 10 ** rng.uniform(-2, 2, 6), 10 ** rng.uniform(-2, 2, 4)
        wz[0] = 0 if trial % 2 else wz[0]
        operands = [jnp.asarray(v, jnp.float32) for v in (a, x)]
        masses = [None, jnp.asarray(wx, jnp.float32)]
        answer = AffineGraph(c.rule).project(
            c.params, operands, jnp.asarray(z, jnp.float32), Weights(tuple(masses), jnp.asarray(wz))
        )
        system = np.diag(wx) + a.T @ np.diag(wz) @ a
        expected = np.linalg.solve(system, wx * x + a.T @ (wz * z))
        found = answer.moments[1].first / answer.moments[1].mass
        np.testing.assert_allclose(found, expected, atol=2e-4)
        np.testing.assert_allclose(answer.out, a @ expected, atol=1e-3)


@pytest.mark.parametrize(
    "function, inverse",
    [
        (lambda x: 2.0 * x - 1.0, lambda z: (z + 1) / 2),
        (lambda x: jnp.arange(1.0, 51.0) * x, lambda z: z / np.arange(1.0, 51.0)),
        (lambda x: 0.5 - 3.0 * jnp.tanh(2.0 * x), lambda z: np.arctanh((0.5 - z) / 3) / 2),
        (jnp.tanh, np.arctanh),
        (lambda x: jnp.exp(-x), lambda z: -np.log(z)),
    ],
)
def test_intervals_of_single_elements(function, inverse):
    """The nearest x whose value is in the interval is at its end, for monotone functions."""
    x = np.random.default_rng(1).normal(size=50) * 2

    def problem(x):
        pjax.constrain(function(x).reshape(5, 10).T, sets.Box(0.2, 0.6))

    found = nearest(problem, x)
    ends = inverse(np.clip(np.asarray(function(x)), 0.2, 0.6))
    np.testing.assert_allclose(found, ends, atol=2e-5)


def test_differences_are_views_whatever_the_set():
    """Of pairs, sums and means: ``x + Lᵀ (P(L x) − L x) / c``, in float64."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(6, 2))
    pairs = np.array([[0, 3], [1, 4], [2, 5]])
    difference = np.zeros((6, 12))
    for k, (i, j) in enumerate(pairs):
        for axis in range(2):
            difference[2 * k + axis, 2 * i + axis] = 1.0
            difference[2 * k + axis, 2 * j + axis] = -1.0
    mean = np.kron(np.eye(6), np.full((1, 2), 0.5))
    cases = [
        (lambda x: x[pairs[:, 0]] - x[pairs[:, 1]], difference, (3, 2)),
        (lambda x: jnp.mean(x, 1).reshape(3, 2), mean, (3, 2)),
    ]
    for function, matrix, shape in cases:
        for region in (sets.Sphere(1.5, axis=-1), sets.TopK(2), sets.Ball(0.5)):

            def problem(x, function=function, region=region):
                pjax.constrain(function(x), region)

            found = nearest(problem, x)
            seen = matrix @ x.reshape(-1)
            onto = np.asarray(region.project(jnp.asarray(seen.reshape(shape), jnp.float32)))
            square = matrix @ matrix.T
            np.testing.assert_allclose(square, square[0, 0] * np.eye(6), atol=1e-12)
            step = matrix.T @ (onto.reshape(-1) - seen) / square[0, 0]
            np.testing.assert_allclose(found, x + step.reshape(x.shape), atol=1e-5)


TRANSFORMS = [
    (jnp.fft.rfft, (7,)),
    (jnp.fft.rfft, (8,)),
    (jnp.fft.fft2, (3, 4)),
    (jnp.fft.rfft2, (4, 4)),
    (jnp.fft.rfftn, (2, 3, 4)),
    (jnp.fft.ifft, (5,)),
    (functools.partial(jnp.fft.fft, norm="ortho"), (6,)),
]


@pytest.mark.parametrize("transform, shape", TRANSFORMS)
def test_magnitudes_of_a_spectrum_are_a_set_of_the_signal(transform, shape):
    """By hand: all of the spectrum, its magnitudes replaced, transformed back, the real part."""
    rng = np.random.default_rng(2)
    x, other = rng.normal(size=(2, *shape))

    def problem(x, m):
        pjax.constrain(jnp.abs(transform(x)), sets.Equal(m))

    measured = jnp.abs(transform(jnp.asarray(other, jnp.float32)))
    found = nearest(problem, x, measured)
    # Of a real signal, the inverse transform is the transform but for conjugates and a factor.
    moved = np.abs(np.fft.fftn(other)) * np.exp(1j * np.angle(np.fft.fftn(x)))
    back = np.fft.ifftn(moved)
    np.testing.assert_allclose(found, np.real(back), atol=2e-5)


@pytest.mark.parametrize(
    "kind, lengths",
    [
        ("FFT", (5,)),
        ("IFFT", (4,)),
        ("RFFT", (6,)),
        ("RFFT", (7,)),
        ("IRFFT", (6,)),
        ("IRFFT", (3, 5)),
    ],
)
def test_the_graph_of_a_transform(kind, lengths):
    """The nearest point of ``z = F x`` by the normal equations, some outputs weighing nothing."""
    rule, rng = Fourier(kind, lengths), np.random.default_rng(3)
    half = (*lengths[:-1], lengths[-1] // 2 + 1)
    shape = {"RFFT": lengths, "IRFFT": (2, *half)}.get(kind, (2, *lengths))
    x = rng.normal(size=shape)
    matrix = np.asarray(jax.jacobian(lambda x: rule.apply({}, x))(jnp.asarray(x, jnp.float32)))
    matrix = matrix.reshape(-1, x.size).astype(float)
    out = rng.normal(size=rule.apply({}, jnp.asarray(x, jnp.float32)).shape)
    for masses in (np.full(out.shape, 0.7), rng.integers(0, 3, out.shape) * 0.5):
        answer = rule.project(
            {},
            [jnp.asarray(x, jnp.float32)],
            jnp.asarray(out, jnp.float32),
            Weights((2.0,), jnp.asarray(masses, jnp.float32)),
        )
        weighted = matrix.T * masses.reshape(-1)
        expected = np.linalg.solve(
            2.0 * np.eye(x.size) + weighted @ matrix,
            2.0 * x.reshape(-1) + weighted @ out.reshape(-1),
        )
        np.testing.assert_allclose(answer.moments[0].first.reshape(-1) / 2, expected, atol=2e-5)
        np.testing.assert_allclose(answer.out.reshape(-1), matrix @ expected, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_two_sets_iterate_as_by_hand(solver):
    """Equations and a box, from a point in neither: textbook iterations on x alone, in float64."""
    rng = np.random.default_rng(4)
    a, inside, start = rng.normal(size=(6, 12)), rng.uniform(0, 1, 12), rng.normal(size=12)
    b, pinv = a @ inside, np.linalg.pinv(a)

    def problem(x, a, b):
        pjax.constrain(a @ x, sets.Equal(b))
        pjax.constrain(x, sets.Box(0.0, 1.0))

    def equations(x):
        return x + pinv @ (b - a @ x)

    def box(x):
        return np.clip(x, 0, 1)

    solve = pjax.project(problem, solver=solver, steps=7)
    graph = solve.trace(*map(jnp.float32, (start, a, b)))
    assert graph.direct and [v.name for v in graph.variables] == ["x"]
    found, _ = solve(*map(jnp.float32, (start, a, b)))
    # The set of the first line is the first one.
    x = start
    for _ in range(7):
        if isinstance(solver, pjax.DouglasRachford):
            x = x + box(2 * equations(x) - x) - equations(x)
        elif isinstance(solver, pjax.DifferenceMap):
            beta = solver.beta
            on_a = equations(x) + (equations(x) - x) / beta
            on_b = box(x) - (box(x) - x) / beta
            x = x + beta * (box(on_a) - equations(on_b))
        else:
            x = box(equations(x))
    if isinstance(solver, pjax.DouglasRachford):
        x = equations(x)
    elif isinstance(solver, pjax.DifferenceMap):
        x = equations(box(x) - (box(x) - x) / beta)
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_what_needs_copies_keeps_them():
    """Overlapping parts, three sets of one array, products: more than two sets, or read twice."""

    def overlapping(x):
        pjax.constrain(x[:2], sets.Ball(1.0))
        pjax.constrain(x[1:], sets.Ball(1.0))
        pjax.constrain(x, sets.NonNegative())

    def products(x):
        pjax.constrain(jnp.outer(x, x), sets.Box(0.0, 1.0))

    def chain(x):
        pjax.constrain(x[:2], sets.Ball(1.0))
        pjax.constrain(x[1:], sets.Ball(1.0))

    traced = [
        pjax.project(f, solver=pjax.DouglasRachford()).trace(jnp.ones(3))
        for f in (overlapping, products, chain)
    ]
    assert [graph.direct for graph in traced] == [False, False, True]
    for copies in (True, None):
        solve = pjax.project(overlapping, solver=pjax.DouglasRachford(), steps=300, copies=copies)
        x, info = solve(jnp.array([2.0, -3.0, 1.0]))
        assert float(info.gap) < 1e-5
        assert np.linalg.norm(x[:2]) < 1 + 1e-5 and np.min(x) > -1e-5


def test_complex_variables_iterate_as_by_hand():
    """Fourier magnitudes and a support, of a complex signal, in complex128."""
    rng = np.random.default_rng(5)
    start, mask = rng.normal(size=16) + 1j * rng.normal(size=16), np.arange(16) < 7
    measured = np.abs(np.fft.fft(np.where(mask, rng.uniform(size=16), 0)))

    def problem(z, m, mask):
        pjax.constrain(jnp.fft.fft(z), sets.Magnitude(m))
        pjax.constrain(z, sets.Support(mask))

    def magnitudes(z):
        spectrum = np.fft.fft(z)
        return np.fft.ifft(measured * spectrum / np.abs(spectrum))

    z = start
    for _ in range(10):
        on_a = magnitudes(z)
        z = z + np.where(mask, 2 * on_a - z, 0) - on_a
    solve = pjax.project(problem, solver=pjax.DouglasRachford(), steps=10)
    found, _ = solve(jnp.asarray(start, jnp.complex64), jnp.asarray(measured), jnp.asarray(mask))
    assert found.dtype == jnp.complex64
    np.testing.assert_allclose(found, magnitudes(z), atol=1e-4)


def test_arrays_are_constrained_together():
    """A ball of two arrays is the ball of the vector of both."""

    def joint(a, b):
        assert pjax.constrain((a, {"b": b}), sets.Ball(1.0))[0] is a

    solve = pjax.project(joint, (0, 1), solver=pjax.AlternatingProjections(), steps=1)
    (a, b), info = solve(jnp.array([3.0, 0.0]), jnp.array([[4.0]]))
    np.testing.assert_allclose(a, [0.6, 0.0], atol=1e-6)
    np.testing.assert_allclose(b, [[0.8]], atol=1e-6)
    assert float(info.gap) < 1e-6
    # To JAX it is the identity.
    z = jnp.array([1.0 + 2.0j, 3.0j])
    same = jax.jit(lambda z: pjax.constrain(z, sets.Equal(1.0j)))(z)
    np.testing.assert_array_equal(same, z)


def test_what_cannot_be_constrained_says_so():
    with pytest.raises(pjax.InputError, match="Box is a set of real arrays"):
        pjax.constrain(jnp.array([1.0j]), sets.Box(0.0, 1.0))
    with pytest.raises(pjax.InputError, match="Equal holds complex numbers"):
        pjax.constrain(jnp.ones(3), sets.Equal(1.0j))
    with pytest.raises(pjax.InputError, match="only arrays can lie in Ball"):
        pjax.constrain((jnp.ones(2), "a"), sets.Ball(1.0))
    with pytest.raises(pjax.InputError, match="must be real"):
        pjax.constrain((jnp.ones(2), jnp.arange(2)), sets.Ball(1.0))


def test_averages_are_brought_back_into_their_sets():
    """Each set's own nearest point; and of two convex sets the nearest point of both."""

    def fit(model, x, y):
        pjax.constrain(model["w"], sets.TopK(5))
        pjax.constrain(model["v"], sets.NonNegative())
        pjax.constrain(jnp.ravel(model["v"]), sets.Ball(1.0))
        return jnp.mean(jnp.square(jnp.tanh(x @ model["w"]) @ model["v"] - y))

    rng = np.random.default_rng(6)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((32, 4), (32, 2)))
    model = {"w": jnp.ones((4, 3)), "v": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    train = pjax.project(fit)
    state = train.init(model)
    for _ in range(5):
        model, state, _ = train.update(model, state, x, y)
    averaged = train.averaged(model, state)
    assert int(jnp.sum(averaged["w"] != 0)) > 5
    found = train.feasible(averaged, x, y)
    np.testing.assert_array_equal(found["w"], sets.TopK(5).project(averaged["w"]))
    nonnegative = np.maximum(np.asarray(averaged["v"]), 0)
    expected = nonnegative / max(1, np.linalg.norm(nonnegative))  # a cone, then a ball around 0
    np.testing.assert_allclose(found["v"], expected, atol=1e-6)
    # What is in the sets stays, whichever solver is used.
    classical = pjax.project(fit, solver=pjax.AlternatingProjections())
    for projected in (train, classical):
        again = projected.feasible(found, x, y)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, found)


def cosines(n):
    """The matrix of the orthonormal cosine transform."""
    k, i = np.ogrid[:n, :n]
    return np.sqrt(2 / n) * np.cos(np.pi * (i + 0.5) * k / n) / np.where(k == 0, np.sqrt(2), 1)


def test_orthogonal_matrices_are_views_whatever_the_set():
    """Known ones as they are, functions if they are declared, a batch at once, too."""
    matrix = cosines(8)
    x = np.random.default_rng(9).normal(size=8)
    single = jnp.asarray(matrix, jnp.float32)

    @pjax.isometry
    def transform(x):
        return 3.0 * (single @ x)

    @pjax.isometry
    def half(x):  # L Lᵀ = c I alone
        return single[:4] @ x

    cases = [
        (lambda x: single @ x, matrix),
        (lambda x: single[:5] @ x, matrix[:5]),
        (transform, 3 * matrix),
        (half, matrix[:4]),
    ]
    for function, rows in cases:
        for region in (sets.TopK(2), sets.Sphere(2.0)):

            def problem(x, function=function, region=region):
                pjax.constrain(function(x), region)

            found = nearest(problem, x)
            onto = np.asarray(region.project(jnp.asarray(rows @ x, jnp.float32)))
            step = rows.T @ (onto - rows @ x) / (rows @ rows.T)[0, 0]
            np.testing.assert_allclose(found, x + step, atol=1e-5)
    batch = jnp.asarray(np.random.default_rng(10).normal(size=(3, 8)), jnp.float32)
    np.testing.assert_allclose(jax.vmap(transform)(batch), 3 * batch @ single.T, atol=1e-5)
    gradient = jax.grad(lambda x: transform(x) @ jnp.ones(8))(batch[0])
    np.testing.assert_allclose(gradient, 3 * single.sum(0), atol=1e-5)


def test_what_keeps_no_lengths_says_so():
    for function, message in (
        (lambda x: x + 1.0, "not linear"),
        (lambda x: jnp.cumsum(x), "keeps no lengths"),
        (lambda x: x[:2] * jnp.array([1.0, 2.0]), "keeps no lengths"),
    ):
        with pytest.raises(pjax.InputError, match=message):
            pjax.isometry(function)(jnp.ones(4))
    with pytest.raises(pjax.InputError, match="uses traced values"):
        jax.jit(lambda a, x: pjax.isometry(lambda x: a @ x)(x))(jnp.eye(3), jnp.ones(3))
    with pytest.raises(pjax.InputError, match="real arrays"):
        pjax.isometry(lambda x: x)(jnp.arange(3))
