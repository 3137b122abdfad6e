"""Rows that threads share are those of one thread, and what torch does elsewhere stays as it was."""

import threading

import pytest
import torch

from molrmog.laws import threads
from oracles.laws import ragged_law, unequal_law


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def alone(monkeypatch, ask):
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_LEAST", 10**9)
        return ask()


@pytest.mark.parametrize("law", [ragged_law(0, taus=(0.3, 0.1, 0.2)), unequal_law(0)], ids=["isotropic", "diagonal"])
@pytest.mark.parametrize("gamma", [0.01, 1.0])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_shared_rows_are_those_of_one_thread(law, gamma, mode, monkeypatch):
    law = law.float().requires_grad_(False)
    with mode():
        x = law.sample(1001, torch.Generator().manual_seed(0), gamma=gamma).x
        assert threads.shared(len(x))
        for name in ("log_prob", "score", "denoise"):
            ask = getattr(law, name)
            torch.testing.assert_close(ask(x, 1.0, gamma), alone(monkeypatch, lambda ask=ask: ask(x, 1.0, gamma)))
        posterior = law.posterior(x, 1.0, gamma).responsibilities
        torch.testing.assert_close(posterior, alone(monkeypatch, lambda: law.posterior(x, 1.0, gamma).responsibilities))


def test_rows_keep_their_own_levels(monkeypatch):
    law = ragged_law(0, taus=(0.3, 0.1, 0.2)).float().requires_grad_(False)
    x, gamma = law.sample(700, torch.Generator().manual_seed(0)).x, torch.linspace(0.1, 2, 700)
    torch.testing.assert_close(law.score(x, 0.5, gamma), alone(monkeypatch, lambda: law.score(x, 0.5, gamma)))


def test_the_number_of_threads_elsewhere_stays():
    law = ragged_law(0, taus=(0.3, 0.1, 0.2)).float().requires_grad_(False)
    law.score(torch.zeros(600, 5), 1.0, 0.5)
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (torch.get_num_threads(), found) == (2, [2])


def test_an_error_in_a_thread_is_raised():
    def work(at):
        raise ValueError(f"rows from {at.start}")

    with pytest.raises(ValueError, match="rows from 0"):
        threads.by_thread(work, 600)
