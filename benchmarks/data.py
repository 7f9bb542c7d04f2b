"""Data sets in their publishers' formats, and the batches that training draws from them."""

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

__all__ = [
    "DATASETS",
    "IMAGES",
    "DataError",
    "Dataset",
    "batches",
    "digits",
    "load",
    "mnist",
    "shakespeare",
]


class DataError(Exception):
    """A data file is missing or unreadable, or does not hold what it should."""


class Dataset(NamedTuple):
    """Inputs and integer labels, split once and for all.

    Images are float32 ``[1, height, width]`` in [0, 1], each with one label; sequences are int32
    ``[length]`` with a label for every element.
    """

    train_x: Shaped[np.ndarray, "train ..."]
    train_y: Int32[np.ndarray, "train ..."]
    test_x: Shaped[np.ndarray, "test ..."]
    test_y: Int32[np.ndarray, "test ..."]

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return 1 + int(max(self.train_y.max(), self.test_y.max()))


def digits(data_dir: Path | None = None, length: int = 64) -> Dataset:
    """Scikit-learn's 8x8 digits, 1437 to train on and 360 held out, stratified; needs no files."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x, y = np.float32(x / 16).reshape(-1, 1, 8, 8), y.astype(np.int32)
    split = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    train_x, test_x, train_y, test_y = map(np.asarray, split)
    return Dataset(train_x, train_y, test_x, test_y)


def mnist(data_dir: Path | None = None, length: int = 64) -> Dataset:
    """MNIST from its four gzipped idx files, in ``data_dir`` or in its folder ``mnist``."""
    folder = _folder("mnist", data_dir)
    parts: list[np.ndarray] = []
    for name in ("train", "t10k"):
        images_file = folder / f"{name}-images-idx3-ubyte.gz"
        labels_file = folder / f"{name}-labels-idx1-ubyte.gz"
        images, labels = _read_idx(images_file, ndim=3), _read_idx(labels_file, ndim=1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels"
            )
        if labels.max(initial=0) > 9:
            raise DataError(f"{labels_file} holds the label {labels.max()}; expected 0 to 9")
        parts += [np.float32(images[:, None]) / 255, labels.astype(np.int32)]
    return Dataset(*parts)


def shakespeare(data_dir: Path | None = None, length: int = 64) -> Dataset:
    """Text from ``input.txt``, in ``data_dir`` or in its folder ``shakespeare``; labels come next.

    Characters are numbered in sorted order. The first 80 % are trained on, in sequences from every
    offset (views of one text); the rest is held out, cut into sequences that do not overlap.
    """
    path = _folder("shakespeare", data_dir) / "input.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected a text to learn from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    _, numbers = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    train, test = np.split(numbers.astype(np.int32), [len(numbers) * 4 // 5])
    if min(len(train), len(test)) <= length:
        raise DataError(
            f"{path} holds {len(text)} characters, the last {len(test)} to test on; "
            f"expected more than {length} of these, the length of a sequence"
        )
    train, test = (np.lib.stride_tricks.sliding_window_view(part, length) for part in (train, test))
    return Dataset(train[:-1], train[1:], test[:-1:length], test[1::length])


DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "shakespeare": shakespeare,
}
IMAGES = ("digits", "mnist")


def load(name: str, data_dir: Path | None = None, length: int = 64) -> Dataset:
    """The data set of that name; texts come in sequences of ``length``.

    Raises:
        DataError: if a file is missing, unreadable or corrupt; the message names it.
    """
    return DATASETS[name](data_dir, length)


def batches(
    x: Shaped[np.ndarray, "samples ..."],
    y: Int32[np.ndarray, "samples ..."],
    size: int,
    seed: int,
) -> Iterator[tuple[Shaped[np.ndarray, "size ..."], Int32[np.ndarray, "size ..."]]]:
    """Endless batches: every epoch is shuffled anew, its incomplete last batch left out.

    Raises:
        DataError: if ``size`` is not between 1 and the number of samples.
    """
    if not 1 <= size <= len(x):
        raise DataError(f"a batch of {size} cannot be drawn from {len(x)} training samples")
    rng = np.random.default_rng(seed)

    def draw():
        while True:
            order = rng.permutation(len(x))
            for start in range(0, len(x) - size + 1, size):
                chosen = order[start : start + size]
                yield x[chosen], y[chosen]

    return draw()


def _folder(name: str, data_dir: Path | None) -> Path:
    """Where a data set's files are: ``data_dir``, or the folder of that name in it."""
    if data_dir is None:
        raise DataError(f"{name} is read from files: say where they are with --data-dir")
    return data_dir / name if (data_dir / name).is_dir() else data_dir


def _read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """An idx file of bytes: two zeros, the type 8, ndim, the big-endian shape, then the bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected a gzipped idx file of MNIST") from None
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
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
