"""More modes must help: MNIST with n_k = 1, 8 and 40 modes in each of ten subspaces of dimension 32.

Samples are compared with the test rows in the features of a small classifier trained on MNIST (a Fréchet distance there
is not an FID). The low-rank Gaussian mixture of Wang et al. 2024 (MoLRG: one mode of mean zero) and the training rows
themselves are shown beside.

    MOLRMOG_DATA_DIR=... python benchmarks/modes.py [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import molrmog
from molrmog.metrics import ClassifierFeatures, frechet_distance, log_likelihood, memorisation, precision_recall


def main() -> None:
    """Print one row per law."""
    parser = argparse.ArgumentParser(description="modes against quality")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train, test = molrmog.load_data("mnist"), molrmog.load_data("mnist", "test")
    features = ClassifierFeatures(train, test)
    reference = features(test.x)
    rows = np.random.default_rng(0).permutation(len(train))[: given.samples]

    print(f"features: {features.name}; {given.samples:,} samples against {len(test):,} test rows")
    print(f"{'':28}{'fit, s':>8}{'bits/dim':>10}{'median':>8}{'Frechet':>9}", end="")
    print(f"{'precision':>11}{'recall':>8}{'memorised':>11}")

    def show(title: str, seconds: float, law: molrmog.Law | None, x: np.ndarray) -> None:
        found = features(x)
        quality = precision_recall(found, reference)
        bits = log_likelihood(law, test) if law is not None else None
        figures = f"{bits.bits_per_dim:10.3f}{bits.bits_per_dim_median:8.3f}" if bits else f"{'':18}"
        copied = memorisation(x[:2000], train.x, test.x).ratio
        print(f"{title:28}{seconds:8.1f}{figures}{frechet_distance(found, reference):9.2f}", end="")
        print(f"{quality.precision:11.3f}{quality.recall:8.3f}{copied:11.2f}", flush=True)

    show("training rows", 0.0, None, train.x[rows])
    shapes: dict[str, dict[str, Any]] = {"chosen by label": {}, "chosen": {}}
    for labels in (" by label", ""):
        few = {"latent_dim": 32, "noise": "isotropic"} | ({} if labels else {"subspaces": 10})
        shapes |= {"MoLRG by label": few | {"modes": 1, "zero_mean": True}} if labels else {}
        shapes |= {f"n = {n}{labels}": few | {"modes": n} for n in (1, 8, 40)}
    for title, shape in shapes.items():
        start = time.perf_counter()
        law = molrmog.fit(train, train.labels if "label" in title else None, **shape)
        seconds = time.perf_counter() - start
        show(title, seconds, law, law.sample(given.samples, torch.Generator().manual_seed(0)).x.numpy())


if __name__ == "__main__":
    main()
