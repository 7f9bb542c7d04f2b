"""The ways to train a model on a batch, behind one interface: projections and gradients."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

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
    "Loss",
    "Method",
    "Progress",
    "Setting",
    "adam",
    "cross_entropy",
    "default",
    "gradient_step",
    "objective",
    "project",
    "projections",
    "setting",
    "sgd",
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
Loss = Literal["cross_entropy", "margin"]
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

    ``step`` is the update as JAX may trace it; it takes the same, and may return more than needed.
    ``averaged(model, state)`` is the model with averaged parameters, if the method keeps them.
    """

    name: str
    init: Callable[[Any], Any]
    update: Callable[[Any, Any, np.ndarray, np.ndarray], tuple[Any, Any, Progress]]
    averaged: Callable[[Any, Any], Any] | None = None
    step: Callable[[Any, Any, np.ndarray, np.ndarray], Any] | None = None


def objective(loss: Loss = "cross_entropy", lam: float = 1.0) -> Callable[..., Any]:
    """What projections train on: the loss of a model on a batch, of the weight ``lam``.

    The margin is a set, which no weight softens: the true class leads every other one by 1.
    """

    def fit(model, x, y):
        scores = jax.vmap(model)(x)
        if loss == "margin":
            return pjax.losses.margin(scores, y)
        return pjax.losses.cross_entropy(scores, y, lam=lam)

    return fit


def project(
    name: str,
    setting: Setting,
    *,
    steps: int,
    copies: bool | None = None,
    granularity: Any = None,
    schedule: str | None = None,
    beta: float | None = None,
    loss: Loss = "cross_entropy",
) -> Any:
    """A model's loss on a batch, projected: ``steps`` steps of the solver ``name``.

    ``beta`` is that of the difference map; what else may be None is pjax_trace.project's choice.
    """
    lam, parameters, hidden, outputs = setting
    return pjax.project(
        objective(loss, lam),
        solver=SOLVERS[name]() if beta is None else pjax.DifferenceMap(beta),
        steps=steps,
        metric=pjax.Metric(parameters, hidden, outputs),
        copies=copies,
        granularity=granularity,
        schedule=schedule,
    )


def projections(name: str, setting: Setting, *, steps: int, **how: Any) -> Method:
    """One update of `project` a batch; ``how`` are its further arguments."""
    return _projections(name, project(name, setting, steps=steps, **how), sweep=name == "sweep")


def default(loss: Loss = "cross_entropy") -> Method:
    """What ``pjax_trace.project`` does when told nothing: a sweep, momentum and averages."""
    return _projections("default", pjax.project(objective(loss)), sweep=True)


def _projections(name: str, projected: Any, sweep: bool) -> Method:
    def update(model, state, x, y):
        model, state, info = jax.block_until_ready(projected.update(model, state, x, y))
        gap = None if sweep else float(info.gap)  # Of a forward pass there is none.
        return model, state, Progress(steps=int(info.steps), gap=gap)

    averaged = projected.averaged if sweep else None
    return Method(name, projected.init, update, averaged, projected.update)


def adam(learning_rate: float, loss: Loss = "cross_entropy") -> Method:
    """One step of Adam a batch; parameters are averaged beside it."""
    return _gradients(f"adam {learning_rate:g}", optax.adam(learning_rate), loss)


def sgd(learning_rate: float, loss: Loss = "cross_entropy") -> Method:
    """One step of gradient descent with momentum 0.9 a batch; parameters are averaged beside it."""
    return _gradients(f"sgd {learning_rate:g}", optax.sgd(learning_rate, momentum=0.9), loss)


def _gradients(name: str, optimizer: optax.GradientTransformation, loss: Loss) -> Method:
    inner_step = gradient_step(optimizer, loss)

    def step(model, state, x, y):
        model, inner = inner_step((x, y), model, state[0])
        arrays = jax.tree.leaves(eqx.filter(model, eqx.is_array))
        _, memory = AVERAGING.finish(state[1], arrays, arrays, arrays)
        return model, (inner, memory)

    @functools.partial(eqx.filter_jit, donate="all-except-first")
    def donating(batch, model, state):
        return step(model, state, *batch)

    def update(model, state, x, y):
        model, state = jax.block_until_ready(donating((x, y), model, state))
        return model, state, Progress(steps=1, gap=None)

    def init(model):
        arrays = eqx.filter(model, eqx.is_array)
        return optimizer.init(arrays), AVERAGING.init(jax.tree.leaves(arrays))

    def averaged(model, state):
        arrays, rest = eqx.partition(model, eqx.is_array)
        average = AVERAGING.average(state[1])
        return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), average), rest)

    return Method(name, init, update, averaged, step)


def gradient_step(
    optimizer: optax.GradientTransformation, loss: Loss = "cross_entropy"
) -> Callable[..., tuple[Any, Any]]:
    """The step ``(batch, model, state) -> (model, state)`` of an optimizer, on a mean loss."""
    function = cross_entropy if loss == "cross_entropy" else objective(loss)

    def step(batch, model, state):
        gradients = eqx.filter_grad(function)(model, *batch)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state

    return step


def cross_entropy(
    model: Callable[[Array], Array], x: Shaped[Array, "batch ..."], y: Int[Array, "batch ..."]
) -> Float[Array, ""]:
    """The mean cross-entropy of a model on a batch, for gradients."""
    logits = jax.vmap(model)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
