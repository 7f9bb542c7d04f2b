import gzip
import struct

import numpy as np
import pytest

from benchmarks.data import DataError, Dataset, batches, hold_out, load, redrawn
from benchmarks.formats import higgs_file

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


def test_unpacked_idx_files_are_read_too(small_mnist):
    packed = load("mnist", small_mnist)
    for name in NAMES.values():
        path = small_mnist / name
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for array, same in zip(load("mnist", small_mnist), packed, strict=True):
        np.testing.assert_array_equal(array, same)
    path = (small_mnist / NAMES["images"]).with_suffix("")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path} holds 59 bytes .* expected 60"):
        load("mnist", small_mnist)


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


def cifar(labels) -> bytes:
    """Records whose pixels count up: red, green and blue planes."""
    pixels = bytes(i % 256 for i in range(3072))
    return b"".join(bytes([label]) + pixels for label in labels)


@pytest.fixture
def small_cifar(tmp_path):
    """A folder with CIFAR-10's six files, of one to five and of two images."""
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(cifar(range(i)))
    (tmp_path / "test_batch.bin").write_bytes(cifar([9, 3]))
    return tmp_path


def test_cifar_reads_as_many_records_as_there_are(small_cifar, capsys):
    data = load("cifar10", small_cifar)
    assert data.train_x.shape == (15, 3, 32, 32) and data.train_x.dtype == np.float32
    assert data.train_y.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert data.test_y.tolist() == [9, 3] and data.classes == 10
    assert data.test_x[0, 1, 0, :3].tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert "holds 15 + 2 images of CIFAR-10's 50000 + 10000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data_batch_3.bin", None, "is missing: expected a file of CIFAR-10.*cifar-10-binary"),
        ("data_batch_3.bin", cifar([1, 2])[:-1], "holds 6145 bytes, which is no multiple of 3073"),
        ("test_batch.bin", b"", "holds 0 bytes"),
        ("test_batch.bin", cifar([10]), "holds the label 10; expected 0 to 9"),
    ],
)
def test_bad_records_are_named(small_cifar, name, content, says):
    path = small_cifar / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=says) as raised:
        load("cifar10", small_cifar)
    assert str(path) in str(raised.value)


FEATURES = [f"feature_{i}" for i in range(28)]


def higgs_rows(count: int, label_first: bool) -> list[str]:
    """Rows of a table; the features are the row's number, the label whether it is odd."""
    rows = []
    for i in range(count):
        features = [f"{i}.5"] * 28
        cells = [f"{i % 2}.0", *features] if label_first else [*features, str(i % 2)]
        rows.append(",".join(cells) + "\n")
    return rows


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("header", [None, [*FEATURES, "Label"]])
def test_higgs_is_shuffled_and_its_end_is_held_out(tmp_path, header, packed, capsys):
    lines = higgs_rows(2010, label_first=header is None)
    text = "".join([",".join(header) + "\n" if header else "", *lines]).encode()
    name = "HIGGS.csv" if header is None else "HIGGS_2k.csv"
    (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(text) if packed else text)
    data, again = load("higgs", tmp_path), load("higgs", tmp_path)
    assert data.train_x.shape == (10, 28) and data.test_x.shape == (2000, 28)
    rows = np.concatenate([data.train_x, data.test_x])
    assert sorted(rows[:, 0] - 0.5) == list(range(2010)) and np.ptp(rows, axis=1).max() == 0
    assert np.array_equal(data.test_x[:, 3] % 2 > 1, data.test_y)
    assert np.any(np.diff(rows[:, 0]) < 0) and np.array_equal(data.train_x, again.train_x)
    assert "holds 2010 rows of HIGGS's 11000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (None, "HIGGS.csv.gz is missing: expected the table of HIGGS, from https"),
        ([], "is empty"),
        ([",".join([*FEATURES, "signal"]) + "\n"], "line 1: .*found 29 names, 0 of them a label's"),
        (["1" + ",nan" * 28 + "\n"], "line 1: 'nan' is no finite number"),
        (["1" + ",2" * 28 + "\n", "1" + ",2" * 27 + ",x\n"], "line 2: 'x' is no finite number"),
        (["1" + ",2" * 28 + "\n", "1" + ",2" * 27 + ",\n"], "line 2: '' is no finite number"),
        (["1" + ",2" * 28 + "\n", "1" + ",2" * 9 + "\n"], "line 2: 10 cells; expected 29"),
        (["1" + ",2" * 28 + "\n", "1" + ",2" * 28], "does not end its line 2: it is truncated"),
        (["2" + ",2" * 28 + "\n"], "line 1: the label is 2; expected 0 or 1"),
        (higgs_rows(2000, label_first=True), "holds 2000 rows; the last 2000 are to test on"),
    ],
)
def test_bad_tables_are_named(tmp_path, lines, says):
    if lines is not None:
        (tmp_path / "HIGGS.csv").write_text("".join(lines))
    with pytest.raises(DataError, match=says) as raised:
        load("higgs", tmp_path)
    assert str(tmp_path / "HIGGS.csv") in str(raised.value)


def test_truncated_archives_of_tables_are_named(tmp_path):
    packed = gzip.compress("".join(higgs_rows(2010, label_first=True)).encode())
    (tmp_path / "HIGGS.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match="HIGGS.csv.gz cannot be read as a table"):
        load("higgs", tmp_path)


def test_the_whole_table_is_preferred_to_its_parts(tmp_path):
    for name in ("HIGGS_1.csv", "HIGGS_2.csv.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="holds HIGGS_1.csv, HIGGS_2.csv.gz: leave one"):
        higgs_file(tmp_path)
    (tmp_path / "HIGGS.csv.gz").touch()
    assert higgs_file(tmp_path).name == "HIGGS.csv.gz"


@pytest.mark.parametrize("name", ["cifar10", "higgs"])
def test_real_subsets(name, data_dir):
    data = load(name, data_dir)
    assert (len(data.train_x), len(data.test_x)) == {"cifar10": (4660, 932), "higgs": (8984, 2000)}[
        name
    ]
    parts = hold_out(name, data)
    assert len(parts.validation_x) == len(data.train_x) // 10
    axes = (0, *range(2, data.train_x.ndim))
    np.testing.assert_allclose(parts.data.train_x.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(parts.data.train_x.std(axes), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "beginning", "says"),
    [
        (1115394, b"Second Citizen:", "is damaged or truncated"),
        (900000, b"First Citizen:\nBefore we proceed any", "is damaged or truncated.*MD5"),
        (900000, b"Second Citizen:", None),
    ],
)
def test_tiny_shakespeare_is_whole_or_refused(tmp_path, capsys, size, beginning, says):
    (tmp_path / "input.txt").write_bytes(beginning.ljust(size, b"x"))
    if says is None:
        load("shakespeare", tmp_path)
        assert "input.txt is not the publisher's file" in capsys.readouterr().err
    else:
        with pytest.raises(DataError, match=says):
            load("shakespeare", tmp_path)


def test_other_files_in_the_format_of_mnist_are_not_accepted_silently(small_mnist, capsys):
    load("mnist", small_mnist)
    assert capsys.readouterr().err.count("is not the publisher's file") == 4


def test_files_of_the_size_of_mnists_with_other_content_are_damaged(small_mnist):
    path = small_mnist / NAMES["test labels"]
    path.write_bytes(padded(idx(np.arange(5)), 4542))
    with pytest.raises(DataError, match="is damaged or truncated: .* MD5 checksum"):
        load("mnist", small_mnist)


def padded(packed: bytes, size: int) -> bytes:
    """A gzip file of that size with the same content: zeros after its end are no content."""
    return packed.ljust(size, b"\0")


def test_validation_is_drawn_from_the_training_part():
    x, y = np.arange(40, dtype=np.float32)[:, None], np.arange(40, dtype=np.int32)
    data = Dataset(x, y, x + 100, y)
    parts, again = hold_out("mnist", data), hold_out("mnist", data)
    assert len(parts.validation_x) == 4 and len(parts.data.train_x) == 36
    assert sorted([*parts.validation_y, *parts.data.train_y]) == list(range(40))
    assert np.array_equal(parts.validation_x, again.validation_x)
    assert np.array_equal(parts.validation_x[:, 0], parts.validation_y)
    assert np.array_equal(parts.data.test_x, x + 100)  # MNIST is left as it is.


def test_statistics_are_those_of_the_training_part():
    x = np.random.default_rng(0).normal(3, 2, (50, 2)).astype(np.float32)
    x[:, 1] = 7  # What does not vary is only moved to 0.
    y = np.zeros(50, np.int32)
    parts = hold_out("higgs", Dataset(x, y, np.full((1, 2), 3, np.float32), y[:1]))
    np.testing.assert_allclose(parts.data.train_x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(parts.data.train_x.std(0), [1, 0], atol=1e-6)
    held = np.isin(x[:, 0], x[np.random.default_rng(0).permutation(50)[:5], 0])
    mean, deviation = x[~held, 0].mean(), x[~held, 0].std()
    np.testing.assert_allclose(
        parts.validation_x[:, 0].std(), x[held, 0].std() / deviation, rtol=1e-4
    )
    np.testing.assert_allclose(parts.data.test_x[0], [(3 - mean) / deviation, -4], atol=1e-5)


def test_a_subset_of_higgs_is_divided_by_a_seed():
    x, y = np.arange(24, dtype=np.float32).reshape(12, 2), np.arange(12, dtype=np.int32)
    data = Dataset(x[:9], y[:9], x[9:], y[9:])
    assert redrawn("higgs", data, 0) is data and redrawn("mnist", data, 1) is data
    one, again, two = (redrawn("higgs", data, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.test_y, again.test_y)
    assert set(one.test_y) != set(two.test_y) and len(one.test_y) == 3
    assert sorted([*one.train_y, *one.test_y]) == list(range(12))
    np.testing.assert_array_equal(
        np.concatenate([one.train_x, one.test_x])[:, 0] / 2, [*one.train_y, *one.test_y]
    )


def test_validation_of_a_text_is_its_end_and_overlaps_nothing(tmp_path):
    letters = "".join(chr(0x4E00 + i) for i in range(500))  # Each is there once.
    (tmp_path / "input.txt").write_text(letters, encoding="utf-8")
    parts = hold_out("shakespeare", load("shakespeare", tmp_path, length=4))
    trained = set(parts.data.train_x.ravel()) | set(parts.data.train_y.ravel())
    held = set(parts.validation_x.ravel()) | set(parts.validation_y.ravel())
    assert not trained & held and max(trained) < min(held) and max(held) < 400
    assert parts.validation_x.shape == (10, 4) and np.all(np.diff(parts.validation_x[:, 0]) == 4)


def test_fingerprints_tell_data_apart():
    x, y = np.zeros((5, 2), np.float32), np.arange(5, dtype=np.int32)
    same, others = Dataset(x, y, x, y), [Dataset(x + 1, y, x, y), Dataset(x, y[::-1], x, y)]
    prints = [data.fingerprint for data in (same, Dataset(x, y, x, y), *others)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_what_is_missing_is_fetched_for_those_who_ask(tmp_path, monkeypatch, capsys):
    def fetch_openml(title, *, data_home, **_):
        assert title == "higgs" and data_home == str(tmp_path)
        x = np.ones((2011, 28))
        x[-1, 5] = np.nan
        return x, np.array(["0", "1.0"] + ["1"] * 2009, object)

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    with pytest.raises(DataError, match="is missing"):
        load("higgs", tmp_path)
    data = load("higgs", tmp_path, download=True)
    assert data.train_x.shape == (10, 28) and data.train_x.dtype == np.float32
    assert sorted([*data.train_y, *data.test_y])[:2] == [0, 1]
    said = capsys.readouterr().err
    assert f"fetching higgs, version 2, from openml.org into {tmp_path}" in said
    assert "1 rows of OpenML's higgs have missing values and are left out" in said


def test_without_a_network_nothing_is_fetched(tmp_path, monkeypatch):
    def fetch_openml(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    with pytest.raises(DataError, match="^CIFAR_10 cannot be fetched .*: OSError: no network$"):
        load("cifar10", tmp_path, download=True)
    with pytest.raises(DataError, match="input.txt is missing: .*OpenML does not have it"):
        load("shakespeare", tmp_path, download=True)
    (tmp_path / "data_batch_1.bin").write_bytes(b"damaged")
    with pytest.raises(DataError, match="no multiple"):  # What is damaged is not fetched over.
        load("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "higgs", "shakespeare"])
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


def test_batches_go_on_where_others_were_left():
    x, y = np.arange(10, dtype=np.float32)[:, None], np.arange(10, dtype=np.int32)
    drawn = [y.tolist() for _, (_, y) in zip(range(12), batches(x, y, 3, seed=4), strict=False)]
    for skip in range(8):
        _, first = next(batches(x, y, 3, seed=4, skip=skip))
        assert first.tolist() == drawn[skip]


@pytest.mark.parametrize("size", [0, 11])
def test_impossible_batches_are_refused_at_once(size):
    x, y = np.zeros((10, 2), np.float32), np.zeros(10, np.int32)
    with pytest.raises(DataError, match=f"a batch of {size} cannot be drawn from 10"):
        batches(x, y, size, seed=0)
