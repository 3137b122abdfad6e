"""The score of a batch against the two products it cannot avoid.

A law fitted to MNIST (K = 10, d = 32, n = 8), 4096 noised rows. The floor is one product down to all latents and one
up, 4096 x 784 x 320 each. At low noise rows are routed to few subspaces, and those that float32 leaves undecided are
weighed again in float64; at high noise every mode weighs every row.

    MOLRMOG_DATA_DIR=... python benchmarks/score.py [--threads 2]
"""

from __future__ import annotations

import argparse

import torch

import molrmog
from _stopwatch import time_each


def main() -> None:
    """Print one row per noise level."""
    parser = argparse.ArgumentParser(description="the score against its floor")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = molrmog.load_data("mnist")
    law = molrmog.fit(data, data.labels, latent_dim=32, modes=8)
    down = torch.randn(784, 320)
    print(f"threads {given.threads}, batch 4096, K = 10, d = 32, n = 8; ratios to two products, medians of 9")
    print(f"{'gamma':>8} {'floor, ms':>10} {'score':>7} {'denoise':>8} {'log_prob':>9} {'gamma per row':>14}")
    for gamma in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0):
        x = torch.from_numpy(data.x[:4096])
        x = x + gamma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        each = torch.full((len(x),), gamma)
        peers = {
            "floor": lambda x=x: (x @ down) @ down.T,
            "score": lambda x=x, g=gamma: law.score(x, 1.0, g),
            "denoise": lambda x=x, g=gamma: law.denoise(x, 1.0, g),
            "log_prob": lambda x=x, g=gamma: law.log_prob(x, 1.0, g),
            "rows": lambda x=x, g=each: law.score(x, 1.0, g),
        }
        wall = {name: t.wall for name, t in time_each(peers, runs=9).items()}
        score, denoise, log_prob, rows = (wall[name] / wall["floor"] for name in list(peers)[1:])
        print(f"{gamma:8} {1e3 * wall['floor']:10.1f} {score:7.2f} {denoise:8.2f} {log_prob:9.2f} {rows:14.2f}")


if __name__ == "__main__":
    main()
