"""Two processes give the curve of one, and one goes on where two stood."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch

from molrmog.saving import load_model

pytestmark = pytest.mark.slow

STEPS, KINDS = 12, ("network", "law", "experts")
SCRIPT = Path(small_runs.__file__)


def curve(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [(record["kind"], record["step"]) for record in records]
    return lines, [(record["loss"], record.get("grad_norm", 0.0)) for record in records]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    launch += ["--main_process_port", "0"]
    command = [sys.executable, *launch, str(SCRIPT), "1", str(STEPS), str(out), *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 2  # of two that write at once, line ends may come together
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_curve_of_one(kind, by_two, tmp_path):
    small_runs.small_run(kind, tmp_path, STEPS)
    (lines, found), (expected_lines, expected) = curve(by_two / kind), curve(tmp_path)
    assert lines == expected_lines
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, tensor in load_model(tmp_path)[1].items():
        torch.testing.assert_close(load_model(by_two / kind)[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_one_process_goes_on_where_two_stood(by_two, tmp_path):
    other = tmp_path / "law"
    shutil.copytree(by_two / "law", other)
    shutil.rmtree(other / "checkpoints" / f"step-{STEPS:08d}")
    small_runs.small_run("law", other, STEPS)
    np.testing.assert_allclose(curve(other)[1], curve(by_two / "law")[1], rtol=1e-5)
