"""The metric of what layers put out, from the covariance of what is asked of it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.linear import common_size
from pjax_trace.sums import squared

__all__ = ["whiteners"]

_BLOCK = 128  # features that are whitened together
_QUINTIC = 3.4445, -4.7750, 2.0315


class _Blocks(NamedTuple):
    """Features as so many blocks of a size, the last one filled up by zeros."""

    features: int
    blocks: int
    size: int

    @classmethod
    def of(cls, features: int) -> "_Blocks":
        count = -(-features // _BLOCK)
        return cls(features, count, -(-features // count))

    def split(self, x: Array) -> list[Float[Array, "rows size"]]:
        if self.blocks == 1:
            return [x]
        more = self.blocks * self.size - self.features
        return jnp.split(jnp.pad(x, ((0, 0), (0, more))), self.blocks, 1)

    def covariances(self, target: Array, damping: Any) -> Float[Array, "blocks padded padded"]:
        """Those of the features of every block, and ``damping`` on their diagonal, of trace 1."""
        split = self.split(target)
        products = jnp.stack([part.T @ part for part in split])
        total = jnp.stack([squared(part) for part in split])[:, None, None]
        # Where squares overflow or vanish, nothing is known of how features go together.
        known = (total > 0) & (total < jnp.inf)
        damping = jnp.asarray(damping, target.dtype)
        unit = jnp.eye(self.size, dtype=target.dtype)[None]
        damped = jnp.where(known, products / total, 0) + damping * unit
        more = common_size(self.size) - self.size
        return jnp.pad(damped / (1 + damping * self.size), ((0, 0), (0, more), (0, more)))

    def times(self, roots: Float[Array, "blocks padded padded"], x: Array) -> Array:
        """An array times the block-diagonal matrix of these."""
        own = roots[:, : self.size, : self.size]
        parts = [part @ root for part, root in zip(self.split(x), own, strict=True)]
        return jnp.concatenate(parts, 1)[:, : self.features]


def whiteners(
    targets: Sequence[Float[Array, "rows features"]], dampings: Sequence[Any], rounds: int
) -> list[Callable[[Array], Array]]:
    """For each target, what multiplies from the right by about ``C^(-1/2)``, C its covariance.

    A layer whose outputs are measured in the metric ``C⁻¹`` counts what is asked of many features
    alike as one thing, and not as many. ``C = TᵀT / tr(TᵀT) + damping I``, for what little is
    asked is mostly noise; with much damping, the metric is the identity again. In place of the
    inverse root there is a polynomial P of C: each round of a Newton–Schulz iteration brings
    eigenvalues of P C P nearer to 1, and multiplies those that are nearly 0 by 3.4². P is scaled
    such that the traces of P C P and C are the same. Each block of 128 features has a P of its own.

    Args:
        targets: what is asked of layers, in any float type.
        dampings: not negative; for each target.
        rounds: at least 1.

    Returns:
        Functions of arrays whose last axis counts the features of the target, in its wide type.
        Where squares overflow or vanish they are the identity if there is damping, or else
        multiples of it.

    References:
        K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, for the
        coefficients. N. Higham, Functions of Matrices, SIAM 2008, chapter 8, for the iteration.
    """
    blocks = [_Blocks.of(target.shape[1]) for target in targets]
    # Matrices of one size are multiplied together: XLA compiles that once.
    stacks: dict[tuple[int, Any], list[Array]] = {}
    places = []
    for target, damping, own in zip(targets, dampings, blocks, strict=True):
        wide = _compat.promoted(target.dtype, jnp.float32)
        key = common_size(own.size), wide
        stack = stacks.setdefault(key, [])
        places.append((key, sum(map(len, stack))))
        stack.append(own.covariances(target.astype(wide), damping))
    roots = {key: _inverse_roots(jnp.concatenate(stack), rounds) for key, stack in stacks.items()}
    return [
        functools.partial(own.times, roots[key][first : first + own.blocks])
        for own, (key, first) in zip(blocks, places, strict=True)
    ]


def _inverse_roots(matrices: Array, rounds: int) -> Array:
    """P, about ``C^(-1/2)``, of positive semidefinite matrices of trace at most 1.

    The trace of P C P is that of C.
    """
    a, b, c = _QUINTIC
    unit = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    root = factor = unit
    left = half = matrices
    for i in range(rounds):
        left = half @ factor if i else left
        factor = a * unit + b * left + c * (left @ left)
        root = factor @ root if i else factor
        half = factor @ left
    # The trace of P C P, of which the last product is not needed.
    before, after = jnp.trace(matrices, axis1=1, axis2=2), jnp.sum(half * factor, (1, 2))
    scale = jnp.sqrt(jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1))
    return scale[:, None, None] * root
