import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from pages import check_page
from safetensors.torch import load_file

import molrmog
from molrmog import pictures
from molrmog.denoisers.experts import Experts
from molrmog.experiments import latents
from molrmog.interfaces.cli import main
from molrmog.interfaces.trained import Trained
from molrmog.schedules import VPSchedule

TINY = ["--steps", "20", "--batch-size", "32", "--latent-dim", "4", "--modes", "2", "--start", "k-means"]
OFTEN = ["--log-every", "5", "--checkpoint-every", "10", "--validate-every", "10", "--grid-every", "10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", "--out", str(folder), *TINY, *OFTEN, "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    label = rng.integers(0, 2, 160)
    np.savez(path, x=rng.normal(size=(160, 6)) * [1, 1, 1, 0.3, 0.2, 0.1] + 4 * label[:, None], y=label)
    return path


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def same_weights(a, b):
    a, b = (load_file(folder / "model.safetensors") for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_train_writes_a_whole_run(run):
    names = "config.yaml config.json model.safetensors data.json metrics.jsonl samples.png report.html"
    assert {path.name for path in run.iterdir()} == {*names.split(), "experts.npz", "checkpoints", "grids"}
    assert sorted(path.name for path in (run / "grids").iterdir()) == ["step-00000010.png", "step-00000020.png"]
    assert [r["step"] for r in records(run, "train")] == [5, 10, 15, 20]
    assert [r["step"] for r in records(run, "validation")] == [0, 10, 20]
    model = molrmog.load(run)
    assert isinstance(model, Experts)
    labels = molrmog.load_data("digits").labels
    assert torch.allclose(model.weights, torch.tensor(np.bincount(labels) / len(labels), dtype=torch.float32))
    measured = {(r["name"], r["where"]): r["value"] for r in records(run, "measurement")}
    assert measured["parameters", "cost of the score network"] == model.num_parameters
    assert measured["parameters", "cost of the autoencoders"] == 10 * (64 * 4 + 64)
    text = check_page(run / "report.html")
    assert "Loss during the training" in text
    assert "cost of the autoencoders" in text


def test_the_measured_likelihood_and_error_are_those_of_the_saved_model(run):
    model, held = molrmog.load(run), molrmog.load_data("digits", "test")
    x, k = torch.tensor(held.x), torch.tensor(held.labels)
    z = model.encode(x, k)
    nats = torch.stack([model.latent_laws[own].log_prob(row[None])[0] for row, own in zip(z, k, strict=True)])
    error = (model.decode(z, k) - x).square().mean().sqrt()
    measured = {r["name"]: r["value"] for r in records(run, "measurement")}
    assert measured["log-likelihood, nats, mean"] == pytest.approx(nats.mean().item(), rel=1e-4)
    assert measured["root mean squared error"] == pytest.approx(error.item(), rel=1e-4)


def test_a_finished_run_says_so_and_stays_as_it_is(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["train", "--config", str(run / "config.yaml")]) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert yaml.safe_load((run / "config.yaml").read_text())["modes"] == 2


def test_sample_by_expert_and_sampler(run, tmp_path, capsys):
    words = ["sample", str(run), "--num", "8", "--out", str(tmp_path / "a.png"), "--npz", str(tmp_path / "a.npz")]
    assert main([*words, "--expert", "3", "--steps", "4"]) == 0
    with np.load(tmp_path / "a.npz") as drawn:
        assert (drawn["expert"] == 3).all()
        assert drawn["x"].shape == (8, 64)
    assert main([*words, "--overwrite", "--sampler", "exact"]) == 0
    assert main([*words, "--overwrite", "--sampler", "dpm++", "--steps", "3", "--schedule", "flow"]) == 0
    capsys.readouterr()
    for wrong, message in ((["--expert", "10"], "experts 0 to 9"), (["--subspace", "1"], "pass --expert")):
        assert main([*words, "--overwrite", *wrong]) == 1
        assert message in capsys.readouterr().err


def test_evaluate_and_info(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MOLRMOG_WEIGHTS_DIR", raising=False)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    count = len(records(copy, "measurement"))
    assert main(["evaluate", str(copy), "--features", "pca", "--num-samples", "60", "--steps", "4"]) == 0
    found, err = capsys.readouterr()
    assert [line for line in err.splitlines() if "LPIPS is left out" in line]
    assert "recall, k = 3" in found
    assert "denoising loss" not in found  # which the training measured, and nobody since
    assert len(records(copy, "measurement")) > count
    page = check_page(copy / "report.html")
    assert "molrmog evaluate" in page
    assert "denoising loss" in page
    assert main(["evaluate", str(copy), "--clip", "nowhere"]) == 1
    assert "--prompt" in capsys.readouterr().err
    assert main(["info", str(copy)]) == 0
    assert "MoG network" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("network", ["gaussian", "mlp"])
def test_a_network_of_the_rows_themselves(network, rows, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", str(rows), "--out", str(out), "--network", network, "--autoencoder", "none", "--width", "16"]
    assert main([*words, *TINY, "--no-evaluate"]) == 0
    assert not isinstance(molrmog.load(out), Experts)
    assert main(["evaluate", str(out), "--num-samples", "50", "--features", "pca", "--steps", "4"]) == 0
    assert ("log-likelihood" in capsys.readouterr().out) == (network == "gaussian")
    assert main(["sample", str(out), "--num", "4", "--expert", "1", "--npz", str(tmp_path / "a.npz")]) == 0
    exact = main(["sample", str(out), "--num", "4", "--sampler", "exact"])
    assert exact == (0 if network == "gaussian" else 1)
    check_page(out / "report.html")


@pytest.mark.slow
def test_noise_levels_are_those_of_edm_unless_others_are_asked_for(rows, tmp_path):
    words = ["train", str(rows), *TINY, "--no-evaluate"]  # in standardised latents, so EDM's mean is -1.2 + log 2
    edm = ["--level-mean", str(math.log(2) - 1.2), "--level-std", "1.2"]
    for name, flags in (("edm", []), ("same", edm), ("mean", ["--level-mean", "1"]), ("std", ["--level-std", "0.1"])):
        assert main([*words, "--out", str(tmp_path / name), *flags]) == 0
    assert same_weights(tmp_path / "edm", tmp_path / "same")
    assert not any(same_weights(tmp_path / "edm", tmp_path / name) for name in ("mean", "std"))


@pytest.mark.slow
def test_exact_and_walked_samples_of_a_network_of_rows_agree(rows, tmp_path):
    out = tmp_path / "run"
    words = ["--network", "gaussian", "--autoencoder", "none", "--latent-dim", "6", "--no-evaluate", *TINY[:4]]
    assert main(["train", str(rows), "--out", str(out), *words]) == 0
    model = molrmog.load(out)
    trained = Trained(model, VPSchedule(), torch.tensor([0.5, 0.5]))
    exact, walked = (trained.sample(5000, expert=1, sampler=name, steps=24).x for name in ("exact", "heun"))
    assert torch.allclose(exact.mean(0), walked.mean(0), atol=0.1)  # 5 standard errors
    assert torch.allclose(exact.T.cov(), walked.T.cov(), atol=0.14)


@pytest.mark.slow
def test_experts_by_clustering(rows, tmp_path):
    out = tmp_path / "run"
    assert main(["train", str(rows), "--out", str(out), "--experts", "2", "--no-evaluate", *TINY]) == 0
    with np.load(out / "experts.npz") as found, np.load(rows) as data:
        assert len(found["train"]) + len(found["held_out"]) == len(data["x"])
        assert set(found["train"]) == {0, 1}


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_end(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    words = ["train", "digits", "--out", str(out), *TINY, *OFTEN, "--no-evaluate"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "samples_picture", stop)
        assert main(words) == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("molrmog: ")
    assert f"molrmog train digits --out {out}" in last
    assert main(["sample", str(out)]) == 1
    assert "not finished, go on with: molrmog train --config" in capsys.readouterr().err
    (out / ".model.safetensors.xyz.part").write_text("half of it")
    assert main(words) == 0
    assert same_weights(out, run)
    assert [r["step"] for r in records(out, "train")] == [5, 10, 15, 20]
    assert [r["name"] for r in records(out, "stage")].count("start") == 1  # found once
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_each_autoencoder_is_kept_when_the_next_is_stopped(rows, tmp_path, monkeypatch):
    words = [
        "train",
        str(rows),
        "--network",
        "mlp",
        "--width",
        "16",
        "--autoencoder",
        "vae",
        "--autoencoder-steps",
        "4",
    ]
    words += [*TINY, "--no-evaluate", "--out"]
    build, calls = latents.build_autoencoder, []

    def stop_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return build(*args, **kwargs)

    out, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(latents, "build_autoencoder", stop_at_the_second)
        assert main([*words, str(out)]) == 130
    kept = out / "autoencoders" / "expert-00" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    assert main([*words, str(out)]) == 0
    assert kept.stat().st_mtime_ns == before
    assert main([*words, str(whole)]) == 0
    assert same_weights(out, whole)


@pytest.mark.slow
def test_a_killed_training_goes_on(rows, tmp_path):
    words = ["train", str(rows), "--out", "run", *TINY[2:], "--steps", "100", "--checkpoint-every", "10"]
    words += ["--no-evaluate", "--device", "cpu"]
    command = [sys.executable, "-m", "molrmog.interfaces.cli", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "run" / "report.html").exists()
    assert main([*words[:3], str(tmp_path / "run"), *words[4:]]) == 0
    assert main([*words[:3], str(tmp_path / "whole"), *words[4:]]) == 0
    killed, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    for name in whole:  # to the bit where both processes have as many threads
        assert torch.allclose(killed[name], whole[name], atol=1e-5)
    assert [r["step"] for r in records(tmp_path / "run", "train")] == [50, 100]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--network", "mob"], 2, "--network mob: did you mean mog?"),
        (["--learn", "mean,weights"], 1, "choose among"),
        (["--latent-dim", "65"], 1, "latent_dim = 65"),
        (["--experts", "1500"], 1, "rows are fewer"),
        (["--steps", "0"], 1, "--steps 0: pass 1 or more"),
        (["--batchsize", "7"], 2, "--batch-size"),
        (["--device", "abacus"], 1, "--device abacus"),
        (["--mixed-precision", "fp16", "--device", "cpu"], 1, "needs a GPU"),
        (["--autoencoder", "nosuch"], 1, "neither a folder nor one of"),
        (["--autoencoder", "taef2"], 1, "TAEF2 takes colour images"),
        (["--beta", "-1", "--autoencoder", "vae"], 1, "--beta -1.0: pass a number >= 0"),
        (["--level-std", "0"], 1, "--level-std 0.0: pass a deviation above 0"),
        (["--level-mean", "50"], 1, "--level-mean 50.0: pass a mean of log sigma from"),
        (["--experts", "0"], 1, "--experts 0: pass 1 or more, or labels"),
        (["--network", "mlp", "--learn", "mean"], 1, "--learn mean: a mlp is learned whole"),
        (["--level-mean", "0", "--levels", "log-snr"], 1, "belong to --levels log-normal"),
        (["--out", "full"], 1, "exists and is not empty"),
        (["--out", "fitted"], 1, "holds a run of molrmog fit"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, file in (("full", "thesis.txt"), ("fitted", "config.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("data: digits\n")
    there = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in words else ["--out", "run"]
    assert main(["train", "digits", *out, *words]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("molrmog")]
    assert lines[0].startswith("molrmog: error: ")
    assert message in lines[0]
    assert sorted(tmp_path.rglob("*")) == there


def test_other_settings_are_named(run, capsys):
    words = ["train", "digits", "--out", str(run), *TINY]
    assert main([*words, "--steps", "30", "--seed", "4"]) == 1
    err = capsys.readouterr().err
    assert "steps was 20, now 30" in err
    assert "seed was 0, now 4" in err
