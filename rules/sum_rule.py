"""Sums of terms: ``z = Σ_i ⟨x_i, w_i⟩ + Σ_j a_jᵀ s_j``, one scalar equation per element of z.

One rule covers add, sub, reduce_sum, every product with data, mul and dot_general, and any of them
added up: a linear row is a bilinear row without products. Projections are exact in any metric of
one weight per operand, and need no copies: with equal starts the sums of the projected copies are
products again (see `SumRule.project`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace.errors import TraceError
from pjax_trace.index import chain
from pjax_trace.linear import Jacobian, Layout
from pjax_trace.registry import register_affine, register_fold
from pjax_trace.rule import (
    Along,
    Arrays,
    Expansion,
    Flags,
    Moment,
    Params,
    Projection,
    Rule,
    Shapes,
    Slanted,
    Slants,
    Weights,
)
from pjax_trace.rules import bilinear
from pjax_trace.rules.maps import Map
from pjax_trace.rules.products import PrivateProduct, settling_step

__all__ = ["SUM", "SumRule", "Term"]

_VARIES = (
    "elements of a factor of one product weigh differently, because data scale them (or may, under "
    "jit); there is no closed form then"
)


@dataclasses.dataclass(frozen=True)
class Term:
    """``sign · layout(map(operands))``, the operands by position; seen before ``frame``, if any."""

    map: Map
    operands: tuple[int, ...]
    sign: float = 1.0
    layout: Layout | None = None
    frame: Layout | None = None

    def apply(self, operands: Arrays) -> Array:
        """The value of the term."""
        return self.sign * self.forward(self.map.apply(*(operands[i] for i in self.operands)))

    def forward(self, x: Any) -> Any:
        """From the map's layout to the sum's."""
        x = x if self.layout is None else self.layout.forward(x)
        return x if self.frame is None else self.frame.backward(x)

    def backward(self, x: Array) -> Array:
        """From the sum's layout to the map's."""
        x = x if self.frame is None else self.frame.forward(x)
        return x if self.layout is None else self.layout.backward(x)

    def seen_from(self, frame: Layout | None) -> "Term":
        """The same term of the sum before ``frame`` is applied to it."""
        if frame is None:
            return self
        if self.layout == frame:
            return dataclasses.replace(self, layout=None)
        return dataclasses.replace(self, frame=frame)


class SumRule(Slanted):
    """The nearest points of a sum of terms, every scalar equation by itself.

    Params: ``terms``, a tuple of `Term`.
    """

    family = "sum"
    elementwise = True
    smooth = True

    def apply(self, params: Params, *operands: Array) -> Array:
        return functools.reduce(jnp.add, (term.apply(operands) for term in params["terms"]))

    def project(self, params: Params, operands: Arrays, out: Array, weights: Weights) -> Projection:
        """The nearest point of all rows, as moments.

        Each row has one unknown λ. A linear operand moves by ``a λ/ω``. A product moves by
        ``√ω_x x' = c √ω_x x + cτ √ω_w w``, ``c = 1/(1−τ²)``, ``τ = λ/√(ω_x ω_w)``, so the copies of
        x in the rows that read it sum to ``x·fᵀ(c; 1) + √(ω_w/ω_x) fᵀ(cτ; w)``, with fᵀ the
        transpose of the product in x: no copy is ever made.
        """
        slanted = {i: x.multiplier for i, x in enumerate(operands) if isinstance(x, Along)}
        operands = [x.base if isinstance(x, Along) else x for x in operands]
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
            slanted = {i: frame.backward(x) for i, x in slanted.items()}
        compliance, target = 1.0 / weight_out, out
        for part in linear:
            compliance = compliance + part.compliance
            target = target - part.value
            if part.position in slanted:
                target = target - part.compliance * slanted[part.position]
        masses = self.masses(params, weights.operands)
        moments: list[Moment | Along | None] = [None] * len(operands)
        if products:
            kappas, plus = [p.kappa for p in products], [p.plus for p in products]
            minus, value = [p.minus for p in products], sum(p.value for p in products)
            solution = bilinear.solve_multiplier(
                kappas, plus, minus, target, compliance, value=jnp.asarray(value)
            )
            multiplier = solution.lam
            distance = jnp.sum(solution.distance)
            sums = _moved(products, solution, target, compliance)
            for product, (x, w) in zip(products, sums, strict=True):
                left, right = product.term.operands
                moments[left] = Moment(product.term.sign * x, masses[left])
                moments[right] = Moment(w, masses[right])
        else:
            multiplier = target / compliance
            distance = jnp.sum(target * multiplier)
        for part in linear:
            if part.position in slanted:
                moved = slanted[part.position] + multiplier
                moved = moved if frame is None else frame.forward(moved)
                moments[part.position] = Along(part.operand, moved)
                continue
            mass = masses[part.position]
            moments[part.position] = Moment(mass * part.operand + part.step(multiplier), mass)
        out = out - multiplier / weight_out
        return Projection(tuple(moments), out if frame is None else frame.forward(out), distance)

    def along(self, params: Params, variable: Flags) -> tuple[int, ...]:
        """The variables that data multiply, and those that are only added up."""
        return tuple(
            i
            for term in params["terms"]
            for i in term.operands
            if variable[i] and sum(variable[j] for j in term.operands) == 1
        )

    def slants(self, params: Params, operands: Arrays, position: int, weights: Weights) -> Slants:
        term = next(term for term in params["terms"] if position in term.operands)
        part = _Linear(term, operands, weights)
        return Slants(part.step, part.compliance)

    def linear(self, params: Params, operands: Arrays, position: int) -> Jacobian:
        """A product with the other factor, or a permutation of elements."""
        term = next(term for term in params["terms"] if position in term.operands)
        side, map_ = term.operands.index(position), term.map
        other = operands[term.operands[1 - side]] if len(term.operands) == 2 else None
        # Indices stand in the place of a factor, too, but multiply nothing.
        factor = other if other is not None and jnp.issubdtype(other.dtype, jnp.inexact) else None
        operand = operands[position]

        def transpose(residual: Array) -> Array:
            return map_.pull(term.sign * term.backward(residual), other, side)

        def squares() -> Array:
            if factor is None:
                return jnp.broadcast_to(jnp.asarray(readers, operand.dtype), operand.shape)
            return map_.pull(jnp.ones(map_.shape, operand.dtype), jnp.square(factor), side)

        readers = map_.readers(side)
        design = None if factor is None else map_.design(side, term.sign * factor)
        if design is not None:
            design = design._replace(layout=term.layout)
        sign = term.sign if map_.plain else None
        return Jacobian(transpose, squares, readers, map_.fan, design, sign, term.layout)

    def masses(self, params: Params, weights: tuple[Any, ...]) -> tuple[Any, ...]:
        """Weight times the number of rows that read each element."""
        masses: list[Any] = [None] * len(weights)
        for term in params["terms"]:
            for side, position in enumerate(term.operands):
                if weights[position] is not None:
                    masses[position] = _mass(weights[position], term.map.readers(side))
        return tuple(masses)

    def expand(self, params: Params, shapes: Shapes, variable: Flags) -> Expansion:
        """Every operand spread over the rows that read it."""
        views: list[Callable[[Array], Array] | None] = [None] * len(shapes)
        terms = []
        for term in params["terms"]:
            private, spread = term.map.expand([variable[i] for i in term.operands])
            terms.append(dataclasses.replace(term, map=private))
            for position, view in zip(term.operands, spread, strict=True):
                views[position] = view
        return Expansion(self, {**params, "terms": tuple(terms)}, tuple(views))


def _fold(
    params: Params, position: int, producer: tuple[Rule, dict[str, Any]], layout: Layout
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

    def joined(term: Term) -> Term | None:
        together = chain((term.layout, layout, mine.layout))
        if together is None:
            return None
        operands = tuple(i + position for i in term.operands)
        return Term(term.map, operands, term.sign * mine.sign, together)

    joining = [joined(term) for term in inner["terms"]]
    if any(term is None for term in joining):
        return None
    terms = [
        new for term in params["terms"] for new in (joining if term is mine else [shifted(term)])
    ]
    return {**params, "terms": tuple(terms)}


def _mass(weight: Any, readers: Any) -> Any:
    """The weight of all copies of an operand, in the weight's own type."""
    if isinstance(readers, int):
        return weight * readers
    return weight * jnp.asarray(readers, jnp.result_type(weight))


class _Linear:
    """A term with one variable: ``sign · Σ a s``."""

    def __init__(self, term: Term, operands: Arrays, weights: Weights):
        self.term = term
        self.side = next(s for s, i in enumerate(term.operands) if weights.operands[i] is not None)
        self.position = term.operands[self.side]
        self.operand = operands[self.position]
        self.coefficient = None
        if len(term.operands) == 2:
            self.coefficient = operands[term.operands[1 - self.side]]
        self.value = term.apply(operands)
        inverse = 1 / jnp.asarray(weights.operands[self.position], self.operand.dtype)
        self.compliance = term.forward(term.map.norms(inverse, self.coefficient, self.side))

    def step(self, multiplier: Array) -> Array:
        """The weighted sum of the moves of the operand, by ``a λ/ω`` in every row."""
        step = self.term.map.pull(self.term.backward(multiplier), self.coefficient, self.side)
        return self.term.sign * step


class _Product:
    """A term with two variables: ``sign · ⟨x, w⟩``."""

    def __init__(self, term: Term, operands: Arrays, weights: Weights):
        self.term = term
        self.weights = tuple(weights.operands[i] for i in term.operands)
        x, w = (operands[i] for i in term.operands)
        self.signed = (term.sign * x, w)  # the sign goes with the left operand
        if term.map.private:
            copies = (term.map.private_copies(s, i) for i, s in enumerate(self.signed))
            by_row = (_by_row(term.map, w, i) for i, w in enumerate(self.weights))
            product = PrivateProduct.of(*copies, *by_row, terms=term.map.terms)
            self.private, value = product, product.value
            self.kappa = term.forward(product.kappa) if np.ndim(product.kappa) else product.kappa
            plus, minus = product.plus, product.minus
        else:
            if any(np.ndim(weight) for weight in self.weights):
                raise TraceError(_VARIES)
            # In units in which the metric is Euclidean.
            roots = [jnp.sqrt(jnp.asarray(weight, x.dtype)) for weight in self.weights]
            self.scaled = tuple(r * s for r, s in zip(roots, self.signed, strict=True))
            self.private, self.kappa = None, bilinear.kappa_of(*self.weights)
            if term.map.fan == 1:  # Then |X ± W|² needs no expansion, which would cancel.
                left, right = (
                    term.map.private_copies(s, i)[..., 0] for i, s in enumerate(self.scaled)
                )
                p = left * right
                plus, minus = jnp.square(left + right) / 4, jnp.square(left - right) / 4
            else:
                left, right = (term.map.rows(jnp.square(s), i) for i, s in enumerate(self.scaled))
                q = left + right
                p = term.map.apply(*self.scaled)
                plus, minus = _significant(q + 2 * p, q) / 4, _significant(q - 2 * p, q) / 4
            value = p / self.kappa
        self.plus, self.minus, self.value = (term.forward(a) for a in (plus, minus, value))

    def owned(self, copies: Sequence[Array]) -> list[Array]:
        """Private copies, weighted and in the operands' layout."""
        return [
            weight * self.term.map.gathered(x, side)
            for side, (x, weight) in enumerate(zip(copies, self.weights, strict=True))
        ]

    def shared(self, factors: bilinear.Factors) -> list[Array]:
        """The weighted sums of all projected copies, without making them."""
        spread, pull = self.term.map.spread, self.term.map.pull
        _, _, free, mix, keep = factors
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
    own = [  # by product: the multipliers and the factors, in its layout
        (p.term.backward(solution.lam), bilinear.Factors(*map(p.term.backward, factors)))
        for p, factors in zip(products, solution.factors, strict=True)
    ]
    private = [p.private for p in products if p.private is not None]
    if len(private) < len(products):
        return [
            p.shared(factors) if p.private is None else p.owned(p.private.moved(lam, factors))
            for p, (lam, factors) in zip(products, own, strict=True)
        ]
    copies = [inner.moved(*both) for inner, both in zip(private, own, strict=True)]
    lapse, slope = target - compliance * solution.lam, jnp.zeros_like(target)
    for p, inner, (x, w) in zip(products, private, copies, strict=True):
        lapse = lapse - p.term.forward(jnp.sum(x * w, -1))
        slope = slope + p.term.forward(inner.slope(x, w))
    step = settling_step(lapse, slope, compliance)
    return [
        p.owned(inner.settled(x, w, p.term.backward(step)))
        for p, inner, (x, w) in zip(products, private, copies, strict=True)
    ]


def _by_row(terms: Map, weight: Any, side: int) -> Any:
    """The weight of a row's element of an operand, where that is one element."""
    if not np.ndim(weight):
        return weight
    if terms.fan != 1:
        raise TraceError(_VARIES)
    return terms.private_copies(weight, side)[..., 0]


def _significant(square: Array, size: Array) -> Array:
    """``|X ± W|²`` from its expansion; less than the expansion's rounding error counts as zero."""
    return jnp.where(square < 8 * float(jnp.finfo(square.dtype).eps) * size, 0, square)


SUM = SumRule()


def _affine(params: Params, variable: Flags) -> bool:
    """Unless two variables are multiplied with each other."""
    return all(sum(variable[i] for i in term.operands) <= 1 for term in params["terms"])


register_fold(SumRule, _fold)
register_affine(SumRule, _affine)
