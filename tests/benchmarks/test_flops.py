import jax
import jax.numpy as jnp

from benchmarks.flops import count
from benchmarks.methods import adam, projections, setting
from benchmarks.models import mlp


def test_scans_count_as_often_as_they_are_long():
    def scanned(w, x):
        return jax.lax.scan(lambda x, _: (w @ x, None), x, length=7)[0]

    assert count(scanned, jnp.ones((3, 3)), jnp.ones(3)) == 7 * 2 * 9


def test_convolutions_and_conditions():
    def convolved(x, w):
        return jax.lax.conv(x, w, (1, 1), "VALID")

    shapes = jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
    assert count(convolved, *shapes) == 2 * (2 * 4 * 6 * 6) * 27
    branches = lambda n, x: jax.lax.cond(n > 0, lambda x: x + 1, lambda x: x * x + 1, x)  # noqa: E731
    assert count(branches, jnp.ones(()), jnp.ones(10)) in (21, 22)  # The choice, and the dearest.


def test_steps_of_methods_can_be_counted():
    model, x, y = mlp(jax.random.key(0), [6, 5, 4]), jnp.ones((8, 6)), jnp.zeros(8, jnp.int32)
    products = 2 * 8 * (6 * 5 + 5 * 4)
    with jax.numpy_dtype_promotion("standard"):
        step = adam(1e-3)
        assert step.step and products < count(step.step, model, step.init(model), x, y)
    ap = projections("ap", setting("ap", "mlp"), steps=100)
    assert ap.step and count(ap.step, model, ap.init(model), x, y) > 100 * products
