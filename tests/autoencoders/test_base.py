"""Standardisation and saving: what every autoencoder must do."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from molrmog.autoencoders import (
    MLPVAE,
    Autoencoder,
    ConvVAE,
    LinearAutoencoder,
    build_autoencoder,
    load_autoencoder,
)

EVERY = {
    "linear": lambda: LinearAutoencoder.from_pca(torch.randn(20, 48) @ torch.randn(48, 48), 5, (3, 4, 4)),
    "mlp": lambda: MLPVAE((3, 4, 4), latent_dim=5, widths=(16, 8)),
    "conv": lambda: ConvVAE((3, 4, 4), latent_dim=5, channels=(8, 8)),
    "conv, image-shaped": lambda: ConvVAE((3, 4, 4), latent_shape=(2, 2, 2), channels=(8,)),
}


class Identity(Autoencoder):
    """Raw latents are the rows."""

    def __init__(self, dim: int) -> None:
        super().__init__((dim,), (dim,))
        self.rows = []

    @property
    def config(self):
        return {}

    def encode_raw(self, x):
        self.rows.append(len(x))
        return x

    def decode_raw(self, z):
        return z


@pytest.fixture(params=EVERY)
def autoencoder(request):
    return EVERY[request.param]()


@pytest.mark.parametrize("kind", [torch.tensor, np.asarray])
def test_one_scale_and_a_mean_for_each_coordinate(kind):
    x = np.random.default_rng(0).normal(1e3, [1e-3, 1.0, 5.0], (1000, 3)).astype(np.float32)
    autoencoder = Identity(3)
    assert autoencoder.standardise_(kind(x), chunk=64) is autoencoder
    assert max(autoencoder.rows) == 64
    exact = x.astype(np.float64)
    torch.testing.assert_close(autoencoder.latent_mean, torch.tensor(exact.mean(0)).float())
    torch.testing.assert_close(float(autoencoder.latent_scale), float(np.sqrt(exact.var(0).mean())), rtol=1e-6, atol=0)
    z = autoencoder.encode_data(kind(x))
    torch.testing.assert_close(z.var(0, correction=0).mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    # The ratios between coordinates stay as they were: the first is not blown up.
    torch.testing.assert_close(z[:, 1].std() / z[:, 2].std(), torch.tensor(x[:, 1].std() / x[:, 2].std()))


def test_standardising_moves_latents_and_not_reconstructions(autoencoder):
    x = torch.randn(30, autoencoder.dim)
    before = autoencoder.decode(autoencoder.encode(x))
    autoencoder.standardise_(x)
    z = autoencoder.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(autoencoder.latent_dim), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.var(0, correction=0).mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(autoencoder.decode(z), before, rtol=1e-4, atol=1e-4)
    autoencoder.standardise_(x)  # a second time changes nothing: it looks at raw latents
    torch.testing.assert_close(autoencoder.encode(x), z)


def test_rows_do_not_see_each_other_and_shapes_are_rows(autoencoder):
    x = torch.randn(7, 48)
    z = autoencoder.encode(x)
    assert z.shape == (7, autoencoder.latent_dim)
    assert autoencoder.decode(z).shape == x.shape
    torch.testing.assert_close(autoencoder.encode(x[3:4]), z[3:4])
    torch.testing.assert_close(autoencoder.encode_data(x, chunk=2), z)
    torch.testing.assert_close(autoencoder.decode(z[3:4]), autoencoder.decode(z)[3:4])


def test_saved_and_loaded_is_the_same(autoencoder, tmp_path):
    x = torch.randn(30, 48)
    autoencoder.standardise_(x)
    folder = autoencoder.save_pretrained(tmp_path / "model")
    for read in (load_autoencoder, type(autoencoder).from_pretrained):
        again = read(folder)
        assert type(again) is type(autoencoder)
        assert again.config == autoencoder.config == json.loads((folder / "config.json").read_text())
        assert torch.equal(again.encode(x), autoencoder.encode(x))
        assert torch.equal(again.decode(again.encode(x)), autoencoder.decode(autoencoder.encode(x)))
        assert not any(parameter.requires_grad for parameter in again.parameters())
        assert not again.training


def test_several_in_one_state_dict(autoencoder):
    """A model of models: configurations nest, weights come through load_state_dict."""
    both = nn.ModuleList([autoencoder, EVERY["mlp"]()])
    again = nn.ModuleList(build_autoencoder(json.loads(json.dumps(each.config))) for each in both)
    again.load_state_dict(both.state_dict())
    x = torch.randn(4, 48)
    for one, other in zip(both, again, strict=True):
        assert torch.equal(one.encode(x), other.encode(x))


def test_a_model_of_another_kind_gets_one_line(tmp_path):
    folder = MLPVAE((4,), 2, (8,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds MLPVAE, not ConvVAE: read it with molrmog\.load"):
        ConvVAE.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"names the autoencoder 'Spline': there are LinearAutoencoder, "):
        build_autoencoder({"autoencoder": "Spline"})
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="corrupt"):
        load_autoencoder(folder)


def test_tensors_that_do_not_fit_get_one_line(tmp_path):
    from molrmog.saving import save_model

    autoencoder = MLPVAE((4,), 2, (8,))
    for config in ({**autoencoder.config, "latent_dim": 3}, {"autoencoder": "MLPVAE"}):
        save_model(tmp_path, config, autoencoder.state_dict())
        with pytest.raises(ValueError, match="do not fit its configuration") as error:
            load_autoencoder(tmp_path)
        assert "\n" not in str(error.value)
    save_model(tmp_path, {"law": "MoLRMoG"}, {})
    with pytest.raises(ValueError, match="is that of the law MoLRMoG, and of no autoencoder"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(5, 3), "same latents"),
        (torch.full((5, 3), torch.nan), "NaN or infinite"),
        (torch.zeros(0, 3), r"pass at least one row, \(N, 3\)"),
        (torch.zeros(5, 2), r"pass at least one row, \(N, 3\)"),
    ],
)
def test_rows_that_cannot_standardise(x, match):
    with pytest.raises(ValueError, match=match):
        Identity(3).standardise_(x)


def test_shapes_that_are_empty():
    for shape, latent_dim in (((), 2), ((0,), 2), ((4,), 0)):
        with pytest.raises(ValueError, match="give positive sizes"):
            MLPVAE(shape, latent_dim)
