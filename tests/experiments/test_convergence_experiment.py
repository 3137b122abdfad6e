"""The laws, minima and starts of the experiment, and a small run from end to end."""

import csv
import json
import math

import pytest
import torch

from molrmog.experiments import convergence
from molrmog.experiments.convergence import BUDGETS, ConvergenceBudget, run_convergence
from molrmog.experiments.convergence_cells import LAWS, Problem, compute_cell, mode_start, true_law
from molrmog.theory.convergence import predicted_rate, separation
from molrmog.theory.descent import gradient
from molrmog.theory.distances import law_distance

TINY = ConvergenceBudget(
    gammas=(0.8, 0.7),
    laws=("tied", "pair"),
    seeds=1,
    population=256,
    empirical=500,
    methods=(0.7,),
    learning_rates=(0.1,),
    draws=2,
    basin_gammas=(0.7,),
    basin_rows=128,
    sizes=(0.1, 3.0),
    starts=2,
    start_rows=500,
)


def settings(law="four", gamma=0.6, loss="population", rows=512, **given):
    return {"law": law, "gamma": gamma, "loss": loss, "rows": rows, "seed": 0, **given}


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_separated_and_weights_fall(name):
    law = true_law(name)
    assert separation(law) > 4
    assert all(bool((law.subspace(k).mode_weights.diff() <= 0).all()) for k in range(law.subspaces))
    assert law_distance(law, true_law(name)).total < 1e-14
    assert sum(law.modes) == (2 if name in ("tied", "pair") else 4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["population", "empirical"])
@pytest.mark.parametrize("law", ["tied", "four"])
def test_a_problem_stands_at_its_minimum(law, loss):
    problem = Problem.of(settings(law=law, loss=loss))
    assert problem.s**2 + problem.gamma**2 == pytest.approx(1)
    assert float(gradient(problem.loss, problem.limit).norm()) < 1e-9
    apart = law_distance(problem.limit_law, problem.truth).total
    assert apart < 1e-14 if loss == "population" else 0.01 < apart < 1


def test_the_rate_of_far_modes_is_the_closed_form():
    # At gamma = 0.35 the two modes do not overlap, and the means alone bound the spectrum.
    problem = Problem.of(settings(law="pair", gamma=0.35))
    rate = predicted_rate(problem.loss.hessian(problem.limit), problem.loss.gauge(problem.limit))
    assert rate.kappa == pytest.approx(0.35**-4, rel=1e-6)
    assert rate.alpha == pytest.approx(0.5 * problem.s**2, rel=1e-6)


@pytest.mark.parametrize("kind", ["k-means", "em"])
def test_starts_name_their_modes_by_weight(kind):
    law = true_law("four")
    start = mode_start(law, kind, 4000, 0)
    assert law_distance(start, law).modes == ((0, 1, 2, 3),)
    assert law_distance(start, law).total < 0.5
    torch.testing.assert_close(start.mode_weights, law.mode_weights)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("convergence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "smoke", TINY)
        return out, run_convergence(out, "smoke")


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_small_run_shows_what_the_experiment_is_about(small):
    out, page = small
    rates = table(out / "rates.csv")
    assert len(rates) == 8
    for row in rates:
        measured, predicted = float(row["measured"]), float(row["predicted"])
        assert abs(math.log(measured) / math.log(predicted) - 1) < 0.05
        assert float(row["log_ratio"]) == pytest.approx(math.log(measured) / math.log(predicted))
    iterations = {
        row["method"]: int(row["iterations"]) for row in table(out / "methods.csv") if float(row["error"]) == 1e-4
    }
    assert iterations["EM"] < iterations["Gauss-Newton"] + 5 < iterations["gradient descent"]
    limits = table(out / "limits.csv")
    assert [row["seed"] for row in limits] == ["0", "1"]
    methods = {row["method"]: float(row["limit_from_truth"]) for row in table(out / "methods.csv")}
    assert float(limits[0]["minimum_from_truth"]) == pytest.approx(methods["gradient descent"])
    assert float(limits[0]["em_limit_from_truth"]) == pytest.approx(methods["EM"])
    assert float(limits[1]["em_limit_from_truth"]) != pytest.approx(methods["EM"])
    found = {(row["law"], row["method"], row["start"]): int(row["found"]) for row in table(out / "basins.csv")}
    for law in ("tied", "pair"):
        assert found[law, "gradient descent", "0.1"] == 2
        assert found[law, "gradient descent", "3"] == 0
        assert found[law, "Gauss-Newton", "0.1"] == 2
    assert found["pair", "EM", "0.1"] == 2
    text = page.read_text(encoding="utf-8")
    assert "two modes ±μ, tied" in text
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_same_call_again_computes_nothing_and_writes_the_same(small, monkeypatch):
    out, page = small
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert json.loads(before["settings.json"])["budget"] == "smoke"
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    monkeypatch.setattr(convergence, "compute_cell", None)  # cannot be called
    assert run_convergence(out, "smoke") == page
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_cell_is_the_same_each_time(tmp_path):
    cell = settings(law="tied", gamma=0.8, kind="rate")
    assert compute_cell(cell, tmp_path) == compute_cell(cell, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"budget": "huge"}, "unknown budget 'huge': choose one of smoke, cpu, gpu"), ({"workers": 0}, "at least one")],
)
def test_what_does_not_fit_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run_convergence(tmp_path, **given)
    assert not list(tmp_path.iterdir())
