"""The score of a batch against the two products it cannot avoid.

A law fitted to MNIST (K = 10, d = 32, n = 8), 4096 noised rows. The floor is one product down to all latents and one
up, 4096 x 784 x 320 each. At low noise rows are routed to few subspaces, and those that float32 leaves undecided are
weighed again in float64; at high noise every mode weighs every row. Rows that are far lie 300 from the data in every
coordinate; all of these are weighed in float64.

On a GPU every row is weighed by every mode. A random law of the same shape needs no data.

    MOLRMOG_DATA_DIR=... python benchmarks/score.py [--threads 2] [--noise diagonal]
    python benchmarks/score.py --device cuda --random --rows 65536
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

import molrmog
from _stopwatch import time_each


def main() -> None:
    """Print one row per noise level."""
    parser = argparse.ArgumentParser(description="the score against its floor")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--noise", default="isotropic", help="isotropic, diagonal or shared")
    parser.add_argument("--random", action="store_true", help="a random law and rows of it, in place of MNIST")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    if given.random:
        law = molrmog.MoLRMoG.random(784, (32,) * 10, (8,) * 10, noise=0.2).requires_grad_(False)
        law = law.with_noise(given.noise)
        clean = law.sample(given.rows, torch.Generator().manual_seed(0)).x
    else:
        data = molrmog.load_data("mnist")
        law = molrmog.fit(data, data.labels, latent_dim=32, modes=8, noise=given.noise)
        clean = torch.from_numpy(data.x[: given.rows])
    law, clean = law.to(given.device), clean.to(given.device)
    down = torch.randn(784, 320, device=given.device)

    def finished(call: Callable[[], object]) -> Callable[[], object]:
        """The call, and what it has left to a GPU to do."""

        def to_the_end() -> None:
            call()
            if clean.is_cuda:
                torch.cuda.synchronize()

        return to_the_end

    print(
        f"{given.device}, threads {given.threads}, batch {len(clean)}, K = 10, d = 32, n = 8, {given.noise} noise; "
        "ratios to two products"
    )
    print(f"{'gamma':>8} {'floor, ms':>10} {'score':>7} {'denoise':>8} {'log_prob':>9} {'gamma per row':>14}")
    for where in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, "far"):
        gamma = 0.1 if isinstance(where, str) else where
        away = 300.0 if isinstance(where, str) else gamma
        x = clean + away * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
        each = torch.full((len(x),), gamma).to(clean)
        peers = {
            "floor": lambda x=x: (x @ down) @ down.T,
            "score": lambda x=x, g=gamma: law.score(x, 1.0, g),
            "denoise": lambda x=x, g=gamma: law.denoise(x, 1.0, g),
            "log_prob": lambda x=x, g=gamma: law.log_prob(x, 1.0, g),
            "rows": lambda x=x, g=each: law.score(x, 1.0, g),
        }
        wall = {
            name: t.wall
            for name, t in time_each({name: finished(call) for name, call in peers.items()}, runs=9).items()
        }
        score, denoise, log_prob, rows = (wall[name] / wall["floor"] for name in list(peers)[1:])
        print(f"{where:>8} {1e3 * wall['floor']:10.1f} {score:7.2f} {denoise:8.2f} {log_prob:9.2f} {rows:14.2f}")


if __name__ == "__main__":
    main()
