"""EM on subspaces against scikit-learn's flat mixture: PCA to 64, then GaussianMixture(80, full), on the same rows.

Both are densities over R^784: scikit-learn's is the mixture in the 64 leading principal coordinates times one isotropic
Gaussian on the other 720, whose variance is its maximum likelihood estimate. Neither sees a label. Both keep their
smallest standard deviation in the 720 left-over directions and in the latents at or above `noise_floor`.

    MOLRMOG_DATA_DIR=... python benchmarks/mixtures.py [--threads 2]
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import molrmog


def main() -> None:
    """Print CPU seconds per iteration and held-out log-likelihood of both."""
    parser = argparse.ArgumentParser(description="EM against scikit-learn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise-floor", type=float, default=0.01)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with threadpool_limits(given.threads):
        compare(given.noise_floor)


def compare(noise_floor: float) -> None:
    """Fit both and print."""
    train, test = molrmog.load_data("mnist"), molrmog.load_data("mnist", "test")

    passes: list[float] = []
    law = molrmog.fit(
        train, subspaces=10, latent_dim=32, modes=8, noise_floor=noise_floor,
        on_iteration=lambda _: passes.append(time.process_time()), noise="isotropic",
    )  # fmt: skip
    ours = float(np.median(np.diff(passes)))
    held_out = float(law.log_prob(torch.from_numpy(test.x)).double().mean())

    pca = PCA(64, random_state=0).fit(train.x)
    z = pca.transform(train.x)
    warnings.simplefilter("ignore", ConvergenceWarning)
    flat = GaussianMixture(80, reg_covar=noise_floor**2, max_iter=1, warm_start=True, random_state=0).fit(z)
    sklearn: list[float] = []
    for _ in range(40):  # each call goes on where the last one stopped
        start = time.process_time()
        before = flat.lower_bound_
        flat.fit(z)
        sklearn.append(time.process_time() - start)
        if abs(flat.lower_bound_ - before) < 1e-3:
            break
    variance = max(float(pca.noise_variance_), noise_floor**2)
    off = ((test.x - pca.inverse_transform(pca.transform(test.x))) ** 2).sum(1)
    left = train.x.shape[1] - 64
    outside = -0.5 * (off / variance + left * math.log(2 * math.pi * variance))
    density = flat.score_samples(pca.transform(test.x)) + outside

    print(f"MNIST, noise floor {noise_floor}; CPU seconds are medians over the iterations of each run")
    print(f"  {'':42}{'CPU s / iteration':>18}{'iterations':>12}{'held-out nats':>15}")
    theirs = float(np.median(sklearn))
    print(f"  {'molrmog, K = 10, d = 32, n = 8':42}{ours:18.2f}{len(passes):12}{held_out:15.2f}")
    print(f"  {'PCA(64) + GaussianMixture(80, full)':42}{theirs:18.2f}{len(sklearn):12}{density.mean():15.2f}")
    print(f"  ratio of CPU seconds per iteration: {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
