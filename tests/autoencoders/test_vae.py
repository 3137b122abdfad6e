"""Variational autoencoders: shapes, the evidence lower bound, and that training lowers it."""

import pytest
import torch
from torch import distributions

from molrmog.autoencoders import MLPVAE, ConvVAE, VAELoss
from molrmog.autoencoders.vae import kl_divergence


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 9), (1, 1, 1)])
@pytest.mark.parametrize("channels", [(8,), (16, 8, 8)])
def test_images_of_any_size(shape, channels):
    vae = ConvVAE(shape, 3, channels=channels)
    x = torch.rand(2, vae.dim) * 2 - 1
    assert vae.encode(x).shape == (2, 3)
    assert vae.decode(vae.encode(x)).shape == x.shape
    bottom = [-(-side // 2 ** len(channels)) for side in shape[1:]]
    vae = ConvVAE(shape, latent_shape=(4, *bottom), channels=channels)
    mean, log_variance = vae.posterior(x)
    assert mean.shape == log_variance.shape == (2, vae.latent_dim)
    assert vae.decode(mean).shape == x.shape


def test_sizes_of_the_defaults():
    """Experts for MNIST and CIFAR-10 stay small."""
    assert 1e5 < ConvVAE((1, 28, 28)).num_parameters < 2e5
    assert 1e5 < ConvVAE((3, 32, 32), 32).num_parameters < 3e5
    assert ConvVAE((1, 28, 28)).latent_dim == MLPVAE((1, 28, 28)).latent_dim == 16


def test_image_shaped_latents_stay_in_place():
    """What moves by one latent pixel moves by one stage's stride, away from the border."""
    vae = ConvVAE((1, 64, 64), latent_shape=(2, 16, 16), channels=(8, 16)).double()
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # the norm sees the whole image: look past it
    x = torch.zeros(2, 1, 64, 64).double()
    x[0, 0, 26:30, 26:30] = torch.randn(4, 4)
    x[1] = x[0].roll((4, 4), (1, 2))
    z = vae.encode_raw(x.flatten(1)).reshape(2, 2, 16, 16)
    torch.testing.assert_close(z[1, :, 5:12, 5:12], z[0, :, 4:11, 4:11])


@torch.no_grad()
def test_images_are_bounded_and_rows_are_not():
    for vae, bounded in [
        (MLPVAE((1, 4, 4), 2, (8,)), True),
        (ConvVAE((1, 4, 4), 2, channels=(8,)), True),
        (MLPVAE((16,), 2, (8,)), False),
        (ConvVAE((1, 4, 4), 2, channels=(8,), bounded=False), False),
    ]:
        for parameter in vae.decoder.parameters():
            parameter.mul_(100)
        assert (float(vae.decode(torch.randn(50, 2)).abs().max()) <= 1) == bounded
        assert type(vae).from_config(vae.config).bounded == bounded


def test_upsampling_starts_without_a_checkerboard():
    decoder = ConvVAE((1, 8, 8), 2, channels=(8,)).decoder
    image = decoder(torch.randn(3, 2))
    torch.testing.assert_close(image[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3), image)


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(2, 6, 4)
    q = distributions.Normal(mean, (log_variance / 2).exp())
    expected = distributions.kl_divergence(q, distributions.Normal(torch.zeros(4), torch.ones(4))).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


@pytest.mark.parametrize("reconstruction", ["mse", "l1"])
def test_the_loss_is_the_evidence_lower_bound(reconstruction):
    """Gaussian decoder of variance beta / 2, Laplace decoder of scale beta, less what does not depend on weights."""
    vae, beta = MLPVAE((6,), 3, (8,)).double(), 0.3
    loss = VAELoss(vae, beta, reconstruction)
    x, eps = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    mean, log_variance = vae.posterior(x)
    q = distributions.Normal(mean, (log_variance / 2).exp())
    decoded = vae.decode_raw(mean + eps * q.stddev)
    if reconstruction == "mse":
        p = distributions.Normal(decoded, (beta / 2) ** 0.5)
    else:
        p = distributions.Laplace(decoded, beta)
    constant = p.log_prob(decoded).sum(1)
    prior = distributions.Normal(torch.zeros(3).double(), torch.ones(3).double())
    elbo = p.log_prob(x).sum(1) - distributions.kl_divergence(q, prior).sum(1)
    torch.testing.assert_close(loss(x, eps), beta / 6 * (constant - elbo))


def test_noise_is_drawn_for_the_whole_batch():
    loss = VAELoss(MLPVAE((6,), 3, (8,)))
    (eps,) = loss.draw(7, torch.Generator().manual_seed(0))
    assert torch.equal(eps, torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))


def test_standardisation_does_not_enter_the_loss():
    loss = VAELoss(MLPVAE((6,), 3, (8,)))
    x, (eps,) = torch.randn(20, 6), loss.draw(20)
    before = loss(x, eps)
    loss.autoencoder.standardise_(x)
    assert torch.equal(loss(x, eps), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: MLPVAE((1, 8, 8), 2, (32,)), lambda: ConvVAE((1, 8, 8), 2, channels=(8,))], ids=["mlp", "conv"]
)
def test_training_finds_the_two_coordinates_of_a_moving_blob(make):
    torch.manual_seed(0)
    centre, grid = torch.rand(256, 2) * 4 - 2, torch.linspace(-3, 3, 8)
    squares = (grid - centre[:, :1]).square()[:, :, None] + (grid - centre[:, 1:]).square()[:, None, :]
    x = (2 * (-squares / 2).exp() - 1).flatten(1)
    loss = VAELoss(make(), beta=0.01)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss(x, *loss.draw(256)).mean().backward()
        optimiser.step()
    with torch.no_grad():
        vae = loss.autoencoder.standardise_(x)
        unexplained = (vae.decode(vae.encode(x)) - x).square().mean() / x.var(0).mean()
    assert float(unexplained) < 0.25


def test_what_cannot_be_built_gets_one_line():
    for make, match in [
        (lambda: ConvVAE((784,)), "rows go to an MLPVAE"),
        (lambda: ConvVAE((1, 28, 28), 16, (1, 7, 7)), "pass one of them"),
        (lambda: ConvVAE((1, 28, 28), latent_shape=(4, 8, 8)), r"2 stages end at 7 x 7, so pass \(c, 7, 7\)"),
        (lambda: ConvVAE((1, 28, 28), channels=(12,)), "multiples of 8"),
        (lambda: ConvVAE((1, 28, 28), channels=()), "one or more"),
        (lambda: MLPVAE((4,), widths=(0,)), "positive"),
        (lambda: VAELoss(MLPVAE((4,)), beta=-1.0), "pass 0 or more"),
        (lambda: VAELoss(MLPVAE((4,)), beta=float("nan")), "pass 0 or more"),
        (lambda: VAELoss(MLPVAE((4,)), reconstruction="l3"), 'pass "mse" or "l1"'),
    ]:
        with pytest.raises(ValueError, match=match) as error:
            make()
        assert "\n" not in str(error.value)
