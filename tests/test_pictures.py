import io

import numpy as np
import pytest
import torch

from molrmog import MoLRMoG, pictures
from molrmog.data import Layout

GREY = Layout(name="grey", shape=(1, 2, 3), scale=2 / 255, shift=-1.0, levels=256)
COLOUR = Layout(name="colour", shape=(3, 2, 2), scale=2 / 255, shift=-1.0, levels=256)
ROWS = Layout(name="rows", shape=(5,))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_grid_puts_every_picture_in_its_cell(channels):
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 3, *channels), dtype=np.uint8)
    picture = np.asarray(pictures.grid(images, columns=2))
    factor = picture.shape[0] // (3 * 4 + 2)
    small = picture[::factor, ::factor]
    assert small.shape[:2] == (3 * 4 + 2, 2 * 3 + 1)
    for i in range(5):
        top, left = (i // 2) * 5, (i % 2) * 4
        np.testing.assert_array_equal(small[top : top + 4, left : left + 3], images[i])
    with pytest.raises(ValueError, match="at least one"):
        pictures.grid(images[:0])


def test_directions_show_their_sign():
    (drawn,) = pictures.signed_images(np.array([[1.0, -1.0, 0.0, 0.5, 0.0, 0.0]]), GREY)
    assert drawn[0, 0, 0] > drawn[0, 0, 2]  # red
    assert drawn[0, 1, 2] > drawn[0, 1, 0]  # blue
    assert drawn[0, 2].tolist() == [255, 255, 255]
    (drawn,) = pictures.signed_images(np.eye(12)[:1], COLOUR)
    assert drawn[0, 0].tolist() == [255, 128, 128]


def test_principal_directions_are_those_of_the_subspaces_covariance():
    law = MoLRMoG.random(dim=7, latent_dims=(3,), modes=(4,), noise=0.0, seed=1, dtype=torch.float64)
    directions, deviations = pictures.principal_directions(law.subspace(0), 2)
    x = law.sample(200_000, torch.Generator().manual_seed(0)).x
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    np.testing.assert_allclose(deviations, np.sqrt(values[::-1][:2]), rtol=0.01)
    np.testing.assert_allclose(np.abs(np.sum(directions * vectors[:, ::-1][:, :2].T, 1)), 1.0, atol=1e-3)


@pytest.mark.parametrize("layout", [GREY, COLOUR, ROWS, Layout(name="one", shape=(1,))])
def test_samples_become_a_picture_file(layout):
    from PIL import Image

    x = np.random.default_rng(0).normal(size=(9, layout.dim))
    for real in (None, x, x[:1]):
        picture = Image.open(io.BytesIO(pictures.samples_picture(layout, x, real)))
        assert picture.format == "PNG"
        assert min(picture.size) > 50


def test_a_logarithmic_axis_says_plain_numbers():
    fig, (axis,) = pictures.figure(4, 3)
    axis.plot([15, 400], [900, 6000])
    pictures.logarithmic(axis)
    fig.draw_without_rendering()
    shown = [label.get_text() for label in axis.get_xticklabels() if 15 <= label.get_position()[0] <= 400]
    assert shown == ["20", "50", "100", "200"]
    assert "5,000" in [label.get_text() for label in axis.get_yticklabels()]
    assert not axis.get_xticklabels(minor=True)
