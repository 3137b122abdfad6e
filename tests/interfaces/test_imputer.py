"""The imputer, as scikit-learn uses it."""

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from molrmog.sklearn import MoLRMoGImputer
from oracles.conditioned import Mixture


def small(**options):
    return MoLRMoGImputer(1, 2, 1, noise="diagonal", random_state=0, **options)


def table(rows=150, share=0.2, seed=0):
    """Wine, standardised, and the same with values missing."""
    x = sklearn.datasets.load_wine().data[:rows]
    x = (x - x.mean(0)) / x.std(0)
    gaps = np.random.default_rng(seed).random(x.shape) < share
    return x, gaps, np.where(gaps, np.nan, x)


def test_scikit_learns_own_checks():
    check_estimator(small(), on_skip=None)


@pytest.mark.slow
def test_scikit_learns_own_checks_of_the_plain_imputer():
    check_estimator(MoLRMoGImputer(random_state=0), on_skip=None)


def test_what_is_observed_stays_and_the_rest_is_the_conditional_mean():
    _, gaps, seen = table()
    imputer = small().fit(seen)
    filled = imputer.transform(seen)
    np.testing.assert_array_equal(filled[~gaps], seen[~gaps])
    mixture, H = Mixture.of(imputer.law_), torch.eye(13, dtype=torch.float64)
    for i in range(5):
        known = torch.as_tensor(~gaps[i])
        found, _ = mixture.given(
            torch.as_tensor(seen[i])[known], H[known], torch.zeros(int(known.sum())).double().diag()
        )
        np.testing.assert_allclose(filled[i], found.expectation, rtol=1e-6, atol=1e-6)


def test_the_plain_imputer_is_ahead_of_means_and_of_neighbours():
    x, gaps, seen = table(178, 0.3)
    error = {
        type(each).__name__: float(((each.fit_transform(seen) - x)[gaps] ** 2).mean())
        for each in (MoLRMoGImputer(random_state=0), SimpleImputer(), KNNImputer())
    }
    assert error["MoLRMoGImputer"] < 0.95 * min(error["SimpleImputer"], error["KNNImputer"])


def test_draws_spread_as_what_is_missing_does():
    """About nine of ten hidden values lie within the middle nine tenths of their draws."""
    x, gaps, seen = table(178, 0.3, seed=1)
    imputer = MoLRMoGImputer(sample_posterior=True, random_state=np.random.RandomState(0)).fit(seen)
    draws = np.stack([imputer.transform(seen) for _ in range(200)])
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    inside = ((x >= low) & (x <= high))[gaps]
    assert 0.8 < inside.mean() < 0.97
    np.testing.assert_array_equal(draws[0][~gaps], seen[~gaps])
    assert (draws.std(0)[gaps] > 0).all()


def test_in_a_pipeline_and_under_a_search():
    x, _, seen = table(178)
    y = sklearn.datasets.load_wine().target
    pipeline = make_pipeline(StandardScaler(), small(), LogisticRegression(max_iter=500))
    found = GridSearchCV(pipeline, {"molrmogimputer__latent_dim": [1, 3]}, cv=3).fit(seen, y)
    assert found.best_score_ > 0.85
    assert len(x) == len(found.predict(seen))


def test_columns_keep_their_names_and_kinds():
    pandas = pytest.importorskip("pandas")
    _, _, seen = table(60)
    frame = pandas.DataFrame(seen[:, :4], columns=list("abcd"))
    out = small().set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == list("abcd")
    assert out.notna().all().all()
    assert small().fit_transform(seen.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("keep", [False, True])
def test_columns_without_a_value(keep):
    _, _, seen = table(60)
    seen[:, 2] = np.nan
    imputer = small(keep_empty_features=keep).fit(seen)
    filled = imputer.transform(seen)
    assert filled.shape[1] == 13 - (not keep) == len(imputer.get_feature_names_out())
    assert np.isfinite(filled).all()
    assert not keep or not filled[:, 2].any()
    with pytest.raises(ValueError, match="no value at all"):
        small().fit(np.full((5, 2), np.nan))


def test_rows_without_a_value_become_the_mean():
    _, _, seen = table(60)
    seen[7] = np.nan
    imputer = small().fit(seen)
    mean = Mixture.of(imputer.law_).expectation
    np.testing.assert_allclose(imputer.transform(seen)[7], mean, rtol=1e-6, atol=1e-8)
