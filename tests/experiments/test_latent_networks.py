"""Networks by name, against formulas for their sizes and against moments and starts of the latents."""

import inspect
import math

import pytest
import torch

from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.gaussian import GaussianDenoiser
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.experiments.networks import NETWORKS, folded, latent_network
from molrmog.learning.starts import STARTS, mog_start

D, K = 6, 3


def latents(rows=400, dtype=torch.float64):
    """Latents of K experts that are far from Gaussian, off the origin, and the expert of each."""
    draw = torch.Generator().manual_seed(0)
    expert = torch.arange(rows) % K
    means = 2 * torch.randn(K, 2, D, generator=draw, dtype=dtype)
    mode = torch.randint(2, (rows,), generator=draw)
    spread = torch.linspace(0.3, 1, D, dtype=dtype)
    return means[expert, mode] + spread * torch.randn(rows, D, generator=draw, dtype=dtype), expert


def size(name, **options):
    return latent_network(name, *latents(dtype=torch.float32), (D,), **options).num_parameters


@pytest.mark.parametrize("rank", [1, 2, D])
def test_mixtures_have_as_many_numbers_as_their_formula(rank):
    n = 4
    assert size("mog", modes=n, rank=rank) == K * (n * D + n * D * rank + n)  # means, factors, weights
    assert size("mog", modes=n, rank=rank, learn="mean") == K * n * D
    assert size("mog", modes=n, rank=rank, latent_dim=2, learn=["mean", "basis"]) == K * (n * 2 + 2 * D)
    assert size("gaussian", rank=rank) == K * D * rank
    assert size("gaussian", rank=rank, learned_mean=True) == K * (D + D * rank)
    # All that a Gaussian has: offset, basis, factor, tau and logits of one mode and one subspace.
    assert size("gaussian", rank=rank, learn="all", learned_mean=True) == K * (2 * D + D * D + D * rank + 1 + 1 + 1)


def test_an_mlp_has_as_many_numbers_as_its_formula():
    w, depth = 10, 2
    block = (2 * w * w + 2 * w) + (2 * w * w + 2 * w) + (2 * w * w + w)
    expected = (D * w + w) + 2 * (w * w + w) + K * w + depth * block + 2 * w + (w * D + D)
    assert size("mlp", width=w, depth=depth) == expected
    assert size("mlp", width=w, depth=depth, experts=K + 2) == expected + 2 * w


def test_a_unet_gets_flat_latents_folded_and_is_told_the_expert():
    z, expert = torch.randn(8, 32), torch.arange(8) % K
    flat = latent_network("unet", z, expert, (32,), channels=(8, 16))
    image = latent_network("unet", z, expert, (8, 2, 2), channels=(8, 16), experts=K + 2, layers=2)
    assert (flat.shape, image.shape, image.layers) == ((2, 4, 4), (8, 2, 2), 2)
    known = latent_network("unet", z, expert, (32,), channels=(8, 16), experts=K + 2)
    assert known.num_parameters - flat.num_parameters == 2 * 4 * 8  # an embedding of 4 channels[0] numbers each
    # It starts at the denoiser of N(0, I): D = s / (s^2 + gamma^2) x.
    found = flat.denoise(z, 0.8, 0.5, expert=expert)
    torch.testing.assert_close(found, 0.8 / (0.8**2 + 0.5**2) * z)


@pytest.mark.parametrize("learned_mean", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussians_start_at_the_moments_of_the_latents(learned_mean, dtype):
    z, expert = latents(dtype=dtype)
    network = latent_network("gaussian", z, expert, (D,), learned_mean=learned_mean)
    assert isinstance(network, PerExpert)
    for k, each in enumerate(network.networks):
        own = z[expert == k]
        assert isinstance(each, GaussianDenoiser)
        mean, factor, tau = each.law.mean[0, 0], each.law.factor[0, 0], each.law.tau[0]
        covariance = factor @ factor.T + tau**2 * torch.eye(D, dtype=dtype)
        expected = own.T.cov(correction=0) if learned_mean else own.T @ own / len(own)
        torch.testing.assert_close(covariance, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean, own.mean(0) if learned_mean else torch.zeros(D, dtype=dtype))
        # So it is the best linear denoiser of what it is told, through the origin or not.
        s, gamma = 0.7, 0.4
        x = s * own + gamma * torch.randn(own.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        gain = s * expected @ torch.linalg.inv(s**2 * expected + gamma**2 * torch.eye(D, dtype=dtype))
        found = network.denoise(x, s, gamma, expert=k)
        torch.testing.assert_close(found, mean + (x - s * mean) @ gain.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", STARTS)
def test_mixtures_start_at_their_expert_s_latents(start):
    z, expert = latents()
    options = {"modes": 3, "start": start, "rank": 2, "latent_dim": 5, "seed": 4}
    network = latent_network("mog", z, expert, (D,), **options)
    for k, each in enumerate(network.networks):
        assert isinstance(each, MoGDenoiser)
        assert each.learn == ("mean", "factor", "mode_weights")
        law = mog_start(z[expert == k], 5, 3, start, 4, rank=2)
        for name, found in each.law.named_parameters():
            assert torch.equal(found, law.get_parameter(name)), name


def test_an_expert_of_few_rows_gets_what_they_can_hold():
    z, expert = latents(12)
    few = torch.cat([z[expert != 1], z[expert == 1][:3]])
    owner = torch.cat([expert[expert != 1], torch.tensor([1, 1, 1])])
    modes = [each.law.modes for each in latent_network("mog", few, owner, (D,), modes=4).networks]
    assert modes == [((2),), ((1),), ((2),)]
    assert latent_network("gaussian", few, owner, (D,)).networks[1].law.latent_dims == (2,)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_makes_the_same_network_and_every_expert_is_known(name):
    z, expert = latents(rows=60, dtype=torch.float32)
    options = {"width": 8, "depth": 1, "channels": (8, 8), "modes": 2, "seed": 3}
    first, second = (latent_network(name, z, expert, (D,), **options) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.dim == D
    assert first.denoise(z, 0.8, 0.6, expert=expert).shape == z.shape
    with pytest.raises(ValueError, match="experts 0 to 2"):
        first.denoise(z, 0.8, 0.6, expert=K)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="unknown network 'transformer': choose one of mog, gaussian, unet, mlp"):
        latent_network("transformer", *latents(), (D,))


@pytest.mark.parametrize(
    ("d", "shape"),
    [
        (1, (1, 1, 1)),
        (7, (7, 1, 1)),
        (8, (2, 2, 2)),
        (18, (18, 1, 1)),
        (32, (2, 4, 4)),
        (48, (3, 4, 4)),
        (64, (4, 4, 4)),
        (128, (2, 8, 8)),
    ],
)
def test_flat_latents_are_folded_into_a_square(d, shape):
    assert folded(d) == shape
    assert math.prod(shape) == d


def test_options_are_those_that_are_documented():
    words = inspect.getdoc(latent_network)
    assert all(f"{name}: " in words for name in inspect.signature(latent_network).parameters)
