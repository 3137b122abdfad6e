"""`molrmog explain`: figures against formulas written out, the law that is chosen, the files, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from pages import check_page

import molrmog
from molrmog.data import load_parts
from molrmog.interfaces.cli import main
from molrmog.interfaces.runs import Run
from molrmog.metrics import agreement
from molrmog.schedules import VPSchedule


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classes of rows in R^6, a law of them by class, and a network that was trained on them a little."""
    folder = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 6)) * [1, 1, 1, 0.3, 0.2, 0.1] + 4 * label[:, None]
    np.savez(folder / "rows.npz", x=x.astype(np.float32), y=label)
    train, _ = load_parts(str(folder / "rows.npz"))
    molrmog.fit(train, train.labels, latent_dim=3, modes=2, noise="isotropic").save_pretrained(folder / "law")
    words = ["--network", "mlp", "--autoencoder", "none", "--width", "8", "--steps", "30", "--device", "cpu"]
    assert main(["train", str(folder / "rows.npz"), "--out", str(folder / "run"), *words, "--no-evaluate"]) == 0
    return folder


def explain(*words):
    return main(["explain", *map(str, words)])


def lines(folder, kind):
    found = [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.mark.slow
def test_a_network_that_is_the_law_is_explained_in_full(place, tmp_path, capsys):
    law = molrmog.load(place / "law")
    molrmog.MoGDenoiser(law).save_pretrained(tmp_path / "network")
    words = ["--data", place / "rows.npz", "--law", place / "law", "--levels", 4]
    assert explain(tmp_path / "network", *words) == 0
    levels = lines(tmp_path / "network" / "explain", "level")
    assert [(level["share"], level["beyond"], level["apart"]) for level in levels] == [(1.0, 1.0, 0.0)] * 4
    assert all(level["loss"] == level["law_loss"] and level["rows"] == 40 for level in levels)
    assert "too few to trust" in capsys.readouterr().out


def test_figures_of_a_run_are_those_written_out(place, tmp_path):
    sigmas = [0.3, 2.0]
    assert explain(place / "run", "--law", place / "law", "--levels", sigmas, "--out", tmp_path / "out") == 0
    assert "told the expert as the network is" in lines(tmp_path / "out", "explain")[0]["law_used"]
    _, held = load_parts(str(place / "rows.npz"))
    expert = Run(place / "run").experts()[1]
    network, law = molrmog.load(place / "run"), molrmog.load(place / "law")
    x0 = torch.from_numpy(np.asarray(held.x))
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    maps = np.load(tmp_path / "out" / "maps.npz")
    for i, (sigma, level) in enumerate(zip(sigmas, lines(tmp_path / "out", "level"), strict=True)):
        s, gamma = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        xt = s * x0 + gamma * eps
        with torch.no_grad():
            D = network.denoise(xt, s, gamma, expert).double()
        B = torch.empty_like(D)
        for k in range(2):  # E[x_0 | x_t, k] by the subspace alone
            alone = molrmog.MoLRMoG.from_subspaces([law.subspace(k)]).requires_grad_(False)
            B[expert == k] = alone.denoise(xt[expert == k], s, gamma).double()
        missed, variance = (D - B).square().mean(0), D.var(0, correction=0)
        assert level["sigma"] == pytest.approx(sigma, rel=1e-6)
        assert level["loss"] == pytest.approx(float((D - x0).square().mean()), rel=1e-5)
        assert level["law_loss"] == pytest.approx(float((B - x0).square().mean()), rel=1e-5)
        assert level["share"] == pytest.approx(1 - float(missed.sum() / variance.sum()), abs=1e-5)
        np.testing.assert_allclose(maps["missed"][i], missed, rtol=1e-4)
        np.testing.assert_allclose(maps["variance"][i], variance, rtol=1e-4)
        for part in lines(tmp_path / "out", "level of expert")[i::2]:
            mine = expert == int(part["expert"])
            assert part["rows"] == int(mine.sum())
            assert part["loss"] == pytest.approx(float((D - x0)[mine].square().mean()), rel=1e-5)


@pytest.mark.slow
def test_the_folder_holds_what_the_page_says_and_is_the_same_again(place):
    out = place / "run" / "explain"
    assert explain(place / "run", "--levels", [0.2, 1, 4], "--modes", 2) == 0
    first = lines(out, "level")
    assert explain(place / "run", "--levels", [0.2, 1], "--modes", 2) == 0
    assert lines(out, "level") == first[:2]
    names = {path.name for path in out.iterdir()}
    assert names == {"explain.html", "figures.jsonl", "maps.npz", "curves.png", "level-01.png", "level-02.png"}
    text = check_page(out / "explain.html")
    for word in ("beyond", "By expert", "360 together", "40 held-out rows"):
        assert word in text


@pytest.mark.slow
def test_a_residual_network_is_explained_by_its_base_unless_a_law_is_asked_for(place, tmp_path, capsys):
    law = molrmog.load(place / "law")
    train, held = load_parts(str(place / "rows.npz"))
    torch.manual_seed(0)
    hybrid = molrmog.ResidualDenoiser(law, molrmog.MLPDenoiser(6, width=8, inputs=2))
    hybrid.measure_(torch.from_numpy(np.asarray(train.x)))
    with torch.no_grad():
        for parameter in hybrid.network.parameters():
            parameter.add_(0.1)
    hybrid.save_pretrained(tmp_path / "hybrid")
    words = [tmp_path / "hybrid", "--data", place / "rows.npz", "--levels", [0.5]]
    assert explain(*words) == 0
    out = capsys.readouterr().out
    assert "by the base that it stands on (K = 2, d = 3, n = 2)" in out
    (level,) = lines(tmp_path / "hybrid" / "explain", "level")
    schedule = VPSchedule()
    x = np.asarray(held.x)
    (same,) = agreement(hybrid, law, x, schedule, [schedule.time(-2 * float(np.log(0.5)))])
    assert level["share"] == pytest.approx(same.share, abs=1e-6)
    assert level["share"] < 1
    assert lines(tmp_path / "hybrid" / "explain", "level of class")
    assert explain(*words, "--modes", 1) == 0
    assert "which is not the law here" in capsys.readouterr().out


@pytest.mark.slow
def test_a_law_of_other_subspaces_is_not_told_the_expert(place, tmp_path):
    law = molrmog.load(place / "law")
    turned = molrmog.MoLRMoG.from_subspaces([law.subspace(1), law.subspace(0)])
    turned.save_pretrained(tmp_path / "turned")
    assert explain(place / "run", "--law", tmp_path / "turned", "--levels", 1, "--out", tmp_path / "out") == 0
    assert "not told the expert" in lines(tmp_path / "out", "explain")[0]["law_used"]


@pytest.mark.slow
def test_latents_are_drawn_through_the_decoders(tmp_path):
    words = ["--network", "mlp", "--width", "8", "--steps", "5", "--latent-dim", "4", "--experts", "1"]
    assert main(["train", "digits", *words, "--out", str(tmp_path / "run"), "--device", "cpu", "--no-evaluate"]) == 0
    assert explain(tmp_path / "run", "--levels", [0.5], "--rows", 60, "--show", 3) == 0
    (level,) = lines(tmp_path / "run" / "explain", "level")
    maps = np.load(tmp_path / "run" / "explain" / "maps.npz")
    scale = float(molrmog.load(tmp_path / "run").autoencoders[0].latent_scale)
    # Columns of the decoder are orthonormal but for its scale: |x - x'|^2 = scale^2 |z - z'|^2.
    assert maps["missed"].sum() == pytest.approx(scale**2 * 4 * level["apart"] * level["loss"], rel=1e-4)
    assert "in the latents" in check_page(tmp_path / "run" / "explain" / "explain.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{law}", "--data", "{rows}"], "holds a law"),
        (["{run}", "--law", "{law}", "--modes", "3"], "leave one of them out"),
        (["{run}", "--subspaces", "3"], "leave it out"),
        (["{run}", "--levels", "0"], "--levels 0"),
        (["{run}", "--levels", "[1e9]"], "pass sigmas from"),
        (["{run}", "--rows", "1"], "--rows 1"),
        (["{run}", "--out", "{place}"], "holds something else"),
        (["{place}/nowhere"], "no folder"),
        (["{run}", "--data", "digits"], "pass its own data"),
        (["{run}", "--law", "{other}"], "law over R\\^8"),
    ],
)
def test_a_bad_request_is_one_line(place, tmp_path, capsys, words, message):
    molrmog.MoLRMoG.random(8, (2,), (1,), seed=0).save_pretrained(tmp_path / "other")
    names = {"law": place / "law", "rows": place / "rows.npz", "run": place / "run", "place": place}
    assert explain(*[word.format(**names, other=tmp_path / "other") for word in words]) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if "error" in line]
    assert re.search(message, error[-1])


def test_a_denoiser_without_data_says_so(place, tmp_path, capsys):
    molrmog.MLPDenoiser(6, width=8).save_pretrained(tmp_path / "network")
    assert explain(tmp_path / "network") == 1
    assert "pass --data DATA" in capsys.readouterr().err


def test_a_class_that_only_held_out_rows_have_is_one_line(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(40))  # every row is a class of its own
    molrmog.MLPDenoiser(6, width=8).save_pretrained(tmp_path / "network")
    assert explain(tmp_path / "network", "--data", tmp_path / "rows.npz", "--levels", 1) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"held-out rows of .* have the label \d+, which no training row has: pass --data", error)
