import json

import pytest

from benchmarks import step_cost
from benchmarks.methods import SOLVERS


@pytest.mark.usefixtures("loose_promotion")
def test_table_has_every_solver(tmp_path, capsys):
    file = tmp_path / "out.json"
    small = ["--sizes", "12,8,4", "--batch-size", "16", "--steps", "2", "--copies-steps", "2"]
    assert step_cost.main([*small, "--repeats", "2", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    names = [(row["method"], row["copies"]) for row in rows]
    copy_free = [(name, "no") for name in step_cost.COPY_FREE]
    adam = [("adam, scan", None), ("adam, single calls", None)]
    assert names == adam + copy_free + [(name, "yes") for name in SOLVERS]
    assert all(row["ms a step"] > 0 and row["MiB"] > 0 for row in rows)
    assert rows[0]["x adam"] == rows[0]["x adam's memory"] == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("12-8-4, batch 16, JAX")
    assert len(printed) == 3 + len(rows)


def test_unknown_solvers_are_refused(capsys):
    with pytest.raises(SystemExit):
        step_cost.main(["--solvers", "ap,sgd"])
    assert "sgd: choose from ap," in capsys.readouterr().err
