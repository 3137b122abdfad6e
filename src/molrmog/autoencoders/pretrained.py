"""Autoencoders that somebody else has trained, for images whose own data set is too small to train one.

Rows are images in [-1, 1], as `molrmog.load_data` gives them, and the model is frozen. Latents come out image-shaped,
(c, H/8, W/8) for the usual models, and are standardised like all others: scaling factors of the model's own are not
used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.autoencoders.base import Autoencoder
from molrmog.checks import check_settings
from molrmog.weights import load_weights, weights_file

DIFFUSERS_MODELS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes of diffusers that :class:`PretrainedAutoencoder` can hold."""


class PretrainedAutoencoder(Autoencoder):
    """An AutoencoderKL or AutoencoderTiny of diffusers; `encode` takes the mean where the encoder is stochastic.

    Attributes:
        model: the diffusers model.

    References:
        Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022, arXiv 2112.10752.
    """

    def __init__(self, shape: Sequence[int], model: str, settings: dict[str, Any]) -> None:
        """Allocate the model with fresh weights; :meth:`from_diffusers` reads trained ones.

        Args:
            shape: (C, H, W) of the images.
            model: name of the diffusers class.
            settings: its configuration.

        Raises:
            ValueError: there is no such class, or it does not take such images.
        """
        import diffusers

        if model not in DIFFUSERS_MODELS:
            raise ValueError(f"{model} is no autoencoder known here: choose from {', '.join(DIFFUSERS_MODELS)}")
        kind = getattr(diffusers, model)
        check_settings(kind, settings)
        with torch.device("meta"):  # shapes without computing
            probe = kind.from_config(settings)
        latent_shape, back = _shapes(probe, shape)
        super().__init__(shape, latent_shape)
        if back != self.shape:
            raise ValueError(f"{model} turns images {self.shape} into {back}: pass sides that its stages divide")
        self.model: nn.Module = kind.from_config(settings).requires_grad_(False).eval()
        self._settings = settings

    @property
    def config(self) -> dict[str, Any]:
        """What builds the autoencoder."""
        return {
            "autoencoder": "PretrainedAutoencoder",
            "shape": list(self.shape),
            "model": type(self.model).__name__,
            "settings": self._settings,
        }

    @classmethod
    def from_diffusers(cls, folder: str | Path, shape: Sequence[int]) -> Self:
        """Read a folder that diffusers has written.

        Args:
            folder: holds config.json and diffusion_pytorch_model.safetensors.
            shape: (C, H, W) of the images.

        Raises:
            FileNotFoundError: there is no such model in the folder.
            ValueError: it is another kind of model, is corrupt, or does not take such images.
        """
        import diffusers

        source = Path(folder) / "config.json"
        if not source.is_file():
            raise FileNotFoundError(f"no diffusers model in {folder}: config.json is missing")
        try:
            config = json.loads(source.read_bytes())
            name = config["_class_name"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{source} names no class of diffusers: pass the folder of an autoencoder") from None
        if name not in DIFFUSERS_MODELS:
            raise ValueError(f"{folder} holds {name}: pass the folder of {' or '.join(DIFFUSERS_MODELS)}")
        try:
            trained = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except Exception as error:  # diffusers and safetensors have many of their own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the {name} in {folder} cannot be read ({reason}): save it as safetensors") from None
        settings = {key: value for key, value in trained.config.items() if not key.startswith("_")}
        autoencoder = cls(shape, name, json.loads(json.dumps(settings)))
        autoencoder.model.load_state_dict(trained.state_dict())
        return autoencoder

    def encode_raw(self, x: Tensor) -> Tensor:
        """Latents with shape (B, d) as the model gives them."""
        return _encode(self.model, x.reshape(-1, *self.shape)).flatten(1)

    def decode_raw(self, z: Tensor) -> Tensor:
        """Rows with shape (B, D)."""
        return _decode(self.model, z.reshape(-1, *self.latent_shape)).flatten(1)


class TAEF2(Autoencoder):
    """The tiny autoencoder for the latent space of FLUX.2: 32 channels at an eighth of the resolution.

    Two stacks of 3 x 3 convolutions of 64 channels, 2.7 million numbers; 3 tanh(z / 3) bounds what is decoded.

    Attributes:
        encoder: images (B, 3, H, W) in [0, 1] to latents (B, 32, H/8, W/8).
        decoder: back.

    References:
        O. Bohan, TAESD, https://github.com/madebyollin/taesd, `taef2_encoder` and `taef2_decoder`, MIT licence.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        """Allocate the autoencoder with fresh weights; :meth:`from_weights` reads trained ones.

        Args:
            shape: (3, H, W), H and W multiples of 8.

        Raises:
            ValueError: there is no such shape.
        """
        if len(shape) != 3 or shape[0] != 3 or shape[1] % 8 or shape[2] % 8:
            raise ValueError(f"shape = {tuple(shape)}: TAEF2 takes colour images (3, H, W), sides multiples of 8")
        super().__init__(shape, (32, shape[1] // 8, shape[2] // 8))
        self.encoder = nn.Sequential(
            _convolution(3),
            _Block(),
            *_stage(_half()),
            *_stage(_half()),
            *_stage(_half(), pool=True),
            nn.Conv2d(64, 32, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            _Squash(),
            _convolution(32),
            nn.ReLU(),
            *_stage(pool=True),
            *_twice(),
            *_stage(),
            *_twice(),
            *_stage(),
            *_twice(),
            _Block(),
            nn.Conv2d(64, 3, 3, padding=1),
        )
        self.requires_grad_(False)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the autoencoder."""
        return {"autoencoder": "TAEF2", "shape": list(self.shape)}

    @classmethod
    def from_weights(
        cls, shape: Sequence[int], encoder: str | Path | None = None, decoder: str | Path | None = None
    ) -> Self:
        """Read trained weights.

        Args:
            shape: (3, H, W), H and W multiples of 8.
            encoder: taef2_encoder.safetensors; $MOLRMOG_WEIGHTS_DIR/taef2/taef2_encoder.safetensors where not given.
            decoder: taef2_decoder.safetensors; likewise.

        Returns:
            The autoencoder, in float32 whatever the files hold.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file is corrupt or holds other weights, or there is no such shape.
        """
        autoencoder = cls(shape)
        for name, module, path in (
            ("encoder", autoencoder.encoder, encoder),
            ("decoder", autoencoder.decoder, decoder),
        ):
            found = weights_file(f"taef2/taef2_{name}.safetensors", path)
            load_weights(module, found, f"the {name} of TAEF2")
        return autoencoder.eval()

    def encode_raw(self, x: Tensor) -> Tensor:
        """Latents with shape (B, d), of standard deviation about 0.8."""
        return self.encoder((x.reshape(-1, *self.shape) + 1) / 2).flatten(1)

    def decode_raw(self, z: Tensor) -> Tensor:
        """Rows with shape (B, D), about [-1, 1]."""
        return (2 * self.decoder(z.reshape(-1, *self.latent_shape)) - 1).flatten(1)


def _encode(model: Any, images: Tensor) -> Tensor:
    encoded = model.encode(images)
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean


def _decode(model: Any, latents: Tensor) -> Tensor:
    return model.decode(latents).sample


def _shapes(model: Any, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the latents of images of this shape, and of what is decoded from them; on the meta device."""
    try:
        with torch.no_grad():
            latents = _encode(model, torch.zeros(1, *shape, device="meta"))
            return tuple(latents.shape[1:]), tuple(_decode(model, latents).shape[1:])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{type(model).__name__} does not take images {tuple(shape)} ({reason})") from None


# The layers of TAEF2 stand at the indices that its files name.


class _Block(nn.Module):
    """ReLU(x + three convolutions), after a branch that looks at the whole image where `pool` is set."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_convolution(), nn.ReLU(), _convolution(), nn.ReLU(), _convolution())
        self.pool = (
            nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)
            )
            if pool
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return (x + self.conv(x)).relu()


class _Squash(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 3 * (z / 3).tanh()


def _convolution(channels: int = 64) -> nn.Conv2d:
    return nn.Conv2d(channels, 64, 3, padding=1)


def _half() -> nn.Conv2d:
    return nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)


def _twice() -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]


def _stage(*first: nn.Module, pool: bool = False) -> list[nn.Module]:
    return [*first, *(_Block(pool) for _ in range(3))]
