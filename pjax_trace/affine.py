"""Affine operations whose equations share operands, projected onto as one, by one matrix.

The matrix is made once an update, by a singular value decomposition; a step multiplies by it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pjax_trace.rule import Arrays, Params, Prepared, Projection, Rule, Weights, projection_of

__all__ = ["LIMIT", "AffineGraph", "Inverse", "Rows", "damped_inverse", "parted"]

LIMIT = 2**22  # elements of a matrix that is made


class Inverse(NamedTuple):
    """What answers a residual of outputs by changes of operands.

    Attributes:
        matrix: what multiplies the residual, to give the changes.
        onto: whether every output is that of some operands.
    """

    matrix: Float[Array, "outputs inputs"]
    onto: Bool[Array, ""]

    def changes(self, residual: Array, starts: Sequence[Array]) -> list[Array]:
        """The changes of the operands that have these shapes."""
        return parted(residual.reshape(-1) @ self.matrix, starts)


def parted(vector: Array, shapes: Sequence[Array]) -> list[Array]:
    """A vector as arrays of these shapes, one after the other."""
    parts, place = [], 0
    for x in shapes:
        size = math.prod(x.shape)
        parts.append(vector[place : place + size].reshape(x.shape))
        place += size
    return parts


def damped_inverse(rule: Rule, params: Params, operands: Arrays, weights: Weights) -> Inverse:
    """What answers residuals by the change of the operands that is best.

    With A the derivative and Ω the weights, it is the transpose of ``Ω⁻¹ Aᵀ (A Ω⁻¹ Aᵀ + Ω_z⁻¹)⁻¹``:
    of the nearest point of the graph. Without weights of the output it is the limit in which these
    are large, ``argmin Σ ω_i |dx_i|²`` over the solutions of ``A dx = r``, or of least squares.
    An output element that weighs nothing asks for nothing.
    """
    function = functools.partial(rule.apply, params)
    rows, value, spread = _rows(function, operands, weights)
    # In units in which all weights are 1, that of the damping, too.
    inner = jnp.sqrt(spread)
    outer = jnp.ones(value.size, value.dtype)
    if weights.out is not None:
        outer = jnp.sqrt(jnp.broadcast_to(weights.out, value.shape)).reshape(-1)
    u, s, vt = jnp.linalg.svd(outer[:, None] * rows * inner[None], full_matrices=False)
    least = float(jnp.finfo(s.dtype).eps) * max(rows.shape) * jnp.max(s, initial=0)
    damping = 0 if weights.out is None else 1
    inverse = jnp.where(s > least, s / (jnp.square(jnp.where(s > least, s, 1)) + damping), 0)
    matrix = outer[:, None] * ((u * inverse[None]) @ vt) * inner[None]
    return Inverse(matrix, jnp.sum(s > least) == value.size)


class Rows(NamedTuple):
    """The equations of an affine operation, one by one.

    Attributes:
        rows: by what they multiply the operands.
        steps: where the nearest solution is, seen from the operands: the rows over the weights.
        squares: the products of both.
        offset: the value of the operation where all operands are 0.
    """

    rows: Float[Array, "outputs inputs"]
    steps: Float[Array, "outputs inputs"]
    squares: Float[Array, "outputs"]
    offset: Float[Array, "outputs"]

    @staticmethod
    def of(function: Callable[..., Array], operands: Arrays, weights: Weights) -> "Rows":
        """The equations of a function."""
        rows, value, spread = _rows(function, operands, weights)
        steps = rows * spread[None]
        return Rows(rows, steps, jnp.sum(rows * steps, 1), value.reshape(-1))

    def onto(self, x: Array, lower: Array, upper: Array, corrections: Array) -> tuple[Array, Array]:
        """The operands, moved to the interval of every equation, one after the other.

        With corrections that are kept from one call to the next it is Dykstra's algorithm on these
        sets, whose corrections are multiples of ``steps`` (Hildreth 1957). Where they are 0 it is
        cyclic projections.
        """

        def one(x: Array, equation: Any) -> tuple[Array, Array]:
            row, step, square, offset, low, high, c = equation
            value = row @ x + offset + c * square
            t = (jnp.clip(value, low, high) - value) / jnp.where(square > 0, square, 1)
            return x + (c + t) * step, -t

        return jax.lax.scan(one, x, (*self, lower.reshape(-1), upper.reshape(-1), corrections))


def _rows(
    function: Callable[..., Array], operands: Arrays, weights: Weights
) -> tuple[Array, Array, Array]:
    """The matrix of an affine function of the operands that have weights.

    Also its value where they are 0, and the inverse of the weights by element.
    """
    places = [i for i, weight in enumerate(weights.operands) if weight is not None]
    starts = [jnp.zeros_like(operands[i]) for i in places]

    def moving(*xs: Array) -> Array:
        own = dict(zip(places, xs, strict=True))
        return function(*(own.get(i, x) for i, x in enumerate(operands)))

    value, push = jax.linearize(moving, *starts)
    pull = jax.linear_transpose(push, *starts)
    units = jnp.eye(value.size, dtype=value.dtype).reshape(-1, *value.shape)
    rows = jax.vmap(lambda unit: jnp.concatenate([x.reshape(-1) for x in pull(unit)]))(units)
    spread = [
        jnp.broadcast_to(1 / jnp.asarray(weights.operands[i], x.dtype), x.shape).reshape(-1)
        for i, x in zip(places, starts, strict=True)
    ]
    return rows, value, jnp.concatenate(spread)


class AffineGraph(Prepared):
    """The graph of an affine operation as one set: ``{(x, z) : z = A x + b}``."""

    granularity = "block"
    joint = True
    wrapper = "block"

    def __init__(self, inner: Rule):
        self.inner = inner
        self.family = inner.family  # pyright: ignore[reportAttributeAccessIssue]

    def apply(self, params: Params, *operands: Array) -> Array:
        """That of the operation."""
        return self.inner.apply(params, *operands)

    def prepare(self, params: Params, operands: Arrays, weights: Weights) -> Params:
        """With what answers residuals."""
        return {**params, "inverse": damped_inverse(self.inner, params, operands, weights)}

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The nearest point: ``x + M (out − f(x))``, and its output."""
        if "inverse" not in params:
            params = self.prepare(params, operands, weights)
        places = [i for i, weight in enumerate(weights.operands) if weight is not None]
        starts = [operands[i] for i in places]
        residual = out - self.inner.apply(params, *operands)
        moved = list(operands)
        for i, change in zip(places, params["inverse"].changes(residual, starts), strict=True):
            moved[i] = operands[i] + change
        return projection_of(operands, out, weights, moved, self.inner.apply(params, *moved))
