"""What the tests project in: problems of functions, at a forward pass, and spaces of them."""

import pjax_trace as pjax
from pjax_trace.problem import Problem
from pjax_trace.spaces import space_of

__all__ = ["copies_of", "free_of", "problem_of"]


def problem_of(fn, params, *data, metric=None, product=False, **options):
    """The problem of ``fn(params, *data)``, ready to be projected; ``options`` are `project`'s."""
    options.setdefault("schedule", "product" if product else "parallel")
    if options["schedule"] in ("parallel", "product"):
        options.setdefault("copies", True)  # else sets alone become a problem without any
    projected = pjax.project(fn, **options)
    graph = projected.trace(params, *data)
    arrays = projected.arrays(params, *data)
    problem = Problem.forward(graph, metric or pjax.Metric(), *arrays, product=product)
    problem.prepare()
    return problem


def free_of(problem):
    """The space without copies."""
    return space_of(problem, copies=False)


def short_of(problem):
    """The space of copies in which those that only data tell apart are not all kept."""
    space = space_of(problem, copies=True, explicit=False)
    space.problem.prepare()
    return space


def copies_of(problem):
    """The space with copies, ready to be projected in."""
    space = space_of(problem, copies=True)
    space.problem.prepare()
    return space
