"""LPIPS: how different two pictures look, as a network that has seen natural images judges it.

Let f_l(x) be the features of a picture after stage l of the network, with shape (C_l, H_l, W_l), and g_l the same
scaled to unit length over channels at every place. The distance is

    d(x, y) = sum_l 1 / (H_l W_l) sum_hw sum_c  q_lc ( g_lchw(x) - g_lchw(y) )^2

where q_l >= 0, one number per channel, was fitted to human judgements (q = w^2 in equation 1 of the paper). Here the
network is SqueezeNet 1.1, its seven stages end with the first convolution and the second and fourth to eighth fire
modules, and q is version 0.1. Its scaling layer, (2 u - 1 - shift) / scale for u in [0, 1], is nothing but the ImageNet
mean and deviation.

Two uses. Diversity: the mean distance between two random samples. A model that has collapsed scores 0; the value of the
data is what to compare with, for noise raises it, too. Reconstruction: the mean distance between rows and what an
autoencoder makes of them; 0 is perfect.

Numbers depend on the size of the pictures, and small ones (28 or 32 pixels) are enlarged: compare at equal `name` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from molrmog.data import Layout
from molrmog.metrics._rows import Rows, as_array, blocks
from molrmog.metrics._squeezenet import SqueezeNet
from molrmog.seeds import numpy_generator
from molrmog.weights import load_weights, weights_file

HEADS = "lpips/lpips_v0.1_squeeze_lin.safetensors"
"""Place of the linear heads in the weights folder."""

# The last module of each stage in the feature stack, and its channels.
_STAGES = {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}


@dataclass(frozen=True)
class PairDistance:
    """Mean distance of pairs.

    Attributes:
        mean: the mean.
        standard_error: of that mean, over pairs (NaN for a single pair).
        pairs: number of pairs.
    """

    mean: float
    standard_error: float
    pairs: int


@dataclass(frozen=True)
class Diversity(PairDistance):
    """Mean distance of random pairs of samples.

    Attributes:
        within: the same for pairs inside each label that has at least two samples; empty without labels.
    """

    within: Mapping[int, PairDistance] = field(default_factory=dict[int, PairDistance])


class LPIPS:
    """Learned perceptual image patch similarity, version 0.1, on SqueezeNet 1.1.

    Rows become 8-bit pictures as `Layout.to_images` draws them, grey ones are repeated over three channels, and
    pictures whose shorter side is below `size` are enlarged to it (bilinear). Colour pictures of at least that size get
    the numbers of the authors' implementation.

    Args:
        layout: how rows become pictures: the dataset, or its layout.
        features: safetensors file with the keys of torchvision's `squeezenet1_1().features`; taken from
            $MOLRMOG_WEIGHTS_DIR/lpips where None.
        heads: safetensors file of q with keys "lin0.model.1.weight", ..., "lin6.model.1.weight", each with shape
            (1, C, 1, 1); taken from $MOLRMOG_WEIGHTS_DIR/lpips where None.
        size: least shorter side of the pictures, in pixels, at least 17 (the authors' examples have 64).
        device: where to evaluate.

    Attributes:
        name: "LPIPS 0.1 (SqueezeNet) at SIDE px", and what smaller pictures were enlarged to.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: where a file is corrupt or holds other keys or shapes, the layout is not of images, or size < 17.

    References:
        Zhang, Isola, Efros, Shechtman, Wang 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
        Metric" (arXiv 1801.03924), equation 1; github.com/richzhang/PerceptualSimilarity.
    """

    name: str

    def __init__(
        self,
        layout: Layout,
        features: str | Path | None = None,
        heads: str | Path | None = None,
        *,
        size: int = 64,
        device: str | torch.device = "cpu",
    ) -> None:
        self._net = SqueezeNet(layout, features, size, device)
        self._heads = {stage: nn.Conv2d(channels, 1, 1, bias=False) for stage, channels in _STAGES.items()}
        # The published file counts a dropout layer before each head.
        published = nn.ModuleDict(
            {
                f"lin{k}": nn.ModuleDict({"model": nn.ModuleDict({"1": head})})
                for k, head in enumerate(self._heads.values())
            }
        )
        load_weights(published, weights_file(HEADS, heads), "the linear heads of LPIPS 0.1 for SqueezeNet")
        published.requires_grad_(False).to(self._net.device)
        self.name = f"LPIPS 0.1 (SqueezeNet) at {self._net.sides}"

    def distance(self, x: Rows, y: Rows) -> Tensor:
        """Distance of each row of x to the row of y at the same place.

        Args:
            x: rows with shape (N, D), scaled as in the layout.
            y: rows with shape (N, D).

        Returns:
            The distances with shape (N,), float32 on the CPU, at least 0; symmetric in x and y.

        Raises:
            ValueError: where the shapes do not fit, or an entry is NaN or infinite.
        """
        x = as_array(x, "x", dim=self._net.layout.dim)
        y = as_array(y, "y", dim=self._net.layout.dim)
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} rows and y {len(y)}: pass pairs")
        with torch.no_grad():
            return torch.cat([self._distance(x[rows], y[rows]).cpu() for rows in blocks(len(x), self._net.chunk // 2)])

    def _distance(self, x: np.ndarray, y: np.ndarray) -> Tensor:
        f = torch.cat([self._net.inputs(x), self._net.inputs(y)])  # (2 B, 3, H, W)
        total = f.new_zeros(len(x))
        for place, module in enumerate(self._net.network):
            f = module(f)
            if place in self._heads:
                g = f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10)  # (2 B, C, H_l, W_l)
                total += self._heads[place]((g[: len(x)] - g[len(x) :]).square()).mean((1, 2, 3))
        return total

    def diversity(
        self, x: Rows, labels: np.ndarray | Tensor | None = None, *, pairs: int = 1000, seed: int = 0
    ) -> Diversity:
        """Mean distance of random pairs of samples, and of pairs with the same label.

        Samples are shuffled and taken two by two, so that no sample is in two pairs and the pairs are independent.

        Args:
            x: samples with shape (N, D), N >= 2.
            labels: class or expert of each sample with shape (N,), integers.
            pairs: most pairs to look at, in all and within each label; N / 2 at most are there.
            seed: of the shuffles.

        Returns:
            The mean with its standard error, and the same within each label.

        Raises:
            ValueError: where there are fewer than 2 samples, labels of another shape, or pairs < 1.
        """
        x = as_array(x, dim=self._net.layout.dim, least=2)
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        labels = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        if labels is not None and labels.shape != (len(x),):
            raise ValueError(f"labels have shape {labels.shape}: pass one per sample, ({len(x)},)")

        def among(index: np.ndarray) -> PairDistance:
            index = numpy_generator(seed).permutation(index)[: 2 * min(pairs, len(index) // 2)]
            return _mean(self.distance(x[index[::2]], x[index[1::2]]))

        groups = {} if labels is None else {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
        within = {label: among(index) for label, index in groups.items() if len(index) > 1}
        return Diversity(**vars(among(np.arange(len(x)))), within=within)

    def reconstruction(self, x: Rows, decoded: Rows) -> PairDistance:
        """Mean distance of rows to what an autoencoder makes of them.

        Args:
            x: rows with shape (N, D).
            decoded: decode(encode(x)) with shape (N, D).

        Returns:
            The mean with its standard error.
        """
        return _mean(self.distance(x, decoded))


def _mean(distances: Tensor) -> PairDistance:
    count = len(distances)
    error = float(distances.double().std()) / count**0.5 if count > 1 else float("nan")
    return PairDistance(float(distances.double().mean()), error, count)
