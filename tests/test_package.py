"""Importing costs little, and the public names are there."""

import ast
import importlib
import importlib.metadata
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import molrmog
from molrmog import _moved, registry
from oracles.laws import head_tail_law

HEAVY = {"torchvision", "diffusers", "matplotlib", "gradio", "sklearn", "scipy", "pyarrow", "pooch", "torchmetrics"}


def modules_after(code: str) -> set[str]:
    code += "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    assert not HEAVY & modules_after("import molrmog")


@pytest.mark.slow
def test_no_module_brings_torchvision():
    walk = """
import importlib, pkgutil, molrmog
for module in pkgutil.walk_packages(molrmog.__path__, "molrmog."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    assert "torchvision" not in modules_after(walk)


def test_public_names():
    for name in molrmog.__all__:
        assert getattr(molrmog, name).__doc__, name
    for name in (
        "MoLRMoG",
        "HeadTail",
        "fit",
        "sample",
        "load",
        "VPSchedule",
        "VESchedule",
        "CosineSchedule",
        "FlowSchedule",
    ):
        assert name in molrmog.__all__
    for name in (
        "log_prob", "score", "denoise", "divergence", "posterior", "sample", "moment_matched", "component_of", "dim",
        "subspaces", "latent_dims", "modes", "num_parameters", "noise_floor", "save_pretrained", "from_pretrained",
    ):  # fmt: skip
        for law in (head_tail_law(), molrmog.MoLRMoG.random(3, (1,), (1,))):
            assert hasattr(law, name), name


def test_every_module_says_what_it_is():
    for found in pkgutil.walk_packages(molrmog.__path__, "molrmog."):
        if found.ispkg or found.name.endswith("__main__"):
            continue
        assert importlib.import_module(found.name).__doc__, found.name


FORMER = """
BlendDenoiser CentredDenoiser ConditionalLaw CosineSchedule Dataset Denoiser DiffusersDenoiser DiscreteSchedule Experts
FlowSchedule GaussianDenoiser GuidedDenoiser HeadTail Law MLPDenoiser MoGDenoiser MoLRMoG PatchDenoiser PerExpert
Posterior ResidualDenoiser Samples Subspace UNetDenoiser VESchedule VPSchedule fit load load_data sample sample_experts
train
""".split()  # noqa: SIM905


def test_every_name_that_was_public_is_there():
    for name in FORMER:
        assert getattr(molrmog, name).__doc__, name
        assert name in dir(molrmog)


def test_classes_rooms_and_the_version_are_reachable():
    for name in registry.homes():
        assert isinstance(getattr(molrmog, name), type), name
    for room in ("autoencoders", "data", "denoisers", "laws", "learning", "metrics", "sampling", "schedules", "theory"):
        assert getattr(molrmog, room) is importlib.import_module(f"molrmog.{room}")
    assert molrmog.__version__ == importlib.metadata.version("molrmog")
    assert {"__version__", "metrics", "Heun", "Given"} <= set(dir(molrmog)) | {"__version__"}
    with pytest.raises(AttributeError, match="module molrmog has no attribute Abacus"):
        molrmog.Abacus  # noqa: B018


def test_the_static_types_are_those_of_the_names():
    tree = ast.parse(Path(molrmog.__file__).read_text())
    static = [
        (node.module, alias.name, alias.asname or alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert set(molrmog.__all__) | set(FORMER) <= {name for _, _, name in static}
    for module, there, name in static:
        found = importlib.import_module(f"molrmog.{there}") if module == "molrmog" else None
        assert getattr(molrmog, name) is (found or getattr(importlib.import_module(module), there))


def test_modules_that_moved_are_the_same_modules():
    for old, new in _moved.MOVED.items():
        assert importlib.import_module(old) is importlib.import_module(new)


def test_the_package_answers_before_torch_is_loaded():
    assert "torch" not in modules_after("import molrmog, molrmog.registry; molrmog.__version__; dir(molrmog)")
