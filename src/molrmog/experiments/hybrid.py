"""`molrmog reproduce hybrid`: what a network gains that starts from a closed form instead of from nothing.

| arm                 | base               | the base is | asks                                       |
| ------------------- | ------------------ | ----------- | ------------------------------------------ |
| plain               | –                  | –           | the U-Net alone, under EDM preconditioning |
| law                 | a law, K by label  | in and out  | the residual network, see `ResidualDenoiser` |
| law, input only     | the same           | an input    | is it enough to see the law                |
| law, added only     | the same           | added       | is it enough to start from the law         |
| law, half added     | the same           | in, half out | is it better to leave a part to be learned |
| law, 20 modes       | 20 modes, not 8    | in and out  | what a closer law adds                     |
| Gaussian            | one full Gaussian  | in and out  | what the mixture adds                      |
| law without labels  | a law, K found     | in and out  | what the labels are worth                  |
| blend               | law and patches    | in and out  | what a better base adds                    |
| plain, RATE ...     | –                  | –           | are the options of all well chosen         |

References:
    arXiv 2601.01475, section 3 (the law); arXiv 2206.00364, table 1 (the preconditioning of the plain network).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from molrmog.experiments import image_cells
from molrmog.experiments.cells import Crew, keep_settings
from molrmog.experiments.hybrid_cells import compute_arm, compute_base, compute_sampling
from molrmog.experiments.hybrid_page import write_hybrid_page
from molrmog.experiments.hybrid_plans import LAW, Plan, plan
from molrmog.experiments.image_page import slug
from molrmog.seeds import seed_of


def run_hybrid(
    out: Path,
    dataset: str = "mnist",
    budget: str = "cpu",
    *,
    rows: int | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    data_dir: str | None = None,
) -> Path:
    """Compute a comparison, or what is missing of it, and write its page.

    Args:
        out: folder of the experiment: cells, results.csv, pictures and report.html.
        dataset: one of `DATASETS`.
        budget: one of `BUDGETS`.
        rows: training rows, the first of the data; all where None.
        steps: of training; those of the plan where None.
        seeds: how many; those of the plan where None.
        seed: added to the seeds of the plan.
        workers: processes at a time; as many as cores where None, one on a GPU.
        device: where networks are trained.
        data_dir: folder to look for data in first.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown name, or data that do not fit.
        RuntimeError: a cell failed.
    """
    made, seed = plan(dataset, budget, rows, steps, seeds), seed_of(seed)
    out = Path(out)
    workers = workers or (1 if device != "cpu" else os.cpu_count() or 1)
    source: dict[str, Any] = {"data": made.data, "image_size": made.image_size, "data_dir": data_dir, "rows": made.rows}
    image_cells.space(*image_cells.parts(source))  # trains the classifier once, before the cells ask for it
    drawn: dict[str, Any] = {
        "seed": seed,
        "device": device,
        "samples": made.samples,
        "sampler_steps": made.sampler_steps,
        "mixed_precision": made.training["mixed_precision"],
    }
    shared = {"source": source, "batch_size": made.training["batch_size"], "loss": dict(made.loss), **drawn}
    bases = {f"bases/{name}": {**shared, "base": dict(base)} for name, base in made.bases.items()}
    blends = {f"bases/{name}" for name, base in made.bases.items() if base["kind"] == "blend"}
    early = {name: settings for name, settings in bases.items() if name not in blends}
    late = {name: settings for name, settings in bases.items() if name in blends}
    cells = _arm_cells(made, source, drawn)
    with Crew(workers) as crew:
        measured = crew.run(compute_base, early, out, title="bases")
        measured |= crew.run(compute_base, late, out, title="blends")
        results = crew.run(compute_arm, cells, out, title="networks")
        sampled = crew.run(compute_sampling, _sampling_cells(made, cells), out, title="sampling")
    asked = {"dataset": dataset, "budget": budget, "rows": rows, "steps": steps, "seeds": seeds}
    settings = {**asked, "seed": seed, "plan": asdict(made)}
    keep_settings(out, settings)
    words = " ".join(f"--{name} {value}" for name, value in asked.items() if value is not None)
    command = f"molrmog reproduce hybrid {words}"
    return write_hybrid_page(out, {"command": command, **asdict(made)}, measured, cells, results, sampled)


def _arm_cells(made: Plan, source: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    for name, arm in made.arms.items():
        centred = {"centred": True} if arm.centred else {}
        training = {**made.training, **arm.training}
        steps = training["steps"]
        shares = made.marks if arm.along else made.marks_aside
        marks = [round(steps * share) for share in shares]
        for own in made.seeds[:1] if arm.tunes else made.seeds:
            cells[f"arms/{slug(name)}/{own}"] = {
                "source": source,
                "arm": {"name": name, "base": arm.base, "as_input": arm.as_input, "added": arm.added, **centred},
                "unet": dict(made.unet),
                "training": training,
                "loss": {**made.loss, **arm.loss},
                **drawn,
                "seed": drawn["seed"] + own,
                "every": math.gcd(*marks),
                "marks": [steps] if arm.tunes else marks,
            }
    return cells


def _sampling_cells(made: Plan, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    shared = ("source", "seed", "device", "samples", "mixed_precision")
    return {
        name.replace("arms/", "sampling/"): {
            **{key: cell[key] for key in shared},
            "network": name,
            "law": "law",
            "tolerance": made.tolerance,
            "evaluations": list(made.evaluations),
        }
        for name, cell in arms.items()
        if cell["arm"]["name"] == LAW and made.evaluations
    }
