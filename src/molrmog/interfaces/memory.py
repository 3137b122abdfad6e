"""A word before more memory is asked for than the machine has."""

from __future__ import annotations

from molrmog.data.bounds import memory


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
