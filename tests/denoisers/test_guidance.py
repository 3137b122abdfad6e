"""Guidance: its score against autograd, its ends against the answers themselves, rows against one at a time."""

import copy

import pytest
import torch

import molrmog
from molrmog import (
    ConditionalLaw,
    GuidedDenoiser,
    MLPDenoiser,
    MoLRMoG,
    PerExpert,
    ResidualDenoiser,
    UNetDenoiser,
    VPSchedule,
)
from molrmog.denoisers.base import given
from oracles.autograd import score_of
from oracles.dense import DenseLaw
from oracles.laws import head_tail_law, ragged_law

LEVELS = [(1.0, 0.05), (0.8, 0.6), (0.3, 2.0)]
LAWS = {"pure": lambda: ragged_law(1, dim=6, taus=(0.3, 0.1, 0.2)), "head/tail": lambda: head_tail_law(1, dim=8)}


def frozen(kind):
    return LAWS[kind]().requires_grad_(False)


def rows_of(law, n, s, gamma, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x0 = law.sample(n, draw)
    noise = torch.randn(x0.x.shape, generator=draw, dtype=x0.x.dtype)
    return s * x0.x + gamma * noise, x0.subspace


def log_density(law, x, s, gamma, k=None):
    """log p_t(x) or log p_t(x | k), from dense covariances."""
    joint = DenseLaw.of(law).log_joint(x, s, gamma)
    own = torch.ones_like(law.component_of, dtype=torch.bool) if k is None else law.component_of == k
    return joint[:, own].logsumexp(1) - DenseLaw.of(law).log_weight[own].logsumexp(0)


def moved(network, size=0.3):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return network.eval()


def residual(backbone):
    law = MoLRMoG.random(6, (2, 3, 1), (2, 1, 2), noise=0.2, seed=0).requires_grad_(False)
    return ResidualDenoiser(ConditionalLaw(law), moved(backbone))


NETWORKS = {
    "mlp": lambda: moved(MLPDenoiser(6, width=16, depth=1, experts=3, unconditional=True)),
    "unet": lambda: moved(UNetDenoiser((1, 2, 3), (12,), attention=False, experts=3, unconditional=True)),
    "law": lambda: ConditionalLaw(MoLRMoG.random(6, (2, 3, 1), (2, 1, 2), noise=0.2, seed=0).requires_grad_(False)),
    "residual": lambda: residual(MLPDenoiser(6, width=16, depth=1, experts=3, inputs=2, unconditional=True)),
    "residual, told in its base alone": lambda: residual(MLPDenoiser(6, width=16, depth=1, inputs=2)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("s", "gamma"), LEVELS)
def test_the_guided_score_of_a_law_is_the_gradient_of_its_guided_density(kind, scale, s, gamma):
    law = frozen(kind)
    x, expert = rows_of(law, 12, s, gamma)
    guided = GuidedDenoiser(ConditionalLaw(law), scale)
    found = (s * guided.denoise(x, s, gamma, expert) - x) / gamma**2
    for k in range(law.subspaces):

        def guided_density(x, k=k):
            free = log_density(law, x, s, gamma)
            return free + scale * (log_density(law, x, s, gamma, k) - free)

        own = expert == k
        torch.testing.assert_close(found[own], score_of(guided_density, x[own]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LAWS)
def test_a_law_told_its_subspaces_adds_up_to_the_law(kind):
    law = frozen(kind)
    x, _ = rows_of(law, 12, 0.8, 0.6)
    gates = law.posterior(x, 0.8, 0.6).responsibilities
    told = torch.stack([ConditionalLaw(law).denoise(x, 0.8, 0.6, int(k)) for k in law.component_of])  # (C, B, D)
    torch.testing.assert_close((gates.T[..., None] * told).sum(0), law.denoise(x, 0.8, 0.6))


@torch.no_grad()
def test_the_ends_of_the_scale_are_the_two_answers_exactly(network):
    x, k = torch.randn(6, 6), torch.arange(6) % 3
    free, told = network.denoise(x, 0.8, 0.6), network.denoise(x, 0.8, 0.6, k)
    assert torch.equal(GuidedDenoiser(network, 0.0).denoise(x, 0.8, 0.6, k), free)
    assert torch.equal(GuidedDenoiser(network, 1.0).denoise(x, 0.8, 0.6, k), told)
    assert torch.equal(GuidedDenoiser(network, 0.0, (0.1, 0.2)).denoise(x, 0.8, 0.6, k), told)  # 0.75 lies outside
    assert not torch.allclose(free, told)
    for scale in (0.3, 2.5):
        found = GuidedDenoiser(network, scale).denoise(x, 0.8, 0.6, k)
        torch.testing.assert_close(found, free + scale * (told - free), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_are_told_each_its_own(network):
    x, k = torch.randn(6, 6), torch.tensor([2, -1, 0, 1, -1, 2])
    s, gamma = torch.tensor([1.0, 0.9, 0.8, 0.3, 0.0, 1.0]), torch.tensor([0.1, 0.5, 0.6, 2.0, 1.0, 4.0])
    for denoiser in (network, GuidedDenoiser(network, 2.0), GuidedDenoiser(network, 2.0, (0.3, 3.0))):
        together = denoiser.denoise(x, s, gamma, k)
        for i in range(6):
            told = None if k[i] < 0 else int(k[i])
            alone = denoiser.denoise(x[i : i + 1], float(s[i]), float(gamma[i]), told)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_only_the_interval_is_guided_and_the_network_is_called_once(network):
    calls = []

    class Counted(torch.nn.Module):
        dim, experts, unconditional = 6, 3, True

        def denoise(self, x, s, gamma, expert=None):
            calls.append(len(x))
            return network.denoise(x, s, gamma, expert)

    x, k = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    s, gamma = torch.ones(4), torch.tensor([0.1, 0.3, 3.0, 3.1])
    found = GuidedDenoiser(Counted(), 2.0, (0.3, 3.0)).denoise(x, s, gamma, k)
    told, free = network.denoise(x, s, gamma, k), network.denoise(x, s, gamma)
    expected = torch.where(torch.tensor([False, True, True, False])[:, None], 2 * told - free, told)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    GuidedDenoiser(Counted(), 2.0, (0.3, 3.0)).denoise(x, 1.0, 5.0, k)
    GuidedDenoiser(Counted(), 2.0).denoise(x, 1.0, 5.0, k)
    GuidedDenoiser(Counted(), 2.0).denoise(x, 1.0, 5.0, torch.tensor([0, -1, -1, 1]))
    assert calls == [6, 4, 8, 6]


@torch.no_grad()
def test_it_comes_back_from_a_folder_and_is_sampled(network, tmp_path):
    guided = GuidedDenoiser(network, 2.0, (0.1, 5.0)).eval()
    guided.save_pretrained(tmp_path)
    again = molrmog.load(tmp_path)
    x, k = torch.randn(4, 6), torch.tensor([0, 1, 2, -1])
    assert torch.equal(again.denoise(x, 0.8, 0.6, k), guided.denoise(x, 0.8, 0.6, k))
    assert (again.scale, again.interval, again.num_parameters) == (2.0, (0.1, 5.0), guided.num_parameters)
    walked = [
        molrmog.sample(given(each, k), VPSchedule(), (4, 6), steps=3, generator=torch.Generator().manual_seed(0))
        for each in (guided, again)
    ]
    assert torch.equal(*walked)


@pytest.mark.parametrize("kind", LAWS)
def test_a_law_that_changes_is_asked_anew(kind):
    told, other = (ConditionalLaw(frozen(kind)) for _ in range(2))
    x, k = rows_of(told.law, 6, 0.8, 0.6)
    before = told.denoise(x, 0.8, 0.6, k)
    with torch.no_grad():
        for name, parameter in other.law.named_parameters():
            parameter.mul_(1.0 if name.endswith(("basis", "axes")) else 1.01)
    told.load_state_dict(other.state_dict())
    assert not torch.equal(told.denoise(x, 0.8, 0.6, k), before)
    assert torch.equal(told.denoise(x, 0.8, 0.6, k), other.denoise(x, 0.8, 0.6, k))
    narrow = copy.deepcopy(told).float()
    torch.testing.assert_close(narrow.denoise(x.float(), 0.8, 0.6, k), told.denoise(x, 0.8, 0.6, k).float())


def test_a_subspace_of_no_weight_still_answers():
    law = frozen("pure")
    with torch.no_grad():
        law.subspace_logits[1] = -torch.inf
    x, _ = rows_of(law, 3, 0.8, 0.6)
    assert ConditionalLaw(law).denoise(x, 0.8, 0.6, 1).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedDenoiser(MLPDenoiser(6, experts=3), 2.0), "does not answer without an expert"),
        (lambda: GuidedDenoiser(PerExpert([MLPDenoiser(6)] * 2), 2.0), "does not answer without an expert"),
        (lambda: GuidedDenoiser(frozen("pure"), 2.0), "wrap a law in ConditionalLaw"),
        (lambda: GuidedDenoiser(NETWORKS["mlp"](), -1.0), "scale of -1.0: pass a number >= 0"),
        (lambda: GuidedDenoiser(NETWORKS["mlp"](), 2.0, (3.0, 1.0)), "0 <= low < high"),
        (lambda: ConditionalLaw(LAWS["pure"]()), "keeps its law as it is"),
        (lambda: NETWORKS["law"]().denoise(torch.zeros(1, 6), 1.0, 0.1, 3), "experts 0 to 2, and -1 for none"),
        (lambda: NETWORKS["mlp"]().denoise(torch.zeros(1, 6), 1.0, 0.1, -2), "experts 0 to 2, and -1 for none"),
    ],
)
def test_a_bad_request_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
