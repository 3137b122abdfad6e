"""Model folders: what is saved comes back, what is damaged says so, and a save that dies loses nothing."""

import json
import os
import pickle
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import molrmog
from molrmog import Experts, HeadTail, MLPDenoiser, MoLRMoG, PerExpert
from molrmog.autoencoders import LinearAutoencoder
from molrmog.denoisers.saved import load_denoiser
from molrmog.saving import CONFIG_NAME, MODEL_NAME, locked, save_model
from oracles.laws import head_tail_law, ragged_law


@pytest.fixture(params=[ragged_law, head_tail_law], ids=["pure", "head and tail"])
def law(request):
    return request.param(1).requires_grad_(False)


@pytest.fixture
def folder(law, tmp_path):
    return law.save_pretrained(tmp_path / "runs" / "model")


def same(a, b):
    assert type(a) is type(b)
    assert a.config == b.config
    assert {name: t.tolist() for name, t in a.state_dict().items()} == {
        name: t.tolist() for name, t in b.state_dict().items()
    }


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_round_trip(law, tmp_path, dtype):
    law = law.to(dtype)
    folder = law.save_pretrained(str(tmp_path / "model"))
    assert {path.name for path in folder.iterdir()} == {CONFIG_NAME, MODEL_NAME}
    for loaded in (molrmog.load(folder), type(law).from_pretrained(folder), type(law).from_pretrained(str(folder))):
        same(loaded, law)
        assert not any(p.requires_grad for p in loaded.parameters())
        x = torch.randn(3, law.dim)
        torch.testing.assert_close(loaded.log_prob(x, 1.0, 0.5), law.log_prob(x, 1.0, 0.5))
    assert json.loads((folder / CONFIG_NAME).read_text())["law"] == type(law).__name__


def test_saving_again_replaces(law, folder):
    law.offset.add_(1)
    law.save_pretrained(folder)
    same(molrmog.load(folder), law)


def test_the_other_kind_is_named(law, folder):
    other = HeadTail if isinstance(law, MoLRMoG) else MoLRMoG
    with pytest.raises(ValueError, match=r"molrmog\.load") as error:
        other.from_pretrained(folder)
    assert one_line(error)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_truncated_file(folder, share):
    whole = (folder / MODEL_NAME).read_bytes()
    (folder / MODEL_NAME).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="corrupt or truncated") as error:
        molrmog.load(folder)
    assert one_line(error)
    assert MODEL_NAME in str(error.value)


@pytest.mark.parametrize("at", [0, 7, 8, 9, 40])
def test_corrupt_file(folder, at):
    damaged = bytearray((folder / MODEL_NAME).read_bytes())
    damaged[at] ^= 0xFF
    (folder / MODEL_NAME).write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model\.safetensors") as error:
        molrmog.load(folder)
    assert one_line(error)


def edited(folder, edit):
    """Save the tensors again after `edit(config, tensors)` has had its way with them."""
    path = folder / MODEL_NAME
    tensors = safetensors.torch.load_file(path)
    config = json.loads((folder / CONFIG_NAME).read_text())
    config = edit(config, tensors) or config
    safetensors.torch.save_file(tensors, path, metadata={"config": json.dumps(config)})


@pytest.mark.parametrize(
    "edit",
    [
        lambda config, tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("basis")].clear(),
        lambda config, tensors: tensors.__delitem__("offset"),
        lambda config, tensors: tensors.update({name: t[:1].clone() for name, t in tensors.items() if "mean" in name}),
        lambda config, tensors: tensors.update(offset=tensors["offset"][..., :-1].clone()),
        lambda config, tensors: config.get("head", config).__delitem__("modes"),
        lambda config, tensors: config.get("head", config).update(modes=[1, 1, 1]),
        lambda config, tensors: config.get("head", config).update(dim=-3),
        lambda config, tensors: config.get("head", config).update(dim="five"),
        lambda config, tensors: {**config, "law": "SomethingElse"},
        lambda config, tensors: {"no": "law"},
        lambda config, tensors: ["not", "a", "configuration"],
    ],
)
def test_what_does_not_fit_together(folder, edit):
    edited(folder, edit)
    with pytest.raises(ValueError, match=r"save the model again|do not fit|there are MoLRMoG") as error:
        molrmog.load(folder)
    assert one_line(error)
    assert str(folder) in str(error.value)


def test_broken_config_json_is_not_needed(law, folder):
    (folder / CONFIG_NAME).write_text("{")
    same(molrmog.load(folder), law)


def test_a_model_of_others_needs_its_config_json(law, folder):
    safetensors.torch.save_file(safetensors.torch.load_file(folder / MODEL_NAME), folder / MODEL_NAME)
    same(molrmog.load(folder), law)
    (folder / CONFIG_NAME).write_text("{")
    with pytest.raises(ValueError, match="not valid JSON") as error:
        molrmog.load(folder)
    assert one_line(error)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        molrmog.load(folder)


def test_no_model_there(tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)) as error:
            molrmog.load(path)
        assert one_line(error)

    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(
        FileNotFoundError, match=r"someone/something is .* \(no route to host\): check the path"
    ) as error:
        molrmog.load("someone/something")
    assert one_line(error)


class Killed(BaseException):
    """Like KeyboardInterrupt: nobody catches it."""


@pytest.mark.parametrize("survived", [0, 1])
def test_a_save_killed_at_a_rename_leaves_a_whole_model(law, folder, monkeypatch, survived):
    old = molrmog.load(folder)
    law.offset.add_(1)
    real, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) > survived:
            raise Killed
        return real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        law.save_pretrained(folder)
    same(molrmog.load(folder), law if survived else old)
    assert {path.name for path in folder.iterdir()} == {CONFIG_NAME, MODEL_NAME}


def test_a_save_between_shapes_killed_halfway_is_still_one_model(tmp_path, monkeypatch):
    """New tensors beside an old config.json: the tensors' own copy of the configuration counts."""
    folder = ragged_law(0).save_pretrained(tmp_path)
    bigger = ragged_law(0, dim=6, latent_dims=(4,), ranks=((2, 3),), taus=(0.1,)).requires_grad_(False)
    config = (folder / CONFIG_NAME).read_text()
    bigger.save_pretrained(folder)
    (folder / CONFIG_NAME).write_text(config)
    same(molrmog.load(folder), bigger)


def test_a_write_that_fails_leaves_the_old_file(law, folder, monkeypatch):
    def full_disk(tensors, path, metadata=None):
        path.write_bytes(b"half of a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    old = molrmog.load(folder)
    law.offset.add_(1)
    with pytest.raises(OSError, match="No space left"):
        law.save_pretrained(folder)
    same(molrmog.load(folder), old)
    assert {path.name for path in folder.iterdir()} == {CONFIG_NAME, MODEL_NAME}


def test_a_file_in_the_way_is_left_alone(law, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OSError, match="model"):
        law.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")
def test_a_model_is_as_readable_as_any_file(folder, tmp_path):
    (tmp_path / "plain").touch()
    for name in (CONFIG_NAME, MODEL_NAME):
        assert stat.S_IMODE((folder / name).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_nothing_is_pickled(law, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a model file was pickled")

    for module, name in [
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "dump"),
        (pickle, "dumps"),
        (torch, "load"),
        (torch, "save"),
    ]:
        monkeypatch.setattr(module, name, never)
    folder = law.save_pretrained(tmp_path / "model")
    same(molrmog.load(folder), law)


def test_a_pickle_in_disguise_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (folder / MODEL_NAME).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="corrupt or truncated"):
        molrmog.load(folder)
    torch.save({"basis": Trap()}, folder / MODEL_NAME)
    with pytest.raises(ValueError, match="corrupt or truncated"):
        molrmog.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_one_network_in_two_places_is_saved(tmp_path):
    network, autoencoder = MLPDenoiser(2, width=8, depth=1), LinearAutoencoder.from_pca(torch.randn(20, 5), 2)
    model = Experts([autoencoder, autoencoder], PerExpert([network, network]), [0.5, 0.5])
    model.save_pretrained(tmp_path)
    x, expert = torch.randn(4, 5), torch.tensor([0, 1, 1, 0])
    assert torch.equal(molrmog.load(tmp_path).denoise(x, 1.0, 0.5, expert), model.denoise(x, 1.0, 0.5, expert))
    assert model.num_parameters == network.num_parameters


HOLDER = """
import sys, time
from pathlib import Path
from molrmog.saving import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path):
    pytest.importorskip("fcntl")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(BlockingIOError, match="run is being written by another process"),
                locked(tmp_path / "run"),
            ):
                pytest.fail("two hold one folder")
        finally:
            holder.kill()
    with locked(tmp_path / "run"):
        pass


def test_a_configuration_of_no_network_names_its_folder(tmp_path):
    save_model(tmp_path / "model", {"denoiser": "Abacus"}, {})
    for load in (molrmog.load, load_denoiser):
        with pytest.raises(ValueError, match=r"the configuration in .*model names the denoiser 'Abacus': there are"):
            load(tmp_path / "model")
