"""A traced program → its consensus graph.

The translation of every equation that variables reach says what it is: a view, or a constraint.
Calls of losses and sets are output constraints, and what the function makes of its losses on their
way out scales them. What has no rule is collected, and reported all at once.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from pjax_trace import _compat
from pjax_trace.colour import colour
from pjax_trace.control import carries_p, loop_p
from pjax_trace.custom import constrain_p, function_p, loss_p
from pjax_trace.direct import without_copies
from pjax_trace.errors import MissingRuleError, TraceError
from pjax_trace.graph import (
    ConsensusGraph,
    Constraint,
    LoopRule,
    Loss,
    Membership,
)
from pjax_trace.preimage import absorb_sets
from pjax_trace.program import Equation, Program, Value, needed_equations
from pjax_trace.rewrite import absorb_producers
from pjax_trace.translation import Affine, Outcome, Project, Refuse
from pjax_trace.view import Variable, View

__all__ = ["OUTPUTS", "build_graph"]

OUTPUTS = (loss_p, constrain_p)

_INNER_LOSS = Refuse("a loss that layers go on to compute with; write it out in jax.numpy")

_CALLS = {loss_p: Loss, constrain_p: Membership, function_p: Constraint}


def build_graph(
    program: Program,
    *,
    strict: bool = True,
    schedule: str = "parallel",
    copies: bool = True,
) -> ConsensusGraph:
    """The consensus graph of a program.

    Args:
        program: the program.
        strict: whether to raise what is wrong; otherwise it is in the graph's ``problems``, and
            what cannot be projected onto is left out, its outputs being free variables.
        schedule: what it is for. All but that of a sweep, and the product schedule, need colours,
            for which identities may be inserted.
        copies: whether constraints are to have copies in any case. Else problems of sets alone,
            and those that need no copies, become that.

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
        tuple(builder.views.get(value) for value in program.outputs),
        problems=tuple(builder.problems),
    )
    graph = absorb_producers(graph)
    if schedule == "sweep":
        return graph
    cyclic = schedule == "cyclic"
    sets = None if copies or graph.losses else absorb_sets(graph, cyclic=cyclic)
    if sets is not None and schedule != "product":
        direct = without_copies(sets, cyclic=cyclic)
        if direct is not None:
            return direct
    if sets is not None and all(c.out is None or c.rule.joint for c in sets.constraints):
        graph = sets
    return graph if schedule == "product" else colour(graph)


class _Builder:
    def __init__(self, program: Program):
        self.program = program
        self.parameters = [Variable(value.name, value, True) for value in program.parameters]
        self.views = {p.value: View.of(p) for p in self.parameters}
        self.constraints: list[Constraint] = []
        self.names = collections.Counter[str]()
        self.missing: list[tuple[Equation, str]] = []
        self.problems: list[str] = []
        self.live = _live(program)
        self.carries: list[Variable] = []

    def visit(self, equation: Equation) -> None:
        """Class one equation."""
        if equation.effects and not equation.outputs:
            return  # it is run by the forward pass
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
        body = build_graph(loop.program, schedule="sweep")
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
        if kind is Loss and out not in self.program.objective.scales:
            self.miss(equation, [v in self.views for v in equation.inputs], _INNER_LOSS)
        elif kind is Loss:
            scale = self.program.objective.scales[out]
            self.constrain(equation, outcome, name, (scale,), kind)
        else:
            self.views[out] = self.views[equation.inputs[0]]  # the identity: x itself goes on
            self.constrain(equation, outcome, name, (), kind)

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
        if _compat.calls_out(equation):
            reason = (
                "what a call to Python returns has no projection; call it on data (what went "
                "through jax.lax.stop_gradient is data), or use pjax_trace.custom_projection"
            )
        elif _compat.loop_kind(equation.primitive):
            reason = (
                "a loop whose length is not known while tracing has no rule; bound what decides "
                "it (jnp.minimum(n, 8)), pass it as a Python integer, or use lax.scan, or "
                "fori_loop with a static count, with jnp.where(i < n, new, old) as its carry"
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
    """The equations that output constraints see as variables, not behind what is frozen."""
    scales = program.objective.scales
    roots = {
        e
        for e in program.equations
        if e.primitive is constrain_p or not scales.keys().isdisjoint(e.outputs)
    }
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
