"""Four combinatorial problems beside solvers written by hand: ``python -m benchmarks.queens``.

`queens`: queens on a board that do not attack each other; every row and column has one, every
diagonal at most one. `colouring`: three colours for the vertices of a random graph, the ends of
every edge differing. `sat`: clauses of three literals. `bits`: a vector of signs, by the magnitudes
of its Fourier transform. Graphs and clauses are drawn around a solution, so that there is one.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import arguments
from benchmarks.combinatorial import PROBLEMS
from benchmarks.feasibility import compare, draw, feasibility_parser, report, together

# What suits each of them: β, from a few that were tried on other seeds.
BETAS = {"queens": 0.5, "colouring": 0.5, "sat": 0.5, "bits": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    given, rows, each = options.beta, [], []
    drawn: list[tuple[str, Callable[[Any], None]]] = []
    runs = []
    for name in options.problem:
        options.beta = given or BETAS[name]
        several = [
            compare(PROBLEMS[name](seed, options), options)
            for seed in range(options.seed, options.seed + options.instances)
        ]
        found = together(several[0].rows[0]["problem"], several)
        rows += found.rows
        each += [row for one in several for row in one.rows]
        runs += found.pjax
        x = np.asarray(found.pjax[0].x)
        drawn.append((name, lambda axes, x=x: axes.imshow(np.atleast_2d(x), aspect="auto")))
    options.beta = given
    report(rows, options, instances=each)
    if options.plot:
        draw(options.plot, runs, drawn)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = feasibility_parser("queens", __doc__, starts=20, beta=None, max_steps=4000, tol=1e-2)
    add, names = parser.add_argument, arguments.names(PROBLEMS)
    add("--problem", type=names, default=list(PROBLEMS), help=f"of {', '.join(PROBLEMS)}")
    add("--instances", type=arguments.count, default=5, help="of each problem")
    add("--n", type=arguments.count, default=8, help="queens")
    add("--vertices", type=arguments.count, default=40, help="of the graph")
    add("--edges", type=arguments.count, default=80, help="of the graph")
    add("--variables", type=arguments.count, default=50, help="in clauses")
    add("--ratio", type=arguments.positive, default=4.0, help="clauses for each variable")
    add("--bits", type=arguments.count, default=16, help="signs to retrieve")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
