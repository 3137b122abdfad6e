"""Classes by their densities: a law for each class, or one law about the means of all, whichever tells them apart.

    p(y = c | x)  =  pi_c p(x | c) / sum_j pi_j p(x | j)

    classes of their own     p(x | c) a law that class c chose for itself         quadratic discriminant analysis and on
    shared                   p(x | c) = p(x - m_c), one law of all deviations     linear discriminant analysis and on

Few rows per class cannot settle a law each; then the shared one wins. Held-out rows decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from molrmog.data.labels import classes_of
from molrmog.interfaces.estimator import table_of
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit
from molrmog.learning.selection import Selection

_FOLDS = 5
_LEAST = 3  # rows of a class that may have a law of its own
_WORST = -1e3  # nats below which no held-out row counts more


class MoLRMoGClassifier(ClassifierMixin, BaseEstimator):
    """Classifier by the densities of classes, each a mixture of low-rank Gaussians.

    Args:
        shared: whether all classes share one law about their means; "auto" for whichever makes the labels of held-out
            rows likelier.
        n_modes: Gaussians of a class, or "auto".
        latent_dim: dimension of the subspace of a class, or "auto".
        noise: off the subspaces: "isotropic", "diagonal", "shared" or "auto", see `molrmog.fit`.
        priors: probability of each class, with shape (C,), in the order of `classes_`; their shares where None.
        prior_rows: how many rows the prior on each mode's covariance is worth.
        noise_floor: smallest standard deviation, in data units.
        random_state: of the fits.

    Attributes:
        classes_: labels, with shape (C,), sorted.
        class_prior_: probability of each class, with shape (C,).
        shared_: whether the classes share one law.
        law_: where they do, the law of deviations from the means; else one with a subspace for each class.
        means_: means of the classes, with shape (C, D), where they share a law, else None.
        log_loss_: minus the mean log-probability of held-out labels, in nats, by whether classes share a law; where
            that was to be chosen.
        n_features_in_: number D of features.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 3)) + np.repeat([[0.0], [4.0]], 30, axis=0)
        >>> model = MoLRMoGClassifier(latent_dim=1, n_modes=1, random_state=0).fit(X, np.repeat(["a", "b"], 30))
        >>> model.predict_proba(X).shape, str(model.predict(X[:1])[0])
        ((60, 2), 'a')

    References:
        Hastie & Tibshirani, "Discriminant analysis by Gaussian mixtures", 1996.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 (scikit-learn's own protocol)
        "shared": ["boolean", StrOptions({"auto"})],
        "n_modes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "noise": [StrOptions({"isotropic", "diagonal", "shared", "auto"})],
        "priors": ["array-like", None],
        "prior_rows": [Interval(Real, 0, None, closed="left"), None],
        "noise_floor": [Interval(Real, 0, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        shared: bool | Literal["auto"] = "auto",
        n_modes: int | Literal["auto"] = "auto",
        latent_dim: int | Literal["auto"] = "auto",
        noise: Literal["isotropic", "diagonal", "shared", "auto"] = "auto",
        priors: Sequence[float] | None = None,
        prior_rows: float | None = None,
        noise_floor: float | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.shared = shared
        self.n_modes = n_modes
        self.latent_dim = latent_dim
        self.noise = noise
        self.priors = priors
        self.prior_rows = prior_rows
        self.noise_floor = noise_floor
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the laws of the classes.

        Args:
            X: rows, with shape (N, D), an array or a data frame, whose columns all count; NaN is a missing value.
            y: class of each row, with shape (N,), of at least two classes.

        Returns:
            The estimator.

        Raises:
            ValueError: the rows are infinite or too few, or there is one class only.
        """
        self._validate_params()
        X = table_of(self, X, ensure_min_samples=2, ensure_all_finite="allow-nan")
        if y is None:
            raise ValueError(
                "MoLRMoGClassifier requires y to be passed, but the target y is None: pass one class a row"
            )
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        index, self.classes_ = classes_of(y, len(X), "y")
        if len(self.classes_) < 2:
            raise ValueError("y has one class only: pass rows of at least 2 classes")
        self.class_prior_ = self._priors(np.bincount(index) / len(index))
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        few = int(np.bincount(index).min()) < _LEAST
        choices = [bool(self.shared)] if self.shared != "auto" else [True] if few else [False, True]
        found = {shared: self._laws(X, index, shared) for shared in choices}
        if len(found) > 1:
            self.log_loss_ = {
                shared: self._held_out_loss(X, index, shared, getattr(laws[0], "fit_summary_", None))
                for shared, laws in found.items()
            }
            choices = sorted(choices, key=lambda shared: self.log_loss_[shared])
        self.shared_ = choices[0]
        self.law_, self.means_ = found[self.shared_]
        return self

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log-probability of each class, with shape (N, C)."""
        check_is_fitted(self)
        X = table_of(self, X, reset=False, ensure_all_finite="allow-nan")
        return _log_proba(X, self.law_, self.means_, self.class_prior_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, with shape (N, C)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class of each row, with shape (N,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_log_proba(X).argmax(1)]

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each row in nats, whatever its class, with shape (N,)."""
        check_is_fitted(self)
        X = table_of(self, X, reset=False, ensure_all_finite="allow-nan")
        joint = _log_joint(X, self.law_, self.means_, self.class_prior_)
        return torch.logsumexp(joint, 1).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _priors(self, shares: np.ndarray) -> np.ndarray:
        if self.priors is None:
            return shares
        priors = np.asarray(self.priors, dtype=np.float64)
        if priors.shape != shares.shape or not np.isfinite(priors).all() or priors.min() < 0 or not priors.sum() > 0:
            raise ValueError(f"priors = {self.priors}: pass a probability for each of {len(shares)} classes")
        return priors / priors.sum()

    def _laws(
        self, X: np.ndarray, index: np.ndarray, shared: bool, selection: Selection | None = None
    ) -> tuple[MoLRMoG, np.ndarray | None]:
        """A law with a subspace for each class, or a law of deviations, and the means that they are from."""
        D = X.shape[1]
        options: dict[str, Any] = {
            "latent_dim": min(self.latent_dim, D) if isinstance(self.latent_dim, int) else self.latent_dim,
            "modes": self.n_modes,
            "noise": self.noise,
            "prior_rows": self.prior_rows,
            "noise_floor": self.noise_floor,
            "seed": self._seed,
            "selection": selection,
        }
        if not shared:
            return fit(X, index, **options), None  # pyright: ignore[reportReturnType]
        known = ~np.isnan(X)
        counts = np.stack([known[index == c].sum(0) for c in range(len(self.classes_))])  # (C, D)
        own = np.stack([np.where(known[index == c], X[index == c], 0.0).sum(0) for c in range(len(self.classes_))])
        overall = np.where(known, X, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        means = np.where(counts > 0, own / np.maximum(counts, 1), overall)
        # A row is nearer to a mean that it is part of than to the mean of the others; alone, it says nothing of either.
        stretch = np.sqrt(counts / np.maximum(counts - 1, 1))[index]
        off = np.where(counts[index] > 1, (X - means[index]) * stretch, np.nan)
        off = off[(counts[index] > 1).any(1)]
        if len(off) < 2:
            raise ValueError("no class has two rows: there is nothing to tell how rows of a class vary, add rows")
        return fit(off, subspaces=1, **options), means  # pyright: ignore[reportReturnType]

    def _held_out_loss(self, X: np.ndarray, index: np.ndarray, shared: bool, selection: Selection | None) -> float:
        """Minus the mean log-probability of labels of rows that were held out in turn, every class split alike."""
        folds = StratifiedKFold(min(_FOLDS, int(np.bincount(index).min())), shuffle=True, random_state=self._seed)
        total = 0.0
        for at, held in folds.split(X, index):
            if np.isnan(X[at]).all(0).any():
                continue  # a column is empty without these rows
            law, means = self._laws(X[at], index[at], shared, selection)
            log_proba = _log_proba(X[held], law, means, self.class_prior_)
            total -= np.maximum(log_proba[np.arange(len(log_proba)), index[held]], _WORST).sum()
        return float(total) / len(X)


def _log_joint(X: np.ndarray, law: MoLRMoG, means: np.ndarray | None, priors: np.ndarray) -> torch.Tensor:
    """Log p(x, class), with shape (N, C), in float64."""
    x = torch.as_tensor(np.ascontiguousarray(X, dtype=np.float64))
    with torch.no_grad():
        if means is None:
            columns = [law.alone(c).log_prob(x.to(law.tau)) for c in range(law.subspaces)]
        else:
            columns = [law.log_prob((x - torch.as_tensor(m, dtype=x.dtype)).to(law.tau)) for m in means]
    return torch.stack(columns, 1).double() + torch.as_tensor(np.log(np.maximum(priors, 1e-300)))


def _log_proba(X: np.ndarray, law: MoLRMoG, means: np.ndarray | None, priors: np.ndarray) -> np.ndarray:
    return torch.log_softmax(_log_joint(X, law, means, priors), 1).numpy()
