"""Sparse recovery beside a solver written by hand: ``python -m benchmarks.sparse``.

A vector of which few elements are not zero is looked for by fewer linear equations than it has
elements. The matrix is Gaussian, with columns of length 1.
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.feasibility import (
    ByHand,
    Compared,
    Instance,
    compare,
    draw,
    feasibility_parser,
    normal_starts,
    report,
    together,
)

NEAR = 1e-2  # Relative error of a vector that counts as recovered.


def problem_of(nonzeros: int):
    """What pjax-trace is given, and the same by hand."""

    def problem(x: Array, a: Array, b: Array) -> None:
        pjax.constrain(a @ x, pjax.sets.Equal(b))
        pjax.constrain(x, pjax.sets.TopK(nonzeros))

    def prepare(a: Array, b: Array) -> tuple[Array, Array, Array]:
        return a, b, jnp.linalg.pinv(a)

    def equations(x: Array, a: Array, b: Array, inverse: Array) -> Array:
        return x + inverse @ (b - a @ x)

    def sparse(x: Array, a: Array, b: Array, inverse: Array) -> Array:
        _, places = jax.lax.top_k(jnp.abs(x), nonzeros)
        return jnp.zeros_like(x).at[places].set(x[places])

    return problem, ByHand(equations, sparse, prepare)


def instances(options: argparse.Namespace) -> tuple[list[Instance], list[np.ndarray]]:
    """A matrix and a vector for each seed."""
    problem, hand = problem_of(options.nonzeros)
    made, truths = [], []
    for seed in range(options.seed, options.seed + options.seeds):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(options.equations, options.length))
        a /= np.linalg.norm(a, axis=0)
        true = np.zeros(options.length)
        true[rng.choice(options.length, options.nonzeros, replace=False)] = rng.normal(
            size=options.nonzeros
        )

        def accepts(x: Array, true: np.ndarray = true) -> bool:
            return bool(np.linalg.norm(np.asarray(x) - true) < NEAR * np.linalg.norm(true))

        data = jnp.asarray(a, jnp.float32), jnp.asarray(a @ true, jnp.float32)
        starts = normal_starts(seed, options.starts, (options.length,))
        made.append(Instance(f"sparse, seed {seed}", problem, data, hand, starts, accepts))
        truths.append(true)
    return made, truths


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    made, truths = instances(options)
    several = [compare(instance, options) for instance in made]
    name = f"sparse {options.equations}x{options.length}, {options.nonzeros}"
    found = together(name, several)
    report(found.rows, options, seeds=[row for one in several for row in one.rows])
    if options.plot:
        plot(found, truths[0], options)
    return 0


def plot(found: Compared, true: np.ndarray, options: argparse.Namespace) -> None:
    """The first vector and what was found of it, and the residuals."""

    def stems(axes) -> None:
        (places,) = np.nonzero(true)
        axes.stem(places, true[places], basefmt=" ", label="true")
        axes.plot(np.asarray(found.pjax[0].x), "C1", linewidth=0.8, label="found")
        axes.legend()

    draw(options.plot, found.pjax, [("the first vector", stems)])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = feasibility_parser(
        "sparse", __doc__, starts=1, beta=1.0, max_steps=4000, timed_steps=20_000
    )
    add = parser.add_argument
    add("--seeds", type=arguments.count, default=5, help="how many problems")
    add("--equations", type=arguments.count, default=128)
    add("--length", type=arguments.count, default=256, help="of the vector")
    add("--nonzeros", type=arguments.count, default=25, help="elements that are not zero")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
