"""The context of an event, defined once for every model and every path (DESIGN 2).

A sequence (a user, or a session, by `scope`) is cut by event index into blocks of max_events / 2. An event is scored
from the start of the block BEFORE its own up to itself: at least max_events / 2 events where there are as many, at most
max_events.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from fraud.enrich import Enriched
from fraud.events import IntArray

Scope = Literal["user", "session"]


class Sequences(NamedTuple):
    """S sequences over the rows of the events.

    starts_S1: int64 [S + 1], sequence s has rows [s] : [s + 1]. first_position_S: int64 [S], how many events of the
    sequence came before the first row that is here.
    """

    starts_S1: IntArray
    first_position_S: IntArray


def sequences(enriched: Enriched, scope: Scope) -> Sequences:
    """Return the sequences of the events: one a user, or one a session (the carried part of one that goes on too)."""
    starts_U1 = enriched.events.user_starts
    rows_S = starts_U1[:-1][starts_U1[1:] > starts_U1[:-1]]
    position_N = enriched.index_N
    if scope == "session":
        opens_N = enriched.session_opens_N.copy()
        opens_N[rows_S] = True
        rows_S = opens_N.nonzero()[0]
        position_N = enriched.session_position_N
    return Sequences(np.append(rows_S, len(position_N)), position_N[rows_S])


def context_start(position_N: IntArray, max_events: int) -> IntArray:
    """Return int64 [N]: the position in its sequence where the context of the event at each position starts."""
    half = max_events // 2
    return np.maximum(position_N // half - 1, 0) * half


def context_rows(enriched: Enriched, scope: Scope, max_events: int) -> IntArray:
    """Return int64 [N]: the row of the first event of each event's context.

    Where the events before these were dropped before that start, the context begins at the first row that is here; a
    caller that carries on keeps every event from the start of the block before the current one.
    """
    position_N = enriched.session_position_N if scope == "session" else enriched.index_N
    rows_N = np.arange(len(position_N)) - (position_N - context_start(position_N, max_events))
    starts_S1 = sequences(enriched, scope).starts_S1
    first_N = starts_S1[:-1].repeat(starts_S1[1:] - starts_S1[:-1])
    return np.maximum(rows_N, first_N)
