"""Classes by their densities."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from molrmog.sklearn import MoLRMoGClassifier

GAUSSIAN = {"n_modes": 1, "noise": "isotropic", "prior_rows": 0.0, "random_state": 0}


def test_probabilities_are_those_of_bayes():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 3)) + np.repeat([[0.0], [2.0]], [30, 50], axis=0), np.repeat(["a", "b"], [30, 50])
    model = MoLRMoGClassifier(shared=False, **GAUSSIAN, latent_dim=3).fit(x, y)
    gaussians = [scipy.stats.multivariate_normal(x[y == c].mean(0), np.cov(x[y == c].T, bias=True)) for c in "ab"]
    joint = np.stack([np.log(np.mean(y == c)) + each.logpdf(x) for c, each in zip("ab", gaussians, strict=True)], 1)
    expected = joint - scipy.special.logsumexp(joint, 1, keepdims=True)
    np.testing.assert_allclose(model.predict_log_proba(x), expected, atol=1e-3)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1.0)
    np.testing.assert_allclose(model.score_samples(x), scipy.special.logsumexp(joint, 1), atol=1e-3)


def test_one_law_about_all_means_is_linear_discriminant_analysis():
    x, y = load_iris(return_X_y=True)
    model = MoLRMoGClassifier(shared=True, **GAUSSIAN, latent_dim=4).fit(x, y)
    peer = LinearDiscriminantAnalysis().fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x), peer.predict_proba(x), atol=2e-2)
    assert model.shared_
    assert model.means_.shape == (3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_iris, load_wine])
@pytest.mark.parametrize("few", [None, 6])
def test_held_out_labels_are_as_likely_as_by_linear_discriminants(load, few):
    x, y = load(return_X_y=True)
    losses = {"ours": [], "linear": []}
    for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(x, y):
        if few:
            train = np.concatenate([train[y[train] == c][:few] for c in np.unique(y)])
        for name, model in (
            ("ours", MoLRMoGClassifier(random_state=0)),
            ("linear", LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")),
        ):
            losses[name].append(log_loss(y[test], model.fit(x[train], y[train]).predict_proba(x[test])))
    assert np.mean(losses["ours"]) < 2 * np.mean(losses["linear"]) + 0.05


def test_a_class_of_one_row_is_a_class():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(size=(20, 2)), [[9.0, 9.0]]]
    model = MoLRMoGClassifier(latent_dim=1, n_modes=1, random_state=0).fit(x, [0] * 20 + [7])
    assert model.shared_
    np.testing.assert_array_equal(model.predict([[0.0, 0.0], [9.0, 9.0]]), [0, 7])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((4, 2)), [0, 0, 0, 0], "one class"),
        (np.eye(3), ["a", "b", "c"], "no class has two rows"),
        (np.eye(3), [0.5, 1.5, 2.25], "continuous"),
    ],
)
def test_bad_input_gets_one_line(x, y, message):
    with pytest.raises(ValueError, match=message) as error:
        MoLRMoGClassifier(latent_dim=1, n_modes=1).fit(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shared", [False, True])
def test_rows_that_lack_values_are_told_apart_by_what_is_observed(shared):
    """Against the marginals of the laws of the classes."""
    X, y = load_wine(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    seen = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    model = MoLRMoGClassifier(shared=shared, latent_dim=2, n_modes=1, noise="diagonal", random_state=0).fit(seen, y)
    assert model.score(seen, y) > 0.93
    known = np.flatnonzero(~np.isnan(seen[0]))
    row = torch.as_tensor(seen[:1, known])
    if shared:
        marginal = model.law_.marginal(known)
        joint = [float(marginal.log_prob(row - torch.as_tensor(m[known]))[0]) for m in model.means_]
    else:
        joint = [float(model.law_.alone(c).marginal(known).log_prob(row)[0]) for c in range(3)]
    expected = torch.tensor(np.log(model.class_prior_) + joint).softmax(0)
    np.testing.assert_allclose(model.predict_proba(seen[:1])[0], expected, rtol=1e-6, atol=1e-9)
