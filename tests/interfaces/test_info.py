"""`molrmog info` of data: what it says is what a look at the file says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from molrmog.data import Dataset
from molrmog.data.profile import profile
from molrmog.interfaces.cli import main

pytestmark = pytest.mark.filterwarnings("always::UserWarning")  # what was left out is told on stderr

READING = ("--label-column", "--columns", "--drop", "--categories", "--background", "--image-size", "--data-dir")


def said(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["info", *map(str, words)])
    found = capsys.readouterr()
    return code, " ".join(found.out.split()), found.err


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 200)).round(3)
    rows = [f"{i},{u[i]},{u[i]},7,{v[i]},{'ab'[i % 2]}" for i in range(199)]
    path.write_text("\n".join(["id,first,again,same,other,kind", *rows, rows[0].replace("0,", "199,", 1)]) + "\n")
    return path, u, v


def test_everything_about_a_table_is_said(table, capsys):
    path, _, v = table
    code, out, err = said(capsys, path, "--label-column", "kind")
    assert code == 0
    for line in (
        "data table.csv, CSV",
        "rows 200",
        "shape 4",
        "columns 4 of 6 used",
        "id int64, left out: it only tells the rows apart",
        "kind string, the labels",
        "labels 2 classes, 99 to 101 rows each",
        "classes a: 101, b: 99",
        "constant 1 of 4 columns: same",
        "copies 1 columns: again of first",
        "repeated 1 rows are copies of earlier ones",
        "missing no values",
        "holds out 20 rows of these",
        "chooses subspaces, dimensions, modes and noise from them, computed in float64",
    ):
        assert line in out, line
    low, high = re.search(r"other double, (\S+) to (\S+)", out).groups()
    other = np.r_[v[:199], v[0]]
    assert (float(low), float(high)) == (pytest.approx(other.min(), rel=1e-3), pytest.approx(other.max(), rel=1e-3))
    assert "column id left out" in err


def test_a_table_that_is_refused_is_shown_and_refused(table, capsys):
    path, *_ = table
    code, out, err = said(capsys, path)
    assert code == 1
    assert "kind string, refused: holds text such as 'a'" in out
    assert "again double" in out
    assert err.strip().splitlines()[-1].startswith("molrmog: error: table.csv: column kind holds text")


def test_a_fit_that_would_be_refused_is_foretold(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("u,v\n1,2.5\n3,4.5\n5,6\n")
    code, out, _ = said(capsys, tmp_path / "a.csv")
    assert code == 0
    assert "a fit refused: a.csv: fraction 0.9 of 3 rows leaves an empty part" in out
    assert main(["fit", str(tmp_path / "a.csv"), "--out", str(tmp_path / "run")]) == 1


def test_every_command_that_reads_data_has_the_same_options(capsys):
    for command in ("fit", "train", "info"):
        main([command, "--help"])
        usage = capsys.readouterr().out
        assert all(option in usage for option in READING), command


@pytest.mark.slow
def test_options_of_reading_are_kept_with_the_run(table, tmp_path, capsys):
    path, *_ = table
    how = ["--label-column", "kind", "--drop", "same,again"]
    fit = ["fit", str(path), "--out", str(tmp_path / "run"), "--labels", "--modes", "1", "--no-evaluate", *how]
    assert main(fit) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "20", "--features", "[pca]"]) == 0
    _, out, _ = said(capsys, tmp_path / "run")
    assert "dimension 2" in out
    assert "subspaces 2" in out
    again = ["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    model = "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "again" / model).read_bytes()


def test_a_profile_is_what_a_look_at_every_pair_says():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (40, 12)).astype(float)
    x[:, 5], x[:, 7], x[:, 9] = x[:, 2], 4.0, x[:, 2]
    x[30:33] = x[3]
    look = profile(Dataset(name="a", x=x, shape=(12,)))
    np.testing.assert_array_equal(look.low, x.min(0))
    np.testing.assert_array_equal(look.high, x.max(0))
    assert look.constant == [7]
    assert look.copies == [(2, 5), (2, 9)]
    assert look.repeated == 40 - len(np.unique(x, axis=0))
