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
from fraud.entities import EntityTable, entity_table, merge_entity_tables
from fraud.events import Events, ObjectArray
from fraud.labels import Labels, join_labels, labels_in_log
from fraud.logs import Log, event_ids
from fraud.parallel import in_order
from fraud.scoring import enrich_spec, user_chunks


class Labelled(NamedTuple):
    """Some whole users: enriched events, labels (None: nobody says), and the text of split.column of the log."""

    enriched: Enriched
    labels: Labels | None
    part_N: ObjectArray | None


class Chunk(NamedTuple):
    """Some whole users of a partition; the events' rows index its table."""

    events: Events
    event_ids: pa.Array
    table: pa.Table


def labelled_chunks(log: Log, config: Config) -> Iterator[Labelled]:
    """Yield some whole users at a time, enriched and labelled."""
    yield from in_order(lambda chunk: labelled(chunk, log, config), chunks(log))


def chunks(log: Log) -> Iterator[Chunk]:
    """Yield the users of a log, some whole ones at a time, partition by partition."""
    for load in log.partitions:
        ordered = load()
        ids = event_ids(ordered)
        first = 0
        for events in user_chunks(ordered.events):
            yield Chunk(events, ids.slice(first, len(events)), ordered.table)
            first += len(events)


def labelled(chunk: Chunk, log: Log, config: Config) -> Labelled:
    """Return the chunk enriched, its users without a past, and labelled as the configuration says."""
    events, table = chunk.events, chunk.table
    enriched, _ = enrich(events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
    labels: Labels | None = None
    part_N: ObjectArray | None = None
    if config.labels is not None and log.label_table is not None:
        labels = join_labels(enriched, chunk.event_ids, log.label_table, config.labels, config.log)
    elif config.labels is not None and "label" in table.column_names:
        labels = labels_in_log(table, pa.array(events.row), events.time_us, config.labels)
    if "part" in table.column_names:
        part_N = table["part"].take(pa.array(events.row)).to_numpy()
    return Labelled(enriched, labels, part_N)


def entity_tables(enriched: Enriched, labels: Labels | None) -> dict[str, EntityTable]:
    """Return the counters of each entity field over these events; without labels no fraud is known."""
    time_us_N = enriched.events.time_us
    is_fraud_N = np.zeros(len(time_us_N), dtype=np.int64) if labels is None else (labels.label_N == 1).astype(np.int64)
    known_us_N = time_us_N if labels is None else labels.known_us_N
    if not enriched.events.has_clock:
        return {}
    return {n: entity_table(c, time_us_N, is_fraud_N, known_us_N) for n, c in enriched.events.entity.items()}


def merged_tables(parts: list[dict[str, EntityTable]]) -> dict[str, EntityTable]:
    """Return the sums of the counters of all parts, by field."""
    return {name: merge_entity_tables([part[name] for part in parts]) for name in (parts[0] if parts else {})}
