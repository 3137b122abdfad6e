"""Arguments of another kind are refused in one line of the library's own, wherever rows, numbers, models are taken."""

import copy
import datetime

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import molrmog
from molrmog import metrics
from molrmog.arguments import floating, real, shown, whole
from molrmog.data import Dataset, Layout
from molrmog.devices import device_of
from molrmog.interfaces.estimator import MoLRMoGEstimator

LAW = molrmog.MoLRMoG.random(4, (2,), (2,), noise=0.2, seed=0, dtype=torch.float64).requires_grad_(False)
X = LAW.sample(12, torch.Generator().manual_seed(0)).x
VP = molrmog.VPSchedule()
MLP = molrmog.MLPDenoiser(4, width=8, depth=1, experts=2, unconditional=True)
PART = LAW.subspace(0)
DATA = Dataset(name="some", x=X.float(), labels=torch.arange(12) % 2, shape=(1, 2, 2), scale=0.5, levels=256)
LINEAR = molrmog.LinearAutoencoder((4,), 2)


def small():
    return molrmog.MLPDenoiser(4, width=8, depth=1)


def options(**kept):
    return molrmog.TrainingOptions(steps=1, device="cpu", **kept)


HOSTILE = {
    "a list": [None],
    "a text": "ä\n" * 300,
    "a class": int,
    "an object": object(),
    "a complex number": 1j,
    "a complex number of numpy": np.complex64(1),
    "nothing but a mask": np.ma.masked,
    "rows of unequal length": [[1.0, 2.0], [3.0]],
    "a date": datetime.date(2020, 1, 1),
    "a dictionary": {"a": 1},
    "a sparse matrix": scipy.sparse.eye(3).tocsr(),
    "a sparse tensor": torch.zeros(2, 2).to_sparse(),
    "a meta tensor": torch.zeros(2, device="meta"),
    "a structured array": np.zeros(2, dtype=[("a", int)]),
    "an array of objects": np.array([1, "a"], dtype=object),
    "a type of torch": torch.int64,
    "a generator": torch.Generator(),
    "an iterator": iter([1, 2]),
    "a great number": 10**30,
}
TAKERS = {
    "law.sample n": lambda v: LAW.sample(v),
    "law.sample s": lambda v: LAW.sample(1, s=v),
    "law.sample subspace": lambda v: LAW.sample(1, subspace=v),
    "law.log_prob x": lambda v: LAW.log_prob(v, 1.0, 0.5),
    "law.log_prob gamma": lambda v: LAW.log_prob(X, 1.0, v),
    "law.alone": lambda v: LAW.alone(v),
    "law.subspace": lambda v: LAW.subspace(v),
    "MoLRMoG dim": lambda v: molrmog.MoLRMoG(v, (1,), (1,)),
    "MoLRMoG modes": lambda v: molrmog.MoLRMoG(4, (1,), v),
    "MoLRMoG dtype": lambda v: molrmog.MoLRMoG(4, (1,), (1,), dtype=v),
    "random noise": lambda v: molrmog.MoLRMoG.random(4, (1,), (1,), noise=[v]),
    "from_subspaces": lambda v: molrmog.MoLRMoG.from_subspaces(v),
    "from_subspaces basis": lambda v: molrmog.MoLRMoG.from_subspaces([molrmog.Subspace(**{**vars(PART), "basis": v})]),
    "from_subspaces tau": lambda v: molrmog.MoLRMoG.from_subspaces([molrmog.Subspace(**{**vars(PART), "tau": [v]})]),
    "schedule": lambda v: VP(v),
    "schedule.time_grid": lambda v: VP.time_grid(v),
    "schedule.time_grid spacing": lambda v: VP.time_grid(2, spacing=v),
    "VPSchedule": lambda v: molrmog.VPSchedule(beta_min=[v]),
    "sample denoiser": lambda v: molrmog.sample(v, VP, (1, 4)),
    "sample schedule": lambda v: molrmog.sample(LAW, v, (1, 4)),
    "sample shape": lambda v: molrmog.sample(LAW, VP, v),
    "sample sampler": lambda v: molrmog.sample(LAW, VP, (1, 4), v),
    "sample steps": lambda v: molrmog.sample(LAW, VP, (1, 4), steps=v),
    "sample jump": lambda v: molrmog.sample(LAW, VP, (1, 4), jump=[v]),
    "sample dtype": lambda v: molrmog.sample(LAW, VP, (1, 4), dtype=v),
    "sample device": lambda v: molrmog.sample(LAW, VP, (1, 4), device=v),
    "denoise x": lambda v: MLP.denoise(v, 0.5, 0.5),
    "denoise s": lambda v: MLP.denoise(X.float(), v, 0.5),
    "denoise expert": lambda v: MLP.denoise(X.float(), 0.5, 0.5, v),
    "guided x": lambda v: molrmog.GuidedDenoiser(MLP, 2.0).denoise(v, 0.5, 0.5, 0),
    "PerExpert x": lambda v: molrmog.PerExpert([molrmog.MLPDenoiser(4, width=8, depth=1)]).denoise(v, 0.5, 0.5, 0),
    "blend x": lambda v: molrmog.BlendDenoiser([LAW, MLP]).denoise(v, 0.5, 0.5),
    "MLPDenoiser width": lambda v: molrmog.MLPDenoiser(4, width=v),
    "fit x": lambda v: molrmog.fit(v),
    "fit subspaces": lambda v: molrmog.fit(X, subspaces=v),
    "fit latent_dim": lambda v: molrmog.fit(X, subspaces=1, latent_dim=v),
    "fit max_iter": lambda v: molrmog.fit(X, subspaces=1, max_iter=v),
    "fit rank": lambda v: molrmog.fit(X, subspaces=1, rank=v),
    "fit labels": lambda v: molrmog.fit(X, v),
    "fit weights": lambda v: molrmog.fit(X, subspaces=1, weights=v),
    "fit start": lambda v: molrmog.fit(X, start=v),
    "fit dtype": lambda v: molrmog.fit(X, dtype=v),
    "frechet_distance": lambda v: metrics.frechet_distance(v, X),
    "nearest k": lambda v: metrics.nearest(X, X, v),
    "log_likelihood law": lambda v: metrics.log_likelihood(v, X),
    "denoising_loss": lambda v: metrics.denoising_loss(v, X),
    "denoising_loss draws": lambda v: metrics.denoising_loss(LAW, X, draws=v),
    "agreement": lambda v: metrics.agreement(LAW, v, X, VP),
    "jump_time schedule": lambda v: metrics.jump_time(LAW, LAW, X, v),
    "clustering": lambda v: metrics.clustering(v, v),
    "edm_weight": lambda v: metrics.edm_weight(v),
    "subspace_error": lambda v: metrics.subspace_error(LAW, v),
    "PixelPCA dim": lambda v: metrics.PixelPCA(X, [v]),
    "log_likelihood": lambda v: metrics.log_likelihood(LAW, v),
    "Layout name": lambda v: Layout(name=[v], shape=(4,)),
    "Layout shape": lambda v: Layout(name="a", shape=v),
    "Layout scale": lambda v: Layout(name="a", shape=(4,), scale=[v]),
    "Layout levels": lambda v: Layout(name="a", shape=(4,), levels=[v]),
    "Layout classes": lambda v: Layout(name="a", shape=(4,), classes=v),
    "Layout.from_info": lambda v: Layout.from_info(v),
    "Layout.from_info shape": lambda v: Layout.from_info({**DATA.info(), "shape": v}),
    "Dataset x": lambda v: Dataset(name="a", x=v, shape=(4,)),
    "Dataset labels": lambda v: Dataset(name="a", x=X, shape=(4,), labels=v),
    "dataset.subset": lambda v: DATA.subset(v),
    "dataset.split": lambda v: DATA.split([v]),
    "dataset.split seed": lambda v: DATA.split(0.5, [v]),
    "dataset.to_raw": lambda v: DATA.to_raw(v),
    "dataset.to_images": lambda v: DATA.to_images(v),
    "load_data": lambda v: molrmog.load_data([v]),
    "load_data split": lambda v: molrmog.load_data("digits", [v]),
    "load_data columns": lambda v: molrmog.load_data("digits", columns=v),
    "load_data categories": lambda v: molrmog.load_data("digits", categories=v),
    "load_data dequantise": lambda v: molrmog.load_data("digits", dequantise=v),
    "load_data image_size": lambda v: molrmog.load_data("digits", image_size=[v]),
    "load_parts held_out": lambda v: molrmog.data.load_parts("digits", held_out=[v]),
    "load": lambda v: molrmog.load([v]) if not isinstance(v, str) else molrmog.load(7),
    "train denoiser": lambda v: molrmog.train(v, X, VP, steps=1),
    "train data": lambda v: molrmog.train(small(), v, VP, steps=1, device="cpu"),
    "train schedule": lambda v: molrmog.train(small(), X, v, steps=1, device="cpu"),
    "train experts": lambda v: molrmog.train(MLP, X, VP, steps=1, experts=v),
    "train on_grid": lambda v: molrmog.train(small(), X, VP, steps=1, on_grid=[v]),
    "TrainingOptions steps": lambda v: molrmog.TrainingOptions(steps=[v]),
    "TrainingOptions learning_rate": lambda v: options(learning_rate=[v]),
    "TrainingOptions betas": lambda v: options(betas=v),
    "TrainingOptions optimizer": lambda v: options(optimizer=v),
    "TrainingOptions out": lambda v: options(out=[v]),
    "ScoreMatching weighting": lambda v: molrmog.ScoreMatching(LAW, VP, weighting=v),
    "ScoreMatching targets": lambda v: molrmog.ScoreMatching(LAW, VP, targets=v),
    "ScoreMatching sigma_data": lambda v: molrmog.ScoreMatching(LAW, VP, sigma_data=[v]),
    "GuidedDenoiser scale": lambda v: molrmog.GuidedDenoiser(MLP, [v]),
    "MoGDenoiser": lambda v: molrmog.MoGDenoiser(v),
    "MoGDenoiser learn": lambda v: molrmog.MoGDenoiser(LAW, v),
    "GaussianDenoiser learn": lambda v: molrmog.GaussianDenoiser(LAW.alone(0).moment_matched(), v),
    "ConditionalLaw": lambda v: molrmog.ConditionalLaw(v),
    "ResidualDenoiser": lambda v: molrmog.ResidualDenoiser(v, MLP),
    "ResidualDenoiser added": lambda v: molrmog.ResidualDenoiser(LAW, MLP, added=[v]),
    "LinearAutoencoder": lambda v: molrmog.LinearAutoencoder(v, 1),
    "from_pca": lambda v: molrmog.LinearAutoencoder.from_pca(v, 1),
    "from_basis": lambda v: molrmog.LinearAutoencoder.from_basis(v, torch.zeros(4)),
    "encode_data": lambda v: LINEAR.encode_data(v),
    "encode_data chunk": lambda v: LINEAR.encode_data(X, [v]),
    "fit progress": lambda v: molrmog.fit(X, subspaces=1, progress=v),
    "fit on_iteration": lambda v: molrmog.fit(X, subspaces=1, on_iteration=[v]),
    "sample progress": lambda v: molrmog.sample(LAW, VP, (1, 4), progress=v),
    "sample trajectory": lambda v: molrmog.sample(LAW, VP, (1, 4), trajectory=v),
    "estimator": lambda v: MoLRMoGEstimator(1, 1).fit(v),
    "estimator n_modes": lambda v: MoLRMoGEstimator(1, 1, [v]).fit(X.numpy()),
}
LEVELS = ("law.sample s", "law.log_prob gamma", "schedule", "dataset.to_raw")


@pytest.mark.parametrize("name", TAKERS)
def test_another_kind_of_argument_gets_one_line(name):
    internal = ("attribute", "not supported between", "ambiguous", "invalid combination")
    for what, value in HOSTILE.items():
        if what == "a great number" and name in LEVELS:
            continue  # a number like any other
        try:
            TAKERS[name](value)
        except (ValueError, TypeError) as error:
            text = str(error)
        else:
            pytest.fail(f"{what} is taken")
        assert len(text.splitlines()) == 1, (what, text)
        assert len(text) <= 400, (what, text)
        assert not any(word in text for word in internal), (what, text)


@pytest.mark.parametrize("kind", [np.float64, np.float16, torch.tensor, np.array, lambda v: torch.tensor([v])])
def test_numbers_of_every_library_are_numbers(kind):
    assert real(kind(0.5), "a") == 0.5
    assert LAW.sample(2, gamma=kind(0.5)).x.shape == (2, 4)


FORMS = {
    "backwards": lambda x: x[::-1, ::-1],
    "big-endian": lambda x: x.astype(">f8"),
    "by columns": np.asfortranarray,
    "long double": lambda x: x.astype(np.longdouble),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("name", ["frechet_distance", "agreement", "gaussian_of", "memorisation", "nearest"])
def test_metrics_take_rows_in_every_form(form, read_only, name):
    rows = form(X.numpy().copy())
    rows.setflags(write=not read_only)
    calls = {
        "frechet_distance": lambda x: metrics.frechet_distance(x, X),
        "agreement": lambda x: metrics.agreement(LAW, LAW, x, VP, times=[0.5])[0].sigma,
        "gaussian_of": lambda x: float(metrics.gaussian_of(x).log_prob(X[:1], 1.0, 0.5)),
        "memorisation": lambda x: metrics.memorisation(x, X, X),
        "nearest": lambda x: metrics.nearest(x, X)[0].sum(),
    }
    plain = torch.from_numpy(np.array(rows, dtype=np.float64))
    assert calls[name](rows) == pytest.approx(calls[name](plain)) if name != "memorisation" else calls[name](rows)


ROWS = {
    **FORMS,
    "a list": lambda x: x.tolist(),
    "rows in a tuple": tuple,
    "objects": lambda x: x.astype(object),
    "integers, big-endian": lambda x: np.rint(4 * x).astype(">i4"),
    "booleans": lambda x: x > 0,
    "half precision": lambda x: x.astype(np.float16),
    "a frame": pd.DataFrame,
    "a tensor by columns": lambda x: torch.tensor(x.T.copy()).T,
    "a tensor of half precision": lambda x: torch.tensor(x).bfloat16(),
}
READERS = {
    "log_prob": lambda x: LAW.log_prob(x, 0.9, 0.5),
    "score": lambda x: LAW.score(x, 0.9, 0.5),
    "denoise": lambda x: LAW.denoise(x, 0.9, 0.5),
    "log_likelihood": lambda x: metrics.log_likelihood(LAW, x).nats,
    "denoising_loss": lambda x: metrics.denoising_loss(LAW, x).loss,
    "encode_data": LINEAR.encode_data,
    "from_pca": lambda x: molrmog.LinearAutoencoder.from_pca(x, 1).offset,
    "Dataset": lambda x: Dataset(name="a", x=x, shape=(4,)).x,
    "to_raw": DATA.to_raw,
    "to_images": DATA.to_images,
}


def numbers(found):
    found = found.detach().double().numpy() if isinstance(found, torch.Tensor) else found
    return torch.from_numpy(np.array(found, dtype=np.float64))


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("name", READERS)
def test_rows_in_every_form_are_the_same_rows(form, name):
    rows = ROWS[form](X.numpy().copy())
    before = copy.deepcopy(rows)
    close = 2e-2 if "half" in form else 1e-5
    found = numbers(READERS[name](rows))
    torch.testing.assert_close(found, numbers(READERS[name](numbers(rows))), rtol=close, atol=close)
    assert torch.equal(numbers(rows), numbers(before))


@pytest.mark.parametrize("index", [[0, 2], (2, 0), range(3), slice(1, 4), np.arange(12) < 5, torch.tensor([1, -1])])
def test_rows_are_picked_by_what_numpy_picks_with(index):
    some = DATA.subset(index)
    rows = index if isinstance(index, slice) else np.asarray(index)
    np.testing.assert_array_equal(some.x, DATA.x[rows])
    np.testing.assert_array_equal(some.labels, DATA.labels[rows])


@pytest.mark.parametrize("index", [[12], [-13], [0.5], [[0]], [True], slice("a"), 3, []])
def test_rows_that_there_are_not_are_refused(index):
    with pytest.raises(ValueError, match=r"pass a slice|at least one row"):
        DATA.subset(index)


def test_the_checks_themselves():
    assert whole(np.int8(3), "n") == whole(torch.tensor(3), "n") == 3
    assert floating(torch.float64) == torch.float64
    assert device_of("cpu") == torch.device("cpu")
    assert shown("a\nb") == "'a\\nb'"
    for call in (
        lambda: whole(True, "n"),
        lambda: whole(2.0, "n"),
        lambda: whole(0, "n", 1),
        lambda: device_of("meta"),
    ):
        with pytest.raises(ValueError, match=r"pass|choose"):
            call()
