"""The kinds of command-line arguments that the benchmarks share."""

import argparse
import math
from pathlib import Path

__all__ = ["count", "output_file", "positive", "sizes"]


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def positive(text: str) -> float:
    """A positive, finite number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


def sizes(text: str) -> list[int]:
    """Sizes of layers, separated by commas."""
    return [count(part) for part in text.split(",")]


def output_file(text: str) -> Path:
    """A file that can be written once the work is done: its folder exists."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: no such folder, or no file")
    return path
