"""One EM iteration against the two products it cannot avoid, in time and memory.

MNIST, 60,000 x 784, K = 10 subspaces of dimension 32, 8 modes each, no labels. The floor is one product of all rows
down to all latents and one up to the statistics of the bases, 60,000 x 784 x 320 each, timed in the same run. Rows that
are routed to few subspaces skip most of the second, so that an iteration may come below it.

    MOLRMOG_DATA_DIR=... python benchmarks/em.py [--threads 2]
"""

from __future__ import annotations

import argparse
import functools
import resource

import torch

import molrmog
from _stopwatch import time_each
from molrmog.learning.em import em_steps
from molrmog.learning.rows import Rows


def main() -> None:
    """Print the ratio to the floor, and the memory above the data."""
    parser = argparse.ArgumentParser(description="one EM iteration against its floor")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = molrmog.load_data("mnist")
    x = torch.from_numpy(data.x)
    down = torch.randn(784, 320)
    print(f"threads {given.threads}, 60,000 x 784, K = 10, d = 32, n = 8, medians of 7 alternating runs")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for noise in ("isotropic", "diagonal"):
        law = molrmog.fit(x, subspaces=10, latent_dim=32, modes=8, max_iter=2, noise=noise)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = em_steps(law, Rows(x))
        timing = time_each({"two products": lambda: x.T @ (x @ down), noise: functools.partial(next, steps)})
        floor, ours = timing.values()
        for name, t in timing.items():
            print(f"  {name:14} wall {t.wall:.3f} s   CPU {t.cpu:.3f} s")
        print(f"  ratio          wall {ours.wall / floor.wall:.2f}     CPU {ours.cpu / floor.cpu:.2f}")
        print(f"  peak memory of a whole fit above the loaded data: {(peak - loaded) / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
