"""Points to project, and two ways to tell whether an answer is the nearest point."""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_convex", "check_nearest", "inner", "points"]


def points(*shape: int, count: int = 10_000, seed: int = 0) -> np.ndarray:
    """Random ones of many sizes, and degenerate ones: ties, zeros, constants, near the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shape))
    sizes = 10 ** rng.uniform(-2, 2, (count,) + (1,) * len(shape))
    kind = rng.integers(0, 8, sizes.shape)
    x = np.where(kind < 3, x * sizes, np.where(kind == 3, 1 + 1e-3 * x, x))
    x = np.where((kind == 4) | (kind == 5), rng.integers(-2, 3, x.shape), x)
    x = np.where(kind == 6, np.sign(x.reshape(count, -1)[:, 0].reshape(sizes.shape)), x)
    x[:: count // 8 + 1] = 0
    return x.astype(np.float32)


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One inner product for each point."""
    return (a * b).reshape(len(a), -1).sum(-1)


def mapped(one):
    """The projection of many points, in one program for each dtype."""
    compiled = jax.jit(jax.vmap(one.project))

    def project(x: np.ndarray) -> np.ndarray:
        y = compiled(jnp.asarray(x))
        assert y.dtype == x.dtype and y.shape == x.shape
        return np.asarray(y, float)

    return project


def sizes_of(x: np.ndarray) -> np.ndarray:
    return 1 + np.abs(x.astype(float)).reshape(len(x), -1).max(-1)


def check_convex(one, x: np.ndarray, outside, gap) -> None:
    """Nearest points of a convex set, by the certificate that each of them carries.

    Args:
        one: the set.
        x: float32 points; the leading axis counts them.
        outside: how far points y are outside of the set, one number each.
        gap: of ``g = x - y`` and y, an upper bound of ``<g, z - y>`` for z in the set, which are as
            large as x. It bounds the squared distance between y and the nearest point.
    """
    assert one.convex
    size, project = sizes_of(x), mapped(one)
    with jax.enable_x64(True):
        y = project(x.astype(float))
        again = project(y)
    assert np.max(outside(y) / size) <= 1e-10
    assert np.max(gap(x - y, y) / size**2) <= 1e-10
    assert np.max(np.abs(again - y).reshape(len(x), -1).max(-1) / size) <= 1e-9
    away = np.abs(project(x) - y).reshape(len(x), -1).max(-1)
    assert np.max(away / size) <= 1e-5


def check_nearest(one, x: np.ndarray, outside, distance) -> None:
    """Nearest points, told from points of the set by their distances.

    Args:
        one: the set.
        x: float32 points; the leading axis counts them.
        outside: how far points y are outside of the set, one number each.
        distance: what the distances from x to the set are.
    """
    size, project = sizes_of(x), mapped(one)
    y = project(x)
    assert np.max(outside(y) / size) <= 1e-5
    away = np.sqrt(inner(x - y, x - y))
    assert np.max(np.abs(away - distance(x.astype(float))) / size) <= 1e-5
    assert np.max(outside(project(y.astype(np.float32)))) <= 1e-5 * size.max()
