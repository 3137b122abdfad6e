"""A run that takes the place of another: killed at any instant, one is there whole, and so is all that is of others."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from killing import killed_at

from molrmog import MoLRMoG, folders
from molrmog.data import Dataset
from molrmog.folders import locked, stage_of
from molrmog.interfaces.runs import RUN_FILES, Run, staged

pytest.importorskip("fcntl")

OLD, NEW = {"config.yaml", "report.html", "samples.png"}, {"config.yaml", "metrics.jsonl"}


def fill(folder, mark):
    MoLRMoG.random(dim=4, latent_dims=(2,), modes=(1,), noise=0.1, seed=0).save_pretrained(folder)
    info = Dataset(name=mark, shape=(4,), x=np.zeros((1, 4))).info()
    (folder / "data.json").write_text(json.dumps(info))
    for name in OLD if mark == "old" else NEW:
        (folder / name).write_text(f"# {mark}")


def others(folder):
    """What is of others in a run folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        top = path.relative_to(folder).parts[0]
        if top not in RUN_FILES and not fnmatch(top, ".trial.????????.part"):
            found[str(path.relative_to(folder))] = (
                os.readlink(path) if path.is_symlink() else path.is_file() and path.read_text()
            )
    return found


@pytest.fixture
def run(tmp_path):
    """An old run with a file, a hidden file, a folder, an empty folder and a link of a user's."""
    out = tmp_path / "run"
    with staged(out) as part:
        fill(part, "old")
    (out / "notes.txt").write_text("mine")
    (out / ".hidden.part").write_text("mine, too")
    (out / "figures" / "deep").mkdir(parents=True)
    (out / "figures" / "deep" / "a.txt").write_text("a")
    (out / "empty").mkdir()
    (out / "latest").symlink_to("notes.txt")
    (out / "broken").symlink_to("nowhere")
    return out


def replace(out):
    with staged(out, overwrite=True) as part:
        fill(part, "new")


def is_whole(out):
    mark = Run(out).info()["name"]
    assert Run(out).model().dim == 4
    expected = (OLD if mark == "old" else NEW) | {"config.json", "model.safetensors", "data.json"}
    assert {path.name for path in out.iterdir()} & set(RUN_FILES) == expected
    assert (out / "config.yaml").read_text() == f"# {mark}"
    return mark


def touches_the_disk(name):
    return name.startswith(("os.", "shutil.", "ctypes.dlsym")) or name == "open"


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["one", "two"], ids=["one step", "two steps"])
def test_killed_at_any_instant_one_run_is_there_whole(run, tmp_path, monkeypatch, steps):
    if steps == "two":
        monkeypatch.setattr(folders, "_swap", lambda *_: False)
    mine, marks = others(run), []
    shutil.copytree(run, tmp_path / "kept", symlinks=True)
    event = 0
    while event == 0 or killed_at(event, lambda: replace(run), touches_the_disk):
        if event:
            if steps == "two":
                folders.recover(run)  # as the next command does
            marks.append(is_whole(run))
            assert others(run) == mine
        # Whoever comes next finds its way, and leaves nothing behind.
        replace(run)
        assert is_whole(run) == "new"
        assert others(run) == mine
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "run"]
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "kept", run, symlinks=True)
        event += 1
    assert set(marks) == {"old", "new"}
    assert marks == sorted(marks, reverse=True)  # at first it is the old one


def test_a_link_is_followed_and_stays(run, tmp_path):
    (tmp_path / "link").symlink_to("run")
    replace(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert is_whole(run) == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_who_stands_in_the_run_stands_in_the_new_one(run, monkeypatch):
    for place in (run, run / "figures"):
        monkeypatch.chdir(place)
        replace(run if place == run else Path(".."))
        (Path() / "here.txt").write_text("here")
        assert (place / "here.txt").read_text() == "here"
    assert is_whole(run) == "new"


def test_where_there_are_no_links_others_files_are_copied(run, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    mine = others(run)
    monkeypatch.setattr(os, "link", no_links)
    replace(run)
    assert (is_whole(run), others(run)) == ("new", mine)
    assert not stage_of(run).exists()


def test_what_is_written_beside_a_run_while_it_is_replaced_is_kept(run, monkeypatch):
    adopt = folders.adopt

    def adopt_and_write(source, stage, own):
        adopt(source, stage, own)
        (source / "late.txt").write_text("late")
        (source / "figures" / "late.txt").write_text("late")
        (source / "new.txt").write_text("again")
        os.replace(source / "new.txt", source / "notes.txt")

    with staged(run, overwrite=True) as part:
        fill(part, "new")
        monkeypatch.setattr("molrmog.interfaces.runs.adopt", adopt_and_write)
    assert is_whole(run) == "new"
    found = others(run)
    assert (found["late.txt"], found["figures/late.txt"], found["notes.txt"]) == ("late", "late", "again")


def test_a_folder_of_somebody_elses_in_the_place_of_the_stage_is_left_alone(run):
    stage_of(run).mkdir()
    (stage_of(run) / "thesis.txt").write_text("mine")
    (run / "thesis.txt").write_text("another")
    with pytest.raises(OSError, match=r"thesis\.txt is not what"):
        replace(run)
    assert is_whole(run) == "old"
    assert (stage_of(run) / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(set(RUN_FILES) - {"model.safetensors", "data.json"}))
def test_files_of_the_same_name_that_are_of_no_run_are_not_replaced(tmp_path, name):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("mine")
    with pytest.raises(FileExistsError, match="and no run"):
        replace(tmp_path / "site")
    assert {path.name: path.read_text() for path in (tmp_path / "site").iterdir()} == {name: "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_writer_that_waited_for_a_run_which_was_replaced_locks_the_new_one(run):
    with staged(run, overwrite=True) as part:
        fill(part, "new")
        with pytest.raises(BlockingIOError, match="run is being written"), locked(run):
            pytest.fail("two write one run")
    with locked(run) as lock:
        assert lock.holds(run)
        with pytest.raises(BlockingIOError, match="run is being written"):
            replace(run)
        assert not stage_of(run).exists()
    replace(run)


def test_a_run_that_is_being_made_for_the_first_time_is_locked_too(tmp_path):
    with staged(tmp_path / "new") as part:
        fill(part, "new")
        with pytest.raises(BlockingIOError, match="new is being written"), locked(tmp_path / "new"):
            pytest.fail("two write one run")
        assert not (tmp_path / "new").exists()
    assert is_whole(tmp_path / "new") == "new"
    with locked(tmp_path / "other"):
        with pytest.raises(BlockingIOError, match="other is being written"):
            replace(tmp_path / "other")
        assert not stage_of(tmp_path / "other").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_lock_goes_with_the_run(run):
    lock = folders.Lock(run)
    with staged(run, overwrite=True, lock=lock) as part:
        fill(part, "new")
    with pytest.raises(BlockingIOError), locked(run):
        pytest.fail("two write one run")
    lock.close()
    with locked(run):
        pass


RACER = """
import sys
from pathlib import Path
from molrmog.folders import locked
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(200):
    try:
        with locked(folder):
            mark = log / "inside"
            mark.mkdir()
            mark.rmdir()
    except BlockingIOError:
        pass
"""


def test_a_folder_that_goes_while_it_is_locked_is_made_and_locked(run, monkeypatch):
    """It was there when it was to be made, and is gone when it is looked at: its holder has removed it."""
    folder, mkdir, calls = run.parent / "new", Path.mkdir, []

    def late(path, *words, **options):
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(path)
        return mkdir(path, *words, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with locked(folder) as lock:
        assert folder.is_dir()
        assert lock.holds(folder)
        with pytest.raises(BlockingIOError), locked(folder):
            pytest.fail("two write one run")


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_folder_is_not_locked_and_stays(tmp_path, linked):
    path, other = tmp_path / "run", tmp_path / "other"
    other.write_text("mine")
    if linked:
        path.symlink_to(other)
    else:
        other.rename(path)
    with locked(path):
        pass
    assert path.is_symlink() == linked
    assert path.read_text() == "mine"


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    path = tmp_path / "run"
    path.symlink_to(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="run is a link that leads nowhere"), locked(path):
        pytest.fail("there is nothing to lock")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_folder_that_comes_and_goes_has_one_holder(tmp_path):
    """The folder is made and removed by each holder; two inside at once would fail to make `inside`."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path / "run"), str(tmp_path)], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for racer in racers:
        _, said = racer.communicate(timeout=120)
        assert racer.returncode == 0, said.decode()
    assert not (tmp_path / "inside").exists()


def test_a_full_disk_leaves_the_old_run(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    mine = others(run)
    for name in ("link", "mkdir"):
        with monkeypatch.context() as patch:
            if name == "link":
                patch.setattr(shutil, "copy2", full)
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left on device"):
                replace(run)
        assert (is_whole(run), others(run)) == ("old", mine)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(run)
