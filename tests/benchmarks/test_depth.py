import statistics

import pytest

from benchmarks import depth

SMALL = ["--width", "16", "--batch-size", "32", "--points", "4,2", "--seeds", "0,1"]


@pytest.mark.usefixtures("loose_promotion")
def test_table_has_every_network_and_method(run_command):
    options = ["--layers", "1", "--activation", "sign,where", "--learning-rate", "1e-9,1e-2"]
    status, output, content = run_command(depth, *SMALL, *options)
    assert status == 0
    named = [(row["activation"], row["layers"], row["method"][:5]) for row in content["table"]]
    methods = ("sweep", "adam ")
    assert named == [(name, 1, method) for name in ("sign", "where") for method in methods]
    assert len(content["runs"]) == 2 * 2 * 3
    for row in content["table"]:
        same = ("activation", "layers", "method")
        runs = [run for run in content["runs"] if all(run[name] == row[name] for name in same)]
        assert len(runs) == 2
        for i, name in enumerate(("2 batches", "4 batches")):
            mean = statistics.mean(run["points"][i][2] for run in runs)
            assert row[name] == pytest.approx(mean)
        assert row["averaged"] == pytest.approx(statistics.mean(r["points"][-1][3] for r in runs))
        seconds = [second for run in runs for second in run["seconds"]]
        assert row["ms a batch"] == pytest.approx(1e3 * statistics.median(seconds))
    printed = output.out.splitlines()
    assert printed[0].split()[:3] == ["activation", "layers", "method"]
    assert len(printed) == 2 + 4 + 1 and printed[-1].startswith("width 16, no skips; means of")


@pytest.mark.usefixtures("loose_promotion")
def test_best_rate_is_shown(run_command):
    options = ["--layers", "1", "--learning-rate", "1e-9,1e-2", "--batch-size", "128"]
    status, _, content = run_command(depth, *SMALL, *options, "--points", "20", "--seeds", "3")
    ours, best = content["table"]
    assert status == 0 and best["method"] == "adam 0.01"
    assert ours["20 batches"] > 0.5 and best["20 batches"] > 0.3


@pytest.mark.usefixtures("loose_promotion")
def test_skips(run_command):
    options = ["--layers", "3", "--skip", "--activation", "quantize", "--learning-rate", "1e-2"]
    status, output, content = run_command(depth, *SMALL, *options, "--seeds", "0")
    assert status == 0 and "width 16, with skips" in output.out
    assert len(content["table"]) == 2 and all(row["4 batches"] for row in content["table"])


def test_interrupted_runs_are_reported(run_command, interrupt, monkeypatch):
    monkeypatch.setattr(depth, "follow", lambda *args: None)
    interrupt(depth, "follow")
    status, output, content = run_command(depth)
    assert status == 130 and "interrupted" in output.err
    assert [row["method"] for row in content["table"]] == ["sweep", "adam 0.001"]
    assert content["table"][0]["400 batches"] is content["table"][0]["ms a batch"] is None


def test_missing_files_are_named(run_command, tmp_path):
    options = ["--dataset", "mnist", "--data-dir", str(tmp_path)]
    status, output, content = run_command(depth, *options)
    assert status == 2 and "train-images-idx3-ubyte.gz is missing" in output.err
    assert output.err.count("\n") == 1 and content is None


@pytest.mark.parametrize(
    "options",
    [
        ["--activation", "relu,gelu"],
        ["--layers", "1,0"],
        ["--points", "100,none"],
        ["--width", "0"],
        ["--dataset", "shakespeare"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        depth.main(options)
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
