"""The one rule that cuts a user's events into sessions."""

from __future__ import annotations

import numpy as np

from fraud.events import NULL_CODE, BoolArray, Events, IntArray, ObjectArray


def session_starts(events: Events, gap_us: int, last_time_us_U: IntArray, last_session_U: ObjectArray) -> BoolArray:
    """Return bool [N]: True where an event opens a session.

    A session opens at a user's first event and where the user was idle longer than gap_us. Where the log brings its own
    session id, it opens where that id differs from the id of the user's event before, and idle time means nothing. A
    log without a clock and without ids has one session a user.

    last_time_us_U: int64 [U], the user's last event before these, or NEVER_US. last_session_U: object [U], its session
    id, or None.
    """
    first_N = events.first_of_user()
    rows_U = events.user_starts[:-1][np.diff(events.user_starts) > 0]
    users_U = np.flatnonzero(np.diff(events.user_starts) > 0)
    has_past_U = last_time_us_U[users_U] != NEVER_US
    if events.session is not None:
        codes_N = events.session.codes_N
        opens_N = np.ones(len(events), dtype=np.bool_)
        opens_N[1:] = first_N[1:] | (codes_N[1:] != codes_N[:-1])
        ids_U = np.append(events.session.values, np.array([None], dtype=object))[codes_N[rows_U]]
        opens_N[rows_U] = ~has_past_U | (ids_U != last_session_U[users_U]) | (codes_N[rows_U] == NULL_CODE)
        return opens_N
    opens_N = first_N.copy()
    opens_N[rows_U] = ~has_past_U
    if events.has_clock:
        opens_N[1:] |= ~first_N[1:] & (np.diff(events.time_us) > gap_us)
        # NEVER_US is far below any time; where it stands the event opens a session anyway.
        idle_us_U = events.time_us[rows_U] - np.where(has_past_U, last_time_us_U[users_U], events.time_us[rows_U])
        opens_N[rows_U] |= idle_us_U > gap_us
    return opens_N


def n_reopened(events: Events, opens_N: BoolArray) -> int:
    """Return how many of the log's own sessions were cut because another session of the user came in between.

    Each piece then counts as a session of its own under the same id; a log with many wants another `log.session`.
    """
    if events.session is None:
        return 0
    rows = np.flatnonzero(opens_N)
    keys = (
        events.user_codes()[rows].astype(np.int64) * max(len(events.session.values), 1) + events.session.codes_N[rows]
    )
    return len(keys) - len(np.unique(keys))


NEVER_US = int(np.iinfo(np.int64).min)
