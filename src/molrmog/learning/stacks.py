"""EM of many small laws at once, over the same rows: what `em` does, with the laws side by side.

A fit to a few hundred rows is a hundred small products and ten thousand lines of Python around them. Laws that differ
in shape, in their prior, or in the rows that they are shown cost little more together than one of them alone: their
subspaces stand in one law, and responsibilities are those within the law of a subspace,

    log p_j(x) = log sum_{k of j} sum_l w_k pi_kl N_kl(x)

Each law has row weights of its own. Rows of weight zero are held out from it, and their log-density, known anyhow, says
when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from molrmog.laws.base import Subspace
from molrmog.laws.diagonal import DiagonalLevel
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.em import (
    Latents,
    Statistics,
    Terms,
    living,
    penalty_of_modes,
    penalty_of_noise,
    updated_law,
    without_lost_modes,
)

_LOG_2PI = math.log(2 * math.pi)
_NUMBERS = 2**22  # of whitened rows that are held at once
_SLACK = 1e-12  # what rounding may do to the objective, relative
_FAINT = -1e3  # log of a responsibility that adds nothing to an entropy


@dataclass(frozen=True)
class Stack:
    """Laws over R^D side by side.

    Attributes:
        law: their subspaces, one after the other; of unequal noise, it has a row of tau for each subspace.
        law_of: which law each subspace belongs to, in order, with shape (K,).
        count: number J of laws.
        shared: whether the subspaces of a law have their noise in common.
    """

    law: MoLRMoG
    law_of: Tensor
    count: int
    shared: bool

    @classmethod
    def of(cls, laws: Sequence[MoLRMoG]) -> Stack:
        """Put laws of one kind of noise, without axes, beside each other."""
        parts: list[Subspace] = []
        for law in laws:
            parts += [law.subspace(k) for k in range(law.subspaces)]
        together = MoLRMoG.from_subspaces(parts, dtype=torch.float64).requires_grad_(False)
        law_of = torch.arange(len(laws)).repeat_interleave(torch.tensor([law.subspaces for law in laws]))
        return cls(together, law_of, len(laws), laws[0].noise == "shared")

    def one(self, j: int) -> MoLRMoG:
        """Law j."""
        parts = [self.law.subspace(int(k)) for k in (self.law_of == j).nonzero()[:, 0]]
        return MoLRMoG.from_subspaces(parts, shared=self.shared, dtype=torch.float64).requires_grad_(False)

    def only(self, index: Tensor) -> Stack:
        """Some of the laws, in this order; an index may be repeated."""
        kept = torch.cat([(self.law_of == j).nonzero()[:, 0] for j in index])
        law_of = torch.arange(len(index)).repeat_interleave(torch.bincount(self.law_of, minlength=self.count)[index])
        law = self.law
        n, d = max(law.modes[k] for k in kept.tolist()), max(law.latent_dims[k] for k in kept.tolist())
        config: dict[str, Any] = {
            "dim": law.dim,
            "latent_dims": [law.latent_dims[k] for k in kept.tolist()],
            "modes": [law.modes[k] for k in kept.tolist()],
            "ranks": [law.ranks[k] for k in kept.tolist()],
            "noise": law.noise,
        }
        part = MoLRMoG(**config, dtype=law.tau.dtype).requires_grad_(False)
        r = part.factor.shape[3]
        part.basis.copy_(law.basis[:, kept, :d])
        part.offset.copy_(law.offset[kept])
        part.mean.copy_(law.mean[kept, :n, :d])
        part.factor.copy_(law.factor[kept, :n, :d, :r])
        part.tau.copy_(law.tau[kept])
        part.subspace_logits.copy_(law.subspace_logits[kept])
        part.mode_logits.copy_(law.mode_logits[kept, :n])
        return replace(self, law=part, law_of=law_of, count=len(index))

    def log_weights(self) -> Tensor:
        """Log w_k within the law of subspace k, with shape (K,)."""
        return self.law.subspace_logits - self.normalised(self.law.subspace_logits[:, None])[self.law_of, 0]

    def normalised(self, log: Tensor) -> Tensor:
        """Log-sums over the subspaces of each law, with shape (J, ...), from numbers with shape (K, ...)."""
        index = self.law_of.reshape(-1, *[1] * (log.dim() - 1)).expand_as(log)
        top = log.new_full((self.count, *log.shape[1:]), -torch.inf).scatter_reduce(0, index, log, "amax")
        sums = torch.zeros_like(top).index_add_(0, self.law_of, (log - top[self.law_of]).exp())
        return sums.log() + top


@dataclass(frozen=True)
class Progress:
    """What a pass found, of each law.

    Attributes:
        stack: the laws that the figures below belong to.
        log_prob: log p_j(x) of every row, with shape (J, N).
        penalised: the objective, mean over the rows of the law, in nats, with shape (J,).
        entropy: of the responsibilities of all modes, mean over the rows of the law, in nats, with shape (J,).
    """

    stack: Stack
    log_prob: Tensor
    penalised: Tensor
    entropy: Tensor


class StackedEM:
    """EM of a stack, a pass at a time; laws that are done can be left out between passes.

    Args:
        stack: where to start.
        x: rows, with shape (N, D), in float64.
        weights: of the rows in each law, with shape (J, N).
        prior_rows: nu of each law, with shape (J,).
        noise_rows: of the prior on unequal noise of each law, with shape (J,); ones where not given.
        floor: least standard deviation of the noise, with shape (D,) or (1,), of all laws; or with shape (J, D or 1).
        spread2: variance of each column that the prior on unequal noise is about, with shape (D,) or (J, D).
        divisor: of each column before a law sees it, with shape (J, D); ones where not given.
        zero_mean: keep b = 0 and mu = 0.
    """

    def __init__(
        self,
        stack: Stack,
        x: Tensor,
        weights: Tensor,
        *,
        prior_rows: Tensor,
        floor: Tensor,
        spread2: Tensor,
        noise_rows: Tensor | None = None,
        divisor: Tensor | None = None,
        zero_mean: bool = False,
    ) -> None:
        self.stack = stack
        self.x = x
        self.weights = weights
        self.prior_rows = prior_rows
        self.noise_rows = torch.ones_like(prior_rows) if noise_rows is None else noise_rows
        self.floor = floor.expand(stack.count, -1)
        self.spread2 = spread2.expand(stack.count, -1)
        self.divisor = divisor
        self.zero_mean = zero_mean
        law, least = stack.law, self.floor[stack.law_of]
        least = least.amax(1) if law.noise == "isotropic" else least
        law.tau.copy_(torch.maximum(law.tau, least))
        self._found = self._evaluate(stack)

    def state(self) -> Progress:
        """Figures of the laws as they are."""
        _, _, penalised, log_prob, entropy = self._found
        return Progress(self.stack, log_prob, penalised, entropy)

    def only(self, index: Tensor) -> None:
        """Leave out all laws but these."""
        self.stack = self.stack.only(index)
        self.weights, self.prior_rows = self.weights[index], self.prior_rows[index]
        self.noise_rows = self.noise_rows[index]
        self.floor, self.spread2 = self.floor[index], self.spread2[index]
        self.divisor = None if self.divisor is None else self.divisor[index]
        self._found = self._evaluate(self.stack)

    def step(self) -> Progress:
        """A pass: update every law, look at the rows, and take steps back that lowered the objective."""
        latents, statistics, value, *_ = self._found
        law = self.stack.law
        alive = living(law, statistics, 1.0)
        if not bool((alive == law._real_mode).all()):
            law, statistics = without_lost_modes(law, statistics, alive)
            self.stack = replace(self.stack, law=law, law_of=self.stack.law_of[alive.any(1)])
            law = updated_law(law, Latents.of(law), statistics, self._terms(self.stack))[0]
            self.stack = replace(self.stack, law=law)
            self._found = self._evaluate(self.stack)
            return self.state()
        new, cautious = updated_law(law, latents, statistics, self._terms(self.stack))
        self.stack = replace(self.stack, law=new)
        self._found = self._evaluate(self.stack)
        worse = self._found[2] < value - _SLACK * value.abs().clamp(min=self.x.shape[1])
        if bool(worse.any()):
            self.stack = replace(self.stack, law=_mixed(new, cautious, worse[self.stack.law_of]))
            self._found = self._evaluate(self.stack)
        return self.state()

    def _terms(self, stack: Stack) -> Terms:
        floor = self.floor[stack.law_of]
        return Terms(
            prior_rows=self.prior_rows[stack.law_of],
            noise_rows=self.noise_rows[stack.law_of, None],
            one_row=1.0,
            floor=floor,
            spread2=torch.maximum(self.spread2[stack.law_of], floor.square()),
            zero_mean=self.zero_mean,
            sharing=stack.law_of if stack.shared else None,
        )

    @torch.no_grad()
    def _evaluate(self, stack: Stack) -> tuple[Latents, Statistics, Tensor, Tensor, Tensor]:
        """Latents, statistics, objective (J,), log-densities (J, N) and entropies (J,)."""
        latents = Latents.of(stack.law)
        statistics = Statistics.none(stack.law, self.x.device)
        log_prob, entropy = self.x.new_empty(stack.count, len(self.x)), self.x.new_zeros(stack.count)
        K, n, d = latents.mean.shape
        step = max(1, _NUMBERS // (K * (self.x.shape[1] + 2 * n * d)))
        form = _Densities.of(stack, latents, self.divisor)
        for start in range(0, len(self.x), step):
            at = slice(start, start + step)
            log_prob[:, at], mixed = form.gather(statistics, self.x[at], self.weights[:, at])
            entropy.index_add_(0, stack.law_of, mixed)
        terms = self._terms(stack)
        penalty = penalty_of_modes(stack.law, latents, terms)
        noise = penalty_of_noise(stack.law, terms).expand(K)
        if stack.shared:
            noise = noise / torch.bincount(stack.law_of)[stack.law_of]
        total = (log_prob * self.weights).sum(1).index_add(0, stack.law_of, penalty + noise)
        rows = self.weights.sum(1)
        return latents, statistics, total / rows, log_prob, entropy / rows


@dataclass(frozen=True)
class _Densities:
    """Log-densities of modes, and the statistics of a few rows."""

    stack: Stack
    latents: Latents
    root: Tensor  # (K, 1, D or 1)  P_k^1/2
    basis: Tensor  # (K, D, d)      A'_k
    lower: Tensor  # (K, n, d, d)   Cholesky factor of S_c^-1: |lower^T (h - mu)|^2 is the distance
    const: Tensor  # (K, n, 1)
    times: Tensor | None  # (K, 1, D)  what columns are multiplied by

    @classmethod
    def of(cls, stack: Stack, latents: Latents, divisor: Tensor | None) -> _Densities:
        law = stack.law
        level = law.level()
        D, d = law.dim, latents.mean.shape[2]
        if isinstance(level, DiagonalLevel):
            root = level.root_precision
            volume = root.log().sum(1)
        else:
            root = latents.v.new_ones(len(latents.v), 1)
            volume = torch.zeros_like(latents.v)
        lower = torch.linalg.cholesky(latents.inverse)
        const = lower.diagonal(dim1=2, dim2=3).log().sum(2) + volume[:, None]
        const = const - 0.5 * ((D - d) * latents.v.log() + D * _LOG_2PI)[:, None]
        within = law.mode_logits.double().masked_fill(~latents.real, -torch.inf).log_softmax(1)
        const = const + within + stack.log_weights()[:, None]
        times = None if divisor is None else divisor[stack.law_of, None].reciprocal()
        return cls(stack, latents, root[:, None], level.basis, lower, const[..., None], times)

    def gather(self, total: Statistics, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Add the statistics of rows (b, D) of weights (J, b).

        Returns:
            Log-densities of the rows, with shape (J, b), and what subspaces add to the entropy, with shape (K,).
        """
        latents, law = self.latents, self.stack.law
        x = x if self.times is None else x * self.times
        about = (x - law.offset[:, None]) * self.root  # (K, b, D)
        h = about @ self.basis  # (K, b, d)
        square = about.square()
        rho2 = (square.sum(2) - h.square().sum(2)).clamp(min=0)  # (K, b)
        white = self.lower.mT @ (h.mT[:, None] - latents.mean[..., None])  # (K, n, d, b)
        log = self.const - 0.5 * (white.square().sum(2) + (rho2 / latents.v[:, None])[:, None])  # (K, n, b)
        of_subspace = log.logsumexp(1)
        log_prob = self.stack.normalised(of_subspace)
        log_r = log - log_prob[self.stack.law_of][:, None]
        r = log_r.exp() * weights[self.stack.law_of][:, None]  # (K, n, b)
        gain = latents.gain
        rest = latents.mean - (gain @ latents.mean[..., None])[..., 0]
        share = r.sum(1)  # (K, b)
        weighted = r[:, :, None] * h.mT[:, None]  # (K, n, d, b)
        zeta = (gain @ weighted).sum(1) + rest.mT @ r  # (K, d, b)
        total.rows += weights.sum()
        total.count += r.sum(2)
        total.first += weighted.sum(3)
        total.second += weighted @ h[:, None]
        total.ambient += torch.cat([zeta, share[:, None]], 1) @ about
        if total.square.shape[1]:
            total.square += (share[:, None] @ square)[:, 0]
        else:
            total.off += (share * rho2).sum(1)
        return log_prob, -(r * log_r.clamp(min=_FAINT)).sum((1, 2))


def _mixed(new: MoLRMoG, old: MoLRMoG, back: Tensor) -> MoLRMoG:
    """Subspaces of one law, and those of another where `back` (K,) says so."""
    law = new.empty_like()
    for name in MoLRMoG.parameter_names:
        a, b = getattr(new, name), getattr(old, name)
        shape = (1, -1, 1) if name == "basis" else (-1, *[1] * (a.dim() - 1))
        getattr(law, name).copy_(torch.where(back.reshape(shape), b, a))
    return law
