"""CSV as programs export it: the numbers come out, or one line says why not; nothing is silent."""

from __future__ import annotations

import gzip
import io
import warnings

import numpy as np
import pytest

from molrmog.data import load

ROWS = [[1.5, 2.25], [3.5, 4.75], [5.5, 6.125]]


def read(tmp_path, content, name="a.csv", **options):
    """The data, and what the warning says."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(path, **options)
    return data, "; ".join(str(each.message) for each in caught)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sep=;\na;b\n1,5;2,25\n3,5;4,75\n5,5;6,125\n", ""),
        ("\ufeffsep=,\r\na,b\r\n1.5,2.25\r\n3.5,4.75\r\n5.5,6.125\r\n", ""),
        ("a,b,\n1.5,2.25,\n3.5,4.75,\n5.5,6.125,\n", "column3 left out: without a name or a value"),
        (
            "a;b;;;\n1,5;2,25;;;\n3,5;4,75;;;\n5,5;6,125;;;\n",
            "column3, column4, column5 left out: without a name or a value",
        ),
        ("a,b\n1.5,2.25,\n3.5,4.75,\n5.5,6.125,\n", "column3 left out: without a name"),
        ("1.5,2.25,\n3.5,4.75,\n5.5,6.125,\n", "column3 left out: without a name"),
        ("a,b,\n1.5,2.25\n3.5,4.75\n5.5,6.125\n", ""),
        (
            "# by X, in 2020\n#\na,b\n1.5,2.25\n3.5,4.75\n5.5,6.125\n",
            "2 lines above the table left out: # by X, in 2020",
        ),
        ("% m/s, kg\n1.5,2.25\n3.5,4.75\n5.5,6.125\n", ""),  # MATLAB's: the comment names the columns
        ('"a" "b"\n"1" 1.5 2.25\n"2" 3.5 4.75\n"3" 5.5 6.125\n', "without a name left out"),  # write.table of R
        ('"a","b"\n"1",1.5,2.25\n"2",3.5,4.75\n"3",5.5,6.125\n', "without a name left out"),
        ("a\tb\nu\t1.5\t2.25\nv\t3.5\t4.75\nw\t5.5\t6.125\n", "without a name left out"),
        ("  1.5   2.25 \n  3.5   4.75 \n  5.5   6.125\n", ""),
        ("a b\n1.5  2.25\n3.5\t4.75\n5.5  6.125\n", ""),
        ("0,1,2\n1.5,2.25,0\n3.5,4.75,0\n5.5,6.125,0\n", "first line, 0, 1, 2, taken as names"),
        ("0,1\n1.5,2.25\n3.5,4.75\n5.5,6.125\n", "first line, 0, 1, taken as names"),
        (",400,405\n0,1.5,2.25\n1,3.5,4.75\n2,5.5,6.125\n", "without a name left out"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_programs_add_is_understood(tmp_path, content, said, packed):
    content = gzip.compress(content.encode()) if packed else content
    data, found = read(tmp_path, content, "a.csv.gz" if packed else "a.csv")
    np.testing.assert_array_equal(data.x[:, :2], ROWS)
    assert (said in found) if said else not found


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("63,1,?,145\n67,1,4,160\n37,1,3,130\n", 3),  # a missing cell is no name
        ("NA,1.5\n2,2.5\n3,3.5\n", 3),
        ("0,1\n1,0\n1,1\n", 3),  # whole numbers in two columns count nothing
        ("1,2\n3,4\n", 2),
        ("1, 2\n3, 4\n", 2),
        ("1.5,2,3\n", 1),
        ("0,1,2\n", 1),
    ],
)
def test_no_row_of_numbers_is_lost_as_a_header(tmp_path, content, rows):
    path = tmp_path / "a.csv"
    path.write_text(content)
    gone = [f"column{j + 1}" for j, cell in enumerate(content.split("\n")[0].split(",")) if cell in ("?", "NA")]
    data, said = read(tmp_path, content, drop=gone or None)
    assert len(data) == rows
    counts = content.startswith(("0,1\n", "1,2\n", "1, 2\n"))
    assert counts == ("taken as numbers, not as names" in said)
    if gone:
        with pytest.raises(ValueError, match=rf"column {gone[0]} lacks 1 of {rows} values, the first in row 0"):
            load(path)


def test_numbers_that_may_be_names_or_thousands_are_said(tmp_path):
    data, said = read(tmp_path, "400,405,410\n0.5,0.1,0.25\n0.6,0.5,0.4\n")
    assert len(data) == 3
    assert "first line, 400, 405, 410, taken as numbers" in said
    data, said = read(tmp_path, "a;b\n1,234;5\n12,345;6\n")
    assert data.x[:, 0].tolist() == [1.234, 12.345]
    assert "1,234 read with a decimal comma, 1.234" in said


@pytest.mark.parametrize("how", [{}, {"fmt": "%10.4f"}, {"fmt": "%12g", "delimiter": ","}, {"header": "u v w"}])
@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "data"])
def test_savetxt_of_numpy(tmp_path, how, suffix):
    rows = np.random.default_rng(0).normal(size=(30, 3))
    written = io.BytesIO()
    np.savetxt(written, rows, **how)
    data, said = read(tmp_path, written.getvalue(), f"a.{suffix}")
    np.testing.assert_array_equal(data.x, np.loadtxt(io.BytesIO(written.getvalue()), delimiter=how.get("delimiter")))
    assert not said
    assert data.account.columns[0].name == ("u" if "header" in how else "column1")


def test_a_cell_between_tabs_stays_missing(tmp_path):
    with pytest.raises(ValueError, match="column"):
        read(tmp_path, "1\t\t2\n3\t4\t\n", "a.txt")


@pytest.mark.parametrize("separator", [",", ";", " "])
@pytest.mark.parametrize("header", [True, False])
def test_lines_longer_than_the_head(tmp_path, separator, header):
    rows = np.random.default_rng(0).normal(size=(4, 9000))
    lines = [separator.join(f"gene {j}".replace(" ", "_" * 9) for j in range(9000))] * header
    lines += [separator.join(repr(float(value)) for value in row) for row in rows]
    text = "\n".join(lines)
    data, said = read(tmp_path, text.replace(".", ",") if separator == ";" else text)
    np.testing.assert_array_equal(data.x, rows)
    assert not said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"u,v\n1,2\n3\n", r"a\.csv: a line has 1 cell in place of 2, '3'"),
        (b"u,v\n1,2\n3,4,5\n", r"a\.csv: a line has 3 cells in place of 2, '3,4,5'"),
        ("größe,v\n1,2\n".encode("latin-1"), r"a\.csv: the names of its columns are not UTF-8"),
        (b"u,v\n", r"a\.csv"),
        (b"u\n" + b"1.5 " * 40000 + b"\n", r"a\.csv"),
    ],
)
def test_what_is_refused_says_where(tmp_path, content, says):
    with pytest.raises(ValueError, match=says) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_texts_of_another_part_count_whatever_stands_around_their_name(tmp_path):
    (tmp_path / "train.csv").write_text("a, kind\n1.5,x\n2.5,z\n")
    (tmp_path / "test.csv").write_text("a, kind\n1.5,y\n2.5,z\n")
    assert load(tmp_path, label_column="kind").classes == ("x", "y", "z")
    assert load(tmp_path, "test", label_column="kind").classes == ("x", "y", "z")
