"""What is chosen: classes of known tables, the shapes of known laws, over seeds, and in which time.

    python benchmarks/structure.py clusters              coffee, wine, olive oils by BIC and ICL, beside scikit-learn
    python benchmarks/structure.py recovery [--laws 6]   K, d and n of random laws, beside BIC sweeps of scikit-learn
    python benchmarks/structure.py seeds [--seeds 20]    the spread of what is chosen, and of its held-out nats
    python benchmarks/structure.py seconds               a plain call from 40 x 12 to 60,000 x 784 numbers

Recovery: the share of laws whose K, whose d and whose n come out, and by how many nats per row fresh rows are less
likely than under the law itself; "told", the same of a fit to which K, d, n and the noise are given.

Clusters: the adjusted Rand index (ARI) of the most probable subspace, and of the most probable mode, against the
classes. Tables are scaled column by column for scikit-learn.
"""

from __future__ import annotations

import argparse
import collections
import csv
import itertools
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

import molrmog

# (file, column of the classes, how many they are)
_TABLES = {
    "coffee": ("coffee.csv", "label"),
    "wine27": ("wine27.csv", "label"),
    "olive, regions": ("olive.csv", "label"),
    "olive, areas": ("olive.csv", "area"),
}


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description="what is chosen")
    parser.add_argument("what", choices=["clusters", "recovery", "seeds", "seconds"])
    parser.add_argument("--laws", type=int, default=6, help="of each kind")
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 5_000, 50_000])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    {"clusters": _clusters, "recovery": _recovery, "seeds": _seeds, "seconds": _seconds}[given.what](given)


def _clusters(given: argparse.Namespace) -> None:
    print(
        f"{'':16}{'classes':>8}  {'criterion':10}{'K':>4}{'modes':>7}{'ARI, K':>8}{'ARI, modes':>12}{'s':>7}  structure"
    )
    for name, (file, column) in _TABLES.items():
        x, classes = _table(file, column)
        for criterion in ("bic", "icl"):
            start = time.process_time()
            found = molrmog.select(x, criterion=criterion)
            law = molrmog.fit(x, selection=found)
            seconds = time.process_time() - start
            shares = torch.as_tensor(law.posterior(x).responsibilities)
            mode = shares.argmax(1)
            subspace = torch.zeros(len(x), law.subspaces).index_add_(1, law.component_of, shares.float()).argmax(1)
            ari = [adjusted_rand_score(classes, each) for each in (subspace, mode)]
            _line(name, classes, criterion, law.subspaces, sum(law.modes), *ari, seconds, found.table[0]["what"])
        start = time.process_time()
        fitted = [
            GaussianMixture(n, covariance_type=kind, random_state=0, n_init=3, reg_covar=1e-6).fit(_scaled(x))
            for n, kind in itertools.product(range(1, 11), ("full", "tied", "diag", "spherical"))
        ]
        best = min(fitted, key=lambda model: model.bic(_scaled(x)))
        ari = adjusted_rand_score(classes, best.predict(_scaled(x)))
        n = best.n_components
        _line(name, classes, "sklearn", n, n, ari, ari, time.process_time() - start, best.covariance_type)


def _line(name: str, classes: Any, by: str, K: int, n: int, ari: float, of_modes: float, s: float, what: str) -> None:
    print(f"{name:16}{len(set(classes)):8}  {by:10}{K:4}{n:7}{ari:8.3f}{of_modes:12.3f}{s:7.1f}  {what}", flush=True)


def _recovery(given: argparse.Namespace) -> None:
    print(f"{'noise':12}{'rows':>8}{'laws':>6}{'K':>7}{'d':>7}{'n':>7}{'nats behind':>13}{'told':>8}{'s':>8}", end="")
    print(f"{'sklearn, parts':>16}{'s':>8}")
    for noise, rows in itertools.product(("isotropic", "diagonal", "shared"), given.rows):
        right: collections.Counter[str] = collections.Counter()
        behind, told, seconds, theirs = [], [], 0.0, 0.0
        for seed in range(given.laws):
            law = _random(noise, seed)
            draw = torch.Generator().manual_seed(seed)
            x, test = (law.sample(count, draw).x.numpy() for count in (rows, 2_000))
            start = time.process_time()
            fitted = molrmog.fit(x)
            seconds += time.process_time() - start
            right["K"] += fitted.subspaces == law.subspaces
            right["d"] += sorted(fitted.latent_dims) == sorted(law.latent_dims)
            right["n"] += sorted(fitted.modes) == sorted(law.modes)
            shape = {"subspaces": law.subspaces, "latent_dim": law.latent_dims, "modes": law.modes, "noise": noise}
            for gaps, each in ((behind, fitted), (told, molrmog.fit(x, **shape))):
                gaps.append(float(np.mean(law.log_prob(test)) - np.mean(each.log_prob(test))))
            start = time.process_time()
            right["sklearn"] += _parts_by_bic(x[:5_000]) == sum(law.modes)
            theirs += time.process_time() - start
        shares = "".join(f"{right[key] / given.laws:7.2f}" for key in ("K", "d", "n"))
        print(
            f"{noise:12}{rows:8}{given.laws:6}{shares}{np.mean(behind):13.3f}{np.mean(told):8.3f}"
            f"{seconds / given.laws:8.1f}{right['sklearn'] / given.laws:16.2f}{theirs / given.laws:8.1f}",
            flush=True,
        )


def _random(noise: str, seed: int) -> molrmog.MoLRMoG:
    """A law of 1 to 12 subspaces of different dimensions and numbers of modes in 8 to 200 dimensions."""
    rng = np.random.default_rng(seed)
    D = int(rng.choice([8, 20, 50, 100, 200]))
    K = int(rng.integers(1, 13 if D >= 50 else 5))
    dims = rng.integers(1, max(2, min(8, D // 3) + 1), K).tolist()
    modes = rng.integers(1, 4, K).tolist()
    separation = float(rng.choice([2.0, 4.0, 8.0]))
    law = molrmog.MoLRMoG.random(
        D, dims, modes, noise=0.1, seed=seed, separation=separation, offset=4.0, dtype=torch.float64
    ).requires_grad_(False)
    if noise == "isotropic":
        return law
    law = law.with_noise(noise)
    spread = torch.as_tensor(np.exp(0.7 * rng.normal(size=(K if noise == "diagonal" else 1, D))))
    law.tau.mul_(spread)
    return law


def _parts_by_bic(x: np.ndarray) -> int:
    best, since, parts = np.inf, 0, 1
    for n in range(1, 37):
        bic = GaussianMixture(n, reg_covar=1e-6, random_state=0).fit(x).bic(x)
        since, parts = (0, n) if bic < best else (since + 1, parts)
        best = min(best, bic)
        if since >= 4:
            break
    return parts


def _seeds(given: argparse.Namespace) -> None:
    print(f"{'':16}{'nats, mean':>12}{'std':>8}{'least':>9}{'most':>9}  chosen K (n, d), how often")
    for name, load in _SMALL.items():
        x = load()
        test = np.random.default_rng(0).permutation(len(x)) < len(x) // 5
        nats, chosen = [], []
        for seed in range(given.seeds):
            law = molrmog.fit(x[~test], seed=seed)
            nats.append(float(np.mean(law.log_prob(x[test]))))
            chosen.append(f"{law.subspaces} ({max(law.modes)}, {max(law.latent_dims)})")
        often = ", ".join(f"{what}: {count}" for what, count in collections.Counter(chosen).most_common())
        print(f"{name:16}{np.mean(nats):12.2f}{np.std(nats):8.2f}{min(nats):9.2f}{max(nats):9.2f}  {often}", flush=True)


def _seconds(given: argparse.Namespace) -> None:
    print(f"{'rows':>8}{'D':>6}{'seconds':>9}{'CPU s':>8}  chosen  ({given.threads} threads)")
    mnist = molrmog.load_data("mnist", dequantise=True).x
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 64, 64)) * np.geomspace(1, 0.05, 64)

    def drawn(rows: int, D: int) -> np.ndarray:
        part = rng.integers(6, size=rows)
        return np.einsum("nd,nde->ne", rng.normal(size=(rows, D)), mixing[part, :D, :D]) + part[:, None]

    sizes: list[tuple[int, int, Callable[[int, int], Any]]] = [
        (40, 12, drawn), (400, 12, drawn), (4_000, 12, drawn), (100_000, 12, drawn), (40, 64, drawn),
        (1_000, 64, drawn), (20_000, 64, drawn), (300, 784, lambda n, D: mnist[:n]),
        (5_000, 784, lambda n, D: mnist[:n]),
        (60_000, 784, lambda n, D: mnist[:n]),
    ]  # fmt: skip
    for rows, D, make in sizes:
        x = make(rows, D)
        start, begun = time.perf_counter(), time.process_time()
        law = molrmog.fit(x)
        wall, cpu = time.perf_counter() - start, time.process_time() - begun
        print(f"{rows:8}{D:6}{wall:9.1f}{cpu:8.1f}  {law.fit_summary_.table[0]['what']}", flush=True)


def _table(file: str, column: str) -> tuple[np.ndarray, list[str]]:
    path = Path(os.environ.get("MOLRMOG_DATA_DIR", ".")) / "tables" / file
    with path.open() as lines:
        records = list(csv.DictReader(lines))
    names = [name for name in records[0] if name not in ("label", "area")]
    return np.array([[float(each[name]) for name in names] for each in records]), [each[column] for each in records]


def _scaled(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


_SMALL: dict[str, Callable[[], np.ndarray]] = {
    "wine": lambda: sklearn.datasets.load_wine().data,
    "olive": lambda: _table("olive.csv", "label")[0],
    "breast cancer": lambda: sklearn.datasets.load_breast_cancer().data,
}


if __name__ == "__main__":
    main()
