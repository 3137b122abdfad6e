"""What is said beside the numbers."""

import numpy as np
import pytest
import torch

from molrmog import MoGDenoiser, MoLRMoG, PerExpert
from molrmog.data import Dataset
from molrmog.interfaces import evaluation
from molrmog.interfaces.trained import Trained
from molrmog.schedules import VPSchedule


def a_law(seed=0):
    return MoLRMoG.random(dim=4, latent_dims=(2, 2), modes=(1, 1), noise=0.2, seed=seed)


def rows(count, seed):
    drawn = a_law().sample(count, torch.Generator().manual_seed(seed))
    return Dataset(name="rows", shape=(4,), x=drawn.x.numpy(), labels=drawn.subspace.numpy())


@pytest.mark.parametrize(("samples", "held", "is_few"), [(50, 50, False), (49, 80, True), (80, 49, True)])
def test_numbers_of_few_rows_say_so(samples, held, is_few):
    train, held = rows(100, 1), rows(held, 2)
    x = evaluation.draw(a_law(), samples)
    (space,) = evaluation.feature_spaces(["pca"], train, held)
    of_samples = [*evaluation.quality(x, train, held, space), *evaluation.memorisation(x, train, held)]
    of_rows = [m for m in evaluation.likelihood(a_law(), train, held) if "held-out" in m.where]
    of_rows += evaluation.clusters(a_law(), held)
    assert {evaluation.FEW_ROWS in m.where for m in of_samples} == {is_few}
    assert {evaluation.FEW_ROWS in m.where for m in of_rows} == {len(held) < 50}
    for m in (*of_samples, *of_rows):
        assert (evaluation.FEW_ROWS in evaluation.in_short(m.where)) == (evaluation.FEW_ROWS in m.where)


def test_exact_samples_lie_where_the_network_does(device):
    laws = [a_law(seed) for seed in (0, 1)]
    network = PerExpert([MoGDenoiser(law) for law in laws]).to(device)
    trained = Trained(network, VPSchedule(), torch.tensor([0.0, 1.0]))
    drawn = trained.sample(2000, sampler="exact")
    assert drawn.x.device.type == drawn.expert.device.type == device.type
    expected = laws[1].cpu().sample(2000, torch.Generator().manual_seed(1)).x
    np.testing.assert_allclose(drawn.x.cpu().mean(0), expected.mean(0), atol=0.2)
    np.testing.assert_allclose(drawn.x.cpu().T.cov(), expected.T.cov(), atol=0.3)
