"""How much memory the machine has, and a word before more than that is asked for."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def memory() -> int:
    """Bytes that this process can have: of the machine, of its container, of its own limit, whichever is least."""
    found = [sys.maxsize]
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _GROUPS:
        with suppress(OSError, ValueError):  # absent, or "max"
            found.append(int(Path(path).read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        found += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    return min(found)


def check_memory(said: str, needed: float) -> None:
    """Refuse what asks for more memory than there is.

    Args:
        said: the option and its value.
        needed: bytes that it takes at the least.

    Raises:
        ValueError: that is more than the machine has.
    """
    if needed > memory():
        gigabytes = f"{needed / 1e9:,.0f}" if needed < 1e15 else "millions of"
        raise ValueError(
            f"{said}: takes {gigabytes} GB of memory or more, and there are {memory() / 1e9:,.0f} here: pass less"
        )
