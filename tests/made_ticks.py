"""Ticks to write to a state store, with payloads as plain as they may be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from service.state.store import (
    HOUR_US,
    CounterDelta,
    EventWrite,
    LabelledEvent,
    LabelWrite,
    NewSnapshot,
    Store,
    StoredUser,
    Tick,
    UserWrite,
    Wanted,
)

NOW_US = 1_790_000_000_000_000
HOUR = NOW_US // HOUR_US


def read_user(store: Store, user_id: str) -> StoredUser | None:
    """Return a user as stored."""
    return store.read(Wanted((user_id,), (), ())).users.get(user_id)


def event_write(
    store: Store, user_id: str, event_id: str, *, snapshot: int = 1, ordinal: int = 0, ts_us: int = NOW_US
) -> EventWrite:
    """Return an event with a payee of its user's, a session of theirs, and a record."""
    number = store.next_number()
    payload = {"user_id": user_id, "event_id": event_id, "snapshot": snapshot, "place": ordinal, "salt": number}
    return EventWrite(
        event_id=event_id,
        ts_us=ts_us,
        payload_hash=hashlib.sha256(event_id.encode()).digest(),
        session_id=f"{user_id}@{NOW_US}",
        entities=(f"payee of {user_id}", None),
        number=number,
        ordinal=ordinal,
        payload=json.dumps(payload).encode(),
        stored_us=ts_us,
    )


def user_write(
    user_id: str, events: Sequence[EventWrite], was: StoredUser | None, *, new_snapshot: NewSnapshot | None = None
) -> UserWrite:
    """Return the write of a user's next events, counted as volume of their payees."""
    is_first = was is None
    return UserWrite(
        user_id=user_id,
        expected_sequence=0 if was is None else was.sequence,
        sequence=NOW_US if was is None else was.sequence + 1,
        n_events=len(events) + (0 if was is None else was.n_events),
        newest_us=max(event.ts_us for event in events),
        snapshot=1 if was is None else was.snapshot + (new_snapshot is not None),
        new_snapshot=NewSnapshot(0, b"carry", b"rows") if is_first else new_snapshot,
        events=tuple(events),
        counters=tuple(
            CounterDelta("payee", event.entities[0] or "", event.ts_us // HOUR_US, 1, 0, 0) for event in events
        ),
    )


def append(store: Store, user_id: str, *event_ids: str) -> frozenset[str]:
    """Write a user's next events to what is stored of them; return who lost."""
    was = read_user(store, user_id)
    n_since = 0 if was is None else len(was.since)
    events = [event_write(store, user_id, name, ordinal=n_since + i) for i, name in enumerate(event_ids)]
    return store.write(Tick((user_write(user_id, events, was),), (), ()))


def label_write(
    label_id: str,
    events: Sequence[LabelledEvent],
    label: int,
    *,
    counters: Sequence[CounterDelta] = (),
    session_id: str | None = None,
) -> LabelWrite:
    """Return a label of some events."""
    return LabelWrite(
        label_id=label_id,
        user_id=events[0].user_id if events and session_id is None else None,
        event_id=events[0].event_id if events and session_id is None else None,
        session_id=session_id,
        label=label,
        known_us=NOW_US,
        source="analyst",
        stored_us=NOW_US,
        counters=tuple(counters),
        events=tuple(events),
    )
