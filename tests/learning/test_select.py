"""The structure of a law from the rows."""

import numpy as np
import pytest
import torch

import molrmog
from molrmog.laws.molrmog import MoLRMoG

AUTO = {"subspaces": "auto", "latent_dim": "auto", "modes": "auto"}


@pytest.fixture(scope="module")
def two_planes():
    law = MoLRMoG.random(8, (2, 2), (1, 1), noise=0.05, seed=1, offset=3.0, dtype=torch.float64)
    return law, law.sample(400, torch.Generator().manual_seed(0)).x.detach().numpy()


def test_it_comes_near_the_law_that_rows_came_from(two_planes):
    truth, x = two_planes
    fresh = truth.sample(4000, torch.Generator().manual_seed(1)).x.detach().numpy()
    law = molrmog.fit(x, **AUTO)
    with torch.no_grad():
        behind = np.mean(truth.log_prob(fresh)) - np.mean(law.log_prob(fresh))
    assert behind < 2 * truth.degrees_of_freedom / (2 * len(x))  # twice what the best estimate of the true shape loses


@pytest.mark.parametrize(
    "asked", [{"subspaces": 3}, {"latent_dim": 2}, {"modes": 2}, {"latent_dim": [1, 3]}, {"noise": "shared"}], ids=str
)
def test_numbers_that_were_given_are_obeyed(two_planes, asked):
    law = molrmog.fit(two_planes[1][:80], **AUTO | asked)
    for name, value in asked.items():
        got = {"subspaces": law.subspaces, "latent_dim": law.latent_dims, "modes": law.modes, "noise": law.noise}[name]
        if isinstance(value, int) and name != "subspaces":
            assert set(got) == {value}
        else:
            assert got == (tuple(value) if isinstance(value, list) else value)


def test_columns_need_no_scaling_by_hand(two_planes):
    _, x = two_planes
    scale = 10.0 ** np.arange(-4, 4)
    plain, scaled = molrmog.fit(x, **AUTO), molrmog.fit(x * scale, **AUTO)
    apart = np.mean(plain.log_prob(x)) - np.mean(scaled.log_prob(x * scale)) - np.log(scale).sum()
    assert abs(apart) < 1.0


@pytest.mark.parametrize(
    "x",
    [np.ones((30, 4)), np.eye(4)[:1], np.repeat(np.eye(6), 8, 0), np.arange(12.0)[:, None], np.eye(30)[:12]],
    ids=["equal", "one", "repeated", "one column", "wide"],
)
def test_odd_rows_still_give_a_law(x):
    law = molrmog.fit(x, **AUTO)
    assert np.isfinite(law.log_prob(x)).all()


def test_what_was_tried_is_said(two_planes):
    found = molrmog.fit(two_planes[1], **AUTO).fit_summary_
    assert found.table[0]["behind"] == 0
    assert [record["behind"] for record in found.table] == sorted(record["behind"] for record in found.table)
    assert any("next best" in line for line in found.lines())


def test_classes_choose_for_themselves(two_planes):
    x = two_planes[1]
    line = np.random.default_rng(0).normal(size=(200, 1)) * np.ones((1, 8)) + 0.05 * np.random.default_rng(1).normal(
        size=(200, 8)
    )
    law = molrmog.fit(np.concatenate([x, line]), ["plane"] * len(x) + ["line"] * 200, **AUTO)
    assert law.subspaces == 2
    assert law.latent_dims[0] < law.latent_dims[1]
