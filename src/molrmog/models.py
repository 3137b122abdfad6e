"""What all models share: how they are described, counted, saved and read; and what a denoiser is.

    x_t = s x_0 + gamma eps,    denoise(x_t, s, gamma) = E[x_0 | x_t]

By Tweedie's formula a denoiser is a score, (s E[x_0 | x_t] - x_t) / gamma^2, and it is well scaled at every noise
level, so it is what networks learn and what samplers call. A law is the denoiser that needs no training.

Where data come from K experts, a denoiser may be conditional on the expert of each row. One with a null expert also
answers where none is named, for all rows (None) or some (-1), which is what guidance needs.

A model's folder holds its description, {kind: class, **config}, and its tensors. Which class a description names is
looked up in `molrmog.registry`; nothing else is imported on a file's word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

from torch import Tensor, nn

from molrmog.arguments import shown
from molrmog.checks import allowance, check_description, check_numbers, check_tensors, check_types
from molrmog.registry import renewed, same_class
from molrmog.saving import MODEL_NAME, load_model, one_line, save_model

Noise = float | Tensor
"""A signal scale s or a noise level gamma: a float, or one per row with shape (B,)."""

Expert = int | Tensor
"""Which expert: an index for all rows, or one per row with shape (B,)."""

NULL_EXPERT = -1
"""The index of a row of which no expert is named."""


class Model(nn.Module, ABC):
    """A module that says what builds it and lives in a folder.

    Attributes:
        kind: of model, "law", "denoiser" or "autoencoder"; the key of its class in a description.
        frozen: whether a model that was read asks for no gradients.
    """

    kind: ClassVar[str]
    frozen: ClassVar[bool] = False

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What builds the model: the constructor's arguments, in JSON types; shapes where tensors built it.

        Those of denoisers and autoencoders begin with the class, as `description` does.
        """

    @property
    def description(self) -> dict[str, Any]:
        """What is saved beside the tensors: the class under its kind, and `config`."""
        name = type(self).__name__
        return {self.kind: name, **self.config, self.kind: name}  # first, and of the class itself

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the model."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that `config` describes, before its tensors are read."""
        check_types(cls, config)
        return cls(**{key: value for key, value in config.items() if key != cls.kind})

    def save_pretrained(self, path: str | Path) -> Path:
        """Write config.json and model.safetensors into the folder `path`, atomically, and return it.

        Raises:
            OSError: the folder cannot be written; a model that was there is left whole.
        """
        return save_model(path, self.description, self.state_dict())

    def check_loaded(self) -> None:
        """Refuse tensors that were read and are not what the model and its parts need; shapes and dtypes are right.

        Raises:
            ValueError: one of them is not.
        """
        waiting = list(self.children())
        while waiting:
            part = waiting.pop()
            if isinstance(part, Model):
                part.check_loaded()
            else:
                waiting += part.children()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read a model of this class from a folder, or from the Hugging Face hub; `molrmog.load` reads any class.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: the model is corrupt or of another kind.
        """
        return cls.from_saved(*load_model(path), where=f"{path}/{MODEL_NAME}")

    @classmethod
    def from_saved(cls, config: dict[str, Any], tensors: dict[str, Tensor], where: str = "the model") -> Self:
        """Build a model from its description and tensors, all of which is checked; see :meth:`from_pretrained`.

        Args:
            config: the description.
            tensors: name to tensor.
            where: what an error calls the place of both.

        Raises:
            ValueError: it is of another class; or something in it is not what a model of this class has, or would take
                more memory than its tensors do.
        """
        found = config.get(cls.kind, f"no {cls.kind}")
        if not same_class(found, cls.__name__):
            raise ValueError(f"{where} holds {str(found)[:60]}, not {cls.__name__}: read it with molrmog.load")
        try:
            config = renewed(config)
            check_numbers(config, tensors)
            with allowance(tensors):
                check_types(cls, config)
                model = cls.from_config(config)
            said = model.description
            check_description(said, {key: value for key, value in config.items() if key != cls.kind}, same_class)
            check_tensors(model, tensors)
            model.load_state_dict(tensors, assign=True)
            model.check_loaded()
        except ImportError:
            raise  # it says what to install
        except Exception as error:  # of constructors that were given anything
            raise ValueError(
                f"the tensors in {where} do not fit its configuration ({one_line(error)}): save the model again"
            ) from None
        return (model.requires_grad_(False) if cls.frozen else model).eval()


class SupportsDenoise(Protocol):
    """Anything that estimates the clean point behind a noised one: what a sampler asks for."""

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, /) -> Tensor:
        """E[x_0 | x_t] with shape (B, D) from x_t with shape (B, D)."""
        ...


class Denoiser(Model):
    """A model that estimates the clean point behind a noised one.

    Attributes:
        dim: dimension D of the rows.
        num_experts: how many experts rows may be conditional on; 0 where the denoiser knows none.
        null_expert: whether a row may be of no named expert, where there are experts.
    """

    kind = "denoiser"
    dim: int
    num_experts: int = 0
    null_expert: bool = False

    @property
    def experts(self) -> int:
        """The former name of `num_experts`."""
        return self.num_experts

    @property
    def unconditional(self) -> bool:
        """The former name of `null_expert`."""
        return self.null_expert

    @abstractmethod
    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Estimate E[x_0 | x_t], or E[x_0 | x_t, k], with shape (B, D).

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).
            expert: index k, one for all rows or one per row with shape (B,); with a null expert also None for none, or
                -1 in a row of which none is named.

        Raises:
            ValueError: wrong shapes, or an expert that the denoiser does not know.
        """


def description_of(model: object) -> dict[str, Any]:
    """The description of a part of a model.

    Raises:
        ValueError: it is no model of this library.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"a {type(model).__name__} is no law and no network of this library: save its state_dict yourself"
        )
    return model.description


# Networks of users need not inherit from Denoiser: what they leave out is asked for here, and nowhere else.


def as_module(denoiser: object) -> nn.Module:
    """The denoiser as a torch module, so that it can be part of another.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(denoiser, nn.Module):
        raise ValueError(f"a {type(denoiser).__name__} is no torch module: make it one, with `dim` and `denoise`")
    return denoiser


def dim_of(denoiser: object) -> int:
    """Dimension D of the rows of a denoiser.

    Raises:
        ValueError: it does not say.
    """
    dim = getattr(denoiser, "dim", None)
    if dim is None:
        raise ValueError(f"this {type(denoiser).__name__} does not say its dimension: give it an attribute `dim`")
    return int(dim)


def num_parameters_of(denoiser: object) -> int:
    """Numbers that describe a denoiser: what it says itself, or else those of its parameters."""
    own = getattr(denoiser, "num_parameters", None)
    if own is None:
        return sum(parameter.numel() for parameter in denoiser.parameters()) if isinstance(denoiser, nn.Module) else 0
    return int(own)


def num_experts_of(denoiser: object) -> int:
    """How many experts rows of a denoiser may be conditional on; 0 where it does not say."""
    found = getattr(denoiser, "num_experts", getattr(denoiser, "experts", 0))
    return found if isinstance(found, int) else 0  # a module of a user's may call its parts so


def has_null_expert(denoiser: object) -> bool:
    """Whether a denoiser of experts also answers where none is named; no where it does not say."""
    return bool(getattr(denoiser, "null_expert", getattr(denoiser, "unconditional", False)))


def denoise_with(denoiser: object, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
    """What a denoiser answers, with shape (B, D); the expert is only named where there is one."""
    named = {} if expert is None else {"expert": expert}
    return cast(Any, denoiser).denoise(x, s, gamma, **named)


def check_denoiser(denoiser: object, name: str = "denoiser") -> None:
    """Refuse what cannot denoise.

    Raises:
        ValueError: it has no method `denoise`.
    """
    if isinstance(denoiser, type) or not callable(getattr(denoiser, "denoise", None)):
        raise ValueError(f"{name} = {shown(denoiser)}: pass a law, or anything with denoise(x_t, s, gamma)")


def refuse_expert(denoiser: object, expert: Expert | None, mend: str = "pass none") -> None:
    """Refuse an expert where a denoiser knows none.

    Args:
        denoiser: any.
        expert: what it was asked for.
        mend: what the message ends with.

    Raises:
        ValueError: an expert is named, and it knows none.
    """
    if expert is not None and not num_experts_of(denoiser):
        raise ValueError(f"this {type(denoiser).__name__} knows no experts: {mend}")
