"""Rows in threads: each takes a share of them and computes with one thread of torch.

What a law does to a row is two products and many short operations between them. Sharing every operation among threads
costs more than the short ones take; sharing the rows costs nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")
_LEAST = 256  # rows of a thread

_pools: dict[int, ThreadPoolExecutor] = {}
_here = threading.local()


def shared(rows: int) -> bool:
    """Whether so many rows are worth sharing among the threads of torch."""
    return not among_others() and torch.get_num_threads() > 1 and rows >= 2 * _LEAST


def among_others() -> bool:
    """Whether this is one of the threads that share rows."""
    return getattr(_here, "among_others", False)


def by_thread(work: Callable[[slice], Result], rows: int) -> list[Result]:
    """What `work` returns for a share of the rows in each of torch's threads, in order; it asks for no gradients."""
    threads = min(torch.get_num_threads(), rows // _LEAST)
    inference = torch.is_inference_mode_enabled()
    each = -(-rows // threads)

    def share(start: int) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(slice(start, min(start + each, rows)))

    return list(_pool(torch.get_num_threads()).map(share, range(0, rows, each)))


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        together = threading.Barrier(threads)
        pool = ThreadPoolExecutor(threads, "molrmog", _begin)
        list(pool.map(lambda _: together.wait(), range(threads)))  # all of them have begun
        torch.set_num_threads(threads)  # what a thread sets for itself is what later threads of others begin with
        _pools[threads] = pool
    return _pools[threads]


def _begin() -> None:
    torch.set_num_threads(1)
    _here.among_others = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)
