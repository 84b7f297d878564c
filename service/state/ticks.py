"""A tick as rows of the tables: who won the compare-and-set, and what is written for them. Knows no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from service.state.chain import NO_HASH, chain_rows
from service.state.erasures import ERASURE_MARK
from service.state.store import WINDOW_HOURS, CounterDelta, LabelWrite, ShardLost, StoredEvent, Tick, UserWrite

_entities_decoder = msgspec.json.Decoder(tuple[str | None, ...])
_entities_encoder = msgspec.json.Encoder()

EventKey = tuple[str, str]
LabelOf = tuple[int | None, int | None]  # label, label_known_us


class Settled(NamedTuple):
    """What of a tick is written, and the users who lost."""

    users: tuple[UserWrite, ...]
    labels: tuple[LabelWrite, ...]
    losers: frozenset[str]


class TickRows(NamedTuple):
    """The rows of one transaction, each in the order of its table's columns.

    head: the new (number, hash) of the shard. raised: counters to add to or to make, sorted; lowered: those where
    something is taken back, which must exist. labelled: (label, label_known_us, user_id, event_id).
    """

    users: list[tuple[str, int, int, int, int]]
    snapshots: list[tuple[str, int, int, bytes, bytes]]
    events: list[tuple[object, ...]]
    records: list[tuple[object, ...]]
    chain: list[tuple[int, int, bytes, bytes]]
    head: tuple[int, bytes]
    raised: list[tuple[str, str, int, int, int, int]]
    lowered: list[tuple[str, str, int, int, int, int]]
    labels: list[tuple[object, ...]]
    labelled: list[tuple[int, int, str, str]]


def settle(
    tick: Tick, sequences: Mapping[str, int], *, known_labels: set[str], labels_of: Mapping[EventKey, LabelOf]
) -> Settled:
    """Return what of a tick may be written, given the rows as they are under lock.

    sequences: of the users there are. known_labels: those of the tick's labels that are there. labels_of: the labels of
    the events that the tick labels; an event that is not there has no key.
    """
    losers = {user.user_id for user in tick.users if sequences.get(user.user_id, 0) != user.expected_sequence}
    once: dict[str, LabelWrite] = {}
    for label in tick.labels:
        if label.label_id not in known_labels:
            once.setdefault(label.label_id, label)
    new_labels = tuple(once.values())
    while new_labels and (stale := _stale(tick, new_labels, losers, labels_of=labels_of)):
        losers |= stale  # and again: what a dropped label would have changed, a later one may have counted on
    return Settled(
        users=tuple(user for user in tick.users if user.user_id not in losers),
        labels=tuple(label for label in new_labels if not any(event.user_id in losers for event in label.events)),
        losers=frozenset(losers),
    )


def _stale(
    tick: Tick, labels: Sequence[LabelWrite], losers: set[str], *, labels_of: Mapping[EventKey, LabelOf]
) -> set[str]:
    """Return the users of events that are not labelled as they were when a label of this tick was made."""
    current = dict(labels_of)
    for user in tick.users:
        if user.user_id not in losers:
            current.update(
                ((user.user_id, event.event_id), (event.label, event.label_known_us)) for event in user.events
            )
    stale: set[str] = set()
    for label in labels:
        if any(event.user_id in losers for event in label.events):
            continue
        changed = {
            event.user_id
            for event in label.events
            if current.get((event.user_id, event.event_id)) != (event.was, event.was_known_us)
        }
        if not changed:
            current.update(((e.user_id, e.event_id), (label.label, label.known_us)) for e in label.events)
        stale |= changed
    return stale


def tick_rows(tick: Tick, settled: Settled, shard: int, *, head: tuple[int, bytes] | None) -> TickRows:
    """Return the rows of what was settled, chained from the shard's head on.

    Raises ShardLost where there is something to chain and the shard has no head.
    """
    payloads = {record.number: record.payload for record in tick.records}
    records: list[tuple[object, ...]] = [
        (shard, record.number, record.user_id, None, None, record.payload) for record in tick.records
    ]
    events: list[tuple[object, ...]] = []
    deltas: list[CounterDelta] = []
    for user in settled.users:
        deltas += user.counters
        for event in user.events:
            if event.number is not None:
                assert event.payload is not None  # a record has one
                payloads[event.number] = event.payload
                records.append((shard, event.number, user.user_id, user.snapshot, event.ordinal, event.payload))
            own_shard = None if event.number is None else shard
            events.append((
                user.user_id, event.event_id, event.ts_us, event.payload_hash, own_shard, event.number,
                event.session_id, entities_text(event.entities), event.label, event.label_known_us, event.stored_us,
            ))  # fmt: skip
    labelled: dict[EventKey, tuple[int, int]] = {}
    for label in settled.labels:
        deltas += label.counters
        labelled.update(((e.user_id, e.event_id), (label.label, label.known_us)) for e in label.events)
    if any(payload.startswith(ERASURE_MARK) for payload in payloads.values()):
        raise ValueError("a payload begins as that of an erasure does; only `erase` writes such a record")
    if payloads and head is None:
        raise ShardLost("the chain of this process is gone from the state store; it was replaced by an older one")
    head = head or (0, NO_HASH)
    chain = list(chain_rows(head, shard, payloads))
    if len(chain) != len(records):
        raise ValueError("two records of a tick have one number")
    raised, lowered = _summed(deltas)
    return TickRows(
        users=[(u.user_id, u.sequence, u.n_events, u.newest_us, u.snapshot) for u in settled.users],
        snapshots=[
            (u.user_id, u.snapshot, u.new_snapshot.first_index, u.new_snapshot.carry, u.new_snapshot.rows)
            for u in settled.users
            if u.new_snapshot is not None
        ],
        events=events,
        records=records,
        chain=chain,
        head=(chain[-1][1], chain[-1][3]) if chain else head,
        raised=raised,
        lowered=lowered,
        labels=[tuple(label[:8]) for label in settled.labels],
        labelled=[(*now, *key) for key, now in labelled.items()],
    )


def _summed(
    deltas: Sequence[CounterDelta],
) -> tuple[list[tuple[str, str, int, int, int, int]], list[tuple[str, str, int, int, int, int]]]:
    """Return (raised, lowered): one row a counter, sorted; lowered where any of its three falls."""
    sums: dict[tuple[str, str, int], tuple[int, int, int]] = {}
    for field, entity, hour, volume, frauds, honest in deltas:
        before = sums.get((field, entity, hour), (0, 0, 0))
        sums[field, entity, hour] = (before[0] + volume, before[1] + frauds, before[2] + honest)
    raised: list[tuple[str, str, int, int, int, int]] = []
    lowered: list[tuple[str, str, int, int, int, int]] = []
    for key in sorted(sums):
        added = sums[key]
        if any(added):
            (lowered if min(added) < 0 else raised).append((*key, *added))
    return raised, lowered


def below_zero(row: tuple[str, str, int, int, int, int]) -> ValueError:
    """Return the error for a counter that would fall below zero: more was taken back than was ever counted."""
    return ValueError(f"counter of {row[0]} in hour {row[2]}: {row[3:]} would take it below zero")


def counter_spans(entities: Sequence[tuple[str, str, int]]) -> list[tuple[str, str, int, int]]:
    """Return (field, entity, first hour, hour after the last) for each entity wanted, whatever the hours."""
    low: dict[tuple[str, str], int] = {}
    high: dict[tuple[str, str], int] = {}
    for field, entity, hour in entities:
        key = (field, entity)
        if key not in low:
            low[key] = high[key] = hour
        elif hour < low[key]:
            low[key] = hour
        elif hour > high[key]:
            high[key] = hour
    return [(*key, first - WINDOW_HOURS, high[key]) for key, first in low.items()]


def entities_text(entities: tuple[str | None, ...]) -> str:
    """Return an event's entities as they are stored."""
    return _entities_encoder.encode(entities).decode()


def stored_event(row: Sequence[Any]) -> StoredEvent:  # Any: the columns of a query
    """Return an event from (payload_hash, payload, ts_us, label, label_known_us, entities, session_id)."""
    payload_hash, payload, ts_us, label, label_known_us, entities, session_id = row
    return StoredEvent(
        payload_hash, payload, ts_us, label, label_known_us, _entities_decoder.decode(entities), session_id
    )
