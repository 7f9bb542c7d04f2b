"""Permutation matrices, and doubly stochastic ones, which are their convex hull."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pjax_trace.sets.base import Set, matmul, sides, threshold

__all__ = ["DoublyStochastic", "Permutation"]


_each = functools.partial(jnp.vectorize, signature="(n,n)->(n,n)")


class Permutation(Set):
    """Permutation matrices: one 1 in every row and every column, and zeros.

    The nearest one maximises the sum of the elements of x at its ones, which is an assignment
    problem. It is solved by shortest augmenting paths, in n^3 operations, up to rounding. Where
    several permutations are equally near, the answer is one of them, and always the same.

    The last two axes are those of a square matrix. What is not finite becomes NaN.

    References:
        D. Crouse, On implementing 2D rectangular assignment algorithms (2016); R. Jonker, A.
        Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment
        problems (1987).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import Permutation
        >>> Permutation().project(jnp.array([[0.9, 0.8], [0.7, 0.1]]))
        Array([[0., 1.],
               [1., 0.]], dtype=float32)
    """

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point: the permutation of the largest sum."""
        sides(x, square=True)
        return x if x.size == 0 else _each(_permutation)(x)


def _scaled_costs(x: Array) -> tuple[Array, Array]:
    """How far elements are below the largest of their rows, from 0 to 2, and in which unit."""
    unit = jnp.maximum(jnp.max(jnp.abs(x)), float(jnp.finfo(x.dtype).tiny))
    cost = jnp.max(x / unit, axis=1, keepdims=True) - x / unit
    return cost - jnp.min(cost, axis=0, keepdims=True), unit


def _permutation(x: Array) -> Array:
    rows, _ = _assignment(_scaled_costs(x)[0])
    chosen = jax.nn.one_hot(rows, x.shape[0], axis=0, dtype=x.dtype)
    return jnp.where(jnp.all(jnp.isfinite(x)), chosen, jnp.nan)


def _assignment(cost: Array) -> tuple[Array, Array]:
    """The row of each column, and what is left of the costs, which are not negative.

    Adding to rows and columns makes costs of zero at the assignment, and positive ones elsewhere.
    """
    size = cost.shape[0]
    none = jnp.asarray(-1)

    def search(row: Array, rows: Array, u: Array, v: Array) -> tuple[Array, ...]:
        """Dijkstra's shortest path from a row to a column that has no row yet."""

        def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
            lengths, before, done, row, column, length = state
            through = length + cost[row] - u[row] - v
            nearer = ~done & (through < lengths)
            lengths = jnp.where(nearer, through, lengths)
            before = jnp.where(nearer, row, before)
            column = jnp.argmin(jnp.where(done, jnp.inf, lengths))
            return lengths, before, done.at[column].set(True), rows[column], column, lengths[column]

        def goes_on(state: tuple[Array, ...]) -> Array:
            return (state[3] >= 0) & ~jnp.all(state[2])

        start = jnp.full(size, jnp.inf, cost.dtype), jnp.full(size, -1), jnp.zeros(size, bool)
        zero = jnp.zeros((), cost.dtype)
        lengths, before, done, _, column, length = lax.while_loop(
            goes_on, step, (*start, row, none, zero)
        )
        return lengths, before, done, column, length

    def assign(row: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """One row more; rows that have a column may get another one."""
        rows, columns, u, v = state
        lengths, before, done, last, length = search(row, rows, u, v)
        slack = jnp.where(done, length - lengths, 0)
        # Rows of the columns that were reached; the last one has none, and index `size` is dropped.
        u = u.at[jnp.where(rows >= 0, rows, size)].add(slack, mode="drop").at[row].add(length)

        def shift(path: tuple[Array, ...]) -> tuple[Array, ...]:
            rows, columns, column, _, steps = path
            here = before[column]
            following = columns[here]
            rows, columns = rows.at[column].set(here), columns.at[here].set(column)
            return rows, columns, following, here, steps + 1

        def goes_on(path: tuple[Array, ...]) -> Array:
            return (path[3] != row) & (path[4] < size)

        path = rows, columns, last, none, jnp.asarray(0)
        rows, columns, *_ = lax.while_loop(goes_on, shift, path)
        return rows, columns, u, v - slack

    nobody, zeros = jnp.full(size, -1), jnp.zeros(size, cost.dtype)
    rows, _, u, v = lax.fori_loop(0, size, assign, (nobody, nobody, zeros, zeros))
    return rows, cost - u[:, None] - v[None, :]


class DoublyStochastic(Set):
    """Doubly stochastic matrices, ``{y : y >= 0, every row and every column sums to 1}``.

    The last two axes are those of a square matrix. The nearest point is
    ``max(x + u_i + v_j, 0)``, and u and v maximise a concave function, piecewise quadratic. They
    are found by a semismooth Newton method. It stops when all sums are 1 up to rounding, which
    takes about five steps, each with n linear equations, or after 50 steps. If x has large
    elements, an assignment problem is solved before, which leaves a problem without them.

    References:
        X. Li, D. Sun, K.-C. Toh, On the efficient computation of a generalized Jacobian of the
        projector over the Birkhoff polytope (2020).

    Example:
        >>> import jax.numpy as jnp
        >>> from pjax_trace.sets import DoublyStochastic
        >>> DoublyStochastic().project(jnp.array([[1.0, 0.5], [0.0, 0.0]])).round(2)
        Array([[0.62, 0.38],
               [0.38, 0.62]], dtype=float32)
    """

    convex: ClassVar[bool] = True

    def project(self, x: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """The nearest point, by Newton steps on its dual."""
        sides(x, square=True)
        return x if x.size == 0 else _doubly_stochastic(x)


_STEPS, _HALVINGS = 50, 24
_LARGE = 8.0  # from where on rounding is worth an assignment problem


def _centred(x: Array) -> Array:
    x = x - jnp.mean(x, axis=1, keepdims=True)
    return x - jnp.mean(x, axis=0, keepdims=True)


def _reduced(x: Array) -> Array:
    """The same problem with elements from -n to 0, however large those of x are.

    With costs of zero at the nearest permutation, u_i + v_j <= 1 there. The elements of y that are
    positive lie on cycles of such elements, and their sum over a cycle shows that none of them
    costs n or more.
    """
    cost, unit = _scaled_costs(x)
    left = jnp.maximum(_assignment(cost)[1], 0)
    # The product with the unit may overflow, which is more than n, too.
    return jnp.maximum(-left * unit, -x.shape[0])


def _doubly_stochastic(x: Array) -> Array:
    """The nearest points of matrices in ``[..., n, n]``."""
    plain = _each(_centred)(x)
    # What is added to a row or a column does not matter; without it, there is less rounding.
    large = ~(jnp.max(jnp.abs(plain)) <= _LARGE)
    return _each(_newton)(lax.cond(large, lambda: _each(_reduced)(x), lambda: plain))


def _newton(x: Array) -> Array:
    size = x.shape[0]
    one = jnp.ones((1, 1), x.dtype)
    enough = (8 + size) * float(jnp.finfo(x.dtype).eps)

    def point(u: Array, v: Array) -> Array:
        return jnp.maximum(x + u[:, None] + v[None, :], 0)

    def missing(y: Array) -> Array:
        return jnp.concatenate([1 - jnp.sum(y, axis=1), 1 - jnp.sum(y, axis=0)])

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        u, v, _, count = state
        y = point(u, v)
        slope = missing(y)
        on = (y > 0).astype(x.dtype)
        shift = jnp.clip(0.1 * jnp.max(jnp.abs(slope)), 1e-4, 1.0)
        rows, columns = on.sum(1) + shift, on.sum(0) + shift
        # The equations for du and dv, [[rows, on], [on^T, columns]], without du.
        shared = on / rows[:, None]
        matrix = jnp.diag(columns) - matmul(on.T, shared)
        dv = jnp.linalg.solve(matrix, slope[size:] - matmul(shared.T, slope[:size]))
        du = (slope[:size] - matmul(on, dv)) / rows
        move = jnp.concatenate([du, dv])

        def ascends(t: Array) -> Array:
            return jnp.vdot(missing(point(u + t * du, v + t * dv)), move) > 0

        def halve(i: Array, t: Array) -> Array:
            longer = t + 0.5 ** (i + 1).astype(x.dtype)
            return jnp.where(ascends(longer), longer, t)

        t = lax.fori_loop(0, _HALVINGS, halve, jnp.zeros((), x.dtype))
        t = jnp.where(ascends(jnp.ones((), x.dtype)), 1, t)
        u, v = u + t * du, v + t * dv
        # The best u for this v, then the best v.
        u = -threshold(x + v[None, :], one)[:, 0]
        v = -threshold((x + u[:, None]).T, one)[:, 0]
        return u, v, jnp.max(jnp.abs(missing(point(u, v)))), count + 1

    def goes_on(state: tuple[Array, ...]) -> Array:
        return (state[2] > enough) & (state[3] < _STEPS)

    zeros = jnp.zeros(size, x.dtype)
    far = jnp.full((), jnp.inf, x.dtype)
    u, v, *_ = lax.while_loop(goes_on, step, (zeros, zeros, far, jnp.asarray(0)))
    return point(u, v)
