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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from molrmog import pictures
from molrmog.denoisers.base import Denoiser
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.experiments.cells import check_choice, keep_settings, report_progress, run_cells
from molrmog.experiments.page import (
    Card,
    Cell,
    Figure,
    Section,
    Table,
    mean_spread,
    number,
    select,
    write_csv,
    write_page,
)
from molrmog.learning.fit import fit, mean_log_prob
from molrmog.learning.options import TrainingOptions
from molrmog.learning.rows import Rows
from molrmog.learning.run import METRICS_NAME
from molrmog.learning.score_matching import ScoreMatching
from molrmog.learning.starts import mog_start
from molrmog.learning.trainer import training
from molrmog.metrics import Stopwatch
from molrmog.mixture import MoLRMoG, Subspace
from molrmog.saving import write_atomically
from molrmog.schedules import Schedule, VPSchedule

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


class WatchedMatching(ScoreMatching):
    """Score matching whose loss in eval mode is the excess over the floor, row by row and without noise of targets.

    So the validation losses of a training are its curve, loss minus floor.
    """

    def __init__(self, denoiser: Denoiser, truth: MoLRMoG, schedule: Schedule, **options: Any) -> None:
        super().__init__(denoiser, schedule, **options)
        self.truth = copy.deepcopy(truth).requires_grad_(False)

    def forward(self, x0: Tensor, *rest: Tensor) -> Tensor:
        """Loss of each row in training, excess of each row in eval mode, with shape (B,)."""
        if self.training:
            return super().forward(x0, *rest)
        s, gamma, eps = (part.to(x0.dtype) for part in rest)
        xt = s[:, None] * x0 + gamma[:, None] * eps
        apart = cast(Denoiser, self.denoiser).denoise(xt, s, gamma) - self.truth.denoise(xt, s, gamma)
        return self.weight(s, gamma) * apart.square().mean(1)


@torch.no_grad()
def excess_loss(
    denoiser: Denoiser, truth: MoLRMoG, x: Tensor, *, schedule: Schedule = _SCHEDULE, seed: int = 0, **options: Any
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
    numbers = loss.draw(len(x), torch.Generator().manual_seed(seed))
    excess: list[Tensor] = []
    floor: list[Tensor] = []
    for start in range(0, len(x), _MEASURED):
        x0, s, gamma, eps = (part[start : start + _MEASURED].to(x) for part in (x, *numbers))
        excess.append(loss(x0, s, gamma, eps).double())
        variance = loss.truth.posterior(s[:, None] * x0 + gamma[:, None] * eps, s, gamma).variance
        floor.append((loss.weight(s, gamma) * variance.mean(1)).double())
    (above, above_error), (least, least_error) = (_mean(torch.cat(parts)) for parts in (excess, floor))
    return Excess(above, above_error, least, least_error)


def missing_nats(denoiser: Denoiser, truth: MoLRMoG, x: Tensor, *, seed: int = 0) -> tuple[float, float]:
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
    check_choice(BUDGETS, budget, seed, workers)
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
    _write_tables(out, records)
    return _write_report(out, records, spent, budget, seed)


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
    draw = torch.Generator().manual_seed(seed)
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
            **measured(cast(MoGDenoiser, objective.denoiser).law.cpu(), truth, fresh, seed, **loss),
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
    found = [fit(x, seed=one, rank=law.rank, **shape) for one in range(seed, seed + restarts)]
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
        "tau": float(law.tau.abs().mean()),
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


_RESULTS = ("law", "seed", "run", "excess", "excess_error", "floor", "floor_error", "share", "nats", "nats_error")
_RESULTS += ("log_likelihood", "true_log_likelihood", "gap", "gap_error", "tau")
_TIMES = ("law", "seed", "run", "start_seconds", "start_cpu_seconds", "seconds", "cpu_seconds")


def _write_tables(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Figures, which a run that was stopped gives again to the last bit, and times, which it does not."""
    for name, columns in (("results.csv", _RESULTS), ("times.csv", _TIMES)):
        write_csv(out / name, columns, [[record[column] for column in columns] for record in records])
    curves = [
        (record["law"], record["seed"], record["run"], step, excess, excess / record["floor"])
        for record in records
        for step, excess in record["curve"]
    ]
    write_csv(out / "curves.csv", ("law", "seed", "run", "step", "excess", "share"), curves)


def _write_report(out: Path, records: Sequence[dict[str, Any]], spent: FloorBudget, budget: str, seed: int) -> Path:
    main = {name: law for name, law in spent.laws.items() if not law.losses}
    starts = [record for record in records if record["law"] in main]
    losses = [record for record in records if record["law"] not in main]
    from_em = [r for r in starts if r["run"] == "em-start"]
    apart = [_likelihoods_apart(starts, r) for r in from_em]
    shares = sorted(100 * r["share"] for r in from_em)
    middle, largest = _each([shares[len(shares) // 2], shares[-1]]).split(" · ")
    lower = sum(a <= b for a, b in _start_against_end(starts))
    cards = [
        Card(
            f"{sum(share < 1 for share in shares)} of {len(shares)}",
            "trained networks within 1% of the floor",
            f"from EM's law; excess {middle}% in the middle, {largest}% at most",
        ),
        Card(f"{_each([100 * max(apart)])}%", "between score matching and EM", "in held-out log-likelihood, at most"),
        Card(
            f"{lower} of {len(from_em)}",
            "start from EM below the end of random starts",
            f"no step against {spent.steps:,} steps",
        ),
    ]
    sections = [
        Section("Excess over the floor", _EXCESS_TEXT, [_excess_table(starts, main)]),
        Section("Held-out log-likelihood", _LIKELIHOOD_TEXT, [_likelihood_table(starts, main)]),
        Section(
            "Training by start",
            _CURVE_TEXT.format(steps=spent.steps),
            [_start_table(starts, main)],
            [Figure(_curve_uri(starts, name), f"{law.title}; dotted: 1%") for name, law in main.items()],
        ),
        Section(
            "Which loss learns the density",
            _LOSS_TEXT,
            [_loss_table(select(losses, law=name), law) for name, law in spent.laws.items() if law.losses],
        ),
    ]
    settings = {
        "budget": budget,
        "seeds": f"{seed} to {seed + spent.seeds - 1}",
        "rows": spent.rows,
        "held-out rows": spent.held_out,
        "steps": spent.steps,
        "batch": 256,
        "learning rate": "0.03, from the law of EM 0.003; Adam, cosine annealing, 100 steps of warmup",
        "average of weights": 0.999,
        "schedule": _SCHEDULE.config,
        "command": f"molrmog reproduce floor --budget {budget} --seed {seed}",
    }
    return write_page(
        out / "report.html", "The floor of score matching", _INTRODUCTION, sections, settings, cards=cards
    )


_INTRODUCTION = """\
Rows are drawn from laws that are known, and MoG networks of the same shape learn them back by denoising score \
matching. What they lack is then no estimate: the denoiser of the law itself has the smallest loss there is, the \
floor, and network and truth are compared on the same noised rows."""
_EXCESS_TEXT = """\
Loss minus floor in per cent of the floor, seed by seed: each has another law, other rows, other noise. Weight of \
EDM, log σ ~ N(−1.2, 1.2²), fresh rows. All but em-clustered start with every training row's subspace known; \
k-means-exact has the posterior means of the true law as targets. What stays at several per cent is at a local \
minimum, which targets without noise do not mend either."""
_LIKELIHOOD_TEXT = """\
Nats per held-out row. “Lacking” is, seed by seed, the truth's own log-likelihood minus that of what was learned, on \
the same rows; “from scores” is the same divergence by denoising alone, between the ends of the schedule."""
_CURVE_TEXT = """\
Loss minus floor of the averaged weights during training. The table compares where the network that EM initialised \
starts, before its first step, with where {steps} steps from other starts end."""
_LOSS_TEXT = """\
The same network, start and steps with other weights λ and other distributions of the noise level (log-normal: log σ \
~ N(−1.2, 1.2²); log-snr: log σ uniform over the schedule's range). Lacking nats are of the held-out log-likelihood."""


def _each(values: Sequence[float]) -> str:
    """The value of every seed, since one outlier makes a mean and spread that mislead."""
    return " · ".join(number(v, 2) if abs(v) >= 1e-3 else f"{v:.0e}".replace("-", "−") for v in values)


def _likelihoods_apart(records: Sequence[dict[str, Any]], run: Mapping[str, Any]) -> float:
    """Difference of a run from EM in held-out log-likelihood, as a share of that of the truth."""
    (em,) = select(records, law=run["law"], seed=run["seed"], run="em")
    return abs(run["log_likelihood"] - em["log_likelihood"]) / abs(em["true_log_likelihood"])


def _start_against_end(records: Sequence[dict[str, Any]], run: str = "random") -> list[tuple[float, float]]:
    """Share before the first step from EM, and after the last of another run on the same rows."""
    pairs: list[tuple[float, float]] = []
    for record in select(records, run="em-start"):
        (other,) = select(records, law=record["law"], seed=record["seed"], run=run)
        pairs.append((record["curve"][0][1] / record["floor"], other["curve"][-1][1] / other["floor"]))
    return pairs


def _excess_table(records: Sequence[dict[str, Any]], laws: Mapping[str, TrueLaw]) -> Table:
    runs = list(dict.fromkeys(record["run"] for record in records))
    rows: list[list[Cell]] = []
    for name, law in laws.items():
        floor = mean_spread([record["floor"] for record in select(records, law=name, run="em")])
        shares = [[100 * record["share"] for record in select(records, law=name, run=run)] for run in runs]
        rows.append([law.title, floor, *(_each(values) if values else None for values in shares)])
    error = max(record["excess_error"] / record["excess"] for record in records if record["run"] != "k-means-exact")
    caption = f"The standard error of an excess, k-means-exact apart, is at most {error:.0%} of it."
    return Table(("law", "floor", *runs), rows, caption)


def _likelihood_table(records: Sequence[dict[str, Any]], laws: Mapping[str, TrueLaw]) -> Table:
    rows: list[list[Cell]] = []
    for name, law in laws.items():
        true = [record["true_log_likelihood"] for record in select(records, law=name, run="em")]
        rows.append([law.title, "the truth", mean_spread(true), *[None] * 6])
        for run in dict.fromkeys(record["run"] for record in select(records, law=name)):
            found = select(records, law=name, run=run)
            figures = [_each([r[key] for r in found]) for key in ("gap", "nats")]
            apart = None if run == "em" else _each([100 * _likelihoods_apart(records, r) for r in found])
            times = [mean_spread([r[f"start_{key}"] + r[key] for r in found]) for key in ("seconds", "cpu_seconds")]
            likelihood, tau = (mean_spread([r[key] for r in found]) for key in ("log_likelihood", "tau"))
            rows.append(["", run, likelihood, *figures, apart, tau, *times])
    columns = ("law", "run", "log-likelihood", "lacking", "from scores", "% from EM", "τ", "seconds", "CPU seconds")
    caption = (
        "“% from EM” is the distance from EM's log-likelihood in per cent of the truth's; times include the start's."
    )
    return Table(columns, rows, caption)


def _start_table(records: Sequence[dict[str, Any]], laws: Mapping[str, TrueLaw]) -> Table:
    rows: list[list[Cell]] = []
    for name, law in laws.items():
        own = select(records, law=name)
        pairs = {run: _start_against_end(own, run) for run in ("random", "k-means")}
        before = [start for start, _ in pairs["random"]]
        ends = [_each([100 * end for _, end in pairs[run]]) for run in pairs]
        rows.append([law.title, _each([100 * share for share in before]), *ends])
        rows[-1].append(all(start <= end for start, end in pairs["random"]))
    columns = ("law", "EM, before training", "random, at the end", "k-means, at the end", "EM starts below random")
    return Table(columns, rows, "Excess in per cent of the floor, seed by seed, on the rows of the curves.")


def _loss_table(records: Sequence[dict[str, Any]], law: TrueLaw) -> Table:
    rows: list[list[Cell]] = []
    for run in dict.fromkeys(record["run"] for record in records):
        found = select(records, run=run)
        loss = _LOSSES.get(run, {"weighting": None, "levels": run})
        gap, share = (_each([factor * r[key] for r in found]) for key, factor in (("gap", 1), ("share", 100)))
        rows.append([loss["weighting"], loss["levels"], gap, mean_spread([r["tau"] for r in found]), share])
    columns = ("λ", "levels", "nats lacking", "τ learned", "excess, % of the floor of that loss")
    return Table(columns, rows, law.title)


def _curve_uri(records: Sequence[dict[str, Any]], name: str) -> str:
    fig, (axis,) = pictures.figure(4.8, 3.0)
    colors = {"random": "#808080", "k-means": "#3b7dd8", "k-means-exact": "#4f9d69", "em-start": "#e08a2e"}
    for run, color in colors.items():
        for i, record in enumerate(select(records, law=name, run=run)):
            steps, excess = zip(*record["curve"], strict=True)
            share = [100 * value / record["floor"] for value in excess]
            axis.plot(steps, share, color=color, lw=1.2, alpha=0.9, label=run if i == 0 else None)
    axis.axhline(1.0, color="#808080", lw=0.8, ls=":")
    axis.set_yscale("log")
    axis.set_ylim(bottom=1e-4)
    axis.minorticks_off()
    axis.set_xlabel("step")
    axis.set_ylabel("excess, % of the floor")
    fig.legend(loc="outside upper center", frameon=False, fontsize=8, labelcolor="#808080", ncols=4)
    return pictures.svg_uri(fig)
