"""Views: affine primitives in which every output element reads one input element.

They are no constraints. Consensus passes through them by their transpose, which JAX knows.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from pjax_trace.registry import Case, ViewRule, register_rule


class ConvertRule(ViewRule):
    """``convert_element_type``: a view between floating-point types only."""

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Rounding to integers or booleans is no affine map."""
        return bool(jnp.issubdtype(params["new_dtype"], jnp.floating))


_PERMUTATION = ViewRule(permutation=True)
_PART = ViewRule(total=False)
_SEVERAL = ViewRule(operands=None, offset=True)
# Negative padding drops elements; what is padded with may be a variable, too.
_PAD = ViewRule(operands=None, total=False, offset=True)


register_rule(lax.reshape_p, _PERMUTATION, cases=[Case(lambda x: x.reshape(3, 2), ((2, 3),))])
register_rule(lax.transpose_p, _PERMUTATION, cases=[Case(jnp.transpose, ((2, 3),))])
register_rule(lax.squeeze_p, _PERMUTATION, cases=[Case(jnp.squeeze, ((1, 3, 1),))])
register_rule(lax.rev_p, _PERMUTATION, cases=[Case(jnp.flip, ((2, 2),))])
register_rule(lax.copy_p, _PERMUTATION, cases=[Case(jnp.copy, ((3,),))])
register_rule(  # a permutation where it adds no elements
    lax.broadcast_in_dim_p,
    _PERMUTATION,
    cases=[
        Case(lambda x: x[None, :, None], ((3,),)),
        Case(lambda x: jnp.broadcast_to(x[:, None], (3, 2)), ((3,),)),
    ],
)
register_rule(lax.neg_p, ViewRule(pointwise=True), cases=[Case(lax.neg, ((3,),))])
register_rule(
    lax.convert_element_type_p,
    ConvertRule(pointwise=True),
    cases=[Case(lambda x: jnp.square(x.astype(jnp.float16).astype(x.dtype)) + x, ((2,),))],
    note="between floating-point types; to integers it is data",
)
register_rule(lax.slice_p, _PART, cases=[Case(lambda x: x[1:4:2], ((5,),))])
register_rule(
    lax.dynamic_slice_p,
    _PART,
    cases=[Case(lambda x: lax.dynamic_slice(x, (jnp.int32(1),), (2,)), ((4,),))],
)
register_rule(
    lax.gather_p,
    _PART,
    cases=[Case(lambda x: x[jnp.array([2, 0])], ((3, 2),))],
    note="indices are data",
)
register_rule(lax.split_p, _PART, cases=[Case(lambda x: lax.split(x, (2, 1))[0], ((3,),))])
register_rule(
    lax.concatenate_p,
    _SEVERAL,
    cases=[
        Case(lambda x, y: jnp.concatenate([x, y]), ((2,), (3,))),
        Case(lambda x: jnp.concatenate([x, jnp.ones(1, x.dtype), -x]), ((2,),)),
    ],
)
register_rule(
    lax.pad_p,
    _PAD,
    cases=[
        Case(lambda x: jnp.pad(x, 1), ((2, 2),)),
        Case(lambda x: lax.pad(x, jnp.ones((), x.dtype), ((-1, 2, 1),)), ((3,),)),
    ],
)
register_rule(
    lax.optimization_barrier_p,
    ViewRule(operands=None),
    cases=[Case(lax.optimization_barrier, ((3,),))],
)
register_rule(
    lax.stop_gradient_p,
    ViewRule(),  # never reached: its output is data
    cases=[Case(lambda x: x + lax.stop_gradient(x), ((3,),))],
    note="its output is data",
)
# Newer JAX traces these where older JAX used several of the above.
if hasattr(lax, "tile_p"):
    register_rule(lax.tile_p, ViewRule(), cases=[Case(lambda x: jnp.tile(x, (2, 2)), ((1, 2),))])
if hasattr(lax, "stack_p"):
    case = Case(lambda x, y: jnp.stack([x, y], 1), ((2,), (2,)))
    register_rule(lax.stack_p, _SEVERAL, cases=[case], since="0.10.2")
if hasattr(lax, "unstack_p"):
    case = Case(lambda x: jnp.unstack(x)[1], ((2, 2),))
    register_rule(lax.unstack_p, _PART, cases=[case], since="0.10.2")
