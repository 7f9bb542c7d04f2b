"""What is installed, and what the package promises about itself."""

import importlib.metadata
import importlib.resources
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pjax_trace as pjax

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob("pjax_trace/*.py"), *ROOT.glob("rules/*.py")]


def test_the_version_is_the_distributions():
    assert pjax.__version__ == importlib.metadata.version("pjax-trace")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == pjax.__version__ and project["license"] == "Apache-2.0"


def test_typed_and_licensed():
    assert importlib.resources.files("pjax_trace").joinpath("py.typed").is_file()
    license = (ROOT / "LICENSE").read_text()
    assert "Apache License" in license and "Version 2.0" in license


def test_the_public_names():
    solvers = """AlternatingProjections AlternatingReflections DouglasRachford DifferenceMap
    CyclicProjections CyclicDouglasRachford""".split()
    functions = "project project_point constrain custom_projection register_rule".split()
    for name in (*solvers, *functions, "Metric", "ConsensusGraph", "Info", "InputError"):
        assert hasattr(pjax, name), name
    assert {"cross_entropy", "margin"} <= set(pjax.losses.__all__)
    assert {"Equal", "Box", "NonNegative", "Ball", "Set"} <= set(pjax.sets.__all__)
    assert callable(pjax.testing.check_rule)


def test_public_things_are_documented():
    for name in dir(pjax):
        thing = getattr(pjax, name)
        if not name.startswith("_") and getattr(thing, "__module__", "").startswith("pjax_trace"):
            assert thing.__doc__, name


def test_importing_needs_the_core_dependencies_only():
    code = (
        "import sys, pjax_trace, pjax_trace.rules; "
        "print([m for m in ('optax', 'sklearn', 'matplotlib', 'tqdm', 'hypothesis', 'pytest')"
        " if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]" and not run.stderr


def test_only_compat_knows_jax_versions():
    internal = re.compile(r"jax\._src|jaxlib")
    versions = re.compile(r"jax\.extend|jax\.interpreters|jax\.__version__")
    for path in SOURCES:
        code = path.read_text()
        assert not internal.search(code), path
        assert path.name == "_compat.py" or not versions.search(code), path
    assert len(SOURCES) > 20


def test_the_compiler_names_no_primitive():
    """Rules know primitives; the compiler knows stop_gradient, which is a command to it."""
    for path in ROOT.glob("pjax_trace/*.py"):
        if path.name in ("_compat.py", "registry.py"):
            continue
        code = "\n".join(
            line for line in path.read_text().splitlines() if ">>>" not in line and '"' not in line
        )
        named = set(re.findall(r"lax\.(\w+_p)\b", code)) - {"stop_gradient_p", "neg_p"}
        assert not named, (path, named)
