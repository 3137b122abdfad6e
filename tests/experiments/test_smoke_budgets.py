"""The smoke budget of every experiment of the theory, by the words of the command line."""

import csv
import json

import pytest

from molrmog.interfaces.cli import main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["estimation", "curvature", "convergence", "overlap", "subspaces"])
def test_a_smoke_run_leaves_a_page_tables_and_its_settings(name, tmp_path, capsys):
    out = tmp_path / name
    assert main(["reproduce", name, "--budget", "smoke", "--workers", "1", "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("<table") >= 2
    assert "data:image/svg+xml" in page
    assert json.loads((out / "settings.json").read_text())["budget"] == "smoke"
    for path in out.glob("*.csv"):
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len(rows) > 1, f"{path.name} holds no row"
        assert len({len(row) for row in rows}) == 1
    assert list(out.glob("*.csv"))


def test_a_folder_belongs_to_one_experiment(tmp_path, capsys):
    out = tmp_path / "own"

    def refused(*words):
        code = main(["reproduce", *words, "--workers", "1"])
        return code == 1 and capsys.readouterr().err.strip().splitlines()[0]

    assert main(["reproduce", "subspaces", "--workers", "1", "--out", str(out)]) == 0
    assert main(["info", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "holds seed 0, not 3: name another folder" in refused("subspaces", "--seed", "3", "--out", str(out))
    assert "holds budget smoke, not cpu" in refused("subspaces", "--budget", "cpu", "--out", str(out))
    assert "holds experiment subspaces, not curvature" in refused("curvature", "--out", str(out))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert "is not empty" in refused("subspaces", "--out", str(tmp_path / "notes"))
    assert "is a file" in refused("subspaces", "--out", str(tmp_path / "notes" / "notes.txt"))
