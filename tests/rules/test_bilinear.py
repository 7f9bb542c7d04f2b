"""Nearest points of sums of products, against float64 bisection and two brute forces."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pjax_trace.rules.bilinear import solve_multiplier
from pjax_trace.rules.products import project_products

KINDS = ("general", "unit", "zeros", "x zero", "opposite", "equal", "nearly opposite", "on graph")
ROWS = 1600  # times 8 kinds and 8 lists of fan-ins: 1e5 points
project_jitted = jax.jit(project_products)
solve_jitted = jax.jit(solve_multiplier)


@jax.jit
def project(xs, ws, a, s, z, weights, wz, ws_linear):
    """A rule in full: products, a linear part ``a . s`` and the output."""
    target, compliance = z - jnp.sum(a * s, -1), 1 / wz + jnp.sum(a * a, -1) / ws_linear
    new = project_products(xs, ws, target, compliance, weights)
    return new, s + a * (new.lam / ws_linear)[:, None], z - new.lam / wz


@jax.jit
def project_apart(xs, ws, a, s, z, *metric):
    """The same, every equation in a call of its own, which ends when that one is solved."""
    rows = jax.tree.map(lambda v: v[:, None], (xs, ws, a, s, z))
    result = jax.vmap(lambda *row: project(*row, *metric))(*rows)
    return jax.tree.map(lambda v: v[:, 0], result)


def decades(rng, low, high, *shape):
    return 10 ** rng.uniform(low, high, shape)


def draw(rng, fans, kind, weights, rows=ROWS, spread=3):
    """Operands, coefficients, linear operands and outputs, of scales over many decades."""
    xs, ws = [], []
    for fan, (wx, ww) in zip(fans, weights, strict=True):
        x = rng.normal(size=(rows, fan)) * decades(rng, -spread, spread, rows, 1)
        w = rng.normal(size=(rows, fan)) * decades(rng, -spread, spread, rows, 1)
        if kind == "unit":
            x, w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, w))
        if kind == "zeros":
            x, w = 0 * x, 0 * w
        if kind == "x zero":
            x = 0 * x
        if kind in ("opposite", "equal", "nearly opposite"):
            x = x.astype(np.float32).astype(float)
            w = (1 if kind == "equal" else -1) * np.sqrt(wx / ww) * x
        if kind == "nearly opposite":
            off = decades(rng, -8, -1, rows, 1) * np.linalg.norm(w, axis=1, keepdims=True)
            w = rng.choice([-1, 1], (rows, 1)) * (w + off * rng.normal(size=w.shape))
        xs.append(x.astype(np.float32))
        ws.append(w.astype(np.float32))
    a = rng.normal(size=(rows, 2)) * decades(rng, -spread, spread, rows, 1)
    a *= rng.random((rows, 1)) < 0.5  # half the equations have no linear part
    s = rng.normal(size=(rows, 2)) * decades(rng, -spread, spread, rows, 1) * (kind != "zeros")
    a, s = a.astype(np.float32), s.astype(np.float32)
    value = reduce(np.add, [(x.astype(float) * w).sum(1) for x, w in zip(xs, ws, strict=True)])
    value += (a.astype(float) * s).sum(1)
    size = decades(rng, -6, 6, rows) * np.where(rng.random(rows) < 0.5, 1, np.abs(value))
    z = rng.normal(size=rows) * size + np.where(rng.random(rows) < 0.3, value, 0)
    z = value if kind == "on graph" else z * (rng.random(rows) < 0.9)
    return xs, ws, a, s, z.astype(np.float32)


def draw_weights(rng, fans, index):
    """Over eight decades; unit ones and equal kappas in between."""
    pairs = [tuple(decades(rng, -4, 4, 2).astype(np.float32)) for _ in fans]
    if index % 4 == 0:
        pairs = [(np.float32(1), np.float32(1)) for _ in fans]
    if index % 4 == 1:
        pairs = [pairs[0] for _ in fans]
    return pairs, *decades(rng, -4, 4, 2).astype(np.float32)


def scalars(xs, ws, a, s, z, weights, wz, ws_linear):
    """Kappas, |X + W|^2 / 4, |X - W|^2 / 4, target and compliance, in float64."""
    pairs = [(float(wx), float(ww)) for wx, ww in weights]
    lefts = [np.sqrt(wx) * x.astype(float) for x, (wx, _) in zip(xs, pairs, strict=True)]
    rights = [np.sqrt(ww) * w.astype(float) for w, (_, ww) in zip(ws, pairs, strict=True)]
    plus = [((x + w) ** 2).sum(1) / 4 for x, w in zip(lefts, rights, strict=True)]
    minus = [((x - w) ** 2).sum(1) / 4 for x, w in zip(lefts, rights, strict=True)]
    target = z.astype(float) - (a.astype(float) * s).sum(1)
    compliance = 1 / float(wz) + (a.astype(float) ** 2).sum(1) / float(ws_linear)
    value = reduce(np.add, [(x.astype(float) * w).sum(1) for x, w in zip(xs, ws, strict=True)])
    return [np.sqrt(wx * ww) for wx, ww in pairs], plus, minus, target, compliance, value


def bisect(kappas, plus, minus, target, compliance, value):
    """The least squared distance, from the multiplier equation, bisected in log(t / (1 - t))."""
    least, residual = min(kappas), target - value
    up = [np.where(residual < 0, m, p) for p, m in zip(plus, minus, strict=True)]
    down = [np.where(residual < 0, p, m) for p, m in zip(plus, minus, strict=True)]

    def factors(odds):  # t_i grow_i, grow_i, t_i shrink_i, shrink_i
        for kappa in kappas:
            r = least / kappa
            yield tuple(
                v / (1 + lag * odds) for lag in (1 - r, 1 + r) for v in (r * odds, 1 + odds)
            )

    def gained(odds):
        total = compliance * least * odds / (1 + odds)
        for kappa, p, m, (tg, g, th, h) in zip(kappas, up, down, factors(odds), strict=True):
            total = total + (p * tg * (g + 1) + m * th * (h + 1)) / kappa
        return total

    low, high = np.full(len(target), -80.0), np.full(len(target), 80.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = gained(np.exp(middle)) < np.abs(residual)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    odds = np.exp((low + high) / 2)
    # What the end of the interval leaves is met along a free direction, at 2 kappa a unit.
    left = np.where(low > 70, np.maximum(np.abs(residual) - gained(np.exp(70.0)), 0), 0)
    odds = np.where(low > 70, np.exp(70.0), odds)
    distance = compliance * (least * odds / (1 + odds)) ** 2 + 2 * least * left
    for p, m, (tg, _, th, _) in zip(up, down, factors(odds), strict=True):
        distance = distance + 2 * (p * tg**2 + m * th**2)
    return np.where(residual == 0, 0, distance)


def check(point, result, best):
    """The three measures: distance beyond the best, infeasibility, error of the reported distance.

    Distances (not squared) may exceed by what storing the point in float32 costs, 3e-7 of its
    norm; infeasibility is relative to the sum of the equation's terms before and after.
    """
    xs, ws, a, s, z, weights, wz, ws_linear = point
    new, new_s, new_z = jax.tree.map(lambda v: np.asarray(v, float), result)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((new, new_s, new_z)))
    moved = wz * (new_z - z) ** 2 + ws_linear * ((new_s - s) ** 2).sum(1)
    norm = wz * z.astype(float) ** 2 + ws_linear * (s.astype(float) ** 2).sum(1)
    gap, scale = new_z - (a * new_s).sum(1), np.abs(z) + np.abs(new_z) + 1e-30
    scale = scale + np.abs(a * s).sum(1) + np.abs(a * new_s).sum(1)
    for x, w, x2, w2, (wx, ww) in zip(xs, ws, new.xs, new.ws, weights, strict=True):
        moved = moved + wx * ((x2 - x) ** 2).sum(1) + ww * ((w2 - w) ** 2).sum(1)
        norm = norm + wx * (x.astype(float) ** 2).sum(1) + ww * (w.astype(float) ** 2).sum(1)
        gap = gap - (x2 * w2).sum(1)
        scale = scale + np.abs(x2 * w2).sum(1) + np.abs(x.astype(float) * w).sum(1)
    rounding = 3e-7 * np.sqrt(norm) + 1e-18
    excess = np.maximum(np.sqrt(moved) - np.sqrt(best) - rounding, 0) / (np.sqrt(best) + 1e-18)
    reported = np.abs(np.sqrt(new.distance) - np.sqrt(best)) - rounding
    return 2 * excess.max(), (np.abs(gap) / scale).max(), (reported / (np.sqrt(best) + 1e-18)).max()


@pytest.mark.parametrize(
    "fans", [(1,), (2,), (3,), (9,), (64,), (1, 1), (3, 2), (9, 1, 2)], ids=str
)
def test_nearest_points(fans):
    rng = np.random.default_rng(len(fans) + 10 * fans[0])
    for index, kind in enumerate(KINDS):
        weights, wz, ws_linear = draw_weights(rng, fans, index + fans[0])
        point = (*draw(rng, fans, kind, weights), weights, wz, ws_linear)
        excess, gap, reported = check(point, project_apart(*point), bisect(*scalars(*point)))
        assert excess < 1e-5, (kind, excess)
        assert gap < 2e-6, (kind, gap)
        assert reported < 1e-5, (kind, reported)


@pytest.mark.parametrize("fans", [(1, 1), (3, 2), (9, 1, 2)], ids=str)
def test_products_of_one_known_kappa_are_one(fans):
    rng = np.random.default_rng(len(fans))
    weights = [(2.0, 2.0), (8.0, 0.5), (0.5, 8.0)][: len(fans)]
    wz, ws_linear = 3.0, 0.7

    @jax.jit
    def project_known(*rows):
        whole = [jax.tree.map(lambda v: v[None], row) for row in rows]
        result = project.__wrapped__(*whole, weights, wz, ws_linear)
        return jax.tree.map(lambda v: v[0], result)

    for kind in KINDS:
        rows = draw(rng, fans, kind, weights, rows=400)
        point = (*rows, weights, wz, ws_linear)
        excess, gap, reported = check(
            point, jax.vmap(project_known)(*rows), bisect(*scalars(*point))
        )
        assert excess < 1e-5, (kind, excess)
        assert gap < 2e-6, (kind, gap)
        assert reported < 1e-5, (kind, reported)


def descend(point, rng, starts=8, steps=60):
    """Brute force: damped Newton on the distance over all operands, z and s eliminated."""
    xs, ws, *_, weights, _, _ = point
    kappas, _, _, target, compliance, _ = scalars(*point)
    sides = [np.sqrt(float(v)) for pair in weights for v in pair]
    start = [v for pair in zip(xs, ws, strict=True) for v in pair]
    ends = np.cumsum([v.shape[1] for v in start])[:-1]
    start = np.concatenate([c * v.astype(float) for c, v in zip(sides, start, strict=True)], 1)
    stiff = 1 / np.sqrt(compliance)
    reach = np.sqrt(min(kappas) * np.abs(target)) + np.linalg.norm(start, axis=1)
    reach = reach[:, None] * decades(rng, -1.5, 0.5, len(target), 1)

    def swap(v, coefficients):  # of every pair (x, w): (coefficient w, coefficient x)
        parts = np.split(v, ends, axis=1)
        pairs = zip(coefficients, parts[::2], parts[1::2], strict=True)
        return np.concatenate([c[..., None] * u for c, x, w in pairs for u in (w, x)], 1)

    def error(v):
        return stiff * (target - (v * swap(v, [np.array(0.5 / k) for k in kappas])).sum(1))

    def cost(v):
        return ((v - start) ** 2).sum(1) + error(v) ** 2

    best = np.full(len(target), np.inf)
    for trial in range(starts):
        v = start + (trial > 0) * reach * rng.normal(size=start.shape)
        if trial % 2:  # on the graph, or mirrored off it
            value = (v * swap(v, [np.array(0.5 / k) for k in kappas])).sum(1)
            v = v * np.sqrt(np.abs(target) / (np.abs(value) + 1e-300))[:, None]
        damping, now = np.full(len(target), 1e-2), cost(v)
        for _ in range(steps):
            last = error(v)
            slope = -stiff[:, None] * swap(v, [np.array(1 / k) for k in kappas])
            gradient = v - start + slope * last[:, None]
            # The Hessian: 1, a swap of every pair by bend < 1 (damped where not), and rank one.
            bends = [-last * stiff / k for k in kappas]
            ridge = (1 + damping) * np.maximum(1, np.max(np.abs(bends), 0))

            def inverse(v, bends=bends, ridge=ridge):
                shares = [1 / (ridge**2 - b**2) for b in bends]
                straight = swap(swap(v, shares), [np.ones_like(ridge)] * len(bends))
                shares = [b * share for b, share in zip(bends, shares, strict=True)]
                return ridge[:, None] * straight - swap(v, shares)

            step, across = inverse(gradient), inverse(slope)
            share = (slope * step).sum(1) / (1 + (slope * across).sum(1))
            new = v - step + across * share[:, None]
            value = cost(new)
            better = value < now
            v, now = np.where(better[:, None], new, v), np.where(better, value, now)
            damping = np.clip(np.where(better, damping / 10, damping * 5), 1e-12, 1e12)
        best = np.minimum(best, now)
    return best


@pytest.mark.parametrize("fans", [(1,), (2,), (1, 1), (2, 1)], ids=str)
def test_no_descent_finds_a_nearer_point(fans):
    rng = np.random.default_rng(7)
    for index, kind in enumerate(("general", "unit", "zeros", "opposite", "equal")):
        weights, wz, ws_linear = draw_weights(rng, fans, index)
        point = (*draw(rng, fans, kind, weights, rows=200, spread=1), weights, wz, ws_linear)
        best = descend(point, rng)
        excess, gap, _ = check(point, project(*point), best)
        assert excess < 1e-4 and gap < 2e-6, (kind, excess, gap)
        exact = bisect(*scalars(*point))
        assert (best < exact * (1 + 1e-3) + 1e-30).mean() > 0.75, kind  # and mostly gets there
        assert (best > exact * (1 - 1e-6) - 1e-30).all(), kind  # so the other oracle is right


@pytest.mark.parametrize("fan", [9, 64])
def test_no_scaling_of_sum_and_difference_is_nearer(fan):
    """By symmetry only the lengths of X + W and X - W matter: a zooming grid over both."""
    rng = np.random.default_rng(fan)
    for index, kind in enumerate(("general", "unit", "x zero", "opposite", "nearly opposite")):
        weights, wz, ws_linear = draw_weights(rng, (fan,), index)
        point = (*draw(rng, (fan,), kind, weights, rows=300, spread=2), weights, wz, ws_linear)
        (kappa,), (plus,), (minus,), target, compliance, _ = scalars(*point)
        a0, b0 = np.sqrt(2 * plus), np.sqrt(2 * minus)
        reach = a0 + b0 + np.sqrt(2 * kappa * np.abs(target))
        center, grid = np.stack([reach / 2, reach / 2]), np.linspace(-1, 1, 31)
        best, reach = np.full(len(target), np.inf), reach / 2
        for _ in range(40):
            a = np.abs(center[0] + reach * grid[:, None, None])
            b = np.abs(center[1] + reach * grid[None, :, None])
            off = target - (a**2 - b**2) / (2 * kappa)
            cost = ((a - a0) ** 2 + (b - b0) ** 2 + off**2 / compliance).reshape(-1, len(target))
            least, row = cost.argmin(0), np.arange(len(target))
            best = np.minimum(best, cost[least, row])
            center = np.stack([a[least // 31, 0, row], b[0, least % 31, row]])
            reach = reach * 0.6
        excess, gap, _ = check(point, project(*point), best)
        assert excess < 1e-4 and gap < 2e-6, (kind, excess, gap)


@pytest.mark.parametrize("shape", [(5, 1, 4), (16, 784, 10)], ids=str)
def test_rows_of_a_matrix_product_need_no_copies(shape):
    """``sum_m x'_nm = x sum_m c + sqrt(ww / wx) mix @ w.T``; the same for w; the distance."""
    n, k, m = shape
    rng = np.random.default_rng(k)
    for wx, ww, wz in ((1.0, 1.0, 1.0), (3.0, 100.0, 0.1), (1e-2, 7.0, 10.0)):
        wx, ww = jnp.float32(wx), jnp.float32(ww)
        x = jnp.asarray(rng.normal(size=(n, k)), jnp.float32)
        w = jnp.asarray(rng.normal(size=(k, m)) * 0.3, jnp.float32)
        z = jnp.asarray(rng.normal(size=(n, m)) * 3, jnp.float32)
        xs, ws = jnp.broadcast_to(x[:, None], (n, m, k)), jnp.broadcast_to(w.T[None], (n, m, k))
        explicit = project_jitted([xs], [ws], z, jnp.float32(1 / wz), [(wx, ww)])

        kappa, p = jnp.sqrt(wx * ww), x @ w
        q = wx * jnp.sum(x * x, 1, keepdims=True) + ww * jnp.sum(w * w, 0, keepdims=True)
        plus, minus = (q + 2 * kappa * p) / 4, (q - 2 * kappa * p) / 4
        rows = solve_jitted([kappa], [plus], [minus], z, jnp.float32(1 / wz), value=p)
        ((*_, mix, c),) = rows.factors
        sums = x * jnp.sum(c, 1, keepdims=True) + jnp.sqrt(ww / wx) * (mix @ w.T)
        assert jnp.allclose(sums, jnp.sum(explicit.xs[0], 1), rtol=0, atol=1e-5 * jnp.max(sums))
        sums = w * jnp.sum(c, 0, keepdims=True) + jnp.sqrt(wx / ww) * (x.T @ mix)
        assert jnp.allclose(sums, jnp.sum(explicit.ws[0], 0).T, rtol=0, atol=1e-5 * jnp.max(sums))
        assert jnp.allclose(rows.distance, explicit.distance, rtol=1e-4, atol=1e-6)


def test_operands_of_very_different_sizes_keep_their_digits():
    """``plus - minus`` has lost the product 1 = 1e3 * 1e-3; the value passed along has not."""
    x, w = jnp.full((1, 1), 1e3, jnp.float32), jnp.full((1, 1), 1e-3, jnp.float32)
    new = project_jitted([x], [w], jnp.full((1,), 1.5, jnp.float32), 1e-4, [(1.0, 1.0)])
    assert abs(float(new.xs[0][0, 0] * new.ws[0][0, 0]) - 1.5) < 1e-5


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=2),
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=4, max_size=4),
    st.one_of(st.just(0.0), st.floats(-1e6, 1e6)),
    st.floats(-4, 4),
)
def test_multiplier_equation_holds(log_kappas, squares, target, log_compliance):
    """Left and right sides agree, in float64, free steps included; and lam is odd."""
    kappas = 10 ** np.asarray(log_kappas)
    plus, minus, compliance = squares[:2], squares[2:], 10**log_compliance

    def solve(plus, minus, target):
        args = jax.tree.map(jnp.float32, (list(kappas), plus, minus, target, compliance))
        result = solve_jitted(*args)
        return jax.tree.map(lambda v: float(v), result)

    lam, factors, _ = solve(plus, minus, target)
    gap = size = target - compliance * lam
    size = abs(target) + abs(compliance * lam)
    for kappa, p, m, (g, h, alpha, part, mean) in zip(kappas, plus, minus, factors, strict=True):
        gap -= (p * g**2 - m * h**2 + np.sign(alpha) * alpha**2 / 2) / kappa
        size += (p * g**2 + m * h**2 + p + m + alpha**2) / kappa
        assert abs(part - (g - h) / 2) <= 1e-5 * (g + h)
        assert abs(mean - (g + h) / 2) <= 1e-6 * (g + h)
    assert abs(gap) <= 2e-6 * size + 1e-30
    mirrored = solve(minus, plus, -target)
    assert np.isclose(mirrored.lam, -lam, rtol=1e-5, atol=1e-30)
    for there, here in zip(mirrored.factors, factors, strict=True):
        assert np.isclose(there.free, -here.free, rtol=1e-5, atol=1e-12)


def test_finite_whatever_the_scale():
    rng = np.random.default_rng(0)
    for low, high in ((-38, 37), (-45, -30), (10, 30)):
        xs, ws = ([], [])
        for _ in range(2):
            for side in (xs, ws):
                v = rng.normal(size=(4000, 2)) * decades(rng, low, high, 4000, 1)
                side.append((v * (rng.random((4000, 1)) < 0.8)).astype(np.float32))
        z = (rng.normal(size=4000) * decades(rng, low, high, 4000)).astype(np.float32)
        weights = [tuple(decades(rng, -4, 4, 2).astype(np.float32)) for _ in xs]
        result = project_jitted(xs, ws, z, jnp.float32(1), weights)
        assert not any(np.isnan(v).any() for v in jax.tree.leaves(result))


def test_vmap_dtype_and_broadcasting():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, w, z = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 5))

        @jax.jit
        def one(x, w, z):
            return project_products([x], [w], z, 0.5, [(2.0, 0.25)])

        batch, rows = one(x, w, z), jax.vmap(one)(x, w, z)
        for u, v in zip(jax.tree.leaves(batch), jax.tree.leaves(rows), strict=True):
            assert u.dtype == v.dtype == jnp.float64
            assert jnp.allclose(u, v, rtol=1e-12)
        gap = z - 0.5 * batch.lam - jnp.sum(batch.xs[0] * batch.ws[0], -1)
        assert float(jnp.max(jnp.abs(gap))) < 1e-13
    plus, minus = jnp.ones((3, 1), jnp.float32), jnp.ones((1, 4), jnp.float32)
    lam, ((grow, *_),), _ = solve_jitted([1.0], [plus], [minus], jnp.ones((3, 4), jnp.float32), 1.0)
    assert lam.shape == grow.shape == (3, 4) and lam.dtype == jnp.float32
