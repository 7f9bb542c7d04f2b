"""Slices of sums become sums of slices: ``split(x @ w + b)`` reads three products, not one.

So the gates of a recurrent cell fold into the sums that read them, and there is one constraint
where there were two. It is done where every reader of the sum reads a part of it, each its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from pjax_trace.program import Equation, Value
from pjax_trace.recorder import Recorder
from pjax_trace.translation import Affine, Project, Range

__all__ = ["narrow_sums"]

Walk = Callable[..., list[Value]]


def narrow_sums(recorder: Recorder, outputs: Sequence[Value], walk: Walk) -> list[Equation]:
    """The equations of a recorder, slices moved in front of the sums that they are taken of.

    ``walk`` records the equations of a jaxpr.
    """
    old = recorder.equations
    narrowing = _Narrowing(recorder, outputs, walk)
    equations: list[Equation] = []
    for e in old:
        recorder.equations = []
        ranges = narrowing.of(e)
        if ranges is None:
            equations.append(e)
            continue
        for part, out in zip(ranges, e.outputs, strict=True):
            last = narrowing.restricted(e.inputs[0], part)
            place = next(i for i, made in enumerate(recorder.equations) if last in made.outputs)
            made = recorder.equations[place]
            recorder.equations[place] = dataclasses.replace(made, outputs=(out,))
        equations += recorder.equations
    return [dataclasses.replace(e, index=i) for i, e in enumerate(equations)]


class _Narrowing:
    def __init__(self, recorder: Recorder, outputs: Sequence[Value], walk: Walk):
        self.recorder, self.walk = recorder, walk
        self.producers = {v: e for e in recorder.equations for v in e.outputs}
        self.readers: dict[Value, list[Equation]] = {}
        for e in recorder.equations:
            for value in dict.fromkeys(e.inputs):
                self.readers.setdefault(value, []).append(e)
        self.kept = {*outputs, *recorder.feedback.values()}

    def of(self, e: Equation) -> list[Range] | None:
        """The parts that an equation takes of a sum that nothing else reads as a whole."""
        ranges = self._cut(e)
        if not ranges or not self._narrows(e.inputs[0], ranges[0]):
            return None
        value = e.inputs[0]
        parts = [part for reader in self.readers[value] for part in self._cut(reader) or [None]]
        if None in parts or len({part.axis for part in parts if part}) > 1:
            return None
        ordered = sorted((part for part in parts if part), key=lambda part: part.start)
        apart = all(a.stop <= b.start for a, b in zip(ordered, ordered[1:], strict=False))
        return ranges if apart and len(ordered) > 1 else None

    def _cut(self, e: Equation) -> list[Range] | None:
        return list(e.affine.ranges) if e.is_view else None

    def _narrows(self, value: Value, part: Range, *, inside: bool = False) -> bool:
        """Whether a part of a value can be computed, with a constraint, from parts of others."""
        e = self.producers.get(value)
        if e is None or value in self.kept or (inside and len(self.readers[value]) > 1):
            return False
        operands = self._operands(e, part)
        if operands is None:
            return False
        if not e.is_view:
            return True
        return any(
            own is not None and self._narrows(v, own, inside=True)
            for v, own in zip(e.inputs, operands[1], strict=True)
        )

    def _operands(
        self, e: Equation, part: Range
    ) -> tuple[dict[str, Any], tuple[Range | None, ...]] | None:
        if not isinstance(e.outcome, Affine | Project) or [v.variable for v in e.outputs] != [True]:
            return None
        return e.outcome.part(part) if e.outcome.part is not None else None

    def restricted(self, value: Value, part: Range, *, inside: bool = False) -> Value:
        """A part of a value, its equations added to the recorder."""
        if not self._narrows(value, part, inside=inside):
            return self._slice(value, part)
        e = self.producers[value]
        found = self._operands(e, part)
        assert found is not None
        params, operands = found
        inputs = [
            v if own is None else self.restricted(v, own, inside=True)
            for v, own in zip(e.inputs, operands, strict=True)
        ]
        (out,) = self.recorder.emit(
            e.primitive, params, inputs, (True,), scope=e.scope, source=e.source
        )
        return out

    def _slice(self, value: Value, part: Range) -> Value:
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        cut = (part.start, part.stop, 1, part.axis)
        closed = jax.make_jaxpr(lambda x: lax.slice_in_dim(x, *cut))(shape)
        return self.walk(closed.jaxpr, closed.consts, [value], rewritten=True)[0]
