"""The Python in the READMEs runs as it stands, the blocks of a file in one namespace."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What must hold where a file has run to its end.
HOLDS = {
    "README.md": "accuracy > 0.9 and solution.solved",
    "pjax_trace/README.md": "info.gap < 1e-3",
    "rules/README.md": "float(z) == float(x @ w)",
    "benchmarks/README.md": "raw > 0.8 and averaged > 0.8",
}


def python_of(text):
    """The Python blocks of a text, with blank lines for all else: errors show the text's lines."""
    inside, kept = False, []
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        kept.append(line if inside else "")
    return "\n".join(kept) + "\n"


@pytest.mark.parametrize("name", HOLDS)
def test_python_blocks(name):
    """In a process of its own: rules that a text registers are not those of other tests."""
    code = python_of((ROOT / name).read_text())
    assert code.strip()
    command = [sys.executable, "-W", "error", "-"]
    code += f"assert {HOLDS[name]}\n"
    run = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", HOLDS)
def test_links(name):
    """Links to files of the repository, and to their headings, lead somewhere."""
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
            assert heading in anchors, target


def test_each_command_is_one_line():
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"^ {4}python3 -m venv .*$", text, re.M)) == 2


@pytest.mark.parametrize("folder", ["pjax_trace", "rules"])
def test_every_module_is_described(folder):
    text = (ROOT / folder / "README.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    there = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")}
    elsewhere = named - there
    assert all("/" in name and (ROOT / name).exists() for name in elsewhere)
    assert all(name.endswith("__init__.py") for name in there - named)
