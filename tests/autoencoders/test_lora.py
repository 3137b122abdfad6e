"""Experts that share a backbone: what is shared stays as it was, what is an expert's own stays its own."""

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

from molrmog.autoencoders import (
    MLPVAE,
    ConvVAE,
    LinearAutoencoder,
    LoRAExperts,
    LoRALoss,
    VAELoss,
    build_autoencoders,
    load_autoencoder,
)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")

SHARED = {
    "mlp": lambda: MLPVAE((1, 5, 5), 3, (8,)),
    "conv": lambda: ConvVAE((1, 5, 5), 3, channels=(8, 8)),
    "conv, image-shaped": lambda: ConvVAE((1, 5, 5), latent_shape=(1, 3, 3), channels=(8,)),
}


@pytest.fixture(params=SHARED)
def shared(request):
    return SHARED[request.param]().standardise_(torch.randn(20, 25))


@pytest.fixture
def rows():
    return torch.randn(12, 25), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])


def scrambled(experts, *which):
    """Give adapters random weights, as training would."""
    with torch.no_grad():
        for k in which or range(len(experts)):
            for parameter in experts.adapter(k):
                parameter.normal_()
    return experts


def train(objective, *data, steps=3):
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(*data, *objective.draw(len(data[0]))).mean().backward()
        optimiser.step()


def test_untrained_adapters_are_the_shared_autoencoder(shared, rows):
    x, expert = rows
    before = {name: p.clone() for name, p in shared.state_dict().items()}
    experts = LoRAExperts(shared, 3, rank=2)
    for k in range(3):
        assert torch.equal(experts[k].encode(x), shared.encode(x))
        assert torch.equal(experts[k].decode(experts[k].encode(x)), shared.decode(shared.encode(x)))
    torch.testing.assert_close(experts.encode(x, expert), shared.encode(x))
    assert shared.state_dict().keys() == before.keys()  # a copy was adapted


def test_weights_are_the_shared_ones_and_a_low_rank_matrix(rows):
    """Against the formula, layer by layer, on a linear layer and by the merged model on all kinds."""
    vae = MLPVAE((25,), 3, (8,))
    expert = scrambled(LoRAExperts(vae, 2, rank=2, alpha=6.0))[1]
    W = dict(vae.named_modules())["encoder.1"].weight
    layer = expert.experts.shared.get_submodule("encoder.1")
    A, B = layer.lora_A["expert1"].weight, layer.lora_B["expert1"].weight
    assert A.shape[0] == B.shape[1] == 2
    torch.testing.assert_close(expert.merged().get_submodule("encoder.1").weight, W + 3.0 * B @ A)


def test_a_merged_expert_is_a_plain_autoencoder(shared, rows, tmp_path):
    experts = scrambled(LoRAExperts(shared, 3, rank=2))
    experts.standardise_(*rows)
    z = experts[1].encode(rows[0])
    for plain in (experts[1].merged(), load_autoencoder(experts[1].save_pretrained(tmp_path))):
        assert type(plain) is type(shared)
        assert plain.state_dict().keys() == shared.state_dict().keys()
        torch.testing.assert_close(plain.encode(rows[0]), z, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(plain.decode(z), experts[1].decode(z), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(z, experts[0].encode(rows[0]), atol=1e-2)


def test_rows_go_to_their_own_expert(shared, rows):
    x, expert = rows
    experts = scrambled(LoRAExperts(shared, 3, rank=1)).standardise_(x, expert)
    z = experts.encode(x, expert)
    back = experts.decode(z, expert)
    for k in range(3):
        own = expert == k
        torch.testing.assert_close(z[own], experts[k].encode(x[own]))
        torch.testing.assert_close(back[own], experts[k].decode(z[own]))
        torch.testing.assert_close(z[own].mean(0), torch.zeros(experts.latent_dim), rtol=0, atol=1e-4)
        torch.testing.assert_close(experts.encode(x[own], k), z[own])
    assert [each.latent_dim for each in experts] == [experts.latent_dim] * 3


def test_training_one_expert_leaves_the_backbone_and_the_others_bit_identical(shared, rows):
    experts = LoRAExperts(shared, 3, rank=2)
    before = {name: tensor.clone() for name, tensor in experts.state_dict().items()}
    own = {name for name, p in experts.named_parameters() if any(p is each for each in experts.adapter(1))}
    z = experts[0].encode(rows[0])
    experts[2].encode(rows[0])  # another adapter is active when training starts
    train(VAELoss(experts[1]), rows[0])
    after = experts.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= own
    assert any(not torch.equal(before[name], after[name]) for name in own)
    assert torch.equal(experts[0].encode(rows[0]), z)


def test_training_all_by_row_is_training_each_on_its_own_rows(shared, rows):
    x, expert = rows
    losses = LoRALoss(scrambled(LoRAExperts(shared, 3, rank=2)), beta=0.1)
    (eps,) = losses.draw(len(x), torch.Generator().manual_seed(0))
    by_row = losses(x, expert, eps)
    by_row.sum().backward()
    for k in range(3):
        own = expert == k
        alone = VAELoss(losses.experts[k], beta=0.1)(x[own], eps[own])
        torch.testing.assert_close(by_row[own], alone)
        gradients = torch.autograd.grad(alone.sum(), losses.experts.adapter(k))
        for ours, parameter in zip(gradients, losses.experts.adapter(k), strict=True):
            torch.testing.assert_close(parameter.grad, ours, rtol=1e-3, atol=1e-4)


def test_only_adapters_are_trained_and_all_have_gradients(shared, rows):
    experts = LoRAExperts(shared, 3, rank=2)
    trained = [p for p in experts.parameters() if p.requires_grad]
    adapters = [p for k in range(3) for p in experts.adapter(k)]
    assert {id(p) for p in trained} == {id(p) for p in adapters}
    objective = LoRALoss(experts)
    objective(rows[0], torch.ones(12, dtype=torch.long), *objective.draw(12)).mean().backward()
    assert all(p.grad is not None for p in trained)
    assert not any(bool(p.grad.any()) for k in (0, 2) for p in experts.adapter(k))
    assert {id(p) for p in experts.parameters() if p.requires_grad} == {id(p) for p in adapters}
    experts.requires_grad_(False)
    experts.encode(*rows)
    assert not any(p.requires_grad for p in experts.parameters())  # switching adapters does not wake them


def test_they_cost_one_backbone(shared):
    experts = LoRAExperts(shared, 3, rank=2)
    own = sum(p.numel() for p in experts.adapter(0))
    assert experts.num_parameters == shared.num_parameters + 3 * own
    assert experts[2].num_parameters == shared.num_parameters + own


def test_eleven_experts_are_told_apart():
    experts = LoRAExperts(MLPVAE((4,), 2, (8,)), 11, rank=1)
    adapters = [id(p) for k in range(11) for p in experts.adapter(k)]
    assert len(adapters) == len(set(adapters)) == sum(p.requires_grad for p in experts.parameters())


def test_a_copy_is_independent(shared, rows):
    """As an average of weights is kept: the copy has the same experts, and adapters of its own."""
    experts = scrambled(LoRAExperts(shared, 3, rank=2))
    again = copy.deepcopy(experts)
    assert torch.equal(again.encode(*rows), experts.encode(*rows))
    z = again[1].encode(rows[0])
    scrambled(experts, 1)
    assert torch.equal(again[1].encode(rows[0]), z)


def test_saved_and_loaded_are_the_same(shared, rows, tmp_path):
    experts = scrambled(LoRAExperts(shared, 3, rank=2, alpha=4.0)).standardise_(*rows)
    again = LoRAExperts.from_pretrained(experts.save_pretrained(tmp_path))
    assert again.config == experts.config
    assert torch.equal(again.encode(*rows), experts.encode(*rows))
    assert not any(p.requires_grad for p in again.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(ValueError, match=r"read it with LoRAExperts\.from_pretrained"):
        load_autoencoder(tmp_path)


def test_they_stand_where_a_list_of_autoencoders_would(shared, rows):
    """What a model of experts asks: len, indexing, and to be rebuilt from a configuration and a state dict."""
    x = rows[0]
    for model in (scrambled(LoRAExperts(shared, 2, rank=2)), nn.ModuleList([shared, SHARED["mlp"]()])):
        config = model.config if isinstance(model, LoRAExperts) else [each.config for each in model]
        again = build_autoencoders(config)
        again.load_state_dict(model.state_dict())
        assert len(again) == 2
        assert all(torch.equal(again[k].encode(x), model[k].encode(x)) for k in range(2))
    with pytest.raises(ValueError, match="pass a list of configurations"):
        build_autoencoders(shared.config)


def test_what_cannot_be_adapted_gets_one_line(rows, monkeypatch):
    vae = MLPVAE((25,), 3, (8,))
    experts = LoRAExperts(vae, 2, rank=1)
    for make, error, match in [
        (lambda: LoRAExperts(LinearAutoencoder((4,), 2), 2), ValueError, "no layers to adapt"),
        (lambda: LoRAExperts(vae, 0), ValueError, "pass 1 or more"),
        (lambda: LoRAExperts(vae, 2, rank=0), ValueError, "pass 1 or more"),
        (lambda: experts[2], IndexError, "there are 2"),
        (lambda: experts.encode(*rows), ValueError, "expert = 2: there are experts 0 to 1"),
    ]:
        with pytest.raises(error, match=match) as raised:
            make()
        assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'molrmog\[lora\]'"):
        LoRAExperts(vae, 2)
