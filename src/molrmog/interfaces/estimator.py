"""A law as a scikit-learn estimator: density, clusters and coordinates behind the usual verbs.

    transform(x)               = [R_1, ..., R_K, zeta_1, ..., zeta_K]
    inverse_transform(R, zeta) = sum_k R_k b_k + A_k zeta_k  = E[b_k + A_k z | x]

with R_k the gate of subspace k and zeta_k = sum_l r_kl E[z | x, kl],
so `inverse_transform(transform(x))` is x with the off-subspace noise taken out, and the inverse is one linear map.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from molrmog.arguments import one_or_several, whole
from molrmog.data.arrays import as_table, is_frame
from molrmog.data.labels import classes_of
from molrmog.laws.base import Subspace
from molrmog.learning.fit import fit
from molrmog.seeds import torch_generator


class MoLRMoGEstimator(TransformerMixin, DensityMixin, BaseEstimator):
    """Mixture of low-rank Gaussians on a union of subspaces, as a density estimator, clusterer and transformer.

    Numbers that are "auto" are chosen from the rows, see `molrmog.select`. Values may be missing (NaN): answers then
    speak of what is observed of a row.

    Args:
        n_subspaces: number K of subspaces, or "auto"; with `use_labels`, the number of classes counts.
        latent_dim: dimension of the subspaces, lowered to the number of features where that is smaller, or "auto".
        n_modes: Gaussians in each subspace, or "auto".
        rank: rank of every mode's covariance; full where None.
        head: fit in so many leading principal coordinates and give the rest one shared Gaussian ("auto" chooses); then
            `transform` and `inverse_transform` see the leading coordinates only.
        noise: off the subspaces: "isotropic", "diagonal", "shared" or "auto", see `molrmog.fit`.
        axes: whose coordinates unequal noise goes along: None, "pca", "dct" or orthonormal columns.
        use_labels: let `fit` use y, one subspace per class; otherwise y is ignored.
        zero_mean: keep all means at zero.
        prior_rows: how many rows the prior on each mode's covariance is worth.
        noise_floor: smallest standard deviation, in data units; a thousandth of the data's own where None.
        n_init: starts of which the likeliest is fitted.
        max_iter: passes over the data, at most.
        tol: stop when the log-likelihood per row and dimension rises by less, in nats.
        random_state: of the fit, and of `sample`.

    Attributes:
        law_: the fitted law; `law_.fit_summary_` says what was chosen and why, where something was.
        n_iter_: passes over the data that the fit took.
        classes_: label of each subspace, with shape (K,); with `use_labels` only.
        n_features_in_: number D of features.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 4))
        >>> model = MoLRMoGEstimator(n_subspaces=2, latent_dim=2, random_state=0).fit(X)
        >>> model.score_samples(X).shape, model.predict(X).shape, model.transform(X).shape
        ((50,), (50,), (50, 6))

    References:
        arXiv 2601.01475, section 3.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 (scikit-learn's own protocol)
        "n_subspaces": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), "array-like"],
        "n_modes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), "array-like"],
        "rank": [Interval(Integral, 0, None, closed="left"), None],
        "head": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "noise": [StrOptions({"isotropic", "diagonal", "shared", "auto"})],
        "axes": [StrOptions({"pca", "dct"}), "array-like", None],
        "use_labels": ["boolean"],
        "zero_mean": ["boolean"],
        "prior_rows": [Interval(Real, 0, None, closed="left"), None],
        "noise_floor": [Interval(Real, 0, None, closed="left"), None],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_subspaces: int | Literal["auto"] = "auto",
        latent_dim: int | Sequence[int] | Literal["auto"] = "auto",
        n_modes: int | Sequence[int] | Literal["auto"] = "auto",
        rank: int | None = None,
        head: int | Literal["auto"] | None = None,
        *,
        noise: Literal["isotropic", "diagonal", "shared", "auto"] = "auto",
        axes: Any = None,
        use_labels: bool = False,
        zero_mean: bool = False,
        prior_rows: float | None = None,
        noise_floor: float | None = None,
        n_init: int = 1,
        max_iter: int = 50,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_subspaces = n_subspaces
        self.latent_dim = latent_dim
        self.n_modes = n_modes
        self.rank = rank
        self.head = head
        self.noise = noise
        self.axes = axes
        self.use_labels = use_labels
        self.zero_mean = zero_mean
        self.prior_rows = prior_rows
        self.noise_floor = noise_floor
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the law by EM.

        Args:
            X: rows, with shape (N, D), an array or a data frame, whose columns all count; NaN is a missing value.
            y: class of each row, with shape (N,); ignored unless `use_labels`.

        Returns:
            The estimator.

        Raises:
            ValueError: the rows are infinite or too few, or `use_labels` is set and y is missing.
        """
        self._validate_params()
        X = self._table(X, ensure_min_samples=2)
        if self.use_labels and y is None:
            raise ValueError("use_labels needs y, one class per row: pass y to fit, or set use_labels=False")
        labels, classes = classes_of(y, len(X), "y") if self.use_labels else (None, None)
        dims = _numbers(self.latent_dim, "latent_dim")
        if not isinstance(dims, str):
            dims = min(dims, X.shape[1]) if isinstance(dims, int) else [min(d, X.shape[1]) for d in dims]
        passes: list[int] = []
        self.law_ = fit(
            X,
            labels,
            cast(Any, self.n_subspaces),
            cast(Any, dims),
            cast(Any, _numbers(self.n_modes, "n_modes")),
            self.rank,
            cast(Any, self.head),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            noise=cast(Any, None if self.head is not None and self.noise == "isotropic" else self.noise),
            axes=self.axes,
            zero_mean=self.zero_mean,
            prior_rows=self.prior_rows,
            noise_floor=self.noise_floor,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            on_iteration=lambda state: passes.append(state.iteration),
        )
        self.n_iter_ = max(passes[-1], 1)
        if classes is not None:
            self.classes_ = classes
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each row in nats, with shape (N,)."""
        with torch.no_grad():
            return self.law_.log_prob(self._rows(X)).numpy()

    def score(self, X: Any, y: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Mean log-density of the rows, in nats; y is ignored."""
        return float(np.mean(self.score_samples(X), dtype=np.float64))

    @property
    def degrees_of_freedom(self) -> int:
        """Of the fitted law: in how many directions its parameters move it."""
        check_is_fitted(self)
        return self.law_.degrees_of_freedom

    def bic(self, X: Any) -> float:
        """Bayesian information criterion of the rows, in nats, the smaller the better."""
        return self.law_.bic(self._rows(X))

    def aic(self, X: Any) -> float:
        """Akaike's information criterion of the rows, in nats, the smaller the better."""
        return self.law_.aic(self._rows(X))

    def icl(self, X: Any) -> float:
        """Integrated complete likelihood of the rows, in nats, the smaller the better."""
        return self.law_.icl(self._rows(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Gate of each subspace, with shape (N, K)."""
        return self._shares(self._gates(self._rows(X))).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Most probable subspace of each row, with shape (N,)."""
        return self.predict_proba(X).argmax(1)

    def transform(self, X: Any) -> np.ndarray:
        """Gates and gated latent means of each row, with shape (N, K + sum d_k)."""
        x = self._rows(X)
        gates = self._gates(x)
        columns = [self._shares(gates)]
        for k in range(self.law_.subspaces):
            part = self.law_.subspace(k)
            own = gates[:, self.law_.component_of == k]  # (N, n_k)
            columns.append(_latent_means(part, x, own))
        return torch.cat(columns, 1).numpy()

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows with shape (N, D) from their gates and latent means, with shape (N, K + sum d_k).

        Raises:
            ValueError: the number of columns is not that of `transform`.
        """
        check_is_fitted(self)
        coordinates = check_array(X, dtype=cast(Any, [np.float64, np.float32]))
        parts = [self.law_.subspace(k) for k in range(self.law_.subspaces)]
        back = torch.cat([torch.stack([part.offset for part in parts]), *(part.basis.T for part in parts)])
        if coordinates.shape[1] != len(back):
            raise ValueError(f"X has {coordinates.shape[1]} columns: pass the {len(back)} that transform returns")
        return (torch.tensor(coordinates).to(back) @ back).numpy()

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw exact samples.

        Args:
            n_samples: how many.

        Returns:
            Samples with shape (n_samples, D), and the subspace of each with shape (n_samples,).

        Raises:
            ValueError: n_samples < 1.
        """
        check_is_fitted(self)
        n_samples = whole(n_samples, "n_samples")
        if n_samples < 1:
            raise ValueError(f"n_samples = {n_samples}: ask for at least 1")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        drawn = self.law_.sample(n_samples, torch_generator(seed))
        return drawn.x.numpy(), drawn.subspace.numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`, with shape (K + sum d_k,); `input_features` is ignored."""
        check_is_fitted(self)
        gates = [f"gate{k}" for k in range(self.law_.subspaces)]
        latents = [f"subspace{k}_latent{j}" for k, d in enumerate(self.law_.latent_dims) for j in range(d)]
        return np.array(gates + latents, dtype=object)

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = np.ascontiguousarray(self._table(X, reset=False))
        return torch.tensor(X, dtype=next(self.law_.parameters()).dtype)

    def _table(self, X: Any, **how: Any) -> np.ndarray:
        return table_of(self, X, ensure_all_finite="allow-nan", **how)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _gates(self, x: Tensor) -> Tensor:
        """Responsibilities with shape (N, sum n_k)."""
        with torch.no_grad():
            return self.law_.posterior(x).responsibilities

    def _shares(self, gates: Tensor) -> Tensor:
        """Responsibilities of subspaces, with shape (N, K)."""
        shares = gates.new_zeros(len(gates), self.law_.subspaces)
        return shares.index_add_(1, self.law_.component_of, gates)


def table_of(estimator: BaseEstimator, X: Any, **how: Any) -> np.ndarray:
    """Rows as scikit-learn takes them; what it would not take, or not for what it is, is made an array first.

    Args:
        estimator: whose features are remembered or compared.
        X: rows, with shape (N, D).
        **how: options of `validate_data`.

    Raises:
        ValueError: they are no rows, in scikit-learn's words where it knows such, on one line.
    """
    try:
        return _judged(estimator, X, **how)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        if len(str(error).splitlines()) < 2 and len(text) <= 400:
            raise
        raise type(error)(text if len(text) <= 400 else str(error).strip().splitlines()[0].partition(". ")[0]) from None


def _judged(estimator: BaseEstimator, X: Any, **how: Any) -> np.ndarray:
    floats: Any = [np.float64, np.float32]
    kind = np.asarray(X).dtype.kind if isinstance(X, list | tuple | np.ndarray) else "f"
    if not (is_frame(X) or isinstance(X, np.ma.MaskedArray | Tensor | str | bytes) or kind in "USTmM"):
        return cast(Any, validate_data)(estimator, X, dtype=floats, **how)
    rows = as_table(X, "X", missing=True)
    if isinstance(rows, Tensor):  # numpy has no bfloat16
        rows = (rows.float() if rows.is_floating_point() and rows.element_size() < 4 else rows).cpu().numpy()
    names = list(getattr(X, "columns", []))
    if not all(isinstance(name, str) for name in names) or len(set(names)) < max(1, len(names)):
        return cast(Any, validate_data)(estimator, rows, dtype=floats, **how)
    named: dict[str, Any] = {"reset": how.pop("reset", True), "skip_check_array": True}
    cast(Any, validate_data)(estimator, X, **named)
    return check_array(rows, dtype=floats, input_name="X", **how)


def _numbers(value: Any, name: str) -> int | list[int] | str:
    if isinstance(value, str):
        return value
    found = one_or_several(value, name)
    return found if isinstance(found, int) else list(found)


def _latent_means(part: Subspace, x: Tensor, gates: Tensor) -> Tensor:
    """sum_l r_kl E[z | x, kl] of the modes of a subspace, with shape (N, d_k); gates with shape (N, n_k).

    E[z | x, c] = mu + U (I + U^T G U)^-1 U^T (A^T P (x - b) - G mu), with P the inverse of the noise, zero where a
    value is missing, and G = A^T P A.
    """
    turn = torch.eye(len(part.offset)) if part.axes is None else part.axes
    missing = x.isnan()
    if part.axes is not None and bool(missing.any()):
        raise ValueError("the noise of this law goes along axes of its own, where no single value is missing: fill X")
    A, e = turn.double().T @ part.basis.double(), (x - part.offset).double().nan_to_num(0.0) @ turn.double()
    precision = torch.as_tensor(part.tau, dtype=torch.float64).square().reciprocal().expand(len(A))
    P = precision if not bool(missing.any()) else (~missing).double() * precision  # (D,) or (N, D)
    h, G = (e * P) @ A, A.T @ (P[..., None] * A)
    zeta = torch.zeros(len(x), A.shape[1], dtype=torch.float64)
    for r, mu, U in zip(gates.T, part.means.double(), part.factors, strict=True):
        U = U.double()
        M = torch.eye(U.shape[1], dtype=U.dtype) + U.T @ G @ U  # (r, r) or (N, r, r)
        u = ((h - G @ mu) @ U)[..., None]
        solved = torch.cholesky_solve(u, torch.linalg.cholesky(M).expand(len(x), -1, -1))
        zeta += r[:, None] * (mu + solved[..., 0] @ U.T)
    return zeta.to(x)
