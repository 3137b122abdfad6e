"""Labels: the same classes everywhere, none missing, and none lost in a split."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import molrmog
from molrmog.data import Dataset
from molrmog.data.labels import as_labels, classes_of
from molrmog.experiments.latents import assign_experts
from molrmog.interfaces.estimator import MoLRMoGEstimator

KINDS = {
    "int": np.array([7, 3, 7, 5]),
    "uint8": np.array([7, 3, 7, 5], np.uint8),
    "bool": np.array([True, False, True, True]),
    "str": np.array(["b", "a", "b", "c"]),
    "object str": np.array(["b", "a", "b", "c"], dtype=object),
    "object int": np.array([7, 3, 7, 5], dtype=object),
    "whole floats": np.array([7.0, 3.0, 7.0, 5.0]),
    "list": ["b", "a", "b", "c"],
    "tensor": torch.tensor([7, 3, 7, 5]),
    "series": pd.Series(["b", "a", "b", "c"]),
    "category": pd.Series(["b", "a", "b", "c"], dtype="category"),
    "nullable": pd.Series([7, 3, 7, 5], dtype="Int64"),
    "masked": np.ma.array([7, 3, 7, 5]),
}
MISSING = {
    "nan": np.array([0.0, 1.0, np.nan, 1.0]),
    "none": np.array(["a", "b", None, "a"], dtype=object),
    "object nan": np.array(["a", "b", float("nan"), "a"], dtype=object),
    "tensor": torch.tensor([0.0, 1.0, float("nan"), 1.0]),
    "series": pd.Series(["a", "b", None, "a"]),
    "category": pd.Series(["a", "b", None, "a"], dtype="category"),
    "nullable": pd.Series([0, 1, None, 1], dtype="Int64"),
    "masked": np.ma.array([0, 1, 5, 1], mask=[0, 0, 1, 0]),
    "list": [0, 1, None, 1],
    "time": np.array(["2020-01-01", "2020-01-02", "NaT", "2020-01-01"], dtype="datetime64[D]"),
}
NO_LABELS = {
    "fractions": [0.5, 1.0, 2.0, 1.0],
    "infinite": [np.inf, 1.0, 2.0, 1.0],
    "complex": np.ones(4, complex),
    "dates": [datetime.date(2020, 1, 1)] * 4,
    "mixed": np.array(["a", 1, "b", 2], dtype=object),
    "bytes in objects": np.array([b"a", "b", "c", "d"], dtype=object),
    "one-hot": np.eye(4),
    "too few": [0, 1],
    "a number": 3,
    "ragged": [[0, 1], [2], [3], [4]],
    "too large": np.array([2**63, 1, 2, 3], np.uint64),
}
X = np.random.default_rng(0).normal(size=(4, 3))


def consumers(y):
    """What a fit, the estimator and the experts of a network make of labels."""
    small = {"latent_dim": 1, "modes": 1, "noise": "isotropic", "max_iter": 1}
    return [
        lambda: molrmog.fit(X, y, **small),
        lambda: MoLRMoGEstimator(latent_dim=1, max_iter=1, use_labels=True).fit(X, y),
        lambda: assign_experts(X, y, 1),
        lambda: classes_of(y, 4),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_label_gives_the_same_classes_everywhere(kind):
    y = KINDS[kind]
    law, model, _, (index, classes) = (ask() for ask in consumers(y))
    assert classes[index].tolist() == list(np.asarray(y).tolist())
    assert law.subspaces == len(classes) == len(model.classes_) == len(set(np.asarray(y).tolist()))
    assert model.classes_.tolist() == classes.tolist() == sorted(classes.tolist())
    np.testing.assert_allclose(law.subspace_weights, np.bincount(index) / 4, rtol=1e-6)


@pytest.mark.parametrize("kind", MISSING)
def test_missing_labels_are_refused_everywhere(kind):
    for ask in consumers(MISSING[kind]):
        with pytest.raises(ValueError, match=r"1 of 4 is missing, the first in row 2") as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", NO_LABELS)
def test_what_is_no_label_is_refused_everywhere(kind):
    for ask in consumers(NO_LABELS[kind]):
        with pytest.raises(ValueError, match=r"labels|y (have|must|are)") as error:
            ask()
        assert "\n" not in str(error.value)


def test_as_labels_keeps_what_they_are():
    assert as_labels(["b", "a"]).tolist() == ["b", "a"]
    assert as_labels([]).tolist() == []


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8), share=st.floats(0.02, 0.98), seed=st.integers(0, 9))
def test_no_class_is_lost_in_a_split(counts, share, seed):
    y = np.repeat(np.arange(len(counts)) * 3, counts)
    y = np.random.default_rng(seed).permutation(y)
    data = Dataset(name="a", x=np.arange(float(len(y)))[:, None], shape=(1,), labels=y)
    count = round(share * len(y))
    if not 0 < count < len(y):
        return
    parts = data.split(share, seed=seed)
    assert [len(part) for part in parts] == [count, len(y) - count]
    assert sorted(np.concatenate([part.x[:, 0] for part in parts])) == data.x[:, 0].tolist()
    larger = max(parts, key=len)
    if len(larger) >= len(counts):
        assert np.unique(larger.labels).tolist() == np.unique(y).tolist()
    for label in np.unique(y):  # and shares are kept, but for the rows that were swapped
        own = [int((part.labels == label).sum()) for part in parts]
        assert abs(own[0] - share * sum(own)) <= 1 + len(counts)
