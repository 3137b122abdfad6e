"""Laws as estimators of scikit-learn."""

from molrmog.interfaces.classifier import MoLRMoGClassifier
from molrmog.interfaces.estimator import MoLRMoGEstimator

__all__ = ["MoLRMoGClassifier", "MoLRMoGEstimator"]
