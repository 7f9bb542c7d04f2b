"""Views: affine primitives in which every output element reads one input element.

They are no constraints. Consensus passes through them by their transpose, which JAX knows.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pjax_trace.registry import ViewRule, register_rule


class ConvertRule(ViewRule):
    """``convert_element_type``: a view between floating-point types only."""

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Rounding to integers or booleans is no affine map."""
        return bool(jnp.issubdtype(params["new_dtype"], jnp.floating))


class SelectRule(ViewRule):
    """``select_n`` by data: the predicate, the first operand, must not be a variable."""

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Whether the choice is data's."""
        return not variable[0]


for primitive in (lax.reshape_p, lax.transpose_p, lax.squeeze_p, lax.rev_p, lax.copy_p):
    register_rule(primitive, ViewRule(permutation=True))
register_rule(lax.broadcast_in_dim_p, ViewRule(permutation=True))  # where it adds no elements
register_rule(lax.neg_p, ViewRule(pointwise=True))
register_rule(lax.convert_element_type_p, ConvertRule(pointwise=True))
for primitive in (lax.slice_p, lax.dynamic_slice_p, lax.gather_p, lax.split_p):
    register_rule(primitive, ViewRule(total=False))
register_rule(lax.concatenate_p, ViewRule(operands=None, offset=True))
# Negative padding drops elements; what is padded with may be a variable, too.
register_rule(lax.pad_p, ViewRule(operands=None, total=False, offset=True))
register_rule(lax.select_n_p, SelectRule(operands=None, total=False, offset=True))
register_rule(lax.optimization_barrier_p, ViewRule(operands=None))
register_rule(lax.stop_gradient_p, ViewRule())  # never reached: its output is data
# Newer JAX traces these where older JAX used several of the above.
for name, rule in {
    "tile_p": ViewRule(),
    "stack_p": ViewRule(operands=None, offset=True),
    "unstack_p": ViewRule(total=False),
}.items():
    if hasattr(jax.lax, name):
        register_rule(getattr(jax.lax, name), rule)
