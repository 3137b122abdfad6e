"""Overlap against dense gates and one-dimensional integrals, its interval against repetition."""

import math

import pytest
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.theory.overlap import (
    Overlap,
    gate_overlap,
    levels,
    measure_overlap,
    noised,
    separated_hessian,
    smallest_near,
    split_curvature,
)
from molrmog.theory.score_loss import ScoreLoss, stratified_rows
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
    assert found.largest_pair == pytest.approx(found.eps, rel=1e-12)  # a mean of the same rows in another layout
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


@pytest.mark.slow
def test_the_interval_holds_as_often_as_it_says():
    law = ragged_law()
    truth = measure_overlap(law, law.sample(200_000, torch.Generator().manual_seed(0), gamma=0.5).x, 1.0, 0.5).eps
    held = 0
    for seed in range(1, 201):
        found = measure_overlap(law, law.sample(400, torch.Generator().manual_seed(seed), gamma=0.5).x, 1.0, 0.5)
        low, high = found.interval(0.9)
        held += low <= truth <= high
    assert held >= 0.87 * 200


@pytest.mark.slow
def test_the_interval_is_no_narrower_for_rows_that_are_noised_again():
    """100 clean rows noised ten times each: the truth is covered as often as said, which 1000 rows would not do."""
    law = ragged_law()
    truth = measure_overlap(law, law.sample(200_000, torch.Generator().manual_seed(0), gamma=0.2).x, 1.0, 0.2).eps
    clean = torch.arange(1000) % 100
    held = taken_for_independent = 0
    for seed in range(1, 201):
        draw = torch.Generator().manual_seed(seed)
        x = noised(law.sample(100, draw).x[clean], 1.0, 0.2, draw)
        for rows, own in ((clean, True), (None, False)):
            low, high = measure_overlap(law, x, 1.0, 0.2, clean=rows).interval(0.9)
            held += own and low <= truth <= high
            taken_for_independent += not own and low <= truth <= high
    assert held >= 0.87 * 200
    assert taken_for_independent < 0.75 * 200


def test_rows_of_one_clean_row_count_as_one():
    """Copies without noise between them: nothing is added. Unequal numbers: by hand."""
    draw = torch.Generator().manual_seed(0)
    gates = torch.rand(30, 3, generator=draw, dtype=torch.float64).softmax(1)
    one, twice = gate_overlap(gates), gate_overlap(gates.repeat(4, 1), torch.arange(120) % 30)
    for name in ("pairs", "pairs_error", "each", "each_error"):
        torch.testing.assert_close(getattr(twice, name), getattr(one, name))
    assert (twice.rows, gate_overlap(gates.repeat(4, 1)).rows) == (30, 120)
    rows = torch.tensor([7, 7, 2])
    r = gates[:3]
    xi = r[:, 0] * r[:, 1]
    off = xi - xi.mean()
    by_hand = ((off[0] + off[1]) ** 2 + off[2] ** 2) * 2 / 9
    torch.testing.assert_close(gate_overlap(r, rows).pairs_error[0, 1], by_hand.sqrt())


def test_the_interval_covers_all_modes_at_once():
    """Two modes at 95%: each is covered with 97.5%, 2.2414 standard errors."""
    zero = torch.zeros(2, 2)
    found = Overlap(zero, zero, torch.tensor([0.1, 0.09]), torch.tensor([0.01, 0.02]), apart=0.0, rows=10)
    assert found.interval(0.95) == pytest.approx((0.1 - 0.022414, 0.09 + 2 * 0.022414), abs=1e-6)


def test_one_mode_overlaps_with_nothing():
    found = gate_overlap(torch.ones(3, 1))
    assert (found.eps, found.apart, found.mean_pair) == (0.0, 1.0, 0.0)


def test_what_does_not_fit_is_refused():
    law = ragged_law()
    with pytest.raises(ValueError, match="choose modes or subspaces"):
        measure_overlap(law, law.sample(3).x, 1.0, 0.5, of="experts")
    with pytest.raises(ValueError, match="two rows or more"):
        gate_overlap(torch.ones(1, 2))
    with pytest.raises(ValueError, match="add up to one"):
        gate_overlap(torch.ones(3, 2))
    with pytest.raises(ValueError, match="two clean rows or more"):
        gate_overlap(torch.ones(3, 2) / 2, torch.zeros(3))
    with pytest.raises(ValueError, match="for 3 rows"):
        gate_overlap(torch.ones(3, 2) / 2, torch.zeros(2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        gate_overlap(torch.ones(2, 2) / 2).interval(1.0)


def loss_of(law, s=0.8, gamma=0.6, rows=4000, seed=0):
    x, weight = stratified_rows(law, rows, s, gamma, torch.Generator().manual_seed(seed))
    return ScoreLoss(law, x, s, gamma, weight=weight)


def pair(distance, seed=0):
    """Two modes of one factor, so far apart."""
    draw = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(3, 2, generator=draw, dtype=torch.float64)).Q
    m = torch.randn(3, generator=draw, dtype=torch.float64)
    law = MoLRMoG(3, [3], [2], [[2, 2]], dtype=torch.float64).requires_grad_(False)
    law.mean[0] = torch.stack([m, -m]) * distance / (2 * m.norm())
    law.factor[0] = U
    return law


@pytest.mark.parametrize("latent_dims", [(3,), (2, 3)])
def test_separated_modes_have_the_hessian_of_modes_alone(latent_dims):
    """Far apart, the Hessian by autograd is the closed form, and overlap changes nothing."""
    law = MoLRMoG.random(
        6,
        latent_dims,
        [2] * len(latent_dims),
        rank=2,
        noise=0.1,
        seed=1,
        separation=40.0,
        offset=40.0,
        dtype=torch.float64,
    ).requires_grad_(False)
    loss = loss_of(law)
    H = loss.hessian(loss.theta_of(law))
    torch.testing.assert_close(separated_hessian(loss), H, rtol=1e-6, atol=1e-9)
    found = split_curvature(loss)
    assert found.change < 1e-9 * found.largest
    assert found.weyl == pytest.approx(found.smallest, rel=1e-6)


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_split_is_that_of_the_dense_hessian_without_the_gauge(distance):
    loss = loss_of(pair(distance))
    found = split_curvature(loss)
    theta = loss.theta_of(loss.truth)
    H = loss.hessian(theta)
    rotations = loss.gauge(theta)
    values = torch.linalg.eigvalsh(H + 1e6 * rotations @ rotations.T)  # the gauge out of the way
    assert found.smallest == pytest.approx(float(values[0]), rel=1e-6)
    still = torch.eye(len(theta), dtype=torch.float64) - rotations @ rotations.T
    change = torch.linalg.matrix_norm(still @ (H - separated_hessian(loss)) @ still, 2)
    assert found.change == pytest.approx(float(change), rel=1e-6)
    assert found.weyl == pytest.approx(0.8**2 / 2 - float(change), rel=1e-6)  # alpha = w s^2 / (s^2 + gamma^2)^2
    torch.testing.assert_close(H @ found.weakest, found.smallest * found.weakest, rtol=0, atol=1e-8 * found.largest)


@pytest.mark.slow
def test_convexity_is_lost_where_modes_coincide_and_before_that_near_the_truth():
    smallest = {distance: split_curvature(loss_of(pair(distance))).smallest for distance in (0.0, 0.5, 4.0)}
    assert abs(smallest[0.0]) < 1e-12
    assert 0 < smallest[0.5] < 0.05 * smallest[4.0]
    for distance, convex in ((0.5, False), (6.0, True)):
        loss = loss_of(pair(distance), rows=1000)
        moves = torch.randn(3, 18, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        near = smallest_near(loss, 0.1 * moves / moves.norm(dim=1, keepdim=True))
        assert bool((near > 0).all()) == convex
        at_truth = smallest_near(loss, torch.zeros(1, 18, dtype=torch.float64))
        assert float(at_truth) == pytest.approx(split_curvature(loss).smallest, rel=1e-6)


def test_blocks_of_other_parameters_are_refused():
    law = pair(2.0)
    with pytest.raises(ValueError, match="mean and factor"):
        separated_hessian(ScoreLoss(law, law.sample(10).x, 1.0, 0.5, learn=("mean",)))
