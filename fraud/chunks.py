"""A log some whole users at a time: enriched, labelled, counted by entity; the first steps of every path over a log.

Chunks bound the memory of what follows by the longest user; nothing depends on where they are cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fraud.config import Config
from fraud.enrich import Enriched, empty_carry, enrich
from fraud.entities import NEVER_KNOWN_US, EntityTable, entity_table, merge_entity_tables
from fraud.events import Events, ObjectArray
from fraud.labels import Labels, as_known, join_labels, labels_in_log
from fraud.logs import Log, event_ids, rows_known_by
from fraud.parallel import in_order
from fraud.scoring import enrich_spec, user_chunks


class Labelled(NamedTuple):
    """Some whole users: enriched events, labels (None: nobody says) as the table has them now and as they were known at
    the as-of, and the text of split.column of the log."""

    enriched: Enriched
    labels: Labels | None
    known: Labels | None
    part_N: ObjectArray | None


class Chunk(NamedTuple):
    """Some whole users of a partition; the events' rows index its table."""

    events: Events
    event_ids: pa.Array
    table: pa.Table


def labelled_chunks(log: Log, config: Config, *, as_of_us: int) -> Iterator[Labelled]:
    """Yield some whole users at a time, enriched and labelled."""
    known = known_table(log, as_of_us)
    yield from in_order(lambda chunk: labelled(chunk, log, config, known), chunks(log))


def known_table(log: Log, as_of_us: int) -> pa.Table | None:
    """Return the rows of the log's label table that were known at the as-of."""
    return None if log.label_table is None else rows_known_by(log.label_table, as_of_us)


def chunks(log: Log) -> Iterator[Chunk]:
    """Yield the users of a log, some whole ones at a time, partition by partition."""
    for load in log.partitions:
        ordered = load()
        ids = event_ids(ordered)
        first = 0
        for events in user_chunks(ordered.events):
            yield Chunk(events, ids.slice(first, len(events)), ordered.table)
            first += len(events)


def labelled(chunk: Chunk, log: Log, config: Config, known_rows: pa.Table | None) -> Labelled:
    """Return the chunk enriched, its users without a past, and labelled as the configuration says.

    known_rows: what `known_table` gives.
    """
    events, table = chunk.events, chunk.table
    enriched, _ = enrich(events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
    labels: Labels | None = None
    known: Labels | None = None
    part_N: ObjectArray | None = None
    if config.labels is not None and log.label_table is not None:
        labels = known = join_labels(enriched, chunk.event_ids, log.label_table, config.labels, config.log)
        if known_rows is not None and len(known_rows) < len(log.label_table):
            by_then = join_labels(enriched, chunk.event_ids, known_rows, config.labels, config.log)
            known = as_known(labels, by_then)
    elif config.labels is not None and "label" in table.column_names:
        labels = known = labels_in_log(enriched, table, config.labels)
    if "part" in table.column_names:
        part_N = table["part"].take(pa.array(events.row)).to_numpy()
    return Labelled(enriched, labels, known, part_N)


def entity_tables(enriched: Enriched, labels: Labels | None, *, delay_us: int | None) -> dict[str, EntityTable]:
    """Return the counters of each entity field over these events; without labels nothing is known of any.

    delay_us: after which an event counts as honest unless it is known as fraud by then.
    """
    if not enriched.events.has_clock:
        return {}
    time_us_N = enriched.events.time_us
    fraud_us_N = honest_us_N = np.full(len(time_us_N), NEVER_KNOWN_US, dtype=np.int64)
    if labels is not None:
        fraud_us_N = np.where(labels.label_N == 1, labels.known_us_N, NEVER_KNOWN_US)
        honest_us_N = np.where(labels.label_N == 0, labels.known_us_N, NEVER_KNOWN_US)
        if delay_us is not None:
            # A fraud reported after the delay was taken for honest until then; nobody could know better.
            settled_us_N = labels.time_us_N + delay_us
            honest_us_N = np.where(
                (labels.label_N == 1) & (labels.known_us_N > settled_us_N), settled_us_N, honest_us_N
            )
    return {n: entity_table(c, time_us_N, fraud_us_N, honest_us_N) for n, c in enriched.events.entity.items()}


def label_delay_us(config: Config) -> int | None:
    """Return after which time an event without a label counts as honest, None where no such time is declared."""
    return None if config.labels is None else config.labels.delay


def merged_tables(parts: list[dict[str, EntityTable]]) -> dict[str, EntityTable]:
    """Return the sums of the counters of all parts, by field."""
    return {name: merge_entity_tables([part[name] for part in parts]) for name in (parts[0] if parts else {})}
