"""Devices: which there are on this machine, and a word that says so where somebody names another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class DeviceError(ValueError, RuntimeError):
    """There is no such device here; a RuntimeError, too, for that is what torch raises."""


def devices() -> list[str]:
    """The devices that torch can compute on here, such as ["cpu", "cuda:0"]."""
    import torch  # not before it is needed: data are read without it

    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    return found


def device_of(device: Any, said: str | None = None) -> torch.device | None:
    """A device that is there, as torch names it.

    Args:
        device: name, number or `torch.device`; None for whichever the caller takes.
        said: how the device was asked for, for the message; "device = ..." where None.

    Returns:
        The device, None where None was asked for.

    Raises:
        DeviceError: there is no such device here, which is a ValueError; the message names those that there are.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
        >>> device_of("abacus")
        Traceback (most recent call last):
        ...
        molrmog.devices.DeviceError: device = 'abacus': there is no such device here, choose cpu...
    """
    import torch

    if device is None:
        return None
    there = devices()
    try:
        if isinstance(device, bool):
            raise TypeError
        found = torch.device(device)
        if found.type in ("cpu", "cuda", "mps", "xpu", "meta"):
            # Not tried: that would take memory of a GPU in each of several processes. meta holds no numbers.
            first = found.type if str(found) == found.type else f"{found.type}:{found.index}"
            is_there = any(first in (name, name.partition(":")[0], f"{name}:0") for name in there)
        else:  # what other packages have taught torch
            torch.zeros((), device=found)
            is_there = True
    except Exception:  # torch and its extensions fail in many ways, over many lines
        is_there, found = False, None
    if is_there:
        return found
    shown = " ".join((said or f"device = {device!r}").split())
    shown = shown if len(shown) < 80 else f"{shown[:76]}..."
    choice = ", ".join(there[:9]) + (", ..." if len(there) > 9 else "")
    raise DeviceError(f"{shown}: there is no such device here, choose {choice}")
