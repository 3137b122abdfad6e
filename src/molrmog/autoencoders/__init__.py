"""Pairs of encode and decode, one for each expert.

| class                 | trained                       | latent                    | reference                       |
| --------------------- | ----------------------------- | ------------------------- | ------------------------------- |
| LinearAutoencoder     | no: a PCA, or a law's basis   | coordinates in a subspace | arXiv 2601.01475, section 3     |
| MLPVAE                | with VAELoss                  | vector                    | arXiv 1312.6114                 |
| ConvVAE               | with VAELoss                  | vector or small image     | arXiv 1312.6114                 |
| LoRAExperts           | adapters alone, with LoRALoss | that of the shared one    | arXiv 2106.09685                |
| PretrainedAutoencoder | no: a folder of diffusers     | small image               | arXiv 2112.10752                |
| TAEF2                 | no: two weight files          | 32 channels, side / 8     | github.com/madebyollin/taesd    |
"""

from molrmog.autoencoders.base import Autoencoder, AutoencoderList
from molrmog.autoencoders.linear import LinearAutoencoder
from molrmog.autoencoders.loading import Autoencoders, build_autoencoder, build_autoencoders, load_autoencoder
from molrmog.autoencoders.lora import LoRAExpert, LoRAExperts, LoRALoss
from molrmog.autoencoders.pretrained import TAEF2, PretrainedAutoencoder
from molrmog.autoencoders.vae import MLPVAE, VAE, ConvVAE, VAELoss

__all__ = [
    "MLPVAE",
    "TAEF2",
    "VAE",
    "Autoencoder",
    "AutoencoderList",
    "Autoencoders",
    "ConvVAE",
    "LinearAutoencoder",
    "LoRAExpert",
    "LoRAExperts",
    "LoRALoss",
    "PretrainedAutoencoder",
    "VAELoss",
    "build_autoencoder",
    "build_autoencoders",
    "load_autoencoder",
]
