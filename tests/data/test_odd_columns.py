"""Types and names that few tables have: used as what they are, or refused in one line."""

from __future__ import annotations

import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch

import molrmog
from molrmog.data import load
from molrmog.data.arrays import as_table

A = pa.array(np.arange(6) + 0.5)


def stored(tmp_path, table, form="parquet"):
    path = tmp_path / f"a.{form}"
    (pq.write_table if form == "parquet" else feather.write_feather)(table, path)
    return path


@pytest.mark.parametrize("form", ["parquet", "feather"])
@pytest.mark.parametrize("kind", [pa.list_view(pa.float64()), pa.large_list_view(pa.float32()), pa.list_(pa.int8(), 2)])
def test_lists_are_coordinates_however_they_are_stored(tmp_path, form, kind):
    path = stored(tmp_path, pa.table({"a": A, "c": pa.array([[1, i] for i in range(6)], kind)}), form)
    np.testing.assert_array_equal(load(path).x[:, 1:], [[1, i] for i in range(6)])


def test_true_is_one_and_periods_are_dates(tmp_path):
    truth = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([2, 0, 1, -1, 0, 1], pa.int8()))
    assert load(stored(tmp_path, pa.table({"a": A, "c": truth}))).x[:, 1].tolist() == [1, 0, 1, 1, 0, 1]
    frame = pd.DataFrame({"a": A.to_numpy(), "c": pd.period_range("2020", periods=6, freq="M")})
    frame.to_parquet(tmp_path / "p.parquet")
    for read in (lambda: load(tmp_path / "p.parquet"), lambda: as_table(frame)):
        with pytest.raises(ValueError, match="column c holds dates or times"):
            read()


@pytest.mark.parametrize("kind", [pa.decimal128(4, 0), pa.float16(), pa.float32()])
def test_whole_labels_of_any_type_are_classes(tmp_path, kind):
    values = [Decimal(i % 2) for i in range(6)] if pa.types.is_decimal(kind) else np.arange(6) % 2
    label = pa.array(values, kind) if pa.types.is_decimal(kind) else pa.array(values).cast(kind)
    data = load(stored(tmp_path, pa.table({"a": A, "label": label})))
    assert data.labels.tolist() == [0, 1] * 3


def test_feather_of_before_2020_is_read_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        feather.write_feather(pa.table({"a": A}), tmp_path / "a.feather", version=1)
    np.testing.assert_array_equal(load(tmp_path / "a.feather").x[:, 0], A)


@pytest.mark.parametrize("names", [["a\nb"], ["n" * 900], [f"column {i} " * 30 for i in range(40)], ["a,b", " ", "c"]])
def test_a_refusal_is_one_line_whatever_the_names(tmp_path, names):
    table = pa.Table.from_arrays([pa.array(list("uvwxyz"))] * len(names) + [A], [*names, "last"])
    for options in ({}, {"drop": ["not there"]}, {"columns": [names[0]]}):
        with pytest.raises(ValueError, match="column") as error:
            load(stored(tmp_path, table), **options)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def test_thousands_of_columns_are_read_in_the_time_of_their_numbers(tmp_path):
    wide = np.random.default_rng(0).normal(size=(3, 20_000))
    path = stored(tmp_path, pa.table({f"gene {j}": wide[:, j] for j in range(wide.shape[1])}), "feather")
    np.testing.assert_array_equal(load(path).x, wide)


def test_numbers_as_text_are_said_to_be_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,size\n1.5,38\n2.5,40\n3.5,-\n4.5,38\n")
    with pytest.warns(UserWarning, match="column size holds numbers as text, '-' among them: a coordinate for each of"):
        assert load(path, categories="one-hot").dim == 4


BIG = np.array([[2**53 + 1, 1], [2**53 + 2, 3], [2**53 + 5, 5]])


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_whole_numbers_that_are_rounded_are_said(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, BIG)
    elif kind == "npz":
        np.savez(path, x=BIG)
    else:
        stored(tmp_path, pa.table({"a": BIG[:, 0], "b": BIG[:, 1]}))
    with pytest.warns(UserWarning, match=r"whole numbers beyond 2\^53 are rounded"):
        load(path)


@pytest.mark.parametrize("make", [np.array, torch.tensor, pd.DataFrame, lambda x: x.astype(np.uint64)])
def test_whole_numbers_of_a_caller_that_are_rounded_are_said(make):
    with pytest.warns(UserWarning, match=r"whole numbers beyond 2\^53 are rounded"):
        molrmog.fit(make(BIG), None, 1, 1, 1, max_iter=1, noise="isotropic")


def test_a_second_array_behind_the_first_is_no_secret(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, np.ones((3, 2)))
        np.save(file, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"a\.npy: holds 176 bytes behind its array, and another perhaps"):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.chunked_array([A]),
        lambda: A,
        lambda: pd.Series(A),
        lambda: torch.ones(3),
        lambda: torch.nested.nested_tensor([torch.ones(2)]),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_one_column_or_rows_that_differ_are_no_table(make):
    with pytest.raises(ValueError, match=r"x (has shape|is a nested tensor)"):
        as_table(make())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.uint8])
def test_the_estimator_takes_what_a_fit_takes(kind):
    x = torch.arange(40).reshape(20, 2).to(kind)
    from molrmog.interfaces.estimator import MoLRMoGEstimator

    assert MoLRMoGEstimator(n_subspaces=1, latent_dim=1, max_iter=1).fit(x).n_features_in_ == 2
    assert molrmog.fit(x, None, 1, 1, 1, max_iter=1, noise="isotropic").dim == 2
