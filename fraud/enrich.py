"""What an event means given the user's past: gaps, elapsed times, amounts against the user's own, first-seen values.

`enrich` is the same function for training, batch, online and distributed scoring. The past enters only through an
explicit `Carry`, so a log cut at any point and carried on gives what one pass gives, to the bit: every running quantity
is an integer (microseconds; amounts as log1p in units of 2**-24), and sums of integers do not depend on where they
start. A small input costs the number of calls and a large one what leaves the cache, so the key types are counted all
at once or one by one. Over 300 lines because each column and its part of the carry are read together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fraud.events import BoolArray, Events, FloatArray, IntArray, ObjectArray
from fraud.localtime import hour_and_weekday
from fraud.lookups import places
from fraud.recents import Recent, first_seen
from fraud.sessions import NEVER_US, session_starts

N_RECENT = 256  # DESIGN 2: first seen = not among the user's previous 256 non-null values
AMOUNT_UNIT = 2.0**24
SQUARE_UNIT = 2.0**20
NO_MAX = -(2**35)  # below log1p of any amount, in units of 2**-24
_USER_SHIFT = 37
PAUSE_UNIT_US = 10**5  # pauses are kept in tenths of a second: 2**38 of these are 870 years
_PAUSE_SHIFT = 38
_MAX_PAUSE = 2**_PAUSE_SHIFT - 1
_ROWS_TOGETHER = 16_384  # rows up to which those of several key types are read at once; above, it only fills the cache

_Scalar = TypeVar("_Scalar", bound=np.generic)


class EnrichSpec(NamedTuple):
    """What of the configuration shapes the enrichment: the session gap and the types whose last time is kept."""

    gap_us: int
    key_types: tuple[str, ...]


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
    span = _Span(events.user_starts[:-1], events.user_starts[1:] - events.user_starts[:-1])
    opens_N = session_starts(events, spec.gap_us, carry.last_time_us_U, carry.last_session_U)
    index_N = span.row_N + span.repeat(carry.n_events_U - span.starts_U)
    session_first_N, session_start_us_N = _session_of(events, span, opens_N, index_N, carry)
    gap_us_N = events.time_us - span.previous(events.time_us, carry.last_time_us_U)
    gap_us_N[index_N == 0] = -1
    keys = _since_keys(events, span, carry, spec, gap_us_N)
    amounts = _amounts(events, span, carry)
    seen, recent = first_seen(
        {**events.categorical, **events.entity}, events.user_starts, carry.recent, n_recent=N_RECENT
    )
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
        since_key_us_NK=keys.since_us_NK,
        pause_us_NK=keys.pause_us_NK,
        hour_N=hour_N,
        weekday_N=weekday_N,
        amount_log_N=amounts.log_N,
        past_count_N=amounts.count_N,
        past_mean_N=amounts.mean_N,
        past_spread_N=amounts.spread_N,
        past_max_N=amounts.max_N,
        first_seen=seen,
    )
    after = Carry(
        n_events_U=carry.n_events_U + span.n_U,
        last_time_us_U=span.last(events.time_us, carry.last_time_us_U),
        last_session_U=carry.last_session_U
        if events.session is None
        else span.put(events.session.take(span.last_row_P).to_objects(), carry.last_session_U),
        session_start_us_U=span.last(session_start_us_N, carry.session_start_us_U),
        session_first_U=span.last(session_first_N, carry.session_first_U),
        key_time_us_UK=keys.time_us_UK,
        key_pause_UK=keys.pause_UK,
        amount_count_U=amounts.count_U,
        amount_sum_U=amounts.sum_U,
        amount_square_U=amounts.square_U,
        amount_max_U=amounts.max_U,
        recent=recent,
    )
    return enriched, after


class _Span:
    """Where each user's rows are; moves arrays one event later within a user. P: the users that have rows here."""

    def __init__(self, starts_U: IntArray, n_U: IntArray) -> None:
        self.starts_U, self.n_U = starts_U, n_U
        self.user_P = n_U.nonzero()[0]
        self.first_row_P = starts_U[self.user_P]
        self.last_row_P = self.first_row_P + n_U[self.user_P] - 1
        self.start_N = starts_U.repeat(n_U)
        self.row_N = np.arange(len(self.start_N))

    def tiled(self, n_copies: int) -> _Span:
        """Return the span of the rows n_copies times over, one copy after another, each user once a copy."""
        first_row_C1 = np.arange(n_copies)[:, None] * len(self.start_N)
        return _Span((self.starts_U + first_row_C1).ravel(), np.concatenate([self.n_U] * n_copies))

    def repeat(self, values_U: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Return each event's value of its user."""
        return values_U.repeat(self.n_U)

    def previous(self, values_N: npt.NDArray[_Scalar], before_U: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Return each event's value of the event before it, `before_U` at the user's first."""
        shifted_N = np.empty_like(values_N)
        shifted_N[1:] = values_N[:-1]
        shifted_N[self.first_row_P] = before_U[self.user_P]
        return shifted_N

    def last(self, values_N: npt.NDArray[_Scalar], before_U: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Return each user's last value, `before_U` where the user has no event here."""
        return self.put(values_N[self.last_row_P], before_U)

    def put(self, values_P: npt.NDArray[_Scalar], before_U: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Return values_P for the users with events here, `before_U` for the others."""
        after_U = before_U.copy()
        after_U[self.user_P] = values_P
        return after_U

    def sum_before(self, values_N: npt.NDArray[_Scalar], before_U: IntArray) -> tuple[IntArray, IntArray]:
        """Return the sum of each user's earlier values [N], and of all of them [U], `before_U` included."""
        total_N1 = np.zeros(len(values_N) + 1, dtype=np.int64)
        np.add.accumulate(values_N, dtype=np.int64, out=total_N1[1:])
        offset_U = before_U - total_N1[self.starts_U]
        return total_N1[:-1] + self.repeat(offset_U), total_N1[self.starts_U + self.n_U] + offset_U


def _session_of(
    events: Events, span: _Span, opens_N: BoolArray, index_N: IntArray, carry: Carry
) -> tuple[IntArray, IntArray]:
    """Return the user's index [N] and the time [N] of the first event of each event's session."""
    opening_N = np.maximum.accumulate(np.where(opens_N, span.row_N, -1))
    is_carried_N = opening_N < span.start_N
    first_N = np.where(is_carried_N, span.repeat(carry.session_first_U), index_N[opening_N])
    start_us_N = np.where(is_carried_N, span.repeat(carry.session_start_us_U), events.time_us[opening_N])
    return first_N, start_us_N


class _Keys(NamedTuple):
    """What is known of the last event of each key type, -1 = never, before each event and after all of each user.

    since_us: the time since then. pause_us: the longest gap since then, that which ends with the event counts; after
    all, in tenths of a second. Both strictly before the event. Runs of harmless events put in between stretch the time
    since a step, not the pause.
    """

    since_us_NK: IntArray
    pause_us_NK: IntArray
    time_us_UK: IntArray
    pause_UK: IntArray


def _since_keys(events: Events, span: _Span, carry: Carry, spec: EnrichSpec, gap_us_N: IntArray) -> _Keys:
    n_events, n_users, n_keys = len(events), events.n_users, len(spec.key_types)
    place_of = {name: k for k, name in enumerate(spec.key_types)}
    place_N = places(events.type, place_of, unknown=-1, null=-1)
    place_K = np.array([place_of[name] for name in spec.key_types], dtype=np.int16)
    unit_N = np.minimum(np.maximum(gap_us_N, 0) // PAUSE_UNIT_US, _MAX_PAUSE)
    since_us_KN, pause_us_KN = np.empty((2, n_keys, n_events), dtype=np.int64)
    time_us_KU, pause_KU = np.empty((2, n_keys, n_users), dtype=np.int64)
    step = max(1, _ROWS_TOGETHER // max(n_events, 1))
    for first in range(0, n_keys, step):
        # The rows of each of these key types one after another, C in all, as if each user were one user a type.
        k = slice(first, first + step)
        n_copies = len(place_K[k])
        since_us_C, pause_us_C, time_us_G, pause_G = _since_key(
            np.concatenate([events.time_us] * n_copies),
            np.concatenate([unit_N] * n_copies),
            (place_N == place_K[k, None]).ravel(),
            span.tiled(n_copies),
            carry.key_time_us_UK[:, k].T.ravel(),
            carry.key_pause_UK[:, k].T.ravel(),
        )
        since_us_KN[k], pause_us_KN[k] = since_us_C.reshape(n_copies, -1), pause_us_C.reshape(n_copies, -1)
        time_us_KU[k], pause_KU[k] = time_us_G.reshape(n_copies, -1), pause_G.reshape(n_copies, -1)
    return _Keys(since_us_KN.T, pause_us_KN.T, time_us_KU.T, pause_KU.T)


def _since_key(
    time_us_N: IntArray, unit_N: IntArray, is_key_N: BoolArray, span: _Span, last_us_U: IntArray, pause_U: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return `_Keys` of one key type: since_us [N], pause_us [N], and after all time_us [U], pause [U].

    unit_N: the gap before each event. last_us_U, pause_U: before all of them.
    """
    first_P, last_P = span.first_row_P, span.last_row_P
    # What follows a key event is a stretch of its own, and what a user begins with: that goes on from the carry.
    opens_N = np.empty(len(is_key_N), dtype=np.bool_)
    opens_N[1:] = is_key_N[:-1]
    opens_N[first_P] = True
    stretch_N = np.add.accumulate(opens_N, dtype=np.int64)
    stretch_N -= 1
    key_us_S = time_us_N[opens_N.nonzero()[0] - 1]
    key_us_S[stretch_N[first_P]] = last_us_U[span.user_P]
    key_us_N = key_us_S[stretch_N]
    is_never_N = key_us_N == NEVER_US
    since_us_N = time_us_N - key_us_N
    since_us_N[is_never_N] = -1
    # A running maximum that starts anew with each stretch: its number in the high bits.
    high_N = stretch_N << _PAUSE_SHIFT
    longest_N = high_N + unit_N
    longest_N[first_P] = high_N[first_P] + np.maximum(unit_N[first_P], pause_U[span.user_P])
    longest_N = np.maximum.accumulate(longest_N) - high_N
    pause_us_N = longest_N * PAUSE_UNIT_US
    pause_us_N[is_never_N] = -1
    is_key_P = is_key_N[last_P]
    time_us_P = np.where(is_key_P, time_us_N[last_P], key_us_N[last_P])
    pause_P = np.where(is_key_P | is_never_N[last_P], 0, longest_N[last_P])
    return since_us_N, pause_us_N, span.put(time_us_P, last_us_U), span.put(pause_P, pause_U)


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
    squared_N = np.rint(known_N**2 * SQUARE_UNIT).astype(np.int64)
    count_N, count_U = span.sum_before(has_N, carry.amount_count_U)
    sum_N, sum_U = span.sum_before(unit_N, carry.amount_sum_U)
    square_N, square_U = span.sum_before(squared_N, carry.amount_square_U)
    # A running maximum that starts anew at each user: the user's number in the high bits.
    high_N = span.repeat(np.arange(len(span.n_U)) << _USER_SHIFT)
    largest_N = np.where(has_N, unit_N, NO_MAX)
    max_N = np.maximum.accumulate(high_N + span.previous(largest_N, carry.amount_max_U)) - high_N
    max_P = np.maximum(max_N[span.last_row_P], largest_N[span.last_row_P])
    has_past_N, some_N = count_N > 0, np.maximum(count_N, 1)
    mean_N = sum_N / AMOUNT_UNIT / some_N
    variance_N = np.maximum(square_N / SQUARE_UNIT / some_N - mean_N**2, 0.0)
    return _Amounts(
        log_N,
        count_N,
        np.where(has_past_N, mean_N, np.nan),
        np.where(count_N > 1, np.sqrt(variance_N), np.nan),
        np.where(has_past_N, max_N / AMOUNT_UNIT, np.nan),
        count_U,
        sum_U,
        square_U,
        span.put(max_P, carry.amount_max_U),
    )
