"""The face of every law against the dense oracle, at every noise level: one suite for all of them."""

import math

import hypothesis
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import strategies as st

import molrmog
import molrmog.laws.base
from oracles.autograd import divergence_of, score_of
from oracles.dense import DenseLaw
from oracles.laws import head_tail_law, noised_rows, ragged_law, ragged_laws, unequal_law, unequal_laws

F64 = {"rtol": 1e-7, "atol": 1e-8}


@st.composite
def head_tail_laws(draw):
    return head_tail_law(draw(st.integers(0, 100)), tail=draw(st.integers(0, 3)), tau=draw(st.sampled_from([0.0, 0.3])))


LAWS = st.one_of(ragged_laws(), unequal_laws(), head_tail_laws())


@pytest.fixture(params=["pure", "unequal", "shared, turned", "head and tail", "head and nothing left"])
def law(request, device):
    made = {
        "pure": lambda: ragged_law(1, taus=(0.3, 0.15, 0.2)),
        "unequal": lambda: unequal_law(1),
        "shared, turned": lambda: unequal_law(1, "shared", "matrix"),
        "head and tail": lambda: head_tail_law(1),
        "head and nothing left": lambda: head_tail_law(1, dim=7, tail=2, tau=0.0),
    }
    return made[request.param]().to(device)


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours.detach().cpu().double(), theirs.detach().cpu().double(), **(tolerance or F64))


@hypothesis.given(st.data())
def test_log_prob_is_that_of_dense_normals(device, data):
    law = data.draw(LAWS)
    x, s, gamma = data.draw(noised_rows(law))
    close(law.to(device).log_prob(x.to(device), s, gamma), DenseLaw.of(law).log_prob(x.to(device), s, gamma))


@hypothesis.given(st.data())
def test_score_is_the_gradient_of_log_prob(device, data):
    law = data.draw(LAWS)
    x, s, gamma = data.draw(noised_rows(law))
    dense = DenseLaw.of(law)
    score = law.to(device).score(x.to(device), s, gamma)
    close(score, score_of(lambda x: dense.log_prob(x, s, gamma), x))
    close(score, score_of(lambda x: law.log_prob(x, s, gamma), x.to(device)))


@hypothesis.given(st.data())
def test_posterior_is_dense_conditioning(device, data):
    law = data.draw(LAWS)
    x, s, gamma = data.draw(noised_rows(law))
    dense = DenseLaw.of(law)
    posterior = law.to(device).posterior(x.to(device), s, gamma)
    mean = dense.posterior_mean(x, s, gamma)
    close(posterior.mean, mean)
    close(law.denoise(x.to(device), s, gamma), mean)
    close(posterior.responsibilities, dense.log_gates(x, s, gamma).exp())
    close(posterior.log_prob, dense.log_prob(x, s, gamma))
    close(posterior.variance, dense.posterior_cov(x, s, gamma).diagonal(dim1=1, dim2=2))


@hypothesis.given(st.data())
def test_tweedie(data):
    law = data.draw(LAWS)
    x, s, gamma = data.draw(noised_rows(law))
    s1, gamma1 = (torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1) for t in (s, gamma))
    close(gamma1**2 * law.score(x, s, gamma), s1 * law.denoise(x, s, gamma) - x)


@hypothesis.given(st.data())
def test_divergence_is_the_trace_of_the_jacobian(data):
    law = data.draw(LAWS)
    x, s, gamma = data.draw(noised_rows(law))
    dense = DenseLaw.of(law)

    def dense_score(x):
        return torch.autograd.grad(dense.log_prob(x, s, gamma).sum(), x, create_graph=True)[0]

    ours = law.divergence(x, s, gamma)
    close(ours, divergence_of(dense_score, x), rtol=1e-6, atol=1e-6)
    close(ours, divergence_of(lambda x: law.score(x, s, gamma), x), rtol=1e-6, atol=1e-6)


@hypothesis.given(st.data())
def test_moment_matched_gaussian_has_the_moments(data):
    law = data.draw(LAWS)
    mean, cov = DenseLaw.of(law).moments()
    matched = law.moment_matched()
    assert (matched.subspaces, matched.modes) == (1, (1,))
    if isinstance(law, molrmog.HeadTail) and law.dim > law.axes.shape[1]:
        values, vectors = torch.linalg.eigh(cov)  # a variance below what is left is raised to it
        cov = vectors @ values.clamp(min=law.tau.item() ** 2).diag() @ vectors.T
    close(DenseLaw.of(matched).moments()[0], mean)
    close(DenseLaw.of(matched).moments()[1], cov)


@pytest.mark.parametrize(("s", "gamma"), [(1.0, 0.0), (0.6, 0.8)])
def test_samples_have_the_moments_of_the_noised_law(law, generator, s, gamma):
    n = 40_000
    samples = law.sample(n, generator, s=s, gamma=gamma)
    mean, cov = DenseLaw.of(law).moments()
    mean, cov = s * mean, s**2 * cov + gamma**2 * torch.eye(law.dim).to(cov)
    off = samples.x - mean
    products = off[:, :, None] * off[:, None, :]
    assert float((off.mean(0).abs() / off.std(0)).max()) * n**0.5 < 5  # standard errors
    assert float(((products.mean(0) - cov).abs() / products.std(0)).max()) * n**0.5 < 5
    # The origin of a sample is a draw from the weights.
    weights = DenseLaw.of(law).log_weight.exp().cpu()
    start = torch.tensor([0, *law.modes]).cumsum(0)[:-1]
    found = torch.bincount(start[samples.subspace.cpu()] + samples.mode.cpu(), minlength=len(weights))
    error = (found / n - weights).abs() / (weights * (1 - weights) / n).sqrt()
    assert float(error.max()) < 5


@pytest.mark.parametrize(("s", "gamma"), [(1.0, 0.0), (0.6, 0.8)])
def test_samples_follow_the_dense_law(law, generator, s, gamma):
    n = 4000
    dense = DenseLaw.of(law.cpu())
    component = torch.multinomial(dense.log_weight.exp(), n, replacement=True, generator=generator)
    noise = torch.randn(2, n, law.dim, generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(dense.cov)[component]
    theirs = s * (dense.mean[component] + (root @ noise[0][..., None])[..., 0]) + gamma * noise[1]
    ours = law.sample(n, generator, s=s, gamma=gamma).x
    directions = torch.randn(law.dim, 6, generator=generator, dtype=torch.float64)
    for a, b in zip((ours @ directions).T, (theirs @ directions).T, strict=True):
        assert scipy.stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-4
    # The density of a sample is distributed as it should be, too.
    entropies = [dense.log_prob(x, s, gamma).numpy() for x in (ours, theirs)]
    assert scipy.stats.ks_2samp(*entropies).pvalue > 1e-4


def test_samples_from_one_subspace(law, generator):
    one = law.sample(20, generator, subspace=1)
    assert one.subspace.tolist() == [1] * 20
    wanted = torch.tensor([0, 2, 1, 1])
    assert law.sample(4, generator, subspace=wanted).subspace.tolist() == wanted.tolist()
    assert law.sample(0, generator).x.shape == (0, law.dim)
    with pytest.raises(ValueError, match="subspaces 0 to 2"):
        law.sample(2, subspace=3)
    with pytest.raises(ValueError, match="ask for 0 or more"):
        law.sample(-1)


def test_samples_are_reproducible(law):
    a, b, c = (law.sample(5, torch.Generator().manual_seed(seed)).x for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("per_row", [False, True])
def test_posterior_samples_have_the_posterior_moments(law, generator, device, per_row):
    n, B = 40_000, 3
    s = torch.tensor([0.7, 1.0, 0.4], dtype=torch.float64, device=device) if per_row else 0.7
    gamma = torch.tensor([0.5, 0.1, 1.5], dtype=torch.float64, device=device) if per_row else 0.5
    x = law.sample(B, generator).x
    dense = DenseLaw.of(law)
    mean, cov = dense.posterior_mean(x, s, gamma), dense.posterior_cov(x, s, gamma)
    drawn = law.posterior(x, s, gamma).sample(n, generator)
    assert drawn.shape == (n, B, law.dim)
    off = drawn - mean
    assert float((off.mean(0).abs() / off.std(0)).max()) * n**0.5 < 5
    for row in range(B):
        products = off[:, row, :, None] * off[:, row, None, :]
        assert float(((products.mean(0) - cov[row]).abs() / products.std(0)).max()) * n**0.5 < 5


def test_a_broken_row_spoils_no_other_posterior_sample(law):
    clean = law.sample(4, torch.Generator().manual_seed(0), gamma=0.5).x
    x = clean.clone()
    x[2, 0] = math.inf
    drawn, expected = (law.posterior(rows, 1.0, 0.5).sample(3, torch.Generator().manual_seed(1)) for rows in (x, clean))
    assert bool(drawn[:, 2].isnan().all())
    others = [0, 1, 3]
    close(drawn[:, others], expected[:, others])


def test_posterior_samples_without_noise_are_the_rows(law, generator):
    x = law.sample(4, generator).x
    close(law.posterior(x, 1.0, 1e-7).sample(2, generator), x.expand(2, -1, -1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="at least 1"):
        law.posterior(x, 1.0, 0.5).sample(0)


@pytest.mark.parametrize(("s", "gamma"), [(1.0, 0.5), (0.3, 0.2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_density_integrates_to_one_on_a_grid(seed, s, gamma):
    law = ragged_law(seed, dim=2, latent_dims=(1, 2), ranks=((1, 0), (1, 2)), taus=(0.0, 0.3))
    mean, cov = DenseLaw.of(law).moments()
    edges = [torch.linspace(-1, 1, 801, dtype=torch.float64) * 12 * (s * cov[i, i].sqrt() + gamma) for i in range(2)]
    grid = torch.cartesian_prod(*(s * mean[i] + edges[i] for i in range(2)))
    cell = math.prod(float(edge[1] - edge[0]) for edge in edges)
    assert law.log_prob(grid, s, gamma).detach().exp().sum().item() * cell == pytest.approx(1, abs=1e-3)


def test_density_integrates_to_one_by_importance_sampling(law, generator):
    n, s, gamma = 40_000, 0.8, 0.6
    mean, cov = DenseLaw.of(law.cpu()).moments()
    wide = 1.3 * (s**2 * cov + gamma**2 * torch.eye(law.dim))
    proposal = scipy.stats.multivariate_t(s * mean.numpy(), wide.numpy(), df=8, seed=0)
    x = proposal.rvs(n)
    weight = np.exp(law.log_prob(torch.from_numpy(x), s, gamma).detach().numpy() - proposal.logpdf(x))
    error = weight.std() / n**0.5
    assert error < 0.05
    assert abs(weight.mean() - 1) < 5 * error


@pytest.mark.parametrize("name", ["log_prob", "score", "denoise", "divergence"])
def test_noise_levels_per_row_are_those_of_single_rows(law, generator, device, name):
    x = law.sample(5, generator).x
    s, gamma = (torch.rand(2, 5, dtype=torch.float64) + 0.1).to(device)
    together = getattr(law, name)(x, s, gamma)
    alone = torch.cat([getattr(law, name)(x[i : i + 1], float(s[i]), float(gamma[i])) for i in range(5)])
    close(together, alone)
    close(getattr(law, name)(x, s, 0.5), getattr(law, name)(x, s, torch.full_like(s, 0.5)))
    close(getattr(law, name)(x, 0.5, gamma), getattr(law, name)(x, torch.full_like(s, 0.5), gamma))


@pytest.mark.parametrize("own", [(True, True), (True, False), (False, True)], ids=["both", "s", "gamma"])
def test_noise_levels_per_row_in_pieces(law, generator, monkeypatch, own):
    """Without derivatives rows are seen and weighed in pieces, each with the levels of its own rows."""
    law = law.requires_grad_(False)
    x = law.sample(300, generator).x
    s, gamma = (torch.rand(300, dtype=torch.float64).to(x.device) + 0.1 if each else 0.5 for each in own)
    for name in ("_OUTER", "_STREAMED", "_CACHED"):
        monkeypatch.setattr(molrmog.laws.responsibilities, name, 1)
    for name in ("log_prob", "score", "denoise"):
        pieces = getattr(law, name)(x, s, gamma)
        x.requires_grad_()  # all at once
        close(pieces, getattr(law, name)(x, s, gamma).detach())
        x.requires_grad_(False)


@pytest.mark.parametrize("name", ["log_prob", "score", "denoise", "divergence"])
def test_no_rows_give_no_rows(law, name):
    x = torch.zeros(0, law.dim, dtype=torch.float64, device=law.offset.device)
    assert len(getattr(law, name)(x, 1.0, 0.5)) == 0
    assert law.posterior(x, 1.0, 0.5).responsibilities.shape == (0, sum(law.modes))
    assert law.posterior(x, 1.0, 0.5).variance.shape == (0, law.dim)


@pytest.mark.parametrize("per_row", [False, True])
def test_chunks_change_nothing(law, generator, monkeypatch, per_row):
    x = law.sample(50, generator).x.requires_grad_()
    s, gamma = (torch.rand(2, 50, dtype=torch.float64).to(x.device) + 0.2) if per_row else (0.8, 0.5)

    def everything():
        posterior = law.posterior(x, s, gamma)
        out = [law.log_prob(x, s, gamma), law.score(x, s, gamma), law.denoise(x, s, gamma), law.divergence(x, s, gamma)]
        out += [posterior.mean, posterior.responsibilities, posterior.log_prob, posterior.variance]
        loss = sum((each * torch.linspace(0, 1, each.numel()).to(each).view_as(each)).sum() for each in out)
        gradients = torch.autograd.grad(loss, [x, *law.parameters()])
        return [*out, *gradients]

    whole = everything()
    monkeypatch.setattr(molrmog.laws.base, "_CHUNK_NUMBERS", {"cpu": 1, "cuda": 1})
    assert molrmog.laws.base.rows_per_chunk(x.device, law.dim) < 50
    for ours, theirs in zip(everything(), whole, strict=True):
        close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert law.posterior(x, s, gamma).sample(3, generator).shape == (3, 50, law.dim)


@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float64, torch.float32])
def test_results_come_in_the_dtype_of_the_rows(law, generator, given, parameters):
    x = law.sample(6, generator).x.to(given)
    law = law.to(parameters)
    dense = DenseLaw.of(law)
    precise = given in (torch.float32, torch.float64)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if precise else {"rtol": 2 * torch.finfo(given).eps, "atol": 1e-2}
    close(law.log_prob(x, 0.8, 0.5), dense.log_prob(x, 0.8, 0.5), **tolerance)
    close(law.denoise(x, 0.8, 0.5), dense.posterior_mean(x, 0.8, 0.5), **tolerance)
    posterior = law.posterior(x, 0.8, 0.5)
    results = [law.log_prob(x, 0.8, 0.5), law.score(x, 0.8, 0.5), law.denoise(x, 0.8, 0.5), law.divergence(x, 0.8, 0.5)]
    results += [posterior.mean, posterior.responsibilities, posterior.log_prob, posterior.variance, posterior.sample(2)]
    assert {each.dtype for each in results} == {given}


def test_whole_numbers_are_rows_too(law):
    x = torch.ones(2, law.dim, dtype=torch.long, device=law.offset.device)
    close(law.log_prob(x, 1.0, 0.5), DenseLaw.of(law).log_prob(x, 1.0, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_finite_from_gamma_1e_minus_6_to_1e6(generator, device, dtype, tau):
    pure = ragged_law(3, taus=(tau,) * 3, dtype=dtype)
    tailed = head_tail_law(3, dtype=dtype)
    tailed.load_state_dict({**tailed.state_dict(), "tau": torch.tensor(tau), "head.tau": torch.full((3,), tau)})
    for law in (pure.to(device), tailed.to(device)):
        law.requires_grad_(False)
        clean = law.sample(8, generator).x
        for power in range(-6, 7):
            gamma = 10.0**power
            noised = clean + gamma * torch.randn(clean.shape, generator=generator, dtype=dtype).to(device)
            for x in (noised, clean + 1, torch.zeros_like(clean)):
                posterior = law.posterior(x, 1.0, gamma)
                results = [law.log_prob(x, 1.0, gamma), law.score(x, 1.0, gamma), law.divergence(x, 1.0, gamma)]
                results += [posterior.mean, posterior.variance, posterior.responsibilities, posterior.sample(2)]
                assert all(bool(each.isfinite().all()) for each in results), f"gamma = {gamma}"
                assert bool((posterior.variance >= 0).all())


def test_bad_rows_and_noise_levels_get_one_line(law):
    x = torch.zeros(3, law.dim, dtype=torch.float64, device=law.offset.device)
    bad = [
        (x[:, 1:], 1.0, 0.5, f"lives in R\\^{law.dim}"),
        (x[0], 1.0, 0.5, f"pass rows with shape \\(B, {law.dim}\\)"),
        (x, torch.ones(2), 0.5, r"s has shape \(2,\)"),
        (x, 1.0, torch.ones(3, 1), r"gamma has shape \(3, 1\)"),
        (x, 1.0, -0.5, "gamma >= 0"),
        (x, 0.0, 0.0, "gamma must be > 0"),
        (x, torch.tensor([1.0, 0.0, 1.0]), 0.0, "gamma must be > 0"),
    ]
    for rows, s, gamma, message in bad:
        for method in (law.log_prob, law.score, law.denoise, law.divergence, law.posterior):
            with pytest.raises(ValueError, match=message) as error:
                method(rows, s, gamma)
            assert "\n" not in str(error.value)


def test_no_density_without_any_noise():
    law = ragged_law()  # one tau is zero
    with pytest.raises(ValueError, match="gamma must be > 0 where tau = 0"):
        law.log_prob(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="gamma must be > 0 where tau = 0"):
        head_tail_law(tau=0.0).log_prob(torch.zeros(1, 8))
    assert head_tail_law(dim=7, tau=0.0).log_prob(torch.zeros(1, 7)).isfinite()  # nothing is left for tau


class TestEdits:
    """What a law computes follows its parameters, however they are changed."""

    @pytest.fixture(autouse=True)
    def _rows(self, law, generator):
        self.x = law.sample(5, generator).x
        law.log_prob(self.x, 1.0, 0.5)
        with torch.no_grad():
            law.log_prob(self.x, 1.0, 0.5)

    def check(self, law):
        with torch.no_grad():
            x = self.x.to(law.offset.dtype)
            close(law.log_prob(x, 1.0, 0.5), DenseLaw.of(law).log_prob(x, 1.0, 0.5), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
    def test_optimizer_steps(self, law, optimizer):
        trained = [p for name, p in law.named_parameters() if "basis" not in name and "axes" not in name]
        steps = optimizer(trained, lr=1e-2)
        for _ in range(3):
            steps.zero_grad()
            (-law.log_prob(self.x, 1.0, 0.5).mean()).backward()
            steps.step()
            self.check(law)

    def test_loaded_state(self, law):
        state = {name: tensor.clone() for name, tensor in law.state_dict().items()}
        state["offset"] += 1
        law.load_state_dict(state)
        self.check(law)

    def test_edits_in_place(self, law):
        with torch.no_grad():
            for name in ("offset", "tau"):
                getattr(law, name).mul_(1.5)
                self.check(law)

    def test_other_dtypes(self, law):
        self.check(law.to(torch.float32))
        with torch.no_grad():
            law.tau.mul_(2)
        self.check(law)
        self.check(law.to(torch.float64))

    def test_replaced_parameters(self, law):
        law.offset = torch.nn.Parameter(law.offset.detach() + 1)
        self.check(law)


def test_autocast_leaves_a_law_in_its_dtype():
    law = head_tail_law(1, dtype=torch.float32)
    x = law.sample(6, torch.Generator().manual_seed(0)).x
    for each, rows in ((law, x), (law.head, x[:, : law.head.dim])):
        for method in (each.log_prob, each.score, each.denoise, each.divergence):
            expected = method(rows, 0.8, 0.1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                close(method(rows, 0.8, 0.1), expected, rtol=0, atol=0)
        rows = rows.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(each.log_prob(rows, 0.8, 0.1).sum(), rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_prob = each.log_prob(rows, 0.8, 0.1)
        (under,) = torch.autograd.grad(log_prob.sum(), rows)
        close(under, gradient, rtol=0, atol=0)
