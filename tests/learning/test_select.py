"""The structure of a law from the rows."""

import numpy as np
import pytest
import torch

import molrmog
from molrmog.interfaces.cli import main
from molrmog.laws.molrmog import MoLRMoG


@pytest.fixture(scope="module")
def two_planes():
    law = MoLRMoG.random(8, (2, 2), (1, 1), noise=0.05, seed=1, offset=3.0, dtype=torch.float64)
    return law, law.sample(400, torch.Generator().manual_seed(0)).x.detach().numpy()


def test_it_comes_near_the_law_that_rows_came_from(two_planes):
    truth, x = two_planes
    fresh = truth.sample(4000, torch.Generator().manual_seed(1)).x.detach().numpy()
    law = molrmog.fit(x)
    with torch.no_grad():
        behind = np.mean(truth.log_prob(fresh)) - np.mean(law.log_prob(fresh))
    assert behind < 2 * truth.degrees_of_freedom / (2 * len(x))  # twice what the best estimate of the true shape loses


@pytest.mark.parametrize(
    "asked", [{"subspaces": 3}, {"latent_dim": 2}, {"modes": 2}, {"latent_dim": [1, 3]}, {"noise": "shared"}], ids=str
)
def test_numbers_that_were_given_are_obeyed(two_planes, asked):
    law = molrmog.fit(two_planes[1][:80], **asked)
    for name, value in asked.items():
        got = {"subspaces": law.subspaces, "latent_dim": law.latent_dims, "modes": law.modes, "noise": law.noise}[name]
        if isinstance(value, int) and name != "subspaces":
            assert set(got) == {value}
        else:
            assert got == (tuple(value) if isinstance(value, list) else value)


def test_columns_need_no_scaling_by_hand(two_planes):
    _, x = two_planes
    scale = 10.0 ** np.arange(-4, 4)
    plain, scaled = molrmog.fit(x), molrmog.fit(x * scale)
    apart = np.mean(plain.log_prob(x)) - np.mean(scaled.log_prob(x * scale)) - np.log(scale).sum()
    assert abs(apart) < 1.0


@pytest.mark.parametrize(
    "x",
    [np.ones((30, 4)), np.eye(4)[:1], np.repeat(np.eye(6), 8, 0), np.arange(12.0)[:, None], np.eye(30)[:12]],
    ids=["equal", "one", "repeated", "one column", "wide"],
)
def test_odd_rows_still_give_a_law(x):
    law = molrmog.fit(x)
    assert np.isfinite(law.log_prob(x)).all()


@pytest.mark.parametrize("rows", [3, 4, 9, 20, 23, 24, 25, 27, 30, 37])
def test_any_number_of_rows_gives_a_law(rows):
    x = np.random.default_rng(rows).normal(size=(rows, 3)) + 8 * (np.arange(rows) % 2)[:, None]
    law = molrmog.fit(x)
    assert np.isfinite(law.log_prob(x)).all()


def test_what_was_tried_is_said(two_planes):
    found = molrmog.select(two_planes[1])
    assert found.table[0]["behind"] == 0
    assert [record["behind"] for record in found.table] == sorted(record["behind"] for record in found.table)
    assert any("next best" in line for line in found.lines())


def test_classes_choose_for_themselves(two_planes):
    x = two_planes[1]
    line = np.random.default_rng(0).normal(size=(200, 1)) * np.ones((1, 8)) + 0.05 * np.random.default_rng(1).normal(
        size=(200, 8)
    )
    law = molrmog.fit(np.concatenate([x, line]), ["plane"] * len(x) + ["line"] * 200)
    assert law.subspaces == 2
    assert law.latent_dims[0] < law.latent_dims[1]


def test_a_fit_chooses_what_select_finds(two_planes):
    x = two_planes[1][:120]
    found = molrmog.select(x, modes=1)
    law = molrmog.fit(x, modes=1)
    assert law.fit_summary_.best == found.best
    again = molrmog.fit(x, selection=found)
    np.testing.assert_array_equal(again.log_prob(x), law.log_prob(x))


@pytest.mark.parametrize("criterion", ["bic", "icl"])
def test_information_criteria_are_those_of_the_law_that_is_fitted(two_planes, criterion):
    x = two_planes[1]
    found = molrmog.select(x, criterion=criterion, noise="isotropic")
    law = molrmog.fit(x, selection=found)
    assert found.table[0]["degrees_of_freedom"] == law.degrees_of_freedom
    assert getattr(law, criterion)(x) == pytest.approx(found.table[0][criterion], abs=0.02 * len(x))
    assert found.best.subspaces == 2
    assert found.best.latent_dims == (2, 2)


def test_validation_rows_judge(two_planes):
    truth, x = two_planes
    test = truth.sample(300, torch.Generator().manual_seed(2)).x.detach().numpy()
    found = molrmog.select(x[:100], validation=test)
    law = molrmog.fit(x[:100], selection=found)
    assert found.table[0]["held_out"] == pytest.approx(np.mean(law.log_prob(test)), abs=0.3)
    assert found.rows == 100


def test_values_of_one_law_in_two_disguises_are_not_the_next_best():
    rng = np.random.default_rng(0)
    found = molrmog.select(rng.normal(size=(60, 3)) @ rng.normal(size=(3, 3)), latent_dim=3, subspaces=1)
    said = next((line for line in found.lines() if line.startswith("next best")), "next best: 1")
    assert float(said.split()[2]) > 1e-6


def test_the_likeliest_of_several_starts_is_likelier(two_planes):
    truth, x = two_planes
    shape = {"subspaces": 2, "latent_dim": 2, "modes": 1, "noise": "isotropic"}
    few, many = (molrmog.fit(x, **shape, n_init=n, seed=3) for n in (1, 8))
    assert np.mean(many.log_prob(x)) >= np.mean(few.log_prob(x)) - 1e-6
    with pytest.raises(ValueError, match="n_init"):
        molrmog.fit(x, start=truth, n_init=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"selection": "best"}, "pass what molrmog.select returned"),
        ({"labels": [0, 1, 2] * 10, "modes": [1, 1, 11]}, "class 2 has 10 rows, fewer than its 11 modes"),
        ({"latent_dim": 9}, "9"),
        ({"subspaces": 31}, "fewer than the 31 subspaces"),
        ({"subspaces": 0}, "subspaces = 0: pass 1 or more"),
        ({"prior_rows": -1.0}, "prior_rows"),
        ({"noise_floor": float("nan")}, "noise_floor"),
        ({"rank": -1}, "rank"),
    ],
)
def test_bad_input_gets_one_line(wrong, message):
    x = np.random.default_rng(0).normal(size=(30, 5))
    for call in [molrmog.fit] if "selection" in wrong else [molrmog.fit, molrmog.select]:
        with pytest.raises(ValueError, match=message) as error:
            call(x, **wrong)
        assert "\n" not in str(error.value)


def test_the_command_line_shows_what_was_tried(tmp_path, capsys):
    np.savetxt(
        tmp_path / "t.csv", np.random.default_rng(0).normal(size=(60, 3)), delimiter=",", header="a,b,c", comments=""
    )
    words = ["select", str(tmp_path / "t.csv"), "--subspaces", "1", "--modes", "1"]
    assert main([*words, "--out", str(tmp_path / "o.csv"), "--plot", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert "chosen: 1 subspace of dimension" in out
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert f"tried: {len(lines) - 1} candidates on 54 rows" in out
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*words, "--plot", str(tmp_path / "p.gif")]) == 1
    assert "ends in .png or .svg" in capsys.readouterr().err


def test_a_run_says_what_was_chosen(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 3)))
    assert main(["fit", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.split("chosen: ")[1].splitlines()[0]
    assert said.split(";")[0] in (tmp_path / "run" / "report.html").read_text()
    assert main(["info", str(tmp_path / "run")]) == 0
    assert said.split(",")[0] in " ".join(capsys.readouterr().out.split())


def test_a_column_that_hardly_varied_may_vary_in_new_rows():
    """Most rows hold nothing in most columns, and any column may hold something in a new row."""
    rng = np.random.default_rng(0)

    def drawn(rows):
        x = 0.01 * rng.normal(size=(rows, 40))
        x[:, :10] += rng.normal(size=(rows, 10))
        seldom = rng.random((rows, 30)) < 0.003
        x[:, 10:] += seldom * rng.normal(size=(rows, 30))
        return x

    x, fresh = drawn(300), drawn(20_000)
    chosen = np.mean(molrmog.fit(x).log_prob(fresh))
    by_floor = [np.mean(molrmog.fit(x, noise_floor=floor).log_prob(fresh)) for floor in (0.001, 0.005)]
    assert chosen > max(by_floor)
