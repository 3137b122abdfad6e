import json
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

import molrmog
from molrmog.data import load_parts
from molrmog.denoisers.base import given
from molrmog.interfaces import demo
from molrmog.interfaces.cli import main
from molrmog.interfaces.commands import COMMANDS

SMALL = ["--subspaces", "2", "--latent-dim", "3", "--modes", "2", "--max-iter", "5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        main(["fit", "digits", "--out", str(folder), "--labels", "--dequantise", "--latent-dim", "4", "--modes", "2"])
        == 0
    )
    return folder


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "rows.npz"
    label = rng.integers(0, 2, 120)
    np.savez(path, x=rng.normal(size=(120, 6)) + 4 * label[:, None], y=label)
    return path


def test_fit_writes_a_whole_run(run, capsys):
    names = {path.name for path in run.iterdir()}
    expected = "config.yaml config.json model.safetensors data.json metrics.jsonl samples.png report.html"
    assert names == set(expected.split())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    passes = [r["log_likelihood"] for r in records if r["kind"] == "em"]
    assert len(passes) > 1
    assert passes[-1] > passes[0]
    measured = {r["name"]: r for r in records if r["kind"] == "measurement" and "held-out" in r["where"]}
    law = molrmog.load(run)
    held = molrmog.load_data("digits", "test", dequantise=True)
    nats = law.log_prob(__import__("torch").tensor(held.x)).mean().item()
    assert measured["log-likelihood, nats, mean"]["value"] == pytest.approx(nats, rel=1e-5)
    # bits per dimension of the raw levels, by hand: x = raw / 8 - 1.
    assert measured["bits/dim, mean"]["value"] == pytest.approx(-(nats / 64 + np.log(1 / 8)) / np.log(2), rel=1e-5)
    text = check_page(run / "report.html")
    assert "--dequantise" in text
    assert "noise floor" in text
    assert "one subspace per class" in text


@pytest.mark.slow
def test_saved_settings_repeat_the_fit(run, tmp_path):
    config = run / "config.yaml"
    assert yaml.safe_load(config.read_text())["latent_dim"] == 4
    assert main(["fit", "--config", str(config)]) == 1  # the run is there
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "again")]) == 0
    same = (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert same


def test_sample_writes_the_picture_and_the_rows(run, tmp_path, capsys):
    words = ["sample", str(run), "--num", "9", "--out", str(tmp_path / "a.png"), "--npz", str(tmp_path / "a.npz")]
    assert main([*words, "--subspace", "3", "--seed", "1"]) == 0
    with np.load(tmp_path / "a.npz") as drawn:
        assert drawn["x"].shape == (9, 64)
        assert (drawn["subspace"] == 3).all()
    assert main(words) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--sampler", "euler", "--steps", "4", "--schedule", "flow"]) == 0
    with np.load(tmp_path / "a.npz") as drawn:
        assert np.isfinite(drawn["x"]).all()
        assert drawn.files == ["x"]


def test_a_subspace_is_walked_to_and_guided(run, tmp_path, capsys):
    words = ["sample", str(run), "--num", "9", "--out", str(tmp_path / "a.png"), "--npz", str(tmp_path / "a.npz")]
    law, one = molrmog.load(run), ["--subspace", "1", "--steps", "4"]
    generator = torch.Generator().manual_seed(0)

    def drawn(*more):
        assert main([*words, "--overwrite", *one, *more]) == 0
        with np.load(tmp_path / "a.npz") as found:
            return torch.from_numpy(found["x"])

    for scale, more in ((1.0, ["--sampler", "heun"]), (2.0, ["--guidance", "2"])):
        guided = given(molrmog.GuidedDenoiser(molrmog.ConditionalLaw(law), scale), 1)
        walked = molrmog.sample(guided, molrmog.VPSchedule(), (9, 64), steps=4, generator=generator.manual_seed(0))
        torch.testing.assert_close(drawn(*more), walked)
    bounded = drawn("--guidance", "2", "--guidance-interval", "[0.1,1]")
    assert not torch.allclose(bounded, walked)
    for wrong, message in (
        (["--guidance", "2"], "pass --subspace, too"),
        (["--guidance", "2", *one, "--sampler", "exact"], "leave out --sampler exact"),
        (["--guidance-interval", "[0.1,1]", *one], "and --guidance W"),
        (["--guidance", "2", "--guidance-interval", "[1,0.1]", *one], "0 <= low < high"),
        (["--guidance", "-1", *one], "--guidance -1.0: pass a number >= 0"),
    ):
        assert main([*words, "--overwrite", *wrong]) == 1
        assert message in capsys.readouterr().err


def test_evaluate_adds_measurements_and_rewrites_the_report(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = (copy / "metrics.jsonl").read_text()
    assert main(["evaluate", str(copy), "--features", "[pca]", "--num-samples", "100"]) == 0
    after = (copy / "metrics.jsonl").read_text()
    assert after.startswith(before)
    names = {json.loads(line)["name"] for line in after[len(before) :].splitlines()}
    assert {"bits/dim, mean", "Fréchet distance", "precision, k = 3", "coverage, k = 5", "adjusted Rand index"} <= names
    assert "molrmog evaluate" in check_page(copy / "report.html")
    assert main(["info", str(copy)]) == 0
    assert "precision" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_that_are_no_images_work_from_end_to_end(rows, tmp_path):
    out = tmp_path / "run"
    assert main(["fit", str(rows), "--out", str(out), *SMALL]) == 0
    assert main(["evaluate", str(out), "--num-samples", "50", "--features", "[pca]"]) == 0
    text = check_page(out / "report.html")
    assert "real numbers" in text
    assert "bits/dim" not in text


@pytest.mark.slow
def test_a_head_tail_run_works_from_end_to_end(tmp_path):
    out = tmp_path / "run"
    assert main(["fit", "digits", "--out", str(out), *SMALL, "--head", "8", "--no-evaluate"]) == 0
    assert molrmog.load(out).noise == "diagonal"
    assert main(["sample", str(out), "--num", "4"]) == 0
    check_page(out / "report.html")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["fit", "digits", "--out", "r", "--latent-dims", "3"], 2, "did you mean --latent-dim?"),
        (
            ["fit", "digits", "--out", "r", "--latent-dim", "x"],
            2,
            "--latent-dim x: pass a whole number or auto or a list",
        ),
        (["fit", "digits", "--out", "r", "--head", "x"], 2, "--head x: pass a whole number or auto"),
        (["fit", "digits", "--out", "r", "--seed"], 2, "--seed needs a value"),
        (["fit", "digits", "--out", "r", "--labels=3"], 2, "--labels takes no value"),
        (["evaluate", "r", "--num", "60"], 2, "unknown argument --num: did you mean --num-samples?"),
        (["reproduce", "imagess"], 2, "NAME imagess: did you mean images?"),
        (["fit", "mnst", "--out", "r"], 1, "did you mean mnist?"),
        (["fit", "digits", "--out", "r", "--subspaces", "0"], 1, "--subspaces 0: pass 1 or more"),
        (["fit", "digits", "--out", "trained"], 1, "a run of molrmog train, another kind of run: name another folder"),
        (["fit", "digits", "--out", "trained", "--overwrite"], 1, "another kind of run"),
        (["fit", "digits"], 2, "fit needs --out"),
        (["fit"], 2, "DATA and --out"),
        (["fti", "digits"], 2, "did you mean fit?"),
        (["fit", "digits", "--out", "r", "--config", "nosuch.yaml"], 2, "--config nosuch.yaml"),
        (["fit", "digits", "--out", "r", "--config", "odd.yaml"], 2, "latent_dimm"),
        (["fit", "digits", "--out", "r", "--config", "nan.npy"], 2, "not a YAML file"),
        (["fit", "nosuch", "--out", "r"], 1, "unknown data set 'nosuch'"),
        (["fit", "nan.npy", "--out", "r"], 1, "row 3 holds NaN"),
        (["fit", "digits", "--out", "full"], 1, "exists and is not empty"),
        (["fit", "digits", "--out", "nan.npy"], 1, "is a file"),
        (["fit", "nosuch", "--out", "full"], 1, "exists and is not empty"),  # before any work
        (["fit", "digits", "--out", "r", "--latent-dim", "99"], 1, "pass at most 64"),
        (["fit", "digits", "--out", "r", "--device", "abacus"], 1, "--device abacus"),
        (["sample", "digits", "--seed", "-1"], 1, "--seed -1: pass 0 or more"),
        (["fit", "old", "--out", "r"], 1, "old is a run, not data"),
        (["reproduce", "floor", "--workers", "0"], 1, "--workers 0: pass 1 or more"),
        (["reproduce", "images", "--device", "abacus"], 1, "--device abacus"),
        (["reproduce", "images", "--dataset", "mnst"], 2, "did you mean mnist?"),
        (["reproduce", "floor", "--dataset", "mnist"], 1, "--dataset is an option of images and hybrid: leave it out"),
        (["reproduce", "images", "--rows", "100"], 1, "--rows is an option of hybrid"),
        (["reproduce", "images", "--steps", "160"], 1, "--steps is an option of hybrid"),
        (["reproduce", "hybrid", "--out", "r", "--steps", "24"], 1, "--steps 24: networks are measured after"),
        (["sample", "digits", "--num", "0"], 1, "at least 1"),
        (["sample", "full"], 1, "no run at full"),
        (["sample", "full", "--sampler", "foo"], 2, "exact"),
        (["evaluate", "nowhere"], 1, "no run at nowhere"),
        (["info", "nowhere"], 1, "unknown data set"),
        (["bench", "nosuch"], 1, "benchmark"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = np.ones((20, 4))
    x[3, 1] = np.nan
    np.save("nan.npy", x)
    (tmp_path / "odd.yaml").write_text("latent_dimm: 3\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "data.json").touch()
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.yaml").write_text("network: mog\n")
    there = sorted(tmp_path.rglob("*"))
    assert main(words) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("reading ")]  # which may take its second
    assert message in lines[0]
    assert lines[0].startswith("molrmog: error: ")
    assert len(lines) <= 2
    assert "Traceback" not in out + err
    assert sorted(tmp_path.rglob("*")) == there


def test_a_corrupt_model_is_named(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    model = copy / "model.safetensors"
    model.write_bytes(model.read_bytes()[:200])
    for command in ("sample", "evaluate", "info"):
        assert main([command, str(copy)]) == 1
        assert "corrupt" in capsys.readouterr().err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_for_people(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: molrmog" in text
    for word in ("type:", "Literal", "Optional", "Union", "null", "bool"):
        assert word not in text
    assert "default: False" not in text


def test_help_says_what_an_option_starts_from(capsys):
    assert main(["sample", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "steps of the walk (default: 32)" in text
    assert "--sampler {exact,euler,heun,dpm++,ancestral,sde}" in text
    assert "run folder (required)" in text
    assert "of the samples (default: 0)" in text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fit_leaves_nothing(number, code, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20_000, 50)).astype(np.float32))
    words = ["fit", "x.npy", "--out", "run", "--max-iter", "100000", "--tol", "0", "--latent-dim", "5"]
    # SIGINT is ignored in what a shell runs in the background.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "from molrmog.interfaces.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", start, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".run.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from molrmog.interfaces.cli import main; main(['fit', '--help']);"
        "heavy = {'sklearn', 'matplotlib', 'diffusers', 'torchvision', 'torchmetrics', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_demo_compares_laws_and_networks_and_can_be_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FEATURES", ("pca",))
    small = {name: demo.LAWS[name] | {"max_iter": 2} for name in ("MoLR-MoG", "Gaussian")}
    monkeypatch.setattr(demo, "LAWS", small)
    monkeypatch.setattr(demo, "STEPS", 2)
    train, held = load_parts("digits", dequantise=True)
    monkeypatch.setattr(demo, "load_parts", lambda *_, **__: (train.subset(range(400)), held.subset(range(60))))
    for networks in ({"MoLRG net": demo.NETWORKS["MoLRG net"]}, demo.NETWORKS):
        monkeypatch.setattr(demo, "NETWORKS", networks)
        assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "demo" / "report.html") in out
    text = check_page(tmp_path / "demo" / "report.html")
    for name in (*demo.LAWS, *demo.NETWORKS):
        assert f"Samples, {name}" in text
    records = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    assert len([r for r in records if r["kind"] == "fit"]) == 1  # replaced, not appended to
