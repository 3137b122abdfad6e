"""Missing values filled in: how near, how likely, how well the intervals hold, beside what is usual.

    python benchmarks/imputation.py                          tables that come with scikit-learn
    python benchmarks/imputation.py FILE [FILE ...]          tables of numbers
    python benchmarks/imputation.py --missing .1 .3 .5 --masks 5

Values are hidden at random, columns divided by their deviations. Mean square error of what was hidden; of the law also
its negative log-density, in nats per hidden value (of all hidden values of a row together), and the share that lies in
the middle nine tenths of 200 draws. CPU seconds of fit and fill. Peers: columns' means, KNNImputer, IterativeImputer
with BayesianRidge and with ExtraTrees, and where they are installed miceforest and softImpute (fancyimpute).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer as _  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import molrmog
from molrmog.sklearn import MoLRMoGImputer

Fill = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Print a row per table and share of missing values."""
    parser = argparse.ArgumentParser(description="missing values filled in")
    parser.add_argument("data", nargs="*", help="names of tables, or files that molrmog reads; all named ones if none")
    parser.add_argument("--missing", type=float, nargs="+", default=[0.1, 0.3, 0.5])
    parser.add_argument("--masks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="leave out ExtraTrees")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    peers = _peers(given.quick)
    print(
        f"{'':16}{'missing':>8}{'ours':>8}{'nats':>8}{'inside':>8}{'s':>7}" + "".join(f"{p:>12}{'s':>7}" for p in peers)
    )
    for name in given.data or _TABLES:
        x = _TABLES[name]() if name in _TABLES else np.asarray(molrmog.load_data(name).x, dtype=np.float64)
        x = x[:, x.std(0) > 0]
        x = (x - x.mean(0)) / x.std(0)
        for share in given.missing:
            rows = [_judged(x, share, seed, peers) for seed in range(given.masks)]
            mean = np.mean(rows, 0)
            ours = f"{mean[0]:8.3f}{mean[1]:8.2f}{mean[2]:8.3f}{mean[3]:7.1f}"
            others = "".join(f"{mse:12.3f}{s:7.1f}" for mse, s in zip(mean[4::2], mean[5::2], strict=True))
            print(f"{Path(name).stem[-15:]:16}{share:8.1f}{ours}{others}", flush=True)


def _judged(x: np.ndarray, share: float, seed: int, peers: dict[str, Fill]) -> list[float]:
    """MSE, nats, share inside and seconds of ours, and MSE and seconds of each peer."""
    gaps = np.random.default_rng(seed).random(x.shape) < share
    gaps[:, gaps.all(0)] = False
    seen = np.where(gaps, np.nan, x)
    start = time.process_time()
    imputer = MoLRMoGImputer(random_state=0).fit(seen)
    filled = imputer.transform(seen)
    seconds = time.process_time() - start
    law = imputer.law_
    nats = (law.log_prob(torch.as_tensor(seen)) - law.log_prob(torch.as_tensor(x))).sum() / gaps.sum()
    draws = law.impute(seen, draws=200, generator=torch.Generator().manual_seed(seed))
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    figures = [_error(filled, x, gaps), float(nats), float(((x >= low) & (x <= high))[gaps].mean()), seconds]
    for fill in peers.values():
        start = time.process_time()
        figures += [_error(fill(seen), x, gaps), time.process_time() - start]
    return figures


def _error(filled: np.ndarray, x: np.ndarray, gaps: np.ndarray) -> float:
    return float(((filled - x)[gaps] ** 2).mean())


def _peers(quick: bool) -> dict[str, Fill]:
    trees = ExtraTreesRegressor(50, random_state=0, n_jobs=1)
    peers: dict[str, Fill] = {
        "means": lambda seen: SimpleImputer().fit_transform(seen),
        "neighbours": lambda seen: KNNImputer().fit_transform(seen),
        "ridge": lambda seen: IterativeImputer(random_state=0).fit_transform(seen),
    }
    if not quick:
        peers["trees"] = lambda seen: IterativeImputer(trees, max_iter=5, random_state=0).fit_transform(seen)
    try:
        from fancyimpute import SoftImpute  # pyright: ignore[reportMissingImports]

        peers["softImpute"] = lambda seen: SoftImpute(verbose=False).fit_transform(seen)
    except ImportError:
        pass
    try:
        import miceforest  # pyright: ignore[reportMissingImports]
        import pandas as pd

        def forest(seen: np.ndarray) -> np.ndarray:
            frame = pd.DataFrame(seen, columns=[f"c{i}" for i in range(seen.shape[1])])
            kernel = miceforest.ImputationKernel(frame, num_datasets=1, random_state=0)
            kernel.mice(3)
            return kernel.complete_data(0).to_numpy()

        peers["miceforest"] = forest
    except ImportError:
        pass
    return peers


_TABLES: dict[str, Callable[[], np.ndarray]] = {
    "breast cancer": lambda: sklearn.datasets.load_breast_cancer().data,
    "wine": lambda: sklearn.datasets.load_wine().data,
    "diabetes": lambda: sklearn.datasets.load_diabetes().data,
    "iris": lambda: sklearn.datasets.load_iris().data,
    "digits": lambda: sklearn.datasets.load_digits().data,
}

if __name__ == "__main__":
    main()
