"""What the folder of a model may hold: every check that is made of a saved model before anything relies on it.

    text  ->  configuration   JSON of an object: no NaN, not too deep, no number beyond the size of the tensors
    configuration  ->  model  built within an allowance: it may ask for as much memory as the tensors take, not more
    model, tensors            the configuration says what the model says of itself; shapes, dtypes and numbers are right

A configuration is a few words that can ask for any amount of memory. Constructors are free to compute with their
arguments, so nothing can be said of a configuration before it is built; what can be done is to look at every tensor
that is about to be made, on torch's meta device where it costs nothing, and to stop there.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

LONGEST = 2**26
"""Bytes of the longest configuration."""

_NUMBERS, _OPERATIONS = 2**18, 4096  # that a model may use, beside what its tensors are
_WHOLE = 2**16  # numbers that a configuration may name, where its tensors are smaller
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def parse_configuration(text: str | bytes) -> dict[str, Any]:
    """The configuration that a text says.

    Args:
        text: JSON, in UTF-8.

    Raises:
        ValueError: it is no JSON object, is nested too deep or too long, or holds NaN.
    """
    if len(text) > LONGEST:
        raise ValueError("is no configuration: it is too long")
    try:
        found: Any = json.loads(text, parse_constant=_constant)
    except RecursionError:
        raise ValueError("is not valid JSON (nested too deep)") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)


def check_numbers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that no model with such tensors has.

    Raises:
        ValueError: a whole number is greater than the tensors are, or a number is infinite.
    """
    most = max(_WHOLE, sum(tensor.numel() for tensor in tensors.values()))
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, each) for each in value]
        elif isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{name} = {str(value)[:20]} is more than its tensors have numbers")
        elif isinstance(value, float) and math.isinf(value) and name != "interval":
            raise ValueError(f"{name} is infinite")


class _Allowance(TorchDispatchMode):
    """Stops what asks for more memory than it may."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        total = sum(tensor.numel() for tensor in tensors.values())
        self.each = 2 * total + _NUMBERS
        self.all = 16 * total + 16 * _NUMBERS
        self.operations = 64 * len(tensors) + _OPERATIONS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations -= 1
        if self.operations < 0:
            raise ValueError("it asks for more parts than there are tensors")
        if func._schema.is_mutable or tree_any(_is_meta, (args, kwargs)):
            return func(*args, **kwargs)
        try:
            on_meta = tree_map(_to_meta, (args, kwargs))
            if any(argument.name == "device" for argument in func._schema.arguments):
                on_meta[1]["device"] = torch.device("meta")
            made = func(*on_meta[0], **on_meta[1])
        except (NotImplementedError, RuntimeError) as error:
            if "overflow" in str(error) or "negative" in str(error):
                raise
            made = None  # there is no such operation without numbers
        if made is not None and not func.is_view:
            numbers = sum(each.numel() for each in tree_leaves(made) if isinstance(each, Tensor))
            self.all -= numbers
            if numbers > self.each or self.all < 0:
                raise ValueError(f"it asks for {numbers:,} numbers, and its tensors are smaller")
        return func(*args, **kwargs)


def _is_meta(value: object) -> bool:
    return (isinstance(value, Tensor) and value.is_meta) or (isinstance(value, torch.device) and value.type == "meta")


def _to_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


_allowance: ContextVar[_Allowance | None] = ContextVar("_allowance", default=None)


@contextmanager
def allowance(tensors: Mapping[str, Tensor]) -> Generator[None]:
    """Let what happens inside make no more than a model of these tensors needs.

    Args:
        tensors: of the model, by name.

    Raises:
        ValueError: more is asked for; raised where it is, before there is any.
    """
    mode = _Allowance(tensors)
    token = _allowance.set(mode)
    try:
        with mode:
            yield
    finally:
        _allowance.reset(token)


def allow_more(numbers: int) -> None:
    """Let the model that is being built make so many numbers that are not saved."""
    mode = _allowance.get()
    if mode is not None:
        mode.each += numbers
        mode.all += 4 * numbers


def _is(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _sequence(value: object, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(check(each) for each in value)


def _whole(value: Any) -> bool:
    return _is(value, int)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _whole),
    "float": ("a number", lambda value: _is(value, int, float)),
    "bool": ("true or false", lambda value: _is(value, bool)),
    "str": ("a word", lambda value: _is(value, str)),
    "Sequence[int]": ("a list of whole numbers", lambda value: _sequence(value, _whole)),
    "Sequence[Sequence[int]]": (
        "a list of lists of whole numbers",
        lambda value: _sequence(value, lambda row: _sequence(row, _whole)),
    ),
    "tuple[float, float]": (
        "two numbers",
        lambda value: _sequence(value, lambda each: _is(each, int, float)) and len(value) == 2,
    ),
    "str | Sequence[str]": (
        "words",
        lambda value: _is(value, str) or _sequence(value, lambda each: _is(each, str)),
    ),
    "dict[str, Any]": ("an object", lambda value: _is(value, dict)),
}


def check_types(cls: type, config: Mapping[str, Any]) -> None:
    """Refuse arguments of a constructor that are of another type than it says, where it takes what JSON has.

    Args:
        cls: the class.
        config: name to value, as JSON has them; names that are no arguments are passed over.

    Raises:
        ValueError: one of them is.
    """
    for name, parameter in inspect.signature(cls).parameters.items():
        wanted = str(parameter.annotation)
        if name not in config or (config[name] is None and wanted.endswith(" | None")):
            continue
        kind, fits = _TYPES.get(wanted.removesuffix(" | None"), ("", None))
        if fits is not None and not fits(config[name]):
            raise ValueError(f"{name} is {shown(config[name])}, not {kind}")


def check_settings(cls: type, settings: Mapping[str, Any]) -> None:
    """Refuse settings of a class of another library that are of other types than its constructor says.

    Args:
        cls: the class, whose constructor has types.
        settings: name to value, as JSON has them.

    Raises:
        ValueError: one of them is; names that the constructor does not know are passed over, as it does.
    """
    hints = get_type_hints(cls.__init__)
    parameters = inspect.signature(cls).parameters
    for name, value in settings.items():
        known = name in parameters
        if known and not _fits(value, hints.get(name, Any)) and type(value) is not type(parameters[name].default):
            raise ValueError(f"{name} is {shown(value)}, not what {cls.__name__} takes")


def _fits(value: Any, hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(
            any(_fits(each, part) for part in parts if part is not Ellipsis) for each in value
        )
    if hint in (int, float, str, bool, NoneType):
        return _is(value, int, float) if hint is float else _is(value, hint)
    return True


def shown(value: object) -> str:
    """A value of a configuration, cut short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_description(
    said: Mapping[str, Any], config: Mapping[str, Any], same: Callable[[Any, Any], bool], at: str = ""
) -> None:
    """Refuse a configuration that says something else than the model that was built from it.

    Args:
        said: the description of the model.
        config: what it was built from; it may leave out what has become an option since.
        same: whether two names of classes are the same.
        at: where in the configuration this is.

    Raises:
        ValueError: an unknown name, or a value that was not heeded.
    """
    for name, value in config.items():
        if name not in said:
            raise ValueError(f"{at}{name} is unknown")
        _check_value(said[name], value, same, f"{at}{name}")


def _check_value(said: Any, value: Any, same: Callable[[Any, Any], bool], at: str) -> None:
    if isinstance(value, dict) and isinstance(said, Mapping):
        check_description(said, value, same, f"{at}.")
    elif isinstance(value, list) and isinstance(said, Sequence) and not isinstance(said, str):
        if len(said) != len(value):
            raise ValueError(f"{at} has {len(value)} entries, not {len(said)}")
        for one, other in zip(said, value, strict=True):
            _check_value(one, other, same, at)
    elif isinstance(value, bool) != isinstance(said, bool) or not (value == said or same(value, said)):
        raise ValueError(f"{at} is {shown(value)}, not {shown(said)}")


def check_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a model: shapes, dtypes, and numbers that are none.

    Names that are missing or unknown are left to `load_state_dict`.

    Args:
        model: as it was built.
        tensors: name to tensor.

    Raises:
        ValueError: one of them does not fit.
    """
    dtypes: dict[str, tuple[str, torch.dtype]] = {}
    for name, own in model.state_dict().items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        if tensor.shape != own.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own.shape)}")
        if not own.is_floating_point():
            if tensor.dtype != own.dtype:
                raise ValueError(f"{name} is of {tensor.dtype}, not {own.dtype}")
            continue
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{name} is of {tensor.dtype}, not float32 or another of these")
        part = name.rpartition(".")[0]
        first, dtype = dtypes.setdefault(part, (name, tensor.dtype))
        if tensor.dtype != dtype:
            raise ValueError(f"{name} is of {tensor.dtype}, and {first} of {dtype}")
        if tensor.numel():
            least, most = (float(end) for end in tensor.detach().aminmax())
            # An entry that has no weight has the logarithm of none.
            if math.isnan(least) or math.isinf(most) or (math.isinf(least) and not name.endswith("logits")):
                raise ValueError(f"{name} holds NaN or infinite numbers")


def check_orthonormal(name: str, bases: Tensor, columns: Sequence[int]) -> None:
    """Refuse bases whose columns are not orthonormal, as far as their dtype can tell.

    Args:
        name: of the tensor.
        bases: with shape (K, D, d).
        columns: how many are no padding, of each.

    Raises:
        ValueError: one of them is not.
    """
    tolerance = 0.01 if bases.dtype in (torch.float64, torch.float32) else 0.03
    for k, (basis, d) in enumerate(zip(bases.detach(), columns, strict=True)):
        A = basis[:, :d].to(torch.promote_types(bases.dtype, torch.float32))
        if not torch.allclose(A.T @ A, torch.eye(d, dtype=A.dtype, device=A.device), rtol=0.0, atol=tolerance):
            raise ValueError(f"the columns of {name} are not orthonormal (subspace {k})")
