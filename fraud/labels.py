"""Labels joined to events: what is fraud, and since when that is known.

A label comes as a column of the log or as a table joined by event, session or user. This file knows no model and no
split; `splits` says what of this was known when.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fraud.config import LabelsConfig, LogConfig
from fraud.contexts import sequences
from fraud.enrich import Enriched
from fraud.errors import ConfigError, DataError
from fraud.events import BoolArray, IntArray, ObjectArray

if TYPE_CHECKING:
    import pyarrow as pa

NO_LABEL = -1
_BETWEEN = "\x1f"  # a control character cannot stand in an id


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels of N events.

    label_N: int8, 1 fraud, 0 not, -1 nobody says. time_us_N: int64, what the label speaks of: the event, or the last
    event of its session or user. known_us_N: int64, since when it is known, never before that. has_row_N: bool, False
    where the label only follows from the absence of a row. part_N: object, the text of split.column where the label
    table has it, else None. matched: bool [L], which rows of the label table found an event. n_early: how many labels
    claimed to be known before what they speak of.
    """

    label_N: npt.NDArray[np.int8]
    time_us_N: IntArray
    known_us_N: IntArray
    has_row_N: BoolArray
    part_N: ObjectArray | None
    matched_L: BoolArray
    n_early: int


def session_ids(enriched: Enriched) -> ObjectArray:
    """Return object [S], the id of each session in order: the log's own text, else `{user_id}@{first event, epoch us}`.

    The session that a carry began keeps the time it began at.
    """
    events = enriched.events
    rows_S = np.flatnonzero(enriched.session_opens_N | events.first_of_user())
    if events.session is not None:
        return events.session.take(rows_S).to_objects()
    users_S = events.users[events.user_codes()[rows_S]]
    pairs = zip(users_S.tolist(), enriched.session_start_us_N[rows_S].tolist(), strict=True)
    return np.array([f"{user}@{start_us}" for user, start_us in pairs], dtype=object)


def no_labels(enriched: Enriched) -> Labels:
    """Return the labels of a log that nobody has labelled."""
    n_events = len(enriched.events)
    return Labels(
        label_N=np.full(n_events, NO_LABEL, dtype=np.int8),
        time_us_N=enriched.events.time_us,
        known_us_N=enriched.events.time_us,
        has_row_N=np.zeros(n_events, dtype=np.bool_),
        part_N=None,
        matched_L=np.ones(0, dtype=np.bool_),
        n_early=0,
    )


def label_times(enriched: Enriched, level: Literal["event", "session", "user"]) -> IntArray:
    """Return int64 [N]: the time of the event, or of the last event of its session or user: what its label speaks of.

    No such label is known before, whatever its row says: an event must not be judged with the help of its own label.
    """
    time_us_N = enriched.events.time_us
    if level == "event":
        return time_us_N
    starts_S1 = sequences(enriched, level).starts_S1
    return np.repeat(time_us_N[starts_S1[1:] - 1], np.diff(starts_S1))


def labels_in_log(enriched: Enriched, table: pa.Table, config: LabelsConfig) -> Labels:
    """Return the labels that stand in the log itself; a null is no label."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [name for name in ("label", "known_us") if name in table.column_names]
    chosen = table.select(columns).take(pa.array(enriched.events.row))
    time_us_N = label_times(enriched, config.level)
    label_N = chosen["label"].fill_null(NO_LABEL).to_numpy().astype(np.int8)
    known_us_N = time_us_N + (config.delay or 0)
    if "known_us" in chosen.column_names:
        known_us_N = chosen["known_us"].combine_chunks()
        known_us_N = pc.if_else(known_us_N.is_valid(), known_us_N, pa.array(time_us_N + (config.delay or 0)))
        known_us_N = known_us_N.to_numpy(zero_copy_only=False).astype(np.int64)
    has_row_N = label_N != NO_LABEL
    return Labels(
        label_N=label_N,
        time_us_N=time_us_N,
        known_us_N=np.maximum(known_us_N, time_us_N),
        has_row_N=has_row_N,
        part_N=None,
        matched_L=np.ones(0, dtype=np.bool_),
        n_early=int((has_row_N & (known_us_N < time_us_N)).sum()),
    )


def join_labels(
    enriched: Enriched, event_ids: pa.Array, label_table: pa.Table, config: LabelsConfig, log: LogConfig
) -> Labels:
    """Return the labels of the label table for each event; an event without a row is not fraud.

    event_ids: string [N], in the order of the events. Where a key stands more than once, the row known last wins.
    Raises ConfigError when a key column is none that the log has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    own = pc.binary_join_element_wise(*(_key_column(k, enriched, event_ids, log) for k in config.key), _BETWEEN)
    theirs = pc.binary_join_element_wise(*(label_table[k].combine_chunks() for k in config.key), _BETWEEN)
    has_known = "known_us" in label_table.column_names
    n_rows = label_table.num_rows
    known_L = (
        label_table["known_us"].fill_null(np.iinfo(np.int64).min).to_numpy()
        if has_known
        else np.zeros(n_rows, dtype=np.int64)
    )
    # The last of equal keys by (known, row) first, so that `index_in`, which finds the first, finds it.
    order = np.argsort(known_L, kind="stable")[::-1] if n_rows else np.zeros(0, dtype=np.int64)
    found = pc.index_in(own, value_set=pc.take(theirs, pa.array(order)), skip_nulls=True)
    has_row_N = found.is_valid().to_numpy(zero_copy_only=False)
    row_N = order[found.fill_null(0).to_numpy(zero_copy_only=False)] if n_rows else np.zeros(len(own), dtype=np.int64)
    label_N = np.zeros(len(own), dtype=np.int8)
    time_us_N = label_times(enriched, config.level)
    known_us_N = time_us_N + (config.delay or 0)
    part_N: ObjectArray | None = None
    if n_rows:
        label_L = label_table["label"].fill_null(NO_LABEL).to_numpy().astype(np.int8)
        label_N = np.where(has_row_N, label_L[row_N], 0).astype(np.int8)
        is_dated_N = has_row_N & (known_L[row_N] != np.iinfo(np.int64).min) & has_known
        known_us_N = np.where(is_dated_N, known_L[row_N], known_us_N)
        if "part" in label_table.column_names:
            part_L = label_table["part"].to_numpy(zero_copy_only=False)
            part_N = np.full(len(own), None, dtype=object)
            part_N[has_row_N] = part_L[row_N[has_row_N]]
    matched_L = pc.index_in(theirs, value_set=pc.unique(own), skip_nulls=True).is_valid()
    return Labels(
        label_N=label_N,
        time_us_N=time_us_N,
        known_us_N=np.maximum(known_us_N, time_us_N),
        has_row_N=has_row_N,
        part_N=part_N,
        matched_L=matched_L.to_numpy(zero_copy_only=False),
        n_early=int((has_row_N & (known_us_N < time_us_N)).sum()),
    )


def as_known(newest: Labels, by_then: Labels) -> Labels:
    """Return the labels as they were at an as-of: `by_then` joined from `rows_known_by`, `newest` from all rows.

    An event whose only rows came later is no fraud as yet, and keeps the later date: without a delay it is not settled.
    """
    is_later_N = newest.has_row_N & ~by_then.has_row_N
    return replace(by_then, known_us_N=np.where(is_later_N, newest.known_us_N, by_then.known_us_N))


def _key_column(key: str, enriched: Enriched, event_ids: pa.Array, log: LogConfig) -> pa.Array:
    import pyarrow as pa

    events = enriched.events
    if key in (log.event_id, "event_id"):
        return event_ids
    if key == log.user:
        return pa.array(events.users[events.user_codes()], pa.string())
    if key in (log.session, "session_id"):
        opens_N = enriched.session_opens_N | events.first_of_user()
        return pa.array(session_ids(enriched)[np.cumsum(opens_N) - 1], pa.string())
    known = (log.event_id or "event_id", log.user, log.session or "session_id")
    raise ConfigError(f"labels.key: {key!r} is no key of the log; known here: {', '.join(known)}")


def check_any_fraud(n_fraud: int, what: str) -> None:
    """Raise DataError when a period has no known fraud: nothing can be learned or judged from it."""
    if n_fraud == 0:
        raise DataError(f"{what} holds no known fraud; expected at least one (check [labels] and [split])")
