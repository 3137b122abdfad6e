"""Any whole number is a seed, wherever one is taken; what is none is refused in one line that names it."""

import json

import numpy as np
import pytest
import torch

from molrmog import MLPDenoiser, MoLRMoG, VPSchedule, fit, load_data, train
from molrmog.data import load_parts
from molrmog.experiments.cells import check_choice
from molrmog.experiments.latents import assign_experts
from molrmog.learning import TrainingOptions, mog_start
from molrmog.learning.rows import Rows
from molrmog.learning.subspaces import cluster_flats, initial_law
from molrmog.metrics import denoising_loss
from molrmog.seeds import numpy_generator, seed_of, torch_generator, torch_seed
from molrmog.theory.estimation import least_loss, row_losses

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
LAW = MoLRMoG.random(4, (2,), (2,), noise=0.2, seed=0).requires_grad_(False)


def numbers(result):
    """What a seed changes, as one array."""
    if isinstance(result, torch.nn.Module):
        return np.concatenate([p.detach().numpy().ravel() for p in result.parameters()])
    return np.asarray(result, dtype=np.float64)


TAKERS = {
    "fit": lambda seed: fit(X, subspaces=2, latent_dim=2, modes=2, head="auto", max_iter=2, seed=seed),
    "random": lambda seed: MoLRMoG.random(4, (2,), (2,), seed=seed).basis.detach(),
    "mog_start": lambda seed: mog_start(X, 2, 2, seed=seed),
    "initial_law": lambda seed: initial_law(Rows(X), None, (2, 2), (2, 2), seed=seed),
    "cluster_flats": lambda seed: cluster_flats(X, (1, 1), seed=seed)[1],
    "load_data": lambda seed: load_data("digits", dequantise=True, seed=seed).x[:3],
    "load_parts": lambda seed: load_parts("digits", dequantise=True, seed=seed)[1].x[:3],
    "split": lambda seed: load_data("digits").split(0.5, seed=seed)[0].x[:9],
    "assign_experts": lambda seed: assign_experts(X.numpy(), None, 2, seed=seed)[0],
    "denoising_loss": lambda seed: denoising_loss(LAW, X, seed=seed).loss,
    "least_loss": lambda seed: least_loss(LAW, X, 0.8, 0.6, seed=seed).mean,
    "row_losses": lambda seed: row_losses(LAW, X, 0.8, 0.6, seed=seed),
}
TRAINERS = {
    "train": lambda seed: train(MLPDenoiser(4, width=4, depth=1), X, VPSchedule(), steps=1, device="cpu", seed=seed),
}
LARGE = [2**31, 2**32, 2**40, 2**63, 2**64 - 1, 2**70]
NO_SEEDS = [None, 1.5, "a", True, np.float64(3), np.bool_(1), torch.tensor(True), torch.tensor(1.5), [1], np.array([1])]


@pytest.mark.parametrize("name", [*TAKERS, *TRAINERS])
def test_whole_numbers_of_any_type_are_one_seed(name):
    take = {**TAKERS, **TRAINERS}[name]
    found = []
    for kind in (int, np.int64, np.uint32, np.array, torch.tensor):
        torch.manual_seed(0)
        found.append(numbers(take(kind(3))))
    assert all(np.array_equal(each, found[0]) for each in found)


@pytest.mark.parametrize("seed", LARGE)
@pytest.mark.parametrize("name", [*TAKERS, *TRAINERS])
def test_large_seeds_are_taken(name, seed):
    numbers({**TAKERS, **TRAINERS}[name](seed))


@pytest.mark.parametrize("seed", [-1, -(2**40), -(2**63), np.int64(-5)])
@pytest.mark.parametrize("name", TAKERS)
def test_negative_seeds_are_taken(name, seed):
    numbers(TAKERS[name](seed))


@pytest.mark.parametrize("seed", NO_SEEDS, ids=repr)
@pytest.mark.parametrize("name", [*TAKERS, *TRAINERS])
def test_what_is_no_seed_is_refused_in_one_line(name, seed):
    with pytest.raises(ValueError, match=r"^seed = .*: pass an integer$"):
        {**TAKERS, **TRAINERS}[name](seed)


def test_seeds_of_experiments_and_training_can_be_written_down():
    assert json.dumps(check_choice({"cpu": None}, "cpu", np.int64(3), 1)) == "3"
    assert json.dumps(TrainingOptions(steps=1, seed=np.uint32(3)).seed) == "3"


def test_ordinary_seeds_give_the_streams_of_the_libraries():
    for seed in (0, 1, 12345, 2**31 - 1):
        assert seed_of(seed) == torch_seed(seed) == seed
        assert torch.equal(
            torch.rand(3, generator=torch_generator(seed)), torch.rand(3, generator=torch.Generator().manual_seed(seed))
        )
        assert np.array_equal(numpy_generator(seed).random(3), np.random.default_rng(seed).random(3))
    assert torch_seed(-7) == -7
    assert torch_seed(2**63) == 2**63


def test_other_seeds_give_other_streams():
    seeds = [*LARGE, *(-seed for seed in LARGE), 0, 1, -1]
    assert len({torch_seed(seed) for seed in seeds}) == len(seeds)
    assert len({numpy_generator(seed).random() for seed in seeds}) == len(seeds)


def test_a_long_value_is_not_printed():
    with pytest.raises(ValueError, match=r"^seed = <class 'list'>: pass an integer$"):
        seed_of(list(range(100)))
    with pytest.raises(ValueError, match=r"^random_state = 'x': pass an integer$"):
        seed_of("x", "random_state")
