"""One new database for a test, and the stores that are opened on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.state.opening import open_existing_store, open_store
from service.state.sql import SqlStore
from tests.made_ticks import NOW_US
from tests.postgres import PostgresServer


class Opened:
    """A database by its URL; its stores are closed when the test ends."""

    def __init__(self, url: str) -> None:
        """Take the URL of an empty database."""
        self.url = url
        self._stores: list[SqlStore] = []

    @classmethod
    @contextmanager
    def on(cls, request: pytest.FixtureRequest, folder: Path) -> Iterator[Opened]:
        """Yield a new database of the kind that the fixture's parameter names, "sqlite" or "postgresql"."""
        with ExitStack() as lent:
            if request.param == "sqlite":
                opened = cls(f"sqlite:///{folder / 'state.db'}")
            else:
                server: PostgresServer = request.getfixturevalue("postgres")
                opened = cls(lent.enter_context(server.lent_database()))
            try:
                yield opened
            finally:
                for store in opened._stores:
                    store.close()

    def store(self, *, timeout_s: float = 5.0) -> SqlStore:
        """Return another store on the database, as another process would open it."""
        open_store(self.url, now_us=lambda: NOW_US).close()
        self._stores.append(open_existing_store(self.url, now_us=lambda: NOW_US, timeout_s=timeout_s))
        return self._stores[-1]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:  # Any: the columns of a query
        """Return the rows of a statement that goes past the store, committed."""
        if self.url.startswith("sqlite"):
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)) as database:
                return database.execute(sql).fetchall()
        with psycopg.connect(self.url, autocommit=True, options="-c search_path=fraud") as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def texts_naming(self, user_id: str) -> list[str]:
        """Return the tables in which a row has a user's id as its user, or a session of theirs."""
        tables = ("users", "snapshots", "events", "records", "labels")
        return [table for table in tables if self.rows(f"SELECT 1 FROM {table} WHERE user_id = '{user_id}'")]
