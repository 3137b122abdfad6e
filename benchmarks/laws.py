"""Laws beside each other on MNIST, Fashion-MNIST and CIFAR-10: density, denoising loss by noise level, seconds to fit.

One subspace per class, the same d and n, the same rows and start, 12 passes of EM. What differs is the noise off the
subspaces: isotropic; of each coordinate, of each subspace (diagonal) or common to all (shared), in pixels or along the
principal axes of all rows; along these with the subspaces inside the leading ones (head); and head and tail, isotropic
inside the head, as earlier releases had it. Patches are of 8 x 8 pixels, the blend is of the diagonal law and of them.

Densities are of held-out rows with noise added, log p_t(x_0 + gamma eps): a clean density would reward whoever believes
most firmly in constant pixels. The loss at a level is weighed as EDM weighs it, gamma^-2 + sigma_data^-2 with
sigma_data = 0.5, so that a white Gaussian of that deviation has 1; "all" is over EDM's levels, ln gamma ~
N(-1.2, 1.2^2).

    MOLRMOG_DATA_DIR=... python benchmarks/laws.py [mnist fashion-mnist cifar10] [--threads 2] [--laws diagonal,shared]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import molrmog
from molrmog.denoisers.patches import patches_of
from molrmog.laws import with_tail
from molrmog.learning.rows import Rows
from molrmog.learning.subspaces import principal_coordinates
from molrmog.metrics import denoising_loss

SHAPES = {
    "mnist": {"latent_dim": 96, "modes": 4},
    "fashion-mnist": {"latent_dim": 96, "modes": 4},
    "cifar10": {"latent_dim": 96, "modes": 2},
}
HEAD = 384
GAMMAS = (0.01, 0.03, 0.08, 0.22, 0.61, 1.6, 4.5)
PATCHES = {"subspaces": 10, "latent_dim": 32, "modes": 20, "noise": "isotropic"}

Fit = Callable[[molrmog.Dataset, dict[str, int]], Any]


def head_and_tail(train: molrmog.Dataset, shape: dict[str, int]) -> Any:
    """A law of isotropic noise in the leading principal coordinates, a Gaussian on the rest."""
    x = torch.from_numpy(train.x)
    offset, axes, variance, left = principal_coordinates(Rows(x))
    head = molrmog.fit((x - offset) @ axes[:, :HEAD], train.labels, max_iter=12, tol=0, noise="isotropic", **shape)
    return with_tail(head, axes, offset, variance[HEAD:].clamp(min=1e-8).sqrt(), left.clamp(min=1e-8).sqrt())


def patches(train: molrmog.Dataset, shape: dict[str, int]) -> Any:
    """A denoiser that averages the posterior means of patches; not the denoiser of a law of pictures."""
    x = torch.from_numpy(train.x)
    drawn = patches_of(x, train.shape, 8, 50_000, torch.Generator().manual_seed(0))
    return molrmog.PatchDenoiser(molrmog.fit(drawn, max_iter=12, tol=0, **PATCHES), train.shape, 8, 5, 2)


def fitted(**noise: Any) -> Fit:
    """A fit with such noise, isotropic where none is told."""
    noise = {"noise": None} | noise
    return lambda train, shape: molrmog.fit(train, train.labels, max_iter=12, tol=0, **shape, **noise)


LAWS: dict[str, Fit] = {
    "isotropic": fitted(),
    "diagonal": fitted(noise="diagonal"),
    "shared": fitted(noise="shared"),
    "diagonal, principal axes": fitted(noise="diagonal", axes="pca"),
    "shared, principal axes": fitted(noise="shared", axes="pca"),
    f"head {HEAD}": fitted(head=HEAD),
    f"head and tail {HEAD}": head_and_tail,
    "patches": patches,
}


def main() -> None:
    """Print one table per data set."""
    parser = argparse.ArgumentParser(description="laws beside each other")
    parser.add_argument("data", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", type=int, default=20_000, help="rows to fit")
    parser.add_argument("--rows", type=int, default=2_000, help="held-out rows")
    parser.add_argument("--laws", type=lambda names: names.split(";"), default=[*LAWS, "blend"], help="with ; between")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.data:
        compare(name, given.train, given.rows, given.laws)


def compare(name: str, fit_rows: int, rows: int, laws: list[str]) -> None:
    """Fit every law of one data set, by labels, and print."""
    whole, test = molrmog.load_data(name), molrmog.load_data(name, "test")
    train = molrmog.Dataset(name=name, shape=whole.shape, x=whole.x[:fit_rows], labels=whole.labels[:fit_rows])
    keep = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:rows]
    x = torch.from_numpy(test.x)[keep]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    shape = SHAPES[name]
    words = ", ".join(f"{key} = {value}" for key, value in shape.items())
    print(f"{name}: {len(train):,} rows to fit, {rows:,} held out; {words}; nats per row, loss by gamma")
    print(
        f"{'':26}{'fit, s':>8}{'.03':>9}{'.1':>9}{'1':>9}" + "".join(f"{g:>8}" for g in GAMMAS) + f"{'all':>8}{'+-':>7}"
    )
    made: dict[str, Any] = {}
    for title in laws:
        start = time.perf_counter()
        if title == "blend":
            parts = [made[part] for part in ("diagonal", "patches") if part in made]
            law = molrmog.BlendDenoiser(parts).fit_(torch.from_numpy(train.x[:2000]))
        else:
            law = made[title] = LAWS[title](train, shape)
        seconds = time.perf_counter() - start
        print(f"{title:26}{seconds:8.1f}", end="")
        for g in (0.03, 0.1, 1.0):
            print(
                f"{float(law.log_prob(x + g * noise, 1.0, g).mean()):9.0f}" if hasattr(law, "log_prob") else f"{'':9}",
                end="",
            )
        for g in GAMMAS:
            left = (law.denoise(x + g * noise, 1.0, g) - x).square().mean()
            print(f"{(g**-2 + 4) * float(left):8.3f}", end="")
        loss = denoising_loss(law, x, levels=64)
        print(f"{loss.loss:8.3f}{loss.standard_error:7.3f}", flush=True)


if __name__ == "__main__":
    main()
