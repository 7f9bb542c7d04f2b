"""The README's Python runs as it stands, block after block in one namespace."""

import re
from pathlib import Path

import jax

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_python_blocks():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 4
    names: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
    assert names["accuracy"] > 0.9
    assert names["info"].gap < 1e-3  # of the feasibility problem
    x = names["x"]
    assert abs(float(names["z"]) - float(x @ names["w"])) == 0


def test_each_command_is_one_line():
    assert len(re.findall(r"^ {4}python3 -m venv .*$", README, re.M)) == 2
