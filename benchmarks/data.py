"""Data sets in their publishers' formats, and the batches that training draws from them."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped

from benchmarks.download import fetch
from benchmarks.formats import (
    DataError,
    MissingError,
    higgs_file,
    note,
    read_cifar,
    read_higgs,
    read_idx,
    read_text,
)

__all__ = [
    "DATASETS",
    "IMAGES",
    "DataError",
    "Dataset",
    "Parts",
    "batches",
    "cifar10",
    "digits",
    "higgs",
    "hold_out",
    "load",
    "mnist",
    "redrawn",
    "shakespeare",
]

_HIGGS_ROWS, _HIGGS_TEST, _HIGGS_SUBSET_TEST = 11_000_000, 500_000, 2_000
_VALIDATION_SEED, _VALIDATION_MOST = 0, 10_000  # Of all runs the same, whatever their seeds.


class Dataset(NamedTuple):
    """Inputs and integer labels, split once and for all.

    Images are float32 ``[channels, height, width]`` in [0, 1] and rows of a table float32
    ``[features]``, each with one label; sequences are int32 ``[length]`` with a label for every
    element.
    """

    train_x: Shaped[np.ndarray, "train ..."]
    train_y: Int32[np.ndarray, "train ..."]
    test_x: Shaped[np.ndarray, "test ..."]
    test_y: Int32[np.ndarray, "test ..."]

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return 1 + int(max(self.train_y.max(), self.test_y.max()))

    @property
    def fingerprint(self) -> str:
        """Tells data apart that have one name: made of shapes, labels and some of the inputs."""
        found = hashlib.sha256()
        for array in self:
            some = array if array.ndim == 1 else array[:: max(1, len(array) // 1000)]
            found.update(f"{array.shape} {array.dtype}".encode())
            found.update(some.tobytes())
        return found.hexdigest()[:12]


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
    """MNIST from its four idx files, gzipped or not, in ``data_dir`` or in its folder ``mnist``."""
    folder = _folder("mnist", "mnist", data_dir)
    parts: list[np.ndarray] = []
    for name in ("train", "t10k"):
        images_file = folder / f"{name}-images-idx3-ubyte.gz"
        labels_file = folder / f"{name}-labels-idx1-ubyte.gz"
        images, labels = read_idx(images_file, ndim=3), read_idx(labels_file, ndim=1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels"
            )
        if labels.max() > 9:
            raise DataError(f"{labels_file} holds the label {labels.max()}; expected 0 to 9")
        if parts and images.shape[1:] != parts[0].shape[2:]:
            sizes = f"{images.shape[1:]}; those to train on are of {parts[0].shape[2:]}"
            raise DataError(f"{images_file} holds images of {sizes}")
        parts += [np.float32(images[:, None]) / 255, labels.astype(np.int32)]
    return Dataset(*parts)


def cifar10(data_dir: Path | None = None, length: int = 64) -> Dataset:
    """CIFAR-10 from its binary version's six files, in ``data_dir`` or in their folder in it."""
    folder = _folder("cifar10", "cifar-10-batches-bin", data_dir)
    batches = [read_cifar(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    batches = [tuple(map(np.concatenate, zip(*batches, strict=True)))]
    batches.append(read_cifar(folder / "test_batch.bin"))
    parts: list[np.ndarray] = []
    for images, labels in batches:
        parts += [np.float32(images) / 255, labels.astype(np.int32)]
    data = Dataset(*parts)
    counts = len(data.train_x), len(data.test_x)
    if counts != (50_000, 10_000):
        note(f"{folder} holds {counts[0]} + {counts[1]} images of CIFAR-10's 50000 + 10000")
    return data


def higgs(data_dir: Path | None = None, length: int = 64) -> Dataset:
    """HIGGS from its table ``HIGGS*.csv[.gz]``, in ``data_dir`` or in its folder ``higgs``.

    Of the whole set the last 500,000 rows are held out, as its publisher says; a subset is shuffled
    by a fixed seed, and its last 2,000 rows are (`redrawn` holds out others).
    """
    path = higgs_file(_folder("higgs", "higgs", data_dir))
    return _split_higgs(*read_higgs(path), str(path))


def _split_higgs(x: np.ndarray, y: np.ndarray, where: str) -> Dataset:
    if len(x) == _HIGGS_ROWS:
        held = _HIGGS_TEST
    else:
        held, order = _HIGGS_SUBSET_TEST, np.random.default_rng(0).permutation(len(x))
        x, y = x[order], y[order]
        if len(x) <= held:
            raise DataError(f"{where} holds {len(x)} rows; the last {held} are to test on")
        note(f"{where} holds {len(x)} rows of HIGGS's {_HIGGS_ROWS}")
    return Dataset(x[:-held], y[:-held], x[-held:], y[-held:])


def shakespeare(data_dir: Path | None = None, length: int = 64) -> Dataset:
    """Text from ``input.txt``, in ``data_dir`` or in its folder ``shakespeare``; labels come next.

    Characters are numbered in sorted order. The first 80 % are trained on, in sequences from every
    offset (views of one text); the rest is held out, cut into sequences that do not overlap.
    """
    path = _folder("shakespeare", "shakespeare", data_dir) / "input.txt"
    text = read_text(path)
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
    "cifar10": cifar10,
    "higgs": higgs,
    "shakespeare": shakespeare,
}
IMAGES = ("digits", "mnist", "cifar10")
_STANDARDISED = ("cifar10", "higgs")


def load(
    name: str, data_dir: Path | None = None, length: int = 64, *, download: bool = False
) -> Dataset:
    """The data set of that name; texts come in sequences of ``length``.

    Args:
        name: one of `DATASETS`.
        data_dir: the folder of its files, or the one around that.
        length: of sequences.
        download: whether to fetch from OpenML what ``data_dir`` has not, saying so.

    Raises:
        DataError: if a file is missing, unreadable or corrupt; the message names it.
    """
    try:
        return DATASETS[name](data_dir, length)
    except MissingError as missing:
        if not download:
            raise
        x, y = fetch(name, data_dir, missing)
    if name == "higgs":
        return _split_higgs(x, y, "OpenML's higgs")
    shape, train = ((1, 28, 28), 60_000) if name == "mnist" else ((3, 32, 32), 50_000)
    x = (x / 255).reshape(-1, *shape)
    return Dataset(x[:train], y[:train], x[train:], y[train:])


class Parts(NamedTuple):
    """A data set whose training part gave away what to choose parameters and rates by."""

    data: Dataset
    validation_x: Shaped[np.ndarray, "validation ..."]
    validation_y: Int32[np.ndarray, "validation ..."]


def redrawn(name: str, data: Dataset, seed: int) -> Dataset:
    """The data with a test part that is drawn by a seed, where it is not its publisher's.

    That is of subsets of HIGGS. Runs of several seeds test on more rows together than on one part.
    """
    if name != "higgs" or len(data.train_x) + len(data.test_x) == _HIGGS_ROWS or not seed:
        return data
    x, y = np.concatenate([data.train_x, data.test_x]), np.concatenate([data.train_y, data.test_y])
    order = np.random.default_rng(seed).permutation(len(x))
    left, held = np.split(order, [len(data.train_x)])
    return Dataset(x[left], y[left], x[held], y[held])


def hold_out(name: str, data: Dataset) -> Parts:
    """Hold out a tenth of the training part, 10,000 samples at most, to validate on.

    It is drawn by a seed that is always the same; of a text it is the end. CIFAR-10's channels and
    HIGGS's features are then standardised by what is left to train on.
    """
    x, y = data.train_x, data.train_y
    if len(x) < 10:
        raise DataError(f"{name}: {len(x)} training samples are too few to hold out a tenth")
    if y.ndim == 2:  # Sequences of a text, one from every offset: those that overlap are left out.
        length = y.shape[1]
        start = len(x) - min(len(x) // 10, _VALIDATION_MOST * length)
        if start <= length:
            raise DataError(f"{name}: {len(x)} sequences are too few to hold some out of them")
        held = slice(start, None, length)
        left = slice(start - length)
    else:
        order = np.random.default_rng(_VALIDATION_SEED).permutation(len(x))
        held, left = np.split(order, [min(len(x) // 10, _VALIDATION_MOST)])
    train_x, validation_x, test_x = x[left], x[held], data.test_x
    if name in _STANDARDISED:
        axes = (0, *range(2, x.ndim))
        mean = train_x.mean(axes, keepdims=True, dtype=np.float64).astype(np.float32)
        deviation = train_x.std(axes, keepdims=True, dtype=np.float64).astype(np.float32)
        deviation = np.where(deviation > 0, deviation, np.float32(1))
        train_x, validation_x, test_x = (
            (part - mean) / deviation for part in (train_x, validation_x, test_x)
        )
    return Parts(Dataset(train_x, y[left], test_x, data.test_y), validation_x, y[held])


def batches(
    x: Shaped[np.ndarray, "samples ..."],
    y: Int32[np.ndarray, "samples ..."],
    size: int,
    seed: int,
    skip: int = 0,
) -> Iterator[tuple[Shaped[np.ndarray, "size ..."], Int32[np.ndarray, "size ..."]]]:
    """Endless batches: every epoch is shuffled anew, its incomplete last batch left out.

    Args:
        x: samples.
        y: labels.
        size: samples a batch.
        seed: of the order.
        skip: how many batches to leave out at first, to go on where another iterator was left.

    Raises:
        DataError: if ``size`` is not between 1 and the number of samples.
    """
    if not 1 <= size <= len(x):
        raise DataError(f"a batch of {size} cannot be drawn from {len(x)} training samples")
    rng = np.random.default_rng(seed)
    epochs, first = divmod(skip, len(x) // size)

    def draw():
        for epoch in itertools.count():
            order = rng.permutation(len(x))
            if epoch < epochs:
                continue
            begin = first * size if epoch == epochs else 0
            for start in range(begin, len(x) - size + 1, size):
                chosen = order[start : start + size]
                yield x[chosen], y[chosen]

    return draw()


def _folder(name: str, own: str, data_dir: Path | None) -> Path:
    """Where a data set's files are: ``data_dir``, or the folder of their own in it."""
    if data_dir is None:
        raise DataError(f"{name} is read from files: say where they are with --data-dir")
    return data_dir / own if (data_dir / own).is_dir() else data_dir
