"""Sums of terms: ``z = Σ_i ⟨x_i, w_i⟩ + Σ_j a_jᵀ s_j``, one scalar equation per element of z.

One rule covers add, sub, reduce_sum, every product with data, mul and dot_general, and any of them
added up: a linear row is a bilinear row without products. Projections are exact in any metric of
one weight per operand, and need no copies: with equal starts the sums of the projected copies are
products again (see `SumRule.project`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.registry import (
    Expansion,
    Layout,
    Moment,
    Projection,
    Rule,
    Weights,
    pointwise_route,
    register_rule,
)
from pjax_trace.rules import bilinear

__all__ = ["Contraction", "SumRule", "Term", "identity"]

Labels = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Contraction:
    """``out[…] = Σ lhs[…] rhs[…]`` over the labels that ``out`` lacks, as in an einsum.

    Without ``rhs`` it is a sum over axes. ``sizes`` gives the size of every label.
    """

    lhs: Labels
    rhs: Labels | None
    out: Labels
    sizes: tuple[int, ...]
    precision: Any = None

    @property
    def contracted(self) -> Labels:
        """The labels that are summed over."""
        return tuple(label for label in self.lhs if label not in self.out)

    @property
    def common(self) -> Labels:
        """The labels of a private copy: every equation's own operands."""
        return self.out + self.contracted

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output."""
        return self.size_of(self.out)

    def size_of(self, labels: Labels) -> tuple[int, ...]:
        """The shape of an array with these labels."""
        return tuple(self.sizes[label] for label in labels)

    def labels(self, side: int) -> Labels:
        """Of the left (0) or right (1) operand."""
        if side == 0:
            return self.lhs
        assert self.rhs is not None
        return self.rhs

    @property
    def private(self) -> bool:
        """Whether no operand element is read by two equations."""
        return all(self.owns(side) for side in range(1 if self.rhs is None else 2))

    def owns(self, side: int) -> bool:
        """Whether every equation has its own elements of an operand."""
        labels = self.labels(side)
        return all(self.sizes[label] == 1 for label in self.common if label not in labels)

    def apply(self, x: Array, w: Array | None = None) -> Array:
        """The output."""
        if w is None:
            return _align(self._sum_out(x, self.lhs), self._kept(self.lhs), self.out)
        assert self.rhs is not None
        if self.private or not self.contracted:
            product = _align(x, self.lhs, self.common) * _align(w, self.rhs, self.common)
            return jnp.sum(product, tuple(range(len(self.out), len(self.common))))
        batch = [label for label in self.lhs if label in self.rhs and label in self.out]
        free = [
            *(label for label in self.lhs if label not in self.rhs),
            *(label for label in self.rhs if label not in self.lhs),
        ]
        dimensions = tuple(
            (tuple(map(self.lhs.index, labels)), tuple(map(self.rhs.index, labels)))
            for labels in (self.contracted, batch)
        )
        out = lax.dot_general(x, w, dimensions, precision=self.precision)  # pyright: ignore
        return _align(out, (*batch, *free), self.out)

    def rows(self, x: Array, side: int) -> Array:
        """The sum of an operand over what is contracted; broadcasts to the output."""
        labels = self.labels(side)
        return _align(self._sum_out(x, labels), self._kept(labels), self.out)

    def spread(self, out: Array, side: int) -> Array:
        """The transpose with ones for the other operand; broadcasts to the operand.

        The ones have size 1 along what is contracted, so this is a reduction, not a product.
        """
        labels = self.labels(side)
        kept = tuple(label for label in self.out if label in labels)
        lost = tuple(i for i, label in enumerate(self.out) if label not in labels)
        return _align(jnp.sum(out, lost), kept, labels)

    def readers(self, side: int) -> int:
        """How many equations read each element of an operand."""
        labels = self.labels(side)
        return math.prod(self.sizes[label] for label in self.out if label not in labels)

    def pull(self, out: Array, other: Array | None, side: int) -> Array:
        """The transpose in one operand, the other one given (None: ones)."""
        if other is None:
            return jnp.broadcast_to(self.spread(out, side), self.size_of(self.labels(side)))
        transposed = Contraction(
            self.out, self.labels(1 - side), self.labels(side), self.sizes, self.precision
        )
        return transposed.apply(out, other)

    def norms(self, coefficient: Array | None, side: int) -> Array | float:
        """The squared norm of the coefficients of each row, those of operand ``side``."""
        if coefficient is None:
            return float(math.prod(self.size_of(self.contracted)))
        return self.rows(jnp.square(coefficient), side)

    def copies(self, x: Array, side: int) -> Array:
        """An operand as private copies, in the common labels."""
        aligned = _align(x, self.labels(side), self.common)
        return jnp.broadcast_to(aligned, self.size_of(self.common))

    def gathered(self, x: Array, side: int) -> Array:
        """A private operand from the common labels back to its own."""
        labels = self.labels(side)
        kept = tuple(label for label in self.common if label in labels)
        lost = tuple(i for i, label in enumerate(self.common) if label not in labels)  # of size 1
        return _align(jnp.sum(x, lost), kept, labels)

    def _kept(self, labels: Labels) -> Labels:
        return tuple(label for label in labels if label in self.out)

    def _sum_out(self, x: Array, labels: Labels) -> Array:
        return jnp.sum(x, tuple(i for i, label in enumerate(labels) if label not in self.out))


def _align(x: Array, labels: Labels, target: Labels) -> Array:
    """Axes in the order of ``target``, of size 1 where ``labels`` lacks them."""
    order = sorted(range(len(labels)), key=lambda i: target.index(labels[i]))
    missing = tuple(i for i, label in enumerate(target) if label not in labels)
    return jnp.expand_dims(jnp.transpose(x, order), missing)


@dataclasses.dataclass(frozen=True)
class Term:
    """``sign · layout(contraction(operands))``, the operands by position."""

    contraction: Contraction
    operands: tuple[int, ...]
    sign: float = 1.0
    layout: Layout | None = None

    def apply(self, operands: Sequence[Array]) -> Array:
        """The value of the term."""
        return self.sign * self.forward(
            self.contraction.apply(*(operands[i] for i in self.operands))
        )

    def forward(self, x: Any) -> Any:
        """From the contraction's layout to the sum's."""
        return x if self.layout is None else self.layout.forward(x)

    def backward(self, x: Array) -> Array:
        """From the sum's layout to the contraction's."""
        return x if self.layout is None else self.layout.backward(x)


class SumRule(Rule):
    """The exact projection onto a sum of terms, every scalar equation by itself.

    Params: ``terms``, a tuple of `Term`.
    """

    family = "sum"

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
        linear, products = [], []
        for term in params["terms"]:
            variable = [i for i in term.operands if weights.operands[i] is not None]
            if len(variable) == 2:
                products.append(_Product(term, operands, weights))
            else:
                linear.append(_Linear(term, operands, weights))
        compliance, target = 1.0 / weights.out, out
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
            distance = jnp.sum(bilinear.squared_distance(solution, kappas, plus, minus, compliance))
            sums = _moved(products, solution, target, compliance)
            for product, moved in zip(products, sums, strict=True):
                for position, moment in product.moments(moved):
                    moments[position] = moment
        else:
            multiplier = target / compliance
            distance = jnp.sum(target * multiplier)
        for part in linear:
            moments[part.position] = part.moment(multiplier)
        return Projection(tuple(moments), out - multiplier / weights.out, distance)

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
                    readers = term.contraction.readers(side)
                    masses[position] = weights[position] * readers
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
            contraction = term.contraction
            labels = [contraction.labels(side) for side in range(len(term.operands))]
            for side, position in enumerate(term.operands):
                if variable[position] and not contraction.owns(side):
                    views[position] = _copier(contraction, side)
                    labels[side] = contraction.common
            sides = (labels[0], labels[1] if len(labels) == 2 else None)
            private = dataclasses.replace(contraction, lhs=sides[0], rhs=sides[1])
            terms.append(dataclasses.replace(term, contraction=private))
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
        addend = mine.contraction
        if not isinstance(rule, SumRule) or addend.rhs is not None or addend.lhs != addend.out:
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
            if not unknown and term.contraction.private and not term.contraction.contracted:
                x, w = (term.contraction.copies(s, i) for i, s in enumerate(sides))
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


def _copier(contraction: Contraction, side: int) -> Callable[[Array], Array]:
    return lambda x: contraction.copies(x, side)


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
        self.compliance = term.forward(self._norms())

    def _norms(self) -> Any:
        """``Σ a²/ω`` of every row."""
        contraction, square = self.term.contraction, self.coefficient
        if not jnp.ndim(self.weight):
            return contraction.norms(square, 1 - self.side) / self.weight
        inverse = 1 / jnp.broadcast_to(self.weight, self.operand.shape)
        if square is None:
            return contraction.apply(inverse)
        sides = (inverse, jnp.square(square))
        return contraction.apply(*(sides if self.side == 0 else reversed(sides)))

    def moment(self, multiplier: Array) -> Moment:
        """Of the operand, moved by ``a λ/ω`` in every row."""
        contraction = self.term.contraction
        mass = self.weight * contraction.readers(self.side)
        step = contraction.pull(self.term.backward(multiplier), self.coefficient, self.side)
        return Moment(mass * self.operand + self.term.sign * step, mass)


class _Product:
    """A term with two variables: ``sign · ⟨x, w⟩``."""

    def __init__(self, term: Term, operands: Sequence[Array], weights: Weights):
        self.term = term
        self.weights = tuple(weights.operands[i] for i in term.operands)
        x, w = (operands[i] for i in term.operands)
        self.signed = (term.sign * x, w)  # the sign goes with the left operand
        contraction = term.contraction
        if contraction.private:
            rows = (*contraction.shape, -1 if contraction.contracted else 1)
            copies = (contraction.copies(s, i).reshape(rows) for i, s in enumerate(self.signed))
            product = bilinear.PrivateProduct.of(*copies, *self.weights)
            self.private, self.kappa, value = product, product.kappa, product.value
            plus, minus = product.plus, product.minus
        else:
            # In units in which the metric is Euclidean.
            roots = [jnp.sqrt(jnp.asarray(weight, x.dtype)) for weight in self.weights]
            self.scaled = tuple(r * s for r, s in zip(roots, self.signed, strict=True))
            self.private, self.kappa = None, roots[0] * roots[1]
            left, right = (contraction.rows(jnp.square(s), i) for i, s in enumerate(self.scaled))
            q = left + right
            p = contraction.apply(*self.scaled)
            plus, minus = _significant(q + 2 * p, q) / 4, _significant(q - 2 * p, q) / 4
            value = p / self.kappa
        self.plus, self.minus, self.value = (term.forward(a) for a in (plus, minus, value))

    def solution(self, solution: bilinear.Multiplier, i: int) -> bilinear.Multiplier:
        """What a solution says of this product, product ``i`` of it, in the product's layout."""
        return bilinear.Multiplier(
            self.term.backward(solution.lam),
            *((self.term.backward(factor[i]),) for factor in solution[1:]),
        )

    def moments(self, moved: Sequence[Array]) -> list[tuple[int, Moment]]:
        """Of both operands, from the weighted sums of their projected copies."""
        contraction, result = self.term.contraction, []
        for side, (position, weight) in enumerate(
            zip(self.term.operands, self.weights, strict=True)
        ):
            sign = self.term.sign if side == 0 else 1.0
            mass = weight * contraction.readers(side)
            result.append((position, Moment(sign * moved[side], mass)))
        return result

    def owned(self, copies: Sequence[Array]) -> list[Array]:
        """Private copies, weighted and in the operands' layout."""
        contraction = self.term.contraction
        shape = contraction.size_of(contraction.common)
        return [
            weight * contraction.gathered(x.reshape(shape), side)
            for side, (x, weight) in enumerate(zip(copies, self.weights, strict=True))
        ]

    def shared(self, solution: bilinear.Multiplier) -> list[Array]:
        """The weighted sums of all projected copies, without making them."""
        contraction = self.term.contraction
        grow, shrink, free, mix = (factor[0] for factor in solution[1:])
        # The free direction is the same for every row: a unit vector of equal entries.
        entry = 1 / math.sqrt(2 * max(1, math.prod(contraction.size_of(contraction.contracted))))
        sums = []
        for side, weight in enumerate(self.weights):
            moved = (
                self.scaled[side] * contraction.spread(0.5 * (grow + shrink), side)
                + contraction.pull(mix, self.scaled[1 - side], side)
                + entry * contraction.spread(jnp.abs(free) if side == 0 else free, side)
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


def _pointwise(shape: tuple[int, ...], sides: int) -> Contraction:
    labels = tuple(range(len(shape)))
    return Contraction(labels, labels if sides == 2 else None, labels, tuple(shape))


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
        plain = _pointwise(shapes[0], 1)
        return Term(plain, (0,)), Term(plain, (1,), self.sign)


class Multiplication(Pointwise):
    """mul: one product per element."""

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """One product."""
        return (Term(_pointwise(shapes[0], 2), (0, 1)),)


class Division(Pointwise):
    """div by data: a scaling."""

    def supports(self, params: dict[str, Any], variable: Sequence[bool]) -> bool:
        """Not by a variable."""
        return not variable[1]


class ReduceSum(SumPrimitive):
    """reduce_sum over axes."""

    def terms(self, params: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Term, ...]:
        """One term with coefficients 1."""
        labels = tuple(range(len(shapes[0])))
        axes = {int(axis) for axis in params["axes"]}
        kept = tuple(label for label in labels if label not in axes)
        return (Term(Contraction(labels, None, kept, tuple(shapes[0])), (0,)),)


class DotGeneral(SumPrimitive):
    """dot_general, with any dimension numbers."""

    def rewrite(
        self, params: dict[str, Any], operands: Sequence[Any], variable: Sequence[bool]
    ) -> Callable[..., Array] | None:
        """A product of a value with itself, row by row, is a sum of squares."""
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
    return SUM, {"terms": (Term(_pointwise(shape, 1), (0,)),)}


register_rule(lax.add_p, Addition(lax.add, 1.0))
register_rule(lax.sub_p, Addition(lax.sub, -1.0))
register_rule(lax.mul_p, Multiplication(lax.mul, offset=False, doubled=lax.square))
register_rule(lax.div_p, Division(lax.div, offset=False))
register_rule(lax.reduce_sum_p, ReduceSum())
register_rule(lax.dot_general_p, DotGeneral())
