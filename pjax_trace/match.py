"""Functions that a rule claims as a whole, found in a traced program by their bodies.

A claimed function of one array is traced at the shape of every value that may be its argument;
where the program has the same equations, they become one constraint. Names play no part: what a
user wrote out by hand is found, too, and a function that was replaced by another is not.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pjax_trace.custom import function_p
from pjax_trace.program import Equation, Program, Value
from pjax_trace.recorder import Recorder
from pjax_trace.registry import FunctionEntry, associative, function_entries, translate
from pjax_trace.translation import Affine

__all__ = ["claim_functions"]

Trace = Callable[..., Program]


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """A function of one array, traced: the equations that depend on it."""

    program: Program
    equations: tuple[Equation, ...]
    producers: Mapping[Value, Equation]

    @staticmethod
    def of(program: Program) -> "_Pattern":
        reached = set(program.parameters)
        equations = []
        for e in program.equations:
            if not reached.isdisjoint(e.inputs):
                reached.update(e.outputs)
                equations.append(e)
        producers = {v: e for e in program.equations for v in e.outputs}
        return _Pattern(program, tuple(equations), producers)


@functools.lru_cache(maxsize=4096)
def _pattern(
    trace: Trace,
    entry: FunctionEntry,
    variant: tuple[tuple[str, Any], ...],
    shape: tuple[int, ...],
    dtype: Any,
) -> _Pattern | None:
    """What a function traces to, or None if it takes no such argument."""

    def function(parameters: list[Any], _: list[Any]) -> Any:
        return entry.function(parameters[0], **dict(variant))

    try:
        aval = jax.ShapeDtypeStruct(shape, dtype)
        program = trace(function, [aval], [], names=["x"], claim=False)
    except Exception:  # whatever the function has against such an argument
        return None
    (*_, out), (value,) = ((program.outputs or (None,)), program.parameters)
    alike = out is not None and out.variable and len(program.outputs) == 1
    return _Pattern.of(program) if alike and out is not value else None


class _Needs(NamedTuple):
    """The primitives of a function, views aside; and those that its argument meets first."""

    anywhere: frozenset[Any] = frozenset()
    first: frozenset[Any] = frozenset()


@functools.lru_cache(maxsize=4096)
def _needs(
    trace: Trace, entry: FunctionEntry, variant: tuple[tuple[str, Any], ...], rank: int, dtype: Any
) -> _Needs:
    """What a program must have for a function to be in it; views depend on sizes, so not they.

    Tracing takes long, and most functions are not in a program at any of its many shapes.
    """
    pattern = _pattern(trace, entry, variant, (2,) * rank, dtype)
    if pattern is None:  # it may take other sizes
        return _Needs()
    anywhere = frozenset(e.primitive for e in pattern.equations if not e.is_view)
    met = _met(pattern.program.parameters[0], _readers(pattern.equations))
    return _Needs(anywhere, met & anywhere)


def _readers(equations: Iterable[Equation]) -> dict[Value, list[Equation]]:
    readers: dict[Value, list[Equation]] = {}
    for e in equations:
        for value in dict.fromkeys(e.inputs):
            readers.setdefault(value, []).append(e)
    return readers


def _met(value: Value, readers: Mapping[Value, Sequence[Equation]]) -> frozenset[Any]:
    """The primitives that read a value, be it through views, which count as well."""
    met, ahead, seen = set(), [value], {value}
    while ahead:
        for e in readers.get(ahead.pop(), ()):
            met.add(e.primitive)
            if e.is_view:
                ahead += [v for v in e.outputs if v not in seen]
                seen.update(e.outputs)
    return frozenset(met)


class _Matcher:
    """One program, to find patterns in."""

    def __init__(self, recorder: Recorder):
        equations = recorder.equations
        self.recorder = recorder
        self.equations = list(equations)
        self.constants = recorder.constants
        self.producers = {v: e for e in equations for v in e.outputs}
        self.readers = _readers(equations)
        self.used: set[Equation] = set()

    def find(self, pattern: _Pattern, x: Value) -> dict[Any, Any] | None:
        """The values (and equations) that stand for the pattern's, with ``x`` as its argument."""
        return next(self._extend(pattern, 0, {pattern.program.parameters[0]: x}), None)

    def _extend(
        self, pattern: _Pattern, number: int, found: dict[Any, Any]
    ) -> Iterator[dict[Any, Any]]:
        if number == len(pattern.equations):
            yield found
            return
        wanted = pattern.equations[number]
        known = next(v for v in wanted.inputs if v in found)
        for e in self.readers.get(found[known], ()):
            if e in self.used or not self._alike(pattern, wanted, e, found):
                continue
            pairs = zip(wanted.outputs, e.outputs, strict=True)
            yield from self._extend(pattern, number + 1, {**found, wanted: e, **dict(pairs)})
        if number == len(pattern.equations) - 1:
            yield from self._regrouped(wanted, found)

    def _regrouped(self, wanted: Equation, found: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """The last equation ``a b`` in ``a (b c)``, whose value the program does not have."""
        if not associative(wanted.primitive):
            return
        first, second = (found.get(v) for v in wanted.inputs)
        for e in self.readers.get(first, ()) if first is not None else ():
            inner = self.producers.get(e.inputs[-1])
            if inner is None or e.inputs[0] is not first or inner.inputs[0] is not second:
                continue
            pair = {e.primitive, inner.primitive}
            if pair == {wanted.primitive} and self.used.isdisjoint((e, inner)):
                (out,) = wanted.outputs
                aval = jax.ShapeDtypeStruct(out.shape, out.dtype)
                yield {**found, wanted: e, out: self.recorder.value(aval, True)}

    def replace(self, place: Equation, claimed: Equation) -> None:
        """Put a claimed function where its last equation was found."""
        i, rest = self.equations.index(place), []
        if claimed.outputs != place.outputs:  # it was regrouped
            factor = self.producers[place.inputs[-1]].inputs[-1]
            inputs = (*claimed.outputs, factor)
            flags = tuple(v.variable for v in inputs)
            outcome = translate(place.primitive, place.params, inputs, flags)
            rest = [dataclasses.replace(place, inputs=inputs, outcome=outcome)]
        self.equations[i : i + 1] = [claimed, *rest]

    def _alike(
        self, pattern: _Pattern, wanted: Equation, e: Equation, found: Mapping[Any, Any]
    ) -> bool:
        if wanted.primitive is not e.primitive or len(wanted.inputs) != len(e.inputs):
            return False
        if [v.shape for v in wanted.outputs] != [v.shape for v in e.outputs]:
            return False
        return _same_params(wanted.params, e.params) and all(
            found[a] is b if a in found else self._same_data(pattern, a, b)
            for a, b in zip(wanted.inputs, e.inputs, strict=True)
        )

    def _same_data(self, pattern: _Pattern, wanted: Value, value: Value) -> bool:
        """Whether data are constants of the same values, or made of such in the same way."""
        wanted, value = _spread(pattern.producers, wanted), _spread(self.producers, value)
        if wanted.shape != value.shape or wanted.dtype != value.dtype:
            return False
        constants = pattern.program.constants
        if wanted in constants:
            if value not in self.constants:
                return False
            try:
                return np.array_equal(constants[wanted], self.constants[value], equal_nan=True)
            except Exception:  # a traced constant, or one of a type of its own
                return constants[wanted] is self.constants[value]
        made, e = pattern.producers.get(wanted), self.producers.get(value)
        if made is None or e is None or made.outputs.index(wanted) != e.outputs.index(value):
            return False
        return self._alike(pattern, made, e, {})


def _spread(producers: Mapping[Value, Equation], value: Value) -> Value:
    """The scalar that all elements are copies of, if there is one; `jax.vmap` copies in steps."""
    source = value
    while (e := producers.get(source)) and _copies_elements(e):
        source = e.inputs[0]
    return value if source.shape else source


def _copies_elements(e: Equation) -> bool:
    """Whether an equation only says where the elements of its one operand go."""
    if len(e.inputs) != 1 or e.inputs[0].dtype != e.outputs[0].dtype:
        return False
    outcome = translate(e.primitive, e.params, e.inputs, (True,))
    if not isinstance(outcome, Affine) or outcome.offset or outcome.scales:
        return False
    return outcome.index is not None


def _same_params(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    for name, value in one.items():
        try:
            same = bool(value == other[name])
        except Exception:  # arrays, or what cannot be compared
            same = False
        # A jaxpr prints alike if it is alike.
        if not same and str(value) != str(other[name]):
            return False
    return True


def claim_functions(recorder: Recorder, trace: Trace) -> list[Equation]:
    """The equations, each claimed function being one of them; what it leaves unread stays.

    ``trace`` makes the programs of the functions.
    """
    matcher, equations = _Matcher(recorder), recorder.equations
    primitives = {e.primitive for e in equations}
    values = list(dict.fromkeys(v for e in equations for v in e.inputs if v.variable))
    # What the values of every shape meet.
    shapes: dict[Any, set[frozenset[Any]]] = {}
    for v in values:
        shapes.setdefault((v.shape, v.dtype), set()).add(_met(v, matcher.readers))
    patterns = []
    for entry in function_entries():
        for (shape, dtype), met in shapes.items():
            for variant in entry.variants_of(shape):
                needs = _needs(trace, entry, variant, len(shape), dtype)
                if not primitives >= needs.anywhere or not any(m >= needs.first for m in met):
                    continue
                pattern = _pattern(trace, entry, variant, shape, dtype)
                if pattern and primitives.issuperset(e.primitive for e in pattern.equations):
                    patterns.append((entry, variant, pattern))
    patterns.sort(key=lambda p: -len(p[2].equations))  # the larger function has the smaller in it
    for entry, variant, pattern in patterns:
        (parameter,), (result,) = pattern.program.parameters, pattern.program.outputs
        for x in values:
            if (x.shape, x.dtype) != (parameter.shape, parameter.dtype):
                continue
            found = matcher.find(pattern, x)
            if found is None:
                continue
            out = found[result]
            matcher.used.update(found[e] for e in pattern.equations)
            place = found[pattern.equations[-1]]
            name = getattr(entry.function, "__name__", "function")
            params = {"rule": entry.rule, "name": name, "params": variant}
            claimed = dataclasses.replace(
                place,
                primitive=function_p,
                params=params,
                inputs=(x,),
                outputs=(out,),
                outcome=translate(function_p, params, (x,), (True,)),
            )
            matcher.replace(place, claimed)
    return matcher.equations
