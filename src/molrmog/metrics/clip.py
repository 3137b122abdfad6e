"""CLIP score: how well pictures go with a line of text.

    score(x, text) = cos( E_image(x), E_text(text) )  in [-1, 1]

with the two encoders of a CLIP model, e.g. 0.3 for a clear photograph and "a photo of a parachute". This is the plain
cosine, the number that papers on image models print; the CLIPScore of Hessel et al. is 2.5 max(cosine, 0). Values
depend on the model and on the wording: compare at equal `name` and text only.

No CLIP weights come with the package, and none are downloaded: the caller gives a folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrmog.data import Layout
from molrmog.metrics._rows import Rows, as_array, blocks

# What the published models were trained with; a folder's own preprocessor_config.json goes before.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class CLIPScore:
    """Cosine between pictures and text in a CLIP model of the caller's.

    Rows become 8-bit pictures as `Layout.to_images` draws them; they are resized (bicubic, shorter side to the side
    that the model reads), cropped to the central square and standardised as the model was trained.

    Args:
        layout: how rows become pictures: the dataset, or its layout.
        folder: local folder of a transformers CLIP model: config.json, model.safetensors and the tokenizer's files.
        device: where to evaluate.

    Attributes:
        name: "CLIP (FOLDER), cosine".

    Raises:
        ValueError: where no folder is given, it holds no whole CLIP model, or the layout is not of images.
        FileNotFoundError: where there is no such folder.
        ImportError: where transformers is not installed.

    References:
        Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
        (arXiv 2103.00020). Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning"
        (arXiv 2104.08718), section 3.
    """

    name: str

    def __init__(self, layout: Layout, folder: str | Path | None = None, *, device: str | torch.device = "cpu") -> None:
        if folder is None:
            raise ValueError(
                "no CLIP weights were given: pass the folder of a transformers CLIP model "
                "(config.json, model.safetensors and the tokenizer's files)"
            )
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no CLIP folder at {folder}: check the path")
        if not layout.is_image:
            raise ValueError(f"{layout.name}: CLIP needs images, got rows of shape {layout.shape}")
        self.layout = layout
        self.device = torch.device(device)
        self._model, self._tokenizer = _load(folder)
        self._model.eval().requires_grad_(False).to(self.device)
        self._side = int(self._model.config.vision_config.image_size)
        self._mean, self._deviation = (
            torch.tensor(value, device=self.device)[:, None, None] for value in _standardisation(folder)
        )
        self.name = f"CLIP ({folder.resolve().name}), cosine"

    def __call__(self, x: Rows, text: str | Sequence[str]) -> Tensor:
        """Cosine between each picture and its text.

        Args:
            x: rows with shape (N, D), scaled as in the layout.
            text: one line for all rows, e.g. "a photo of a parachute", or one per row; what is longer than the model
                reads is cut off.

        Returns:
            The cosines with shape (N,), float32 on the CPU.

        Raises:
            ValueError: where the rows are not (N, D) and finite, or there is another number of lines.
        """
        array = as_array(x, dim=self.layout.dim)
        lines = [text] * len(array) if isinstance(text, str) else list(text)
        if len(lines) != len(array):
            raise ValueError(f"{len(array)} rows and {len(lines)} lines of text: pass one line, or one per row")
        different = list(dict.fromkeys(lines))
        which = torch.tensor([different.index(line) for line in lines])
        with torch.no_grad():
            images = torch.cat([self._embed_images(array[rows]) for rows in blocks(len(array), 32)])  # (N, F)
            texts = self._embed_texts(different)  # (T, F)
            return (images * texts[which.to(self.device)]).sum(1).cpu()

    def _embed_images(self, rows: np.ndarray) -> Tensor:
        pictures = np.stack([_square(picture, self._side) for picture in self.layout.to_images(rows)])  # (B, S, S, 3)
        pixels = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255.0
        pooled = self._model.vision_model(pixel_values=(pixels - self._mean) / self._deviation).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled).float())

    def _embed_texts(self, lines: list[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(lines, padding=True, truncation=True, max_length=length, return_tensors="pt")
        pooled = self._model.text_model(
            input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
        ).pooler_output
        return torch.nn.functional.normalize(self._model.text_projection(pooled).float())


def _load(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer; no download, no pickle, no weights left at random."""
    try:
        from transformers import CLIPModel, CLIPTokenizer
    except ImportError as error:
        raise ImportError("the CLIP score needs transformers: pip install 'molrmog[clip]'") from error
    from safetensors import SafetensorError

    local: dict[str, Any] = {"local_files_only": True}
    try:
        loaded: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **local)
        model, report = loaded
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing, e.g. {missing[0]}")
        if not any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt")):
            raise ValueError("the tokenizer is missing")  # transformers would make one without a vocabulary
        return model, CLIPTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder} does not hold a transformers CLIP model with safetensors weights: {reason}"
        ) from None


def _standardisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of each channel that pictures are standardised by."""
    path = folder / "preprocessor_config.json"
    try:
        own = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again from where the CLIP folder came from") from None
    return own.get("image_mean", _MEAN), own.get("image_std", _DEVIATION)


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    """Resize the shorter side of a picture (H, W) or (H, W, 3), uint8, and crop: (side, side, 3)."""
    from PIL import Image

    image = Image.fromarray(picture).convert("RGB")
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]
