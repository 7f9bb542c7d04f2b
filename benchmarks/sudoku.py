"""Sudoku beside a solver written by hand: ``python -m benchmarks.sudoku``.

A puzzle is an array of zeros and ones, row by column by digit. Every cell has one digit, and every
row, column and box has each digit once: four sets, each with a copy of the array (divide and
concur). The clues are no variables.

After a comparison start by start, every puzzle is solved with restarts, by both.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.feasibility import (
    ByHand,
    Instance,
    by_hand,
    compare,
    draw,
    feasibility_parser,
    report,
    together,
    uniform_starts,
)
from benchmarks.sudoku_puzzles import PUZZLES, PuzzleError, is_solution, read
from benchmarks.tables import format_table

RESTARTED = {"method": "", "slots": "d", "solved": "d", "of": "d", "puzzles a second": ".2f"}


def problem(x: Array, clues: Array, given: Array) -> None:
    """What pjax-trace is given."""
    full = jnp.where(given, clues, x)
    boxes = full.reshape(3, 3, 3, 3, 9)
    pjax.constrain(full, pjax.sets.OneHot(axis=2))
    pjax.constrain(full, pjax.sets.OneHot(axis=1))
    pjax.constrain(full, pjax.sets.OneHot(axis=0))
    pjax.constrain(boxes, pjax.sets.OneHot(axis=(1, 3)))


def one_hot(x: Array, axis: int) -> Array:
    """The nearest array with one 1 along an axis, and zeros."""
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return (places == jnp.argmax(x, axis, keepdims=True)).astype(x.dtype)


def turned(x: Array) -> Array:
    """Boxes as rows, and rows as boxes."""
    return x.reshape(3, 3, 3, 3, 9).transpose(0, 2, 1, 3, 4).reshape(9, 9, 9)


def divide(u: Array, clues: Array, given: Array) -> Array:
    """Every copy in its set."""
    boxes = turned(one_hot(turned(u[3]), 1))
    return jnp.stack([one_hot(u[0], 2), one_hot(u[1], 1), one_hot(u[2], 0), boxes])


def concur(u: Array, clues: Array, given: Array) -> Array:
    """All copies the same, with the clues."""
    return jnp.broadcast_to(jnp.where(given, clues, jnp.mean(u, 0)), u.shape)


def spread(x: Array, clues: Array, given: Array) -> Array:
    """Four copies."""
    return jnp.broadcast_to(jnp.where(given, clues, x), (4, 9, 9, 9))


def gather(u: Array, clues: Array, given: Array) -> Array:
    """The mean of the copies."""
    return concur(u, clues, given)[0]


HAND = ByHand(divide, concur, spread=spread, gather=gather)


def instance(number: int, puzzle: str, starts: int, seed: int) -> Instance:
    """A puzzle and its starts."""
    digits = np.array([int(c) for c in puzzle]).reshape(9, 9)
    given = jnp.asarray(digits > 0)[..., None]
    clues = jnp.asarray(digits[..., None] == np.arange(1, 10), jnp.float32)

    def accepts(x: Any) -> bool:
        full = np.where(given, clues, x)  # What nobody reads of x keeps its value.
        return is_solution((1 + np.argmax(full, 2)).reshape(-1).tolist(), puzzle)

    points = uniform_starts(seed + number, starts, (9, 9, 9))
    return Instance(f"sudoku {number}", problem, (clues, given), HAND, points, accepts)


def start(key: Any) -> Array:
    """A start for restarts."""
    return jax.random.uniform(key, (9, 9, 9))


def restarted_by_hand(one: Instance, key: Any, options: argparse.Namespace) -> Array:
    """Start after start, until one leads to a solution."""
    solve = by_hand(one.hand, options.beta, options.max_steps, options.tol)
    x = jnp.zeros((9, 9, 9))
    for number in range(options.starts):
        x, _, residual = solve(start(jax.random.fold_in(key, number)), *one.data)
        if residual <= options.tol:
            break
    return x


def restarted(one: Instance, key: Any, options: argparse.Namespace, slots: int) -> Array:
    """The same by pjax-trace, with some starts at the same time."""
    return pjax.solve(
        one.problem,
        start,
        *one.data,
        solver=pjax.ReflectReflectRelax(options.beta),
        max_steps=options.max_steps,
        tol=options.tol,
        restarts=options.starts - 1,
        slots=slots,
        key=key,
    ).x


def with_restarts(instances: Sequence[Instance], options: argparse.Namespace) -> list[dict]:
    """Puzzles a second by both, where all starts but the first are restarts.

    A start that fails takes as long as ten that succeed, and rounding decides which do: hence every
    puzzle several times, with other starts.
    """
    methods: dict[tuple[str, int], Callable[..., Array]] = {
        ("pjax", slots): functools.partial(restarted, slots=slots) for slots in options.slots
    }
    methods["by hand", 1] = restarted_by_hand
    rows = []
    for (name, slots), solve in methods.items():
        jax.block_until_ready(solve(instances[0], jax.random.key(options.seed), options))
        solved, seconds = 0, 0.0
        tries = [*instances] * options.tries
        for i, one in enumerate(tqdm(tries, desc=f"{name}, {slots} at a time")):
            before = time.perf_counter()
            x = solve(one, jax.random.key(options.seed + i), options)
            right = one.accepts(x)
            seconds += time.perf_counter() - before
            solved += right
        row = (name, slots, solved, len(tries), solved / seconds)
        rows.append(dict(zip(RESTARTED, row, strict=True)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    try:
        puzzles = read(options.file) if options.file else PUZZLES
    except (OSError, PuzzleError) as error:
        print(error, file=sys.stderr)
        return 2
    made = [instance(i, p, options.starts, options.seed) for i, p in enumerate(puzzles)]
    several = [compare(one, options) for one in made[: options.puzzles]]
    found = together("sudoku", several)
    rows = with_restarts(made[: options.puzzles], options)
    puzzle_rows = [row for one in several for row in one.rows]
    report(found.rows, options, puzzles=puzzle_rows, restarts=rows)
    print(f"\nwith up to {options.starts - 1} restarts\n" + format_table(rows, RESTARTED))
    if options.plot:
        x = np.where(made[0].data[1], made[0].data[0], found.pjax[0].x)
        draw(options.plot, found.pjax, [("puzzle 0", lambda axes: board(axes, x, puzzles[0]))])
    return 0


def board(axes: Any, x: np.ndarray, puzzle: str) -> None:
    """The digits that were found, the clues of the puzzle in black."""
    digits = 1 + np.argmax(x, 2)
    for row, column in np.ndindex(9, 9):
        colour = "C0" if puzzle[9 * row + column] == "0" else "black"
        middle = {"ha": "center", "va": "center", "color": colour}
        axes.text(column + 0.5, 8.5 - row, str(digits[row, column]), **middle)
    axes.set(xlim=(0, 9), ylim=(0, 9), xticks=range(0, 10, 3), yticks=range(0, 10, 3), aspect=1)
    axes.tick_params(labelbottom=False, labelleft=False)
    axes.grid(color="black")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = feasibility_parser("sudoku", __doc__, starts=10, beta=0.8, max_steps=4000, tol=1e-2)
    add, counts = parser.add_argument, arguments.several(arguments.count)
    add("--file", type=Path, help="81 characters a line, 0 or . where empty")
    add("--puzzles", type=arguments.count, help="so many of them, the first ones")
    add("--slots", type=counts, default=[1, 2], help="starts that pjax tries at the same time")
    add("--tries", type=arguments.count, default=20, help="with restarts, of every puzzle")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
