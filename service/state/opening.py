"""A state store by its URL: which database it is, and whether a new one may be made."""

from __future__ import annotations

from collections.abc import Callable

from fraud.errors import ConfigError
from service.state.sql import SqlStore
from service.state.store import Store

STATE_URL = "sqlite:///fraud-state.db"
TIMEOUT_S = 2.0


def open_store(url: str, *, now_us: Callable[[], int], timeout_s: float = TIMEOUT_S) -> Store:
    """Return the store of a URL: sqlite:///PATH or postgresql://...; a new one is made, an older one upgraded.

    timeout_s: how long one statement may take before StoreDown is raised. now_us: the clock of what is kept.
    """
    return _opened(url, now_us=now_us, timeout_s=timeout_s, may_create=True)


def open_existing_store(url: str, *, now_us: Callable[[], int], timeout_s: float = TIMEOUT_S) -> SqlStore:
    """Return the store of a URL as `open_store` does, but refuse one that is not there yet."""
    return _opened(url, now_us=now_us, timeout_s=timeout_s, may_create=False)


def _opened(url: str, *, now_us: Callable[[], int], timeout_s: float, may_create: bool) -> SqlStore:
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from service.state.sqlite import SqliteDatabase

        database = SqliteDatabase(rest[1:], timeout_s=timeout_s)
    elif scheme in {"postgresql", "postgres"} and rest:
        from service.state.postgres import PostgresDatabase  # psycopg costs memory that a service on SQLite never needs

        database = PostgresDatabase(url, timeout_s=timeout_s)
    else:  # no echo: a URL may hold a password
        raise ConfigError("--state: expected sqlite:///PATH or postgresql://USER@HOST/DATABASE")
    try:
        database.prepare(created_us=now_us(), may_create=may_create)
    except BaseException:
        database.close()
        raise
    return SqlStore(database, now_us=now_us)
