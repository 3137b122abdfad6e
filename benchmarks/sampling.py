"""Exact samples of a law, in images per second, against a 1M-parameter U-Net with 50 DDIM steps.

The law is fitted to MNIST (K = 10, d = 32, n = 8); the U-Net (diffusers' UNet2DModel on 28 x 28) is untrained: its cost
does not depend on its weights.

    MOLRMOG_DATA_DIR=... python benchmarks/sampling.py [--threads 2]
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import DDIMScheduler, UNet2DModel

import molrmog


def main() -> None:
    """Print images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description="exact sampling against a U-Net")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="images the U-Net draws")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = molrmog.load_data("mnist")
    law = molrmog.fit(data, data.labels, latent_dim=32, modes=8, noise="isotropic")
    generator = torch.Generator().manual_seed(0)
    law.sample(100, generator)
    start = time.perf_counter()
    law.sample(10_000, generator)
    exact = 10_000 / (time.perf_counter() - start)

    network = UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, block_out_channels=(32, 48, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, layers_per_block=2,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    x = torch.randn(given.images, 1, 28, 28, generator=generator)
    start = time.perf_counter()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    neural = given.images / (time.perf_counter() - start)

    size = sum(p.numel() for p in network.parameters())
    print(f"threads {given.threads}")
    print(f"  exact sampling of a law, 10,000 images:      {exact:12,.0f} images/s")
    print(f"  U-Net, {size / 1e6:.2f}M parameters, 50 DDIM steps:    {neural:12,.2f} images/s")
    print(f"  ratio: {exact / neural:,.0f}")


if __name__ == "__main__":
    main()
