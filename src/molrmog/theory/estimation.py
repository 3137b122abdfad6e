"""How far a learned score is from the true one, how that falls with n, and what theory says about it.

Error.  At the noise level (s, gamma), with x_t = s x_0 + gamma eps of fresh rows,

    E(theta) = E || s_theta(x_t) - s*(x_t) ||^2 = (s / gamma^2)^2 E || D_theta(x_t) - D*(x_t) ||^2

the excess of theta over the truth in the score-matching loss L(theta) = E || s_theta(x_t) + eps / gamma ||^2. Nothing
is divided by D: the error lives in R^D.

Asymptotics.  For maximum likelihood on n rows, theta_n - theta* ~ N(0, F^-1 / n) with F the Fisher information of a
clean row, so with J the Jacobian of the score in theta

    n E(theta_n)  ->  tr( F^+ G ),      G = E J^T J,      F = E grad log p grad log p^T

whatever the parametrisation (pseudo-inverse: rotations of U move nothing). The slope of E in n is -1, that of the
distance -1/2, and what the dimension costs stands in the trace. With A, b, tau known and one tau for all subspaces, the
part of the score off the span of the A_k is -x / v, known; nothing in F or G knows D. A tau that is learned adds one
direction, whose part off the subspaces costs 2 s^4 tau^4 / v^3 / n, the same in every D: its error falls as 1 / (n D)
but D coordinates have it.

Gap.  The paper bounds sup |L - L_n|, L_n the mean over the n rows learned from, by the shape

    (R + s B_mu)^4 s^2 / gamma^6 * sqrt(sum n_k) * sqrt(sum n_k d_k) / sqrt(n)

up to a constant, for rows within a radius R and means within B_mu. A gap at one theta is a mean's error, so it has the
slope -1/2; the excess of the fit, quadratic around its minimum, falls twice as fast. The gap at the fit holds both,

    L_n(theta_n) - L(theta_n) = [ L_n(theta*) - L(theta*) ] + [ L_n(theta_n) - L_n(theta*) ] - E(theta_n),

a mean of slope -1/2 and the fit's own part of slope -1, which is the larger one at small n. On the same rows and noises
the middle bracket has little variance. At the truth s* + eps / gamma = (s / gamma^2) (E[x_0 | x_t] - x_0), so that

    L(theta*) = (s / gamma^2)^2 E tr Cov[ x_0 | x_t ]

which varies less from row to row than the loss does.

References:
    arXiv 2601.01475, section 4 (estimation error; A_k known).
    van der Vaart, Asymptotic Statistics, 1998, theorem 5.39.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from molrmog.denoisers.base import Denoiser
from molrmog.laws.molrmog import MoLRMoG
from molrmog.seeds import torch_generator

_NORMAL_95 = 1.959964
_MEASURED = 2**22  # numbers of rows held at once


@dataclass(frozen=True)
class ScoreError:
    """A mean over fresh rows.

    Attributes:
        mean: E || s_theta - s* ||^2, in units of one over data squared.
        standard_error: of the mean.
    """

    mean: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95% confidence interval."""
        half = _NORMAL_95 * self.standard_error
        return self.mean - half, self.mean + half


@torch.no_grad()
def score_error(
    denoiser: Denoiser,
    truth: MoLRMoG,
    x0: Tensor,
    s: float,
    gamma: float,
    *,
    seed: int = 0,
    noise: Tensor | None = None,
) -> ScoreError:
    """E || s_theta - s* ||^2 at one noise level, by Monte Carlo.

    Args:
        denoiser: any over R^D, whose score is (s D - x) / gamma^2; a law is one.
        truth: the law of the rows.
        x0: fresh rows with shape (N, D).
        s: signal scale.
        gamma: noise standard deviation, positive.
        seed: of the noise, so that denoisers are compared on the same noised rows.
        noise: eps with the shape of x0, in place of noise that is drawn.

    Raises:
        ValueError: gamma is not positive.

    Example:
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2,), modes=(2,), noise=0.1, seed=0).requires_grad_(False)
        >>> score_error(law, law, law.sample(100).x, s=0.8, gamma=0.6).mean
        0.0
    """
    generator = torch_generator(seed)
    if not gamma > 0:
        raise ValueError(f"gamma = {gamma}: a score is compared at a noise level above 0")
    rows: list[Tensor] = []
    size = max(1, _MEASURED // x0.shape[1])
    for start in range(0, len(x0), size):
        x = x0[start : start + size]
        eps = _normal(x, generator) if noise is None else noise[start : start + size]
        xt = s * x + gamma * eps
        apart = denoiser.denoise(xt, s, gamma) - truth.denoise(xt, s, gamma)
        rows.append((s / gamma**2) ** 2 * apart.double().square().sum(1))
    squares = torch.cat(rows)
    return ScoreError(float(squares.mean()), float(squares.std()) / math.sqrt(len(squares)))


def asymptotic_error(
    law: MoLRMoG,
    x0: Tensor,
    s: float,
    gamma: float,
    learn: Sequence[str] = ("mean", "factor", "subspace_logits", "mode_logits"),
    *,
    seed: int = 0,
) -> float:
    """tr(F^+ G), what n E || s_theta - s* ||^2 tends to for maximum likelihood on n clean rows.

    Args:
        law: the truth, in float64 and of few parameters: the Jacobians are dense.
        x0: rows of the law, with shape (N, D), over which F and G are means; N well above the number of parameters.
        s: signal scale.
        gamma: noise standard deviation.
        learn: names of the law's parameters that are estimated, the rest being known.
        seed: of the noise.
    """
    held = {f"law.{name}": p.detach() for name, p in law.named_parameters()}
    sizes = [held[f"law.{name}"].numel() for name in learn]
    at = torch.cat([held[f"law.{name}"].flatten() for name in learn])
    density, score = _Method(law, "log_prob"), _Method(law, "score")

    def placed(theta: Tensor) -> dict[str, Tensor]:
        parts = zip(learn, theta.split(sizes), strict=True)
        return held | {f"law.{name}": part.view_as(held[f"law.{name}"]) for name, part in parts}

    generator = torch_generator(seed)
    F, G = (at.new_zeros(len(at), len(at)) for _ in range(2))
    log_prob = grad(lambda theta, row: functional_call(density, placed(theta), (row[None], 1.0, 0.0))[0])
    noised = jacrev(lambda theta, row: functional_call(score, placed(theta), (row[None], s, gamma))[0])
    for x in x0.split(512):
        xt = s * x + gamma * _normal(x, generator)
        g = vmap(log_prob, in_dims=(None, 0))(at, x)  # (b, P)
        J = vmap(noised, in_dims=(None, 0))(at, xt)  # (b, D, P)
        F += g.T @ g / len(x0)
        G += J.flatten(0, 1).T @ J.flatten(0, 1) / len(x0)
    return float((torch.linalg.pinv(F, rtol=1e-8, hermitian=True) * G).sum())


class _Method(nn.Module):
    """A method of a law as a module's forward, for functional_call."""

    def __init__(self, law: MoLRMoG, name: str) -> None:
        super().__init__()
        self.law, self.name = law, name

    def forward(self, *given: Tensor | float) -> Tensor:
        return getattr(self.law, self.name)(*given)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise with the shape, dtype and device of `like`: the same numbers wherever it lies."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


@torch.no_grad()
def row_losses(law: MoLRMoG, x0: Tensor, s: float, gamma: float, *, pairs: int = 1, seed: int = 0) -> Tensor:
    """|| s_theta(x_t) + eps / gamma ||^2 of each row, mean over noises, with shape (N,).

    Args:
        law: theta.
        x0: rows with shape (N, D).
        s: signal scale.
        gamma: noise standard deviation.
        pairs: of a noise and its negative, for each row.
        seed: of the noises.
    """
    generator = torch_generator(seed)
    total = x0.new_zeros(len(x0))
    for _ in range(pairs):
        eps = _normal(x0, generator)
        for one in (eps, -eps):
            total += (law.score(s * x0 + gamma * one, s, gamma) + one / gamma).square().sum(1)
    return total / (2 * pairs)


@torch.no_grad()
def least_loss(law: MoLRMoG, x0: Tensor, s: float, gamma: float, *, seed: int = 0) -> ScoreError:
    """L(theta*) = (s / gamma^2)^2 E tr Cov[x_0 | x_t], the loss that the true score has left, by Monte Carlo.

    Args:
        law: the truth.
        x0: rows of it, with shape (N, D).
        s: signal scale.
        gamma: noise standard deviation, positive.
        seed: of the noise.
    """
    xt = s * x0 + gamma * _normal(x0, torch_generator(seed))
    left = (s / gamma**2) ** 2 * law.posterior(xt, s, gamma).variance.double().sum(1)
    return ScoreError(float(left.mean()), float(left.std()) / math.sqrt(len(left)))


def block_gaps(losses: Tensor, n: int) -> Tensor:
    """L_n - L of every block of n rows, L being the mean of the whole pool, with shape (..., N // n).

    Blocks are part of the pool, which makes them closer to its mean than independent rows are by sqrt(1 - n / N); that
    factor is taken out.

    Args:
        losses: of each row of the pool, see `row_losses`, with shape (..., N).
        n: rows per block, below N.
    """
    N = losses.shape[-1]
    if not 1 <= n < N:
        raise ValueError(f"blocks of {n} rows out of a pool of {N}: pass n from 1 to {N - 1}")
    blocks = losses[..., : N // n * n].unflatten(-1, (-1, n)).mean(-1)
    return (blocks - losses.mean(-1, keepdim=True)) / math.sqrt(1 - n / N)


@dataclass(frozen=True)
class GapBound:
    """The shape of the paper's bound on |L - L_n|; it holds up to a constant that the paper does not print.

    Attributes:
        s: signal scale.
        gamma: noise standard deviation.
        radius: R, within which the rows lie.
        mean_radius: B_mu, within which the means of the modes lie.
        modes: sum n_k.
        mean_numbers: sum n_k d_k, how many numbers the means are.
    """

    s: float
    gamma: float
    radius: float
    mean_radius: float
    modes: int
    mean_numbers: int

    @classmethod
    def of(cls, law: MoLRMoG, x0: Tensor, s: float, gamma: float) -> GapBound:
        """The bound for a law, with R the largest norm among the rows x0 (N, D): a Gaussian has no radius."""
        numbers = sum(n * d for n, d in zip(law.modes, law.latent_dims, strict=True))
        radius, mean_radius = float(x0.norm(dim=1).max()), float(law.mean.detach().norm(dim=2).max())
        return cls(s, gamma, radius, mean_radius, sum(law.modes), numbers)

    @property
    def constant(self) -> float:
        """(R + s B_mu)^4 s^2 / gamma^6, which the headline of the theorem leaves out."""
        return (self.radius + self.s * self.mean_radius) ** 4 * self.s**2 / self.gamma**6

    def at(self, n: int) -> float:
        """The bound's shape at n rows."""
        return self.constant * math.sqrt(self.modes * self.mean_numbers / n)


@dataclass(frozen=True)
class Slope:
    """A slope in log-log coordinates, mean over seeds.

    Attributes:
        value: the mean.
        low: lower end of its 95% interval, from Student's t over seeds; NaN for one seed.
        high: upper end.
        seeds: how many.
    """

    value: float
    low: float
    high: float
    seeds: int


def loglog_slope(x: Sequence[float], y: Sequence[Sequence[float]]) -> Slope:
    """Least-squares slope of log y against log x for each seed, and its mean over seeds.

    Args:
        x: positive numbers, such as n.
        y: for each seed the positive values at every x.

    Raises:
        ValueError: there are fewer than two x, or a value is not positive.

    Example:
        >>> loglog_slope([1, 10, 100], [[5.0, 0.5, 0.05], [7.0, 0.7, 0.07]]).value
        -1.0
    """
    u, v = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    if len(u) < 2 or v.ndim != 2 or v.shape[1] != len(u) or not bool((u > 0).all() and (v > 0).all()):
        raise ValueError("a slope needs two x or more, and a positive y at each for every seed")
    u = u.log() - u.log().mean()
    slopes = (v.log() @ u) / u.square().sum()
    low, high = mean_interval(slopes.tolist())
    return Slope(round(float(slopes.mean()), 12), low, high, len(slopes))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean by Student's t; NaN where there is one value."""
    from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs]

    v = torch.tensor(values, dtype=torch.float64)
    if len(v) < 2:
        return math.nan, math.nan
    half = float(t.ppf(0.975, len(v) - 1)) * float(v.std()) / math.sqrt(len(v))  # pyright: ignore
    return float(v.mean()) - half, float(v.mean()) + half


def embedding(inner: int, dim: int, seed: int) -> Tensor:
    """An isometry Q from R^inner into R^dim, uniform, with shape (dim, inner)."""
    if not inner <= dim:
        raise ValueError(f"R^{inner} does not fit into R^{dim}: pass dim >= {inner}")
    generator = torch_generator(seed)
    return torch.linalg.qr(torch.randn(dim, inner, generator=generator, dtype=torch.float64)).Q


def embedded(law: MoLRMoG, Q: Tensor) -> MoLRMoG:
    """The same law in a space of more dimensions: A_k -> Q A_k, b_k -> Q b_k; noise tau_k in all of them.

    Angles between the subspaces stay, so what D changes is D alone.

    Args:
        law: over R^q.
        Q: orthonormal columns, with shape (D, q), see `embedding`.
    """
    parts = [law.subspace(k) for k in range(law.subspaces)]
    lifted = [replace(part, basis=Q @ part.basis, offset=Q @ part.offset) for part in parts]
    return MoLRMoG.from_subspaces(lifted, dtype=Q.dtype).requires_grad_(False)


def embedded_rows(y: Tensor, Q: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Rows of the embedded law from rows y (n, q) of the law itself, with shape (n, D).

    The noise along Q is in y already; off Q it is drawn, so that the same y serve every D.
    """
    noise = tau * _normal(y.new_empty(len(y), len(Q)), generator)
    return noise + (y - noise @ Q) @ Q.T
