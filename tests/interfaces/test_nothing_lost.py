"""What a user keeps in the folder of a run stays there, and a run has one writer, who looks before it writes."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from killing import killed_at

from molrmog.experiments import cells
from molrmog.folders import locked, room_for
from molrmog.interfaces import commands, training
from molrmog.interfaces.cli import main
from molrmog.interfaces.demo import run_demo
from molrmog.interfaces.places import check_writable
from molrmog.interfaces.runs import append_records, records_in
from molrmog.saving import save_model, write_atomically

pytest.importorskip("fcntl")

WORDS = ["--network", "residual", "--autoencoder", "none", "--latent-dim", "3", "--steps", "6", "--batch-size", "32"]
WORDS += ["--width", "8", "--modes", "2", "--no-evaluate", "--device", "cpu", "--checkpoint-every", "3"]
WORDS += ["--log-every", "3", "--validate-every", "3", "--grid-every", "6", "--experts", "2"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    np.save(path, rng.normal(size=(120, 6)) + 4 * rng.integers(0, 2, (120, 1)))
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mine(tmp_path):
    """A folder with nothing but what a user keeps there."""
    (tmp_path / "run" / "base").mkdir(parents=True)
    for name in ("notes.txt", "data.part", ".draft.part", ".letter.abcdefgh.part", "base/own.txt"):
        (tmp_path / "run" / name).write_text("mine")
    (tmp_path / "run" / ".box.abcdefgh.part").mkdir()
    (tmp_path / "run" / ".box.abcdefgh.part" / "other").write_text("mine")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "words", [["--experts", "500"], ["--latent-dim", "7"], ["--data-dir", "/nowhere", "--steps", "0"]]
)
@pytest.mark.parametrize("begun", [False, True])
def test_an_error_removes_what_the_call_has_written_and_nothing_else(rows, tmp_path, mine, words, begun):
    """Also where the folder was accepted: a user may put files there after that."""
    before = tree(mine)
    begin = training._begun
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_begun", lambda *_: False)
        assert main(["train", str(rows), "--out", str(mine), *WORDS, *words]) == 1
    assert tree(mine) == before
    assert begin is training._begun
    # A folder that this call made is gone again; one that was empty is not.
    out = tmp_path / "new"
    if begun:
        out.mkdir()
    assert main(["train", str(rows), "--out", str(out), *WORDS, *words]) == 1
    assert out.exists() == begun
    assert not begun or tree(out) == {}


def test_what_ends_in_part_is_not_ours_for_that(rows, mine, capsys):
    before = tree(mine)
    assert main(["train", str(rows), "--out", str(mine), *WORDS]) == 1
    assert "not empty" in capsys.readouterr().err
    assert tree(mine) == before


def test_what_writers_have_left_is_swept_and_what_they_write_is_not(mine):
    dead = mine / ".config.json.abcdefgh.part"
    dead.mkdir()
    for name in ("config.json", ".tmpAbC123"):
        (dead / name).write_text("half")
    before = {name: text for name, text in tree(mine).items() if not name.startswith(dead.name)}
    with room_for(mine / "model.safetensors") as part:
        part.write_text("half of it")
        write_atomically(mine / "report.html", lambda path: path.write_text("page"))
        assert part.read_text() == "half of it"
    assert not dead.exists()
    assert tree(mine) == {**before, "report.html": b"page"}


def test_a_trial_of_a_folder_that_was_killed_is_gone_with_the_next_and_one_at_work_stays(tmp_path):
    check_writable(tmp_path, "--out")
    (tmp_path / ".trial.abcdefgh.part").mkdir()
    with room_for(tmp_path / "trial") as other:
        check_writable(tmp_path, "--out")
        assert list(tmp_path.iterdir()) == [other.parent]
    assert not list(tmp_path.iterdir())


def test_what_a_save_that_was_killed_has_left_is_gone_with_the_next(tmp_path):
    pid = os.fork()
    if not pid:
        torch.set_num_threads(1)
        try:
            while os.getppid() != 1:
                save_model(tmp_path, {"law": "none"}, {"x": torch.zeros(2_000_000)})
        finally:
            os._exit(0)
    deadline = time.monotonic() + 30
    try:
        while not any(name.startswith(".tmp") for *_, names in os.walk(tmp_path) for name in names):
            if time.monotonic() > deadline:
                break  # it was never seen in the middle of a save
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    save_model(tmp_path, {"law": "none"}, {"x": torch.zeros(2)})
    assert {path.name for path in tmp_path.rglob("*")} == {"config.json", "model.safetensors"}


WRITERS = {
    "fit": ["fit", "ROWS", "--out", "RUN", "--latent-dim", "2", "--overwrite"],
    "train": ["train", "ROWS", "--out", "RUN", *WORDS],
    "evaluate": ["evaluate", "RUN"],
    "sample": ["sample", "RUN", "--num", "4"],
    "explain": ["explain", "RUN"],
    "demo": ["demo", "--out", "RUN"],
    "reproduce": ["reproduce", "floor", "--out", "RUN"],
}


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", str(rows), "--out", str(out), "--latent-dim", "2", "--modes", "1", "--no-evaluate"]) == 0
    return out


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_a_command_that_is_refused_has_written_nothing(name, there, run, rows, tmp_path, capsys):
    if name in ("evaluate", "sample", "explain") and not there:
        pytest.skip("it needs a run")
    if name == "demo" and there:
        pytest.skip("it does not touch a run of others")
    folder = run if there else tmp_path / "run"
    words = [{"ROWS": str(rows), "RUN": str(folder)}.get(word, word) for word in WRITERS[name]]
    before = tree(folder.parent)
    with locked(folder):
        assert main(words) == 1
        assert "is being written by another process" in capsys.readouterr().err
    assert tree(folder.parent) == before


def test_a_sample_that_goes_elsewhere_waits_for_nobody(run, tmp_path):
    with locked(run):
        assert main(["sample", str(run), "--num", "4", "--out", str(tmp_path / "a.png")]) == 0


def test_a_demo_replaces_no_run_of_others(run):
    before = tree(run)
    with pytest.raises(FileExistsError, match="not of molrmog demo"):
        run_demo(run)
    assert tree(run) == before


def timeless(folder):
    found = []
    for record in records_in(folder):
        kept = {key: value for key, value in record.items() if key not in ("seconds", "cpu_seconds", "command")}
        if "econds" in record.get("name", ""):
            kept.pop("value")
        found.append(kept)
    return found


def renames(name):
    """Whether an event puts a file in its place."""
    return name == "os.rename"


@pytest.mark.slow
def test_a_run_that_was_killed_holds_in_the_end_what_another_holds(rows, tmp_path):
    whole = tmp_path / "whole"
    assert main(["train", str(rows), "--out", str(whole), *WORDS]) == 0
    expected, event = timeless(whole), 1
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    kinds = [record["kind"] for record in expected]
    assert [record.get("of", record["name"]) for record in expected if record["kind"] == "stage"] == [
        "experts",
        "base",
        "network",
    ]
    assert kinds.count("training") == 1
    while True:
        out = tmp_path / f"killed-{event}"
        words = ["train", str(rows), "--out", str(out), *WORDS]
        if not killed_at(event, lambda words=words: main(words), renames):
            break
        (out / "notes.txt").write_text("mine")
        if not (out / "config.yaml").exists():
            (out / "notes.txt").unlink()
        assert main(words) == 0
        assert timeless(out) == expected, f"killed at file {event}"
        (out / "notes.txt").unlink(missing_ok=True)
        assert {path.relative_to(out) for path in out.rglob("*")} == names, f"killed at file {event}"
        event += 1
    assert event > 10


@pytest.mark.slow
def test_an_explanation_that_was_killed_is_made_whole_by_the_next(rows, tmp_path):
    network = ["--network", "mlp", "--autoencoder", "none", "--steps", "2", "--width", "8", "--no-evaluate"]
    assert main(["train", str(rows), "--out", str(tmp_path / "net"), *network, "--device", "cpu"]) == 0
    words = ["explain", str(tmp_path / "net"), "--levels", "1", "--rows", "20", "--modes", "1", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    event = 1
    while True:
        out = tmp_path / f"killed-{event}"
        if not killed_at(event, lambda: main([*words, str(out)]), renames):  # noqa: B023, called at once
            break
        assert main([*words, str(out)]) == 0, f"killed at file {event}"
        assert set(tree(out)) == set(tree(tmp_path / "whole")), f"killed at file {event}"
        event += 1
    assert event > 4


def test_a_stage_that_is_stopped_or_entered_again_is_one_record(tmp_path):
    def stage(name, error=None):
        with training._stage(tmp_path, name):
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        stage("a", KeyboardInterrupt)
    append_records(tmp_path, [{"kind": "other"}])
    assert [record.get("stopped") for record in records_in(tmp_path)] == [True, None]
    stage("a")
    stage("b")
    stage("a")
    assert [(record["kind"], record.get("name")) for record in records_in(tmp_path)] == [
        ("other", None),
        ("stage", "a"),
        ("stage", "b"),
    ]
    assert not any("stopped" in record for record in records_in(tmp_path))


def test_a_line_that_its_writer_was_killed_in_spoils_no_other(tmp_path):
    append_records(tmp_path, [{"kind": "a"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "b", "lo')
    append_records(tmp_path, [{"kind": "c"}])
    assert records_in(tmp_path) == [{"kind": "a"}, {"kind": "c"}]


@pytest.mark.slow
def test_evaluating_twice_on_purpose_appends(run):
    count = len(records_in(run))
    commands.evaluate(run=str(run), num_samples=20, features="pca", command="a")
    more = len(records_in(run)) - count
    commands.evaluate(run=str(run), num_samples=20, features="pca", command="b")
    assert len(records_in(run)) == count + 2 * more


def a_cell(settings, folder):
    return {"x": settings["x"]}


@pytest.mark.parametrize("kept", ["settings.json", None])
def test_files_of_others_in_the_folder_of_a_cell_are_kept(kept, tmp_path):
    folder = tmp_path / "cells" / "a"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    if kept:
        (folder / kept).write_text('{"x": 1}')
        cells._prepare(folder, {"x": 2})
        assert (tmp_path / "cells" / "a.before-1" / "notes.txt").read_text() == "mine"
        assert {path.name for path in folder.iterdir()} == {"settings.json"}
        cells._prepare(folder, {"x": 2})
        assert json.loads((folder / "settings.json").read_text()) == {"x": 2}
    else:
        with pytest.raises(FileExistsError, match="something else than a cell"):
            cells._prepare(folder, {"x": 2})
        assert (folder / "notes.txt").read_text() == "mine"


def test_a_folder_of_somebody_elses_cells_is_no_experiment(tmp_path, capsys):
    (tmp_path / "cells" / "HeLa").mkdir(parents=True)
    (tmp_path / "cells" / "HeLa" / "image.txt").write_text("mine")
    before = tree(tmp_path)
    assert main(["reproduce", "floor", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert tree(tmp_path) == before
