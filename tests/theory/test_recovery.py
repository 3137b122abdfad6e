"""The bases' denoiser against the law's, K-subspaces against principal components, and what d rows cannot tell."""

import itertools

import pytest
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.metrics import principal_angles, subspace_error
from molrmog.theory.recovery import bases_denoiser, k_subspaces, random_bases, score_bases, turned


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_on(bases, count, seed=1):
    """Rows of each subspace, with shape (K count, D)."""
    K, _, d = bases.shape
    z = torch.randn(K, count, d, generator=draw(seed), dtype=torch.float64)
    return (z @ bases.mT).flatten(0, 1)


def test_the_denoiser_of_bases_is_that_of_the_law_with_unit_factors():
    bases = random_bases(3, 2, 10, 4, draw())
    x = torch.randn(20, 10, generator=draw(1), dtype=torch.float64)
    s, gamma = (0.3 + torch.rand(20, generator=draw(2 + i), dtype=torch.float64) for i in range(2))
    found = bases_denoiser(bases, x, s, gamma)
    for start, expected in zip(bases, found, strict=True):
        law = MoLRMoG(10, [4, 4], [1, 1], dtype=torch.float64).requires_grad_(False)
        law.basis.copy_(start.transpose(0, 1))
        law.factor.copy_(torch.eye(4).expand_as(law.factor))
        torch.testing.assert_close(expected, law.denoise(x, s, gamma))


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_turned_bases_have_all_their_angles(angle):
    bases = random_bases(2, 2, 9, 4, draw()).flatten(0, 1)
    found = turned(bases, angle, draw(1))
    for one, other in zip(bases, found, strict=True):
        torch.testing.assert_close(other.T @ other, torch.eye(4, dtype=torch.float64))
        assert principal_angles(one, other) == pytest.approx([angle] * 4, abs=1e-6)
    with pytest.raises(ValueError, match="2 d <= D"):
        turned(random_bases(1, 1, 5, 3), 10.0)


def test_one_subspace_is_principal_components():
    x = torch.randn(30, 6, generator=draw(), dtype=torch.float64) * torch.arange(1, 7)
    found, energy = k_subspaces(x, random_bases(2, 1, 6, 2, draw(1)))
    _, lengths, axes = torch.linalg.svd(x)
    for bases in found:
        assert principal_angles(bases[0], axes[:2].T)[-1] < 1e-6
    torch.testing.assert_close(energy, lengths[2:].square().sum().expand(2) / 30)


def test_k_subspaces_never_gains_energy_and_finds_clean_subspaces():
    truth = random_bases(1, 3, 12, 2, draw())[0]
    x = rows_on(truth, 15)
    starts = random_bases(20, 3, 12, 2, draw(2))
    before = (x.square().sum(1) - (x @ starts).square().sum(-1)).amin(1).mean(1)
    energies = [before] + [k_subspaces(x, starts, steps)[1] for steps in (1, 2, 4, 50)]
    for earlier, later in itertools.pairwise(energies):
        assert bool((later <= earlier + 1e-12).all())
    bases, energy = k_subspaces(x, starts)
    assert float(energy.min()) < 1e-14
    assert subspace_error(list(bases[energy.argmin()]), list(truth)).max < 1e-5


def test_an_empty_subspace_starts_afresh():
    truth = random_bases(1, 2, 8, 2, draw())[0]
    x = rows_on(truth, 10)
    nowhere = torch.linalg.svd(x).Vh[-2:].T  # orthogonal to all rows
    bases, energy = k_subspaces(x, torch.stack([truth[0], nowhere])[None])
    assert float(energy) < 1e-14
    assert subspace_error(list(bases[0]), list(truth)).max < 1e-5


def test_d_rows_each_fit_any_split_and_one_row_more_the_true_one_alone():
    """All splits of the rows into two groups, by brute force: which have the loss 0 of K-subspaces."""
    d = 2
    truth = random_bases(1, 2, 8, d, draw())[0]
    for count, expected in ((d, 3), (d + 1, 1)):
        x = rows_on(truth, count)
        fits = 0
        for size in range(count, 2 * count + 1):
            for chosen in itertools.combinations(range(2 * count), size):
                if size == count and 0 not in chosen:
                    continue  # the same split, named from its other side
                rest = [i for i in range(2 * count) if i not in chosen]
                fits += all(torch.linalg.matrix_rank(x[list(group)]) <= d for group in (chosen, rest) if group)
        assert fits == expected


def test_score_matching_recovers_what_is_well_sampled():
    truth = random_bases(1, 2, 12, 2, draw())[0]
    x = rows_on(truth, 20)
    starts = torch.cat([random_bases(2, 2, 12, 2, draw(3)), turned(truth, 30.0, draw(4))[None]])
    bases, loss = score_bases(x, starts, generator=draw(5))
    torch.testing.assert_close(bases.mT @ bases, torch.eye(2, dtype=torch.float64).expand(3, 2, 2, 2))
    assert subspace_error(list(bases[2]), list(truth)).max < 3.0
    assert float(loss[2]) <= float(loss.min()) * 1.05
