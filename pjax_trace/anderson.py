"""Anderson's acceleration: the next update starts from a mixture of where the last ones ended."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pjax_trace.acceleration import Acceleration, Arrays, Inner, dot
from pjax_trace.errors import InputError, check_positive

__all__ = ["Anderson"]


class _Mixture(NamedTuple):
    """What `Anderson` remembers of the last update that counted, and of changes before it."""

    residual: list[Array]
    squared: Float[Array, ""]
    residuals: list[Array]
    ends: list[Array]
    products: Float[Array, "memory memory"]
    mixture: Float[Array, "memory"]
    known: Int[Array, ""]


class Anderson(Acceleration):
    """Anderson's acceleration of type II, with a safeguard.

    The next update ``g = T(u)`` starts from ``g − ΔG γ``, where the columns of ΔG and ΔF are the
    last changes of ``g`` and of the residual ``f = T(u) − u``, and

    ``γ = argmin ‖f − ΔF γ‖² + ridge · Σ_j ‖ΔF_j‖² γ_j²``

    If the residual there is larger than the last one, this update is dropped, all changes are
    forgotten, and the next update starts from the last good ``g`` without mixing. Residuals then
    grow only where plain updates make them grow, at the cost of the dropped updates. If T is affine
    and the memory is large enough, this is equivalent to GMRES and ends after finitely many steps.

    All updates should be the same map T: the steps of one update, or updates by the same data. From
    batch to batch, T changes, and good updates are dropped. (On MNIST, sweeps reached 86.6 % after
    100 batches with it, 90.3 % with no acceleration, and 95.3 % with momentum.)

    Args:
        memory: how many changes to remember; usually 5 to 10.
        ridge: the regularisation of the least-squares problem for γ.

    References:
        D. Anderson, Iterative procedures for nonlinear integral equations, J. ACM 12 (1965). H.
        Walker, P. Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49
        (2011), section 2. A. Fu, J. Zhang, S. Boyd, Anderson accelerated Douglas–Rachford
        splitting, SIAM J. Sci. Comput. 42 (2020), for regularisation and safeguards.

    Example:
        A point of two planes that are nearly parallel:

        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def both(x):
        ...     pjax.constrain(x[0] + x[1], pjax.sets.Equal(1.0))
        ...     pjax.constrain(x[0] + 1.1 * x[1], pjax.sets.Equal(0.0))
        >>> plain = pjax.AlternatingProjections()
        >>> for solver in plain, pjax.Accelerated(plain, pjax.Anderson()):
        ...     _, info = pjax.project(both, solver=solver, steps=10)(jnp.zeros(2))
        ...     print(bool(info.gap < 1e-4))
        False
        True
    """

    memory: int = 5
    ridge: float = 1e-6

    def __check_init__(self) -> None:
        if not isinstance(self.memory, int) or isinstance(self.memory, bool) or self.memory < 1:
            raise InputError(f"Anderson: memory must be a positive integer, not {self.memory!r}")
        check_positive("Anderson: ridge", self.ridge)

    def init(self, parameters: Arrays) -> Any:
        """A memory without changes, and an infinite residual."""
        zero = jnp.zeros((), jnp.result_type(float))
        stacks = [jnp.zeros((self.memory, *x.shape), x.dtype) for x in parameters]
        return _Mixture(
            residual=[jnp.zeros_like(x) for x in parameters],
            squared=zero + jnp.inf,
            residuals=stacks,
            ends=[jnp.zeros_like(x) for x in stacks],
            products=jnp.zeros((self.memory, self.memory), zero.dtype),
            mixture=jnp.zeros(self.memory, zero.dtype),
            known=jnp.zeros((), jnp.int32),
        )

    def start(self, memory: Any, parameters: Arrays) -> Arrays:
        """The mixture ``g − ΔG γ`` of the ends of the last updates."""
        return [
            x - jnp.tensordot(memory.mixture.astype(x.dtype), ends, 1)
            for x, ends in zip(parameters, memory.ends, strict=True)
        ]

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays, inner: Inner = dot
    ) -> tuple[Arrays, Any]:
        """The end of the update, or the last good one if it is dropped; and the new memory."""
        residual = [e - s for s, e in zip(start, end, strict=True)]
        squared = inner(residual, residual)
        good = jnp.all(memory.mixture == 0) | (squared <= memory.squared)
        slot = memory.known % self.memory

        def written(stacks: Arrays, new: Arrays, old: Arrays) -> list[Array]:
            changes = zip(stacks, new, old, strict=True)
            return [stack.at[slot].set(x - y) for stack, x, y in changes]

        residuals = written(memory.residuals, residual, memory.residual)
        ends = written(memory.ends, end, parameters)
        with_all = jax.vmap(inner, (0, None))
        row = with_all(residuals, [stack[slot] for stack in residuals])
        products = memory.products.at[slot].set(row).at[:, slot].set(row)
        # Of the first residual there is no change yet; what was written will be written over.
        more = jnp.isfinite(memory.squared).astype(memory.known.dtype)
        count = jnp.where(good, memory.known + more, 0)
        known = jnp.arange(self.memory, dtype=count.dtype) < count
        after = _Mixture(
            residual=_chosen(good, residual, memory.residual),
            squared=jnp.where(good, squared, memory.squared),
            residuals=residuals,
            ends=ends,
            products=products,
            mixture=self._mix(products, with_all(residuals, residual), known),
            known=count,
        )
        return _chosen(good, end, parameters), after

    def _mix(
        self,
        products: Float[Array, "memory memory"],
        right: Float[Array, "memory"],
        known: Bool[Array, "memory"],
    ) -> Float[Array, "memory"]:
        """γ, solved for in units of the changes' lengths; 0 for what is unknown or has none."""
        lengths = jnp.sqrt(jnp.diagonal(products))
        known &= lengths > 0
        units = jnp.where(known, lengths, 1)
        cosines = jnp.where(known[:, None] & known[None], products / jnp.outer(units, units), 0)
        matrix = cosines + jnp.diag(jnp.where(known, self.ridge, 1.0).astype(units.dtype))
        return jnp.linalg.solve(matrix, jnp.where(known, right / units, 0)) / units


def _chosen(choice: Bool[Array, ""], yes: Arrays, no: Arrays) -> list[Array]:
    return [jnp.where(choice, x, y) for x, y in zip(yes, no, strict=True)]
