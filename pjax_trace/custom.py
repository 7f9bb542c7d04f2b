"""Functions that carry their own projection: user functions, losses and set constraints.

One primitive serves them all. To JAX it is an ordinary function (it evaluates, differentiates,
batches and compiles); in a traced program it is one equation with a rule of its own.
"""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.errors import InputError
from pjax_trace.linear import Jacobian
from pjax_trace.registry import register_translation
from pjax_trace.rule import (
    Arrays,
    Expansion,
    Flags,
    Moment,
    Params,
    Projection,
    Request,
    Rule,
    Shapes,
    Weights,
    projection_of,
)
from pjax_trace.translation import Outcome, Refuse, Rewrite, Translation, projected

__all__ = [
    "BatchedRule",
    "CustomRule",
    "call",
    "constrain_p",
    "custom_projection",
    "function_p",
    "loss_p",
]


class CustomRule(Rule):
    """A user's projection of plain points, made into a rule.

    Args:
        apply: ``apply(*operands)``, the function itself.
        project: ``project(operands, out, weights) -> (operands, out)``, the nearest point of the
            graph; ``weights`` is a `Weights`. Data operands are returned as they came.

    Both get those of the primitive's params that they take as keywords.
    """

    family = "custom"

    def __init__(self, apply: Callable[..., Array], project: Callable[..., tuple[Any, Array]]):
        self._apply = apply
        self._project = project

    def apply(self, params: Params, *operands: Array) -> Array:
        return self._apply(*operands, **_accepted(self._apply, params))

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The user's projection, with moments and distance made here."""
        answer = self._project(tuple(operands), out, weights, **_accepted(self._project, params))
        moved, moved_out = self._check(answer, operands, out)
        return projection_of(operands, out, weights, moved, moved_out)

    def _check(self, answer: Any, operands: Sequence[Any], out: Any) -> tuple[Any, Any]:
        """The answer, if it has the shape that it must have."""
        name = getattr(self._project, "__name__", repr(self._project))
        try:
            moved, moved_out = answer
            shapes = [jnp.shape(x) for x in (*moved, moved_out)]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"projection {name} must return (operands, out), a tuple of arrays and an array"
            ) from error
        expected = [jnp.shape(x) for x in (*operands, out)]
        if shapes != expected:
            raise InputError(
                f"projection {name} must return operands and out of the shapes that it was given, "
                f"{expected}, not {shapes}"
            )
        return moved, moved_out


def _accepted(function: Callable[..., Any], params: Params) -> dict[str, Any]:
    """Those of a primitive's params that a function takes as keywords."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return params
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in params.items() if name in names}


@dataclasses.dataclass(frozen=True)
class BatchedRule(Rule):
    """``jax.vmap`` of a rule: one constraint for every element of the batch.

    An operand that is not batched is one variable with a copy in every constraint; its moments are
    summed.
    """

    inner: Rule
    axes: tuple[int | None, ...]
    size: int

    wrapper = "vmap"

    def _axes(self, operands: Sequence[Any]) -> tuple[int | None, ...]:
        # An output constraint gets one operand more than the call has: the scale of its loss.
        return self.axes + (0,) * (len(operands) - len(self.axes))

    def apply(self, params: Params, *operands: Array) -> Array:
        function = functools.partial(self.inner.apply, params)
        return jax.vmap(function, self._axes(operands))(*operands)

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The inner projection, batched, with the moments of shared operands summed."""
        axes = self._axes(operands)

        def one(operands: Arrays, out: Any, weight: Any) -> Any:
            moments, moved, distance = self.inner.project(
                params, operands, out, Weights(weights.operands, weight)
            )
            full = [m and Moment(m.first, jnp.broadcast_to(m.mass, m.first.shape)) for m in moments]
            return tuple(full), moved, distance

        batched = jax.vmap(one, (axes, 0, 0))
        moments, moved, distance = batched(tuple(operands), out, weights.out)
        return Projection(_together(moments, axes), moved, jnp.sum(distance))

    def linear(self, params: Params, operands: Arrays, position: int) -> Jacobian:
        """That of the inner rule, batched; what is asked of a shared operand adds up."""
        axes = self._axes(operands)
        unit = tuple(1.0 if i == position else None for i in range(len(operands)))

        def batched(ask: Callable[..., Array], *asked: Array) -> Array:
            def one(operands: Arrays, *asked: Array) -> Array:
                return ask(self.inner.linear(params, operands, position), *asked)

            answer = jax.vmap(one, (axes, *(0 for _ in asked)))(tuple(operands), *asked)
            return _together([answer], [axes[position]])[0]

        return Jacobian(
            lambda residual: batched(lambda own, r: own.transpose(r), residual),
            lambda: batched(lambda own: own.squares()),
            self.masses(params, unit)[position],
        )

    def target(self, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...] | None:
        """What the inner rule asks for, batched; what is asked of shared operands adds up."""
        axes = self._axes(operands)

        def one(operands: Arrays, out: Array, residual: Array) -> Any:
            asked = Request(out, residual, request.variable, request.reach)
            return self.inner.target(params, operands, asked)

        answers = jax.vmap(one, (axes, 0, 0))(tuple(operands), request.out, request.residual)
        return None if answers is None else _together(answers, axes)

    def masses(self, params: Params, weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Those of the inner rule, once for every element of the batch."""
        axes = self._axes(weights)

        def batched(mass: Any, axis: int | None) -> Any:
            if mass is None or axis is None:
                return None if mass is None else mass * self.size
            return jnp.expand_dims(mass, axis) if jnp.ndim(mass) else mass

        return tuple(map(batched, self.inner.masses(params, weights), axes))

    def expand(self, params: Params, shapes: Shapes, variable: Flags) -> Expansion:
        """A copy of every unbatched variable for each element of the batch."""
        axes = self._axes(shapes)
        shared = [v and axis is None for v, axis in zip(variable, axes, strict=True)]
        rows = [
            shape if axis is None else shape[:axis] + shape[axis + 1 :]
            for shape, axis in zip(shapes, axes, strict=True)
        ]
        rule, params, views = self.inner.expand(params, rows, variable)
        spread = tuple(
            functools.partial(self._spread, view) if share else view and jax.vmap(view, axis, axis)
            for view, axis, share in zip(views, axes, shared, strict=True)
        )
        expanded = tuple(0 if share else axis for share, axis in zip(shared, axes, strict=True))
        return Expansion(BatchedRule(rule, expanded, self.size), params, spread)

    def _spread(self, view: Callable[[Array], Array] | None, x: Array) -> Array:
        row = view(x) if view else x
        return jnp.broadcast_to(row[None], (self.size, *row.shape))


_SAME = ("family", "granularity", "exactness", "movable", "kinked", "convex", "relaxed", "joint")
for _name in _SAME:
    setattr(BatchedRule, _name, property(operator.attrgetter(f"inner.{_name}")))


def _together(answers: Sequence[Any], axes: Sequence[int | None]) -> tuple[Any, ...]:
    """What is said of operands, batch first, as said of all of it: of shared ones summed."""
    return tuple(
        jax.tree.map(lambda x, a=axis: jnp.sum(x, 0) if a is None else jnp.moveaxis(x, 0, a), said)
        for said, axis in zip(answers, axes, strict=True)
    )


def _implementation(*operands: Array, rule: Rule, params: Any, **_: Any) -> list[Array]:
    return [rule.apply(dict(params), *operands)]


def _batched(
    operands: Sequence[Any], axes: tuple[int | None, ...], params: Params
) -> tuple[Sequence[Any], Params]:
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    return operands, {**params, "rule": BatchedRule(params["rule"], axes, size)}


def _translate(params: Params, _: Sequence[Any], variable: Flags) -> Outcome:
    rule, own = params["rule"], dict(params["params"])
    outcome = projected(rule, own, variable)
    if not isinstance(outcome, Refuse):
        return outcome
    function = _written(rule, own, variable)
    if function is not None:
        return Rewrite(function)
    return Refuse("only the first argument may depend on variables; all others must be data")


def _written(rule: Any, params: Params, variable: Flags) -> Callable[..., Array] | None:
    """A function with a rule of its own as plain JAX code, if its rule can say that."""
    if isinstance(rule, BatchedRule):
        inner = _written(rule.inner, params, variable)
        return inner and jax.vmap(inner, rule.axes)
    return rule.written(params, variable) if hasattr(rule, "written") else None


def _new(name: str) -> Any:
    primitive = _compat.new_primitive(name, implementation=_implementation, batch=_batched)
    register_translation(primitive, Translation(_translate))
    return primitive


function_p, loss_p, constrain_p = map(_new, ("custom_projection", "loss", "constrain"))


def call(primitive: Any, rule: Rule, *operands: Array, name: str, params: Any = ()) -> Array:
    """Apply a rule's function, visibly in a traced program. ``params`` are hashable items."""
    return primitive.bind(*operands, rule=rule, name=name, params=params)[0]


class custom_projection:  # noqa: N801 - a decorator, like jax.custom_jvp
    """Give a function its own projection, as ``jax.custom_jvp`` gives one its own derivative.

    The function takes arrays and returns one array. To JAX it stays the function that it is;
    `pjax.project` sees one constraint, projected by what `defprojection` was given.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> @pjax.custom_projection
        ... def same(x):
        ...     return x
        >>> @same.defprojection
        ... def nearest(operands, out, weights):
        ...     (x,), (wx,), wz = operands, weights.operands, weights.out
        ...     mean = (wx * x + wz * out) / (wx + wz)
        ...     return (mean,), mean
        >>> (x,), out = pjax.project_point(same, (jnp.zeros(2),), jnp.ones(2))
        >>> x.tolist()
        [0.5, 0.5]
    """

    def __init__(self, function: Callable[..., Array]):
        functools.update_wrapper(self, function)
        self._function = function
        self._rule: Rule | None = None

    def defprojection(self, project: Callable[..., tuple[Any, Array]]) -> Callable[..., Any]:
        """Set the projection: ``project(operands, out, weights) -> (operands, out)``.

        ``weights.operands`` holds a positive scalar per operand, None for those that are data and
        must be returned as they came; ``weights.out`` is a positive array of the output's shape.
        `pjax_trace.testing.check_rule` tells whether it is a projection.
        """
        self._rule = CustomRule(self._function, project)
        return project

    def __call__(self, *operands: Any) -> Array:
        """The function itself."""
        if self._rule is None:
            raise InputError(
                f"{getattr(self, '__name__', self)!s} has no projection yet: "
                "decorate one with its .defprojection"
            )
        arrays = [jnp.asarray(x) for x in operands]
        return call(function_p, self._rule, *arrays, name=getattr(self, "__name__", "custom"))
