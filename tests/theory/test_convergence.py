"""Rates and descents against quadratic functions, torch's own optimiser and brute force, and on laws in few steps."""

import copy
import itertools
import math

import pytest
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.theory.convergence import (
    Trajectory,
    descend_together,
    distance_from,
    follow,
    measured_contraction,
    perturbed,
    predicted_rate,
    separation,
    wilson,
)
from molrmog.theory.descent import (
    SymmetricPair,
    adam,
    expectation_maximisation,
    gauss_newton_descent,
    gradient,
    gradient_descent,
    minimiser,
    off_gauge,
    preconditioned_descent,
)
from molrmog.theory.distances import law_distance
from molrmog.theory.score_loss import ScoreLoss, stratified_rows

S, GAMMA = 0.8, 0.6


class Quadratic:
    """1/2 (theta - c)^T H (theta - c), its eigenvalues given; the last ones may be zero, a gauge."""

    def __init__(self, eigenvalues, seed=0):
        draw = torch.Generator().manual_seed(seed)
        P = len(eigenvalues)
        self.V = torch.linalg.qr(torch.randn(P, P, generator=draw, dtype=torch.float64)).Q
        self.H = (self.V * torch.tensor(eigenvalues, dtype=torch.float64)) @ self.V.T
        self.center = torch.randn(P, generator=draw, dtype=torch.float64)
        self.zero = sum(value == 0 for value in eigenvalues)

    def __call__(self, theta):
        return 0.5 * (theta - self.center) @ self.H @ (theta - self.center)

    def hessian(self, theta):
        return self.H

    gauss_newton = hessian

    def gauge(self, theta):
        return self.V[:, len(self.V) - self.zero :]


def pair(weights=(0.5, 0.5)):
    """Two modes at +mu and -mu with one factor."""
    law = MoLRMoG.random(dim=5, latent_dims=(3,), modes=(2,), rank=2, noise=0.1, seed=0, dtype=torch.float64)
    with torch.no_grad():
        law.mean[0] = torch.tensor([[2.0, 0.5, 1.0], [-2.0, -0.5, -1.0]])
        law.factor[0, :] = torch.eye(3)[:, :2]
        law.mode_logits[0] = torch.tensor(weights).log()
    return law.requires_grad_(False)


def population(law, rows=300, seed=0):
    x_t, weight = stratified_rows(law, rows, S, GAMMA, torch.Generator().manual_seed(seed))
    return ScoreLoss(law, x_t, S, GAMMA, weight=weight)


def empirical(law, rows=2000, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x_0 = law.sample(rows, draw).x
    noise = torch.randn(x_0.shape, generator=draw, dtype=x_0.dtype)
    return ScoreLoss(law, S * x_0 + GAMMA * noise, S, GAMMA, target=-noise / GAMMA)


@pytest.mark.parametrize("kappa", [3.0, 50.0])
def test_descent_on_a_quadratic_contracts_at_the_predicted_rate(kappa):
    loss = Quadratic([1.0, 1.3, 0.7 * kappa, kappa, 0.0])
    rate = predicted_rate(loss.hessian(None), loss.gauge(None))
    assert (rate.alpha, rate.largest, rate.kappa) == pytest.approx((1.0, kappa, kappa))
    # The slowest contraction of I - eta H across the gauge, and no step does better.
    Q = off_gauge(loss.gauge(None))
    eye = torch.eye(4, dtype=torch.float64)

    def worst(step):
        return float(torch.linalg.matrix_norm(eye - step * Q.T @ loss.H @ Q, 2))

    assert rate.contraction == pytest.approx(worst(rate.step))
    assert min(worst(rate.step * factor) for factor in (0.99, 1.01)) > rate.contraction
    # A distance in another metric zigzags between both ends; the fit sees through that.
    metric = torch.diag(torch.tensor([1.0, 9.0, 4.0, 1.0, 2.0], dtype=torch.float64)) @ Q @ Q.T
    start = loss.center + 1.0
    trajectory = follow(
        gradient_descent(loss, start, rate.step),
        lambda theta: float((metric @ (theta - loss.center)).norm()),
        until=1e-10,
        max_steps=2000,
    )
    found = measured_contraction(trajectory)
    assert math.log(found.rate) == pytest.approx(math.log(rate.contraction), rel=2e-3)


def test_the_fit_finds_the_tail_and_its_rate_behind_a_transient_and_a_zigzag():
    steps = tuple(step for step in range(401) if step % 5 in (0, 1))
    distances = tuple((1 + 0.5 * (-1) ** k) * 0.95**k + 30 * 0.8**k for k in steps)
    found = measured_contraction(Trajectory(steps, distances, (0.0,) * len(steps)))
    assert found.rate == pytest.approx(0.95, abs=1e-9)
    assert (found.early, found.late) == pytest.approx((0.95, 0.95), abs=1e-9)
    assert found.last == 400
    assert distances[steps.index(found.first)] <= distances[-1] ** (2 / 3) * distances[0] ** (1 / 3)


def test_what_did_not_contract_is_refused():
    with pytest.raises(ValueError, match="did not come nearer"):
        measured_contraction(Trajectory((0, 1), (1.0, 2.0), (0.0, 0.0)))
    with pytest.raises(ValueError, match="distances on the tail"):
        measured_contraction(Trajectory((0, 1), (1.0, 0.5), (0.0, 0.0)))
    with pytest.raises(ValueError, match="Hessian at a minimum"):
        predicted_rate(torch.zeros(2, 2), torch.zeros(2, 0))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_descent_on_a_law_contracts_at_the_predicted_rate(tied):
    law = pair()
    loss = SymmetricPair(population(law), law) if tied else population(law)
    limit = loss.theta_of(law)
    rate = predicted_rate(loss.hessian(limit), loss.gauge(limit))
    start = loss.theta_of(perturbed(law, 0.1, torch.Generator().manual_seed(1)))
    descent = gradient_descent(loss, start, rate.step)
    trajectory = follow(descent, distance_from(loss, law), until=1e-9, max_steps=3000)
    assert trajectory.distances[-1] <= 1e-9
    assert math.log(measured_contraction(trajectory).rate) == pytest.approx(math.log(rate.contraction), rel=0.02)


def test_a_tied_pair_is_the_free_one_on_symmetric_laws():
    law = pair()
    free = empirical(law, rows=200)
    tied = SymmetricPair(free, law)
    theta = tied.theta_of(law) + 0.1
    first, second = (tied.law_of(theta).subspace(0).means[i] for i in (0, 1))
    torch.testing.assert_close(first, -second)
    torch.testing.assert_close(tied.law_of(theta).factor[0, 0], tied.law_of(theta).factor[0, 1])
    torch.testing.assert_close(tied.theta_of(tied.law_of(theta)), theta)
    torch.testing.assert_close(tied(theta), free(free.theta_of(tied.law_of(theta))))
    torch.testing.assert_close(tied.hessian(theta), torch.autograd.functional.hessian(tied, theta))
    turn = tied.gauge(theta)
    assert turn.shape == (9, 1)
    assert law_distance(tied.law_of(theta + 1e-4 * turn[:, 0]), tied.law_of(theta)).total < 1e-7
    with pytest.raises(ValueError, match="two modes of one rank"):
        SymmetricPair(free, MoLRMoG(4, (2,), (3,)))


@pytest.mark.slow
def test_the_empirical_minimum_is_one_and_descent_goes_there():
    law = pair((0.6, 0.4))
    loss = empirical(law)
    limit = minimiser(loss, loss.theta_of(law))
    assert float(gradient(loss, limit).norm()) < 1e-11
    rate = predicted_rate(loss.hessian(limit), loss.gauge(limit))
    assert rate.alpha > 0
    found = loss.law_of(limit)
    assert 1e-3 < law_distance(found, law).total < 0.5
    start = loss.theta_of(perturbed(found, 0.05, torch.Generator().manual_seed(1)))
    end = next(itertools.islice(gradient_descent(loss, start, rate.step), 150, None))
    assert law_distance(loss.law_of(end), found).total < 1e-5
    with pytest.raises(RuntimeError, match="finds no minimum"):
        minimiser(Quadratic([1.0, -1.0]), torch.zeros(2, dtype=torch.float64))


def test_adam_is_that_of_torch():
    loss = Quadratic([1.0, 3.0, 10.0])
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ours = adam(loss, theta.detach().clone(), 0.05)
    optimiser = torch.optim.Adam([theta], lr=0.05)
    for _ in range(20):
        torch.testing.assert_close(next(ours), theta.detach())
        optimiser.zero_grad()
        loss(theta).backward()
        optimiser.step()


@pytest.mark.slow
def test_preconditioned_descents_beat_gradient_descent_to_the_truth():
    law = pair((0.6, 0.4))
    loss = population(law)
    limit = loss.theta_of(law)
    start = loss.theta_of(perturbed(law, 0.2, torch.Generator().manual_seed(1)))
    rate = predicted_rate(loss.hessian(limit), loss.gauge(limit))
    steps = {
        name: follow(descent, distance_from(loss, law), until=1e-8, max_steps=400).reached(1e-8)
        for name, descent in {
            "plain": gradient_descent(loss, start, rate.step),
            "fixed": preconditioned_descent(loss, start, loss.gauss_newton(limit)),
            "moving": gauss_newton_descent(loss, start),
        }.items()
    }
    assert steps["moving"][0] < 15
    assert steps["fixed"][0] < 15
    assert steps["plain"][0] > 40
    one = next(
        itertools.islice(preconditioned_descent(Quadratic([1, 4, 0]), limit[:3], Quadratic([1, 4, 0]).H), 1, None)
    )
    assert float(Quadratic([1, 4, 0])(one)) < 1e-15


def test_a_gauss_newton_step_never_raises_the_loss():
    law = pair()
    loss = empirical(law, rows=100)
    start = loss.theta_of(perturbed(law, 1.0, torch.Generator().manual_seed(3)))
    values = [float(loss(theta)) for theta in itertools.islice(gauss_newton_descent(loss, start), 15)]
    assert all(after <= before * (1 + 1e-11) for before, after in itertools.pairwise(values))
    assert values[-1] < values[0]


def test_em_climbs_the_likelihood_and_its_limit_is_a_maximum():
    law = pair((0.6, 0.4))
    x_t = law.sample(500, torch.Generator().manual_seed(0), s=S, gamma=GAMMA).x
    moved = perturbed(law, 0.3, torch.Generator().manual_seed(1))
    laws = list(itertools.islice(expectation_maximisation(moved, x_t, S, GAMMA), 60))
    heights = [float(one.log_prob(x_t, S, GAMMA).mean()) for one in laws]
    assert laws[0] is moved
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(heights))
    limit = copy.deepcopy(laws[-1]).requires_grad_()
    limit.log_prob(x_t, S, GAMMA).mean().backward()
    assert float(limit.mean.grad.abs().max()) < 1e-8
    assert float(limit.factor.grad.abs().max()) < 1e-8
    # A row of weight two is two rows.
    twice = torch.cat([x_t, x_t[:100]])
    weight = torch.ones(500, dtype=torch.float64)
    weight[:100] = 2
    one, other = (
        next(itertools.islice(expectation_maximisation(moved, rows, S, GAMMA, w), 3, None))
        for rows, w in ((twice, None), (x_t, weight))
    )
    assert law_distance(one, other).total < 1e-12


def test_em_leaves_a_mode_that_lost_all_rows_where_it_is():
    law = pair()
    x_t = law.sample(200, torch.Generator().manual_seed(0), s=S, gamma=GAMMA).x
    far = copy.deepcopy(law)
    far.mean[0, 1] += 1000.0
    assert float(far.posterior(x_t, S, GAMMA).responsibilities[:, 1].sum()) == 0
    _, found = itertools.islice(expectation_maximisation(far, x_t, S, GAMMA), 2)
    assert torch.equal(found.mean[0, 1], far.mean[0, 1])
    assert torch.equal(found.factor[0, 1], far.factor[0, 1])
    assert not torch.equal(found.mean[0, 0], far.mean[0, 0])
    assert math.isfinite(law_distance(found, law).total)


def test_em_finds_the_exact_population_truth_of_far_modes_in_one_step():
    law = pair()
    with torch.no_grad():
        law.mean *= 10
    x_t, weight = stratified_rows(law, 300, S, GAMMA, torch.Generator().manual_seed(0))
    moved = perturbed(law, 0.2, torch.Generator().manual_seed(1))
    _, found = itertools.islice(expectation_maximisation(moved, x_t, S, GAMMA, weight), 2)
    assert law_distance(found, law).total < 1e-10


def test_many_starts_at_once_are_each_alone_and_a_lost_one_spoils_no_other():
    law = pair()
    loss = population(law)
    starts = torch.stack([loss.theta_of(perturbed(law, size, torch.Generator().manual_seed(2))) for size in (0.1, 0.3)])
    ends = descend_together(loss, starts, 0.2, 10)
    for start, end in zip(starts, ends, strict=True):
        torch.testing.assert_close(end, next(itertools.islice(gradient_descent(loss, start, 0.2), 10, None)))
    bowl = Quadratic([1.0, 1.0])
    far = torch.stack([bowl.center, bowl.center + 1.0])
    lost = descend_together(bowl, far, 5.0, 50)
    torch.testing.assert_close(lost[0], bowl.center)
    assert bool(lost[1].isnan().all())
    assert distance_from(loss, law)(torch.full_like(starts[0], math.nan)) == math.inf


def test_perturbations_have_the_size_they_are_given():
    law = MoLRMoG.random(
        dim=8, latent_dims=(2, 4), modes=(3, 2), rank=2, noise=0.1, offset=1.0, seed=1, dtype=torch.float64
    ).requires_grad_(False)
    means = torch.cat([law.offset[k] + law.subspace(k).means @ law.subspace(k).basis.T for k in (0, 1)]).detach()
    nearest = min(float((a - b).norm()) for a, b in itertools.combinations(means, 2))
    assert separation(law) == pytest.approx(nearest)
    moved = perturbed(law, 0.5, torch.Generator().manual_seed(0))
    for k in (0, 1):
        for mode in range(law.modes[k]):
            assert float((moved.mean[k, mode] - law.mean[k, mode]).norm()) == pytest.approx(nearest / 4)
            off = (moved.factor[k, mode] - law.factor[k, mode]).norm() / law.factor[k, mode].norm()
            assert float(off) == pytest.approx(0.5)
    single = MoLRMoG(3, (2,), (1,))
    assert separation(single) == math.inf
    with pytest.raises(ValueError, match="single mode"):
        perturbed(single, 0.5, torch.Generator())


def test_intervals_of_rates_are_those_of_wilson():
    from scipy.stats import binomtest

    for successes, trials in ((0, 12), (5, 12), (12, 12)):
        exact = binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-6)
