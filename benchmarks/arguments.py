"""The kinds of command-line arguments that the benchmarks share."""

import argparse
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

__all__ = ["count", "names", "output_file", "percentage", "positive", "several", "whole"]

T = TypeVar("T")


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value


def positive(text: str) -> float:
    """A positive, finite number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


def percentage(text: str) -> float:
    """A number above 0 and of at most 100."""
    value = positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text} is more than 100")
    return value


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values of a kind, separated by commas."""

    def values(text: str) -> list[T]:
        return [kind(part) for part in text.split(",")]

    values.__name__ = f"comma-separated {kind.__name__}"  # For argparse's messages.
    return values


def names(choices: Collection[str]) -> Callable[[str], list[str]]:
    """Some of the choices, separated by commas."""

    def values(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in choices]
        if unknown:
            message = f"{', '.join(unknown)}: choose from {', '.join(choices)}"
            raise argparse.ArgumentTypeError(message)
        return text.split(",")

    return values


def output_file(text: str) -> Path:
    """A file that can be written once the work is done: its folder exists."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: no such folder, or no file")
    return path
