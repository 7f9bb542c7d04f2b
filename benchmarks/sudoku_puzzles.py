"""Sudoku puzzles: made at random, read from files, and solved by trying."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["PUZZLES", "PuzzleError", "is_solution", "make", "read", "solutions"]

# What make(seed, 25) makes of the seeds 0 to 8.
PUZZLES = (
    "800000004050000001007020006000000700000019005010542000085470000690105000004000800",
    "000000200940083000030006900000815070300000000005047000000000000602700005003509001",
    "306009001100080070004000030200070040000200007500000098002040000000008400060030109",
    "000080000309000400000405000010000200000304501200900008000790020007006030601000080",
    "000000648460000030002007010041000000200030800080205000000000003900000470027050060",
    "009400715000002000000000090070090300100600000083000501750001030008060000400700200",
    "003020705280010000500800000002100060000900050700583000000000609160000000004000010",
    "070010200000890000039000000012000300007000006695020040000002059000605084000000600",
    "940000030000000097000002080400309008500060020213008000802001000000070000000006054",
)


class PuzzleError(ValueError):
    """A line is no puzzle."""


def _peers(cell: int) -> tuple[int, ...]:
    row, column = divmod(cell, 9)
    corner = 27 * (row // 3) + 3 * (column // 3)
    near = {9 * row + i for i in range(9)} | {9 * i + column for i in range(9)}
    near |= {corner + 9 * i + j for i in range(3) for j in range(3)}
    return tuple(sorted(near - {cell}))


PEERS = tuple(map(_peers, range(81)))


def solutions(digits: Sequence[int], order: Sequence[int] = range(1, 10)) -> Iterator[list[int]]:
    """All ways to fill a puzzle, digits that are tried first coming first."""
    grid = list(digits)
    free: dict[int, list[int]] = {}
    for cell in range(81):
        if not grid[cell]:
            used = {grid[peer] for peer in PEERS[cell]}
            free[cell] = [digit for digit in order if digit not in used]
    if not free:
        yield grid
        return
    cell = min(free, key=lambda cell: len(free[cell]))
    for digit in free[cell]:
        grid[cell] = digit
        yield from solutions(grid, order)


def make(seed: int, clues: int) -> str:
    """A puzzle with one solution and at most so many clues, none of which can be left out."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(range(1, 10), 9)
        start = [0] * 81
        start[:9] = draw.sample(range(1, 10), 9)
        grid = next(solutions(start, order))
        for cell in draw.sample(range(81), 81):
            digit, grid[cell] = grid[cell], 0
            found = solutions(grid)
            if next(found) and next(found, None):
                grid[cell] = digit
        if sum(digit > 0 for digit in grid) <= clues:
            return "".join(map(str, grid))


def read(path: Path) -> list[str]:
    """The puzzles of a file, one on each line; 0 or a dot is an empty cell.

    Raises:
        PuzzleError: if a line is no puzzle.
        OSError: if the file cannot be read.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines, 1):
        if line and (len(line) != 81 or not set(line) <= set("0123456789.")):
            raise PuzzleError(f"{path}, line {number}: not 81 digits and dots")
    return [line.replace(".", "0") for line in lines if line]


def is_solution(digits: Sequence[int], puzzle: str) -> bool:
    """Whether digits fill a puzzle."""
    kept = all(clue in ("0", str(digit)) for digit, clue in zip(digits, puzzle, strict=True))
    return kept and all(
        digits[cell] not in {digits[peer] for peer in PEERS[cell]} for cell in range(81)
    )
