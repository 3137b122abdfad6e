"""A run that is stopped in any way ends as one that is not."""

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import small_runs
import torch
from small_runs import small_run
from torch import nn

from molrmog.autoencoders.vae import MLPVAE, VAELoss
from molrmog.learning import checkpoints
from molrmog.learning.checkpoints import Checkpoint, append_record, forget_records, newest_checkpoint, save_checkpoint
from molrmog.learning.options import TrainingOptions
from molrmog.learning.score_matching import ScoreMatching
from molrmog.learning.trainer import training
from molrmog.saving import load_model
from molrmog.schedules import VPSchedule

SCRIPT = Path(small_runs.__file__)


def a_checkpoint(step):
    draw = torch.Generator().manual_seed(step)
    tensors = {"model": {"w": torch.randn(3, generator=draw)}, "optimizer": {"0.step": torch.tensor(1.0 * step)}}
    return Checkpoint(step, {"loss": 0.1 * step, "names": ["a"]}, tensors)


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir())


def same_tensors(a, b):
    first, second = load_model(a)[1], load_model(b)[1]
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if not key.endswith("seconds")} for line in lines]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """A function that runs each kind once and gives its folder."""
    folders = {}

    def run(kind, steps):
        if (kind, steps) not in folders:
            folders[kind, steps] = tmp_path_factory.mktemp(kind)
            small_run(kind, folders[kind, steps], steps)
        return folders[kind, steps]

    return run


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    assert save_checkpoint(tmp_path, a_checkpoint(7), keep=2)
    found = newest_checkpoint(tmp_path)
    assert (found.step, found.state) == (7, a_checkpoint(7).state)
    assert {name: sorted(tensors) for name, tensors in found.tensors.items()} == {
        "model": ["w"],
        "optimizer": ["0.step"],
    }
    assert torch.equal(found.tensors["model"]["w"], a_checkpoint(7).tensors["model"]["w"])
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_tied_weights_are_no_obstacle(tmp_path):
    w = torch.randn(3)
    save_checkpoint(tmp_path, Checkpoint(1, {}, {"model": {"a": w, "b": w, "c": w[:2]}}), keep=1)
    assert torch.equal(newest_checkpoint(tmp_path).tensors["model"]["b"], w)


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, a_checkpoint(step), keep=2)
    assert steps_in(tmp_path) == ["step-00000003", "step-00000010"]
    save_checkpoint(tmp_path, a_checkpoint(4), keep=2)  # a run that went back gives up what came later
    assert steps_in(tmp_path) == ["step-00000003", "step-00000004"]
    save_checkpoint(tmp_path, a_checkpoint(123456789), keep=1)
    assert newest_checkpoint(tmp_path).step == 123456789


DAMAGES = {
    "a truncated tensor file": lambda path: (path / "model.safetensors").write_bytes(b"12"),
    "one bit": lambda path: (path / "model.safetensors").write_bytes(
        flipped((path / "model.safetensors").read_bytes())
    ),
    "a file that is gone": lambda path: (path / "optimizer.safetensors").unlink(),
    "a truncated state": lambda path: (path / "state.json").write_text('{"step": 2, "los'),
    "a state that was changed": lambda path: edit(path / "state.json", '"step": 2', '"step": 3'),
    "a state without its digest": lambda path: edit(path / "state.json", '"state.json"', '"else.json"'),
    "an empty state": lambda path: (path / "state.json").write_text(""),
    "another state": lambda path: (path / "state.json").write_text("[1]"),
    "a state without files": lambda path: (path / "state.json").write_text('{"step": 2, "sha256": 5}'),
    "a state that is no text": lambda path: (path / "state.json").write_bytes(b"\xff\xfe\x00"),
    "no state": lambda path: (path / "state.json").unlink(),
}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_and_the_one_before_is_used(damage, tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, a_checkpoint(step), keep=2)
    DAMAGES[damage](tmp_path / "step-00000002")
    with pytest.warns(RuntimeWarning, match="the checkpoint of step 2 in .* is damaged .*: the one before") as caught:
        assert newest_checkpoint(tmp_path).step == 1
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert save_checkpoint(tmp_path, a_checkpoint(2), keep=1)
    assert newest_checkpoint(tmp_path).step == 2


def test_what_was_being_written_is_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, a_checkpoint(1), keep=2)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.part")
    assert newest_checkpoint(tmp_path).step == 1
    save_checkpoint(tmp_path, a_checkpoint(2), keep=2)
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("what", ["tensors", "state", "rename"])
def test_a_full_disk_is_one_line_and_harms_nothing(what, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, a_checkpoint(1), keep=1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    places = {
        "tensors": (safetensors.torch, "save_file"),
        "state": (Path, "write_text"),
        "rename": (checkpoints.os, "replace"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*places[what], full)
        with pytest.warns(RuntimeWarning, match="no checkpoint of step 2: .* No space left .* make room") as caught:
            assert not save_checkpoint(tmp_path, a_checkpoint(2), keep=1)
    assert len(caught) == 1
    assert steps_in(tmp_path) == ["step-00000001"]
    assert newest_checkpoint(tmp_path).step == 1


@pytest.mark.slow
def test_a_file_size_limit_is_one_line_and_harms_nothing(tmp_path):
    """The kernel, not a mock, refuses to write, and safetensors makes an error of its own of it."""
    code = """if True:
        import resource, signal, sys, torch
        from pathlib import Path
        from molrmog.learning.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        folder = Path(sys.argv[1])
        for step, size in ((1, 10), (2, 100_000)):
            print(save_checkpoint(folder, Checkpoint(step, {}, {"model": {"w": torch.ones(size)}}), keep=1))
        print(newest_checkpoint(folder).step)
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "1"]
    assert "no checkpoint of step 2" in done.stderr
    assert steps_in(tmp_path) == ["step-00000001"]


@pytest.mark.slow
def test_lines_are_whole_or_not_there(tmp_path):
    """Where the kernel takes the first half of a line and then refuses."""
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        from molrmog.learning.checkpoints import append_record

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (120, 120))
        for step, words in ((1, ""), (2, 100 * "-"), (3, "")):
            append_record(Path(sys.argv[1]) / "metrics.jsonl", {"kind": "train", "step": step, "words": words})
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "metrics.jsonl cannot be written" in done.stderr
    assert [record["step"] for record in records(tmp_path)] == [1, 3]


def test_lines_beyond_a_step_are_forgotten_and_others_are_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for record in ({"kind": "fit"}, *({"kind": kind, "step": n} for n in (1, 2) for kind in ("train", "evaluate"))):
        append_record(path, record)
    with path.open("a") as file:
        file.write('{"kind": "tr')
    forget_records(path, after=1, kinds=("train",))
    assert [tuple(record.values()) for record in records(tmp_path)] == [
        *(("fit",), ("train", 1), ("evaluate", 1), ("evaluate", 2))
    ]
    forget_records(tmp_path / "nothing", after=1, kinds=("train",))
    assert steps_in(tmp_path) == ["metrics.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dropout", "law"])
def test_killed_at_a_random_step_it_ends_bit_identical(kind, tmp_path, never_stopped):
    steps, moment = 100, random.SystemRandom().randrange(5, 60)
    threads = str(torch.get_num_threads())
    run = subprocess.Popen([sys.executable, str(SCRIPT), threads, str(steps), str(tmp_path), kind])
    try:
        path = tmp_path / kind / "metrics.jsonl"
        while run.poll() is None and not (path.exists() and path.read_bytes().count(b'"train"') >= moment):
            time.sleep(0.001)
    finally:
        run.kill()
    assert run.wait() == -signal.SIGKILL
    killed_at = records(tmp_path / kind)[-1]["step"] if path.read_bytes().endswith(b"\n") else None
    small_run(kind, tmp_path / kind, steps)
    assert same_tensors(tmp_path / kind, never_stopped(kind, steps)), f"killed at step {killed_at}"
    assert records(tmp_path / kind) == records(never_stopped(kind, steps)), f"killed at step {killed_at}"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["network", pytest.param("experts", marks=pytest.mark.slow)])
@pytest.mark.parametrize("log_every", [1, 4])
def test_stopped_at_any_step_it_ends_bit_identical(kind, log_every, tmp_path):
    """Also between two checkpoints, two lines of the log, and inside an epoch."""
    whole = tmp_path / "whole"
    small_run(kind, whole, 15, log_every=log_every)
    for moment in (1, 7, 8, 13, 15):

        def stop(denoiser, step, moment=moment):
            if step == moment:
                raise Stopped

        folder = tmp_path / f"{moment}"
        with pytest.raises(Stopped):
            small_run(kind, folder, 15, log_every=log_every, grid_every=1, on_grid=stop)
        small_run(kind, folder, 15, log_every=log_every)
        assert same_tensors(folder, whole)
        assert records(folder) == records(whole)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, never_stopped):
    shutil.copytree(never_stopped("law", 15), tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints/step-00000015/average.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="step 15 .* damaged"):
        small_run("law", tmp_path, 15)
    assert same_tensors(tmp_path, never_stopped("law", 15))
    assert records(tmp_path) == records(never_stopped("law", 15))
    assert newest_checkpoint(tmp_path / "checkpoints").step == 15


def test_a_run_on_a_full_disk_ends_as_another(tmp_path, never_stopped, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    whole = never_stopped("law", 15)
    with monkeypatch.context() as patch:
        real = safetensors.torch.save_file
        patch.setattr(
            safetensors.torch,
            "save_file",
            lambda tensors, path, **named: full() if "checkpoints" in str(path) else real(tensors, path, **named),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            small_run("law", tmp_path, 15)
    assert [str(w.message).split(":")[0] for w in caught] == [f"no checkpoint of step {n}" for n in (7, 14, 15)]
    assert same_tensors(tmp_path, whole)


def test_a_finished_run_ends_at_once_with_its_result(tmp_path, never_stopped, monkeypatch):
    shutil.copytree(never_stopped("law", 15), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/step-00000014")
    monkeypatch.setattr(ScoreMatching, "forward", lambda *_: pytest.fail("it went on"))
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    law = small_run("law", tmp_path, 15)
    assert same_tensors(tmp_path, never_stopped("law", 15))
    assert torch.equal(law.mean, load_model(tmp_path)[1]["mean"])
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


def test_a_constant_rate_may_go_on_for_longer(tmp_path):
    small_run("law", tmp_path / "one", 20, annealing="constant")
    for steps in (9, 20):
        small_run("law", tmp_path / "two", steps, annealing="constant")
    assert same_tensors(tmp_path / "one", tmp_path / "two")
    assert records(tmp_path / "one") == records(tmp_path / "two")
    with pytest.raises(ValueError, match="has taken 20 steps: pass steps >= 20, or name another folder"):
        small_run("law", tmp_path / "two", 19, annealing="constant")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 30}, "steps was 15, now 30"),
        ({"learning_rate": 1.0}, "learning_rate was 0.01, now 1.0"),
        ({"seed": 3, "batch_size": 5}, "batch_size was 10, now 5; seed was 0, now 3"),
        ({"weighting": "x0"}, "weighting was edm, now x0"),
        ({"kind": "network"}, "parameters was .* now .*"),
    ],
)
def test_other_settings_are_refused_and_named(given, message, tmp_path, never_stopped):
    shutil.copytree(never_stopped("law", 15), tmp_path, dirs_exist_ok=True)
    given = {"kind": "law", "steps": 15, **given}
    with pytest.raises(
        ValueError, match=f"holds a run with other settings .*{message}.*: name another folder"
    ) as error:
        small_run(given.pop("kind"), tmp_path, given.pop("steps"), **given)
    assert "\n" not in str(error.value)
    assert same_tensors(tmp_path, never_stopped("law", 15))


def test_other_data_are_refused(tmp_path):
    objective = ScoreMatching(small_runs.MLPDenoiser(6, width=8, depth=1), VPSchedule())
    options = TrainingOptions(steps=2, batch_size=4, out=tmp_path, device="cpu")
    x = torch.randn(20, 6)
    list(training(objective, (x,), options))
    one_row = x.clone()
    one_row[9, 2] += 1e-3
    for other in (x + 1, one_row, x.flip(0)):
        with pytest.raises(ValueError, match=r"data was 20 rows .*, now 20 rows"):
            list(training(objective, (other,), options))


def test_a_folder_has_one_training_at_a_time(tmp_path):
    def a_training():
        objective = ScoreMatching(small_runs.MLPDenoiser(6, width=8, depth=1), VPSchedule())
        options = TrainingOptions(steps=3, batch_size=4, out=tmp_path / "run", log_every=1, device="cpu")
        return training(objective, (torch.ones(20, 6),), options)

    first = a_training()
    assert next(first).step == 1
    with pytest.raises(BlockingIOError, match="run is being written by another process: wait for it"):
        next(a_training())
    first.close()
    assert [state.step for state in a_training()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"sigma_data": 0.5}, {"sigma_data": 2.0}, r"model was MLPDenoiser .*, now MLPDenoiser"),
        ({}, {"dropout": 0.5}, r"model was MLPDenoiser .*, now MLPDenoiser"),
    ],
)
def test_networks_of_the_same_parameters_are_told_apart(first, second, message, tmp_path):
    options = TrainingOptions(steps=2, batch_size=4, out=tmp_path, device="cpu")
    x = torch.randn(20, 6)
    runs = [
        training(ScoreMatching(small_runs.MLPDenoiser(6, width=8, depth=1, **given), VPSchedule()), (x,), options)
        for given in (first, second)
    ]
    list(runs[0])
    with pytest.raises(ValueError, match=message):
        list(runs[1])


@pytest.mark.parametrize("changed", [{"beta": 1.0}, {"reconstruction": "l1"}])
def test_losses_of_an_autoencoder_are_told_apart(changed, tmp_path):
    options = TrainingOptions(steps=2, batch_size=4, out=tmp_path, device="cpu")
    x = torch.randn(20, 6)
    list(training(VAELoss(MLPVAE((6,), 2, widths=(8,))), (x,), options))
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name} was .*, now {changed[name]}"):
        list(training(VAELoss(MLPVAE((6,), 2, widths=(8,)), **changed), (x,), options))


def test_what_does_not_matter_may_change(tmp_path, never_stopped):
    shutil.copytree(never_stopped("law", 15), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/step-00000015")
    small_run("law", tmp_path, 15, checkpoint_every=2, keep=4, log_every=5, device=None, grid_every=3)
    assert same_tensors(tmp_path, never_stopped("law", 15))
    assert steps_in(tmp_path / "checkpoints") == ["step-00000014", "step-00000015"]


def test_states_after_a_stop_are_those_of_a_run_without(tmp_path):
    def states(out):
        torch.manual_seed(0)
        objective = ScoreMatching(small_runs.MLPDenoiser(6, width=8, depth=1), VPSchedule())
        x = torch.randn(20, 6)
        options = TrainingOptions(steps=9, batch_size=4, out=out, log_every=1, checkpoint_every=4, device="cpu")
        for state in training(objective, (x,), options, validation=(x,)):
            yield state.step, state.samples, state.loss, state.grad_norm, state.learning_rate, state.validation_loss

    whole = list(states(tmp_path / "whole"))
    stopped = states(tmp_path / "stopped")
    assert [next(stopped) for _ in range(6)] == whole[:6]
    stopped.close()
    assert list(states(tmp_path / "stopped")) == whole[4:]
    assert whole[0][-1] is not None


def test_nothing_is_pickled(never_stopped):
    files = {path.suffix for path in never_stopped("law", 15).rglob("*") if path.is_file()}
    assert files == {".json", ".jsonl", ".safetensors"}


def test_batch_statistics_are_kept_too(tmp_path):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def draw(self, rows, generator):
            return ()

        def forward(self, x):
            return (self.norm(x) - x).square().mean(1)

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 2.0
    whole, first, second = Normed(), Normed(), Normed()
    given = {"steps": 9, "batch_size": 8, "checkpoint_every": 4, "log_every": 1, "device": "cpu"}
    list(training(whole, (x,), TrainingOptions(**given, out=tmp_path / "whole")))
    for state in training(first, (x,), TrainingOptions(**given, out=tmp_path / "two")):
        if state.step == 6:
            break
    list(training(second, (x,), TrainingOptions(**given, out=tmp_path / "two")))
    assert float(whole.norm.running_mean.mean()) > 0.5
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )
