"""What is particular to MoLRMoG: its special cases, derivatives in every parameter, precision, memory, shapes."""

import copy
import math

import hypothesis
import pytest
import scipy.stats
import torch
from hypothesis import strategies as st
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap

from molrmog import MoLRMoG, Subspace
from molrmog.metrics import principal_angles
from oracles.autograd import tangent
from oracles.dense import DenseLaw
from oracles.laws import noised_rows, ragged_law, ragged_laws

# Forward-mode transforms import parts of torch that torch itself calls deprecated.
OWN_WARNING = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class OfLaw(torch.nn.Module):
    """A method of a law as a module's forward, for functional_call."""

    def __init__(self, law: MoLRMoG, name: str) -> None:
        super().__init__()
        self.law, self.name = law, name

    def forward(self, x, s, gamma):
        return getattr(self.law, self.name)(x, s, gamma)


def called(law, name, parameters, *given):
    return functional_call(OfLaw(law, name), {f"law.{key}": value for key, value in parameters.items()}, given)


def padding(law):
    """Which entries of each parameter hold nothing."""
    inside = MoLRMoG(law.dim, law.latent_dims, law.modes, law.ranks, dtype=torch.float64).requires_grad_(False)
    inside.basis.zero_()
    for k, (d, n) in enumerate(zip(law.latent_dims, law.modes, strict=True)):
        inside.basis[:, k, :d], inside.mean[k, :n, :d], inside.mode_logits[k, :n] = 1, 1, 1
        for mode, r in enumerate(law.ranks[k]):
            inside.factor[k, mode, :d, :r] = 1
    return {name: getattr(inside, name) == 0 for name in ("basis", "mean", "factor", "mode_logits")}


# --- special cases


@pytest.mark.parametrize("rank", [3, 1])
def test_one_mode_is_the_gaussian_formula(rank):
    law = ragged_law(0, dim=5, latent_dims=(3,), ranks=((rank,),), taus=(0.3,)).requires_grad_(False)
    part = law.subspace(0)
    s, gamma = 0.6, 0.8
    mean = part.offset + part.basis @ part.means[0]
    loading = part.basis @ part.factors[0]
    cov = loading @ loading.T + 0.3**2 * torch.eye(5)
    marginal = s**2 * cov + gamma**2 * torch.eye(5)
    x = torch.randn(6, 5, dtype=torch.float64)
    theirs = scipy.stats.multivariate_normal(s * mean.numpy(), marginal.numpy()).logpdf(x.numpy())
    torch.testing.assert_close(law.log_prob(x, s, gamma), torch.from_numpy(theirs))
    solved = torch.linalg.solve(marginal, (x - s * mean).T)
    torch.testing.assert_close(law.score(x, s, gamma), -solved.T)
    torch.testing.assert_close(law.denoise(x, s, gamma), mean + (s * cov @ solved).T)


def test_centred_single_modes_are_molrg():
    """n_k = 1, mu = b = tau = 0 and U = I: the denoiser of arXiv 2409.02426, a softmax over subspace energies."""
    law = MoLRMoG(8, (2, 2, 2), (1, 1, 1), dtype=torch.float64).requires_grad_(False)
    bases = torch.linalg.qr(torch.randn(3, 8, 2, dtype=torch.float64)).Q
    law.basis.copy_(bases.permute(1, 0, 2))
    law.factor.copy_(torch.eye(2).expand(3, 1, 2, 2))
    s, gamma = 0.8, 0.6
    x = law.sample(10, s=s, gamma=gamma).x
    h = torch.einsum("kDd,BD->kBd", bases, x)
    energy = s**2 / (2 * gamma**2 * (s**2 + gamma**2)) * h.square().sum(2)
    gates = energy.softmax(0)
    denoised = torch.einsum("kB,kDd,kBd->BD", gates * s / (s**2 + gamma**2), bases, h)
    torch.testing.assert_close(law.posterior(x, s, gamma).responsibilities, gates.T)
    torch.testing.assert_close(law.denoise(x, s, gamma), denoised)


def test_full_dimension_keeps_its_density_at_the_smallest_noise():
    """d = D leaves nothing off the subspace, so not even the tiniest tau may show."""
    law = ragged_law(0, dim=3, latent_dims=(3,), ranks=((3, 3),), taus=(1e-9,)).requires_grad_(False)
    x = law.sample(20).x
    torch.testing.assert_close(law.log_prob(x), DenseLaw.of(law).log_prob(x))


# --- derivatives in the parameters


@hypothesis.given(st.data())
@pytest.mark.parametrize("name", ["log_prob", "denoise"])
def test_gradients_of_all_parameters_are_those_of_the_dense_law(name, data):
    law = data.draw(ragged_laws())
    x, s, gamma = data.draw(noised_rows(law))
    probe = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    ours = getattr(law, name)(x, s, gamma)
    parameters = {key: p.detach().clone().requires_grad_() for key, p in law.named_parameters()}
    dense = DenseLaw.of(law, parameters)
    theirs = dense.log_prob(x, s, gamma) if name == "log_prob" else dense.posterior_mean(x, s, gamma)
    if name == "log_prob":
        probe = probe[:, 0]
    ours = torch.autograd.grad((ours * probe).sum(), list(law.parameters()))
    theirs = torch.autograd.grad((theirs * probe).sum(), list(parameters.values()))
    empty = padding(law)
    for key, a, b in zip(parameters, ours, theirs, strict=True):
        if key == "basis":
            a, b = (tangent(law.basis.detach(), each) for each in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
        if key in empty:
            assert bool((a[empty[key]] == 0).all()), f"{key} has gradients in its padding"


@pytest.mark.parametrize("name", ["log_prob", "score", "denoise", "divergence"])
@pytest.mark.parametrize("factors", ["any", "orthonormal", "deficient"])
def test_padding_gets_no_gradient(name, factors):
    law = ragged_law(0, factors=factors, dtype=torch.float32)
    x = law.sample(20).x
    getattr(law, name)(x, 0.8, 0.3).square().sum().backward()
    for key, empty in padding(law).items():
        assert bool((getattr(law, key).grad[empty] == 0).all()), key


@OWN_WARNING
@pytest.mark.parametrize("factors", ["any", "orthonormal", "deficient"])
def test_hessian_in_mean_and_factor_is_that_of_the_dense_law(factors):
    law = ragged_law(2, dim=4, latent_dims=(2, 3), ranks=((2, 1), (3, 2)), taus=(0.3, 0.0), factors=factors)
    law.requires_grad_(False)
    x = law.sample(4, s=0.8, gamma=0.6).x
    s, gamma = 0.8, torch.tensor([0.6, 0.3, 1.0, 0.5], dtype=torch.float64)
    fixed = {key: p.detach() for key, p in law.named_parameters()}
    real = {key: ~empty.flatten() for key, empty in padding(law).items() if key in ("mean", "factor")}
    free = [fixed["mean"].flatten()[real["mean"]], fixed["factor"].flatten()[real["factor"]]]
    vector = torch.cat(free)

    def parameters(vector):
        parts = dict(zip(real, vector.split([len(each) for each in free]), strict=True))
        full = {
            key: torch.zeros(fixed[key].numel(), dtype=vector.dtype).masked_scatter(real[key], part)
            for key, part in parts.items()
        }
        return fixed | {key: value.view_as(fixed[key]) for key, value in full.items()}

    def by_autograd(vector):
        return called(law, "log_prob", parameters(vector), x, s, gamma).sum()

    def dense(vector):
        return DenseLaw.of(law, parameters(vector)).log_prob(x, s, gamma).sum()

    theirs = torch.autograd.functional.hessian(dense, vector)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.autograd.functional.hessian(by_autograd, vector), theirs, **tolerance)

    rows, columns = (torch.arange(len(each)) for each in free)

    def transformed(mean, factor):
        at_mean, at_factor = (real[key].nonzero()[:, 0] for key in ("mean", "factor"))
        given = fixed | {
            "mean": torch.zeros(fixed["mean"].numel(), dtype=mean.dtype)
            .index_put((at_mean,), mean[rows])
            .view_as(fixed["mean"]),
            "factor": torch.zeros(fixed["factor"].numel(), dtype=factor.dtype)
            .index_put((at_factor,), factor[columns])
            .view_as(fixed["factor"]),
        }
        return called(law, "log_prob", given, x, s, gamma).sum()

    blocks = hessian(transformed, argnums=(0, 1))(*free)
    torch.testing.assert_close(torch.cat([torch.cat(row, 1) for row in blocks]), theirs, **tolerance)


def test_mixed_derivatives_in_rows_and_parameters():
    """The gradient of the score in the parameters, which score matching and its curvature ask for."""
    law = ragged_law(4)
    x = law.sample(5).x
    probe = torch.randn(x.shape, dtype=torch.float64)
    ours = torch.autograd.grad((law.score(x, 0.8, 0.5) * probe).sum(), list(law.parameters()))
    x = x.requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in law.parameters()]
    names = [name for name, _ in law.named_parameters()]
    log_prob = DenseLaw.of(law, dict(zip(names, parameters, strict=True))).log_prob(x, 0.8, 0.5)
    score = torch.autograd.grad(log_prob.sum(), x, create_graph=True)[0]
    theirs = torch.autograd.grad((score * probe).sum(), parameters)
    for name, a, b in zip(names, ours, theirs, strict=True):
        if name == "basis":
            a, b = (tangent(law.basis.detach(), each) for each in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@OWN_WARNING
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_functional_transforms_over_rows(jacobian):
    law = ragged_law(5).requires_grad_(False)
    x = law.sample(4).x
    gamma = torch.tensor([0.3, 0.5, 0.7, 2.0], dtype=torch.float64)
    by_row = vmap(jacobian(lambda row, gamma: law.log_prob(row[None], 0.8, gamma)[0]))(x, gamma)
    torch.testing.assert_close(by_row, law.score(x, 0.8, gamma))
    curvature = vmap(jacobian(lambda row, gamma: law.score(row[None], 0.8, gamma)[0]))(x, gamma)
    torch.testing.assert_close(curvature.diagonal(dim1=1, dim2=2).sum(1), law.divergence(x, 0.8, gamma))
    torch.testing.assert_close(curvature, curvature.mT)


@OWN_WARNING
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_functional_transforms_over_parameters(jacobian):
    law = ragged_law(6)
    x = law.sample(4).x
    values = {name: p.detach() for name, p in law.named_parameters()}
    per_row = jacobian(lambda values: called(law, "log_prob", values, x, 0.8, 0.5))(values)
    totals = torch.autograd.grad(law.log_prob(x, 0.8, 0.5).sum(), list(law.parameters()))
    for name, total in zip(values, totals, strict=True):
        torch.testing.assert_close(per_row[name].sum(0), total, rtol=1e-6, atol=1e-8)


def test_gradients_in_the_noise_level():
    law = ragged_law(7)
    x = law.sample(5).x
    levels = [torch.full((5,), value, dtype=torch.float64).requires_grad_() for value in (0.8, 0.5)]
    ours, theirs = (torch.autograd.grad(each.log_prob(x, *levels).sum(), levels) for each in (law, DenseLaw.of(law)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_training_keeps_ragged_shapes():
    """A few steps of Adam raise the likelihood, and nothing flows into the padding."""
    law = ragged_law(8, taus=(0.3, 0.2, 0.2), dtype=torch.float32)
    x = ragged_law(9, taus=(0.3, 0.2, 0.2), dtype=torch.float32).sample(300).x
    optimizer = torch.optim.Adam([p for name, p in law.named_parameters() if name != "basis"], lr=0.02)
    before = float(law.log_prob(x).mean().detach())
    for _ in range(20):
        optimizer.zero_grad()
        (-law.log_prob(x).mean()).backward()
        optimizer.step()
    assert float(law.log_prob(x).mean().detach()) > before
    for key, empty in padding(law).items():
        assert bool((getattr(law, key)[empty] == 0).all()), key


# --- precision


def unit_scale_law(seed, dim, rank, tau, *, apart, offset):
    """Entries of order one. Subspaces `apart` from each other decide whether the gate between them is ever in doubt."""
    draw = torch.Generator().manual_seed(seed)
    d, modes = 8, 3
    shared = torch.randn(dim, d, generator=draw, dtype=torch.float64)
    centre = offset * torch.randn(dim, generator=draw, dtype=torch.float64)
    loading = torch.randn(d, rank, generator=draw, dtype=torch.float64) * (dim / rank) ** 0.5 / 3
    parts = []
    for _ in range(4):
        noise = torch.randn(dim, d + 1, generator=draw, dtype=torch.float64) * apart
        within, means = (torch.randn(modes, rank, each, generator=draw, dtype=torch.float64) for each in (rank, 1))
        factors = loading + 0.3 * loading @ within + apart * torch.randn(modes, d, rank, generator=draw)
        means = 0.5 * (loading @ means)[..., 0]
        parts.append(
            Subspace(
                weight=0.25,
                basis=torch.linalg.qr(shared + noise[:, :d]).Q,
                offset=centre + noise[:, d] / dim**0.5,
                tau=tau,
                mode_weights=torch.ones(modes),
                means=means,
                factors=tuple(factors),
            )
        )
    return MoLRMoG.from_subspaces(parts, dtype=torch.float32).requires_grad_(False)


def gate_errors(law, gamma, seed, rows=48):
    """Largest error of log-responsibilities above -30 nats, and of the log-density per dimension."""
    draw = torch.Generator().manual_seed(seed)
    x = law.sample(rows, draw, gamma=gamma).x
    exact = copy.deepcopy(law).double()
    bases = exact.basis.permute(1, 0, 2)
    left, _, right = torch.linalg.svd(bases, full_matrices=False)
    exact.basis.copy_((left @ right).permute(1, 0, 2))  # float32 rounds the basis, but means an orthonormal one
    gamma = torch.tensor(gamma, dtype=torch.float32)  # the same noise level for both
    reference = DenseLaw.of(exact)
    theirs = reference.log_gates(x, 1.0, gamma)
    posterior = law.posterior(x, 1.0, gamma)
    matter = theirs > -30
    gates = (posterior.responsibilities.double().log() - theirs).abs()[matter].max()
    density = (posterior.log_prob.double() - reference.log_prob(x, 1.0, gamma)).abs().max() / law.dim
    return float(gates), float(density), int(((theirs < -1e-3) & matter).sum())


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.1, 0.3, 1.0])
@pytest.mark.parametrize(("dim", "seeds"), [(64, 3), pytest.param(784, 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("rank", "tau"), [(8, 0.0), (2, 0.0), (2, 1e-3)])
def test_float32_gates_are_right_to_a_thousandth_of_a_nat(dim, seeds, rank, tau, gamma):
    in_doubt = 0
    for seed in range(seeds):
        for offset in (0.0, 1.0):
            law = unit_scale_law(seed, dim, rank, tau, apart=gamma / dim**0.5, offset=offset)
            gates, density, doubtful = gate_errors(law, gamma, seed)
            in_doubt += doubtful
            assert gates < 1e-3
            assert density < 1e-4
    assert in_doubt > 50  # gates that are all zero or one would show nothing


# --- shapes and parts


@hypothesis.given(ragged_laws())
def test_parts_put_together_again_are_the_law(law):
    again = MoLRMoG.from_subspaces([law.subspace(k) for k in range(law.subspaces)])
    assert again.config == law.config
    x = torch.randn(4, law.dim, dtype=torch.float64)
    torch.testing.assert_close(again.log_prob(x, 0.8, 0.5), law.log_prob(x, 0.8, 0.5))
    assert law.component_of.tolist() == [k for k, n in enumerate(law.modes) for _ in range(n)]
    assert law.mode_of.tolist() == [mode for n in law.modes for mode in range(n)]


def test_num_parameters_counts_no_padding():
    law = MoLRMoG(7, (2, 3), (2, 1), [[1, 2], [0]])
    bases, offsets, means, factors, taus, weights = 7 * 5, 7 * 2, 2 * 2 + 3, 2 * 3, 2, 2 + 3
    assert law.num_parameters == bases + offsets + means + factors + taus + weights


def test_random_laws_are_what_was_asked_for():
    law = MoLRMoG.random(12, (2, 4), (3, 1), rank=3, noise=0.1, seed=3, offset=2.0, dtype=torch.float64)
    assert (law.dim, law.latent_dims, law.modes, law.ranks) == (12, (2, 4), (3, 1), ((2, 2, 2), (3,)))
    assert law.noise_floor == pytest.approx(0.1)
    for k in range(2):
        A = law.subspace(k).basis
        torch.testing.assert_close(A.T @ A, torch.eye(A.shape[1], dtype=torch.float64))
    again, other = (MoLRMoG.random(12, (2, 4), (3, 1), rank=3, seed=seed, dtype=torch.float64) for seed in (3, 4))
    assert torch.equal(again.basis, law.basis)
    assert principal_angles(law.subspace(1).basis, other.subspace(1).basis)[-1] > 10


def test_noise_may_have_either_sign():
    law = ragged_law(0).requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64)
    before = law.log_prob(x, 1.0, 0.5)
    law.tau.neg_()
    torch.testing.assert_close(law.log_prob(x, 1.0, 0.5), before)
    assert all(law.subspace(k).tau >= 0 for k in range(3))


def test_a_weight_of_zero_is_never_drawn():
    parts = [ragged_law(0).subspace(k) for k in range(3)]
    parts[1] = Subspace(**{**vars(parts[1]), "weight": 0.0})
    law = MoLRMoG.from_subspaces(parts).requires_grad_(False)
    assert 1 not in law.sample(200).subspace
    x = torch.randn(4, 5, dtype=torch.float64)
    assert bool((law.posterior(x, 1.0, 0.5).responsibilities[:, law.component_of == 1] == 0).all())
    for result in (law.log_prob(x, 1.0, 0.5), law.score(x, 1.0, 0.5), law.divergence(x, 1.0, 0.5)):
        assert bool(result.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, (5,), (1,)), "a dimension from 1 to 4"),
        ((4, (0,), (1,)), "a dimension from 1 to 4"),
        ((4, (2,), (0,)), "at least one mode"),
        ((4, (2, 2), (1,)), "one of each per subspace"),
        ((4, (), ()), "one of each per subspace"),
        ((4, (2,), (2,), [[1]]), "give 2 ranks from 0 to 2"),
        ((4, (2,), (1,), [[3]]), "give 1 ranks from 0 to 2"),
    ],
)
def test_shapes_that_do_not_fit_get_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        MoLRMoG(*arguments)
    assert "\n" not in str(error.value)


def test_bases_must_be_orthonormal():
    part = ragged_law(0).subspace(0)
    with pytest.raises(ValueError, match="basis 0 is not orthonormal"):
        MoLRMoG.from_subspaces([Subspace(**{**vars(part), "basis": 2 * part.basis})])
    with pytest.raises(ValueError, match="at least one subspace"):
        MoLRMoG.from_subspaces([])
    with pytest.raises(ValueError, match="rank = -1"):
        MoLRMoG.random(4, (2,), (1,), rank=-1)


def test_copies_do_not_share_what_they_cache():
    law = ragged_law(0).requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64)
    before = law.log_prob(x, 1.0, 0.5)
    twin = copy.deepcopy(law)
    twin.offset.add_(1)
    torch.testing.assert_close(law.log_prob(x, 1.0, 0.5), before)
    torch.testing.assert_close(twin.log_prob(x, 1.0, 0.5), DenseLaw.of(twin).log_prob(x, 1.0, 0.5))
    assert not math.isclose(float(before[0]), float(twin.log_prob(x, 1.0, 0.5)[0]))


@pytest.mark.parametrize("inference_first", [False, True])
def test_inference_mode_and_gradients_mix(inference_first):
    law = ragged_law(0)
    x = torch.randn(4, 5, dtype=torch.float64)
    if inference_first:
        with torch.inference_mode():
            law.log_prob(x, 1.0, 0.5)
    x = x.requires_grad_()
    law.requires_grad_(False)
    (score,) = torch.autograd.grad(law.log_prob(x, 1.0, 0.5).sum(), x)
    torch.testing.assert_close(score, law.score(x.detach(), 1.0, 0.5))


def _ties(law, gamma):
    """float32 rows at which two modes of a float64 law weigh the same, by bisection between samples of the two."""
    generator = torch.Generator().manual_seed(1)
    ends = [law.sample(200, generator, gamma=gamma) for _ in range(2)]
    column = {(int(k), int(m)): c for c, (k, m) in enumerate(zip(law.component_of, law.mode_of, strict=True))}
    modes = [torch.tensor([column[int(k), int(m)] for k, m in zip(e.subspace, e.mode, strict=True)]) for e in ends]
    apart = modes[0] != modes[1]
    (low, high), (first, second) = ([part[apart] for part in parts] for parts in ([e.x for e in ends], modes))
    for _ in range(60):
        middle = (low + high) / 2
        log_gates = law.posterior(middle, 1.0, gamma).responsibilities.log()
        nearer_first = log_gates.gather(1, first[:, None]) > log_gates.gather(1, second[:, None])
        low, high = torch.where(nearer_first, middle, low), torch.where(nearer_first, high, middle)
    return ((low + high) / 2).float()


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 1e-1])
def test_float32_decides_ties_as_float64_does(gamma):
    law = MoLRMoG.random(64, (6,) * 4, (3,) * 4, 2, 0.0, 0, separation=8.0).requires_grad_(False)
    exact = copy.deepcopy(law).double()
    x = _ties(exact, gamma)
    given, wanted = law.posterior(x, 1.0, gamma), exact.posterior(x.double(), 1.0, gamma)
    likely = wanted.responsibilities > 1e-3
    assert (likely.sum(1) > 1).float().mean() > 0.5  # else the rows are no ties
    error = (given.responsibilities.double().log() - wanted.responsibilities.log())[likely]
    assert float(error.abs().max()) < 1e-3
    torch.testing.assert_close(law.denoise(x, 1.0, gamma).double(), wanted.mean, rtol=0, atol=2e-3)
