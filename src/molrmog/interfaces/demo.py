"""`molrmog demo`: three kinds of law on the handwritten digits inside scikit-learn, and what they are worth.

    1,297 digits of 8 x 8 pixels, dequantised  ->  fits without labels  ->  500 held-out digits judge them

| law | what it is |
| --- | --- |
| MoLR-MoG | 10 subspaces with 6 low-rank Gaussians each in 32 principal coordinates, one Gaussian for the rest |
| pure | the same over all 64 pixels, isotropic noise off the subspaces: the law of the paper |
| MoLRG | 10 subspaces with one zero-mean Gaussian each |
| Gaussian | one full Gaussian |

The shapes were chosen on a split of the training digits, not on the held-out ones.

References:
    arXiv 2601.01475, section 3 (MoLR-MoG); Wang et al., arXiv 2409.02426 (MoLRG).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from molrmog import pictures
from molrmog.data import load_parts
from molrmog.interfaces import commands, evaluation
from molrmog.interfaces.report import write_report
from molrmog.interfaces.runs import SAMPLES_NAME, Run, staged
from molrmog.saving import write_atomically

LAWS: dict[str, dict[str, Any]] = {
    "MoLR-MoG": {"subspaces": 10, "latent_dim": 16, "modes": 6, "head": 32, "prior_rows": 100.0},
    "pure": {"subspaces": 10, "latent_dim": 16, "modes": 6, "prior_rows": 100.0},
    "MoLRG": {"subspaces": 10, "latent_dim": 16, "modes": 1, "zero_mean": True},
    "Gaussian": {"subspaces": 1, "latent_dim": 64, "modes": 1},
}
FEATURES = ("pca", "classifier")
_SHOWN = 64
_ABOUT = (
    "Four laws, all fitted without labels to the same 1,297 handwritten digits of 8 × 8 pixels that ship inside "
    "scikit-learn: MoLR-MoG, 10 subspaces with 6 low-rank Gaussians each in the 32 leading principal coordinates and "
    "one Gaussian for the rest; “pure”, the same over all 64 pixels without that Gaussian; MoLRG, 10 subspaces with "
    "one zero-mean Gaussian each; and one full Gaussian. Uniform noise of one level makes bits/dim honest. Subspaces, "
    "gates and the curve below are those of the first."
)


def run_demo(out: Path, *, seed: int = 0, command: str = "molrmog demo") -> Path:
    """Fit the four laws to the digits, compare them on held-out digits, and write a run folder with a report.

    Args:
        out: run folder; a run that is there is replaced.
        seed: of everything random.
        command: the words that asked for this, for the record.

    Returns:
        The path of the report.

    Raises:
        OSError: the folder cannot be written.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with staged(out, overwrite=True) as part:
        train, held = load_parts("digits", dequantise=True, seed=seed)
        fits = {
            name: commands.fit_and_record(train, labels=False, seed=seed, command=command, name=f"{name:>8}", **shape)
            for name, shape in LAWS.items()
        }
        spaces = evaluation.feature_spaces(FEATURES, train, held)
        samples: dict[str, np.ndarray] = {}
        measured: dict[str, list[evaluation.Measurement]] = {}
        with console.status("measuring") as status:
            for name, (law, _) in fits.items():
                status.update(f"measuring {name}")
                samples[name] = evaluation.draw(law, len(held), seed)
                measured[name] = evaluation.likelihood(law, train, held)
                for space in spaces:
                    measured[name] += evaluation.quality(samples[name], train, held, space, seed=seed)
                measured[name] += evaluation.memorisation(samples[name], train, held, seed)
                measured[name] += evaluation.clusters(law, held)
        main = next(iter(LAWS))
        law, records = fits[main]
        settings = {"data": "digits", "out": str(out), **LAWS[main], "dequantise": True, "seed": seed}
        records += [m.to_record(law=name, command=command) for name, rows in measured.items() for m in rows]
        commands.save_run(part, law, train, held, settings, records)
        picture = pictures.samples_picture(train, samples[main][:_SHOWN])
        write_atomically(part / SAMPLES_NAME, lambda file: file.write_bytes(picture))
        others = {name: x[:_SHOWN] for name, x in samples.items() if name != main}
        write_report(Run(part), law, train, held, samples[main], others=others, introduction=_ABOUT)
    commands.print_measurements("digits, fitted without labels", measured)
    print(f"report  {Run(out).folder / 'report.html'}")
    return out / "report.html"
