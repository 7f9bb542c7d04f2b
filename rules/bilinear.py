"""Nearest points of sums of products, row by row: ``z = sum_i <x_i, w_i> + sum_j a_j . s_j``.

In the metric coordinates ``X = sqrt(wx) x``, ``W = sqrt(ww) w`` a product is a difference of
squares, ``kappa <x, w> = |X + W|^2 / 4 - |X - W|^2 / 4`` with ``kappa = sqrt(wx ww)``, and the
Lagrangian of the projection separates. With the multiplier ``lam`` of the equation and
``t_i = lam / kappa_i``

    X_i + W_i  is scaled by  grow_i = 1 / (1 - t_i),      z    moves by  -lam / wz,
    X_i - W_i  is scaled by  shrink_i = 1 / (1 + t_i),    s_j  moves by  a_j lam / ws_j.

One scalar per equation is left to find: the root, in ``|lam| < min kappa``, of

    sum_i (plus_i grow_i^2 - minus_i shrink_i^2) / kappa_i  =  target - compliance lam

with ``plus = |X0 + W0|^2 / 4``, ``minus = |X0 - W0|^2 / 4``, ``target = z0 - sum_j a_j . s_j0`` and
``compliance = 1 / wz + sum_j |a_j|^2 / ws_j``. The left side rises and the right side falls, so the
root is unique and belongs to the global nearest point. Where ``X + W`` (or ``X - W``) vanishes
the root may be at the end of the interval; what is left is met along a free, fixed direction.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = ["Factors", "Multiplier", "kappa_of", "solve_multiplier"]

# A plus or minus below this share of its equation counts as zero. It is replaced by this share,
# the seed of a free direction: squares of its growth, up to 1e15, still fit float32.
_SEED = 1e-30


class Factors(NamedTuple):
    """What the multipliers of all equations do to one of the products.

    Free steps aside, the projection is ``X = keep X0 + mix W0``, ``W = keep W0 + mix X0``.

    Attributes:
        grow: ``1 / (1 - lam / kappa)``, the factor of ``X + W``; 1 where it is free.
        shrink: ``1 / (1 + lam / kappa)``, the factor of ``X - W``; 1 where it is free.
        free: the signed length of a step along a free unit direction ``e``: positive for
            ``(X + W) / sqrt 2``, negative for ``(X - W) / sqrt 2``, 0 unless that vanished.
        mix: ``(grow - shrink) / 2`` without its cancellation.
        keep: ``(grow + shrink) / 2``.
    """

    grow: Float[Array, "..."]
    shrink: Float[Array, "..."]
    free: Float[Array, "..."]
    mix: Float[Array, "..."]
    keep: Float[Array, "..."]


class Multiplier(NamedTuple):
    """The multiplier of every equation.

    Attributes:
        lam: the multipliers, ``|lam| <= min kappa``.
        factors: what they do, product by product.
        distance: the weighted squared distance moved: of all operands, of ``z`` and of every
            ``s_j``, ``sum_i 2 plus_i (grow_i - 1)^2 + 2 minus_i (shrink_i - 1)^2 + free_i^2
            + compliance lam^2``.
    """

    lam: Float[Array, "..."]
    factors: tuple[Factors, ...]
    distance: Float[Array, "..."]


def solve_multiplier(
    kappas: Sequence[ArrayLike],
    plus: Sequence[Float[Array, "..."]],
    minus: Sequence[Float[Array, "..."]],
    target: Float[Array, "..."],
    compliance: ArrayLike,
    *,
    value: Float[Array, "..."] | None = None,
) -> Multiplier:
    """The multiplier of ``z = sum_i <x_i, w_i> + sum_j a_j . s_j`` in the nearest-point problem.

    Solves the equation in the head of this module to rounding error, elementwise over the
    equations, by Halley's iteration from a bound, until no equation's answer changes: at most
    four steps for one kappa, eight for several.

    Args:
        kappas: ``sqrt(wx ww)`` of every product, positive scalars, possibly traced. Those known to
            be equal make one product of several: the less work for its root.
        plus: ``|X0 + W0|^2 / 4`` of every product, to be broadcast against ``target``; negative
            rounding errors count as zero.
        minus: ``|X0 - W0|^2 / 4`` of every product.
        target: ``z0 - sum_j a_j . s_j0``.
        compliance: ``1 / wz + sum_j |a_j|^2 / ws_j``, positive.
        value: ``sum_i <x_i0, w_i0>``. Pass it when it is at hand: without it, it is taken from
            ``plus - minus``, which cancels where operands of very different sizes meet.

    Returns:
        The multipliers, of the shape of all arguments together. Equations whose squares overflow
        are left where they are (``lam = 0``).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.bilinear import solve_multiplier
        >>> x, w, z = jnp.float32(1.0), jnp.float32(2.0), jnp.float32(5.0)
        >>> plus, minus = (x + w) ** 2 / 4, (x - w) ** 2 / 4
        >>> solution = solve_multiplier([1.0], [plus], [minus], z, 1.0)
        >>> ((*_, mix, keep),) = solution.factors
        >>> bool(abs((keep * x + mix * w) * (keep * w + mix * x) - (z - solution.lam)) < 1e-5)
        True
    """
    classes: dict[Any, list[int]] = {}
    for i, kappa in enumerate(kappas):
        known = isinstance(kappa, (float, np.floating))
        classes.setdefault(float(kappa) if known else ("traced", i), []).append(i)
    members = list(classes.values())
    solution = _solve(
        [kappas[first] for first, *_ in members],
        [functools.reduce(jnp.add, (plus[i] for i in same)) for same in members],
        [functools.reduce(jnp.add, (minus[i] for i in same)) for same in members],
        target,
        compliance,
        value,
    )
    if len(members) == len(kappas):
        return solution
    # A direction that is free in all of a class is taken in its first product.
    factors = {
        i: own if i == same[0] else own._replace(free=jnp.zeros_like(own.free))
        for same, own in zip(members, solution.factors, strict=True)
        for i in same
    }
    return solution._replace(factors=tuple(factors[i] for i in range(len(kappas))))


def kappa_of(wx: ArrayLike, ww: ArrayLike) -> Any:
    """``sqrt(wx ww)``, a float where the weights are."""
    if isinstance(wx, float) and isinstance(ww, float):
        return math.sqrt(wx) * math.sqrt(ww)
    return jnp.sqrt(wx) * jnp.sqrt(ww)


def _solve(
    kappas: Sequence[ArrayLike],
    plus: Sequence[Array],
    minus: Sequence[Array],
    target: Array,
    compliance: ArrayLike,
    value: Array | None,
) -> Multiplier:
    """`solve_multiplier`, product by product."""
    dtype = jnp.result_type(target)
    kappas = [jnp.asarray(kappa, dtype) for kappa in kappas]
    least = kappas[0]
    for kappa in kappas[1:]:
        least = jnp.minimum(least, kappa)
    ratios = [jnp.ones((), dtype)] if len(kappas) == 1 else [least / kappa for kappa in kappas]
    if value is None:
        value = sum(
            ((p - m) / kappa for p, m, kappa in zip(plus, minus, kappas, strict=True)),
            jnp.zeros((), dtype),
        )

    # By symmetry lam >= 0: otherwise plus and minus change places. Everything is made relative.
    residual = least * (target - value)
    negative = residual < 0
    rising = [r * jnp.where(negative, m, p) for r, p, m in zip(ratios, plus, minus, strict=True)]
    falling = [r * jnp.where(negative, p, m) for r, p, m in zip(ratios, plus, minus, strict=True)]
    slack = least * least * jnp.asarray(compliance, dtype)
    scale = sum(rising) + sum(falling) + jnp.abs(residual) + slack + float(jnp.finfo(dtype).tiny)
    # Squares that overflow make infinite or undefined sums.
    most = float(jnp.finfo(dtype).max)
    scale = jnp.where(scale < most, scale, most)
    rising = [jnp.clip(p / scale, _SEED, 1) for p in rising]
    falling = [jnp.clip(m / scale, 0, 1) for m in falling]
    residual = jnp.where(scale < most, residual / scale, 0)
    slack = jnp.minimum(slack / scale, 1)
    # One product alone lags behind nothing; said so, it costs half as much.
    lags = [None] if len(kappas) == 1 else [(kappa - least) / kappa for kappa in kappas]
    # Else XLA does all of this anew for everything that it makes of the root.
    rising, falling, residual, slack, scale = lax.optimization_barrier(
        (rising, falling, residual, slack, scale)
    )
    parts = list(zip(ratios, lags, rising, falling, strict=True))
    odds = _odds(parts, jnp.abs(residual), slack)
    odds = jnp.where(scale < most, odds, 0)

    negative, sign, t = residual < 0, jnp.sign(residual), odds / (1 + odds)
    factors = []
    stiffness, freely = slack, jnp.zeros((), dtype)
    for r, lag, p, m in parts:
        vanished = p <= _SEED

        def step(r=r, lag=lag, p=p, vanished=vanished):
            # A vanished sum grows from the seed, by up^2 - 1 = odds near (up + 1), not by a factor.
            up, _, slope, _ = _factors(odds, r, lag)
            step = jnp.sqrt(2 * p * odds * (slope / r) * (up + 1) * scale)
            return jnp.where(vanished, sign * step, 0)

        up, down, _, _ = _factors(odds, r, lag)
        mix = sign * jnp.where(vanished, (1 - down) / 2, r * t * up * down)
        up = jnp.where(vanished, 1, up)
        grow, shrink = jnp.where(negative, down, up), jnp.where(negative, up, down)
        free = lax.cond(jnp.any(vanished), step, lambda: jnp.zeros_like(odds))
        factors.append(Factors(grow, shrink, free, mix, 0.5 * (up + down)))
        stiffness = stiffness + 2 * r * (p * up * up + m * down * down)
        freely = freely + jnp.square(free)
    return Multiplier(sign * least * t, tuple(factors), scale * t * t * stiffness + freely)


# A product: ``kappa_min / kappa``, one minus that (None if it is the only one), plus and minus.
_Part = tuple[Array, Array | None, Array, Array]


def _factors(odds: Array, ratio: Array, lag: Array | None) -> tuple[Array, Array, Array, Array]:
    """``1 / (1 - t_i)``, ``1 / (1 + t_i)`` and their unsigned log-log slopes in ``1 - t``.

    ``t = odds / (1 + odds)`` belongs to the least kappa, ``t_i = ratio t`` and ``lag = 1 - ratio``.
    In the odds ``t / (1 - t)`` nothing cancels, neither near ``t = 0`` nor near ``t = 1``.
    """
    far = 1 / (1 + (1 + ratio) * odds)
    near = jnp.ones_like(far) if lag is None else 1 / (1 + lag * odds)
    return (1 + odds) * near, (1 + odds) * far, ratio * near, ratio * far


def _odds(parts: Sequence[_Part], residual: Array, slack: Array) -> Array:
    """The odds ``t / (1 - t)`` of the root ``t`` in [0, 1) of the equation, ``residual >= 0``.

        sum_i rising_i (grow_i^2 - 1) + falling_i (1 - shrink_i^2) + slack t  =  residual

    With ``v = 1 - t``, ``push = sum rising grow^2`` and ``pull`` all the rest, it is the root of
    ``pull / push = 1``. For one product that is ``v^2 pull / rising``, which is increasing and
    convex in ``v`` where it is positive: steps from a bound ``v >= root`` never overshoot.
    With several kappas they may, hence more steps, and none beyond a factor of ten.
    """
    tiny = float(jnp.finfo(residual.dtype).tiny)

    def halley(odds: Array) -> Array:
        excess = slack / (1 + odds)
        push0 = push1 = push2 = pull1 = pull2 = jnp.zeros_like(odds)
        for r, lag, p, m in parts:
            up, down, up_slope, down_slope = _factors(odds, r, lag)
            excess += p * up_slope * (up + 1) + m * down_slope * (down + 1)
            p, m = p * up * up, m * down * down * down_slope
            push0, push1, push2 = push0 + p, push1 + p * up_slope, push2 + p * up_slope * up_slope
            pull1, pull2 = pull1 + m, pull2 + m * down_slope
        excess = odds * excess - residual
        pull = jnp.maximum(push0 - excess, 0)
        # Logarithmic derivatives in v: of push, pull and their ratio, the last times pull.
        slope = slack / (1 + odds) + 2 * pull1
        rate, bend = (1, 1) if len(parts) == 1 else (push1 / push0, push2 / push0)
        first = slope + 2 * rate * pull
        second = 4 * rate * slope + 6 * pull2 + (8 * rate * rate - 6 * bend) * pull
        change = 2 * excess * first / (2 * first * first + excess * second + tiny)
        change = jnp.clip(change, -0.9, 9)  # relative, of v
        return jnp.maximum(odds - change, 0) / (1 + change)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, odds, _ = carry
        new = lax.optimization_barrier(halley(odds))
        return count + 1, new, jnp.max(jnp.abs(new - odds) / (1 + new), initial=0)

    # The error is the cube of a step's change, at most: most batches of equations need one or two.
    most = 4 if len(parts) == 1 else 8
    least = 0.3 * float(jnp.finfo(residual.dtype).eps) ** (1 / 3)
    odds = _lower_bound(parts, residual, slack)
    start = (jnp.zeros((), jnp.int32), odds, jnp.full((), jnp.inf, odds.dtype))
    _, odds, _ = lax.while_loop(lambda c: (c[0] < most) & ~(c[2] <= least), step, start)
    # Else XLA bounds the loop's work anew for everything that it makes of the root.
    return lax.optimization_barrier(odds)


def _lower_bound(parts: Sequence[_Part], residual: Array, slack: Array) -> Array:
    """A lower bound of ``_odds``, and within a factor of two of it for ``v`` and one product.

    The larger of two roots. Small odds: every term is at most its tangent at 0, plus ``rising
    odds^2``. Small ``v``: tangents at 0 bound ``pull`` by ``pull0 + slope v``, ``push`` is at most
    ``near / v^2 + far`` for any split of the products, and so ``slope v^3 + (pull0 - far) v^2
    = near`` has a root above, which its terms bound in turn.
    """
    total = sum(p for _, _, p, _ in parts)
    linear = slack + 2 * sum(r * (p + m) for r, _, p, m in parts)
    bound = 2 * residual / (linear + jnp.sqrt(linear * linear + 4 * total * residual))

    pull0, slope, v = residual - slack, slack + _SEED, jnp.ones_like(bound)
    for r, _, p, m in parts:
        end = 1 / (1 + r)
        pull0 += p - m * (1 - end * end)
        slope += 2 * r * m * end * end * end
    known = [(lag, p) for _, lag, p, _ in parts if lag is not None]
    for _, reach, _, _ in parts:
        near, rest = total, pull0
        if reach is not None:  # there are several products, and all have a lag
            near = sum(jnp.where(lag <= reach, p, 0) for lag, p in known)
            for lag, p in known:
                rest -= jnp.where(lag <= reach, 0, p / (lag * lag + _SEED))
        cubic = jnp.exp(jnp.log(near / slope) / 3)  # a vectorised cube root
        square = jnp.sqrt(near / jnp.maximum(rest, _SEED))
        v = jnp.minimum(v, jnp.where(rest > 0, jnp.minimum(square, cubic), cubic - rest / slope))
    return jnp.maximum(bound, 1 / v - 1)
