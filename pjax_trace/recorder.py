"""What a trace writes down: values in program order, and the equations between them."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace import _compat
from pjax_trace.errors import TraceError
from pjax_trace.program import Equation, Value, evaluated
from pjax_trace.registry import translate
from pjax_trace.translation import Outcome, Refuse

__all__ = ["Recorder"]


class Recorder:
    """Equations and values, numbered as they are met; each equation is translated once.

    Args:
        quiet: whether effects are left out, because something else has them.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.count = 0
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}
        self.equal: dict[Any, list[Value]] = {}
        self.feedback: dict[Value, Value] = {}

    @contextlib.contextmanager
    def silence(self, also: bool = True) -> Iterator[None]:
        """Leave out the effects of what is recorded in the block."""
        before, self.quiet = self.quiet, self.quiet or also
        try:
            yield
        finally:
            self.quiet = before

    def snapshot(self) -> tuple[Any, ...]:
        """What to give to `restore` to forget all that was recorded since."""
        containers = (self.equations, self.constants, self.equal, self.feedback)
        return self.count, *(c.copy() for c in containers)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a `snapshot`."""
        self.count, self.equations, self.constants, self.equal, self.feedback = snapshot

    def value(self, aval: Any, variable: bool, name: str = "", *, frozen: bool = False) -> Value:
        """A new value."""
        self.count += 1
        return Value(self.count - 1, tuple(aval.shape), aval.dtype, variable, name, frozen)

    def constant(self, array: Any) -> Value:
        """A new value that is known, or at least data."""
        value = self.value(array, False)
        self.constants[value] = array
        return value

    def real(self, value: Value) -> Value:
        """Data that are complex in name only, as their real part; any other value as it is."""
        if value.variable or not jnp.issubdtype(value.dtype, jnp.complexfloating):
            return value
        known = {v: x for v, x in self.constants.items() if _compat.is_known(x)}
        env = evaluated(self.equations, known, [value])
        if env is None or np.any(np.imag(np.asarray(env[value]))):
            return value
        return self.constant(np.real(np.asarray(env[value])))

    def add(
        self,
        eqn: Any,
        operands: Sequence[Value],
        outcome: Outcome | None,
        scope: str,
        source: str,
    ) -> list[Value]:
        """The outputs of an equation of its own; those of an equal one, if there is one."""
        if eqn.effects and self.quiet:
            if eqn.outvars:
                raise TraceError(
                    f"{eqn.primitive.name} at {source} is in the body of a loop that variables go "
                    "through, which would run it more than once. Call it on data before the loop, "
                    "or use jax.pure_callback, which may run any number of times"
                )
            return []
        key = self._key(eqn, operands)
        if key is not None and key in self.equal:
            return self.equal[key]
        # stop_gradient means stop here too: its output is data, frozen at the forward value. So
        # are integers, which could not move. What is refused is no data, but reported.
        moving = eqn.primitive is not jax.lax.stop_gradient_p and any(v.variable for v in operands)
        avals = [var.aval for var in eqn.outvars]
        refused = isinstance(outcome, Refuse)
        flags = [moving and (refused or bool(jnp.issubdtype(a.dtype, jnp.inexact))) for a in avals]
        results = self._record(
            eqn.primitive,
            eqn.params,
            operands,
            flags,
            avals,
            scope,
            source,
            outcome,
            bool(eqn.effects),
        )
        if key is not None:
            self.equal[key] = results
        return results

    def emit(
        self,
        primitive: Any,
        params: dict[str, Any],
        operands: Sequence[Value],
        variable: Sequence[bool],
        scope: str = "",
        source: str = "",
        effects: bool = False,
    ) -> list[Value]:
        """Add an equation that is in no jaxpr, with outputs that are variables or not."""
        shapes = (jax.ShapeDtypeStruct(v.shape, v.dtype) for v in operands)
        avals = jax.eval_shape(lambda *xs: _compat.bind(primitive, params, *xs), *shapes)
        outcome = translate(primitive, params, operands, tuple(v.variable for v in operands))
        effects = effects and not self.quiet
        return self._record(
            primitive, params, operands, variable, avals, scope, source, outcome, effects
        )

    def _record(
        self,
        primitive: Any,
        params: dict[str, Any],
        operands: Sequence[Value],
        variable: Sequence[bool],
        avals: Sequence[Any],
        scope: str,
        source: str,
        outcome: Outcome | None,
        effects: bool,
    ) -> list[Value]:
        moves = any(v.variable or v.frozen for v in operands)
        frozen = moves and primitive is not jax.lax.stop_gradient_p
        results = [
            self.value(a, flag, frozen=frozen and not flag)
            for a, flag in zip(avals, variable, strict=True)
        ]
        inputs, outputs = tuple(operands), tuple(results)
        self.equations.append(
            Equation(
                len(self.equations),
                primitive,
                params,
                inputs,
                outputs,
                source,
                scope,
                outcome,
                effects,
            )
        )
        return results

    def _key(self, eqn: Any, operands: Sequence[Value]) -> Any:
        """What an equation of variables is equal by; None if it cannot be told.

        So ``x[0] * x[0]`` is a square, and a product that is written twice is read twice, but there
        is one of it.
        """
        if eqn.effects or not any(v.variable for v in operands):
            return None
        key = (eqn.primitive, tuple(operands), tuple(sorted(eqn.params.items(), key=str)))
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def rests_on(self, value: Value, carries: Collection[Value]) -> bool:
        """Whether a value is a view of what some step of a scan reads as its carry."""
        producers = {v: e for e in self.equations for v in e.outputs}
        queue, seen = [value], set()
        while queue:
            value = queue.pop()
            if value in carries:
                return True
            e = producers.get(value)
            if value not in seen and e and e.is_view:
                queue += [v for v in e.inputs if v.variable]
            seen.add(value)
        return False
