"""The score-matching loss of a law whose truth is known, as a function of one vector, with its derivatives.

At one noise level, on rows x_i of the noised truth with weights q_i that sum to one,

    L(theta)     = 1/2 sum_i q_i |e_i|^2,      e_i = score_theta(x_i) - score*(x_i)     (1/2 E |score_theta - score*|^2)
    gradient     = sum_i q_i J_i^T e_i,        J_i = d score_theta(x_i) / d theta
    Gauss-Newton = sum_i q_i J_i^T J_i
    Hessian      = Gauss-Newton + sum_i q_i sum_a e_ia d^2 score_theta(x_i)_a / d theta^2

The rows stay fixed, so that two values of theta see the same noise; on any rows at all the truth has loss and gradient
zero, and its Hessian is the Gauss-Newton matrix. theta holds the real entries of the learned parameters, padding left
out. The formulas of the score stay in `molrmog.laws.molrmog`, and every derivative is that of autograd.

Gauge. Some directions of theta change nothing about the law, about an orthonormal A and to first order: those that
leave the mean b + A mu and covariance A U U^T A^T + tau^2 I of every mode, and the weights. `gauge` solves for them,

    U -> U R                                  the r (r - 1) / 2 rotations of a mode's factor
    A -> A R, mu -> R^T mu, U -> R^T U        rotations of a latent space, as far as the learned ones can follow
    b -> b + A a, mu -> mu - a                an offset inside its own subspace
    tau -> tau + t, U U^T -> U U^T - 2 tau t  where A spans R^D and all U have full rank
    A -> A S, S symmetric                     the law orthonormalises A
    A -> A + B, b -> b + c, A^T B = 0         B U = 0 and B mu + c = 0 for every mode: columns that nothing uses, or
                                              that all modes use alike
    logits -> logits + constant               of the subspaces, and of the modes of each

and leaves out what is no smooth family of equal laws, or hangs on two modes: weights of modes that coincide, and tau at
0, where the law depends on tau^2 and the curvature vanishes without a gauge.

References:
    arXiv 2601.01475, section 6 (the objective whose Hessian it bounds, with A known).
    Vincent, A connection between score matching and denoising autoencoders, 2011 (other targets, the same derivative).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from molrmog.laws.molrmog import MoLRMoG

LEARNABLE = ("basis", "offset", "mean", "factor", "tau", "subspace_logits", "mode_logits")
_ROWS = 4096  # rows whose graph is held at once


class ScoreLoss:
    """The loss L(theta) = 1/2 sum_i q_i |score_theta(x_i) - target_i|^2 at one noise level, in float64.

    Attributes:
        truth: the law that theta is a change of, a detached copy.
        x_t: rows, with shape (N, D).
        s: signal scale.
        gamma: noise standard deviation.
        learn: names of the learned parameters, in the order in which theta holds them.
        target: what the score is to be, with shape (N, D).
        weight: q_i, with shape (N,).
        slices: where theta holds each learned parameter.

    Example:
        >>> law = MoLRMoG.random(dim=6, latent_dims=(3,), modes=(2,), rank=2, seed=0, dtype=torch.float64)
        >>> loss = ScoreLoss(law, law.sample(100, torch.Generator().manual_seed(0), s=0.8, gamma=0.6).x, 0.8, 0.6)
        >>> theta = loss.theta_of(law)
        >>> theta.shape, float(loss(theta)) < 1e-20, loss.hessian(theta).shape
        (torch.Size([18]), True, torch.Size([18, 18]))
    """

    def __init__(
        self,
        truth: MoLRMoG,
        x_t: Tensor,
        s: float,
        gamma: float,
        learn: str | Sequence[str] = ("mean", "factor"),
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Fix the rows.

        Args:
            truth: the law that the rows come from.
            x_t: rows of the noised law, with shape (N, D).
            s: signal scale.
            gamma: noise standard deviation.
            learn: parameters of the law that theta holds, among `LEARNABLE`; "all" for all of them.
            target: with shape (N, D); the truth's score where not given. -(x_t - s x_0) / gamma^2 makes it the
                denoising loss, of which the population loss differs by a constant.
            weight: q_i >= 0, with shape (N,); 1/N where not given.

        Raises:
            ValueError: there is no such parameter, or shapes do not fit.
        """
        learn = LEARNABLE if learn == "all" else (learn,) if isinstance(learn, str) else tuple(learn)
        if not learn or not set(learn) <= set(LEARNABLE):
            raise ValueError(f"learn = {learn}: name some of {', '.join(LEARNABLE)}, or all")
        x_t = torch.as_tensor(x_t)
        if x_t.ndim != 2 or x_t.shape[1] != truth.dim or not bool(x_t.isfinite().all()):
            raise ValueError(f"x_t has to hold finite rows with shape (N, {truth.dim})")
        self.truth = copy.deepcopy(truth).double().requires_grad_(False)
        self.x_t, self.s, self.gamma = x_t.detach().double(), float(s), float(gamma)
        self.learn = tuple(name for name in LEARNABLE if name in learn)
        self.target = self.truth.score(self.x_t, s, gamma) if target is None else target.detach().double()
        if self.target.shape != self.x_t.shape:
            raise ValueError(f"target has shape {tuple(self.target.shape)}: pass one row per row, {tuple(x_t.shape)}")
        uniform = self.x_t.new_full((len(x_t),), 1 / max(len(x_t), 1))
        self.weight = uniform if weight is None else weight.detach().double()
        if self.weight.shape != (len(x_t),):
            raise ValueError(f"weight has shape {tuple(self.weight.shape)}: pass one per row, ({len(x_t)},)")

        real = _real_entries(self.truth)
        self._at = {name: real[name].flatten().nonzero()[:, 0] for name in self.learn}
        self.slices: dict[str, slice] = {}
        end = 0
        for name, at in self._at.items():
            self.slices[name] = slice(end, end + len(at))
            end += len(at)
        self._size = end
        self._score_of = _OfRows(self.truth)

    def theta_of(self, law: MoLRMoG) -> Tensor:
        """The learned parameters of a law of the truth's shapes as one vector, with shape (P,), float64."""
        return self._packed({name: getattr(law, name).detach() for name in self.learn})

    def law_of(self, theta: Tensor) -> MoLRMoG:
        """The law at theta, a detached copy; what is not learned is the truth's."""
        law = copy.deepcopy(self.truth)
        with torch.no_grad():
            for name, values in self._unpacked(theta.detach()).items():
                getattr(law, name).copy_(values)
        return law

    def entries(self, name: str, subspace: int | None = None, mode: int | None = None) -> Tensor:
        """Which entries of theta hold a parameter, of one subspace or one mode, row by row, with shape (p,)."""
        numbers = torch.full((getattr(self.truth, name).numel(),), -1, device=self.x_t.device)
        numbers[self._at[name]] = torch.arange(self._size, device=self.x_t.device)[self.slices[name]]
        numbers = numbers.view_as(getattr(self.truth, name))
        if subspace is not None:
            numbers = numbers.select(1 if name == "basis" else 0, subspace)
            numbers = numbers if mode is None else numbers[mode]
        return numbers[numbers >= 0]

    def score(self, theta: Tensor, x_t: Tensor | None = None) -> Tensor:
        """Score of the law at theta, differentiable in theta, with shape (rows, D); at the loss's rows by default."""
        x_t = self.x_t if x_t is None else x_t
        parameters = {f"law.{name}": values for name, values in self._unpacked(theta).items()}
        return torch.cat(
            [functional_call(self._score_of, parameters, (x, self.s, self.gamma)) for x in x_t.split(_ROWS)]
        )

    def __call__(self, theta: Tensor) -> Tensor:
        """The loss, a scalar that is differentiable twice in theta."""
        return 0.5 * self.weight @ (self.score(theta) - self.target).square().sum(1)

    def gradient(self, theta: Tensor) -> Tensor:
        """The gradient, with shape (P,)."""
        return sum((gradient.detach() for _, gradient in self._gradients(theta)), torch.zeros_like(theta))

    def hessian(self, theta: Tensor) -> Tensor:
        """The Hessian, with shape (P, P)."""
        H = theta.new_zeros(len(theta), len(theta))
        for at, gradient in self._gradients(theta):
            H += torch.stack([torch.autograd.grad(g, at, retain_graph=True)[0] for g in gradient])
        return (H + H.T) / 2

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessian times v, with shape (P,), without forming it."""
        product = torch.zeros_like(theta)
        for at, gradient in self._gradients(theta):
            product += torch.autograd.grad(gradient, at, v)[0]
        return product

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """The Gauss-Newton matrix, with shape (P, P)."""
        G = theta.new_zeros(len(theta), len(theta))
        for times, weight, _ in self._jacobians(theta):
            J = torch.stack([times(e) for e in torch.eye(len(theta), dtype=theta.dtype, device=theta.device)])
            G += (J * weight[:, None]).flatten(1) @ J.flatten(1).T
        return (G + G.T) / 2

    def gnvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Gauss-Newton matrix times v, with shape (P,), without forming it."""
        product = torch.zeros_like(theta)
        for times, weight, transposed_times in self._jacobians(theta):
            product += transposed_times(weight[:, None] * times(v))
        return product

    def gauge(self, theta: Tensor) -> Tensor:
        """Orthonormal basis of the directions of theta that change nothing about the law, with shape (P, G).

        To first order, about an orthonormal A where A is learned; see the module for what is left out.
        """
        found = [self._packed(direction) for direction in _gauge_directions(self.law_of(theta), self.learn)]
        lengths = [direction.norm() for direction in found]
        moving = [direction / length for direction, length in zip(found, lengths, strict=True) if length > 1e-12]
        if not moving:
            return theta.new_zeros(len(theta), 0)
        basis, independent, _ = torch.linalg.svd(torch.stack(moving, 1), full_matrices=False)
        return basis[:, independent > 1e-9]

    def _packed(self, values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[name].double().flatten()[at] for name, at in self._at.items()])

    def _unpacked(self, theta: Tensor) -> dict[str, Tensor]:
        def parameter(name: str, at: Tensor) -> Tensor:
            truth = getattr(self.truth, name).detach()
            return truth.flatten().scatter(0, at, theta[self.slices[name]]).view_as(truth)

        return {name: parameter(name, at) for name, at in self._at.items()}

    def _gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A chunk at a time: theta, and the gradient as a differentiable function of it."""
        for rows in torch.arange(len(self.x_t), device=self.x_t.device).split(_ROWS):
            with torch.enable_grad():
                at = theta.detach().requires_grad_()
                error = self.score(at, self.x_t[rows]) - self.target[rows]
                loss = 0.5 * self.weight[rows] @ error.square().sum(1)
                yield at, torch.autograd.grad(loss, at, create_graph=True)[0]

    def _jacobians(self, theta: Tensor) -> Iterator[tuple[_Product, Tensor, _Product]]:
        """A chunk at a time: v -> J v with shape (rows, D), the weights of the rows, and u -> J^T u."""
        for rows in torch.arange(len(self.x_t), device=self.x_t.device).split(_ROWS):
            with torch.enable_grad():
                at = theta.detach().requires_grad_()
                score = self.score(at, self.x_t[rows])
                u = torch.zeros_like(score, requires_grad=True)
                pulled = torch.autograd.grad(score, at, u, create_graph=True)[0]  # J^T u, linear in u
            yield (
                lambda v, pulled=pulled, u=u: torch.autograd.grad(pulled, u, v, retain_graph=True)[0],
                self.weight[rows],
                lambda v, score=score, at=at: torch.autograd.grad(score, at, v, retain_graph=True)[0],
            )


_Product = Callable[[Tensor], Tensor]


class _OfRows(nn.Module):
    """The score of a law as a module's forward, so that its parameters can be handed in."""

    def __init__(self, law: MoLRMoG) -> None:
        super().__init__()
        self.law = law

    def forward(self, x: Tensor, s: float, gamma: float) -> Tensor:
        return self.law.score(x, s, gamma)


def stratified_rows(
    law: MoLRMoG, n: int, s: float, gamma: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of the noised law with the shares, means and covariances of all modes exact, not sampled.

    Every mode has the same number of rows, drawn in pairs x, 2 s m_c - x and whitened, of weight w_c / n_c each. Any
    quadratic function of x is averaged over a mode without error; gates and higher powers keep a sampling error. Take
    rows from `law.sample` where independent draws are the question.

    Args:
        law: the truth.
        n: rows at least; a mode gets no fewer than 2.5 (D + r).
        s: signal scale.
        gamma: noise standard deviation.
        generator: source of randomness, for reproducibility.

    Returns:
        Rows x_t, with shape (N, D), and their weights, summing to one, with shape (N,).
    """
    rows, weights = [], []
    share = n / sum(law.modes)
    for k in range(law.subspaces):
        part = law.subspace(k)
        A, b, means = part.basis.double(), part.offset.double(), part.means.double()
        std = (s * s * part.isotropic_tau("balanced rows") ** 2 + gamma * gamma) ** 0.5
        for weight, mu, U in zip(part.mode_weights, means, part.factors, strict=True):
            r, width = U.shape[1], U.shape[1] + law.dim
            half = max(math.ceil(share / 2), math.ceil(1.25 * width))
            eps = torch.randn(half, width, generator=generator, dtype=torch.float64).to(A.device)
            R = torch.linalg.cholesky(eps.T @ eps / half)
            eps = torch.linalg.solve_triangular(R, eps.T, upper=False).T  # second moments exactly I
            noise = s * eps[:, :r] @ (A @ U.double()).T + std * eps[:, r:]
            rows.append(s * (b + A @ mu) + torch.cat([noise, -noise]))
            weights.append(torch.full((2 * half,), part.weight * float(weight) / (2 * half), dtype=torch.float64))
    weight = torch.cat(weights).to(rows[0].device)
    return torch.cat(rows), weight / weight.sum()


def _real_entries(law: MoLRMoG) -> dict[str, Tensor]:
    """Which entries of each parameter are not padding."""
    real = {name: torch.zeros_like(getattr(law, name), dtype=torch.bool) for name in LEARNABLE}
    for name in ("offset", "tau", "subspace_logits"):
        real[name][:] = True
    for k, (d, n) in enumerate(zip(law.latent_dims, law.modes, strict=True)):
        real["basis"][:, k, :d] = real["mean"][k, :n, :d] = real["mode_logits"][k, :n] = True
        for mode, r in enumerate(law.ranks[k]):
            real["factor"][k, mode, :d, :r] = True
    return real


def _gauge_directions(law: MoLRMoG, learn: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Changes of the learned parameters that span those that leave the law as it is; they may depend on each other."""

    def still() -> dict[str, Tensor]:
        return {name: torch.zeros_like(getattr(law, name)) for name in learn}

    if "subspace_logits" in learn:
        yield {**still(), "subspace_logits": torch.ones_like(law.subspace_logits)}
    for k, (d, n) in enumerate(zip(law.latent_dims, law.modes, strict=True)):
        if "mode_logits" in learn:
            move = still()
            move["mode_logits"][k, :n] = 1
            yield move
        for inside in _inside(law, k, learn):
            yield still() | inside
        if "basis" in learn:
            A = law.basis[:, k, :d]
            for i, j in itertools.combinations_with_replacement(range(d), 2):
                move = still()
                move["basis"][:, k, i] += A[:, j]
                move["basis"][:, k, j] += A[:, i]
                yield move
            outside = torch.linalg.qr(A, mode="complete").Q[:, d:]  # (D, D - d)
            unseen = _unseen(law, k, "offset" in learn)
            for column, row in itertools.product(outside.T, unseen):
                move = still()
                move["basis"][:, k, :d] = torch.outer(column, row[:d])
                if "offset" in learn:
                    move["offset"][k] = row[d] * column
                yield move


def _unseen(law: MoLRMoG, k: int, offset: bool) -> Tensor:
    """Orthonormal rows (y, c), with shape (rows, d + 1), of y U = 0 and y mu + c = 0; c = 0 unless b is learned."""
    d, n = law.latent_dims[k], law.modes[k]
    mu, U = law.mean[k, :n, :d], law.factor[k, :n, :d]
    seen = torch.cat([mu, U.mT.reshape(-1, d)])  # (n + n r, d)
    if not offset:
        rows = _null(seen)
        return torch.cat([rows, rows.new_zeros(len(rows), 1)], 1)
    ones = torch.cat([mu.new_ones(n, 1), mu.new_zeros(len(seen) - n, 1)])
    return _null(torch.cat([seen, ones], 1))


def _inside(law: MoLRMoG, k: int, learn: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Changes A K (K skew), A a, h, H, t of A, b, mu, U, tau that leave means and covariances within the span of A.

    K mu + h + a = 0 and K C - C K + H U^T + U H^T + 2 tau t I = 0 for every mode, C = U U^T; a tau that is learned can
    be made up for by the factors only if the subspace is all of R^D.
    """
    d, n, r = law.latent_dims[k], law.modes[k], law.factor.shape[-1]
    A, mu, U = law.basis[:, k, :d], law.mean[k, :n, :d], law.factor[k, :n, :d]
    C, eye = U @ U.mT, torch.eye(d, dtype=A.dtype, device=A.device)
    units: list[tuple[str, Tensor]] = []  # the changes of one parameter, one by one
    effects: list[Tensor] = []  # of each on the means (n, d) and covariances (n, d, d)

    def add(name: str, change: Tensor, means: Tensor | None, covariances: Tensor | None) -> None:
        count = len(change)
        means = A.new_zeros(count, n, d) if means is None else means
        covariances = A.new_zeros(count, n, d, d) if covariances is None else covariances
        units.append((name, change))
        effects.append(torch.cat([means.flatten(1), covariances.flatten(1)], 1))

    if "basis" in learn and d > 1:
        i, j = torch.triu_indices(d, d, 1, device=A.device)
        K = A.new_zeros(len(i), d, d)
        at = torch.arange(len(i), device=A.device)
        K[at, i, j], K[at, j, i] = 1, -1
        add("basis", A @ K, mu @ K.mT, K[:, None] @ C - C @ K[:, None])
    if "offset" in learn:
        add("offset", A.T, eye[:, None].expand(d, n, d), None)
    if "mean" in learn:
        h = torch.eye(n * d, dtype=A.dtype, device=A.device).view(-1, n, d)
        add("mean", h, h, None)
    if "factor" in learn and r > 0:
        H = torch.eye(n * d * r, dtype=A.dtype, device=A.device).view(-1, n, d, r)
        real = torch.tensor([[c < rank for c in range(r)] for rank in law.ranks[k]], device=A.device)
        H = H[real[:, None].expand(n, d, r).flatten()]
        add("factor", H, None, H @ U.mT + U @ H.mT)
    if "tau" in learn and d == law.dim and law.noise == "isotropic" and law.tau[k] != 0:
        add("tau", A.new_ones(1), None, (2 * law.tau[k] * eye).expand(1, n, d, d))
    if not units:
        return
    sizes = [len(change) for _, change in units]
    for shares in _null(torch.cat(effects).T):
        move = {name: torch.zeros_like(getattr(law, name)) for name, _ in units}
        for (name, change), share in zip(units, shares.split(sizes), strict=True):
            value = torch.tensordot(share, change, 1)
            if name == "basis":
                move[name][:, k, :d] = value
            else:
                move[name][k][tuple(map(slice, value.shape))] = value
        yield move


def _null(matrix: Tensor) -> Tensor:
    """Orthonormal rows v of matrix @ v = 0, with shape (rows, columns of the matrix)."""
    _, lengths, axes = torch.linalg.svd(matrix)
    return axes[int((lengths > 1e-9 * lengths[:1]).sum()) :]
