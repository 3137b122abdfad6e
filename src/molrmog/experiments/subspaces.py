"""From how many rows on subspaces are recovered: the claim N_k >= d_k of Wang et al., by three methods.

Laws in R^D with K subspaces of dimension d through the origin, at random; N_k rows of each; what is counted is how
often the largest principal angle between any subspace and its estimate stays below a bound.

| setting   | rows                                                                | off-subspace noise |
| --------- | ------------------------------------------------------------------- | ------------------ |
| clean     | K = 2, one mode, z ~ N(0, I): the law of Wang et al.                | 0                  |
| noisy     | the same                                                            | 0.03               |
| three     | K = 3, otherwise clean                                              | 0                  |
| mixture   | K = 2, two modes of full rank with means: MoLR-MoG                  | 0                  |

| method      | is told                     | see                                                       |
| ----------- | --------------------------- | --------------------------------------------------------- |
| PCA         | the subspace of every row   | principal components without centring                     |
| K-subspaces | nothing, or where to start  | `theory.recovery.k_subspaces`, the start of least energy  |
| score       | nothing, or where to start  | `theory.recovery.score_bases`, the start of least loss    |
| EM          | nothing, or where to start  | `molrmog.fit`, the start of greatest likelihood           |

A start near the truth is the truth with all principal angles turned by 30 degrees. It shows what the minimum is worth,
the starts at random what is found: the claim is about the first.

References:
    Wang et al., Diffusion models learn low-dimensional distributions via subspace clustering, arXiv 2409.02426.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from molrmog import pictures
from molrmog.experiments.cells import check_choice, keep_settings, report_progress, run_cells
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, number, select, write_csv, write_page
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit, mean_log_prob
from molrmog.learning.rows import Rows
from molrmog.learning.subspaces import principal_flat
from molrmog.metrics import Stopwatch, subspace_error
from molrmog.seeds import torch_generator
from molrmog.theory.recovery import k_subspaces, random_bases, score_bases, turned

Budget = Literal["smoke", "cpu", "gpu"]

BOUND = 10.0
"""Degrees that the largest principal angle of a recovered subspace stays below."""

_TURN = 30.0  # degrees of a start near the truth


@dataclass(frozen=True)
class Setting:
    """Which laws rows are drawn from.

    Attributes:
        subspaces: K.
        noise: tau, in data units; latent directions have deviation 1.
        modes: n of every subspace: 1 for N(0, I), more for a mixture whose means are sqrt(d) or so from the origin.
    """

    subspaces: int = 2
    noise: float = 0.0
    modes: int = 1

    def draw(self, dim: int, latent_dim: int, seed: int) -> MoLRMoG:
        """A law of this kind over R^dim, in float64."""
        K, n = self.subspaces, self.modes
        law = MoLRMoG.random(
            dim, [latent_dim] * K, [n] * K, noise=self.noise, seed=seed, separation=latent_dim**0.5, dtype=torch.float64
        ).requires_grad_(False)
        if n == 1:
            law.mean.zero_()
            law.factor.copy_(torch.eye(latent_dim, dtype=torch.float64).expand_as(law.factor))
        return law


SETTINGS = {
    "clean": Setting(),
    "noisy": Setting(noise=0.03),
    "three": Setting(subspaces=3),
    "mixture": Setting(modes=2),
}


@dataclass(frozen=True)
class SubspacesBudget:
    """How much is spent.

    Attributes:
        settings: names in `SETTINGS`.
        dim: D.
        latent_dims: d.
        rows: N_k; every d is among them.
        seeds: laws of each shape.
        starts: of K-subspaces, of score matching, and of EM.
        steps: of score matching.
    """

    settings: tuple[str, ...]
    dim: int
    latent_dims: tuple[int, ...]
    rows: tuple[int, ...]
    seeds: int
    starts: Mapping[str, int]
    steps: int


_STARTS = {"K-subspaces": 64, "score": 4, "EM": 4}
BUDGETS = {
    "smoke": SubspacesBudget(("clean",), 16, (2, 3), (2, 3, 4, 6, 12), 1, {**_STARTS, "EM": 2}, 100),
    "cpu": SubspacesBudget(
        tuple(SETTINGS), 48, (2, 3, 4, 6, 8), (2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 24, 32), 5, _STARTS, 200
    ),
    "gpu": SubspacesBudget(
        tuple(SETTINGS), 64, (2, 3, 4, 6, 8, 12), (*range(2, 17), 20, 24, 32, 48, 64), 20, {**_STARTS, "EM": 8}, 400
    ),
}


def run_subspaces(out: str | Path, budget: Budget = "cpu", seed: int = 0, workers: int = 1) -> Path:
    """Measure how often subspaces are recovered over (d, N_k); the same call goes on where it stopped.

    Args:
        out: folder of the experiment: report.html, results.csv, times.csv, settings.json, cells/.
        budget: "smoke" (seconds), "cpu" (minutes), or "gpu" (a finer grid, on the CPU all the same).
        seed: of the first law; further ones count up from it.
        workers: processes at a time, one thread each.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown budget, or a number out of range.
        RuntimeError: a cell failed; see `run_cells`.
    """
    seed = check_choice(BUDGETS, budget, seed, workers)
    out, spent = Path(out), BUDGETS[budget]
    cells = {
        f"{name}/d{d}": {
            "setting": asdict(SETTINGS[name]),
            "dim": spent.dim,
            "latent_dim": d,
            "rows": list(spent.rows),
            "seeds": list(range(seed, seed + spent.seeds)),
            "starts": dict(spent.starts),
            "steps": spent.steps,
        }
        for d in spent.latent_dims
        for name in spent.settings
    }
    settings = {"budget": budget, "seed": seed, "bound": BOUND, "turn": _TURN, "cells": cells}
    keep_settings(out, settings)
    results = run_cells(compute_cell, cells, out, workers=workers, title="subspaces")
    records: list[dict[str, Any]] = [
        {"setting": name.split("/")[0], "d": cells[name]["latent_dim"], **record}
        for name, result in results.items()
        for record in result["runs"]
    ]
    columns = ("setting", "method", "start", "d", "rows", "seed")
    for name, figure in (("results.csv", "angle"), ("times.csv", "seconds")):
        write_csv(out / name, (*columns, figure), [[r[column] for column in (*columns, figure)] for r in records])
    return _write_report(out, records, spent, budget, seed)


def compute_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All methods on all numbers of rows of laws of one setting and dimension."""
    setting, d = Setting(**settings["setting"]), settings["latent_dim"]
    runs: list[dict[str, Any]] = []
    grid = [(N, one) for N in settings["rows"] for one in settings["seeds"]]
    for at, (N, one) in enumerate(grid):
        report_progress(folder, at / len(grid))
        law = setting.draw(settings["dim"], d, one)
        # Streams of their own: a start from the seed of the law would be its bases over again.
        draw, own = (torch_generator(stream + 1000 * one + N) for stream in (1_000_000, 2_000_000))
        parts = [law.sample(N, draw, subspace=k).x for k in range(setting.subspaces)]
        for method, recover in METHODS.items():
            with Stopwatch() as watch:
                found = recover(law, parts, settings["starts"].get(method, 1), settings["steps"], own)
            for start, bases in found.items():
                about = {"method": method, "start": start, "rows": N, "seed": one}
                runs.append({**about, "angle": float(subspace_error(bases, law).max), "seconds": watch.wall})
    return {"runs": runs}


Bases = Sequence[Tensor]
"""Of each subspace, with shape (D, d)."""


def by_pca(law: MoLRMoG, parts: Sequence[Tensor], *_: Any) -> dict[str, Bases]:
    """Principal components of the rows of each subspace, which are known."""
    return {"labels": [principal_flat(part, law.latent_dims[0], centred=False).basis for part in parts]}


def by_k_subspaces(
    law: MoLRMoG, parts: Sequence[Tensor], starts: int, steps: int, draw: torch.Generator
) -> dict[str, Bases]:
    """K-subspaces from random starts, and from one near the truth.

    Args:
        law: the truth, for its shapes and for the start near it.
        parts: rows of each subspace, each with shape (N_k, D).
        starts: at random, of which the best by its own measure is taken.
        steps: of score matching.
        draw: source of randomness.
    """
    return _by_bases(k_subspaces, law, parts, starts, draw)


def by_score(law: MoLRMoG, parts: Sequence[Tensor], starts: int, steps: int, draw: torch.Generator) -> dict[str, Bases]:
    """Score matching of the bases; arguments as above."""
    return _by_bases(lambda x, at: score_bases(x, at, steps=steps, generator=draw), law, parts, starts, draw)


def by_em(law: MoLRMoG, parts: Sequence[Tensor], starts: int, steps: int, draw: torch.Generator) -> dict[str, Bases]:
    """EM of a law of the truth's shape, from the starts of `molrmog.fit` and near the truth; arguments as above."""
    x, modes = torch.cat(list(parts)), law.modes[0]
    seed = int(torch.randint(2**31, (), generator=draw))

    def fitted(**options: Any) -> MoLRMoG:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "EM dropped|a subspace starts with")  # what few rows are bound to do
            return cast(MoLRMoG, fit(x, zero_mean=modes == 1, noise="isotropic", **options))

    shape: dict[str, Any] = {"subspaces": law.subspaces, "latent_dim": law.latent_dims[0], "modes": modes}
    laws = [fitted(seed=seed + start, **shape) for start in range(starts)]
    found = {
        "random": max(laws, key=lambda law: mean_log_prob(law, Rows(x))),
        "near": fitted(start=_start(law, turned(_bases(law), _TURN, draw))),
    }
    return {start: [law.subspace(k).basis for k in range(law.subspaces)] for start, law in found.items()}


METHODS: dict[str, Callable[..., dict[str, Bases]]] = {
    "PCA": by_pca,
    "K-subspaces": by_k_subspaces,
    "score": by_score,
    "EM": by_em,
}


def _by_bases(
    minimise: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    law: MoLRMoG,
    parts: Sequence[Tensor],
    starts: int,
    draw: torch.Generator,
) -> dict[str, Bases]:
    """All starts at once; the last is the one near the truth."""
    at_random = random_bases(starts, law.subspaces, law.dim, law.latent_dims[0], draw)
    bases, cost = minimise(torch.cat(list(parts)), torch.cat([at_random, turned(_bases(law), _TURN, draw)[None]]))
    return {"random": list(bases[cost[:-1].argmin()]), "near": list(bases[-1])}


def _bases(law: MoLRMoG) -> Tensor:
    """Bases of subspaces of one dimension, with shape (K, D, d)."""
    return law.basis.detach().transpose(0, 1)


def _start(law: MoLRMoG, bases: Tensor) -> MoLRMoG:
    """The law with other bases (K, D, d), and some noise for EM to see across them."""
    parts = [law.subspace(k) for k in range(law.subspaces)]
    return MoLRMoG.from_subspaces(
        [
            Subspace(
                p.weight,
                basis,
                p.offset,
                max(p.isotropic_tau("clustering by subspaces"), 0.1),
                p.mode_weights,
                p.means,
                p.factors,
            )
            for p, basis in zip(parts, bases, strict=True)
        ]
    ).requires_grad_(False)


def rates(records: Sequence[Mapping[str, Any]], bound: float = BOUND) -> dict[tuple[int, int], float]:
    """(d, N_k) to the share of laws whose every subspace is within `bound` degrees."""
    found: dict[tuple[int, int], list[bool]] = {}
    for record in records:
        found.setdefault((record["d"], record["rows"]), []).append(record["angle"] < bound)
    return {at: sum(each) / len(each) for at, each in found.items()}


def threshold(rate: Mapping[tuple[int, int], float], d: int, share: float) -> int | None:
    """The least N_k on the grid from which on the rate stays at `share` or above; None where it does not."""
    least = None
    for N in sorted((N for dim, N in rate if dim == d), reverse=True):
        if rate[d, N] < share:
            break
        least = N
    return least


def _arms(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((record["method"], record["start"]) for record in records))


def _write_report(out: Path, records: Sequence[dict[str, Any]], spent: SubspacesBudget, budget: str, seed: int) -> Path:
    clean = select(records, setting="clean")
    at_d = {arm: _at_d(clean, *arm) for arm in _arms(clean)}
    cards = [
        Card(at_d["PCA", "labels"], "recovered from N_k = d rows, labels known", "clean rows, principal components"),
        Card(at_d["K-subspaces", "near"], "from N_k = d rows, start near the truth", "clean rows, K-subspaces"),
        Card(at_d["score", "near"], "from N_k = d rows, start near the truth", "clean rows, score matching"),
        Card(at_d["EM", "random"], "from N_k = d rows, nothing known", "clean rows, EM"),
    ]
    sections = [
        Section(
            f"{name}: {_TITLES[name]}",
            _TEXTS[name],
            [_threshold_table(select(records, setting=name), spent)],
            [_heat_maps(select(records, setting=name), spent, near) for near in (False, True)],
        )
        for name in spent.settings
    ]
    sections.append(Section("The bound", _BOUND_TEXT, [_bound_table(clean, spent)]))
    settings = {
        "budget": budget,
        "D": spent.dim,
        "d": spent.latent_dims,
        "N_k": spent.rows,
        "seeds": f"{seed} to {seed + spent.seeds - 1}",
        "bound": f"{BOUND:g} degrees, on the largest principal angle of the worst subspace",
        "starts": spent.starts,
        "score matching": f"{spent.steps} steps of Adam, full batches, s = 1, log γ uniform over 0.02 to 0.2",
        "command": f"molrmog reproduce subspaces --budget {budget} --seed {seed}",
    }
    return write_page(out / "report.html", "Rows to recover a subspace", _INTRODUCTION, sections, settings, cards=cards)


_INTRODUCTION = """\
Wang et al. (arXiv 2409.02426) claim that a diffusion model of their form learns a union of subspaces from N_k ≥ d_k \
rows per subspace on, and not from fewer. Counted here: how often all subspaces are recovered, over d and N_k, by \
score matching, by EM and by K-subspaces; from starts at random, and from the truth turned by 30°.

From N_k ≥ d clean rows a subspace follows once its rows are known. Which rows are its own does not follow from \
N_k = d: any d rows lie in some subspace of dimension d, so every split into parts of d rows has the loss 0 of \
K-subspaces. From N_k = d + 1 on the true split alone has it, but finding it is another matter."""
_TITLES = {
    "clean": "two subspaces, one Gaussian each, no noise",
    "noisy": "the same rows with noise of deviation 0.03 in every direction",
    "three": "three subspaces, no noise",
    "mixture": "two modes in each subspace",
}
_TEXTS = {
    "clean": "The setting of the claim. Numbers are laws recovered; the line is N_k = d. Score matching ends at finite "
    "noise and after finitely many steps, so that it does not reach the angles of the other two at few rows.",
    "noisy": "With noise, d rows span their subspace no longer exactly: how many are needed depends on the bound.",
    "three": "More ways to mix rows up.",
    "mixture": "EM fits two modes with means and an offset per subspace, so it needs more rows to begin with; "
    "K-subspaces and score matching know only bases, and see rows that are not centred.",
}
_BOUND_TEXT = """\
The same runs under other bounds on the largest principal angle: the least N_k, clean rows, from which on every law is \
recovered."""


def _at_d(records: Sequence[dict[str, Any]], method: str, start: str) -> str:
    own = [record for record in select(records, method=method, start=start) if record["rows"] == record["d"]]
    return f"{sum(record['angle'] < BOUND for record in own)} of {len(own)}"


def _threshold_table(records: Sequence[dict[str, Any]], spent: SubspacesBudget) -> Table:
    rows: list[list[Cell]] = []
    for method, start in _arms(records):
        own = select(records, method=method, start=start)
        rate = rates(own)
        half, whole = ([threshold(rate, d, share) for d in spent.latent_dims] for share in (0.5, 1.0))
        cells = [f"{_text(a)} / {_text(b)}" for a, b in zip(half, whole, strict=True)]
        seconds = sum(record["seconds"] for record in own) / len(own)
        rows.append([method, start, *cells, _at_d(own, method, start), number(seconds, 2)])
    columns = ("method", "start", *(f"d = {d}" for d in spent.latent_dims), "at N_k = d", "seconds each")
    caption = (
        "The least N_k on the grid from which on at least half / all of the laws are recovered; – where "
        f"{max(spent.rows)} rows are not enough."
    )
    return Table(columns, rows, caption)


def _bound_table(records: Sequence[dict[str, Any]], spent: SubspacesBudget) -> Table:
    rows: list[list[Cell]] = []
    for method, start in _arms(records):
        own = select(records, method=method, start=start)
        for bound in (1.0, 5.0, BOUND, 20.0):
            rate = rates(own, bound)
            rows.append([method, start, f"{bound:g}°", *(_text(threshold(rate, d, 1.0)) for d in spent.latent_dims)])
    return Table(("method", "start", "bound", *(f"d = {d}" for d in spent.latent_dims)), rows)


def _text(least: int | None) -> str:
    return "–" if least is None else str(least)


def _heat_maps(records: Sequence[dict[str, Any]], spent: SubspacesBudget, near: bool) -> Figure:
    where = "near the truth" if near else "at random"
    caption = (
        f"Laws of {spent.seeds} that are recovered within {BOUND:g}°, starts {where}; right of the orange line N_k ≥ d."
    )
    return Figure(pictures.svg_uri(plot_rates(records, spent, near)), caption, wide=True)


def plot_rates(records: Sequence[dict[str, Any]], spent: SubspacesBudget, near: bool) -> Any:
    """Heat maps of laws recovered over (d, N_k): known labels, then the methods from one kind of start."""
    arms = [arm for arm in _arms(records) if arm[1] == "labels" or (arm[1] == "near") == near]
    fig, axes = pictures.figure(3.1 * len(arms), 0.28 * len(spent.latent_dims) + 1.1, columns=len(arms))
    dims, counts = spent.latent_dims, spent.rows
    for axis, (method, start) in zip(axes, arms, strict=True):
        rate = rates(select(records, method=method, start=start))
        axis.imshow([[rate[d, N] for N in counts] for d in dims], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, d in enumerate(dims):
            for j, N in enumerate(counts):
                colour = "white" if rate[d, N] > 0.5 else "#404040"
                axis.text(j, i, f"{rate[d, N] * spent.seeds:.0f}", ha="center", va="center", fontsize=6, color=colour)
            edge = counts.index(d) - 0.5
            axis.plot([edge, edge], [i - 0.5, i + 0.5], color="#e08a2e", lw=2)
        axis.set_xticks(range(len(counts)), [str(N) for N in counts])
        axis.set_yticks(range(len(dims)), [str(d) for d in dims])
        axis.grid(visible=False)
        axis.set_xlabel("rows of each subspace, $N_k$")
        axis.set_title(f"{method}, {_START_NAMES[start]}", fontsize=9, color="#808080")
    axes[0].set_ylabel("d")
    return fig


_START_NAMES = {"labels": "labels known", "random": "random starts", "near": "start near the truth"}
