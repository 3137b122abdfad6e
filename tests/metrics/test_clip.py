import json
import sys

import numpy as np
import pytest
import torch

from molrmog.data import Layout
from molrmog.metrics import CLIPScore

transformers = pytest.importorskip("transformers")

WIDE = Layout(name="wide", shape=(3, 20, 31), scale=2 / 255, shift=-1.0, levels=256)
GREY = Layout(name="grey", shape=(1, 20, 20), scale=2 / 255, shift=-1.0, levels=256)
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model with random weights and a toy vocabulary, as save_pretrained writes it."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*letters, *(letter + "</w>" for letter in letters), "ph", "pho", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[("p", "h"), ("ph", "o")])
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 24}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config=common | text, vision_config=common | {"image_size": SIDE, "patch_size": 8}, projection_dim=12
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from zero for the cosines to differ
            parameter.add_(0.2 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("clip") / "toy"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def levels(rows, layout, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, layout.dim)) * layout.scale + layout.shift


def by_transformers(folder, layout, x, text, **options):
    """The library's own image processor and the logits of the whole model."""
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    process = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **options)
    images = [Image.fromarray(picture).convert("RGB") for picture in layout.to_images(x)]
    pixels = process(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(**tokenizer(text, padding=True, return_tensors="pt"), pixel_values=pixels)
        return out.logits_per_image / model.logit_scale.exp()


@pytest.mark.parametrize("layout", [WIDE, GREY], ids=lambda layout: layout.name)
def test_cosines_are_the_logits_of_transformers_without_their_scale(layout, folder):
    x, text = levels(5, layout), ["a photo of parachute", "dog", "dog", "a photo of parachute", "cat 7"]
    different = ["a photo of parachute", "dog", "cat 7"]
    peer = by_transformers(folder, layout, x, different)
    expected = peer[torch.arange(5), [0, 1, 1, 0, 2]]
    score = CLIPScore(layout, folder)
    torch.testing.assert_close(score(x, text), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score(x, "dog"), peer[:, 1], rtol=1e-4, atol=1e-5)
    assert float(peer.std()) > 1e-3
    assert score.name == "CLIP (toy), cosine"


def test_the_folder_may_say_how_pictures_are_standardised(folder, tmp_path):
    import shutil

    own = shutil.copytree(folder, tmp_path / "own")
    half = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (own / "preprocessor_config.json").write_text(json.dumps(half))
    x = levels(3, WIDE)
    expected = by_transformers(folder, WIDE, x, ["dog"], **half)[:, 0]
    torch.testing.assert_close(CLIPScore(WIDE, own)(x, "dog"), expected, rtol=1e-4, atol=1e-5)


def test_text_that_is_too_long_is_cut_off(folder):
    score = CLIPScore(GREY, folder)
    assert torch.isfinite(score(levels(2, GREY), "a photo of a very " + "long " * 50 + "line")).all()


def test_without_weights_the_message_says_what_to_pass(folder, tmp_path):
    with pytest.raises(ValueError, match="no CLIP weights were given: pass the folder"):
        CLIPScore(GREY)
    with pytest.raises(FileNotFoundError, match="check the path"):
        CLIPScore(GREY, tmp_path / "none")
    with pytest.raises(ValueError, match="does not hold a transformers CLIP model"):
        CLIPScore(GREY, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "missing", "pickled", "no tokenizer"])
def test_a_folder_that_is_not_whole_is_refused(damage, folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folder, tmp_path / "broken")
    path = broken / "model.safetensors"
    tensors = load_file(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "missing":
        del tensors["text_projection.weight"]
        save_file(tensors, path, metadata={"format": "pt"})
    elif damage == "pickled":
        torch.save(tensors, broken / "pytorch_model.bin")
        path.unlink()
    else:
        for file in broken.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(ValueError, match="does not hold a transformers CLIP model"):
        CLIPScore(GREY, broken)


def test_arguments_that_do_not_fit_are_refused(folder):
    score = CLIPScore(GREY, folder)
    with pytest.raises(ValueError, match="one per row"):
        score(levels(3, GREY), ["dog", "cat"])
    with pytest.raises(ValueError, match="columns"):
        score(levels(3, WIDE), "dog")
    with pytest.raises(ValueError, match="needs images"):
        CLIPScore(Layout(name="rows", shape=(5,)), folder)


def test_a_missing_library_is_a_line_with_the_mend(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'molrmog\[clip\]'"):
        CLIPScore(GREY, folder)
