"""A traced program → its consensus graph.

Every equation that variables reach is asked for its rule once: it is a view, a constraint, an
output constraint, or part of what the function makes of its losses. What has no rule is
collected, and reported all at once.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from pjax_trace import _compat
from pjax_trace.calls import constrain_p, function_p, loss_p
from pjax_trace.control import Loop, carries_p, loop_p
from pjax_trace.errors import MissingRuleError, TraceError
from pjax_trace.graph import ConsensusGraph, Constraint, Objective, Operand, Variable, View, colour
from pjax_trace.registry import Rule, rule_for
from pjax_trace.rewrite import absorb_producers
from pjax_trace.rules.sums import identity
from pjax_trace.trace import Equation, Program, Value, needed_equations

__all__ = ["OUTPUTS", "LoopRule", "build_graph"]

OUTPUTS = (loss_p, constrain_p)


class LoopRule(Rule):
    """A scan that is kept as one operation. Sweeps know what to do with it, solvers do not.

    Args:
        loop: the scan.
        body: the graph of one step.
        slots: the values that hold what every step reads as its carry.
    """

    family = "loop"

    def __init__(self, loop: Loop, body: ConsensusGraph, slots: Sequence[Value]):
        self.loop, self.body, self.slots = loop, body, slots


def build_graph(program: Program, *, strict: bool = True, coloured: bool = True) -> ConsensusGraph:
    """The consensus graph of a program.

    Args:
        program: the program.
        strict: whether to raise what is wrong; otherwise it is in the graph's ``problems``, and
            what cannot be projected onto is left out, its outputs being free variables.
        coloured: whether to colour it, which may take identities; a sweep has no use for them.

    Raises:
        MissingRuleError: for primitives without a rule, all at once.
        TraceError: for arithmetic on losses that is no positive scale or mean, for control flow
            that depends on a variable, and for products of a variable with itself.
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
    if not coloured:
        return graph
    fresh = itertools.count(1 + max((v.index for v in builder.views), default=0))

    def identity_of(variable: Variable, name: str) -> Constraint:
        value = Value(next(fresh), variable.shape, variable.dtype, True)
        producer = graph.producers.get(variable)
        rule, params = identity(variable.shape)
        return Constraint(
            name,
            rule,
            params,
            (View((variable,), (), variable.value),),
            Variable(name, value, False, variable),
            producer.source if producer is not None else "parameter " + variable.name,
        )

    return colour(graph, identity_of)


class _Builder:
    def __init__(self, program: Program):
        self.program = program
        self.parameters = [Variable(value.name, value, True) for value in program.parameters]
        self.views = {p.value: View((p,), (), p.value) for p in self.parameters}
        self.constraints: list[Constraint] = []
        self.losses: dict[Value, Value] = {}  # a loss's value → its scale
        self.after: set[Value] = set()  # values made of losses
        self.linear: list[Equation] = []
        self.names: dict[str, int] = {}
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
        if equation.primitive is carries_p:
            for value in equation.outputs:
                if value.variable:  # stands for what the step before wrote, further down
                    self.carries.append(Variable("carry", value, False))
                    self.views[value] = View((self.carries[-1],), (), value)
            return
        if equation.primitive is loop_p:
            self.keep_loop(equation)
            return
        if equation.primitive in (loss_p, constrain_p, function_p):
            self.visit_call(equation, variable)
            return
        rule = rule_for(equation.primitive)
        if rule is None or not rule.supports(equation.params, variable):
            self.miss(equation, variable, rule)
        elif rule.is_view(equation.params, variable):
            self.view(equation)
        else:
            shapes = tuple(v.shape for v in equation.inputs)
            specialised, params = rule.specialise(equation.params, shapes, variable)
            self.constrain(equation, specialised, params, equation.primitive.name)

    def keep_loop(self, equation: Equation) -> None:
        """A scan as one constraint for each of its outputs, which are projected onto together."""
        loop = equation.params["loop"]
        body = build_graph(loop.program, coloured=False)
        count = len(equation.outputs) - loop.scan.carries
        results, slots = equation.outputs[:count], equation.outputs[count:]
        rule = LoopRule(loop, body, slots)
        for i, result in enumerate(results):
            if result.variable:
                self.constrain(equation, rule, {"output": i}, "scan", result=result)

    def visit_call(self, equation: Equation, variable: Sequence[bool]) -> None:
        rule = equation.params["rule"]
        if not rule.supports(equation.params, variable):
            if equation.primitive is function_p:
                self.miss(equation, variable, rule)
                return
            self.problems.append(
                f"{equation.params['name']} at {equation.source}: only the first argument may "
                "depend on variables; the labels, λ or the set must be data"
            )
            return
        extra: tuple[Value, ...] = ()
        (out,) = equation.outputs
        if equation.primitive is loss_p:
            scale = Value(-1 - len(self.losses), out.shape, out.dtype, False)
            self.losses[out] = scale
            self.after.add(out)
            extra = (scale,)
        params = dict(equation.params["params"])
        produces = equation.primitive is function_p
        self.constrain(equation, rule, params, equation.params["name"], extra, produces)
        if equation.primitive is constrain_p:
            self.views[out] = self.views[equation.inputs[0]]  # the identity: x itself goes on

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
        allowed = all(v in self.after or not v.variable for v in equation.inputs)
        rule = rule_for(equation.primitive)
        if allowed and rule is not None:
            flags = [v in self.after for v in equation.inputs]
            shifted = rule.offset and not all(flags) and any(np.any(f) for f in self.data(equation))
            view = rule.is_view(equation.params, flags) and not shifted
            total = len(equation.inputs) == sum(flags) and rule.family == "sum"
            allowed = rule.supports(equation.params, flags) and (
                view or (total and self.adds(equation))
            )
        else:
            allowed = False
        if not allowed or self.negative(equation):
            self.problems.append(
                f"{equation.primitive.name} of a loss at {equation.source}: a loss may be scaled "
                "by a positive number, averaged, and added to other losses on its way out of the "
                "function, because that scales its λ; anything else has no projection. Constrain "
                "or penalise the arrays themselves, each with a loss or a set of its own"
            )
        self.after.update(equation.outputs)
        self.linear.append(equation)

    def adds(self, equation: Equation) -> bool:
        """Whether a sum of losses has positive coefficients."""
        rule = rule_for(equation.primitive)
        assert rule is not None
        shapes = [v.shape for v in equation.inputs]
        _, params = rule.specialise(equation.params, shapes, [True] * len(shapes))
        return all(len(t.operands) == 1 and t.sign > 0 for t in params["terms"])

    def negative(self, equation: Equation) -> bool:
        """Whether a loss is surely scaled by something that is not positive."""
        if equation.primitive is jax.lax.neg_p:
            return True
        rule = rule_for(equation.primitive)
        if rule is None or not rule.scales:
            return False
        # Zeros among others mask rows; a zero alone would make the loss nothing.
        return any(not (np.all(f >= 0) and np.any(f > 0)) for f in self.data(equation))

    def data(self, equation: Equation) -> list[np.ndarray]:
        """The operands that are no losses, 1 where they are not known yet."""
        values = [v for v in equation.inputs if v not in self.after]
        return [np.asarray(self.program.known.get(v, 1)) for v in values]

    def constrain(
        self,
        equation: Equation,
        rule: object,
        params: dict,
        name: str,
        extra: tuple[Value, ...] = (),
        produces: bool = True,
        result: Value | None = None,
    ) -> None:
        number = self.names.get(name, 0)
        self.names[name] = number + 1
        name = f"{name}_{number}" if number else name
        operands = (*(self.operand(v) for v in equation.inputs), *extra)
        out = None
        if produces:
            value = equation.outputs[0] if result is None else result
            out = Variable(name, value, False)
            self.views[value] = View((out,), (), value)
        constraint = Constraint(
            name,
            rule,  # pyright: ignore[reportArgumentType]
            params,
            operands,
            out,
            equation.source,
            equation.scope,
        )
        self.constraints.append(constraint)

    def operand(self, value: Value) -> Operand:
        return self.views.get(value, value)

    def check_conflict(self, c: Constraint) -> None:
        """Ask the rule whether it minds that operands share variables."""
        bases = [set(view.bases) for _, view in c.reads]
        if sum(map(len, bases)) == len(set().union(*bases)):
            return
        names: dict[Variable, np.ndarray] = {}
        start = 1
        for base in dict.fromkeys(b for _, view in c.reads for b in view.bases):
            size = int(np.prod(base.shape))
            names[base] = np.arange(start, start + size, dtype=np.int32).reshape(base.shape)
            start += size
        known = self.program.known
        elements = [
            o.elements(known, names) if isinstance(o, View) else np.zeros(o.shape, np.int32)
            for o in c.operands
        ]
        with jax.ensure_compile_time_eval():
            reason = c.rule.conflict(c.params, elements)
        if reason is not None:
            self.problems.append(f"{c.name} at {c.source} {reason}")

    def view(self, equation: Equation) -> None:
        read = [self.views[v] for v in equation.inputs if v in self.views]
        bases = tuple(dict.fromkeys(base for view in read for base in view.bases))
        equations = {e.index: e for view in read for e in view.equations}
        equations[equation.index] = equation
        ordered = tuple(equations[i] for i in sorted(equations))
        for out in equation.outputs:
            self.views[out] = View(bases, ordered, out)

    def miss(self, equation: Equation, variable: Sequence[bool], rule: Rule | None) -> None:
        reason = "no rule" if rule is None else rule.refusal(equation.params, variable)
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
            self.views[value] = View((stub,), (), value)

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
        for constraint in self.constraints:
            self.check_conflict(constraint)
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
        return equation.primitive is not jax.lax.stop_gradient_p

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
