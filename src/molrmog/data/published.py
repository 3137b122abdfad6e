"""The data sets with a name: where they are looked for, where they are downloaded from."""

# scikit-learn and pooch ship no annotations: what they leave unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from molrmog.data.account import Account
from molrmog.data.dataset import split_rows
from molrmog.data.files import CIFAR_CLASSES, How, Raw
from molrmog.data.folders import read_layout


@dataclass(frozen=True)
class _Published:
    """A data set with a name: its classes, and the files of its publisher with their md5 sums."""

    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]


_DIGITS = tuple("0123456789")
_CIFAR_TAR = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
PUBLISHED = {
    "mnist": _Published(
        classes=_DIGITS,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files={
            "train": {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            },
            "test": {
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        },
    ),
    "fashion-mnist": _Published(
        classes=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        files={
            "train": {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            },
            "test": {
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        },
    ),
    "cifar10": _Published(
        classes=CIFAR_CLASSES,
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        files={"train": _CIFAR_TAR, "test": _CIFAR_TAR},
    ),
}


def key_of(name: str) -> str:
    """A name without what people write in different ways: "Fashion-MNIST", "fashion_mnist"."""
    return re.sub("[-_ ]", "", name.lower())


def read_digits(split: str) -> Raw:
    """The digits inside scikit-learn, in a fixed stratified split."""
    from sklearn.datasets import load_digits

    values, labels = cast(Any, load_digits(return_X_y=True))
    rows = split_rows(len(values), 1297, labels, seed=0)[split == "test"]
    return Raw(
        values[rows].astype(np.uint8).reshape(-1, 1, 8, 8),
        labels[rows],
        _DIGITS,
        17,
        Account(kind="digits of scikit-learn"),
    )


def read_published(name: str, split: str, roots: Sequence[Path], how: How) -> Raw:
    """Read a named set from the data folders or the cache, else download it."""
    classes = PUBLISHED[name].classes
    wanted = (key_of(name), f"{key_of(name)}batchespy")
    for root in roots:
        inside = sorted(root.iterdir()) if root.is_dir() else []
        for folder in (root, *inside):
            if key_of(folder.resolve().name) in wanted and folder.is_dir():
                for place in (folder, folder / "raw"):
                    if raw := read_layout(place, split, how):
                        return raw._replace(classes=classes)
    cache = _download(name, split, roots)
    if raw := read_layout(cache, split, how):
        return raw._replace(classes=classes)
    raise FileNotFoundError(f"{name}: the download left no {split} files in {cache}: empty that folder and try again")


def _download(name: str, split: str, roots: Sequence[Path]) -> Path:
    """Fetch the files of a named set into the cache, where they are not there yet, and check their sums."""
    import pooch

    published = PUBLISHED[name]
    cache = Path(pooch.os_cache("molrmog")) / name
    for file, md5 in published.files[split].items():
        for mirror in published.mirrors:
            try:
                pooch.retrieve(mirror + file, known_hash=f"md5:{md5}", fname=file, path=cache)
                break
            except (OSError, ValueError):  # no network, or a mirror that serves something else
                continue
        else:
            looked = ", ".join(map(str, roots)) or "a data folder (none given)"
            folder = (roots[0] if roots else Path("DATA")) / name
            how = "" if roots else " and pass data_dir=DATA or set MOLRMOG_DATA_DIR=DATA"
            raise FileNotFoundError(
                f"{name}: no {split} files in {looked}, and no download from {published.mirrors[0]}: "
                f"put {' and '.join(published.files[split])} into {folder}{how}"
            )
    return cache
