"""The two ways to train a model on a batch, behind one interface: projections and Adam."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

import pjax_trace as pjax
from benchmarks.models import MODELS

__all__ = [
    "AVERAGING",
    "COPY_FREE",
    "SOLVERS",
    "Method",
    "Progress",
    "Setting",
    "adam",
    "adam_step",
    "cross_entropy",
    "project",
    "projections",
    "setting",
]

SOLVERS: dict[str, Callable[[], Any]] = {
    "ap": pjax.AlternatingProjections,
    "ap-momentum": lambda: pjax.AlternatingProjections(momentum=0.9),
    "ap-anderson": lambda: pjax.Accelerated(pjax.AlternatingProjections(), pjax.Anderson()),
    "ar": pjax.AlternatingReflections,
    "dr": pjax.DouglasRachford,
    "dm": pjax.DifferenceMap,
    "cp": pjax.CyclicProjections,
    "cdr": pjax.CyclicDouglasRachford,
    "sweep": pjax.Sweep,
}
COPY_FREE = ("ap", "ap-momentum", "ap-anderson", "sweep")
AVERAGING = pjax.Averaging()


class Setting(NamedTuple):
    """What a solver learns well with: the weight of the loss, and those of the metric."""

    lam: float
    parameters: float
    hidden: float
    outputs: float


def setting(name: str, model: str) -> Setting:
    """The defaults for the solver ``name`` and a kind of model.

    Those for features were tuned on digits and MNIST; others are the best of a handful tried.
    """
    if name == "sweep":
        return Setting(lam=1.0, parameters=1.0, hidden=1.0, outputs=1.0)
    if name not in COPY_FREE:
        return Setting(lam=3.0, parameters=10.0, hidden=0.1, outputs=1.0)
    return {
        "features": Setting(lam=1.0, parameters=10.0, hidden=1.0, outputs=1.0),
        "images": Setting(lam=5.0, parameters=0.1, hidden=1.0, outputs=1.0),
        # With equal weights, all products of a row share one root: a step costs a third.
        "text": Setting(lam=1.0, parameters=1.0, hidden=1.0, outputs=1.0),
    }[MODELS[model].reads]


class Progress(NamedTuple):
    """What one update reports: steps taken, and the gap where there is one."""

    steps: int
    gap: float | None


class Method(NamedTuple):
    """``state = init(model)``, then ``model, state, progress = update(model, state, x, y)``.

    ``averaged(model, state)`` is the model with averaged parameters, if the method keeps them.
    """

    name: str
    init: Callable[[Any], Any]
    update: Callable[[Any, Any, np.ndarray, np.ndarray], tuple[Any, Any, Progress]]
    averaged: Callable[[Any, Any], Any] | None = None


def project(
    name: str,
    setting: Setting,
    *,
    steps: int,
    copies: bool | None = None,
    granularity: Any = None,
    schedule: str | None = None,
) -> Any:
    """A model's cross-entropy on a batch, projected: ``steps`` steps of the solver ``name``."""
    lam, *weights = setting

    def fit(model, x, y):
        return pjax.losses.cross_entropy(jax.vmap(model)(x), y, lam=lam)

    parameters, hidden, outputs = weights
    metric = pjax.Metric(parameters, hidden, outputs)
    return pjax.project(
        fit,
        solver=SOLVERS[name](),
        steps=steps,
        metric=metric,
        copies=copies,
        granularity=granularity,
        schedule=schedule,
    )


def projections(name: str, setting: Setting, *, steps: int, granularity: Any = None) -> Method:
    """One update of `project` a batch."""
    projected = project(name, setting, steps=steps, granularity=granularity)
    sweep = name == "sweep"

    def update(model, state, x, y):
        model, state, info = jax.block_until_ready(projected.update(model, state, x, y))
        gap = None if sweep else float(info.gap)  # Of a forward pass there is none.
        return model, state, Progress(steps=int(info.steps), gap=gap)

    return Method(name, projected.init, update, projected.averaged if sweep else None)


def adam(learning_rate: float) -> Method:
    """One step of Adam a batch, on the mean cross-entropy; parameters are averaged beside it."""
    optimizer = optax.adam(learning_rate)
    step = adam_step(optimizer)

    @functools.partial(eqx.filter_jit, donate="all-except-first")
    def averaged_step(batch, model, state):
        model, inner = step(batch, model, state[0])
        arrays = jax.tree.leaves(eqx.filter(model, eqx.is_array))
        _, memory = AVERAGING.finish(state[1], arrays, arrays, arrays)
        return model, (inner, memory)

    def update(model, state, x, y):
        model, state = jax.block_until_ready(averaged_step((x, y), model, state))
        return model, state, Progress(steps=1, gap=None)

    def init(model):
        arrays = eqx.filter(model, eqx.is_array)
        return optimizer.init(arrays), AVERAGING.init(jax.tree.leaves(arrays))

    def averaged(model, state):
        arrays, rest = eqx.partition(model, eqx.is_array)
        average = AVERAGING.average(state[1])
        return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), average), rest)

    return Method(f"adam {learning_rate:g}", init, update, averaged)


def adam_step(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """The step ``(batch, model, state) -> (model, state)`` of an optimizer."""

    def step(batch, model, state):
        gradients = eqx.filter_grad(cross_entropy)(model, *batch)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state

    return step


def cross_entropy(
    model: Callable[[Array], Array], x: Shaped[Array, "batch ..."], y: Int[Array, "batch ..."]
) -> Float[Array, ""]:
    """The mean cross-entropy of a model on a batch, for gradients."""
    logits = jax.vmap(model)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
