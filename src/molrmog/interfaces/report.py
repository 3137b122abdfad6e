"""One page per run that stands alone: everything inlined, nothing to run, readable offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molrmog import metrics, pictures
from molrmog.data import Dataset
from molrmog.experiments.page import machine, number
from molrmog.interfaces import evaluation
from molrmog.interfaces.runs import REPORT_NAME, Run
from molrmog.laws.base import Law, Subspace
from molrmog.saving import write_atomically

_CANDIDATES = 8  # listed
_DRAWN = 12  # subspaces drawn, the heaviest ones
_DIRECTIONS = 6  # directions drawn of each
_MODES = 8  # mode means drawn of each
_GRID = 64  # pictures in a grid


def write_report(
    run: Run,
    law: Law,
    train: Dataset,
    held_out: Dataset,
    samples: np.ndarray,
    *,
    others: Mapping[str, np.ndarray] | None = None,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    introduction: str = "",
) -> Path:
    """Write `report.html` of a run from its records and its data.

    Args:
        run: the run; its records hold the measurements.
        law: its law.
        train: the rows it was fitted to.
        held_out: rows it has not seen.
        samples: of the law, with shape (N, D).
        others: samples of other laws and of networks, by name, to be shown beside.
        curves: records of the training of networks, by name.
        introduction: a paragraph for the top of the page.

    Returns:
        The path of the page.

    Raises:
        OSError: the page cannot be written; an old one is left whole.
    """
    records = run.records()
    fit = next((r for r in reversed(records) if r["kind"] == "fit"), {})
    gates = _mean_gates(law, held_out)
    return render(
        run,
        "report.html",
        records,
        train,
        held_out,
        samples,
        others=others,
        introduction=introduction,
        about=law.summary(),
        made=fit,
        cards=_cards([r for r in records if r["kind"] == "measurement"], fit, train),
        curve=_curve(records),
        losses=None if curves is None else pictures.svg_uri(pictures.losses(held_out_losses(curves))),
        labelled=bool(fit.get("labels")),
        chosen=_chosen(fit, [r for r in records if r["kind"] == "candidate"]),
        head=law.head_dim,
        drawn=_drawn(law, train, gates),
        hidden=max(0, law.subspaces - _DRAWN),
        usage=pictures.svg_uri(pictures.gate_usage(_weights(law), gates)) if law.subspaces > 1 else None,
        composition=_composition(law, held_out),
        notes=_notes(law, train, fit),
    )


def render(
    run: Run,
    template: str,
    records: Sequence[Mapping[str, Any]],
    train: Dataset,
    held_out: Dataset,
    samples: np.ndarray,
    *,
    about: Sequence[tuple[str, str]],
    made: Mapping[str, Any],
    others: Mapping[str, np.ndarray] | None = None,
    **parts: Any,
) -> Path:
    """Write the page of a run: what all pages have, and the parts that its template asks for.

    Args:
        run: the run.
        template: file name of the template.
        records: of the run.
        train: training rows.
        held_out: held-out rows.
        samples: with shape (N, D).
        about: what the model is, as name and value.
        made: the record of the fit or training: its command and machine.
        others: samples of other models, by name, to be shown beside.
        parts: what else the template names.

    Returns:
        The path of the page.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("molrmog", "interfaces"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    rows, columns, commands = _table([r for r in records if r["kind"] == "measurement"])
    page = environment.get_template(template).render(
        name=train.name,
        about=about,
        groups=[
            (where, [row for row in rows if row["where"] == where]) for where in dict.fromkeys(r["where"] for r in rows)
        ],
        columns=columns,
        commands=commands,
        figure=evaluation.figure,
        sampled=_sample_pictures(columns[0] if columns else "", train, held_out, samples, others or {}),
        settings=run.settings(),
        data=_data_rows(train, held_out),
        machine=made.get("machine") or machine(),
        made=made,
        **parts,
    )
    write_atomically(run.folder / REPORT_NAME, lambda part: part.write_text(page, "utf-8", "backslashreplace"))
    return run.folder / REPORT_NAME


def held_out_losses(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[Mapping[str, Any]]]:
    """The records of the loss on held-out rows, by the name of the network."""
    return {name: [r for r in records if r["kind"] == "validation"] for name, records in curves.items()}


def _weights(law: Law) -> np.ndarray:
    """Weights w_k, with shape (K,)."""
    parts = [law.subspace(k).weight for k in range(law.subspaces)]
    return np.array(parts)


def _mean_gates(law: Law, rows: Dataset) -> np.ndarray:
    """Mean responsibility of each subspace, with shape (K,)."""
    total = torch.zeros(law.subspaces, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(rows), 4096):
            r = law.subspace_responsibilities(torch.tensor(np.asarray(rows.x[start : start + 4096])))
            total += r.sum(0).double()
    return (total / len(rows)).numpy()


def _table(measured: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Latest measurements as rows, one column per law, and the commands they came from."""
    columns = list(dict.fromkeys(r["law"] for r in measured))
    latest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for r in measured:
        key = (r["where"], r["name"], r["law"])
        latest.pop(key, None)  # what was measured again moves to the end, among its like
        latest[key] = r
    commands = list(dict.fromkeys(r["command"] for r in latest.values()))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for (where, name, law), r in latest.items():
        row = rows.setdefault((where, name), {"values": {}})
        row |= {key: r[key] for key in ("name", "where", "better", "reference")}
        row["values"][law] = r["value"]
        row["command"] = commands.index(r["command"]) + 1
    for row in rows.values():
        finite = {law: value for law, value in row["values"].items() if value == value}
        target = {"lower": 0.0, "higher": np.inf, "one": 1.0}.get(row["better"])
        best = None
        if len(finite) > 1 and target is not None:
            best = (max if target == np.inf else min)(
                finite, key=lambda law: finite[law] if row["better"] != "one" else abs(finite[law] - 1)
            )
        row["best"] = best
        row["aim"] = {"lower": "↓", "higher": "↑", "one": "→ 1"}.get(row["better"], "")
    return list(rows.values()), columns, commands


def _cards(measured: Sequence[Mapping[str, Any]], fit: Mapping[str, Any], train: Dataset) -> list[tuple[str, str, str]]:
    """The figures for the top of the page: value, name, small print."""
    rows = _table(measured)[0]
    cards: list[tuple[str, str, str]] = []
    wanted = ("bits/dim, mean", "Fréchet distance", "adjusted Rand index")
    if train.levels is None:
        wanted = ("log-likelihood, nats, mean", *wanted[1:])
    for name in wanted:
        row = next((row for row in rows if row["name"] == name), None)
        if row is not None:
            law, value = next(iter(row["values"].items()))
            about = evaluation.in_short(row["where"]) + (f" ({law})" if len(row["values"]) > 1 else "")
            cards.append((number(value), name, about))
    if "seconds" in fit:
        cards.append((f"{fit['seconds']:.1f} s", "fit", f"{fit['passes']} passes over {len(train):,} rows"))
    return cards


def _chosen(fit: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What was chosen, in words, as a table of the leading candidates and as a picture of all."""
    if not tried:
        return None
    by_bic = fit["criterion"] != "held-out"
    return {
        "lines": [each.split(": ", 1) for each in fit["chosen"]],
        "rows": tried[:_CANDIDATES],
        "more": max(0, len(tried) - _CANDIDATES),
        "judged": {"held-out": "held-out nats", "bic": "BIC", "icl": "ICL"}[fit["criterion"]],
        "key": fit["criterion"] if by_bic else "held_out",
        "plot": pictures.svg_uri(pictures.selection(tried, fit["criterion"])) if len(tried) > 2 else None,
    }


def _curve(records: Sequence[Mapping[str, Any]]) -> str | None:
    passes = [r for r in records if r["kind"] == "em"]
    return pictures.svg_uri(pictures.curve(passes)) if len(passes) > 1 else None


def _sample_pictures(
    title: str, train: Dataset, held_out: Dataset, samples: np.ndarray, others: Mapping[str, np.ndarray]
) -> list[dict[str, str]]:
    """Pictures with captions: samples, real rows, samples above their nearest training rows."""
    if not train.is_image:
        sets = {"held-out rows": np.asarray(held_out.x[:500]), "samples": samples[:500]}
        reference = np.asarray(train.x[:5000])
        return [
            {
                "picture": pictures.svg_uri(pictures.clouds(sets, reference)),
                "caption": "Samples and held-out rows",
                "wide": "1",
            }
        ]
    pick = np.random.default_rng(0).permutation(len(held_out))[:_GRID]
    shown = {(f"Samples, {title}" if others else "Samples"): samples[:_GRID]} | {
        f"Samples, {name}": x[:_GRID] for name, x in others.items()
    }
    shown["Held-out images"] = np.asarray(held_out.x[np.sort(pick)])
    out = [
        {"picture": pictures.png_uri(pictures.grid(train.to_images(x))), "caption": name} for name, x in shown.items()
    ]
    reference = np.asarray(train.x[:60_000])
    nearest = metrics.nearest(samples[:16], reference)[1][:, 0]
    pairs = np.concatenate([train.to_images(samples[:16]), train.to_images(reference[nearest])])
    caption = "Samples (top) and the training image nearest to each (bottom)"
    out.append(
        {
            "picture": pictures.png_uri(pictures.grid(pairs, columns=len(nearest))),
            "caption": caption,
            "wide": "1",
        }
    )
    return out


def _drawn(law: Law, layout: Dataset, gates: np.ndarray) -> list[dict[str, Any]]:
    """The heaviest subspaces, as pictures."""
    order = np.argsort(-_weights(law), kind="stable")[:_DRAWN]
    out: list[dict[str, Any]] = []
    for k in sorted(order.tolist()):
        part = law.subspace(k)
        entry: dict[str, Any] = {
            "k": k,
            "weight": part.weight,
            "gate": gates[k],
            "tau": float(torch.as_tensor(part.tau).square().mean().sqrt()),
            "d": law.latent_dims[k],
        }
        out.append(
            entry | (_images(part, layout) if layout.is_image else {"plot": pictures.svg_uri(pictures.profile(part))})
        )
    return out


def _images(part: Subspace, layout: Dataset) -> dict[str, Any]:
    vectors, deviations = pictures.principal_directions(part, _DIRECTIONS)
    heaviest = part.mode_weights.argsort(descending=True)[:_MODES]
    means = (part.offset + part.means[heaviest] @ part.basis.T).cpu().numpy()
    offset = layout.to_images(part.offset[None].cpu().numpy())
    return {
        "offset": pictures.png_uri(pictures.grid(offset)),
        "directions": pictures.png_uri(pictures.grid(pictures.signed_images(vectors, layout), columns=len(vectors))),
        "directions_width": round(100 * len(vectors) / _DIRECTIONS),
        "deviations": ", ".join(number(value, 3) for value in deviations),
        "means": pictures.png_uri(pictures.grid(layout.to_images(means), columns=len(means))),
        "means_width": round(100 * len(means) / _MODES),
        "modes": len(part.means),
        "shown": len(heaviest),
    }


def _composition(law: Law, held_out: Dataset) -> dict[str, Any] | None:
    """Share of every class's held-out rows that each subspace owns."""
    if held_out.labels is None or law.subspaces < 2 or law.subspaces > 40:
        return None
    labels = np.unique(held_out.labels)
    if len(labels) > 40:
        return None
    owner = metrics.assign(law, held_out.x)[0]
    classes = held_out.classes
    rows: list[dict[str, Any]] = []
    for label in labels:
        own = owner[held_out.labels == label]
        shares = np.bincount(own, minlength=law.subspaces) / len(own)
        named = classes[label] if classes is not None and 0 <= label < len(classes) else label
        rows.append({"label": str(named), "shares": shares.tolist()})
    return {"rows": rows, "subspaces": list(range(law.subspaces))}


def _data_rows(train: Dataset, held_out: Dataset) -> list[tuple[str, str]]:
    shape = " × ".join(map(str, train.shape))
    out = [
        ("data", train.name),
        ("training rows", f"{len(train):,}"),
        ("held-out rows", f"{len(held_out):,}"),
        ("shape of a row", f"{shape} (channels, height, width)" if train.is_image else shape),
        ("scaling", f"x = raw × {train.scale:.6g} {'+' if train.shift >= 0 else '−'} {abs(train.shift):.6g}"),
        ("levels", "real numbers" if train.levels is None else f"{train.levels} integer levels"),
    ]
    if train.levels is not None:
        out.append(("dequantised", "yes, uniform noise of one level" if train.dequantised else "no"))
    if train.classes is not None:
        out.append(
            ("classes", f"{len(train.classes)}: " + ", ".join(train.classes[:10]) + ", …" * (len(train.classes) > 10))
        )
    return out


def _notes(law: Law, train: Dataset, fit: Mapping[str, Any]) -> list[str]:
    """What a reader must know before comparing these numbers with others."""
    floor = (
        f"The noise floor, the smallest standard deviation in any direction, is {number(law.noise_floor)} in data units"
    )
    if train.levels is not None:
        floor += f", {number(law.noise_floor / train.scale)} levels of the raw data"
    notes = [floor + ". Densities depend on it: compare likelihoods at equal floors only."]
    if train.levels is not None and train.dequantised:
        notes.append(
            "Uniform noise of one level was added to every value (dequantisation), so bits/dim bound the length of a "
            "lossless code from above and may be compared with published values of dequantised models."
        )
    elif train.levels is not None:
        notes.append(
            "The rows were not dequantised: a density can grow without bound on repeated integers (a constant border, "
            "say), so these bits/dim are no code length and may even be negative. Fit with --dequantise for a bound."
        )
    notes.append(
        "Fréchet distance, precision, recall, density and coverage belong to the feature space and the numbers of rows "
        "that stand above them; none is an Inception FID. In principal components the Fréchet distance sees means and "
        "covariances only, so one Gaussian with the data's moments scores as well as fresh data."
    )
    notes.append(
        "“Training rows as samples” is what training rows score in the place of samples: no law can honestly beat it "
        "by much."
    )
    if fit.get("labels"):
        notes.append(
            "Labels were given to the fit: one subspace per class. The log-likelihood curve is of rows and labels "
            "together."
        )
    return notes
