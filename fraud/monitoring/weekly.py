"""Figures of a log by week, and as JSON: what a bundle keeps of its reference, and what a monitor holds against it.

Every figure is a sum over users: a log read in parts gives what the whole gives. What is counted is `tally`, what
it means is `drift`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fraud.errors import BundleError
from fraud.events import FloatArray, IntArray
from fraud.instants import DAY_US

WEEK_US = 7 * DAY_US

Cell = tuple[str, ...]
Json = dict[str, Any]  # Any: JSON


class Shares(NamedTuple):
    """k_WC of n_WC were so, int64: a row each week, a column each cell."""

    cells: tuple[Cell, ...]
    k_WC: IntArray
    n_WC: IntArray


class Means(NamedTuple):
    """n_WC values add up to sum_WC, their squares to square_WC, float64: a row each week, a column each cell."""

    cells: tuple[Cell, ...]
    n_WC: FloatArray
    sum_WC: FloatArray
    square_WC: FloatArray


class Weekly(NamedTuple):
    """Figures by the name of their statistic. segments: shares by value of a categorical field, "type|channel", their
    cells (…, value); amounts: means likewise. volumes: int64 [W]."""

    starts_us_W: IntArray
    shares: Mapping[str, Shares]
    means: Mapping[str, Means]
    volumes: Mapping[str, IntArray]
    segments: Mapping[str, Shares]
    amounts: Mapping[str, Means]


def week_starts(from_us: int, until_us: int, most: int | None = None) -> IntArray:
    """Return int64 [W]: the starts of the whole weeks that end at `until_us`, the newest ones where there are more.

    Weeks of seven days hold each day of the week once, wherever they begin.
    """
    n_weeks = max(0, (until_us - from_us) // WEEK_US)
    n_weeks = n_weeks if most is None else min(n_weeks, most)
    return until_us - WEEK_US * np.arange(n_weeks, 0, -1, dtype=np.int64)


def week_of(time_us_N: IntArray, starts_us_W: IntArray) -> IntArray:
    """Return int64 [N]: the week of each time, -1 outside of all."""
    if len(starts_us_W) == 0:
        return np.full(len(time_us_N), -1, dtype=np.int64)
    week_N = (time_us_N - starts_us_W[0]) // WEEK_US
    return np.where((week_N >= 0) & (week_N < len(starts_us_W)), week_N, -1)


def counts_by_week(week_R: IntArray, cell_R: IntArray, n_weeks: int, n_cells: int) -> IntArray:
    """Return int64 [W, C]: how many rows fall in each cell of each week; -1 falls in none."""
    counted_R = cell_R >= 0
    flat = week_R[counted_R] * n_cells + cell_R[counted_R]
    return np.bincount(flat, minlength=n_weeks * n_cells).reshape(n_weeks, n_cells).astype(np.int64)


def shares_by_week(cells: tuple[Cell, ...], week_R: IntArray, cell_R: IntArray, n_weeks: int) -> Shares:
    """Return of all rows of a week the shares that fall in each cell; -1 falls in none."""
    n_W = np.bincount(week_R, minlength=n_weeks).astype(np.int64)
    return Shares(
        cells, counts_by_week(week_R, cell_R, n_weeks, len(cells)), np.repeat(n_W[:, None], len(cells), axis=1)
    )


def means_by_week(
    cells: tuple[Cell, ...], week_R: IntArray, cell_R: IntArray, value_R: FloatArray, n_weeks: int
) -> Means:
    """Return the sums of the rows' values in each cell of each week."""
    flat_R, size = week_R * len(cells) + cell_R, n_weeks * len(cells)
    n, total, square = (
        np.bincount(flat_R, weights=weight_R, minlength=size).reshape(n_weeks, len(cells)).astype(np.float64)
        for weight_R in (np.ones_like(value_R), value_R, value_R**2)
    )
    return Means(cells, n, total, square)


def beside(parts: list[Shares]) -> Shares:
    """Return the cells of all parts side by side."""
    cells = tuple(cell for part in parts for cell in part.cells)
    return Shares(cells, np.hstack([part.k_WC for part in parts]), np.hstack([part.n_WC for part in parts]))


def add_weekly(parts: Iterable[Weekly]) -> Weekly:
    """Return the sums of the figures of all parts; there must be one at least."""
    first, *others = parts
    for one in others:
        first = Weekly(
            first.starts_us_W,
            {n: Shares(a.cells, a.k_WC + b.k_WC, a.n_WC + b.n_WC) for n, a, b in _pairs(first.shares, one.shares)},
            {n: _added(a, b) for n, a, b in _pairs(first.means, one.means)},
            {n: a + b for n, a, b in _pairs(first.volumes, one.volumes)},
            {n: Shares(a.cells, a.k_WC + b.k_WC, a.n_WC + b.n_WC) for n, a, b in _pairs(first.segments, one.segments)},
            {n: _added(a, b) for n, a, b in _pairs(first.amounts, one.amounts)},
        )
    return first


def to_json(weekly: Weekly) -> Json:
    """Return the figures as JSON. Segments only say where a change sits: of them the sums over the weeks are kept."""
    return {
        "starts_us": weekly.starts_us_W.tolist(),
        "shares": {
            name: {"cells": _names(one.cells), "k": one.k_WC.tolist(), "n": _packed(one.n_WC)}
            for name, one in weekly.shares.items()
        },
        "means": {
            name: {"cells": _names(one.cells), **{part: _rounded(values) for part, values in _parts(one).items()}}
            for name, one in weekly.means.items()
        },
        "volumes": {name: volume_W.tolist() for name, volume_W in weekly.volumes.items()},
        "segments": {
            name: {"k": [one.k_WC.sum(axis=0).tolist()], "n": [one.n_WC.sum(axis=0).tolist()]}
            for name, one in weekly.segments.items()
        },
        "amounts": {
            name: {part: _rounded(values.sum(axis=0)) for part, values in _parts(one).items()}
            for name, one in weekly.amounts.items()
        },
    }


def from_json(tree: Json, like: Weekly) -> Weekly:
    """Return the figures of `to_json`; `like` has the cells that they must be of.

    Raises BundleError for what cannot be read, or other cells.
    """
    try:
        starts_us_W = np.array(tree["starts_us"], dtype=np.int64)
        n_weeks = len(starts_us_W)
        return Weekly(
            starts_us_W,
            {name: _shares_of(tree["shares"][name], one.cells, n_weeks) for name, one in like.shares.items()},
            {name: _means_of(tree["means"][name], one.cells, n_weeks) for name, one in like.means.items()},
            {name: np.array(tree["volumes"][name], dtype=np.int64).reshape(n_weeks) for name in like.volumes},
            {name: _shares_of(tree["segments"][name], one.cells, 1) for name, one in like.segments.items()},
            {name: _means_of(tree["amounts"][name], one.cells, 1) for name, one in like.amounts.items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"reference.json: the figures by week cannot be read ({error!r}); train the bundle anew"
        ) from None


def _shares_of(tree: Json, cells: tuple[Cell, ...], n_weeks: int) -> Shares:
    _check_cells(tree, cells)
    n_WC = np.array([[row] * len(cells) if isinstance(row, int) else row for row in tree["n"]], dtype=np.int64)
    shape = (n_weeks, len(cells))
    return Shares(cells, np.array(tree["k"], dtype=np.int64).reshape(shape), n_WC.reshape(shape))


def _means_of(tree: Json, cells: tuple[Cell, ...], n_weeks: int) -> Means:
    _check_cells(tree, cells)
    shape = (n_weeks, len(cells))
    return Means(cells, *(np.array(tree[part], dtype=np.float64).reshape(shape) for part in ("n", "sum", "square")))


def _check_cells(tree: Json, cells: tuple[Cell, ...]) -> None:
    if "cells" in tree and tree["cells"] != _names(cells):
        raise ValueError("other cells than those of the vocabulary")


def _names(cells: tuple[Cell, ...]) -> list[str]:
    return [" > ".join(cell) for cell in cells]


def _packed(n_WC: IntArray) -> list[int | list[int]]:
    """Return the rows, one number for a row whose numbers are all the same."""
    return [row[0] if len(set(row)) == 1 else row for row in n_WC.tolist()]


def _parts(means: Means) -> dict[str, FloatArray]:
    return {"n": means.n_WC, "sum": means.sum_WC, "square": means.square_WC}


def _rounded(values: FloatArray) -> list[Any]:  # Any: floats, nested as they came
    return np.round(values, 3).tolist()


_Figure = TypeVar("_Figure")


def _pairs(a: Mapping[str, _Figure], b: Mapping[str, _Figure]) -> Iterator[tuple[str, _Figure, _Figure]]:
    return ((name, a[name], b[name]) for name in a)


def _added(a: Means, b: Means) -> Means:
    return Means(a.cells, a.n_WC + b.n_WC, a.sum_WC + b.sum_WC, a.square_WC + b.square_WC)
