"""The one `Store`: what is the same on every SQL database, over a `Database` that says how to reach one.

A statement here is written with `?` and runs on both. What a tick does is each database's own, for speed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from service.state.chain import NO_HASH, ChainLink, ShardHead
from service.state.erasures import erase_user
from service.state.labels import StoredLabel
from service.state.schema import OWN_SESSION
from service.state.store import (
    KEEP_EVENTS_US,
    Found,
    KeyRow,
    NewSnapshot,
    ShadowRow,
    ShardLost,
    StoredEvent,
    StoredRecord,
    Tick,
    Wanted,
)
from service.state.ticks import stored_event

Result = TypeVar("Result")
Row = tuple[Any, ...]  # Any: the columns of a query
Execute = Callable[[str, Sequence[object]], list[Row]]

PRUNED_AT_ONCE = 2000  # events a call: a few ms, in which no tick can write

_RECORD = "SELECT shard, number, user_id, snapshot, ordinal, payload, erased_by FROM records"
_EVENT = """
SELECT e.user_id, e.event_id, e.payload_hash, r.payload, e.ts_us, e.label, e.label_known_us, e.entities, e.session_id
FROM events AS e LEFT JOIN records AS r ON r.shard = e.shard AND r.number = e.number
"""
_CHAIN = """
SELECT c.number, c.payload_sha256, c.hash, r.shard IS NOT NULL, r.user_id, r.snapshot, r.ordinal, r.payload, r.erased_by
FROM chain AS c LEFT JOIN records AS r ON r.shard = c.shard AND r.number = c.number
WHERE c.shard = ? AND c.number > ? ORDER BY c.number LIMIT ?
"""
_UNCHAINED = """
SELECT r.number FROM records AS r LEFT JOIN chain AS c ON c.shard = r.shard AND c.number = r.number
WHERE r.shard = ? AND r.number > ? AND r.number <= ? AND c.shard IS NULL ORDER BY r.number
"""


class Database(Protocol):
    """How to reach one database. Every method raises StoreDown where it does not answer."""

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows of one statement that is a transaction of its own."""
        ...

    def transaction(self, work: Callable[[Execute], Result]) -> Result:
        """Return what `work` returns, its statements of one moment and committed together; it may run twice."""
        ...

    def read(self, wanted: Wanted) -> Found:
        """Return what is known of the wanted."""
        ...

    def write(self, tick: Tick, shard: int) -> frozenset[str]:
        """Write a tick; return the users who lost."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


class SqlStore:
    """State in SQL: a `service.state.store.Store`, the `Chains` that an audit reads, and the `KeptLabels` of a pull."""

    def __init__(self, database: Database, *, now_us: Callable[[], int]) -> None:
        self._database = database
        self._now_us = now_us
        self._shard = 0  # none yet: who only reads opens no chain
        self._number = 0

    @property
    def shard(self) -> int:
        """Return the number of the chain this process appends to; opened when it is first asked for."""
        if not self._shard:
            name = f"{socket.gethostname()}:{os.getpid()}"
            row = (name, self._now_us(), 0, NO_HASH)
            self._shard = self._database.transaction(lambda execute: _open_shard(execute, row))
            self._number = 0
        return self._shard

    def next_number(self) -> int:
        """Return a number for a record of this shard, higher than any before."""
        assert self.shard
        self._number += 1
        return self._number

    def read(self, wanted: Wanted) -> Found:
        """Return what is known of the wanted, all of one moment."""
        return self._database.read(wanted)

    def write(self, tick: Tick) -> frozenset[str]:
        """Write a tick in one transaction; return the users who lost."""
        try:
            return self._database.write(tick, self._shard)
        except ShardLost:
            self._shard = 0
            raise

    def erase(self, user_id: str) -> int | None:
        """Delete all that is kept of a user; return how many records, None where nobody knows the user."""
        shard, number, stored_us = self.shard, self.next_number(), self._now_us()
        try:
            return self._database.transaction(
                lambda execute: erase_user(execute, user_id, shard=shard, number=number, stored_us=stored_us)
            )
        except ShardLost:
            self._shard = 0
            raise

    def record(self, shard: int, number: int) -> StoredRecord | None:
        """Return a record, erased or not; None if there never was one."""
        rows = self._database.query(f"{_RECORD} WHERE shard = ? AND number = ?", (shard, number))
        return StoredRecord(*rows[0]) if rows else None

    def record_of_event(self, user_id: str, event_id: str) -> StoredRecord | None:
        """Return the record of an event; None if it is unknown, pruned, or came by `fraud warm`."""
        where = "SELECT shard, number FROM events WHERE user_id = ? AND event_id = ?"
        rows = self._database.query(f"{_RECORD} WHERE (shard, number) IN ({where})", (user_id, event_id))
        return StoredRecord(*rows[0]) if rows else None

    def user_records(self, user_id: str, snapshot: int) -> tuple[StoredRecord, ...]:
        """Return the records of a user's snapshot by ordinal."""
        rows = self._database.query(
            f"{_RECORD} WHERE user_id = ? AND snapshot = ? ORDER BY ordinal", (user_id, snapshot)
        )
        return tuple(StoredRecord(*row) for row in rows)

    def snapshot(self, user_id: str, snapshot: int) -> NewSnapshot | None:
        """Return a snapshot as it was written."""
        sql = "SELECT first_index, carry, rows FROM snapshots WHERE user_id = ? AND snapshot = ?"
        rows = self._database.query(sql, (user_id, snapshot))
        return NewSnapshot(*rows[0]) if rows else None

    def recent_events(self, user_id: str, n: int) -> tuple[tuple[str, StoredEvent], ...]:
        """Return the newest n events of a user with their ids, oldest first."""
        sql = f"{_EVENT} WHERE e.user_id = ? ORDER BY e.ts_us DESC, e.stored_us DESC, e.number DESC LIMIT ?"
        rows = self._database.query(sql, (user_id, n))
        return tuple((row[1], stored_event(row[2:])) for row in reversed(rows))

    def session_events(self, session_id: str) -> tuple[tuple[str, str, StoredEvent], ...]:
        """Return (user_id, event_id, event) of a session, oldest first."""
        user_id = session_id.rpartition("@")[0]
        order = "ORDER BY e.ts_us, e.stored_us, e.number"
        rows = self._database.query(f"{_EVENT} WHERE e.user_id = ? AND e.session_id = ? {order}", (user_id, session_id))
        if not rows:
            own = f"SELECT user_id, event_id FROM events WHERE session_id = ? AND {OWN_SESSION}"
            rows = self._database.query(f"{_EVENT} WHERE (e.user_id, e.event_id) IN ({own}) {order}", (session_id,))
        return tuple((row[0], row[1], stored_event(row[2:])) for row in rows)

    def labels(self, after: str, n: int) -> tuple[StoredLabel, ...]:
        """Return the next n labels after a label_id, by label_id."""
        sql = """
        SELECT label_id, user_id, event_id, session_id, label, known_us, source FROM labels
        WHERE label_id > ? ORDER BY label_id LIMIT ?
        """
        return tuple(StoredLabel(*row) for row in self._database.query(sql, (after, n)))

    def state_hash(self) -> str | None:
        """Return the hash of the configuration that shapes the users' state; None before one was set."""
        rows = self._database.query("SELECT value FROM meta WHERE key = 'state_hash'")
        return rows[0][0] if rows else None

    def set_state_hash(self, state_hash: str) -> None:
        """Keep the hash of the configuration that shapes the users' state."""
        sql = """
        INSERT INTO meta (key, value) VALUES ('state_hash', ?)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value RETURNING 1
        """
        self._database.query(sql, (state_hash,))

    def keys(self) -> dict[bytes, str]:
        """Return role by sha256 of the key."""
        return {row.key_hash: row.role for row in self.key_rows()}

    def key_rows(self) -> tuple[KeyRow, ...]:
        """Return the keys, oldest first."""
        sql = "SELECT key_hash, role, created_us FROM api_keys ORDER BY created_us, key_hash"
        return tuple(KeyRow(*row) for row in self._database.query(sql))

    def add_key(self, key_hash: bytes, role: str) -> None:
        """Keep a key's hash."""
        sql = "INSERT INTO api_keys (key_hash, role, created_us) VALUES (?, ?, ?) RETURNING 1"
        self._database.query(sql, (key_hash, role, self._now_us()))

    def revoke_key(self, key_hash: bytes) -> bool:
        """Forget a key; return whether it was there."""
        return bool(self._database.query("DELETE FROM api_keys WHERE key_hash = ? RETURNING 1", (key_hash,)))

    def shadow_add(self, rows: Sequence[ShadowRow]) -> None:
        """Add to what is counted of a challenger."""
        sql = """
        INSERT INTO shadow (day, champion, challenger, decision_champion, decision_challenger, n, sum_abs_difference)
        VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (day, champion, challenger, decision_champion, decision_challenger) DO UPDATE SET
            n = shadow.n + excluded.n, sum_abs_difference = shadow.sum_abs_difference + excluded.sum_abs_difference
        RETURNING 1
        """
        self._database.transaction(lambda execute: [execute(sql, row) for row in sorted(rows)])

    def shadow_rows(self) -> tuple[ShadowRow, ...]:
        """Return what was counted of challengers."""
        sql = """
        SELECT day, champion, challenger, decision_champion, decision_challenger, n, sum_abs_difference FROM shadow
        ORDER BY day, champion, challenger, decision_champion, decision_challenger
        """
        return tuple(ShadowRow(*row) for row in self._database.query(sql))

    def prune(self, now_us: int) -> int:
        """Delete events stored over KEEP_EVENTS_US ago, a bounded number a call; return how many (0: done)."""
        sql = """
        DELETE FROM events WHERE (user_id, event_id) IN (
            SELECT user_id, event_id FROM events WHERE stored_us < ? ORDER BY stored_us LIMIT ?
        ) RETURNING 1
        """
        return len(self._database.query(sql, (now_us - KEEP_EVENTS_US, PRUNED_AT_ONCE)))

    def shard_heads(self) -> tuple[ShardHead, ...]:
        """Return the end of every chain, by shard."""
        sql = "SELECT shard, name, started_us, head_number, head_hash FROM shards ORDER BY shard"
        return tuple(ShardHead(*row) for row in self._database.query(sql))

    def recorded_shards(self) -> tuple[int, ...]:
        """Return the shards that have a record or a link of a chain, whether or not they have a head."""
        shards: set[int] = set()
        for table in ("chain", "records"):
            sql = f"SELECT shard FROM {table} WHERE shard > ? ORDER BY shard LIMIT 1"
            last = -1  # from one shard to the next: a look-up each, however many records they hold
            while rows := self._database.query(sql, (last,)):
                last = rows[0][0]
                shards.add(last)
        return tuple(sorted(shards))

    def chain(self, shard: int, after: int, n: int) -> tuple[ChainLink, ...]:
        """Return the next n records of a chain after a number, with what is left of their payloads."""
        rows = self._database.query(_CHAIN, (shard, after, n))
        return tuple(ChainLink._make(row) for row in rows)

    def unchained(self, shard: int, after: int, through: int) -> tuple[int, ...]:
        """Return those numbers of a shard in (after, through] that have a record and no link in the chain."""
        return tuple(row[0] for row in self._database.query(_UNCHAINED, (shard, after, through)))

    def unerased(self, shard: int, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return those of a shard's numbers whose payload is there."""
        marks = ", ".join("?" * len(numbers))
        sql = f"SELECT number FROM records WHERE shard = ? AND payload IS NOT NULL AND number IN ({marks})"
        return tuple(row[0] for row in self._database.query(sql, (shard, *numbers)))

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()


def _open_shard(execute: Execute, row: tuple[str, int, int, bytes]) -> int:
    """Return the number of a new chain: one more than the last, so that one that is taken away leaves a gap."""
    sql = """
    INSERT INTO shards (shard, name, started_us, head_number, head_hash)
    SELECT coalesce(max(shard), 0) + 1, ?, ?, ?, ? FROM shards RETURNING shard
    """
    return execute(sql, row)[0][0]
