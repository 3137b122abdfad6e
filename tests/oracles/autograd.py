"""Derivatives by autograd, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def score_of(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of a row-wise log-density, with shape (B, D)."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


def divergence_of(field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Trace of the Jacobian of a row-wise vector field, with shape (B,)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = field(x)
    total = torch.zeros_like(x[:, 0])
    for i in range(x.shape[1]):
        total += torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0][:, i]
    return total


def tangent(basis: Tensor, gradient: Tensor) -> Tensor:
    """Project onto the tangent space of orthonormal bases: G - A sym(A^T G), both with shape (D, K, d)."""
    inner = torch.einsum("Dki,Dkj->kij", basis, gradient)
    return gradient - torch.einsum("Dki,kij->Dkj", basis, 0.5 * (inner + inner.mT))
