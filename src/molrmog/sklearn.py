"""Laws as estimators of scikit-learn."""

from molrmog.interfaces.classifier import MoLRMoGClassifier
from molrmog.interfaces.estimator import MoLRMoGEstimator
from molrmog.interfaces.imputer import MoLRMoGImputer

__all__ = ["MoLRMoGClassifier", "MoLRMoGEstimator", "MoLRMoGImputer"]
