"""Time and memory of a projection step over an Adam step's: ``python -m benchmarks.step_cost``.

Every method updates the same model on the same random batch. One update makes many steps in one
compiled computation, whose time is divided by their number, so that what it does once (the forward
pass it starts from, the dispatch) is included. Adam is timed in a scan of as many steps and in
single calls; the faster of the two is the reference. Repeats of all methods are interleaved, and
medians taken.
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
from benchmarks.methods import COPY_FREE, SOLVERS, gradient_step, project, setting
from benchmarks.models import MODELS
from benchmarks.tables import format_table, write_json

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
    x, y = jax.device_put(random_batch(options))

    def model():
        return MODELS[options.model].make(jax.random.key(0), options.sizes)

    subjects = [
        adam("adam, scan", model(), x, y, options.steps or pjax.Solver.default_steps),
        adam("adam, single calls", model(), x, y, None),
    ]
    for copies in (False,) if options.copy_free else (False, True):
        for name in options.solvers:
            few = options.steps or SOLVERS[name]().default_steps
            steps = options.copies_steps if copies else few
            able = name != "sweep" if copies else name in COPY_FREE
            if able:
                projected = project(name, setting(name, options.model), steps=steps, copies=copies)
                subjects.append(projections(name, projected, copies, model(), x, y, steps))
                if name == "sweep" and steps == 1:
                    several = pjax.Solver.default_steps
                    scan = sweeps("sweep, scan", projected, model(), x, y, several)
                    subjects.append(scan)
                print(f"compiled {name}, copies={copies}", file=sys.stderr)
    try:
        for _ in range(options.repeats):
            for subject in subjects:
                subject.repeat()
    except KeyboardInterrupt:
        print("interrupted: these are the repeats so far", file=sys.stderr)
    timed = [subject for subject in subjects if subject.seconds]
    # Convolutions are many times slower inside a scan on a CPU, so Adam counts at its faster.
    reference = min(timed[:2], key=lambda subject: statistics.median(subject.seconds), default=None)
    rows = [subject.row(reference) for subject in timed if reference]
    sizes = "-".join(map(str, options.sizes))
    device = jax.devices()[0].device_kind
    print(f"{options.model} {sizes}, batch {options.batch_size}, JAX {jax.__version__} on {device}")
    print(format_table(rows, COLUMNS))
    if options.json:
        machine = {"jax": jax.__version__, "device": device}
        write_json(options.json, {"options": vars(options) | machine, "rows": rows})
    return 0


def random_batch(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of the shape that the model takes."""
    rng = np.random.default_rng(0)
    rows, inputs, classes = (options.batch_size,), options.sizes[0], options.sizes[-1]
    reads = MODELS[options.model].reads
    if reads == "text":
        rows = (options.batch_size, options.seq_len)
        x = rng.integers(inputs, size=rows, dtype=np.int32)
    else:
        image = (28, 28) if reads == "images" else ()
        x = rng.uniform(size=(*rows, inputs, *image)).astype(np.float32)
    return x, rng.integers(classes, size=rows, dtype=np.int32)


def projections(name: str, projected: Any, copies: bool, model: Any, x, y, steps: int) -> Subject:
    """A solver, on explicit copies or without."""

    def update(carry):
        model, state, _ = projected.update(carry[0], carry[1], x, y)
        return model, state

    def lower(carry):
        return projected.lower(carry[0], x, y)

    return Subject(name, copies, steps, (model, projected.init(model)), update, lower)


def repeated(
    name: str, copies: bool | None, step: Any, model: Any, state: Any, x, y, steps: int | None
) -> Subject:
    """``steps`` updates of a model in a scan, or one update in a call of its own."""
    params, static = eqx.partition(model, eqx.is_array)

    def update(carry, x, y):
        def body(carry, _):
            params, state = carry
            model, state = step((x, y), eqx.combine(params, static), state)
            return (eqx.filter(model, eqx.is_array), state), None

        return jax.lax.scan(body, carry, length=steps)[0] if steps else body(carry, None)[0]

    jitted = jax.jit(update, donate_argnums=0)
    run, lower = (lambda carry: jitted(carry, x, y)), (lambda carry: jitted.lower(carry, x, y))
    return Subject(name, copies, steps or 1, (params, state), run, lower)


def adam(name: str, model: Any, x, y, steps: int | None) -> Subject:
    """Steps of Adam."""
    optimizer = optax.adam(1e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    return repeated(name, None, gradient_step(optimizer), model, state, x, y, steps)


def sweeps(name: str, projected: Any, model: Any, x, y, steps: int) -> Subject:
    """Updates of a sweep in a scan, as Adam's are."""

    def step(batch, model, state):
        model, state, _ = projected.update(model, state, *batch)
        return model, state

    return repeated(name, False, step, model, projected.init(model), x, y, steps)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="mlp", help="what to update (mlp)")
    counts = arguments.several(arguments.count)
    add("--sizes", type=counts, help="as in 784,128,10 (those that suit MNIST, or Shakespeare)")
    add("--batch-size", type=arguments.count, default=256, help="samples a batch (256)")
    add("--seq-len", type=arguments.count, default=64, help="characters of a sample of text (64)")
    add("--steps", type=arguments.count, help="steps of an update (50; 1 of a sweep)")
    add("--copies-steps", type=arguments.count, default=5, help="the same on explicit copies (5)")
    add("--repeats", type=arguments.count, default=9, help="timed updates of every method (9)")
    solvers = arguments.names(SOLVERS)
    add("--solvers", type=solvers, default=list(SOLVERS), help="as in ap,dr (all of them)")
    add("--copy-free", action="store_true", help="leave out explicit copies")
    add("--json", type=arguments.output_file, help="file to write the results to")
    options = parser.parse_args(argv)
    options.sizes = options.sizes or MODELS[options.model].sizes
    return options


if __name__ == "__main__":
    sys.exit(main())
