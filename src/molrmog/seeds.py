"""Seeds: any whole number is one, for torch and numpy alike.

Each of the two takes another range of seeds, and other types. A seed that they take is handed to them as it is; one
outside of a library's range is hashed into it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(seed: Any, name: str = "seed") -> int:
    """A seed as a Python integer.

    Args:
        seed: an integer of Python, numpy or torch; an array or tensor without axes is one, too.
        name: of the argument, for the message.

    Raises:
        ValueError: it is no integer.
    """
    try:
        if isinstance(seed, bool) or str(getattr(seed, "dtype", "")).endswith("bool") or getattr(seed, "ndim", 0):
            raise TypeError
        return operator.index(seed)
    except (TypeError, ValueError, RuntimeError):
        shown = " ".join(repr(seed).split())
        raise ValueError(f"{name} = {shown if len(shown) < 60 else type(seed)}: pass an integer") from None


def torch_seed(seed: Any, name: str = "seed") -> int:
    """A seed for torch's generators, from -2**63 to 2**64 - 1; see :func:`seed_of`."""
    number = seed_of(seed, name)
    return number if -(2**63) <= number < 2**64 else _mixed(number)


def torch_generator(seed: Any, name: str = "seed") -> torch.Generator:
    """Torch's source of randomness on the CPU, seeded; see :func:`seed_of`."""
    import torch  # not before it is needed: data are read without it

    return torch.Generator().manual_seed(torch_seed(seed, name))


def numpy_seed(seed: Any, name: str = "seed") -> int:
    """A seed for `numpy.random.default_rng`, 0 or more; see :func:`seed_of`."""
    number = seed_of(seed, name)
    return number if number >= 0 else _mixed(number)


def numpy_generator(seed: Any, name: str = "seed") -> np.random.Generator:
    """Numpy's source of randomness, seeded; see :func:`seed_of`."""
    return np.random.default_rng(numpy_seed(seed, name))


def _mixed(number: int) -> int:
    """A number of 64 bits in which every bit of `number` and its sign have a share."""
    key = np.random.SeedSequence([int(number < 0), abs(number)])
    return int(key.generate_state(1, np.uint64)[0])
