"""The least-squares problems of a sweep: all that is asked of parameters, put together.

A constraint that multiplies a parameter is rows of equations with one matrix for all features, in
which biases are columns of ones. All constraints that read a parameter are rows of one problem.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.index import Index
from pjax_trace.linear import Design, Implicit, Jacobian, Made
from pjax_trace.sums import squared
from pjax_trace.view import Variable

__all__ = [
    "Columns",
    "Element",
    "Named",
    "Reader",
    "System",
    "bias_columns",
    "systems",
    "weight_columns",
]


class Columns(eqx.Module):
    """Elements of a parameter as the unknown of linear equations, ``matrix @ unknown = target``.

    Attributes:
        matrix: the coefficients, perhaps not made as an array.
        squares: the sum of the squares of the elements, 0 for what is only added.
        variable: the parameter.
        key: which of its elements these are, in which order; the same for all readers of the same.
        index: the same, to tell whether others overlap.
        place: from a step of the unknown to one of the parameter.
        arrange: from an array of the parameter's shape to the unknown's.
        count: how many elements there are; 0 for what is only added, of which sizes say nothing.
    """

    matrix: Implicit
    squares: Float[Array, ""]
    variable: Variable = eqx.field(static=True)
    key: Any = eqx.field(static=True)
    index: Index = eqx.field(static=True)
    place: Callable[[Array], Array] = eqx.field(static=True)
    arrange: Callable[[Array], Array] = eqx.field(static=True)
    count: int = eqx.field(static=True)

    @property
    def constant(self) -> bool:
        """Whether it is only added: all coefficients are ±1."""
        return not self.count


class Element(eqx.Module):
    """A parameter each of whose elements is projected by itself, all else held.

    Attributes:
        gradient: ``Jᵀ residual``, in the parameter's shape.
        square: the diagonal of ``JᵀJ``.
        readers: how many scalar equations read each element.
        variable: the parameter.
        fan: the terms of an equation.
        label: the constraint that asks, for reports.
    """

    gradient: Float[Array, "..."]
    square: Float[Array, "..."]
    readers: Float[Array, "..."]
    variable: Variable = eqx.field(static=True)
    fan: int = eqx.field(static=True)
    label: Any = eqx.field(static=True)

    def plus(self, other: "Element") -> "Element":
        """What both ask for."""
        return Element(
            self.gradient + other.gradient,
            self.square + other.square,
            self.readers + other.readers,
            self.variable,
            max(self.fan, other.fan),
            self.label,
        )


class Reader(eqx.Module):
    """What one constraint asks of its parameters, to first order in them and all else held.

    Attributes:
        target: the right side that all columns share.
        columns: the parameters that it reads.
        trust_factor: how much farther they may move in a step than a dense layer's weights.
        label: the constraint that asks, for reports.
    """

    target: Float[Array, "rows features"]
    columns: tuple[Columns, ...]
    trust_factor: float = eqx.field(static=True)
    label: Any = eqx.field(static=True)


class System(eqx.Module):
    """One least-squares problem: all readers of the same parameters.

    Attributes:
        target: of all rows.
        columns: one for each set of elements, the matrix having the rows of all readers.
        rows: how many scalar equations of a feature there are.
        trust_factor: the largest of the readers'.
        label: the constraint that asks first, for reports.
    """

    target: Float[Array, "rows features"]
    columns: tuple[Columns, ...]
    rows: Any
    trust_factor: float = eqx.field(static=True)
    label: Any = eqx.field(static=True)


class Named(NamedTuple):
    """Elements of a parameter as an operand sees them: ``scale`` times those at some places."""

    variable: Variable
    places: Index
    scale: Array | None = None


def weight_columns(named: Named, operand: Array, jacobian: Jacobian) -> Columns | None:
    """A factor of a product as columns; None if an element may be read twice.

    Args:
        named: the parameter's element that each element of the factor is.
        operand: the factor.
        jacobian: of the product, with a design.
    """
    (variable, index, scale), design = named, jacobian.design
    assert design is not None
    if not index.once or not operand.size:
        return None
    put, seen = _moves(index, variable.shape)

    def place(step: Array) -> Array:
        return put(design.restore(step))

    def arrange(x: Array) -> Array:
        return design.arrange(seen(x))

    matrix = design.matrix()
    matrix = matrix if isinstance(matrix, Implicit) else Made(matrix)
    axes = index.transpose(design.columns), index.transpose(design.own)
    key = (index.offset, *(x.merged for x in axes))
    wide = _compat.promoted(operand.dtype, jnp.float32)  # squares of half precision overflow
    squares = squared(operand.astype(wide))
    columns = Columns(matrix, squares, variable, key, index, place, arrange, operand.size)
    return _scaled(columns, scale)


def bias_columns(named: Named, jacobian: Jacobian, design: Design, dtype: Any) -> Columns | None:
    """An addend as a column of ones beside the columns of a design; None if it is no such.

    It must be the same in every row, and have an element of its own for every feature.

    Args:
        named: the parameter's element that each element of the addend is.
        jacobian: of the sum by the addend: a permutation.
        design: of the sum by a factor of a product.
        dtype: of the sum.
    """
    variable, there, scale = named
    if jacobian.layout is not None:
        there = there.permuted(jacobian.layout)
    if there is not None and design.layout is not None:
        there = there.permuted(design.layout, back=True)
    if there is None or there.shape != design.shape:
        return None
    if any(there.strides[axis] and there.shape[axis] != 1 for axis in design.rows):
        return None
    own = there.transpose(design.features)
    if not own.once:
        return None
    put, seen = _moves(own, variable.shape)

    def place(step: Array) -> Array:
        return put(step.reshape(own.shape))

    def arrange(x: Array) -> Array:
        return seen(x).reshape((1, -1))

    rows = math.prod(design.shape[axis] for axis in design.rows)
    ones = Made(jnp.full((rows, 1), jacobian.sign or 1.0, dtype))
    zero, key = jnp.zeros((), dtype), (own.offset, (), own.merged)
    return _scaled(Columns(ones, zero, variable, key, own, place, arrange, 0), scale)


def _moves(index: Index, shape: tuple[int, ...]) -> tuple[Callable, Callable]:
    """To the places in an array of a shape that an index names, 0 elsewhere; and from there."""
    layout = index.layout(shape)
    if layout is not None:
        return layout.backward, layout.forward
    cells = index.numbers

    def put(x: Array) -> Array:
        flat = jnp.zeros(math.prod(shape), x.dtype).at[cells].set(x.ravel())
        return flat.reshape(shape)

    return put, lambda x: x.ravel()[cells].reshape(index.shape)


def _scaled(columns: Columns, scale: Array | None) -> Columns:
    """Columns of a scaled parameter as those of the parameter itself."""
    if scale is None:
        return columns
    inverse = jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))
    matrix = jax.tree.map(lambda x: scale.astype(x.dtype) * x, columns.matrix)
    squares = columns.squares * jnp.square(inverse).astype(columns.squares.dtype)
    return dataclasses.replace(columns, matrix=matrix, squares=squares)


class _Stacked(Implicit):
    """The rows of several matrices, one below the other."""

    parts: tuple[Implicit, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def squares(self) -> Float[Array, "columns"]:
        return functools.reduce(jnp.add, (part.squares() for part in self.parts))

    def total(self) -> Float[Array, ""]:
        return functools.reduce(jnp.add, (part.total() for part in self.parts))

    def transposed_times(self, target: Array) -> Array:
        stops = np.cumsum([part.shape[0] for part in self.parts])[:-1]
        targets = jnp.split(target, stops)
        products = (p.transposed_times(t) for p, t in zip(self.parts, targets, strict=True))
        return functools.reduce(jnp.add, products)

    def take(self, rows: np.ndarray) -> Array:
        """The rows in the parts that they belong to; they must ascend."""
        starts = np.cumsum([0, *(part.shape[0] for part in self.parts)])
        chosen = []
        for part, start, stop in zip(self.parts, starts, starts[1:], strict=False):
            own = rows[(rows >= start) & (rows < stop)] - start
            chosen.append(part.take(own))
        return jnp.concatenate(chosen)

    def made(self) -> Array:
        return jnp.concatenate([part.made() for part in self.parts])


def systems(
    readers: Sequence[Reader], elements: Sequence[Element]
) -> tuple[list[System], list[Element]]:
    """The least-squares problems that readers make together, and what is left element by element.

    Readers that share elements of a parameter belong to one problem. Where they see them in other
    ways (a matrix and its transpose), or overlap in part, those elements are projected one by one,
    all readers together. What is asked element by element of a parameter that is a column, too, is
    part of its problem: its squares are then averaged over the features.
    """
    kept = _kept_keys(readers, {e.variable for e in elements})
    single: dict[Variable, Element] = {}
    for e in [*elements, *(x for r in readers for x in _dropped(r, kept))]:
        single[e.variable] = single[e.variable].plus(e) if e.variable in single else e
    remaining = [
        dataclasses.replace(r, columns=tuple(c for c in r.columns if c.key in kept[c.variable]))
        for r in readers
    ]
    joined = [_joined(group, single) for group in _groups([r for r in remaining if r.columns])]
    taken = {c.variable for system in joined for c in system.columns}
    return joined, [e for v, e in single.items() if v not in taken]


def _kept_keys(readers: Sequence[Reader], elementwise: set[Variable]) -> dict[Variable, set[Any]]:
    """Which columns of every parameter stay columns.

    All of them, if each element is in one of them only. Otherwise those that most rows see, if they
    are the whole parameter.
    """
    indices: dict[Variable, dict[Any, Index]] = {}
    rows: dict[Any, int] = {}
    for r in readers:
        for c in r.columns:
            indices.setdefault(c.variable, {})[c.key] = c.index
            place = c.variable, c.key
            rows[place] = rows.get(place, 0) + len(r.target)
    kept: dict[Variable, set[Any]] = {}
    for variable, seen in indices.items():
        pairs = itertools.combinations(seen.values(), 2)
        if variable not in elementwise and all(a.disjoint(b) for a, b in pairs):
            kept[variable] = set(seen)
            continue
        size = math.prod(variable.shape)
        whole = [key for key, index in seen.items() if math.prod(index.shape) == size]
        whole.sort(key=lambda key, v=variable: -rows[v, key])
        kept[variable] = set(whole[:1])
    return kept


def _dropped(reader: Reader, kept: dict[Variable, set[Any]]) -> list[Element]:
    """The columns of a reader that are none any more, element by element."""
    dropped = []
    for c in reader.columns:
        if c.key in kept[c.variable]:
            continue
        gradient = c.matrix.transposed_times(reader.target)
        square = jnp.broadcast_to(c.matrix.squares()[:, None], gradient.shape)
        readers = jnp.full_like(gradient, len(reader.target))
        said = c.place(gradient), c.place(square), c.place(readers)
        dropped.append(Element(*said, c.variable, c.matrix.shape[1], reader.label))
    return dropped


def _groups(readers: Sequence[Reader]) -> list[list[Reader]]:
    """The readers that share columns, directly or through others, in order."""
    groups: list[tuple[set[Any], list[Reader]]] = []
    for r in readers:
        own = {(c.variable, c.key) for c in r.columns}
        sharing = [g for g in groups if not own.isdisjoint(g[0])]
        if not sharing:
            groups.append((own, [r]))
            continue
        first = sharing[0]
        for other in sharing[1:]:
            first[0].update(other[0])
            first[1].extend(other[1])
            groups.remove(other)
        first[0].update(own)
        first[1].append(r)
    return [readers for _, readers in groups]


def _joined(readers: Sequence[Reader], single: dict[Variable, Element]) -> System:
    """One problem of several readers, and of what is asked of their parameters by elements."""
    unknowns: dict[Any, Columns] = {}
    for c in (c for r in readers for c in r.columns):
        unknowns.setdefault((c.variable, c.key), c)
    extra = [(place, single[place[0]]) for place in unknowns if place[0] in single]
    trust_factor, label = max(r.trust_factor for r in readers), readers[0].label
    rows = sum(len(r.target) for r in readers)
    if len(readers) == 1 and not extra:
        return System(readers[0].target, readers[0].columns, rows, trust_factor, label)
    # Blocks of rows: their target, and the matrices of the unknowns that are in them.
    blocks: list[tuple[Array, dict[Any, Implicit]]] = [
        (r.target, {(c.variable, c.key): c.matrix for c in r.columns}) for r in readers
    ]
    for place, e in extra:
        c = unknowns[place]
        # Rows whose products are the mean of the squares, and what is asked.
        roots = jnp.sqrt(jnp.mean(c.arrange(e.square), 1))
        inverse = jnp.where(roots > 0, 1 / jnp.where(roots > 0, roots, 1), 0)
        blocks.append((inverse[:, None] * c.arrange(e.gradient), {place: Made(jnp.diag(roots))}))
        rows = rows + jnp.mean(e.readers)

    def stacked(place: Any, columns: int) -> _Stacked:
        return _Stacked(
            tuple(
                own[place] if place in own else Made(jnp.zeros((len(t), columns), t.dtype))
                for t, own in blocks
            )
        )

    columns = tuple(
        dataclasses.replace(c, matrix=stacked(place, c.matrix.shape[1]))
        for place, c in unknowns.items()
    )
    wide = _compat.promoted(*(t for t, _ in blocks))
    target = jnp.concatenate([t.astype(wide) for t, _ in blocks])
    return System(target, columns, rows, trust_factor, label)
