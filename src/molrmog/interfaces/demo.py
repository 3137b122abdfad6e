"""`molrmog demo`: laws and score networks on the handwritten digits inside scikit-learn, and what they are worth.

    1,297 digits of 8 x 8 pixels, dequantised  ->  fits without labels  ->  500 held-out digits judge them

| law | what it is |
| --- | --- |
| MoLR-MoG | how many subspaces, dimensions and Gaussians, and which noise, is chosen from the rows |
| head | 10 subspaces with 6 low-rank Gaussians each in 32 principal coordinates, one Gaussian for the rest |
| pure | the same over all 64 pixels, isotropic noise off the subspaces: the law of the paper |
| MoLRG | 10 subspaces with one zero-mean Gaussian each |
| Gaussian | one full Gaussian |

The shapes that are given were found on a split of the training digits, not on the held-out ones.

Then the three score networks of the paper are trained by denoising score matching, with the same steps, batches and
noise, in the same latents: 16 principal coordinates of each class, which owns its rows as an expert.

| network | what it is |
| --- | --- |
| MoG net | 4 Gaussians per expert, from k-means |
| MoLRG net | one zero-mean Gaussian per expert, from the moments of its latents |
| U-Net | one for all experts, told which |

References:
    arXiv 2601.01475, sections 3 (MoLR-MoG) and 5 (networks); Wang et al., arXiv 2409.02426 (MoLRG).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

import molrmog
from molrmog import pictures
from molrmog.data import Dataset, load_parts
from molrmog.denoisers.experts import Experts
from molrmog.experiments.latents import AutoencoderSettings, assign_experts, build_autoencoders, encode_all
from molrmog.experiments.networks import latent_network
from molrmog.interfaces import evaluation, fitting
from molrmog.interfaces.report import write_report
from molrmog.interfaces.runs import DATA_NAME, METRICS_NAME, SAMPLES_NAME, Run, check_out, records_in, staged
from molrmog.interfaces.trained import Trained
from molrmog.progress import progress
from molrmog.saving import MODEL_NAME, write_atomically
from molrmog.schedules import VPSchedule

LAWS: dict[str, dict[str, Any]] = {
    "MoLR-MoG": {},
    "head": {"subspaces": 10, "latent_dim": 16, "modes": 6, "head": 32, "prior_rows": 100.0},
    "pure": {"subspaces": 10, "latent_dim": 16, "modes": 6, "noise": "isotropic", "prior_rows": 100.0},
    "MoLRG": {"subspaces": 10, "latent_dim": 16, "modes": 1, "noise": "isotropic", "zero_mean": True},
    "Gaussian": {"subspaces": 1, "latent_dim": 64, "modes": 1, "noise": "isotropic"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "MoG net": {"name": "mog", "modes": 4, "start": "k-means"},
    "MoLRG net": {"name": "gaussian"},
    "U-Net": {"name": "unet", "channels": (16, 32)},
}
STEPS = 400  # of every network
FEATURES = ("pca", "classifier")
_BATCH = 128
_LATENT_DIM = 16
_SHOWN = 64
_ABOUT = (
    "Five laws, all fitted without labels to the same 1,297 handwritten digits of 8 × 8 pixels that ship inside "
    "scikit-learn: MoLR-MoG, whose subspaces, dimensions, modes and noise were chosen from the rows; “head”, 10 "
    "subspaces with 6 low-rank Gaussians each in the 32 leading principal coordinates and one Gaussian for the rest; "
    "“pure”, the same over all 64 pixels without that Gaussian; MoLRG, 10 subspaces with "
    "one zero-mean Gaussian each; and one full Gaussian. Uniform noise of one level makes bits/dim honest. Subspaces, "
    "gates and the curve of the log-likelihood are those of the first. Beside them three score networks, trained by "
    "denoising score matching for {steps} steps of {batch} rows, from the same seed, in the same latents: {dim} "
    "principal coordinates of each class, for networks know the label of a row, as laws do not. “MoG net” has 4 "
    "Gaussians per class and starts at k-means, “MoLRG net” one Gaussian with mean zero, “U-Net” is told the class."
)


def run_demo(out: Path, *, seed: int = 0, command: str = "molrmog demo") -> Path:
    """Fit laws to the digits, train networks, compare on held-out digits, and write a run folder with a report.

    Args:
        out: run folder; that of an earlier demo is replaced.
        seed: of everything random.
        command: the words that asked for this, for the record.

    Returns:
        The path of the report.

    Raises:
        OSError: the folder cannot be written, or holds another run.
    """
    _refuse_others(out)
    with staged(check_out(out, overwrite=True, beside=True), overwrite=True) as part:
        train, held = load_parts("digits", dequantise=True, seed=seed)
        fits = {
            name: fitting.fit_and_record(train, labels=False, seed=seed, command=command, name=name, **shape)
            for name, shape in LAWS.items()
        }
        trained, held_expert, curves = _train_networks(train, held, seed)
        spaces = evaluation.feature_spaces(FEATURES, train, held)
        samples: dict[str, np.ndarray] = {}
        measured: dict[str, list[evaluation.Measurement]] = {}
        with progress() as show:
            models = len(fits) + len(trained)
            for name, (law, _) in fits.items():
                show("measuring", len(measured), models, name)
                samples[name] = evaluation.draw(law, len(held), seed)
                measured[name] = evaluation.likelihood(law, train, held)
                for space in spaces:
                    measured[name] += evaluation.quality(samples[name], train, held, space, seed=seed)
                measured[name] += evaluation.memorisation(samples[name], train, held, seed)
                measured[name] += evaluation.clusters(law, held)
            for name, network in trained.items():
                show("measuring", len(measured), models, name)
                measured[name], samples[name] = evaluation.network(
                    network, curves[name], train, held, held_expert, spaces=spaces, num=len(held), seed=seed
                )
            show("measuring", models, models, "")
        main = next(iter(LAWS))
        law, records = fits[main]
        settings = {"data": "digits", "out": str(out), **LAWS[main], "dequantise": True, "seed": seed}
        records += [m.to_record(law=name, command=command) for name, rows in measured.items() for m in rows]
        fitting.save_run(part, law, train, held, settings, records)
        picture = pictures.samples_picture(train, samples[main][:_SHOWN])
        write_atomically(part / SAMPLES_NAME, lambda file: file.write_bytes(picture))
        others = {name: x[:_SHOWN] for name, x in samples.items() if name != main}
        about = _ABOUT.format(steps=STEPS, batch=_BATCH, dim=_LATENT_DIM)
        write_report(Run(part), law, train, held, samples[main], others=others, curves=curves, introduction=about)
    evaluation.print_measurements("digits", measured)
    print(f"report  {Run(out).folder / 'report.html'}")
    return out / "report.html"


def _refuse_others(out: Path) -> None:
    """Refuse to replace a run that no demo made.

    Raises:
        FileExistsError: there is one.
    """
    if (out / MODEL_NAME).exists() or (out / DATA_NAME).exists():
        try:
            made = [r.get("command") for r in records_in(out) if r["kind"] == "fit"]
        except ValueError:
            made = []
        if not made or not str(made[0]).startswith("molrmog demo"):
            raise FileExistsError(f"--out {out} holds a run that is not of molrmog demo: name another folder")


def _train_networks(
    train: Dataset, held: Dataset, seed: int
) -> tuple[dict[str, Trained], Tensor, dict[str, list[dict[str, Any]]]]:
    """Networks, the expert of every held-out row, and the records of each training."""
    labels, held_labels = cast(np.ndarray, train.labels), cast(np.ndarray, held.labels)
    expert, held_expert = assign_experts(train.x, labels, 10, others=(held.x, held_labels), seed=seed)
    settings = AutoencoderSettings(kind="linear", latent_dim=_LATENT_DIM)
    autoencoders = build_autoencoders(train.x, expert, train.shape, settings)
    z, held_z = encode_all(autoencoders, train.x, expert), encode_all(autoencoders, held.x, cast(Tensor, held_expert))
    schedule, weights = VPSchedule(), expert.bincount() / len(expert)
    trained: dict[str, Trained] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in NETWORKS.items():
            network = molrmog.train(
                latent_network(z=z, expert=expert, latent_shape=(_LATENT_DIM,), seed=seed, **shape),
                z,
                schedule,
                steps=STEPS,
                out=Path(scratch, name),
                experts=expert,
                validation=held_z,
                validation_experts=held_expert,
                sigma_data=1.0,
                batch_size=_BATCH,
                ema_decay=0.99,
                seed=seed,
                device="cpu",
                log_every=20,
                validate_every=40,
                checkpoint_every=STEPS,
                progress=True,
            )
            lines = Path(scratch, name, METRICS_NAME).read_text().splitlines()
            trained[name] = Trained(Experts(autoencoders, network, weights), schedule, weights)
            records[name] = [json.loads(line) for line in lines]
    return trained, cast(Tensor, held_expert), records
