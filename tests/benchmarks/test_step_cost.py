import json

import pytest

from benchmarks import step_cost


@pytest.mark.usefixtures("loose_promotion")
def test_table_has_every_method(tmp_path, capsys):
    file = tmp_path / "out.json"
    small = ["--sizes", "12,8,4", "--batch-size", "16", "--steps", "2", "--copies-steps", "2"]
    few = ["--repeats", "2", "--solvers", "ap,sweep"]
    assert step_cost.main([*small, *few, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    names = [(row["method"], row["copies"]) for row in rows]
    adam = [("adam, scan", None), ("adam, single calls", None)]
    assert names == [*adam, ("ap", "no"), ("sweep", "no"), ("ap", "yes")]
    assert all(row["ms a step"] > 0 and row["MiB"] > 0 for row in rows)
    faster = min(rows[:2], key=lambda row: row["ms a step"])
    assert faster["x adam"] == faster["x adam's memory"] == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("mlp 12-8-4, batch 16, JAX")
    assert len(printed) == 3 + len(rows)


@pytest.mark.usefixtures("loose_promotion")
@pytest.mark.parametrize(
    "model",
    [
        "cnn --sizes 1,2,3,4",
        pytest.param("gru --sizes 5,2,3,5 --seq-len 4", marks=pytest.mark.slow),
    ],
)
def test_every_model_can_be_timed(model, capsys):
    small = "--batch-size 2 --steps 1 --repeats 1 --solvers ap-momentum --copy-free"
    assert step_cost.main(["--model", *model.split(), *small.split()]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(model[:3]) and printed[-1].startswith("ap-momentum")
    assert len(printed) == 6  # Nothing on explicit copies.


def test_unknown_solvers_are_refused(capsys):
    with pytest.raises(SystemExit):
        step_cost.main(["--solvers", "ap,sgd"])
    assert "sgd: choose from ap," in capsys.readouterr().err
