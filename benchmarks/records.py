"""What is kept of runs: a table of those that are finished, and a file for each of them.

Rows go into a CSV file, one for every finished run, behind a lock that other processes respect. In
a folder beside it, named for it, every run has a file with its figures so far and its arrays; it is
a checkpoint while the run goes on, and holds the trained parameters once it is over. Files are
written beside their places and moved there, so that who is killed leaves none half written.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx

__all__ = ["RecordError", "Records", "run_id"]

_MAGIC = b"pjax-trace run, version 1, sha256 "


class RecordError(Exception):
    """A file of records is damaged, or not what was expected in its place."""


def run_id(configuration: Mapping[str, Any]) -> str:
    """The name of a run: a hash of all that decides what comes of it, the seed included."""
    text = json.dumps(configuration, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Records:
    """The table at ``path``, with the columns of ``columns``, and the files of its runs.

    A column ``run`` holds the runs' names.

    Raises:
        RecordError: if there is such a table and it has other columns, or is damaged.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, list(columns)
        self.folder = path.with_suffix(".runs")
        self.rows()

    def rows(self) -> list[dict[str, str]]:
        """The rows of the table; none if there is no table yet.

        Raises:
            RecordError: as the class.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
            lines = list(csv.reader(io.StringIO(text, newline="")))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RecordError(f"{self.path} cannot be read as a table: {error}") from error
        if lines and lines[0] != self.columns:
            raise RecordError(
                f"{self.path} is another table than that of this command, or of another version of "
                "it; choose another file"
            )
        wide = len(self.columns)
        for i, line in enumerate(lines):
            if len(line) != wide:
                raise RecordError(
                    f"{self.path} is damaged: row {i} has {len(line)} of {wide} cells"
                )
        return [dict(zip(self.columns, line, strict=True)) for line in lines[1:]]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; of processes that do so at once, all rows are kept.

        None is an empty cell, a list one of its values with spaces between.

        Raises:
            RecordError: as the class, or if it cannot be written.
        """
        with _written(self.folder), open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, self.columns, lineterminator="\n")
            table.writeheader()
            table.writerows([*self.rows(), {name: _cell(row[name]) for name in self.columns}])
            _replace(self.path, text.getvalue().encode())

    def file(self, run: str) -> Path:
        """Where the file of a run is, or will be."""
        return self.folder / f"{run}.run"

    def save(self, run: str, figures: Mapping[str, Any], arrays: Any) -> None:
        """Replace the file of a run.

        Args:
            run: its name.
            figures: what can be written as JSON.
            arrays: a pytree.

        Raises:
            RecordError: if it cannot be written.
        """
        body = io.BytesIO()
        body.write(json.dumps(figures).encode() + b"\n")
        eqx.tree_serialise_leaves(body, arrays)
        content = body.getvalue()
        checksum = hashlib.sha256(content).hexdigest().encode()
        with _written(self.folder):
            _replace(self.file(run), _MAGIC + checksum + b"\n" + content)

    def figures(self, run: str) -> dict[str, Any]:
        """The figures in the file of a run.

        Raises:
            RecordError: if it is missing or damaged.
        """
        return self._open(run)[0]

    def load(self, run: str, like: Any) -> tuple[dict[str, Any], Any]:
        """The figures and arrays in the file of a run, the latter in a pytree such as ``like``.

        Raises:
            RecordError: if it is missing, damaged or of other arrays.
        """
        figures, body = self._open(run)
        try:
            return figures, eqx.tree_deserialise_leaves(body, like)
        except Exception as error:  # Of many kinds, where a whole file is of another kind.
            reason = " ".join(str(error).split())
            raise RecordError(f"{self.file(run)} is not of this run: {reason}") from error

    def _open(self, run: str) -> tuple[dict[str, Any], io.BytesIO]:
        path = self.file(run)
        try:
            head, _, content = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error}") from error
        if head != _MAGIC + hashlib.sha256(content).hexdigest().encode():
            raise RecordError(
                f"{path} is damaged: its content does not have its checksum; remove it to start "
                "that run afresh"
            )
        figures, _, arrays = content.partition(b"\n")
        return json.loads(figures), io.BytesIO(arrays)


def _cell(value: Any) -> Any:
    return " ".join(f"{part:g}" for part in value) if isinstance(value, list) else value


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A folder to write into, made if need be, where to fail is an error of records."""
    try:
        folder.mkdir(exist_ok=True)
        yield
    except OSError as error:
        raise RecordError(f"{folder} and what is beside it cannot be written: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
