"""Every solver against its textbook iteration, written out in float64 numpy on all copies.

A small feasibility problem is posed twice: as a JAX function, and as the sets of the product space
that it stands for, with one copy of ``x`` for every scalar equation.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from pjax_trace import sets
from tests.problems import copies_of, free_of, problem_of

ROWS = np.array([[1.0, 2.0, -0.5], [0.5, -1.0, 1.5]])
GOAL = np.array([1.0, -0.5])
START = np.array([2.0, -1.5, 3.0])


def spaces(function, start, metric):
    """The two lowerings of a problem, the values it starts from, and its graph."""
    traced = problem_of(function, jnp.asarray(start, jnp.float32), metric=metric)
    return free_of(traced), copies_of(traced), traced.values, traced.graph


class Oracle:
    """A product space: arrays of copies by name, and the projection of every node.

    ``nodes`` are functions that move some of the arrays of a point, in program order, constraints
    first and the parameter last. ``groups`` are the names of the colours' nodes.
    """

    def __init__(self, point, nodes, groups, values):
        self.start = {k: np.array(v, float) for k, v in point.items()}
        self.nodes, self.groups = nodes, groups
        self.read = values
        names = list(nodes)
        self.cycle = [[name] for name in (*reversed(names[:-1]), names[-1])]

    def project(self, point, group):
        moved = dict(point)
        for name in group:
            moved.update(self.nodes[name](point))
        return moved

    def reflect(self, point, group):
        return mix(-1.0, point, 2.0, self.project(point, group))


def mix(a, one, b, other):
    return {k: a * one[k] + b * other[k] for k in one}


def rows_onto(weight_x, weight_z, x, z):
    """The copies of x and z nearest to ``z = a·x``, for every row a of ROWS."""
    lam = (z - np.sum(ROWS * x, 1)) / (np.sum(ROWS**2, 1) / weight_x + 1 / weight_z)
    return x + ROWS * lam[:, None] / weight_x, z - lam / weight_z


def linear_in(region, inside):
    """``A x = b`` with x in a convex region: pjax's words, and the sets they stand for."""

    def function(x):
        pjax.constrain(jnp.asarray(ROWS, jnp.float32) @ x, sets.Equal(jnp.float32(GOAL)))
        pjax.constrain(x, region)

    def product(point):
        x, z = rows_onto(1.0, 1.0, point["x rows"], point["z"])
        return {"x rows": x, "z": z}

    def agree(point):
        mean = (point["x rows"].sum(0) + point["x set"]) / 3
        return {"x rows": np.tile(mean, (2, 1)), "x set": mean}

    oracle = Oracle(
        {"x rows": np.tile(START, (2, 1)), "x set": START, "z": ROWS @ START},
        {
            "dot_general": product,
            "Equal": lambda point: {"z": GOAL},
            "set": lambda point: {"x set": inside(point["x set"])},
            "x": agree,
        },
        (("Equal", "x"), ("dot_general", "set")),
        lambda point: [agree(point)["x set"], point["z"]],
    )
    return function, oracle, pjax.Metric()


def two_readers():
    """z = A x read by a box and by a sum, in a metric with a weight for each variable."""
    wx, wz, ws = 2.0, 3.0, 0.5

    def function(x):
        z = jnp.asarray(ROWS, jnp.float32) @ x
        pjax.constrain(z, sets.Box(-1.0, 0.25))
        pjax.constrain(jnp.sum(z), sets.Equal(0.1))

    def product(point):
        mean = (point["z box"] + point["z sum"]) / 2
        x, z = rows_onto(wx, 2 * wz, point["x"], mean)  # both readers' weight
        return {"x": x, "z box": z, "z sum": z}

    def total(point):
        lam = (point["s"] - point["z sum"].sum()) / (2 / wz + 1 / ws)
        return {"z sum": point["z sum"] + lam / wz, "s": point["s"] - lam / ws}

    z = ROWS @ START
    oracle = Oracle(
        {"x": np.tile(START, (2, 1)), "z box": z, "z sum": z, "s": z.sum()},
        {
            "dot_general": product,
            "Box": lambda point: {"z box": np.clip(point["z box"], -1.0, 0.25)},
            "reduce_sum": total,
            "Equal": lambda point: {"s": np.array(0.1)},
            "parameter": lambda point: {"x": np.tile(point["x"].mean(0), (2, 1))},
        },
        (("Box", "reduce_sum", "parameter"), ("dot_general", "Equal")),
        lambda point: [
            point["x"].mean(0),
            (point["z box"] + point["z sum"]) / 2,
            point["s"],
        ],
    )
    return function, oracle, pjax.Metric(parameters=wx, outputs=wz, paths={"reduce_sum": ws})


def clipped(x):
    return np.clip(x, -0.5, 0.75)


def in_ball(x):
    away = x - 0.2
    return 0.2 + away * min(1.0, 0.9 / np.linalg.norm(away))


PROBLEMS = {
    "box": linear_in(sets.Box(-0.5, 0.75), clipped),
    "ball": linear_in(sets.Ball(0.9, 0.2), in_ball),
    "two readers": two_readers(),
}


# The iterations, as textbooks have them: u → (u⁺, the point whose consensus is the answer).


def alternating(relaxation):
    def step(o, u):
        new = o.project(o.project(u, o.groups[0]), o.groups[1])
        return mix(1 - relaxation, u, relaxation, new)

    return step, lambda o, u: u


def reflecting(relaxation):
    def step(o, u):
        new = o.reflect(o.reflect(u, o.groups[0]), o.groups[1])
        return mix(1 - relaxation, u, relaxation, new)

    return step, lambda o, u: o.project(u, o.groups[0])


def difference(beta):
    """D(u) = u + β (P_B f_A u − P_A f_B u)."""

    def estimates(o, u):
        a, b = (o.project(u, group) for group in o.groups)
        f_a = mix(1 + 1 / beta, a, -1 / beta, u)
        f_b = mix(1 - 1 / beta, b, 1 / beta, u)
        return o.project(f_a, o.groups[1]), o.project(f_b, o.groups[0])

    def step(o, u):
        on_b, on_a = estimates(o, u)
        return mix(1.0, u, beta, mix(1.0, on_b, -1.0, on_a))

    return step, lambda o, u: estimates(o, u)[1]


def cyclic(o, u):
    for group in o.cycle:
        u = o.project(u, group)
    return u


def cyclic_reflections(relaxation):
    def step(o, u):
        for k, group in enumerate(o.cycle):
            after = o.cycle[(k + 1) % len(o.cycle)]
            u = mix(1 - relaxation, u, relaxation, o.reflect(o.reflect(u, group), after))
        return u

    return step, lambda o, u: o.project(u, o.groups[0])


SOLVERS = [
    (pjax.AlternatingProjections(), alternating(1.0)),
    (pjax.AlternatingProjections(relaxation=1.6), alternating(1.6)),
    (pjax.AlternatingProjections(relaxation=0.5), alternating(0.5)),
    (pjax.AlternatingReflections(), reflecting(1.0)),
    (pjax.AlternatingReflections(relaxation=0.3), reflecting(0.3)),
    (pjax.DouglasRachford(), reflecting(0.5)),
    (pjax.DouglasRachford(relaxation=0.8), reflecting(0.8)),
    (pjax.DifferenceMap(), difference(0.8)),
    (pjax.DifferenceMap(beta=1.0), difference(1.0)),
    (pjax.DifferenceMap(beta=-1.0), difference(-1.0)),
    (pjax.DifferenceMap(beta=-0.6), difference(-0.6)),
    (pjax.CyclicProjections(), (cyclic, lambda o, u: u)),
    (pjax.CyclicDouglasRachford(), cyclic_reflections(0.5)),
    (pjax.CyclicDouglasRachford(relaxation=0.9), cyclic_reflections(0.9)),
]


@pytest.fixture(scope="module", params=list(PROBLEMS))
def problem(request):
    function, oracle, metric = PROBLEMS[request.param]
    return oracle, spaces(function, START, metric)


def iterates(solver, space, values, steps):
    """The answers after every step."""

    @jax.jit
    def run(carry):
        def step(carry, _):
            carry, distances = solver.step(space, carry)
            return carry, (solver.values(space, carry), distances)

        return jax.lax.scan(step, carry, None, length=steps)[1]

    return run(solver.init(space, values))


def test_the_colours_are_the_oracles(problem):
    oracle, (_, copies, _, graph) = problem
    kinds = {"set": "Box Ball", "parameter": "x"}
    for group, names in zip(copies.groups, oracle.groups, strict=True):
        assert len(group) == len(names)
        for name in names:
            assert any(node.name in kinds.get(name, name).split() for node in group)
    assert [len(group) for group in copies.cycle] == [1] * (len(graph.constraints) + 1)


@pytest.mark.parametrize("solver, textbook", SOLVERS, ids=[str(s) for s, _ in SOLVERS])
def test_iterates_are_the_textbooks(problem, solver, textbook):
    oracle, (_, copies, values, _) = problem
    found, _ = iterates(solver, copies, values, 8)
    step, answer = textbook
    u = oracle.start
    for k in range(8):
        u = step(oracle, u)
        for ours, theirs in zip(found, oracle.read(answer(oracle, u)), strict=True):
            np.testing.assert_allclose(ours[k], theirs, rtol=2e-5, atol=2e-5)


def test_momentum_is_nesterovs(problem):
    """On the consensus state: s⁺ = mean P_B P_A y, y⁺ = s⁺ + m (s⁺ − s), with restarts."""
    oracle, (free, copies, values, _) = problem
    solver = pjax.AlternatingProjections(momentum=0.7)
    found = [iterates(solver, space, values, 8)[0] for space in (free, copies)]

    def expand(state):
        """All copies at the values of their variables."""
        state = dict(zip(("x", "z", "s"), state, strict=False))
        return {
            name: np.tile(state["x"], (2, 1)) if array.ndim == 2 else state[name[0]]
            for name, array in oracle.start.items()
        }

    y = last = [np.asarray(v, float) for v in oracle.read(oracle.start)]
    for k in range(8):
        u = oracle.project(oracle.project(expand(y), oracle.groups[0]), oracle.groups[1])
        state = oracle.read(u)
        masses = [np.asarray(free.problem.mass(v)) for v in free.problem.graph.variables]
        back = sum(
            np.sum(m * (ahead - s) * (s - before))
            for m, ahead, s, before in zip(masses, y, state, last, strict=True)
        )
        momentum = 0.0 if k == 0 or back >= 0 else 0.7
        y = [s + momentum * (s - before) for s, before in zip(state, last, strict=True)]
        last = state
        for ours in found:
            for array, theirs in zip(ours, state, strict=True):
                np.testing.assert_allclose(array[k], theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_of_any_solver(problem, nesterov):
    """On the governing point, u⁺ = T(u + m v) or T(u) + m v with v the last step."""
    oracle, (_, copies, values, _) = problem
    momentum = pjax.Momentum(0.6, nesterov=nesterov)
    solver = pjax.Accelerated(pjax.DouglasRachford(), momentum)
    found, _ = iterates(solver, copies, values, 6)
    step, answer = reflecting(0.5)
    u = last = oracle.start
    for k in range(6):
        ahead = mix(1.6, u, -0.6, last)
        plain = step(oracle, ahead if nesterov else u)
        u, last = plain if nesterov else mix(1.0, plain, 1.0, mix(1.0, ahead, -1.0, u)), u
        for ours, theirs in zip(found, oracle.read(answer(oracle, u)), strict=True):
            np.testing.assert_allclose(ours[k], theirs, rtol=2e-5, atol=2e-5)


def test_inner_products_are_those_of_the_product_space(problem):
    _, (free, copies, values, graph) = problem
    other = tuple(2.0 - v for v in values)
    inner = sum(
        np.sum(free.problem.mass(v) * a * b)
        for v, a, b in zip(graph.variables, values, other, strict=True)
    )
    found = [space.inner(space.expand(values), space.expand(other)) for space in (free, copies)]
    np.testing.assert_allclose(found, inner, rtol=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_inner_products_where_outputs_have_copies(name):
    """All copies, and those of what makes a variable, weigh what the variable does."""
    function, _, metric = PROBLEMS[name]
    x = jnp.asarray(START, jnp.float32)
    traced = problem_of(function, x, metric=metric, product=True)
    other = tuple(2.0 - v for v in traced.values)
    graph, weights = traced.graph, metric.resolve(traced.graph)
    readers = {v: len(edges) for v, edges in graph.readers.items()}
    (x,) = graph.parameters
    readers[x] += 1  # two rows read it at once
    inner = sum(
        weights[v] * (readers[v] + (v is not x)) * np.sum(a * b)
        for v, a, b in zip(graph.variables, traced.values, other, strict=True)
    )
    for space in (free_of(traced), copies_of(traced)):
        found = space.inner(space.expand(traced.values), space.expand(other))
        np.testing.assert_allclose(found, inner, rtol=1e-5)


@pytest.mark.parametrize(
    "solver",
    [pjax.AlternatingProjections(), pjax.DouglasRachford()],
    ids=lambda s: type(s).__name__,
)
def test_anderson_ends_on_affine_sets(solver):
    """In as many steps as the point has directions that matter, and one more."""

    def function(x):
        pjax.constrain(jnp.asarray(ROWS, jnp.float32) @ x, sets.Equal(jnp.float32(GOAL)))

    free, copies, values, _ = spaces(function, START, pjax.Metric())
    space = copies if solver.needs_copies else free
    accelerated = pjax.Accelerated(solver, pjax.Anderson(memory=8))
    _, plain = iterates(solver, space, values, 9)
    (x, *_), moved = iterates(accelerated, space, values, 9)
    np.testing.assert_allclose(ROWS @ np.asarray(x[-1], float), GOAL, atol=1e-4)
    assert np.sum(moved[-1]) < 1e-4 * np.sum(plain[-1])


def test_what_can_be_accelerated():
    solver = pjax.Accelerated(pjax.CyclicProjections(), pjax.Anderson())
    assert solver.schedules == ("cyclic",) and solver.needs_copies
    assert solver == pjax.Accelerated(pjax.CyclicProjections(), pjax.Anderson())
    for bad in (solver, pjax.AlternatingProjections(momentum=0.5)):
        with pytest.raises(pjax.InputError, match="is accelerated already"):
            pjax.Accelerated(bad, pjax.Anderson())
    with pytest.raises(pjax.InputError, match="a Sweep is accelerated between updates"):
        pjax.Accelerated(pjax.Sweep(), pjax.Anderson())
    for wrong in (("DouglasRachford", pjax.Anderson()), (pjax.DouglasRachford(), 0.9)):
        with pytest.raises(pjax.InputError, match="takes a solver such as"):
            pjax.Accelerated(*wrong)


def test_distances_are_those_moved(problem):
    """Of a step of alternating projections, squared and in the metric, by constraint."""
    oracle, (free, copies, values, graph) = problem
    solver = pjax.AlternatingProjections()
    (_, one), (_, other) = (iterates(solver, s, values, 4) for s in (free, copies))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    assert one.shape == (4, len(graph.constraints)) and np.all(np.asarray(one) >= 0)
    boxes = [i for i, c in enumerate(graph.constraints) if c.name == "Equal"]
    if "z" in oracle.start:  # the first problem: z is moved to the goal first of all
        moved = np.sum((ROWS @ START - GOAL) ** 2)
        np.testing.assert_allclose(one[0, boxes[0]], moved, rtol=1e-5)


def test_beta_one_is_douglas_rachford(problem):
    _, (_, copies, values, _) = problem
    governing = []
    for solver in (pjax.DifferenceMap(beta=1.0), pjax.DouglasRachford()):
        carry = solver.init(copies, values)
        for _ in range(3):
            carry, _ = solver.step(copies, carry)
        governing.append(carry)
    for a, b in zip(*governing, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "solver",
    [
        pjax.AlternatingProjections(),
        pjax.AlternatingProjections(momentum=0.9),
        pjax.DouglasRachford(),
        pjax.DifferenceMap(beta=0.8),
        pjax.DifferenceMap(beta=-0.8),
        pjax.CyclicProjections(),
        pjax.CyclicDouglasRachford(),
    ],
    ids=str,
)
def test_converges_to_a_feasible_point(solver):
    function, _, metric = PROBLEMS["box"]
    train = pjax.project(function, solver=solver, steps=1000, metric=metric)
    x, info = train(jnp.asarray(START, jnp.float32))
    np.testing.assert_allclose(ROWS @ np.asarray(x, float), GOAL, atol=1e-3)
    np.testing.assert_allclose(x, clipped(np.asarray(x)), atol=1e-3)
    assert info.gap < 1e-3


def test_solvers_are_values():
    assert pjax.DouglasRachford() == pjax.DouglasRachford(relaxation=0.5)
    assert hash(pjax.DouglasRachford()) == hash(pjax.DouglasRachford(0.5))
    assert pjax.DouglasRachford(0.4) != pjax.DouglasRachford()
    assert "beta=0.7" in repr(pjax.DifferenceMap(beta=0.7))
    assert eqx.tree_equal(pjax.DifferenceMap(), pjax.DifferenceMap(beta=0.8))


@pytest.mark.parametrize(
    "make, parameter, bad",
    [
        (pjax.AlternatingProjections, "relaxation", (0.0, -1.0, 2.5, float("nan"))),
        (pjax.AlternatingProjections, "momentum", (1.0, -0.1, float("nan"))),
        (pjax.AlternatingReflections, "relaxation", (0.0, 1.1, float("nan"))),
        (pjax.DouglasRachford, "relaxation", (0.0, 1.5, float("inf"))),
        (pjax.DifferenceMap, "beta", (0.0, float("inf"), float("-inf"), float("nan"))),
        (pjax.CyclicDouglasRachford, "relaxation", (0.0, 2.0)),
    ],
)
def test_parameters_out_of_range(make, parameter, bad):
    for value in bad:
        with pytest.raises(pjax.InputError, match=f"{make.__name__}: {parameter} must be"):
            make(**{parameter: value})


@pytest.mark.parametrize("value", ["0.5", None, (0.5,)])
def test_parameters_that_are_no_numbers(value):
    for make, parameter in [
        (pjax.AlternatingProjections, "momentum"),
        (pjax.DouglasRachford, "relaxation"),
        (pjax.DifferenceMap, "beta"),
    ]:
        with pytest.raises(pjax.InputError, match=parameter):
            make(**{parameter: value})


@pytest.mark.parametrize("tol", [None, 1e-2])
def test_a_step_measures_the_gaps_that_the_problem_has(tol):
    """What alternating projections find by the code of a step is what is found without it."""

    def fit(w, x):
        pjax.constrain(jnp.tanh(x @ w["a"]) @ w["b"], pjax.sets.Equal(0.3))

    w = {"a": jnp.full((3, 4), 0.2), "b": jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)}
    x = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)

    class Apart(pjax.AlternatingProjections):
        once = False

    def solved(solver):
        return pjax.project(fit, solver=solver, steps=7, tol=tol)(w, x)

    (one, info), (other, expected) = solved(pjax.AlternatingProjections()), solved(Apart())
    assert int(info.steps) == int(expected.steps)
    np.testing.assert_allclose(info.history, expected.history, rtol=1e-5)
    np.testing.assert_allclose(info.distances, expected.distances, rtol=1e-4, atol=1e-6)
    for a, b in zip(one.values(), other.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
