import json
from pathlib import Path

from benchmarks.tables import format_table, write_json


def test_table_is_aligned():
    rows = [
        {"method": "ap", "accuracy": 0.975, "steps": 12345},
        {"method": "adam, scan", "accuracy": None, "steps": 1},
    ]
    assert format_table(rows, {"method": "", "accuracy": ".1%", "steps": "d"}).splitlines() == [
        "method      accuracy  steps",
        "---------------------------",
        "ap             97.5%  12345",
        "adam, scan         -      1",
    ]


def test_json_keeps_what_it_is_given(tmp_path):
    file = tmp_path / "out.json"
    write_json(file, {"rows": [1, 2.5, None], "path": Path("somewhere")})
    assert json.loads(file.read_text()) == {"rows": [1, 2.5, None], "path": "somewhere"}
