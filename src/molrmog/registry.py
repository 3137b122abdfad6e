"""Which classes there are: the one place where a law, a denoiser, an autoencoder or a sampler is listed.

    name  ->  module          find(name, kind) imports the class; nothing else is imported on a file's word

What a model was saved as, {kind: class, **config}, names its class under its kind. A class that is added here is read
by `molrmog.load`, built inside other models and importable from `molrmog`; a sampler is a choice of `molrmog sample`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

LAWS = {
    "MoLRMoG": "laws.molrmog",
    "HeadTail": "laws.head_tail",
}
DENOISERS = {
    "MoGDenoiser": "denoisers.mog",
    "GaussianDenoiser": "denoisers.gaussian",
    "UNetDenoiser": "denoisers.unet",
    "MLPDenoiser": "denoisers.mlp",
    "PerExpert": "denoisers.experts",
    "Experts": "denoisers.experts",
    "PatchDenoiser": "denoisers.patches",
    "BlendDenoiser": "denoisers.blend",
    "ResidualDenoiser": "denoisers.residual",
    "CentredDenoiser": "denoisers.centred",
    "ConditionalLaw": "denoisers.conditional",
    "GuidedDenoiser": "denoisers.guidance",
    "Given": "denoisers.base",
    "DiffusersDenoiser": "denoisers.pipeline",
}
AUTOENCODERS = {
    "LinearAutoencoder": "autoencoders.linear",
    "MLPVAE": "autoencoders.vae",
    "ConvVAE": "autoencoders.vae",
    "LoRAExperts": "autoencoders.lora",
    "PretrainedAutoencoder": "autoencoders.pretrained",
    "TAEF2": "autoencoders.pretrained",
}
SAMPLERS = {  # by the name that `sample` knows them by
    "exact": "sampling.exact:Exact",
    "euler": "sampling.ode:Euler",
    "heun": "sampling.ode:Heun",
    "dpm++": "sampling.ode:DPMSolver",
    "ancestral": "sampling.sde:Ancestral",
    "sde": "sampling.sde:EulerMaruyama",
}
ALIASES = {"LatentExperts": "Experts", "PerExpertDenoiser": "PerExpert"}  # other names of the same classes

KINDS: dict[str, Mapping[str, str]] = {
    "law": LAWS,
    "denoiser": DENOISERS,
    "autoencoder": AUTOENCODERS,
    "sampler": SAMPLERS,
}
_OF_MODELS = ("denoiser", "autoencoder", "law")  # in this order: that of a denoiser may have parts called law

Kind = Literal["denoiser", "autoencoder", "law", "sampler"]


def homes() -> dict[str, str]:
    """The module of every class, by the name of the class."""
    found = {**LAWS, **DENOISERS, **AUTOENCODERS}
    found |= {each.partition(":")[2]: each.partition(":")[0] for each in SAMPLERS.values()}
    return found | {alias: f"{found[name]}:{name}" for alias, name in ALIASES.items()}


def find(name: object, kind: str, where: str = "the configuration") -> Any:
    """Import a class.

    Args:
        name: as above, or one of `ALIASES`.
        kind: "law", "denoiser", "autoencoder" or "sampler".
        where: what an error calls the place that names the class.

    Raises:
        ValueError: there is none of that name, or no such kind.

    Example:
        >>> find("MLPDenoiser", "denoiser").__module__
        'molrmog.denoisers.mlp'
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    table = KINDS[kind]
    known = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(known, str) or known not in table:
        raise ValueError(f"{where} names the {kind} {repr(name)[:60]}: there are {', '.join(table)}")
    module, _, own = table[known].partition(":")
    return getattr(importlib.import_module(f"molrmog.{module}"), own or known)


def build(description: Mapping[str, Any], kind: Kind | None = None) -> Any:
    """Build a model from its description, before its tensors are read.

    Args:
        description: of a law, a denoiser or an autoencoder.
        kind: what it must be; a law serves where a denoiser is asked for.

    Raises:
        ValueError: there is no such class, or it is of another kind.
    """
    from molrmog.checks import check_types

    cls = _class_of(description, kind, "the configuration")
    own = renewed(dict(description))
    check_types(cls, own)
    return cls.from_config(own)


def renewed(description: Any) -> Any:
    """A description, with what earlier releases wrote in the words of this one; parts of it, too.

    Example:
        >>> renewed({"denoiser": "ResidualDenoiser", "added": True})
        {'denoiser': 'ResidualDenoiser', 'added': 1.0}
    """
    if isinstance(description, list):
        return [renewed(each) for each in description]
    if not isinstance(description, dict):
        return description
    found = {name: renewed(value) for name, value in description.items()}
    if found.get("denoiser") == "ResidualDenoiser" and isinstance(found.get("added"), bool):
        found["added"] = float(found["added"])  # once all of the base was added, or nothing
    if found.get("denoiser") == "PatchDenoiser":
        found.setdefault("top", None)
    return found


def same_class(one: object, other: object) -> bool:
    """Whether two names are those of one class."""
    return isinstance(one, str) and isinstance(other, str) and ALIASES.get(one, one) == ALIASES.get(other, other)


def load(path: str | Path, kind: Kind | None = None) -> Any:
    """Read a law, a denoiser or an autoencoder from a folder, or from the Hugging Face hub; in eval mode.

    Args:
        path: a folder that `save_pretrained` wrote, or a name such as "owner/name".
        kind: what it must be; a law serves where a denoiser is asked for.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt or of another kind.
    """
    from molrmog.saving import MODEL_NAME, load_model

    config, tensors = load_model(path)
    cls = _class_of(config, kind, f"the configuration in {path}")
    return cls.from_saved(config, tensors, where=f"{path}/{MODEL_NAME}")


def _class_of(description: Mapping[str, Any], kind: str | None, where: str) -> Any:
    """The class that a description names."""
    if not isinstance(description, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{where} has {repr(description)[:60]} where a {kind or 'model'} is described")
    found = next((each for each in _OF_MODELS if each in description), None)
    if found is None:
        raise ValueError(f"{where} names no {kind or 'model'}: save the model again, with save_pretrained")
    if kind not in (None, found) and (kind, found) != ("denoiser", "law"):
        raise ValueError(f"{where} is that of the {found} {description[found]}, and of no {kind}")
    return find(description[found], found, where)
