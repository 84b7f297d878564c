"""A guard over those who report fraud: a source that suddenly sends far more than it used to is held back.

A model believes its labels. A broken export, a new hire or an attacker who reports honest people as frauds changes what
it learns and what it is judged by, and no figure computed from those same labels can show it. So each source is
compared with its own past, week by week, before anything is trained. Knows nothing of events: only the label table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.events import FloatArray, IntArray
from fraud.instants import DAY_US
from fraud.logs import rows_known_by

UNNAMED = "unknown"  # whose rows name no source; what /v1/labels writes where none is given
HELD_ABOVE_Z = 3.0
WEEK_US = 7 * DAY_US
HISTORY_WEEKS = 12
MIN_HISTORY_WEEKS = 4
WATCHED_WEEKS = 4  # where nobody says since when
MAX_WATCHED_WEEKS = 26

_WINSORIZED_FROM = 8  # weeks; of fewer, two cannot be spared
_NOT_KEYS = {"label", "known_us", "source", "part"}
_NORMAL = NormalDist()


class SourceReport(NamedTuple):
    """What one source sent, and whether it is held back.

    n_frauds_W: cases it called fraud for the first time, by week, oldest first, the last week ending at the as-of.
    until_us: the end of the week that the rest speaks of: of the held ones the most unusual, else the newest.
    expected, sigma: what its history predicts for that week, and the standard deviation of the prediction; with z, how
    many of those the week lies above it, None where the history is too short to say. held_from_us: when the first held
    week began; None where none is. n_undated: its frauds without a date, which nobody can watch.
    """

    source: str
    n_frauds_W: tuple[int, ...]
    until_us: int
    n_frauds: int
    expected: float | None
    sigma: float | None
    z: float | None
    held_from_us: int | None
    n_undated: int
    text: str

    @property
    def is_held_back(self) -> bool:
        """Return True where a watched week holds more than the history allows."""
        return self.held_from_us is not None


class _Prediction(NamedTuple):
    """What a history predicts of one more week."""

    expected: float
    sigma: float
    z: float


def watch_sources(
    label_table: pa.Table, *, as_of_us: int, trusted_until_us: int | None = None
) -> tuple[SourceReport, ...]:
    """Return a report for each source of the label table, by name; none where it has no `source` or `known_us`.

    label_table: as `fraud.readers.read_labels` gives it. trusted_until_us: labels known by then are history, for
    somebody accepted them (the champion learned from them); each whole week since is watched. None: the newest four.
    A week is held when it lies more than 3 sigma above the twelve before it that were not held themselves.
    """
    if not {"source", "known_us"} <= set(label_table.column_names):
        return ()
    known = rows_known_by(label_table, as_of_us)
    known = known.set_column(known.column_names.index("source"), "source", pc.fill_null(known["source"], UNNAMED))
    if known["known_us"].null_count == len(known):
        return ()
    # The week in which the table begins is not a whole one.
    n_weeks = min((as_of_us - pc.min(known["known_us"]).as_py()) // WEEK_US, HISTORY_WEEKS + MAX_WATCHED_WEEKS)
    n_watched = _n_watched(as_of_us, trusted_until_us)
    frauds = known.filter(pc.equal(known["label"], 1))
    undated = frauds.filter(pc.is_null(frauds["known_us"]))
    sources = sorted(pc.unique(frauds["source"]).to_pylist())
    n_frauds_SW = _weekly_cases(frauds, sources, as_of_us=as_of_us, n_weeks=n_weeks)
    return tuple(
        _report(source, n_frauds_SW[s], n_watched=n_watched, as_of_us=as_of_us, n_undated=_n_of(undated, source))
        for s, source in enumerate(sources)
    )


def _n_watched(as_of_us: int, trusted_until_us: int | None) -> int:
    if trusted_until_us is None:
        return WATCHED_WEEKS
    return min(max(-(-(as_of_us - trusted_until_us) // WEEK_US), 1), MAX_WATCHED_WEEKS)


def _n_of(rows: pa.Table, source: str) -> int:
    return int(pc.sum(pc.equal(rows["source"], source)).as_py() or 0)


def _weekly_cases(frauds: pa.Table, sources: Sequence[str], *, as_of_us: int, n_weeks: int) -> IntArray:
    """Return int64 [S, W], the cases that each source called fraud for the first time, oldest week first.

    The first time alone: a source that withdraws a report and makes it again has found no second fraud.
    """
    case = ["source", *(name for name in frauds.column_names if name not in _NOT_KEYS)]
    first = frauds.group_by(case).aggregate([("known_us", "min")])
    first = first.filter(pc.is_valid(first["known_us_min"]))
    source_C = pc.index_in(first["source"], value_set=pa.array(sources, pa.string())).to_numpy()
    weeks_ago_C = (as_of_us - first["known_us_min"].to_numpy()) // WEEK_US
    is_seen_C = weeks_ago_C < n_weeks
    cell_C = source_C[is_seen_C] * n_weeks + (n_weeks - 1 - weeks_ago_C[is_seen_C])
    return np.bincount(cell_C, minlength=len(sources) * n_weeks).reshape(len(sources), n_weeks)


def _report(source: str, n_frauds_W: IntArray, *, n_watched: int, as_of_us: int, n_undated: int) -> SourceReport:
    """Return the report of a source; its watched weeks are judged in order, each by those before it."""
    n_weeks = len(n_frauds_W)
    predictions: dict[int, _Prediction] = {}
    history = list(range(max(n_weeks - n_watched, 0)))
    held: list[int] = []
    for week in range(len(history), n_weeks):
        recent = history[-HISTORY_WEEKS:]
        if len(recent) >= MIN_HISTORY_WEEKS:
            predictions[week] = _predicted(n_frauds_W[recent], int(n_frauds_W[week]))
        if week in predictions and predictions[week].z > HELD_ABOVE_Z:
            held.append(week)
        else:
            history.append(week)
    told = max(held, key=lambda week: predictions[week].z) if held else n_weeks - 1
    prediction = predictions.get(told)
    n_frauds = int(n_frauds_W[told]) if n_weeks else 0
    until_us = as_of_us - (n_weeks - 1 - told) * WEEK_US
    return SourceReport(
        source=source,
        n_frauds_W=tuple(n_frauds_W.tolist()),
        until_us=until_us,
        n_frauds=n_frauds,
        expected=None if prediction is None else prediction.expected,
        sigma=None if prediction is None else prediction.sigma,
        z=None if prediction is None else prediction.z,
        held_from_us=as_of_us - (n_weeks - held[0]) * WEEK_US if held else None,
        n_undated=n_undated,
        text=_text(source, n_frauds, until_us, prediction, n_held=len(held), n_undated=n_undated),
    )


def _predicted(n_frauds_H: IntArray, n_frauds: int) -> _Prediction:
    """Return what a history of weekly counts predicts, and how far above it a count lies.

    On the scale 2 sqrt(n + 3/8), where a Poisson count has deviation 1 whatever its mean (Anscombe, Biometrika 1948);
    a source may vary more than that, never less. The highest and the lowest week count as their neighbours, so that one
    odd week neither hides the next nor makes it look odd, while a source that delivers once a month is known for it.
    """
    n_history = len(n_frauds_H)
    root_H: FloatArray = np.sort(2 * np.sqrt(n_frauds_H + 3 / 8))
    unbiased, n_spared = 1.0, 0
    if n_history >= _WINSORIZED_FROM:
        root_H[0], root_H[-1] = root_H[1], root_H[-2]
        unbiased, n_spared = _winsorized_deviation(1 / n_history), 2
    mean, deviation = float(root_H.mean()), float(root_H.std(ddof=1)) / unbiased
    scale = max(deviation, 1.0) * math.sqrt(1 + 1 / n_history)
    t = (2 * math.sqrt(n_frauds + 3 / 8) - mean) / scale
    # A deviation guessed from a dozen weeks makes large values likely; that of Poisson counts is no guess.
    z = _normal_deviate(t, n_history - 1 - n_spared) if deviation > 1 else t
    # d(2 sqrt n) = dn / sqrt n
    return _Prediction(max((mean / 2) ** 2 - 3 / 8, 0.0), scale * mean / 2, z)


def _winsorized_deviation(share: float) -> float:
    """Return the standard deviation of a normal variable of which this share at each end is pulled in."""
    end = -_NORMAL.inv_cdf(share)
    return math.sqrt(1 - 2 * share - 2 * end * _NORMAL.pdf(end) + 2 * share * end * end)


def _normal_deviate(t: float, n_free: int) -> float:
    """Return the normal deviate as unlikely as Student's t (Wallace, Ann. Math. Statist. 1959, formula 3.1)."""
    size = (8 * n_free + 1) / (8 * n_free + 3) * math.sqrt(n_free * math.log1p(t * t / n_free))
    return math.copysign(size, t)


def _text(
    source: str, n_frauds: int, until_us: int, prediction: _Prediction | None, *, n_held: int, n_undated: int
) -> str:
    until = datetime.fromtimestamp(until_us / 1e6, UTC)
    cases = f"{n_frauds:,} fraud label{'' if n_frauds == 1 else 's'}"
    text = f"source {source} sent {cases} in the week to {until.day} {until:%B %Y}"
    if prediction is None:
        text += f"; too young to be watched (fewer than {MIN_HISTORY_WEEKS} weeks)"
    else:
        text += f", {prediction.expected:,.0f} ± {prediction.sigma:,.0f} before"
    if n_held:
        text += ": held back" if n_held == 1 else f": held back, with {n_held - 1} more of its weeks"
    if n_undated:
        text += f" ({n_undated:,} more without a date are not watched)"
    return text
