"""Networks whose first weights lie in a set: ``python -m benchmarks.binary_weights``.

A sweep at its defaults trains an MLP, whose program says that the weights of the first layer are in
the set, beside Adam at the best of some rates. Binary weights are ±s; there Adam's gradients go
straight through to latent weights. For other sets Adam's weights are projected after every step.
All have the same starts, which need not be in the set, and batches. "off" is the largest distance
of a final weight from the set.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import pjax_trace as pjax
from benchmarks import arguments
from benchmarks.data import Dataset
from benchmarks.methods import Method, Progress, cross_entropy
from benchmarks.models import MODELS, mlp
from benchmarks.running import Run, Task, attempt, by_method, follow, mlp_parser, read
from benchmarks.tables import format_table, spread, write_json

SETS: dict[str, Callable[[argparse.Namespace], pjax.sets.Set]] = {
    "binary": lambda options: pjax.sets.Binary(-options.scale, options.scale),
    "nonnegative": lambda options: pjax.sets.NonNegative(),
    "2:4": lambda options: pjax.sets.NOfM(2, 4),
    "l1-rows": lambda options: pjax.sets.L1Ball(options.radius, axis=-1),
    "rank": lambda options: pjax.sets.Rank(options.rank),
    "orthogonal": lambda options: pjax.sets.Orthogonal(),
}
COLUMNS = {"set": "", "method": "", "test accuracy": "", "off": ".1e", "ms a batch": ".2f"}


class Trained(NamedTuple):
    """The runs of a set, and the set."""

    chosen: pjax.sets.Set
    runs: list[Run]


def weights(model: Any) -> Any:
    """Those of the first layer."""
    return model[1].weight


def with_weights(model: Any, new: Any) -> Any:
    """The model with other ones."""
    return eqx.tree_at(weights, model, new)


def sweep(chosen: pjax.sets.Set) -> Method:
    """What pjax-trace does with the set when told nothing else."""

    def fit(model: Any, x: Any, y: Any) -> Any:
        pjax.constrain(weights(model), chosen)
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    projected = pjax.project(fit)

    def update(model: Any, state: Any, x: Any, y: Any) -> Any:
        model, state, info = jax.block_until_ready(projected.update(model, state, x, y))
        return model, state, Progress(steps=int(info.steps), gap=None)

    return Method("sweep", projected.init, update, None, projected.update)


def adam(chosen: pjax.sets.Set, rate: float, straight: bool) -> Method:
    """Adam, straight through to latent weights, which are its state, or projected after steps."""
    optimizer = optax.adam(rate)

    def loss(model: Any, x: Any, y: Any) -> Any:
        if straight:
            latent = weights(model)
            passed = latent + jax.lax.stop_gradient(chosen.project(latent) - latent)
            model = with_weights(model, passed)
        return cross_entropy(model, x, y)

    def step(model: Any, state: Any, x: Any, y: Any) -> Any:
        inner, latent = state
        if straight:
            model = with_weights(model, latent)
        updates, inner = optimizer.update(eqx.filter_grad(loss)(model, x, y), inner)
        model = eqx.apply_updates(model, updates)
        latent = weights(model)
        return with_weights(model, chosen.project(latent)), (inner, latent)

    jitted = eqx.filter_jit(step)

    def update(model: Any, state: Any, x: Any, y: Any) -> Any:
        model, state = jax.block_until_ready(jitted(model, state, x, y))
        return model, state, Progress(steps=1, gap=None)

    def init(model: Any) -> Any:
        return optimizer.init(eqx.filter(model, eqx.is_array)), weights(model)

    name = "straight-through Adam" if straight else "projected Adam"
    return Method(f"{name} {rate:g}", init, update, None, step)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(argv)
    data = read(options)
    if data is None:
        return 2
    trained = {name: Trained(SETS[name](options), []) for name in options.set}
    methods = 1 + len(options.learning_rate)

    def work() -> None:
        with tqdm(total=len(trained) * len(options.seeds) * methods, unit="run") as bar:
            for name, one in trained.items():
                bar.set_description(name)
                train(name, one, data, options, bar)

    return attempt(work, lambda: report(trained, options))


def train(name: str, one: Trained, data: Dataset, options: argparse.Namespace, bar: tqdm) -> None:
    """Train with one set by all methods, seed by seed."""
    sizes = MODELS["mlp"].sizes_for(data, [options.width])
    adams = [adam(one.chosen, rate, name == "binary") for rate in options.learning_rate]

    def start(seed: int) -> Any:
        return mlp(jax.random.key(seed), sizes)

    points = {options.batches // 4, options.batches // 2, options.batches}
    for seed in options.seeds:
        for method in (sweep(one.chosen), *adams):
            run = Run(method.name, seed)
            one.runs.append(run)
            task = Task(method, start, data, options.batch_size, points, options.batches)
            follow(task, run)
            bar.update()


def off(one: Trained, run: Run) -> float:
    """How far the weights of a run are from the set."""
    w = weights(run.model)
    return float(jnp.max(jnp.abs(one.chosen.project(w) - w)))


def rows(name: str, one: Trained) -> list[dict[str, Any]]:
    """The lines of a set: the sweep, and Adam at its best rate, by the accuracies of the test."""
    found = []
    for method, several in by_method(one.runs).items():
        ended = [run for run in several if run.history]
        accuracies = [run.history[-1].accuracy for run in ended]
        seconds = [update.seconds for run in several for update in run.log]
        row = {
            "set": name,
            "method": method,
            "test accuracy": spread(accuracies),
            "off": max((off(one, run) for run in ended), default=None),
            "ms a batch": 1e3 * statistics.median(seconds) if seconds else None,
            "mean": statistics.mean(accuracies) if accuracies else 0.0,
        }
        found.append(row)
    return [*found[:1], *sorted(found[1:], key=lambda row: -row["mean"])[:1]]


def report(trained: dict[str, Trained], options: argparse.Namespace) -> None:
    """Print the table, and write the files that were asked for."""
    table = [row for name, one in trained.items() for row in rows(name, one)]
    print(format_table(table, COLUMNS))
    if options.json:
        runs = [{"set": n} | run.curve for n, one in trained.items() for run in one.runs]
        write_json(options.json, {"options": vars(options), "table": table, "runs": runs})
    if options.plot:
        plot(table, trained, options)


def plot(
    table: Sequence[dict[str, Any]], trained: dict[str, Trained], options: argparse.Namespace
) -> None:
    """Accuracies as bars, and some of the weights that the sweep found for every set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 2.5 * len(trained), 4), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(trained))
    for i, row in enumerate(table):
        first.bar(i + i // 2, 100 * row["mean"], color=f"C{i % 2}")
    first.set(ylim=(50, 100), title="accuracy; blue: sweep, orange: Adam", xticks=[])
    for axes, (name, one) in zip(others, trained.items(), strict=True):
        if not one.runs or one.runs[0].model is None:
            continue
        w = np.asarray(weights(one.runs[0].model))
        side = int(np.sqrt(w.shape[1]))
        picture = w[:16, : side * side].reshape(4, 4, side, side).swapaxes(1, 2)
        axes.imshow(picture.reshape(4 * side, 4 * side), cmap="coolwarm")
        axes.set(title=name, xticks=[], yticks=[])
    figure.savefig(options.plot)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = mlp_parser("binary_weights", __doc__)
    parser.set_defaults(batch_size=128, learning_rate=[3e-4, 1e-3, 3e-3, 1e-2])
    add, several = parser.add_argument, arguments.names(SETS)
    add("--set", type=several, default=list(SETS), help=f"of {', '.join(SETS)}")
    add("--width", type=arguments.count, default=64, help="of the hidden layer")
    add("--batches", type=arguments.count, default=150, help="to train on")
    add("--scale", type=arguments.positive, default=0.05, help="s of the binary weights")
    add("--radius", type=arguments.positive, default=5.0, help="of the rows' L1 balls")
    add("--rank", type=arguments.count, default=8, help="of the set of matrices of low rank")
    add("--plot", type=arguments.output_file, help="file for a picture")
    options = parser.parse_args(argv)
    if options.data_dir and "--dataset" not in (argv or sys.argv):
        options.dataset = "mnist"
    return options


if __name__ == "__main__":
    sys.exit(main())
