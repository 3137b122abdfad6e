"""The score-matching loss: derivatives against differences, gauge against the null space of what a law is made of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from molrmog import MoLRMoG
from molrmog.theory.score_loss import LEARNABLE, ScoreLoss, stratified_rows
from oracles.laws import ragged_law

S, GAMMA = 0.8, 0.5


def some_law(dim: int = 5) -> MoLRMoG:
    shapes = {"latent_dims": (3, 2), "ranks": ((2, 1, 3), (2, 1))}
    return ragged_law(1, dim=dim, **shapes, taus=(0.3, 0.2)).requires_grad_(False)


def some_loss(learn=LEARNABLE, law: MoLRMoG | None = None, n: int = 40, **given) -> ScoreLoss:
    law = some_law() if law is None else law
    return ScoreLoss(law, law.sample(n, torch.Generator().manual_seed(0), s=S, gamma=GAMMA).x, S, GAMMA, learn, **given)


def near(loss: ScoreLoss, size: float = 0.1) -> Tensor:
    theta = loss.theta_of(loss.truth)
    return theta + size * torch.randn(len(theta), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def difference(f, theta: Tensor, v: Tensor, h: float = 1e-5) -> Tensor:
    return (f(theta + h * v) - f(theta - h * v)) / (2 * h)


def test_theta_holds_every_real_entry_and_nothing_else():
    loss = some_loss()
    theta = loss.theta_of(loss.truth)
    sizes = {"basis": 25, "offset": 10, "mean": 13, "factor": 24, "tau": 2, "subspace_logits": 2, "mode_logits": 5}
    assert {name: part.stop - part.start for name, part in loss.slices.items()} == sizes
    assert len(theta) == sum(sizes.values())
    moved = loss.law_of(theta + 1)
    for k in range(2):
        torch.testing.assert_close(moved.subspace(k).means, loss.truth.subspace(k).means + 1)
    assert bool((moved.mean[1, 2] == loss.truth.mean[1, 2]).all())  # padding
    torch.testing.assert_close(loss.theta_of(moved), theta + 1)


def test_entries_are_those_of_the_mode():
    loss = some_loss(("mean", "factor", "basis"))
    theta = loss.theta_of(loss.truth)
    part = loss.truth.subspace(0)
    assert torch.equal(theta[loss.entries("mean", 0, 1)], part.means[1])
    assert torch.equal(theta[loss.entries("factor", 0, 2)], part.factors[2].flatten())
    assert torch.equal(theta[loss.entries("basis", 1)], loss.truth.subspace(1).basis.flatten())
    assert len(loss.entries("mean")) == 13


def test_score_is_that_of_the_law_at_theta():
    loss = some_loss()
    theta = near(loss)
    torch.testing.assert_close(loss.score(theta), loss.law_of(theta).score(loss.x_t, S, GAMMA))
    value = 0.5 * (loss.law_of(theta).score(loss.x_t, S, GAMMA) - loss.target).square().sum(1).mean()
    torch.testing.assert_close(loss(theta), value)


@pytest.mark.parametrize("learn", [("mean", "factor"), pytest.param(LEARNABLE, marks=pytest.mark.slow)])
def test_derivatives_are_differences(learn):
    loss = some_loss(learn)
    theta = near(loss)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradient, H, G = loss.gradient(theta), loss.hessian(theta), loss.gauss_newton(theta)
    torch.testing.assert_close(gradient @ v, difference(loss, theta, v), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(H @ v, difference(loss.gradient, theta, v), rtol=1e-6, atol=1e-6)
    J = torch.stack([difference(loss.score, theta, e) for e in torch.eye(len(theta), dtype=torch.float64)])
    torch.testing.assert_close(G, torch.einsum("pnd,qnd->pq", J, J) / len(loss.x_t), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.hvp(theta, v), H @ v)
    torch.testing.assert_close(loss.gnvp(theta, v), G @ v)
    theta.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(theta), theta)[0], gradient)


def test_truth_is_a_zero_whose_hessian_is_gauss_newton():
    loss = some_loss()
    theta = loss.theta_of(loss.truth)
    assert float(loss(theta)) < 1e-25
    assert float(loss.gradient(theta).norm()) < 1e-12
    torch.testing.assert_close(loss.hessian(theta), loss.gauss_newton(theta))


@pytest.mark.slow
def test_chunks_of_rows_add_up(monkeypatch):
    loss = some_loss()
    theta = near(loss)
    v = torch.ones_like(theta)
    whole = [loss.gradient(theta), loss.hessian(theta), loss.gauss_newton(theta), loss.hvp(theta, v)]
    monkeypatch.setattr("molrmog.theory.score_loss._ROWS", 7)
    parts = [loss.gradient(theta), loss.hessian(theta), loss.gauss_newton(theta), loss.hvp(theta, v)]
    torch.testing.assert_close(parts, whole)


def test_weights_are_repeated_rows():
    law = some_law()
    x = law.sample(6, torch.Generator().manual_seed(0), s=S, gamma=GAMMA).x
    times = torch.tensor([1, 2, 3, 1, 1, 2])
    weighted = ScoreLoss(law, x, S, GAMMA, weight=times / times.sum())
    repeated = ScoreLoss(law, x.repeat_interleave(times, 0), S, GAMMA)
    theta = near(weighted)
    torch.testing.assert_close(weighted.hessian(theta), repeated.hessian(theta))
    torch.testing.assert_close(weighted(theta), repeated(theta))


@pytest.mark.slow
def test_denoising_targets_move_the_gradient_by_noise_of_mean_zero():
    law = some_law()
    generator = torch.Generator().manual_seed(0)
    x_0 = law.sample(20_000, generator).x
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = S * x_0 + GAMMA * eps
    empirical = ScoreLoss(law, x_t, S, GAMMA, target=-(x_t - S * x_0) / GAMMA**2)
    theta = empirical.theta_of(law)
    noise = empirical.gradient(theta)
    spread = (empirical.gauss_newton(theta).diagonal() * law.dim / GAMMA**2 / len(x_t)).sqrt()
    assert float((noise / spread).abs().max()) < 5
    assert float(noise.norm()) > 0


def composition(loss: ScoreLoss, theta: Tensor) -> Tensor:
    """What a law is: the ambient means and covariances of its modes and their weights, from the formulas, dense."""
    K = loss.truth.subspaces
    values = {name: getattr(loss.truth, name) for name in LEARNABLE} | loss._unpacked(theta)
    out = [values["subspace_logits"].log_softmax(0)]
    for k in range(K):
        d, n = loss.truth.latent_dims[k], loss.truth.modes[k]
        A = values["basis"][:, k, :d]
        A = 1.5 * A - 0.5 * A @ A.T @ A  # A (A^T A)^-1/2, to first order about an orthonormal A
        out.append(values["mode_logits"][k, :n].log_softmax(0))
        for mode in range(n):
            U = values["factor"][k, mode, :d]
            C = A @ U @ U.T @ A.T + values["tau"][k] ** 2 * torch.eye(len(A), dtype=A.dtype)
            out += [values["offset"][k] + A @ values["mean"][k, mode, :d], C.flatten()]
    return torch.cat(out)


@pytest.mark.parametrize("learn", [("mean", "factor"), ("basis",), ("offset", "mean"), ("basis", "mean"), LEARNABLE])
@pytest.mark.parametrize("unused", [False, True])
def test_gauge_is_what_changes_nothing_about_the_law(learn, unused):
    law = some_law()
    if unused:  # the second subspace has modes on one axis only
        law = ragged_law(2, dim=5, latent_dims=(3, 2), ranks=((3, 1), (1,)), taus=(0.3, 0.2)).requires_grad_(False)
        law.factor[1, 0, 1, 0] = law.mean[1, 0, 1] = 0
    loss = some_loss(learn, law)
    theta = loss.theta_of(law)
    jacobian = torch.autograd.functional.jacobian(lambda t: composition(loss, t), theta)
    expected = len(theta) - int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))
    gauge = loss.gauge(theta)
    assert gauge.shape == (len(theta), expected)
    torch.testing.assert_close(gauge.T @ gauge, torch.eye(expected, dtype=torch.float64))
    assert float((jacobian @ gauge).norm()) < 1e-9
    assert float((loss.gauss_newton(theta) @ gauge).norm()) < 1e-9


def _edge(kind: str) -> tuple[MoLRMoG, tuple[str, ...]]:
    """Laws with directions that change nothing, and that no list of the usual ones holds."""
    if kind == "flat modes on a line":  # B U = 0 and B mu + c = 0
        law = ragged_law(3, dim=6, latent_dims=(3, 3), ranks=((2,), (2,)), taus=(0.3, 0.2))
        return law.requires_grad_(False), ("basis", "offset", "mean", "factor")
    if kind == "turns of a basis that factors do not see":
        law = ragged_law(4, dim=5, latent_dims=(4,), ranks=((2, 1),), taus=(0.3,)).requires_grad_(False)
        law.factor[0, :, 1:] = 0
        return law, ("basis", "mean")
    if kind == "offset and basis alone":
        law = ragged_law(5, dim=5, latent_dims=(3,), ranks=((1, 1),), taus=(0.3,)).requires_grad_(False)
        law.mean[0, 1] = law.mean[0, 0] + law.factor[0, 0, :, 0]
        law.factor[0, 1] = 2 * law.factor[0, 0]
        return law, ("basis", "offset")
    law = ragged_law(6, dim=3, latent_dims=(3,), ranks=((3, 3),), taus=(0.4,)).requires_grad_(False)
    return law, ("mean", "factor", "tau")


@pytest.mark.parametrize(
    "kind",
    [
        "flat modes on a line",
        "turns of a basis that factors do not see",
        "offset and basis alone",
        "noise that full factors make up for",
    ],
)
def test_gauge_holds_the_rare_directions_too(kind):
    law, learn = _edge(kind)
    loss = some_loss(learn, law, n=400)
    theta = loss.theta_of(law)
    jacobian = torch.autograd.functional.jacobian(lambda t: composition(loss, t), theta)
    gauge = loss.gauge(theta)
    assert gauge.shape[1] == len(theta) - int(torch.linalg.matrix_rank(jacobian, rtol=1e-9)) > 0
    assert float((jacobian @ gauge).norm()) < 1e-9
    values = torch.linalg.eigvalsh(loss.gauss_newton(theta))
    assert float(values[gauge.shape[1]]) > 1e-9 * float(values[-1]) > 10 * float(values[gauge.shape[1] - 1].abs())


def test_noise_at_zero_is_no_gauge():
    law = ragged_law(6, dim=3, latent_dims=(3,), ranks=((3, 3),), taus=(0.0,)).requires_grad_(False)
    assert some_loss(("tau",), law).gauge(law.tau.double()).shape == (1, 0)


def test_stratified_rows_have_the_moments_of_the_law():
    law = some_law()
    x, weight = stratified_rows(law, 200, S, GAMMA, torch.Generator().manual_seed(0))
    gaussian = law.moment_matched().subspace(0)
    A, U = gaussian.basis, gaussian.factors[0]
    mean = S * (gaussian.offset + A @ gaussian.means[0])
    C = S**2 * (A @ U @ U.T @ A.T + gaussian.tau**2 * torch.eye(5, dtype=x.dtype)) + GAMMA**2 * torch.eye(5)
    assert math.isclose(float(weight.sum()), 1)
    torch.testing.assert_close(weight @ x, mean)
    torch.testing.assert_close((x - mean).T @ (weight[:, None] * (x - mean)), C)


def test_errors_tell_the_mend():
    law = some_law()
    x = law.sample(4).x
    with pytest.raises(ValueError, match="name some of basis"):
        ScoreLoss(law, x, S, GAMMA, learn=("means",))
    for wrong in (x[:, :2], x / 0):
        with pytest.raises(ValueError, match="finite rows with shape"):
            ScoreLoss(law, wrong, S, GAMMA)
    assert ScoreLoss(law, x, S, GAMMA, learn="all").learn == LEARNABLE
    assert ScoreLoss(law, x, S, GAMMA, learn="mean").learn == ("mean",)
    with pytest.raises(ValueError, match="one row per row"):
        ScoreLoss(law, x, S, GAMMA, target=x[:2])
    with pytest.raises(ValueError, match="pass one per row"):
        ScoreLoss(law, x, S, GAMMA, weight=x[:, :1])
