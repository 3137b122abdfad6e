"""A network of diffusers, as its pipelines keep it, as a denoiser: any noise level in, E[x_0 | x_t] out.

The network was trained along x_i = s_i x_0 + gamma_i eps with s_i^2 = alpha_bar_i and s_i^2 + gamma_i^2 = 1, and is
told the timestep i. Any other x_t = s x_0 + gamma eps lies on that circle once divided by r = sqrt(s^2 + gamma^2);
the timestep whose gamma_i / s_i is gamma / s may be a fraction, log-SNR being linear between two timesteps:

    x = x_t / r,     (a, b) = (s, gamma) / r,     F = network(x, i(log(a^2 / b^2)))

    | prediction_type | F estimates   | E[x_0 | x_t]    |
    | --------------- | ------------- | --------------- |
    | epsilon         | eps           | (x - b F) / a   |
    | sample          | x_0           | F               |
    | v_prediction    | a eps - b x_0 | a x - b F       |

Data inside a box have E[x_0 | x_t] inside it, so clipping to it, as most schedulers do, only brings an estimate nearer.
Dynamic thresholding, with which a scheduler rescales each estimate by a quantile of its own values, estimates something
else: it is left out, and since it takes the place of clipping, such a pipeline is not clipped either.

Levels beyond the ends of the chain are told as its first or last timestep. A chain rescaled to end without signal has
alpha_bar = 0 there, or 2^-24 in some schedulers, which may be more than the timestep before it has; here its last
timestep has a quarter of that one's alpha_bar. All other alpha_bar_i are the scheduler's own, however small.

References:
    Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 15 (epsilon).
    Salimans & Ho, Progressive Distillation, arXiv 2202.00512, section 4 and appendix D (v).
    Karras et al., arXiv 2206.00364, appendix C.3.1 (a discrete chain asked at any noise level).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from molrmog.checks import check_settings
from molrmog.denoisers.base import check_columns, level_of_rows
from molrmog.denoisers.unet import diffusers_unet
from molrmog.models import Denoiser, Expert, Noise, refuse_expert
from molrmog.saving import MODEL_NAME
from molrmog.schedules import DiscreteSchedule

PREDICTIONS = ("epsilon", "sample", "v_prediction")


class DiffusersDenoiser(Denoiser):
    """An unconditional UNet2DModel of diffusers with the noise levels of its scheduler.

    Attributes:
        unet: the network.
        schedule: the noise levels it was trained on, for `molrmog.sample`.
        shape: (C, H, W) of a row.
        dim: dimension D = C H W of a row.
        prediction: what the network predicts.
        clip: bound of |x_0| to which estimates are clipped, or None.

    Example:
        >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, **blocks)
        >>> denoiser = DiffusersDenoiser.from_pipeline(DDPMPipeline(unet, DDPMScheduler()))
        >>> denoiser.denoise(torch.zeros(2, 64), s=1.0, gamma=0.5).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        unet: nn.Module,
        schedule: DiscreteSchedule,
        shape: Sequence[int],
        prediction: str = "epsilon",
        clip: float | None = None,
    ) -> None:
        """Wrap a network; `from_pipeline` and `from_pretrained` read all arguments from a pipeline.

        Args:
            unet: called with pictures (B, C, H, W), timesteps (B,) and `return_dict=False`; returns a tuple that begins
                with what it predicts, (B, C, H, W), with a learned variance in further channels or not.
            schedule: its noise levels.
            shape: (C, H, W) of a row.
            prediction: "epsilon", "sample" or "v_prediction".
            clip: bound of |x_0| to which estimates are clipped; None clips nothing.

        Raises:
            ValueError: an unknown prediction, a shape that is not (C, H, W), or clip <= 0.
        """
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape = {tuple(shape)}: pass (C, H, W) of a picture")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip = {clip}: pass a bound > 0, or None")
        self.unet = unet
        self.schedule = schedule
        self.shape = tuple(int(size) for size in shape)
        self.dim = math.prod(self.shape)
        self.prediction = prediction
        self.clip = clip

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser: the settings of the network where it is a UNet2DModel, else its class alone."""
        unet: dict[str, Any] = {"class": type(self.unet).__name__}
        if isinstance(self.unet, diffusers_unet()):
            unet |= {key: value for key, value in self.unet.config.items() if not key.startswith("_")}
        return {
            "denoiser": "DiffusersDenoiser",
            "unet": json.loads(json.dumps(unet)),
            "schedule": self.schedule.config,
            "shape": self.shape,
            "prediction": self.prediction,
            "clip": self.clip,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, untrained.

        Raises:
            ValueError: its network is no UNet2DModel of diffusers.
        """
        settings = {key: value for key, value in config["unet"].items() if key != "class"}
        if config["unet"]["class"] != diffusers_unet().__name__:
            raise ValueError(f"the network is a {config['unet']['class']}: build it, and load its state_dict, yourself")
        check_settings(diffusers_unet(), settings)
        if settings.get("class_embed_type") is not None or "alphas_cumprod" not in config["schedule"]:
            raise ValueError("its network takes classes, or its schedule has no alphas_cumprod")
        if settings["in_channels"] != config["shape"][0]:
            raise ValueError(f"shape = {config['shape']} for a network of {settings['in_channels']} channels")
        unet, schedule = diffusers_unet().from_config(settings), DiscreteSchedule.from_config(config["schedule"])
        return cls(cast(nn.Module, unet), schedule, config["shape"], config["prediction"], config["clip"])

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read what `save_pretrained` wrote, that of a denoiser or of an unconditional pipeline; in eval mode.

        Of a pipeline only safetensors are read, and no class is imported on its word but schedulers of diffusers.

        Args:
            path: the folder; of a pipeline, it has model_index.json, and the parts in unet/ and scheduler/ or, as older
                pipelines, beside it.

        Raises:
            FileNotFoundError: there is no pipeline, or it has no safetensors.
            ValueError: it has other parts than a UNet2DModel and a scheduler with betas, or is corrupt.
        """
        import diffusers
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_utils import SchedulerMixin

        folder = Path(path)
        if (folder / MODEL_NAME).is_file() and not (folder / "model_index.json").is_file():
            return super().from_pretrained(path)
        index = _json(folder / "model_index.json")
        parts = {name: part[1] for name, part in index.items() if isinstance(part, list) and part[1:] != [None]}
        if set(parts) != {"unet", "scheduler"} or parts["unet"] != "UNet2DModel":
            kinds = ", ".join(f"{name}: {part}" for name, part in parts.items())
            raise ValueError(
                f"{folder} holds {kinds}: pass an unconditional pipeline, unet: UNet2DModel and a scheduler"
            )
        places = {name: folder / name if (folder / name).is_dir() else folder for name in parts}
        known = getattr(diffusers, parts["scheduler"], None)
        if not (isinstance(known, type) and issubclass(known, SchedulerMixin)):
            raise ValueError(f"{folder} names the scheduler {parts['scheduler']}: diffusers has none of that name")
        if not any(places["unet"].glob("diffusion_pytorch_model*.safetensors")):
            raise FileNotFoundError(
                f"no safetensors in {places['unet']}: save the pipeline with safe_serialization=True"
            )
        try:
            unet = UNet2DModel.from_pretrained(places["unet"], use_safetensors=True)
            scheduler = cast(Any, known).from_pretrained(places["scheduler"])
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the pipeline in {folder} cannot be read ({reason}): save it again") from None
        return cls._of(unet, scheduler)

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> Self:
        """Wrap the network of a loaded pipeline, such as DDPMPipeline or DDIMPipeline; in eval mode.

        Args:
            pipeline: anything with an unconditional `unet` and a `scheduler` with betas. The network is not copied. Of
                the scheduler, `clip_sample` is heeded and `thresholding` is not, but that it turns clipping off.

        Raises:
            ValueError: the network takes classes, or the scheduler has no betas, or alphas_cumprod that do not fall.
        """
        return cls._of(pipeline.unet, pipeline.scheduler)

    @classmethod
    def _of(cls, unet: Any, scheduler: Any) -> Self:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(f"a {type(scheduler).__name__} has no betas: pass a pipeline with a DDPM-like scheduler")
        if unet.config.get("class_embed_type") or unet.config.get("num_class_embeds"):
            raise ValueError("the network takes classes: pass an unconditional one")
        size = unet.config.sample_size
        if size is None:
            raise ValueError("the network names no sample_size: pass shape=(C, H, W) to DiffusersDenoiser itself")
        alphas = scheduler.alphas_cumprod.double()
        if len(alphas) > 1 and not 0 < alphas[-1] < alphas[-2]:  # no signal is left, or a number stands for none
            alphas = torch.cat([alphas[:-1], alphas[-2:-1] / 4])
        config = scheduler.config
        clips = config.get("clip_sample", False) and not config.get("thresholding", False)
        return cls(
            unet,
            DiscreteSchedule(alphas_cumprod=tuple(alphas.tolist())),
            (unet.config.in_channels, *((size, size) if isinstance(size, int) else size)),
            prediction=config.get("prediction_type", "epsilon"),
            clip=config.get("clip_sample_range", 1.0) if clips else None,
        ).eval()

    def timestep(self, s: Noise, gamma: Noise) -> Tensor:
        """The timestep whose ratio is gamma / s, or a fraction between two; kept inside the chain, float64.

        Args:
            s: the signal scale.
            gamma: the noise standard deviation.
        """
        s, gamma = torch.as_tensor(s, dtype=torch.float64), torch.as_tensor(gamma, dtype=torch.float64)
        last = len(self.schedule.alphas_cumprod) - 1
        return self.schedule.timestep(self.schedule.time(2 * (s.log() - gamma.log()))).clamp(0, last)

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Estimate E[x_0 | x_t] with shape (B, D); rows are (C, H, W) flattened.

        Raises:
            ValueError: wrong shapes, an expert, or s = 0 where the network predicts epsilon.
        """
        check_columns(x, self.dim)
        refuse_expert(self, expert)
        s, gamma = (level_of_rows(level, x[:, :0].double()) for level in (s, gamma))  # (B,), with all their digits
        if self.prediction == "epsilon" and not s.all():
            raise ValueError("a network that predicts epsilon says nothing of x_0 at s = 0: pass s > 0")
        r = torch.hypot(s, gamma)
        a, b, r = (level[:, None].to(x.dtype) for level in (s / r, gamma / r, r))  # (B, 1)
        x = x / r
        width = next((parameter.dtype for parameter in self.unet.parameters()), x.dtype)
        pictures = x.to(width).unflatten(1, self.shape)
        timestep = self.timestep(s, gamma).to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 has 996, no 997
        out = cast(Any, self.unet)(pictures, timestep, return_dict=False)[0]
        F = out[:, : self.shape[0]].flatten(1).to(x.dtype)  # (B, D)
        if self.prediction == "epsilon":
            clean = (x - b * F) / a
        elif self.prediction == "v_prediction":
            clean = a * x - b * F
        else:
            clean = F
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: pass a folder that a pipeline of diffusers was saved to"
        )
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): save the pipeline again") from None
