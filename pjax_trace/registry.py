"""The tables: what primitives become, what they do to complex values, and claimed functions.

Rule packs fill them as they are imported; they are found through the entry-point group
``pjax_trace.rules``.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.errors import InputError
from pjax_trace.linear import Layout
from pjax_trace.rule import Flags, Params, Rule
from pjax_trace.translation import Outcome, Translation, direct

__all__ = [
    "Case",
    "Entry",
    "FunctionEntry",
    "Isometry",
    "associative",
    "entries",
    "evaluate",
    "fold_of",
    "is_affine",
    "isometry_of",
    "loss_nodes",
    "function_entries",
    "paired",
    "register_affine",
    "register_fold",
    "register_function",
    "register_isometry",
    "register_loss_node",
    "register_paired",
    "register_rule",
    "register_translation",
    "translate",
]


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
        translation: what it becomes.
        cases: calls that the rule must get right, or refuse.
        since: the first JAX version that has the primitive, of those supported.
        note: what the coverage table should say beside.
    """

    translation: Translation
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
    rule: Rule | Translation,
    *,
    cases: Sequence[Case] = (),
    since: str = "0.10",
    note: str = "",
    override: bool = False,
) -> Rule | Translation:
    """Tell pjax-trace how to project onto the graph of a primitive.

    Args:
        primitive: a JAX primitive (the object, not its name), such as ``jax.lax.sin_p``.
        rule: a `Rule`, which gets the primitive's params; `CustomRule` makes one from a plain
            projection. Or a `Translation`, which decides for each equation what it becomes:
            `ViewRule` makes it a view, and `Refusal` says why there is no projection.
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
        Another rule for ``jax.lax.reduce_precision_p``, taken for the identity:

        >>> import jax
        >>> import pjax_trace as pjax
        >>> def nearest(operands, out, weights):
        ...     (x,), (wx,), wz = operands, weights.operands, weights.out
        ...     mean = (wx * x + wz * out) / (wx + wz)
        ...     return (mean,), mean
        >>> rule = pjax.CustomRule(lambda x: x, nearest)
        >>> pjax.register_rule(jax.lax.reduce_precision_p, rule, override=True) is rule
        True
    """
    _load_rule_packs()
    if not isinstance(primitive, _compat.Primitive):
        raise InputError(
            f"register_rule takes the primitive itself (such as jax.lax.sin_p), not {primitive!r}"
        )
    if not isinstance(rule, (Rule, Translation)):
        raise InputError(f"the rule for {primitive} must be a pjax_trace.Rule, not {rule!r}")
    if primitive in _RULES and not override:
        raise InputError(
            f"primitive {primitive} has a rule already ({_RULES[primitive].translation.family}); "
            "pass override=True to replace it"
        )
    translation = direct(rule) if isinstance(rule, Rule) else rule
    _RULES[primitive] = Entry(translation, tuple(cases), since, note)
    return rule


_INTERNAL: dict[Any, Translation] = {}


def register_translation(primitive: Any, translation: Translation) -> None:
    """Say what a primitive of the compiler's own becomes, which no rule pack knows of."""
    _INTERNAL[primitive] = translation


def translate(
    primitive: Any, params: Params, operands: Sequence[Any], variable: Flags
) -> Outcome | None:
    """What an equation becomes, see `pjax_trace.translation`; None if nothing is registered."""
    _load_rule_packs()
    entry = _RULES.get(primitive)
    translation = _INTERNAL.get(primitive) if entry is None else entry.translation
    return None if translation is None else translation(params, operands, variable)


Fold = Callable[[dict[str, Any], int, tuple[Rule, dict[str, Any]], Layout], dict[str, Any] | None]
_FOLDS: dict[type[Rule], Fold] = {}


def register_fold(rule: type[Rule], fold: Fold) -> None:
    """Say how constraints of a rule can do the work of producers that only they read.

    Args:
        rule: the class of the rule.
        fold: ``fold(params, position, (rule, params) of the producer, layout)``, the params of the
            constraint in which the producer's operands stand in the place of the operand in this
            position, which reads its output through the layout; None if that is no such constraint.
    """
    _FOLDS[rule] = fold


def fold_of(rule: Rule) -> Fold | None:
    """How a rule folds its producers in, or None."""
    return _FOLDS.get(type(rule))


class Isometry(NamedTuple):
    """What is known of a linear function with ``Lᵀ L = c I``.

    Attributes:
        inverse: ``Lᵀ / c``.
        onto: whether every output is that of some input, so that ``L Lᵀ = c I``, too. If not, sets
            of its outputs must be sets of the single ones, or of pairs of reals.
    """

    inverse: Callable[[Array], Array]
    onto: bool = True


_ISOMETRIES: dict[type[Rule], Callable[[Any], Isometry | None]] = {}


def register_isometry(rule: type[Rule], isometry: Callable[[Any], Isometry | None]) -> None:
    """Say that the functions of rules of a class, of one operand, are multiples of isometries.

    Args:
        rule: the class.
        isometry: from a rule of the class to what is known of its function; None if that is none.
    """
    _ISOMETRIES[rule] = isometry


def isometry_of(rule: Rule) -> Isometry | None:
    """What is known of a rule's function as an isometry, or None."""
    isometry = _ISOMETRIES.get(type(rule))
    return None if isometry is None else isometry(rule)


_AFFINE: dict[type[Rule], Callable[[Params, Flags], bool]] = {}


def register_affine(rule: type[Rule], affine: Callable[[Params, Flags], bool]) -> None:
    """Say which functions of rules of a class are affine in all of their variables together.

    Args:
        rule: the class.
        affine: from the params of a constraint, and which operands are variables, to whether it is.
    """
    _AFFINE[rule] = affine


def is_affine(rule: Rule, params: Params, variable: Flags) -> bool:
    """Whether a rule's function is known to be affine in all of its variables together."""
    affine = _AFFINE.get(type(rule))
    return affine is not None and affine(params, variable)


def associative(primitive: Any) -> bool:
    """Whether ``f(a, f(b, c))`` is ``f(f(a, b), c)``."""
    entry = _RULES.get(primitive)
    return entry is not None and entry.translation.associative


_PAIRED: dict[Any, tuple[Callable[..., Any], bool]] = {}


def register_paired(primitive: Any, function: Callable[..., Any], *, factors: bool = False) -> None:
    """Tell pjax-trace what a primitive does to complex values that depend on variables.

    Such a value is a pair of reals: an array with one more axis in front.

    Args:
        primitive: the primitive.
        function: ``function(params, pairs, *operands)``, written in JAX; ``pairs`` says which of
            the operands are pairs. Complex data come as they are. Where the primitive's output
            is complex, it returns a pair.
        factors: whether data that are known to be real come as reals.
    """
    _PAIRED[primitive] = function, factors


def paired(primitive: Any) -> tuple[Callable[..., Any] | None, bool]:
    """What a primitive does to pairs, or None; and whether real factors come as reals."""
    _load_rule_packs()
    return _PAIRED.get(primitive, (None, False))


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionEntry:
    """What the registry knows of a claimed function; see `register_function`."""

    function: Callable[..., Any]
    rule: Rule
    variants: Callable[[tuple[int, ...]], Sequence[dict[str, Any]]]
    cases: tuple[Case, ...]
    note: str

    def variants_of(self, shape: tuple[int, ...]) -> list[tuple[tuple[str, Any], ...]]:
        """The keyword arguments to look for, for an argument of this shape; hashable."""
        return [tuple(sorted(variant.items())) for variant in self.variants(shape)]


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


_LOSS_NODES: list[Any] = []


def register_loss_node(kind: Any) -> Any:
    """Let a class of `pjax_trace.proximal.ObjectiveRule` recognise its terms in an objective.

    Its static method ``recognise(equation, producers)`` gets the equation that ends a term, and the
    equations that make every value. It says what the term is a function of, and by which equations,
    that one being the last; or None. Returns the class, so that it decorates it.
    """
    _LOSS_NODES.append(kind)
    return kind


def loss_nodes() -> list[Any]:
    """All classes of loss nodes that are recognised."""
    _load_rule_packs()
    return list(_LOSS_NODES)


def entries() -> dict[Any, Entry]:
    """All that is registered, by primitive."""
    _load_rule_packs()
    return dict(_RULES)


def evaluate(primitive: Any) -> Callable[..., Array]:
    """The function of a primitive with one output, its params as keywords."""
    return lambda *operands, **params: _compat.bind(primitive, params, *operands)[0]
