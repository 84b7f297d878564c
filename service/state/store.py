"""What a state store is: the rows that go in and come out, and the `Store` that SQLite and PostgreSQL both are.

A store knows users, events, counters and bytes. It knows nothing of models, scores or HTTP: a user's `carry` and `rows`
and the payload of a record are opaque to it, but for the `user_id`, `snapshot` and `ordinal` that an audit looks up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

HOUR_US = 3_600_000_000
WINDOW_HOURS = 672  # 28 days: the longest window of an entity's risk
KEEP_EVENTS_US = 90 * 24 * HOUR_US  # idempotency is promised for 30 days; a label may come later than that


class StoreDown(Exception):
    """The database did not answer in time, or not at all: nothing was done, or (a commit) nobody knows whether it was.

    The caller may try again: what was written is found by its event_id. The store reconnects by itself.
    """


class ShardLost(StoreDown):
    """The chain of this process is gone from the database: another one is opened when it is next asked for."""


class StoredUser(NamedTuple):
    """A user as last committed; carry and rows are those of `snapshot`.

    since: payloads of its records with an ordinal of 0 or more, by ordinal (a lower one is of an event that stands in
    the snapshot itself).
    """

    sequence: int
    n_events: int
    newest_us: int
    snapshot: int
    first_index: int
    carry: bytes
    rows: bytes
    since: tuple[bytes, ...]


class StoredEvent(NamedTuple):
    """An event as last committed. payload: of its record; None where it came by `fraud warm`."""

    payload_hash: bytes
    payload: bytes | None
    ts_us: int
    label: int | None
    label_known_us: int | None
    entities: tuple[str | None, ...]
    session_id: str | None


class StoredRecord(NamedTuple):
    """An answered event or a stateless score. payload, user_id: None once erased. erased_by: the erasure's own id."""

    shard: int
    number: int
    user_id: str | None
    snapshot: int | None
    ordinal: int | None
    payload: bytes | None
    erased_by: str | None


class CounterRow(NamedTuple):
    """What one hour (UTC, since 1970) saw of an entity: events, frauds and honest ones that became known in it."""

    field: str
    entity: str
    hour: int
    volume: int
    frauds: int
    honest: int


class CounterDelta(NamedTuple):
    """What is added to a counter; negative where a label is taken back. Below zero it is refused, never clipped."""

    field: str
    entity: str
    hour: int
    volume: int
    frauds: int
    honest: int


class Wanted(NamedTuple):
    """What a tick reads: users, (user_id, event_id) pairs, and (field, entity, hour of the event) triples."""

    users: tuple[str, ...]
    event_keys: tuple[tuple[str, str], ...]
    entities: tuple[tuple[str, str, int], ...]


class Found(NamedTuple):
    """What was found, of one moment. An unknown user or event has no key.

    counters: for each wanted triple the rows of its entity with hour < its hour that are within WINDOW_HOURS before it
    or hold a known fraud. Where one entity is wanted for several hours, its rows come once, for all of them together:
    the reader filters by hour.
    """

    users: dict[str, StoredUser]
    events: dict[tuple[str, str], StoredEvent]
    counters: list[CounterRow]


class NewSnapshot(NamedTuple):
    """The raw events a user's context starts with, and the carry just before them; opaque here."""

    first_index: int
    carry: bytes
    rows: bytes


class EventWrite(NamedTuple):
    """One new event. number, ordinal and payload are those of its record; all None where `fraud warm` writes it."""

    event_id: str
    ts_us: int
    payload_hash: bytes
    session_id: str | None
    entities: tuple[str | None, ...]
    number: int | None
    ordinal: int | None
    payload: bytes | None
    stored_us: int
    label: int | None = None
    label_known_us: int | None = None


class UserWrite(NamedTuple):
    """A user's new state and events. expected_sequence: the one that was read, 0 for a new user.

    The first sequence of a new user is best a time in us, not 1: a user who comes back after an erasure must not meet
    a cache that holds the former life under the same number.
    """

    user_id: str
    expected_sequence: int
    sequence: int
    n_events: int
    newest_us: int
    snapshot: int
    new_snapshot: NewSnapshot | None
    events: tuple[EventWrite, ...]
    counters: tuple[CounterDelta, ...]


class RecordWrite(NamedTuple):
    """The record of a stateless score."""

    user_id: str
    number: int
    payload: bytes


class LabelledEvent(NamedTuple):
    """An event whose label changes, and the label it had when it was read: compared again before it is written."""

    user_id: str
    event_id: str
    was: int | None
    was_known_us: int | None


class LabelWrite(NamedTuple):
    """A label as it came, the events it changes and what that adds to the counters. The same label_id twice is once."""

    label_id: str
    user_id: str | None
    event_id: str | None
    session_id: str | None
    label: int
    known_us: int
    source: str
    stored_us: int
    counters: tuple[CounterDelta, ...]
    events: tuple[LabelledEvent, ...]


class Tick(NamedTuple):
    """What one transaction writes. No user twice."""

    users: tuple[UserWrite, ...]
    records: tuple[RecordWrite, ...]
    labels: tuple[LabelWrite, ...]


class ShadowRow(NamedTuple):
    """How often a challenger decided so where the champion decided thus, on one day (days since 1970)."""

    day: int
    champion: str
    challenger: str
    decision_champion: str
    decision_challenger: str
    n: int
    sum_abs_difference: float


class KeyRow(NamedTuple):
    """A key of the API: the sha256 of it, its role, when it was made."""

    key_hash: bytes
    role: str
    created_us: int


class Store(Protocol):
    """State in SQL. One thread at a time. Every method may raise StoreDown."""

    @property
    def shard(self) -> int:
        """Return the number of the chain this process appends to; opened when it is first asked for."""
        ...

    def next_number(self) -> int:
        """Return a number for a record of this shard, higher than any before; one that is not used leaves a gap."""
        ...

    def read(self, wanted: Wanted) -> Found:
        """Return what is known of the wanted, all of one moment."""
        ...

    def write(self, tick: Tick) -> frozenset[str]:
        """Write a tick in one transaction; return the users who lost: others had written them since they were read.

        Nothing of a loser is written: no event, record, counter, nor a label that names an event of theirs. The rest is
        committed when this returns. A label that is there already is left as it is.
        """
        ...

    def erase(self, user_id: str) -> int | None:
        """Delete all that is kept of a user, in one transaction with the record that says so; return n records erased.

        Counters stay: they are sums. None where nobody knows the user; then there is no record of an erasure either.
        """
        ...

    def record(self, shard: int, number: int) -> StoredRecord | None:
        """Return a record, erased or not; None if there never was one."""
        ...

    def record_of_event(self, user_id: str, event_id: str) -> StoredRecord | None:
        """Return the record of an event; None if it is unknown, pruned, or came by `fraud warm`."""
        ...

    def user_records(self, user_id: str, snapshot: int) -> tuple[StoredRecord, ...]:
        """Return the records of a user's snapshot by ordinal."""
        ...

    def snapshot(self, user_id: str, snapshot: int) -> NewSnapshot | None:
        """Return a snapshot as it was written: what a replay of its records begins with."""
        ...

    def recent_events(self, user_id: str, n: int) -> tuple[tuple[str, StoredEvent], ...]:
        """Return the newest n events of a user with their ids, oldest first."""
        ...

    def session_events(self, session_id: str) -> tuple[tuple[str, str, StoredEvent], ...]:
        """Return (user_id, event_id, event) of a session, oldest first."""
        ...

    def state_hash(self) -> str | None:
        """Return the hash of the configuration that shapes the users' state; None before one was set."""
        ...

    def set_state_hash(self, state_hash: str) -> None: ...

    def keys(self) -> dict[bytes, str]:
        """Return role by sha256 of the key."""
        ...

    def key_rows(self) -> tuple[KeyRow, ...]: ...

    def add_key(self, key_hash: bytes, role: str) -> None:
        """Keep a key's hash."""
        ...

    def revoke_key(self, key_hash: bytes) -> bool:
        """Forget a key; return whether it was there."""
        ...

    def shadow_add(self, rows: Sequence[ShadowRow]) -> None:
        """Add to what is counted of a challenger."""
        ...

    def shadow_rows(self) -> tuple[ShadowRow, ...]: ...

    def prune(self, now_us: int) -> int:
        """Delete events stored over KEEP_EVENTS_US ago, a bounded number a call; return how many (0: done)."""
        ...

    def close(self) -> None: ...
