"""Runs that are trained to be guided, from the command line to guided rows."""

import numpy as np
import pytest
import torch

import molrmog
from molrmog.denoisers.base import given
from molrmog.interfaces.cli import main

TRAIN = ["--autoencoder", "none", "--width", "16", "--depth", "1", "--steps", "20", "--batch-size", "32"]
TRAIN += ["--latent-dim", "3", "--modes", "2", "--device", "cpu", "--no-evaluate"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    label = rng.integers(0, 2, 160)
    np.savez(path, x=rng.normal(size=(160, 6)) + 2 * label[:, None], y=label)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "residual"])
def test_a_run_that_drops_experts_is_guided(network, rows, tmp_path):
    out, npz = tmp_path / "run", tmp_path / "a.npz"
    assert main(["train", str(rows), "--out", str(out), "--network", network, "--drop-expert", "0.3", *TRAIN]) == 0
    model = molrmog.load(out)
    assert model.unconditional
    guided = given(molrmog.GuidedDenoiser(model, 2.0), torch.ones(5, dtype=torch.long))
    draw = torch.Generator().manual_seed(4)
    expected = molrmog.sample(guided, molrmog.VPSchedule(), (5, 6), steps=3, generator=draw)
    words = ["--num", "5", "--steps", "3", "--expert", "1", "--guidance", "2", "--seed", "4", "--npz", str(npz)]
    assert main(["sample", str(out), *words]) == 0
    with np.load(npz) as drawn:
        torch.testing.assert_close(torch.from_numpy(drawn["x"]), expected)


@pytest.mark.slow
def test_a_residual_network_in_shared_latents_is_guided_from_one_law_of_all(tmp_path):
    out, npz = tmp_path / "run", tmp_path / "a.npz"
    small = ["--autoencoder", "shared", "--autoencoder-steps", "2", "--latent-dim", "6"]
    assert (
        main(["train", "digits", "--out", str(out), "--network", "residual", "--drop-expert", "0.3", *TRAIN, *small])
        == 0
    )
    model = molrmog.load(out)
    base = model.denoiser.base
    assert (base.experts, base.dim, base.law.latent_dims) == (10, 6, (6,) * 10)

    # Told no expert the base weighs what it says of each by that expert's share of the density.
    z, s, gamma = base.law.sample(5, torch.Generator().manual_seed(0), s=0.8, gamma=0.6).x, 0.8, 0.6
    parts = [base.part(k) for k in range(10)]
    share = torch.stack([part.log_prob(z, s, gamma) for part in parts], 1) + base.law.subspace_weights.log()
    told = torch.stack([base.denoise(z, s, gamma, k) for k in range(10)], 1)
    torch.testing.assert_close(base.denoise(z, s, gamma), (share.softmax(1)[..., None] * told).sum(1))

    draw = torch.Generator().manual_seed(4)
    how = {"expert": 1, "steps": 3, "sampler": "heun"}
    expected = molrmog.sample_experts(model, molrmog.VPSchedule(), 5, guidance=2.0, generator=draw, **how)
    words = ["--num", "5", "--steps", "3", "--expert", "1", "--guidance", "2", "--seed", "4", "--npz", str(npz)]
    assert main(["sample", str(out), *words]) == 0
    with np.load(npz) as drawn:
        torch.testing.assert_close(torch.from_numpy(drawn["x"]), expected.x)


def test_a_run_that_drops_none_is_not(rows, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", str(rows), "--out", str(out), "--network", "mlp", *TRAIN]) == 0
    assert main(["sample", str(out), "--guidance", "2"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "never trained without an expert: train a unet, mlp or residual with --drop-expert 0.1" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "mog"], "pass --network unet, mlp or residual"),
        (["--network", "mlp", "--autoencoder", "linear"], "pass --autoencoder none or shared"),
        (["--network", "residual", "--autoencoder", "vae"], "pass --autoencoder none or shared"),
        (["--network", "residual", "--learn", "mean"], "leave out --learn"),
        (["--network", "mlp", "--drop-expert", "1"], "pass a probability in [0, 1)"),
    ],
)
def test_where_experts_cannot_be_dropped_a_line_says_why(words, message, rows, tmp_path, capsys):
    asked = ["train", str(rows), "--out", str(tmp_path / "run"), *TRAIN, "--drop-expert", "0.1", *words]
    assert main(asked) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
