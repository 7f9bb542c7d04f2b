"""What all sets promise: dtypes, transforms, degenerate points, shapes, and what is refused."""

import functools
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import sets
from pjax_trace.sets import base

A = np.array([[1.0, 2, 0, 0], [0, 0, 1, -1]])
# For every set: one that fits 4 x 4 arrays, and a shape that does not fit, if there is any.
CASES = {
    "Affine": (sets.Affine(A, [1.0, 0.5], axis=-1), (4, 3)),
    "AtLeast": (sets.AtLeast(2, -1.0, 1.0, axis=0), (1, 3)),
    "AtMost": (sets.AtMost(2, axis=-1), (3, 1)),
    "AtMostWrong": (sets.AtMostWrong(1, [0, 3, 1, 1], 0.1), (4, 3)),
    "Ball": (sets.Ball(0.5, np.ones(4), axis=-1), (4, 3)),
    "Binary": (sets.Binary(np.zeros((4, 1)), 1.0), (3, 4)),
    "Box": (sets.Box(-np.ones(4), jnp.inf), (4, 3)),
    "Circulant": (sets.Circulant(), (4, 3)),
    "Clause": (sets.Clause(np.array([1, -1, 0, 1]), axis=-1), (4, 3)),
    "Discrete": (sets.Discrete((0, 2, -1)), None),
    "DoublyStochastic": (sets.DoublyStochastic(), (4, 3)),
    "Each": (sets.Each(sets.Equal(np.ones(4))), (4, 3)),
    "Equal": (sets.Equal(np.ones((4, 4))), (4, 3)),
    "Exactly": (sets.Exactly(2), (1,)),
    "From": (sets.From(lambda x, y: jnp.minimum(x, y.astype(x.dtype)), np.ones((1, 4))), (4, 3)),
    "GroupSparse": (sets.GroupSparse(2, axis=-1), (1, 3)),
    "HalfSpace": (sets.HalfSpace(A[0], 0.5, axis=-1), (4, 3)),
    "Hankel": (sets.Hankel(), (4,)),
    "HyperPlane": (sets.HyperPlane(np.arange(4), axis=-1), (4, 3)),
    "HyperSlab": (sets.HyperSlab(A[1], -0.5, np.full((4, 1), 0.5), axis=-1), (3, 4)),
    "KWinners": (sets.KWinners(2, axis=-1), (4, 1)),
    "L1Ball": (sets.L1Ball(np.full((1, 4), 0.5), axis=0), (4, 3)),
    "L1Sphere": (sets.L1Sphere(np.full((4, 1), 0.5), axis=-1), (3, 4)),
    "LInfBall": (sets.LInfBall(0.5, np.ones(4)), (4, 3)),
    "Magnitude": (sets.Magnitude(np.arange(4)), (4, 3)),
    "Monotone": (sets.Monotone(axis=1), (4,)),
    "NOfM": (sets.NOfM(1, 2), (4, 3)),
    "NonNegative": (sets.NonNegative(), None),
    "NuclearBall": (sets.NuclearBall(0.5), (4,)),
    "OneHot": (sets.OneHot(axis=-1), ()),
    "Orthogonal": (sets.Orthogonal(), (4,)),
    "PSD": (sets.PSD(), (4, 3)),
    "Permutation": (sets.Permutation(), (4, 3)),
    "Product": (sets.Product([sets.NonNegative(), sets.Ball(1.0)], [1, 3]), (3, 4)),
    "Rank": (sets.Rank(2), (4, 1)),
    "SecondOrderCone": (sets.SecondOrderCone(axis=-1), ()),
    "Simplex": (sets.Simplex(2.0, axis=-1), ()),
    "SpectralBall": (sets.SpectralBall(0.5), (4,)),
    "SpectralBox": (sets.SpectralBox(-0.5, jnp.inf), (4, 3)),
    "Spectraplex": (sets.Spectraplex(), (4, 3)),
    "Sphere": (sets.Sphere(0.5, axis=0), ()),
    "Stacked": (sets.Stacked([sets.Ball(1.0)] * 4, axis=1), (4, 3)),
    "SumTo": (sets.SumTo(1.0, axis=0), ()),
    "Support": (sets.Support(A[0] > 0), (4, 3)),
    "Symmetric": (sets.Symmetric(), (4, 3)),
    "Toeplitz": (sets.Toeplitz(), (4,)),
    "TopK": (sets.TopK(2, axis=-1), (4, 1)),
    "Union": (sets.Union(sets.Equal(0.0), sets.Ball(0.5, np.ones(4))), (4, 3)),
}
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
EVERY = pytest.mark.parametrize("name", CASES)


CONVEX = """
Affine Ball Box Circulant DoublyStochastic Each Equal HalfSpace Hankel HyperPlane HyperSlab L1Ball
LInfBall Monotone NonNegative NuclearBall PSD Product SecondOrderCone Simplex SpectralBall
SpectralBox Spectraplex Stacked SumTo Support Symmetric Toeplitz
""".split()
INTERVALS = "Box Each Equal LInfBall NonNegative Support".split()


def test_the_table_names_every_set():
    text = (Path(__file__).parents[1] / "pjax_trace/README.md").read_text()
    table = text.split("### Sets")[1].split("###")[0]
    rows = [
        [re.findall(r"`([A-Z]\w+)`", cell) for cell in row.split("|")]
        for row in table.splitlines()
        if row.startswith("|")
    ]
    convex, other = (sorted(n for row in rows for n in row[i]) for i in (2, 3))
    assert convex == sorted([*CONVEX, "From"])
    assert other == sorted(set(CASES) - set(convex))


DEGENERATE = [
    *(np.zeros((4, 4)), np.ones((4, 4)), -np.eye(4), np.eye(4)[::-1], np.full((4, 4), 1e4)),
    *(1e-30 * X, 1e-42 * X, 1e30 * X),
]
STACK = np.array([X, 2 * X, -X, *DEGENERATE], np.float32)


@functools.cache
def mapped(name):
    """The projection of many points, and those of the stack."""
    project = jax.jit(jax.vmap(CASES[name][0].project))
    return project, project(STACK)


@EVERY
def test_under_transforms(name):
    """Mapped, in float64, as an argument of a compiled function: it is the same point."""
    one, (project, y) = CASES[name][0], mapped(name)
    assert y.shape == STACK.shape and y.dtype == STACK.dtype
    leaves = jax.tree.map(lambda leaf: leaf if callable(leaf) else jnp.asarray(leaf), one)
    alone = eqx.filter_jit(lambda one, x: one.project(x))
    for x, z in zip(STACK[:3], y, strict=False):
        np.testing.assert_allclose(alone(leaves, jnp.asarray(x)), z, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        wide = project(STACK.astype(float))
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide[:3], y[:3], rtol=1e-5, atol=1e-5)
    for odd in (None, object(), jax.ShapeDtypeStruct((), jnp.float32)):
        assert type(jax.tree.map(lambda leaf: odd, one)) is type(one)  # noqa: B023


@EVERY
def test_degenerate_points(name):
    """Finite points become finite points, which do not move again as far as floats tell."""
    project, y = mapped(name)
    assert jnp.isfinite(y).all()
    size = 1 + np.abs(y).max((1, 2), keepdims=True)
    np.testing.assert_allclose(project(y) / size, y / size, atol=1e-5)


@pytest.mark.thinned(4)
@EVERY
def test_constrained(name):
    """A solver's step is the projection; the rule says whether the set is convex."""
    one, (_, y) = CASES[name][0], mapped(name)
    solve = pjax.project(
        lambda x: pjax.constrain(x, one), solver=pjax.AlternatingProjections(), steps=1
    )
    np.testing.assert_allclose(solve(X)[0], y[0], rtol=1e-5, atol=1e-5)
    (rule,) = (c.rule for c in solve.trace(X).constraints if hasattr(c.rule, "structure"))
    assert rule.convex is one.convex


@EVERY
def test_shapes(name):
    one, bad = CASES[name]
    one.fits((4, 4))
    with jax.enable_x64(True):
        one.fits((4, 4), jnp.float64)
    if bad is not None:
        with pytest.raises(pjax.InputError, match=name):
            one.fits(bad)
        with pytest.raises(pjax.InputError, match=f"{name} does not fit"):
            pjax.constrain(jnp.ones(bad), one)


EMPTY = [
    sets.Simplex(axis=-1),
    sets.Ball(1.0, axis=0),
    sets.Sphere(1.0),
    sets.L1Ball(1.0),
    sets.Magnitude(1.0),
    sets.SumTo(1.0, axis=1),
    sets.Monotone(),
    sets.SecondOrderCone(axis=0),
    sets.TopK(0),
    sets.OneHot(axis=-1),
    sets.Union(sets.Equal(1.0)),
    sets.Each(sets.Equal(1.0)),
    sets.Discrete([1.0]),
    sets.GroupSparse(0),
    sets.Toeplitz(),
    sets.Rank(0),
    sets.Orthogonal(),
]


@pytest.mark.parametrize("one", EMPTY, ids=lambda one: type(one).__name__)
def test_empty_and_small_arrays(one):
    for shape in [(0, 3), (3, 0)]:
        assert one.project(jnp.zeros(shape)).shape == shape
    assert jnp.isfinite(jax.jit(lambda x: one.project(x))(jnp.full((1, 1), -2.0))).all()


@pytest.mark.parametrize(
    "one", [sets.Symmetric(), sets.PSD(), sets.Permutation(), sets.DoublyStochastic()]
)
def test_small_square_matrices(one):
    assert one.project(jnp.zeros((2, 0, 0))).shape == (2, 0, 0)
    assert one.project(jnp.full((1, 1), 0.5)) in (0.5, 1.0)


REFUSED = {
    "Affine has infinity": lambda: sets.Affine(np.ones((1, 2)), np.inf),
    "Affine has NaN": lambda: sets.Affine([[np.nan, 1.0]], 1.0),
    "Affine: the equations have no": lambda: sets.Affine(np.ones((2, 3)), [1.0, 2.0]),
    "Affine: the equations have no solution": lambda: sets.Affine(np.zeros((1, 3)), 1.0),
    "Affine: a matrix of": lambda: sets.Affine(np.ones((2, 3)), np.ones(3)),
    "AtLeast: k = -1": lambda: sets.AtLeast(-1),
    "AtMost has NaN": lambda: sets.AtMost(1, np.nan),
    "AtMostWrong: labels": lambda: sets.AtMostWrong(1, [0.0, 1.0]),
    "AtMostWrong has a negative": lambda: sets.AtMostWrong(1, [-1, 1]),
    "AtMostWrong has infinity": lambda: sets.AtMostWrong(1, [1], np.inf),
    "AtMostWrong: wrong = -1": lambda: sets.AtMostWrong(-1, [1]),
    "Binary: low 1.0 exceeds": lambda: sets.Binary(1.0, 0.0),
    "Clause is empty": lambda: sets.Clause([0, 0]),
    "Discrete: values": lambda: sets.Discrete([]),
    "Discrete has infinity": lambda: sets.Discrete([0.0, np.inf]),
    "Each: ": lambda: sets.Each(jnp.ones(2)),
    "a count must be": lambda: sets.Exactly(1.5),
    "GroupSparse: k": lambda: sets.GroupSparse(-1),
    "HalfSpace: the normal is zero": lambda: sets.HalfSpace(np.zeros(3)),
    "HalfSpace has NaN": lambda: sets.HalfSpace(np.ones(3), np.nan),
    "HyperPlane has infinity": lambda: sets.HyperPlane(np.ones(3), np.inf),
    "HyperSlab is empty": lambda: sets.HyperSlab(np.ones(3), 1.0, 0.0),
    "L1Ball has a negative radius": lambda: sets.L1Ball([-1.0]),
    "L1Sphere has infinity": lambda: sets.L1Sphere(np.inf),
    "LInfBall has a negative radius": lambda: sets.LInfBall(-1.0),
    "LInfBall has NaN in its center": lambda: sets.LInfBall(1.0, np.nan),
    "Magnitude has a negative": lambda: sets.Magnitude([1.0, -1.0]),
    "NOfM: n = 3": lambda: sets.NOfM(3, 2),
    "NOfM: m is zero": lambda: sets.NOfM(0, 0),
    "NuclearBall has a negative": lambda: sets.NuclearBall(-1.0),
    "OneHot: low": lambda: sets.OneHot(low=2.0),
    "Product: sizes": lambda: sets.Product([sets.PSD()], [1, 2]),
    "Rank: k": lambda: sets.Rank(-1),
    "Simplex has a negative total": lambda: sets.Simplex(-1.0),
    "Simplex has infinity": lambda: sets.Simplex(np.inf),
    "SpectralBall has NaN": lambda: sets.SpectralBall(np.nan),
    "SpectralBox is empty": lambda: sets.SpectralBox(1.0, 0.0),
    "Spectraplex has a negative trace": lambda: sets.Spectraplex(-1.0),
    "Sphere has infinity": lambda: sets.Sphere(np.inf),
    "Stacked needs": lambda: sets.Stacked([]),
    "SumTo has NaN": lambda: sets.SumTo(np.nan),
    "TopK: k": lambda: sets.TopK(-1),
    "Union of no sets": lambda: sets.Union(),
    "Union: 3.0 is no": lambda: sets.Union(3.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_sets_are_refused(message):
    with pytest.raises(pjax.InputError, match=message):
        REFUSED[message]()


LATE = {
    "Affine": lambda bad: sets.Affine(jnp.ones((2, 16)), jnp.stack([bad, bad + 1])),
    "Ball": sets.Ball,
    "Sphere": sets.Sphere,
    "L1Ball": sets.L1Ball,
    "L1Sphere": sets.L1Sphere,
    "LInfBall": sets.LInfBall,
    "Simplex": sets.Simplex,
    "Magnitude": sets.Magnitude,
    "HalfSpace": lambda bad: sets.HalfSpace(0 * bad, bad),
    "HyperPlane": lambda bad: sets.HyperPlane(0 * bad, bad),
    "HyperSlab": lambda bad: sets.HyperSlab(1.0, 0.0, bad),
    "SpectralBall": sets.SpectralBall,
    "SpectralBox": lambda bad: sets.SpectralBox(0.0, bad),
    "NuclearBall": sets.NuclearBall,
    "Spectraplex": sets.Spectraplex,
    "Clause": lambda bad: sets.Clause(0 * bad),
    "AtMostWrong": lambda bad: sets.AtMostWrong(1, jnp.full(4, bad.astype(int))),
    "Union": lambda bad: sets.Union(sets.Ball(bad), sets.Simplex(bad)),
}


@pytest.mark.parametrize("name", LATE)
def test_sets_that_turn_out_to_be_empty_answer_nan(name):
    """Even for points that would be in them: NaN is what no solver takes for a solution."""
    for x in (X, 0 * X):
        y = jax.jit(lambda bad, x: LATE[name](bad).project(x))(jnp.array(-1.0), x)
        assert jnp.isnan(y).all()


def test_k_is_no_larger_than_what_there_is():
    for one in (sets.TopK(4), sets.KWinners(4), sets.Exactly(4), sets.AtLeast(4), sets.AtMost(4)):
        one.fits((4,))
        with pytest.raises(pjax.InputError, match=r"k = 4 is negative or exceeds 3"):
            one.fits((3,))
    with pytest.raises(pjax.InputError, match="k = 3 is negative or exceeds 2"):
        sets.Rank(3).fits((2, 5))
    with pytest.raises(pjax.InputError, match="k = 3 is negative or exceeds 2"):
        sets.GroupSparse(3, axis=-1).fits((2, 5))


def test_axes():
    with pytest.raises(pjax.InputError, match="Simplex.*axis 2"):
        sets.Simplex(axis=2).fits((3, 3))
    with pytest.raises(pjax.InputError, match="TopK"):
        sets.TopK(1, axis=(0, 0)).fits((3, 3))
    assert sets.Simplex(axis=0) != sets.Simplex(axis=1)


def test_threshold_is_a_root():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(100, 7)), jnp.float32)
    for extra, total in [(0, 0.5), (1, 0.5)]:
        level = base.threshold(x, jnp.full((100, 1), total), extra)
        above = jnp.sum(jnp.maximum(x - level, 0), -1, keepdims=True)
        np.testing.assert_allclose(above, total + extra * level, atol=1e-5)
