"""A model that comes back from a folder lies in memory as the one that was saved: so it answers bit for bit alike.

A product of matrices is added up in an order that depends on strides, and on where a tensor begins; torch's own tensors
are contiguous and begin at a multiple of 64 bytes.
"""

import pytest
import torch

import molrmog
from molrmog import (
    BlendDenoiser,
    CentredDenoiser,
    ConditionalLaw,
    Experts,
    GaussianDenoiser,
    GuidedDenoiser,
    MLPDenoiser,
    MoGDenoiser,
    MoLRMoG,
    PatchDenoiser,
    PerExpert,
    ResidualDenoiser,
    UNetDenoiser,
)
from molrmog.autoencoders import MLPVAE, TAEF2, ConvVAE, LinearAutoencoder, LoRAExperts, load_autoencoder
from oracles.laws import head_tail_law, ragged_law

SHAPE = (1, 2, 3)


def a_law(dim=6, **options):
    return MoLRMoG.random(dim, (2, 3), (2, 1), rank=1, noise=0.2, seed=0, **options).requires_grad_(False)


def fitted(**options):
    return molrmog.fit(
        a_law().sample(200).x, subspaces=2, latent_dim=2, modes=2, max_iter=3, **{"noise": "isotropic"} | options
    )


def pca(shape=(6,)):
    return LinearAutoencoder.from_pca(torch.randn(20, 6), 2, shape)


def lora():
    pytest.importorskip("peft")
    return LoRAExperts(MLPVAE(SHAPE, 2, (8,)), 2, rank=1)


def experts(autoencoders, gate=None):
    latent = PerExpert([MoGDenoiser.from_moments(torch.ones(2), torch.eye(2), modes=2) for _ in range(2)])
    return Experts(autoencoders, latent, [0.5, 0.5], gate)


MODELS = {
    "law": ragged_law,
    "random law": a_law,
    "fitted law": fitted,
    "law put together": lambda: MoLRMoG.from_subspaces([ragged_law(1).subspace(k) for k in range(3)]),
    "head and tail": head_tail_law,
    "fitted head and tail": lambda: fitted(head=4),
    "mog": lambda: MoGDenoiser(ragged_law(1)),
    "mog from moments": lambda: MoGDenoiser.from_moments(torch.ones(6), torch.eye(6), modes=2),
    "gaussian": lambda: GaussianDenoiser(MoLRMoG.random(6, (2, 3), (1, 1), noise=0.2, seed=3)),
    "mlp": lambda: MLPDenoiser(6, width=8, experts=2),
    "unet": lambda: UNetDenoiser(SHAPE, (8,), experts=2),
    "per expert": lambda: PerExpert([MoGDenoiser(a_law()), MLPDenoiser(6, width=8)]),
    "residual": lambda: ResidualDenoiser(a_law(), MLPDenoiser(6, width=8, inputs=2)).measure_(a_law().sample(50).x),
    "residual on head and tail": lambda: ResidualDenoiser(
        head_tail_law(1, dtype=torch.float32).requires_grad_(False), MLPDenoiser(8, width=8, inputs=2, gates=3), gates=3
    ),
    "patches": lambda: PatchDenoiser(a_law(4), (1, 4, 4), 2),
    "blend": lambda: BlendDenoiser([a_law(), MLPDenoiser(6, width=8)]).fit_(a_law().sample(50).x),
    "centred": lambda: CentredDenoiser(MLPDenoiser(6, width=8), torch.randn(9, 6).mean(0)),
    "law told its subspace": lambda: ConditionalLaw(a_law()),
    "guided": lambda: GuidedDenoiser(ConditionalLaw(a_law()), 2.0),
    "experts": lambda: experts([pca(), pca()]),
    "experts and a gate": lambda: experts(pca(), a_law()),
    "experts and a gate with a tail": lambda: experts(
        [LinearAutoencoder.from_basis(torch.linalg.qr(torch.randn(8, 2)).Q, torch.zeros(8)) for _ in range(2)],
        molrmog.fit(a_law(8).sample(200).x, subspaces=2, latent_dim=2, modes=1, head=5, max_iter=3),
    ),
    "experts that share weights": lambda: experts(lora()),
}
AUTOENCODERS = {
    "linear": lambda: pca(SHAPE),
    "linear on a basis": lambda: LinearAutoencoder.from_basis(torch.linalg.qr(torch.randn(6, 2)).Q, torch.zeros(6)),
    "mlp": lambda: MLPVAE(SHAPE, 2, (8,)),
    "conv": lambda: ConvVAE((1, 4, 4), 2, channels=(8,)),
    "taef2": lambda: TAEF2((3, 8, 8)),
    "merged": lambda: lora()[1].merged(),
}


def check(model, again):
    """Every tensor of both is contiguous and begins where torch lets tensors begin."""
    again, model = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (again, model))
    assert again.keys() == model.keys()
    for name, tensor in model.items():
        for which, each in (("saved", tensor), ("read", again[name])):
            assert each.is_contiguous(), f"{name} of the model that was {which} has strides {each.stride()}"
            begin = each.data_ptr() % 64
            assert begin == 0, f"{name} of the model that was {which} begins {begin} bytes after a multiple of 64"
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_comes_back_lies_in_memory_as_it_did(kind, tmp_path):
    model = MODELS[kind]()
    check(model, molrmog.load(model.save_pretrained(tmp_path)))


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_an_autoencoder_that_comes_back_lies_in_memory_as_it_did(kind, tmp_path):
    model = AUTOENCODERS[kind]()
    check(model, load_autoencoder(model.save_pretrained(tmp_path)))


def test_autoencoders_that_share_weights_lie_in_memory_as_they_did(tmp_path):
    model = lora()
    check(model, LoRAExperts.from_pretrained(model.save_pretrained(tmp_path)))
