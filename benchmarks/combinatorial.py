"""Queens, colourings, clauses and bits: as programs for pjax-trace, and by hand."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import pjax_trace as pjax
from benchmarks.feasibility import ByHand, Instance, normal_starts, uniform_starts

__all__ = ["PROBLEMS"]


def one_hot(x: Array, axis: int) -> Array:
    """The nearest array with one 1 along an axis, and zeros."""
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return (places == jnp.argmax(x, axis, keepdims=True)).astype(x.dtype)


def skewed(x: Array) -> Array:
    """A square board with its diagonals as columns, and zeros beside them."""
    n = len(x)
    return jnp.pad(x, ((0, 0), (0, n))).reshape(-1)[: n * (2 * n - 1)].reshape(n, 2 * n - 1)


def straight(x: Array) -> Array:
    """The board of a skewed one."""
    n = len(x)
    return jnp.pad(x.reshape(-1), (0, n)).reshape(n, 2 * n)[:, :n]


def queens(x: Array) -> None:
    """One queen in every row and column, at most one on every diagonal."""
    pjax.constrain(x, pjax.sets.OneHot(axis=1))
    pjax.constrain(x, pjax.sets.OneHot(axis=0))
    pjax.constrain(skewed(x), pjax.sets.AtMost(1, axis=0))
    pjax.constrain(skewed(x[:, ::-1]), pjax.sets.AtMost(1, axis=0))


def _divide_queens(u: Array) -> Array:
    def diagonals(x: Array) -> Array:
        tall = skewed(x)
        return straight(jnp.where(tall > 0.5, one_hot(tall, 0), 0))

    back = diagonals(u[3][:, ::-1])[:, ::-1]
    return jnp.stack([one_hot(u[0], 1), one_hot(u[1], 0), diagonals(u[2]), back])


def _concur(u: Array, *data: Any) -> Array:
    return jnp.broadcast_to(jnp.mean(u, 0), u.shape)


QUEENS = ByHand(
    _divide_queens,
    _concur,
    spread=lambda x: jnp.broadcast_to(x, (4, *x.shape)),
    gather=lambda u: jnp.mean(u, 0),
)


def queens_instance(seed: int, options: argparse.Namespace) -> Instance:
    """A board."""
    n = options.n

    def accepts(x: Any) -> bool:
        rows, columns = np.nonzero(np.asarray(x) > 0.5)
        lines = (rows, columns, rows + columns, rows - columns)
        return len(rows) == n and all(len(set(line.tolist())) == n for line in lines)

    starts = uniform_starts(seed, options.starts, (n, n))
    return Instance(f"{n} queens", queens, (), QUEENS, starts, accepts)


def colouring(x: Array, edges: Array) -> None:
    """A colour for every vertex, and every colour at one end of an edge at most."""
    pjax.constrain(x, pjax.sets.OneHot(axis=1))
    pjax.constrain(x[edges], pjax.sets.AtMost(1, axis=1))


@functools.lru_cache
def _colouring_by_hand(vertices: int) -> ByHand:
    def prepare(edges: Array) -> tuple[Array, Array]:
        return edges, jnp.zeros((vertices, 1)).at[edges].add(1.0)

    def divide(u: Any, edges: Array, degrees: Array) -> Any:
        whole, ends = u
        return one_hot(whole, 1), jnp.where(ends > 0.5, one_hot(ends, 1), 0)

    def means(u: Any, edges: Array, degrees: Array) -> Array:
        whole, ends = u
        return whole.at[edges].add(ends) / (1 + degrees)

    def concur(u: Any, edges: Array, degrees: Array) -> Any:
        x = means(u, edges, degrees)
        return x, x[edges]

    return ByHand(divide, concur, prepare, lambda x, edges, degrees: (x, x[edges]), means)


def colouring_instance(seed: int, options: argparse.Namespace) -> Instance:
    """A graph with an edge between vertices of different colours only."""
    rng, n = np.random.default_rng(seed), options.vertices
    colours = rng.integers(0, 3, n)
    pairs = [(i, j) for i in range(n) for j in range(i) if colours[i] != colours[j]]
    edges = np.array(pairs)[rng.choice(len(pairs), options.edges, replace=False)]

    def accepts(x: Any) -> bool:
        found = np.argmax(x, 1)
        return bool(np.all(found[edges[:, 0]] != found[edges[:, 1]]))

    starts = uniform_starts(seed, options.starts, (n, 3))
    name, data = f"3-colouring {n}, {options.edges}", (jnp.asarray(edges),)
    return Instance(name, colouring, data, _colouring_by_hand(n), starts, accepts)


def satisfiable(x: Array, places: Array, signs: Array) -> None:
    """A literal of every clause is true."""
    pjax.constrain(x[places], pjax.sets.Clause(signs, axis=1))


@functools.lru_cache
def _clauses_by_hand(variables: int) -> ByHand:
    def prepare(places: Array, signs: Array) -> tuple[Array, Array, Array]:
        count = jnp.zeros(variables).at[places].add(1.0)
        return places, signs, jnp.maximum(count, 1)

    def divide(u: Array, places: Array, signs: Array, count: Array) -> Array:
        gain = signs * (u - 0.5)  # Positive where a literal is true.
        true = (gain > 0) | (one_hot(gain, 1) > 0)
        return jnp.where(true == (signs > 0), 1.0, 0.0)

    def means(u: Array, places: Array, signs: Array, count: Array) -> Array:
        return jnp.zeros(variables).at[places].add(u) / count

    def concur(u: Array, places: Array, signs: Array, count: Array) -> Array:
        return means(u, places, signs, count)[places]

    return ByHand(divide, concur, prepare, lambda x, places, *data: x[places], means)


def clauses_instance(seed: int, options: argparse.Namespace) -> Instance:
    """Clauses of three literals, each of which a hidden assignment makes true."""
    rng, n = np.random.default_rng(seed), options.variables
    hidden = rng.choice([-1.0, 1.0], n)
    places, signs = [], []
    while len(places) < round(options.ratio * n):
        place, sign = rng.choice(n, 3, replace=False), rng.choice([-1.0, 1.0], 3)
        if np.any(sign == hidden[place]):
            places.append(place)
            signs.append(sign)

    def accepts(x: Any) -> bool:
        values = np.where(np.asarray(x) > 0.5, 1.0, -1.0)
        return bool(np.all(np.any(values[np.array(places)] == np.array(signs), axis=1)))

    starts = uniform_starts(seed, options.starts, (n,))
    data = jnp.asarray(np.array(places)), jnp.asarray(np.array(signs), jnp.float32)
    name = f"3-SAT {n}, {len(places)}"
    return Instance(name, satisfiable, data, _clauses_by_hand(n), starts, accepts)


def bits(x: Array, magnitudes: Array) -> None:
    """Signs with these magnitudes of their transform."""
    pjax.constrain(jnp.abs(jnp.fft.fft(x)), pjax.sets.Equal(magnitudes))
    pjax.constrain(x, pjax.sets.Binary(-1.0, 1.0))


def with_magnitudes(x: Array, magnitudes: Array) -> Array:
    """The nearest vector with these magnitudes."""
    spectrum = jnp.fft.fft(x)
    size = jnp.abs(spectrum)
    phases = jnp.where(size > 0, spectrum / jnp.where(size > 0, size, 1), 1)
    return jnp.real(jnp.fft.ifft(magnitudes * phases))


def signs_of(x: Array, magnitudes: Array) -> Array:
    """The nearest vector of signs."""
    return jnp.where(x > 0, 1.0, -1.0)


BITS = ByHand(with_magnitudes, signs_of)


def bits_instance(seed: int, options: argparse.Namespace) -> Instance:
    """Random signs; their shifts, reversals and negatives count as found, and so does any other."""
    rng, n = np.random.default_rng(seed), options.bits
    magnitudes = np.abs(np.fft.fft(rng.choice([-1.0, 1.0], n)))

    def accepts(x: Any) -> bool:
        found = np.abs(np.fft.fft(np.where(np.asarray(x) > 0, 1.0, -1.0)))
        return bool(np.allclose(found, magnitudes, atol=1e-4))

    starts = normal_starts(seed, options.starts, (n,))
    data = (jnp.asarray(magnitudes, jnp.float32),)
    return Instance(f"bit retrieval {n}", bits, data, BITS, starts, accepts)


PROBLEMS: dict[str, Callable[[int, argparse.Namespace], Instance]] = {
    "queens": queens_instance,
    "colouring": colouring_instance,
    "sat": clauses_instance,
    "bits": bits_instance,
}
