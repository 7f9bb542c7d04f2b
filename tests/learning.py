"""How programs are trained in tests: by a sweep and by a classical solver, against `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np

import pjax_trace as pjax

__all__ = ["CLASSICAL", "LIMIT", "cosines", "fractions", "normal"]

# Heavy damping, no trust for every unit: a move is along the gradient.
LIMIT = pjax.Sweep(strength=1e-3, damping=1e4, share=None, decay=None, per_unit=False, trust=1e9)
CLASSICAL = {"solver": pjax.AlternatingProjections(momentum=0.9), "steps": 15}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def cosines(fit, params, *args):
    """Of a sweep's moves with the negative gradients, in double precision, by parameter."""

    def wide(x):
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, args = jax.tree.map(wide, (params, args))
        new, _ = pjax.project(fit, solver=LIMIT, acceleration=())(params, *args)
        slopes = jax.grad(fit)(params, *args)
        found = []
        for old, moved, slope in zip(*map(jax.tree.leaves, (params, new, slopes)), strict=True):
            step, slope = np.ravel(old - moved), np.ravel(slope)
            if np.linalg.norm(slope) > 1e-6:
                lengths = np.linalg.norm(step) * np.linalg.norm(slope)
                found.append(float(step @ slope / lengths))
        return found


def fractions(fit, params, *args, count, **options):
    """The loss after every one of some updates, over the loss at the start."""
    train = pjax.project(fit, **options)
    state, first, found = train.init(params), float(fit(params, *args)), []
    for _ in range(count):
        params, state, info = train.update(params, state, *args)
        assert bool(info.finite)
        found.append(float(fit(params, *args)) / first)
    return found
