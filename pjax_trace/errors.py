"""What can go wrong, and whose mistake it is.

Every message says what is wrong, where in the user's source, and what to do next.
"""

import math
import numbers
from typing import Any

__all__ = [
    "InputError",
    "MissingRuleError",
    "NonFiniteError",
    "PjaxError",
    "TraceError",
    "check_positive",
    "check_range",
]


class PjaxError(Exception):
    """Base of every error that pjax-trace raises on purpose."""


class InputError(PjaxError, ValueError, TypeError):
    """An argument that cannot be used: integer parameters, a shape or a set that does not fit."""


class TraceError(PjaxError, ValueError):
    """A function that cannot be turned into constraints; raised while tracing."""


class MissingRuleError(TraceError, NotImplementedError):
    """Primitives without a projection rule, all of them at once."""


class NonFiniteError(PjaxError, FloatingPointError):
    """NaN or infinity turned up; nothing was lost.

    Attributes:
        params: the last good parameters (those that the failing update was given).
        state: the solver state that belongs to them.
        culprit: what was not finite first: a parameter, a data argument or a constraint.
    """

    def __init__(self, message: str, *, params: Any, state: Any, culprit: str):
        super().__init__(message)
        self.params = params
        self.state = state
        self.culprit = culprit


def check_range(name: str, value: Any, lower: float, upper: float, *, closed: bool = True) -> None:
    """Raise unless a number is in ``(lower, upper]``, or in ``[lower, upper)`` if not closed."""
    number = isinstance(value, numbers.Real)
    inside = number and (lower < float(value) <= upper if closed else lower <= float(value) < upper)
    if not inside:
        bounds = f"({lower:g}, {upper:g}]" if closed else f"[{lower:g}, {upper:g})"
        raise InputError(f"{name} must be in {bounds}, not {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise unless a number is positive and finite."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:
        raise InputError(f"{name} must be a positive number, not {value!r}")
