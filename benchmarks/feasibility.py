"""Feasibility problems solved by pjax-trace and by a solver written by hand, in the same run.

Both make the same iteration, reflect-reflect-relax (``beta=1`` is Douglas–Rachford), from the same
starts, to the same residual. Whether an answer is right is looked up by the problem itself.

The time of a step is that of many in one call, less that of one step in a call, divided by their
number. "ms a call" is the time of a call that makes one step only: what is made once for every
solve, dispatch included. "ms a start" is all the time from a start to its answer.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.tables import format_table, write_json

__all__ = [
    "ByHand",
    "Compared",
    "Instance",
    "Solved",
    "by_hand",
    "by_pjax",
    "compare",
    "draw",
    "feasibility_parser",
    "normal_starts",
    "report",
    "together",
    "uniform_starts",
]

FEW = 50  # Steps that are too few to be timed.
NEVER = 1e-12  # A tolerance that no residual meets, so that all steps are made.

COLUMNS = {
    "problem": "",
    "method": "",
    "solved": "d",
    "of": "d",
    "steps": ".0f",
    "x steps": ".2f",
    "us a step": ".1f",
    "x time": ".2f",
    "ms a call": ".2f",
    "ms a start": ".2f",
    "compilation [s]": ".2f",
}


class ByHand(NamedTuple):
    """Two sets, as somebody would write them for this problem alone.

    Attributes:
        first: the projection onto the set A; of the point and what ``prepare`` returns.
        second: the projection onto the set B.
        prepare: makes what both need of the data, once in every solve.
        spread: the point that starts from an x, copies included.
        gather: x of a point in A.
    """

    first: Callable[..., Any]
    second: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]] = lambda *data: data
    spread: Callable[..., Any] = lambda x, *data: x
    gather: Callable[..., Any] = lambda u, *data: u


class Instance(NamedTuple):
    """One problem to solve.

    Attributes:
        name: what the table calls it.
        problem: what `pjax_trace.solve` is given.
        data: the other arguments of the problem.
        hand: the same problem by hand.
        starts: what both start from.
        accepts: whether an answer is right.
    """

    name: str
    problem: Callable[..., None]
    data: tuple[Any, ...]
    hand: ByHand
    starts: Sequence[Array]
    accepts: Callable[[Any], bool]


class Solved(NamedTuple):
    """What came of one start."""

    x: Array
    steps: int
    seconds: float
    right: bool
    residuals: Any = None


class Times(NamedTuple):
    """Seconds of a step, None if too few were made; and of a call that makes one step only."""

    step: float | None
    once: float


class Compared(NamedTuple):
    """The lines of an instance in the table, and what came of its starts."""

    rows: list[dict[str, Any]]
    pjax: list[Solved]
    hand: list[Solved]


@functools.lru_cache(maxsize=64)
def by_hand(hand: ByHand, beta: float, max_steps: int, tol: float) -> Callable[..., Any]:
    """A compiled solver of two sets: ``x, steps, residual = solve(x, *data)``."""

    def step(u: Any, data: Any) -> tuple[Any, Array]:
        a = hand.first(u, *data)
        b = hand.second(jax.tree.map(lambda a, u: 2 * a - u, a, u), *data)
        apart = jax.tree.map(jnp.subtract, b, a)
        square = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(apart))
        return jax.tree.map(lambda u, d: u + beta * d, u, apart), jnp.asarray(square)

    @jax.jit
    def solve(x: Array, *data: Any) -> tuple[Array, Array, Array]:
        data = hand.prepare(*data)

        def unfinished(carry: Any) -> Array:
            _, k, square = carry
            return (k < max_steps) & (square > tol**2)

        def turn(carry: Any) -> Any:
            u, k, _ = carry
            u, square = step(u, data)
            return u, k + 1, square

        start = hand.spread(x, *data), jnp.zeros((), jnp.int32), jnp.array(jnp.inf)
        u, k, square = jax.lax.while_loop(unfinished, turn, start)
        return hand.gather(hand.first(u, *data), *data), k, jnp.sqrt(square)

    return solve


def by_pjax(problem: Any, beta: float, max_steps: int, tol: float) -> Callable[..., Any]:
    """The same by `pjax_trace.solve`: ``x, steps, residuals = solve(x, *data)``."""

    def solve(x: Array, *data: Any) -> tuple[Array, Array, Array]:
        solver = pjax.ReflectReflectRelax(beta)
        found = pjax.solve(problem, x, *data, solver=solver, max_steps=max_steps, tol=tol)
        return found.x, found.steps, found.residuals

    return solve


def compare(instance: Instance, options: argparse.Namespace) -> Compared:
    """Solve an instance from all of its starts by both, and time their steps."""
    methods = {
        "pjax": functools.partial(by_pjax, instance.problem, options.beta),
        "by hand": functools.partial(by_hand, instance.hand, options.beta),
    }
    runs: dict[str, list[Solved]] = {}
    compilation = {}
    for name, solver in methods.items():
        solve = solver(options.max_steps, options.tol)
        first, again = (_timed(solve, instance.starts[0], *instance.data)[0] for _ in range(2))
        compilation[name] = max(first - again, 0.0)  # that of other instances is used again
        runs[name] = [_solved(solve, start, instance) for start in instance.starts]
    # The start with most steps: one that finds itself exactly at a solution is the last.
    least = [min(run.steps for run in pair) for pair in zip(*runs.values(), strict=True)]
    times = _times(instance, methods, instance.starts[int(np.argmax(least))], options)
    rows = [_row(instance.name, name, runs[name], times[name], compilation[name]) for name in runs]
    _compare_rows(rows)
    print(format_table(rows, COLUMNS), file=sys.stderr, flush=True)
    return Compared(rows, runs["pjax"], runs["by hand"])


def together(name: str, several: Sequence[Compared]) -> Compared:
    """Several instances as one: of the times of their steps the median, of compilation the sum."""
    ours = [run for one in several for run in one.pjax]
    theirs = [run for one in several for run in one.hand]
    rows = []
    for i, runs in enumerate((ours, theirs)):
        own = [one.rows[i] for one in several]
        steps = [row["us a step"] for row in own if row["us a step"]]
        step = statistics.median(steps) / 1e6 if steps else None
        once = statistics.median(row["ms a call"] for row in own) / 1e3
        compilation = sum(row["compilation [s]"] for row in own)
        rows.append(_row(name, own[0]["method"], runs, Times(step, once), compilation))
    _compare_rows(rows)
    return Compared(rows, ours, theirs)


def _compare_rows(rows: Sequence[dict[str, Any]]) -> None:
    ours, theirs = rows
    for column, ratio in (("steps", "x steps"), ("us a step", "x time")):
        if ours[column] and theirs[column]:
            ours[ratio] = ours[column] / theirs[column]


def _timed(solve: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    before = time.perf_counter()
    found = jax.block_until_ready(solve(*args))
    return time.perf_counter() - before, found


def _solved(solve: Callable[..., Any], start: Array, instance: Instance) -> Solved:
    seconds, (x, steps, last) = _timed(solve, start, *instance.data)
    residuals = np.asarray(last)[: int(steps)] if np.ndim(last) else None
    return Solved(x, int(steps), seconds, bool(instance.accepts(x)), residuals)


def _times(
    instance: Instance,
    methods: dict[str, Callable[..., Any]],
    start: Array,
    options: argparse.Namespace,
) -> dict[str, Times]:
    """The times of both methods from a start, the methods taking turns."""
    args = start, *instance.data
    solvers = {
        (name, count): solver(count, NEVER)
        for name, solver in methods.items()
        for count in (1, 1 + options.timed_steps)
    }
    for solve in solvers.values():
        _timed(solve, *args)
    taken: dict[Any, list[float]] = {pair: [] for pair in solvers}
    steps = {}
    for _ in range(options.repeats):
        for pair, solve in solvers.items():
            seconds, (_, steps[pair], _) = _timed(solve, *args)
            taken[pair].append(seconds)
    found = {}
    for name in methods:
        short, long = (name, 1), (name, 1 + options.timed_steps)
        once, many = (statistics.median(taken[pair]) for pair in (short, long))
        more = int(steps[long]) - 1
        long_enough = more >= FEW and many > once
        found[name] = Times((many - once) / more if long_enough else None, once)
    return found


def _row(
    problem: str, method: str, runs: Sequence[Solved], times: Times, compilation: float
) -> dict[str, Any]:
    steps = [run.steps for run in runs if run.right]
    return dict.fromkeys(COLUMNS) | {
        "problem": problem,
        "method": method,
        "solved": len(steps),
        "of": len(runs),
        "steps": statistics.median(steps) if steps else None,
        "us a step": times.step and 1e6 * times.step,
        "ms a call": 1e3 * times.once,
        "ms a start": 1e3 * statistics.median(run.seconds for run in runs),
        "compilation [s]": compilation,
    }


def normal_starts(seed: int, count: int, shape: tuple[int, ...]) -> list[Array]:
    """Starts with normal elements."""
    return list(jax.random.normal(jax.random.key(seed), (count, *shape)))


def uniform_starts(seed: int, count: int, shape: tuple[int, ...]) -> list[Array]:
    """Starts with elements between 0 and 1."""
    return list(jax.random.uniform(jax.random.key(seed), (count, *shape)))


def feasibility_parser(
    name: str,
    doc: str | None,
    *,
    starts: int,
    beta: float | None,
    max_steps: int,
    tol: float = 1e-4,
    timed_steps: int = 4000,
) -> argparse.ArgumentParser:
    """A parser with the options that all commands on feasibility have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    add = parser.add_argument
    add("--starts", type=arguments.count, default=starts, help="of each problem")
    add("--beta", type=arguments.positive, default=beta, help="of the iteration; below 2")
    add("--max-steps", type=arguments.count, default=max_steps, help="from each start")
    add("--tol", type=arguments.positive, default=tol, help="the residual that is a solution")
    add("--seed", type=arguments.whole, default=0, help="of the problems and starts")
    add("--repeats", type=arguments.count, default=5, help="of the timings")
    add("--timed-steps", type=arguments.count, default=timed_steps, help="in each of them")
    add("--plot", type=arguments.output_file, help="file for a picture")
    add("--json", type=arguments.output_file, help="file to write the results to")
    return parser


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace, **more: Any) -> None:
    """Print the table and, if asked for, write the JSON file."""
    print(format_table(rows, COLUMNS))
    if options.json:
        write_json(options.json, {"options": vars(options), "table": list(rows), **more})


def draw(
    path: Path,
    runs: Sequence[Solved],
    pictures: Iterable[tuple[str, Callable[[Any], None]]],
) -> None:
    """A picture: some axes that are drawn on, and the residuals of pjax-trace, start by start."""
    from matplotlib.figure import Figure

    pictures = list(pictures)
    figure = Figure(figsize=(4 * (1 + len(pictures)), 4), layout="constrained")
    *others, last = figure.subplots(1, 1 + len(pictures), squeeze=False)[0]
    for axes, (title, paint) in zip(others, pictures, strict=True):
        axes.set_title(title)
        paint(axes)
    for run in runs:
        last.semilogy(run.residuals, color="C0" if run.right else "C3", alpha=0.7)
    last.set_title("residuals; red if not solved")
    last.set_xlabel("steps")
    figure.savefig(path)
