"""Phase retrieval beside a solver written by hand: ``python -m benchmarks.phase``.

An image that is real, not negative, and zero outside a quarter of its frame is looked for by the
magnitudes of its Fourier transform. Its image turned by 180 degrees has the same magnitudes, and
counts as found.
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
)

NEAR = 1e-2  # Relative error of an image that counts as recovered.


def problem(x: Array, magnitudes: Array, support: Array) -> None:
    """What pjax-trace is given."""
    pjax.constrain(jnp.abs(jnp.fft.fft2(x)), pjax.sets.Equal(magnitudes))
    pjax.constrain(x, pjax.sets.Box(0.0, jnp.where(support, jnp.inf, 0.0)))


def with_magnitudes(x: Array, magnitudes: Array, support: Array) -> Array:
    """The nearest image with these magnitudes."""
    spectrum = jnp.fft.fft2(x)
    size = jnp.abs(spectrum)
    phases = jnp.where(size > 0, spectrum / jnp.where(size > 0, size, 1), 1)
    return jnp.real(jnp.fft.ifft2(magnitudes * phases))


def supported(x: Array, magnitudes: Array, support: Array) -> Array:
    """The nearest image that is not negative, and zero outside its support."""
    return jnp.where(support, jnp.maximum(x, 0), 0)


HAND = ByHand(with_magnitudes, supported)


def instance(size: int, starts: int, seed: int) -> tuple[Instance, np.ndarray]:
    """An image of ``size`` by ``size`` elements with random pixels in one quarter, and itself."""
    half = size // 2
    pixels = jax.random.uniform(jax.random.key(seed + size), (half, half))
    image = jnp.zeros((size, size)).at[:half, :half].set(pixels)
    support = jnp.zeros((size, size), bool).at[:half, :half].set(True)
    true = np.asarray(image)

    def accepts(x: Array) -> bool:
        return error(np.asarray(x), true) < NEAR

    data = jnp.abs(jnp.fft.fft2(image)), support
    points = normal_starts(seed, starts, (size, size))
    return Instance(f"phase {size}x{size}", problem, data, HAND, points, accepts), true


def error(found: np.ndarray, true: np.ndarray) -> float:
    """The relative error of an image, or of that turned by 180 degrees, the smaller of the two."""
    half = len(true) // 2
    turned = np.zeros_like(true)
    turned[:half, :half] = true[:half, :half][::-1, ::-1]
    errors = [np.linalg.norm(found - t) for t in (true, turned)]
    return float(min(errors) / np.linalg.norm(true))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    rows, drawn = [], None
    for size in options.sizes:
        made, true = instance(size, options.starts, options.seed)
        compared = compare(made, options)
        rows += compared.rows
        drawn = compared, true
    report(rows, options)
    if options.plot and drawn:
        plot(*drawn, options)
    return 0


def plot(compared: Compared, true: np.ndarray, options: argparse.Namespace) -> None:
    """The last image, what became of it, and the residuals."""
    best = next((run for run in compared.pjax if run.right), compared.pjax[0])
    images = {"image": true, "found": np.asarray(best.x)}
    pictures = [(name, lambda axes, x=x: axes.imshow(x)) for name, x in images.items()]
    draw(options.plot, compared.pjax, pictures)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = feasibility_parser("phase", __doc__, starts=6, beta=1.0, max_steps=4000, tol=1e-3)
    several = arguments.several(arguments.count)
    parser.add_argument("--sizes", type=several, default=[16, 32, 64], help="of the frames")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
