"""Hourly counters of entities: what an event and a label add to them, and the tables that a scorer reads.

The hours are those of `fraud.chunks.entity_tables`: volume in the hour of the event, a label in the hour it became
known, and an event without a label as honest once the label delay is over. Online a label that nobody has sent yet is
not known, so an event counts as honest in advance, in the hour in which its delay ends, until a label says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fraud.config import Config
from fraud.entities import HOUR_US, EntityTable
from service.state.store import CounterDelta, CounterRow

_HOUR_BITS = 22  # as in `fraud.entities`: entity << 22 | hour


class LabelState(NamedTuple):
    """What is known of an event: label 1 fraud, 0 honest, None nobody said; and since when, in microseconds."""

    label: int | None
    known_us: int | None


class Hours(NamedTuple):
    """The hours in which an event counts as a known fraud, and as known to be honest; None: in none."""

    fraud: int | None
    honest: int | None


def label_hours(ts_us: int, state: LabelState, config: Config) -> Hours:
    """Return the hours in which an event at ts_us with this label is counted."""
    labels = config.labels
    if labels is None:
        return Hours(None, None)
    settled_us = ts_us + (labels.delay or 0)
    if state.label is None or state.known_us is None:
        # A column of the log labels what it labels; only the absence from a label table says "honest".
        return Hours(None, None if labels.path is None else settled_us // HOUR_US)
    known_us = max(state.known_us, ts_us)
    if state.label == 0:
        return Hours(None, known_us // HOUR_US)
    was_honest = labels.delay is not None and known_us > settled_us
    return Hours(known_us // HOUR_US, settled_us // HOUR_US if was_honest else None)


def event_deltas(ts_us: int, entities: Sequence[str | None], config: Config) -> list[CounterDelta]:
    """Return what a new event, not labelled as yet, adds to the counters of its entities."""
    hours = label_hours(ts_us, LabelState(None, None), config)
    deltas: list[CounterDelta] = []
    for field, value in zip(config.fields.entity, entities, strict=True):
        if value is not None:
            deltas.append(CounterDelta(field, value, ts_us // HOUR_US, 1, 0, 0))
            if hours.honest is not None:
                deltas.append(CounterDelta(field, value, hours.honest, 0, 0, 1))
    return deltas


def label_deltas(
    ts_us: int, entities: Sequence[str | None], config: Config, *, was: LabelState, now: LabelState
) -> list[CounterDelta]:
    """Return what a label that replaces another (or none) changes of the counters of an event's entities."""
    before, after = label_hours(ts_us, was, config), label_hours(ts_us, now, config)
    deltas: list[CounterDelta] = []
    for field, value in zip(config.fields.entity, entities, strict=True):
        if value is None:
            continue
        for hours, n in ((before, -1), (after, 1)):
            if hours.fraud is not None:
                deltas.append(CounterDelta(field, value, hours.fraud, 0, n, 0))
            if hours.honest is not None:
                deltas.append(CounterDelta(field, value, hours.honest, 0, 0, n))
    return summed(deltas)


def summed(deltas: Iterable[CounterDelta]) -> list[CounterDelta]:
    """Return one delta a counter, none that changes nothing."""
    sums: dict[tuple[str, str, int], tuple[int, int, int]] = {}
    for field, entity, hour, volume, frauds, honest in deltas:
        key = (field, entity, hour)
        old = sums.get(key)
        sums[key] = (volume, frauds, honest) if old is None else (old[0] + volume, old[1] + frauds, old[2] + honest)
    return [CounterDelta(*key, *counts) for key, counts in sums.items() if any(counts)]


def with_deltas(rows: Sequence[CounterRow], deltas: Iterable[CounterDelta]) -> list[CounterRow]:
    """Return the counters that there will be when these deltas are written; the same counter twice counts once."""
    counts = {row[:3]: row for row in rows}
    for delta in summed(deltas):
        old = counts.get(delta[:3])
        sums = delta[3:] if old is None else (a + b for a, b in zip(old[3:], delta[3:], strict=True))
        counts[delta[:3]] = CounterRow(*delta[:3], *sums)
    return list(counts.values())


def entity_tables_of(fields: Sequence[str], rows: Sequence[CounterRow]) -> Mapping[str, EntityTable]:
    """Return the table of each entity field that these counters make; the same counter twice counts once."""
    by_field: dict[str, list[CounterRow]] = {field: [] for field in fields}
    for row in rows:
        by_field[row[0]].append(row)
    return {field: _table(own) for field, own in by_field.items()}


def _table(rows: list[CounterRow]) -> EntityTable:
    if not rows:
        return _EMPTY
    _, entities, hours, volume, frauds, honest = zip(*rows, strict=True)
    names = sorted(set(entities))
    first_key_of = {name: code << _HOUR_BITS for code, name in enumerate(names)}
    key_K = np.array([first_key_of[entity] | hour for entity, hour in zip(entities, hours, strict=True)])
    key, first = np.unique(key_K, return_index=True)
    volume_K, frauds_K, honest_K = np.array([volume, frauds, honest], dtype=np.int64)[:, first]
    values = np.empty(len(names), dtype=object)
    values[:] = names
    return EntityTable(values=values, key=key, volume=volume_K, frauds=frauds_K, honest=honest_K)


_NONE = np.zeros(0, dtype=np.int64)
_EMPTY = EntityTable(values=np.zeros(0, dtype=object), key=_NONE, volume=_NONE, frauds=_NONE, honest=_NONE)
