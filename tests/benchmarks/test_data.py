import gzip
import struct

import numpy as np
import pytest

from benchmarks.data import DataError, batches, load

NAMES = {
    "images": "train-images-idx3-ubyte.gz",
    "labels": "train-labels-idx1-ubyte.gz",
    "test images": "t10k-images-idx3-ubyte.gz",
    "test labels": "t10k-labels-idx1-ubyte.gz",
}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def small_mnist(tmp_path):
    """A folder with MNIST's four files, of five images each."""
    images = np.arange(5 * 4 * 3).reshape(5, 4, 3)
    labels = np.arange(5)
    for name, array in zip(NAMES.values(), [images, labels] * 2, strict=True):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def test_digits_split():
    data, again = load("digits"), load("digits")
    assert data.train_x.shape == (1437, 1, 8, 8) and data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.dtype == np.float32 and data.train_y.dtype == np.int32
    assert data.train_x.min() == 0 and data.train_x.max() == 1
    assert np.bincount(data.test_y).min() >= 35 and data.classes == 10
    assert all(np.array_equal(a, b) for a, b in zip(data, again, strict=True))


def test_mnist_reads_idx_files(small_mnist):
    data = load("mnist", small_mnist)
    expected = np.arange(60).reshape(5, 1, 4, 3).astype(np.float32)
    assert np.array_equal(data.train_x * 255, expected)
    assert data.test_y.tolist() == [0, 1, 2, 3, 4]


def test_mnist_in_a_folder_of_its_own(small_mnist, tmp_path_factory):
    outer = tmp_path_factory.mktemp("data")
    small_mnist.rename(outer / "mnist")
    assert len(load("mnist", outer).train_x) == 5


def test_real_mnist(data_dir):
    data = load("mnist", data_dir)
    assert data.train_x.shape == (60000, 1, 28, 28) and data.test_x.shape == (10000, 1, 28, 28)
    assert data.train_x.min() == 0 and data.train_x.max() == 1
    assert np.bincount(data.train_y).tolist() == [
        *[5923, 6742, 5958, 6131, 5842],
        *[5421, 5918, 6265, 5851, 5949],
    ]


@pytest.mark.parametrize("name", ["mnist", "shakespeare"])
def test_files_need_a_folder(name):
    with pytest.raises(DataError, match=f"{name} is read from files: .*--data-dir"):
        load(name)


def test_text_is_cut_into_sequences(tmp_path):
    (tmp_path / "input.txt").write_text("cabac" * 8 + "abdcéabcab", encoding="utf-8")
    data = load("shakespeare", tmp_path, length=4)
    assert data.classes == 5 and data.train_x.dtype == data.test_y.dtype == np.int32
    assert data.train_x.shape == data.train_y.shape == (36, 4)  # One from every offset.
    assert data.train_x[:2].tolist() == [[2, 0, 1, 0], [0, 1, 0, 2]]
    assert data.train_y[:2].tolist() == [[0, 1, 0, 2], [1, 0, 2, 2]]
    assert data.test_x.tolist() == [[0, 1, 3, 2], [4, 0, 1, 2]]  # They do not overlap.
    assert data.test_y.tolist() == [[1, 3, 2, 4], [0, 1, 2, 0]]


def test_text_in_batches(tmp_path):
    (tmp_path / "input.txt").write_text("to be or not to be " * 10)
    data = load("shakespeare", tmp_path, length=8)
    (x, y), (again, _) = (next(batches(data.train_x, data.train_y, 5, seed=1)) for _ in range(2))
    assert x.shape == y.shape == (5, 8) and np.array_equal(x[:, 1:], y[:, :-1])
    assert np.array_equal(x, again)


def test_real_text(data_dir):
    data = load("shakespeare", data_dir)
    assert data.classes == 65
    assert data.train_x.shape == (892315 - 64, 64) and data.test_x.shape == (3485, 64)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing: expected a text"),
        (b"\xff\xfe", "cannot be read as text"),
        (b"", "holds 0 characters, the last 0 to test on"),
        (b"x" * 320, "holds 320 characters, the last 64 to test on; expected more than 64"),
    ],
    ids=["missing", "no text", "empty", "short"],
)
def test_bad_texts_are_named(tmp_path, content, says):
    path = tmp_path / "input.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as raised:
        load("shakespeare", tmp_path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("which", "content", "says"),
    [
        ("images", None, "is missing: expected a gzipped idx file"),
        ("labels", b"", "expected the header 00000801, found nothing"),
        ("labels", b"not gzip", "cannot be read as a gzipped idx file"),
        ("images", idx(np.zeros((5, 4, 3)))[:-10], "cannot be read as a gzipped idx file"),
        ("images", idx(np.zeros((5, 4))), "expected the header 00000803, found 00000802"),
        (
            "images",
            gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 5, 4, 3) + bytes(7)),
            r"holds 7 bytes after its header; expected 60 for the shape \(5, 4, 3\)",
        ),
        ("test images", idx(np.zeros((4, 4, 3))), "holds 4 images, but .* 5 labels"),
        ("test labels", idx(np.array([0, 1, 2, 3, 10])), "holds the label 10; expected 0 to 9"),
    ],
    ids=["missing", "empty", "no gzip", "cut off", "rank", "short", "counts", "label"],
)
def test_bad_files_are_named(small_mnist, which, content, says):
    path = small_mnist / NAMES[which]
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=says) as raised:
        load("mnist", small_mnist)
    assert str(path) in str(raised.value)


def test_folder_in_place_of_a_file(small_mnist):
    path = small_mnist / NAMES["images"]
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist", small_mnist)


def test_batches_cover_an_epoch_and_repeat_by_seed():
    x, y = np.arange(10, dtype=np.float32)[:, None], np.arange(10, dtype=np.int32)

    def first(n, seed):
        drawn = zip(range(n), batches(x, y, 3, seed), strict=False)
        return [batch for _, batch in drawn]

    epoch = first(3, seed=0)
    assert all(xs.shape == (3, 1) and np.array_equal(xs[:, 0], ys) for xs, ys in epoch)
    seen = np.concatenate([ys for _, ys in epoch])
    assert len(set(seen.tolist())) == 9
    again, other = first(6, seed=0), first(6, seed=1)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(epoch, again[:3], strict=True))
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(again, other, strict=True))
    assert any(
        not np.array_equal(a[1], b[1]) for a, b in zip(again[:3], again[3:], strict=True)
    )  # The next epoch has an order of its own.


@pytest.mark.parametrize("size", [0, 11])
def test_impossible_batches_are_refused_at_once(size):
    x, y = np.zeros((10, 2), np.float32), np.zeros(10, np.int32)
    with pytest.raises(DataError, match=f"a batch of {size} cannot be drawn from 10"):
        batches(x, y, size, seed=0)
