"""Linear solves by data matrices, which are linear maps of what they are solved for.

The inverse is made once of the data; with it, a solve is a matrix product like any other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.errors import MissingRuleError
from pjax_trace.registry import Case, register_paired, register_rule
from pjax_trace.rule import Flags, Params
from pjax_trace.rules.complex_functions import in_complex
from pjax_trace.rules.sum_rule import SUM
from pjax_trace.translation import Outcome, Refuse, Rewrite, Translation

_REASON = (
    "a matrix that is solved with must be data: make the solution a parameter, or a variable, and "
    "constrain the product, A @ x to b; or solve with jax.lax.stop_gradient(A)"
)


def _by_data(function: Callable[..., Any], last: Callable[[Params], int]) -> Translation:
    """A solve of which only the operands from ``last(params)`` on are variables."""

    def translate(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
        if any(variable[: last(params)]):
            return Refuse(_REASON)
        return Rewrite(partial(function, params))

    return Translation(translate, of=SUM)


def _triangular(params: Params, a: Array, b: Array) -> Array:
    left = bool(params["left_side"])
    eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    (inverse,) = _compat.bind(lax.linalg.triangular_solve_p, params, a, eye)
    return jnp.matmul(inverse, b) if left else jnp.matmul(b, inverse)


def _tridiagonal(params: Params, lower: Array, diagonal: Array, upper: Array, b: Array) -> Array:
    n = diagonal.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=b.dtype), (*diagonal.shape, n))
    (inverse,) = _compat.bind(lax.linalg.tridiagonal_solve_p, params, lower, diagonal, upper, eye)
    return jnp.matmul(inverse, b)


def _inlined(params: Params, *operands: Array) -> list[Array]:
    """The solver itself, for whose own steps there are rules."""
    lengths, jaxprs = params["const_lengths"], params["jaxprs"]
    before = lengths.matvec + lengths.vecmat
    constants = operands[before : before + lengths.solve]
    return _compat.run_jaxpr(jaxprs.solve, *constants, *operands[_constants(params) :])


def _constants(params: Params) -> int:
    return sum(params["const_lengths"])


def _spread(n: int, dtype: Any) -> Array:
    """A well-conditioned matrix without symmetries."""
    return 2 * jnp.eye(n, dtype=dtype) + jnp.arange(n * n, dtype=dtype).reshape(n, n) / (n * n)


def _paired(function: Callable[..., Any], last: Callable[[Params], int]) -> Callable[..., Array]:
    """The same of complex values."""
    whole = in_complex(function)

    def paired(params: Params, pairs: Sequence[bool], *operands: Array) -> Array:
        if any(pairs[: last(params)]):
            raise MissingRuleError(_REASON)
        return whole(params, pairs, *operands)

    return paired


register_paired(lax.linalg.triangular_solve_p, _paired(_triangular, lambda params: 1))
register_paired(lax.linalg.tridiagonal_solve_p, _paired(_tridiagonal, lambda params: 3))
register_paired(
    _compat.linear_solve_p,
    _paired(lambda params, *operands: _inlined(params, *operands)[0], _constants),
)
register_rule(
    lax.linalg.triangular_solve_p,
    _by_data(_triangular, lambda params: 1),
    cases=[
        Case(
            lambda b: lax.linalg.triangular_solve(
                _spread(3, b.dtype), b, left_side=True, lower=True
            ),
            ((3, 2),),
        ),
        Case(
            lambda b: lax.linalg.triangular_solve(
                _spread(3, b.dtype), b, transpose_a=True, unit_diagonal=True
            ),
            ((2, 3),),
        ),
    ],
    note="by data",
)
register_rule(
    lax.linalg.tridiagonal_solve_p,
    _by_data(_tridiagonal, lambda params: 3),
    cases=[
        Case(
            lambda b: lax.linalg.tridiagonal_solve(
                jnp.asarray([0, 1, -1], b.dtype),
                jnp.asarray([2, 3, 2], b.dtype),
                jnp.asarray([1, 0.5, 0], b.dtype),
                b,
            ),
            ((3, 2),),
        )
    ],
    note="by data",
)
register_rule(
    _compat.linear_solve_p,
    _by_data(_inlined, _constants),
    cases=[
        Case(lambda b: jnp.linalg.solve(_spread(3, b.dtype), b), ((3,),)),
        Case(lambda b: jax.scipy.linalg.solve(_spread(2, b.dtype), b), ((2, 3),)),
    ],
    note="by data",
)
