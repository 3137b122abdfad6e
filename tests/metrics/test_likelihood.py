import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from molrmog.data import Dataset
from molrmog.laws.molrmog import MoLRMoG
from molrmog.metrics import log_likelihood

SCALE = 2 / 255


class White(torch.nn.Module):
    """N(0, sigma^2 I), the least that the metric asks of a law."""

    def __init__(self, dim, sigma):
        super().__init__()
        self.dim, self.noise_floor, self.blocks = dim, sigma, []
        self.register_buffer("sigma", torch.tensor(sigma, dtype=torch.float64))

    def log_prob(self, x):
        self.blocks.append(len(x))
        return Normal(0.0, self.sigma).log_prob(x).sum(1)


def test_bits_per_dim_are_those_of_the_density_of_the_raw_values():
    rng = np.random.default_rng(0)
    sigma, shift = 0.3, -1.0
    x = rng.normal(0, sigma, (500, 7))
    raw = (x - shift) / SCALE
    # The same Gaussian written in grey levels.
    density = Normal(torch.tensor(-shift / SCALE, dtype=torch.float64), sigma / SCALE)
    nats = density.log_prob(torch.from_numpy(raw)).sum(1)
    found = log_likelihood(White(7, sigma), x, scale=SCALE)
    assert found.bits_per_dim == pytest.approx(float(-nats.mean() / 7 / math.log(2)), rel=1e-10)
    assert found.bits_per_dim_median == pytest.approx(float(-nats.quantile(0.5) / 7 / math.log(2)), rel=1e-10)
    assert (found.noise_floor, found.noise_floor_raw) == pytest.approx((0.3, 0.3 / SCALE))


def test_nats_estimate_the_entropy_within_their_standard_error():
    law = MoLRMoG.random(dim=6, latent_dims=(2, 3), modes=(2, 2), noise=0.2, seed=0, dtype=torch.float64)
    x = law.sample(4000, torch.Generator().manual_seed(0)).x
    found = log_likelihood(law, x)
    other = log_likelihood(law, law.sample(4000, torch.Generator().manual_seed(1)).x)
    assert abs(found.nats - other.nats) < 4 * math.hypot(found.nats_se, other.nats_se)
    nats = law.log_prob(x).detach()
    assert found.nats == pytest.approx(float(nats.mean()))
    assert found.nats_median == pytest.approx(float(nats.quantile(0.5)))
    assert found.nats_se == pytest.approx(float(nats.std() / math.sqrt(4000)))
    assert found.noise_floor == pytest.approx(0.2)
    assert (found.rows, found.dim, found.dequantised) == (4000, 6, None)


def test_a_dataset_brings_its_scale_and_its_dequantisation():
    x = np.random.default_rng(0).normal(0, 0.3, (50, 4)).astype(np.float32)
    data = Dataset(name="rows", shape=(4,), x=x, scale=SCALE, shift=-1.0, levels=256, dequantised=True)
    found, plain = log_likelihood(White(4, 0.3), data), log_likelihood(White(4, 0.3), x, scale=SCALE)
    assert found.dequantised is True
    assert found.bits_per_dim == plain.bits_per_dim


def test_a_read_only_memory_map_is_read_in_blocks(tmp_path):
    x = np.random.default_rng(0).normal(0, 0.3, (25, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    law = White(4, 0.3)
    found = log_likelihood(law, np.load(tmp_path / "x.npy", mmap_mode="r"), chunk=10)
    assert law.blocks == [10, 10, 5]
    assert found.nats == pytest.approx(log_likelihood(law, torch.from_numpy(x)).nats)


@pytest.mark.parametrize(
    ("x", "scale", "message"),
    [
        (np.zeros((3, 5)), 1.0, "5 columns where 4"),
        (np.zeros((0, 4)), 1.0, "N >= 1"),
        (np.full((3, 4), np.inf), 1.0, "infinite"),
        (np.zeros((3, 4)), 0.0, "scale"),
    ],
)
def test_bad_rows_are_refused(x, scale, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(White(4, 0.3), x, scale=scale)
