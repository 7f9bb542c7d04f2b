"""Sorting: the nearest point keeps an order, in which it is an isotonic regression.

The largest k elements are the head of that order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.custom import call, function_p
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Arrays, Moment, Params, Projection, Rule, Weights
from pjax_trace.rules.maximum import finite_distance
from pjax_trace.translation import Outcome, Project, Refusal, Rewrite, Translation, rewriting

__all__ = ["RANKING", "Ranking", "isotonic"]


def isotonic(values: Array, weights: Array) -> Array:
    """The argmin over ascending z of ``Σ w (z − values)²``, along the last axis.

    Pool adjacent violators: elements are pushed onto a stack of blocks, each the weighted mean of
    its elements, and the last two blocks are merged while they descend. O(n) time and memory.

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.rules.sorting import isotonic
        >>> isotonic(jnp.array([1.0, 4.0, 2.0, 0.0, 5.0]), jnp.ones(5)).tolist()
        [1.0, 2.0, 2.0, 2.0, 5.0]
    """
    n = values.shape[-1]

    def row(y: Array, w: Array) -> Array:
        def step(_: Any, state: Any) -> Any:
            means, masses, ends, last, read = state
            before = jnp.maximum(last - 1, 0)
            mean, mass = means[last], masses[last]
            pool, push = means[before] > mean, read < n
            total = masses[before] + mass
            pooled = mean + masses[before] / total * (means[before] - mean)
            following = jnp.minimum(read, n - 1)
            place = jnp.where(pool, before, jnp.where(push, last + 1, last))
            mean = jnp.where(pool, pooled, jnp.where(push, y[following], mean))
            mass = jnp.where(pool, total, jnp.where(push, w[following], mass))
            read = jnp.where(pool | ~push, read, read + 1)
            return (
                means.at[place].set(mean, mode="promise_in_bounds"),
                masses.at[place].set(mass, mode="promise_in_bounds"),
                ends.at[place].set(read, mode="promise_in_bounds"),
                place,
                read,
            )

        ends = jnp.ones(n, jnp.int32)
        state = (y, w, ends, jnp.int32(0), jnp.int32(1))
        means, _, ends, last, _ = lax.fori_loop(0, 2 * n - 2, step, state)
        numbers = jnp.arange(n, dtype=jnp.int32)
        ends = jnp.where(numbers < last, ends, n)
        return means[jnp.searchsorted(ends, numbers, side="right").astype(jnp.int32)]

    rows = jnp.reshape(values, (-1, n)), jnp.reshape(weights, (-1, n))
    return jax.vmap(row)(*rows).reshape(values.shape)


class Ranking(Rule):
    """The k smallest elements along an axis, ascending, or the k largest, descending.

    The nearest point keeps the order of the operand's elements, whatever the weights of the output
    (the rearrangement inequality); in that order it is an isotonic regression of the weighted means
    of operand and output, in which elements that are not returned have a weight of the operand's
    only.
    """

    family = "extremum"
    kinked = True

    def apply(self, params: Params, *operands: Array) -> Array:
        axis, k = params["axis"], params["k"]
        ordered = lax.sort(operands[0], dimension=axis)
        if params["descending"]:
            ordered = lax.rev(ordered, (axis,))
        return lax.slice_in_dim(ordered, 0, k, axis=axis)

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        (x,), (weight,) = operands, weights.operands
        axis, k, sign = params["axis"], params["k"], -1 if params["descending"] else 1
        rows = sign * jnp.moveaxis(x, axis, -1)
        target = sign * jnp.moveaxis(out, axis, -1)
        asked = jnp.moveaxis(jnp.broadcast_to(weights.out, out.shape), axis, -1)
        number = lax.broadcasted_iota(jnp.int32, rows.shape, rows.ndim - 1)
        start, order = lax.sort((rows, number), dimension=-1, is_stable=True, num_keys=1)
        head, rest = start[..., :k], start[..., k:]
        mean = jnp.where(jnp.isinf(head), head, head + asked / (weight + asked) * (target - head))
        chain = isotonic(
            jnp.concatenate([mean, rest], -1),
            jnp.concatenate([weight + asked, jnp.broadcast_to(weight, rest.shape)], -1),
        )
        _, back = lax.sort((order, chain), dimension=-1, is_stable=True, num_keys=1)
        moved = sign * jnp.moveaxis(back, -1, axis)
        moved_out = sign * jnp.moveaxis(chain[..., :k], -1, axis)
        distance = finite_distance(weight, moved, x) + finite_distance(weights.out, moved_out, out)
        return Projection((Moment(weight * moved, weight),), moved_out, distance)


RANKING = Ranking()


def _sort(params: Params, operands: Sequence[Any], _: Sequence[bool]) -> Outcome:
    """The ranking of all elements.

    With other operands that are sorted along, those are moved by the permutation, as data. The
    first key is sorted by itself; the permutation is that of the forward pass.
    """
    axis, shape = int(params["dimension"]), operands[0].shape
    if len(operands) == 1:
        return Project(RANKING, {"axis": axis, "k": shape[axis], "descending": False})
    keys = int(params["num_keys"])

    def function(*xs: Array) -> list[Array]:
        number = lax.broadcasted_iota(jnp.int32, shape, axis)
        frozen = [lax.stop_gradient(x) for x in xs[:keys]]
        *_, order = lax.sort((*frozen, number), dimension=axis, is_stable=True, num_keys=keys)
        moved = [jnp.take_along_axis(x, order, axis, mode="promise_in_bounds") for x in xs[1:]]
        return [lax.sort(xs[0], dimension=axis), *moved]

    return Rewrite(function)


def _top_k(params: Params, operands: Sequence[Any]) -> Callable[..., Any]:
    """top_k: the values by their rule, and the indices of the forward pass."""
    axis = int(params.get("axis", len(operands[0].shape) - 1))
    items = (("axis", axis), ("descending", True), ("k", int(params["k"])))

    def function(x: Array) -> list[Array]:
        _, index = _compat.bind(lax.top_k_p, params, lax.stop_gradient(x))
        return [call(function_p, RANKING, x, name="top_k", params=items), index]

    return function


def _together(a: Array, b: Array) -> Array:
    """``log(exp a + exp b)``, in units in which nothing overflows."""
    largest = lax.stop_gradient(jnp.maximum(a, b))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return largest + jnp.log(jnp.exp(a - largest) + jnp.exp(b - largest))


register_rule(
    lax.cumlogsumexp_p,
    rewriting(
        lambda params, _: (
            lambda x: lax.associative_scan(_together, x, params["reverse"], params["axis"])
        ),
        "sum",
    ),
    cases=[Case(lambda x: lax.cumlogsumexp(x, 0), ((4,),))],
    note="by rewriting to an associative scan",
)
register_rule(
    lax.sort_p,
    Translation(_sort, of=RANKING),
    cases=[
        Case(lambda x: jnp.sort(x, 0), ((5, 2),)),
        Case(lambda x: jnp.sort(x, descending=True), ((4,),)),
    ],
    note="what is sorted along is moved by the permutation of the forward pass",
)
register_rule(
    lax.top_k_p,
    rewriting(_top_k, "extremum", "exact, closed form"),
    cases=[Case(lambda x: lax.top_k(x, 2)[0], ((2, 5),))],
    note="indices are those of the forward pass",
)
register_rule(
    lax.approx_top_k_p,
    Refusal("what it returns is only approximately the top k; write jax.lax.top_k"),
    cases=[Case(lambda x: lax.approx_max_k(x, 2)[0], ((8,),))],
)
