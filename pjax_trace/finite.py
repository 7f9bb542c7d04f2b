"""What is not finite on the way, though the outputs are: masks of −∞, and branches not taken."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pjax_trace.graph import ConsensusGraph
from pjax_trace.program import Value
from pjax_trace.view import Variable, View

__all__ = ["may_hide", "passed_over", "settle", "walled"]


def _added_data(view: View) -> list[Value]:
    """The floating-point data that a view reads."""
    made = {v for e in view.equations for v in e.outputs}
    made.update(base.value for base in view.bases)
    inputs = dict.fromkeys(v for e in view.equations for v in e.inputs)
    return [v for v in inputs if v not in made and jnp.issubdtype(v.dtype, jnp.floating)]


def walled(graph: ConsensusGraph, data: Mapping[Value, Any]) -> dict[Value, Any]:
    """The data, those that views read without infinities: a mask of −∞ is a very low number.

    A reflection is a difference, and that of two infinities is none.
    """
    walled = dict(data)
    for value in dict.fromkeys(
        v for c in graph.constraints for _, o in c.reads for v in _added_data(o)
    ):
        x = jnp.asarray(walled[value])
        # Several of them add up to a number, and so does the square of one.
        wall = min(float(jnp.finfo(x.dtype).max) / 16, 1e18)
        walled[value] = jnp.where(jnp.isinf(x), jnp.sign(x) * wall, x)
    return walled


def passed_over(graph: ConsensusGraph) -> list[Variable]:
    """What may have no value although the outputs have.

    Data or a variable choose among what is read of it, or of what is computed from it; or it is
    made of infinite data that are chosen, which a minimum passes over, say.
    """
    known = graph.program.known

    def chosen(view: View) -> bool:
        return any(e.affine.offset and not e.affine.total for e in view.equations)

    def infinite(view: View) -> bool:
        added = (known.get(v, np.inf) for v in _added_data(view))
        return chosen(view) and not all(np.all(np.isfinite(x)) for x in added)

    made = set[Variable | None]()
    for c in graph.constraints:
        after = not c.rule.smooth and any(b in made for _, view in c.reads for b in view.bases)
        if after or any(infinite(view) for _, view in c.reads):
            made.add(c.out)
    found = {b for view in graph.outputs if view and chosen(view) for b in view.bases}
    for c in reversed(graph.constraints):
        after = c.rule.chooses or c.out in found
        found.update(b for _, view in c.reads if after or chosen(view) for b in view.bases)
    return [v for v in graph.variables if (v in found or v in made) and not v.parameter]


def may_hide(view: View, known: Mapping[Value, Any]) -> bool:
    """Whether a view may add something so large that nothing is left of what it reads."""
    most = 1e3  # the slope of a view is a difference, which rounds by this times an ulp
    return view.offset and any(
        v not in known or np.any(np.abs(known[v]) > most) for v in _added_data(view)
    )


def settle(
    graph: ConsensusGraph,
    hidden: Sequence[Variable],
    known: Mapping[Value, Any],
    start: Mapping[Variable, Array],
) -> tuple[dict[Value, Any], dict[Variable, Array], dict[Variable, Array]]:
    """Find what has no value, such as a quotient by zero in a branch that is not taken.

    Where all that the outputs read is finite, whatever is not has been passed over. It starts from
    zero, and its equations ask nothing of anyone. So do data, but for those of outputs. What is
    infinite may have been passed over as such, by a minimum, say: it starts from a large number,
    unless it is read by sums, which a number so large would rule, or where it may be chosen.

    Args:
        graph: the graph.
        hidden: what may be `passed_over`.
        known: all values of the forward pass.
        start: where variables start.

    Returns:
        The data; where variables start; and which of their elements are idle.
    """
    start, idle = dict(start), {}
    views = [view for c in graph.constraints if c.out is None for _, view in c.reads]
    results = [
        known[view.out] if view.out in known else view(known, *(start[b] for b in view.bases))
        for view in views or graph.outputs
        if view is not None
    ]
    sound = functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x)) for x in results), True)
    inner = [c for c in graph.constraints if c.out is not None]
    small = [c for c in inner if c.rule.smooth or c.rule.chooses]
    small = {base for c in small for _, view in c.reads for base in view.bases}
    for v in hidden:
        most = float(jnp.finfo(v.dtype).max) ** 0.5  # squares are distances
        idle[v] = sound & ~(jnp.abs(start[v]) < most)
        wall = 0.0 if v in small else min(most / 16, 1e18)
        large = jnp.where(jnp.isnan(start[v]), 0, jnp.clip(start[v], -wall, wall))
        start[v] = jnp.where(idle[v], large, start[v])
    added = [v for c in inner for _, o in c.reads for v in _added_data(o)]
    added += [o for c in inner for o in c.operands if isinstance(o, Value)]
    factors = {o for c in inner for o in c.operands if c.rule.smooth}
    settled = dict(known)
    for value in dict.fromkeys(added):
        x = jnp.asarray(known[value])
        if jnp.issubdtype(x.dtype, jnp.floating):
            none = ~jnp.isfinite(x) if value in factors else jnp.isnan(x)
            settled[value] = jnp.where(sound & none, 0, x)
    return settled, start, idle
