"""What is particular to a head/tail law; what every law must do is in test_base.py."""

import pytest
import torch

from molrmog import HeadTail, MoLRMoG
from oracles.autograd import tangent
from oracles.dense import DenseLaw
from oracles.laws import head_tail_law, ragged_law


def test_gates_are_those_of_the_head():
    law = head_tail_law(0)
    x = law.sample(6, s=0.8, gamma=0.5).x
    z = (x - 0.8 * law.offset) @ law.axes[:, :5]
    ours = law.posterior(x, 0.8, 0.5).responsibilities
    torch.testing.assert_close(ours, law.head.posterior(z, 0.8, 0.5).responsibilities)


def test_a_whole_head_is_the_head_turned():
    """q = D: the same law in other coordinates."""
    head = ragged_law(0, taus=(0.3, 0.2, 0.2)).requires_grad_(False)
    axes = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    law = HeadTail(head, axes, torch.zeros(5).double(), torch.zeros(0).double(), torch.tensor(0.0).double())
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x), head.log_prob(x @ axes))
    torch.testing.assert_close(law.score(x), head.score(x @ axes) @ axes.T)
    torch.testing.assert_close(law.posterior(x, 1.0, 0.5).mean, head.denoise(x @ axes, 1.0, 0.5) @ axes.T)


@pytest.mark.parametrize("name", ["log_prob", "denoise"])
@pytest.mark.parametrize("tail", [0, 2, 3])
def test_gradients_of_all_parameters_are_those_of_the_dense_law(name, tail):
    law = head_tail_law(2, tail=tail, tau=0.3)
    x = law.sample(5, s=0.8, gamma=0.5).x
    probe = torch.randn(x.shape if name == "denoise" else (5,), dtype=torch.float64)
    parameters = {key: p.detach().clone().requires_grad_() for key, p in law.named_parameters()}
    dense = DenseLaw.of(law, parameters)
    theirs = dense.log_prob(x, 0.8, 0.5) if name == "log_prob" else dense.posterior_mean(x, 0.8, 0.5)
    ours = getattr(law, name)(x, 0.8, 0.5)
    ours, theirs = (
        torch.autograd.grad((out * probe).sum(), list(inputs), materialize_grads=True)  # tau may have nothing to do
        for out, inputs in ((ours, law.parameters()), (theirs, parameters.values()))
    )
    for key, a, b in zip(parameters, ours, theirs, strict=True):
        if key == "head.basis":
            a, b = (tangent(law.head.basis.detach(), each) for each in (a, b))
        if key == "axes":
            a, b = (tangent(law.axes.detach()[:, None], each[:, None]) for each in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_float32_density_at_low_noise():
    law = head_tail_law(3, dim=64, tail=20, tau=0.0, dtype=torch.float32).requires_grad_(False)
    exact = head_tail_law(3, dim=64, tail=20, tau=0.0).requires_grad_(False)
    for gamma in (1e-3, 1e-2, 0.1):
        x = law.sample(50, gamma=gamma).x
        torch.testing.assert_close(
            law.denoise(x, 1.0, gamma).double(), exact.denoise(x.double(), 1.0, gamma), rtol=0, atol=1e-4
        )
        error = law.log_prob(x, 1.0, gamma).double() - exact.log_prob(x.double(), 1.0, gamma)
        assert float(error.abs().max()) < 1e-3 * law.dim


def test_a_subspace_is_that_of_the_head_in_the_data_space():
    law = head_tail_law(0)
    for k in range(law.subspaces):
        part, inner = law.subspace(k), law.head.subspace(k)
        torch.testing.assert_close(part.basis.T @ part.basis, torch.eye(law.latent_dims[k], dtype=torch.float64))
        torch.testing.assert_close((part.offset - law.offset) @ law.axes[:, :5], inner.offset)


def test_it_says_what_it_is():
    law = head_tail_law(0, tail=2, tau=0.05)
    assert (law.dim, law.subspaces, law.latent_dims, law.modes) == (8, 3, (2, 3, 1), (2, 3, 1))
    assert law.component_of.tolist() == [0, 0, 1, 1, 1, 2]
    assert law.noise_floor == pytest.approx(0.05)
    assert law.num_parameters == law.head.num_parameters + 8 * 7 + 8 + 2 + 1


def test_parts_that_do_not_fit_get_one_line():
    head = MoLRMoG.random(4, (2,), (1,))
    eye, zero = torch.eye(8), torch.tensor(0.1)
    for axes, offset, spread, tau in [
        (eye[:, :3], torch.zeros(8), torch.zeros(0), zero),
        (eye[:, :6], torch.zeros(7), torch.zeros(2), zero),
        (eye[:, :6], torch.zeros(8), torch.zeros(1), zero),
        (eye[:, :6], torch.zeros(8), torch.zeros(2), torch.zeros(1)),
    ]:
        with pytest.raises(ValueError, match="do not fit: pass") as error:
            HeadTail(head, axes, offset, spread, tau)
        assert "\n" not in str(error.value)
