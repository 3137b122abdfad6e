"""What every score network keeps, whatever it is made of: one suite for all."""

import copy
import json

import pytest
import torch

import molrmog
from molrmog import GaussianDenoiser, MLPDenoiser, MoGDenoiser, MoLRMoG, PerExpert, UNetDenoiser, VPSchedule
from molrmog.autoencoders import MLPVAE
from molrmog.denoisers.base import given
from molrmog.denoisers.saved import load_denoiser
from oracles.laws import ragged_law


def ragged_mog(**options):
    return MoGDenoiser(ragged_law(1, dim=6, taus=(0.3, 0.1, 0.2), dtype=torch.float32), **options)


def molrg(**options):
    return GaussianDenoiser(MoLRMoG.random(6, (2, 3), (1, 1), noise=0.2, seed=3), **options)


MAKERS = {
    "mog": ragged_mog,
    "mog, orthonormal": lambda: ragged_mog(learn=("mean", "factor"), orthonormal_factors=True),
    "gaussian": molrg,
    "gaussian with means": lambda: molrg(learned_mean=True),
    "mlp": lambda: MLPDenoiser(6, width=16, depth=2),
    "mlp of experts": lambda: MLPDenoiser(6, width=16, depth=1, experts=3, sigma_data=0.7),
    "unet": lambda: UNetDenoiser((1, 2, 3), channels=(8, 16), sigma_data=0.5),
    "unet of experts": lambda: UNetDenoiser((1, 2, 3), channels=(8,), attention=False, experts=3),
    "per expert": lambda: PerExpert([MLPDenoiser(6, width=8, depth=1), ragged_mog(), molrg()]),
}
NEURAL = ("mlp", "mlp of experts", "unet", "unet of experts")


def expert_of(name, rows):
    return {"expert": torch.arange(rows) % 3} if "expert" in name else {}


@pytest.fixture(params=MAKERS)
def made(request):
    """A network whose every parameter has been moved, and the expert of four rows where it takes one."""
    network = MAKERS[request.param]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in network.modules():
            if hasattr(module, "retract_"):
                module.retract_()
    return network, expert_of(request.param, 4)


def rows():
    return torch.randn(4, 6), torch.tensor([1.0, 0.6, 0.0, 1.3]), torch.tensor([0.3, 0.8, 1.0, 2.0])


@torch.no_grad()
def test_rows_do_not_see_each_other(made):
    network, expert = made
    x, s, gamma = rows()
    whole = network.denoise(x, s, gamma, **expert)
    assert whole.shape == x.shape
    assert whole.isfinite().all()
    for i in range(4):
        own = {"expert": int(expert["expert"][i])} if expert else {}
        alone = network.denoise(x[i : i + 1], float(s[i]), float(gamma[i]), **own)
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_every_learned_parameter_has_a_finite_gradient(made):
    network, expert = made
    x, s, gamma = rows()
    network.denoise(x, s, gamma, **expert).square().sum().backward()
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert learned
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learned)


def test_a_saved_network_is_the_same(made, tmp_path):
    network, expert = made
    x, s, gamma = rows()
    network.save_pretrained(tmp_path)
    for loaded in (molrmog.load(tmp_path), load_denoiser(tmp_path), type(network).from_pretrained(tmp_path)):
        assert type(loaded) is type(network)
        assert json.dumps(loaded.config) == json.dumps(network.config)
        assert loaded.num_parameters == network.num_parameters
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in network.parameters()]
        torch.testing.assert_close(loaded.denoise(x, s, gamma, **expert), network.denoise(x, s, gamma, **expert))


def test_a_float64_network_is_saved_as_one(tmp_path):
    network = MoGDenoiser(ragged_law(1))
    network.save_pretrained(tmp_path)
    assert torch.equal(molrmog.load(tmp_path).law.mean, network.law.mean)


def test_a_copy_is_independent(made):
    network, expert = made
    x, s, gamma = rows()
    before = network.denoise(x, s, gamma, **expert).detach()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(network.denoise(x, s, gamma, **expert).detach(), before)


@torch.no_grad()
def test_samplers_walk_with_a_network(made):
    network, expert = made
    walker = given(network, expert["expert"]) if expert else network
    x = molrmog.sample(walker, VPSchedule(), (4, 6), steps=2, generator=torch.Generator().manual_seed(0))
    assert x.isfinite().all()


@torch.no_grad()
def test_a_given_expert_is_that_expert():
    network = MAKERS["per expert"]()
    x, s, gamma = rows()
    for k in range(3):
        bound = given(network, k)
        assert bound.dim == network.dim
        assert list(bound.parameters()) == list(network.parameters())
        torch.testing.assert_close(bound.denoise(x, s, gamma), network.denoise(x, s, gamma, expert=k))


@pytest.mark.parametrize("name", [name for name in MAKERS if "expert" in name])
def test_an_unknown_expert_is_refused(name):
    network = MAKERS[name]()
    x = torch.zeros(4, 6)
    for wrong in (3, -1, torch.tensor([0, 1, 2, 3])):
        with pytest.raises(ValueError, match="experts 0 to 2"):
            network.denoise(x, 1.0, 0.5, expert=wrong)
    for wrong in (torch.tensor([0, 1]), torch.zeros(4)):
        with pytest.raises(ValueError, match="pass an index or one per row"):
            network.denoise(x, 1.0, 0.5, expert=wrong)
    with pytest.raises(ValueError, match="pass expert=k"):
        network.denoise(x, 1.0, 0.5)


@pytest.mark.parametrize("name", NEURAL)
def test_wrong_rows_are_refused(name):
    network = MAKERS[name]()
    with pytest.raises(ValueError, match=r"pass rows with shape \(B, 6\)"):
        network.denoise(torch.zeros(4, 5), 1.0, 0.5, **expert_of(name, 4))
    with pytest.raises(ValueError, match="a number or one per row"):
        network.denoise(torch.zeros(4, 6), torch.ones(3), 0.5, **expert_of(name, 4))


def test_a_network_without_experts_is_told_none():
    with pytest.raises(ValueError, match="experts=K"):
        MLPDenoiser(6, width=8).denoise(torch.zeros(1, 6), 1.0, 0.5, expert=0)


def test_another_kind_is_refused(tmp_path):
    MLPDenoiser(6, width=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds MLPDenoiser, not UNetDenoiser: read it with molrmog"):
        UNetDenoiser.from_pretrained(tmp_path)
    MLPVAE((4,), 2, (8,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is that of the autoencoder MLPVAE, and of no denoiser"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    "config", [{"denoiser": "os.system"}, {"denoiser": "PerExpert", "denoisers": [{"denoiser": "builtins.eval"}]}]
)
def test_a_file_cannot_name_any_other_class(tmp_path, config):
    molrmog.saving.save_model(tmp_path, config, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="names the denoiser"):
        molrmog.load(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    config = MLPDenoiser(6, width=8).config
    molrmog.saving.save_model(tmp_path, config, MLPDenoiser(6, width=10).state_dict())
    with pytest.raises(ValueError, match="do not fit its configuration"):
        molrmog.load(tmp_path)


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 7, 7), (1, 9, 6), (3, 8, 8)])
def test_a_unet_takes_any_size(shape):
    network = UNetDenoiser(shape, channels=(8, 8, 16))
    x = torch.randn(2, network.dim)
    out = network(x, torch.zeros(2), None)
    assert out.shape == x.shape
    assert not out.any()  # zero at first
    with torch.no_grad():
        network.unet.conv_out.weight.normal_()
    (gradient,) = torch.autograd.grad(network(x.requires_grad_(), torch.zeros(2), None).square().sum(), x)
    assert (gradient != 0).all()  # every pixel is seen


@pytest.mark.parametrize("channels", [(8,), (8, 16), (32, 64), (24, 48, 64)])
def test_every_block_of_a_unet_hears_the_noise_level(channels):
    unet = UNetDenoiser((1, 8, 8), channels=channels, attention=False).unet
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        resnet = block.resnets[0]
        x = torch.randn(2, resnet.in_channels, 8, 8)
        loud = torch.randn(2, unet.time_embedding.linear_2.out_features)
        silent = resnet(x, torch.zeros_like(loud))
        assert (resnet(x, loud) - silent).norm() > 1e-3 * silent.norm()


def test_a_unet_from_before_groups_were_kept_has_those_it_had():
    config = UNetDenoiser((1, 4, 4), channels=(8,)).config
    assert config["groups"] == 2
    assert UNetDenoiser.from_config({k: v for k, v in config.items() if k != "groups"}).groups == 8


def test_a_network_keeps_the_dtype_of_its_rows():
    for network in (MAKERS["mlp"](), MAKERS["unet"]()):
        x = torch.randn(3, 6)
        assert network.denoise(x.double(), 1.0, 0.5).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network.denoise(x, 1.0, 0.5).dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNetDenoiser((16,)), "for flat rows use MLPDenoiser"),
        (lambda: UNetDenoiser((1, 4, 4), channels=(4,)), "multiple of 8"),
        (lambda: UNetDenoiser((1, 4, 4), channels=()), "at least one"),
        (lambda: MLPDenoiser(4, width=7), "even width"),
        (lambda: MLPDenoiser(4, sigma_data=0.0), "sigma_data"),
        (lambda: MLPDenoiser(4, experts=-1), "experts"),
        (lambda: PerExpert([]), "at least one"),
        (lambda: PerExpert([MLPDenoiser(4, width=8), MLPDenoiser(5, width=8)]), "of one dimension"),
    ],
)
def test_networks_that_cannot_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
