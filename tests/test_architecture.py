"""The house: no circles of imports, nothing private across modules, no module that is too long."""

import ast
import graphlib
from pathlib import Path

import pytest

import pjax_trace as pjax

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 400


def modules(*folders):
    """The files of a folder, by the names that they are imported by."""
    found = {}
    for folder in folders:
        package = "pjax_trace.rules" if folder == "rules" else folder.replace("/", ".")
        for path in sorted((ROOT / folder).glob("*.py")):
            found[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return found


OURS = modules("pjax_trace", "pjax_trace/sets", "rules", "benchmarks")


def imports(path):
    """Every name that a file imports from this project, as ``(module, name or None)``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in OURS else (node.module, alias.name)


def test_no_circles():
    graph = {
        name: {module for module, _ in imports(path) if module in OURS and module != name}
        for name, path in OURS.items()
    }
    # A package's own file only hands names on.
    packages = {"pjax_trace", "pjax_trace.rules", "pjax_trace.sets", "benchmarks"}
    inner = {n: {m for m in used if m not in packages} for n, used in graph.items()}
    list(graphlib.TopologicalSorter(inner).static_order())  # raises CycleError


def test_the_compiler_knows_no_rule():
    for name, path in modules("pjax_trace", "pjax_trace/sets").items():
        used = [module for module, _ in imports(path) if module.startswith("pjax_trace.rules")]
        assert not used, f"{name} imports {used}"


@pytest.mark.parametrize("folder", ["pjax_trace", "rules", "benchmarks", "tests"])
def test_nothing_private_is_imported(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        private = [
            f"{module}.{name}"
            for module, name in imports(path)
            if name and name.startswith("_") and not name.startswith("__") and name != "_compat"
        ]
        assert not private, f"{path.relative_to(ROOT)} imports {private}"
        # Nor used through a module: `module._name`.
        known = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pjax_trace")
            for alias in node.names
            if f"{node.module}.{alias.name}" in OURS
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = node.value.id in known and node.attr.startswith("_")
                assert not used, f"{path.relative_to(ROOT)} uses {node.value.id}.{node.attr}"


def test_no_module_is_too_long():
    long = {n: size for n, p in OURS.items() if (size := len(p.read_text().splitlines())) > LIMIT}
    assert not long


def test_a_rule_is_six_methods():
    own = {name for name, value in vars(pjax.Rule).items() if callable(value) and name[0] != "_"}
    assert own == {"apply", "project", "masses", "expand", "linear", "target"}


def test_nobody_asks_which_solver_it_is():
    for path in OURS.values():
        text = path.read_text()
        assert "isinstance(self._solver" not in text and ", Sweep)" not in text, path
