"""What an update returns beside parameters: the state that lives on, and what was done."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pjax_trace.acceleration import Acceleration
from pjax_trace.errors import InputError, TraceError
from pjax_trace.pairs import as_pair
from pjax_trace.signature import mismatch

__all__ = ["Auxiliary", "Info", "State", "check_state", "parted", "structure_of"]


class State(eqx.Module):
    """What lives on between updates, a pytree of arrays.

    Attributes:
        steps: how many steps were taken so far.
        updates: how many updates.
        memory: those of the accelerations.
        latent: the points that the parameters are projections of, where a sweep keeps any; else
            nothing.
        point: what the solver iterates on, where updates go on from it; else nothing.
        structure: what the parameters and the accelerations must be like.
    """

    steps: Int[Array, ""]
    updates: Int[Array, ""]
    memory: tuple[Any, ...]
    latent: tuple[Array, ...]
    point: tuple[Any, ...]
    structure: Any = eqx.field(static=True)


def structure_of(shapes: Any, accelerations: Sequence[Acceleration]) -> Any:
    """What a state must have in common with parameters of these shapes and with accelerations."""
    arrays = [as_pair(jax.ShapeDtypeStruct(shape, dtype)) for _, shape, dtype in shapes]
    memory = jax.eval_shape(lambda xs: [a.init(xs) for a in accelerations], arrays)
    leaves, tree = jax.tree.flatten(memory)
    names = tuple(type(a).__name__ for a in accelerations)
    return shapes, names, (str(tree), *(x.shape for x in leaves))


def check_state(method: str, state: Any, expected: Any) -> None:
    """Check that a state belongs to parameters and accelerations like these.

    Raises:
        InputError: if it does not, or is none.
    """
    if not isinstance(state, State):
        raise InputError(f"{method}: state must come from init, but is {type(state).__name__}")
    if state.structure == expected:
        return
    if state.structure[0] != expected[0]:
        raise InputError(mismatch(method, expected[0], state.structure[0]))
    raise InputError(
        f"{method}: the state is that of other accelerations ({', '.join(state.structure[1])}), "
        f"and not of these ({', '.join(expected[1])}), or of others of these kinds; start from init"
    )


class Auxiliary:
    """What a function returns beside its objective, arrays apart.

    Args:
        arrays: the pair of the objective and the rest, with None for what is no array.
        others: the same with None for arrays.
    """

    def __init__(self, arrays: Any, others: Any):
        leaves, self._structure = jax.tree.flatten(arrays)
        self.shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
        self._others = others

    def rebuild(self, arrays: Sequence[Array]) -> Any:
        """What was returned beside the objective, with these arrays, the objective's included."""
        return eqx.combine(jax.tree.unflatten(self._structure, arrays), self._others)[1]


def parted(out: Any, name: str, has_aux: bool) -> tuple[Any, Any]:
    """The arrays among what a function returns, and everything else.

    Raises:
        TraceError: if, with ``has_aux``, that is no pair of one scalar and anything else.
    """
    if has_aux and (not isinstance(out, tuple) or len(out) != 2):
        raise TraceError(
            f"{name} must return a pair, the objective and anything else, for has_aux=True, and "
            f"not {type(out).__name__}"
        )
    if has_aux and len(jax.tree.leaves(out[0])) != 1:
        raise TraceError(
            f"{name} must return a pair whose first is the objective, one scalar, for has_aux=True"
        )
    return eqx.partition(out, lambda x: eqx.is_array(x) or isinstance(x, np.ndarray | np.generic))


class Info(eqx.Module):
    """What an update did. A pytree; ``print(info)`` shows it constraint by constraint.

    Attributes:
        gap: how far the returned consensus state is from all constraints but the losses, in the
            metric: the root of the sum of squares of ``gaps``. A sweep starts from a forward pass,
            in which constraints hold: its gaps are those of sets, on parameters after the update
            and on what is computed before it.
        distances: the gap of every constraint, in the order of ``names``.
        loss_values: what every loss adds to the objective before the update, weights and signs
            included, in the order of ``loss_names``. They add up to the function's value; what is
            masked, finite or not, does not count.
        moved: how far the last step moved what each constraint reads and makes, in the order of
            ``moved_names``; in a sweep, the parameters that it reads.
        history: the distance moved in every step, losses apart; NaN for steps not taken.
        residuals: with a ``tol``, how far from a solution every step found itself; NaN for steps
            not taken.
        steps: how many steps were taken.
        aux_arrays: those of ``aux``.
        finite: False if something was not finite; then the parameters are those that came in.
    """

    gap: Float[Array, ""]
    distances: Float[Array, "constraints"]
    loss_values: Float[Array, "losses"]
    moved: Float[Array, "moved"]
    history: Float[Array, "steps"]
    residuals: Float[Array, "steps"] | None
    steps: Int[Array, ""]
    finite: Bool[Array, ""]
    aux_arrays: tuple[Array, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    loss_names: tuple[str, ...] = eqx.field(static=True)
    moved_names: tuple[str, ...] = eqx.field(static=True)
    sources: tuple[str, ...] = eqx.field(static=True)
    suspects: tuple[str, ...] = eqx.field(static=True)
    auxiliary: Auxiliary | None = eqx.field(static=True)

    @property
    def aux(self) -> Any:
        """What the function returned beside the objective, with ``has_aux``; else None."""
        if self.auxiliary is None:
            return None
        return self.auxiliary.rebuild((self.value, *self.aux_arrays))

    @property
    def gaps(self) -> dict[str, Array]:
        """The gap of every constraint that has one, by name."""
        return dict(zip(self.names, self.distances, strict=True))

    @property
    def losses(self) -> dict[str, Array]:
        """The value of every loss, by name."""
        return dict(zip(self.loss_names, self.loss_values, strict=True))

    @property
    def value(self) -> Float[Array, ""]:
        """The value of the function before the update, the sum of all losses."""
        return jnp.sum(self.loss_values)

    @property
    def moves(self) -> dict[str, Array]:
        """How far the last step moved, by the name of the constraint that asked for it."""
        return dict(zip(self.moved_names, self.moved, strict=True))

    def __str__(self) -> str:
        lines = [f"gap {float(self.gap):.4g} after {int(self.steps)} steps"]
        names = (*self.names, *self.loss_names, *self.moved_names)
        width = max(map(len, names), default=0)
        for name, value in self.losses.items():
            lines.append(f"  loss  {name:<{width}}  {float(value):.4g}")
        for (name, value), source in zip(self.gaps.items(), self.sources, strict=True):
            lines.append(f"  gap   {name:<{width}}  {float(value):.4g}  {source}")
        if not self.names or len(self.names) < len(self.moved_names):
            for name, value in self.moves.items():
                lines.append(f"  moved {name:<{width}}  {float(value):.4g}")
        return "\n".join(lines)
