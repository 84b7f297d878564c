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
    starts_U1, time_us = events.user_starts, events.time_us
    users_P = (starts_U1[1:] > starts_U1[:-1]).nonzero()[0]
    rows_P = starts_U1[:-1][users_P]
    last_us_P = last_time_us_U[users_P]
    is_new_P = last_us_P == NEVER_US
    opens_N = np.zeros(len(events), dtype=np.bool_)
    if events.session is not None:
        codes_N = events.session.codes_N
        np.not_equal(codes_N[1:], codes_N[:-1], out=opens_N[1:])
        differs_P = events.session.take(rows_P).to_objects() != last_session_U[users_P]
        opens_N[rows_P] = is_new_P | differs_P | (codes_N[rows_P] == NULL_CODE)
    elif events.has_clock:
        np.greater(time_us[1:] - time_us[:-1], gap_us, out=opens_N[1:])
        # Where NEVER_US stands the difference wraps round, and the event opens a session anyway.
        opens_N[rows_P] = is_new_P | (time_us[rows_P] - last_us_P > gap_us)
    else:
        opens_N[rows_P] = is_new_P
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
