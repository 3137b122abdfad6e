"""Random calls of the Python API.

Every call has arguments from a grammar of values that are right, borderline and hostile: numbers that are no numbers,
rows of every type, layout and shape that NumPy, torch, scipy and pandas know, seeds and devices of every kind.

A call may answer, or refuse in one line: ValueError, TypeError, OSError, NotImplementedError or ImportError of at most
400 characters, none of which is from inside torch or NumPy. What fails is

- another exception, a longer or an internal message, a warning of NumPy or torch, a child that dies or hangs;
- an argument that was changed in place;
- where all arguments were right: an exception, a result of the wrong shape or type, NaN or infinity in it, or, for
  rows in an unusual form, another result than for the same rows as a plain tensor.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import fractions
import io
import math
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from _trials import Case, options, pick, printable, rng, tally, trials

import molrmog
from molrmog import metrics
from molrmog.data import Dataset, Layout
from molrmog.interfaces.estimator import MoLRMoGEstimator
from molrmog.laws.axes import Axes
from molrmog.laws.head_tail import with_tail
from molrmog.laws.molrmog import MoLRMoG
from molrmog.registry import SAMPLERS
from molrmog.seeds import numpy_seed, seed_of, torch_seed

REFUSALS = (ValueError, TypeError, OSError, NotImplementedError, ImportError)
INTERNAL = re.compile(
    r"Expected all tensors|size mismatch|INTERNAL ASSERT|mat1 and mat2|object has no attribute|broadcast|size of tensor"
    r"|shapes? .* not aligned|not implemented for '|expected scalar type|scalar type|can't convert|ufunc|aten::"
    r"|not subscriptable|unsupported operand|cannot be interpreted as|invalid literal|is ambiguous|only one element"
    r"|is invalid for input of size|Dimension out of range|received an invalid combination|out of bounds"
    r"|cannot reshape|object is not|not iterable|has no len|must be real number|setting an array element"
    r"|can only convert|could not convert string|is not supported by|numpy\.core|matmul|einsum|Numpy array"
    r"|required positional|not supported between|to unpack|bad operand|Cannot interpret|data type|inhomogeneous"
    r"|integer is required|out of range integral|must be Tensor|must be a? ?(tuple|sequence) of|must be (int|float|str)\b"
    r"|numpy\.ndarray' object|got an unexpected|sequence item|nonempty|Trying to create tensor|stride"
)
LONGEST = 400


class Draw:
    """The arguments of one call: drawn at random, named for the report, remembered as they were."""

    def __init__(self, random: np.random.Generator, folder: Path) -> None:
        self.random = random
        self.folder = folder
        self.hostility = float(pick(random, (0.0, 0.1, 0.3)))
        self.right = True
        self.words: list[str] = []
        self.given: list[tuple[str, Any, Any]] = []

    def say(self, name: str, value: Any) -> Any:
        """Keep an argument and what it looks like."""
        shown = " ".join(repr(value).split())
        if isinstance(value, np.ndarray | torch.Tensor) and value.ndim:
            shown = f"{type(value).__name__}{tuple(value.shape)} of {value.dtype}"
        self.words.append(f"{name}={shown[:80]}")
        self.given.append((name, value, snapshot(value)))
        return value

    def one(self, name: str, right: list[Any], wrong: list[Any] | None = None) -> Any:
        """A value for `name`: mostly one that is right, else one from `wrong`, or anything at all."""
        if self.random.random() >= self.hostility:
            return self.say(name, pick(self.random, right))
        self.right = False
        return self.say(name, pick(self.random, (wrong or []) + anything(self.random)))

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def options(self, **choices: list[Any]) -> dict[str, Any]:
        """Some of several keyword arguments."""
        return {name: self.one(name, values) for name, values in choices.items() if self.random.random() < 0.4}


def anything(random: np.random.Generator) -> list[Any]:
    """Values that few arguments are meant to take."""
    return [
        *(None, "", "abc", "1", b"x", True, False, -1, 0, 1, 10**30, -(2**63), 1e308, 1e-320, -0.0, 0.5, -1.5),
        *(math.nan, math.inf, -math.inf, 1j, object(), [], (), {}, set(), [None], ["a"], {"a": 1}, range(3), Ellipsis),
        *(np.float16(3), np.int8(-3), np.uint64(2**63), np.bool_(True), np.datetime64("2020-01-01"), np.str_("a")),
        *(np.float64("nan"), np.longdouble(2), np.complex64(1), np.array([]), np.array(3), np.array(None), np.zeros(3)),
        *(np.zeros((2, 0)), np.array([1, "a"], dtype=object), np.zeros(2, dtype=[("a", int)]), np.ma.masked),
        *(
            torch.tensor([]),
            torch.tensor(3),
            torch.tensor(math.nan),
            torch.ones(3, dtype=torch.int8),
            torch.zeros(2, 3),
        ),
        *(torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(3, dtype=torch.cfloat)),
        *(torch.Generator(), torch.device("meta"), torch.device("cuda:9"), "cuda", "meta", "nonsense:3", torch.float16),
        *(torch.complex64, torch.int64, np.float32, "float32", np.random.default_rng(0), np.random.RandomState(0)),
        *(decimal.Decimal("1.5"), fractions.Fraction(1, 3), datetime.date(2020, 1, 1), Path("nowhere"), int, len),
        *(io.BytesIO(), iter([1, 2]), (x for x in ()), memoryview(b"12"), slice(None), 2**64, "ä" * 500, "a\nb"),
        *(pd.Series([1.0, 2.0]), pd.DataFrame({"a": ["x"]}), scipy.sparse.eye(3).tocsr(), torch.nn.Linear(2, 2)),
        float(random.normal()),
    ]


def snapshot(value: Any) -> Any:
    """What must be the same after the call."""
    if isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        try:
            return base.dtype, base.shape, base.tobytes() if base.dtype != object else pickle.dumps(base)
        except Exception:
            return None
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.layout != torch.strided:
            return str(value.shape)
        whole = value.detach().as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
        return (
            str(value.dtype),
            tuple(value.shape),
            value.requires_grad,
            whole.clone().view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.to_json()
    if isinstance(value, torch.nn.Module):
        return {name: snapshot(each) for name, each in value.state_dict().items()}
    if isinstance(value, Dataset):
        return snapshot(value.x), snapshot(value.labels)
    if isinstance(value, list | tuple):
        return [snapshot(each) for each in value]
    if isinstance(value, dict):
        return {key: snapshot(each) for key, each in value.items()}
    return value if isinstance(value, str | int | float | bytes) else None


def same(before: Any, now: Any) -> bool:
    try:
        return bool(pickle.dumps(before) == pickle.dumps(now))
    except Exception:
        return True  # values that cannot be compared


# --- rows


def rows(draw: Draw, n: int, d: int, name: str = "x", plain: torch.Tensor | None = None) -> tuple[Any, Any]:
    """Rows in some form, and the same as a float64 tensor; None in its place where they are not what was asked for."""
    random = draw.random
    x = (
        plain.double()
        if plain is not None
        else torch.from_numpy(random.normal(size=(n, d)) * 10 ** random.uniform(-2, 1))
    )
    if random.random() < draw.hostility:
        draw.right = False
        return draw.say(name, wrong_rows(random, x.numpy())), None
    form = pick(random, list(FORMS))
    made = FORMS[form](x.numpy().copy())
    draw.words.append(form)
    value = draw.say(name, made)
    return value, plain_rows(made)


def plain_rows(made: Any) -> torch.Tensor:
    """Rows in any form as a float64 tensor."""
    if isinstance(made, torch.Tensor):
        return made.detach().double()
    return torch.from_numpy(np.array(getattr(made, "x", made), dtype=np.float64))


def precision_of(x: Any) -> float:
    """How far an answer may be from that to the same rows in float64, relative to the greatest of its numbers."""
    kind = str(getattr(getattr(x, "x", x), "dtype", ""))
    return {"torch.bfloat16": 2e-2, "torch.float16": 2e-3, "float16": 2e-3}.get(kind, 2e-5)


def _strided(x: np.ndarray) -> np.ndarray:
    wide = np.full((2 * len(x), 3 * x.shape[1]), np.nan)
    wide[::2, ::3] = x
    return wide[::2, ::3]


def _read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)
    return x


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.from_numpy,
    "tensor float32": lambda x: torch.from_numpy(x).float(),
    "tensor with gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "tensor by columns": lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).T,
    "tensor inside another": lambda x: torch.from_numpy(np.pad(x, ((1, 2), (3, 1)), constant_values=9.0))[1:-2, 3:-1],
    "tensor bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "tensor float16": lambda x: torch.from_numpy(x).half(),
    "array": lambda x: x,
    "array float32": lambda x: x.astype(np.float32),
    "array float16": lambda x: x.astype(np.float16),
    "array int64": lambda x: np.rint(x).astype(np.int64),
    "array int8": lambda x: np.rint(x).clip(-99, 99).astype(np.int8),
    "array uint8": lambda x: np.abs(np.rint(x)).clip(0, 99).astype(np.uint8),
    "array uint16": lambda x: np.abs(np.rint(x)).astype(np.uint16),
    "array bool": lambda x: x > 0,
    "array by columns": np.asfortranarray,
    "array strided": _strided,
    "array backwards": lambda x: x[::-1, ::-1],
    "array read-only": _read_only,
    "array big-endian int32": lambda x: np.rint(x).astype(">i4"),
    "array big-endian": lambda x: x.astype(">f8"),
    "array big-endian float32": lambda x: x.astype(">f4"),
    "array long double": lambda x: x.astype(np.longdouble),
    "array unmasked": lambda x: np.ma.masked_invalid(x),
    "array of objects": lambda x: x.astype(object),
    "array of fractions": lambda x: np.array(
        [[fractions.Fraction(v) for v in row] for row in x.tolist()], dtype=object
    ).reshape(x.shape),
    "matrix": np.asmatrix,
    "list": lambda x: x.tolist(),
    "tuple of arrays": tuple,
    "frame": pd.DataFrame,
    "frame of float32": lambda x: pd.DataFrame(x.astype(np.float32), columns=[f"c{j}" for j in range(x.shape[1])]),
    "dataset": lambda x: Dataset(name="rows", x=x, shape=(x.shape[1],)),
}


def wrong_rows(random: np.random.Generator, x: np.ndarray) -> Any:
    """What is no rows, not these rows, or rows that few functions should take."""
    bad = x.copy()
    if bad.size:
        bad[random.integers(len(x)), random.integers(x.shape[1])] = pick(
            random, (np.nan, np.inf, -np.inf, 1e300, 1e-310)
        )
    with np.errstate(all="ignore"):
        forms: list[Any] = [
            *(bad, torch.from_numpy(bad), bad.astype(np.float32), np.full_like(x, np.nan), x * 1e200, x * 1e-200),
            *(x[:0], x[:, :0], x[0] if len(x) else x, x[None], x[:, 1:], np.hstack([x, x]), x.T, np.array(1.0)),
            *(torch.from_numpy(x[:0]), torch.from_numpy(x)[None], torch.from_numpy(x)[:, :-1], torch.tensor(2.0)),
            *(x.astype(complex), x.astype(object), x.astype(str), x.astype("S4"), np.ma.masked_less(x, 0)),
            *(torch.from_numpy(x).to(torch.cdouble), torch.from_numpy(x).to_sparse(), torch.from_numpy(x).to("meta")),
            *(scipy.sparse.csr_matrix(x), scipy.sparse.coo_array(x), x.tolist(), [*x.tolist()[:1], [1.0]], x.view("f8,f8") if x.shape[1] % 2 == 0 and x.size else x[:0]),
            *(pd.DataFrame(x), pd.DataFrame(x).astype(str), x.astype("timedelta64[s]"), "rows", None, 3, {"x": x}, [x, x]),
            *(torch.from_numpy(x).to(torch.int8), np.matrix(x), iter(x), torch.nn.Parameter(torch.from_numpy(x)), [torch.zeros(2)]),
        ]  # fmt: skip
    return pick(random, forms)


def level(draw: Draw, name: str, n: int, low: float, high: float) -> Any:
    """A noise level: a number, or one per row."""
    value = float(draw.random.uniform(low, high))
    many = draw.random.uniform(low, high, n)
    return draw.one(
        name,
        [
            value,
            np.float32(value),
            torch.tensor(value),
            many,
            torch.from_numpy(many),
            torch.from_numpy(many).float(),
            1,
        ],
        [
            many[:-1],
            -value,
            np.append(many, 1.0),
            many[None],
            list(map(str, many)),
            torch.from_numpy(many) * math.nan,
            0,
        ],
    )


def generator(draw: Draw) -> Any:
    return draw.one("generator", [None, torch.Generator().manual_seed(draw.integer(0, 9))], [0, "seed"])


# --- laws


def law_of(draw: Draw, *, tau: float | None = None) -> Any:
    """A law of a random shape: one subspace or several, d = D, D = 1, one mode, rank 0, tau = 0."""
    random = draw.random
    D = draw.integer(1, 7)
    K = draw.integer(1, 3)
    dims = [draw.integer(1, D) for _ in range(K)]
    modes = [draw.integer(1, 3) for _ in range(K)]
    tau = float(pick(random, (0.0, 0.05, 0.3, 2.0))) if tau is None else tau
    law: Any = MoLRMoG.random(
        D, dims, modes, pick(random, (None, 0, 1, 9)), tau, draw.integer(0, 99), offset=float(random.uniform(0, 2)),
        dtype=pick(random, (torch.float32, torch.float64)),
    )  # fmt: skip
    if random.random() < 0.4:
        law = law.requires_grad_(False).with_noise(pick(random, ("diagonal", "shared")))
        law.tau.mul_(torch.from_numpy(random.uniform(0.3, 3, law.tau.shape)))
        if random.random() < 0.5:
            law = law.with_axes(Axes.dct((D,)))
        law.requires_grad_(True)
    elif D > 1 and random.random() < 0.3:
        more = draw.integer(1, 3)
        axes = torch.linalg.qr(torch.from_numpy(random.normal(size=(D + more, D + more)))).Q.to(law.tau.dtype)
        tail = draw.integer(0, more)
        spread = torch.full((tail,), 0.4, dtype=law.tau.dtype)
        law = with_tail(
            law, axes[:, : D + tail], torch.zeros(D + more).to(spread), spread, torch.tensor(0.2).to(spread)
        )
    if random.random() < 0.8:
        law.requires_grad_(False)
    draw.words.append(
        f"{type(law).__name__}(dim={law.dim}, latent_dims={law.latent_dims}, modes={law.modes}, tau={tau})"
    )
    draw.given.append(("law", law, snapshot(law)))
    return law


ANSWERS = {"log_prob": "n", "score": "nd", "denoise": "nd", "divergence": "n", "posterior_variance": "nd", "subspace_responsibilities": "nk"}  # fmt: skip


def law_methods(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law, n, name = law_of(draw), draw.integer(1, 9), pick(draw.random, list(ANSWERS))
    x, numbers = rows(draw, n, law.dim)
    s, gamma = level(draw, "s", n, 0.1, 1.0), level(draw, "gamma", n, 0.05, 2.0)
    shape = {"n": (n,), "nd": (n, law.dim), "nk": (n, law.subspaces)}[ANSWERS[name]]

    def check(found: Any) -> str | None:
        if isinstance(found, torch.Tensor) != isinstance(x, torch.Tensor):
            return f"answered a {type(x).__name__} with a {type(found).__name__}"
        exact = getattr(law, name)(numbers, s, gamma)
        if "16" in str(getattr(x, "dtype", "")) and float(exact.abs().max()) > 6e4:
            return None  # beyond what float16 holds
        return shaped(found, shape) or close(found, exact, precision_of(x))

    return f"law.{name}", lambda: getattr(law, name)(x, s, gamma), check


def law_posterior(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law, n = law_of(draw), draw.integer(1, 5)
    x, _ = rows(draw, n, law.dim)
    s, gamma = level(draw, "s", n, 0.1, 1.0), level(draw, "gamma", n, 0.1, 2.0)
    count = draw.one("n", [1, 2, 7, np.int64(3)], [0, -1, 1.5])
    source = generator(draw)

    def call() -> Any:
        found = law.posterior(x, s, gamma)
        return found.mean, found.variance, found.sample(count, source), found.responsibilities, found.log_prob

    def check(found: Any) -> str | None:
        wanted = [(n, law.dim), (n, law.dim), (int(count), n, law.dim), (n, sum(law.modes)), (n,)]
        return next((why for each, shape in zip(found, wanted, strict=True) if (why := shaped(each, shape))), None)

    return "law.posterior", call, check


def law_sample(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law = law_of(draw)
    n = draw.one("n", [0, 1, 5, np.int32(4), torch.tensor(3)], [-1, 2.0, "5"])
    kept = draw.options(
        s=[1.0, 0.3, np.float32(0.5)], gamma=[0.0, 0.4, torch.tensor(0.3)], subspace=[None, 0, law.subspaces - 1]
    )
    source = generator(draw)

    def check(found: Any) -> str | None:
        return shaped(found.x, (int(n), law.dim)) or shaped(found.subspace, (int(n),)) or shaped(found.mode, (int(n),))

    return "law.sample", lambda: law.sample(n, source, **kept), check


def law_parts(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law = law_of(draw, tau=0.3)
    name = pick(draw.random, ("subspace", "alone", "scaled", "moment_matched", "summary", "repr", "copy", "state"))
    k = draw.one("k", list(range(law.subspaces)), [law.subspaces, -1, -law.subspaces - 1, 1.0])
    c = draw.one("c", [1.0, 0.5, np.float32(2)], [0.0, -1.0])
    calls: dict[str, Callable[[], Any]] = {
        "subspace": lambda: law.subspace(k),
        "alone": lambda: law.alone(k),
        "scaled": lambda: law.scaled(c),
        "moment_matched": law.moment_matched,
        "summary": law.summary,
        "repr": lambda: repr(law),
        "copy": lambda: copy.deepcopy(law),
        "state": lambda: pickle.loads(pickle.dumps(law)),
    }

    def check(found: Any) -> str | None:
        x = torch.zeros(2, law.dim, dtype=torch.float64)
        return shaped(found.log_prob(x, 1.0, 0.5), (2,)) if isinstance(found, molrmog.Law) else None

    return f"law.{name}", calls[name], check


def law_made(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    D = draw.one("dim", [1, 2, 5, 8])
    dims = draw.one(
        "latent_dims", [[1], [1, 1], (1,), np.array([1]), torch.tensor([1, 1])], [[0], [99], [1.5], [-1], 3]
    )
    count = len(dims) if isinstance(dims, list | tuple) else 1
    modes = draw.one("modes", [[1] * count, [2] * count], [[0], [-1], [1, 2, 3], 2])
    draw.right = draw.right and isinstance(dims, list | tuple)
    kept = draw.options(
        dtype=[None, torch.float64, torch.float32], rank=[None, 0, 1], noise=[0.1, 0.0], seed=[0, np.int64(3)]
    )
    if draw.random.random() < 0.5:
        return "MoLRMoG.random", lambda: MoLRMoG.random(D, dims, modes, **kept), lambda law: finite_law(law)
    kept = {name: value for name, value in kept.items() if name == "dtype"}
    return "MoLRMoG()", lambda: MoLRMoG(D, dims, modes, **kept), lambda law: None


def law_from_parts(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law = MoLRMoG.random(
        4, (2, 1), (2, 1), noise=0.2, seed=draw.integer(0, 9), dtype=pick(draw.random, (torch.float32, torch.float64))
    )
    parts = [law.subspace(k) for k in range(2)]
    fields = ["weight", "basis", "offset", "tau", "mode_weights", "means", "factors"]
    if draw.random.random() < 2 * draw.hostility:
        draw.right = False
        field, k = pick(draw.random, fields), draw.integer(0, 1)
        old = getattr(parts[k], field)
        wrong = [old[:-1], old * math.nan, old.T, old[None]] if isinstance(old, torch.Tensor) and old.ndim > 1 else []
        from dataclasses import replace

        parts[k] = replace(parts[k], **{field: draw.say(field, pick(draw.random, wrong + anything(draw.random)))})
    whole = draw.one("subspaces", [parts, tuple(parts), parts[:1]])
    return "MoLRMoG.from_subspaces", lambda: MoLRMoG.from_subspaces(whole), finite_law


def finite_law(law: Any) -> str | None:
    return shaped(law.log_prob(torch.zeros(2, law.dim, dtype=torch.float64), 1.0, 0.5), (2,))


def fits(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    n, d = draw.integer(1, 40), draw.integer(1, 6)
    x, numbers = rows(draw, n, d)
    y = np.arange(n) % 3
    kept = draw.options(
        subspaces=[1, 2, np.int64(1)],
        latent_dim=[1, [1], d, np.int64(1), (1,)],
        modes=[1, 2, [1]],
        rank=[None, 0, 1],
        head=[None, 1, "auto"],
        noise=[None, "auto", "isotropic", "diagonal", "shared"],
        axes=[None, "pca", "dct", np.eye(d), torch.eye(d)],
        seed=[0, -1, 2**64, np.uint8(3), torch.tensor(4)],
        zero_mean=[False, True],
        prior_rows=[None, 0.0, 10],
        noise_floor=[None, 0.1],
        tol=[1e-4, 0.0],
        weights=[None, np.ones(n), torch.ones(n)],
        validation=[None, np.zeros((2, d)), torch.zeros(3, d)],
        labels=[None, y, y.tolist(), y.astype(str), torch.from_numpy(y), y.astype(np.uint8)],
        dtype=[None, torch.float64, torch.float32],
        device=[None, "cpu", torch.device("cpu")],
        progress=[False],
    )
    kept = {"subspaces": 1, "latent_dim": 1, "modes": 1, "max_iter": draw.one("max_iter", [0, 1, 3])} | kept
    # Few rows, constant ones or shapes that do not go together may be refused: a refusal in one line is right here.
    draw.right = False

    def check(law: Any) -> str | None:
        return None if numbers is None else shaped(law.log_prob(numbers.double(), 1.0, 0.5), (n,))

    return "fit", lambda: molrmog.fit(x, **kept), check


# --- schedules, samplers, denoisers


def schedule_of(draw: Draw) -> Any:
    name = pick(draw.random, ("VPSchedule", "VESchedule", "CosineSchedule", "FlowSchedule"))
    draw.words.append(name)
    return getattr(molrmog, name)()


def schedules(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    schedule = schedule_of(draw)
    name = pick(draw.random, ("__call__", "f", "g", "log_snr", "time", "time_grid"))
    if name == "time_grid":
        steps = draw.one("steps", [1, 2, 9, np.int64(3)], [0, -1, 2.5])
        kept = draw.options(spacing=["log-snr", "uniform", "karras"], rho=[7.0, 1])
        return f"schedule.{name}", lambda: schedule.time_grid(steps, **kept), lambda t: shaped(t, (int(steps) + 1,))
    t = draw.one(
        "t",
        [0.5, 0.1, torch.tensor(0.3), torch.rand(4, generator=torch.Generator().manual_seed(1)), np.float64(0.2), 1],
        [np.linspace(0.1, 0.9, 3), [0.1, 0.2], torch.tensor([1, 0]), torch.rand(2).half(), -1.0, 7.0],
    )

    def check(found: Any) -> str | None:
        for each in found if isinstance(found, tuple) else (found,):
            if why := shaped(each, tuple(getattr(t, "shape", ()))):
                return why if isinstance(t, torch.Tensor) or t != 1 else None  # infinite at the end of some
        return None

    return f"schedule.{name}", lambda: getattr(schedule, name)(t), check


def schedules_made(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    name = pick(draw.random, ("VPSchedule", "VESchedule", "CosineSchedule", "FlowSchedule", "DiscreteSchedule"))
    own = {
        "VPSchedule": {"beta_min": [0.1, 1], "beta_max": [20.0, 30]},
        "VESchedule": {"sigma_min": [0.01], "sigma_max": [50.0, 3]},
        "CosineSchedule": {"offset": [0.008]},
        "FlowSchedule": {},
        "DiscreteSchedule": {"alphas_cumprod": [(0.9, 0.5, 0.1), [0.99, 0.2], np.array([0.9, 0.1])]},
    }[name]
    kept = draw.options(t_min=[1e-3, 0.01], **own)
    if draw.random.random() < 0.3:
        draw.right = draw.right and not set(kept) - {"t_min"}  # the others belong to one schedule each
        config = {"name": draw.one("name", ["vp", "ve", "cosine", "flow"]), **kept}
        return "Schedule.from_config", lambda: molrmog.schedules.Schedule.from_config(config), lambda _: None
    return name, lambda: getattr(molrmog, name)(**kept), lambda s: shaped(s(torch.tensor([0.3, 0.6]))[1], (2,))


def samples(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law = law_of(draw, tau=0.3)
    denoiser = draw.one("denoiser", [law])
    schedule = draw.one("schedule", [schedule_of(draw)], ["vp", molrmog.VPSchedule])
    n = draw.integer(1, 5)
    shape = draw.one(
        "shape", [(n, law.dim), [n, law.dim], torch.Size((n, law.dim))], [(n, law.dim + 1), (0, law.dim), (n,), n]
    )
    kept = draw.options(
        sampler=list(SAMPLERS),
        steps=[1, 2, 5, np.int64(3)],
        spacing=["log-snr", "uniform", "karras"],
        batch_size=[None, 1, 2, 99],
        dtype=[None, torch.float64, torch.float32],
        device=[None, "cpu"],
        jump=[None, 0.5],
        jump_by=["gaussian", "law"],
        trajectory=[False, True],
    )
    kept["generator"] = generator(draw)
    if str(kept.get("sampler")) == "exact" or kept.get("jump") is not None:
        draw.right = False  # not every schedule and sampler goes with these

    def check(found: Any) -> str | None:
        return shaped(getattr(found, "x", found), (n, law.dim))

    return "sample", lambda: molrmog.sample(denoiser, schedule, shape, **{"steps": 3, **kept}), check


def network(draw: Draw) -> Any:
    """A small denoiser of three experts over R^4, some of which know the experts."""
    law = MoLRMoG.random(4, (2, 2, 1), (1, 2, 1), noise=0.2, seed=0, dtype=torch.float32)
    mlp = molrmog.MLPDenoiser(4, width=8, depth=1, experts=3, unconditional=True)
    made = {
        "MoG": lambda: molrmog.MoGDenoiser(law),
        "Gaussian": lambda: molrmog.GaussianDenoiser(MoLRMoG.random(4, (2,), (1,), noise=0.2, seed=0)),
        "MLP": lambda: molrmog.MLPDenoiser(4, width=8, depth=1),
        "MLP of experts": lambda: mlp,
        "ConditionalLaw": lambda: molrmog.ConditionalLaw(copy.deepcopy(law).requires_grad_(False)),
        "Guided": lambda: molrmog.GuidedDenoiser(mlp, 2.0),
        "PerExpert": lambda: molrmog.PerExpert([molrmog.MLPDenoiser(4, width=8, depth=1) for _ in range(3)]),
        "Blend": lambda: molrmog.BlendDenoiser([law, molrmog.MLPDenoiser(4, width=8, depth=1)]),
        "Residual": lambda: molrmog.ResidualDenoiser(law, molrmog.MLPDenoiser(4, width=8, depth=1, inputs=2)),
        "Centred": lambda: molrmog.CentredDenoiser(molrmog.MLPDenoiser(4, width=8, depth=1), torch.zeros(4)),
    }
    name = pick(draw.random, list(made))
    draw.words.append(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = made[name]().eval()
    draw.given.append((name, found, snapshot(found)))
    return found


def denoisers(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    denoiser, n = network(draw), draw.integer(1, 5)
    form = pick(
        draw.random, ["tensor float32", "tensor float32", "tensor with gradient", "tensor", "tensor by columns"]
    )
    x = torch.from_numpy(draw.random.normal(size=(n, 4)))
    if draw.random.random() < draw.hostility:
        draw.right = False
        value = draw.say("x", wrong_rows(draw.random, x.numpy()))
    else:
        value = draw.say(
            "x", FORMS[form](x.numpy()).float() if form != "tensor" else FORMS["tensor float32"](x.numpy())
        )
    s = draw.one("s", [0.5, 1.0, torch.full((n,), 0.7)], [torch.ones(n + 1), -1.0, 0.0])
    gamma = draw.one("gamma", [0.5, 2.0, torch.full((n,), 0.3)], [torch.ones(n + 1), -1.0, 0.0])
    kept = {}
    if molrmog.models.num_experts_of(denoiser):
        some = torch.arange(n) % 3
        kept["expert"] = draw.one("expert", [0, 2, some], [3, -2, some[:-1], some.float(), "0", [0] * n])
    elif draw.random.random() < draw.hostility:
        kept["expert"] = draw.one("expert", [None], [0, torch.zeros(n)])
    return "denoiser.denoise", lambda: denoiser.denoise(value, s, gamma, **kept), lambda found: shaped(found, (n, 4))


def denoisers_made(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    law = MoLRMoG.random(4, (2, 1), (1, 2), noise=0.2, seed=0).requires_grad_(False)
    mlp = molrmog.MLPDenoiser(4, width=8, depth=1, experts=2, unconditional=True)
    kind = pick(
        draw.random, ("MLP", "MoG", "Gaussian", "Guided", "Conditional", "Blend", "Centred", "Residual", "condition_on")
    )
    draw.right = False
    if kind == "MLP":
        kept = draw.options(
            width=[8, 16], depth=[1, 2], experts=[0, 2], dropout=[0.0, 0.5], sigma_data=[1.0, 0.5], inputs=[1, 2]
        )
        dim = draw.one("dim", [1, 4])
        call: Callable[[], Any] = lambda: molrmog.MLPDenoiser(dim, **kept)  # noqa: E731
    elif kind == "MoG":
        whole = draw.one("law", [law])
        kept = draw.options(learn=["all", "mean", ["mean", "factor"], ()], orthonormal_factors=[False, True])
        call = lambda: molrmog.MoGDenoiser(whole, **kept)  # noqa: E731
    elif kind == "Gaussian":
        whole = draw.one("law", [law.alone(0), law])
        kept = draw.options(learn=["all", "mean"], learned_mean=[False, True])
        call = lambda: molrmog.GaussianDenoiser(whole, **kept)  # noqa: E731
    elif kind == "Guided":
        whole, scale = draw.one("network", [mlp, law]), draw.one("scale", [1.0, 2, 0])
        kept = draw.options(interval=[None, (0.1, 1.0), [0, 5]])
        call = lambda: molrmog.GuidedDenoiser(whole, scale, **kept)  # noqa: E731
    elif kind == "Conditional":
        whole = draw.one("law", [law])
        call = lambda: molrmog.ConditionalLaw(whole)  # noqa: E731
    elif kind == "Blend":
        whole = draw.one("parts", [[law, mlp], [mlp], []])
        call = lambda: molrmog.BlendDenoiser(whole)  # noqa: E731
    elif kind == "Centred":
        whole, mean = draw.one("network", [mlp]), draw.one("mean", [torch.zeros(4)], [torch.zeros(3), np.zeros(4)])
        call = lambda: molrmog.CentredDenoiser(whole, mean)  # noqa: E731
    elif kind == "Residual":
        base, whole = draw.one("base", [law]), draw.one("network", [molrmog.MLPDenoiser(4, width=8, inputs=2), mlp])
        kept = draw.options(added=[1.0, 0.5, 0], gates=[False, True], sigma_data=[0.5], as_input=[True, False])
        call = lambda: molrmog.ResidualDenoiser(base, whole, **kept)  # noqa: E731
    else:
        whole, expert = draw.one("denoiser", [mlp, law]), draw.one("expert", [0, 1, None, torch.tensor([0, 1])])
        call = lambda: molrmog.condition_on(whole, expert)  # noqa: E731
    return f"{kind} made", call, lambda _: None


# --- data, metrics, estimator, files


def datasets(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    n = draw.integer(2, 12)
    y = np.arange(n) % 2
    x = draw.random.normal(size=(n, 4)).astype(np.float32)
    data = Dataset(name="some", x=x, labels=y, shape=(1, 2, 2), scale=0.5, levels=256)
    draw.given.append(("dataset", data, snapshot(data)))
    name = pick(draw.random, ("split", "subset", "to_images", "to_raw", "Dataset", "Layout", "from_info", "info"))
    if name == "split":
        fraction, seed = draw.one("fraction", [0.5], [0.0, 1.0, 2]), draw.one("seed", [0, -1, np.int64(2), 2**70])
        return name, lambda: data.split(fraction, seed), lambda found: None if len(found[0]) + len(found[1]) == n else "lost rows"  # fmt: skip
    if name == "subset":
        index = draw.one(
            "index",
            [
                [0],
                slice(0, 1),
                np.array([0, 1]),
                y == 0,
                range(2),
                (0, 1),
                torch.tensor([1, 0]),
                (y == 0).tolist(),
                [-1],
            ],
            [[n], [-n - 1], [0.5], [], [[0, 1]], [True], 0, slice("a"), slice(0, 0)],
        )
        return (
            name,
            lambda: data.subset(index),
            lambda found: close(found.x, x[index if isinstance(index, slice) else np.asarray(index)], 0.0),
        )
    if name in ("to_images", "to_raw"):
        value, numbers = rows(draw, n, 4)
        shape = (n, 2, 2) if name == "to_images" else (n, 4)
        off = 1 / 255 if name == "to_images" else precision_of(value)  # halves of a level may go either way
        return (
            name,
            lambda: getattr(data, name)(value),
            lambda found: shaped(found, shape) or close(found, getattr(data, name)(numbers), off),
        )
    if name == "Dataset":
        value, numbers = rows(draw, n, 4)
        kept = {"name": "some", "x": value, "shape": draw.one("shape", [(4,), (1, 2, 2)], [4, (3,), (), (4.0,)])}
        kept |= draw.options(
            labels=[None, y, y.tolist(), torch.from_numpy(y), y.astype(float), pd.Series(y), y.astype(object)],
            scale=[1.0, 2, np.float32(0.5), torch.tensor(2.0)],
            shift=[0.0, np.int8(-1)],
            levels=[None, 256, np.int64(17)],
            classes=[None, ("a", "b"), ["a", "b"], np.array(["a", "b"])],
        )

        def check(found: Any) -> str | None:
            if type(found.x) is not np.ndarray or found.x.dtype not in (np.float32, np.float64):
                return f"keeps rows as {type(found.x).__name__} of {getattr(found.x, 'dtype', '')}"
            if found.labels is not None and (found.labels.dtype != np.int64 or (found.labels != y).any()):
                return "keeps other labels"
            return close(found.x, numbers, 0.0)

        return name, lambda: Dataset(**kept), check
    if name == "Layout":
        kept = {"name": "some", "shape": draw.one("shape", [(4,), (1, 2, 2)], [4, (), (0,), (4.0,), ("a",)])}
        kept |= draw.options(scale=[1.0, 2], shift=[0.0], levels=[None, 256], classes=[None, ("a", "b")])
        return name, lambda: Layout(**kept).dim, lambda found: None
    info = {
        key: draw.one(key, [value]) for key, value in data.info().items() if draw.random.random() > draw.hostility / 4
    }
    if len(info) < len(data.info()):
        draw.right = False
    whole = draw.one("info", [info])
    return "from_info", lambda: Layout.from_info(whole), lambda found: None


def measures(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    n, m, d = draw.integer(4, 12), draw.integer(4, 12), draw.integer(2, 5)
    law = MoLRMoG.random(d, (1, 2), (1, 2), noise=0.2, seed=0, dtype=torch.float64).requires_grad_(False)
    name = pick(
        draw.random,
        (
            *(
                "frechet_distance",
                "precision_recall",
                "density_coverage",
                "memorisation",
                "nearest",
                "principal_angles",
            ),
            *(
                "log_likelihood",
                "denoising_loss",
                "assign",
                "clustering",
                "gaussian_of",
                "outputs",
                "agreement",
                "cost",
            ),
            *("jump_time", "subspace_error", "edm_weight", "frechet_from_moments", "PixelPCA"),
        ),
    )
    x, numbers = rows(draw, n, d)
    given = [numbers]
    if numbers is None or bool((numbers == numbers[:1]).all()):
        draw.right = False  # rows that are all the same have no spread
    metric = getattr(metrics, name)
    finite = lambda found: None  # noqa: E731

    def same_as(call: Callable[..., Any]) -> Callable[[Any], str | None]:
        """Compare with what the same rows give as plain tensors."""

        def check(found: Any) -> str | None:
            return close(flat(found), flat(call(*given)), max(1e-4, precision_of(x)))

        return check

    if name in ("frechet_distance", "precision_recall", "density_coverage", "memorisation", "nearest"):
        y, z = rows(draw, m, d, "y"), rows(draw, m, d, "z") if name == "memorisation" else None
        given += [y[1]] if z is None else [y[1], z[1]]
        extra = [] if z is None else [z[0]]
        ks = []
        if name in ("precision_recall", "density_coverage", "nearest"):
            ks = [draw.one("k", [1, 2, 3], [0, -1, 99, 1.5])]
        # Ties go either way with the last digit, and a count with them.
        check = same_as(lambda *rows: metric(*rows, *ks)) if name == "frechet_distance" else finite
        if name == "nearest":
            check = lambda found: close(found[0], metric(*given, *ks)[0], max(1e-4, precision_of(x)))  # noqa: E731
        return f"metrics.{name}", lambda: metric(x, y[0], *extra, *ks), check
    if name == "principal_angles":
        a, b = (torch.linalg.qr(torch.from_numpy(draw.random.normal(size=(d, 2)))).Q for _ in range(2))
        a, b = draw.one("a", [a, a.numpy()], [x]), draw.one("b", [b, b.numpy()], [x])
        return f"metrics.{name}", lambda: metric(a, b), finite
    if name == "clustering":
        a = draw.one("assigned", [np.arange(n) % 2, torch.arange(n) % 2], [np.arange(n + 1), x, np.arange(n) * 0.5])
        b = draw.one("labels", [np.arange(n) % 3, (np.arange(n) % 3).tolist()], [np.arange(0), x])
        return f"metrics.{name}", lambda: metric(a, b), finite
    if name in ("log_likelihood", "assign"):
        model = draw.one("law", [law])
        kept = draw.options(chunk=[1, 5, 8192])
        check = same_as(lambda x: metric(model, x, **kept)) if name == "log_likelihood" else finite
        return f"metrics.{name}", lambda: metric(model, x, **kept), check
    if name == "denoising_loss":
        model = draw.one("denoiser", [law])
        kept = draw.options(sigma_data=[0.5, 1], draws=[1, 3], edges=[(-1.0, 0.0), ()], seed=[0, 5])
        return f"metrics.{name}", lambda: metric(model, x, **kept), same_as(lambda x: metric(model, x, **kept))
    if name in ("outputs", "agreement", "jump_time"):
        schedule = draw.one("schedule", [schedule_of(draw)])
        kept = draw.options(
            seed=[0, 3], **({"tolerance": [0.05, 0.5]} if name == "jump_time" else {"times": [2, [0.3, 0.6]]})
        )
        models = draw.one("denoiser", [law]), draw.one("law", [law])
        return f"metrics.{name}", lambda: metric(*models, x, schedule, **kept), finite
    if name == "subspace_error":
        other = draw.one("true", [law, [law.subspace(0).basis]], [x, []])
        return f"metrics.{name}", lambda: metric(law, other), finite
    if name == "edm_weight":
        gamma = draw.one("gamma", [torch.rand(3) + 0.1])
        return f"metrics.{name}", lambda: metric(gamma, 0.5), finite
    if name == "cost":
        model = draw.one("denoiser", [law])
        return f"metrics.{name}", lambda: metric(model, torch.zeros(n, d), 0.5, 0.5), finite
    if name == "frechet_from_moments":
        moments = [draw.one("moment", [value], [x]) for value in (np.zeros(d), np.eye(d), np.ones(d), torch.eye(d))]
        return f"metrics.{name}", lambda: metric(*moments), finite
    if name == "PixelPCA":
        dim = draw.one("dim", [1, 2, 64], [0, -1])
        return f"metrics.{name}", lambda: metric(x, dim)(x), lambda found: None
    return f"metrics.{name}", lambda: metric(x), finite


def estimator(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    n, d = draw.integer(8, 40), draw.integer(1, 5)
    x, _ = rows(draw, n, d)
    kept = draw.options(
        n_subspaces=[1, 2], latent_dim=[1, 8, [1]], n_modes=[1, 2], rank=[None, 0, 1], head=[None, 1, "auto"],
        noise=["isotropic", "diagonal", "shared"], axes=[None, "pca", "dct", np.eye(d)], zero_mean=[False, True], prior_rows=[None, 5], noise_floor=[None, 0.1], tol=[1e-4],
        random_state=[None, 0, np.random.RandomState(0)], use_labels=[False, True],
    )  # fmt: skip
    y = draw.one("y", [None, np.arange(n) % 2, list("ab" * n)[:n]])
    method = pick(draw.random, ("score_samples", "transform", "predict", "predict_proba", "sample", "score"))
    draw.right = False  # scikit-learn refuses much by itself, and rightly
    made = {"n_subspaces": 1, "latent_dim": 1, "max_iter": 2, **kept}

    def call() -> Any:
        fitted = MoLRMoGEstimator(**made).fit(x, y)
        verb = getattr(fitted, method, fitted.score_samples)
        return verb(3) if method == "sample" else verb(x)

    return "estimator", call, lambda _: None


def files(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    """`load_data`, `load`, `save_pretrained`: of a folder with one of each, by every name."""
    folder = draw.folder
    np.save(folder / "x.npy", np.zeros((4, 3)))
    np.savez(folder / "xy.npz", x=np.eye(5), y=np.arange(5))
    law = MoLRMoG.random(3, (1,), (1,), noise=0.2, seed=0)
    law.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("no data\n")
    (folder / "t.csv").write_text("a,b,kind,label\n" + "".join(f"{i}.5,{i * i},k{i % 2},{i % 2}\n" for i in range(9)))
    (folder / "empty").mkdir()
    names = [
        "x.npy",
        "xy.npz",
        "model",
        "text.txt",
        "empty",
        "nothing.npy",
        "model/config.json",
        "model/model.safetensors",
    ]
    name = pick(
        draw.random, ("load_data", "load of a table", "load_parts", "load", "save_pretrained", "from_pretrained")
    )
    wrong = [str(folder / each) for each in names[2:]] + [
        folder / "x.npy",
        "",
        ".",
        "/",
        "~",
        "digitz",
        "a" * 5000,
        "x\0y",
    ]
    if name == "load_data":
        path = draw.one("source", [folder / "x.npy", str(folder / "xy.npz"), "digits"], wrong)
        kept = draw.options(split=["train"], dequantise=[False], seed=[0, -3], data_dir=[None, folder])
        if isinstance(path, str) and path == "digits":
            kept.pop("data_dir", None)
        return name, lambda: molrmog.load_data(path, **kept), lambda found: shaped(found.x, found.x.shape)
    if name in ("load of a table", "load_parts"):
        path = draw.one("source", [str(folder / "t.csv")])
        kept = draw.options(
            label_column=[None, "label", "kind"], columns=["a,b", ["a", "b"], ("a",), np.array(["a", "b"])],
            drop=["kind", ["kind"]], background=["white", "grey"], dequantise=[False], seed=[0, -3], image_size=[None],
            data_dir=[None, str(folder)], categories=["one-hot"],
            **({"held_out": [0.3, np.float32(0.5)]} if name == "load_parts" else {}),
        )  # fmt: skip
        draw.right = draw.right and "drop" not in kept and ("columns" in kept or "categories" in kept)
        load = molrmog.data.load_parts if name == "load_parts" else molrmog.load_data
        return name, lambda: load(path, **kept), lambda found: None
    path = draw.one("path", [folder / "model", str(folder / "model")], wrong)
    if name == "save_pretrained":
        target = draw.one(
            "path", [folder / "new", str(folder / "a" / "b")], [str(folder / "x.npy"), "/dev/null/x", "x\0y"]
        )
        return name, lambda: law.save_pretrained(target), lambda found: None
    loader = (
        molrmog.load
        if name == "load"
        else pick(draw.random, (MoLRMoG.from_pretrained, molrmog.HeadTail.from_pretrained))
    )
    if loader == molrmog.HeadTail.from_pretrained:
        draw.right = False
    return name, lambda: loader(path), lambda found: None


def trained(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    """`TrainingOptions`, `ScoreMatching` and `train`, one step of it."""
    kept = draw.options(
        batch_size=[4, 256, np.int64(3)], micro_batch_size=[None, 2], optimizer=["adamw", "adam"],
        learning_rate=[1e-3, np.float32(0.1)], annealing=["cosine", "constant"], warmup=[0, 5], weight_decay=[0.0, 0.1],
        grad_clip=[None, 1.0], ema_decay=[0.0, 0.9], mixed_precision=["no"], seed=[0, 3], device=[None, "cpu"],
        log_every=[1], checkpoint_every=[1], keep=[1], validate_every=[1], grid_every=[1],
    )  # fmt: skip
    steps = draw.one("steps", [1, 2, np.int32(1)], [0, -1, 1.5])
    own = draw.options(
        weighting=["edm", "x0", "eps", "min-snr"], levels=["log-normal", "log-snr"], targets=["sample", "batch"],
        sigma_data=[0.5, 1], level_mean=[None, -1.0], level_std=[1.2], drop_expert=[0.0],
        levels_per_batch=[None, 1, np.int64(2), 10**6],
    )  # fmt: skip
    what = pick(draw.random, ("TrainingOptions", "ScoreMatching", "train", "train"))
    network = molrmog.MLPDenoiser(4, width=8, depth=1)
    if what == "TrainingOptions":
        kept |= draw.options(betas=[(0.9, 0.999), [0.5, 0.5]], out=[None], tensorboard=[False])
        return what, lambda: molrmog.TrainingOptions(steps=steps, **kept).learning_rate_at(0), lambda found: None
    schedule = draw.one("schedule", [schedule_of(draw)])
    if what == "ScoreMatching":
        model = draw.one("denoiser", [network])
        return what, lambda: molrmog.ScoreMatching(model, schedule, **own), lambda found: None
    n = draw.integer(1, 9)
    x, _ = rows(draw, n, 4)
    more = draw.options(
        experts=[None],
        validation=[None, np.zeros((2, 4)), torch.zeros(3, 4)],
        out=[None],
        progress=[False],
        on_grid=[None],
    )
    # The network is no argument that must stay as it is: it is trained in place.
    model = network if draw.random.random() < 0.8 else draw.one("denoiser", [None])
    draw.right = False  # rows without any spread are refused
    return (
        what,
        lambda: molrmog.train(model, x, schedule, steps=steps, **{"device": "cpu", **kept, **own, **more}),
        lambda found: None,
    )


def autoencoders(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    n, d = draw.integer(4, 12), draw.integer(2, 5)
    what = pick(draw.random, ("LinearAutoencoder", "from_pca", "from_basis", "encode_data"))
    if what == "LinearAutoencoder":
        shape, latent = draw.one("shape", [(4,), [1, 2, 2], np.array([4])]), draw.one("latent_dim", [1, 2, np.int64(3)])
        return what, lambda: molrmog.LinearAutoencoder(shape, latent), lambda found: None
    if what == "from_basis":
        basis = draw.one("basis", [torch.eye(4)[:, :2]], [torch.eye(4), np.eye(4)])
        offset, shape = draw.one("offset", [torch.zeros(4)]), draw.one("shape", [None, (4,), (1, 2, 2)])
        return what, lambda: molrmog.LinearAutoencoder.from_basis(basis, offset, shape), lambda found: None
    x, numbers = rows(draw, n, d)
    if numbers is None or bool((numbers == numbers[:1]).all()):
        draw.right = False  # no direction to vary in
    if what == "encode_data":
        chunk = draw.one("chunk", [None, 1, 99])
        linear = molrmog.LinearAutoencoder.from_basis(torch.eye(d, dtype=torch.float64)[:, :2], torch.zeros(d).double())
        return what, lambda: linear.encode_data(x, chunk), lambda found: close(found, numbers[:, :2], precision_of(x))
    latent = draw.one("latent_dim", [1], [0, 99, 1.5])
    return what, lambda: molrmog.LinearAutoencoder.from_pca(x, latent), lambda found: None


def seeds(draw: Draw) -> tuple[str, Callable[[], Any], Callable[[Any], str | None]]:
    number = draw.one(
        "seed", [0, -1, 2**63, -(2**80), 2**200, np.int8(-3), np.uint64(2**63), torch.tensor(5), np.array(4)]
    )
    which = pick(draw.random, (seed_of, torch_seed, numpy_seed))
    return which.__name__, lambda: which(number), lambda found: None if isinstance(found, int) else "no integer"


CALLS = (
    *(law_methods,) * 6, law_posterior, law_posterior, law_sample, law_sample, law_parts, law_made, law_from_parts,
    *(fits,) * 3, schedules, schedules_made, *(samples,) * 3, *(denoisers,) * 3, denoisers_made, datasets, datasets,
    *(measures,) * 3, estimator, files, files, seeds, trained, autoencoders,
)  # fmt: skip


# --- what is right


def shaped(found: Any, shape: tuple[int, ...]) -> str | None:
    """Whether a result has this shape, and no NaN or infinity."""
    if tuple(np.shape(found)) != shape:
        return f"answered with shape {tuple(np.shape(found))}, not {shape}"
    numbers = plain(found)
    return None if bool(torch.isfinite(numbers).all()) else "answered with NaN or infinity"


def plain(numbers: Any) -> torch.Tensor:
    """Numbers as a float64 tensor."""
    if isinstance(numbers, torch.Tensor):
        return numbers.detach().double()
    return torch.from_numpy(np.array(numbers, dtype=np.float64))


def flat(found: Any) -> torch.Tensor:
    """All numbers of a result, whatever holds them."""
    if isinstance(found, bool | np.bool_):
        return torch.zeros(0, dtype=torch.float64)  # says what was done, not what came of it
    if isinstance(found, int | float | np.ndarray | np.generic | torch.Tensor):
        return plain(found).reshape(-1)
    if dataclasses.is_dataclass(found):
        found = [getattr(found, each.name) for each in dataclasses.fields(found)]
    if isinstance(found, list | tuple):
        return torch.cat([torch.zeros(0, dtype=torch.float64), *(flat(each) for each in found)])
    return torch.zeros(0, dtype=torch.float64)


def close(found: Any, exact: Any, tolerance: float) -> str | None:
    numbers, exact = plain(found), plain(exact)
    if numbers.shape != exact.shape:
        return f"answered with shape {tuple(numbers.shape)}, and for a plain tensor with {tuple(exact.shape)}"
    numbers, exact = (
        torch.where((numbers == exact) | (numbers.isnan() & exact.isnan()), 0.0, each) for each in (numbers, exact)
    )
    most = float((numbers - exact).abs().max()) if numbers.numel() else 0.0
    scale = 1 + float(exact.abs().max()) if exact.numel() else 1.0
    return None if most <= tolerance * scale else f"answered another result than for a plain tensor: off by {most:.3g}"


def refusal(error: BaseException) -> str | None:
    """Why an exception is none that a caller should see."""
    kind, text = type(error).__name__, str(error)
    if not isinstance(error, REFUSALS):
        return f"raised {kind}: {text}"
    if kind == "InvalidParameterError":  # scikit-learn's own words, the same for every estimator
        return None
    if not text.strip() or len(text.splitlines()) > 1 or len(text) > LONGEST:
        return f"raised a {kind} of {len(text.splitlines())} lines, {len(text)} characters: {text}"
    if INTERNAL.search(text) and not isinstance(error, OSError):
        return f"raised an internal {kind}: {text}"
    return None


def foreign(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is not the library's own: those say what to do, in its words."""
    text = str(warning.message)
    own = (
        "EM dropped",
        "float32 rounds",
        "columns spread by less",
        "a subspace starts with",
        "cannot be written",
        "damaged",
        "left out",
        "are used as text",
    )
    return not any(each in text for each in own)


def case_of(number: int, folder: Path, seed: int) -> Case:
    """One call."""
    random = rng(seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw = Draw(random, folder)
        torch.manual_seed(number)
        what, call, check = pick(random, CALLS)(draw)

    def run() -> str | None:
        outcome: str | None = None
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                found = call()
            except MemoryError:
                return "raised MemoryError"
            except Exception as error:
                outcome = refusal(error)
                if draw.right and outcome is None:
                    outcome = f"refused right arguments: {type(error).__name__}: {error}"
            else:
                if draw.right or what == "fit":
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        outcome = check(found)
        changed = [
            name for name, value, before in draw.given if before is not None and not same(before, snapshot(value))
        ]
        alien = [f"{w.category.__name__}: {w.message}" for w in heard if foreign(w)]
        if outcome is None and changed:
            outcome = f"changed its argument {changed[0]} in place"
        if outcome is None and alien:
            outcome = f"warned, {alien[0]}"
        return None if outcome is None else printable(outcome)

    return Case(what, ", ".join(draw.words), run)


def main() -> int:
    asked = options(__doc__, tries=10_000, minutes=4)
    result = tally(__file__, asked)
    trials(result, asked, lambda number, folder: case_of(number, folder, asked.seed), batch=100)
    return result.close()


if __name__ == "__main__":
    sys.exit(main())
