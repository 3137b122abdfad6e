"""Temporaries stay small: what a law takes beyond its answers does not grow with rows, samples or modes."""

import subprocess
import sys
import textwrap

import pytest

# A law, and rows whose temporaries for all of them at once would be gigabytes.
CASES = {
    "pure": ("molrmog.MoLRMoG.random(16, (8,) * 10, (8,) * 10, dtype=torch.float32)", 300_000, "0.5"),
    "tail": (
        "molrmog.HeadTail(molrmog.MoLRMoG.random(8, (4,) * 10, (8,) * 10, dtype=torch.float32),"
        " torch.eye(16)[:, :12], torch.zeros(16), torch.ones(4), torch.tensor(0.5))",
        300_000,
        "0.5",
    ),
    "many modes, own levels": (
        "molrmog.MoLRMoG.random(27, (8,), (200,), dtype=torch.float32)",
        40_000,
        "0.5 + torch.rand(len(x))",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_memory_does_not_grow(case):
    pytest.importorskip("resource")
    law, rows, gamma = CASES[case]
    code = f"""
        import resource, torch, molrmog
        torch.set_num_threads(1)
        law = {law}.requires_grad_(False)
        x = torch.randn({rows}, law.dim)
        gamma = {gamma}

        def ask(x, gamma, samples):
            law.score(x, 1.0, gamma)
            law.sample(len(x))
            some = gamma[: len(x) // 2] if isinstance(gamma, torch.Tensor) else gamma
            posterior = law.posterior(x[: len(x) // 2], 1.0, some)
            posterior.variance
            posterior.sample(4)
            law.posterior(x[:2], 1.0, 0.5).sample(samples)

        ask(x[:2000], gamma if isinstance(gamma, float) else gamma[:2000], 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ask(x, gamma, {rows // 2})
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 700  # MiB
