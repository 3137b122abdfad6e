import time

import pytest
import torch
from torch import nn
from torch.nn import functional

from molrmog import MoLRMoG
from molrmog.metrics import Cost, Stopwatch, cost, count_flops

D, K, d, n = 50, 3, 4, 5


class Affine(nn.Module):
    """A denoiser whose cost is known: one matrix product."""

    def __init__(self, dim):
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def denoise(self, x, s, gamma):
        return self.map(x)


class Latent(nn.Module):
    """Autoencoders around a latent denoiser, as far as the costs see it."""

    num_parameters = 42
    autoencoder_parameters = 1000

    def __init__(self):
        super().__init__()
        self.networks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 6)])
        self.decoder = nn.Linear(3, D)

    def latent_denoise(self, z, s, gamma, expert):
        return self.networks[expert](z)[:, :3]

    def decode(self, z, expert):
        return self.decoder(z)

    def denoise(self, x, s, gamma, expert=None):
        raise AssertionError("the latent denoiser is what a step costs")


def law(dtype=torch.float64):
    return MoLRMoG.random(dim=D, latent_dims=(d,) * K, modes=(n,) * K, rank=2, noise=0.1, seed=0, dtype=dtype)


def law_flops():
    """A row that every subspace sees: down to [h, b . x], V^T (h - s mu), back, and up; wide as a multiple of 16."""
    wide = -(-K * (d + 1) // 16) * 16
    inside = K * ((d + 1) * n * d + n * d * d)
    return 2 * (D * wide + inside + wide * D)


def test_a_law_costs_what_its_formulas_say():
    x = torch.randn(7, D, dtype=torch.float64)
    found = cost(law(), x, 1.0, 10.0)  # so much noise that every subspace may own every row
    assert found == Cost(law().num_parameters, 0, law_flops(), 0.0)
    # The leading terms of the module's docstring.
    assert found.flops == pytest.approx(2 * K * (2 * D * d + 2 * n * d**2), rel=0.5)


def test_building_the_cache_is_not_part_of_a_step():
    fresh, x = law(), torch.randn(7, D, dtype=torch.float64)
    assert cost(fresh, x, 1.0, 10.0) == cost(fresh, x, 1.0, 10.0)


def test_rows_that_one_subspace_explains_cost_less():
    sure = law()
    x = sure.sample(300, torch.Generator().manual_seed(0)).x
    found = cost(sure, x, 1.0, 1e-3)
    assert 2 * D * K * (d + 1) < found.flops < law_flops()


def test_a_plain_module_is_counted_by_its_tensors():
    found = cost(Affine(8), torch.zeros(3, 8), 1.0, torch.ones(3))
    assert found == Cost(8 * 8 + 8, 0, 2 * 8 * 8, 0.0)


@pytest.mark.parametrize("expert", [0, 1])
def test_autoencoders_are_counted_apart(expert):
    found = cost(Latent(), torch.zeros(5, 3), 1.0, 1.0, expert)
    assert found == Cost(42, 1000, 2 * 3 * (3, 6)[expert], 2 * 3 * D)


def test_rows_are_needed():
    with pytest.raises(ValueError, match="no rows"):
        cost(Affine(8), torch.zeros(0, 8), 1.0, 1.0)


# What is counted

x, w = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
a, b = torch.randn(4, 6, 7), torch.randn(4, 7, 2)
q, k, v = (torch.randn(2, 4, length, 8) for length in (16, 12, 12))

COUNTED = {
    "linear": (lambda: functional.linear(a[0], b[0].T, b[0, 0]), 2 * 6 * 7 * 2),
    "batched": (lambda: a @ b, 2 * 4 * 6 * 7 * 2),
    "einsum": (lambda: torch.einsum("bij,bjk->bik", a, b), 2 * 4 * 6 * 7 * 2),
    "convolution": (lambda: functional.conv2d(x, w, padding=1), 2 * 2 * 8 * 8 * 5 * 3 * 9),
    "strided": (lambda: functional.conv2d(x, w, stride=2), 2 * 2 * 3 * 3 * 5 * 3 * 9),
    "attention": (lambda: functional.scaled_dot_product_attention(q, k, v), 2 * 2 * 4 * 16 * 12 * (8 + 8)),
    "elementwise": (lambda: functional.silu(x) + x.square(), 0),
    "eigenvectors": (lambda: torch.linalg.eigh(a[0] @ a[0].T), 2 * 6 * 7 * 6),
}


@pytest.mark.parametrize("case", COUNTED)
@pytest.mark.parametrize("grad", [False, True])
def test_multiply_adds_count_twice(case, grad):
    call, expected = COUNTED[case]
    with torch.set_grad_enabled(grad):
        assert count_flops(call) == expected


def test_the_way_back_counts_too():
    linear, rows = nn.Linear(6, 7, bias=False), torch.randn(3, 6)
    once = 2 * 3 * 6 * 7
    assert count_flops(lambda: linear(rows).sum().backward()) == 2 * once  # the weights' gradient; the rows want none


# Seconds


def test_a_stopwatch_adds_what_goes_by_inside(monkeypatch):
    wall, cpu = iter([10.0, 13.0, 20.0, 24.5]), iter([1.0, 1.5, 2.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(time, "process_time", lambda: next(cpu))
    with Stopwatch() as watch:
        pass
    assert (watch.wall, watch.cpu) == (3.0, 0.5)
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert (watch.wall, watch.cpu) == (7.5, 2.5)


def test_sleep_is_wall_time_alone():
    with Stopwatch() as asleep:
        time.sleep(0.05)
    assert asleep.wall >= 0.05
    assert asleep.cpu < asleep.wall
