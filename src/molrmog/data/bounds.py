"""How much a source may ask for: a file of a megabyte must not fill the machine."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_PACKED = 100  # times its own size that a compressed file may unpack to
_FREELY = 2**30  # bytes that any file may unpack to


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


def check_bytes(name: str, count: int, mend: str) -> None:
    """Refuse what does not fit into memory.

    Args:
        name: what asks for it.
        count: bytes that it asks for.
        mend: what the message ends with.

    Raises:
        ValueError: there is not so much memory.
    """
    if count > memory():
        raise ValueError(f"{name} needs {_in_words(count)}, and there are {_in_words(memory())} of memory: {mend}")


def unpacked_limit(packed: int) -> int:
    """Bytes that a compressed file of so many bytes may unpack to."""
    return min(max(_FREELY, _PACKED * packed), memory())


def check_unpacked(name: str, unpacked: int, packed: int) -> None:
    """Refuse a compressed file that unpacks to far more than its own size.

    Args:
        name: of the file.
        unpacked: bytes that it unpacks to.
        packed: its own bytes.

    Raises:
        ValueError: it is a thousandfold, say, and more than a gigabyte.
    """
    if unpacked > unpacked_limit(packed):
        raise ValueError(
            f"{name}: {_in_words(packed)} that unpack to {_in_words(unpacked)} or more are not read: store it without "
            "compression"
        )


def _in_words(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
