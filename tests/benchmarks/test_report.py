import pytest

from benchmarks import report
from benchmarks.comparison import COLUMNS
from benchmarks.options import CONFIGURATION
from benchmarks.records import Records


@pytest.fixture
def table(tmp_path):
    """Adds runs to a table: a seed, a test accuracy, and what else is not as usual."""
    records = Records(tmp_path / "results.csv", COLUMNS)
    usual = {"dataset": "MNIST", "data": "abc", "model_type": "mlp", "hidden_features": [128, 64]}
    usual |= {"optimizer": "adam", "batch_size": 10, "skip": False, "margin_loss": False}

    def add(seed: int, test: float | str, **other):
        row = dict.fromkeys(COLUMNS) | usual | {"seed": seed, "test": test, "validation": test}
        row |= {"train_seconds": 12.34, **other}
        row["run"] = other.get("run", "-".join(str(row[name]) for name in CONFIGURATION))
        records.append(row)
        reached = test if isinstance(test, float) else 0.0
        history = [[20 * i, i + seed / 10, reached * i / 4, None] for i in range(5 - seed)]
        if row["test_averaged"]:
            history = [[*point[:3], point[2] + 0.01] for point in history]
        records.save(row["run"], {"history": history, "flops": 1000}, ())
        return records.path

    return add


def test_table_has_networks_by_optimizers(table, capsys):
    table(0, 0.9)
    table(1, 0.92)
    table(0, 0.95, optimizer="default", test_averaged=0.96, validation_averaged=0.955)
    path = table(0, 0.6, dataset="CIFAR10", skip=True, train_seconds=1234.0)
    assert report.main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| | adam | default |",
        "|---|---|---|",
        "| MNIST, mlp 128-64 | 91.00 ± 1.41; 12.3 s | 95.00, 96.00; 12.3 s |",
        "| CIFAR10, mlp 128-64, skips | 60.00; 1234 s | – |",
        "",
        "Test accuracy in %, mean and standard deviation of 1 to 2 runs, after the comma that of "
        "averaged parameters; seconds of training.",
    ]


def test_best_configuration_in_validation_counts(table, capsys):
    table(0, 0.9, learning_rate=0.1, validation=0.95)
    path = table(0, 0.93, learning_rate=0.2, validation=0.92)
    assert report.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| 90.00; 12.3 s |" in lines[2]
    said = "the best in validation of 2 configurations, batch_size 10, learning_rate 0.1."
    assert lines[-1] == f"MNIST, mlp 128-64, adam: {said}"


def test_last_row_of_a_run_counts_and_data_are_told_apart(table, capsys):
    table(0, 0.5, run="same")
    table(0, 0.7, run="same")
    path = table(0, 0.9, data="def")
    assert report.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "| MNIST, mlp 128-64, data abc | 70.00;" in out and "data def | 90.00;" in out


def test_curves_are_saved(table, tmp_path, capsys):
    for optimizer in ("adam", "default"):
        averaged = 0.9 if optimizer == "default" else None
        for seed in (0, 1):
            path = table(seed, 0.9, optimizer=optimizer, test_averaged=averaged)
    file = tmp_path / "curves.png"
    assert report.main([str(path), "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG") and f"curves: {file}" in capsys.readouterr().err
    groups = report.networks(report.finished(path))[0].groups
    seconds, accuracy = report.curves(groups["adam"], "seconds", averaged=False)
    assert seconds.tolist() == pytest.approx([0.05, 1.05, 2.05, 3.05]) and accuracy.shape == (2, 4)
    samples, _ = report.curves(groups["default"], "samples", averaged=True)
    assert samples.tolist() == [0, 200, 400, 600]
    assert not report.curves(groups["adam"], "flops", averaged=True)[1].size


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "is missing: expected what"), ("a,b\n", "another table"), ("", "holds no runs")],
)
def test_what_is_no_table_of_runs_is_named(tmp_path, capsys, content, says):
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_text(content)
    assert report.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "cell"), [("test", "high"), ("train_seconds", ""), ("test", "nan")]
)
def test_cells_that_are_no_numbers_are_named(table, capsys, name, cell):
    path = table(0, **{"test": 0.9, "validation": 0.9, "run": "first", name: cell})
    assert report.main([str(path)]) == 2
    says = f"error: {path} is damaged: {name} of the run first is {cell!r}, and no number\n"
    assert capsys.readouterr().err == says
