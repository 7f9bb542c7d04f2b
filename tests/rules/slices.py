"""What the tests of functions of slices share."""

import jax
import jax.numpy as jnp
import numpy as np

import pjax_trace as pjax
from pjax_trace.rule import Weights


def cost(f, x, x0, z0, wx, wz):
    return np.sum(wx * (x - x0) ** 2 + wz * (f(x) - z0) ** 2, -1)


def project(rule, x0, z0, wx, wz, **params):
    """The moved slices in float64, their outputs and the distance that the rule tells."""

    @jax.jit
    def run(x0, z0, wx, wz):
        moments, out, distance = rule.project(params, (x0,), z0, Weights((wx,), wz))
        return moments[0].first / moments[0].mass, out, distance

    x, z, distance = (np.asarray(a, np.float64) for a in run(x0, z0, wx, wz))
    assert np.isfinite(x).all() and np.isfinite(z).all() and np.isfinite(distance)
    return x, z, distance


def names(function, x):
    def fit(x):
        out = function(x)
        return pjax.losses.squared_error(out.reshape(1, -1), jnp.zeros((1, out.size)))

    return [
        c.name for c in pjax.project(fit, schedule="parallel", copies=False).trace(x).constraints
    ][:-1]
