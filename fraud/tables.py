"""Scores as Arrow tables: the columns of the score file, by event and by session."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.chunks import entity_tables, label_delay_us, labelled_chunks, merged_tables
from fraud.config import Config, LabelsConfig, SplitConfig
from fraud.decisions import DECISIONS
from fraud.events import Events, IntArray
from fraud.labels import session_ids
from fraud.logs import Log, event_ids, from_pandas, from_table
from fraud.scoring import NO_DECISION, Scored, Scorer, Tables, score_log
from fraud.splits import END_OF_TIME_US

_LOG = logging.getLogger(__name__)
_TIME = pa.timestamp("us", tz="UTC")
EVENT_SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "user_id": pa.string(),
        "session_id": pa.string(),
        "ts": _TIME,
        "type": pa.string(),
        "score": pa.float64(),
        "decision": pa.string(),
    }
)
SESSION_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "session_id": pa.string(),
        "start": _TIME,
        "end": _TIME,
        "n_events": pa.int64(),
        "score": pa.float64(),
        "max_score": pa.float64(),
        "decision": pa.string(),
        "model_version": pa.string(),
    }
)


def scoring_config(config: Config, *, labels: LabelsConfig | None) -> Config:
    """Return the configuration that a log to be scored is read with: it needs no split, and labels only if given."""
    return replace(config, labels=labels, split=SplitConfig())


def tables_of(log: Log, config: Config) -> Tables:
    """Return the entity counters of a whole log, with the frauds its labels know; empty without entity fields."""
    if not config.fields.entity or not config.log.has_clock:
        return {}
    parts = labelled_chunks(log, config, as_of_us=END_OF_TIME_US)
    return merged_tables(
        [entity_tables(chunk.enriched, chunk.labels, delay_us=label_delay_us(config)) for chunk in parts]
    )


def scored_chunks(scorer: Scorer, log: Log, tables: Tables, partition: int) -> Iterator[tuple[Scored, pa.Array]]:
    """Yield (scores, event ids) of some whole users of one partition at a time."""
    ordered = log.partitions[partition]()
    ids = event_ids(ordered)
    first = 0
    for scored in score_log(scorer, ordered.events, tables):
        n_events = len(scored.score_N)
        yield scored, ids.slice(first, n_events)
        first += n_events


def event_table(scored: Scored, ids: pa.Array) -> pa.Table:
    """Return one row an event, EVENT_SCHEMA, by user and time."""
    events = scored.enriched.events
    columns = [
        ids,
        _texts(events.users, events.user_codes()),
        _texts(session_ids(scored.enriched), _session_codes(scored)),
        _times(events, slice(None)),
        _texts(events.type.values, events.type.codes_N),
        pa.array(scored.score_N),
        _decisions(scored.decision_N),
    ]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def session_table(scored: Scored, version: str) -> pa.Table:
    """Return one row a session, SESSION_SCHEMA, by user and time; decision is its events' most severe, or null."""
    events = scored.enriched.events
    first_S = np.flatnonzero(scored.enriched.session_opens_N)
    last_S = np.append(first_S[1:], len(events)) - 1
    if len(first_S) == 0:
        return SESSION_SCHEMA.empty_table()
    columns = [
        _texts(events.users, events.user_codes()[first_S]),
        pa.array(session_ids(scored.enriched), pa.string()),
        _times(events, first_S),
        _times(events, last_S),
        pa.array(last_S - first_S + 1, pa.int64()),
        pa.array(scored.score_N[last_S]),
        pa.array(np.maximum.reduceat(scored.score_N, first_S)),
        _decisions(np.maximum.reduceat(scored.decision_N, first_S)),
        pa.repeat(pa.scalar(version), len(first_S)),
    ]
    return pa.Table.from_arrays(columns, schema=SESSION_SCHEMA)


def score_table(scorer: Scorer, table: object) -> pa.Table:
    """Return EVENT_SCHEMA for an Arrow table or a DataFrame in the log's columns.

    Rows that cannot be used are left out, and a warning is logged.
    """
    return _score_table(scorer, table)[0]


def score_rows(scorer: Scorer, table: object) -> pa.Table:
    """Return EVENT_SCHEMA for an Arrow table or a DataFrame, one row for each of its rows and in their order.

    A row that cannot be used holds nulls only, and a warning is logged; one that says again what another said (the
    same event_id, the same values) has the same answer.
    """
    scores, log = _score_table(scorer, table)
    (load,) = log.partitions
    ordered = load()
    used = pa.array(ordered.events.row)
    # Where the answer to each row stands among the scores, -1 where there is none.
    place_R = np.full(log.rows_in, -1, dtype=np.int64)
    place_R[ordered.table["row"].take(used).to_numpy()] = np.arange(len(scores))
    if log.n_duplicates:
        others = pa.array(np.setdiff1d(np.arange(len(ordered.table)), ordered.events.row))
        # No id holds a control character, so a line break tells the user from the event.
        ids = pc.binary_join_element_wise(ordered.table["user"], ordered.table["event_id"], "\n")
        found = pc.index_in(ids.take(others), value_set=ids.take(used))
        place_R[ordered.table["row"].take(others).to_numpy()] = pc.fill_null(found, -1).to_numpy()
    return scores.take(pa.array(place_R, mask=place_R < 0))


def _score_table(scorer: Scorer, table: object) -> tuple[pa.Table, Log]:
    """Return the scores by user and time, and the log they are of."""
    config = scoring_config(scorer.config, labels=None)
    log = from_table(table, config) if isinstance(table, pa.Table) else from_pandas(table, config)  # type: ignore[arg-type]
    if len(log.quarantine):
        first = log.quarantine.table().slice(0, 1).to_pylist()[0]
        _LOG.warning(
            "%d of %d rows cannot be used and have no score; the first: row %s, column %r: %s",
            len(log.quarantine), log.rows_in, first["row"], first["column"], first["text"],
        )  # fmt: skip
    tables = tables_of(log, config)
    parts = [
        event_table(scored, ids)
        for partition in range(len(log.partitions))
        for scored, ids in scored_chunks(scorer, log, tables, partition)
    ]
    return pa.concat_tables([EVENT_SCHEMA.empty_table(), *parts]), log


def _session_codes(scored: Scored) -> IntArray:
    return np.cumsum(scored.enriched.session_opens_N) - 1


def _texts(values: np.ndarray, codes: np.ndarray) -> pa.Array:
    dictionary = pa.array(values.tolist(), pa.string())
    return dictionary.take(pa.array(codes, mask=codes < 0))


def _times(events: Events, rows: IntArray | slice) -> pa.Array:
    """Return the times of some rows; null where the log has positions and no clock."""
    time_us = pa.array(events.time_us[rows], pa.int64()).cast(_TIME)
    return time_us if events.has_clock else pa.nulls(len(time_us), _TIME)


def _decisions(decision: np.ndarray) -> pa.Array:
    return pa.array(DECISIONS).take(pa.array(decision, pa.int8(), mask=decision == NO_DECISION))
