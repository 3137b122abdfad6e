"""Feature spaces in which samples are compared with data.

A feature space maps rows x (N, D), scaled as in their dataset, to features (N, F), and has a name. A Frechet distance
or a precision means nothing without that name; none of these spaces is Inception-v3, so none of the distances is an
FID.

| space | made of | looks at |
| --- | --- | --- |
| `PixelPCA` | leading principal components of the training rows | pixels, nothing learned |
| `ClassifierFeatures` | a small classifier trained on the data set's own labels | what tells its classes apart |
| `SqueezeNetFeatures` | SqueezeNet 1.1 trained on ImageNet, from a weights file | natural-image texture and shape |
| `NamedFeatures` | any function of the caller | whatever it looks at |
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from molrmog.arguments import whole
from molrmog.data import Dataset, Layout
from molrmog.metrics._rows import Rows, as_array, blocks
from molrmog.metrics._squeezenet import SqueezeNet
from molrmog.progress import progress
from molrmog.saving import MODEL_NAME, load_model, save_model
from molrmog.seeds import numpy_generator, seed_of, torch_seed


class FeatureSpace(Protocol):
    """What the metrics ask of a feature space."""

    @property
    def name(self) -> str:
        """What a number computed in this space must be labelled with."""
        ...

    def __call__(self, x: Rows) -> Tensor:
        """Features with shape (N, F), on the CPU, of rows with shape (N, D)."""
        ...


class NamedFeatures:
    """Any function as a feature space.

    Args:
        name: what numbers computed in this space are labelled with.
        function: maps float32 rows with shape (B, D) to features with shape (B, F); a module is put into eval mode.
        device: where the function wants its rows.
        chunk: rows handed over at a time.

    Examples:
        >>> space = NamedFeatures("norm", lambda x: x.norm(dim=1, keepdim=True))
        >>> space(np.array([[3.0, 4.0]]))
        tensor([[5.]])
    """

    def __init__(
        self, name: str, function: Callable[[Tensor], Tensor], *, device: str | torch.device = "cpu", chunk: int = 512
    ) -> None:
        self.name = name
        self.function = function.eval() if isinstance(function, nn.Module) else function
        self.device = torch.device(device)
        self.chunk = chunk

    def __call__(self, x: Rows) -> Tensor:
        """Features with shape (N, F) of rows with shape (N, D).

        Args:
            x: rows with shape (N, D).

        Returns:
            Features on the CPU, in the function's own type.

        Raises:
            ValueError: where the rows are not (N, D) and finite, or the function does not return (B, F).
        """
        array = as_array(x)
        parts: list[Tensor] = []
        with torch.no_grad():
            for rows in blocks(len(array), self.chunk):
                batch = torch.tensor(array[rows], dtype=torch.float32, device=self.device)
                features = self.function(batch)
                if features.ndim != 2 or len(features) != len(batch):
                    raise ValueError(
                        f"{self.name} must return (B, F), got {tuple(features.shape)} for B = {len(batch)}"
                    )
                parts.append(features.cpu())
        return torch.cat(parts)


class PixelPCA:
    """The rows themselves, in their leading principal coordinates.

    Components are computed by scikit-learn (a full or randomised decomposition, by size; seeded) and not whitened, so
    distances between features are distances between rows, less what is dropped.

    Beware of the Frechet distance here: it compares means and covariances of linear features, so one Gaussian with the
    data's moments scores as well as fresh data. Precision, recall, density and coverage do see the difference.

    Args:
        reference: training rows with shape (N, D).
        dim: number of components, at most min(N, D) of which are kept.

    Attributes:
        name: "F principal components of the training rows".
        explained: share of the variance of the reference that the components hold, in [0, 1].

    Raises:
        ValueError: where the reference is not (N, D) with N >= 2 and finite, or dim < 1.
    """

    name: str
    explained: float

    def __init__(self, reference: Rows, dim: int = 64) -> None:
        from sklearn.decomposition import PCA

        dim = whole(dim, "dim")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        rows = as_array(reference, "reference", least=2)
        pca = PCA(min(dim, *rows.shape), random_state=0)
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant reference explains 0/0 of its variance
            pca.fit(rows)
        self.components = np.asarray(pca.components_, np.float64)  # (F, D)
        self.mean = np.asarray(pca.mean_, np.float64)  # (D,)
        self.explained = float(np.nan_to_num(pca.explained_variance_ratio_).sum())
        self.name = f"{len(self.components)} principal components of the training rows"

    def __call__(self, x: Rows) -> Tensor:
        """Principal coordinates with shape (N, F), float64, of rows with shape (N, D)."""
        array = as_array(x, dim=len(self.mean))
        return torch.from_numpy(
            np.concatenate([(array[rows] - self.mean) @ self.components.T for rows in blocks(len(array), 8192)])
        )


class _Classifier(nn.Module):
    """Standardisation, a body that ends in the features, and a linear head.

    Images (C, H, W): three convolutions of 3 x 3, width doubling as the side halves; rows (D,): one hidden layer of
    256.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, features: int, width: int) -> None:
        super().__init__()
        self.shape = shape
        statistics = (shape[0], *(1 for _ in shape[1:]))  # one mean and deviation per channel, or per column
        self.register_buffer("mean", torch.zeros(statistics))
        self.register_buffer("deviation", torch.ones(statistics))
        if len(shape) == 3:
            self.body = nn.Sequential(
                nn.Conv2d(shape[0], width, 3, padding=1),
                nn.SiLU(),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.SiLU(),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Conv2d(2 * width, 4 * width, 3, padding=1),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(64 * width, features),
                nn.SiLU(),
            )
        else:
            self.body = nn.Sequential(nn.Linear(shape[0], 256), nn.SiLU(), nn.Linear(256, features), nn.SiLU())
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:  # (B, D) -> (B, F)
        images = x.reshape(-1, *self.shape)
        return self.body((images - cast(Tensor, self.mean)) / cast(Tensor, self.deviation))

    def forward(self, x: Tensor) -> Tensor:  # (B, D) -> (B, classes)
        return self.head(self.features(x))


def _train(network: _Classifier, x: np.ndarray, target: np.ndarray, steps: int, batch: int, seed: int) -> None:
    """AdamW under a one-cycle learning rate; `steps` batches, in whole shuffled passes."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    device = network.head.weight.device
    shuffle = numpy_generator(seed)
    per_pass = math.ceil(len(x) / batch)
    order = np.empty(0, np.int64)
    network.train()
    with progress() as show:
        for step in range(steps):
            if step % per_pass == 0:
                order = shuffle.permutation(len(x))
            start = batch * (step % per_pass)
            index = np.sort(order[start : start + batch])
            rows = torch.tensor(x[index], dtype=torch.float32, device=device)
            loss = functional.cross_entropy(network(rows), torch.tensor(target[index], device=device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            show("training the classifier", step + 1, steps)
    network.eval()


def _digest(*arrays: np.ndarray) -> str:
    """Fingerprint of arrays, read in blocks so that a memory map is not loaded whole."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        for rows in blocks(len(array), 4096):
            digest.update(np.ascontiguousarray(array[rows]).data)
    return digest.hexdigest()


class ClassifierFeatures:
    """Features before the last layer of a small classifier trained on the data set's own labels.

    Training takes some seconds for the digits of scikit-learn and about a minute for MNIST on two cores; the
    network is then kept in a cache, keyed by the name of the data set, a hash of its rows and labels, and the
    settings. The cache is `$MOLRMOG_CACHE`, or `~/.cache/molrmog`. One seed gives one network on one machine and
    thread count; another machine may differ in the last bits, so share the cache where numbers must be compared.

    Args:
        train: labelled data set; images (C, H, W) get a convolutional network, rows (D,) a fully connected one.
        test: labelled data set to report the accuracy on; a seeded tenth of `train` is held out where None.
        features: number of features F.
        width: channels after the first convolution.
        steps: training batches of 128; None takes three passes over the rows, at least 500 batches.
        seed: of the initial weights and the order of rows.
        device: where to train and evaluate.
        cache_dir: folder to use instead of `$MOLRMOG_CACHE`.

    Attributes:
        name: "classifier (data set), F features".
        accuracy: share of the test rows classified rightly, in [0, 1].
        seconds: what the training took, when it was done.

    Raises:
        ValueError: where labels are missing, show fewer than two classes, or test and train differ in shape.

    Warns:
        UserWarning: where a cached network is damaged (it is trained again) or the cache cannot be written.
    """

    name: str
    accuracy: float
    seconds: float

    def __init__(
        self,
        train: Dataset,
        test: Dataset | None = None,
        *,
        features: int = 64,
        width: int = 16,
        steps: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        cache_dir: str | Path | None = None,
    ) -> None:
        if train.labels is None or (test is not None and test.labels is None):
            raise ValueError(f"{train.name}: a classifier needs labels; use PixelPCA for rows without")
        classes = np.unique(train.labels)
        if len(classes) < 2:
            raise ValueError(f"{train.name}: a classifier needs at least two classes, got {len(classes)}")
        if test is not None and test.shape != train.shape:
            raise ValueError(f"train has shape {train.shape} and test {test.shape}: they must agree")

        if test is None or test.labels is None:
            order = numpy_generator(seed).permutation(len(train.x))
            held = max(1, len(order) // 10)
            fit_index, test_index = np.sort(order[held:]), np.sort(order[:held])
            x, labels = train.x[fit_index], train.labels[fit_index]
            test_x, test_labels = train.x[test_index], train.labels[test_index]
        else:
            x, labels, test_x, test_labels = train.x, train.labels, test.x, test.labels
        batch = 128
        settings: dict[str, object] = {
            "format": 1,
            "shape": list(train.shape),
            "classes": len(classes),
            "features": features,
            "width": width,
            "steps": max(500, 3 * math.ceil(len(x) / batch)) if steps is None else steps,
            "batch": batch,
            "seed": seed_of(seed),
            "data": _digest(x, labels, test_x, test_labels),
        }
        key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        root = Path(cache_dir or os.environ.get("MOLRMOG_CACHE") or Path.home() / ".cache" / "molrmog")
        slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in train.name)
        folder = root / "classifiers" / f"{slug}-{key}"

        self.name = f"classifier ({train.name}), {features} features"
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
            torch.manual_seed(torch_seed(seed))
            self.network = _Classifier(train.shape, len(classes), features, width)
        if not self._load(folder, settings):
            start = time.perf_counter()
            _standardise(self.network, x)
            self.network.to(device)
            _train(self.network, x, np.searchsorted(classes, labels), cast(int, settings["steps"]), batch, seed)
            self.seconds = time.perf_counter() - start
            logits = NamedFeatures("logits", self.network, device=device)(test_x)
            self.accuracy = float(np.mean(classes[logits.argmax(1).numpy()] == test_labels))
            record = {"settings": settings, "accuracy": self.accuracy, "seconds": self.seconds}
            try:
                save_model(folder, record, self.network.state_dict())
            except OSError as error:
                warnings.warn(
                    f"{folder} cannot be written ({error}): set MOLRMOG_CACHE to a folder that can, or the classifier "
                    "is trained every time",
                    stacklevel=2,
                )
        self._space = NamedFeatures(self.name, self.network.eval().to(device).features, device=device)

    def _load(self, folder: Path, settings: dict[str, object]) -> bool:
        """Take the cached network if it is there and whole."""
        if not (folder / MODEL_NAME).is_file():
            return False
        try:
            record, tensors = load_model(folder)
            if record["settings"] != settings:
                raise ValueError("it was made with other settings")
            self.accuracy, self.seconds = float(record["accuracy"]), float(record["seconds"])
            self.network.load_state_dict(tensors)
        except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"the classifier cached in {folder} is damaged ({reason}): training it again", stacklevel=3)
            return False
        return True

    def __call__(self, x: Rows) -> Tensor:
        """Features with shape (N, F), float32, of rows with shape (N, D) scaled as the training rows were."""
        return self._space(x)


def _standardise(network: _Classifier, x: np.ndarray) -> None:
    """Set the mean and deviation of each channel (images) or column (rows), accumulated in blocks."""
    axes = (0, 2, 3) if len(network.shape) == 3 else (0,)
    total, squares = np.zeros(network.shape[0]), np.zeros(network.shape[0])
    for rows in blocks(len(x), 4096):
        block = x[rows].astype(np.float64).reshape(-1, *network.shape)
        total += block.sum(axes)
        squares += np.square(block).sum(axes)
    count = len(x) * math.prod(network.shape[1:])
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    deviation[deviation <= 1e-6 * np.sqrt(squares / count)] = 1.0  # a constant column stays constant
    for name, value in (("mean", mean), ("deviation", deviation)):
        buffer = cast(Tensor, getattr(network, name))
        buffer.copy_(torch.from_numpy(value).reshape(buffer.shape))


class SqueezeNetFeatures(SqueezeNet):
    """Globally averaged last features of SqueezeNet 1.1, 512 of them, from a weights file.

    Rows become 8-bit pictures as `Layout.to_images` draws them (so real-valued samples are judged as what they would
    be saved as), grey ones are repeated over three channels, pictures whose shorter side is below `size` are enlarged
    to it (bilinear), and the ImageNet mean and deviation are taken out.

    Args:
        layout: how rows become pictures: the dataset, or its layout.
        weights: safetensors file with the keys of torchvision's `squeezenet1_1().features` ("0.weight",
            "3.squeeze.weight", ..., "12.expand3x3.bias"); `lpips/squeezenet1_1_features.safetensors` in
            $MOLRMOG_WEIGHTS_DIR where None.
        size: least shorter side of the pictures, in pixels, at least 17 (64 costs 1/12 of ImageNet's 224).
        device: where to evaluate.

    Attributes:
        name: "SqueezeNet 1.1 at SIDE px", and what smaller pictures were enlarged to.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is corrupt or holds other keys or shapes, the layout is not of images, or size < 17.

    References:
        Iandola et al. 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size"
        (arXiv 1602.07360), section 3; version 1.1 is the authors' revision of it.
    """

    name: str

    def __init__(
        self,
        layout: Layout,
        weights: str | Path | None = None,
        *,
        size: int = 64,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(layout, weights, size, device)
        self.name = f"SqueezeNet 1.1 at {self.sides}"

    def __call__(self, x: Rows) -> Tensor:
        """Features with shape (N, 512), float32, of rows with shape (N, D) scaled as in the layout."""
        array = as_array(x, dim=self.layout.dim)
        with torch.no_grad():
            return torch.cat(
                [self.network(self.inputs(array[rows])).mean((2, 3)).cpu() for rows in blocks(len(array), self.chunk)]
            )
