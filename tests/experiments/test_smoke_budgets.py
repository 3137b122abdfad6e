"""The smoke budget of every experiment of the theory, by the words of the command line."""

import csv
import json

import pytest

from molrmog.interfaces.cli import main


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
