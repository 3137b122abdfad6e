"""Patches against torch's own unfold and fold, and against one dense Gaussian per patch."""

import pytest
import torch
from torch.nn.functional import fold, unfold

import molrmog
from molrmog import MoLRMoG, PatchDenoiser
from molrmog.denoisers.patches import patch_index, patches_of
from oracles.rounding import close

SHAPE = (2, 7, 6)
PICTURES = torch.randn(5, 2 * 7 * 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def a_law(dim, modes=3):
    law = MoLRMoG.random(dim, (3, 2), (modes, 1), noise=0.2, seed=0, dtype=torch.float64)
    return law.requires_grad_(False)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 3), (2, 2), (2, 1)])
def test_patches_and_their_average_are_those_of_unfold_and_fold(size, stride):
    shape = (2, 6, 6)
    x = PICTURES[:, : 2 * 6 * 6]
    law = a_law(2 * size * size)
    columns = unfold(x.unflatten(1, shape), size, stride=stride)  # (B, C P P, L)
    found = patch_index(shape, size, stride)
    torch.testing.assert_close(x[:, found].mT, columns)
    clean = law.denoise(columns.mT.flatten(0, 1), 0.8, 0.5).unflatten(0, (5, -1)).mT
    total, covered = (fold(part, (6, 6), size, stride=stride) for part in (clean, torch.ones_like(clean)))
    denoiser = PatchDenoiser(law, shape, size, stride)
    torch.testing.assert_close(denoiser.denoise(x, 0.8, 0.5), (total / covered).flatten(1))


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (4, 3), (6, 5)])
def test_every_pixel_is_covered(size, stride):
    index = patch_index(SHAPE, size, stride)
    assert set(index.flatten().tolist()) == set(range(2 * 7 * 6))
    assert len({tuple(row) for row in index.tolist()}) == len(index)


def test_one_patch_that_is_the_picture_is_the_law():
    law = a_law(2 * 6 * 6)
    x = PICTURES[:, : 2 * 6 * 6]
    s, gamma = torch.tensor([1.0, 0.9, 0.5, 0.3, 0.1]).double(), torch.tensor([0.1, 0.3, 0.5, 1.0, 2.0]).double()
    found, expected = PatchDenoiser(law, (2, 6, 6), 6).denoise(x, s, gamma), law.denoise(x, s, gamma)
    # The patch is a copy of a row of wider pictures: the same numbers in another layout. What is rounded is the log of
    # the gates, a sum of D squares over 2 gamma^2; a gate that is off by so many nats moves the answer by that share.
    nats = float((x.square().sum(1) / (2 * gamma.square())).max())
    close(found, expected, terms=law.dim, scale=nats * float(expected.abs().max()))


def test_all_modes_by_way_of_the_top_ones():
    law = a_law(8)
    s, gamma = torch.linspace(0.2, 1.0, 5).double(), torch.linspace(2.0, 0.1, 5).double()
    every, best = PatchDenoiser(law, SHAPE, 2), PatchDenoiser(law, SHAPE, 2, top=4)
    torch.testing.assert_close(best.denoise(PICTURES, s, gamma), every.denoise(PICTURES, s, gamma))
    fewer = PatchDenoiser(law, SHAPE, 2, top=1)
    assert not torch.allclose(fewer.denoise(PICTURES, 0.5, 0.5), every.denoise(PICTURES, 0.5, 0.5))


@pytest.mark.parametrize("top", [None, 1])
def test_no_pictures_and_gradients(top):
    denoiser = PatchDenoiser(a_law(8), SHAPE, 2, top=top)
    assert denoiser.denoise(PICTURES[:0], 0.5, 0.5).shape == (0, 84)
    x = PICTURES[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.denoise(x, 0.8, 0.5)[0, 10], x)
    every = PatchDenoiser(a_law(8), SHAPE, 2)
    step = torch.zeros_like(x)
    step[0, 11] = 1e-5
    slope = (every.denoise(PICTURES[:1] + step, 0.8, 0.5) - every.denoise(PICTURES[:1] - step, 0.8, 0.5))[0, 10] / 2e-5
    torch.testing.assert_close(gradient[0, 11], slope, rtol=1e-4, atol=1e-7)


def test_levels_of_rows_reach_their_own_patches():
    denoiser = PatchDenoiser(a_law(8), SHAPE, 2)
    s, gamma = torch.linspace(0.2, 1.0, 5).double(), torch.linspace(2.0, 0.1, 5).double()
    together = denoiser.denoise(PICTURES, s, gamma)
    for i in range(5):
        alone = denoiser.denoise(PICTURES[i : i + 1], float(s[i]), float(gamma[i]))
        torch.testing.assert_close(together[i : i + 1], alone)


def test_patches_are_drawn_from_all_places():
    x = torch.arange(2 * 42.0).reshape(2, 42)
    drawn = patches_of(x, (1, 7, 6), 2, 4000, torch.Generator().manual_seed(0))
    corners, counts = drawn[:, 0].unique(return_counts=True)
    assert len(corners) == 2 * 6 * 5
    assert int(counts.min()) > 30  # 67 expected
    torch.testing.assert_close(drawn - drawn[:, :1], torch.tensor([0.0, 1.0, 6.0, 7.0]).expand(4000, 4))


def test_it_comes_back_from_a_folder(tmp_path):
    denoiser = PatchDenoiser(a_law(8), SHAPE, 2, 2, top=2).eval()
    denoiser.save_pretrained(tmp_path)
    again = molrmog.load(tmp_path)
    assert torch.equal(again.denoise(PICTURES, 0.8, 0.5), denoiser.denoise(PICTURES, 0.8, 0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchDenoiser(a_law(9), SHAPE, 2), r"a law over R\^9 for patches of 8 numbers"),
        (lambda: PatchDenoiser(a_law(8), (42,), 2), "pass .C, H, W."),
        (lambda: PatchDenoiser(a_law(8), SHAPE, 2, top=0), "top = 0 modes of a MoLRMoG: pass 1 or more"),
        (lambda: patch_index(SHAPE, 7), "a size of at most H and W"),
        (lambda: patch_index(SHAPE, 2, 3), "a stride from 1 to that size"),
        (lambda: PatchDenoiser(a_law(8), SHAPE, 2).denoise(torch.zeros(1, 83), 1.0, 0.1), r"rows with shape \(B, 84\)"),
    ],
)
def test_a_bad_request_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
