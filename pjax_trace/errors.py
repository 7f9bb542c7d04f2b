"""What can go wrong, and whose mistake it is.

Every message says what is wrong, where in the user's source, and what to do next.
"""

from typing import Any

__all__ = [
    "InputError",
    "MissingRuleError",
    "NonFiniteError",
    "PjaxError",
    "TraceError",
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
