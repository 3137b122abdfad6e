import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from molrmog.weights import WEIGHTS_DIR, load_weights, weights_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net").mkdir()
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "net" / "linear.safetensors")
    monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
    return tmp_path


def test_a_path_goes_before_the_folder(folder, tmp_path):
    own = tmp_path / "own.safetensors"
    own.touch()
    assert weights_file("net/linear.safetensors") == folder / "net" / "linear.safetensors"
    assert weights_file("net/linear.safetensors", own) == own
    assert weights_file("net/linear.safetensors", str(own)) == own


def test_a_missing_file_is_a_line_that_tells_the_mend(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="check the path"):
        weights_file("net/linear.safetensors", folder / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="put the file there"):
        weights_file("net/none.safetensors")
    for empty in (lambda: monkeypatch.setenv(WEIGHTS_DIR, ""), lambda: monkeypatch.delenv(WEIGHTS_DIR)):
        empty()
        with pytest.raises(FileNotFoundError, match="set MOLRMOG_WEIGHTS_DIR"):
            weights_file("net/linear.safetensors")


def test_weights_come_into_the_module_in_its_own_dtype(folder):
    linear = nn.Linear(3, 2, dtype=torch.float64)
    load_weights(linear, weights_file("net/linear.safetensors"), "a linear map")
    torch.testing.assert_close(linear.weight.data, torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Conv2d(1, 1, 1), nn.Linear(3, 2, bias=False)])
def test_other_keys_or_shapes_are_refused(module, folder):
    with pytest.raises(ValueError, match="does not hold a linear map"):
        load_weights(module, weights_file("net/linear.safetensors"), "a linear map")


def test_a_damaged_file_is_refused(folder):
    path = weights_file("net/linear.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="does not hold a linear map"):
        load_weights(nn.Linear(3, 2), path, "a linear map")
