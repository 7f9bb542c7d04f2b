"""Products of groups of rows with a matrix for each: mixtures of experts (`jax.lax.ragged_dot`).

Which rows are in which group is data. A group's rows are those of the whole array with zeros in the
places of all others, so one product does all: as many operations as for dense experts.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Flags, Params
from pjax_trace.rules.sum_rule import SUM
from pjax_trace.translation import Outcome, Refuse, Rewrite, Translation


def _ragged(params: Params, x: Array, w: Array, sizes: Array) -> Array:
    """Rows of one group: ``out[m, n] = Σ x[m, k] w[group of m, k, n]``, with any dimensions.

    Where the ragged axis is contracted: ``out[g, m, n] = Σ x[m, k] w[k, n]`` over k in group g.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    (contract_x, contract_w), (batch_x, batch_w) = numbers.dot_dimension_numbers
    (ragged,), group = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    # The sizes are those of each batch, or of all of them.
    ends = jnp.cumsum(sizes, -1)
    place = lax.broadcasted_iota(ends.dtype, (*sizes.shape, x.shape[ragged]), sizes.ndim)
    own = (place >= (ends - sizes)[..., None]) & (place < ends[..., None])
    own = jnp.moveaxis(own, -2, 0)  # [group, *batch, ragged]
    kept = (*batch_x, ragged) if sizes.ndim > 1 else (ragged,)
    order = sorted(range(len(kept)), key=kept.__getitem__)
    own = jnp.transpose(own, (0, *(1 + i for i in order)))
    own = lax.broadcast_in_dim(own, (len(own), *x.shape), (0, *(1 + axis for axis in sorted(kept))))
    rows = jnp.broadcast_to(x[None], own.shape)
    rows = jnp.where(own, rows, jnp.zeros_like(rows))
    options = {
        "precision": params.get("precision"),
        "preferred_element_type": params.get("preferred_element_type"),
    }
    shifted = tuple(1 + axis for axis in contract_x), tuple(1 + axis for axis in batch_x)
    if group:
        pairs = ((0, *shifted[0]), (*group, *contract_w)), (shifted[1], tuple(batch_w))
        return lax.dot_general(rows, w, pairs, **options)
    out = lax.dot_general(
        rows, w, ((shifted[0], tuple(contract_w)), (shifted[1], tuple(batch_w))), **options
    )
    return jnp.moveaxis(out, len(batch_x), 0)


def _translate(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    numbers = params["ragged_dot_dimension_numbers"]
    (contract_x, _), (batch_x, _) = numbers.dot_dimension_numbers
    (ragged,), group = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    contracted = ragged in contract_x
    if ragged in batch_x or contracted == bool(group) or len(group) > 1:
        return Refuse("groups of a batch axis have no rule; write jax.vmap of a product")
    if params.get("group_offset") is not None:
        return Refuse("an offset of groups has no rule; slice the groups")
    return Rewrite(partial(_ragged, params))


register_rule(
    _compat.ragged_dot_p,
    Translation(_translate, of=SUM),
    cases=[
        Case(
            lambda x, w: lax.ragged_dot(x, w, jnp.array([3, 0, 2], jnp.int32)),
            ((5, 2), (3, 2, 2)),
        )
    ],
    note="as one product with zeros in place of other groups' rows",
)
