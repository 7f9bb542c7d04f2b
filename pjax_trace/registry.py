"""What a rule is, the families' base classes, and the table from primitives to rules.

A rule projects a point onto the graph of its primitive, ``{(x, w, …, z) : z = f(x, w, …)}``, in a
weighted metric, for whichever operands are variables. It answers with *moments*, so that explicit
copies, copy-free rows and blocks are served by one interface.
"""

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.errors import InputError
from pjax_trace.ridge import Matrix

__all__ = [
    "HEAVY",
    "Case",
    "Columns",
    "CustomRule",
    "Entry",
    "Equations",
    "Expansion",
    "FunctionEntry",
    "Layout",
    "Moment",
    "Projection",
    "Range",
    "Refusal",
    "Request",
    "Rule",
    "Single",
    "ViewRule",
    "Weights",
    "adjoint",
    "entries",
    "function_entries",
    "of_variables",
    "paired",
    "projection_of",
    "register_function",
    "register_paired",
    "register_rule",
    "rule_for",
    "squared_distance",
]


# What operands weigh beside an output of weight 1 when a sweep hands over what is asked of it. A
# light operand would hand over nearly twice the slope of a saturating curve.
HEAVY = 10.0


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


class Projection(NamedTuple):
    """What a rule answers: moments (None for data), the projected output, the squared distance."""

    moments: tuple[Moment | None, ...]
    out: Any
    distance: Float[Array, ""]


class Range(NamedTuple):
    """The elements from ``start`` to ``stop`` (excluded) along an axis."""

    axis: int
    start: int
    stop: int


class Request(NamedTuple):
    """What a sweep asks of a constraint: that its output should move.

    Attributes:
        out: the output of the forward pass.
        residual: the direction in which it is to go, and how much that is asked.
        variable: which operands can be asked to move for it.
        reach: how far a target may be, in relation to the size of the output.
    """

    out: Array
    residual: Array
    variable: Sequence[bool]
    reach: float


class Columns(eqx.Module):
    """A parameter as the unknown of linear equations, ``matrix @ unknown = target``.

    Attributes:
        matrix: the coefficients, perhaps not made.
        position: of the operand that the parameter is.
        restore: from the unknown to the operand's shape.
        constant: whether all coefficients are 1: a bias, of which sizes say nothing.
    """

    matrix: Matrix
    position: int = eqx.field(static=True)
    restore: Callable[[Float[Array, "columns features"]], Array] = eqx.field(static=True)
    constant: bool = eqx.field(static=True)


class Single(eqx.Module):
    """A parameter each of whose elements is projected by itself, all else held.

    Attributes:
        gradient: ``Jᵀ residual``, in the operand's shape.
        square: the diagonal of ``JᵀJ``.
        readers: how many scalar equations read each element.
        position: of the operand that the parameter is.
        fan: the terms of an equation.
    """

    gradient: Float[Array, "..."]
    square: Float[Array, "..."]
    readers: Float[Array, "..."]
    position: int = eqx.field(static=True)
    fan: int = eqx.field(static=True)


class Equations(eqx.Module):
    """What a constraint asks of its parameters, to first order in them and all else held.

    Attributes:
        target: the right side that all columns share; None without columns.
        columns: the parameters that are projected jointly.
        singles: the others.
        pace: how far they may move in relation to those of a dense layer.
    """

    target: Float[Array, "rows features"] | None
    columns: tuple[Columns, ...]
    singles: tuple[Single, ...]
    pace: float = eqx.field(static=True, default=1.0)


class Rule:
    """How the constraint ``out = f(*operands)`` is projected onto.

    Subclasses implement ``apply`` and ``project``; the rest has defaults that are right for rules
    whose scalar equations do not share operands.

    Attributes:
        family: the name of the family, for printing.
        granularity: what is one constraint: a row (one scalar equation), or a block of them.
        exactness: how near to the nearest point the projection comes, for printing.
        blocks: whether it is smooth and its rows share operands, so that a block of them can be
            projected by linearising, see `pjax_trace.granularity`.
        total: as a view: whether every element of the variable operands is surely read.
        offset: as a view: whether it may add data to what it reads.
        permutation: as a view: whether it only renames elements, unless it changes their number.
        scales: as a view: whether it may multiply what it reads.
        associative: whether ``f(a, f(b, c))`` is ``f(f(a, b), c)``.
    """

    family: ClassVar[str] = "rule"
    granularity: ClassVar[str] = "row"
    exactness: ClassVar[str] = "exact"
    blocks: ClassVar[bool] = False
    total: bool = False
    offset: bool = True
    permutation: bool = False
    scales: bool = False
    associative: bool = False

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """An equivalent JAX function of the operands to trace instead, or None.

        For instance a product of a value with itself, which is a square and not two copies;
        operands that are one value are one object.
        """
        return None

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Whether, with these operands variable, the equation is a view and no constraint."""
        return False

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Whether the rule can project with these operands variable."""
        return True

    def refusal(self, params: dict[str, Any], variable: Sequence[bool]) -> str:
        """Why the rule does not support these operands, and what to write instead."""
        return "no rule for these operands or parameters"

    def specialise(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], variable: Sequence[bool]
    ) -> tuple["Rule", dict[str, Any]]:
        """The rule and params that a constraint of these operands gets."""
        return self, params

    def absorb(
        self,
        params: dict[str, Any],
        position: int,
        producer: tuple["Rule", dict[str, Any]],
        layout: "Layout",
    ) -> dict[str, Any] | None:
        """Params of the constraint that also does its producer's work, or None.

        The producer's output is read by operand ``position`` alone, through the permutation
        ``layout``; in the merged constraint the producer's operands stand in that operand's place.
        """
        return None

    def conflict(self, params: dict[str, Any], elements: Sequence[Any]) -> str | None:
        """Why the constraint must not read one variable twice in one equation, or None if it may.

        ``elements`` are integer arrays in the operands' shapes that name the elements they read (0
        for data; None if that is not known).
        """
        return None

    def ranges(self, params: dict[str, Any], shape: tuple[int, ...]) -> list[Range] | None:
        """As a view: what each output takes of an operand of this shape, if those are ranges."""
        return None

    def restrict(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        """How to compute a part of the output alone, or None.

        Returns the params, and which part of each operand to give (None: all of it).
        """
        return None

    def route(
        self, primitive: Any, params: dict[str, Any], elements: Sequence[Any], data: Sequence[Any]
    ) -> list[Any]:
        """As a view: the names of the elements that each output element reads.

        ``elements`` are integer arrays, 0 for data; ``data`` are the data operands, None otherwise.
        """
        operands = [
            value if value is not None and not jnp.issubdtype(value.dtype, jnp.inexact) else names
            for names, value in zip(elements, data, strict=True)
        ]
        params = {**params, "fill_value": 0} if "fill_value" in params else params
        return _compat.bind(primitive, params, *operands)

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """``f(*operands)``."""
        raise NotImplementedError

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Any, weights: Weights
    ) -> Projection:
        """The nearest point of the graph to ``(operands, out)``, as moments.

        argmin ``Σ_i ω_i |x_i − operands_i|² + Σ ω_out (z − out)²`` subject to ``z = f(x)``, where
        data operands do not move.
        """
        raise NotImplementedError

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """What a sweep asks of the operands, the output being asked to move; None for nothing.

        By default a projection of ``(operands, out + g residual)``, with g such that the target is
        nearer than the size of the output by the factor ``reach``, and operands that weigh `HEAVY`
        times what the output does. What they move by is scaled back, so that it tends to the
        adjoint, but for operands that are much larger than the output: what they move by is
        rounded. Smooth rules had better say what their tangent hands over.
        """
        size, asked = (jnp.sqrt(jnp.mean(jnp.square(x))) for x in (request.out, request.residual))
        size, asked = (jnp.where(x > 0, x, 1.0) for x in (size, asked))
        step = request.reach * size
        weights = Weights(
            tuple(HEAVY if v else None for v in request.variable), jnp.ones_like(request.out)
        )
        answer = self.project(
            params, operands, request.out + step * (request.residual / asked), weights
        )
        undone = (HEAVY + 1) / HEAVY * asked / step
        return tuple(
            None if m is None else undone * (m.first - m.mass * x)
            for m, x in zip(answer.moments, operands, strict=True)
        )

    def block(
        self,
        params: dict[str, Any],
        operands: Sequence[Array],
        residual: Array,
        answers: Sequence[Any],
        names: Mapping[int, Any],
    ) -> Equations:
        """The linear equations that a sweep projects this constraint's parameters onto.

        Args:
            params: of the constraint.
            operands: at the point that the sweep starts from.
            residual: what is asked of the output.
            answers: what `hand_over` made of that.
            names: for every operand that is a parameter, an integer array of its shape that names
                the parameter's elements; None if an element may be read twice, or scaled.
        """
        masses = self.masses(
            params, tuple(1.0 if i in names else None for i in range(len(operands)))
        )
        singles = []
        for i in names:
            readers = jnp.broadcast_to(jnp.asarray(masses[i], answers[i].dtype), answers[i].shape)
            singles.append(Single(answers[i], readers, readers, i, 1))
        return Equations(None, (), tuple(singles))

    def elementwise(self, params: dict[str, Any], variable: Sequence[bool], position: int) -> bool:
        """Whether the weight of the operand in this position may vary by element, too."""
        return False

    def masses(self, params: dict[str, Any], weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """The masses of the moments alone, from the weights of the operands; None for data.

        By default every element of an operand has one copy, so its mass is its weight.
        """
        return weights

    def expand(
        self,
        params: dict[str, Any],
        shapes: Sequence[tuple[int, ...]],
        variable: Sequence[bool],
    ) -> "Expansion":
        """The same constraint with a private copy of every operand for each scalar equation."""
        return Expansion(self, params, (None,) * len(shapes))


class Layout(NamedTuple):
    """A permutation of elements: the function, and the shapes before and after."""

    function: Callable[[Array], Array]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def forward(self, x: Array) -> Array:
        """Elements in their new places; ``x`` broadcasts to the shape before."""
        return self.function(jnp.broadcast_to(x, self.before))

    def backward(self, x: Array) -> Array:
        """Elements in their old places; ``x`` broadcasts to the shape after."""
        before = jax.ShapeDtypeStruct(self.before, x.dtype)
        (y,) = jax.linear_transpose(self.function, before)(jnp.broadcast_to(x, self.after))
        return y

    def followed_by(self, other: "Layout | None") -> "Layout":
        """This permutation and then another."""
        if other is None:
            return self
        return Layout(lambda x: other.forward(self.forward(x)), self.before, other.after)


class Expansion(NamedTuple):
    """A constraint on private copies: its rule and params, and a view in front of each operand.

    A view is a function that spreads the operand over its copies; None where each element is read
    once already.
    """

    rule: Rule
    params: dict[str, Any]
    views: tuple[Callable[[Array], Array] | None, ...]


def squared_distance(weight: Any, moved: Array, start: Array) -> Float[Array, ""]:
    """``Σ weight · (moved − start)²``."""
    return jnp.sum(weight * jnp.square(moved - start))


def projection_of(
    operands: Sequence[Array], out: Array, weights: Weights, moved: Sequence[Any], moved_out: Array
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


def adjoint(
    function: Callable[..., Array],
    operands: Sequence[Array],
    residual: Array,
    variable: Sequence[bool],
) -> tuple[Any, ...]:
    """What a smooth function of several elements hands over: `Rule.hand_over` in the limit."""
    own = (x for x, v in zip(operands, variable, strict=True) if v)
    answers = iter(jax.vjp(of_variables(function, operands, variable), *own)[1](residual))
    return tuple(next(answers) if v else None for v in variable)


def of_variables(
    function: Callable[..., Array], operands: Sequence[Array], variable: Sequence[bool]
) -> Callable[..., Array]:
    """The function of those operands alone that are variables."""

    def restricted(*own: Array) -> Array:
        moving = iter(own)
        return function(
            *(next(moving) if v else x for x, v in zip(operands, variable, strict=True))
        )

    return restricted


class ViewRule(Rule):
    """A primitive that is affine, each output element reading one input element.

    Such an equation is no constraint: consensus goes through it, by its transpose.

    Args:
        operands: how many leading operands may be variables (None: all of them); the rest must be
            data.
        total: whether every element of the variable operands is read, with a nonzero coefficient.
        offset: whether the view may add data to what it reads.
        permutation: whether it only renames elements, whenever it does not change their number.
        pointwise: whether it only scales or shifts elements in their places.
    """

    family = "view"

    def __init__(
        self,
        *,
        operands: int | None = 1,
        total: bool = True,
        offset: bool = False,
        permutation: bool = False,
        pointwise: bool = False,
    ):
        self.operands = operands
        self.pointwise = pointwise
        self.total = total
        self.offset = offset
        self.permutation = permutation

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """True if only operands that may be variables are."""
        return self.operands is None or not any(variable[self.operands :])

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """A view rule knows no other way to project."""
        return self.is_view(params, variable)

    def restrict(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        """Where elements keep their places, of the same part."""
        return (params, (part,)) if self.pointwise and len(shapes) == 1 else None

    def route(
        self, primitive: Any, params: dict[str, Any], elements: Sequence[Any], data: Sequence[Any]
    ) -> list[Any]:
        """Elements stay in place, or move as the primitive moves numbers."""
        if self.pointwise:
            return [pointwise_route(elements)]
        return super().route(primitive, params, elements, data)


def pointwise_route(elements: Sequence[Any]) -> Any:
    """`Rule.route` of an operation that scales or shifts one variable elementwise."""
    shape = jnp.broadcast_shapes(*(names.shape for names in elements))
    return sum(jnp.broadcast_to(names, shape) for names in elements)


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

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The user's function."""
        return self._apply(*operands, **_accepted(self._apply, params))

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Any, weights: Weights
    ) -> Projection:
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


def _accepted(function: Callable[..., Any], params: dict[str, Any]) -> dict[str, Any]:
    """Those of a primitive's params that a function takes as keywords."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return params
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in params.items() if name in names}


class Refusal(Rule):
    """A primitive that has no projection, and why: what to write instead.

    Args:
        reason: for the message and the coverage table.
    """

    family = "refused"
    granularity = "–"
    exactness = "–"

    def __init__(self, reason: str):
        self.reason = reason

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Never."""
        return False

    def refusal(self, params: dict[str, Any], variable: Sequence[bool]) -> str:
        """The reason."""
        return self.reason


class Case(NamedTuple):
    """A call that a rule must get right, kept beside the rule: the tests run every one.

    Attributes:
        function: plain JAX code with an equation of the rule's primitive in it. Arrays that it
            closes over are data.
        shapes: of its arguments, which are variables.
        scale: how far random arguments are from the centre.
        centre: of the random arguments.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    scale: float = 1.0
    centre: float = 0.0


class Entry(NamedTuple):
    """What the registry knows of a primitive.

    Attributes:
        rule: its rule, or a `Refusal`.
        cases: calls that the rule must get right, or refuse.
        since: the first JAX version that has the primitive, of those supported.
        note: what the coverage table should say beside.
    """

    rule: Rule
    cases: tuple[Case, ...]
    since: str
    note: str


_RULES: dict[Any, Entry] = {}
_loaded = False


def _load_rule_packs() -> None:
    """Import the installed rule packs, once; each registers its rules as it is imported."""
    global _loaded
    if not _loaded:
        _loaded = True  # first, so that the packs can register
        for entry in importlib.metadata.entry_points(group="pjax_trace.rules"):
            entry.load()


def register_rule(
    primitive: Any,
    rule: Rule,
    *,
    cases: Sequence[Case] = (),
    since: str = "0.10",
    note: str = "",
    override: bool = False,
) -> Rule:
    """Tell pjax-trace how to project onto the graph of a primitive.

    Args:
        primitive: a JAX primitive (the object, not its name), such as ``jax.lax.sin_p``.
        rule: a `Rule`; `CustomRule` makes one from a plain projection, and `Refusal` says why there
            is none.
        cases: calls that the rule must get right, for the tests.
        since: the JAX version that the primitive came with, for the coverage table.
        note: what the coverage table should say beside it.
        override: replace a rule that is there already.

    Returns:
        The rule.

    Raises:
        InputError: if the primitive has a rule and ``override`` is False, or an argument is of the
            wrong type.

    Example:
        A rule for ``jax.lax.reduce_precision_p``, taken for the identity:

        >>> import jax
        >>> import pjax_trace as pjax
        >>> def nearest(operands, out, weights):
        ...     (x,), (wx,), wz = operands, weights.operands, weights.out
        ...     mean = (wx * x + wz * out) / (wx + wz)
        ...     return (mean,), mean
        >>> rule = pjax.CustomRule(lambda x: x, nearest)
        >>> pjax.register_rule(jax.lax.reduce_precision_p, rule) is rule
        True
    """
    _load_rule_packs()
    if not isinstance(primitive, _compat.Primitive):
        raise InputError(
            f"register_rule takes the primitive itself (such as jax.lax.sin_p), not {primitive!r}"
        )
    if not isinstance(rule, Rule):
        raise InputError(f"the rule for {primitive} must be a pjax_trace.Rule, not {rule!r}")
    if primitive in _RULES and not override:
        raise InputError(
            f"primitive {primitive} has a rule already ({_RULES[primitive].rule.family}); "
            "pass override=True to replace it"
        )
    _RULES[primitive] = Entry(rule, tuple(cases), since, note)
    return rule


_PAIRED: dict[Any, Callable[..., Any]] = {}


def register_paired(primitive: Any, function: Callable[..., Any]) -> None:
    """Tell pjax-trace what a primitive does to complex values that depend on variables.

    Such a value is a pair of reals: an array with one more axis in front.

    Args:
        primitive: the primitive.
        function: ``function(params, pairs, *operands)``, written in JAX; ``pairs`` says which of
            the operands are pairs. Complex data come as they are. Where the primitive's output
            is complex, it returns a pair.
    """
    _PAIRED[primitive] = function


def paired(primitive: Any) -> Callable[..., Any] | None:
    """What a primitive does to pairs, or None."""
    _load_rule_packs()
    return _PAIRED.get(primitive)


class FunctionEntry:
    """What the registry knows of a claimed function; see `register_function`."""

    def __init__(
        self,
        function: Callable[..., Any],
        rule: Rule,
        variants: Callable[[tuple[int, ...]], Sequence[dict[str, Any]]],
        cases: tuple[Case, ...],
        note: str,
    ):
        self.function, self.rule, self.cases, self.note = function, rule, cases, note
        self._variants = variants

    def variants_of(self, shape: tuple[int, ...]) -> list[tuple[tuple[str, Any], ...]]:
        """The keyword arguments to look for, for an argument of this shape; hashable."""
        return [tuple(sorted(variant.items())) for variant in self._variants(shape)]


_FUNCTIONS: list[FunctionEntry] = []


def register_function(
    function: Callable[..., Any],
    rule: Rule,
    *,
    variants: Sequence[dict[str, Any]] | Callable[[tuple[int, ...]], Sequence[dict[str, Any]]] = (
        {},
    ),
    cases: Sequence[Case] = (),
    note: str = "",
) -> Rule:
    """Let a rule claim a whole function of one array, instead of the primitives in it.

    Wherever a traced program has the equations that ``function(x)`` traces to, they become one
    constraint. It is matched by its traced body, not by its name. Of a function that ends with a
    product, ``a * (b * c)`` is found as ``(a * b) * c``.

    Args:
        function: takes one array, and keyword arguments that are no arrays; returns one array. It
            does the same operations whatever the sizes of the array's axes.
        rule: with one operand; gets the keyword arguments as params.
        variants: the keyword arguments to look for: a sequence of dictionaries, or a function from
            the argument's shape to one.
        cases: calls that the rule must get right, for the tests.
        note: what the coverage table should say beside it.

    Returns:
        The rule.

    Raises:
        InputError: if an argument is of the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def cautious(x):
        ...     return jnp.maximum(x, 0.0) + jnp.minimum(x, 0.0)
        >>> def nearest(operands, out, weights):
        ...     (x,), (wx,), wz = operands, weights.operands, weights.out
        ...     mean = (wx * x + wz * out) / (wx + wz)
        ...     return (mean,), mean
        >>> rule = pjax.register_function(cautious, pjax.CustomRule(cautious, nearest))
        >>> (x,), z = pjax.project_point(cautious, (jnp.array([-1.0]),), jnp.array([1.0]))
        >>> float(x[0]), float(z[0])
        (0.0, 0.0)
    """
    _load_rule_packs()
    if not callable(function) or not isinstance(rule, Rule):
        raise InputError(
            "register_function takes a function and a pjax_trace.Rule, not "
            f"{function!r} and {rule!r}"
        )
    some = variants if callable(variants) else lambda shape: variants
    _FUNCTIONS.append(FunctionEntry(function, rule, some, tuple(cases), note))
    return rule


def function_entries() -> list[FunctionEntry]:
    """All functions that rules claim; later ones first."""
    _load_rule_packs()
    return _FUNCTIONS[::-1]


def rule_for(primitive: Any) -> Rule | None:
    """The rule of a primitive, or None."""
    _load_rule_packs()
    entry = _RULES.get(primitive)
    return None if entry is None else entry.rule


def entries() -> dict[Any, Entry]:
    """All that is registered, by primitive."""
    _load_rule_packs()
    return dict(_RULES)


def evaluate(primitive: Any) -> Callable[..., Array]:
    """The function of a primitive with one output, its params as keywords."""
    return lambda *operands, **params: _compat.bind(primitive, params, *operands)[0]
