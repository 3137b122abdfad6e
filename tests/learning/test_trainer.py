"""The loop against what it says of itself: order, rates, averages, and what each step saw."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import molrmog
from molrmog.autoencoders.vae import MLPVAE, VAELoss
from molrmog.denoisers.mlp import MLPDenoiser
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.options import TrainingOptions
from molrmog.learning.score_matching import ScoreMatching
from molrmog.learning.train import train
from molrmog.learning.trainer import train_objective, training
from molrmog.schedules import FlowSchedule, VPSchedule

ROWS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


class Pull(nn.Module):
    """(theta - x - noise)^2: a point that is pulled to the mean of the rows. It keeps what it was given."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.dropout = nn.Dropout(dropout)
        self.seen, self.calls = [], 0

    def draw(self, rows, generator):
        self.calls += 1
        return (0.1 * torch.randn(rows, 3, generator=generator),)

    def forward(self, x, noise):
        if self.training:
            self.seen.append((x, noise))
        return self.dropout(self.theta - x - noise).square().sum(1)


def options(**given):
    defaults = {"steps": 20, "batch_size": 8, "log_every": 1, "device": "cpu", "learning_rate": 0.05, "warmup": 0}
    return TrainingOptions(**{**defaults, **given})


def losses(objective, data=(ROWS,), **given):
    return [state.loss for state in training(objective, data, options(**given))]


def a_law(seed=0, dtype=None, **shapes):
    shapes = {"latent_dims": (2, 3), "modes": (2, 1), **shapes}
    return MoLRMoG.random(dim=6, noise=0.2, seed=seed, dtype=dtype, **shapes).requires_grad_(False)


def test_a_step_is_one_of_adam():
    run, alone = Pull(), Pull()
    optimizer = torch.optim.AdamW(alone.parameters(), weight_decay=0.1, betas=(0.8, 0.95))
    settings = options(weight_decay=0.1, betas=(0.8, 0.95), grad_clip=1.5, annealing="constant", ema_decay=0.0)
    for state in training(run, (ROWS,), settings):
        x, noise = run.seen[-1]
        loss = alone(x, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(alone.parameters(), 1.5)
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
        assert state.loss == pytest.approx(loss.item())
        assert state.grad_norm == pytest.approx(float(norm))
        torch.testing.assert_close(run.theta, alone.theta)
    assert (state.step, state.samples, state.learning_rate) == (20, 160, 0.05)


def test_the_learning_rate_is_a_function_of_the_step():
    cosine = options(steps=100, learning_rate=0.3, warmup=10)
    for step in range(100):
        expected = 0.3 * min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / 100)) / 2
        assert cosine.learning_rate_at(step) == pytest.approx(expected)
    constant = options(steps=100, learning_rate=0.3, warmup=10, annealing="constant")
    assert [constant.learning_rate_at(step) for step in (0, 4, 9, 99)] == pytest.approx([0.03, 0.15, 0.3, 0.3])
    assert [state.learning_rate for state in training(Pull(), (ROWS,), options(steps=3))] == [
        options(steps=3).learning_rate_at(step) for step in range(3)
    ]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_its_closed_form(decay):
    run = Pull()
    weights, averages = [], []
    for state in training(run, (ROWS,), options(ema_decay=decay)):
        weights.append(run.theta.detach().double().clone())
        averages.append(state.average.theta.detach().clone())
    expected = weights[0]
    for n, (theta, average) in enumerate(zip(weights, averages, strict=True)):
        if n:
            d = min(decay, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * theta
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(averages[-1], averages[0])
    assert torch.equal(run.theta, averages[-1])  # what is left in the objective
    assert not run.training


def test_the_average_of_a_law_is_orthonormal_and_never_stale():
    run = ScoreMatching(MoGDenoiser(a_law()), VPSchedule())
    x = a_law().sample(100, torch.Generator().manual_seed(0)).x
    before = None
    for state in training(run, (x,), options(steps=4)):
        with torch.no_grad():
            said = state.average.denoiser.denoise(x, 0.8, 0.6)
            assert torch.equal(said, copy.deepcopy(state.average.denoiser).denoise(x, 0.8, 0.6))
            assert before is None or not torch.equal(said, before)
        before = said
        for law in (state.average.denoiser.law, run.denoiser.law):
            for k, d in enumerate(law.latent_dims):
                A = law.subspace(k).basis
                torch.testing.assert_close(A.T @ A, torch.eye(d))


def test_frozen_entries_stay_in_weights_and_average():
    law = a_law()
    law.subspace_logits[1] = -torch.inf
    mean, tau = law.mean.clone(), law.tau.clone()
    x = law.sample(64, torch.Generator().manual_seed(0)).x
    run = ScoreMatching(MoGDenoiser(law, learn=("mean", "subspace_weights")), VPSchedule())
    train_objective(run, (x,), options(steps=5))
    assert torch.equal(run.denoiser.law.tau, tau)
    assert not torch.equal(run.denoiser.law.mean, mean)
    assert run.denoiser.law.subspace_logits[1] == -torch.inf
    assert bool(run.denoiser.law.subspace_logits[:1].isfinite().all())


def test_every_epoch_is_a_permutation_of_its_own():
    run = Pull()
    list(training(run, (ROWS,), options(steps=20, batch_size=15)))  # 300 rows: 6 epochs, batches across their ends
    seen = torch.cat([x for x, _ in run.seen])
    epochs = [tuple((row == ROWS).all(1).nonzero().item() for row in epoch) for epoch in seen.split(50)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len(set(epochs)) == 6
    noise = torch.cat([noise for _, noise in run.seen])
    assert len(noise.unique()) == noise.numel()


def test_a_batch_may_be_larger_than_the_data():
    run = Pull()
    list(training(run, (ROWS[:3],), options(steps=2, batch_size=8)))
    assert sorted(torch.cat([x for x, _ in run.seen])[:, 0].unique(return_counts=True)[1].tolist()) == [5, 5, 6]


def test_the_seed_is_all_that_counts():
    first = losses(Pull(dropout=0.5))
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    assert losses(Pull(dropout=0.5)) == first
    assert torch.equal(torch.get_rng_state(), state)  # and nobody else's numbers are touched
    assert losses(Pull(dropout=0.5), seed=1) != first
    masks = [round(loss, 6) for loss in losses(Pull(dropout=0.9), data=(ROWS[:1],), batch_size=1, learning_rate=1e-9)]
    assert len(set(masks)) > 5  # dropout differs from step to step


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_give_the_curve_of_whole_ones(micro):
    x = a_law().sample(100, torch.Generator().manual_seed(0)).x.double()

    def curve(**given):
        run = ScoreMatching(MoGDenoiser(a_law(seed=1, dtype=torch.float64)), VPSchedule())
        return [(state.loss, state.grad_norm) for state in training(run, (x,), options(steps=6, **given))]

    np.testing.assert_allclose(curve(micro_batch_size=micro), curve(), rtol=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, lambda x: SimpleNamespace(x=x.numpy()), lambda x: x.double()])
def test_data_of_any_kind(kind):
    assert losses(Pull(), data=(kind(ROWS),)) == losses(Pull())


def test_experts_go_with_their_rows():
    class Told(Pull):
        def forward(self, x, expert, noise):
            assert expert.dtype == torch.long
            assert torch.equal(ROWS[expert], x)
            return super().forward(x, noise)

    assert losses(Told(), data=(ROWS, torch.arange(50))) == losses(Pull())
    assert losses(Told(), data=(ROWS, np.arange(50))) == losses(Pull())


def test_validation_is_the_loss_of_the_average_under_the_same_noise():
    run, fresh = Pull(), Pull()
    found = [
        (state.step, state.validation_loss, fresh.load_state_dict(state.average.state_dict()) and fresh(ROWS, 0 * ROWS))
        for state in training(run, (ROWS,), options(validate_every=5), validation=(ROWS,))
    ]
    at_start = found[0][1]
    assert [loss for step, loss, _ in found if step < 5] == [at_start] * 4
    assert len({loss for _, loss, _ in found}) == 5
    assert at_start == pytest.approx(Pull()(ROWS, 0 * ROWS).mean().item(), rel=0.05)
    for step, loss, noiseless in found:
        if step % 5 == 0:
            assert loss == pytest.approx(noiseless.mean().item(), rel=0.05)  # the noise adds about a hundredth
    again = training(Pull(), (ROWS,), options(validate_every=5), validation=(ROWS,))
    assert [state.validation_loss for state in again] == [loss for _, loss, _ in found]


def test_grids_are_drawn_from_the_average():
    drawn = []
    x = a_law().sample(64, torch.Generator().manual_seed(0)).x
    network = MLPDenoiser(6, width=8, depth=1)
    given = {"steps": 6, "batch_size": 8, "device": "cpu", "grid_every": 2}

    def on_grid(denoiser, step):
        torch.randn(100)  # whatever is drawn here does not change the run
        drawn.append((step, type(denoiser), denoiser is network, denoiser.training))

    start = copy.deepcopy(network.state_dict())
    train(network, x, VPSchedule(), on_grid=on_grid, **given)
    assert drawn == [(step, MLPDenoiser, False, False) for step in (2, 4, 6)]
    without = MLPDenoiser(6, width=8, depth=1)
    without.load_state_dict(start)
    train(without, x, VPSchedule(), **given)
    assert all(torch.equal(a, b) for a, b in zip(without.parameters(), network.parameters(), strict=True))
    train(a_law(), x, VPSchedule(), on_grid=lambda law, step: drawn.append(type(law)), **given)
    assert drawn[3:] == [MoLRMoG] * 3


@pytest.mark.parametrize("learning_rate", [1e19, 1e25])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(learning_rate):
    run = Pull()
    with pytest.raises(RuntimeError, match=r"loss is (inf|nan) at step \d+: lower learning_rate \(1e\+") as error:
        list(training(run, (ROWS,), options(learning_rate=learning_rate)))
    assert "\n" not in str(error.value)
    assert bool(run.theta.isfinite().all())


def test_a_gradient_that_is_not_finite_stops_the_run():
    class Root(Pull):
        def forward(self, x, noise):
            return (0.0 * super().forward(x, noise)).sqrt()  # 0, with an infinite slope

    with pytest.raises(RuntimeError, match="norm of the gradient is nan at step 1: lower learning_rate"):
        list(training(Root(), (ROWS,), options()))


def test_bfloat16_trains_and_leaves_the_objective_as_it_was():
    x = a_law().sample(64, torch.Generator().manual_seed(0)).x
    narrow = []

    class Spy(MLPDenoiser):
        def forward(self, x, c_noise, expert):
            out = super().forward(x, c_noise, expert)
            narrow.append(out.dtype)
            return out

    run = ScoreMatching(Spy(6, width=8, depth=1), VPSchedule())
    found = losses(run, data=(x,), mixed_precision="bf16", steps=30, batch_size=64)
    assert set(narrow) == {torch.bfloat16}
    assert sum(found[-5:]) < sum(found[:5])
    run(x, *run.draw(64))
    assert narrow[-1] == torch.float32
    assert losses(Pull()) == losses(Pull())  # precision of one run is not that of the next


def test_a_vae_learns_in_the_same_loop():
    torch.manual_seed(0)
    x = a_law().sample(200, torch.Generator().manual_seed(0)).x
    run = VAELoss(MLPVAE(shape=(6,), latent_dim=3, widths=(32,)), beta=1e-3)
    found = losses(run, data=(x,), steps=150, batch_size=64, learning_rate=1e-2)
    assert sum(found[-20:]) < 0.5 * sum(found[:20])


@pytest.mark.slow
def test_a_law_learns_the_law_of_the_data(tmp_path):
    truth, start = a_law(), a_law()
    start.mean.add_(0.5 * torch.randn(start.mean.shape) * (start.mean != 0))
    start.factor.mul_(1.3)
    x = truth.sample(5000, torch.Generator().manual_seed(0)).x
    held_out = truth.sample(2000, torch.Generator().manual_seed(1)).x
    given = {"steps": 150, "learning_rate": 3e-2, "batch_size": 128, "device": "cpu", "ema_decay": 0.95}
    before = start.log_prob(held_out).mean()
    train(start, x, VPSchedule(), targets=truth, out=tmp_path, **given)
    apart = (truth.log_prob(held_out) - start.log_prob(held_out)).mean()
    assert float(apart) < 0.1 * float(truth.log_prob(held_out).mean() - before)
    assert not any(p.requires_grad for p in start.parameters())
    assert not start.training
    assert torch.equal(molrmog.load(tmp_path).mean, start.mean)


def test_the_network_comes_back_averaged_and_saved(tmp_path):
    x = a_law().sample(64, torch.Generator().manual_seed(0)).x
    network = MLPDenoiser(6, width=8, depth=1, dropout=0.1)
    given = {"steps": 6, "batch_size": 8, "device": "cpu", "log_every": 2, "ema_decay": 0.9}
    assert train(network, x, FlowSchedule(), out=tmp_path, validation=x[:7], validate_every=3, **given) is network
    assert not network.training
    saved = molrmog.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), network.parameters(), strict=True))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["kind"], record["step"]) for record in records] == [
        *(("validation", 0), ("train", 2), ("validation", 3), ("train", 4), ("validation", 6), ("train", 6))
    ]
    names = {"kind", "step", "samples", "loss", "learning_rate", "grad_norm", "seconds", "cpu_seconds"}
    assert all(set(record) == names for record in records if record["kind"] == "train")
    assert 0 < records[1]["seconds"] < records[3]["seconds"]


def test_a_line_is_the_mean_over_its_steps(tmp_path):
    each = losses(Pull(), steps=7)
    list(training(Pull(), (ROWS,), options(steps=7, log_every=3, out=tmp_path)))
    found = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == pytest.approx([sum(each[:3]) / 3, sum(each[3:6]) / 3, each[6]])


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    states = list(training(Pull(), (ROWS,), options(steps=4, out=tmp_path, tensorboard=True)))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(s.step, pytest.approx(s.loss)) for s in states]


def test_the_progress_bar_goes_to_stderr(capsys):
    x = a_law().sample(64, torch.Generator().manual_seed(0)).x
    train(a_law(), x, VPSchedule(), steps=2, batch_size=8, device="cpu", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loss" in captured.err
    assert "going on" not in captured.err


def test_a_run_that_goes_on_says_from_where_and_counts_every_step(tmp_path, capsys):
    given = {"steps": 6, "log_every": 3, "checkpoint_every": 2, "out": tmp_path}
    for state in training(objective := Pull(), [ROWS], options(**given)):
        assert state.step == 3
        break
    counted = []
    for _ in training(objective, [ROWS], options(**given), on_step=counted.append):
        break
    assert counted == [2, 3]
    train_objective(objective, [ROWS], options(**given), progress=True)
    assert "training: going on from step 2\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps = 0: pass 1 or more"),
        ({"micro_batch_size": 0}, "micro_batch_size = 0"),
        ({"warmup": -1}, "warmup = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"grad_clip": -1.0}, "grad_clip = -1.0"),
        ({"ema_decay": 1.0}, "ema_decay = 1.0"),
        ({"annealing": "linear"}, "unknown annealing 'linear': choose one of cosine, constant"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
        ({"mixed_precision": "fp8"}, "unknown mixed_precision 'fp8'"),
        ({"tensorboard": True}, "tensorboard needs a run folder: pass out"),
        ({"mixed_precision": "fp16", "device": "cpu"}, "fp16 needs a GPU: pass"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        list(training(Pull(), (ROWS,), options(**given)))


X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("denoiser", "x", "given", "message"),
    [
        (lambda: MLPDenoiser(5), X, {}, "the data have 6 columns, but the denoiser has D = 5"),
        (
            lambda: MLPDenoiser(6).requires_grad_(False),
            X,
            {},
            r"no parameter asks for gradients: call requires_grad_\(\)",
        ),
        (lambda: MLPDenoiser(6), X * torch.nan, {}, "row 0 of x holds NaN"),
        (lambda: MLPDenoiser(6, experts=2), X, {"experts": [0, 1]}, "experts must be 10 integers >= 0, one per row"),
        (lambda: MLPDenoiser(6, experts=2), X, {"experts": [0.5] * 10}, "experts must be 10 integers"),
        (lambda: MLPDenoiser(6, experts=2), X, {"experts": [-1] * 10}, "experts must be 10 integers"),
        (lambda: MLPDenoiser(6), X, {"validation": X, "validation_experts": [0] * 10}, "pass both or none"),
        (lambda: MLPDenoiser(6, experts=2), X, {"experts": [2] * 10}, "expert 2 of a row is unknown: .* 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(denoiser, x, given, message):
    with pytest.raises(ValueError, match=message) as error:
        train(denoiser(), x, VPSchedule(), steps=1, device="cpu", **given)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there_does_not_spoil_the_next_run(tmp_path):
    with pytest.raises(RuntimeError, match="abacus"):
        train(MLPDenoiser(3, 4, 1), ROWS, VPSchedule(), steps=1, device="abacus")
    train(MLPDenoiser(3, 4, 1), ROWS, VPSchedule(), steps=1, device="cpu", out=tmp_path / "run", progress=True)
    assert (tmp_path / "run" / "model.safetensors").exists()
