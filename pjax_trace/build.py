"""A traced program → its consensus graph.

The translation of every equation that variables reach says what it is: a view, or a constraint.
Calls of losses and sets are output constraints, and what the function makes of its losses on their
way out scales them. What has no rule is collected, and reported all at once.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace import _compat
from pjax_trace.colour import colour
from pjax_trace.control import carries_p, loop_p
from pjax_trace.custom import constrain_p, function_p, loss_p
from pjax_trace.errors import MissingRuleError, TraceError
from pjax_trace.graph import (
    ConsensusGraph,
    Constraint,
    LoopRule,
    Loss,
    Membership,
    Objective,
)
from pjax_trace.program import Equation, Program, Value, needed_equations
from pjax_trace.rewrite import absorb_producers
from pjax_trace.translation import Affine, Outcome, Project, Refuse
from pjax_trace.view import Variable, View

__all__ = ["OUTPUTS", "build_graph"]

OUTPUTS = (loss_p, constrain_p)

_CALLS = {loss_p: Loss, constrain_p: Membership, function_p: Constraint}


def build_graph(program: Program, *, strict: bool = True, coloured: bool = True) -> ConsensusGraph:
    """The consensus graph of a program.

    Args:
        program: the program.
        strict: whether to raise what is wrong; otherwise it is in the graph's ``problems``, and
            what cannot be projected onto is left out, its outputs being free variables.
        coloured: whether to colour it, which may take identities; a sweep has no use for them.

    Raises:
        MissingRuleError: for primitives without a rule, all at once.
        TraceError: for arithmetic on losses that is no positive scale or mean, and for control flow
            that depends on a variable.
    """
    builder = _Builder(program)
    for equation in program.equations:
        builder.visit(equation)
    builder.feed_back()
    builder.finish(strict)
    graph = ConsensusGraph(
        program,
        tuple(builder.parameters),
        tuple(builder.constraints),
        builder.objective(),
        tuple(builder.views.get(value) for value in program.outputs),
        problems=tuple(builder.problems),
    )
    graph = absorb_producers(graph)
    return colour(graph) if coloured else graph


class _Builder:
    def __init__(self, program: Program):
        self.program = program
        self.parameters = [Variable(value.name, value, True) for value in program.parameters]
        self.views = {p.value: View.of(p) for p in self.parameters}
        self.constraints: list[Constraint] = []
        self.losses: dict[Value, Value] = {}  # a loss's value → its scale
        self.after: set[Value] = set()  # values made of losses
        self.linear: list[Equation] = []
        self.names = collections.Counter[str]()
        self.missing: list[tuple[Equation, str]] = []
        self.problems: list[str] = []
        self.live = _live(program)
        self.carries: list[Variable] = []

    def visit(self, equation: Equation) -> None:
        """Class one equation."""
        if not self.after.isdisjoint(equation.inputs):
            self.visit_objective(equation)
            return
        variable = tuple(v in self.views for v in equation.inputs)
        if equation in self.live and self.visit_loop(equation, variable):
            return
        frozen = not any(v.variable for v in equation.outputs)
        if not any(variable) or equation not in self.live or frozen:
            return
        outcome = equation.outcome
        if equation.primitive is carries_p:
            for value in equation.outputs:
                if value.variable:  # stands for what the step before wrote, further down
                    self.carries.append(Variable("carry", value, False))
                    self.views[value] = View.of(self.carries[-1])
        elif equation.primitive is loop_p:
            self.keep_loop(equation)
        elif isinstance(outcome, Affine):
            self.view(equation)
        elif not isinstance(outcome, Project):
            self.miss(equation, variable, outcome)
        elif equation.primitive in _CALLS:
            self.visit_call(equation, outcome)
        else:
            self.constrain(equation, outcome, equation.primitive.name)

    def keep_loop(self, equation: Equation) -> None:
        """A scan as one constraint for each of its outputs, which are projected onto together."""
        loop = equation.params["loop"]
        body = build_graph(loop.program, coloured=False)
        count = len(equation.outputs) - loop.scan.carries
        results, slots = equation.outputs[:count], equation.outputs[count:]
        rule = LoopRule(loop, body, slots)
        for i, result in enumerate(results):
            if result.variable:
                self.constrain(equation, Project(rule, {"output": i}), "scan", result=result)

    def visit_call(self, equation: Equation, outcome: Project) -> None:
        """A function with a rule of its own, a loss or a set."""
        kind, name = _CALLS[equation.primitive], equation.params["name"]
        (out,) = equation.outputs
        if kind is Constraint:
            self.constrain(equation, outcome, name, result=out)
            return
        extra: tuple[Value, ...] = ()
        if kind is Loss:
            scale = Value(-1 - len(self.losses), out.shape, out.dtype, False)
            self.losses[out] = scale
            self.after.add(out)
            extra = (scale,)
        else:
            self.views[out] = self.views[equation.inputs[0]]  # the identity: x itself goes on
        self.constrain(equation, outcome, name, extra, kind)

    def visit_loop(self, equation: Equation, variable: Sequence[bool]) -> bool:
        """Whether the equation is a loop or branch that variables decide, which is refused."""
        kind = _compat.loop_kind(equation.primitive)
        deciding = _compat.loop_predicates(equation) if kind else ()
        if not any(variable[i] or equation.inputs[i].frozen for i in deciding):
            return False
        what = "a branch (lax.cond or switch)" if kind == "cond" else "a loop (while_loop)"
        direct = [i in deciding and flag for i, flag in enumerate(variable)]
        origin = self.path(equation, direct) or "a variable"
        self.problems.append(
            f"{what} at {equation.source} depends on the value of {origin}; a projection cannot "
            "change the course of a program. Use jnp.where, or decide by data (what went through "
            "jax.lax.stop_gradient is data)"
        )
        self.forget(equation)
        return True

    def visit_objective(self, equation: Equation) -> None:
        """Losses may be scaled by data, summed and averaged on the way out."""
        known = all(v in self.after or not v.variable for v in equation.inputs)
        if not known or not self.adds(equation):
            self.problems.append(
                f"{equation.primitive.name} of a loss at {equation.source}: a loss may be scaled "
                "by a positive number, averaged, and added to other losses on its way out of the "
                "function, because that scales its λ; anything else has no projection. Constrain "
                "or penalise the arrays themselves, each with a loss or a set of its own"
            )
        self.after.update(equation.outputs)
        self.linear.append(equation)

    def adds(self, equation: Equation) -> bool:
        """Whether an equation is linear in losses, with coefficients that are surely not negative.

        Its derivative, for all outputs together, must be the same at two points, and it must vanish
        with the losses. Zeros among others mask rows; a zero alone would make the loss nothing.
        Data that are not known yet count as ones.
        """
        if equation.primitive is jax.lax.stop_gradient_p:
            return False
        losses = list(dict.fromkeys(v for v in equation.inputs if v in self.after))

        def function(*values: jax.Array) -> list[jax.Array]:
            own = dict(zip(losses, values, strict=True))
            operands = (own[v] if v in own else self.datum(v) for v in equation.inputs)
            return equation.evaluate(*operands)

        slopes = []
        with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
            for value in (0, 2):
                point = [jnp.full(v.shape, value, v.dtype) for v in losses]
                outs, pull = jax.vjp(function, *point)
                if not all(jnp.issubdtype(out.dtype, jnp.inexact) for out in outs):
                    return False
                if not value and any(np.any(np.asarray(out)) for out in outs):
                    return False
                slopes.append([np.asarray(x) for x in pull([jnp.ones_like(out) for out in outs])])
        same = all(np.allclose(a, b) for a, b in zip(*slopes, strict=True))
        return same and all(np.all(x >= 0) and np.any(x > 0) for x in slopes[0])

    def datum(self, value: Value) -> np.ndarray:
        """A value that is no loss; 1 where it is not known yet."""
        return np.asarray(self.program.known.get(value, np.ones(value.shape, value.dtype)))

    def constrain(
        self,
        equation: Equation,
        outcome: Project,
        name: str,
        extra: tuple[Value, ...] = (),
        kind: type[Constraint] = Constraint,
        result: Value | None = None,
    ) -> None:
        """Add a constraint."""
        number = self.names[name]
        self.names[name] += 1
        name = f"{name}_{number}" if number else name
        operands = (*(self.views.get(v, v) for v in equation.inputs), *extra)
        out = None
        if kind is Constraint:
            value = equation.outputs[0] if result is None else result
            out = Variable(name, value, False)
            self.views[value] = View.of(out)
        rule, params = outcome.rule, outcome.params
        source, scope = equation.source, equation.scope
        self.constraints.append(kind(name, rule, params, operands, out, source, scope))

    def view(self, equation: Equation) -> None:
        read = [self.views[v] for v in equation.inputs if v in self.views]
        bases = tuple(dict.fromkeys(base for view in read for base in view.bases))
        equations = {e.index: e for view in read for e in view.equations}
        equations[equation.index] = equation
        ordered = tuple(equations[i] for i in sorted(equations))
        for out in equation.outputs:
            self.views[out] = View(bases, ordered, out)

    def miss(self, equation: Equation, variable: Sequence[bool], outcome: Outcome | None) -> None:
        """Keep what has no rule, to report it with all else that is wrong."""
        if isinstance(outcome, Refuse) and equation.primitive in OUTPUTS:
            name = equation.params["name"]
            self.problems.append(f"{name} at {equation.source}: {outcome.reason}")
            self.forget(equation)
            return
        reason = outcome.reason if isinstance(outcome, Refuse) else "no rule"
        if _compat.loop_kind(equation.primitive):
            reason = (
                "a loop whose length is not known while tracing has no rule; use lax.scan, "
                "fori_loop with a static count, or unroll it"
            )
        self.missing.append((equation, f"{reason}, reached from {self.path(equation, variable)}"))
        self.forget(equation)

    def forget(self, equation: Equation) -> None:
        """Go on as if the outputs were free variables, to find everything else that is wrong."""
        for value in equation.outputs:
            stub = Variable(equation.primitive.name, value, True)
            self.parameters.append(stub)
            self.views[value] = View.of(stub)

    def path(self, equation: Equation, variable: Sequence[bool]) -> str:
        """The variables that lead to an equation."""
        flags = zip(equation.inputs, variable, strict=True)
        bases = (b for v, flag in flags if flag for b in self.views[v].bases)
        return ", ".join(dict.fromkeys(self.origin(base) for base in bases))

    def origin(self, variable: Variable) -> str:
        producer = next((c for c in self.constraints if c.out is variable), None)
        return variable.name if producer is None else f"{variable.name} ({producer.source})"

    def objective(self) -> Objective:
        outputs = tuple(dict.fromkeys(v for v in self.program.outputs if v in self.after))
        return Objective(
            tuple(self.losses), tuple(self.losses.values()), tuple(self.linear), outputs
        )

    def feed_back(self) -> None:
        """Put what the body of a scan writes in the place of the carry that it reads."""
        for carry in self.carries:
            source = self.views.get(self.program.feedback[carry.value])
            if source is None:  # what writes it has no rule, and is reported
                self.parameters.append(carry)
                continue
            self.views = {v: view.through(carry, source) for v, view in self.views.items()}
            self.constraints = [
                dataclasses.replace(
                    c,
                    operands=tuple(
                        o.through(carry, source) if isinstance(o, View) else o for o in c.operands
                    ),
                )
                for c in self.constraints
            ]

    def finish(self, strict: bool) -> None:
        """Report everything that is wrong, at once."""
        if not strict:
            self.problems += [_missing_message(self.missing)] if self.missing else []
            return
        if self.missing:
            raise MissingRuleError("\n".join([*self.problems, _missing_message(self.missing)]))
        if self.problems:
            raise TraceError("\n".join(self.problems))


def _live(program: Program) -> set[Equation]:
    """The equations that output constraints see as variables, not behind a stop_gradient."""
    roots = {e for e in program.equations if e.primitive in OUTPUTS}
    values = () if roots else program.outputs

    def through(equation: Equation) -> bool:
        return any(v.variable for v in equation.outputs)

    return set(
        needed_equations(program.equations, program.feedback, values, roots, through=through)
    )


def _missing_message(missing: Iterable[tuple[Equation, str]]) -> str:
    lines = ["these primitives cannot be projected onto:"]
    for equation, reason in missing:
        scope = f" in {equation.scope}" if equation.scope else ""
        lines.append(f"  {equation.primitive.name} at {equation.source}{scope}: {reason}")
    lines.append(
        "Give a primitive a rule with pjax_trace.register_rule, give the function around it a "
        "projection with pjax_trace.custom_projection, or keep it away from variables with "
        "jax.lax.stop_gradient."
    )
    return "\n".join(lines)
