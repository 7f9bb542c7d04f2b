"""Rows with a maximum: random and degenerate ones, and an oracle in float64.

A row's nearest point has the k largest operands at one height, for some k: the oracle tries every
k and keeps the least distance.
"""

import numpy as np

EPS = 2.0**-22  # two units in the last place of a float32


def decades(rng, shape, low=-3, high=3):
    return 10 ** rng.uniform(low, high, shape)


def single(*arrays):
    return [np.asarray(a, np.float32) for a in arrays]


def double(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def check(distance, least, floor):
    """A ten-thousandth more than the least distance, or rounding error."""
    distance, least = np.asarray(distance), np.asarray(least)
    assert np.isfinite(distance).all()
    excess = (distance - least) / (least + 1e4 * floor + 1e-36)
    assert excess.max() <= 1e-4, (int(excess.argmax()), excess.max())


ROWS = ("general", "ties", "equal", "spread", "geometric", "offset")


def rows_of(kind, n, count, rng):
    """Operands, outputs and weights of rows, in float32."""
    x = rng.normal(size=(count, n)) * decades(rng, (count, 1), -2, 2)
    if kind == "ties":
        x = np.round(rng.normal(size=(count, n)) * 2)
    if kind == "equal":
        x = np.broadcast_to(x[:, :1], x.shape)
    if kind == "spread":
        x = rng.choice([-1, 1], (count, n)) * decades(rng, (count, n), -15, 15)
    if kind == "geometric":
        x = np.broadcast_to(2.0 ** (40 - 80 * np.arange(n) / n), (count, n))
    if kind == "offset":
        x = 1000 + x
    top, size = x.max(1), np.abs(x).max(1)
    z = np.where(rng.random(count) < 0.5, top, 0) + size * rng.normal(size=count) * decades(
        rng, count, -2, 1
    )
    z = np.where(rng.random(count) < 0.1, top, z)
    return (
        *single(x, z),
        *(float(w) for w in single(*decades(rng, 1))),
        *single(decades(rng, count)),
    )


def least_of_rows(x, z, w, wz):
    """The least squared distance to ``z = max(x)``, over the number of operands at the top."""
    order = -np.sort(-x, axis=1)
    n = x.shape[1]
    k = np.arange(1, n + 1)
    heights = (w * np.cumsum(order, 1) + wz[:, None] * z[:, None]) / (w * k + wz[:, None])
    numbers = np.unique(np.concatenate([k[: min(n, 40)], np.linspace(1, n, 60).astype(int)]))
    least = np.full(len(x), np.inf)
    # Feasible, whatever k; the right one is among all k, but a hull of them is enough to rank.
    best = np.argmax(heights, axis=1) + 1
    for number in (*numbers, best):
        t = heights[np.arange(len(x)), np.broadcast_to(number, len(x)) - 1][:, None]
        moved = np.minimum(order, t)
        moved[:, :1] = t
        cost = w * ((moved - order) ** 2).sum(1) + wz * (t[:, 0] - z) ** 2
        least = np.minimum(least, cost)
    return least
