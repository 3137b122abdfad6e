"""A law in front of a pipeline of diffusers that was never trained with it.

    python examples/jump_into_a_pipeline.py [800]

Trains a small DDPMPipeline on the handwritten digits with nothing but diffusers (skipped where its folder exists),
reads it again from disk, fits a law to the same rows, finds the noise level from which on the law denoises held-out
rows as well as the network, and starts there: the network is not called above.
"""

# ruff: noqa: E402  (--help is answered before the heavy imports)

import argparse

parser = argparse.ArgumentParser(description="A law in front of a pipeline of diffusers, on the handwritten digits.")
parser.add_argument("steps", type=int, nargs="?", default=800, help="of training the pipeline; below 100 a quick look")
STEPS = parser.parse_args().steps
if STEPS < 1:
    parser.error(f"{STEPS} steps: pass 1 or more")

import math
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

import molrmog
from molrmog import metrics
from molrmog.pictures import grid

QUICK = STEPS < 100
NUM = 20 if QUICK else 1000  # samples behind each Fréchet distance
OUT = Path("runs/jump_into_a_pipeline")
data, test = molrmog.load_data("digits"), molrmog.load_data("digits", split="test")
data, held = data.split(0.15)  # `held` chooses the level, `test` judges the samples
x, probe = torch.as_tensor(data.x), held.x[:20] if QUICK else held.x


def train_with_diffusers(folder):
    """Epsilon prediction as diffusers' own examples do it."""
    torch.manual_seed(0)
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 8}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(16, 32), layers_per_block=1, **plain)
    scheduler, optimiser = DDPMScheduler(), torch.optim.AdamW(unet.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, STEPS + 1)
    for _ in range(STEPS):
        x_0 = x[torch.randint(len(x), (128,))].view(-1, *data.shape)
        eps, t = torch.randn_like(x_0), torch.randint(1000, (128,))
        loss = (unet(scheduler.add_noise(x_0, eps, t), t).sample - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    DDPMPipeline(unet.eval(), scheduler).save_pretrained(folder)


def lowest_time(base):
    """From which on, up to pure noise, `base` denoises held-out rows as well as the network does, to 5%."""
    best = schedule.t_max
    for level in reversed(metrics.agreement(denoiser, base, probe, schedule, times=48)):
        if level.law_loss > 1.05 * level.loss:
            break
        best = schedule.time(2 * math.log(level.s / level.gamma))
    return min(max(best, 0.1), 0.9)  # leave something for the network to do, and for the law


def distance(rows):
    """Fréchet distance to the test rows."""
    return metrics.frechet_distance(features(rows.clamp(-1, 1)), reference)


def by_molrmog(evaluations, jump=None, jump_by="law"):
    """Samples (NUM, D) by DPM-Solver++(2M), from pure noise or from a jump."""
    draw = torch.Generator().manual_seed(0)
    arguments = {"jump": jump, "jump_by": jump_by, "jump_law": law}
    return molrmog.sample(denoiser, schedule, (NUM, denoiser.dim), "dpm++", evaluations - 1, draw, **arguments)


def by_diffusers(steps, jump=None):
    """The loop of a DDIMPipeline, begun at the first of its timesteps below the jump."""
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    draw = torch.Generator().manual_seed(0)
    timesteps, images = scheduler.timesteps, torch.randn(NUM, *data.shape, generator=draw)
    if jump is not None:
        timesteps = timesteps[timesteps <= schedule.timestep(jump)]
        alpha = float(scheduler.alphas_cumprod[timesteps[0]])
        images = law.sample(NUM, draw, s=alpha**0.5, gamma=(1 - alpha) ** 0.5).x.view(-1, *data.shape)
    with torch.no_grad():
        for t in timesteps:
            images = scheduler.step(denoiser.unet(images, t).sample, t, images).prev_sample
    return len(timesteps), images.flatten(1)


folder = OUT / f"pipeline-{STEPS}"
if not (folder / "model_index.json").is_file():
    print(f"training a pipeline with diffusers, {STEPS} steps ...", flush=True)
    train_with_diffusers(folder)
denoiser = molrmog.DiffusersDenoiser.from_pretrained(folder)
schedule = denoiser.schedule
print("fitting a law ...", flush=True)
law = molrmog.fit(data, labels=data.labels, latent_dim=16, modes=2, noise="isotropic")

print("comparing the two on held-out rows ...", flush=True)
jump, gaussian_jump = lowest_time(law), lowest_time(law.moment_matched())
agree = metrics.jump_time(denoiser, law, probe, schedule, tolerance=0.05)
print(f"network and law say the same, to 5% of the network's error, from t = {agree} up")
print(f"the law denoises as well as the network from t = {jump:.2f}, timestep {schedule.timestep(jump):.0f} of 999")
print(f"its moment-matched Gaussian from t = {gaussian_jump:.2f}")

print(f"drawing {NUM} samples at a time and measuring them ...", flush=True)
features = metrics.ClassifierFeatures(data, test, steps=50 if QUICK else None)
reference = features(test.x)
own = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:NUM]]
print(
    f"\nFréchet distance of {NUM} samples to the test rows, {features.name}; training rows {distance(own):.1f}, ",
    end="",
)
print(f"the law alone {distance(law.sample(NUM, torch.Generator().manual_seed(0)).x):.1f}")
print("\nnetwork evaluations, DPM-Solver++   from noise   Gaussian's jump   law's jump")
for evaluations in (4, 5, 7, 10, 15, 20):
    starts = (by_molrmog(evaluations, *start) for start in ((), (gaussian_jump, "gaussian"), (jump,)))
    plain, gaussian, from_law = (distance(rows) for rows in starts)
    print(f"{evaluations:33} {plain:12.1f} {gaussian:17.1f} {from_law:12.1f}")
print("\ntimesteps of DDIMScheduler   evaluations, from noise   evaluations, law's jump")
for steps in (20, 50):
    (whole, plain), (rest, from_law) = (
        (n, distance(rows)) for n, rows in (by_diffusers(steps), by_diffusers(steps, jump))
    )
    print(f"{steps:26} {whole:13}: {plain:9.1f} {rest:13}: {from_law:9.1f}")

rows = [by_molrmog(10), by_molrmog(10, gaussian_jump, "gaussian"), by_molrmog(10, jump)]
pictures = torch.cat([each[:20].clamp(-1, 1) for each in rows])
grid(data.to_images(pictures), columns=20).save(OUT / "samples.png")
print(f"\nfrom noise, by the Gaussian's jump, from the law, 10 evaluations each: {OUT / 'samples.png'}")
