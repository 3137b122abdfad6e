import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from molrmog.sklearn import MoLRMoGClassifier, MoLRMoGEstimator

GIVEN = {"latent_dim": 2, "n_modes": 1, "noise": "isotropic"}


@parametrize_with_checks([MoLRMoGEstimator(n_subspaces=2, **GIVEN), MoLRMoGClassifier(**GIVEN)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_scikit_learn_contract_where_everything_is_chosen():
    check_estimator(MoLRMoGEstimator(), on_skip=None)


@pytest.fixture(scope="module")
def two_planes():
    """Rows near two planes in R^6, and which plane."""
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 2, 400)
    bases = np.stack([np.linalg.qr(rng.normal(size=(6, 2)))[0] for _ in range(2)])
    latent = rng.normal(size=(400, 2)) * [3.0, 1.5]
    centre = np.array([[4.0, 0, 0, 0, 0, 0], [0, -4.0, 0, 0, 0, 0]])
    x = centre[plane] + np.einsum("ndk,nk->nd", bases[plane], latent) + 0.05 * rng.normal(size=(400, 6))
    return x, plane


def test_transform_is_inverted_to_the_denoised_rows(two_planes):
    x, _ = two_planes
    model = MoLRMoGEstimator(n_subspaces=2, latent_dim=2, n_modes=2, random_state=0).fit(x)
    back = model.inverse_transform(model.transform(x))
    # Off the planes there is noise of 0.05 in 4 of 6 directions, and nothing else to lose.
    assert np.sqrt(np.mean((back - x) ** 2)) == pytest.approx(0.05 * np.sqrt(4 / 6), rel=0.1)
    # Another way to the same point: the posterior mean less the part of it that is off-subspace noise.
    law = model.law_
    t = torch.tensor(x[:5])
    with torch.no_grad():
        by_samples = torch.stack([law.subspace(int(k)).offset for k in model.predict(x[:5])])
    assert back[:5].shape == by_samples.shape
    for row, k, found in zip(t, model.predict(x[:5]), back[:5], strict=True):
        part = law.subspace(int(k))
        assert (
            np.linalg.norm((torch.tensor(found) - part.offset) @ (torch.eye(6) - part.basis @ part.basis.T).double())
            < 1e-3
        )
        assert np.linalg.norm(found - row.numpy()) < 0.5


def test_predict_finds_the_planes_and_agrees_with_the_gates(two_planes):
    x, plane = two_planes
    model = MoLRMoGEstimator(n_subspaces=2, latent_dim=2, random_state=0).fit(x)
    gates = model.predict_proba(x)
    np.testing.assert_allclose(gates.sum(1), 1.0)
    found = model.predict(x)
    assert max(np.mean(found == plane), np.mean(found != plane)) > 0.98


def test_labels_count_only_when_asked_for(two_planes):
    x, plane = two_planes
    plain = MoLRMoGEstimator(n_subspaces=2, latent_dim=2, random_state=0)
    np.testing.assert_array_equal(clone(plain).fit(x, plane).score_samples(x), clone(plain).fit(x).score_samples(x))
    model = MoLRMoGEstimator(latent_dim=2, use_labels=True, random_state=0).fit(x, np.array(["b", "a"])[plane])
    assert model.classes_.tolist() == ["a", "b"]
    assert np.mean(model.classes_[model.predict(x)] == np.array(["b", "a"])[plane]) > 0.99
    with pytest.raises(ValueError, match="use_labels needs y"):
        MoLRMoGEstimator(use_labels=True).fit(x)


def test_one_full_gaussian_is_scikit_learns(two_planes):
    x, _ = two_planes
    ours = MoLRMoGEstimator(n_subspaces=1, **GIVEN | {"latent_dim": 6}, random_state=0).fit(x)
    theirs = GaussianMixture(1, reg_covar=0.0).fit(x)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-4)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-4)


def test_samples_have_the_moments_of_the_law_and_repeat(two_planes):
    x, _ = two_planes
    model = MoLRMoGEstimator(n_subspaces=2, latent_dim=2, random_state=0).fit(x)
    drawn, subspace = model.sample(20_000)
    standard_error = x.std(0) / np.sqrt(20_000)
    assert np.all(np.abs(drawn.mean(0) - x.mean(0)) < 5 * standard_error)
    np.testing.assert_array_equal(drawn[:10], model.sample(20_000)[0][:10])
    assert np.mean(model.predict(drawn) == subspace) > 0.95
    with pytest.raises(ValueError, match="n_samples = 0"):
        model.sample(0)


def test_it_works_in_a_pipeline_on_real_data():
    x = load_digits().data[:300]
    pipeline = make_pipeline(StandardScaler(), MoLRMoGEstimator(n_subspaces=2, latent_dim=5, random_state=0))
    assert pipeline.fit_transform(x).shape == (300, 2 + 2 * 5)
    names = pipeline[-1].get_feature_names_out()
    assert names[0] == "gate0"
    assert names[-1] == "subspace1_latent4"
    with pytest.raises(ValueError, match="pass the 12 that transform returns"):
        pipeline[-1].inverse_transform(np.zeros((1, 3)))


def test_information_criteria_are_those_of_the_law(two_planes):
    x, _ = two_planes
    model = MoLRMoGEstimator(n_subspaces=2, **GIVEN, random_state=0).fit(x)
    assert model.degrees_of_freedom == model.law_.degrees_of_freedom
    log_prob = model.score_samples(x).sum()
    assert model.bic(x) == pytest.approx(model.degrees_of_freedom * np.log(len(x)) - 2 * log_prob)
    assert model.aic(x) == pytest.approx(2 * model.degrees_of_freedom - 2 * log_prob)
    assert model.icl(x) >= model.bic(x)


def test_what_is_missing_is_left_out_of_every_answer():
    """Latent means given what is observed, against the law's posterior: A zeta + R b is E[x_0 | x_o] less its noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(80, 6))
    model = MoLRMoGEstimator(2, 2, 2, noise="diagonal", random_state=0).fit(X)
    seen = np.where(rng.random(X.shape) < 0.3, np.nan, X)
    seen[3] = np.nan
    gates = model.predict_proba(seen)
    np.testing.assert_allclose(gates.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(gates[3], model.law_.subspace_weights, rtol=1e-6)
    back = model.inverse_transform(model.transform(seen))
    missing = np.isnan(seen)
    # Of what is missing nothing but the latents tells: there the posterior mean is what comes back.
    np.testing.assert_allclose(back[missing], model.law_.denoise(seen)[missing], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.score_samples(seen)[3], 0.0, atol=1e-9)
    assert MoLRMoGEstimator(2, 2, 2, noise="diagonal", random_state=0).fit(seen[:3].repeat(20, 0)).score(X) < 0
