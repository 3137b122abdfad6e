"""Model folders that somebody has damaged, or made up: one line that names the file, and no memory beyond its size.

Every entry of every configuration is replaced by each value of a battery, and every tensor is damaged in each way. What
happens is either one ValueError, or a model that says of itself what the file says.
"""

import copy
import json
import sys

import pytest
import safetensors.torch
import torch

import molrmog
from molrmog import DiffusersDenoiser
from molrmog.denoisers.base import condition_on
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.models import Model
from molrmog.saving import CONFIG_NAME, MODEL_NAME, load_model
from test_saved_memory import AUTOENCODERS, MODELS, a_law

resource = pytest.importorskip("resource")

BATTERY = [
    None,
    "",
    -1,
    0,
    10**12,
    2**70,
    1.5,
    True,
    [],
    {},
    "x" * 1000,
    float("nan"),
    float("inf"),
    [[[1]]],
    [10**9] * 3,
]
HUGE = [10**12, 300_000_000, 60_000, [60_000], [60_000] * 3]


def a_pipeline():
    pytest.importorskip("diffusers")
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks)
    return DiffusersDenoiser.from_pipeline(DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20)))


def a_pretrained():
    pytest.importorskip("diffusers")
    from molrmog.autoencoders import PretrainedAutoencoder

    blocks = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    settings = {**blocks, "block_out_channels": [8], "norm_num_groups": 4, "latent_channels": 2, "layers_per_block": 1}
    return PretrainedAutoencoder((3, 8, 8), "AutoencoderKL", settings)


KINDS = {
    **MODELS,
    **AUTOENCODERS,
    "told expert": lambda: condition_on(ConditionalLaw(a_law()), 1),
    "pipeline": a_pipeline,
    "pretrained": a_pretrained,
}
QUICK = ("law", "head and tail", "mlp", "linear")
EVERY = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of each kind, in a folder."""
    found = {}

    def of(kind):
        if kind not in found:
            torch.manual_seed(0)
            found[kind] = KINDS[kind]().save_pretrained(tmp_path_factory.mktemp("models") / "model")
            molrmog.load(found[kind])
        return found[kind]

    return of


def places(value, at=()):
    """Where there is anything in a configuration."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in entries:
        yield (*at, key)
        yield from places(each, (*at, key))


def changed(config, place, value):
    config = copy.deepcopy(config)
    where = config
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = value
    return config


def write(folder, config, tensors):
    safetensors.torch.save_file(tensors, folder / MODEL_NAME, metadata={"config": json.dumps(config)})


def outcome(folder, about):
    """None where the model is read; otherwise what is said, which is one line that names the file."""
    try:
        model = molrmog.load(folder)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said, about
        assert len(said) < 500 + len(str(folder)), about
        assert str(folder) in said, about
        return said
    assert isinstance(model, Model), about
    return None


def plain(config):
    return json.loads(json.dumps(config))


def memory():
    """The most that the process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.parametrize("kind", EVERY)
def test_a_configuration_of_hostile_values_is_refused_or_heeded(kind, saved, tmp_path):
    config, tensors = load_model(saved(kind))
    before, refused, tried = memory(), 0, 0
    every = [(place, value) for place in places(config) for value in [*BATTERY, *HUGE]]
    for place, value in every if kind in QUICK else every[::3]:
        mutant = changed(config, place, value)
        if plain(mutant) == plain(config):
            continue
        tried += 1
        write(tmp_path, mutant, tensors)
        said = outcome(tmp_path, (place, value))
        refused += said is not None
        if said is None:  # what it says of itself is what was asked for
            model = molrmog.load(tmp_path)
            assert plain(model.description) == {**plain(model.description), **plain(mutant)}, (place, value)
    assert tried > 10
    assert refused > 0.8 * tried
    assert memory() - before < 200, f"{memory() - before:.0f} MiB more"


@pytest.mark.parametrize("kind", EVERY)
def test_an_entry_too_many_or_too_few_is_named(kind, saved, tmp_path):
    config, tensors = load_model(saved(kind))
    for at in [(), *(place for place in places(config) if isinstance(place[-1], str))]:
        part = config
        for key in at:
            part = part[key]
        if isinstance(part, dict) and at[-1:] not in (("settings",), ("unet",)):
            write(tmp_path, changed(config, (*at, "colour"), "red"), tensors)
            assert "colour" in outcome(tmp_path, at), at
    for place in places(config):
        if isinstance(place[-1], str):
            mutant = copy.deepcopy(config)
            part = mutant
            for key in place[:-1]:
                part = part[key]
            del part[place[-1]]
            write(tmp_path, mutant, tensors)
            outcome(tmp_path, place)


DAMAGES = {
    "missing": lambda name, tensors: tensors.pop(name),
    "extra": lambda name, tensors: tensors.update({f"{name}_": tensors[name].clone()}),
    "longer": lambda name, tensors: tensors.update({name: torch.cat([tensors[name].flatten()] * 2)}),
    "flat": lambda name, tensors: tensors.update({name: tensors[name].flatten()[None]}),
    "empty": lambda name, tensors: tensors.update({name: tensors[name].flatten()[:0].clone()}),
    "whole numbers": lambda name, tensors: tensors.update({name: tensors[name].to(torch.int32)}),
    "complex": lambda name, tensors: tensors.update({name: tensors[name].to(torch.complex64)}),
    "truth": lambda name, tensors: tensors.update({name: tensors[name] > 0}),
    "nan": lambda name, tensors: tensors[name].view(-1)[-1:].fill_(float("nan")),
    "inf": lambda name, tensors: tensors[name].view(-1)[:1].fill_(float("inf")),
}


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_tensor_is_refused(kind, damage, saved, tmp_path):
    config, whole = load_model(saved(kind))
    for name in list(whole)[:40]:
        if damage in ("nan", "inf") and not whole[name].numel():
            continue
        tensors = {key: tensor.clone() for key, tensor in whole.items()}
        DAMAGES[damage](name, tensors)
        if name in tensors and tensors[name].shape == whole[name].shape and damage == "flat":
            continue
        write(tmp_path, config, tensors)
        assert outcome(tmp_path, (name, damage)) is not None, (name, damage)


@pytest.mark.parametrize("kind", ["law", "head and tail", "mog", "patches", "experts and a gate"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_basis_is_orthonormal_as_far_as_its_dtype_can_tell(kind, dtype, saved, tmp_path):
    model = molrmog.load(saved(kind)).to(dtype)
    config, tensors = load_model(model.save_pretrained(tmp_path))
    assert outcome(tmp_path, kind) is None
    names = [name for name in tensors if name.endswith(("basis", "axes"))]
    assert names
    for name in names:
        for bad in (1.1 * tensors[name], torch.zeros_like(tensors[name]), tensors[name] + 0.1):
            write(tmp_path, config, {**tensors, name: bad})
            assert "not orthonormal" in outcome(tmp_path, name)


def test_two_dtypes_in_one_law_are_refused(saved, tmp_path):
    config, tensors = load_model(saved("law"))
    for name in tensors:
        write(tmp_path, config, {**tensors, name: tensors[name].to(torch.bfloat16)})
        assert "bfloat16" in outcome(tmp_path, name)


def header_of(folder):
    raw = (folder / MODEL_NAME).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(folder, header, rest):
    text = json.dumps(header).encode()
    (folder / MODEL_NAME).write_bytes(len(text).to_bytes(8, "little") + text + rest)


@pytest.mark.parametrize(
    "edit",
    [
        lambda entry: entry.update(shape=[10**6, 10**6]),
        lambda entry: entry.update(data_offsets=[0, 10**15]),
        lambda entry: entry.update(shape=[-1]),
        lambda entry: entry.update(shape="all"),
        lambda entry: entry.update(dtype="F31"),
        lambda entry: entry.pop("dtype"),
        lambda entry: entry.update(shape=[10**6, 10**6], data_offsets=[0, 4 * 10**12]),
    ],
)
def test_a_header_that_promises_what_the_file_has_not(edit, saved, tmp_path):
    before = memory()
    (tmp_path / MODEL_NAME).write_bytes((saved("law") / MODEL_NAME).read_bytes())
    header, rest = header_of(tmp_path)
    edit(header["basis"])
    with_header(tmp_path, header, rest)
    assert MODEL_NAME in outcome(tmp_path, "header")
    (tmp_path / MODEL_NAME).write_bytes((10**15).to_bytes(8, "little") + rest)
    assert MODEL_NAME in outcome(tmp_path, "length")
    assert memory() - before < 100


TEXTS = {
    "not UTF-8": b'{"law": "\xff\xfe"}',
    "deep": b'{"law":' * 100_000,
    "deep lists": b"[" * 200_000,
    "nan": b'{"law": "MoLRMoG", "dim": NaN}',
    "null": b"null",
    "bytes": bytes(range(256)),
    "empty": b"",
    "long": b" " * (2**26 + 1),
    "digits": b'{"dim": ' + b"9" * 10_000 + b"}",
    "kinds": b'{"law": ["MoLRMoG"]}',
    "many": b'{"law": "' + b"x" * 100_000 + b'"}',
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("inside", [True, False])
def test_a_configuration_that_is_none(text, inside, saved, tmp_path):
    tensors = safetensors.torch.load_file(saved("law") / MODEL_NAME)
    if inside:
        try:
            words = TEXTS[text].decode()
        except UnicodeDecodeError:
            pytest.skip("a header is UTF-8")
        safetensors.torch.save_file(tensors, tmp_path / MODEL_NAME, metadata={"config": words})
    else:
        safetensors.torch.save_file(tensors, tmp_path / MODEL_NAME)
        (tmp_path / CONFIG_NAME).write_bytes(TEXTS[text])
    assert outcome(tmp_path, text) is not None


def test_a_model_inside_a_model_inside_a_model_ends(saved, tmp_path):
    config, tensors = load_model(saved("told expert"))
    for depth in (10, 150):
        nested = config["network"]
        for _ in range(depth):
            nested = {"denoiser": "Given", "network": nested, "expert": 0}
        write(tmp_path, nested, tensors)
        assert outcome(tmp_path, depth) is not None


def test_three_hundred_million_dimensions_beside_a_small_file(saved, tmp_path):
    for kind in ("law", "head and tail", "mlp", "linear", "mlp"):
        config, tensors = load_model(saved(kind))
        for place in places(config):
            if place[-1] in ("dim", "width", "shape", "tail", "latent_dim"):
                before = memory()
                size = [300_000_000] if place[-1] == "shape" else 300_000_000
                write(tmp_path, changed(config, place, size), tensors)
                assert outcome(tmp_path, place) is not None
                assert memory() - before < 50
