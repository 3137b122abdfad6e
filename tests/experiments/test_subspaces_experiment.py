"""Counting and thresholds by hand, one cell of every setting, and a small run from end to end."""

import csv
import json

import pytest
import torch

from molrmog.experiments import subspaces
from molrmog.experiments.subspaces import (
    BUDGETS,
    METHODS,
    SETTINGS,
    SubspacesBudget,
    compute_cell,
    rates,
    run_subspaces,
    threshold,
)


def record(d, rows, angle):
    return {"d": d, "rows": rows, "angle": angle}


def test_rates_count_laws_below_the_bound():
    records = [record(2, 4, 3.0), record(2, 4, 30.0), record(2, 8, 0.1), record(3, 4, 90.0)]
    assert rates(records) == {(2, 4): 0.5, (2, 8): 1.0, (3, 4): 0.0}
    assert rates(records, 1.0) == {(2, 4): 0.0, (2, 8): 1.0, (3, 4): 0.0}


def test_a_threshold_is_where_the_rate_stays():
    rate = {(2, 2): 1.0, (2, 4): 0.5, (2, 8): 1.0, (2, 16): 1.0, (3, 8): 0.0}
    assert threshold(rate, 2, 1.0) == 8
    assert threshold(rate, 2, 0.5) == 2
    assert threshold(rate, 3, 0.5) is None


@pytest.mark.parametrize("name", SETTINGS)
def test_a_cell_measures_every_method_on_the_same_rows(tmp_path, name):
    settings = {
        "setting": vars(SETTINGS[name]),
        "dim": 10,
        "latent_dim": 2,
        "rows": [8],
        "seeds": [0],
        "starts": {"K-subspaces": 8, "score": 1, "EM": 1},
        "steps": 2,
    }
    runs = compute_cell(settings, tmp_path)["runs"]
    assert {run["method"] for run in runs} == set(METHODS)
    angle = {(run["method"], run["start"]): run["angle"] for run in runs}
    assert len(angle) == 7
    bound = 15.0 if name == "noisy" else 1e-5
    assert angle["PCA", "labels"] < bound
    assert angle["K-subspaces", "near"] < bound
    assert angle["score", "near"] > 1.0  # two steps are not enough


def test_random_starts_know_nothing_of_the_law():
    """A generator seeded like the law would hand out its bases again."""
    law = SETTINGS["clean"].draw(24, 3, 5)
    seen = []

    def minimise(x, bases):
        seen.append(bases)
        return bases, torch.zeros(len(bases))

    for seed in range(20):
        parts = [law.sample(3, subspace=k).x for k in range(2)]
        subspaces._by_bases(minimise, law, parts, 5, torch.Generator().manual_seed(2_000_000 + seed))
    overlap = torch.linalg.svdvals(torch.cat(seen)[..., None, :, :, :].mT @ law.basis.transpose(0, 1)[:, None])
    at_random, near = overlap.unflatten(0, (20, 6)).split([5, 1], 1)
    assert float(at_random.amin(-1).max()) < 0.8  # of the least cosine
    assert float((near[..., 0, :, :] - near[..., 1, :, :]).abs().max()) > 0.1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    budget = SubspacesBudget(("clean",), 12, (2,), (2, 3, 8), 2, {"K-subspaces": 16, "score": 2, "EM": 2}, 60)
    out = tmp_path_factory.mktemp("subspaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "tiny", budget)
        yield out, run_subspaces(out, "tiny"), lambda: run_subspaces(out, "tiny")


@pytest.mark.slow
def test_a_small_run_shows_what_labels_are_worth(small):
    out, page, _ = small
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 7
    for row in rows:
        if row["method"] == "PCA":
            assert float(row["angle"]) < 1e-5
        if row["rows"] == "8" and row["method"] != "score":
            assert float(row["angle"]) < 1e-4
    text = page.read_text(encoding="utf-8")
    assert "recovered from N_k = d rows, labels known" in text
    assert text.count("data:image/svg") == 2
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_same_call_again_computes_nothing_and_writes_the_same(small, monkeypatch):
    out, page, again = small
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert json.loads(before["settings.json"])["bound"] == 10.0
    monkeypatch.setattr(subspaces, "compute_cell", None)  # cannot be called
    assert again() == page
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [({"budget": "huge"}, "unknown budget 'huge': choose one of smoke, cpu, gpu"), ({"workers": 0}, "at least one")],
)
def test_what_does_not_fit_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run_subspaces(tmp_path, **given)
    assert not list(tmp_path.iterdir())
