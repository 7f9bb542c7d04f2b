"""Readers of the formats in which data sets are published; what is damaged is refused by name."""

import gzip
import hashlib
import itertools
import math
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

__all__ = [
    "CIFAR_RECORD",
    "HIGGS_FEATURES",
    "DataError",
    "MissingError",
    "higgs_file",
    "is_finite",
    "note",
    "read_cifar",
    "read_higgs",
    "read_idx",
    "read_text",
]

CIFAR_RECORD = 1 + 3 * 32 * 32  # A label, then the red, green and blue planes.
HIGGS_FEATURES = 28
_LINES = 100_000  # Of a table are parsed at a time.


class DataError(Exception):
    """A data file is missing or unreadable, or does not hold what it should."""


class MissingError(DataError):
    """A data file is not there."""


class Published(NamedTuple):
    """What a publisher's file is known by: the MD5 of its content, and the sizes of the file."""

    md5: str
    sizes: tuple[int, ...]


# The sizes of idx files are those of the publisher's own archives; gzip may pack them otherwise.
_PUBLISHED = {
    "train-images-idx3-ubyte.gz": Published("6bbc9ace898e44ae57da46a324031adb", (9912422,)),
    "train-labels-idx1-ubyte.gz": Published("a25bea736e30d166cdddb491f175f624", (28881,)),
    "t10k-images-idx3-ubyte.gz": Published("2646ac647ad5339dbf082846283269ea", (1648877,)),
    "t10k-labels-idx1-ubyte.gz": Published("27ae3e4e09519cfbb04c329615203637", (4542,)),
    "input.txt": Published("6fb458f1232090904fb40fe944165e91", (1115394,)),
}
_TINY_SHAKESPEARE = b"First Citizen:\nBefore we proceed"


def note(text: str) -> None:
    """Say something of the data that is no error, in a line on stderr."""
    print(f"note: {text}", file=sys.stderr)


def read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """An idx file of bytes: two zeros, the type 8, ndim, the big-endian shape, the bytes.

    Where ``path``, a gzipped one, is missing, the same unpacked is read instead if it is there.
    """
    origin = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    wanted = f"a gzipped idx file of MNIST, as in {origin}, or it unpacked"
    if not path.exists() and path.with_suffix("").exists():
        path = path.with_suffix("")
    content = packed = _read(path, wanted, "an idx file")
    try:
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a gzipped idx file: {error}") from error
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes([0, 0, 8, ndim]):
        raise DataError(
            f"{path} is no idx file of bytes in {ndim} dimension(s): "
            f"expected the header 0000080{ndim}, found {content[:4].hex() or 'nothing'}"
        )
    shape = [int(size) for size in np.frombuffer(content, ">u4", count=ndim, offset=4)]
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - start} bytes after its header; "
            f"expected {math.prod(shape)} for the shape {tuple(shape)}"
        )
    if not math.prod(shape):
        raise DataError(f"{path} holds nothing: its shape is {tuple(shape)}")
    _compare(path, len(packed), content)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(
    path: Path,
) -> tuple[UInt8[np.ndarray, "images 3 32 32"], UInt8[np.ndarray, "images"]]:
    """A file of CIFAR-10's binary version: images and labels, as many as its size says."""
    origin = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    content = _read(path, f"a file of CIFAR-10's binary version, as in {origin}", "records")
    records, rest = divmod(len(content), CIFAR_RECORD)
    if rest or not records:
        raise DataError(
            f"{path} holds {len(content)} bytes, which is no multiple of {CIFAR_RECORD}, the size "
            "of a record of CIFAR-10: it is truncated or something else"
        )
    table = np.frombuffer(content, np.uint8).reshape(records, CIFAR_RECORD)
    labels = table[:, 0]
    if labels.max() > 9:
        raise DataError(f"{path} holds the label {labels.max()}; expected 0 to 9")
    return table[:, 1:].reshape(records, 3, 32, 32), labels


def higgs_file(folder: Path) -> Path:
    """The table of HIGGS in a folder: the publisher's, or else the only ``HIGGS*.csv[.gz]``."""
    names = [folder / "HIGGS.csv.gz", folder / "HIGGS.csv"]
    found = [path for path in names if path.exists()][:1]
    found = found or sorted([*folder.glob("HIGGS*.csv.gz"), *folder.glob("HIGGS*.csv")])
    if len(found) > 1:
        raise DataError(f"{folder} holds {', '.join(path.name for path in found)}: leave one of it")
    return found[0] if found else names[0]


def read_higgs(
    path: Path,
) -> tuple[Float32[np.ndarray, "rows 28"], Int32[np.ndarray, "rows"]]:
    """A table of HIGGS, gzipped or not: features and labels.

    A header says by its names where the label is; without a header it comes first, as in the
    publisher's file.
    """
    origin = "https://archive.ics.uci.edu/dataset/280/higgs"
    wanted = f"the table of HIGGS, from {origin}"
    if not path.exists():
        raise MissingError(f"{path} is missing: expected {wanted}")
    parts: list[np.ndarray] = []
    column, line, ended = 0, 1, True
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="ascii") as file:
            first = file.readline()
            if not first:
                raise DataError(f"{path} is empty: expected {wanted}")
            if _is_header(first):
                column, line, first = _label_column(path, first), 2, ""
            rows = itertools.chain([first] if first else [], file)
            while chunk := list(itertools.islice(rows, _LINES)):
                parts.append(_parse(path, chunk, line))
                line, ended = line + len(chunk), chunk[-1].endswith("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not ended:
        raise DataError(f"{path} does not end its line {line - 1}: it is truncated")
    if not parts:
        raise DataError(f"{path} holds no rows: expected {wanted}")
    table = np.concatenate(parts)
    labels = table[:, column]
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if len(bad):
        where = line - len(table) + bad[0]
        raise DataError(f"{path}, line {where}: the label is {labels[bad[0]]:g}; expected 0 or 1")
    return np.delete(table, column, axis=1), labels.astype(np.int32)


def read_text(path: Path) -> str:
    """A text in UTF-8. What begins as tiny Shakespeare must be it, whole; others are accepted."""
    origin = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    content = _read(path, f"a text to learn from, as in {origin}input.txt", "text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    _compare(path, len(content), content, content.startswith(_TINY_SHAKESPEARE))
    return text


def _read(path: Path, wanted: str, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path} is missing: expected {wanted}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as {kind}: {error}") from error


def _compare(path: Path, size: int, content: bytes, meant: bool = False) -> None:
    """Refuse what was meant to be the publisher's file and is not; say so of other files."""
    published = _PUBLISHED.get(path.name) or _PUBLISHED.get(f"{path.name}.gz")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if published is None or found == published.md5:
        return
    if meant or size in published.sizes:
        raise DataError(
            f"{path} is damaged or truncated: its content has the MD5 checksum {found}; "
            f"expected {published.md5}"
        )
    note(f"{path} is not the publisher's file (MD5 {found}), but can be read as one")


def _is_header(line: str) -> bool:
    """Whether none of the cells is a number."""
    for cell in line.split(","):
        try:
            float(cell)
        except ValueError:
            continue
        return False
    return True


def _label_column(path: Path, header: str) -> int:
    names = [name.strip().strip('"').lower() for name in header.split(",")]
    labels = [i for i, name in enumerate(names) if name in ("label", "class", "class_label")]
    if len(names) != HIGGS_FEATURES + 1 or len(labels) != 1:
        raise DataError(
            f"{path}, line 1: expected the names of {HIGGS_FEATURES} features and of the label, "
            f"found {len(names)} names, {len(labels)} of them a label's"
        )
    return labels[0]


def _parse(path: Path, rows: list[str], line: int) -> Float32[np.ndarray, "rows 29"]:
    """Rows of a table as numbers.

    Args:
        path: of the table, for messages.
        rows: to parse.
        line: that of the first row.
    """
    try:
        table = np.loadtxt(rows, np.float32, delimiter=",", comments=None, ndmin=2)
        if table.shape == (len(rows), HIGGS_FEATURES + 1) and np.all(np.isfinite(table)):
            return table
    except ValueError:
        pass
    for number, row in enumerate(rows, line):
        cells = row.strip().split(",")
        if len(cells) != HIGGS_FEATURES + 1:
            expected = f"expected {HIGGS_FEATURES + 1}"
            raise DataError(f"{path}, line {number}: {len(cells)} cells; {expected}")
        for cell in cells:
            if not is_finite(cell):
                raise DataError(f"{path}, line {number}: {cell!r} is no finite number")
    raise DataError(f"{path}, from line {line} on, cannot be read as a table of numbers")


def is_finite(cell: str) -> bool:
    """Whether a cell of a table is a number, and finite in float32 too."""
    try:
        return math.isfinite(float(cell)) and bool(np.isfinite(np.float32(cell)))
    except (ValueError, OverflowError):
        return False
