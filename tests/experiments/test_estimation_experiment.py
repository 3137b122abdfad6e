"""A small run from end to end, what its records say, and the methods it compares."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from molrmog import MoLRMoG
from molrmog.experiments import estimation
from molrmog.experiments.estimation import BUDGETS, run_estimation
from molrmog.experiments.estimation_cells import flat_law
from molrmog.experiments.estimation_page import _few, _growth, _needed, _slope

TINY = replace(
    BUDGETS["smoke"],
    rows=(64, 256),
    dim=13,
    dims=(13, 40),
    dim_rows=128,
    repeats=1,
    compared=(13, 40),
    shape_rows=128,
    shapes={"subspaces": (1, 2), "modes": (1, 2), "latent_dim": (2, 3)},
    dsm_rows=(64,),
    pool=1024,
    few_rows=(32, 64),
    peer_dims=(14,),
    peer_rows=(64, 128),
    fresh=64,
    steps=5,
)


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setitem(estimation.BUDGETS, "smoke", TINY)
    page = run_estimation(tmp_path, budget="smoke", workers=1)
    with (tmp_path / "results.csv").open() as file:
        records = list(csv.DictReader(file))
    assert {r["sweep"] for r in records} == set(TINY.seeds)
    assert all(float(r["error"]) >= 0 and math.isfinite(float(r["error"])) for r in records)
    known = [float(r["error"]) for r in records if (r["sweep"], r["method"], r["seed"]) == ("dim", "known", "0")]
    assert len(known) == 2
    assert known[1] == pytest.approx(known[0], rel=1e-6)  # the error is free of D
    peers = {r["method"] for r in records if r["sweep"] == "peers"}
    assert peers == {"scale", "known", "learned", "kernel", "flat", "mlp"}
    text = page.read_text()
    assert "Error against D" in text
    assert "nan" not in text.lower().replace("nanmean", "")
    assert json.loads((tmp_path / "settings.json").read_text())["budget"] == "smoke"

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/cell.json")}
    (tmp_path / "cells" / "n-seed0" / "cell.json").unlink()
    run_estimation(tmp_path, budget="smoke", workers=1)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/cell.json")}
    assert {path.parent.name for path in before if before[path] != after[path]} == {"n-seed0"}
    with (tmp_path / "results.csv").open() as file:
        again = [r for r in csv.DictReader(file) if r["sweep"] == "n"]
    assert again == [r for r in records if r["sweep"] == "n"]


def test_it_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="choose one of smoke, cpu, gpu"):
        run_estimation(tmp_path, budget="large")  # pyright: ignore
    with pytest.raises(ValueError, match="at least one worker"):
        run_estimation(tmp_path, workers=0)


def test_a_flat_law_is_the_same_density():
    law = MoLRMoG.random(7, [2, 3], [2, 1], rank=2, noise=0.2, offset=1.0, seed=0, dtype=torch.float64)
    flat = flat_law(law.requires_grad_(False))
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert flat.modes == (3,)
    assert flat.ranks == ((7, 7, 7),)
    assert torch.allclose(flat.log_prob(x, 0.8, 0.6), law.log_prob(x, 0.8, 0.6), atol=1e-12)


def test_rows_needed_are_read_off_between_two_sizes():
    n, error = [100, 1000, 10_000], [1.0, 0.1, 0.01]
    assert _needed(n, error, 0.05)[0] == pytest.approx(2000)
    assert _needed(n, error, 2.0)[1] == "≤ 100"
    found, text = _needed(n, error, 0.001)
    assert math.isnan(found)
    assert text == "> 10,000"


def test_slopes_of_known_records_are_found():
    records = [
        {"sweep": "n", "method": "known", "seed": seed, "gamma": gamma, "n": n, "error": (1 + seed) * gamma / n**2}
        for seed in range(3)
        for gamma in (0.2, 0.5)
        for n in (64, 256, 1024)
    ]
    assert _slope(records, "known").value == pytest.approx(-2)
    assert _slope(records, "known", None, least=256).value == pytest.approx(-2)
    learned = [
        {"sweep": "dim", "method": "learned", "seed": seed, "D": D, "n": 10, "error": (4 + 1.5 * D) / 10}
        for seed in range(2)
        for D in (16, 64, 256)
    ]
    assert _growth(learned) == pytest.approx((1.5, 1.5, 1.5))


def test_rows_needed_are_those_of_each_law():
    own = {"sweep": "few", "gamma": 0.5}
    records = [own | {"method": "scale", "seed": seed, "error": 100.0} for seed in range(2)]
    records += [
        own | {"method": "known", "seed": seed, "n": n, "repeat": one, "error": (1 + seed) * (50 + 20 * one) / n}
        for seed in range(2)
        for n in (16, 64, 256)
        for one in range(2)
    ]
    assert [found for found, _ in _few(records)] == pytest.approx([60, 120])
