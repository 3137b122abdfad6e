"""Arguments of another kind are refused in one line of the library's own, wherever rows, numbers, models are taken."""

import datetime

import numpy as np
import pytest
import scipy.sparse
import torch

import molrmog
from molrmog import metrics
from molrmog.arguments import floating, real, shown, whole
from molrmog.devices import device_of

LAW = molrmog.MoLRMoG.random(4, (2,), (2,), noise=0.2, seed=0, dtype=torch.float64).requires_grad_(False)
X = LAW.sample(12, torch.Generator().manual_seed(0)).x
VP = molrmog.VPSchedule()
MLP = molrmog.MLPDenoiser(4, width=8, depth=1, experts=2, unconditional=True)
PART = LAW.subspace(0)
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
}
LEVELS = ("law.sample s", "law.log_prob gamma", "schedule")


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", TAKERS)
def test_another_kind_of_argument_gets_one_line(name, value):
    if value is HOSTILE["a great number"] and name in LEVELS:
        pytest.skip("a number like any other")
    with pytest.raises((ValueError, TypeError)) as error:
        TAKERS[name](value)
    text = str(error.value)
    assert len(text.splitlines()) == 1, text
    assert len(text) <= 300, text
    assert not any(word in text for word in ("attribute", "not supported", "ambiguous", "invalid combination")), text


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
