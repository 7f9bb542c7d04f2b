"""Time and memory of a projection step over an Adam step's: ``python -m benchmarks.step_cost``.

Every method updates the same model on the same random batch. One update makes many steps in one
compiled computation, whose time is divided by their number, so that what it does once (the forward
pass it starts from, the dispatch) is included. Adam is timed in a scan of as many steps and in
single calls; the faster of the two is the reference. Repeats of all methods are interleaved, and
medians taken.

Operations are counted as pjax_trace/operations.py says, conjugate gradients as if they ran to their
limit (they often stop before). Their rate is a share of that of a product of two matrices, 1024 by
1024, timed in between. "in sequence" is how many projections or operations wait for one another in
a step: two for two colours, for a sweep or a gradient twice the longest chain, forward and back.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.methods import COPY_FREE, SOLVERS, gradient_step, project, setting
from benchmarks.models import MODELS
from benchmarks.tables import format_table, write_json
from pjax_trace.operations import operations

MATRIX = 1024  # Of the products that the machine's rate is measured by.

COLUMNS = {
    "method": "",
    "granularity": "",
    "schedule": "",
    "copies": "",
    "steps": "d",
    "ms a step": ".3f",
    "x adam": ".2f",
    "MiB": ".2f",
    "x adam's memory": ".2f",
    "Mflop": ".1f",
    "of matmul": ".0%",
    "in sequence": "d",
    "compilation [s]": ".2f",
}


class Kind(NamedTuple):
    """What the first columns say of a method."""

    method: str
    granularity: str | None = None
    schedule: str | None = None
    copies: bool | Literal["few"] | None = None


class Subject:
    """A method to be timed: ``carry = update(carry)[:2]`` makes ``steps`` steps."""

    def __init__(
        self,
        kind: Kind,
        steps: int,
        carry: Any,
        update: Callable[[Any], Any],
        lower: Callable[[Any], jax.stages.Lowered],
        sequence: int | None = None,
    ):
        self.kind, self.steps, self.sequence = kind, steps, sequence
        self.seconds: list[float] = []
        self._update = update
        before = time.perf_counter()
        compiled = lower(carry).compile()
        self.compile_seconds = time.perf_counter() - before
        memory = compiled.memory_analysis()
        assert memory is not None, "this backend does not report the memory of a computation"
        self.bytes = memory.temp_size_in_bytes + memory.output_size_in_bytes
        # Compiles once more, for its own cache.
        self._carry = jax.block_until_ready(update(carry))[:2]

    def repeat(self) -> None:
        """Make one timed update."""
        before = time.perf_counter()
        self._carry = jax.block_until_ready(self._update(self._carry))[:2]
        self.seconds.append((time.perf_counter() - before) / self.steps)

    def row(self, reference: "Subject", rate: float | None = None) -> dict[str, Any]:
        """The subject's line of the table.

        Args:
            reference: what the others are compared to.
            rate: the machine's, in operations a second; without it, none are counted.
        """
        name, granularity, schedule, copies = self.kind
        seconds = statistics.median(self.seconds)
        counted = None
        if rate:
            counted = operations(self._update, self._carry, limit=pjax.Block().iterations)
        flops = None if counted is None else counted / self.steps
        values = (
            name,
            granularity,
            schedule,
            ("no", "yes")[copies] if isinstance(copies, bool) else copies,
            self.steps,
            1e3 * seconds,
            seconds / statistics.median(reference.seconds),
            self.bytes / 2**20,
            self.bytes / reference.bytes,
            flops and flops / 1e6,
            flops and rate and flops / seconds / rate,
            self.sequence,
            self.compile_seconds,
        )
        return dict(zip(COLUMNS, values, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    x, y = jax.device_put(random_batch(options))

    def model():
        return MODELS[options.model].make(jax.random.key(0), options.sizes)

    swept = project("sweep", setting("sweep", options.model), steps=1)
    chain = swept.trace(model(), x, y).critical_path("sweep")
    several = options.steps or pjax.Solver.default_steps
    subjects = [
        adam("adam, scan", model(), x, y, several, chain),
        adam("adam, single calls", model(), x, y, None, chain),
    ]
    for kind in kinds(options):
        few = options.steps or SOLVERS[kind.method]().default_steps
        steps = options.copies_steps if kind.copies is True else few
        projected = project(
            kind.method,
            setting(kind.method, options.model),
            steps=steps,
            copies=kind.copies if isinstance(kind.copies, bool) else None,
            granularity=kind.granularity,
            schedule=kind.schedule,
        )
        subjects.append(projections(kind, projected, model(), x, y, steps))
        if kind.method == "sweep" and steps == 1:
            subjects.append(sweeps(projected, model(), x, y, pjax.Solver.default_steps))
        print("compiled", *kind[:3], f"copies={kind.copies}", file=sys.stderr)
    matrix = jax.device_put(np.ones((MATRIX, MATRIX), np.float32))
    product, products = jax.jit(jnp.matmul), []
    jax.block_until_ready(product(matrix, matrix))
    try:
        for _ in range(options.repeats):
            before = time.perf_counter()
            jax.block_until_ready(product(matrix, matrix))
            products.append(time.perf_counter() - before)
            for subject in subjects:
                subject.repeat()
    except KeyboardInterrupt:
        print("interrupted: these are the repeats so far", file=sys.stderr)
    timed = [subject for subject in subjects if subject.seconds]
    # Convolutions are many times slower inside a scan on a CPU, so Adam counts at its faster.
    reference = min(timed[:2], key=lambda subject: statistics.median(subject.seconds), default=None)
    rate = 2 * MATRIX**3 / statistics.median(products) if products else 0.0
    rows = [subject.row(reference, rate) for subject in timed if reference]
    sizes = "-".join(map(str, options.sizes))
    device = jax.devices()[0].device_kind
    print(f"{options.model} {sizes}, batch {options.batch_size}, JAX {jax.__version__} on {device}")
    print(f"a product of matrices: {rate / 1e9:.0f} Gflop/s")
    print(format_table(rows, COLUMNS))
    if options.json:
        machine = {"jax": jax.__version__, "device": device, "matmul_flops": rate}
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


def kinds(options: argparse.Namespace) -> list[Kind]:
    """Every method of the options: without copies, with what it needs of them, with all."""
    found: list[Kind] = []
    for copies in (False,) if options.copy_free else (False, "few", True):
        ways = itertools.product(options.granularities, options.schedules, options.solvers)
        for granularity, schedule, name in ways:
            own = SOLVERS[name]().schedules
            # Sweeps and cycles are schedules of their own, and sweeps have blocks of their own.
            schedule = schedule if schedule in own else own[0]
            kind = Kind(name, None if name == "sweep" else granularity, schedule, copies)
            able = name != "sweep" if copies is True else (name in COPY_FREE) != bool(copies)
            if able and kind not in found:
                found.append(kind)
    return found


def projections(kind: Kind, projected: Any, model: Any, x, y, steps: int) -> Subject:
    """A solver, with copies or without."""

    def update(carry):
        return projected.update(*carry, x, y)

    def lower(carry):
        return projected.lower(carry[0], x, y)

    path = projected.trace(model, x, y).critical_path(kind.schedule)
    path = 2 * path if kind.schedule == "sweep" else path
    return Subject(kind, steps, (model, projected.init(model)), update, lower, path)


def repeated(
    kind: Kind, step: Any, model: Any, state: Any, x, y, steps: int | None, chain: int | None
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
    return Subject(kind, steps or 1, (params, state), run, lower, chain and 2 * chain)


def adam(name: str, model: Any, x, y, steps: int | None, chain: int | None = None) -> Subject:
    """Steps of Adam; ``chain`` is how many operations of a forward pass wait for one another."""
    optimizer = optax.adam(1e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    return repeated(Kind(name), gradient_step(optimizer), model, state, x, y, steps, chain)


def sweeps(projected: Any, model: Any, x, y, steps: int) -> Subject:
    """Updates of a sweep in a scan, as Adam's are."""

    def step(batch, model, state):
        model, state, _ = projected.update(model, state, *batch)
        return model, state

    kind = Kind("sweep, scan", None, "sweep", False)
    chain = projected.trace(model, x, y).critical_path("sweep")
    return repeated(kind, step, model, projected.init(model), x, y, steps, chain)


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
    ways = arguments.names(("row", "block"))
    add("--granularities", type=ways, default=["row"], help="row,block (row); sweeps have none")
    ways = arguments.names(("parallel", "product"))
    add("--schedules", type=ways, default=["parallel"], help="parallel,product (parallel)")
    add("--copy-free", action="store_true", help="leave out explicit copies")
    add("--json", type=arguments.output_file, help="file to write the results to")
    options = parser.parse_args(argv)
    options.sizes = options.sizes or MODELS[options.model].sizes
    return options


if __name__ == "__main__":
    sys.exit(main())
