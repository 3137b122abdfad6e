"""Pairs of encode and decode, one for each expert.

| class             | trained              | latent                    | reference                    |
| ----------------- | -------------------- | ------------------------- | ---------------------------- |
| LinearAutoencoder | no (a PCA, or a law) | coordinates in a subspace | arXiv 2601.01475, section 3  |
| MLPVAE            | yes                  | vector                    | arXiv 1312.6114              |
| ConvVAE           | yes                  | vector or small image     | arXiv 1312.6114              |
"""

from molrmog.autoencoders.base import Autoencoder
from molrmog.autoencoders.linear import LinearAutoencoder
from molrmog.autoencoders.loading import build_autoencoder, load_autoencoder
from molrmog.autoencoders.vae import MLPVAE, VAE, ConvVAE, VAELoss

__all__ = [
    "MLPVAE",
    "VAE",
    "Autoencoder",
    "ConvVAE",
    "LinearAutoencoder",
    "VAELoss",
    "build_autoencoder",
    "load_autoencoder",
]
