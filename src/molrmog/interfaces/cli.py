"""The command line: words in, calls of `molrmog.interfaces.commands` out.

Exit codes: 0 success, 1 the work failed or its results could not be written, 2 the words make no sense, 130
interrupted, 141 the reader of stdout has gone. Results go to stdout; progress, warnings and errors to stderr, see
`molrmog.interfaces.streams`. Nobody sees a traceback, unless MOLRMOG_DEBUG=1 asks for one.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import signal
import sys
import warnings
from argparse import Action
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NoReturn, get_args

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from molrmog.data.sources import DATA
from molrmog.devices import device_of
from molrmog.interfaces import package_version, streams
from molrmog.interfaces.places import is_inside
from molrmog.interfaces.words import WordsError, check_blank, check_config, check_values, shown
from molrmog.registry import SAMPLERS

_SAMPLERS: Any = Literal[*SAMPLERS]
_SCHEDULES = Literal["vp", "ve", "cosine", "flow"]
_FEATURES = Literal["pca", "classifier", "squeezenet"]
_NETWORKS = Literal["mog", "gaussian", "unet", "mlp", "residual"]
_EXPERIMENTS = Literal["images", "floor", "estimation", "curvature", "convergence", "overlap", "subspaces", "hybrid"]
_IMAGES = Literal["mnist", "fashion-mnist", "cifar10", "parachute", "digits"]
_LONGEST = 600  # characters of a line about an error
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|[Cc]annot allocate memory")
_DEBUG = "set MOLRMOG_DEBUG=1 to see where"


class _Help(DefaultHelpFormatter):
    """Help without the types of Python: what an option takes is said in words, or in its choices."""

    def _get_help_string(self, action: Action) -> str:
        text, found, details = super()._get_help_string(action).rpartition(" (")
        if not found or "%(" not in details:
            return text + found + details
        unsaid = ["type: %(type)s"]
        if action.default is None or action.default is False:
            unsaid.append("default: %(default)s")
        kept = [each for each in details.removesuffix(")").split(", ") if each not in unsaid]
        return f"{text} ({', '.join(kept)})" if kept else text


def _choices(names: Any) -> str:
    """The values of a Literal, as usage shows them."""
    return "{" + ",".join(get_args(names)) + "}"


def _yes_no(parser: ArgumentParser, name: str, default: bool, help: str) -> None:
    parser.add_argument(f"--{name}", action=ActionYesNo(no_prefix="no-"), default=default, help=help)


def _command(description: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags after it win")
    return parser


def _reading(parser: ArgumentParser, *, parts: bool = True) -> None:
    """How data are read: the same options for every command that reads some."""
    add = parser.add_argument
    add("--label-column", type=str | None, default=None, help="column of the labels, where its name does not tell")
    add(
        "--columns",
        type=str | list[str] | None,
        default=None,
        metavar="A,B,...",
        help="columns of a table to use; all that hold numbers where not given",
    )
    add("--drop", type=str | list[str] | None, default=None, metavar="A,B,...", help="columns of a table to leave out")
    add(
        "--categories",
        type=Literal["refuse", "one-hot"],
        default="refuse",
        help="what becomes of columns of text; one-hot makes one of zeros and ones of each of their texts",
    )
    add(
        "--background",
        type=Literal["white", "black", "grey"],
        default="white",
        help="what lies behind transparent pixels",
    )
    add("--image-size", type=int | None, default=None, help="crop and resize images to so many pixels a side")
    add("--data-dir", type=str | None, default=None, help="folder to look in first, before $MOLRMOG_DATA_DIR")
    if parts:
        _yes_no(parser, "dequantise", False, "add uniform noise of one level to integer data, for honest bits/dim")
        add("--held-out", type=float, default=0.1, help="share of rows to hold out where the data have no test part")


def _fit() -> ArgumentParser:
    parser = _command(
        "Fit a law to data, measure it on held-out rows, and write a run folder with a report. "
        "RUN/config.yaml keeps the settings: molrmog fit --config RUN/config.yaml --out OTHER repeats the fit."
    )
    add = parser.add_argument
    add("data", type=str, help=DATA)
    add("--out", type=str, required=True, metavar="RUN", help="run folder to write")
    _yes_no(parser, "overwrite", False, "replace a run that is there")
    _structure(parser)
    add(
        "--head",
        type=int | Literal["auto"] | None,
        default=None,
        help="fit in so many leading principal coordinates, with diagonal noise along all; auto chooses whether",
    )
    add("--n-init", type=int, default=1, help="starts of which the likeliest is fitted")
    add("--max-iter", type=int, default=50, help="passes over the data, at most")
    add("--tol", type=float, default=1e-4, help="stop when the log-likelihood per dimension rises by less, in nats")
    add("--seed", type=int, default=0, help="of everything random")
    _reading(parser)
    add("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")
    _yes_no(parser, "evaluate", True, "measure the Fréchet distance of samples and how rows cluster, too")
    return parser


def _structure(parser: ArgumentParser) -> None:
    """The shape of a law: numbers that are chosen where they are not given, and what holds for all that are tried."""
    add = parser.add_argument
    add(
        "--subspaces",
        type=int | Literal["auto"],
        default="auto",
        help="number of subspaces, chosen from the rows where not given; with --labels the number of classes counts",
    )
    add(
        "--latent-dim",
        type=int | list[int] | Literal["auto"] | None,
        default="auto",
        help="dimension of each, one number or [a,b,...]; chosen where not given",
    )
    add(
        "--modes",
        type=int | list[int] | Literal["auto"],
        default="auto",
        help="Gaussians in each, one number or [a,b,...]; chosen where not given",
    )
    add(
        "--noise",
        type=Literal["isotropic", "diagonal", "shared", "auto"] | None,
        default="auto",
        help="off the subspaces: one variance of each, one of each and every coordinate, or of every coordinate for "
        "all; chosen where not given",
    )
    add(
        "--axes",
        type=Literal["pca", "dct"] | None,
        default=None,
        help="along which unequal noise goes: principal axes (photographs) or cosines; those of the data where not "
        "given",
    )
    add("--rank", type=int | None, default=None, help="rank of every mode's covariance; full where not given")
    _yes_no(parser, "labels", False, "one subspace per class")
    _yes_no(parser, "zero-mean", False, "keep all means at zero; with --modes 1 the low-rank Gaussian mixture (MoLRG)")
    add("--prior-rows", type=float | None, default=None, help="rows the prior on each covariance is worth")
    add("--noise-floor", type=float | None, default=None, help="smallest standard deviation, in data units")


def _select() -> ArgumentParser:
    parser = _command(
        "Say which structure the rows of some data reward: how many subspaces, of which dimension, with how many "
        "modes, and which noise. molrmog fit chooses in the same way, and then fits."
    )
    add = parser.add_argument
    add("data", type=str, help=DATA)
    _structure(parser)
    add(
        "--criterion",
        type=Literal["held-out", "bic", "icl"],
        default="held-out",
        help="held-out nats per row, or an information criterion, for tables whose parts are to be counted",
    )
    add("--rows", type=int, default=12, help="candidates to list")
    add("--plot", type=str | None, default=None, metavar="FILE", help="write a picture of all candidates, PNG or SVG")
    add("--out", type=str | None, default=None, metavar="FILE", help="write all candidates, CSV or JSON")
    add("--seed", type=int, default=0, help="of everything random")
    _reading(parser)
    add("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")
    return parser


def _train() -> ArgumentParser:
    parser = _command(
        "Train a score network by denoising score matching, in pixels or in the latents of autoencoders, and write a "
        "run folder with a report. The same command again goes on with a run that was stopped."
    )
    add = parser.add_argument
    add("data", type=str, help=DATA)
    add("--out", type=str, required=True, metavar="RUN", help="run folder to write, or to go on with")
    add(
        "--network",
        type=_NETWORKS,
        default="mog",
        help="mog and gaussian are laws, unet and mlp are neural; residual is a neural one on top of a law: a unet of "
        "pictures, an mlp of flat rows",
    )
    add(
        "--autoencoder",
        type=str,
        default="linear",
        help="none (the network sees the rows themselves), linear (PCA), vae, shared (one vae for all experts), lora "
        "(a shared one with an adapter per expert), taef2, or the folder of a saved autoencoder",
    )
    add(
        "--experts",
        type=int | Literal["labels"] | None,
        default=None,
        help="one per class (labels), or so many by clustering; labels where the data have them, else 1",
    )
    add(
        "--latent-dim",
        type=int | None,
        default=None,
        help="of every expert; 32 where not given, 16 below 128 columns, half of them below 32",
    )
    add("--modes", type=int, default=8, help="Gaussians of every expert (mog, residual)")
    add("--rank", type=int | None, default=None, help="of every mode's covariance; full where not given")
    add("--start", type=Literal["random", "k-means", "em"], default="em", help="where a mog starts")
    add(
        "--learn",
        type=str | None,
        default=None,
        help="parts of a law that are learned, with commas between, or all; mean,factor,mode_weights of a mog or "
        "gaussian where not given, nothing of the law beneath a residual network; not with --gates or --head",
    )
    add(
        "--base",
        type=str | None,
        default=None,
        metavar="PATH",
        help="folder of a law or denoiser that residual stands on, a run for example; where not given a law is fitted",
    )
    add(
        "--head",
        type=int | Literal["auto"] | None,
        default=None,
        help="fit the law beneath residual in so many leading principal coordinates, see molrmog fit",
    )
    add(
        "--noise",
        type=Literal["isotropic", "diagonal", "shared"] | None,
        default=None,
        help="of the law that is fitted beneath residual, see molrmog fit; go with --levels-per-batch 16 or so",
    )
    _yes_no(
        parser,
        "gates",
        False,
        "tell the network of residual how its law weighs the subspaces; not with --learn; a --base must be a law",
    )
    add(
        "--added",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the base that is added to what the network of residual says, 0 to 1; with less than 1 it starts "
        "behind the base, and learns more where that is good already, as in latents",
    )
    _yes_no(parser, "zero-mean", False, "keep the means of a gaussian at zero (MoLRG)")
    add("--channels", type=list[int], default=[64, 96], help="of each level of a unet, as [64,96]")
    _yes_no(parser, "attention", True, "self-attention at the lowest level of a unet; slow on CPUs")
    add("--width", type=int, default=256, help="of the hidden layers of an mlp")
    add("--depth", type=int, default=3, help="residual blocks of an mlp")
    add(
        "--autoencoder-steps",
        type=int | None,
        default=None,
        help="optimiser steps of each autoencoder that is trained; 20 passes over its rows where not given",
    )
    add("--beta", type=float, default=0.01, help="weight of the KL divergence of a vae, in squared data units")
    add("--steps", type=int, default=1000, help="optimiser steps of the network")
    add("--batch-size", type=int, default=256, help="rows of a step")
    add("--micro-batch-size", type=int | None, default=None, help="rows in memory at once; all where not given")
    add("--learning-rate", type=float, default=1e-3, help="the greatest; it rises, then falls like a cosine")
    add("--warmup", type=int, default=100, help="steps over which the learning rate rises")
    add("--weighting", type=Literal["edm", "x0", "eps", "min-snr"], default="edm", help="of the loss")
    add("--levels", type=Literal["log-normal", "log-snr"], default="log-normal", help="how noise levels are drawn")
    add(
        "--level-mean",
        type=float | None,
        default=None,
        help="mean of log sigma = log(gamma / s) in training; where not given EDM's, -1.2 for data of deviation 0.5; "
        "higher (0 to 0.8) for line drawings, lower for photographs",
    )
    add("--level-std", type=float | None, default=None, help="its standard deviation; 1.2 where not given")
    add(
        "--levels-per-batch",
        type=int | None,
        default=None,
        help="noise levels that the rows of a batch share; one of each row's own where not given. A base of unequal "
        "noise is slow with many",
    )
    add("--targets", type=Literal["sample", "batch"], default="sample", help="batch: less variance, a small bias")
    add(
        "--drop-expert",
        type=float,
        default=0.0,
        help="probability that a row is told no expert, so that samples can be guided (0.1, say; unet, mlp, residual)",
    )
    add("--schedule", type=_SCHEDULES, default="vp", help="noise schedule")
    add("--ema", type=float, default=0.999, help="decay of the moving average of the weights, in [0, 1)")
    add("--mixed-precision", type=Literal["no", "fp16", "bf16"], default="no", help="of the training")
    add("--seed", type=int, default=0, help="of everything random")
    add("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, ...; the best there is where not given")
    add("--log-every", type=int, default=50, help="steps between two lines of metrics.jsonl")
    add("--validate-every", type=int, default=500, help="steps between two losses on held-out rows")
    add("--grid-every", type=int, default=1000, help="steps between two pictures of samples, RUN/grids")
    add("--checkpoint-every", type=int, default=500, help="steps between two checkpoints, RUN/checkpoints")
    _yes_no(parser, "tensorboard", False, "also write TensorBoard files, RUN/tensorboard")
    _reading(parser)
    _yes_no(parser, "evaluate", True, "measure samples and reconstructions, too")
    return parser


def _sample() -> ArgumentParser:
    parser = _command("Draw samples of a run as a picture, as rows, or both.")
    add = parser.add_argument
    add("run", type=str, help="run folder")
    add("--num", type=int, default=64, help="how many")
    add("--out", type=str | None, default=None, metavar="PNG", help="picture to write; RUN/samples.png where not given")
    add(
        "--npz",
        type=str | None,
        default=None,
        metavar="NPZ",
        help="also write x; with it subspace and mode of exact samples, or the expert of those of a network",
    )
    _yes_no(parser, "overwrite", False, "replace files that are there")
    add(
        "--sampler",
        type=_SAMPLERS | None,
        metavar=_choices(_SAMPLERS),
        default=None,
        help="exact draws from the law itself, the others walk down noise; exact for a fitted law, else heun",
    )
    add("--steps", type=int, default=32, help="steps of the walk")
    add(
        "--schedule",
        type=_SCHEDULES | None,
        default=None,
        metavar=_choices(_SCHEDULES),
        help="noise schedule of the walk; that of the run, else vp",
    )
    add("--subspace", type=int | None, default=None, help="draw from this subspace of a law only")
    add("--expert", type=int | None, default=None, help="draw from this expert of a network only")
    add(
        "--guidance",
        type=float,
        default=1.0,
        help="walk after the expert, or the subspace of a law, more than it asks for (2, say): clearer samples, less "
        "variety; takes a network trained with --drop-expert",
    )
    add(
        "--guidance-interval",
        type=list[float] | None,
        default=None,
        help="guide only at these noise levels, as [low,high] of gamma / s",
    )
    add("--seed", type=int, default=0, help="of the samples")
    return parser


def _evaluate() -> ArgumentParser:
    parser = _command("Measure a run on held-out rows, append to RUN/metrics.jsonl, and write its report again.")
    add = parser.add_argument
    add("run", type=str, help="run folder")
    add("data", type=str | None, nargs="?", default=None, help=f"data; those of the run where not given. {DATA}")
    add(
        "--features",
        type=_FEATURES | list[_FEATURES] | None,
        metavar=_choices(_FEATURES),
        default=None,
        help="feature space, or several as [pca,classifier]; these two where there are labels, else pca",
    )
    add(
        "--weights",
        type=str | None,
        default=None,
        metavar="FILE",
        help="weights of SqueezeNet 1.1; $MOLRMOG_WEIGHTS_DIR/lpips/squeezenet1_1_features.safetensors where not given",
    )
    add("--clip", type=str | None, default=None, metavar="FOLDER", help="a CLIP model of transformers, for --prompt")
    add("--prompt", type=str | None, default=None, help="text that samples are compared with, e.g. 'a photo of a cat'")
    add("--steps", type=int, default=32, help="steps of the sampler (heun) of a network")
    add("--num-samples", type=int, default=2000, help="samples, and held-out rows at most, to compare")
    add("--seed", type=int, default=0, help="of the samples and of the rows picked")
    add("--data-dir", type=str | None, default=None, help="folder to look in first, before $MOLRMOG_DATA_DIR")
    return parser


def _explain_network() -> ArgumentParser:
    parser = _command(
        "Say how much of a trained network a law explains, noise level by noise level, and where it does not: a table, "
        "a page and a picture per level. The law is the one named, else the base that the network stands on, else it "
        "is fitted here to the training rows; any of --subspaces, --latent-dim, --modes, --head asks for a fit."
    )
    add = parser.add_argument
    add("run", type=str, help="folder of a run of molrmog train, or of a saved denoiser (with --data)")
    add("--law", type=str | None, default=None, metavar="FOLDER", help="run of molrmog fit, or any saved denoiser")
    add("--data", type=str | None, default=None, help=f"data; those of the run where not given. {DATA}")
    add("--out", type=str | None, default=None, metavar="FOLDER", help="where to write; RUN/explain where not given")
    add("--levels", type=int | list[float], default=10, help="how many noise levels, or their sigmas as [0.1,1]")
    add("--rows", type=int, default=500, help="held-out rows, at most")
    add("--show", type=int, default=10, help="rows in a picture")
    add("--subspaces", type=int | None, default=None, help="of the law; one per class, or 10, where not given")
    add("--latent-dim", type=int | None, default=None, help="of each; as in molrmog fit, all of a latent space")
    add("--modes", type=int | None, default=None, help="Gaussians in each; 8 where not given")
    add("--head", type=int | Literal["auto"] | None, default=None, help="as in molrmog fit; auto for long rows")
    add(
        "--schedule",
        type=_SCHEDULES | None,
        default=None,
        metavar=_choices(_SCHEDULES),
        help="of a saved denoiser; vp where not given",
    )
    add("--seed", type=int, default=0, help="of the rows picked, the noise and the fit")
    add("--device", type=str | None, default=None, help="where to compute; the CPU where not given")
    add("--image-size", type=int | None, default=None, help="of --data: crop and resize to so many pixels a side")
    add("--data-dir", type=str | None, default=None, help="folder to look in first, before $MOLRMOG_DATA_DIR")
    return parser


def _info() -> ArgumentParser:
    parser = _command(
        "Say what a run is; or what is read of data, as what, what is left out, and what a fit would do with the rest."
    )
    parser.add_argument("target", type=str, help=f"run folder, or data: {DATA}")
    _reading(parser, parts=False)
    return parser


def _demo() -> ArgumentParser:
    parser = _command(
        "Fit laws to the handwritten digits inside scikit-learn, train the paper's three score networks in the same "
        "latents, compare all on held-out digits, and write a report."
    )
    parser.add_argument("--out", type=str, default="runs/demo", metavar="RUN", help="run folder, its run is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    return parser


def _reproduce() -> ArgumentParser:
    parser = _command(
        "Run an experiment and write its page, tables and pictures. The same command again computes "
        "what is missing. images: MoG, Gaussian and U-Net in the same latents; floor: where the best loss is known; "
        "estimation, curvature, convergence, overlap: the paper's theory, measured on known laws; subspaces: how many "
        "rows it takes to recover them; hybrid: a network on a closed form against the network alone."
    )
    add = parser.add_argument
    add("name", type=_EXPERIMENTS, help="one of them")
    add("--out", type=str | None, default=None, metavar="FOLDER", help="runs/NAME-BUDGET where not given")
    add("--budget", type=Literal["smoke", "cpu", "gpu"], default="smoke", help="a minute, an hour of four cores, a GPU")
    add(
        "--dataset",
        type=_IMAGES | None,
        metavar=_choices(_IMAGES),
        default=None,
        help="of images and hybrid; mnist where not given",
    )
    add("--seed", type=int, default=0, help="of everything random")
    add("--workers", type=int | None, default=None, help="processes at a time; as many as cores where not given")
    add("--device", type=str | None, default=None, help="where networks of images and hybrid are trained: cpu, cuda")
    add("--rows", type=int | None, default=None, help="training rows of hybrid, the first of the data")
    add("--steps", type=int | None, default=None, help="training steps of hybrid, a multiple of 16")
    add("--seeds", type=int | None, default=None, help="how many seeds of hybrid")
    add("--data-dir", type=str | None, default=None, help="folder to look in first, before $MOLRMOG_DATA_DIR")
    return parser


def _bench() -> ArgumentParser:
    parser = _command("Run the benchmarks of a source tree, each beside its peers.")
    parser.add_argument("name", type=str | None, nargs="?", default=None, help="one of them; all where not given")
    return parser


_COMMANDS = {
    "fit": (_fit, "fit a law to data and write a run folder"),
    "select": (_select, "say which structure the rows of some data reward"),
    "train": (_train, "train a score network and write a run folder"),
    "sample": (_sample, "draw samples of a run"),
    "evaluate": (_evaluate, "measure a run on held-out rows"),
    "explain": (_explain_network, "say how much of a network a law explains"),
    "info": (_info, "say what a run or a data set is"),
    "reproduce": (_reproduce, "run an experiment of the paper"),
    "demo": (_demo, "laws and score networks on the handwritten digits"),
    "bench": (_bench, "run the benchmarks of a source tree"),
}


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = ArgumentParser(
        prog="molrmog",
        exit_on_error=False,
        description="Diffusion models whose score is known in closed form: fit, train, sample, measure.",
        version=package_version(),
        allow_abbrev=False,
        formatter_class=_Help,
    )
    commands = parser.add_subcommands(required=True, title="commands", metavar="COMMAND", dest="command")
    for name, (make, help) in _COMMANDS.items():
        commands.add_subcommand(name, make(), help=help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `molrmog`; those of the process where not given.

    Returns:
        The exit code.
    """
    # torch and scikit-learn bring an OpenMP each; idle threads of one that spin starve the other, 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if argv is None:
        streams.hold_descriptors()
        signal.signal(signal.SIGTERM, _terminated)
    with streams.guarded() as outputs:
        code = outputs.settle(_run(list(sys.argv[1:] if argv is None else argv)))
        if code == 130 and argv is None:
            # An interrupt that passed through an import of compiled code would make Python end by the signal instead.
            os._exit(130)
    return code


def _run(words: Sequence[str]) -> int:
    """Do what the words say, and say what went wrong; the exit code."""
    understood = False
    try:
        check_blank(words)
        parser = build_parser()
        if not words:
            parser.print_help(sys.stderr)
            return 2
        if name := _command_of(words):
            for path in _configs(words):
                check_config(path, name, _settings())
        settings: Any = parser.parse_args(words)
        options = settings[settings.command].as_dict()
        options.pop("config", None)
        understood = True
        check_values(settings.command, options)
        _check(options)
        from molrmog.interfaces import commands

        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            commands.COMMANDS[settings.command](**options, command=shlex.join(["molrmog", *words]))
    except SystemExit as finished:  # --help, --version and SIGTERM
        if isinstance(finished.code, str):  # as a library may say
            return _fail(1, finished.code)
        return int(finished.code or 0)
    except KeyboardInterrupt as stopped:
        return _fail(130, str(stopped) or "interrupted")
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of safetensors, which is written in Rust
        if os.environ.get("MOLRMOG_DEBUG") or not (isinstance(error, Exception) or is_panic):
            raise
        if isinstance(error, WordsError):
            return _fail(2, str(error), _where_help(words))
        if not understood and not isinstance(error, MemoryError):
            return _fail(2, _explain(_text(error), words), _where_help(words))
        return _fail(1, *_said(error))
    return 0


def _command_of(words: Sequence[str]) -> str | None:
    return next((word for word in words if word in _COMMANDS), None)


def _configs(words: Sequence[str]) -> list[str]:
    """What stands behind every --config."""
    behind = [value for flag, value in pairwise(words) if flag == "--config"]
    return behind + [word.partition("=")[2] for word in words if word.startswith("--config=")]


def _settings() -> dict[str, list[str]]:
    """The settings that every command has, as a file names them."""
    unset = ("help", "config", "print_config")
    return {
        name: [action.dest for action in make()._actions if action.dest not in unset]
        for name, (make, _) in _COMMANDS.items()
    }


def _check(options: Mapping[str, Any]) -> None:
    """Refuse what no command takes, before any work.

    Raises:
        ValueError: a device that is not there, a run in the place of data, a run inside of its data.
    """
    if options.get("device") is not None:
        device_of(options["device"], f"--device {options['device']}")
    data, out = options.get("data"), options.get("out")
    if data is None:
        return
    if os.path.isfile(os.path.join(data, "data.json")):
        raise ValueError(f"{data} is a run, not data: pass the data that it was made of, or others")
    roots = ("", options.get("data_dir"), os.environ.get("MOLRMOG_DATA_DIR"))
    for folder in (os.path.join(root, data) for root in roots if root is not None):
        is_new = out is not None and not os.path.isfile(os.path.join(out, "config.yaml"))
        if out is not None and is_new and os.path.isdir(folder) and is_inside(out, folder):
            raise ValueError(f"--out {out} is inside of the data, {folder}: name a folder outside")


def _terminated(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _fail(code: int, *lines: str) -> int:
    for prefix, line in zip(
        ("molrmog: " if code == 130 else "molrmog: error: ", *[""] * len(lines)), lines, strict=False
    ):
        print(prefix + _printable(line), file=sys.stderr)
    return code


def _printable(text: str) -> str:
    """A line without what would end it or steer a terminal, and of a length that can be read."""
    line = "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else repr(c)[1:-1] for c in text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 200]} ... {line[-190:]}"


def _said(error: BaseException) -> tuple[str, ...]:
    """What went wrong in a line, and in a second where to look."""
    text = _one_line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return (f"there is not enough memory ({text}): ask for less at once",)
    if isinstance(error, RecursionError):
        return (f"something is nested too deeply ({text})", _DEBUG)
    if isinstance(error, ValueError | OSError | ImportError):
        return (text,)
    return (f"{type(error).__name__}: {text}", _DEBUG)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # of the error's own making
        return ""


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"molrmog: warning: {message}", file=sys.stderr)


def _where_help(words: Sequence[str]) -> str:
    name = _command_of(words)
    return f"see molrmog {name} --help" if name else "see molrmog --help"


def _explain(text: str, words: Sequence[str]) -> str:
    """What is wrong with the words, in a line."""
    name = _command_of(words)
    known: list[str] = []
    if name:
        known = [flag for action in _COMMANDS[name][0]()._actions for flag in action.option_strings]
    if match := re.match(r"unrecognized arguments: (.*)", text, re.DOTALL):
        unknown = match[1].split()[0]
        flag = unknown.split("=")[0]
        longer = [each for each in known if each.startswith(flag)]
        close = (longer or difflib.get_close_matches(flag, known, n=1)) if flag.startswith("-") else []
        return f"unknown argument {unknown}" + (f": did you mean {close[0]}?" if close else "")
    if match := re.search(r"invalid choice: '?([^' ]+)'?", text):
        close = difflib.get_close_matches(match[1], _COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else "choose from " + ", ".join(_COMMANDS)
        return f"unknown command {match[1]}: {hint}"
    if match := re.match(r"the following arguments are required: (.*)", text):
        missing = [key.split(".")[-1] for key in match[1].split(", ")]
        flags = [f"--{key}" if f"--{key}" in known else key.upper() for key in missing]
        return f"{name} needs {' and '.join(flags)}"
    if match := re.match(r"argument (--[\w-]+)\S*: (expected one argument|ignored explicit argument)", text):
        return f"{match[1]} needs a value" if match[2].startswith("expected") else f"{match[1]} takes no value"
    if match := re.search(r'[Pp]arser key "(?:\w+\.)?(\w+)"', text):
        flag = "--" + match[1].replace("_", "-")
        flag = flag if flag in known else match[1].upper()
        after = [word for name_, word in pairwise(words) if name_ == flag]
        value = re.search(r"(?:Got|Given) value: (.*)", text)
        given = after[-1] if after else value[1] if value else ""
        if flag == "--config":
            return f"--config {given}: no such file, or not YAML"
        return f"{flag} {shown(given)}: {_wanted(text, given)}"
    if "--config" in words and "codec can't decode" in text:
        return "--config: not a YAML file"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:300]


def _wanted(text: str, given: str) -> str:
    """What jsonargparse expected in the place of `given`, in words."""
    types = text.split("Errors:")[0]
    names = list(dict.fromkeys(re.findall(r"'([^']*)'", " ".join(re.findall(r"Literal\[([^\]]*)\]", types)))))
    if close := difflib.get_close_matches(given, names, n=1):
        return f"did you mean {close[0]}?"
    kinds = {
        "a whole number": "<class 'int'>" in types,
        "a number": "<class 'float'>" in types,
        ("one of " if len(names) > 1 else "") + ", ".join(names): bool(names),
        "a list as [a,b]": "list" in types,
    }
    return "pass " + (" or ".join(kind for kind, is_it in kinds.items() if is_it) or "another value")


if __name__ == "__main__":
    sys.exit(main())
