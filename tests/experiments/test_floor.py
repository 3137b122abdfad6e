"""The excess against Monte Carlo of the loss, the nats against exact divergences, and a small run from end to end."""

import csv
import json
import math

import pytest
import torch

from molrmog.denoisers.mog import MoGDenoiser
from molrmog.experiments import floor
from molrmog.experiments.floor import (
    BUDGETS,
    FloorBudget,
    TrueLaw,
    WatchedMatching,
    compute_cell,
    excess_loss,
    missing_nats,
    run_floor,
    start_law,
)
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.score_matching import ScoreMatching
from molrmog.schedules import VPSchedule


def a_law(seed=0, **given):
    shape = {"dim": 6, "latent_dims": (2, 3), "modes": (2, 1), "rank": 2, "noise": 0.2, **given}
    return MoLRMoG.random(seed=seed, dtype=torch.float64, **shape).requires_grad_(False)


def moved(law, seed=1, size=0.1):
    """A law near another one."""
    network = MoGDenoiser(law)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.law.named_parameters():
            if name not in ("basis", "tau"):
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    network.retract_()
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_truth_has_no_excess(dtype):
    law = a_law().to(dtype)
    found = excess_loss(MoGDenoiser(law), law, law.sample(500).x)
    assert found.excess <= 1e-12
    assert found.share <= 1e-12
    assert found.floor > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{}, {"weighting": "eps", "levels": "log-snr"}])
def test_loss_is_floor_plus_excess(loss):
    law = a_law()
    network = moved(law, size=0.3)
    x = law.sample(200_000, torch.Generator().manual_seed(3)).x
    found = excess_loss(network, law, x, seed=4, **loss)
    sampled = ScoreMatching(network, VPSchedule(), **loss)
    with torch.no_grad():
        rows = sampled(x, *sampled.draw(len(x), torch.Generator().manual_seed(5)))
    error = math.hypot(found.standard_error, found.floor_error, float(rows.std()) / math.sqrt(len(x)))
    assert found.excess > 5 * error
    assert float(rows.mean()) == pytest.approx(found.excess + found.floor, abs=4 * error)
    assert found.share == found.excess / found.floor


def test_nats_of_two_gaussians_are_their_divergence():
    p = MoLRMoG.random(dim=5, latent_dims=(3,), modes=(1,), noise=0.3, seed=0, dtype=torch.float64)
    network = moved(p.requires_grad_(False), size=0.2)
    with torch.no_grad():
        network.law.tau *= 1.3
    x = p.sample(100_000, torch.Generator().manual_seed(0)).x

    def gaussian(law):
        part = law.subspace(0)
        factor = part.basis @ part.factors[0]
        covariance = factor @ factor.T + part.tau**2 * torch.eye(5, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(part.offset + part.basis @ part.means[0], covariance)

    exact = float(torch.distributions.kl_divergence(gaussian(p), gaussian(network.law)))
    nats, error = missing_nats(network, p, x)
    assert error < 0.02 * exact
    # What lies beyond the ends of the schedule is far less than the error.
    assert nats == pytest.approx(exact, abs=4 * error)


@pytest.mark.slow
def test_nats_are_the_log_likelihood_that_a_mixture_lacks():
    p = a_law()
    network = moved(p)
    x = p.sample(100_000, torch.Generator().manual_seed(0)).x
    with torch.no_grad():
        gap = p.log_prob(x) - network.law.log_prob(x)
    nats, error = missing_nats(network, p, x)
    assert nats > 10 * error
    assert nats == pytest.approx(float(gap.mean()), abs=4 * math.hypot(error, float(gap.std()) / math.sqrt(len(x))))


def test_watched_training_is_score_matching_and_its_validation_is_the_excess():
    law = a_law()
    network = moved(law)
    watched = WatchedMatching(network, law, VPSchedule())
    plain = ScoreMatching(network, VPSchedule())
    x = law.sample(64).x
    numbers = plain.draw(64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(watched.train()(x, *numbers), plain(x, *numbers), rtol=0, atol=0)
    exact = ScoreMatching(network, VPSchedule(), targets=law)
    torch.testing.assert_close(watched.eval()(x, *numbers), exact(x, *numbers))


@pytest.mark.parametrize("start", ["random", "k-means", "em"])
def test_starts_have_the_shape_and_the_subspaces_of_the_truth(start):
    shape = TrueLaw(dim=8, subspaces=2, latent_dim=3, modes=2, rank=3, noise=0.1)
    truth = shape.draw(0)
    drawn = truth.sample(4000, torch.Generator().manual_seed(0))
    found = start_law(start, shape, drawn.x, drawn.subspace, 0, restarts=2)
    assert (found.latent_dims, found.modes, found.ranks) == (truth.latent_dims, truth.modes, truth.ranks)
    torch.testing.assert_close(found.subspace_weights, truth.subspace_weights, rtol=0, atol=0.05)
    for k in range(2):
        overlap = found.subspace(k).basis.T @ truth.subspace(k).basis
        assert float(torch.linalg.svdvals(overlap).min()) > 0.9


def tiny(monkeypatch, **given):
    law = TrueLaw(dim=4, subspaces=2, latent_dim=1, modes=2, rank=1, noise=0.2)
    chosen = {"laws": {"tiny": law}, "seeds": 1, "rows": 500, "held_out": 400, "steps": 8, "restarts": 2, **given}
    monkeypatch.setitem(BUDGETS, "tiny", FloorBudget(**chosen))
    return floor._settings(law, BUDGETS["tiny"], 0, "cpu")


@pytest.mark.slow
def test_a_cell_that_was_stopped_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    settings = tiny(monkeypatch)
    times = ("start_seconds", "start_cpu_seconds", "seconds", "cpu_seconds")

    def figures(folder):
        runs = compute_cell(settings, folder)["runs"]
        return [{key: value for key, value in run.items() if key not in times} for run in runs]

    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole = figures(tmp_path / "whole")
    assert [run["run"] for run in whole] == ["em", "em-clustered", "random", "k-means", "k-means-exact", "em-start"]
    for stop in (4, 12, 20):  # calls of report_progress, so in the middle of trainings, not at their checkpoints
        calls = []

        def stopping(*_, calls=calls, stop=stop):
            calls.append(0)
            if len(calls) == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(floor, "report_progress", stopping)
            with pytest.raises(KeyboardInterrupt):
                compute_cell(settings, tmp_path / "stopped")
    assert figures(tmp_path / "stopped") == whole


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("floor")
    return out, run_floor(out, "smoke", workers=2)


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_smoke_run_shows_what_the_experiment_is_about(smoke):
    out, page = smoke
    assert page == out / "report.html"
    runs = {(row["law"], row["run"]): row for row in table(out / "results.csv")}
    share = {run: float(row["share"]) for (law, run), row in runs.items() if law == "d8-k1"}
    assert max(share["em"], share["em-start"]) < 0.01
    assert share["random"] > 10 * share["em-start"]
    from_em, em = runs["d8-k1", "em-start"], runs["d8-k1", "em"]
    true = float(em["true_log_likelihood"])
    assert abs(float(from_em["log_likelihood"]) - float(em["log_likelihood"])) < 0.01 * abs(true)
    curves = {(row["law"], row["run"], int(row["step"])): float(row["share"]) for row in table(out / "curves.csv")}
    assert curves["d8-k1", "em-start", 0] < curves["d8-k1", "random", 40]
    assert len(table(out / "times.csv")) == len(runs)
    text = page.read_text(encoding="utf-8")
    assert "D = 8, K = 1, n = 2, d = 3, r = 2, τ = 0.2" in text
    assert "edm" in text
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_same_call_again_computes_nothing_and_writes_the_same(smoke, monkeypatch):
    out, page = smoke
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    settings = json.loads(before["settings.json"])
    assert settings["budget"] == "smoke"
    assert settings["cells"]["d8-k1-seed0"]["score_matching"]["em-start"]["learning_rate"] == 0.003
    monkeypatch.setattr(floor, "compute_cell", None)  # cannot be called
    assert run_floor(out, "smoke") == page
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [({"budget": "huge"}, "unknown budget 'huge': choose one of smoke, cpu, gpu"), ({"workers": 0}, "at least one")],
)
def test_what_does_not_fit_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run_floor(tmp_path, **given)
    assert not list(tmp_path.iterdir())
