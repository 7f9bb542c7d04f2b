import csv
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import comparison
from benchmarks.options import OPTIMIZERS, parse
from benchmarks.records import Records

TINY = ["--hidden-features", "4", "--batch-size", "16", "--max-steps", "4", "--eval-every", "2"]
TIMES = ("train_seconds", "compile_seconds", "tune_seconds")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; returns its status, its output and the rows of its table."""

    def run(*options: str):
        log = tmp_path / "results.csv"
        status = comparison.main([*TINY, "--log-file", str(log), *options])
        lines = log.read_text().splitlines() if log.exists() else []
        rows = list(csv.DictReader(lines))
        return status, capsys.readouterr(), rows

    return run


def records_of(folder: Path) -> Records:
    return Records(folder / "results.csv", comparison.COLUMNS)


def test_both_spellings_are_the_same():
    given = "--dataset MNIST --model_type mlp --hidden_features 128 64 --optimizer dm --dm_beta=0.5"
    given += " --steps_per_update 10 --batch_size 64 --log_file some_file.csv --num_runs 3"
    options = parse(given.split(), None)
    hyphens = given.replace("_", "-").replace("some-file", "some_file").replace("MNIST", "mnist")
    assert options == parse(hyphens.split(), None)
    assert options.hidden_features == [128, 64] and options.dm_beta == 0.5
    assert options.log_file == Path("some_file.csv")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {"model_type": "mlp", "schedule": "sweep", "hidden_features": [128], "seq_len": None}),
        ("--dataset shakespeare", {"model_type": "rnn", "seq_len": 64}),
        ("--optimizer sgd", {"learning_rate": 0.03, "steps_per_update": None, "lam": None}),
        ("--optimizer adam --tune", {"learning_rate": None, "tune_steps": 200}),
        ("--optimizer adam --tune 0.1 0.2 --max-steps 9", {"tune": [0.1, 0.2], "tune_steps": 9}),
        ("--optimizer ap", {"steps_per_update": 50, "granularity": "row", "schedule": "parallel"}),
        ("--optimizer cdr", {"schedule": "cyclic", "weight_parameters": 10.0}),
        ("--optimizer dm", {"dm_beta": 0.8}),
    ],
)
def test_what_is_left_out_has_values(given, expected):
    options = vars(parse(given.split(), None))
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--dataset cifar100", "--dataset"),
        ("--optimizer lbfgs", "--optimizer"),
        ("--model-type rnn", "--model-type rnn cannot read --dataset digits"),
        ("--dataset higgs --model-type cnn", "--model-type cnn cannot read --dataset higgs"),
        ("--optimizer dr --tune", "--tune is not for --optimizer dr: it has no learning rate"),
        ("--optimizer adam --tune --learning-rate 0.1", "leave one out"),
        ("--optimizer adam --tune-steps 10", "--tune-steps is for --tune"),
        ("--optimizer adam --granularity row", "adam: it makes no projections"),
        ("--granularity block", "--granularity is not for --optimizer default: a sweep"),
        ("--optimizer dm --dm-beta 0", "--dm-beta must be finite and not 0"),
        ("--seed -1", "--seed: -1 is not at least 0"),
        (
            "--optimizer cp --schedule parallel",
            "--schedule is not for --optimizer cp: it has cyclic",
        ),
        ("--optimizer sgd --schedule sweep", "it has none"),
        ("--optimizer ap --margin-loss --lam 3", "--lam is not for --margin-loss"),
        ("--max-steps 0", "--max-steps 0 is no limit, which takes --patience"),
        ("--hidden-features 8,8", "--hidden-features"),
        ("--log-file no-such-folder/results.csv", "--log-file"),
    ],
)
def test_what_does_not_go_together_is_refused(given, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        comparison.main(given.split())
    assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_original_scripts_options_suit_all_optimizers(optimizer, capsys):
    given = "--dataset MNIST --model_type mlp --hidden_features 32 32 --batch_size 256 --seq_len 64"
    given += " --learning_rate 1e-3 --steps_per_update 50 --dm_beta 0.5 --patience 10 --skip"
    options = parse([*given.split(), "--max_steps", "0", "--optimizer", optimizer], None)
    assert options.max_steps is None and options.skip
    gradients, iterates = optimizer in ("sgd", "adam"), optimizer not in ("sgd", "adam", "default")
    kept = {"learning_rate": gradients, "steps_per_update": iterates, "dm_beta": optimizer == "dm"}
    left_out = {name for name, is_kept in (*kept.items(), ("seq_len", False)) if not is_kept}
    said = capsys.readouterr().err.splitlines()
    assert {line.split()[1].strip("-").replace("-", "_") for line in said} == left_out
    assert all(getattr(options, name) is None for name in left_out)


@pytest.mark.usefixtures("loose_promotion")
def test_runs_are_rows_and_are_not_repeated(run, monkeypatch, tmp_path):
    counted, accuracy = [], comparison.accuracy
    monkeypatch.setattr(comparison, "accuracy", lambda *args: counted.append(1) or accuracy(*args))
    options = ["--optimizer", "adam", "--tune", "1e-9", "1e-2", "--num-runs", "2", "--skip"]
    options += ["--max-steps", "30", "--hidden-features", "16", "--eval-every", "15"]
    status, output, rows = run(*options)
    assert status == 0 and [row["seed"] for row in rows] == ["0", "1"]
    assert len(counted) == 4  # Of each run the test part once, with parameters and with averages.
    for row in rows:
        assert row["learning_rate"] == "0.01" and row["tune"] == "1e-09 0.01"
        assert row["updates"] == "30" and row["samples"] == "480" and row["ended"] == "steps"
        assert int(row["flops"]) > 30 * 2 * 2 * 16 * 64 * 16  # Two products in the first layer.
        assert row["hidden_features"] == "16" and float(row["train_seconds"]) > 0
        figures = records_of(tmp_path).figures(row["run"])
        best = max(point[2] for point in figures["history"])
        assert float(row["validation"]) == best and len(figures["history"]) == 3
    assert "validation after 30 updates by learning rate: 1e-09: " in output.err
    table = output.out.splitlines()
    assert table[2].split()[:4] == ["digits,", "mlp,", "adam", "2"] and "±" in table[2]

    monkeypatch.setattr(comparison, "train", None)
    again, resumed, same = run(*options, "--resume")
    assert again == 0 and same == rows and resumed.out == output.out
    assert resumed.err.count("finished already") == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        "ap",
        pytest.param("default", marks=pytest.mark.slow),
        pytest.param("sgd --margin-loss", marks=pytest.mark.slow),
        pytest.param("ar --margin-loss", marks=pytest.mark.slow),
        pytest.param("dr --granularity block", marks=pytest.mark.slow),
        pytest.param("dm --dm-beta 0.5 --schedule product", marks=pytest.mark.slow),
        pytest.param("cp", marks=pytest.mark.slow),
        pytest.param("cdr", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("loose_promotion")
def test_every_optimizer_trains_from_the_same_start(run, optimizer, tmp_path):
    name, *further = optimizer.split()
    classical = name in ("ap", "ar", "dr", "dm", "cp", "cdr")
    steps = ["--steps-per-update", "2"] if classical else []
    _, _, (row,) = run("--optimizer", name, *steps, *further)
    assert (row["validation_averaged"] == "") == classical
    history = records_of(tmp_path).figures(row["run"])["history"]
    _, _, (_, other) = run("--optimizer", "sgd")
    assert history[0][2] == records_of(tmp_path).figures(other["run"])["history"][0][2]
    assert other["run"] != row["run"]


@pytest.mark.usefixtures("loose_promotion")
def test_patience_ends_a_run_that_gets_no_better(run, tmp_path):
    still = ["--optimizer", "sgd", "--learning-rate", "1e-30", "--max-steps", "9"]
    _, _, (row,) = run(*still, "--patience", "2")
    history = records_of(tmp_path).figures(row["run"])["history"]
    assert row["ended"] == "patience" and [point[0] for point in history] == [0, 2, 4]
    assert row["best_update"] == row["best_update_averaged"] == "0"
    _, _, (_, row) = run(*still, "--max-seconds", "1e-9")
    assert row["ended"] == "seconds" and row["updates"] == "1"


@pytest.mark.usefixtures("loose_promotion")
def test_a_subset_of_higgs_has_other_parts_in_every_run(run, tmp_path):
    """What there is to learn is whether the first two features have the same sign."""
    x = np.random.default_rng(0).normal(size=(3000, 28))
    table = np.column_stack([x[:, 0] * x[:, 1] > 0, x])
    np.savetxt(tmp_path / "HIGGS_3k.csv", table, "%.3f", ",")
    options = ["--dataset", "HIGGS", "--data-dir", str(tmp_path), "--num-runs", "2"]
    options += ["--hidden-features", "32", "--batch-size", "64", "--max-steps", "150"]
    status, output, rows = run(*options, "--optimizer", "default", "--eval-every", "50")
    assert status == 0 and [row["seed"] for row in rows] == ["0", "1"]
    assert all(float(row["test_averaged"]) > 0.7 for row in rows)
    assert rows[0]["data"] == rows[1]["data"] and rows[0]["test"] != rows[1]["test"]
    assert "seeds 0, 1" in output.out
    tuned = ["--optimizer", "adam", "--tune", "1e-5", "1e-2", "--eval-every", "50"]
    status, output, rows = run(*options, *tuned)
    assert status == 0 and [row["learning_rate"] for row in rows[2:]] == ["0.01", "0.01"]
    assert output.err.count("by learning rate") == 2  # Each in validation parts of its own.


@pytest.mark.slow
@pytest.mark.usefixtures("loose_promotion")
@pytest.mark.parametrize("model", ["cnn --dataset digits", "rnn --dataset shakespeare --seq-len 8"])
def test_other_models(run, model, tmp_path):
    (tmp_path / "input.txt").write_text("to be or not to be " * 200)
    for optimizer in ("adam", "default"):
        options = ["--optimizer", optimizer, "--data-dir", str(tmp_path), "--skip"]
        status, *_ = run(*options, "--hidden-features", "3", "3", "--model-type", *model.split())
        assert status == 0


LONG = ["--max-steps", "200", "--eval-every", "2", "--steps-per-update", "2"]
KILLS = {"default": 10, "ap": 3, "dr": 3} | dict.fromkeys(["sgd", "ar", "dm", "cp", "cdr"], 1)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Makes a folder with an optimizer's run that nobody killed."""

    @functools.cache
    def made(optimizer):
        folder = tmp_path_factory.mktemp("unbroken")
        log = ["--log-file", str(folder / "results.csv")]
        with jax.numpy_dtype_promotion("standard"):
            assert comparison.main([*TINY, *LONG, "--optimizer", optimizer, *log]) == 0
        return folder

    return made


@pytest.mark.usefixtures("loose_promotion")
@pytest.mark.parametrize(
    ("optimizer", "moment"),
    [
        ("adam", 0),
        *(
            pytest.param(optimizer, moment, marks=pytest.mark.slow)
            for optimizer, moments in KILLS.items()
            for moment in range(moments)
        ),
    ],
)
def test_killed_and_resumed_is_as_unbroken_bit_for_bit(run, unbroken, tmp_path, optimizer, moment):
    given, unbroken = [*LONG, "--optimizer", optimizer], unbroken(optimizer)
    chance = random.Random(moment)
    log = str(tmp_path / "results.csv")
    command = [sys.executable, "-m", "benchmarks.comparison", *TINY, *given, "--log-file", log]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    records, (wanted,) = records_of(tmp_path), records_of(unbroken).rows()
    updates = chance.randrange(2, 120)
    while reached(records, wanted["run"]) < updates:
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.01))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not records.rows()
    status, output, (row,) = run(*given, "--resume")
    assert status == 0 and "goes on after update" in output.err
    assert {**row, **dict.fromkeys(TIMES)} == {**wanted, **dict.fromkeys(TIMES)}
    (figures, arrays), (expected, others) = (
        kept(r, row["run"]) for r in (records, records_of(unbroken))
    )
    assert arrays == others  # Of parameters, state and both best ones.
    seen, there = ([p[:1] + p[2:] for p in f["history"]] for f in (figures, expected))
    assert seen == there and len(seen) == 101


def reached(records: Records, name: str) -> int:
    """After how many updates a run was last saved."""
    return records.figures(name)["updates"] if records.file(name).exists() else 0


def kept(records: Records, name: str):
    """The figures of a run, and the bytes of its arrays."""
    return records.figures(name), records.file(name).read_bytes().split(b"\n", 2)[2]


@pytest.mark.usefixtures("loose_promotion")
def test_terminated_runs_can_be_resumed(run, monkeypatch):
    train = comparison.train

    def terminated(task, run, kept):
        train(task._replace(max_steps=2), run, kept)
        run.ended = None
        kept()
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train", terminated)
        status, output, rows = run("--optimizer", "adam")
    assert status == 130 and not rows
    assert output.err.endswith("interrupted: the same command with --resume goes on from there\n")
    status, output, rows = run("--optimizer", "adam", "--resume")
    assert status == 0 and "goes on after update 2" in output.err and len(rows) == 1


@pytest.mark.usefixtures("loose_promotion")
@pytest.mark.parametrize("damage", ["is damaged", "is of another configuration"])
def test_checkpoints_of_no_use_are_named(run, tmp_path, damage):
    _, _, (row,) = run("--optimizer", "sgd")
    records = records_of(tmp_path)
    records.path.unlink()
    file = records.file(row["run"])
    if damage == "is damaged":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        records.save(row["run"], {"configuration": {"seed": 1}}, np.zeros(3))
    status, output, rows = run("--optimizer", "sgd", "--resume")
    assert status == 2 and f"error: {file} {damage}" in output.err and not rows
    assert output.err.count("\n") == 1


def test_other_tables_are_left_alone(run, tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    status, output, _ = run()
    assert status == 2 and output.err.startswith("error: ") and "another table" in output.err
    assert (tmp_path / "results.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("cifar10", "data_batch_1.bin"),
        ("higgs", "HIGGS.csv.gz"),
        ("shakespeare", "input.txt"),
    ],
)
@pytest.mark.parametrize("content", [None, b"First Citizen:\nBefore we proceed any further"])
def test_missing_and_damaged_files_are_named_in_a_line(run, tmp_path, dataset, file, content):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    status, output, _ = run("--dataset", dataset, "--data-dir", str(tmp_path))
    assert status == 2 and output.err.startswith(f"error: {tmp_path / file} ")
    assert output.err.count("\n") == 1 and (content or "https://" in output.err)


def test_too_large_a_batch(run):
    status, output, _ = run("--batch-size", "1295")
    assert status == 2 and "1295 cannot be drawn from 1294" in output.err
