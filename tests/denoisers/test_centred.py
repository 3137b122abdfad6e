"""Means moved by hand, and a law, whose denoiser knows its mean."""

import pytest
import torch

import molrmog
from molrmog import CentredDenoiser, MLPDenoiser, MoLRMoG


def test_a_law_around_zero_is_the_law_around_its_mean():
    law = MoLRMoG.random(8, (3,), (2,), noise=0.2, seed=0, offset=2.0, dtype=torch.float64).requires_grad_(False)
    moved = MoLRMoG.random(8, (3,), (2,), noise=0.2, seed=0, offset=2.0, dtype=torch.float64).requires_grad_(False)
    mean = torch.linspace(-1, 1, 8)
    moved.offset.sub_(mean)
    x = law.sample(20, torch.Generator().manual_seed(0), s=0.8, gamma=0.5).x
    s = torch.full((20,), 0.8).double()
    for level in (0.8, s):
        torch.testing.assert_close(CentredDenoiser(moved, mean).denoise(x, level, 0.5), law.denoise(x, 0.8, 0.5))


def test_it_comes_back_from_a_folder(tmp_path):
    network = CentredDenoiser(MLPDenoiser(6, width=8, sigma_data=0.7), torch.arange(6.0)).eval()
    network.save_pretrained(tmp_path)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    again = molrmog.load(tmp_path)
    assert torch.equal(again.denoise(x, 0.8, 0.5), network.denoise(x, 0.8, 0.5))
    assert torch.equal(again.mean, torch.arange(6.0))


def test_the_network_is_asked_for_what_lies_around_the_mean():
    network = CentredDenoiser(MLPDenoiser(6, width=8, sigma_data=0.5), torch.full((6,), 3.0))
    x = torch.full((1, 6), 3.0)  # the mean itself, without noise
    torch.testing.assert_close(network.denoise(x, 1.0, 1e-6), x)
    torch.testing.assert_close(network.denoise(torch.zeros(1, 6), 0.0, 1.0), x)  # F is zero before training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CentredDenoiser(MLPDenoiser(6, width=8), torch.zeros(5)), r"pass \(6,\), as rows.mean\(0\) has"),
        (
            lambda: CentredDenoiser(MLPDenoiser(6, width=8), torch.zeros(6)).denoise(torch.zeros(2, 5), 1.0, 0.5),
            r"pass rows with shape \(B, 6\)",
        ),
    ],
)
def test_wrong_shapes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
