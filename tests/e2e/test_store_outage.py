"""PostgreSQL stopped, started and made slow under load: answers as configured, nothing lost, normal again at once."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.ledger import NO_FAULTS, Ledger
from tests.links import link_to
from tests.postgres import PostgresServer, running_postgres
from tests.senders import Sender
from tests.serving import Answer, Caller, HasPort, ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server

_NORMAL_AGAIN_S = 3.0
_EVENT = {"event_id": "probe", "type": "login", "ts": "2026-01-01T10:00:00Z"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """Yield a server of these tests alone: they stop it."""
    with running_postgres() as server:
        yield server


class _Health:
    """Asks /healthz all the time. longest_s: how long an answer took; failures: whatever was not 200."""

    def __init__(self, server: HasPort) -> None:
        self.longest_s = 0.0
        self.failures: list[str] = []
        self.n_answers = 0
        self._caller = Caller(server, timeout_s=5)

    def run(self, ends: threading.Event) -> None:
        while not ends.wait(0.02):
            began = time.monotonic()
            try:
                status = self._caller.ask("GET", "/healthz").status
                if status != 200:
                    self.failures.append(str(status))
            except Exception as error:  # noqa: BLE001 - a thread's error must reach the test
                self.failures.append(repr(error))
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.n_answers += 1
        self._caller.close()


class _Load:
    """Senders on a server, and what it acknowledged."""

    def __init__(self, server: ServerProcess, state: str) -> None:
        self.server, self.state = server, state
        self.ledger = Ledger()
        self.senders = [Sender(server, self.ledger, name=f"s{n}", shared=("joint",)) for n in range(4)]
        self.health = _Health(server)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        ends = threading.Event()
        runs = [*(sender.run_on for sender in self.senders), self.health.run]
        threads = [threading.Thread(target=run, args=(ends,)) for run in runs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ends.set()
            for thread in threads:
                thread.join()

    def check(self) -> None:
        """Check that all was answered in the end, and nothing of it is lost, doubled or changed."""
        for sender in self.senders:
            sender.settle()
        caller = Caller(self.server)
        self.ledger.send_again(caller)
        caller.close()
        for sender in self.senders:
            sender.close()
        assert self.ledger.faults(self.state) == NO_FAULTS
        assert not self.ledger.contradictions
        assert not self.health.failures
        assert self.health.longest_s < 1.0
        assert self.health.n_answers > 50
        assert "unhandled" not in self.server.said


def _during_outage(load: _Load, fail: str, *, reads_too: bool = True) -> None:
    """Check what a caller is told while the store is away. reads_too: it cannot be read either."""
    caller = Caller(load.server)
    until = time.monotonic() + 5
    answer = _probed(load, caller, "outage")
    while _is_normal(answer) and time.monotonic() < until:
        answer = _probed(load, caller, "outage")
    scored = caller.ask("POST", "/v1/score", {"user_id": "outage", "events": [_EVENT]})
    for told in (answer, scored):
        if fail == "open":
            assert told.status == 200
            assert told.json["degraded"] is True
            assert told.json["decision_id"] is None
            assert 0 < told.json["score"] < 1
        else:
            assert (told.status, told.json["code"]) == (503, "store_down")
            assert int(told.headers["retry-after"]) >= 1
    if reads_too:
        assert caller.ask("GET", "/v1/users/outage/timeline").json["code"] == "store_down"
    assert caller.ask("GET", "/readyz").status == (200 if fail == "open" else 503)
    caller.close()


def _is_normal(answer: Answer) -> bool:
    return answer.status == 200 and not answer.json["degraded"]


def _probed(load: _Load, caller: Caller, user: str) -> Answer:
    """Return the answer to one new event of a user."""
    event = _EVENT | {"event_id": f"probe-{time.monotonic_ns()}"}
    request = {"user_id": user, "events": [event]}
    load.ledger.note_sent(request)
    answer = caller.ask("POST", "/v1/events", request)
    if answer.status == 200:
        load.ledger.note_answer(request, answer.json)
    return answer


def _normal_after_s(load: _Load) -> float:
    """Return how long it takes until an answer is normal."""
    began = time.monotonic()
    caller = Caller(load.server)
    while not _is_normal(_probed(load, caller, "again")) and time.monotonic() < began + 30:
        time.sleep(0.02)
    caller.close()
    return time.monotonic() - began


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_database_that_is_stopped_and_started_loses_nothing(
    trained: Trained, database: PostgresServer, tmp_path: Path, fail: str
) -> None:
    state = database.fresh_database()
    with serving(trained.folder / "lstm", state, "--fail", fail, folder=tmp_path) as server:
        load = _Load(server, state)
        with load.running():
            for _ in range(2):
                time.sleep(0.7)
                database.stop()
                try:
                    _during_outage(load, fail)
                    time.sleep(0.5)
                finally:
                    database.start()
                assert _normal_after_s(load) < _NORMAL_AGAIN_S
        load.check()
        assert len(load.ledger.acknowledged) > 100
        assert sum(sender.counts["degraded" if fail == "open" else 503] for sender in load.senders) > 0


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_database_that_does_not_answer_in_time_loses_nothing(
    trained: Trained, database: PostgresServer, tmp_path: Path, fail: str
) -> None:
    state = database.fresh_database()
    with link_to(database.port) as link:
        slow = state.replace(f":{database.port}/", f":{link.port}/")
        options = ("--fail", fail, "--state-timeout", "0.5")
        with serving(trained.folder / "boosting", slow, *options, folder=tmp_path) as server:
            load = _Load(server, state)
            with load.running():
                time.sleep(0.5)
                link.delay_s = 0.02  # slow, but in time: all is normal
                time.sleep(1.0)
                assert _normal_after_s(load) < _NORMAL_AGAIN_S
                link.delay_s = 3.0
                _during_outage(load, fail)
                time.sleep(1.0)
                link.delay_s = 0.0
                assert _normal_after_s(load) < _NORMAL_AGAIN_S
                database.pause()
                try:
                    _during_outage(load, fail)
                finally:
                    database.resume()
                assert _normal_after_s(load) < _NORMAL_AGAIN_S
                with psycopg.connect(state) as other:
                    other.execute("LOCK TABLE fraud.users IN ACCESS EXCLUSIVE MODE")
                    _during_outage(load, fail)
                assert _normal_after_s(load) < _NORMAL_AGAIN_S
                time.sleep(0.3)
            load.check()
            assert len(load.ledger.acknowledged) > 50


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_file_that_another_process_writes_to_for_long_loses_nothing(
    trained: Trained, tmp_path: Path, fail: str
) -> None:
    state = f"sqlite:///{tmp_path}/state.db"
    options = ("--fail", fail, "--state-timeout", "0.5")
    with serving(trained.folder / "fused", state, *options, folder=tmp_path) as server:
        load = _Load(server, state)
        with load.running():
            time.sleep(0.5)
            with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                _during_outage(load, fail, reads_too=False)
                time.sleep(0.7)
            assert _normal_after_s(load) < _NORMAL_AGAIN_S
        load.check()
        assert len(load.ledger.acknowledged) > 100
