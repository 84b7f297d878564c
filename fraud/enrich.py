"""What an event means given the user's past: gaps, elapsed times, amounts against the user's own, first-seen values.

`enrich` is the same function for training, batch, online and distributed scoring. The past enters only through an
explicit `Carry`, so a log cut at any point and carried on gives what one pass gives, to the bit: every running quantity
is an integer (microseconds; amounts as log1p in units of 2**-24), and sums of integers do not depend on where they
start. Over 300 lines because each column and its part of the carry are read together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fraud.events import NULL_CODE, BoolArray, Events, FloatArray, IntArray, ObjectArray, Text, concat_texts
from fraud.localtime import hour_and_weekday
from fraud.sessions import NEVER_US, session_starts

N_RECENT = 256  # DESIGN 2: first seen = not among the user's previous 256 non-null values
AMOUNT_UNIT = 2.0**24
SQUARE_UNIT = 2.0**20
NO_MAX = -(2**35)  # below log1p of any amount, in units of 2**-24
_USER_SHIFT = 37
PAUSE_UNIT_US = 10**5  # pauses are kept in tenths of a second: 2**38 of these are 870 years
_PAUSE_SHIFT = 38
_MAX_PAUSE = 2**_PAUSE_SHIFT - 1

_Scalar = TypeVar("_Scalar", bound=np.generic)


class EnrichSpec(NamedTuple):
    """What of the configuration shapes the enrichment: the session gap and the types whose last time is kept."""

    gap_us: int
    key_types: tuple[str, ...]


class Recent(NamedTuple):
    """The last values (at most 256 non-null ones) of one field: user u has values starts_U1[u] : starts_U1[u + 1]."""

    values: Text
    starts_U1: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """What `enrich` needs to know of each user's past; every array has one entry a user [U], times are microseconds.

    key_pause_UK: the longest gap since the last event of each key type, in tenths of a second. amount_sum_U is of
    log1p(amount) in units of 2**-24, amount_square_U of its square in units of 2**-20.
    """

    n_events_U: IntArray
    last_time_us_U: IntArray
    last_session_U: ObjectArray
    session_start_us_U: IntArray
    session_first_U: IntArray
    key_time_us_UK: IntArray
    key_pause_UK: IntArray
    amount_count_U: IntArray
    amount_sum_U: IntArray
    amount_square_U: IntArray
    amount_max_U: IntArray
    recent: Mapping[str, Recent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enriched:
    """Events with what their past adds. All arrays [N]; -1 in a time means "never".

    index_N: how many events of the user came before (all of them, the carried ones too). session_opens_N: bool.
    session_position_N: how many events of the session came before. hour_N: 0..23 in the log's zone; weekday_N: 0 =
    Monday. amount_log_N: signed log1p, NaN = none. past_mean_N, past_spread_N, past_max_N: of log1p of the user's
    earlier amounts, NaN = none; past_count_N their number. since_key_us_NK: one column a key type, strictly before the
    event; pause_us_NK: the longest gap since then. first_seen: by field int8 [N], 1 = first seen, 0 = seen, -1 = null.
    is_unknown_N: True where nothing but the time of an event is to be known (`fraud.explain`); None: nowhere.
    """

    events: Events
    spec: EnrichSpec
    index_N: IntArray
    session_opens_N: BoolArray
    session_position_N: IntArray
    session_start_us_N: IntArray
    gap_us_N: IntArray
    since_session_us_N: IntArray
    since_key_us_NK: IntArray
    pause_us_NK: IntArray
    hour_N: npt.NDArray[np.int8]
    weekday_N: npt.NDArray[np.int8]
    amount_log_N: FloatArray | None
    past_count_N: IntArray | None
    past_mean_N: FloatArray | None
    past_spread_N: FloatArray | None
    past_max_N: FloatArray | None
    first_seen: Mapping[str, npt.NDArray[np.int8]]
    is_unknown_N: BoolArray | None = None


def empty_carry(n_users: int, spec: EnrichSpec) -> Carry:
    """Return the carry of users without a past."""
    zeros_U = np.zeros(n_users, dtype=np.int64)
    never_U = np.full(n_users, NEVER_US, dtype=np.int64)
    return Carry(
        n_events_U=zeros_U,
        last_time_us_U=never_U,
        last_session_U=np.full(n_users, None, dtype=object),
        session_start_us_U=never_U,
        session_first_U=zeros_U,
        key_time_us_UK=np.full((n_users, len(spec.key_types)), NEVER_US, dtype=np.int64),
        key_pause_UK=np.zeros((n_users, len(spec.key_types)), dtype=np.int64),
        amount_count_U=zeros_U,
        amount_sum_U=zeros_U,
        amount_square_U=zeros_U,
        amount_max_U=np.full(n_users, NO_MAX, dtype=np.int64),
        recent={},
    )


def enrich(events: Events, carry: Carry, spec: EnrichSpec) -> tuple[Enriched, Carry]:
    """Return the events with what their past adds, and the carry after them; nothing is changed in place."""
    span = _Span(events)
    opens_N = session_starts(events, spec.gap_us, carry.last_time_us_U, carry.last_session_U)
    index_N = np.arange(len(events)) - span.start_N + carry.n_events_U[span.user_N]
    session_first_N, session_start_us_N = _session_of(events, span, opens_N, index_N, carry)
    gap_us_N = events.time_us - span.previous(events.time_us, carry.last_time_us_U)
    gap_us_N[index_N == 0] = -1
    since_key_us_NK, key_time_us_UK = _since_key(events, span, carry, spec)
    pause_us_NK, key_pause_UK = _pauses(events, span, carry, spec, gap_us_N, since_key_us_NK)
    amounts = _amounts(events, span, carry)
    first_seen: dict[str, npt.NDArray[np.int8]] = {}
    recent: dict[str, Recent] = {}
    for name, column in {**events.categorical, **events.entity}.items():
        first_seen[name], recent[name] = _first_seen(column, span, carry.recent.get(name))
    hour_N, weekday_N = hour_and_weekday(events.time_us, events.zone)
    enriched = Enriched(
        events=events,
        spec=spec,
        index_N=index_N,
        session_opens_N=opens_N,
        session_position_N=index_N - session_first_N,
        session_start_us_N=session_start_us_N,
        gap_us_N=gap_us_N,
        since_session_us_N=events.time_us - session_start_us_N,
        since_key_us_NK=since_key_us_NK,
        pause_us_NK=pause_us_NK,
        hour_N=hour_N,
        weekday_N=weekday_N,
        amount_log_N=amounts.log_N,
        past_count_N=amounts.count_N,
        past_mean_N=amounts.mean_N,
        past_spread_N=amounts.spread_N,
        past_max_N=amounts.max_N,
        first_seen=first_seen,
    )
    after = Carry(
        n_events_U=carry.n_events_U + np.diff(events.user_starts),
        last_time_us_U=span.last(events.time_us, carry.last_time_us_U),
        last_session_U=carry.last_session_U
        if events.session is None
        else span.last(events.session.to_objects(), carry.last_session_U),
        session_start_us_U=span.last(session_start_us_N, carry.session_start_us_U),
        session_first_U=span.last(session_first_N, carry.session_first_U),
        key_time_us_UK=key_time_us_UK,
        key_pause_UK=key_pause_UK,
        amount_count_U=amounts.count_U,
        amount_sum_U=amounts.sum_U,
        amount_square_U=amounts.square_U,
        amount_max_U=amounts.max_U,
        recent=recent,
    )
    return enriched, after


class _Span:
    """Where each user's rows are; moves arrays one event later within a user."""

    def __init__(self, events: Events) -> None:
        self.starts_U1 = events.user_starts
        self.user_N = events.user_codes()
        self.start_N = events.user_starts[:-1][self.user_N]
        self.is_first_N = events.first_of_user()
        self.has_rows_U = np.diff(events.user_starts) > 0
        self.last_row_U = events.user_starts[1:] - 1

    def previous(self, values_N: npt.NDArray[_Scalar], before_U: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Return each event's value of the event before it, `before_U` at the user's first."""
        shifted_N = np.empty_like(values_N)
        shifted_N[1:] = values_N[:-1]
        shifted_N[self.is_first_N] = before_U[self.has_rows_U]
        return shifted_N

    def last(self, values_N: npt.NDArray[_Scalar], before_U: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Return each user's last value, `before_U` where the user has no event here."""
        last_U = before_U.copy()
        last_U[self.has_rows_U] = values_N[self.last_row_U[self.has_rows_U]]
        return last_U

    def sum_before(self, values_N: IntArray, before_U: IntArray) -> tuple[IntArray, IntArray]:
        """Return the sum of each user's earlier values [N], and of all of them [U], `before_U` included."""
        total_N1 = np.concatenate([[0], np.cumsum(values_N)])
        sum_N = total_N1[:-1] - total_N1[self.start_N] + before_U[self.user_N]
        sums_U = total_N1[self.starts_U1[1:]] - total_N1[self.starts_U1[:-1]] + before_U
        return sum_N, sums_U


def _session_of(
    events: Events, span: _Span, opens_N: BoolArray, index_N: IntArray, carry: Carry
) -> tuple[IntArray, IntArray]:
    """Return the user's index [N] and the time [N] of the first event of each event's session."""
    opening_N = np.maximum.accumulate(np.where(opens_N, np.arange(len(events)), -1))
    is_carried_N = opening_N < span.start_N
    row_N = np.where(is_carried_N, 0, opening_N)
    first_N = np.where(is_carried_N, carry.session_first_U[span.user_N], index_N[row_N])
    start_us_N = np.where(is_carried_N, carry.session_start_us_U[span.user_N], events.time_us[row_N])
    return first_N, start_us_N


def _since_key(events: Events, span: _Span, carry: Carry, spec: EnrichSpec) -> tuple[IntArray, IntArray]:
    """Return the time since the last event of each key type [N, K], -1 = never, and those last times [U, K]."""
    since_NK = np.empty((len(events), len(spec.key_types)), dtype=np.int64)
    times_UK = carry.key_time_us_UK.copy()
    code_of = {str(value): code for code, value in enumerate(events.type.values)}
    rows_N = np.arange(len(events))
    for k, name in enumerate(spec.key_types):
        is_key_N = events.type.codes_N == code_of.get(name, NULL_CODE - 1)
        last_N = np.maximum.accumulate(np.where(is_key_N, rows_N, -1))
        time_N = np.where(last_N >= span.start_N, events.time_us[last_N], carry.key_time_us_UK[span.user_N, k])
        before_N = span.previous(time_N, carry.key_time_us_UK[:, k])
        since_NK[:, k] = np.where(before_N == NEVER_US, -1, events.time_us - before_N)
        times_UK[:, k] = span.last(time_N, carry.key_time_us_UK[:, k])
    return since_NK, times_UK


def _pauses(
    events: Events, span: _Span, carry: Carry, spec: EnrichSpec, gap_us_N: IntArray, since_key_us_NK: IntArray
) -> tuple[IntArray, IntArray]:
    """Return the longest gap since the last event of each key type [N, K], -1 = never, and that of each user [U, K].

    Strictly before the event, as in `_since_key`; the gap that ends with the event counts. Runs of harmless events put
    in between stretch the time since a step, not this. The second is in tenths of a second.
    """
    pause_us_NK = np.empty((len(events), len(spec.key_types)), dtype=np.int64)
    pauses_UK = carry.key_pause_UK.copy()
    code_of = {str(value): code for code, value in enumerate(events.type.values)}
    unit_N = np.minimum(np.maximum(gap_us_N, 0) // PAUSE_UNIT_US, _MAX_PAUSE)
    for k, name in enumerate(spec.key_types):
        is_key_N = events.type.codes_N == code_of.get(name, NULL_CODE - 1)
        # What follows a key event starts anew, and so does each user: the number of the start in the high bits.
        starts_N = span.is_first_N.copy()
        starts_N[1:] |= is_key_N[:-1]
        carried_N = np.where(span.is_first_N, carry.key_pause_UK[span.user_N, k], 0)
        high_N = np.cumsum(starts_N) << _PAUSE_SHIFT
        running_N = np.maximum.accumulate(high_N + np.maximum(unit_N, carried_N)) - high_N
        pause_us_NK[:, k] = np.where(since_key_us_NK[:, k] < 0, -1, running_N * PAUSE_UNIT_US)
        since_start_N = np.where(is_key_N | (since_key_us_NK[:, k] < 0), 0, running_N)
        pauses_UK[:, k] = span.last(since_start_N, carry.key_pause_UK[:, k])
    return pause_us_NK, pauses_UK


class _Amounts(NamedTuple):
    log_N: FloatArray | None
    count_N: IntArray | None
    mean_N: FloatArray | None
    spread_N: FloatArray | None
    max_N: FloatArray | None
    count_U: IntArray
    sum_U: IntArray
    square_U: IntArray
    max_U: IntArray


def _amounts(events: Events, span: _Span, carry: Carry) -> _Amounts:
    if events.amount is None:
        same = (carry.amount_count_U, carry.amount_sum_U, carry.amount_square_U, carry.amount_max_U)
        return _Amounts(None, None, None, None, None, *same)
    log_N = np.sign(events.amount) * np.log1p(np.abs(events.amount))
    has_N = ~np.isnan(log_N)
    known_N = np.where(has_N, log_N, 0.0)
    unit_N = np.rint(known_N * AMOUNT_UNIT).astype(np.int64)
    count_N, count_U = span.sum_before(has_N.astype(np.int64), carry.amount_count_U)
    sum_N, sum_U = span.sum_before(unit_N, carry.amount_sum_U)
    squared_N = np.rint(known_N**2 * SQUARE_UNIT).astype(np.int64)
    square_N, square_U = span.sum_before(squared_N, carry.amount_square_U)
    # A running maximum that starts anew at each user: the user's code in the high bits.
    high_N = span.user_N.astype(np.int64) << _USER_SHIFT
    running_N = np.maximum.accumulate(high_N + np.where(has_N, unit_N, NO_MAX)) - high_N
    running_N = np.maximum(running_N, carry.amount_max_U[span.user_N])
    max_N = span.previous(running_N, carry.amount_max_U)
    some_N = np.where(count_N > 0, count_N, 1)
    mean_N = np.where(count_N > 0, sum_N / AMOUNT_UNIT / some_N, np.nan)
    variance_N = np.maximum(square_N / SQUARE_UNIT / some_N - (sum_N / AMOUNT_UNIT / some_N) ** 2, 0.0)
    spread_N = np.where(count_N > 1, np.sqrt(variance_N), np.nan)
    return _Amounts(
        log_N,
        count_N,
        mean_N,
        spread_N,
        np.where(count_N > 0, max_N / AMOUNT_UNIT, np.nan),
        count_U,
        sum_U,
        square_U,
        span.last(running_N, carry.amount_max_U),
    )


def _first_seen(column: Text, span: _Span, recent: Recent | None) -> tuple[npt.NDArray[np.int8], Recent]:
    """Return 1 = first seen, 0 = seen, -1 = null as int8 [N], and each user's last 256 non-null values."""
    n_users = len(span.has_rows_U)
    rows_N = np.flatnonzero(column.codes_N != NULL_CODE)
    values, user_R = column.take(rows_N), span.user_N[rows_N]
    n_carried = 0
    if recent is not None and len(recent.values.codes_N):
        n_carried = len(recent.values.codes_N)
        carried_user = np.repeat(np.arange(n_users, dtype=np.int32), np.diff(recent.starts_U1))
        values = concat_texts([recent.values, values])
        user_R = np.concatenate([carried_user, user_R])
    by_user = np.argsort(user_R, kind="stable") if n_carried else np.arange(len(user_R))
    user_R, codes_R = user_R[by_user], values.codes_N[by_user]
    starts_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_R, minlength=n_users))])
    order = np.argsort(user_R.astype(np.int64) * max(len(values.values), 1) + codes_R, kind="stable")
    same_as_last = np.zeros(len(order), dtype=np.bool_)
    same_as_last[1:] = (user_R[order][1:] == user_R[order][:-1]) & (codes_R[order][1:] == codes_R[order][:-1])
    distance = np.zeros(len(order), dtype=np.int64)
    distance[1:] = np.diff(order)  # rows of one user are adjacent, so a difference of rows counts non-null values
    is_first_R = np.empty(len(order), dtype=np.bool_)
    is_first_R[order] = ~same_as_last | (distance > N_RECENT)
    given_order = np.empty(len(order), dtype=np.bool_)
    given_order[by_user] = is_first_R
    first_N = np.full(len(column.codes_N), -1, dtype=np.int8)
    first_N[rows_N] = given_order[n_carried:]
    keeps_R = np.arange(len(user_R)) >= (starts_U1[1:] - N_RECENT)[user_R]
    kept_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_R[keeps_R], minlength=n_users))])
    return first_N, Recent(Text(codes_R[keeps_R], values.values), kept_U1)
