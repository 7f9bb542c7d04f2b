"""Softmax, with every slice that sums to one as one constraint; see `pjax_trace.rules.slices`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.registry import Case, register_function
from pjax_trace.rules.slices import Composite

__all__ = ["SOFTMAX", "nearest_softmax"]

_SAMPLES = 4  # starts, besides the point itself
_STEPS = 8  # from the best of them
_LEAST = 1e-6  # probabilities below are alike where Newton starts
_ROUNDING = 4  # of a sum, in units of its terms' last place


def nearest_softmax(
    x0: Float[Array, "..."],
    z0: Float[Array, "..."],
    wx: Float[Array, ""] | float,
    wz: Float[Array, "..."],
    *,
    axis: int,
) -> Float[Array, "..."]:
    """An argmin over ``x`` of ``wx |x − x0|² + Σ wz (softmax(x) − z0)²``, slice by slice.

    Newton's method from the best of five points on the way from x0 to the logarithm of z0. With
    z = softmax(x), r = wz (z − z0) and e = wz z² + z (r − ⟨z, r⟩), the Hessian is twice
    ``diag(wx + e) − e zᵀ − z eᵀ + (Σ e) z zᵀ``: a diagonal and rank two, solved by the formula of
    Woodbury. It is positive definite if no e is negative, as negative ones are taken to be; a step
    that ascends, beyond rounding, is taken back, and damped (Levenberg and Marquardt).

    Args:
        x0: slices before; −inf, or very small numbers, where something is masked.
        z0: slices after, of the same shape; any real numbers.
        wx: positive weight.
        wz: positive weights, of the same shape.
        axis: of a slice.

    Returns:
        x, of the same mean as x0 in each slice. The point of the graph is at most as far as
        ``(x0, softmax(x0))``, and usually the nearest one; the distance may have other minima.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pjax_trace.rules.softmax import nearest_softmax
        >>> x0, z0 = jnp.zeros(2), jnp.array([1.0, 0.0])
        >>> x = nearest_softmax(x0, z0, 1e-6, jnp.ones(2), axis=0)
        >>> jax.nn.softmax(x).round(2).tolist()
        [1.0, 0.0]
    """

    def total(a: Array) -> Array:
        return jnp.sum(a, axis, keepdims=True)

    def centred(d: Array) -> Array:  # adding a constant to x changes nothing but the distance
        return d - total(d) / d.shape[axis]

    def point(d: Array) -> tuple[Array, Array, Array]:
        z = jax.nn.softmax(x0 + d, axis)
        return d, z, total(wx * jnp.square(d) + wz * jnp.square(z - z0))

    def chosen(where: Array, one: Any, other: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(where, a, b), one, other)

    start = point(jnp.zeros_like(x0))
    # What is nothing on both ends, because it is masked, does not move.
    way = centred(jnp.log(jnp.maximum(z0, _LEAST) / jnp.maximum(start[1], _LEAST)))

    def sample(i: Array, best: Any) -> Any:
        other = point(way * ((i + 1).astype(way.dtype) / _SAMPLES))
        return chosen(other[2] < best[2], other, best)

    start = jax.lax.fori_loop(0, _SAMPLES, sample, start)

    def step(_: Any, state: Any) -> Any:
        (d, z, far), damping = state
        pull = wz * (z - z0)
        push = z * (pull - total(z * pull))
        e = jnp.maximum(wz * jnp.square(z) + push, 0)
        least = wx + damping
        p, q = z / (least + e), e / (least + e)
        gradient = wx * d + push
        # The Hessian's inverse of the gradient; 1 − Σ e p and Σ e − Σ e q, without cancellation.
        a, b, c = total(z * p), least * total(p), least * total(q)
        y, w = total(p * gradient), total(q * gradient)
        det = a * c + jnp.square(b)
        newton = gradient / (least + e) - p * ((c * y - b * w) / det) + q * ((b * y + a * w) / det)
        # Near the end distances are alike up to rounding; there the gradient knows better.
        rounding = total(wx * jnp.square(d) + jnp.abs(pull) * (z + jnp.abs(z0)))
        new = point(centred(d - newton))
        closer = new[2] < far + _ROUNDING * float(jnp.finfo(d.dtype).eps) * rounding
        harder = jnp.maximum(8 * damping, 0.1 * jnp.max(e, axis, keepdims=True))
        return chosen(closer, new, (d, z, far)), jnp.where(closer, damping / 8, harder)

    (d, *_), _ = jax.lax.fori_loop(0, _STEPS, step, (start, jnp.zeros_like(start[2])))
    return x0 + d


SOFTMAX = Composite(jax.nn.softmax, nearest_softmax, "local")


def _axes(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every axis along which there is something to compare."""
    return [{"axis": i} for i, size in enumerate(shape) if size > 1]


register_function(
    jax.nn.softmax,
    SOFTMAX,
    variants=_axes,
    cases=[Case(jax.nn.softmax, ((3,),)), Case(lambda x: jax.nn.softmax(x, 0), ((3, 2),))],
)
