"""What can go wrong, and whose mistake it is.

Every message says what is wrong, where in the user's source, and what to do next.
"""

import contextlib
import math
import numbers
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = [
    "InputError",
    "Interrupted",
    "MissingRuleError",
    "NonFiniteError",
    "PjaxError",
    "TraceError",
    "check_positive",
    "check_range",
    "interrupts_wait",
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


class Interrupted(KeyboardInterrupt):
    """An update was interrupted after it had taken the buffers of its arguments (``donate=True``).

    Attributes:
        params: the parameters to go on from.
        state: the state that belongs to them.
    """

    def __init__(self, params: Any, state: Any):
        super().__init__("interrupted; this error's .params and .state are those to go on from")
        self.params = params
        self.state = state


@contextlib.contextmanager
def interrupts_wait() -> Iterator[list[int]]:
    """Ctrl-C waits until the block ends, and is in the list then; a second one does not wait."""
    pending = list[int]()

    def note(number: int, _: Any) -> None:
        if pending:
            raise KeyboardInterrupt
        pending.append(number)

    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pending
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield pending
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
