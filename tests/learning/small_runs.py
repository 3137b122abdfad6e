"""Small training runs, the same in this process and in others: `python small_runs.py THREADS STEPS FOLDER KIND ...`."""

import sys
from pathlib import Path

import torch

from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.mlp import MLPDenoiser
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.train import train
from molrmog.schedules import FlowSchedule

KINDS = ("network", "law", "experts", "dropout")


def a_law(seed):
    return MoLRMoG.random(dim=6, latent_dims=(2, 3), modes=(2, 1), noise=0.2, seed=seed).requires_grad_(False)


def small_run(kind, out, steps, **given):
    """Train the denoiser that `kind` names, on the same rows and from the same start."""
    torch.manual_seed(0)
    start = {
        "network": lambda: MLPDenoiser(6, width=16, depth=1),
        "dropout": lambda: MLPDenoiser(6, width=16, depth=1, dropout=0.3),
        "law": lambda: a_law(1),
        "experts": lambda: PerExpert([MoGDenoiser(a_law(k)) for k in range(3)]),
    }[kind]()
    x = a_law(0).sample(101, torch.Generator().manual_seed(0)).x
    if kind == "experts":  # the last is rare: most slices of a batch have no row of it
        given["experts"] = (torch.arange(101) % 2).masked_fill(torch.arange(101) % 20 == 0, 2)
        given["validation_experts"] = given["experts"][:30]
    settings = {"batch_size": 10, "log_every": 1, "warmup": 5, "validate_every": 3, "learning_rate": 1e-2, **given}
    settings = {"checkpoint_every": 7, "device": "cpu", "ema_decay": 0.9, **settings}
    return train(start, x, FlowSchedule(), steps=steps, out=out, validation=x[:30], **settings)


if __name__ == "__main__":
    threads, steps, out, *kinds = sys.argv[1:]
    torch.set_num_threads(int(threads))  # as the process that compares has: others may add up in another order
    for name in kinds:
        small_run(name, Path(out) / name, int(steps))
    count = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    print(f"{count} processes")
