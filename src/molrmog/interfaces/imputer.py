"""Missing values filled in by a law, as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from molrmog.interfaces.estimator import table_of
from molrmog.learning.imputing import fit_to_impute
from molrmog.seeds import torch_generator

_SIZE = StrOptions({"auto"})


class MoLRMoGImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fills in missing values (NaN) by their mean given the rest of the row, or by a draw given it; both exact.

    Values are taken to be missing at random. Numbers that are "auto" are chosen: laws are fitted with some of the
    observed values hidden, and the one that comes nearest to these is taken. What is observed stays as it is.

    Args:
        n_subspaces: number K of subspaces, or "auto".
        latent_dim: dimension of the subspaces, or "auto".
        n_modes: Gaussians in each subspace, or "auto".
        noise: off the subspaces: "isotropic", "diagonal", "shared" or "auto", see `molrmog.fit`.
        sample_posterior: draw from the distribution of the missing values, in place of their mean: for multiple
            imputation, where what comes of several completed tables is pooled.
        keep_empty_features: keep columns of which `fit` saw no value, as zeros; else `transform` leaves them out.
        prior_rows: how many rows the prior on each mode's covariance is worth.
        random_state: of the fit, and of draws.

    Attributes:
        law_: the fitted law, of the columns that hold values.
        empty_features_: which columns held none, with shape (D,).
        n_features_in_: number D of features.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 2)) @ np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
        >>> X[::4, 1] = np.nan
        >>> bool(np.isfinite(MoLRMoGImputer(random_state=0).fit_transform(X)).all())
        True

    References:
        Rubin, "Multiple imputation for nonresponse in surveys", 1987.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 (scikit-learn's own protocol)
        "n_subspaces": [Interval(Integral, 1, None, closed="left"), _SIZE],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), _SIZE, "array-like"],
        "n_modes": [Interval(Integral, 1, None, closed="left"), _SIZE, "array-like"],
        "noise": [StrOptions({"isotropic", "diagonal", "shared", "auto"})],
        "sample_posterior": ["boolean"],
        "keep_empty_features": ["boolean"],
        "prior_rows": [Interval(Real, 0, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_subspaces: int | Literal["auto"] = "auto",
        latent_dim: int | Sequence[int] | Literal["auto"] = "auto",
        n_modes: int | Sequence[int] | Literal["auto"] = "auto",
        *,
        noise: Literal["isotropic", "diagonal", "shared", "auto"] = "auto",
        sample_posterior: bool = False,
        keep_empty_features: bool = False,
        prior_rows: float | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_subspaces = n_subspaces
        self.latent_dim = latent_dim
        self.n_modes = n_modes
        self.noise = noise
        self.sample_posterior = sample_posterior
        self.keep_empty_features = keep_empty_features
        self.prior_rows = prior_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the law to what is observed.

        Args:
            X: rows, with shape (N, D), NaN where a value is missing.
            y: ignored.

        Returns:
            The imputer.

        Raises:
            ValueError: the rows are infinite or too few, or hold no value at all.
        """
        self._validate_params()
        X = table_of(self, X, ensure_min_samples=2, ensure_all_finite="allow-nan")
        self.empty_features_ = np.isnan(X).all(0)
        if self.empty_features_.all():
            raise ValueError("X holds no value at all: pass rows of which some are known")
        state = check_random_state(self.random_state)
        sizes = {"subspaces": self.n_subspaces, "latent_dim": self.latent_dim, "modes": self.n_modes}
        given: dict[str, Any] = {**sizes, "noise": self.noise, "prior_rows": self.prior_rows}
        given = {name: value for name, value in given.items() if not (isinstance(value, str) or value is None)}
        given |= {"noise": self.noise} if self.noise != "auto" else {}
        if isinstance(given.get("latent_dim"), int):
            given["latent_dim"] = min(given["latent_dim"], int((~self.empty_features_).sum()))
        rows = torch.tensor(X[:, ~self.empty_features_])
        self.law_ = fit_to_impute(rows, seed=int(state.randint(2**31 - 1)), **given)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Rows with their missing values filled in, with shape (N, D), or without the columns that were empty.

        Raises:
            ValueError: they have other columns than those that were fitted.
        """
        check_is_fitted(self)
        X = table_of(self, X, reset=False, ensure_all_finite="allow-nan")
        known = torch.tensor(X[:, ~self.empty_features_])
        if self.sample_posterior:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            filled = self.law_.impute(known, 1, torch_generator(seed))[0].numpy()
        else:
            filled = self.law_.impute(known).numpy()
        if not (self.keep_empty_features and self.empty_features_.any()):
            return cast(np.ndarray, filled)
        whole = np.zeros_like(X)
        whole[:, ~self.empty_features_] = filled
        return whole

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns that `transform` returns."""
        check_is_fitted(self)
        names = np.asarray(_check_feature_names_in(self, input_features), dtype=object)
        return names if self.keep_empty_features else names[~self.empty_features_]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
