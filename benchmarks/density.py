"""The plain call against everything that could have been installed instead: held-out nats per row.

    python benchmarks/density.py [NAME or FILE ...] [--splits 3] [--own] [--keep FOLDER]

A fifth of the rows is held out. `molrmog.fit(x)` gets the rest, without a word. scikit-learn's sweep gets the rest with
every column divided by its standard deviation, which `fit` has to find by itself: GaussianMixture (full, tied, diag; 1
to 40 modes; two floors) and FactorAnalysis, each fitted to three quarters, chosen on the last quarter, and fitted again
to all. A family ends after `--seconds` where its last four sizes were no better, and after four times as
many in any case. `--own` adds a sweep of this
library with shapes given by hand, chosen in the same way. Columns that do not vary in the training rows are left out,
as their density is that of a floor.

Seconds are CPU seconds of the whole call, sweep against sweep. Nats are means over the splits.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture

import molrmog

_MODES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)
_FACTORS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128)
_PATIENCE = 4
_SEVERAL = 3_000  # sets with fewer rows are split several times
_TABLES = ("coffee", "wine27", "olive")


def main() -> None:
    """Print one row per set."""
    parser = argparse.ArgumentParser(description="held-out density of a plain call")
    parser.add_argument("data", nargs="*", help="names of sets, or files that molrmog reads; all named sets if none")
    parser.add_argument("--splits", type=int, default=3, help="of small sets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="of one family of the sweep",
    )
    parser.add_argument("--own", action="store_true", help="sweep the shapes of this library as well")
    parser.add_argument("--keep", type=Path, help="folder in which results of sweeps are kept and found again")
    parser.add_argument("--only", choices=["ours", "peers"], help="one side")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    print(f"{'':26}{'rows':>7}{'D':>6}{'plain call':>12}{'s':>8}{'scikit-learn':>14}{'s':>8}{'own sweep':>11}{'s':>8}")
    for name in given.data or _SETS:
        x = _rows(name)
        splits = given.splits if len(x) < _SEVERAL else 1
        row: dict[str, list[tuple[float, float]]] = {"ours": [], "peers": [], "own": []}
        chosen = []
        for split in range(splits):
            rest, test = _parted(x, 0.2, split)
            varies = rest.std(0) > 0
            rest, test = rest[:, varies], test[:, varies]
            if given.only != "peers":
                nats, seconds, what = _ours(rest, test)
                row["ours"].append((nats, seconds))
                chosen.append(what)
            if given.only != "ours":
                row["peers"].append(_kept(given.keep, f"{Path(name).stem}-{split}-sklearn", _peers, rest, test, given))
                if given.own:
                    row["own"].append(_kept(given.keep, f"{Path(name).stem}-{split}-own", _own, rest, test, given))
        cells = [np.mean(values, 0) if values else (math.nan, math.nan) for values in row.values()]
        figures = "".join(f"{nats:{wide}.2f}{s:8.1f}" for (nats, s), wide in zip(cells, (12, 14, 11), strict=True))
        print(f"{name[-25:]:26}{len(x):7}{x.shape[1]:6}{figures}  {chosen[0] if chosen else ''}", flush=True)


def _ours(rest: np.ndarray, test: np.ndarray) -> tuple[float, float, str]:
    start = time.process_time()
    law = molrmog.fit(rest)
    seconds = time.process_time() - start
    summary = getattr(law, "fit_summary_", None)
    return float(np.mean(law.log_prob(test), dtype=np.float64)), seconds, str(summary.best) if summary else ""


def _swept(
    families: dict[str, Iterator[tuple[Any, Callable[[np.ndarray], Callable[[np.ndarray], float]]]]],
    rest: np.ndarray,
    test: np.ndarray,
    most_seconds: float,
) -> tuple[float, float, str]:
    """Nats of the candidate that a validation split chooses, fitted again to all rows; CPU seconds; and which it is."""
    train, validation = _parted(rest, 0.25, 1)
    best: tuple[float, Any, Any] = (-math.inf, None, None)
    start = time.process_time()
    for family, candidates in families.items():
        begun, top, since = time.process_time(), -math.inf, 0
        for size, fit in candidates:
            try:
                value = fit(train)(validation)
            except (ValueError, np.linalg.LinAlgError):
                value = -math.inf
            since = 0 if value > top else since + 1
            top = max(top, value)
            if value > best[0]:
                best = value, f"{family} {size}", fit
            seconds = time.process_time() - begun
            if seconds > 4 * most_seconds or (seconds > most_seconds and since >= _PATIENCE):
                break
    nats = best[2](rest)(test)
    return nats, time.process_time() - start, best[1]


def _peers(rest: np.ndarray, test: np.ndarray, given: argparse.Namespace) -> tuple[float, float, str]:
    def scaled(build: Callable[[], Any]) -> Callable[[np.ndarray], Callable[[np.ndarray], float]]:
        def fit(x: np.ndarray) -> Callable[[np.ndarray], float]:
            center, spread = x.mean(0), x.std(0)
            spread = np.where(spread > 0, spread, rest.std(0))
            model = build().fit((x - center) / spread)
            return lambda rows: float(model.score((rows - center) / spread) - np.log(spread).sum())

        return fit

    def mixtures(
        kind: str, floor: float
    ) -> Iterator[tuple[int, Callable[[np.ndarray], Callable[[np.ndarray], float]]]]:
        for n in _MODES:
            if n <= len(rest) // 2 and (kind != "full" or n * len(rest) * rest.shape[1] ** 2 < 4e11):
                build = functools.partial(GaussianMixture, n, covariance_type=kind, reg_covar=floor, random_state=0)
                yield n, scaled(build)

    families: dict[str, Any] = {
        f"{kind}, {floor:g}": mixtures(kind, floor)
        for kind, floor in itertools.product(("full", "tied", "diag"), (1e-6, 1e-3))
    }
    families["factors"] = (
        (d, scaled(lambda d=d: FactorAnalysis(d, random_state=0))) for d in _FACTORS if d < min(rest.shape)
    )
    return _swept(families, rest, test, given.seconds)


def _own(rest: np.ndarray, test: np.ndarray, given: argparse.Namespace) -> tuple[float, float, str]:
    D = rest.shape[1]
    unit = rest.std(0)

    def candidate(**shape: Any) -> Callable[[np.ndarray], Callable[[np.ndarray], float]]:
        def fit(x: np.ndarray) -> Callable[[np.ndarray], float]:
            law = molrmog.fit(x / unit, **shape)
            return lambda rows: float(np.mean(law.log_prob(rows / unit), dtype=np.float64) - np.log(unit).sum())

        return fit

    dims = [d for d in (1, 2, 3, 5, 8, 13, 20, 32, 50, 80) if d <= D]
    families: dict[str, Any] = {}
    for noise, K, n, prior in itertools.product(
        ("isotropic", "diagonal", "shared"), (1, 2, 3, 5, 10), (1, 2, 4, 8), (None, 100.0)
    ):
        if K * n * 2 > len(rest) or (n == 1 and prior is not None):
            continue
        shape = {"noise": noise, "subspaces": K, "modes": n, "prior_rows": prior}
        families[f"{noise}, K {K}, n {n}, prior {prior}"] = iter([(d, candidate(latent_dim=d, **shape)) for d in dims])
    return _swept(families, rest, test, given.seconds / 4)


def _kept(folder: Path | None, name: str, sweep: Any, rest: Any, test: Any, given: Any) -> tuple[float, float]:
    """What a sweep found, read from the folder where it is there already."""
    path = None if folder is None else folder / f"{name}.json"
    if path is None or not path.is_file():
        found = sweep(rest, test, given)
        if path is None:
            return found[:2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    nats, seconds, _ = json.loads(path.read_text())
    return nats, seconds


def _parted(x: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(x))
    count = round(share * len(x))
    return x[order[count:]], x[order[:count]]


def _rows(name: str) -> np.ndarray:
    if name in _SETS:
        return np.asarray(_SETS[name](), dtype=np.float64)
    return np.asarray(molrmog.load_data(name).x, dtype=np.float64)


def _pictures(name: str, rows: int) -> np.ndarray:
    """Dequantised pictures."""
    data = molrmog.load_data(name, dequantise=True)
    return np.asarray(data.x[np.random.default_rng(0).permutation(len(data))[:rows]])


def _table(name: str) -> np.ndarray:
    path = Path(os.environ.get("MOLRMOG_DATA_DIR", ".")) / "tables" / f"{name}.csv"
    header = path.read_text().splitlines()[0].split(",")
    columns = [i for i, column in enumerate(header) if column.strip('"') not in ("label", "area")]
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=columns)


_SETS: dict[str, Callable[[], np.ndarray]] = {
    "wine": lambda: sklearn.datasets.load_wine().data,
    "breast cancer": lambda: sklearn.datasets.load_breast_cancer().data,
    "diabetes": lambda: sklearn.datasets.load_diabetes().data,
    "iris": lambda: sklearn.datasets.load_iris().data,
    **{name: lambda name=name: _table(name) for name in _TABLES},
    "digits, raw": lambda: sklearn.datasets.load_digits().data,
    "digits": lambda: _pictures("digits", 1797),
    "MNIST, 300": lambda: _pictures("mnist", 300),
    "Fashion-MNIST, 300": lambda: _pictures("fashion-mnist", 300),
    "MNIST, 5,000": lambda: _pictures("mnist", 5_000),
    "Fashion-MNIST, 5,000": lambda: _pictures("fashion-mnist", 5_000),
    "CIFAR-10, 10,000": lambda: _pictures("cifar10", 10_000),
}


if __name__ == "__main__":
    main()
