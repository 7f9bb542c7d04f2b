"""Primitives that are sums of terms: add, sub, mul, div, reduce_sum and dot_general.

With data in the place of an operand, the elementwise ones are views.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from pjax_trace import _compat
from pjax_trace.registry import Case, register_rule
from pjax_trace.rule import Flags, Params, Shapes
from pjax_trace.rules.maps import Contraction, identity_map
from pjax_trace.rules.quotient import QUOTIENT
from pjax_trace.rules.sum_rule import SUM, Term
from pjax_trace.translation import Affine, Outcome, Project, Range, Rewrite, Translation


def _sum(*terms: Term, part: Any = None) -> Project:
    return Project(SUM, {"terms": terms}, part)


def _pointwise(
    function: Callable[..., Array],
    doubled: Callable[[Array], Array],
    project: Callable[[tuple[int, ...], Any], Project],
    *,
    offset: bool,
    sign: float = 1.0,
    views: Callable[[Sequence[bool]], bool] = lambda variable: not all(variable),
) -> Callable[[dict[str, Any], Sequence[Any], Sequence[bool]], Outcome]:
    """The translation of an elementwise operation on two operands.

    JAX lets operands of size 1 stand for larger ones here; that is made explicit first.

    Args:
        function: the operation.
        doubled: the operation on one value twice, which is another one.
        project: from the operands' shape, and how to compute a part, to the constraint.
        offset: whether data shift the variable, instead of scaling it.
        sign: of the second operand, if they do.
        views: from which operands are variables to whether it is a view.
    """

    def translate(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
        x, y = operands
        if x is y:
            return Rewrite(lambda a, _: doubled(a))
        shapes = [x.shape, y.shape]

        def part(one: Range) -> Any:
            # Of the same parts, but for what is repeated along the axis.
            sizes = [shape[one.axis] if shape else 1 for shape in shapes]
            return params, tuple(one if size == max(sizes) else None for size in sizes)

        if views(variable):
            # A zero factor reads nothing.
            datum = operands[1 - list(variable).index(True)]
            uniform = offset or math.prod(datum.shape) == 1
            return Affine(
                total=offset,
                offset=offset,
                scales=not offset or (sign < 0 and variable[1]),
                uniform=uniform,
                pointwise=True,
                part=part,
            )
        if x.shape != y.shape:
            return Rewrite(lambda *xs: function(*jnp.broadcast_arrays(*xs)))
        return project(x.shape, part)

    return translate


def _addition(function: Callable[..., Array], sign: float) -> Translation:
    """Add (sign 1) and sub (sign −1)."""

    def project(shape: tuple[int, ...], part: Any) -> Project:
        plain = identity_map(shape)
        return _sum(Term(plain, (0,)), Term(plain, (1,), sign), part=part)

    translate = _pointwise(function, lambda x: (1 + sign) * x, project, offset=True, sign=sign)
    return Translation(translate, of=SUM)


_multiply = _pointwise(
    lax.mul,
    lax.square,
    lambda shape, part: _sum(Term(identity_map(shape, 2), (0, 1)), part=part),
    offset=False,
)


def _multiplication(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """mul: one product for every element, in one dtype."""
    wanted = params.get("out_dtype")
    if wanted is not None and any(x.dtype != wanted for x in operands):
        return Rewrite(lambda *xs: lax.mul(*(x.astype(wanted) for x in xs)))
    return _multiply(params, operands, variable)


# By data a scaling, by a variable a product with the roles changed; a value over itself is 1.
_division = _pointwise(
    lax.div,
    jnp.ones_like,
    lambda shape, part: Project(QUOTIENT, {}, part),
    offset=False,
    views=lambda variable: not variable[1],
)


def _reduction(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """reduce_sum: one term with coefficients 1; over no axes it is the operand."""
    if not params["axes"]:
        return Rewrite(lambda x: x)
    whole = identity_map(operands[0].shape)
    kept = tuple(label for label in whole.lhs if label not in params["axes"])
    return _sum(Term(dataclasses.replace(whole, out=kept), (0,)))


def _contraction(params: Params, shapes: Shapes) -> Contraction:
    """A dot_general with any dimension numbers."""
    (contract_l, contract_r), (batch_l, batch_r) = params["dimension_numbers"]
    pairs = dict(zip((*batch_r, *contract_r), (*batch_l, *contract_l), strict=True))
    left = tuple(range(len(shapes[0])))
    free = [axis for axis in range(len(shapes[1])) if axis not in pairs]
    # The labels of the right operand, by axis.
    labels = {**pairs, **{axis: len(left) + i for i, axis in enumerate(free)}}
    right = tuple(labels[axis] for axis in range(len(shapes[1])))
    out = (
        *batch_l,
        *(label for label in left if label not in pairs.values()),
        *(labels[axis] for axis in free),
    )
    sizes = (*shapes[0], *(shapes[1][axis] for axis in free))
    return Contraction(left, right, out, sizes, params.get("precision"))


def _plainer_product(params: Params, operands: Sequence[Any]) -> Rewrite | None:
    """One dtype; and a product of a value with itself, row by row, is a sum of squares."""
    dtypes = [jnp.dtype(x.dtype) for x in operands]
    wanted = jnp.dtype(params.get("preferred_element_type") or _compat.promoted(*dtypes))
    if set(dtypes) != {wanted}:
        wide = _compat.promoted(*dtypes, wanted)
        numbers, precision = params["dimension_numbers"], params.get("precision")
        # Mixed-precision algorithms name dtypes of their own.
        if isinstance(precision, (str, lax.DotAlgorithm, lax.DotAlgorithmPreset)):
            precision = None

        def widened(x: Array, w: Array) -> Array:
            product = lax.dot_general(x.astype(wide), w.astype(wide), numbers, precision)
            return product.astype(wanted)

        return Rewrite(widened)
    (axes, axes_r), (batch, batch_r) = (map(tuple, pair) for pair in params["dimension_numbers"])
    same = operands[0] is operands[1] and axes == axes_r and batch == batch_r
    if not same or len(axes + batch) < len(operands[0].shape):
        return None
    order = tuple(sorted(batch).index(axis) for axis in batch)
    return Rewrite(lambda x, _: jnp.transpose(jnp.sum(lax.square(x), axes), order))


def _product(params: Params, operands: Sequence[Any], variable: Flags) -> Outcome:
    """dot_general: one product."""
    plainer = _plainer_product(params, operands)
    if plainer is not None:
        return plainer
    contraction = _contraction(params, [x.shape for x in operands])

    def part(one: Range) -> Any:
        # Of parts of the operands that have the axis: one of them, or both if it is batched.
        label = contraction.out[one.axis]
        sides = (contraction.labels(side) for side in (0, 1))
        return params, tuple(
            one._replace(axis=labels.index(label)) if label in labels else None for labels in sides
        )

    return _sum(Term(contraction, (0, 1)), part=part)


_DATA = np.linspace(-1, 2, 6, dtype=np.float32)

register_rule(
    lax.add_p,
    _addition(lax.add, 1.0),
    cases=(
        Case(lambda x, y: x + y, ((3,), (3,))),
        Case(lambda x, y: x + y, ((2, 1), (1, 2))),
        Case(lambda x, w, b: jnp.einsum("nk,nk->n", x, w) + b, ((2, 2), (2, 2), (2,))),
        Case(lambda x: x + jnp.asarray(_DATA, x.dtype), ((6,),)),
    ),
)
register_rule(
    lax.sub_p,
    _addition(lax.sub, -1.0),
    cases=(
        Case(lambda x, y: x - y, ((3,), (3,))),
        Case(lambda x, y, z: x - (y - z), ((2,), (2,), (2,))),
    ),
)
register_rule(
    lax.mul_p,
    Translation(_multiplication, of=SUM, associative=True),
    cases=(
        Case(lambda x, y: x * y, ((3,), (3,))),
        Case(lambda x, y: x * y, ((2, 1), (1, 2))),
        Case(lambda x: x * jnp.asarray(_DATA, x.dtype), ((6,),)),
    ),
)
register_rule(
    lax.div_p,
    Translation(_division, of=SUM),
    cases=(
        Case(lambda x, y: x / y, ((3,), (3,))),
        Case(lambda y: jnp.asarray(_DATA, y.dtype) / y, ((6,),)),
        Case(lambda x, y: x / y, ((2, 1), (1, 2))),
        Case(lambda x: x / 3.0, ((3,),)),
    ),
)
register_rule(
    lax.reduce_sum_p,
    Translation(_reduction, of=SUM),
    cases=(
        Case(lambda x: jnp.sum(x, 1), ((2, 3),)),
        Case(lambda x: jnp.mean(x), ((2, 2),)),
        Case(lambda x: lax.reduce_sum_p.bind(x, axes=(), out_sharding=None), ((2,),)),
    ),
)
register_rule(
    lax.dot_general_p,
    Translation(_product, of=SUM),
    cases=(
        Case(jnp.matmul, ((2, 3), (3, 2))),
        Case(jnp.dot, ((3,), (3,))),
        Case(lambda x: x @ jnp.asarray(_DATA.reshape(2, 3), x.dtype), ((2, 2),)),
        Case(lambda x, w, b: x @ w + b[None], ((2, 2), (2, 3), (3,))),
        Case(lambda x, w: jnp.einsum("bij,bkj->kib", x, w), ((2, 2, 1), (2, 1, 1))),
    ),
)
