"""The file of a SQLite store: whether it is one, how a new one is made, and the settings of a connection to it.

A file that is not a store, or a store of a version nobody here knows, is refused before anything is written to it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from time import monotonic, sleep
from urllib.parse import quote

from fraud.errors import ConfigError
from service.state.schema import SQLITE, create_statements, meta_rows, upgrade_statements

_SMALLEST = 512  # bytes of the smallest page that SQLite knows
CHECKPOINT_PAGES = 4000  # 16 MB of WAL: pages that change again before then are written to the file once
CACHE_KIB = 2000


def check_file(path: str, *, may_create: bool) -> None:
    """Refuse, with ConfigError, a path that holds no store and cannot become one; make an empty file where none is.

    A file that is there is opened by SQLite alone: to close it again by any other way would take from this process all
    locks that its connections hold on it.
    """
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        if not may_create:
            raise ConfigError(f"{path}: there is no state store; `fraud serve` and `fraud warm` make one") from None
        _make_file(path)
        size = 0
    if not os.path.isfile(path) or not os.access(path, os.R_OK | os.W_OK):
        raise ConfigError(f"{path}: cannot be a state store; expected a file that may be read and written")
    if 0 < size < _SMALLEST:  # SQLite would take it for an empty database, and write over it
        raise ConfigError(f"{path}: is not a SQLite database; expected a state store, or a name that is free")
    if size == 0 and may_create:
        return
    with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
        try:
            _changes(db, path, may_create=may_create)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise ConfigError(f"{path}: is not a SQLite database that can be read: {error}") from None


def _make_file(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # ids of users: for its owner alone
    except FileExistsError:
        pass  # another worker made it just now
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from None


def bring_up_to_date(db: sqlite3.Connection, path: str, *, created_us: int, may_create: bool) -> str:
    """Make or upgrade the tables, inside the transaction that is open, and return when the store was created."""
    statements = _changes(db, path, may_create=may_create)
    is_new = _meta(db) is None
    for statement in statements:
        db.execute(statement)
    if is_new:
        db.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", meta_rows(created_us))
    return created(db)


def created(db: sqlite3.Connection) -> str:
    """Return when the store was created: what tells it from another one in its place."""
    return (_meta(db) or {}).get("created_us", "")


def connect(path: str, *, timeout_s: float) -> sqlite3.Connection:
    """Return a connection to a file that is there; its commits are on the disk when they return."""
    db = sqlite3.connect(
        f"file:{quote(path)}?mode=rw",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,  # transactions are begun and ended by name
        check_same_thread=False,  # opened by the thread that starts the service, then used by the tick's alone
        cached_statements=256,
    )
    try:
        _use_wal(db, timeout_s=timeout_s)
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten, not just unlinked
    except BaseException:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection, *, timeout_s: float) -> None:
    """Set the WAL; while another process does so SQLite answers "locked" at once, whatever the timeout."""
    deadline = monotonic() + timeout_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def _changes(db: sqlite3.Connection, path: str, *, may_create: bool) -> tuple[str, ...]:
    """Return the statements that make this a store of this version; raises ConfigError where nothing can."""
    meta = _meta(db)
    if meta is not None:
        return upgrade_statements(meta, SQLITE, where=path)
    if not may_create:
        raise ConfigError(f"{path}: holds no state store; `fraud serve` and `fraud warm` make one")
    return create_statements(SQLITE)


def _meta(db: sqlite3.Connection) -> Mapping[str, str] | None:
    """Return what a store says of itself: None in an empty database, nothing in one that is not ours."""
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return None
    columns = {row[0] for row in db.execute("SELECT name FROM pragma_table_info('meta')")}
    return dict(db.execute("SELECT key, value FROM meta")) if {"key", "value"} <= columns else {}
