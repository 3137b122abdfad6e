"""How far two results may lie apart that add up the same numbers in another order."""

from __future__ import annotations

import torch
from torch import Tensor


def close(found: Tensor, expected: Tensor, terms: int, scale: float | None = None) -> None:
    """Assert that two tensors are sums of the same terms, in any order.

    A sum of n terms is rounded n times, each time by half an eps of a partial sum at most; two orders lie at most twice
    that apart.

    Args:
        found: the one.
        expected: the other, of the same dtype.
        terms: n, of the longest sum.
        scale: of the largest partial sum; the largest entry where nothing cancels and None is passed.
    """
    scale = float(expected.abs().max()) if scale is None else scale
    torch.testing.assert_close(found, expected, rtol=0, atol=terms * torch.finfo(expected.dtype).eps * scale)
