"""Sums of products, small and large, against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pjax_trace.sums import column_sums, inner, squared


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 5), (64, 64), (65, 64), (300, 40)])
def test_they_are_the_sums(shape):
    x, y = (np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in (0, 1))
    wide = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(inner(jnp.asarray(x), jnp.asarray(y)), np.vdot(*wide), atol=1e-3)
    np.testing.assert_allclose(squared(jnp.asarray(x)), np.sum(wide[0] ** 2), rtol=1e-5)
    np.testing.assert_allclose(column_sums(jnp.asarray(x)), np.sum(wide[0], 0), atol=1e-4)


@pytest.mark.parametrize("size", [3, 5000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_not_finite_is_lost(size, value):
    x = np.zeros(size, np.float32)
    x[1] = value
    assert np.isnan(inner(jnp.asarray(x) * 0, jnp.asarray(x)))
