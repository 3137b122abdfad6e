"""What a model is worth: likelihood, distances between pictures and sets, memorisation, clusters, denoising, cost."""

from molrmog.metrics.agreement import Agreement, Outputs, agreement, gaussian_of, jump_time, outputs
from molrmog.metrics.clip import CLIPScore
from molrmog.metrics.clustering import Clustering, assign, clustering
from molrmog.metrics.cost import Cost, Stopwatch, cost, count_flops
from molrmog.metrics.denoising import DenoisingLoss, RangeLoss, denoising_loss, edm_weight
from molrmog.metrics.features import (
    ClassifierFeatures,
    FeatureSpace,
    NamedFeatures,
    PixelPCA,
    SqueezeNetFeatures,
)
from molrmog.metrics.frechet import frechet_distance, frechet_from_moments
from molrmog.metrics.likelihood import Likelihood, log_likelihood
from molrmog.metrics.lpips import LPIPS, Diversity, PairDistance
from molrmog.metrics.memorisation import Memorisation, memorisation
from molrmog.metrics.neighbours import nearest
from molrmog.metrics.precision_recall import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from molrmog.metrics.subspaces import SubspaceError, principal_angles, subspace_error

__all__ = [
    "LPIPS",
    "Agreement",
    "CLIPScore",
    "ClassifierFeatures",
    "Clustering",
    "Cost",
    "DenoisingLoss",
    "DensityCoverage",
    "Diversity",
    "FeatureSpace",
    "Likelihood",
    "Memorisation",
    "NamedFeatures",
    "Outputs",
    "PairDistance",
    "PixelPCA",
    "PrecisionRecall",
    "RangeLoss",
    "SqueezeNetFeatures",
    "Stopwatch",
    "SubspaceError",
    "agreement",
    "assign",
    "clustering",
    "cost",
    "count_flops",
    "denoising_loss",
    "density_coverage",
    "edm_weight",
    "frechet_distance",
    "frechet_from_moments",
    "gaussian_of",
    "jump_time",
    "log_likelihood",
    "memorisation",
    "nearest",
    "outputs",
    "precision_recall",
    "principal_angles",
    "subspace_error",
]
