"""From rows to a law: recovery, labels, head and tail, stopping, data on disk, and what bad input says."""

import functools
import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.decomposition import PCA

import molrmog
from molrmog import MoLRMoG, load_data
from molrmog.metrics import subspace_error
from oracles.dense import DenseLaw

fit = functools.partial(molrmog.fit, noise=None)  # of numbers that are given: isotropic, or that of the start

SMALL = {"subspaces": 2, "latent_dim": 2, "modes": 2}


@pytest.fixture(scope="module")
def true():
    return MoLRMoG.random(12, (2, 3), (2, 1), noise=0.1, seed=3, offset=2.0, dtype=torch.float64).requires_grad_(False)


@pytest.fixture(scope="module")
def samples(true):
    return true.sample(600, torch.Generator().manual_seed(0))


@pytest.fixture
def x(samples):
    return samples.x.clone()


def same_law(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 1e-7, "atol": 1e-7}
    one, two = DenseLaw.of(a), DenseLaw.of(b)
    assert a.config == b.config
    for left, right in zip(vars(one).values(), vars(two).values(), strict=True):
        torch.testing.assert_close(left, right, **tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_recovery_without_labels(seed):
    true = MoLRMoG.random(40, (4,) * 3, (2,) * 3, noise=0.03, seed=seed, dtype=torch.float64).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    x, held_out = true.sample(6000, generator).x, true.sample(4000, generator).x
    law = fit(x.float(), subspaces=3, latent_dim=4, modes=2, seed=seed)
    best = float(true.log_prob(held_out).mean())
    assert float(law.log_prob(held_out).mean()) == pytest.approx(best, rel=0.01)
    assert subspace_error(law, true).max < 2


def test_a_fitted_law_is_ready_to_use(x):
    law = fit(x.float(), **SMALL)
    assert isinstance(law, MoLRMoG)
    assert law.basis.dtype == torch.float32
    assert not any(p.requires_grad for p in law.parameters())
    assert fit(x.float(), **SMALL, dtype=torch.float64, max_iter=2).basis.dtype == torch.float64


def test_shapes_per_subspace(x):
    law = fit(x, subspaces=2, latent_dim=(2, 3), modes=[3, 1], rank=2, max_iter=3)
    assert (law.latent_dims, law.modes, law.ranks) == ((2, 3), (3, 1), ((2, 2, 2), (2,)))


def test_the_same_seed_gives_the_same_law(x):
    first, again, other = (fit(x, **SMALL, seed=seed, max_iter=5) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


def test_every_kind_of_rows_gives_the_same_law(x, tmp_path):
    table = x.float().numpy()
    disk = np.memmap(tmp_path / "rows", np.float32, "w+", shape=table.shape)
    disk[:] = table
    disk.flush()
    disk = np.memmap(tmp_path / "rows", np.float32, "r", shape=table.shape)
    wrapped = SimpleNamespace(x=table)
    first, *others = (fit(each, **SMALL, max_iter=4) for each in (table, x.float(), disk, wrapped))
    for other in others:
        same_law(other, first, rtol=1e-6, atol=1e-6)  # arrays begin elsewhere in memory than tensors do


def test_data_on_disk_is_read_in_chunks(x, tmp_path, monkeypatch):
    whole = fit(x, **SMALL, max_iter=4)
    np.save(tmp_path / "rows.npy", x.numpy())
    monkeypatch.setattr("molrmog.learning.rows._CHUNK_NUMBERS", {"cpu": 1})
    same_law(fit(np.load(tmp_path / "rows.npy", mmap_mode="r"), **SMALL, max_iter=4), whole)


# --- labels


def test_labels_fit_each_class_alone(samples):
    x, labels = samples.x, samples.subspace
    names = np.array(["zebra", "ant"])[labels]  # any labels that sort
    options = {"latent_dim": 2, "modes": 1, "noise_floor": 1e-3}
    law = fit(x, names, **options)
    assert law.subspaces == 2
    share = float((labels == 1).double().mean())
    torch.testing.assert_close(law.subspace_weights, torch.tensor([share, 1 - share], dtype=torch.float64))
    for k, name in enumerate(("ant", "zebra")):
        alone = DenseLaw.of(fit(x[torch.from_numpy(names == name)], subspaces=1, **options))
        together = DenseLaw.of(MoLRMoG.from_subspaces([law.subspace(k)]))
        torch.testing.assert_close(together.mean, alone.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.cov, alone.cov, rtol=1e-4, atol=1e-4)


def test_labels_tell_classes_apart(samples):
    law = fit(samples.x, samples.subspace, latent_dim=3, modes=2)
    gates = law.posterior(samples.x).responsibilities
    found = torch.stack([gates[:, law.component_of == k].sum(1) for k in range(2)], 1).argmax(1)
    assert float((found == samples.subspace).double().mean()) > 0.98


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("prior_rows", [0.0, None])
def test_the_objective_never_falls(samples, labelled, prior_rows):
    curve = []
    labels = samples.subspace if labelled else None
    law = fit(samples.x, labels, **SMALL, prior_rows=prior_rows, tol=-1, max_iter=12, on_iteration=curve.append)
    assert [state.iteration for state in curve] == list(range(13))
    values = [state.penalised for state in curve]
    assert all(after >= before - 1e-9 * abs(before) for before, after in itertools.pairwise(values))
    last = curve[-1]
    if labelled:
        log_joint = [DenseLaw.of(law).log_joint(samples.x)[:, law.component_of == k].logsumexp(1) for k in range(2)]
        reached = torch.stack(log_joint, 1).gather(1, samples.subspace[:, None]).mean()
    else:
        reached = law.log_prob(samples.x).mean()
    assert last.log_likelihood == pytest.approx(float(reached))


# --- when it stops, and going on


def test_it_stops_when_the_objective_settles(x):
    curve = []
    fit(x, **SMALL, tol=1e-3, max_iter=200, on_iteration=curve.append)
    assert len(curve) < 200
    flat = np.diff([state.penalised for state in curve]) < 1e-3 * 12
    assert (flat[1:] & flat[:-1]).nonzero()[0].tolist() == [
        len(flat) - 2
    ]  # the first two flat passes running, and no more


def test_validation_keeps_the_best_law(true, x):
    held_out = true.sample(200, torch.Generator().manual_seed(9)).x
    curve = []
    few = x[:40]
    law = fit(few, **SMALL, prior_rows=0.0, validation=held_out, max_iter=40, tol=0, on_iteration=curve.append)
    values = [float(state.law.log_prob(held_out).mean()) for state in curve]
    assert float(law.log_prob(held_out).mean()) == pytest.approx(max(values))
    assert len(curve) == 41 or len(values) - 1 - int(np.argmax(values)) >= 3


def test_a_fit_goes_on_from_a_law(x):
    options = {"tol": -1.0}
    whole = fit(x, **SMALL, max_iter=9, **options)
    curve = []
    half = fit(x, **SMALL, max_iter=4, **options)
    before = [p.clone() for p in half.parameters()]
    same_law(fit(x, start=half, max_iter=5, on_iteration=curve.append, **options), whole)
    assert len(curve) == 6
    assert all(torch.equal(p, q) for p, q in zip(half.parameters(), before, strict=True))


def test_the_law_to_start_from_is_left_alone(x):
    start = fit(x, **SMALL, max_iter=1)
    fit(x.float(), start=start, max_iter=1)
    assert start.basis.dtype == torch.float64


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_weights_count_rows(x, noise):
    weights = torch.randint(0, 3, (600,)).double()
    start = fit(x, **SMALL, max_iter=1, noise=noise)
    options = {"start": start, "max_iter": 5, "tol": -1, "noise_floor": 1e-3}
    same_law(fit(x, weights=weights, **options), fit(x.repeat_interleave(weights.long(), 0), **options))


def test_progress_may_be_shown(x, capsys):
    fit(x, **SMALL, max_iter=2, progress=True)
    shown = capsys.readouterr()
    assert "nats/row" in shown.out + shown.err


# --- unequal noise


def unequal_truth(seed, noise="diagonal"):
    true = MoLRMoG.random(12, (2, 3), (2, 1), noise=0.1, seed=seed, offset=2.0, dtype=torch.float64).with_noise(noise)
    true.tau.mul_(2 ** torch.randn(true.tau.shape, generator=torch.Generator().manual_seed(seed)))
    return true


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("noise", ["diagonal", "shared"])
def test_a_law_of_unequal_noise_is_recovered(noise, labelled):
    true = unequal_truth(7, noise)
    drawn, held_out = (true.sample(n, torch.Generator().manual_seed(n)) for n in (4000, 2000))
    law = fit(drawn.x, drawn.subspace if labelled else None, **{**SMALL, "latent_dim": (2, 3)}, noise=noise)
    best, ours = (float(each.log_prob(held_out.x).mean()) for each in (true, law))
    assert ours == pytest.approx(best, abs=0.05)
    if labelled and noise == "shared":
        torch.testing.assert_close(law.tau, true.tau, rtol=0.2, atol=0)


def test_rows_turned_together_with_their_axes_give_the_same_law(x):
    Q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    options = {**SMALL, "noise": "diagonal", "noise_floor": 1e-2, "max_iter": 4}
    turned = fit(x @ Q.T, axes=Q, **options)
    torch.testing.assert_close(turned.log_prob(x @ Q.T), fit(x, **options).log_prob(x), rtol=1e-6, atol=1e-6)
    principal = [fit(rows, axes="pca", **options) for rows in (x, x @ Q.T)]
    torch.testing.assert_close(principal[1].log_prob(x @ Q.T), principal[0].log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [None, "pca", "dct"])
def test_unequal_noise_from_disk_and_onwards(x, tmp_path, monkeypatch, axes):
    options = {"tol": -1.0, "noise": "shared", "axes": axes}
    whole = fit(x, **SMALL, max_iter=5, **options)
    np.save(tmp_path / "rows.npy", x.numpy())
    monkeypatch.setattr("molrmog.learning.rows._CHUNK_NUMBERS", {"cpu": 1})
    half = fit(np.load(tmp_path / "rows.npy", mmap_mode="r"), **SMALL, max_iter=2, **options)
    onwards = fit(x, start=half, max_iter=3, tol=-1.0)
    torch.testing.assert_close(onwards.log_prob(x), whole.log_prob(x), rtol=1e-7, atol=1e-7)
    assert onwards.config == whole.config


# --- special cases


def test_one_mode_is_probabilistic_principal_components(x):
    law = fit(x, subspaces=1, latent_dim=4, modes=1, noise_floor=0.0)
    peer = PCA(4, svd_solver="full").fit(x.numpy())
    unbiased = 599 / 600
    assert law.subspace(0).tau ** 2 == pytest.approx(peer.noise_variance_ * unbiased, rel=1e-4)
    covariance = torch.from_numpy(peer.get_covariance() * unbiased)
    torch.testing.assert_close(DenseLaw.of(law).moments()[1], covariance, rtol=1e-3, atol=1e-3)
    assert float(law.log_prob(x).mean()) == pytest.approx(peer.score(x.numpy()), abs=1e-3)


def test_zero_mean_is_molrg(x):
    law = fit(x, subspaces=2, latent_dim=2, modes=1, zero_mean=True)
    assert not law.mean.any()
    assert not law.offset.any()


@pytest.mark.parametrize("q", [4, 8, 12])
def test_a_full_head_and_tail_is_one_gaussian(x, q):
    """K = n = 1 and d = q: head and tail together are the maximum-likelihood Gaussian, but for the prior of a row."""
    law = fit(x, subspaces=1, latent_dim=q, modes=1, head=q, noise_floor=1e-6)
    assert law.noise == "diagonal"
    peer = scipy.stats.multivariate_normal(x.mean(0).numpy(), np.cov(x.numpy().T, bias=True))
    assert float(law.log_prob(x).mean()) == pytest.approx(peer.logpdf(x.numpy()).mean(), abs=0.02)


@pytest.mark.slow
def test_head_and_tail_beat_an_isotropic_rest():
    """A slowly decaying spectrum off the subspaces is what the tail is for, and "auto" finds that out."""
    true = MoLRMoG.random(24, (2, 2), (2, 2), noise=0.05, seed=1, dtype=torch.float64).requires_grad_(False)
    decay = torch.linspace(1.5, 0.05, 24, dtype=torch.float64)
    x, held_out = (true.sample(n).x + decay * torch.randn(n, 24, dtype=torch.float64) for n in (1500, 500))
    pure, tailed = (fit(x, **SMALL, head=q) for q in (None, 8))
    assert float(tailed.log_prob(held_out).mean()) > float(pure.log_prob(held_out).mean()) + 0.1
    assert fit(x, **SMALL, head="auto").noise == "diagonal"
    labelled = fit(x, (x[:, 0] > 0).long(), **SMALL, head=8, max_iter=3)
    assert (labelled.subspaces, labelled.noise, labelled.dim) == (2, "diagonal", 24)


def test_digits():
    data = load_data("digits")
    law = fit(data, data.labels, latent_dim=8, modes=2, max_iter=5)
    assert (law.subspaces, law.dim) == (10, 64)
    x = torch.as_tensor(data.x)
    gates = law.posterior(x).responsibilities
    found = torch.stack([gates[:, law.component_of == k].sum(1) for k in range(10)], 1).argmax(1)
    assert float((found.numpy() == data.labels).mean()) > 0.95
    assert bool(law.log_prob(x).isfinite().all())


# --- awkward data


def finite(law, x):
    return all(bool(p.isfinite().all()) for p in law.parameters()) and bool(law.log_prob(x).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", [None, 4])
def test_constant_columns(x, dtype, head):
    x[:, [0, 5]] = 3.0
    x[:, 7] = 0.0
    assert finite(fit(x.to(dtype), **SMALL, head=head), x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [torch.ones(50, 6), torch.eye(6).repeat(10, 1), torch.arange(6.0).expand(4, 6)])
def test_repeated_rows(rows, dtype):
    x = rows.to(dtype)
    assert finite(fit(x, **SMALL, max_iter=10), x)


def test_as_few_rows_as_modes(x):
    assert finite(fit(x[:4], **SMALL), x)
    assert finite(fit(x[:1], subspaces=1, latent_dim=2, modes=1), x)


def test_one_column(x):
    law = fit(x[:, :1], subspaces=1, latent_dim=1, modes=3)
    assert finite(law, x[:, :1])
    grid = torch.linspace(-20, 20, 20_001, dtype=torch.float64)[:, None]
    assert float(law.log_prob(grid).exp().sum()) * 40 / 20_000 == pytest.approx(1, abs=1e-3)


def test_whole_numbers_of_bytes(x):
    pixels = (20 * x + 128).clamp(0, 255).numpy().astype(np.uint8)
    assert finite(fit(pixels, **SMALL), torch.from_numpy(pixels).float())


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_units_do_not_matter(x, scale, noise):
    law, scaled = (fit(c * x, **SMALL, max_iter=5, noise=noise) for c in (1, scale))
    off = 12 * np.log(scale)
    assert float(scaled.log_prob(scale * x).mean()) + off == pytest.approx(float(law.log_prob(x).mean()), abs=1e-3)


def with_bad(x, value):
    x = x.clone()
    x[17, 3] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"x": with_bad(x, torch.inf)}, "row 17 of x holds infinity"),
        (lambda x: {"x": x[:0]}, "at least one row"),
        (lambda x: {"x": x[0]}, r"shape \(12,\)"),
        (lambda x: {"x": np.array([["a"]])}, "pass numbers"),
        (lambda x: {"x": x[:3]}, "3 rows are fewer than the 4 modes"),
        (lambda x: {"labels": [0, 1]}, r"labels have shape \(2,\) for 600 rows"),
        (lambda x: {"labels": torch.zeros(600, 1)}, r"labels have shape \(600, 1\)"),
        (lambda x: {"labels": [0] * 599 + [1]}, "class 1 has 1 rows, fewer than its 2 modes"),
        (lambda x: {"latent_dim": 13}, "latent_dim = 13, but the data have 12 columns"),
        (lambda x: {"latent_dim": 0}, "latent_dim = 0: pass numbers >= 1"),
        (lambda x: {"latent_dim": (2, 2, 2)}, "one per subspace"),
        (lambda x: {"modes": 0}, "modes = 0: pass numbers >= 1"),
        (lambda x: {"modes": (1,)}, "one per subspace"),
        (lambda x: {"subspaces": 0}, "subspaces = 0: pass 1 or more"),
        (lambda x: {"rank": -1}, "rank"),
        (lambda x: {"head": 1}, "head = 1: pass a number from latent_dim = 2 to D = 12"),
        (lambda x: {"head": 13}, "head = 13"),
        (lambda x: {"head": "yes"}, "head"),
        (lambda x: {"x": x[:8], "head": "auto"}, "holds out a tenth"),
        (lambda x: {"weights": [1.0]}, r"weights have shape \(1,\) for 600 rows"),
        (lambda x: {"weights": -torch.ones(600)}, "weights must be finite, >= 0"),
        (lambda x: {"weights": torch.zeros(600)}, "not all zero"),
        (lambda x: {"weights": torch.full((600,), torch.nan)}, "weights must be finite"),
        (lambda x: {"labels": [0, 1] * 300, "weights": [0.0, 1.0] * 300}, "weight"),
        (lambda x: {"start": MoLRMoG.random(12, (2,), (1,)), "head": 4}, "leave out start or head"),
        (lambda x: {"start": MoLRMoG.random(5, (2,), (1,))}, "5"),
        (lambda x: {"start": MoLRMoG.random(12, (2,), (1,)), "labels": [0, 1] * 300}, "2 classes"),
        (lambda x: {"validation": x[:, :3]}, "validation|columns|R\\^12"),
        (lambda x: {"validation": with_bad(x, torch.inf)}, "row 17 of validation holds infinity"),
        (lambda x: {"prior_rows": -1.0}, "prior_rows"),
        (lambda x: {"noise_floor": -1.0}, "noise_floor"),
        (lambda x: {"noise_floor": float("nan")}, "noise_floor"),
        (lambda x: {"max_iter": -1}, "max_iter"),
        (lambda x: {"noise": "equal"}, "unknown noise"),
        (lambda x: {"axes": "pca"}, "isotropic noise is the same in all axes"),
        (lambda x: {"noise": "diagonal", "axes": "ica"}, "unknown axes"),
        (lambda x: {"noise": "diagonal", "axes": torch.eye(5)}, r"axes have shape \(5, 5\)"),
        (lambda x: {"noise": "diagonal", "axes": torch.ones(12, 12)}, "axes"),
        (lambda x: {"noise": "shared", "head": 4}, "leave out"),
    ],
)
def test_bad_input_gets_one_line(x, change, message):
    with pytest.raises(ValueError, match=message) as error:
        fit(**{"x": x, **SMALL, "max_iter": 2, **change(x)})
    assert "\n" not in str(error.value)


def test_more_freedom_than_rows_settle_is_said():
    x = np.random.default_rng(0).normal(size=(30, 12))
    with pytest.warns(UserWarning, match=r"1,\d\d\d degrees of freedom, more than the 360 numbers"):
        molrmog.fit(x, subspaces=3, latent_dim=8, modes=9, noise="diagonal")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        molrmog.fit(x, subspaces=1, latent_dim=2, modes=1, noise="diagonal")
