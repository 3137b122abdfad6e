"""From rows to the latents of K experts: who owns a row, and the pair of encode and decode that it goes through.

    x  --assign-->  k  --autoencoder k-->  z, standardised latents with shape (N, d)

| kind     | autoencoders                                                               |
| -------- | -------------------------------------------------------------------------- |
| linear   | the principal components of each expert's rows: exact, no training         |
| vae      | one VAE per expert, trained on its rows alone                              |
| shared   | one VAE for all experts                                                    |
| lora     | one VAE for all, then a low-rank adapter on it per expert                  |
| PATH     | a folder of diffusers, or one that an autoencoder of this library wrote    |
| taef2    | the tiny autoencoder of FLUX.2, for pictures of 128 pixels and more        |

Learned autoencoders are kept in a folder, one stage after the other, so that the same call again goes on where the last
one stopped.

References:
    arXiv 2601.01475, section 5 and its ablation of one shared VAE; Brown et al., arXiv 2207.02862 (a union of
    manifolds).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from molrmog import autoencoders as ae
from molrmog.autoencoders.lora import rows_by_expert
from molrmog.data.labels import as_labels, classes_of
from molrmog.laws.base import Law
from molrmog.learning.fit import fit
from molrmog.learning.options import TrainingOptions
from molrmog.learning.trainer import training
from molrmog.metrics import assign
from molrmog.models import Model
from molrmog.saving import write_atomically
from molrmog.seeds import torch_seed

KINDS = ("linear", "vae", "shared", "lora", "taef2")


@dataclass(frozen=True)
class AutoencoderSettings:
    """How autoencoders are made.

    Attributes:
        kind: see the table of the module.
        latent_dim: dimension d of flat latents, or the shape (c, h, w) of latents that are images (see `ConvVAE`),
            d = c h w; fixed where the autoencoder is pretrained.
        steps: training steps of each VAE; as many passes over its rows as `passes` says where None.
        passes: over the rows of an expert, where `steps` is None.
        batch_size: rows of a step.
        learning_rate: the greatest.
        beta: weight of the KL divergence, see `VAELoss`.
        reconstruction: "l1" (sharp) or "mse".
        channels: of the stages of a ConvVAE.
        rank: of the adapters of "lora".
        seed: of everything random.
    """

    kind: str = "vae"
    latent_dim: int | tuple[int, int, int] = 32
    steps: int | None = None
    passes: float = 20.0
    batch_size: int = 64
    learning_rate: float = 2e-3
    beta: float = 0.01
    reconstruction: Literal["mse", "l1"] = "l1"
    channels: tuple[int, ...] = (32, 64)
    rank: int = 8
    seed: int = 0

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Event shape of the latents, (d,) or (c, h, w)."""
        return (self.latent_dim,) if isinstance(self.latent_dim, int) else tuple(self.latent_dim)

    def steps_for(self, rows: int) -> int:
        """Training steps on so many rows."""
        return self.steps or max(1, round(self.passes * rows / self.batch_size))


def assign_experts(
    x: np.ndarray,
    labels: np.ndarray | None,
    experts: int,
    *,
    others: tuple[np.ndarray, np.ndarray | None] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """The expert of every row, by its label or by clustering.

    Labels may be any integers, and are taken in their order. Fewer experts than classes own neighbouring classes
    together; more split every class by clustering, so their number must be a multiple of the classes'. Clusters are the
    subspaces of a law fitted by EM.

    Args:
        x: rows with shape (N, D).
        labels: one of C classes for each row, with shape (N,), or None to cluster.
        experts: number K of experts.
        others: further rows, such as held-out ones, with their labels.
        seed: of the clustering.

    Returns:
        Experts 0 to K - 1 with shape (N,) and those of the other rows, or None.

    Raises:
        ValueError: K does not fit the number of classes, or the rows; or a class has other rows only.
    """
    parts = [(x, labels)] if others is None else [(x, labels), others]
    if labels is None:
        law = _clusters(x, experts, seed) if experts > 1 else None
        found = [np.zeros(len(rows), np.int64) if law is None else assign(law, rows)[0] for rows, _ in parts]
    else:
        labels, names = as_labels(labels, len(x)), classes_of(labels)[1]
        classes = len(names)
        strange = np.setdiff1d(np.asarray(parts[-1][1]), names)
        if len(strange):
            raise ValueError(f"class {strange[0]} has held-out rows but no training rows: leave it out of the data")
        if experts > classes and experts % classes:
            raise ValueError(f"{experts} experts for {classes} classes: pass a multiple of {classes}, or fewer")
        split = max(1, experts // classes)
        found = [np.searchsorted(names, np.asarray(y)) * min(experts, classes) // classes for _, y in parts]
        for c in range(classes if split > 1 else 0):
            law = _clusters(x[labels == names[c]], split, seed)
            for expert, (rows, y) in zip(found, parts, strict=True):
                mine = np.asarray(y) == names[c]
                if mine.any():
                    expert[mine] = c * split + assign(law, rows[mine])[0]
    own, *rest = (torch.from_numpy(expert.astype(np.int64)) for expert in found)
    counts = torch.bincount(own, minlength=experts)
    if int(counts.min()) < 2:
        mend = "pass fewer experts, or " + ("another seed" if labels is None else "leave its class out of the data")
        raise ValueError(f"expert {int(counts.argmin())} owns {int(counts.min())} rows and needs 2: {mend}")
    return own, rest[0] if rest else None


def _clusters(x: np.ndarray, experts: int, seed: int) -> Law:
    latent_dim = min(16, x.shape[1] // 2 or 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EM dropped")  # nobody asked for these modes
        return fit(x, subspaces=experts, latent_dim=latent_dim, modes=4, max_iter=20, seed=seed, noise="isotropic")


def build_autoencoders(
    x: Any,
    expert: Tensor,
    shape: tuple[int, ...],
    settings: AutoencoderSettings,
    out: Path | None = None,
    *,
    device: str | None = "cpu",
    on_step: Callable[[str, int, int, float], object] | None = None,
) -> ae.Autoencoders:
    """The autoencoders of all experts, standardised on their rows, frozen, in eval mode.

    Args:
        x: rows with shape (N, D), in [-1, 1] where they are images.
        expert: of each row, with shape (N,).
        shape: event shape of a row.
        settings: what to build.
        out: folder that keeps what is trained, so nothing of linear ones; None keeps nothing.
        device: where to train; the best there is where None.
        on_step: called now and then with a name, the step, the number of steps, and the loss.

    Returns:
        A module with `len` and indexing, on the CPU: one autoencoder per expert, or a single one that all share.

    Raises:
        ValueError: settings do not fit the data, or the folder holds autoencoders of other settings.
    """
    x = torch.as_tensor(np.asarray(x))
    rows = [(expert == k).nonzero()[:, 0] for k in range(int(expert.max()) + 1)]
    how: Any = {"device": device, "on_step": on_step}
    if settings.kind == "linear":
        return ae.AutoencoderList(build_autoencoder(x[mine], shape, settings) for mine in rows).eval()
    if settings.kind == "vae":
        several = [
            build_autoencoder(x[mine], shape, settings, _within(out, f"expert-{k:02d}"), name=f"VAE {k}", **how)
            for k, mine in enumerate(rows)
        ]
        return ae.AutoencoderList(several).eval()
    if settings.kind in ("shared", "lora"):
        shared = build_autoencoder(x, shape, settings, _within(out, "shared"), name="shared VAE", **how)
        if settings.kind == "shared":
            return ae.AutoencoderList([shared]).eval()
        return _lora(x, expert, shared, len(rows), settings, _within(out, "lora"), **how)
    return ae.AutoencoderList([_pretrained(settings.kind, shape).standardise_(x)]).requires_grad_(False).eval()


def build_autoencoder(
    x: Tensor,
    shape: tuple[int, ...],
    settings: AutoencoderSettings,
    out: Path | None = None,
    *,
    name: str = "VAE",
    device: str | None = "cpu",
    on_step: Callable[[str, int, int, float], object] | None = None,
) -> ae.Autoencoder:
    """One autoencoder from its rows, linear or a VAE, convolutional for images and fully connected for other rows.

    Arguments as above; `out` keeps linear ones, too.
    """
    made = _described(settings, x)
    if _is_kept(out, made):
        return ae.load_autoencoder(out)
    if settings.kind == "linear":
        flat = ae.LinearAutoencoder.from_pca(x, math.prod(settings.latent_shape), shape).requires_grad_(False)
        return _kept(flat, out, made)
    torch.manual_seed(torch_seed(settings.seed))
    vae = (
        ae.ConvVAE(shape, latent_shape=settings.latent_shape, channels=settings.channels)
        if len(shape) == 3
        else ae.MLPVAE(shape, math.prod(settings.latent_shape))
    )
    loss = ae.VAELoss(vae, beta=settings.beta, reconstruction=settings.reconstruction)
    _minimise(loss, [x], settings, len(x), out, name, device, on_step)
    vae.standardise_(x).cpu().requires_grad_(False)
    return _kept(vae, out, made)


def _lora(
    x: Tensor,
    expert: Tensor,
    shared: ae.Autoencoder,
    experts: int,
    settings: AutoencoderSettings,
    out: Path | None,
    device: str | None,
    on_step: Callable[[str, int, int, float], object] | None,
) -> ae.LoRAExperts:
    made = _described(settings, x, expert)
    if _is_kept(out, made):
        return ae.LoRAExperts.from_pretrained(out)
    torch.manual_seed(torch_seed(settings.seed))
    adapters = ae.LoRAExperts(shared, experts, rank=settings.rank)
    loss = ae.LoRALoss(adapters, beta=settings.beta, reconstruction=settings.reconstruction)
    _minimise(loss, [x, expert], settings, len(x), out, "adapters", device, on_step)
    adapters.standardise_(x, expert).cpu()
    return _kept(adapters, out, made).requires_grad_(False)


def _minimise(
    loss: Any,
    data: list[Tensor],
    settings: AutoencoderSettings,
    rows: int,
    out: Path | None,
    name: str,
    device: str | None,
    on_step: Callable[[str, int, int, float], object] | None,
) -> None:
    steps = settings.steps_for(rows)
    options = TrainingOptions(
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        ema_decay=0.99,
        seed=settings.seed,
        device=device,
        out=out,
        log_every=min(50, steps),
        keep=1,
    )
    for state in training(loss, data, options):
        if on_step is not None:
            on_step(name, state.step, steps, state.loss)


def _pretrained(kind: str, shape: tuple[int, ...]) -> ae.Autoencoder:
    if kind == "taef2":
        return ae.TAEF2.from_weights(shape)
    folder = Path(kind)
    if not folder.is_dir():
        raise ValueError(f"autoencoder {kind!r} is neither a folder nor one of {', '.join(KINDS)}")
    try:
        return ae.load_autoencoder(folder)
    except (FileNotFoundError, ValueError, KeyError):
        return ae.PretrainedAutoencoder.from_diffusers(folder, shape)


def encode_all(autoencoders: ae.Autoencoders, x: Any, expert: Tensor) -> Tensor:
    """Standardised latents with shape (N, d) of all rows, each by its expert's autoencoder."""
    x = torch.as_tensor(np.asarray(x))
    if len(autoencoders) == 1:
        return autoencoders[0].encode_data(x)
    z = autoencoders[0].latent_mean.new_empty(len(x), autoencoders[0].latent_dim)
    for k, mine in rows_by_expert(expert, len(autoencoders)):
        z[mine] = autoencoders[k].encode_data(x[mine])
    return z


def decode_all(autoencoders: ae.Autoencoders, z: Tensor, expert: Tensor) -> Tensor:
    """Rows with shape (N, D) of standardised latents, each by its expert's autoencoder; the inverse of `encode_all`."""
    owned = [(0, torch.arange(len(z)))] if len(autoencoders) == 1 else rows_by_expert(expert, len(autoencoders))
    x = z.new_empty(len(z), autoencoders[0].dim)
    with torch.no_grad():
        for k, mine in owned:
            for at in mine.split(512):
                x[at] = autoencoders[k].decode(z[at])
    return x


_SETTINGS = "settings.json"
M = TypeVar("M", bound=Model)


def _within(out: Path | None, name: str) -> Path | None:
    return None if out is None else out / name


def _described(settings: AutoencoderSettings, *tables: Tensor) -> dict[str, Any]:
    """What an autoencoder is made of: the settings, and a digest of the rows."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(np.ascontiguousarray(table.cpu().numpy()).data)
    return {**json.loads(json.dumps(asdict(settings))), "rows": digest.hexdigest()}


def _is_kept(out: Path | None, made: dict[str, Any]) -> TypeGuard[Path]:
    if out is None or not (out / _SETTINGS).is_file():
        return False
    try:
        before = dict(json.loads((out / _SETTINGS).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{out / _SETTINGS} is damaged ({error}): delete the folder {out}, and run again") from None
    different = sorted(key for key in made if before.get(key) != made[key])
    if different:
        raise ValueError(f"{out} holds an autoencoder of other settings ({', '.join(different)}): name another folder")
    return True


def _kept(model: M, out: Path | None, made: dict[str, Any]) -> M:
    """The finished model; what it is made of is written last, as the mark that it is finished."""
    if out is not None:
        model.save_pretrained(out)
        text = json.dumps(made, indent=2) + "\n"
        write_atomically(out / _SETTINGS, lambda part: part.write_text(text))
    return model.eval()
