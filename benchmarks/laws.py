"""Pure law, head/tail law and one full Gaussian on MNIST and CIFAR-10: density, denoising loss, seconds to fit.

Densities are of held-out rows with noise of standard deviation `gamma` added, log p_t(x_0 + gamma eps): a clean density
would reward whoever believes most firmly in constant pixels. The denoising loss has EDM's noise levels and weights
(ln gamma ~ N(-1.2, 1.2^2), sigma_data = 0.5), the same noise for every law.

    MOLRMOG_DATA_DIR=... python benchmarks/laws.py [mnist cifar10] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import molrmog
from molrmog.metrics import denoising_loss

# One Gaussian in the leading principal coordinates, independent ones in all others.
FULL_GAUSSIAN = {"subspaces": 1, "latent_dim": 8, "modes": 1, "head": 8}

LAWS: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {
        "one full Gaussian": FULL_GAUSSIAN,
        "pure, K = 10, d = 32, n = 8": {"latent_dim": 32, "modes": 8},
        "pure, K = 10, d = 128, n = 8": {"latent_dim": 128, "modes": 8},
        "head 128, d = 32, n = 8": {"latent_dim": 32, "modes": 8, "head": 128},
        "head 128, d = 64, n = 8": {"latent_dim": 64, "modes": 8, "head": 128},
    },
    "cifar10": {
        "one full Gaussian": FULL_GAUSSIAN,
        "pure, K = 10, d = 128, n = 8": {"latent_dim": 128, "modes": 8},
        "head 256, d = 128, n = 8": {"latent_dim": 128, "modes": 8, "head": 256},
    },
}


def main() -> None:
    """Print one table per data set."""
    parser = argparse.ArgumentParser(description="laws beside each other")
    parser.add_argument("data", nargs="*", default=list(LAWS), help="mnist, cifar10")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2_000, help="held-out rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.data:
        compare(name, given.rows)


def compare(name: str, rows: int) -> None:
    """Fit every law of one data set, by labels, and print."""
    train, test = molrmog.load_data(name), molrmog.load_data(name, "test")
    keep = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:rows]
    x = torch.from_numpy(test.x)[keep]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    print(f"{name}: {len(train):,} rows to fit, {rows:,} held out; nats per row at gamma, EDM-weighted denoising loss")
    print(f"{'':32}{'fit, s':>8}{'0.01':>10}{'0.1':>10}{'0.3':>10}{'1':>10}{'loss':>9}{'+-':>8}", end="")
    print("".join(f"{low:>9}" for low in ("< -3", "-3..-2", "-2..-1", "-1..0", "> 0")))
    for title, shape in LAWS[name].items():
        start = time.perf_counter()
        labels = None if shape is FULL_GAUSSIAN else train.labels
        law = molrmog.fit(train, labels, **shape)
        seconds = time.perf_counter() - start
        density = [float(law.log_prob(x + g * noise, 1.0, g).mean()) for g in (0.01, 0.1, 0.3, 1.0)]
        loss = denoising_loss(law, x)
        print(f"{title:32}{seconds:8.1f}" + "".join(f"{d:10.1f}" for d in density), end="")
        ranges = "".join(f"{r.loss:9.4f}" for r in loss.ranges)
        print(f"{loss.loss:9.4f}{loss.standard_error:8.4f}{ranges}", flush=True)


if __name__ == "__main__":
    main()
