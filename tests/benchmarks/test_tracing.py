import pytest

from benchmarks import tracing
from benchmarks.scaling import exponent


@pytest.mark.usefixtures("loose_promotion")
def test_table_has_every_size(run_command):
    status, output, content = run_command(tracing, "--blocks", "1,2", "--rows", "4")
    assert status == 0
    rows = content["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [
        ("blocks", 1),
        ("blocks", 2),
        ("rows", 4),
    ]
    for row in rows:
        assert row["tracing [s]"] > 0 and row["lowering [s]"] > 0 and row["MiB"] > 0
    # Per block two layers and a sum, beside the first and the last layer and the loss.
    assert rows[1]["constraints"] - rows[0]["constraints"] == 3
    of_blocks, _ = content["exponents"]
    assert of_blocks["of tracing"] == exponent(rows[:2], "tracing [s]")
    assert output.out.startswith("tracing and lowering, JAX")


@pytest.mark.usefixtures("loose_promotion")
def test_no_array_of_the_size_of_an_output_is_made():
    """One would take 64 MiB."""
    *_, memory = tracing.measure(tracing.layer(2**14))
    assert memory < 16


def test_interrupted_measurements_are_reported(run_command, interrupt, monkeypatch):
    monkeypatch.setattr(tracing, "measure", lambda *args: (3, 1.0, 3.0, 0.5))
    interrupt(tracing, "measure")
    status, output, content = run_command(tracing)
    assert status == 130 and "interrupted" in output.err
    assert [row["value"] for row in content["rows"]] == [16]


@pytest.mark.parametrize("options", [["--axes", "height"], ["--blocks", "64,0"]])
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        tracing.main(options)
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
