"""`fraud warm`: the state of users and the counters of entities from a log, so that a live event scores as in it.

Some whole users at a time, one transaction each. Run again after a kill it goes on: a user who is stored is left alone,
and so is one who sent an event to a running service meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fraud.carries import Carries, ranges
from fraud.carry_pool import carry_to_bytes
from fraud.config import Config, LabelsConfig, SplitConfig, load_config, state_hash, stored_state_hash
from fraud.enrich import Enriched, empty_carry
from fraud.entities import HOUR_US, EntityTable
from fraud.errors import ConfigError
from fraud.events import IntArray
from fraud.exact import sequence_positions
from fraud.labels import NO_LABEL, Labels
from fraud.live import kept_from, risk_of_rows
from fraud.rows import EventRow, rows_of_events
from fraud.scoring import enrich_spec
from service.counters import LabelState, label_hours, summed
from service.payloads import StoredRow, risk_cells, rows_to_bytes
from service.state.store import (
    KEEP_EVENTS_US,
    WINDOW_HOURS,
    CounterDelta,
    EventWrite,
    NewSnapshot,
    Store,
    Tick,
    UserWrite,
)
from service.stateful import payload_hash

_USERS_AT_ONCE = 200


class Warmed(NamedTuple):
    """What came of it: users and events written, users who were stored already, rows of the log that cannot be used."""

    users: int
    events: int
    users_there: int
    quarantined: int


class _Users(NamedTuple):
    """Some whole users of the log, read. order_N: the log's own tie-breaker of each event, where it has one."""

    enriched: Enriched
    labels: Labels | None
    ids: list[str]
    order_N: Sequence[int | None]


def warm(
    bundle_config: Config,
    events: str,
    labels_from: Path | None,
    store: Store,
    *,
    now_us: Callable[[], int],
    progress: Callable[[int, int], None],
) -> Warmed:
    """Return what was written. labels_from: a configuration whose [labels] say which frauds are known of entities.

    progress: told of (users done, users in all). Raises ConfigError where the configuration, or what the store holds
    already, is of another state than the bundle's; DataError for a log that cannot be read.
    """
    from fraud.chunks import chunks, known_table, labelled
    from fraud.logs import read_log
    from fraud.splits import END_OF_TIME_US
    from fraud.tables import tables_of

    config = _log_config(bundle_config, events, labels_from)
    made_for = stored_state_hash(bundle_config)
    if (held := store.state_hash()) not in (None, made_for):
        raise ConfigError(
            f"--state: the store holds the state {str(held)[:12]}, the bundle reads {made_for[:12]} ([log], [fields] "
            "or [sessions] differ); expected a new store"
        )
    store.set_state_hash(made_for)
    n_users = n_events = n_there = 0
    with closing(read_log(config)) as log:
        newest_us = int(log.time_us.max()) if len(log.time_us) else 0
        tables = tables_of(log, config)
        known = known_table(log, END_OF_TIME_US)
        for chunk in chunks(log):
            found = labelled(chunk, log, config, known)
            order = [None] * len(chunk.events)
            if "order" in chunk.table.column_names:
                order = chunk.table["order"].take(chunk.events.row).to_pylist()
            ids = chunk.event_ids.to_pylist()
            if config.log.event_id is None:
                ids = [f"row:{row}" for row in ids]  # a number of a row must not pass for an id that a client sends
            users = _Users(found.enriched, found.labels, ids, order)
            for writes in _writes(users, bundle_config, tables, newest_us=newest_us, now_us=now_us()):
                lost = store.write(Tick(tuple(writes), (), ()))
                n_there += len(lost)
                n_users += len(writes) - len(lost)
                n_events += sum(write.n_events for write in writes if write.user_id not in lost)
                progress(n_users + n_there, log.n_users)
        return Warmed(n_users, n_events, n_there, len(log.quarantine))


def _log_config(bundle_config: Config, events: str, labels_from: Path | None) -> Config:
    """Return how the log is read: as the bundle says, with labels only where a configuration brings them."""
    from dataclasses import replace

    labels: LabelsConfig | None = None
    root = Path()
    if labels_from is not None:
        other = load_config(labels_from)
        if state_hash(other) != state_hash(bundle_config):
            raise ConfigError(
                f"{labels_from}: declares another [log], [fields] or [sessions] than the bundle was made for"
            )
        labels, root = other.labels, labels_from.parent
    path = str(Path(events).absolute())
    log = replace(bundle_config.log, events=path)
    return replace(bundle_config, log=log, labels=labels, split=SplitConfig(), root=root)


def _writes(
    users: _Users, config: Config, tables: Mapping[str, EntityTable], *, newest_us: int, now_us: int
) -> Iterator[list[UserWrite]]:
    """Yield what is written of some users at a time."""
    enriched, events = users.enriched, users.enriched.events
    starts_U1 = events.user_starts
    first_U = _first_kept(enriched, config)
    before = empty_carry(events.n_users, enrich_spec(config))
    carries = Carries(enriched, before).at(starts_U1[:-1] + first_U)
    kept_R = ranges(starts_U1[:-1] + first_U, np.diff(starts_U1) - first_U)
    recent_N = np.asarray(events.time_us > newest_us - KEEP_EVENTS_US)
    recent_N[kept_R] = True
    recent = np.flatnonzero(recent_N)
    rows = rows_of_events(events, recent, [users.ids[at] for at in recent.tolist()])
    row_at: dict[int, EventRow] = {
        at: row if users.order_N[at] is None else row._replace(order=users.order_N[at])
        for at, row in zip(recent.tolist(), rows, strict=True)
    }
    cells = dict(zip(kept_R.tolist(), risk_cells(risk_of_rows(events, kept_R, tables), kept_R.tolist()), strict=True))
    session_N = _session_ids(enriched)
    entity_columns = [column.to_objects().tolist() for column in events.entity.values()]
    time_N = events.time_us.tolist()
    written: list[UserWrite] = []
    for u, user_id in enumerate(events.users.tolist()):
        first, last = int(starts_U1[u]), int(starts_U1[u + 1])
        if first == last:
            continue
        kept = first + int(first_U[u])
        stored = [StoredRow(row_at[at], cells[at]) for at in range(kept, last)]
        deltas: list[CounterDelta] = []
        events_written: list[EventWrite] = []
        for at in range(first, last):
            state = _label_of(users.labels, at)
            entities = tuple(column[at] for column in entity_columns)
            oldest = newest_us // HOUR_US - WINDOW_HOURS if at not in row_at else 0
            deltas += _deltas(time_N[at], entities, state, config, oldest)
            if at in row_at:
                events_written.append(
                    EventWrite(
                        event_id=users.ids[at],
                        ts_us=time_N[at],
                        payload_hash=payload_hash(row_at[at]),
                        session_id=session_N[at],
                        entities=entities,
                        number=None,
                        ordinal=None,
                        payload=None,
                        stored_us=now_us,
                        label=state.label,
                        label_known_us=state.known_us,
                    )
                )
        written.append(
            UserWrite(
                user_id=user_id,
                expected_sequence=0,
                sequence=now_us,
                n_events=last - first,
                newest_us=time_N[last - 1],
                snapshot=0,
                new_snapshot=NewSnapshot(kept - first, carry_to_bytes(carries, u), rows_to_bytes(stored)),
                events=tuple(events_written),
                counters=tuple(summed(deltas)),
            )
        )
        if len(written) == _USERS_AT_ONCE:
            yield written
            written = []
    if written:
        yield written


def _first_kept(enriched: Enriched, config: Config) -> IntArray:
    """Return int64 [U]: how many of each user's first events no later event needs."""
    starts_U1 = enriched.events.user_starts
    position_N = sequence_positions(enriched, config)
    firsts = [
        kept_from(n_events, int(position_N[start + n_events - 1]) + 1, config.sessions.max_events) if n_events else 0
        for start, n_events in zip(starts_U1.tolist(), np.diff(starts_U1).tolist(), strict=False)
    ]
    return np.array(firsts, dtype=np.int64)


def _session_ids(enriched: Enriched) -> list[str | None]:
    events = enriched.events
    if events.session is not None:
        return events.session.to_objects().tolist()
    users = events.users[events.user_codes()].tolist()
    return [f"{user}@{us}" for user, us in zip(users, enriched.session_start_us_N.tolist(), strict=True)]


def _label_of(labels: Labels | None, at: int) -> LabelState:
    """Return the label of an event that somebody gave; what follows from the absence of a row is no label."""
    if labels is None or not labels.has_row_N[at] or labels.label_N[at] == NO_LABEL:
        return LabelState(None, None)
    return LabelState(int(labels.label_N[at]), int(labels.known_us_N[at]))


def _deltas(
    ts_us: int, entities: tuple[str | None, ...], state: LabelState, config: Config, oldest: int
) -> Iterator[CounterDelta]:
    """Yield what an event counts, with the label delay that the service itself goes by.

    oldest: the hour before which volume and honest labels are left out: no later event can see them, and where the
    event itself is no longer kept, no label can take them back.
    """
    hours = label_hours(ts_us, state, config)
    for field, value in zip(config.fields.entity, entities, strict=True):
        if value is None:
            continue
        if ts_us // HOUR_US >= oldest:
            yield CounterDelta(field, value, ts_us // HOUR_US, 1, 0, 0)
        if hours.honest is not None and hours.honest >= oldest:
            yield CounterDelta(field, value, hours.honest, 0, 0, 1)
        if hours.fraud is not None:
            yield CounterDelta(field, value, hours.fraud, 0, 1, 0)
