import pytest

from benchmarks import scaling
from benchmarks.scaling import AXES, exponent


def test_exponents_are_slopes():
    rows = [{"value": n, "ms": 3 * n**1.5, "flat": 2.0} for n in (2, 8, 16)]
    assert exponent(rows, "ms") == pytest.approx(1.5)
    assert exponent(rows, "flat") == pytest.approx(0)
    assert exponent(rows[:1], "ms") is None


def test_an_axis_varies_one_size():
    assert AXES["batch"](64) == ("mlp", [784, 128, 10], 64, None)
    assert AXES["width"](64) == ("mlp", [784, 64, 64, 10], 256, None)
    assert AXES["depth"](3) == ("mlp", [784, 128, 128, 128, 10], 256, None)
    assert AXES["length"](16) == ("gru", [65, 32, 128, 65], 32, 16)


@pytest.mark.usefixtures("loose_promotion")
def test_table_has_every_size(run_command):
    sizes = ["--axes", "batch", "--batch", "4,8", "--repeats", "2"]
    status, output, content = run_command(scaling, *sizes)
    assert status == 0
    rows = content["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [("batch", 4), ("batch", 8)]
    for row in rows:
        assert row["ms"] > 0 and row["compilation [s]"] > 0 and row["of adam [s]"] > 0
        assert row["x adam"] == pytest.approx(row["ms"] / row["ms of adam"])
    (slopes,) = content["exponents"]
    assert slopes["axis"] == "batch" and slopes["exponent"] == exponent(rows, "ms")
    assert slopes["of adam"] == exponent(rows, "ms of adam")
    printed = output.out.splitlines()
    assert printed[0].startswith("an update of sweep and of adam, JAX")
    assert printed[1].startswith("axis") and len(printed) == 1 + 4 + 1 + 3


@pytest.mark.slow
@pytest.mark.usefixtures("loose_promotion")
def test_every_axis(run_command):
    sizes = "--batch 4 --widths 4 --depths 2 --lengths 2,4 --repeats 1".split()
    status, _, content = run_command(scaling, *sizes)
    assert status == 0 and [row["axis"] for row in content["exponents"]] == list(AXES)
    of_batch, *_, of_length = content["exponents"]
    assert of_batch["exponent"] is None and of_length["exponent"] is not None


def test_interrupted_measurements_are_reported(run_command, interrupt, monkeypatch):
    monkeypatch.setattr(scaling, "measure", lambda *args: (3.0, 1.0, 3.0, 0.5, 0.2))
    interrupt(scaling, "measure")
    status, output, content = run_command(scaling)
    assert status == 130 and "interrupted" in output.err
    assert [row["value"] for row in content["rows"]] == [64, 128]


@pytest.mark.parametrize(
    "options", [["--axes", "batch,height"], ["--widths", "64,0"], ["--repeats", "0"]]
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        scaling.main(options)
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
