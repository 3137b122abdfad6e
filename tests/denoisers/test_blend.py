"""Weights against numpy's least squares, and a blend against each of its parts."""

import numpy as np
import pytest
import torch

import molrmog
from molrmog import BlendDenoiser, MLPDenoiser, MoLRMoG, PatchDenoiser, ResidualDenoiser
from molrmog.denoisers.levels import log_sigma_grid, unit_level


def a_law(seed, dim=8, dtype=torch.float64):
    return MoLRMoG.random(dim, (2, 3), (2, 1), noise=0.2, seed=seed, dtype=dtype).requires_grad_(False)


def noised(x0, s, gamma, seed):
    return s * x0 + gamma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=x0.dtype)


def test_weights_are_those_of_least_squares():
    truth, parts = a_law(0), [a_law(1), a_law(2)]
    x = truth.sample(2000, torch.Generator().manual_seed(0)).x
    blend = BlendDenoiser(parts).double().fit_(x, seed=3)
    mean = x.mean(0)
    draw = torch.Generator().manual_seed(3)
    for i, log_sigma in enumerate(log_sigma_grid()):
        s, gamma = unit_level(log_sigma)
        x0 = x[torch.randint(len(x), (256,), generator=draw)]
        xt = s * x0 + gamma * torch.randn(x0.shape, generator=draw)
        said = np.stack([(part.denoise(xt, s, gamma) - mean).flatten().numpy() for part in parts], 1)
        weights = np.linalg.lstsq(said, (x0 - mean).flatten().numpy(), rcond=None)[0]
        best, found = (
            np.square(said @ w - (x0 - mean).flatten().numpy()).mean()
            for w in (weights, blend.weights.values[i].numpy())
        )
        assert best <= found <= 1.001 * best
        if -5 < log_sigma < 1:  # beyond, the parts say nearly the same, or nothing
            np.testing.assert_allclose(blend.weights.values[i].numpy(), weights, atol=0.02)


@pytest.mark.parametrize("log_sigma", log_sigma_grid()[10:40:7].tolist())
def test_a_blend_is_no_worse_than_its_parts_on_fresh_rows(log_sigma):
    truth = a_law(0)
    draw = torch.Generator().manual_seed(0)
    x, fresh = (truth.sample(4000, draw).x for _ in range(2))
    parts = [a_law(1), a_law(2), MoLRMoG.from_subspaces([truth.subspace(0)]).requires_grad_(False)]
    blend = BlendDenoiser(parts).double().fit_(x)
    s, gamma = unit_level(log_sigma)
    xt = noised(fresh, s, gamma, 5)
    losses = [float((part.denoise(xt, s, gamma) - fresh).square().mean()) for part in (blend, *parts)]
    assert losses[0] <= 1.01 * min(losses[1:])


def test_the_truth_takes_all_the_weight():
    truth = a_law(0)
    blend = BlendDenoiser([a_law(1), truth]).double().fit_(truth.sample(4000, torch.Generator().manual_seed(0)).x)
    middle = blend.weights.values[15:30]  # sigma from 0.04 to 2
    torch.testing.assert_close(middle, torch.tensor([0.0, 1.0]).double().expand_as(middle), atol=0.1, rtol=0)


def test_twins_share_their_weight():
    truth = a_law(0)
    blend = BlendDenoiser([truth, truth]).double().fit_(truth.sample(1000).x)
    torch.testing.assert_close(blend.weights.values[:, 0], blend.weights.values[:, 1])
    assert blend.denoise(torch.zeros(2, 8).double(), 1.0, 0.0).isfinite().all()


def test_it_comes_back_from_a_folder(tmp_path):
    law, patch = a_law(0, 16, torch.float32), a_law(1, 4, torch.float32)
    blend = BlendDenoiser([law, PatchDenoiser(patch, (1, 4, 4), 2), MLPDenoiser(16, width=8)])
    x = law.sample(500).x
    blend.fit_(x).eval().save_pretrained(tmp_path)
    again = molrmog.load(tmp_path)
    s = torch.rand(500)
    assert torch.equal(again.denoise(x, s, 1 - s), blend.denoise(x, s, 1 - s))


def test_parts_must_have_one_dimension():
    with pytest.raises(ValueError, match=r"denoisers of dimensions \[4, 8\]"):
        BlendDenoiser([a_law(0), a_law(0, dim=4)])
    with pytest.raises(ValueError, match="pass at least one"):
        BlendDenoiser([])


@pytest.mark.parametrize(
    ("rows", "message"), [((100, 4), r"pass rows with shape \(N, 8\)"), ((2, 8), "2 rows: pass at least")]
)
def test_rows_to_fit_to_are_looked_at(rows, message):
    with pytest.raises(ValueError, match=message):
        BlendDenoiser([a_law(0)]).fit_(torch.zeros(rows))
    with pytest.raises(ValueError, match=message):
        ResidualDenoiser(a_law(0), MLPDenoiser(8, width=8, inputs=2)).measure_(torch.zeros(rows))


def test_autocast_leaves_the_blend_as_it_is():
    blend = BlendDenoiser([a_law(1, dtype=torch.float32), a_law(2, dtype=torch.float32)])
    x = a_law(0, dtype=torch.float32).sample(64, torch.Generator().manual_seed(0)).x
    blend.fit_(x)
    xt = noised(x, 1.0, 1e-3, 0)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = blend.denoise(xt, 1.0, 1e-3)
    torch.testing.assert_close(narrow, blend.denoise(xt, 1.0, 1e-3))
