"""What all tests share: the torch threads that --threads names, fixed seeds, and the device that --device names."""

import os

import hypothesis
import pytest
import torch

# The same examples on every run, and no deadline: machines are shared.
hypothesis.settings.register_profile("molrmog", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("molrmog")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device on which laws are tested")
    parser.addoption("--threads", type=int, default=1, metavar="N", help="torch threads of every test (default: 1)")


def pytest_configure(config):
    # Before collection: parametrised laws are computed then. Scikit-learn, loaded later, and other processes read the
    # variable: k-means adds up what its threads have found in the order in which they are done.
    torch.set_num_threads(config.getoption("--threads"))
    os.environ.setdefault("OMP_NUM_THREADS", str(config.getoption("--threads")))


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What the library keeps for later it keeps for one run of the suite, shared by its processes, and not at home."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOLRMOG_CACHE", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
