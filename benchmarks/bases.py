"""What a base costs inside a training step of a 1M-parameter U-Net, on MNIST and CIFAR-10.

The bases are those of `molrmog reproduce hybrid`, fitted in a few iterations, which changes what they say and not what
they cost; rows are noised at levels of training, new ones every time, which they share if noise is unequal. A step is
forward, backward and AdamW on as many rows. "Floor" is the share of a base's time that its products with all modes take
by themselves, which no gate can do without.

    MOLRMOG_DATA_DIR=... python benchmarks/bases.py [mnist cifar10] [--threads 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

import molrmog
from _stopwatch import time_each
from molrmog.experiments.hybrid_cells import make_base
from molrmog.experiments.hybrid_plans import Plan, plan
from molrmog.learning.score_matching import ScoreMatching

BATCH = 64
CHANNELS = (32, 64, 64)
LEVELS = (4, 16)


def main() -> None:
    """Print one table per data set."""
    parser = argparse.ArgumentParser(description="bases inside a training step")
    parser.add_argument("data", nargs="*", default=["mnist", "cifar10"], help="mnist, cifar10")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.data:
        compare(name)


def compare(name: str) -> None:
    """Time every base of one data set beside the step, and print."""
    data, made = molrmog.load_data(name), plan(name, "cpu")
    x = torch.from_numpy(data.x)
    steps = {
        f"U-Net step, {title}": step(data.shape, x[:BATCH], made, narrow)
        for title, narrow in (("float32", False), ("bfloat16", True))
    }
    bases = bases_of(made, data)

    def ask(base: Any, levels: int | None = None) -> Callable[[], object]:
        loss = ScoreMatching(base, molrmog.VPSchedule(), levels_per_batch=levels, **cast(Any, made.loss))
        generator = torch.Generator().manual_seed(0)

        def denoise() -> object:
            s, gamma, eps = loss.draw(BATCH, generator)
            return base.denoise(s[:, None] * x[:BATCH] + gamma[:, None] * eps, s, gamma)

        return denoise

    asked: dict[str, Callable[[], object]] = {}
    for title, base in bases.items():
        if isinstance(base, molrmog.MoLRMoG) and base.noise != "isotropic":
            asked |= {f"{title}, {levels} levels a batch": ask(base, levels) for levels in LEVELS}
        else:
            asked[title] = ask(base)
    with torch.no_grad():
        times = time_each({**asked, **floors(bases)})
    times |= time_each(steps)
    wide, narrow = (times[title].cpu for title in steps)
    print(f"{name}: batch {BATCH}, CPU seconds\n{'':28}{'seconds':>9}{'% of f32':>10}{'% of bf16':>10}{'floor, %':>10}")
    for title, own in times.items():
        if title.startswith("products of "):
            continue
        floor = times.get(f"products of {title}")
        shares = f"{100 * own.cpu / wide:10.1f}{100 * own.cpu / narrow:10.1f}"
        print(f"{title:28}{own.cpu:9.4f}{shares}" + (f"{100 * floor.cpu / own.cpu:10.0f}" if floor else ""), flush=True)


def bases_of(made: Plan, data: molrmog.Dataset) -> dict[str, Any]:
    """The bases of a plan; patches also with all of their modes."""
    bases: dict[str, Any] = {}
    for title, chosen in made.bases.items():
        quick = {} if chosen["kind"] == "blend" else {"max_iter": 3}
        bases[title] = base = make_base({**chosen, **quick}, data, bases.__getitem__)
        if isinstance(base, molrmog.PatchDenoiser):
            bases[f"{title}, every mode"] = molrmog.PatchDenoiser(base.law, base.shape, base.size, base.stride)
    return bases


def floors(bases: Mapping[str, Any]) -> dict[str, Callable[[], object]]:
    """For each patch base, its products down to the subspaces and on to all modes, and nothing else."""
    found: dict[str, Callable[[], object]] = {}
    for title, base in bases.items():
        if isinstance(base, molrmog.PatchDenoiser):
            law = cast(molrmog.MoLRMoG, base.law)
            K, n, d = law.mean.shape
            rows = torch.randn(BATCH * len(base.index), law.dim)
            down, on = torch.randn(law.dim, K * (d + 2)), torch.randn(K, d + 2, n * d)

            def products(rows: Tensor = rows, down: Tensor = down, on: Tensor = on) -> object:
                latent = (rows @ down).unflatten(1, (len(on), -1)).transpose(0, 1)
                return [part @ on[k] for k, part in enumerate(latent)]

            found[f"products of {title}"] = products
    return found


def step(shape: tuple[int, ...], x: Tensor, made: Plan, narrow: bool) -> Callable[[], object]:
    """One training step of the U-Net."""
    network = molrmog.UNetDenoiser(shape, channels=CHANNELS, attention=False, sigma_data=0.5)
    loss = ScoreMatching(network, molrmog.VPSchedule(), **cast(Any, made.loss))
    optimizer = torch.optim.AdamW(network.parameters())
    draw = torch.Generator().manual_seed(0)

    def take() -> object:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            value = loss(x, *loss.draw(len(x), draw)).mean()
        value.backward()
        return optimizer.step()

    return take


if __name__ == "__main__":
    main()
