"""The linear block projection: whole operations at once, linearised.

    argmin  Σ_i ω_i |dx_i|² + Σ ω_z |dz|²    subject to    dz = Σ_i J_i dx_i − r

with J the derivative of an operation (or of several) by its operands and r what its output is asked
to move by. Three forms of it are used:

* All operands and the output move. The multiplier Y of ``(Ω_z⁻¹ + J Ω⁻¹ Jᵀ) Y = r`` is found by
  conjugate gradients (`project_jointly`): the blocks of the classical solvers.
* Only parameters move: a least-squares problem, ``(JᵀJ + ω I) dx = Jᵀ r``, which all readers
  of a parameter share (`pjax_trace.systems`): the layers of a sweep.
* Only hidden operands move, and are infinitely heavy: what they move by, scaled back, is the
  adjoint ``Jᵀ r`` (`hand_over`): what a sweep asks of the layers below.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pjax_trace.rule import Arrays, Params, Request, Rule, Weights

__all__ = ["hand_over", "project_jointly"]

# Of a target from the output, beside its size; and of operands beside the output: a power of
# two, so that an operand that stays where it is moves by exactly nothing after its mass is undone.
_TARGET_DISTANCE, _OPERAND_WEIGHT = 5e-3, 8.0


def project_jointly(
    function: Callable[..., Array],
    start: Sequence[Array],
    out: Array,
    masses: Sequence[Any],
    weight_out: Array,
    *,
    iterations: int,
    rounds: int,
    tol: float,
) -> tuple[list[Array], Array]:
    """The nearest point of the linearised graph of ``out = function(*start)``.

    Elements of the output whose weight is 0 go where the operands say. Further rounds linearise
    where the last one ended, with the start kept, and tend to a nearest point of the graph itself.

    Returns:
        The operands, and the output.
    """
    moved, multiplier = list(start), jnp.zeros_like(out)
    free = weight_out == 0
    weight_out = jnp.where(free, 1, weight_out)
    for _ in range(rounds):
        value, push = jax.linearize(function, *moved)
        transpose = jax.linear_transpose(push, *moved)

        def steps(y: Array, transpose: Any = transpose) -> list[Array]:
            return [x / w for x, w in zip(transpose(y), masses, strict=True)]

        def operator(y: Array, push: Any = push, steps: Any = steps) -> Array:
            return jnp.where(free, y, y / weight_out + push(*steps(y)))

        back = push(*(s - x for s, x in zip(start, moved, strict=True)))
        asked = jnp.where(free, 0, out - value - back)  # which keeps their multipliers at 0
        multiplier, _ = jax.scipy.sparse.linalg.cg(
            operator, asked, multiplier, tol=tol, maxiter=iterations
        )
        moved = [s + d for s, d in zip(start, steps(multiplier), strict=True)]
    moved_out = out - multiplier / weight_out
    return moved, jnp.where(free, function(*moved), moved_out)


def hand_over(rule: Rule, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...]:
    """What is asked of the operands: the adjoint, or the targets of a discrete rule.

    None for what is data, and where nothing is asked.
    """
    answers = rule.target(params, operands, request)
    if answers is not None:
        return answers
    if rule.kinked:
        return _nearby(rule, params, operands, request)
    return tuple(
        rule.linear(params, operands, i).transpose(request.residual) if variable else None
        for i, variable in enumerate(request.variable)
    )


def _nearby(rule: Rule, params: Params, operands: Arrays, request: Request) -> tuple[Any, ...]:
    """What a projection onto ``out + g residual`` moves heavy operands by, scaled back.

    g is such that the target is near beside the size of the output. With slopes of 0 and ±1 that is
    the adjoint, except that operands close to a kink are asked to cross it.
    """
    size, asked = (jnp.sqrt(jnp.mean(jnp.square(x))) for x in (request.out, request.residual))
    size, asked = (jnp.where(x > 0, x, 1.0) for x in (size, asked))
    step = _TARGET_DISTANCE * size
    weights = tuple(_OPERAND_WEIGHT if v else None for v in request.variable)
    target = request.out + step * (request.residual / asked)
    answer = rule.project(params, operands, target, Weights(weights, jnp.ones_like(request.out)))
    undone = (_OPERAND_WEIGHT + 1) / _OPERAND_WEIGHT * asked / step
    return tuple(
        None if m is None else undone * (m.first - m.mass * x)
        for m, x in zip(answer.moments, operands, strict=True)
    )
