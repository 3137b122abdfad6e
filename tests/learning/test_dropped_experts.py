"""Experts that are left out while training: how often, of which rows, and what the loss makes of them."""

import json
import math

import pytest
import torch

from molrmog import ConditionalLaw, MLPDenoiser, MoLRMoG, UNetDenoiser, VPSchedule
from molrmog.learning.score_matching import ScoreMatching, batch_mean
from molrmog.learning.train import train


def a_law(dim=6):
    law = MoLRMoG.random(dim, (2, 3, 1), (2, 1, 2), noise=0.2, seed=0, dtype=torch.float64)
    return law.requires_grad_(False)


def numbers(objective, n, seed=1):
    return objective.draw(n, torch.Generator().manual_seed(seed))


def test_so_many_are_dropped_whatever_else_is_drawn():
    plain, dropping = (ScoreMatching(ConditionalLaw(a_law()), VPSchedule(), drop_expert=p) for p in (0.0, 0.3))
    s, gamma, eps, dropped = numbers(dropping, n := 20_000)
    assert abs(float(dropped.double().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    assert abs(float(torch.corrcoef(torch.stack([gamma.log(), dropped.float()]))[0, 1])) < 4 / math.sqrt(n)
    assert all(torch.equal(a, b) for a, b in zip(numbers(plain, n), (s, gamma, eps), strict=True))


@pytest.mark.parametrize("targets", ["sample", "batch", "law"])
def test_a_row_is_told_its_expert_or_none(targets):
    law = ConditionalLaw(a_law())
    objective = ScoreMatching(law, VPSchedule(), drop_expert=0.4, targets=law if targets == "law" else targets)
    drawn = law.law.sample(60, torch.Generator().manual_seed(0))
    x, expert = drawn.x, drawn.subspace
    *levels, dropped = numbers(objective, 60)
    found = objective(x, expert, *levels, dropped)
    s, gamma, eps = (t.double() for t in levels)
    xt = s[:, None] * x + gamma[:, None] * eps
    for i in range(60):
        alone = expert == expert[i] if not dropped[i] else torch.ones(60, dtype=torch.bool)
        told = None if dropped[i] else int(expert[i])
        estimate = law.denoise(xt[i : i + 1], float(s[i]), float(gamma[i]), told)
        log_weight = -(xt[i] - s[i] * x[alone]).square().sum(1) / (2 * gamma[i] ** 2)
        target = {"sample": x[i], "batch": log_weight.softmax(0) @ x[alone], "law": estimate}[targets]
        expected = objective.weight(s[i], gamma[i]) * (estimate - target).square().mean()
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-9)  # levels are float32
    objective.eval()
    every = objective(x, expert, *levels, dropped)
    undropped = ScoreMatching(law, VPSchedule(), targets=objective.targets)(x, expert, *levels)
    torch.testing.assert_close(every, undropped)


def test_a_batch_of_dropped_rows_is_one_without_experts():
    draw = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 20, 3, generator=draw, dtype=torch.float64)
    s, gamma = torch.rand(2, 20, generator=draw, dtype=torch.float64) + 0.1
    found = batch_mean(x, s, gamma, eps, torch.arange(20) % 3, dropped=torch.ones(20, dtype=torch.bool))
    torch.testing.assert_close(found, batch_mean(x, s, gamma, eps))


def network(kind):
    torch.manual_seed(0)
    if kind == "unet":
        return UNetDenoiser((1, 2, 3), (12,), attention=False, experts=3, unconditional=True)
    return MLPDenoiser(6, width=16, depth=1, experts=3, unconditional=True)


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_a_run_that_was_stopped_drops_the_same_experts(kind, tmp_path):
    drawn = a_law().sample(50, torch.Generator().manual_seed(0))
    settings = {"experts": drawn.subspace, "drop_expert": 0.3, "batch_size": 10, "device": "cpu", "warmup": 0}
    settings |= {"annealing": "constant", "checkpoint_every": 3, "log_every": 1, "ema_decay": 0.9}

    def run(out, steps):
        return train(network(kind), drawn.x, VPSchedule(), steps=steps, out=tmp_path / out, **settings)

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [(tmp_path / out / "metrics.jsonl").read_text().splitlines() for out in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    assert losses[0] == losses[1]
    settings["drop_expert"] = 0.1
    with pytest.raises(ValueError, match=r"drop_expert was 0.3, now 0.1"):
        run("parts", 7)


@pytest.mark.slow
def test_one_network_learns_both_answers():
    # Two experts at +-1: told one the mean is its own, told none at high noise it is the mean of both, by weight.
    x = torch.cat([torch.ones(300, 2), -torch.ones(100, 2)])
    expert = (x[:, 0] < 0).long()
    torch.manual_seed(0)
    both = MLPDenoiser(2, width=32, depth=1, experts=2, unconditional=True)
    options = {"steps": 300, "batch_size": 128, "learning_rate": 1e-2, "device": "cpu", "ema_decay": 0.9}
    train(both, x, VPSchedule(), experts=expert, drop_expert=0.3, levels="log-snr", **options)
    xt = 3.0 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        means = [float(both.denoise(xt, 0.1, 3.0, k).mean()) for k in (0, 1, None)]
    assert means == pytest.approx([1.0, -1.0, 0.5], abs=0.15)


def test_refusals():
    with pytest.raises(ValueError, match=r"pass a probability in \[0, 1\)"):
        ScoreMatching(ConditionalLaw(a_law()), VPSchedule(), drop_expert=1.0)
    with pytest.raises(ValueError, match="does not answer without an expert, build it with unconditional=True"):
        ScoreMatching(MLPDenoiser(6, experts=3), VPSchedule(), drop_expert=0.1)
    with pytest.raises(ValueError, match="pass the expert of each row"):
        train(network("mlp"), torch.zeros(20, 6), VPSchedule(), steps=1, drop_expert=0.1, device="cpu")
    with pytest.raises(ValueError, match="pass experts=K, too"):
        MLPDenoiser(6, unconditional=True)
