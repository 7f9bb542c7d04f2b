"""``project_point``: the nearest point on the graph of one function, to check what one expects."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from pjax_trace import _compat
from pjax_trace.build import build_graph
from pjax_trace.errors import InputError, TraceError
from pjax_trace.graph import ConsensusGraph, Constraint
from pjax_trace.index import Index
from pjax_trace.program import Value
from pjax_trace.rule import Identity, Weights
from pjax_trace.trace import trace_program
from pjax_trace.view import Variable, View

__all__ = ["project_point"]


def project_point(
    fn: Callable[..., Array],
    operands: tuple[ArrayLike, ...],
    out: ArrayLike,
    *,
    weights: tuple[Sequence[float], ArrayLike] | None = None,
) -> tuple[tuple[Array, ...], Array]:
    """The nearest point on the graph of a function that traces to one constraint.

    ``argmin Σ_i ω_i |x_i − operands_i|² + Σ ω_out (z − out)²`` subject to ``z = fn(*x)``, globally.

    Args:
        fn: takes the operands and returns one array. Arrays that it closes over are data.
        operands: a tuple of floating-point arrays, the point's coordinates before the function.
        out: the coordinates after it, of the shape that ``fn`` returns.
        weights: ``(one positive scalar per operand, positive scalar or array for out)``; default 1.

    Returns:
        ``(operands, out)``, with ``out`` exactly ``fn(*operands)``.

    Raises:
        InputError: for operands, shapes or weights that do not fit.
        TraceError: if ``fn`` traces to more than one constraint, or its scalar equations share
            operands (a matrix product does), so that there is no closed form.
        MissingRuleError: if ``fn`` has primitives without a rule.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> (x, w), z = pjax.project_point(jnp.multiply, (1.0, 2.0), 2.0)
        >>> float(x), float(w), float(z)
        (1.0, 2.0, 2.0)
        >>> (x,), z = pjax.project_point(jnp.abs, (jnp.array([1.0, -1.0]),), jnp.array([3.0, 3.0]))
        >>> x.tolist(), z.tolist()
        ([2.0, -2.0], [2.0, 2.0])
    """
    if not callable(fn):
        raise InputError(f"project_point takes a function, not {fn!r}")
    if not isinstance(operands, tuple):
        raise InputError(
            f"project_point: operands must be a tuple of arrays, not {type(operands).__name__}"
        )
    arrays = tuple(_array(f"operand {i}", x) for i, x in enumerate(operands))
    if not arrays:
        raise InputError("project_point: there must be at least one operand")
    target = _array("out", out)
    metric = _weights(weights, arrays, target)
    moved, _ = Point(fn, arrays, target.shape).project(arrays, target, metric)
    return moved, fn(*moved)


class Point:
    """A function that traces to one constraint, ready to project points onto its graph.

    Only the shapes of ``operands`` matter, unless the function looks at their values.
    """

    def __init__(self, fn: Callable[..., Array], operands: Sequence[Array], shape: tuple[int, ...]):
        names = [f"operands[{i}]" for i in range(len(operands))]
        source = getattr(fn, "__name__", "the function")
        program = trace_program(lambda xs, _: fn(*xs), operands, [], names=names, source=source)
        returned = [value.shape for value in program.outputs]
        if len(returned) != 1:
            raise InputError("project_point: the function must return one array")
        if returned[0] != shape:
            raise InputError(
                f"project_point: the function returns shape {returned[0]}, but out has {shape}"
            )
        self.graph = build_graph(program)
        self.constraint, self.view = _only_constraint(self.graph)

    def project(
        self, operands: Sequence[Array], out: Array, weights: tuple[Sequence[Any], Array]
    ) -> tuple[tuple[Array, ...], Array]:
        """The nearest point, with the output as the rule gives it.

        Through the views into the constraint's own coordinates, and back.
        """
        c, graph = self.constraint, self.graph
        values = dict(zip(graph.parameters, operands, strict=True))
        weight_of = dict(zip(graph.parameters, weights[0], strict=True))
        data = graph.program.evaluate(operands, [])
        point, metric = [], []
        for operand in c.operands:
            if isinstance(operand, View):
                point.append(operand(data, *(values[b] for b in operand.bases)))
                metric.append(self._weight(operand, data, weight_of))
            else:
                point.append(data[operand])
                metric.append(None)
        slope, offset = _affine(self.view, data)
        (mass,) = self.view.pull(data, weights[1] * slope)
        (first,) = self.view.pull(data, weights[1] * (out - offset))
        # An output element that the function does not return asks nothing of its equation.
        returned = mass > 0
        divided = jnp.where(returned, mass, 1)
        target = jnp.where(returned, first / divided, c.rule.apply(c.params, *point))
        mass = mass if c.rule.joint else divided
        try:
            result = c.rule.project(c.params, point, target, Weights(tuple(metric), mass))
        except TraceError as error:
            raise TraceError(f"project_point: {c.name} at {c.source}: {error}") from None
        moved = dict(values)
        for position, view in c.reads:
            moment = result.moments[position]
            assert moment is not None
            slope, offset = _affine(view, data)
            # Every element is read at most once, by y = c·x + o, so its copy determines it.
            fixed, divisor = slope == 0, _nonzero(slope)
            copy = moment.first / moment.mass - offset
            xs = view.pull(data, jnp.where(fixed, 0, copy / jnp.square(divisor)))
            counts = view.pull(data, jnp.where(fixed, 0, 1 / divisor))
            for base, x, count in zip(view.bases, xs, counts, strict=True):
                moved[base] = jnp.where(count > 0.5, x, moved[base])
        return tuple(moved[p] for p in graph.parameters), self.view(data, result.out)

    def _weight(self, view: View, data: Any, weight_of: dict[Variable, Any]) -> Any:
        """The weight of a copy ``c·x + o`` of x: that of x over c², in the copy's own units."""
        c, known = self.constraint, self.graph.program.constant
        if len(view.bases) == 1:
            (base,) = view.bases
            unit = 1.0 if not view.offset and not view.scales else _uniform_weight(view, known)
            if unit is not None:  # so that a weight that is a number stays one
                return weight_of[base] * unit
        try:  # with what is known while tracing, so that weights are known under jit
            with jax.ensure_compile_time_eval():
                weight = _copy_weight(view, known, weight_of)
        except KeyError:
            weight = _copy_weight(view, data, weight_of)
        if c.rule.elementwise:
            return weight
        entries = np.unique(np.asarray(weight)) if _compat.is_known(weight) else np.zeros(0)
        if len(entries) == 1:
            return float(entries[0])
        raise TraceError(
            f"project_point: {c.name} at {c.source} reads an operand whose elements weigh "
            "differently, because data scale them (or may, under jit); there is no closed form then"
        )


def _uniform_weight(view: View, known: Any) -> float | None:
    """What all elements of a copy weigh if the variable weighs 1; None if they differ or may."""
    try:
        with jax.ensure_compile_time_eval():
            weight = _copy_weight(view, known, dict.fromkeys(view.bases, 1.0))
            entries = np.unique(np.asarray(weight))
    except KeyError:
        return None
    return float(entries[0]) if len(entries) == 1 else None


def _nonzero(x: Array) -> Array:
    return jnp.where(x == 0, 1, x)


def _affine(view: View, data: Any) -> tuple[Array, Array]:
    """Slope and offset of every element of a view."""
    offset = view.at_zero(data)
    return view.slope(data, offset), offset


def _copy_weight(view: View, data: Any, weight_of: dict[Variable, Any]) -> Array:
    slope, offset = _affine(view, data)
    linear = [jnp.full(b.shape, weight_of[b], b.dtype) for b in view.bases]
    own = (view(data, *linear) - offset) / _nonzero(slope)
    return jnp.where(slope == 0, _FIXED, own / jnp.square(_nonzero(slope)))


_FIXED = 1e30  # the weight of a copy that cannot move, because its slope is zero


def _array(name: str, x: Any) -> Array:
    """A floating-point array; Python's numbers and integers are converted."""
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise InputError(f"project_point: {name} must be an array, not {x!r}") from error
    if jnp.issubdtype(array.dtype, jnp.integer) and not hasattr(x, "dtype"):
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"project_point: {name} must be floating point, not {array.dtype}")
    if _compat.is_known(array) and not np.all(np.isfinite(np.asarray(array))):
        raise InputError(f"project_point: {name} is not finite")
    return array


def _weights(
    weights: Any, arrays: Sequence[Array], target: Array
) -> tuple[tuple[float, ...], Array]:
    if weights is None:
        return (1.0,) * len(arrays), jnp.ones_like(target)
    hint = "weights must be (one positive scalar per operand, positive scalar or array for out)"
    try:
        first, second = weights
        scalars = tuple(float(w) if _compat.is_known(w) else w for w in first)
        out = jnp.broadcast_to(jnp.asarray(second, target.dtype), target.shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"project_point: {hint}: {error}") from error
    if len(scalars) != len(arrays):
        raise InputError(
            f"project_point: {hint}; there are {len(arrays)} operands, but {len(scalars)} weights"
        )
    positive = all(0 < w < float("inf") for w in scalars if _compat.is_known(w))
    if _compat.is_known(out):
        values = np.asarray(out)
        positive = positive and bool(np.all((values > 0) & np.isfinite(values)))
    if not positive:
        raise InputError(f"project_point: {hint}")
    return scalars, out


def _only_constraint(graph: ConsensusGraph) -> tuple[Constraint, View]:
    """The one constraint of a function, and how its result reads the constraint's output."""
    (view,) = graph.outputs
    if view is None:
        raise TraceError("project_point: the function's result does not depend on its operands")
    count = len(graph.constraints)
    if not count:  # a view alone: the graph of y = view(x)
        value = Value(-1, view.shape, view.out.dtype, True)
        out = Variable("identity", value, False)
        c = Constraint("identity", Identity(), {}, (view,), out, "the function")
        view = View.of(out)
    elif count > 1 or view.bases != (graph.constraints[0].out,):
        steps = "\n".join(f"  {c.label}" for c in graph.constraints)
        raise TraceError(
            "project_point needs a function that traces to one constraint, but this one has "
            f"{count}:\n{steps}\nProject onto each by itself; for all of them "
            "together there is no closed form, which is what pjax.project is for"
        )
    else:
        c = graph.constraints[0]
    _check_sharing(c, graph)
    return c, view


def _check_sharing(c: Constraint, graph: ConsensusGraph) -> None:
    """Refuse if two scalar equations read the same element."""
    expansion = c.rule.expand(c.params, c.shapes, c.variable)
    shared = any(view is not None for view in expansion.views)
    seen: dict[Variable, list[Index | None]] = {}
    for _, view in c.reads:
        index = None
        if len(view.bases) == 1:
            index = view.index({view.bases[0]: Index.of(view.bases[0].shape)})
        once = _reads_once(view, graph.program.constant) if index is None else index.once
        shared = shared or not once
        for base in view.bases:
            for other in seen.get(base, ()):
                shared = shared or index is None or other is None or not index.disjoint(other)
            seen.setdefault(base, []).append(index)
    if shared:
        raise TraceError(
            f"project_point: the scalar equations of {c.name} at {c.source} share operands (an "
            "element is read by several of them), so the nearest point of all of them together has "
            "no closed form. Project one row at a time, or use pjax.project, in which every "
            "equation has a copy of its own"
        )


def _reads_once(view: View, known: Any) -> bool:
    """Whether a view reads no element twice, as far as its data are known."""
    try:
        with jax.ensure_compile_time_eval():
            slope, _ = _affine(view, known)
            counts = view.pull(known, jnp.where(slope == 0, 0, 1 / _nonzero(slope)))
            return not any(np.any(np.asarray(count) > 1.5) for count in counts)
    except KeyError:
        return False
