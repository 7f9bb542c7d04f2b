"""Products of equations that own their operands: projected by the multiplier of each equation.

The multiplier is that of `pjax_trace.rules.bilinear`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pjax_trace.rules.bilinear import Factors, kappa_of, solve_multiplier

__all__ = ["PrivateProduct", "ProjectedProducts", "project_products", "settling_step"]


class ProjectedProducts(NamedTuple):
    """Projected operands, the multipliers, and the squared distance moved, by equation."""

    xs: tuple[Float[Array, "... _"], ...]
    ws: tuple[Float[Array, "... _"], ...]
    lam: Float[Array, "..."]
    distance: Float[Array, "..."]


def project_products(
    xs: Sequence[Float[Array, "... _"]],
    ws: Sequence[Float[Array, "... _"]],
    target: Float[Array, "..."],
    compliance: ArrayLike,
    weights: Sequence[tuple[ArrayLike, ArrayLike]],
) -> ProjectedProducts:
    """The nearest point of ``z = sum_i <x_i, w_i> + sum_j a_j . s_j``, every equation on its own.

    ``<x, w>`` contracts the last axis, all other axes count equations. Solves

        argmin  sum_i wx_i |x_i - xs_i|^2 + ww_i |w_i - ws_i|^2 + wz (z - z0)^2
                + sum_j ws_j |s_j - s_j0|^2     subject to the equation,

    whose linear part moves with the answer: ``z = z0 - lam / wz``, ``s_j = s_j0 + a_j lam / ws_j``.

    Args:
        xs: left operands, ``[..., K_i]`` each.
        ws: right operands, of the same shapes.
        target: ``z0 - sum_j a_j . s_j0``.
        compliance: ``1 / wz + sum_j |a_j|^2 / ws_j``, positive; a scalar or one per equation.
        weights: the pairs ``(wx_i, ww_i)``, positive scalars.

    Returns:
        The projected operands, the multipliers and the weighted squared distance moved.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.products import project_products
        >>> x, w = jnp.array([[1.0, 2.0]]), jnp.array([[-1.0, 1.0]])
        >>> (x,), (w,), lam, _ = project_products([x], [w], jnp.array([3.0]), 1.0, [(1.0, 1.0)])
        >>> bool(abs(jnp.sum(x * w) - (3.0 - lam[0])) < 1e-5)
        True
    """
    pairs = [PrivateProduct.of(x, w, *pair) for x, w, pair in zip(xs, ws, weights, strict=True)]
    kappas, plus, minus = ([getattr(p, a) for p in pairs] for a in ("kappa", "plus", "minus"))
    value = sum((p.value for p in pairs), jnp.zeros((), jnp.result_type(target)))
    solution = solve_multiplier(kappas, plus, minus, target, compliance, value=value)
    moved = [p.moved(solution.lam, f) for p, f in zip(pairs, solution.factors, strict=True)]
    compliance = jnp.asarray(compliance, jnp.result_type(target))
    lapse, slope = target - compliance * solution.lam, jnp.zeros_like(compliance)
    for p, (x, w) in zip(pairs, moved, strict=True):
        lapse, slope = lapse - jnp.sum(x * w, -1), slope + p.slope(x, w)
    step = settling_step(lapse, slope, compliance)
    xs, ws = zip(*(p.settled(*own, step) for p, own in zip(pairs, moved, strict=True)), strict=True)
    return ProjectedProducts(xs, ws, solution.lam, solution.distance)


def _column(x: ArrayLike) -> Array:
    """One number per equation, to be broadcast over the equation's terms."""
    x = jnp.asarray(x)
    return x[..., None] if x.ndim else x


class PrivateProduct(NamedTuple):
    """One product of equations that own their operands, contracted over the last axis.

    ``entries`` are those of the unit vector along a free direction: equal ones, where the
    equation has terms.
    """

    x: Float[Array, "... _"]
    w: Float[Array, "... _"]
    other: Float[Array, "... _"]
    weights: tuple[Float[Array, ""], Float[Array, ""]]
    kappa: ArrayLike
    plus: Float[Array, "..."]
    minus: Float[Array, "..."]
    value: Float[Array, "..."]
    entries: Float[Array, "..."]

    @classmethod
    def of(
        cls,
        x: Float[Array, "... _"],
        w: Float[Array, "... _"],
        wx: ArrayLike,
        ww: ArrayLike,
        *,
        terms: np.ndarray | None = None,
    ) -> "PrivateProduct":
        """The product of ``x`` and ``w``, with the squares that the multiplier needs.

        The weights are scalars, or one per equation. ``terms`` tells which entries belong to the
        equation, if not all; the others must be 0.
        """
        dtype = jnp.result_type(x)
        most = float(jnp.finfo(dtype).max) / 1024
        kappa = kappa_of(wx, ww)
        wx, ww = jnp.asarray(wx, dtype), jnp.asarray(ww, dtype)
        # x + other may be all rounding error (X0 = -W0 nearly), and grow multiplies it: plus must
        # be of the very same sums. The clip keeps compilers from fusing only some of them into
        # multiply-adds.
        other = jnp.clip(_column(jnp.sqrt(ww / wx)) * w, -most, most)
        plus = jnp.minimum(wx * jnp.sum((x + other) * (x + other), -1) / 4, most)
        minus = jnp.minimum(wx * jnp.sum((x - other) * (x - other), -1) / 4, most)
        value = jnp.clip(jnp.sum(x * w, -1), -most, most)
        mask = np.ones(1, bool) if terms is None else terms
        count = x.shape[-1] if terms is None else np.sum(terms, -1, keepdims=True)
        entries = jnp.asarray(mask / np.sqrt(2 * np.maximum(count, 1)), dtype)
        entries = jnp.broadcast_to(entries, x.shape)
        return cls(x, w, other, (wx, ww), kappa, plus, minus, value, entries)

    def moved(self, lam: Array, factors: Factors) -> tuple[Array, Array]:
        """The projected operands, by the multipliers and what they do to this product."""
        grow, shrink, free, mix, _ = (factor[..., None] for factor in factors)
        wx, ww = self.weights
        # c x + mix w, as multiples of the operand and of the sum that may grow without bound.
        keep = jnp.minimum(grow, shrink)
        side = jnp.where(lam < 0, -1, 1).astype(self.x.dtype)[..., None]
        step = free * self.entries
        joint = mix * (self.x + side * self.other)
        return (
            keep * self.x + side * joint + jnp.abs(step) / _column(jnp.sqrt(wx)),
            keep * self.w + _column(jnp.sqrt(wx / ww)) * joint + step / _column(jnp.sqrt(ww)),
        )

    def slope(self, x: Array, w: Array) -> Array:
        """How much a unit of multiplier changes ``<x, w>``."""
        wx, ww = self.weights
        return jnp.sum(w * w, -1) / wx + jnp.sum(x * x, -1) / ww

    def settled(self, x: Array, w: Array, step: Array) -> tuple[Array, Array]:
        """The projected operands, moved by a small multiplier along the normal of the graph."""
        wx, ww = self.weights
        step = step[..., None]
        return x + w * step / _column(wx), w + x * step / _column(ww)


def settling_step(lapse: Array, slope: Array, compliance: ArrayLike) -> Array:
    """The multiplier that takes projected products to where ``lapse`` vanishes, in the metric.

    An operand that all but vanishes is a difference of large numbers; times a large partner its
    rounding error is no longer small. One Newton step on the distance along the normal removes it.
    """
    step = lapse / (jnp.asarray(compliance, lapse.dtype) + slope)
    return jnp.where(jnp.isfinite(step), step, 0)
