"""Pictures that few folders have."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from molrmog.data import load, load_parts


def grey(path, level=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 3), level, np.uint8)).save(path)


def png_of_16_bits(colour: int, channels: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + bytes(range(6 * channels))) * 2
    head = struct.pack(">IIBBBBB", 3, 2, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_no_bit_of_a_channel_is_dropped(tmp_path, colour, channels):
    (tmp_path / "a.png").write_bytes(png_of_16_bits(colour, channels))
    with pytest.raises(ValueError, match=r"a\.png: not a readable 8-bit image: more than 8 bits a channel"):
        load(tmp_path)


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "VAL"), ("train", "Validation")])
def test_parts_are_parts_in_any_case(tmp_path, names):
    for part in names:
        for kind in ("cat", "dog"):
            grey(tmp_path / part / kind / "0.png", len(part) * 9)
    train, held = load_parts(str(tmp_path))
    assert train.classes == held.classes == ("cat", "dog")
    assert len(train) == len(held) == 2


def test_a_part_that_is_not_held_out_is_said(tmp_path):
    for part in ("train", "val", "test"):
        grey(tmp_path / part / "cat" / "0.png")
    with pytest.warns(UserWarning, match="part val left out: test is held out"):
        load_parts(str(tmp_path))


def test_classes_that_look_like_parts_are_said(tmp_path):
    for name in ("training/cat", "training/dog", "testing/cat", "testing/dog"):
        grey(tmp_path / name / "0.png")
    with pytest.warns(UserWarning, match="testing, training taken as classes, though each has the folders cat, dog"):
        assert load(tmp_path).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", [b"a\nb\n" * 20 + b".png", b"\xff\xe9.png"])
def test_a_refusal_is_one_line_of_text_whatever_the_name(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"no picture")
    with pytest.raises(ValueError, match="not a readable 8-bit image") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_a_table_names_no_pictures_outside_its_folder(tmp_path):
    """A downloaded table must not choose which files of the machine are opened."""
    (tmp_path / "set").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "set" / "inside.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "outside.png")
    for path in ("/etc/passwd", str(tmp_path / "outside.png"), "../outside.png", "nowhere.png", "."):
        table = pa.table({"image": [{"bytes": None, "path": path}]})
        parquet.write_table(table, tmp_path / "set" / "t.parquet")
        with pytest.raises(ValueError, match=r"t\.parquet: .*no such file below the folder of the table") as error:
            load(tmp_path / "set" / "t.parquet")
        assert "\n" not in str(error.value)
    parquet.write_table(pa.table({"image": [{"bytes": None, "path": "inside.png"}]}), tmp_path / "set" / "t.parquet")
    assert load(tmp_path / "set" / "t.parquet").shape == (3, 4, 4)


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_pictures_without_pixels_are_refused(tmp_path, shape):
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(
        bytes((0, 0, 8, 1)) + struct.pack(">I", shape[0]) + bytes(shape[0])
    )
    with pytest.raises(ValueError, match=r"is empty|at least one column"):
        load(tmp_path)


def test_an_archive_whose_rows_are_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", b"plain bytes")
    with pytest.raises(ValueError, match=r"a\.npz: damaged, or not a \.npz file"):
        load(tmp_path / "a.npz")
