"""EM against what it promises (it never falls, adds up over rows, ends where gradients vanish) and scikit-learn."""

import itertools
import warnings
from dataclasses import fields

import hypothesis
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import molrmog.laws.base
from molrmog import MoLRMoG
from molrmog.learning.em import _root, em_steps, gather, nearest_rotation
from molrmog.learning.rows import Rows
from oracles.autograd import tangent
from oracles.dense import DenseLaw
from oracles.laws import ragged_law, ragged_laws, unequal_law, unequal_laws


def states(law, x, passes, **options):
    return list(itertools.islice(em_steps(law, Rows(x), **options), passes + 1))


def positive(law):
    """The law with every tau positive, as EM needs it."""
    law.requires_grad_(False).tau.clamp_(min=0.1)
    return law


@pytest.fixture(params=["isotropic", "diagonal", "shared"])
def law(request):
    """A law of every kind of noise, where EM may start."""
    if request.param == "isotropic":
        return positive(ragged_law(0))
    return unequal_law(0, request.param, least=0.1).requires_grad_(False)


def rows_near(law, n):
    """Rows that the law explains, but not best."""
    return 1.1 * law.sample(n).x + 0.2 * torch.randn(n, law.dim, dtype=torch.float64)


def close(a, b, **tolerance):
    torch.testing.assert_close(a.double(), b.double(), **(tolerance or {"rtol": 1e-8, "atol": 1e-8}))


def same_law(a, b, **tolerance):
    assert a.config == b.config
    for k in range(a.subspaces):
        one, two = a.subspace(k), b.subspace(k)
        for name in ("weight", "tau", "offset", "mode_weights"):
            close(*(torch.as_tensor(getattr(part, name)) for part in (one, two)), **tolerance)
    dense_a, dense_b = DenseLaw.of(a), DenseLaw.of(b)
    close(dense_a.mean, dense_b.mean, **tolerance)
    close(dense_a.cov, dense_b.cov, **tolerance)


# --- it never falls


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    law=ragged_laws(noiseless=False) | unequal_laws().filter(lambda law: law.axes is None),
    seed=st.integers(0, 1000),
    rows=st.sampled_from([12, 60, 200]),
    weighted=st.booleans(),
    prior_rows=st.sampled_from([0.0, None, 3.5]),
    zero_mean=st.booleans(),
)
def test_the_penalised_log_likelihood_never_falls(law, seed, rows, weighted, prior_rows, zero_mean):
    law.requires_grad_(False)
    if zero_mean:
        law.offset.zero_()
        law.mean.zero_()
    draw = torch.Generator().manual_seed(seed)
    true = ragged_law(seed, law.dim, (1, law.dim), ((1, 0), (law.dim,)), (0.2, 0.05))
    x = true.sample(rows, draw).x
    weights = torch.rand(rows, generator=draw, dtype=torch.float64) * 3 if weighted else None
    curve = states(law, x, 12, weights=weights, prior_rows=prior_rows, zero_mean=zero_mean, noise_floor=1e-3)
    for before, after in itertools.pairwise(curve):
        if after.law.modes == before.law.modes:  # a mode without rows may be dropped, which is no step of EM
            assert after.penalised >= before.penalised - 1e-9 * abs(before.penalised)
    assert all(np.isfinite(state.penalised) for state in curve)
    if zero_mean:
        assert not curve[-1].law.offset.any()
        assert not curve[-1].law.mean.any()


@pytest.mark.parametrize("prior_rows", [0.0, 2.0])
def test_the_figures_are_those_of_the_law(law, prior_rows):
    x = rows_near(law, 200)
    weights = torch.rand(200, dtype=torch.float64) + 0.5
    spread2 = torch.from_numpy(np.cov(x.T, aweights=weights, bias=True).diagonal().copy())
    for state in states(law, x, 3, weights=weights, prior_rows=prior_rows):
        total = float((weights * DenseLaw.of(state.law).log_prob(x)).sum())
        assert state.log_likelihood == pytest.approx(total / float(weights.sum()))
        for k in range(3):
            part = state.law.subspace(k)
            if len(part.means) == 1:
                continue  # nothing to lean on
            R = torch.linalg.qr(part.basis / torch.as_tensor(part.tau).expand(law.dim)[:, None]).R
            S = torch.stack([R @ U @ U.T @ R.T + torch.eye(len(U)) for U in part.factors])
            scale = torch.linalg.inv(torch.linalg.inv(S).mean(0))
            fit = sum(float(torch.trace(scale @ torch.linalg.inv(each)) + torch.logdet(each)) for each in S)
            total += 0.5 * prior_rows * (len(S) * float(torch.logdet(scale)) - fit)
        if law.noise != "isotropic":
            over = spread2 / state.law.tau.square()
            total -= 0.5 * float((over - over.log()).sum())
        assert state.penalised == pytest.approx(total / float(weights.sum()))


def test_it_keeps_ragged_shapes_and_orthonormal_bases(law):
    before = {name: p.clone() for name, p in law.named_parameters()}
    last = states(law, rows_near(law, 300), 10)[-1].law
    assert last.config == law.config
    for k in range(3):
        A = last.subspace(k).basis
        close(A.T @ A, torch.eye(A.shape[1]))
    assert all(torch.equal(p, before[name]) for name, p in law.named_parameters())  # the start is not changed


# --- it is additive over rows


@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_of_two_parts_add_up(law, weighted):
    x = rows_near(law, 90)
    weights = torch.rand(90, dtype=torch.float64) if weighted else None
    whole = gather(law, Rows(x), weights)
    parts = [gather(law, Rows(x[at]), None if weights is None else weights[at]) for at in (slice(31), slice(31, 90))]
    parts[0] += parts[1]
    for field in fields(whole):
        close(getattr(parts[0], field.name), getattr(whole, field.name))


def test_chunks_change_nothing(law, monkeypatch):
    x = rows_near(law, 150)
    weights = torch.rand(150, dtype=torch.float64)
    whole = states(law, x, 4, weights=weights)[-1]
    monkeypatch.setattr(molrmog.laws.base, "_CHUNK_NUMBERS", {"cpu": 1})
    monkeypatch.setattr("molrmog.learning.rows._CHUNK_NUMBERS", {"cpu": 1})
    chunked = states(law, x, 4, weights=weights)[-1]
    same_law(chunked.law, whole.law)
    assert chunked.penalised == pytest.approx(whole.penalised, rel=1e-10)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_whole_weights_are_repeated_rows(law, zero_mean):
    if zero_mean:
        law.offset.zero_()
        law.mean.zero_()
    x = rows_near(law, 100)
    weights = torch.randint(0, 4, (100,)).double()
    weighted = states(law, x, 5, weights=weights, zero_mean=zero_mean)
    repeated = states(law, x.repeat_interleave(weights.long(), 0), 5, zero_mean=zero_mean)
    for a, b in zip(weighted, repeated, strict=True):
        assert a.penalised == pytest.approx(b.penalised, rel=1e-9)
        assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=1e-9)
    same_law(weighted[-1].law, repeated[-1].law)


def test_the_scale_of_the_weights_does_not_matter_without_a_prior():
    law = positive(ragged_law(0))
    x = rows_near(law, 200)
    weights = torch.rand(200, dtype=torch.float64) + 0.5
    one, normalised = (
        states(law, x, 4, weights=scale * weights, prior_rows=0.0)[-1] for scale in (1.0, 1 / float(weights.sum()))
    )
    same_law(one.law, normalised.law)


# --- it ends where it should


@pytest.mark.slow
def test_gradients_vanish_at_the_fixed_point():
    true = ragged_law(3, dim=7, latent_dims=(2, 3), ranks=((1, 2), (3, 2)), taus=(0.2, 0.3)).requires_grad_(False)
    x = true.sample(1500, torch.Generator().manual_seed(0)).x
    law = states(true, x, 600, prior_rows=0.0)[-1].law.requires_grad_()
    law.log_prob(x).mean().backward()
    for name, p in law.named_parameters():
        gradient = tangent(p.detach(), p.grad) if name == "basis" else p.grad
        assert float(gradient.abs().max()) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize(("d", "r"), [(3, 3), (4, 2), (1, 1)])
def test_one_mode_is_probabilistic_principal_components(d, r):
    draw = torch.Generator().manual_seed(0)
    spectrum = torch.tensor([3.0, 2.5, 1.5, 0.4, 0.3, 0.3, 0.2, 0.1], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=draw, dtype=torch.float64)).Q
    x = 1 + (torch.randn(400, 8, generator=draw, dtype=torch.float64) * spectrum) @ turn
    start = ragged_law(1, dim=8, latent_dims=(d,), ranks=((r,),), taus=(0.5,))
    law = states(positive(start), x, 400)[-1].law
    peer = PCA(r, svd_solver="full").fit(x.numpy())
    unbiased = 399 / 400  # scikit-learn divides by N - 1
    assert law.subspace(0).tau ** 2 == pytest.approx(peer.noise_variance_ * unbiased, rel=1e-6)
    close(law.offset[0], x.mean(0))
    covariance = peer.get_covariance() * unbiased
    close(DenseLaw.of(law).moments()[1], torch.from_numpy(covariance), rtol=1e-5, atol=1e-5)
    reached = scipy.stats.multivariate_normal(peer.mean_, covariance).logpdf(x.numpy()).mean()
    assert float(law.log_prob(x).mean()) == pytest.approx(reached, abs=1e-7)
    assert float(law.log_prob(x).mean()) >= peer.score(x.numpy())


@pytest.mark.parametrize("weighted", [False, True])
def test_one_full_subspace_is_a_gaussian_mixture(weighted):
    """d = D and no prior: step for step the EM of scikit-learn."""
    x = ragged_law(5, dim=3, latent_dims=(3,), ranks=((3, 3, 3),), taus=(0.1,)).sample(300).x
    start = ragged_law(6, dim=3, latent_dims=(3,), ranks=((3, 3),), taus=(1e-9,)).requires_grad_(False)
    weights = torch.randint(1, 3, (300,)).double() if weighted else None
    dense = DenseLaw.of(start)
    ours = states(start, x, 7, weights=weights, prior_rows=0.0)
    table = (x if weights is None else x.repeat_interleave(weights.long(), 0)).numpy()
    for passes in (1, 3, 7):
        peer = GaussianMixture(
            2,
            tol=0,
            reg_covar=0,
            max_iter=passes,
            weights_init=dense.log_weight.exp().numpy(),
            means_init=dense.mean.numpy(),
            precisions_init=torch.linalg.inv(dense.cov).numpy(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer.fit(table)
        fitted = DenseLaw.of(ours[passes].law)
        close(fitted.log_weight.exp(), torch.from_numpy(peer.weights_), rtol=1e-5, atol=1e-6)
        close(fitted.mean, torch.from_numpy(peer.means_), rtol=1e-5, atol=1e-6)
        close(fitted.cov, torch.from_numpy(peer.covariances_), rtol=1e-5, atol=1e-6)
        assert ours[passes].log_likelihood == pytest.approx(peer.score(table), abs=1e-6)


def test_the_prior_pulls_modes_together():
    """With many prior rows all modes of a subspace end with one covariance; with none each keeps its own."""
    start = ragged_law(5, dim=3, latent_dims=(3,), ranks=((3, 3),), taus=(0.1,)).requires_grad_(False)
    x = start.sample(200).x

    def apart(prior_rows):
        one, two = DenseLaw.of(states(start, x, 30, prior_rows=prior_rows)[-1].law).cov
        return float((one - two).norm() / (one + two).norm())

    assert apart(1e5) < 0.02 < 0.2 < apart(0.0)


def test_the_noise_floor_holds(law):
    curve = states(law, rows_near(law, 200), 5, noise_floor=0.7)
    assert all(state.law.noise_floor >= 0.7 - 1e-12 for state in curve)


def test_it_goes_on_where_it_stopped(law):
    x = rows_near(law, 150)
    whole = states(law, x, 9)
    second = states(states(law, x, 4)[-1].law, x, 5)
    for a, b in zip(whole[4:], second, strict=True):
        assert a.penalised == pytest.approx(b.penalised, rel=1e-10)
    same_law(whole[-1].law, second[-1].law)


# --- modes that die


def far_away(law, k, mode):
    law.mean[k, mode, : law.latent_dims[k]] = 1e3
    return law


def test_a_dead_mode_is_dropped_with_a_warning(law):
    x = rows_near(law, 200)
    far_away(law, 1, 2)
    with pytest.warns(UserWarning, match="EM dropped 1 mode"):
        curve = states(law, x, 3)
    assert curve[-1].law.modes == (2, 2, 1)
    assert curve[-1].law.ranks == ((2, 1), (3, 0), (1,))
    assert curve[-1].penalised > curve[0].penalised


def test_a_dead_subspace_is_dropped_with_a_warning(law):
    x = rows_near(law, 200)
    far_away(far_away(law, 0, 0), 0, 1)
    with pytest.warns(UserWarning, match="EM dropped 2 mode"):
        curve = states(law, x, 3)
    assert curve[-1].law.modes == (3, 1)
    assert curve[-1].law.latent_dims == (3, 1)


def test_float32_rows_reach_what_float64_rows_reach():
    true = MoLRMoG.random(20, (3, 3), (2, 2), noise=0.05, seed=0, offset=1.0, dtype=torch.float64).requires_grad_(False)
    x = true.sample(1000, torch.Generator().manual_seed(0)).x
    ours, exact = (states(true.to(dtype), x.to(dtype), 10)[-1] for dtype in (torch.float32, torch.float64))
    assert ours.log_likelihood == pytest.approx(exact.log_likelihood, abs=2e-3)


@hypothesis.given(st.integers(0, 10**6), st.integers(2, 40), st.floats(1e-12, 1e-3))
def test_moments_that_rounding_made_indefinite_have_a_factor(seed, d, rounding):
    draw = torch.Generator().manual_seed(seed)
    few = torch.randn(2, d, max(1, d // 3), generator=draw, dtype=torch.float64)
    error = torch.randn(2, d, d, generator=draw, dtype=torch.float64)
    exact = few @ few.mT
    size = torch.linalg.matrix_norm(exact, 2)[:, None, None]
    wrong = rounding * size * (error + error.mT) / d
    L = _root(exact + wrong)
    apart = torch.linalg.matrix_norm(L @ L.mT - exact, 2) / size[:, 0, 0]
    assert bool(L.isfinite().all())
    assert float(apart.max()) < 10 * rounding + 2e-6


def test_moments_that_have_a_factor_keep_it():
    A = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    M = A @ A.mT + 1e-9 * torch.eye(5)
    assert torch.equal(_root(M), torch.linalg.cholesky(M))


def test_a_constant_column_keeps_the_variance_that_the_prior_on_its_noise_is_worth():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=draw, dtype=torch.float64)
    x[:, 4] = 0.0
    start = (
        MoLRMoG.random(5, (1,), (1,), noise=0.5, seed=0, dtype=torch.float64)
        .requires_grad_(False)
        .with_noise("diagonal")
    )
    for rows in (1.0, 0.1, 1e-3):
        steps = em_steps(start, Rows(x), noise_rows=rows, spread=torch.full((5,), 2.0, dtype=torch.float64))
        states = list(itertools.islice(steps, 200))
        variance = float(states[-1].law.tau[0, 4]) ** 2
        assert variance == pytest.approx(rows * 4.0 / (200 + rows), rel=1e-2)
        objectives = [state.penalised for state in states]
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(objectives))


def test_a_basis_is_found_where_the_first_algorithm_fails(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    M = torch.randn(3, 6, 6, generator=draw, dtype=torch.float64)
    M[1, :, 2:] = 0.0  # singular values repeat
    want = nearest_rotation(M)

    def fails(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    found = nearest_rotation(M)
    assert torch.allclose(found @ found.mT, torch.eye(6, dtype=torch.float64).expand(3, -1, -1), atol=1e-12)
    assert torch.allclose(found[[0, 2]], want[[0, 2]], atol=1e-12)
    assert float((found[1] * M[1]).sum()) == pytest.approx(float(torch.linalg.svdvals(M[1]).sum()), rel=1e-12)
