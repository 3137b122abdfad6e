"""SqueezeNet 1.1 as a reader of rows that are pictures: its feature stack, and how a row becomes its input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from molrmog.data import Layout
from molrmog.weights import load_weights, weights_file

FEATURES = "lpips/squeezenet1_1_features.safetensors"
"""Place of the feature stack in the weights folder."""


class _Fire(nn.Module):
    """Squeeze by 1 x 1, expand by 1 x 1 and 3 x 3 side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def _feature_stack() -> nn.Sequential:
    """(B, 3, H, W) to (B, 512, about H/16, about W/16)."""

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        pool(),
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        pool(),
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        pool(),
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
        _Fire(384, 64, 256),
        _Fire(512, 64, 256),
    )


class SqueezeNet:
    """The feature stack, and its inputs from rows: what `SqueezeNetFeatures` and `LPIPS` share.

    Attributes:
        sides: "SIDE px", or "SIDE px enlarged to SIZE": the shorter side of the pictures that the network sees.
        chunk: pictures to look at together, so that their features stay near 300 MB.
    """

    sides: str
    chunk: int

    def __init__(self, layout: Layout, weights: str | Path | None, size: int, device: str | torch.device) -> None:
        if not layout.is_image:
            raise ValueError(f"{layout.name}: SqueezeNet needs images, got rows of shape {layout.shape}")
        if size < 17:
            raise ValueError(f"size must be at least 17 pixels, got {size}")
        network = _feature_stack()
        load_weights(network, weights_file(FEATURES, weights), "the feature stack of SqueezeNet 1.1")
        side = min(layout.shape[1:])
        self.sides = f"{side} px" if side >= size else f"{side} px enlarged to {size}"
        enlarge = max(1.0, size / side)
        self._scaled = [round(length * enlarge) for length in layout.shape[1:]]
        self.chunk = max(2, 2**20 // math.prod(self._scaled))
        self.layout = layout
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self._mean = torch.tensor([0.485, 0.456, 0.406], device=self.device).reshape(3, 1, 1)
        self._deviation = torch.tensor([0.229, 0.224, 0.225], device=self.device).reshape(3, 1, 1)

    def inputs(self, rows: np.ndarray) -> Tensor:
        """What the stack is given for rows with shape (B, D): standardised pictures with shape (B, 3, H, W)."""
        pictures = torch.from_numpy(self.layout.to_images(rows)).to(self.device).float() / 255.0  # (B, H, W[, 3])
        pictures = pictures[:, None].expand(-1, 3, -1, -1) if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2)
        if self._scaled != list(pictures.shape[2:]):
            pictures = functional.interpolate(pictures, size=self._scaled, mode="bilinear", align_corners=False)
        return (pictures - self._mean) / self._deviation
