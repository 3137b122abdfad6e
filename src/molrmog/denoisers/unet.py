"""A U-Net for pictures and for latents shaped like pictures: diffusers' UNet2DModel under EDM preconditioning.

Rows are (C, H, W) flattened. Sizes that the down-blocks cannot halve are padded with zeros inside, 7 x 7 to 8 x 8 for
two levels, and cut off again. The last convolution starts at zero: the untrained network is c_skip x.

References:
    Ronneberger et al., U-Net, arXiv 1505.04597; Ho, Jain & Abbeel, arXiv 2006.11239, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from molrmog.denoisers.preconditioning import Preconditioned

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

_NOISE_SCALE = 100.0  # c_noise within +-2.3 becomes what the time embedding of diffusers is spaced for


class UNetDenoiser(Preconditioned):
    """A U-Net with EDM preconditioning, conditional on the expert of each row where `experts` > 0.

    Attributes:
        shape: (C, H, W) of a row.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        layers: int = 1,
        attention: bool = True,
        dropout: float = 0.0,
        experts: int = 0,
        sigma_data: float = 1.0,
        inputs: int = 1,
        unconditional: bool = False,
        gates: int = 0,
        groups: int | None = None,
    ) -> None:
        """Build the network.

        Args:
            shape: (C, H, W) of a row; any size from 2 up to the level count of `channels` and above.
            channels: of each level; height and width are halved from one level to the next.
            layers: residual blocks per level.
            attention: self-attention at the lowest level, whose channels must then be a multiple of 8.
            dropout: probability, inside the residual blocks.
            experts: number of experts it may be conditional on; 0 for none.
            sigma_data: standard deviation of a coordinate of the data; 1 for standardised latents, about 0.5 for
                pixels in [-1, 1].
            inputs: how many rows it sees side by side: 2 inside a `ResidualDenoiser`.
            gates: how many gates it sees beside them, inside a `ResidualDenoiser` with gates.
            unconditional: whether there is a null expert; train it with `drop_expert`.
            groups: of the group norms; where None, at most 32 with three channels or more in each, for a norm of one
                channel takes away what the embedding of the noise level adds to it.

        Raises:
            ValueError: the shape is not (C, H, W), or the channels do not fit.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape = {tuple(shape)}: a U-Net takes (C, H, W); for flat rows use MLPDenoiser")
        if not channels or min(channels) < 1 or layers < 1:
            raise ValueError(f"channels = {tuple(channels)}, layers = {layers}: give at least one of each")
        if attention and channels[-1] % 8:
            raise ValueError(
                f"channels = {tuple(channels)}: attention takes a multiple of 8 in the last, or turn it off"
            )
        if groups is not None and groups < 0:
            raise ValueError(f"groups = {groups}: pass how many groups a norm has, or None")
        super().__init__(math.prod(shape), experts, sigma_data, inputs, unconditional, gates)
        self.shape = tuple(int(size) for size in shape)
        self.channels = tuple(int(width) for width in channels)
        self.layers, self.attention, self.dropout = layers, attention, dropout
        self.groups = groups or _groups(self.channels)
        multiple = 2 ** (len(channels) - 1)
        self._padding = [-size % multiple for size in self.shape[1:]]
        plain = len(channels) - 1
        self.unet = diffusers_unet()(
            sample_size=tuple(size + more for size, more in zip(self.shape[1:], self._padding, strict=True)),
            in_channels=inputs * self.shape[0] + gates,
            out_channels=self.shape[0],
            block_out_channels=self.channels,
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D" if attention else "DownBlock2D",),
            up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D",) + ("UpBlock2D",) * plain,
            add_attention=attention,
            norm_num_groups=self.groups,
            dropout=dropout,
            num_class_embeds=self.classes or None,
        )
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network."""
        names = ("shape", "channels", "layers", "attention", "dropout", "experts", "sigma_data", "inputs", "groups")
        return {"denoiser": "UNetDenoiser", **{name: getattr(self, name) for name in names}, **self.extras}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network that `config` describes, untrained."""
        before = {"groups": math.gcd(32, *config["channels"])}  # what networks had whose configuration is silent
        return super().from_config({**before, **config})

    def forward(self, x: Tensor, c_noise: Tensor, expert: Tensor | None, gates: Tensor | None = None) -> Tensor:
        """F, with shape (B, D); x with shape (B, inputs D), c_noise, expert (B,), gates (B, K) as constant planes."""
        _, height, width = self.shape
        more_height, more_width = self._padding
        images = x.unflatten(1, (-1, height, width))
        if gates is not None:
            images = torch.cat([images, gates[..., None, None].expand(-1, -1, height, width)], 1)
        images = nn.functional.pad(images, (0, more_width, 0, more_height))
        index = None if expert is None else expert % self.classes  # -1, the null expert, is the last
        out = self.unet(images, _NOISE_SCALE * c_noise, class_labels=index, return_dict=False)[0]
        return out[..., :height, :width].flatten(1)


def diffusers_unet() -> type[UNet2DModel]:
    """UNet2DModel; the first call in a process imports diffusers, which takes seconds."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel


def _groups(channels: Sequence[int]) -> int:
    groups = math.gcd(32, *channels)
    while groups > 1 and min(channels) // groups < 3:
        groups //= 2
    return groups
