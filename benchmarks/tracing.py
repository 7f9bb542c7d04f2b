"""What it takes to trace a program and to lower an update of it: ``python -m benchmarks.tracing``.

One size is varied at a time: the blocks of a residual network, or the rows of one wide layer.
Nothing is compiled and nothing runs. The memory is the most that Python and NumPy hold at a time
while an update is lowered, beyond what they held before; the arrays of the program have shapes
only. The exponents are slopes of least squares in log-log.
"""

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.models import MODELS
from benchmarks.running import attempt
from benchmarks.scaling import exponent
from benchmarks.tables import format_table, write_json
from pjax_trace.losses import cross_entropy, squared_error

COLUMNS = {
    "axis": "",
    "value": "d",
    "constraints": "d",
    "tracing [s]": ".2f",
    "lowering [s]": ".2f",
    "MiB": ".1f",
}
EXPONENTS = {"axis": "", "of tracing": ".2f", "of lowering": ".2f"}

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def residual(blocks: int) -> Program:
    """A residual network with blocks of width 32, and a batch of 32 samples."""

    def loss(model, x, y):
        return cross_entropy(jax.vmap(model)(x), y)

    sizes = [16, *[32] * blocks, 10]
    model = eqx.filter_eval_shape(MODELS["residual"].make, jax.random.key(0), sizes)
    return loss, (model, floats(32, 16), jax.ShapeDtypeStruct((32,), jnp.int32))


def layer(rows: int) -> Program:
    """One layer of 1024 units, and a batch of so many rows."""

    def loss(p, x, y):
        return squared_error(jnp.tanh(x @ p["w"] + p["b"][None]), y)

    params = {"w": floats(64, 1024), "b": floats(1024)}
    return loss, (params, floats(rows, 64), floats(rows, 1024))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An array of float32 of which only the shape is known."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


AXES = {"blocks": residual, "rows": layer}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    points = [(axis, value) for axis in options.axes for value in getattr(options, axis)]
    rows: list[dict[str, Any]] = []

    def work():
        measure(residual(1))  # What is imported and cached at the first use is not counted.
        for axis, value in tqdm(points, unit="size"):
            cost = measure(AXES[axis](value))
            rows.append(dict(zip(COLUMNS, (axis, value, *cost), strict=True)))

    return attempt(work, lambda: report(rows, options))


def measure(program: Program) -> tuple[int, float, float, float]:
    """Constraints, seconds of the CPU to trace and to lower, and the memory of lowering."""
    loss, args = program
    projected = pjax.project(loss)
    started = time.process_time()
    graph = projected.trace(*args)
    traced = time.process_time()
    projected.lower(*args)
    lowered = time.process_time()
    # Once more, since keeping account of memory takes time.
    tracemalloc.start()
    pjax.project(loss).lower(*args)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return len(graph.constraints), traced - started, lowered - traced, most / 2**20


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and the exponents; write the JSON file if asked for."""
    exponents = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        along = [row for row in rows if row["axis"] == axis]
        slopes = [exponent(along, name) for name in ("tracing [s]", "lowering [s]")]
        exponents.append(dict(zip(EXPONENTS, (axis, *slopes), strict=True)))
    print(f"tracing and lowering, JAX {jax.__version__}")
    print(format_table(rows, COLUMNS))
    print()
    print(format_table(exponents, EXPONENTS))
    if options.json:
        content = {"options": vars(options), "rows": rows, "exponents": exponents}
        write_json(options.json, content)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracing",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, counts = parser.add_argument, arguments.several(arguments.count)
    add("--axes", type=arguments.names(AXES), default=list(AXES), help="what to vary")
    add("--blocks", type=counts, default=[16, 32, 64, 128], help="of a residual network")
    add("--rows", type=counts, default=[2048, 8192, 32768], help="of a batch")
    add("--json", type=arguments.output_file, help="file to write the results to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
