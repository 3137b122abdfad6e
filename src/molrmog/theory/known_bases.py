"""Fits with the subspaces given: A_k and b_k are held, weights, mu and U are learned, tau_k too if asked for.

This is the setting of the paper's estimation theorem. All that a row has to say is then in its latents and its energy
off the subspaces, which are computed once:

    h_k = A_k^T (x - b_k) in R^{d_k},      rho2_k = |x - b_k - A_k h_k|^2

    log N_c(x) = -1/2 [ (h_k - mu_c)^T C_c^-1 (h_k - mu_c) + log det C_c + rho2_k / tau_k^2
                        + (D - d_k) log tau_k^2 + D log 2 pi ],      C_c = U_c U_c^T + tau_k^2 I

EM (`fit_modes`).  With responsibilities r_c, N_c = sum r_c and S_c the weighted covariance of h_k around mu_c,

    w, pi from N_c,      mu_c = sum r_c h_k / N_c,      U_c U_c^T = top r_c eigenpairs of S_c less tau_k^2, clipped at 0

is the exact maximum for tau held, so the log-likelihood never falls. There is no prior: tau > 0 keeps C_c positive.

Score matching (`fit_scores`) minimises the denoising loss of one noise level on the rows, each under several noises
drawn once, over the same parameters by L-BFGS.

References:
    arXiv 2601.01475, section 4: A_k known, (mu, U) estimated.
    Tipping & Bishop, Probabilistic Principal Component Analysis, JRSS B 61(3), 1999 (the update of U).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from molrmog.denoisers.mog import MoGDenoiser
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.em import pooled_noise
from molrmog.seeds import torch_generator

MODES = ("mean", "factor", "subspace_weights", "mode_weights")
"""What is learned with the subspaces given, as `MoGDenoiser` names it."""

_LOST = 1e-6  # rows: what has fewer has none


@dataclass(frozen=True)
class KnownBasesFit:
    """Where EM with the subspaces given ended.

    Attributes:
        law: what it found, not asking for gradients.
        log_likelihood: mean log p(x) of the rows under it, in nats.
        iterations: updates that were made.
    """

    law: MoLRMoG
    log_likelihood: float
    iterations: int


@torch.no_grad()
def fit_modes(
    start: MoLRMoG, x: Tensor, *, learn_tau: bool = False, max_iter: int = 1000, tol: float = 1e-9
) -> KnownBasesFit:
    """Maximum likelihood of weights, mu and U by EM from `start`, whose A, b (and tau) are kept.

    Args:
        start: where EM starts; every tau must be positive. A mode that loses all rows keeps its mean and factor,
            a subspace that does its tau and the shares of its modes, too.
        x: rows with shape (n, D).
        learn_tau: estimate tau_k, too.
        max_iter: updates, at most.
        tol: stop when the mean log-likelihood rises by less, in nats.

    Raises:
        ValueError: a tau is zero, or x has other columns than the law.
    """
    if x.ndim != 2 or x.shape[1] != start.dim or not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}: pass at least one row of R^{start.dim}, with shape (n, D)")
    if not start.noise_floor > 0:
        raise ValueError("EM needs a density: start from a law with tau > 0")
    parts = [start.subspace(k) for k in range(start.subspaces)]
    latents = [(x - part.offset) @ part.basis for part in parts]  # (n, d_k)
    off = [(x - p.offset - h @ p.basis.T).square().sum(1) for p, h in zip(parts, latents, strict=True)]  # (n,)
    reached, iteration = -math.inf, 0
    while True:
        joint = torch.cat([_log_joint(*given, x.shape[1]) for given in zip(parts, latents, off, strict=True)], 1)
        evidence = joint.logsumexp(1, keepdim=True)  # (n, 1)
        value = float(evidence.mean())
        if value - reached < tol or iteration == max_iter:
            law = MoLRMoG.from_subspaces(parts, dtype=x.dtype).requires_grad_(False)
            return KnownBasesFit(law, value, iteration)
        gates = (joint - evidence).exp().split(start.modes, 1)  # (n, n_k) each
        free = x.shape[1] if learn_tau else None
        parts = [_updated(*given, free) for given in zip(parts, latents, off, gates, strict=True)]
        reached, iteration = value, iteration + 1


def _log_joint(part: Subspace, h: Tensor, rho2: Tensor, dim: int) -> Tensor:
    """Log w_k + log pi_c + log N_c(x), with shape (n, n_k)."""
    d, tau2 = h.shape[1], part.isotropic_tau("EM with known bases") ** 2
    C = torch.stack([U @ U.T for U in part.factors]) + tau2 * torch.eye(d).to(h)  # (n_k, d, d)
    L = torch.linalg.cholesky(C)
    apart = h - part.means[:, None]  # (n_k, n, d)
    white = torch.linalg.solve_triangular(L, apart.mT, upper=False)  # (n_k, d, n)
    log_det = 2 * L.diagonal(dim1=1, dim2=2).log().sum(1) + (dim - d) * math.log(tau2) + dim * math.log(2 * math.pi)
    log_normal = -0.5 * (white.square().sum(1) + rho2 / tau2 + log_det[:, None])  # (n_k, n)
    return log_normal.T + (part.weight * part.mode_weights).clamp(min=torch.finfo(h.dtype).tiny).log()


def _updated(part: Subspace, h: Tensor, rho2: Tensor, gates: Tensor, dim: int | None) -> Subspace:
    """The subspace after one update; `dim` is D where tau is learned, None where it is held."""
    N = gates.sum(0)  # (n_k,)
    alive = N > _LOST
    weight = N.clamp(min=_LOST)[:, None]
    mu = torch.where(alive[:, None], gates.T @ h / weight, part.means)  # (n_k, d)
    apart = h - mu[:, None]  # (n_k, n, d)
    S = (gates.T[..., None] * apart).mT @ apart / weight[..., None]  # (n_k, d, d)
    ell, V = torch.linalg.eigh(0.5 * (S + S.mT))
    ell, V = ell.flip(1).clamp(min=0), V.flip(2)  # largest first
    tau2, total = part.isotropic_tau("EM with known bases") ** 2, N.sum()
    if dim is not None and bool(total > _LOST):
        d = h.shape[1]
        ranks = torch.tensor([U.shape[1] for U in part.factors], device=h.device)
        held = torch.arange(d, device=h.device) < ranks[:, None]
        off, freedom = (gates.sum(1) * rho2).sum(), total * (dim - d)
        given = (ell, held, torch.ones_like(held), N, off, freedom)
        tau2 = float(pooled_noise(*(each[None] for each in given)))
    U = V * (ell - tau2).clamp(min=0).sqrt()[:, None]  # (n_k, d, d)
    return replace(
        part,
        weight=float(total) / len(h),
        tau=math.sqrt(tau2),
        mode_weights=N / total if total > _LOST else part.mode_weights,
        means=mu,
        factors=tuple(U[c, :, : old.shape[1]] if alive[c] else old for c, old in enumerate(part.factors)),
    )


def fit_scores(
    start: MoLRMoG, x: Tensor, s: float, gamma: float, *, draws: int = 8, seed: int = 0, max_iter: int = 200
) -> MoLRMoG:
    """Minimise the denoising loss of the rows at one noise level over weights, mu and U, by L-BFGS from `start`.

    Args:
        start: where it starts; its A, b and tau are kept.
        x: rows with shape (n, D).
        s: signal scale.
        gamma: noise standard deviation, positive.
        draws: noises of each row, half of them the negatives of the others; even.
        seed: of the noises.
        max_iter: steps of L-BFGS, at most.

    Returns:
        The law, not asking for gradients.

    Raises:
        ValueError: `draws` is odd or not positive.
    """
    if draws < 2 or draws % 2:
        raise ValueError(f"draws = {draws}: pass an even number, noises come in pairs of opposite sign")
    network = MoGDenoiser(start, learn=MODES)
    noise = torch.randn(draws // 2, *x.shape, generator=torch_generator(seed), dtype=x.dtype).to(x.device)
    xt = (s * x + gamma * torch.cat([noise, -noise])).flatten(0, 1)  # (draws n, D)
    x0 = x.repeat(draws, 1)
    free = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(
        free,
        max_iter=max_iter,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (network.denoise(xt, s, gamma) - x0).square().sum(1).mean()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    return network.law.requires_grad_(False)
