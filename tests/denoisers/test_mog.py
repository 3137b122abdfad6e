"""The law as a network: what is learned, that it stays on its manifold, and the paper's printed score."""

import hypothesis
import pytest
import scipy.linalg
import torch
from hypothesis import strategies as st

from molrmog import GaussianDenoiser, MoGDenoiser, MoLRMoG, Subspace
from molrmog.denoisers.mog import latent_law, nearest_orthonormal
from oracles.dense import DenseLaw
from oracles.laws import ragged_law, ragged_laws

NAMES = ("basis", "offset", "mean", "factor", "tau", "subspace_weights", "mode_weights")


def noisy(law, rows=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = law.sample(rows, generator).x
    gamma = torch.rand(rows, generator=generator).to(clean) + 0.05
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    return clean, clean + gamma[:, None] * noise, gamma


def descend(network, law, steps=20, rate=0.05):
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(steps):
        clean, x, gamma = noisy(law, seed=step)
        loss = (network.denoise(x, 1.0, gamma) - clean).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        network.retract_()
        losses.append(float(loss.detach()))
    return losses


def orthonormality_error(U):
    return float((U.mT @ U - torch.eye(U.shape[-1], dtype=U.dtype)).abs().amax()) if U.shape[-1] else 0.0


@hypothesis.given(ragged_laws())
def test_all_of_a_law_is_learned(law):
    network = MoGDenoiser(law)
    assert network.num_parameters == law.num_parameters
    x = torch.randn(3, law.dim, dtype=torch.float64)
    assert torch.equal(network.denoise(x, 0.8, 0.6).detach(), law.denoise(x, 0.8, 0.6).detach())


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_named_is_learned(name):
    law = ragged_law(2, taus=(0.3, 0.1, 0.2))
    network = MoGDenoiser(law, learn=name)
    before = {key: tensor.clone() for key, tensor in network.law.state_dict().items()}
    descend(network, law, steps=2)
    changed = {key for key, tensor in network.law.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {{"subspace_weights": "subspace_logits", "mode_weights": "mode_logits"}.get(name, name)}
    original = ragged_law(2, taus=(0.3, 0.1, 0.2)).state_dict()
    assert all(torch.equal(tensor, original[key]) for key, tensor in law.state_dict().items())
    each = MoGDenoiser(law, learn=NAMES)
    assert each.num_parameters == sum(MoGDenoiser(law, learn=one).num_parameters for one in NAMES)


def test_what_there_is_to_learn():
    with pytest.raises(ValueError, match="choose among basis, offset"):
        MoGDenoiser(ragged_law(), learn=("mean", "covariance"))


@pytest.mark.parametrize("orthonormal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_stays_on_the_manifold(orthonormal, dtype):
    law = ragged_law(3, taus=(0.3, 0.1, 0.2), dtype=dtype)
    network = MoGDenoiser(law, orthonormal_factors=orthonormal)
    target = ragged_law(4, taus=(0.3, 0.1, 0.2), dtype=dtype)
    losses = descend(network, target, steps=40)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    learned = network.law
    padding = MoLRMoG.from_subspaces([learned.subspace(k) for k in range(3)], dtype=dtype).state_dict()
    for name in ("basis", "mean", "factor"):
        assert torch.equal(learned.state_dict()[name], padding[name]), name  # zero where padded
    for k in range(3):
        part = learned.subspace(k)
        assert orthonormality_error(part.basis) < rounding
        if orthonormal:
            assert all(orthonormality_error(U) < rounding for U in part.factors)


@torch.no_grad()
def test_retraction_clears_padding_and_keeps_what_is_on_the_manifold():
    law = ragged_law(3)
    network = MoGDenoiser(law)
    network.retract_()
    for name, tensor in network.law.state_dict().items():
        torch.testing.assert_close(tensor, law.state_dict()[name], rtol=0, atol=1e-12)
    for parameter in network.law.parameters():
        parameter.add_(0.1)
    network.retract_()
    parts = MoLRMoG.from_subspaces([network.law.subspace(k) for k in range(3)]).state_dict()
    for name in ("basis", "mean", "factor"):
        assert torch.equal(network.law.state_dict()[name], parts[name]), name


def test_gradients_are_tangent():
    law = ragged_law(5, taus=(0.3, 0.1, 0.2))
    network = MoGDenoiser(law, orthonormal_factors=True)
    clean, x, gamma = noisy(law)
    (network.denoise(x, 1.0, gamma) - clean).square().sum().backward()
    for k, d in enumerate(law.latent_dims):
        for mode, r in enumerate(law.ranks[k]):
            U, G = network.law.factor[k, mode, :d, :r].detach(), network.law.factor.grad[k, mode, :d, :r]
            inner = U.T @ G
            torch.testing.assert_close(inner, -inner.T, rtol=0, atol=1e-9)
            assert r == 0 or d == r or float(G.abs().max()) > 1e-6
    A, G = network.law.basis.detach(), network.law.basis.grad
    inner = torch.einsum("Dki,Dkj->kij", A, G)
    torch.testing.assert_close(inner, -inner.mT, rtol=0, atol=1e-9)


def test_orthonormal_factors_have_the_gradient_of_the_restricted_law():
    """Along curves of orthonormal factors, against the dense oracle."""
    law = ragged_law(6, taus=(0.3, 0.1, 0.2))
    network = MoGDenoiser(law, learn="factor", orthonormal_factors=True)
    clean, x, gamma = noisy(law, rows=8)
    (network.denoise(x, 1.0, gamma) - clean).square().sum().backward()
    parameters = {name: tensor.detach() for name, tensor in network.law.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    turn = torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64)
    for k, d in enumerate(law.latent_dims):
        turn[k, :, d:] = turn[k, :, :, d:] = 0

    def loss(t):
        rotation = torch.linalg.matrix_exp(t * (turn - turn.mT))
        turned = {**parameters, "factor": rotation @ parameters["factor"]}
        return (DenseLaw.of(network.law, turned).posterior_mean(x, 1.0, gamma) - clean).square().sum()

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(t), t)
    direction = (turn - turn.mT) @ parameters["factor"]
    torch.testing.assert_close((network.law.factor.grad * direction).sum(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("s", "gamma"), [(1.0, 0.5), (0.3, 0.9), (1.0, 3.0)])
def test_the_printed_score(s, gamma):
    """grad log p_t = sum_l r_l [ -(1 / gamma^2) (I - s^2 / (s^2 + gamma^2) U_l U_l^T) (x - s mu_l) ]."""
    d, n, r = 5, 3, 2
    law = MoLRMoG.random(d, (d,), (n,), rank=r, noise=0.0, seed=1, dtype=torch.float64)
    network = MoGDenoiser(law, learn=("mean", "factor"), orthonormal_factors=True)
    part = network.law.subspace(0)
    x = s * network.law.sample(20, torch.Generator().manual_seed(0)).x
    x = x + gamma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_density, score = [], []
    for weight, mu, U in zip(part.mode_weights, part.means, part.factors, strict=True):
        mu, U = part.basis @ mu, part.basis @ U
        cov = s**2 * U @ U.T + gamma**2 * torch.eye(d, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(s * mu, cov)
        log_density.append(weight.log() + normal.log_prob(x))
        shrink = torch.eye(d, dtype=torch.float64) - s**2 / (s**2 + gamma**2) * U @ U.T
        score.append(-(x - s * mu) @ shrink / gamma**2)
    r = torch.stack(log_density, 1).softmax(1)
    printed = (r[..., None] * torch.stack(score, 1)).sum(1)
    ours = (s * network.denoise(x, s, gamma) - x) / gamma**2
    torch.testing.assert_close(ours.detach(), printed, rtol=1e-9, atol=1e-9)


@hypothesis.given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 1000))
def test_nearest_orthonormal_is_the_polar_factor(m, less, seed):
    U = torch.randn(2, m, max(1, m - less), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for ours, matrix in zip(nearest_orthonormal(U), U, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(scipy.linalg.polar(matrix.numpy())[0]), rtol=1e-7, atol=1e-7)


def test_dependent_columns_are_completed():
    for U in (torch.zeros(4, 2), torch.ones(4, 3), torch.eye(4)[:, [0, 0]]):
        assert orthonormality_error(nearest_orthonormal(U)) < 1e-12
    law = ragged_law(1, factors="deficient")
    for k in range(3):
        for U in MoGDenoiser(law, orthonormal_factors=True).law.subspace(k).factors:
            assert orthonormality_error(U) < 1e-12


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64), 2.5)])
def test_latent_law_is_the_law_in_other_coordinates(mean, scale):
    law = ragged_law(2, dim=3, latent_dims=(3,), ranks=((2, 3, 0),), taus=(0.3,))
    part = law.subspace(0)
    x = law.sample(20, torch.Generator().manual_seed(0)).x
    z = ((x - part.offset) @ part.basis - mean) / scale
    inside = latent_law(law, 0, mean, scale)
    log_scale = torch.as_tensor(scale, dtype=torch.float64).log()
    torch.testing.assert_close(law.log_prob(x).detach() + 3 * log_scale, inside.log_prob(z))


def test_latent_law_of_one_of_many_subspaces():
    law = ragged_law(2, taus=(0.3, 0.1, 0.2))
    samples = law.sample(20_000, torch.Generator().manual_seed(0), subspace=1)
    part = law.subspace(1)
    z = (samples.x - part.offset) @ part.basis
    mean, cov = DenseLaw.of(latent_law(law, 1)).moments()
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(z.T.cov(), cov, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_from_moments_keeps_the_variance(rank):
    root = torch.randn(4, 4, dtype=torch.float64)
    mean, cov = torch.randn(4, dtype=torch.float64), root @ root.T
    network = MoGDenoiser.from_moments(mean, cov, modes=3000, rank=rank, learn=("mean", "factor"))
    part = network.law.subspace(0)
    torch.testing.assert_close(part.means.mean(0), mean, rtol=0, atol=5 * float(cov.diagonal().max() / 3000) ** 0.5)
    torch.testing.assert_close(part.means.T.cov(), cov, rtol=0.2, atol=0.2)
    within = part.factors[0] @ part.factors[0].T + part.tau**2 * torch.eye(4, dtype=torch.float64)
    top = torch.linalg.eigvalsh(cov)[4 - rank :].sum()
    left = cov.trace() - top
    torch.testing.assert_close(within.trace(), top + (left / (4 - rank) * 4 if rank < 4 else 0.0))
    if rank == 4:
        torch.testing.assert_close(within, cov)


@pytest.mark.parametrize("rank", [5, -1])
def test_from_moments_refuses(rank):
    with pytest.raises(ValueError, match="rank from 0 to 4"):
        MoGDenoiser.from_moments(torch.zeros(4), torch.eye(4), modes=1, rank=rank)


class TestGaussian:
    def test_it_is_linear_where_there_is_one_subspace(self):
        U = torch.randn(5, 2, dtype=torch.float64)
        cov = U @ U.T + 0.2**2 * torch.eye(5, dtype=torch.float64)
        one = Subspace(
            1.0, torch.eye(5, dtype=torch.float64), torch.ones(5), 0.2, torch.ones(1), torch.ones(1, 5), (U,)
        )
        x, s, gamma = torch.randn(4, 5, dtype=torch.float64), 0.8, 0.4
        gain = s * cov @ torch.linalg.inv(s**2 * cov + gamma**2 * torch.eye(5, dtype=torch.float64))
        network = GaussianDenoiser(MoLRMoG.from_subspaces([one]))
        torch.testing.assert_close(network.denoise(x, s, gamma).detach(), x @ gain.T)
        network = GaussianDenoiser(MoLRMoG.from_subspaces([one]), learned_mean=True)
        expected = 2 + (x - 2 * s) @ gain.T
        torch.testing.assert_close(network.denoise(x, s, gamma).detach(), expected)

    def test_means_are_learned_only_where_allowed(self):
        law = MoLRMoG.random(6, (2, 3), (1, 1), noise=0.2, seed=1, offset=1.0)
        for allowed in (False, True):
            network = GaussianDenoiser(law, learned_mean=allowed)
            assert network.num_parameters == law.num_parameters - (0 if allowed else 2 * 6 + 2 + 3)
            descend(network, law, steps=3)
            assert bool(network.law.mean.any()) == bool(network.law.offset.any()) == allowed

    def test_refusals(self):
        with pytest.raises(ValueError, match="for more use MoGDenoiser"):
            GaussianDenoiser(ragged_law())
        with pytest.raises(ValueError, match="learned_mean=True"):
            GaussianDenoiser(MoLRMoG.random(4, (2,), (1,)), learn=("mean", "factor"))

    @pytest.mark.parametrize("learned_mean", [False, True])
    def test_from_moments_is_the_gaussian_with_them(self, learned_mean):
        x = torch.randn(50, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 1
        mean, cov = x.mean(0), x.T.cov(correction=0)
        network = GaussianDenoiser.from_moments(mean, cov, learned_mean=learned_mean)
        moments = DenseLaw.of(network.law).moments()
        torch.testing.assert_close(moments[0], mean if learned_mean else torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(moments[1], cov if learned_mean else x.T @ x / 50)


@pytest.mark.parametrize("orthonormal", [False, True])
def test_gradients_in_float32_are_those_of_float64(orthonormal):
    """Also of entries that are zero: means at the origin, a basis along the axes, axes of modes that only turn."""
    law = MoLRMoG.random(dim=6, latent_dims=(4, 3), modes=(2, 1), rank=2, noise=0.2, seed=0)
    with torch.no_grad():
        law.mean.zero_()
        law.basis[:, 0] = torch.eye(6, 4)
    generator = torch.Generator().manual_seed(0)
    x, s, gamma = torch.randn(40, 6, generator=generator), torch.tensor(0.8), torch.tensor(0.5)
    gradients: list[dict[str, torch.Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        network = MoGDenoiser(law, orthonormal_factors=orthonormal).to(dtype)
        (network.denoise(x.to(dtype), s, gamma) - x.to(dtype)).square().mean().backward()
        gradients.append({name: p.grad.double() for name, p in network.named_parameters()})
    for name, exact in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], exact, atol=1e-4 * float(exact.abs().max()), rtol=0, msg=name)
