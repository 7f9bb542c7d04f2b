"""Complex values as pairs of reals: an array with one more axis, for real and imaginary part.

A solver moves real numbers. Complex parameters become pairs where they come in, and in the program
everything complex that depends on variables is kept as a pair; data stay complex.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pjax_trace import _compat
from pjax_trace.registry import register_paired

__all__ = ["as_complex", "as_pair", "is_complex", "scan_of_pairs"]


def is_complex(x: Any) -> bool:
    """Whether an array, or what stands for one, holds complex numbers."""
    return bool(jnp.issubdtype(x.dtype, jnp.complexfloating))


def _join(x: Any, *, axis: int) -> list[Any]:
    return [jax.lax.complex(*(jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in (0, 1)))]


def _split(x: Any, *, axis: int) -> list[Any]:
    return [jnp.stack([jnp.real(x), jnp.imag(x)], axis)]


def _batch(operands: Sequence[Any], axes: Sequence[Any], params: dict[str, Any]) -> Any:
    (x,), (axis,) = operands, axes
    return [jnp.moveaxis(x, axis, 0)], {"axis": params["axis"] + 1}


# In a program both leave a pair as it is.
_join_p = _compat.new_primitive("complex_of_pair", implementation=_join, batch=_batch)
_split_p = _compat.new_primitive("pair_of_complex", implementation=_split, batch=_batch)
register_paired(_join_p, lambda params, pairs, x: jnp.moveaxis(x, params["axis"], 0))
register_paired(_split_p, lambda params, pairs, x: jnp.moveaxis(x, 0, params["axis"]))


def as_complex(x: Any, axis: int = 0) -> Any:
    """The complex array of a pair."""
    return _join_p.bind(x, axis=axis)[0]


def as_pair(x: Any, axis: int = 0) -> Any:
    """The pair of a complex array, or of the shape of one; what is not complex as it is."""
    if not is_complex(x):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((2, *x.shape), jnp.finfo(x.dtype).dtype)
    return _split_p.bind(x, axis=axis)[0]


def scan_of_pairs(eqn: Any, pairs: Sequence[bool]) -> Any:
    """A scan over complex values as one over pairs: a function of its operands.

    Carries are pairs, whether they are variables at first or not, and so is what it returns.
    """
    scan = _compat.scan_parts(eqn)
    last = scan.consts + scan.carries
    complex_in = [is_complex(var.aval) for var in eqn.invars]

    def function(*operands: Any) -> list[Any]:
        start = [as_pair(x) for x in operands[scan.consts : last]]
        inputs = [
            jnp.moveaxis(x, 0, 1) if pair else x
            for x, pair in zip(operands[last:], pairs[last:], strict=True)
        ]

        def step(carry: Any, xs: Any) -> Any:
            known = zip((*operands[: scan.consts], *carry, *xs), complex_in, strict=True)
            inner = [as_complex(x) if c and not is_complex(x) else x for x, c in known]
            results = [as_pair(x) for x in _compat.run_jaxpr(scan.body, *inner)]
            return results[: scan.carries], results[scan.carries :]

        carry, outputs = jax.lax.scan(step, start, inputs, length=scan.length, reverse=scan.reverse)
        flags = [is_complex(var.aval) for var in eqn.outvars[scan.carries :]]
        return [
            *carry,
            *(jnp.moveaxis(y, 1, 0) if c else y for y, c in zip(outputs, flags, strict=True)),
        ]

    return function
