"""What float32 does to a law's answers: the worst of many cases against float64 with the same parameters.

Laws of any shape: D from 1 to 70, every d from 1 to D, noise from 1e-5 to 1 or unequal, centered or not, pure and with
a tail, one in eight of bfloat16; rows of the noised law at gamma from 0 to 1e3, one time in four up to 1e10 times as
far away. The error is that of a row relative to its own norm; of a log-density below one nat it is absolute. Needs no
data.

    python benchmarks/precision.py [--cases 10000]
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from oracles.digits import METHODS, any_law, relative, rows_of


def main() -> None:
    """Print the worst, the 99th percentile and the median error of every method."""
    parser = argparse.ArgumentParser(description="the digits of float32")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    errors: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for seed in range(given.first, given.first + given.cases):
        law, draw = any_law(seed, tail=seed % 4 == 3, unequal=seed % 4 == 1)
        narrow = seed % 8 == 5
        x, s, gamma = rows_of(law, draw, seed)
        law = law.bfloat16() if narrow else law
        exact = copy.deepcopy(law).double()
        kind = "bfloat16 law" if narrow else "head and tail" if law.head_dim else "pure"
        kind = kind if seed % 4 != 1 or narrow else "unequal"
        for name in METHODS:
            ours, theirs = getattr(law, name)(x, s, gamma), getattr(exact, name)(x.double(), s, gamma)
            errors.setdefault((kind, name), []).append((relative(ours, theirs), seed))
    print(f"{given.cases} cases of 32 rows, relative errors of float32 rows; the worst row of each case")
    print(f"{'law':14} {'method':11} {'cases':>6} {'median':>9} {'99%':>9} {'worst':>9} {'seed':>7}")
    for (kind, name), found in sorted(errors.items()):
        values = torch.tensor([error for error, _ in found], dtype=torch.float64)
        worst, seed = max(found)
        middle, high = (float(values.quantile(q)) for q in (0.5, 0.99))
        print(f"{kind:14} {name:11} {len(found):6} {middle:9.1e} {high:9.1e} {worst:9.1e} {seed:7}")


if __name__ == "__main__":
    main()
