"""Time and memory of a projection step over an Adam step's: ``python -m benchmarks.step_cost``.

Every method updates the same model on the same random batch. One update makes many steps in one
compiled computation, whose time is divided by their number, so that what it does once (the forward
pass it starts from, the dispatch) is included; Adam's reference does as many steps in a scan.
Repeats of all methods are interleaved, and medians taken.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.methods import SOLVERS, adam_step
from benchmarks.models import mlp
from benchmarks.tables import format_table, write_json

REFERENCE = "adam, scan"
COPY_FREE = ("ap", "ap-momentum")

COLUMNS = {
    "method": "",
    "copies": "",
    "steps": "d",
    "ms a step": ".3f",
    "x adam": ".2f",
    "MiB": ".2f",
    "x adam's memory": ".2f",
    "compilation [s]": ".2f",
}


class Subject:
    """A method to be timed: ``carry = update(carry)`` makes ``steps`` steps."""

    def __init__(
        self,
        name: str,
        copies: bool | None,
        steps: int,
        carry: Any,
        update: Callable[[Any], Any],
        lower: Callable[[Any], jax.stages.Lowered],
    ):
        self.name, self.copies, self.steps = name, copies, steps
        self.seconds: list[float] = []
        self._update = update
        before = time.perf_counter()
        compiled = lower(carry).compile()
        self.compile_seconds = time.perf_counter() - before
        memory = compiled.memory_analysis()
        assert memory is not None, "this backend does not report the memory of a computation"
        self.bytes = memory.temp_size_in_bytes + memory.output_size_in_bytes
        self._carry = jax.block_until_ready(update(carry))  # Compiles once more, for its own cache.

    def repeat(self) -> None:
        """Make one timed update."""
        before = time.perf_counter()
        self._carry = jax.block_until_ready(self._update(self._carry))
        self.seconds.append((time.perf_counter() - before) / self.steps)

    def row(self, reference: "Subject") -> dict[str, Any]:
        """The subject's line of the table."""
        milliseconds = 1e3 * statistics.median(self.seconds)
        values = (
            self.name,
            None if self.copies is None else ("yes" if self.copies else "no"),
            self.steps,
            milliseconds,
            milliseconds / (1e3 * statistics.median(reference.seconds)),
            self.bytes / 2**20,
            self.bytes / reference.bytes,
            self.compile_seconds,
        )
        return dict(zip(COLUMNS, values, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(options.batch_size, options.sizes[0])).astype(np.float32)
    y = rng.integers(options.sizes[-1], size=options.batch_size, dtype=np.int32)
    x, y = jax.device_put((x, y))

    def model():
        return mlp(jax.random.key(0), options.sizes)

    subjects = [
        adam(REFERENCE, model(), x, y, options.steps),
        adam("adam, single calls", model(), x, y, None),
    ]
    for copies in (False, True):
        steps = options.copies_steps if copies else options.steps
        for name in options.solvers:
            if copies or name in COPY_FREE:
                subjects.append(projections(name, copies, model(), x, y, steps))
                print(f"compiled {name}, copies={copies}", file=sys.stderr)
    try:
        for _ in range(options.repeats):
            for subject in subjects:
                subject.repeat()
    except KeyboardInterrupt:
        print("interrupted: these are the repeats so far", file=sys.stderr)
    rows = [subject.row(subjects[0]) for subject in subjects if subject.seconds]
    sizes = "-".join(map(str, options.sizes))
    device = jax.devices()[0].device_kind
    print(f"{sizes}, batch {options.batch_size}, JAX {jax.__version__} on {device}")
    print(format_table(rows, COLUMNS))
    if options.json:
        setting = vars(options) | {"jax": jax.__version__, "device": device}
        write_json(options.json, {"options": setting, "rows": rows})
    return 0


def projections(name: str, copies: bool, model: Any, x, y, steps: int) -> Subject:
    """A solver, on explicit copies or without."""

    def fit(model, x, y):
        return pjax.losses.cross_entropy(jax.vmap(model)(x), y)

    projected = pjax.project(fit, solver=SOLVERS[name](), steps=steps, copies=copies)

    def update(carry):
        model, state, _ = projected.update(carry[0], carry[1], x, y)
        return model, state

    def lower(carry):
        return projected.lower(carry[0], x, y)

    return Subject(name, copies, steps, (model, projected.init(model)), update, lower)


def adam(name: str, model: Any, x, y, steps: int | None) -> Subject:
    """Adam: ``steps`` steps in a scan, or one step in a call of its own."""
    optimizer = optax.adam(1e-3)
    params, static = eqx.partition(model, eqx.is_array)
    step = adam_step(optimizer)

    def update(carry, x, y):
        def body(carry, _):
            params, state = carry
            model, state = step((x, y), eqx.combine(params, static), state)
            return (eqx.filter(model, eqx.is_array), state), None

        return jax.lax.scan(body, carry, length=steps)[0] if steps else body(carry, None)[0]

    jitted = jax.jit(update, donate_argnums=0)
    carry = params, optimizer.init(params)
    run, lower = (lambda carry: jitted(carry, x, y)), (lambda carry: jitted.lower(carry, x, y))
    return Subject(name, None, steps or 1, carry, run, lower)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", type=arguments.sizes, default=[784, 128, 10], help="layers (784,128,10)")
    add("--batch-size", type=arguments.count, default=256, help="samples a batch (256)")
    add("--steps", type=arguments.count, default=50, help="steps of an update (50)")
    add("--copies-steps", type=arguments.count, default=5, help="the same on explicit copies (5)")
    add("--repeats", type=arguments.count, default=9, help="timed updates of every method (9)")
    add("--solvers", type=_solvers, default=list(SOLVERS), help="as in ap,dr (all of them)")
    add("--json", type=arguments.output_file, help="file to write the results to")
    return parser.parse_args(argv)


def _solvers(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in SOLVERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(SOLVERS)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
