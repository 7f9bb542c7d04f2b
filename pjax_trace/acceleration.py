"""Accelerations: momentum, Anderson mixing, trust regions, averaging.

An acceleration can be used with any solver. It chooses where an update starts, and computes the new
parameters from where the update ended. Its memory, a pytree, is part of the state. If it is given
to `pjax_trace.project`, an update is that of the parameters by one batch. In a
`pjax_trace.Accelerated` solver, an update is one step, and the parameters are the solver's carry.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pjax_trace import _compat
from pjax_trace.errors import InputError, check_positive, check_range
from pjax_trace.sums import inner, squared

__all__ = [
    "Acceleration",
    "Arrays",
    "Averaging",
    "Inner",
    "Momentum",
    "Transformed",
    "TrustRegion",
    "acceleration_of",
    "dot",
    "rms",
]

Arrays = Sequence[Array]
Inner = Callable[[Any, Any], Array]


def dot(x: Arrays, y: Arrays) -> Array:
    """The inner product where every element weighs the same."""
    zero = jnp.zeros((), jnp.result_type(float))
    terms = (inner(a, b).astype(zero.dtype) for a, b in zip(x, y, strict=True))
    return functools.reduce(jnp.add, terms, zero)


def rms(arrays: Arrays) -> Float[Array, ""]:
    """The root of the mean square of all elements."""
    dtype = _compat.promoted(*arrays)
    wide = _compat.promoted(dtype, jnp.float32)  # squares of half precision overflow
    squares = jnp.asarray(sum(squared(x.astype(wide)) for x in arrays))
    return jnp.sqrt(squares / max(1, sum(x.size for x in arrays))).astype(dtype)


class Acceleration(eqx.Module):
    """The interface. All methods have a default, which changes nothing.

    The argument ``inner`` of `finish` is the inner product to measure with: within an update, that
    of the metric.

    Attributes:
        observes: whether it changes nothing, and is shown what users are given.
    """

    observes: ClassVar[bool] = False

    def init(self, parameters: Arrays) -> Any:
        """The memory before the first update."""
        return None

    def start(self, memory: Any, parameters: Arrays) -> Arrays:
        """The point that the update of these parameters starts from."""
        return parameters

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays, inner: Inner = dot
    ) -> tuple[Arrays, Any]:
        """The new parameters and memory, after an update has gone from ``start`` to ``end``."""
        return end, memory


class Momentum(Acceleration):
    """Momentum from update to update, with the velocity ``v = θ⁺ − θ``.

    Nesterov's momentum extrapolates and then updates: ``θ⁺ = update(θ + decay v)``. Polyak's heavy
    ball updates and then adds the velocity: ``θ⁺ = update(θ) + decay v``.

    Args:
        decay: in [0, 1).
        nesterov: True for Nesterov's momentum, False for the heavy ball.
        restart: whether to set the velocity to zero after the first update, and whenever the
            update goes against it, ``⟨start − end, v⟩ ≥ 0`` (adaptive restart). It is for steps of
            one problem; from batch to batch, leave it off.

    References:
        Y. Nesterov, A method of solving a convex programming problem with convergence rate O(1/k²),
        Soviet Math. Dokl. 27 (1983). B. Polyak, Some methods of speeding up the convergence of
        iteration methods, USSR Comput. Math. Math. Phys. 4 (1964). B. O'Donoghue, E. Candès,
        Adaptive restart for accelerated gradient schemes, FoCM 15 (2015), section 3.2.
    """

    decay: float = 0.9
    nesterov: bool = True
    restart: bool = False

    def __check_init__(self) -> None:
        check_range("Momentum: decay", self.decay, 0, 1, closed=False)

    def init(self, parameters: Arrays) -> Any:
        """The velocity, which is zero, and whether there was an update before."""
        return [jnp.zeros_like(x) for x in parameters], jnp.zeros((), bool)

    def start(self, memory: Any, parameters: Arrays) -> Arrays:
        """The extrapolated parameters for Nesterov's momentum, else the parameters."""
        return self._ahead(memory[0], parameters) if self.nesterov else parameters

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays, inner: Inner = dot
    ) -> tuple[Arrays, Any]:
        """The end of the update, plus the velocity for the heavy ball; and the new velocity."""
        velocity, moving = memory
        new = end if self.nesterov else self._ahead(velocity, end)
        velocity = [x - old for x, old in zip(new, parameters, strict=True)]
        if self.restart:
            step = [s - e for s, e in zip(start, end, strict=True)]
            kept = moving & (inner(step, velocity) < 0)
            velocity = [jnp.where(kept, v, jnp.zeros_like(v)) for v in velocity]
        return new, (velocity, jnp.ones_like(moving))

    def _ahead(self, velocity: Arrays, parameters: Arrays) -> Arrays:
        return [x + self.decay * v for x, v in zip(parameters, velocity, strict=True)]


class TrustRegion(Acceleration):
    """A limit on how far an update moves each array, relative to the size of the array.

    ``θ⁺ = start + min(1, radius · max(rms(start), floor) / rms(end − start)) (end − start)``

    Shorter moves are not changed. Put it in front of momentum, so that the velocity is that of the
    limited move: ``acceleration=(TrustRegion(0.02), Momentum(0.9))``. A `Sweep` has a trust region
    of its own, for every unit of a layer.

    Args:
        radius: positive; how far an array may move, as a share of its root mean square.
        floor: positive; arrays whose root mean square is smaller, such as biases that start at
            zero, count as being of this size.

    References:
        A. Conn, N. Gould, P. Toint, Trust-Region Methods, SIAM 2000. Y. You et al., Large batch
        optimization for deep learning, ICLR 2020, for radii in relation to the size of weights.

    Example:
        >>> import jax.numpy as jnp
        >>> import pjax_trace as pjax
        >>> def fit(w):
        ...     pjax.constrain(w, pjax.sets.Equal(8.0))
        >>> w, _ = pjax.project(fit, acceleration=pjax.TrustRegion(0.5), tol=0.0)(jnp.ones(3))
        >>> print(w)
        [1.5 1.5 1.5]
    """

    radius: float = 0.02
    floor: float = 1e-2

    def __check_init__(self) -> None:
        check_positive("TrustRegion: radius", self.radius)
        check_positive("TrustRegion: floor", self.floor)

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays, inner: Inner = dot
    ) -> tuple[Arrays, Any]:
        """The end of the update, or a point between its start and its end."""
        return [self._shorten(s, e) for s, e in zip(start, end, strict=True)], memory

    def _shorten(self, start: Array, end: Array) -> Array:
        size, length = jnp.maximum(rms([start]), self.floor), rms([end - start])
        factor = self.radius * size / jnp.where(length > 0, length, 1)
        return jnp.where(factor < 1, start + factor * (end - start), end)


class Averaging(Acceleration):
    """An exponential average of the parameters, which `Projected.averaged` returns.

    ``average ← d average + (1 − d) θ⁺`` with ``d = min(decay, (1 + t) / (10 + t))`` in update t,
    which makes the average forget the start quickly. The parameters themselves are not changed.

    Args:
        decay: in [0, 1).

    References:
        B. Polyak, A. Juditsky, Acceleration of stochastic approximation by averaging, SIAM J.
        Control Optim. 30 (1992), for averages of iterates.
    """

    decay: float = 0.98
    observes: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_range("Averaging: decay", self.decay, 0, 1, closed=False)

    def init(self, parameters: Arrays) -> Any:
        """The average, which is a copy of the parameters, and the number of updates."""
        return [jnp.array(x) for x in parameters], jnp.zeros((), jnp.float32)

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays, inner: Inner = dot
    ) -> tuple[Arrays, Any]:
        """The end of the update, unchanged, and the average with it included."""
        averages, count = memory
        share = jnp.maximum(1 - self.decay, 9 / (10 + count))
        averages = [a + share.astype(a.dtype) * (x - a) for a, x in zip(averages, end, strict=True)]
        return end, (averages, count + 1)

    def average(self, memory: Any) -> Arrays:
        """The average in a memory."""
        return memory[0]


_PROBES = 64  # updates until a schedule, or an accumulation of gradients, emits something


class Transformed(Acceleration):
    """A transformation of Optax, ``θ⁺ = start + transformation(end − start)``.

    What Optax calls updates is what a move is: what is to be added. An optimizer such as
    ``optax.sgd(1.0, momentum=0.9)`` takes a gradient and steps against it; it is given
    ``start − end``. Which of the two it is, is tried out on one number.

    Args:
        transformation: with ``init`` and ``update``, as Optax has them.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import pjax_trace as pjax
        >>> def fit(w):
        ...     return pjax.losses.squared_error(w, 8.0)
        >>> train = pjax.project(fit, acceleration=optax.clip_by_global_norm(0.5))
        >>> w, info = train(jnp.ones(1))
        >>> print(w)
        [1.5]
    """

    transformation: Any = eqx.field(static=True)

    def _sign(self, count: int) -> float:
        """1 if what it emits goes where it is pushed, −1 if against, tried out on ones."""
        with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
            ones = [jnp.ones(())] * count
            memory = self.transformation.init(ones)
            for _ in range(_PROBES):
                tried, memory = self.transformation.update(ones, memory, ones)
                total = sum(float(x) for x in jax.tree.leaves(tried))
                if total:
                    return 1.0 if total > 0 else -1.0
        raise InputError(
            f"project: the transformation emits nothing in {_PROBES} updates, so it cannot be told "
            "whether it steps along what it is given or against it"
        )

    def init(self, parameters: Arrays) -> Any:
        return self.transformation.init(list(parameters))

    def finish(
        self, memory: Any, parameters: Arrays, start: Arrays, end: Arrays, inner: Inner = dot
    ) -> tuple[Arrays, Any]:
        sign = self._sign(len(parameters))
        moves = [sign * (e - s) for s, e in zip(start, end, strict=True)]
        moves, memory = self.transformation.update(moves, memory, list(parameters))
        return [s + m.astype(s.dtype) for s, m in zip(start, moves, strict=True)], memory


def acceleration_of(value: Any) -> Acceleration:
    """An acceleration, or a transformation of Optax as one.

    Raises:
        InputError: for anything else.
    """
    if isinstance(value, Acceleration):
        return value
    if callable(getattr(value, "init", None)) and callable(getattr(value, "update", None)):
        return Transformed(value)
    raise InputError(
        "project: acceleration must be values such as pjax.Momentum(), or transformations of "
        f"Optax such as optax.trace(0.9), not {value!r}"
    )
