"""What a primitive becomes: other operations, a view, a constraint, or a refusal.

That is decided once for every equation that variables reach, while the program is traced, by the
`Translation` of its primitive: a function of the equation's params, of its operands (which have
``shape`` and ``dtype``; those that are one value are one object) and of which are variables.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pjax_trace.index import Index
from pjax_trace.rule import Flags, Params, Rule

__all__ = [
    "Affine",
    "Outcome",
    "Project",
    "Range",
    "Refusal",
    "Refuse",
    "Rewrite",
    "Translation",
    "ViewRule",
    "direct",
    "projected",
    "rewriting",
]


class Range(NamedTuple):
    """The elements from ``start`` to ``stop`` (excluded) along an axis."""

    axis: int
    start: int
    stop: int


# How to compute a part of an output alone: the params for it, and which part of each operand to
# give (None: all of it). None if it cannot be done.
Part = Callable[[Range], tuple[dict[str, Any], tuple[Range | None, ...]] | None]


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """An equivalent JAX function of the operands, to trace in the equation's place."""

    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Affine:
    """A view, and no constraint: each output element is ``coefficient · one input element + data``.

    Consensus goes through it by its transpose.

    Attributes:
        total: whether every element of the variable operands is surely read.
        offset: whether it may add data to what it reads.
        scales: whether it may multiply what it reads by something else than 1.
        uniform: whether it multiplies all elements by one number.
        pointwise: whether elements keep their places (operands of size 1 being repeated).
        index: from the elements of the one variable operand to those that each output reads; None
            where that is not said.
        ranges: the parts of its operand that the outputs are, if they are ranges along an axis.
        part: how to compute a part of the output.
    """

    total: bool = True
    offset: bool = False
    scales: bool = False
    uniform: bool = True
    pointwise: bool = False
    index: Callable[[Index], Index | None] | None = None
    ranges: tuple[Range, ...] = ()
    part: Part | None = None


@dataclasses.dataclass(frozen=True)
class Project:
    """A constraint of a rule.

    Attributes:
        rule: that projects onto it.
        params: of the constraint.
        part: how to compute a part of the output.
    """

    rule: Rule
    params: Params = dataclasses.field(default_factory=dict)
    part: Part | None = None


@dataclasses.dataclass(frozen=True)
class Refuse:
    """No projection: why, and what to write instead."""

    reason: str


Outcome = Rewrite | Affine | Project | Refuse

_UNSUPPORTED = "no rule for these operands or parameters"


class Translation:
    """What a primitive becomes, and what the coverage table says of it.

    Args:
        translate: ``translate(params, operands, variable)``, an `Outcome`.
        of: the rule whose family, granularity and exactness the table shows, if there is one.
        family: else the name of the family,
        granularity: what is one constraint,
        exactness: and how near to the nearest point it comes.
        reason: why it is refused, if it is.
        associative: whether ``f(a, f(b, c))`` is ``f(f(a, b), c)``.
    """

    def __init__(
        self,
        translate: Callable[[dict[str, Any], Sequence[Any], Sequence[bool]], Outcome],
        *,
        of: Rule | None = None,
        family: str = "",
        granularity: str = "",
        exactness: str = "",
        reason: str = "",
        associative: bool = False,
    ):
        rule = of or Rule()
        self._translate = translate
        self.family = family or rule.family
        self.granularity = granularity or rule.granularity
        self.exactness = exactness or rule.exactness
        self.reason = reason
        self.associative = associative

    def __call__(self, params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
        """The outcome for an equation."""
        return self._translate(params, operands, variable)


def direct(rule: Rule) -> Translation:
    """The translation to a constraint of a rule, with the primitive's own params."""

    def translate(params: Params, _: Sequence[Any], variable: Flags) -> Outcome:
        return projected(rule, params, variable)

    return Translation(translate, of=rule)


def projected(rule: Rule, params: Params, variable: Flags) -> Outcome:
    """A constraint of a rule, unless operands that must be data are variables."""
    if rule.movable is not None and any(variable[rule.movable :]):
        return Refuse(_UNSUPPORTED)
    return Project(rule, params)


def rewriting(
    function: Callable[[dict[str, Any], Sequence[Any]], Callable[..., Any]],
    family: str,
    exactness: str = "exact",
) -> Translation:
    """The translation to other operations, whatever is variable.

    Args:
        function: from params and operands to the equivalent function of the operands.
        family: for the coverage table.
        exactness: for the coverage table.
    """
    return Translation(
        lambda params, operands, _: Rewrite(function(params, operands)),
        family=family,
        granularity="row",
        exactness=exactness,
    )


class ViewRule(Translation):
    """The translation to a view.

    Args:
        operands: how many leading operands may be variables (None: all of them); the rest must be
            data.
        total: whether every element of the variable operands is read, with a nonzero coefficient.
        offset: whether the view may add data to what it reads.
        scales: whether it may multiply what it reads.
        pointwise: whether elements keep their places.
        index: ``index(params, elements)``, the elements that each output reads, an `Index`.
        ranges: ``ranges(params, shape)``, which parts of an operand of a shape the outputs are.
        part: ``part(params, shapes, range)``, how to compute a part of the output.
    """

    def __init__(
        self,
        *,
        operands: int | None = 1,
        total: bool = True,
        offset: bool = False,
        scales: bool = False,
        pointwise: bool = False,
        index: Callable[[dict[str, Any], Index], Index | None] | None = None,
        ranges: Callable[[dict[str, Any], tuple[int, ...]], list[Range] | None] | None = None,
        part: Callable[..., Any] | None = None,
    ):
        def translate(params: Params, values: Sequence[Any], variable: Flags) -> Outcome:
            if operands is not None and any(variable[operands:]):
                return Refuse(_UNSUPPORTED)
            shapes = [value.shape for value in values]
            own: Part | None = None
            if part is not None:
                own = functools.partial(part, params, shapes)
            elif pointwise and len(shapes) == 1:
                own = lambda one: (params, (one,))  # noqa: E731
            return Affine(
                total=total,
                offset=offset,
                scales=scales,
                pointwise=pointwise,
                index=index and functools.partial(index, params),
                ranges=tuple((ranges(params, shapes[0]) if ranges else None) or ()),
                part=own,
            )

        super().__init__(translate, family="view")


class Refusal(Translation):
    """A primitive that has no projection, and why: what to write instead.

    Args:
        reason: for the message and the coverage table.
    """

    def __init__(self, reason: str):
        refuse = Refuse(reason)
        super().__init__(
            lambda params, operands, variable: refuse,
            family="refused",
            granularity="–",
            exactness="–",
            reason=reason,
        )
