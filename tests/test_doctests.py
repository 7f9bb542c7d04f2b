"""The examples in docstrings run, and print what they say.

Modules are imported by their installed names: pytest's own collection would import rules/ a second
time, as ``rules`` instead of ``pjax_trace.rules``.
"""

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("pjax_trace", "pjax_trace.rules", "pjax_trace.sets", "benchmarks")


def module_names() -> list[str]:
    found = set(PACKAGES)
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        found |= {module.name for module in pkgutil.iter_modules(path, package + ".")}
    return sorted(found)


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=options).failed == 0
