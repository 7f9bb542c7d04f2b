"""More random programs for the fuzz: what people write besides plain networks.

Variables that are multiplied with themselves, derivatives inside, groups, solves by data, complex
numbers, branches, loops, and losses of the user's own.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.programs import (
    FAMILIES,
    Array,
    Drawn,
    Generator,
    Op,
    along,
    literal,
    pair,
    plain,
    with_data,
)

__all__ = ["MoreGenerator"]


def _matrix(x: Array) -> bool:
    return x.ndim == 2


def _square(x: Array) -> bool:
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def _stack(x: Array) -> bool:
    return x.ndim == 3


def _within(low: float, high: float) -> Callable[[Array], bool]:
    return lambda x: bool(np.all((x >= low) & (x <= high)))


def _rows(x: Array) -> bool:
    """Whether it has several elements along its first axis."""
    return x.ndim > 0 and x.shape[0] > 1


def _wide(x: Array) -> bool:
    """Whether it has several elements along its last axis."""
    return x.ndim > 0 and x.shape[-1] > 1


def filled(code: str, **codes: str) -> str:
    """Code with other code for letters that stand alone; ``x.T`` is left as it is."""
    return re.sub(r"(?<![.\w])([A-Z])\b", lambda match: codes.get(match[1], match[1]), code)


def _one_of(codes: Sequence[str], fits: Callable[[Array], bool] = lambda x: True) -> Any:
    """One of several operations on any variable that fits."""

    def draw(g: Generator) -> Drawn:
        return g.choice(codes), [g.pick(fits)]

    return draw


def _two_of(codes: Sequence[str], fits: Callable[[Array], bool] = lambda x: True) -> Any:
    """One of several operations on two variables of one shape."""

    def draw(g: Generator) -> Drawn:
        first = g.pick(fits)
        return g.choice(codes), [first, g.like(first)]

    return draw


# A variable with itself, or with a function of itself


def _edges(g: Generator) -> Drawn:
    """Rows times other rows of the same array, as of the two ends of edges."""
    name = g.pick(_rows)
    ends = [literal(g.random.integers(0, g.values[name].shape[0], 3)) for _ in range(2)]
    code = g.choice(["{0}[A] * {0}[B]", "jnp.sum({0}[A] * {0}[B], -1)", "{0}[A] - {0}[B]"])
    return filled(code, A=ends[0], B=ends[1]), [name]


SELVES = [
    _one_of(
        [
            "{0} * (1.0 - {0})", "{0} * jnp.tanh({0})", "{0} * jnp.exp(-jnp.abs({0}))",
            "{0} / (1.0 + jnp.abs({0}))", "{0} * jnp.sum({0})", "{0} * {0} * {0}",
            "{0} - {0} * jnp.square({0})", "{0} * jnp.sin({0} + 0.5)", "jnp.vdot({0}, {0})",
            "{0} / (jnp.sum({0} * {0}) + 0.5)", "{0} * jnp.where({0} > 0.0, {0}, 0.1)",
            "{0} / jnp.sqrt(jnp.mean(jnp.square({0})) + 0.1)",
        ]
    ),
    _one_of(
        [
            "{0} @ {0}.T", "{0}.T @ {0}", "1.5 * {0} - 0.5 * {0} @ {0}.T @ {0}",
            "({0} - jnp.mean({0}, 0)).T @ ({0} - jnp.mean({0}, 0))",
            "jnp.einsum('ij,kj->ik', {0}, {0})", "jnp.einsum('ij,ik->jk', {0}, {0})",
            "jnp.einsum('ij,ij->i', {0}, {0})", "jax.nn.softmax({0} @ {0}.T, -1) @ {0}",
            "jnp.sum(jnp.square({0}[:, None] - {0}[None]), -1)",
            "{0} / jnp.sqrt(jnp.sum({0} * {0}, -1, keepdims=True) + 0.1)",
        ],
        _matrix,
    ),
    _one_of(["{0} @ {0}", "{0} @ {0}.T @ {0}", "jnp.trace({0} @ {0})", "{0} * {0}.T"], _square),
    _one_of(
        [
            "jnp.einsum('bij,bkj->bik', {0}, {0})", "jnp.einsum('bij,bij->b', {0}, {0})",
            "jnp.einsum('bij,bkj->bik', jax.nn.softmax({0}, 1), {0})",
        ],
        _stack,
    ),
    _one_of(
        ["jnp.outer({0}, {0})", "jnp.dot({0}, {0})", "jnp.convolve({0}, {0}, 'same')"],
        lambda x: x.ndim == 1,
    ),
    _edges,
    _edges,
]  # fmt: skip


# Groups


def _groups(g: Generator, count: int, groups: int) -> str:
    """The numbers of the groups of elements; none is empty."""
    numbers = np.concatenate([np.arange(groups), g.random.integers(0, groups, max(count, groups))])
    return literal(g.random.permutation(numbers[:count]))


def _segment(g: Generator) -> Drawn:
    name = g.pick(_rows)
    index = _groups(g, g.values[name].shape[0], 2)
    code = g.choice(
        [
            "jax.ops.segment_max({0}, I, 2)", "jax.ops.segment_min({0}, I, 2)",
            "jax.ops.segment_max({0}, I, 2)[I] - {0}",
            "jax.ops.segment_sum({0}, I, 2) / jax.ops.segment_sum(jnp.ones_like({0}), I, 2)",
            # A softmax by segments, with and without the maximum in front.
            "(lambda e: e / jax.ops.segment_sum(e, I, 2)[I])"
            "(jnp.exp({0} - jax.ops.segment_max({0}, I, 2)[I]))",
            "(lambda e: e / jax.ops.segment_sum(e, I, 2)[I])(jnp.exp(0.5 * {0}))",
        ]
    )  # fmt: skip
    return filled(code, I=index), [name]


def _scatter(g: Generator) -> Drawn:
    first = g.pick(_rows)
    shape = g.values[first].shape
    second = g.other(lambda x: x.ndim == len(shape) and x.shape[1:] == shape[1:])
    index = literal(g.random.integers(0, shape[0], g.values[second].shape[0]))
    onto = g.choice(["{0}", "jnp.zeros_like({0})"])
    code = f"{onto}.at[I].{g.choice(['max', 'min'])}({{1}})"
    return filled(code, I=index), [first, second]


def _ragged(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim == 2 and x.shape[0] > 1)
    rows, inner = g.values[name].shape
    size = int(g.random.integers(0, rows + 1))
    sizes = literal(np.array([size, rows - size]))
    if g.chance(0.4):
        experts, count = "{1}", 2 * inner * 2
        return (
            f"jax.lax.ragged_dot({{0}}, jnp.resize({experts}, {(2, inner, 2)}), {sizes})",
            [name, g.other(lambda x: x.size >= min(count, 6))],
        )
    return f"jax.lax.ragged_dot({{0}}, {{1}}, {sizes})", [name, g.input((2, inner, 2), False)]


GROUPS = [_segment, _segment, _segment, _scatter, _scatter, _ragged]


# Solves by data


def _solve(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim in (1, 2) and x.shape[0] in (2, 3))
    n = g.values[name].shape[0]
    near = np.round(2 * np.eye(n) + 0.3 * g.random.normal(size=(n, n)), 2).astype(np.float32)
    matrix = g.argument(near, False) if g.chance(0.5) else None
    a, operands = ("{1}", [name, matrix]) if matrix else (literal(near), [name])
    code = g.choice(
        [
            "jnp.linalg.solve(A, {0})", "jnp.linalg.inv(A) @ {0}", "jnp.linalg.pinv(A) @ {0}",
            "jax.scipy.linalg.solve_triangular(A, {0}, lower=True)",
            "jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(A @ A.T), True), {0})",
            "jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(A @ A.T), {0})",
            "jax.scipy.linalg.solve(A @ A.T, {0}, assume_a='pos')",
            "jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(A), {0})",
            "jnp.linalg.lstsq(A[:, :-1], {0})[0]", "jnp.linalg.lstsq(A, {0})[0]",
            "jnp.linalg.pinv(A[:, :-1]) @ {0}",
            "jnp.linalg.solve(A.T @ A + jnp.eye(N), A.T @ {0})",
            "jnp.linalg.solve(A, jnp.tanh({0}))", "jnp.linalg.cholesky(A @ A.T) @ {0}",
        ]
    )  # fmt: skip
    return filled(code, A=a, N=str(n)), operands


# Special functions


SPECIAL = [
    plain("jax.lax.lgamma({0})", _within(0.2, 8)),
    plain("jax.lax.digamma({0})", _within(0.3, 8)),
    plain("jax.scipy.special.gammaln(0.5 + jnp.square({0}))"),
    plain("jax.lax.digamma(1.0 + jax.nn.softplus({0}))"),
    along("jax.lax.cumlogsumexp({0}, AXIS)"),
    along("jax.lax.cumlogsumexp({0}, AXIS, reverse=True)"),
    pair("jnp.arctan2({0}, {1})"),
    pair("jnp.arctan2({0}, 0.5 + jnp.square({1}))"),
    with_data("jnp.arctan2({0}, {1})", positive=True),
    with_data("jnp.arctan2({1}, {0})"),
    _one_of(["jax.lax.reduce_precision({0}, 8, 7)", "{0} - jax.lax.reduce_precision({0}, 5, 10)"]),
]


# Derivatives inside


def _field(g: Generator) -> Drawn:
    """Derivatives by a coordinate, as in a physics-informed network."""
    name = g.pick(lambda x: x.ndim < 3)
    points = g.input((2,), False)
    inner = g.choice(
        [
            "jnp.sum(jnp.tanh(t * {0}))",
            "jnp.mean(jnp.sin(t + {0}))",
            "jnp.sum(t * {0} * jnp.tanh(t))",
        ]
    )
    code = g.choice(
        [
            "jax.vmap(jax.grad(lambda t: F))({1})",
            "jax.vmap(jax.grad(jax.grad(lambda t: F)))({1})",
            "jax.vmap(lambda s: jax.jvp(lambda t: F, (s,), (1.0,))[1])({1})",
            "jax.vmap(jax.value_and_grad(lambda t: F))({1})[1]",
        ]
    )
    return filled(code, F=inner), [name, points]


AUTODIFF = [
    _field,
    _field,
    _one_of(
        [
            "jax.grad(lambda x: jnp.sum(jnp.tanh(x) ** 2))({0})",
            "jax.grad(lambda x: jnp.sum(jax.nn.softplus(x)))({0})",
            "jax.grad(lambda x: jnp.sum(x ** 3) / 3.0)({0})",
            "jax.grad(lambda x: jax.nn.logsumexp(x))({0})",
            "jax.grad(lambda x: jnp.sum(jnp.abs(x) + 0.5 * x * x))({0})",
            "jax.grad(lambda x: jnp.max(x) + 0.1 * jnp.sum(x ** 2))({0})",
            "jax.value_and_grad(lambda x: jnp.mean(jnp.cos(x)))({0})[1]",
            "jax.jvp(jnp.tanh, ({0},), (jnp.ones_like({0}),))[1]",
            "jax.vjp(jnp.sin, {0})[1](jnp.ones_like({0}))[0]",
            "jax.linearize(jnp.exp, 0.3 * {0})[1](jnp.ones_like({0}))",
        ]
    ),
    _two_of(
        [
            "jax.jvp(jnp.tanh, ({0},), ({1},))[1]",
            "jax.jvp(lambda x: x * {1}, ({0},), (jnp.tanh({1}),))[1]",
            "jax.grad(lambda x: jnp.sum(jnp.tanh(x * {1})))({0})",
            "jax.vjp(lambda x: x * jnp.sin(x), {0})[1]({1})[0]",
            "jax.grad(lambda x: jnp.sum(jnp.square(x - {1})))({0})",
            "jax.grad(lambda a, b: jnp.sum(a * b * b), 1)({0}, {1})",
        ]
    ),
    _one_of(
        [
            "jax.hessian(lambda x: jnp.sum(x ** 3))({0})", "jax.jacrev(jnp.tanh)({0})",
            "jax.jacfwd(jnp.sin)({0})", "jax.jacrev(lambda x: x * jnp.sum(x))({0})",
            "jax.jacrev(jax.nn.softmax)({0})",
            "jax.hessian(lambda x: jnp.prod(jnp.tanh(x)))({0})",
            "jnp.linalg.norm(jax.grad(lambda x: jnp.sum(jnp.tanh(x)))({0}) + 0.1)",
        ],
        lambda x: x.ndim == 1 and x.size < 5,
    ),
    _one_of(
        [
            "jax.vmap(jax.grad(lambda x: jnp.sum(jnp.tanh(x) * x)))({0})",
            "jax.grad(lambda x: jnp.sum(jnp.tanh({0} @ x)))(jnp.ones({0}.shape[-1]))",
            "jax.jacrev(lambda x: jnp.tanh({0} @ x))(0.5 * jnp.ones({0}.shape[-1]))",
            "jax.vmap(jax.grad(lambda r: jnp.sum(jax.nn.softmax(r)[0])))({0})",
            "jax.vmap(jax.grad(lambda r: jnp.sqrt(jnp.sum(r * r) + 0.1)))({0})",
        ],
        _matrix,
    ),
]  # fmt: skip


# Complex numbers


def _parameter(g: Generator) -> str:
    """A complex parameter, a new one or one that is there."""
    there = [n for n in g.variable if g.values[n].dtype == np.complex64]
    if there and g.chance(0.7):
        return g.choice(sorted(there))
    shape = g.choice([(3,), (2, 3)])
    parts = np.round(g.random.normal(size=(2, *shape)), 2).astype(np.float32)
    return g.argument((parts[0] + 1j * parts[1]).astype(np.complex64), True)


def _complex(g: Generator) -> Drawn:
    name = _parameter(g)
    code = g.choice(
        [
            "jnp.real({0})", "jnp.imag({0} * jnp.exp(0.5j))", "jnp.real({0} * {0})",
            "jnp.abs({0})", "jnp.real({0} * jnp.conj({0}))", "jnp.real(jnp.exp({0}))",
            "{0} * (0.5 + 1j)", "jnp.real(jnp.fft.ifft({0}))", "jnp.conj({0})",
            "jnp.real(1.0 / (2.0 + 1j * jnp.imag({0})))", "{0}.at[0].set(0.5j)",
            "jnp.real(jnp.sum({0} ** 2))", "jnp.exp({0} * 0.5)", "jnp.fft.irfft({0}, 4)",
        ]
    )  # fmt: skip
    return code, [name]


def _complex_pair(g: Generator) -> Drawn:
    name = _parameter(g)
    shape = g.values[name].shape
    second = g.other(lambda x: x.shape == shape)
    code = g.choice(
        [
            "{0} * {1}", "jnp.real({0} * jnp.exp(1j * {1}))", "{0} + 1j * {1}",
            "jnp.real(jnp.vdot({0}, jax.lax.complex({1}, {1})))", "jnp.imag({0} / (2.0 + 1j))",
            "jnp.fft.irfft(jnp.fft.rfft({1}) * {0}[..., :2], 3)", "jnp.where({1} > 0.0, {0}, 0.5j)",
        ]
    )  # fmt: skip
    return code, [name, second]


COMPLEX = [
    _complex,
    _complex_pair,
    _one_of(
        [
            "jnp.real(jnp.exp(1j * {0}))", "jnp.imag(jnp.exp((0.3 + 1j) * {0}))",
            "jnp.abs(jax.lax.complex({0}, 0.5 * {0}) + 0.1)", "jnp.angle(jnp.exp(1j * {0}) * 2.0)",
            "jnp.real(({0} + 1j) * (1.0 - 1j * {0}))", "jnp.imag(jnp.log(2.0 + 1j * {0}))",
            "jnp.real(jnp.sqrt(1.5 + 1j * {0}))", "jnp.abs(1.0 + 1j * {0})",
            "jnp.real(jnp.power(1.2 + 1j * {0}, 2))", "jnp.real(jnp.tanh(1j * 0.3 + {0}))",
            "jax.lax.complex({0}, jnp.tanh({0}))",
        ]
    ),
    _one_of(
        [
            "jnp.real(jnp.fft.fft({0}))", "jnp.imag(jnp.fft.rfft({0}))",
            "jnp.abs(jnp.fft.fft({0}) + 0.1)", "jnp.fft.irfft(jnp.fft.rfft({0}), {0}.shape[-1])",
            "jnp.fft.irfft(jnp.fft.rfft({0}) * (0.5 + 0.5j), {0}.shape[-1])",
            "jnp.square(jnp.abs(jnp.fft.rfft({0})))",
        ],
        _wide,
    ),
    _two_of(
        [
            "jnp.imag(jnp.exp({0} + 1j * {1}))", "jnp.abs({0} + 1j * {1})",
            "jnp.real(({0} + 1j * {1}) * ({1} - 2j * {0}))", "jnp.angle({0} + 1j * {1})",
            "jnp.real(jax.lax.complex({0}, {1}) / (2.0 + 1j))",
            "jnp.real(({0} + 1j * {1}) / (2.0 + 1j * {0}))",
        ]
    ),
    _two_of(
        [
            "jnp.fft.irfft(jnp.fft.rfft({0}) * jnp.fft.rfft({1}), {0}.shape[-1])",
            "jnp.real(jnp.sum(jax.lax.complex({0}, {1}) * jnp.exp(0.5j), -1))",
        ],
        _wide,
    ),
]  # fmt: skip


# Branches and loops


def _while(g: Generator) -> Drawn:
    """A loop of as many steps as data say."""
    name = g.pick()
    steps = g.argument(np.array(g.random.integers(0, 4), np.int32), False)
    bound = g.choice(["jnp.minimum({1}, 3)", "jnp.clip({1}, 0, 2)", "2", "{1} % 4"])
    body = g.choice(["jnp.tanh(c) + 0.5", "0.5 * c + {0}", "jnp.maximum(c, 0.5 * {0})", "c * {0}"])
    code = g.choice(
        [
            "jax.lax.fori_loop(0, N, lambda i, c: B, {0})",
            "jax.lax.while_loop(lambda s: s[0] < N, lambda s: (s[0] + 1, (lambda c: B)(s[1])), "
            "(0, {0}))[1]",
        ]
    )
    return filled(code, N=bound, B=body), [name, steps]


BRANCHES = [
    _while,
    _one_of(
        [
            "jax.lax.cond(jnp.sum({0}) > 0.0, jnp.tanh, lambda a: -a, {0})",
            "jax.lax.cond(jnp.max({0}) < 0.5, lambda a: 2.0 * a, jnp.square, {0})",
            "jax.lax.cond(jnp.all({0} > -1.0), lambda a: a, jnp.zeros_like, {0})",
            "jax.lax.cond((jnp.sum({0}) > 0.0) & (jnp.mean({0}) < 1.0), jnp.cos, jnp.sin, {0})",
            "jax.lax.switch(jnp.argmax({0}.ravel()[:2]), [jnp.tanh, jnp.abs], {0})",
            "jax.lax.switch((jnp.sum({0}) > 0.5).astype(int), [jnp.tanh, lambda a: a], {0})",
            "jnp.where(jnp.sum({0}) > 0.0, {0}, -{0})",
            "jax.lax.select({0} > 0.25, {0}, jnp.tanh({0}))",
            "jnp.where(jnp.any({0} > 1.0), 0.5 * {0}, {0})",
        ]
    ),
    # A branch that is not selected may have no finite value.
    _one_of(
        [
            "jnp.where(jnp.abs({0}) > 0.1, 1.0 / {0}, 0.0)",
            "jnp.where({0} > 0.05, jnp.log({0}), 0.0)",
            "jnp.where({0} > 0.0, jnp.sqrt({0}), 0.0)",
            "jnp.where({0} > 0.1, {0} ** -0.5, {0})",
            "jnp.where(jnp.abs({0}) < 1.0, jnp.arcsin({0}), jnp.sign({0}))",
            "jnp.where({0} == 0.0, 1.0, jnp.sin({0}) / {0})",
            "jnp.where({0} > 0.5, jnp.log({0} - 0.4), jnp.exp({0}))",
            "jnp.where(jnp.arange({0}.size).reshape({0}.shape) > 0, {0}, jnp.inf).clip(-2.0, 2.0)",
        ]
    ),
    _two_of(
        [
            "jnp.where({0} > {1}, {0}, {1})", "jnp.where({0} > {1}, {0} - {1}, 0.1 * {1})",
            "jnp.where(jnp.abs({1}) > 0.1, {0} / {1}, 0.0)",
            "jnp.where(({0} > 0.0) & ({1} < 1.0), {0} * {1}, 0.5)",
            "jnp.where({1} > 0.0, jnp.sqrt(jnp.abs({0})), jnp.tanh({1}))",
            "jax.lax.cond(jnp.sum({0} - {1}) > 0.0, lambda a, b: a - b, lambda a, b: b, {0}, {1})",
        ]
    ),
    _one_of(
        [
            "{0} + jax.lax.stop_gradient(jnp.round({0}) - {0})",
            "{0} * jax.lax.stop_gradient(jnp.tanh({0}))",
            "jax.lax.stop_gradient({0}) + 0.0 * {0}",
            "{0} - jax.lax.stop_gradient(jnp.mean({0}))",
            "jax.nn.softmax({0} - jax.lax.stop_gradient(jnp.max({0})))",
        ]
    ),
    _two_of(
        ["{0} + jax.lax.stop_gradient({1} - {0})", "jax.lax.stop_gradient({1}) * {0}"],
    ),
]  # fmt: skip


MORE = [
    (1.5, FAMILIES[0][1]),
    (1, FAMILIES[1][1]),
    (0.2, FAMILIES[2][1]),
    (0.5, FAMILIES[3][1]),
    (0.2, FAMILIES[4][1]),
    (0.2, FAMILIES[5][1]),
    (0.2, FAMILIES[6][1]),
    (3, SELVES),
    (2.5, GROUPS),
    (1.5, [_solve]),
    (1.5, SPECIAL),
    (2.5, AUTODIFF),
    (3, COMPLEX),
    (3, BRANCHES),
]
# Few, as every shape is compiled by itself.
MORE_SHAPES = [(3,), (2, 3), (3,), (2, 3), (2, 3), (3, 3), (2, 2, 3)]
FEW_CURVES = ["jnp.tanh({0})", "jnp.exp({0})", "jnp.abs({0})", "jnp.square({0})", "jnp.sin({0})"]


# Losses


_SCORES = [  # of rows of scores; L are labels, H the same one-hot
    "-jnp.mean(jnp.take_along_axis(jax.nn.log_softmax({0}, -1), L[..., None], -1))",
    "jnp.mean(jax.nn.logsumexp({0}, -1) - jnp.take_along_axis({0}, L[..., None], -1)[..., 0])",
    "-jnp.sum(H * jax.nn.log_softmax({0}, -1)) / 2.0",
    "-jnp.mean(jnp.sum((0.9 * H + 0.03) * jax.nn.log_softmax({0}, -1), -1))",
    "-jnp.mean(jnp.log(jnp.sum(H * jax.nn.softmax({0}, -1), -1) + 1e-3))",
    "jnp.mean(jnp.square(jax.nn.softmax({0}, -1) - H))",
    "jnp.sum(jnp.linalg.norm({0} + 0.1, axis=-1))",
    "-jnp.sum(jax.nn.softmax({0}, -1) * jax.nn.log_softmax({0}, -1))",
    "jnp.mean(jnp.maximum(0.0, 1.0 + jnp.max({0} - 5.0 * H, -1) - jnp.sum({0} * H, -1)))",
    "1.0 - jnp.mean(jnp.sum({0} * H, -1) / jnp.sqrt(jnp.sum({0} * {0}, -1) + 0.1))",
]
_TARGETS = [  # of any values; T are targets, M a mask
    "jnp.mean(({0} - T) ** 2)",
    "jnp.sum(jnp.abs({0} - T))",
    "jnp.sum(M * jnp.square({0} - T)) / jnp.maximum(jnp.sum(M), 1.0)",
    "jnp.mean(jnp.where(jnp.abs({0} - T) < 1.0, 0.5 * ({0} - T) ** 2, jnp.abs({0} - T) - 0.5))",
    "jnp.mean(jnp.maximum(0.0, 1.0 - jnp.sign(T) * {0}))",
    "jnp.mean(jnp.maximum({0}, 0.0) - {0} * M + jnp.log1p(jnp.exp(-jnp.abs({0}))))",
    "-jnp.mean(M * jax.nn.log_sigmoid({0}) + (1.0 - M) * jax.nn.log_sigmoid(-{0}))",
    "jnp.mean(jnp.logaddexp(0.0, -T * {0}))",
    "jax.nn.logsumexp({0})",
    "jnp.linalg.norm({0} - T)",
    "jnp.sqrt(jnp.sum(jnp.square({0} - T)) + 1e-6)",
    "jnp.max(jnp.abs({0} - T))",
    "jnp.mean({0}) + 0.1 * jnp.mean(jnp.square({0}))",
    "jnp.mean(jnp.log(jnp.cosh({0} - T)))",
    "jnp.mean(jnp.exp(-{0}) + {0})",
    "jnp.log1p(jnp.mean(jnp.square({0} - T)))",
    "jnp.sum(T * {0})",
    "jnp.mean(jnp.square({0} - jax.lax.stop_gradient(jnp.tanh({0}))))",
    "jnp.var({0}) + jnp.mean({0}) ** 2",
    "jnp.mean(jnp.square(jnp.square({0}) - 1.0))",
]
_PAIRS = [  # of two values of one shape
    "jnp.mean(({0} - {1}) ** 2)",
    "jnp.mean(jnp.square({0} - jax.lax.stop_gradient({1})))",
    "jnp.sum(jnp.abs({0} - {1}))",
    "jnp.mean(0.5 * jnp.exp(-{1}) * jnp.square({0} - 0.5) + 0.5 * {1})",
    "0.5 * jnp.mean(jnp.square({0}) + jnp.exp({1}) - 1.0 - {1})",
    "1.0 - jnp.sum({0} * {1}) / jnp.sqrt(jnp.sum({0} * {0}) * jnp.sum({1} * {1}) + 0.1)",
    "jnp.mean(jnp.maximum(0.0, 1.0 + {0} - {1}))",
    "jnp.mean({0} * {1}) + 0.1 * jnp.mean(jnp.square({0}) + jnp.square({1}))",
    "jnp.sum(jax.nn.softmax({0}) * (jax.nn.log_softmax({0}) - jax.nn.log_softmax({1})))",
    "jnp.mean(jax.nn.softplus({0} - {1}))",
]
_TOWERS = [  # of two arrays of rows
    "-jnp.mean(jnp.diagonal(jax.nn.log_softmax({0} @ {1}.T, -1)))",
    "jnp.mean(jnp.square({0} @ {1}.T - jnp.eye({0}.shape[0])))",
]
_PENALTIES = [
    "0.1 * jnp.sum(jnp.square({0}))",
    "0.1 * jnp.sum(jnp.abs({0}))",
    "0.1 * jnp.sum(jnp.abs({0})) + 0.05 * jnp.sum(jnp.square({0}))",
    "0.1 * jnp.linalg.norm({0})",
    "0.1 * jnp.sum(jnp.sqrt(jnp.sum(jnp.square({0}), -1)))",
    "0.1 * jnp.mean(jnp.square(jnp.square({0}) - 1.0))",
]


class MoreGenerator(Generator):
    """Draws one program of these operations, with losses of the user's own."""

    def __init__(self, seed: Any, curves: Sequence[str] | None = None):
        curves = FEW_CURVES if curves is None else curves
        super().__init__(seed, curves, MORE, MORE_SHAPES, 4, 0.05)

    def objective(self, ends: Sequence[str]) -> tuple[list[Op], str]:
        """Mostly losses of the user's own, and penalties, in a sum."""
        if self.chance(0.15):
            return super().objective([self.real(name) for name in ends])
        outputs: list[Op] = []
        for name in ends:
            name = self.real(name)
            number = len(outputs)
            if self.chance(0.2):
                outputs.append(self.output(name, number))
            else:
                outputs.append(self.own(name, number))
        if self.chance(0.3):
            parameters = [i.name for i in self.inputs if i.variable and i.array.dtype == np.float32]
            outputs.append(
                Op(f"o{len(outputs)}", self.choice(_PENALTIES), (self.choice(parameters),))
            )
        if all(op.is_set for op in outputs):
            outputs.append(self.own(self.real(ends[0]), len(outputs)))
        return outputs, self.choice(["scalar", "scalar", "aux"])

    def real(self, name: str) -> str:
        """The value, or the real part of a complex one."""
        value = self.values[name]
        if value.dtype != np.complex64:
            return name
        op = Op(f"v{len(self.ops)}", self.choice(["jnp.real({0})", "jnp.imag({0})"]), (name,))
        self.ops.append(op)
        self.values[op.name] = np.real(value) if "real" in op.code else np.imag(value)
        self.variable.add(op.name)
        return op.name

    def own(self, name: str, number: int) -> Op:
        """A loss as one writes it."""
        value = self.values[name]
        scores = "{0}" if value.dtype == np.float32 else "{0}.astype(jnp.float32)"
        kinds = [_TARGETS, _TARGETS]
        others: list[str] = []
        if value.ndim and value.shape[-1] > 1:
            kinds += [_SCORES, _SCORES]
        if value.dtype == np.float32:
            others = [
                n
                for n, x in self.values.items()
                if n in self.variable and x.dtype == np.float32 and x.shape == value.shape
            ]
            others = [n for n in others if n != name] or others
            kinds += [_PAIRS] if value.ndim else []
            kinds += [_TOWERS] if value.ndim == 2 else []
        kind = self.choice(kinds)
        code = self.choice(kind).replace("{0}", scores)
        code = self.with_arrays(code, value)
        if self.chance(0.15):
            code = f"{self.choice(['0.3', '2.0', '-0.1', '-0.05'])} * ({code})"
        operands = (name, self.choice(others)) if "{1}" in code else (name,)
        return Op(f"o{number}", code, operands)

    def with_arrays(self, code: str, value: Array) -> str:
        """A loss with labels, targets and a mask for the letters that stand for them."""
        classes = max(value.shape[-1:] or (1,))
        labels = self.random.integers(0, classes, value.shape[:-1])
        hot = np.eye(classes, dtype=np.float32)[labels]
        targets = np.round(self.random.normal(size=value.shape), 1).astype(np.float32)
        mask = (self.random.random(value.shape) < 0.6).astype(np.float32)
        arrays = {"L": labels, "H": hot, "T": targets, "M": mask}
        return filled(code, **{letter: literal(x) for letter, x in arrays.items()})
