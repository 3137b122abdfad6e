"""Data: what goes into a file comes out of `load`, and what is wrong with a file is said in one line."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

from molrmog.data import Dataset, Layout, load

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No data folder, no cache and no network of the machine that runs the tests."""

    def offline(url, **_):
        raise OSError(f"no route to {url}")

    monkeypatch.delenv("MOLRMOG_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(pooch, "retrieve", offline)


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
        content = idx(values)
        name = f"{prefix}-{kind}-ubyte" + ".gz" * zipped
        (folder / name).write_bytes(gzip.compress(content) if zipped else content)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path: Path, images: list[bytes], labels: list[int], names: list[str]) -> None:
    """Write the layout of Hugging Face `datasets`: an image struct, a label, and the class names in the metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """Spell out, opcode by opcode, what Python 2's cPickle wrote for {"data": array, "labels": list} (protocol 2)."""

    def short_string(text: str) -> bytes:
        return b"U" + bytes((len(text),)) + text.encode()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    content = data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + short_string("b") + b"\x87R"
        b"(" + integer(1) + integer(data.shape[0]) + integer(data.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n" + short_string("u1") + integer(0) + integer(1) + b"\x87R"
        b"(" + integer(3) + short_string("|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
        b"\x89T" + struct.pack("<i", len(content)) + content + b"tb"
    )
    items = short_string("data") + array + short_string("labels") + b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_batches(folder: Path, rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    data, labels = pixels(6 * rows, 3072), np.arange(6 * rows) % 10
    for i, name in enumerate([*(f"data_batch_{j}" for j in range(1, 6)), "test_batch"]):
        part = slice(i * rows, (i + 1) * rows)
        (folder / name).write_bytes(python2_batch(data[part], labels[part].tolist()))
    return data, labels


# Layout: scaling, its inverse, pictures


def test_digits_are_split_once_and_stratified():
    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    assert (train.part, test.part) == ("train", "test")
    from sklearn.datasets import load_digits

    together = np.concatenate([train.to_raw(train.x), test.to_raw(test.x)])
    values, labels = load_digits(return_X_y=True)
    assert sorted(map(tuple, np.rint(together))) == sorted(map(tuple, values))
    assert np.abs(np.bincount(test.labels) - np.bincount(labels) * 500 / 1797).max() <= 1
    np.testing.assert_array_equal(load("digits").x, train.x)


def test_rows_fill_minus_one_to_one():
    digits = load("digits")
    assert digits.x.dtype == np.float32
    assert digits.x.min() == -1
    assert digits.x.max() == 1
    assert digits.levels == 17
    assert digits.classes == tuple("0123456789")


def test_log_scale_is_the_change_of_variables():
    layout = Layout(name="a", shape=(3,), scale=2 / 255, shift=-1.0, levels=256)
    raw = torch.tensor([[0.0, 10.0, 255.0]], dtype=torch.float64, requires_grad=True)
    x = raw * layout.scale + layout.shift
    (slope,) = torch.autograd.grad(x.sum(), raw)
    torch.testing.assert_close(slope.log(), torch.full_like(slope, layout.log_scale))
    torch.testing.assert_close(layout.to_raw(x), raw)


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_exactly(tmp_path, dequantise, channels):
    images = pixels(500, 8, 6, channels)
    np.savez(tmp_path / "a.npz", x=images)
    data = load(tmp_path / "a.npz", dequantise=dequantise)
    assert data.shape == (channels, 8, 6)
    assert data.dequantised is dequantise
    back = data.to_images()
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, images[..., 0] if channels == 1 else images)
    np.testing.assert_array_equal(data.to_images(torch.from_numpy(data.x[:3])), back[:3])
    np.testing.assert_array_equal(data.to_images(data.x[:3].reshape(3, channels, 8, 6)), back[:3])


def test_digits_are_stretched_to_eight_bits():
    digits = load("digits")
    raw = np.rint(digits.to_raw(digits.x)).reshape(-1, 8, 8)
    np.testing.assert_array_equal(digits.to_images(), np.rint(raw * 255 / 16))


def test_pictures_are_clipped_and_refused_where_they_cannot_be_drawn(tmp_path):
    layout = Layout(name="a", shape=(1, 1, 3), scale=2 / 255, shift=-1.0, levels=256)
    np.testing.assert_array_equal(layout.to_images(np.array([[-9.0, 0.001, 9.0]])), [[[0, 128, 255]]])
    with pytest.raises(ValueError, match="NaN"):
        layout.to_images(np.array([[np.nan, 0, 0]]))
    with pytest.raises(ValueError, match=r"shape \(N, 3\)"):
        layout.to_images(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="not images"):
        Layout(name="rows", shape=(3,)).to_images(np.zeros((2, 3)))


def test_dequantisation_is_uniform_noise_on_a_level(tmp_path):
    np.save(tmp_path / "a.npy", pixels(2000, 5, 5))
    plain, noisy = load(tmp_path / "a.npy"), load(tmp_path / "a.npy", dequantise=True)
    noise = (noisy.to_raw(noisy.x) - np.rint(plain.to_raw(plain.x))).ravel()
    assert 0 < noise.min() < 1e-3 < 0.999 < noise.max() < 1
    # four standard errors of the mean and of the second moment of a uniform law
    n = noise.size
    assert abs(noise.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
    assert abs((noise**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 4 / np.sqrt(n)
    assert noisy.info()["dequantised"] is True
    np.testing.assert_array_equal(noisy.x, load(tmp_path / "a.npy", dequantise=True).x)
    assert not np.array_equal(noisy.x, load(tmp_path / "a.npy", dequantise=True, seed=1).x)


def test_a_saved_run_draws_images_without_the_data():
    digits = load("digits", "test", dequantise=True)
    layout = Layout.from_info(json.loads(json.dumps(digits.info())))
    assert layout.classes == digits.classes
    assert layout.log_scale == digits.log_scale
    np.testing.assert_array_equal(layout.to_images(digits.x), digits.to_images())
    with pytest.raises(ValueError, match="lacks 'scale'"):
        Layout.from_info({"name": "a", "shape": [1]})


# Dataset: parts


def test_split_is_stratified_disjoint_and_repeatable():
    digits = load("digits")
    first, second = digits.split(0.3, seed=4)
    assert len(first) == round(0.3 * len(digits))
    shares = np.bincount(digits.labels) * len(first) / len(digits)
    assert np.abs(np.bincount(first.labels) - shares).max() <= 1
    both = np.column_stack([np.concatenate([first.x, second.x]), np.concatenate([first.labels, second.labels])])
    assert sorted(map(tuple, both)) == sorted(map(tuple, np.column_stack([digits.x, digits.labels])))
    np.testing.assert_array_equal(first.x, digits.split(0.3, seed=4)[0].x)
    assert not np.array_equal(first.x, digits.split(0.3, seed=5)[0].x)


def test_split_without_labels_and_subset_keep_the_layout():
    data = Dataset(name="a", x=np.arange(20.0).reshape(10, 2), shape=(2,), scale=3.0)
    first, second = data.split(0.5, seed=0)
    assert sorted([*first.x[:, 0], *second.x[:, 0]]) == data.x[:, 0].tolist()
    assert first.scale == 3.0
    assert data.subset([1, 4]).x.tolist() == [[2, 3], [8, 9]]
    with pytest.raises(ValueError, match="empty part"):
        data.split(0.01)
    with pytest.raises(ValueError, match="at least one row"):
        data.subset([])


def test_equality_is_of_layouts_not_of_data_sets():
    first, second = load("digits").split(0.5)
    assert first != second
    assert len({first, second}) == 2
    assert Layout.from_info(first.info()) == Layout.from_info(second.info())


def test_dataset_refuses_what_does_not_fit():
    x = np.zeros((4, 6), np.float32)
    with pytest.raises(ValueError, match="one label per row"):
        Dataset(name="a", x=x, labels=np.zeros(3, np.int64), shape=(6,))
    with pytest.raises(ValueError, match="rows have 6 values"):
        Dataset(name="a", x=x, shape=(1, 2, 2))
    with pytest.raises(ValueError, match="scale must be > 0"):
        Dataset(name="a", x=x, shape=(6,), scale=0.0)


# Arrays


def test_npy_stays_on_disk(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 2, 3))
    np.save(tmp_path / "rows.npy", rows)
    data = load(tmp_path / "rows.npy")
    assert isinstance(data.x, np.memmap)
    assert isinstance(data.subset(slice(10, 20)).x, np.memmap)
    assert (data.shape, data.scale, data.shift, data.levels, data.labels) == ((2, 3), 1.0, 0.0, None, None)
    np.testing.assert_array_equal(data.x, rows.reshape(50, 6))


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("data", "labels"), ("arr_0", "arr_1")])
def test_npz_keys(tmp_path, x, y):
    rows, labels = np.random.default_rng(0).normal(size=(7, 3)), np.arange(7, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{x: rows, y: labels})
    data = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.x, rows)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.int64
    with pytest.raises(ValueError, match="needs the key x_test"):
        load(tmp_path / "a.npz", "test")


def test_npz_parts_and_string_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((3, 2)), y_train=["b", "a", "b"], x_test=np.ones((1, 2)))
    train = load(tmp_path / "a.npz")
    assert train.classes == ("a", "b")
    assert train.labels.tolist() == [1, 0, 1]
    test = load(tmp_path / "a.npz", "test")
    assert test.x.tolist() == [[1, 1]]
    assert test.labels is None


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_the_first_bad_row_is_named(tmp_path, suffix, value, monkeypatch):
    monkeypatch.setattr("molrmog.data.dataset._CHUNK_VALUES", 8)  # the bad row is not in the first chunk
    rows = np.zeros((9, 4))
    rows[5:, 2] = value
    path = tmp_path / f"a.{suffix}"
    np.save(path, rows) if suffix == "npy" else np.savez(path, x=rows)
    with pytest.raises(ValueError, match="row 5 holds NaN or inf") as error:
        load(path)
    one_line(error)


def test_arrays_that_cannot_be_rows(tmp_path):
    np.savez(tmp_path / "complex.npz", x=np.zeros((3, 2), complex))
    np.savez(tmp_path / "vector.npz", x=np.zeros(3))
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3)))
    np.savez(tmp_path / "other.npz", weights=np.zeros((3, 3)))
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 3)), y=np.zeros(2, int))
    np.savez(tmp_path / "gone.npz", x=np.zeros((3, 3)), y=[0.0, 1, np.nan])
    for name, message in {
        "complex": "real numbers",
        "vector": r"shape \(N, D\)",
        "empty": "is empty",
        "other": "holds weights",
        "short": "one label per row",
        "gone": "1 of 3 is missing, the first in row 2",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            load(tmp_path / f"{name}.npz")
        assert name in one_line(error)


def test_options_that_do_not_fit_rows(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    with pytest.raises(ValueError, match="dequantise needs integer levels"):
        load(tmp_path / "a.npy", dequantise=True)
    with pytest.raises(ValueError, match="image_size needs images"):
        load(tmp_path / "a.npy", image_size=8)
    with pytest.raises(ValueError, match="image_size must be"):
        load(tmp_path / "a.npy", image_size=0)
    with pytest.raises(ValueError, match="split it"):
        load(tmp_path / "a.npy", "test")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_objects_in_arrays_are_never_unpickled(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    rows = np.array([[None, "text"]], dtype=object)
    np.save(path, rows) if suffix == "npy" else np.savez(path, x=rows)
    with pytest.raises(ValueError, match="never loaded") as error:
        load(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table({"a": np.arange(100.0)}), path)
    else:
        np.save(path, np.ones((100, 9))) if suffix == "npy" else np.savez(path, x=np.ones((100, 9)))
    path.write_bytes(path.read_bytes()[:-300] if damage == "cut" else b"garbage" * 50)
    with pytest.raises(ValueError, match="damaged") as error:
        load(path)
    assert str(path) in one_line(error)


# Published sets


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "mnist"), ("MNIST", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_idx_round_trip(tmp_path, name, folder, zipped):
    images, labels = pixels(12, 5, 4), np.arange(12, dtype=np.uint8) % 10
    write_idx(tmp_path / folder, "train", images[:8], labels[:8], zipped)
    write_idx(tmp_path / folder, "t10k", images[8:], labels[8:], zipped)
    train, test = load(name, data_dir=tmp_path), load(name, "test", data_dir=tmp_path)
    assert train.name == name.lower()
    np.testing.assert_array_equal(train.to_images(), images[:8])
    np.testing.assert_array_equal(test.to_images(), images[8:])
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert train.classes[9] == ("ankle boot" if name == "fashion-mnist" else "9")
    by_path = load(tmp_path / folder)
    np.testing.assert_array_equal(by_path.x, train.x)


def test_damaged_idx_is_named(tmp_path):
    folder = tmp_path / "mnist"
    write_idx(folder, "train", pixels(4, 3, 3), np.zeros(4, np.uint8))
    images = folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for content, message in (
        (whole[:-9], "truncated"),
        (gzip.compress(idx(pixels(4, 3, 3))[:-2]), "holds 34 values"),
        (gzip.compress(idx(pixels(4, 3))), "not an IDX file"),
        (gzip.compress(b""), "not an IDX file"),
    ):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load("mnist", data_dir=tmp_path)
        assert str(images) in one_line(error)
    images.write_bytes(whole)
    write_idx(folder, "train", pixels(4, 3, 3), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="one label per row"):
        load("mnist", data_dir=tmp_path)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"put train-labels-idx1-ubyte\.gz there"):
        load("mnist", data_dir=tmp_path)


def test_data_dir_comes_before_the_environment(tmp_path, monkeypatch):
    for i, root in enumerate(("argument", "environment")):
        write_idx(tmp_path / root / "mnist", "train", np.full((1, 2, 2), i, np.uint8), np.zeros(1, np.uint8))
    monkeypatch.setenv("MOLRMOG_DATA_DIR", str(tmp_path / "environment"))
    assert load("mnist", data_dir=tmp_path / "argument").to_images().max() == 0
    assert load("mnist").to_images().max() == 1
    assert load("mnist", data_dir=tmp_path / "elsewhere").to_images().max() == 1
    np.save(tmp_path / "environment" / "rows.npy", np.ones((2, 2)))
    assert len(load("rows.npy")) == 2


def test_offline_says_where_to_put_which_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("fashion-mnist", "test", data_dir=tmp_path)
    text = one_line(error)
    assert f"put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {tmp_path / 'fashion-mnist'}" in text
    with pytest.raises(FileNotFoundError, match=r"put cifar-10-python\.tar\.gz into .* set MOLRMOG_DATA_DIR"):
        load("cifar10")


def test_download_tries_the_mirrors_and_checks_sums(tmp_path, monkeypatch):
    source = tmp_path / "source"
    write_idx(source, "train", pixels(3, 2, 2), np.arange(3, dtype=np.uint8))
    calls = []

    def retrieve(url, known_hash, fname, path):
        calls.append((url, known_hash))
        if len(calls) == 1:
            raise ValueError("another sum")
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes((source / fname).read_bytes())

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    data = load("mnist")
    np.testing.assert_array_equal(data.to_images(), pixels(3, 2, 2))
    assert [url.rpartition("/")[2] for url, _ in calls] == ["train-images-idx3-ubyte.gz"] * 2 + [
        "train-labels-idx1-ubyte.gz"
    ]
    assert calls[0][0] != calls[1][0]
    assert calls[1][1] == "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"


def test_cifar_batches_of_python_2(tmp_path):
    data, labels = write_batches(tmp_path / "cifar-10-batches-py")
    train, test = load("cifar10", data_dir=tmp_path), load("cifar10", "test", data_dir=tmp_path)
    assert pickle.loads(python2_batch(data, [1, 2]), encoding="bytes")[b"data"].tolist() == data.tolist()
    np.testing.assert_array_equal(train.to_images(), data[:20].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert train.classes[6] == "frog"
    (tmp_path / "cifar10").mkdir()
    with tarfile.open(tmp_path / "cifar10" / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    packed = load(tmp_path / "cifar10")
    np.testing.assert_array_equal(packed.x, train.x)


def test_cifar_batches_of_python_3(tmp_path):
    data, labels = write_batches(tmp_path / "cifar-10-batches-py")
    batch = pickle.dumps({"data": data[20:], "labels": labels[20:].tolist()}, protocol=4)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(batch)
    test = load("cifar10", "test", data_dir=tmp_path)
    np.testing.assert_array_equal(np.rint(test.to_raw(test.x)), data[20:])


def test_cifar_pickles_run_nothing(tmp_path):
    folder = tmp_path / "cifar10"
    write_batches(folder)
    written = tmp_path / "written"

    class Writes:
        def __reduce__(self):
            return eval, (f"open({str(written)!r}, 'w')",)

    def arrays(data: np.ndarray) -> bytes:
        return pickle.dumps({"data": data, "labels": [0] * len(data)}, protocol=4)

    for content, message in (
        (pickle.dumps(Writes()), r"names (__builtin__|builtins)\.eval, which is never loaded"),
        (pickle.dumps({"data": pixels(1, 3072), "labels": [np.int64(1)]}, protocol=4), "which is never loaded"),
        (arrays(np.array([[None] * 3072])), "not rows of 3072 bytes"),
        (arrays(np.zeros((2, 3072))), "not rows of 3072 bytes"),
        (arrays(pixels(2, 30)), "not rows of 3072 bytes"),
        (python2_batch(pixels(2, 3072), [1, 2])[:-90], "not a CIFAR-10 batch"),
        (pickle.dumps({"labels": [1]}), "not a CIFAR-10 batch"),
        (b"", "not a CIFAR-10 batch"),
    ):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load("cifar10", "test", data_dir=tmp_path)
        assert "test_batch" in one_line(error)
    assert not written.exists()
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="put data_batch_3"):
        load("cifar10", data_dir=tmp_path)


# Parquet and the hub


def test_parquet_images(tmp_path):
    images, labels = pixels(6, 32, 32, 3), [1, 0, 1, 0, 3, 9]
    (tmp_path / "cifar10").mkdir()
    for part, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        write_parquet(tmp_path / "cifar10" / f"{part}.parquet", [png(i) for i in images[rows]], labels[rows], [])
    train = load("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(train.to_images(), images[:4])
    assert train.labels.tolist() == labels[:4]
    assert train.classes[:2] == ("airplane", "automobile")


def test_parquet_shards_classes_and_grey(tmp_path):
    images = pixels(3, 4, 5)
    (tmp_path / "mine" / "data").mkdir(parents=True)
    for i in range(3):
        path = tmp_path / "mine" / "data" / f"validation-{i:05}-of-00003.parquet"
        write_parquet(path, [png(images[i])], [i % 2], ["cat", "dog"])
    data = load("mine", "test", data_dir=tmp_path)
    assert data.shape == (1, 4, 5)
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.to_images(), images)
    np.testing.assert_array_equal(data.labels, [0, 1, 0])


def test_parquet_columns_are_rows(tmp_path):
    table = pa.table({"a": [1.0, 2.0], "b": [3, 4], "note": ["p", "q"], "label": ["yes", "no"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column note holds text such as 'p'.*drop=note") as error:
        load(tmp_path / "a.parquet")
    one_line(error)
    data = load(tmp_path / "a.parquet", drop="note")
    assert data.x.tolist() == [[1, 3], [2, 4]]
    assert data.classes == ("no", "yes")
    assert data.labels.tolist() == [1, 0]
    parquet.write_table(table.select(["note"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no image column and no numeric columns among note"):
        load(tmp_path / "b.parquet", drop="note")


@pytest.mark.parametrize("image", [b"not a picture", None])
def test_parquet_bad_picture_is_named(tmp_path, image):
    write_parquet(tmp_path / "a.parquet", [png(pixels(2, 2)), image], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="not a readable") as error:
        load(tmp_path / "a.parquet")
    one_line(error)


def test_hub_names(monkeypatch, tmp_path):
    images = pixels(3, 4, 4, 3)
    write_parquet(tmp_path / "a.parquet", [png(i) for i in images], [0, 1, 1], ["cat", "dog"])
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if split != "train":
            raise ValueError(f"Unknown split {split}.\nMore lines")
        return SimpleNamespace(with_format=lambda kind: {"arrow": Rows()}[kind])

    class Rows:
        def __getitem__(self, index):
            assert index == slice(None)
            return parquet.read_table(tmp_path / "a.parquet")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for name in ("hf:someone/pets", "someone/pets"):
        data = load(name)
        assert data.name == "someone/pets"
        assert data.classes == ("cat", "dog")
        np.testing.assert_array_equal(data.to_images(), images)
    with pytest.raises(ValueError, match="Unknown split test") as error:
        load("someone/pets", "test")
    one_line(error)
    assert asked[0] == ("someone/pets", "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'molrmog\[hub\]'"):
        load("someone/pets")


# Folders of images


def write_folder(root: Path, images: dict[str, np.ndarray]) -> None:
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)


def test_folder_with_classes_and_parts(tmp_path):
    images = pixels(4, 6, 7, 3)
    names = ["train/dog/b.png", "train/cat/a.PNG", "train/dog/deeper/a.bmp", "val/dog/x.png"]
    write_folder(tmp_path / "pets", dict(zip(names, images, strict=True)))
    (tmp_path / "pets" / "train" / "cat" / "README.txt").write_text("not an image")
    with pytest.warns(UserWarning, match=r"1 of 5 files left out: 1 \.txt"):
        train = load(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / "README.txt").unlink()
    assert train.name == "pets"
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(train.to_images(), images[[1, 0, 2]])
    for split in ("val", "test"):
        part = load("pets", split, data_dir=tmp_path)
        assert part.labels.tolist() == [1]
        np.testing.assert_array_equal(part.to_images(), images[3:])
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        load(tmp_path / "pets", "tset")


def test_flat_folder_mixes_grey_into_rgb(tmp_path):
    colour, grey = pixels(5, 5, 3), pixels(5, 5)
    write_folder(tmp_path / "flat", {"a.png": grey, "b.png": colour})
    data = load(tmp_path / "flat")
    assert data.labels is None
    np.testing.assert_array_equal(data.to_images(), [np.repeat(grey[..., None], 3, axis=2), colour])
    write_folder(tmp_path / "grey", {"a.png": grey})
    assert load(tmp_path / "grey").shape == (1, 5, 5)
    with pytest.raises(ValueError, match="split it"):
        load(tmp_path / "flat", "test")


def test_image_size_crops_and_resizes(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = (10, 200, 30)  # only the central square is coloured
    write_folder(tmp_path / "a", {"a.png": wide, "b.png": np.full((16, 16, 3), 7, np.uint8)})
    with pytest.raises(ValueError, match=r"a\.png is 8 x 4.*b\.png is 16 x 16.*pass image_size") as error:
        load(tmp_path / "a")
    one_line(error)
    data = load(tmp_path / "a", image_size=4)
    assert data.shape == (3, 4, 4)
    assert np.unique(data.to_images()[1]).tolist() == [7]
    assert np.unique(data.to_images()[0].reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]
    digits = load("digits", image_size=16)
    assert digits.shape == (1, 16, 16)
    assert -1 <= digits.x.min() < digits.x.max() <= 1


def test_large_pictures_decode_alike_in_threads(tmp_path):
    images = pixels(20, 64, 64, 3)
    write_folder(tmp_path / "a", {f"{i:02}.png": image for i, image in enumerate(images)})
    np.testing.assert_array_equal(load(tmp_path / "a").to_images(), images)
    whole = (tmp_path / "a" / "07.png").read_bytes()
    (tmp_path / "a" / "07.png").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match="not a readable") as error:
        load(tmp_path / "a")
    assert "07.png" in one_line(error)


def test_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path / "empty")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path / "hollow")
    write_folder(tmp_path / "both", {"a.png": pixels(2, 2), "cat/b.png": pixels(2, 2)})
    with pytest.raises(ValueError, match="keep one or the other"):
        load(tmp_path / "both")
    write_folder(tmp_path / "deep", {"a.png": pixels(2, 2).astype(np.uint16)})
    with pytest.raises(ValueError, match="more than 8 bits"):
        load(tmp_path / "deep")


def test_unknown_sources(tmp_path):
    for name, message in (
        ("mnits", "did you mean mnist"),
        ("x", "known are digits, mnist, fashion-mnist, cifar10, a folder"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load(name)
        one_line(error)
    with pytest.raises(FileNotFoundError, match="no file or folder") as error:
        load(tmp_path / "rows.npy", data_dir=tmp_path)
    one_line(error)
    with pytest.raises(ValueError, match="parts train and test"):
        load("digits", "val")
    (tmp_path / "a.xlsx").write_text("1,2")
    with pytest.raises(ValueError, match=r"unknown kind of file, known are \.csv"):
        load(tmp_path / "a.xlsx")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, molrmog.data; heavy = {'sklearn', 'PIL', 'pyarrow', 'pooch', 'datasets', 'torchvision'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
