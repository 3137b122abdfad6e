"""Importing costs little, and the public names are there."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import molrmog
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
