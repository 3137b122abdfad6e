"""Parts of one table have the same columns, in one order, whatever the order in which their files hold them."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from molrmog.data import load_parts

TRAIN = "id,a,b,label\n1,1.5,2,x\n2,2.5,3,y\n3,3.5,5,x\n"


def parts(folder, train, test):
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return *load_parts(str(folder)), "; ".join(str(each.message) for each in caught)


@pytest.mark.parametrize("test", ["b,a,label,id\n20,10,y,1\n", "label,id,b,a\ny,9,20,10\n", "a,label,b\n10,y,20\n"])
def test_the_order_of_the_training_part_counts(tmp_path, test):
    train, held, _ = parts(tmp_path, TRAIN, test)
    assert train.x[0].tolist() == [1.5, 2]
    assert held.x.tolist() == [[10, 20]]
    assert held.labels.tolist() == [1]
    assert held.account.columns[0].fate != "used" or held.account.columns[0].name == "a"


def test_columns_of_one_name_are_told_apart_by_their_order(tmp_path):
    _, held, _ = parts(tmp_path, "id,id,b\n0,5,2\n1,5,4\n", "id,b,id\n7,8,9\n6,5,4\n")
    assert held.x.tolist() == [[9, 8], [4, 5]]
    _, held, _ = parts(tmp_path, ",,b\n0,.5,2\n1,.3,4\n", ",,b\n0,.25,2\n1,.5,4\n")
    assert held.x.tolist() == [[0.25, 2], [0.5, 4]]


def test_a_column_more_is_said_and_a_column_less_is_refused(tmp_path):
    _, held, said = parts(tmp_path, TRAIN, "a,new,b,label\n10,0,20,y\n")
    assert held.x.tolist() == [[10, 20]]
    assert "columns that the training part lacks left out: new" in said
    with pytest.raises(ValueError, match=r"test\.csv has no column b, which the training part has: .*drop=b"):
        parts(tmp_path, TRAIN, "a,label\n10,y\n")


def test_a_part_that_is_not_held_out_is_said(tmp_path):
    (tmp_path / "val.csv").write_text(TRAIN)
    _, _, said = parts(tmp_path, TRAIN, TRAIN)
    assert "part val left out: test is held out" in said


def test_keys_in_the_names_of_folders_are_said(tmp_path):
    for year in (2020, 2021):
        (tmp_path / f"year={year}").mkdir()
        pq.write_table(pa.table({"a": [1.5, year]}), tmp_path / f"year={year}" / "part-0.parquet")
    with pytest.warns(UserWarning, match="year left out: in the names of folders"):
        train, held = load_parts(str(tmp_path), held_out=0.25)
    assert sorted(np.r_[train.x, held.x].ravel()) == [1.5, 1.5, 2020, 2021]


@pytest.mark.parametrize("names", [("mnist_train.csv", "mnist_test.csv"), ("a b-Train.csv", "a b-VAL.csv")])
def test_parts_may_be_named_at_the_end(tmp_path, names):
    for i, name in enumerate(names):
        (tmp_path / name).write_text(f"label,b\n0,{i}.5\n1,{i}.25\n")
    train, held = load_parts(str(tmp_path))
    assert train.x.tolist() == [[0.5], [0.25]]
    assert held.x.tolist() == [[1.5], [1.25]]


def test_features_and_labels_in_files_of_their_own_are_no_shards(tmp_path):
    (tmp_path / "X_train.csv").write_text("a,b\n1,2.5\n")
    (tmp_path / "y_train.csv").write_text("label\n1\n")
    with pytest.raises(ValueError, match=r"y_train\.csv lacks column a"):
        load_parts(str(tmp_path))
