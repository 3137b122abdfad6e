import json

import numpy as np
import pytest

from molrmog import MoLRMoG, load_data
from molrmog.data import Dataset, load_parts
from molrmog.interfaces.runs import Run, append_records, check_out, staged


def law():
    return MoLRMoG.random(dim=4, latent_dims=(2,), modes=(1,), noise=0.1, seed=0)


def fill(folder, mark="a"):
    law().save_pretrained(folder)
    info = Dataset(name="rows", shape=(4,), x=np.zeros((1, 4))).info()
    (folder / "data.json").write_text(json.dumps({**info, "mark": mark}))


def write_and_fail(out, error, overwrite=False):
    with staged(out, overwrite=overwrite) as part:
        fill(part, "new")
        raise error


def test_a_run_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "run"
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(out, KeyboardInterrupt)
    assert list((tmp_path / "deep").iterdir()) == []
    with staged(out) as part:
        fill(part)
        assert not out.exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]
    assert Run(out).model().dim == 4


def test_overwriting_replaces_the_run_and_nothing_else(tmp_path):
    with staged(tmp_path / "run") as part:
        fill(part, "old")
        (part / "report.html").write_text("old page")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"), staged(tmp_path / "run"):
        pytest.fail("the work must not start")
    with staged(tmp_path / "run", overwrite=True) as part:
        fill(part, "new")
    assert Run(tmp_path / "run").info()["mark"] == "new"
    assert not (tmp_path / "run" / "report.html").exists()  # of the old law
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_an_overwrite_that_fails_leaves_the_old_run(tmp_path):
    with staged(tmp_path / "run") as part:
        fill(part, "old")
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "run", RuntimeError, overwrite=True)
    assert Run(tmp_path / "run").info()["mark"] == "old"


def test_a_file_is_no_place_for_a_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="name a folder"):
        check_out(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty", overwrite=False)


def write_twice(out):
    with staged(out) as part:
        (part / "mark").touch()
        with staged(out):
            pytest.fail("two write one run")


def test_a_run_has_one_writer_at_a_time(tmp_path):
    with pytest.raises(BlockingIOError, match="run is being written by another process: wait for it"):
        write_twice(tmp_path / "run")
    # What a writer that was killed has left is swept away, and does not get into the run.
    (tmp_path / ".run.part").mkdir()
    (tmp_path / ".run.part" / "report.html").touch()
    with staged(tmp_path / "run") as part:
        fill(part)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "model.safetensors", "data.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Run(tmp_path / "nowhere")
    law().save_pretrained(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"data\.json missing"):
        Run(tmp_path / "run")
    (tmp_path / "run" / "data.json").write_text("{")
    run = Run(tmp_path / "run")
    for name, read in (("data.json", run.info), ("config.yaml", run.settings), ("metrics.jsonl", run.records)):
        for text in ('{"a": [', "7", '{"a": 1}' if name != "config.yaml" else "7"):
            (run.folder / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                read()


def test_records_are_kept_in_order(tmp_path):
    append_records(tmp_path, [{"n": 1}, {"n": 2}])
    append_records(tmp_path, [{"n": 3}])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [1, 2, 3]


def test_parts_of_data_without_a_test_part(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", x=x, y=np.arange(50) % 2)
    np.savez(tmp_path / "two.npz", x_train=x, x_test=x[:7])
    (tmp_path / "set" / "train" / "a").mkdir(parents=True)
    train, held = load_parts(str(tmp_path / "x.npy"), held_out=0.2, seed=3)
    assert (len(train), len(held)) == (40, 10)
    rows = {tuple(row) for row in np.concatenate([train.x, held.x]).round(4)}
    assert rows == {tuple(row) for row in x.round(4)}
    assert len(load_parts(str(tmp_path / "one.npz"))[1]) == 5
    assert len(load_parts(str(tmp_path / "two.npz"))[1]) == 7
    again = load_parts(str(tmp_path / "x.npy"), held_out=0.2, seed=3)[1]
    np.testing.assert_array_equal(held.x, again.x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_parts("digits", held_out=1.0)


def test_an_image_folder_without_a_test_part(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for root in ("plain", "nested/train"):
            (tmp_path / root / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (4, 4), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / name / f"{i}.png")
    for root in ("plain", "nested"):
        train, held = load_parts(str(tmp_path / root), held_out=0.25)
        assert (len(train), len(held)) == (9, 3)
        assert train.shape == (1, 4, 4)


def test_the_test_part_of_the_data_is_held_out():
    train, held = load_parts("digits", dequantise=True)
    assert (len(train), len(held)) == (1297, 500)
    assert held.dequantised
    np.testing.assert_array_equal(held.x, load_data("digits", "test", dequantise=True).x)
    assert not np.isin(held.x[:, 20], train.x[:, 20]).all()


def test_damage_in_the_test_part_is_not_taken_for_its_absence(tmp_path):
    x = np.zeros((4, 2))
    np.savez(tmp_path / "bad.npz", x_train=x, x_test=np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        load_parts(str(tmp_path / "bad.npz"))
