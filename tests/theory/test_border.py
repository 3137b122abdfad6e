"""Blocks on the borders: weights that give the law back, the plain average, and no spread where gates are hard."""

from __future__ import annotations

import math

import pytest
import torch

from molrmog import MoLRMoG
from molrmog.theory.border import BlockErrors, block_errors, border_rows
from molrmog.theory.landscape import relative_error, separated_blocks
from molrmog.theory.score_loss import ScoreLoss
from oracles.laws import ragged_law

S, GAMMA = 0.8, 0.6


def some_law(far: float = 1.0) -> MoLRMoG:
    shapes = {"latent_dims": (3, 2), "ranks": ((2, 1), (2,))}
    law = ragged_law(1, dim=5, **shapes, taus=(0.3, 0.2)).requires_grad_(False)
    law.mean *= far
    return law


def errors(law: MoLRMoG, n: int, seed: int) -> BlockErrors:
    x, weight = border_rows(law, n, S, GAMMA, torch.Generator().manual_seed(seed))
    return block_errors(ScoreLoss(law, x, S, GAMMA, weight=weight))


def test_weighted_rows_have_the_moments_of_the_law():
    law = some_law(2.0)
    x, weight = border_rows(law, 40_000, S, GAMMA, torch.Generator().manual_seed(0))
    fresh = law.sample(200_000, torch.Generator().manual_seed(1), s=S, gamma=GAMMA).x
    assert float(weight.sum()) == pytest.approx(1, abs=0.01)
    assert float(weight.max()) * len(x) < 2 * sum(law.modes)  # half of the rows are of the modes, in equal shares
    torch.testing.assert_close(weight @ x, fresh.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close((x.T * weight) @ x, fresh.T @ fresh / len(fresh), rtol=0.02, atol=0.05)


@pytest.mark.slow
def test_errors_are_those_of_a_plain_average_over_many_rows():
    law = some_law()
    x = law.sample(40_000, torch.Generator().manual_seed(0), s=S, gamma=GAMMA).x
    loss = ScoreLoss(law, x, S, GAMMA)
    G = loss.gauss_newton(loss.theta_of(law))
    plain = {"mean": 0.0, "factor": 0.0}
    for (name, k, mode), block in separated_blocks(law, S, GAMMA).items():
        at = loss.entries(name, k, mode)
        plain[name] = max(plain[name], relative_error(G[at][:, at], block))
    found = errors(law, 8000, 1)
    assert found.mean == pytest.approx(plain["mean"], rel=0.1)
    assert found.factor == pytest.approx(plain["factor"], rel=0.1)
    assert 0 < found.whole < 1


@pytest.mark.slow
def test_seeds_agree_on_errors_that_plain_rows_do_not_see():
    law = some_law(8.0)
    found = [errors(law, 4000, seed) for seed in range(4)]
    worst = [max(one.mean, one.factor) for one in found]
    assert 0 < max(worst) < 5e-3
    assert max(worst) < 2 * min(worst)


def test_a_single_mode_is_its_closed_form():
    law = ragged_law(3, dim=4, latent_dims=(3,), ranks=((2,),), taus=(0.3,)).requires_grad_(False)
    found = errors(law, 100, 0)
    assert max(found.mean, found.factor, found.whole) < 1e-10
    assert math.isfinite(errors(ragged_law(3, dim=4, latent_dims=(2,), ranks=((0, 1),), taus=(0.3,)), 100, 0).mean)
