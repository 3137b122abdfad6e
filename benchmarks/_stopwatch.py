"""Timing of peers beside each other: alternating runs, medians, wall clock and CPU seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Timing(NamedTuple):
    """Medians over the runs, in seconds."""

    wall: float
    cpu: float


def time_each(peers: dict[str, Callable[[], object]], runs: int = 7) -> dict[str, Timing]:
    """Time every peer `runs` times, in turn, after one warm-up each: on a noisy machine only ratios mean anything."""
    seen: dict[str, list[Timing]] = {name: [] for name in peers}
    for run in range(runs + 1):
        for name, call in peers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if run:
                seen[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Timing(*map(statistics.median, zip(*rows, strict=True))) for name, rows in seen.items()}
