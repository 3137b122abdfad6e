"""EM of laws side by side against EM of each of them alone."""

import itertools
import warnings

import pytest
import torch

from molrmog.laws.molrmog import NOISES, MoLRMoG
from molrmog.learning.em import em_steps
from molrmog.learning.rows import Rows
from molrmog.learning.stacks import Stack, StackedEM

PASSES = 8
SHAPES = (((2, 3), (3, 1)), ((2,), (4,)), ((1, 2, 2), (1, 1, 2)))


def three_laws(noise):
    laws = [
        MoLRMoG.random(6, dims, modes, noise=0.3, seed=seed, dtype=torch.float64)
        for seed, (dims, modes) in enumerate(SHAPES, start=3)
    ]
    return [law.with_noise(noise) for law in laws]


@pytest.fixture
def rows():
    truth = MoLRMoG.random(6, (2, 3), (3, 1), noise=0.1, seed=1, dtype=torch.float64)
    return truth.sample(200, torch.Generator().manual_seed(0)).x


def stacked(laws, x, weights, prior_rows, floor, spread, divisor=None, noise_rows=None):
    return StackedEM(
        Stack.of(laws),
        x,
        weights,
        prior_rows=torch.tensor(prior_rows, dtype=torch.float64),
        floor=torch.tensor([floor], dtype=torch.float64),
        spread2=spread.square(),
        noise_rows=None if noise_rows is None else torch.tensor(noise_rows, dtype=torch.float64),
        divisor=divisor,
    )


@pytest.mark.parametrize("prior_rows", [None, 300.0], ids=["little", "much"])
@pytest.mark.parametrize("noise", NOISES)
def test_each_law_goes_its_own_way(rows, noise, prior_rows):
    laws = three_laws(noise)
    weights = (torch.rand(3, 200, generator=torch.Generator().manual_seed(2)) > 0.2).double()
    nu = [float(max(law.latent_dims)) if prior_rows is None else prior_rows for law in laws]
    seen = Rows(rows).as_standard()
    worth = [1.0, 0.01, 30.0]
    em = stacked(laws, rows, weights, nu, 0.05, seen.deviation(), noise_rows=worth)
    states = [em.state(), *(em.step() for _ in range(PASSES))]
    for j, law in enumerate(laws):
        own = seen.subset(weights[j].nonzero()[:, 0])
        options = {"prior_rows": nu[j], "noise_rows": worth[j], "noise_floor": 0.05, "spread": seen.deviation()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "EM dropped")
            alone = list(itertools.islice(em_steps(law, own, **options), PASSES + 1))
        # Alone, faint responsibilities are left out, and what that does grows from pass to pass.
        for one, together in zip(alone[:3], states, strict=False):
            assert float(together.penalised[j]) == pytest.approx(one.penalised, abs=1e-5)
        assert float(states[-1].penalised[j]) == pytest.approx(alone[-1].penalised, abs=0.1)


@pytest.mark.parametrize("noise", NOISES)
def test_densities_are_those_of_the_laws_and_never_fall(rows, noise):
    laws = three_laws(noise)
    em = stacked(laws, rows, torch.ones(3, 200, dtype=torch.float64), [2.0] * 3, 0.05, Rows(rows).deviation())
    before = em.state().penalised
    for _ in range(PASSES):
        state = em.step()
        for j in range(3):
            assert torch.allclose(state.log_prob[j], state.stack.one(j).log_prob(rows), atol=1e-8)
            entropy = torch.special.entr(state.stack.one(j).posterior(rows).responsibilities).sum(1).mean()
            assert float(state.entropy[j]) == pytest.approx(float(entropy), abs=1e-8)
    assert bool((state.penalised > before - 1e-9).all())


def test_some_laws_go_on_alone(rows):
    laws = three_laws("diagonal")
    make = lambda: stacked(laws, rows, torch.ones(3, 200, dtype=torch.float64), [2.0] * 3, 0.05, Rows(rows).deviation())  # noqa: E731
    whole, part = make(), make()
    part.only(torch.tensor([2, 0]))
    for _ in range(3):
        a, b = whole.step(), part.step()
    assert torch.allclose(a.penalised[[2, 0]], b.penalised)


def test_columns_are_divided_before_a_law_sees_them(rows):
    laws = three_laws("isotropic")
    scale = torch.tensor([1.0, 2.0, 4.0, 0.125, 1.0, 8.0], dtype=torch.float64)  # divided without rounding
    ones, spread = torch.ones(3, 200, dtype=torch.float64), Rows(rows).deviation()
    plain = stacked(laws, rows, ones, [2.0] * 3, 0.05, spread)
    divided = stacked(laws, rows * scale, ones, [2.0] * 3, 0.05, spread, divisor=scale.expand(3, -1))
    for _ in range(3):
        a, b = plain.step(), divided.step()
    assert torch.allclose(a.log_prob, b.log_prob)
