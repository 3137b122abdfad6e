"""Units of columns against regressions of each column on the others, and the start that leaves a trap."""

import numpy as np
import pytest
import torch

from molrmog import MoLRMoG, fit
from molrmog.learning.rows import Rows
from molrmog.learning.unequal_starts import unexplained

DRAW = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_column_s_unit_is_what_a_regression_on_the_others_leaves(weighted, monkeypatch):
    x = 5 + torch.randn(400, 4, dtype=torch.float64, generator=DRAW)
    x[:, 1:] += x[:, :1]
    monkeypatch.setattr("molrmog.learning.unequal_starts._SHRINKAGE", 0.0)
    weights = torch.rand(400, dtype=torch.float64, generator=DRAW) + 1 if weighted else None
    found = unexplained(Rows(x), weights)
    w = np.ones(400) if weights is None else weights.numpy()
    for j in range(4):
        others = np.column_stack([np.ones(400), np.delete(x.numpy(), j, 1)]) * np.sqrt(w)[:, None]
        left = np.linalg.lstsq(others, x[:, j].numpy() * np.sqrt(w), rcond=None)[1][0] / w.sum()
        assert float(found[j]) == pytest.approx(left**0.5, rel=0.05)


def test_constant_columns_and_few_rows():
    x = torch.randn(6, 20, generator=DRAW)
    x[:, 3] = 7.0
    found = unexplained(Rows(x))
    assert bool(found.isfinite().all())
    assert float(found[3]) == 0
    assert bool((found <= Rows(x).moments().deviation * (1 + 1e-9)).all())


@pytest.mark.parametrize("noise", ["diagonal", "shared"])
def test_noisy_columns_are_no_trap(noise):
    """Where some columns are noise more than anything, principal components are these columns."""
    true = MoLRMoG.random(12, (2,), (2,), noise=0.1, seed=4, dtype=torch.float64).with_noise(noise)
    true.tau[:, :3] = 6.0
    x, held_out = (true.sample(n, torch.Generator().manual_seed(n)).x for n in (2000, 1000))
    law = fit(x, subspaces=1, latent_dim=2, modes=2, noise=noise)
    best = float(true.log_prob(held_out).mean())
    assert float(law.log_prob(held_out).mean()) == pytest.approx(best, abs=0.1)
