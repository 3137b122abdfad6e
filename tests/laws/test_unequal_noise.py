"""What is particular to noise that differs between coordinates: extreme noise, axes, levels of rows, derivatives."""

import hypothesis
import pytest
import scipy.fft
import torch
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal
from torch.func import functional_call, jacrev, vmap

import molrmog
from molrmog import MoLRMoG
from molrmog.laws.axes import Axes
from molrmog.laws.base import orthonormal
from oracles.autograd import tangent
from oracles.dense import DenseLaw
from oracles.digits import any_law
from oracles.laws import noised_rows, ragged_law, unequal_law, unequal_laws


def scaled_log_joint(law, x, s, gamma):
    """Log weight_c + log N_c(x) of dense covariances in units of each coordinate's noise, where they are tame."""
    dense, u = DenseLaw.of(law.without_axes()), law._down(x)
    unit = (s * s * law.tau.double().square() + gamma * gamma).sqrt().expand(law.subspaces, -1)  # (K, D)
    unit = unit.repeat_interleave(torch.tensor(law.modes), 0)
    cov = s * s * dense.cov + gamma * gamma * torch.eye(law.dim)
    normal = MultivariateNormal(s * dense.mean / unit, cov / unit[:, None] / unit[..., None], validate_args=False)
    return dense.log_weight + normal.log_prob(u[:, None] / unit) - unit.log().sum(1)


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.0, 1e-4, 1e-2, 1.0]))
def test_noise_from_a_hundred_millionth_to_ten_thousand_times_the_variance_of_the_data(seed, gamma):
    law, _ = any_law(seed, unequal=True)
    law = law.double()
    law.basis.copy_(orthonormal(law.basis.transpose(0, 1)).transpose(0, 1))  # which float32 had rounded
    x = law.sample(8, torch.Generator().manual_seed(seed), s=0.8, gamma=gamma).x
    joint = scaled_log_joint(law, x, 0.8, gamma)
    torch.testing.assert_close(law.log_prob(x, 0.8, gamma), joint.logsumexp(1), rtol=1e-7, atol=1e-6)
    gates = law.posterior(x, 0.8, gamma).responsibilities
    torch.testing.assert_close(gates, joint.softmax(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("noise", ["diagonal", "shared"])
@pytest.mark.parametrize("shapes", [{}, {"dim": 3, "latent_dims": (3, 1), "ranks": ((3, 1), (1,))}])
def test_equal_noise_is_the_isotropic_law(noise, shapes):
    taus = (0.3, 0.3, 0.3) if noise == "shared" else (0.3, 0.05, 1.2)
    shapes = {**shapes, "taus": taus[: len(shapes.get("latent_dims", taus))]}
    isotropic = ragged_law(2, **shapes).requires_grad_(False)
    law = unequal_law(2, noise, "matrix", **shapes).requires_grad_(False)
    law.tau.copy_(isotropic.tau[:1, None] if noise == "shared" else isotropic.tau[:, None])
    u = isotropic.sample(20, torch.Generator().manual_seed(0), gamma=0.2).x
    x = law.axes.up(u)
    for s, gamma in ((1.0, 0.0), (0.7, 0.3), (0.0, 1.0)):
        torch.testing.assert_close(law.log_prob(x, s, gamma), isotropic.log_prob(u, s, gamma))
        for name in ("score", "denoise"):
            wanted = law.axes.up(getattr(isotropic, name)(u, s, gamma))
            torch.testing.assert_close(getattr(law, name)(x, s, gamma), wanted)
        torch.testing.assert_close(law.divergence(x, s, gamma), isotropic.divergence(u, s, gamma))
        variance = law.posterior_variance(x, s, gamma).sum(1)
        torch.testing.assert_close(variance, isotropic.posterior_variance(u, s, gamma).sum(1))


def test_coordinates_turned_with_their_axes_are_the_same_law():
    law = unequal_law(3, "diagonal", "matrix").requires_grad_(False)
    R = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    turned = law.without_axes().with_axes(Axes.of(R @ law.axes.matrix()))
    x = law.sample(10, torch.Generator().manual_seed(0), gamma=0.3).x
    torch.testing.assert_close(turned.log_prob(x @ R.T, 1.0, 0.3), law.log_prob(x, 1.0, 0.3))
    torch.testing.assert_close(turned.score(x @ R.T, 1.0, 0.3), law.score(x, 1.0, 0.3) @ R.T)
    torch.testing.assert_close(turned.denoise(x @ R.T, 1.0, 0.3), law.denoise(x, 1.0, 0.3) @ R.T)


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 4)])
def test_cosines_are_those_of_scipy(shape):
    axes = Axes.dct(shape).double()
    x = torch.randn(3, axes.dim, dtype=torch.float64)
    along = (-1,) if len(shape) == 1 else (-2, -1)
    theirs = scipy.fft.dctn(x.view(3, *shape).numpy(), axes=along, norm="ortho").reshape(3, -1)
    torch.testing.assert_close(axes.down(x), torch.from_numpy(theirs))
    torch.testing.assert_close(axes.up(axes.down(x)), x)
    torch.testing.assert_close(x @ axes.matrix(), axes.down(x))


@hypothesis.given(st.data())
@pytest.mark.parametrize("name", ["log_prob", "denoise"])
def test_gradients_of_all_parameters_are_those_of_the_dense_law(name, data):
    law = data.draw(unequal_laws())
    x, s, gamma = data.draw(noised_rows(law))
    probe = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    probe = probe[:, 0] if name == "log_prob" else probe
    ours = getattr(law, name)(x, s, gamma)
    parameters = {key: p.detach().clone().requires_grad_() for key, p in law.named_parameters()}
    dense = DenseLaw.of(law, parameters)
    theirs = dense.log_prob(x, s, gamma) if name == "log_prob" else dense.posterior_mean(x, s, gamma)
    ours = torch.autograd.grad((ours * probe).sum(), list(law.parameters()))
    theirs = torch.autograd.grad((theirs * probe).sum(), list(parameters.values()))
    for key, a, b in zip(parameters, ours, theirs, strict=True):
        if key == "basis":
            a, b = (tangent(law.basis.detach(), each) for each in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ["log_prob", "score", "denoise", "divergence", "posterior_variance"])
def test_levels_of_rows_in_any_order(name):
    """Rows are taken in groups of one level; the answer keeps their order, and every level its derivative."""
    law = unequal_law(4, axes="dct").requires_grad_(False)
    gamma = torch.tensor([0.3, 1.0, 0.3, 0.1, 1.0, 0.3], dtype=torch.float64)
    s = torch.tensor([1.0, 0.5, 1.0, 0.5, 0.5, 0.7], dtype=torch.float64)
    x = law.sample(6, torch.Generator().manual_seed(0), gamma=0.3).x
    ask = getattr(law, name)
    one_by_one = torch.cat([ask(x[i : i + 1], float(s[i]), float(gamma[i])) for i in range(6)])
    torch.testing.assert_close(ask(x, s, gamma), one_by_one)
    torch.testing.assert_close(torch.from_numpy(ask(x.numpy(), s.numpy(), gamma.numpy())), one_by_one)
    if name in ("log_prob", "denoise"):
        assert torch.autograd.gradcheck(lambda gamma: ask(x, s, gamma), (gamma.requires_grad_(),))


def test_functional_transforms():
    law = unequal_law(5)
    x = law.sample(4, torch.Generator().manual_seed(0)).x
    by_row = vmap(lambda row: law.score(row[None], 0.8, 0.6)[0])(x)
    torch.testing.assert_close(by_row, law.score(x, 0.8, 0.6))
    each = torch.tensor([0.3, 0.6, 0.3, 1.0], dtype=torch.float64)
    by_level = vmap(lambda row, gamma: law.log_prob(row[None], 0.8, gamma[None])[0])(x, each)
    torch.testing.assert_close(by_level, law.log_prob(x, 0.8, each))

    class LogProb(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.law = law

        def forward(self, x):
            return self.law.log_prob(x, 0.8, 0.6)

    tau = law.tau.detach()
    slope = jacrev(lambda tau: functional_call(LogProb(), {"law.tau": tau}, (x,)).sum())(tau)
    theirs = torch.autograd.grad(law.log_prob(x, 0.8, 0.6).sum(), law.tau)[0]
    torch.testing.assert_close(slope, theirs)


@pytest.mark.parametrize("axes", [None, "matrix", "dct"])
def test_a_law_and_its_parts_come_back(tmp_path, axes):
    law = unequal_law(6, "diagonal", axes, dtype=torch.float32).requires_grad_(False)
    x = law.sample(5, torch.Generator().manual_seed(0), gamma=0.3).x
    saved = molrmog.load(law.save_pretrained(tmp_path))
    assert saved.config == law.config
    assert torch.equal(saved.score(x, 1.0, 0.3), law.score(x, 1.0, 0.3))
    parts = MoLRMoG.from_subspaces([law.subspace(k) for k in range(3)])
    torch.testing.assert_close(parts.log_prob(x, 1.0, 0.3), law.log_prob(x, 1.0, 0.3), rtol=1e-5, atol=1e-4)


def test_every_mode_is_the_best_of_all():
    law = unequal_law(7, axes="matrix").requires_grad_(False)
    s, gamma = torch.tensor([1.0, 0.5]), torch.tensor([0.3, 1.0])
    x = law.sample(8, torch.Generator().manual_seed(0)).x.view(2, 4, 5)
    theirs = torch.stack([law.denoise(x[i], float(s[i]), float(gamma[i])) for i in range(2)])
    torch.testing.assert_close(law.denoise_by_top_modes(x, s, gamma, 6), theirs, rtol=1e-6, atol=1e-6)


def test_what_does_not_go_together_is_said():
    with pytest.raises(ValueError, match="isotropic noise is the same in all axes"):
        MoLRMoG(4, (2,), (1,), axes="dct")
    with pytest.raises(ValueError, match="shape"):
        MoLRMoG(4, (2,), (1,), noise="diagonal", axes="dct", shape=(3, 2))
    with pytest.raises(ValueError, match="unknown noise"):
        MoLRMoG(4, (2,), (1,), noise="equal")
    law = unequal_law(0, axes="matrix")
    with pytest.raises(ValueError, match="needs isotropic noise"):
        law.eigenform()
    with pytest.raises(ValueError, match="without axes"):
        law.with_axes(Axes.dct((5,)))
    parts = [law.subspace(0), ragged_law(0).subspace(1)]
    with pytest.raises(ValueError, match="another kind of noise"):
        MoLRMoG.from_subspaces(parts)
