"""Experts: rows go where they belong, and K MoG experts in linear autoencoders are the law itself."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import molrmog
from molrmog import Experts, MLPDenoiser, MoGDenoiser, MoLRMoG, PerExpert, Subspace
from molrmog.autoencoders import MLPVAE, LinearAutoencoder
from molrmog.autoencoders.lora import LoRAExperts
from molrmog.denoisers.mog import latent_law
from oracles.dense import DenseLaw
from oracles.laws import head_tail_law, ragged_law

D, d, K = 5, 2, 3


class Affine(torch.nn.Module):
    """z = (A^T (x - b) - m) / c."""

    linear = True

    def __init__(self, basis, offset, mean, scale):
        super().__init__()
        self.basis, self.offset = torch.nn.Parameter(basis), torch.nn.Parameter(offset)
        self.mean, self.latent_scale = mean, torch.as_tensor(scale, dtype=basis.dtype)
        self.dim, self.latent_dim = basis.shape

    def encode(self, x):
        return ((x - self.offset) @ self.basis - self.mean) / self.latent_scale

    def decode(self, z):
        return self.offset + (self.mean + self.latent_scale * z) @ self.basis.T


class Squashing(Affine):
    linear = False

    def decode(self, z):
        return super().decode(z).tanh()


def root(covariance):
    variance, axes = torch.linalg.eigh(covariance)
    return axes * variance.clamp(min=0).sqrt()


def whole_model(seed=0, dtype=torch.float64, gate=None, kind=Affine):
    """K MoG experts, and the law over R^D that they are: latent noise tau_k counts inside the subspace only."""
    law = ragged_law(seed, D, (d,) * K, ((2, 1), (2, 0, 1), (1,)), (0.3, 0.1, 0.0), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    autoencoders, networks, parts = [], [], []
    for k in range(K):
        part = law.subspace(k)
        mean, scale = torch.randn(d, generator=generator, dtype=torch.float64).to(dtype), 0.5 + k
        autoencoders.append(kind(part.basis, part.offset, mean, scale))
        networks.append(MoGDenoiser(latent_law(law, k, mean, scale)))
        factors = tuple(root(U @ U.T + part.tau**2 * torch.eye(d, dtype=dtype)) for U in part.factors)
        parts.append(Subspace(part.weight, part.basis, part.offset, 0.0, part.mode_weights, part.means, factors))
    weights = [part.weight for part in parts]
    return Experts(autoencoders, PerExpert(networks), weights, gate), MoLRMoG.from_subspaces(parts)


def noised(law, n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = law.sample(n, generator)
    s = torch.rand(n, generator=generator).to(samples.x)
    s[0] = 0
    gamma = 0.05 + torch.rand(n, generator=generator).to(s)
    noise = torch.randn(n, law.dim, generator=generator).to(s)
    return s[:, None] * samples.x + gamma[:, None] * noise, s, gamma, samples.subspace


@hypothesis.given(st.integers(0, 1000))
def test_mog_experts_in_linear_autoencoders_are_the_law(seed):
    model, law = whole_model(seed)
    x, s, gamma, _ = noised(law, seed=seed)
    dense = DenseLaw.of(law)
    torch.testing.assert_close(model.denoise(x, s, gamma).detach(), dense.posterior_mean(x, s, gamma), **CLOSE)
    gates = torch.zeros(len(x), K, dtype=x.dtype).index_add(1, law.component_of, dense.log_gates(x, s, gamma).exp())
    torch.testing.assert_close(model.responsibilities(x, s, gamma).detach(), gates, **CLOSE)
    torch.testing.assert_close(model.denoise(x, 0.7, 0.4).detach(), dense.posterior_mean(x, 0.7, 0.4), **CLOSE)


CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_a_given_expert_is_the_law_of_its_subspace():
    model, law = whole_model(1)
    x, s, gamma, expert = noised(law)
    expected = torch.empty_like(x)
    for k in range(K):
        alone = DenseLaw.of(MoLRMoG.from_subspaces([law.subspace(k)])).posterior_mean(x, s, gamma)
        expected[expert == k] = alone[expert == k]
        torch.testing.assert_close(model.denoise(x, s, gamma, expert=k).detach(), alone, **CLOSE)
    torch.testing.assert_close(model.denoise(x, s, gamma, expert=expert).detach(), expected, **CLOSE)


@torch.no_grad()
def test_float32_routes_as_float64_does():
    wide, law = whole_model(2)
    narrow, _ = whole_model(2, dtype=torch.float32)
    x, _, _, _ = noised(law, n=200)
    for gamma in (1e-2, 0.1, 1.0):
        torch.testing.assert_close(
            narrow.responsibilities(x.float(), 1.0, gamma).double(),
            wide.responsibilities(x, 1.0, gamma),
            rtol=0,
            atol=1e-2,
        )


def test_gradients_reach_the_experts():
    """One-sided derivatives of the routed denoiser against finite differences of the dense law's."""
    model, law = whole_model(3)
    x, s, gamma, _ = noised(law)
    network = model.denoiser.denoisers[0]
    model.denoise(x, s, gamma).square().sum().backward()
    step = 1e-5
    values = []
    for sign in (-1, 1):
        with torch.no_grad():
            network.law.mean[0, 0, 0] += sign * step
            values.append(float(model.denoise(x, s, gamma).square().sum()))
            network.law.mean[0, 0, 0] -= sign * step
    assert float(network.law.mean.grad[0, 0, 0]) == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("gate", [ragged_law(7, D, taus=(0.3, 0.2, 0.2)), None])
@torch.no_grad()
def test_a_gate_routes(gate):
    model, law = whole_model(4, gate=gate)
    x, s, gamma, _ = noised(law)
    r = model.responsibilities(x, s, gamma)
    if gate is not None:
        dense = DenseLaw.of(gate).log_gates(x, s, gamma).exp()
        expected = torch.stack([dense[:, gate.component_of == k].sum(1) for k in range(K)], 1)
        torch.testing.assert_close(r, expected, **CLOSE)
    by_hand = sum(r[:, k, None] * model.denoise(x, s, gamma, expert=k) for k in range(K))
    torch.testing.assert_close(model.denoise(x, s, gamma), by_hand, **CLOSE)


def test_latents_and_back():
    model, law = whole_model(5)
    samples = law.sample(20, torch.Generator().manual_seed(0))
    z = model.encode(samples.x, samples.subspace)
    torch.testing.assert_close(model.decode(z, samples.subspace).detach(), samples.x)
    for i in range(20):
        alone = model.encode(samples.x[i : i + 1], int(samples.subspace[i]))
        torch.testing.assert_close(z[i : i + 1], alone)
    x, s, gamma, expert = noised(law)
    clean = model.latent_denoise(x[:, :d], s, gamma, expert)
    torch.testing.assert_close(clean, model.denoiser.denoise(x[:, :d], s, gamma, expert))


@pytest.mark.parametrize("form", [list, np.asarray])
def test_experts_of_rows_in_any_form(form):
    model, law = whole_model(5)
    x, s, gamma, _ = noised(law)
    expert = (torch.arange(len(x)) % K).tolist()
    torch.testing.assert_close(model.encode(x, form(expert)), model.encode(x, torch.tensor(expert)))
    torch.testing.assert_close(
        model.denoise(x, s, gamma, form(expert)), model.denoise(x, s, gamma, torch.tensor(expert))
    )


def test_one_autoencoder_for_all():
    shared = LinearAutoencoder((D,), d)
    model = Experts(shared, MLPDenoiser(d, width=8, experts=K), torch.ones(K))
    x = torch.randn(4, D)
    expert = torch.tensor([0, 2, 1, 1])
    assert torch.equal(model.encode(x), model.encode(x, expert))
    assert torch.equal(model.decode(x[:, :d], expert), shared.decode(x[:, :d]))
    assert model.autoencoder_parameters == D * d + D
    assert model.num_parameters == model.denoiser.num_parameters
    with pytest.raises(ValueError, match="experts 0 to 2"):
        model.encode(x, 3)
    assert model.denoise(x, 1.0, 0.5, expert=1).shape == x.shape
    with pytest.raises(ValueError, match=r"pass expert=k, or build Experts with gate=law"):
        model.denoise(x, 1.0, 0.5)


def test_learned_autoencoders_denoise_latents_only():
    model, law = whole_model(1, kind=Squashing)
    x, s, gamma, expert = noised(law)
    for options in ({}, {"expert": expert}):
        with pytest.raises(ValueError, match="latent_denoise"):
            model.denoise(x, s, gamma, **options)
    assert model.latent_denoise(x[:, :d], s, gamma, expert).isfinite().all()


@pytest.mark.parametrize("gate", [None, ragged_law(7, D), head_tail_law(1, dim=D + 4, tau=0.1)])
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_a_saved_model_is_the_same(tmp_path, gate, shared):
    dim = D if gate is None else gate.dim
    x = torch.randn(30, dim)
    autoencoders = [LinearAutoencoder.from_pca(x[10 * k : 10 * k + 10], d) for k in range(1 if shared else K)]
    networks = [MoGDenoiser.from_moments(torch.ones(d) * k, torch.eye(d), modes=k + 1, learn="mean") for k in range(K)]
    model = Experts(autoencoders, PerExpert(networks), [0.5, 0.2, 0.3], None if gate is None else gate.float())
    model.save_pretrained(tmp_path)
    for loaded in (molrmog.load(tmp_path), Experts.from_pretrained(tmp_path)):
        assert loaded.config == model.config
        assert torch.equal(loaded.weights, model.weights)
        assert torch.equal(loaded.denoise(x, 1.0, 0.5), model.denoise(x, 1.0, 0.5))
        assert (loaded.num_parameters, loaded.autoencoder_parameters) == (
            2 + 4 + 6,
            (1 if shared else K) * dim * (d + 1),
        )
        assert {name.split(".")[0] for name, p in loaded.named_parameters() if p.requires_grad} == {"denoiser"}


@torch.no_grad()
def test_autoencoders_that_share_weights(tmp_path):
    lora = LoRAExperts(MLPVAE((D,), latent_dim=d, widths=(8,)), experts=K, rank=1)
    for parameter in lora.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model = Experts(lora, MLPDenoiser(d, width=8, experts=K), torch.ones(K))
    assert model.autoencoder_parameters == lora.num_parameters
    x, expert = torch.randn(4, D), torch.tensor([0, 2, 1, 1])
    z = model.encode(x, expert)
    for i in range(4):
        torch.testing.assert_close(z[i : i + 1], lora[int(expert[i])].encode(x[i : i + 1]))
    model.save_pretrained(tmp_path)
    loaded = molrmog.load(tmp_path)
    assert torch.equal(loaded.encode(x, expert), z)
    assert torch.equal(loaded.decode(z, expert), model.decode(z, expert))
    assert loaded.autoencoder_parameters == lora.num_parameters


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"weights": [1.0, 1.0]}, "2 weights, 3 autoencoders and a denoiser of 3 experts"),
        ({"weights": [0.0] * K}, "not all zero"),
        ({"weights": [-1.0, 1.0, 1.0]}, "none negative"),
        ({"denoiser": MLPDenoiser(d, width=8)}, "a denoiser of 0 experts"),
        ({"denoiser": MLPDenoiser(d + 1, width=8, experts=K)}, r"a denoiser with D = 3"),
        ({"autoencoders": [LinearAutoencoder((D,), size) for size in (1, 2, 2)]}, "of one D and d"),
        ({"gate": ragged_law(0, D + 1)}, r"pass a law with 3 over R\^5"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    fitting = {
        "autoencoders": [LinearAutoencoder((D,), d) for _ in range(K)],
        "denoiser": MLPDenoiser(d, width=8, experts=K),
        "weights": [1.0] * K,
    }
    with pytest.raises(ValueError, match=message):
        Experts(**{**fitting, **parts})


class TestPerExpert:
    def test_only_experts_with_rows_run(self):
        network = PerExpert([MLPDenoiser(3, width=8) for _ in range(3)])
        x, expert = torch.randn(4, 3), torch.tensor([2, 0, 2, 2])
        network.denoise(x, 1.0, 0.5, expert).sum().backward()
        assert [each.leave.weight.grad is not None for each in network.denoisers] == [True, False, True]

    def test_no_rows(self):
        network = PerExpert([MLPDenoiser(3, width=8) for _ in range(3)])
        for expert in (1, torch.zeros(0, dtype=torch.long)):
            assert network.denoise(torch.zeros(0, 3), 1.0, 0.5, expert).shape == (0, 3)

    def test_one_expert_needs_no_name(self):
        only = MLPDenoiser(3, width=8)
        x = torch.randn(4, 3)
        assert torch.equal(PerExpert([only]).denoise(x, 1.0, 0.5), only.denoise(x, 1.0, 0.5))
