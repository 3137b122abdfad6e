"""The empirical denoiser is the law of n points."""

import pytest
import torch

from molrmog import MoLRMoG
from molrmog.theory.empirical import EmpiricalDenoiser


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_the_posterior_mean_of_a_law_of_points(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 3, generator=generator, dtype=dtype)
    law = MoLRMoG(3, [3], [7], [[0] * 7], dtype=dtype).requires_grad_(False)
    law.mean[0] = rows
    x = torch.randn(20, 3, generator=generator, dtype=dtype)
    gamma = torch.linspace(0.05, 2.0, 20, dtype=dtype)
    found = EmpiricalDenoiser(rows).denoise(x, 0.8, gamma)
    assert torch.allclose(found, law.denoise(x, 0.8, gamma), atol=tolerance)


def test_chunks_of_rows_do_not_show(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    denoiser = EmpiricalDenoiser(torch.randn(50, 4, generator=generator))
    x = torch.randn(100, 4, generator=generator)
    whole = denoiser.denoise(x, 0.8, 0.6)
    monkeypatch.setattr("molrmog.theory.empirical.rows_per_chunk", lambda device, width: 16)
    assert torch.allclose(denoiser.denoise(x, 0.8, 0.6), whole, atol=1e-6)


def test_it_says_what_is_wrong():
    with pytest.raises(ValueError, match="pass at least one"):
        EmpiricalDenoiser(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="gamma must be > 0"):
        EmpiricalDenoiser(torch.zeros(2, 3)).denoise(torch.zeros(1, 3), 1.0, 0.0)
