import dataclasses
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from molrmog.data import Dataset, Layout, load
from molrmog.metrics import ClassifierFeatures, NamedFeatures, PixelPCA, SqueezeNetFeatures, features


@pytest.fixture(scope="module")
def digits():
    return load("digits", split="train"), load("digits", split="test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(digits, cache):
    return ClassifierFeatures(*digits, steps=200, cache_dir=cache)


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(features, "_train", refuse)


def small(x, labels, name="rows"):
    return Dataset(name=name, shape=(x.shape[1],), x=x.astype(np.float32), labels=labels)


def two_blobs(rows=60, dim=5):
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 2 * 7  # labels need not be 0..C-1
    return small(rng.standard_normal((rows, dim)) + labels[:, None], labels)


# Pixels through PCA


def test_pca_coordinates_agree_with_scikit_learn_up_to_sign(digits):
    train, test = digits
    space = PixelPCA(train.x, dim=10)
    peer = PCA(10, svd_solver="full").fit(train.x.astype(np.float64))
    np.testing.assert_allclose(np.abs(space(test.x).numpy()), np.abs(peer.transform(test.x)), atol=1e-4)
    assert space.explained == pytest.approx(peer.explained_variance_ratio_.sum(), rel=1e-5)


def test_all_components_keep_all_distances():
    x = np.random.default_rng(0).standard_normal((50, 6))
    space = PixelPCA(x, dim=64)
    assert space.name == "6 principal components of the training rows"
    torch.testing.assert_close(torch.pdist(space(x)), torch.pdist(torch.from_numpy(x)))


def test_constant_rows_have_a_space():
    space = PixelPCA(np.ones((10, 3)), dim=2)
    assert space.explained == 0.0
    assert float(space(np.ones((4, 3))).abs().max()) == 0.0


# The classifier


def test_the_classifier_learns_the_digits(digits, trained):
    train, test = digits
    assert trained.accuracy > 0.9
    found = trained(test.x)
    assert found.shape == (len(test.x), 64)
    assert "digits" in trained.name
    # The features, not only the logits, tell the classes apart: nearest class mean.
    means = torch.stack([trained(train.x[train.labels == c]).mean(0) for c in range(10)])
    assert (torch.cdist(found, means).argmin(1).numpy() == test.labels).mean() > 0.9


def test_the_cache_is_used_again(digits, trained, cache, no_training):
    again = ClassifierFeatures(*digits, steps=200, cache_dir=cache)
    torch.testing.assert_close(again(digits[1].x), trained(digits[1].x), rtol=0, atol=0)
    assert (again.accuracy, again.seconds) == (trained.accuracy, trained.seconds)


@pytest.mark.parametrize("change", ["rows", "labels", "seed", "features"])
def test_other_data_or_settings_are_another_classifier(change, tmp_path, no_training, monkeypatch):
    data = two_blobs()
    with monkeypatch.context() as patch:
        patch.setattr(features, "_train", lambda *_: None)
        ClassifierFeatures(data, cache_dir=tmp_path)
    ClassifierFeatures(data, cache_dir=tmp_path)
    options = {"seed": {"seed": 1}, "features": {"features": 32}}.get(change, {})
    if change == "rows":
        data = dataclasses.replace(data, x=data.x + np.float32(1e-3))
    if change == "labels":
        data = dataclasses.replace(data, labels=data.labels[::-1].copy())
    with pytest.raises(AssertionError, match="trained again"):
        ClassifierFeatures(data, cache_dir=tmp_path, **options)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "other tensors"])
def test_a_damaged_cache_is_trained_again_with_a_warning(damage, tmp_path):
    data = two_blobs()
    first = ClassifierFeatures(data, steps=20, cache_dir=tmp_path)
    (path,) = tmp_path.rglob("model.safetensors")
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"not a model")
    else:
        save_file({"head.weight": torch.zeros(2, 2)}, path)
    torch.rand(1)  # the caller's random state must not matter
    with pytest.warns(UserWarning, match="damaged"):
        second = ClassifierFeatures(data, steps=20, cache_dir=tmp_path)
    torch.testing.assert_close(second(data.x), first(data.x), rtol=0, atol=0)  # one seed, one network
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClassifierFeatures(data, steps=20, cache_dir=tmp_path)  # mended


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="MOLRMOG_CACHE"):
        space = ClassifierFeatures(two_blobs(), steps=20, cache_dir=tmp_path / "file")
    assert space.accuracy > 0.9


def test_the_environment_names_the_cache_and_the_random_state_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MOLRMOG_CACHE", str(tmp_path))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ClassifierFeatures(two_blobs(), steps=5)
    torch.testing.assert_close(torch.rand(3), expected)
    assert list(tmp_path.rglob("model.safetensors"))


def test_a_classifier_needs_labels_of_two_classes(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(ValueError, match="needs labels"):
        ClassifierFeatures(small(x, None), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="two classes"):
        ClassifierFeatures(small(x, np.zeros(20, int)), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="shape"):
        ClassifierFeatures(two_blobs(dim=5), two_blobs(dim=4), cache_dir=tmp_path)


# SqueezeNet

FIRE = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
FIRE |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}


def published_keys():
    """Keys and shapes of the published weights, from the architecture's table."""
    shapes = {"0.weight": (64, 3, 3, 3), "0.bias": (64,)}
    for i, (channels, squeezed, expanded) in FIRE.items():
        for part, shape in (
            ("squeeze", (squeezed, channels, 1, 1)),
            ("expand1x1", (expanded, squeezed, 1, 1)),
            ("expand3x3", (expanded, squeezed, 3, 3)),
        ):
            shapes |= {f"{i}.{part}.weight": shape, f"{i}.{part}.bias": shape[:1]}
    return shapes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, shape in published_keys().items():
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        tensors[key] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(tensors, path)
    return path


GREY = Layout(name="grey", shape=(1, 20, 20), scale=2 / 255, shift=-1.0, levels=256)
COLOUR = Layout(name="colour", shape=(3, 20, 20), scale=2 / 255, shift=-1.0, levels=256)


def levels(rows, layout, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, layout.dim)) * layout.scale + layout.shift


def test_squeezenet_has_the_published_number_of_parameters(weights):
    space = SqueezeNetFeatures(GREY, weights, size=32)
    assert sum(p.numel() for p in space.network.parameters()) == 722_496
    found = space(levels(3, GREY))
    assert found.shape == (3, 512)
    assert float(found.std(0).min()) >= 0.0
    assert float(found.std()) > 0.0


def test_a_grey_picture_is_three_equal_channels(weights):
    x = levels(4, GREY)
    grey, colour = (SqueezeNetFeatures(layout, weights, size=32) for layout in (GREY, COLOUR))
    torch.testing.assert_close(colour(np.tile(x, 3)), grey(x))


def test_channels_are_in_the_order_red_green_blue(weights, tmp_path):
    from safetensors.torch import load_file

    tensors = load_file(weights)
    tensors["0.weight"] = tensors["0.weight"].flip(1)
    save_file(tensors, tmp_path / "flipped.safetensors")
    x = levels(2, COLOUR).reshape(2, 3, -1)
    space, flipped = (SqueezeNetFeatures(COLOUR, w, size=32) for w in (weights, tmp_path / "flipped.safetensors"))
    mean, deviation = space._mean, space._deviation
    # Reversed weights see the reversed picture alike once the constants, which differ by channel, are reversed too.
    flipped._mean, flipped._deviation = mean.flip(0), deviation.flip(0)
    torch.testing.assert_close(flipped(x[:, ::-1].reshape(2, -1).copy()), space(x.reshape(2, -1)))
    assert not torch.allclose(space(x[:, ::-1].reshape(2, -1).copy()), space(x.reshape(2, -1)))


def test_a_constant_picture_of_the_imagenet_mean_gives_features_of_the_biases(weights, tmp_path):
    from safetensors.torch import load_file

    tensors = {key: torch.zeros_like(t) if key.endswith("bias") else t for key, t in load_file(weights).items()}
    save_file(tensors, tmp_path / "unbiased.safetensors")
    space = SqueezeNetFeatures(COLOUR, tmp_path / "unbiased.safetensors", size=64)
    level = np.rint(np.array([0.485, 0.456, 0.406]) * 255) * COLOUR.scale + COLOUR.shift
    flat = space(np.repeat(level, 400)[None])  # within half a grey level of the mean
    assert float(flat.norm()) < 0.02 * float(space(levels(1, COLOUR)).norm())


def test_rows_do_not_see_one_another_and_samples_are_judged_as_saved(weights):
    space = SqueezeNetFeatures(GREY, weights, size=32)
    x = levels(5, GREY)
    order = np.array([3, 1, 4, 0, 2])
    torch.testing.assert_close(space(x)[order], space(x[order]))
    torch.testing.assert_close(space(x + 0.2 * GREY.scale), space(x), rtol=0, atol=0)
    torch.testing.assert_close(space(np.full((1, 400), 3.0)), space(np.full((1, 400), 1.0)), rtol=0, atol=0)


@pytest.mark.parametrize(("side", "size", "scaled"), [((40, 48), 40, (40, 48)), ((10, 20), 24, (24, 48))])
def test_only_a_picture_whose_shorter_side_is_too_small_is_enlarged(side, size, scaled, weights):
    layout = Layout(name="wide", shape=(1, *side), scale=2 / 255, shift=-1.0, levels=256)
    x = levels(2, layout)
    space = SqueezeNetFeatures(layout, weights, size=size)
    pictures = torch.from_numpy((x - layout.shift) / layout.scale / 255).float().reshape(2, 1, *side)
    pictures = torch.nn.functional.interpolate(pictures, size=scaled, mode="bilinear").expand(-1, 3, -1, -1)
    stack = space.network((pictures - space._mean) / space._deviation)
    torch.testing.assert_close(space(x), stack.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_bad_weights_files_are_refused(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        SqueezeNetFeatures(GREY, tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("cut", "other"):
        with pytest.raises(ValueError, match="does not hold the feature stack"):
            SqueezeNetFeatures(GREY, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="needs images"):
        SqueezeNetFeatures(Layout(name="rows", shape=(5,)), weights)
    with pytest.raises(ValueError, match="17 pixels"):
        SqueezeNetFeatures(GREY, weights, size=16)


def test_weights_are_found_in_their_folder_and_the_name_tells_what_was_enlarged(weights, tmp_path, monkeypatch):
    (tmp_path / "lpips").mkdir()
    (tmp_path / "lpips" / "squeezenet1_1_features.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setenv("MOLRMOG_WEIGHTS_DIR", str(tmp_path))
    x = levels(2, GREY)
    torch.testing.assert_close(SqueezeNetFeatures(GREY)(x), SqueezeNetFeatures(GREY, weights)(x), rtol=0, atol=0)
    assert SqueezeNetFeatures(GREY).name == "SqueezeNet 1.1 at 20 px enlarged to 64"
    assert SqueezeNetFeatures(GREY, size=20).name == "SqueezeNet 1.1 at 20 px"
    monkeypatch.delenv("MOLRMOG_WEIGHTS_DIR")
    with pytest.raises(FileNotFoundError, match="set MOLRMOG_WEIGHTS_DIR"):
        SqueezeNetFeatures(GREY)


# The caller's own


def test_a_module_of_the_caller_is_used_in_eval_mode_and_in_blocks():
    x = np.random.default_rng(0).standard_normal((10, 4))
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    space = NamedFeatures("mine", module, chunk=3)
    torch.testing.assert_close(space(x), module[0](torch.from_numpy(x).float()).detach())
    assert space.name == "mine"


def test_a_function_that_does_not_return_features_is_refused():
    with pytest.raises(ValueError, match="mine must return"):
        NamedFeatures("mine", lambda x: x.sum(1))(np.zeros((3, 2)))
