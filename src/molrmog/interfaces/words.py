"""What can be said of the words before any work: blank ones, files of settings, numbers out of their range.

A number is refused by its flag and its range alone where that decides it, and where what it asks for at the least is
more memory than the machine has. All commands share one table of ranges, for an option of one name is of one kind.
"""

from __future__ import annotations

import difflib
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molrmog.interfaces.memory import check_memory

_MOST = 2**63 - 1  # of a number that is kept in 64 bits
_CONFIG_BYTES = 2**20  # of a file of settings, which has a few kilobytes
_CONFIG_VALUES = 10_000  # in it, after its aliases are written out


class WordsError(ValueError):
    """The words make no sense, whatever there is on the machine."""


@dataclass(frozen=True)
class Range:
    """What numbers an option takes.

    Attributes:
        low: the smallest.
        high: the greatest.
        words: what to pass instead of others.
        open_low: whether `low` itself is too small.
        open_high: whether `high` itself is too great.
        bytes: memory that each unit asks for at the least.
        power: to which the number is raised in that.
    """

    low: float
    high: float
    words: str
    open_low: bool = False
    open_high: bool = False
    bytes: int = 0
    power: int = 1

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; not-a-number does not."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)


def _count(low: int = 1, bytes: int = 0, power: int = 1, words: str = "") -> Range:
    return Range(low, _MOST, words or f"pass {low} or more", bytes=bytes, power=power)


_AT_LEAST_ZERO = Range(0, math.inf, "pass a number >= 0", open_high=True)
_ABOVE_ZERO = Range(0, math.inf, "pass a number above 0", open_low=True, open_high=True)
_SHARE = Range(0, 1, "pass a share between 0 and 1", open_low=True, open_high=True)
_TRAINED = 5 * 4  # bytes of a parameter that is trained: itself, its gradient, two moments, and an average

RANGES: Mapping[str, Range] = {
    "added": Range(0, 1, "pass a share from 0 to 1"),
    "autoencoder_steps": _count(),
    "batch_size": _count(bytes=8),
    "beta": _AT_LEAST_ZERO,
    "channels": _count(bytes=9 * _TRAINED, power=2),
    "checkpoint_every": _count(),
    "depth": _count(bytes=1000),
    "drop_expert": Range(0, 1, "pass a probability in [0, 1)", open_high=True),
    "ema": Range(0, 1, "pass a decay in [0, 1)", open_high=True),
    "expert": _count(0),
    "experts": _count(bytes=8, words="pass 1 or more, or labels"),
    "grid_every": _count(),
    "guidance": _AT_LEAST_ZERO,
    "guidance_interval": Range(0, math.inf, "pass [low,high] with 0 <= low < high"),
    "head": _count(bytes=8, words="pass 1 or more, or auto"),
    "held_out": _SHARE,
    "image_size": _count(bytes=4, power=2),
    "latent_dim": _count(bytes=8),
    "learning_rate": _ABOVE_ZERO,
    "level_mean": Range(-math.inf, math.inf, "pass a number", open_low=True, open_high=True),
    "level_std": Range(0, math.inf, "pass a deviation above 0", open_low=True, open_high=True),
    "levels": _count(bytes=2**10, words="pass 1 or more, or sigmas as [0.1,1]"),
    "levels_per_batch": _count(bytes=8),
    "log_every": _count(),
    "max_iter": _count(0),
    "micro_batch_size": _count(),
    "n_init": _count(),
    "modes": _count(bytes=100),
    "noise_floor": _AT_LEAST_ZERO,
    "num": _count(bytes=8, words="ask for at least 1"),
    "num_samples": _count(10, bytes=8, words="pass at least 10"),
    "prior_rows": _AT_LEAST_ZERO,
    "rank": _count(0),
    "rows": _count(2),
    "seed": Range(0, math.inf, "pass 0 or more"),
    "seeds": _count(bytes=1000),
    "show": _count(),
    "steps": _count(),
    "subspace": _count(0),
    "subspaces": _count(bytes=100),
    "tol": _AT_LEAST_ZERO,
    "validate_every": _count(),
    "warmup": _count(0),
    "width": _count(bytes=8 * _TRAINED, power=2),
    "workers": _count(bytes=2**20),
}
"""What numbers the options take, by name; those of a list are taken one by one."""

_SIGMAS = Range(0, math.inf, "pass sigmas above 0, as [0.1,1]", open_low=True, open_high=True)
_WALK = _count(bytes=16)  # the noise levels of all steps are laid out before the first
_OF_COMMAND = {("sample", "steps"): _WALK, ("evaluate", "steps"): _WALK}


def check_blank(words: Sequence[str]) -> None:
    """Refuse words with nothing in them, whichever option or place they are for.

    Raises:
        WordsError: a word, or the value behind a `=`, is blank.
    """
    for before, word in zip(("", *words), words, strict=False):
        flag, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            raise WordsError(f"{flag} needs a value, and got a blank one")
        if not word.strip():
            if before.startswith("--") and "=" not in before:
                raise WordsError(f"{before} needs a value, and got a blank one")
            raise WordsError("one of the words is blank: leave it out, or say what is meant")


def check_values(command: str, options: Mapping[str, Any]) -> None:
    """Refuse blank texts and numbers out of their range, also those of a file of settings.

    Raises:
        WordsError: a text is blank, or holds the character NUL.
        ValueError: a number is out of its range, or asks for more memory than there is.
    """
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for each in _leaves(value):
            if isinstance(each, str) and (not each.strip() or "\0" in each):
                raise WordsError(
                    f"{flag} needs a value, and got a blank one"
                    if "\0" not in each
                    else f"{flag} {each}: a text cannot hold the character NUL"
                )
        _check_number(command, name, flag, value)


def _check_number(command: str, name: str, flag: str, value: Any) -> None:
    numbers = [each for each in _leaves(value) if isinstance(each, int | float) and not isinstance(each, bool)]
    own = _OF_COMMAND.get((command, name)) or RANGES.get(name)
    if own is None:
        return
    if isinstance(value, list) and name == "levels":
        own = _SIGMAS
    said = f"{flag} {shown(value)}"
    if isinstance(value, list) and not value:
        raise ValueError(f"{said}: the list is empty, {own.words}")
    for number in numbers:
        if not own.holds(number):
            most = own.high == _MOST and number > own.high
            raise ValueError(f"{said}: pass at most {_MOST:,}" if most else f"{said}: {own.words}")
    if own.bytes and numbers:
        check_memory(said, own.bytes * sum(int(number) ** own.power for number in numbers))


def shown(value: Any) -> str:
    """A value as it is said in a message, which has one line."""
    try:
        text = str(value).replace(" ", "") if isinstance(value, list) else str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "with a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}"


def check_config(path: str, command: str, known: Mapping[str, Sequence[str]]) -> None:
    """Refuse a file of settings that is none, or one of another command.

    Args:
        path: what stands behind `--config`: a file, or YAML itself.
        command: which command it is for.
        known: the settings of every command, by its name.

    Raises:
        WordsError: it cannot be read, is no YAML mapping, writes out to more than any settings, or has unknown keys.
    """
    text = _text_of(path)
    found = _yaml_of(text if text is not None else path, f"--config {shown(path)}")
    if not isinstance(found, Mapping):
        if text is None:
            raise WordsError(f"--config {shown(path)}: no such file")
        what = {list: "a list", str: "a text", type(None): "nothing"}.get(type(found), f"a {type(found).__name__}")
        raise WordsError(f"--config {shown(path)} holds {what}: pass a YAML file of settings, one a line as seed: 0")
    for key in found:
        if key in known[command] and key != "config":
            continue
        others = [name for name, keys in known.items() if key in keys and key != "config"]
        close = difflib.get_close_matches(str(key), known[command], n=1)
        hint = f"did you mean {close[0]}?" if close else f"it is one of {' and '.join(others)}" if others else ""
        raise WordsError(
            f"--config {shown(path)}: {shown(key)} is no setting of molrmog {command}" + (f", {hint}" if hint else "")
        )


def _text_of(path: str) -> str | None:
    """The text of a file; None where there is none of that name."""
    said = f"--config {shown(path)}"
    try:
        found = os.stat(os.path.expanduser(path))
        if stat.S_ISDIR(found.st_mode):
            raise WordsError(f"{said} is a folder: name a YAML file")
        if not stat.S_ISREG(found.st_mode):
            raise WordsError(f"{said} is a device or a pipe: name a YAML file")
        if found.st_size > _CONFIG_BYTES:
            raise WordsError(f"{said} has {found.st_size:,} bytes: settings are a YAML file of a few kilobytes")
        return Path(path).expanduser().read_bytes().decode()
    except UnicodeDecodeError:
        raise WordsError(f"{said}: not a YAML file") from None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if any(c in path for c in "\n{"):  # YAML itself, which is no name
            return None
        raise WordsError(f"{said}: {error.strerror}") from None
    except RuntimeError:  # ~name of nobody
        return None


def _yaml_of(text: str, said: str) -> Any:
    import yaml

    try:
        found = yaml.safe_load(text)
        for count, _ in enumerate(_leaves(found)):
            if count > _CONFIG_VALUES:
                raise WordsError(f"{said}: its aliases write out to more than {_CONFIG_VALUES:,} values")
    except RecursionError:
        raise WordsError(f"{said}: it is nested too deeply, or in itself") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, WordsError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}: {getattr(error, 'problem', '')})" if mark is not None else ""
        raise WordsError(f"{said}: not a YAML file{where}") from None
    return found


def _leaves(value: Any) -> Iterator[Any]:
    """What is in a value, through lists and mappings; an empty one counts, too."""
    if isinstance(value, Mapping | list | tuple | set) and value:
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    else:
        yield value
