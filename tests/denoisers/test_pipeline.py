"""Pipelines of diffusers as denoisers, against their own schedulers and against laws that hide in a network's place."""

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)

from molrmog import DiffusersDenoiser, DiscreteSchedule, MoLRMoG, VPSchedule, sample
from molrmog.denoisers.pipeline import PREDICTIONS
from molrmog.metrics import jump_time

SHAPE = (1, 4, 4)
LEVELS = [(0.9, 0.3), (1.0, 0.05), (1.0, 3.0), (0.5, 0.5), (0.02, 1.0)]  # most on no circle, all inside the chain


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_unet(channels=1, out=1, **more):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4,
        in_channels=channels,
        out_channels=out,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **more,
    ).eval()


class LawAsNetwork(torch.nn.Module):
    """What a perfectly trained UNet2DModel would answer to data from a law."""

    def __init__(self, law, schedule, prediction):
        super().__init__()
        self.law, self.schedule, self.prediction, self.calls = law, schedule, prediction, 0

    def forward(self, pictures, timestep, return_dict=True):
        self.calls += 1
        a, b = self.schedule(timestep / (len(self.schedule.alphas_cumprod) - 1))
        x = pictures.flatten(1)
        clean = self.law.denoise(x, a, b)
        a, b = a[:, None], b[:, None]
        eps = (x - a * clean) / b
        out = {"epsilon": eps, "sample": clean, "v_prediction": a * eps - b * clean}[self.prediction]
        return (out.view_as(pictures),)


@pytest.fixture(scope="module")
def law():
    return MoLRMoG.random(16, (2, 3), (2, 1), noise=0.2, seed=0, dtype=torch.float64).requires_grad_(False)


def perfect(law, prediction="epsilon", schedule=None):
    schedule = schedule or DiscreteSchedule()
    return DiffusersDenoiser(LawAsNetwork(law, schedule, prediction), schedule, SHAPE, prediction)


@pytest.mark.parametrize("clip", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_estimates_are_those_of_the_scheduler_at_every_timestep(prediction, betas, clip):
    scheduler = DDPMScheduler(60, beta_schedule=betas, beta_end=0.2, prediction_type=prediction, clip_sample=clip)
    unet = small_unet().double()
    denoiser = DiffusersDenoiser.from_pipeline(DDPMPipeline(unet, scheduler))
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    pictures = torch.randn(60, *SHAPE, generator=seeded(), dtype=torch.float64)
    for i, x in enumerate(pictures[:, None]):
        alpha = scheduler.alphas_cumprod[i]
        with torch.no_grad():
            expected = scheduler.step(unet(x, i).sample, i, x, generator=seeded()).pred_original_sample
            got = denoiser.denoise(x.flatten(1), alpha.sqrt(), (1 - alpha).sqrt())
        # The time embedding is float32: a timestep off by 1e-7 moves it by as much.
        torch.testing.assert_close(got, expected.flatten(1), rtol=1e-5, atol=1e-5)


COSINE, ZERO = {"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}


def close(got, expected):
    """Equal to a share of the greatest: estimates from eps are huge where there is next to no signal."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("scheduler", "last"),
    [
        (DDPMScheduler(prediction_type="v_prediction", clip_sample=False, **ZERO), 1.0533e-9),
        (DDPMScheduler(prediction_type="sample", clip_sample=False, **ZERO), 1.0533e-9),
        (DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **ZERO), 1.0533e-9),
        (DDIMScheduler(prediction_type="sample", clip_sample=False, **ZERO, **COSINE), 5.6945e-7),
        (DDPMScheduler(clip_sample=False, **COSINE), 2.4287e-9),
        (DDPMScheduler(2000, clip_sample=False), 1.6288e-9),
        (DDPMScheduler(10_000, clip_sample=False, **COSINE), 2.4287e-11),
    ],
)
def test_a_chain_that_ends_with_next_to_no_signal_is_the_schedulers(scheduler, last):
    unet = small_unet().double()
    denoiser = DiffusersDenoiser.from_pipeline(DDPMPipeline(unet, scheduler))
    alphas, T = scheduler.alphas_cumprod.double(), len(scheduler.alphas_cumprod)
    assert denoiser.schedule.alphas_cumprod[:-1] == tuple(alphas[:-1].tolist())
    assert denoiser.schedule.alphas_cumprod[-1] == pytest.approx(last, rel=1e-4)
    scheduler.alphas_cumprod = alphas
    scheduler.set_timesteps(T)
    for i in (0, T // 2, *range(T - 6, T)):
        x = torch.randn(1, *SHAPE, generator=seeded(i), dtype=torch.float64)
        s, gamma = alphas[i].sqrt(), (1 - alphas[i]).sqrt()
        assert denoiser.timestep(s, gamma).item() == pytest.approx(i, abs=1e-6)
        with torch.no_grad():
            expected = scheduler.step(unet(x, i).sample, i, x).pred_original_sample.flatten(1)
            close(denoiser.denoise(x.flatten(1), s, gamma), expected)
    with torch.no_grad():
        got = denoiser.denoise(x.flatten(1), *denoiser.schedule(1.0))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4)  # s = 3e-5 where the scheduler has 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # NumPy's, of diffusers
def test_an_euler_chain_that_ends_without_signal_is_the_schedulers():
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction", **ZERO)
    assert scheduler.alphas_cumprod[-1] > scheduler.alphas_cumprod[-2]  # 2^-24 stands for no signal
    unet = small_unet().double()
    denoiser = DiffusersDenoiser.from_pipeline(DDPMPipeline(unet, scheduler))
    assert denoiser.schedule.alphas_cumprod[:-1] == tuple(scheduler.alphas_cumprod[:-1].double().tolist())
    scheduler.set_timesteps(1000)
    for i, t in enumerate(scheduler.timesteps[:6]):
        x = torch.randn(1, *SHAPE, generator=seeded(i), dtype=torch.float64) * scheduler.sigmas[i]
        scaled = scheduler.scale_model_input(x, t)
        with torch.no_grad():
            expected = scheduler.step(unet(scaled, t).sample, t, x).pred_original_sample.flatten(1)
            got = denoiser.denoise(scaled.flatten(1), *denoiser.schedule(t.item() / 999))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)  # its first a is 2^-12, ours 3e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_of_few_digits_are_told_a_timestep_with_all_of_its_own(dtype):
    told = []

    def network(pictures, timestep, return_dict):
        told.append(timestep)
        return (pictures,)

    unet = torch.nn.Module()
    unet.forward = network
    denoiser = DiffusersDenoiser(unet, DiscreteSchedule(), SHAPE)
    denoiser.denoise(torch.zeros(2, 16, dtype=dtype), *denoiser.schedule(997.3 / 999))
    assert told[0].dtype == torch.float32
    torch.testing.assert_close(told[0], torch.full((2,), 997.3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_law_in_the_networks_place_comes_out_again_at_any_level(law, prediction):
    denoiser = perfect(law, prediction)
    for s, gamma in LEVELS:
        x = law.sample(5, seeded(), s=s, gamma=gamma).x
        torch.testing.assert_close(denoiser.denoise(x, s, gamma), law.denoise(x, s, gamma), rtol=1e-9, atol=1e-9)
    s, gamma = (torch.tensor(level, dtype=torch.float64) for level in zip(*LEVELS, strict=True))
    x = torch.randn(5, 16, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(denoiser.denoise(x, s, gamma), law.denoise(x, s, gamma), rtol=1e-9, atol=1e-9)


def test_the_level_is_told_as_a_timestep_of_the_chain():
    denoiser = DiffusersDenoiser(small_unet(), DiscreteSchedule(), SHAPE)
    s, gamma = DiscreteSchedule()(torch.tensor([0.0, 123 / 999, 123.25 / 999, 1.0], dtype=torch.float64))
    expected = torch.tensor([0, 123, 123.25, 999], dtype=torch.float64)
    for scale in (1.0, 7.0, 1 / s):  # the ratio is what counts
        torch.testing.assert_close(denoiser.timestep(scale * s, scale * gamma), expected, rtol=0, atol=1e-8)
    assert denoiser.timestep(1.0, 0.0) == 0
    assert denoiser.timestep(0.0, 1.0) == 999


def test_the_ends_are_finite(law):
    x = torch.randn(3, 16, generator=seeded())
    for prediction in PREDICTIONS:
        denoiser = DiffusersDenoiser(small_unet(), DiscreteSchedule(), SHAPE, prediction)
        clean = denoiser.denoise(x, 1.0, 0.0)
        assert clean.isfinite().all()
        if prediction != "sample":
            torch.testing.assert_close(clean, x)
        if prediction != "epsilon":
            assert denoiser.denoise(x, 0.0, 1.0).isfinite().all()
    with pytest.raises(ValueError, match="nothing of x_0 at s = 0"):
        DiffusersDenoiser(small_unet(), DiscreteSchedule(), SHAPE).denoise(x, 0.0, 1.0)


def test_a_learned_variance_is_passed_over():
    unet = small_unet(out=2)
    denoiser = DiffusersDenoiser(unet, DiscreteSchedule(), SHAPE, "sample")
    x = torch.randn(3, 16, generator=seeded())
    with torch.no_grad():
        expected = unet(x.view(3, *SHAPE), denoiser.timestep(*DiscreteSchedule()(0.5)).float()).sample[:, :1]
        torch.testing.assert_close(denoiser.denoise(x, *DiscreteSchedule()(0.5)), expected.flatten(1))


def test_a_saved_pipeline_is_read_as_it_was(tmp_path):
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample_range=2.0,
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    pipeline = DDPMPipeline(small_unet(), scheduler)
    pipeline.save_pretrained(tmp_path)
    read, kept = DiffusersDenoiser.from_pretrained(tmp_path), DiffusersDenoiser.from_pipeline(pipeline)
    assert (read.shape, read.dim, read.prediction, read.clip) == (SHAPE, 16, "v_prediction", 2.0)
    assert read.schedule == kept.schedule
    assert read.schedule(1.0)[0] == pytest.approx(read.schedule(998 / 999)[0] / 2)  # the chain itself ends at 0
    x = torch.randn(3, 16, generator=seeded())
    # diffusers leaves weights where the file puts them, so products may be added up in another order.
    torch.testing.assert_close(read.denoise(x, 0.6, 0.8), kept.denoise(x, 0.6, 0.8))
    for one, other in zip(read.unet.parameters(), kept.unet.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(module.training for module in read.modules())


def test_schedulers_that_clip_nothing_are_not_clipped(tmp_path):
    for scheduler in (
        DPMSolverMultistepScheduler(),
        DDPMScheduler(thresholding=True),
        DDPMScheduler(clip_sample=False),
    ):
        assert DiffusersDenoiser.from_pipeline(DDPMPipeline(small_unet(), scheduler)).clip is None


def saved(tmp_path, **parts):
    DDPMPipeline(parts.get("unet", small_unet()), DDPMScheduler()).save_pretrained(tmp_path)
    return tmp_path


def spoiled(tmp_path, what):
    folder = saved(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if what == "pickle":
        torch.save(small_unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "flow":
        from diffusers import FlowMatchEulerDiscreteScheduler

        index["scheduler"][1] = "FlowMatchEulerDiscreteScheduler"
        FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    elif what == "code":
        index["scheduler"] = ["os", "system"]
    elif what == "text":
        index = {**index, "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text("{" if what == "json" else json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("pickle", FileNotFoundError, "safe_serialization=True"),
        ("cut", ValueError, "cannot be read"),
        ("flow", ValueError, "has no betas"),
        ("code", ValueError, "diffusers has none of that name"),
        ("text", ValueError, "text_encoder: CLIPTextModel: pass an unconditional pipeline"),
        ("json", ValueError, "not valid JSON"),
    ],
)
def test_a_folder_that_cannot_be_read_gets_one_line(tmp_path, what, kind, message):
    with pytest.raises(kind, match=message) as caught:
        DiffusersDenoiser.from_pretrained(spoiled(tmp_path, what))
    assert "\n" not in str(caught.value)


def test_bad_input_gets_one_line(tmp_path):
    unet, schedule = small_unet(), DiscreteSchedule()
    for call, message in (
        (lambda: DiffusersDenoiser.from_pretrained(tmp_path), "no model_index.json"),
        (lambda: DiffusersDenoiser(unet, schedule, SHAPE, "noise"), "choose one of epsilon, sample, v_prediction"),
        (lambda: DiffusersDenoiser(unet, schedule, (4, 4)), "pass .C, H, W."),
        (lambda: DiffusersDenoiser(unet, schedule, SHAPE, clip=0.0), "pass a bound > 0"),
        (lambda: DiffusersDenoiser(unet, schedule, SHAPE).denoise(torch.zeros(2, 15), 1.0, 1.0), r"\(B, 16\)"),
        (
            lambda: DiffusersDenoiser.from_pipeline(DDPMPipeline(small_unet(num_class_embeds=3), DDPMScheduler())),
            "takes classes",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def moments_apart(x, law, n=40_000):
    """How far mean and covariance of rows are from those of fresh samples, in standard errors of both, at worst."""
    found = []
    for rows in (x, law.sample(n, seeded(99)).x):
        centred = rows - rows.mean(0)
        products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
        every = torch.cat([rows, products], 1)
        found.append((every.mean(0), every.var(0) / len(rows)))
    (mean, error), (expected, further) = found
    return ((mean - expected) / (error + further).sqrt()).abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.2, 0.6])
def test_a_jump_from_the_law_leaves_its_distribution_as_it_is(law, t):
    # 16 + 256 standard normal figures: their greatest is above 4.5 in one draw of 500.
    denoiser = perfect(law)
    x = sample(denoiser, denoiser.schedule, (4000, 16), steps=40, generator=seeded(1), jump=t, jump_by="law",
               jump_law=law, dtype=torch.float64)  # fmt: skip
    assert moments_apart(x, law) < 4.5
    assert moments_apart(1.1 * x, law) > 4.5  # the figures can tell


@pytest.mark.parametrize("jump_by", ["law", "gaussian"])
def test_no_network_is_called_above_the_jump(law, jump_by):
    denoiser = perfect(law)
    t = jump_time(denoiser, law, law.sample(200, seeded()).x, denoiser.schedule, tolerance=1e-6)
    assert t < 0.01  # they agree everywhere
    denoiser.unet.calls = 0
    sample(denoiser, denoiser.schedule, (3, 16), "euler", 7, seeded(), jump=0.5, jump_by=jump_by, jump_law=law,
           dtype=torch.float64)  # fmt: skip
    assert denoiser.unet.calls == 8


@pytest.mark.slow
def test_the_gaussian_jump_leads_to_nearly_the_same_pictures(law):
    denoiser = perfect(law)
    arguments = {"shape": (200, 16), "steps": 150, "dtype": torch.float64, "jump_law": law}
    plain, *jumped = (
        sample(denoiser, denoiser.schedule, generator=seeded(), jump=t, **arguments) for t in (None, 0.7, 0.2)
    )
    apart = [(x - plain).norm(dim=1).median() / plain.norm(dim=1).median() for x in jumped]
    assert 0 < apart[0] < 0.02
    assert apart[0] < apart[1]


def test_the_loop_of_diffusers_goes_on_from_the_law(law):
    # A perfect network, DDIM with all its timesteps below the jump: the law's moments at the end.
    denoiser, scheduler = perfect(law), DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(100)
    timesteps = scheduler.timesteps[scheduler.timesteps <= 400]
    alpha = scheduler.alphas_cumprod[timesteps[0]].double()
    x = law.sample(4000, seeded(1), s=alpha.sqrt().item(), gamma=(1 - alpha).sqrt().item()).x.unflatten(1, SHAPE)
    for t in timesteps:
        noise = denoiser.unet(x, t.double().expand(len(x)))[0]
        x = scheduler.step(noise, t, x).prev_sample
    assert denoiser.unet.calls == len(timesteps) == 41
    assert moments_apart(x.flatten(1), law) < 4.5


def test_any_schedule_walks_with_the_network(law):
    denoiser = perfect(law)
    schedule = VPSchedule(t_min=1e-3, t_max=0.99)
    x, expected = (
        sample(each, schedule, (4, 16), steps=10, generator=seeded(), dtype=torch.float64) for each in (denoiser, law)
    )
    torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)
