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
SOURCES = [*ROOT.glob("pjax_trace/**/*.py"), *ROOT.glob("rules/*.py")]


def test_the_version_is_the_distributions():
    assert pjax.__version__ == importlib.metadata.version("pjax-trace")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == pjax.__version__ and project["license"] == "Apache-2.0"


def test_typed_and_licensed():
    assert importlib.resources.files("pjax_trace").joinpath("py.typed").is_file()
    license = (ROOT / "LICENSE").read_text()
    assert "Apache License" in license and "Version 2.0" in license


NAMES = """
AlternatingProjections AlternatingReflections CyclicDouglasRachford CyclicProjections DifferenceMap
DouglasRachford ReflectReflectRelax RelaxedAveragedReflections HybridInputOutput
ADMM Dykstra Halpern
Accelerated Sweep Solver
Acceleration Anderson Averaging Momentum TrustRegion
project project_point constrain custom_projection quantize losses sets testing
solve nearest Solution isometry
Block Metric Projected State Info ConsensusGraph
register_rule register_function Case Rule CustomRule Weights Moment Projection Jacobian
Translation ViewRule Refusal Affine Project Refuse Rewrite
PjaxError InputError TraceError MissingRuleError NonFiniteError Interrupted
""".split()


def test_the_public_names():
    others = {path.stem for path in ROOT.glob("pjax_trace/*.py")} - set(NAMES)
    others |= {"rules"}  # modules are attributes of the package once they are imported
    assert {name for name in dir(pjax) if not name.startswith("_")} - others == set(NAMES)
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


def test_nothing_private_is_imported():
    """Neither by one module of the package from another, nor by the tests."""
    for path in (*SOURCES, *ROOT.glob("tests/**/*.py")):
        code = re.sub(r"\b_compat\b", "compat", path.read_text())
        imported = re.findall(r"from pjax_trace[\w.]* import (\([^)]*\)|.*)", code)
        assert not re.search(r"(?:^|[\s,(])_\w", "\n".join(imported)), path


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
    for path in ROOT.glob("pjax_trace/**/*.py"):
        if path.name in ("_compat.py", "registry.py"):
            continue
        code = "\n".join(
            line for line in path.read_text().splitlines() if ">>>" not in line and '"' not in line
        )
        named = set(re.findall(r"lax\.(\w+_p)\b", code)) - {"stop_gradient_p", "neg_p"}
        assert not named, (path, named)
