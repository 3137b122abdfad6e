"""How laws and networks are learned from rows of data."""

from molrmog.learning import _stopgap  # noqa: F401  # pyright: ignore[reportUnusedImport]
from molrmog.learning.options import TrainingOptions
from molrmog.learning.run import Objective, TrainingState
from molrmog.learning.score_matching import ScoreMatching
from molrmog.learning.starts import mog_start
from molrmog.learning.train import train
from molrmog.learning.trainer import train_objective, training

__all__ = [
    "Objective",
    "ScoreMatching",
    "TrainingOptions",
    "TrainingState",
    "mog_start",
    "train",
    "train_objective",
    "training",
]
