"""The image comparison at toy size: computed once, gone on with, and its figures against the files it keeps."""

import csv
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import molrmog
from molrmog.experiments import images
from molrmog.experiments.images import BUDGETS, DATASETS, plan, run_images

SECONDS = ("train wall", "train cpu", "sample wall", "sample cpu", "exact sample cpu")
FIGURES = ("Fréchet", "precision", "recall", "memorisation", "flops", "parameters", "train cpu", "sample cpu")


class Links(HTMLParser):
    """All that a page points to, and its text."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.text, self.headings, self._inside = [], "", set(), False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href")]

        self._inside = tag == "h2"

    def handle_data(self, data):
        self.text += data
        if self._inside and data.strip():
            self.headings.add(data.strip())

    def handle_endtag(self, tag):
        self._inside = False


def digits(out):
    return run_images(out, "digits", "smoke", workers=2)


def results(out):
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_seconds(out):
    return [{key: value for key, value in row.items() if key not in SECONDS} for row in results(out)]


def times(out):
    found = {str(path.relative_to(out / "cells").parent): path.stat().st_mtime_ns for path in out.rglob("cell.json")}
    return {name: time for name, time in found.items() if ".before-" not in name}  # those moved aside


def mixture_log_likelihood(cell, kept):
    """Mean log-density of held-out latents under the law of their expert, with dense covariances."""
    model = molrmog.load(str(cell / "model"))
    with np.load(kept / "latents/vae-label-2/latents.npz") as z, np.load(kept / "experts/label-2/experts.npz") as own:
        rows, expert = z["held"].astype(np.float64), own["held"]
    total = 0.0
    for k, network in enumerate(model.denoiser.networks):
        mean, factor = (getattr(network.law, name)[0].detach().double().numpy() for name in ("mean", "factor"))
        noise = float(network.law.tau[0]) ** 2 * np.eye(rows.shape[1])
        modes = [multivariate_normal(m, U @ U.T + noise) for m, U in zip(mean, factor, strict=True)]
        weights = network.law.mode_logits[0].detach().double().log_softmax(0).numpy()
        own = rows[expert == k]
        total += logsumexp([w + mode.logpdf(own) for w, mode in zip(weights, modes, strict=True)], axis=0).sum()
    return total / len(rows)


# One test, so that the comparison is computed once, whichever processes share the tests.
@pytest.mark.slow
def test_a_comparison_is_computed_once_and_gone_on_with(tmp_path, monkeypatch, capfd):
    page, kept = digits(tmp_path), tmp_path / "cells"
    assert capfd.readouterr().out == ""
    first, rows, numbers = times(tmp_path), results(tmp_path), without_seconds(tmp_path)

    # A row for every line and seed of the tables, each with its figures.
    arms, cells = images._networks(plan("digits", "smoke"), images._sets(plan("digits", "smoke"), 0), {}, 100, 0, "cpu")
    assert {name for name in first if name.startswith("networks/")} == cells.keys()
    assert [(row["part"], row["autoencoders"], row["label"]) for row in rows] == [
        (arm.part, arm.autoencoders, arm.label) for arm in arms
    ]
    assert {row["part"] for row in rows} == {"networks", "start", "ablations", "pixels"}
    for row in rows:
        numeric = row.keys() - {"part", "autoencoders", "label", "network", "space"}
        assert all(math.isfinite(float(row[key])) for key in numeric if row[key] or key in FIGURES), row
        assert bool(row["loss"]) == (row["part"] != "pixels")
    for name in cells:
        samples = np.load(kept / name / "samples.npy")
        assert samples.shape == (64, 64)
        assert np.isfinite(samples).all()

    # A mixture of 4 modes in R^8 for each of 2 experts: means, factors, weights, tau and w; and its density.
    for arm, row in zip(arms, rows, strict=True):
        if arm.part == "networks" and row["network"] in ("mog", "em"):
            assert int(row["parameters"]) == 2 * (4 * (8 + 8 * 8 + 1) + 2)
            expected = mixture_log_likelihood(kept / arm.cell, kept)
            assert float(row["log-likelihood"]) == pytest.approx(expected, rel=1e-4)

    # What an autoencoder loses is what its latents say.
    encoded = json.loads((kept / "latents/vae-label-2/cell.json").read_text())["result"]
    real, decoded = (np.load(kept / f"latents/vae-label-2/{part}.npy") for part in ("original", "decoded"))
    assert encoded["mean squared error"] == pytest.approx(np.square(real - decoded).mean(), rel=0.2)  # 64 of 100 rows
    assert encoded["latent_shape"] == [8]

    links = Links(page.read_text(encoding="utf-8"))
    assert links.targets
    assert all(target.startswith("data:") for target in links.targets)
    assert all(row["label"] in links.text for row in rows)
    assert all(
        (tmp_path / "pictures" / f"{name}.png").exists() for name in ("held-out", "reconstructed", "networks-mlp")
    )

    # Again: nothing is computed, and the page's figures are the same.
    table = (tmp_path / "results.csv").read_bytes()
    digits(tmp_path)
    assert times(tmp_path) == first
    assert (tmp_path / "results.csv").read_bytes() == table

    # A plan with less of it has a page without empty sections, and one law more is one cell more.
    assert {"Start", "Experts and autoencoders", "Pixels"} <= links.headings
    less = replace(
        plan("digits", "smoke"), starts=(), laws=((4, 2),), more_experts=(), kinds=(), pixel_law=None, ablated=()
    )
    with monkeypatch.context() as patch:
        patch.setattr(images, "plan", lambda *_: less)
        assert Links(digits(tmp_path).read_text(encoding="utf-8")).headings == {
            "Networks",
            "Samples",
            "Autoencoders",
            "What was run",
        }
    more = "networks/vae-label-2/law-by-em-n-4-rank-2/0"
    assert times(tmp_path).keys() - first.keys() == {more}
    (kept / more / "cell.json").unlink()

    # A cell of a network that cannot be built is named, in a line; all others stay.
    law = "networks/pixels/law-by-em/0"
    impossible = replace(plan("digits", "smoke"), pixel_law={"latent_dim": 8, "modes": 0})
    with monkeypatch.context() as patch:
        patch.setattr(images, "plan", lambda *_: impossible)
        with pytest.raises(RuntimeError, match=r"^cell networks/pixels/law-by-em/0 failed: [^\n]*modes[^\n]*$"):
            digits(tmp_path)
    assert times(tmp_path) == {name: time for name, time in first.items() if name != law}

    # What is missing is computed, nothing else, and comes out as before.
    start = "networks/vae-label-2/mog-n-4-from-random/0"
    (kept / start / "cell.json").unlink()
    digits(tmp_path)
    assert {name for name, time in times(tmp_path).items() if first[name] != time} == {law, start}
    assert without_seconds(tmp_path) == numbers


@pytest.mark.slow
def test_experts_that_cannot_be_are_a_cell_that_fails(tmp_path, monkeypatch):
    made = replace(plan("digits", "smoke"), experts=15, more_experts=(), kinds=())
    monkeypatch.setattr(images, "plan", lambda *_: made)
    with pytest.raises(
        RuntimeError, match=r"^cell experts/label-15 failed: 15 experts for 10 classes: pass a multiple"
    ):
        run_images(tmp_path, "digits", "smoke", workers=1)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_plans_compare_the_same_networks_in_the_same_latents(dataset, budget):
    made = plan(dataset, budget)
    arms, cells = images._networks(made, images._sets(made, 0), {"data": made.data}, 10, 0, "cpu")
    assert {arm.cell for arm in arms} == cells.keys()
    main = [arm for arm in arms if arm.part == "networks"]
    assert {cells[arm.cell]["network"] for arm in main} == {"unet", "mlp", "gaussian", "mog", "em", "residual"}
    assert len({arm.autoencoders for arm in main}) == 1
    trained = [cells[arm.cell]["training"] for arm in main if "steps" not in arm.label]
    for training in filter(None, trained):  # EM has none
        assert {**training, "learning_rate": made.training["learning_rate"]} == made.training
    by_label = {arm.label: cells[arm.cell] for arm in main}
    for cell in by_label.values():
        if cell["network"] == "residual":  # its law is one that stands beside it in the table
            law = by_label[f"law by EM, n = {cell['options']['modes']}"]
            assert law["options"].items() <= cell["options"].items()
    assert {cell["sampler_steps"] for cell in cells.values()} == {made.sampler_steps}
    # A name stands for one computation, and no computation has two.
    assert len({json.dumps(cell) for cell in cells.values()}) == len(cells)
    lines = [(arm.part, arm.autoencoders, arm.label, cells[arm.cell]["seed"]) for arm in arms]
    assert len(set(lines)) == len(lines)


def test_other_seeds_are_other_cells():
    made = plan("digits", "smoke")
    first, second = (images._networks(made, images._sets(made, seed), {}, 10, seed, "cpu")[1] for seed in (0, 1))
    assert all(cell["seed"] + 1 == second[name]["seed"] for name, cell in first.items())


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dataset 'abacus', budget 'cpu': choose among mnist"):
        run_images(tmp_path, "abacus")
    with pytest.raises(ValueError, match="budget 'huge': choose among mnist"):
        run_images(tmp_path, "mnist", "huge")
