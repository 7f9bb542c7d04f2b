import threading

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.records import RecordError, Records, run_id


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "results.csv", ["run", "sizes", "accuracy"])


def row(name, accuracy=0.5):
    return {"run": name, "sizes": [128, 0.5], "accuracy": accuracy}


def test_rows_are_added_below_one_header(records):
    records.append(row("a"))
    records.append(row("b", None))
    assert records.path.read_text() == "run,sizes,accuracy\na,128 0.5,0.5\nb,128 0.5,\n"
    again = Records(records.path, records.columns)
    assert again.rows()[1] == {"run": "b", "sizes": "128 0.5", "accuracy": ""}


def test_no_row_is_lost_where_many_write_at_once(records):
    def write(writer):
        other = Records(records.path, records.columns)
        for i in range(25):
            other.append(row(f"{writer}-{i}"))

    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    names = [found["run"] for found in records.rows()]
    assert sorted(names) == sorted(f"{writer}-{i}" for writer in range(4) for i in range(25))
    assert not list(records.path.parent.glob(".*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"run,accuracy\n", "is another table than that of this command"),
        (b"run,sizes,accuracy\na,1,0.5\nb,1\n", "is damaged: row 2 has 2 of 3 cells"),
        (b"\xff", "cannot be read as a table"),
    ],
)
def test_other_tables_are_refused(tmp_path, content, says):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=says) as raised:
        Records(path, ["run", "sizes", "accuracy"])
    assert str(path) in str(raised.value) and path.read_bytes() == content


def test_runs_are_named_by_all_that_decides():
    names = {run_id(config) for config in ({"seed": 0}, {"seed": 1}, {"seed": 0, "skip": True})}
    assert len(names) == 3
    assert run_id({"a": 1, "b": 2}) == run_id({"b": 2, "a": 1})


def test_files_of_runs_hold_figures_and_arrays(records):
    arrays = {"w": jnp.arange(3.0), "n": jnp.zeros((), jnp.int32)}
    records.save("a", {"history": [[1, 0.1, None]]}, arrays)
    figures, again = records.load("a", {"w": jnp.ones(3), "n": jnp.ones((), jnp.int32)})
    assert figures == records.figures("a") == {"history": [[1, 0.1, None]]}
    assert np.array_equal(again["w"], arrays["w"]) and again["n"] == 0
    with pytest.raises(RecordError, match="a.run is not of this run"):
        records.load("a", {"w": jnp.ones(4), "n": jnp.ones((), jnp.int32)})
    with pytest.raises(RecordError, match="b.run cannot be read"):
        records.figures("b")


@pytest.mark.parametrize("damage", [lambda c: c[:-7], lambda c: c[:99] + b"#" + c[100:]])
def test_damaged_files_of_runs_are_refused(records, damage):
    records.save("a", {"updates": 5}, jnp.arange(30.0))
    file = records.file("a")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RecordError, match="a.run is damaged: .*remove it to start"):
        records.load("a", jnp.zeros(30))
