"""Views: affine primitives in which every output element reads one input element.

They are no constraints. Consensus passes through them by their transpose, which JAX knows. Which
elements a view reads is an `pjax_trace.index.Index`, where that is an affine function of the place.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.index import Index
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Params, Shapes
from pjax_trace.translation import Range, ViewRule

Restricted = tuple[dict[str, Any], tuple[Range | None, ...]]


def _squeezed(params: Params, x: Index) -> Index | None:
    return x.reshape([n for axis, n in enumerate(x.shape) if axis not in params["dimensions"]])


def _sliced(params: Params, x: Index) -> Index:
    return x.slice(params["start_indices"], params["limit_indices"], params["strides"])


def _slice_ranges(params: Params, shape: tuple[int, ...]) -> list[Range] | None:
    """One, if only one axis is cut, without strides."""
    limits = list(zip(params["start_indices"], params["limit_indices"], shape, strict=True))
    cut = [axis for axis, (start, stop, size) in enumerate(limits) if stop - start < size]
    strides = params["strides"] or ()
    if len(cut) != 1 or any(stride != 1 for stride in strides):
        return None
    return [Range(cut[0], int(limits[cut[0]][0]), int(limits[cut[0]][1]))]


def _split_ranges(params: Params, shape: tuple[int, ...]) -> list[Range]:
    """One after the other."""
    stops = list(itertools.accumulate(int(size) for size in params["sizes"]))
    return [Range(int(params["axis"]), a, b) for a, b in zip([0, *stops], stops, strict=False)]


def _transpose_part(params: Params, shapes: Shapes, part: Range) -> Restricted:
    """Of the part of the axis that goes there."""
    return params, (part._replace(axis=int(params["permutation"][part.axis])),)


def _broadcast_part(params: Params, shapes: Shapes, part: Range) -> Restricted:
    """Of a part, or of all, if the axis is a new one."""
    shape = list(params["shape"])
    whole, shape[part.axis] = shape[part.axis], part.stop - part.start
    places = [int(axis) for axis in params["broadcast_dimensions"]]
    own = places.index(part.axis) if part.axis in places else None
    if own is not None and shapes[0][own] != whole:
        own = None
    params = {**params, "shape": tuple(shape)}
    return params, (None if own is None else part._replace(axis=own),)


def _placed(x: Array) -> Array:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return lax.with_sharding_constraint(x, device)


_IN_PLACE = ViewRule(pointwise=True)
_SCALED = ViewRule(pointwise=True, scales=True)
_PART = ViewRule(total=False)
_SEVERAL = ViewRule(operands=None, offset=True)


register_rule(
    lax.reshape_p,
    ViewRule(index=lambda params, x: x.reshape(params["new_sizes"])),
    cases=[Case(lambda x: x.reshape(3, 2), ((2, 3),))],
)
register_rule(
    lax.transpose_p,
    ViewRule(index=lambda params, x: x.transpose(params["permutation"]), part=_transpose_part),
    cases=[Case(jnp.transpose, ((2, 3),))],
)
register_rule(lax.squeeze_p, ViewRule(index=_squeezed), cases=[Case(jnp.squeeze, ((1, 3, 1),))])
register_rule(
    lax.rev_p,
    ViewRule(index=lambda params, x: x.flip(params["dimensions"])),
    cases=[Case(jnp.flip, ((2, 2),))],
)
register_rule(lax.copy_p, _IN_PLACE, cases=[Case(jnp.copy, ((3,),))])
register_rule(
    lax.broadcast_in_dim_p,
    ViewRule(
        index=lambda params, x: x.broadcast(params["shape"], params["broadcast_dimensions"]),
        part=_broadcast_part,
    ),
    cases=[
        Case(lambda x: x[None, :, None], ((3,),)),
        Case(lambda x: jnp.broadcast_to(x[:, None], (3, 2)), ((3,),)),
    ],
)
register_rule(lax.neg_p, _SCALED, cases=[Case(lax.neg, ((3,),))])
register_rule(
    lax.convert_element_type_p,
    _SCALED,  # by a factor near 1, the rounding to another floating-point type
    cases=[Case(lambda x: jnp.square(x.astype(jnp.float16).astype(x.dtype)) + x, ((2,),))],
    note="between floating-point types; to integers it is data",
)
register_rule(
    lax.reduce_precision_p,
    _SCALED,  # as above
    cases=[Case(lambda x: jnp.square(lax.reduce_precision(x, 8, 7)) + x, ((2,),))],
)
register_rule(
    lax.slice_p,
    ViewRule(total=False, index=_sliced, ranges=_slice_ranges),
    cases=[Case(lambda x: x[1:4:2], ((5,),))],
)
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
    lax.split_p,
    ViewRule(total=False, ranges=_split_ranges),
    cases=[Case(lambda x: lax.split(x, (2, 1))[0], ((3,),))],
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
    # Negative padding drops elements; what is padded with may be a variable, too.
    ViewRule(operands=None, total=False, offset=True),
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
    # Elements keep their places, but a part need not fit the sharding.
    ViewRule(index=lambda params, x: x),
    cases=[Case(_placed, ((3,),))],
)
# Newer JAX traces these where older JAX used several of the above.
if hasattr(lax, "tile_p"):
    register_rule(lax.tile_p, ViewRule(), cases=[Case(lambda x: jnp.tile(x, (2, 2)), ((1, 2),))])
if stack := getattr(lax, "stack_p", None):
    case = Case(lambda x, y: jnp.stack([x, y], 1), ((2,), (2,)))
    register_rule(stack, _SEVERAL, cases=[case], since="0.10.2")
if unstack := getattr(lax, "unstack_p", None):
    case = Case(lambda x: jnp.unstack(x)[1], ((2, 2),))
    register_rule(unstack, _PART, cases=[case], since="0.10.2")
