"""The law written out: a mixture of Gaussians with dense covariances in float64, conditioned as textbooks do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from molrmog import HeadTail, MoLRMoG


@dataclass
class DenseLaw:
    """x_0 ~ sum_c weight_c N(mean_c, cov_c)."""

    log_weight: Tensor  # (C,)
    mean: Tensor  # (C, D)
    cov: Tensor  # (C, D, D)

    @classmethod
    def of(cls, law: MoLRMoG | HeadTail, parameters: dict[str, Tensor] | None = None) -> DenseLaw:
        """Read a law, or `parameters` in its place, which derivatives then go through."""
        p = {name: t.detach() for name, t in law.state_dict().items()} if parameters is None else parameters
        p = {name: t.double() for name, t in p.items()}
        if isinstance(law, MoLRMoG):
            return cls._pure(law, p)
        head = cls._pure(law.head, {name.removeprefix("head."): t for name, t in p.items() if "head." in name})
        H, T = p["axes"][:, : law.head.dim], p["axes"][:, law.head.dim :]
        left = torch.eye(law.dim).to(H) - H @ H.T - T @ T.T
        shared = T @ torch.diag(p["spread"] ** 2) @ T.T + p["tau"] ** 2 * left
        return cls(head.log_weight, p["offset"] + head.mean @ H.T, H @ head.cov @ H.T + shared)

    @classmethod
    def _pure(cls, law: MoLRMoG, p: dict[str, Tensor]) -> DenseLaw:
        log_weight, mean, cov = [], [], []
        log_w = p["subspace_logits"].log_softmax(0)
        Q = torch.eye(law.dim).to(p["basis"]) if law.axes is None else law.axes.matrix().to(p["basis"])
        tau = p["tau"][:, None] if law.noise == "isotropic" else p["tau"]
        tau = tau.expand(law.subspaces, law.dim)
        for k, (d, n) in enumerate(zip(law.latent_dims, law.modes, strict=True)):
            A = p["basis"][:, k, :d]
            log_pi = p["mode_logits"][k, :n].log_softmax(0)
            for mode in range(n):
                U = p["factor"][k, mode, :d, : law.ranks[k][mode]]
                log_weight.append(log_w[k] + log_pi[mode])
                mean.append(Q @ (p["offset"][k] + A @ p["mean"][k, mode, :d]))
                cov.append(Q @ (A @ U @ U.T @ A.T + torch.diag(tau[k] ** 2)) @ Q.T)
        return cls(torch.stack(log_weight), torch.stack(mean), torch.stack(cov))

    def log_joint(self, x: Tensor, s=1.0, gamma=0.0) -> Tensor:
        """log weight_c + log N_c(x), with shape (B, C)."""
        s, gamma = self._levels(s, gamma)  # (B or 1, 1)
        noise = gamma[..., None, None] ** 2 * torch.eye(x.shape[1]).to(self.cov)
        normal = MultivariateNormal(
            s[..., None] * self.mean, s[..., None, None] ** 2 * self.cov + noise, validate_args=False
        )
        return self.log_weight + normal.log_prob(x.double()[:, None])

    def log_prob(self, x: Tensor, s=1.0, gamma=0.0) -> Tensor:
        return self.log_joint(x, s, gamma).logsumexp(1)

    def log_gates(self, x: Tensor, s=1.0, gamma=0.0) -> Tensor:
        return self.log_joint(x, s, gamma).log_softmax(1)

    def conditioned(self, x: Tensor, s=1.0, gamma=0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Gates (B, C), means (B, C, D) and covariances (B or 1, C, D, D) of x_0 given x_t = x, one per mode."""
        gates = self.log_gates(x, s, gamma).exp()
        s, gamma = self._levels(s, gamma)
        s, gamma = s[..., None, None], gamma[..., None, None]
        marginal = s**2 * self.cov + gamma**2 * torch.eye(x.shape[1]).to(self.cov)
        gain = torch.linalg.solve(marginal, s * self.cov).mT  # (s Sigma) (s^2 Sigma + gamma^2 I)^-1
        away = x.double()[:, None] - s[..., 0] * self.mean
        return gates, self.mean + (gain @ away[..., None])[..., 0], self.cov - gain @ (s * self.cov)

    def posterior_mean(self, x: Tensor, s=1.0, gamma=0.0) -> Tensor:
        gates, means, _ = self.conditioned(x, s, gamma)
        return (gates[..., None] * means).sum(1)

    def posterior_cov(self, x: Tensor, s=1.0, gamma=0.0) -> Tensor:
        """Full covariance of x_0 given x_t = x, with shape (B, D, D)."""
        gates, means, covs = self.conditioned(x, s, gamma)
        mean = (gates[..., None] * means).sum(1)
        off = means - mean[:, None]
        return (gates[..., None, None] * (covs + off[..., :, None] * off[..., None, :])).sum(1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of x_0."""
        w = self.log_weight.exp()
        mean = w @ self.mean
        off = self.mean - mean
        return mean, torch.einsum("c,cij->ij", w, self.cov) + torch.einsum("c,ci,cj->ij", w, off, off)

    def _levels(self, s, gamma) -> tuple[Tensor, Tensor]:
        return tuple(
            torch.as_tensor(t, dtype=torch.float64, device=self.mean.device).reshape(-1, 1) for t in (s, gamma)
        )
