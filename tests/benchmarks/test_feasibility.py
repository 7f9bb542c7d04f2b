"""Commands on feasibility problems, and their solvers by hand, in small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_trace as pjax
from benchmarks import (
    binary_weights,
    combinatorial,
    feasibility,
    packing,
    phase,
    queens,
    sparse,
    sudoku,
    sudoku_puzzles,
)

FEW = ["--starts", "2", "--repeats", "1", "--timed-steps", "5", "--max-steps", "300"]


def test_both_recover_a_sparse_vector(run_command, tmp_path):
    sizes = ["--equations", "12", "--length", "16", "--nonzeros", "2", "--seeds", "2"]
    picture = tmp_path / "picture.png"
    status, output, content = run_command(sparse, *FEW, *sizes, "--plot", str(picture))
    assert status == 0 and picture.stat().st_size > 0
    ours, theirs = content["table"]
    assert (ours["method"], theirs["method"]) == ("pjax", "by hand")
    assert ours["solved"] == theirs["solved"] == ours["of"] == 4
    assert ours["steps"] == pytest.approx(theirs["steps"], abs=1)
    assert ours["x steps"] == pytest.approx(ours["steps"] / theirs["steps"])
    assert ours["us a step"] is None  # too few of them
    assert len(content["seeds"]) == 2 * 2
    assert output.out.splitlines()[0].split()[:3] == ["problem", "method", "solved"]


def problem(name):
    options = queens.parse(["--starts", "1", "--n", "4", "--vertices", "6", "--edges", "8"])
    options.variables, options.bits, options.disks, options.radius = 6, 8, 3, 0.2
    if name in combinatorial.PROBLEMS:
        return combinatorial.PROBLEMS[name](0, options)
    return {
        "sudoku": lambda: sudoku.instance(0, sudoku_puzzles.PUZZLES[0], 1, 0),
        "phase": lambda: phase.instance(8, 1, 0)[0],
        "disks": lambda: packing.instance("pairs", options),
    }[name]()


@pytest.mark.usefixtures("loose_promotion")
@pytest.mark.parametrize(
    "name",
    ["bits", "disks"]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("queens", "colouring", "sat")]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("sudoku", "phase")],
)
def test_both_make_the_same_steps(name):
    """Ten steps of the relaxation, by pjax-trace and by hand."""
    instance = problem(name)
    x0 = instance.starts[0]
    by_hand = feasibility.by_hand(instance.hand, 0.7, 10, feasibility.NEVER)
    expected, steps, _ = by_hand(x0, *instance.data)
    solver = pjax.ReflectReflectRelax(0.7)
    solve = pjax.project(instance.problem, solver=solver, steps=10, tol=0.0)
    found, info = solve(x0, *instance.data)
    assert int(steps) == int(info.steps)
    if name == "sudoku":  # whose clues are no variables
        clues, given = instance.data
        found = jnp.where(given, clues, found)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_answers_are_checked():
    board = np.zeros((4, 4))
    board[[0, 1, 2, 3], [1, 3, 0, 2]] = 1
    assert problem("queens").accepts(board)
    assert not problem("queens").accepts(np.eye(4))
    image = phase.instance(8, 1, 0)[1]
    turned = np.zeros_like(image)
    turned[:4, :4] = image[:4, :4][::-1, ::-1]
    assert phase.error(turned, image) == 0 and phase.error(0 * image, image) == 1
    disks = problem("disks")
    assert disks.accepts(np.array([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]]))
    assert not disks.accepts(np.array([[0.2, 0.2], [0.5, 0.2], [0.5, 0.8]]))


def test_puzzles_have_one_solution():
    for puzzle in sudoku_puzzles.PUZZLES:
        found = list(sudoku_puzzles.solutions([int(c) for c in puzzle]))
        assert len(found) == 1 and sudoku_puzzles.is_solution(found[0], puzzle)
        assert 22 <= 81 - puzzle.count("0") <= 26
        wrong = found[0][1:] + found[0][:1]
        assert not sudoku_puzzles.is_solution(wrong, puzzle)


def test_puzzles_are_read(tmp_path, capsys):
    file = tmp_path / "puzzles.txt"
    file.write_text(sudoku_puzzles.PUZZLES[3].replace("0", ".") + "\n\n")
    assert sudoku_puzzles.read(file) == [sudoku_puzzles.PUZZLES[3]]
    file.write_text("12345\n")
    assert sudoku.main(["--file", str(file)]) == 2
    assert "line 1: not 81 digits and dots" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("loose_promotion")
def test_weights_end_in_their_set(run_command):
    options = ["--batches", "4", "--width", "8", "--seeds", "0", "--learning-rate", "1e-2"]
    status, output, content = run_command(binary_weights, "--set", "binary", *options)
    assert status == 0
    ours, best = content["table"]
    assert ours["method"] == "sweep" and best["method"].startswith("straight-through Adam")
    assert ours["off"] <= 1e-6 and best["off"] <= 1e-6 and len(content["runs"]) == 2


@pytest.mark.usefixtures("loose_promotion")
def test_adam_is_projected():
    chosen = pjax.sets.NonNegative()
    method = binary_weights.adam(chosen, 1e-2, straight=False)
    model = binary_weights.mlp(jax.random.key(0), [5, 4, 3])
    state = method.init(model)
    x, y = np.ones((2, 5), np.float32), np.array([0, 2])
    model, state, _ = method.update(model, state, x, y)
    assert float(jnp.min(binary_weights.weights(model))) == 0
