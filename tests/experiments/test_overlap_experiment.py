"""Laws at a distance by hand, where an eigenvalue turns, data that are missing, and a small run from end to end."""

import csv
import json

import pytest
import torch

from molrmog.data import load_parts
from molrmog.experiments import overlap
from molrmog.experiments.overlap import BUDGETS, DATA, KINDS, Latents, OverlapBudget, law_at_distance, run_overlap
from molrmog.experiments.overlap_page import lost_at


@pytest.mark.parametrize("kind", KINDS)
def test_means_are_at_the_distance_and_factors_orthonormal(kind):
    law = law_at_distance(kind, 3.0, 0)
    for k in range(law.subspaces):
        part = law.subspace(k)
        apart = torch.cdist(part.means, part.means)
        n = len(part.means)
        torch.testing.assert_close(apart, 3.0 * (1 - torch.eye(n, dtype=torch.float64)))
        assert part.tau == 0.0
        for U in part.factors:
            torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))
    assert torch.equal(law_at_distance(kind, 0.0, 0).factor, law.factor)  # nothing else moves along a sweep


def test_an_eigenvalue_is_lost_at_the_least_overlap_where_it_is_not_positive():
    values = {0.25: -1.0, 0.2: 2.0, 0.1: 0.0, 0.05: 1.0, 0.01: 1.0}
    curve = [{"eps": eps, "value": value} for eps, value in values.items()]
    assert lost_at(curve, "value") == (0.05, 0.1)
    assert lost_at(curve[2:3], "value") == (0.0, 0.1)
    assert lost_at(curve[3:], "value") is None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    budget = OverlapBudget((0.1, 2.0), (4.0,), ("digits", "nowhere"), 400, (0.5,), (0.0, 1.0, 4.0), (0.1,), 1, 1, 400)
    out = tmp_path_factory.mktemp("overlap")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "tiny", budget)
        patch.setitem(DATA, "digits", Latents("digits", latent_dim=4, modes=(2,), experts=2))
        patch.setitem(DATA, "nowhere", Latents("no-such-set"))
        yield out, run_overlap(out, "tiny"), lambda: run_overlap(out, "tiny")


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_small_run_shows_overlap_and_curvature(small):
    out, page, _ = small
    overlaps = table(out / "overlap.csv")
    for row in overlaps:
        assert float(row["eps_low"]) >= 0
        assert float(row["eps_high"]) <= 0.3
        assert float(row["mean_pair"]) <= float(row["largest_pair"]) <= float(row["eps"]) + 1e-15
    noisier = {sigma: [float(r["eps"]) for r in overlaps if float(r["sigma"]) == sigma] for sigma in (0.1, 2.0)}
    assert sum(noisier[2.0]) > 2 * sum(noisier[0.1])
    scopes = {(row["name"], row["of"], row["expert"], row["rows"]) for row in overlaps if row["part"] == "data"}
    modes = {("digits", "modes", expert, rows) for expert in ("0", "1", "") for rows in ("fresh", "held-out")}
    assert scopes == modes | {("digits", "subspaces", "", rows) for rows in ("fresh", "held-out")}
    # An expert's held-out rows are fewer than the 400 asked for: they are noised again, and count once.
    own = {row["expert"]: int(row["measured_rows"]) for row in overlaps if row["rows"] == "held-out" and row["expert"]}
    assert all(count < 400 for count in own.values())
    assert sum(own.values()) == len(load_parts("digits")[1].x)

    points = table(out / "curvature.csv")
    assert {row["kind"] for row in points} == set(KINDS)
    for row in points:
        # Modes of equal weight w and orthonormal U: w s^2 and w s^2 / gamma^4 at gamma / s = 0.5.
        weight = 0.5 if row["kind"] == "pair" else 0.25
        assert float(row["alpha"]) == pytest.approx(0.8 * weight)
        assert float(row["separated_largest"]) == pytest.approx(0.8 * weight / 0.2**2)
    together = next(row for row in points if row["kind"] == "pair" and float(row["distance"]) == 0)
    assert abs(float(together["smallest"])) < 1e-10 < float(together["eps"])
    assert float(together["near 0.1"]) < 0

    text = page.read_text(encoding="utf-8")
    assert "nowhere is left out" in text
    assert "unknown data set" in text
    assert text.count("data:image/svg") == 4
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_same_call_again_computes_nothing_and_writes_the_same(small, monkeypatch, capsys):
    out, page, again = small
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert set(json.loads(before["settings.json"])["missing"]) == {"nowhere"}
    for name in ("compute_random", "compute_data", "compute_curvature"):
        monkeypatch.setattr(overlap, name, None)  # cannot be called
    assert again() == page
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "left out" in line)
    assert line.startswith("overlap: nowhere is left out (unknown data set")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"budget": "huge"}, "unknown budget 'huge': choose one of smoke, cpu, gpu"), ({"seed": -1}, "a seed >= 0")],
)
def test_what_does_not_fit_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run_overlap(tmp_path, **given)
    assert not list(tmp_path.iterdir())
