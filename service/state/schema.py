"""The tables of a state store, for both databases, and how a store of an older version becomes one of this version.

Nothing here opens a database. Versions: 1 had no shadow table, no session of an event and no index of known frauds;
2 is what is written below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fraud.errors import ConfigError

SCHEMA_VERSION = 2
APPLICATION = "fraud-state"  # meta.application: what says that these tables are ours


class Dialect(NamedTuple):
    """How a database names its types. clustered: what makes a table one tree, ordered by its key; plain: any other."""

    text: str
    integer: str
    real: str
    blob: str
    clustered: str
    plain: str


# STRICT refuses a text where a number belongs, as PostgreSQL does.
SQLITE = Dialect("TEXT", "INTEGER", "REAL", "BLOB", " STRICT, WITHOUT ROWID", " STRICT")
# COLLATE "C": ids are compared as bytes, in the order in which Python sorts them too.
POSTGRES = Dialect('TEXT COLLATE "C"', "BIGINT", "DOUBLE PRECISION", "BYTEA", "", "")

# A session id that is not `{user_id}@{first event}` is the log's own. Only these need an index, which costs 15 us an
# event; the others say whose they are. Its words must be those of the query, or SQLite does not see that they match.
OWN_SESSION = "substr(session_id, 1, length(user_id) + 1) <> user_id || '@'"

# Rows of a table WITHOUT ROWID should be far smaller than a page: snapshots and records hold payloads, so they are not.
_SHADOW = """
CREATE TABLE shadow (
    day {integer} NOT NULL, champion {text} NOT NULL, challenger {text} NOT NULL,
    decision_champion {text} NOT NULL, decision_challenger {text} NOT NULL,
    n {integer} NOT NULL, sum_abs_difference {real} NOT NULL,
    PRIMARY KEY (day, champion, challenger, decision_champion, decision_challenger)
){clustered}
"""
_SESSION_INDEX = f"CREATE INDEX events_session ON events (session_id) WHERE {OWN_SESSION}"
# The hours of an entity in which a fraud became known, however long ago: few of many.
_FRAUDS_INDEX = "CREATE INDEX counters_frauds ON counters (field, entity, hour) WHERE frauds > 0"
_TABLES = (
    "CREATE TABLE meta (key {text} PRIMARY KEY, value {text} NOT NULL){clustered}",
    """
    CREATE TABLE users (
        user_id {text} PRIMARY KEY, sequence {integer} NOT NULL, n_events {integer} NOT NULL,
        newest_us {integer} NOT NULL, snapshot {integer} NOT NULL
    ){clustered}
    """,
    """
    CREATE TABLE snapshots (
        user_id {text} NOT NULL, snapshot {integer} NOT NULL, first_index {integer} NOT NULL,
        carry {blob} NOT NULL, rows {blob} NOT NULL,
        PRIMARY KEY (user_id, snapshot)
    ){plain}
    """,
    """
    CREATE TABLE events (
        user_id {text} NOT NULL, event_id {text} NOT NULL, ts_us {integer} NOT NULL, payload_hash {blob} NOT NULL,
        shard {integer}, number {integer}, session_id {text}, entities {text} NOT NULL,
        label {integer}, label_known_us {integer}, stored_us {integer} NOT NULL,
        PRIMARY KEY (user_id, event_id)
    ){clustered}
    """,
    "CREATE INDEX events_stored ON events (stored_us)",
    _SESSION_INDEX,
    """
    CREATE TABLE records (
        shard {integer} NOT NULL, number {integer} NOT NULL, user_id {text}, snapshot {integer}, ordinal {integer},
        payload {blob}, erased_by {text},
        PRIMARY KEY (shard, number)
    ){plain}
    """,
    "CREATE INDEX records_user ON records (user_id, snapshot, ordinal)",
    """
    CREATE TABLE chain (
        shard {integer} NOT NULL, number {integer} NOT NULL, payload_sha256 {blob} NOT NULL, hash {blob} NOT NULL,
        PRIMARY KEY (shard, number)
    ){clustered}
    """,
    """
    CREATE TABLE shards (
        shard {integer} PRIMARY KEY, name {text} NOT NULL, started_us {integer} NOT NULL,
        head_number {integer} NOT NULL, head_hash {blob} NOT NULL
    ){plain}
    """,
    """
    CREATE TABLE counters (
        field {text} NOT NULL, entity {text} NOT NULL, hour {integer} NOT NULL,
        volume {integer} NOT NULL CHECK (volume >= 0), frauds {integer} NOT NULL CHECK (frauds >= 0),
        honest {integer} NOT NULL CHECK (honest >= 0),
        PRIMARY KEY (field, entity, hour)
    ){clustered}
    """,
    _FRAUDS_INDEX,
    """
    CREATE TABLE labels (
        label_id {text} PRIMARY KEY, user_id {text}, event_id {text}, session_id {text}, label {integer} NOT NULL,
        known_us {integer} NOT NULL, source {text} NOT NULL, stored_us {integer} NOT NULL
    ){plain}
    """,
    "CREATE INDEX labels_user ON labels (user_id)",
    "CREATE INDEX labels_session ON labels (session_id)",
    """
    CREATE TABLE api_keys (key_hash {blob} PRIMARY KEY, role {text} NOT NULL, created_us {integer} NOT NULL){plain}
    """,
    _SHADOW,
)

# What makes a store of this version one of the next.
_UPGRADES: Mapping[int, tuple[str, ...]] = {
    1: ("ALTER TABLE events ADD COLUMN session_id {text}", _SESSION_INDEX, _FRAUDS_INDEX, _SHADOW),
}


def create_statements(dialect: Dialect) -> tuple[str, ...]:
    """Return what makes the tables of an empty store; its meta rows are `meta_rows`."""
    return tuple(statement.format_map(dialect._asdict()).strip() for statement in _TABLES)


def meta_rows(created_us: int) -> tuple[tuple[str, str], ...]:
    """Return (key, value) of a new store."""
    return ("application", APPLICATION), ("schema_version", str(SCHEMA_VERSION)), ("created_us", str(created_us))


def upgrade_statements(meta: Mapping[str, str], dialect: Dialect, *, where: str) -> tuple[str, ...]:
    """Return what makes a store with these meta rows one of this version: nothing where it is.

    Raises ConfigError where it is no store, or of a version nobody here knows; `where` names it.
    """
    if meta.get("application") != APPLICATION:
        raise ConfigError(f"{where}: is a database, but not a state store; expected one of ours, or a new name")
    found = meta.get("schema_version", "")
    version = int(found) if found.isascii() and found.isdigit() else 0
    if version == SCHEMA_VERSION:
        return ()
    known = ", ".join(str(known) for known in (*_UPGRADES, SCHEMA_VERSION))
    if version not in _UPGRADES:
        raise ConfigError(
            f"{where}: is a state store of version {found or 'none'}, this program knows {known}; it was not touched"
        )
    steps = [step for past in range(version, SCHEMA_VERSION) for step in _UPGRADES[past]]
    steps.append(f"UPDATE meta SET value = '{SCHEMA_VERSION}' WHERE key = 'schema_version'")
    return tuple(step.format_map(dialect._asdict()).strip() for step in steps)
