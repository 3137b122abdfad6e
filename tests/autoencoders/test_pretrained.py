"""Pretrained autoencoders: tiny models of diffusers written to a folder and read back, and TAEF2's two files."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from molrmog.autoencoders import TAEF2, PretrainedAutoencoder, load_autoencoder
from molrmog.weights import WEIGHTS_DIR


def tiny(kind):
    diffusers = pytest.importorskip("diffusers")
    if kind == "AutoencoderKL":
        return diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=2,
            norm_num_groups=4,
        )
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    )


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_folder_of_diffusers(kind, tmp_path):
    model = tiny(kind).eval()
    model.save_pretrained(tmp_path / "theirs")
    ours = PretrainedAutoencoder.from_diffusers(tmp_path / "theirs", (3, 16, 24))
    assert ours.latent_shape == (2, 8, 12)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        encoded = model.encode(images)
        latents = encoded.latents if kind == "AutoencoderTiny" else encoded.latent_dist.mode()
        assert torch.equal(ours.encode(images.flatten(1)), latents.flatten(1))
        torch.testing.assert_close(ours.decode(latents.flatten(1)), model.decode(latents).sample.flatten(1))

    ours.standardise_(images.flatten(1))
    again = load_autoencoder(ours.save_pretrained(tmp_path / "ours"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == again.config
    assert torch.equal(again.encode(images.flatten(1)), ours.encode(images.flatten(1)))
    assert torch.equal(again.decode(latents.flatten(1)), ours.decode(latents.flatten(1)))


def test_images_that_do_not_fit_get_one_line(tmp_path):
    tiny("AutoencoderTiny").save_pretrained(tmp_path)
    for shape, match in [((3, 15, 16), "sides that its stages divide"), ((1, 16, 16), "does not take images")]:
        with pytest.raises(ValueError, match=match) as error:
            PretrainedAutoencoder.from_diffusers(tmp_path, shape)
        assert "\n" not in str(error.value)


def test_folders_that_hold_something_else_get_one_line(tmp_path):
    shape = (3, 16, 16)
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        PretrainedAutoencoder.from_diffusers(tmp_path, shape)
    for text, match in [
        ("{", "names no class of diffusers"),
        ("[]", "names no class of diffusers"),
        ('{"_class_name": "UNet2DModel"}', "holds UNet2DModel: pass the folder of AutoencoderKL or AutoencoderTiny"),
        ('{"_class_name": "AutoencoderTiny"}', "cannot be read .*: save it as safetensors"),
    ]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=match) as error:
            PretrainedAutoencoder.from_diffusers(tmp_path, shape)
        assert "\n" not in str(error.value)
    torch.save(tiny("AutoencoderTiny").state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="save it as safetensors"):
        PretrainedAutoencoder.from_diffusers(tmp_path, shape)


@pytest.fixture
def files(tmp_path):
    """Random weights under the keys of the published files."""
    model = TAEF2((3, 16, 16))
    for name in ("encoder", "decoder"):
        tensors = getattr(model, name).half().state_dict()
        save_file(tensors, tmp_path / f"taef2_{name}.safetensors")
    return tmp_path


def test_keys_and_sizes_of_taef2():
    """As published: 1,338,528 and 1,338,499 numbers, indices in a sequential stack."""
    model = TAEF2((3, 224, 256))
    assert model.latent_shape == (32, 28, 32)
    assert sum(p.numel() for p in model.encoder.parameters()) == 1_338_528
    assert sum(p.numel() for p in model.decoder.parameters()) == 1_338_499
    encoder, decoder = model.encoder.state_dict(), model.decoder.state_dict()
    assert encoder["1.conv.0.weight"].shape == encoder["10.weight"].shape == (64, 64, 3, 3)
    assert encoder["11.pool.0.weight"].shape == decoder["5.pool.0.weight"].shape == (256, 64, 1, 1)
    assert encoder["14.bias"].shape == (32,)
    assert decoder["17.weight"].shape == (64, 64, 3, 3)
    assert decoder["19.bias"].shape == (3,)
    assert "10.bias" not in encoder
    assert "17.bias" not in decoder


def test_taef2_from_files(files, monkeypatch, tmp_path):
    by_path = TAEF2.from_weights((3, 16, 24), files / "taef2_encoder.safetensors", files / "taef2_decoder.safetensors")
    assert by_path.encoder[0].weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in by_path.parameters())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "taef2").symlink_to(files)
    monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path / "weights"))
    by_folder = TAEF2.from_weights((3, 16, 24))
    x = torch.rand(2, 3 * 16 * 24) * 2 - 1
    z = by_path.encode(x)
    assert z.shape == (2, 32 * 2 * 3)
    assert torch.equal(by_folder.encode(x), z)
    assert by_folder.decode(z).shape == x.shape
    torch.testing.assert_close(by_folder.decode(1e4 * z.sign()), by_folder.decode(1e5 * z.sign()))  # bounded latents

    again = load_autoencoder(by_folder.standardise_(x).save_pretrained(tmp_path / "model"))
    assert torch.equal(again.encode(x), by_folder.encode(x))
    assert torch.equal(again.decode(z), by_folder.decode(z))


def test_files_of_taef2_that_do_not_fit(files, monkeypatch):
    encoder, decoder = files / "taef2_encoder.safetensors", files / "taef2_decoder.safetensors"
    with pytest.raises(ValueError, match="does not hold the encoder of TAEF2"):
        TAEF2.from_weights((3, 16, 16), decoder, decoder)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        TAEF2.from_weights((3, 16, 16), encoder, files / "nowhere.safetensors")
    monkeypatch.delenv(WEIGHTS_DIR, raising=False)
    with pytest.raises(FileNotFoundError, match="set MOLRMOG_WEIGHTS_DIR"):
        TAEF2.from_weights((3, 16, 16))
    for shape in ((1, 16, 16), (3, 12, 16), (768,)):
        with pytest.raises(ValueError, match="sides multiples of 8"):
            TAEF2(shape)


@pytest.mark.skipif(not os.environ.get(WEIGHTS_DIR), reason=f"{WEIGHTS_DIR} is not set")
def test_trained_taef2_gives_images_back():
    """A smooth picture returns with more than 25 dB, which no wrong layer or range would allow."""
    model = TAEF2.from_weights((3, 64, 64))
    row, column = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    x = torch.stack([row, column, torch.cos(3 * row * column)]).reshape(1, -1) * 0.8
    error = ((model.decode(model.encode(x)).clamp(-1, 1) - x) / 2).square().mean()
    assert float(-10 * error.log10()) > 25
