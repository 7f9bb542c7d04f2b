"""Random programs for the fuzz: what they are made of, and how they are drawn."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pjax_trace as pjax

Array = np.ndarray
LARGEST = 24  # elements of a value
HEADER = "import jax\nimport jax.numpy as jnp\nimport pjax_trace as pjax\n"
TOTAL = "    return total"


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
    def is_set(self) -> bool:
        return self.code.startswith("pjax.constrain")

    @property
    def expression(self) -> str:
        return re.sub(r"\{(\d)\}", lambda match: self.operands[int(match[1])], self.code)


@dataclasses.dataclass(frozen=True)
class Program:
    """Inputs, operations and output constraints; ``str(program)`` is code that runs.

    What it returns is, by its ``form``: ``"lists"`` of all losses and of what they are of;
    ``"scalar"``, the sum of the losses; or ``"aux"``, that sum and what the losses are of.
    """

    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Op, ...]
    weights: tuple[float, ...] = (1.0,)
    form: str = "lists"

    @property
    def definition(self) -> str:
        lines = [f"def fit({', '.join(i.name for i in self.inputs)}):"]
        lines += [f"    {op}" for op in (*self.ops, *self.outputs)]
        losses, values = map(", ".join, self.returned)
        if self.summed:
            lines.append(f"    total = {self.objective}")
            return "\n".join([*lines, f"    return total, [{values}]" if self.has_aux else TOTAL])
        return "\n".join([*lines, f"    return [{losses}], [{values}]"])

    @property
    def returned(self) -> tuple[list[str], list[str]]:
        """The names of losses and constrained values, and of what they are of."""
        values = list(dict.fromkeys(name for op in self.outputs for name in op.operands))
        if self.summed:
            return ["total"], values if self.has_aux else []
        return [op.name for op in self.outputs], values

    @property
    def objective(self) -> str:
        """The sum of the losses."""
        return " + ".join(op.name for op in self.outputs if not op.is_set)

    @property
    def summed(self) -> bool:
        """Whether the objective is a scalar; there may be nothing but sets."""
        return self.form != "lists" and bool(self.objective)

    @property
    def has_aux(self) -> bool:
        """Whether it returns the objective and other things."""
        return self.form == "aux" and self.summed

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
        names = [x.name for x in (*self.inputs, *self.ops, *self.outputs)]
        if self.summed:
            scope["total"] = rounded(eval(self.objective, scope))  # noqa: S307
            names.append("total")
        return {name: np.asarray(scope[name]) for name in names}

    def __str__(self) -> str:
        arguments = [f"{i.name} = {literal(i.array)}" for i in self.inputs]
        names = ", ".join(i.name for i in self.inputs)
        metric = f", metric={self.metric}" if set(self.weights) != {1.0} else ""
        aux = ", has_aux=True" if self.has_aux else ""
        call = f"pjax.project(fit, {self.argnums}, steps=2{metric}{aux})({names})"
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


def literal(array: Array) -> str:
    """``jnp.array(…)`` of a literal, to seven digits."""
    if array.dtype == np.complex64:
        return f"jax.lax.complex({literal(array.real)}, {literal(array.imag)})"
    if array.dtype != np.float32:
        dtype = "bool" if array.dtype == bool else "jnp.int32"
        return f"jnp.array({array.tolist()}, {dtype})"
    digits = np.array([float(f"{x:.7g}") for x in array.ravel().tolist()]).reshape(array.shape)
    return f"jnp.array({digits.tolist()}, jnp.float32)"


# Generation


class Unfit(Exception):
    """An operation that has no operands here."""


class Generator:
    """Draws one program. Its operations are checked by their forward values as they are drawn.

    Args:
        seed: of all that is random.
        curves: of the elementwise functions, these.
        families: of operations, each with its share; default: `FAMILIES`.
        shapes: of parameters.
        most: how many operations there are at most.
        weighed: the share of programs whose parameters have weights.
    """

    def __init__(
        self,
        seed: Any,
        curves: Sequence[str] | None = None,
        families: Sequence[tuple[float, Sequence[Any]]] | None = None,
        shapes: Sequence[tuple[int, ...]] | None = None,
        most: int = 8,
        weighed: float = 0.25,
    ):
        self.random = np.random.default_rng(seed)
        self.inputs: list[Input] = []
        self.ops: list[Op] = []
        self.values: dict[str, Array] = {}
        self.variable: set[str] = set()
        self.scope: dict[str, Any] = {"jax": jax, "jnp": jnp, "pjax": pjax}
        self.curves = CURVES if curves is None else {c: CURVES[c] for c in curves}
        families = FAMILIES if families is None else families
        self.families = [family for _, family in families]
        self.shares = np.array([share for share, _ in families])
        self.shares = self.shares / self.shares.sum()
        self.shapes, self.most, self.weighed = shapes or SHAPES, most, weighed

    def program(self) -> Program:
        shapes = [self.choice(self.shapes) for _ in range(self.random.integers(1, 4))]
        if len(shapes) > 1 and self.chance(0.7):
            shapes[1] = shapes[0]
        for shape in shapes:
            self.input(shape, True)
        count = int(self.random.integers(2, self.most + 1))
        tries = 0
        while len(self.ops) < count and tries < 60:
            tries += 1
            self.extend()
        read = {name for op in self.ops for name in op.operands}
        ends = [op.name for op in self.ops if op.name not in read and op.name in self.variable]
        ends = ends[-3:] or [self.inputs[0].name]
        outputs, form = self.objective(ends)
        weights = (1.0,)
        if self.chance(self.weighed):
            weights = tuple(float(w) for w in self.random.choice([0.25, 1.0, 4.0, 16.0], 3))
        program = Program(tuple(self.inputs), tuple(self.ops), tuple(outputs), weights, form)
        return program.pruned()

    def objective(self, ends: Sequence[str]) -> tuple[list[Op], str]:
        """Losses and sets on what nothing else reads, and the form in which they are returned."""
        return [self.output(name, n) for n, name in enumerate(ends)], "lists"

    def extend(self) -> None:
        """One more operation, if what is drawn has a value to go on with."""
        inputs = len(self.inputs)
        family = self.families[self.random.choice(len(self.families), p=self.shares)]
        try:
            code, operands = self.choice(family)(self)
            op = Op(f"v{len(self.ops)}", code, tuple(operands))
            value = np.asarray(eval(op.expression, self.scope))  # noqa: S307
            if not 0 < value.size <= LARGEST or value.ndim > 4:
                raise Unfit
            if not np.all(np.abs(value.astype(np.result_type(value, np.float32))) <= 30):
                raise Unfit  # NaN included
        except Unfit:
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
            target = literal(np.round(self.random.normal(size=shape), 1).astype(np.float32))
            code = f"pjax.losses.squared_error({scores}.reshape{shape}, {target})"
        else:
            labels = literal(self.random.integers(0, value.shape[-1], value.shape[:-1]))
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
        return self.argument(array, variable)

    def argument(self, array: Array, variable: bool) -> str:
        """A new argument of these values."""
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
            raise Unfit
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
            raise Unfit
        return self.choice(names)

    def like(self, name: str) -> str:
        shape = self.values[name].shape
        return self.other(lambda x: x.shape == shape)

    def axis(self, name: str) -> int:
        if not self.values[name].ndim:
            raise Unfit
        return int(self.random.integers(self.values[name].ndim))


Drawn = tuple[str, Sequence[str]]
SHAPES = [(3,), (3,), (2, 3), (2, 3), (2, 3), (3, 3), (2, 2, 3), (1, 3), (4,), ()]


def plain(code: str, fits: Callable[[Array], bool] = lambda x: True) -> Any:
    """An operation on any one variable."""

    def draw(g: Generator) -> Drawn:
        name = g.pick(fits)
        return code, [name]

    return draw


def pair(code: str, *, fits: Any = None) -> Any:
    """An operation on two variables of one shape."""

    def draw(g: Generator) -> Drawn:
        first = g.pick()
        second = g.like(first)
        if fits is not None and not fits(g.values[second]):
            raise Unfit
        return code, [first, second]

    return draw


def with_data(code: str, positive: bool = False) -> Any:
    """An operation on a variable and new data of its shape."""

    def draw(g: Generator) -> Drawn:
        name = g.pick()
        return code, [name, g.input(g.values[name].shape, False, positive)]

    return draw


def along(code: str, least: int = 1) -> Any:
    """An operation on a variable along AXIS."""

    def draw(g: Generator) -> Drawn:
        name = g.pick(lambda x: x.ndim > 0)
        axis = g.axis(name)
        if g.values[name].shape[axis] < least:
            raise Unfit
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
    return f"jnp.take({{0}}, {literal(index)}, axis={axis})", [name]


def _take_along(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    shape = g.values[name].shape
    index = g.random.integers(0, shape[-1], (*shape[:-1], int(g.random.integers(1, 3))))
    return f"jnp.take_along_axis({{0}}, {literal(index)}, axis=-1)", [name]


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
    mask = literal(g.random.random(g.values[first].shape) < 0.5)
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
    return f"{{0}}.at[{literal(index)}].add({{1}})", [first, second]


def _segments(g: Generator) -> Drawn:
    name = g.pick(lambda x: x.ndim > 0)
    index = g.random.integers(0, 3, g.values[name].shape[0])
    return f"jax.ops.segment_sum({{0}}, {literal(index)}, 3)", [name]


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
        raise Unfit
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
    _where_data, _set, along("jnp.flip({0}, AXIS)"), along("jnp.roll({0}, 1, AXIS)"),
    along("jnp.repeat({0}, 2, AXIS)"),
    plain("-{0}"), plain("2.0 * {0}"), plain("{0} + 0.5"),
    plain("1.0 - {0}"), with_data("{0} * {1}"), with_data("{0} + {1}"),
    with_data("{0} / {1}", positive=True), pair("jnp.stack([{0}, {1}])"),
    along("jax.lax.dynamic_slice_in_dim({0}, 1, 1, AXIS)"),
]  # fmt: skip
SUMS = [
    pair("{0} + {1}"), pair("{0} - {1}"), pair("{0} * {1}"),
    pair("{0} / (jnp.square({1}) + 0.5)"), plain("{0} * {0}"),
    pair("{0} / {1}", fits=lambda x: bool(np.all(np.abs(x) > 0.3))),
    with_data("{1} / (jnp.square({0}) + 0.5)"),
    _broadcast_pair, _broadcast_pair, _matmul, _matmul, _matmul, _einsum, _convolve, _window,
    along("jnp.cumsum({0}, AXIS)"), _reduce(["jnp.sum", "jnp.mean", "jnp.sum"]),
    _scatter_add, _segments, _reduce(["jnp.prod", "jnp.var", "jnp.std"]),
    along("jnp.cumprod({0}, AXIS)"), along("jnp.diff({0}, axis=AXIS)", least=2),
]  # fmt: skip
EXTREMA = [
    pair("jnp.maximum({0}, {1})"), pair("jnp.minimum({0}, {1})"),
    plain("jnp.maximum({0}, 0.25)"), with_data("jnp.minimum({0}, {1})"),
    _reduce(["jnp.max", "jnp.min", "jnp.max"]), _window, _clip, along("jnp.sort({0}, AXIS)"),
    _top_k, along("jax.lax.cummax({0}, AXIS)"), along("jax.lax.cummin({0}, AXIS)"),
    _reduce(["jnp.ptp"]), with_data("jnp.clip({0}, {1} - 0.5, {1} + 0.5)"),
]  # fmt: skip
COMPOSITES = [
    along("jax.nn.softmax({0}, AXIS)"), along("jax.nn.log_softmax({0}, AXIS)"),
    along("jax.nn.logsumexp({0}, AXIS)"), along("jax.nn.standardize({0}, AXIS)", least=2),
    pair("jnp.logaddexp({0}, {1})"), pair("jnp.hypot({0}, {1})"),
    plain("jax.nn.glu({0})", fits=lambda x: x.ndim > 0 and x.shape[-1] % 2 == 0),
]  # fmt: skip
DISCRETE = [
    plain("jnp.sign({0})"), plain("jnp.round({0})"), plain("jnp.floor({0})"),
    plain("jnp.ceil({0})"), plain("pjax.quantize({0}, 3)"), plain("pjax.quantize({0}, 4, 0.5)"),
    plain("jnp.trunc({0})"), plain("jnp.where({0} > 0.0, {0}, 0.1 * {0})"),
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
