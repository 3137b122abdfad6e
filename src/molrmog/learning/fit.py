"""From rows to a law: start, EM, and when to stop.

    subspaces from labels or from clustering  ->  modes by k-means  ->  EM until the log-likelihood settles

All of it sees the rows near the origin and in a unit near their spread, see `molrmog.learning.units`: a law fitted to
c x is the law fitted to x, times c.

With labels every subspace sees the rows of its own class only, so that EM splits into one small problem per class.
Noise that differs between coordinates may do so along other axes than those of the data: rows are turned to them once,
and the law is turned back. With a head, EM sees the leading principal coordinates alone, and every further principal
axis gets a variance that all subspaces share.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from molrmog.arguments import flag, is_a, one_of, real, shown, whole
from molrmog.laws.axes import Axes
from molrmog.laws.base import Law
from molrmog.laws.molrmog import NOISES, MoLRMoG
from molrmog.learning.asked import (
    Read,
    at_least_zero,
    axes_asked,
    check_count,
    check_sizes,
    is_auto,
    per_subspace,
    read,
    rows_of,
)
from molrmog.learning.completing import incomplete_of
from molrmog.learning.em import EMState, em_steps
from molrmog.learning.incomplete import passes_within
from molrmog.learning.rows import Rows
from molrmog.learning.search import Given
from molrmog.learning.select import Standard, choice, given_numbers
from molrmog.learning.selection import Selection, law_of
from molrmog.learning.structures import Structure
from molrmog.learning.subspaces import initial_law, principal_coordinates
from molrmog.learning.unequal_starts import likelier, starting_seeds, unexplained
from molrmog.learning.units import Moments, Units
from molrmog.progress import progress as stages
from molrmog.seeds import seed_of, torch_generator

_BESIDE_A_HEAD = 10, 32, 8  # subspaces, their dimension, and modes of each
_GREATEST_FLOOR = 1e18  # in units of the data's spread: its square is a number in float32
_CONSTANT = 1e-9  # of the overall deviation, from which a coordinate counts as one that varies
_FLOOR = 1e-3  # the default noise floor, of the overall standard deviation
_LOOKED_AT = 10_000  # rows from which quartiles are taken
_PATIENCE = 3  # passes without a better held-out log-likelihood
_FLAT = 2  # passes running that hardly raise the log-likelihood: a single one may be a plateau


def fit(
    x: Any,
    labels: Any = None,
    subspaces: int | Literal["auto"] = "auto",
    latent_dim: int | Sequence[int] | Literal["auto"] = "auto",
    modes: int | Sequence[int] | Literal["auto"] = "auto",
    rank: int | None = None,
    head: int | Literal["auto"] | None = None,
    seed: int = 0,
    *,
    noise: Literal["isotropic", "diagonal", "shared", "auto"] | None = "auto",
    axes: Literal["pca", "dct"] | Tensor | None = None,
    zero_mean: bool = False,
    prior_rows: float | None = None,
    noise_floor: float | None = None,
    n_init: int = 1,
    max_iter: int = 50,
    tol: float = 1e-4,
    weights: Any = None,
    validation: Any = None,
    start: MoLRMoG | None = None,
    selection: Selection | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    on_iteration: Callable[[EMState], None] | None = None,
    on_choice: Callable[[int, str], None] | None = None,
) -> Law:
    """Fit a law to rows of data by EM.

    What is not given is chosen by how likely it makes rows that were held out, see `molrmog.select`; what was tried is
    then in the law's `fit_summary_`.

    Args:
        x: rows, with shape (N, D): tensor, array, memory map (may be larger than memory), data frame, whose columns all
            count, or Dataset. NaN is a value that is missing: EM sees what is there, exactly (values missing at
            random); rows that lack values are held in memory.
        labels: class of each row, with shape (N,), integers or strings, none missing: one subspace per class, in sorted
            order. None clusters.
        subspaces: number K of subspaces, or "auto"; with labels, the number of classes counts instead.
        latent_dim: dimension d_k, of all subspaces or one per subspace, or "auto".
        modes: n_k, of all subspaces or one per subspace, or "auto".
        rank: rank of every mode's covariance; d_k where not given.
        head: None for a law whose subspaces lie anywhere in R^D; q for subspaces within the q leading principal axes,
            with diagonal noise along all of them: EM works in R^q, and the variance of each further axis is the same
            for all subspaces; "auto" for whichever of these has the best log-likelihood on a tenth of the rows. Nothing
            is chosen beside a head: 10 subspaces of dimension 32 with 8 modes, where no other numbers are given.
        seed: of everything random.
        noise: off the subspaces: "isotropic", one variance per subspace; "diagonal", one per coordinate and subspace;
            "shared", one per coordinate for all subspaces; "auto" chooses. None is that of `start`, or isotropic.
        axes: whose coordinates unequal noise goes along: None, those of the data (drawings, tables); "pca", the
            principal axes of all rows (photographs; D x D numbers, and an eigendecomposition of that size); "dct",
            cosines: of every channel of the pictures of a Dataset, else of a row as it is; or orthonormal columns,
            with shape (D, D).
        zero_mean: keep b = 0 and mu = 0; with modes=1 this is the low-rank Gaussian mixture of Wang et al. 2024.
        prior_rows: how many rows the prior on each mode's covariance is worth; the largest d_k where not given.
        noise_floor: smallest standard deviation of the noise, in data units. Where not given, a thousandth of the
            data's standard deviation; for unequal noise in the coordinates of the data a thousandth of that of the
            coordinate. It is at least 1e-9 of the data's standard deviation, or of the rows' size where they are all
            equal.
        n_init: of so many starts the one that a few passes make likeliest is fitted.
        max_iter: passes over the data, at most.
        tol: stop when the penalised log-likelihood per row and dimension rises by less in two passes running, in nats.
        weights: how many rows each row counts as, or shares that add up to one, with shape (N,). Where EM starts is
            found without them, but for rows of weight 0, which are left out.
        validation: held-out rows; stop when their log-likelihood no longer rises, and return the best law.
        start: a law to go on from; its shapes count, not `subspaces`, `latent_dim`, `modes` and `rank`.
        selection: what `molrmog.select` found, with the same `axes` and `zero_mean`: its best structure counts in place
            of the numbers above.
        dtype: float32 or float64, to compute in; where not given, float32 if that holds every value of x exactly, else
            float64.
        device: to compute on.
        progress: show a progress bar with the log-likelihood.
        on_iteration: called with the state after every pass.
        on_choice: called with the number of structures that were tried, and the best so far in words.

    Returns:
        The law, on `device`, not asking for gradients.

    Warns:
        UserWarning: the numbers that were given make more degrees of freedom than there are numbers in the rows.

    Raises:
        ValueError: the data are empty, infinite, too few, hold a column without a value, or do not fit the labels or
            shapes asked for; or there is no such device.

    References:
        arXiv 2601.01475, section 3, for the family; the module `molrmog.learning.em` for the algorithm.
    """
    seed = seed_of(seed)
    x_rows = rows_of(x, dtype=dtype, device=device)
    if (incomplete := incomplete_of(x_rows, validation)) is not None:
        _refuse_incomplete(axes, head, start)

        def again(
            rows: Rows,
            held_out: Rows | None,
            *,
            selection: Selection | None = selection,
            at: Tensor | None = None,
            passes: int = max_iter,
        ) -> MoLRMoG:
            found = fit(
                rows, labels, subspaces, latent_dim, modes, rank, None, seed, noise=noise, zero_mean=zero_mean,
                prior_rows=prior_rows, noise_floor=noise_floor, n_init=n_init, max_iter=passes, tol=tol,
                weights=weights if weights is None or at is None else torch.as_tensor(weights)[at],
                validation=held_out, start=start, selection=selection, progress=progress,
                on_iteration=on_iteration if at is None else None, on_choice=on_choice,
            )  # fmt: skip
            return cast(MoLRMoG, found)

        free = all(is_auto(each) for each in (subspaces, latent_dim, modes, noise)) and selection is None
        return incomplete.fitted(again, start, seed, may_judge=free and labels is None and validation is None)
    given = read(x_rows, labels, weights, validation)
    rows, y, w, held_out = given.rows, given.labels, given.weights, given.held_out
    asked = {"subspaces": subspaces, "latent_dim": latent_dim, "modes": modes, "noise": noise}
    chosen = {name for name, value in asked.items() if is_auto(value)} if start is None and head is None else set()
    if head is not None:
        K, d, n = _BESIDE_A_HEAD
        d = min(d, rows.dim, head if isinstance(head, int) else d)
        subspaces = K if is_auto(subspaces) else subspaces
        latent_dim = d if is_auto(latent_dim) else latent_dim
        modes = n if is_auto(modes) else modes
    if not chosen and is_auto(noise):
        noise = None
    max_iter = whole(max_iter, "max_iter")
    subspaces = 1 if is_auto(subspaces) else whole(cast(Any, subspaces), "subspaces")
    rank, prior_rows, noise_floor = at_least_zero(rank, prior_rows, noise_floor)
    head = head if head is None or (isinstance(head, str) and head == "auto") else whole(head, "head")
    turn = axes_asked(x, axes, rows.dim)
    tol = real(tol, "tol")
    for name, called in (("on_iteration", on_iteration), ("on_choice", on_choice)):
        if not (called is None or callable(called)):
            raise ValueError(f"{name} = {shown(called)}: pass a function, or None")
    zero_mean, progress = flag(zero_mean, "zero_mean"), flag(progress, "progress")
    n_init = whole(n_init, "n_init")
    if max_iter < 0:
        raise ValueError(f"max_iter = {max_iter}: pass a number >= 0")
    subspaces = subspaces if given.classes is None else given.classes
    if start is not None:
        if not is_a(start, MoLRMoG):
            raise ValueError(f"start = {shown(start)}: pass a MoLRMoG, or None")
        if head is not None:
            raise ValueError("a head/tail fit cannot start from a law: leave out start or head")
        if turn is not None:
            raise ValueError("start has the axes that the fit goes on with: leave out axes")
        if noise is not None and noise != start.noise and start.noise != "isotropic":
            raise ValueError(f"noise = {noise!r}, but start has {start.noise} noise: leave out noise, or start")
        if start.dim != rows.dim or (y is not None and start.subspaces != subspaces):
            classes = "" if y is None else f" in {subspaces} classes"
            raise ValueError(
                f"start is a law over R^{start.dim} with {start.subspaces} subspaces, but x has {rows.dim} "
                f"columns{classes}: start from a law of the same shape"
            )
        subspaces, latent_dim, modes = start.subspaces, start.latent_dims, start.modes
    check_count(subspaces)
    if n_init < 1 or (start is not None and n_init > 1):
        raise ValueError(f"n_init = {n_init}: pass 1 or more, and leave it out where start is given")
    if selection is not None:
        _check_selection(selection, given, start, head)
    if chosen or selection is not None:
        fixed = selection or given_numbers(given, asked, rank, turn, prior_rows, noise_floor)
        return _fit_chosen(
            given, fixed, turn, seed=seed, n_init=n_init, zero_mean=zero_mean, max_iter=max_iter, tol=tol,
            progress=progress, on_iteration=on_iteration, on_choice=on_choice,
        )  # fmt: skip
    kind = one_of(noise, "noise", NOISES) if noise is not None else start.noise if start is not None else "isotropic"
    if turn is not None and kind == "isotropic":
        raise ValueError("isotropic noise is the same in all axes: leave out axes, or pass noise='diagonal'")
    if head is not None and (turn is not None or noise == "shared"):
        raise ValueError("a head has diagonal noise along the principal axes: leave out axes and noise, or head")
    dims = per_subspace("latent_dim", cast(Any, latent_dim), subspaces)
    counts = per_subspace("modes", cast(Any, modes), subspaces)
    noise_floor = _checked(rows, dims, counts, noise_floor, equal=kind == "isotropic" and head is None)
    if head is None and start is None:
        _warn_of_freedom(rows, dims, counts, rank, kind)
    rows, units = rows.standard(centred=not zero_mean)
    held_out = None if held_out is None else held_out.inside(units)
    floor = None if noise_floor is None else noise_floor / units.unit
    if floor is not None and not floor < _GREATEST_FLOOR:
        raise ValueError(f"noise_floor = {noise_floor:.3g}: pass one below {_GREATEST_FLOOR * units.unit:.3g}")

    def pure(
        rows: Rows,
        y: Tensor | None,
        w: Tensor | None,
        held_out: Rows | None,
        units: Units,
        kind: str,
        law: MoLRMoG | None,
        *,
        principal: bool = False,
    ) -> MoLRMoG:
        deviation = rows.deviation(w)
        least = _relative_floor(deviation, alike=rows.is_turned) if floor is None else torch.full_like(deviation, floor)
        overall = float(least.max()) if floor is not None else _FLOOR * rows.moments().spread
        options: dict[str, Any] = {"prior_rows": prior_rows, "zero_mean": zero_mean, "noise_floor": overall}
        unit = None
        if kind != "isotropic":
            unit = deviation if principal else torch.maximum(unexplained(rows, w, seed), least)
            options |= {"spread": unit, "noise_floor": least}
        if law is None:
            laws: list[MoLRMoG] = []
            for one in starting_seeds(seed, n_init):
                begin = functools.partial(initial_law, rows, y, dims, counts, rank=rank, zero_mean=zero_mean, seed=one)
                laws.append(begin(noise_floor=overall))
                if unit is not None and not principal:
                    laws.append(begin(unit=unit))
            law = likelier([each.with_noise(kind).to(rows.device, rows.dtype) for each in laws], rows, y, w, **options)
        law = law.with_noise(kind).to(rows.device, rows.dtype)

        def watch(state: EMState) -> None:
            if on_iteration is not None:
                on_iteration(state.in_data_units(units))

        return _settle(law, rows, y, w, held_out, max_iter, tol, progress, watch, units, **options)

    def fitted(q: int | None, rows: Rows, y: Tensor | None, w: Tensor | None, held_out: Rows | None) -> MoLRMoG:
        begin = None if start is None else units.law_inside(start)
        along = turn if begin is None else begin.axes
        if q is None and along is None:
            return pure(rows, y, w, held_out, units, kind, begin)
        if q is None and isinstance(along, Axes):
            turned, test = rows.turned(along), None if held_out is None else held_out.turned(along)
            begin = None if begin is None else begin.without_axes()
            return pure(turned, y, w, test, units, kind, begin).with_axes(along)
        offset, axes, variance, _ = principal_coordinates(rows, w, centred=not zero_mean, most=rows.dim)
        along = Axes.of(axes)
        if q is None:
            turned, test = rows.turned(along), None if held_out is None else held_out.turned(along)
            return pure(turned, y, w, test, units, kind, None, principal=True).with_axes(along)

        def head(rows: Rows) -> Rows:
            return Rows(torch.cat([(chunk - offset) @ axes[:, :q] for _, chunk in rows.chunks()])).as_standard(
                turned=True
            )

        test = None if held_out is None else head(held_out)
        inner = pure(head(rows), y, w, test, units.along(q), "diagonal", None, principal=True)
        spread = variance.sqrt()
        least = _relative_floor(spread, alike=True) if floor is None else spread.new_full(spread.shape, floor)
        tail = torch.maximum(spread, least.to(spread))[q:]
        return _with_tail(inner, tail, along, offset)

    if head == "auto":
        head = _best_head(fitted, rows, y, w, max(dims), seed)
    elif head is not None and (isinstance(head, str) or not max(dims) <= head <= rows.dim):
        raise ValueError(f"head = {head}: pass a number from latent_dim = {max(dims)} to D = {rows.dim}, or 'auto'")
    return units.law_of_rows(fitted(head, rows, y, w, held_out))


def _fit_chosen(
    read: Read,
    given: Given | Selection,
    turn: Axes | Literal["pca"] | None,
    *,
    seed: int,
    n_init: int,
    zero_mean: bool,
    max_iter: int,
    tol: float,
    progress: bool,
    on_iteration: Callable[[EMState], None] | None,
    on_choice: Callable[[int, str], None] | None,
) -> Law:
    """Choose the structure of a law where it is not chosen yet, and fit it to all rows."""
    standard = Standard.of(read, turn, zero_mean=zero_mean)
    y, w, units = read.labels, read.weights, standard.units
    selection = (
        given
        if isinstance(given, Selection)
        else choice(standard, read, given, zero_mean=zero_mean, seed=seed, progress=progress, on_choice=on_choice)
    )
    best = selection.best
    if best.start is not None:
        best = dataclasses.replace(best, start=standard.law_inside(best.start))
    read.rows.warn_of_rounding(best.floor * read.rows.moments().spread)
    n_init = max(n_init, selection.starts)
    view, law, options = law_of(standard.rows, best, w, labels=y, zero_mean=zero_mean, seed=seed, n_init=n_init)

    def watch(state: EMState) -> None:
        if on_iteration is not None:
            own = dataclasses.replace(
                state,
                law=standard.turned_back(view.law_of_rows(state.law)),
                log_likelihood=state.log_likelihood - view.log_volume,
                penalised=state.penalised - view.log_volume,
            )
            on_iteration(own.in_data_units(units))

    most = max_iter if best.passes is None else min(max_iter, best.passes)
    seen = None if standard.held_out is None else view.seen(standard.held_out)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EM dropped")
        law = _settle(law, view.rows, y, w, seen, most, tol, progress, watch, units, **options)
    fitted = standard.law_of_rows(view.law_of_rows(law))
    fitted.fit_summary_ = selection  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return fitted


def _refuse_incomplete(axes: Any, head: Any, start: Any) -> None:
    """Refuse what rows that lack values cannot be fitted with.

    Raises:
        ValueError: axes or a head are asked for, in whose coordinates no single value is missing.
    """
    if axes is not None or head is not None or getattr(start, "axes", None) is not None:
        raise ValueError("rows that lack values are fitted in their own coordinates: leave out axes and head")


def _check_selection(selection: Any, read: Read, start: Any, head: Any) -> None:
    """Refuse a selection that is none, or is of other rows.

    Raises:
        ValueError: it is.
    """
    if not isinstance(selection, Selection):
        raise ValueError(f"selection = {shown(selection)}: pass what molrmog.select returned, or None")
    if start is not None or head is not None:
        raise ValueError("a selection says how to start: leave out start and head, or selection")
    if selection.dim != read.rows.dim:
        raise ValueError(f"selection is of rows with {selection.dim} columns, but x has {read.rows.dim}: select again")
    if read.classes not in (None, selection.best.subspaces):
        raise ValueError(
            f"selection has {selection.best.subspaces} subspaces for {read.classes} classes: select with these labels"
        )


def _warn_of_freedom(rows: Rows, dims: Sequence[int], counts: Sequence[int], rank: int | None, kind: str) -> None:
    """Say that a law has more to be found than there are numbers to find it from."""
    freedom = Structure(tuple(dims), tuple(counts), kind, rank=rank).degrees_of_freedom(rows.dim)
    numbers = len(rows) * rows.dim
    if freedom > numbers:
        warnings.warn(
            f"this law has {freedom:,} degrees of freedom, more than the {numbers:,} numbers in the rows can settle: "
            "leave out subspaces, latent_dim, modes and noise to have them chosen, or lower them",
            stacklevel=3,
        )


def _relative_floor(deviation: Tensor, *, alike: bool) -> Tensor:
    """A thousandth of each coordinate's deviation, and where that is none of the deviation of all; (D,).

    Coordinates along axes are alike in their units: there it is no less than a thousandth of the deviation of all.
    """
    overall = float(deviation.square().mean().sqrt())
    if alike:
        return _FLOOR * deviation.clamp(min=overall)
    return _FLOOR * torch.where(deviation > _CONSTANT * overall, deviation, overall)


def _with_tail(law: MoLRMoG, tail: Tensor, axes: Axes, offset: Tensor) -> MoLRMoG:
    """The law of offset + Q [u, e], frozen, where u follows `law` of diagonal noise, and e ~ N(0, diag(tail^2))."""
    D, q = axes.dim, law.dim
    config = {**law.config, "dim": D}
    whole = MoLRMoG.from_config(config).to(law.tau.device, law.tau.dtype).requires_grad_(False)
    whole.load_state_dict(
        {name: getattr(law, name) for name in ("mean", "factor", "subspace_logits", "mode_logits")}, strict=False
    )
    whole.basis.zero_()
    whole.basis[:q] = law.basis
    whole.offset[:, :q] = law.offset
    whole.offset.add_(axes.down(offset.to(whole.offset)))
    whole.tau[:, :q] = law.tau
    whole.tau[:, q:] = tail
    return whole.with_axes(axes)


def check_rows(x: Any) -> None:
    """Look at rows as `fit` does before it begins, with a warning of what it would not see in them.

    Args:
        x: rows, with shape (N, D), as `fit` takes them.

    Raises:
        ValueError: the rows are not finite.
    """
    rows = Rows(x)
    rows.warn_of_rounding(_FLOOR * rows.moments().spread)


def _checked(
    rows: Rows, latent_dims: Sequence[int], modes: Sequence[int], noise_floor: float | None, *, equal: bool = True
) -> float | None:
    """The noise floor, in data units, of rows that fit such shapes; with warnings of what is lost beneath it.

    Where noise is not equal in all coordinates, floors that are not given differ, and there is no one number.
    """
    check_sizes(rows, latent_dims, modes)
    moments = rows.moments()
    overall = _FLOOR * moments.spread if noise_floor is None else noise_floor
    if noise_floor is None and equal:
        _warn_of_small_columns(rows, moments, overall)
    rows.warn_of_rounding(overall)
    return overall if equal else noise_floor


def _best_head(
    fitted: Callable[..., Law], rows: Rows, labels: Tensor | None, weights: Tensor | None, smallest: int, seed: int
) -> int | None:
    """The head, None for the pure law, whose fit to nine tenths of the rows gives the last tenth most density."""
    order = torch.randperm(len(rows), generator=torch_generator(seed))
    groups = [order] if labels is None else [order[labels[order] == k] for k in labels.unique()]
    test, train = (
        torch.cat(parts) for parts in zip(*((g[: len(g) // 10], g[len(g) // 10 :]) for g in groups), strict=True)
    )
    if not len(test):
        raise ValueError(f"head='auto' holds out a tenth of the rows, but there are {len(rows)}: pass a number or None")
    y, w = (None if t is None else t[train] for t in (labels, weights))
    part, held_out = rows.subset(train), rows.subset(test)
    choices = [None, *sorted({q for q in (2 * smallest, 4 * smallest, 8 * smallest) if q < rows.dim})]
    return max(choices, key=lambda q: mean_log_prob(fitted(q, part, y, w, None), held_out))


def mean_log_prob(law: Law, rows: Rows) -> float:
    """Mean log p(x) over the rows, in nats."""
    with torch.no_grad():
        return sum(float(law.log_prob(chunk).double().sum()) for _, chunk in rows.chunks()) / len(rows)


def _settle(
    law: MoLRMoG,
    rows: Rows,
    labels: Tensor | None,
    weights: Tensor | None,
    held_out: Rows | None,
    max_iter: int,
    tol: float,
    progress: bool,
    on_iteration: Callable[[EMState], None],
    units: Units,
    **options: Any,
) -> MoLRMoG:
    """Run EM until the log-likelihood settles, and return the law that was reached; `units` are those of the rows."""
    if rows.has_gaps:  # passes over completed rows are cheap
        law = _settle(
            law,
            rows.without_gaps(),
            labels,
            weights,
            held_out,
            max_iter,
            tol,
            progress,
            lambda _: None,
            units,
            **options,
        )
        rows, max_iter = rows.with_gaps(), passes_within(law, len(rows), max_iter)
    held_out = None if held_out is None else held_out.with_gaps()
    together = labels is None or law.noise == "shared"  # noise that classes share is found from all of them
    steps = (
        em_steps(law, rows, weights=weights, labels=labels, **options)
        if together or labels is None
        else _steps_by_class(law, rows, labels, weights, **options)
    )
    best, best_value, since = law, -math.inf, 0
    before, flat = -math.inf, 0
    with stages(shown=progress) as show:
        show("EM", total=max_iter)
        for state in steps:
            value = state.penalised if held_out is None else mean_log_prob(state.law, held_out)
            if value > best_value:
                best, best_value, since = state.law, value, 0
            else:
                since += 1
            name = "log p" if held_out is None else "held-out log p"
            figure = state.log_likelihood if held_out is None else value
            show("EM", state.iteration, text=f"{name} {figure - units.log_volume:.2f} nats/row")
            on_iteration(state)
            flat = flat + 1 if state.penalised - before < tol * rows.dim else 0
            before = state.penalised
            settled = since >= _PATIENCE if held_out is not None else flat >= _FLAT
            if settled or state.iteration >= max_iter:
                break
    return best


def _steps_by_class(
    law: MoLRMoG, rows: Rows, labels: Tensor, weights: Tensor | None, prior_rows: float | None, **options: Any
) -> Iterator[EMState]:
    """EM of every class on its own rows, in step; log-likelihoods are of x and its label together."""
    runs: list[Iterator[EMState]] = []
    share: list[float] = []
    for k in range(law.subspaces):
        own = (labels == k).nonzero()[:, 0]
        w = None if weights is None else weights[own]
        share.append(len(own) / len(rows) if w is None or weights is None else float(w.sum() / weights.sum()))
        alone = MoLRMoG.from_subspaces([law.subspace(k)])
        runs.append(em_steps(alone, rows.subset(own), weights=w, prior_rows=prior_rows, **options))
    log_share = sum(w * math.log(w) for w in share)
    for states in zip(*runs, strict=True):
        parts = [dataclasses.replace(state.law.subspace(0), weight=w) for state, w in zip(states, share, strict=True)]
        yield EMState(
            iteration=states[0].iteration,
            law=MoLRMoG.from_subspaces(parts).requires_grad_(False),
            log_likelihood=log_share + sum(w * s.log_likelihood for w, s in zip(share, states, strict=True)),
            penalised=log_share + sum(w * s.penalised for w, s in zip(share, states, strict=True)),
            rejected=any(s.rejected for s in states),
        )


def _warn_of_small_columns(rows: Rows, moments: Moments, noise_floor: float) -> None:
    """Say where the default noise floor, one number for all columns, exceeds the spread of some.

    Columns that hold one value in most rows are left out, such as the margins of pictures, and so is what may be
    rounding.
    """
    deviation = moments.deviation
    size = float(torch.maximum(deviation, moments.mean.abs()).max())
    small = ((deviation < noise_floor) & (deviation > 4 * torch.finfo(rows.exact).eps * size)).nonzero()[:, 0]
    if not len(small):
        return
    some = torch.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT), dtype=torch.float64).long()
    x = rows[some][:, small].sort(0).values
    small = small[x[len(x) // 4] < x[3 * len(x) // 4]]
    if len(small):
        warnings.warn(
            f"{len(small)} of {rows.dim} columns spread by less than the noise floor {noise_floor:.3g}, the least by "
            f"{float(deviation[small].min()):.3g}, and the law will not see how: divide every column by its standard "
            "deviation, or pass a smaller noise_floor",
            stacklevel=4,
        )
