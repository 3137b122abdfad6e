"""A law of your own: four formulas and what describes it, and every method of the face is there."""

import math

import pytest
import torch

import molrmog
from molrmog.laws import Law, Subspace
from oracles.autograd import divergence_of, score_of


class Points(Law):
    """x_0 is one of n points, each as likely: K = 1, and a mode per point. Noised, a kernel density estimate."""

    subspaces, noise_floor = 1, 0.0

    def __init__(self, points):
        super().__init__()
        self.points = torch.nn.Parameter(points, requires_grad=False)
        self.dim, self.latent_dims, self.modes = points.shape[1], (1,), (len(points),)

    config = property(lambda self: {"points": self.points.shape})
    subspace_weights = property(lambda self: self.points.new_ones(1))
    mode_weights = property(lambda self: self.points.new_full((1, len(self.points)), 1 / len(self.points)))

    def _log_joint(self, x, s, gamma):
        distance2 = (x[:, None] - s[:, None, None] * self.points).square().sum(2)
        gamma2 = gamma[:, None].square()
        return -0.5 * (distance2 / gamma2 + self.dim * (2 * math.pi * gamma2).log()) - math.log(len(self.points))

    def _log_prob(self, *rows):
        return self._log_joint(*rows).logsumexp(1)

    def _responsibilities(self, *rows):
        return self._log_joint(*rows).softmax(1)

    def _denoise(self, *rows):
        return self._responsibilities(*rows).to(self.points) @ self.points

    def _draw(self, k, mode, s, gamma, generator):
        noise = torch.randn(len(k), self.dim, generator=generator, dtype=self.points.dtype)
        return s * self.points[mode] + gamma * noise

    def subspace(self, k):
        raise NotImplementedError

    def scaled(self, c, shift=None):
        return Points(c * self.points + (0 if shift is None else shift))

    def moment_matched(self):
        off = self.points - self.points.mean(0)
        values, axes = torch.linalg.eigh(off.T @ off / len(off))
        part = Subspace(
            weight=1.0,
            basis=axes,
            offset=self.points.mean(0),
            tau=0.0,
            mode_weights=torch.ones(1),
            means=torch.zeros(1, self.dim, dtype=axes.dtype),
            factors=(values.clamp(min=0).sqrt().diag(),),
        )
        return molrmog.MoLRMoG.from_subspaces([part]).requires_grad_(False)


POINTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def rows():
    law = Points(POINTS)
    return law, law.sample(5, torch.Generator().manual_seed(1), s=0.8, gamma=0.5).x


def test_it_is_the_mixture_of_its_points(rows):
    law, x = rows
    parts = [
        Subspace(
            1 / 7, torch.eye(4, 1, dtype=x.dtype), point, 0.0, torch.ones(1), x.new_zeros(1, 1), (x.new_zeros(1, 0),)
        )
        for point in POINTS
    ]
    same = molrmog.MoLRMoG.from_subspaces(parts).requires_grad_(False)
    for name in ("log_prob", "score", "denoise", "divergence", "posterior_variance"):
        torch.testing.assert_close(getattr(law, name)(x, 0.8, 0.5), getattr(same, name)(x, 0.8, 0.5), msg=name)
    torch.testing.assert_close(
        law.posterior(x, 0.8, 0.5).responsibilities, same.posterior(x, 0.8, 0.5).responsibilities
    )


def test_what_follows_by_autograd_is_right(rows):
    law, x = rows
    torch.testing.assert_close(law.score(x, 0.8, 0.5), score_of(lambda x: law.log_prob(x, 0.8, 0.5), x))
    by_autograd = divergence_of(lambda x: law.score(x, 0.8, 0.5), x)
    torch.testing.assert_close(law.divergence(x, 0.8, 0.5), by_autograd)


def test_samplers_and_jumps_take_it(rows):
    law, _ = rows
    schedule = molrmog.VPSchedule()
    exact = molrmog.sample(law, schedule, (5, 4), "exact", generator=torch.Generator().manual_seed(0))
    assert all(bool((row == POINTS).all(1).any()) for row in exact)
    walked = molrmog.sample(law, schedule, (50, 4), steps=64, generator=torch.Generator().manual_seed(0))
    nearest = torch.cdist(walked, POINTS).amin(1)
    assert float(nearest.median()) < 0.02
    jumped = molrmog.sample(law, schedule, (5, 4), steps=16, jump=0.5, generator=torch.Generator().manual_seed(0))
    assert jumped.shape == (5, 4)


def test_arrays_errors_and_missing_offers(rows):
    law, x = rows
    assert law.log_prob(x.numpy(), 0.8, 0.5).shape == (5,)
    with pytest.raises(ValueError, match="gamma must be > 0"):
        law.log_prob(x)
    with pytest.raises(NotImplementedError, match="a Points offers no posterior samples"):
        law.posterior(x, 0.8, 0.5).sample()
    with pytest.raises(ValueError, match="leave out top"):
        law.denoise_by_top_modes(x[None], torch.ones(1), torch.ones(1), 1)
