"""A state store when its database is slow, away, killed, replaced, or not one at all."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest

from fraud.errors import ConfigError
from service.audit import verify
from service.state.opening import open_existing_store, open_store
from service.state.schema import POSTGRES, SCHEMA_VERSION, SQLITE, Dialect
from service.state.store import CounterDelta, LabelledEvent, ShardLost, StoreDown, Tick, Wanted
from tests.commands import ROOT
from tests.made_ticks import HOUR, NOW_US, append, event_write, label_write, read_user, user_write
from tests.postgres import PostgresServer
from tests.states import Opened

# What a store of version 1 was.
_VERSION_1 = """
CREATE TABLE meta (key {text} PRIMARY KEY, value {text} NOT NULL);
CREATE TABLE users (user_id {text} PRIMARY KEY, sequence {integer} NOT NULL, n_events {integer} NOT NULL,
    newest_us {integer} NOT NULL, snapshot {integer} NOT NULL);
CREATE TABLE snapshots (user_id {text} NOT NULL, snapshot {integer} NOT NULL, first_index {integer} NOT NULL,
    carry {blob} NOT NULL, rows {blob} NOT NULL, PRIMARY KEY (user_id, snapshot));
CREATE TABLE events (user_id {text} NOT NULL, event_id {text} NOT NULL, ts_us {integer} NOT NULL,
    payload_hash {blob} NOT NULL, shard {integer}, number {integer}, entities {text} NOT NULL, label {integer},
    label_known_us {integer}, stored_us {integer} NOT NULL, PRIMARY KEY (user_id, event_id));
CREATE INDEX events_stored ON events (stored_us);
CREATE TABLE records (shard {integer} NOT NULL, number {integer} NOT NULL, user_id {text}, snapshot {integer},
    ordinal {integer}, payload {blob}, erased_by {text}, PRIMARY KEY (shard, number));
CREATE INDEX records_user ON records (user_id, snapshot, ordinal);
CREATE TABLE chain (shard {integer} NOT NULL, number {integer} NOT NULL, payload_sha256 {blob} NOT NULL,
    hash {blob} NOT NULL, PRIMARY KEY (shard, number));
CREATE TABLE shards (shard {integer} PRIMARY KEY, name {text} NOT NULL, started_us {integer} NOT NULL,
    head_number {integer} NOT NULL, head_hash {blob} NOT NULL);
CREATE TABLE counters (field {text} NOT NULL, entity {text} NOT NULL, hour {integer} NOT NULL,
    volume {integer} NOT NULL, frauds {integer} NOT NULL, honest {integer} NOT NULL, PRIMARY KEY (field, entity, hour));
CREATE TABLE labels (label_id {text} PRIMARY KEY, user_id {text}, event_id {text}, session_id {text},
    label {integer} NOT NULL, known_us {integer} NOT NULL, source {text} NOT NULL, stored_us {integer} NOT NULL);
CREATE INDEX labels_user ON labels (user_id);
CREATE INDEX labels_session ON labels (session_id);
CREATE TABLE api_keys (key_hash {blob} PRIMARY KEY, role {text} NOT NULL, created_us {integer} NOT NULL);
INSERT INTO meta VALUES ('application', 'fraud-state'), ('schema_version', '1'), ('created_us', '7');
INSERT INTO users VALUES ('ann', 3, 1, 5, 1);
INSERT INTO snapshots VALUES ('ann', 1, 0, {bytes}, {bytes});
INSERT INTO events VALUES ('ann', 'e1', 5, {bytes}, NULL, NULL, '["p",null]', 1, 6, 5);
INSERT INTO counters VALUES ('payee', 'p', 1, 1, 1, 0)
"""
_WORKER = """
import sys
from service.state.opening import open_store
from tests.made_ticks import NOW_US, append
store = open_store(sys.argv[1], now_us=lambda: NOW_US)
for i in range(100_000):
    append(store, f"u{i % 5}", f"{sys.argv[2]}-{i}")
    sys.stdout.write(f"u{i % 5} {sys.argv[2]}-{i}\\n")
    sys.stdout.flush()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Yield what opens stores on one new database."""
    with Opened.on(request, tmp_path) as opened:
        yield opened


def _statements(dialect: Dialect, some_bytes: str) -> list[str]:
    text = _VERSION_1.format(**dialect._asdict(), bytes=some_bytes)
    return [statement for statement in text.split(";") if statement.strip()]


def _make_version_1(opened: Opened) -> None:
    if opened.url.startswith("sqlite"):
        for statement in _statements(SQLITE, "x'00ff'"):
            opened.rows(statement)
        return
    opened.rows("CREATE SCHEMA fraud")
    for statement in _statements(POSTGRES, "'\\x00ff'"):
        opened.rows(statement)


def test_a_store_of_version_1_is_upgraded_with_what_it_holds(opened: Opened) -> None:
    _make_version_1(opened)
    store = opened.store()
    assert opened.rows("SELECT value FROM meta WHERE key = 'schema_version'") == [(str(SCHEMA_VERSION),)]
    found = store.read(Wanted(("ann",), (("ann", "e1"),), (("payee", "p", 5000),)))
    assert found.users["ann"] == (3, 1, 5, 1, 0, b"\0\xff", b"\0\xff", ())
    event = found.events["ann", "e1"]
    assert (event.label, event.entities, event.session_id, event.payload) == (1, ("p", None), None, None)
    assert [row.frauds for row in found.counters] == [1]
    assert not append(store, "ann", "e2")
    assert [key[:2] for key in store.session_events(f"ann@{NOW_US}")] == [("ann", "e2")]
    assert store.shadow_rows() == ()
    assert verify(store, {}).broken == ()


@pytest.mark.parametrize("version", ["3", "0", "two", "-1", ""])
def test_a_store_of_an_unknown_version_is_refused_and_not_touched(opened: Opened, version: str) -> None:
    store = opened.store()
    append(store, "ann", "e1")
    opened.rows(f"UPDATE meta SET value = '{version}' WHERE key = 'schema_version'")
    store.close()
    for open_it in (open_store, open_existing_store):
        with pytest.raises(ConfigError, match="this program knows 1, 2; it was not touched"):
            open_it(opened.url, now_us=lambda: NOW_US)
    assert opened.rows("SELECT value FROM meta WHERE key = 'schema_version'") == [(version,)]


def test_other_tables_are_refused_and_not_touched(opened: Opened) -> None:
    if opened.url.startswith("postgres"):
        opened.rows("CREATE SCHEMA fraud")
    opened.rows("CREATE TABLE meta (name TEXT)")
    path = Path(opened.url.removeprefix("sqlite:///"))
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(ConfigError, match="not a state store"):
        open_store(opened.url, now_us=lambda: NOW_US)
    assert (path.read_bytes() if path.exists() else b"") == before
    assert opened.rows("SELECT * FROM meta") == []


@pytest.mark.parametrize("content", [b"user_id,ts\n", b"SQLite format 3\0" + b"x" * 500, b"\0"])
def test_a_file_that_is_no_database_is_refused_and_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.db"):
        open_store(f"sqlite:///{path}", now_us=lambda: NOW_US)
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///",
        "state.db",
        "mysql://u:secret@h/d",
        "postgresql://",
        "postgresql://u:secret%zz@h/d",
    ],
)
def test_what_is_no_url_of_a_store_is_refused_without_an_echo(url: str) -> None:
    with pytest.raises(ConfigError, match="--state") as caught:
        open_store(url, now_us=lambda: NOW_US)
    assert "secret" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "state.db", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            open_store(f"sqlite:///{path}", now_us=lambda: NOW_US)


def test_a_new_file_is_for_its_owner_alone_and_in_wal(tmp_path: Path) -> None:
    path = tmp_path / "50% of_it?#.db"
    store = open_store(f"sqlite:///{path}", now_us=lambda: NOW_US)
    append(store, "ann", "e1")
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_a_worker_that_is_killed_loses_nothing_it_acknowledged(opened: Opened) -> None:
    acknowledged: set[tuple[str, str]] = set()
    for life in range(3):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _WORKER, opened.url, str(life)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert worker.stdout is not None
        for _ in range(30 + 17 * life):
            acknowledged.add(tuple(worker.stdout.readline().split()))  # type: ignore[arg-type] - two words a line
        worker.send_signal(signal.SIGKILL)
        acknowledged.update(tuple(line.split()) for line in worker.stdout if line.endswith("\n"))  # type: ignore[misc]
        worker.stdout.close()
        worker.wait()
    store = opened.store()
    found = store.read(Wanted(tuple(f"u{i}" for i in range(5)), tuple(acknowledged), ()))
    assert set(found.events) == acknowledged
    assert all(event.payload for event in found.events.values())
    assert sum(user.n_events for user in found.users.values()) - len(acknowledged) in range(4)
    verdict = verify(store, {})
    assert (verdict.broken, verdict.n_shards) == ((), 3)


def test_a_file_that_is_locked_is_down_in_bounded_time_and_then_up(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = open_store(f"sqlite:///{path}", now_us=lambda: NOW_US, timeout_s=0.2)
    append(store, "ann", "e1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(StoreDown, match="locked"):
            append(store, "ann", "e2")
        assert 0.1 < time.monotonic() - started < 3
        assert read_user(store, "ann") is not None  # who reads does not wait
        other.execute("ROLLBACK")
    assert not append(store, "ann", "e2")
    assert verify(store, {}).broken == ()  # type: ignore[arg-type] - the store is a SqlStore
    store.close()


def test_a_file_that_is_removed_takes_no_commit(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = open_store(f"sqlite:///{path}", now_us=lambda: NOW_US)
    append(store, "ann", "e1")
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in tmp_path.glob("state.db*"):
        file.rename(aside / file.name)
    with pytest.raises(StoreDown, match="gone"):
        store.read(Wanted(("ann",), (), ()))
    open_store(f"sqlite:///{path}", now_us=lambda: NOW_US + 1).close()
    with pytest.raises(StoreDown, match="replaced"):
        store.read(Wanted(("ann",), (), ()))
    for file in aside.iterdir():
        file.rename(path.parent / file.name)
    assert not append(store, "ann", "e2")
    store.close()


def test_a_store_that_was_set_back_to_before_this_process_gives_it_a_new_chain(opened: Opened) -> None:
    store = opened.store()
    append(store, "ann", "e1")
    first = store.shard
    opened.store().state_hash()
    assert opened.store().shard == first + 1
    opened.rows(f"DELETE FROM shards WHERE shard = {first}")
    with pytest.raises(ShardLost):
        append(store, "ann", "e2")
    assert not append(store, "ann", "e2")
    assert store.shard == first + 2


def test_a_wrong_statement_is_not_taken_for_a_database_that_is_away(opened: Opened) -> None:
    store = opened.store()
    append(store, "ann", "e1")
    user = user_write("ann", [event_write(store, "ann", "e1", ordinal=1)], read_user(store, "ann"))
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
        store.write(Tick((user,), (), ()))  # the same event again: the caller's mistake
    assert not append(store, "ann", "e2")
    assert verify(store, {}).broken == ()


def test_a_server_that_stands_still_is_down_in_bounded_time_and_then_up(postgres: PostgresServer) -> None:
    with postgres.lent_database() as url:
        store = open_store(url, now_us=lambda: NOW_US, timeout_s=0.4)
        append(store, "ann", "e1")
        user = user_write("ann", [event_write(store, "ann", "e2", ordinal=1)], read_user(store, "ann"))
        postgres.pause()
        try:
            started = time.monotonic()
            with pytest.raises(StoreDown, match="no answer in time"):
                store.write(Tick((user,), (), ()))
            assert time.monotonic() - started < 2
        finally:
            postgres.resume()
        deadline = time.monotonic() + 5
        while True:
            with suppress(StoreDown):
                store.write(Tick((user,), (), ()))
                break
            assert time.monotonic() < deadline
        found = store.read(Wanted((), (("ann", "e2"),), ()))
        assert len(found.events) == 1
        store.close()


def test_a_statement_that_waits_for_a_lock_is_down_in_bounded_time(postgres: PostgresServer) -> None:
    with postgres.lent_database() as url, psycopg.connect(url) as other:
        store = open_store(url, now_us=lambda: NOW_US, timeout_s=0.4)
        append(store, "ann", "e1")
        other.execute("UPDATE fraud.users SET n_events = n_events")
        with pytest.raises(StoreDown):
            append(store, "ann", "e2")
        other.rollback()
        assert not append(store, "ann", "e2")
        store.close()


def test_a_server_that_is_stopped_is_down_and_back_with_the_next_read(postgres: PostgresServer) -> None:
    with postgres.lent_database() as url:
        store = open_store(url, now_us=lambda: NOW_US)
        append(store, "ann", "e1")
        postgres.stop()
        try:
            for _ in range(2):
                with pytest.raises(StoreDown):
                    store.read(Wanted(("ann",), (), ()))
        finally:
            postgres.start()
        time.sleep(0.3)
        append(store, "ann", "e2")
        postgres.stop()
        postgres.start()  # between two ticks: nobody notices
        user = read_user(store, "ann")
        assert user is not None
        assert user.n_events == 2
        store.close()


class _Relay:
    """Passes bytes on to a server, until it is told to swallow the answers."""

    def __init__(self, port: int) -> None:
        self.swallows = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._target = port
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError), source, target:
            while content := source.recv(65536):
                if not (is_answer and self.swallows):
                    target.sendall(content)


def test_a_commit_whose_answer_is_lost_is_found_by_its_event(postgres: PostgresServer) -> None:
    relay = _Relay(postgres.port)
    with postgres.lent_database() as url, psycopg.connect(url) as other:
        store = open_store(url.replace(str(postgres.port), str(relay.port)), now_us=lambda: NOW_US, timeout_s=1.0)
        append(store, "ann", "e1")
        user = user_write("ann", [event_write(store, "ann", "e2", ordinal=1)], read_user(store, "ann"))
        # The tick waits for this lock in its second round trip, with its COMMIT sent along.
        other.execute("UPDATE fraud.counters SET volume = volume")

        def let_go() -> None:
            time.sleep(0.3)
            relay.swallows = True
            other.rollback()

        letting_go = threading.Thread(target=let_go)
        letting_go.start()
        with pytest.raises(StoreDown):
            store.write(Tick((user,), (), ()))
        letting_go.join()
        relay.swallows = False
        found = store.read(Wanted(("ann",), (("ann", "e2"),), ()))
        assert found.events["ann", "e2"].payload == user.events[0].payload
        assert store.write(Tick((user,), (), ())) == {"ann"}  # sent again blindly, it loses to itself
        assert not append(store, "ann", "e3")
        with closing(open_existing_store(url, now_us=lambda: NOW_US)) as again:
            assert verify(again, {}).broken == ()
        store.close()
    relay.close()


def test_a_deadlock_is_tried_again(postgres: PostgresServer) -> None:
    with postgres.lent_database() as url, psycopg.connect(url) as other:
        store = open_store(url, now_us=lambda: NOW_US)
        append(store, "ann", "e1")
        other.execute("UPDATE fraud.counters SET volume = volume")
        writing = threading.Thread(target=lambda: append(store, "ann", "e2"))
        writing.start()
        time.sleep(0.05)
        with suppress(psycopg.errors.DeadlockDetected):  # one of the two is chosen
            other.execute("UPDATE fraud.users SET n_events = n_events")
        other.rollback()
        writing.join()
        user = read_user(store, "ann")
        assert user is not None
        assert user.n_events == 2
        store.close()


def test_a_label_that_two_workers_write_at_once_is_written_once(postgres: PostgresServer) -> None:
    with postgres.lent_database() as url, psycopg.connect(url) as other:
        store = open_store(url, now_us=lambda: NOW_US)
        append(store, "ann", "e1")
        other.execute("INSERT INTO fraud.labels VALUES ('l1', 'ann', 'e1', NULL, 1, 5, 'other', 5)")
        delta = CounterDelta("payee", "payee of ann", HOUR, 0, 1, 0)
        label = label_write("l1", [LabelledEvent("ann", "e1", None, None)], 1, counters=[delta])
        writing = threading.Thread(target=lambda: store.write(Tick((), (), (label,))))
        writing.start()
        time.sleep(0.1)
        other.commit()
        writing.join()
        counters = store.read(Wanted((), (), (("payee", "payee of ann", HOUR + 1),))).counters
        assert [row.frauds for row in counters] == [0]
        store.close()
