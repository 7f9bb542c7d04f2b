"""What a rule is: how the constraint ``out = f(*operands)`` is projected onto.

What a primitive *becomes* (a view, other operations, a constraint of some rule) is decided apart
from that, once for every equation; see `pjax_trace.translation`.

A rule answers with *moments*, so that explicit copies, copy-free rows and blocks are served by one
interface. All of its methods take the constraint's static ``params`` first.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace.linear import Jacobian

__all__ = [
    "Along",
    "Expansion",
    "Flags",
    "Identity",
    "Moment",
    "Arrays",
    "Params",
    "Prepared",
    "Projection",
    "Request",
    "Rule",
    "Shapes",
    "Slanted",
    "Slants",
    "Weights",
    "projection_of",
    "squared_distance",
    "title",
]


Params = dict[str, Any]
Arrays = Sequence[Array]
Shapes = Sequence[tuple[int, ...]]
Flags = Sequence[bool]


class Weights(NamedTuple):
    """The metric as one constraint sees it.

    ``operands`` holds a positive scalar for every variable operand and None for data; ``out`` is a
    positive array of the output's shape, the total weight of the output's readers (None for an
    output constraint, which has no output).
    """

    operands: tuple[Any, ...]
    out: Any


class Moment(NamedTuple):
    """``Σ ω x'`` and ``Σ ω`` over the projected copies of an operand, in the operand's shape.

    ``mass`` may be a scalar and must not depend on the point that is projected.
    """

    first: Float[Array, "..."]
    mass: Any


class Along(NamedTuple):
    """Copies of an operand, one for each scalar equation, that data alone tell apart.

    An equation of value ``Σ a·x + …`` moves its copy along its coefficients a. Where these are data
    the copies of all equations stay ``base + multiplier · a / ω``, with one number per equation:
    what solvers do to points and what consensus makes of them is of that form, too.
    """

    base: Array
    multiplier: Array


class Slants(NamedTuple):
    """What the coefficients of an operand make of multipliers, one for each scalar equation.

    Attributes:
        total: ``Σ multiplier · a``, the weighted sum of all that copies are away from their base.
        squares: ``Σ a² / ω`` of every equation.
    """

    total: Callable[[Array], Array]
    squares: Array


class Projection(NamedTuple):
    """What a rule answers: moments (None for data), the projected output, the squared distance.

    Of an operand that it was given as `Along`, it answers with that.
    """

    moments: tuple[Any, ...]
    out: Any
    distance: Float[Array, ""]


class Request(NamedTuple):
    """What a sweep asks of a constraint without a derivative: that its output should move.

    Attributes:
        out: the output of the forward pass.
        residual: the direction in which it is to go, and how much that is asked.
        variable: which operands can be asked to move for it.
        reach: how far from the next piece of the graph an operand may be to be moved there, in
            relation to the operand's size.
    """

    out: Array
    residual: Array
    variable: Flags
    reach: float


class Expansion(NamedTuple):
    """A constraint on private copies: its rule and params, and a view in front of each operand.

    A view is a function that spreads the operand over its copies; None where each element is read
    once already.
    """

    rule: "Rule"
    params: Params
    views: tuple[Callable[[Array], Array] | None, ...]


class Rule:
    """How the constraint ``out = f(*operands)`` is projected onto.

    A subclass implements `apply` and `project`. Where its scalar equations share operands it
    implements `masses` and `expand`, too; where more is known of its derivative than JAX finds,
    `linear`; and where it has no derivative that is of use, `target`.

    Attributes:
        family: the name of the family, for printing.
        granularity: what is one constraint: a row (one scalar equation), or a block of them.
        exactness: how near to the nearest point the projection comes, for printing.
        movable: so many leading operands may be variables, the others must be data; None for all.
        elementwise: whether the weights of operands may vary by element.
        kinked: whether the function consists of pieces of slope 0 or ±1. A sweep then hands over
            what the projection onto a target nearby moves, which at a kink is more than a slope.
        smooth: whether rows that share operands can be projected jointly by linearising them.
        chooses: whether it reads only some of its operands, and a variable or data say which.
        convex: whether it is a set that is known to be convex.
        relaxed: whether it does for reals what is done with booleans: a comparison, a selection.
        joint: whether its scalar equations are projected onto together. Output elements that
            nobody reads then have the weight 0; else each has an equation that asks for nothing.
        coupled: whether it is a loss whose operands move for each other's sake. A sweep then takes
            the best step against its gradient.
        wrapper: what a rule that is made of another one, its ``inner``, makes of it.
    """

    family: ClassVar[str] = "rule"
    granularity: ClassVar[str] = "row"
    exactness: ClassVar[str] = "exact"
    movable: ClassVar[int | None] = None
    elementwise: ClassVar[bool] = False
    kinked: ClassVar[bool] = False
    smooth: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    convex: ClassVar[bool] = False
    relaxed: bool = False
    joint: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    wrapper: ClassVar[str] = ""

    def apply(self, params: Params, *operands: Array) -> Array:
        """The function, ``f(*operands)``."""
        raise NotImplementedError

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The nearest point of the graph to ``(operands, out)``, as moments.

        argmin ``Σ_i ω_i |x_i − operands_i|² + Σ ω_out (z − out)²`` subject to ``z = f(x)``, where
        data operands do not move.
        """
        raise NotImplementedError

    def masses(self, params: Params, weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """The masses of the moments alone, from the weights of the operands; None for data.

        By default every element of an operand has one copy, so its mass is its weight.
        """
        return weights

    def expand(self, params: Params, shapes: Shapes, variable: Flags) -> Expansion:
        """The same constraint with a private copy of every operand for each scalar equation."""
        return Expansion(self, params, (None,) * len(shapes))

    def linear(self, params: Params, operands: Arrays, position: int) -> Jacobian:
        """The derivative of the function by one operand, at this point, as an operator.

        By default JAX finds it. What is not finite in its transpose, as the slope of a root at 0,
        counts as nothing.
        """
        counts = self.masses(
            params, tuple(1.0 if i == position else None for i in range(len(operands)))
        )
        readers = counts[position]

        def function(x: Array) -> Array:
            return self.apply(params, *operands[:position], x, *operands[position + 1 :])

        return Jacobian.of(function, operands[position], readers, diagonal=self.elementwise)

    def target(self, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...] | None:
        """What a sweep asks of the operands of a discrete function; None for a smooth one.

        A smooth constraint hands the adjoint of what is asked of it to its operands, which needs
        no word of the rule. Where the derivative is zero or does not exist, the rule says for which
        elements a step to another piece of the graph is worth its length: a clipped
        straight-through step.

        Returns:
            What every operand is asked for, in its shape (None for nothing); or None, if the
            derivative says it.
        """
        return None


class Prepared(Rule):
    """A rule that makes something of data and weights once an update, which every step uses."""

    def prepare(self, params: Params, operands: Arrays, weights: Weights) -> Params:
        """The params with that; `project` may be given params without it, and then makes it."""
        raise NotImplementedError


class Slanted(Rule):
    """A rule that can be given operands as `Along`."""

    def along(self, params: Params, variable: Flags) -> tuple[int, ...]:
        """Which operands; `expand` leaves them alone if it is told that they do not vary."""
        raise NotImplementedError

    def slants(self, params: Params, operands: Arrays, position: int, weights: Weights) -> Slants:
        """What the coefficients of such an operand do; of ``operands``, data alone count."""
        raise NotImplementedError


def title(rule: Rule) -> str:
    """The class of a rule, and how it is made of another one."""
    inner = getattr(rule, "inner", None)
    if isinstance(inner, Rule):
        return f"{rule.wrapper}({title(inner)})"
    return type(rule).__name__


def squared_distance(weight: Any, moved: Array, start: Array) -> Float[Array, ""]:
    """``Σ weight · (moved − start)²``."""
    return jnp.sum(weight * jnp.square(moved - start))


def projection_of(
    operands: Arrays, out: Array, weights: Weights, moved: Sequence[Any], moved_out: Array
) -> Projection:
    """What a rule answers that has one copy of every operand: the projected operands themselves."""
    moments: list[Moment | None] = []
    distance = squared_distance(weights.out, moved_out, out)
    for x, start, weight in zip(moved, operands, weights.operands, strict=True):
        if weight is None:
            moments.append(None)
        else:
            moments.append(Moment(weight * x, weight))
            distance = distance + squared_distance(weight, x, start)
    return Projection(tuple(moments), moved_out, distance)


class Identity(Rule):
    """``z = x``: both move to their weighted mean."""

    family = "sum"
    elementwise = True

    def apply(self, params: Params, *operands: Array) -> Array:
        """The operand."""
        return operands[0]

    def project(self, params: Params, operands: Arrays, out: Any, weights: Weights) -> Projection:
        """The mean, element by element."""
        (x,), (weight,) = operands, weights.operands
        mean = x + weights.out / (weight + weights.out) * (out - x)
        return projection_of(operands, out, weights, (mean,), mean)
