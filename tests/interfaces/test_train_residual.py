"""`molrmog train --network residual`: the base is fitted once, kept, and stays or is trained along."""

import json
import shutil

import numpy as np
import pytest
import torch
from pages import check_page
from safetensors.torch import load_file

import molrmog
from molrmog import MoLRMoG, PerExpert, pictures
from molrmog.denoisers.experts import Experts
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.experiments import bases
from molrmog.interfaces import training
from molrmog.interfaces.cli import main
from molrmog.interfaces.runs import Run

TINY = ["--steps", "6", "--batch-size", "32", "--width", "8", "--channels", "[8,8]", "--modes", "2", "--no-evaluate"]
TINY += ["--device", "cpu", "--ema", "0.5", "--grid-every", "3", "--checkpoint-every", "3"]
ROWS = ["--autoencoder", "none", "--latent-dim", "3"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    label = rng.integers(0, 2, 160)
    np.savez(path, x=rng.normal(size=(160, 6)) * [1, 1, 1, 0.3, 0.2, 0.1] + 4 * label[:, None], y=label)
    return path


def train(rows, out, *words):
    return main(["train", str(rows), "--network", "residual", "--out", str(out), *TINY, *words])


def network_of(run):
    model = molrmog.load(run)
    network = model.denoiser if isinstance(model, Experts) else model
    assert isinstance(network, ResidualDenoiser)
    return network


def changed(run):
    """Tensors of the base that training has changed."""
    before, after = load_file(run / "base" / "model.safetensors"), network_of(run).base.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
@pytest.mark.parametrize("place", [["--autoencoder", "linear", "--latent-dim", "3"], ROWS])
def test_the_base_stays_and_the_network_is_told_the_expert(place, rows, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(rows, run, *place) == 0
    network = network_of(run)
    assert changed(run) == set()
    assert network.num_parameters == network.network.num_parameters
    assert network.network.experts == network.base.experts == 2
    page = check_page(run / "report.html")
    assert "what the base leaves" in page
    assert "told which of 2 experts, frozen" in page
    assert ("The fit of its law by EM" in page) == (place is ROWS)
    words = ["sample", str(run), "--num", "30", "--steps", "8", "--out", str(tmp_path / "a.png"), "--overwrite"]
    with np.load(rows) as data:
        x, y = data["x"], data["y"]
    for k in range(2):
        assert main([*words, "--npz", str(tmp_path / "a.npz"), "--expert", str(k)]) == 0
        with np.load(tmp_path / "a.npz") as drawn:
            assert (drawn["expert"] == k).all()
            # Told its expert, even a base that has hardly been trained on draws from it.
            apart = [np.linalg.norm(drawn["x"].mean(0) - x[y == own].mean(0)) for own in range(2)]
        assert np.argmin(apart) == k
    capsys.readouterr()
    assert main(["evaluate", str(run), "--features", "pca", "--num-samples", "50", "--steps", "4"]) == 0
    assert "Fréchet distance" in capsys.readouterr().out
    assert main(["info", str(run)]) == 0
    assert "network on it" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("place", [["--autoencoder", "linear", "--latent-dim", "3"], ROWS])
def test_what_is_learned_moves_and_the_rest_stays(place, rows, tmp_path):
    run = tmp_path / "run"
    assert train(rows, run, *place, "--learn", "mean,basis") == 0
    assert changed(run) == {f"denoisers.{k}.law.{part}" for k in range(2) for part in ("mean", "basis")}
    network = network_of(run)
    assert network.num_parameters > network.network.num_parameters
    for part in network.base.networks:
        A = part.law.basis[:, 0]
        torch.testing.assert_close(A.T @ A, torch.eye(A.shape[1]), rtol=0, atol=1e-5)
    assert "trained along" in check_page(run / "report.html")


def test_the_base_of_a_run_is_the_network_that_adds_nothing(rows, tmp_path):
    run = tmp_path / "run"
    assert train(rows, run, *ROWS) == 0
    trained = Run(run).model()
    x, expert = trained.sample(20, steps=4).x, torch.arange(20) % 2
    alone = molrmog.load(run / "base").denoise(x, 0.8, 0.6, expert)
    assert torch.equal(trained.base.denoiser.denoise(x, 0.8, 0.6, expert), alone)
    assert not torch.equal(trained.denoiser.denoise(x, 0.8, 0.6, expert), alone)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {r["law"] for r in records if r["kind"] == "measurement"} == {"residual", "base"}
    assert [r["iteration"] for r in records if r["kind"] == "em"][:2] == [0, 1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_without_another_fit(rows, tmp_path, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "samples_picture", stop)
        assert train(rows, run, *ROWS) == 130
    assert (run / "base" / "model.safetensors").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(bases, "fit", stop)
        assert train(rows, run, *ROWS) == 0
    assert train(rows, whole, *ROWS) == 0
    a, b = (load_file(each / "model.safetensors") for each in (run, whole))
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.slow
def test_a_saved_law_beneath(rows, tmp_path, capsys):
    fitted, by_label = tmp_path / "law", tmp_path / "by-label"
    words = ["fit", str(rows), "--latent-dim", "3", "--modes", "2", "--no-evaluate", "--out"]
    rng = np.random.default_rng(1)
    three = tmp_path / "three.npz"  # as many groups as subspaces, so that none loses its rows
    np.savez(three, x=rng.normal(size=(160, 6)) + 8 * np.eye(6)[np.arange(160) % 3])
    assert main(["fit", str(three), *words[2:], str(fitted), "--subspaces", "3", "--head", "4"]) == 0
    assert main([*words, str(by_label), "--labels"]) == 0
    run = tmp_path / "run"
    none = ["--autoencoder", "none"]
    assert train(rows, run, *none, "--base", str(fitted), "--gates") == 0
    network = network_of(run)
    assert network.base.noise == "diagonal"
    assert network.network.gates == 3
    shutil.rmtree(fitted)  # the run has a copy
    assert main(["sample", str(run), "--num", "4", "--steps", "3"]) == 0
    assert train(rows, tmp_path / "told", *none, "--base", str(by_label)) == 0
    assert network_of(tmp_path / "told").base.experts == 2
    assert train(rows, tmp_path / "idle", *none, "--base", str(by_label), "--gates") == 1
    assert "pass --drop-expert 0.1, or a --base fitted without --labels" in capsys.readouterr().err
    assert not (tmp_path / "idle").exists()
    assert train(rows, tmp_path / "along", *none, "--base", str(by_label), "--learn", "mean") == 0
    assert isinstance(network_of(tmp_path / "along").base, PerExpert)
    capsys.readouterr()
    assert train("digits", tmp_path / "other", *none, "--base", str(by_label)) == 1
    assert "is a MoLRMoG over R^6, and the rows have 64 columns" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert isinstance(molrmog.load(by_label), MoLRMoG)


@pytest.mark.slow
def test_a_network_on_half_the_law(rows, tmp_path):
    run = tmp_path / "run"
    assert train(rows, run, *ROWS, "--added", "0.5") == 0
    network = network_of(run)
    x, expert = torch.randn(5, 6), torch.tensor([0, 1, 0, 1, 1])
    for parameter in network.network.parameters():
        parameter.data.zero_()
    s, gamma, var = 0.8, 0.6, network.sigma_data**2
    skip = s * var / (s**2 * var + gamma**2) * x
    half = 0.5 * network.base.denoise(x, s, gamma, expert) + 0.5 * skip  # all that is left where the network is silent
    torch.testing.assert_close(network.denoise(x, s, gamma, expert), half)


@pytest.mark.slow
def test_the_loss_of_the_base_stands_beside_the_networks(rows, tmp_path):
    for name, words in (("whole", []), ("half", ["--added", "0.5"])):
        run = tmp_path / name
        assert train(rows, run, *ROWS, *words) == 0
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found = {r["law"]: r["value"] for r in records if r["kind"] == "measurement" and r["name"] == "denoising loss"}
        losses = {r["step"]: r["loss"] for r in records if r["kind"] == "validation"}
        expected = {"residual": losses[6], "base": losses[0]}
        assert found == (expected if name == "whole" else {"residual": losses[6]})  # half a base is no base


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "unet", "--head", "8"], "--head belongs to --network residual"),
        (["--network", "mlp", "--base", "x"], "--base belongs to --network residual"),
        (["--network", "mlp", "--added", "0.5"], "--added belongs to --network residual"),
        (["--added", "1.5"], "--added 1.5: pass a share from 0 to 1"),
        (["--gates"], "--gates goes with --autoencoder none"),
        (["--head", "auto"], "--head goes with --autoencoder none"),
        (["--base", "x", "--autoencoder", "none", "--head", "8"], "leave out --head"),
        (["--base", "x", "--autoencoder", "none"], "leave out --latent-dim"),
        (["--zero-mean"], "--zero-mean belongs to --network gaussian"),
        (["--start", "random"], "--start random belongs to --network mog"),
        (["--autoencoder", "none", "--gates", "--learn", "mean"], "leave out --gates, or --learn"),
        (["--autoencoder", "none", "--gates"], "--gates: this law is told the expert of a row, and so is the network"),
        (["--autoencoder", "none", "--head", "2"], "--head 2 is less than --latent-dim 3"),
        (["--autoencoder", "none", "--head", "5", "--learn", "mean"], "leave out --learn, or --head"),
        (["--autoencoder", "none", "--learn", "means"], "--learn means: choose among"),
        (["--autoencoder", "none", "--drop-expert", "1.5"], "--drop-expert 1.5: pass a probability"),
    ],
)
def test_flags_that_say_nothing_are_refused_before_any_work(words, message, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "load_parts", None)
    assert train(rows, tmp_path / "run", "--latent-dim", "3", *words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("molrmog")]
    assert len(lines) == 1
    assert lines[0].startswith("molrmog: error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", ["nowhere", "runs/nowhere"])  # the second could be a name on the hub
def test_a_base_that_is_not_there_is_refused_without_a_request(base, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert train(rows, tmp_path / "run", "--autoencoder", "none", "--base", base) == 1
    assert f"--base {base}: no model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_settings_that_an_older_run_did_not_know_do_not_stop_it(rows, tmp_path):
    settings = {"data": str(rows), "steps": 5}
    (tmp_path / "config.yaml").write_text("network: mlp\nsteps: 5\n")
    assert training._begun(tmp_path, {**settings, "network": "mlp", "attention": True})
    with pytest.raises(ValueError, match="steps was 5, now 6"):
        training._begun(tmp_path, {**settings, "network": "mlp", "steps": 6})
