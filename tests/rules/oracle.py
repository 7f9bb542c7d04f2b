"""Brute force in float64 NumPy for the nearest points of the graphs of scalar functions.

The excess of a point is (D − D*) / (D* + 1e4·floor): 1e-4 is a ten-thousandth of the squared
distance D* of the oracle, or the floor where that is more. The floor is the squared distance that
rounding by two units in the last place makes: wx (δ x)² + wz (δ (z + |f'(x*) x*|))², δ = 2⁻²², with
x the larger of |x0| and |x*|, and z likewise. Waves are solved on one half wave, where x is of the
size of the period.
"""

import numpy as np


def points(f, count, seed, decades):
    """Random and degenerate points x0, z0 and weights wx, wz in float32."""
    rng = np.random.default_rng(seed)

    def wide(size):
        return rng.choice([-1, 1], size) * 10 ** rng.uniform(*decades, size)

    x0 = np.where(rng.random(count) < 0.5, wide(count), rng.normal(0, 3, count))
    with np.errstate(all="ignore"):
        z = f(np.where(rng.random(count) < 0.5, x0, rng.normal(0, 3, count)))
    z = np.where(np.isfinite(z) & (np.abs(z) < 10 ** decades[1]), z, 0.5)
    z0 = np.choose(
        rng.integers(0, 5, count),
        [
            wide(count),
            rng.uniform(-1.5, 1.5, count),
            z,
            z + 1e-2 * wide(count),
            z * (1 + 10 ** rng.uniform(-6, 0, count)),
        ],
    )
    edge = 10 ** decades[1]
    kind = rng.integers(0, 60, count)
    for k, x in enumerate([0, edge, -edge, 1, -1]):
        x0 = np.where(kind == k, x, x0)
    for k, z in enumerate([0, 1, -1, edge, -edge, x0, -x0], start=5):
        z0 = np.where(kind == k, z, z0)
    wx, wz = 10 ** rng.uniform(-4, 4, (2, count))
    equal = rng.random(count) < 0.3
    wx, wz = np.where(equal, 1, wx), np.where(equal, 1, wz)
    return [a.astype(np.float32) for a in (x0, z0, wx, wz)]


def brute_force(f, x0, z0, wx, wz, lower=-1e30, upper=1e30):
    """The nearest x: the best of a thousand, then golden section around the best three."""
    marks = np.concatenate([[0], np.logspace(-10, 5, 250), np.logspace(-38, -10, 60)])
    marks = np.concatenate([-marks, marks])
    steps = np.concatenate([np.linspace(0, 1, 120), np.logspace(-12, 0, 120)])
    steps = np.concatenate([-steps, steps])
    x0, z0, ratio = x0[:, None], z0[:, None], (wz / wx)[:, None]

    def distance(x):
        d = (x - x0) ** 2 + ratio * (f(x) - z0) ** 2
        return np.where(np.isnan(d), np.inf, d)

    with np.errstate(all="ignore"):
        anchors = np.concatenate([x0, 0 * x0, 0 * x0 + 1], axis=1)
        reach = np.sqrt(distance(np.clip(anchors, lower, upper)).min(axis=1, keepdims=True))
        x = np.concatenate([x0 + reach * steps, np.broadcast_to(marks, (len(x0), len(marks)))], 1)
        x = np.sort(np.clip(x, lower, upper), axis=1)
        d = distance(x)
        d_before, d_after = np.roll(d, 1, axis=1), np.roll(d, -1, axis=1)
        d_before[:, 0] = d_after[:, -1] = np.inf
        minima = np.where((d <= d_before) & (d <= d_after), d, np.inf)
        found = []
        for i in np.argpartition(minima, 3, axis=1)[:, :3].T[:, :, None]:
            low = np.take_along_axis(x, np.maximum(i - 3, 0), 1)
            high = np.take_along_axis(x, np.minimum(i + 3, x.shape[1] - 1), 1)
            found.append(np.take_along_axis(x, i, 1))
            for _ in range(60):
                a, b = low + 0.381966 * (high - low), low + 0.618034 * (high - low)
                left = distance(a) < distance(b)
                low, high = np.where(left, low, a), np.where(left, b, high)
            found.append(0.5 * (low + high))
        found = np.concatenate(found, axis=1)
        best = np.argmin(distance(found), axis=1)[:, None]
    return np.take_along_axis(found, best, 1)[:, 0]


def worst_excess(f, x, nearest, x0, z0, wx, wz, period=0.0):
    x = np.asarray(x, np.float64)
    assert np.isfinite(x).all()
    with np.errstate(all="ignore"):
        step = 1e-9 * np.abs(nearest) + 1e-60
        # One-sided at the ends of a domain, beyond which there is nothing.
        sides = [np.abs(f(nearest + side * step) - f(nearest)) / step for side in (1, -1)]
        slope = np.nan_to_num(np.fmax(*sides), posinf=0)
    d = wx * (x - x0) ** 2 + wz * (f(x) - z0) ** 2
    least = wx * (nearest - x0) ** 2 + wz * (f(nearest) - z0) ** 2
    size_x = np.maximum(np.maximum(np.abs(x0), np.abs(nearest)), period)
    size_z = np.maximum(np.abs(z0), np.abs(f(nearest))) + slope * np.abs(nearest)
    floor = 2.0**-44 * (wx * size_x**2 + wz * size_z**2) + 1e-36 * (wx + wz)
    return np.max((d - least) / (least + 1e4 * floor))
