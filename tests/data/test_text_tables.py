"""CSV and its relatives: whatever way a table is written as text, the same numbers come out."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pytest

from molrmog.data import bounds, load

ROWS = np.array([[1.5, -2.0, 3.25], [0.125, 1e-3, -7.0], [100.0, 0.5, 2.0], [-3.5, 4.0, 1e5]])
NAMES = ["length", "width (cm)", "größe"]


def text(separator: str = ",", header: bool = True, decimal: str = ".", end: str = "\n") -> str:
    lines = [[repr(float(value)).replace(".", decimal) for value in row] for row in ROWS]
    return end.join(separator.join(cells) for cells in [NAMES] * header + lines) + end


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"separator": ";"},
        {"separator": "\t"},
        {"separator": "|"},
        {"separator": ";", "decimal": ","},
        {"separator": "\t", "decimal": ","},
        {"end": "\r\n"},
        {"end": "\r\n", "separator": ";"},
        {"header": False},
        {"header": False, "separator": ";", "decimal": ","},
    ],
)
def test_the_same_numbers_come_out(tmp_path, how, encoding):
    path = tmp_path / "table.csv"
    path.write_bytes(text(**how).encode(encoding))
    data = load(path)
    np.testing.assert_array_equal(data.x, ROWS)
    names = [column.name for column in data.account.columns]
    assert names == (NAMES if how.get("header", True) else ["column1", "column2", "column3"])


@pytest.mark.parametrize("suffix", [".tsv", ".tab", ".TSV", ".tsv.gz", ".csv.gz", ".data", ".txt"])
def test_suffixes_and_gzip(tmp_path, suffix):
    content = text("\t" if "t" in suffix.lower()[:3] and "txt" not in suffix else ",").encode()
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    np.testing.assert_array_equal(load(tmp_path / f"a{suffix}").x, ROWS)


@pytest.mark.parametrize(
    ("content", "rows", "columns"),
    [
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n6.0,2.2,virginica\n", 3, 2),  # no header: a word below words is no name
        ("label,0,1,2\n1,5,6,7\n0,8,9,9\n", 2, 3),
        ("0,1,2\n.5,1.5,2.5\n3.5,4.5,5.5\n", 2, 3),  # numbers that count the columns
        ("year,2010,2015\na,1,2\nb,3,4\n", 3, 2),
        ("name;1,5\na;2,5\n", 2, 1),
        ("# u,v\n1,2\n3,4\n", 2, 2),
        ('"u","v"\n"1","2"\n"3","4"\n', 2, 2),
        ("u\n1\n2\n\n", 2, 1),
        ("u, v\n1, 2\n3, 4\n", 2, 2),
    ],
)
def test_headers_are_told_from_numbers(tmp_path, content, rows, columns):
    (tmp_path / "a.csv").write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load(tmp_path / "a.csv", categories="one-hot")
    numbers = sum(column.fate == "used" and column.type != "string" for column in data.account.columns)
    assert (len(data), numbers) == (rows, columns)


def test_a_type_may_change_far_below_the_head(tmp_path):
    values = np.r_[np.arange(500_000), [0.5]]
    (tmp_path / "a.csv").write_text("n,m\n" + "".join(f"{value:g},1.5\n" for value in values))
    data = load(tmp_path / "a.csv")
    np.testing.assert_allclose(data.x[:, 0], [float(f"{value:g}") for value in values])


def test_quoted_lines_and_text_with_separators(tmp_path):
    (tmp_path / "a.csv").write_text('u,note,v\n1,"a, b\nc",2\n3,"d ""e""",4\n')
    assert load(tmp_path / "a.csv", drop="note").x.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("cell", ["", "NA", "NaN", "nan", "null", "N/A", "?", "None"])
def test_missing_cells_are_refused_by_name(tmp_path, cell):
    (tmp_path / "a.csv").write_text(f"age,height\n1,2\n3,{cell}\n5,6\n")
    with pytest.raises(ValueError, match=r"a\.csv: column height .*row 1.*drop=height") as error:
        load(tmp_path / "a.csv")
    assert "\n" not in str(error.value)
    assert load(tmp_path / "a.csv", drop="height").x.tolist() == [[1], [3], [5]]


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"u,v\n1,2\n3\n", b"\x00\x01\x02" * 50, b"\xff\xfe", b"u,v\n1,\xff\xfe\n2,3\n", b"u,v\n"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_table_gets_one_line(tmp_path, content, packed):
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"a\.csv") as error:
        load(path)
    assert "\n" not in str(error.value)
    if packed:
        path.write_bytes(gzip.compress(text().encode())[:-12])
        with pytest.raises(ValueError, match=r"a\.csv\.gz: damaged"):
            load(path)


def test_a_small_file_does_not_unpack_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "_FREELY", 2**16)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"u,v\n" + b"1,2\n" * 10**6))
    with pytest.raises(ValueError, match=r"a\.csv\.gz: .* unpack to .* are not read") as error:
        load(path)
    assert "\n" not in str(error.value)
