"""Columns of tables: which are used, by whose word, and that shards and parts agree."""

from __future__ import annotations

import json

import numpy as np
import pytest

from molrmog.data import load, load_parts

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

rng = np.random.default_rng(0)
A, B = rng.normal(size=(2, 30))


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


def used(data):
    return [column.name for column in data.account.columns if column.fate == "used"]


def test_columns_are_chosen_by_name(tmp_path):
    path = write(tmp_path / "t.parquet", a=A, b=B, c=A + B, y=np.arange(30) % 3)
    with pytest.warns(UserWarning, match="column y taken as labels"):
        assert used(load(path)) == ["a", "b", "c"]
    data = load(path, columns="c,a", label_column="y")
    np.testing.assert_array_equal(data.x, np.column_stack([A, A + B]))  # in the order of the file
    assert load(path, columns=["y", "a"]).labels is None
    assert used(load(path, drop=["a", "y"])) == ["b", "c"]
    for how, message in (
        ({"columns": "a,bb"}, "no column bb: did you mean b"),
        ({"drop": "zzz"}, "no column zzz: it has a, b, c, y"),
        ({"label_column": "species"}, "no column species"),
        ({"label_column": "a"}, "labels in column a must be integers or strings"),
        ({"columns": "a", "drop": "a"}, "column a is to be dropped and to be used"),
        ({"columns": []}, "names no column"),
        ({"categories": "hot"}, "choose one of refuse, one-hot"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load(path, **how)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["digits", "rows.npy", "rows.npz"])
def test_what_has_no_columns_is_asked_for_none(tmp_path, name):
    np.save(tmp_path / "rows.npy", np.zeros((3, 2)))
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 2)))
    for how in ({"columns": "a"}, {"drop": "a"}, {"categories": "one-hot"}):
        with pytest.raises(ValueError, match="no table with named columns"):
            load(name, data_dir=tmp_path, **how)


def test_text_becomes_zeros_and_ones(tmp_path):
    sex = ["f", "m", "f", "x"] * 6
    path = write(tmp_path / "t.parquet", a=A[:24], sex=sex)
    data = load(path, categories="one-hot")
    np.testing.assert_array_equal(data.x[:, 1:], [[s == name for name in "fmx"] for s in sex])
    write(path, a=A, name=[f"name {i}" for i in range(30)])
    with pytest.raises(ValueError, match="column name holds 30 different texts in 30 rows"):
        load(path, categories="one-hot")


@pytest.mark.parametrize("form", ["list", "large_list", "fixed", "nested", "tensor"])
def test_lists_are_coordinates(tmp_path, form):
    values = rng.normal(size=(20, 2, 3))
    flat = values.reshape(20, 6)
    column = {
        "list": lambda: pa.array(flat.tolist()),
        "large_list": lambda: pa.array(flat.tolist(), pa.large_list(pa.float64())),
        "fixed": lambda: pa.array(flat.tolist(), pa.list_(pa.float64(), 6)),
        "nested": lambda: pa.array(values.tolist()),
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(values),
    }[form]()
    data = load(write(tmp_path / "t.parquet", a=A[:20], e=column))
    np.testing.assert_array_equal(data.x, np.column_stack([A[:20], flat]))
    chunked = pa.chunked_array([column.slice(0, 7), column.slice(7)])
    np.testing.assert_array_equal(load(write(tmp_path / "u.parquet", e=chunked)).x, flat)


@pytest.mark.parametrize("bad", [None, [1.0, None, 3.0], [1.0, 2.0], ["a", "b", "c"], []])
def test_lists_that_are_no_rows_are_refused(tmp_path, bad):
    lists = [bad if i == 3 or (isinstance(bad, list) and bad[:1] == ["a"]) else [1.0, 2.0, 3.0] for i in range(9)]
    with pytest.raises(ValueError, match=r"t\.parquet: column e (lacks|holds)") as error:
        load(write(tmp_path / "t.parquet", a=A[:9], e=pa.array(lists)))
    assert "\n" not in str(error.value)


def test_row_numbers_are_left_out_unless_they_are_asked_for(tmp_path):
    for name in ("id", "ID", "index", "row_id", "Unnamed: 0", "rownames"):
        path = write(tmp_path / "t.parquet", **{name: np.arange(30), "a": A})
        with pytest.warns(UserWarning, match=f"column {name} left out"):
            assert used(load(path)) == ["a"]
        assert load(path, columns=[name, "a"]).dim == 2
        assert load(write(path, **{name: A, "a": A})).dim == 2  # measurements, whatever their name


def test_wide_whole_numbers_are_said_to_be_rounded(tmp_path):
    with pytest.warns(UserWarning, match="column n: whole numbers beyond 2.53 are rounded"):
        load(write(tmp_path / "t.parquet", n=[2**60 + 1, 2**60 + 5], a=[0.5, 1.5]))
    load(write(tmp_path / "t.parquet", n=[2**60 + 1, 2**59], a=[0.5, 1.5]))  # nobody sees it


def test_the_first_bad_row_names_its_column(tmp_path):
    bad = A.copy()
    bad[[4, 9]] = np.nan
    with pytest.raises(ValueError, match=r"row 4 holds NaN or inf in column age.*drop=age,size"):
        load(write(tmp_path / "t.parquet", a=A, age=bad, size=bad[::-1]))


def test_all_that_is_refused_is_named_at_once(tmp_path):
    path = write(tmp_path / "t.parquet", a=A, u=["p"] * 30, v=[None] * 30, w=[{"k": 1}] * 30)
    with pytest.raises(ValueError, match=r"column u holds text.*and v, w cannot be used either.*drop=u,v,w") as error:
        load(path)
    assert {column.fate for column in error.value.account.columns} == {"used", "refused"}
    assert used(load(path, drop="u,v,w")) == ["a"]


@pytest.mark.parametrize("hidden", [[-1] * 3, [0, 1, 2]])
def test_labels_without_a_name_are_refused(tmp_path, hidden):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"a": [1.0, 2.0, 3.0], "label": hidden})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"labels in column label run from .* names 2 classes"):
        load(tmp_path / "t.parquet")


@pytest.mark.parametrize("metadata", [b"[]", b"{", b"null", b'{"info": []}', b'{"info": {"features": {"label": 3}}}'])
def test_odd_metadata_are_passed_over(tmp_path, metadata):
    table = pa.table({"a": [1.0, 2.0], "label": [0, 1]})
    table = table.replace_schema_metadata({"huggingface": metadata, "pandas": metadata})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").labels.tolist() == [0, 1]


# Shards and parts


@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather"])
def test_shards_are_joined_as_one_table(tmp_path, suffix):
    from pyarrow import csv, feather

    writers = {"parquet": parquet.write_table, "csv": csv.write_csv, "feather": feather.write_feather}
    (tmp_path / "s").mkdir()
    whole, halves = np.arange(20), np.arange(20) / 2
    for i, columns in enumerate(({"a": A[:20], "b": whole}, {"b": halves, "a": A[:20]})):  # in another order, too
        writers[suffix](pa.table(columns), tmp_path / "s" / f"{i}.{suffix}")
    data = load(tmp_path / "s")
    np.testing.assert_array_equal(data.x[:20, 1], np.arange(20))
    np.testing.assert_array_equal(data.x[20:40, 1], np.arange(20) / 2)
    np.testing.assert_array_equal(data.x[20:40, 0], A[:20])


def test_shards_that_differ_are_named(tmp_path):
    write(tmp_path / "s" / "train-0.parquet", a=A, b=B)
    write(tmp_path / "s" / "train-1.parquet", a=A)
    with pytest.raises(ValueError, match=r"train-1\.parquet lacks column b than .*train-0\.parquet"):
        load(tmp_path / "s")
    write(tmp_path / "s" / "train-1.parquet", a=A, b=[[1.0]] * 30)
    with pytest.raises(ValueError, match=r"column b is double in .*train-0\.parquet and list.* in train-1\.parquet"):
        load(tmp_path / "s")
    write(tmp_path / "t" / "a.parquet", a=A)
    (tmp_path / "t" / "b.csv").write_text("a\n1\n2\n")
    with pytest.raises(ValueError, match="tables of several kinds"):
        load(tmp_path / "t")


def test_a_class_has_the_same_label_in_every_part(tmp_path):
    write(tmp_path / "s" / "train.parquet", a=A, sex=["m"] * 30, species=["b", "c"] * 15)
    write(tmp_path / "s" / "test.parquet", a=A, sex=["f"] * 30, species=["a", "c"] * 15)
    how = {"label_column": "species", "categories": "one-hot"}
    train, test = load_parts(str(tmp_path / "s"), **how)
    assert train.classes == test.classes == ("a", "b", "c")
    assert (train.labels[:2].tolist(), test.labels[:2].tolist()) == ([1, 2], [0, 2])
    np.testing.assert_array_equal(train.x[0, 1:], [0, 1])
    np.testing.assert_array_equal(test.x[0, 1:], [1, 0])
    np.savez(tmp_path / "z.npz", x_train=[[1.0]], y_train=["b"], x_test=[[2.0]], y_test=["a"])
    parts = [load(tmp_path / "z.npz", part) for part in ("train", "test")]
    assert [(part.classes, part.labels.tolist()) for part in parts] == [(("a", "b"), [1]), (("a", "b"), [0])]


def test_both_parts_have_the_columns_of_the_first(tmp_path):
    write(tmp_path / "s" / "train.parquet", id=np.arange(30), a=A, y=np.arange(30) % 2)
    write(tmp_path / "s" / "test.parquet", id=[5, 5, 6], a=A[:3], y=[7, 8, 9])
    with pytest.warns(UserWarning, match="column y taken as labels.*column id left out"):
        train, test = load_parts(str(tmp_path / "s"))
    assert train.dim == test.dim == 1
    assert test.labels.tolist() == [7, 8, 9]


def test_keys_of_an_archive_that_are_not_read_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=[0, 1], ids=[3, 4], weights=[1.0, 2.0])
    with pytest.warns(UserWarning, match=r"a\.npz: keys ids, weights left out"):
        load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=[0.5, 1])
    with pytest.warns(UserWarning, match=r"a\.npz: y left out: real numbers, no labels"):
        assert load(tmp_path / "a.npz").labels is None
    with pytest.raises(ValueError, match=r"labels must be integers or strings, and row 0 has 0\.5"):
        load(tmp_path / "a.npz", label_column="y")
    with pytest.raises(ValueError, match="no labels kind, it holds x, y"):
        load(tmp_path / "a.npz", label_column="kind")


@pytest.mark.parametrize("cells", [["1,234.5 €"] * 9, ["12%"] * 9, ["1.234,5"] * 9, ["3"] * 5 + ["unknown"] * 4])
def test_numbers_that_are_written_as_text_are_to_be_written_plainly(tmp_path, cells):
    with pytest.raises(ValueError, match=r"column price holds numbers that are written as text.*as 1234\.5"):
        load(write(tmp_path / "t.parquet", a=A[:9], price=cells))


@pytest.mark.parametrize("name", ["label", "Label", "CLASS", " class "])
def test_labels_are_found_in_any_case(tmp_path, name):
    data = load(write(tmp_path / "t.parquet", **{"a": A[:4], name: ["p", "q", "p", "q"]}))
    assert data.classes == ("p", "q")
