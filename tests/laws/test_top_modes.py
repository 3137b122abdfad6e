"""The best modes against the law itself and against dense Gaussians in float64."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from molrmog import MoLRMoG

LAW = MoLRMoG.random(12, (4, 3, 5), (3, 1, 4), rank=3, noise=0.2, seed=0, offset=1.0, dtype=torch.float64)
LAW.requires_grad_(False)
DRAW = torch.Generator().manual_seed(1)
S, GAMMA = torch.linspace(0.2, 1, 5).double(), torch.linspace(2, 0.05, 5).double()
X = torch.stack([LAW.sample(7, DRAW, s=float(s), gamma=float(gamma)).x for s, gamma in zip(S, GAMMA, strict=True)])


def test_all_modes_are_the_law():
    expected = LAW.denoise(X.flatten(0, 1), S.repeat_interleave(7), GAMMA.repeat_interleave(7)).view_as(X)
    torch.testing.assert_close(LAW.denoise_by_top_modes(X, S, GAMMA, 8), expected)
    torch.testing.assert_close(LAW.denoise_by_top_modes(X, S, GAMMA, 99), expected)
    narrow = MoLRMoG.from_subspaces([LAW.subspace(k) for k in range(3)], dtype=torch.float32).requires_grad_(False)
    found = narrow.denoise_by_top_modes(X.float(), S.float(), GAMMA.float(), 8)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def conditional_means(x, s, gamma):
    """log w_c N_c(x) and E[x_0 | x, c] of every mode, by dense conditioning."""
    log_joint, means = [], []
    for k in range(3):
        part = LAW.subspace(k)
        for mode, factor in enumerate(part.factors):
            loading = part.basis @ factor
            covariance = loading @ loading.T + part.tau**2 * torch.eye(12).double()
            mean = part.offset + part.basis @ part.means[mode]
            noised = s * s * covariance + gamma * gamma * torch.eye(12).double()
            weight = (part.weight * part.mode_weights[mode]).log()
            log_joint.append(weight + MultivariateNormal(s * mean, noised).log_prob(x))
            means.append(mean + s * (covariance @ torch.linalg.solve(noised, (x - s * mean).T)).T)
    return torch.stack(log_joint, 1), torch.stack(means, 1)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_a_few_modes_against_dense_conditioning(top):
    found = LAW.denoise_by_top_modes(X, S, GAMMA, top)
    for i, (s, gamma) in enumerate(zip(S, GAMMA, strict=True)):
        log_joint, means = conditional_means(X[i], s, gamma)
        best, mode = log_joint.topk(top)
        expected = (best.softmax(1)[..., None] * means[torch.arange(7)[:, None], mode]).sum(1)
        torch.testing.assert_close(found[i], expected)


def test_groups_do_not_change_the_result():
    rows = torch.randn(300, 40, 12, generator=DRAW).double()
    s, gamma = torch.rand(300, generator=DRAW).double(), 0.1 + torch.rand(300, generator=DRAW).double()
    together = LAW.denoise_by_top_modes(rows, s, gamma, 2)
    alone = torch.cat(
        [LAW.denoise_by_top_modes(rows[i : i + 1], s[i : i + 1], gamma[i : i + 1], 2) for i in range(300)]
    )
    torch.testing.assert_close(together, alone)


def test_levels_without_a_density_are_refused_and_narrow_rows_stay_narrow():
    with pytest.raises(ValueError, match="pass gamma >= 0"):
        LAW.denoise_by_top_modes(X, S, -GAMMA, 1)
    flat = MoLRMoG.random(12, (4,), (3,), noise=0.0, seed=0).requires_grad_(False)
    with pytest.raises(ValueError, match="gamma must be > 0"):
        flat.denoise_by_top_modes(X.float(), S.float(), 0 * GAMMA.float(), 1)
    assert LAW.denoise_by_top_modes(X.bfloat16(), S, GAMMA, 2).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "s", "top"), [(X[0], S, 1), (X, S[:1], 1), (X, S, 0), (X[..., :11], S, 1)], ids=["rows", "s", "top", "dim"]
)
def test_wrong_shapes_are_named(x, s, top):
    with pytest.raises(ValueError, match=r"pass \(B, L, 12\), \(B,\), \(B,\) and 1 mode or more"):
        LAW.denoise_by_top_modes(x, s, GAMMA, top)


def test_subspaces_that_are_the_whole_space_have_nothing_off_them():
    law = MoLRMoG.random(6, (6, 6), (2, 2), noise=1e-3, seed=0, separation=6.0).requires_grad_(False)
    wide = MoLRMoG.from_subspaces([law.subspace(k) for k in range(2)], dtype=torch.float64).requires_grad_(False)
    x = 10 * torch.randn(1, 400, 6, generator=torch.Generator().manual_seed(0))
    s, gamma = torch.ones(1), torch.full((1,), 1e-3)
    expected = wide.denoise_by_top_modes(x.double(), s.double(), gamma.double(), 1)
    torch.testing.assert_close(law.denoise_by_top_modes(x, s, gamma, 1).double(), expected, rtol=1e-3, atol=1e-3)
