"""Hostile files.

Good files of every format that the library reads, small and random, then harmed: cut off, bits flipped, junk in front or
behind, headers that promise terabytes, archives that unpack to gigabytes or in odd ways, pickles and YAML with code in
them, pictures of absurd sizes, links in circles, pipes and devices, names that no terminal shows. So are the folders of
models and runs. What fails is

- anything but a data set or model that is right, or a ValueError, OSError or ImportError in one line that names the file;
- a command that shows a traceback or ends in another way than 0, or 1 with one line;
- more memory than 1.5 GiB over what the process had, or no end;
- code of a file that was run, which leaves a canary.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather_files
import pyarrow.parquet as parquet_files
import torch
from _trials import (
    Case,
    command,
    copy_tree,
    load_commands,
    options,
    pick,
    printable,
    rng,
    start,
    tally,
    trials,
)
from PIL import Image

import molrmog
from molrmog.data import load_parts
from molrmog.laws.head_tail import with_tail

Random = np.random.Generator
BOMB = 3 * 2**30  # bytes that an archive unpacks to
LONGEST = 600  # of a message, with the path in it


class Canary:
    """What a pickle must not be allowed to do."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "canary")

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


# --- harm


def harmed(random: Random, content: bytes) -> bytes:
    """Bytes that something happened to; one time in six nothing."""
    n = len(content)
    at, to = sorted(int(i) for i in random.integers(0, n + 1, 2))
    junk = random.bytes(int(random.integers(1, 200)))
    choice = int(random.integers(12))
    if choice < 2 or not n:
        return content
    if choice < 6:
        flipped = bytearray(content)
        first = min(n, 200) if choice < 4 else n  # headers are where it matters
        for i in random.integers(0, first, int(random.integers(1, 6))):
            flipped[i] ^= 1 << int(random.integers(8))
        return bytes(flipped)
    return {
        6: content[:at],
        7: content + junk,
        8: junk + content,
        9: content[:at] + b"\0" * (to - at) + content[to:],
        10: content[:at] + content[to:],
        11: pick(random, (b"", junk, b"\0" * 100, b"<html>404</html>", content[:4], content + content)),
    }[choice]


def zeros_deflated(size: int, head: bytes = b"", *, wbits: int = -15) -> tuple[bytes, int]:
    """`head` and zeros, deflated, without having them in memory; and their crc."""
    block = bytes(2**20)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, wbits)
    start = squeeze.compress(head) + squeeze.flush(zlib.Z_FULL_FLUSH)
    one = squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH)
    one = squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH)  # the first may still refer to the head
    blocks = size // 2**20
    crc = zlib.crc32(head)
    for _ in range(blocks):
        crc = zlib.crc32(block, crc)
    return start + one * blocks + squeeze.flush(), crc


def npy_header(shape: str, dtype: str = "'<f8'", order: str = "False", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(118) + "\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text.encode()


# --- files of rows


def numbers(random: Random) -> np.ndarray:
    x = random.normal(size=(int(random.integers(3, 20)), int(random.integers(1, 6))))
    kind = pick(
        random, ["f8", "f4", "f2", ">f8", "i4", "u1", "i8", "?", "c16", "O", "U3", "M8[s]", "f8,i4", "S2", "images"]
    )
    if kind == "images":
        return random.integers(0, 256, (5, 4, 4, int(pick(random, (1, 3)))), dtype=np.uint8)
    if kind == "f8,i4":
        return np.zeros(5, dtype=kind)
    with np.errstate(all="ignore"):
        return np.rint(x * 5).astype("i8").astype(kind) if kind not in ("f8", "f4", "f2", ">f8") else x.astype(kind)


def npy(random: Random, folder: Path) -> Path:
    path = folder / "x.npy"
    buffer = io.BytesIO()
    np.save(buffer, numbers(random), allow_pickle=True)
    made = [
        *(harmed(random, buffer.getvalue()) for _ in range(8)),
        *(npy_header(s) + bytes(64) for s in ("(1000000000000, 8)", "(-1, 8)", "(8,)", "()", "(0, 8)", "(4, 0)", "(2, 4")),
        *(npy_header(s) + bytes(64) for s in ("(2.5, 4)", "('a', 2)", "(True, 8)", "(2, 4, " + "1, " * 70 + ")", "(2**70, 0)")),
        *(npy_header("(2, 4)", d) + bytes(64) for d in ("'|O'", "'<f3'", "'<V8'", "[('a', '<f8')]", "'<m8[s]'", "None", "'<f16'")),
        *(npy_header("(2, 4)", order="'yes'") + bytes(64), npy_header("(8, 8)") + bytes(64), npy_header("(2, 4)", version=b"\x09\x00")),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31 - 1) + b"{" * 1000,
        b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 117 + b"\n",
        b"\x93NUMPY\x01\x00\x76\x00" + b"__import__('os').system('touch canary')".ljust(117) + b"\n",
        npy_header("(2, 4)", "'|O'") + pickle.dumps(Canary(folder)),
        pickle.dumps(Canary(folder)),
    ]  # fmt: skip
    path.write_bytes(pick(random, made))
    return path


def npz(random: Random, folder: Path) -> Path:
    path = folder / "x.npz"
    choice = int(random.integers(12))
    x = numbers(random)
    keys = pick(
        random,
        (["x", "y"], ["x_train", "x_test"], ["data"], ["x"], ["nothing"], ["x", "labels"], ["x_train", "y_train"]),
    )
    if choice < 6:
        buffer = io.BytesIO()
        save = pick(random, (np.savez, np.savez_compressed))
        save(buffer, **{key: x[:, 0] if key[0] in "yl" and x.ndim == 2 else x for key in keys})
        path.write_bytes(harmed(random, buffer.getvalue()))
        return path
    if choice == 6:  # a bomb
        head = npy_header(f"({BOMB // 8 // 4}, 4)")
        deflated, crc = zeros_deflated(BOMB, head)
        path.write_bytes(zip_of("x.npy", deflated, crc, len(head) + BOMB))
        return path
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=True)
    content = buffer.getvalue()
    if choice == 7:  # what zip may ask for and numpy never writes
        method = pick(random, (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x.npy", content)
        return path
    if choice == 8:  # a method or a flag that its content has not
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
        raw = bytearray(path.read_bytes())
        central = raw.rindex(b"PK\1\2")
        value, local, offset = pick(
            random, ((9, 8, 10), (1, 6, 8), (97, 8, 10), (12, 8, 10), (0x2000, 6, 8), (99, 8, 10))
        )
        raw[local : local + 2] = raw[central + offset : central + offset + 2] = struct.pack("<H", value)
        path.write_bytes(bytes(raw))
        return path
    inner = io.BytesIO()
    np.savez(inner, x=x)
    members = pick(
        random,
        (
            {"x.npy": inner.getvalue()},
            {"x.npy": pickle.dumps(Canary(folder))},
            {"x.npy": npy_header("(2, 4)", "'|O'") + pickle.dumps(Canary(folder))},
            {"x.npy": npy_header("(1000000000000, 8)") + bytes(64)},
            {"x": content},
            {"../x.npy": content, "/etc/x.npy": content},
            {"x.npy": content, "x.npy ": content, "y.npy": b""},
            {f"{i}.npy": content for i in range(2000)},
            {"x.npy": b"text"},
            {"x.npy": content, "y.npy": npy_header("(3,)", "'<U9'") + bytes(108)},
            {},
        ),
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, each in members.items():
            archive.writestr(name, each)
    return path


def zip_of(name: str, deflated: bytes, crc: int, size: int) -> bytes:
    """An archive of one member that is deflated already."""
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(deflated), size, len(name), 0)
    local = b"PK\3\4" + common + name.encode()
    central = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(deflated), 0)
    return local + deflated + central + end


def table(random: Random) -> pa.Table:
    n = int(random.integers(1, 12))
    columns: dict[str, Any] = {
        "a": pa.array(random.normal(size=n)),
        "b": pa.array(random.integers(0, 9, n)),
        "label": pa.array([str(i % 3) for i in range(n)]),
        "missing": pa.array([None, *([1.0] * (n - 1))]),
        "text": pa.array(["t"] * n),
        "list": pa.array([[1.0, 2.0]] * n),
        "time": pa.array([0] * n, pa.timestamp("s")),
        "decimal": pa.array([1] * n, pa.decimal128(5)),
        "half": pa.array(np.zeros(n, np.float16)),
        "u64": pa.array([2**64 - 1] * n, pa.uint64()),
        "dictionary": pa.array(["p"] * n).dictionary_encode(),
        "image": pa.array([picture(random, "PNG")] * n),
        "img": pa.array([{"bytes": picture(random, "PNG"), "path": None}] * n),
        "path": pa.array([{"bytes": None, "path": "/etc/passwd"}] * n),
        "nothing": pa.nulls(n),
        "": pa.array([0.5] * n),
        "a\nb": pa.array([0.5] * n),
        "y": pa.array([0.5] * n),
    }
    names = (
        random.permutation(list(columns))[: int(random.integers(1, 5))]
        if random.random() < 0.7
        else ["a", "b", "label"]
    )
    made = pa.table({str(name): columns[str(name)] for name in names})
    if random.random() < 0.1:
        made = made.slice(0, 0)
    if random.random() < 0.15:
        made = made.replace_schema_metadata({b"huggingface": pick(random, (b"{", b"[]", b'{"info": 3}', b"\xff", b'{"info": {"features": {"label": {"names": 3}}}}'))})  # fmt: skip
    return made


def parquet(random: Random, folder: Path, shared: Path) -> Path:
    path = folder / "x.parquet"
    if random.random() < 0.05:
        bomb = shared / "bomb.parquet"
        if not bomb.is_file():
            part = pa.table(
                {
                    "a": pa.DictionaryArray.from_arrays(np.zeros(2**22, np.int32), [0.5]).cast(pa.float64()),
                    "b": np.zeros(2**22),
                }
            )
            with parquet_files.ParquetWriter(shared / "part", part.schema) as writer:
                for _ in range(64):
                    writer.write_table(part)
            os.replace(shared / "part", bomb)
        path.symlink_to(bomb)
        return path
    buffer = io.BytesIO()
    parquet_files.write_table(table(random), buffer, compression=pick(random, ("snappy", "gzip", "zstd", "none")))
    path.write_bytes(harmed(random, buffer.getvalue()))
    return path


def feather(random: Random, folder: Path) -> Path:
    path = folder / pick(random, ("x.feather", "x.arrow", "x.ipc"))
    buffer = io.BytesIO()
    feather_files.write_feather(table(random), buffer, compression=pick(random, ("lz4", "zstd", "uncompressed")))
    path.write_bytes(harmed(random, buffer.getvalue()))
    return path


def text(random: Random, folder: Path) -> Path:
    """Tables as text, plain and gzipped."""
    suffix = pick(random, (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.zip"))
    comma = "\t" if "tsv" in suffix else ","
    n, d = int(random.integers(1, 9)), int(random.integers(1, 5))
    cells = [[f"{v:.3g}" for v in row] for row in random.normal(size=(n, d))]
    if random.random() < 0.6:
        odd = [
            "",
            "nan",
            "NA",
            "abc",
            '"',
            '"1,2"',
            "1e999",
            "0x10",
            "1_000",
            "٣",
            "\0",
            "=1+1",
            "a" * 200_000,
            "\r",
            "1;2",
        ]
        cells[int(random.integers(n))][int(random.integers(d))] = pick(random, odd)
    if random.random() < 0.2:
        cells[-1] = pick(random, (cells[-1] * 2, cells[-1][:-1], []))
    if random.random() < 0.5:
        cells.insert(0, [f"c{i}" for i in range(d)] if random.random() < 0.7 else ["label"] * d)
    lines = pick(random, ("\n", "\r\n", "\r")).join(comma.join(row) for row in cells)
    content = lines.encode(pick(random, ("utf-8", "utf-16", "utf-8-sig")), "replace")
    if ".gz" in suffix:
        content = gzip.compress(content)
        if random.random() < 0.1:
            deflated, crc = zeros_deflated(BOMB, b"1,2\n")
            content = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated + struct.pack("<II", crc, (BOMB + 4) % 2**32)
    path = folder / f"x{suffix}"
    path.write_bytes(harmed(random, content))
    return path


# --- folders of data


def idx(random: Random, folder: Path) -> Path:
    place = folder / "some-mnist"
    place.mkdir()
    n = int(random.integers(1, 9))
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 4, 4) + random.bytes(16 * n)
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, n) + bytes(i % 3 for i in range(n))
    odd = [
        struct.pack(">BBBBIII", 0, 0, pick(random, (9, 13, 0)), 3, n, 4, 4) + images[16:],
        struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 4) + images[16:],
        struct.pack(">BBBBIII", 0, 0, 8, 3, 0, 4, 4),
        struct.pack(">BBBBIII", 0, 0, 8, 3, n, 0, 4),
        struct.pack(">BBBB", 0, 0, 8, 255) + images[4:],
    ]
    squeezed = bool(random.random() < 0.4)
    pack = gzip.compress if squeezed else bytes
    images = pack(images) if random.random() < 0.7 else pack(pick(random, odd))
    if squeezed and random.random() < 0.2:
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, BOMB // 2**20, 2**10, 2**10)
        deflated, crc = zeros_deflated(BOMB, head)
        images = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated + struct.pack("<II", crc, (BOMB + 16) % 2**32)
    elif random.random() < 0.6:
        images = harmed(random, images)
    end = ".gz" if squeezed else ""
    (place / f"train-images-idx3-ubyte{end}").write_bytes(images)
    if random.random() < 0.9:
        labels = pack(labels)
        (place / f"train-labels-idx1-ubyte{end}").write_bytes(
            harmed(random, labels) if random.random() < 0.4 else labels
        )
    return place


def cifar(random: Random, folder: Path) -> Path:
    def batch() -> bytes:
        n = int(random.integers(1, 4))
        data = np.frombuffer(random.bytes(3072 * n), np.uint8).reshape(n, 3072)
        labels: Any = [0] * n
        if random.random() < 0.3:
            data = pick(
                random, (data[:, :3071], data.astype(np.float32), data.T.copy(), data[:0], data.astype(object), "data")
            )
        if random.random() < 0.3:
            labels = pick(random, (labels[:-1], ["a"] * n, None, [2**70] * n, labels * 2, [[0]] * n))
        whole: Any = {b"data": data, b"labels": labels}
        if random.random() < 0.3:
            whole = pick(
                random,
                (Canary(folder), [1, 2], {b"data": Canary(folder), b"labels": []}, {}, {"data": data}, None, [[]] * 9),
            )
        return pickle.dumps(whole, protocol=int(random.integers(0, 5)))

    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents = {name: batch() if random.random() < 0.3 else pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2) for name in names}  # fmt: skip
    if random.random() < 0.3:
        bad = str(pick(random, names[:5]))
        contents[bad] = harmed(random, contents[bad])
    if random.random() < 0.1:
        contents["data_batch_1"] = b"(" * 200_000 + b"."
    if random.random() < 0.05:
        contents["data_batch_1"] = b"\x80\x04\x8d" + struct.pack("<Q", 2**45) + b"x."  # a string of terabytes
    place = folder / "some-cifar"
    place.mkdir()
    if random.random() < 0.5:
        for name, content in contents.items():
            (place / name).write_bytes(content)
        return place
    with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            kind = random.random()
            if kind < 0.05:
                member.type, member.size = (
                    pick(random, (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE)),
                    0,
                )
                member.linkname = pick(random, ("/etc/passwd", "../../x", f"cifar-10-batches-py/{name}"))
            tar.addfile(member, io.BytesIO(content) if member.size else None)
        traversal = tarfile.TarInfo("../../canary")
        tar.addfile(traversal, io.BytesIO(b""))
    if random.random() < 0.4:
        path = place / "cifar-10-python.tar.gz"
        path.write_bytes(harmed(random, path.read_bytes()))
    return place


def picture(random: Random, kind: str) -> bytes:
    mode = pick(random, ("L", "RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F", "I", "YCbCr"))
    made = Image.new(mode, (int(random.integers(1, 7)), 4))
    if kind in ("PNG", "GIF") and mode in ("CMYK", "F", "YCbCr"):
        made = made.convert("RGB")
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [made.copy() for _ in range(5)]} if kind in ("GIF", "TIFF") else {}
    try:
        made.save(buffer, kind, **more)
    except (OSError, ValueError, KeyError):
        buffer = io.BytesIO()
        made.convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A picture whose header promises more than it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6), 9))
        + chunk(b"IEND", b"")
    )


def images(random: Random, folder: Path) -> Path:
    place = folder / "pictures"
    place.mkdir()
    kinds = {
        "PNG": ".png",
        "JPEG": ".jpg",
        "GIF": ".gif",
        "TIFF": ".tif",
        "BMP": ".bmp",
        "PPM": ".ppm",
        "WEBP": ".webp",
    }
    homes = [place]
    if random.random() < 0.4:
        homes = [place / pick(random, ("a", "a\nb", "ä", ".hidden", "train", "test")), place / "b"]
        for home in homes:
            home.mkdir(parents=True, exist_ok=True)
    same = random.random() < 0.5
    one = str(pick(random, list(kinds)))
    plain = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (4, 4), dtype=np.uint8)).save(plain, "PNG")
    for i in range(int(random.integers(1, 5))):
        kind = one if same else str(pick(random, list(kinds)))
        content = plain.getvalue() if same else picture(random, kind)
        if random.random() < 0.4:
            content = harmed(random, content)
        name = str(pick(random, (f"{i}", f"{i}", f"{i}\n", f" {i}", f"ü{i}", "x" * 200))) + kinds[kind]
        (pick(random, homes) / name).write_bytes(content)
    odd = str(pick(random, ["none"] * 8 + ["huge", "wide", "fifo", "device", "loop", "dangling", "bytes", "folder", "unreadable", "svg", "self", "zeros"]))  # fmt: skip
    home = homes[0]
    if odd == "huge":
        (home / "h.png").write_bytes(huge_png(60_000, 60_000))
    elif odd == "wide":
        (home / "w.png").write_bytes(huge_png(2**31 - 1, 1))
    elif odd == "zeros":  # large, and honest: 12,000 x 12,000 pixels of 3 bytes are below what pillow calls a bomb
        (home / "z.png").write_bytes(huge_png(13_000, 13_000))
    elif odd == "fifo":
        os.mkfifo(home / "f.png")
    elif odd == "device":
        (home / "d.png").symlink_to(pick(random, ("/dev/zero", "/dev/full", "/dev/null", "/dev/urandom")))
    elif odd == "loop":
        (home / "l.png").symlink_to("l.png")
    elif odd == "dangling":
        (home / "l.png").symlink_to("nowhere.png")
    elif odd == "self":
        (home / "again").symlink_to("..")
    elif odd == "bytes":
        with open(os.fsencode(home) + b"/\xff\xfe.png", "wb") as file:
            file.write(picture(random, "PNG"))
    elif odd == "folder":
        (home / "folder.png").mkdir()
    elif odd == "unreadable":
        (home / "u.png").write_bytes(b"")
        (home / "u.png").chmod(0)
    elif odd == "svg":
        (home / "s.png").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    return place


def odd_names(random: Random, folder: Path) -> Path:
    """Devices, pipes, links and names."""
    suffix = str(pick(random, (".npy", ".npz", ".parquet", ".csv", ".gz", "", ".exe", ".NPY", ".pkl", ".pt", ".json")))
    path = folder / (str(pick(random, ("x", "a\nb", "ä" * 60, " ", "x\x1b[31m", "-x", "%s%n"))) + suffix)
    kind = str(
        pick(random, ("zero", "null", "fifo", "loop", "empty", "dangling", "folder", "bytes", "pickle", "directory"))
    )
    if kind in ("zero", "null"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "directory":
        path.symlink_to("/proc/self")
    elif kind == "bytes":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff" + suffix.encode()))
        path.write_bytes(b"x")
    else:
        path.write_bytes(b"" if kind == "empty" else pickle.dumps(Canary(folder)))
    return path


# --- models and runs


def models() -> dict[str, Any]:
    law = molrmog.MoLRMoG.random(4, (2, 1), (2, 1), noise=0.2, seed=0).requires_grad_(False)
    axes = torch.linalg.qr(torch.ones(6, 6) + torch.eye(6)).Q
    mlp = molrmog.MLPDenoiser(4, width=8, depth=1, inputs=2)
    return {
        "MoLRMoG": law,
        "HeadTail": with_tail(law, axes[:, :5], torch.zeros(6), torch.ones(1), torch.tensor(0.2)),
        "MLPDenoiser": molrmog.MLPDenoiser(4, width=8, depth=1),
        "ResidualDenoiser": molrmog.ResidualDenoiser(law, mlp),
        "MoGDenoiser": molrmog.MoGDenoiser(law),
        "ConditionalLaw": molrmog.ConditionalLaw(law),
        "LinearAutoencoder": molrmog.LinearAutoencoder.from_pca(np.random.default_rng(0).normal(size=(20, 4)), 2),
    }


def mangled(random: Random, value: Any, depth: int = 0) -> Any:
    """JSON in which something is another thing."""
    wrong = [
        None,
        "",
        "a",
        -1,
        0,
        1e308,
        float("nan"),
        10**9,
        2**63,
        [],
        {},
        [[]],
        True,
        "../x",
        ["a"] * 3,
        [10**6] * 3,
        1.5,
    ]
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = pick(random, list(value))
        choice = random.random()
        if choice < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if choice < 0.2:
            return {
                **value,
                str(pick(random, ("extra", "", "__class__", "self", "law", "denoiser"))): pick(random, wrong),
            }
        return {**value, key: mangled(random, value[key], depth + 1)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = int(random.integers(len(value)))
        choice = random.random()
        if choice < 0.2:
            return value[:at]
        if choice < 0.4:
            return value + value
        return [*value[:at], mangled(random, value[at], depth + 1), *value[at + 1 :]]
    return pick(random, wrong)


def model_folder(random: Random, folder: Path, base: Path) -> tuple[str, Path]:
    name = str(
        pick(
            random,
            sorted(
                path.name
                for path in base.iterdir()
                if (path / "model.safetensors").is_file() and path.name[0].isupper()
            ),
        )
    )
    place = folder / "model"
    copy_tree(base / name, place)
    file = place / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    choice = random.random()
    if choice < 0.6:  # the configuration, which lies in both files
        config = mangled(random, json.loads(header["__metadata__"]["config"]))
        written = json.dumps(config)
        if random.random() < 0.15:
            written = pick(
                random,
                ("[" * 100_000, "{", "", "nan", "\x00", written + "}", '"a"', "[" * 500 + "]" * 500, "9" * 10_000),
            )
        header["__metadata__"]["config"] = written
        if random.random() < 0.3:
            header["__metadata__"].pop("config")
        (place / "config.json").write_text(written)
    elif choice < 0.8:  # the tensors
        names = [key for key in header if key != "__metadata__"]
        key = pick(random, names)
        what = random.random()
        if what < 0.2:
            del header[key]
        elif what < 0.4:
            header["another"] = header.pop(key)
        else:
            header[key] = mangled(random, header[key])
    raw = json.dumps(header).encode()
    content = struct.pack("<Q", len(raw)) + raw + content[8 + size :]
    if choice >= 0.8:
        content = harmed(random, content)
        if random.random() < 0.1:
            content = struct.pack("<Q", pick(random, (2**63, 2**40, 0, 10**8))) + content[8:]
    file.write_bytes(content)
    return name, place


def run_folder(random: Random, folder: Path, base: Path) -> tuple[str, Path]:
    kind = str(pick(random, ("law", "net")))
    place = folder / "run"
    copy_tree(base / kind, place)
    name = str(
        pick(
            random,
            sorted(p.name for p in place.iterdir() if p.is_file() and p.suffix in (".json", ".yaml", ".jsonl", ".npz")),
        )
    )
    path = place / name
    content = path.read_bytes()
    choice = random.random()
    if choice < 0.25:
        path.write_bytes(harmed(random, content))
    elif choice < 0.3:
        path.unlink()
        if random.random() < 0.5:
            pick(random, (lambda: path.mkdir(), lambda: path.symlink_to(path.name), lambda: os.mkfifo(path)))()
    elif path.suffix == ".npz":
        arrays = pick(random, ({"train": np.zeros(3), "held_out": np.zeros(2)}, {"train": np.zeros(9, object)}, {}, {"train": np.full(54, 99), "held_out": np.full(6, -7)}))  # fmt: skip
        np.savez(path, **arrays)
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        at = int(random.integers(len(lines)))
        lines[at] = mangled(random, lines[at])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".yaml":
        import yaml

        bad = (
            "a: !!python/object/apply:os.system ['touch canary']",
            "- 1",
            "a: b: c",
            "\t",
            "&a [*a]",
            "seed: 2020-01-01",
            "null",
        )
        settings = mangled(random, yaml.safe_load(content))
        path.write_text(pick(random, bad) if random.random() < 0.3 else yaml.safe_dump(settings))
    else:
        path.write_text(json.dumps(mangled(random, json.loads(content))))
    return name, place


# --- what is right


def refusal(error: BaseException, path: Path) -> str | None:
    text = str(error)
    kind = type(error).__name__
    if not isinstance(error, ValueError | OSError | ImportError):
        return f"raised {kind}: {text[:300]}"
    if not text.strip() or len(text.splitlines()) > 1 or len(text) > LONGEST + 2 * len(str(path)):
        return f"raised a {kind} of {len(text.splitlines())} lines, {len(text)} characters: {text[:300]}"
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    names = [
        path.name,
        path.stem,
        repr(path.name)[1:-1],
        " ".join(path.name.split()),
        path.name.encode(errors="surrogateescape").decode(errors="replace"),
    ]
    if not any(each and each in shown for each in names):
        return f"raised a {kind} that does not name the file: {text[:300]}"
    return None


def reads(path: Path, random: Random) -> str | None:
    """Read data, both ways."""
    kept: dict[str, Any] = {}
    if random.random() < 0.2:
        kept = pick(random, ({"image_size": 4}, {"dequantise": True}, {"image_size": 10**5}))
        if kept.get("image_size") == 10**5:
            kept = {"image_size": 3}
    try:
        if random.random() < 0.7:
            found = molrmog.load_data(path, **kept)
        else:
            found = load_parts(str(path), **kept)[0]
    except Exception as error:
        return refusal(error, path)
    x = np.asarray(found.x[:1000])
    if x.ndim != 2 or x.shape[1] != found.dim or not np.isfinite(x.astype(np.float64)).all():
        return f"answered with rows of shape {x.shape} for the shape {found.shape}, or with NaN"
    if found.labels is not None and (len(found.labels) != len(found.x) or found.labels.dtype != np.int64):
        return f"answered with {len(found.labels)} labels of {found.labels.dtype} for {len(found.x)} rows"
    if found.classes is not None and found.labels is not None and not 0 <= found.labels.min() <= found.labels.max() < len(found.classes):  # fmt: skip
        return f"answered with labels {found.labels.min()} to {found.labels.max()} for {len(found.classes)} classes"
    return None


def opens(place: Path) -> str | None:
    """Read a model, and ask it something."""
    try:
        model = molrmog.load(place)
    except Exception as error:
        return refusal(error, place)
    if not hasattr(model, "denoise"):
        return None
    try:
        found = model.denoise(torch.zeros(2, model.dim), 0.5, 0.5)
    except (ValueError, OSError):
        return None
    except Exception as error:
        return f"read it, and then denoise raised {type(error).__name__}: {error}"
    return None if tuple(found.shape) == (2, model.dim) else f"read it, and it answers with shape {tuple(found.shape)}"


def runs(words: list[str], folder: Path) -> str | None:
    """A command on a run."""
    ended = start(command(*words), folder).wait(12)
    said = [line for line in ended.err.splitlines() if not line.startswith("molrmog: warning:")]
    if ended.late:
        return f"{words[0]}: no end"
    if "Traceback" in ended.err or ended.code not in (0, 1):
        return f"{words[0]}: exit code {ended.code}: {ended.err[-300:]}"
    errors = [line for line in said if line.startswith("molrmog: error:")]
    if ended.code == 1 and (len(errors) != 1 or len(said) > 3 or len(errors[0]) > LONGEST):
        return f"{words[0]}: an error of {len(said)} lines: {ended.err[-300:]}"
    if ended.code == 1 and "MOLRMOG_DEBUG" in ended.err:
        return f"{words[0]}: an error that is not the library's own: {errors[0]}"
    if ended.code == 1 and "Error" in errors[0].split(": ")[2][:20]:
        return f"{words[0]}: {errors[0]}"
    return None


READERS: dict[str, Callable[..., Path]] = {
    "npy": npy, "npz": npz, "feather": feather, "text": text, "IDX": idx, "CIFAR": cifar, "pictures": images, "odd names": odd_names,
}  # fmt: skip
KINDS = [*READERS, "npz", "npy", "pictures", "CIFAR", "IDX", "parquet", "parquet", *["model"] * 4, *["run"] * 4]


def case_of(number: int, folder: Path, seed: int, base: Path) -> Case:
    """One file."""
    random = rng(seed, number)
    kind = str(pick(random, KINDS))
    if kind == "model":
        name, path = model_folder(random, folder, base)
        return watched(f"model {name}", folder, path, lambda: opens(path))
    if kind == "run":
        name, path = run_folder(random, folder, base)
        words = pick(random, (["info"], ["info"], ["sample"], ["evaluate"]))
        more = {"info": [], "sample": ["--num", "2", "--steps", "2", "--out", "s.png"], "evaluate": ["--num-samples", "20", "--steps", "2", "--features", "pca"]}  # fmt: skip
        (folder / "xy.npz").write_bytes((base / "xy.npz").read_bytes())
        return watched(f"run {name}", folder, path, lambda: runs([words[0], "run", *more[words[0]]], folder))
    path = parquet(random, folder, base) if kind == "parquet" else READERS[kind](random, folder)
    return watched(kind, folder, path, lambda: reads(path, random))


def _is_own(warning: warnings.WarningMessage) -> bool:
    words = ("left out", "taken as", "composed on", "frames", "rounded")
    return warning.category is UserWarning and any(word in str(warning.message) for word in words)


def watched(what: str, folder: Path, path: Path, run: Callable[[], str | None]) -> Case:
    """A case that also fails where code of the file was run."""

    def all_of_it() -> str | None:
        os.chdir(folder)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                why = run()
            except MemoryError:
                why = "raised MemoryError"
        # The library says in one line, which begins with the name of the data, what it left out.
        alien = [each for each in heard if "\n" in str(each.message) or not _is_own(each)]
        if why is None and alien:
            why = f"warned, {alien[0].category.__name__}: {alien[0].message}"
        if any((place / "canary").exists() for place in (folder, folder.parent, path.parent)):
            return "ran code of the file"
        return None if why is None else printable(why)

    return Case(what, path.name, all_of_it)


def prepare(base: Path) -> None:
    """Whole models and runs, which the cases harm copies of."""
    for name, model in models().items():
        model.save_pretrained(base / name)
    random = np.random.default_rng(0)
    np.savez(base / "xy.npz", x=random.normal(size=(60, 4)), y=np.arange(60) % 2)
    quick = ["--latent-dim", "1", "--modes", "1", "--no-evaluate"]
    for words in (
        ["fit", "xy.npz", "--out", "law", "--subspaces", "2", "--noise", "isotropic", "--max-iter", "2", *quick],
        ["train", "xy.npz", "--out", "net", "--steps", "2", "--batch-size", "8", *quick],
    ):
        ended = start(command(*words), base).wait(120)
        if ended.code:
            raise RuntimeError(f"molrmog {' '.join(words)}: {ended.err}")


def main() -> int:
    asked = options(__doc__, tries=1000, minutes=4)
    result = tally(__file__, asked)
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        base = Path(place)
        prepare(base)
        trials(result, asked, lambda number, folder: case_of(number, folder, asked.seed, base), batch=25, seconds=15)
    return result.close()


if __name__ == "__main__":
    load_commands()

    sys.exit(main())
