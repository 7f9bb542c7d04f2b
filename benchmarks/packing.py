"""Disks in a square beside a solver written by hand: ``python -m benchmarks.packing``.

So many disks of a radius are placed in the unit square without overlap. The program says it in one
of two ways: the differences of centres lie outside of a disk, or the pairs of centres are apart,
which is a set of its own. By hand, it is the second way: a copy of the centres for every pair of
them, and one for the square.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.feasibility import (
    ByHand,
    Instance,
    Solved,
    compare,
    draw,
    feasibility_parser,
    report,
    uniform_starts,
)

SLACK = 1e-3  # How far disks may overlap, or leave the square.


def outside(x: Array, radius: Array) -> Array:
    """The nearest vectors that are at least so long."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    first = jnp.zeros_like(x).at[..., 0].set(1)
    direction = jnp.where(length > 0, x / jnp.where(length > 0, length, 1), first)
    return jnp.where(length < radius, radius * direction, x)


def apart(pairs: Array, distance: Array) -> Array:
    """The nearest pairs of points that are so far from each other: both move by the same."""
    one, other = pairs[:, 0], pairs[:, 1]
    moved = (outside(one - other, distance) - (one - other)) / 2
    return jnp.stack([one + moved, other - moved], 1)


def differences(x: Array, radius: Array, first: Array, second: Array) -> None:
    """Disks that do not overlap, by the differences of their centres."""
    pjax.constrain(x[first] - x[second], pjax.sets.From(outside, 2 * radius))
    pjax.constrain(x, pjax.sets.Box(radius, 1 - radius))


def pairs(x: Array, radius: Array, first: Array, second: Array) -> None:
    """Disks that do not overlap, by the pairs of their centres."""
    both = x[jnp.stack([first, second], 1)]
    pjax.constrain(both, pjax.sets.From(apart, 2 * radius))
    pjax.constrain(x, pjax.sets.Box(radius, 1 - radius))


FORMS = {"differences": differences, "pairs": pairs}


@functools.lru_cache
def _by_hand(count: int) -> ByHand:
    def prepare(radius: Array, first: Array, second: Array) -> tuple[Array, Array]:
        return radius, jnp.stack([first, second], 1)

    def divide(u: Any, radius: Array, both: Array) -> Any:
        centres, copies = u
        return jnp.clip(centres, radius, 1 - radius), apart(copies, 2 * radius)

    def means(u: Any, radius: Array, both: Array) -> Array:
        centres, copies = u
        return centres.at[both].add(copies) / count  # with each of the others, and one alone

    def concur(u: Any, radius: Array, both: Array) -> Any:
        x = means(u, radius, both)
        return x, x[both]

    return ByHand(divide, concur, prepare, lambda x, radius, both: (x, x[both]), means)


def instance(form: str, options: argparse.Namespace) -> Instance:
    """Some disks, said in one of the forms."""
    n, radius = options.disks, options.radius
    first, second = np.triu_indices(n, 1)

    def accepts(x: Any) -> bool:
        x = np.asarray(x)
        distances = np.linalg.norm(x[first] - x[second], axis=-1)
        inside = np.all((x > radius - SLACK) & (x < 1 - radius + SLACK))
        return bool(inside and np.all(distances > 2 * radius - SLACK))

    starts = uniform_starts(options.seed, options.starts, (n, 2))
    data = jnp.asarray(radius), jnp.asarray(first), jnp.asarray(second)
    name = f"{n} disks of {radius:g}, {form}"
    return Instance(name, FORMS[form], data, _by_hand(n), starts, accepts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    compared = [compare(instance(form, options), options) for form in options.form]
    report([row for one in compared for row in one.rows], options)
    if options.plot:
        plot(compared[-1].pjax, options)
    return 0


def plot(runs: Sequence[Solved], options: argparse.Namespace) -> None:
    """The first solution, or what is in its place, and the residuals."""
    best = next((run for run in runs if run.right), runs[0])

    def disks(axes: Any) -> None:
        from matplotlib.patches import Circle

        for centre in np.asarray(best.x):
            axes.add_patch(Circle(centre, options.radius, alpha=0.6))
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect=1)

    draw(options.plot, runs, [(f"{options.disks} disks", disks)])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = feasibility_parser(
        "packing", __doc__, starts=20, beta=1.0, max_steps=4000, timed_steps=20_000
    )
    add = parser.add_argument
    add("--disks", type=arguments.count, default=10)
    add("--radius", type=arguments.positive, default=0.14, help="of the disks")
    add("--form", type=arguments.names(FORMS), default=list(FORMS), help=", ".join(FORMS))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
