import json

import pytest

import pjax_trace as pjax
from benchmarks import train
from benchmarks.methods import SOLVERS, Method, Progress


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command in a small setting; returns its status, its output and its JSON."""

    def run(*options: str):
        file = tmp_path / "out.json"
        files = ["--json", str(file), "--plot", str(tmp_path / "curves.png")]
        small = ["--hidden", "16", "--batch-size", "32", "--batches", "4", "--steps", "3"]
        status = train.main([*small, "--solver", "ap-momentum", *files, *options])
        content = json.loads(file.read_text()) if file.exists() else None
        return status, capsys.readouterr(), content

    return run


@pytest.mark.usefixtures("loose_promotion")
def test_learns_and_reports_both_methods(run, tmp_path):
    size = ["--batch-size", "128", "--hidden", "64", "--batches", "30", "--steps", "20"]
    status, output, content = run("--baseline", "adam", *size)
    assert status == 0
    table = output.out.splitlines()
    assert "test accuracy" in table[0] and "compilation" in table[0]
    assert table[2].startswith("ap-momentum") and table[3].startswith("adam")
    projections, adam = content["runs"]
    assert projections["test accuracy"] > 0.85
    assert projections["steps"] == 600 and adam["steps"] == 30
    assert projections["samples"] == adam["samples"] == 30 * 128
    assert projections["accuracy"][0] == adam["accuracy"][0]  # One start for both.
    assert len(projections["gap"]) == 30 and not adam["gap"]
    assert projections["training [s]"] > 0 and projections["compilation [s]"] > 0
    assert content["options"]["solver"] == "ap-momentum"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy" in output.err and "gap" in output.err  # The progress bar.


@pytest.mark.usefixtures("loose_promotion")
def test_sweeps_learn_and_average(run):
    size = ["--batch-size", "128", "--hidden", "64", "--batches", "60", "--steps", "1"]
    status, output, content = run("--solver", "sweep", "--baseline", "adam", *size)
    sweep, adam = content["runs"]
    assert status == 0 and sweep["steps"] == sweep["batches"] == 60
    assert sweep["test accuracy"] > 0.9 and sweep["averaged"] > 0.9 and adam["averaged"] > 0.7
    assert "averaged" in output.out


def test_every_solver_is_one_of_the_library():
    assert all(isinstance(solver(), (pjax.Solver, pjax.Sweep)) for solver in SOLVERS.values())


def test_same_seed_same_bits_on_copies_too(run):
    first, again = (run("--solver", "dr", "--hidden", "8")[2]["runs"][0] for _ in range(2))
    assert len(first["gap"]) == 4
    assert first["gap"] == again["gap"] and first["accuracy"] == again["accuracy"]


def test_mnist(run, data_dir):
    status, _, content = run("--dataset", "mnist", "--data-dir", str(data_dir), "--batches", "2")
    assert status == 0 and content["runs"][0]["samples"] == 64


def interrupted_by(error):
    """A method whose third batch is interrupted (after one for compilation)."""
    calls = []

    def update(model, state, x, y):
        calls.append(x)
        if len(calls) > 3:
            raise error
        return model, state, Progress(steps=5, gap=1.0)

    return lambda name, *_, **__: Method(name, lambda model: None, update)


def test_interrupted_runs_are_reported(run, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "projections", interrupted_by(KeyboardInterrupt()))
    status, output, content = run("--baseline", "adam")
    assert status == 130 and "interrupted" in output.err
    projections, adam = content["runs"]
    assert projections["steps"] == 10 and projections["samples"] == 64
    assert adam["steps"] == 0 and adam["test accuracy"] is None
    assert output.out.splitlines()[2].startswith("ap-momentum")
    assert (tmp_path / "curves.png").exists()


def test_failed_runs_are_reported(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "projections", interrupted_by(FloatingPointError("NaN")))
    with pytest.raises(FloatingPointError, match="NaN"):
        run()
    assert capsys.readouterr().out.splitlines()[2].startswith("ap-momentum")
    assert json.loads((tmp_path / "out.json").read_text())["runs"][0]["steps"] == 10


def test_what_the_library_refuses_is_reported_in_a_line(run, monkeypatch):
    monkeypatch.setattr(train, "projections", interrupted_by(pjax.PjaxError("no rule for fft")))
    status, output, content = run()
    assert status == 1 and output.err.endswith("error: no rule for fft\n")
    assert content["runs"][0]["steps"] == 10


def test_missing_files_are_named(run, tmp_path):
    status, output, _ = run("--dataset", "mnist", "--data-dir", str(tmp_path))
    assert status == 2 and "train-images-idx3-ubyte.gz is missing" in output.err


def test_too_large_a_batch(run):
    status, output, _ = run("--batch-size", "1438")
    assert status == 2 and "1438 cannot be drawn from 1437" in output.err


@pytest.mark.usefixtures("loose_promotion")
def test_seeds_and_learning_rates_share_a_table(run):
    status, output, content = run(
        *["--baseline", "adam", "--learning-rate", "1e-9,1e-2", "--seeds", "1,2"],
        *["--batches", "20", "--steps", "1"],
    )
    assert status == 0
    named = [(row["method"], row["seed"]) for row in content["runs"]]
    methods = ["ap-momentum", "adam 1e-09", "adam 0.01"]
    assert named == [(method, seed) for method in methods for seed in (1, 2)]
    assert [row["method"] for row in content["table"]] == [*methods[:2], "adam 0.01 (best)"]
    for i, row in enumerate(content["table"]):
        first, second = content["runs"][2 * i : 2 * i + 2]
        assert row["test accuracy"] == (first["test accuracy"] + second["test accuracy"]) / 2
        assert row["steps"] == 20 and row["samples"] == 640
    assert "means of seeds 1, 2" in output.out


@pytest.mark.slow
@pytest.mark.usefixtures("loose_promotion")
def test_convolutions_learn_images(run):
    small = ["--model", "cnn", "--hidden", "2,3", "--steps", "1", "--batches", "2"]
    status, _, content = run(*small, "--batch-size", "4", "--baseline", "adam")
    assert status == 0 and content["runs"][1]["samples"] == 8


@pytest.mark.slow
@pytest.mark.usefixtures("loose_promotion")
def test_recurrent_nets_learn_text(run, tmp_path):
    (tmp_path / "input.txt").write_text("to be or not to be " * 30)
    small = ["--hidden", "4,8", "--seq-len", "8", "--batch-size", "4", "--batches", "20"]
    text = ["--dataset", "shakespeare", "--data-dir", str(tmp_path)]
    status, _, content = run(*text, *small, "--baseline", "adam", "--learning-rate", "0.1")
    assert status == 0 and content["options"]["model"] == "gru"
    projections, adam = content["runs"]
    assert projections["gap"][-1] > 0 and adam["test accuracy"] > 0.5


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "gru"],
        ["--learning-rate", "1e-3,0"],
        ["--batches", "0"],
        ["--hidden", "64,none"],
        ["--seeds", "0,one"],
        ["--solver", "sgd"],
        ["--granularity", "block"],
        ["--lam", "-1"],
        ["--weight-hidden", "nan"],
        ["--json", "no-such-folder/out.json"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(options)
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
