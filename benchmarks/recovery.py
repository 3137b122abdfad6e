"""Does EM find the law that made the data, from its own initialisation and without labels?

Data: 20,000 rows of a random law (D = 100, K = 4 subspaces of dimension 5, 3 modes each, tau = 0.05), and 20,000 more
held out. A seed is good where the fitted law's held-out log-likelihood is within 1% of the true law's and no fitted
subspace is further than 2 degrees (largest principal angle) from the true one; the statement holds where 9 of 10 are.

    python benchmarks/recovery.py [--seeds 10] [--rows 20000] [--max-iter 100]
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

import molrmog
from molrmog.metrics import subspace_error

DIM, SUBSPACES, LATENT_DIM, MODES = 100, 4, 5, 3


def recover(seed: int, rows: int, max_iter: int) -> tuple[float, float, float, float]:
    """Fit rows of the random law `seed`.

    Returns:
        Mean held-out log-likelihood of the true and of the fitted law in nats, the largest principal angle in degrees,
        and the seconds the fit took.
    """
    true = molrmog.MoLRMoG.random(DIM, (LATENT_DIM,) * SUBSPACES, (MODES,) * SUBSPACES, seed=seed).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    x, held_out = true.sample(rows, generator).x, true.sample(rows, generator).x
    start = time.perf_counter()
    law = molrmog.fit(
        x, subspaces=SUBSPACES, latent_dim=LATENT_DIM, modes=MODES, seed=seed, max_iter=max_iter, noise="isotropic"
    )
    seconds = time.perf_counter() - start
    reached = [float(each.log_prob(held_out).mean()) for each in (true, law)]
    return *reached, subspace_error(law, true).max, seconds


def main() -> None:
    """Print one row per seed, and the verdict."""
    parser = argparse.ArgumentParser(description="EM recovers a random law without labels")
    parser.add_argument("--seeds", type=int, default=10, help="how many random laws")
    parser.add_argument("--rows", type=int, default=20_000, help="rows to fit, and as many to hold out")
    parser.add_argument("--max-iter", type=int, default=100, help="passes of EM, at most")
    given = parser.parse_args()

    table = Table("seed", "true, nats", "fitted, nats", "ratio", "angle, degrees", "seconds", "good")
    passed = 0
    for seed in range(given.seeds):
        true, fitted, angle, seconds = recover(seed, given.rows, given.max_iter)
        good = abs(fitted - true) <= 0.01 * abs(true) and angle < 2
        passed += good
        figures = f"{true:.3f}", f"{fitted:.3f}", f"{fitted / true:.4f}", f"{angle:.3f}", f"{seconds:.1f}"
        table.add_row(str(seed), *figures, "yes" if good else "no")
    Console(width=100).print(table)
    verdict = "holds" if passed >= 0.9 * given.seeds else "fails"
    print(f"recovered {passed} of {given.seeds} laws: the statement (9 of 10) {verdict}")


if __name__ == "__main__":
    main()
