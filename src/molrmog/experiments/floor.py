"""Score matching where the truth is known: how far above its floor a MoG network ends, and what that costs in nats.

Rows are drawn from a law p. No denoiser has a smaller loss than the law's own, D* = E[x_0 | x_t]:

    floor = E lambda tr Cov[x_0 | x_t] / D,        excess(theta) = L(theta) - floor = E lambda ||D_theta - D*||^2 / D

The excess is measured in its second form, on fresh rows that network and truth see under the same noise, so that the
noise of the targets is not in it and the truth has exactly 0. One loss counts in nats: with lambda = s^2 / gamma^2 and
log sigma = log(gamma / s) uniform over [a, b],

    (b - a) D excess(theta) = KL(p_a || q_a) - KL(p_b || q_b)

where p_a is the law noised to the level a, q_a that of theta. The second term vanishes at high noise, and the first is,
for sigma below tau, the held-out log-likelihood that the network lacks: score matching learns the density, tau
included, if its noise levels come down to tau often enough.

| run           | starts, in every subspace, at          | learns by                                              |
| ------------- | -------------------------------------- | ------------------------------------------------------ |
| em            | k-means                                | EM, the likeliest of 8 runs                            |
| em-clustered  | k-means                                | EM not told the subspaces, the likeliest of 8 runs     |
| random        | two moments of its rows, means drawn   | score matching, learning rate 0.03                     |
| k-means       | k-means                                | score matching, learning rate 0.03                     |
| k-means-exact | k-means                                | the same with targets D*(x_t) in place of x_0          |
| em-start      | what EM found                          | score matching, learning rate 0.003                    |
| LAMBDA-LEVELS | two moments of its rows, means drawn   | score matching with another weighting and other levels |

All but em-clustered are told the subspace of every training row, as experts that own classes are, for their start: what
is compared is learning, not clustering. Score matching itself has no use for it. Shapes (K, d, n, r) are those of the
truth, and everything is learned, tau and weights included. Where not said otherwise the loss is the library's default:
the weight of EDM with c = 1/2, log sigma ~ N(-1.2, 1.2^2), targets x_0, batches of 256 rows, AdamW without decay,
cosine annealing, an average of the weights.

References:
    Song, Durkan, Murray, Ermon, Maximum Likelihood Training of Score-Based Diffusion Models, arXiv 2101.09258.
    Kingma, Salimans, Poole, Ho, Variational Diffusion Models, arXiv 2107.00630, section 5.
    arXiv 2601.01475, section 4 (estimation of the law by score matching).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from molrmog.denoisers.mog import MoGDenoiser
from molrmog.experiments.cells import check_choice, keep_settings, report_progress, run_cells
from molrmog.experiments.floor_page import write_report, write_tables
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit, mean_log_prob
from molrmog.learning.options import TrainingOptions
from molrmog.learning.rows import Rows
from molrmog.learning.run import METRICS_NAME
from molrmog.learning.score_matching import D, ScoreMatching
from molrmog.learning.starts import mog_start
from molrmog.learning.trainer import training
from molrmog.metrics import Stopwatch
from molrmog.models import SupportsDenoise
from molrmog.saving import write_atomically
from molrmog.schedules import Schedule, VPSchedule
from molrmog.seeds import torch_generator

Budget = Literal["smoke", "cpu", "gpu"]

_SCHEDULE = VPSchedule()
_FLAT_LEVELS: dict[str, Any] = {"weighting": "eps", "levels": "log-snr"}  # the loss that counts nats
_MEASURED = 2048  # rows measured at once


@dataclass(frozen=True)
class TrueLaw:
    """A law to draw from, see `MoLRMoG.random`, and what is learned from its rows.

    Attributes:
        dim: dimension D.
        subspaces: K.
        latent_dim: d of every subspace.
        modes: n of every subspace.
        rank: r of every mode.
        noise: tau.
        losses: compare losses from one start, in place of starts.
    """

    dim: int
    subspaces: int
    latent_dim: int
    modes: int
    rank: int
    noise: float
    losses: bool = False

    @property
    def title(self) -> str:
        """The law in symbols."""
        shape = f"D = {self.dim}, K = {self.subspaces}, n = {self.modes}, d = {self.latent_dim}, r = {self.rank}"
        return f"{shape}, τ = {self.noise:g}"

    def draw(self, seed: int) -> MoLRMoG:
        """The law of a seed."""
        K = self.subspaces
        dims, modes = [self.latent_dim] * K, [self.modes] * K
        law = MoLRMoG.random(self.dim, dims, modes, rank=self.rank, noise=self.noise, seed=seed)
        return law.requires_grad_(False)


@dataclass(frozen=True)
class FloorBudget:
    """How much is spent.

    Attributes:
        laws: name to law.
        seeds: how many laws of each shape, each with its own rows and noise.
        rows: to learn from.
        held_out: fresh rows on which is measured.
        steps: of every training.
        restarts: of EM, of which the likeliest on the rows learned from is kept.
    """

    laws: Mapping[str, TrueLaw]
    seeds: int
    rows: int
    held_out: int
    steps: int
    restarts: int


_LAWS = {
    "d16-k1": TrueLaw(dim=16, subspaces=1, latent_dim=4, modes=2, rank=4, noise=0.1),
    "d16-k3": TrueLaw(dim=16, subspaces=3, latent_dim=3, modes=2, rank=2, noise=0.1),
    "d64-k1": TrueLaw(dim=64, subspaces=1, latent_dim=6, modes=4, rank=2, noise=0.1),
    "d64-k3": TrueLaw(dim=64, subspaces=3, latent_dim=6, modes=4, rank=2, noise=0.1),
    "losses": TrueLaw(dim=16, subspaces=1, latent_dim=4, modes=2, rank=4, noise=0.01, losses=True),
}
BUDGETS = {
    "smoke": FloorBudget(
        laws={
            "d8-k1": TrueLaw(dim=8, subspaces=1, latent_dim=3, modes=2, rank=2, noise=0.2),
            "losses": TrueLaw(dim=8, subspaces=1, latent_dim=3, modes=2, rank=2, noise=0.05, losses=True),
        },
        seeds=1,
        rows=2000,
        held_out=2000,
        steps=40,
        restarts=1,
    ),
    "cpu": FloorBudget(laws=_LAWS, seeds=3, rows=20_000, held_out=10_000, steps=1000, restarts=8),
    "gpu": FloorBudget(laws=_LAWS, seeds=3, rows=100_000, held_out=50_000, steps=10_000, restarts=8),
}

_DEFAULT = {"learning_rate": 0.03, "targets": "sample", "weighting": "edm", "levels": "log-normal"}
_STARTS = {
    "random": {"start": "random", **_DEFAULT},
    "k-means": {"start": "k-means", **_DEFAULT},
    "k-means-exact": {"start": "k-means", **_DEFAULT, "targets": "exact"},
    "em-start": {"start": "em", **_DEFAULT, "learning_rate": 0.003},
}
_LOSSES = {
    f"{weighting}-{levels}": {"start": "random", **_DEFAULT, "weighting": weighting, "levels": levels}
    for weighting, levels in (
        *(("edm", "log-normal"), ("eps", "log-normal"), ("x0", "log-normal")),
        *(("edm", "log-snr"), ("eps", "log-snr"), ("x0", "log-snr")),
    )
}


@dataclass(frozen=True)
class Excess:
    """What a denoiser loses to the law of the data.

    Attributes:
        excess: E lambda |D_theta - D*|^2 / D.
        standard_error: of it, over rows.
        floor: E lambda tr Cov[x_0 | x_t] / D.
        floor_error: its standard error.
    """

    excess: float
    standard_error: float
    floor: float
    floor_error: float

    @property
    def share(self) -> float:
        """The excess as a share of the floor."""
        return self.excess / self.floor


class WatchedMatching(ScoreMatching[D]):
    """Score matching whose loss in eval mode is the excess over the floor, row by row and without noise of targets.

    So the validation losses of a training are its curve, loss minus floor.
    """

    def __init__(self, denoiser: D, truth: MoLRMoG, schedule: Schedule, **options: Any) -> None:
        super().__init__(denoiser, schedule, **options)
        self.truth = copy.deepcopy(truth).requires_grad_(False)

    def forward(self, x0: Tensor, *rest: Tensor) -> Tensor:
        """Loss of each row in training, excess of each row in eval mode, with shape (B,)."""
        if self.training:
            return super().forward(x0, *rest)
        s, gamma, eps = (part.to(x0.dtype) for part in rest)
        xt = s[:, None] * x0 + gamma[:, None] * eps
        apart = self.denoiser.denoise(xt, s, gamma) - self.truth.denoise(xt, s, gamma)
        return self.weight(s, gamma) * apart.square().mean(1)


@torch.no_grad()
def excess_loss(
    denoiser: SupportsDenoise,
    truth: MoLRMoG,
    x: Tensor,
    *,
    schedule: Schedule = _SCHEDULE,
    seed: int = 0,
    **options: Any,
) -> Excess:
    """Excess of a denoiser over the floor, on rows noised alike for both.

    Args:
        denoiser: any, over R^D.
        truth: the law of the rows.
        x: fresh rows with shape (N, D).
        schedule: from which noise levels are drawn.
        seed: of levels and noise.
        options: weighting, levels and so on, of `ScoreMatching`.

    Returns:
        Excess and floor with their standard errors.
    """
    loss = WatchedMatching(denoiser, truth, schedule, **options).eval().to(x.device)
    numbers = loss.draw(len(x), torch_generator(seed))
    excess: list[Tensor] = []
    floor: list[Tensor] = []
    for start in range(0, len(x), _MEASURED):
        x0, s, gamma, eps = (part[start : start + _MEASURED].to(x) for part in (x, *numbers))
        excess.append(loss(x0, s, gamma, eps).double())
        variance = loss.truth.posterior(s[:, None] * x0 + gamma[:, None] * eps, s, gamma).variance
        floor.append((loss.weight(s, gamma) * variance.mean(1)).double())
    (above, above_error), (least, least_error) = (_mean(torch.cat(parts)) for parts in (excess, floor))
    return Excess(above, above_error, least, least_error)


def missing_nats(denoiser: SupportsDenoise, truth: MoLRMoG, x: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """KL(p_a || q_a) - KL(p_b || q_b) between the ends of the schedule, from scores alone, and its standard error.

    Args:
        denoiser: any; only one that is the denoiser of a law q makes this a divergence.
        truth: the law p of the rows.
        x: fresh rows with shape (N, D).
        seed: of levels and noise.
    """
    low, high = ScoreMatching(denoiser, _SCHEDULE).log_sigma_range
    found = excess_loss(denoiser, truth, x, seed=seed, **_FLAT_LEVELS)
    factor = (high - low) * x.shape[1]
    return factor * found.excess, factor * found.standard_error


def run_floor(out: str | Path, budget: Budget = "cpu", seed: int = 0, workers: int = 1) -> Path:
    """Train MoG networks where the truth is known, and write what they lack; the same call goes on where it stopped.

    Args:
        out: folder of the experiment: report.html, results.csv, times.csv, curves.csv, settings.json, cells/.
        budget: "smoke" (seconds), "cpu" (minutes), or "gpu" (longer, on a GPU where there is one).
        seed: of the first law; further ones count up from it.
        workers: processes at a time, one thread each.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown budget, or a number out of range.
        RuntimeError: a cell failed; see `run_cells`.
    """
    seed = check_choice(BUDGETS, budget, seed, workers)
    out = Path(out)
    spent = BUDGETS[budget]
    cells = {
        f"{name}-seed{one}": _settings(law, spent, one, None if budget == "gpu" else "cpu")
        for name, law in spent.laws.items()
        for one in range(seed, seed + spent.seeds)
    }
    settings = {"budget": budget, "seed": seed, "schedule": _SCHEDULE.config, "cells": cells}
    keep_settings(out, settings)
    results = run_cells(compute_cell, cells, out, workers=workers, title="floor")
    records = [
        {"law": name.rsplit("-seed", 1)[0], "seed": cells[name]["seed"], **record}
        for name, result in results.items()
        for record in result["runs"]
    ]
    write_tables(out, records)
    return write_report(out, records, spent, _LOSSES, settings)


def _settings(law: TrueLaw, spent: FloorBudget, seed: int, device: str | None) -> dict[str, Any]:
    """Everything a cell depends on."""
    clustered = {"em-clustered": {"restarts": spent.restarts}} if law.subspaces > 1 else {}
    return {
        "law": asdict(law),
        "seed": seed,
        "rows": spent.rows,
        "held_out": spent.held_out,
        "steps": spent.steps,
        "device": device,
        "em": {"em": {"restarts": spent.restarts}, **clustered},
        "score_matching": _LOSSES if law.losses else _STARTS,
    }


def compute_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All runs on the rows of one law, each kept in `folder` when it is done."""
    law = TrueLaw(**settings["law"])
    seed, steps, device = settings["seed"], settings["steps"], settings["device"]
    truth = law.draw(seed)
    draw = torch_generator(seed)
    learned = truth.sample(settings["rows"], draw)
    x, subspace, fresh = learned.x, learned.subspace, truth.sample(settings["held_out"], draw).x
    names = [*settings["em"], *settings["score_matching"]]
    runs: list[dict[str, Any]] = []

    def trained(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        if options["start"] == "em":
            start = MoLRMoG.from_pretrained(folder / "em")
            em = json.loads((folder / "em.json").read_text())
            wall, cpu = em["seconds"], em["cpu_seconds"]
        else:
            with Stopwatch() as watch:
                start = start_law(options["start"], law, x, subspace, seed)
            wall, cpu = watch.wall, watch.cpu
        loss = {key: options[key] for key in ("weighting", "levels")}
        targets = truth if options["targets"] == "exact" else "sample"
        objective = WatchedMatching(MoGDenoiser(start), truth, _SCHEDULE, targets=targets, **loss)
        chosen = TrainingOptions(
            steps=steps,
            learning_rate=options["learning_rate"],
            seed=seed,
            device=device,
            out=folder / name,
            log_every=max(1, steps // 20),
            validate_every=max(1, steps // 20),
            checkpoint_every=max(1, steps // 4),
            keep=1,
        )
        for state in training(objective, [x], chosen, validation=[fresh[:4096]]):
            report_progress(folder, (names.index(name) + state.step / steps) / len(names))
        lines = [json.loads(line) for line in (folder / name / METRICS_NAME).read_text().splitlines()]
        last = [line for line in lines if line["kind"] == "train"][-1]
        return {
            **measured(objective.denoiser.law.cpu(), truth, fresh, seed, **loss),
            "curve": [(line["step"], line["loss"]) for line in lines if line["kind"] == "validation"],
            "start_seconds": wall,
            "start_cpu_seconds": cpu,
            "seconds": last["seconds"],
            "cpu_seconds": last["cpu_seconds"],
        }

    def by_em(name: str, restarts: int) -> dict[str, Any]:
        with Stopwatch() as watch:
            best = (
                start_law("em", law, x, subspace, seed, restarts)
                if name == "em"
                else clustered_law(law, x, seed, restarts)
            )
        best.save_pretrained(folder / name)
        none = {"start_seconds": 0.0, "start_cpu_seconds": 0.0}
        spent = {"seconds": watch.wall, "cpu_seconds": watch.cpu}
        return {**measured(best, truth, fresh, seed), "curve": [], **none, **spent}

    for i, name in enumerate(names):
        report_progress(folder, i / len(names))
        if name in settings["em"]:
            options = settings["em"][name]
            run = _once(folder / f"{name}.json", lambda name=name, options=options: by_em(name, **options))
        else:
            options = settings["score_matching"][name]
            run = _once(folder / f"{name}.json", lambda name=name, options=options: trained(name, options))
        runs.append({"run": name, **run})
    return {"runs": runs}


def start_law(start: str, law: TrueLaw, x: Tensor, subspace: Tensor, seed: int, restarts: int = 1) -> MoLRMoG:
    """A law of the shape of the truth, whose every subspace starts on its own rows.

    Args:
        start: "random", "k-means" or "em", see `mog_start`.
        law: whose shape is taken.
        x: rows with shape (N, D).
        subspace: of each row, with shape (N,).
        seed: of everything random.
        restarts: how many starts of a subspace, of which the likeliest is taken.
    """
    parts: list[Subspace] = []
    for k in range(law.subspaces):
        own = x[subspace == k]
        found = [
            mog_start(own, law.latent_dim, law.modes, cast(Any, start), one, rank=law.rank)
            for one in range(seed, seed + restarts)
        ]
        best = found[0] if restarts == 1 else max(found, key=lambda law, own=own: mean_log_prob(law, Rows(own)))
        parts.append(replace(best.subspace(0), weight=len(own) / len(x)))
    return MoLRMoG.from_subspaces(parts).requires_grad_(False)


def clustered_law(law: TrueLaw, x: Tensor, seed: int, restarts: int) -> MoLRMoG:
    """The likeliest law of several fits by EM that are not told the subspaces; arguments as above."""
    shape: dict[str, Any] = {"subspaces": law.subspaces, "latent_dim": law.latent_dim, "modes": law.modes}
    found = [fit(x, seed=one, rank=law.rank, noise="isotropic", **shape) for one in range(seed, seed + restarts)]
    return cast(MoLRMoG, max(found, key=lambda law: mean_log_prob(law, Rows(x))))


@torch.no_grad()
def measured(law: MoLRMoG, truth: MoLRMoG, fresh: Tensor, seed: int, **loss: Any) -> dict[str, Any]:
    """What a learned law lacks, on fresh rows."""
    found = excess_loss(MoGDenoiser(law), truth, fresh, seed=seed + 1, **loss)
    nats, nats_error = missing_nats(MoGDenoiser(law), truth, fresh, seed=seed + 2)
    own, true = (one.log_prob(fresh).double() for one in (law, truth))
    gap, gap_error = _mean(true - own)
    return {
        "excess": found.excess,
        "excess_error": found.standard_error,
        "floor": found.floor,
        "floor_error": found.floor_error,
        "share": found.share,
        "nats": nats,
        "nats_error": nats_error,
        "log_likelihood": float(own.mean()),
        "true_log_likelihood": float(true.mean()),
        "gap": gap,
        "gap_error": gap_error,
        "tau": float(law.tau.square().mean().sqrt()),
    }


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _once(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `path` holds; computed and kept there the first time."""
    if not path.exists():
        text = json.dumps(compute(), indent=2)
        write_atomically(path, lambda part: part.write_text(text + "\n"))
    return json.loads(path.read_text())
