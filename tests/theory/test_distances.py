"""Distances between laws against dense Bures and transport formulas, and against all that must not change them."""

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.theory.distances import law_distance


def a_law(seed=0, **given):
    shape = {"dim": 7, "latent_dims": (2, 3), "modes": (2, 3), "rank": 2, "noise": 0.3, "offset": 0.5, **given}
    return MoLRMoG.random(seed=seed, dtype=torch.float64, **shape).requires_grad_(False)


def turned(n, seed):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def dense_modes(law):
    """Weight, mean and covariance of each mode in R^D."""
    found = []
    for k in range(law.subspaces):
        part = law.subspace(k)
        for weight, mu, U in zip(part.mode_weights, part.means, part.factors, strict=True):
            G = part.basis @ U
            covariance = G @ G.T + part.tau**2 * torch.eye(law.dim, dtype=G.dtype)
            found.append((part.weight * float(weight), (part.offset + part.basis @ mu).numpy(), covariance.numpy()))
    return found


def bures2(S, T):
    root = scipy.linalg.sqrtm(S).real
    return float(np.trace(S + T - 2 * scipy.linalg.sqrtm(root @ T @ root).real))


@pytest.mark.parametrize("noise", [0.3, 0.02])
@pytest.mark.parametrize("dim", [4, 7])  # the joint basis is all of R^D, or not
def test_distance_of_single_modes_is_the_dense_bures_distance(dim, noise):
    a, b = (a_law(seed, dim=dim, latent_dims=(3,), modes=(1,), noise=noise * (1 + seed)) for seed in (0, 1))
    ((_, m, S),), ((_, n, T),) = dense_modes(a), dense_modes(b)
    found = law_distance(a, b)
    assert found.means == pytest.approx(np.linalg.norm(m - n), rel=1e-12)
    assert found.covariances == pytest.approx(math.sqrt(bures2(S, T)), rel=1e-6)
    assert found.total == pytest.approx(math.hypot(found.means, found.covariances))


def test_modes_are_paired_where_that_costs_least():
    a, b = (a_law(seed, latent_dims=(3,), modes=(3,)) for seed in (0, 1))
    x = b.sample(400_000, torch.Generator().manual_seed(0)).x
    spread = float((x - x.mean(0)).square().sum(1).mean().sqrt())
    cost = [[np.sum((m - n) ** 2) + bures2(S, T) for _, n, T in dense_modes(b)] for _, m, S in dense_modes(a)]
    gap = [[(v - w) ** 2 for w, *_ in dense_modes(b)] for v, *_ in dense_modes(a)]
    best = min(
        itertools.permutations(range(3)),
        key=lambda p: sum(cost[i][j] + spread**2 * gap[i][j] for i, j in enumerate(p)),
    )
    found = law_distance(a, b)
    assert found.modes == (best,)
    means = [np.sum((dense_modes(a)[i][1] - dense_modes(b)[j][1]) ** 2) for i, j in enumerate(best)]
    assert found.means == pytest.approx(math.sqrt(np.mean(means)))
    assert found.means**2 + found.covariances**2 == pytest.approx(sum(cost[i][j] for i, j in enumerate(best)) / 3)
    gaps = [dense_modes(a)[i][0] - dense_modes(b)[j][0] for i, j in enumerate(best)]
    assert found.weights == pytest.approx(math.sqrt(np.mean(np.square(gaps))))
    own_spread = math.sqrt(found.total**2 - found.means**2 - found.covariances**2) / found.weights
    assert own_spread == pytest.approx(spread, rel=5e-3)


def test_modes_that_coincide_are_paired_by_their_weights():
    law = a_law(latent_dims=(3,), modes=(3,))
    with torch.no_grad():
        law.mean[0, 1], law.factor[0, 1] = law.mean[0, 0], law.factor[0, 0]
        law.mode_logits[0] = torch.tensor([0.5, 0.2, 0.3]).log()
    swapped = copy.deepcopy(law)
    with torch.no_grad():
        swapped.mode_logits[0] = law.mode_logits[0, [1, 0, 2]]
    found = law_distance(swapped, law)
    assert found.modes == ((1, 0, 2),)
    assert found.total < 1e-13


def test_a_basis_counts_as_the_law_sees_it():
    """Columns that are no longer orthonormal: the distance is that of the law with their polar factor."""
    law, off = a_law(), a_law()
    with torch.no_grad():
        off.basis[:, 0, :2] = law.basis[:, 0, :2] @ torch.tensor([[1.1, 0.2], [0.2, 0.9]], dtype=torch.float64)
    assert law_distance(off, law).total < 1e-13


@pytest.mark.parametrize("noise", [0.3, 0.0])
def test_turns_and_order_do_not_change_a_law(noise):
    law = a_law(noise=noise)
    other = copy.deepcopy(law)
    with torch.no_grad():
        for k, d in enumerate(law.latent_dims):
            R = turned(d, k)
            other.basis[:, k, :d] = law.basis[:, k, :d] @ R
            other.mean[k, :, :d] = law.mean[k, :, :d] @ R
            other.factor[k, :, :d] = R.T @ law.factor[k, :, :d] @ turned(2, 5 + k)
        other.mean[1], other.factor[1] = other.mean[1, [2, 0, 1]], other.factor[1, [2, 0, 1]]
        other.mode_logits[1] = other.mode_logits[1, [2, 0, 1]] + 3.0
        other.tau *= -1
    swapped = MoLRMoG.from_subspaces([other.subspace(1), other.subspace(0)])
    found = law_distance(swapped, law)
    assert found.total < 1e-13
    assert max(found.angles) < 1e-12
    assert (found.subspaces, found.modes) == ((1, 0), ((2, 0, 1), (0, 1)))


@pytest.mark.parametrize("noise", [0.3, 0.0])
def test_small_distances_are_exact_and_the_turns_of_a_factor_cost_nothing(noise):
    law = a_law(noise=noise)
    direction = torch.randn(law.factor.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = direction * (law.factor != 0)
    spin = law.factor @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # U -> U R, to first order

    def at(size, turn):
        other = copy.deepcopy(law)
        with torch.no_grad():
            other.factor += size * (direction + turn * spin)
        return law_distance(other, law).covariances

    assert at(1e-10, 0.0) == pytest.approx(1e-6 * at(1e-4, 0.0), rel=1e-3)
    assert at(1e-6, 1.0) == pytest.approx(at(1e-6, 0.0), rel=1e-4)


@pytest.mark.parametrize("change", ["mean", "offset", "factor", "tau", "basis", "mode_logits", "subspace_logits"])
def test_every_parameter_counts(change):
    law, other = a_law(), a_law()
    with torch.no_grad():
        if change == "basis":
            other.basis[:, 0, :2] = torch.linalg.qr(law.basis[:, 0, :2] + 0.1).Q
        else:
            getattr(other, change)[0] *= 1.1
    found = law_distance(other, law)
    assert 1e-3 < found.total < 1
    assert (found.angles > 1).tolist() == [change == "basis", False]


def test_laws_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="compare laws of one shape"):
        law_distance(a_law(), a_law(modes=(2, 2)))
