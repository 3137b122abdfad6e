"""Degrees of freedom against the rank of the Fisher information."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from molrmog.laws.freedom import degrees_of_freedom
from molrmog.laws.molrmog import NOISES, MoLRMoG


@st.composite
def shapes(draw):
    dim = draw(st.integers(2, 5))
    K = draw(st.integers(1, 3))
    dims = [draw(st.integers(1, dim)) for _ in range(K)]
    modes = [draw(st.integers(1, 3)) for _ in range(K)]
    return dim, dims, modes, draw(st.none() | st.integers(0, dim)), draw(st.integers(0, 1000))


@pytest.mark.parametrize("noise", NOISES)
@settings(max_examples=12, deadline=None)
@given(shape=shapes())
def test_rank_of_the_fisher_information(noise, shape):
    dim, dims, modes, rank, seed = shape
    law = MoLRMoG.random(dim, dims, modes, rank, noise=0.5, seed=seed, offset=1.0, dtype=torch.float64)
    law = law.with_noise(noise)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        law.tau.mul_(0.5 + torch.rand(law.tau.shape, generator=draw, dtype=torch.float64))
    law.requires_grad_(True)
    x = law.sample(500, draw).x.detach()
    parameters = list(law.parameters())
    log_prob = law.log_prob(x)
    scores = []
    for each in log_prob:
        found = torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True)
        parts = zip(parameters, found, strict=True)
        scores.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in parts]))
    matrix = torch.stack(scores)
    matrix = matrix / matrix.norm(dim=0).clamp(min=1e-12)
    values = torch.linalg.svdvals(matrix)
    assert int((values > 1e-9 * values[0]).sum()) == law.degrees_of_freedom


def test_one_full_gaussian_and_stored_numbers():
    assert degrees_of_freedom(5, [5], [[5]]) == 5 + 15
    assert degrees_of_freedom(5, [4], [[4]]) == 5 + 15
    assert degrees_of_freedom(8, [6, 6], [[6], [6]]) == 85  # 202 numbers are stored


def test_axes_of_their_own_count_at_most_as_much_as_covariances():
    assert degrees_of_freedom(5, [2], [[2]], "diagonal", turned=True) == 20
    plain = degrees_of_freedom(9, [1, 1], [[1], [1]], "shared")
    assert degrees_of_freedom(9, [1, 1], [[1], [1]], "shared", turned=True) == plain + 36


def test_criteria_by_their_formulas():
    law = MoLRMoG.random(4, (2, 1), (2, 1), noise=0.3, seed=0, dtype=torch.float64)
    x = law.sample(60, torch.Generator().manual_seed(0)).x
    with torch.no_grad():
        fit = -2 * float(law.log_prob(x).sum())
        r = law.posterior(x).responsibilities
    p = law.degrees_of_freedom
    assert law.bic(x) == pytest.approx(fit + p * math.log(60))
    assert law.aic(x.numpy()) == pytest.approx(fit + 2 * p)
    assert law.icl(x) == pytest.approx(law.bic(x) - 2 * float((r * r.clamp(min=1e-300).log()).sum()))
