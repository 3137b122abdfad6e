"""The curvature experiment: its laws are what they are said to be, and a small run from end to end."""

import csv
import json
import math

import pytest
import torch

from molrmog.experiments import curvature
from molrmog.experiments.curvature import BUDGETS, CurvatureBudget, run_curvature
from molrmog.experiments.curvature_cells import compute_cell, crossed_law, symmetric_law, two_subspaces

TINY = CurvatureBudget(
    gammas=(0.5,),
    separations=(14,),
    modes=(2,),
    laws=1,
    draws=1,
    radius={2: (6.0,)},
    rows=60,
    independent=(200,),
    directions=1,
    turns=0,
    large=(10, 1, 3, 2, 1),
)


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_symmetric_law_has_its_separation_and_angle(degrees):
    part = symmetric_law(6.0, rank=2, degrees=degrees).subspace(0)
    mu, U = part.means[0], part.factors[0]
    torch.testing.assert_close(part.means[1], -mu)
    torch.testing.assert_close(U.T @ U, torch.eye(2, dtype=U.dtype))
    assert float((mu - part.means[1]).norm()) == pytest.approx(6)
    assert float((U.T @ mu).norm()) == pytest.approx(3 * math.cos(math.radians(degrees)), abs=1e-12)


@pytest.mark.parametrize("modes", [4, 8])
def test_crossed_law_has_nearest_modes_at_its_separation(modes):
    part = crossed_law(modes, 5.0).subspace(0)
    apart = torch.cdist(part.means, part.means)
    assert float(apart[apart > 1e-9].min()) == pytest.approx(5)
    assert float(part.mode_weights.max() / part.mode_weights.min()) > 1.2


@pytest.mark.parametrize("seed", [0, 1])
def test_two_subspaces_have_the_nearest_means_at_their_separation(seed):
    law = two_subspaces(4.0, seed)
    means = torch.cat([law.subspace(k).offset + law.subspace(k).means @ law.subspace(k).basis.T for k in range(2)])
    assert float(torch.pdist(means).min()) == pytest.approx(4)


@pytest.mark.slow
def test_radius_cell_agrees_with_itself(tmp_path):
    where = {"kind": "radius", "modes": 2, "gamma": 0.5, "separation": 6.0, "directions": 1, "turns": 1}
    (record,) = compute_cell({**where, "seed": 0, "rows": 100}, tmp_path)["records"]
    assert record["parameters"] == 24
    assert record["gauge"] == 2
    # Separated modes of weight 1/2: w s^2 and w s^2 / gamma^4. The worst direction is the worst on unseen rows, too.
    assert (record["smallest"], record["largest"]) == pytest.approx((0.375, 6.0), rel=1e-3)
    assert 0 < record["worst"] < 0.9 * min(*record["random"], record["along_largest"])


def test_unknown_budget():
    with pytest.raises(ValueError, match="choose one of smoke, cpu, gpu"):
        run_curvature("out", budget="large")
    assert set(BUDGETS) == {"smoke", "cpu", "gpu"}


@pytest.mark.slow
def test_a_small_run_leaves_page_table_and_settings_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setitem(curvature.BUDGETS, "smoke", TINY)
    page = run_curvature(tmp_path, budget="smoke", workers=1)
    text = page.read_text()
    for heading in ("The spectrum at the truth", "The printed U-block", "How far convexity reaches", "A large law"):
        assert heading in text
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    kinds = {"spectrum", "blocks", "rows", "angle", "radius", "shift", "parameters", "large"}
    assert {row["kind"] for row in rows} == kinds
    angle = {row["what"]: float(row["value"]) for row in rows if row["where"] == "degrees=90"}
    assert abs(angle["printed"]) < 1e-9 < angle["exact"] == pytest.approx(angle["measured"])
    assert json.loads((tmp_path / "settings.json").read_text())["budget"] == "smoke"
    kept = (tmp_path / "results.csv").read_bytes()
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/cell.json")}
    run_curvature(tmp_path, budget="smoke", workers=1)
    assert (tmp_path / "results.csv").read_bytes() == kept
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/cell.json")} == cells
