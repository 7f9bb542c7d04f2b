"""Views: affine primitives in which every output element reads one input element.

They are no constraints. Consensus passes through them by their transpose, which JAX knows.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import Case, Range, ViewRule, register_rule


class ConvertRule(ViewRule):
    """``convert_element_type``: a view between floating-point types only."""

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Rounding to integers or booleans is no affine map."""
        return bool(jnp.issubdtype(params["new_dtype"], jnp.floating))


class TransposeRule(ViewRule):
    """``transpose``."""

    def restrict(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        """Of the part of the axis that goes there."""
        return params, (part._replace(axis=int(params["permutation"][part.axis])),)


class BroadcastRule(ViewRule):
    """``broadcast_in_dim``."""

    def restrict(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        """Of a part, or of all, if the axis is a new one."""
        shape = list(params["shape"])
        whole, shape[part.axis] = shape[part.axis], part.stop - part.start
        places = [int(axis) for axis in params["broadcast_dimensions"]]
        own = places.index(part.axis) if part.axis in places else None
        if own is not None and shapes[0][own] != whole:
            own = None
        params = {**params, "shape": tuple(shape)}
        return params, (None if own is None else part._replace(axis=own),)


class SliceRule(ViewRule):
    """``slice``."""

    def ranges(self, params: dict[str, Any], shape: tuple[int, ...]) -> list[Range] | None:
        """One, if only one axis is cut, without strides."""
        limits = list(zip(params["start_indices"], params["limit_indices"], shape, strict=True))
        cut = [axis for axis, (start, stop, size) in enumerate(limits) if stop - start < size]
        strides = params["strides"] or ()
        if len(cut) != 1 or any(stride != 1 for stride in strides):
            return None
        return [Range(cut[0], int(limits[cut[0]][0]), int(limits[cut[0]][1]))]


class SplitRule(ViewRule):
    """``split``."""

    def ranges(self, params: dict[str, Any], shape: tuple[int, ...]) -> list[Range] | None:
        """One after the other."""
        stops = list(itertools.accumulate(int(size) for size in params["sizes"]))
        return [Range(int(params["axis"]), a, b) for a, b in zip([0, *stops], stops, strict=False)]


def _placed(x: Array) -> Array:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return lax.with_sharding_constraint(x, device)


_PERMUTATION = ViewRule(permutation=True)
_PART = ViewRule(total=False)
_SEVERAL = ViewRule(operands=None, offset=True)
# Negative padding drops elements; what is padded with may be a variable, too.
_PAD = ViewRule(operands=None, total=False, offset=True)


register_rule(lax.reshape_p, _PERMUTATION, cases=[Case(lambda x: x.reshape(3, 2), ((2, 3),))])
register_rule(
    lax.transpose_p, TransposeRule(permutation=True), cases=[Case(jnp.transpose, ((2, 3),))]
)
register_rule(lax.squeeze_p, _PERMUTATION, cases=[Case(jnp.squeeze, ((1, 3, 1),))])
register_rule(lax.rev_p, _PERMUTATION, cases=[Case(jnp.flip, ((2, 2),))])
register_rule(lax.copy_p, _PERMUTATION, cases=[Case(jnp.copy, ((3,),))])
register_rule(  # a permutation where it adds no elements
    lax.broadcast_in_dim_p,
    BroadcastRule(permutation=True),
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
register_rule(lax.slice_p, SliceRule(total=False), cases=[Case(lambda x: x[1:4:2], ((5,),))])
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
register_rule(
    lax.split_p, SplitRule(total=False), cases=[Case(lambda x: lax.split(x, (2, 1))[0], ((3,),))]
)
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
    cases=[Case(lambda x: jnp.abs(x) + jnp.square(x) * lax.stop_gradient(x), ((3,),))],
    note="its output is data",
)
register_rule(
    lax.sharding_constraint_p,
    _PERMUTATION,
    cases=[Case(_placed, ((3,),))],
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
