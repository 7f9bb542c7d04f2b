"""How the cost of an update grows, beside that of Adam: ``python -m benchmarks.scaling``.

One size is varied at a time: samples a batch, width, depth of an MLP, or the length of a GRU's
sequences. Inputs are random. Updates of both methods are interleaved, and medians taken. The
exponents are slopes of least squares in log-log; where an update is mostly overhead that does not
grow, at small sizes, they come out low.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.methods import SOLVERS, project, setting
from benchmarks.models import MODELS
from benchmarks.running import attempt
from benchmarks.step_cost import Kind, adam, projections, random_batch
from benchmarks.tables import format_table, write_json

COLUMNS = {
    "axis": "",
    "value": "d",
    "ms": ".2f",
    "ms of adam": ".2f",
    "x adam": ".2f",
    "compilation [s]": ".2f",
    "of adam [s]": ".2f",
}
EXPONENTS = {"axis": "", "exponent": ".2f", "of adam": ".2f"}


class Case(NamedTuple):
    """What is updated: a model, its sizes, samples a batch, and characters of one of gru's."""

    model: str
    sizes: list[int]
    batch_size: int
    seq_len: int | None = None


INPUTS, HIDDEN, CLASSES = MODELS["mlp"].sizes
BATCH, TEXTS = 256, 32  # Those of the trainings in the README.

AXES: dict[str, Callable[[int], Case]] = {
    "batch": lambda value: Case("mlp", [INPUTS, HIDDEN, CLASSES], value),
    # Two hidden layers, so that a product of width by width is among them.
    "width": lambda value: Case("mlp", [INPUTS, value, value, CLASSES], BATCH),
    "depth": lambda value: Case("mlp", [INPUTS, *[HIDDEN] * value, CLASSES], BATCH),
    "length": lambda value: Case("gru", MODELS["gru"].sizes, TEXTS, value),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    points = [(axis, value) for axis in options.axes for value in getattr(options, axis)]
    rows: list[dict[str, Any]] = []

    def work():
        progress = tqdm(points, unit="size")
        for axis, value in progress:
            progress.set_description(f"{axis} {value}")
            cost = measure(AXES[axis](value), options)
            rows.append(dict(zip(COLUMNS, (axis, value, *cost), strict=True)))

    return attempt(work, lambda: report(rows, options))


def measure(case: Case, options: argparse.Namespace) -> tuple[float, ...]:
    """Milliseconds of an update, those of Adam, their ratio, and what compiling each took."""
    x, y = jax.device_put(random_batch(argparse.Namespace(**case._asdict())))

    def model():
        return MODELS[case.model].make(jax.random.key(0), case.sizes)

    name, steps = options.solver, SOLVERS[options.solver]().default_steps
    projected = project(name, setting(name, case.model), steps=steps)
    # All steps of an update count as one.
    kind = Kind(name, schedule=SOLVERS[name]().schedules[0], copies=False)
    ours = projections(kind, projected, model(), x, y, steps=1)
    theirs = adam("adam", model(), x, y, None)
    for _ in range(options.repeats):
        for subject in (ours, theirs):
            subject.repeat()
    mine, reference = ours.row(theirs), theirs.row(theirs)
    times = mine["ms a step"], reference["ms a step"], mine["x adam"]
    return *times, mine["compilation [s]"], reference["compilation [s]"]


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and the exponents; write the JSON file if asked for."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    exponents = []
    for axis in axes:
        along = [row for row in rows if row["axis"] == axis]
        slopes = [exponent(along, name) for name in ("ms", "ms of adam")]
        exponents.append(dict(zip(EXPONENTS, (axis, *slopes), strict=True)))
    device = jax.devices()[0].device_kind
    print(f"an update of {options.solver} and of adam, JAX {jax.__version__} on {device}")
    print(format_table(rows, COLUMNS))
    print()
    print(format_table(exponents, EXPONENTS))
    if options.json:
        machine = {"jax": jax.__version__, "device": device}
        content = {"options": vars(options) | machine, "rows": rows, "exponents": exponents}
        write_json(options.json, content)


def exponent(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    """The slope of log time over log size, by least squares; of one size there is none."""
    sizes, times = (np.array([math.log(row[name]) for row in rows]) for name in ("value", column))
    centred = sizes - sizes.mean()
    return float(centred @ times / (centred @ centred)) if centred.any() else None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    counts, axes = arguments.several(arguments.count), arguments.names(AXES)
    add("--axes", type=axes, default=list(AXES), help="what to vary")
    batch = [64, 128, 256, 512, 1024, 2048, 4096]
    add("--batch", type=counts, default=batch, help="samples a batch")
    widths = {"dest": "width", "default": [64, 128, 256, 512, 1024, 2048]}
    add("--widths", type=counts, help="of two hidden layers", **widths)
    depths = {"dest": "depth", "default": [1, 2, 4, 8, 16, 32]}
    add("--depths", type=counts, help="hidden layers", **depths)
    lengths = {"dest": "length", "default": [16, 32, 64, 128, 256, 512]}
    add("--lengths", type=counts, help="characters of a gru's sequences", **lengths)
    add("--solver", choices=SOLVERS, default="sweep", help="the projection method")
    add("--repeats", type=arguments.count, default=7, help="timed updates of each method")
    add("--json", type=arguments.output_file, help="file to write the results to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
