"""Sums of terms: ``z = Σ_i ⟨x_i, w_i⟩ + Σ_j a_jᵀ s_j``, one scalar equation per element of z.

One rule covers add, sub, reduce_sum, every product with data, mul and dot_general, and any of them
added up: a linear row is a bilinear row without products. Projections are exact in any metric of
one weight per operand, and need no copies: with equal starts the sums of the projected copies are
products again (see `SumRule.project`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import (
    Case,
    Columns,
    Equations,
    Expansion,
    Layout,
    Moment,
    Projection,
    Range,
    Request,
    Rule,
    Single,
    Weights,
    pointwise_route,
    register_rule,
)
from pjax_trace.rules import bilinear
from pjax_trace.rules.maps import Contraction, Map, identity_map
from pjax_trace.rules.quotient import QUOTIENT

__all__ = ["SUM", "SumPrimitive", "SumRule", "Term", "identity"]


@dataclasses.dataclass(frozen=True)
class Term:
    """``sign · layout(map(operands))``, the operands by position."""

    map: Map
    operands: tuple[int, ...]
    sign: float = 1.0
    layout: Layout | None = None

    def apply(self, operands: Sequence[Array]) -> Array:
        """The value of the term."""
        return self.sign * self.forward(self.map.apply(*(operands[i] for i in self.operands)))

    def forward(self, x: Any) -> Any:
        """From the map's layout to the sum's."""
        return x if self.layout is None else self.layout.forward(x)

    def backward(self, x: Array) -> Array:
        """From the sum's layout to the map's."""
        return x if self.layout is None else self.layout.backward(x)

    def seen_from(self, frame: Layout | None) -> "Term":
        """The same term of the sum before ``frame`` is applied to it."""
        if frame is None:
            return self
        if self.layout is frame:
            return dataclasses.replace(self, layout=None)
        layout = Layout(lambda x: frame.backward(self.forward(x)), self.map.shape, frame.before)
        return dataclasses.replace(self, layout=layout)


class SumRule(Rule):
    """The nearest points of a sum of terms, every scalar equation by itself.

    Params: ``terms``, a tuple of `Term`.
    """

    family = "sum"
    blocks = True

    def apply(self, params: dict[str, Any], *operands: Array) -> Array:
        """The sum."""
        return functools.reduce(jnp.add, (term.apply(operands) for term in params["terms"]))

    def project(
        self, params: dict[str, Any], operands: Sequence[Array], out: Array, weights: Weights
    ) -> Projection:
        """The nearest point of all rows, as moments.

        Each row has one unknown λ. A linear operand moves by ``a λ/ω``. A product moves by
        ``√ω_x x' = c √ω_x x + cτ √ω_w w``, ``c = 1/(1−τ²)``, ``τ = λ/√(ω_x ω_w)``, so the copies of
        x in the rows that read it sum to ``x·fᵀ(c; 1) + √(ω_w/ω_x) fᵀ(cτ; w)``, with fᵀ the
        transpose of the product in x: no copy is ever made.
        """
        variables = {i for i, weight in enumerate(weights.operands) if weight is not None}
        bilinear_terms = [t for t in params["terms"] if len(variables & {*t.operands}) == 2]
        # All rows are in the layout of the first product, which has most to do with them.
        frame = bilinear_terms[0].layout if bilinear_terms else None
        products = [_Product(t.seen_from(frame), operands, weights) for t in bilinear_terms]
        linear = [
            _Linear(term.seen_from(frame), operands, weights)
            for term in params["terms"]
            if term not in bilinear_terms
        ]
        weight_out = weights.out
        if frame is not None:
            out, weight_out = frame.backward(out), frame.backward(weight_out)
        compliance, target = 1.0 / weight_out, out
        for part in linear:
            compliance = compliance + part.compliance
            target = target - part.value
        moments: list[Moment | None] = [None] * len(operands)
        if products:
            kappas, plus = [p.kappa for p in products], [p.plus for p in products]
            minus, value = [p.minus for p in products], sum(p.value for p in products)
            solution = bilinear.solve_multiplier(
                kappas, plus, minus, target, compliance, value=jnp.asarray(value)
            )
            multiplier = solution.lam
            distance = jnp.sum(solution.distance)
            sums = _moved(products, solution, target, compliance)
            for product, moved in zip(products, sums, strict=True):
                for position, moment in product.moments(moved):
                    moments[position] = moment
        else:
            multiplier = target / compliance
            distance = jnp.sum(target * multiplier)
        for part in linear:
            moments[part.position] = part.moment(multiplier)
        out = out - multiplier / weight_out
        return Projection(tuple(moments), out if frame is None else frame.forward(out), distance)

    def hand_over(
        self, params: dict[str, Any], operands: Sequence[Array], request: Request
    ) -> tuple[Any, ...]:
        """The limit of heavy operands, each moving alone, which is the adjoint."""
        answers: list[Any] = [None] * len(operands)
        for term in params["terms"]:
            back = term.sign * term.backward(request.residual)
            for side, position in enumerate(term.operands):
                if request.variable[position]:
                    paired = len(term.operands) == 2
                    other = operands[term.operands[1 - side]] if paired else None
                    answers[position] = term.map.pull(back, other, side)
        return tuple(answers)

    def block(
        self,
        params: dict[str, Any],
        operands: Sequence[Array],
        residual: Array,
        answers: Sequence[Any],
        names: Mapping[int, Any],
    ) -> Equations:
        """Factors of products share a matrix, the other factors; biases are columns of ones in it.

        That takes terms with the same rows and features; all others are on their own.
        """
        edges = [
            (term, side, position)
            for term in params["terms"]
            for side, position in enumerate(term.operands)
            if position in names
        ]
        numbers = np.arange(1, 1 + residual.size).reshape(residual.shape)
        frame, target, pace = None, None, 1.0
        columns, singles = [], []
        for term, side, position in sorted(edges, key=lambda edge: -len(edge[0].operands)):
            design = term.map.design(side)
            taken = None
            if design is not None and _each_once(names[position]):
                rows = design.rows(_backward(term, numbers))
                if frame is None:
                    frame, target = rows, design.rows(term.backward(residual))
                    pace = design.pace
                if np.array_equal(frame, rows):
                    matrix = design.matrix(term.sign * operands[term.operands[1 - side]])
                    taken = Columns(matrix, position, design.restore, constant=False)
            elif frame is not None and term.map.plain and names[position] is not None:
                restore = _restore_bias(frame, _backward(term, numbers), names[position])
                if restore is not None:
                    ones = jnp.full((frame.shape[0], 1), term.sign, residual.dtype)
                    taken = Columns(ones, position, restore, constant=True)
            if taken is None:
                singles.append(self._single(term, side, operands, answers[position]))
            else:
                columns.append(taken)
        return Equations(target, tuple(columns), tuple(singles), pace)

    def _single(self, term: "Term", side: int, operands: Sequence[Array], answer: Array) -> Single:
        readers = jnp.broadcast_to(jnp.asarray(term.map.readers(side), answer.dtype), answer.shape)
        square = readers
        other = operands[term.operands[1 - side]] if len(term.operands) == 2 else None
        if other is not None and jnp.issubdtype(other.dtype, jnp.inexact):  # and no index
            ones = jnp.ones(term.map.shape, answer.dtype)
            square = term.map.pull(ones, jnp.square(other), side)
        return Single(answer, square, readers, term.operands[side], term.map.fan)

    def elementwise(self, params: dict[str, Any], variable: Sequence[bool], position: int) -> bool:
        """Where the operand is no factor of a product of variables."""
        term = next(term for term in params["terms"] if position in term.operands)
        return sum(variable[i] for i in term.operands) == 1

    def masses(self, params: dict[str, Any], weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Weight times the number of rows that read each element."""
        masses: list[Any] = [None] * len(weights)
        for term in params["terms"]:
            for side, position in enumerate(term.operands):
                if weights[position] is not None:
                    masses[position] = _mass(weights[position], term.map.readers(side))
        return tuple(masses)

    def expand(
        self,
        params: dict[str, Any],
        shapes: Sequence[tuple[int, ...]],
        variable: Sequence[bool],
    ) -> Expansion:
        """Every operand spread over the rows that read it."""
        views: list[Callable[[Array], Array] | None] = [None] * len(shapes)
        terms = []
        for term in params["terms"]:
            private, spread = term.map.expand([variable[i] for i in term.operands])
            terms.append(dataclasses.replace(term, map=private))
            for position, view in zip(term.operands, spread, strict=True):
                views[position] = view
        return Expansion(self, {**params, "terms": tuple(terms)}, tuple(views))

    def absorb(
        self,
        params: dict[str, Any],
        position: int,
        producer: tuple[Rule, dict[str, Any]],
        layout: Layout,
    ) -> dict[str, Any] | None:
        """A plain addend that is itself a sum: its terms join these."""
        rule, inner = producer
        mine = next(term for term in params["terms"] if position in term.operands)
        if not isinstance(rule, SumRule) or not mine.map.plain:
            return None
        added = 1 + max(i for term in inner["terms"] for i in term.operands)

        def shifted(term: Term) -> Term:
            moved = tuple(i + added - 1 if i > position else i for i in term.operands)
            return dataclasses.replace(term, operands=moved)

        def joined(term: Term) -> Term:
            return dataclasses.replace(
                term,
                operands=tuple(i + position for i in term.operands),
                sign=term.sign * mine.sign,
                layout=(term.layout.followed_by(layout) if term.layout else layout).followed_by(
                    mine.layout
                ),
            )

        terms = [
            new
            for term in params["terms"]
            for new in (map(joined, inner["terms"]) if term is mine else [shifted(term)])
        ]
        return {**params, "terms": tuple(terms)}

    def conflict(self, params: dict[str, Any], elements: Sequence[Any]) -> str | None:
        """A product must not read one element on both sides of an equation."""
        for term in params["terms"]:
            sides = [elements[i] for i in term.operands]
            if len(sides) < 2:
                continue
            unknown = any(names is None for names in sides)
            if not unknown and term.map.private and term.map.fan == 1:
                x, w = (term.map.copies(s, i) for i, s in enumerate(sides))
                if not jnp.any((x == w) & (x > 0)):
                    continue
            elif not unknown and not set(sides[0].ravel()) & set(sides[1].ravel()) - {0}:
                continue
            return (
                "multiplies a variable with itself in one equation, which is a square and not a "
                "product of two copies; write jnp.square (or x * x) of the very same array, or use "
                "two variables"
            )
        return None


def _each_once(names: Any) -> bool:
    return names is not None and np.unique(names).size == names.size and bool(np.all(names > 0))


def _backward(term: Term, numbers: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(term.backward(jnp.asarray(numbers)))


def _restore_bias(
    frame: np.ndarray, numbers: np.ndarray, names: np.ndarray
) -> Callable[[Array], Array] | None:
    """From a row of features to an operand that adds the same to every row; None if it does not.

    The step is put into the first row alone, for the sum over rows takes it to the parameter.
    """
    place = np.argsort(numbers, axis=None)  # where in the operand each number is
    added = names.ravel()[place[frame - 1]]
    if np.any(added != added[:1]) or not _each_once(added[0]):
        return None
    first = place[frame[0] - 1]

    def restore(unknown: Array) -> Array:
        flat = jnp.zeros(names.size, unknown.dtype).at[first].set(unknown[0])
        return flat.reshape(names.shape)

    return restore


def _mass(weight: Any, readers: Any) -> Any:
    """The weight of all copies of an operand, in the weight's own type."""
    return weight * (readers if isinstance(readers, int) else jnp.asarray(readers, _dtype(weight)))


def _dtype(weight: Any) -> Any:
    return jnp.result_type(weight)


class _Linear:
    """A term with one variable: ``sign · Σ a s``."""

    def __init__(self, term: Term, operands: Sequence[Array], weights: Weights):
        self.term = term
        self.side = next(s for s, i in enumerate(term.operands) if weights.operands[i] is not None)
        self.position = term.operands[self.side]
        self.weight = weights.operands[self.position]
        self.operand = operands[self.position]
        self.coefficient = None
        if len(term.operands) == 2:
            self.coefficient = operands[term.operands[1 - self.side]]
        self.value = term.apply(operands)
        inverse = 1 / jnp.asarray(self.weight, self.operand.dtype)
        self.compliance = term.forward(term.map.norms(inverse, self.coefficient, self.side))

    def moment(self, multiplier: Array) -> Moment:
        """Of the operand, moved by ``a λ/ω`` in every row."""
        mass = _mass(self.weight, self.term.map.readers(self.side))
        step = self.term.map.pull(self.term.backward(multiplier), self.coefficient, self.side)
        return Moment(mass * self.operand + self.term.sign * step, mass)


class _Product:
    """A term with two variables: ``sign · ⟨x, w⟩``."""

    def __init__(self, term: Term, operands: Sequence[Array], weights: Weights):
        self.term = term
        self.weights = tuple(weights.operands[i] for i in term.operands)
        x, w = (operands[i] for i in term.operands)
        self.signed = (term.sign * x, w)  # the sign goes with the left operand
        if term.map.private:
            copies = (term.map.copies(s, i) for i, s in enumerate(self.signed))
            product = bilinear.PrivateProduct.of(*copies, *self.weights, terms=term.map.terms)
            self.private, self.kappa, value = product, product.kappa, product.value
            plus, minus = product.plus, product.minus
        else:
            # In units in which the metric is Euclidean.
            roots = [jnp.sqrt(jnp.asarray(weight, x.dtype)) for weight in self.weights]
            self.scaled = tuple(r * s for r, s in zip(roots, self.signed, strict=True))
            self.private, self.kappa = None, bilinear.kappa_of(*self.weights)
            if term.map.fan == 1:  # Then |X ± W|² needs no expansion, which would cancel.
                left, right = (term.map.copies(s, i)[..., 0] for i, s in enumerate(self.scaled))
                p = left * right
                plus, minus = jnp.square(left + right) / 4, jnp.square(left - right) / 4
            else:
                left, right = (term.map.rows(jnp.square(s), i) for i, s in enumerate(self.scaled))
                q = left + right
                p = term.map.apply(*self.scaled)
                plus, minus = _significant(q + 2 * p, q) / 4, _significant(q - 2 * p, q) / 4
            value = p / self.kappa
        self.plus, self.minus, self.value = (term.forward(a) for a in (plus, minus, value))

    def solution(self, solution: bilinear.Multiplier, i: int) -> bilinear.Multiplier:
        """What a solution says of this product, product ``i`` of it, in the product's layout."""
        lam, *factors, distance = solution
        backward = self.term.backward
        grow, shrink, free, mix, keep = ((backward(factor[i]),) for factor in factors)
        return bilinear.Multiplier(backward(lam), grow, shrink, free, mix, keep, distance)

    def moments(self, moved: Sequence[Array]) -> list[tuple[int, Moment]]:
        """Of both operands, from the weighted sums of their projected copies."""
        result = []
        for side, (position, weight) in enumerate(
            zip(self.term.operands, self.weights, strict=True)
        ):
            sign = self.term.sign if side == 0 else 1.0
            mass = _mass(weight, self.term.map.readers(side))
            result.append((position, Moment(sign * moved[side], mass)))
        return result

    def owned(self, copies: Sequence[Array]) -> list[Array]:
        """Private copies, weighted and in the operands' layout."""
        return [
            weight * self.term.map.gathered(x, side)
            for side, (x, weight) in enumerate(zip(copies, self.weights, strict=True))
        ]

    def shared(self, solution: bilinear.Multiplier) -> list[Array]:
        """The weighted sums of all projected copies, without making them."""
        spread, pull = self.term.map.spread, self.term.map.pull
        (free,), (mix,), (keep,) = solution.free, solution.mix, solution.keep
        # Else XLA makes them anew, in other orders, for each of the sums.
        keep, mix = lax.optimization_barrier((keep, mix))
        # The free direction of a row is a unit vector of equal entries.
        entries = 2 * np.maximum(self.term.map.count, 1)

        def along(free: Array) -> list[Array]:
            free = free / jnp.sqrt(jnp.asarray(entries, free.dtype))
            return [spread(jnp.abs(free), 0), spread(free, 1)]

        def nowhere(free: Array) -> list[Array]:
            return [jnp.zeros(a.shape, a.dtype) for a in jax.eval_shape(along, free)]

        steps = lax.cond(jnp.any(free != 0), along, nowhere, free)
        sums = []
        for side, weight in enumerate(self.weights):
            moved = (
                self.scaled[side] * spread(keep, side)
                + pull(mix, self.scaled[1 - side], side)
                + steps[side]
            )
            sums.append(jnp.sqrt(jnp.asarray(weight, moved.dtype)) * moved)
        return sums


def _moved(
    products: Sequence[_Product], solution: bilinear.Multiplier, target: Array, compliance: Any
) -> list[list[Array]]:
    """The weighted sums of the projected copies of all products."""
    own = [(p, p.solution(solution, i)) for i, p in enumerate(products)]
    private = [p.private for p in products if p.private is not None]
    if len(private) < len(products):
        return [
            p.shared(s) if p.private is None else p.owned(p.private.moved(s, 0)) for p, s in own
        ]
    copies = [private[i].moved(s, 0) for i, (_, s) in enumerate(own)]
    lapse, slope = target - compliance * solution.lam, jnp.zeros_like(target)
    for p, inner, (x, w) in zip(products, private, copies, strict=True):
        lapse = lapse - p.term.forward(jnp.sum(x * w, -1))
        slope = slope + p.term.forward(inner.slope(x, w))
    step = bilinear.settling_step(lapse, slope, compliance)
    return [
        p.owned(inner.settled(x, w, p.term.backward(step)))
        for p, inner, (x, w) in zip(products, private, copies, strict=True)
    ]


def _significant(square: Array, size: Array) -> Array:
    """``|X ± W|²`` from its expansion; less than the expansion's rounding error counts as zero."""
    return jnp.where(square < 8 * jnp.finfo(square.dtype).eps * size, 0, square)


SUM = SumRule()


class SumPrimitive(Rule):
    """A primitive that is a sum of terms, or a view when one factor is data.

    Args:
        terms: from params and operand shapes to terms.
    """

    family = "sum"
    function: Callable[..., Array]

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """The terms of the sum."""
        raise NotImplementedError

    def specialise(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], variable: Sequence[bool]
    ) -> tuple[Rule, dict[str, Any]]:
        """The one rule of the family."""
        return SUM, {"terms": self.terms(params, shapes)}


class Pointwise(SumPrimitive):
    """add, sub, mul and div, elementwise; with one operand data they are views.

    JAX lets operands of size 1 stand for larger ones here; that is made explicit first.

    Args:
        function: the operation.
        offset: whether data shift the variable, instead of scaling it.
        doubled: the operation on one value twice, where that is another primitive.
    """

    def __init__(
        self,
        function: Callable[..., Array],
        *,
        offset: bool,
        doubled: Callable[[Array], Array] | None = None,
    ):
        self.function = function
        self.doubled: Any = doubled
        self.offset = offset
        self.total = offset  # a zero factor reads nothing
        self.scales = not offset

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """Equal shapes, and no operand twice."""
        x, y = operands
        if x is y and self.doubled is not None:
            return lambda a, _: self.doubled(a)
        if x.shape == y.shape or not all(variable):
            return None
        shape = jnp.broadcast_shapes(x.shape, y.shape)
        return lambda *xs: self.function(*(jnp.broadcast_to(a, shape) for a in xs))

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Scaling or offset by data."""
        return not all(variable)

    def restrict(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        """Of the same parts, but for what is repeated along the axis."""
        sizes = [shape[part.axis] if shape else 1 for shape in shapes]
        return params, tuple(part if size == max(sizes) else None for size in sizes)

    def route(
        self, primitive: Any, params: dict[str, Any], elements: Sequence[Any], data: Sequence[Any]
    ) -> list[Any]:
        """Elements stay in their places."""
        return [pointwise_route(elements)]


class Addition(Pointwise):
    """add (sign 1) and sub (sign −1)."""

    def __init__(self, function: Callable[..., Array], sign: float):
        super().__init__(function, offset=True, doubled=lambda x: (1 + sign) * x)
        self.sign = sign

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """Two addends."""
        plain = identity_map(shapes[0])
        return Term(plain, (0,)), Term(plain, (1,), self.sign)


class Multiplication(Pointwise):
    """mul: one product per element."""

    associative = True

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """Besides, in one dtype."""
        wanted = params.get("out_dtype")
        if wanted is not None and any(x.dtype != wanted for x in operands):
            return lambda *xs: lax.mul(*(x.astype(wanted) for x in xs))
        return super().rewrite(params, operands, variable)

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """One product."""
        return (Term(identity_map(shapes[0], 2), (0, 1)),)


class Division(Pointwise):
    """div: by data a scaling, by a variable a product with the roles changed."""

    def is_view(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Whether it scales by data."""
        return not variable[1]

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """Equal shapes; a value over itself is 1."""
        return super().rewrite(params, operands, (variable[1],) * 2)

    def specialise(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], variable: Sequence[bool]
    ) -> tuple[Rule, dict[str, Any]]:
        """The quotient."""
        return QUOTIENT, {}


class ReduceSum(SumPrimitive):
    """reduce_sum over axes."""

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """Over no axes it is the operand."""
        return None if params["axes"] else lambda x: x

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """One term with coefficients 1."""
        labels = tuple(range(len(shapes[0])))
        axes = {int(axis) for axis in params["axes"]}
        kept = tuple(label for label in labels if label not in axes)
        return (Term(Contraction(labels, None, kept, tuple(shapes[0])), (0,)),)


class DotGeneral(SumPrimitive):
    """dot_general, with any dimension numbers."""

    def restrict(
        self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]], part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        """Of parts of the operands that have the axis: one of them, or both if it is batched."""
        (term,) = self.terms(params, shapes)
        contraction = term.map
        assert isinstance(contraction, Contraction)
        label = contraction.out[part.axis]
        sides = (contraction.labels(side) for side in (0, 1))
        return params, tuple(
            part._replace(axis=labels.index(label)) if label in labels else None for labels in sides
        )

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """One dtype; a product of a value with itself, row by row, is a sum of squares."""
        dtypes = [jnp.dtype(x.dtype) for x in operands]
        wanted = jnp.dtype(params.get("preferred_element_type") or jnp.result_type(*dtypes))
        if set(dtypes) != {wanted}:
            wide = functools.reduce(jnp.promote_types, (*dtypes, wanted))
            numbers, precision = params["dimension_numbers"], params.get("precision")
            # Mixed-precision algorithms name dtypes of their own.
            precision = (
                None
                if isinstance(precision, (str, lax.DotAlgorithm, lax.DotAlgorithmPreset))
                else precision
            )
            return lambda x, w: lax.dot_general(
                x.astype(wide), w.astype(wide), numbers, precision
            ).astype(wanted)
        (contract, batch) = params["dimension_numbers"]
        paired = sorted(contract[0]) + sorted(batch[0])
        same = tuple(contract[0]) == tuple(contract[1]) and tuple(batch[0]) == tuple(batch[1])
        if operands[0] is not operands[1] or not same or len(paired) < len(operands[0].shape):
            return None
        axes = tuple(int(axis) for axis in contract[0])
        kept = sorted(batch[0])
        order = tuple(kept.index(axis) for axis in batch[0])
        return lambda x, _: jnp.transpose(jnp.sum(lax.square(x), axes), order)

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """One product."""
        (contract_l, contract_r), (batch_l, batch_r) = params["dimension_numbers"]
        left = list(range(len(shapes[0])))
        right = [-1] * len(shapes[1])
        sizes = list(shapes[0])
        for a, b in zip((*batch_l, *contract_l), (*batch_r, *contract_r), strict=True):
            right[b] = left[a]
        for axis, label in enumerate(right):
            if label < 0:
                right[axis] = len(sizes)
                sizes.append(shapes[1][axis])
        out = (
            *(left[a] for a in batch_l),
            *(label for a, label in enumerate(left) if a not in (*batch_l, *contract_l)),
            *(label for b, label in enumerate(right) if b not in (*batch_r, *contract_r)),
        )
        contraction = Contraction(
            tuple(left), tuple(right), tuple(out), tuple(sizes), params.get("precision")
        )
        return (Term(contraction, (0, 1)),)


def identity(shape: tuple[int, ...]) -> tuple[SumRule, dict[str, Any]]:
    """The constraint ``z = x``."""
    return SUM, {"terms": (Term(identity_map(shape), (0,)),)}


_DATA = np.linspace(-1, 2, 6, dtype=np.float32)

register_rule(
    lax.add_p,
    Addition(lax.add, 1.0),
    cases=(
        Case(lambda x, y: x + y, ((3,), (3,))),
        Case(lambda x, y: x + y, ((2, 1), (1, 2))),
        Case(lambda x, w, b: jnp.einsum("nk,nk->n", x, w) + b, ((2, 2), (2, 2), (2,))),
        Case(lambda x: x + jnp.asarray(_DATA, x.dtype), ((6,),)),
    ),
)
register_rule(
    lax.sub_p,
    Addition(lax.sub, -1.0),
    cases=(
        Case(lambda x, y: x - y, ((3,), (3,))),
        Case(lambda x, y, z: x - (y - z), ((2,), (2,), (2,))),
    ),
)
register_rule(
    lax.mul_p,
    Multiplication(lax.mul, offset=False, doubled=lax.square),
    cases=(
        Case(lambda x, y: x * y, ((3,), (3,))),
        Case(lambda x, y: x * y, ((2, 1), (1, 2))),
        Case(lambda x: x * jnp.asarray(_DATA, x.dtype), ((6,),)),
    ),
)
register_rule(
    lax.div_p,
    Division(lax.div, offset=False, doubled=jnp.ones_like),
    cases=(
        Case(lambda x, y: x / y, ((3,), (3,))),
        Case(lambda y: jnp.asarray(_DATA, y.dtype) / y, ((6,),)),
        Case(lambda x, y: x / y, ((2, 1), (1, 2))),
        Case(lambda x: x / 3.0, ((3,),)),
    ),
)
register_rule(
    lax.reduce_sum_p,
    ReduceSum(),
    cases=(
        Case(lambda x: jnp.sum(x, 1), ((2, 3),)),
        Case(lambda x: jnp.mean(x), ((2, 2),)),
        Case(lambda x: lax.reduce_sum_p.bind(x, axes=(), out_sharding=None), ((2,),)),
    ),
)
register_rule(
    lax.dot_general_p,
    DotGeneral(),
    cases=(
        Case(jnp.matmul, ((2, 3), (3, 2))),
        Case(jnp.dot, ((3,), (3,))),
        Case(lambda x: x @ jnp.asarray(_DATA.reshape(2, 3), x.dtype), ((2, 2),)),
        Case(lambda x, w, b: x @ w + b[None], ((2, 2), (2, 3), (3,))),
        Case(lambda x, w: jnp.einsum("bij,bkj->kib", x, w), ((2, 2, 1), (2, 1, 1))),
    ),
)
