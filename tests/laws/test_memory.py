"""Temporaries stay small: what a law asks for beyond its answer does not grow with the rows or the samples."""

import subprocess
import sys
import textwrap

import pytest

MANY = "molrmog.MoLRMoG.random(27, (8,), (200,), dtype=torch.float32)"
LAWS = {
    "pure": "molrmog.MoLRMoG.random(16, (8,) * 10, (8,) * 10, dtype=torch.float32)",
    "tail": (
        "molrmog.HeadTail(molrmog.MoLRMoG.random(8, (4,) * 10, (8,) * 10, dtype=torch.float32),"
        " torch.eye(16)[:, :12], torch.zeros(16), torch.ones(4), torch.tensor(0.5))"
    ),
}
# What is asked, and how many rows of 16 numbers the answer has; rows x 80 modes would be 320 MB and more.
QUESTIONS = {
    "score": ("law.score(x, 1.0, 0.5)", 10**6),
    "sample": ("law.sample(10**6)", 10**6),
    "posterior": ("law.posterior(x[:50_000], 1.0, 0.5).variance", 10**5),
    "many posterior samples": ("law.posterior(x[:2], 1.0, 0.5).sample(5 * 10**5)", 10**6),
    "posterior samples of many rows": ("law.posterior(x[:50_000], 1.0, 0.5).sample(20)", 10**6),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_memory_does_not_grow(law, question):
    pytest.importorskip("resource")
    asked, rows = QUESTIONS[question]
    code = f"""
        import resource, torch, molrmog
        torch.set_num_threads(1)
        law = {LAWS[law]}.requires_grad_(False)
        x = torch.randn(10**6, 16)
        law.posterior(x[:1000], 1.0, 0.5).sample(2)
        law.posterior(x[:1000], 1.0, 0.5).variance
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {asked}
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    answer = 2 * 4 * 16 * rows / 2**20  # MiB; parts and the whole that they are put together to
    assert float(done.stdout) < answer + 450


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["sample(1)", "variance"])
def test_many_modes_and_noise_levels_of_their_own(asked):
    """A row then holds the spectrum of every mode, 1,600 numbers several times over: 60,000 rows would be 2 GB."""
    pytest.importorskip("resource")
    code = f"""
        import resource, torch, molrmog
        torch.set_num_threads(1)
        law = {MANY}.requires_grad_(False)
        x, gamma = torch.randn(60_000, 27), 0.5 + torch.rand(60_000)
        law.posterior(x[:100], 1.0, gamma[:100]).sample(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        law.posterior(x, 1.0, gamma).{asked}
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 800  # MiB
