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
    assert printed[1].startswith("a product of matrices: ")
    assert len(printed) == 4 + len(rows)
    # Of Adam: three products of 16 rows and 12·8 + 8·4 weights, less one by data, and small change.
    products = 2 * 16 * (3 * (12 * 8 + 8 * 4) - 12 * 8)
    assert products <= 1e6 * rows[0]["Mflop"] < 2 * products
    # A product, a relu, a product and a loss, forward and back; two colours.
    assert [row["in sequence"] for row in rows] == [8, 8, 2, 8, 2]


def test_granularities_and_schedules(capsys):
    options = step_cost.parse(
        "--granularities row,block --schedules parallel,product --solvers ap,cp,sweep".split()
    )
    kinds = step_cost.kinds(options)
    ways = [(g, s) for g in ("row", "block") for s in ("parallel", "product")]
    assert [k[1:3] for k in kinds if k.method == "ap" and not k.copies] == ways
    for copies in ("few", True):
        found = [k[1:3] for k in kinds if k.method == "cp" and k.copies == copies]
        assert found == [("row", "cyclic"), ("block", "cyclic")]
    assert [k for k in kinds if k.method == "sweep"] == [("sweep", None, "sweep", False)]
    with pytest.raises(SystemExit):
        step_cost.parse(["--granularities", "rows"])
    assert "rows: choose from row, block" in capsys.readouterr().err


@pytest.mark.usefixtures("loose_promotion")
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("cnn --sizes 1,2,3,4", marks=pytest.mark.slow),
        pytest.param("gru --sizes 5,2,3,5 --seq-len 4", marks=pytest.mark.slow),
    ],
)
def test_every_model_can_be_timed(model, capsys):
    small = "--batch-size 2 --steps 1 --repeats 1 --solvers ap-momentum --copy-free"
    assert step_cost.main(["--model", *model.split(), *small.split()]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(model[:3]) and printed[-1].startswith("ap-momentum")
    assert len(printed) == 7  # Nothing on explicit copies.


def test_unknown_solvers_are_refused(capsys):
    with pytest.raises(SystemExit):
        step_cost.main(["--solvers", "ap,sgd"])
    assert "sgd: choose from ap," in capsys.readouterr().err
