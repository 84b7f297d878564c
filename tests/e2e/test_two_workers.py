"""Two servers on one store, the same users asked of both at once: each event once, each score that of the log so far.

Half way one of them swaps to another model; then each answer is still of one model, whoever answered before it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from fraud.decisions import DECISIONS
from fraud.rows import sort_key
from fraud.scoring import Scorer
from service.models import LINK
from service.payloads import EventRecord, StoredRow, risk_array
from service.state.opening import open_existing_store
from service.state.sql import SqlStore
from service.state.store import Wanted
from tests.ledger import NO_FAULTS, Ledger, event_records
from tests.plain_service import Kept, PlainService
from tests.postgres import PostgresServer
from tests.senders import Sender
from tests.serving import Caller, ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server

_USERS = [f"joint-{n}" for n in range(6)]
_LOAD_S = 2.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a new store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.fresh_database()


def test_two_workers_answer_as_one(trained: Trained, tmp_path: Path, state: str) -> None:
    ledger = Ledger()
    link = tmp_path / "models" / LINK
    link.parent.mkdir()
    link.symlink_to(trained.folder / "lstm")
    with (
        serving(trained.folder / "lstm", state, folder=tmp_path) as first,
        serving(link.parent, state, "--follow", folder=tmp_path) as second,
    ):
        senders = [
            Sender(at, ledger, name=f"{n}", shared=_USERS, n_users=0) for n, at in enumerate([first, second] * 3)
        ]
        ends = threading.Event()
        threads = [threading.Thread(target=sender.run, args=(ends,)) for sender in senders]
        for thread in threads:
            thread.start()
        time.sleep(_LOAD_S)
        _swap(link, trained.folder / "boosting", second)
        time.sleep(_LOAD_S)
        ends.set()
        for thread in threads:
            thread.join()
        for sender in senders:
            sender.settle()
            sender.close()
            assert sender.counts["silence"] == 0
        for server in (first, second):  # what one answered, the other answers again
            caller = Caller(server)
            ledger.send_again(caller)
            caller.close()
            assert "level=error" not in server.said
    assert ledger.faults(state) == NO_FAULTS
    assert not ledger.contradictions
    assert set(ledger.sent) - set(ledger.acknowledged) == ledger.refused
    assert len(ledger.refused) < len(ledger.sent) / 20  # too late, overtaken by a whole block of others
    _check_scores(trained, state)


def _swap(link: Path, bundle: Path, server: ServerProcess) -> None:
    aside = link.with_name("next")
    aside.symlink_to(bundle)
    aside.replace(link)
    caller = Caller(server)
    until = time.monotonic() + 20
    while caller.ask("GET", "/v1/model").json["name"] != bundle.name:
        assert time.monotonic() < until, server.said
        time.sleep(0.05)
    caller.close()


def _check_scores(trained: Trained, state: str) -> None:
    """Check each answer against the batch score of what the store held of its user by then, in the order of storing."""
    scorers = {bundle.sha256: bundle.scorer for bundle in map(trained.bundle, ("lstm", "boosting"))}
    store = open_existing_store(state, now_us=lambda: 0)
    try:
        by_user: dict[str, list[EventRecord]] = defaultdict(list)
        for record in event_records(store):
            by_user[record.user_id].append(record)
        names = Counter(record.model.name for records in by_user.values() for record in records)
        shards = Counter(record.answer.decision_id.partition("-")[0] for r in by_user.values() for record in r)  # type: ignore[union-attr]
        assert min(names["lstm"], names["boosting"]) > 30
        assert min(shards.values()) > 30
        assert len(shards) == 2
        n_late = sum(_check_user(store, records, scorers) for records in by_user.values())
        assert n_late > 0
        _check_counters(store, by_user)
    finally:
        store.close()


def _check_user(store: SqlStore, records: list[EventRecord], scorers: dict[str, Scorer]) -> int:
    """Check the answers of one user; return how many were late."""
    user = records[0].user_id
    plain = PlainService(next(iter(scorers.values())).config)
    # A snapshot begins with the late events that made it; those that came after it have a place of 0 and more.
    records = sorted(records, key=lambda record: (record.snapshot, record.place >= 0, abs(record.place)))
    groups: dict[tuple[int, int], list[EventRecord]] = defaultdict(list)
    for record in records:
        groups[record.snapshot, max(record.place, -1)].append(record)
    kept: list[Kept] = []
    for (snapshot, place), group in groups.items():
        kept = sorted(
            [*kept, *(_kept(record, plain) for record in group)], key=lambda one: sort_key(one.row, by_id=True)
        )
        assert place < 0 or kept[-1].row == group[0].row  # not late: the newest
        plain.kept[user] = kept
        stored = store.snapshot(user, snapshot)
        assert stored is not None
        plain.first[user] = stored.first_index
        scores = plain.scores(scorers[group[0].model.sha256], user)
        index_of = {one.row.event_id: index for index, one in enumerate(kept)}
        for record in group:
            index = index_of[record.row.event_id]
            if plain.has_context(user, index):
                score, decision = scores[index]
                assert record.answer.score == pytest.approx(score, abs=1e-5)
                assert record.answer.decision == (None if decision < 0 else DECISIONS[decision])
    found = store.read(Wanted((user,), (), ())).users[user]
    assert (found.n_events, found.newest_us) == (len(kept), kept[-1].row.time_us)
    return sum(record.place < 0 for record in records)


def _kept(record: EventRecord, plain: PlainService) -> Kept:
    risk_OER = risk_array([StoredRow(record.row, record.risk)])
    return Kept(record.row, {name: risk_OER[:, e] for e, name in enumerate(plain.config.fields.entity)})


def _check_counters(store: SqlStore, by_user: dict[str, list[EventRecord]]) -> None:
    """Check that each event was counted once, whoever lost how many races."""
    rows = [record.row for records in by_user.values() for record in records]
    payees = Counter(row.entity[0] for row in rows if row.entity[0] is not None)
    last_hour = int(np.max([row.time_us for row in rows])) // 3_600_000_000 + 1
    found = store.read(Wanted((), (), tuple(("payee", payee, last_hour) for payee in payees))).counters
    volume: Counter[str] = Counter()
    for row in found:
        volume[row.entity] += row.volume
    assert volume == payees
