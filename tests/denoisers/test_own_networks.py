"""Networks of users: a torch module with `dim` and `denoise` serves wherever a denoiser does."""

import pytest
import torch
from torch import nn

import molrmog
from molrmog import BlendDenoiser, CentredDenoiser, GuidedDenoiser, MLPDenoiser, ResidualDenoiser, VPSchedule
from molrmog.denoisers.base import condition_on
from molrmog.metrics import agreement, cost, denoising_loss
from molrmog.models import num_experts_of


class Shrink(nn.Module):
    """E[x_0 | x_t] of a white Gaussian, with a factor to learn."""

    def __init__(self, dim=6):
        super().__init__()
        self.dim = dim
        self.factor = nn.Parameter(torch.ones(()))

    def denoise(self, x, s, gamma):
        s, gamma = (torch.as_tensor(level).reshape(-1, 1).to(x) for level in (s, gamma))
        return self.factor * s / (s**2 + gamma**2) * x


class ByExpert(Shrink):
    """Another for each of two experts, and one where none is named, by the names of old."""

    experts, unconditional = 2, True

    def denoise(self, x, s, gamma, expert=None):
        index = torch.full((len(x),), -1) if expert is None else torch.as_tensor(expert).expand(len(x))
        return (1 + index[:, None]) * super().denoise(x, s, gamma)


@pytest.fixture
def x():
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


def test_it_is_sampled_and_measured(x):
    own = Shrink()
    drawn = molrmog.sample(own, VPSchedule(), (5, 6), steps=4)
    assert drawn.shape == (5, 6)
    assert cost(own, x, 0.8, 0.6).parameters == 1
    assert denoising_loss(own, x).loss > 0
    assert agreement(own, own, x, VPSchedule(), times=2)[0].share == 1


@torch.no_grad()
def test_it_is_part_of_other_denoisers(x):
    own = Shrink()
    blend = BlendDenoiser([own, MLPDenoiser(6, width=8)]).fit_(x)
    assert blend.denoise(x, 0.8, 0.6).isfinite().all()
    residual = ResidualDenoiser(own, MLPDenoiser(6, width=8, inputs=2)).measure_(x)
    torch.testing.assert_close(residual.denoise(x, 0.8, 0.6), own.denoise(x, 0.8, 0.6))
    centred = CentredDenoiser(own, torch.ones(6))
    torch.testing.assert_close(centred.denoise(x, 1.0, 0.0), x)
    for whole in (blend, residual, centred):
        with pytest.raises(ValueError, match="a Shrink is no law and no network of this library"):
            whole.save_pretrained("nowhere")
        with pytest.raises(ValueError, match="knows no experts"):
            whole.denoise(x, 0.8, 0.6, 0)


def test_it_is_trained(x):
    own = Shrink()
    assert molrmog.train(own, 0.5 * x, VPSchedule(), steps=3, device="cpu") is own
    assert own.factor.item() != 1


@torch.no_grad()
def test_its_experts_are_known_by_the_names_of_old(x):
    own, index = ByExpert(), torch.arange(60) % 2
    chosen = condition_on(own, index).denoise(x, 0.8, 0.6)
    torch.testing.assert_close(chosen, own.denoise(x, 0.8, 0.6, index))
    residual = ResidualDenoiser(own, MLPDenoiser(6, width=8, inputs=2)).measure_(x, index)
    assert (residual.num_experts, residual.null_expert) == (2, True)
    torch.testing.assert_close(residual.denoise(x, 0.8, 0.6, index), chosen)
    guided = GuidedDenoiser(own, 2.0)
    torch.testing.assert_close(guided.denoise(x, 0.8, 0.6, index), 2 * chosen - own.denoise(x, 0.8, 0.6))


def test_its_experts_are_dropped_in_training(x):
    own = ByExpert()
    molrmog.train(own, x, VPSchedule(), steps=1, experts=torch.arange(60) % 2, drop_expert=0.5, device="cpu")
    assert own.factor.item() != 1


class NoModule:
    dim = 6

    def denoise(self, x, s, gamma):
        return x


def test_what_it_lacks_gets_one_line():
    class NoDim(nn.Module):
        def denoise(self, x, s, gamma):
            return x

    for part in (BlendDenoiser, lambda parts: ResidualDenoiser(parts[0], MLPDenoiser(6, inputs=2))):
        with pytest.raises(ValueError, match="a NoModule is no torch module: make it one"):
            part([NoModule()])
        with pytest.raises(ValueError, match="this NoDim does not say its dimension: give it an attribute `dim`"):
            part([NoDim()])
    assert molrmog.sample(NoModule(), VPSchedule(), (2, 6), steps=2).shape == (2, 6)


class WithParts(torch.nn.Module):
    """A network of somebody who calls its parts experts."""

    def __init__(self):
        super().__init__()
        self.dim = 4
        self.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    def denoise(self, x, s, gamma):
        return self.experts[0](x)


def test_an_attribute_of_ones_own_is_no_count_of_experts():
    assert num_experts_of(WithParts()) == 0
    assert molrmog.sample(WithParts(), VPSchedule(), (3, 4), steps=2).shape == (3, 4)
