"""A fuzz of the whole compiler: random programs, traced, lowered, stepped and projected.

A program is a few random operations over parameters and data; it prints as the code that runs. All
that a projection promises is checked on it, and what fails is shrunk to the smallest program that
still fails:

    python -m tests.fuzz --programs 2000 --seed 0 --processes 2

Every constraint's projection is compiled once for all programs that have the same one, and an
elementwise function once for all shapes: compilation is what such a fuzz would spend its time on.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import multiprocessing
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pjax_trace as pjax
from pjax_trace.graph import Constraint
from pjax_trace.problem import Problem
from pjax_trace.rule import Moment, Projection, Weights
from pjax_trace.rules.elementwise import Elementwise
from pjax_trace.rules.logic import Choice, TruthTable
from pjax_trace.spaces import CopyFree, expand_copies
from pjax_trace.trace import trace_program
from pjax_trace.view import View

Array = np.ndarray
LARGEST = 24  # elements of a value
HEADER = "import jax\nimport jax.numpy as jnp\nimport pjax_trace as pjax\n"


# Programs


@dataclasses.dataclass(frozen=True)
class Input:
    """An argument: a parameter or data, and what it is called with."""

    name: str
    array: Array
    variable: bool


@dataclasses.dataclass(frozen=True)
class Op:
    """``name = code``, with the names of the operands in the places of ``{0}``, ``{1}``, …"""

    name: str
    code: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} = {self.expression}"

    @property
    def expression(self) -> str:
        return re.sub(r"\{(\d)\}", lambda match: self.operands[int(match[1])], self.code)


@dataclasses.dataclass(frozen=True)
class Program:
    """Inputs, operations and output constraints; ``str(program)`` is code that runs."""

    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Op, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def definition(self) -> str:
        lines = [f"def fit({', '.join(i.name for i in self.inputs)}):"]
        lines += [f"    {op}" for op in (*self.ops, *self.outputs)]
        losses, values = map(", ".join, self.returned)
        return "\n".join([*lines, f"    return [{losses}], [{values}]"])

    @property
    def returned(self) -> tuple[list[str], list[str]]:
        """The names of losses and constrained values, and of what they are of."""
        values = dict.fromkeys(name for op in self.outputs for name in op.operands)
        return [op.name for op in self.outputs], list(values)

    @property
    def parameters(self) -> tuple[Input, ...]:
        return tuple(i for i in self.inputs if i.variable)

    @property
    def argnums(self) -> tuple[int, ...]:
        return tuple(n for n, i in enumerate(self.inputs) if i.variable)

    @property
    def metric(self) -> dict[str, float]:
        weights = itertools.cycle(self.weights)
        return {p.name: next(weights) for p in self.parameters}

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """``fit`` itself: losses and constrained values, and what they are of."""
        scope: dict[str, Any] = {"jax": jax, "jnp": jnp, "pjax": pjax}
        exec(self.definition, scope)  # noqa: S102
        return scope["fit"]

    @property
    def arguments(self) -> list[jax.Array]:
        return [jnp.asarray(i.array) for i in self.inputs]

    def values(self, rounded: Callable[[Any], Any] = lambda x: x) -> dict[str, Array]:
        """The forward value of every input, operation and output, each of them ``rounded``."""
        scope: dict[str, Any] = {"jax": jax, "jnp": jnp, "pjax": pjax}
        for i, array in zip(self.inputs, self.arguments, strict=True):
            scope[i.name] = rounded(array)
        for op in (*self.ops, *self.outputs):
            scope[op.name] = rounded(eval(op.expression, scope))  # noqa: S307
        return {x.name: np.asarray(scope[x.name]) for x in (*self.inputs, *self.ops, *self.outputs)}

    def __str__(self) -> str:
        arguments = [f"{i.name} = {_literal(i.array)}" for i in self.inputs]
        names = ", ".join(i.name for i in self.inputs)
        metric = f", metric={self.metric}" if set(self.weights) != {1.0} else ""
        call = f"pjax.project(fit, {self.argnums}, steps=2{metric})({names})"
        return "\n".join([HEADER, self.definition, "", *arguments, call])

    def pruned(self) -> "Program":
        """Without operations and inputs that nothing reads; a parameter stays."""
        needed = {name for op in self.outputs for name in op.operands}
        ops = []
        for op in reversed(self.ops):
            if op.name in needed:
                ops.append(op)
                needed.update(op.operands)
        inputs = tuple(i for i in self.inputs if i.name in needed)
        return dataclasses.replace(self, inputs=inputs, ops=tuple(reversed(ops)))


def _literal(array: Array) -> str:
    """``jnp.array(…)`` of a literal, to seven digits."""
    if array.dtype != np.float32:
        dtype = "bool" if array.dtype == bool else "jnp.int32"
        return f"jnp.array({array.tolist()}, {dtype})"
    digits = np.array([float(f"{x:.7g}") for x in array.ravel().tolist()]).reshape(array.shape)
    return f"jnp.array({digits.tolist()}, jnp.float32)"


# Generation


class _Unfit(Exception):
    """An operation that has no operands here."""


class Generator:
    """Draws one program. Its operations are checked by their forward values as they are drawn."""

    def __init__(self, seed: Any, curves: Sequence[str] | None = None):
        self.random = np.random.default_rng(seed)
        self.inputs: list[Input] = []
        self.ops: list[Op] = []
        self.values: dict[str, Array] = {}
        self.variable: set[str] = set()
        self.scope: dict[str, Any] = {"jax": jax, "jnp": jnp, "pjax": pjax}
        self.curves = CURVES if curves is None else {c: CURVES[c] for c in curves}

    def program(self) -> Program:
        shapes = [self.choice(SHAPES) for _ in range(self.random.integers(1, 4))]
        if len(shapes) > 1 and self.chance(0.7):
            shapes[1] = shapes[0]
        for shape in shapes:
            self.input(shape, True)
        count = int(self.random.integers(2, 9))
        tries = 0
        while len(self.ops) < count and tries < 60:
            tries += 1
            self.extend()
        read = {name for op in self.ops for name in op.operands}
        ends = [op.name for op in self.ops if op.name not in read and op.name in self.variable]
        ends = ends[-3:] or [self.inputs[0].name]
        outputs = [self.output(name, n) for n, name in enumerate(ends)]
        weights = (1.0,)
        if self.chance(0.25):
            weights = tuple(float(w) for w in self.random.choice([0.25, 1.0, 4.0, 16.0], 3))
        return Program(tuple(self.inputs), tuple(self.ops), tuple(outputs), weights).pruned()

    def extend(self) -> None:
        """One more operation, if what is drawn has a value to go on with."""
        inputs = len(self.inputs)
        family = FAMILIES[self.random.choice(len(FAMILIES), p=_SHARES)][1]
        try:
            code, operands = self.choice(family)(self)
            op = Op(f"v{len(self.ops)}", code, tuple(operands))
            value = np.asarray(eval(op.expression, self.scope))  # noqa: S307
            if not 0 < value.size <= LARGEST or value.ndim > 4:
                raise _Unfit
            if not np.all(np.abs(np.asarray(value, np.float32)) <= 30):
                raise _Unfit  # NaN included
        except _Unfit:
            for i in self.inputs[inputs:]:
                del self.values[i.name], self.scope[i.name]
                self.variable.discard(i.name)
            del self.inputs[inputs:]
            return
        self.ops.append(op)
        self.values[op.name] = value
        self.scope[op.name] = jnp.asarray(value)
        if not self.variable.isdisjoint(operands):
            self.variable.add(op.name)

    def output(self, name: str, number: int) -> Op:
        value = self.values[name]
        scores = "{0}" if value.dtype == np.float32 else "{0}.astype(jnp.float32)"
        kinds = ["squared", "squared", "squared", "set"]
        if value.size > 1 and value.ndim and value.shape[-1] > 1:
            kinds.append("entropy")
        kind = self.choice(kinds)
        if kind == "set":
            sets = ["Box(-0.5, 0.5)", "NonNegative()", "Equal(0.25)"]
            sets += ["Ball(1.0, axis=-1)"] if value.ndim else []
            code = f"pjax.constrain({scores}, pjax.sets.{self.choice(sets)})"
        elif kind == "squared":
            shape = value.shape or (1,)
            target = _literal(np.round(self.random.normal(size=shape), 1).astype(np.float32))
            code = f"pjax.losses.squared_error({scores}.reshape{shape}, {target})"
        else:
            labels = _literal(self.random.integers(0, value.shape[-1], value.shape[:-1]))
            code = f"pjax.losses.cross_entropy({scores}, {labels})"
        if kind != "set" and self.chance(0.2):
            code = f"0.5 * {code}"
        return Op(f"o{number}", code, (name,))

    def input(self, shape: Sequence[int], variable: bool, positive: bool = False) -> str:
        """A new argument."""
        array = np.round(self.random.normal(size=shape), 2).astype(np.float32)
        array = np.abs(array) + np.float32(0.25) if positive else array
        if self.chance(0.1) and not positive:
            array = np.round(array)  # ties, zeros
        name = f"{'wd'[not variable]}{len(self.inputs)}"
        self.inputs.append(Input(name, array, variable))
        self.values[name], self.scope[name] = array, jnp.asarray(array)
        if variable:
            self.variable.add(name)
        return name

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def choice(self, items: Sequence[Any]) -> Any:
        return items[int(self.random.integers(len(items)))]

    def pick(self, fits: Callable[[Array], bool] = lambda x: True, dtype: Any = np.float32) -> str:
        """A variable that fits; rather one that nothing reads yet."""
        read = {name for op in self.ops for name in op.operands}
        names = [
            name
            for name, x in self.values.items()
            if name in self.variable and x.dtype == dtype and fits(x)
        ]
        if not names:
            raise _Unfit
        fresh = [name for name in names if name not in read]
        return self.choice(fresh) if fresh and self.chance(0.6) else self.choice(names)

    def other(self, fits: Callable[[Array], bool]) -> str:
        """Any variable that fits; it may share elements with others of the operation."""
        names = [
            name
            for name, x in self.values.items()
            if name in self.variable and x.dtype == np.float32 and fits(x)
        ]
        if not names:
            raise _Unfit
        return self.choice(names)

    def like(self, name: str) -> str:
        shape = self.values[name].shape
        return self.other(lambda x: x.shape == shape)

    def axis(self, name: str) -> int:
        if not self.values[name].ndim:
            raise _Unfit
        return int(self.random.integers(self.values[name].ndim))


Drawn = tuple[str, Sequence[str]]
SHAPES = [(3,), (3,), (2, 3), (2, 3), (2, 3), (3, 3), (2, 2, 3), (1, 3), (4,), ()]


def _plain(code: str, fits: Callable[[Array], bool] = lambda x: True) -> Any:
    """An operation on any one variable."""

    def draw(g: Generator) -> Drawn:
        name = g.pick(fits)
        return code, [name]

    return draw


def _pair(code: str, *, fits: Any = None) -> Any:
    """An operation on two variables of one shape."""

    def draw(g: Generator) -> Drawn:
        first = g.pick()
        second = g.like(first)
        if fits is not None and not fits(g.values[second]):
            raise _Unfit
        return code, [first, second]

    return draw


def _with_data(code: str, positive: bool = False) -> Any:
    """An operation on a variable and new data of its shape."""

    def draw(g: Generator) -> Drawn:
        name = g.pick()
        return code, [name, g.input(g.values[name].shape, False, positive)]

    return draw


def _along(code: str, least: int = 1) -> Any:
    """An operation on a variable along AXIS."""

    def draw(g: Generator) -> Drawn:
        name = g.pick(lambda x: x.ndim > 0)
        axis = g.axis(name)
        if g.values[name].shape[axis] < least:
            raise _Unfit
        return code.replace("AXIS", str(axis)), [name]

    return draw


def _reshape(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.size > 1)
    shape = g.values[name].shape
    size = g.values[name].size
    shapes = [(size,), (size, 1), (1, size), (*shape, 1), shape[::-1]]
    shapes += [(k, size // k) for k in (2, 3) if size % k == 0]
    return f"{{0}}.reshape{tuple(map(int, g.choice(shapes)))}", [name]


def _transpose(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 1)
    order = tuple(g.random.permutation(g.values[name].ndim).tolist())
    return f"jnp.transpose({{0}}, {order})", [name]


def _slice(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    parts = [g.choice([":", "1:", ":-1", "::2", "::-1", "0", "-1", "None, :"])]
    if g.values[name].ndim > 1:
        parts.append(g.choice([":", "1:", "::2", "0"]))
    return f"{{0}}[{', '.join(parts)}]", [name]


def _take(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    axis = g.axis(name)
    index = g.random.integers(0, g.values[name].shape[axis], g.random.integers(1, 4))
    return f"jnp.take({{0}}, {_literal(index)}, axis={axis})", [name]


def _take_along(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    shape = g.values[name].shape
    index = g.random.integers(0, shape[-1], (*shape[:-1], int(g.random.integers(1, 3))))
    return f"jnp.take_along_axis({{0}}, {_literal(index)}, axis=-1)", [name]


def _concatenate(g: Generator) -> Drawn:
    first = g.pick(lambda x: x.ndim > 0)
    shape, axis = g.values[first].shape, g.axis(first)

    def fits(x: Array) -> bool:
        return x.ndim == len(shape) and all(
            a == b for i, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if i != axis
        )

    return f"jnp.concatenate([{{0}}, {{1}}], {axis})", [first, g.other(fits)]


def _pad(g: Generator) -> Drawn:
    name = g.pick(lambda x: 0 < x.ndim < 3)
    widths = tuple(tuple(g.random.integers(0, 2, 2).tolist()) for _ in g.values[name].shape)
    fill = g.choice(["0.0", "0.5"])
    return f"jnp.pad({{0}}, {widths}, constant_values={fill})", [name]


def _broadcast(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim < 3)
    shape = (2, *g.values[name].shape)
    return f"jnp.broadcast_to({{0}}[None], {shape})", [name]


def _where_data(g: Generator) -> Drawn:
    first = g.pick()
    mask = _literal(g.random.random(g.values[first].shape) < 0.5)
    if g.chance(0.4):
        return f"jnp.where({mask}, {{0}}, 0.5)", [first]
    return f"jnp.where({mask}, {{0}}, {{1}})", [first, g.like(first)]


def _set(g: Generator) -> Drawn:
    first = g.pick(lambda x: x.ndim > 0 and x.shape[0] > 1)
    shape = g.values[first].shape
    where = g.choice(["0", "-1", "1:", "jnp.array([1, 0])"])
    part = {"1:": (shape[0] - 1, *shape[1:]), "jnp.array([1, 0])": (2, *shape[1:])}
    part = part.get(where, shape[1:])
    second = g.other(lambda x: x.shape == part)
    return f"{{0}}.at[{where}].set({{1}})", [first, second]


def _broadcast_pair(g: Generator) -> Drawn:
    """Two variables, the second of size 1 along an axis."""
    first = g.pick(lambda x: x.ndim > 0)
    axis = g.axis(first)
    second = g.like(first)
    part = ", ".join([":"] * axis + [":1"])
    code = g.choice(["{0} + ", "{0} * ", "{0} - ", "{0} / (0.5 + jnp.square", "jnp.maximum({0}, "])
    tail = {"{0} / (0.5 + jnp.square": ")", "jnp.maximum({0}, ": ")"}.get(code, "")
    part = f"({{1}}[{part}])" if "square" in code else f"{{1}}[{part}]"
    return code + part + tail, [first, second]


def _matmul(g: Generator) -> Drawn:
    first = g.pick(lambda x: x.ndim > 0)
    shape = g.values[first].shape
    if g.chance(0.4):
        size = int(g.random.integers(2, 4))
        return "{0} @ {1}", [first, g.input((shape[-1], size), False)]

    def fits(x: Array) -> bool:
        if x.ndim == 1:
            return x.shape[0] == shape[-1]
        batch = x.ndim > 2 and x.shape[:-2] != shape[:-2]
        return x.ndim > 0 and x.shape[-2] == shape[-1] and not batch and x.ndim in (2, len(shape))

    return "{0} @ {1}", [first, g.other(fits)]


def _einsum(g: Generator) -> Drawn:
    first = g.pick(lambda x: x.ndim in (1, 2, 3))
    second = g.like(first)
    codes = {
        1: ["i,i->", "i,j->ij", "i,i->i"],
        2: ["ij,ij->i", "ij,ij->", "ij,kj->ik", "ij,ik->jk", "ij,kj->jik", "ij,ij->j"],
        3: ["bij,bkj->bik", "bij,bij->b", "bij,bij->ij", "bij,cij->bc", "bij,bik->bjk"],
    }[g.values[first].ndim]
    return f"jnp.einsum('{g.choice(codes)}', {{0}}, {{1}})", [first, second]


def _convolve(g: Generator) -> Drawn:
    first = g.pick(lambda x: 0 < x.ndim < 3 and x.shape[-1] > 1)
    shape = g.values[first].shape
    image = f"{{0}}.reshape(1, {shape[0] if len(shape) > 1 else 1}, {shape[-1]})"
    channels = shape[0] if len(shape) > 1 else 1
    options = g.choice(
        ["(1,), 'SAME'", "(1,), 'VALID'", "(2,), ((1, 0),)", "(1,), 'SAME', rhs_dilation=(2,)"]
    )
    kernel = (2, channels, 2)
    if g.chance(0.5):
        second = g.input(kernel, False)
        filters = "{1}"
    else:
        size = math.prod(kernel)
        second = g.other(lambda x: x.size >= size)
        filters = f"{{1}}.ravel()[:{size}].reshape{kernel}"
    return f"jax.lax.conv_general_dilated({image}, {filters}, {options})[0]", [first, second]


def _window(g: Generator) -> Drawn:
    name = g.pick(lambda x: 0 < x.ndim < 3 and x.shape[-1] > 1)
    kind = g.choice(["0.0, jax.lax.add", "-jnp.inf, jax.lax.max", "jnp.inf, jax.lax.min"])
    ones = (1,) * (g.values[name].ndim - 1)
    stride, pad = g.choice([1, 2]), g.choice(["SAME", "VALID"])
    code = f"jax.lax.reduce_window({{0}}, {kind}, {(*ones, 2)}, {(*ones, stride)}, '{pad}')"
    return code, [name]


def _scatter_add(g: Generator) -> Drawn:
    first = g.pick(lambda x: x.ndim > 0)
    shape = g.values[first].shape
    second = g.other(lambda x: x.ndim == len(shape) and x.shape[1:] == shape[1:])
    index = g.random.integers(0, shape[0], g.values[second].shape[0])
    return f"{{0}}.at[{_literal(index)}].add({{1}})", [first, second]


def _segments(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    index = g.random.integers(0, 3, g.values[name].shape[0])
    return f"jax.ops.segment_sum({{0}}, {_literal(index)}, 3)", [name]


def _reduce(functions: Sequence[str]) -> Any:
    def draw(g: Generator) -> Drawn:
        name = g.pick(lambda x: x.ndim > 0)
        axis = g.choice([None, g.axis(name)])
        keep = ", keepdims=True" if g.chance(0.4) else ""
        return f"{g.choice(functions)}({{0}}, axis={axis}{keep})", [name]

    return draw


def _top_k(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0 and x.shape[-1] > 1)
    return "jax.lax.top_k({0}, 2)[0]", [name]


def _clip(g: Generator) -> Drawn:
    name = g.pick()
    low, high = g.choice([("-0.5", "0.5"), ("0.0", "jnp.inf"), ("-1.0", "-1.0")])
    return f"jnp.clip({{0}}, {low}, {high})", [name]


def _curve(g: Generator) -> Drawn:
    code, low, high = g.choice(list(g.curves.values()))
    name = g.pick(lambda x: bool(np.all((x >= low) & (x <= high))))
    return code, [name]


def _domain(code: str, low: float = -math.inf, high: float = math.inf) -> tuple[str, float, float]:
    return code, low, high


_CURVE_CODES = [
    *(_domain(f"jnp.{f}({{0}})") for f in ("tanh", "sin", "cos", "arctan", "arcsinh")),
    *(_domain(f"jnp.{f}({{0}})") for f in ("abs", "square", "cbrt")),
    *(_domain(f"jnp.{f}({{0}})", -4, 3) for f in ("exp", "exp2", "expm1", "sinh", "cosh")),
    *(_domain(f"jnp.{f}({{0}})", 0.05) for f in ("log", "sqrt", "reciprocal")),
    *(_domain(f"jnp.{f}({{0}})", -0.9, 0.9) for f in ("arcsin", "arccos", "arctanh", "tan")),
    *(_domain(f"jax.lax.{f}({{0}})") for f in ("erf", "erfc", "logistic")),
    _domain("jax.lax.erf_inv({0})", -0.9, 0.9),
    _domain("jax.lax.rsqrt({0})", 0.05),
    _domain("jnp.arccosh({0})", 1.1),
    _domain("jnp.log1p({0})", -0.9),
    _domain("{0} ** 3"),
    _domain("{0} ** 4"),
    _domain("{0} ** -1", 0.2),
    _domain("{0} ** -2", -9, -0.2),
    _domain("{0} ** 1.5", 0.1),
    _domain("{0} ** -0.5", 0.1),
    *(
        _domain(f"jax.nn.{f}({{0}})")
        for f in (
            "silu gelu mish softplus log_sigmoid elu celu selu soft_sign squareplus hard_silu "
            "sparse_plus relu relu6 leaky_relu hard_tanh hard_sigmoid sparse_sigmoid sigmoid"
        ).split()
    ),
    _domain("jax.nn.gelu({0}, approximate=False)"),
    _domain("jax.nn.leaky_relu({0}, 0.2)"),
    _domain("jax.nn.elu({0}, 0.5)"),
    _domain("jax.nn.celu({0}, 2.0)"),
]
CURVES = {code: (code, low, high) for code, low, high in _CURVE_CODES}


def _compare(g: Generator) -> Drawn:
    first = g.pick()
    sign = g.choice([">", ">=", "<", "<=", "==", "!="])
    if g.chance(0.5):
        return f"{{0}} {sign} {g.choice(['0.0', '0.5', '-1.0'])}", [first]
    second = g.like(first)
    if second == first:
        raise _Unfit
    return f"{{0}} {sign} {{1}}", [first, second]


def _logic(g: Generator) -> Drawn:
    first = g.pick(dtype=bool)
    shape = g.values[first].shape
    pairs = [n for n, x in g.values.items() if x.dtype == bool and x.shape == shape]
    code = g.choice(["{0} & {1}", "{0} | {1}", "{0} ^ {1}", "~{0}", "jnp.any({0})", "jnp.all({0})"])
    operands = [first, g.choice(pairs)] if "{1}" in code else [first]
    return code, operands


def _where(g: Generator) -> Drawn:
    mask = g.pick(dtype=bool)
    shape = g.values[mask].shape
    first = g.other(lambda x: x.shape == shape)
    if g.chance(0.4):
        return f"jnp.where({{0}}, {{1}}, {g.choice(['0.0', '1.0'])})", [mask, first]
    return "jnp.where({0}, {1}, {2})", [mask, first, g.like(first)]


def _cast(g: Generator) -> Drawn:
    return "{0}.astype(jnp.float32)", [g.pick(dtype=bool)]


def _scan(g: Generator) -> Drawn:
    inputs = g.pick(lambda x: x.ndim > 1)
    shape = g.values[inputs].shape[1:]
    tail = f"{g.choice(['', ', reverse=True'])})[{g.choice([0, 1])}]"
    body = g.choice(
        [
            "(jnp.tanh(c + x), c)",
            "(0.5 * c + x, jnp.maximum(c, x))",
            "(jnp.maximum(c, x), c + x)",
            "(c + x, jnp.tanh(c))",
            "(x, c)",
            "(jnp.where(x > 0.0, c, x), c * 2.0)",
        ]
    )
    if len(shape) == 1 and g.chance(0.5):
        square = (shape[0], shape[0])
        weight = g.other(lambda x: x.shape == square) if g.chance(0.6) else g.input(square, False)
        body = g.choice(["(jnp.tanh(c @ {1} + x), c)", "(c @ {1}, c + x)"])
        start = f"jnp.zeros({shape}, jnp.float32)"
        return f"jax.lax.scan(lambda c, x: {body}, {start}, {{0}}{tail}", [inputs, weight]
    if g.chance(0.5):
        start = g.other(lambda x: x.shape == shape)
        return f"jax.lax.scan(lambda c, x: {body}, {{1}}, {{0}}{tail}", [inputs, start]
    start = f"jnp.zeros({shape}, jnp.float32)"
    return f"jax.lax.scan(lambda c, x: {body}, {start}, {{0}}{tail}", [inputs]


def _fori(g: Generator) -> Drawn:
    first = g.pick()
    body = g.choice(["jnp.tanh(c) + {1}", "0.5 * c + {1}", "jnp.maximum(c, {1}) - 0.5", "c * {1}"])
    second = g.like(first)
    return f"jax.lax.fori_loop(0, 3, lambda i, c: {body}, {{0}})", [first, second]


def _map(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    kind = g.choice(["jax.lax.map(FN, {0})", "jax.vmap(FN)({0})", "jax.jit(FN)({0})"])
    kind = g.choice([kind, "jax.checkpoint(FN)({0})"])
    body = g.choice(["jnp.tanh(r) + 1.0", "r - jnp.sum(r)", "jnp.max(r)", "r * 2.0"])
    return kind.replace("FN", f"lambda r: {body}"), [name]


def _cond(g: Generator) -> Drawn:
    name = g.pick()
    branches = g.choice(
        ["jnp.tanh, lambda a: -a", "lambda a: a * 2.0, jnp.square", "lambda a: a, jnp.zeros_like"]
    )
    where = g.input((1,), False)
    return f"jax.lax.cond({{1}}[0] > 0.0, {branches}, {{0}})", [name, where]


def _frozen(g: Generator) -> Drawn:
    first = g.pick(lambda x: x.ndim > 0)
    code = g.choice(
        [
            "{0} - jax.lax.stop_gradient({0})",
            "{0} * jax.nn.one_hot(jnp.argmax({0}, -1), {0}.shape[-1], dtype=jnp.float32)",
            "jnp.take({0}, jnp.argsort({0}, 0).ravel()[:2], axis=0)",
            "{0} / jax.lax.stop_gradient(jnp.max(jnp.abs({0})) + 1.0)",
        ]
    )
    return code, [first]


VIEWS = [
    _reshape, _transpose, _slice, _slice, _take, _take_along, _concatenate, _pad, _broadcast,
    _where_data, _set, _along("jnp.flip({0}, AXIS)"), _along("jnp.roll({0}, 1, AXIS)"),
    _along("jnp.repeat({0}, 2, AXIS)"),
    _plain("-{0}"), _plain("2.0 * {0}"), _plain("{0} + 0.5"),
    _plain("1.0 - {0}"), _with_data("{0} * {1}"), _with_data("{0} + {1}"),
    _with_data("{0} / {1}", positive=True), _pair("jnp.stack([{0}, {1}])"),
    _along("jax.lax.dynamic_slice_in_dim({0}, 1, 1, AXIS)"),
]  # fmt: skip
SUMS = [
    _pair("{0} + {1}"), _pair("{0} - {1}"), _pair("{0} * {1}"),
    _pair("{0} / (jnp.square({1}) + 0.5)"), _plain("{0} * {0}"),
    _pair("{0} / {1}", fits=lambda x: bool(np.all(np.abs(x) > 0.3))),
    _with_data("{1} / (jnp.square({0}) + 0.5)"),
    _broadcast_pair, _broadcast_pair, _matmul, _matmul, _matmul, _einsum, _convolve, _window,
    _along("jnp.cumsum({0}, AXIS)"), _reduce(["jnp.sum", "jnp.mean", "jnp.sum"]),
    _scatter_add, _segments, _reduce(["jnp.prod", "jnp.var", "jnp.std"]),
    _along("jnp.cumprod({0}, AXIS)"), _along("jnp.diff({0}, axis=AXIS)", least=2),
]  # fmt: skip
EXTREMA = [
    _pair("jnp.maximum({0}, {1})"), _pair("jnp.minimum({0}, {1})"),
    _plain("jnp.maximum({0}, 0.25)"), _with_data("jnp.minimum({0}, {1})"),
    _reduce(["jnp.max", "jnp.min", "jnp.max"]), _window, _clip, _along("jnp.sort({0}, AXIS)"),
    _top_k, _along("jax.lax.cummax({0}, AXIS)"), _along("jax.lax.cummin({0}, AXIS)"),
    _reduce(["jnp.ptp"]), _with_data("jnp.clip({0}, {1} - 0.5, {1} + 0.5)"),
]  # fmt: skip
COMPOSITES = [
    _along("jax.nn.softmax({0}, AXIS)"), _along("jax.nn.log_softmax({0}, AXIS)"),
    _along("jax.nn.logsumexp({0}, AXIS)"), _along("jax.nn.standardize({0}, AXIS)", least=2),
    _pair("jnp.logaddexp({0}, {1})"), _pair("jnp.hypot({0}, {1})"),
    _plain("jax.nn.glu({0})", fits=lambda x: x.ndim > 0 and x.shape[-1] % 2 == 0),
]  # fmt: skip
DISCRETE = [
    _plain("jnp.sign({0})"), _plain("jnp.round({0})"), _plain("jnp.floor({0})"),
    _plain("jnp.ceil({0})"), _plain("pjax.quantize({0}, 3)"), _plain("pjax.quantize({0}, 4, 0.5)"),
    _plain("jnp.trunc({0})"), _plain("jnp.where({0} > 0.0, {0}, 0.1 * {0})"),
    _compare, _compare, _compare, _logic, _logic, _where, _where, _where, _cast,
]  # fmt: skip
CONTROL = [_scan, _scan, _fori, _map, _cond, _frozen]
FAMILIES = [
    (5, VIEWS),
    (5, SUMS),
    (2.5, EXTREMA),
    (4, [_curve]),
    (0.7, COMPOSITES),
    (3, DISCRETE),
    (1.5, CONTROL),
]
_SHARES = np.array([share for share, _ in FAMILIES]) / sum(share for share, _ in FAMILIES)


# What is promised


class Refused(Exception):
    """The compiler says that it cannot solve the program, and why."""


class Failure(Exception):
    """A broken promise: its kind, and the particulars."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


_COMPILED: dict[Any, Any] = {}
_PADDED = 32


def project(c: Constraint, operands: Sequence[Any], target: Any, weights: Weights) -> Projection:
    """``c.rule.project``, compiled once for all constraints alike.

    An elementwise function is padded to one size, with repetitions of its own elements.
    """
    operands = [np.asarray(x) for x in operands]
    target = None if target is None else np.asarray(target)
    out = None if weights.out is None else np.broadcast_to(weights.out, target.shape)
    weights = Weights(weights.operands, out)
    shapes = {x.shape for x in operands}
    padded = isinstance(c.rule, Elementwise) and shapes == {target.shape}
    if not padded or target.size > _PADDED:
        return jax.tree.map(np.asarray, _compiled(c, operands, target, weights))
    size, shape = target.size, target.shape
    weight, *none = weights.operands
    full = Weights(weights.operands, np.resize(out, _PADDED))
    resized = [np.resize(x, _PADDED) for x in operands]
    result = _compiled(c, resized, np.resize(target, _PADDED), full)
    moment = Moment(*(_first(x, size, shape) for x in result.moments[0]))
    moved_out = _first(result.out, size, shape)
    terms = (weight, moment.first / moment.mass - operands[0]), (out, moved_out - target)
    distance = sum(np.sum(w * x**2) for w, x in terms)
    return Projection((moment, *none), moved_out, np.float32(distance))


def _first(x: Any, size: int, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(x, (_PADDED,))[:size].reshape(shape)


def _compiled(c: Constraint, operands: Sequence[Any], target: Any, weights: Weights) -> Projection:
    shapes = [(x.shape, str(x.dtype)) for x in (*operands, *(() if target is None else (target,)))]
    params = repr(sorted(c.params.items()))
    key = (c.rule, params, tuple(shapes), weights.operands)
    if key not in _COMPILED:

        def function(operands: Any, target: Any, out: Any) -> Projection:
            return c.rule.project(c.params, operands, target, Weights(weights.operands, out))

        # What has an address in its name is new every time; then the traced program is the key.
        arguments = (operands, target, weights.out)
        compiled = _shared(function, arguments) if "0x" in params else jax.jit(function)
        _COMPILED[key] = compiled, c  # which keeps its addresses
    return _COMPILED[key][0](operands, target, weights.out)


def _shared(function: Callable[..., Any], arguments: Any) -> Callable[..., Any]:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    consts = [np.asarray(x) for x in _constants(closed)]
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))
    key = (text, tuple((x.shape, x.tobytes()) for x in consts))
    if key not in _COMPILED:
        structure = jax.tree.structure(shape)

        def run(*arguments: Any) -> Any:
            flat = jax.tree.leaves(arguments)
            return structure.unflatten(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *flat))

        _COMPILED[key] = jax.jit(run)
    return _COMPILED[key]


def _constants(closed: Any) -> Iterator[Any]:
    """Arrays in a closed jaxpr that its text does not show."""
    yield from getattr(closed, "consts", ())
    for eqn in getattr(closed, "jaxpr", closed).eqns:
        yield from (a.val for a in eqn.invars if hasattr(a, "val"))
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from _constants(value)


@np.errstate(all="ignore")
def check(program: Program) -> None:
    """Trace, lower, step and project one program.

    Raises:
        Refused: if the compiler refuses it with a reason.
        Failure: if a promise is broken.
    """
    with _guard("trace"):
        solve = pjax.project(
            program.function, program.argnums, metric=program.metric, schedule="parallel"
        )
        try:
            graph = solve.trace(*program.arguments)
        except pjax.PjaxError as error:
            raise Refused(str(error)) from error
    with _guard("lower"):
        arrays = solve.arrays(*program.arguments)
        problem = Problem.forward(graph, pjax.Metric(paths=program.metric), *arrays)
        problem.prepare()
    # With the compiled projections.
    problem.project = functools.partial(_project, problem)  # pyright: ignore
    _check_forward(program, problem)
    for variable in graph.variables:
        mass = np.asarray(problem.mass(variable))
        if not np.all((mass > 0) & np.isfinite(mass)):
            raise Failure("mass", f"{variable} weighs {mass.tolist()}")
    with _guard("gaps"):
        gaps = np.asarray(problem.gaps(problem.values))
    env = problem.start
    for c, gap in zip(graph.constraints, gaps, strict=True):
        if not np.isfinite(gap):
            raise Failure("NaN", f"gap of {c.name} at the start is {gap}\n  {c.label}")
        if c.out is not None:
            unit = _largest(env[c.out], *problem.operands(c, env))
            heaviest = _largest(problem.mass(c.out), *(w or 0.0 for w in problem.weights[c]))
            if gap > heaviest * (1e-3 * unit) ** 2:
                raise Failure("start", f"gap of {c.name} is {gap} at the forward values")
    with _guard("step"):
        solver = pjax.AlternatingProjections(momentum=0.9)
        space = CopyFree(problem)
        carry = solver.init(space, problem.values)
        for step in range(2):
            carry, distances = solver.step(space, carry)
            for c, distance in zip(graph.constraints, np.asarray(distances), strict=True):
                if not np.isfinite(distance):
                    raise Failure("NaN", f"step {step}: {c.name} moves by {distance}")
            for variable, x in zip(graph.variables, solver.values(space, carry), strict=True):
                if not np.all(np.isfinite(x)):
                    raise Failure("NaN", f"step {step}: {variable} is {np.asarray(x).tolist()}")
    _check_projections(problem)


class _guard:  # noqa: N801
    """Whatever is raised inside, but a refusal or a failure, is a crash."""

    def __init__(self, stage: str):
        self.stage = stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or isinstance(error, Refused | Failure | KeyboardInterrupt):
            return
        lines = traceback.format_exception(error)[-6:]
        raise Failure(f"crash in {self.stage}, {kind.__name__}", "".join(lines)) from error


def _project(problem: Problem, c: Constraint, operands: Sequence[Any], target: Any) -> Projection:
    """`Problem.project`, compiled."""
    unread = None if c.out is None else problem.totals[c.out][1]
    if unread is not None:
        target = jnp.where(unread, c.rule.apply(c.params, *operands), target)
    return project(c, operands, target, problem.weights_at(c))


def _check_forward(program: Program, problem: Problem) -> None:
    """What the function returns, against the same program, traced for that."""

    def returned(parameters: list[Any], data: list[Any]) -> list[Any]:
        own, known = iter(parameters), iter(data)
        inputs = [next(own if i.variable else known) for i in program.inputs]
        return jax.tree.leaves(program.function(*inputs))

    with _guard("forward"):
        own = jax.tree.leaves(program.function(*program.arguments))
        arrays: tuple[list[Any], list[Any]] = ([], [])
        for i, x in zip(program.inputs, program.arguments, strict=True):
            arrays[not i.variable].append(x)
        names = [i.name for i in sorted(program.inputs, key=lambda i: not i.variable)]
        traced = trace_program(returned, *arrays, names=names)
        env = traced.evaluate(*arrays)
        for i, (value, expected) in enumerate(zip(traced.outputs, own, strict=True)):
            found = np.asarray(env[value], np.float32)
            expected = np.asarray(expected, np.float32)
            close = functools.partial(np.allclose, found, expected, rtol=1e-4)
            atol = 1e-5 * _largest(expected)
            if close(atol=atol) or close(atol=atol + 10 * rounding(program, i, expected)):
                continue
            found, expected = found.tolist(), expected.tolist()
            raise Failure("forward", f"{value} is {found}, the function says {expected}")


def rounding(program: Program, output: int, expected: Array) -> float:
    """How far an output is moved by the last bits of all values, which are rounded somehow.

    A standardised constant is, by much: what rounding has left of it is divided by √ε.
    """
    name = list(itertools.chain(*program.returned))[output]
    random, moved = np.random.default_rng(0), 0.0

    def rounded(x: Any) -> Any:
        ends = random.choice([-np.inf, 0.0, np.inf], size=x.shape).astype(np.float32)
        up = np.where(ends, np.nextafter(x, ends), x) if x.dtype == np.float32 else x
        return jnp.asarray(up)

    for _ in range(8):
        found = np.asarray(program.values(rounded)[name], np.float32)
        moved = max(moved, float(np.max(np.abs(found - expected), initial=0.0)))
    return moved


def _largest(*arrays: Any) -> float:
    """The largest finite entry, at least 1e-3."""
    entries = [np.abs(np.asarray(x, np.float64)) for x in arrays]
    return max(1e-3, *(float(np.max(x, where=np.isfinite(x), initial=0.0)) for x in entries))


def _check_projections(problem: Problem) -> None:
    """Random points of random weights onto every constraint, in private copies."""
    graph, random = problem.graph, np.random.default_rng(0)
    expanded = expand_copies(graph).constraints
    for c, private in zip(graph.constraints, expanded, strict=True):
        if c.out is None:
            continue
        for scale in (0.3, 3.0):
            _check_private(problem, c, private, scale, random)
            if any(view is not None for view in _expansion(c).views):
                _check_shared(problem, c, private, scale, random)


def _expansion(c: Constraint) -> Any:
    return c.rule.expand(c.params, c.shapes, c.variable)


def _noise(random: np.random.Generator, x: Any, scale: float) -> Array:
    """An array plus noise."""
    return np.asarray(x + scale * random.normal(size=x.shape), np.float32)


def _seen(problem: Problem, view: View) -> Array:
    """Where what a constraint reads depends on variables; rules may rely on the zeros elsewhere."""
    ends = [view(problem.data, *(fill(b.shape, b.dtype) for b in view.bases)) for fill in _ENDS]
    return np.asarray(ends[0] != ends[1])


_ENDS = (jnp.zeros, jnp.ones)


def _weights(problem: Problem, c: Constraint, random: np.random.Generator) -> Weights:
    """Those of the metric; of the output, random powers of two, by which division is exact."""
    out = 2.0 ** random.integers(-5, 6, c.out.shape)
    return Weights(problem.weights[c], np.asarray(out, np.float32))


def _check_private(
    problem: Problem, named: Constraint, c: Constraint, scale: float, random: np.random.Generator
) -> None:
    """Feasible, as near as it says and no farther than (x0, f(x0)), and stays there."""
    operands = [
        np.where(_seen(problem, o), _noise(random, np.asarray(x), scale), x)
        if isinstance(o, View)
        else np.asarray(x)
        for o, x in zip(c.operands, problem.operands(c, problem.start), strict=True)
    ]
    target = _noise(random, np.asarray(problem.start[c.out]), scale)
    weights = _weights(problem, named, random)

    def particulars(**more: Any) -> str:
        shown = {"operands": operands, "out": target, "weights": weights, **more}
        lines = [
            f"  {k} = {jax.tree.map(lambda x: np.asarray(x).tolist(), v)}" for k, v in shown.items()
        ]
        return "\n".join([f"{named.name} ({type(c.rule).__name__})", *lines])

    with _guard(f"projection of {type(c.rule).__name__}"):
        result = project(c, operands, target, weights)
        moved = [
            x if m is None else m.first / m.mass
            for x, m in zip(operands, result.moments, strict=True)
        ]
        variable = [x for x, m in zip(moved, result.moments, strict=True) if m is not None]
        if not all(np.all(np.isfinite(x)) for x in (*variable, result.out, result.distance)):
            raise Failure("NaN", "projection of " + particulars(moved=moved, z=result.out))
        value = np.asarray(c.rule.apply(c.params, *moved))
    out = np.asarray(result.out, np.float64)
    unit = _largest(*operands, target, *moved)
    slack = 1e-3 * np.maximum(unit, np.abs(out))
    # Near a pole, or where the function is steep, rounding x' moves f(x'); but never over a jump.
    for e in () if c.rule.family == "discrete" else (3e-6, -3e-6):
        near = [x if m is None else x * (1 + e) for x, m in zip(moved, result.moments, strict=True)]
        change = np.abs(np.asarray(c.rule.apply(c.params, *near), np.float64) - value)
        slack = np.maximum(slack, np.where(np.isfinite(change), 2 * change, 0) + 1e-3 * unit)
    wrong = np.abs(value - out) > slack
    if wrong.any() or not np.all(np.isfinite(value)):
        raise Failure("infeasible", particulars(moved=moved, z=out, f=value))
    actual = _squares(weights, moved, operands, out, target)
    heaviest = _largest(weights.out, *(w or 0.0 for w in weights.operands))
    floor = heaviest * (1e-4 * unit) ** 2
    stated = float(result.distance)
    if abs(actual - stated) > 1e-3 * actual + floor:
        raise Failure("distance", f"{stated} for {actual}, " + particulars(moved=moved, z=out))
    # A relaxed boolean is on the graph only as 0 or 1.
    relaxed = {Choice: (0,), TruthTable: (0, 1)}.get(type(c.rule), ())
    trivial = [np.round(np.clip(x, 0, 1)) if i in relaxed else x for i, x in enumerate(operands)]
    value = np.asarray(c.rule.apply(c.params, *trivial))
    bound = _squares(weights, trivial, operands, value, target)
    if actual > bound * (1 + 1e-3) + floor:
        raise Failure(
            "not nearest",
            f"{actual} > {bound} of (x0, f(x0)), " + particulars(moved=moved, z=out),
        )
    with _guard(f"second projection of {type(c.rule).__name__}"):
        again = project(c, moved, result.out, weights)
    if not float(again.distance) <= floor + 1e-4 * actual + float(
        np.sum(np.asarray(weights.out) * slack**2)
    ):
        raise Failure(
            "moves again", f"by {float(again.distance)}, " + particulars(moved=moved, z=out)
        )


def _squares(weights: Weights, moved: Any, operands: Any, out: Any, target: Any) -> float:
    """The squared distance between two points, in float64."""
    total = 0.0
    for w, x, y in zip(
        (*weights.operands, weights.out), (*moved, out), (*operands, target), strict=True
    ):
        if w is not None:
            total += np.sum(np.asarray(w, np.float64) * np.square(np.asarray(x, np.float64) - y))
    return float(total)


def _check_shared(
    problem: Problem, c: Constraint, expanded: Constraint, scale: float, random: np.random.Generator
) -> None:
    """The moments without copies are those of explicit copies that agree."""
    values = {v: _noise(random, np.asarray(x), scale) for v, x in problem.start.items()}
    operands, target = problem.operands(c, values), values[c.out]
    weights = _weights(problem, c, random)
    views = _expansion(c).views
    spread = [x if view is None else view(x) for x, view in zip(operands, views, strict=True)]
    with _guard(f"projection without copies of {type(c.rule).__name__}"):
        free = project(c, operands, target, weights)
        explicit = project(expanded, spread, target, weights)
    unit = _largest(*operands, target)
    for i, (m, e, view) in enumerate(zip(free.moments, explicit.moments, views, strict=True)):
        if m is None:
            continue
        sums = [jnp.broadcast_to(x, spread[i].shape) for x in e]
        if view is not None:
            aval = jax.ShapeDtypeStruct(operands[i].shape, operands[i].dtype)
            transpose = jax.linear_transpose(view, aval)
            sums = [transpose(x)[0] for x in sums]
        seen = _seen(problem, c.operands[i])
        for name, a, b in zip(("first", "mass"), m, sums, strict=True):
            a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
            slack = 2e-3 * unit * _largest(sums[1]) if name == "first" else 1e-4 * _largest(b)
            if not np.all((np.abs(a - b) <= slack) | ~seen):
                raise Failure(
                    "lowering",
                    f"{name} moment of operand {i} of {c.name} ({type(c.rule).__name__}) is "
                    f"{a.tolist()} without copies, {b.tolist()} with copies; operands "
                    f"{[np.asarray(x).tolist() for x in operands]}, out {target.tolist()}, "
                    f"weights {weights.out.tolist()}",
                )


def check_compiled(program: Program) -> None:
    """Whole updates, as users make them."""
    for solver in (pjax.AlternatingProjections(momentum=0.9), pjax.DouglasRachford()):
        with _guard(f"update by {type(solver).__name__}"):
            solve = pjax.project(
                program.function, program.argnums, solver=solver, steps=3, metric=program.metric
            )
            arguments = program.arguments
            params = tuple(arguments[n] for n in program.argnums)
            rest = [x for n, x in enumerate(arguments) if n not in program.argnums]
            try:
                new, _, info = solve.update(params, solve.init(params), *rest)
            except pjax.NonFiniteError as error:
                raise Failure("NaN", str(error)) from error
            except (pjax.MissingRuleError, pjax.TraceError) as error:
                raise Refused(str(error)) from error
            if not all(np.all(np.isfinite(x)) for x in (*new, info.gap, info.loss_values)):
                raise Failure("NaN", f"update by {type(solver).__name__}: {info}")


# Shrinking


def failure_of(program: Program, test: Callable[[Program], None] = check) -> Failure | None:
    """How a program fails, if it does."""
    try:
        test(program)
    except Refused:
        return None
    except Failure as failure:
        return failure
    return None


def shrink(program: Program, test: Callable[[Program], None] = check) -> tuple[Program, Failure]:
    """The smallest program found that fails in the same way."""
    failure = failure_of(program, test)
    assert failure is not None
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(program):
            try:
                found = failure_of(candidate, test)
            except Exception:  # a program that does not run by itself
                continue
            if found is not None and found.kind == failure.kind:
                program, failure, smaller = candidate, found, True
                break
    return program, failure


def _smaller(program: Program) -> Iterator[Program]:
    """Simpler programs, the simplest first."""
    replace = dataclasses.replace
    for output in program.outputs if len(program.outputs) > 1 else ():
        yield replace(program, outputs=(output,)).pruned()
    values = program.values()
    simple = "pjax.losses.squared_error"
    for op in reversed(program.ops):
        last = Op("o0", _aim(values[op.name]), (op.name,))
        if (op.name, last.code) not in [(o.operands[0], o.code) for o in program.outputs]:
            if len(program.ops) > 1 or not program.outputs[0].code.startswith(simple):
                yield replace(program, outputs=(last,)).pruned()
    for op in reversed(program.ops):  # an operation becomes a parameter, or data
        for variable in (True, False):
            array = values[op.name]
            if variable and array.dtype != np.float32:
                continue
            name = op.name.replace("v", "wd"[not variable])
            yield _renamed(program, op, Input(name, array, variable))
    for op in reversed(program.ops):  # or one of its operands
        for name in op.operands:
            if values[name].shape == values[op.name].shape:
                if values[name].dtype == values[op.name].dtype:
                    yield _substituted(program, op.name, name)
    if any(w != 1.0 for w in program.weights):
        yield replace(program, weights=(1.0,))
    for n, i in enumerate(program.inputs):
        others = program.inputs[:n], program.inputs[n + 1 :]
        if i.variable and len(program.parameters) > 1:
            fixed = replace(i, variable=False)
            yield replace(program, inputs=(*others[0], fixed, *others[1]))
        if i.array.dtype == np.float32:
            for array in (np.ones_like(i.array), np.round(i.array), np.round(i.array, 1)):
                if np.sum(array != np.round(i.array)) < np.sum(i.array != np.round(i.array)) or (
                    np.any(i.array != 1) and np.all(array == 1)
                ):
                    yield replace(program, inputs=(*others[0], replace(i, array=array), *others[1]))


def _aim(value: Array) -> str:
    scores = "{0}" if value.dtype == np.float32 else "{0}.astype(jnp.float32)"
    shape = value.shape or (1,)
    return f"pjax.losses.squared_error({scores}.reshape{shape}, jnp.ones({shape}, jnp.float32))"


def _renamed(program: Program, op: Op, new: Input) -> Program:
    inputs = (*program.inputs, new)
    ops = tuple(o for o in program.ops if o is not op)
    return _substituted(dataclasses.replace(program, inputs=inputs, ops=ops), op.name, new.name)


def _substituted(program: Program, old: str, new: str) -> Program:
    def follow(op: Op) -> Op:
        operands = tuple(new if name == old else name for name in op.operands)
        return dataclasses.replace(op, operands=operands)

    ops, outputs = tuple(map(follow, program.ops)), tuple(map(follow, program.outputs))
    ops = tuple(op for op in ops if op.name != old)
    return dataclasses.replace(program, ops=ops, outputs=outputs).pruned()


# The command


@dataclasses.dataclass
class Tally:
    """What became of many programs."""

    programs: int = 0
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    failures: list[tuple[int, str, str, str]] = dataclasses.field(default_factory=list)
    operations: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def generate(seed: int, number: int, curves: Sequence[str] | None = None) -> Program:
    """Program ``number`` of a seed; the same everywhere."""
    return Generator([seed, number], curves).program()


def fuzz(
    seed: int,
    numbers: Sequence[int],
    *,
    compiled: int = 100,
    curves: Sequence[str] | None = None,
    small: bool = True,
) -> Tally:
    """Check programs; every ``compiled``-th one by whole updates, too."""
    tally = Tally()
    kinds: collections.Counter = collections.Counter()
    for number in numbers:
        program = generate(seed, number, curves)
        tally.programs += 1
        tally.operations.update({op.code for op in program.ops})
        test = check
        try:
            check(program)
            if compiled and number % compiled == 0:
                test = check_compiled
                check_compiled(program)
        except Refused as refusal:
            tally.refused[
                str(refusal).splitlines()[-1 if "project onto" not in str(refusal) else 1]
            ] += 1
        except Failure as failure:
            kinds[failure.kind] += 1
            if small and kinds[failure.kind] <= 5:
                program, failure = shrink(program, test)
            tally.failures.append((number, failure.kind, str(program), str(failure)))
    return tally


def _batch(arguments: tuple[int, list[int], int, bool]) -> Tally:
    seed, numbers, compiled, small = arguments
    return fuzz(seed, numbers, compiled=compiled, small=small)


def main() -> None:
    """Run the fuzz and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first program")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compiled", type=int, default=100, help="every how many, whole updates")
    parser.add_argument("--whole", action="store_true", help="do not shrink")
    options = parser.parse_args()
    began = time.monotonic()
    numbers = range(options.first, options.first + options.programs)
    count = options.processes
    batches = [
        (options.seed, list(numbers[k::count]), options.compiled, not options.whole)
        for k in range(count)
    ]
    if count == 1:
        tallies = [_batch(batches[0])]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(count, context) as pool:
            tallies = list(pool.map(_batch, batches))
    programs = sum(t.programs for t in tallies)
    refused = sum((t.refused for t in tallies), collections.Counter())
    failures = sorted(f for t in tallies for f in t.failures)
    for number, kind, program, message in failures:
        print(f"\n=== program {number}: {kind}\n{program}\n--- {message}")
    print(f"\n{programs} programs in {time.monotonic() - began:.0f} s")
    print(f"refused {refused.total()} ({refused.total() / programs:.1%})")
    for reason, times in refused.most_common(8):
        print(f"  {times:4d}  {reason[:200]}")
    print(f"failed {len(failures)}", dict(collections.Counter(f[1] for f in failures)))
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
