"""Rows come out the same, wherever they lie."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from molrmog.learning import rows as rows_module
from molrmog.learning.rows import Rows

TABLE = np.random.default_rng(0).normal(size=(150, 7)).astype(np.float32)


def on_disk(tmp_path):
    np.save(tmp_path / "rows.npy", TABLE)
    return np.load(tmp_path / "rows.npy", mmap_mode="r")


@pytest.fixture(params=["tensor", "array", "list", "memory map", "fortran order", "backwards", "dataset"])
def source(request, tmp_path):
    return {
        "tensor": lambda: torch.from_numpy(TABLE),
        "array": lambda: TABLE,
        "list": lambda: TABLE.tolist(),
        "memory map": lambda: on_disk(tmp_path),
        "fortran order": lambda: np.asfortranarray(TABLE),
        "backwards": lambda: np.ascontiguousarray(TABLE[::-1])[::-1],
        "dataset": lambda: SimpleNamespace(x=TABLE),
    }[request.param]()


@pytest.mark.parametrize("chunk", [1, 7 * 70, 10**6])
def test_chunks_are_all_rows_in_order(source, chunk, monkeypatch):
    monkeypatch.setattr(rows_module, "_CHUNK_NUMBERS", {"cpu": chunk})
    rows = Rows(source)
    assert (len(rows), rows.dim) == (150, 7)
    parts = list(rows.chunks())
    assert torch.equal(torch.cat([part for _, part in parts]).float(), torch.from_numpy(TABLE))
    assert [i for at, _ in parts for i in range(at.start, at.stop)] == list(range(150))
    assert len(parts) == (1 if chunk == 10**6 else -(-150 // max(64, chunk // 7)))


def test_subsets_of_subsets(source):
    first = torch.tensor([5, 3, 149, 0, 77])
    second = torch.tensor([2, 2, 0])
    rows = Rows(source).subset(first).subset(second)
    assert torch.equal(next(rows.chunks())[1].float(), torch.from_numpy(TABLE)[first][second])
    assert len(rows) == 3


def test_dtypes():
    assert Rows(TABLE).dtype == torch.float32
    assert Rows(TABLE.astype(np.float64)).dtype == torch.float64
    assert Rows(TABLE.astype(np.float64), dtype=torch.float32)[:2].dtype == torch.float32
    for kind in (np.uint8, np.int64, np.float16, bool):
        assert Rows(np.ones((3, 2), kind))[:1].dtype == torch.float32
    assert Rows(torch.ones(3, 2, dtype=torch.bfloat16))[:1].dtype == torch.float32


def test_rows_are_never_written_to(source):
    for _, chunk in Rows(source, dtype=torch.float64).chunks():
        chunk.zero_()
    assert TABLE.any(axis=1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_row_is_named(bad, monkeypatch):
    monkeypatch.setattr(rows_module, "_CHUNK_NUMBERS", {"cpu": 1})
    x = TABLE.copy()
    x[101, 3] = x[140, 0] = bad
    with pytest.raises(ValueError, match="row 101 of x holds NaN or infinity"):
        Rows(x).check_finite()
    Rows(TABLE).check_finite()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), "at least one row"),
        (np.zeros((3, 0)), "at least one row"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (torch.zeros(0, 3), "at least one row"),
        (np.array([["a", "b"]]), "pass numbers"),
        (np.zeros((2, 2), complex), "pass numbers"),
        (torch.zeros(2, 2, dtype=torch.complex64), "pass numbers"),
    ],
)
def test_what_is_no_table_of_numbers_gets_one_line(x, message):
    with pytest.raises(ValueError, match=message) as error:
        Rows(x)
    assert "\n" not in str(error.value)
