"""The kinds of models: each class is found, described, built again, read, and refuses in one line what it cannot do."""

import json

import pytest
import torch
from diffusers import UNet2DModel

import molrmog
from molrmog import registry
from molrmog.autoencoders import MLPVAE, TAEF2, ConvVAE, LinearAutoencoder, LoRAExperts, PretrainedAutoencoder
from molrmog.denoisers.base import Given, condition_on
from molrmog.models import Denoiser, Model
from oracles.laws import head_tail_law

DIM, SHAPE = 8, (1, 2, 4)


def a_law(**options):
    return molrmog.MoLRMoG.random(DIM, (2, 3), (2, 1), rank=1, noise=0.1, seed=0, **options).requires_grad_(False)


def mlp(dim=DIM, **options):
    return molrmog.MLPDenoiser(dim, width=8, depth=1, **options)


def diffusers_unet():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(4, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks)


LAWS = {
    "MoLRMoG": a_law,
    "HeadTail": lambda: head_tail_law(1, dim=DIM, tail=1, dtype=torch.float32).requires_grad_(False),
}
DENOISERS = {
    "MoGDenoiser": lambda: molrmog.MoGDenoiser(a_law(), learn="mean"),
    "GaussianDenoiser": lambda: molrmog.GaussianDenoiser(molrmog.MoLRMoG.random(DIM, (2, 3), (1, 1), noise=0.1)),
    "UNetDenoiser": lambda: molrmog.UNetDenoiser(SHAPE, (8,), attention=False, experts=3, unconditional=True),
    "MLPDenoiser": mlp,
    "PerExpert": lambda: molrmog.PerExpert([mlp(), molrmog.MoGDenoiser(a_law()), a_law()]),
    "Experts": lambda: molrmog.Experts(
        [LinearAutoencoder(SHAPE, 3)] * 2, molrmog.PerExpert([mlp(3), mlp(3)]), [1, 2], a_law()
    ),
    "PatchDenoiser": lambda: molrmog.PatchDenoiser(
        molrmog.MoLRMoG.random(4, (2,), (2,), noise=0.1).requires_grad_(False), SHAPE, 2, top=1
    ),
    "BlendDenoiser": lambda: molrmog.BlendDenoiser([a_law(), mlp()]),
    "ResidualDenoiser": lambda: molrmog.ResidualDenoiser(
        molrmog.ConditionalLaw(a_law()), mlp(inputs=2, gates=2), gates=True
    ),
    "CentredDenoiser": lambda: molrmog.CentredDenoiser(mlp(experts=2), torch.ones(DIM)),
    "ConditionalLaw": lambda: molrmog.ConditionalLaw(LAWS["HeadTail"]()),
    "GuidedDenoiser": lambda: molrmog.GuidedDenoiser(molrmog.ConditionalLaw(a_law()), 2.0, (0.1, 5.0)),
    "Given": lambda: condition_on(mlp(experts=3), torch.tensor([0, 2, 1])),
    "DiffusersDenoiser": lambda: molrmog.DiffusersDenoiser(
        diffusers_unet(), molrmog.DiscreteSchedule(), (1, 4, 4), clip=1.0
    ),
}
AUTOENCODERS = {
    "LinearAutoencoder": lambda: LinearAutoencoder(SHAPE, 3),
    "MLPVAE": lambda: MLPVAE((8,), 2, (8,)),
    "ConvVAE": lambda: ConvVAE((3, 4, 4), latent_dim=5, channels=(8,)),
    "LoRAExperts": lambda: LoRAExperts(MLPVAE((8,), 2, (8,)), 3, 2),
    "PretrainedAutoencoder": lambda: PretrainedAutoencoder(
        (3, 8, 8),
        "AutoencoderTiny",
        {
            "block_out_channels": [8, 8],
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
        },
    ),
    "TAEF2": lambda: TAEF2((3, 8, 8)),
}
MODELS = {
    (kind, name): make
    for kind, makers in (("law", LAWS), ("denoiser", DENOISERS), ("autoencoder", AUTOENCODERS))
    for name, make in makers.items()
}
NUM_EXPERTS = {"UNetDenoiser": 3, "PerExpert": 3, "Experts": 2, "ResidualDenoiser": 2, "CentredDenoiser": 2}
NUM_EXPERTS |= {"ConditionalLaw": 3, "GuidedDenoiser": 2}
NULL_EXPERT = {"UNetDenoiser", "ResidualDenoiser", "ConditionalLaw", "GuidedDenoiser"}
WITH_DENOISE = [key for key in MODELS if key[0] != "autoencoder"]


@pytest.fixture(params=MODELS, ids=lambda key: key[1])
def made(request):
    return *request.param, MODELS[request.param]().eval()


def test_the_suite_knows_every_class():
    for kind, makers in (("law", LAWS), ("denoiser", DENOISERS), ("autoencoder", AUTOENCODERS)):
        assert set(makers) == set(registry.KINDS[kind])


def test_a_class_is_found_and_is_of_its_kind(made):
    kind, name, model = made
    assert registry.find(name, kind) is type(model)
    assert getattr(molrmog, name) is type(model)
    assert isinstance(model, Model)
    assert type(model).kind == kind
    assert model.description[kind] == name


@pytest.mark.filterwarnings("ignore:.*were passed to:UserWarning")
def test_it_is_built_again_from_its_description(made):
    kind, _, model = made
    description = json.loads(json.dumps(model.description))
    for again in (registry.build(description), registry.build(description, kind)):
        assert type(again) is type(model)
        assert json.dumps(again.config) == json.dumps(model.config)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes


def test_it_comes_back_from_a_folder(made, tmp_path):
    kind, _, model = made
    model.save_pretrained(tmp_path)
    for again in (molrmog.load(tmp_path), registry.load(tmp_path, kind), type(model).from_pretrained(tmp_path)):
        assert type(again) is type(model)
        assert kind == "law" or not again.training
        assert again.num_parameters == model.num_parameters
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
        if kind != "denoiser":
            assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("key", WITH_DENOISE, ids=lambda key: key[1])
def test_a_denoiser_says_what_it_knows_and_refuses_what_it_does_not(key):
    _, name = key
    model = MODELS[key]().eval()
    assert isinstance(model, Denoiser)
    K = NUM_EXPERTS.get(name, 0)
    assert (model.num_experts, model.null_expert) == (K, name in NULL_EXPERT)
    assert (model.experts, model.unconditional) == (model.num_experts, model.null_expert)
    x = torch.randn(3, model.dim, generator=torch.Generator().manual_seed(0))
    named = {"expert": torch.arange(3) % K} if K else {}
    assert model.denoise(x, 0.8, 0.6, **named).shape == x.shape
    with pytest.raises(ValueError, match=f"experts 0 to {K - 1}" if K else "experts") as refused:
        model.denoise(x, 0.8, 0.6, expert=K)
    assert "\n" not in str(refused.value)


def test_a_network_of_diffusers_that_is_none_is_not_built():
    class Mine(torch.nn.Module):
        pass

    description = molrmog.DiffusersDenoiser(Mine(), molrmog.DiscreteSchedule(), SHAPE).description
    with pytest.raises(ValueError, match="the network is a Mine: build it"):
        registry.build(description)


def test_other_names_of_a_class():
    assert molrmog.LatentExperts is molrmog.Experts is registry.find("LatentExperts", "denoiser")
    assert molrmog.PerExpertDenoiser is molrmog.PerExpert
    assert registry.build({**DENOISERS["PerExpert"]().config, "denoiser": "PerExpertDenoiser"}).num_experts == 3


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: registry.find("Abacus", "denoiser"), "names the denoiser 'Abacus': there are MoGDenoiser, "),
        (lambda: registry.find(["x"], "sampler"), r"names the sampler \['x'\]: there are exact, euler"),
        (lambda: registry.find("MoLRMoG", "lawyer"), "unknown kind 'lawyer': choose one of law, denoiser, "),
        (lambda: registry.build({"law": "MLPDenoiser"}), "names the law 'MLPDenoiser': there are MoLRMoG, HeadTail"),
        (lambda: registry.build(mlp().config, "law"), "is that of the denoiser MLPDenoiser, and of no law"),
        (lambda: registry.build({"dim": 3}), "names no model"),
    ],
)
def test_what_there_is_not_gets_one_line(ask, message):
    with pytest.raises(ValueError, match=message) as error:
        ask()
    assert "\n" not in str(error.value)


def test_a_law_serves_as_a_denoiser(tmp_path):
    law = a_law()
    assert isinstance(registry.build(law.description, "denoiser"), molrmog.MoLRMoG)
    assert isinstance(registry.load(law.save_pretrained(tmp_path), "denoiser"), molrmog.MoLRMoG)


LAW = '"dim": 8, "latent_dims": [2, 3], "modes": [2, 1], "ranks": [[1, 1], [1]]'
MLP = '{"denoiser": "MLPDenoiser", "dim": 8, "width": 8, "depth": 1, "experts": 0, "dropout": 0.0, "sigma_data": 1.0, '
CONFIGS = {  # of old files, and of the digests in old runs
    ("law", "MoLRMoG"): f"{{{LAW}}}",
    ("denoiser", "MoGDenoiser"): f'{{"denoiser": "MoGDenoiser", "law": {{{LAW}}}, "learn": ["mean"], '
    '"orthonormal_factors": false}',
    ("denoiser", "MLPDenoiser"): MLP + '"inputs": 1}',
    ("denoiser", "UNetDenoiser"): '{"denoiser": "UNetDenoiser", "shape": [1, 2, 4], "channels": [8], "layers": 1, '
    '"attention": false, "dropout": 0.0, "experts": 3, "sigma_data": 1.0, "inputs": 1, "groups": 2, '
    '"unconditional": true}',
    ("denoiser", "BlendDenoiser"): f'{{"denoiser": "BlendDenoiser", "parts": [{{"law": "MoLRMoG", {LAW}}}, '
    f'{MLP}"inputs": 1}}]}}',
    ("denoiser", "GuidedDenoiser"): '{"denoiser": "GuidedDenoiser", "network": {"denoiser": "ConditionalLaw", '
    f'"law": {{"law": "MoLRMoG", {LAW}}}}}, "scale": 2.0, "interval": [0.1, 5.0]}}',
    ("denoiser", "ResidualDenoiser"): '{"denoiser": "ResidualDenoiser", "base": {"denoiser": "ConditionalLaw", '
    f'"law": {{"law": "MoLRMoG", {LAW}}}}}, "network": {MLP}"inputs": 2, "gates": 2}}, "as_input": true, '
    '"added": 1.0, "gates": true}',
    ("autoencoder", "LoRAExperts"): '{"autoencoder": "LoRAExperts", "shared": {"autoencoder": "MLPVAE", "shape": [8], '
    '"latent_dim": 2, "widths": [8], "bounded": false}, "experts": 3, "rank": 2, "alpha": 2.0}',
}


@pytest.mark.parametrize("key", CONFIGS, ids=lambda key: key[1])
def test_configurations_are_what_they_were(key):
    assert json.dumps(MODELS[key]().config) == CONFIGS[key]


def test_former_homes():
    from molrmog.autoencoders import build_autoencoder, build_autoencoders, load_autoencoder
    from molrmog.denoisers.base import NO_EXPERT, ExpertDenoiser, ScoreNetwork, given
    from molrmog.denoisers.saved import build_denoiser, build_law, config_of, load, load_denoiser

    assert load is molrmog.load
    assert ScoreNetwork is ExpertDenoiser is Denoiser
    assert (given, NO_EXPERT) == (condition_on, -1)
    assert isinstance(given(mlp(experts=2), 1), Given)
    assert config_of(a_law()) == a_law().description
    assert isinstance(build_law(config_of(a_law())), molrmog.MoLRMoG)
    assert isinstance(build_denoiser(mlp().config), molrmog.MLPDenoiser)
    assert all(map(callable, (load_denoiser, load_autoencoder, build_autoencoders, build_autoencoder)))


class OwnMLP(molrmog.MLPDenoiser):
    pass


def test_a_subclass_is_described_as_itself_and_never_read_as_its_parent(tmp_path):
    network = OwnMLP(4, width=8)
    assert network.description["denoiser"] == "OwnMLP"
    network.save_pretrained(tmp_path)
    assert torch.equal(OwnMLP.from_pretrained(tmp_path).enter.weight, network.enter.weight)
    with pytest.raises(ValueError, match="names the denoiser 'OwnMLP'"):
        molrmog.load(tmp_path)
