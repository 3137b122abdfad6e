"""What all tests share: one torch thread, fixed seeds, and the device that --device names."""

import hypothesis
import pytest
import torch

# The same examples on every run, and no deadline: machines are shared.
hypothesis.settings.register_profile("molrmog", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("molrmog")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device on which laws are tested")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
