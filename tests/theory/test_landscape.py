"""Curvature: closed forms against autograd, gauge and Lanczos against dense algebra, radii against a scan."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from molrmog import MoLRMoG, Subspace
from molrmog.theory.landscape import (
    Curvature,
    basis_block,
    convex_radius,
    curvature,
    delta_factor_block,
    extreme_curvature,
    factor_block,
    horizontal,
    mean_block,
    relative_error,
    separated_blocks,
    shift_radius,
    symmetric_pair,
    worst_direction,
)
from molrmog.theory.score_loss import ScoreLoss, stratified_rows
from oracles.laws import ragged_law

S, GAMMA = 0.8, 0.5


def stratified(law: MoLRMoG, learn=("mean", "factor"), n: int = 200, s: float = S, gamma: float = GAMMA) -> ScoreLoss:
    x, weight = stratified_rows(law, n, s, gamma, torch.Generator().manual_seed(0))
    return ScoreLoss(law, x, s, gamma, learn, weight=weight)


def pair(separation: float, d: int = 3, r: int = 1, dim: int = 4) -> MoLRMoG:
    """Modes at +mu and -mu with one orthonormal U."""
    draw = torch.Generator().manual_seed(0)
    A = torch.linalg.qr(torch.randn(dim, d, generator=draw, dtype=torch.float64)).Q
    U = torch.linalg.qr(torch.randn(d, r, generator=draw, dtype=torch.float64)).Q
    mu = torch.ones(d, dtype=torch.float64) * separation / 2 / math.sqrt(d)
    halves = torch.tensor([0.5, 0.5], dtype=torch.float64)
    part = Subspace(1.0, A, torch.zeros(dim, dtype=torch.float64), 0.0, halves, torch.stack([mu, -mu]), (U, U))
    return MoLRMoG.from_subspaces([part]).requires_grad_(False)


def test_blocks_of_one_mode_are_the_closed_forms():
    law = ragged_law(3, dim=5, latent_dims=(4,), ranks=((3,),), taus=(0.3,)).requires_grad_(False)
    loss = stratified(law)  # affine scores: no sampling error at all
    G = loss.gauss_newton(loss.theta_of(law))
    for (name, k, mode), block in separated_blocks(law, S, GAMMA).items():
        at = loss.entries(name, k, mode)
        torch.testing.assert_close(G[at][:, at], block)


def test_blocks_of_separated_modes_of_several_subspaces_are_the_closed_forms():
    law = ragged_law(1, dim=6, latent_dims=(3, 2), ranks=((2, 1), (2,)), taus=(0.1, 0.2)).requires_grad_(False)
    law.mean *= 30
    loss = stratified(law)
    G = loss.gauss_newton(loss.theta_of(law))
    closed = torch.zeros_like(G)
    for (name, k, mode), block in separated_blocks(law, S, GAMMA).items():
        at = loss.entries(name, k, mode)
        closed[at[:, None], at] = block
    torch.testing.assert_close(G, closed, rtol=1e-6, atol=1e-8)


def test_block_of_a_basis_is_the_closed_form():
    law = ragged_law(1, dim=6, latent_dims=(3,), ranks=((2, 1),), taus=(0.2,)).requires_grad_(False)
    law.mean *= 30
    loss = stratified(law, ("basis",))
    G = loss.gauss_newton(loss.theta_of(law))
    outside = torch.linalg.qr(law.basis[:, 0], mode="complete").Q[:, 3:]
    lift = torch.stack([torch.outer(o, e).flatten() for o in outside.T for e in torch.eye(3, dtype=torch.float64)], 1)
    expected = torch.kron(torch.eye(3, dtype=torch.float64), basis_block(law, 0, S, GAMMA))
    torch.testing.assert_close(lift.T @ G @ lift, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.2, 0.6, 1.5])
def test_orthonormal_factors_have_the_printed_eigenvalues_of_the_exact_blocks(gamma):
    s, d, r = 0.8, 5, 2
    U = torch.linalg.qr(torch.randn(d, r, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    c, total = s**2 / (s**2 + gamma**2), s**2 + gamma**2
    along, across = s**2 / total**2, s**2 / gamma**4
    expected = torch.tensor(sorted([along] * r + [across] * (d - r)), dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(mean_block(U, s, gamma**2)), expected)
    out, inside = c**2 * (s**2 + 2 * gamma**2) / gamma**4, 4 * s**4 / total**3
    values = sorted([0.0] + [inside] * 3 + [out] * (r * (d - r)))
    torch.testing.assert_close(
        torch.linalg.eigvalsh(factor_block(U, s, gamma**2)), torch.tensor(values, dtype=torch.float64)
    )


def test_printed_score_is_stiffer_in_the_span_and_its_uncentred_block_vanishes_across_the_mean():
    s, gamma, d = 0.8, 0.6, 4
    eye = torch.eye(d, dtype=torch.float64)
    U, total = eye[:, :1], s**2 + gamma**2
    centred = delta_factor_block(U, s**2 * U @ U.T + gamma**2 * eye, s, gamma)
    exact = factor_block(U, s, gamma**2)
    torch.testing.assert_close(centred[1:, 1:], exact[1:, 1:])  # out of the span they agree
    torch.testing.assert_close(centred[0, 0], exact[0, 0] * (total / gamma**2) ** 2)

    def smallest(mu: Tensor) -> float:
        return float(torch.linalg.eigvalsh(delta_factor_block(U, s**2 * torch.outer(mu, mu), s, gamma))[0])

    assert abs(smallest(3 * eye[1])) < 1e-12
    a, c = 3 * math.cos(1.0), s**2 / total
    assert 0 < smallest(3 * (math.cos(1.0) * eye[0] + math.sin(1.0) * eye[1])) < c**2 * s**2 / gamma**4 * a**2
    assert float(torch.linalg.eigvalsh(exact)[0]) > 0.1


def test_printed_curvature_is_the_jacobian_of_the_printed_score():
    s, gamma, c = 0.8, 0.6, 0.8**2 / (0.8**2 + 0.6**2)
    draw = torch.Generator().manual_seed(0)
    U = torch.randn(4, 2, generator=draw, dtype=torch.float64)
    y = torch.randn(50, 4, generator=draw, dtype=torch.float64)
    J = torch.func.jacrev(lambda U: -(y - c * y @ U @ U.T) / gamma**2)(U).flatten(2)
    expected = torch.einsum("nip,niq->pq", J, J) / len(y)
    torch.testing.assert_close(delta_factor_block(U, y.T @ y / len(y), s, gamma), expected)


def test_curvature_leaves_the_gauge_out_and_keeps_the_rest():
    law = ragged_law(1, dim=5, latent_dims=(3,), ranks=((2, 3),), taus=(0.2,)).requires_grad_(False)
    loss = stratified(law)
    theta = loss.theta_of(law)
    found = curvature(loss)
    everything = torch.linalg.eigvalsh(loss.hessian(theta))
    assert found.gauge == 1 + 3
    torch.testing.assert_close(everything[:4], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.eigenvalues, everything[4:])
    torch.testing.assert_close(
        loss.hessian(theta) @ found.vectors, found.vectors * found.eigenvalues, rtol=1e-8, atol=1e-10
    )
    assert found.kappa == found.largest / found.smallest
    torch.testing.assert_close(curvature(loss, matrix="gauss-newton").eigenvalues, found.eigenvalues)


def test_eigenvalues_off_the_gauge_do_not_depend_on_the_gauge():
    law = pair(3.0, r=2)
    loss = stratified(law)
    theta = loss.theta_of(law)
    theta = theta + 0.2 * torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    turned = theta.clone()
    at = loss.entries("factor", 0, 0)
    turned[at] = (theta[at].view(3, 2) @ turn).flatten()
    torch.testing.assert_close(curvature(loss, turned).eigenvalues, curvature(loss, theta).eigenvalues)


def test_symmetric_pair_is_the_law_with_tied_parameters():
    s, gamma = 0.8, 0.6
    loss = stratified(pair(12.0, r=2, d=4, dim=5), s=s, gamma=gamma)
    T = symmetric_pair(loss)
    found = curvature(loss, within=T)
    assert found.gauge == 1
    total, c = s**2 + gamma**2, s**2 / (s**2 + gamma**2)
    expected = [s**2 / total**2] * 2 + [s**2 / gamma**4] * 2
    expected += [c**2 * (s**2 + 2 * gamma**2) / gamma**4] * 4 + [4 * s**4 / total**3] * 3
    torch.testing.assert_close(
        found.eigenvalues, torch.tensor(sorted(expected), dtype=torch.float64), rtol=1e-3, atol=0
    )
    moved = loss.law_of(loss.theta_of(loss.truth) + T @ torch.arange(12.0, dtype=torch.float64))
    torch.testing.assert_close(moved.mean[0, 0], -moved.mean[0, 1])
    torch.testing.assert_close(moved.factor[0, 0], moved.factor[0, 1])
    for measure in (curvature, extreme_curvature):
        with pytest.raises(ValueError, match="choose hessian or gauss-newton"):
            measure(loss, matrix="gn")
    with pytest.raises(ValueError, match="two modes of one rank"):
        symmetric_pair(stratified(ragged_law(), ("mean",)))


@pytest.mark.slow
@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_lanczos_finds_the_ends_of_the_dense_spectrum(matrix):
    law = ragged_law(1, dim=6, latent_dims=(4,), ranks=((3, 2, 4),), taus=(0.3,)).requires_grad_(False)
    law.mean *= 2
    loss = stratified(law, ("basis", "mean", "factor"), n=1)
    theta = loss.theta_of(law)
    dense = curvature(loss, theta, matrix=matrix)
    found = extreme_curvature(loss, theta, matrix=matrix, count=2, tolerance=1e-6)
    assert found.gauge == dense.gauge
    ends = torch.cat([dense.eigenvalues[:2], dense.eigenvalues[-2:]])
    torch.testing.assert_close(found.eigenvalues, ends, rtol=1e-5, atol=0)


def test_relative_error_sees_weak_directions():
    strong = torch.diag(torch.tensor([1e4, 1.0, 0.0], dtype=torch.float64))
    off = strong + torch.diag(torch.tensor([0.0, 0.01, 0.0], dtype=torch.float64))
    assert relative_error(off, strong) == pytest.approx(0.01)


def test_a_mode_without_factor_has_the_blocks_of_its_mean():
    law = ragged_law(3, dim=5, latent_dims=(3,), ranks=((0, 2),), taus=(0.3,)).requires_grad_(False)
    blocks = separated_blocks(law, S, GAMMA)
    assert blocks["factor", 0, 0].shape == (0, 0)
    assert relative_error(blocks["factor", 0, 0], blocks["factor", 0, 0]) == 0
    assert blocks["mean", 0, 0].shape == (3, 3)


@pytest.mark.parametrize("smallest", [-1e-14, 0.0, 1e-14])
def test_kappa_is_infinite_where_the_smallest_eigenvalue_is_rounding(smallest):
    values = torch.tensor([smallest, 3.0], dtype=torch.float64)
    assert Curvature(values, torch.eye(2), 0).kappa == math.inf
    assert Curvature(values + torch.tensor([1e-9, 0.0]), torch.eye(2), 0).kappa == pytest.approx(3e9, rel=1e-4)


@pytest.mark.slow
def test_radius_is_where_a_scan_sees_the_smallest_eigenvalue_change_sign():
    loss = stratified(pair(3.0), n=100)
    theta = loss.theta_of(loss.truth)
    free = horizontal(loss, theta)
    direction = free @ torch.randn(free.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = direction / direction.norm()
    radius = convex_radius(loss, direction, tolerance=1e-3)
    inside = [curvature(loss, theta + share * radius * direction).smallest for share in (0.2, 0.5, 0.8, 0.99)]
    assert min(inside) > 0
    assert curvature(loss, theta + 1.01 * radius * direction).smallest < 0
    assert convex_radius(loss, direction, start=8 * radius, tolerance=1e-3) == pytest.approx(radius, rel=5e-3)
    assert convex_radius(loss, direction, start=radius / 8, limit=radius / 4) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.1, 0.2])
def test_a_mean_that_moves_across_its_factor_ends_convexity(gamma):
    s = math.sqrt(1 - gamma**2)
    loss = stratified(pair(8.0), n=1, s=s, gamma=gamma)
    U = loss.truth.factor[0, 0, :, 0]
    across = torch.linalg.svd(U[None]).Vh[1]  # any direction orthogonal to U
    direction = torch.zeros(len(loss.theta_of(loss.truth)), dtype=torch.float64)
    direction[loss.entries("mean", 0, 0)] = across
    found = convex_radius(loss, direction, start=gamma**2, tolerance=1e-3)
    assert found == pytest.approx(shift_radius(1.0, s, gamma**2), rel=gamma**2)


@pytest.mark.slow
def test_worst_direction_is_worse_than_many_at_random():
    loss = stratified(pair(3.0), n=100)
    free = horizontal(loss, loss.theta_of(loss.truth))
    draws = free @ torch.randn(free.shape[1], 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = draws / draws.norm(dim=0)
    random = [convex_radius(loss, u, tolerance=0.05) for u in draws.T]
    direction, radius = worst_direction(loss, draws[:, 0], steps=2, tolerance=0.05)
    assert radius < min(random)
    assert float(direction.norm()) == pytest.approx(1)
    assert convex_radius(loss, direction, start=radius, tolerance=0.05) == pytest.approx(radius, rel=0.1)
