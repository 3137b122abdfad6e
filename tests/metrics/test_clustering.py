import numpy as np
import pytest
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.metrics import assign, clustering


def test_rows_go_to_the_subspace_and_mode_that_made_them():
    law = MoLRMoG.random(dim=30, latent_dims=(2, 3, 4), modes=(2, 1, 3), noise=0.02, separation=20.0, seed=0)
    samples = law.sample(500, torch.Generator().manual_seed(0))
    subspaces, modes = assign(law, samples.x, chunk=64)
    np.testing.assert_array_equal(subspaces, samples.subspace)
    found = clustering(modes, law.modes[0] * 10 * samples.subspace.numpy() + samples.mode.numpy())
    assert found.ari > 0.95


def test_a_subspace_wins_by_the_sum_of_its_modes():
    class Law(torch.nn.Module):
        dim, subspaces, component_of = 2, 2, torch.tensor([0, 1, 1])

        def posterior(self, x, s, gamma):
            return type("P", (), {"responsibilities": torch.tensor([[0.4, 0.3, 0.3]]).expand(len(x), 3)})

    subspaces, modes = assign(Law(), np.zeros((5, 2)))
    assert set(subspaces) == {1}
    assert set(modes) == {0}


def test_scores_of_partitions_counted_by_hand():
    # Clusters {0, 0, 1} and {1, 1, 1}: 1 + 3 agreeing pairs of same-cluster same-label among 15 pairs.
    found = clustering(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1]))
    same, clusters, labels, pairs = 1 + 3, 3 + 3, 1 + 6, 15
    chance = clusters * labels / pairs
    assert found.ari == pytest.approx((same - chance) / ((clusters + labels) / 2 - chance))
    assert found.purity == pytest.approx(5 / 6)
    joint = np.array([[2, 1], [0, 3]]) / 6
    entropies = [-(p * np.log(p)).sum() for p in (joint.sum(0), joint.sum(1), joint[joint > 0])]
    assert found.nmi == pytest.approx((entropies[0] + entropies[1] - entropies[2]) / np.mean(entropies[:2]))
    assert found.clusters == 2


def test_purity_looks_for_the_commonest_label_of_a_cluster_and_not_the_reverse():
    assert clustering(np.array([0, 1, 2, 3]), np.array([5, 5, 5, 6])).purity == 1.0
    assert clustering(np.array([0, 0, 0, 0]), np.array([5, 5, 6, 7])).purity == 0.5


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        clustering(np.zeros(3, int), np.zeros(4, int))
