"""Networks as people write them: each traces, runs its steps, and closes its gap."""

import equinox as eqx
import jax
import numpy as np
import pytest

import pjax_trace as pjax

from .models import LABELS, MODELS

# One setting for all: parameters that move a little more than what is computed from them, and a
# loss that is a set, so that the targets can be met.
STEPS, MARGIN, METRIC = 50, 0.25, pjax.Metric(parameters=0.3)


class Watched(pjax.Solver):
    """A solver that reports, in the place of the distances moved, the gaps of its shadow.

    What Douglas–Rachford moves by in one projection does not vanish at a solution; the gap does.
    """

    solver: pjax.Solver

    @property
    def needs_copies(self):
        return self.solver.needs_copies

    def init(self, space, values):
        return self.solver.init(space, values)

    def step(self, space, carry):
        carry, _ = self.solver.step(space, carry)
        return carry, space.original.gaps(self.values(space, carry))

    def values(self, space, carry):
        return self.solver.values(space, carry)


# At Douglas-Rachford's default of 0.5 recurrent cells take up to a hundred steps to get there.
AP, DR = pjax.AlternatingProjections(momentum=0.9), pjax.DouglasRachford(relaxation=0.85)
# Steps are long to compile: one of every kind is run, and every variant traced. What adds least to
# the others is slow.
KINDS = (
    *("relu", "sign", "where", "mlp", "residual MLP", "CNN", "residual CNN", "LayerNorm"),
    *("BatchNorm", "Dropout", "Embedding", "GRUCell", "LSTMCell", "attention", "transformer"),
    *("Flax MLP", "Flax CNN"),
)
QUICK = {
    "AP": {"sign", "CNN"},
    "DR": {"sign", "mlp"},
}


def runs(method, solver):
    """A run of every kind of model."""
    for name in KINDS:
        marks = [pytest.mark.slow] * (name not in QUICK[method])
        yield pytest.param(name, solver, id=f"{method}-{name}", marks=marks)


@pytest.mark.parametrize(("name", "solver"), [*runs("AP", AP), *runs("DR", DR)])
def test_the_gap_closes(name, solver):
    model = MODELS[name]()

    def fit(parameters, x, y):
        return pjax.losses.margin(model.apply(parameters, x), y, margin=MARGIN)

    train = pjax.project(fit, solver=Watched(solver), steps=STEPS, metric=METRIC)
    new, info = train(model.parameters, model.x, LABELS)
    assert bool(info.finite) and np.all(np.isfinite(info.history))
    for leaf in jax.tree.leaves(eqx.filter(new, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))
    # From a forward start the gap is zero before the first step, rises at once, and then falls.
    assert float(info.history[-1]) <= float(np.max(info.history)) / 3, info


@pytest.mark.parametrize("name", [name for name in MODELS if name not in KINDS])
def test_traces(name):
    model = MODELS[name]()

    def fit(parameters, x, y):
        return pjax.losses.margin(model.apply(parameters, x), y, margin=MARGIN)

    graph = pjax.project(fit, schedule="parallel", copies=False).trace(
        model.parameters, model.x, LABELS
    )
    assert graph.constraints and not graph.problems
