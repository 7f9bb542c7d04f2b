"""Proximal operators of the losses: what a loss answers when it is projected onto.

The operator of ``loss`` at the point ``s`` is ``argmin_x lam * loss(x) + |x - s|^2 / 2``. Every
function takes classes on the last axis and any batch in front of it, and works row by row; ``lam``
(and ``margin``) is one number or one number per row. Beside each operator stands its loss.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = [
    "cross_entropy",
    "margin",
    "prox_cross_entropy",
    "prox_logsumexp",
    "prox_margin",
    "prox_squared_error",
    "squared_error",
]


def cross_entropy(
    s: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """``sum(target) * logsumexp(s) - <target, s>``, row by row; no cancellation at large logits.

    Args:
        s: the logits.
        target: one-hot or soft rows; a row of zeros counts for nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.prox import cross_entropy
        >>> round(float(cross_entropy(jnp.zeros(4), jnp.array([0.0, 1.0, 0.0, 0.0]))), 4)
        1.3863
    """
    return -jnp.sum(target.astype(s.dtype) * jax.nn.log_softmax(s), axis=-1)


def prox_cross_entropy(
    s: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"], lam: ArrayLike
) -> Float[Array, "*batch classes"]:
    """``argmin_x lam * cross_entropy(x, target) + |x - s|^2 / 2``, row by row.

    For rows that sum to one, the optimality condition ``x + lam * softmax(x) = s + lam * target``
    has one unknown scalar, ``mu = logsumexp(x)``: with W the Wright omega function
    (``W + log W = z``), ``v = lam * softmax(x) = W(s + lam * target + log(lam) - mu)``, and mu is
    the root of the convex decreasing ``sum(v) - lam``. That gives x coarsely; Newton steps on x
    itself finish, and undo the rounding. Their matrix is diagonal plus rank one, inverted by the
    formula of Sherman and Morrison.

    The residual of the condition is at most ``1e-5 * max(1, max|s| + lam)`` in float32 as long as
    ``lam`` times the spacing of floats at x allows it, that is up to ``lam`` about 1e3.

    Args:
        s: the point.
        target: one-hot or soft rows, not negative; a row of zeros leaves its row of s alone.
        lam: positive weight of the loss, a scalar or one per row (broadcasts to ``batch``).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pjax_trace.prox import prox_cross_entropy
        >>> s, y = jnp.array([2.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 0.0])
        >>> x = prox_cross_entropy(s, y, 5.0)
        >>> bool(jnp.allclose(x, s + 5.0 * (y - jax.nn.softmax(x)), atol=1e-5))
        True
    """
    target, strength = target.astype(s.dtype), _per_row(lam, s)
    weight = (strength * jnp.sum(target, axis=-1, keepdims=True))[..., 0]
    return prox_logsumexp(s + strength * target, weight)


def prox_logsumexp(
    goal: Float[Array, "*batch classes"], weight: Float[Array, "*batch"]
) -> Float[Array, "*batch classes"]:
    """``argmin_x weight * logsumexp(x) + |x - goal|^2 / 2``, row by row.

    What is linear in x, such as the score of the true class, has been added to the goal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pjax_trace.prox import prox_logsumexp
        >>> goal = jnp.array([2.0, 0.0])
        >>> x = prox_logsumexp(goal, jnp.asarray(3.0))
        >>> bool(jnp.allclose(x + 3 * jax.nn.softmax(x), goal, atol=1e-5))
        True
    """
    return _rowwise(_prox_logsumexp, goal, weight[..., None])


def _prox_logsumexp(axis: int, goal: Array, weight: Array) -> Array:
    def total(a: Array) -> Array:
        return jnp.sum(a, axis=axis, keepdims=True)

    top = jnp.max(goal, axis=axis, keepdims=True)
    coarse = jnp.clip(weight, 1e-2, 1e30)  # a smaller loss moves x too little to matter here
    upper = jnp.log(total(jnp.exp(goal - top)))  # as W(z) <= exp(z)
    t = goal - top + jnp.log(coarse)

    def newton_mu(_: int, mu: Array) -> Array:
        # Newton on log(S) + S/n, which is straight, at any weight, when n classes are equal and the
        # others far below; the slope of S tells 1/n.
        v = _wright_omega(t - mu)
        value, slope = total(v), total(v / (1 + v))
        step = (value - coarse) * (1 / slope - 1 / value) + jnp.log(value / coarse)
        return jnp.minimum(mu + step, upper)

    def newton_x(_: int, x: Array) -> Array:
        p = jax.nn.softmax(x, axis=axis)
        residual = x - goal + weight * p
        diagonal = 1 + weight * p
        q = p / diagonal
        return x - residual / diagonal - weight * q * (total(q * residual) / total(q))

    # Loops: unrolled, XLA repeats the scalars of all earlier steps in every kernel of a step.
    # mu starts where W(z) >= exp(z - weight) puts it; one step less was enough wherever measured.
    steps = 2 + math.ceil(2 * math.log10(goal.shape[axis]))
    mu = lax.fori_loop(0, steps, newton_mu, upper - coarse)
    x = goal - _wright_omega(t - mu)
    return lax.fori_loop(0, 4 if goal.dtype == jnp.float64 else 2, newton_x, x)


def _wright_omega(z: Array) -> Array:
    """The solution W of ``W + log W = z``, to 2 percent everywhere (Winitzki 2003)."""
    soft = jnp.maximum(z, 0) + jnp.log(1 + jnp.exp(-jnp.abs(z)))
    return soft * (1 - jnp.log(1 + soft) / (2 + soft))


def margin(
    s: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"], margin: ArrayLike
) -> Float[Array, "*batch"]:
    """``max(0, margin + max_{j != y} s_j - s_y)``: the hinge of Crammer and Singer, row by row.

    Args:
        s: the scores.
        target: one-hot rows, y the place of the one; a row of zeros has no loss.
        margin: by how much s_y is to exceed the other scores, a scalar or one per row.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.prox import margin
        >>> float(margin(jnp.array([2.0, 0.0, 1.5]), jnp.array([1.0, 0.0, 0.0]), 1.0))
        0.5
    """
    own, others = _split(s, target, -1)
    short = _per_row(margin, s) - own + jnp.max(others, axis=-1, keepdims=True)
    return jnp.maximum(short[..., 0], 0)


def prox_margin(
    s: Float[Array, "*batch classes"],
    target: Float[Array, "*batch classes"],
    margin: ArrayLike,
    lam: ArrayLike,
) -> Float[Array, "*batch classes"]:
    """``argmin_x lam * max(0, margin + max_{j != y} x_j - x_y) + |x - s|^2 / 2``, row by row.

    The other scores are cut at a threshold theta, and what is cut off is added to s_y:
    ``sum_{j != y} max(s_j - theta, 0)`` is lam or, if smaller, what attains the margin, that is
    ``theta + margin - s_y``. Newton from the left on either equation, convex and piecewise linear,
    is exact once the right scores are cut. A step at least quarters value times slope, so that the
    number of steps taken suffices to the last bit; a sort costs ten times as much.

    Args:
        s: the point.
        target: one-hot rows, y the place of the one; a row of zeros leaves its row of s alone.
        margin: a scalar or one per row (broadcasts to ``batch``).
        lam: positive weight of the loss, a scalar or one per row; ``inf`` projects onto
            ``{x : x_y >= margin + x_j for all j != y}``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.prox import prox_margin
        >>> prox_margin(jnp.array([0.0, 1.0, -3.0]), jnp.array([1.0, 0.0, 0.0]), 1.0, jnp.inf)
        Array([ 1.,  0., -3.], dtype=float32)
    """
    return _rowwise(_prox_margin, s, target, _per_row(margin, s), _per_row(lam, s))


def _prox_margin(axis: int, s: Array, target: Array, margin: Array, lam: Array) -> Array:
    own, others = _split(s, target, axis)
    top = jnp.max(others, axis=axis, keepdims=True, initial=jnp.finfo(s.dtype).min)
    t, floor = others - top, own - margin - top

    def newton(_: int, theta: Array) -> Array:
        cut = t > theta
        k = jnp.sum(cut, axis=axis, keepdims=True, dtype=s.dtype)
        total = jnp.sum(jnp.where(cut, t, 0), axis=axis, keepdims=True)
        bound = jnp.maximum((total + floor) / (k + 1), (total - lam) / jnp.maximum(k, 1))
        return jnp.maximum(theta, bound)

    steps = math.ceil(math.log2(s.shape[axis]) + jnp.finfo(s.dtype).nmant / 2)
    start = jnp.maximum(jnp.maximum(floor, floor / 2), -lam)  # bounds by the largest score alone
    theta = lax.fori_loop(0, steps, newton, start)
    # What is cut off, by the equation that theta solves: a sum over many classes would round.
    moved = jnp.maximum(jnp.minimum(lam, theta - floor), 0)
    return jnp.where(target > 0, s + moved, jnp.minimum(s, theta + top))


def _split(s: Array, target: Array, axis: int) -> tuple[Array, Array]:
    """The target's score, inf without a target; and all scores with -inf in its place."""
    target = target.astype(s.dtype)
    # The product keeps a NaN in the target from passing for no target.
    own = jnp.min(jnp.where(target > 0, s, jnp.inf) + 0 * target, axis=axis, keepdims=True)
    return own, jnp.where(target > 0, -jnp.inf, s)


def squared_error(
    s: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """``|s - target|^2 / 2``, row by row.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.prox import squared_error
        >>> float(squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
        2.0
    """
    return 0.5 * jnp.sum(jnp.square(s - target.astype(s.dtype)), axis=-1)


def prox_squared_error(
    s: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"], lam: ArrayLike
) -> Float[Array, "*batch classes"]:
    """``argmin_x lam * |x - target|^2 / 2 + |x - s|^2 / 2 = (s + lam * target) / (1 + lam)``.

    Args:
        s: the point.
        target: any real rows.
        lam: positive weight of the loss, a scalar or one per row; ``inf`` answers ``target``.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.prox import prox_squared_error
        >>> prox_squared_error(jnp.array([0.0, 4.0]), jnp.array([1.0, 0.0]), 3.0)
        Array([0.75, 1.  ], dtype=float32)
    """
    target = target.astype(s.dtype)
    return target + (s - target) / (1 + _per_row(lam, s))


def _per_row(value: ArrayLike, s: Array) -> Array:
    """A number per row, in the dtype of s, with an axis for the classes."""
    return jnp.broadcast_to(jnp.asarray(value, s.dtype), s.shape[:-1])[..., None]


def _rowwise(fun: Callable[..., Array], *arrays: Array) -> Array:
    """``fun(axis, *arrays)`` with the classes on an axis where CPUs like them."""
    if arrays[0].shape[-1] >= 32:
        return fun(-1, *arrays)
    # A few classes would leave vector units empty: put the rows innermost.
    return jnp.moveaxis(fun(0, *(jnp.moveaxis(a, -1, 0) for a in arrays)), 0, -1)
