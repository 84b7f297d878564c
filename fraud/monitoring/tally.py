"""How a log is counted by week: the encoded events of training and of a log that is watched, by one function.

That what training saw and what a monitor sees are told apart by the same ids makes their counts comparable. Nothing
here is judged: `drift` does that. Over 300 lines because every figure is counted in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fraud.config import Config
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.monitoring.weekly import (
    Cell,
    Means,
    Shares,
    Weekly,
    beside,
    counts_by_week,
    means_by_week,
    shares_by_week,
    week_of,
)
from fraud.tokens import FIRST_ID, NONE_ID, UNKNOWN_ID, TokenArray, Vocabulary

N_TYPES, N_VALUES, N_SEGMENTS, N_SEGMENTED = 64, 32, 8, 4
OTHER = "other"
_OCTAVES_A_PAUSE = 4  # half octaves, so each pause is 4 times the one before
_N_PAUSES = 11  # the last: 5 days or more; how long a pause can be depends on how long the log runs
_HOURS = 3
_LENGTHS = np.array([1, 2, 3, 5, 9, 17])  # events of a session, the first of each group
_N_BUCKETS = 12  # of a number: its quantiles and tails, some together


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """N events of some whole users, in order. is_first_N: of its user; opens_N: it opens a session; position_N: events
    of the session before it. score_N: NaN where no example is scored. label_N: int8, -1 where nothing is settled."""

    tokens_NF: TokenArray
    time_us_N: IntArray
    is_first_N: BoolArray
    opens_N: BoolArray
    position_N: IntArray
    amount_N: FloatArray | None
    score_N: FloatArray
    is_alert_N: BoolArray
    label_N: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which cells there are. pairs: types that follow each other; score_edges: between bands of the score."""

    vocabulary: Vocabulary
    config: Config
    pairs: tuple[tuple[str, str], ...]
    score_edges: tuple[float, ...]

    @property
    def place_of(self) -> dict[str, int]:
        """Return the column of each field of a token row."""
        return {field.name: f for f, field in enumerate(self.vocabulary.fields)}

    @property
    def types(self) -> tuple[str, ...]:
        """Return the types with a cell of their own."""
        return self.vocabulary.types[:N_TYPES]

    def values(self, name: str, most: int) -> tuple[str, ...]:
        """Return the most frequent values of a text field."""
        return tuple(str(value) for value in self.vocabulary.fields[self.place_of[name]].values[:most])


def count_inputs(rows: Rows, layout: Layout, starts_us_W: IntArray) -> Weekly:
    """Return what the events of each week are like."""
    tally = _Tally(rows, layout, starts_us_W)
    shares = {
        "unknown": tally.unknown(),
        "null": tally.null(),
        "type": tally.types(),
        "bigram": tally.bigrams(),
        "gap": tally.gaps(),
        "hour": tally.hours(),
        "session_length": tally.lengths(),
    }
    shares |= {f"value:{name}": tally.values(name) for name in layout.config.fields.categorical}
    numbers = [*layout.config.fields.numeric, *(["amount"] if layout.config.fields.amount else [])]
    shares |= {f"bucket:{name}": tally.buckets(name) for name in numbers}
    means = {"session_length": tally.mean_length(), "gap": tally.mean_gap()}
    if rows.amount_N is not None:
        means["amount"] = tally.mean_amounts()
    segmented = layout.config.fields.categorical[:N_SEGMENTED]
    segments = {f"type|{name}": tally.types(name) for name in segmented}
    segments |= {f"bigram|{name}": tally.bigrams(name) for name in segmented}
    amounts = {f"amount|{name}": tally.mean_amounts(name) for name in segmented} if "amount" in means else {}
    users_W = np.zeros(len(starts_us_W), dtype=np.int64)
    user_R = np.cumsum(rows.is_first_N)[tally.row_R]
    for w in range(len(starts_us_W)):
        users_W[w] = len(np.unique(user_R[tally.week_R == w]))
    volumes = {"events": np.bincount(tally.week_R, minlength=len(starts_us_W)), "users": users_W}
    return Weekly(starts_us_W, shares, means, volumes, segments, amounts)


def count_scores(rows: Rows, layout: Layout, starts_us_W: IntArray) -> Weekly:
    """Return what the scores of each week are like, and the share of known frauds among what is settled."""
    week_N = week_of(rows.time_us_N, starts_us_W)
    n_weeks = len(starts_us_W)
    row_R = np.flatnonzero((week_N >= 0) & ~np.isnan(rows.score_N))
    bin_R = np.searchsorted(np.array(layout.score_edges), rows.score_N[row_R], side="right")
    cells = _between(layout.score_edges, "{:.4g}".format)
    logit_R = np.log(rows.score_N[row_R]) - np.log1p(-rows.score_N[row_R])
    settled_R = np.flatnonzero((week_N >= 0) & (rows.label_N >= 0))
    shares = {
        "score": shares_by_week(cells, week_N[row_R], bin_R, n_weeks),
        "alert": shares_by_week((("alerts",),), week_N[row_R], np.where(rows.is_alert_N[row_R], 0, -1), n_weeks),
        "fraud": shares_by_week(
            (("known frauds",),), week_N[settled_R], np.where(rows.label_N[settled_R] == 1, 0, -1), n_weeks
        ),
    }
    means = {
        "score": means_by_week((("logit",),), week_N[row_R], np.zeros(len(row_R), dtype=np.int64), logit_R, n_weeks)
    }
    return Weekly(starts_us_W, shares, means, {}, {}, {})


class _Tally:
    """The events of the weeks, R rows, and one method a statistic."""

    def __init__(self, rows: Rows, layout: Layout, starts_us_W: IntArray) -> None:
        week_N = week_of(rows.time_us_N, starts_us_W)
        self.rows, self.layout, self.n_weeks = rows, layout, len(starts_us_W)
        self.row_R = np.flatnonzero(week_N >= 0)
        self.week_R = week_N[self.row_R]
        self.type_R = self.ids("type")
        previous_N = np.zeros(len(week_N), dtype=np.int64)
        previous_N[1:] = rows.tokens_NF[:-1, 0]
        previous_N[rows.is_first_N] = 0
        self.previous_R = previous_N[self.row_R]

    def ids(self, name: str) -> IntArray:
        return np.asarray(self.rows.tokens_NF[:, self.layout.place_of[name]])[self.row_R].astype(np.int64)

    def shares(self, cells: tuple[Cell, ...], cell_R: IntArray, counted_R: BoolArray) -> Shares:
        return shares_by_week(cells, self.week_R[counted_R], cell_R[counted_R], self.n_weeks)

    def unknown(self) -> Shares:
        parts: list[Shares] = []
        for name in ("type", *self.layout.config.fields.categorical):
            id_R = self.ids(name)
            parts.append(self.shares(((name,),), np.where(id_R == UNKNOWN_ID, 0, -1), id_R != NONE_ID))
        return beside(parts)

    def null(self) -> Shares:
        fields = self.layout.config.fields
        columns = {name: name for name in (*fields.categorical, *fields.numeric)}
        columns |= {name: f"first_seen:{name}" for name in fields.entity}
        parts = [
            self.shares(((name,),), np.where(self.ids(column) == NONE_ID, 0, -1), self.type_R >= 0)
            for name, column in columns.items()
        ]
        if fields.amount is not None:
            is_null_R = self.ids("amount") == NONE_ID
            cells = tuple((fields.amount, name) for name in self.layout.types)
            type_R = _cell_of(self.type_R, len(cells))
            k_WC = counts_by_week(self.week_R[is_null_R], type_R[is_null_R], self.n_weeks, len(cells))
            parts.append(Shares(cells, k_WC, counts_by_week(self.week_R, type_R, self.n_weeks, len(cells))))
        return beside(parts) if parts else Shares((), *np.zeros((2, self.n_weeks, 0), dtype=np.int64))

    def types(self, segment: str | None = None) -> Shares:
        cells = (*((name,) for name in self.layout.types), (OTHER,))
        cell_R = np.where(self.type_R >= FIRST_ID, np.minimum(self.type_R - FIRST_ID, len(cells) - 1), -1)
        if segment is None:
            return self.shares(cells, cell_R, cell_R >= 0)
        return self._segmented(cells, cell_R, np.zeros(len(cells), dtype=np.int64), np.zeros_like(cell_R), segment)

    def bigrams(self, segment: str | None = None) -> Shares:
        """Return how often one type follows another: k of the events that follow the first and whose type is known."""
        place_of = {name: FIRST_ID + t for t, name in enumerate(self.layout.vocabulary.types)}
        cells = self.layout.pairs
        pair_C = np.array([(place_of[a], place_of[b]) for a, b in cells], dtype=np.int64).reshape(-1, 2)
        n_ids = self.layout.vocabulary.field_sizes[0]
        cell_R = _place_in(self.previous_R * n_ids + self.type_R, pair_C[:, 0] * n_ids + pair_C[:, 1])
        of_R = np.where(self.type_R >= FIRST_ID, self.previous_R, 0)
        if segment is not None:
            return self._segmented(cells, cell_R, pair_C[:, 0], of_R, segment)
        n_WI = counts_by_week(self.week_R, of_R, self.n_weeks, n_ids)
        return Shares(cells, counts_by_week(self.week_R, cell_R, self.n_weeks, len(cells)), n_WI[:, pair_C[:, 0]])

    def _segmented(
        self, cells: tuple[Cell, ...], cell_R: IntArray, of_C: IntArray, of_R: IntArray, segment: str
    ) -> Shares:
        """Return the shares among the events `of` the same kind (of_R == of_C), by value of a categorical field."""
        values = self.layout.values(segment, N_SEGMENTS)
        value_R = _cell_of(self.ids(segment), len(values))
        has_R = (value_R >= 0) & (self.type_R >= FIRST_ID)
        crossed_R = np.where(has_R & (cell_R >= 0), cell_R * len(values) + value_R, -1)
        k_WC = counts_by_week(self.week_R, crossed_R, self.n_weeks, len(cells) * len(values))
        n_kinds = int(max(of_C.max(initial=0), of_R.max(initial=0))) + 1
        of_value_R = np.where(has_R, of_R * len(values) + value_R, -1)
        n_WKV = counts_by_week(self.week_R, of_value_R, self.n_weeks, n_kinds * len(values)).reshape(
            self.n_weeks, n_kinds, len(values)
        )
        crossed = tuple((*cell, value) for cell in cells for value in values)
        return Shares(crossed, k_WC, n_WKV[:, of_C].reshape(k_WC.shape))

    def gaps(self) -> Shares:
        id_R = self.ids("gap")
        cell_R = np.where(id_R >= FIRST_ID, np.minimum((id_R - FIRST_ID) // _OCTAVES_A_PAUSE, _N_PAUSES - 1), -1)
        edges = tuple((4.0**place - 1) / 10 for place in range(1, _N_PAUSES))
        return self.shares(_between(edges, _spoken_s), cell_R, cell_R >= 0)

    def hours(self) -> Shares:
        cell_R = (self.ids("hour") - FIRST_ID) // _HOURS
        cells = tuple((f"{h:02d} to {h + _HOURS:02d} h",) for h in range(0, 24, _HOURS))
        return self.shares(cells, cell_R, cell_R >= 0)

    def values(self, name: str) -> Shares:
        cells = (*((value,) for value in self.layout.values(name, N_VALUES)), (OTHER,))
        id_R = self.ids(name)
        cell_R = np.where(id_R >= FIRST_ID, np.minimum(id_R - FIRST_ID, len(cells) - 1), -1)
        return self.shares(cells, cell_R, cell_R >= 0)

    def buckets(self, name: str) -> Shares:
        field = self.layout.vocabulary.fields[self.layout.place_of[name]]
        n_ids = field.size - FIRST_ID
        n_cells = min(n_ids, _N_BUCKETS)
        id_R = self.ids(name)
        cell_R = np.where(id_R >= FIRST_ID, (id_R - FIRST_ID) * n_cells // n_ids, -1)
        firsts = [-(-c * n_ids // n_cells) for c in range(1, n_cells)]  # the lowest id of each group but the first
        edges = tuple(float(field.values[first - 1]) for first in firsts)
        if name == "amount":
            edges = tuple(float(np.sign(edge) * np.expm1(abs(edge))) for edge in edges)
        return self.shares(_between(edges, "{:.4g}".format), cell_R, cell_R >= 0)

    def lengths(self) -> Shares:
        week_S, length_S = self._sessions()
        cells = tuple(
            (f"{low} events" if low == high else f"{low} to {high} events",)
            for low, high in zip(_LENGTHS[:-1].tolist(), (_LENGTHS[1:] - 1).tolist(), strict=True)
        )
        cells = (("1 event",), *cells[1:], (f"{_LENGTHS[-1]} events or more",))
        return shares_by_week(cells, week_S, np.searchsorted(_LENGTHS, length_S, side="right") - 1, self.n_weeks)

    def mean_length(self) -> Means:
        week_S, length_S = self._sessions()
        return means_by_week((("events of a session",),), week_S, np.zeros_like(week_S), np.log(length_S), self.n_weeks)

    def _sessions(self) -> tuple[IntArray, IntArray]:
        """Return the week of the last event and the number of events of each session that ended."""
        ends_N = np.append(self.rows.opens_N[1:] | self.rows.is_first_N[1:], True)
        ends_R = ends_N[self.row_R]
        return self.week_R[ends_R], self.rows.position_N[self.row_R[ends_R]] + 1

    def mean_gap(self) -> Means:
        """Return the mean of the pauses inside a session, in octaves."""
        id_R = self.ids("gap")
        inside_R = (id_R >= FIRST_ID) & ~self.rows.opens_N[self.row_R]
        octave_R = (id_R[inside_R] - FIRST_ID) / 2
        week_R = self.week_R[inside_R]
        return means_by_week((("pauses in a session",),), week_R, np.zeros_like(week_R), octave_R, self.n_weeks)

    def mean_amounts(self, segment: str | None = None) -> Means:
        """Return the means of log1p of the amounts of each type."""
        assert self.rows.amount_N is not None
        amount_R = self.rows.amount_N[self.row_R]
        log_R = np.sign(amount_R) * np.log1p(np.abs(amount_R))
        cells: tuple[Cell, ...] = tuple((name,) for name in self.layout.types)
        cell_R = _cell_of(self.type_R, len(cells))
        if segment is not None:
            values = self.layout.values(segment, N_SEGMENTS)
            value_R = _cell_of(self.ids(segment), len(values))
            cell_R = np.where((cell_R >= 0) & (value_R >= 0), cell_R * len(values) + value_R, -1)
            cells = tuple((*cell, value) for cell in cells for value in values)
        has_R = ~np.isnan(log_R) & (cell_R >= 0)
        return means_by_week(cells, self.week_R[has_R], cell_R[has_R], log_R[has_R], self.n_weeks)


def _cell_of(id_R: IntArray, n_cells: int) -> IntArray:
    """Return the place of each known id among the first n_cells, -1 for others."""
    return np.where((id_R >= FIRST_ID) & (id_R < FIRST_ID + n_cells), id_R - FIRST_ID, -1)


def _place_in(code_R: IntArray, code_C: IntArray) -> IntArray:
    """Return where each code stands among code_C, -1 where it does not."""
    if len(code_C) == 0:
        return np.full(len(code_R), -1, dtype=np.int64)
    order_C = np.argsort(code_C)
    place_R = order_C[np.minimum(np.searchsorted(code_C[order_C], code_R), len(code_C) - 1)]
    return np.where(code_C[place_R] == code_R, place_R, -1)


def _between(edges: tuple[float, ...], spoken: Callable[[float], str]) -> tuple[Cell, ...]:
    """Return a cell for each stretch between edges: "below 2", "2 to 5", "from 5"."""
    if not edges:
        return (("any",),)
    inner = ((f"{spoken(low)} to {spoken(high)}",) for low, high in pairwise(edges))
    return ((f"below {spoken(edges[0])}",), *inner, (f"from {spoken(edges[-1])}",))


def _spoken_s(seconds: float) -> str:
    for size, name in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {name}"
    return f"{seconds:.2g} s"
