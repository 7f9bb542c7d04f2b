import jax
import jax.numpy as jnp
import pytest

from benchmarks.methods import adam, projections, setting
from benchmarks.models import mlp
from pjax_trace.operations import operations


def scanned(w, x):
    return jax.lax.scan(lambda x, _: (w @ x, None), x, length=7)[0]


def test_scans_count_as_often_as_they_are_long():
    w, x = jnp.ones((3, 3)), jnp.ones(3)
    assert 0 <= operations(scanned, w, x) - 7 * 2 * 9 <= 2  # And a counter.
    nested = operations(lambda w, x: jax.lax.fori_loop(0, 5, lambda _, x: scanned(w, x), x), w, x)
    assert 0 <= nested - 5 * 7 * 2 * 9 <= 5 * 4


def test_open_loops_count_to_a_limit():
    def halved(x):
        return jax.lax.while_loop(lambda x: x[0] > 1, lambda x: x / 2, x)

    once, often = (operations(halved, jnp.ones(10), limit=n) for n in (1, 31))
    assert once >= 10 and often - once == 30 * 10


def test_of_the_branches_of_a_condition_the_dearest_counts():
    def branches(n, w, x):
        return jax.lax.cond(n > 0, scanned, lambda w, x: w @ (w @ x), w, x)

    found = operations(branches, jnp.ones(()), jnp.ones((3, 3)), jnp.ones(3))
    assert 0 <= found - 7 * 2 * 9 <= 4


def test_what_lapack_does_counts():
    x = jnp.ones((6, 6))
    for solve in (jnp.linalg.solve, jax.jit(jnp.linalg.solve)):
        found = operations(solve, x, x)
        assert 2 * 6**3 / 3 + 2 * 6**3 <= found <= 2 * 6**3 / 3 + 2 * 6**3 + 4 * 6**2
    factorized = operations(lambda x: jnp.linalg.cholesky(x, symmetrize_input=False), x)
    # A stack of matrices is solved by another call, which XLA counts.
    lower = jnp.ones((4, 6, 6))
    solve = lambda a, b: jax.lax.linalg.triangular_solve(a, b, left_side=True, lower=True)  # noqa: E731
    assert 0 <= factorized - 6**3 / 3 <= 2 * 6**2  # Half of the matrix is set to zero.
    assert operations(solve, lower, lower) == 4 * 6**3


def test_what_is_read_by_nothing_does_not_count():
    x = jnp.ones((6, 6))
    kept = operations(lambda x: (x @ x, jnp.sin(x))[1], x)
    assert kept == operations(jnp.sin, x) == 36


def test_scatters_and_windows():
    x = jnp.ones((6, 6))
    found = operations(lambda x: x.at[jnp.arange(3)].add(1.0), x)
    assert found is not None and 18 <= found < 40  # And few of indices.
    window = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 3), (1, 1), "VALID")  # noqa: E731
    assert operations(window, x) == 5 * 4 * (6 - 1)


def test_convolutions():
    def convolved(x, w):
        return jax.lax.conv(x, w, (1, 1), "VALID")

    shapes = jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
    assert operations(convolved, *shapes) == 2 * (2 * 4 * 6 * 6) * 27
    out = jnp.ones((2, 4, 4, 4))
    strided = lambda x: jax.lax.conv(x, shapes[1], (2, 2), "SAME")  # noqa: E731
    back = lambda x: jax.vjp(strided, x)[1](out)  # noqa: E731
    # What meets does so once on each way.
    assert operations(back, shapes[0]) == operations(strided, shapes[0])


@pytest.mark.usefixtures("loose_promotion")
def test_steps_of_methods_can_be_counted():
    model, x, y = mlp(jax.random.key(0), [6, 5, 4]), jnp.ones((8, 6)), jnp.zeros(8, jnp.int32)
    products = 2 * 8 * (6 * 5 + 5 * 4)
    for method in (adam(1e-3), projections("ap", setting("ap", "mlp"), steps=100)):
        assert method.step
        found = operations(method.step, model, method.init(model), x, y)
        assert found is not None and found > products * (1 if method.name != "ap" else 100)
