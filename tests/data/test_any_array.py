"""Whatever is passed as rows: the same numbers for a fit, a law, the estimator and a metric, or the same refusal."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch

import molrmog
from molrmog import metrics
from molrmog.data import Dataset
from molrmog.data.arrays import as_table
from molrmog.interfaces.estimator import MoLRMoGEstimator

TABLE = np.random.default_rng(0).integers(-20, 20, (12, 3)) / 4.0
NAMES = ["x", "y", "z"]


def frame(**how):
    return pd.DataFrame(TABLE, columns=NAMES, **how)


GOOD = {
    "list": lambda: TABLE.tolist(),
    "tuple of arrays": lambda: tuple(TABLE),
    "float32": lambda: TABLE.astype(np.float32),
    "float16": lambda: TABLE.astype(np.float16),
    "big-endian": lambda: TABLE.astype(">f8"),
    "fortran": lambda: np.asfortranarray(TABLE),
    "strided": lambda: np.repeat(TABLE, 2, 1)[:, ::2],
    "backwards": lambda: TABLE[::-1].copy()[::-1],
    "read-only": lambda: np.broadcast_to(TABLE, (1, 12, 3))[0],
    "objects": lambda: TABLE.astype(object),
    "decimals": lambda: np.array([[Decimal(v) for v in row] for row in TABLE.tolist()], dtype=object),
    "fractions": lambda: np.array([[Fraction(v) for v in row] for row in TABLE.tolist()], dtype=object),
    "matrix": lambda: np.asmatrix(TABLE),
    "masked, none of it": lambda: np.ma.array(TABLE, mask=np.zeros_like(TABLE, bool)),
    "tensor": lambda: torch.tensor(TABLE),
    "with gradients": lambda: torch.tensor(TABLE, requires_grad=True),
    "transposed tensor": lambda: torch.tensor(TABLE.T.copy()).T,
    "dataset": lambda: Dataset(name="a", x=TABLE, shape=(3,)),
    "frame": frame,
    "frame with an index": lambda: frame(index=[f"row {i}" for i in range(12)]),
    "frame of objects": lambda: frame(dtype=object),
    "frame of mixed types": lambda: frame().astype({"x": "float32", "y": "Float64"}),
    "frame of Arrow types": lambda: frame().convert_dtypes(dtype_backend="pyarrow"),
    "frame with numbers as names": lambda: frame().set_axis([3, 1, 2], axis=1),
    "frame with mixed names": lambda: frame().set_axis(["a", 1, ("b", 2)], axis=1),
    "frame with equal names": lambda: frame().set_axis(["a", "a", "a"], axis=1),
    "frame with names of methods": lambda: frame().set_axis(["shape", "values", "columns"], axis=1),
    "frame with levels": lambda: frame().set_axis(pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]), axis=1),
    "Arrow": lambda: pa.table(dict(zip(NAMES, TABLE.T, strict=True))),
}
BAD = {
    "sparse": (lambda: scipy.sparse.csr_matrix(TABLE), "sparse"),
    "sparse array": (lambda: scipy.sparse.coo_array(TABLE), "sparse"),
    "sparse tensor": (lambda: torch.tensor(TABLE).to_sparse(), "sparse"),
    "sparse frame": (lambda: frame().astype(pd.SparseDtype("float64", 0.0)), "sparse"),
    "complex": (lambda: TABLE.astype(complex), "complex128 values: pass numbers"),
    "complex tensor": (lambda: torch.tensor(TABLE, dtype=torch.complex64), "complex"),
    "text": (lambda: TABLE.astype(str), "pass numbers"),
    "dates": (lambda: TABLE.astype(int).astype("datetime64[D]"), "datetime64.* values: pass numbers"),
    "objects with text": (lambda: np.where(TABLE > 4, "a", TABLE.astype(object)), "Python objects such as 'a'"),
    "records": (lambda: np.zeros(12, [("u", float), ("v", int)]), "named fields, u, v"),
    "frame with text": (lambda: frame().assign(species="cat"), "column species holds text such as 'cat'"),
    "frame with categories": (lambda: frame().assign(s=pd.Categorical(["a", "b"] * 6)), "column s holds text"),
    "frame with dates": (lambda: frame().assign(when=pd.Timestamp("2020-01-01")), "column when holds dates or times"),
    "frame with objects": (lambda: frame().assign(o=[object()] * 12), "column o holds object objects"),
    "frame without columns": (lambda: frame()[[]], "no columns at all"),
    "a path": (lambda: "table.csv", "load_data reads a file or a folder"),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], "pass rows of numbers"),
    "nothing": (lambda: None, r"shape \(\)|pass rows|lacks 1 of 1 values"),
    "an object": (object, "Python objects such as <object"),
}
SMALL = {"subspaces": 1, "latent_dim": 1, "modes": 1, "noise": "isotropic", "max_iter": 1}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", GOOD)
def test_the_same_rows_whatever_they_come_in(kind):
    x = GOOD[kind]()
    np.testing.assert_array_equal(np.asarray(as_table(x), dtype=np.float64), TABLE)
    law, expected = molrmog.fit(x, dtype=torch.float64, **SMALL), molrmog.fit(TABLE, dtype=torch.float64, **SMALL)
    np.testing.assert_allclose(law.offset, expected.offset, rtol=1e-12)
    rows = {"dataset": lambda: x.x, "matrix": lambda: TABLE}.get(kind, lambda: x)()  # scikit-learn takes no matrix
    model = MoLRMoGEstimator(1, 1, random_state=0).fit(rows)
    assert model.law_.dim == 3
    np.testing.assert_allclose(model.law_.offset[0], TABLE.mean(0), atol=1e-6)
    scores = [torch.as_tensor(expected.log_prob(rows)).double() for rows in (x, TABLE)]
    close = 1e-3 if kind == "float16" else 1e-5  # answers come in the type of their rows
    torch.testing.assert_close(*scores, rtol=close, atol=close)
    if not isinstance(x, list | tuple):
        assert np.isfinite(metrics.frechet_distance(x, TABLE))


@pytest.mark.parametrize("kind", BAD)
def test_what_are_no_rows_is_refused_in_one_line(kind):
    make, message = BAD[kind]
    law = molrmog.fit(TABLE, **SMALL)
    for ask in (lambda x: molrmog.fit(x, **SMALL), law.log_prob, lambda x: metrics.frechet_distance(x, TABLE)):
        with pytest.raises(ValueError, match=message) as error:
            ask(make())
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200
    with pytest.raises((ValueError, TypeError)):  # in scikit-learn's words, where it knows such rows
        MoLRMoGEstimator(1, 1).fit(make())


LACKING = {
    "NaN": lambda: np.where(TABLE > 4, np.nan, TABLE),
    "masked": lambda: np.ma.masked_where(TABLE > 4, TABLE),
    "masked whole numbers": lambda: np.ma.masked_where(TABLE > 4, (4 * TABLE).astype(int)),
    "objects with None": lambda: np.where(TABLE > 4, None, TABLE),
    "frame with NaN": lambda: frame().mask(TABLE > 4),
    "frame with NA": lambda: frame().astype("Float64").mask(TABLE > 4),
    "frame of Arrow types": lambda: frame().mask(TABLE > 4).convert_dtypes(dtype_backend="pyarrow"),
}


@pytest.mark.parametrize("kind", LACKING)
def test_missing_values_are_missing_for_a_fit_and_a_law_and_refused_by_a_metric(kind):
    x, scale = LACKING[kind](), 4 if "whole" in kind else 1
    seen = scale * np.where(TABLE > 4, np.nan, TABLE)
    np.testing.assert_array_equal(as_table(x, missing=True), seen)
    law, expected = molrmog.fit(x, **SMALL), molrmog.fit(seen, **SMALL)
    torch.testing.assert_close(law.offset, expected.offset, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(law.log_prob(x), expected.log_prob(seen), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"NaN|lacks|masked") as error:
        metrics.frechet_distance(x, TABLE)
    assert "\n" not in str(error.value)
    model = MoLRMoGEstimator(1, 1, 1, noise="isotropic", max_iter=1, random_state=0).fit(x)
    whole = MoLRMoGEstimator(1, 1, 1, noise="isotropic", max_iter=1, random_state=0).fit(seen)
    np.testing.assert_allclose(model.score_samples(x), whole.score_samples(seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["x", "y", "z"], ["label", "id", "y"]])
def test_every_column_of_a_frame_counts(names):
    """A file may hold labels and row numbers; rows that are passed are rows."""
    table = frame().set_axis(names, axis=1)
    table.iloc[:, 1] = np.arange(12.0)
    assert molrmog.fit(table, **SMALL).dim == MoLRMoGEstimator(1, 1).fit(table).n_features_in_ == 3


def test_the_estimator_knows_the_names_of_the_columns():
    model = MoLRMoGEstimator(1, 1, random_state=0).fit(frame())
    assert model.feature_names_in_.tolist() == NAMES
    with pytest.raises(ValueError, match=r"[Ff]eature names"):
        model.score_samples(frame().set_axis(["a", "b", "c"], axis=1))
    same = frame().convert_dtypes(dtype_backend="pyarrow")
    np.testing.assert_array_equal(model.predict(frame()), model.predict(same))
