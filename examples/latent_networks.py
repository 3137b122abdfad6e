"""The paper's networks in the same latents, on the handwritten digits: python examples/latent_networks.py [STEPS].

One principal subspace of 16 dimensions per class; a MoG network and one Gaussian per expert, one MLP for all. Run again
it goes on where it was stopped. Several processes: torchrun --standalone --nproc_per_node 2 examples/latent_networks.py
"""

import json
import sys
from pathlib import Path

import torch

import molrmog
from molrmog.autoencoders import LinearAutoencoder
from molrmog.learning.starts import mog_start

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
data = molrmog.load_data("digits")
x, expert = torch.as_tensor(data.x), torch.as_tensor(data.labels)
held = torch.arange(len(x)) % 5 == 0  # a fifth of the rows judges

autoencoders = [LinearAutoencoder.from_pca(x[(expert == k) & ~held], 16, data.shape) for k in range(10)]
z = torch.empty(len(x), 16)
for k, autoencoder in enumerate(autoencoders):
    z[expert == k] = autoencoder.encode_data(x[expert == k])

torch.manual_seed(0)
owned = [z[(expert == k) & ~held] for k in range(10)]
networks = {
    "mog": molrmog.PerExpert([molrmog.MoGDenoiser(mog_start(own, 16, modes=4, start="em")) for own in owned]),
    "molrg": molrmog.PerExpert([molrmog.GaussianDenoiser.from_moments(own.mean(0), own.T.cov()) for own in owned]),
    "mlp": molrmog.MLPDenoiser(16, width=64, experts=10),
}
schedule = molrmog.VPSchedule()
for name, network in networks.items():
    out = Path("runs/latent_networks", f"{name}-{steps}")
    molrmog.train(
        network,
        z[~held],
        schedule,
        steps=steps,
        out=out,
        experts=expert[~held],
        validation=z[held],
        validation_experts=expert[held],
        sigma_data=1.0,
        ema_decay=0.99,
        validate_every=steps,
    )
    model = molrmog.Experts(autoencoders, network.cpu(), weights=expert.bincount())
    model.save_pretrained(out / "model")  # molrmog.sample_experts(molrmog.load(out / "model"), schedule, 64).x
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [record["loss"] for record in records if record["kind"] == "validation"]
    print(f"{name:6}{network.num_parameters:8,} parameters, held-out loss {first:.3f} at first, {last:.3f} trained")
