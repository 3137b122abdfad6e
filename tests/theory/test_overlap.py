"""Overlap against dense gates and one-dimensional integrals, its interval against repetition."""

import math

import pytest
import torch

from molrmog.mixture import MoLRMoG
from molrmog.theory.overlap import gate_overlap, levels, measure_overlap, noised
from oracles.dense import DenseLaw
from oracles.laws import head_tail_law, ragged_law


@pytest.mark.parametrize("law", [ragged_law(), head_tail_law()], ids=["pure", "head/tail"])
def test_pairs_are_means_of_products_of_dense_gates(law):
    s, gamma = 0.7, 0.6
    x = law.sample(500, torch.Generator().manual_seed(0), s=s, gamma=gamma).x
    gates = DenseLaw.of(law).log_gates(x, s, gamma).exp()  # (B, C)
    product = gates[:, :, None] * gates[:, None]
    product.diagonal(dim1=1, dim2=2).zero_()
    found = measure_overlap(law, x, s, gamma)
    torch.testing.assert_close(found.pairs, product.mean(0))
    torch.testing.assert_close(found.pairs_error, product.std(0) / math.sqrt(len(x)))
    torch.testing.assert_close(found.each, product.sum(2).mean(0))
    torch.testing.assert_close(found.each_error, product.sum(2).std(0) / math.sqrt(len(x)))
    assert found.eps == pytest.approx(float(product.sum(2).mean(0).max()))
    assert found.apart == float((product.flatten(1).amax(1) < 1e-3).double().mean())


def test_overlap_of_subspaces_adds_up_their_modes():
    law = ragged_law(dim=4, latent_dims=(2, 1), ranks=((2, 1), (1,)), taus=(0.3, 0.2))
    x = law.sample(400, torch.Generator().manual_seed(1), gamma=1.0).x
    gates = DenseLaw.of(law).log_gates(x, 1.0, 1.0).exp()
    first = gates[:, :2].sum(1)
    found = measure_overlap(law, x, 1.0, 1.0, of="subspaces")
    torch.testing.assert_close(found.pairs[0, 1], (first * (1 - first)).mean())
    assert found.eps < measure_overlap(law, x, 1.0, 1.0).eps


def test_two_modes_on_a_line_have_the_overlap_of_an_integral():
    """Modes -m and m with equal variance v: E xi = E 1 / (4 cosh^2(m x / v)) over their mixture."""
    m, s, gamma = 1.5, 0.8, 0.6
    law = MoLRMoG(dim=1, latent_dims=(1,), modes=(2,), dtype=torch.float64).requires_grad_(False)
    law.mean[0, :, 0] = torch.tensor([-m, m])
    law.factor.fill_(0.5)
    v = s**2 * 0.25 + gamma**2
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = sum(0.5 * torch.exp(-((x - sign * s * m) ** 2) / (2 * v)) for sign in (-1, 1)) / math.sqrt(
        2 * math.pi * v
    )
    exact = float(torch.trapezoid(density / (4 * torch.cosh(s * m * x / v) ** 2), x))
    found = measure_overlap(law, law.sample(200_000, torch.Generator().manual_seed(0), s=s, gamma=gamma).x, s, gamma)
    assert found.eps == pytest.approx(exact, abs=4 * float(found.each_error[0]))
    assert found.largest_pair == found.eps
    assert float(found.each_error[0]) < 0.01 * exact


def test_noise_drowns_every_gate():
    law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 2), noise=0.1, seed=0, dtype=torch.float64)
    weights = (law.subspace_weights[:, None] * law.mode_weights).detach().flatten()
    found = measure_overlap(law, law.sample(4000, gamma=1e4).x, 1.0, 1e4)
    torch.testing.assert_close(found.each, weights * (1 - weights), rtol=0, atol=1e-3)


def test_scale_does_not_matter_but_sigma_does():
    law = ragged_law().float()
    x = law.sample(300, torch.Generator().manual_seed(0)).x
    s, gamma = levels(0.8)
    assert (gamma / s, s * s + gamma * gamma) == pytest.approx((0.8, 1.0))
    one, other = (
        measure_overlap(law, noised(x, *level, torch.Generator().manual_seed(1)), *level).eps
        for level in ((1.0, 0.8), (s, gamma))
    )
    assert one == pytest.approx(other, rel=1e-3)
    assert measure_overlap(law, noised(x, 1.0, 0.01, torch.Generator().manual_seed(1)), 1.0, 0.01).eps < one / 2


def test_the_interval_holds_as_often_as_it_says():
    law = ragged_law()
    truth = measure_overlap(law, law.sample(200_000, torch.Generator().manual_seed(0), gamma=0.5).x, 1.0, 0.5).eps
    held = 0
    for seed in range(1, 201):
        found = measure_overlap(law, law.sample(400, torch.Generator().manual_seed(seed), gamma=0.5).x, 1.0, 0.5)
        low, high = found.interval(0.9)
        assert low <= found.eps <= high
        held += low <= truth <= high
    assert held >= 0.87 * 200


def test_one_mode_overlaps_with_nothing():
    found = gate_overlap(torch.ones(3, 1))
    assert (found.eps, found.apart, found.mean_pair) == (0.0, 1.0, 0.0)


def test_what_does_not_fit_is_refused():
    law = ragged_law()
    with pytest.raises(ValueError, match="choose modes or subspaces"):
        measure_overlap(law, law.sample(3).x, 1.0, 0.5, of="experts")
    with pytest.raises(ValueError, match="two rows or more"):
        gate_overlap(torch.ones(1, 2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        gate_overlap(torch.ones(2, 2) / 2).interval(1.0)
