"""How models of other fields train: by `pjax.project`, by Adam, and by alternating projections.

python -m tests.fields                    # all
python -m tests.fields KAN GPT --seeds 0
"""

import argparse
import functools
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pjax_trace as pjax

from .models import Field
from .more_models import FIELDS

__all__ = ["Run", "adam", "alternating", "held_out", "projection", "sweep", "trained", "value"]

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BATCHES = 100


class Run(NamedTuple):
    """Held-out losses at the end, without and with the average, and how long things took."""

    raw: float
    averaged: float
    first: float  # seconds until the first update is done
    each: float  # seconds of every other


def value(field: Field, parameters: Any, *batch: Any) -> jax.Array:
    """The objective alone; a module that it would change is left as it is."""
    out = field.objective(jax.tree.map(lambda leaf: leaf, parameters), *batch)
    return out[0] if field.has_aux else out


def projection(field: Field, **options: Any) -> Any:
    """`pjax.project` of the objective as it is."""
    options |= {"has_aux": field.has_aux, "trainable": field.trainable}
    return pjax.project(field.objective, **options)


def trained(field: Field, train: Any, batches: Any, start: Any = None) -> tuple[Any, list[Any]]:
    """The parameters after updates by these batches, and what each of them reported."""
    parameters, reports = field.parameters(0) if start is None else start, []
    state = train.init(parameters)
    for batch in batches:
        parameters, state, info = train.update(parameters, state, *batch)
        reports.append(info)
        if field.after:
            parameters = field.after(parameters, info.aux)
    return parameters, reports


def held_out(field: Field) -> Any:
    """Of parameters, the held-out loss."""
    return eqx.filter_jit(lambda parameters: value(field, parameters, *field.held_out))


def sweep(field: Field, seed: int, loss: Any = None, batches: int = BATCHES) -> Run:
    """By `pjax.project` as it is."""
    train = projection(field)
    loss = loss or held_out(field)
    parameters = field.parameters(seed)
    state, times = train.init(parameters), []
    for number in range(batches):
        batch = jax.block_until_ready(field.batch(seed * BATCHES + number))
        began = time.perf_counter()
        parameters, state, info = train.update(parameters, state, *batch)
        jax.block_until_ready(info.finite)
        times.append(time.perf_counter() - began)
        if field.after:
            parameters = field.after(parameters, info.aux)
    averaged = train.averaged(parameters, state)
    return Run(
        float(loss(parameters)), float(loss(averaged)), times[0], float(np.median(times[1:] or 0))
    )


def adam_step(field: Field) -> Any:
    """A step of Adam, compiled, and its start: what moves and what does not, and memories."""
    rule, average = optax.scale_by_adam(), pjax.Averaging(0.98)
    chosen = jax.tree.map(eqx.is_inexact_array, field.parameters(0))
    if field.trainable is not None:
        chosen = jax.tree.map(lambda a, b: a and b, chosen, field.trainable)

    def start(seed):
        moving, fixed = eqx.partition(field.parameters(seed), chosen)
        return moving, fixed, (rule.init(moving), average.init(jax.tree.leaves(moving)))

    @eqx.filter_jit
    def step(moving, fixed, memory, rate, *batch):
        def objective(moving):
            return field.objective(eqx.combine(moving, fixed), *batch)

        out, slopes = jax.value_and_grad(objective, has_aux=field.has_aux)(moving)
        # The derivative of a real function by a complex number is the conjugate of the gradient.
        moves, inner = rule.update(jax.tree.map(jnp.conj, slopes), memory[0])
        new = jax.tree.map(lambda x, m: (x - rate * m).astype(x.dtype), moving, moves)
        if field.after:
            new, fixed = eqx.partition(field.after(eqx.combine(new, fixed), out[1]), chosen)
        leaves = jax.tree.leaves(new)
        return new, fixed, (inner, average.finish(memory[1], leaves, leaves, leaves)[1])

    return start, step


def adam(field: Field, seed: int, rate: float, step: Any, loss: Any, batches: int = BATCHES) -> Run:
    """By `jax.grad` and Adam."""
    start, step = step
    (moving, fixed, memory), times = start(seed), []
    for number in range(batches):
        batch = jax.block_until_ready(field.batch(seed * BATCHES + number))
        began = time.perf_counter()
        moving, fixed, memory = jax.block_until_ready(step(moving, fixed, memory, rate, *batch))
        times.append(time.perf_counter() - began)
    averages = jax.tree.unflatten(jax.tree.structure(moving), memory[1][0])
    ends = [float(loss(eqx.combine(x, fixed))) for x in (moving, averages)]
    return Run(*ends, times[0], float(np.median(times[1:])))


def alternating(field: Field, updates: int = 3, steps: int = 20) -> tuple[list[float], float]:
    """The losses of one batch, updated by it over and over, and the seconds of the first update."""
    solver = pjax.AlternatingProjections(momentum=0.9)
    train = projection(field, solver=solver, steps=steps)
    parameters, batch = field.parameters(0), field.batch(0)
    state, losses, first = train.init(parameters), [float(value(field, parameters, *batch))], None
    for _ in range(updates):
        began = time.perf_counter()
        parameters, state, info = train.update(parameters, state, *batch)
        jax.block_until_ready(info.finite)
        first = time.perf_counter() - began if first is None else first
        losses.append(float(value(field, parameters, *batch)))
    return losses, first


def compare(name: str, seeds: list[int]) -> list[str]:
    """The row of one field."""
    field = FIELDS[name]()
    loss = held_out(field)
    start = np.mean([float(loss(field.parameters(seed))) for seed in seeds])
    runs = [sweep(field, seed, loss) for seed in seeds]
    step = adam_step(field)
    grid = {rate: [adam(field, seed, rate, step, loss) for seed in seeds] for rate in RATES}
    first = grid[RATES[0]][0].first
    cells = [name, f"{start:.4f}"]
    cells += [f"{np.mean([getattr(r, kind) for r in runs]):.4f}" for kind in ("raw", "averaged")]
    for kind in ("raw", "averaged"):
        means = {rate: float(np.mean([getattr(r, kind) for r in grid[rate]])) for rate in RATES}
        best = min(means, key=lambda rate: means[rate] if np.isfinite(means[rate]) else np.inf)
        cells.append(f"{means[best]:.4f} ({best:g})")
    cells.append(f"{runs[0].first:.1f}/{first:.1f} = {runs[0].first / first:.1f}")
    cells.append(f"{runs[0].each / grid[RATES[0]][0].each:.1f}")
    return cells


def attempt(function: Any) -> Any:
    """What a function returns, or in one line why it fails."""
    try:
        return function()
    except Exception as error:  # all rows are to be printed
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", choices=["learning", "alternating"])
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    print("field | start | sweep | averaged | Adam (rate) | averaged | first call | update, times")
    for name in options.names or FIELDS:
        if options.only != "alternating":
            cells = attempt(functools.partial(compare, name, seeds))
            print(" | ".join([name, cells] if isinstance(cells, str) else cells), flush=True)
        if options.only != "learning":
            found = attempt(lambda name=name: alternating(FIELDS[name]()))
            if not isinstance(found, str):
                found = " → ".join(f"{x:.4f}" for x in found[0]) + f", first call {found[1]:.1f} s"
            print(f"{name}, alternating projections: {found}", flush=True)


if __name__ == "__main__":
    main()
