import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from molrmog.data import Layout
from molrmog.metrics import LPIPS, PairDistance

FIRE = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
FIRE |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
CHANNELS = (64, 128, 256, 384, 384, 512, 512)

GREY = Layout(name="grey", shape=(1, 20, 20), scale=2 / 255, shift=-1.0, levels=256)
# Features of one picture at two places of a batch are unit vectors in float32, and a distance is their difference
# squared: 256 roundings of an entry stay below this; a fifth of a grey level is 5e-5.
ROUNDING = (256 * torch.finfo(torch.float32).eps) ** 2
COLOUR = Layout(name="colour", shape=(3, 40, 48), scale=2 / 255, shift=-1.0, levels=256)


def random_features(generator):
    tensors = {"0.weight": torch.randn(64, 3, 3, 3, generator=generator) / 5, "0.bias": torch.zeros(64)}
    for i, (channels, squeezed, expanded) in FIRE.items():
        for part, (out, into, side) in {
            "squeeze": (squeezed, channels, 1),
            "expand1x1": (expanded, squeezed, 1),
            "expand3x3": (expanded, squeezed, 3),
        }.items():
            scale = (2 / (into * side**2)) ** 0.5
            tensors[f"{i}.{part}.weight"] = scale * torch.randn(out, into, side, side, generator=generator)
            tensors[f"{i}.{part}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random features and heads in the published key layout."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "lpips"
    folder.mkdir()
    save_file(random_features(generator), folder / "squeezenet1_1_features.safetensors")
    heads = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for k, c in enumerate(CHANNELS)}
    save_file(heads, folder / "lpips_v0.1_squeeze_lin.safetensors")
    return folder / "squeezenet1_1_features.safetensors", folder / "lpips_v0.1_squeeze_lin.safetensors"


@pytest.fixture(scope="module")
def true_files():
    folder = Path(os.environ.get("MOLRMOG_WEIGHTS_DIR", "none")) / "lpips"
    files = folder / "squeezenet1_1_features.safetensors", folder / "lpips_v0.1_squeeze_lin.safetensors"
    if not all(file.is_file() for file in files):
        pytest.skip("needs MOLRMOG_WEIGHTS_DIR with the published weights")
    return files


def levels(rows, layout, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, layout.dim)) * layout.scale + layout.shift


def photograph(side):
    """Two shifted crops of a photograph that ships with scikit-learn, and noise, as rows of a layout."""
    from sklearn.datasets import load_sample_image

    picture = load_sample_image("china.jpg").transpose(2, 0, 1)
    crops = [picture[:, 100 + at : 100 + at + side, 200 : 200 + side] for at in (0, 2)]
    crops.append(np.random.default_rng(0).integers(0, 256, crops[0].shape))
    layout = Layout(name="photograph", shape=(3, side, side), scale=2 / 255, shift=-1.0, levels=256)
    return layout, np.stack(crops).reshape(3, -1) * layout.scale + layout.shift


def by_formula(x, y, layout, files):
    """Equation 1 in float64 from the tables of the architecture, for colour pictures that need no enlarging."""
    t, heads = ({key: value.double() for key, value in load_file(file).items()} for file in files)

    def stages(rows):
        u = torch.from_numpy((rows - layout.shift) / layout.scale / 255).double().reshape(-1, *layout.shape)
        shift, scale = (
            torch.tensor(v).double()[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.45])
        )
        f = (2 * u - 1 - shift) / scale
        f = functional.conv2d(f, t["0.weight"], t["0.bias"], stride=2).relu()
        yield f
        for i in (3, 4, 6, 7, 9, 10, 11, 12):
            if i in (3, 6, 9):
                f = functional.max_pool2d(f, 3, 2, ceil_mode=True)
            f = functional.conv2d(f, t[f"{i}.squeeze.weight"], t[f"{i}.squeeze.bias"]).relu()
            one = functional.conv2d(f, t[f"{i}.expand1x1.weight"], t[f"{i}.expand1x1.bias"])
            three = functional.conv2d(f, t[f"{i}.expand3x3.weight"], t[f"{i}.expand3x3.bias"], padding=1)
            f = torch.cat([one, three], 1).relu()
            if i in (4, 7, 9, 10, 11, 12):
                yield f

    total = torch.zeros(len(x)).double()
    for k, (f, g) in enumerate(zip(stages(x), stages(y), strict=True)):
        q = heads[f"lin{k}.model.1.weight"].flatten()
        _, _, height, width = f.shape
        for row in range(len(x)):
            for h in range(height):
                for w in range(width):
                    a, b = f[row, :, h, w], g[row, :, h, w]
                    a, b = a / max(float(a.norm()), 1e-300), b / max(float(b.norm()), 1e-300)
                    total[row] += (q * (a - b) ** 2).sum() / (height * width)
    return total


def test_distances_follow_the_formula(files):
    x, y = levels(2, COLOUR), levels(2, COLOUR, seed=1)
    lpips = LPIPS(COLOUR, *files, size=40)
    expected = by_formula(x, y, COLOUR, files)
    torch.testing.assert_close(lpips.distance(x, y).double(), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.min()) > 0.01


def test_true_weights_follow_the_formula_and_rank_as_eyes_do(true_files):
    layout, (x, shifted, noise) = photograph(64)
    lpips = LPIPS(layout, *true_files)
    near, far = lpips.distance(np.stack([x, x]), np.stack([shifted, noise]))
    torch.testing.assert_close(far.double(), by_formula(x[None], noise[None], layout, true_files)[0], rtol=1e-4, atol=0)
    assert 0.0 < float(near) < 0.5 * float(far)


def test_distances_agree_with_torchmetrics(files, monkeypatch):
    peer_module = pytest.importorskip("torchmetrics.functional.image.lpips")
    layout, rows = photograph(72)
    lpips = LPIPS(layout, *files)
    # Its network comes from torchvision; the stack that is tested above stands in.
    monkeypatch.setattr(peer_module, "_get_tv_model_features", lambda *_: lpips._net.network)
    peer = peer_module._LPIPS(pretrained=False, net="squeeze")
    peer.load_state_dict(load_file(files[1]), strict=False)
    pictures = torch.from_numpy(rows).float().reshape(3, 3, 72, 72)
    x, y = rows[[0, 0, 1]], rows[[1, 2, 2]]
    expected = peer(pictures[[0, 0, 1]], pictures[[1, 2, 2]]).flatten()
    torch.testing.assert_close(lpips.distance(x, y), expected, rtol=1e-4, atol=1e-6)


def test_the_distance_is_symmetric_and_zero_between_equal_pictures(files):
    x, y = levels(5, GREY), levels(5, GREY, seed=1)
    lpips = LPIPS(GREY, *files, size=32)
    torch.testing.assert_close(lpips.distance(x, y), lpips.distance(y, x))
    assert float(lpips.distance(x, x + 0.2 * GREY.scale).max()) < ROUNDING  # saved alike
    assert float(lpips.distance(x, y).min()) > 0.0


def test_small_grey_pictures_are_enlarged_and_repeated_over_channels(files):
    x, y = levels(2, GREY), levels(2, GREY, seed=1)
    lpips = LPIPS(GREY, *files, size=40)
    assert lpips.name == "LPIPS 0.1 (SqueezeNet) at 20 px enlarged to 40"

    def enlarged(rows):  # by hand: real levels, so the oracle's layout maps [0, 1] to itself
        u = torch.from_numpy((rows - GREY.shift) / GREY.scale / 255).reshape(-1, 1, 20, 20)
        return functional.interpolate(u, (40, 40), mode="bilinear").expand(-1, 3, -1, -1).flatten(1).numpy()

    unit = Layout(name="unit", shape=(3, 40, 40), scale=1 / 255, levels=256)
    expected = by_formula(enlarged(x), enlarged(y), unit, files)
    torch.testing.assert_close(lpips.distance(x, y).double(), expected, rtol=1e-4, atol=1e-6)


def test_rows_do_not_see_one_another(files):
    x, y = levels(7, GREY), levels(7, GREY, seed=1)
    lpips = LPIPS(GREY, *files, size=32)
    whole = lpips.distance(x, y)
    lpips._net.chunk = 4
    torch.testing.assert_close(lpips.distance(x, y), whole)


# Diversity and reconstruction


def test_diversity_over_all_pairs_of_two_kinds_is_what_it_must_be(files):
    a, b = levels(1, GREY), levels(1, GREY, seed=1)
    lpips = LPIPS(GREY, *files, size=32)
    apart = float(lpips.distance(a, b)[0])
    x, labels = np.concatenate([a] * 30 + [b] * 30), np.repeat([3, 8], 30)
    found = lpips.diversity(x, labels)
    # Kinds differ in 30/59 of all pairs; 30 pairs are there, and each distance is either 0 or `apart`.
    share = found.mean / apart
    assert found.pairs == 30
    assert share == pytest.approx(30 / 59, abs=4 * 0.5 / 30**0.5)
    assert found.standard_error == pytest.approx(apart * (share * (1 - share) / 29) ** 0.5, rel=1e-4)
    assert found.within.keys() == {3, 8}
    for each in found.within.values():
        assert each == PairDistance(pytest.approx(0, abs=ROUNDING), pytest.approx(0, abs=ROUNDING), 15)


def test_diversity_pairs_each_sample_once(files, monkeypatch):
    lpips = LPIPS(GREY, *files, size=32)
    x = np.arange(9.0)[:, None].repeat(GREY.dim, 1)
    seen = []
    monkeypatch.setattr(lpips, "distance", lambda x, y: seen.append((x[:, 0], y[:, 0])) or torch.ones(len(x)))
    assert lpips.diversity(x).pairs == 4
    assert lpips.diversity(x, pairs=2).pairs == 2
    assert lpips.diversity(x, torch.tensor([0, 0, 0, 0, 0, 5, 5, 5, 7])).within.keys() == {
        0,
        5,
    }  # one alone has no pair
    for left, right in seen:
        together = np.concatenate([left, right])
        assert len(np.unique(together)) == len(together)
    again = lpips.diversity(x, seed=1) and seen[-1]
    assert not np.array_equal(again[0], seen[0][0])
    assert set(seen[2][0]) | set(seen[2][1]) <= set(range(5))


def test_reconstruction_is_the_mean_with_its_error(files):
    x, y = levels(6, GREY), levels(6, GREY, seed=1)
    lpips = LPIPS(GREY, *files, size=32)
    found, each = lpips.reconstruction(x, y), lpips.distance(x, y).numpy()
    assert (found.mean, found.pairs) == (pytest.approx(each.mean(), rel=1e-5), 6)
    assert found.standard_error == pytest.approx(each.std(ddof=1) / 6**0.5, rel=1e-4)
    assert math.isnan(lpips.reconstruction(x[:1], y[:1]).standard_error)


# Errors


def test_weights_are_found_in_their_folder_or_the_message_tells_the_mend(files, monkeypatch):
    monkeypatch.setenv("MOLRMOG_WEIGHTS_DIR", str(files[0].parent.parent))
    x, y = levels(2, GREY), levels(2, GREY, seed=1)
    torch.testing.assert_close(LPIPS(GREY).distance(x, y), LPIPS(GREY, *files).distance(x, y), rtol=0, atol=0)
    monkeypatch.delenv("MOLRMOG_WEIGHTS_DIR")
    with pytest.raises(FileNotFoundError, match="set MOLRMOG_WEIGHTS_DIR"):
        LPIPS(GREY, files[0])
    with pytest.raises(ValueError, match="does not hold the linear heads"):
        LPIPS(GREY, files[0], files[0])


def test_arguments_that_do_not_fit_are_refused(files):
    lpips = LPIPS(GREY, *files, size=32)
    x = levels(4, GREY)
    with pytest.raises(ValueError, match="4 rows and y 3"):
        lpips.distance(x, x[:3])
    with pytest.raises(ValueError, match="columns"):
        lpips.distance(x, x[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        lpips.distance(x, x * np.nan)
    with pytest.raises(ValueError, match="at least 2"):
        lpips.diversity(x[:1])
    with pytest.raises(ValueError, match="one per sample"):
        lpips.diversity(x, np.zeros(3, int))
    with pytest.raises(ValueError, match="pairs"):
        lpips.diversity(x, pairs=0)
    with pytest.raises(ValueError, match="needs images"):
        LPIPS(Layout(name="rows", shape=(5,)), *files)
