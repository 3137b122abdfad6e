"""A network on a base: nothing at the start, unit targets at every level, EDM where the base is one Gaussian."""

import math

import pytest
import torch
from torch import nn

import molrmog
from molrmog import ConditionalLaw, MLPDenoiser, MoGDenoiser, MoLRMoG, PerExpert, UNetDenoiser
from molrmog.denoisers.levels import LevelTable, log_sigma_grid
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.laws.molrmog import Subspace
from oracles.dense import DenseLaw
from oracles.laws import head_tail_law

LEVELS = [(1.0, 0.02), (1.0, 0.3), (0.8, 0.6), (0.3, 2.0), (0.0, 1.0)]


def a_law(dim=6, seed=0):
    return MoLRMoG.random(dim, (2, 3), (2, 1), rank=2, noise=0.2, seed=seed).requires_grad_(False)


def isotropic(dim, sd):
    """N(0, sd^2 I) as a law."""
    part = Subspace(
        weight=1.0,
        basis=torch.eye(dim)[:, :1],
        offset=torch.zeros(dim),
        tau=sd,
        mode_weights=torch.ones(1),
        means=torch.zeros(1, 1),
        factors=(torch.zeros(1, 1),),
    )
    return MoLRMoG.from_subspaces([part]).requires_grad_(False)


def noised(law, rows, s, gamma, seed=1):
    draw = torch.Generator().manual_seed(seed)
    x0 = law.sample(rows, draw).x
    return x0, s * x0 + gamma * torch.randn(x0.shape, generator=draw)


def moved(network, size=0.3):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return network


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "make", [lambda: MLPDenoiser(6, width=8, inputs=2), lambda: UNetDenoiser((1, 2, 3), (8,), inputs=2)]
)
def test_an_untrained_network_leaves_the_base_as_it_is(make, level):
    law = a_law()
    network = ResidualDenoiser(law, make()).measure_(law.sample(300).x)
    _, xt = noised(law, 20, *level)
    assert torch.equal(network.denoise(xt, *level), law.denoise(xt, *level))


@torch.no_grad()
@pytest.mark.parametrize("added", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("s", "gamma"), LEVELS[:4])
def test_the_target_of_the_network_has_unit_mean_square(s, gamma, added):
    law = a_law()
    network = ResidualDenoiser(law, MLPDenoiser(6, width=8, inputs=2), added=added).measure_(law.sample(4000).x)
    x0, xt = noised(law, 20_000, s, gamma, seed=2)
    start = network.denoise(xt, s, gamma)
    nn.init.ones_(network.network.leave.bias)
    scale = float((network.denoise(xt[:1], s, gamma) - start[:1]).mean())  # F = 1 adds c_res
    target = (x0 - start) / scale
    assert float(target.square().mean()) == pytest.approx(1.0, abs=0.15)  # tables of 256 rows a level
    if added < 1:
        return
    # On samples of the law the scale is its posterior variance.
    assert scale**2 == pytest.approx(float(law.posterior(xt, s, gamma).variance.mean()), rel=0.15)


def test_on_one_isotropic_gaussian_it_is_edm():
    sd = 0.7
    law = isotropic(6, sd)
    edm = moved(MLPDenoiser(6, width=8, sigma_data=sd))
    network = ResidualDenoiser(law, edm, as_input=False, sigma_data=sd)  # ratio 1 at every level
    for s, gamma in LEVELS[:4]:
        _, xt = noised(law, 10, s, gamma)
        torch.testing.assert_close(network.denoise(xt, s, gamma), edm.denoise(xt, s, gamma), rtol=1e-4, atol=1e-5)
    measured = network.measure_(law.sample(20_000, torch.Generator().manual_seed(0)).x)
    assert measured.sigma_data == pytest.approx(sd, rel=0.01)
    assert float(measured.log_ratio.values.abs().max()) < 0.1  # 256 x 6 numbers a level


@pytest.mark.parametrize("added", [0.0, 0.3])
def test_a_base_is_added_as_much_as_asked(added):
    law = a_law()
    network = ResidualDenoiser(law, MLPDenoiser(6, width=8, inputs=2), added=added, sigma_data=0.5)
    _, xt = noised(law, 10, 0.8, 0.6)
    skip = 0.8 * 0.25 / (0.64 * 0.25 + 0.36)
    wanted = added * law.denoise(xt, 0.8, 0.6) + (1 - added) * skip * xt
    torch.testing.assert_close(network.denoise(xt, 0.8, 0.6), wanted)
    again = ResidualDenoiser.from_config(network.config)
    assert again.added == added
    moved(network.network)
    seen = network.denoise(xt, 0.8, 0.6)
    network.base = a_law(seed=3)
    assert not torch.allclose(seen, network.denoise(xt, 0.8, 0.6))


def test_the_base_is_trained_along_only_where_it_asks():
    law = a_law()
    network = ResidualDenoiser(law, MLPDenoiser(6, width=8, inputs=2))
    _, xt = noised(law, 10, 1.0, 0.3)
    network.denoise(xt, 1.0, 0.3).square().sum().backward()
    assert all(parameter.grad is None for parameter in law.parameters())
    assert network.num_parameters == network.network.num_parameters
    along = MoGDenoiser(law, learn=("mean",))
    network = ResidualDenoiser(along, MLPDenoiser(6, width=8, inputs=2))
    network.denoise(xt, 1.0, 0.3).square().sum().backward()
    assert float(along.law.mean.grad.abs().max()) > 0
    assert network.num_parameters == network.network.num_parameters + along.law.mean.numel()


def test_a_base_that_is_not_trained_answers_as_it_does_in_use():
    base = MLPDenoiser(6, width=8).requires_grad_(False).eval()
    network = ResidualDenoiser(base, MLPDenoiser(6, width=8, inputs=2)).train()
    assert network.network.training
    assert not network.base.training
    assert ResidualDenoiser(MLPDenoiser(6, width=8), MLPDenoiser(6, width=8, inputs=2)).train().base.training


def test_experts_reach_base_and_network():
    parts = PerExpert([MoGDenoiser(a_law(seed=k)) for k in range(3)]).requires_grad_(False)
    network = ResidualDenoiser(parts, moved(MLPDenoiser(6, width=8, experts=3, inputs=2)))
    x0, _ = noised(a_law(), 60, 1.0, 0.3)
    network.measure_(x0, torch.arange(60) % 3)
    _, xt = noised(a_law(), 6, 1.0, 0.3)
    expert = torch.arange(6) % 3
    together = network.denoise(xt, 1.0, 0.3, expert)
    for k in range(3):
        alone = network.denoise(xt[expert == k], 1.0, 0.3, k)
        torch.testing.assert_close(together[expert == k], alone, rtol=1e-4, atol=1e-5)
    assert network.experts == 3


def test_it_comes_back_from_a_folder(tmp_path):
    law = a_law()
    network = ResidualDenoiser(law, moved(MLPDenoiser(6, width=8, inputs=2))).measure_(law.sample(200).x).eval()
    network.save_pretrained(tmp_path)
    again = molrmog.load(tmp_path)
    _, xt = noised(law, 10, 0.8, 0.6)
    assert isinstance(again, ResidualDenoiser)
    assert torch.equal(network.denoise(xt, 0.8, 0.6), again.denoise(xt, 0.8, 0.6))
    assert again.num_parameters == network.num_parameters
    assert again.sigma_data == network.sigma_data


def test_any_module_may_be_the_network(tmp_path):
    class Mean(nn.Module):
        def forward(self, x, c_noise, expert):
            return x.unflatten(1, (2, -1)).mean(1)

    law = a_law()
    network = ResidualDenoiser(law, Mean())
    _, xt = noised(law, 10, 0.8, 0.6)
    assert network.denoise(xt, 0.8, 0.6).shape == (10, 6)
    with pytest.raises(ValueError, match="a Mean is no law and no network of this library"):
        network.save_pretrained(tmp_path)


def gates_by_hand(law, xt, s, gamma):
    """P(x_0 on subspace k | x_t) from dense covariances."""
    joint = DenseLaw.of(law).log_joint(xt.double(), s, gamma)
    return torch.stack([joint.softmax(1)[:, law.component_of == k].sum(1) for k in range(law.subspaces)], 1)


class Seen(nn.Module):
    """A network that keeps what it was called with."""

    def forward(self, x, c_noise, expert, *gates):
        self.expert, self.gates = expert, gates
        return x.unflatten(1, (2, -1)).mean(1)


@pytest.mark.parametrize("level", LEVELS[:4])
@pytest.mark.parametrize("make", [a_law, lambda: head_tail_law(1, dim=6, tail=1).float().requires_grad_(False)])
def test_a_network_sees_how_the_law_weighs_its_subspaces(make, level):
    law, seen = make(), Seen()
    network = ResidualDenoiser(law, seen, gates=True)
    _, xt = noised(law, 20, *level)
    network.denoise(xt, *level)
    expected = gates_by_hand(law, xt, *level)
    torch.testing.assert_close(seen.gates[0].double(), expected, rtol=1e-3, atol=1e-4)
    if level[1] > 0.5:
        assert float(expected.amax(1).min()) < 0.95  # so that there is something to see
    told = ResidualDenoiser(ConditionalLaw(law), seen, gates=True)
    expert = torch.arange(20) % (law.subspaces + 1) - 1  # -1 is told none
    told.denoise(xt, *level, expert)
    assert torch.equal(seen.gates[0][expert >= 0], torch.eye(law.subspaces)[expert[expert >= 0]])
    torch.testing.assert_close(seen.gates[0][expert < 0].double(), expected[expert < 0], rtol=1e-3, atol=1e-4)


def test_gates_enter_an_mlp_beside_the_rows_and_a_unet_as_planes():
    law = a_law()
    s, gamma = 0.8, 0.6
    _, xt = noised(law, 5, s, gamma)
    r = gates_by_hand(law, xt, s, gamma).float()
    mlp = moved(MLPDenoiser(6, width=8, inputs=2, gates=2))
    unet = moved(UNetDenoiser((1, 2, 3), (8,), inputs=2, gates=2))
    into: dict[str, torch.Tensor] = {}
    mlp.enter.register_forward_pre_hook(lambda _, args: into.update(mlp=args[0]))
    unet.unet.register_forward_pre_hook(lambda _, args: into.update(unet=args[0]))
    for backbone in (mlp, unet):
        ResidualDenoiser(law, backbone, gates=True, sigma_data=0.5).denoise(xt, s, gamma)
    rows = torch.cat([xt / math.sqrt(0.25 * s**2 + gamma**2), law.denoise(xt, s, gamma) / 0.5], 1)
    torch.testing.assert_close(into["mlp"], torch.cat([rows, r], 1), rtol=1e-3, atol=1e-4)
    planes = torch.cat([rows.unflatten(1, (2, 2, 3)), r[..., None, None].expand(-1, -1, 2, 3)], 1)
    torch.testing.assert_close(into["unet"], planes, rtol=1e-3, atol=1e-4)


BASES = {
    "law": a_law,
    "head/tail": lambda: head_tail_law(1, dim=6, tail=1).float().requires_grad_(False),
    "told": lambda: ConditionalLaw(a_law()),
    "by expert": lambda: PerExpert([MoGDenoiser(a_law(seed=k), learn=()) for k in range(2)]),
    "along": lambda: PerExpert([MoGDenoiser(a_law(seed=k), learn=("mean", "basis")) for k in range(2)]),
}
BACKBONES = {
    "mlp": lambda **options: MLPDenoiser(6, width=8, inputs=2, **options),
    "unet": lambda **options: UNetDenoiser((1, 2, 3), (8,), inputs=2, **options),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", BASES)
def test_every_combination_comes_back_from_a_folder(kind, backbone, tmp_path):
    base = BASES[kind]()
    told = {"experts": 2} if getattr(base, "experts", 0) else {}
    gates = kind in ("law", "head/tail", "told")
    K = base.subspaces if kind in ("law", "head/tail") else 2
    network = ResidualDenoiser(base, moved(BACKBONES[backbone](**told, gates=K * gates)), gates=gates).eval()
    x, expert = a_law().sample(40).x, torch.arange(40) % 2
    network.measure_(x, expert if told else None)
    network.save_pretrained(tmp_path)
    again = molrmog.load(tmp_path)
    given = (expert,) if told else ()
    assert torch.equal(network.denoise(x, 0.8, 0.6, *given), again.denoise(x, 0.8, 0.6, *given))
    assert again.num_parameters == network.num_parameters
    learned, before = ([n for n, p in each.base.named_parameters() if p.requires_grad] for each in (again, network))
    assert learned == before
    assert bool(learned) == (kind == "along")


@pytest.mark.parametrize("kind", ["by expert", "along"])
def test_training_moves_the_base_only_where_it_is_learned(kind):
    base = BASES[kind]()
    network = ResidualDenoiser(base, MLPDenoiser(6, width=8, inputs=2, experts=2))
    x, expert = a_law(seed=5).sample(200).x, torch.arange(200) % 2
    before = {name: value.clone() for name, value in base.state_dict().items()}
    network.measure_(x, expert)
    molrmog.train(network, x, molrmog.VPSchedule(), steps=5, experts=expert, device="cpu", learning_rate=0.01)
    moving = {name for name, value in base.state_dict().items() if not torch.equal(value, before[name])}
    expected = {f"denoisers.{k}.law.{part}" for k in range(2) for part in ("mean", "basis")}
    assert moving == (expected if kind == "along" else set())
    for part in base.networks:  # and bases are retracted
        for k, d in enumerate(part.law.latent_dims):
            A = part.law.basis[:, k, :d]
            torch.testing.assert_close(A.T @ A, torch.eye(d), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ResidualDenoiser(a_law(), MLPDenoiser(6, inputs=2), gates=True),
            "gates=0: build it with gates=2",
        ),
        (lambda: ResidualDenoiser(a_law(), MLPDenoiser(6, inputs=2, gates=2)), "gates=2: build it with gates=0"),
        (
            lambda: ResidualDenoiser(BASES["by expert"](), MLPDenoiser(6, inputs=2, gates=2), gates=True),
            "a PerExpert weighs no subspaces",
        ),
        (lambda: MLPDenoiser(6, gates=2).denoise(torch.zeros(1, 6), 1.0, 0.1), "2 gates: put it into a Residual"),
        (lambda: MLPDenoiser(6, gates=-1), "gates = -1"),
        (lambda: ResidualDenoiser(a_law(), MLPDenoiser(6)), "inputs=1: build it with inputs=2"),
        (lambda: ResidualDenoiser(a_law(), MLPDenoiser(6, inputs=2), as_input=False), "build it with inputs=1"),
        (lambda: ResidualDenoiser(a_law(), MLPDenoiser(5, inputs=2)), r"over R\^5 on a base over R\^6"),
        (lambda: ResidualDenoiser(a_law(), MLPDenoiser(6, inputs=2), sigma_data=0.0), "sigma_data = 0.0"),
        (lambda: MLPDenoiser(6, inputs=2).denoise(torch.zeros(1, 6), 1.0, 0.1), "put it into a ResidualDenoiser"),
        (
            lambda: ResidualDenoiser(a_law(), MLPDenoiser(6, inputs=2)).denoise(torch.zeros(1, 6), 1.0, 0.1, 0),
            "pass none",
        ),
    ],
)
def test_a_bad_request_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_is_linear_in_log_sigma_and_constant_beyond_its_ends():
    table = LevelTable(2)
    grid = log_sigma_grid()
    table.values[:, 0], table.values[:, 1] = grid, -2 * grid
    log_sigma = torch.tensor([-3.3, 0.17, 4.0])
    s = torch.tensor([0.5, 2.0, 1.0])
    found = table(s, s * log_sigma.exp())
    torch.testing.assert_close(found, torch.stack([log_sigma, -2 * log_sigma], 1), rtol=1e-5, atol=1e-5)
    ends = table(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))[:, 0]
    torch.testing.assert_close(ends, torch.tensor([math.log(1e-3), math.log(1e2), math.log(1e2)]))
    found = table(torch.tensor([math.nan, 1.0]), torch.tensor([1.0, 1.0]))
    assert found.isnan().all(1).tolist() == [True, False]
