import jax
import jax.numpy as jnp

from benchmarks.flops import count
from benchmarks.methods import adam, projections, setting
from benchmarks.models import mlp


def test_scans_count_as_often_as_they_are_long():
    def scanned(w, x):
        return jax.lax.scan(lambda x, _: (w @ x, None), x, length=7)[0]

    assert count(scanned, jnp.ones((3, 3)), jnp.ones(3)) == 7 * 2 * 9


def test_what_has_bodies_that_do_not_run():
    x = jnp.ones((6, 6))
    assert count(lambda x: x.at[jnp.arange(3)].add(1.0), x) in range(18, 40)  # And few of indices.
    window = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 3), (1, 1), "VALID")  # noqa: E731
    assert count(window, x) == 5 * 4 * 6
    solve = count(jnp.linalg.solve, x, x)
    assert 2 * 6**3 / 3 + 2 * 6**3 <= solve <= 2 * 6**3 / 3 + 2 * 6**3 + 4 * 6**2


def test_convolutions_and_conditions():
    def convolved(x, w):
        return jax.lax.conv(x, w, (1, 1), "VALID")

    shapes = jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
    assert count(convolved, *shapes) == 2 * (2 * 4 * 6 * 6) * 27
    out = jnp.ones((2, 4, 4, 4))
    strided = lambda x: jax.lax.conv(x, shapes[1], (2, 2), "SAME")  # noqa: E731
    there, back = (count(f, shapes[0]) for f in (strided, lambda x: jax.vjp(strided, x)[1](out)))
    assert back == 2 * there  # What meets does so once on each way.
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
