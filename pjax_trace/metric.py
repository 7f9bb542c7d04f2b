"""The metric: how much a copy of each variable weighs in the squared distance."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx

from pjax_trace.errors import InputError, check_positive
from pjax_trace.graph import ConsensusGraph, Variable

__all__ = ["Metric", "matching"]


class Metric(eqx.Module):
    """Weights of the squared distance that "nearest" is measured in; larger moves less.

    Every copy of a variable, one per scalar equation that reads it, has the weight of its variable.
    ``paths`` overrides the kinds; of several matching patterns the last one counts.

    Args:
        parameters: the weight of parameters, an inverse learning rate.
        hidden: the weight of the outputs of constraints.
        outputs: the weight of those among them that a loss or a set reads.
        paths: from a variable's name to a weight. A name is a path such as
            ``model.layers[0].weight`` or, for what a constraint produces, the constraint's name; a
            path also stands for everything below it, and ``*`` for any characters.

    Raises:
        InputError: if a weight is not a positive number; at trace time, if a path matches nothing.

    Example:
        >>> import pjax_trace as pjax
        >>> metric = pjax.Metric(parameters=100.0, paths={"model.layers[0]": 10.0, "*.bias": 1.0})
    """

    parameters: float = 1.0
    hidden: float = 1.0
    outputs: float = 1.0
    paths: Mapping[str, float] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        """Weights are positive numbers."""
        named = {"parameters": self.parameters, "hidden": self.hidden, "outputs": self.outputs}
        for name, weight in {**named, **self.paths}.items():
            check_positive(f"Metric: the weight of {name}", weight)

    def resolve(self, graph: ConsensusGraph) -> dict[Variable, float]:
        """The weight of every variable of a graph."""
        weights: dict[Variable, float] = {}
        for variable in graph.variables:
            if variable.parameter:
                weights[variable] = float(self.parameters)
            else:
                kind = self.outputs if variable in graph.scores else self.hidden
                weights[variable] = float(kind)
        for path, weight in self.paths.items():
            found = matching("Metric", path, graph.variables, "variable")
            weights.update((variable, float(weight)) for variable in found)
        # An identity that the compiler inserted is the same variable to the user.
        return {v: weights[v.repeats] if v.repeats else w for v, w in weights.items()}

    def __hash__(self) -> int:
        return hash((self.parameters, self.hidden, self.outputs, tuple(self.paths.items())))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Metric) and (
            (self.parameters, self.hidden, self.outputs, tuple(self.paths.items()))
            == (other.parameters, other.hidden, other.outputs, tuple(other.paths.items()))
        )


def matching(what: str, path: str, things: Sequence[Any], kind: str) -> list[Any]:
    """The variables or constraints that a path stands for, see `Metric`.

    Raises:
        InputError: if there are none; says what asked, and for what kind of things.
    """
    pattern = ".*".join(re.escape(part) for part in path.split("*"))
    full = re.compile(pattern + r"(?:$|[.\['].*)")
    found = [thing for thing in things if full.fullmatch(thing.name)]
    if not found:
        names = ", ".join(thing.name for thing in things)
        raise InputError(f"{what}: the path {path!r} matches no {kind}; there are: {names}")
    return found
