"""Primitives that are sums of terms over windows, prefixes and scattered places.

Each is rewritten to `pjax_trace.rules.sum_rule.SUM` of one map in a canonical layout, so that
biases and other addends join it. Elements that a map does not read are no operands of it; rows that
read nothing are constants.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.custom import call, function_p
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Flags, Params, Rule
from pjax_trace.rules.linear_maps import CumulativeSum, ScatterSum
from pjax_trace.rules.maps import Map
from pjax_trace.rules.sum_rule import SUM, Term
from pjax_trace.rules.windows import Convolution, WindowSum, reduced_windows, windows_of
from pjax_trace.translation import (
    Outcome,
    Refusal,
    Refuse,
    Rewrite,
    Translation,
    ViewRule,
    rewriting,
)


def _sum(map_: Map, *operands: Array, name: str) -> Array:
    """One term, as a constraint."""
    terms = (Term(map_, tuple(range(len(operands)))),)
    return call(function_p, SUM, *operands, name=name, params=(("terms", terms),))


def _where(there: np.ndarray, x: Array) -> Array:
    """``x``, or the constant 0 where it is not in any equation; a view."""
    if np.all(there):
        return x
    return lax.select(jnp.asarray(np.broadcast_to(there, x.shape)), x, jnp.zeros_like(x))


def _equivalent(function: Callable[..., Any]) -> Translation:
    """A primitive that is ``function(params, *operands)`` whenever a variable reaches it."""
    return rewriting(lambda params, _: partial(function, params), "sum")


def _by_data(reason: str, function: Callable[..., Any]) -> Translation:
    """A primitive that is refused, unless only its first operand is variable.

    Args:
        reason: for the refusal.
        function: ``function(params, *operands)``, equivalent if it is.
    """

    def translate(params: Params, _: Sequence[Any], variable: Flags) -> Outcome:
        return Refuse(reason) if any(variable[1:]) else Rewrite(partial(function, params))

    return Translation(translate, family="refused", granularity="–", exactness="–", reason=reason)


def _scaled(params: Params, x: Array, indices: Array, updates: Array) -> Array:
    """``x.at[indices].multiply(updates)``."""
    ones = jnp.ones_like(x)
    return x * _compat.bind(lax.scatter_mul_p, params, ones, indices, updates)[0]


def _convolution(params: Params, x: Array, w: Array) -> Array:
    """Batch first, channels last, and groups of features instead of batch groups."""
    dims = params["dimension_numbers"]
    wanted = jnp.dtype(params.get("preferred_element_type") or _compat.promoted(x, w))
    wide = _compat.promoted(x, w, wanted)
    x, w = x.astype(wide), w.astype(wide)
    x = jnp.moveaxis(jnp.transpose(x, dims.lhs_spec), 1, -1)
    out_channel, in_channel, *spatial = dims.rhs_spec
    w = jnp.transpose(w, (*spatial, in_channel, out_channel))
    groups, batches = int(params["feature_group_count"]), int(params["batch_group_count"])
    if batches > 1:
        x = x.reshape((batches, x.shape[0] // batches, *x.shape[1:]))
        x = jnp.moveaxis(x, 0, -2).reshape((x.shape[1], *x.shape[2:-1], batches * x.shape[-1]))
        groups = batches
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    windows = windows_of(x.shape[1:-1], w.shape[:-2], *(params[name] for name in names))
    window = WindowSum(windows)
    map_ = Convolution(
        x.shape[0], groups, w.shape[-2], w.shape[-1], windows, params.get("precision")
    )
    x = _where(window.reads[None, ..., None] > 0, x)
    w = _where(window.uses[..., None, None] > 0, w)
    out = _sum(map_, x, w, name="conv_general_dilated")
    out = jnp.moveaxis(_where(window.count[None, ..., None] > 0, out), -1, 1)
    return jnp.transpose(out, tuple(np.argsort(dims.out_spec))).astype(wanted)


def _window_sum(params: Params, x: Array) -> Array:
    map_ = WindowSum(reduced_windows(params, x.shape))
    out = _sum(map_, _where(map_.reads > 0, x), name="reduce_window_sum")
    return _where(map_.count > 0, out)


def _cumsum(params: Params, x: Array) -> Array:
    map_ = CumulativeSum(x.shape, int(params["axis"]), bool(params["reverse"]))
    return _sum(map_, x, name="cumsum")


def _scatter(
    add: Callable[[Array, Array], Array], params: Params, x: Array, indices: Array, updates: Array
) -> Array:
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    options = tuple((name, params[name]) for name in names)
    map_ = ScatterSum(x.shape, updates.shape, indices.shape, options)
    return add(x, _sum(map_, updates, indices, name="scatter_add"))


def over_mapped_axes(reduce: Callable[..., Array], name: str, of: Rule) -> Translation:
    """Reductions over axes of a ``jax.vmap``, which leaves them as axes of the array.

    Args:
        reduce: ``reduce(x, axes)``, the same over axes of an array.
        name: of what it makes, for the refusal over the axes of a mesh.
        of: the rule of the same over axes of an array.
    """

    def outcome(params: Params, _: Sequence[Any], variable: Flags) -> Outcome:
        named = any(isinstance(axis, str) for axis in params["axes"])
        if named or params.get("axis_index_groups") is not None:
            return Refuse(
                f"a {name} over the named axis of a mesh joins equations of several devices; write "
                f"the {name} inside jax.vmap(axis_name=…), or reduce over an array axis"
            )
        axes = tuple(map(int, params["axes"]))
        return Rewrite(lambda *xs: [reduce(x, axes) for x in xs])

    return Translation(outcome, of=of)


def product_over_axes(params: Params, x: Array) -> Array:
    """Pairs, then pairs of pairs: as many multiplications, in logarithmic depth."""
    axes = tuple(map(int, params["axes"]))
    kept = [size for axis, size in enumerate(x.shape) if axis not in axes]
    x = jnp.moveaxis(x, axes, tuple(range(len(axes))))
    x = x.reshape((-1, *kept)) if x.size else jnp.ones((1, *kept), x.dtype)
    while len(x) > 1:
        half, odd = divmod(len(x), 2)
        pairs = x[:half] * x[half : 2 * half]
        x = jnp.concatenate([pairs, x[2 * half :]]) if odd else pairs
    return x[0]


def cumulative_product(params: Params, x: Array) -> Array:
    """All products of the first so many, in logarithmic depth."""
    return lax.associative_scan(jnp.multiply, x, params["reverse"], params["axis"])


def _conv(**options: Any) -> Callable[..., Array]:
    """A convolution of images, channels first, with all options beside those given."""
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lambda x, w: lax.conv_general_dilated(x, w, **options)


_KERNEL = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 1, 2, 2)

register_rule(
    lax.conv_general_dilated_p,
    _equivalent(_convolution),
    cases=(
        Case(_conv(), ((1, 1, 3, 3), (2, 1, 2, 2))),
        Case(lambda x: _conv()(x, jnp.asarray(_KERNEL, x.dtype)), ((1, 1, 3, 3),)),
        Case(_conv(padding="VALID"), ((1, 2, 2, 2), (1, 2, 2, 2))),
        Case(_conv(padding=((0, 1), (2, 0)), lhs_dilation=(2, 1)), ((1, 1, 2, 2), (1, 1, 2, 2))),
        Case(_conv(window_strides=(2, 3), rhs_dilation=(1, 2)), ((1, 1, 3, 4), (1, 1, 2, 2))),
        Case(_conv(feature_group_count=2), ((1, 2, 2, 2), (2, 1, 2, 1))),
        Case(_conv(batch_group_count=2), ((2, 1, 2, 2), (2, 1, 2, 1))),
    ),
)
register_rule(
    lax.reduce_window_sum_p,
    _equivalent(_window_sum),
    cases=(
        Case(lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 2), "VALID"), ((4, 5),)),
        Case(lambda x: lax.reduce_window(x, 0.0, lax.add, (3,), (1,), "SAME"), ((5,),)),
        Case(
            lambda x: lax.reduce_window(x, 0.0, lax.add, (2,), (2,), ((2, 3),), (3,), (2,)),
            ((3,),),
        ),
    ),
)
register_rule(
    lax.cumsum_p,
    _equivalent(_cumsum),
    cases=(
        Case(lambda x: lax.cumsum(x, 1), ((2, 3),)),
        Case(lambda x: lax.cumsum(x, 0, reverse=True), ((3, 2),)),
    ),
)
register_rule(
    lax.scatter_add_p,
    _equivalent(partial(_scatter, operator.add)),
    cases=(
        Case(lambda x, u: x.at[jnp.array([0, 2, 0])].add(u), ((4,), (3,))),
        Case(lambda u: jnp.zeros((2, 2), u.dtype).at[:, jnp.array([1, 1, 7])].add(u), ((2, 3),)),
        Case(lambda x: x.at[jnp.array([1, 1])].add(jnp.ones(2, x.dtype)), ((3,),)),
    ),
)
register_rule(
    lax.scatter_sub_p,
    _equivalent(partial(_scatter, operator.sub)),
    cases=(Case(lambda x, u: x.at[jnp.array([0, 0])].subtract(u), ((2,), (2,))),),
)
register_rule(
    lax.psum_p,
    over_mapped_axes(jnp.sum, "sum", SUM),
    cases=(
        Case(lambda x: jax.vmap(lambda r: lax.psum(r, "i"), axis_name="i")(x), ((3, 2),)),
        Case(lambda x: jax.vmap(lambda r: r - lax.pmean(r, "i"), axis_name="i")(x), ((3,),)),
    ),
)
register_rule(
    lax.scatter_p,
    ViewRule(operands=None, total=False, offset=True),
    cases=(Case(lambda x, u: x.at[jnp.array([2, 0])].set(u), ((4,), (2,))),),
)
register_rule(
    lax.dynamic_update_slice_p,
    ViewRule(operands=None, total=False, offset=True),
    cases=(Case(lambda x, u: lax.dynamic_update_slice(x, u, (1, 0)), ((3, 2), (1, 2))),),
)
register_rule(
    lax.reduce_prod_p,
    _equivalent(product_over_axes),
    cases=(
        Case(lambda x: jnp.prod(x, 1), ((2, 2),)),
        Case(lambda x: jnp.prod(x), ((5,),)),
    ),
    note="by rewriting to products of pairs",
)
register_rule(
    lax.cumprod_p,
    _equivalent(cumulative_product),
    cases=(Case(lambda x: lax.cumprod(x, 0), ((5,),)),),
    note="by rewriting to an associative scan of products",
)
# An element takes as many updates as data decide: it is no row of ours if they are variables.
register_rule(
    lax.scatter_mul_p,
    _by_data(
        "a row multiplies as many factors as data decide; for indices without repetition, write "
        "x.at[i].set(x[i] * u)",
        _scaled,
    ),
    cases=(Case(lambda x: x.at[jnp.array([0, 0])].multiply(x[:2]), ((3,),)),),
    note="by data a scaling",
)
_DECOMPOSE = (
    "make the factors parameters, and constrain their product; or decompose data, such as "
    "jax.lax.stop_gradient(A)"
)
for primitive, reason, function in (
    (lax.linalg.cholesky_p, _DECOMPOSE, jnp.linalg.cholesky),
    (lax.linalg.lu_p, _DECOMPOSE, lambda a: lax.linalg.lu(a)[0]),
    (lax.linalg.qr_p, _DECOMPOSE, lambda a: jnp.linalg.qr(a)[0]),
    (lax.linalg.svd_p, _DECOMPOSE, lambda a: jnp.linalg.svd(a)[0]),
    (lax.linalg.eigh_p, _DECOMPOSE, lambda a: jnp.linalg.eigh(a)[0]),
):
    register_rule(primitive, Refusal(reason), cases=(Case(function, ((2, 2),)),))
