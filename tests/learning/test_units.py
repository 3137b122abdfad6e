"""Units and precision: a law of c x is the law of x times c, wherever x lies and whichever kind of source holds it."""

import functools
import math
import warnings
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import molrmog
from molrmog import MoLRMoG, load_data
from molrmog.interfaces.estimator import MoLRMoGEstimator
from molrmog.learning.em import em_steps
from molrmog.learning.rows import Rows
from molrmog.learning.starts import STARTS, mog_start
from molrmog.learning.subspaces import cluster_flats, initial_law
from oracles.dense import DenseLaw

fit = functools.partial(molrmog.fit, noise=None)  # of numbers that are given: isotropic

# A count of passes, because rounding may decide which of two is the last.
SMALL = {"subspaces": 2, "latent_dim": 2, "modes": 2, "max_iter": 6, "tol": -1.0}
TRUE = MoLRMoG.random(8, (2, 2), (2, 2), noise=0.2, seed=3, offset=12.0, separation=8.0, dtype=torch.float64)
SAMPLES = TRUE.requires_grad_(False).sample(400, torch.Generator().manual_seed(0))
X, LABELS = SAMPLES.x[:300], SAMPLES.subspace[:300]
HELD_OUT = SAMPLES.x[300:]
WEIGHTS = torch.rand(300, generator=torch.Generator().manual_seed(1)) * (torch.arange(300) % 7 > 0)

# What is in data units comes as a function of c.
FITS = {
    "clusters": lambda c: {},
    "labels": lambda c: {"labels": LABELS},
    "labels and rank": lambda c: {"labels": LABELS, "rank": 1},
    "rank 0": lambda c: {"rank": 0},
    "full": lambda c: {"subspaces": 1, "latent_dim": 8},
    "one mode": lambda c: {"modes": 1},
    "head": lambda c: {"head": 4},
    "head of labels": lambda c: {"head": 4, "labels": LABELS},
    "auto": lambda c: {"head": "auto", "max_iter": 3},
    "zero mean": lambda c: {"zero_mean": True, "modes": 1},
    "zero mean head": lambda c: {"zero_mean": True, "modes": 1, "head": 4},
    "weights": lambda c: {"weights": WEIGHTS},
    "weights and labels": lambda c: {"weights": WEIGHTS, "labels": LABELS},
    "validation": lambda c: {"validation": c * HELD_OUT},
    "start": lambda c: {"start": times(TRUE, c)},
    "start and labels": lambda c: {"start": times(TRUE, c), "labels": LABELS},
    "prior rows": lambda c: {"prior_rows": 20.0},
    "no prior": lambda c: {"prior_rows": 0.0},
    "noise floor": lambda c: {"noise_floor": 0.5 * c},
    "no noise floor": lambda c: {"noise_floor": 0.0},
    "no passes": lambda c: {"max_iter": 0},
}
DTYPES = [torch.float32, torch.float64]
# Powers of two round nothing; of the others no two fits see quite the same digits.
EXACT = {torch.float32: (2.0**-40, 2.0**40, 2.0**61), torch.float64: (2.0**-50, 2.0**50, 2.0**-300, 2.0**300)}
OTHERS = {torch.float32: (1e-12, 3.7e-5, 3.7e11, 1e12, 1e18), torch.float64: (1e-15, 1e-7, 3.7e11, 1e15)}
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7}


def times(law, c):
    """The law of c x_0."""
    scaled = MoLRMoG.from_subspaces([law.subspace(k) for k in range(law.subspaces)])
    with torch.no_grad():
        for name in ("offset", "mean", "factor", "tau"):
            getattr(scaled, name).mul_(c)
    return scaled.requires_grad_(False)


def numbers(law):
    """The parameters that change with the units, and those that do not."""
    state = law.state_dict()
    lengths = {
        name: t for name, t in state.items() if name.split(".")[-1] in ("offset", "mean", "factor", "tau", "spread")
    }
    return lengths, {name: t for name, t in state.items() if name not in lengths}


def same_to_the_last_bit(scaled, law, c):
    (lengths, rest), (before, rest_before) = numbers(scaled), numbers(law)
    assert all(torch.equal(t, c * before[name]) for name, t in lengths.items())
    assert all(torch.equal(t, rest_before[name]) for name, t in rest.items())


def same_law(scaled, law, c, tolerance):
    assert type(scaled) is type(law)
    assert scaled.config == law.config
    one, two = DenseLaw.of(scaled), DenseLaw.of(law)
    size = float(two.cov.diagonal(dim1=1, dim2=2).sum(1).max())
    # Of starts that are equally good another may win, and then the subspaces stand in another order.
    there, here = (torch.cat([d.mean / s, d.cov.flatten(1) / s / s / size**0.5], 1) for d, s in ((one, c), (two, 1.0)))
    order = torch.cdist(here, there).argmin(1)
    if sorted(order.tolist()) == list(range(len(order))):
        one = DenseLaw(one.log_weight[order], one.mean[order], one.cov[order])
    torch.testing.assert_close(one.log_weight, two.log_weight, rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(one.mean / c, two.mean, rtol=0, atol=tolerance * math.sqrt(size))
    torch.testing.assert_close(one.cov / c / c, two.cov, rtol=0, atol=tolerance * size)


def same_spread(scaled, law, c, tolerance):
    one, two = DenseLaw.of(scaled).cov / c / c, DenseLaw.of(law).cov
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two[0].trace()))


def fitted(x, c, name):
    states = []
    options = {**SMALL, **FITS[name](c)}
    law = fit(x, **options, on_iteration=lambda s: states.append((s.law, s.log_likelihood, s.penalised)))
    return law, states


@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, name in enumerate(FITS)]
)
def test_a_fit_to_rows_in_other_units_is_the_fit_in_these(name, dtype):
    x = X.to(dtype)
    law, states = fitted(x, 1.0, name)
    for c in EXACT[dtype]:
        scaled, others = fitted(c * x, c, name)
        same_to_the_last_bit(scaled, law, c)
        for (one, *figures), (two, *before) in zip(others, states, strict=True):
            same_to_the_last_bit(one, two, c)
            assert figures == pytest.approx([each - two.dim * math.log(c) for each in before], abs=1e-9)
    for c in OTHERS[dtype]:
        scaled, others = fitted((c * X).to(dtype), c, name)
        same_law(scaled, law, c, TOLERANCE[dtype])
        assert len(others) == len(states)
        for (_, *figures), (two, *before) in zip(others, states, strict=True):
            assert figures == pytest.approx(
                [each - two.dim * math.log(c) for each in before], abs=10 * TOLERANCE[dtype]
            )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fit_in_other_units_stops_where_it_did(dtype):
    x, lengths = X.to(dtype), []
    for c in (1.0, *EXACT[dtype]):
        states = []
        fit(c * x, subspaces=2, latent_dim=2, modes=3, on_iteration=states.append)
        lengths.append(len(states))
    assert 2 < lengths[0] < 50
    assert len(set(lengths)) == 1


@hypothesis.given(
    exponent=st.floats(-15, 15),
    name=st.sampled_from(sorted(FITS)),
    far=st.sampled_from([0.0, 1e2, 1e6]),
    seed=st.integers(0, 3),
)
@pytest.mark.slow
def test_units_and_origin_do_not_matter(exponent, name, far, seed):
    if "zero mean" in name or "start" in name:
        far = 0.0
    c, here = 10.0**exponent, X + far
    options = {**SMALL, **FITS[name](c), "seed": seed}
    if name == "validation":
        options["validation"] = c * (HELD_OUT + far)
    law = fit(X, **{**SMALL, **FITS[name](1.0), "seed": seed})
    scaled = fit(c * here, **options).scaled(1.0, torch.full((X.shape[1],), -c * far, dtype=torch.float64))
    same_law(scaled, law, c, 1e-6 if far < 1e6 else 1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dim", [3, 8])
def test_starts_of_networks_in_other_units(start, dim, dtype):
    x = X.to(dtype)
    law = mog_start(x, dim, 3, start, seed=1, max_iter=5)
    floored = mog_start(x, dim, 3, start, seed=1, max_iter=5, noise_floor=0.5)
    for c in EXACT[dtype]:
        same_to_the_last_bit(mog_start(c * x, dim, 3, start, seed=1, max_iter=5), law, c)
        same_to_the_last_bit(mog_start(c * x, dim, 3, start, seed=1, max_iter=5, noise_floor=0.5 * c), floored, c)
    for c in OTHERS[dtype]:
        found = mog_start((c * X).to(dtype), dim, 3, start, seed=1, max_iter=5)
        if start == "random":  # principal axes have no sign, so that means which are drawn along them may flip
            same_spread(found, law, c, TOLERANCE[dtype])
        else:
            same_law(found, law, c, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_mean", [False, True])
def test_the_start_of_em_in_other_units(dtype, zero_mean):
    x, modes = X.to(dtype), (1, 1) if zero_mean else (2, 2)
    law = initial_law(Rows(x), None, (2, 2), modes, noise_floor=0.1, zero_mean=zero_mean)
    flats, assigned = cluster_flats(x, (2, 2), centred=not zero_mean)
    passes = [state.law for state, _ in zip(em_steps(law, Rows(x), zero_mean=zero_mean), range(4), strict=False)]
    for c in EXACT[dtype] + OTHERS[dtype]:
        rows = Rows((c * X).to(dtype) if c in OTHERS[dtype] else c * x)
        scaled = initial_law(rows, None, (2, 2), modes, noise_floor=0.1 * c, zero_mean=zero_mean)
        same_law(scaled, law, c, TOLERANCE[dtype])
        again = [s.law for s, _ in zip(em_steps(scaled, rows, zero_mean=zero_mean), range(4), strict=False)]
        for one, two in zip(again, passes, strict=True):
            same_law(one, two, c, TOLERANCE[dtype])
        others, theirs = cluster_flats(rows[:], (2, 2), centred=not zero_mean)
        order = [0, 1] if theirs[0] == assigned[0] else [1, 0]
        assert torch.equal(torch.tensor(order)[theirs], assigned)
        for one, two in zip([others[k] for k in order], flats, strict=True):
            assert one.noise == pytest.approx(c * two.noise, rel=TOLERANCE[dtype])
            torch.testing.assert_close(one.offset / c, two.offset, rtol=0, atol=10 * TOLERANCE[dtype])
            if c < 1e18:  # variances of such rows are no float32 numbers
                torch.testing.assert_close(one.variance / c / c, two.variance, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("c", [1e-15, 3.7e11, 1e15])
def test_the_estimator_in_other_units(c):
    law, scaled = (MoLRMoGEstimator(2, 2, 2, random_state=0).fit(s * X.numpy()) for s in (1.0, c))
    same_law(scaled.law_, law.law_, c, 1e-7)
    here, there = law.transform(X.numpy()), scaled.transform(c * X.numpy())
    np.testing.assert_allclose(there[:, :2], here[:, :2], atol=1e-6)
    np.testing.assert_allclose(np.abs(there[:, 2:]) / c, np.abs(here[:, 2:]), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", [None, 4])
def test_a_column_that_is_constant_in_other_units(dtype, head):
    x = X.to(dtype)
    x[:, 2] = 5.0
    law = fit(x, **SMALL, head=head)
    for c in EXACT[dtype]:
        same_to_the_last_bit(fit(c * x, **SMALL, head=head), law, c)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 0.1, 3e-12, 7e11])
def test_rows_that_are_all_equal(dtype, size):
    """Without a spread tau is a billionth of their size; of zeros, 1e-9."""
    row = size * torch.linspace(0.5, 2, 4, dtype=dtype)
    law = fit(row.expand(20, 4), subspaces=1, latent_dim=2, modes=1)
    assert torch.equal(law.offset[0], row)
    assert 0.5e-9 < law.noise_floor / (size or 1.0) < 4e-9
    assert bool(law.log_prob(row[None]).isfinite().all())


@pytest.mark.parametrize("size", [1e15, 1e18, 2e19])
def test_rows_whose_squares_leave_float32(size):
    law = fit((size * X / 8).float(), **SMALL)
    assert all(bool(p.isfinite().all()) for p in law.parameters())
    same_law(law, fit(X / 8, **SMALL), size, 2e-3)


@pytest.mark.parametrize("far", [1e4, 1e5])
def test_rows_of_float32_far_from_the_origin(far):
    """The law is as near to that of the rounded rows as its own offset can be."""
    x = (X / 8 + far).float()
    law, wide = fit(x, **SMALL), fit(x.double(), **SMALL)
    one, two = DenseLaw.of(law), DenseLaw.of(wide)
    torch.testing.assert_close(one.cov, two.cov, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.mean, two.mean, rtol=0, atol=far * 1e-7)
    torch.testing.assert_close(one.log_weight, two.log_weight, rtol=0, atol=1e-4)


# --- precision: one rule for every kind of source

RNG = np.random.default_rng(0)
TABLES = {
    "coordinates in metres": np.stack(
        [388_096 + RNG.normal(scale=0.05, size=200), 3_948_996 + RNG.normal(scale=0.05, size=200)], 1
    ),
    "seconds since 1970": 1_700_000_000 + RNG.integers(0, 60, size=(200, 2)),
    "nanoseconds since 1970": (1_700_000_000_000_000_000 + RNG.integers(0, 10**13, size=(200, 2))),
    "wide whole numbers": RNG.integers(0, 2**31, size=(200, 2)),
    "small whole numbers": RNG.integers(-200, 200, size=(200, 2)),
    "real numbers": RNG.normal(size=(200, 2)),
    "narrow real numbers": RNG.normal(size=(200, 2)).astype(np.float32),
    "half": RNG.normal(size=(200, 2)).astype(np.float16),
    "bytes": RNG.integers(0, 256, size=(200, 2)).astype(np.uint8),
    "unsigned": RNG.integers(2**31, 2**32, size=(200, 2)).astype(np.uint32),
    "flags": RNG.integers(0, 2, size=(200, 2)).astype(bool),
}
NARROW = {"small whole numbers", "narrow real numbers", "half", "bytes", "flags"}
WIDE = set(TABLES) - NARROW


def sources(table, folder):
    """The same numbers in every kind of source."""
    np.save(folder / "rows.npy", table)
    np.savez(folder / "rows.npz", x=table)
    yield "array", table
    yield "fortran", np.asfortranarray(table)
    yield "backwards", np.ascontiguousarray(table[::-1])[::-1]
    yield "big endian", table.astype(table.dtype.newbyteorder(">"))
    yield "tensor", torch.from_numpy(table)
    yield "memory map", np.load(folder / "rows.npy", mmap_mode="r")
    yield "npy", load_data(folder / "rows.npy")
    yield "npz", load_data(folder / "rows.npz")
    yield "dataset", SimpleNamespace(x=table)
    if table.dtype.itemsize == 8 or table.dtype.kind == "b":
        yield "list", table.tolist()
    if table.dtype.kind in "iuf":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        columns = {name: table[:, j] for j, name in enumerate("ab")}
        parquet.write_table(pa.table(columns), folder / "rows.parquet")
        yield "parquet", load_data(folder / "rows.parquet")


@pytest.mark.parametrize("name", TABLES)
def test_the_same_numbers_from_every_source_give_one_law(name, tmp_path):
    table, options = TABLES[name], {"subspaces": 1, "latent_dim": 1, "modes": 2, "max_iter": 4}
    law = fit(table, **options)
    assert law.basis.dtype == (torch.float64 if name in WIDE else torch.float32)
    for kind, source in sources(table, tmp_path):
        found = fit(source, **options)
        assert found.basis.dtype == law.basis.dtype, kind
        for one, two in zip(found.parameters(), law.parameters(), strict=True):
            assert torch.equal(one, two), kind


@pytest.mark.parametrize("name", sorted(WIDE))
def test_no_digits_are_lost(name):
    """Deviations of the law are those of the rows about their mean."""
    table = TABLES[name]
    law = fit(table, subspaces=1, latent_dim=2, modes=1, noise_floor=0.0)
    exact = (table - table[0]).astype(np.float64) if table.dtype.kind != "u" else table.astype(np.float64) - table[0]
    covariance = DenseLaw.of(law).cov[0].numpy()
    np.testing.assert_allclose(covariance, np.cov(exact.T, bias=True), rtol=1e-6, atol=1e-6 * covariance.max())


def test_half_of_torch_is_as_wide_as_half_of_numpy():
    x = X.to(torch.bfloat16)
    assert fit(x, **SMALL).basis.dtype == torch.float32
    assert fit(X.half(), **SMALL).basis.dtype == torch.float32


def test_float32_by_order_warns_where_it_can_be_seen():
    with pytest.warns(UserWarning, match="float32 rounds 2 of 2 columns, such as one with mean 3.949e"):
        law = fit(TABLES["coordinates in metres"], subspaces=1, latent_dim=1, modes=1, dtype=torch.float32)
    assert law.basis.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(X, **SMALL, dtype=torch.float32)
        fit(TABLES["small whole numbers"], subspaces=1, latent_dim=1, modes=1, dtype=torch.float32)
        constant = torch.cat([X, torch.full((300, 1), 1e8 + 1, dtype=torch.float64)], 1)
        fit(constant, **SMALL, dtype=torch.float32)
        fit(TABLES["coordinates in metres"], subspaces=1, latent_dim=1, modes=1)


def test_a_network_that_sees_rows_rounded_is_a_warning():
    network, schedule = molrmog.MLPDenoiser(2, width=4, depth=1), molrmog.VPSchedule()
    with pytest.warns(UserWarning, match="float32 rounds 2 of 2 columns"):
        molrmog.train(network, TABLES["coordinates in metres"], schedule, steps=1, device="cpu")
    molrmog.train(network, TABLES["real numbers"], schedule, steps=1, device="cpu")


# --- columns in different units


def income_and_age(rows=500):
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(60_000, 25_000, rows), rng.normal(45, 5, rows)], 1)


def test_a_noise_floor_above_the_spread_of_a_column_is_said():
    x = income_and_age()
    with pytest.warns(
        UserWarning, match=r"^1 of 2 columns spread by less than the noise floor 17\.\d, the least by "
    ) as said:
        fit(x, subspaces=1, latent_dim=2, modes=1)
    assert "\n" not in str(said[0].message)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(x, subspaces=1, latent_dim=2, modes=1, noise_floor=0.0)
        fit(x / x.std(0), subspaces=1, latent_dim=2, modes=1)


def test_columns_that_hold_one_value_in_most_rows_are_no_matter():
    x = np.random.default_rng(0).normal(size=(500, 4))
    x[:, 1] = 1e-4 * (np.arange(500) % 5 == 0)
    x[:, 2] = 3.0
    x[:, 3] = 3.0 + 1e-16 * x[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(x, subspaces=1, latent_dim=2, modes=1)


@pytest.mark.filterwarnings("default")
def test_the_command_line_warns_in_one_line(tmp_path, capfd, monkeypatch):
    from molrmog.interfaces.cli import main

    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", income_and_age())
    words = "fit rows.npy --subspaces 1 --modes 1 --latent-dim 2 --noise isotropic --no-evaluate --out run"
    assert main(words.split()) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith("molrmog: warning: 1 of 2 columns spread by less than the noise floor")
    assert molrmog.load(tmp_path / "run").dim == 2
