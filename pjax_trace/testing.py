"""Is a rule a projection? For authors of rules, and for this library's own tests."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from pjax_trace import _compat
from pjax_trace.errors import InputError
from pjax_trace.point import Point

__all__ = ["Report", "brute_force", "check_rule"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_rule` found; the worst over all samples, each relative.

    Attributes:
        samples: how many points were projected.
        infeasibility: ``|z' − f(x')|`` of the projected point.
        excess: of its squared distance over the best that brute force found.
        drift: how far a second projection moves it.
    """

    samples: int
    infeasibility: float
    excess: float
    drift: float


def check_rule(
    fn: Callable[..., Array],
    *operands: ArrayLike,
    samples: int = 20,
    seed: int = 0,
    scale: float = 1.0,
    tolerance: float = 1e-3,
) -> Report:
    """Check that the rule of a function is a projection, against brute force in float64.

    Random points in random metrics are projected. The result must be finite; *feasible*, on the
    graph of the function; *nearest*, no point that a brute-force search finds being nearer in that
    metric, so that the weights are respected; and *idempotent*, staying when projected again.

    Args:
        fn: a function that traces to one constraint of the rule, as for `pjax_trace.project_point`;
            arrays that it closes over are data.
        *operands: arrays of the right shapes. They are the centre of the random points. Small ones:
            the search is over all their elements together.
        samples: how many points.
        seed: for the random numbers.
        scale: how far the points are from the centre, typically.
        tolerance: what is still right, relative to the size of the point.

    Returns:
        The report of a rule that passed.

    Raises:
        AssertionError: with what is wrong with the first point that fails each check.
        InputError, TraceError, MissingRuleError: as `pjax_trace.project_point`.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> report = pjax.testing.check_rule(jnp.abs, jnp.zeros(1), samples=5)
        >>> report.excess < 1e-3
        True
        >>> @pjax.custom_projection
        ... def halve(x):
        ...     return 0.5 * x
        >>> @halve.defprojection
        ... def keep_x(operands, out, weights):  # feasible, but not nearest
        ...     return operands, 0.5 * operands[0]
        >>> try:
        ...     pjax.testing.check_rule(halve, jnp.zeros(1), samples=5)
        ... except AssertionError as error:
        ...     print("not the nearest point" in str(error))
        True
    """
    if not operands:
        raise InputError("check_rule: give the function's operands, as arrays of their shapes")
    random = np.random.default_rng(seed)
    batch = _Samples.draw(fn, operands, samples, scale, random)
    point = Point(fn, [x[0] for x in batch.operands], batch.out.shape[1:])
    project = jax.jit(jax.vmap(point.project))
    moved, moved_out = project(batch.operands, batch.out, batch.weights)
    again, _ = project(moved, moved_out, batch.weights)
    values = jax.vmap(fn)(*moved)
    least, nearest = brute_force(fn, batch.operands, batch.out, batch.weights, (moved,), seed=seed)
    with _compat.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        own = np.asarray(jax.vmap(functools.partial(_distance, fn))(*_exact((*batch, moved))))
    unit = np.maximum(_largest(*batch.operands, batch.out), 1e-30)
    # Squared distances below this are rounding error of the point itself.
    floor = _largest(*batch.weights[0], batch.weights[1]) * (1e-4 * unit) ** 2
    finite = np.isfinite(_largest(*moved, moved_out))
    measures = {
        "infeasibility": _largest(_minus(moved_out, values)) / unit,
        "excess": (own - least) / np.maximum(own, floor),
        "drift": _largest(*map(_minus, again, moved)) / unit,
    }
    wrong = {
        "not finite": ~finite,
        "not feasible": measures["infeasibility"] > tolerance,
        "not the nearest point": measures["excess"] > tolerance,
        "not idempotent": measures["drift"] > 10 * tolerance,
    }
    lines = []
    for what, where in wrong.items():
        if where.any():
            k = int(np.argmax(where))
            start = [np.asarray(x[k]).tolist() for x in (*batch.operands, batch.out)]
            metric = [np.asarray(w[k]).tolist() for w in (*batch.weights[0], batch.weights[1])]
            found = [np.asarray(x[k]).tolist() for x in (*moved, moved_out)]
            lines.append(
                f"  {what} in {int(where.sum())} of {samples} samples, such as operands and out "
                f"{start} with weights {metric}: projected to {found}, at squared distance "
                f"{own[k]:.6g}; f of it is {np.asarray(values[k]).tolist()}; the nearest point "
                f"found is {[np.asarray(x[k]).tolist() for x in nearest]}, at {least[k]:.6g}"
            )
    if lines:
        name = getattr(fn, "__name__", repr(fn))
        raise AssertionError("\n".join([f"the rule of {name} is no projection:", *lines]))
    return Report(samples, **{name: float(np.max(m, initial=0)) for name, m in measures.items()})


class _Samples(NamedTuple):
    """Random points and metrics, samples first."""

    operands: tuple[Array, ...]
    out: Array
    weights: tuple[tuple[Array, ...], Array]

    @staticmethod
    def draw(
        fn: Any, centre: Sequence[Any], samples: int, scale: float, random: np.random.Generator
    ) -> "_Samples":
        """Points around a centre, over two decades; some on the graph or near it."""
        dtype = jnp.result_type(float)
        shapes = [np.shape(x) for x in centre]
        sizes = scale * 10 ** random.uniform(-1, 1, samples)

        def around(x: Any, shape: tuple[int, ...]) -> Array:
            noise = random.normal(size=(samples, *shape))
            return jnp.asarray(x + _scaled(sizes, noise), dtype)

        operands = tuple(around(np.asarray(x), s) for x, s in zip(centre, shapes, strict=True))
        values = np.asarray(jax.vmap(fn)(*operands))
        spread = _scaled(sizes * random.integers(0, 3, samples), random.normal(size=values.shape))
        weights = tuple(
            jnp.asarray(10 ** random.uniform(-1.5, 1.5, samples), dtype) for _ in centre
        )
        out_weight = jnp.asarray(10 ** random.uniform(-1.5, 1.5, values.shape), dtype)
        return _Samples(operands, jnp.asarray(values + spread, dtype), (weights, out_weight))


def brute_force(
    fn: Callable[..., Array],
    operands: Sequence[ArrayLike],
    out: ArrayLike,
    weights: tuple[Sequence[ArrayLike], ArrayLike],
    starts: Sequence[Sequence[ArrayLike]] = (),
    *,
    seed: int = 0,
    rounds: int = 60,
    candidates: int = 256,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Search for nearest points on the graph of a function, in float64, without derivatives.

    Random candidates around the best point so far, in a radius that shrinks from the size of the
    problem to nothing, from several starts. Knows nothing of projections.

    Args:
        fn: the function of one sample.
        operands: the points' operands, samples first.
        out: the points' outputs, samples first.
        weights: per operand one scalar a sample; and weights of the shape of ``out``.
        starts: operands to start from, besides the points' own and random ones.
        seed: for the candidates.
        rounds: how often the radius shrinks, by a quarter.
        candidates: how many points are tried in each round.

    Returns:
        The least squared distance found for every sample, and the operands it is found at.
    """

    def search(point: Any, target: Array, metric: Any, begin: Any, key: Array) -> Any:
        def distance(xs: Any) -> Array:
            total = _distance(fn, point, target, metric, xs)
            return jnp.where(jnp.isnan(total), jnp.inf, total)

        size = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=1.0) for x in (*point, target)]))

        def shrink(i: Any, carry: Any) -> Any:
            best, least = carry
            first, second = jax.random.split(jax.random.fold_in(key, i))

            def around(x: Array, number: int) -> Array:
                shape = (candidates, *x.shape)
                step = jax.random.normal(jax.random.fold_in(first, number), shape, x.dtype)
                # Half of the candidates move only some of the coordinates.
                some = jax.random.bernoulli(jax.random.fold_in(second, number), 0.5, shape)
                all_of_it = (jnp.arange(candidates) < candidates // 2)[
                    (slice(None),) + (None,) * x.ndim
                ]
                return x[None] + size * 0.75**i * jnp.where(some | all_of_it, step, 0.0)

            tried = [around(x, number) for number, x in enumerate(best)]
            found = jax.vmap(distance)(tried)
            index = jnp.argmin(found)
            better = found[index] < least
            best = [jnp.where(better, t[index], b) for t, b in zip(tried, best, strict=True)]
            return best, jnp.minimum(least, found[index])

        return jax.lax.fori_loop(0, rounds, shrink, (list(begin), distance(begin)))

    with _compat.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        point, target, metric, starts = _exact(
            (tuple(operands), out, (tuple(weights[0]), weights[1]), [tuple(s) for s in starts])
        )
        random = np.random.default_rng(seed)
        size = np.maximum(_largest(*point, target), 1.0)
        wild = [
            tuple(x + jnp.asarray(_scaled(size, random.normal(size=x.shape))) for x in point)
            for _ in range(4)
        ]
        run = jax.jit(jax.vmap(search))
        keys = jax.random.split(jax.random.key(seed), len(size))
        least = np.full(len(size), np.inf)
        nearest = tuple(np.array(x) for x in point)
        for start in (point, *starts, *wild):
            found, distance = run(point, target, metric, start, keys)
            better = np.asarray(distance) < least
            least = np.where(better, np.asarray(distance), least)
            nearest = tuple(
                np.where(better.reshape(-1, *(1,) * (n.ndim - 1)), np.asarray(f), n)
                for n, f in zip(nearest, found, strict=True)
            )
    return least, nearest


def _distance(fn: Any, point: Any, target: Array, metric: Any, xs: Any) -> Array:
    """The squared distance of a point from that of the graph with the operands ``xs``."""
    total = jnp.sum(metric[1] * jnp.square(fn(*xs) - target))
    for x, start, weight in zip(xs, point, metric[0], strict=True):
        total = total + weight * jnp.sum(jnp.square(x - start))
    return total


def _exact(arrays: Any) -> Any:
    """The same arrays in float64."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), arrays)


def _minus(x: Any, y: Any) -> np.ndarray:
    return np.asarray(x, np.float64) - np.asarray(y, np.float64)


def _scaled(sizes: np.ndarray, x: np.ndarray) -> np.ndarray:
    return sizes.reshape(-1, *(1,) * (x.ndim - 1)) * x


def _largest(*arrays: Any) -> np.ndarray:
    """The largest absolute value in every sample."""
    flat = [np.abs(np.asarray(x, np.float64)).reshape(len(np.asarray(x)), -1) for x in arrays]
    return np.concatenate(flat, 1).max(1, initial=0.0)
