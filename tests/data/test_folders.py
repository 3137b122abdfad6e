"""Folders of pictures: classes of any name, what is hidden, what is left out, transparency and frames."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from molrmog.data import load, load_parts

rng = np.random.default_rng(0)


def picture(path, image=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) if image is None else image
    Image.fromarray(image).save(path, **how)
    return image


def quietly(path, *words, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(path, *words, **how)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "car", "bus"),
        ("test", "exam"),
        ("val", "validation", "water"),
        ("label", "x", "0"),
        ("日本", "é à", "a.b", "A"),
        ("data", "images.parquet"),
    ],
)
def test_a_class_may_have_any_name(tmp_path, names):
    for name in names:
        for i in range(2):
            picture(tmp_path / name / f"{i}.png")
    data = load(tmp_path)
    assert data.classes == tuple(sorted(names))
    assert np.bincount(data.labels).tolist() == [2] * len(names)


def test_parts_are_parts_where_nothing_else_is_beside_them(tmp_path):
    for place in ("train/cat", "train/test", "test/cat", "val/dog"):
        picture(tmp_path / place / "a.png")
    assert load(tmp_path).classes == ("cat", "dog", "test")
    assert load(tmp_path, "test").labels.tolist() == [0]
    picture(tmp_path / "extra" / "b.png")
    with pytest.warns(UserWarning, match="1 pictures outside of train, val, test left out"):
        assert len(load(tmp_path)) == 2


@pytest.mark.parametrize("place", [".thumbs", "cat/.ipynb_checkpoints", "cat/deep/.hidden", ".a/b/c"])
def test_hidden_folders_are_passed_over_at_any_depth(tmp_path, place):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "cat" / "deep" / "b.png")
    picture(tmp_path / place / "copy.png")
    picture(tmp_path / "cat" / "._resource.png")
    data = load(tmp_path)
    assert (len(data), data.classes) == (2, ("cat",))


SUFFIXES = ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "webp", "gif", "tif", "tga", "ppm"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_pictures_of_all_suffixes_are_read(tmp_path, suffix, case):
    form = {"jpe": "JPEG", "jfif": "JPEG", "jpg": "JPEG"}.get(suffix)
    picture(tmp_path / f"a.{case(suffix)}", format=form)
    assert len(load(tmp_path)) == 1


def test_what_is_not_read_is_counted_in_one_line(tmp_path):
    picture(tmp_path / "a" / "1.png")
    for name in ("a/notes.txt", "a/more.txt", "a/clip.mp4", "b/only.txt", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("-")
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match=r"5 of 6 files left out: 3 \.txt, ") as said:
        data = load(tmp_path)
    (line,) = (str(each.message) for each in said)
    assert "1 .mp4" in line
    assert "1 without a suffix" in line
    assert "folders without pictures left out: b, empty" in line
    assert data.classes == ("a",)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB-key", "L-key"])
@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("grey", 128)])
def test_what_lies_under_transparency_does_not_show(tmp_path, mode, background, level):
    for i, hidden in enumerate((0, 255, 90)):
        layers = np.zeros((8, 8, 4), np.uint8)
        layers[..., :3] = hidden
        layers[2:5, 2:5] = (200, 200, 200, 255)
        whole = Image.fromarray(layers)
        if mode == "P":
            whole = whole.quantize(method=Image.Quantize.FASTOCTREE)
        elif mode == "LA":
            whole = whole.convert("LA")
        how = {}
        if mode.endswith("key"):
            whole = whole.convert(mode[:-4])
            how["transparency"] = (hidden,) * 3 if mode[0] == "R" else hidden
        whole.save(tmp_path / f"{i}.png", **how)
    with pytest.warns(UserWarning, match=f"3 transparent pictures composed on {background}"):
        data = load(tmp_path, background=background)
    images = data.to_images()
    assert (images == images[0]).all()
    assert (images[0][0, 0] == level).all()
    assert abs(int(images[0][3, 3].max()) - 200) <= 8  # a palette rounds


def test_half_transparent_pixels_are_mixed_and_opaque_ones_stay(tmp_path):
    layers = rng.integers(0, 256, (5, 5, 4), dtype=np.uint8)
    Image.fromarray(layers).save(tmp_path / "a.png")
    found = quietly(tmp_path).to_images()[0]
    a = layers[..., 3:] / 255
    np.testing.assert_allclose(found, layers[..., :3] * a + 255 * (1 - a), atol=1)
    layers[..., 3] = 255
    Image.fromarray(layers).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path).to_images()[0], layers[..., :3])  # and nothing is said
    with pytest.raises(ValueError, match="background = 'pink': pass white, black, grey"):
        load(tmp_path, background="pink")


def test_the_first_frame_is_read_and_that_is_said(tmp_path):
    frames = [Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)) for _ in range(3)]
    for name in ("a.gif", "b.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="2 pictures have several frames, and the first is read"):
        data = load(tmp_path)
    np.testing.assert_array_equal(data.to_images()[1][..., 0], np.asarray(frames[0]))


def test_links_are_followed_but_not_in_circles(tmp_path):
    image = picture(tmp_path / "store" / "a.png")
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    os.symlink(tmp_path / "store", tmp_path / "pets" / "cat" / "there")
    os.symlink(tmp_path / "pets", tmp_path / "pets" / "cat" / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "pets" / "cat" / "broken.png")
    data = load(tmp_path / "pets")
    np.testing.assert_array_equal(data.to_images(), [image])


def test_tables_beside_pictures_are_about_them(tmp_path):
    picture(tmp_path / "train" / "a.png")
    (tmp_path / "train.csv").write_text("file,label\na.png,1\n")
    (tmp_path / "train" / "labels.csv").write_text("file,label\na.png,1\n")
    with pytest.warns(UserWarning, match=r"2 of 3 files left out: 2 \.csv"):
        assert load(tmp_path).is_image


def test_both_parts_are_read_of_tables_in_folders(tmp_path):
    for part, rows in (("train", 5), ("test", 3)):
        (tmp_path / part).mkdir()
        for i in range(2):
            (tmp_path / part / f"{i}.csv").write_text("u,v\n" + "1,2.5\n" * rows)
    train, test = load_parts(str(tmp_path))
    assert (len(train), len(test)) == (10, 6)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
@pytest.mark.parametrize("place", ["/proc/self", "/proc"])
def test_folders_that_the_system_makes_up_are_refused(place, tmp_path):
    (tmp_path / "x").symlink_to(place)
    for path in (tmp_path / "x", place):
        with pytest.raises(ValueError, match="which the system makes up: pass a folder of files") as error:
            load(str(path))
        assert "\n" not in str(error.value)
