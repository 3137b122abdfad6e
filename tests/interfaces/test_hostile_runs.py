"""The other files of a run, damaged or made up: one line that names the file, or what it says."""

import errno
import json
import os
import zipfile

import numpy as np
import pytest
import safetensors.torch

from molrmog import MoLRMoG, saving
from molrmog.data import Dataset
from molrmog.experiments import cells
from molrmog.interfaces.reproducing import _claim
from molrmog.interfaces.runs import Run, append_records, experiment_in, records_in
from molrmog.learning.checkpoints import newest_checkpoint

BATTERY = [None, "", -1, 0, 10**12, 2**70, 1.5, True, [], {}, "x" * 1000, float("nan"), float("inf"), [[[1]]]]
TEXTS = {
    "empty": b"",
    "not UTF-8": b'{"kind": "\xff\xfe"}',
    "bytes": bytes(range(256)),
    "deep": b'{"a":' * 100_000,
    "deep lists": b"[" * 200_000,
    "number": b"7",
    "null": b"null",
    "list": b"[1, 2]",
    "half": b'{"kind": "a',
    "nan": b'{"kind": NaN}',
    "yaml bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nnetwork: [*b]\n",
    "object": b"!!python/object/apply:os.system ['true']\n",
}
RECORDS = [
    {"kind": "em", "iteration": 0, "log_likelihood": 1.0, "penalised": 1.0},
    {"kind": "measurement", "law": "law", "name": "n", "value": 1.0, "where": "w", "better": "", "reference": None},
]


@pytest.fixture
def run(tmp_path):
    MoLRMoG.random(dim=4, latent_dims=(2,), modes=(1,), noise=0.1, seed=0).save_pretrained(tmp_path / "run")
    info = Dataset(name="rows", shape=(4,), x=np.zeros((3, 4))).info() | {"held_out_rows": 2, "expert_rows": [1, 2]}
    (tmp_path / "run" / "data.json").write_text(json.dumps(info))
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"data": "rows", "network": "mlp", "schedule": "vp"}))
    (tmp_path / "run" / "experiment.json").write_text(
        json.dumps({"experiment": "floor", "budget": "smoke", "seed": 0, "dataset": None, "rows": None})
    )
    np.savez(tmp_path / "run" / "experts.npz", train=np.array([0, 1, 1]), held_out=np.array([0, 1]))
    append_records(tmp_path / "run", RECORDS)
    return Run(tmp_path / "run")


READERS = {
    "data.json": lambda run: (run.info(), run.layout()),
    "config.yaml": lambda run: run.settings(),
    "metrics.jsonl": lambda run: run.records(),
    "experiment.json": lambda run: experiment_in(run.folder),
}


def outcome(run, name, read):
    try:
        read(run)
    except ValueError as error:
        said = str(error)
    else:
        return None
    assert name in said
    assert "\n" not in said
    assert len(said) < 400 + len(str(run.folder))
    return said


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_none(name, text, run):
    (run.folder / name).write_bytes(TEXTS[text])
    said = outcome(run, name, READERS[name])
    if (name, text) not in (
        ("metrics.jsonl", "empty"),
        ("config.yaml", "empty"),
        ("config.yaml", "null"),
        ("config.yaml", "nan"),
    ):
        assert said is not None


@pytest.mark.parametrize("name", ["data.json", "config.yaml", "experiment.json"])
def test_every_entry_of_hostile_values(name, run):
    whole = json.loads((run.folder / name).read_text())
    for key in whole:
        for value in BATTERY:
            (run.folder / name).write_text(json.dumps({**whole, key: value}))
            said = outcome(run, name, READERS[name])
            if name == "data.json" and key == "shape" and value != whole[key]:
                assert said is not None, value
        (run.folder / name).write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        outcome(run, name, READERS[name])


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["kind"])
def test_every_entry_of_a_record(record, run):
    for key in record:
        for value in BATTERY:
            (run.folder / "metrics.jsonl").write_text(json.dumps({**record, key: value}) + "\n")
            said = outcome(run, "metrics.jsonl", READERS["metrics.jsonl"])
            if type(value) is not type(record[key]) and key in ("iteration", "law", "where"):
                assert said is not None or isinstance(value, float), (key, value)


def bomb(path):
    """Few bytes that unpack to many."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("train", "held_out"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array_header_1_0(
                    part, {"descr": "<i8", "fortran_order": False, "shape": (20_000_000,)}
                )
                for _ in range(20):
                    part.write(bytes(8_000_000))


EXPERTS = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "no zip": lambda path: path.write_bytes(bytes(1000)),
    "one": lambda path: np.savez(path, train=np.arange(3)),
    "pickle": lambda path: np.savez(path, train=np.array([{}] * 3, object), held_out=np.arange(2)),
    "floats": lambda path: np.savez(path, train=np.arange(3.0), held_out=np.arange(2)),
    "negative": lambda path: np.savez(path, train=np.array([0, -1, 1]), held_out=np.arange(2)),
    "table": lambda path: np.savez(path, train=np.zeros((3, 1), int), held_out=np.arange(2)),
    "other rows": lambda path: np.savez(path, train=np.arange(4), held_out=np.arange(2)),
    "bomb": bomb,
}


@pytest.mark.parametrize("damage", EXPERTS)
def test_experts_that_are_none(damage, run):
    assert len(run.experts()[0]) == 3
    EXPERTS[damage](run.folder / "experts.npz")
    assert "experts.npz is damaged" in outcome(run, "experts.npz", Run.experts)


@pytest.mark.parametrize("text", TEXTS)
def test_a_damaged_mark_of_an_experiment_is_left_alone(text, run):
    (run.folder / "experiment.json").write_bytes(TEXTS[text])
    with pytest.raises(ValueError, match=r"experiment\.json is damaged"):
        _claim(run.folder, {"experiment": "floor", "seed": 0})
    assert (run.folder / "experiment.json").read_bytes() == TEXTS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_a_damaged_cell_is_computed_again_and_a_damaged_checkpoint_passed_over(text, tmp_path):
    for name in ("cell.json", "settings.json", "state.json"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(TEXTS[text])
    assert cells._result(tmp_path / "a", {"x": 1}) is None
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "state.json").write_bytes(TEXTS[text])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert newest_checkpoint(tmp_path) is None
    cells._prepare(tmp_path / "a", {"x": 1})
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"settings.json"}


WRITES = ["touch", "write", "safetensors", "chmod", "rename", "mkdir"]


@pytest.mark.parametrize("at", WRITES)
@pytest.mark.parametrize("what", ["model", "records"])
def test_a_full_disk_leaves_what_was_there(what, at, run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    law = run.model() if what == "records" else MoLRMoG.random(dim=5, latent_dims=(1,), modes=(1,), noise=0.1, seed=1)

    def full_tensors(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    if at == "safetensors" and what == "model":
        monkeypatch.setattr(safetensors.torch, "save_file", full_tensors)
    elif at in ("write", "safetensors"):
        monkeypatch.setattr(safetensors.torch, "save_file", full)
        monkeypatch.setattr("pathlib.Path.write_text", full)
    elif at in ("touch", "chmod"):
        monkeypatch.setattr(f"pathlib.Path.{at}", full)
    elif at == "rename":
        monkeypatch.setattr(saving.os, "replace", full)
    else:
        monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left on device"):
        law.save_pretrained(run.folder) if what == "model" else append_records(run.folder, [{"kind": "a"}])
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    assert records_in(run.folder) == RECORDS
