"""A connection to PostgreSQL that never waits for ever: how it is opened, what is set on it, and which tables it finds.

Everything of a store lies in the schema `fraud` of its database, so it may share a database with others.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.types.numeric import Int8BinaryDumper

from fraud.errors import ConfigError
from service.state.schema import POSTGRES, create_statements, meta_rows, upgrade_statements

Result = TypeVar("Result")

SCHEMA = "fraud"
_POLL_S = 0.05
# A number all our processes know, and hardly anybody else: one of them at a time makes or upgrades the tables.
_PREPARE_LOCK = 0x66726175645F7374
# Each statement of a tick looks up a few keys. Left to guess from empty tables, the planner reads them whole, and a
# prepared plan stays when they have grown. synchronous_commit: an answer must not leave before the disk has it.
_SETTINGS = """
SELECT set_config('search_path', %s, false), set_config('statement_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false),
    set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false), set_config('jit', 'off', false),
    set_config('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,
        false)
"""


class BoundedConnection(psycopg.Connection[Any]):  # Any: the columns of a query
    """A connection whose waits end at `deadline`, a time of `monotonic`.

    A server that is stopped keeps its connections open and enforces no timeout of its own. Overriding `wait` is the one
    place that psycopg gives for this.
    """

    deadline = float("inf")

    def wait(self, gen: Any, interval: float = _POLL_S, timeout: float | None = None) -> Any:  # Any: psycopg's own
        """Return what the generator returns; raises OperationalError at the deadline, and the connection is closed."""
        return super().wait(self._bounded(gen), min(interval, _POLL_S))

    def _bounded(self, gen: Any) -> Any:  # Any: a generator of psycopg's
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and monotonic() > self.deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("no answer in time")
                state = gen.send(ready)
        except StopIteration as stop:
            return stop.value


def connect(url: str, *, timeout_s: float) -> BoundedConnection:
    """Return a connection with its settings; raises psycopg.Error where there is none to be had."""
    # libpq counts whole seconds, two at least.
    connection = BoundedConnection.connect(
        url,
        autocommit=True,
        prepare_threshold=2,
        connect_timeout=max(2, round(timeout_s)),
        application_name="fraud",
        client_encoding="utf8",  # a server without a locale sends text as bytes of any kind otherwise
    )
    try:
        connection.deadline = monotonic() + timeout_s
        # By size they would be smallint, integer or bigint, and each mixture a statement to prepare of its own.
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        milliseconds = str(round(timeout_s * 1000))
        connection.execute(_SETTINGS, (SCHEMA, milliseconds, milliseconds))
    except BaseException:
        connection.close()
        raise
    return connection


def bring_up_to_date(connection: BoundedConnection, *, created_us: int, may_create: bool) -> str:
    """Make or upgrade the tables in a transaction, and return when the store was created.

    Raises ConfigError for a schema that holds something else, or a version nobody here knows.
    """
    where = f"PostgreSQL, schema {SCHEMA} of database {connection.info.dbname}"
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_PREPARE_LOCK,))
            meta = _meta(connection)
            if meta is None:
                if not may_create:
                    raise ConfigError(f"{where}: there is no state store; `fraud serve` and `fraud warm` make one")
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                statements = create_statements(POSTGRES)
            else:
                statements = upgrade_statements(meta, POSTGRES, where=where)
            for statement in statements:
                connection.execute(statement.encode())
            if meta is None:
                connection.cursor().executemany("INSERT INTO meta (key, value) VALUES (%s, %s)", meta_rows(created_us))
            return created(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(f"{where}: {error.diag.message_primary}; expected a user who may make tables there") from None


def created(connection: BoundedConnection) -> str:
    """Return when the store was created: what tells it from another one in its place."""
    return (_meta(connection) or {}).get("created_us", "")


def _meta(connection: BoundedConnection) -> Mapping[str, str] | None:
    """Return what a store says of itself: None in an empty schema, nothing in one that is not ours."""
    sql = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s"
    columns = set(connection.execute(sql, (SCHEMA,)).fetchall())
    if not columns:
        return None
    if not {("meta", "key"), ("meta", "value")} <= columns:
        return {}
    return dict(connection.execute(f"SELECT key, value FROM {SCHEMA}.meta").fetchall())
