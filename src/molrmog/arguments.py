"""Numbers and types that a caller passes, as the library takes them, or one line that says what to pass.

Without these an argument of another kind fails somewhere inside torch or NumPy, in their words and many lines.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


_MOST = 2**62  # torch and NumPy count with 64 bits


def shown(value: object) -> str:
    """A value in a few words, on one line.

    Example:
        >>> shown("a"), shown(np.zeros((2, 3)))
        ("'a'", 'a ndarray')
    """
    text = " ".join(repr(value).split())
    plain = isinstance(value, str | int | float | complex | list | tuple | dict | np.generic | type(None))
    return text if plain and len(text) <= 60 else f"a {type(value).__name__}"


def is_a(value: object, *kinds: type) -> bool:
    """Whether a caller has kept to an annotation, which nothing else enforces."""
    return isinstance(value, kinds)


def whole(value: Any, name: str, least: int | None = None) -> int:
    """A whole number of Python, numpy or torch.

    Raises:
        ValueError: it is none, or less than `least`.
    """
    try:
        if isinstance(value, bool) or getattr(value, "ndim", 0):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} = {shown(value)}: pass a whole number") from None
    if abs(number) > _MOST:
        raise ValueError(f"{name} = {number:.3g}: pass a smaller one")
    if least is not None and number < least:
        raise ValueError(f"{name} = {number}: pass {least} or more")
    return number


def real(value: Any, name: str, mend: str = "pass a number") -> float:
    """A real number of Python, numpy or torch; it may be infinite or NaN.

    Raises:
        ValueError: it is none.
    """
    try:
        if isinstance(value, str | bytes | list | tuple) or np.iscomplexobj(value) or np.ma.is_masked(value):
            raise TypeError
        if value is None or (value.numel() if hasattr(value, "numel") else np.size(value)) != 1:
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, OverflowError):
        raise ValueError(f"{name} = {shown(value)}: {mend}") from None


def wholes(values: Any, name: str, least: int | None = None, mend: str = "pass whole numbers") -> tuple[int, ...]:
    """Whole numbers from a sequence, an array or a tensor of them, such as a shape.

    Raises:
        ValueError: there are none, or one is no whole number, or less than `least`.
    """
    try:
        if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
            raise TypeError
        found = tuple(whole(value, name, least) for value in values)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        found = ()
    if not found:
        raise ValueError(f"{name} = {shown(values)}: {mend}")
    return found


def one_or_several(value: Any, name: str) -> int | tuple[int, ...]:
    """A whole number, or a sequence of them.

    Raises:
        ValueError: it is neither.
    """
    try:
        iter(value)
    except TypeError:  # also of an array or a tensor without axes
        return whole(value, name)
    return wholes(value, name, mend="pass a whole number, or several")


def flag(value: Any, name: str) -> bool:
    """True or False, of Python or numpy.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} = {shown(value)}: pass True or False")
    return bool(value)


def one_of(value: Any, name: str, choices: Collection[str]) -> str:
    """One of several words.

    Raises:
        ValueError: it is none of them; the message names all.
    """
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"unknown {name} {shown(value)}: choose one of {', '.join(choices)}")
    return str(value)


def floating(dtype: Any, name: str = "dtype") -> torch.dtype:
    """A floating-point type of torch.

    Raises:
        ValueError: it is none.
    """
    import torch

    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{name} = {shown(dtype)}: pass torch.float32 or torch.float64")
    return dtype
