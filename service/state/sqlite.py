"""The state in one SQLite file: what a single machine needs, several worker processes included.

Reads run in a transaction of their own, so they are of one moment; writes take the write lock at once, so a transaction
never has to be tried again. A commit returns when the disk has it (WAL, synchronous = FULL).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import msgspec

from service.state.sql import Execute, Row
from service.state.sqlite_file import bring_up_to_date, check_file, connect, created
from service.state.store import CounterRow, Found, StoreDown, StoredUser, Tick, Wanted
from service.state.ticks import TickRows, below_zero, counter_spans, settle, stored_event, tick_rows

Result = TypeVar("Result")
_COUNTER = partial(tuple.__new__, CounterRow)  # _make without a Python call a row

_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")  # another process is at it: the connection is as good as before
_BROKEN = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

# CROSS JOIN: the list first, then one look-up in the tree for each of it. Measured for a tick of eight users: 12 us,
# a VALUES list 12.5 us (and a statement for every length), a statement for each user 44 us.
_USERS = """
SELECT u.user_id, u.sequence, u.n_events, u.newest_us, u.snapshot, s.first_index, s.carry, s.rows
FROM json_each(?) AS w CROSS JOIN users AS u ON u.user_id = w.value
LEFT JOIN snapshots AS s ON s.user_id = u.user_id AND s.snapshot = u.snapshot
"""
_SINCE = """
SELECT u.user_id, r.ordinal, r.payload
FROM json_each(?) AS w CROSS JOIN users AS u ON u.user_id = w.value
CROSS JOIN records AS r ON r.user_id = u.user_id AND r.snapshot = u.snapshot AND r.ordinal >= 0
"""
_EVENTS = """
SELECT e.user_id, e.event_id, e.payload_hash, r.payload, e.ts_us, e.label, e.label_known_us, e.entities, e.session_id
FROM json_each(?) AS w
CROSS JOIN events AS e ON e.user_id = json_extract(w.value, '$[0]') AND e.event_id = json_extract(w.value, '$[1]')
LEFT JOIN records AS r ON r.shard = e.shard AND r.number = e.number
"""
# The recent hours from the table, older ones with a known fraud from the index that holds these alone.
_COUNTERS = """
WITH w (field, entity, first, last) AS MATERIALIZED (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
        json_extract(value, '$[2]'), json_extract(value, '$[3]') FROM json_each(?)
)
SELECT c.field, c.entity, c.hour, c.volume, c.frauds, c.honest
FROM w CROSS JOIN counters AS c
    ON c.field = w.field AND c.entity = w.entity AND c.hour >= w.first AND c.hour < w.last
UNION ALL
SELECT c.field, c.entity, c.hour, c.volume, c.frauds, c.honest
FROM w CROSS JOIN counters AS c INDEXED BY counters_frauds
    ON c.field = w.field AND c.entity = w.entity AND c.hour < w.first AND c.frauds > 0
"""
_SEQUENCES = "SELECT user_id, sequence FROM users WHERE user_id IN (SELECT value FROM json_each(?))"
_KNOWN_LABELS = "SELECT label_id FROM labels WHERE label_id IN (SELECT value FROM json_each(?))"
_LABELS_OF = """
SELECT e.user_id, e.event_id, e.label, e.label_known_us
FROM json_each(?) AS w
CROSS JOIN events AS e ON e.user_id = json_extract(w.value, '$[0]') AND e.event_id = json_extract(w.value, '$[1]')
"""
_HEAD = "SELECT head_number, head_hash FROM shards WHERE shard = ?"
_LOWER = """
UPDATE counters SET volume = volume + ?4, frauds = frauds + ?5, honest = honest + ?6
WHERE field = ?1 AND entity = ?2 AND hour = ?3 AND volume + ?4 >= 0 AND frauds + ?5 >= 0 AND honest + ?6 >= 0
"""
_WRITES = {
    "users": """
        INSERT INTO users (user_id, sequence, n_events, newest_us, snapshot) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (user_id) DO UPDATE SET sequence = excluded.sequence, n_events = excluded.n_events,
            newest_us = excluded.newest_us, snapshot = excluded.snapshot
    """,
    "snapshots": "INSERT INTO snapshots (user_id, snapshot, first_index, carry, rows) VALUES (?, ?, ?, ?, ?)",
    "events": """
        INSERT INTO events (user_id, event_id, ts_us, payload_hash, shard, number, session_id, entities, label,
            label_known_us, stored_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    """,
    "records": """
        INSERT INTO records (shard, number, user_id, snapshot, ordinal, payload) VALUES (?, ?, ?, ?, ?, ?)
    """,
    "chain": "INSERT INTO chain (shard, number, payload_sha256, hash) VALUES (?, ?, ?, ?)",
    "raised": """
        INSERT INTO counters (field, entity, hour, volume, frauds, honest) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (field, entity, hour) DO UPDATE SET volume = volume + excluded.volume,
            frauds = frauds + excluded.frauds, honest = honest + excluded.honest
    """,
    "labels": """
        INSERT INTO labels (label_id, user_id, event_id, session_id, label, known_us, source, stored_us)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    """,
    "labelled": "UPDATE events SET label = ?, label_known_us = ? WHERE user_id = ? AND event_id = ?",
}


class SqliteDatabase:
    """One connection to one file."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._created = ""

    def prepare(self, *, created_us: int, may_create: bool) -> None:
        """Make the tables of a new file, or bring an older store to this version; raises ConfigError for any other."""
        with self._failures():
            check_file(self._path, may_create=may_create)
        with self._transaction("BEGIN IMMEDIATE") as db:
            self._created = bring_up_to_date(db, self._path, created_us=created_us, may_create=may_create)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows of one statement that is a transaction of its own."""
        with self._failures():
            return self._ready().execute(sql, parameters).fetchall()

    def transaction(self, work: Callable[[Execute], Result]) -> Result:
        """Return what `work` returns, its statements committed together."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            return work(lambda sql, parameters: db.execute(sql, parameters).fetchall())

    def read(self, wanted: Wanted) -> Found:
        """Return what is known of the wanted."""
        users: dict[str, StoredUser] = {}
        events = []
        counters: list[CounterRow] = []
        with self._transaction("BEGIN") as db:
            if wanted.users:
                names = _json(wanted.users)
                since: dict[str, list[tuple[int, bytes]]] = {}
                for user_id, ordinal, payload in db.execute(_SINCE, (names,)):
                    since.setdefault(user_id, []).append((ordinal, payload))
                for row in db.execute(_USERS, (names,)):
                    # In order already, but only by how SQLite runs it; ORDER BY would copy each payload into a tree.
                    payloads = tuple(payload for _, payload in sorted(since.get(row[0], ())))
                    users[row[0]] = StoredUser._make((*row[1:], payloads))
            if wanted.event_keys:
                events = db.execute(_EVENTS, (_json(wanted.event_keys),)).fetchall()
            if wanted.entities:
                spans = _json(counter_spans(wanted.entities))
                counters = list(map(_COUNTER, db.execute(_COUNTERS, (spans,))))
        return Found(users, {(row[0], row[1]): stored_event(row[2:]) for row in events}, counters)

    def write(self, tick: Tick, shard: int) -> frozenset[str]:
        """Write a tick; return the users who lost."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            sequences: dict[str, int] = {}
            if tick.users:
                sequences = dict(db.execute(_SEQUENCES, (_json([user.user_id for user in tick.users]),)))
            known_labels: set[str] = set()
            labels_of = {}
            if tick.labels:
                names = _json([label.label_id for label in tick.labels])
                known_labels = {row[0] for row in db.execute(_KNOWN_LABELS, (names,))}
                keys = _json([event[:2] for label in tick.labels for event in label.events])
                labels_of = {(row[0], row[1]): (row[2], row[3]) for row in db.execute(_LABELS_OF, (keys,))}
            settled = settle(tick, sequences, known_labels=known_labels, labels_of=labels_of)
            head = db.execute(_HEAD, (shard,)).fetchone()
            _insert(db, tick_rows(tick, settled, shard, head=head), shard)
        return settled.losers

    def close(self) -> None:
        """Close the connection; the last one to close writes the WAL back to the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _ready(self) -> sqlite3.Connection:
        """Return the connection, opened again if it was lost; raises StoreDown where the file is another one now."""
        try:
            inode = os.stat(self._path).st_ino
        except OSError as error:
            self.close()
            raise StoreDown(f"the state store's file is gone: {error.strerror}") from None
        if self._db is not None and inode == self._inode:
            return self._db
        self.close()  # a file that was unlinked would take every commit, and lose it
        db = connect(self._path, timeout_s=self._timeout_s)
        if self._created and created(db) != self._created:
            db.close()
            raise StoreDown("the state store's file was replaced by another; restart the service on it")
        self._db, self._inode = db, inode
        return db

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Yield the connection within a transaction, committed at the end and rolled back whatever fails."""
        with self._failures():
            db = self._ready()
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what says that the database cannot be used now into StoreDown; a wrong statement stays what it is."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            if not isinstance(error, sqlite3.OperationalError) and name not in _BROKEN:
                raise
            if not name.startswith(_BUSY):
                self.close()
            raise StoreDown(f"the state store does not answer: {error}") from error


def _insert(db: sqlite3.Connection, rows: TickRows, shard: int) -> None:
    """Write the rows of a tick."""
    for table, statement in _WRITES.items():
        values = getattr(rows, table)
        if values:
            db.executemany(statement, values)
    for row in rows.lowered:
        if db.execute(_LOWER, row).rowcount != 1:
            raise below_zero(row)
    if rows.chain:
        db.execute("UPDATE shards SET head_number = ?, head_hash = ? WHERE shard = ?", (*rows.head, shard))


def _json(values: object) -> str:
    return msgspec.json.encode(values).decode()
