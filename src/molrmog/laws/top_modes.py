"""The posterior mean from the few modes that explain a row best: a law's denoiser inside a training step.

    D_M(x) = sum_{c in top M of r(x)} r'_c E[x_0 | x_t, c],      r' = r over the sum of the top M

It is the law's denoiser where M modes hold the whole row, as nearly always at low noise, and for M = sum n_k. Rows come
in groups of one noise level, as the patches of a picture do, so that spectra Lam = s^2 lam + v are those of groups, not
of rows. For its gates a row pays one product and one norm per mode, and what lies behind a gate for M modes only.

Symbols are those of `molrmog.laws.molrmog`. The gates are those of the dtype of the rows, without the second look that
`MoLRMoG.denoise` has for rows which float32 leaves undecided.

References:
    arXiv 2601.01475, section 3 (the gates of a law at noise level t).
"""

from __future__ import annotations

import torch
from torch import Tensor

from molrmog.laws.isotropic import Eigenform
from molrmog.laws.responsibilities import squared_norm

_CACHED = 1 << 20  # whitened latents at a time, in numbers: about what a processor's cache holds


def denoise_by_top_modes(form: Eigenform, x: Tensor, s: Tensor, gamma: Tensor, top: int) -> Tensor:
    """D_M(x), with the shape of x.

    Args:
        form: of the law, in the dtype of the rows.
        x: groups of noised rows x_t, with shape (B, L, D).
        s: the signal scale of each group, with shape (B,).
        gamma: the noise standard deviation of each group, with shape (B,).
        top: M; as many as there are where it is more.
    """
    _, L, D = x.shape
    K, n, d = form.mean.shape
    top = min(top, int(form.log_weight.isfinite().sum()))
    u = x - s[:, None, None] * form.center
    v = s[:, None].square() * form.tau2 + gamma[:, None].square()  # (B, K)
    groups = max(1, _CACHED // (L * K * n * d))
    chunks = zip(u.split(groups), s.split(groups), v.split(groups), strict=True)
    several = [_explain(form, *chunk, top) for chunk in chunks]
    gate, mode, pull = (torch.cat(parts).flatten(0, 1) for parts in zip(*several, strict=True))

    rows = torch.arange(len(gate), device=x.device)[:, None].expand_as(gate)  # (B L, M)
    k = mode // n
    v_of_choice = v.repeat_interleave(L, 0).gather(1, k)
    s, gamma = s.repeat_interleave(L)[:, None], gamma.repeat_interleave(L)[:, None]  # (B L, 1)
    keep = (gate * s * form.tau2[k] / v_of_choice).sum(1, keepdim=True)
    out = keep * u.flatten(0, 1) + form.center

    order = mode.flatten().argsort()  # one product per mode and per subspace, over the rows that chose it
    weight = (gate * gamma.square() / v_of_choice).flatten()[order, None]
    pulled = (s[:, None] * pull).flatten(0, 1)[order]
    counts = mode.flatten().bincount(minlength=K * n)
    lift = (form.lam[..., None] * form.axes).flatten(0, 1)  # (K n, d, d)
    z = torch.cat([part @ lift[c] for c, part in enumerate(pulled.split(counts.tolist())) if len(part)])
    z = z + form.mean.flatten(0, 1)[mode.flatten()[order]]
    lifted = weight * torch.cat([z, torch.ones_like(weight)], 1)  # (B L M, d + 1)
    of_subspace = counts.view(K, n).sum(1).tolist()
    up = torch.cat([form.basis, (form.offset - form.center)[..., None]], 2).mT  # (K, d + 1, D)
    for at, part, basis in zip(rows.flatten()[order].split(of_subspace), lifted.split(of_subspace), up, strict=True):
        out.index_add_(0, at, part @ basis)
    return out.view(-1, L, D)


def _explain(form: Eigenform, u: Tensor, s: Tensor, v: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gates and numbers of the best modes of each row, with shape (B, L, M), and their pull, with shape (B, L, M, d).

    Args:
        form: of the law.
        u: rows x - s center, with shape (B, L, D).
        s: with shape (B,).
        v: with shape (B, K).
        top: M.
    """
    B, L, D = u.shape
    K, n, d = form.mean.shape
    rows = u.flatten(0, 1)
    s1 = s.repeat_interleave(L)[:, None]
    down = rows @ form.down
    h = (down[:, : K * d] - s1 * form.shift.flatten()).unflatten(1, (K, d))
    energy = squared_norm(rows)[:, None] - s1 * (2 * down[:, K * d : K * (d + 1)] - s1 * form.offset2)
    rho2 = (energy - squared_norm(h)).view(B, L, K)
    if any(form.filled):
        rho2 = rho2 * torch.tensor([float(not whole) for whole in form.filled]).to(rho2)
    Lam = s[:, None, None, None].square() * form.lam + v[..., None, None]  # (B, K, n, d)
    root = Lam.rsqrt()
    base = form.log_weight - 0.5 * (Lam.log().sum(-1) + (D - d) * v.log()[..., None])  # (B, K, n)
    white = h.transpose(0, 1) @ form.axes.flatten(1, 2).mT - s1 * form.white_mean.flatten(1)[:, None]  # (K, B L, n d)
    white = white.view(K, B, L, n, d).mul_(root.transpose(0, 1)[:, :, None])
    maha = squared_norm(white).permute(1, 2, 0, 3)  # (B, L, K, n)
    log_joint = base[:, None] - 0.5 * (maha + (rho2 / v[:, None])[..., None])
    best, mode = log_joint.flatten(2).topk(top)
    k, within = mode // n, mode % n
    group, row = torch.arange(B, device=u.device)[:, None, None], torch.arange(L, device=u.device)[:, None]
    pull = white[k, group, row, within] * root[group, k, within]
    return best.softmax(-1), mode, pull
