"""Sampling from experts: who is drawn, that latents follow their laws, and that rows are decoded latents."""

import pytest
import torch

from molrmog import (
    Experts,
    GuidedDenoiser,
    MLPDenoiser,
    MoGDenoiser,
    MoLRMoG,
    PerExpert,
    VPSchedule,
    sample,
    sample_experts,
)
from molrmog.autoencoders.linear import LinearAutoencoder
from molrmog.denoisers.base import given

D, d, K = 4, 2, 3
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


def model(denoiser=None):
    generator = torch.Generator().manual_seed(0)
    autoencoders = [
        LinearAutoencoder.from_basis(
            torch.linalg.qr(torch.randn(D, d, generator=generator)).Q, torch.full((D,), float(k))
        )
        for k in range(K)
    ]
    laws = [MoLRMoG.random(d, (d,), (2,), noise=0.1, seed=k, separation=1.0) for k in range(K)]
    return Experts(autoencoders, denoiser or PerExpert([MoGDenoiser(law) for law in laws]), WEIGHTS)


def test_experts_are_drawn_by_their_weights(generator):
    n = 5000
    drawn = sample_experts(model(), VPSchedule(), n, sampler="exact", generator=generator)
    error = (torch.bincount(drawn.expert, minlength=K) / n - WEIGHTS).abs() / (WEIGHTS * (1 - WEIGHTS) / n).sqrt()
    assert float(error.max()) < 5


@pytest.mark.parametrize("sampler", ["exact", "heun"])
def test_latents_follow_the_laws_of_their_experts(sampler, generator):
    whole, n = model(), 3000
    drawn = sample_experts(whole, VPSchedule(), n, sampler=sampler, steps=32, generator=generator)
    for k in range(K):
        matched = whole.latent_laws[k].moment_matched().subspace(0)
        U = matched.basis @ matched.factors[0]
        cov = U @ U.T + matched.tau**2 * torch.eye(d)
        z = drawn.latent[drawn.expert == k]
        standard_error = (cov.diagonal() / len(z)).sqrt()
        assert float(((z.mean(0) - matched.offset).abs() / standard_error).max()) < 5
        torch.testing.assert_close(z.T.cov(), cov, rtol=0.2, atol=0.1)


@torch.no_grad()
def test_rows_are_decoded_latents(generator):
    whole = model()
    drawn = sample_experts(whole, VPSchedule(), 20, steps=4, generator=generator, batch_size=7)
    assert drawn.x.shape == (20, D)
    torch.testing.assert_close(drawn.x, whole.decode(drawn.latent, drawn.expert))


@torch.no_grad()
def test_a_given_expert(generator):
    whole = model()
    drawn = sample_experts(whole, VPSchedule(), 20, expert=1, steps=4, generator=generator)
    assert (drawn.expert == 1).all()
    generator.manual_seed(0)
    alone = sample(whole.denoiser.denoisers[1], VPSchedule(), (20, d), steps=4, generator=generator)
    torch.testing.assert_close(drawn.latent, alone)
    chosen = torch.tensor([2, 0, 1])
    assert torch.equal(sample_experts(whole, VPSchedule(), 3, expert=chosen, steps=2).expert, chosen)


@pytest.mark.parametrize("sampler", ["exact", "heun", "ancestral"])
def test_a_seed_gives_the_same_samples(sampler):
    first, second = (
        sample_experts(
            model(), VPSchedule(), 9, sampler=sampler, steps=3, generator=torch.Generator().manual_seed(5), batch_size=4
        )
        for _ in range(2)
    )
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.expert, second.expert)


@torch.no_grad()
def test_guided_samples_are_walked_by_the_guided_denoiser(generator):
    latent = MLPDenoiser(d, width=8, experts=K, unconditional=True)
    for parameter in latent.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    generator.manual_seed(0)
    whole = model(latent)
    options = {"steps": 4, "batch_size": 7, "expert": torch.arange(10) % K}
    drawn = sample_experts(whole, VPSchedule(), 10, guidance=2.0, generator=generator, **options)
    generator.manual_seed(0)
    walkers = [given(GuidedDenoiser(latent, 2.0), k) for k in drawn.expert.split(7)]
    walked = [
        sample(each, VPSchedule(), (n, d), steps=4, generator=generator)
        for each, n in zip(walkers, (7, 3), strict=True)
    ]
    torch.testing.assert_close(drawn.latent, torch.cat(walked))
    generator.manual_seed(0)
    plain = sample_experts(whole, VPSchedule(), 10, generator=generator, **options)
    assert not torch.allclose(plain.latent, drawn.latent)


def test_refusals():
    neural = model(MLPDenoiser(d, width=8, experts=K))
    assert sample_experts(neural, VPSchedule(), 3, steps=2).x.isfinite().all()
    with pytest.raises(ValueError, match="these latent denoisers are none: try 'heun'"):
        sample_experts(neural, VPSchedule(), 3, sampler="exact")
    with pytest.raises(ValueError, match="at least 1"):
        sample_experts(neural, VPSchedule(), 0)
    with pytest.raises(ValueError, match="needs a sampler with steps, and exact has none: try 'heun'"):
        sample_experts(model(), VPSchedule(), 3, sampler="exact", guidance=2.0)
    with pytest.raises(ValueError, match="does not answer without an expert"):
        sample_experts(neural, VPSchedule(), 3, guidance=2.0)
    for sampler in ("exact", "heun"):
        with pytest.raises(ValueError, match="experts 0 to 2"):
            sample_experts(model(), VPSchedule(), 3, expert=3, sampler=sampler)
    with pytest.raises(ValueError, match="one per row"):
        sample_experts(model(), VPSchedule(), 3, expert=torch.tensor([0, 1]))
