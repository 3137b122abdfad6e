"""The linear autoencoder against scikit-learn's PCA and against the law of its subspace."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from molrmog import MoLRMoG
from molrmog.autoencoders import LinearAutoencoder


@pytest.mark.parametrize("rows", [12, 200])
def test_pca_is_that_of_scikit_learn(rows):
    x = np.random.default_rng(0).normal(size=(rows, 30)) * np.linspace(3, 1, 30) + 2.0
    ours = LinearAutoencoder.from_pca(x, 4, (2, 3, 5))
    theirs = PCA(4, svd_solver="full").fit(x)
    torch.testing.assert_close(ours.offset, torch.tensor(theirs.mean_))
    projector = torch.tensor(theirs.components_.T @ theirs.components_)
    torch.testing.assert_close(ours.basis @ ours.basis.T, projector)
    torch.testing.assert_close(ours.basis.T @ ours.basis, torch.eye(4).double())
    z = ours.encode(torch.tensor(x)) * ours.latent_scale
    torch.testing.assert_close(z.var(0, correction=1), torch.tensor(theirs.explained_variance_))  # largest first
    torch.testing.assert_close(
        ours.decode(ours.encode(torch.tensor(x))), torch.tensor(theirs.inverse_transform(theirs.transform(x)))
    )


def test_noised_rows_become_noised_latents():
    """The same noise, in the coordinates of the subspace; s and gamma one for each row."""
    x = torch.randn(40, 12).double() @ torch.randn(12, 12).double() + 1.0
    autoencoder = LinearAutoencoder.from_pca(x, 5)
    s, gamma, eps = torch.rand(40).double(), torch.rand(40).double(), torch.randn(40, 12).double()
    x_t = s[:, None] * x + gamma[:, None] * eps
    z_t, gamma_z = autoencoder.encode_noised(x_t, s, gamma)
    expected = s[:, None] * autoencoder.encode(x) + gamma_z[:, None] * (eps @ autoencoder.basis)
    torch.testing.assert_close(z_t, expected)
    one, gamma_one = autoencoder.encode_noised(x_t[:1], float(s[0]), float(gamma[0]))
    torch.testing.assert_close(one, z_t[:1])
    torch.testing.assert_close(gamma_one, gamma_z[0])


def test_denoising_in_the_latent_is_denoising_of_the_pixels():
    """A law on one subspace without noise off it: its denoiser is latent denoising between encode and decode."""
    law = MoLRMoG.random(9, (3,), (2,), noise=0.0, offset=1.0, seed=0, dtype=torch.float64).requires_grad_(False)
    part = law.subspace(0)
    autoencoder = LinearAutoencoder.from_subspace(part).standardise_(law.sample(100).x)
    latent = MoLRMoG(3, (3,), (2,), dtype=torch.float64).requires_grad_(False)
    latent.mean.copy_((part.means - autoencoder.latent_mean)[None] / autoencoder.latent_scale)
    latent.factor.copy_(torch.stack(part.factors)[None] / autoencoder.latent_scale)
    latent.mode_logits.copy_(part.mode_weights.log()[None])
    x_t = law.sample(50, s=0.7, gamma=0.5).x
    z_t, gamma_z = autoencoder.encode_noised(x_t, 0.7, 0.5)
    torch.testing.assert_close(autoencoder.decode(latent.denoise(z_t, 0.7, gamma_z)), law.denoise(x_t, 0.7, 0.5))


def test_nothing_is_trained_and_all_is_counted():
    autoencoder = LinearAutoencoder((2, 3), 4)
    assert autoencoder.linear
    assert autoencoder.num_parameters == 6 * 4 + 6
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_what_is_no_subspace_gets_one_line():
    x = torch.randn(5, 8)
    for make, match in [
        (lambda: LinearAutoencoder((3,), 4), "at most that"),
        (lambda: LinearAutoencoder.from_pca(x, 5), "PCA holds 1 to min"),
        (lambda: LinearAutoencoder.from_pca(x[:, :1] @ torch.randn(1, 8), 2), "vary in fewer than latent_dim = 2"),
        (lambda: LinearAutoencoder.from_basis(2 * torch.eye(3), torch.zeros(3)), "pass torch.linalg.qr"),
        (lambda: LinearAutoencoder.from_basis(torch.eye(3), torch.zeros(2)), "do not fit: pass"),
        (lambda: LinearAutoencoder.from_basis(torch.eye(4), torch.zeros(4), (2, 3)), "do not fit: pass"),
    ]:
        with pytest.raises(ValueError, match=match) as error:
            make()
        assert "\n" not in str(error.value)
