"""The state in PostgreSQL, for several replicas of the service: a tick is one round trip to read and two to write.

Rows travel as one JSON text a table: a tick of any size is the same prepared statement, and the cost of a parameter is
paid once. READ COMMITTED with a compare-and-set on users.sequence, under locks taken in sorted order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from time import monotonic
from typing import Any, TypeVar

import msgspec
import psycopg

from fraud.errors import ConfigError
from service.state.postgres_connection import BoundedConnection, bring_up_to_date, connect, created
from service.state.postgres_statements import (
    DROP_USERS,
    EVENT_ROW,
    KNOWN_LABELS,
    LABEL,
    LOCK_EVENTS,
    LOCK_HEAD,
    LOCK_USERS,
    LOWER,
    NEW_USERS,
    READ,
    USER_ROW,
    WRITE,
)
from service.state.sql import Execute, Row
from service.state.store import CounterRow, Found, StoreDown, StoredUser, Tick, UserWrite, Wanted
from service.state.ticks import TickRows, below_zero, counter_spans, settle, stored_event, tick_rows

Result = TypeVar("Result")
Cursor = psycopg.Cursor[Any]  # Any: the columns of a query

_ATTEMPTS = 5
_AGAIN_S = 0.25  # how long after a failed connection nobody tries: a tick in between fails at once
_RETRIED = (
    psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,  # a label or a shard that another process wrote at the same time
)  # fmt: skip
_DOWN = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)


class PostgresDatabase:
    """One connection to one database."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._connection: BoundedConnection | None = None
        self._created = ""
        self._not_before = 0.0

    def prepare(self, *, created_us: int, may_create: bool) -> None:
        """Make the tables in an empty schema, or bring an older store to this version; raises ConfigError otherwise."""
        with self._failures():
            self._created = bring_up_to_date(self._ready(), created_us=created_us, may_create=may_create)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows of one statement that is a transaction of its own."""
        with self._failures():
            return self._ready().execute(_marked(sql), parameters, binary=True).fetchall()

    def transaction(self, work: Callable[[Execute], Result]) -> Result:
        """Return what `work` returns, its statements of one moment and committed together; it may run twice."""
        return self._again(lambda connection: _in_transaction(connection, work))

    def read(self, wanted: Wanted) -> Found:
        """Return what is known of the wanted, in one round trip."""
        started = monotonic()
        keys = (_json(wanted.users), _json(wanted.event_keys), _json(counter_spans(wanted.entities)))
        was_open = self._connection is not None
        try:
            rows = self._read(keys)
        except StoreDown:
            # The server was restarted since the last tick: nothing is lost by asking once more.
            if not was_open or monotonic() - started > self._timeout_s / 2:
                raise
            rows = self._read(keys)
        found = Found({}, {}, [])
        for kind, key, second_key, numbers, value, second_value, payloads, entities, session_id in rows:
            if kind == USER_ROW:
                found.users[key] = StoredUser._make((*numbers, value, second_value, tuple(payloads)))
            elif kind == EVENT_ROW:
                row = (value, second_value, *numbers, entities, session_id)
                found.events[key, second_key] = stored_event(row)
            else:
                found.counters.extend([CounterRow(key, second_key, *hour) for hour in numbers])
        return found

    def _read(self, keys: tuple[str, str, str]) -> list[Row]:
        with self._failures():
            return self._ready().execute(READ, keys, binary=True).fetchall()

    def write(self, tick: Tick, shard: int) -> frozenset[str]:
        """Write a tick in two round trips; return the users who lost."""
        return self._again(lambda connection: _write(connection, tick, shard))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _again(self, attempt: Callable[[BoundedConnection], Result]) -> Result:
        """Return what an attempt returns, made again where two transactions stood in each other's way."""
        with self._failures():
            for n_left in reversed(range(_ATTEMPTS)):
                connection = self._ready()
                try:
                    return attempt(connection)
                except BaseException as error:
                    if not connection.closed:
                        connection.rollback()
                    if not isinstance(error, _RETRIED) or not n_left:
                        raise
        raise AssertionError("an attempt returns or raises")

    def _ready(self) -> BoundedConnection:
        """Return the connection, opened again if it was lost, with a new deadline."""
        if self._connection is None or self._connection.closed:
            if monotonic() < self._not_before:
                raise StoreDown("the state store does not answer: it did not a moment ago")
            try:
                self._connection = connect(self._url, timeout_s=self._timeout_s)
            except psycopg.ProgrammingError:  # its text may hold the password
                raise ConfigError(
                    "--state: not a URL of PostgreSQL; expected postgresql://USER@HOST/DATABASE"
                ) from None
            except psycopg.Error:
                self._not_before = monotonic() + _AGAIN_S
                raise
            if self._created and created(self._connection) != self._created:
                self.close()
                raise StoreDown("the state store was replaced by another; restart the service on it")
        self._connection.deadline = monotonic() + self._timeout_s
        return self._connection

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what says that the database cannot be used now into StoreDown; a wrong statement stays what it is."""
        try:
            yield
        except _DOWN as error:
            self.close()
            raise StoreDown(f"the state store does not answer: {str(error).strip()}") from error


def _in_transaction(connection: BoundedConnection, work: Callable[[Execute], Result]) -> Result:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    done = work(lambda sql, parameters: connection.execute(_marked(sql), parameters, binary=True).fetchall())
    connection.execute("COMMIT")
    return done


def _write(connection: BoundedConnection, tick: Tick, shard: int) -> frozenset[str]:
    """Lock and look in one round trip; in the next, write what was settled and commit."""
    new = [_user_row(user) for user in tick.users if user.expected_sequence == 0]
    fetched: dict[str, Cursor] = {}
    with connection.pipeline():
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        if tick.users:
            names = _json([user.user_id for user in tick.users])
            fetched["users"] = connection.execute(LOCK_USERS, (names,), binary=True)
        if new:
            fetched["made"] = connection.execute(NEW_USERS, (_json(new),), binary=True)
        if tick.labels:
            names = _json([label.label_id for label in tick.labels])
            keys = _json([event[:2] for label in tick.labels for event in label.events])
            fetched["labels"] = connection.execute(KNOWN_LABELS, (names,), binary=True)
            fetched["events"] = connection.execute(LOCK_EVENTS, (keys,), binary=True)
        if shard:
            fetched["head"] = connection.execute(LOCK_HEAD, (shard,), binary=True)
    found = {name: cursor.fetchall() for name, cursor in fetched.items()}
    made = {row[0] for row in found.get("made", ())}
    # A user who was neither there nor could be made: another process made them in between.
    sequences: dict[str, int] = {row[0]: -1 for row in new if row[0] not in made} | dict(found.get("users", ()))
    settled = settle(
        tick,
        sequences,
        known_labels={row[0] for row in found.get("labels", ())},
        labels_of={(row[0], row[1]): (row[2], row[3]) for row in found.get("events", ())},
    )
    head = found.get("head")
    rows = tick_rows(tick, settled, shard, head=head[0] if head else None)
    _write_rows(connection, rows, shard, made=made, unwanted=made & settled.losers)
    return settled.losers


def _write_rows(
    connection: BoundedConnection, rows: TickRows, shard: int, *, made: set[str], unwanted: set[str]
) -> None:
    """Write the rows of a tick and commit. made: users that are there already; unwanted: those of them who lost."""
    for row in rows.lowered:
        if connection.execute(LOWER, (*row[3:], *row)).rowcount != 1:
            raise below_zero(row)
    known = [row for row in rows.users if row[0] not in made]
    tables = (known, rows.snapshots, rows.events, rows.records, rows.chain, rows.raised)
    with connection.pipeline():
        if any(tables):
            # -1: no shard. Where nothing is chained its head stays, whoever moved it meanwhile.
            head = (*rows.head, shard if rows.chain else -1)
            connection.execute(WRITE, (*map(_json, tables), *head))
        if unwanted:
            connection.execute(DROP_USERS, (_json(sorted(unwanted)),))
        if rows.labels:
            connection.execute(LABEL, (_json(rows.labels), _json(rows.labelled)))
        connection.execute("COMMIT")


def _user_row(user: UserWrite) -> tuple[str, int, int, int, int]:
    return (user.user_id, user.sequence, user.n_events, user.newest_us, user.snapshot)


def _json(values: object) -> str:
    """Return rows as JSON; bytes become base64."""
    return msgspec.json.encode(values).decode()


@lru_cache(maxsize=128)
def _marked(sql: str) -> bytes:
    """Return a statement with the marks of psycopg."""
    return sql.replace("?", "%s").encode()
