"""Copies of histories with harmless events put in: what a model that is not to be fooled by padding trains on as well.

A fraudster who browses a little before and between the steps is still one. Each inserted event is a copy of one of the
user's own harmless events and comes at the user's own pace, drawn from the gaps within the user's sessions; whatever
comes after it happens later by as much. This file knows no label and no period.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fraud.events import BoolArray, Events, FloatArray, IntArray

KeyArray = npt.NDArray[np.uint64]

# Of the sessions: left as they are, padded a little, padded heavily; the share of their events with a run before them.
_SHARES, _PADDED = (0.3, 0.3, 0.4), (0.0, 0.2, 0.6)
_LONGEST_WITHIN, _LONGEST_BEFORE = 16, 80  # events of a run within a session, and before its first event
_P_BEFORE = 0.35  # of the padded sessions


@dataclass(frozen=True, slots=True)
class Padded:
    """Histories with events put in. source_M: int64, the row that each event is or copies; inserted_M: bool."""

    events: Events
    source_M: IntArray
    inserted_M: BoolArray


def padded(events: Events, opens_N: BoolArray, is_harmless_V: BoolArray, key_U: KeyArray) -> Padded:
    """Return the histories of the users with runs of harmless events put in.

    opens_N: True where an event opens a session. is_harmless_V: bool, of each value of `events.type`. key_U: uint64,
    the seed of each user, so that a copy does not depend on which users are padded together. A user without a harmless
    event, or without two events of one session, stays as it is. The last event keeps its time.
    """
    n_events = len(events)
    user_N = events.user_codes()
    index_N = np.arange(n_events) - events.user_starts[:-1][user_N]
    dice = _Dice(key_U)
    gap_us_N = np.diff(events.time_us, prepend=events.time_us[:1])
    harmless = _Choice(np.flatnonzero(is_harmless_V[events.type.codes_N]), user_N, events.n_users)
    within = _Choice(np.flatnonzero(~opens_N), user_N, events.n_users)
    opening_N = np.maximum.accumulate(np.where(opens_N, np.arange(n_events), 0))
    session_N = np.maximum(opening_N - events.user_starts[:-1][user_N], 0)
    run_N = _runs(opens_N, dice, user_N, index_N, session_N)
    run_N[~(harmless.has_U & within.has_U)[user_N]] = 0
    source_M = np.repeat(np.arange(n_events), run_N + 1)
    start_N = np.cumsum(run_N + 1) - (run_N + 1)
    nth_M = np.arange(len(source_M)) - start_N[source_M]
    user_starts = np.append(start_N, len(source_M))[events.user_starts]
    index_M = np.arange(len(source_M)) - user_starts[:-1][user_N[source_M]]
    inserted_M = nth_M < run_N[source_M]
    owner_M = user_N[source_M]
    gap_us_M = gap_us_N[source_M]
    # A run stands before its event: its first takes the event's own gap, all after it come at the user's pace.
    paced_M = (run_N[source_M] > 0) & (nth_M > 0)
    gap_us_M[paced_M] = gap_us_N[within.rows(owner_M[paced_M], dice.throw(4, owner_M, index_M)[paced_M])]
    source_M = source_M.copy()
    source_M[inserted_M] = harmless.rows(owner_M[inserted_M], dice.throw(5, owner_M, index_M)[inserted_M])
    clock_us_M = np.cumsum(gap_us_M)
    last_U = np.maximum(user_starts[1:] - 1, 0)
    last_time_us_U = events.time_us[np.maximum(events.user_starts[1:] - 1, 0)]
    time_us_M = clock_us_M - clock_us_M[last_U][owner_M] + last_time_us_U[owner_M]
    session = None
    if events.session is not None:  # an inserted event belongs to the session it stands in
        session = events.session.take(np.repeat(np.arange(n_events), run_N + 1))
    made = Events(
        users=events.users,
        user_starts=user_starts,
        time_us=time_us_M,
        has_clock=events.has_clock,
        zone=events.zone,
        type=events.type.take(source_M),
        amount=None if events.amount is None else events.amount[source_M],
        numeric={name: column[source_M] for name, column in events.numeric.items()},
        categorical={name: column.take(source_M) for name, column in events.categorical.items()},
        entity={name: column.take(source_M) for name, column in events.entity.items()},
        session=session,
        row=events.row[source_M],
    )
    return Padded(made, source_M, inserted_M)


class _Choice:
    """Rows to draw from, user by user. rows must rise."""

    def __init__(self, rows: IntArray, user_N: npt.NDArray[np.int32], n_users: int) -> None:
        self._rows = rows
        self._n_U = np.bincount(user_N[rows], minlength=n_users)
        self._start_U = np.cumsum(self._n_U) - self._n_U

    @property
    def has_U(self) -> BoolArray:
        """Return bool [U]: True where there is a row to draw."""
        return self._n_U > 0

    def rows(self, user_M: npt.NDArray[np.int32], thrown_M: FloatArray) -> IntArray:
        """Return one row of each of these users, drawn with replacement."""
        nth_M = np.floor(thrown_M * self._n_U[user_M]).astype(np.int64)
        return self._rows[self._start_U[user_M] + nth_M]


class _Dice:
    """Uniform numbers by user, purpose and place: splitmix64 (Steele, Lea & Flood 2014) of a counter."""

    def __init__(self, key_U: KeyArray) -> None:
        self._key_U = key_U

    def throw(self, purpose: int, user_N: npt.NDArray[np.int32], place_N: IntArray) -> FloatArray:
        """Return float64 [N] in [0, 1)."""
        counter_N = place_N.astype(np.uint64) * np.uint64(8) + np.uint64(purpose)
        mixed_N = self._key_U[user_N] + (counter_N + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((mixed_N ^ (mixed_N >> np.uint64(31))) >> np.uint64(11)) / 2.0**53


def _runs(
    opens_N: BoolArray, dice: _Dice, user_N: npt.NDArray[np.int32], index_N: IntArray, session_N: IntArray
) -> IntArray:
    """Return int64 [N]: how many events are put in before each event.

    Runs within a session have log-uniform lengths: most are short; those before one are as often long as short.
    """
    kind_N = np.searchsorted(np.cumsum(_SHARES), dice.throw(1, user_N, session_N), side="right")
    share_N = np.array(_PADDED)[np.minimum(kind_N, len(_PADDED) - 1)]
    chance_N = np.where(opens_N, _P_BEFORE * (share_N > 0), share_N)
    longest_N = np.where(opens_N, _LONGEST_BEFORE, _LONGEST_WITHIN)
    thrown_N = dice.throw(2, user_N, index_N)
    within_N = np.exp(thrown_N * np.log(longest_N + 1))
    length_N = np.floor(np.where(opens_N, 1 + thrown_N * longest_N, within_N)).astype(np.int64)
    return np.where(dice.throw(3, user_N, index_N) < chance_N, length_N, 0)
