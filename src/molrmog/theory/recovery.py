"""From how many rows on subspaces are recovered: three losses whose minimiser is sought from many starts at once.

Rows x_0 = A_k z (+ tau e), z ~ N(0, I_d), come from K subspaces through the origin, N_k from each. Wang et al. claim
that learning the score of such a law is subspace clustering, and succeeds from N_k >= d on. Here the bases A_k alone
are sought, with d known, as in their parametrisation:

    K-subspaces   min  sum_i min_k |x_i - A_k A_k^T x_i|^2                       assign, refit, repeat
    score         min  E |D_A(x_t) - x_0|^2,   log sigma uniform                 Adam on the Stiefel manifold
                  D_A(x_t) = s / (s^2 + gamma^2) sum_k r_k(x_t) A_k A_k^T x_t    the denoiser of the law with bases A,
                  r(x_t)   = softmax_k s^2 |A_k^T x_t|^2 / (2 gamma^2 (s^2 + gamma^2))    U = I, tau = 0, equal weights

and EM is `molrmog.fit`. Without noise N_k >= d rows span their subspace: where labels are known, recovery is linear
algebra. Where they are not, d rows each are not enough for K-subspaces: any K groups of d rows lie in K subspaces of
dimension d, so every such split has the loss 0. With d + 1 rows each (and K d <= D) the true split alone has it, since
a group of mixed rows that fits holds at most d rows, one of d + 1 rows is pure, and there are K (d + 1) rows to place.

References:
    Wang et al., Diffusion models learn low-dimensional distributions via subspace clustering, arXiv 2409.02426.
    Bradley & Mangasarian, k-plane clustering, 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molrmog.denoisers.mog import nearest_orthonormal
from molrmog.laws.base import normal


def random_bases(
    starts: int, subspaces: int, dim: int, latent_dim: int, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform bases in float64, with shape (starts, K, D, d).

    Args:
        starts: how many of each.
        subspaces: K.
        dim: dimension D of the data.
        latent_dim: dimension d of every subspace.
        generator: source of randomness, for reproducibility; its device is that of the bases.
    """
    shape, device = (starts, subspaces, dim, latent_dim), None if generator is None else generator.device
    return torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64, device=device)).Q


def turned(bases: Tensor, angle: float, generator: torch.Generator | None = None) -> Tensor:
    """Bases turned out of their spans, every principal angle being `angle`.

    Args:
        bases: orthonormal, with shape (..., D, d), 2 d <= D.
        angle: in degrees, 0 to 90.
        generator: source of randomness, for reproducibility.

    Raises:
        ValueError: there is no room to turn.
    """
    D, d = bases.shape[-2:]
    if 2 * d > D:
        raise ValueError(f"d = {d} in R^{D}: all angles of a basis can be chosen only where 2 d <= D")
    drawn = normal(tuple(bases.shape), generator, like=bases)
    away = torch.linalg.qr(drawn - bases @ (bases.mT @ drawn)).Q
    theta = torch.deg2rad(torch.as_tensor(angle, dtype=bases.dtype))
    return theta.cos() * bases + theta.sin() * away


@torch.no_grad()
def k_subspaces(x: Tensor, bases: Tensor, steps: int = 50) -> tuple[Tensor, Tensor]:
    """K-subspaces from several starts: assign every row to the nearest subspace, refit, until nothing changes.

    Args:
        x: rows with shape (N, D).
        bases: where to start, with shape (starts, K, D, d); a subspace that no row is assigned to starts afresh from
            the d rows explained worst.
        steps: of assignment and refit, at most.

    Returns:
        Bases with shape (starts, K, D, d), and the mean squared distance of the rows with shape (starts,).

    References:
        Bradley & Mangasarian, k-plane clustering, 2000.
    """
    R, K, D, d = bases.shape
    energy = x.square().sum(1)  # (N,)
    outer = x[:, :, None] * x[:, None]  # (N, D, D)
    assigned = torch.full((R, len(x)), -1, device=x.device)
    for _ in range(steps):
        off = energy - (x @ bases).square().sum(-1)  # (R, K, N)
        nearest = off.argmin(1)  # (R, N)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        worst = torch.zeros_like(off[:, 0], dtype=torch.bool).scatter_(
            1, off.amin(1).topk(min(d, len(x))).indices, True
        )
        member = torch.nn.functional.one_hot(assigned, K).mT.bool()  # (R, K, N)
        member = torch.where(member.any(2, keepdim=True), member, worst[:, None])
        scatter = (member.to(x).flatten(0, 1) @ outer.flatten(1)).view(R, K, D, D)
        bases = torch.linalg.eigh(scatter).eigenvectors[..., -d:]
    off = energy - (x @ bases).square().sum(-1)
    return bases, off.amin(1).clamp(min=0).mean(1)


def bases_denoiser(bases: Tensor, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
    """D_A(x_t): E[x_0 | x_t] under the laws with bases A, U = I, tau = 0, zero means and equal weights.

    Args:
        bases: orthonormal, with shape (starts, K, D, d).
        x: rows of x_t with shape (B, D).
        s: signal scale of each row, with shape (B,).
        gamma: noise standard deviation of each row, with shape (B,).

    Returns:
        With shape (starts, B, D).
    """
    R, K, D, d = bases.shape
    h = (x @ bases.permute(2, 0, 1, 3).reshape(D, -1)).view(-1, R, K, d)  # one product for all starts
    s, gamma = s[:, None, None], gamma[:, None, None]
    v = s.square() + gamma.square()
    gates = (0.5 * s.square() / (gamma.square() * v) * h.square().sum(-1)).softmax(2)  # (B, R, K)
    pulled = ((gates * s / v)[..., None] * h).flatten(2).transpose(0, 1)  # (R, B, K d)
    return pulled @ bases.transpose(2, 3).flatten(1, 2)


def score_bases(
    x: Tensor,
    bases: Tensor,
    *,
    steps: int = 200,
    copies: int = 2,
    learning_rate: float = 0.05,
    sigmas: tuple[float, float] = (0.02, 0.2),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoising score matching of the bases from several starts: Adam, full batches, cosine annealing.

    Args:
        x: rows with shape (N, D).
        bases: where to start, with shape (starts, K, D, d).
        steps: of the optimiser.
        copies: noised copies of every row in a step, of fresh noise, the same for all starts.
        learning_rate: the greatest.
        sigmas: least and greatest gamma, in data units, with s = 1; log gamma is uniform between them. Rows are told
            apart only by distances that noise does not drown, so the greatest is to be well below 1.
        generator: source of randomness, for reproducibility.

    Returns:
        Bases with shape (starts, K, D, d), and for each start the loss of a last batch with shape (starts,).

    References:
        arXiv 2409.02426, the training loss and its parametrisation by bases.
    """
    low, high = (x.new_tensor(sigma).log() for sigma in sigmas)
    rows = x.repeat(copies, 1)  # (copies N, D)
    A = bases.to(x.dtype).clone().requires_grad_()
    optimiser = torch.optim.Adam([A], lr=learning_rate)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def losses(rows: Tensor) -> Tensor:
        device = x.device if generator is None else generator.device
        level = torch.rand(len(rows), generator=generator, dtype=x.dtype, device=device).to(x.device)
        gamma = (low + (high - low) * level).exp()
        noisy = rows + gamma[:, None] * normal(tuple(rows.shape), generator, like=x)
        return (bases_denoiser(A, noisy, torch.ones_like(gamma), gamma) - rows).square().sum(2).mean(1)  # (starts,)

    for _ in range(steps):
        optimiser.zero_grad()
        losses(rows).sum().backward()  # the starts know nothing of each other
        optimiser.step()
        annealing.step()
        with torch.no_grad():
            A.copy_(torch.linalg.qr(A).Q)
    with torch.no_grad():
        return nearest_orthonormal(A.detach()).to(x.dtype), losses(x.repeat(16 * copies, 1))
