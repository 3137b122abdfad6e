"""Who owns a row, and autoencoders by kind, against principal components, label arithmetic, and themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from molrmog import MoLRMoG, autoencoders as ae
from molrmog.data import load_parts
from molrmog.experiments.latents import (
    AutoencoderSettings,
    assign_experts,
    build_autoencoder,
    build_autoencoders,
    decode_all,
    encode_all,
)

TINY = AutoencoderSettings(latent_dim=4, steps=3, batch_size=16, channels=(8, 8), rank=2, seed=1)
SHAPE = (1, 8, 8)


class Stop(Exception):
    """What stops a training."""


@pytest.fixture(scope="module")
def digits():
    """Rows of the digits 0, 1 and 2, and which digit each is."""
    data, _ = load_parts("digits")
    mine = np.flatnonzero(data.labels < 3)[:90]
    return torch.from_numpy(np.asarray(data.x)[mine]), torch.from_numpy(data.labels[mine]).long()


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Who owns a row


def labelled(classes, each=20, dim=4):
    y = np.arange(classes).repeat(each)
    x = np.random.default_rng(0).standard_normal((len(y), dim)).astype(np.float32)
    return x, y


@pytest.mark.parametrize(
    ("experts", "owner"),
    [(6, [0, 1, 2, 3, 4, 5]), (3, [0, 0, 1, 1, 2, 2]), (2, [0, 0, 0, 1, 1, 1]), (1, [0] * 6), (4, [0, 0, 1, 2, 2, 3])],
)
def test_experts_by_label_own_neighbouring_classes(experts, owner):
    x, y = labelled(6)
    few = np.array([5, 0, 3])
    own, others = assign_experts(x, y, experts, others=(x[:3], few))
    assert own.dtype == others.dtype == torch.int64
    assert own.tolist() == [owner[c] for c in y]
    assert others.tolist() == [owner[c] for c in few]
    assert assign_experts(x, y, experts)[1] is None


def union(subspaces, rows, seed):
    """Rows on so many flats of R^12, half of its dimension each, and the flat of each row."""
    law = MoLRMoG.random(
        dim=12, latent_dims=(6,) * subspaces, modes=(2,) * subspaces, noise=0.02, separation=2.0, offset=3.0, seed=0
    )
    drawn = law.sample(rows, torch.Generator().manual_seed(seed))
    return drawn.x.numpy(), drawn.subspace.numpy()


def test_more_experts_than_classes_split_every_class_by_its_subspaces():
    (x, flat), (few, few_flat) = union(4, 800, seed=1), union(4, 50, seed=2)
    own, others = assign_experts(x, flat // 2, 4, others=(few, few_flat // 2))
    assert torch.equal(own // 2, torch.from_numpy(flat // 2))  # inside its class only
    owner = {k: own[flat == k].unique().tolist() for k in range(4)}
    assert sorted(owner.values()) == [[0], [1], [2], [3]]
    assert others.tolist() == [owner[k][0] for k in few_flat]


def test_clusters_are_the_subspaces_of_the_data():
    (x, flat), (few, few_flat) = union(3, 600, seed=1), union(3, 50, seed=2)
    own, others = assign_experts(x, None, 3, others=(few, None))
    owner = {k: own[flat == k].unique().tolist() for k in range(3)}
    assert sorted(owner.values()) == [[0], [1], [2]]
    assert others.tolist() == [owner[k][0] for k in few_flat]
    assert torch.equal(assign_experts(x, None, 3)[0], own)
    alone, rest = assign_experts(x, None, 1, others=(few, None))
    assert not alone.any()
    assert not rest.any()


def test_experts_that_do_not_fit_are_refused():
    x, y = labelled(4)
    with pytest.raises(ValueError, match="6 experts for 4 classes: pass a multiple of 4, or fewer"):
        assign_experts(x, y, 6)
    with pytest.raises(ValueError, match="expert 1 owns 1 rows and needs 2: pass fewer experts, or leave"):
        assign_experts(x[:21], y[:21], 2)


def test_classes_are_any_integers_in_their_order():
    x, y = labelled(3)
    names = np.array([-1, 5, 7])
    own, others = assign_experts(x, names[y], 3, others=(x[:2], np.array([7, -1])))
    assert torch.equal(own, torch.from_numpy(y))
    assert others.tolist() == [2, 0]
    assert assign_experts(x, names[y], 6)[0].max() == 5
    with pytest.raises(ValueError, match="class 6 has held-out rows but no training rows"):
        assign_experts(x, names[y], 3, others=(x[:2], np.array([6, -1])))


# Autoencoders


def test_linear_autoencoders_are_the_principal_components_of_each_expert(digits):
    x, expert = digits[0].double(), digits[1]
    model = build_autoencoders(x, expert, SHAPE, replace(TINY, kind="linear"))
    z = encode_all(model, x, expert)
    assert (len(model), z.dtype) == (3, torch.float64)
    found = decode_all(model, z, expert)
    for k in range(3):
        own = x[expert == k].numpy()
        centre = own.mean(0)
        axes = np.linalg.svd(own - centre, full_matrices=False)[2][:4]
        torch.testing.assert_close(found[expert == k].numpy(), centre + (own - centre) @ axes.T @ axes)


def test_latents_may_be_images(digits):
    x, expert = digits
    made = replace(TINY, latent_dim=(2, 2, 2))
    for kind, shape in (("vae", (2, 2, 2)), ("linear", (8,))):
        model = build_autoencoders(x, expert, SHAPE, replace(made, kind=kind))
        assert {each.latent_shape for each in model} == {shape}
        assert encode_all(model, x, expert).shape == (90, 8)
    with pytest.raises(ValueError, match=r"latent_shape = \(2, 4, 4\): 2 stages end at 2 x 2"):
        build_autoencoders(x, expert, SHAPE, replace(TINY, latent_dim=(2, 4, 4)))


def test_one_linear_autoencoder_is_kept(digits, tmp_path):
    x, expert = digits
    made = replace(TINY, kind="linear", latent_dim=(2, 2, 2))
    model = build_autoencoder(x, SHAPE, made, tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert_same(tensors(build_autoencoder(x, SHAPE, made, tmp_path)), tensors(model))
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="holds an autoencoder of other settings"):
        build_autoencoder(x[expert == 1], SHAPE, made, tmp_path)


def test_encode_and_decode_are_inverse_and_go_by_expert(digits):
    x, expert = digits
    model = build_autoencoders(x, expert, SHAPE, replace(TINY, kind="linear"))
    z = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))  # more than are decoded at a time
    chosen = torch.arange(1200) % 3
    decoded = decode_all(model, z, chosen)
    torch.testing.assert_close(encode_all(model, decoded, chosen), z, rtol=1e-4, atol=1e-4)
    for k in range(3):
        torch.testing.assert_close(decoded[chosen == k], model[k].decode(z[chosen == k]))
    with pytest.raises(ValueError, match="expert = 3: there are experts 0 to 2"):
        encode_all(model, x, expert + 1)
    with pytest.raises(ValueError, match="expert = 3: there are experts 0 to 2"):
        decode_all(model, z, chosen + 1)


@pytest.mark.slow
def test_every_kind_is_standardised_frozen_and_goes_on(digits, tmp_path):
    x, expert = digits
    folder = str(ae.MLPVAE(SHAPE, 4).save_pretrained(tmp_path / "pretrained"))
    for at, kind in enumerate(("linear", "vae", "shared", "lora", folder)):
        settings, out = replace(TINY, kind=kind), tmp_path / f"kept-{at}"
        told = []
        model = build_autoencoders(x, expert, SHAPE, settings, out, on_step=lambda *step, told=told: told.append(step))
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        z = encode_all(model, x, expert)
        single = kind in ("shared", folder)
        assert len(model) == (1 if single else 3)
        for mine in [expert >= 0] if single else [expert == k for k in range(3)]:
            torch.testing.assert_close(z[mine].mean(0), torch.zeros(4), rtol=0, atol=1e-4)
            torch.testing.assert_close(z[mine].var(0, correction=0).mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
        names = {"vae": ["VAE 0", "VAE 1", "VAE 2"], "shared": ["shared VAE"], "lora": ["shared VAE", "adapters"]}
        assert [step[:3] for step in told] == [(name, 3, 3) for name in names.get(kind, [])]

        # Again, and without a folder, from the start: the same, to the last bit.
        again = build_autoencoders(x, expert, SHAPE, settings, out, on_step=lambda *step: pytest.fail("trained again"))
        assert_same(tensors(again), tensors(model))
        assert_same(tensors(build_autoencoders(x, expert, SHAPE, settings)), tensors(model))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "last"), [("vae", "VAE 2"), ("lora", "adapters")])
def test_a_call_that_is_stopped_goes_on_where_it_stood(digits, tmp_path, kind, last):
    x, expert = digits
    settings = replace(TINY, kind=kind)
    expected = tensors(build_autoencoders(x, expert, SHAPE, settings))

    def stop(name, *_):
        if name == last:
            raise Stop

    with pytest.raises(Stop):
        build_autoencoders(x, expert, SHAPE, settings, tmp_path, on_step=stop)
    done = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors") if "checkpoints" not in path.parts
    }
    assert done
    assert_same(tensors(build_autoencoders(x, expert, SHAPE, settings, tmp_path)), expected)
    assert {path: path.stat().st_mtime_ns for path in done} == done

    # Killed between the end of training and the mark of being done.
    for mark in list(tmp_path.rglob("settings.json")):
        mark.unlink()
    names = []
    found = build_autoencoders(x, expert, SHAPE, settings, tmp_path, on_step=lambda name, *_: names.append(name))
    assert names == []
    assert_same(tensors(found), expected)


def test_a_folder_of_other_settings_is_refused(digits, tmp_path):
    x, _ = digits
    build_autoencoder(x, SHAPE, TINY, tmp_path)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert (kept["latent_dim"], kept["channels"]) == (4, [8, 8])
    with pytest.raises(ValueError, match=r"other settings \(beta, channels\): name another folder"):
        build_autoencoder(x, SHAPE, replace(TINY, beta=0.5, channels=(8, 16)), tmp_path)
    assert not list(tmp_path.glob(".*.part"))
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*: delete the folder .*, and run again"):
        build_autoencoder(x, SHAPE, TINY, tmp_path)


def test_rows_that_are_no_images_get_fully_connected_vaes(digits):
    x, _ = digits
    assert isinstance(build_autoencoder(x, (64,), TINY), ae.MLPVAE)
    image = build_autoencoder(x, SHAPE, TINY)
    assert (type(image), image.config["channels"]) == (ae.ConvVAE, [8, 8])


@pytest.mark.parametrize("kind", ["vae", "shared", "lora"])
def test_training_happens_where_it_is_told(digits, kind):
    with pytest.raises(RuntimeError, match="abacus"):
        build_autoencoders(*digits, SHAPE, replace(TINY, kind=kind), device="abacus")


def test_an_autoencoder_that_is_no_folder_is_refused(digits):
    with pytest.raises(ValueError, match="'abacus' is neither a folder nor one of linear, vae, shared, lora, taef2"):
        build_autoencoders(*digits, SHAPE, replace(TINY, kind="abacus"))


def test_steps_are_passes_over_the_rows():
    settings = AutoencoderSettings(passes=3, batch_size=50)
    assert [settings.steps_for(rows) for rows in (1, 100, 1000)] == [1, 6, 60]
    assert replace(settings, steps=7).steps_for(1000) == 7
