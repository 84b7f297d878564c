"""The carry just before any event, read off a whole pass: what lets a context be enriched again on its own.

`enrich` gives the carry after the last event only. An explanation enriches the same few events many times, each time
with one of them unknown, and must not read the user's past again for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fraud.enrich import AMOUNT_UNIT, N_RECENT, NO_MAX, PAUSE_UNIT_US, SQUARE_UNIT, Carry, Enriched, Recent
from fraud.events import NULL_CODE, Events, IntArray, Text, concat_texts
from fraud.sessions import NEVER_US


class _Values(NamedTuple):
    """The non-null values of one field, user by user, the carried ones before the events' own.

    codes_V: int32 [V] into the dictionary of the events. before_N: int64 [N], the place in codes_V after the last value
    before each event. first_U: int64 [U], where each user's values begin.
    """

    codes_V: np.ndarray
    before_N: IntArray
    first_U: IntArray


class Carries:
    """The carry before each event of one pass.

    events: those of the pass, their dictionaries widened by what the carry before the pass brought; `at` speaks of
    these.
    """

    def __init__(self, enriched: Enriched, before: Carry) -> None:
        """Take a pass of `enrich` and the carry it began with."""
        self.events = _with_carried_values(enriched.events, before)
        self._enriched, self._before = enriched, before
        self._user_N = self.events.user_codes()
        columns: Mapping[str, Text] = {**self.events.categorical, **self.events.entity}
        self._values = {
            name: _values_of(column, self.events, before.recent.get(name), self._user_N)
            for name, column in columns.items()
        }
        # As `enrich` counts them: whole units, so that no sum depends on where it starts.
        log_N = enriched.amount_log_N
        known_N = np.zeros(0) if log_N is None else np.where(np.isnan(log_N), 0.0, log_N)
        self._sum_N1 = _running_sum(np.rint(known_N * AMOUNT_UNIT).astype(np.int64))
        self._square_N1 = _running_sum(np.rint(known_N**2 * SQUARE_UNIT).astype(np.int64))

    def at(self, rows_R: IntArray) -> Carry:
        """Return the carry just before each of the events at rows_R, each as a user of its own [R]."""
        enriched, before = self._enriched, self._before
        user_R = self._user_N[rows_R].astype(np.int64)
        is_first_R = rows_R == self.events.user_starts[user_R]
        last_R = np.where(is_first_R, rows_R, rows_R - 1)
        time_R, index_R = self.events.time_us[rows_R], enriched.index_N[rows_R]
        since_RK = enriched.since_key_us_NK[rows_R]
        session_R = before.last_session_U[user_R]
        if self.events.session is not None:
            session_R = np.where(is_first_R, session_R, self.events.session.take(last_R).to_objects())
        first_of_session_R = index_R - 1 - enriched.session_position_N[last_R]
        carry = Carry(
            n_events_U=index_R,
            last_time_us_U=np.where(index_R == 0, NEVER_US, time_R - enriched.gap_us_N[rows_R]),
            last_session_U=session_R,
            session_start_us_U=np.where(
                is_first_R, before.session_start_us_U[user_R], enriched.session_start_us_N[last_R]
            ),
            session_first_U=np.where(is_first_R, before.session_first_U[user_R], first_of_session_R),
            key_time_us_UK=np.where(since_RK == -1, NEVER_US, time_R[:, None] - since_RK),
            key_pause_UK=np.where(is_first_R[:, None], before.key_pause_UK[user_R], self._pauses_after(last_R)),
            amount_count_U=before.amount_count_U[user_R],
            amount_sum_U=before.amount_sum_U[user_R],
            amount_square_U=before.amount_square_U[user_R],
            amount_max_U=before.amount_max_U[user_R],
            recent={name: _recent(values, self._column(name), rows_R, user_R) for name, values in self._values.items()},
        )
        return carry if enriched.past_count_N is None else self._with_amounts(carry, enriched, rows_R, user_R)

    def _with_amounts(self, carry: Carry, enriched: Enriched, rows_R: IntArray, user_R: IntArray) -> Carry:
        assert enriched.past_count_N is not None  # where there are amounts there are all of their columns
        assert enriched.past_max_N is not None
        start_R = self.events.user_starts[user_R]
        count_R = enriched.past_count_N[rows_R]
        max_R = np.nan_to_num(enriched.past_max_N[rows_R]) * AMOUNT_UNIT
        return replace(
            carry,
            amount_count_U=count_R,
            amount_sum_U=carry.amount_sum_U + self._sum_N1[rows_R] - self._sum_N1[start_R],
            amount_square_U=carry.amount_square_U + self._square_N1[rows_R] - self._square_N1[start_R],
            amount_max_U=np.where(count_R > 0, np.rint(max_R).astype(np.int64), NO_MAX),
        )

    def _pauses_after(self, rows_R: IntArray) -> IntArray:
        """Return int64 [R, K], in tenths of a second: 0 after a key event itself, and where there was none."""
        enriched = self._enriched
        pause_RK = np.maximum(enriched.pause_us_NK[rows_R], 0) // PAUSE_UNIT_US
        names = self.events.type.values[self.events.type.codes_N[rows_R]]
        is_key_RK = names[:, None] == np.array(enriched.spec.key_types, dtype=object)[None, :]
        return np.where(is_key_RK, 0, pause_RK)

    def _column(self, name: str) -> Text:
        return self.events.categorical[name] if name in self.events.categorical else self.events.entity[name]


def ranges(first_R: IntArray, n_R: IntArray) -> IntArray:
    """Return first, first + 1, ... (n of them) for each pair, one after another."""
    ends_R = np.cumsum(n_R)
    total = int(ends_R[-1]) if len(ends_R) else 0
    return np.arange(total) + np.repeat(first_R - ends_R + n_R, n_R)


def _with_carried_values(events: Events, before: Carry) -> Events:
    """Return the events with every value of the carry in their dictionaries."""

    def widened(columns: Mapping[str, Text]) -> dict[str, Text]:
        wide = dict(columns)
        for name, column in columns.items():
            recent = before.recent.get(name)
            # The dictionary of a pool of carries is one with that of its events, and may hold all that was ever seen.
            if recent is not None and len(recent.values.codes_N) and recent.values.values is not column.values:
                wide[name] = concat_texts([recent.values, column]).take(slice(len(recent.values.codes_N), None))
        return wide

    return replace(events, categorical=widened(events.categorical), entity=widened(events.entity))


def _values_of(column: Text, events: Events, recent: Recent | None, user_N: np.ndarray) -> _Values:
    rows = np.flatnonzero(column.codes_N != NULL_CODE)
    total_N1 = _running_sum((column.codes_N != NULL_CODE).astype(np.int64))
    own_U = total_N1[events.user_starts[1:]] - total_N1[events.user_starts[:-1]]
    if recent is None or not len(recent.values.codes_N):
        return _Values(column.codes_N[rows], total_N1[:-1], np.cumsum(own_U) - own_U)
    carried_U = np.diff(recent.starts_U1)
    first_U = np.cumsum(own_U + carried_U) - own_U - carried_U
    codes_V = np.empty(len(rows) + int(carried_U.sum()), dtype=np.int32)
    # Both pieces are already by user and share the events' dictionary but for its order.
    carried_codes = recent.values.codes_N
    if recent.values.values is not column.values:
        place_of = {value: code for code, value in enumerate(column.values.tolist())}
        code_of_V = np.array([place_of[value] for value in recent.values.values.tolist()], dtype=np.int32)
        carried_codes = code_of_V[carried_codes]
    codes_V[ranges(first_U, carried_U)] = carried_codes
    codes_V[ranges(first_U + carried_U, own_U)] = column.codes_N[rows]
    start_N = events.user_starts[:-1][user_N]
    before_N = (first_U + carried_U)[user_N] + total_N1[:-1] - total_N1[start_N]
    return _Values(codes_V, before_N, first_U)


def _recent(values: _Values, column: Text, rows_R: IntArray, user_R: np.ndarray) -> Recent:
    end_R = values.before_N[rows_R]
    first_R = np.maximum(values.first_U[user_R], end_R - N_RECENT)
    codes = values.codes_V[ranges(first_R, end_R - first_R)]
    return Recent(Text(codes, column.values), np.concatenate([[0], np.cumsum(end_R - first_R)]))


def _running_sum(values_N: IntArray) -> IntArray:
    """Return int64 [N + 1]: the sum of the values before each place."""
    return np.concatenate([[0], np.cumsum(values_N)])
