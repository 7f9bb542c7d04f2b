"""A fuzz of the whole compiler: random programs, traced, lowered, stepped and projected.

A program is a few random operations over parameters and data; it prints as the code that runs. All
that a projection promises is checked on it, and what fails is shrunk to the smallest program that
still fails:

    python -m tests.fuzz --programs 2000 --seed 0 --processes 2
    python -m tests.fuzz --programs 3000 --more

The first draws what networks are made of, the second what else people write, and losses of their
own (`tests.more_programs`). With ``XLA_FLAGS=--xla_backend_optimization_level=0`` it is faster.

Every constraint's projection is compiled once for all programs that have the same one, and an
elementwise function once for all shapes: compilation is what such a fuzz would spend its time on.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
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
from pjax_trace.copies import expand_copies
from pjax_trace.graph import Constraint
from pjax_trace.pairs import as_complex, as_pair
from pjax_trace.problem import Problem
from pjax_trace.rule import Moment, Projection, Weights
from pjax_trace.rules.elementwise import Elementwise
from pjax_trace.rules.logic import Choice, TruthTable
from pjax_trace.spaces import CopyFree
from pjax_trace.trace import trace_program
from pjax_trace.view import View
from tests.more_programs import MoreGenerator
from tests.programs import Array, Generator, Input, Op, Program

__all__ = ["Input", "Op", "Program"]


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

        # What is only equal to itself is new every time; then the traced program is the key.
        arguments = (operands, target, weights.out)
        new = "0x" in params or type(c.rule).__eq__ is object.__eq__
        compiled = _shared(function, arguments) if new else jax.jit(function)
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
            program.function,
            program.argnums,
            metric=program.metric,
            schedule="parallel",
            has_aux=program.has_aux,
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
    _check_losses(problem)


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


class _Quick:
    """A constraint whose rule projects by what is compiled."""

    def __init__(self, c: Constraint):
        self.rule, self.own = self, c
        self.out, self.params, self.variable, self.reads = c.out, c.params, c.variable, c.reads
        self.apply, self.masses, self.joint = c.rule.apply, c.rule.masses, c.rule.joint

    def __hash__(self) -> int:
        return hash(self.own)

    def __eq__(self, other: object) -> bool:
        return other is self.own

    def project(self, params: Any, operands: Any, target: Any, weights: Weights) -> Projection:
        return project(self.own, operands, target, weights)


def _project(problem: Problem, c: Constraint, operands: Sequence[Any], target: Any) -> Projection:
    """`Problem.project`, compiled."""
    return Problem.project(problem, _Quick(c), operands, target)  # pyright: ignore


def _check_forward(program: Program, problem: Problem) -> None:
    """What the function returns, against the same program, traced for that."""

    def returned(parameters: list[Any], data: list[Any]) -> list[Any]:
        own, known = iter(parameters), iter(data)
        inputs = [next(own if i.variable else known) for i in program.inputs]
        paired = [i.variable and i.array.dtype == np.complex64 for i in program.inputs]
        inputs = [as_complex(x) if p else x for x, p in zip(inputs, paired, strict=True)]
        return jax.tree.leaves(program.function(*inputs))

    with _guard("forward"):
        own = jax.tree.leaves(program.function(*program.arguments))
        arrays: tuple[list[Any], list[Any]] = ([], [])
        for i, x in zip(program.inputs, program.arguments, strict=True):
            arrays[not i.variable].append(x)
        arrays = list(map(as_pair, arrays[0])), arrays[1]
        names = [i.name for i in sorted(program.inputs, key=lambda i: not i.variable)]
        traced = trace_program(returned, *arrays, names=names)
        env = traced.evaluate(*arrays)
        for i, (value, expected) in enumerate(zip(traced.outputs, own, strict=True)):
            found, expected = np.asarray(env[value]), np.asarray(expected)
            if np.iscomplexobj(expected):
                expected = np.stack([expected.real, expected.imag])
                found = found if np.isrealobj(found) else np.stack([found.real, found.imag])
            found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
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
        if x.dtype == np.complex64:
            return jax.lax.complex(rounded(x.real), rounded(x.imag))
        up = np.where(ends, np.nextafter(x, ends), x) if x.dtype == np.float32 else x
        return jnp.asarray(up)

    for _ in range(8):
        found = program.values(rounded)[name]
        found = np.stack([found.real, found.imag]) if np.iscomplexobj(found) else found
        found = np.asarray(found, np.float32)
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


def _check_losses(problem: Problem) -> None:
    """What the proximal step of a loss minimises is finite, and no more than where it began."""
    random = np.random.default_rng(0)
    for c in problem.graph.losses:
        for scale in (0.3, 3.0):
            values = {v: _noise(random, np.asarray(x), scale) for v, x in problem.start.items()}
            operands, weights = problem.operands(c, values), problem.weights_at(c)
            with _guard(f"projection of {type(c.rule).__name__}"):
                result = project(c, operands, None, weights)
                moved = list(operands)
                for i in c.views:
                    moved[i] = result.moments[i].first / result.moments[i].mass
                costs = [_proximal(c, weights, x, operands) for x in (operands, moved)]
            shown = f"{c.name} ({type(c.rule).__name__}) from {operands} to {moved}"
            if not np.isfinite(costs[0]):
                continue  # no value there, so none nearby is looked for
            if not all(np.all(np.isfinite(x)) for x in (*(moved[i] for i in c.views), costs[1])):
                raise Failure("NaN", shown)
            slack = 1e-4 * _largest(costs[0], operands[-1])
            if not costs[1] <= costs[0] + slack:
                raise Failure("rises", f"from {costs[0]} to {costs[1]}: {shown}")


def _proximal(c: Constraint, weights: Weights, moved: Any, operands: Any) -> float:
    """``Σ λ T(x) + ½ Σ ω |x − goal|²``."""
    terms = np.asarray(c.rule.apply(c.params, *map(jnp.asarray, moved[:-1])), np.float64)
    lams = np.asarray(operands[-1], np.float64)
    total = float(np.sum(np.where(lams != 0, lams * terms, 0)))
    return total + _squares(weights, moved, operands, None, None) / 2


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
    if re.match("lgamma|digamma", named.name):  # whose rules are of positive numbers
        operands = [np.maximum(x, np.float32(0.05)) for x in operands]
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
        value = np.asarray(c.rule.apply(c.params, *map(jnp.asarray, moved)))
    out = np.asarray(result.out, np.float64)
    unit = _largest(*operands, target, *moved)
    slack = 1e-3 * np.maximum(unit, np.abs(out))
    # Near a pole, or where the function is steep, rounding x' moves f(x'); but never over a jump.
    for e in () if c.rule.family == "discrete" else (3e-6, -3e-6):
        near = [x if m is None else x * (1 + e) for x, m in zip(moved, result.moments, strict=True)]
        change = np.abs(
            np.asarray(c.rule.apply(c.params, *map(jnp.asarray, near)), np.float64) - value
        )
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
    value = np.asarray(c.rule.apply(c.params, *map(jnp.asarray, trivial)))
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


SOLVERS = (pjax.AlternatingProjections(momentum=0.9), pjax.DouglasRachford(), pjax.Sweep())


def check_compiled(program: Program, solvers: Sequence[Any] = SOLVERS) -> None:
    """Whole updates, as users make them."""
    for solver in solvers:
        with _guard(f"update by {type(solver).__name__}"):
            solve = pjax.project(
                program.function,
                program.argnums,
                solver=solver,
                steps=min(3, solver.default_steps),
                metric=program.metric,
                has_aux=program.has_aux,
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
            if [(x.shape, x.dtype) for x in new] != [(x.shape, x.dtype) for x in params]:
                raise Failure("types", f"update by {type(solver).__name__}: {new}")


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


def generate(
    seed: int, number: int, curves: Sequence[str] | None = None, more: bool = False
) -> Program:
    """Program ``number`` of a seed; the same everywhere."""
    return (MoreGenerator if more else Generator)([seed, number], curves).program()


def fuzz(
    seed: int,
    numbers: Sequence[int],
    *,
    compiled: int = 100,
    curves: Sequence[str] | None = None,
    small: bool = True,
    more: bool = False,
) -> Tally:
    """Check programs; every ``compiled``-th one by whole updates, too."""
    tally = Tally()
    kinds: collections.Counter = collections.Counter()
    for number in numbers:
        program = generate(seed, number, curves, more)
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


def _batch(arguments: tuple[int, list[int], dict[str, Any]]) -> Tally:
    seed, numbers, options = arguments
    return fuzz(seed, numbers, **options)


def main() -> None:
    """Run the fuzz and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first program")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compiled", type=int, default=100, help="every how many, whole updates")
    parser.add_argument("--whole", action="store_true", help="do not shrink")
    parser.add_argument("--more", action="store_true", help="the programs of tests.more_programs")
    options = parser.parse_args()
    began = time.monotonic()
    numbers = range(options.first, options.first + options.programs)
    count = options.processes
    chosen = {"compiled": options.compiled, "small": not options.whole, "more": options.more}
    batches = [(options.seed, list(numbers[k::count]), chosen) for k in range(count)]
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
