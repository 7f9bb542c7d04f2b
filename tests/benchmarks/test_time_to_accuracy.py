import statistics

import pytest

from benchmarks import time_to_accuracy
from benchmarks.running import Point, Run
from benchmarks.time_to_accuracy import reached, rows

SMALL = ["--hidden", "16", "--batch-size", "64", "--batches", "30", "--every", "5"]


def test_a_level_is_reached_once_measured():
    run = Run("adam", 0, history=[Point(5, 0.1, 0.5, 0.2), Point(10, 0.2, 0.94999999, 0.5)])
    assert reached(run, 50, averaged=False) == run.history[0]
    assert reached(run, 50, averaged=True) == run.history[1]
    assert reached(run, 95, averaged=False) == run.history[1]  # 342 of 360, in float32.
    assert reached(run, 96, averaged=False) is None


def test_best_rate_is_the_reference():
    def runs(name, *counts):
        for seed, n in enumerate(counts):
            history = [Point(n, n / 10, 0.9, None)] * (n > 0)
            yield Run(name, seed, compile_seconds=2.0 - seed, history=history)

    known = [*runs("sweep", 4, 6), *runs("adam 1", 20, 20), *runs("adam 2", 8, 12)]
    table = rows([*known, *runs("adam 3", 1, 0)], 90, averaged=False)
    assert [row["method"] for row in table] == ["sweep", "adam 1", "adam 2 (best)", "adam 3"]
    assert [row["batches"] for row in table] == [5, 20, 10, None]  # Not all seeds reached it.
    assert [row["x adam"] for row in table] == [0.5, 2, 1, None]
    seconds = [row["training [s]"] for row in table]
    assert seconds == pytest.approx([0.5, 2, 1, None])
    assert table[0]["x adam's seconds"] == pytest.approx(0.5)
    assert all(row["compilation [s]"] == 2 for row in table)


@pytest.mark.usefixtures("loose_promotion")
def test_table_has_every_level_and_method(run_command):
    options = ["--levels", "90,30", "--seeds", "1,2", "--learning-rate", "1e-9,1e-2"]
    status, output, content = run_command(time_to_accuracy, *SMALL, *options)
    assert status == 0
    named = [(row["level [%]"], row["method"].removesuffix(" (best)")) for row in content["table"]]
    methods = ["sweep", "adam 1e-09", "adam 0.01"]
    assert named == [(level, method) for level in (30, 90) for method in methods]
    assert [run["seed"] for run in content["runs"]] == [1, 1, 1, 2, 2, 2]
    ours, slow, best = content["table"][:3]
    assert slow["batches"] is slow["x adam"] is None and best["method"] == "adam 0.01 (best)"
    assert ours["x adam"] == ours["batches"] / best["batches"] and best["x adam"] == 1
    sweeps = [run for run in content["runs"] if run["method"] == "sweep"]
    first = [next(p for p in run["points"] if p[2] >= 0.3) for run in sweeps]
    assert ours["batches"] == statistics.mean(point[0] for point in first)
    assert ours["training [s]"] == pytest.approx(statistics.mean(point[1] for point in first))
    starts = {run["method"]: len(run["seconds"]) for run in content["runs"]}
    assert starts["adam 1e-09"] == 30  # It went on to the end.
    printed = output.out.splitlines()
    assert printed[0].startswith("level [%]  method") and len(printed) == 2 + 6 + 1
    assert "means of seeds 1, 2" in printed[-1]


@pytest.mark.usefixtures("loose_promotion")
def test_averages_reach_levels_of_their_own(run_command):
    options = ["--levels", "20", "--seeds", "0", "--learning-rate", "1e-2", "--averaged"]
    status, _, content = run_command(time_to_accuracy, *SMALL, *options)
    assert status == 0 and content["options"]["averaged"]
    for row, run in zip(content["table"], content["runs"], strict=True):
        there = [point[0] for point in run["points"] if point[3] >= 0.2]
        assert row["batches"] == (there[0] if there else None)
        assert any(point[2] != point[3] for point in run["points"])


def test_interrupted_runs_are_reported(run_command, interrupt, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "follow", lambda *args: None)
    interrupt(time_to_accuracy, "follow")
    status, output, content = run_command(time_to_accuracy)
    assert status == 130 and "interrupted" in output.err
    assert len(content["table"]) == 3 * 4 and content["table"][0]["batches"] is None


def test_only_sweeps_average(run_command):
    status, output, _ = run_command(time_to_accuracy, "--solver", "dr", "--averaged")
    assert status == 2 and output.err == "error: dr keeps no averages\n"


def test_missing_files_are_named(run_command, tmp_path):
    options = ["--dataset", "mnist", "--data-dir", str(tmp_path)]
    status, output, content = run_command(time_to_accuracy, *options)
    assert status == 2 and "train-images-idx3-ubyte.gz is missing" in output.err
    assert output.err.count("\n") == 1 and content is None


@pytest.mark.parametrize(
    "options",
    [
        ["--levels", "97,101"],
        ["--levels", "0"],
        ["--every", "0"],
        ["--dataset", "shakespeare"],
        ["--learning-rate", "1e-3,none"],
        ["--solver", "sgd"],
        ["--json", "no-such-folder/out.json"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        time_to_accuracy.main(options)
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
