"""Laws take what holds numbers, and answer in kind."""

import numpy as np
import pytest
import torch

from oracles.laws import head_tail_law, ragged_law

TAUS = (0.3, 0.15, 0.2)


@pytest.fixture(params=["pure", "tail"])
def law(request):
    made = ragged_law(1, taus=TAUS) if request.param == "pure" else head_tail_law(1)
    return made.requires_grad_(False)


METHODS = ["log_prob", "score", "denoise", "divergence", "posterior_variance", "subspace_responsibilities"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_are_answered_by_arrays(law, name, dtype):
    x = law.sample(5, torch.Generator().manual_seed(0)).x.numpy().astype(dtype)
    ours = getattr(law, name)(x, 0.8, 0.5)
    assert isinstance(ours, np.ndarray)
    assert ours.dtype == dtype
    torch.testing.assert_close(torch.from_numpy(ours), getattr(law, name)(torch.from_numpy(x), 0.8, 0.5))


def test_a_posterior_of_arrays_holds_arrays(law):
    x = law.sample(5, torch.Generator().manual_seed(0)).x
    ours, theirs = law.posterior(x.numpy(), 0.8, 0.5), law.posterior(x, 0.8, 0.5)
    for name in ("mean", "responsibilities", "log_prob", "variance"):
        assert isinstance(getattr(ours, name), np.ndarray)
        torch.testing.assert_close(torch.from_numpy(getattr(ours, name)), getattr(theirs, name))
    drawn = [each.sample(3, torch.Generator().manual_seed(1)) for each in (ours, theirs)]
    assert isinstance(drawn[0], np.ndarray)
    torch.testing.assert_close(torch.from_numpy(drawn[0]), drawn[1])


def awkward(x):
    """The same rows in every form that NumPy lets rows have."""
    strided = np.zeros((2 * len(x), 3 * x.shape[1]))
    strided[::2, ::3] = x
    read_only = x.copy()
    read_only.setflags(write=False)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    return {
        "Fortran": np.asfortranarray(x),
        "strided": strided[::2, ::3],
        "reversed": x[::-1][::-1],
        "read-only": read_only,
        "unaligned": unaligned,
        "big-endian": x.astype(">f8"),
        "long double": x.astype(np.longdouble),
        "lists": x.tolist(),
        "nothing masked": np.ma.masked_invalid(x),
    }


def test_rows_in_every_form(law):
    x = law.sample(5, torch.Generator().manual_seed(0)).x
    wanted = law.log_prob(x, 0.8, 0.5).numpy()
    for form, rows in awkward(x.numpy()).items():
        np.testing.assert_allclose(law.log_prob(rows, 0.8, 0.5), wanted, rtol=1e-12, err_msg=form)


def test_noise_levels_may_be_arrays_and_numbers_of_numpy(law):
    x = law.sample(5, torch.Generator().manual_seed(0)).x.numpy()
    s, gamma = np.linspace(0.2, 1, 5), np.linspace(0.1, 2, 5)
    wanted = law.score(torch.from_numpy(x), torch.from_numpy(s), torch.from_numpy(gamma)).numpy()
    np.testing.assert_allclose(law.score(x, s, gamma), wanted)
    np.testing.assert_allclose(law.score(x, np.float64(0.8), np.float32(0.5)), law.score(x, 0.8, 0.5))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, np.uint32, np.uint64, np.uint8, bool])
def test_whole_numbers(law, dtype):
    """Integers beyond 2^24 lose nothing: they are computed in float64, whatever the law."""
    law = law.float()
    big = 1 if dtype in (np.uint8, bool) else 2**24 + 1
    x = torch.full((2, law.dim), big, dtype=torch.int64)
    rows = x.to(dtype) if isinstance(dtype, torch.dtype) else x.numpy().astype(dtype)
    wanted = law.log_prob(x.double(), 1.0, 0.5)
    ours = torch.as_tensor(law.log_prob(rows, 1.0, 0.5))
    assert ours.dtype == (torch.float64 if dtype is np.uint64 else torch.float32)  # torch has no arithmetic of uint64
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5 if big == 1 else 1e-7, atol=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([["a"] * 5]), "pass numbers"),
        (np.zeros((1, 5), complex), "pass numbers"),
        (np.zeros(5), r"pass rows with shape \(B, 5\)"),
        (np.zeros((2, 4)), r"lives in R\^5"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_what_holds_no_rows_gets_one_line(name, rows, message):
    law = ragged_law(1, taus=TAUS).requires_grad_(False)
    with pytest.raises(ValueError, match=message) as error:
        getattr(law, name)(rows, 1.0, 0.5)
    assert "\n" not in str(error.value)


def test_a_law_is_not_conditional(law):
    with pytest.raises(ValueError, match=r"ask law\.alone"):
        law.denoise(torch.zeros(1, law.dim), 1.0, 0.5, expert=0)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (None, "gamma = None"),
        ("a", "gamma = 'a'"),
        ([0.1, "b"], "gamma = "),
        (np.array([1j]), "gamma = "),
        (torch.tensor([1j]), "gamma is a complex"),
        (torch.tensor([1.0]).to_sparse(), "gamma is a complex, sparse or meta"),
        (np.ma.masked_equal([0.1, 0.2], 0.2), "gamma = "),
        (float("nan"), "negative or NaN"),
        (-0.1, "negative or NaN"),
        (np.array([object()]), "gamma = "),
    ],
)
def test_a_noise_level_that_is_none_gets_one_line(law, level, message):
    for rows in (torch.zeros(2, law.dim), np.zeros((2, law.dim))):
        with pytest.raises(ValueError, match=message) as error:
            law.score(rows, 1.0, level)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "form", [lambda g: g[::-1], lambda g: g.astype(">f8"), lambda g: g.astype(np.longdouble), list]
)
def test_noise_levels_in_every_form(law, form):
    x, gamma = law.sample(3, torch.Generator().manual_seed(0)).x.numpy(), np.array([0.2, 0.5, 1.0])
    given = form(gamma)
    wanted = law.score(x, 1.0, np.ascontiguousarray(np.asarray(given), np.float64))
    np.testing.assert_allclose(law.score(x, 1.0, given), wanted)


@pytest.mark.parametrize(
    "rows", [lambda x: x.to_sparse(), lambda x: x.to_sparse_csr(), lambda x: x + 0j, lambda x: x.to("meta")]
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_rows_that_are_no_dense_real_numbers_get_one_line(law, rows):
    with pytest.raises(ValueError, match="complex, sparse or meta"):
        law.score(rows(torch.ones(2, law.dim)), 1.0, 0.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 2.5}, "whole number"),
        ({"n": 2, "gamma": -1.0}, "gamma >= 0"),
        ({"n": 2, "gamma": float("nan")}, "finite"),
        ({"n": 2, "s": torch.ones(2)}, "one finite number"),
        ({"n": 2, "subspace": 0.5}, "pass an index"),
        ({"n": 2, "subspace": torch.zeros(3, dtype=torch.long)}, "one per sample"),
        ({"n": 2, "generator": 3}, "torch.Generator"),
    ],
)
def test_samples_of_nothing_get_one_line(law, asked, message):
    with pytest.raises(ValueError, match=message):
        law.sample(**asked)
